"""The loss of a unigram model, a baseline of language models."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from minilm.batch import IGNORE


def unigram_loss(counts: np.ndarray, target: Tensor, never: Sequence[int] = ()) -> float:
    """Nats per target of a model that knows only how often each token occurs in the training split, plus one.

    counts (V,); target (N,) int64, IGNORE left out; never: ids that cannot be targets, as special tokens in mlm.
    """
    weight = torch.from_numpy(counts + 1.0)
    weight[list(never)] = 0.0
    log_p = (weight / weight.sum()).log()
    return -float(log_p[target[target != IGNORE]].mean())

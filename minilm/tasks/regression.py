"""A number for a text or a pair of texts, as how alike two are."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from minilm.data.examples import Example
from minilm.dropin.models import PreTrainedModel
from minilm.dropin.tokenizer import BertTokenizer
from minilm.tasks.classification import logits_of, of_texts
from minilm.tasks.scores import regression_scores
from minilm.tasks.task import Features, Task, TaskBatch


@dataclass(frozen=True)
class Regression(Task):
    """A number, by the squared error."""

    kind: ClassVar[str] = "sequence"

    def config(self) -> dict[str, Any]:
        return {"num_labels": 1, "problem_type": "regression"}

    def features(self, examples: Sequence[Example], tokenizer: BertTokenizer, length: int) -> Features:
        target = np.array([np.nan if each.label is None else each.label for each in examples], np.float32)
        return replace(of_texts(examples, tokenizer, length), target=target)

    def loss(self, model: PreTrainedModel, batch: TaskBatch) -> tuple[Tensor, Tensor]:
        found = self.outputs(model, batch)
        found = found.to(torch.promote_types(found.dtype, torch.float32))
        return F.mse_loss(found, batch.target.to(found.dtype), reduction="sum"), torch.tensor(len(batch.target))

    def outputs(self, model: PreTrainedModel, batch: TaskBatch) -> Tensor:
        """(N,)."""
        return logits_of(model, batch).squeeze(1)

    def decode(self, outputs: np.ndarray, features: Features, examples: Sequence[Example]) -> list[float]:
        return outputs.tolist()

    def score(self, outputs: np.ndarray, features: Features, examples: Sequence[Example]) -> dict[str, float]:
        return regression_scores(features.target, outputs)

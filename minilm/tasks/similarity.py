"""Similarity of two texts: the cosine of their vectors, which `embed` and `search` use, too.

Each text is read by itself (Reimers and Gurevych 2019), so that its vector is made once and compared with any other.

Shape letters: N features of a batch, two for each example.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from minilm.checkpoint.pooling import Pooling
from minilm.dropin.models import PreTrainedModel
from minilm.dropin.tokenizer import BertTokenizer
from minilm.errors import CheckpointError, DataError
from minilm.labelled.examples import Example
from minilm.model.heads import pooled
from minilm.tasks.regression import NumberTask
from minilm.tasks.task import Features, GroupedFeatures, Predictions, TaskBatch, tokenized
from minilm.train.losses import widened

RANGE = "similarity_range"  # in config.json
MEAN = Pooling()


@dataclass(frozen=True)
class Similarity(NumberTask):
    """A number for two texts, learned by the squared error of their cosine."""

    name: ClassVar[str] = "similarity"
    kind: ClassVar[str] = "model"
    low: float = 0.0  # the label that is a cosine of 0
    high: float = 1.0  # the label that is a cosine of 1
    pooling: Pooling = MEAN

    @classmethod
    def of(cls, examples: Sequence[Example]) -> Self:
        labels = [each.label for each in examples]
        return cls(float(min(labels)), float(max(labels)))

    def config(self) -> dict[str, Any]:
        return {RANGE: [self.low, self.high]}

    def with_model(self, model: PreTrainedModel) -> Self:
        model.pooling = model.pooling or MEAN
        return replace(self, pooling=model.pooling)

    def as_saved(self, model: PreTrainedModel) -> Self:
        bounds = getattr(model.config, RANGE, [0.0, 1.0])
        numbers = isinstance(bounds, list) and all(isinstance(each, int | float) for each in bounds)
        if not numbers or len(bounds) != 2 or not all(map(math.isfinite, bounds)) or bounds[0] >= bounds[1]:
            raise CheckpointError(f"config.json: {RANGE} is {bounds!r}; give two numbers, the lower one first")
        return type(self)(*map(float, bounds)).with_model(model)

    def asked(self, texts: Sequence[Any], pairs: Sequence[str] | None = None) -> list[Example]:
        if pairs is None:
            raise DataError("similarity needs two texts: give `pairs`, one for each")
        return super().asked(texts, pairs)

    def features(self, examples: Sequence[Example], tokenizer: BertTokenizer, length: int) -> Features:
        """Two features for each example; target (n,): its label as a cosine."""
        texts = [self.pooling.prompt + text for each in examples for text in (each.text, each.pair)]
        texts = [text.lower() for text in texts] if self.pooling.lowercase else texts
        made = tokenized(texts, None, tokenizer, length, np.repeat(np.arange(len(examples)), 2))
        label = np.array([np.nan if each.label is None else each.label for each in examples], np.float64)
        cosine = np.repeat((label - self.low) / (self.high - self.low), 2)
        return GroupedFeatures.of(made, cosine.astype(np.float32))

    def outputs(self, model: PreTrainedModel, batch: TaskBatch) -> Tensor:
        """Cosines (N,), the same for both features of an example."""
        states = model.base_model.encoder(batch.tokens)
        vectors = widened(torch.cat([pooled(states, batch.tokens, how) for how in self.pooling.how], dim=1))
        order = batch.group.argsort(stable=True)  # an example's two are neighbours
        one, other = vectors[order].unflatten(0, (-1, 2)).unbind(1)
        cosine = F.cosine_similarity(one, other)
        return torch.zeros_like(vectors[:, 0]).index_copy(0, order, cosine.repeat_interleave(2))

    def loss_of(self, outputs: Tensor, batch: TaskBatch) -> tuple[Tensor, Tensor]:
        return F.mse_loss(outputs, batch.target.to(outputs.dtype), reduction="sum") / 2, torch.tensor(batch.count)

    def decode(self, predictions: Predictions) -> list[float]:
        return (self.low + (self.high - self.low) * predictions.outputs[::2].astype(np.float64)).tolist()

    def scale(self, examples: Sequence[Example]) -> float:
        return float(np.var([each.label for each in examples])) / (self.high - self.low) ** 2

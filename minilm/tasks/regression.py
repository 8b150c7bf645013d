"""Regression: a number for a text or a pair of texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minilm.dropin.models import PreTrainedModel
from minilm.dropin.tokenizer import BertTokenizer
from minilm.labelled.examples import Example
from minilm.metrics.intervals import weighted_numbers
from minilm.metrics.scores import regression_scores
from minilm.tasks.baselines import Scores, of_numbers
from minilm.tasks.classification import logits_of, of_texts
from minilm.tasks.task import Features, Predictions, Task, TaskBatch
from minilm.train.losses import widened


class NumberTask(Task):
    """A task whose labels are numbers."""

    constant_says: ClassVar[str] = "always the mean of these examples"

    def columns(self, predictions: Predictions) -> dict[str, list[Any]]:
        return {"prediction": [float(f"{value:.9g}") for value in self.decode(predictions)]}

    def records_of(self, examples: Sequence[Example], decoded: Sequence[float]) -> np.ndarray:
        """(n, 2): the true and the predicted number."""
        return np.array([[each.label for each in examples], decoded], np.float64).T

    def score(self, predictions: Predictions) -> dict[str, float]:
        return regression_scores(*self.records(predictions).T)

    def constant(self, examples: Sequence[Example]) -> list[float]:
        """The mean of the labels."""
        return [float(np.mean([each.label for each in examples]))] * len(examples)

    def weighted(self, records: np.ndarray, weights: np.ndarray) -> Mapping[str, np.ndarray]:
        return weighted_numbers(records, weights)

    def baselines(self, train: Sequence[Example], judged: Sequence[Example]) -> Scores:
        return of_numbers(train, judged)


@dataclass(frozen=True)
class Regression(NumberTask):
    """A number, learned by the squared error."""

    name: ClassVar[str] = "regression"
    kind: ClassVar[str] = "sequence"
    mean: float = 0.0  # of the labels: the bias of a new head

    @classmethod
    def of(cls, examples: Sequence[Example]) -> Self:
        return cls(float(np.mean([each.label for each in examples])))

    def with_model(self, model: PreTrainedModel) -> Self:
        if "classifier" in model.untrained:
            nn.init.constant_(model.classifier.bias, self.mean)
        return self

    def config(self) -> dict[str, Any]:
        return {"num_labels": 1, "problem_type": "regression"}

    def features(self, examples: Sequence[Example], tokenizer: BertTokenizer, length: int) -> Features:
        target = np.array([np.nan if each.label is None else each.label for each in examples], np.float32)
        return replace(of_texts(examples, tokenizer, length), target=target)

    def outputs(self, model: PreTrainedModel, batch: TaskBatch) -> Tensor:
        """Predicted numbers (N,)."""
        return logits_of(model, batch, precise=True).squeeze(1)

    def loss_of(self, outputs: Tensor, batch: TaskBatch) -> tuple[Tensor, Tensor]:
        found = widened(outputs)
        return F.mse_loss(found, batch.target.to(found.dtype), reduction="sum"), torch.tensor(len(batch.target))

    def decode(self, predictions: Predictions) -> list[float]:
        return predictions.outputs.tolist()

    def scale(self, examples: Sequence[Example]) -> float:
        return float(np.var([each.label for each in examples]))

"""Multiple choice: which of several texts goes with a text, as the ending of a story (Zellers et al. 2018).

Shape letters: N features of a batch.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from minilm.dropin.models import PreTrainedModel
from minilm.dropin.tokenizer import BertTokenizer
from minilm.errors import DataError
from minilm.labelled.examples import Choice
from minilm.metrics.intervals import weighted_means
from minilm.tasks.baselines import Scores
from minilm.tasks.classification import logits_of
from minilm.tasks.task import Features, GroupedFeatures, Predictions, Task, TaskBatch, check_strings, tokenized
from minilm.train.losses import widened


@dataclass(frozen=True)
class MultipleChoice(Task):
    """A softmax over the choices of an example, of one logit each (Devlin et al. 2018, sec. 4.4)."""

    name: ClassVar[str] = "choice"
    kind: ClassVar[str] = "choice"
    proportions: ClassVar[tuple[str, ...]] = ("accuracy",)
    constant_says: ClassVar[str] = "always the choice that is right most often in these examples"

    @classmethod
    def of(cls, examples: Sequence[Choice]) -> Self:
        return cls()

    def features(self, examples: Sequence[Choice], tokenizer: BertTokenizer, length: int) -> Features:
        """A feature for each choice, with the text before it. target (n,): 1 for the right choice, 0 for others."""
        of = [(row, i, each) for row, each in enumerate(examples) for i in range(len(each.choices))]
        texts, choices = [each.text for _, _, each in of], [each.choices[i] for _, i, each in of]
        made = tokenized(texts, choices, tokenizer, length, np.array([row for row, _, _ in of]))
        target = np.array([i == each.label for _, i, each in of], np.int64)
        return GroupedFeatures.of(made, target)

    def loss_of(self, outputs: Tensor, batch: TaskBatch) -> tuple[Tensor, Tensor]:
        logits = widened(outputs)
        empty, example = logits.detach().new_full((batch.units,), -torch.inf), batch.group
        top = empty.scatter_reduce(0, example, logits.detach(), "amax")
        sums = torch.zeros_like(top).index_add(0, example, (logits - top[example]).exp())
        nats = (top + sums.log()).sum() - (logits * batch.target).sum()
        return nats, torch.tensor(batch.count)

    def outputs(self, model: PreTrainedModel, batch: TaskBatch) -> Tensor:
        """Logits (N,)."""
        return logits_of(model, batch).squeeze(1)

    def asked(self, texts: Sequence[Any], pairs: Sequence[Sequence[str]] | None = None) -> list[Choice]:
        """Examples without labels: texts, and the choices of each."""
        if pairs is None:
            raise DataError("a text needs its choices: give `pairs`, a list for each")
        if any(isinstance(own, str) or not hasattr(own, "__len__") or len(own) < 2 for own in pairs):
            raise DataError("each text needs two choices or more: give `pairs` a list of them for each")
        check_strings("text", texts)
        check_strings("choice", chain.from_iterable(pairs))
        return [Choice(text, tuple(choices)) for text, choices in zip(texts, pairs, strict=True)]

    def decode(self, predictions: Predictions) -> list[int]:
        """The index of each example's likeliest choice, from 0."""
        return [int(part.argmax()) for part in np.split(predictions.outputs, predictions.features.units[1:-1])]

    def score(self, predictions: Predictions) -> dict[str, float]:
        return {"accuracy": float(self.records(predictions)[:, 0].mean())}

    def records_of(self, examples: Sequence[Choice], decoded: Sequence[int]) -> np.ndarray:
        """(n, 2): whether the choice is right, and 1."""
        pairs = zip(examples, decoded, strict=True)
        return np.array([[each.label == choice, 1] for each, choice in pairs], np.float64)

    def constant(self, examples: Sequence[Choice]) -> list[int]:
        """The index that is right most often."""
        return [Counter(each.label for each in examples).most_common(1)[0][0]] * len(examples)

    def weighted(self, records: np.ndarray, weights: np.ndarray) -> Mapping[str, np.ndarray]:
        return weighted_means(records, weights, ("accuracy",))

    def columns(self, predictions: Predictions) -> dict[str, list[Any]]:
        decoded = self.decode(predictions)
        texts = [each.choices[i] for each, i in zip(predictions.examples, decoded, strict=True)]
        return {"prediction": decoded, "choice": texts}

    def baselines(self, train: Sequence[Choice], judged: Sequence[Choice]) -> Scores:
        return {"chance": {"accuracy": float(np.mean([1 / len(each.choices) for each in judged]))}}

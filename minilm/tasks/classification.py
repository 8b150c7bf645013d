"""Classification of a text or a pair of texts: one label of several, or any number of labels."""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from minilm.dropin.models import PreTrainedModel
from minilm.dropin.tokenizer import BertTokenizer
from minilm.errors import CheckpointError
from minilm.labelled.examples import Example, in_order
from minilm.metrics.intervals import weighted_label_sets, weighted_labels
from minilm.metrics.scores import (
    classification_scores,
    confusion,
    label_sets,
    multilabel_scores,
    per_label,
    with_others,
)
from minilm.tasks.baselines import Scores, of_label_sets, of_labels
from minilm.tasks.predictions import SHOWN_LABELS
from minilm.tasks.task import Features, Predictions, Task, TaskBatch, tokenized
from minilm.train.losses import widened

UNSEEN = "(unseen)"
POSITIVE = "positive_label"  # in config.json


def of_texts(examples: Sequence[Example], tokenizer: BertTokenizer, length: int) -> Features:
    """A feature for each text or pair, without targets."""
    pairs = None if not examples or examples[0].pair is None else [each.pair for each in examples]
    return tokenized([each.text for each in examples], pairs, tokenizer, length)


def reads_cls(model: PreTrainedModel) -> bool:
    """Whether the model's head reads only the state of a text's first token."""
    how = model.built.pooling
    return how == "pooler" or (how is not None and model.config.meant_by(how) == "cls")


def logits_of(model: PreTrainedModel, batch: TaskBatch, precise: bool = False) -> Tensor:
    """Logits (N, C) of a model with a head for texts. precise: the head computes in its weights' dtype, whatever
    autocast."""
    tokens, encoder = batch.tokens, model.base_model.encoder
    if reads_cls(model):
        read = encoder(tokens, read=tokens.cls)
        states = read.new_zeros(tokens.input_ids.numel(), read.shape[1]).index_copy(0, tokens.cls, read)
        states = states.unflatten(0, tokens.input_ids.shape)
    else:
        states = encoder(tokens)
    with torch.autocast(states.device.type, enabled=False) if precise else nullcontext():
        return model.outputs_of(states.to(model.dtype) if precise else states, tokens)["logits"]


@cache
def _on_device(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """`values` on `device`, always the same tensor: a CUDA graph copies nothing from the host, and reads that tensor in
    every replay. Not by new_tensor, for which the host would wait."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)


@dataclass(frozen=True)
class Classification(Task):
    """One label of several (Devlin et al. 2018, sec. 4.1)."""

    name: ClassVar[str] = "classification"
    kind: ClassVar[str] = "sequence"
    proportions: ClassVar[tuple[str, ...]] = ("accuracy",)
    constant_says: ClassVar[str] = "always the commonest label of these examples"
    labels: tuple[str, ...]  # in the order of the model's outputs
    weights: tuple[float, ...] | None = None  # of each label in the loss; 1 on average over the examples
    smoothing: float = 0.0  # of the target, towards all labels alike (Szegedy et al. 2016, sec. 7)
    positive: str | None = None  # the one of two labels whose f1, precision and recall are scored; None: the second

    @classmethod
    def of(cls, examples: Sequence[Example]) -> Self:
        return cls(in_order(each.label for each in examples))

    def config(self) -> dict[str, Any]:
        names, kind = dict(enumerate(self.labels)), "single_label_classification"
        return {"id2label": names, "problem_type": kind, POSITIVE: self.positive}

    def as_saved(self, model: PreTrainedModel) -> Self:
        positive = getattr(model.config, POSITIVE, None)
        if positive is not None and (len(self.labels) != 2 or positive not in self.labels):
            raise CheckpointError(f"config.json: {POSITIVE} is {positive!r}; give one of two labels, or null")
        return replace(self, positive=positive)

    def features(self, examples: Sequence[Example], tokenizer: BertTokenizer, length: int) -> Features:
        number = {label: i for i, label in enumerate(self.labels)}
        target = np.array([number.get(each.label, -100) for each in examples], np.int64)  # -100: not known
        return replace(of_texts(examples, tokenizer, length), target=target)

    def outputs(self, model: PreTrainedModel, batch: TaskBatch) -> Tensor:
        """Logits (N, C)."""
        return logits_of(model, batch)

    def loss_of(self, outputs: Tensor, batch: TaskBatch) -> tuple[Tensor, Tensor]:
        """Each example has the weight of its label; torch weighs the smoothed part of a target by all others'."""
        logits = widened(outputs)
        nats = F.cross_entropy(logits, batch.target, reduction="none", label_smoothing=self.smoothing)
        if self.weights is not None:
            of = _on_device.__wrapped__ if torch.compiler.is_compiling() else _on_device  # it traces no cache
            nats = nats * of(self.weights, logits.dtype, logits.device)[batch.target.clamp(min=0)]
        return nats.sum(), (batch.target >= 0).sum()

    def probabilities(self, outputs: np.ndarray) -> np.ndarray:
        """(n, C) float64; in fp32 unequal probabilities could become equal."""
        outputs = outputs.astype(np.float64)
        shifted = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        return shifted / shifted.sum(axis=1, keepdims=True)

    def decode(self, predictions: Predictions) -> list[str]:
        return [self.labels[i] for i in predictions.outputs.argmax(axis=1)]

    def score(self, predictions: Predictions) -> dict[str, float]:
        said = predictions.outputs.argmax(axis=1)
        scores = classification_scores(self._gold(predictions), said, len(self.labels), self.positive_number)
        return {"f1": scores["f1"]} | scores if self.positive is not None and "f1" in scores else scores

    def records_of(self, examples: Sequence[Example], decoded: Sequence[str]) -> np.ndarray:
        """(n, 2): indices of the true and the predicted label; C for a label that the model does not have."""
        number = {label: i for i, label in enumerate(self.labels)}
        pairs = zip((each.label for each in examples), decoded, strict=True)
        return np.array([[number.get(label, len(number)) for label in pair] for pair in pairs], np.int64)

    def constant(self, examples: Sequence[Example]) -> list[str]:
        """The commonest label."""
        return [Counter(each.label for each in examples).most_common(1)[0][0]] * len(examples)

    def weighted(self, records: np.ndarray, weights: np.ndarray) -> Mapping[str, np.ndarray]:
        return weighted_labels(records, weights, len(self.labels), self.positive_number)

    @property
    def positive_number(self) -> int:
        """Index of the label whose f1, precision and recall are scored, where there are two."""
        return 1 if self.positive is None else self.labels.index(self.positive)

    def _gold(self, predictions: Predictions) -> np.ndarray:
        """(n,): index of the true label; C for a label that no training example has."""
        target = predictions.features.target
        return np.where(target >= 0, target, len(self.labels))

    def columns(self, predictions: Predictions) -> dict[str, list[Any]]:
        """The likeliest label, and the probability of every label; of more than SHOWN_LABELS only the likeliest's."""
        decoded, chances = self.decode(predictions), self.probabilities(predictions.outputs)
        if len(self.labels) > SHOWN_LABELS:
            return {"prediction": decoded, "p": chances.max(axis=1).tolist()}
        return {"prediction": decoded} | chance_columns(chances, self.labels)

    def details(self, predictions: Predictions) -> dict[str, Any]:
        """Scores of each label, and a confusion matrix unless there are too many labels. Labels that no training
        example has are UNSEEN, and never predicted."""
        gold, predicted = self._gold(predictions), predictions.outputs.argmax(axis=1)
        names = [*self.labels, UNSEEN][: max(len(self.labels), int(gold.max()) + 1)]
        found: dict[str, Any] = {"labels": [row._asdict() for row in per_label(gold, predicted, names)]}
        if len(self.labels) <= SHOWN_LABELS:
            found["confusion"] = confusion(gold, predicted, len(names)).tolist()
        if len(self.labels) == 2:
            found["positive_label"] = self.labels[self.positive_number]
        return found

    def baselines(self, train: Sequence[Example], judged: Sequence[Example]) -> Scores:
        return of_labels(train, judged, self.labels, self.positive_number)


@dataclass(frozen=True)
class MultiLabel(Task):
    """Any number of labels for a text, each predicted by itself."""

    name: ClassVar[str] = "multilabel"
    kind: ClassVar[str] = "sequence"
    proportions: ClassVar[tuple[str, ...]] = ("subset_accuracy",)
    constant_says: ClassVar[str] = "always every label"
    labels: tuple[str, ...]

    @classmethod
    def of(cls, examples: Sequence[Example]) -> Self:
        return cls(in_order(label for each in examples for label in each.label))

    def config(self) -> dict[str, Any]:
        return {"id2label": dict(enumerate(self.labels)), "problem_type": "multi_label_classification"}

    def features(self, examples: Sequence[Example], tokenizer: BertTokenizer, length: int) -> Features:
        target = label_sets([each.label or () for each in examples], self.labels)
        return replace(of_texts(examples, tokenizer, length), target=target.astype(np.float32))

    def outputs(self, model: PreTrainedModel, batch: TaskBatch) -> Tensor:
        """Logits (N, C)."""
        return logits_of(model, batch)

    def loss_of(self, outputs: Tensor, batch: TaskBatch) -> tuple[Tensor, Tensor]:
        """Binary cross-entropy: the mean over labels, summed over texts."""
        logits = widened(outputs)
        nats = F.binary_cross_entropy_with_logits(logits, batch.target.to(logits.dtype), reduction="sum")
        return nats / len(self.labels), torch.tensor(len(batch.target))

    def probabilities(self, outputs: np.ndarray) -> np.ndarray:
        """(n, C), in float64."""
        return 1 / (1 + np.exp(-outputs.astype(np.float64)))

    def decode(self, predictions: Predictions) -> list[tuple[str, ...]]:
        return [tuple(np.array(self.labels)[row > 0].tolist()) for row in predictions.outputs]

    def score(self, predictions: Predictions) -> dict[str, float]:
        return multilabel_scores(*self._held(predictions))

    def records_of(self, examples: Sequence[Example], decoded: Sequence[tuple[str, ...]]) -> np.ndarray:
        """(n, 2 C) bool: which labels are true, and which are predicted; true labels that the model does not have make
        one more label."""
        return np.hstack(with_others([each.label for each in examples], label_sets(decoded, self.labels), self.labels))

    def constant(self, examples: Sequence[Example]) -> list[tuple[str, ...]]:
        """Every label."""
        return [self.labels] * len(examples)

    def weighted(self, records: np.ndarray, weights: np.ndarray) -> Mapping[str, np.ndarray]:
        return weighted_label_sets(records, weights)

    def _held(self, predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
        return with_others([each.label for each in predictions.examples], predictions.outputs > 0, self.labels)

    def details(self, predictions: Predictions) -> dict[str, Any]:
        """Scores of each label. Those that no training example has are UNSEEN, together, and never predicted."""
        gold, predicted = self._held(predictions)
        names = (*self.labels, UNSEEN)[: gold.shape[1]]
        held = zip(names, gold.T.astype(int), predicted.T.astype(int), strict=True)
        rows = [per_label(own, said, ["", label])[1] for label, own, said in held]
        return {"labels": [row._asdict() for row in rows]}

    def columns(self, predictions: Predictions) -> dict[str, list[Any]]:
        """The predicted labels, and the probability of every label."""
        chances = self.probabilities(predictions.outputs)
        return {"prediction": self.decode(predictions)} | chance_columns(chances, self.labels)

    def baselines(self, train: Sequence[Example], judged: Sequence[Example]) -> Scores:
        return of_label_sets(train, judged, self.labels)


def chance_columns(chances: np.ndarray, labels: Sequence[str]) -> dict[str, list[float]]:
    """Probabilities (n, C) as a column for each label."""
    return {f"p({label})": chances[:, i].tolist() for i, label in enumerate(labels)}

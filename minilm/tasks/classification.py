"""One label of several for a text or a pair of texts; and several labels at once."""

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
from minilm.tasks.scores import classification_scores, multilabel_scores
from minilm.tasks.task import Features, Task, TaskBatch, tokenized


def of_texts(examples: Sequence[Example], tokenizer: BertTokenizer, length: int) -> Features:
    """A feature of each text or pair."""
    pairs = None if not examples or examples[0].pair is None else [each.pair for each in examples]
    return tokenized([each.text for each in examples], pairs, tokenizer, length)


def logits_of(model: PreTrainedModel, batch: TaskBatch) -> Tensor:
    """(N, C) of a model that says something of each text."""
    tokens, encoder, how = batch.tokens, model.base_model.encoder, model.built.pooling
    if how == "pooler" or (how is not None and model.config.meant_by(how) == "cls"):  # one state a text is read
        read = encoder(tokens, read=tokens.cls)
        states = read.new_zeros(tokens.input_ids.numel(), read.shape[1]).index_copy(0, tokens.cls, read)
        states = states.unflatten(0, tokens.input_ids.shape)
    else:
        states = encoder(tokens)
    return model.outputs_of(states, tokens)["logits"]


@dataclass(frozen=True)
class Classification(Task):
    """One label. Devlin et al. 2018, sec. 4.1."""

    kind: ClassVar[str] = "sequence"
    labels: tuple[str, ...]  # in the order of the model's outputs
    weights: tuple[float, ...] | None = None  # of a label's examples in the loss; on average 1
    smoothing: float = 0.0  # of the target, towards all labels alike (Szegedy et al. 2016, sec. 7)

    def config(self) -> dict[str, Any]:
        return {"id2label": dict(enumerate(self.labels)), "problem_type": "single_label_classification"}

    def features(self, examples: Sequence[Example], tokenizer: BertTokenizer, length: int) -> Features:
        number = {label: i for i, label in enumerate(self.labels)}
        target = np.array([number.get(each.label, -100) for each in examples], np.int64)  # -100: not known
        return replace(of_texts(examples, tokenizer, length), target=target)

    def loss(self, model: PreTrainedModel, batch: TaskBatch) -> tuple[Tensor, Tensor]:
        logits = logits_of(model, batch)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        weights = None if self.weights is None else logits.new_tensor(self.weights)
        nats = F.cross_entropy(logits, batch.target, weights, reduction="sum", label_smoothing=self.smoothing)
        return nats, (batch.target >= 0).sum()

    def outputs(self, model: PreTrainedModel, batch: TaskBatch) -> Tensor:
        """Logits (N, C)."""
        return logits_of(model, batch)

    def probabilities(self, outputs: np.ndarray) -> np.ndarray:
        """(n, C)."""
        shifted = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        return shifted / shifted.sum(axis=1, keepdims=True)

    def decode(self, outputs: np.ndarray, features: Features, examples: Sequence[Example]) -> list[str]:
        return [self.labels[i] for i in outputs.argmax(axis=1)]

    def score(self, outputs: np.ndarray, features: Features, examples: Sequence[Example]) -> dict[str, float]:
        known = features.target >= 0  # a label that no training example has is always told wrong
        gold = np.where(known, features.target, len(self.labels))
        return classification_scores(gold, outputs.argmax(axis=1), len(self.labels))


@dataclass(frozen=True)
class MultiLabel(Task):
    """Any number of labels, each told by itself."""

    kind: ClassVar[str] = "sequence"
    labels: tuple[str, ...]

    def config(self) -> dict[str, Any]:
        return {"id2label": dict(enumerate(self.labels)), "problem_type": "multi_label_classification"}

    def features(self, examples: Sequence[Example], tokenizer: BertTokenizer, length: int) -> Features:
        number = {label: i for i, label in enumerate(self.labels)}
        target = np.zeros((len(examples), len(self.labels)), np.float32)
        for row, each in enumerate(examples):
            target[row, [number[label] for label in each.label or () if label in number]] = 1
        return replace(of_texts(examples, tokenizer, length), target=target)

    def loss(self, model: PreTrainedModel, batch: TaskBatch) -> tuple[Tensor, Tensor]:
        """The mean over labels, summed over texts."""
        logits = logits_of(model, batch)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        nats = F.binary_cross_entropy_with_logits(logits, batch.target.to(logits.dtype), reduction="sum")
        return nats / len(self.labels), torch.tensor(len(batch.target))

    def outputs(self, model: PreTrainedModel, batch: TaskBatch) -> Tensor:
        """Logits (N, C)."""
        return logits_of(model, batch)

    def probabilities(self, outputs: np.ndarray) -> np.ndarray:
        """(n, C)."""
        return 1 / (1 + np.exp(-outputs))

    def decode(self, outputs: np.ndarray, features: Features, examples: Sequence[Example]) -> list[tuple[str, ...]]:
        return [tuple(np.array(self.labels)[row > 0].tolist()) for row in outputs]

    def score(self, outputs: np.ndarray, features: Features, examples: Sequence[Example]) -> dict[str, float]:
        return multilabel_scores(features.target > 0, outputs > 0)

"""Which of several texts goes with a text: as an ending with its beginning, an answer with its question (Zellers et al.
2018).

Shape letters: N features of a batch, G examples of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from minilm.data.examples import Choice
from minilm.dropin.models import PreTrainedModel
from minilm.dropin.tokenizer import BertTokenizer
from minilm.errors import DataError
from minilm.tasks.classification import logits_of
from minilm.tasks.task import Features, Task, TaskBatch, tokenized


class ChoiceFeatures(Features):
    """A feature of each choice, with the text before it; those of an example are one after the other."""

    @property
    def units(self) -> np.ndarray:
        return np.searchsorted(self.example, np.arange(self.example[-1] + 2))

    def count(self, rows: np.ndarray) -> int:
        return len(np.unique(self.example[rows]))


@dataclass(frozen=True)
class MultipleChoice(Task):
    """A softmax over the choices of an example, of one logit each (Devlin et al. 2018, sec. 4.4)."""

    kind: ClassVar[str] = "choice"

    def features(self, examples: Sequence[Choice], tokenizer: BertTokenizer, length: int) -> Features:
        """target (n, 2): the example, and 1 where the choice is the one that goes with it."""
        of = [(row, i, each) for row, each in enumerate(examples) for i in range(len(each.choices))]
        texts, choices = [each.text for _, _, each in of], [each.choices[i] for _, i, each in of]
        made = tokenized(texts, choices, tokenizer, length)
        values = {field.name: getattr(made, field.name) for field in fields(made)}
        target = np.array([(row, i == each.label) for row, i, each in of], np.int64)
        return ChoiceFeatures(**values | {"target": target, "example": target[:, 0]})

    def loss(self, model: PreTrainedModel, batch: TaskBatch) -> tuple[Tensor, Tensor]:
        logits = self.outputs(model, batch)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        _, example = batch.target[:, 0].unique(return_inverse=True)
        top = logits.detach().new_full((batch.count,), -torch.inf).scatter_reduce(0, example, logits.detach(), "amax")
        sums = torch.zeros_like(top).index_add(0, example, (logits - top[example]).exp())
        nats = (top + sums.log()).sum() - (logits * batch.target[:, 1]).sum()
        return nats, torch.tensor(batch.count)

    def outputs(self, model: PreTrainedModel, batch: TaskBatch) -> Tensor:
        """Logits (N,)."""
        return logits_of(model, batch).squeeze(1)

    def asked(self, texts: Sequence[Any], pairs: Sequence[Sequence[str]] | None = None) -> list[Choice]:
        """Texts, and the choices of each."""
        if pairs is None:
            raise DataError("a text needs its choices: give `pairs`, a list for each")
        return [Choice(text, tuple(choices)) for text, choices in zip(texts, pairs, strict=True)]

    def decode(self, outputs: np.ndarray, features: Features, examples: Sequence[Choice]) -> list[int]:
        """From 0."""
        return [int(part.argmax()) for part in np.split(outputs, features.units[1:-1])]

    def score(self, outputs: np.ndarray, features: Features, examples: Sequence[Choice]) -> dict[str, float]:
        said = self.decode(outputs, features, examples)
        return {"accuracy": float(np.mean([each.label == own for each, own in zip(examples, said, strict=True)]))}

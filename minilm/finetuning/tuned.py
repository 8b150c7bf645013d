"""A tuned model with its task and tokenizer, and its predictions for texts."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minilm.checkpoint.model import weights_fingerprint
from minilm.dropin.models import PreTrainedModel
from minilm.dropin.tokenizer import BertTokenizer
from minilm.errors import ConfigError, DataError
from minilm.labelled.examples import Data
from minilm.machine.ranks import Applied
from minilm.machine.runtime import Runtime
from minilm.partial import Partial
from minilm.tasks.classification import Classification, MultiLabel
from minilm.tasks.task import EVALUATED_AT_ONCE, Features, Predictions, Task, outputs_of
from minilm.train.job import VERSIONS


@dataclass(frozen=True)
class Tuned:
    """A tuned model, and all that is needed to predict with it."""

    model: PreTrainedModel
    tokenizer: BertTokenizer
    task: Task
    runtime: Runtime
    length: int  # tokens read of an example, at most
    result: dict[str, Any]

    def predict(self, texts: Sequence[Any], pairs: Sequence[str] | None = None) -> list[Any]:
        """Predictions for texts or pairs: a label, several labels, or a number; a tag for each word of a list; the
        answer to a question, given its context; the index of a choice, from 0. Labels are strings, "1" where the data
        had the number 1. Raises DataError for a text that is not in a list."""
        predictions = self._of_texts("predict", texts, pairs)
        return self.task.decode(predictions) if predictions else []

    def probabilities(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> np.ndarray:
        """The probability of each label for texts or pairs: (texts, labels) float64, in the order of `task.labels`.
        Raises ConfigError for a task without labels of texts, DataError as `predict`."""
        if not isinstance(self.task, Classification | MultiLabel):
            raise ConfigError(f"probabilities: {self.task.name} has none; use predict")
        predictions = self._of_texts("probabilities", texts, pairs)
        return self.task.probabilities(predictions.outputs) if predictions else np.zeros((0, len(self.task.labels)))

    def _of_texts(self, who: str, texts: Sequence[Any], pairs: Sequence[str] | None) -> Predictions | None:
        """The model's outputs for texts or pairs; None, if there are none."""
        self.check_texts(who, texts, pairs)
        examples = self.task.asked(texts, pairs)
        self.check_pairs(pairs)
        if not examples:
            return None
        predictions = self.predictions(examples)
        predictions.check_finite(who)
        return predictions

    def check_texts(self, who: str, texts: Sequence[Any], pairs: Sequence[Any] | None) -> None:
        """Raises DataError unless `texts` is a list, with as many `pairs`, if any. who: the caller, for the message."""
        if isinstance(texts, str | dict) or hasattr(texts, "columns") or not hasattr(texts, "__len__"):
            raise DataError(f"{who} takes a list of texts; give one, [text], or a column of a frame")
        if pairs is not None and len(pairs) != len(texts):
            raise DataError(f"{len(texts):,} texts and {len(pairs):,} pairs; give each text its own")

    def check_pairs(self, pairs: Sequence[Any] | None) -> None:
        """Raises DataError if training read pairs and none are given, or the other way round."""
        columns = {*self.trained_on.columns}
        if pairs is None and "pair" in columns:
            raise DataError("training used two texts a row: give `pairs`, one for each text")
        if pairs is not None and columns and not columns & {"pair", "choices"}:
            raise DataError("training used one text a row: leave out `pairs`")

    @property
    def trained_on(self) -> Data:
        """How the training data were read (columns, separator of labels, ...), as far as known; without examples."""
        columns, separator, origin = (self.result.get(name) for name in ("columns", "separator", "origin"))
        return Data([], (), (), columns or {}, separator, tuple(self.result.get("flags", ())), origin)

    def features(self, examples: Sequence[Any]) -> Features:
        """Tokenised examples, at most `length` tokens a feature."""
        return self.task.features(examples, self.tokenizer, self.length)

    def predictions(
        self, examples: Sequence[Any], features: Features | None = None, kept: Partial | None = None
    ) -> Predictions:
        """The model's outputs for examples. features: theirs, if made already; kept: as in `outputs_of`."""
        features = features or self.features(examples)
        outputs, _ = outputs_of(self.task, Applied(self.model), features, self.runtime, wants_loss=False, kept=kept)
        return Predictions(outputs, features, examples)

    def decides(self, features: Features) -> dict[str, Any]:
        """All that determines the bits of the model's outputs for `features`: weights, task, device, versions, ..."""
        computed = {"precision": self.runtime.precision, "device": str(self.runtime.device)}
        computed |= {"threads": self.runtime.threads, "at_once": EVALUATED_AT_ONCE, **VERSIONS}
        task = hashlib.sha256(repr(self.task).encode()).hexdigest()[:16]
        computed["config"] = json.dumps(self.model.config.to_dict(), sort_keys=True, default=str)
        of = {"model": weights_fingerprint(self.model), "task": task, "features": fingerprint(((), features))}
        return of | computed


def fingerprint(*splits: tuple[Sequence[Any], Features]) -> str:
    """Checksum of examples and their features: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for examples, features in splits:
        for each in examples:
            digest.update(repr(each._replace(where="")).encode("utf-8", "surrogatepass"))
        for array in (features.ids, features.types, features.offsets, features.target):
            digest.update(f"{array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()[:16]

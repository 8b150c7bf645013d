"""The interface of a labelled task (features, outputs, loss, metrics), and the batches that all tasks share.

Shape letters: N features of a batch, B rows, T tokens per row, C labels.
"""

import io
import itertools
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from minilm.batch import IGNORE, OnDevice, Tokens, filled_up, next_size
from minilm.data.loader import EVALUATED_AT_ONCE
from minilm.data.packing import best_fit
from minilm.dropin.models import PreTrainedModel
from minilm.dropin.tokenizer import BertTokenizer
from minilm.errors import DataError
from minilm.labelled.examples import Example
from minilm.labelled.tables import Table
from minilm.machine.ranks import Applied
from minilm.machine.runtime import Runtime
from minilm.machine.side_by_side import side_by_side
from minilm.partial import Partial
from minilm.tasks.baselines import Scores
from minilm.tasks.predictions import places, table_of_examples, table_text

log = logging.getLogger("minilm")
STEP, LONGER = 8, 72  # tokens: row lengths are multiples of STEP, less than LONGER above the longest feature
DEAR = 600  # tokens of a row whose attention costs as much as everything else
TOKENIZED = 1024  # texts that are tokenised at a time


@dataclass(frozen=True)
class Features:
    """Tokenised examples, concatenated. An example may make several features, as a question with a long context."""

    ids: np.ndarray  # (tokens,) int32
    types: np.ndarray  # (tokens,) int8; which text of a pair
    offsets: np.ndarray  # (n + 1,) int64; boundaries of the features in `ids`
    target: np.ndarray  # (n, ...), or (tokens,) if each token has a target
    example: np.ndarray  # (n,) int64; index of the example that a feature is of
    cut: int = 0  # examples that are truncated, or read in several windows
    word: np.ndarray | None = None  # (tokens,) int32 if each token has a target; the word that begins there, or -1

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each feature, (n,)."""
        return np.diff(self.offsets)

    @property
    def of_tokens(self) -> bool:
        """Whether each token has a target."""
        return self.word is not None

    @property
    def units(self) -> np.ndarray:
        """(u + 1,) boundaries of units, the features that must be in one batch; here each feature is a unit."""
        return np.arange(len(self) + 1)

    def groups(self, rows: np.ndarray) -> np.ndarray:
        """(len(rows),): the unit of each feature in `rows`, counted from 0. `rows` holds whole units; a unit that is
        there twice gets a new number each time."""
        return np.arange(len(rows))

    def of_units(self, units: np.ndarray) -> np.ndarray:
        """Indices of the features of these units."""
        bounds = self.units
        return np.concatenate([np.arange(bounds[unit], bounds[unit + 1]) for unit in units])

    def count(self, rows: np.ndarray) -> int:
        """Number of targets in these features: the denominator of the mean loss."""
        return int((self.target[self.places(rows)] >= 0).sum()) if self.of_tokens else len(rows)

    def places(self, rows: np.ndarray) -> np.ndarray:
        """Indices into `ids` of these features' tokens."""
        lengths = self.lengths[rows]
        ends = lengths.cumsum()
        return np.arange(ends[-1]) + np.repeat(self.offsets[rows] - (ends - lengths), lengths)


class GroupedFeatures(Features):
    """Features of which a unit is all those of an example; they are consecutive."""

    @classmethod
    def of(cls, made: Features, target: np.ndarray) -> Self:
        """The features `made` with these targets, (n,)."""
        return cls(**{field.name: getattr(made, field.name) for field in fields(made)} | {"target": target})

    @property
    def units(self) -> np.ndarray:
        return np.searchsorted(self.example, np.arange(self.example[-1] + 2))

    def groups(self, rows: np.ndarray) -> np.ndarray:
        return np.isin(rows, self.units[:-1]).cumsum() - 1

    def count(self, rows: np.ndarray) -> int:
        return int(np.isin(rows, self.units[:-1]).sum())


@dataclass(frozen=True)
class TaskBatch(OnDevice):
    """Packed features and their targets; M tokens that are not padding."""

    tokens: Tokens
    where: Tensor  # (M,) int64; flat index into (B, T) of the tokens that are not padding; with few sizes (B * T,), the
    # rest of it 0
    target: Tensor  # (N, ...) or (M,)
    group: Tensor  # (N,) int64; the unit of each feature
    units: int  # how many there are; part of the batch's shape, as count is not
    count: int  # targets, the denominator of the mean loss
    size: int  # M


class Predictions(NamedTuple):
    """A model's outputs for examples."""

    outputs: np.ndarray  # (n, ...), a row for each feature, or (tokens, ...), a row for each token
    features: Features
    examples: Sequence[Any]

    def check_finite(self, where: str) -> None:
        """Raises DataError if an output is not finite; `where`, the source of the examples, begins the message."""
        if not np.isfinite(self.outputs).all():
            raise DataError(f"{where}: the model's outputs here are not finite; in half precision, try fp32")


@dataclass(frozen=True)
class TaskScore:
    """How well a model does on examples that it was not trained on."""

    loss: float
    metrics: dict[str, float]  # the first one selects the best model

    @property
    def value(self) -> float:
        return next(iter(self.metrics.values()))

    def says(self) -> str:
        return scores_line(self.metrics)


def scores_line(scores: dict[str, float]) -> str:
    """Scores for the console."""
    return "  ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in scores.items())


class Task(ABC):
    """A labelled task: how examples become features, the model's outputs, the loss, predictions and metrics."""

    name: ClassVar[str]  # as --task gives it
    kind: ClassVar[str]  # of its model class, as in checkpoint.families
    per_token: ClassVar[bool] = False  # whether `outputs` has a row for each token, and not for each feature
    ragged: ClassVar[bool] = False  # whether a batch's `where` must hold its tokens, and no more
    proportions: ClassVar[tuple[str, ...]] = ()  # metrics that are a share of the examples, as accuracy
    constant_says: ClassVar[str]  # what `constant` predicts, in words
    endings: ClassVar[tuple[str, ...]] = (".csv", ".tsv", ".jsonl")  # of prediction files; the first is the default

    @classmethod
    @abstractmethod
    def of(cls, examples: Sequence[Any]) -> Self:
        """The task with the labels found in `examples`."""

    def config(self) -> dict[str, Any]:
        """Entries of the model's config: names of labels, type of problem, and what else the task keeps there."""
        return {}

    def asked(self, texts: Sequence[Any], pairs: Sequence[str] | None = None) -> list[Any]:
        """Examples without labels, to be predicted."""
        check_strings("text", texts)
        check_strings("pair", () if pairs is None else pairs)
        return [Example(*each) for each in zip(texts, [None] * len(texts) if pairs is None else pairs, strict=True)]

    def with_model(self, model: PreTrainedModel) -> Self:
        """The task fitted to a model about to be trained, as to its pooling; may set the bias of a new head."""
        return self

    def as_saved(self, model: PreTrainedModel) -> Self:
        """The task with the settings that a tuned model keeps beside its labels. Raises CheckpointError."""
        return self

    @abstractmethod
    def features(self, examples: Sequence[Any], tokenizer: BertTokenizer, length: int) -> Features:
        """Tokenised `examples`, at most `length` tokens a feature."""

    @abstractmethod
    def outputs(self, model: PreTrainedModel, batch: TaskBatch) -> Tensor:
        """The model's outputs for each feature, (N, ...), or for each token, (M, ...)."""

    @abstractmethod
    def loss_of(self, outputs: Tensor, batch: TaskBatch) -> tuple[Tensor, Tensor]:
        """Loss of these outputs: (sum, count), as in minilm.train.losses. A CUDA graph keeps what it computes with
        numbers of the host, as batch.count."""

    def loss(self, model: PreTrainedModel, batch: TaskBatch) -> tuple[Tensor, Tensor]:
        """`loss_of` the model's `outputs`."""
        return self.loss_of(self.outputs(model, batch), batch)

    def fitted(self, predictions: Predictions) -> Self:
        """The task with what is chosen on held-out examples, as a threshold."""
        return self

    @abstractmethod
    def decode(self, predictions: Predictions) -> list[Any]:
        """A prediction for each example, in the form of its label."""

    @abstractmethod
    def score(self, predictions: Predictions) -> dict[str, float]:
        """The metrics; the first one selects the best model."""

    def records(self, predictions: Predictions) -> np.ndarray:
        """(n, r): what each example adds to the metrics."""
        return self.records_of(predictions.examples, self.decode(predictions))

    @abstractmethod
    def records_of(self, examples: Sequence[Any], decoded: Sequence[Any]) -> np.ndarray:
        """`records` from decoded predictions, of this model or of another system."""

    @abstractmethod
    def constant(self, examples: Sequence[Any]) -> list[Any]:
        """Predictions of a baseline that knows the frequencies of these examples' labels, but reads no text; in the
        form of `decode`."""

    @abstractmethod
    def weighted(self, records: np.ndarray, weights: np.ndarray) -> Mapping[str, np.ndarray]:
        """Metrics as functions of how often each example is taken: weights (B, n) -> (B,) for each metric."""

    def over(self, records: np.ndarray) -> dict[str, int]:
        """How many examples each of those metrics is over that are not over all."""
        return {}

    def scale(self, examples: Sequence[Any]) -> float:
        """A loss that is neither good nor bad: 1 nat, or the variance of numbers."""
        return 1.0

    @abstractmethod
    def baselines(self, train: Sequence[Any], judged: Sequence[Any]) -> Scores:
        """Metrics of baselines on `judged`."""

    def details(self, predictions: Predictions) -> dict[str, Any]:
        """Further entries of a report, beside the metrics."""
        return {}

    def columns(self, predictions: Predictions) -> dict[str, list[Any]]:
        """Columns that a table of predictions gets."""
        return {"prediction": self.decode(predictions)}

    def file_text(
        self, ending: str, source: Table | Path | None, predictions: Predictions
    ) -> tuple[str, dict[str, int]]:
        """The text of a file of predictions, and counts for the report. source: what the examples were read from, whose
        columns are kept; None: the examples themselves are written."""
        table = table_of_examples(predictions.examples) if source is None else source
        place = range(len(predictions.examples)) if source is None else places(source, predictions.examples)
        return table_text(ending, table, place, self.columns(predictions)), {}


def check_strings(what: str, values: Iterable[Any]) -> None:
    """Raises DataError for the first value that is no string."""
    for number, value in enumerate(values):
        if not isinstance(value, str):
            told = f"{value!r}"[:60]
            raise DataError(f"{what} {number} (from 0) is {told}, no string ({type(value).__name__}); give strings")


def tokenized(
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    tokenizer: BertTokenizer,
    length: int,
    example: np.ndarray | None = None,
) -> Features:
    """A feature for each text or pair, without targets. A special token with a role that is written out in a text is
    plain text. example: (n,) index of the example that each is of; None: each is one of its own."""
    ids, types, is_cut = [], [], []
    markers = tokenizer.markers
    written = [token for token in tokenizer.all_special_tokens if token not in markers]
    held = [text for text in itertools.chain(texts, pairs or ()) if any(token in text for token in written)]
    if held:
        token = next(token for token in written if token in held[0])
        log.warning("texts that hold a special token, as %s, which is read as text: %d", token, len(held))
    if example is None:
        example = np.arange(len(texts))
    for at in range(0, len(texts), TOKENIZED):
        encoded = tokenizer(
            list(texts[at : at + TOKENIZED]),
            None if pairs is None else list(pairs[at : at + TOKENIZED]),
            truncation=True,
            max_length=length,
            split_special_tokens="roles",
            return_token_type_ids=True,
        )
        ids += [np.array(each, np.int32) for each in encoded.input_ids]
        types += [np.array(each, np.int8) for each in encoded.token_type_ids]
        is_cut += [bool(each.overflowing) for each in encoded.encodings]
    flat_types = np.concatenate(types)
    if "token_type_ids" not in tokenizer.model_input_names:
        flat_types = np.zeros_like(flat_types)
    offsets, cut = np.cumsum([0, *map(len, ids)]), len(np.unique(example[is_cut]))
    return Features(np.concatenate(ids), flat_types, offsets, np.zeros(len(texts)), example, cut)


def batch_of(
    features: Features, rows: np.ndarray, row_length: int | None = None, few_sizes: bool = False
) -> tuple[TaskBatch, np.ndarray]:
    """Pack the features `rows`, whole units, without padding between them: the batch, and `rows` in its order.

    row_length: T; None: the cheapest. few_sizes: as `Tokens.in_few_sizes`, with rows of padding at the end, and entries
    of `where` without a target.
    """
    lengths = features.lengths[rows]
    T, row_of = _layout(lengths) if row_length is None else (row_length, best_fit(lengths, row_length))
    order = np.argsort(row_of, kind="stable")
    count, group = features.count(rows), features.groups(rows)[order]
    rows, lengths, row_of = rows[order], lengths[order], row_of[order]
    first = np.flatnonzero(np.diff(row_of, prepend=-1))  # first feature of each row
    starts = lengths.cumsum() - lengths
    column = starts - np.repeat(starts[first], np.diff(first, append=len(rows)))
    where = np.repeat(row_of * T + column - starts, lengths) + np.arange(lengths.sum())
    places = features.places(rows)
    B = int(row_of[-1]) + 1
    if few_sizes:
        B = next_size(B, 4)

    def filled(values: np.ndarray, rest: int) -> Tensor:
        flat = np.full(B * T, rest, np.int64)
        flat[where] = values
        return torch.from_numpy(flat.reshape(-1, T))

    doc = filled(np.repeat(np.arange(len(rows)), lengths), -1)
    tokens = Tokens.packed(filled(features.ids[places], 0), doc, token_type_ids=filled(features.types[places], 0))
    target = torch.from_numpy(features.target[places if features.of_tokens else rows])
    made = TaskBatch(
        tokens, torch.from_numpy(where), target, torch.from_numpy(group), int(group.max()) + 1, count, len(where)
    )
    if few_sizes:
        target = filled_up(target, IGNORE, B * T) if features.of_tokens else target
        made = replace(made, tokens=tokens.in_few_sizes(), where=filled_up(made.where, 0, B * T), target=target)
    return made, rows


def _layout(lengths: np.ndarray) -> tuple[int, np.ndarray]:
    """(T, the row of each feature) at the least cost; T is as long as the longest feature or a bit longer. A token
    costs more in a longer row, because of attention."""
    longest = -(-int(lengths.max()) // STEP) * STEP
    tried = [(T, best_fit(lengths, T)) for T in range(longest, longest + LONGER, STEP)]
    return min(tried, key=lambda each: each[0] * (each[1].max() + 1) * (DEAR + each[0]))


def outputs_of(
    task: Task,
    forward: Applied,
    features: Features,
    runtime: Runtime,
    wants_loss: bool = True,
    kept: Partial | None = None,
) -> tuple[np.ndarray, float]:
    """The model's outputs for all features, and its mean loss (NaN, if not wanted). Leaves the model in eval mode.
    kept: outputs of the first batches, from an earlier run; those of later batches are added. Only without the loss."""
    forward.eval()
    found: np.ndarray | None = None
    nats = count = 0.0
    batches = _by_length(features)

    def put(rows: np.ndarray, outputs: np.ndarray) -> None:
        nonlocal found
        if found is None:
            found = np.zeros((len(features.ids) if task.per_token else len(features), *outputs.shape[1:]), np.float32)
        found[features.places(rows) if task.per_token else rows] = outputs

    def of_batch(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, float]:
        batch, rows = batch_of(features, rows)
        moved = batch.to(runtime.device, non_blocking=True)
        with runtime.autocast():
            outputs = forward(task.outputs, moved)
            loss, targets = task.loss_of(outputs, moved) if wants_loss else (0.0, 0.0)
        return rows, outputs.float().cpu().numpy(), float(loss), float(targets)

    done = kept.told.get("batches", 0) if kept else 0
    if kept:
        content = io.BytesIO(kept.content())
        for _ in itertools.islice(batches, done):
            put(np.load(content), np.load(content))
    for rows, outputs, loss, targets in side_by_side(of_batch, batches, runtime.device):
        nats, count, done = nats + loss, count + targets, done + 1
        put(rows, outputs)
        if kept:
            kept.add(_arrays(rows, outputs), batches=done)
    return found, nats / count if wants_loss and count else float("nan")


def _arrays(*arrays: np.ndarray) -> bytes:
    content = io.BytesIO()
    for array in arrays:
        np.save(content, array)
    return content.getvalue()


def _by_length(features: Features) -> Iterator[np.ndarray]:
    """Batches of feature indices: whole units, the longest first."""
    begins = features.units[:-1]
    order = np.argsort(-np.maximum.reduceat(features.lengths, begins), kind="stable")
    ends = np.add.reduceat(features.lengths, begins)[order].cumsum()
    bounds = np.searchsorted(ends, np.arange(EVALUATED_AT_ONCE, ends[-1] + EVALUATED_AT_ONCE, EVALUATED_AT_ONCE))
    parts = np.split(order, np.unique(bounds.clip(1, len(order))))
    yield from (features.of_units(part) for part in parts if len(part))

"""A system's predictions on labelled examples: what scores, comparisons and gaps between groups are computed from."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minilm.errors import ConfigError, DataError, some
from minilm.finetuning.tuned import Tuned
from minilm.labelled.examples import Data, Tagged
from minilm.labelled.tables import Table, shown
from minilm.machine.memory import peak_memory_mb
from minilm.tasks.classification import Classification, MultiLabel, reads_cls
from minilm.tasks.task import Task
from minilm.train.cost import EnergyMeter, matmul_peak, training_flops

AT_ONCE = 4096  # examples that a model predicts at a time
SHOWN = 8  # labels in a message


class Labelled(NamedTuple):
    """Labelled examples, and what they were read from."""

    data: Data
    source: Table | Path

    def cells(self) -> dict[str, list[object]]:
        """Each example's cell of each column that the examples are not made of, by the column's name."""
        if not isinstance(self.source, Table):
            return {}
        row_of = {row.where: row.cells for row in self.source.rows}
        rows = [row_of[each.where] for each in self.data.examples]
        own = (name for name in self.source.columns if name not in self.data.taken)
        return {name: [self.source.named(name, row.get(name)) for row in rows] for name in own}


@dataclass(frozen=True)
class Judged:
    """A system's predictions for examples, and their records."""

    name: str  # of the system: a directory, or a file
    task: Task
    examples: Sequence[Any]
    decoded: Sequence[Any]  # as from `Task.decode`
    records: np.ndarray  # (n, r); as from `Task.records_of`
    probabilities: np.ndarray | None = None  # (n, C) of each label, if the system gives them
    tokens: np.ndarray | None = None  # (n,) tokens of each example, if the system is a model
    unknown: np.ndarray | None = None  # (n,) how many of these are [UNK]
    cut: int = 0  # examples that are truncated, or split into several features
    flops: int = 0  # of the model, without its head and padding
    seconds: float = 0.0  # of tokenising and computing
    joules: float | None = None  # None: not measured

    def __len__(self) -> int:
        return len(self.examples)


def judged_model(
    name: str, tuned: Tuned, examples: Sequence[Any], watched: Callable[[range], Iterable[int]] = iter
) -> Judged:
    """Judge a model on examples, AT_ONCE at a time, whose tokens and outputs are not kept. watched: yields what it is
    given, and may report the progress. Raises DataError for a label that the model does not know, and for outputs that
    are not finite."""
    task, began, meter = tuned.task, time.perf_counter(), EnergyMeter(tuned.runtime.device)
    check_known(task, examples)
    unknown_id = tuned.tokenizer.unk_token_id
    decoded, chances, tokens, unknown, cut, flops = [], [], [], [], 0, 0
    for at in watched(range(0, len(examples), AT_ONCE)):
        part = examples[at : at + AT_ONCE]
        predictions = tuned.predictions(part)
        predictions.check_finite(part[0].where)
        features = predictions.features
        decoded += task.decode(predictions)
        if isinstance(task, Classification | MultiLabel):
            chances.append(task.probabilities(predictions.outputs))
        example = np.repeat(features.example, features.lengths)
        tokens.append(np.bincount(example, minlength=len(part)))
        unknown.append(np.bincount(example[features.ids == unknown_id], minlength=len(part)))
        cut += features.cut
        flops += _flops(tuned, features.lengths)
    return Judged(
        name,
        task,
        examples,
        decoded,
        task.records_of(examples, decoded),
        np.concatenate(chances) if chances else None,
        np.concatenate(tokens),
        np.concatenate(unknown),
        cut,
        flops,
        time.perf_counter() - began,
        meter.spent(),
    )


def with_positive(task: Task, label: str | None) -> Task:
    """The task with the label whose f1 is scored. Raises ConfigError for a label that is none of two."""
    if label is None:
        return task
    labels = task.labels if isinstance(task, Classification) else ()
    if len(labels) != 2 or label not in labels:
        what = f"the labels are {some(sorted(labels), SHOWN)}" if labels else "there are no labels here"
        raise ConfigError(f"--positive-label {label}: give one of two; {what}")
    return replace(task, positive=label)


def cost_of(judged: Judged, tuned: Tuned) -> dict[str, Any]:
    """The cost of tokenising and computing; FLOPs are those of the tokens alone, without padding."""
    runtime = tuned.runtime
    peak_mb = peak_memory_mb(runtime.device)  # before `matmul_peak` takes its own
    peak, tokens = matmul_peak(runtime.device, runtime.dtype), int(judged.tokens.sum())
    return {
        "seconds": judged.seconds,
        "tokens": tokens,
        "tokens_per_s": tokens / judged.seconds,
        "flops": judged.flops,
        "peak_flops": peak,
        "mfu": judged.flops / judged.seconds / peak,
        "peak_mb": peak_mb,
        "joules": judged.joules,
        "machine": runtime.describe(),
    }


def _flops(tuned: Tuned, lengths: np.ndarray) -> int:
    """FLOPs of a forward pass over features of these lengths, (n,), each by itself."""
    cfg = tuned.model.base_model.encoder.cfg
    read = 1 if tuned.task.kind != "model" and reads_cls(tuned.model) else None  # vectors are made of all states
    found = zip(*(each.tolist() for each in np.unique(lengths, return_counts=True)), strict=True)
    return sum(count * training_flops(cfg, length, length, 0, read) // 3 for length, count in found)


def check_known(task: Task, examples: Sequence[Any]) -> None:
    """Raises DataError for a label that the task does not have."""
    labels = {*getattr(task, "labels", ())}
    if not labels:
        return
    for each in examples:
        own = each.tags if isinstance(each, Tagged) else each.label
        for label in (own,) if isinstance(own, str) else own:
            if label not in labels:
                raise DataError(
                    f"{each.where}: the label {shown(label)} is none of the model's, which are "
                    f"{some(sorted(labels), SHOWN)}; rename it, or leave its rows out"
                )

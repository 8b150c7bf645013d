"""What a system is worth on labelled examples, with how sure that is."""

from collections import Counter
from typing import Any

import numpy as np

from minilm.data.examples import Example
from minilm.errors import DataError
from minilm.evaluation.judged import Judged
from minilm.tasks.classification import Classification
from minilm.tasks.intervals import with_intervals
from minilm.tasks.predictions import SHOWN_LABELS
from minilm.tasks.scores import confusion, per_label

MISTAKES = 10  # shown


def scored(judged: Judged) -> dict[str, Any]:
    """metrics, each {value, low, high, n} with its 95 % interval; `constant`, the same metrics of one who has not read
    the examples; of one label of several also labels, confusion, mistakes. Raises DataError where every example has the
    same label."""
    task, n = judged.task, len(judged)
    found: dict[str, Any] = {"task": task.name, "n": n}
    if isinstance(task, Classification):
        check_labels(judged)
    found["metrics"] = with_intervals(judged.records, task.weighted, n, task.proportions)
    constant = task.records_of(judged.examples, task.constant(judged.examples))
    ones = np.ones((1, n))
    found["constant"] = {name: float(value[0]) for name, value in task.weighted(constant, ones).items()}
    if isinstance(task, Classification):
        gold, predicted = judged.records.T
        found["labels"] = [row._asdict() for row in per_label(gold, predicted, task.labels)]
        if len(task.labels) <= SHOWN_LABELS:
            found["confusion"] = confusion(gold, predicted, len(task.labels)).tolist()
        if len(task.labels) == 2:
            found["positive_label"] = task.positive or task.labels[1]
        found["mistakes"] = mistakes(judged)
    return found


def check_labels(judged: Judged) -> None:
    """Raises DataError where every example has the same label: what is told of one label tells nothing."""
    counts = Counter(each.label for each in judged.examples)
    if len(counts) == 1:
        raise DataError(
            f"{judged.examples[0].where}: every example is labelled {next(iter(counts))!r}; give examples of two labels"
        )


def mistakes(judged: Judged) -> list[dict[str, Any]]:
    """The surest ones, the surest first; without probabilities the first ones."""
    gold, predicted = judged.records.T
    wrong = np.flatnonzero(gold != predicted)
    sure = np.zeros(len(judged)) if judged.probabilities is None else judged.probabilities.max(axis=1)
    wrong = wrong[np.argsort(-sure[wrong], kind="stable")][:MISTAKES]
    return [_mistake(judged, at, None if judged.probabilities is None else float(sure[at])) for at in wrong.tolist()]


def _mistake(judged: Judged, at: int, p: float | None) -> dict[str, Any]:
    each: Example = judged.examples[at]
    told = {"where": each.where, "text": each.text} | ({} if each.pair is None else {"pair": each.pair})
    return told | {"label": each.label, "prediction": judged.decoded[at], "p": p}

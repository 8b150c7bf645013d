"""The metrics of a task, for predictions and for probabilities, as functions of how often each example is taken.

`score` (of one system) and `compare` (of the difference of two) compute from the same tables.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from minilm.errors import printable
from minilm.judging.judged import Judged
from minilm.metrics.intervals import Weighted
from minilm.metrics.labels import (
    label_set_records,
    probability_records,
    weighted_label_set_probabilities,
    weighted_label_set_table,
    weighted_label_table,
    weighted_probabilities,
    why_label_sets,
    why_labels,
    why_probabilities,
)
from minilm.tasks.classification import Classification, MultiLabel

RATES = ("precision", "recall", "f1")
ACCURACIES = (*(f"micro_{rate}" for rate in RATES), "weighted_recall")  # for one label an example all are the accuracy


class MetricTable(NamedTuple):
    """Metrics, and the records that they are computed from."""

    records: np.ndarray  # (n, r)
    weighted: Weighted
    proportions: Sequence[str]  # metrics that are a share of the examples
    undefined: dict[str, str]  # metric -> why it is undefined


def metric_tables(judged: Judged) -> list[MetricTable]:
    """The table of the predictions and, if the system gives probabilities, that of these."""
    task, records = judged.task, judged.records
    if isinstance(task, Classification):
        weighted = partial(weighted_label_table, labels=len(task.labels), positive=task.positive_number)
        why = why_labels(records, task.labels)
        if len(task.labels) == 2 and not (records[:, 1] == task.positive_number).any():
            why["precision"] = f"{printable(task.labels[task.positive_number])} is never predicted"
        tables = [MetricTable(records, weighted, (*task.proportions, *ACCURACIES), why)]
    elif isinstance(task, MultiLabel):
        tables = [MetricTable(records, weighted_label_set_table, task.proportions, {})]
    else:
        tables = [MetricTable(records, task.weighted, task.proportions, {})]
    return tables if judged.probabilities is None else [*tables, probability_table(judged, judged.probabilities)]


def probability_table(judged: Judged, chances: np.ndarray) -> MetricTable:
    """The metric table of probabilities (n, C) of the task's labels."""
    task = judged.task
    if isinstance(task, MultiLabel):
        records = label_set_records(held(judged), chances)
        return MetricTable(records, weighted_label_set_probabilities, (), why_label_sets(records, task.labels))
    records = probability_records(judged.records[:, 0], chances)
    why = why_probabilities(records, task.labels, task.positive_number)
    return MetricTable(records, partial(weighted_probabilities, positive=task.positive_number), (), why)


def held(judged: Judged) -> np.ndarray:
    """(n, C) bool: which labels of a multi-label task each example has."""
    return np.split(judged.records > 0, 2, axis=1)[0][:, : len(judged.task.labels)]

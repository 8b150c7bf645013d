"""What a system is worth on labelled examples, with how sure that is: all that `score` and `report` tell of one."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minilm.data.examples import Example
from minilm.data.tables import shown
from minilm.errors import DataError
from minilm.judging.judged import Judged
from minilm.metrics.calibration import (
    best_temperature,
    calibration_scores,
    decision_threshold,
    decision_thresholds,
    ece_if_calibrated,
    equal_width,
    reliability,
    sigmoid,
    softmax,
    top_label,
)
from minilm.metrics.labels import (
    label_set_records,
    probability_records,
    weighted_each_label,
    weighted_each_of_sets,
    weighted_label_set_probabilities,
    weighted_label_set_table,
    weighted_label_table,
    weighted_probabilities,
    why_label_sets,
    why_labels,
    why_probabilities,
)
from minilm.metrics.slices import slices
from minilm.tasks.classification import Classification, MultiLabel
from minilm.tasks.intervals import Weighted, with_intervals
from minilm.tasks.predictions import SHOWN_LABELS
from minilm.tasks.scores import confusion, multilabel_scores
from minilm.tasks.task import Task

MISTAKES = 10  # shown
SMALLEST = 1e-12  # of a probability whose logarithm is taken
RATES = ("precision", "recall", "f1")

Metrics = dict[str, dict[str, Any]]


def scored(
    judged: Judged, dev: Judged | None = None, cells: Mapping[str, Sequence[Any]] | None = None
) -> dict[str, Any]:
    """{task, n, metrics, constant, undefined, labels, confusion, calibration, thresholds, slices, mistakes}, as far as
    the task has them, ready for JSON.

    metrics: {value, low, high, n} of each, with its 95 % interval. constant: the same metrics of one who has not read
    the examples. undefined: why a metric is None. dev: the same system on other examples, which temperature and
    thresholds are chosen by. cells: columns to look for slices in. Raises DataError where every example has the same
    label.
    """
    task = judged.task
    found: dict[str, Any] = {"task": task.name, "n": len(judged), "metrics": {}, "constant": {}, "undefined": {}}
    tables = [(judged.records, task.weighted, task.proportions)]
    if isinstance(task, Classification):
        check_labels(judged)
        tables, found["undefined"] = _of_labels(judged, task)
    elif isinstance(task, MultiLabel):
        tables, found["undefined"] = _of_label_sets(judged, task)
    for records, weighted, proportions in tables:
        found["metrics"] |= with_intervals(records, weighted, len(judged), proportions)
    blind = task.records_of(judged.examples, task.constant(judged.examples))
    values = tables[0][1](blind, np.ones((1, len(judged))))
    found["constant"] = {name: float(value[0]) for name, value in values.items()}
    if isinstance(task, Classification | MultiLabel):
        found |= _each_label(judged)
    if judged.probabilities is not None:
        found["calibration"] = calibration(judged, dev)
        if dev is not None:
            found["thresholds"] = thresholds(judged, dev)
    columns = dict(cells or {}) | token_columns(judged)
    if columns:
        found["slices"] = slices(judged.records, task.weighted, columns, task.proportions, deciding_metric(task))
    if isinstance(task, Classification):
        found["mistakes"] = mistakes(judged)
    return found


def deciding_metric(task: Task) -> str | None:
    """That systems and slices are told apart by; None: the task's first."""
    return "f1" if isinstance(task, Classification) and task.positive is not None else None


def check_labels(judged: Judged) -> None:
    """Raises DataError where every example has the same label: what is told of one label tells nothing."""
    if len({each.label for each in judged.examples}) == 1:
        first = judged.examples[0]
        raise DataError(f"{first.where}: every example is labelled {shown(first.label)}; give examples of two labels")


def token_columns(judged: Judged) -> dict[str, np.ndarray]:
    """How long each example is, and how much of it is unknown, as a model reads it."""
    if judged.tokens is None:
        return {}
    return {"tokens": judged.tokens, "unknown tokens": judged.unknown / judged.tokens}


Tables = list[tuple[np.ndarray, Weighted, Sequence[str]]]


def _of_labels(judged: Judged, task: Classification) -> tuple[Tables, dict[str, str]]:
    """What metrics are computed of, and why some are not defined."""
    labels, positive = len(task.labels), task.positive_number

    def table(records: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
        return weighted_label_table(records, weights, labels, positive)

    tables, why = [(judged.records, table, task.proportions)], why_labels(judged.records, task.labels)
    if judged.probabilities is not None:
        records = probability_records(judged.records[:, 0], judged.probabilities)
        tables.append((records, lambda *each: weighted_probabilities(*each, positive), ()))
        why |= why_probabilities(records, task.labels, positive)
    return tables, why


def _of_label_sets(judged: Judged, task: MultiLabel) -> tuple[Tables, dict[str, str]]:
    tables, why = [(judged.records, weighted_label_set_table, task.proportions)], {}
    if judged.probabilities is not None:
        records = label_set_records(_held(judged), judged.probabilities)
        tables.append((records, weighted_label_set_probabilities, ()))
        why = why_label_sets(records, task.labels)
    return tables, why


def _held(judged: Judged) -> np.ndarray:
    """(n, C) bool: which labels of the task hold."""
    return np.split(judged.records > 0, 2, axis=1)[0][:, : len(judged.task.labels)]


def _each_label(judged: Judged) -> dict[str, Any]:
    """labels: of each its name, support, and precision, recall and f1 with intervals; of one label of several the
    confusion matrix too. Of very many labels nothing."""
    task, records = judged.task, judged.records
    names, n = task.labels, len(judged)
    if len(names) > SHOWN_LABELS:
        return {}
    if isinstance(task, Classification):
        metrics = with_intervals(records, lambda *each: weighted_each_label(*each, len(names)), n)
        support = np.bincount(records[:, 0].astype(np.int64), minlength=len(names))
    else:
        metrics = with_intervals(records, weighted_each_of_sets, n)
        support = _held(judged).sum(axis=0)
    rows = [
        {"name": name, "support": int(support[i])} | {rate: metrics[f"{rate} {i}"] for rate in RATES}
        for i, name in enumerate(names)
    ]
    if not isinstance(task, Classification):
        return {"labels": rows}
    found = {"labels": rows, "confusion": confusion(*records.T, len(names)).tolist()}
    return found | ({"positive_label": names[task.positive_number]} if len(names) == 2 else {})


# -- probabilities --------------------------------------------------------------------------------------


def _confidence(judged: Judged, chances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(probabilities, whether what they are of holds): of the label predicted, or of each label by itself."""
    if isinstance(judged.task, Classification):
        return top_label(chances, judged.records[:, 0])
    return chances.ravel(), _held(judged).ravel()


def calibration(judged: Judged, dev: Judged | None) -> dict[str, Any]:
    """Whether probabilities mean what they say: ece and mce, the ece that as many true ones would have (mean, and 95 %
    quantile), the reliability curve; and with dev the temperature that is best there, and ece and log loss with it."""
    confidence, holds = _confidence(judged, judged.probabilities)
    mean, high = ece_if_calibrated(confidence, equal_width())
    found: dict[str, Any] = calibration_scores(confidence, holds) | {"ece_of_true": mean, "ece_of_true_high": high}
    found["bins"] = [each._asdict() for each in reliability(confidence, holds, equal_width())]
    if dev is None:
        return found
    try:
        temperature = best_temperature(_logits(dev), _gold(dev))
    except DataError as error:
        return found | {"temperature": None, "reason": str(error)}
    apply = softmax if isinstance(judged.task, Classification) else sigmoid
    after = apply(_logits(judged), temperature)
    return found | {"temperature": temperature, "with_temperature": calibration_scores(*_confidence(judged, after))}


def _logits(judged: Judged) -> np.ndarray:
    """As far as probabilities tell them."""
    chances = judged.probabilities.clip(SMALLEST, 1 - SMALLEST)
    return np.log(chances) - (np.log1p(-chances) if isinstance(judged.task, MultiLabel) else 0)


def _gold(judged: Judged) -> np.ndarray:
    return judged.records[:, 0].astype(np.int64) if isinstance(judged.task, Classification) else _held(judged)


def thresholds(judged: Judged, dev: Judged) -> dict[str, Any]:
    """The probability above which a label is predicted, chosen for its f1 on dev, and what that is worth here, beside
    0.5: of the positive one of two labels, or of each of several that may hold together. {} of others."""
    task = judged.task
    if isinstance(task, MultiLabel):
        best, _ = decision_thresholds(dev.probabilities, _held(dev))
        scores = [multilabel_scores(_held(judged), judged.probabilities > each) for each in (0.5, best)]
        chosen = dict(zip(task.labels, best.tolist(), strict=True))
        return {"of": chosen, "at_half": scores[0], "chosen": scores[1]}
    if len(task.labels) != 2:
        return {}
    positive = task.positive_number
    best, _ = decision_threshold(dev.probabilities[:, positive], dev.records[:, 0] == positive)
    at_half, chosen = (_predicting(judged, task, threshold) for threshold in (0.5, best))
    return {"of": {task.labels[positive]: best}, "at_half": at_half, "chosen": chosen}


def _predicting(judged: Judged, task: Classification, threshold: float) -> dict[str, float]:
    """The task's metrics, where the positive label is predicted above a probability."""
    positive = task.positive_number
    said = np.where(judged.probabilities[:, positive] > threshold, positive, 1 - positive)
    scores = task.weighted(np.stack([judged.records[:, 0], said], axis=1), np.ones((1, len(judged))))
    return {name: float(value[0]) for name, value in scores.items()}


# -- mistakes -------------------------------------------------------------------------------------------


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

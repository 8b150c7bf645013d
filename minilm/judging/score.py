"""Scores of a system on labelled examples, with intervals: all that `score` and `report` say of one."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from minilm.errors import ConfigError, DataError
from minilm.files import finite
from minilm.finetuning.api import open_tuned
from minilm.finetuning.examples import say_notes
from minilm.finetuning.tuned import Tuned
from minilm.judging.judged import Judged, Labelled, cost_of, judged_model, with_positive
from minilm.judging.metric_tables import RATES, held, metric_tables, probability_table
from minilm.labelled.examples import Example
from minilm.labelled.tables import shown
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
)
from minilm.metrics.groups import group_scores
from minilm.metrics.intervals import FEWEST, share, with_intervals
from minilm.metrics.labels import WHY_EACH, weighted_each_label, weighted_each_of_sets
from minilm.metrics.scores import confusion, multilabel_scores
from minilm.metrics.slices import slices
from minilm.tasks.classification import Classification, MultiLabel
from minilm.tasks.named import read_examples, source_of
from minilm.tasks.predictions import SHOWN_LABELS
from minilm.tasks.task import Task

MISTAKES = 10  # shown
NOT_DEFINED = "not defined: no examples, or a constant"
SMALLEST = float(np.finfo(np.float64).eps)  # probability whose logarithm is taken, as in scikit-learn

Metrics = dict[str, dict[str, Any]]


def score(
    model: Tuned | Path | str,
    rows: Any,
    dev: Any = None,
    *,
    text: str | int | None = None,
    pair: str | int | None = None,
    label: str | int | None = None,
    positive_label: str | None = None,
    group: str | None = None,
) -> dict[str, Any]:
    """Score a tuned model on labelled rows: the result of `scored`, and the cost. Undefined values are None.

    model: of `finetune` or `open_tuned`, or where it is saved. rows, dev: as in `finetune`, but dev is used as in
    `scored`. text, pair, label: columns, as in training if not given. group: a column of groups that a classifier may
    treat differently. Raises UserError.
    """
    tuned = model if isinstance(model, Tuned) else open_tuned(model)
    tuned = replace(tuned, task=with_positive(tuned.task, positive_label))
    labelled = {}
    for name, each in [("rows", rows)] + ([] if dev is None else [("dev", dev)]):
        source = source_of(each, name, tuned.task.name, tuned.trained_on, (text, pair, label))
        data = read_examples(source, tuned.task.name, text, pair, label, like=tuned.trained_on)
        say_notes(name, data)
        labelled[name] = Labelled(data, source)
    cells = labelled["rows"].cells()
    check_choices(tuned.task, None if dev is None else "dev", group, cells)
    judged, *other = (judged_model(name, tuned, each.data.examples) for name, each in labelled.items())
    told = scored(judged, other[0] if other else None, cells, group)
    return finite(told | {"cut": judged.cut, "cost": cost_of(judged, tuned)})


def scored(
    judged: Judged,
    dev: Judged | None = None,
    cells: Mapping[str, Sequence[Any]] | None = None,
    group: str | None = None,
) -> dict[str, Any]:
    """{task, n, metrics, baseline, undefined, labels, confusion, calibration, thresholds, slices, mistakes, groups}, as
    far as the task has them, ready for JSON.

    metrics: {value, low, high, n} of each, with its 95 % interval. baseline: the same metrics for the constant
    predictions of `Task.constant`. undefined: why a metric is None. dev: the same system on other examples, to choose
    temperature and thresholds on. cells: columns to make slices from; group: one of them, to compute gaps between its
    groups. Raises UserError, also if every example has the same label.
    """
    task = judged.task
    found: dict[str, Any] = {"task": task.name, "n": len(judged), "metrics": {}, "baseline": {}, "undefined": {}}
    if isinstance(task, Classification):
        check_labels(judged)
    check_choices(task, None, group, cells or {})
    tables = metric_tables(judged)
    over = task.over(judged.records)
    for table in tables:
        found["metrics"] |= with_intervals(table.records, table.weighted, len(judged), table.proportions, over)
        found["undefined"] |= table.undefined
    if isinstance(task, Classification):
        found["metrics"] |= _conditional(judged, task)
    for name, own in found["metrics"].items():
        if not np.isfinite(own["value"]):
            found["undefined"].setdefault(name, NOT_DEFINED)
    blind = task.records_of(judged.examples, task.constant(judged.examples))
    values = tables[0].weighted(blind, np.ones((1, len(judged))))
    found["baseline"] = {name: float(value[0]) for name, value in values.items()}
    found["baseline_says"] = task.constant_says
    if isinstance(task, Classification | MultiLabel):
        found |= _each_label(judged)
    if judged.probabilities is not None:
        found["calibration"] = calibration(judged, dev)
        if dev is not None:
            found["thresholds"] = thresholds(judged, dev)
    columns = token_columns(judged) | dict(cells or {})
    if columns:
        found["slices"] = slices(judged.records, task.weighted, columns, task.proportions, deciding_metric(task))
    if isinstance(task, Classification):
        found["mistakes"] = mistakes(judged)
    if group is not None:
        found["groups"] = gaps(judged, group, cells or {})
    return found


def deciding_metric(task: Task) -> str | None:
    """The metric that systems and slices are compared by; None: the task's first."""
    return "f1" if isinstance(task, Classification) and task.positive is not None else None


def check_labels(judged: Judged) -> None:
    """Raises DataError if every example has the same label: then scores tell nothing."""
    if len({each.label for each in judged.examples}) == 1:
        first = judged.examples[0]
        raise DataError(f"{first.where}: every example is labelled {shown(first.label)}; give examples of two labels")


def token_columns(judged: Judged) -> dict[str, np.ndarray]:
    """Columns to make slices from: tokens and share of unknown tokens of each example, if the system is a model; for a
    file of predictions the words of each text."""
    if judged.tokens is None:
        is_text = judged.examples and isinstance(judged.examples[0], Example)
        return {"words": np.array([len(each.text.split()) for each in judged.examples])} if is_text else {}
    return {"tokens": judged.tokens, "unknown tokens": judged.unknown / judged.tokens}


def _conditional(judged: Judged, task: Classification) -> Metrics:
    """precision and recall of the positive one of two labels: each a share of some examples only, which n counts."""
    if len(task.labels) != 2:
        return {}
    return dict(zip(RATES, _rates_of(judged.records, task.positive_number), strict=False))


def _rates_of(records: np.ndarray, label: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """(precision, recall) of a label, with Wilson's intervals."""
    gold, predicted = (side == label for side in records.T)
    return share(gold[predicted]), share(predicted[gold])


def _each_label(judged: Judged) -> dict[str, Any]:
    """`labels`: name, support, and precision, recall and f1 of each, with intervals, or a reason why a value is
    undefined; for classification also `confusion`. Nothing if there are very many labels."""
    task, records = judged.task, judged.records
    names, n = task.labels, len(judged)
    if len(names) > SHOWN_LABELS:
        return {}
    if isinstance(task, Classification):
        metrics = with_intervals(records, lambda *each: weighted_each_label(*each, len(names)), n)
        sides = [records == i for i in range(len(names))]
    else:
        metrics = with_intervals(records, weighted_each_of_sets, n)
        gold, predicted = np.split(records > 0, 2, axis=1)
        sides = [np.stack([gold[:, i], predicted[:, i]], axis=1) for i in range(len(names))]
    rows = []
    for i, (name, side) in enumerate(zip(names, sides, strict=True)):
        f1, support = metrics[f"f1 {i}"] | {"n": int(side.any(axis=1).sum())}, int(side[:, 0].sum())
        if f1["n"] < FEWEST:
            f1 |= {"low": None, "high": None}
        rates = dict(zip(RATES, (*_rates_of(side, 1), f1), strict=True))
        for rate, own in rates.items():
            if not np.isfinite(own["value"]):
                own["reason"] = WHY_EACH[rate]
        rows.append({"name": name, "support": support} | rates)
    if not isinstance(task, Classification):
        return {"labels": rows}
    found = {"labels": rows, "confusion": confusion(*records.T, len(names)).tolist()}
    return found | ({"positive_label": names[task.positive_number]} if len(names) == 2 else {})


def check_choices(task: Task, dev: str | None, group: str | None, cells: Mapping[str, Sequence[Any]]) -> None:
    """Raises ConfigError for a dev set, or a column of groups, that the task has no use for. dev: its name."""
    if dev is not None and not isinstance(task, Classification | MultiLabel):
        raise ConfigError(f"--dev {dev}: chooses temperature and thresholds of probabilities, and {task.name} has none")
    if group is None:
        return
    if not isinstance(task, Classification):
        raise ConfigError(f"--group-column {group}: is for classification, not {task.name}")
    if group not in cells:
        raise ConfigError(f"--group-column {group}: give one of {', '.join(cells) or 'a table with more columns'}")


def gaps(judged: Judged, column: str, cells: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Gaps between the groups of a column: for two labels in the positive one's rates, for more in accuracy alone."""
    task = judged.task
    two, number = len(task.labels) == 2, task.positive_number
    chances = judged.probabilities[:, number] if two and judged.probabilities is not None else None
    positive = task.labels[number] if two else None
    try:
        found = group_scores([each.label for each in judged.examples], judged.decoded, chances, cells[column], positive)
    except DataError as error:
        raise DataError(f"--group-column {column}: {error}") from error
    return {"column": column, "positive": positive} | found


# -- probabilities --------------------------------------------------------------------------------------


def _confidence(judged: Judged, chances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(probabilities, whether their labels hold): of the predicted label, or of each label by itself."""
    if isinstance(judged.task, Classification):
        gold, predicted = judged.records.T
        return chances[np.arange(len(judged)), predicted], gold == predicted
    return chances.ravel(), held(judged).ravel()


def calibration(judged: Judged, dev: Judged | None) -> dict[str, Any]:
    """Calibration of probabilities: ece and mce, the ece of as many calibrated ones (mean, and 95 % quantile), the
    reliability curve; and with dev the temperature that is best there, and ece and log loss with it."""
    confidence, holds = _confidence(judged, judged.probabilities)
    found: dict[str, Any] = calibration_scores(confidence, holds)
    found["bins"] = [each._asdict() for each in reliability(confidence, holds, equal_width())]
    if isinstance(judged.task, Classification):
        found["ece_of_true"], found["ece_of_true_high"] = ece_if_calibrated(confidence, equal_width())
    else:  # labels of one text depend on each other: how far chance alone goes is not known
        found["bins"] = [each | {"low": None, "high": None} for each in found["bins"]]
    if dev is None:
        return found
    try:
        temperature = best_temperature(_logits(dev), _gold(dev))
    except DataError as error:
        return found | {"temperature": None, "reason": str(error)}
    apply = softmax if isinstance(judged.task, Classification) else sigmoid
    after = apply(_logits(judged), temperature)
    scores = calibration_scores(*_confidence(judged, after)) | {"log_loss": _log_loss(judged, after)}
    return found | {"temperature": temperature, "with_temperature": scores}


def _log_loss(judged: Judged, chances: np.ndarray) -> float:
    table = probability_table(judged, chances)
    return float(table.weighted(table.records, np.ones((1, len(judged))))["log_loss"][0])


def _logits(judged: Judged) -> np.ndarray:
    """Logits (n, C) computed from probabilities; for classification up to a constant for each example."""
    chances = judged.probabilities.clip(SMALLEST, 1 - SMALLEST)
    return np.log(chances) - (np.log1p(-chances) if isinstance(judged.task, MultiLabel) else 0)


def _gold(judged: Judged) -> np.ndarray:
    return judged.records[:, 0].astype(np.int64) if isinstance(judged.task, Classification) else held(judged)


def thresholds(judged: Judged, dev: Judged) -> dict[str, Any]:
    """Thresholds of probability above which a label is predicted, chosen for f1 on dev, and the scores with them here,
    beside those with 0.5: for the positive one of two labels, or for each label of a multi-label task. None (0.5 is
    kept) if all examples of dev have the label, or none. {} for classification with more than two labels."""
    task = judged.task
    if isinstance(task, MultiLabel):
        best, worth = decision_thresholds(dev.probabilities, held(dev))
        scores = [multilabel_scores(held(judged), judged.probabilities > each) for each in (0.5, best)]
        there = zip(task.labels, best.tolist(), np.isfinite(worth), strict=True)
        chosen = {label: own if is_chosen else None for label, own, is_chosen in there}
        return {"of": chosen, "at_half": scores[0], "chosen": scores[1]}
    if len(task.labels) != 2:
        return {}
    positive = task.positive_number
    best, worth = decision_threshold(dev.probabilities[:, positive], dev.records[:, 0] == positive)
    at_half, chosen = (_predicting(judged, task, threshold) for threshold in (0.5, best))
    of = {task.labels[positive]: best if np.isfinite(worth) else None}
    return {"of": of, "at_half": at_half, "chosen": chosen}


def _predicting(judged: Judged, task: Classification, threshold: float) -> dict[str, float]:
    """The task's metrics if the positive label is predicted above a threshold of its probability."""
    positive = task.positive_number
    said = np.where(judged.probabilities[:, positive] > threshold, positive, 1 - positive)
    scores = task.weighted(np.stack([judged.records[:, 0], said], axis=1), np.ones((1, len(judged))))
    return {name: float(value[0]) for name, value in scores.items()}


# -- mistakes -------------------------------------------------------------------------------------------


def mistakes(judged: Judged) -> list[dict[str, Any]]:
    """The MISTAKES wrong predictions of highest probability, highest first; without probabilities the first ones."""
    gold, predicted = judged.records.T
    wrong = np.flatnonzero(gold != predicted)
    sure = np.zeros(len(judged)) if judged.probabilities is None else _confidence(judged, judged.probabilities)[0]
    wrong = wrong[np.argsort(-sure[wrong], kind="stable")][:MISTAKES]
    return [_mistake(judged, at, None if judged.probabilities is None else float(sure[at])) for at in wrong.tolist()]


def _mistake(judged: Judged, at: int, p: float | None) -> dict[str, Any]:
    each: Example = judged.examples[at]
    told = {"where": each.where, "text": each.text} | ({} if each.pair is None else {"pair": each.pair})
    return told | {"label": each.label, "prediction": judged.decoded[at], "p": p}

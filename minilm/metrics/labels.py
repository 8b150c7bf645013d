"""scikit-learn's metrics of labels and of their probabilities, as functions of how often each example is taken.

So `intervals` can score them on many draws at once: records (n, r), weights (B, n) -> (B,) for each metric. Labels are
indices in [0, labels). In gold, `labels` itself stands for any label that the model does not know: it is never
predicted, and its probability is 0. So its examples are wrong, negatives of every label, and leave the log loss
undefined.

An undefined metric is NaN, and `why_labels`, `why_probabilities` and `why_label_sets` say why. In an average a
rate over nothing counts as 0, as in scikit-learn.
"""

from collections.abc import Sequence

import numpy as np

from minilm.errors import DataError, printable, some
from minilm.metrics.intervals import (
    defined_ratio,
    label_counts,
    label_set_counts,
    of_label_counts,
    ratio,
    weighted_label_sets,
)

Scores = dict[str, np.ndarray]
SUM = 1e-3  # by which the sum of an example's probabilities may differ from 1, as files hold rounded ones
SHOWN = 5  # labels that a reason names
WHY_EACH = {  # a metric of one label is undefined
    "precision": "it is never predicted",
    "recall": "no example has it",
    "f1": "no example has it, and it is never predicted",
}


# -- labels ---------------------------------------------------------------------------------------------


def weighted_label_table(records: np.ndarray, weights: np.ndarray, labels: int, positive: int = 1) -> Scores:
    """`weighted_labels`, and balanced_accuracy, kappa (Cohen 1960), and precision, recall and f1 as micro_, macro_
    (over labels that occur in gold or predicted) and weighted_ (by how many are in gold) averages. records (n, 2): gold
    and predicted label. The micro_ averages all equal the accuracy."""
    true, said, right = label_counts(records, weights, labels)
    n, hits, chance = weights.sum(axis=1), right.sum(axis=1), (true * said).sum(axis=1)
    scores = dict(of_label_counts(true, said, right, positive))
    scores["balanced_accuracy"] = ratio(right, true).sum(axis=1) / (true > 0).sum(axis=1)
    scores["kappa"] = defined_ratio(hits * n - chance, n**2 - chance)
    return scores | _averages(true, said, right, true + said > 0)


def weighted_label_set_table(records: np.ndarray, weights: np.ndarray) -> Scores:
    """`weighted_label_sets`, and all averages of `weighted_label_table`, over all C labels. records (n, 2 C): which
    labels hold, and which are predicted."""
    true, said, right = label_set_counts(records, weights)
    return dict(weighted_label_sets(records, weights)) | _averages(true, said, right, np.ones_like(true))


def weighted_each_label(records: np.ndarray, weights: np.ndarray, labels: int) -> Scores:
    """precision, recall and f1 of each label, as "f1 0" for label 0; records as in `weighted_label_table`."""
    return _of_each(*(counts[:, :labels] for counts in label_counts(records, weights, labels)))


def weighted_each_of_sets(records: np.ndarray, weights: np.ndarray) -> Scores:
    """precision, recall and f1 of each label, as "f1 0" for label 0; records as in `weighted_label_set_table`."""
    return _of_each(*label_set_counts(records, weights))


def why_labels(records: np.ndarray, names: Sequence[str]) -> dict[str, str]:
    """Why a metric of `weighted_label_table` is undefined, by its name."""
    sides = [np.unique(side.astype(np.int64)).tolist() for side in records.T]
    if min(map(len, sides)) > 1:
        return {}
    where, [only, *_] = ("in gold", sides[0]) if len(sides[0]) == 1 else ("predicted", sides[1])
    label = f"only {printable(names[only])} is" if only < len(names) else "no label that the model knows is"
    found = {"mcc": f"{label} {where}"}
    return found | {"kappa": f"{label} in gold, and predicted"} if sides[0] == sides[1] else found


def _of_each(true: np.ndarray, said: np.ndarray, right: np.ndarray) -> Scores:
    found = {}
    for name, part, whole in (("precision", right, said), ("recall", right, true), ("f1", 2 * right, true + said)):
        found |= {f"{name} {label}": each for label, each in enumerate(defined_ratio(part, whole).T)}
    return found


def _averages(true: np.ndarray, said: np.ndarray, right: np.ndarray, met: np.ndarray) -> Scores:
    """micro_, macro_ and weighted_ averages, (B,) each. true, said, right: counts (B, C); met (B, C): whether a label
    counts in the macro average."""
    found = {}
    for name, part, whole in (("precision", right, said), ("recall", right, true), ("f1", 2 * right, true + said)):
        each = ratio(part, whole)
        found[f"micro_{name}"] = ratio(part.sum(axis=1), whole.sum(axis=1))
        found[f"macro_{name}"] = (each * met).sum(axis=1) / met.sum(axis=1)
        found[f"weighted_{name}"] = ratio((each * true).sum(axis=1), true.sum(axis=1))
    return found


# -- probabilities --------------------------------------------------------------------------------------


def probability_records(gold: np.ndarray, chances: np.ndarray) -> np.ndarray:
    """Records (n, 1 + C) of gold labels (n,) and probabilities (n, C). Raises DataError if the latter are none."""
    gold, chances = np.asarray(gold), _checked(chances)
    if (off := np.abs(chances.sum(axis=1) - 1) > SUM).any():
        raise DataError(f"the probabilities of example {int(np.argmax(off))} (from 0) do not add up to 1")
    assert gold.shape == chances.shape[:1], gold.shape
    assert ((gold >= 0) & (gold <= chances.shape[1])).all()
    return np.column_stack([gold, chances])


def label_set_records(held: np.ndarray, chances: np.ndarray) -> np.ndarray:
    """Records (n, 2 C) of which labels hold and their probabilities, (n, C) each. Raises DataError if one is none."""
    assert held.shape == chances.shape, (held.shape, chances.shape)
    return np.hstack([held, _checked(chances)])


def weighted_probabilities(records: np.ndarray, weights: np.ndarray, positive: int = 1) -> Scores:
    """roc_auc, pr_auc (average precision), log_loss in nats, brier. records (n, 1 + C) of `probability_records`.

    For two labels the areas are those of the `positive` one, for more the means over labels, each against the rest.
    brier (Brier 1950) is the squared error summed over labels; for two labels half of that, the positive label's error.
    """
    gold, chances = records[:, 0].astype(np.int64), records[:, 1:]
    weights, labels = weights.astype(np.float64), chances.shape[1]
    columns = [positive] if labels == 2 else range(labels)
    of_gold = np.column_stack([chances, np.zeros(len(gold))])[np.arange(len(gold)), gold]
    nats = np.where(gold < labels, -np.log(_clipped(of_gold)), 0.0)
    squares = ((chances**2).sum(axis=1) - 2 * of_gold + 1) / (2 if labels == 2 else 1)
    n = weights.sum(axis=1)
    return _areas(chances[:, columns], gold[:, None] == columns, weights) | {
        "log_loss": np.where(weights @ (gold == labels) > 0, np.nan, weights @ nats / n),
        "brier": weights @ squares / n,
    }


def weighted_label_set_probabilities(records: np.ndarray, weights: np.ndarray) -> Scores:
    """roc_auc, pr_auc (average precision), log_loss in nats, brier: means over labels, each judged as one of two.
    records (n, 2 C) of `label_set_records`; labels that the model does not know are left out."""
    held, chances = np.split(records, 2, axis=1)
    weights, n = weights.astype(np.float64), weights.sum(axis=1)
    nats = -np.log(_clipped(np.where(held > 0, chances, 1 - chances)))
    return _areas(chances, held > 0, weights) | {
        "log_loss": weights @ nats.mean(axis=1) / n,
        "brier": weights @ ((chances - held) ** 2).mean(axis=1) / n,
    }


def why_probabilities(records: np.ndarray, names: Sequence[str], positive: int = 1) -> dict[str, str]:
    """Why a metric of `weighted_probabilities` is undefined, by its name."""
    gold, labels = records[:, 0], len(names)
    columns = [positive] if labels == 2 else range(labels)
    found = _why_no_areas(gold[:, None] == columns, [names[label] for label in columns])
    if others := int((gold == labels).sum()):
        found["log_loss"] = f"infinite: {others:,} examples have a label that the model does not know"
    return found


def why_label_sets(records: np.ndarray, names: Sequence[str]) -> dict[str, str]:
    """Why a metric of `weighted_label_set_probabilities` is undefined, by its name."""
    return _why_no_areas(np.split(records > 0, 2, axis=1)[0], names)


def _why_no_areas(held: np.ndarray, names: Sequence[str]) -> dict[str, str]:
    none, every = ([printable(names[i]) for i in np.flatnonzero(of)] for of in (~held.any(axis=0), held.all(axis=0)))
    if none:
        return dict.fromkeys(("roc_auc", "pr_auc"), f"no example has the label {some(none, SHOWN)}")
    return {"roc_auc": f"every example has the label {some(every, SHOWN)}"} if every else {}


def _areas(chances: np.ndarray, held: np.ndarray, weights: np.ndarray) -> Scores:
    """roc_auc and pr_auc: means over columns, (B,) each."""
    areas = [ranking(own, has, weights) for own, has in zip(chances.T, held.T, strict=True)]
    roc, precision = np.mean(areas, axis=0)
    return {"roc_auc": roc, "pr_auc": precision}


def ranking(chance: np.ndarray, held: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(area under the ROC curve, average precision) of one label, (B,) each; ties share a rank, and are predicted
    together. chance, held (n,): its probability, and whether it holds; weights (B, n) float. The area is the statistic
    of Mann and Whitney (1947), from the ranks of the examples that have the label."""
    order = np.argsort(-chance, kind="stable")
    behind, at = -chance[order], np.flatnonzero(held[order])
    own, level = np.take(weights, order[at], axis=1), behind[at]
    taken, hits = _sums(np.take(weights, order, axis=1)), _sums(own)  # weight before each place, and before the end
    before, up_to = (np.take(taken, np.searchsorted(behind, level, side), axis=1) for side in ("left", "right"))
    found = np.take(hits, np.searchsorted(level, level, "right"), axis=1)
    positives, n = hits[:, -1], taken[:, -1]
    ahead = (own * (before + up_to)).sum(axis=1) / 2 - positives**2 / 2  # pairs in which one that does not hold leads
    area = 1 - defined_ratio(ahead, positives * (n - positives))
    return area, defined_ratio((own * ratio(found, up_to)).sum(axis=1), positives)


def _sums(values: np.ndarray) -> np.ndarray:
    """Cumulative sums (B, m) -> (B, m + 1): of the first 0, 1, ... m values."""
    sums = np.zeros((len(values), values.shape[1] + 1))
    np.cumsum(values, axis=1, out=sums[:, 1:])
    return sums


def _clipped(chances: np.ndarray) -> np.ndarray:
    """Probabilities, clipped as in scikit-learn's log loss, so that this is finite."""
    eps = np.finfo(np.float64).eps
    return np.clip(chances, eps, 1 - eps)


def _checked(chances: np.ndarray) -> np.ndarray:
    chances = np.asarray(chances, np.float64)
    if not (good := ((chances >= 0) & (chances <= 1)).all(axis=1)).all():  # NaN is not, either
        raise DataError(f"example {int(np.argmin(good))} (from 0) has a probability that is no number from 0 to 1")
    return chances

"""95 % confidence intervals of scores: over the examples of one model, and over runs.

Over examples a score is computed again on examples drawn with replacement. A score here is a function of how often each
example is taken, weights (B, n), for B draws at once; examples with equal records are merged, and taken more often.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from minilm.errors import library
from minilm.metrics.scores import not_empty

FEWEST = 20  # examples; of fewer no interval is worth printing
DRAWS = 2000  # of the bootstrap (Efron and Tibshirani 1993, sec. 14.3)
LEFT_OUT = 2000  # examples of the jackknife at most, chosen at random
AT_ONCE = 1 << 22  # weights in memory
ROUNDED = 16 * np.finfo(np.float64).eps  # of numbers: a spread so small next to them is rounding
DEFINED = 0.95  # of the draws, in which a score must be defined
NO_PARTS: Mapping[str, int] = MappingProxyType({})  # every score is over all examples
NORMAL = 1.959963984540054  # 97.5 % quantile of the normal distribution

Interval = tuple[float, float]
Weighted = Callable[[np.ndarray, np.ndarray], Mapping[str, np.ndarray]]  # records (n, r), weights (B, n) -> (B,) each


def intervals(
    records: np.ndarray,
    weighted: Weighted,
    proportions: Collection[str] = (),
    seed: int = 0,
    over: Mapping[str, int] = NO_PARTS,
) -> dict[str, Interval]:
    """The 95 % interval of each score of `weighted`: Wilson's for `proportions`, BCa for all others. records (n, r):
    what each example adds. over: how many examples a score is over, if it is not over all. There is no interval for
    fewer than FEWEST examples, nor for a score that is undefined (NaN) here or in too many draws; and no BCa where all
    draws agree, as if all is right, or the score is outside their range."""
    n = len(records)
    if n < FEWEST:
        return {}
    records, counts = np.unique(records, axis=0, return_counts=True)
    rng, chosen = np.random.default_rng(seed), np.arange(len(counts))
    value = {name: float(each[0]) for name, each in weighted(records, counts[None]).items()}
    drawn = in_parts(weighted, records, DRAWS, lambda at, end: rng.multinomial(n, counts / n, size=end - at))
    if len(chosen) > LEFT_OUT:
        chosen = rng.choice(chosen, LEFT_OUT, replace=False)
    without = in_parts(weighted, records, len(chosen), lambda at, end: _without(counts, chosen[at:end]))
    found = {}
    for name, own in value.items():
        kept = drawn[name][np.isfinite(drawn[name])]
        if not np.isfinite(own) or len(kept) < DEFINED * DRAWS or over.get(name, n) < FEWEST:
            continue
        if name in proportions:
            found[name] = wilson(round(own * n), n)
        elif kept.min() <= own <= kept.max() and kept.min() < kept.max():  # otherwise the draws tell nothing
            found[name] = bca(own, kept, without[name], counts[chosen], n)
    return found


def with_intervals(
    records: np.ndarray,
    weighted: Weighted,
    n: int,
    proportions: Collection[str] = (),
    over: Mapping[str, int] = NO_PARTS,
) -> dict[str, dict[str, Any]]:
    """Each score of `weighted` as {value, low, high, n}, the ends None without an interval. n: number of examples;
    over: as in `intervals`."""
    ends = intervals(records, weighted, proportions, over=over)
    found = {}
    for name, value in weighted(records, np.ones((1, len(records)))).items():
        low, high = ends.get(name, (None, None))
        found[name] = {"value": float(value[0]), "low": low, "high": high, "n": over.get(name, n)}
    return found


def share(hit: np.ndarray) -> dict[str, Any]:
    """The share of True in `hit` (n,) as {value, low, high, n}: NaN over no examples, without an interval over few."""
    n, hits = len(hit), int(hit.sum())
    low, high = wilson(hits, n) if n >= FEWEST else (None, None)
    return {"value": hits / n if n else float("nan"), "low": low, "high": high, "n": n}


def _without(counts: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Weights without one example, a row for each of those chosen."""
    weights = np.repeat(counts[None], len(chosen), axis=0)
    weights[np.arange(len(chosen)), chosen] -= 1
    return weights


def in_parts(
    weighted: Weighted, records: np.ndarray, rows: int, weights_of: Callable[[int, int], np.ndarray]
) -> dict[str, np.ndarray]:
    """Scores for `rows` rows of weights, of which `weights_of(start, end)` makes a part at a time, to save memory."""
    most = max(1, AT_ONCE // len(records))
    found = [weighted(records, weights_of(at, min(at + most, rows))) for at in range(0, rows, most)]
    return {name: np.concatenate([each[name] for each in found]) for name in found[0]}


def wilson(hits: int, n: int) -> Interval:
    """95 % interval of a proportion (Wilson 1927)."""
    share, z = hits / n, NORMAL**2 / n
    middle = (share + z / 2) / (1 + z)
    half = (z * (share * (1 - share) + z / 4)) ** 0.5 / (1 + z)
    return max(0.0, middle - half), min(1.0, middle + half)


def bca(
    value: float, draws: np.ndarray, without: np.ndarray, counts: np.ndarray | None = None, n: int | None = None
) -> Interval:
    """95 % interval of a score by bias-corrected and accelerated percentiles (Efron 1987; Efron and Tibshirani 1993,
    eq. 14.9 to 14.15). draws (B,): the score in bootstrap draws; without (m,): the score without one example of each
    kind; counts (m,): examples of the kind. n: all examples, of which those are a random part; None: they are all."""
    normal = library("scipy.stats").norm
    bias = normal.ppf(((draws < value).mean() + (draws <= value).mean()) / 2)
    counts, kept = np.ones(len(without)) if counts is None else counts, np.isfinite(without)
    without, counts = without[kept], counts[kept]
    less = np.average(without, weights=counts) - without
    spread = (counts * less**2).sum()
    acceleration = (counts * less**3).sum() / (6 * spread**1.5) if spread > 0 else 0.0
    acceleration *= 1.0 if n is None else (counts.sum() / n) ** 0.5  # both sums are over a part
    z = bias + normal.ppf([0.025, 0.975])
    low, high = np.quantile(draws, np.nan_to_num(normal.cdf(bias + z / (1 - acceleration * z)), nan=0.0)).tolist()
    return low, high


# -- scores as functions of how often each example is taken ---------------------------------------------
#
# A score over nothing is NaN, where `scores` counts 0, as scikit-learn does: precision without a prediction, recall
# without an example, f1 without either, a correlation with a constant. Means over labels are those of `scores`.


def weighted_labels(records: np.ndarray, weights: np.ndarray, labels: int, positive: int = 1) -> dict[str, np.ndarray]:
    """`classification_scores` of weighted examples. records (n, 2): gold and predicted label; in gold `labels` is any
    other label."""
    return of_label_counts(*label_counts(records, weights, labels), positive)


def of_label_counts(true: np.ndarray, said: np.ndarray, right: np.ndarray, positive: int) -> dict[str, np.ndarray]:
    """`weighted_labels` by its `label_counts`."""
    n, hits, labels = true.sum(axis=1), right.sum(axis=1), true.shape[1] - 1
    rates = ratio(2 * right, true + said)
    met = (true + said) > 0
    sides = [n**2 - (side**2).sum(axis=1) for side in (true, said)]
    mcc = defined_ratio(hits * n - (true * said).sum(axis=1), np.sqrt(sides[0] * sides[1]))
    scores = {"accuracy": hits / n, "macro_f1": (rates * met).sum(axis=1) / met.sum(axis=1), "mcc": mcc}
    if labels == 2:
        own = right[:, positive], said[:, positive], true[:, positive]
        scores |= _rates(*own)
    return scores


def label_counts(records: np.ndarray, weights: np.ndarray, labels: int) -> list[np.ndarray]:
    """Counts of each label, and of any other one: in gold, predicted, and both; (B, labels + 1) each."""
    gold, predicted = (side[:, None] == np.arange(labels + 1) for side in records.T.astype(np.int64))
    return [weights @ each.astype(np.float64) for each in (gold, predicted, gold & predicted)]


def weighted_label_sets(records: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """`multilabel_scores` of weighted examples. records (n, 2 C): which labels hold, and which are predicted."""
    true, said, right = label_set_counts(records, weights)
    gold, predicted = np.split(records > 0, 2, axis=1)
    return {
        "micro_f1": defined_ratio(2 * right.sum(axis=1), (true + said).sum(axis=1)),
        "macro_f1": ratio(2 * right, true + said).mean(axis=1),
        "subset_accuracy": weights @ (gold == predicted).all(axis=1) / weights.sum(axis=1),
    }


def label_set_counts(records: np.ndarray, weights: np.ndarray) -> list[np.ndarray]:
    """Counts of each label: in gold, predicted, and both; (B, C) each."""
    gold, predicted = np.split(records > 0, 2, axis=1)
    return [weights @ each.astype(np.float64) for each in (gold, predicted, gold & predicted)]


def weighted_numbers(records: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """`regression_scores` of weighted examples. records (n, 2): gold and predicted number."""
    gold, predicted = records.T
    square = weights @ (gold - predicted) ** 2 / weights.sum(axis=1)
    ranks = _ranks(gold, weights), _ranks(predicted, weights)
    return {
        "spearman": _correlation(*ranks, weights),
        "pearson": _correlation(gold[None], predicted[None], weights),
        "rmse": np.sqrt(square),
    }


def weighted_counts(records: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """f1, precision, recall. records (n, 3): numbers of right, predicted and true items."""
    return _rates(*(weights @ records.astype(np.float64)).T)


def weighted_means(records: np.ndarray, weights: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Means of several numbers, by name. records (n, 2 len(names)): each number, then whether each of them counts."""
    numbers, counts = np.split(records, 2, axis=1)
    total = weights @ counts
    means = np.divide(weights @ (numbers * counts), total, out=np.full(total.shape, np.nan), where=total > 0)
    return dict(zip(names, means.T, strict=True))


def _rates(right: np.ndarray, said: np.ndarray, true: np.ndarray) -> dict[str, np.ndarray]:
    f1 = defined_ratio(2 * right, said + true)
    return {"f1": f1, "precision": defined_ratio(right, said), "recall": defined_ratio(right, true)}


def ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b; 0 where b is 0."""
    return np.divide(a, b, out=np.zeros(np.shape(a)), where=b > 0)


def defined_ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b; NaN where b is 0."""
    return np.divide(a, b, out=np.full(np.shape(a), np.nan), where=b > 0)


def _ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Ranks (B, n) of the values, each taken as often as its weight says; ties share a rank."""
    kinds, of = np.unique(values, return_inverse=True)
    order = np.argsort(of, kind="stable")
    counts = np.add.reduceat(weights[:, order], np.searchsorted(of[order], np.arange(len(kinds))), axis=1)
    return (counts.cumsum(axis=1) - counts / 2)[:, of]


def _correlation(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Pearson correlation (B,) of weighted examples; NaN where a side is constant."""
    a, b = _centred(a, weights), _centred(b, weights)
    spread = np.sqrt((weights * a**2).sum(axis=1) * (weights * b**2).sum(axis=1))
    return defined_ratio((weights * a * b).sum(axis=1), spread)


def _centred(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Values less their weighted mean (B, n); 0 where those with a weight are equal, but for rounding."""
    n = weights.sum(axis=1, keepdims=True)
    centred = values - (weights * values).sum(axis=1, keepdims=True) / n
    scale = np.where(weights > 0, np.abs(values), 0.0).max(axis=1, keepdims=True)
    return np.where((weights * centred**2).sum(axis=1, keepdims=True) > n * (ROUNDED * scale) ** 2, centred, 0.0)


# -- over runs ------------------------------------------------------------------------------------------


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean, sd, half width) of a few seeds' scores: mean ± half width is Student's 95 % interval; sd divides by n - 1.
    Of one value sd and half width are NaN.
    """
    n = len(not_empty(values))
    mean, sd = float(np.mean(values)), float(np.std(values, ddof=1)) if n > 1 else np.nan
    return mean, sd, float(library("scipy.stats").t.ppf(0.975, n - 1)) * sd / n**0.5


def spread(scores: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Mean, sd and half width (`mean_interval`) of each score that all runs have."""
    names = ("mean", "sd", "half_width")
    shared = [key for key in scores[0] if all(key in each for each in scores)]
    return {key: dict(zip(names, mean_interval([each[key] for each in scores]), strict=True)) for key in shared}

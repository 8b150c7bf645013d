"""Whether one system is better than another, or only on these examples: two or more systems on the same examples.

interval  of the difference: the paired bootstrap. Each draw takes the same examples for all systems; ends by BCa.
p         by approximate randomisation (Noreen 1989; Yeh 2000): if two systems were alike, it would be chance which of
          them made which prediction, so both are scored again, with their predictions swapped at random for each
          example. Valid for any metric, also for one that is no mean, as F1, and for few examples, where a bootstrap
          finds differences too often (Riezler and Maxwell 2005). For a share of examples this test has a closed form,
          McNemar's exact test (McNemar 1947), which is used.
p_holm    the deciding metric's p, corrected for how many comparisons there are (Holm 1979). Intervals are not.

Interval and p answer two questions: near 0.05 one may say yes, and the other no.
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from minilm.errors import DataError, library
from minilm.metrics.intervals import DEFINED, FEWEST, Weighted, in_parts, intervals
from minilm.metrics.scores import not_empty

ALIKE = "both say the same of every example"
ALONE = 256  # examples scored alone at once
SWAPS = 1_999  # of the randomisation: near p = 0.05 its own standard error is 0.005
ROUNDING = 1e-10  # of a score: differences that are closer together count as equal


def compare(
    systems: Mapping[str, np.ndarray],
    weighted: Weighted,
    proportions: Collection[str] = (),
    deciding: str | None = None,
    baseline: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """{"n": examples, "deciding": metric, "comparisons": [{"a", "b": names, "metrics": {metric: {"a", "b": values,
    "difference", "low", "high", "p", "test", "n"}}, "p_holm"}, ...]}, ready for JSON; a difference is b - a.

    Proportions also have "only_a" and "only_b", the number of examples that only one of the two gets right. An
    undefined value is None, and so is an interval over fewer than FEWEST examples; "reason" says why.

    systems: name -> records (n, r) of a task, the same examples in the same order. proportions: metrics that are the
    share of examples for which something holds. deciding: the metric of p_holm; None: the first. baseline: the system
    that all others are compared with; None: each with each. Raises DataError if they are not of the same examples.
    """
    n = _examples(systems)
    pairs = [*combinations(systems, 2)] if baseline is None else [(baseline, b) for b in systems if b != baseline]

    def differences(records: np.ndarray, weights: np.ndarray) -> dict[Any, np.ndarray]:
        parts = zip(systems, np.split(records, len(systems), axis=1), strict=True)
        own = {name: weighted(part, weights) for name, part in parts}
        return {(a, b, metric): own[b][metric] - own[a][metric] for a, b in pairs for metric in own[a]}

    ends, comparisons = intervals(np.hstack([*systems.values()]), differences, seed=seed), []
    for a, b in pairs:
        metrics = _tested(systems[a], systems[b], weighted, proportions, np.random.default_rng(seed))
        for name, own in metrics.items():
            own["low"], own["high"] = ends.get((a, b, name), (None, None))
            if undefined := [system for system, side in ((a, "a"), (b, "b")) if own[side] is None]:
                own["reason"] = f"not defined for {' and '.join(undefined)}"
            elif n < FEWEST:
                own["reason"] = f"fewer than {FEWEST} examples: no interval"
            elif own["low"] is None or own["p"] is None:
                own["reason"] = "defined in too few resamples"
                if own["p"] is not None:
                    own["reason"] = "no interval: resamples all equal, or too few defined"
                if np.array_equal(systems[a], systems[b]):
                    own["reason"] = ALIKE
        comparisons.append({"a": a, "b": b, "metrics": metrics})
    deciding = deciding or next(iter(comparisons[0]["metrics"]))
    corrected = holm([each["metrics"][deciding]["p"] for each in comparisons])
    found = [each | {"p_holm": p} for each, p in zip(comparisons, corrected, strict=True)]
    return {"n": n, "deciding": deciding, "comparisons": found}


def _examples(systems: Mapping[str, np.ndarray]) -> int:
    """Number of examples. Raises DataError if the systems' records differ in shape, or are empty."""
    assert len(systems) > 1, "one system is compared with nothing"
    first, *others = systems
    for name in others:
        if len(systems[name]) != len(systems[first]):
            counts = f"{first} has {len(systems[first]):,} and {name} {len(systems[name]):,}"
            raise DataError(f"systems are compared on the same examples, and {counts}")
        if systems[name].shape != systems[first].shape:
            raise DataError(f"{first} and {name} are not of the same task and labels; compare those that are")
    return len(not_empty(systems[first]))


def _tested(
    a: np.ndarray, b: np.ndarray, weighted: Weighted, proportions: Collection[str], rng: np.random.Generator
) -> dict[str, dict[str, Any]]:
    """Values, difference and p of each metric, without the interval. Examples with equal records are merged, and
    counted."""
    n = len(a)
    kinds, counts = np.unique(np.hstack([a, b]), axis=0, return_counts=True)
    sides = np.split(kinds, 2, axis=1)
    value = [{name: float(each[0]) for name, each in weighted(side, counts[None]).items()} for side in sides]
    swapped = _swapped(*sides, counts, weighted, rng) if {*value[0]} - {*proportions} else {}
    alone = [example_scores(side, weighted) for side in sides] if {*value[0]} & {*proportions} else []
    found = {}
    for name in value[0]:
        left, right = value[0][name], value[1][name]
        own = defined({"a": left, "b": right, "difference": right - left}) | {"low": None, "high": None, "p": None}
        if name in proportions:
            right_a, right_b = (each[name] > 0.5 for each in alone)
            only = [int(counts[one & ~other].sum()) for one, other in ((right_a, right_b), (right_b, right_a))]
            own |= {"p": mcnemar(*only), "test": "McNemar, exact", "only_a": only[0], "only_b": only[1]}
        else:
            own["test"] = "approximate randomisation"
            drawn = swapped[name][np.isfinite(swapped[name])]
            if own["difference"] is not None and len(drawn) >= DEFINED * SWAPS:
                hits = (np.abs(drawn) >= abs(right - left) - ROUNDING * max(abs(left), abs(right))).sum()
                own["p"] = float(hits + 1) / (len(drawn) + 1)  # the observed one is among them (Noreen 1989)
        found[name] = own | {"n": n}
    return found


def _swapped(
    a: np.ndarray, b: np.ndarray, counts: np.ndarray, weighted: Weighted, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Differences (SWAPS,) of each metric if two systems swap their predictions for each example with chance 1/2."""

    def differences(records: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Differences (B,) of each metric. weights (B, m): how many examples of each kind are swapped."""
        kept = counts - weights
        of_a, of_b = (weighted(records, np.hstack(each)) for each in ((kept, weights), (weights, kept)))
        return {name: of_b[name] - of_a[name] for name in of_a}

    return in_parts(
        differences,
        np.concatenate([a, b]),
        SWAPS,
        lambda at, end: rng.binomial(counts, 0.5, size=(end - at, len(counts))),
    )


def example_scores(records: np.ndarray, weighted: Weighted) -> dict[str, np.ndarray]:
    """Each metric on each example alone, (n,); for a proportion 1 or 0."""
    kinds, of = np.unique(records, axis=0, return_inverse=True)
    parts = [kinds[at : at + ALONE] for at in range(0, len(kinds), ALONE)]
    found = [weighted(part, np.eye(len(part), dtype=np.int64)) for part in parts]
    return {name: np.concatenate([each[name] for each in found])[of.reshape(-1)] for name in found[0]}


def defined(scores: Mapping[str, float]) -> dict[str, Any]:
    """The scores, with None for those that are not finite."""
    return {name: score if np.isfinite(score) else None for name, score in scores.items()}


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided p of McNemar's exact test (1947), by the binomial distribution, for two systems that alone get `only_a`
    and `only_b` examples right; 1 if both are 0."""
    both = only_a + only_b
    return float(library("scipy.stats").binomtest(only_a, both, 0.5).pvalue) if both else 1.0


def holm(p: Sequence[float | None]) -> list[float | None]:
    """p-values corrected for their number (Holm 1979): the probability that any is below 0.05 without a true difference
    is at most 0.05, however they depend on each other. None (not tested) is left out, and stays."""
    values = np.array(p, np.float64)
    order = np.argsort(values)[: np.isfinite(values).sum()]  # NaN is last
    corrected = np.minimum(1, np.maximum.accumulate(values[order] * np.arange(len(order), 0, -1)))
    found = dict(zip(order.tolist(), corrected.tolist(), strict=True))
    return [found.get(i) for i in range(len(values))]

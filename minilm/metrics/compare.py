"""Is one system better than another, or is it these examples? Two or more systems on the same examples.

interval  of the difference: the paired bootstrap. Each draw takes the same examples for all systems; ends by BCa.
p         by approximate randomisation (Noreen 1989; Yeh 2000): were two systems alike, which of them said what of an
          example would be chance, so both are scored again with what they say exchanged for each example or not. It
          holds for any metric, also for one that is no mean, as F1, and for few examples, where a bootstrap finds
          differences too often (Riezler and Maxwell 2005). Of a share of examples the same test has a closed form,
          McNemar's exact one (McNemar 1947), and that is taken.
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

SWAPS = 1_999  # of the randomisation: near p = 0.05 its own standard error is 0.005
ROUNDING = 1e-10  # of a score: differences that are nearer count as equal


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

    Of proportions also "only_a" and "only_b", examples that only one of the two gets right. What is not defined is
    None, and so is an interval of fewer than FEWEST examples; "reason" says why.

    systems: name -> records (n, r) of a task, the same examples in the same order. proportions: metrics that are the
    share of examples of which something holds. deciding: None, the first. baseline: all others are compared with it;
    None: each with each. Raises DataError where they are not of the same examples.
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
                own["reason"] = "defined in too few of the draws"
                if own["p"] is not None:
                    own["reason"] = "no interval: draws do not differ, or too few define it"
                if np.array_equal(systems[a], systems[b]):
                    own["reason"] = "both say the same of every example"
        comparisons.append({"a": a, "b": b, "metrics": metrics})
    deciding = deciding or next(iter(comparisons[0]["metrics"]))
    corrected = holm([each["metrics"][deciding]["p"] for each in comparisons])
    found = [each | {"p_holm": p} for each, p in zip(comparisons, corrected, strict=True)]
    return {"n": n, "deciding": deciding, "comparisons": found}


def _examples(systems: Mapping[str, np.ndarray]) -> int:
    """How many each has records of."""
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
    """Of each metric all but the interval. Examples of which both say the same are one, that many times."""
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
    """The differences (SWAPS,) of two systems that exchange what they say of each example with probability 1/2."""

    def differences(records: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
        """weights (B, m): of how many examples of a kind they exchange it."""
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
    """Each metric of each example by itself, (n,): of a proportion, whether it holds there, 1 or 0."""
    kinds, of = np.unique(records, axis=0, return_inverse=True)
    each = np.arange(len(kinds))
    alone = in_parts(weighted, kinds, len(kinds), lambda at, end: (each[at:end, None] == each).astype(np.int64))
    return {name: values[of.reshape(-1)] for name, values in alone.items()}


def defined(scores: Mapping[str, float]) -> dict[str, Any]:
    """With None for NaN."""
    return {name: score if np.isfinite(score) else None for name, score in scores.items()}


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided p that two systems get as many examples right, of how many only one of them does: exact, by the
    binomial distribution, for any number of them (McNemar 1947); 1 of none."""
    both = only_a + only_b
    return float(library("scipy.stats").binomtest(only_a, both, 0.5).pvalue) if both else 1.0


def holm(p: Sequence[float | None]) -> list[float | None]:
    """p-values corrected for how many there are: below 0.05 one that should not be is with a probability of at most
    0.05, however they depend on each other (Holm 1979). None, what was not tested, is left out and stays."""
    values = np.array(p, np.float64)
    order = np.argsort(values)[: np.isfinite(values).sum()]  # NaN is last
    corrected = np.minimum(1, np.maximum.accumulate(values[order] * np.arange(len(order), 0, -1)))
    found = dict(zip(order.tolist(), corrected.tolist(), strict=True))
    return [found.get(i) for i in range(len(values))]

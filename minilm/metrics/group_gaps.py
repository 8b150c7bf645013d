"""Gaps between groups: how far the highest rate is above the lowest, with an interval, and a p for "no group differs".

The interval is that of the widest error among all pairs of groups at once, as in Tukey's range test. Bootstrap
percentiles would not cover the gap: between a highest and a lowest rate it is biased upwards, and a bootstrap adds its
own bias. The permutation test needs no such care.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from minilm.metrics.intervals import AT_ONCE, DRAWS

LEVEL = 0.95
Metric = dict[str, Any]  # {value, low, high, n}, and a reason where a value or its interval is missing


def undefined(n: int, reason: str) -> Metric:
    return {"value": None, "low": None, "high": None, "n": n, "reason": reason}


class Compared(NamedTuple):
    """A rate in each of the G groups with enough examples, with B bootstrap draws and B permutations of it."""

    group: np.ndarray  # (G,) int: indices of the groups
    rate: np.ndarray  # (G,)
    drawn: np.ndarray  # (B, G)
    drawn_from: np.ndarray  # (G,): the expectation of `drawn`
    permuted: np.ndarray  # (B, G)
    n: int  # examples, each counted once


def compared(
    hit: np.ndarray, among: np.ndarray, kinds: np.ndarray, kind: np.ndarray, fewest: int, rng: np.random.Generator
) -> Compared | None:
    """The share of `hit` in `among`, by group; None if fewer than two groups have enough examples. hit, among (n,)
    bool. kinds (K, groups) bool: the combinations of groups that occur; kind (n,): which of them an example is in.

    The bootstrap draws within each group (Efron and Tibshirani 1993, sec. 8.3): for n examples with k hits that is
    Binomial(n, k / n). Here it is k + 1 of n + 2 (Agresti and Caffo 2000), since a share of 0 or 1 would not vary.
    A permutation deals the hits out anew among all examples. How many fall on each combination of groups is
    hypergeometric; these numbers are drawn, so that the cost is the same for any n.
    """
    counts, hits = (np.bincount(kind[chosen], minlength=len(kinds)) for chosen in (among, among & hit))
    group = np.flatnonzero(counts @ kinds >= max(1, fewest))
    if len(group) < 2:
        return None
    kinds = kinds[:, group]
    kept = kinds.any(axis=1) & (counts > 0)
    kinds, counts, hits = kinds[kept].astype(np.float64), counts[kept], hits[kept]
    n, k = (counts @ kinds).astype(np.int64), hits @ kinds
    smoothed = (k + 1) / (n + 2)
    drawn = rng.binomial(n, smoothed, (DRAWS, len(n))) / n
    step, permuted = max(1, AT_ONCE // len(counts)), []
    for at in range(0, DRAWS, step):
        size = min(step, DRAWS - at)
        dealt = rng.multivariate_hypergeometric(counts, hits.sum(), size=size, method="marginals")
        permuted.append(dealt @ kinds / n)
    return Compared(group, k / n, drawn, smoothed, np.concatenate(permuted), int(counts.sum()))


def _range(rates: np.ndarray) -> np.ndarray:
    return rates.max(axis=-1) - rates.min(axis=-1)


def difference(names: Sequence[str], *rates: Compared | None) -> Metric:
    """The gap between the highest and the lowest rate; of several rates the widest gap.

    Its interval: no pair's gap is off by more than the 95 % quantile of the widest error among all pairs, and so
    neither is the widest gap, whichever pair's it is, and also where it is 0.
    """
    if (missing := _missing(rates)) is not None:
        return missing
    value, widest = max((float(_range(each.rate)), -i) for i, each in enumerate(rates))
    error = np.max([_range(each.drawn - each.drawn_from) for each in rates], axis=0)
    by_chance = np.max([_range(each.permuted) for each in rates], axis=0)
    half = float(np.quantile(error, LEVEL))
    own = {"value": value, "low": max(0.0, value - half), "high": min(1.0, value + half)}
    return own | _ends(names, rates[-widest], by_chance >= value - 1e-12)


def ratio(names: Sequence[str], rates: Compared | None) -> Metric:
    """The lowest rate divided by the highest; its interval is made as in `difference`, but of logarithms."""
    if (missing := _missing([rates])) is not None:
        return missing
    if rates.rate.max() == 0:
        return undefined(rates.n, "the label is predicted in no group")
    value = float(rates.rate.min() / rates.rate.max())
    highest = rates.permuted.max(axis=1)  # never 0, for the label is predicted somewhere
    own = {"value": value, "low": None, "high": None}
    own |= _ends(names, rates, rates.permuted.min(axis=1) / highest <= value + 1e-12)
    if value == 0:
        return own | {"reason": "the label is never predicted in a group"}
    drawn = np.log(np.maximum(rates.drawn, np.exp(-300.0))) - np.log(rates.drawn_from)
    error = np.where((rates.drawn > 0).all(axis=1), _range(drawn), 300.0)  # a ratio with 0 tells nothing
    half = np.quantile(error, LEVEL, method="higher")
    return own | {"low": float(value * np.exp(-half)), "high": float(min(1.0, value * np.exp(half)))}


def worst(names: Sequence[str], rates: Compared | None) -> Metric:
    """The lowest rate and its group; the interval allows for its being chosen as the lowest."""
    if (missing := _missing([rates])) is not None:
        return missing
    value = float(rates.rate.min())
    half = float(np.quantile(np.abs(rates.drawn - rates.drawn_from).max(axis=1), LEVEL))
    own = {"value": value, "low": max(0.0, value - half), "high": min(1.0, value + half), "n": rates.n}
    return own | {"group": names[rates.group[rates.rate.argmin()]]}


def _missing(rates: Sequence[Compared | None]) -> Metric | None:
    if all(each is not None for each in rates):
        return None
    return undefined(0, "fewer than two groups have enough examples")


def _ends(names: Sequence[str], rates: Compared, as_wide: np.ndarray) -> Metric:
    """n, p (never 0: Phipson and Smyth 2010), and the groups of the lowest and the highest rate."""
    ends = rates.rate.argmin(), rates.rate.argmax()
    lowest, highest = (names[rates.group[end]] for end in ends)
    return {"n": rates.n, "p": (1 + int(as_wide.sum())) / (1 + len(as_wide)), "lowest": lowest, "highest": highest}

"""How scores rank positives above negatives within a group and across its border (Borkan et al. 2019, sec. 3).

Subgroup AUC  within the group.
BPSN          background positive, subgroup negative: low where the group's negatives score like positives.
BNSP          background negative, subgroup positive: low where its positives score like negatives.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from minilm.errors import DataError, library
from minilm.metrics.group_gaps import Metric, undefined
from minilm.metrics.intervals import FEWEST, NORMAL, wilson

AUCS = ("subgroup_auc", "bpsn_auc", "bnsp_auc")
POWER = -5  # of the power mean over groups, as in Jigsaw's challenge: near the lowest


def auc(score: np.ndarray, positive: np.ndarray) -> tuple[float, np.ndarray]:
    """(AUC, influence): how often a positive scores higher than a negative, ties counted half; and the influence of
    each example on that, (n,), whose sum of squares is the variance (DeLong et al. 1988). score, positive (n,), with at
    least one positive and one negative."""
    ranks, influence = library("scipy.stats").rankdata, np.zeros(len(score))
    sides, rank = (positive, ~positive), ranks(score)
    others = (~positive).sum(), positive.sum()
    below = [(rank[side] - ranks(score[side])) / other for side, other in zip(sides, others, strict=True)]
    value = float(below[0].mean())
    for side, right in zip(sides, (below[0], 1 - below[1]), strict=True):
        influence[side] = (right - value) / (len(right) * max(1, len(right) - 1)) ** 0.5
    return value, influence


def auc_interval(value: float, positives: int, negatives: int) -> tuple[float, float]:
    """95 % interval of an AUC, made as Wilson's of a share (Newcombe 2006, part 2, method 5): all AUCs that are not too
    far from `value` by their own variance. DeLong's interval is too narrow near 1, and at 1 a point."""
    mean = (positives + negatives) / 2 - 1

    def error(true: float) -> float:
        variance = true * (1 - true) * (1 + mean * ((1 - true) / (2 - true) + true / (1 + true)))
        return abs(true - value) - NORMAL * (variance / (positives * negatives)) ** 0.5

    solve, tiny = library("scipy.optimize").brentq, 1e-12
    low = solve(error, 0, min(value, 1 - tiny)) if value > 0 else 0.0
    return float(low), float(solve(error, max(value, tiny), 1) if value < 1 else 1.0)


def rankings(
    true: np.ndarray, score: np.ndarray, member: Mapping[str, np.ndarray], rows: dict[str, dict[str, Any]], fewest: int
) -> dict[str, Metric]:
    """The AUC of all examples (`auc`), and the mean over groups of each of AUCS. Adds each group's AUCS to `rows`."""
    if score.shape != true.shape or not np.isfinite(score).all():
        raise DataError("give each example one score, a finite number")
    means = {name: PowerMean(len(true), fewest) for name in AUCS}
    for group, own in member.items():
        for name, kept in zip(AUCS, (own, np.where(own, ~true, true), np.where(own, true, ~true)), strict=True):
            rows[group][name] = _auc(score, true, kept, means[name])
    whole = _auc(score, true, np.ones(len(true), bool))
    return {"auc": whole} | {f"mean_{name}": mean.metric() for name, mean in means.items()}


def _auc(score: np.ndarray, true: np.ndarray, kept: np.ndarray, mean: "PowerMean | None" = None) -> Metric:
    """The AUC of the examples in `kept`, which is also added to `mean`."""
    sides = int(true[kept].sum()), int((~true[kept]).sum())
    if not min(sides):
        return undefined(sum(sides), "no positive example, or no negative one")
    value, influence = auc(score[kept], true[kept])
    if mean is not None:
        mean.add(value, influence, kept, min(sides))
    own = {"value": value, "low": None, "high": None, "n": sum(sides)}
    if min(sides) < FEWEST:
        return own | {"reason": "too few"}
    return own | dict(zip(("low", "high"), auc_interval(value, *sides), strict=True))


class PowerMean:
    """(1 / G sum_g AUC_g^POWER)^(1 / POWER) of AUCs that share examples, and each example's influence on it."""

    def __init__(self, n: int, fewest: int) -> None:
        self.n, self.fewest, self.smaller = n, fewest, n
        self.values: list[float] = []
        self.influence = np.zeros(n)  # of each example on sum_g AUC_g^POWER / POWER

    def add(self, value: float, influence: np.ndarray, kept: np.ndarray, smaller: int) -> None:
        """Add an AUC. smaller: examples of its smaller side; an AUC of too few is left out."""
        if smaller >= max(1, self.fewest):
            self.values.append(value)
            self.influence[kept] += max(value, 1e-9) ** (POWER - 1) * influence
            self.smaller = min(self.smaller, smaller)

    def metric(self) -> Metric:
        """The mean, with Wilson's interval for as many examples as would give a share the same variance (Korn and
        Graubard 1998), but at least those of the smallest side."""
        if not self.values:
            return undefined(0, "no group has enough examples of both sides") | {"groups": 0}
        count = len(self.values)
        with np.errstate(divide="ignore"):  # an AUC of 0 makes it 0
            value = float(np.mean(np.array(self.values) ** POWER) ** (1 / POWER))
        own = {"value": value, "low": None, "high": None, "n": self.n, "groups": count}
        if self.smaller < FEWEST:
            return own | {"reason": "too few"}
        variance = float((self.influence**2).sum()) * (value ** (1 - POWER) / count) ** 2
        of = max(self.smaller, value * (1 - value) / variance if variance > 0 else 0)
        own["low"], own["high"] = wilson(value * of, of)
        return own

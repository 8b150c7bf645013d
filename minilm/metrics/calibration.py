"""Calibration of probabilities, and the temperature and thresholds that are best on held-out examples.

`confidence` and `holds` are (n,). For top-label calibration they are the probability of the predicted label, and
whether it is right; for one label (of two, or of several that are judged each by itself) the label's probability, and
whether an example has it.
"""

from typing import NamedTuple

import numpy as np

from minilm.errors import DataError, library
from minilm.metrics.intervals import ratio, wilson
from minilm.metrics.scores import not_empty

BINS = 15
SIMULATED = 1000  # data sets
TIE = 1e-12  # by which a metric must be better


# -- how far they are off -------------------------------------------------------------------------------


class Bin(NamedTuple):
    """Examples of about one confidence: a point of the reliability curve."""

    n: int
    confidence: float  # mean
    share: float  # of the n for which it holds
    low: float  # ends of the share's 95 % interval (Wilson), as if all had one probability
    high: float


def equal_width(bins: int = BINS) -> np.ndarray:
    """Edges (bins + 1,) of bins of equal width. A bin holds its upper edge (Guo et al. 2017, eq. 3), and the first one
    its lower edge, too."""
    return np.arange(bins + 1) / bins


def equal_mass(confidence: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Edges (bins + 1,) of bins with about equally many examples. Examples of one confidence are in one bin, so there
    may be fewer bins."""
    return np.quantile(not_empty(confidence), np.linspace(0, 1, bins + 1))


def reliability(confidence: np.ndarray, holds: np.ndarray, edges: np.ndarray) -> list[Bin]:
    """The reliability curve, without empty bins."""
    of = _bins(confidence, edges)
    curve = []
    for each in np.unique(of):
        mine = of == each
        n, hits = int(mine.sum()), int(holds[mine].sum())
        curve.append(Bin(n, float(confidence[mine].mean()), hits / n, *wilson(hits, n)))
    return curve


def weighted_calibration(records: np.ndarray, weights: np.ndarray, edges: np.ndarray) -> dict[str, np.ndarray]:
    """ece, the expected calibration error (Naeini et al. 2015; Guo et al. 2017, eq. 3), and mce, the maximum one (eq.
    5), (B,) each. records (n, 2): confidence, and whether it holds; weights (B, n): how often each example is taken."""
    of = _bins(records[:, 0], edges)[:, None] == np.arange(len(edges) - 1)
    off = np.abs(weights @ (of * (records[:, :1] - records[:, 1:])))
    taken = weights @ of.astype(np.float64)
    return {"ece": off.sum(axis=1) / weights.sum(axis=1), "mce": ratio(off, taken).max(axis=1)}


def calibration_scores(confidence: np.ndarray, holds: np.ndarray) -> dict[str, float]:
    """ece and mce in 15 bins of equal width, and of equal mass (ece_equal_mass, mce_equal_mass). Without intervals: a
    bootstrap adds as much bias to an ece again as sampling did, so that its intervals cover the truth too seldom."""
    records, found = np.column_stack([not_empty(confidence), holds]).astype(np.float64), {}
    for suffix, edges in (("", equal_width()), ("_equal_mass", equal_mass(confidence))):
        scores = weighted_calibration(records, np.ones((1, len(records))), edges)
        found |= {name + suffix: float(own[0]) for name, own in scores.items()}
    return found


def ece_if_calibrated(confidence: np.ndarray, edges: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """(mean, 95 % quantile) of the ece of perfectly calibrated data with these confidences: above 0, the more so the
    fewer examples (Vaicenavicius et al. 2019, sec. 4). An ece above the quantile is not due to chance."""
    rng, confidence = np.random.default_rng(seed), np.sort(confidence)
    start = np.unique(_bins(confidence, edges), return_index=True)[1]
    found = []
    for _ in range(SIMULATED):
        off = confidence - (rng.random(len(confidence)) < confidence)
        found.append(np.abs(np.add.reduceat(off, start)).sum() / len(confidence))
    return float(np.mean(found)), float(np.quantile(found, 0.95))


def _bins(confidence: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """(n,): the index of each confidence's bin."""
    return np.searchsorted(edges[1:-1], confidence)


# -- temperature ----------------------------------------------------------------------------------------


def best_temperature(logits: np.ndarray, gold: np.ndarray) -> float:
    """Temperature T for which softmax(logits / T) has the least log loss on held-out examples (Guo et al. 2017, sec.
    4.2).

    logits (n, C), or log-probabilities; gold (n,), where C stands for any other label, whose examples are left out. For
    several labels, each judged by itself: logits (n, C), and whether the labels hold (n, C), for sigmoid(logits / T).
    The loss is convex in 1 / T, and the root of its slope is found. Raises DataError if there is none.
    """
    logits, gold = np.asarray(logits, np.float64), np.asarray(gold)
    if gold.ndim == 2:
        logits, gold = np.stack([np.zeros(logits.size), logits.ravel()], axis=1), gold.ravel().astype(np.int64)
    known = gold < logits.shape[1]
    logits, gold = not_empty(logits[known]), gold[known]
    if not np.isfinite(logits).all():
        raise DataError("no temperature: a logit is not a finite number")
    below = logits - logits.max(axis=1, keepdims=True)
    own = below[np.arange(len(gold)), gold]

    def slope(inverse: float) -> float:
        weights = np.exp(inverse * below)
        return float(((weights * below).sum(axis=1) / weights.sum(axis=1) - own).mean())

    if not own.any():
        raise DataError("no temperature: every label is predicted right, so the surer the better; give more examples")
    if slope(0.0) >= 0:
        raise DataError("no temperature: by these logits the labels are no likelier than by chance")
    high = 1.0
    while slope(high) <= 0:
        high *= 2
    return 1 / library("scipy.optimize").brentq(slope, 0.0, high, xtol=1e-300, rtol=1e-12)


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probabilities (n, C) of labels exactly one of which holds, in float64."""
    return library("scipy.special").softmax(np.asarray(logits, np.float64) / temperature, axis=1)


def sigmoid(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probabilities (n, C) of labels any number of which may hold, in float64."""
    return library("scipy.special").expit(np.asarray(logits, np.float64) / temperature)


# -- thresholds -----------------------------------------------------------------------------------------


def decision_threshold(chance: np.ndarray, holds: np.ndarray) -> tuple[float, float]:
    """(t, f1): the threshold t of the best F1 on held-out examples, and that F1. Above t the label is predicted.

    chance, holds (n,): the label's probability, and whether it holds. t is 0.5 if none is better; otherwise the best
    one nearest to 0.5, halfway between two probabilities that occur. A label that holds never, or always, has no best
    threshold: (0.5, NaN).
    """
    kinds, of = np.unique(not_empty(chance), return_inverse=True)
    holds, n = np.asarray(holds, np.float64), len(of)
    if (true := holds.sum()) in (0, n):
        return 0.5, float("nan")
    # for a cut before each distinct probability, and after the last: how many below it hold, and how many are below it
    fn, below = (np.append(0.0, np.bincount(of, each).cumsum()) for each in (holds, np.ones(n)))
    values = ratio(2 * (true - fn), true + n - below)  # twice the true positives by those that hold or are predicted
    low, high = np.append(0.0, kinds), np.append(kinds, 1.0)
    values[0] = values[0] if kinds[0] > 0 else -np.inf  # a label of probability 0 is never predicted
    best, usual = values.max() - TIE, values[np.searchsorted(kinds, 0.5, "right")]
    if usual >= best:
        return 0.5, float(usual)
    middle = (low + high) / 2
    middle = np.where(middle < high, middle, low)
    cut = min(np.flatnonzero(values >= best), key=lambda at: abs(middle[at] - 0.5))
    return float(middle[cut]), float(values[cut])


def decision_thresholds(chances: np.ndarray, held: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`decision_threshold` of each of several labels, (C,) each; chances, held (n, C)."""
    found = [decision_threshold(own, has) for own, has in zip(chances.T, held.T, strict=True)]
    thresholds, values = np.array(found).T
    return thresholds, values

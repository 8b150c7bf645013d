"""Where a model is worst: its deciding metric in each slice of the examples, against all other examples.

A slice is the examples that have one value in a column, of a user's table or computed. Among many slices one always
looks bad. So p is corrected for their number by Holm's method (1979): the probability that any slice has p_holm < 0.05
without being different is at most 0.05, however slices depend on each other, as those of one column, which exclude each
other. Benjamini and Hochberg's method (1995) finds more, and bounds the share of false finds among all; but readers
look at the top of this list, which should not be a false find.

p         by Fisher's exact test for a share of examples, by a permutation test for other metrics: how often does a
          random slice of the same size differ as much? Such slices are drawn until that is so ENOUGH times (Besag and
          Clifford 1991), so that a small p is precise, and a large one costs little.
"""

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from minilm.errors import DataError, library
from minilm.metrics.compare import ROUNDING, defined, example_scores, holm
from minilm.metrics.intervals import AT_ONCE, DRAWS, FEWEST, Weighted, in_parts
from minilm.metrics.scores import not_empty

MOST_VALUES = 100  # of a column; one with more is free text, or names each example
FEW_NUMBERS = 10  # distinct numbers of a column that are slices each; more are cut into quartiles
SIGNIFICANT = 0.05
ENOUGH = 20  # draws that are as extreme: p is known to a fifth or so
FIRST_DRAWS = 200
SMALLEST = 100  # times as many draws as slices at most: p_holm can be as small as 1 / SMALLEST
EMPTY = "(empty)"


class Slice(NamedTuple):
    """The examples that have a value in a column."""

    column: str
    value: str
    mask: np.ndarray  # (n,) bool

    @property
    def split(self) -> bytes:
        """A key that a slice shares with its complement."""
        return (self.mask ^ self.mask[0]).tobytes()


def slices(
    records: np.ndarray,
    weighted: Weighted,
    columns: Mapping[str, Sequence[Any] | np.ndarray],
    proportions: Collection[str] = (),
    deciding: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """{"deciding": metric, "value": of all, "n", "slices": [{"column", "value", "n", "inside", "outside", "difference",
    "p", "p_holm"}, ...], "tests", "too_small": {column: count}, "skipped": {column: why}}, ready for JSON.

    First the slices that are significantly worse than the other examples, the worst one first; then the others in the
    same order. A difference is inside - outside, and more is better. Slices that split the examples in the same way, as
    yes and no do, count as one of the `tests`. Those with fewer than FEWEST examples inside or outside are counted in
    `too_small`. An undefined metric is None, with a "reason", and not tested, as f1 in a slice that has no positive
    example and none predicted.

    records (n, r): a task's. columns: a value for each example, or a mask; numbers are cut into quartiles. deciding:
    the metric; None: the first. Raises DataError.
    """
    parts, too_small, skipped = _slices(columns, len(not_empty(records)))
    kinds, of, counts = np.unique(records, axis=0, return_inverse=True, return_counts=True)
    taken = np.array([np.bincount(of.reshape(-1)[each.mask], minlength=len(counts)) for each in parts])
    taken = taken.reshape(-1, len(counts)).astype(np.int64)  # also of no slice
    whole = {name: float(value[0]) for name, value in weighted(kinds, counts[None]).items()}
    metric = deciding or next(iter(whole))
    inside, outside = (
        in_parts(weighted, kinds, len(parts), lambda at, end, side=side: side[at:end])[metric] if parts else np.empty(0)
        for side in (taken, counts - taken)
    )
    holds = example_scores(records, weighted)[metric] > 0.5 if metric in proportions else None
    most = max(DRAWS, SMALLEST * len({each.split for each in parts}))
    p: dict[bytes, float] = {}
    for part, difference in zip(parts, inside - outside, strict=True):
        if part.split in p or not np.isfinite(difference):
            continue
        n = int(part.mask.sum())
        if holds is None:
            rng = np.random.default_rng(seed)  # its own, so that no other slice and no order of rows changes p
            p[part.split] = _permutation(kinds, counts, n, weighted, metric, float(difference), most, rng)
        else:
            hits = int((holds & part.mask).sum())
            p[part.split] = _fisher(hits, n, int(holds.sum()) - hits, len(holds) - n)
    corrected = dict(zip(p, holm([*p.values()]), strict=True))
    rows = []
    for part, own, other in zip(parts, inside.tolist(), outside.tolist(), strict=True):
        scores = {"inside": own, "outside": other, "difference": own - other}
        row = {"column": part.column, "value": part.value, "n": int(part.mask.sum())} | defined(scores)
        row |= {"p": p.get(part.split), "p_holm": corrected.get(part.split)}
        rows.append(row if part.split in p else row | {"reason": f"{metric} is not defined inside or outside"})
    found = {"deciding": metric} | defined({"value": whole[metric]}) | {"n": len(records)}
    found |= {"slices": sorted(rows, key=_place), "tests": len(p)}
    return found | {"too_small": too_small, "skipped": skipped}


def _place(row: dict[str, Any]) -> tuple[bool, bool, float]:
    """Sort key of a slice: the significantly worse ones first, the undefined ones last."""
    if row["difference"] is None:
        return True, True, 0.0
    return False, not (row["difference"] < 0 and row["p_holm"] < SIGNIFICANT), row["difference"]


def _slices(
    columns: Mapping[str, Sequence[Any] | np.ndarray], n: int
) -> tuple[list[Slice], dict[str, int], dict[str, str]]:
    """(Slices that are large enough, the number of smaller ones by column, why columns are skipped)."""
    parts, too_small, skipped = [], {}, {}
    for name, values in columns.items():
        if len(values) != n:
            raise DataError(f"column {name!r} has {len(values):,} values, and there are {n:,} examples")
        labels = labels_of(values)
        if isinstance(labels, str):
            skipped[name] = labels
            continue
        own = [Slice(name, value, labels == value) for value in dict.fromkeys(labels.tolist())]
        kept = [each for each in own if FEWEST <= each.mask.sum() <= n - FEWEST]
        parts += kept
        if len(kept) < len(own):
            too_small[name] = len(own) - len(kept)
    return parts, too_small, skipped


def labels_of(values: Sequence[Any] | np.ndarray) -> np.ndarray | str:
    """The slice of each example, (n,) of text: a column's values, numbers as quartiles [lowest, a], (a, b], (b, c] and
    (c, highest]; or why the column makes no slices."""
    values = values.tolist() if isinstance(values, np.ndarray) else values
    texts = np.array([name_of(value) or EMPTY for value in values], object)
    numbers, different = _numbers(values), len({*texts.tolist()})
    if different == 1:
        return "has one value only"
    if numbers is not None and len(kinds := np.unique(own := numbers[np.isfinite(numbers)])) > FEW_NUMBERS:
        whole = (kinds == np.floor(kinds)).all() and kinds[-1] - kinds[0] < 2 * len(kinds)
        if whole and len(kinds) == len(own):
            return "numbers the examples"
        texts[np.isfinite(numbers)] = _quartiles(own)
        return texts
    if different > min(MOST_VALUES, len(values) / 2):
        return f"has {different:,} different values"
    return texts


def _quartiles(numbers: np.ndarray) -> np.ndarray:
    """The quartile of each number. Equal numbers are never parted, so there may be fewer than four."""
    edges = np.unique(np.quantile(numbers, (0.25, 0.5, 0.75), method="inverted_cdf"))  # each is one of the numbers
    edges = edges[edges < numbers.max()]
    if not len(edges):  # more than three quarters of them are the largest
        edges = numbers[numbers < numbers.max()].max(keepdims=True)
    points = [numbers.min(), *edges, numbers.max()]
    told = ([f"{point:.{digits}g}" for point in points] for digits in (6, 9, 12, 17))
    ends = next(each for each in told if len({*each}) >= len({*points}))  # different ones are written differently
    names = [f"{'(' if i else '['}{low}, {high}]" for i, (low, high) in enumerate(pairwise(ends))]
    return np.array(names, object)[np.searchsorted(edges, numbers)]


def _numbers(values: Sequence[Any]) -> np.ndarray | None:
    """A column as numbers (n,), NaN for empty cells; None if a value is no finite number."""
    try:
        numbers = np.array([float(value) if name_of(value) else np.nan for value in values])
    except (TypeError, ValueError, OverflowError):
        return None
    return None if np.isinf(numbers).any() else numbers


def name_of(value: Any) -> str:
    """The slice or group that a cell names; "" if it is empty."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):  # missing values of pandas
        return ""
    return "" if value != value else str(value).strip()


@lru_cache(maxsize=1 << 14)  # slices of one size, as quartiles are, have few different tables
def _fisher(inside: int, n: int, outside: int, others: int) -> float:
    """Two-sided p of Fisher's exact test (1935): something holds for `inside` of a slice's n examples, and for
    `outside` of the `others`."""
    return float(library("scipy.stats").fisher_exact([[inside, n - inside], [outside, others - outside]]).pvalue)


def _permutation(
    kinds: np.ndarray,
    counts: np.ndarray,
    size: int,
    weighted: Weighted,
    metric: str,
    difference: float,
    most: int,
    rng: np.random.Generator,
) -> float:
    """Two-sided p of a difference between `size` examples and all others, by permutation. kinds (m, r), counts (m,):
    the distinct records of all examples, and how many of each."""
    method = "count" if 20 * len(counts) > counts.sum() else "marginals"  # whichever is faster
    hits = drawn = 0
    while drawn < most:
        rows = min(max(FIRST_DRAWS, drawn), most - drawn, max(1, AT_ONCE // len(counts)))
        inside = rng.multivariate_hypergeometric(counts, size, size=rows, method=method)
        sides = [weighted(kinds, weights)[metric] for weights in (inside, counts - inside)]
        nearer = np.abs(sides[0] - sides[1]) < abs(difference) - ROUNDING * np.abs(sides).max(axis=0)
        reached = hits + (~nearer).cumsum()  # an undefined difference counts as reached
        if reached[-1] >= ENOUGH:
            return ENOUGH / (drawn + int(np.searchsorted(reached, ENOUGH)) + 1)
        hits, drawn = int(reached[-1]), drawn + rows
    return (hits + 1) / (most + 1)

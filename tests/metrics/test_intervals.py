"""Intervals against scipy's, and scores of weighted examples against those of examples written out so often."""

import math
import os
from functools import partial

import numpy as np
import pytest
from scipy import stats

from minilm.metrics.intervals import (
    FEWEST,
    bca,
    intervals,
    mean_interval,
    weighted_counts,
    weighted_label_sets,
    weighted_labels,
    weighted_means,
    weighted_numbers,
    wilson,
)
from minilm.metrics.scores import classification_scores, multilabel_scores, regression_scores

pytestmark = pytest.mark.filterwarnings("error")  # nothing here warns
EVERY = os.environ.get("MINILM_EVERY") == "1"  # all runs, which take a minute


# --- a score of weighted examples


def cases(draw, seed, n):
    """`n` of (records, weights (2, m) of which some are 0, [records written out, once for each row of weights])."""
    rng = np.random.default_rng(seed)
    for _ in range(n):
        records = draw(rng, int(rng.integers(1, 12)))
        weights = rng.integers(0, 4, (2, len(records)))
        weights[:, rng.integers(len(records))] += 1
        yield records, weights, [np.repeat(records, row, axis=0) for row in weights]


def same(found, expected):
    """found: (B,) of each score; expected: those of each of the B, 0 where one is of nothing, which is NaN in found."""
    for row, scores in enumerate(expected):
        undefined = {name for name, values in found.items() if np.isnan(values[row])}
        assert {scores[name] for name in undefined} <= {0.0}
        values = {name: 0.0 if name in undefined else values[row] for name, values in found.items()}
        assert values == pytest.approx(scores, abs=1e-9), row


@pytest.mark.parametrize("labels", [2, 3, 5])
def test_labels(labels):
    """Also of one that is in no training example, the number of labels in gold."""

    def draw(rng, m):
        return np.stack([rng.integers(0, labels + (rng.random() < 0.2), m), rng.integers(0, labels, m)], axis=1)

    for positive, (records, weights, written) in enumerate(cases(draw, labels, n=100)):
        positive %= 2
        found = weighted_labels(records, weights, labels, positive)
        same(found, [classification_scores(*each.T, labels, positive) for each in written])


def test_label_sets():
    def draw(rng, m):
        return rng.random((m, 6)) < rng.random()

    for records, weights, written in cases(draw, 1, n=300):
        same(weighted_label_sets(records, weights), [multilabel_scores(*np.split(each, 2, axis=1)) for each in written])


@pytest.mark.parametrize("digits", [0, 6])
def test_numbers(digits):
    """With ties and without; where a side is constant a correlation is not defined."""

    def draw(rng, m):
        return rng.normal(3, 1.5, (m, 2)).round(digits)

    for records, weights, written in cases(draw, digits, n=300):
        same(weighted_numbers(records, weights), [regression_scores(*each.T) for each in written])


@pytest.mark.parametrize("constant", [0.1, 0.3, 1 / 3, 2.7, 3.0, 1e8, 0.0])
@pytest.mark.parametrize("n", [3, 30, 301])
def test_with_a_constant_nothing_correlates_whatever_its_mean_rounds_to(constant, n):
    rng = np.random.default_rng(n)
    records = np.stack([np.full(n, constant), rng.random(n)], axis=1)
    weights = np.concatenate([np.ones((1, n)), rng.multinomial(n, np.full(n, 1 / n), size=50)])
    for side in (records, records[:, ::-1]):
        found = weighted_numbers(side, weights)
        assert np.isnan(found["pearson"]).all()
        assert np.isnan(found["spearman"]).all()
    near = constant + 1e-7 * max(1.0, constant) * records[:, 1]
    assert weighted_numbers(np.stack([near, records[:, 1]], axis=1), weights[:1])["pearson"] == pytest.approx(
        1, abs=1e-6
    )


def test_counts_and_means():
    records, weights = np.array([[2, 3, 4], [0, 0, 1]]), np.array([[1, 0], [1, 2], [0, 1]])
    found = weighted_counts(records, weights)
    assert found["f1"].tolist() == pytest.approx([4 / 7, 4 / 9, 0])
    assert found["precision"].tolist() == pytest.approx([2 / 3, 2 / 3, np.nan], nan_ok=True)
    assert found["recall"].tolist() == pytest.approx([2 / 4, 2 / 6, 0])
    records = np.array([[0.5, 0.5, 1, 0], [1, 0.2, 1, 1]])
    found = weighted_means(records, weights, ("all", "some"))
    assert found["all"].tolist() == pytest.approx([0.5, 2.5 / 3, 1])
    assert math.isnan(found["some"][0])
    assert found["some"][1:].tolist() == pytest.approx([0.2, 0.2])


# --- intervals


def test_wilson_is_scipys():
    rng = np.random.default_rng(2)
    for n in (1, 2, 20, *rng.integers(1, 10_000, 297).tolist()):
        hits = int(rng.integers(0, n + 1))
        theirs = stats.binomtest(hits, n).proportion_ci(method="wilson")
        assert wilson(hits, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_bca_is_scipys():
    """Of the same draws; of numbers with ties, and of skewed ones."""
    rng = np.random.default_rng(3)
    for i in range(300):
        values = (rng.random(int(rng.integers(5, 30))) ** (1 + i % 4)).round(i % 3 + 1)
        if values.min() == values.max():
            continue
        theirs = stats.bootstrap((values,), np.mean, n_resamples=99, method="BCa", rng=rng)
        kinds, counts = np.unique(values, return_counts=True)
        without = (values.sum() - kinds) / (len(values) - 1)
        found = bca(values.mean(), theirs.bootstrap_distribution, without, counts)
        assert found == pytest.approx(tuple(theirs.confidence_interval), abs=1e-9)


def test_examples_that_say_the_same_are_counted():
    """The interval of many alike is that of a bootstrap over all of them, one by one."""
    rng = np.random.default_rng(4)
    records = np.stack([rng.random(400) < 0.3, rng.random(400) < 0.4], axis=1).astype(np.int64)

    def macro_f1(gold, predicted, axis):
        return weighted_labels(
            np.array([[0, 0], [0, 1], [1, 0], [1, 1]]),
            np.stack([((2 * gold + predicted) == cell).sum(axis=axis) for cell in range(4)], axis=-1).reshape(-1, 4),
            2,
        )["macro_f1"].reshape(np.shape(gold)[:-1])

    theirs = stats.bootstrap(
        tuple(records.T), macro_f1, paired=True, vectorized=True, n_resamples=4000, method="BCa", rng=0
    )
    found = intervals(records, partial(weighted_labels, labels=2), ("accuracy",))
    assert found["macro_f1"] == pytest.approx(tuple(theirs.confidence_interval), abs=0.006)
    assert found["accuracy"] == wilson(int((records[:, 0] == records[:, 1]).sum()), 400)
    assert set(found) == {"accuracy", "macro_f1", "mcc", "f1", "precision", "recall"}
    assert found == intervals(records, partial(weighted_labels, labels=2), ("accuracy",))


def test_the_jackknife_of_many_is_a_part_of_it(monkeypatch):
    records = np.random.default_rng(5).normal(0, 1, (3000, 2)) @ [[1, 0.5], [0, 1]]
    whole = intervals(records[:400], weighted_numbers)
    monkeypatch.setattr("minilm.metrics.intervals.LEFT_OUT", 100)
    monkeypatch.setattr("minilm.metrics.intervals.AT_ONCE", 5000)
    part = intervals(records[:400], weighted_numbers)
    for name, ends in whole.items():
        assert part[name] == pytest.approx(ends, abs=0.01)


def test_where_there_is_no_interval():
    few = np.ones((FEWEST - 1, 2), np.int64)
    assert intervals(few, partial(weighted_labels, labels=2)) == {}
    alike = np.ones((FEWEST, 2), np.int64)  # all draws agree
    assert intervals(alike, partial(weighted_labels, labels=2)) == {}
    one = np.zeros((30, 4))
    one[:, 0] = np.arange(30)
    one[:, 2] = one[0, 3] = 1  # of what one example has, a draw has nothing often
    assert set(intervals(one, partial(weighted_means, names=("all", "rare")))) == {"all"}
    one[:, 3] = 0
    assert set(intervals(one, partial(weighted_means, names=("all", "none")))) == {"all"}


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_an_interval_covers_the_truth(metric):
    """Of a classifier of two labels, one of which 30 % have, right of 80 % and 90 % of them; of 1,000 runs 94.9 % and
    95.4 % (2026-11-27)."""
    rng, runs, inside = np.random.default_rng(6), 1000 if EVERY else 300, 0
    chance = np.array([0.7 * 0.9, 0.7 * 0.1, 0.3 * 0.2, 0.3 * 0.8])
    cells, of_two = np.array([[0, 0], [0, 1], [1, 0], [1, 1]]), partial(weighted_labels, labels=2)
    truth = of_two(cells, chance[None])[metric][0]
    for _ in range(runs):
        low, high = intervals(cells[rng.choice(4, 500, p=chance)], of_two, ("accuracy",))[metric]
        inside += low <= truth <= high
    print(f"{metric}: {inside / runs:.1%} of {runs:,}")
    assert (0.93 if EVERY else 0.915) < inside / runs < (0.97 if EVERY else 0.98)


# --- over runs


def test_students_interval_by_table():
    mean, sd, half = mean_interval([0.82, 0.84, 0.89])
    assert (mean, sd) == pytest.approx((0.85, math.sqrt(0.0026 / 2)), rel=1e-12)
    assert half == pytest.approx(4.3027 * sd / math.sqrt(3), rel=1e-4)  # t of 2 degrees of freedom
    assert mean_interval(range(1, 6))[2] == pytest.approx(2.7764 * math.sqrt(2.5 / 5), rel=1e-4)  # of 4
    assert mean_interval([0.5, 0.5]) == (0.5, 0.0, 0.0)


def test_one_seed_has_no_spread():
    mean, sd, half = mean_interval([0.8])
    assert mean == 0.8
    assert math.isnan(sd)
    assert math.isnan(half)

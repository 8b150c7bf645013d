"""Comparisons against statsmodels and scipy, and by what they say where the truth is known.

The simulations are of 100 runs; MINILM_EVERY=1 makes them 1,000, which takes minutes.
"""

import itertools
import json
import math
import os
from functools import partial

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests

from minilm.errors import DataError
from minilm.metrics.compare import SWAPS, compare, example_scores, holm, mcnemar
from minilm.metrics.intervals import FEWEST, weighted_labels, weighted_means, weighted_numbers

pytestmark = pytest.mark.filterwarnings("error")  # nothing here warns
RUNS = 1000 if os.environ.get("MINILM_EVERY") == "1" else 100
OF_TWO = partial(weighted_labels, labels=2)
MEAN = partial(weighted_means, names=("mean",))
NO_INTERVAL = "no interval: resamples all equal, or too few defined"


def labels(rng, n, *accuracies):
    """Records of systems that are right independently of each other, so often; 40 % of gold are positive."""
    gold = (rng.random(n) < 0.4).astype(np.int64)
    return [np.stack([gold, np.where(rng.random(n) < each, gold, 1 - gold)], axis=1) for each in accuracies]


def means(*values):
    """Records of a score for each example, whose mean is the metric."""
    return [np.stack([each, np.ones(len(each))], axis=1) for each in values]


def near(p):
    """By how much a p that is drawn may be off: 4 standard errors."""
    return 4 * math.sqrt(max(p, 1 / SWAPS) * (1 - p) / SWAPS) + 1 / SWAPS


def only(result):
    """The metrics of the only comparison."""
    (one,) = result["comparisons"]
    return one["metrics"]


# --- tests of significance


def test_mcnemar_is_statsmodels():
    rng = np.random.default_rng(0)
    tables = [
        (0, 0),
        (1, 0),
        (0, 1),
        (7, 7),
        (3000, 3100),
        *rng.integers(0, 12, (500, 2)),
        *rng.geometric(0.01, (495, 2)),
    ]
    for only_a, only_b in tables:
        theirs = statsmodels_mcnemar([[5, only_a], [only_b, 9]], exact=True).pvalue if only_a + only_b else 1.0
        assert mcnemar(int(only_a), int(only_b)) == pytest.approx(theirs, abs=1e-9)


def test_holm_is_statsmodels(monkeypatch):
    monkeypatch.setattr("gc.collect", lambda: 0)  # which theirs calls each time, for 0.1 s
    rng = np.random.default_rng(1)
    for _ in range(1000):
        p = rng.random(int(rng.integers(1, 12))) ** 3
        p = p.round(int(rng.integers(1, 5)))  # with ties, with 0 and with 1
        assert holm(p) == pytest.approx(multipletests(p, method="holm")[1], abs=1e-12)
    assert holm([0.04, None, 0.01, None]) == pytest.approx([0.04, None, 0.02, None])
    assert holm([None]) == [None]
    assert holm([]) == []


def test_the_randomisation_of_a_share_is_mcnemar():
    """One test: exact of what is called a proportion, drawn of what is not."""
    rng = np.random.default_rng(2)
    for n, better in ((30, 0.9), (200, 0.85), (200, 0.8), (2000, 0.82)):
        a, b = labels(rng, n, 0.8, better)
        exact = only(compare({"a": a, "b": b}, OF_TWO, ("accuracy",)))["accuracy"]
        drawn = only(compare({"a": a, "b": b}, OF_TWO))["accuracy"]
        assert (exact["test"], drawn["test"]) == ("McNemar, exact", "approximate randomisation")
        assert exact["p"] == pytest.approx(drawn["p"], abs=near(exact["p"]))
        right = [(side[:, 0] == side[:, 1]) for side in (a, b)]
        assert exact["only_a"] == (right[0] & ~right[1]).sum()
        assert exact["only_b"] == (right[1] & ~right[0]).sum()


@pytest.mark.parametrize("seed", range(4))
def test_the_randomisation_is_that_of_all_exchanges(seed):
    """Of F1, which is no mean: written out over the 2^11 ways to exchange predictions."""
    rng = np.random.default_rng(seed)
    gold, a, b = rng.random((3, 11)) < [[0.5], [0.4], [0.7]]
    b = np.where(rng.random(11) < 0.6, gold, b)
    swaps = np.array([*itertools.product([False, True], repeat=11)])
    mine, others = np.where(swaps, b, a), np.where(swaps, a, b)

    def f1(said):
        return 2 * (said & gold).sum(axis=1) / np.maximum(1, said.sum(axis=1) + gold.sum())

    assert f1(a[None])[0] == pytest.approx(f1_score(gold, a))
    differences = f1(others) - f1(mine)
    p = (np.abs(differences) >= abs(differences[0]) - 1e-12).mean()
    found = only(compare({"a": np.stack([gold, a], 1) * 1, "b": np.stack([gold, b], 1) * 1}, OF_TWO))["f1"]
    assert found["p"] == pytest.approx(p, abs=near(p))
    assert found["difference"] == pytest.approx(differences[0])


def test_the_randomisation_of_means_is_scipys():
    rng = np.random.default_rng(3)
    for shift in (0.0, 0.05, 0.1):
        a, b = rng.random((2, 60)).round(1)
        b = b + shift
        theirs = stats.permutation_test(
            (a, b), lambda x, y, axis: (y - x).mean(axis), permutation_type="samples", vectorized=True, rng=0
        )
        first, second = means(a, b)
        p = only(compare({"a": first, "b": second}, MEAN))["mean"]["p"]
        assert p == pytest.approx(theirs.pvalue, abs=2 * near(theirs.pvalue))


# --- intervals of differences


def test_the_pairs_are_kept():
    a = np.random.default_rng(4).normal(0, 100, 50)
    first, second = means(a, a + 0.25)
    found = only(compare({"a": first, "b": second}, MEAN))["mean"]
    assert [found[key] for key in ("difference", "low", "high")] == pytest.approx([0.25] * 3, abs=1e-9)
    assert found["b"] - found["a"] == found["difference"]
    assert found["p"] == pytest.approx(1 / (SWAPS + 1))


def test_the_interval_of_a_mean_is_scipys():
    rng = np.random.default_rng(5)
    a, b = (rng.random((2, 60)) ** [[1], [4]]).round(1)  # skew, with ties
    theirs = stats.bootstrap((b - a,), np.mean, n_resamples=40_000, batch=1000, method="BCa", rng=0)
    first, second = means(a, b)
    found = only(compare({"a": first, "b": second}, MEAN))["mean"]
    assert [found["low"], found["high"]] == pytest.approx([*theirs.confidence_interval], abs=0.015)  # of a width of 0.2


def test_the_interval_of_f1_is_scipys():
    a, b = labels(np.random.default_rng(6), 300, 0.8, 0.85)

    def difference(gold, *said, axis):
        own = [2 * (gold & each).sum(axis) / (gold.sum(axis) + each.sum(axis)) for each in said]
        return own[1] - own[0]

    theirs = stats.bootstrap(
        (a[:, 0], a[:, 1], b[:, 1]), difference, paired=True, vectorized=True, n_resamples=10_000, method="BCa", rng=0
    )
    found = only(compare({"a": a, "b": b}, OF_TWO))["f1"]
    assert [found["low"], found["high"]] == pytest.approx([*theirs.confidence_interval], abs=0.008)
    assert found["difference"] == pytest.approx(f1_score(*b.T) - f1_score(*a.T))


# --- where the truth is known


def test_no_difference_is_found_where_there_is_none():
    """p < 0.05 in 4.8 %, 5.3 % and 5.8 % of 1,000 runs (2026-11-27)."""
    rng, found = np.random.default_rng(7), {"accuracy": 0, "macro_f1": 0, "f1": 0}
    for _ in range(RUNS):
        a, b = labels(rng, 1000, 0.8, 0.8)
        metrics = only(compare({"a": a, "b": b}, OF_TWO, ("accuracy",), seed=int(rng.integers(1 << 30))))
        for name in found:
            found[name] += metrics[name]["p"] < 0.05
    low, high = (0.03, 0.07) if RUNS == 1000 else (0.0, 0.12)
    assert all(low <= count / RUNS <= high for count in found.values()), found


def test_the_interval_covers_the_true_difference():
    """In 94.3 %, 93.9 % and 94.1 % of 1,000 runs (2026-11-27)."""
    rng, inside = np.random.default_rng(8), {"accuracy": 0, "macro_f1": 0, "f1": 0}
    cells = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    truth = [OF_TWO(cells, np.array([[0.6 * q, 0.6 * (1 - q), 0.4 * (1 - q), 0.4 * q]])) for q in (0.8, 0.87)]
    for _ in range(RUNS):
        a, b = labels(rng, 300, 0.8, 0.87)
        metrics = only(compare({"a": a, "b": b}, OF_TWO, ("accuracy",), seed=int(rng.integers(1 << 30))))
        for name in inside:
            own = metrics[name]
            inside[name] += own["low"] <= truth[1][name][0] - truth[0][name][0] <= own["high"]
    low, high = (0.93, 0.97) if RUNS == 1000 else (0.88, 1.0)
    assert all(low <= count / RUNS <= high for count in inside.values()), inside


# --- what a result says


def test_several_systems():
    a, b, c = labels(np.random.default_rng(9), 400, 0.8, 0.82, 0.88)
    systems = {"a": a, "b": b, "c": c}
    found = compare(systems, OF_TWO, ("accuracy",))
    assert (found["n"], found["deciding"]) == (400, "accuracy")
    pairs = found["comparisons"]
    assert [(each["a"], each["b"]) for each in pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    p = [each["metrics"]["accuracy"]["p"] for each in pairs]
    assert [each["p_holm"] for each in pairs] == pytest.approx(multipletests(p, method="holm")[1], abs=1e-12)
    for each in pairs:
        alone = only(compare({name: systems[name] for name in (each["a"], each["b"])}, OF_TWO, ("accuracy",)))
        for name, own in each["metrics"].items():
            assert own["p"] == alone[name]["p"]
            assert own["low"] == pytest.approx(alone[name]["low"], abs=0.012)  # of other draws
    against = compare(systems, OF_TWO, ("accuracy",), deciding="mcc", baseline="b")
    assert [(each["a"], each["b"]) for each in against["comparisons"]] == [("b", "a"), ("b", "c")]
    p = [each["metrics"]["mcc"]["p"] for each in against["comparisons"]]
    assert [each["p_holm"] for each in against["comparisons"]] == pytest.approx(multipletests(p, method="holm")[1])
    assert json.loads(json.dumps(against, allow_nan=False)) == against
    assert against == compare(systems, OF_TWO, ("accuracy",), deciding="mcc", baseline="b")


def test_of_one_and_the_same():
    (a,) = labels(np.random.default_rng(10), 50, 0.8)
    for own in only(compare({"a": a, "b": a.copy()}, OF_TWO, ("accuracy",))).values():
        assert (own["difference"], own["low"], own["high"], own["p"]) == (0, None, None, 1)
        assert own["reason"] == "both say the same of every example"


def test_rounding_is_no_difference():
    """The same sum in another order."""
    values = np.random.default_rng(11).random(40)
    first, second = means(values, values[::-1])
    found = only(compare({"a": first, "b": second}, MEAN))["mean"]
    assert abs(found["difference"]) < 1e-12
    assert found["p"] == 1


def test_few_examples_have_no_interval():
    a, b = labels(np.random.default_rng(12), FEWEST - 1, 0.6, 0.9)
    for own in only(compare({"a": a, "b": b}, OF_TWO, ("accuracy",))).values():
        assert own["reason"] == f"fewer than {FEWEST} examples: no interval"
        assert (own["low"], own["high"]) == (None, None)
        assert 0 < own["p"] <= 1
    a, b = labels(np.random.default_rng(12), FEWEST, 0.6, 0.9)
    assert all("reason" not in own for own in only(compare({"a": a, "b": b}, OF_TWO)).values())


def test_what_is_not_defined():
    values = np.random.default_rng(13).random(50)
    names = partial(weighted_means, names=("all", "some", "rare"))
    whole, some = np.ones(50), np.zeros(50)
    rare = (np.arange(50) == 0) * 1.0
    a, b = (np.stack([own, own, own, whole, counted, rare], 1) for own, counted in ((values, whole), (values**2, some)))
    found = only(compare({"one": a, "two": b}, names))
    assert found["all"]["p"] < 0.05
    assert "reason" not in found["all"]
    assert found["some"] | {"a": 0} == {
        "a": 0,
        "b": None,
        "difference": None,
        "low": None,
        "high": None,
        "p": None,
        "test": "approximate randomisation",
        "n": 50,
        "reason": "not defined for two",
    }
    assert found["rare"]["reason"] == NO_INTERVAL  # for many draws lack the one example
    assert found["rare"]["low"] is None
    undecided = compare({"one": a, "two": b}, names, deciding="some")["comparisons"][0]
    assert undecided["p_holm"] is None
    gold = np.arange(50) % 2
    a, b = (np.stack([gold, np.where(np.arange(50) < most, 1, gold)], axis=1) for most in (10, 20))
    recall = only(compare({"one": a, "two": b}, OF_TWO))["recall"]  # 1 in every draw
    assert (recall["difference"], recall["low"], recall["p"], recall["reason"]) == (0, None, 1, NO_INTERVAL)


def test_of_numbers():
    rng = np.random.default_rng(14)
    gold = rng.normal(size=200)
    a, b = (np.stack([gold, gold + rng.normal(0, noise, 200)], axis=1) for noise in (1, 0.5))
    found = only(compare({"a": a, "b": b}, weighted_numbers))
    assert found["spearman"]["difference"] == pytest.approx(stats.spearmanr(*b.T)[0] - stats.spearmanr(*a.T)[0])
    assert found["spearman"]["low"] > 0
    assert found["rmse"]["high"] < 0
    assert found["rmse"]["p"] < 0.01


def test_each_example_by_itself():
    records = np.array([[0, 0], [1, 0], [1, 1], [0, 0], [0, 1]])
    assert example_scores(records, OF_TWO)["accuracy"].tolist() == [1, 0, 1, 1, 0]


@pytest.mark.parametrize(
    ("b", "said"),
    [
        (np.zeros((29, 2)), "systems are compared on the same examples, and old has 30 and new 29"),
        (np.zeros((30, 3)), "old and new are not of the same task and labels"),
    ],
)
def test_what_cannot_be_compared(b, said):
    with pytest.raises(DataError, match=said):
        compare({"old": np.zeros((30, 2)), "new": b}, OF_TWO)
    with pytest.raises(DataError, match="no examples to score"):
        compare({"old": np.zeros((0, 2)), "new": np.zeros((0, 2))}, OF_TWO)

"""Slices whose truth is planted, or chance. MINILM_EVERY=1 makes the simulation of 200 runs with 200 columns."""

import json
import os
from functools import partial

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from minilm.errors import DataError
from minilm.metrics.intervals import DRAWS, FEWEST, weighted_labels, weighted_means
from minilm.metrics.slices import EMPTY, SMALLEST, labels_of, slices

pytestmark = pytest.mark.filterwarnings("error")  # nothing here warns
RUNS, COLUMNS = (200, 200) if os.environ.get("MINILM_EVERY") == "1" else (40, 20)
OF_TWO = partial(weighted_labels, labels=2)
MEAN = partial(weighted_means, names=("mean",))
SHARE = ("accuracy",)


def labels(rng, accuracy):
    """Records of a model that is right so often, (n,)."""
    gold = (rng.random(len(accuracy)) < 0.4).astype(np.int64)
    return np.stack([gold, np.where(rng.random(len(accuracy)) < accuracy, gold, 1 - gold)], axis=1)


# --- what is found, and what is not


@pytest.mark.parametrize("deciding", ["accuracy", "macro_f1"])
def test_what_is_planted_is_named_first(deciding):
    """One city of five is 15 points worse, among columns that say nothing."""
    rng = np.random.default_rng(0)
    city = rng.integers(0, 5, 1500)
    records = labels(rng, np.where(city == 3, 0.75, 0.9))
    columns = {"price": rng.random(1500), "flag": rng.random(1500) < 0.02} | {
        f"x{i}": rng.integers(0, 4, 1500) for i in range(9)
    }
    columns["city"] = [f"city {each}" for each in city]
    found = slices(records, OF_TWO, columns, SHARE, deciding)
    first, second = found["slices"][:2]
    assert (first["column"], first["value"], first["n"]) == ("city", "city 3", (city == 3).sum())
    assert first["difference"] == pytest.approx(-0.15, abs=0.05)
    assert first["difference"] == first["inside"] - first["outside"]
    assert first["p_holm"] < 0.05 < second["p_holm"]
    assert first["inside"] == pytest.approx(OF_TWO(records[city == 3], np.ones((1, (city == 3).sum())))[deciding][0])
    assert first["outside"] == pytest.approx(OF_TWO(records[city != 3], np.ones((1, (city != 3).sum())))[deciding][0])
    assert found["value"] == pytest.approx(OF_TWO(records, np.ones((1, 1500)))[deciding][0])
    assert (found["deciding"], found["n"]) == (deciding, 1500)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_a_small_slice_does_not_stand_above_what_is_sure():
    """22 examples, 7 of them wrong, are worse than a quarter of all, by chance."""
    rng = np.random.default_rng(1)
    big, small = np.arange(2000) % 4 == 0, np.zeros(2000, bool)
    records = labels(rng, np.where(big, 0.75, 0.88))
    right = records[:, 0] == records[:, 1]
    small[np.concatenate([np.flatnonzero(~right)[:7], np.flatnonzero(right)[:15]])] = True
    columns = {"small": small, "big": big} | {f"x{i}": rng.random(2000) < 0.5 for i in range(8)}
    first, second = slices(records, OF_TWO, columns, SHARE)["slices"][:2]
    assert (first["column"], second["column"]) == ("big", "small")
    assert second["difference"] < first["difference"] < 0
    assert first["p_holm"] < 0.05 < second["p_holm"]


@pytest.mark.parametrize("deciding", ["accuracy", "f1"])
def test_chance_is_not_found(deciding):
    """Of 200 columns that say nothing some slice is significant in 6 of 200 runs by Fisher's test, and in 7 of 100 by
    permutations (2026-11-27); 5 % are expected at most. Here of fewer."""
    rng, significant, runs = np.random.default_rng(2), 0, RUNS if deciding == "accuracy" else RUNS // 2
    for _ in range(runs):
        records = labels(rng, np.full(300, 0.8))
        columns = {f"x{i}": rng.permutation(300) < 60 + 30 * (i % 5) for i in range(COLUMNS)}
        found = slices(records, OF_TWO, columns, SHARE, deciding, seed=int(rng.integers(1 << 30)))
        assert found["tests"] == COLUMNS
        significant += min(each["p_holm"] for each in found["slices"]) < 0.05
    assert significant <= (0.08 * runs if RUNS == 200 else 6)


# --- p


def test_of_a_share_p_is_fishers():
    rng = np.random.default_rng(3)
    records = labels(rng, np.full(400, 0.8))
    columns = {f"x{i}": rng.integers(0, 3, 400) for i in range(4)}
    right = records[:, 0] == records[:, 1]
    for each in slices(records, OF_TWO, columns, SHARE)["slices"]:
        mask = columns[each["column"]].astype(str) == each["value"]
        table = [[(right & mask).sum(), (~right & mask).sum()], [(right & ~mask).sum(), (~right & ~mask).sum()]]
        assert each["p"] == pytest.approx(stats.fisher_exact(table).pvalue, abs=1e-12)
        assert each["n"] == mask.sum()


@pytest.mark.parametrize(("n", "digits"), [(120, 1), (120, 9)])
def test_of_other_metrics_p_is_that_of_permutations(n, digits):
    """scipy's, of means with ties and without; ENOUGH draws tell it to a fifth, 4 of which are allowed."""
    rng = np.random.default_rng(4)
    for shift in (0.0, 0.1, 0.2, 0.3):
        mask = rng.random(n) < 0.3
        values = (rng.random(n) - shift * mask).round(digits)
        records = np.stack([values, np.ones(n)], axis=1)
        found = slices(records, MEAN, {"it": mask})["slices"]
        theirs = stats.permutation_test(
            (values[mask], values[~mask]),
            lambda x, y, axis: np.abs(x.mean(axis) - y.mean(axis)),
            vectorized=True,
            alternative="greater",
            rng=0,
        )
        assert found[0]["p"] == pytest.approx(theirs.pvalue, rel=0.9, abs=3 / DRAWS)
        assert found[0]["p"] == found[1]["p"]


def test_p_of_permutations_is_even_where_nothing_differs():
    rng, p = np.random.default_rng(5), []
    for seed in range(100):
        records = np.stack([rng.exponential(size=60), np.ones(60)], axis=1)
        p.append(slices(records, MEAN, {"it": np.arange(60) < 25}, seed=seed)["slices"][0]["p"])
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert 0 < np.mean(np.array(p) < 0.1) < 0.22


def test_of_many_slices_more_is_drawn():
    """So that one of them can be significant."""
    rng = np.random.default_rng(6)
    bad = np.arange(600) % 3 == 0
    records = labels(rng, np.where(bad, 0.5, 0.95))
    columns = {f"x{i}": rng.random(600) < 0.5 for i in range(60)} | {"bad": bad}
    found = slices(records, OF_TWO, columns, deciding="f1")
    assert found["tests"] == 61
    assert found["slices"][0]["column"] == "bad"
    assert found["slices"][0]["p_holm"] == pytest.approx(61 / (61 * SMALLEST + 1))


def test_the_correction_is_statsmodels_over_ways_to_split():
    """Yes and no are one question, and so is the same column again."""
    rng = np.random.default_rng(7)
    records = labels(rng, np.full(200, 0.8))
    flag = rng.random(200) < 0.5
    columns = {"flag": flag, "again": np.where(flag, "no", "yes"), "three": rng.integers(0, 3, 200)}
    found = slices(records, OF_TWO, columns, SHARE)
    assert found["tests"] == 4
    assert len(found["slices"]) == 7
    p = {
        ("flag" if each["column"] == "again" else each["column"]) + each["value"] * (each["column"] == "three"): each
        for each in found["slices"]
    }
    expected = multipletests([each["p"] for each in p.values()], method="holm")[1]
    assert [each["p_holm"] for each in p.values()] == pytest.approx(expected, abs=1e-12)


def test_a_slice_is_the_same_in_any_order_of_rows_and_beside_other_columns():
    rng = np.random.default_rng(9)
    values, kind, size = rng.exponential(size=200), rng.integers(0, 3, 200), rng.random(200)

    def found(order, **more):
        records = np.stack([values[order], np.ones(200)], axis=1)
        columns = {name: own[order] for name, own in (more | {"kind": kind, "size": size}).items()}
        return {(each["column"], each["value"]): each["p"] for each in slices(records, MEAN, columns)["slices"]}

    usual = found(np.arange(200))
    assert len(usual) == 7
    assert found(rng.permutation(200)) == usual
    assert found(np.arange(200), first=rng.random(200)).items() >= usual.items()
    assert found(np.arange(200), alike=kind, **{"\ud800": rng.random(200)}).items() >= usual.items()


# --- columns


def test_numbers_that_are_mostly_the_largest_are_two_slices():
    """As lengths are where most texts are cut."""
    assert labels_of([100] * 240 + [*range(1, 61)]).tolist() == ["(60, 100]"] * 240 + ["[1, 60]"] * 60


def test_columns_that_are_no_slices_are_said():
    rng = np.random.default_rng(8)
    records = labels(rng, np.full(200, 0.8))
    columns = {
        "text": [f"a text {i}" for i in range(200)],
        "row": list(range(1, 201)),
        "language": ["en"] * 200,
        "kind": ["a"] * 100 + ["b"] * 85 + ["c"] * 15,
        "rare": ["x"] * (200 - FEWEST + 1) + ["y"] * (FEWEST - 1),
    }
    found = slices(records, OF_TWO, columns, SHARE)
    assert found["skipped"] == {
        "text": "has 200 different values",
        "row": "numbers the examples",
        "language": "has one value only",
    }
    assert found["too_small"] == {"kind": 1, "rare": 2}
    assert {(each["column"], each["value"]) for each in found["slices"]} == {("kind", "a"), ("kind", "b")}
    nothing = slices(records, OF_TWO, {"text": columns["text"]}, SHARE)
    assert (nothing["slices"], nothing["tests"]) == ([], 0)


def test_numbers_are_cut_into_quartiles():
    values = np.random.default_rng(9).permutation(np.arange(100) * 7.5)
    for given in (values, values.tolist(), [str(each) for each in values]):
        labels, counts = np.unique(labels_of(given), return_counts=True)
        assert {*labels} == {"[0, 180]", "(180, 367.5]", "(367.5, 555]", "(555, 742.5]"}
        assert counts.tolist() == [25] * 4
    some = labels_of(["", None, " ", float("nan"), *values.tolist()])
    assert some[:4].tolist() == [EMPTY] * 4
    assert {*some[4:]} == {*labels}
    often_zero = labels_of(np.where(np.arange(100) < 80, 0, values))
    assert (often_zero[:80] == "[0, 0]").all()
    assert len({*often_zero}) == 2
    assert {*labels_of(["a", "a ", " ", None] * 10)} == {"a", EMPTY}
    assert {*labels_of([1, 2, 5] * 10)} == {"1", "2", "5"}  # few numbers are values
    assert {*labels_of(["1", "inf", "2"] * 10)} == {"1", "inf", "2"}


@pytest.mark.parametrize("unit", [1, 1000, 1e-6])
def test_large_numbers_that_are_close_are_in_different_quartiles(unit):
    """As times within an hour are; the names of quartiles tell them apart."""
    times = (1_700_000_000 + np.random.default_rng(11).permutation(3600)[:400]) * unit
    assert np.unique(labels_of(times), return_counts=True)[1].tolist() == [100] * 4
    records = np.ones((400, 2), np.int64)
    third = (np.median(times) < times) & (times <= np.quantile(times, 0.75))
    records[third, 1] = 0
    worst = slices(records, OF_TWO, {"time": times}, SHARE)["slices"][0]
    assert (worst["n"], worst["inside"], worst["outside"]) == (100, 0, 1)


def test_a_column_of_another_length():
    with pytest.raises(DataError, match="column 'city' has 3 values, and there are 30 examples"):
        slices(np.ones((30, 2), np.int64), OF_TWO, {"city": ["a"] * 3})
    with pytest.raises(DataError, match="no examples to score"):
        slices(np.ones((0, 2), np.int64), OF_TWO, {})


def test_what_is_not_defined_is_not_tested():
    """In one of three slices no example counts."""
    third = np.arange(150) % 3
    records = np.stack([np.random.default_rng(10).random(150), third > 0], axis=1)
    found = slices(records, MEAN, {"third": third, "half": np.arange(150) < 75})
    assert found["tests"] == 3
    last = found["slices"][-1]
    assert (last["value"], last["inside"], last["difference"], last["p"], last["p_holm"]) == (
        "0",
        None,
        None,
        None,
        None,
    )
    assert last["reason"] == "mean is not defined inside or outside"
    assert last["outside"] == pytest.approx(found["value"])
    assert all("reason" not in each and each["p_holm"] is not None for each in found["slices"][:-1])

"""Groups: gaps against fairlearn's, AUCs against scikit-learn's, intervals and p-values against simulations.

Of the 1,000 random cases, and of the 1,000 simulations, a part; all of them with MINILM_EVERY=1, which takes minutes.
"""

import json
import math
import os

import numpy as np
import pytest
from fairlearn import metrics as fairlearn
from scipy import stats
from sklearn.metrics import f1_score, roc_auc_score

from minilm.errors import DataError
from minilm.metrics.group_gaps import compared, difference, ratio, worst
from minilm.metrics.group_ranking import auc, auc_interval, rankings
from minilm.metrics.groups import _cell, group_lines, group_scores, memberships

EVERY = os.environ.get("MINILM_EVERY") == "1"
CASES, SIMULATIONS = (1000, 1000) if EVERY else (20, 200)
RATES = ("selection_rate", "true_positive_rate", "false_positive_rate", "accuracy")


pytestmark = pytest.mark.filterwarnings("error")  # nothing here warns


@pytest.fixture
def few_draws(monkeypatch):
    """Where it is not the intervals that are looked at."""
    monkeypatch.setattr("minilm.metrics.group_gaps.DRAWS", 20)
    monkeypatch.setattr("minilm.metrics.intervals.DRAWS", 20)


def case(rng, n=None):
    """Labels, predictions, a group each; often with equal rates, and with groups of one example."""
    n = int(rng.integers(2, 80)) if n is None else n
    gold = rng.random(n) < rng.choice([0.2, 0.5, 0.9])
    predicted = rng.random(n) < rng.choice([0, 0.3, 0.7, 1], p=[0.05, 0.45, 0.45, 0.05])
    gold[0] |= not (gold | predicted).any()  # a label that is nowhere is refused
    return gold.astype(int), predicted.astype(int), rng.choice([*"abcd"], n, p=[0.5, 0.3, 0.15, 0.05])


def rates_by_hand(gold, predicted, inside):
    """{rate: {group: value}} of those that are defined."""
    of = {
        "selection_rate": lambda own: predicted[own] == 1,
        "true_positive_rate": lambda own: predicted[own & (gold == 1)] == 1,
        "false_positive_rate": lambda own: predicted[own & (gold == 0)] == 1,
        "accuracy": lambda own: predicted[own] == gold[own],
    }
    found = {rate: {name: hits(own) for name, own in inside.items()} for rate, hits in of.items()}
    return {rate: {name: float(own.mean()) for name, own in each.items() if len(own)} for rate, each in found.items()}


def values(found):
    return {name: own["value"] for name, own in found["metrics"].items()}


def test_gaps_are_fairlearns(few_draws):
    """Also where a group has no positives or no negatives: there fairlearn, which says 0 of the rate, has the same gap
    of the other groups."""
    rng, undefined = np.random.default_rng(0), 0
    for _ in range(CASES):
        gold, predicted, group = case(rng)
        if len(np.unique(group)) == 1:
            continue
        found = values(group_scores(gold, predicted, None, group, 1, fewest=1))
        whole = {"sensitive_features": group}
        expected = fairlearn.demographic_parity_difference(gold, predicted, **whole)
        assert found["demographic_parity_difference"] == pytest.approx(expected, abs=1e-12)
        expected = fairlearn.demographic_parity_ratio(gold, predicted, **whole)
        own = found["demographic_parity_ratio"]
        assert math.isnan(expected) if own is None else own == pytest.approx(expected, abs=1e-12)
        frame = fairlearn.MetricFrame(
            metrics=lambda a, b: np.mean(a == b), y_true=gold, y_pred=predicted, sensitive_features=group
        )
        assert found["accuracy_difference"] == pytest.approx(frame.difference(), abs=1e-12)
        assert found["worst_group_accuracy"] == pytest.approx(frame.group_min(), abs=1e-12)
        gaps = []
        for label, name in ((1, "equal_opportunity_difference"), (0, None)):
            kept = np.isin(group, np.unique(group[gold == label]))
            undefined += not kept.all()
            if len(np.unique(group[kept])) < 2:
                assert name is None or found[name] is None
                assert found["equalized_odds_difference"] is None
                break
            rates = gold[kept], predicted[kept]
            if label == 1:
                gaps.append(fairlearn.equal_opportunity_difference(*rates, sensitive_features=group[kept]))
                assert found[name] == pytest.approx(gaps[0], abs=1e-12)
            elif kept.all() and np.isin(group, np.unique(group[gold == 1])).all():
                gaps.append(fairlearn.equalized_odds_difference(*rates, sensitive_features=group))
                assert found["equalized_odds_difference"] == pytest.approx(gaps[1], abs=1e-12)
    assert undefined > CASES / 10


def test_gaps_by_hand(few_draws):
    """Half of the cases are of groups that overlap, and in half rates of few are left out."""
    rng = np.random.default_rng(1)
    for number in range(1000 if EVERY else 300):
        gold, predicted, group = case(rng)
        inside = {name: group == name for name in np.unique(group).tolist()}
        if number % 2:
            inside = {name: rng.random(len(gold)) < 0.4 for name in "xyz"}
        kinds, kind = np.unique(np.stack([*inside.values()], axis=1), axis=0, return_inverse=True)
        rates = rates_by_hand(gold, predicted, inside)
        among = {rate: np.ones(len(gold), bool) for rate in RATES}
        among |= {"true_positive_rate": gold == 1, "false_positive_rate": gold == 0}
        fewest = number // 2 % 2 * 8
        for rate in RATES:
            hit = gold == predicted if rate == "accuracy" else predicted == 1
            by = {
                name: own for name, own in rates[rate].items() if (inside[name] & among[rate]).sum() >= max(1, fewest)
            }
            own = compared(hit, among[rate], kinds, kind, fewest, rng)
            if len(by) < 2:
                assert own is None
                continue
            names = [*inside]
            found = difference(names, own)
            assert found["value"] == pytest.approx(max(by.values()) - min(by.values()), abs=1e-12)
            assert by[found["highest"]] - by[found["lowest"]] == pytest.approx(found["value"], abs=1e-12)
            assert found["low"] <= found["value"] <= found["high"]
            assert found["n"] == (among[rate] & np.any([inside[name] for name in by], axis=0)).sum()
            low = worst(names, own)
            assert low["value"] == pytest.approx(min(by.values()), abs=1e-12) == by[low["group"]]
            part = ratio(names, own)
            if max(by.values()) == 0:
                assert part["value"] is None
                assert part["reason"]
            else:
                assert part["value"] == pytest.approx(min(by.values()) / max(by.values()), abs=1e-12)
                assert part["value"] == 0 or part["low"] <= part["value"] <= part["high"]


def test_where_fairlearn_says_zero():
    """A group without positives: fairlearn has a true-positive rate of 0 there, and so a gap of 1; here it is none."""
    gold, predicted, group = np.array([1, 1, 0, 0, 1, 0]), np.array([1, 1, 1, 0, 1, 0]), np.array([*"aabbcc"])
    assert fairlearn.equal_opportunity_difference(gold, predicted, sensitive_features=group) == 1
    found = group_scores(gold, predicted, None, group, 1, fewest=1)
    assert found["metrics"]["equal_opportunity_difference"]["value"] == 0  # between a and c
    own = found["groups"]["b"]["true_positive_rate"]
    assert (own["value"], own["n"], own["reason"]) == (None, 0, "of no examples")
    assert [note for note in found["notes"] if note.startswith("left out of gaps in true positive rate")]
    alone = group_scores(gold[:4], predicted[:4], None, group[:4], 1, fewest=1)["metrics"]
    for name in ("equal_opportunity_difference", "equalized_odds_difference"):
        assert alone[name]["value"] is alone[name]["low"] is None
        assert "fewer than two groups" in alone[name]["reason"]


def test_of_each_group():
    rng = np.random.default_rng(2)
    gold, predicted, group = case(rng, 600)
    group = np.where(np.arange(600) < 10, "few", group)
    found = group_scores(gold, predicted, None, group, 1)["groups"]
    assert [*found] == ["a", "b", "c", "d", "few"]
    by = rates_by_hand(gold, predicted, {name: group == name for name in found})
    for name, row in found.items():
        own = group == name
        assert row["n"] == own.sum()
        assert row["positive"]["value"] == pytest.approx(gold[own].mean())
        assert row["f1"]["value"] == pytest.approx(f1_score(gold[own], predicted[own], zero_division=0))
        for rate in RATES:
            assert row[rate]["value"] == (None if name not in by[rate] else pytest.approx(by[rate][name]))
            if row[rate]["n"] >= 20:
                hits = round(row[rate]["value"] * row[rate]["n"])
                ends = stats.binomtest(hits, row[rate]["n"]).proportion_ci(method="wilson")
                assert (row[rate]["low"], row[rate]["high"]) == pytest.approx((ends.low, ends.high), abs=1e-12)
            else:
                assert row[rate]["low"] is None
                assert row[rate]["reason"] in ("too few", "of no examples")
    assert found["a"]["f1"]["low"] < found["a"]["f1"]["value"] < found["a"]["f1"]["high"]
    assert found["few"]["f1"]["reason"] == "too few"
    none = group_scores(np.repeat([1, 0], 30), np.repeat([1, 0], 30), None, np.repeat(["a", "b"], 30), 1)
    assert none["groups"]["b"]["f1"]["value"] is None


def test_of_several_labels():
    """Each may be the positive one against the rest, with the accuracy of all; without one there is only that."""
    rng = np.random.default_rng(3)
    gold, predicted = rng.choice([*"xyz"], (2, 400))
    group = rng.choice([*"ab"], 400)
    found = group_scores(gold, predicted, None, group)
    assert [*found["metrics"]] == ["accuracy_difference", "worst_group_accuracy"]
    assert [*found["groups"]["a"]] == ["n", "accuracy"]
    for positive in "xyz":
        one = group_scores(gold, predicted, None, group, positive)
        assert one["groups"]["a"]["accuracy"]["value"] == (gold == predicted)[group == "a"].mean()
        expected = fairlearn.equalized_odds_difference(
            gold == positive, predicted == positive, sensitive_features=group
        )
        assert one["metrics"]["equalized_odds_difference"]["value"] == pytest.approx(expected, abs=1e-12)
    assert any("have the label" in note for note in one["notes"])
    assert not any("have the label" in note for note in found["notes"])


# --- intervals of gaps, and p


def planted(rng, gap, n=500, tpr=0.9):
    """Two groups of n, half of each positive."""
    gold, group = np.tile([1, 0], n), np.repeat(["a", "b"], n)
    chance = np.where(gold == 0, 0.2, np.where(group == "a", tpr, tpr - gap))
    return gold, (rng.random(2 * n) < chance).astype(int), group


def covered(true, simulations, draw):
    """How often the interval of a gap in a rate holds the true one."""
    hits = 0
    for seed in range(simulations):
        hit, kind, groups = draw(np.random.default_rng(seed))
        own = compared(hit, np.ones(len(hit), bool), np.eye(groups) > 0, kind, 1, np.random.default_rng(seed + 10**6))
        found = difference([*map(str, range(groups))], own)
        hits += found["low"] <= true <= found["high"]
    return hits / simulations


def test_a_planted_gap_is_covered():
    """Of 0.2 in the true-positive rate, by 95 % of intervals."""
    hits, wide, sure, simulations = 0, 0, 0, SIMULATIONS if EVERY else 100
    for seed in range(simulations):
        gold, predicted, group = planted(np.random.default_rng(seed), 0.2)
        found = group_scores(gold, predicted, None, group, 1, seed=seed)["metrics"]
        own = found["equal_opportunity_difference"]
        hits += own["low"] <= 0.2 <= own["high"]
        wide += own["high"] - own["low"]
        sure += own["p"] < 0.01
    assert sure / simulations > 0.99
    low, high = (0.93, 0.97) if EVERY else (0.88, 0.995)
    assert low <= hits / simulations <= high
    assert wide / simulations == pytest.approx(2 * 1.96 * math.sqrt((0.9 * 0.1 + 0.7 * 0.3) / 250), rel=0.05)


def test_no_gap_is_covered_though_it_is_biased(monkeypatch):
    """Between ten groups that do not differ the gap is 0.1 or more; its interval holds 0 in 95 %, and in more where
    groups are few: the bias is allowed for."""

    monkeypatch.setattr("minilm.metrics.group_gaps.DRAWS", 1000)

    def draw(rng):
        return rng.random(1500) < 0.8, np.repeat(np.arange(10), 150), 10

    bound = 3 * math.sqrt(0.05 * 0.95 / SIMULATIONS)
    assert 0.95 - bound <= covered(0, SIMULATIONS, draw) <= 0.95 + bound + 0.01

    def two(rng):
        return rng.random(200) < 0.98, np.repeat(np.arange(2), 100), 2

    assert covered(0, SIMULATIONS, two) >= 0.95 - bound


def test_rates_of_one_have_an_interval():
    own = group_scores(np.ones(80), np.ones(80), None, np.repeat([*"ab"], 40), 1.0)["metrics"]["accuracy_difference"]
    assert (own["value"], own["low"], own["p"]) == (0, 0, 1)
    assert 0.05 < own["high"] < 0.2


def test_p_is_uniform_where_no_group_differs(monkeypatch):
    """Of three groups, one of them small, with other shares of positives; also where they overlap."""
    monkeypatch.setattr("minilm.metrics.group_gaps.DRAWS", 499)
    names = ("demographic_parity_difference", "equal_opportunity_difference", "equalized_odds_difference")
    found = []
    for seed in range(SIMULATIONS):
        rng = np.random.default_rng(seed)
        first = rng.random(700) < 0.5
        inside = {"a": first, "b": ~first, "c": rng.random(700) < 0.2}
        gold = (rng.random(700) < 0.4).astype(int)
        predicted = (rng.random(700) < np.where(gold == 1, 0.7, 0.3)).astype(int)
        kinds, kind = np.unique(np.stack([*inside.values()], axis=1), axis=0, return_inverse=True)
        rates = [compared(predicted == 1, among, kinds, kind, 1, rng) for among in (gold >= 0, gold == 1, gold == 0)]
        sets = rates[:1], rates[1:2], rates[1:]
        found.append([difference([*"abc"], *own)["p"] for own in sets])
    for name, p in zip(names, np.array(found).T, strict=True):
        assert stats.kstest(p, "uniform").pvalue > 1e-3, name
        assert abs((p <= 0.05).mean() - 0.05) < 3 * math.sqrt(0.05 * 0.95 / SIMULATIONS), name


def test_p_is_that_of_a_plain_permutation():
    rng = np.random.default_rng(4)
    gold, predicted, group = planted(rng, 0.07, n=150)
    found = group_scores(gold, predicted, None, group, 1)["metrics"]["equalized_odds_difference"]
    wide = []
    for _ in range(1500):
        shuffled = predicted.copy()
        for label in (0, 1):
            shuffled[gold == label] = rng.permutation(predicted[gold == label])
        of = [[shuffled[(gold == label) & (group == name)].mean() for name in "ab"] for label in (0, 1)]
        wide.append(max(abs(a - b) for a, b in of) >= found["value"] - 1e-12)
    assert 0.02 < found["p"] < 0.9
    assert found["p"] == pytest.approx(np.mean(wide), abs=0.05)


# --- AUCs


def by_definition(gold, score, inside):
    """Borkan et al. 2019, on scikit-learn's AUC; None where a side is empty."""
    sides = inside, np.where(inside, gold == 0, gold == 1), np.where(inside, gold == 1, gold == 0)
    return [roc_auc_score(gold[s], score[s]) if len(np.unique(gold[s])) == 2 else None for s in sides]


def test_aucs_by_definition():
    """With ties and with sides that are empty; and Jigsaw's mean of power -5."""
    rng, empty = np.random.default_rng(5), 0
    for _ in range(CASES if EVERY else 60):
        gold, _, group = case(rng)
        if len(np.unique(gold)) == 1:
            continue
        score = np.round(rng.normal(gold * rng.choice([0, 1, 5]), 1), int(rng.integers(0, 4)))
        inside = {name: group == name for name in "abcd"}
        rows = {name: {} for name in inside}
        metrics = rankings(gold == 1, score, inside, rows, fewest=1)
        expected = {name: by_definition(gold, score, own) for name, own in inside.items()}
        assert metrics["auc"]["value"] == pytest.approx(roc_auc_score(gold, score), abs=1e-12)
        for i, kind in enumerate(("subgroup_auc", "bpsn_auc", "bnsp_auc")):
            known = [own[i] for own in expected.values() if own[i] is not None]
            for name, own in expected.items():
                here = rows[name][kind]
                empty += own[i] is None
                if own[i] is None:
                    assert here["value"] is None
                    assert here["reason"] == "no positive example, or no negative one"
                else:
                    assert here["value"] == pytest.approx(own[i], abs=1e-12)
            mean = metrics[f"mean_{kind}"]
            assert mean["groups"] == len(known)
            if not known:
                assert mean["value"] is None
                continue
            with np.errstate(divide="ignore"):
                power = np.mean(np.power(known, -5.0)) ** (-1 / 5)
            assert mean["value"] == pytest.approx(power, abs=1e-12)
    assert empty > 30


def test_the_variance_of_an_auc_is_delongs():
    rng = np.random.default_rng(6)
    positive = np.repeat([True, False], [40, 70])
    score = np.round(rng.normal(positive * 1.0, 1), 1)
    a, b = score[positive], score[~positive]
    wins = (a[:, None] > b) + 0.5 * (a[:, None] == b)
    value, influence = auc(score, positive)
    assert value == pytest.approx(wins.mean(), abs=1e-12)
    delong = wins.mean(axis=1).var(ddof=1) / 40 + wins.mean(axis=0).var(ddof=1) / 70
    assert (influence**2).sum() == pytest.approx(delong, abs=1e-12)


@pytest.mark.parametrize(("true", "m", "n"), [(0.7, 100, 100), (0.9, 20, 500), (0.97, 50, 2000)])
def test_an_aucs_interval_covers(true, m, n):
    """In 95 % or more, near 1 too, where DeLong's of this many covers 90 % and less."""
    rng, hits = np.random.default_rng(7), 0
    for _ in range(SIMULATIONS):
        score = np.concatenate([rng.normal(stats.norm.ppf(true) * 2**0.5, 1, m), rng.normal(0, 1, n)])
        low, high = auc_interval(auc(score, np.arange(m + n) < m)[0], m, n)
        hits += low <= true <= high
    assert hits / SIMULATIONS >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / SIMULATIONS)


def test_ends_of_an_aucs_interval():
    assert auc_interval(1, 30, 40)[1] == 1
    assert 0.85 < auc_interval(1, 30, 40)[0] < 1
    assert auc_interval(0, 30, 40) == pytest.approx([1 - end for end in auc_interval(1, 40, 30)][::-1], abs=1e-9)
    low, high = auc_interval(0.5, 5000, 5000)
    assert (low, high) == pytest.approx((0.5 - 1.96 * 0.5774 / 100, 0.5 + 1.96 * 0.5774 / 100), abs=1e-3)


def test_a_mean_aucs_interval_covers(few_draws):
    """Of the same model on new examples: five groups whose negatives score higher by a little more each."""
    shift = np.arange(5) * 0.2

    def found(seed, each):
        rng = np.random.default_rng(seed)
        group, gold = np.repeat(np.arange(5), each), np.tile([0, 1], each * 5 // 2)
        score = rng.normal(gold * 1.5 + (1 - gold) * shift[group], 1)
        return group_scores(gold, gold, score, group.astype(str), 1)["metrics"]["mean_subgroup_auc"]

    true = np.mean(stats.norm.cdf((1.5 - shift) / 2**0.5) ** -5.0) ** (-1 / 5)
    simulations = 400 if EVERY else 40
    ends = [found(seed, 120) for seed in range(simulations)]
    hits = np.mean([own["low"] <= true <= own["high"] for own in ends])
    assert 0.95 - 3 * math.sqrt(0.05 * 0.95 / simulations) <= hits
    spread = np.std([own["value"] for own in ends])
    assert np.mean([own["high"] - own["low"] for own in ends]) == pytest.approx(3.92 * spread, rel=0.3)


# --- what goes in, and what comes out


def test_the_two_layouts_are_one():
    gold, predicted, group = case(np.random.default_rng(8), 300)
    score = np.random.default_rng(9).random(300)
    columns = {name: (group == name).astype(int) for name in "abcd"}
    one, other = (group_scores(gold, predicted, score, each, 1) for each in (group, columns))
    assert one == other
    assert one == group_scores(gold, predicted, score, group.tolist(), 1)
    assert one["metrics"]["demographic_parity_difference"]["n"] == sum(
        own["n"] for own in one["groups"].values() if own["n"] >= 20
    )


def test_memberships():
    for empty in ("", " ", None, math.nan):
        found = memberships(["x", empty, "y", " x "])
        assert {name: own.tolist() for name, own in found.items()} == {
            "x": [True, False, False, True],
            "y": [False, False, True, False],
        }
    found = memberships({"x": ["1", "0", "1.0"], "y": [True, False, False], "z": [0, 0, 0]})
    assert {name: own.sum() for name, own in found.items()} == {"x": 2, "y": 1, "z": 0}


@pytest.mark.parametrize(
    ("groups", "more", "said"),
    [
        (["", ""], {}, "no example is in a group"),
        ({"x": [0, 0]}, {}, "no example is in a group"),
        ({}, {}, "no example is in a group"),
        ({"x": ["1", "maybe"]}, {}, "group column 'x' holds 'maybe' in row 2; give 0 or 1"),
        (["a"], {}, "2 labels, 2 predictions and 1 rows of groups"),
        ([*"ab"], {"positive": "1"}, "positive label '1' is neither in gold nor predicted"),
        ([*"ab"], {"score": [0.1, math.nan]}, "give each example one score, a finite number"),
        ([*"ab"], {"score": [0.1]}, "give each example one score"),
    ],
)
def test_what_is_refused(groups, more, said):
    with pytest.raises(DataError, match=said):
        group_scores([0, 1], [0, 1], more.get("score"), groups, more.get("positive", 1))
    with pytest.raises(DataError, match="1,200 different groups; give a column of at most 1,000"):
        memberships([str(i) for i in range(1200)])


def test_lines_and_json():
    rng = np.random.default_rng(10)
    gold, predicted, _ = case(rng, 400)
    inside = {
        "everyone": np.ones(400, int),
        "a\nlong name of a group": rng.integers(0, 2, 400),
        "few": np.arange(400) < 9,
    }
    found = group_scores(gold, predicted, rng.random(400), inside, 1)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    lines = group_lines(found)
    assert all("\n" not in line and (len(line) <= 130 or line.startswith("note ")) for line in lines)
    assert sum(line.startswith("note ") for line in lines) == len(found["notes"])
    assert sum(line.startswith("few  ") and " too few" in line for line in lines) == 2
    assert (
        _cell({"value": 0.6, "low": None, "high": None, "n": 100, "reason": "too few"}) == "60.0 too few"
    )  # of a side
    assert _cell({"value": 1.0, "low": None, "high": None, "n": 100, "reason": "resamples all equal"}) == "100.0"
    assert sum(line.startswith("a long name of a gr…") for line in lines) == 2
    assert ", highest " in next(line for line in lines if line.startswith("equalized odds difference"))
    notes = "\n".join(found["notes"])
    for said in ("two of them meet", "biased upwards", "labels may be biased", "Kleinberg", "in several groups: "):
        assert said in notes, said
    assert "left out of gaps in accuracy, as the rate is over fewer than 20 examples: 1 (few)" in notes
    alone = group_scores(gold, predicted, None, {"a": np.ones(400, int)}, 1)
    assert "accuracy difference                   -  fewer than two groups have enough examples" in group_lines(alone)


def test_groups_that_are_not_shown_are_counted():
    """With those that have an example accuracy is no lower than of those shown."""
    gold, inside = np.arange(80) % 2, {f"g{i}": np.arange(80) % 32 == i for i in range(32)}
    predicted = np.where(np.arange(80) % 32 < 2, gold, 1 - gold)
    found = group_scores(gold, predicted, None, inside | {"e": np.zeros(80, int), "f": np.zeros(80, int)}, 1)
    lines = group_lines(found)
    assert sum(line.startswith("g") and line[1].isdigit() for line in lines) == 30
    assert not any(line.startswith(("g0 ", "g1 ", "e ", "f ")) for line in lines)
    at = lines.index("and 2 more groups with no lower accuracy")
    assert lines[at + 1] == "and 2 more groups without examples"

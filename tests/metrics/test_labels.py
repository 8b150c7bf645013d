"""Metrics of labels and probabilities against scikit-learn's, on weighted examples with ties and with empty classes.

MINILM_EVERY=1 takes all 1,000 cases of each kind, which is minutes.
"""

import os
import warnings

import numpy as np
import pytest
from sklearn import metrics

from minilm.errors import DataError
from minilm.metrics.intervals import with_intervals
from minilm.metrics.labels import (
    WHY_EACH,
    label_set_records,
    probability_records,
    weighted_each_label,
    weighted_each_of_sets,
    weighted_label_set_probabilities,
    weighted_label_set_table,
    weighted_label_table,
    weighted_probabilities,
    why_label_sets,
    why_labels,
    why_probabilities,
)

pytestmark = pytest.mark.filterwarnings("error")  # nothing of ours warns
CASES = 1000 if os.environ.get("MINILM_EVERY") == "1" else 40
AVERAGES = ("micro", "macro", "weighted")


def reference(function, *args, **options):
    with warnings.catch_warnings(action="ignore"):
        return function(*args, **options)


def drawn(seed, others=0.3):
    """CASES of (labels, gold, predicted, probabilities with ties, weights (2, n) of which some are 0, positive)."""
    rng = np.random.default_rng(seed)
    for _ in range(CASES):
        labels, n = int(rng.integers(2, 6)), int(rng.integers(1, 40))
        chances = rng.multinomial(int(rng.integers(2, 30)), rng.dirichlet(np.ones(labels)), n).astype(np.float64)
        chances /= chances.sum(axis=1, keepdims=True)
        gold = rng.integers(0, rng.integers(1, labels + 1) + (rng.random() < others), n)
        weights = rng.integers(0, 4, (2, n))
        weights[:, rng.integers(n)] += 1
        yield labels, gold, chances.argmax(axis=1), chances, weights, int(rng.integers(2))


def drawn_sets(seed):
    """CASES of (held, probabilities with ties, weights (2, n))."""
    rng = np.random.default_rng(seed)
    for _ in range(CASES):
        n, labels = int(rng.integers(1, 40)), int(rng.integers(2, 5))
        held = rng.random((n, labels)) < rng.random()
        weights = rng.integers(0, 4, (2, n))
        weights[:, rng.integers(n)] += 1
        yield held, rng.integers(0, 11, (n, labels)) / 10, weights


def one_of(weights):
    """[(a row, its weights)]: by turns the first, or the second."""
    row = int(weights.sum()) % 2
    return [(row, weights[row])]


OF_NOTHING = {"mcc", "f1", "precision", "recall", "micro_f1"}


def same(found, expected, row):
    """NaN where it is expected, and otherwise equal to 1e-12."""
    values = {name: float(each[row]) for name, each in found.items() if name in expected}
    for name in OF_NOTHING & {*values}:
        if np.isnan(values[name]):  # which scikit-learn counts as 0
            values[name] = 0.0
    assert values == pytest.approx(expected, abs=1e-12, rel=0, nan_ok=True)


def averages(gold, said, weight):
    found = {}
    for how in AVERAGES:
        rates = metrics.precision_recall_fscore_support
        own = reference(rates, gold, said, average=how, sample_weight=weight, zero_division=0)
        found |= dict(zip((f"{how}_precision", f"{how}_recall", f"{how}_f1"), own[:3], strict=True))
    return found


def of_each(gold, said, weight, labels):
    rates = metrics.precision_recall_fscore_support
    own = reference(rates, gold, said, labels=range(labels), sample_weight=weight, zero_division=np.nan, average=None)
    return {
        f"{name} {i}": each[i]
        for name, each in zip(("precision", "recall", "f1"), own, strict=False)
        for i in range(labels)
    }


# --- labels


def test_labels():
    for labels, gold, said, _, weights, positive in drawn(1):
        records = np.stack([gold, said], axis=1)
        found = weighted_label_table(records, weights, labels, positive)
        each = weighted_each_label(records, weights, labels)
        for row, weight in one_of(weights):
            taken = weight > 0  # scikit-learn counts a label without weight among those that occur
            sides, weight = (gold[taken], said[taken]), weight[taken]
            expected = averages(*sides, weight) | {
                "accuracy": metrics.accuracy_score(*sides, sample_weight=weight),
                "balanced_accuracy": reference(metrics.balanced_accuracy_score, *sides, sample_weight=weight),
                "mcc": reference(metrics.matthews_corrcoef, *sides, sample_weight=weight),
                "kappa": reference(metrics.cohen_kappa_score, *sides, sample_weight=weight),
            }
            same(found, expected, row)
            same(each, of_each(*sides, weight, labels), row)
        assert set(found) - set(expected) == ({"f1", "precision", "recall"} if labels == 2 else set())


def test_label_sets():
    for held, chances, weights in drawn_sets(2):
        said = chances > 0.5
        records = np.hstack([held, said])
        found = weighted_label_set_table(records, weights)
        each = weighted_each_of_sets(records, weights)
        for row, weight in one_of(weights):
            expected = averages(held, said, weight)
            same(found, expected | {"subset_accuracy": metrics.accuracy_score(held, said, sample_weight=weight)}, row)
            same(each, of_each(held, said, weight, held.shape[1]), row)


# --- probabilities


def areas(held, chances, weight):
    """Macro averages; scikit-learn's average precision of a label that no example has is 0."""
    options = {"average": "macro", "sample_weight": weight}
    none = not held[weight > 0].any(axis=0).all()
    roc = reference(metrics.roc_auc_score, held, chances, **options)
    return {
        "roc_auc": roc,
        "pr_auc": np.nan if none else reference(metrics.average_precision_score, held, chances, **options),
    }


def test_probabilities():
    """Also of gold labels that the model does not know."""
    for labels, gold, _, chances, weights, positive in drawn(3):
        found = weighted_probabilities(probability_records(gold, chances), weights, positive)
        columns = [positive] if labels == 2 else [*range(labels)]
        with_other, half = np.column_stack([chances, np.zeros(len(gold))]), 0.5 if labels == 2 else 1
        for row, weight in one_of(weights):
            options = {"labels": range(labels + 1), "sample_weight": weight}
            brier = metrics.brier_score_loss(gold, with_other, scale_by_half=False, **options)
            expected = areas(gold[:, None] == columns, chances[:, columns], weight) | {"brier": half * brier}
            known = options | {"labels": range(labels)}
            other = (gold == labels)[weight > 0].any()
            clean = np.where(gold < labels, gold, 0), chances, np.where(gold < labels, weight, 0)
            nats = reference(metrics.log_loss, clean[0], y_proba=chances, **known | {"sample_weight": clean[2]})
            same(found, expected | {"log_loss": np.nan if other else nats}, row)


def test_probabilities_as_scikit_learn_is_called():
    """Without the indicators that the test above makes: of two labels, and of several one against the rest."""
    rng = np.random.default_rng(4)
    for labels in (2, 3, 4):
        gold, weight = np.arange(50) % labels, rng.integers(0, 3, 50)
        chances = rng.dirichlet(np.ones(labels), 50)
        found = weighted_probabilities(probability_records(gold, chances), weight[None])
        options = {"sample_weight": weight}
        if labels == 2:
            own = gold, chances[:, 1]
            roc, brier = metrics.roc_auc_score(*own, **options), metrics.brier_score_loss(*own, **options)
        else:
            own = gold, chances
            roc = metrics.roc_auc_score(*own, multi_class="ovr", **options)
            brier = metrics.brier_score_loss(*own, **options)
        precision = metrics.average_precision_score(*own, **options)
        nats = metrics.log_loss(gold, y_proba=chances, **options)
        same(found, {"roc_auc": roc, "brier": brier, "pr_auc": precision, "log_loss": nats}, 0)


def test_label_set_probabilities():
    for held, chances, weights in drawn_sets(5):
        found = weighted_label_set_probabilities(label_set_records(held, chances), weights)
        for row, weight in one_of(weights):
            columns = [*zip(held.T, chances.T, strict=True)]
            nats = [
                reference(metrics.log_loss, *own[:1], y_proba=own[1], labels=[0, 1], sample_weight=weight)
                for own in columns
            ]
            brier = [reference(metrics.brier_score_loss, *own, sample_weight=weight, pos_label=True) for own in columns]
            expected = areas(held, chances, weight) | {"log_loss": np.mean(nats), "brier": np.mean(brier)}
            same(found, expected, row)


def test_sure_and_wrong_is_finite():
    records = probability_records(np.array([0, 1]), np.array([[0.0, 1.0], [0.0, 1.0]]))
    nats = metrics.log_loss([0, 1], y_proba=records[:, 1:])
    assert weighted_probabilities(records, np.ones((1, 2)))["log_loss"][0] == pytest.approx(nats, rel=1e-12)
    assert nats > 18


# --- what is undefined, and what is refused


def test_what_is_undefined_has_a_reason_and_nothing_else():
    names = ["a", "b", "c", "d", "e"]
    seen = set()
    for labels, gold, said, chances, _, positive in drawn(6):
        one = np.ones((1, len(gold)))
        records = np.stack([gold, said], axis=1)
        table = weighted_label_table(records, one, labels)
        why = why_labels(records, names[:labels])
        constant = min(len(set(gold)), len(set(said))) == 1
        assert ("mcc" in why) == constant
        undefined = {name for name, own in table.items() if np.isnan(own[0])}
        assert undefined - {"precision", "recall", "f1"} == {*why}
        each = weighted_each_label(records, one, labels)
        assert {name.split()[0] for name, own in each.items() if np.isnan(own[0])} <= {*WHY_EACH}
        records = probability_records(gold, chances)
        scores = weighted_probabilities(records, one, positive)
        reasons = why_probabilities(records, names[:labels], positive)
        assert {name for name, own in scores.items() if np.isnan(own[0])} == {*reasons}
        seen |= {*why, *reasons}
    for held, chances, _ in drawn_sets(7):
        records = label_set_records(held, chances)
        scores = weighted_label_set_probabilities(records, np.ones((1, len(held))))
        assert {name for name, own in scores.items() if np.isnan(own[0])} == {
            *why_label_sets(records, names[: held.shape[1]])
        }
    assert seen == {"mcc", "kappa", "roc_auc", "pr_auc", "log_loss"}


def test_reasons_name_the_labels():
    chances = np.full((3, 3), 1 / 3)
    found = why_probabilities(probability_records(np.array([0, 0, 3]), chances), ["a", "b", "c\n"])
    assert found["roc_auc"] == found["pr_auc"] == "no example has the label b, c "
    assert found["log_loss"] == "infinite: 1 examples have a label that the model does not know"
    only = why_probabilities(probability_records(np.array([1, 1]), np.full((2, 2), 0.5)), ["ham", "spam"])
    assert only == {"roc_auc": "every example has the label spam"}
    records = np.array([[1, 1], [1, 1]])
    assert why_labels(records, ["ham", "spam"]) == {
        "mcc": "only spam is in gold",
        "kappa": "only spam is in gold, and predicted",
    }
    assert why_labels(np.array([[2, 1], [2, 0]]), ["ham", "spam"]) == {
        "mcc": "no label that the model knows is in gold"
    }


@pytest.mark.parametrize(
    ("chances", "said"),
    [
        ([[0.5, 0.5], [np.nan, 1.0]], "example 1 (from 0) has a probability that is no number from 0 to 1"),
        ([[0.5, 0.5], [-0.1, 1.1]], "example 1 (from 0) has a probability that is no number from 0 to 1"),
        ([[0.5, 0.4], [0.5, 0.5]], "the probabilities of example 0 (from 0) do not add up to 1"),
    ],
)
def test_what_is_no_probability_is_refused(chances, said):
    with pytest.raises(DataError) as error:
        probability_records(np.array([0, 1]), np.array(chances))
    assert str(error.value) == said


def test_label_sets_need_not_add_up_but_be_numbers():
    held = np.array([[True, False]])
    assert label_set_records(held, np.array([[0.9, 0.8]])).tolist() == [[1, 0, 0.9, 0.8]]
    with pytest.raises(DataError, match="no number from 0 to 1"):
        label_set_records(held, np.array([[0.9, 1.5]]))


# --- intervals


def test_the_interval_of_an_area():
    """Near DeLong's (1988) normal one, by its closed form for placements."""
    rng = np.random.default_rng(8)
    gold = np.arange(400) % 2
    chance = 1 / (1 + np.exp(-rng.normal(gold * 1.2, 1)))
    records = probability_records(gold, np.column_stack([1 - chance, chance]))
    found = with_intervals(records, weighted_probabilities, len(gold))
    beats = (chance[gold == 1][:, None] > chance[gold == 0]).astype(float)
    spread = np.sqrt(beats.mean(axis=1).var(ddof=1) / 200 + beats.mean(axis=0).var(ddof=1) / 200)
    area = found["roc_auc"]
    assert area["value"] == pytest.approx(beats.mean(), abs=1e-12)
    assert (area["low"], area["high"]) == pytest.approx(
        (beats.mean() - 1.96 * spread, beats.mean() + 1.96 * spread), abs=0.005
    )
    for own in found.values():
        assert own["low"] < own["value"] < own["high"]


def test_the_order_of_examples_is_nothing():
    """And examples that stand there twice are one, taken twice."""
    rng = np.random.default_rng(9)
    records = probability_records(rng.integers(0, 4, 60), np.round(rng.dirichlet(np.ones(3), 60), 4))
    weights = rng.integers(0, 3, (4, 60))
    order = rng.permutation(60)
    found = weighted_probabilities(records, weights)
    again = weighted_probabilities(records[order], weights[:, order])
    twice = weighted_probabilities(np.vstack([records, records]), np.hstack([weights, weights]))
    for name, own in found.items():
        assert again[name] == pytest.approx(own, abs=1e-12, nan_ok=True)
        assert twice[name] == pytest.approx(own, abs=1e-12, nan_ok=True)

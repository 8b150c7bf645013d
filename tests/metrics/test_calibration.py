"""Calibration against torchmetrics, scikit-learn and plain loops; what was planted is recovered; thresholds against
brute force.

MINILM_EVERY=1 takes all 1,000 cases.
"""

import math
import os

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import f1_score
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from minilm.errors import DataError
from minilm.metrics.calibration import (
    best_temperature,
    calibration_scores,
    decision_threshold,
    decision_thresholds,
    ece_if_calibrated,
    equal_mass,
    equal_width,
    reliability,
    sigmoid,
    softmax,
    weighted_calibration,
)
from minilm.metrics.intervals import wilson

pytestmark = pytest.mark.filterwarnings("error")
CASES = 1000 if os.environ.get("MINILM_EVERY") == "1" else 100


def top_label(chances, gold):
    """Confidence, and whether it is right."""
    return chances.max(axis=1), chances.argmax(axis=1) == gold


def loop(confidence, holds, edges):
    """(ece, mce), example by example."""
    bins = [[] for _ in edges[1:]]
    for p, right in zip(confidence.tolist(), holds.tolist(), strict=True):
        inside = [i for i in range(len(bins)) if edges[i] < p <= edges[i + 1]]
        bins[inside[0] if inside else 0].append((p, right))
    off = [
        (len(each), abs(sum(p for p, _ in each) / len(each) - sum(right for _, right in each) / len(each)))
        for each in bins
        if each
    ]
    return sum(n * own for n, own in off) / len(confidence), max(own for _, own in off)


def drawn(seed):
    """CASES of (probabilities (n, C), gold (n,)); in every second one examples share theirs."""
    rng = np.random.default_rng(seed)
    for case in range(CASES):
        n, labels = int(rng.integers(1, 120)), int(rng.integers(2, 6))
        chances = 0.01 / labels + 0.99 * rng.dirichlet(np.full(labels, rng.uniform(0.3, 2)), n)  # none is 1
        if case % 2:
            chances = chances[rng.integers(0, max(1, n // 4), n)]
        yield chances, rng.integers(0, labels, n)


# --- how far they are off


def test_calibration_error_is_torchmetrics():
    """Where no probability is the edge of a bin: there torchmetrics puts it into the next one, and 1 into one of its
    own. It computes in fp32 what is given in float64."""
    for chances, gold in drawn(1):
        labels = chances.shape[1]
        found = calibration_scores(*top_label(chances, gold))
        for norm, name in (("l1", "ece"), ("max", "mce")):
            theirs = multiclass_calibration_error(torch.tensor(chances), torch.tensor(gold), labels, 15, norm)
            assert found[name] == pytest.approx(float(theirs), abs=1e-6)
        holds = gold == 1
        theirs = binary_calibration_error(torch.tensor(chances[:, 1]), torch.tensor(holds.astype(int)), 15)
        assert calibration_scores(chances[:, 1], holds)["ece"] == pytest.approx(float(theirs), abs=1e-6)


def test_calibration_error_is_that_of_a_loop():
    """In bins of both kinds, also where probabilities are edges of bins."""
    rng = np.random.default_rng(2)
    for case, (chances, gold) in enumerate(drawn(3)):
        confidence, holds = chances[:, 0], gold == 0
        if case % 3 == 0:
            confidence = rng.integers(0, 31, len(gold)) / 30
        found = calibration_scores(confidence, holds)
        ece, mce = loop(confidence, holds, [i / 15 for i in range(16)])
        assert (found["ece"], found["mce"]) == pytest.approx((ece, mce), abs=1e-12)
        ece, mce = loop(confidence, holds, np.quantile(confidence, [i / 15 for i in range(16)]).tolist())
        assert (found["ece_equal_mass"], found["mce_equal_mass"]) == pytest.approx((ece, mce), abs=1e-12)


def test_a_bin_holds_its_upper_edge():
    """Guo et al. 2017; so 0.2 = 3/15 is in the third bin, and what is certain in the last."""
    confidence = np.array([0.0, 0.2, 0.2000001, 0.6, 0.8, 1.0])
    curve = reliability(confidence, np.ones(6, bool), equal_width())
    assert [each.n for each in curve] == [1] * 6
    curve = reliability(np.array([0.14, 0.2, 0.95, 1.0]), np.ones(4, bool), equal_width())
    assert [each.n for each in curve] == [2, 2]


def test_the_curve_is_scikit_learns():
    """Where no confidence is an edge to the last bit, with ties and without."""
    rng = np.random.default_rng(4)
    for digits in [2, 9] * 20:
        confidence = rng.random(15 * int(rng.integers(2, 20)) + 2).round(digits) * 0.99
        holds = rng.random(len(confidence)) < confidence
        for strategy, edges in (("uniform", equal_width()), ("quantile", equal_mass(confidence))):
            curve = reliability(confidence, holds, edges)
            share, mean = calibration_curve(holds, confidence, n_bins=15, strategy=strategy)
            assert [each.share for each in curve] == pytest.approx(share.tolist(), abs=1e-12)
            assert [each.confidence for each in curve] == pytest.approx(mean.tolist(), abs=1e-12)
            assert sum(each.n for each in curve) == len(confidence)
            for each in curve:
                assert (each.low, each.high) == wilson(round(each.share * each.n), each.n)


def test_bins_of_equal_mass():
    confidence = np.random.default_rng(5).random(1500)
    curve = reliability(confidence, confidence > 0.5, equal_mass(confidence))
    assert [each.n for each in curve] == [100] * 15
    alike = reliability(np.full(30, 0.7), np.arange(30) < 21, equal_mass(np.full(30, 0.7)))
    assert [(each.n, each.share) for each in alike] == [(30, 0.7)]


def test_examples_taken_often():
    rng = np.random.default_rng(6)
    for _ in range(50):
        records = np.column_stack([rng.random(30).round(1), rng.random(30) < 0.6])
        weights = rng.integers(0, 4, (3, 30))
        found = weighted_calibration(records, weights, equal_width())
        for row, weight in enumerate(weights):
            written = calibration_scores(*np.repeat(records, weight, axis=0).T)
            for name in ("ece", "mce"):
                assert found[name][row] == pytest.approx(written[name], abs=1e-12)


def test_calibrated_probabilities_have_hardly_an_error():
    rng = np.random.default_rng(7)
    chances = softmax(rng.normal(0, 2, (200_000, 3)))
    gold = (chances.cumsum(axis=1) > rng.random((len(chances), 1))).argmax(axis=1)
    found = calibration_scores(*top_label(chances, gold))
    assert max(found["ece"], found["ece_equal_mass"]) < 0.004
    sharper = calibration_scores(*top_label(softmax(np.log(chances), 0.5), gold))
    assert min(sharper["ece"], sharper["ece_equal_mass"]) > 0.05


def test_an_error_that_is_no_accident():
    """Of 200 calibrated sets of 300 about 190 are below the 95 % quantile, and on average all are at the mean."""
    rng, edges, inside, found = np.random.default_rng(8), equal_width(), 0, []
    mean, high = ece_if_calibrated(confidence := rng.beta(4, 1, 300), edges)
    assert (mean, high) == ece_if_calibrated(confidence[::-1], edges)
    for _ in range(200):
        found.append(calibration_scores(confidence, rng.random(300) < confidence)["ece"])
        inside += found[-1] <= high
    assert 178 <= inside <= 198
    assert np.mean(found) == pytest.approx(mean, rel=0.05)
    assert calibration_scores(confidence, rng.random(300) < confidence - 0.2)["ece"] > high


# --- temperature


def nats(logits, gold, temperature):
    if gold.ndim == 2:
        return np.logaddexp(0, np.where(gold, -1, 1) * logits / temperature).mean()
    own = logits / temperature
    return (np.logaddexp.reduce(own, axis=1) - own[np.arange(len(gold)), gold]).mean()


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 1.6, 4.0])
@pytest.mark.parametrize("several", [False, True])
def test_the_temperature_is_recovered(temperature, several):
    """Within 2 % of that which labels are drawn with; and nothing near it is better."""
    rng = np.random.default_rng(9)
    logits = temperature * rng.normal(0, 2.5, (40_000, 4))
    if several:
        gold = rng.random(logits.shape) < sigmoid(logits, temperature)
    else:
        gold = (softmax(logits, temperature).cumsum(axis=1) > rng.random((len(logits), 1))).argmax(axis=1)
    found = best_temperature(logits, gold)
    assert found == pytest.approx(temperature, rel=0.02)
    least = nats(logits, gold, found)
    assert all(nats(logits, gold, found * near) > least for near in (0.5, 0.999, 1.001, 2))
    assert best_temperature(logits / found, gold) == pytest.approx(1, rel=1e-9)


def test_a_temperature_of_few_examples():
    """Of logits of any size, shifted, and by the logarithms of probabilities; unknown labels say nothing of it."""
    rng = np.random.default_rng(10)
    for case in range(100):
        logits, gold = rng.normal(0, 3, (30, 3)), rng.integers(0, 3, 30)
        gold[:20] = logits[:20].argmax(axis=1)
        found = best_temperature(logits, gold)
        least = nats(logits, gold, found)
        assert all(nats(logits, gold, t) >= least - 1e-12 for t in np.geomspace(found / 50, found * 50, 100)), case
        size = 10.0 ** rng.integers(-6, 7)
        assert best_temperature(size * (logits + 5), gold) == pytest.approx(size * found, rel=1e-6)
        assert best_temperature(np.log(softmax(logits)), gold) == pytest.approx(found, rel=1e-9)
        more = np.vstack([logits, logits]), np.concatenate([gold, np.full(30, 3)])
        assert best_temperature(*more) == pytest.approx(found, rel=1e-12)


@pytest.mark.parametrize(
    ("logits", "gold", "said"),
    [
        ([[2, 1], [0, 3]], [0, 1], "every label is predicted right"),
        ([[2, 1], [0, 3]], [1, 0], "no likelier than by chance"),
        ([[1, 1], [3, 3]], [1, 0], "every label is predicted right"),
        ([[2, -np.inf], [0, 3]], [0, 1], "not a finite number"),
        ([[2, 1], [0, 3]], [2, 2], "no examples"),
    ],
)
def test_where_there_is_no_temperature(logits, gold, said):
    with pytest.raises(DataError, match=said):
        best_temperature(np.array(logits, float), np.array(gold))


def test_probabilities_of_large_logits():
    assert softmax(np.array([[1e4, 0.0]]), 2.0).tolist() == [[1.0, 0.0]]
    assert softmax(np.array([[2.0, 0.0]]), 2.0)[0, 0] == pytest.approx(1 / (1 + math.exp(-1)), rel=1e-12)
    assert sigmoid(np.array([[-1e4, 1e4, 3.0]]), 3.0)[0].tolist() == pytest.approx([0, 1, 1 / (1 + math.exp(-1))])


# --- thresholds


def by_hand(chance, holds, threshold):
    said = chance > threshold
    return f1_score(holds, said, zero_division=0.0)


def test_a_threshold_is_that_of_brute_force():
    rng, usual = np.random.default_rng(11), 0
    for case in range(CASES):
        n = int(rng.integers(2, 30))
        chance, holds = rng.random(n).round(int(rng.integers(1, 4))), rng.random(n) < rng.random()
        threshold, value = decision_threshold(chance, holds)
        if holds.all() or not holds.any():
            assert threshold == 0.5
            assert math.isnan(value)
            continue
        levels = np.unique([0, *chance, 1])
        tried = {t: by_hand(chance, holds, t) for t in [0.5, 1.0, *((levels[1:] + levels[:-1]) / 2).tolist()]}
        assert value == pytest.approx(max(tried.values()), abs=1e-12), case
        assert value == pytest.approx(by_hand(chance, holds, threshold), abs=1e-12)
        best = [abs(t - 0.5) for t, own in tried.items() if own >= value - 1e-12]
        assert abs(threshold - 0.5) == pytest.approx(min(best), abs=1e-12)
        usual += threshold == 0.5
    assert 0 < usual < CASES


def test_thresholds_of_several_labels():
    """Each by itself; of one that no example has it stays."""
    rng = np.random.default_rng(13)
    chances = rng.random((200, 3))
    held = np.column_stack([chances[:, 0] > 0.3, chances[:, 1] > 0.8, np.zeros(200, bool)])
    thresholds, values = decision_thresholds(chances, held)
    assert thresholds == pytest.approx([0.3, 0.8, 0.5], abs=0.02)
    assert values.tolist() == pytest.approx([1, 1, np.nan], nan_ok=True)
    assert ((chances > thresholds) == held)[:, :2].all()

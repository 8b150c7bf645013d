"""Scores against hand-made cases, the libraries that count the same, and searches by brute force."""

import math
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from minilm.errors import ConfigError, DataError
from minilm.metrics import scores as module
from minilm.metrics.intervals import mean_interval
from minilm.metrics.scores import (
    LabelScores,
    answer_scores,
    at_threshold,
    best_threshold,
    classification_scores,
    confusion,
    entity_scores,
    multilabel_scores,
    normalise,
    per_label,
    per_type,
    regression_scores,
    scheme_of,
    span_scores,
    spans,
)

pytestmark = pytest.mark.filterwarnings("error")  # nothing here warns
ROOT = Path(__file__).parents[2]
SCHEMES = ("IOB1", "IOB2", "IOBES", "BILOU")


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


# --- labels

GOLD, PREDICTED = ints(1, 1, 0, 0, 1), ints(1, 0, 0, 1, 1)  # 2 true positives, 1 miss, 1 false alarm, 1 true negative


def test_two_labels_by_hand():
    expected = {"accuracy": 3 / 5, "macro_f1": (1 / 2 + 2 / 3) / 2, "mcc": (2 * 1 - 1 * 1) / 6}
    expected |= {"f1": 2 / 3, "precision": 2 / 3, "recall": 2 / 3}
    scores = classification_scores(GOLD, PREDICTED, 2)
    assert list(scores) == list(expected)
    assert scores == pytest.approx(expected, rel=1e-12)
    assert all(type(value) is float for value in scores.values())
    other = classification_scores(GOLD, PREDICTED, 2, positive=0)
    assert other == pytest.approx(expected | dict.fromkeys(("f1", "precision", "recall"), 1 / 2), rel=1e-12)


def test_f1_is_of_label_1_and_precision_is_not_recall():
    scores = classification_scores(ints(1, 1, 1, 0, 0), ints(1, 0, 0, 0, 0), 2)
    assert [scores[k] for k in ("precision", "recall", "f1")] == pytest.approx([1.0, 1 / 3, 1 / 2], rel=1e-12)


def test_a_label_that_never_occurs_does_not_lower_macro_f1():
    scores = classification_scores(ints(0, 2, 2), ints(0, 2, 2), 4)
    assert scores == {"accuracy": 1.0, "macro_f1": 1.0, "mcc": pytest.approx(1.0)}


def test_a_label_that_is_only_predicted_does():
    assert classification_scores(ints(0, 2, 2, 2), ints(0, 2, 2, 1), 3)["macro_f1"] == pytest.approx((1 + 0 + 0.8) / 3)


@pytest.mark.parametrize(("gold", "predicted"), [((0, 0), (0, 0)), ((0, 1), (0, 0)), ((1, 1), (0, 0)), ((1,), (1,))])
def test_where_a_side_is_constant_mcc_is_0(gold, predicted):
    assert classification_scores(ints(*gold), ints(*predicted), 2)["mcc"] == 0.0


def test_mcc_of_many_labels_is_gorodkins():
    rng = np.random.default_rng(0)
    for _ in range(50):
        gold, predicted = rng.integers(4, size=(2, 30))
        c = confusion(gold, predicted, 4).astype(float)
        t, p, right, s = c.sum(1), c.sum(0), np.trace(c), c.sum()
        expected = (right * s - t @ p) / math.sqrt((s * s - p @ p) * (s * s - t @ t))
        assert classification_scores(gold, predicted, 4)["mcc"] == pytest.approx(expected, abs=1e-12)


def test_rows_of_labels_by_hand():
    rows = per_label(ints(0, 0, 1, 2), ints(0, 1, 1, 1), ["ham", "spam", "news", "none"])
    assert rows == [
        LabelScores("ham", 1.0, 0.5, pytest.approx(2 / 3), 2),
        LabelScores("spam", pytest.approx(1 / 3), 1.0, 0.5, 1),
        LabelScores("news", 0.0, 0.0, 0.0, 1),
        LabelScores("none", 0.0, 0.0, 0.0, 0),
    ]
    assert type(rows[0].support) is int


def test_a_row_of_confusion_is_a_gold_label():
    table = confusion(ints(0, 0, 1, 0), ints(0, 1, 1, 1), 3)
    assert table.tolist() == [[1, 2, 0], [0, 1, 0], [0, 0, 0]]
    assert table.dtype == np.int64


@pytest.mark.parametrize(("gold", "predicted"), [((0, 4), (0, 1)), ((0, 1), (0, 4)), ((0, -100), (0, 1))])
def test_labels_are_of_their_range(gold, predicted):
    with pytest.raises(AssertionError):
        classification_scores(ints(*gold), ints(*predicted), 3)


def test_what_does_not_lie_side_by_side_is_a_bug():
    with pytest.raises(AssertionError):
        regression_scores(np.zeros(3), np.zeros((3, 1)))  # numpy would make 9 differences of it
    with pytest.raises(TypeError):
        classification_scores(ints(0, 1), np.array([0.2, 0.9]), 2)
    with pytest.raises(TypeError):
        multilabel_scores(np.array([[True]]), np.array([[0.3]]))


# --- several labels

MANY = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0]], bool)
SAID = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0]], bool)


def test_several_labels_by_hand():
    scores = multilabel_scores(MANY, SAID)
    assert list(scores) == ["micro_f1", "macro_f1", "subset_accuracy"]
    assert scores == pytest.approx({"micro_f1": 2 / 3, "macro_f1": 1 / 3, "subset_accuracy": 1 / 3}, rel=1e-12)


def test_several_labels_as_scikit_learn_counts():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(1)
    for _ in range(50):
        gold, predicted = rng.random((2, 6, 4)) < 0.3
        scores = multilabel_scores(gold, predicted)
        for name in ("micro", "macro"):
            expected = metrics.f1_score(gold, predicted, average=name, zero_division=0.0)
            assert scores[f"{name}_f1"] == pytest.approx(expected, abs=1e-12)
        assert scores["subset_accuracy"] == pytest.approx(metrics.accuracy_score(gold, predicted), abs=1e-12)


def test_one_column_is_one_label_and_not_two_classes():
    gold, predicted = np.array([[1], [1], [0], [0], [0]], bool), np.array([[1], [0], [0], [0], [0]], bool)
    scores = multilabel_scores(gold, predicted)
    assert scores == pytest.approx({"micro_f1": 2 / 3, "macro_f1": 2 / 3, "subset_accuracy": 4 / 5})


def test_no_label_anywhere_is_no_f1():
    nothing = np.zeros((2, 3), bool)
    assert multilabel_scores(nothing, nothing) == {"micro_f1": 0.0, "macro_f1": 0.0, "subset_accuracy": 1.0}


# --- numbers


def test_regression_by_hand():
    scores = regression_scores(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 3.0, 5.0]))
    assert list(scores) == ["spearman", "pearson", "rmse"]
    ranks = 4.5 / math.sqrt(5 * 4.5)  # 1, 2.5, 2.5, 4: equal values share a rank
    expected = {"spearman": ranks, "pearson": 6 / math.sqrt(5 * 8), "rmse": math.sqrt(2 / 4)}
    assert scores == pytest.approx(expected, rel=1e-12)
    assert all(type(value) is float for value in scores.values())


def test_ranks_do_not_see_a_curve():
    gold = np.arange(6, dtype=np.float32)
    scores = regression_scores(gold, -np.exp(gold))
    assert scores["spearman"] == pytest.approx(-1.0)
    assert -0.9 < scores["pearson"] < -0.5


@pytest.mark.parametrize("predicted", [[2.5] * 3, [1, 1 + 4e-16, 1], [0, 5e-324, 0]])
def test_a_constant_prediction_does_not_correlate(predicted):
    scores = regression_scores(np.arange(3.0), np.array(predicted))
    assert [scores["spearman"], scores["pearson"]] == pytest.approx([0.0, 0.0], abs=1e-12)
    flipped = regression_scores(np.array(predicted), np.arange(3.0))
    assert [flipped["spearman"], flipped["pearson"]] == pytest.approx([0.0, 0.0], abs=1e-12)


def test_one_number_has_no_correlation():
    assert regression_scores(np.ones(1), np.zeros(1)) == {"spearman": 0.0, "pearson": 0.0, "rmse": 1.0}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_prediction_that_is_no_number_is_named(bad):
    with pytest.raises(DataError, match="value 1 "):
        regression_scores(np.zeros(3), np.array([0.0, bad, 1.0]))


# --- the libraries


@pytest.mark.parametrize(
    ("library", "use"),
    [
        ("sklearn.metrics", lambda: classification_scores(GOLD, PREDICTED, 2)),
        ("sklearn.metrics", lambda: per_label(GOLD, PREDICTED, "ab")),
        ("sklearn.metrics", lambda: confusion(GOLD, PREDICTED, 2)),
        ("scipy.stats", lambda: regression_scores(np.arange(3.0), np.arange(3.0))),
        ("scipy.stats", lambda: mean_interval([0.1, 0.2])),
    ],
)
def test_a_library_that_is_missing_is_one_line(monkeypatch, library, use):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigError, match=rf"{library}.*pip install 'minilm\[eval\]'$") as caught:
        use()
    assert "\n" not in str(caught.value)


def test_scores_need_no_library_to_be_imported():
    code = "import sys, minilm.metrics.scores; print({'sklearn', 'scipy', 'torch'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert run.stdout == "set()\n"


@pytest.mark.parametrize(
    "use",
    [
        lambda: classification_scores(ints(), ints(), 2),
        lambda: multilabel_scores(np.zeros((0, 2), bool), np.zeros((0, 2), bool)),
        lambda: regression_scores(np.zeros(0), np.zeros(0)),
        lambda: entity_scores([], []),
        lambda: span_scores({}, {}),
        lambda: best_threshold({}, {}, {}),
        lambda: mean_interval([]),
    ],
)
def test_no_examples_are_an_error(use):
    with pytest.raises(DataError, match="no examples to score"):
        use()


# --- tags

WELL_FORMED = {  # PER of 2 tokens, touching PER of 1; outside; LOC of 3
    "IOB1": "I-PER I-PER B-PER O I-LOC I-LOC I-LOC",
    "IOB2": "B-PER I-PER B-PER O B-LOC I-LOC I-LOC",
    "IOBES": "B-PER E-PER S-PER O B-LOC I-LOC E-LOC",
    "BILOU": "B-PER L-PER U-PER O B-LOC I-LOC L-LOC",
}
ENTITIES = [("PER", 0, 2), ("PER", 2, 3), ("LOC", 4, 7)]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_one_sentence_in_every_scheme(scheme):
    tags = WELL_FORMED[scheme].split()
    assert scheme_of([["O"], tags]) == scheme
    assert spans(tags) == ENTITIES


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("", []),
        ("O O", []),
        ("I-A", [("A", 0, 1)]),  # begins with I
        ("O I-A I-A O", [("A", 1, 3)]),
        ("B-A I-B I-B", [("A", 0, 1), ("B", 1, 3)]),  # goes on as another type
        ("I-A I-B", [("A", 0, 1), ("B", 1, 2)]),
        ("I-A B-B", [("A", 0, 1), ("B", 1, 2)]),
        ("B-A B-A I-A", [("A", 0, 1), ("A", 1, 3)]),
        ("I-A O I-A", [("A", 0, 1), ("A", 2, 3)]),
        ("B I O B", [("_", 0, 2), ("_", 3, 4)]),  # no types
        ("B-NP-SUB I-NP-SUB", [("NP-SUB", 0, 2)]),
    ],
)
def test_ill_formed_tags_read_as_by_conlleval(tags, expected):
    assert spans(tags.split()) == expected


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("B-A O", [("A", 0, 1)]),  # does not end
        ("I-A E-A", [("A", 0, 2)]),  # does not begin
        ("E-A E-A", [("A", 0, 1), ("A", 1, 2)]),
        ("E-A I-A", [("A", 0, 1), ("A", 1, 2)]),
        ("S-A I-A E-A", [("A", 0, 1), ("A", 1, 3)]),
        ("B-A S-A", [("A", 0, 1), ("A", 1, 2)]),
        ("B-A I-A E-B", [("A", 0, 2), ("B", 2, 3)]),
    ],
)
def test_ill_formed_iobes(tags, expected):
    assert spans(tags.split()) == expected
    assert spans(tags.replace("E-", "L-").replace("S-", "U-").split()) == expected


@pytest.mark.parametrize(
    ("tags", "scheme"),
    [
        ("O O", "IOB2"),  # nothing to tell by
        ("B-A O", "IOB2"),
        ("I-A B-B", "IOB2"),  # IOB1 would write I-B
        ("O B-A I-A O I-A", "IOB2"),  # a slip in IOB2: IOB1 has no B after O
        ("I-A O I-B", "IOB1"),
        ("I-A B-A", "IOB1"),
        ("S-A O", "IOBES"),
        ("B-A E-A", "IOBES"),
        ("O U-A", "BILOU"),
        ("B-A L-A", "BILOU"),
        ("I O", "IOB1"),
    ],
)
def test_the_scheme_is_told_by_the_tags(tags, scheme):
    assert scheme_of(iter([tags.split()])) == scheme


def test_an_entity_does_not_reach_over_the_end_of_a_sequence():
    assert scheme_of([["I-A"], ["B-A"]]) == "IOB2"  # in IOB1 the second would be I
    gold = [["B-A"], ["I-A"]]
    assert entity_scores(gold, gold)["f1"] == 1.0
    assert per_type(gold, gold) == [LabelScores("A", 1.0, 1.0, 1.0, 2)]


@pytest.mark.parametrize("tag", ["PER", "X-PER", "", "-PER", "BI-PER", "b-PER", "o", "O-PER"])
def test_a_tag_of_no_scheme_is_named(tag):
    for use in (lambda: scheme_of([["O", tag]]), lambda: spans([tag]), lambda: entity_scores([[tag]], [["O"]])):
        with pytest.raises(DataError, match=f"tag '{tag}' is neither O nor"):
            use()


def test_tags_of_two_schemes_are_refused():
    with pytest.raises(DataError, match="mix two schemes"):
        scheme_of([["S-A"], ["U-A"]])


def random_tags(rng: random.Random, letters: str, length: int) -> list[str]:
    return ["O" if rng.random() < 0.25 else f"{rng.choice(letters)}-{rng.choice('AB')}" for _ in range(length)]


def test_entities_by_hand():
    gold = [["B-PER", "I-PER", "O", "B-LOC"], ["B-LOC", "O"]]
    predicted = [["B-PER", "I-PER", "B-LOC", "I-LOC"], ["B-LOC", "B-ORG"]]  # 2 right of 4, 3 in gold
    scores = entity_scores(gold, predicted)
    assert list(scores) == ["f1", "precision", "recall"]
    assert scores == pytest.approx({"f1": 4 / 7, "precision": 1 / 2, "recall": 2 / 3}, rel=1e-12)
    assert per_type(gold, predicted) == [
        LabelScores("LOC", 0.5, 0.5, 0.5, 2),
        LabelScores("ORG", 0.0, 0.0, 0.0, 0),
        LabelScores("PER", 1.0, 1.0, 1.0, 1),
    ]


def test_the_type_counts_and_so_does_the_sequence():
    assert entity_scores([["B-A"]], [["B-B"]])["f1"] == 0.0
    assert entity_scores([["B-A", "O"], ["O", "O"]], [["O", "O"], ["B-A", "O"]])["f1"] == 0.0


def test_no_entities_are_no_f1():
    assert entity_scores([["O", "O"]], [["O", "O"]]) == {"f1": 0.0, "precision": 0.0, "recall": 0.0}


@pytest.mark.parametrize(("gold", "predicted"), [([["O", "O"]], [["O"]]), ([["O"], ["O"]], [["O"]])])
def test_tags_that_were_cut_are_a_bug(gold, predicted):
    with pytest.raises((AssertionError, ValueError)):
        entity_scores(gold, predicted)


@pytest.mark.filterwarnings("ignore")  # seqeval's own
@pytest.mark.parametrize("letters", ["BI", "BIES"])
def test_equal_to_seqeval(letters):
    """1,000 random sequences, most of them ill-formed, and each data set of ten of them."""
    seqeval = pytest.importorskip("seqeval.metrics")
    from seqeval.metrics.sequence_labeling import get_entities  # its default mode

    rng = random.Random(3)
    for _ in range(100):
        gold = [random_tags(rng, letters, rng.randint(1, 9)) for _ in range(10)]
        predicted = [
            [tag if rng.random() < 0.7 else rng.choice(["O", "B-A", f"{letters[-1]}-B"]) for tag in tags]
            for tags in gold
        ]
        for tags in gold:
            assert [(kind, start, end - 1) for kind, start, end in spans(tags)] == get_entities(tags)
            bilou = [tag.replace("E-", "L-").replace("S-", "U-") for tag in tags]
            assert spans(bilou) == spans(tags)
        expected = [getattr(seqeval, f"{name}_score")(gold, predicted) for name in ("f1", "precision", "recall")]
        assert list(entity_scores(gold, predicted).values()) == pytest.approx(expected, abs=1e-12)
        report = seqeval.classification_report(gold, predicted, output_dict=True, zero_division=0)
        for name, precision, recall, f1, support in per_type(gold, predicted):
            row = [report[name][key] for key in ("precision", "recall", "f1-score", "support")]
            assert [precision, recall, f1, support] == pytest.approx(row, abs=1e-12)


# --- answers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Eiffel\tTower!", "eiffel tower"),
        ("a.m.", "am"),  # punctuation goes before articles, so this is none
        ("an apple, a pear", "apple pear"),
        ("Theory of the Anthem", "theory of anthem"),
        ("well-known", "wellknown"),
        ("$1,000.50", "100050"),
        ("A", ""),
        ("Ünïcode ÉCOLE", "ünïcode école"),
        ("“quoted” –", "“quoted” –"),  # only ASCII punctuation goes
        ("“the”", "“ ”"),  # an article leaves a space
        ("東京 Tower", "東京 tower"),
        ("the\u00a0end", "end"),
    ],
)
def test_normalising(text, expected):
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("predicted", "gold", "f1", "exact"),
    [
        ("the Denver Broncos!", ("Denver Broncos",), 1, 1),
        ("Denver", ("Denver Broncos",), 2 / 3, 0),
        ("Broncos Denver", ("Denver Broncos",), 1, 0),  # a bag of words
        ("Carolina Panthers", ("Denver Broncos",), 0, 0),
        ("big big cat", ("big cat cat cat",), 4 / 7, 0),  # of a repeated word as many count as both have
        ("cat cat", ("cat cat cat",), 4 / 5, 0),
        ("in Paris", ("London", "Paris, France", "in Paris"), 1, 1),
        ("Paris", ("London", "Paris, France", "city Paris now"), 2 / 3, 0),
        ("ÉCOLE", ("école",), 1, 1),
        ("“Paris”", ("Paris",), 0, 0),
        ("", ("Paris",), 0, 0),
        ("", (), 1, 1),
        ("the", (), 1, 1),
        ("Paris", (), 0, 0),
        ("", ("The",), 1, 1),  # that gold answer is none
        ("", ("The", "Paris"), 0, 0),  # and so does not count
        ("the", ("a", "Paris"), 0, 0),
        ("Paris", ("The", "Paris"), 1, 1),
    ],
)
def test_an_answer_by_hand(predicted, gold, f1, exact):
    assert answer_scores(predicted, gold) == pytest.approx((f1, exact), rel=1e-12)


QUESTIONS = {"q1": ("Denver Broncos", "Broncos"), "q2": (), "q3": ("blue",), "q4": ()}
ANSWERS = {"q1": "the Broncos", "q2": "", "q3": "dark blue", "q4": "red"}


def test_answers_to_questions_by_hand():
    scores = span_scores(ANSWERS, QUESTIONS)
    assert list(scores) == ["f1", "exact", "f1_answerable", "exact_answerable", "f1_no_answer"]
    expected = [(1 + 1 + 2 / 3 + 0) / 4, 2 / 4, (1 + 2 / 3) / 2, 1 / 2, 1 / 2]
    assert list(scores.values()) == pytest.approx(expected, rel=1e-12)


def test_a_question_of_which_nothing_is_predicted_is_named():
    told = {question: ANSWERS[question] for question in ("q1", "q2", "q4")}
    with pytest.raises(DataError, match="nothing is predicted of question 'q3'"):
        span_scores(told, QUESTIONS)
    with pytest.raises(DataError, match="nothing is predicted of question 'q3'"):
        best_threshold(ANSWERS, dict.fromkeys(told, 0.0), QUESTIONS)


def test_a_mean_over_no_questions_is_nan():
    scores = span_scores({"q": "blue"}, {"q": ("blue",)})
    assert [scores["f1"], scores["f1_answerable"], scores["exact_answerable"]] == [1.0, 1.0, 1.0]
    assert math.isnan(scores["f1_no_answer"])
    scores = span_scores({"q": ""}, {"q": ()})
    assert [scores["f1"], scores["f1_no_answer"]] == [1.0, 1.0]
    assert math.isnan(scores["f1_answerable"])
    assert math.isnan(scores["exact_answerable"])


def test_every_question_is_answered_and_others_do_not_count():
    with pytest.raises(DataError, match="question 'q3'"):
        span_scores({"q1": "", "q2": ""}, {"q1": (), "q2": (), "q3": ()})
    with pytest.raises(DataError, match="question 'q1'"):
        best_threshold({}, {"q1": ""}, {"q1": ()})
    assert span_scores(ANSWERS | {"q9": "green"}, QUESTIONS) == span_scores(ANSWERS, QUESTIONS)


def test_above_the_threshold_there_is_no_answer():
    assert at_threshold({"a": 1.0, "b": 2.0, "c": 3.0}, {"a": "x", "b": "y", "c": "z"}, 2.0) == {
        "a": "x",
        "b": "y",
        "c": "",
    }


def test_a_threshold_by_hand():
    gold = {"a": ("x",), "b": (), "c": ("x y",), "d": ()}
    predictions = {"a": "x", "b": "x", "c": "x", "d": "x"}
    margin = {"a": -3.0, "b": 5.0, "c": 1.0, "d": 1.5}
    assert best_threshold(margin, predictions, gold) == (1.0, pytest.approx((1 + 2 / 3 + 1 + 1) / 4))


def test_where_no_answer_is_best_the_threshold_is_below_all():
    gold, predictions = {"a": (), "b": ("x",)}, {"a": "x", "b": "y"}
    assert best_threshold({"a": 0.2, "b": 0.1}, predictions, gold) == (0.0, 0.5)  # as the script
    threshold, f1 = best_threshold({"a": -0.2, "b": 3.0}, predictions, gold)
    assert -0.21 < threshold < -0.2  # where the script says 0.0, at which a is answered
    assert f1 == 0.5
    threshold, _ = best_threshold({"a": 0.0, "b": 3.0}, predictions, gold)
    assert threshold < 0.0


def test_equal_margins_are_cut_together():
    gold, predictions = {"a": ("x",), "b": ()}, {"a": "x", "b": "y"}
    threshold, f1 = best_threshold({"a": 1.0, "b": 1.0}, predictions, gold)
    assert (threshold, f1) == (0.0, 0.5)  # the script promises 1.0 at 1.0


def test_of_equally_good_thresholds_it_is_the_lowest_however_sums_round():
    gold = {"a": ("1 2 3 4",), "b": (), "c": ("1 2 3",), "d": ("1 2 3 4 5 6 7 8 9",)}
    predictions = {"a": "1", "b": "1", "c": "1 2", "d": "1"}  # f1 2/5, 0, 4/5, 1/5; in floats the last total is larger
    assert best_threshold({"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}, predictions, gold) == (1.0, 1.4 / 4)


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_a_margin_is_a_number(bad):
    with pytest.raises(DataError, match="NaN or -inf"):
        best_threshold({"a": bad, "b": 0.0}, {"a": "", "b": ""}, {"a": (), "b": ()})
    assert best_threshold({"a": math.inf, "b": -1.0}, {"a": "x", "b": "y"}, {"a": (), "b": ("y",)}) == (-1.0, 1.0)


def random_questions(rng: random.Random, n: int) -> tuple[dict, dict, dict]:
    words = ["red", "blue", "the", "old house", "red blue", ""]
    gold = {f"q{i}": tuple(rng.choices(words[:5], k=rng.randint(0, 2))) for i in range(n)}
    margin = {q: rng.choice([round(rng.gauss(0, 3), 1), float(rng.randint(-2, 2))]) for q in gold}
    return margin, {q: rng.choice(words) for q in gold}, gold


def test_no_threshold_is_better_and_no_lower_one_as_good():
    rng = random.Random(4)
    met = Counter()
    for _ in range(400):
        margin, predictions, gold = random_questions(rng, rng.randint(1, 9))
        threshold, f1 = best_threshold(margin, predictions, gold)
        cuts = sorted({*margin.values(), min(margin.values()) - 1, max(margin.values()) + 1, threshold})
        found = {cut: span_scores(at_threshold(margin, predictions, cut), gold)["f1"] for cut in cuts}
        assert found[threshold] == pytest.approx(f1, abs=1e-12)
        assert max(found.values()) == pytest.approx(f1, abs=1e-12)
        lower = [cut for cut in cuts if min(margin.values()) <= cut < threshold]
        assert all(found[cut] < f1 - 1e-9 for cut in lower)
        met["no answer" if threshold < min(margin.values()) else "some"] += 1
    assert min(met.values()) > 50


def test_each_answer_is_scored_once(monkeypatch):
    margin, predictions, gold = random_questions(random.Random(5), 2_000)
    calls = Counter()
    monkeypatch.setattr(module, "answer_scores", lambda *args: calls.update(n=1) or answer_scores(*args))
    best_threshold(margin, predictions, gold)
    assert calls["n"] == 2 * len(gold)  # with and without the answer: what is left is a sort and a sum

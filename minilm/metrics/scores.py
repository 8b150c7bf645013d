"""Scores of predictions against gold labels, numbers, tags and answers.

A score is a fraction in [0, 1], a correlation in [-1, 1] or an rmse; the first entry of a dict of scores selects the
best model. A rate over nothing (the precision of a label never predicted) is 0.0, as in scikit-learn and seqeval; a
mean over no examples is NaN. Nothing warns. No examples at all raise DataError.
"""

import re
import string
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from minilm.errors import DataError, library

Scheme = Literal["IOB1", "IOB2", "IOBES", "BILOU"]
Span = tuple[str, int, int]  # type, start, end: tokens[start:end]
Tags = Sequence[Sequence[str]]  # the tags of each sequence
Gold = Mapping[str, Sequence[str]]  # a question's id -> its gold answers, none where it is not answerable
LETTERS = "BIESLU"  # of tags, in any scheme
ARTICLES = re.compile(r"\b(a|an|the)\b")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class LabelScores(NamedTuple):
    """Scores of one label, or of one type of entity."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int  # how many there are in gold


def classification_scores(gold: np.ndarray, predicted: np.ndarray, labels: int, positive: int = 1) -> dict[str, float]:
    """accuracy, macro_f1, mcc; for two labels also f1, precision and recall of the `positive` one. gold, predicted
    (n,) int in [0, labels); in gold `labels` itself is any other label, which is never predicted.

    macro_f1 is the mean over labels that occur in gold or predicted, scikit-learn's default. mcc (Matthews 1975; for K
    labels: Gorodkin 2004) is 0.0 where a side is constant.
    """
    gold, predicted = paired(gold, predicted, np.int64, labels + 1)
    rows, met = per_label(gold, predicted, [""] * (labels + 1)), np.union1d(gold, predicted)
    # scikit-learn warns where one label is all there is
    mcc = float(library("sklearn.metrics").matthews_corrcoef(gold, predicted)) if len(met) > 1 else 0.0
    macro = float(np.mean([rows[label].f1 for label in met]))
    scores = {"accuracy": float(np.mean(gold == predicted)), "macro_f1": macro, "mcc": mcc}
    of_one = {name: getattr(rows[positive], name) for name in ("f1", "precision", "recall")} if labels == 2 else {}
    return scores | of_one


def per_label(gold: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> list[LabelScores]:
    """A row for each label, in the order of `names`; (n,) int in [0, len(names))."""
    gold, predicted = paired(gold, predicted, np.int64, len(names))
    rates = library("sklearn.metrics").precision_recall_fscore_support
    columns = rates(gold, predicted, labels=range(len(names)), zero_division=0.0)
    return [LabelScores(*row) for row in zip(names, *(column.tolist() for column in columns), strict=True)]


def confusion(gold: np.ndarray, predicted: np.ndarray, n: int) -> np.ndarray:
    """(n, n) int64: how many of gold label [row] were predicted as label [column]."""
    return library("sklearn.metrics").confusion_matrix(*paired(gold, predicted, np.int64, n), labels=range(n))


def multilabel_scores(gold: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """micro_f1, macro_f1 (over all C), subset_accuracy (every label of an example right); (n, C) bool.

    Counted here, for scikit-learn takes one column for two classes, and its micro F1 is then the accuracy.
    """
    gold, predicted = paired(gold, predicted, np.bool_)
    counts = np.stack([(gold & predicted).sum(0), predicted.sum(0), gold.sum(0)])  # (3, C)
    micro = _rates(*counts.sum(1).tolist())[0]
    macro = float(np.mean([_rates(*column)[0] for column in counts.T.tolist()]))
    return {"micro_f1": micro, "macro_f1": macro, "subset_accuracy": float(np.mean((gold == predicted).all(1)))}


def label_sets(gold: Sequence[Collection[str]], labels: Sequence[str]) -> np.ndarray:
    """(n, C) bool: whether an example has a label; labels not in `labels` are left out."""
    number = {label: i for i, label in enumerate(labels)}
    held = np.zeros((len(gold), len(labels)), np.bool_)
    for row, each in enumerate(gold):
        held[row, [number[label] for label in each if label in number]] = True
    return held


def with_others(
    gold: Sequence[Collection[str]], predicted: np.ndarray, labels: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """(gold, predicted) as `multilabel_scores` takes them. predicted (n, C) bool; gold labels that are not among
    `labels` make one more column, which is never predicted."""
    held, known = label_sets(gold, labels), {*labels}
    others = np.array([[not known.issuperset(each)] for each in gold])
    if not others.any():
        return held, predicted
    return np.hstack([held, others]), np.hstack([predicted, np.zeros_like(others)])


def regression_scores(gold: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """spearman (ties share a rank) and pearson, 0.0 where a side is constant; rmse, in gold's units. (n,) float."""
    gold, predicted = paired(gold, predicted, np.float64)
    if not (finite := np.isfinite(gold) & np.isfinite(predicted)).all():
        raise DataError(f"gold or predicted value {int(np.argmin(finite))} (from 0) is not a finite number")
    stats = library("scipy.stats")
    r = [0.0, 0.0]
    if len(gold) > 1:
        with warnings.catch_warnings():  # about a side that is constant, or almost
            warnings.simplefilter("ignore")
            r = np.nan_to_num([stats.spearmanr(gold, predicted)[0], stats.pearsonr(gold, predicted)[0]]).tolist()
    return {"spearman": r[0], "pearson": r[1], "rmse": float(np.sqrt(np.mean((gold - predicted) ** 2)))}


def scheme_of(sequences: Iterable[Sequence[str]]) -> Scheme:
    """The scheme that tags are written in; BILOU is IOBES, or BIOES, in other letters. Raises DataError if it is none.

    In IOB2 each entity begins with B; in IOB1 only one that touches another of its type (Ramshaw and Marcus 1995).
    Tags of B and I are IOB1 if some entity begins with I and none has a B that IOB1 would not write.
    """
    seen, first = set(), set()  # letters; letters of tags that do not follow a tag of their type
    for tags in sequences:
        before = ""
        for letter, kind in map(_parts, tags):
            seen.add(letter)
            if kind != before:
                first.add(letter)
            before = kind
    if seen & set("ES") and seen & set("LU"):
        raise DataError("the tags mix two schemes: E or S is IOBES, L or U is BILOU")
    if seen & set("ESLU"):
        return "IOBES" if seen & set("ES") else "BILOU"
    return "IOB1" if "I" in first and "B" not in first else "IOB2"


def spans(tags: Sequence[str]) -> list[Span]:
    """(type, start, end) of each entity, in order: tokens[start:end]. A tag without a type, as B, has the type "_".

    Ill-formed tags are read as by conlleval and by seqeval's default mode: what does not continue an entity begins one.
    So one rule reads all schemes. Raises DataError for a tag of none.
    """
    found, start, inside = [], 0, ""  # inside: the type of the entity that is open
    for i, tag in enumerate([*tags, "O"]):
        letter, kind = _parts(tag)
        if inside and not (letter in "IEL" and kind == inside):
            found.append((inside, start, i))
            inside = ""
        if not inside:
            start, inside = i, kind
        if letter in "ESLU":
            found.append((kind, start, i + 1))
            inside = ""
    return found


def entity_scores(gold: Tags, predicted: Tags) -> dict[str, float]:
    """f1, precision, recall over all entities, as conlleval and seqeval's default mode count: an entity is right if its
    type, start and end are. Tags may be of any scheme; both sides have equally many.
    """
    f1, precision, recall = _rates(*(count.total() for count in entity_counts(gold, predicted)))
    return {"f1": f1, "precision": precision, "recall": recall}


def per_type(gold: Tags, predicted: Tags) -> list[LabelScores]:
    """A row for each type of entity in gold or predicted, by name; counted as by `entity_scores`."""
    right, said, true = entity_counts(gold, predicted)
    rates = {kind: _rates(right[kind], said[kind], true[kind]) for kind in sorted(said | true)}
    return [LabelScores(kind, precision, recall, f1, true[kind]) for kind, (f1, precision, recall) in rates.items()]


def normalise(text: str) -> str:
    """An answer as SQuAD's script compares it: lower case, no ASCII punctuation, no articles, single spaces."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(NO_PUNCTUATION)).split())


def answer_scores(predicted: str, gold: Sequence[str]) -> tuple[float, float]:
    """(f1 of shared words, exact match) of an answer, each the best over `gold`; no gold: not answerable.

    As in SQuAD 2.0's script, gold answers that normalise to "" do not count, and where a side is "", both scores are
    1.0 if the other is, too, else 0.0.
    """
    golds = [text for text in map(normalise, gold) if text] or [""]
    said = normalise(predicted)
    words = Counter(said.split())
    pairs = [(words, Counter(text.split())) for text in golds]
    f1 = max(_rates((a & b).total(), a.total(), b.total())[0] for a, b in pairs)
    return f1 if said else float(golds == [""]), float(said in golds)


def span_scores(predictions: Mapping[str, str], gold: Gold) -> dict[str, float]:
    """f1, exact, f1_answerable, exact_answerable, f1_no_answer: means over questions (Rajpurkar et al. 2016, 2018).

    predictions: a question's id -> its answer, "" for none. A mean is NaN if no question is of its kind.
    """
    f1, exact = np.array([answer_scores(predictions[i], gold[i]) for i in _questions(gold, predictions)]).T
    yes = np.array([len(answers) > 0 for answers in gold.values()])
    kinds = {"f1": f1, "exact": exact, "f1_answerable": f1[yes], "exact_answerable": exact[yes]}
    kinds["f1_no_answer"] = f1[~yes]
    return {name: float(values.mean()) if len(values) else np.nan for name, values in kinds.items()}


def at_threshold(margin: Mapping[str, float], predictions: Mapping[str, str], threshold: float) -> dict[str, str]:
    """The predictions, with no answer ("") where a question's margin is above the threshold."""
    return {i: "" if margin[i] > threshold else text for i, text in predictions.items()}


def best_threshold(margin: Mapping[str, float], predictions: Mapping[str, str], gold: Gold) -> tuple[float, float]:
    """The lowest threshold at which the answers of `at_threshold` have the best f1, and that f1.

    margin: a question's id -> how much surer the model is of no answer than of predictions[id], in any unit. The
    threshold is one of the margins or, where no answer at all is best, below them all. One pass over sorted margins, as
    in SQuAD 2.0's script; but that may return an f1 which no threshold has: it cuts between equal margins, says 0.0 for
    "no answers" even if margins are negative, and counts an answer that normalises to "" as an answer.
    """
    ids = sorted(_questions(gold, predictions, margin), key=margin.__getitem__)
    margins = np.array([margin[i] for i in ids], np.float64)
    if not (margins > -np.inf).all():
        raise DataError("a question's margin is NaN or -inf")
    answered = np.array([answer_scores(predictions[i], gold[i])[0] for i in ids])
    silent = np.array([answer_scores("", gold[i])[0] for i in ids])
    ends = np.flatnonzero(np.append(margins[1:] != margins[:-1], True))  # the last of equal margins
    thresholds = [min(0.0, np.nextafter(margins[0], -np.inf)), *margins[ends]]
    totals = silent.sum() + np.append(0.0, np.cumsum(answered - silent)[ends])
    best = int(np.argmax(totals > totals.max() - 1e-9))  # the lowest, however the sums are rounded
    return float(thresholds[best]), float(totals[best] / len(ids))


def check_installed() -> None:
    """Raises ConfigError if scikit-learn or scipy, which compute scores, are not installed."""
    for name in ("sklearn.metrics", "scipy.stats"):
        library(name)


def not_empty(examples: Any) -> Any:
    if len(examples) == 0:
        raise DataError("no examples to score")
    return examples


def paired(gold: np.ndarray, predicted: np.ndarray, dtype: type, labels: int | None = None) -> list[np.ndarray]:
    """Both arrays as `dtype`, cast without loss. They must be of one shape, not empty, and in [0, labels)."""
    assert np.shape(gold) == np.shape(predicted), (np.shape(gold), np.shape(predicted))
    pair = [np.asarray(not_empty(side)).astype(dtype, casting="safe") for side in (gold, predicted)]
    assert labels is None or (min(map(np.min, pair)) >= 0 and max(map(np.max, pair)) < labels), labels
    return pair


def _rates(right: int, said: int, true: int) -> tuple[float, float, float]:
    """(f1, precision, recall) from the numbers of right, predicted and gold items."""
    return 2 * right / max(said + true, 1), right / max(said, 1), right / max(true, 1)


def _parts(tag: str) -> tuple[str, str]:
    """(letter, type) of a tag; O has the type ""."""
    letter, _, kind = tag.partition("-")
    if tag != "O" and letter not in tuple(LETTERS):
        raise DataError(f"tag {tag!r} is neither O nor a TYPE after one of {', '.join(LETTERS)}, as in B-TYPE")
    return letter, kind or "_" if tag != "O" else ""


def entity_counts(gold: Tags, predicted: Tags) -> tuple[Counter[str], ...]:
    """Numbers of entities by type: right, predicted, and in gold."""
    right, said, true = counts = Counter(), Counter(), Counter()
    for a, b in zip(not_empty(gold), predicted, strict=True):
        assert len(a) == len(b), (len(a), len(b))
        found, wanted = set(spans(b)), set(spans(a))
        right.update(kind for kind, *_ in found & wanted)
        said.update(kind for kind, *_ in found)
        true.update(kind for kind, *_ in wanted)
    return counts


def _questions(gold: Gold, *told: Mapping[str, Any]) -> list[str]:
    """The question ids in gold. Raises DataError for one that is missing in `told`."""
    for question in (i for i in not_empty(gold) if not all(i in one for one in told)):
        raise DataError(f"nothing is predicted of question {question!r}")
    return list(gold)

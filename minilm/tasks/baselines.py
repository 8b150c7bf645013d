"""Baselines that a model should beat: constant guesses, and linear models of counted words."""

import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from minilm.labelled.examples import Example, Tagged
from minilm.metrics.scores import classification_scores, label_sets, multilabel_scores, regression_scores, with_others

MOST_WEIGHTS = 1 << 22  # of a linear model of many labels
OF_SOLVER = 25  # numbers that its solver keeps for each weight: 1 GB
Scores = dict[str, dict[str, float]]  # baseline -> metric -> value
SAID = {  # each baseline in words
    "majority": "always the commonest label",
    "every_label": "always every label",
    "bag_of_words": "bag of words (tf-idf of unigrams and bigrams, linear model)",
    "shared_words": "word overlap of the two texts (Jaccard)",
    "no_answer": "never an answer",
    "commonest_tag": "the commonest tag of each word in training",
    "chance": "by chance",
}


def of_labels(train: Sequence[Example], judged: Sequence[Example], labels: Sequence[str], positive: int = 1) -> Scores:
    """Scores of the commonest label, and of logistic regression on counted words. positive: as in
    `classification_scores`."""
    number = {label: i for i, label in enumerate(labels)}
    gold, target = (np.array([number.get(each.label, len(labels)) for each in split]) for split in (judged, train))
    majority = np.full(len(gold), np.bincount(target).argmax())
    found = {"majority": classification_scores(gold, majority, len(labels), positive)}
    if (counted := _counted(train, judged, MOST_WEIGHTS // len(labels))) is None:
        return found
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings(action="ignore"):  # about as many labels as rows
        model = LogisticRegression(C=10, max_iter=300).fit(counted[0], target)
    predicted = model.predict(counted[1])
    return found | {"bag_of_words": classification_scores(gold, predicted, len(labels), positive)}


def of_label_sets(train: Sequence[Example], judged: Sequence[Example], labels: Sequence[str]) -> Scores:
    """Scores of predicting every label, and of logistic regression on counted words for each label by itself."""
    gold = [each.label for each in judged]
    found = {"every_label": multilabel_scores(*with_others(gold, np.ones((len(gold), len(labels)), bool), labels))}
    if (counted := _counted(train, judged, OF_SOLVER * MOST_WEIGHTS // len(labels))) is None:
        return found
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    with warnings.catch_warnings(action="ignore"):  # about a label that every row has, or none
        model = OneVsRestClassifier(LogisticRegression(C=10, max_iter=300))
        model.fit(counted[0], label_sets([each.label for each in train], labels).astype(int))
    predicted = model.predict(counted[1]).reshape(len(gold), len(labels)) > 0
    return found | {"bag_of_words": multilabel_scores(*with_others(gold, predicted, labels))}


def of_numbers(train: Sequence[Example], judged: Sequence[Example]) -> Scores:
    """Scores of the words that a pair of texts shares, or, for single texts, of ridge regression on counted words."""
    gold = np.array([each.label for each in judged], np.float64)
    if judged[0].pair is not None:
        scores = regression_scores(gold, np.array([_shared(each) for each in judged]))
        return {"shared_words": {name: scores[name] for name in ("spearman", "pearson")}}
    if (counted := _counted(train, judged)) is None:
        return {}
    from sklearn.linear_model import Ridge

    model = Ridge().fit(counted[0], [each.label for each in train])
    return {"bag_of_words": regression_scores(gold, model.predict(counted[1]))}


def commonest_tags(train: Sequence[Tagged], judged: Sequence[Tagged]) -> list[list[str]]:
    """Tags of a baseline: each word's commonest tag in training, O for other words."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for each in train:
        for word, tag in zip(each.words, each.tags, strict=True):
            counts[word][tag] += 1
    commonest = {word: tags.most_common(1)[0][0] for word, tags in counts.items()}
    return [[commonest.get(word, "O") for word in each.words] for each in judged]


def _counted(train: Sequence[Example], judged: Sequence[Example], most: int | None = None) -> tuple | None:
    """Tf-idf of both splits as sparse matrices, a column for each word or pair of words, the `most` frequent ones; None
    if there is no word."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts, others = ([f"{each.text} {each.pair or ''}" for each in split] for split in (train, judged))
    words = TfidfVectorizer(
        ngram_range=(1, 2), sublinear_tf=True, min_df=2 if len(texts) > 200 else 1, max_features=most
    )
    try:
        return words.fit_transform(texts), words.transform(others)
    except ValueError:
        return None


def _shared(pair: Example) -> float:
    """Jaccard index of the words of two texts."""
    one, other = ({*text.lower().split()} for text in (pair.text, pair.pair))
    return len(one & other) / max(1, len(one | other))

"""BLEU, chrF and ROUGE beside sacrebleu and rouge-score on the same texts."""

import json
import random

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF

from minilm.errors import DataError
from minilm.judging.generation import (
    ROUGE,
    generation_scores,
    ngram_counts,
    read_predictions,
    read_references,
    rouge_rows,
    weighted,
)

WORDS = ["the", "cats", "cat", "sat", "sitting", "on", "Mats", "mat,", "größer", "3.5", "(a", "dog).", "\n", "."]


def text(rng, most=7):
    return " ".join(rng.choices(WORDS, k=rng.randint(0, most)))


def case(seed, segments):
    """(predictions, references): one to three references a segment, some predictions near one of them, some empty."""
    rng = random.Random(seed)
    references = [["the " + text(rng) for _ in range(rng.randint(1, 3))] for _ in range(segments)]
    predictions = [rng.choice(own)[: rng.randint(0, 60)] if rng.random() < 0.7 else text(rng) for own in references]
    return predictions, references


def theirs(predictions, references, stemmer=False):
    """By the public functions of both; streams of references, None where a segment has no further one."""
    streams = [[own[i] if i < len(own) else None for own in references] for i in range(max(map(len, references)))]
    metrics = {"bleu": BLEU(), "chrf": CHRF()}
    found = {name: metric.corpus_score(predictions, streams) for name, metric in metrics.items()}
    signatures = {name: str(metric.get_signature()) for name, metric in metrics.items()}
    scorer = RougeScorer([*ROUGE], use_stemmer=stemmer)
    rouge = [[scorer.score(each, said) for each in own] for said, own in zip(predictions, references, strict=True)]
    means = {name: np.mean([max(each[name].fmeasure for each in own) for own in rouge]) for name in ROUGE}
    scores = {name: score.score for name, score in found.items()}
    if found["bleu"].totals[3] == 0:
        scores["bleu"] = np.nan  # 0 there, and "technically undefined" in its words
    return scores | means, signatures


def ours(predictions, references, stemmer=False):
    return generation_scores(predictions, references, [*rouge_rows(predictions, references, stemmer)], stemmer)


def test_as_sacrebleu_and_rouge_score():
    """1,000 cases of 1 to 3 segments; some have no 4-gram, so that BLEU is not defined."""
    undefined = 0
    for seed in range(1000):
        predictions, references = case(seed, 1 + seed % 3)
        stemmer = seed % 2 == 1
        found = ours(predictions, references, stemmer)
        scores, signatures = theirs(predictions, references, stemmer)
        values = {name: own["value"] for name, own in found["metrics"].items()}
        exact = np.mean(
            [said.strip() in map(str.strip, own) for said, own in zip(predictions, references, strict=True)]
        )
        assert values == pytest.approx(scores | {"exact_match": exact}, abs=1e-9, nan_ok=True)
        assert {name: found["signatures"][name] for name in signatures} == signatures
        assert ("not defined" in " ".join(found["notes"])) == np.isnan(scores["bleu"])
        undefined += np.isnan(scores["bleu"])
    assert 10 < undefined < 500


def test_segments_that_are_taken_more_often():
    """Scores of weighted segments are those of the texts written out so often."""
    rng = np.random.default_rng(0)
    for seed in range(40):
        predictions, references = case(seed, 6)
        weights = rng.integers(0, 3, (2, 6))
        weights[:, seed % 6] += 1
        metrics, counts = ngram_counts(predictions, references)
        records = np.concatenate([*counts, [*rouge_rows(predictions, references)]], axis=1)
        found = weighted(records, weights, metrics, np.cumsum([each.shape[1] for each in counts]))
        for row, own in enumerate(weights):
            written = [
                [each for each, times in zip(side, own, strict=True) for _ in range(times)]
                for side in (predictions, references)
            ]
            assert {name: each[row] for name, each in found.items()} == pytest.approx(
                theirs(*written)[0], abs=1e-9, nan_ok=True
            )


def test_intervals_are_as_wide_as_sacrebleus():
    """Of 200 segments; theirs is a percentile bootstrap, written as a half width around the mean of the draws."""
    predictions, references = case(7, 200)
    found = ours(predictions, references)["metrics"]
    streams = [[own[i] if i < len(own) else None for own in references] for i in range(3)]
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        score = metric.corpus_score(predictions, streams, n_bootstrap=1000)
        low, high = found[name]["low"], found[name]["high"]
        assert low < score.score < high
        assert (high - low) / 2 == pytest.approx(score._ci, rel=0.1)
    assert all(own["low"] < own["value"] < own["high"] and own["n"] == 200 for own in found.values())
    assert ours(predictions[:5], references[:5])["metrics"]["chrf"]["low"] is None


def test_what_is_said_of_the_texts():
    said = ours(["a cat sat on it .", ""] * 100, [["größere Maße überall"]] * 200)["notes"]
    assert [note.split(" ")[0] for note in said] == ["100", "100", "22.2%", "every"]
    assert ours(["a cat sat there"], [["a cat\nsat there"]])["notes"] == []
    assert ours(["a cat"], [["a cat\nsat there"]])["notes"] == [
        "no prediction has four tokens, so that BLEU is not defined"
    ]


def test_files(tmp_path):
    """Lines, and fields of a .jsonl: a text or a list; a blank line is an empty prediction, and no reference."""
    (tmp_path / "said.txt").write_text("a\n\n c\n")
    (tmp_path / "one.de").write_text("x\n\nz\n")
    rows = [{"reference": ["x2", "x3"]}, {"reference": "y"}, {"reference": [""]}]
    (tmp_path / "two.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_predictions(tmp_path / "said.txt", "prediction") == ["a", "", " c"]
    files = [tmp_path / "one.de", tmp_path / "two.jsonl"]
    assert read_references(files, "reference", 3) == [["x", "x2", "x3"], ["y"], ["z"]]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("r.txt", "a\nb\n", "r.txt: 2 references for 3 predictions; give one for each, in order"),
        ("r.txt", "a\nb\nc\nd\n", "r.txt: 4 references for 3 predictions; give one for each, in order"),
        ("r.txt", "", "r.txt: 0 references for 3 predictions"),
        ("r.txt", "a\n \nc\n", "r.txt: segment 2 has no reference; give one"),
        ("r.csv", "text\na\n", "r.csv: tables are not read here; give one text a line"),
        ("r.jsonl", '{"target": "a"}\n', r"r.jsonl:1: no field 'reference' \(it has 'target'\); name it with --ref"),
        ("r.jsonl", '{"reference": {}}\n', "r.jsonl:1: the reference is a dict, not a text"),
        ("r.jsonl", '{"reference": [["a"]]}\n', "r.jsonl:1: the reference is a list, not a text"),
    ],
)
def test_what_are_no_references(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=said):
        read_references([tmp_path / name], "reference", 3)


def test_what_are_no_predictions(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match=r"empty.txt: holds no text"):
        read_predictions(tmp_path / "empty.txt", "prediction")
    (tmp_path / "lists.jsonl").write_text('{"prediction": ["a"]}\n')
    with pytest.raises(DataError, match=r"lists.jsonl:1: the prediction is a list, not a text"):
        read_predictions(tmp_path / "lists.jsonl", "prediction")

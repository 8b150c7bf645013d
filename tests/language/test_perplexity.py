"""Perplexity of documents, beside transformers' model on windows and pieces that are written out here."""

import math

import numpy as np
import pytest
import torch

from minilm.errors import ConfigError
from minilm.language.perplexity import document_counts, perplexities

CLS, SEP, MASK = 2, 3, 4


@pytest.fixture(scope="module")
def documents(sentences):
    return [" ".join(sentences(n, seed=n)) for n in (1, 3, 9, 2)]


@torch.no_grad()
def log_p(reference, row):
    return reference(input_ids=torch.tensor([row])).logits[0].log_softmax(-1).numpy()


@pytest.mark.parametrize(("length", "stride"), [(32, 16), (8, 3), (8, 7), (3, 1)])
def test_causal_windows(tmp_path, made, in_float64, documents, length, stride):
    """Every token once: the first window whole, of each later one what is new."""
    directory, reference = made("causal", tmp_path)
    scorer = in_float64(directory)
    found = list(document_counts(scorer, documents, length, stride))
    for document, own in zip(documents, found, strict=True):
        ids = scorer.tokenizer(document).input_ids[1:-1]
        wanted, told = 0.0, 0
        while told < len(ids):
            new = min(stride if told else length - 1, len(ids) - told)
            row = [CLS, *ids[max(0, told + new - length + 1) : told + new]]
            nats = log_p(reference, row)
            wanted -= sum(nats[place - 1, row[place]] for place in range(len(row) - new, len(row)))
            told += new
        assert own[0] == pytest.approx(wanted, rel=1e-9)
        assert own[1:] == (len(ids), len(document.split()), len(document), ids.count(1))


@pytest.mark.parametrize("within_word", [False, True])
def test_masked_pieces(tmp_path, made, in_float64, documents, within_word):
    directory, reference = made("bert", tmp_path)
    scorer = in_float64(directory)
    found = list(document_counts(scorer, documents, 9, 1, within_word))
    for document, own in zip(documents, found, strict=True):
        encoded = scorer.tokenizer([document]).encodings[0]
        ids, words = encoded.ids[1:-1], encoded.word_ids[1:-1]
        wanted = 0.0
        for part in np.array_split(np.arange(len(ids)), math.ceil(len(ids) / 7)):
            for place in part:
                after = [at for at in part if at > place and words[at] == words[place]] if within_word else []
                row = [CLS, *(MASK if at == place or at in after else ids[at] for at in part), SEP]
                wanted -= log_p(reference, row)[place - part[0] + 1, ids[place]]
        assert own[0] == pytest.approx(wanted, rel=1e-9)


def test_documents_in_order(tmp_path, monkeypatch, made, in_float64, documents):
    """In groups of any size, and where one has no token."""
    scorer = in_float64(made("bert", tmp_path)[0])
    documents = ["\u200b", *documents, "\u200b", "\u200b", "the cat", "\u200b"]
    whole = list(document_counts(scorer, documents, 16, 8))
    assert [own[1] == 0 for own in whole] == [each == "\u200b" for each in documents]
    assert [own[3] for own in whole] == [len(each.encode()) for each in documents]
    monkeypatch.setattr("minilm.data.documents.CHUNK", 2)
    for one, other in zip(whole, document_counts(scorer, iter(documents), 16, 8), strict=True):
        assert one == pytest.approx(other, rel=1e-12)


def test_figures_by_hand():
    counts = np.array([[10.0, 5, 4, 20, 0], [6.0, 3, 2, 12, 1]])
    found = perplexities(counts)
    assert found["perplexity"] == {"value": pytest.approx(math.exp(16 / 8)), "low": None, "high": None, "n": 2}
    assert found["word_perplexity"]["value"] == pytest.approx(math.exp(16 / 6))
    assert found["bits_per_byte"]["value"] == pytest.approx(16 / math.log(2) / 32)
    many = np.random.default_rng(0).integers(1, 50, (60, 5)).astype(float)
    for own in perplexities(many).values():
        assert own["low"] < own["value"] < own["high"]
    assert np.isnan(perplexities(np.array([[0.0, 0, 1, 3, 0]]))["perplexity"]["value"])


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ((2, 1), "--length 2: give a value from 3 to 32, which the model reads"),
        ((33, 1), "--length 33: give a value from 3 to 32, which the model reads"),
        ((8, 8), "--stride 8: give a value from 1 to 7, less than --length"),
        ((8, 0), "--stride 0: give a value from 1 to 7, less than --length"),
        ((8, 4, True), "--within-word: for masked models"),
    ],
)
def test_what_cannot_be(tmp_path, made, in_float64, documents, how, said):
    scorer = in_float64(made("causal", tmp_path)[0])
    with pytest.raises(ConfigError, match=said):
        list(document_counts(scorer, documents, *how))

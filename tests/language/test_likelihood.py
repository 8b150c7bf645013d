"""Log-probabilities of texts, beside a loop over transformers' own models that masks and reads one token at a time."""

import numpy as np
import pytest
import torch

import minilm
from minilm.errors import CheckpointError, ConfigError, DataError
from minilm.language import likelihood
from minilm.language.likelihood import log_likelihoods, read_scorer

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


@pytest.fixture(params=["bert", "modernbert", "roberta", "distilbert"])
def masked(request, tmp_path, exact_float64, made):
    """(a directory, transformers' model of it in float64)."""
    exact_float64()
    return made(request.param, tmp_path)


@torch.no_grad()
def brute_force(reference, scorer, text, within_word=False):
    """One forward pass a token, as the definition has it."""
    ids = scorer.tokenizer(text).input_ids
    words = scorer.tokenizer([text]).encodings[0].word_ids
    found = []
    for place in range(1, len(ids) - 1):
        hidden = list(ids)
        for other in range(place, len(ids) - 1 if within_word else place + 1):
            if words[other] == words[place]:
                hidden[other] = scorer.tokenizer.mask_token_id
        logits = reference(input_ids=torch.tensor([hidden])).logits[0, place]
        found.append(logits.log_softmax(0)[ids[place]].item())
    return np.array(found)


@pytest.mark.parametrize("within_word", [False, True])
def test_masked_as_a_loop_over_transformers(masked, within_word, in_float64, sentences):
    """In float64; and in fp32 a text's sum in nats."""
    directory, reference = masked
    texts = sentences(20 if within_word or reference.config.model_type != "bert" else 200)
    scorer = in_float64(directory)
    assert scorer.masked
    exact, single = (log_likelihoods(each, texts, within_word) for each in (scorer, read_scorer(directory)))
    for text, found, rounded in zip(texts, exact, single, strict=True):
        wanted = brute_force(reference, scorer, text, within_word)
        assert np.abs(found - wanted).max() < 1e-9 * max(1, np.abs(wanted).max())
        assert abs(rounded.sum() - wanted.sum()) < 1e-4


@torch.no_grad()
def test_causal_as_transformers(tmp_path, made, in_float64, sentences):
    directory, reference = made("causal", tmp_path)
    scorer, texts = in_float64(directory), sentences(50)
    assert not scorer.masked
    for text, found in zip(texts, log_likelihoods(scorer, texts), strict=True):
        ids = torch.tensor([scorer.tokenizer(text).input_ids])
        wanted = reference(input_ids=ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:-1, 0].numpy()
        assert np.abs(found - wanted).max() < 1e-9 * max(1, np.abs(wanted).max())
    with pytest.raises(ConfigError, match="--within-word: for masked models"):
        log_likelihoods(scorer, texts, within_word=True)
    with pytest.raises(DataError, match="the first token of a text has no context"):
        scorer.questions(scorer.encoded(["the cat"])[0], np.array([0]))


def test_the_same_in_groups_of_any_size(tmp_path, monkeypatch, made, in_float64, sentences):
    """Whatever is computed together, and also where a row, or a state of it, is asked for twice."""
    scorer = in_float64(made("bert", tmp_path)[0])
    texts = [*sentences(30), "the cat sat", "the dog sat", "the cat sat", ""]  # masked, the second word is the same row
    whole = list(log_likelihoods(scorer, texts))
    assert whole[-1].shape == (0,)
    assert np.array_equal(whole[-4], whole[-2])
    for name, value in (("AT_ONCE", 1), ("AT_ONCE", 40), ("AHEAD", 1), ("AHEAD", 500), ("LOGITS_AT_ONCE", 1)):
        with monkeypatch.context() as patch:
            patch.setattr(likelihood, name, value)
            for one, other in zip(whole, log_likelihoods(scorer, texts), strict=True):
                assert np.allclose(one, other, rtol=0, atol=1e-12)


def test_several_threads_change_nothing(tmp_path, monkeypatch, made, in_float64, sentences):
    """The batches of each text find their way back to it."""
    scorer, texts = in_float64(made("bert", tmp_path)[0]), sentences(30)
    alone, threads = list(log_likelihoods(scorer, texts)), torch.get_num_threads()
    monkeypatch.setattr(likelihood, "AT_ONCE", 40)
    try:
        torch.set_num_threads(3)
        for one, other in zip(alone, log_likelihoods(scorer, texts), strict=True):
            assert np.allclose(one, other, rtol=0, atol=1e-12)
    finally:
        torch.set_num_threads(threads)


def test_a_row_that_repeats_is_computed_once(tmp_path, made, in_float64):
    scorer, rows = in_float64(made("bert", tmp_path)[0]), []
    encoder = scorer.model.bert.encoder
    encoder.register_forward_pre_hook(lambda _, given: rows.append(len(given[0].input_ids)))
    assert len(list(log_likelihoods(scorer, ["the cat sat", "the dog sat", "the cat sat"]))) == 3
    assert sum(rows) == 3 + 3 - 1  # where the second word is masked the two are one


def test_a_token_that_repeats_at_its_place_is_embedded_once(tmp_path, made, in_float64, monkeypatch):
    scorer, texts = in_float64(made("bert", tmp_path)[0]), ["the cat sat on the mat", "the dog sat on the mat"]
    embedded = []
    scorer.model.bert.encoder.embedding.register_forward_pre_hook(lambda _, given: embedded.append(given[0].position))
    found = list(log_likelihoods(scorer, texts))
    assert [position.numel() for position in embedded] == [16]  # of 11 rows of 8: 9 tokens of theirs, 6 masks, filled
    monkeypatch.setattr(likelihood, "_distinct", lambda rows, device: None)
    for one, other in zip(found, log_likelihoods(scorer, texts), strict=True):
        assert np.allclose(one, other, rtol=0, atol=1e-12)
    assert embedded[1].numel() == 12 * 8
    embedded.clear()
    monkeypatch.undo()
    list(log_likelihoods(scorer, ["the cat"]))  # a text of 4 tokens has 6 in its 2 rows of 4
    assert [position.shape for position in embedded] == [(2, 4)]


def test_specials_in_a_text_are_text(tmp_path, made, vocab):
    scorer = read_scorer(made("bert", tmp_path)[0])
    (encoded,) = scorer.encoded(["the [MASK] sat"])
    assert vocab.index("[MASK]") not in encoded.ids
    assert len(encoded.own) == len(encoded.ids) - 2


def test_what_cannot_be_asked(tmp_path, made, vocab):
    scorer = read_scorer(made("bert", tmp_path / "model")[0])
    with pytest.raises(DataError, match="text 2 has 62 tokens, and the model reads 32; shorten it"):
        scorer.encoded(["the cat", "the " * 60])
    with pytest.raises(DataError, match=r"text 1501 has 62 tokens"):
        log_likelihoods(scorer, ["the cat"] * 1500 + ["the " * 60])
    with pytest.raises(DataError, match="f:9: a text has 62 tokens"):
        list(log_likelihoods(scorer, ["the cat", "the " * 60], where=["f:8", "f:9"]))
    with pytest.raises(DataError, match="f:9: a text without a token that the model reads; leave it out"):
        list(log_likelihoods(scorer, ["the cat", "\u200d"], where=["f:8", "f:9"]))
    minilm.BertModel(minilm.BertConfig(vocab_size=len(vocab), **SIZES)).save_pretrained(tmp_path / "encoder")
    scorer.tokenizer.save_pretrained(tmp_path / "encoder")
    with pytest.raises(CheckpointError, match="is an encoder without the head of a language model"):
        read_scorer(tmp_path / "encoder")
    config = minilm.BertConfig(vocab_size=len(vocab), **SIZES, minilm={"format": 1, "objective": "prefix"})
    minilm.BertForMaskedLM(config).save_pretrained(tmp_path / "prefix")
    with pytest.raises(ConfigError, match="is a prefix model; give a masked or a causal one"):
        read_scorer(tmp_path / "prefix")

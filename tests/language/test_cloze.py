"""Last words, beside a loop over transformers' model that reads one token at a time."""

import gzip
import json
import math

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from scipy.stats import binomtest
from torch.nn import functional as F

from minilm.dropin.tokenizer import BertTokenizer
from minilm.errors import DataError
from minilm.language import likelihood
from minilm.language.cloze import LastWord, Passage, cloze_scores, last_words, read_passages
from minilm.language.likelihood import _over_vocabulary

CLS, SEP, MASK, UNK, LENGTH = 2, 3, 4, 1, 32


@pytest.fixture
def passages(sentences):
    """Of 2 to 70 words: each beginning before each last word, of one token or of several, and one that is unknown."""
    begins = [*sentences(30), " ".join(sentences(6, 6)), " ".join(sentences(9, 9))]
    words = [stem + end for stem in ("the", "cat", "on", "mat", "ran", "home") for end in ("", "s", "inged", ".")]
    pairs = [(begin, f"{begin} {word}") for begin in begins for word in [*words, ".", "zebra"]]
    return [Passage(text, len(begin), f"f:{n}") for n, (begin, text) in enumerate(pairs)]


@torch.no_grad()
def by_a_loop(reference, tokenizer, passage, masked):
    """(nats, greedy, tokens, whether it is cut): context and word are tokenised apart."""
    context = tokenizer(passage.text[: passage.given], add_special_tokens=False).input_ids
    word = tokenizer(passage.text[passage.given :], add_special_tokens=False).input_ids
    room = LENGTH - len(word) - (2 if masked else 1)
    nats, greedy, kept = 0.0, True, context[-room:]
    for at, token in enumerate(word):
        row = [CLS, *kept, *word[:at]]
        place = len(row) - 1
        if masked:
            row, place = [*row, *[MASK] * (len(word) - at), SEP], place + 1
        logits = reference(input_ids=torch.tensor([row])).logits[0, place]
        nats += logits.log_softmax(0)[token].item()
        greedy = greedy and int(logits.argmax()) == token
    return nats, greedy and UNK not in word, len(word), len(context) > room


@pytest.mark.parametrize("family", ["bert", "modernbert", "causal"])
def test_as_a_loop_over_transformers(tmp_path, exact_float64, made, in_float64, passages, family):
    exact_float64()
    directory, reference = made(family, tmp_path)
    scorer = in_float64(directory)
    found = list(last_words(scorer, passages))
    some = [n for n, own in enumerate(found) if own.right or n % 11 == 0]
    for passage, own in ((passages[n], found[n]) for n in some):
        nats, greedy, tokens, cut = by_a_loop(reference, scorer.tokenizer, passage, scorer.masked)
        assert own.nats == pytest.approx(nats, rel=1e-9)
        assert own[1:] == (greedy, False, passage.text.endswith("zebra"), cut, tokens)
    assert 3 <= sum(own.right for own in found) < len(some) / 2
    assert {own.tokens for own in found} == {1, 2, 3}
    assert {own.cut for own in found} == {True, False}


def test_the_same_in_groups_of_any_size(tmp_path, monkeypatch, made, in_float64, passages):
    scorer, passages = in_float64(made("bert", tmp_path)[0]), passages[::7]
    whole = list(last_words(scorer, passages))
    monkeypatch.setattr("minilm.language.cloze.TOKENIZED", 7)
    for name, value in (("AT_ONCE", 1), ("AHEAD", 500), ("LOGITS_AT_ONCE", 1)):
        monkeypatch.setattr(likelihood, name, value)
        found = list(last_words(scorer, passages))
        assert [own.nats for own in found] == pytest.approx([own.nats for own in whole], rel=1e-12)
        assert [own[1:] for own in found] == [own[1:] for own in whole]


@pytest.mark.parametrize("family", ["bert", "causal"])
def test_of_two_that_are_equally_likely_none_is_told(tmp_path, made, in_float64, passages, vocab, family):
    scorer = in_float64(made(family, tmp_path)[0])
    with torch.no_grad():
        for each in (scorer.model.get_input_embeddings().weight, scorer.model.head.bias):
            each.zero_()
    found = list(last_words(scorer, passages[::7]))
    assert not any(own.right for own in found)
    assert all(own.tie for own in found)
    assert [own.nats for own in found] == pytest.approx([-math.log(len(vocab)) * own.tokens for own in found])


def test_what_half_precision_cannot_tell_apart_is_told_in_fp32():
    features, bias = torch.ones(2, 4, dtype=torch.bfloat16), torch.zeros(3, dtype=torch.bfloat16)
    table = torch.tensor([[1, 0, 0, 0], [1, 2**-10, 0, 0], [1, 2**-10, 0, 0]], dtype=torch.bfloat16)
    assert (F.linear(features, table) == 1).all()
    assert _over_vocabulary(features, table[:2], bias[:2], True)[1].tolist() == [1, 1]
    assert _over_vocabulary(features, table, bias, True)[1].tolist() == [-1, -1]  # two are equal


@pytest.mark.parametrize("trim_offsets", [True, False])
def test_where_the_space_is_part_of_a_token(tmp_path, made, in_float64, trim_offsets):
    """As in RoBERTa's tokenizers and in GPT's, where a token's place begins with the space before it."""
    scorer = in_float64(made("bert", tmp_path)[0])
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=trim_offsets)
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=19, special_tokens=specials, show_progress=False)
    backend.train_from_iterator(["aab aab aab c"], trainer)
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), specials, strict=True))
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=LENGTH, **names)
    fast.save_pretrained(tmp_path / "bytes")
    tokenizer = BertTokenizer.from_pretrained(tmp_path / "bytes")
    scorer = type(scorer)(scorer.model, tokenizer, scorer.attention)
    (one, other) = last_words(scorer, [Passage("aab c aab", 5, "f:1"), Passage("c aab aabc", 5, "f:2")])
    assert backend.encode("aab c aab").tokens == ["aab", "Ġc", "Ġaab"]
    assert (one.tokens, other.tokens) == (1, 2)
    (tmp_path / "spaces.txt").write_text("c aab\nc  aab\nc \t aab\nc \taab\n")
    passages = read_passages(tmp_path / "spaces.txt")
    assert backend.encode("c  aab").tokens == ["c", "Ġ", "Ġaab"]
    assert [own.tokens for own in last_words(scorer, passages)] == [1, 1, 1, 1]


def test_what_cannot_be_told(tmp_path, made, in_float64):
    for family, most in (("bert", 29), ("causal", 30)):
        scorer = in_float64(made(family, tmp_path / family)[0])
        word = "cat" + (most - 1) * "s"
        (own,) = last_words(scorer, [Passage(f"the mat {word}", 7, "f:1")])
        assert (own.tokens, own.cut) == (most, True)
        with pytest.raises(DataError, match=rf"f:2: a last word of {most + 1} tokens, and the model reads {most} and"):
            list(last_words(scorer, [Passage(f"the mat {word}s", 7, "f:2")]))
        with pytest.raises(DataError, match="f:3: a last word of 0 tokens"):
            list(last_words(scorer, [Passage("the mat \u200b", 7, "f:3")]))


def test_figures_by_hand():
    nats = np.random.default_rng(0).normal(-3, 1, 40)
    found = cloze_scores([LastWord(each, i < 25, i == 30, i > 37, i % 8 == 0, 2) for i, each in enumerate(nats)])
    accuracy, perplexity = found["metrics"]["accuracy"], found["metrics"]["perplexity"]
    assert (accuracy["value"], accuracy["n"], perplexity["n"]) == (25 / 40, 40, 40)
    assert (accuracy["low"], accuracy["high"]) == pytest.approx(tuple(binomtest(25, 40).proportion_ci(method="wilson")))
    assert perplexity["value"] == pytest.approx(math.exp(-nats.mean()), rel=1e-12)
    half = math.exp(1.96 * nats.std() / math.sqrt(40))
    ends = perplexity["value"] / half, perplexity["value"] * half
    assert (perplexity["low"], perplexity["high"]) == pytest.approx(ends, rel=0.1)
    assert {name: found[name] for name in ("ties", "unknown", "cut", "tokens")} == {
        "ties": 1,
        "unknown": 2,
        "cut": 5,
        "tokens": 80,
    }


def test_files(tmp_path):
    """LAMBADA's .jsonl, and text; the last word is what stands after white space, line ends among it."""
    rows = [{"text": "the cat sat on a mat"}, {"text": "the dog,\nran. "}]
    wanted = [("the cat sat on a mat", "mat"), ("the dog,\nran.", "ran.")]
    for name in ("lambada.jsonl", "lambada.jsonl.gz"):
        opened = gzip.open if name.endswith(".gz") else open
        with opened(tmp_path / name, "wt") as stream:
            stream.write("".join(json.dumps(row) + "\n" for row in rows))
        found = read_passages(tmp_path / name)
        assert [(each.text, each.text[each.given :].strip()) for each in found] == wanted
        assert found[1].where.endswith(f"{name}:2")
    (tmp_path / "lines.txt").write_text("a cat\n\n  the dog \n")
    assert [each[:2] for each in read_passages(tmp_path / "lines.txt")] == [("a cat", 1), ("  the dog", 5)]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.txt", "", "a.txt: holds no passage"),
        ("a.txt", "\n \n", "a.txt: holds no passage"),
        ("a.jsonl", "", "a.jsonl: holds no row"),
        ("a.txt", "a cat\ncat \n", "a.txt:2: a passage of 1 words; give a last word, and a text that it ends"),
        ("a.jsonl", '{"text": " "}\n', "a.jsonl:1: a passage of 0 words"),
        ("a.jsonl", '{"passage": "a cat"}\n', r"a.jsonl:1: no field 'text' \(it has 'passage'\); name it with --text-"),
        ("a.jsonl", '{"text": ["a cat"]}\n', "a.jsonl:1: the text is a list, not a text"),
        ("a.jsonl", "a cat\n", "a.jsonl:1: not JSON"),
        ("a.csv", "text\na cat\n", "a.csv: tables are not read here"),
    ],
)
def test_what_is_no_passage(tmp_path, name, text, said):
    with pytest.raises(DataError, match=f"{name}: no such file"):
        read_passages(tmp_path / name)
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=said):
        read_passages(tmp_path / name)

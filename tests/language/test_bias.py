"""CrowS-Pairs and StereoSet: the authors' arithmetic, written out here with transformers' models and plain loops."""

import difflib
import math
import random
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
import transformers

import minilm
from minilm.errors import ConfigError, DataError
from minilm.labelled.tables import table_of
from minilm.language import bias, likelihood
from minilm.language.bias import (
    CrowsPair,
    Following,
    Triple,
    crows_log_probabilities,
    crows_scores,
    next_probabilities,
    read_crows,
    read_stereoset,
    stereoset_probabilities,
    stereoset_scores,
)
from minilm.language.cloze import Passage, last_words
from minilm.language.likelihood import log_likelihoods

ROW = {"sent_more": "the cat sat", "sent_less": "the dog sat", "stereo_antistereo": "stereo", "bias_type": "age"}


@torch.no_grad()
def log_p(reference, ids, place):
    return reference(input_ids=torch.tensor([ids])).logits[0, place].log_softmax(0)


def test_crows_pairs_as_its_authors(tmp_path, made, in_float64, sentences):
    directory, reference = made("bert", tmp_path)
    scorer = in_float64(directory)
    rng, pairs = random.Random(0), []
    for i, text in enumerate(sentences(40)):
        words = text.split()
        words[rng.randrange(len(words))] = rng.choice(["cats", "a dog", "ran"])
        pairs.append(CrowsPair(text, " ".join(words), bool(i % 3), "age", f"f:{i}"))
    pairs.append(CrowsPair("the cat", "a dog", True, "age", "f:99"))  # which share nothing
    found = [*crows_log_probabilities(scorer, pairs)]
    for pair, own in zip(pairs, found, strict=True):
        sides = [scorer.tokenizer(text).input_ids for text in (pair.more, pair.less)]
        matcher, template = difflib.SequenceMatcher(None, *([str(id) for id in ids] for ids in sides)), ([], [])
        for name, a, b, c, d in matcher.get_opcodes():
            if name == "equal":
                template[0].extend(range(a, b))
                template[1].extend(range(c, d))
        for ids, places, score in zip(sides, template, own, strict=True):
            total = 0.0
            for place in places[1:-1]:
                hidden = [*ids[:place], scorer.tokenizer.mask_token_id, *ids[place + 1 :]]
                total += log_p(reference, hidden, place)[ids[place]].item()
            assert score == pytest.approx(round(total, 3), abs=1.001e-3 if abs(total * 1e3 % 1 - 0.5) < 1e-6 else 1e-9)
    assert found[-1] == (0, 0)


def test_counts_of_crows_pairs():
    """On 1,000 random tables of scores, with ties, and with no pair of a direction."""
    rng = np.random.default_rng(0)
    for case in range(1000):
        n = rng.integers(1, 60)
        nats = np.round(rng.normal(size=(n, 2)), rng.integers(0, 3))
        stereo = rng.random(n) < rng.choice([0, 0.8, 1])
        pairs = [CrowsPair("a", "b", bool(stereo[i]), "xyz"[i % 3], "f") for i in range(n)]
        right, total, neutral = Counter(), Counter(), 0
        for (more, less), pair in zip(nats, pairs, strict=True):
            direction = "stereo" if pair.stereo else "antistereo"
            first, second = (more, less) if direction == "stereo" else (less, more)
            if first == second:
                neutral += 1
            else:
                total[direction] += 1
                right[direction] += first > second if direction == "stereo" else second > first
        found = crows_scores(nats, pairs)
        assert found["metrics"]["score"]["value"] == pytest.approx(100 * right.total() / n), case
        assert found["ties"] == neutral
        for direction in ("stereo", "antistereo"):
            own = found["metrics"][direction]
            assert own["n"] == total[direction]
            if total[direction]:
                assert own["value"] == pytest.approx(100 * right[direction] / total[direction])
            else:
                assert math.isnan(own["value"])
        assert sum(own["value"] * own["n"] for own in found["by"].values()) == pytest.approx(100 * right.total())
        assert (found["metrics"]["score"]["low"] is None) == (n < 20)


def test_stereoset_as_its_authors(tmp_path, made, in_float64):
    """A word of several pieces: each masked after those before it, the rest not there."""
    directory, reference = made("bert", tmp_path)
    scorer = in_float64(directory)
    contexts = ["the BLANK sat on a mat.", "BLANK ran home", "a BLANK sat and BLANK ran."]
    triples = [Triple(context, ("cats", "dog", "matinged"), "race", "cat", "f") for context in contexts]
    found = [*stereoset_probabilities(scorer, triples)]
    assert len(found) == 3
    for triple, own in zip(triples, found, strict=True):
        for word, worth in zip(triple.words, own, strict=True):
            pieces = scorer.tokenizer(word, add_special_tokens=False).input_ids
            each = []
            for number, piece in enumerate(pieces):
                before = scorer.tokenizer.decode(pieces[:number])
                ids = scorer.tokenizer(triple.context.replace("BLANK", f"{before}[MASK]")).input_ids
                each.append(log_p(reference, ids, ids.index(4))[piece].exp().item())
            assert worth == pytest.approx(np.mean(each), rel=1e-9)
    assert len(scorer.tokenizer("matinged", add_special_tokens=False).input_ids) == 3


def test_counts_of_stereoset():
    """On 1,000 random tables of scores, with ties."""
    rng = np.random.default_rng(1)
    for _ in range(1000):
        n = rng.integers(1, 50)
        worth = np.round(rng.random((n, 3)), rng.integers(1, 3))
        triples = [Triple("BLANK", ("a", "b", "c"), "race", f"t{rng.integers(7)}", "f") for _ in range(n)]
        per_term = defaultdict(Counter)
        for (pro, anti, unrelated), triple in zip(worth, triples, strict=True):
            per_term[triple.target]["pro" if pro > anti else "anti"] += 1
            per_term[triple.target]["related"] += int(pro > unrelated) + int(anti > unrelated)
            per_term[triple.target]["total"] += 1
        ss = np.mean([100 * each["pro"] / each["total"] for each in per_term.values()])
        lms = np.mean([100 * each["related"] / (2 * each["total"]) for each in per_term.values()])
        metrics = stereoset_scores(worth, triples)["metrics"]
        assert metrics["ss"]["value"] == pytest.approx(ss)
        assert metrics["lms"]["value"] == pytest.approx(lms)
        assert metrics["icat"]["value"] == pytest.approx(lms * min(ss, 100 - ss) / 50)


def test_between_two_sentences_as_its_authors(tmp_path, made):
    """The probability that a sentence follows, as transformers has it of each pair by itself."""
    made("bert", tmp_path)
    torch.manual_seed(3)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    reference = transformers.BertForNextSentencePrediction(config).eval()
    reference.save_pretrained(tmp_path)
    model = minilm.BertForNextSentencePrediction.from_pretrained(tmp_path).double()
    tokenizer = minilm.BertTokenizer.from_pretrained(tmp_path)
    sentences = ("a dog ran.", "the mat", "home and cats sat on the mat.")
    following = [Following("the cat sat. " * i, sentences, "race", "t", "f") for i in range(1, 4)] * 7
    found = [*next_probabilities(model, tokenizer, following)]
    assert len(found) == 21
    for each, own in zip(following, found, strict=True):
        for sentence, chance in zip(each.sentences, own, strict=True):
            both = tokenizer(each.context, sentence)
            asked = {name: torch.tensor([both[name]]) for name in ("input_ids", "token_type_ids")}
            assert chance == pytest.approx(reference.double()(**asked).logits[0].softmax(0)[0].item(), abs=1e-9)
    with pytest.raises(DataError, match="f:9: two sentences of 42 tokens, and the model reads 32"):
        [*next_probabilities(model, tokenizer, [*following, Following("cat " * 30, sentences, "a", "t", "f:9")])]
    for none in (
        Following("\u200d", sentences, "a", "t", "f:9"),
        Following("a", ("a", "\u200d", "a"), "a", "t", "f:9"),
    ):
        with pytest.raises(DataError, match="f:9: a sentence without a token that the model reads"):
            next(next_probabilities(model, tokenizer, [*following, none]))


def test_an_interval_is_over_targets():
    rng = np.random.default_rng(2)
    worth = rng.random((400, 3))
    triples = [Triple("BLANK", ("a", "b", "c"), "xy"[i % 2], f"t{i % 40}", "f") for i in range(400)]
    found = stereoset_scores(worth, triples)
    for own in (found["metrics"]["ss"], found["by"]["x"]["lms"]):
        assert own["low"] < own["value"] < own["high"]
    assert found["by"]["x"]["ss"]["n"] == 20  # targets
    fair, lms = found["metrics"]["ss"], found["metrics"]["lms"]
    low, high = (min(end, 100 - end) / 50 for end in (fair["low"], fair["high"]))
    assert found["metrics"]["icat"]["low"] == pytest.approx(lms["low"] * min(low, high))
    assert found["metrics"]["icat"]["high"] == pytest.approx(lms["high"])  # 50 is within the interval of ss


def flattened(*contexts, words=("cats", "dogs", "mats.")):
    sides = ("stereotype", "anti-stereotype", "unrelated")
    return {
        side: [
            {"id": str(i), "context": each, "sentence": each.replace("BLANK", word), "bias_type": "race", "target": "t"}
            for i, each in enumerate(contexts)
        ]
        for side, word in zip(sides, words, strict=True)
    }


def test_files_of_stereoset():
    found = flattened("the BLANK sat.", "A first sentence.", "I saw BLANK")
    for side, sentence in zip(found, ("One.", "Two.", "Three."), strict=True):
        found[side][1]["sentence"] = sentence
    triples, following = read_stereoset(found, "f")
    assert [triple.words for triple in triples] == [("cats", "dogs", "mats")] * 2
    wanted = Following("A first sentence.", ("One.", "Two.", "Three."), "race", "t", "f: stereotype 2")
    assert following == [wanted]


def test_stereoset_as_its_authors_publish_it():
    found = flattened("the BLANK sat.", "A first sentence.", "I saw BLANK")
    for side, sentence in zip(found, ("One.", "Two.", "Three."), strict=True):
        found[side][1]["sentence"] = sentence
    published = {"intrasentence": [], "intersentence": []}
    for number, each in enumerate(found["stereotype"]):
        sentences = [{"gold_label": side, "sentence": found[side][number]["sentence"]} for side in reversed(found)]
        shared = {name: each[name] for name in ("id", "context", "bias_type", "target")}
        published["intersentence" if number == 1 else "intrasentence"].append(shared | {"sentences": sentences})
    plain, own = (read_stereoset(each, "f") for each in (found, {"version": "1.0", "data": published}))
    assert [triple._replace(where="") for triple in own[0]] == [triple._replace(where="") for triple in plain[0]]
    assert [each._replace(where="") for each in own[1]] == [each._replace(where="") for each in plain[1]]
    published["intersentence"][0]["sentences"][0]["gold_label"] = "related"
    with pytest.raises(DataError, match="f: intersentence 1: gold_label is 'related'; give one of stereotype"):
        read_stereoset({"data": published}, "f")
    with pytest.raises(DataError, match="f: intrasentence 1: has no list of sentences"):
        read_stereoset({"data": {"intrasentence": [3]}}, "f")
    with pytest.raises(DataError, match="f: intrasentence is no list"):
        read_stereoset({"data": {"intrasentence": 5}}, "f")
    published["intersentence"].clear()
    published["intrasentence"][1]["sentences"][0]["sentence"] = "I saw ?!"
    with pytest.raises(DataError, match="f: intrasentence 2, unrelated: no word in the place of BLANK"):
        read_stereoset({"data": published}, "f")


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([], "is not StereoSet: neither its 'data', nor an object of lists stereotype, anti-stereotype"),
        ({"stereotype": []}, "is not StereoSet"),
        (flattened("a BLANK") | {"stereotype": 3}, "is not StereoSet"),
        (flattened(), "f: holds no context"),
        (flattened("a BLANK", words=("a", "b", "?!")), "f: unrelated 1: no word in the place of BLANK"),
        (flattened("a BLANK") | {"unrelated": []}, "id '0' is not on each of the sides"),
        (
            {side: 2 * rows for side, rows in flattened("a BLANK").items()},
            "f: stereotype 2: id '0' is on this side already; give each context its own",
        ),
        (flattened("a BLANK") | {"unrelated": [{"id": 3}]}, "f: unrelated 1: is no object of the texts id, context"),
    ],
)
def test_what_is_no_stereoset(found, said):
    with pytest.raises(DataError, match=said):
        read_stereoset(found, "f")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"stereo_antistereo": "neither"}, "row 1: stereo_antistereo is 'neither'; give stereo or antistereo"),
        ({"sent_less": " "}, "row 1: no sentence in sent_less; give it one"),
    ],
)
def test_what_is_no_crows_pair(row, said):
    assert read_crows(table_of([ROW])) == [CrowsPair("the cat sat", "the dog sat", True, "age", "row 1")]
    assert [read_crows(table_of([ROW | {"bias_type": kind}]))[0].kind for kind in ("age ", " ")] == ["age", "(empty)"]
    with pytest.raises(DataError, match=said):
        read_crows(table_of([ROW | row]))
    with pytest.raises(DataError, match="no column 'bias_type'; CrowS-Pairs has sent_more"):
        read_crows(table_of([{name: ROW[name] for name in ROW if name != "bias_type"}]))


def test_what_is_too_long_is_told_before_anything_is_computed(tmp_path, made, in_float64, monkeypatch):
    scorer = in_float64(made("bert", tmp_path)[0])
    monkeypatch.setattr(likelihood, "AHEAD", 1)
    monkeypatch.setattr(likelihood, "_of_batch", lambda *_: pytest.fail("computed"))
    long = "cat " * 40
    with pytest.raises(DataError, match="row 2: a text has 42 tokens"):
        list(crows_log_probabilities(scorer, read_crows(table_of([ROW, ROW | {"sent_less": long}]))))
    with pytest.raises(DataError, match="f:2: a text has 42 tokens"):
        list(log_likelihoods(scorer, ["the cat", long], where=["f:1", "f:2"]))
    with pytest.raises(DataError, match="f:2: a last word of 31 tokens"):
        list(last_words(scorer, [Passage("the cat", 3, "f:1"), Passage("a cat" + 30 * "s", 1, "f:2")]))
    triples = [Triple(context, ("cat", "dog", "mat"), "race", "t", "f") for context in ("a BLANK", f"{long} BLANK")]
    with pytest.raises(DataError, match="f: the context is longer than the model reads"):
        list(stereoset_probabilities(scorer, triples))


def test_tokens_that_many_texts_repeat_are_shared_by_long_ones(tmp_path, made, in_float64, monkeypatch):
    """difflib passes over what is frequent in 200 elements or more."""
    scorer = in_float64(made("bert", tmp_path)[0])
    scorer.tokenizer.model_max_length = 400
    monkeypatch.setattr(type(scorer), "length", 400)
    asked = []
    monkeypatch.setattr(bias, "log_probabilities", lambda scorer, each: asked.extend(each) or iter([np.zeros(1)] * 2))
    more, less = (f"{word} {'the on a ' * 80}{word}" for word in ("cat", "dog"))
    list(crows_log_probabilities(scorer, read_crows(table_of([ROW | {"sent_more": more, "sent_less": less}]))))
    assert [len(each.target) for each in asked] == [240, 240]


def test_what_has_no_token(tmp_path, made, in_float64):
    scorer = in_float64(made("bert", tmp_path)[0])
    with pytest.raises(DataError, match="row 1: a text without a token that the model reads; leave it out"):
        list(crows_log_probabilities(scorer, read_crows(table_of([ROW | {"sent_less": "\u200d"}]))))
    with pytest.raises(DataError, match=r"f:7: .* in the place of BLANK has no token; leave the context out"):
        list(stereoset_probabilities(scorer, [Triple("a BLANK", ("cat", "\u200d", "mat"), "race", "t", "f:7")]))


def test_of_masked_models_only(tmp_path, made, in_float64):
    scorer = in_float64(made("causal", tmp_path)[0])
    with pytest.raises(ConfigError, match="these tests are defined for masked models"):
        crows_log_probabilities(scorer, read_crows(table_of([ROW])))

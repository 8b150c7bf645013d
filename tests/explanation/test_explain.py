"""Explanations of tuned models: what is explained is what they predict, and words are those of the text."""

import json
import random
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import tokenizers
import torch

import minilm
from minilm.errors import ConfigError, DataError
from minilm.explanation.explain import Method, explain, explain_mask
from minilm.explanation.shown import Explanation, Word, coloured_lines, html_fragment, html_page, picture
from minilm.finetuning.tuned import Tuned
from minilm.labelled.examples import Example, Question
from minilm.machine.ranks import Applied
from minilm.machine.runtime import Runtime
from minilm.tasks.choice import MultipleChoice
from minilm.tasks.classification import Classification, MultiLabel
from minilm.tasks.regression import Regression
from minilm.tasks.span import Span
from minilm.tasks.task import Predictions, outputs_of
from minilm.use.complete import MaskedLM, read_masked_lm

METHODS = ["integrated-gradients", "gradient-x-input", "occlusion", "rollout", "attention"]
LABELS = ("a", "b", "c")
CPU = Runtime(torch.device("cpu"), "fp32", "test", 1)


@pytest.fixture
def tokenizer(vocab, tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(vocab) + "\n")
    return minilm.BertTokenizer(tmp_path / "vocab.txt", model_max_length=32)


@pytest.fixture
def random_of(vocab):
    """random_of(class, ...): a model with random weights, in float64."""

    def make(kind, **more):
        torch.manual_seed(3)
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
        config = minilm.BertConfig(vocab_size=len(vocab), max_position_embeddings=32, initializer_range=0.3, **sizes)
        config.change(more)
        return kind(config).double().eval()

    return make


def tuned(model, task, tokenizer, length=32):
    return Tuned(model, tokenizer, task, CPU, length, {})


def predictions(task, model, tokenizer, examples):
    features = task.features(examples, tokenizer, 32)
    return Predictions(outputs_of(task, Applied(model), features, CPU, wants_loss=False)[0], features, examples)


@pytest.mark.parametrize("pairs", [False, True])
def test_what_is_explained_is_what_is_predicted(random_of, tokenizer, sentences, pairs):
    """Of labels, several labels and numbers: the likeliest one and its logit; or the one that is asked for."""
    made = [Example(text, text[::-1] if pairs else None) for text in sentences(6)]
    asked = [each.text for each in made], [each.pair for each in made] if pairs else None
    for task, more in (
        (Classification(LABELS), {"num_labels": 3}),
        (MultiLabel(LABELS), {"num_labels": 3}),
        (Regression(), {"num_labels": 1}),
    ):
        model = random_of(minilm.BertForSequenceClassification, **more)
        said = predictions(task, model, tokenizer, made)
        logits = said.outputs.reshape(len(made), -1)
        for name in METHODS:
            found = explain(tuned(model, task, tokenizer), *asked, method=Method(name, steps=10))
            assert [each.score for each in found] == pytest.approx(logits.max(axis=1), abs=1e-5)
            assert {word.part for each in found for word in each.words} == {0, None} | ({1} if pairs else set())
        if isinstance(task, Regression):
            assert {(each.says, each.probability) for each in found} == {("the number", None)}
            continue
        assert [each.says for each in found] == [LABELS[i] for i in logits.argmax(axis=1)]
        chances = task.probabilities(logits.astype(np.float64)).max(axis=1)
        assert [each.probability for each in found] == pytest.approx(chances, abs=1e-6)
        found = explain(tuned(model, task, tokenizer), *asked, method=Method("occlusion"), target="b")
        assert [each.score for each in found] == pytest.approx(logits[:, 1], abs=1e-5)


def test_words_are_the_texts(random_of, tokenizer):
    """A word's pieces are summed, and hidden together; what stands between words is there when they are shown."""
    model, task = random_of(minilm.BertForSequenceClassification, num_labels=3), Classification(LABELS)
    text = "The cats  sat, zzz dogsing."
    by_word = explain(tuned(model, task, tokenizer), [text], method=Method(steps=30))[0]
    assert [word.text for word in by_word.words] == ["[CLS]", "The", "cats", "sat", ",", "zzz", "dogsing", ".", "[SEP]"]
    assert [text[word.start : word.end] for word in by_word.words[1:-1]] == [word.text for word in by_word.words[1:-1]]
    assert (by_word.words[0].value, by_word.words[-1].value) == (0, 0)  # which the baseline has, too
    assert by_word.completeness_error < 1e-3
    total = sum(word.value for word in by_word.words)
    assert total == pytest.approx(by_word.score - by_word.baseline_score, rel=1e-3)
    hidden = explain(tuned(model, task, tokenizer), [text], method=Method("occlusion"))[0]
    ids = tokenizer(text, return_tensors="pt").input_ids
    mask, number = tokenizer.mask_token_id, LABELS.index(hidden.says)
    pieces = np.array([-1 if each is None else each for each in tokenizer(text).word_ids()])
    assert (pieces == 1).sum() == 2
    with torch.no_grad():
        for at, word in enumerate(hidden.words[1:-1]):
            other = torch.where(torch.from_numpy(pieces == at), mask, ids)
            assert hidden.score - float(model(other).logits[0, number]) == pytest.approx(word.value, abs=1e-9)
    shown = re.sub(r"<[^>]*>", "", re.sub("<sup>.*?</sup>", "", html_fragment(by_word)))
    assert shown == text
    assert re.sub(r"\x1b\[0m|\x1b\[30;48;5;\d+m|[+-]", "", "".join(coloured_lines(by_word))) == text


def test_byte_level_words_have_no_spaces(random_of):
    """RoBERTa's tokenizer counts the space before a word as its."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *alphabet]
    made = tokenizers.Tokenizer(tokenizers.models.BPE({word: i for i, word in enumerate(words)}, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.post_processor = tokenizers.processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=False)
    tokenizer = minilm.BertTokenizer(made, tokenizer_class="RobertaTokenizer")
    model = random_of(minilm.BertForSequenceClassification, num_labels=3, vocab_size=len(words))
    found = explain(tuned(model, Classification(LABELS), tokenizer), ["A naïve  cat."])[0]
    assert [word.text for word in found.words if word.part == 0] == ["A", "naïve", " ", "cat", "."]
    assert re.sub(r"<[^>]*>|[+−]", "", html_fragment(found)) == "A naïve  cat."


def test_shares_are_of_what_is_read(random_of, tokenizer):
    """[CLS]'s row of the attention that the model returns, of one layer and head or of all."""
    model, task, text = random_of(minilm.BertForSequenceClassification), Classification(("a", "b")), "a cat sat"
    maps = torch.stack(model(**tokenizer(text, return_tensors="pt"), output_attentions=True).attentions).detach()
    for method, wanted in (
        (Method("attention"), maps.mean(dim=(0, 2))),
        (Method("attention", layer=2, head=3), maps[1, :, 2]),
    ):
        found = explain(tuned(model, task, tokenizer), [text], method=method)[0]
        assert [word.value for word in found.words] == pytest.approx(wanted[0, 0].tolist(), abs=1e-9)
        assert np.abs(found.map - wanted[0].numpy()).max() < 1e-9
    found = explain(tuned(model, task, tokenizer), [text], method=Method("rollout"))[0]
    assert sum(word.value for word in found.words) == pytest.approx(1)
    with pytest.raises(ConfigError, match="--layer 3: the model has 2; give a value from 1 to 2"):
        explain(tuned(model, task, tokenizer), [text], method=Method("attention", layer=3))


def test_answers(random_of, tokenizer):
    """That of `Span`, its start's and end's logits; of no answer those of [CLS]."""
    rng, model = random.Random(0), random_of(minilm.BertForQuestionAnswering)
    words = ["cat", "sat", "on", "mat", "dogs", "ran", "home", "."]
    made = [Question(str(i), "a cat", " ".join(rng.choices(words, k=9)), None) for i in range(8)]
    for threshold in (None, -1e9):
        task = Span(threshold=threshold, max_answer=3)
        said = predictions(task, model, tokenizer, made)
        questions, contexts = [each.question for each in made], [each.context for each in made]
        found = explain(tuned(model, task, tokenizer), questions, contexts, method=Method(steps=60))
        assert [each.says for each in found] == task.decode(said)
        logits = said.outputs.astype(np.float64)
        spans = [np.arange(a, b) for a, b in zip(said.features.offsets[:-1], said.features.offsets[1:], strict=True)]
        for each, own in zip(found, spans, strict=True):
            assert each.completeness_error < 0.01
            if threshold is None:
                assert each.score <= logits[own, 0].max() + logits[own, 1].max() + 1e-5
                assert each.says != ""
            else:
                assert each.score == pytest.approx(logits[own[0]].sum(), abs=1e-5)
                assert each.says == ""
    with pytest.raises(DataError, match="question and context are longer than 32 tokens"):
        explain(tuned(model, Span(), tokenizer), ["a"], ["cat " * 40])


def test_masks(tmp_path, made):
    """What `fill_mask` says first; the mask itself is no word that could be taken away."""
    made("bert", tmp_path)
    masked = read_masked_lm(tmp_path)
    masked.model.double()
    text = "the [MASK] sat on a mat"
    best = minilm.fill_mask(masked, text, top_k=1)[0]
    for name in ("integrated-gradients", "occlusion"):
        found = explain_mask(masked, text, Method(name))
        assert found.says == best.token
        assert [word.text for word in found.words][2] == "[MASK]"
        assert found.words[2].value == 0
        assert found.completeness_error is None or found.completeness_error < 0.01
    logits = masked.model(**masked.tokenizer(text, return_tensors="pt")).logits[0, 2]
    dog = masked.tokenizer.convert_tokens_to_ids("dog")
    assert explain_mask(masked, text, Method("occlusion"), "dog").score == pytest.approx(logits[dog].item())
    for bad, target, said in (
        ("the cat", None, r"holds 0 \[MASK\] within"),
        ("[MASK] [MASK]", None, r"holds 2 \[MASK\]"),
        (text, "dogs", "--target dogs: is no token of the model's vocabulary"),
    ):
        with pytest.raises((ConfigError, DataError), match=said):
            explain_mask(masked, bad, target=target)


def test_a_mask_filled_from_beyond_the_vocabulary(tmp_path, made):
    """As by a model whose table is padded to a multiple of 64."""
    made("bert", tmp_path)
    masked = read_masked_lm(tmp_path)
    masked.model.resize_token_embeddings(pad_to_multiple_of=64)
    last = masked.model.config.vocab_size - 1
    assert masked.tokenizer.convert_ids_to_tokens(last) is None
    with torch.no_grad():
        masked.model.head.bias[last] = 100.0
    text = "the [MASK] sat on a mat"
    assert minilm.fill_mask(masked, text, top_k=1)[0].token == "[UNK]"
    assert explain_mask(masked, text, Method("occlusion")).says == "[UNK]"


@pytest.mark.parametrize("lstrip", [True, False])
def test_after_a_space_a_target_begins_with_it(random_of, lstrip):
    """As RoBERTa's tokens do, whose names are told without it; whether or not a space before the mask is the mask's."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *alphabet, "ca", "cat", "Ġcat"]
    merges = [("c", "a"), ("ca", "t"), ("Ġ", "cat")]
    made = tokenizers.Tokenizer(tokenizers.models.BPE({word: i for i, word in enumerate(words)}, merges))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.post_processor = tokenizers.processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=False)
    made.add_special_tokens([tokenizers.AddedToken("<mask>", lstrip=lstrip)])
    masked = MaskedLM(
        random_of(minilm.BertForMaskedLM, vocab_size=len(words)), minilm.BertTokenizer(made, cls_token="<s>")
    )
    known = masked.tokenizer.get_vocab()
    for text, target, wanted in (
        ("a <mask> b", "cat", "Ġcat"),
        ("a <mask>", "Ġcat", "Ġcat"),
        ("a <mask>", " cat", "Ġcat"),
        ("a,<mask>", "cat", "cat"),
        ("a <mask>", "ca", "ca"),  # the only one of that name
        ("<mask>", "cat", "cat"),
    ):
        found = explain_mask(masked, text, Method("occlusion"), target)
        ids = masked.tokenizer(text, return_tensors="pt").input_ids
        logits = masked.model(ids).logits[0, ids[0].tolist().index(known["<mask>"])]
        assert found.score == pytest.approx(logits[known[wanted]].item()), (text, target)
    for target in ("", "a cat", "dog"):
        with pytest.raises(ConfigError, match="is no token of the model's vocabulary"):
            explain_mask(masked, "a <mask>", target=target)


def test_what_cannot_be(random_of, tokenizer):
    model, task = random_of(minilm.BertForSequenceClassification, num_labels=3), Classification(("good", "bad", "c"))
    with pytest.raises(ConfigError, match="--target goood: the labels are good, bad, c; did you mean good"):
        explain(tuned(model, task, tokenizer), ["a cat"], target="goood")
    with pytest.raises(DataError, match="explain takes a list of texts"):
        explain(tuned(model, task, tokenizer), "a cat")
    with pytest.raises(DataError, match="2 texts and 1 pairs; give each text its own"):
        explain(tuned(model, task, tokenizer), ["a", "cat"], ["b"])
    with pytest.raises(ConfigError, match="--method occlusive: give one of"):
        explain(tuned(model, task, tokenizer), ["a cat"], method="occlusive")
    assert [each.method for each in explain(tuned(model, task, tokenizer), ["a cat"], method="rollout")] == ["rollout"]
    with pytest.raises(DataError, match="holds no word that the model reads"):
        explain(tuned(model, task, tokenizer), [" "])
    with pytest.raises(ConfigError, match="is tuned for choice"):
        explain(tuned(model, MultipleChoice(), tokenizer), ["a"])
    with pytest.raises(ConfigError, match="--layer, --head: for --method attention"):
        Method("rollout", head=1)
    long = explain(tuned(model, task, tokenizer), ["cat " * 40 + "dog"], method=Method("occlusion"))[0]
    assert long.cut
    assert len(long.words) == 32
    assert re.sub(r"<[^>]*>|[+−]", "", html_fragment(long)).endswith("cat dog")  # which is not read, but shown


HOSTILE = '<script>alert(1)</script> & "x" \x1b[2J\u202e $x^2$'


def hostile(method="occlusion", map=None):
    words = [Word(HOSTILE, -1.0, 0, 0, len(HOSTILE)), Word("[SEP]", 0.5, None, 0, 0)]
    return Explanation(method, HOSTILE, 1.0, (f"{HOSTILE} tail",), tuple(words), False, map=map)


def test_a_page_is_safe_and_loads_nothing():
    """Text is text; signs can be read without colour."""
    page = html_page(hostile(), HOSTILE)
    tags = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.append((tag, dict(attributes)))
    parser.feed(page)
    names = {tag for tag, _ in tags}
    assert names.isdisjoint({"script", "link", "img", "iframe", "object", "embed", "base"})
    assert not any({"src", "href"} & {*own} or any(name.startswith("on") for name in own) for _, own in tags)
    assert "url(" not in page
    assert "@import" not in page
    assert "&lt;script&gt;" in page
    assert not {"\x1b", "\u202e"} & {*page}
    assert "<sup>−−−</sup>" in page
    assert "-1.0000" in page
    assert "color-scheme:light dark" in page
    line = coloured_lines(hostile())[0]
    assert line.replace("\x1b[30;48;5;69m", "").replace("\x1b[0m", "").isprintable()
    assert "---" in line


@pytest.mark.parametrize("map", [None, np.array([[0.5, 0.5], [1.0, 0.0]])])
def test_pictures(map):
    image = picture(hostile("attention" if map is not None else "occlusion", map))
    assert image.startswith(b"\x89PNG")
    found = hostile()
    many = SimpleNamespace(words=tuple(found.words[0]._replace(value=i, text=f"w{i}") for i in range(300)))
    assert picture(Explanation("occlusion", "a", 1.0, ("",), many.words, False)).startswith(b"\x89PNG")
    assert json.dumps(hostile("rollout", map).as_json())

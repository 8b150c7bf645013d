"""Answers in a context: windows by hand, decoding as the inverse of the targets, and the loss of a padded batch."""

import json
import random
import string
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from torch.nn.utils.rnn import pad_sequence

import minilm
from minilm.checkpoint.store import Store
from minilm.dropin.config import PreTrainedConfig
from minilm.dropin.tokenizer import BertTokenizer
from minilm.errors import CheckpointError, ConfigError
from minilm.finetuning.run import tune
from minilm.finetuning.settings import Tuning
from minilm.labelled.examples import Question
from minilm.machine.ranks import Applied
from minilm.machine.runtime import Runtime
from minilm.metrics.scores import span_scores
from minilm.tasks.named import make_task, model_for, open_task
from minilm.tasks.span import THRESHOLD, Span, gold_answers, windows
from minilm.tasks.task import Predictions, batch_of, outputs_of

PLAIN, SAID = ["the", "film", "was", "and", "plot", "a"], ["fine", "great", "lovely", "awful", "poor", "dull"]
ODD = ["Ünïted", "naïve", "東京", "👩‍🚀", "e\u0301t\u00e9", "İstanbul", "ﬁne", "ß", "x\u00adx", "12,5%", "\u202eabc"]
ODD += ["—", "don't", "(a)", "Ελλάδα"]


@pytest.fixture
def tokenizer(directory):
    return BertTokenizer.from_pretrained(directory)


@pytest.fixture
def cpu():
    return Runtime(torch.device("cpu"), "fp32", "test", torch.get_num_threads())


def characters():
    """A WordPiece of characters, lower-cased and without accents."""
    letters = {each for word in [*ODD, *PLAIN, *SAID] for each in word.lower()} | {*string.ascii_lowercase}
    letters = sorted(letters)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{each}" for each in letters)]
    return BertTokenizer({word: i for i, word in enumerate(words)})


def byte_level():
    """RoBERTa's way: a token a byte, a space belongs to the word behind it, four specials."""
    words = ["<s>", "<pad>", "</s>", "<unk>", *sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())]
    made = tokenizers.Tokenizer(tokenizers.models.BPE({word: i for i, word in enumerate(words)}, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.post_processor = tokenizers.processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=False)
    return BertTokenizer(made, tokenizer_class="RobertaTokenizer")


def question(id, asked, context, *answers):
    return Question(id, asked, context, tuple((context.index(text), text) for text in answers), f"f: {id}")


def asked(n, seed=0, impossible=True):
    """n questions; the answer is the only word of SAID in the context, and every third context has none."""
    rng = random.Random(seed)
    found = []
    for i in range(n):
        words = rng.choices(PLAIN, k=rng.randint(3, 30))
        if not impossible or i % 3:
            at = rng.randint(0, len(words))
            words.insert(at, rng.choice(SAID))
            answers = ((len(" ".join(words[:at])) + (at > 0), words[at]),)
        else:
            answers = ()
        texts = " ".join(rng.choices(PLAIN, k=rng.randint(1, 4))), " ".join(words)
        found.append(Question(str(i), *texts, answers, f"row {i}"))
    return found


# -- features -----------------------------------------------------------------------------------------


def test_windows_by_hand(tokenizer):
    """Of 10 tokens each, which share 2: room for 6 tokens of a context of 8."""
    context = "the film was great and a plot ."
    examples = [
        question("inside of the first", "fine", context, "great"),
        question("on the border", "fine", context, "and a"),
        question("in neither whole", "fine", context, "was great and a plot"),
        question("unanswerable", "fine", "[SEP]"),
    ]
    features = Span(stride=2).features(examples, tokenizer, 10)
    words = ["[CLS] fine [SEP] the film was great and a [SEP]", "[CLS] fine [SEP] and a plot . [SEP]"]
    ids = [tokenizer.convert_tokens_to_ids(each.split()) for each in words]
    assert features.offsets.tolist()[:7] == [0, 10, 18, 28, 36, 46, 54]
    for at in range(6):
        place = slice(features.offsets[at], features.offsets[at + 1])
        assert features.ids[place].tolist() == ids[at % 2]
        assert features.types[place].tolist() == [0] * 3 + [1] * (len(ids[at % 2]) - 3)
        spans = [context[a:b] if a >= 0 else "-" for a, b in features.chars[place].tolist()]
        assert spans == ["-"] * 3 + words[at % 2].split()[3:-1] + ["-"]
    assert features.target.tolist() == [[6, 6], [0, 0], [7, 8], [3, 4], [0, 0], [0, 0], [0, 0]]
    assert features.example.tolist() == [0, 0, 1, 1, 2, 2, 3]
    last = features.ids[features.offsets[6] :].tolist()
    assert last.count(tokenizer.sep_token_id) == 2  # what a text writes out is text
    assert features.cut == 3  # each read in two windows
    assert not features.of_tokens


@pytest.mark.parametrize("stride", [0, 1, 5])
def test_windows_are_the_tokenizers(tokenizer, stride):
    for each in asked(60, seed=stride):
        examples = Span(stride=stride).features([each], tokenizer, 18)
        theirs = tokenizer(
            [each.question],
            [each.context],
            truncation="only_second",
            max_length=18,
            stride=stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        assert examples.ids.tolist() == [id for row in theirs.input_ids for id in row]
        assert examples.types.tolist() == [type for row in theirs.token_type_ids for type in row]
        spans = [[*span] for row in theirs.offset_mapping for span in row]
        assert all(own in (span, [-1, -1]) for own, span in zip(examples.chars.tolist(), spans, strict=True))


def test_a_long_question_leaves_half_to_its_context(tokenizer):
    """It is cut and counted, and the windows go on: each has something new."""
    long, context = " ".join(["plot"] * 30), " ".join(["film"] * 20 + ["fine"])
    features = Span().features([question("a", long, context, "fine"), question("b", long, "a", "a")], tokenizer, 24)
    assert (features.cut, features.lengths.max()) == (2, 24)
    assert (features.types == 0).sum() < len(features.ids)
    chars = features.chars[np.repeat(features.example, features.lengths) == 0]
    assert {context[a:b] for a, b in chars.tolist() if a >= 0} == {"film", "fine"}
    assert len({a for a, _ in chars.tolist()} - {-1}) == 21
    assert (features.target[features.example == 0] > 0).any()
    assert features.lengths[-1] == 24  # a short context leaves the question the rest
    for length in (5, 6, 9):
        made = Span().features([question("a", long, context, "fine")], tokenizer, length)
        assert made.lengths.max() == length
        assert len({a for a, _ in made.chars.tolist()} - {-1}) == 21
    with pytest.raises(ConfigError, match="--length 4: no room for a question"):
        Span().features([question("a", "a", "a")], tokenizer, 4)


def test_every_token_of_a_context_is_in_a_window():
    rng = np.random.default_rng(0)
    for _ in range(300):
        q, c, length, stride = rng.integers(0, 30), rng.integers(0, 90), rng.integers(5, 40), rng.integers(0, 40)
        text_of = np.array([-1, *[0] * q, -1, *[1] * c, -1])
        found, is_cut = windows(text_of, int(length), int(stride))
        assert {*np.concatenate(found).tolist()} >= {*np.flatnonzero(text_of != 0).tolist()}
        assert all(len(window) <= length and (np.diff(window) > 0).all() for window in found)
        assert is_cut == (not {*np.flatnonzero(text_of == 0)} <= {*found[0].tolist()})
        contexts = [window[text_of[window] == 1] for window in found]
        for one, other in pairwise(contexts):
            assert len(np.intersect1d(one, other)) == min(stride, len(one) // 2)


# -- decoding -----------------------------------------------------------------------------------------


def gold_logits(features):
    """1 at the start and the end of each window's answer; of [CLS] where a window has none."""
    outputs = np.zeros((len(features.ids), 2), np.float32)
    places = features.offsets[:-1, None] + features.target
    outputs[places[:, 0], 0] = outputs[places[:, 1], 1] = 1
    outputs[features.offsets[:-1]] -= 0.5 * (features.target == 0)  # an answer in another window wins
    return outputs


def plain(text):
    """Without an accent of its own and a mark at the edge, of which a WordPiece keeps no place."""
    return text.replace("\u0301", "").strip("\u202e")


@pytest.mark.parametrize(("kind", "length"), [("words", 24), ("characters", 60), ("bytes", 120)])
def test_decoding_gives_back_each_answer(kind, length, tokenizer):
    """Of 400 contexts in several windows, for three kinds of tokens and texts of any script."""
    made = {"words": lambda: tokenizer, "characters": characters, "bytes": byte_level}[kind]()
    rng = random.Random(kind)
    examples = []
    for i in range(400):
        words = rng.choices([*PLAIN, *SAID, *ODD], k=rng.randint(1, 40))
        context, starts = rng.choice(["", " ", "\n "]), []
        for word in words:
            starts.append(len(context))
            context += word + rng.choice([" ", " ", "\n", " \u00a0 "])
        first = rng.randrange(len(words))
        last = min(len(words) - 1, first + i % 2)
        answers = ((starts[first], context[starts[first] : starts[last] + len(words[last])]),)
        examples.append(Question(str(i), rng.choice(ODD + PLAIN), context, answers if i % 5 else ()))
    task = Span(max_answer=100)
    features = task.features(examples, made, length)
    assert len(features) > 1.5 * len(examples)
    assert features.cut == (np.bincount(features.example) > 1).sum()
    texts, margins = task.answers(Predictions(gold_logits(features), features, examples))
    assert [*texts] == [*margins] == [each.id for each in examples]
    for i, each in enumerate(examples):
        assert (features.target[features.example == i] > 0).any() == bool(each.answers)
        if each.answers:
            assert plain(texts[each.id]) == plain(each.answers[0][1])
        else:
            assert margins[each.id] >= 0


def test_decoding_is_the_best_of_all_spans(tokenizer):
    """By a loop over starts and ends, with random logits; the margin, too."""
    examples = asked(30, seed=1)
    for max_answer in (1, 4, 30):
        task = Span(stride=3, max_answer=max_answer, threshold=0.5)
        features = task.features(examples, tokenizer, 14)
        outputs = np.random.default_rng(max_answer).normal(size=(len(features.ids), 2)).astype(np.float32)
        predictions = Predictions(outputs, features, examples)
        answers, margins = task.answers(predictions)
        always, _ = replace(task, threshold=None).answers(predictions)
        for i, each in enumerate(examples):
            spans, cls = [], []
            for row in np.flatnonzero(features.example == i):
                own = outputs[features.offsets[row] : features.offsets[row + 1]].astype(np.float64)
                chars = features.chars[features.offsets[row] : features.offsets[row + 1]]
                cls.append(own[0].sum())
                for a in range(len(own)):
                    for b in range(a, min(len(own), a + max_answer)):
                        if chars[a, 0] >= 0 and chars[b, 0] >= 0:
                            spans.append((own[a, 0] + own[b, 1], each.context[chars[a, 0] : chars[b, 1]]))
            best, text = max(spans, key=lambda span: span[0])
            assert margins[each.id] == pytest.approx(min(cls) - best, abs=1e-12)
            assert (always[each.id], answers[each.id]) == (text, "" if margins[each.id] > 0.5 else text)


def test_a_context_of_no_tokens_has_no_answer(tokenizer):
    examples = [Question("a", "film", "\u200b\u00ad", ()), question("b", "film", "the plot", "plot")]
    features = Span().features(examples, tokenizer, 24)
    predictions = Predictions(np.zeros((len(features.ids), 2)), features, examples)
    answers, margins = Span(threshold=None).answers(predictions)
    assert (answers["a"], margins["a"], answers["b"]) == ("", np.inf, "the")
    fitted = Span().fitted(predictions)
    assert np.isfinite(fitted.threshold)


# -- the model ----------------------------------------------------------------------------------------


def padded(model, features, rows, **targets):
    parts = [slice(features.offsets[row], features.offsets[row + 1]) for row in rows]
    columns = (features.ids, features.types, np.ones_like(features.ids))
    ids, types, mask = (
        pad_sequence([torch.from_numpy(column[part].astype(np.int64)) for part in parts], True) for column in columns
    )
    return model(input_ids=ids, token_type_ids=types, attention_mask=mask, **targets)


@pytest.mark.parametrize("split", [1, 3])
def test_packed_is_one_by_one(directory, tokenizer, split, exact_float64):
    """Loss and every gradient in float64, of all at once or in parts: those of the class itself, a window at a time
    (in a padded batch its softmax, as that of transformers, is over padding, too)."""
    model, task = model_for(Span(stride=4), directory)
    model.double()
    features = task.features(asked(10), tokenizer, 24)
    n = len(features)
    assert n > 10
    mean = 0.0
    for rows in np.array_split(np.arange(n), split):
        batch, _ = batch_of(features, rows)
        nats, count = task.loss(model, batch)
        assert int(count) == batch.count == len(rows)
        (nats / n).backward()
        mean += nats.item() / n
    packed = {name: own.grad.clone() for name, own in model.named_parameters()}
    model.zero_grad()
    start, end = torch.from_numpy(features.target).unbind(dim=1)
    for row in range(n):
        loss = padded(model, features, [row], start_positions=start[[row]], end_positions=end[[row]]).loss
        (loss / n).backward()
        mean -= loss.item() / n
    assert abs(mean) < 1e-12
    for name, own in model.named_parameters():
        assert (own.grad - packed[name]).abs().max() < 1e-9 * max(1, own.grad.abs().max()), name


def test_outputs_are_in_the_order_of_the_tokens(directory, tokenizer, cpu, monkeypatch):
    model, task = model_for(Span(stride=4), directory)
    features = task.features(asked(20), tokenizer, 24)
    with torch.no_grad():
        alone = [padded(model, features, [row]) for row in range(len(features))]
    logits = torch.cat([torch.stack((each.start_logits[0], each.end_logits[0]), dim=1) for each in alone])
    chances = [
        torch.stack((each.start_logits, each.end_logits)).log_softmax(-1)[[0, 1], 0, features.target[row]].mean()
        for row, each in enumerate(alone)
    ]
    for at_once in (1, 50, 1 << 12):
        monkeypatch.setattr("minilm.tasks.task.EVALUATED_AT_ONCE", at_once)
        found, loss = outputs_of(task, Applied(model), features, cpu)
        assert np.abs(found - logits.numpy()).max() < 1e-5
        assert loss == pytest.approx(-torch.stack(chances).mean().item(), rel=1e-5)


@pytest.fixture
def go(directory, tokenizer, tmp_path):
    """go(examples, dev): a run in tmp_path/run."""

    def run(examples, dev, **changes):
        model, task = model_for(make_task("span", examples), directory)
        tuning = Tuning(epochs=25, batch_size=8, lr=4e-3, length=24, patience=100, evaluate_every=100)
        store = Store(tmp_path / "run")
        with store.hold():
            tuning = replace(tuning, **changes)
            return tune(task, model, tokenizer, examples, dev, tuning, store, device="cpu", precision="fp32")

    return run


def test_it_learns_and_transformers_says_the_same(go, tmp_path, adds_up):
    """Answers and when there is none, from contexts longer than the model; its logits in transformers are as here."""
    examples = asked(48)
    tuned = go(examples, examples)
    assert tuned.result["dev"]["f1"] >= 0.95
    assert [*tuned.result["dev"]][1:] == ["f1", "exact", "f1_answerable", "exact_answerable", "f1_no_answer"]
    adds_up(tuned.task, tuned.predictions(examples))
    adds_up(tuned.task, tuned.predictions([each for each in asked(24) if each.answers]))
    answers, margins = tuned.task.answers(tuned.predictions(examples))
    assert span_scores(answers, gold_answers(examples))["f1"] == tuned.result["dev"]["f1"]
    other = [each._replace(answers=(*each.answers, (0, "the"))) for each in examples]
    with pytest.raises(ConfigError, match="began with other examples"):
        go(examples, other)
    _, task = open_task(tmp_path / "run")
    assert task == tuned.task
    assert json.loads((tmp_path / "run" / "config.json").read_text())[THRESHOLD] == tuned.task.threshold
    again = go(examples, examples)  # finished: nothing is trained
    assert (again.task, again.result) == (tuned.task, tuned.result)
    assert getattr(again.model.config, THRESHOLD) == tuned.task.threshold != 0
    theirs = transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path / "run")
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path / "run")
    assert getattr(theirs.config, THRESHOLD) == tuned.task.threshold
    for each in (each for each in examples if len(each.context.split()) < 15):
        inputs = reader(each.question, each.context, return_tensors="pt", return_offsets_mapping=True)
        offsets, texts = inputs.pop("offset_mapping")[0].tolist(), inputs.sequence_ids()
        with torch.no_grad():
            said = theirs(**inputs)
        start, end = said.start_logits[0], said.end_logits[0]
        inside = [t for t, text in enumerate(texts) if text == 1]
        score, a, b = max((float(start[a] + end[b]), a, b) for a in inside for b in inside if a <= b)
        margin = float(start[0] + end[0]) - score
        assert margins[each.id] == pytest.approx(margin, abs=1e-4)
        if abs(margin - task.threshold) > 1e-3:
            wanted = "" if margin > task.threshold else each.context[offsets[a][0] : offsets[b][1]]
            assert answers[each.id] == wanted


def test_without_unanswerable_questions_something_is_always_said(go, tmp_path):
    examples = asked(24, impossible=False)
    tuned = go(examples, examples, epochs=2)
    assert tuned.task.threshold is None
    assert open_task(tmp_path / "run")[1].threshold is None
    assert "f1_no_answer" not in tuned.result
    assert all(tuned.task.answers(tuned.predictions(asked(24)))[0].values())


def test_the_threshold_is_the_best_for_dev(tokenizer):
    """No other does better there; without unanswerable questions in training there is none."""
    examples = asked(60, seed=4)
    task = Span(stride=4)
    features = task.features(examples, tokenizer, 24)
    outputs = gold_logits(features) + np.random.default_rng(0).normal(size=(len(features.ids), 2)) * 0.4
    predictions = Predictions(outputs, features, examples)
    fitted = task.fitted(predictions)
    best = fitted.score(predictions)["f1"]
    margins = task.answers(predictions)[1]
    others = [replace(task, threshold=margin).score(predictions)["f1"] for margin in margins.values()]
    assert best == pytest.approx(max(others), abs=1e-12)
    assert best > task.score(predictions)["f1"] - 1e-12
    assert replace(task, threshold=None).fitted(predictions).threshold is None
    assert make_task("span", examples).threshold == 0.0
    assert make_task("span", asked(9, impossible=False)).threshold is None


def test_a_family_without_such_a_head_is_refused(tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    sizes |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    minilm.BertLMHeadModel(PreTrainedConfig("modernbert-decoder", vocab_size=64, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="a modernbert-decoder has no such class"):
        model_for(Span(), tmp_path)


@pytest.mark.parametrize("value", ["0.5", True, float("inf"), [1]])
def test_a_threshold_that_is_no_number_is_refused(directory, value):
    model, task = model_for(Span(), directory)
    assert task.as_saved(model).threshold == 0.0
    model.config.update({THRESHOLD: value})
    with pytest.raises(CheckpointError, match="no_answer_threshold is"):
        task.as_saved(model)

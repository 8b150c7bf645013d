"""Tags of words: features by hand, loss and outputs of a padded batch, entities as seqeval and pipelines see them."""

import random

import numpy as np
import pytest
import tokenizers
import torch
from seqeval.metrics import f1_score
from torch.nn.utils.rnn import pad_sequence
from transformers import pipeline

from minilm.checkpoint.store import Store
from minilm.dropin.models import BertForTokenClassification
from minilm.dropin.tokenizer import BertTokenizer
from minilm.errors import ConfigError, DataError
from minilm.finetuning.run import tune
from minilm.finetuning.settings import Tuning
from minilm.labelled.examples import Tagged
from minilm.labelled.spans import read_tagged
from minilm.machine.ranks import Applied
from minilm.machine.runtime import Runtime
from minilm.metrics.scores import per_type, spans
from minilm.tasks.baselines import commonest_tags
from minilm.tasks.named import make_task, model_for, open_task, read_alike, read_examples, read_source
from minilm.tasks.predictions import tags_text
from minilm.tasks.tagging import Tagging, tag_scores, without_token
from minilm.tasks.task import Predictions, batch_of, outputs_of

TASK = Tagging(("O", "B-bad", "B-good", "I-good"))
GOOD, BAD, PLAIN = ["fine", "great", "lovely"], ["awful", "poor", "dull"], ["the", "film", "was", "and", "plot", "a"]


@pytest.fixture
def cpu():
    return Runtime(torch.device("cpu"), "fp32", "test", torch.get_num_threads())


@pytest.fixture
def tokenizer(directory):
    return BertTokenizer.from_pretrained(directory)


@pytest.fixture
def sentences():
    """sentences(n, seed, most): n of them, at most so many words; "film" and "films" are tagged by the word before."""

    def make(n, seed=0, most=14):
        rng = random.Random(seed)
        found = []
        for i in range(n):
            words, tags, length = [], [], rng.randint(1, most)
            while len(words) < length:
                kind = rng.randrange(4)
                if kind == 0:
                    words += [rng.choice(GOOD), rng.choice(["film", "films"])]
                    tags += ["B-good", "I-good"]
                else:
                    words.append(rng.choice(BAD if kind == 1 else [*PLAIN, "plots", "film.", "\x01"]))
                    tags.append("B-bad" if kind == 1 else "O")
            found.append(Tagged(tuple(words), tuple(tags), f"row {i + 1}"))
        return found

    return make


def test_features_by_hand(tokenizer):
    """Of sentences that are split, a word longer than what is read, words of no token, and one that just fits."""
    examples = [
        Tagged(("films", "was", "fine.", "[SEP]"), ("B-good", "O", "B-bad", "O")),
        Tagged(("the", "filmss", "and", "a", "plots"), ("O", "B-good", "I-good", "O", "new")),
        Tagged(("film" + "s" * 9, "\x01", "a"), ("B-good", "B-bad", "I-good")),
        Tagged(("\x01",), ("B-bad",)),
        Tagged(("a", "film", "was", "a", "plot"), ("O",) * 5),
    ]
    text = tokenizer("[SEP]", split_special_tokens=True, add_special_tokens=False).input_ids
    assert len(text) == 3
    features = TASK.features(examples, tokenizer, 7)
    n = -100
    expected = [  # which example, tokens, words, targets
        (0, "[CLS] film ##s was fine . [SEP]", [-1, 0, -1, 1, 2, -1, -1], [n, 2, n, 0, 1, n, n]),
        (0, None, [-1, 3, -1, -1, -1], [n, 0, n, n, n]),
        (1, "[CLS] the film ##s ##s and [SEP]", [-1, 0, 1, -1, -1, 2, -1], [n, 0, 2, n, n, 3, n]),
        (1, "[CLS] a plot ##s [SEP]", [-1, 3, 4, -1, -1], [n, 0, n, n, n]),
        (2, "[CLS] film ##s ##s ##s ##s [SEP]", [-1, 0, -1, -1, -1, -1, -1], [n, 2, n, n, n, n, n]),
        (2, "[CLS] a [SEP]", [-1, 2, -1], [n, 3, n]),
        (3, "[CLS] [SEP]", [-1, -1], [n, n]),
        (4, "[CLS] a film was a plot [SEP]", [-1, 0, 1, 2, 3, 4, -1], [n, 0, 0, 0, 0, 0, n]),
    ]
    assert features.example.tolist() == [row for row, *_ in expected]
    assert features.lengths.tolist() == [len(words) for _, _, words, _ in expected]
    for i, (_, tokens, words, target) in enumerate(expected):
        own = slice(features.offsets[i], features.offsets[i + 1])
        ids = tokenizer.convert_tokens_to_ids(tokens.split()) if tokens else [2, *text, 3]
        assert features.ids[own].tolist() == ids
        assert features.word[own].tolist() == words
        assert features.target[own].tolist() == target
    assert features.of_tokens
    assert features.cut == 3
    assert not features.types.any()
    assert without_token(features, examples) == 2
    batch, rows = batch_of(features, np.array([1, 3, 6]))
    assert (batch.count, batch.size, sorted(rows)) == (2, 12, [1, 3, 6])


def test_each_token_may_be_a_feature(tokenizer):
    """As many targets as features do not make a task of tokens one of texts."""
    one = BertTokenizer({"[UNK]": 0, "a": 1, "[CLS]": 2, "[SEP]": 3, "[PAD]": 4, "[MASK]": 5})
    one._backend.post_processor = tokenizers.processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    examples = [Tagged(("a",), ("B-bad",)), Tagged(("a",), ("O",))]
    features = TASK.features(examples, one, 4)
    assert len(features) == len(features.target) == 2
    batch, _ = batch_of(features, np.array([0, 1]))
    assert (features.of_tokens, batch.count, batch.size) == (True, 2, 2)
    assert TASK.decode(Predictions(np.eye(4)[[1, 0]], features, examples)) == [["B-bad"], ["O"]]


def test_a_word_of_bytes_begins_with_its_space(sentences):
    """Of a byte-level vocabulary words have the ids that they have in the text."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"], show_progress=False
    )
    backend.train_from_iterator([" ".join(each.words) for each in sentences(50)], trainer)
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer = BertTokenizer(backend)
    for example in sentences(20, seed=1):
        features = TASK.features([example], tokenizer, 500)
        assert features.ids.tolist() == tokenizer(" ".join(example.words)).input_ids
        assert sorted(features.word[features.word >= 0]) == [*range(len(example.words))]


@pytest.mark.parametrize("length", [4, 5, 7, 24])
def test_what_is_split_is_put_together(tokenizer, sentences, length):
    """Of logits that are the tags, the tags; O where a word has no token; and nothing is longer than asked for."""
    examples = sentences(30, most=25)
    features = TASK.features(examples, tokenizer, length)
    assert features.lengths.max() <= length
    logits = np.eye(4)[np.maximum(features.target, 0)]
    wanted = [["O" if w == "\x01" else t for w, t in zip(e.words, e.tags, strict=True)] for e in examples]
    assert TASK.decode(Predictions(logits, features, examples)) == wanted == [[*each.tags] for each in examples]
    assert TASK.score(Predictions(logits, features, examples)) == {"f1": 1, "precision": 1, "recall": 1, "accuracy": 1}
    unknown = TASK.features([each._replace(tags=None) for each in examples], tokenizer, length)
    assert (unknown.target == -100).all()
    assert TASK.decode(Predictions(logits, unknown, examples)) == wanted
    dropped = sum(word == "\x01" for each in examples for word in each.words)
    assert without_token(features, examples) == dropped > 0


def padded(features, rows):
    """The arguments of a batch that transformers' collator would make."""
    parts = [slice(features.offsets[row], features.offsets[row + 1]) for row in rows]

    def stacked(column, rest):
        return pad_sequence([torch.from_numpy(column[part].astype(np.int64)) for part in parts], True, rest)

    mask = stacked(np.ones_like(features.ids), 0)
    return {"input_ids": stacked(features.ids, 0), "attention_mask": mask}, stacked(features.target, -100)


@pytest.mark.parametrize("split", [1, 3])
def test_packed_is_padded(directory, tokenizer, sentences, split):
    """Loss and every gradient in float64, of all at once or in parts, by the loss of the class for transformers."""
    model, task = model_for(TASK, directory)
    model.double()
    features = task.features(sentences(12, most=25), tokenizer, 16)
    assert len(features) > 12
    total = int((features.target >= 0).sum())
    whole = 0.0
    for rows in np.array_split(np.arange(len(features)), split):
        batch, _ = batch_of(features, rows)
        nats, count = task.loss(model, batch)
        assert int(count) == batch.count > 0
        (nats / total).backward()
        whole += nats.item() / total
    packed = {name: own.grad.clone() for name, own in model.named_parameters()}
    model.zero_grad()
    inputs, labels = padded(features, range(len(features)))
    loss = model(**inputs, labels=labels).loss
    loss.backward()
    assert whole == pytest.approx(loss.item(), rel=1e-12)
    for name, own in model.named_parameters():
        assert (own.grad - packed[name]).abs().max() < 1e-9 * max(1, own.grad.abs().max()), name


def test_outputs_are_in_the_order_of_the_tokens(directory, tokenizer, sentences, cpu, monkeypatch):
    """Whatever the lengths, and in batches of any size."""
    model, task = model_for(TASK, directory)
    model.eval()
    features = task.features(sentences(25, most=25), tokenizer, 20)
    with torch.no_grad():
        alone = torch.cat([model(**padded(features, [row])[0]).logits[0] for row in range(len(features))])
    known = torch.from_numpy(features.target)
    for at_once in (1, 50, 1 << 12):
        monkeypatch.setattr("minilm.tasks.task.EVALUATED_AT_ONCE", at_once)
        found, loss = outputs_of(task, Applied(model), features, cpu)
        assert found.shape == (len(features.ids), 4)
        assert np.abs(found - alone.numpy()).max() < 1e-5
        assert loss == pytest.approx(torch.nn.functional.cross_entropy(alone, known).item(), rel=1e-5)


@pytest.fixture
def tuned(directory, sentences, tokenizer, tmp_path):
    """A model that knows its sentences by heart."""
    examples = sentences(40)
    model, task = model_for(make_task("tagging", examples), directory)
    tuning = Tuning(epochs=40, batch_size=8, lr=5e-3, length=24, evaluate_every=40, patience=100)
    store = Store(tmp_path / "run")
    with store.hold():
        return tune(task, model, tokenizer, examples, examples, tuning, store, device="cpu", precision="fp32")


def test_it_learns_and_others_see_the_same(tuned, sentences, tokenizer, tmp_path, adds_up):
    """By its own score, seqeval's, and transformers' pipeline of what it wrote."""
    assert tuned.result["dev"]["f1"] >= 0.95
    assert tuned.task == TASK
    _, task = open_task(tmp_path / "run")
    assert task == TASK
    examples = sentences(30, seed=3, most=10)
    said = task.decode(tuned.predictions(examples))
    score = tuned.task.score(tuned.predictions(examples))
    adds_up(tuned.task, tuned.predictions(examples))
    assert score["f1"] == pytest.approx(f1_score([[*each.tags] for each in examples], said))
    tags = pipeline("token-classification", str(tmp_path / "run"), ignore_labels=[])
    for example, own in zip(examples, said, strict=True):
        text = " ".join(example.words)
        begins = np.cumsum([0, *(len(word) + 1 for word in example.words)])
        theirs = {each["start"]: each["entity"] for each in tags(text)}
        assert own == [theirs.get(begin, "O") for begin in begins[:-1].tolist()]


def test_entities_of_wrong_tags_are_as_seqeval_has_them(directory, tokenizer, sentences, cpu):
    """Of a model that learned nothing and says all that can be said."""
    model, task = model_for(TASK, directory)
    torch.nn.init.normal_(model.classifier.weight, std=3)
    examples = sentences(40)
    features = task.features(examples, tokenizer, 24)
    outputs, _ = outputs_of(task, Applied(model), features, cpu)
    predictions = Predictions(outputs, features, examples)
    gold, said = [[*each.tags] for each in examples], task.decode(predictions)
    assert {*said[0], *said[1], *said[2]} > {"O"}
    score = task.score(predictions)
    assert [*score] == ["f1", "precision", "recall", "accuracy"]
    assert score["f1"] == pytest.approx(f1_score(gold, said))
    words = [a == b for one, other in zip(gold, said, strict=True) for a, b in zip(one, other, strict=True)]
    assert score["accuracy"] == pytest.approx(np.mean(words))


WRITTEN = {  # the same entities; the last word of the first sentence begins one of the type before it
    "IOB1": "a I-x\nb I-x\nc B-x\nd O\n\ne I-y\n",
    "IOB2": "a B-x\nb I-x\nc B-x\nd O\n\ne B-y\n",
    "IOBES": "a B-x\nb E-x\nc S-x\nd O\n\ne S-y\n",
    "BILOU": "a B-x\nb L-x\nc U-x\nd O\n\ne U-y\n",
}


@pytest.mark.parametrize("scheme", WRITTEN)
def test_schemes_by_hand(scheme, tmp_path):
    file = tmp_path / "a.conll"
    file.write_text(WRITTEN[scheme])
    data = read_examples(read_source(file, "tagging"), "tagging")
    assert data.notes[-1] == f"the tag scheme is {scheme}"
    tags = [each.tags for each in data.examples]
    assert [spans(each) for each in tags] == [[("x", 0, 2), ("x", 2, 3)], [("y", 0, 1)]]
    for text in WRITTEN.values():
        (tmp_path / "b.txt").write_text(text)
        theirs = [each.tags for each in read_tagged(tmp_path / "b.txt").examples]
        assert tag_scores(tags, theirs)["f1"] == 1
    labels = make_task("tagging", data.examples).labels
    assert labels[0] == "O"
    assert [*labels[1:]] == sorted({tag for each in tags for tag in each} - {"O"})


def test_what_a_scheme_does_not_begin_with_is_said(tmp_path):
    file = tmp_path / "a.conll"
    file.write_text("a O\nb E-x\nc I-x\n\nd B-x\ne E-y\n")
    assert read_tagged(file).notes == (f"entities that begin with E- or I- instead of B-: 3, the first in {file}:1",)


@pytest.mark.parametrize(
    ("name", "text", "options", "said"),
    [
        ("a.conll", "a S-x\n\nb U-x\n", {}, "a.conll:3: tags mix IOBES (E-, S-) and BILOU (L-, U-)"),
        ("a.conll", "a X-x\n", {}, "a.conll:1: the tag 'X-x' is none of O, B-name, I-name (or E-, S-, L-, U-name)"),
        ("a.conll", "a\n", {}, "a.conll:1: a word and no tag"),
        ("a.tsv", "a\tO\nb\n", {}, "a.tsv:2: 1 columns, but 2 before"),
        ("a.jsonl", '{"words": ["a"], "tags": ["E"]}\n', {}, "a.jsonl:1: the tag 'E' is none of"),
        ("a.conll", "a O\n", {"label": "tag"}, "--label-column tag: for tagging give a column's number"),
        (
            "a.jsonl",
            '{"words": ["a"], "tags": ["O"]}\n',
            {"label": "3"},
            "a.jsonl: no column '3' (it has 'words', 'tags')",
        ),
        (
            "a.jsonl",
            '{"w": ["a"], "t": "O"}\n',
            {"text": "w", "label": "t"},
            "a.jsonl:1: no list 't' (it has 'w', 't')",
        ),
        ("a.jsonl", '{"words": ["a"], "tags": ["O"]}\n', {"pair": "words"}, "--pair-column: not used for tagging"),
        ("a.conll", "a O\n", {"label": "3"}, "a.conll:1: no column 3 (2 columns)"),
        ("a.conll", "a O\n", {"text": "1"}, "--text-column: not used for tagging in a file of one word a line"),
        ("none.conll", None, {}, "none.conll: no such file"),
    ],
)
def test_what_cannot_be_read_is_one_line(name, text, options, said, tmp_path):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises((ConfigError, DataError)) as caught:
        read_examples(read_source(tmp_path / name, "tagging"), "tagging", **options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sources_of_the_same_sentences(tmp_path):
    """One word a line, by a space or a tab, with more columns; and lists."""
    (tmp_path / "a.conll").write_text("-DOCSTART- -X- O\n\nNew NNP B-x\nYork NNP I-x\n\nis VB O\n")
    (tmp_path / "a.tsv").write_text("New\tB-x\nYork\tI-x\n\nis\tO\n")
    (tmp_path / "a.jsonl").write_text(
        '{"words": ["New", "York"], "tags": ["B-x", "I-x"]}\n{"words": ["is"], "tags": ["O"]}\n'
    )
    found = []
    for file in sorted(tmp_path.iterdir()):
        data = read_examples(read_source(file, "tagging"), "tagging")
        found.append([each[:2] for each in data.examples])
    assert found[0] == found[1] == found[2] == [(("New", "York"), ("B-x", "I-x")), (("is",), ("O",))]
    (tmp_path / "own.jsonl").write_text(
        '{"words": 1, "w": ["New", "York"], "t": ["B-x", "I-x"]}\n{"w": ["is"], "t": ["O"]}\n'
    )
    own = read_source(tmp_path / "own.jsonl", "tagging")
    by_name = read_examples(own, "tagging", text="w", label="3")
    assert [each[:2] for each in by_name.examples] == found[0]
    assert [each[0] for each in read_examples(own, "tagging", labelled=False, like=by_name).examples] == [
        each[0] for each in found[0]
    ]
    lines = read_examples(read_source(tmp_path / "a.conll", "tagging"), "tagging", label="3")
    lists = read_source(tmp_path / "a.jsonl", "tagging")
    for like, source, columns in ((lines, lists, (None, None, "3")), (by_name, tmp_path / "a.tsv", ("w", None, "t"))):
        assert [each[:2] for each in read_alike(source, "tagging", like, *columns).examples] == found[0]
    by_number = read_examples(read_source(tmp_path / "a.tsv", "tagging"), "tagging", label="2")
    assert [each[:2] for each in by_number.examples] == found[0]


@pytest.mark.parametrize(
    "text", ["EU N\r\n\r\nis V \n a X\n", "-DOCSTART- -X-\n\nNew York\tN\nis\t\n\n\na\tX\n", "a\n\n\nb"]
)
def test_a_column_more(text, tmp_path):
    """What is written is read again: the same words, the tags last; nothing else changes."""
    file, out = tmp_path / "a.conll", tmp_path / "out.conll"
    file.write_bytes(text.encode())
    examples = read_tagged(file, labelled=False).examples
    tags = [["B-x"] * len(each.words) for each in examples]
    out.write_text(tags_text(".conll", file, examples, tags))
    again = read_tagged(out).examples
    assert [each.words for each in again] == [each.words for each in examples]
    assert [[*each.tags] for each in again] == tags
    assert [line.split()[:1] for line in out.read_text().split("\n")] == [
        line.split()[:1] for line in [*text.removesuffix("\n").split("\n"), ""]
    ]
    assert '"prediction": ["B-x"' in tags_text(".jsonl", file, examples, tags)


def test_the_commonest_tag_of_a_word():
    train = [Tagged(("a", "b", "a"), ("O", "B-x", "B-x")), Tagged(("a", "b"), ("B-x", "I-x"))]
    judged = [Tagged(("b", "a", "c"), ("B-x", "O", "B-x"))]
    assert commonest_tags(train, judged) == [["B-x", "B-x", "O"]]
    assert [row.name for row in per_type([judged[0].tags], commonest_tags(train, judged))] == ["x"]


def test_tags_are_matched_by_name(directory, tmp_path):
    """With a head that is there, in its order; one of other tags is refused."""
    own = {0: "I-x", 1: "O", 2: "B-x"}
    turned = BertForTokenClassification.from_pretrained(directory, id2label=own)
    turned.save_pretrained(tmp_path / "turned")
    model, task = model_for(Tagging(("O", "B-x", "I-x")), tmp_path / "turned")
    assert torch.equal(model.classifier.weight, turned.classifier.weight)
    assert task == Tagging(("I-x", "O", "B-x"))
    with pytest.raises(ConfigError, match="predicts I-x, O, B-x, and the examples are labelled O, B-y"):
        model_for(Tagging(("O", "B-y")), tmp_path / "turned")
    with pytest.raises(ConfigError, match="--class-weights: only for --task classification"):
        make_task("tagging", [Tagged(("a",), ("B-x",))], weights="balanced")

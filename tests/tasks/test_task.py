"""Features, and packed batches of them: what a padded batch would say and learn, example by example."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from minilm.dropin.models import BertForSequenceClassification
from minilm.dropin.tokenizer import BertTokenizer
from minilm.errors import CheckpointError, ConfigError
from minilm.labelled.examples import Choice, Example, Tagged
from minilm.machine.ranks import Applied
from minilm.machine.runtime import Runtime
from minilm.tasks.choice import MultipleChoice
from minilm.tasks.classification import Classification, MultiLabel
from minilm.tasks.named import make_task, model_for
from minilm.tasks.regression import Regression
from minilm.tasks.similarity import Similarity
from minilm.tasks.tagging import Tagging
from minilm.tasks.task import Features, Predictions, batch_of, outputs_of

LABELS = ("bad", "good")


@pytest.fixture
def cpu():
    return Runtime(torch.device("cpu"), "fp32", "test", torch.get_num_threads())


def test_features_are_the_tokenizers(directory, reviews):
    """By hand on three lines: ids, which text, targets; what a text writes out is text, and what is cut is counted."""
    tokenizer = BertTokenizer.from_pretrained(directory)
    examples = [Example("fine.", "a film", "good"), Example("[SEP]", "the", "bad"), Example("a " * 30, "plot", "good")]
    features = Classification(LABELS).features(examples, tokenizer, 12)
    id = tokenizer.convert_tokens_to_ids
    first = [id(token) for token in ("[CLS]", "fine", ".", "[SEP]", "a", "film", "[SEP]")]
    assert features.ids[:7].tolist() == first
    assert features.types[:7].tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert features.offsets.tolist() == [0, 7, 7 + len(features.ids[7:-12]), len(features.ids)]
    unknown = features.ids[features.offsets[1] : features.offsets[2]].tolist()
    assert unknown.count(tokenizer.sep_token_id) == 2
    assert unknown.count(tokenizer.unk_token_id) > 0
    assert (features.target.tolist(), features.example.tolist(), features.cut) == ([1, 0, 1], [0, 1, 2], 1)


@pytest.mark.parametrize("row_length", [None, 24])
def test_each_feature_is_in_a_batch_once_and_whole(directory, reviews, row_length):
    tokenizer = BertTokenizer.from_pretrained(directory)
    features = Classification(LABELS).features(reviews(40, pairs=True), tokenizer, 24)
    asked = np.array([7, 3, 3, 39, 0, *range(10, 30)])
    batch, rows = batch_of(features, asked, row_length)
    assert sorted(rows) == sorted(asked)
    tokens = batch.tokens
    assert row_length in (None, tokens.input_ids.shape[1])
    flat = {name: getattr(tokens, name).flatten() for name in ("input_ids", "token_type_ids", "position", "key")}
    assert batch.size == int(flat["key"].sum()) == len(batch.where) == features.lengths[asked].sum()
    assert torch.equal(batch.where.sort().values, flat["key"].nonzero().flatten())
    begin = 0
    for row, first in zip(rows, tokens.cls.tolist(), strict=True):
        place = slice(features.offsets[row], features.offsets[row + 1])
        length = place.stop - place.start
        own = batch.where[begin : begin + length]
        begin += length
        assert own[0] == first
        assert flat["input_ids"][own].tolist() == features.ids[place].tolist()
        assert flat["token_type_ids"][own].tolist() == features.types[place].tolist()
        assert flat["position"][own].tolist() == list(range(length))
    assert batch.target.tolist() == features.target[rows].tolist()
    assert batch.count == len(asked)


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression", "similarity", "choice", "tagging"])
def test_batches_of_few_sizes_have_the_same_loss(directory, reviews, task):
    """Rows of padding and entries without a target at their end."""
    tokenizer = BertTokenizer.from_pretrained(directory)
    examples = reviews(64)
    numbers = [i / 64 for i in range(64)]
    examples = {
        "classification": examples,
        "multilabel": [each._replace(label=("a", "b")[: i % 3]) for i, each in enumerate(examples)],
        "regression": [each._replace(label=number) for each, number in zip(examples, numbers, strict=True)],
        "similarity": [each._replace(pair="plot", label=i) for each, i in zip(examples, numbers, strict=True)],
        "choice": [Choice(each.text, ("a", "plot", "it")[: 2 + i % 2], 1) for i, each in enumerate(examples)],
        "tagging": [
            Tagged(each.text.split(), ["B-X" if "o" in word else "O" for word in each.text.split()])
            for each in examples
        ],
    }[task]
    made = make_task(task, examples)
    model, made = model_for(made, directory, 0)
    features = made.features(examples, tokenizer, 24)
    rng, sizes = np.random.default_rng(0), set()
    for _ in range(24):
        rows = features.of_units(rng.choice(64, 8, replace=False))
        usual, few = (batch_of(features, rows, 24, few_sizes)[0] for few_sizes in (False, True))
        sizes.add(tuple((name, tuple(own.shape)) for name, own in few.arrays().items()))
        found = []
        for batch in (usual, few):
            nats, count = made.loss(model, batch)
            assert int(count) == batch.count == usual.count
            found.append([nats.detach(), *torch.autograd.grad(nats, [*model.base_model.encoder.parameters()])])
        torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)
    if task != "choice":  # the number of its features differs
        assert 2 <= len(sizes) == len({shapes[0] for shapes in sizes}) <= 6  # by the number of rows alone


def test_rows_are_nearly_full():
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 60, 200)
    n = int(lengths.sum())
    features = Features(np.ones(n, np.int32), np.zeros(n, np.int8), np.cumsum([0, *lengths]), lengths, np.arange(200))
    for at in range(0, 192, 32):
        batch, _ = batch_of(features, np.arange(at, at + 32))
        assert batch.size / batch.tokens.input_ids.numel() > 0.9


def padded(model, features, rows):
    """Logits and inputs of a batch that transformers would make."""
    parts = [slice(features.offsets[row], features.offsets[row + 1]) for row in rows]
    columns = (features.ids, features.types, np.ones_like(features.ids))
    ids, types, mask = (
        pad_sequence([torch.from_numpy(column[part].astype(np.int64)) for part in parts], True) for column in columns
    )
    return model(input_ids=ids, token_type_ids=types, attention_mask=mask).logits


TASKS = {
    "classification": Classification(LABELS),
    "weighted": Classification(LABELS, weights=(0.5, 1.5)),
    "smoothed": Classification(LABELS, smoothing=0.2),
    "multi-label": MultiLabel(("bad", "good", "other")),
    "regression": Regression(),
}


def of_task(task, examples):
    """The same examples with labels of the task."""
    if isinstance(task, Regression):
        return [each._replace(label=float(len(each.text))) for each in examples]
    if isinstance(task, MultiLabel):
        return [each._replace(label=(each.label, "other")[: 1 + i % 2]) for i, each in enumerate(examples)]
    return examples


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("split", [1, 3])
def test_packed_is_padded(directory, reviews, name, split, exact_float64):
    """Loss and every gradient in float64, of all at once or in parts; by the loss that transformers' class has."""
    task = TASKS[name]
    model, task = model_for(task, directory)
    model.double()
    examples = of_task(task, reviews(12, pairs=True))
    features = task.features(examples, BertTokenizer.from_pretrained(directory), 24)
    for rows in np.array_split(np.arange(12), split):
        nats, count = task.loss(model, batch_of(features, rows)[0])
        assert int(count) == len(rows)
        (nats / 12).backward()
    packed = {name: own.grad.clone() for name, own in model.named_parameters()}
    model.zero_grad()
    logits = padded(model, features, range(12))
    target = torch.from_numpy(features.target)
    if name == "multi-label":
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, target.double())
    elif name == "regression":
        loss = (logits[:, 0] - target.double()).square().mean()
    else:
        smooth = torch.nn.CrossEntropyLoss(reduction="none", label_smoothing=task.smoothing)
        weights = torch.ones(len(task.labels)) if task.weights is None else torch.tensor(task.weights)
        loss = (smooth(logits, target) * weights.double()[target]).mean()
    loss.backward()
    for name, own in model.named_parameters():
        assert (own.grad - packed[name]).abs().max() < 1e-9 * max(1, own.grad.abs().max()), name


@pytest.mark.parametrize("name", ["classification", "regression"])
def test_outputs_are_in_the_order_of_the_examples(directory, reviews, name, cpu, monkeypatch):
    """Whatever their lengths, and in batches of any size."""
    task = TASKS[name]
    model, task = model_for(task, directory)
    model.eval()
    examples = of_task(task, reviews(30))
    features = task.features(examples, BertTokenizer.from_pretrained(directory), 24)
    with torch.no_grad():
        alone = torch.cat([padded(model, features, [row]) for row in range(30)]).numpy()
    for at_once in (1, 50, 1 << 12):
        monkeypatch.setattr("minilm.tasks.task.EVALUATED_AT_ONCE", at_once)
        found, loss = outputs_of(task, Applied(model), features, cpu)
        assert np.abs(found.reshape(alone.shape) - alone).max() < 1e-5
        if name == "classification":
            rows = torch.log_softmax(torch.from_numpy(alone), 1)[range(30), features.target]
            assert loss == pytest.approx(-rows.mean().item(), rel=1e-5)


def test_labels_are_matched_by_name(directory, tmp_path):
    """With a head that is there, in its order; one of other labels is refused."""
    first, task = model_for(Classification(("a", "b", "c"), weights=(1.0, 2.0, 3.0)), directory)
    assert (task.labels, first.config.id2label) == (("a", "b", "c"), {0: "a", 1: "b", 2: "c"})
    turned = BertForSequenceClassification.from_pretrained(directory, id2label={0: "c", 1: "a", 2: "b"})
    turned.save_pretrained(tmp_path / "turned")
    model, task = model_for(Classification(("a", "b", "c"), weights=(1.0, 2.0, 3.0)), tmp_path / "turned")
    assert torch.equal(model.classifier.weight, turned.classifier.weight)
    assert (task.labels, task.weights) == (("c", "a", "b"), (3.0, 1.0, 2.0))
    with pytest.raises(ValueError, match="predicts c, a, b, and the examples are labelled a, d"):
        model_for(Classification(("a", "d")), tmp_path / "turned")
    with pytest.raises(ValueError, match="predicts c, a, b, and the examples are labelled with a number"):
        model_for(Regression(), tmp_path / "turned")
    model, task = model_for(Classification(("b", "c"), weights=(3.0, 2.0)), tmp_path / "turned")  # some of them
    assert (task.labels, task.weights) == (("c", "a", "b"), (2.0, 1.0, 3.0))
    assert torch.equal(model.classifier.weight, turned.classifier.weight)


def test_a_head_that_goes_on_by_another_loss_is_told_of(directory, tmp_path, capsys):
    model, _ = model_for(Classification(LABELS), directory)
    model.save_pretrained(tmp_path)
    model_for(Classification(LABELS), tmp_path)
    assert capsys.readouterr().err == ""
    model_for(MultiLabel(LABELS), tmp_path)
    said = f"the head of {tmp_path} was trained on one label of several, and is now for --task multilabel"
    assert said in capsys.readouterr().err


def test_the_head_of_another_task_is_none(directory, tmp_path):
    """Also where it has the same names and sizes."""
    there = BertForSequenceClassification.from_pretrained(directory, id2label={0: "O", 1: "B-x"})
    there.save_pretrained(tmp_path / "there")
    for labels in (("O", "B-x"), ("O", "B-x", "I-x")):
        model, task = model_for(Tagging(labels), tmp_path / "there")
        assert task.labels == labels
        assert model.classifier.weight.shape[0] == len(labels)
        assert not torch.equal(model.classifier.weight[:2], there.classifier.weight)
    assert len(model_for(MultipleChoice(), tmp_path / "there")[0].classifier.bias) == 1


@pytest.mark.parametrize("task", [Classification(("a", "d")), Classification(("a", "b", "c")), Regression(2.5)])
def test_a_new_head_in_place_of_one_that_is_there(directory, tmp_path, task):
    turned = BertForSequenceClassification.from_pretrained(directory, id2label={0: "c", 1: "a", 2: "b"})
    turned.save_pretrained(tmp_path / "turned")
    model, told = model_for(task, tmp_path / "turned", seed=3, new_head=True)
    again, _ = model_for(task, tmp_path / "turned", seed=3, new_head=True)
    assert told == task
    assert len(model.classifier.bias) == max(1, len(getattr(task, "labels", ())))
    assert torch.equal(model.classifier.weight, again.classifier.weight)
    assert not torch.equal(model.classifier.weight, turned.classifier.weight)
    assert (model.classifier.bias == getattr(task, "mean", 0.0)).all()
    before = turned.bert.state_dict()
    assert all(torch.equal(own, before[name]) for name, own in model.bert.state_dict().items())
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {"bert", "classifier"}
    with pytest.raises(ConfigError, match="--new-head: similarity has no head"):
        model_for(Similarity(0.0, 5.0), directory, new_head=True)


@pytest.mark.parametrize("name", TASKS)
def test_a_score_is_what_its_examples_add_up_to(directory, reviews, name, cpu, adds_up):
    """Also of a label that is in no training example."""
    model, task = model_for(TASKS[name], directory)
    examples = of_task(task, reviews(30))
    if name != "regression":
        examples += [each._replace(label=("new",) if name == "multi-label" else "new") for each in examples[:3]]
    features = task.features(examples, BertTokenizer.from_pretrained(directory), 24)
    outputs, _ = outputs_of(task, Applied(model), features, cpu, wants_loss=False)
    adds_up(task, Predictions(outputs, features, examples))


def test_numbers_are_not_rounded_to_bf16(directory, reviews):
    """Whose neighbours of 2,000 are 8 away."""
    examples = [each._replace(label=1999.0 + i % 3) for i, each in enumerate(reviews(12))]
    model, task = model_for(Regression.of(examples), directory)
    features = task.features(examples, BertTokenizer.from_pretrained(directory), 24)
    runtimes = [Runtime(torch.device("cpu"), precision, "test", 1) for precision in ("fp32", "bf16")]
    exact, found = (outputs_of(task, Applied(model), features, runtime)[0] for runtime in runtimes)
    assert abs(exact - 2000).max() < 1
    assert abs(found - exact).max() < 0.05


def test_a_new_head_is_drawn_by_the_seed_alone(directory):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, _ = model_for(Classification(LABELS), directory, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    again, _ = model_for(Classification(LABELS), directory, seed=1)
    other, _ = model_for(Classification(LABELS), directory, seed=2)
    assert torch.equal(one.classifier.weight, again.classifier.weight)
    assert not torch.equal(one.classifier.weight, other.classifier.weight)


@pytest.mark.parametrize(("labels", "positive"), [("ab", "c"), ("ab", 1), ("ab", ["a"]), ("abc", "a")])
def test_a_positive_label_that_is_none_of_two_is_refused(labels, positive):
    saved = SimpleNamespace(config=SimpleNamespace(**Classification((*labels,)).config()))
    assert Classification((*labels,)).as_saved(saved).positive is None
    saved.config.positive_label = positive
    with pytest.raises(CheckpointError, match="positive_label is"):
        Classification((*labels,)).as_saved(saved)


@pytest.mark.parametrize("count", [40, 41])
def test_of_many_labels_the_likeliest_is_told_alone(count):
    """Of more than 40 a file of predictions has one probability, and there is no confusion matrix."""
    task = Classification(tuple(f"l{i:02}" for i in range(count)))
    outputs = np.random.default_rng(0).normal(size=(90, count)).astype(np.float32)
    target, examples = np.arange(90) % count, [Example("a text", label=f"l{i % count:02}") for i in range(90)]
    features = Features(np.zeros(90, np.int32), np.zeros(90, np.int8), np.arange(91), target, np.arange(90))
    found = task.columns(Predictions(outputs, features, examples))
    chances = task.probabilities(outputs)
    assert found["prediction"] == [f"l{i:02}" for i in outputs.argmax(axis=1)]
    assert len(found) == (1 + count if count == 40 else 2)
    if count > 40:
        assert [float(p) for p in found["p"]] == chances.max(axis=1).tolist()
    details = task.details(Predictions(outputs, features, examples))
    assert ("confusion" in details) == (count == 40)
    assert [(row["name"], row["support"]) for row in details["labels"][:2]] == [("l00", 3), ("l01", 3)]

"""Multiple choice: features by hand, the loss of transformers' class, examples of any number of choices together."""

import random

import numpy as np
import pytest
import torch
import transformers

import minilm
from minilm.dropin.tokenizer import BertTokenizer
from minilm.finetuning.batches import ExampleBatches
from minilm.finetuning.settings import Tuning
from minilm.labelled.examples import Choice
from minilm.tasks.choice import MultipleChoice
from minilm.tasks.named import model_for, open_task
from minilm.tasks.task import batch_of

PLAIN = ["the", "film", "was", "and", "plot", "a"]


def questions(n, seed=0, choices=(2, 3, 4)):
    """The right choice is the one with "fine" in it."""
    rng, found = random.Random(seed), []
    for i in range(n):
        count = rng.choice(choices)
        label = rng.randrange(count)
        texts = [" ".join(rng.choices(PLAIN, k=rng.randint(1, 6))) for _ in range(count)]
        texts[label] += " fine"
        found.append(Choice(" ".join(rng.choices(PLAIN, k=rng.randint(1, 5))), tuple(texts), label, f"row {i + 1}"))
    return found


def test_features_by_hand(directory):
    tokenizer = BertTokenizer.from_pretrained(directory)
    examples = [Choice("the film", ("fine", "was dull"), 1), Choice("a", ("plot", "and", "the"), 0)]
    features = MultipleChoice().features(examples, tokenizer, 24)
    assert features.target.tolist() == [0, 1, 1, 0, 0]
    assert features.example.tolist() == [0, 0, 1, 1, 1]
    assert features.units.tolist() == [0, 2, 5]
    tokens = tokenizer.convert_ids_to_tokens(features.ids[features.offsets[1] : features.offsets[2]].tolist())
    assert tokens == ["[CLS]", "the", "film", "[SEP]", "was", "dull", "[SEP]"]
    assert features.of_units(np.array([1, 0])).tolist() == [2, 3, 4, 0, 1]
    assert features.groups(np.array([2, 3, 4, 0, 1, 0, 1])).tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert features.count(np.array([2, 3, 4, 0, 1, 0, 1])) == 3
    long = Choice("the film", ("fine " * 30, "dull " * 30, "was"), 0)
    assert MultipleChoice().features([*examples, long], tokenizer, 24).cut == 1  # an example, not its choices


def test_loss_and_gradients_are_the_class_s_own(directory, exact_float64):
    """In float64, of examples of equally many choices, as that class wants them."""
    task, examples = MultipleChoice(), questions(6, choices=(3,))
    model, _ = model_for(task, directory)
    model.double()
    tokenizer = BertTokenizer.from_pretrained(directory)
    features = task.features(examples, tokenizer, 24)
    rows = features.of_units(np.random.default_rng(0).permutation(6))
    nats, count = task.loss(model, batch_of(features, rows)[0])
    assert int(count) == 6
    (nats / 6).backward()
    packed = {name: own.grad.clone() for name, own in model.named_parameters()}
    model.zero_grad()
    texts, choices = (
        [each.text for each in examples for _ in range(3)],
        [one for each in examples for one in each.choices],
    )
    inputs = tokenizer(texts, choices, padding=True, return_tensors="pt")
    inputs = {name: each.view(6, 3, -1) for name, each in inputs.items()}
    loss = model(**inputs, labels=torch.tensor([each.label for each in examples])).loss
    assert (loss - nats / 6).abs() < 1e-12
    loss.backward()
    for name, own in model.named_parameters():
        assert (own.grad - packed[name]).abs().max() < 1e-9 * max(1, own.grad.abs().max()), name


def test_choices_of_an_example_stay_together(directory, same_outputs):
    """In batches of any size, of training and of evaluation, whose loss is the mean over examples."""
    task, examples = MultipleChoice(), questions(20)
    model, _ = model_for(task, directory)
    model.eval()
    features = task.features(examples, BertTokenizer.from_pretrained(directory), 24)
    batches = ExampleBatches(features, Tuning(batch_size=4, tokens_at_once=60))
    made = batches.micro_batches(0)
    assert len(made) > 1
    assert sum(each.count for each in made) == 4
    for each in made:
        assert {*each.group.bincount().tolist()} <= {2, 3, 4}
        assert each.target.sum() == each.count == len(each.group.bincount())
    outputs, loss = same_outputs(task, model, features)
    parts = np.split(outputs, features.units[1:-1])
    nats = [-torch.tensor(part).log_softmax(0)[each.label].item() for part, each in zip(parts, examples, strict=True)]
    assert loss == pytest.approx(np.mean(nats), rel=1e-4)


def test_an_example_that_a_step_has_twice_counts_twice(directory, exact_float64):
    """As where a step is larger than the set, or spans two epochs."""
    task, examples = MultipleChoice(), questions(3)
    model, _ = model_for(task, directory)
    model.double().eval()
    features = task.features(examples, BertTokenizer.from_pretrained(directory), 24)
    once, twice = (task.loss(model, batch_of(features, features.of_units(np.array(each)))[0]) for each in ([1], [1, 1]))
    assert (twice[0] - 2 * once[0]).abs() < 1e-12
    assert (int(once[1]), int(twice[1])) == (1, 2)


def test_a_modernbert_chooses_too(directory, tmp_path):
    """As `python train.py` makes one, without flags."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    special = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3}
    config = transformers.ModernBertConfig(vocab_size=64, **sizes, **special)
    transformers.ModernBertModel(config).save_pretrained(tmp_path / "base")
    minilm.BertTokenizer.from_pretrained(directory).save_pretrained(tmp_path / "base")
    rows = [{"text": each.text, "choices": list(each.choices), "label": each.label} for each in questions(20)]
    tuned = minilm.finetune(
        tmp_path / "base", rows, rows[:5], task="choice", steps=2, device="cpu", out=tmp_path / "out"
    )
    examples = questions(3, 1)
    said = tuned.predict([each.text for each in examples], [each.choices for each in examples])
    again = minilm.open_tuned(tmp_path / "out", device="cpu")
    assert again.predict([each.text for each in examples], [each.choices for each in examples]) == said


def test_it_learns(directory, tmp_path, adds_up):
    rows = [{"text": each.text, "choices": list(each.choices), "label": each.label} for each in questions(80)]
    dev = [{"text": each.text, "choices": list(each.choices), "label": each.label} for each in questions(20, 1)]
    settings = {"epochs": 12, "lr": 3e-3, "batch_size": 8, "patience": 100, "precision": "fp32", "device": "cpu"}
    tuned = minilm.finetune(directory, rows, dev, task="choice", out=tmp_path / "out", **settings)
    assert tuned.result["dev"]["accuracy"] >= 0.9
    examples = questions(30, 2)
    adds_up(tuned.task, tuned.predictions(examples))
    said = tuned.predict([each.text for each in examples], [each.choices for each in examples])
    assert sum(own == each.label for own, each in zip(said, examples, strict=True)) >= 25
    model, task = open_task(tmp_path / "out")
    assert (type(task), type(model)) == (MultipleChoice, minilm.BertForMultipleChoice)
    with pytest.raises(ValueError, match="a text needs its choices"):
        tuned.predict(["the film"])

"""Similarity: the cosine of two vectors, its loss and gradients against transformers' states, pairs that stay together,
and what is written opens in sentence-transformers."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import minilm
from minilm.checkpoint.pooling import Pooling, read_pooling
from minilm.dropin.config import PreTrainedConfig
from minilm.dropin.tokenizer import BertTokenizer
from minilm.errors import ConfigError
from minilm.finetuning.batches import ExampleBatches
from minilm.finetuning.settings import Tuning
from minilm.labelled.examples import Example
from minilm.tasks.named import make_task, model_for, open_task
from minilm.tasks.similarity import Similarity
from minilm.tasks.task import Predictions, batch_of

PLAIN = ["the", "film", "was", "and", "plot", "a"]


def pairs(n, seed=0):
    """As alike, from 0 to 5, as two words are the same one."""
    rng, found = random.Random(seed), []
    for i in range(n):
        words = rng.choices(["fine", "awful", "dull"], k=2)
        texts = [" ".join([*rng.choices(PLAIN, k=rng.randint(1, 6)), word]) for word in words]
        found.append(Example(*texts, 5.0 if words[0] == words[1] else 0.0, f"row {i + 1}"))
    return found


def rows(n, seed=0):
    return [{"sentence1": each.text, "sentence2": each.pair, "score": each.label} for each in pairs(n, seed)]


def test_features_by_hand(directory):
    tokenizer = BertTokenizer.from_pretrained(directory)
    examples = [Example("the film", "fine", 1.0), Example("a", "plot and", 5.0), Example("a", "the", 2.0)]
    task = make_task("similarity", examples)
    assert (task.low, task.high) == (1.0, 5.0)
    features = task.features(examples, tokenizer, 24)
    assert features.target.tolist() == [0, 0, 1, 1, 0.25, 0.25]
    assert features.example.tolist() == [0, 0, 1, 1, 2, 2]
    assert features.units.tolist() == [0, 2, 4, 6]
    assert task.decode(Predictions(np.array([0, 0, 0.5, 0.5, -1, -1]), features, examples)) == [1.0, 3.0, -3.0]


def test_one_that_always_reads_left_to_right_is_refused(tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    sizes |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    minilm.BertModel(PreTrainedConfig("modernbert-decoder", vocab_size=64, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="a modernbert-decoder, which is causal; take another"):
        model_for(make_task("similarity", pairs(4)), tmp_path)


@pytest.mark.parametrize("how", [("mean",), ("cls",), ("max",), ("cls", "mean")])
def test_loss_and_gradients_are_those_of_the_written_out_formula(directory, exact_float64, how):
    examples = pairs(7)
    model, _ = model_for(make_task("similarity", examples), directory)
    model.pooling = Pooling(how)
    task = make_task("similarity", examples).with_model(model)
    model.double()
    tokenizer = BertTokenizer.from_pretrained(directory)
    features = task.features(examples, tokenizer, 24)
    rows = features.of_units(np.random.default_rng(0).permutation(7))
    nats, count = task.loss(model, batch_of(features, rows)[0])
    assert int(count) == 7
    (nats / 7).backward()
    packed = {name: own.grad.clone() for name, own in model.named_parameters() if own.grad is not None}
    model.zero_grad()
    vectors = []
    for texts in ([each.text for each in examples], [each.pair for each in examples]):
        inputs = tokenizer(texts, padding=True, return_tensors="pt")
        states, key = model(**inputs).last_hidden_state, inputs.attention_mask[..., None]
        each = {
            "cls": states[:, 0],
            "mean": (states * key).sum(1) / key.sum(1),
            "max": states.masked_fill(key == 0, -torch.inf).amax(1),
        }
        vectors.append(torch.cat([each[name] for name in how], dim=1))
    gold = torch.tensor([each.label for each in examples], dtype=torch.float64)
    loss = ((F.cosine_similarity(*vectors) - gold / 5) ** 2).mean()
    assert (loss - nats / 7).abs() < 1e-12
    loss.backward()
    for name, own in model.named_parameters():
        if own.grad is not None:
            assert (own.grad - packed[name]).abs().max() < 1e-9 * max(1, own.grad.abs().max()), name


def test_the_texts_of_an_example_stay_together(directory, same_outputs):
    """In batches of any size, of training and of evaluation."""
    examples = pairs(20)
    model, task = model_for(make_task("similarity", examples), directory)
    model.eval()
    features = task.features(examples, BertTokenizer.from_pretrained(directory), 24)
    made = ExampleBatches(features, Tuning(batch_size=8, tokens_at_once=60)).micro_batches(0)
    assert len(made) > 1
    assert sum(each.count for each in made) == 8
    assert all((each.group.bincount() == 2).all() for each in made)
    outputs, loss = same_outputs(task, model, features)
    assert loss == pytest.approx(((outputs - features.target) ** 2).mean(), rel=1e-5)


def test_an_example_that_a_step_has_twice_counts_twice(directory, exact_float64):
    examples = pairs(3)
    model, task = model_for(make_task("similarity", examples), directory)
    model.double().eval()
    features = task.features(examples, BertTokenizer.from_pretrained(directory), 24)
    once, twice = (task.loss(model, batch_of(features, features.of_units(np.array(each)))[0]) for each in ([1], [1, 1]))
    assert (twice[0] - 2 * once[0]).abs() < 1e-12
    assert (int(once[1]), int(twice[1])) == (1, 2)


def test_it_learns_and_is_what_sentence_transformers_makes_of_it(directory, tmp_path, adds_up):
    from sentence_transformers import SentenceTransformer

    settings = {"epochs": 10, "lr": 3e-3, "batch_size": 8, "patience": 100, "precision": "fp32", "device": "cpu"}
    tuned = minilm.finetune(directory, rows(80), rows(30, 1), task="similarity", out=tmp_path / "out", **settings)
    assert tuned.result["dev"]["spearman"] >= 0.7
    again = minilm.finetune(directory, rows(80), rows(30, 1), task="similarity", out=tmp_path / "out", **settings)
    assert again.result == tuned.result
    examples = pairs(12, 2)
    adds_up(tuned.task, tuned.predictions(examples))
    texts, others = [each.text for each in examples], [each.pair for each in examples]
    said = tuned.predict(texts, others)
    assert said == again.predict(texts, others)
    model, task = open_task(tmp_path / "out")
    assert (type(task), type(model), task.low, task.high) == (Similarity, minilm.BertModel, 0.0, 5.0)
    assert read_pooling(tmp_path / "out").how == ("mean",)
    for library in (
        lambda texts: torch.from_numpy(SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(texts)),
        lambda texts: minilm.embed(tmp_path / "out", texts),
    ):
        cosine = F.cosine_similarity(library(texts), library(others))
        assert np.abs(cosine.numpy() * 5 - said).max() < 1e-4
    with pytest.raises(ValueError, match="similarity needs two texts: give `pairs`"):
        tuned.predict(["the film"])


def test_a_prompt_and_lower_case_are_the_model_s_own(directory):
    model, _ = model_for(Similarity(), directory)
    model.pooling = Pooling(prompt="the ", lowercase=True)
    tokenizer = BertTokenizer.from_pretrained(directory)
    features = Similarity().with_model(model).features([Example("Film", "PLOT", 1.0)], tokenizer, 24)
    tokens = tokenizer.convert_ids_to_tokens(features.ids.tolist())
    assert tokens == ["[CLS]", "the", "film", "[SEP]", "[CLS]", "the", "plot", "[SEP]"]


def test_one_text_is_refused(directory):
    with pytest.raises(ValueError, match="similarity needs two texts; name the second"):
        minilm.finetune(directory, [{"text": "a", "label": 1.0}, {"text": "the", "label": 0.0}], task="similarity")


@pytest.mark.parametrize("bounds", [3, [1], [1, 1], [1, float("nan")], ["a", "b"], [5, 0]])
def test_a_range_that_is_none_is_refused(directory, tmp_path, bounds):
    model, _ = model_for(Similarity(), directory)
    model.save_pretrained(tmp_path / "out")
    BertTokenizer.from_pretrained(directory).save_pretrained(tmp_path / "out")
    file = Path(tmp_path / "out/config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"similarity_range": bounds}))
    with pytest.raises(ValueError, match="similarity_range is"):
        open_task(tmp_path / "out")


def test_an_encoder_alone_is_no_similarity(directory):
    with pytest.raises(ValueError, match="is BertModel, which predicts no labels"):
        open_task(directory)

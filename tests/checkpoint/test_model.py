"""Model directories and training states, written and read again; and those that are refused."""

import pytest
import torch

from minilm.checkpoint.model import read_model, read_training, write_model, write_training
from minilm.checkpoint.store import Store, write_manifest
from minilm.data.tokenizer import Tokenizer
from minilm.errors import CheckpointError
from minilm.model.encoder import bert_config, initialise, modern_config
from minilm.model.heads import LanguageModel
from minilm.train.optim import make_optimizers


@pytest.mark.parametrize(("make", "name"), [(bert_config, "adamw"), (modern_config, "muon")])
def test_training_state_survives_bit_for_bit(tmp_path, make, name):
    def fresh():
        torch.manual_seed(0)
        model = LanguageModel(make(64, 32, 2, 4))
        initialise(model)
        return model, make_optimizers(model, name, 1e-3, 0.01)

    def step(model, optimizers, seed):
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        for optimizer in optimizers:
            optimizer.step()

    model, optimizers = fresh()
    step(model, optimizers, 1)
    write_training(tmp_path, model, optimizers, {"cpu": torch.get_rng_state()}, {"step": 1})
    again, others = fresh()
    again.load_state_dict(model.state_dict())
    rng, state = read_training(tmp_path, again, others)
    assert torch.equal(rng["cpu"], torch.get_rng_state())
    assert state["step"] == 1
    step(model, optimizers, 2)
    step(again, others, 2)
    for (key, mine), (_, theirs) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(mine, theirs), key


def test_reading_what_is_no_model(tmp_path):
    for directory, message in (
        (tmp_path / "none", "no such directory"),
        (tmp_path, "no config.json, so no finished model$"),
    ):
        with pytest.raises(CheckpointError, match=message):
            read_model(directory)
    store = Store(tmp_path / "run")
    store.out.mkdir()
    store.save(7, lambda directory: (directory / "a").write_text("x"))
    with pytest.raises(CheckpointError, match=r"newest complete checkpoint is .*step-000007"):
        read_model(store.out)


@pytest.mark.parametrize("fault", ["weights", "config", "vocabulary", "truncated", "unreadable config"])
def test_a_model_that_does_not_match_its_manifest_is_refused(tmp_path, fault):
    tokenizer = Tokenizer.train(["some words for a small vocabulary of pieces and letters " * 9], vocab_size=64)
    model = LanguageModel(bert_config(tokenizer.vocab_size, 32, 2, 4))
    write_model(tmp_path, model, tokenizer, "mlm")
    write_manifest(tmp_path)
    read_model(tmp_path)
    file = {"weights": "model.safetensors", "vocabulary": "tokenizer.json", "truncated": "model.safetensors"}.get(
        fault, "config.json"
    )
    content = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(content[:-5] if fault == "truncated" else content[:-1] + bytes([content[-1] ^ 1]))
    if fault == "unreadable config":
        (tmp_path / "MANIFEST.json").unlink()
        (tmp_path / file).write_text("{")
    with pytest.raises(CheckpointError, match=file):
        read_model(tmp_path)


def test_a_vocabulary_larger_than_the_model_is_refused(tmp_path):
    small = Tokenizer.train(["some words for a small vocabulary of pieces and letters " * 9], vocab_size=64)
    write_model(tmp_path, LanguageModel(bert_config(32, 32, 2, 4)), small, "mlm")
    with pytest.raises(CheckpointError, match=r"the tokenizer has 64 tokens, the model 32"):
        read_model(tmp_path)

"""Model directories and training states, written and read again; and those that are refused."""

import json
import shutil

import huggingface_hub
import pytest
import torch

from minilm.batch import Tokens
from minilm.checkpoint.model import (
    Pretrained,
    add_words,
    find_model,
    read_model,
    read_training,
    weights_fingerprint,
    write_model,
    write_training,
)
from minilm.checkpoint.store import Store, write_manifest
from minilm.data.tokenizer import SPECIALS, Tokenizer
from minilm.errors import CheckpointError, DataError
from minilm.model.encoder import bert_config, initialise, modern_config
from minilm.model.heads import LanguageModel
from minilm.train.optim import load_optimizer_state, make_optimizers, optimizer_state


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
    write_training(tmp_path, optimizer_state(model, optimizers), {"step": 1, "spent": {"tokens": 5, "joules": None}})
    again, others = fresh()
    again.load_state_dict(model.state_dict())
    tensors, state = read_training(tmp_path, again)
    load_optimizer_state(again, others, tensors)
    assert (state["step"], state["spent"]) == (1, {"tokens": 5, "joules": None})
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


@pytest.mark.parametrize("fault", ["another parameter", "another shape", "another format"])
def test_a_training_state_of_another_model_is_refused(tmp_path, fault):
    torch.manual_seed(0)
    model = LanguageModel(bert_config(64, 32, 2, 4))
    optimizers = make_optimizers(model, "adamw", 1e-3, 0.01)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizers[0].step()
    write_training(tmp_path, optimizer_state(model, optimizers), {"step": 1})
    other = LanguageModel(bert_config(*((128, 32, 2, 4) if fault == "another shape" else (64, 32, 1, 4))))
    if fault == "another format":
        other = model
        (tmp_path / "training" / "state.json").write_text('{"format": 2}')
    said = {
        "another parameter": r"tensors\.safetensors: '.*' belongs to no parameter of this model",
        "another shape": r"tensors\.safetensors: '.*' has shape \(64, 32\), not \(128, 32\)",
        "another format": "format 2",
    }
    with pytest.raises(CheckpointError, match=said[fault]):
        read_training(tmp_path, other)


# -- finding one ----------------------------------------------------------------------------------

LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCAB = [*SPECIALS, *LETTERS, *(f"##{a}" for a in LETTERS), "alpha", "bravo", "kilo", "golf", "lima", "hotel", "##lima"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """64 words and pieces."""
    file = tmp_path_factory.mktemp("words") / "vocab.txt"
    file.write_text("".join(token + "\n" for token in VOCAB))
    return Tokenizer.load(file)


def model_of(vocab_size, seed=0, pairs=False):
    """Random weights everywhere."""
    model = LanguageModel(bert_config(vocab_size, 32, 2, 4, 24, max_position_embeddings=64, dropout=0.0), pairs=pairs)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


@pytest.fixture
def hub(tmp_path, monkeypatch, tokenizer):
    """The model "someone/small" in a cache laid out as the hub's, and no network: its folder of links."""
    repository = tmp_path / "cache" / "models--someone--small"
    snapshot = repository / "snapshots" / ("0" * 40)
    for folder in (snapshot, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (tmp_path / "made").mkdir()
    write_model(tmp_path / "made", model_of(tokenizer.vocab_size), tokenizer, "mlm")
    for number, file in enumerate(sorted((tmp_path / "made").iterdir())):
        shutil.move(file, repository / "blobs" / str(number))
        (snapshot / file.name).symlink_to(repository / "blobs" / str(number))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return snapshot


def test_a_name_of_the_hub_is_found_in_its_cache(hub, tokenizer):
    found = find_model("someone/small")
    assert found == hub
    again, words, objective = read_model(found)
    assert objective == "mlm"
    assert words.vocab_size == tokenizer.vocab_size
    assert weights_fingerprint(again) == weights_fingerprint(model_of(tokenizer.vocab_size))


def test_a_directory_goes_before_the_hub(hub, tmp_path):
    (tmp_path / "someone" / "small").mkdir(parents=True)
    assert find_model("someone/small").resolve() == tmp_path / "someone" / "small"
    assert find_model(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("name", ["someone/unknown", "no/such/directory", "", "spaces in it", "a" * 200, "-x", "../up"])
def test_a_name_of_no_model_is_one_line(hub, name):
    with pytest.raises(CheckpointError) as caught:
        find_model(name)
    assert str(caught.value).startswith(f"model {name}: ")
    assert "\n" not in str(caught.value)


def test_the_fingerprint_of_weights_is_of_every_bit():
    model = model_of(64)
    before = weights_fingerprint(model)
    assert len(before) == 16
    assert int(before, 16) >= 0
    assert weights_fingerprint(model_of(64)) == before
    assert weights_fingerprint(model_of(64, seed=1)) != before
    with torch.no_grad():
        model.head.bias.view(torch.int32)[3] ^= 1
    assert weights_fingerprint(model) != before


# -- more words -----------------------------------------------------------------------------------


def grown_by(tokenizer, tmp_path, text, vocab_size=None, pairs=False):
    (tmp_path / "words.txt").write_text(text)
    old = Pretrained(model_of(vocab_size or tokenizer.vocab_size, pairs=pairs), tokenizer, "mlm")
    return old, add_words(old, tmp_path / "words.txt")


@pytest.mark.parametrize("spare", [0, 1, 64])
def test_a_new_word_is_the_mean_of_its_pieces(tokenizer, tmp_path, spare):
    """Also in a model whose table is longer than its vocabulary: it grows by what is lacking."""
    assert tokenizer.vocab_size == 64
    old, new = grown_by(tokenizer, tmp_path, "golfhotel\n\n  limalima  \n", 64 + spare, pairs=True)
    assert [new.tokenizer.encode(word).input_ids[1:-1] for word in ("golfhotel", "limalima")] == [[64], [65]]
    assert new.tokenizer.encode("alpha golfhotel").tokens[-2] == "golfhotel"
    assert new.model.cfg.vocab_size == max(66, 64 + spare)
    assert new.objective == "mlm"
    assert not new.model.training
    for name in ("encoder.embedding.word.weight", "head.bias"):
        before, after = old.model.state_dict()[name], new.model.state_dict()[name]
        for id, was in ((64, "golf ##h ##o ##t ##e ##l"), (65, "lima ##lima")):
            pieces = [VOCAB.index(piece) for piece in was.split()]
            torch.testing.assert_close(after[id], before[pieces].mean(dim=0), rtol=1e-6, atol=1e-7)
        kept = [i for i in range(len(before)) if i not in (64, 65)]
        assert torch.equal(after[kept], before[kept])
    rest = [name for name in old.model.state_dict() if name not in ("encoder.embedding.word.weight", "head.bias")]
    assert all(torch.equal(old.model.state_dict()[name], new.model.state_dict()[name]) for name in rest)
    assert any(name.startswith("pair.") for name in rest)
    ids = torch.tensor([tokenizer.encode("alpha bravo").input_ids])
    with torch.no_grad():  # what it said of old words it says still
        torch.testing.assert_close(new.model(Tokens.full(ids))[..., :64], old.model(Tokens.full(ids))[..., :64])


def test_a_piece_within_words_can_be_new(tokenizer, tmp_path):
    """It is made of pieces within words where there are such."""
    old, new = grown_by(tokenizer, tmp_path, "##hotel\n##limax\n")
    assert new.tokenizer.encode("golfhotel").input_ids[-2] == 64
    assert new.tokenizer.encode("hotel limax").input_ids == tokenizer.encode("hotel limax").input_ids
    before, after = old.model.table, new.model.table
    assert torch.equal(after[64], before[VOCAB.index("hotel")])  # there is no other
    pieces = [VOCAB.index("##lima"), VOCAB.index("##x")]
    torch.testing.assert_close(after[65], before[pieces].mean(dim=0))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("golfhotel\nGolfHotel\n", r"words.txt:2: 'GolfHotel' is never found .*in lower case"),
        ("golfhotel\n\nnew-word\n", r"words.txt:3: 'new-word' is never found"),
        ("two words\n", r"words.txt:1: 'two words' is never found"),
        ("x" * 101 + "\n", "words.txt:1: .* at most 100 characters"),
        ("##\n", r"words.txt:1: '##' is never found"),
        ("golfhotel\nlimalima\ngolfhotel\n", "words.txt:3: 'golfhotel' appears twice"),
        ("\n", "all its words are in the vocabulary"),
        ("alpha\n[MASK]\n", "all its words are in the vocabulary"),
    ],
)
def test_words_that_cannot_be_added_are_named(tokenizer, tmp_path, text, message):
    with pytest.raises(DataError, match=message) as caught:
        grown_by(tokenizer, tmp_path, text)
    assert "\n" not in str(caught.value)


def test_a_list_of_words_that_cannot_be_read_is_refused(tokenizer, tmp_path):
    old = Pretrained(model_of(64), tokenizer, "mlm")
    (tmp_path / "latin").write_bytes(b"caf\xe9\n")
    for name in ("latin", "none"):
        with pytest.raises(DataError, match=f"--add-tokens .*{name}: cannot be read"):
            add_words(old, tmp_path / name)


def test_transformers_opens_a_model_with_more_words(tokenizer, tmp_path):
    import transformers

    _, new = grown_by(tokenizer, tmp_path, "golfhotel\n##hotel\n")
    (tmp_path / "out").mkdir()
    write_model(tmp_path / "out", *new)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 66
    theirs, info = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    text = "alpha golfhotel lima kilohotel"
    ids = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")(text).input_ids
    again = read_model(tmp_path / "out")
    assert ids == new.tokenizer.encode(text).input_ids == again.tokenizer.encode(text).input_ids
    assert {64, 65} < set(ids)
    with torch.no_grad():
        reference = theirs.eval()(torch.tensor([ids])).logits
        torch.testing.assert_close(new.model(Tokens.full(torch.tensor([ids]))), reference, rtol=1e-4, atol=1e-5)
    assert (tmp_path / "out" / "vocab.txt").read_text().splitlines()[64:] == ["golfhotel", "##hotel"]

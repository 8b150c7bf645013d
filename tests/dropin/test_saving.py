"""A save leaves the old model, the new, or what no load takes for one; and it writes nothing that a load refuses."""

import errno
import json
import os
import shutil
import signal
import sys
import threading

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import minilm
from minilm.checkpoint.hf import objective_of, pairs_of
from minilm.checkpoint.pooling import Pooling
from minilm.errors import CheckpointError, ConfigError, UserError

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}


def config(**changes):
    return minilm.BertConfig(**{"vocab_size": 30, "max_position_embeddings": 12} | SIZES | changes)


def test_killed_anywhere_it_is_the_old_model_the_new_or_none(tmp_path, monkeypatch):
    """A child is killed before each change of a name, by every way there is to make one."""
    old, new = (minilm.BertModel(config()) for _ in range(2))
    old.pooling, new.pooling = Pooling(("cls",)), Pooling(("max",), normalize=True)
    whole = {how: model.get_input_embeddings().weight for how, model in (("cls", old), ("max", new))}
    seen = set()
    for place in range(100):
        directory = tmp_path / str(place)
        old.save_pretrained(directory)
        if not (child := os.fork()):
            count = 0

            def until(event, args, place=place):
                nonlocal count
                if event in ("os.rename", "os.remove", "os.mkdir"):
                    count += 1
                    if count > place:
                        os.kill(os.getpid(), signal.SIGKILL)

            signal.alarm(60)
            sys.addaudithook(until)
            new.save_pretrained(directory)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if (directory / "config.json").exists():
            loaded = minilm.BertModel.from_pretrained(directory)
            (how,) = loaded.pooling.how
            assert torch.equal(loaded.get_input_embeddings().weight, whole[how])
            seen.add(how)
        else:
            with pytest.raises(CheckpointError, match="no finished model"):
                minilm.BertModel.from_pretrained(directory)
            seen.add("none")
        if not status:
            break
    assert place > 5
    assert seen == {"cls", "max", "none"}


def test_two_saves_at_once_are_one_after_the_other(tmp_path):
    models = [minilm.BertModel(config()) for _ in range(4)]
    for _ in range(5):
        threads = [threading.Thread(target=model.save_pretrained, args=[tmp_path]) for model in models]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        loaded = minilm.BertModel.from_pretrained(tmp_path).get_input_embeddings().weight
        assert any(torch.equal(loaded, model.get_input_embeddings().weight) for model in models)


def test_a_model_that_is_written_anew_while_it_is_read_is_refused(tmp_path, monkeypatch):
    minilm.BertModel(config()).save_pretrained(tmp_path)
    original = minilm.dropin.models.read_weights

    def meanwhile(*args, **more):
        minilm.BertModel(config()).save_pretrained(tmp_path)
        return original(*args, **more)

    monkeypatch.setattr("minilm.dropin.models.read_weights", meanwhile)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        minilm.BertModel.from_pretrained(tmp_path)


def test_weights_of_before_are_gone(tmp_path):
    """Those of other files, which a load could take for these."""
    new = minilm.BertModel(config())
    for name in ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.safetensors.index.json"):
        (tmp_path / name).write_text("of before")
    (tmp_path / f".tmp-save-{os.getpid()}").symlink_to("notes.txt")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".tmp-save-1").mkdir()  # of a process that died
    (tmp_path / ".tmp-save-1" / "model.safetensors").write_text("half")
    new.save_pretrained(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors", "notes.txt"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def _with_nan(model):
    model.encoder.layers[0].attention_norm.bias.data[3] = float("nan")
    return model


def _more(model):
    model.more = nn.Linear(2, 2)
    return model


def _pruned(model):
    prune.l1_unstructured(model.encoder.layers[0].mlp.inp, "weight", 0.5)
    return model


def _resized(model):
    model.encoder.embedding.word = nn.Embedding(31, SIZES["hidden_size"])
    return model


BAD = {
    "a table of another size": (_resized, "parameter encoder.embedding.word.weight has shape (31, 16)"),
    "a layer too few": (
        lambda model: setattr(model.encoder, "layers", model.encoder.layers[:0]) or model,
        "has shape None; config makes it (16,)",
    ),
    "a pruned part": (_pruned, "has shape None; config makes it (24, 16)"),
    "quantised parts": (torch.ao.quantization.quantize_dynamic, "not a tensor; nothing is written"),
    "values that are not finite": (_with_nan, "attention.output.LayerNorm.bias holds values that are not finite"),
    "another dtype": (lambda model: model.to(torch.float8_e4m3fn), "float8_e4m3fn"),
    "no values": (lambda model: model.to("meta"), "has no values; nothing is written"),
    "a part of one's own": (_more, "parameter more.bias has shape (2,); config makes it None"),
    "a compiled part": (
        lambda model: setattr(model, "encoder", torch.compile(model.encoder)) or model,
        "parameter encoder._orig_mod.embedding.norm.bias has shape (16,); config makes it None",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_what_a_load_would_refuse_is_not_written(what, tmp_path):
    make, said = BAD[what]
    good, bad = minilm.BertModel(config()), make(minilm.BertModel(config()))
    good.save_pretrained(tmp_path)
    with pytest.raises(UserError) as caught:
        bad.save_pretrained(tmp_path)
    assert said in str(caught.value)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    loaded = minilm.BertModel.from_pretrained(tmp_path).get_input_embeddings().weight
    assert torch.equal(loaded, good.get_input_embeddings().weight)


def test_places_that_cannot_be_written(tmp_path):
    model = minilm.BertModel(config())
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="file: the model cannot be written"):
        model.save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(ConfigError, match="give the name of a directory"):
        model.save_pretrained("")
    model.save_pretrained(tmp_path / "model")
    model.pooling = Pooling()
    (tmp_path / "model" / "1_Pooling").symlink_to(tmp_path)
    with pytest.raises(CheckpointError, match="1_Pooling: a link"):
        model.save_pretrained(tmp_path / "model")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "model"]
    assert minilm.BertModel.from_pretrained(tmp_path / "model").pooling is None  # the model of before
    shutil.rmtree(tmp_path / "model")


def test_a_full_disk_leaves_the_model_of_before(tmp_path, monkeypatch):
    old, new = (minilm.BertModel(config()) for _ in range(2))
    old.save_pretrained(tmp_path)
    new.pooling = Pooling()
    before = sorted(file.name for file in tmp_path.iterdir())

    def full(directory, pooling, width):
        (directory / "1_Pooling").mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("minilm.dropin.models.write_pooling", full)
    with pytest.raises(CheckpointError, match="No space left"):
        new.save_pretrained(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == before
    loaded = minilm.BertModel.from_pretrained(tmp_path).get_input_embeddings().weight
    assert torch.equal(loaded, old.get_input_embeddings().weight)


def test_layers_that_share_weights_are_saved(tmp_path):
    model = minilm.BertModel(config(num_hidden_layers=2))
    model.encoder.layers[1] = model.encoder.layers[0]
    model.save_pretrained(tmp_path)
    ids = torch.arange(10)[None]
    assert torch.equal(minilm.BertModel.from_pretrained(tmp_path)(ids)[0], model.eval()(ids)[0])


def test_a_save_within_a_save_is_refused_and_a_fork_holds_nothing(tmp_path, monkeypatch):
    model = minilm.BertModel(config())
    original = minilm.dropin.models.save_tensors

    def meanwhile(*args):
        with pytest.raises(CheckpointError, match="this thread is writing there already"):  # as a signal's handler may
            model.save_pretrained(tmp_path)
        if not (child := os.fork()):
            signal.pause()
        children.append(child)
        original(*args)

    children = []
    with monkeypatch.context() as patch:
        patch.setattr("minilm.dropin.models.save_tensors", meanwhile)
        model.save_pretrained(tmp_path)
    signal.alarm(60)
    model.save_pretrained(tmp_path)  # while the child is there
    signal.alarm(0)
    os.kill(children[0], signal.SIGKILL)
    os.waitpid(children[0], 0)


@pytest.mark.parametrize("number", [errno.EBADF, errno.ENOLCK])
def test_a_file_system_without_locks_is_saved_to(tmp_path, monkeypatch, number):
    def none(*args):
        raise OSError(number, "none")

    monkeypatch.setattr("fcntl.flock", none)
    handles = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        minilm.BertModel(config()).save_pretrained(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == handles
    minilm.BertModel.from_pretrained(tmp_path)


def test_a_forward_of_one_s_own_is_called():
    class Mine(minilm.BertForSequenceClassification):
        kind = "sequence"

        def forward(self, *args, **more):
            return "mine"

    assert Mine(config())(torch.ones(1, 3).long()) == "mine"


@pytest.mark.parametrize(
    "name", ["RobertaForMaskedLM", "DistilBertModel", "ElectraForMultipleChoice", "RobertaTokenizer"]
)
def test_other_families_names_are_there(name):
    suffix = name.removeprefix("Roberta").removeprefix("DistilBert").removeprefix("Electra")
    assert getattr(minilm, name) is getattr(minilm, f"Bert{suffix}")


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"input_ids": torch.ones(1, 3)}, TypeError, "input_ids of torch.float32; give whole numbers"),
        ({"input_ids": torch.ones(1, 3).bool()}, TypeError, "input_ids of torch.bool"),
        ({"input_ids": torch.ones(1, 0).long()}, ValueError, "a text of no tokens"),
        ({"input_ids": torch.ones(1, 3).long(), "labels": torch.ones(1)}, TypeError, "labels of torch.float32"),
    ],
)
def test_calls_that_cannot_be_meant(arguments, error, said):
    model = minilm.BertForSequenceClassification(config(problem_type="single_label_classification"))
    with pytest.raises(error, match=said):
        model(**arguments)


def test_questions_have_two_outputs_whatever_labels_a_config_names(tmp_path):
    """transformers makes as many outputs as there are labels."""
    transformers = pytest.importorskip("transformers")
    three = config(id2label={0: "a", 1: "b", 2: "c"})
    minilm.BertForSequenceClassification(three).save_pretrained(tmp_path / "nli")
    minilm.BertForQuestionAnswering.from_pretrained(tmp_path / "nli").save_pretrained(tmp_path / "qa")
    theirs = transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path / "qa")
    assert theirs.qa_outputs.weight.shape == (2, 16)
    assert minilm.BertForQuestionAnswering.from_pretrained(tmp_path / "qa").config.num_labels == 2


def test_what_a_model_was_before_is_no_longer_believed(tmp_path):
    """transformers keeps our entry of config.json in files of another class."""
    transformers = pytest.importorskip("transformers")
    minilm.BertForMaskedLM(config()).save_pretrained(tmp_path / "mlm")
    minilm.BertForPreTraining(config()).save_pretrained(tmp_path / "pairs")
    for name, kind, more in (
        ("causal", transformers.BertLMHeadModel, {"is_decoder": True}),
        ("single", transformers.BertForMaskedLM, {}),
    ):
        begin = "mlm" if name == "causal" else "pairs"
        kind.from_pretrained(tmp_path / begin, **more).save_pretrained(tmp_path / name)
        assert "minilm" in json.loads((tmp_path / name / "config.json").read_text())
    found = {name: json.loads((tmp_path / name / "config.json").read_text()) for name in ("causal", "single", "pairs")}
    assert [objective_of(each) for each in found.values()] == ["clm", "mlm", "mlm"]
    assert [pairs_of(each) for each in found.values()] == [None, None, "next"]
    again = minilm.BertLMHeadModel.from_pretrained(tmp_path / "causal")
    again.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["minilm"]["objective"] == "clm"

"""`train.py` from flags to the last line, on a tiny recipe; what it refuses; and what a killed run loses: nothing."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from minilm import cli, files
from minilm.checkpoint.model import read_model
from minilm.checkpoint.store import Store
from minilm.data.loader import fixed_batches
from minilm.errors import ConfigError
from minilm.machine.runtime import Runtime
from minilm.recipes import RECIPES, Recipe
from minilm.train.cheap import CheapDropout
from minilm.train.log import read_metrics
from minilm.train.optim import Muon

ROOT = Path(__file__).parent.parent
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "length": 32,
    "batch_size": 4,
    "vocab_size": 256,
    "minutes": 3.5,
}
RECIPE = {
    "quick": Recipe(architecture="modern", optimizer="muon", output_scale=0.0, lr=5e-3, **TINY),
    "bert-mini": Recipe(architecture="bert", dropout=0.1, lr=1e-3, **TINY),
}
KEYS = {
    "held_out_loss",
    "held_out_documents",
    "held_out_tokens",
    "held_out_reads",
    "unigram_loss",
    "targets",
    "tokens",
    "parameters",
    "seconds",
    "tokens_per_s",
    "precision",
    "vocab_size",
}


def write_topics(file: Path, size: int) -> Path:
    """English in documents of 250 characters, which every Python has."""
    words = " ".join(topics[name] for name in sorted(topics))[:size]
    file.write_text("\n\n".join(words[at : at + 250].replace("\n", " ") for at in range(0, len(words), 250)))
    return file


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_topics(tmp_path_factory.mktemp("text") / "topics.txt", 75_000)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def go(train, text, cache, tmp_path, monkeypatch, capsys):
    """go(*flags) -> (status, stdout, stderr) of a run into tmp_path/run."""
    for name, recipe in RECIPE.items():
        monkeypatch.setitem(RECIPES, name, recipe)
    monkeypatch.chdir(tmp_path)

    def run(*flags: object) -> tuple[int, str, str]:
        words = [str(flag) for flag in flags]
        for flag, value in (("--data", text), ("--cache-dir", cache), ("--out", "run"), ("--threads", 1)):
            if flag not in words:
                words += [flag, str(value)]
        with pytest.raises(SystemExit) as stop:
            cli.run(train.main, train.Args, words)
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    return run


def test_unknown_words_are_said(go):
    """Where a vocabulary has not all letters of a text."""
    status, _, err = go("--vocab-size", 64, "--steps", 1)
    assert status == 0, err
    assert re.search(r"[0-9.]+% of the tokens are unknown words, .*; raise --vocab-size", err), err
    assert "unknown words" not in go("--steps", 1, "--out", "other")[2]


def test_documents_that_a_model_has_learned_are_said_to_be_held_out(go, tmp_path):
    assert go("--steps", 2, "--save-every", 1)[0] == 0
    for model in ("run", "run/step-000002"):
        more = ("--model", model, "--steps", 1, "--out", f"more-{Path(model).name}")
        said = "--held-out 0.3: --model was trained with 0.05, so of the same text it has learned documents that are"
        assert said in go(*more, "--held-out", 0.3)[2]
    assert "it has learned" not in go(*more[:-1], "again")[2]
    assert "that this training never saw" in (tmp_path / "again" / "README.md").read_text()
    assert "that training never saw" in (tmp_path / "run" / "README.md").read_text()


def test_a_run_within_its_data_goes_on(go, text, tmp_path):
    """What it writes there is not read as text."""
    (tmp_path / "news").mkdir()
    shutil.copy(text, tmp_path / "news")
    flags = ("--data", "news", "--out", "news/run", "--cache-dir", "news/cache", "--steps", 2)
    assert go(*flags)[0] == 0
    status, out, err = go(*flags)
    assert status == 0, err
    assert "is finished" in err + out


def test_a_run_leaves_a_picture_of_its_loss(go, pictures, tmp_path):
    assert go("--steps", 2)[0] == 0
    assert (tmp_path / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("objective", ["mlm", "clm", "prefix"])
@pytest.mark.parametrize("recipe", RECIPE)
def test_text_in_model_out(go, tmp_path, recipe, objective):
    status, out, err = go("--recipe", recipe, "--objective", objective, "--steps", 60, "--json", "result.json")
    assert status == 0, err
    result = json.loads((tmp_path / "result.json").read_text())
    assert result.keys() >= KEYS
    assert result["held_out_loss"] < 5.5  # from log 256 = 5.55: 60 steps of a toy
    assert result["targets"] > 1_500
    assert result["vocab_size"] == 256
    assert result["tokens"] <= 60 * 4 * 32
    assert f"loss {result['held_out_loss']:.3f}" in out
    model, tokenizer, was = read_model(tmp_path / "run")
    assert was == objective
    assert sum(p.numel() for p in model.parameters()) == result["parameters"]
    assert {p.name for p in (tmp_path / "run").iterdir()} >= {"README.md", "metrics.jsonl", "run.json"}
    held = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "held_out_loss" in line]
    assert [line["step"] for line in held] == [12, 24, 36, 48, 60]
    assert held[-1]["held_out_loss"] == round(result["held_out_loss"], 4)
    assert not list((tmp_path / "run").glob(".tmp*"))
    assert tokenizer.vocab_size == 256


def test_a_compiled_run_is_the_run(go, tmp_path, graphs):
    """Before code is made of them, which rounds elsewhere, graphs compute the same bits; and what was begun so goes on
    only so. In bf16: on some processors fp32 has products of its own."""
    flags = ("--precision", "bf16", "--steps", 24, "--short-seq-prob", 0.2, "--save-every", 12)
    assert go(*flags, "--out", "eager")[0] == 0
    assert len(graphs) == 0
    status, _, err = go(*flags, "--out", "run", "--compile")
    assert status == 0, err
    assert len(graphs) == 1 + 3  # a trial, and one for each shape
    same = [(tmp_path / out / "model.safetensors").read_bytes() for out in ("eager", "run")]
    assert same[0] == same[1]
    for out, more in (("run", ()), ("eager", ("--compile",))):
        status, _, err = go(*flags, "--out", out, *more)
        assert status == 2
        assert "compile" in err


def test_compiling_is_no_training(go, tmp_path, graphs, monkeypatch):
    """In seconds and speeds, of the first steps, too; nor is what it does in an evaluation taken off twice."""
    slow, made = 0.5, []

    def backend(graph, inputs):
        time.sleep(slow)
        made.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", partial(torch.compile.func, backend=backend))
    flags = ("--precision", "bf16", "--steps", 8, "--short-seq-prob", 0.2, "--evaluate-every", 4, "--compile")
    assert go(*flags, "--json", "result.json")[0] == 0
    seconds = json.loads((tmp_path / "result.json").read_text())["seconds"]
    assert len(made) >= 1 + 2
    assert 0 < seconds < 2 * slow
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "seconds" in line]
    assert all(line["tokens_per_s"] > 0 for line in lines)


def test_a_replayed_run_is_the_run(go, tmp_path, replays, monkeypatch):
    """Its steps are those that are computed as usual with the same learning rates, and it goes on only as it began."""
    flags = ("--steps", 24, "--short-seq-prob", 0.2, "--save-every", 12, "--cuda-graphs")
    assert go(*flags, "--out", "run")[0] == 0
    assert len(replays) == 3  # shapes
    assert sum(each.count for each in replays) == 24 - 3
    monkeypatch.setattr("minilm.train.graphs.MOST", 0)
    assert go(*flags, "--out", "usual")[0] == 0
    assert len(replays) == 3
    same = [(tmp_path / out / "model.safetensors").read_bytes() for out in ("usual", "run")]
    assert same[0] == same[1]
    status, _, err = go(*flags[:-1], "--out", "run")
    assert status == 2
    assert "cuda" in err


def test_documents_of_any_number_have_few_shapes(go, replays):
    status, _, err = go("--steps", 40, "--packing", "documents", "--cuda-graphs")
    assert status == 0, err
    assert sum(each.count for each in replays) >= 40 - 2 * 6


def test_a_budget_in_minutes_is_of_steps_that_are_replayed(go, train, replays, monkeypatch):
    """Those that are timed were computed twice before: as usual, and recorded."""
    own, found = train.step_seconds, []

    def timed(*args, **more):
        seconds = own(*args, **more)
        found.append((more["warm_up"], len(replays), len(more["take_step"].of_shape)))
        return seconds

    monkeypatch.setattr(train, "step_seconds", timed)
    status, _, err = go("--minutes", 0.02, "--short-seq-prob", 0.2, "--cuda-graphs")
    assert status == 0, err
    ((warm_up, recorded, shapes),) = found
    assert warm_up == 2
    assert recorded == shapes >= 3


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "--cuda-graphs: needs an Nvidia GPU, and this is cpu; leave it out"),
        (("--mask-rate-end", 0.5), "--mask-rate-end 0.5: does not work with --cuda-graphs; leave it out"),
        (
            ("--gradient-checkpointing",),
            "--cuda-graphs True: does not work with --gradient-checkpointing; leave it out",
        ),
    ],
)
def test_where_no_step_is_replayed(go, tmp_path, flags, said):
    assert go("--cuda-graphs", "--steps", 2, *flags)[::2] == (2, f"error: {said}\n")
    assert not (tmp_path / "run").exists()


def test_a_budget_in_minutes_is_of_steps_that_are_compiled(go, graphs):
    status, _, err = go("--precision", "bf16", "--minutes", 0.02, "--short-seq-prob", 0.2, "--compile")
    assert status == 0, err
    assert "step" in err.partition("ms a step")[2]
    assert len(graphs) == 1 + 3  # those of the copy that was timed are used again


def test_each_mask_rate_would_be_compiled_anew(go, graphs):
    status, _, err = go("--compile", "--steps", 2, "--mask-rate-end", 0.5)
    assert (status, len(graphs)) == (2, 0)
    assert err == "error: --mask-rate-end 0.5: does not work with --compile; leave it out\n"


def test_more_shapes_than_are_compiled_are_one_line(go, graphs, monkeypatch):
    monkeypatch.setattr("minilm.machine.runtime.MOST_GRAPHS", 1)
    status, _, err = go("--precision", "bf16", "--steps", 24, "--short-seq-prob", 0.2, "--compile")
    assert status == 2
    assert err.splitlines()[-1].startswith("error: --compile: torch's compiler fails here (")


def test_what_is_not_compiled_is_refused(go, tmp_path):
    status, _, err = go("--compile", "--steps", 2)
    assert (status, err) == (2, "error: --compile: needs a GPU, and this is cpu; leave it out\n")
    assert not (tmp_path / "run").exists()


def test_a_held_out_text_that_is_read_once_is_not_called_read_again(go, tmp_path, train, monkeypatch):
    """Though its short documents each get a [CLS] of their own."""
    monkeypatch.setattr(train, "fixed_batches", partial(fixed_batches, min_targets=1))
    status, out, err = go("--steps", 1, "--packing", "documents", "--json", "r.json")
    assert status == 0, err
    assert json.loads((tmp_path / "r.json").read_text())["held_out_reads"] == 1.0
    assert " times" not in out


def test_it_learns(go, tmp_path):
    """Well below the unigram line, where no model gets that does not read the context."""
    go("--steps", 400, "--batch-size", 16, "--json", "r.json")
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["held_out_loss"] < result["unigram_loss"] - 0.2


def test_the_corpus_is_reported_and_nothing_trained(go, tmp_path):
    status, out, _ = go("--prepare-only", "--json", "r.json")
    report = json.loads((tmp_path / "r.json").read_text())
    assert status == 0
    assert f"{report['tokens']:,}, of which {report['held_out_tokens']:,} held out" in out
    assert report["vocab_size"] == 256
    assert report["documents"] == 300
    assert 0 < report["unknown_rate"] < 0.01
    assert report["fill"] == 1.0
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("pairs", ["next", "order"])
def test_pairs_of_texts(go, tmp_path, pairs):
    """A BERT with its second task: learned, said, saved as BertForPreTraining, and gone on with."""
    flags = ["--recipe", "bert-mini", "--pairs", pairs]
    status, out, err = go(*flags, "--steps", 8, "--json", "r.json")
    assert status == 0, err
    assert "pair accuracy" in out
    assert 0 <= json.loads((tmp_path / "r.json").read_text())["pair_accuracy"] <= 1
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["architectures"] == ["BertForPreTraining"]
    assert read_model(tmp_path / "run").model.pair is not None
    again = ["--model", "run", "--pairs", pairs, "--steps", 2, "--length", 32, "--out", "more", "--json", "m.json"]
    assert go(*again)[0] == 0
    assert json.loads((tmp_path / "m.json").read_text())["held_out_loss_before"] == pytest.approx(
        json.loads((tmp_path / "r.json").read_text())["held_out_loss"], abs=0.01
    )
    for flags in ((), ("--recipe", "bert-base", "--pairs", "off")):
        out = "without" + str(len(flags))
        status, _, err = go("--model", "run", "--steps", 1, "--length", 32, "--out", out, "--batch-size", 8, *flags)
        assert status == 0, err
        assert read_model(tmp_path / out).model.pair is None
    assert "--model run: its pair head and pooler are dropped; --pairs keeps them" in err


def test_whole_words_short_rows_and_growing_batches(go, tmp_path, monkeypatch):
    """All that varies over a run at once, gone on with from its middle: the weights of the run that was not stopped."""
    monkeypatch.setattr(Store, "prune", lambda self, keep, spared=None: None)
    flags = ["--steps", 24, "--whole-words", "--mask-rate", 0.4, "--mask-rate-end", 0.15, "--short-frac", 0.4]
    flags += ["--accumulation", 4, "--batch-warmup-frac", 0.6, "--length", 64, "--gradient-checkpointing"]
    flags += ["--short-seq-prob", 0.3]
    assert go(*flags, "--save-every", 12)[0] == 0
    half = half_of(tmp_path / "run", 12)
    status, _, err = go(*flags, "--save-every", 12, "--out", "half")
    assert "resuming from step 12" in err
    assert status == 0
    assert same_weights(tmp_path / "run", half)


def test_a_stretch_of_a_few_steps_of_many_is_known(go, tmp_path):
    """Of 100,000 steps 40 on short rows, 20 with one micro-batch."""
    flags = ["--steps", 100_000, "--short-frac", 0.0004, "--accumulation", 2, "--batch-warmup-frac", 0.0002]
    status, _, err = go(*flags, "--length", 128, "--dry-run", "--json", "r.json")
    assert status == 0, err
    stretches = json.loads((tmp_path / "r.json").read_text())
    assert stretches["tokens"] == pytest.approx(100_000 * 8 * 128, rel=0.001)


def half_of(whole: Path, step: int) -> Path:
    """A run beside `whole` that has come to one of its checkpoints."""
    half = whole.parent / "half"
    half.mkdir()
    run = json.loads((whole / "run.json").read_text())
    (half / "run.json").write_text(json.dumps(run | {"result": None}))
    shutil.copytree(whole / f"step-{step:06d}", half / f"step-{step:06d}")
    return half


def test_going_on_with_a_model(go, tmp_path):
    """Its tokenizer, its objective, and a held-out loss that begins where it had ended and goes down."""
    assert go("--objective", "clm", "--steps", 30, "--json", "first.json")[0] == 0
    first = json.loads((tmp_path / "first.json").read_text())
    flags = ["--model", "run", "--out", "more", "--steps", 30, "--length", 32, "--packing", "stream", "--lr", 3e-3]
    status, out, err = go(*flags, "--json", "more.json")
    assert status == 0, err
    more = json.loads((tmp_path / "more.json").read_text())
    assert more["objective"] == "clm"
    assert more["held_out_loss_before"] == pytest.approx(first["held_out_loss"], abs=0.005)
    assert more["held_out_loss"] < first["held_out_loss"]
    assert f"before     loss {more['held_out_loss_before']:.3f}" in out
    assert "Trained further from run (" in (tmp_path / "more" / "README.md").read_text()
    vocabularies = [(tmp_path / name / "vocab.txt").read_text() for name in ("run", "more")]
    assert vocabularies[0] == vocabularies[1]


def test_a_model_keeps_the_dropout_that_it_came_with(go, tmp_path):
    """For who tunes it later; what it goes on with is this training's own."""
    assert go("--recipe", "bert-mini", "--dropout", 0.2, "--steps", 2)[0] == 0
    for name, flags, kept in (("more", (), 0.2), ("other", ("--dropout", 0.1), 0.1)):
        assert go("--model", "run", "--length", 32, "--steps", 2, "--out", name, *flags)[0] == 0
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert [config[f"{part}_dropout_prob"] for part in ("hidden", "attention_probs")] == [kept, kept]
    assert json.loads((tmp_path / "more" / "run.json").read_text())["settings"]["dropout"] == 0.0


def test_words_are_added_to_a_models_vocabulary(go, tmp_path):
    assert go("--steps", 4)[0] == 0
    (tmp_path / "words.txt").write_text("bdfl\n##graphies\n")
    flags = ["--model", "run", "--add-tokens", "words.txt", "--steps", 2, "--length", 32, "--out", "more"]
    status, _, err = go(*flags)
    assert status == 0, err
    assert "words added to the vocabulary: 2" in err
    model, tokenizer, _ = read_model(tmp_path / "more")
    assert (model.cfg.vocab_size, tokenizer.vocab_size) == (258, 258)
    assert tokenizer.encode("bdfl").tokens == ["[CLS]", "bdfl", "[SEP]"]


def test_going_on_with_an_encoder_alone(go, tmp_path):
    """Its head is new: --seed decides it, and the run is known again for the same."""
    assert go("--steps", 2)[0] == 0
    shutil.copytree(tmp_path / "run", tmp_path / "encoder")
    (tmp_path / "encoder" / "MANIFEST.json").unlink()
    weights = load_file(tmp_path / "encoder" / "model.safetensors")
    encoder = {name: own for name, own in weights.items() if name.startswith("model.")}
    save_file(encoder, tmp_path / "encoder" / "model.safetensors")
    flags = ["--model", "encoder", "--length", 32, "--steps", 4, "--save-every", 2]
    for out in ("one", "two"):
        status, _, err = go(*flags, "--out", out)
        assert status == 0, err
        assert "has no language-model head: a new one is used" in err
    assert same_weights(tmp_path / "one", tmp_path / "two")
    status, _, err = go(*flags, "--out", "one")
    assert "one is finished" in err


def test_another_model_is_another_run(go, tmp_path):
    assert go("--steps", 2)[0] == 0
    assert go("--steps", 3, "--out", "two")[0] == 0
    flags = ["--steps", 2, "--length", 32, "--out", "more"]
    assert go("--model", "run", *flags)[0] == 0
    for name in ("config.json", "model.safetensors", "MANIFEST.json"):
        shutil.copy(tmp_path / "two" / name, tmp_path / "run" / name)
    status, _, err = go("--model", "run", *flags)
    assert status == 2
    assert "began with model run (" in err.splitlines()[-1]


MODEL_FAULTS = {
    ("--model", "nowhere"): "--model nowhere: no such directory",
    ("--model", "run", "--vocab-size", "64"): "--vocab-size: --model has its own vocabulary",
    ("--model", "run", "--objective", "clm"): "--objective clm: run was trained for mlm",
    ("--model", "run", "--length", "2048"): "--length 2048: run reads 1024 tokens at most",
    ("--model", "run", "--pairs", "next"): "--pairs next: only a BERT",
    ("--objective", "clm", "--pairs", "off"): "--pairs off: goes with --objective mlm only",
    ("--model", "run", "--add-tokens", "missing.txt"): "--add-tokens missing.txt: cannot be read",
    ("--add-tokens", "words.txt"): "--add-tokens words.txt: extends the vocabulary of a model",
    ("--recipe", "continue"): "--recipe continue: needs a model",
    ("--shard",): "--shard: shares a model among processes",
    ("--objective", "clm", "--pairs", "next"): "--pairs next: goes with --objective mlm only",
    ("--model", "run", "--output-scale", "0.5"): "--output-scale 0.5: has no effect with --model",
    ("--model", "run", "--output-scale", "0"): "--output-scale 0.0: has no effect with --model",
    ("--model", "run", "--word-std", "0.1"): "--word-std 0.1: has no effect with --model",
    ("--sinusoids", "0.2"): "--sinusoids 0.2: goes with a BERT only, as --recipe bert-mini",
}


@pytest.mark.asks
def test_bad_models_are_one_line(go, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert go("--steps", 2)[0] == 0
    for flags, message in MODEL_FAULTS.items():
        status, _, err = go(*flags, "--steps", 2, "--out", "other")
        assert status == 2, flags
        assert message in err.splitlines()[-1]
        assert "Traceback" not in err
        assert not (tmp_path / "other").exists()


def test_a_finished_run_says_its_result(go):
    _, first, _ = go("--steps", 2)
    status, again, err = go("--steps", 2)
    assert status == 0
    assert "is finished" in err
    assert "held out" in again
    assert first.endswith(again)


@pytest.mark.parametrize("lost", ["model.safetensors", "config.json"])
def test_a_finished_model_that_is_damaged_is_written_again(go, tmp_path, lost):
    assert go("--steps", 2)[0] == 0
    whole = (tmp_path / "run" / lost).read_bytes()
    (tmp_path / "run" / lost).unlink()
    status, _, err = go("--steps", 2)
    assert status == 0, err
    assert "is finished, but" in err
    assert (tmp_path / "run" / lost).read_bytes() == whole
    assert "the model is written again" not in go("--steps", 2)[2]


def test_a_finished_model_is_not_written_over_by_a_run_that_begins_anew(go, tmp_path):
    """Where no checkpoint is left to write it again from."""
    assert go("--steps", 2)[0] == 0
    (step,) = (tmp_path / "run").glob("step-*")
    shutil.rmtree(step)
    config = tmp_path / "run" / "config.json"
    config.write_text(config.read_text() + " ")
    before = {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir() if file.name != "lock"}
    status, _, err = go("--steps", 2)
    assert status == 2
    assert (
        "error: run: is finished, but config.json differs from MANIFEST.json, and no checkpoint is there"
        in err.splitlines()[-1]
    )
    assert {file.name: file.read_bytes() for file in (tmp_path / "run").iterdir() if file.name != "lock"} == before


def test_a_result_that_is_none_is_one_line(go, tmp_path):
    assert go("--steps", 2)[0] == 0
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps(run | {"result": {"loss": 1}}))
    status, _, err = go("--steps", 2)
    assert status == 2
    assert "run.json: its result is malformed" in err.splitlines()[-1]


def test_json_alone_goes_to_standard_output(go):
    status, out, err = go("--steps", 2, "--json")
    assert status == 0
    assert json.loads(out)["steps"] == 2
    assert "held out" in err


def test_minutes_become_steps_once(go, train, tmp_path, monkeypatch):
    """The run of so many minutes is the run of that many steps, bit for bit, and a resume does not measure again."""
    monkeypatch.setattr(Store, "prune", lambda self, keep, spared=None: None)
    flags = ("--minutes", 0.002, "--dropout", 0.1, "--save-every", 1)
    assert go(*flags)[0] == 0
    steps = json.loads((tmp_path / "run" / "run.json").read_text())["steps"]
    assert steps > 1
    monkeypatch.delattr(train, "step_seconds")
    half = half_of(tmp_path / "run", 1)
    status, _, err = go(*flags, "--out", "half")
    assert status == 0, err
    assert f"resuming from step 1 of {steps} steps" in err
    assert go("--steps", steps, "--dropout", 0.1, "--out", "other")[0] == 0
    assert same_weights(tmp_path / "run", half)
    assert same_weights(tmp_path / "run", tmp_path / "other")


@pytest.fixture
def planned(go, train, monkeypatch):
    """planned(*flags) -> (job, plan) of the run, which is not begun."""

    class Planned(Exception):
        pass

    def stop(job, plan):
        raise Planned(job, plan)

    monkeypatch.setattr(train, "train", stop)

    def of(*flags):
        with pytest.raises(Planned) as stopped:
            go(*flags)
        return stopped.value.args

    return of


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("lr", [(), ("--lr", 3e-4)], ids=["recipe", "flag"])
def test_what_updates_is_as_recipe_and_flags_say(planned, monkeypatch, optimizer, lr):
    monkeypatch.setitem(RECIPES, "quick", replace(RECIPES["quick"], beta2=0.9, eps=1e-4, weight_decay=0.2))
    for decay, more in ((0.2, ()), (0.3, ("--weight-decay", 0.3))):
        job, _ = planned("--steps", 10, "--optimizer", optimizer, *lr, *more, "--out", f"run{decay}")
        adamw, *muon = job.optimizers
        assert [type(each) for each in muon] == [Muon] * (optimizer == "muon")
        groups = [group for each in job.optimizers for group in each.param_groups]
        assert {group["peak_lr"] for group in groups} == {lr[1] if lr else 5e-3}
        assert [group["weight_decay"] for group in groups] == [decay, 0.0, *[decay for _ in muon]]
        assert {(group["betas"], group["eps"]) for group in adamw.param_groups} == {((0.9, 0.9), 1e-4)}


@pytest.mark.parametrize(
    ("flags", "rates"),
    [
        (("--schedule", "linear"), {0: 1 / 25, 24: 1, 25: 1, 55: 0.6, 99: 1 / 75}),
        (("--schedule", "linear", "--warmup-frac", 0), {0: 1, 40: 0.6, 99: 0.01}),
        (("--schedule", "cosine"), {24: 1, 50: 0.75, 75: 0.25, 99: math.sin(math.pi / 150) ** 2}),
        (("--schedule", "wsd"), {24: 1, 60: 1, 70: 1 - 0.25**0.5, 99: 1 - (39 / 40) ** 0.5}),
        (("--schedule", "wsd", "--decay-frac", 0.1), {60: 1, 90: 1, 95: 1 - 0.5**0.5}),
    ],
)
def test_the_learning_rate_goes_as_recipe_and_flags_say(planned, monkeypatch, flags, rates):
    monkeypatch.setitem(RECIPES, "quick", replace(RECIPES["quick"], warmup_frac=0.25, decay_frac=0.4))
    _, plan = planned("--steps", 100, *flags)
    assert {step: plan.schedule(step) for step in rates} == pytest.approx(rates)


def test_the_rest_of_the_plan_is_as_recipe_and_flags_say(planned, monkeypatch):
    monkeypatch.setitem(RECIPES, "quick", replace(RECIPES["quick"], max_norm=0.25))
    for more, evaluate_every, save_every in ((), 21, 500), (("--evaluate-every", 7, "--save-every", 3), 7, 3):
        _, plan = planned("--steps", 101, "--seed", 5, *more, "--out", f"run{save_every}")
        found = plan.steps, plan.max_norm, plan.seed, plan.evaluate_every, plan.save_every
        assert found == (101, 0.25, 5, evaluate_every, save_every)


@pytest.mark.parametrize("flags", [("--recipe", "quick"), ("--recipe", "bert-mini", "--pairs", "next")])
def test_another_seed_is_another_run_on_the_same_held_out_text(planned, flags):
    """Other weights, masks and order of rows, and of pairs other texts; the same targets to be held to."""
    flags = (*flags, "--steps", 10)
    (one, _), (other, _) = planned(*flags), planned(*flags, "--seed", 1, "--out", "other")
    weights, others = one.model.state_dict(), other.model.state_dict()
    drawn = [name for name, own in weights.items() if own.unique().numel() > 2]
    assert len(drawn) > 4
    assert not [name for name in drawn if torch.equal(weights[name], others[name])]
    assert (one.loader.order(0)[1] != other.loader.order(0)[1]).any()
    assert (one.loader.objective.seed, other.loader.objective.seed) == (0, 1)
    first = np.arange(9), np.zeros(9, dtype=np.int64)
    assert torch.equal(*(job.loader.rows[32].take(*first).ids for job in (one, other))) == ("--pairs" not in flags)
    assert one.unigram == other.unigram
    other.model.load_state_dict(weights)
    assert one.evaluate() == other.evaluate()


def test_a_run_goes_on_without_a_checkpoint_where_that_is_asked_for(planned):
    assert not planned("--steps", 2)[0].may_miss_saves
    assert planned("--steps", 2, "--on-save-error", "go-on", "--out", "other")[0].may_miss_saves


@pytest.mark.parametrize("case", [("--lowercase",), ("--no-lowercase",)])
def test_a_vocabulary_ignores_case_where_that_is_asked_for(go, tmp_path, case):
    assert go("--steps", 1, *case)[0] == 0
    tokenizer = read_model(tmp_path / "run").tokenizer
    assert tokenizer.lowercase == (case == ("--lowercase",))
    assert (tokenizer.encode("The").tokens == tokenizer.encode("the").tokens) == tokenizer.lowercase


def test_the_text_of_a_line_is_in_the_field_that_is_named(go, text, tmp_path):
    documents = text.read_text().split("\n\n")
    rows = [json.dumps({"text": "nothing", "body": document}) for document in documents]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    reports = []
    for flags in ((), ("--data", "rows.jsonl", "--text-field", "body")):
        assert go(*flags, "--prepare-only", "--json", "r.json")[0] == 0
        reports.append(json.loads((tmp_path / "r.json").read_text()))
    assert reports[0] == reports[1]


def test_epochs_become_steps(go, tmp_path):
    _, _, err = go("--epochs", 0.5)
    rows = int(err.split(" rows of 32")[0].split()[-1].replace(",", ""))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["steps"] == -(-rows // 8)


def test_dry_run_keeps_nothing(go, tmp_path):
    status, out, err = go("--dry-run", "--steps", 1000, "--json", "r.json")
    assert status == 0, err
    assert "only the token cache was kept" in out
    assert [path.name for path in tmp_path.iterdir() if "dry" in path.name] == []
    assert "for 1,000 steps" in out
    assert json.loads((tmp_path / "r.json").read_text())["steps"] == 1000
    assert not (tmp_path / "run").exists()


def test_a_dry_run_is_refused_as_the_run_would_be(go):
    assert go("--steps", 2)[0] == 0
    status, _, err = go("--steps", 3, "--dry-run")
    assert status == 2
    assert "--out run: began with steps 2, not 3" in err.splitlines()[-1]
    assert go("--steps", 2, "--dry-run")[0] == 0


def test_a_dry_run_that_is_told_to_end_leaves_nothing(text, cache, tmp_path, wait_for):
    process = start(text, cache, tmp_path / "run", "--dry-run", "--batch-size", "256")  # not over before it is told
    wait_for(lambda: list(tmp_path.glob(".dry-run-*/run")), process)
    process.terminate()
    assert process.wait(timeout=60) == 143
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_dry_run_left_is_removed(go, tmp_path):
    """Unless it is still running: its directory is beside the run's own."""
    for name in ("dead", "alive"):
        (tmp_path / "run" / f".dry-run-{name}" / "run").mkdir(parents=True)
        (tmp_path / "run" / f".dry-run-{name}" / "run" / "lock").touch()
    with (tmp_path / "run" / ".dry-run-alive" / "run" / "lock").open("rb") as held:
        files.lock(held.fileno())
        assert go("--steps", 2)[0] == 0
    assert [path.name for path in (tmp_path / "run").glob(".dry-run-*")] == [".dry-run-alive"]
    (tmp_path / ".dry-run-dead" / "run").mkdir(parents=True)
    (tmp_path / ".dry-run-dead" / "run" / "lock").touch()
    assert go("--steps", 2, "--dry-run", "--out", "new")[0] == 0
    assert [*tmp_path.glob(".dry-run-*")] == []


def test_a_number_may_be_written_in_another_way(go, train, monkeypatch):
    """A recipe's whole number, and the same from the command line."""
    monkeypatch.setitem(RECIPES, "bert-mini", replace(RECIPES["bert-mini"], minutes=30))

    def timed(args, recipe, *rest):
        return {each.kind: 600.0 for each in recipe.stretches(1000)}, None

    monkeypatch.setattr(train, "timed", timed)
    status, _, err = go("--recipe", "bert-mini", "--time-limit", 0.001)
    assert "stopped and saved at step 1;" in err.splitlines()[-1], (status, err)
    status, _, err = go("--recipe", "bert-mini", "--minutes", 30.0)
    assert status == 0, err
    assert "resuming from step 1 of 3 steps" in err


def test_a_dry_run_says_what_the_run_then_costs(go, tmp_path):
    """FLOPs, tokens and disk exactly; time is measured by hand, for no test may depend on it."""
    flags = ["--steps", 60, "--save-every", 20, "--short-frac", 0.5, "--batch-warmup-frac", 0.3, "--accumulation", 4]
    flags += ["--short-seq-prob", 0.3]
    assert go(*flags, "--dry-run", "--json", "dry.json")[0] == 0
    assert go(*flags, "--json", "run.json")[0] == 0
    estimate, result = (json.loads((tmp_path / name).read_text()) for name in ("dry.json", "run.json"))
    assert estimate["flops"] == result["flops"]
    assert estimate["tokens"] == result["tokens"]
    assert estimate["parameters"] == result["parameters"]
    kept = sum(path.stat().st_size for path in (tmp_path / "run" / "step-000060").rglob("*") if path.is_file())
    assert estimate["checkpoint_mb"] == pytest.approx(kept / 2**20, rel=0.01)
    assert estimate["disk_mb"] == pytest.approx(3 * kept / 2**20, rel=0.05)
    assert 0 < estimate["seconds"] < estimate["total_seconds"]
    assert estimate["peak_mb"] > 100


@pytest.mark.parametrize("flags", [("--out", "file"), ("--json", "nowhere/r.json"), ("--json", ".")])
def test_dry_run_finds_what_would_fail_later(go, tmp_path, flags):
    (tmp_path / "file").write_text("x")
    status, _, err = go("--dry-run", *flags)
    assert status == 2
    assert " ".join(flags) in err.splitlines()[-1]


def test_one_vocabulary_however_it_was_asked_for(go, tmp_path):
    """The run that a default began goes on under the flag that says the same."""
    assert go("--steps", 2)[0] == 0
    assert go("--steps", 2, "--vocab-size", 256)[0] == 0


def test_a_run_of_another_version_says_so(go, tmp_path):
    assert go("--steps", 4, "--save-every", 2)[0] == 0
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    del run["result"]
    run["versions"]["torch"] = "1.0"
    (tmp_path / "run" / "run.json").write_text(json.dumps(run))
    status, _, err = go("--steps", 4, "--save-every", 2)
    assert status == 0
    assert f"began with torch 1.0, now it is {torch.__version__}: it resumes, but not bit for bit" in err
    assert "(as before)" in err


def test_dropout_on_a_processor_is_the_cheap_one(go, monkeypatch):
    """In the steps, and not in the evaluations."""
    original, drawn = CheapDropout.forward, []
    monkeypatch.setattr(CheapDropout, "forward", lambda self, x: (drawn.append(self.training), original(self, x))[1])
    assert go("--steps", 2, "--dropout", 0.5, "--device", "cpu")[0] == 0
    assert drawn.count(True) == 2 * (1 + 3 * 2)  # the embedding, and weights and both outputs of two layers
    assert drawn.count(False) > 0


def test_what_is_shown_is_the_model_without_dropout(go, train, tmp_path, monkeypatch):
    modes = []
    monkeypatch.setattr(train, "samples", lambda pretrained, *rest: modes.append(pretrained.model.training) or [])
    assert go("--steps", 2, "--dropout", 0.5)[0] == 0
    assert modes == [False]


FULL = {
    "GPU": (torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has less.\nMuch more."),
    "CPU": (RuntimeError, "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"),
    "Python": (MemoryError, ""),
}


@pytest.mark.parametrize(("kind", "said"), FULL.values(), ids=FULL)
def test_a_full_memory_is_one_line(go, train, monkeypatch, kind, said):
    def full(model, batch):
        raise kind(said)

    monkeypatch.setattr(train, "language_model_loss", full)
    status, _, err = go("--steps", 2)
    assert status == 2
    found = re.fullmatch(
        r"error: step 1: out of memory with 4 rows of 32 tokens at once; peak memory ([\d,]+) MB; "
        r"give --auto-batch for smaller micro-batches",
        err.splitlines()[-1],
    )
    assert 100 < int(found[1].replace(",", "")) < 100_000
    status, _, err = go("--steps", 2, "--auto-batch")
    assert status == 2
    assert "with 1 row of 32 tokens" in err.splitlines()[-1]
    assert err.splitlines()[-1].endswith("and there is nothing smaller; lower --length")


@pytest.mark.parametrize("budget", [("--steps", 6), ("--minutes", 0.01)], ids=["steps", "minutes"])
def test_what_does_not_fit_is_computed_in_parts(go, train, monkeypatch, tmp_path, budget):
    """From its fourth step on, or while a step is timed: to the bits of a run in these parts, dropout's draws among
    them; and so does what goes on from there, though all would fit."""
    plain, asked, saved = train.language_model_loss, [], 4 if budget[0] == "--steps" else 1

    def full_above(model, batch):
        rows = len(batch.tokens.input_ids)
        asked.append(rows)
        found = plain(model, batch)
        if rows > 2 and (budget[0] == "--minutes" or len(asked) > 3):
            found[0].backward()  # something is left of it, and drawn
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return found

    monkeypatch.setattr(train, "language_model_loss", full_above)
    monkeypatch.setattr(Store, "prune", lambda self, keep, spared=None: None)
    flags = ("--recipe", "bert-mini", "--batch-size", 8, *budget, "--save-every", saved, "--auto-batch")
    status, _, err = go(*flags)
    assert status == 0, err
    assert err.count("out of memory with 8 rows of 32") == err.count("out of memory with 4 rows of 32") == 1
    assert "micro-batches are now at most 64 tokens, or one row" in err
    half = half_of(tmp_path / "run", saved)
    monkeypatch.setattr(train, "language_model_loss", plain)
    assert go(*flags, "--out", "half")[0] == 0
    assert same_weights(tmp_path / "run", half)
    if budget[0] == "--steps":
        assert asked[:10] == [8, 8, 8, 8, 4, 2, 2, 2, 2, 2]

        def in_parts(self, step, micro_batches=train.Loader.micro_batches):
            return micro_batches(self if step < 3 else self.within(64), step)

        monkeypatch.setattr(train.Loader, "micro_batches", in_parts)
        assert go(*flags, "--out", "other")[0] == 0
        assert same_weights(tmp_path / "run", tmp_path / "other")


def test_several_processes_cannot_change_their_parts(go, train, monkeypatch):
    assert go("--steps", 2, "--auto-batch", "--dry-run")[0] == 0
    monkeypatch.setattr(train.Ranks, "join", lambda: train.Ranks(0, 2, 0))
    with pytest.raises(ConfigError, match="--auto-batch: works in one process only"):
        train.effective_recipe(train.Args(auto_batch=True), "mlm", None)
    error = train.OutOfMemory(256, "out of memory with 8 rows")
    said = "step 3: out of memory with 8 rows in process 1; in another --out, lower --batch-size"
    with pytest.raises(train.OutOfMemory, match=said):
        train.with_less(None, error, True, train.Ranks(1, 2, 1), None, 2)


def test_a_long_row_that_does_not_fit_ends_the_timing(go, train, monkeypatch):
    """Short rows, of the first stretch, do: there is something smaller, but not of what failed."""
    plain, asked = train.language_model_loss, []

    def full_of_long_rows(model, batch):
        asked.append(batch.tokens.input_ids.shape)
        if batch.tokens.input_ids.shape[1] == 32:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return plain(model, batch)

    monkeypatch.setattr(train, "language_model_loss", full_of_long_rows)
    flags = ("--recipe", "bert-mini", "--batch-size", 2, "--short-frac", 0.5, "--minutes", 0.01, "--auto-batch")
    status, _, err = go(*flags)
    assert status == 2
    assert err.splitlines()[-1].startswith("error: timing: out of memory with 1 row of 32 tokens at once")
    assert err.splitlines()[-1].endswith("and there is nothing smaller; lower --length")
    assert [shape for shape in asked if shape[1] == 32] == [(2, 32), (1, 32), (1, 32)]


@pytest.mark.parametrize(
    ("flags", "precision", "said"),
    [
        ({"steps": 2}, "fp16", "--shard: --precision fp16 is not supported with it; use bf16 or fp32"),
        ({"steps": 2, "compile": True}, "bf16", "--shard: does not work with --compile; leave one of them out"),
        ({"minutes": 1.0}, "bf16", "--shard: takes no budget in --minutes; give --steps or --epochs"),
        ({}, "bf16", "--shard: takes no budget in --minutes; give --steps or --epochs"),
        ({"dry_run": True}, "bf16", "--shard: takes no budget in --minutes; give --steps or --epochs"),
    ],
)
def test_what_a_sharded_run_is_not(train, flags, precision, said):
    args = train.Args(shard=True, **flags)
    two = replace(Runtime.choose("cpu", precision), ranks=train.Ranks(0, 2, 0))
    with pytest.raises(ConfigError, match=said):
        train.check_sharding(args, train.effective_recipe(args, "mlm", None), two, None)
    for fine in ({"steps": 2}, {"epochs": 1.0}, {"steps": 2, "dry_run": True}):
        args = train.Args(shard=True, **fine)
        train.check_sharding(args, train.effective_recipe(args, "mlm", None), replace(two, precision="bf16"), None)


def test_a_checkpoint_of_another_run_is_refused(go, tmp_path):
    """However it came there: it would go on, and end in other weights."""
    assert go("--steps", 4, "--save-every", 2, "--lr", 1e-3, "--out", "other")[0] == 0
    assert go("--steps", 4, "--save-every", 2)[0] == 0
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps(run | {"result": None}))
    shutil.rmtree(tmp_path / "run" / "step-000004")
    shutil.copytree(tmp_path / "other" / "step-000004", tmp_path / "run" / "step-000004")
    status, _, err = go("--steps", 4, "--save-every", 2)
    assert status == 2
    assert "step-000004: of another run; move it away" in err.splitlines()[-1]


def test_a_log_that_is_none_is_begun_anew(go, tmp_path):
    assert go("--steps", 4, "--save-every", 2)[0] == 0
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps(run | {"result": None}))
    lines = ["5", "[1]", "null", "{}", '{"step": "x"}', '{"step": 1, "held_out_loss": [1]}', "[" * 100_000, "9" * 5000]
    (tmp_path / "run" / "metrics.jsonl").write_text("\n".join(lines))
    status, _, err = go("--steps", 4, "--save-every", 2)
    assert status == 0, err


def test_another_run_is_refused_before_its_text_is_read(go, tmp_path):
    assert go("--steps", 2)[0] == 0
    status, _, err = go("--steps", 3, "--data", "missing.txt")
    assert status == 2
    assert "began with steps 2, not 3" in err.splitlines()[-1]


def test_words_that_nobody_knows_are_nothing_to_predict(go, tmp_path, train, monkeypatch):
    """A loss over no target would be 0.000, a lie."""
    monkeypatch.setattr(train, "fixed_batches", lambda *args: iter(()))
    status, _, err = go("--steps", 2)
    assert status == 2
    assert "the held-out text is all unknown words, so nothing to predict" in err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def same_weights(a: Path, b: Path) -> bool:
    one, two = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("recipe", "precision", "accumulation", "packing"),
    [  # each two of these together
        ("quick", "fp32", 1, "stream"),
        ("quick", "bf16", 4, "documents"),
        ("bert-mini", "fp32", 4, "documents"),
        ("bert-mini", "bf16", 1, "documents"),
        ("bert-mini", "bf16", 4, "stream"),
    ],
)
def test_resume_is_exact(go, tmp_path, monkeypatch, recipe, precision, accumulation, packing):
    """Save at n, resume, reach 2n: the weights of the uninterrupted run, across the end of the first epoch."""
    monkeypatch.setattr(Store, "prune", lambda self, keep, spared=None: None)
    short = write_topics(tmp_path / "short.txt", 12_500)
    n = 56 // accumulation  # an epoch has less than 224 rows
    flags = ["--recipe", recipe, "--precision", precision, "--accumulation", accumulation, "--packing", packing]
    flags += ["--dropout", 0.1, "--steps", 2 * n, "--save-every", n, "--data", short, "--evaluate-every", n]
    status, _, err = go(*flags)
    assert status == 0, err
    rows = int(err.split(" rows of 32")[0].split()[-1].replace(",", ""))
    assert n * 4 * accumulation > rows
    half = half_of(tmp_path / "run", n)
    status, _, err = go(*flags, "--out", "half")
    assert status == 0
    assert f"resuming from step {n}" in err
    assert same_weights(tmp_path / "run", half)
    assert (half / f"step-{2 * n:06d}" / "training" / "tensors.safetensors").read_bytes() == (
        tmp_path / "run" / f"step-{2 * n:06d}" / "training" / "tensors.safetensors"
    ).read_bytes()


def start(text, cache, out, *flags):
    command = [sys.executable, ROOT / "train.py", "--data", text, "--cache-dir", cache, "--out", out, "--threads", "1"]
    command += [
        "--objective",
        "clm",
        "--optimizer",
        "adamw",
        "--evaluate-every",
        "400",
        "--steps",
        "12",
        "--save-every",
        "3",
        "--batch-size",
        "4",
        "--length",
        "32",
        "--vocab-size",
        "256",
    ]
    return subprocess.Popen(
        [*map(str, command), *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=out.parent
    )


@pytest.fixture(scope="module")
def whole(text, cache, tmp_path_factory):
    """The directory of a run by `start` that nothing stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    _, err = (process := start(text, cache, out)).communicate(timeout=60)
    assert process.returncode == 0, err
    return out


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 0)]
)
def test_a_stopped_run_goes_on_exactly(text, cache, whole, tmp_path, wait_for, number, status):
    """The real command, killed between two saves or asked to stop; the same command ends where the other one does."""
    broken = tmp_path / "broken"
    process = start(text, cache, broken)
    wait_for((broken / "step-000003").exists, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    assert not (broken / "config.json").exists()
    again = start(text, cache, broken)
    _, err = again.communicate(timeout=60)
    assert again.returncode == 0, err
    assert "resuming from step" in err
    assert same_weights(whole, broken)


def test_a_run_ends_when_its_time_is_up(go, train, capsys):
    """Saved, with status 0; more time makes it whole, for how long it may take is no setting of the run."""
    status, out, err = go("--steps", 6, "--time-limit", 0.001)
    assert (status, out) == (0, "")
    assert "stopped and saved at step 1; the same command" in err.splitlines()[-1]
    status, _, err = go("--steps", 6, "--time-limit", 1e6)
    assert status == 0, err
    assert "resuming from step 1 of 6 steps" in err


def bad(content: bytes):
    return lambda directory: (directory / "bad.txt").write_bytes(content)


BLANK = b"\n \n\t\n" * 50
SENTENCE = b"a few words that repeat themselves here and there\n\n"
DATA_FAULTS = {
    "missing": (None, "bad.txt: no such file"),
    "one document": (
        lambda d: (d / "bad.txt").write_text(" ".join(topics.values())[:75_000].replace("\n", " ")),
        "the 0 of 1 documents held out do not fill a row of 32 tokens; give more documents (a blank line ends one)",
    ),
    "empty": (bad(b""), "no text in it"),
    "blank": (bad(BLANK), "no text in it"),
    "binary": (bad(b"ELF\0\1\2"), "bad.txt:1: a NUL byte"),
    "latin-1": (bad(SENTENCE + "café\n".encode("latin-1")), "bad.txt:3: not UTF-8"),
    "too small": (bad(SENTENCE * 3), "the text supports"),
    "fewer rows than a batch": (
        lambda d: (d / "bad.txt").write_text("\n\n".join(topics[name] for name in sorted(topics)[:6])),
        "fewer than a micro-batch of 4096",
    ),
}


def test_json_is_not_read_as_text(go, tmp_path):
    (tmp_path / "a.json").write_text("[]")
    status, _, err = go("--data", "a.json", "--steps", 2)
    assert status == 2
    assert "--data a.json: not read as text; give .txt, or .jsonl" in err.splitlines()[-1]


def test_output_that_nobody_reads_is_no_error(text, cache, tmp_path):
    process = start(text, cache, tmp_path / "run", "--prepare-only")
    process.stdout.close()
    assert "rror" not in process.stderr.read()
    assert process.wait(timeout=60) == 141


@pytest.mark.parametrize("fault", DATA_FAULTS)
def test_bad_data_is_one_line_and_leaves_nothing(go, tmp_path, fault):
    make, message = DATA_FAULTS[fault]
    if make:
        make(tmp_path)
    status, out, err = go("--data", "bad.txt", "--steps", 2, "--batch-size", 4096)
    assert status == 2
    assert message in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in err
    assert out == ""
    assert not (tmp_path / "run").exists()


FLAG_FAULTS = {
    ("--steps", "0"): "--steps 0: give a value from 1",
    ("--steps", "many"): "--steps",
    ("--lr", "nan"): "--lr nan: not a finite number",
    ("--data",): "--data: name files",
    ("--data", "a.txt", "--lr", "1e-3", "--data", "b.txt"): "--data: given twice",
    ("--cache-dir", "~nobody-here/x"): "--cache-dir ~nobody-here/x",
    ("--cache-dir", "file/x"): "--cache-dir file/x: cannot be written",
    ("--out", "q\udce9"): "cannot be printed",
    ("--lr", "-1"): "--lr -1",
    ("--steps", "5", "--minutes", "1"): "--steps and --minutes: exclude each other",
    ("--learning-rate", "1"): "--learning-rate: no such flag",
    ("--step", "4"): "did you mean --steps?",
    ("--vocab-size", "1000"): "--vocab-size 1000: give a multiple of 64",
    ("--vocab-size", "32768"): "--vocab-size 32768: the text supports",
    ("--objective", "nsp"): "objective",
    ("--device", "tpu"): "--device tpu",
    ("--out", "/proc/nothing/here"): "--out /proc/nothing/here",
    ("--out", "file"): "is a file, not a directory",
    ("--json", "nowhere/result.json"): "--json nowhere/result.json: cannot be written",
    ("--json", "file", "--data", "file"): "--json file: is the file of --data",
    ("--mask-rate", "0"): "--mask-rate 0",
    ("--length", "1"): "--length 1",
    ("--dry-run", "--prepare-only"): "--dry-run and --prepare-only: exclude each other",
    ("--length", "130", "--short-frac", "0.5"): "--length 130: short rows are a quarter of it",
    ("--objective", "clm", "--whole-words"): "--whole-words True: goes with --objective mlm only",
    ("--objective", "clm", "--short-seq-prob", "0.1"): "--short-seq-prob 0.1: goes with --objective mlm only",
    ("--short-seq-prob", "1e-9"): "--short-seq-prob 1e-09: give 0, or at least 0.001",
    ("--short-seq-prob", "0.6"): "--short-seq-prob 0.6: give a value from 0 to 0.5",
    ("--objective", "prefix", "--mask-rate", "0.2"): "--mask-rate 0.2: goes with --objective mlm only",
    ("--batch-warmup-frac", "0.5"): "--batch-warmup-frac 0.5: goes with --accumulation above 1 only",
    ("--recipe", "bert-mini", "--pairs", "next", "--packing", "stream"): "--packing stream: has no effect with --pairs",
    ("--decay-frac", "0.1"): "--decay-frac 0.1: goes with --schedule wsd only",
    ("--text-field", "body"): "--text-field body: goes with a .jsonl in --data only",
}


@pytest.mark.parametrize("flags", FLAG_FAULTS, ids=ascii)
def test_bad_flags_are_one_line(go, tmp_path, flags):
    (tmp_path / "file").write_text("x")
    status, _, err = go(*flags)
    last = err.splitlines()[-1]
    assert status == 2
    assert last.startswith("error: ")
    assert FLAG_FAULTS[flags] in last
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["run.json", "config.json"])
def test_a_result_is_no_file_of_the_run_to_come(go, tmp_path, name):
    (tmp_path / "run").mkdir()
    status, _, err = go("--steps", 2, "--json", tmp_path / "run" / name)
    assert (status, f"{name}: is the file of --out; give another" in err) == (2, True), err
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_cuda_where_there_is_none(go):
    status, _, err = go("--device", "cuda")
    assert status == 2
    assert "--device cuda: this machine or this torch build has none" in err


def test_another_config_or_corpus_is_refused(go, tmp_path):
    assert go("--steps", 2)[0] == 0
    for flags, message in (
        (("--steps", 2, "--lr", 0.5), "began with lr 0.005, not 0.5"),
        (("--steps", 3), "began with steps 2, not 3"),
        (("--steps", 2, "--held-out", 0.2), "held_out 0.05, not 0.2"),
        (("--steps", 2, "--resume", "never"), "holds a run"),
    ):
        status, _, err = go(*flags)
        assert status == 2
        assert message in err.splitlines()[-1]
    (tmp_path / "other.txt").write_text("\n\n".join(topics.values()))
    status, _, err = go("--steps", 2, "--data", "other.txt")
    assert status == 2
    assert "began with other text" in err.splitlines()[-1]


def test_two_runs_in_one_directory(text, cache, tmp_path, wait_for):
    first = start(text, cache, tmp_path / "run", "--steps", "400")
    wait_for((tmp_path / "run" / "run.json").exists, first)
    second = start(text, cache, tmp_path / "run", "--steps", "400")
    _, err = second.communicate(timeout=60)
    first.kill()
    first.communicate()
    assert second.returncode == 2, err
    assert f"process {first.pid}" in err.splitlines()[-1]


def test_a_diverging_run_says_where(go, train, monkeypatch):
    """An infinite loss at step 7: the update is left out, and the rows are named."""
    calls = []

    def loss(model, batch):
        calls.append(1)
        nats, count = original(model, batch)
        return nats * (float("inf") if len(calls) == 7 else 1.0), count

    original = train.language_model_loss
    monkeypatch.setattr(train, "language_model_loss", loss)
    status, _, err = go("--steps", 30)
    last = err.splitlines()[-1]
    assert status == 2
    assert last.startswith("error: step 7: loss or gradient is not finite")
    assert "(rows " in last


def test_core_install_needs_no_plot_library(go, pictures, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    status, _, err = go("--steps", 2)
    assert status == 0
    assert "pip install 'minilm[eval]'" in err
    assert os.path.exists(tmp_path / "run" / "config.json")

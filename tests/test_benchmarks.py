"""The benchmarks run: what they measure is for a quiet machine, not for a test."""

import importlib
import json
import lzma
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import sentence_transformers
import torch

import minilm
from minilm import BertModel, BertTokenizer, cli
from minilm.data.corpus import open_corpus
from minilm.data.prepare import prepare
from minilm.model.heads import LanguageModel
from minilm.train.cost import training_flops

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def as_python_m(monkeypatch):
    """Modules of `benchmarks` import one another, as in `python -m benchmarks`."""
    monkeypatch.syspath_prepend(ROOT)


@pytest.fixture
def plain_loop(load, narrow_recipes, monkeypatch):
    """The benchmark as a module, on a narrow recipe and fewer held-out targets."""
    module = load("benchmarks/plain_loop.py")
    monkeypatch.setattr(module, "fixed_batches", partial(module.fixed_batches, min_targets=2000))
    return module


@pytest.mark.parametrize("flags", [["minilm"], ["transformers"], ["transformers", "--attention", "eager"]])
def test_plain_loop(plain_loop, tmp_path, capsys, flags):
    words = (ROOT / "LICENSE").read_text(encoding="utf-8") + (ROOT / "README.md").read_text(encoding="utf-8")
    (tmp_path / "a.txt").write_text("\n\n".join(words.split(". ") * 4), encoding="utf-8")
    command = ["--library", *flags, "--minutes", "0.02", "--recipe", "bert-mini", "--batch-size", "4"]
    command += ["--data", str(tmp_path / "a.txt"), "--cache-dir", str(tmp_path / "cache"), "--threads", "1"]
    with pytest.raises(SystemExit) as stop:
        cli.run(plain_loop.main, plain_loop.Args, command)
    out, err = capsys.readouterr()
    assert stop.value.code == 0, err
    row = json.loads(out)
    assert row["steps"] >= 1
    assert row["tokens"] == row["steps"] * 4 * 128
    assert 3 < row["held_out_loss"] < 7


def test_the_reference_is_compiled_before_its_minutes(plain_loop, monkeypatch, tmp_path, capsys):
    compiled = []

    def compile(function, **how):
        return lambda *of: compiled.append(time.perf_counter()) or function(*of)

    monkeypatch.setattr(torch, "compile", compile)
    (tmp_path / "a.txt").write_text((ROOT / "LICENSE").read_text(encoding="utf-8") * 3, encoding="utf-8")
    command = ["--library", "transformers", "--compile", "yes", "--minutes", "0.02", "--recipe", "bert-mini"]
    command += ["--batch-size", "4", "--data", str(tmp_path / "a.txt"), "--cache-dir", str(tmp_path / "cache")]
    with pytest.raises(SystemExit):
        cli.run(plain_loop.main, plain_loop.Args, command)
    assert len(compiled) == json.loads(capsys.readouterr().out)["steps"] + 1


def test_the_reference_has_one_objective(plain_loop, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.run(plain_loop.main, plain_loop.Args, ["--library", "transformers", "--objective", "clm"])
    assert stop.value.code == 2
    assert "--objective clm: BertForMaskedLM has only mlm" in capsys.readouterr().err


def files_of(name, directory):
    """A few examples in the files of a labelled set."""
    words = ["fine", "poor", "great", "dull"]
    texts = [f"the film was {words[i % 4]} and a plot" for i in range(24)]
    if name == "sst2":
        for part in ("train", "dev", "test"):
            lines = [f"{i % 2}\t{text}\n" for i, text in enumerate(texts)]
            (directory / f"{part}.tsv").write_text("".join(lines))
    elif name == "sms":
        lines = [f"{('ham', 'spam')[i % 2]}\t{text}\n" for i, text in enumerate(texts)]
        (directory / "SMSSpamCollection").write_text("".join(lines))
    elif name in ("stsb", "stsb-vectors"):
        lines = [f"a\tb\tc\t{i}\t{i % 5}.000\t{text}\t{texts[i - 1]}\n" for i, text in enumerate(texts)]
        for part in ("train", "dev", "test"):
            (directory / f"sts-{part}.csv").write_text("".join(lines))
    elif name == "subjqa":
        paragraphs = []
        for i, text in enumerate(texts):
            answers = [{"text": words[i % 4], "answer_start": 13}] if i % 3 else []
            question = {"id": f"q{i}", "question": "was a film", "answers": answers}
            paragraphs.append({"context": text, "qas": [question]})
        data = json.dumps({"version": "2.0", "data": [{"title": "a", "paragraphs": paragraphs}]}).encode()
        for part in ("train", "dev", "test"):
            (directory / f"subjqa_{part}.json.xz").write_bytes(lzma.compress(data))
        (directory / "xquad.en.json").write_bytes(data)
    else:
        sentences = [f"A Film was {words[i % 4].title()} and the Plot Great number {i}." for i in range(30)]
        (directory / "enwiki-valid.txt.xz").write_bytes(lzma.compress(" ".join(sentences).encode()))


@pytest.mark.parametrize("name", ["sst2", "sms", "stsb", "stsb-vectors", "subjqa", "capitals"])
def test_finetuning(load, encoder_directory, tmp_path, monkeypatch, name):
    """Both sides learn every set at the same settings and tell the same scores of its test."""
    module = load("benchmarks/finetuning.py")
    monkeypatch.setattr("benchmarks.transformers_loop.STRIDE", 4)
    monkeypatch.setattr("benchmarks.labelled.SENTENCES", (20, 5, 5))
    files_of(name, tmp_path)
    common = {"model": str(encoder_directory), "data": tmp_path, "set": name, "precision": "fp32", "length": 24}
    common |= {"epochs": 2, "lr": 1e-3, "keep": tmp_path / "kept" if name == "sst2" else None}
    monkeypatch.setattr("benchmarks.transformers_loop.KEEP_EVERY", -1)
    found = [module.one(module.Args(**common, side=side)) for side in module.SIDES]
    assert found[0]["steps"] == found[1]["steps"]
    more = {"f1_over_no_answer", "low", "high"} if name == "subjqa" else set()
    assert {*found[1]["scores"]} - {*found[0]["scores"]} == more | {f"unseen_{each}" for each in more}
    assert module.SETS[name].metric in found[1]["scores"]
    assert all(-1 <= each["scores"][module.SETS[name].metric] <= 1 for each in found)


@pytest.mark.parametrize("stopped", [1, 3, 4])
def test_a_run_of_transformers_goes_on_where_it_was_stopped(load, encoder_directory, tmp_path, monkeypatch, stopped):
    """Within an epoch of three steps, at its end, and in the second one: with the same bits."""
    module = load("benchmarks/finetuning.py")
    loop = importlib.import_module("benchmarks.transformers_loop")
    files_of("sst2", tmp_path)
    labelled = replace(module.SETS["sst2"], epochs=2, lr=1e-3, length=24)
    splits = labelled.read(tmp_path)
    monkeypatch.setattr(loop, "BATCH", 8)
    monkeypatch.setattr(loop, "KEEP_EVERY", -1)
    begin = str(encoder_directory), labelled, splits, 0, "fp32", None
    whole, saves = loop.Loop(*begin), []

    def save(*args, own=torch.save):
        own(*args)
        saves.append(args)
        if len(saves) == stopped + 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(KeyboardInterrupt):
        loop.Loop(*begin, tmp_path / "state.pt")
    again = loop.Loop(*begin, tmp_path / "state.pt")
    assert (again.steps, again.tokens) == (whole.steps, whole.tokens) == (6, whole.tokens)
    for mine, theirs in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_run_of_minilm_goes_on_where_it_was_stopped(load, encoder_directory, tmp_path, monkeypatch):
    """After SIGTERM in its second step of six: the same scores as in one go."""
    module, tune = load("benchmarks/finetuning.py"), importlib.import_module("minilm.finetuning.batches")
    files_of("sst2", tmp_path)
    common = {"model": str(encoder_directory), "data": tmp_path, "precision": "fp32", "length": 24, "side": "minilm"}
    common |= {"epochs": 2, "lr": 1e-3}
    monkeypatch.setattr(module, "BATCH", 8)
    whole = module.one(module.Args(**common))
    own, asked = tune.TaskBatch.to, []

    def to(*args, **more):
        asked.append(1)
        if len(asked) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return own(*args, **more)

    monkeypatch.setattr(tune.TaskBatch, "to", to)
    with pytest.raises(SystemExit) as stop:
        module.one(module.Args(**common, keep=tmp_path / "kept"))
    assert stop.value.code == 128 + signal.SIGTERM
    again = module.one(module.Args(**common, keep=tmp_path / "kept"))
    assert (again["steps"], again["scores"]) == (whole["steps"], whole["scores"])


def test_pairs(load, monkeypatch, tmp_path, capsys):
    """Both sides find the same pairs likelier."""
    module = load("benchmarks/pairs.py")
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    monkeypatch.setattr(module, "SIZE", small)
    monkeypatch.setattr(module, "WORDS", 9000)
    rows = [{"sentence_good": f"the list {i} is", "sentence_bad": f"list the is {i}"} for i in range(40)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    module.main(module.Args(data=tmp_path / "pairs.jsonl", count=10, rounds=1))
    out = capsys.readouterr().out
    assert "10 pairs, median of 1 rounds" in out
    assert "other decisions on 0.0% of pairs" in out


@pytest.fixture
def benchmarks_main(load, monkeypatch, tmp_path):
    """`python -m benchmarks` as a module, its rows made small, each in this process."""
    module = load("benchmarks/__main__.py")
    steps, texts = (importlib.import_module(f"benchmarks.{name}") for name in ("steps", "texts"))
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    for of, name, value in (
        (steps, "VOCABULARY", 64),
        (steps, "SHAPES", {"cpu": shape}),
        (steps, "TOKENS", {"cpu": 1024}),
        (texts, "TEXTS", {"cpu": 6}),
        (texts, "SINGLE", 3),
        (texts, "DOCUMENTS", 24),
        (texts, "LOADED", 2),
        (texts, "WORDS", {"short": (2, 5), "long": (5, 9), "mixed": (2, 9)}),
    ):
        monkeypatch.setattr(of, name, value)
    documents = ["the cat sat on the mat and ran home with two dogs"] * 4
    monkeypatch.setattr(texts, "embedded_corpus", lambda cache_dir: SimpleNamespace(documents=lambda: documents))
    (tmp_path / "a.txt").write_text("\n\n".join(f"the cat {i} sat on the mat" for i in range(4000)))
    corpus = open_corpus([str(tmp_path / "a.txt")])
    monkeypatch.setattr(texts, "prepare", lambda _, cache, *args, **more: prepare(corpus, cache, *args, **more))
    measure = importlib.import_module("benchmarks.measure")
    monkeypatch.setattr(measure, "LEAST_S", {"cpu": 0, "cuda": 0})
    monkeypatch.setattr(measure, "PEAK_S", 0.01)
    monkeypatch.setattr(module, "when", lambda: {"commit": "abc", "date": "today"})
    monkeypatch.setattr(module, "busy", lambda: 0.0)

    class Here(measure.Process):
        """A side in this process."""

        def __init__(self, name, setting, side):
            self.setting, self.side, self.failed, self.speeds = setting, side, None, []
            self.scratch, self.orders = tempfile.TemporaryDirectory(), deque()
            self.served = measure.serve(name, setting, side, iter(self.orders.popleft, None))

        def answer(self, order):
            self.orders.append(order)
            try:
                return json.loads(json.dumps(next(self.served)))
            except Exception as error:
                return {"failed": f"{type(error).__name__}: {error}"}

        def end(self):
            return 0

    monkeypatch.setattr(measure, "Process", Here)
    return module


@pytest.fixture
def measure_as_it_is():
    return importlib.import_module("benchmarks.measure")


@pytest.fixture
def measure(benchmarks_main):
    return importlib.import_module("benchmarks.measure")


@pytest.fixture
def setting(measure, encoder_directory, tmp_path):
    return measure.Setting(torch.device("cpu"), "fp32", encoder_directory, tmp_path)


ROWS = ["pretrain-128", "pretrain-128-dropout", "pretrain-natural", "pretrain-512", "causal-1024", "finetune"]
ROWS += ["finetune-dropout", "finetune-grouped"]
UNLIMITED = ["tokenise", "load", "load-256"]
TEXT_ROWS = ["embed-mixed", "embed-short", "embed-long", "latency", *UNLIMITED]


def test_every_row_is_known(benchmarks_main, capsys):
    assert [*benchmarks_main.ROWS] == ROWS + TEXT_ROWS
    with pytest.raises(SystemExit):
        cli.run(benchmarks_main.main, benchmarks_main.Args, ["--help"])
    told = capsys.readouterr().out.replace("\n", " ")
    assert [name for name in ROWS + TEXT_ROWS if name not in told] == []


@pytest.mark.parametrize("name", ROWS + TEXT_ROWS)
def test_sides_do_the_same(benchmarks_main, encoder_directory, tmp_path, capsys, monkeypatch, name):
    """The first turns come to the same losses, or vectors, and count as many tokens: `turns` asserts it. A finished row
    is not measured again."""
    monkeypatch.setattr(torch, "compile", lambda function, **more: function)
    monkeypatch.setattr("benchmarks.measure.PEAK_S", 0.01)
    file = tmp_path / "rows.jsonl"
    flags = [name, "--pairs", "2", "--json", str(file), "--cache-dir", str(tmp_path / "cache"), "--device", "cpu"]
    flags += ["--precision", "fp32", "--model", str(encoder_directory)]
    if name != ROWS[0]:
        monkeypatch.setattr(benchmarks_main, "picture", lambda shown, file: None)
    for _ in range(2):
        with pytest.raises(SystemExit) as stop:
            cli.run(benchmarks_main.main, benchmarks_main.Args, flags)
        out, err = capsys.readouterr()
        assert stop.value.code == 0, err
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines[0]["side"] == "minilm"
    with_trainer = ("pretrain-128", "finetune", "finetune-dropout")
    assert ("transformers, Trainer" in [line["side"] for line in lines]) == (name in with_trainer)
    assert 2 <= len(lines) == len({line["side"] for line in lines}) == out.count(f"| {name} |")
    for line in lines:
        assert line["turns"] == 2
        assert line["peak_mb"] > 0
        assert ("ratio" in line) == (line["side"] != "minilm")
        assert line.get("ratio_low", 0) <= line.get("ratio", 0) <= line.get("ratio_high", 0)
        assert line["tokens_per_s"] > 1
        if name not in UNLIMITED:
            assert 0 < line["of_matmul_peak"] <= line["of_limit"]
        assert line["clock_mhz"] is None or 100 < line["clock_mhz"] < 10_000
    assert name != ROWS[0] or file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["pretrain-128", "pretrain-natural", "causal-1024", "finetune"])
def test_sides_of_a_gpu_do_the_same(measure, setting, monkeypatch, replays, name):
    """Here, with nothing compiled; of graphs also what is replayed."""
    monkeypatch.setattr(importlib.import_module("benchmarks.steps"), "TUNED", ("cpu",))
    monkeypatch.setitem(importlib.import_module("benchmarks.steps").COMPARED, "cpu", 3)
    monkeypatch.setattr("minilm.machine.runtime.COMPILED_ON", ("cpu",))
    monkeypatch.setattr(torch, "compile", lambda function, **more: function)
    found = {}
    for side, make in measure.ROWS[name].make(setting).items():
        run = make()
        found[side] = [run() for _ in range(3)]
    ours = found.pop("minilm")
    assert {"minilm, compiled", "transformers", "transformers, tuned"} <= {*found}
    assert ("transformers, tuned, Trainer" in found) == (name == "pretrain-128")
    assert ("transformers, tuned, head on targets" in found) == name.startswith("pretrain")
    graphed = [side for side in found if "graphs" in side]
    assert len(graphed) == (3 if name == "finetune" else 0)
    for side, runs in found.items():
        assert measure.other_numbers(measure.ROWS[name], setting, ours[0], runs[0]) == "", side
        for own, other in zip(ours, runs, strict=True):
            torch.testing.assert_close(own.values, other.values, rtol=1e-3, atol=1e-4)
    shapes = len(replays) // 2  # of two sides
    assert sum(each.count for each in replays) == (2 * (3 * 8 - shapes) if name == "finetune" else 0)


def test_the_trainer_steps_as_a_plain_loop_does(measure, setting):
    """Also in bf16, and after it was asked twice."""
    for precision in ("fp32", "bf16"):
        makers = measure.ROWS["finetune"].make(replace(setting, precision=precision))
        plain, own = makers["transformers"](), makers["transformers, Trainer"]()
        for _ in range(2):
            a, b = plain(), own()
            assert a.count == b.count
            torch.testing.assert_close(a.values[0], b.values[0], rtol=1e-5 if precision == "fp32" else 1e-3, atol=0)


def test_a_pass_is_of_so_many_texts(benchmarks_main, measure, setting, monkeypatch):
    for side in measure.ROWS["embed-mixed"].make(setting):
        orders = [f"first {setting.cache_dir / 'values.pt'}", "turn"]
        first, (count, seconds) = measure.serve("embed-mixed", replace(setting, texts=4), side, orders)
        assert first["count"] == count == 4
        assert torch.load(setting.cache_dir / "values.pt").shape[0] == 4
        assert first["seconds"] > 0
        assert seconds > 0
    args = [benchmarks_main.Args(model=setting.model, texts=n) for n in (4, 5)]
    told = [benchmarks_main.about(each, "embed-mixed", "fp32", setting.device) for each in args]
    assert told[0] != told[1]
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.mmap_max=0")  # who keeps freed memory is faster
    assert benchmarks_main.about(args[0], "embed-mixed", "fp32", setting.device) != told[0]


def test_a_row_is_known_when_it_is_whole(benchmarks_main, tmp_path):
    """A killed process leaves half a line, or half of the sides; a budget fewer turns than were asked for."""
    kept = importlib.import_module("benchmarks.kept")
    what = {"row": "load", "commit": "abc", "pairs": 7}
    both = [what | {"side": side, "sides": 2, "turns": 7, "row_s": 60.0} for side in ("minilm", "transformers")]
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(both[0]) + "\n" + json.dumps(both[1])[:9])
    assert benchmarks_main.known(kept.read(file), what, 60.0) == []
    kept.keep(file, both)
    assert kept.read(file) == [both[0], *both]
    assert benchmarks_main.known(kept.read(file), what, 60.0) == both
    fewer = [row | {"turns": 3} for row in both]
    assert benchmarks_main.known(fewer, what, 60.0) == fewer
    assert benchmarks_main.known(fewer, what, 600.0) == []
    assert benchmarks_main.known(both, what, 600.0) == both


def test_a_budget_ends_the_turns_of_a_row(benchmarks_main, monkeypatch, tmp_path, capsys):
    """And where it is spent, no row is begun."""
    clock, given = [0.0], []

    def measured(name, setting, pairs, row_s):
        clock[0] += 70.0
        given.append((name, setting.device.type, row_s))
        yield [{"side": "minilm", "unit": "tokens", "tokens_per_s": 1.0, "peak_mb": 1.0, "first_s": 1.0, "turns": 1}]

    monkeypatch.setattr(benchmarks_main, "measured", measured)
    monkeypatch.setattr(benchmarks_main, "busy", lambda: 0.0)
    monkeypatch.setattr(benchmarks_main, "told", lambda rows: [])
    monkeypatch.setattr(benchmarks_main.time, "monotonic", lambda: clock[0])
    args = benchmarks_main.Args(("load", "load-256", "pretrain-128"), budget_s=150.0, row_s=100.0, device="cpu")
    benchmarks_main.main(replace(args, precision="fp32"))
    assert given == [("load", "cpu", 100.0), ("load-256", "cpu", 80.0)]
    assert "pretrain-128, fp32: not begun, the budget is spent" in capsys.readouterr().err


def test_a_row_that_is_broken_off_leaves_its_first_turns(benchmarks_main, monkeypatch, tmp_path):
    """Which do not count as measured."""

    def measured(name, setting, pairs, row_s):
        yield [{"side": "minilm", "unit": "tokens", "tokens_per_s": 1.0, "turns": 2}]
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmarks_main, "measured", measured)
    monkeypatch.setattr(benchmarks_main, "busy", lambda: 0.0)
    args = benchmarks_main.Args(("load",), precision="fp32", device="cpu", json=tmp_path / "rows.jsonl")
    for _ in range(2):  # of another time they would hide what is there
        with pytest.raises(KeyboardInterrupt):
            benchmarks_main.main(args)
        (line,) = benchmarks_main.read(args.json)
    assert line["turns"] == 2
    what = {key: line[key] for key in ("row", "precision", "machine", "versions")} | {"commit": "a"}
    assert benchmarks_main.known([line | {"commit": "a"}], what, args.row_s) == []


def test_what_the_processor_does_is_measured_there(benchmarks_main, monkeypatch):
    """Whichever device the other rows are measured on."""
    given = []
    monkeypatch.setattr(benchmarks_main, "device_of", lambda name: torch.device("meta"))
    monkeypatch.setattr(benchmarks_main, "measured", lambda name, setting, *_: given.append(setting.device.type) or [])
    monkeypatch.setattr(benchmarks_main, "busy", lambda: 0.0)
    benchmarks_main.main(benchmarks_main.Args(("load", "pretrain-128"), precision="fp32"))
    assert given == ["cpu", "meta"]


def test_one_wrong_id_is_told(measure, setting):
    ids = torch.arange(480_000)[None]
    done, other, row = measure.Done, ids.clone(), measure.ROWS["tokenise"]
    other[0, 7] += 1
    assert measure.other_numbers(row, setting, done(8, ids), done(8, ids.clone())) == ""
    assert measure.other_numbers(row, setting, done(8, ids), done(8, other)) == "1 other ids"


def test_a_causal_token_needs_half_of_the_attention(measure, setting):
    steps, least = importlib.import_module("benchmarks.steps"), measure.ROWS["causal-1024"].least(setting)
    cfg = steps.shape_of(setting, 1024, causal=True)
    whole = training_flops(cfg, 1024, 1024, 1024) / 1024
    assert whole - least.flops == 3 * 2 * len(cfg.layers) * 2 * 512 * cfg.hidden_size


def test_the_least_that_a_text_needs(measure, setting):
    """Vectors need a third of what training does, AdamW 28 bytes a weight."""
    model = BertModel.from_pretrained(setting.model)
    cfg, rows = model.encoder.cfg, measure.ROWS
    steps, texts = (importlib.import_module(f"benchmarks.{name}") for name in ("steps", "texts"))
    few = replace(setting, texts=3)
    ids = BertTokenizer.from_pretrained(setting.model)(texts.texts_of(few, "short", 3)).input_ids
    lengths = np.array([*map(len, ids)])
    assert rows["embed-short"].least(few).tokens == lengths.mean()
    tokens, seen = int(lengths.sum()), round((lengths**2).sum() / lengths.sum())
    assert rows["embed-short"].least(few).flops == pytest.approx(training_flops(cfg, tokens, seen, 0) / 3 / 3)
    updated = 28 * sum(own.numel() for own in LanguageModel(steps.shape_of(setting, 128)).parameters())
    assert rows["pretrain-128"].least(setting).bytes * steps.TOKENS["cpu"] == pytest.approx(updated)


@pytest.mark.parametrize("name", ["side-by-side", "time-to-loss"])
def test_a_table_of_what_is_there(load, monkeypatch, tmp_path, capsys, name):
    """Of one machine; without the reference there is nothing to be sooner than."""
    module = load("benchmarks/pretraining.py")
    lines = (ROOT / "benchmarks" / "results" / f"{name}.jsonl").read_text().splitlines()
    here = json.loads(lines[-1])["machine"]
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    for kept, is_there in ((lines, True), ([line for line in lines if '"transformers", "minutes"' not in line], False)):
        (tmp_path / "benchmarks" / "results" / f"{name}.jsonl").write_text("\n".join(kept) + "\n")
        module.main(module.Args(name, table=True))
        out = capsys.readouterr().out
        assert out.startswith(here)
        assert ("| transformers |" in out) == is_there
        assert ("sooner" in out) == (is_there and name == "time-to-loss")


def test_a_result_is_of_its_machine(load, monkeypatch, tmp_path, capsys):
    module = load("benchmarks/pretraining.py")
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    runs = []
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(
        module, "run", lambda command, args: runs.append(command) or {"held_out_loss": 1.0, "seconds": 1}
    )
    args = module.Args("ingredients", seeds=(0,))
    monkeypatch.setattr(module, "table", lambda title, found: iter(()))
    for where, threads, expected in (("a", None, 1), ("a", None, 1), ("b", None, 2), ("b", 1, 3), ("b", 1, 3)):
        monkeypatch.setattr(module, "cores", lambda where=where: where)
        module.main(replace(args, threads=threads))
        assert len(runs) == expected * len(module.INGREDIENTS)


def test_on_a_gpu_the_reference_is_an_experts(load, monkeypatch, tmp_path, capsys):
    """Compiled, and at the batch that is best for it."""
    module, runs = load("benchmarks/pretraining.py"), []
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")

    def run(command, args):
        runs.append(command)
        loss = 3.0 if "64" in command else 4.0
        return {"held_out_loss": loss, "seconds": 60, "tokens": 1}

    monkeypatch.setattr(module, "run", run)
    module.main(module.Args("time-to-loss", seeds=(0,), minutes=(2.0,)))
    assert capsys.readouterr().out.startswith("Some GPU")
    assert [runs[0][runs[0].index("--compile") + 1], len(runs)] == ["yes", 2 + 3 - 1 + 2 - 1 + 4 + 4]
    last = next(command for command in reversed(runs) if "transformers" in command)
    assert [last[last.index(flag) + 1] for flag in ("--batch-size", "--minutes")] == ["64", "2.0"]


def test_a_side_that_does_something_else_is_none(measure, setting):
    row, done = measure.ROWS["pretrain-128"], measure.Done
    values = torch.tensor([[2.0, 5.0]])
    assert measure.other_numbers(row, setting, done(8, values), done(8, values + 1e-5)) == ""
    assert "off by nan" in measure.other_numbers(row, setting, done(8, values), done(8, values * torch.nan))
    for other, why in (
        (done(9, values), "9 tokens, and minilm has 8"),
        (done(8, values + 0.01), "off by 2.6e-03"),
        (done(8, values[:, :1]), "shape"),
    ):
        assert why in measure.other_numbers(row, setting, done(8, values), other)


@pytest.mark.parametrize("when", ["first", "turn", "memory", "numbers"])
def test_a_side_that_fails_costs_no_other_side(benchmarks_main, measure, monkeypatch, tmp_path, capsys, when):
    """The others are measured, what failed is said and kept, and the status is 1."""
    own, why = measure.Process.answer, "numbers that are off by" if when == "numbers" else "no compiler | here"

    def answer(self, order):
        fails = self.side == "transformers" and order.startswith(when)
        return {"failed": why} if fails else own(self, order)

    monkeypatch.setattr(measure.Process, "answer", answer)
    if when == "numbers":
        monkeypatch.setitem(measure.AGREE, "fp32", -1.0)
    file = tmp_path / "rows.jsonl"
    flags = ["pretrain-128", "--pairs", "1", "--json", str(file), "--cache-dir", str(tmp_path), "--device", "cpu"]
    for _ in range(2):
        with pytest.raises(SystemExit) as stop:
            cli.run(benchmarks_main.main, benchmarks_main.Args, [*flags, "--precision", "fp32"])
        out, err = capsys.readouterr()
        assert stop.value.code == 1
        assert f"failed: pretrain-128, fp32, transformers: {why}" in err
        table = [line for line in out.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in table}) == 1
        assert f"| transformers | failed: {why.replace('|', '/')}" in table[3]
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(lines) == 2 * 4  # sides: it is tried again
    ours, theirs, trainer, expert = lines[-4:]
    assert ours["tokens_per_s"] > 0
    assert theirs["failed"].startswith(why)
    assert ("ratio" in expert) == ("ratio" in trainer) == (when != "numbers")


def test_where_ours_fails_there_is_no_row(benchmarks_main, monkeypatch, tmp_path, capsys):
    def fails(*of, **more):
        raise RuntimeError("ours")

    monkeypatch.setattr(importlib.import_module("benchmarks.steps"), "_classifier", fails)
    file = tmp_path / "rows.jsonl"
    with pytest.raises(SystemExit) as stop:
        cli.run(benchmarks_main.main, benchmarks_main.Args, ["finetune", "--json", str(file), "--precision", "fp32"])
    assert stop.value.code == 1
    assert capsys.readouterr().err.endswith("failed: finetune, fp32, minilm: RuntimeError: ours\n")
    assert not file.exists()


SMALL = """#!{python}
import runpy, sys
sys.path.insert(0, {root!r})
from benchmarks import measure, steps
measure.LEAST_S, steps.VOCABULARY = {{"cpu": 0.1}}, 64
steps.SHAPES = {{"cpu": {{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}}}}
sys.argv = sys.argv[2:]
runpy.run_module("benchmarks", run_name="__main__", alter_sys=True)
"""


def test_a_side_is_a_process(measure_as_it_is, encoder_directory, tmp_path, monkeypatch):
    """It is asked, says how it failed, and ends with its benchmark; one that is killed is told, too. Of a small row."""
    measure, python = measure_as_it_is, tmp_path / "python"
    python.write_text(SMALL.format(python=sys.executable, root=str(ROOT)))
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    setting = measure.Setting(torch.device("cpu"), "fp32", encoder_directory, tmp_path, 4)
    row, of = measure.ROWS["finetune"], ("finetune", setting)
    other = "transformers, faster attention"
    with measure.Process(*of, "minilm") as ours, measure.Process(*of, other) as theirs:
        ours.begin(row, ours)
        theirs.begin(row, ours)
        for each in (ours, theirs):
            assert each.first_s > 0
            assert each.done.count == ours.done.count > 32 * 8 * 4
            each.turn()
        assert theirs.line(row, [ours])["ratio"] == ours.speeds[0] / theirs.speeds[0]
        assert ours.line(row, [ours])["peak_mb"] > 100
        theirs.process.kill()
        theirs.process.wait()
        theirs.turn()
        assert theirs.line(row, [ours]) == {"side": other, "failed": "its process ended with status -9"}
    assert ours.process.poll() == 0
    with measure.Process(*of, "no such side") as lost:
        lost.begin(row, ours)
        assert lost.failed == "KeyError: 'no such side'"


def test_a_side_that_hangs_is_told(measure_as_it_is, encoder_directory, tmp_path, monkeypatch):
    measure = measure_as_it_is
    setting = measure.Setting(torch.device("cpu"), "fp32", encoder_directory, tmp_path, 4)
    other = "transformers, sorted"
    with measure.Process("embed-short", setting, other) as theirs:
        monkeypatch.setattr(measure, "LONGEST_S", 0.5)
        os.kill(theirs.process.pid, signal.SIGSTOP)
        theirs.begin(measure.ROWS["embed-short"], theirs)
        assert theirs.line(None, []) == {"side": other, "failed": "no answer in 0.5 s"}


def test_each_row_of_numbers_counts_by_itself(measure, setting):
    """A loss that is small beside the norms of gradients is not lost in them."""
    row, done = measure.ROWS["pretrain-128"], measure.Done
    a, b = torch.tensor([[0.7, 0.7], [500.0, 500.0]]), torch.tensor([[0.7, 0.6], [500.0, 500.0]])
    assert "off by 1.0e-01" in measure.other_numbers(row, replace(setting, precision="bf16"), done(8, a), done(8, b))


@pytest.mark.parametrize("wrong", ["attention", "lr", "targets"])
def test_sides_that_differ_are_told_apart(measure, setting, monkeypatch, wrong):
    """By what they come to: a model that sees otherwise, learns at another pace, or predicts other tokens."""
    steps = importlib.import_module("benchmarks.steps")
    own = steps._packed

    def as_causal(batch):
        return replace(batch, tokens=steps.Tokens.full(batch.tokens.input_ids, "causal"))

    if wrong == "attention":
        monkeypatch.setattr(steps, "_packed", lambda *args: as_causal(own(*args)))
    if wrong == "targets":
        moved = lambda texts: [(ids, (pick + 1) % len(ids)) for ids, pick in texts]  # noqa: E731
        monkeypatch.setattr(steps, "_packed", lambda texts, T, attention: own(moved(texts), T, attention))
    makers = steps.language_modelling(setting)
    theirs = makers["transformers"]()
    if wrong == "lr":
        monkeypatch.setattr(steps, "LR", 3 * steps.LR)
    why = measure.other_numbers(measure.ROWS["pretrain-128"], setting, makers["minilm"]()(), theirs())
    assert "numbers that are off by" in why


def test_what_needs_a_gpu_is_tested_first_and_once(benchmarks_main, monkeypatch, tmp_path):
    """The passing of its tests is kept like a row; where they fail, or take longer than there is time, that is said."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    calls, outcome, plain = [], SimpleNamespace(program="exit(1)"), subprocess.Popen

    def popen(command, **options):
        if command[0] == "git":
            return plain(command, **options)
        calls.append(command)
        assert (ROOT / command[-1]).exists()
        return plain([sys.executable, "-c", outcome.program], **options)

    monkeypatch.setattr(subprocess, "Popen", popen)
    args, device = benchmarks_main.Args(("gpu",), json=tmp_path / "rows.jsonl", budget_s=9.0), torch.device("cuda")

    def said():
        return benchmarks_main.gpu_tests(args, device, benchmarks_main.read(args.json))

    assert said() == "the tests that need a GPU"
    for name, seconds in (("FIRST_S", 2.0), ("SAID_S", 2.0), ("STARTED_S", 1.0)):
        monkeypatch.setattr(benchmarks_main, name, seconds)  # which leave less than two thirds for the tests
    outcome.program = (  # and a process of its own, which would share the GPU with the rows
        "import os, pathlib, time; pid = os.fork() or os.getpid(); "
        f"pathlib.Path({str(tmp_path / 'pids')!r}).open('a').write(f'{{os.getpid()}}\\n'); time.sleep(60)"
    )
    assert said() == "the tests that need a GPU: not done in 4 s"
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 2
    for pid in pids:
        state, end = Path(f"/proc/{pid}/stat"), time.monotonic() + 10  # a signal may take a moment
        while state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z":
            assert time.monotonic() < end
            time.sleep(0.01)
    outcome.program = "exit(0)"
    again = (
        "the tests that need a GPU: not done in 4 s: not begun again; run -m pytest -v --tb=short tests/train/test_gpu"
    )
    assert said().startswith(again)  # which would take that much of each call
    assert len(calls) == 2
    args = replace(args, budget_s=12.0)
    assert said() is None
    assert len(calls) == 3
    args = replace(args, budget_s=9.0)
    assert said() is None
    assert len(calls) == 3
    monkeypatch.setattr(benchmarks_main, "when", lambda: {"commit": "def", "date": "today"})
    assert said() is None
    assert len(calls) == 4


def test_code_is_known_without_git(monkeypatch, tmp_path):
    module = importlib.import_module("benchmarks.machine")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(module, "ROOT", tmp_path)
    (tmp_path / "minilm").mkdir()
    (tmp_path / "minilm" / "a.py").write_text("a = 1\n")
    before = module.when()["commit"]
    assert before.startswith("files-")
    assert module.when()["commit"] == before
    (tmp_path / "minilm" / "a.py").write_text("a = 2\n")
    assert module.when()["commit"] != before


def test_a_library_that_is_not_there_has_no_version(benchmarks_main):
    assert benchmarks_main.version_of("torch") == metadata.version("torch")
    assert benchmarks_main.version_of("no-such-library") is None


def test_a_machine_that_others_use_is_noticed():
    """By cores that are taken while nothing is done here."""
    module = importlib.import_module("benchmarks.machine")
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        taken = module.busy(1.0)
    finally:
        other.kill()
        other.wait()
    assert 0.2 < taken <= os.cpu_count() + 0.5


@pytest.mark.parametrize(
    ("row", "other"),
    [("pretrain-128", "transformers"), ("pretrain-natural", "transformers"), ("finetune", "transformers")],
)
def test_the_reference_has_memory_as_ever(measure, setting, monkeypatch, row, other):
    """What minilm sets for its process is not set for another's, unless it is an expert's."""
    orders = [f"first {setting.cache_dir / 'values.pt'}", "memory"]
    kept = []
    monkeypatch.setattr("minilm.machine.runtime.keep_freed_memory", lambda: kept.append(1))
    assert len([*measure.serve(row, setting, other, orders)]) == 2
    assert not kept
    assert len([*measure.serve(row, setting, "minilm", orders)]) == 2
    assert kept


def test_a_random_model_stands_in(benchmarks_main, monkeypatch, tmp_path, capsys):
    """Which sentence-transformers opens, and has the vectors of."""
    texts = importlib.import_module("benchmarks.texts")
    documents = (ROOT / "LICENSE").read_text(encoding="utf-8").split("\n\n")
    monkeypatch.setattr(texts, "embedded_corpus", lambda cache_dir: SimpleNamespace(documents=lambda: documents))
    seen = []
    monkeypatch.setattr(benchmarks_main, "measured", lambda name, setting, *args: seen.append(setting.model) or [])
    flags = ["latency", "--cache-dir", str(tmp_path), "--device", "cpu", "--precision", "fp32"]
    for _ in range(2):
        with pytest.raises(SystemExit):
            cli.run(benchmarks_main.main, benchmarks_main.Args, flags)
        assert "a random one of all-MiniLM-L6-v2's shape" in capsys.readouterr().err
    assert seen[0] == seen[1]
    theirs = sentence_transformers.SentenceTransformer(str(seen[0]), device="cpu").encode(
        documents[:2], convert_to_tensor=True
    )
    assert torch.allclose(theirs, minilm.embed(minilm.read_embedder(seen[0]), documents[:2]), atol=1e-5)
    assert theirs.shape == (2, 384)


def test_code_that_changes_meanwhile_is_nobodys(benchmarks_main, monkeypatch, tmp_path):
    """A row during which the commit changed is kept, and measured again."""
    file, commits = tmp_path / "rows.jsonl", iter(["abc", "def"])
    monkeypatch.setattr(benchmarks_main, "when", lambda: {"date": "today", "commit": next(commits, "def")})
    line = {"side": "minilm", "unit": "tokens", "tokens_per_s": 1.0, "turns": 7, "peak_mb": 1.0, "first_s": 1.0}
    measured = []
    monkeypatch.setattr(benchmarks_main, "measured", lambda name, *args: measured.append(name) or [[line]])
    monkeypatch.setattr(benchmarks_main, "picture", lambda shown, png: None)
    flags = ["pretrain-128", "--json", str(file), "--device", "cpu", "--precision", "fp32"]
    for _ in range(3):
        with pytest.raises(SystemExit):
            cli.run(benchmarks_main.main, benchmarks_main.Args, flags)
    kept = [json.loads(row) for row in file.read_text().splitlines()]
    assert [row["commit"] for row in kept if row["row_s"]] == ["abc-dirty", "def"]  # others: of the first turns alone
    assert len(measured) == 2


def test_a_picture_is_of_what_was_measured_alike(benchmarks_main):
    row = {"row": "load", "precision": "fp32", "side": "minilm", "machine": "m", "threads": 2, "versions": {}}
    row |= {"commit": "abc", "pairs": 7, "weights": None}
    others = [row | {"side": "old", "commit": "abb"}, row | {"side": "edited", "commit": "abc-dirty"}]
    others += [row | {"side": "elsewhere", "machine": "n"}, row | {"row": "latency", "weights": "w1"}]
    alike = [row | {"row": "tokenise"}, row | {"row": "latency", "weights": "w2"}]
    shown = [row, row | {"row": "embed-short", "weights": "w2"}]
    assert benchmarks_main.of_the_same([*others, row, *alike], shown) == [row, *alike, shown[1]]


def test_results_and_words_change_no_code(monkeypatch, tmp_path):
    """A row that is written among the results is of the commit that it was measured at."""
    module = importlib.import_module("benchmarks.machine")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    for name in ("benchmarks/results/rows.jsonl", "README.md", "train.py"):
        (tmp_path / name).write_text("1\n")
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    before = module.when()["commit"]
    assert len(before) >= 7
    for name in ("benchmarks/results/rows.jsonl", "README.md"):
        (tmp_path / name).write_text("2\n")
    assert module.when()["commit"] == before
    (tmp_path / "train.py").write_text("2\n")
    assert module.when()["commit"] == f"{before}-dirty"


def test_the_clock_is_of_the_cores_that_are_ours(monkeypatch, tmp_path):
    module = importlib.import_module("benchmarks.machine")
    told = "processor\t: {}\nmodel name\t: x\ncpu MHz\t\t: {}\n\n"
    text = "".join(told.format(core, 1000.0 * (core + 1)) for core in range(4))
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda of: {1, 3})
    monkeypatch.setattr(module.Path, "exists", lambda self: True)
    monkeypatch.setattr(module.Path, "read_text", lambda self: text)
    assert module.clock_mhz(torch.device("cpu")) == 3000.0


def test_rows_that_failed_wait_for_others(benchmarks_main, monkeypatch, tmp_path):
    file, order = tmp_path / "rows.jsonl", []
    args = benchmarks_main.Args(("pretrain-512", "load"), json=file)
    what = benchmarks_main.about(args, "pretrain-512", "fp32", torch.device("cpu"))
    file.write_text(json.dumps(what | {"side": "transformers", "failed": "no compiler"}) + "\n")
    monkeypatch.setattr(benchmarks_main, "measured", lambda name, *args: order.append(name) or [])
    flags = ["pretrain-512", "load", "--json", str(file), "--device", "cpu", "--precision", "fp32"]
    with pytest.raises(SystemExit):
        cli.run(benchmarks_main.main, benchmarks_main.Args, flags)
    assert order == ["load", "pretrain-512"]


def test_rows_of_natural_lengths_have_places_alike():
    """As the loader's, so that the last layer computes these alone."""
    steps = importlib.import_module("benchmarks.steps")
    (texts,) = steps._made_up(32, 40, True, 1, 99)
    batch = steps._packed(texts, 32, "bidirectional")
    B = len(batch.tokens.input_ids)
    assert B < 30
    assert len(batch.where) == len(batch.target) == B * batch.per_row
    assert (batch.where.view(B, -1) // 32 == torch.arange(B)[:, None]).all()
    told = batch.target >= 0
    assert batch.count == int(told.sum()) == sum(len(pick) for _, pick in texts)
    assert torch.equal(batch.tokens.input_ids.flatten()[batch.where[told]], batch.target[told])
    assert 0 < batch.per_row <= 16


def test_what_cannot_be_measured(benchmarks_main, capsys, tmp_path):
    for flags, status, said in (
        (["gpu", "--device", "cpu"], 2, "gpu, --device cpu: give one of them"),
        (["pretrain-128", "--precision", "bf17"], 2, "--precision"),
        (["pretrain-128", "--json", "nowhere/rows.jsonl"], 2, "--json nowhere/rows.jsonl: give a file in a directory"),
        (["pretrain-1288"], 2, "pretrain-1288: no such row; did you mean pretrain-128?"),
        (["gpu"], 2, "gpu: there is none that torch sees"),
        (["load", "--precision", "bf16"], 0, "load: left out, it is measured in fp32 alone"),
        (["pretrain-128", "--budget-s", "0"], 2, "--budget-s"),
        (["load", "--model", "nowhere"], 2, "--model nowhere: holds no model.safetensors; give the directory"),
    ):
        if flags == ["gpu"] and torch.cuda.is_available():
            continue
        with pytest.raises(SystemExit) as stop:
            cli.run(benchmarks_main.main, benchmarks_main.Args, flags)
        assert stop.value.code == status
        assert said in capsys.readouterr().err

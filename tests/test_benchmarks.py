"""The benchmarks run: what they measure is for a quiet machine, not for a test."""

import json
from functools import partial
from pathlib import Path

import pytest

from minilm import cli

ROOT = Path(__file__).parent.parent


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


def test_the_reference_has_one_objective(plain_loop, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.run(plain_loop.main, plain_loop.Args, ["--library", "transformers", "--objective", "clm"])
    assert stop.value.code == 2
    assert "--objective clm: BertForMaskedLM has only mlm" in capsys.readouterr().err

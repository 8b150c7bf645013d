"""The benchmarks run: what they measure is for a quiet machine, not for a test."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("library", ["minilm", "transformers"])
def test_plain_loop(tmp_path, library):
    words = (ROOT / "LICENSE").read_text(encoding="utf-8") + (ROOT / "README.md").read_text(encoding="utf-8")
    (tmp_path / "a.txt").write_text("\n\n".join(words.split(". ") * 4), encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks.plain_loop", "--library", library, "--minutes", "0.02"]
    command += ["--recipe", "bert-mini", "--data", tmp_path / "a.txt", "--cache-dir", tmp_path / "cache"]
    done = subprocess.run(
        [*map(str, command), "--batch-size", "4"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    assert row["steps"] >= 1
    assert row["tokens"] == row["steps"] * 4 * 128
    assert 3 < row["held_out_loss"] < 12

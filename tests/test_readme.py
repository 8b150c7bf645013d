"""The README tells the truth: its links and map match the tree, and its commands run."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
TRAIN = [line.split("#")[0].strip() for line in re.findall(r"^python train\.py.*$", README, re.MULTILINE)]


def test_every_link_leads_somewhere():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert len(links) > 20
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_map_names_every_module():
    unnamed = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "minilm").rglob("*.py")
        if path.name != "__init__.py" and f"({path.relative_to(ROOT).as_posix()})" not in README
    ]
    assert unnamed == []


def test_the_two_commands_stand_there():
    """As the continuous integration runs them."""
    assert "pip install -c constraints.txt -e '.[eval]' && python train.py\n" in README
    assert "pip install -c constraints.txt -e '.[test]' && pytest\n" in README


@pytest.mark.parametrize("command", TRAIN)
def test_train_commands_run(command, tmp_path):
    """Each with --steps 4 appended (which takes the place of --minutes), on a small text of its own."""
    (tmp_path / "news").mkdir()
    words = (ROOT / "LICENSE").read_text(encoding="utf-8") + README
    (tmp_path / "news" / "one.txt").write_text("\n\n".join(words.split(". ") * 30), encoding="utf-8")
    flags = shlex.split(command)[2:]
    if "--help" not in flags:
        flags += ["--out", "run", "--cache-dir", "cache"]
        flags += [] if "--data" in flags else ["--data", "news"]
        flags += [] if {"--dry-run", "--prepare-only"} & {*flags} else ["--steps", "4", "--evaluate-every", "4"]
    if "--model" in flags:
        own = ["--data", "news", "--out", flags[flags.index("--model") + 1], "--cache-dir", "cache", "--steps", "1"]
        subprocess.run([sys.executable, ROOT / "train.py", *own], cwd=tmp_path, check=True, timeout=120)
    if "--minutes" in flags:
        at = flags.index("--minutes")
        del flags[at : at + 2]
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", *flags], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    said = {"--help": "--objective", "--dry-run": "dry run", "--prepare-only": "documents"}
    assert next((said[flag] for flag in flags if flag in said), "held out") in done.stdout

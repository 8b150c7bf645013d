"""A part of the campaign of faults, and that it notices a store that loses something."""

import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest

from minilm import cli
from minilm.errors import DataError
from minilm.labelled.examples import Data

ROOT = Path(__file__).parents[2]


def campaign(*flags: object) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", *map(str, flags)], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    return done.returncode, done.stdout + done.stderr


PARTS = {  # of the faults, which take about as long as each other: how many trials at least
    "kill kill-in-save kill-at-point kill-at-point-again two-writers readers": 20,
    "refused-at-point too-large not-finite loading one-of-two another-time": 15,
    "elsewhere signal signal-twice goes-on evaluating tampered soak malformed damage": 200,
}


@pytest.mark.parametrize("part", PARTS)
def test_nothing_is_lost(tmp_path, part):
    flags = ("--results", tmp_path / "trials.jsonl", "--scratch", tmp_path)
    status, said = campaign("--only", *part.split(), *flags)
    assert status == 0, said
    assert said.count(" 0 lost something") == len(part.split())
    lines = (tmp_path / "trials.jsonl").read_text().splitlines()
    assert len(lines) >= PARTS[part]
    assert [path.name for path in tmp_path.iterdir()] == ["trials.jsonl"]
    if "damage" in part:
        assert campaign("--only", "damage", *flags)[0] == 0
        assert (tmp_path / "trials.jsonl").read_text().splitlines() == lines  # what is done is not done again


def test_a_store_that_makes_room_first_is_noticed(tmp_path):
    status, said = campaign("--mutations", "pruning-first", "--scratch", tmp_path)
    assert status == 0, said
    assert "noticed by kill-in-save" in said


def test_the_long_run_begins(tmp_path):
    """The campaign's half hour, for three seconds: too short for it to measure anything, and nothing else is wrong."""
    code = (
        "from tests.faults.soak import *; out = Path(sys.argv[1]); print(minutes(Victim(out / 'v'), out / 'run', 0.05))"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {code}", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "no life was long enough to be measured" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("flags", [("--only", "flood"), ("--mutations", "flood")])
def test_what_there_is_none_of_is_one_line(flags, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT)
    from tests.faults.__main__ import Args, main

    with pytest.raises(SystemExit) as stop:
        cli.run(main, Args, [*flags])
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert said.startswith(f"error: {flags[0]} flood: give some of ")
    assert said.count("\n") == 1
    if flags[0] == "--only":
        assert sorted(said.strip().partition("some of ")[2].split(", ")) == sorted(" ".join(PARTS).split())


def test_the_table_counts_the_trials_that_are_kept():
    """Those that damaged nothing are left out; nothing was lost in any."""
    rows = [json.loads(line) for line in (ROOT / "tests" / "faults" / "trials.jsonl").read_text().splitlines()]
    assert len({(row["fault"], row["seed"]) for row in rows}) == len(rows)
    assert [row for row in rows if row["lost"]] == []
    counts = Counter(row["fault"] for row in rows if not row["phase"].endswith("the same bytes"))
    table = re.findall(r"^\|.*\| ([\d,]+)(?: of 750)? \| 0 \|$", (ROOT / "RELIABILITY.md").read_text(), re.MULTILINE)
    assert sorted(int(count.replace(",", "")) for count in table) == sorted(counts.values())


ROWS = {
    "labels.csv": ("text,label\na,b\na,c\n", "2 of 3 rows are told of"),
    "labels.tsv": ("a\tb\na\tc\n", "1 of 2 rows are told of"),
    "labels.jsonl": ('{"text": "a", "label": "b"}\n' * 2, "1 of 2 rows are told of"),
}


def fail(error: Exception) -> NoReturn:
    raise error


@pytest.mark.parametrize("name", ROWS)
def test_a_reader_that_loses_a_row_or_breaks_is_noticed(name, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from tests.faults import malformed

    (form,) = (each for each in malformed.FORMATS if each.name == name)
    file = tmp_path / name
    file.write_text(ROWS[name][0])
    assert malformed.wrong(form, file) == ("", False)

    def lossy(file: Path) -> Data:
        found = form.read(file)
        return replace(found, examples=found.examples[1:])

    assert malformed.wrong(form._replace(read=lossy), file) == (ROWS[name][1], False)
    said, refused = malformed.wrong(form._replace(read=lambda _: fail(DataError("broken"))), file)
    assert (said, refused) == ("does not name the file: broken", True)
    said, refused = malformed.wrong(form._replace(read=lambda _: fail(KeyError("broken"))), file)
    assert said.endswith("KeyError: 'broken'\n")
    assert not refused

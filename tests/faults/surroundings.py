"""Where a run finds itself: terminals or none, other encodings, odd names, other times. It is the same run there."""

import os
import pty
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.faults.victim import HANGS_AFTER, SAVES, Victim, weights

ROOT = Path(__file__).parents[2]
ODD = "aus gang \u00e4\u30e2\u30c7\u30eb 'x' $HOME"


class Place(NamedTuple):
    """Variables, of which None are not set; names of what is read and written; and what is done before it begins."""

    variables: dict[str, str | None] = {}  # noqa: RUF012
    out: str = "out"
    data: str = "text.txt"
    before: Callable[[], Any] | None = None
    is_terminal: bool = False


PLACES = {
    "no terminal": Place(),
    "a terminal": Place({"TERM": "xterm"}, is_terminal=True),
    "a terminal of ten columns": Place({"TERM": "dumb", "COLUMNS": "10"}, is_terminal=True),
    "standard input closed": Place(before=lambda: os.close(0)),
    "standard output closed": Place(before=lambda: os.close(1)),
    "standard error closed": Place(before=lambda: os.close(2)),
    "all of them closed": Place(before=lambda: os.closerange(0, 3)),
    "LC_ALL=C, and no UTF-8 mode": Place({"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}),
    "LC_ALL=C and odd names": Place({"LC_ALL": "C"}, ODD, ODD + ".txt"),
    "cp1252": Place({"PYTHONIOENCODING": "cp1252"}),
    "cp1252 and odd names": Place({"PYTHONIOENCODING": "cp1252"}, ODD, ODD + ".txt"),
    "ascii": Place({"PYTHONIOENCODING": "ascii"}),
    "odd names": Place({}, ODD, ODD + ".txt"),
    "no home": Place({"HOME": None, "XDG_CACHE_HOME": None}),
    "no directory for what is temporary": Place({"TMPDIR": "/nowhere"}),
    "files for its owner only": Place(before=lambda: os.umask(0o077)),
}


def at_another_time(victim: Victim, out: Path, rng: random.Random) -> tuple[str, str]:
    """(when, what is lost): half a run whose files are of any time, equal ones and future ones too, goes on while the
    clock jumps."""
    shutil.copytree(victim.base / "half", out)
    when = rng.choice(["equal times", "times the other way round", "any times"])
    files = sorted(out.rglob("*"))
    for number, path in enumerate(files):
        any_time = rng.uniform(0, 2**32)  # up to 2106
        at = {"equal times": 1e9, "times the other way round": 1e9 - number}.get(when, any_time)
        os.utime(path, (at, at), follow_symlinks=False)
    child = victim.begin(out, lambda: _jumps(random.Random(rng.random())))
    if child.end() != 0:
        return when, f"ended with {child.status}: {victim.said(out)}"
    if [step for what, step in child.messages if what == "saved"] != [SAVES[3]]:
        return when, f"it did not go on from step {SAVES[2]}: {child.messages}"
    return when, victim.fault(out, child.saved)


def _jumps(rng: random.Random) -> None:
    """The time of day is another one at every look."""
    time.time = lambda: rng.uniform(0, 2**32)
    time.time_ns = lambda: rng.randrange(2**32 * 10**9)


def elsewhere(victim: Victim, out: Path, seed: int) -> tuple[str, str]:
    """(where, what is wrong): trial number `seed`."""
    name, place = [*PLACES.items()][seed]
    out.mkdir()
    data, own = out / place.data, out / place.out
    shutil.copy(victim.base / "text.txt", data)
    command = [sys.executable, "-m", "tests.faults.victim", *victim.flags(own, data)]
    variables = {key: value for key, value in (os.environ | place.variables).items() if value is not None}
    log = out.with_name(f"{out.name}.log")
    ends = pty.openpty() if place.is_terminal else ()
    with log.open("wb") as file:
        stream = ends[1] if ends else file
        run = subprocess.Popen(
            command, cwd=ROOT, env=variables, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
            preexec_fn=place.before,
        )  # fmt: skip
        for end in ends[1:]:
            os.close(end)
        while ends:
            try:
                file.write(os.read(ends[0], 1 << 16))
            except OSError:  # the other end is closed
                os.close(ends[0])
                break
        status = run.wait(HANGS_AFTER)
    if status != 0:
        return name, f"ended with {status}: {log.read_text(errors='replace')[-300:]}"
    return name, "" if weights(own) == victim.expected else "other weights"

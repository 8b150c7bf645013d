"""SIGKILL: at a random time, at a random time within a save, and before each thing that the run does to its files."""

import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from tests.faults.victim import SAVES, Victim

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
AUDITED = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate"}


def at_random(victim: Victim, out: Path, rng: random.Random) -> tuple[str, str]:
    """(phase, what is lost) after a kill at a uniformly random time of the run."""
    child = victim.begin(out)
    child.poll(rng.uniform(0.0, victim.seconds))
    child.kill()
    return child.phase, victim.fault(out, child.saved)


def in_a_save(victim: Victim, out: Path, rng: random.Random) -> tuple[str, str]:
    """The same, within one of the saves, which takes some 20 ms."""
    step, child = rng.choice(SAVES), victim.begin(out)
    child.listen_for("begin", step)
    child.poll(rng.uniform(0.0, 0.03))
    child.kill()
    return child.phase, victim.fault(out, child.saved)


def points(victim: Victim, out: Path) -> int:
    """How many things a run does to its files, the directory being as it is."""
    log = out.with_name(f"{out.name}.points")
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    if victim.begin(out, lambda: before_each(out, lambda number: os.write(handle, b"."))).end() != 0:
        raise RuntimeError(victim.said(out))
    os.close(handle)
    return log.stat().st_size


def at_point(victim: Victim, out: Path, point: int) -> tuple[str, str]:
    """Before thing number `point`, from 0."""

    def kill(number: int) -> None:
        if number == point:
            os.kill(os.getpid(), signal.SIGKILL)

    child = victim.begin(out, lambda: before_each(out, kill))
    if child.end() != -signal.SIGKILL:
        return child.phase, f"thing {point} was not done: status {child.status}"
    return child.phase, victim.fault(out, child.saved)


def with_a_damaged_end(victim: Victim, out: Path) -> None:
    """Half a run, whose newest checkpoint is damaged: what goes on writes over it."""
    shutil.copytree(victim.base / "half", out)
    os.truncate(out / f"step-{SAVES[2]:06d}" / "model.safetensors", 100)


def before_each(out: Path, call: Callable[[int], object]) -> None:
    """call(0), call(1), ... before each file of `out` that is opened to be written, made durable, renamed, made or
    removed, in this process from now on."""
    number, own, fsync = 0, str(out), os.fsync

    def next_one() -> None:
        nonlocal number
        number += 1
        call(number - 1)

    def audit(event: str, args: tuple) -> None:
        writes = event in AUDITED or (event == "open" and isinstance(args[2], int) and args[2] & WRITES)
        if writes and isinstance(args[0], str | os.PathLike) and os.fspath(args[0]).startswith(own):
            next_one()

    def durable(handle: int) -> None:
        next_one()
        fsync(handle)

    os.fsync = durable
    sys.addaudithook(audit)

"""The system does not let a run write: no room, no quota, a disk that has become read-only. It ends in one line, what
was saved stays, and when there is room again the same command goes on."""

import errno
import os
import random
import resource
from collections.abc import Callable
from pathlib import Path

from minilm.checkpoint.store import Store
from tests.faults.kills import before_each
from tests.faults.victim import SAVES, Child, Victim

SHORTEST = 8_000  # bytes; what the run says has room
ERRORS = errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO


def at_point(victim: Victim, out: Path, point: int) -> tuple[str, str]:
    """(phase, what is lost) where thing number `point` that it does to its files, from 0, is refused."""
    number = ERRORS[point % len(ERRORS)]

    def refuse(at: int) -> None:
        if at == point:
            raise OSError(number, os.strerror(number))

    return _ended(victim, out, victim.begin(out, lambda: before_each(out, refuse)), errno.errorcode[number])


def too_large(victim: Victim, out: Path, rng: random.Random) -> tuple[str, str]:
    """No file may be longer than a random length, from a random step on: a write is refused half-way."""
    length, step = rng.randrange(SHORTEST, 200_000), rng.choice([0, *SAVES[:-1]])

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (length, resource.RLIM_INFINITY))

    return _ended(victim, out, victim.begin(out, limit if step == 0 else lambda: _after(step, limit)), "EFBIG")


def _after(step: int, call: Callable[[], object]) -> None:
    """Once that step is saved, in this process."""
    save = Store.save

    def called(self: Store, number: int, *args: object, **kwargs: object) -> Path:
        path = save(self, number, *args, **kwargs)
        if number == step:
            call()
        return path

    Store.save = called


def _ended(victim: Victim, out: Path, child: Child, what: str) -> tuple[str, str]:
    status, said = child.end(), victim.said(out)
    phase = f"{what} {child.phase}"
    if status not in (0, 2) or (status == 2 and not said.startswith("error: ")):
        return phase, f"ended with {status}: {said}"
    return phase, victim.fault(out, child.saved)

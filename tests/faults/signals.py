"""SIGTERM, SIGINT, SIGHUP and SIGUSR1 at a random time: the run saves and says by its status which it was. A second one
ends it at once."""

import os
import random
import signal
from pathlib import Path

from minilm.machine.signals import STOPPING, exit_status
from tests.faults.victim import Victim


def one(victim: Victim, out: Path, rng: random.Random) -> tuple[str, str]:
    """(phase, what is lost or wrong)."""
    return _signalled(victim, out, rng, twice=False)


def two(victim: Victim, out: Path, rng: random.Random) -> tuple[str, str]:
    """A second one up to 20 ms after the first."""
    return _signalled(victim, out, rng, twice=True)


def _signalled(victim: Victim, out: Path, rng: random.Random, twice: bool) -> tuple[str, str]:
    number, child = rng.choice(STOPPING), victim.begin(out)
    child.listen_for("ready", 0)
    child.poll(rng.uniform(0.0, victim.seconds))
    for _ in range(1 + twice):
        if child.status is None:
            os.kill(child.pid, number)
            child.poll(rng.uniform(0.0, 0.02))
    status, name = child.end(), signal.Signals(number).name
    phase = f"{name}{' twice' if twice else ''} {child.phase}"
    if status not in (0, exit_status(number), *((128 + number, -number) if twice else ())):
        return phase, f"ended with {status}: {victim.said(out)}"
    if status == 0 and number != signal.SIGUSR1 and not (out / "config.json").exists():
        return phase, "ended with 0, unfinished"
    return phase, victim.fault(out, child.saved)

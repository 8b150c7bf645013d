"""The thread that makes batches fails, or hangs."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minilm.data import ahead
from minilm.data.loader import Loader
from tests.faults.victim import SAVES, Victim

ENDS_WITHIN = 60  # seconds
STOPS_WITHIN = 20  # after a signal


def _hangs_for_good() -> None:
    threading.Event().wait()


def _hangs_till_a_signal() -> None:
    time.sleep(1.0)  # the run waits for it by now
    os.kill(os.getpid(), signal.SIGTERM)
    _hangs_for_good()


KINDS: dict[str, Callable[[], Any]] = {
    "a disk's error": lambda: os.read(-1, 1),
    "hangs, then SIGTERM": _hangs_till_a_signal,
    "another error": lambda: 1 / 0,
    "hangs": _hangs_for_good,
}
STATUS = {"a disk's error": 2, "hangs": 2, "hangs, then SIGTERM": 128 + signal.SIGTERM}


def failing(victim: Victim, out: Path, seed: int) -> tuple[str, str]:
    """(what it does and in which step, what is lost or wrong): trial number `seed`. The error comes soon and names the
    rows, or the signal is heard; all steps before are saved, unless it is a bug, and the same command goes on."""
    kind = [*KINDS][seed % len(KINDS)]
    step = random.Random(seed).randrange(SAVES[-1])
    phase, began = f"{kind}, step {step + 1}", time.monotonic()
    child = victim.begin(out, lambda: _fails(KINDS[kind], step))
    if not child.poll(ENDS_WITHIN):
        child.kill()
        return phase, f"nothing came of it in {ENDS_WITHIN} s"
    seconds = time.monotonic() - began
    if kind == "hangs" and seconds < ahead.PATIENCE:
        return phase, "it did not wait"
    said = out.with_name(f"{out.name}.log").read_text(encoding="utf-8", errors="replace")
    if kind == "hangs, then SIGTERM" and seconds > victim.seconds + STOPS_WITHIN:
        return phase, f"the signal was heard after {seconds:.0f} s"
    if kind != "hangs, then SIGTERM" and f"step {step + 1}: rows " not in said:
        return phase, f"does not name the rows: {said[-300:]}"
    if kind in STATUS and (child.status != STATUS[kind] or said.count("error: ") != (child.status == 2)):
        return phase, f"ended with {child.status}: {said[-300:]}"
    if kind in STATUS and child.saved != step:
        return phase, f"saved step {child.saved} of {step}"
    return phase, victim.fault(out, child.saved)


def _fails(fault: Callable[[], Any], step: int) -> None:
    make, wait, waited = Loader.micro_batches, ahead._is_done, []

    def made(self: Loader, number: int) -> list[Any]:
        if number == step:
            while len(waited) <= step:  # for all before, and by now for this one
                time.sleep(0.01)
            fault()
        return make(self, number)

    def waits(future: Any) -> bool:
        waited.append(future)
        return wait(future)

    Loader.micro_batches, ahead._is_done = made, waits

"""The thread that makes batches fails, or hangs."""

import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minilm.data.ahead import PATIENCE
from minilm.data.loader import Loader
from tests.faults.victim import SAVES, Victim

ENDS_WITHIN = 60  # seconds
KINDS: dict[str, Callable[[], Any]] = {
    "a disk's error": lambda: os.read(-1, 1),
    "another error": lambda: 1 / 0,
    "hangs": threading.Event().wait,
}


def failing(victim: Victim, out: Path, seed: int) -> tuple[str, str]:
    """(what it does and in which step, what is lost or wrong): trial number `seed`. The error comes soon and names the
    rows, and the same command goes on."""
    kind = [*KINDS][seed % len(KINDS)]
    step = random.Random(seed).randrange(SAVES[-1])
    phase, began = f"{kind}, step {step + 1}", time.monotonic()
    child = victim.begin(out, lambda: _fails(KINDS[kind], step))
    if not child.poll(ENDS_WITHIN):
        child.kill()
        return phase, f"nothing came of it in {ENDS_WITHIN} s"
    if kind == "hangs" and time.monotonic() - began < PATIENCE:
        return phase, "it did not wait"
    said = out.with_name(f"{out.name}.log").read_text(encoding="utf-8", errors="replace")
    if f"step {step + 1}: rows " not in said:
        return phase, f"does not name the rows: {said[-300:]}"
    if kind in ("hangs", "a disk's error") and (child.status != 2 or said.count("error: ") != 1):
        return phase, f"ended with {child.status}: {said[-300:]}"
    return phase, victim.fault(out, child.saved)


def _fails(fault: Callable[[], Any], step: int) -> None:
    make = Loader.micro_batches

    def made(self: Loader, number: int) -> list[Any]:
        if number == step:
            fault()
        return make(self, number)

    Loader.micro_batches = made

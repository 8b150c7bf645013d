"""A long run that is killed every few minutes: its memory grows by less than GROWTH, its descriptors stay as many."""

import os
import random
import time
from pathlib import Path

import numpy as np

from tests.faults.victim import Child, Victim

WARM = 1400  # steps of a life that are left out: in them all is done once that is done again and again
LIVES = 150.0, 300.0  # seconds between two kills
GROWTH = 1.0  # MiB a minute
PAGE = os.sysconf("SC_PAGE_SIZE")


class Long(Victim):
    """A run that does not come to its end, of the text of `like`."""

    def __init__(self, like: Victim) -> None:
        self.base, self.device = like.base, like.device

    def flags(self, out: Path, data: Path) -> list[str]:
        usual = super().flags(out, data)
        return [
            *usual[: usual.index("--steps")],
            "--steps",
            "1000000",
            "--save-every",
            "200",
            "--evaluate-every",
            "1000",
        ]


def minutes(victim: Victim, out: Path, minutes: int) -> tuple[str, str]:
    """(what was measured, what is lost or wrong): so many minutes of lives, each of which goes on where the one before
    had saved."""
    run, rng, until = Long(victim), random.Random(minutes), time.monotonic() + 60 * minutes
    saved, saves, slopes, most = 0, 0, [], set()
    while (left := until - time.monotonic()) > 0:
        child = run.begin(out)
        samples = _life(child, min(left, rng.uniform(*LIVES)))
        if child.status is not None:
            return f"step {saved}", f"ended with {child.status}: {run.said(out)}"
        child.kill()
        steps = [step for what, step in child.messages if what == "saved"]
        if steps and steps[0] not in (saved + 200, saved + 400):  # a save may have been made, and not yet told of
            return f"step {saved}", f"went on to step {steps[0]}"
        saved, saves = max([saved, *steps]), saves + len(steps)
        if lost := run.lost_step(out, saved):
            return f"step {saved}", lost
        if len(samples) > 30:
            seconds, memory, descriptors = np.array(samples).T
            slopes.append(60 * float(np.polyfit(seconds, memory, 1)[0]) / 2**20)
            most |= {int(np.median(half)) for half in np.array_split(descriptors, 2)}
    if not slopes:
        return f"{saves} saves", "no life was long enough to be measured"
    rate = f"{np.mean(slopes):+.2f} MiB a minute ({min(slopes):+.2f} to {max(slopes):+.2f})"
    phase = f"{len(slopes)} lives, {saves} saves, {rate}, {', '.join(map(str, sorted(most)))} descriptors"
    if max(slopes) > GROWTH or len(most) > 1:
        return phase, "grows"
    return phase, ""


def _life(child: Child, seconds: float) -> list[tuple[float, int, int]]:
    """(second, bytes in memory, descriptors) of every half second after the first WARM steps."""
    began, found = time.monotonic(), []
    while (now := time.monotonic() - began) < seconds and not child.poll(0.5):
        saved = [step for what, step in child.messages if what == "saved"]
        if saved and saved[-1] - saved[0] >= WARM:
            pages = int(Path(f"/proc/{child.pid}/statm").read_text().split()[1])
            found.append((now, pages * PAGE, len(os.listdir(f"/proc/{child.pid}/fd"))))
    return found

"""One of two processes that share a run is killed, or told to stop."""

import os
import random
import signal
import socket
import time
from functools import cache
from pathlib import Path

from minilm.machine.signals import exit_status
from tests.faults.victim import SAVES, Child, Victim, quiet, weights

ENDS_WITHIN = 30  # seconds, after what is done to one


def one_of_two(victim: Victim, out: Path, rng: random.Random) -> tuple[str, str]:
    """(what, to which one and when; what is lost or wrong): at a random time after they have met, before which torchrun
    ends the other. Both end soon, and two go on to the same weights."""
    whole, seconds = _uninterrupted(victim)
    number, which = rng.choice([signal.SIGKILL, signal.SIGTERM]), rng.randrange(2)
    both = _begin(victim, out)
    for child in both:
        child.listen_for("met", 0)
    both[0].poll(rng.uniform(0.0, seconds))
    phase, saved = f"{number.name} to process {which} {both[0].phase}", both[0].saved
    if both[which].status is None:
        os.kill(both[which].pid, number)
    until = time.monotonic() + ENDS_WITHIN
    ended = [child.poll(until - time.monotonic()) for child in both]
    statuses = [child.status for child in both]
    if not all(ended):
        for child in both:
            child.kill()
        return phase, f"one hangs: {statuses}"
    asked = exit_status(number) if number == signal.SIGTERM else -number
    is_ending = saved >= SAVES[2]  # in its last steps, of which the very last one is not followed by another
    alone = number == signal.SIGKILL or is_ending or not both[0].saved  # out of the steps each ends by itself
    if statuses not in ([0, 0] if is_ending else [], [asked, asked]) and not (alone and {*statuses} <= {0, 2, asked}):
        return phase, f"ended with {statuses}: {victim.said(out)}"
    if statuses == [0, 0] and not (out / "config.json").exists():
        return phase, "ended with 0, unfinished"
    if lost := victim.lost_step(out, both[0].saved):
        return phase, lost
    if statuses := [*filter(None, (child.end() for child in _begin(victim, out)))]:
        return phase, f"going on ends with {statuses}: {victim.said(out)}"
    return phase, "" if weights(out) == whole else "other weights at the end"


@cache
def _uninterrupted(victim: Victim) -> tuple[dict[str, str], float]:
    """The weights of a run of two, and its seconds after they have met."""
    out = victim.base / "of two"
    both = _begin(victim, out)
    both[0].listen_for("met", 0)
    began = time.perf_counter()
    if statuses := [*filter(None, (child.end() for child in both))]:
        raise RuntimeError(f"the run of two itself fails with {statuses}: {victim.said(out)}")
    return weights(out), time.perf_counter() - began


def _begin(victim: Victim, out: Path) -> list[Child]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def as_rank(rank: int) -> None:
        quiet(out.with_name(f"{out.name}{'.second' * rank}.log"))
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
        os.environ.update({"MASTER_ADDR": "127.0.0.1"} | {name: str(value) for name, value in own.items()})

    return [victim.begin(out, lambda rank=rank: as_rank(rank)) for rank in range(2)]

"""embed and predict, killed or told to stop again and again, go on to the bytes of the one that nobody disturbed."""

import json
import os
import random
import signal
import time
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import minilm.data.documents as documents
import minilm.partial as partial
import minilm.tasks.task as task
from minilm.commands.embed import Embed, run_embed
from minilm.commands.predict import Predict, run_predict
from minilm.machine.signals import STOPPING, exit_status
from tests.faults.goes_on import kind
from tests.faults.victim import Victim

LIVES = 40  # at most
OUTPUT = "out"  # without its ending


class Command(Victim):
    """One of them, on the text of `like`, by a model of its."""

    def __init__(self, like: Victim, script: SimpleNamespace, ending: str, *flags: object) -> None:
        self.base, self.device, self.script, self.ending = like.base, like.device, script, ending
        self.own = [*map(str, flags), "--threads", "1", "--device", like.device]
        whole = self.base / f"whole {script.main.__name__}"
        whole.mkdir()
        began = time.perf_counter()
        if self.begin(whole, _hurry).end() != 0:
            raise RuntimeError(f"the command itself fails: {self.said(whole)}")
        self.seconds, self.bytes = time.perf_counter() - began, self.output(whole).read_bytes()

    def output(self, out: Path) -> Path:
        return out / f"{OUTPUT}{self.ending}"

    def flags(self, out: Path, data: Path) -> list[str]:
        return [*self.own, "--out" if self.ending == ".npy" else "--output", str(self.output(out))]


@cache
def command(victim: Victim, number: int) -> Command:
    """Made when it is asked for first."""
    if number == 0:
        script = SimpleNamespace(main=run_embed, Args=Embed)
        return Command(victim, script, ".npy", "--model", victim.base / "whole", "--data", victim.base / "text.txt")
    tuned = victim.base / f"whole {kind(victim, 0).name}"
    script = SimpleNamespace(main=run_predict, Args=Predict)
    return Command(victim, script, ".csv", "--model", tuned, "--input", victim.base / "labels.csv")


def in_many_lives(victim: Victim, out: Path, seed: int) -> tuple[str, str]:
    """(the command and its lives, what is lost or wrong)."""
    rng, own, kept, lives = random.Random(seed), command(victim, seed % 2), 0, 0
    out.mkdir()
    while not own.output(out).exists():
        lives += 1
        number, child = rng.choice((signal.SIGKILL, signal.SIGKILL, *STOPPING)), own.begin(out, _hurry)
        phase = f"{own.script.main.__name__}, {lives} lives"
        child.listen_for("ready", 0)
        child.poll(rng.uniform(0.0, own.seconds))
        if child.status is None:
            os.kill(child.pid, number)
        status = child.end()
        if status not in (0, -number, exit_status(number) if number in STOPPING else -number):
            return phase, f"ended with {status}: {own.said(out)}"
        if (now := _kept(own.output(out))) < kept and not own.output(out).exists():
            return phase, f"{kept} were kept, and {now} are there"
        kept = now
        if lives == LIVES:
            return phase, "comes to no end"
    if own.output(out).read_bytes() != own.bytes:
        return phase, "other bytes"
    if own.begin(out, _hurry).end() != 0 or own.output(out).read_bytes() != own.bytes:
        return phase, f"once more: {own.said(out)}"
    left = sorted(path.name for path in out.iterdir() if path != own.output(out))
    return phase, f"{left[0]} is left" if left else ""


def _kept(output: Path) -> int:
    """Lines, or batches, that are on the disk."""
    try:
        told = json.loads(output.with_name(f"{output.name}.partial.json").read_text())["told"]
    except FileNotFoundError:
        return 0
    return told.get("lines", told.get("batches", 0))


def _hurry() -> None:
    """Small parts, of which some are saved."""
    documents.CHUNK, task.EVALUATED_AT_ONCE, partial.SAVE_EVERY = 4, 256, 0.05

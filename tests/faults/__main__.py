"""The campaign of faults.

    python -m tests.faults                      a part of it, in a minute
    python -m tests.faults --full               all of it, in hours; what --results holds is not done again
    python -m tests.faults --mutations          each way to make the store worse must be noticed
    python -m tests.faults --full --only goes-on --device cuda      the same weights after any stop, on a GPU

A trial is a line of --results: fault, seed, what the run was at, and what was lost, which is nothing. Exits with 1 if
anything was.
"""

import json
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from minilm import cli
from minilm.errors import ConfigError
from tests.faults import (
    damage,
    evaluating,
    goes_on,
    kills,
    loading,
    malformed,
    numbers,
    others,
    ranks,
    refused,
    signals,
    soak,
    surroundings,
    tampered,
)
from tests.faults.mutations import MUTATIONS
from tests.faults.victim import Victim

Trial = Callable[..., tuple[str, str]]  # (victim, out, seed) -> (what it was at, what was lost)


@dataclass(frozen=True)
class Args:
    """Kill, damage and starve a tiny run, and see whether anything is lost."""

    full: bool = False
    """All trials."""
    mutations: tuple[str, ...] | None = None
    """Instead, the campaign on stores that are worse in these ways, or in all: each must be noticed."""
    only: tuple[str, ...] = ()
    """Of these faults alone."""
    results: Path | None = None
    """A .jsonl, a line a trial."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Of the runs; on cuda they are --deterministic."""
    scratch: Path | None = None
    """Where the runs are; in the system's temporary directory, if not given."""


@dataclass(frozen=True)
class Fault:
    """How often it is tried in a part of the campaign and in all of it; None: once at each point that there is."""

    trial: Trial
    some: int
    full: int | None
    fresh: bool = True  # each trial in a directory of its own


def seeded(trial: Trial) -> Trial:
    return lambda victim, out, seed: trial(victim, out, random.Random(seed))


def at_point_again(victim: Victim, out: Path, seed: int) -> tuple[str, str]:
    kills.with_a_damaged_end(victim, out)
    return kills.at_point(victim, out, seed)


FAULTS = {
    "kill": Fault(seeded(kills.at_random), 5, 750),
    "kill-in-save": Fault(seeded(kills.in_a_save), 5, 250),
    "kill-at-point": Fault(kills.at_point, 6, None),
    "kill-at-point-again": Fault(at_point_again, 3, None),
    "refused-at-point": Fault(refused.at_point, 4, None),
    "too-large": Fault(seeded(refused.too_large), 3, 60),
    "not-finite": Fault(seeded(numbers.not_finite), 3, 40),
    "loading": Fault(loading.failing, 2, 20),
    "one-of-two": Fault(seeded(ranks.one_of_two), 2, 40),
    "another-time": Fault(seeded(surroundings.at_another_time), 2, 20),
    "elsewhere": Fault(surroundings.elsewhere, 2, len(surroundings.PLACES)),
    "two-writers": Fault(seeded(others.two_writers), 2, 70),
    "readers": Fault(seeded(others.readers), 1, 50),
    "signal": Fault(seeded(signals.one), 5, 60),
    "signal-twice": Fault(seeded(signals.two), 2, 30),
    "goes-on": Fault(goes_on.in_every_step, 6, len(goes_on.KINDS) * goes_on.SPLITS),
    "evaluating": Fault(evaluating.in_many_lives, 2, 60),
    "damage": Fault(damage.damaged, 150, 2500, fresh=False),
    "tampered": Fault(tampered.tampered, 60, 5600, fresh=False),
    "soak": Fault(lambda victim, out, _: soak.minutes(victim, out, 30), 0, 1),
    "malformed": Fault(malformed.malformed, 1, 500, fresh=False),
}


def main(args: Args) -> int:
    for flag, asked, known in (("--only", args.only, FAULTS), ("--mutations", args.mutations or (), MUTATIONS)):
        if unknown := sorted({*asked} - known.keys()):
            raise ConfigError(f"{flag} {unknown[0]}: give some of {', '.join(known)}")
    with tempfile.TemporaryDirectory(dir=args.scratch, prefix="faults-") as scratch:
        victim = Victim(Path(scratch) / "victim", args.device)
        if args.mutations is not None:
            return each_mutation(args.mutations or tuple(MUTATIONS), victim, Path(scratch))
        return campaign(args, victim, Path(scratch), {name: FAULTS[name] for name in args.only or FAULTS})


def campaign(args: Args, victim: Victim, scratch: Path, faults: dict[str, Fault]) -> int:
    """Every trial that is not in --results; the number of those that lost something, at most 1."""
    lines = args.results.read_text(encoding="utf-8").splitlines() if args.results and args.results.exists() else []
    rows = [json.loads(line) for line in lines]
    done = {(row["fault"], row["seed"]) for row in rows}
    for name, fault in faults.items():
        for seed in seeds(name, fault, victim, scratch, args.full):
            if (name, seed) in done:
                continue
            row = tried(name, fault, victim, scratch, seed)
            rows.append(row)
            if args.results:
                with args.results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
            if row["lost"]:
                print(f"{name} {seed}, {row['phase']}: {row['lost']}", flush=True)
        own = [row for row in rows if row["fault"] == name]
        print(f"{name:20} {len(own):5,} trials, {sum(bool(row['lost']) for row in own):,} lost something", flush=True)
    for name, count in sorted(Counter(row["phase"] for row in rows if row["fault"].startswith("kill")).items()):
        print(f"    {name}: {count:,}")
    return int(any(row["lost"] for row in rows))


def seeds(name: str, fault: Fault, victim: Victim, scratch: Path, full: bool) -> Iterator[int]:
    """The numbers of a fault's trials."""
    if fault.full is not None:
        yield from range(fault.full if full else fault.some)
        return
    out = scratch / f"{name}-points"
    if fault.trial is at_point_again:
        kills.with_a_damaged_end(victim, out)
    count = kills.points(victim, out)
    shutil.rmtree(out)
    yield from range(0, count, 1 if full else -(-count // fault.some))


def tried(name: str, fault: Fault, victim: Victim, scratch: Path, seed: int) -> dict[str, object]:
    """One trial, as a line of the results."""
    out, began = scratch / (f"{name}-{seed}" if fault.fresh else name), time.perf_counter()
    try:
        phase, lost = fault.trial(victim, out, seed)
    except TimeoutError as error:
        phase, lost = "hangs", str(error)
    if fault.fresh:
        shutil.rmtree(out, ignore_errors=True)
        for log in scratch.glob(f"{out.name}.*"):
            log.unlink()
    seconds = round(time.perf_counter() - began, 3)
    return {"fault": name, "seed": seed, "phase": phase, "lost": lost, "seconds": seconds}


def each_mutation(names: tuple[str, ...], victim: Victim, scratch: Path) -> int:
    """Each in a process of its own; 1 where one is not noticed."""
    missed = 0
    for name in names:
        if (pid := os.fork()) == 0:
            MUTATIONS[name]()
            found = noticed(victim, scratch / name)
            print(f"{name:24} {found or 'NOT NOTICED'}", flush=True)
            os._exit(int(not found))
        missed += os.waitpid(pid, 0)[1] != 0
    return int(missed > 0)


def noticed(victim: Victim, scratch: Path) -> str:
    """By which fault, after how many trials, and what was lost. A run that fails without any fault proves nothing."""
    scratch.mkdir()
    if victim.begin(scratch / "whole").end() != 0:
        raise RuntimeError(f"without a fault, too: {victim.said(scratch / 'whole')}")
    for name in ("kill-in-save", "kill-at-point", "damage"):
        fault = FAULTS[name]
        for count, seed in enumerate(seeds(name, fault, victim, scratch, full=fault.full is None), start=1):
            if lost := tried(name, fault, victim, scratch, seed)["lost"]:
                return f"noticed by {name}, trial {count}: {lost}"
    return ""


if __name__ == "__main__":
    cli.run(main, Args)

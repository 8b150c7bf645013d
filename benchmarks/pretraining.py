"""What pretraining reaches: beside transformers in equal seconds, in how many seconds it reaches the same loss, and
without one ingredient after the other.

    python -m benchmarks.pretraining --name side-by-side
    python -m benchmarks.pretraining --name time-to-loss                # on a GPU with --minutes 2
    python -m benchmarks.pretraining --name ingredients

Each result is appended to benchmarks/results/NAME.jsonl as it comes, with commit and date. One that is there, of the
same machine, threads and versions, is not measured again: where code that decides it has changed, remove its line. The
table is printed at the end; --table prints that of the machine of the last line, from what is there.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from typing import Any, Literal

import torch

from benchmarks.kept import keep, read
from benchmarks.machine import ROOT, cores, when
from minilm import cli

OURS, PLAIN = [sys.executable, "train.py"], [sys.executable, "-m", "benchmarks.plain_loop"]

# BERT of the shape of bert-mini, on the same rows: by our loop and recipe, and BertForMaskedLM in a plain loop with
# AdamW and whatever of this did best with seed 0, flag after flag in a minute, the learning rate in every budget
SIDES = {
    "minilm": [*OURS, "--recipe", "bert-mini", "--packing", "stream", "--short-seq-prob", "0"],
    "transformers": [*PLAIN, "--library", "transformers", "--recipe", "bert-mini"],
}
TRIED = {
    "attention": ("sdpa", "eager"),
    "batch_size": ("4", "8", "16", "32"),
    "lr": ("2.5e-4", "5e-4", "1e-3"),
    "mask_rate": ("0.15", "0.3", "0.4"),
}
ON_CPU = {flag: values for flag, values in TRIED.items() if flag != "lr"}  # of time-to-loss
ON_GPU = {"compile": ("yes", "no"), "batch_size": ("16", "64", "256"), "mask_rate": ("0.15", "0.3")}  # of time-to-loss
RATES = ("2.5e-4", "5e-4", "1e-3", "2e-3")  # of time-to-loss
FIRST = {"attention": "sdpa", "batch_size": "16", "lr": "5e-4", "mask_rate": "0.15"}
TUNED = *FIRST, "compile"

# what is to come to the loss of transformers -> in what part of its minutes
SOONER = {"same architecture": (2, 4), "free (quick)": (4, 8)}
COMMANDS = SIDES | {"same architecture": SIDES["minilm"], "free (quick)": OURS}

# what is changed in quick -> flags; each for as many tokens
INGREDIENTS = {
    "quick as it is": [],
    "AdamW 1e-3": ["--optimizer", "adamw", "--lr", "1e-3"],
    "AdamW 3e-3": ["--optimizer", "adamw", "--lr", "3e-3"],
    "output scale 0": ["--output-scale", "0"],
    "output scale 1 (BERT)": ["--output-scale", "1"],
    "mask rate 0.15": ["--mask-rate", "0.15"],
    "mask rate 0.3 to 0.15": ["--mask-rate-end", "0.15"],
    "whole words": ["--whole-words"],
    "cosine": ["--schedule", "cosine"],
    "wsd, the last 40 %": ["--schedule", "wsd", "--decay-frac", "0.4"],
    "half the steps on short rows": ["--short-frac", "0.5"],
    "no text in short pieces": ["--short-seq-prob", "0"],
    "batch ramp 8, 16, 32 over 60 %": ["--batch-size", "8", "--accumulation", "4", "--batch-warmup-frac", "0.6"],
}


@dataclass(frozen=True)
class Args:
    """Measure, and print the table."""

    name: Literal["side-by-side", "time-to-loss", "ingredients"]
    seeds: tuple[int, ...] = (0, 1)
    minutes: tuple[float, ...] = (1.0, 2.0, 5.0)
    """Budgets of side-by-side; the last is that of time-to-loss."""
    rows: int = 12_800
    """Budget of ingredients: rows of 128 tokens."""
    data: tuple[str, ...] = ()
    """As of train.py; the embedded corpus if not given."""
    threads: int | None = None
    table: bool = False
    """Only the table of what is there."""


def main(args: Args) -> None:
    file = ROOT / "benchmarks" / "results" / f"{args.name}.jsonl"
    results = read(file)
    versions = {name: metadata.version(name) for name in ("torch", "transformers")}
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else cores()
    here = {"machine": where, "threads": args.threads, "versions": versions}
    if args.table and results:
        here = {key: results[-1].get(key) for key in here}

    def measured(command: list[str], **known: Any) -> dict[str, Any]:
        """The result of a command, from the file or measured now."""
        known |= {"data": list(args.data)} | here
        command = [*command, *(word for flag in TUNED if flag in known for word in (cli.flag(flag), known[flag]))]
        if found := [row for row in results if all(row.get(key) == value for key, value in known.items())]:
            return found[0]
        if args.table:
            return known
        row = known | run(command, args) | when()
        results.append(row)
        keep(file, [row])
        return row

    measures = {"side-by-side": side_by_side, "time-to-loss": time_to_loss, "ingredients": ingredients}
    print(f"{here['machine']}, {here['threads'] or 'all'} threads, {here['versions']}")
    on_gpu = " cores of an " not in here["machine"]
    if on_gpu:
        measures["time-to-loss"] = partial(time_to_loss, tried=ON_GPU, start=FIRST | {"compile": "yes"})
    for line in measures[args.name](args, measured):
        print(line, flush=True)


def run(command: list[str], args: Args) -> dict[str, Any]:
    """What a command says about its model."""
    print(" ".join(command[1:]), file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        flags = ["--data", *args.data] if args.data else []
        flags += ["--threads", str(args.threads)] if args.threads else []
        if command[1] == "train.py":
            flags += ["--out", f"{scratch}/run", "--json", "-"]
        done = subprocess.run([*command, *flags], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    result = json.loads(done.stdout)
    kept = ("held_out_loss", "unigram_loss", "accuracy", "steps", "tokens", "seconds", "flops", "precision")
    return {key: result[key] for key in kept if key in result}


def side_by_side(args: Args, measured: Any) -> Iterator[str]:
    """Each budget: ours, then the reference for the seconds that ours has taken."""
    best = FIRST
    for minutes in args.minutes:
        found = defaultdict(list)
        for seed in args.seeds:
            ours = of_side(measured, "minilm", minutes, seed)
            taken = ours.get("seconds", minutes * 60) / 60
            theirs = partial(of_side, measured, "transformers", minutes, seed, taken)
            if seed == args.seeds[0]:
                best = yield from tuned(theirs, best, TRIED if best is FIRST else {"lr": TRIED["lr"]})
            found["minilm"].append(ours)
            found["transformers"].append(theirs(**best))
        yield from table(f"{minutes:g} min", found)


def of_side(
    measured: Any, side: str, minutes: float, seed: int, taken: float | None = None, **flags: str
) -> dict[str, Any]:
    """A side's result with a budget, by which it is kept, or in the minutes that another side has taken of it."""
    command = [*COMMANDS[side], "--minutes", str(taken or minutes), "--seed", str(seed)]
    return measured(command, side=side, minutes=minutes, seed=seed, **flags)


def tuned(theirs: Any, best: dict[str, str], tried: dict[str, tuple[str, ...]]) -> Generator[str, None, dict[str, str]]:
    """The reference with one value after the other of each flag; the best of all flags in the end."""
    for flag, values in tried.items():
        each = {value: theirs(**best | {flag: value}) for value in values}
        losses = {value: row["held_out_loss"] for value, row in each.items() if "held_out_loss" in row}
        yield f"transformers, {flag}: {', '.join(f'{value} {loss:.3f}' for value, loss in losses.items())}"
        best = best | {flag: min(losses, key=losses.get, default=best[flag])}
    return best


def time_to_loss(
    args: Args, measured: Any, tried: dict[str, tuple[str, ...]] = ON_CPU, start: dict[str, str] = FIRST
) -> Iterator[str]:
    """The reference for some minutes, with the best of four learning rates, and of what else is tried in a minute; ours
    for a part of these."""
    minutes, found = args.minutes[-1], defaultdict(list)
    theirs, first = partial(of_side, measured, "transformers"), args.seeds[0]
    best = yield from tuned(partial(theirs, 1.0, first), start, tried)
    best = yield from tuned(partial(theirs, minutes, first), best, {"lr": RATES})
    for seed in args.seeds:
        found["transformers"].append(theirs(minutes, seed, **best))
        for side, times in SOONER.items():
            for each in times:
                found[f"{side}, {minutes / each:g} min"].append(of_side(measured, side, minutes / each, seed))
    yield from table(f"in {minutes:g} min or less", found)
    means = {
        name: tuple(statistics.mean(row[key] for row in rows) for key in ("held_out_loss", "seconds"))
        for name, rows in found.items()
        if all("held_out_loss" in row for row in rows)
    }
    for name, (loss, seconds) in means.items():
        if name != "transformers" and "transformers" in means and loss <= means["transformers"][0]:
            yield f"{name}: at a lower loss {means['transformers'][1] / seconds:.1f} times sooner"


def ingredients(args: Args, measured: Any) -> Iterator[str]:
    """quick, and quick with one thing changed, for equal numbers of rows."""
    found = defaultdict(list)
    for seed in args.seeds:
        for name, flags in INGREDIENTS.items():
            steps = args.rows // 16
            if "--batch-warmup-frac" in flags:  # rows a step: 8 and 16 for 0.3 of the steps each, then 32
                steps = round(args.rows / (0.3 * 8 + 0.3 * 16 + 0.4 * 32))
            if "--short-frac" in flags:  # the first half of the steps has a quarter of the tokens
                steps = round(args.rows / 16 / (0.5 / 4 + 0.5))
            command = [*OURS, *flags, "--steps", str(steps), "--seed", str(seed)]
            found[name].append(measured(command, changed=name, rows=args.rows, seed=seed))
    yield from table("held-out loss", found)


def table(title: str, found: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """Mean over seeds, the single values, seconds and tokens."""
    yield f"| {title} | loss | of each seed | seconds | tokens |"
    yield "|---|---|---|---|---|"
    for name, rows in found.items():
        if rows := [row for row in rows if "held_out_loss" in row]:
            losses = [row["held_out_loss"] for row in rows]
            seconds, tokens = (statistics.mean(row[key] for row in rows) for key in ("seconds", "tokens"))
            each = ", ".join(f"{loss:.3f}" for loss in losses)
            yield f"| {name} | {statistics.mean(losses):.3f} | {each} | {seconds:.0f} | {tokens:,.0f} |"


if __name__ == "__main__":
    cli.run(main, Args)

"""minilm beside transformers and sentence-transformers, on this machine.

    python -m benchmarks --model DIR                          # everything that fits the machine, the most telling first
    python -m benchmarks pretrain-128 --json rows.jsonl       # one row, kept: what is there is not measured again
    python -m benchmarks gpu --budget-s 540                   # tests that need a GPU, then all rows on it

Sides take turns, A B A B, in one process of their own for each row, after each has run once; a ratio is that of two
neighbours. Then each side runs alone, for its peak memory and the time to its first step. Rows are added to --json as
they come.
"""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from benchmarks.machine import ROOT, machine, when
from benchmarks.rows import ROWS, Done, Row, Setting, Side
from minilm import cli
from minilm.errors import ConfigError, did_you_mean, library
from minilm.train.cost import matmul_peak

OURS = "minilm"
AGREE = {"fp32": 1e-3, "bf16": 2e-2}  # relative difference of what sides come to
MOST_S = 300.0  # of a row's turns
ALONE = 2  # times
RANGES = {"budget_s": (1, 10**6), "pairs": (1, 1000)}


@dataclass(frozen=True)
class Args:
    """minilm side by side with the reference, row after row."""

    rows: tyro.conf.Positional[tuple[str, ...]] = ()
    """Which; all that fit the machine, if none is named. `gpu`: all on a GPU, after its tests."""
    model: Path | None = None
    """A directory that all libraries open, for rows of texts."""
    precision: tuple[str, ...] = ()
    """fp32, bf16; those that the machine computes natively, if not given."""
    pairs: int = 7
    """Turns of each side."""
    budget_s: float | None = None
    """Begin no row after so many seconds."""
    json: Path | None = None
    """A .jsonl: each side of each row is a line of it, and what it holds is not measured again."""
    png: Path | None = None
    """A picture of the ratios."""
    device: str = "auto"
    """cuda or cpu."""
    cache_dir: Path = Path("~/.cache/minilm")
    turns_of: str | None = None
    """For itself: print as JSON what the named side, or "all" in turn, takes."""


def main(args: Args) -> None:
    cli.check_ranges(args, RANGES)
    if args.turns_of is not None:
        print(json.dumps(turns(args)))
        return
    gpu, names = "gpu" in args.rows, [name for name in args.rows if name != "gpu"]
    if strange := [name for name in names if name not in ROWS]:
        known = did_you_mean(strange[0], ROWS) or f"; there are {', '.join(ROWS)}"
        raise ConfigError(f"{strange[0]}: no such row{known}")
    device = device_of("cuda" if gpu else args.device)
    if gpu:
        subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "gpu"], cwd=ROOT, check=True)
    began, found, here = time.monotonic(), read(args.json), machine()
    own = {
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else here.pop("cpu"),
        "versions": here,
    }
    shown = []
    for name in names or ROWS:
        if ROWS[name].of_model and args.model is None:
            print(f"{name}: left out, give it a --model", file=sys.stderr)
            continue
        for precision in args.precision or precisions(device):
            if precision not in ROWS[name].precisions:
                continue
            what = {"row": name, "precision": precision, "pairs": args.pairs} | own
            rows = [row for row in found if what.items() <= row.items()]
            if not rows:
                if args.budget_s is not None and time.monotonic() - began > args.budget_s:
                    print(f"{name}, {precision}: not begun, the budget is spent", file=sys.stderr)
                    continue
                rows = [what | row | when() for row in measured(args, name, precision, device)]
                keep(args.json, rows)
            shown += rows
    if shown:
        versions = ", ".join([*here.values(), f"Python {platform.python_version()}"])
        print("\n".join([f"{own['machine']}, {versions}", "", *table(shown)]))
    if args.png is not None and shown:
        picture(shown, args.png)


def device_of(name: str) -> torch.device:
    """Raises ConfigError for a GPU that is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("gpu: there is none that torch sees; leave it out for rows on the CPU")
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def precisions(device: torch.device) -> list[str]:
    """Those that the device computes natively."""
    native = Setting(device, "auto", None, Path()).runtime.precision
    return ["fp32"] if native == "fp32" else ["fp32", "bf16"]


def read(file: Path | None) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file is not None and file.exists() else []


def keep(file: Path | None, rows: list[dict[str, Any]]) -> None:
    if file is not None:
        with file.open("a") as lines:
            lines.writelines(json.dumps(row) + "\n" for row in rows)


# -- measuring ------------------------------------------------------------------------------------------


def measured(args: Args, name: str, precision: str, device: torch.device) -> list[dict[str, Any]]:
    """A line of each side."""
    together = in_process(args, name, precision, device, "all")
    lines = []
    ours = together["sides"][OURS]
    for side, own in together["sides"].items():
        alone = in_process(args, name, precision, device, side)["sides"][side]
        speed = [count / seconds for count, seconds in own["turns"]]
        line = {"side": side, "unit": ROWS[name].unit, f"{ROWS[name].unit}_per_s": statistics.median(speed)}
        line |= {"low": quantile(speed, 0.1), "high": quantile(speed, 0.9), "turns": len(speed)}
        if side != OURS:
            pairs = zip(ours["turns"], speed, strict=True)
            ratios = [count / seconds / theirs for (count, seconds), theirs in pairs]
            line |= {"ratio": statistics.median(ratios), "ratio_low": quantile(ratios, 0.1)}
            line |= {"ratio_high": quantile(ratios, 0.9)}
        if together["flops"] is not None:
            line["of_matmul_peak"] = together["flops"] * line[f"{ROWS[name].unit}_per_s"] / together["peak_flops"]
        lines.append(line | {"peak_mb": alone["peak_mb"], "first_s": alone["first_s"], "load": together["load"]})
    return lines


def in_process(args: Args, name: str, precision: str, device: torch.device, side: str) -> dict[str, Any]:
    """What `turns` finds in a process of its own."""
    print(f"{name}, {precision}: {'sides in turn' if side == 'all' else f'{side} alone'}", file=sys.stderr, flush=True)
    flags = [f"--precision={precision}", f"--device={device}", f"--turns-of={side}", f"--pairs={args.pairs}"]
    flags += [f"--cache-dir={args.cache_dir}"] + ([] if args.model is None else [f"--model={args.model}"])
    command = [sys.executable, "-m", "benchmarks", name, *flags]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def turns(args: Args) -> dict[str, Any]:
    """Of the sides of one row: (count, seconds) of each turn, the seconds of the first one, memory at its peak."""
    (name,), (precision,) = args.rows, args.precision
    row, setting = ROWS[name], Setting(device_of(args.device), precision, args.model, args.cache_dir.expanduser())
    makers = row.make(setting)
    chosen = {side: make() for side, make in makers.items() if args.turns_of in ("all", side)}
    firsts = {side: once(run, setting) for side, run in chosen.items()}
    check_agreement(row, precision, {side: done for side, (done, _) in firsts.items()})
    found: dict[str, Any] = {side: {"first_s": seconds, "turns": []} for side, (_, seconds) in firsts.items()}
    began = time.monotonic()
    for turn in range(args.pairs if args.turns_of == "all" else ALONE):
        if turn >= ALONE and time.monotonic() - began > MOST_S:
            break
        for side, run in chosen.items():
            done, seconds = once(run, setting)
            found[side]["turns"].append((done.count, seconds))
    for own in found.values():
        own["peak_mb"] = memory_mb(setting.device)
    flops = row.flops(setting) if row.flops else None
    peak = matmul_peak(setting.device, setting.runtime.dtype, 3.0) if flops else None
    return {"sides": found, "flops": flops, "peak_flops": peak, "load": load()}


def once(run: Side, setting: Setting) -> tuple[Done, float]:
    """(what it did, seconds)."""
    if setting.device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    done = run()
    if setting.device.type == "cuda":
        torch.cuda.synchronize()
    return done, time.perf_counter() - began


def check_agreement(row: Row, precision: str, firsts: dict[str, Done]) -> None:
    """A side that does something else is no side. Raises AssertionError."""
    counts = {done.count for done in firsts.values()}
    values = [done.value for done in firsts.values()]
    assert len(counts) == 1, firsts
    assert not row.agree or max(values) - min(values) <= AGREE[precision] * abs(values[0]), firsts


def memory_mb(device: torch.device) -> float:
    """Of the process, or of the GPU, at its peak."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def load() -> float:
    """How many processes wanted to run in the last minute."""
    return os.getloadavg()[0]


def quantile(values: Sequence[float], q: float) -> float:
    return float(np.quantile(values, q))


# -- telling --------------------------------------------------------------------------------------------


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown: a line a side."""
    heads = (
        "row",
        "precision",
        "side",
        "a second",
        "minilm by it",
        "10 to 90 %",
        "of matmul peak",
        "peak MB",
        "first s",
    )
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        ratio = "" if "ratio" not in row else f"{row['ratio']:.2f}"
        ends = "" if "ratio" not in row else f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}"
        share = f"{row['of_matmul_peak']:.0%}" if "of_matmul_peak" in row else ""
        speed = f"{row[row['unit'] + '_per_s']:,.0f} {row['unit']}"
        cells = [row["row"], row["precision"], row["side"], speed, ratio, ends, share]
        lines.append(f"| {' | '.join(cells)} | {row['peak_mb']:,.0f} | {row['first_s']:.1f} |")
    return lines


def picture(rows: list[dict[str, Any]], file: Path) -> None:
    """How many times as fast as each other side, with 10 to 90 % of the turns."""
    figure = library("matplotlib.figure").Figure(dpi=120, layout="constrained")
    shown = [row for row in rows if "ratio" in row]
    figure.set_size_inches(8, 1 + 0.35 * len(shown))
    axes, place = figure.subplots(), range(len(shown))
    ratios = np.array([row["ratio"] for row in shown])
    ends = np.array([(row["ratio"] - row["ratio_low"], row["ratio_high"] - row["ratio"]) for row in shown]).T
    axes.barh(place, ratios, xerr=ends, color="#4477cc", ecolor="#222222", capsize=2)
    axes.set_yticks(place, [f"{row['row']}, {row['precision']}: {row['side']}" for row in shown])
    axes.axvline(1, color="#555555", linewidth=1)
    axes.invert_yaxis()
    axes.set_xlabel("times as fast")
    figure.savefig(file)


if __name__ == "__main__":
    cli.run(main, Args)

"""minilm beside transformers and sentence-transformers, on this machine.

    python -m benchmarks --model DIR                          # everything that fits the machine, the most telling first
    python -m benchmarks pretrain-128 --json rows.jsonl       # one row, kept: what is there is not measured again
    python -m benchmarks gpu --budget-s 540                   # tests that need a GPU, then all rows on it

A row's sides take turns in a process of their own, forth and back (A B, B A, A B), after each has run all of its
batches once and all have come to the same numbers. A turn is as many calls as make a second; a ratio is that of the
turns of one round. Then each side runs alone, for its peak memory and the time until its first call is done, from
loading on: for the other sides with their libraries' imports, for minilm without. Rows are added to --json as they
come; of another commit, model or version they are measured anew.
"""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro

from benchmarks.machine import ROOT, busy, machine, weights_of, when
from benchmarks.rows import ROWS
from benchmarks.side import Done, Row, Setting, Side
from minilm import cli
from minilm.errors import ConfigError, did_you_mean, library
from minilm.train.cost import matmul_peak

OURS = "minilm"
AGREE = {"fp32": 1e-5, "bf16": 3e-2}  # of the largest of the numbers that sides come to; on a GPU fp32 is TF32
LEAST_S = 1.0  # of a turn
ALONE = 2  # turns, and the least of a row's
BUSY = 0.5  # of a core, taken by others: a machine so busy measures nothing
PEAK_S = 0.5  # for the fastest product of matrices, after each turn
LIBRARIES = ("torch", "transformers", "sentence-transformers", "tokenizers")
PRECISIONS = ("fp32", "bf16")
RANGES = {"budget_s": (1, 10**6), "row_s": (1, 10**6), "pairs": (1, 1000), "texts": (1, 10**6)}


@dataclass(frozen=True)
class Args:
    """minilm side by side with the reference, row after row."""

    rows: tyro.conf.Positional[tuple[str, ...]] = ()
    """Which; all that fit the machine, if none is named. `gpu`: all on a GPU, after its tests."""
    model: Path | None = None
    """A directory that all libraries open, for rows of texts."""
    precision: Literal["fp32", "bf16"] | None = None
    """All that the machine computes natively, if not given."""
    pairs: int = 7
    """Turns of each side."""
    budget_s: float | None = None
    """Begin no row after so many seconds."""
    row_s: float = 600.0
    """Begin no turn of a row after so many seconds of its turns, but the second of each side."""
    json: Path | None = None
    """A .jsonl: each side of each row is a line of it, and what it holds is not measured again."""
    png: Path | None = None
    """A picture of the ratios."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    cache_dir: Path = Path("~/.cache/minilm")
    texts: int | None = None
    """Of a pass, of rows of texts: 400 on a CPU and 20,000 on a GPU, if not given."""
    turns_of: str | None = None
    """For itself: print as JSON what the named side, or "all" in turn, takes."""


def main(args: Args) -> int:
    began = time.monotonic()
    cli.check_ranges(args, RANGES)
    if args.turns_of is not None:
        print(json.dumps(turns(args)))
        return 0
    gpu, names = "gpu" in args.rows, [*dict.fromkeys(name for name in args.rows if name != "gpu")]
    if strange := [name for name in names if name not in ROWS]:
        hint = did_you_mean(strange[0], ROWS) or f"; there are {', '.join(ROWS)}"
        raise ConfigError(f"{strange[0]}: no such row{hint}")
    if gpu and args.device == "cpu":
        raise ConfigError("gpu, --device cpu: give one of them")
    for flag, file in (("--json", args.json), ("--png", args.png)):
        if file is not None and (not file.parent.is_dir() or file.is_dir()):
            raise ConfigError(f"{flag} {file}: give a file in a directory that is there")
    if args.png is not None:
        library("matplotlib.figure")
    args = replace(args, model=args.model and args.model.resolve(), cache_dir=args.cache_dir.expanduser().resolve())
    device, failed = device_of("cuda" if gpu else args.device), []
    found, shown, longest = read(args.json), [], 0.0
    if gpu and (why := gpu_tests(args, device, found)):
        failed.append(why)
    for name, precision in wanted(args, names or [*ROWS], device):
        what = about(args, name, precision, device)
        if rows := known(found, what):
            shown += rows
            continue
        start = time.monotonic()
        if args.budget_s is not None and start - began + longest > args.budget_s:
            print(f"{name}, {precision}: not begun, the budget is spent", file=sys.stderr)
            continue
        if (load := busy()) > BUSY:
            print(f"the machine is busy (others take {load:.1f} cores): figures may be worth nothing", file=sys.stderr)
        try:
            rows = measured(args, name, precision, device)
        except subprocess.CalledProcessError:
            failed.append(f"{name}, {precision}")
            continue
        rows = [what | row | {"date": when()["date"], "load": load} for row in rows]
        keep(args.json, rows)
        shown, longest = shown + rows, max(longest, time.monotonic() - start)
    if shown:
        print("\n".join(told(shown)))
    if args.png is not None and shown:
        picture(shown, args.png)
    for each in failed:
        print(f"failed: {each}", file=sys.stderr)
    return 1 if failed else 0


def gpu_tests(args: Args, device: torch.device, found: list[dict[str, Any]]) -> str | None:
    """Run what needs a GPU, if it has not passed before by --json; what failed, if anything."""
    what = {"tests": "gpu", "machine": torch.cuda.get_device_name(device)} | {"commit": when()["commit"]}
    if known(found, what):
        return None
    command = [sys.executable, "-m", "pytest", "-q", "tests/train/test_gpu.py"]
    try:
        if subprocess.run(command, cwd=ROOT, timeout=args.budget_s).returncode:
            return "the tests that need a GPU"
    except subprocess.TimeoutExpired:
        return f"the tests that need a GPU: not done in {args.budget_s:.0f} s"
    keep(args.json, [what | {"date": when()["date"]}])
    return None


def wanted(args: Args, names: Sequence[str], device: torch.device) -> Iterator[tuple[str, str]]:
    """The rows that can be measured, each in its precisions; of the others it is said why not."""
    for name in names:
        if ROWS[name].of_model and args.model is None:
            print(f"{name}: left out, give it a --model", file=sys.stderr)
            continue
        for precision in [args.precision] if args.precision else precisions(device):
            if precision in ROWS[name].precisions:
                yield name, precision


def about(args: Args, name: str, precision: str, device: torch.device) -> dict[str, Any]:
    """What a figure is of: two that agree in all of this are the same."""
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else machine()["cpu"]
    versions = {each: version_of(each) for each in LIBRARIES} | {"python": platform.python_version()}
    weights = weights_of(args.model) if ROWS[name].of_model else None
    what = {"row": name, "precision": precision, "pairs": args.pairs, "weights": weights, "machine": where}
    what |= {"texts": args.texts} if ROWS[name].of_model else {}
    return what | {"threads": torch.get_num_threads(), "versions": versions, "commit": when()["commit"]}


def version_of(library: str) -> str | None:
    """None: it is not there."""
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def device_of(name: str) -> torch.device:
    """Raises ConfigError for a GPU that is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("gpu: there is none that torch sees; leave it out for rows on the CPU")
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def precisions(device: torch.device) -> tuple[str, ...]:
    """Those that the device computes natively."""
    return PRECISIONS if Setting(device, "auto", None, Path()).runtime.precision == "bf16" else ("fp32",)


def read(file: Path | None) -> list[dict[str, Any]]:
    """Rows that were kept; a line that is not whole is none."""
    found = []
    for line in file.read_text().splitlines() if file is not None and file.exists() else []:
        with suppress(ValueError):
            found.append(json.loads(line))
    return found


def known(found: list[dict[str, Any]], what: dict[str, Any]) -> list[dict[str, Any]]:
    """Those of `found` that are of the same; none are, where the code is not committed."""
    is_committed = not what["commit"].endswith("-dirty")
    return [row for row in found if is_committed and what.items() <= row.items()]


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
        if "flops" in together:  # useful ones: what the other sides compute besides is not counted
            line["of_matmul_peak"] = together["flops"] * line[f"{ROWS[name].unit}_per_s"] / together["peak_flops"]
        lines.append(line | {"peak_mb": alone["peak_mb"], "first_s": alone["first_s"]})
    return lines


def in_process(args: Args, name: str, precision: str, device: torch.device, side: str) -> dict[str, Any]:
    """What `turns` finds in a process of its own."""
    print(f"{name}, {precision}: {'sides in turn' if side == 'all' else f'{side} alone'}", file=sys.stderr, flush=True)
    flags = [f"--precision={precision}", f"--device={device}", f"--turns-of={side}", f"--pairs={args.pairs}"]
    flags += [f"--row-s={args.row_s}", f"--cache-dir={args.cache_dir}"]
    flags += [] if args.model is None else [f"--model={args.model}"]
    flags += [] if args.texts is None else [f"--texts={args.texts}"]
    command = [sys.executable, "-m", "benchmarks", name, *flags]
    with tempfile.TemporaryDirectory() as compiled:  # so that each one compiles
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": compiled}
        done = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def turns(args: Args) -> dict[str, Any]:
    """Of the sides of one row: (count, seconds) of each turn, the seconds until the first call is done, memory at its
    peak."""
    (name,), precision = args.rows, args.precision
    row, cache_dir = ROWS[name], args.cache_dir.expanduser()
    setting = Setting(device_of(args.device), precision, args.model, cache_dir, args.texts)
    if args.turns_of in ("all", OURS) or setting.device.type == "cuda":
        _ = setting.runtime  # sets threads and memory for all sides alike; alone on a CPU another has memory as ever
    makers = row.make(setting)
    chosen: dict[str, Side] = {}
    found: dict[str, Any] = {}
    firsts: dict[str, Done] = {}
    for side, make in makers.items():
        if args.turns_of in ("all", side):
            began = time.perf_counter()
            chosen[side] = make()
            firsts[side] = chosen[side]()
            wait(setting)
            found[side] = {"first_s": time.perf_counter() - began, "turns": []}
    check_agreement(row, AGREE[precision if setting.device.type == "cpu" else "bf16"], firsts)
    began, peaks = time.monotonic(), []
    for number in range(args.pairs if args.turns_of == "all" else ALONE):
        if number >= ALONE and time.monotonic() - began > args.row_s:
            break
        for side in [*chosen][:: 1 if number % 2 == 0 else -1]:
            found[side]["turns"].append(turn(chosen[side], setting))
        if row.flops and args.turns_of == "all":
            peaks.append(matmul_peak(setting.device, setting.dtype, PEAK_S))
    for own in found.values():
        own["peak_mb"] = memory_mb(setting.device)
    told = {"flops": row.flops(setting), "peak_flops": statistics.median(peaks)} if peaks else {}
    return {"sides": found} | told


def turn(run: Side, setting: Setting) -> tuple[int, float]:
    """(count, seconds) of as many calls as make LEAST_S."""
    wait(setting)
    began, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() - began < LEAST_S:
        count += run().count
        wait(setting)
    return count, time.perf_counter() - began


def wait(setting: Setting) -> None:
    if setting.device.type == "cuda":
        torch.cuda.synchronize()


def check_agreement(row: Row, tolerance: float, firsts: dict[str, Done]) -> None:
    """A side that does something else is no side. Raises AssertionError."""
    first, *others = firsts.values()
    for side, other in zip([*firsts][1:], others, strict=True):
        assert first.count == other.count, (side, first.count, other.count)
        a, b = (done.values.double().cpu() for done in (first, other))
        assert a.shape == b.shape, (side, a.shape, b.shape)
        off = float((a - b).abs().max() / a.abs().max().clamp(min=1e-30))
        assert not row.agree or off <= tolerance, (side, off, a.flatten()[:8], b.flatten()[:8])


def memory_mb(device: torch.device) -> float:
    """Of the process, or of the GPU, at its peak."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def quantile(values: Sequence[float], q: float) -> float:
    return float(np.quantile(values, q))


# -- telling --------------------------------------------------------------------------------------------


def told(rows: list[dict[str, Any]]) -> list[str]:
    """Where and of what, and Markdown: a line a side."""
    first = rows[0]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items() if version)
    where = f"{first['machine']}, {first['threads']} threads, {versions}; {first['date']}, commit {first['commit']}"
    heads = ("row", "precision", "side", "a second", "minilm by it", "10 to 90 % of turns", "useful, of matmul peak")
    lines = [where, "", f"| {' | '.join((*heads, 'peak MB', 'first s'))} |", "|---" * 9 + "|"]
    for row in rows:
        ratio, ends = "", f"{row['turns']} turns"
        if "ratio" in row:
            ratio, ends = f"{row['ratio']:.2f}", f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}"
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

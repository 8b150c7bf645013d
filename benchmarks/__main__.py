"""minilm beside transformers and sentence-transformers, on this machine.

    python -m benchmarks                                      # everything that fits the machine, the most telling first
    python -m benchmarks pretrain-128 --json rows.jsonl       # one row, kept: what is there is not measured again
    python -m benchmarks gpu --budget-s 540                   # tests that need a GPU, then all rows on it

Each side of a row is a process of its own. They take turns, forth and back (A B, B A, A B), after each has run all of
its batches once and all have come to the same numbers. A turn is as many calls as make four seconds, or one on a GPU; a
ratio is that of the turns of one round. The time until the first call is done is from loading on: for minilm without
imports, for the other sides with those of their libraries, and in training with the making of minilm's weights, which
they have, too. A side that fails, does not answer in ten minutes or comes to other numbers is left out and said. Rows
are added to --json as they come; of another commit, model or version they are measured anew, and last of all, where a
side failed. Without --model rows of texts have a random one of all-MiniLM-L6-v2's shape.
"""

import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from benchmarks.kept import keep, read
from benchmarks.machine import ROOT, busy, cores, weights_of, when
from benchmarks.measure import FEWEST, SideError, answer_orders, measured
from benchmarks.rows import ROWS
from benchmarks.side import Setting
from benchmarks.table import picture, told
from benchmarks.texts import stand_in
from minilm import cli
from minilm.errors import ConfigError, did_you_mean, library

BUSY = 0.5  # of a core, taken by others: a machine so busy measures nothing
OF_TESTS = 2 / 3  # of the budget, at most
FIRST_S = 180.0  # that a row on a GPU takes, with its compiling, before one has been measured
SAID_S = 20.0  # for tests that are interrupted to say what has failed
STARTED_S = 10.0  # until the first row begins, beside the tests
LIBRARIES = ("torch", "transformers", "sentence-transformers", "tokenizers", "accelerate")
PRECISIONS = ("fp32", "bf16")
MALLOC = ("TRIM_THRESHOLD_", "MMAP_THRESHOLD_", "MMAP_MAX_", "TOP_PAD_", "ARENA_MAX")
ALLOCATOR = ("GLIBC_TUNABLES", "LD_PRELOAD", *(f"MALLOC_{name}" for name in MALLOC))  # variables of the environment
RANGES = {"budget_s": (1, 10**6), "row_s": (1, 10**6), "pairs": (1, 1000), "texts": (1, 10**6)}


@dataclass(frozen=True)
class Args:
    """minilm side by side with the reference, row after row."""

    rows: tyro.conf.Positional[tuple[str, ...]] = ()
    """Of pretrain-128, pretrain-128-dropout, pretrain-natural, pretrain-512, causal-1024, finetune,
    finetune-dropout, finetune-grouped, embed-mixed, embed-short, embed-long, latency, tokenise, load and load-256; all
    that fit the machine, if none is named. gpu: all on a GPU, after its tests."""
    model: Path | None = None
    """A directory that all libraries open, for rows of texts; a random model like all-MiniLM-L6-v2, if not given."""
    precision: Literal["fp32", "bf16"] | None = None
    """If not given: bf16 on a GPU that has it, on a CPU all that it computes natively."""
    pairs: int = 7
    """Turns of each side."""
    budget_s: float | None = None
    """Begin no row after so many seconds, nor a turn but the second of each side; `gpu`'s tests may take two thirds."""
    row_s: float = 600.0
    """Begin no turn of a row after so many seconds of its turns, but the second of each side."""
    json: Path | None = None
    """A .jsonl: each side of each row is a line of it, and what it holds is not measured again."""
    png: Path | None = None
    """A picture of the ratios; beside --json, if not given."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    cache_dir: Path = Path("~/.cache/minilm")
    texts: int | None = None
    """Of a pass, of rows of texts: 400 on a CPU and 20,000 on a GPU, if not given."""
    side: str | None = None
    """For itself: be this side's process."""


def main(args: Args) -> int:
    began = time.monotonic()
    cli.check_ranges(args, RANGES)
    if args.side is not None:
        return answer_orders(args.rows[0], setting_of(args, args.precision, device_of(args.device)), args.side)
    gpu, names = "gpu" in args.rows, [*dict.fromkeys(name for name in args.rows if name != "gpu")]
    if strange := [name for name in names if name not in ROWS]:
        hint = did_you_mean(strange[0], ROWS) or f"; there are {', '.join(ROWS)}"
        raise ConfigError(f"{strange[0]}: no such row{hint}")
    if gpu and args.device == "cpu":
        raise ConfigError("gpu, --device cpu: give one of them")
    png = args.png or (args.json and args.json.with_suffix(".png"))
    for flag, file in (("--json", args.json), ("--png", png)):
        if file is not None and (not file.parent.is_dir() or file.is_dir()):
            raise ConfigError(f"{flag} {file}: give a file in a directory that is there")
    if png is not None and png == args.json:
        raise ConfigError(f"--json {args.json}: is where the picture goes; give a name that ends in .jsonl")
    if args.model is not None and not (args.model / "model.safetensors").is_file():
        raise ConfigError(f"--model {args.model}: holds no model.safetensors; give the directory of a model")
    if args.png is not None:
        library("matplotlib.figure")
    elif png and not find_spec("matplotlib"):
        print("no picture: matplotlib is not installed", file=sys.stderr)
        png = None
    device, failed = device_of("cuda" if gpu else args.device), []
    found, shown, longest = read(args.json), [], FIRST_S if gpu else 0.0
    if gpu and (why := gpu_tests(args, device, found)):
        failed.append(why)
    names = names or [*ROWS]
    failed_before = {(row.get("row"), row.get("precision")) for row in found if "failed" in row}  # others come first
    for name, precision in sorted(wanted(args, names, device), key=failed_before.__contains__):
        where = torch.device("cpu") if ROWS[name].on_cpu else device
        if args.model is None and ROWS[name].of_model:
            args = replace(args, model=stand_in(args.cache_dir.expanduser()))
            print("no --model: vectors are those of a random one of all-MiniLM-L6-v2's shape", file=sys.stderr)
        what = about(args, name, precision, where)
        if rows := known(found, what, args.row_s):
            shown += rows
            continue
        start, row_s = time.monotonic(), args.row_s
        if args.budget_s is not None:
            row_s = min(row_s, args.budget_s - (start - began))
            if row_s < longest:
                print(f"{name}, {precision}: not begun, the budget is spent", file=sys.stderr)
                continue
        if (load := busy()) > BUSY:
            print(f"the machine is busy (others take {load:.1f} cores): figures may be worth nothing", file=sys.stderr)
        rows, is_first = [], not any(what.items() <= row.items() and "turns" in row for row in found)
        try:
            for number, lines in enumerate(measured(name, setting_of(args, precision, where), args.pairs, row_s)):
                rows = kept_of(what, lines, load, row_s)
                if number == 0 and is_first and args.pairs > FEWEST:  # for this process may be killed
                    keep(args.json, [row | {"row_s": 0.0} for row in rows])
        except SideError as error:
            failed.append(f"{name}, {precision}, {error}")
            continue
        finally:
            longest = max(longest, time.monotonic() - start)
        keep(args.json, rows)
        shown += rows
    failed += [f"{row['row']}, {row['precision']}, {row['side']}: {row['failed']}" for row in shown if "failed" in row]
    if shown:
        print("\n".join(told(shown)))
    if shown and png:
        picture(of_the_same(read(args.json), shown), png)
    for each in failed:
        print(f"failed: {each}", file=sys.stderr)
    return 1 if failed else 0


def kept_of(what: dict[str, Any], lines: list[dict[str, Any]], load: float, row_s: float) -> list[dict[str, Any]]:
    """Lines of a row as they are kept."""
    now = when()
    if now["commit"] != what["commit"]:  # changed meanwhile: nobody knows what ran
        what = what | {"commit": f"{what['commit'].removesuffix('-dirty')}-dirty"}
    beside = {"date": now["date"], "load": load, "row_s": row_s, "sides": len(lines)}
    return [what | line | beside for line in lines]


def gpu_tests(args: Args, device: torch.device, found: list[dict[str, Any]]) -> str | None:
    """Run what needs a GPU, if it has not passed before by --json; what failed, if anything."""
    what = {"tests": "gpu", "machine": torch.cuda.get_device_name(device)} | {"commit": when()["commit"]}
    what |= {"torch": torch.__version__}
    if known(found, what):
        return None
    command = [sys.executable, "-m", "pytest", "-v", "--tb=short", "tests/train/test_gpu.py"]
    limit_s = args.budget_s and OF_TESTS * args.budget_s
    if limit_s and (others := args.budget_s - FIRST_S - SAID_S - STARTED_S) > 0:
        limit_s = min(limit_s, others)  # so that a row begins after tests that are not done
    for row in found if not what["commit"].endswith("-dirty") else ():  # else they would take that much of each call
        if limit_s and what.items() <= row.items() and row.get("after_s", 0) >= limit_s:
            return f"{row['failed']}: not begun again; run {' '.join(command[1:])} by itself, or give more time"
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True) as process:
        try:
            if process.wait(limit_s):
                return "the tests that need a GPU"
        except subprocess.TimeoutExpired as late:
            why = f"the tests that need a GPU: not done in {late.timeout:.0f} s"
            keep(args.json, [what | {"date": when()["date"], "failed": why, "after_s": late.timeout}])
            return why
        finally:
            with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, signal.SIGINT)  # pytest then says what has failed
                process.wait(SAID_S)
            with suppress(ProcessLookupError):  # its own processes, too, which would share the GPU with the rows
                os.killpg(process.pid, signal.SIGKILL)
    keep(args.json, [what | {"date": when()["date"]}])
    return None


def wanted(args: Args, names: Sequence[str], device: torch.device) -> Iterator[tuple[str, str]]:
    """The rows that can be measured, each in its precisions; of the others it is said why not."""
    for name in names:
        for precision in [args.precision] if args.precision else precisions(device):
            if precision in ROWS[name].precisions:
                yield name, precision
            elif args.precision:
                print(f"{name}: left out, it is measured in {ROWS[name].precisions[0]} alone", file=sys.stderr)


def about(args: Args, name: str, precision: str, device: torch.device) -> dict[str, Any]:
    """What a figure is of: two that agree in all of this are the same."""
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else cores()
    versions = {each: version_of(each) for each in LIBRARIES} | {"python": platform.python_version()}
    weights = weights_of(args.model) if ROWS[name].of_model else None  # also says whether it is a random one
    what = {"row": name, "precision": precision, "pairs": args.pairs, "weights": weights, "machine": where}
    what |= {"texts": args.texts} if ROWS[name].of_model else {}
    what |= {name.lower(): os.environ.get(name) for name in ALLOCATOR}
    return what | {"threads": torch.get_num_threads(), "versions": versions, "commit": when()["commit"]}


def setting_of(args: Args, precision: str, device: torch.device) -> Setting:
    cache_dir = args.cache_dir.expanduser().resolve()
    return Setting(device, precision, args.model and args.model.resolve(), cache_dir, args.texts)


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
    """Those that the device computes natively; on a GPU with bf16 that alone."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return ("bf16",)
    return PRECISIONS if Setting(device, "auto", None, Path()).runtime.precision == "bf16" else ("fp32",)


def of_the_same(kept: list[dict[str, Any]], shown: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """These lines, and before them the last of each other side of each row that was measured as they were."""
    same = ("machine", "threads", "versions", "commit", "pairs", *(name.lower() for name in ALLOCATOR))
    weights = {row["weights"] for row in shown if row["weights"]}

    def is_same(row: dict[str, Any]) -> bool:
        is_alike = any(all(row.get(key) == own.get(key) for key in same) for own in shown)
        return is_alike and not row["commit"].endswith("-dirty") and (not row["weights"] or {row["weights"]} >= weights)

    rows = [row for row in kept if "side" in row and is_same(row)]
    return [*{(row["row"], row["precision"], row["side"]): row for row in [*rows, *shown]}.values()]


def known(found: list[dict[str, Any]], what: dict[str, Any], row_s: float = 0.0) -> list[dict[str, Any]]:
    """The lines of `found` that are of the same, the last of each side; none, where a side is missing or failed, where
    `row_s` would be time for more turns, or where the code is not committed."""
    last = {row.get("side"): row for row in found if what.items() <= row.items()}
    is_known = not what["commit"].endswith("-dirty") and not any("failed" in row for row in last.values())
    is_known &= all(row.get("sides", 1) == len(last) for row in last.values())
    is_known &= all(row["turns"] == row["pairs"] or row["row_s"] >= row_s for row in last.values() if "turns" in row)
    return [*last.values()] if is_known else []


if __name__ == "__main__":
    cli.run(main, Args)

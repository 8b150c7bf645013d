"""A row's sides take turns, each in a process of its own: as programs that have nothing in common but the machine."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from benchmarks.machine import ROOT, clock_mhz, copy_peak
from benchmarks.rows import ROWS
from benchmarks.side import COMPARED, Done, Row, Setting, Side
from minilm.machine.memory import peak_memory_mb
from minilm.train.cost import matmul_peak

OURS = "minilm"
AGREE = {"fp32": 1e-5, "bf16": 2e-2}  # of the norm of a row of the numbers that sides come to
VECTORS = 5e-2  # the same of vectors, where one of the sides is in bf16: the worst of 20,000 texts is 0.03 off
LEAST_S = {"cpu": 4.0, "cuda": 1.0}  # of a turn: of a shorter one the machine's ups and downs are most of what differs
FEWEST = 2  # turns
PEAK_S = 0.5  # for the fastest product of matrices, and as much for the fastest copy, after each round
PATIENCE_S = 10.0  # for a process to end
LONGEST_S = 600.0  # for an answer


class SideError(Exception):
    """Ours cannot be measured."""


def measured(name: str, setting: Setting, pairs: int, row_s: float) -> Iterator[list[dict[str, Any]]]:
    """A line of each side, after FEWEST turns of each, and in the end; of another than ours that fails, or comes to
    other numbers, it holds that. Raises SideError where ours does."""
    row, peaks, copies, clocks, began = ROWS[name], [], [], [], time.monotonic()
    if not row.of_model:
        _ = setting.runtime  # for the peak of products: TF32 on a GPU
    with ExitStack() as stack:
        sides: list[Process] = []
        for side in row.make(setting):
            sides.append(stack.enter_context(Process(name, setting, side)))
            sides[-1].begin(row, sides[0])
        for number in range(pairs):
            if number >= FEWEST and time.monotonic() - began > row_s:
                break
            for process in sides[:: 1 if number % 2 == 0 else -1]:
                process.turn()
                clocks += [clock] if (clock := clock_mhz(setting.device)) else []
            if row.least:
                peaks.append(matmul_peak(setting.device, setting.dtype, PEAK_S))
                copies.append(copy_peak(setting.device, PEAK_S))
                free(setting)
            if number + 1 == FEWEST < pairs:
                yield _lines(row, setting, sides, peaks, copies, clocks)
        yield _lines(row, setting, sides, peaks, copies, clocks)


def _lines(
    row: Row,
    setting: Setting,
    sides: Sequence["Process"],
    peaks: Sequence[float],
    copies: Sequence[float],
    clocks: Sequence[float],
) -> list[dict[str, Any]]:
    """The line of each side, with what share of the limit it is."""
    ours = [process for process in sides if process.side.startswith(OURS) and process.failed is None]
    clock = statistics.median(clocks) if clocks else None
    lines = [process.line(row, ours) | {"clock_mhz": clock} for process in sides]
    if row.least:
        least, peak, copied = row.least(setting), statistics.median(peaks), statistics.median(copies)
        for line in (each for each in lines if "failed" not in each):
            speed = line[f"{row.unit}_per_s"]
            line |= {"tokens_per_s": least.tokens * speed, "matmul_peak": peak, "copy_peak": copied}
            line["of_matmul_peak"] = least.flops * speed / peak
            line["of_limit"] = line["of_matmul_peak"] + least.bytes * speed / copied
    return lines


class Process:
    """A side's own, which does what it is asked for, as `serve` has it. Where that fails, it is asked no more."""

    def __init__(self, name: str, setting: Setting, side: str) -> None:
        self.setting, self.side = setting, side
        self.failed: str | None = None
        self.speeds: list[float] = []
        print(f"{name}, {setting.precision}: {side}", file=sys.stderr, flush=True)
        flags = [f"--precision={setting.precision}", f"--device={setting.device.type}", f"--side={side}"]
        flags += [f"--cache-dir={setting.cache_dir}"]
        flags += [] if setting.model is None else [f"--model={setting.model}"]
        flags += [] if setting.texts is None else [f"--texts={setting.texts}"]
        self.scratch = tempfile.TemporaryDirectory()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks", name, *flags],
            cwd=ROOT,
            env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": f"{self.scratch.name}/compiled"},  # so that each one compiles
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self.scratch.cleanup()

    def end(self) -> int:
        """Its status."""
        with suppress(BrokenPipeError):  # what is left to write to one that has ended
            self.process.stdin.close()
        try:
            return self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def ask(self, order: str) -> Any:
        """The answer; None, if it failed, or has failed before. Raises SideError where ours does."""
        if self.failed is not None:
            return None
        answer = self.answer(order)
        if isinstance(answer, dict) and "failed" in answer:
            self.fail(answer["failed"])
            return None
        return answer

    def answer(self, order: str) -> Any:
        end, late = time.monotonic() + LONGEST_S, threading.Timer(LONGEST_S, self.process.kill)
        late.start()
        try:
            with suppress(BrokenPipeError):
                self.process.stdin.write(f"{order}\n")
                self.process.stdin.flush()
            line = self.process.stdout.readline()
        finally:
            late.cancel()
        if line:
            return json.loads(line)
        is_late = time.monotonic() >= end
        return {"failed": f"no answer in {LONGEST_S:g} s" if is_late else f"its process ended with status {self.end()}"}

    def fail(self, why: str) -> None:
        self.failed = why
        self.end()
        if self.side == OURS:
            raise SideError(f"{self.side}: {why}")

    def begin(self, row: Row, ours: "Process") -> None:
        """Its first call, the numbers of which must be ours."""
        file = Path(self.scratch.name) / "values.pt"
        if (answer := self.ask(f"first {file}")) is None:
            return
        self.first_s, self.done = answer["seconds"], Done(answer["count"], torch.load(file))
        if self is not ours and (why := other_numbers(row, self.setting, ours.done, self.done)):
            self.fail(why)

    def turn(self) -> None:
        if (answer := self.ask("turn")) is not None:
            count, seconds = answer
            self.speeds.append(count / seconds)

    def line(self, row: Row, ours: Sequence["Process"]) -> dict[str, Any]:
        """ours: minilm, by which `ratio` is, and its other sides, whose ratios are in `ratios`."""
        peak_mb = self.ask("memory")
        if self.failed is not None:
            return {"side": self.side, "failed": self.failed}
        line = {"side": self.side, "unit": row.unit, f"{row.unit}_per_s": statistics.median(self.speeds)}
        line |= {"low": quantile(self.speeds, 0.1), "high": quantile(self.speeds, 0.9), "turns": len(self.speeds)}
        by = {}
        for each in ours:
            ratios = [own / theirs for own, theirs in zip(each.speeds, self.speeds, strict=True)]
            by[each.side] = {"ratio": statistics.median(ratios)}
            by[each.side] |= {"ratio_low": quantile(ratios, 0.1), "ratio_high": quantile(ratios, 0.9)}
        if self.side != OURS:
            line |= by.pop(OURS)
        if by and not self.side.startswith(OURS):
            line["ratios"] = by
        return line | {"peak_mb": peak_mb, "first_s": self.first_s}


def quantile(values: Sequence[float], q: float) -> float:
    return float(np.quantile(values, q))


def other_numbers(row: Row, setting: Setting, ours: Done, other: Done) -> str:
    """What tells that a side does something else; nothing, if it comes to our numbers."""
    if ours.count != other.count:
        return f"{other.count} {row.unit}, and minilm has {ours.count}"
    a, b = (done.values.double() for done in (ours, other))
    if a.shape != b.shape:
        return f"numbers of shape {tuple(b.shape)}, and minilm's are {tuple(a.shape)}"
    if not ours.values.is_floating_point():  # ids
        return f"{other_ids:,} other ids" if (other_ids := int((a != b).sum())) else ""
    off = float(((a - b).norm(dim=1) / a.norm(dim=1).clamp(min=1e-30)).max())
    is_tf32 = setting.device.type == "cuda" and not row.of_model
    near = AGREE["bf16" if is_tf32 else setting.precision]
    if row.of_model and setting.precision == "bf16":
        near = VECTORS
    if row.agree and not off <= near:
        return f"numbers that are off by {off:.1e} of minilm's norm"
    return ""


# -- in a side's process --------------------------------------------------------------------------------


def answer_orders(name: str, setting: Setting, side: str) -> int:
    """Orders are lines of standard input, answers lines of JSON on standard output, where nothing else may write."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        try:
            for answer in serve(name, setting, side, map(str.strip, sys.stdin)):
                print(json.dumps(answer), file=answers, flush=True)
        except Exception as error:
            traceback.print_exc()
            why = traceback.format_exception_only(error)[-1].splitlines()[0]
            print(json.dumps({"failed": why}), file=answers, flush=True)
            return 1
    return 0


def serve(name: str, setting: Setting, side: str, orders: Iterable[str]) -> Iterator[Any]:
    """`first FILE`: the seconds until the first call is done, from making the side on, and the count of it; its numbers
    go into the file. `turn`: (count, seconds). `memory`: at its peak."""
    row = ROWS[name]
    if setting.device.type == "cuda" and not row.of_model:
        _ = setting.runtime  # TF32 for all sides alike in training; vectors are of fp32 as it is, as minilm's commands'
    make = row.make(setting)[side]
    for order in orders:
        match order.split(maxsplit=1):
            case ["first", file]:
                began = time.perf_counter()
                run = make()
                done = [run()]
                wait(setting)
                seconds = time.perf_counter() - began
                done += [run() for _ in range(COMPARED[setting.device.type] - 1)]
                torch.save(torch.cat([each.values for each in done], dim=1).cpu(), file)
                free(setting)
                yield {"seconds": seconds, "count": done[0].count}
            case ["turn"]:
                yield turn(run, setting)
            case ["memory"]:
                yield peak_memory_mb(setting.device)


def turn(run: Side, setting: Setting) -> tuple[int, float]:
    """(count, seconds) of as many calls as make LEAST_S. On a GPU memory is taken again before, by a call more."""
    if setting.device.type == "cuda":
        run()
    wait(setting)
    began, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() - began < LEAST_S[setting.device.type]:
        count += run().count
        wait(setting)
    seconds = time.perf_counter() - began
    free(setting)
    return count, seconds


def wait(setting: Setting) -> None:
    if setting.device.type == "cuda":
        torch.cuda.synchronize()


def free(setting: Setting) -> None:
    """Give back memory of a GPU that is kept though nothing is in it, for other processes."""
    if setting.device.type == "cuda":
        torch.cuda.empty_cache()

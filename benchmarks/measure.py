"""A row's sides, taking turns in a process of their own, and each in one alone."""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.machine import ROOT
from benchmarks.rows import ROWS
from benchmarks.side import Done, Row, Setting, Side
from minilm.train.cost import matmul_peak

OURS = "minilm"
AGREE = {"fp32": 1e-5, "bf16": 3e-2}  # of the largest of the numbers that sides come to; on a GPU fp32 is TF32
LEAST_S = 1.0  # of a turn
ALONE = 2  # turns, and the least of a row's
PEAK_S = 0.5  # for the fastest product of matrices, after each turn


def measured(name: str, setting: Setting, pairs: int, row_s: float) -> list[dict[str, Any]]:
    """A line of each side; of one that failed it holds why. Raises CalledProcessError where ours did."""
    together = in_process(name, setting, "all", pairs, row_s)
    unit, ours, lines = ROWS[name].unit, together["sides"][OURS], []
    for side, own in together["sides"].items():
        try:
            alone = in_process(name, setting, side, pairs, row_s)["sides"][side]
        except subprocess.CalledProcessError:
            if side == OURS:
                raise
            together["failed"][side] = "alone, not in turn"
            continue
        speed = [count / seconds for count, seconds in own["turns"]]
        line = {"side": side, "unit": unit, f"{unit}_per_s": statistics.median(speed)}
        line |= {"low": quantile(speed, 0.1), "high": quantile(speed, 0.9), "turns": len(speed)}
        if side != OURS:
            both = zip(ours["turns"], speed, strict=True)
            ratios = [count / seconds / theirs for (count, seconds), theirs in both]
            line |= {"ratio": statistics.median(ratios), "ratio_low": quantile(ratios, 0.1)}
            line |= {"ratio_high": quantile(ratios, 0.9)}
        if "flops" in together:  # useful ones: what the other sides compute besides is not counted
            line["of_matmul_peak"] = together["flops"] * line[f"{unit}_per_s"] / together["peak_flops"]
        lines.append(line | {"peak_mb": alone["peak_mb"], "first_s": alone["first_s"]})
    return lines + [{"side": side, "failed": why} for side, why in together["failed"].items()]


def in_process(name: str, setting: Setting, side: str, pairs: int, row_s: float) -> dict[str, Any]:
    """What `turns` finds in a process of its own."""
    what = "sides in turn" if side == "all" else f"{side} alone"
    print(f"{name}, {setting.precision}: {what}", file=sys.stderr, flush=True)
    flags = [f"--precision={setting.precision}", f"--device={setting.device.type}", f"--turns-of={side}"]
    flags += [f"--pairs={pairs}", f"--row-s={row_s}", f"--cache-dir={setting.cache_dir}"]
    flags += [] if setting.model is None else [f"--model={setting.model}"]
    flags += [] if setting.texts is None else [f"--texts={setting.texts}"]
    command = [sys.executable, "-m", "benchmarks", name, *flags]
    with tempfile.TemporaryDirectory() as compiled:  # so that each one compiles
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": compiled}
        done = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def turns(name: str, setting: Setting, side: str, pairs: int, row_s: float) -> dict[str, Any]:
    """Of a row's sides, or of one: (count, seconds) of each turn, the seconds until the first call is done, memory at
    its peak. `failed`: of all, why another than ours is left out: it raised, or came to other numbers."""
    row, sides, failed, first = ROWS[name], {}, {}, None
    if side in ("all", OURS) or setting.device.type == "cuda":
        _ = setting.runtime  # sets threads and memory for all sides alike; alone on a CPU another has memory as ever
    chosen: dict[str, Side] = {}
    for each, make in row.make(setting).items():
        if side not in ("all", each):
            continue
        began = time.perf_counter()
        try:
            run = make()
            done = run()
            wait(setting)
            took = time.perf_counter() - began
            check_agreement(row, setting, first or done, done)
        except Exception as error:
            if each in (OURS, side):
                raise
            failed[each] = traceback.format_exception_only(error)[-1].splitlines()[0]
            traceback.print_exc()
            continue
        first = first or done
        chosen[each], sides[each] = run, {"first_s": took, "turns": []}
    began, peaks = time.monotonic(), []
    for number in range(pairs if side == "all" else ALONE):
        if number >= ALONE and time.monotonic() - began > row_s:
            break
        for each in [*chosen][:: 1 if number % 2 == 0 else -1]:
            sides[each]["turns"].append(turn(chosen[each], setting))
        if row.flops and side == "all":
            peaks.append(matmul_peak(setting.device, setting.dtype, PEAK_S))
    for own in sides.values():
        own["peak_mb"] = memory_mb(setting.device)
    told = {"flops": row.flops(setting), "peak_flops": statistics.median(peaks)} if peaks else {}
    return {"sides": sides, "failed": failed} | told


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


def check_agreement(row: Row, setting: Setting, ours: Done, other: Done) -> None:
    """A side that does something else is no side. Raises AssertionError."""
    assert ours.count == other.count, f"{other.count} {row.unit}, and minilm has {ours.count}"
    a, b = (done.values.double().cpu() for done in (ours, other))
    assert a.shape == b.shape, f"numbers of shape {tuple(b.shape)}, and minilm's are {tuple(a.shape)}"
    off = float((a - b).abs().max() / a.abs().max().clamp(min=1e-30))
    tolerance = AGREE[setting.precision if setting.device.type == "cpu" else "bf16"]
    assert not row.agree or off <= tolerance, f"numbers that are off by {off:.1e} of minilm's largest"


def memory_mb(device: torch.device) -> float:
    """Of the process, or of the GPU, at its peak."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def quantile(values: Sequence[float], q: float) -> float:
    return float(np.quantile(values, q))

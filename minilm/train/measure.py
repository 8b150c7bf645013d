"""Time and cost of a run: estimated from a few steps before it, measured after it."""

import copy
import math
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from minilm.batch import Batch
from minilm.checkpoint.model import read_model
from minilm.checkpoint.store import KEPT
from minilm.data.ahead import made_ahead
from minilm.data.loader import Kind, Loader
from minilm.machine.memory import peak_memory_mb
from minilm.machine.ranks import Applied, whole_state
from minilm.machine.runtime import Runtime
from minilm.train.cost import matmul_peak, run_flops
from minilm.train.graphs import shape_of
from minilm.train.job import VERSIONS, Job, train
from minilm.train.log import Log
from minilm.train.loop import Loss, Optimizers, Plan, Step, train_step

WARM_STEPS, TIMED_STEPS = 3, 20


def step_seconds(
    forward: Applied,
    loss: Loss,
    optimizers: Optimizers,
    loader: Loader,
    runtime: Runtime,
    max_norm: float,
    limit_s: float = math.inf,
    on_copy: bool = True,
    take_step: Step = train_step,
    warm_up: int = 0,
) -> dict[Kind, float]:
    """Seconds of a step of each kind, measured in not much more than `limit_s` in all.

    on_copy: train a copy, so that a budget in minutes gives bit for bit the run of that budget in steps. A sharded
    model cannot be copied. take_step: as in `Job`. warm_up: how often a step of each shape is computed before the
    timing, which is neither limited nor counted.
    """
    if on_copy:
        forward, optimizers = copy.deepcopy((forward, optimizers))
    runtime = replace(runtime)  # with a GradScaler of its own
    parallel = runtime.ranks.parallel(forward)
    found: dict[Kind, float] = {}
    for stretch in loader.stretches:
        took: list[float] = []
        own = loader.with_stretches([replace(stretch, steps=WARM_STEPS + TIMED_STEPS)])
        shapes = _of_each_shape(loader.with_stretches([stretch]), own if warm_up > 1 else None) if warm_up else []
        for micro_batches in shapes * warm_up:
            take_step(parallel, loss, optimizers, micro_batches, runtime, max_norm)
        batches = made_ahead(own, 0)
        going = True
        while going:
            began = time.perf_counter()
            nats, _, _ = take_step(parallel, loss, optimizers, next(batches), runtime, max_norm)
            float(nats)  # waits for the device
            took.append(time.perf_counter() - began)
            enough = len(took) >= 2 and sum(took) >= limit_s / len(loader.stretches)
            going = len(took) < WARM_STEPS + TIMED_STEPS and not runtime.ranks.any(enough)
        timed = took[min(WARM_STEPS, len(took) - 1) :]
        found[stretch.kind] = runtime.ranks.total(sum(timed) / len(timed))[0] / runtime.ranks.world
    return found


def _of_each_shape(loader: Loader, timed: Loader | None) -> list[Sequence[Batch]]:
    """One step's micro-batches for each shape of step. Shapes differ by short rows and, for CUDA graphs, by the number
    of documents, for which the steps to be timed are looked through, too, if given."""
    steps, found = {loader.positions(step): step for step in range(min(loader.cycle, loader.steps))}, {}
    those = map(timed.micro_batches, range(timed.steps)) if timed else ()
    for micro_batches in chain(map(loader.micro_batches, steps.values()), those):
        found.setdefault(tuple(map(shape_of, micro_batches)), micro_batches)
    return [*found.values()]


def rehearse(job: Job, plan: Plan, step_s: dict[Kind, float]) -> dict[str, Any]:
    """Estimated cost of the whole run, after one step of each stretch, an evaluation, and a save that is read back, in
    the job's store.

    step_s: seconds of a step of each kind. `seconds` are of training, `total_seconds` with evaluation and saving.
    """
    free = job.runtime.ranks.from_first(lambda: shutil.disk_usage(job.store.out).free)
    stretches = [replace(each, steps=1) for each in job.loader.stretches]
    loader = job.loader.with_stretches(stretches)
    steps = job.loader.steps
    once = replace(plan, steps=len(stretches), evaluate_every=0, save_every=len(stretches))
    seconds = sum(each.steps * step_s[each.kind] for each in job.loader.stretches)
    log = train(replace(job, loader=loader, evaluate_first=False, until=None, may_miss_saves=True), once)
    if log.signal is not None:  # meant for the process, not for these steps alone
        signal.raise_signal(log.signal)
    peak_mb = job.runtime.ranks.largest(peak_memory_mb(job.runtime.device))
    began = time.perf_counter()
    job.evaluate()
    evaluated = time.perf_counter()
    weights = whole_state(job.model, kept=job.runtime.ranks.first)
    if job.runtime.ranks.first:
        job.store.finish(lambda directory: job.write_model(directory, weights))
        final = _bytes(job.store.out) - _bytes(job.store.out / f"step-{len(stretches):06d}")
        saved = time.perf_counter()
        read_model(job.store.out)
        checkpoint = _bytes(job.store.out / f"step-{len(stretches):06d}")
        evaluations = math.ceil(steps / plan.evaluate_every) + job.evaluate_first
        saves = math.ceil(steps / plan.save_every)
        other = evaluations * (evaluated - began) + saves * (saved - evaluated) * checkpoint / max(1, final)
        return {
            "steps": steps,
            "seconds": seconds,
            "total_seconds": seconds + other,
            "tokens": round(sum(each.tokens * job.loader.rows[each.length].fill for each in job.loader.stretches)),
            "flops": run_flops(job.model.cfg, job.loader, job.model.pair is not None),
            "peak_mb": peak_mb,
            "checkpoint_mb": checkpoint / 2**20,
            "disk_mb": max(min(KEPT + 1, saves) * checkpoint, min(KEPT, saves) * checkpoint + final) / 2**20,
            "free_disk_mb": free / 2**20,
            "parameters": sum(p.numel() for p in job.model.parameters()),
            "processes": job.runtime.ranks.world,
        }
    return {}


def measure(job: Job, log: Log) -> dict[str, Any]:
    """Final scores and cost of a run, in all processes together; `peak_mb` in the one that used most."""
    score, spent = log.score or job.evaluate(), log.spent  # no score yet, if all that was left to do was to finish
    seconds, world = max(spent.seconds, 1e-9), job.runtime.ranks.world
    peak_mb = job.runtime.ranks.largest(peak_memory_mb(job.runtime.device))  # before `matmul_peak` takes its own
    flops = run_flops(job.model.cfg, job.loader, job.model.pair is not None)
    peak = matmul_peak(job.runtime.device, job.runtime.dtype) * world
    return {
        "held_out_loss": score.loss,
        "held_out_loss_before": log.loss_before,  # None: training began from scratch
        "unigram_loss": job.unigram,
        "accuracy": score.accuracy,
        "pair_accuracy": score.pair_accuracy,
        "targets": score.targets,
        "steps": job.loader.steps,
        "tokens": spent.tokens,
        "parameters": sum(p.numel() for p in job.model.parameters()),
        "seconds": spent.seconds,
        "tokens_per_s": spent.tokens / seconds,
        "flops": flops,
        "mfu": flops / seconds / peak,
        "matmul_peak_flops": peak,
        "joules": spent.joules,  # None: nothing measured it
        "peak_mb": peak_mb,
        "precision": job.runtime.precision,
        "processes": world,
        "versions": VERSIONS,
    }


def _bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())

"""A job of training, whatever the task: from its newest checkpoint to its last step, saved on the way."""

import copy
import hashlib
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import minilm
from minilm.checkpoint.model import load_weights, read_training, write_training
from minilm.checkpoint.store import Run, Store
from minilm.data.loader import Loader
from minilm.errors import CheckpointError
from minilm.train.log import Log, say
from minilm.train.loop import Loss, Optimizers, Plan, Score, TrainingError, fit, train_step
from minilm.train.runtime import Runtime, StopSignals, rng_state, set_rng_state

VERSIONS = {"minilm": minilm.__version__, "torch": torch.__version__}
WARM_STEPS, TIMED_STEPS = 3, 20  # of a copy of the model, to turn minutes into steps
NAMED_ROWS = 64  # of a step that failed


@dataclass(frozen=True)
class Job:
    """What trains, on what, and where it is kept."""

    settings: dict[str, Any]  # what decides the weights: flags, and a fingerprint of the data
    model: nn.Module
    loss: Loss
    optimizers: Optimizers
    loader: Loader
    runtime: Runtime
    store: Store
    evaluate: Callable[[], Score]  # on what is held out
    write_model: Callable[[Path], None]  # into a directory

    def fingerprint(self) -> str:
        """In every checkpoint: one of another job is refused, for it would end in other weights."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()


def runtime_of(run: Run | None, device: str, precision: str, threads: int | None) -> Runtime:
    """The device, and precision and threads: chosen, or as the run began with, for bits repeat only at equal ones. What
    else they depend on and is another now is said."""
    if run is None:
        return Runtime.choose(device, precision, threads)
    runtime = replace(Runtime.choose(device, run.precision, run.threads), reason="as this run began")
    now = {"device": runtime.device.type, **VERSIONS}
    was = {"device": run.device, **run.versions}
    for what in (what for what in now if now[what] != was.get(what) and not run.result):
        say(f"this run began with {what} {was.get(what)}, now it is {now[what]}: it goes on, but not bit for bit")
    return runtime


def begin(job: Job, steps: int, backend: str) -> Run:
    """What a run has decided, written down before its first step."""
    runtime = job.runtime
    run = Run(job.settings, steps, runtime.device.type, runtime.precision, runtime.threads, backend, VERSIONS)
    job.store.write_run(run)
    return run


def step_seconds(job: Job, accumulation: int, max_norm: float, limit_s: float = math.inf) -> float:
    """How long a step takes, found in not much more than `limit_s`. Timed on a copy, so that the job itself stays as it
    is: trained for so many minutes, it is bit for bit the job of that many steps."""
    model, optimizers = copy.deepcopy((job.model, job.optimizers))
    runtime, rng = replace(job.runtime), rng_state()  # replaced: a GradScaler of its own
    batches, took = iter(copy.copy(job.loader)), []
    while len(took) < WARM_STEPS + TIMED_STEPS and (len(took) < 2 or sum(took) < limit_s):
        began = time.perf_counter()
        micro_batches = [next(batches) for _ in range(accumulation)]
        nats, _, _ = train_step(model, job.loss, optimizers, micro_batches, runtime, max_norm)
        float(nats)  # waits for the device
        took.append(time.perf_counter() - began)
    set_rng_state(rng)
    timed = took[min(WARM_STEPS, len(took) - 1) :]
    return sum(timed) / len(timed)


def train(job: Job, plan: Plan) -> Log:
    """Go on from the newest checkpoint, or start, and train to the end: the log of the whole run. Leaves the model in
    eval mode.

    After a signal it saves and exits with 128 + its number. Raises TrainingError, which names the step and its rows.
    """
    start, log = _restore(job, plan)

    def examine(step: int) -> None:
        with log.paused():
            log.evaluation(step, job.evaluate())

    def save(step: int) -> None:
        def write(directory: Path) -> None:
            job.write_model(directory)
            state = {"job": job.fingerprint(), "step": step, "tokens": log.tokens, "seconds": log.seconds}
            state |= {"loader": job.loader.state_dict(), "scaler": job.runtime.scaler.state_dict()}
            write_training(directory, job.model, job.optimizers, rng_state(), state)

        with log.paused():
            job.store.save(step, write)

    with StopSignals() as signals:
        try:
            done = fit(
                job.model,
                job.loss,
                job.optimizers,
                iter(job.loader),
                job.runtime,
                plan,
                watch=log,
                start=start,
                evaluate=examine,
                save=save,
                stop=lambda: signals.received is not None,
            )
        except TrainingError as error:
            rows_per_step = plan.accumulation * job.loader.batch_size
            _, rows = job.loader.order(error.step * rows_per_step, rows_per_step)
            named = ", ".join(map(str, rows[:NAMED_ROWS])) + (" ..." if len(rows) > NAMED_ROWS else "")
            raise TrainingError(error.step, f"{error} (rows {named})") from error
        finally:
            log.close()
    if done < plan.steps:
        say(f"stopped and saved at step {done:,}; the same command, unless with --resume never, goes on from there")
        sys.exit(128 + (signals.received or 0))
    job.model.eval()
    return log


def _restore(job: Job, plan: Plan) -> tuple[int, Log]:
    """The step to go on from, with everything as it was then, and the log of the run so far."""
    start, tokens, seconds = 0, 0, 0.0
    if checkpoint := job.store.latest(say):
        rng, state = read_training(checkpoint, job.model, job.optimizers)
        if state.get("job") != job.fingerprint():
            raise CheckpointError(f"{checkpoint}: of another run; move it away")
        load_weights(job.model, checkpoint)
        try:
            set_rng_state(rng)
            start, tokens, seconds = int(state["step"]), int(state["tokens"]), float(state["seconds"])
            job.loader.load_state_dict(state["loader"])
            job.runtime.scaler.load_state_dict(state["scaler"])
        except CheckpointError as error:
            raise CheckpointError(f"{checkpoint}: {error}") from error
        except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise CheckpointError(f"{checkpoint}: its training state is damaged ({error}); move it away") from error
        if not 0 < start <= plan.steps or checkpoint.name != f"step-{start:06d}":
            raise CheckpointError(f"{checkpoint}: holds step {start} of {plan.steps}; move it away")
    epochs = plan.steps * plan.accumulation * job.loader.batch_size / len(job.loader.rows)
    whole = f"{plan.steps:,} steps, which see each row {epochs:.3g} times"
    say(f"going on from step {start:,} of {whole}" if start else f"training for {whole}")
    peak_lr = max(group["peak_lr"] for optimizer in job.optimizers for group in optimizer.param_groups)
    return start, Log(job.store.out / "metrics.jsonl", plan.steps, start, peak_lr, tokens, seconds)

"""A job of training, whatever the task: from its newest checkpoint to its last step, saved on the way."""

import hashlib
import json
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import minilm
from minilm.checkpoint.hf import kind_of
from minilm.checkpoint.model import read_training, read_weights, write_training
from minilm.checkpoint.store import Run, Store
from minilm.data.loader import Loader
from minilm.errors import CheckpointError
from minilm.files import read_json
from minilm.train.cost import EnergyMeter
from minilm.train.log import Log, Spent, say
from minilm.train.loop import Loss, Optimizers, Plan, Score, TrainingError, fit
from minilm.train.optim import load_optimizer_state, optimizer_state
from minilm.train.ranks import Applied, split, whole_state
from minilm.train.runtime import Runtime, StopSignals, forget_peak_memory

VERSIONS = {"minilm": minilm.__version__, "torch": torch.__version__}
NAMED_ROWS = 64  # of a step that failed


@dataclass(frozen=True)
class Job:
    """What trains, on what, and where it is kept."""

    settings: dict[str, Any]  # what decides the weights: flags, and a fingerprint of the data
    forward: Applied  # the model
    loss: Loss
    optimizers: Optimizers
    loader: Loader
    runtime: Runtime
    store: Store
    evaluate: Callable[[], Score]  # on what is held out
    write_model: Callable[[Path, dict[str, Tensor]], None]  # into a directory, from the model's whole state
    unigram: float | None = None  # the loss that word frequencies alone reach
    evaluate_first: bool = False  # before the first step, too

    @property
    def model(self) -> nn.Module:
        return self.forward.model

    def fingerprint(self) -> str:
        """In every checkpoint: one of another job is refused, for it would end in other weights."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()


def runtime_of(run: Run | None, device: str, precision: str, threads: int | None) -> Runtime:
    """The device, and precision and threads: chosen, or as the run began with, for bits repeat only at equal ones. What
    else they depend on and is another now is said."""
    if run is None:
        return Runtime.choose(device, precision, threads)
    runtime = replace(Runtime.choose(device, run.precision, run.threads), reason="as this run began")
    now = {"device": runtime.device.type, "processes": runtime.ranks.world, **VERSIONS}
    was = {"device": run.device, "processes": run.world, **run.versions}
    for what in (what for what in now if now[what] != was.get(what) and not run.result):
        say(f"this run began with {what} {was.get(what)}, now it is {now[what]}: it goes on, but not bit for bit")
    return runtime


def begin(job: Job, steps: int, backend: str) -> Run:
    """What a run has decided, written down before its first step."""
    runtime = job.runtime
    run = Run(
        settings=job.settings,
        steps=steps,
        device=runtime.device.type,
        precision=runtime.precision,
        threads=runtime.threads,
        backend=backend,
        versions=VERSIONS,
        world=runtime.ranks.world,
    )
    runtime.ranks.from_first(lambda: job.store.write_run(run))
    return run


def finish(job: Job, run: Run, weights: dict[str, Tensor], card: str, result: dict[str, Any]) -> None:
    """The final model with its card in OUT, and in run.json what it came to."""

    def write(directory: Path) -> None:
        job.write_model(directory, weights)
        (directory / "README.md").write_text(card, encoding="utf-8")

    job.store.finish(write)
    job.store.prune(keep=1)
    job.store.write_run(replace(run, result=result))


def train(job: Job, plan: Plan) -> Log:
    """Go on from the newest checkpoint, or start, and train to the end: the log of the whole run. Leaves the model in
    eval mode.

    After a signal it saves and exits with 128 + its number. Raises TrainingError, which names the step and its rows.
    """
    ranks = job.runtime.ranks
    checkpoint = ranks.from_first(lambda: job.store.latest(say))
    start, log = ranks.agreed(lambda: _restore(job, plan, checkpoint))

    def examine(step: int) -> None:
        with log.paused():
            log.evaluation(step, job.evaluate())

    def save(step: int) -> None:
        with log.paused():
            weights, tensors = whole_state(job.model), optimizer_state(job.model, job.optimizers)

            def write(directory: Path) -> None:
                job.write_model(directory, weights)
                state = {"job": job.fingerprint(), "step": step, "spent": asdict(log.spent)}
                write_training(directory, tensors, state | {"scaler": job.runtime.scaler.state_dict()})

            ranks.agreed(lambda: job.store.save(step, write) if ranks.first else None)

    forget_peak_memory(job.runtime.device)
    with StopSignals() as signals:
        try:
            if job.evaluate_first and start == 0:
                examine(0)
            done = fit(
                job.forward,
                job.loss,
                job.optimizers,
                job.loader.steps_from(start),
                job.runtime,
                plan,
                watch=log,
                start=start,
                evaluate=examine,
                save=save,
                stop=lambda: signals.received is not None,
            )
        except TrainingError as error:
            _, rows = job.loader.order(error.step)
            named = ", ".join(map(str, rows[:NAMED_ROWS])) + (" ..." if len(rows) > NAMED_ROWS else "")
            raise TrainingError(error.step, f"{error} (rows {named})") from error
        finally:
            log.close()
    if done < plan.steps:
        say(f"stopped and saved at step {done:,}; the same command, unless with --resume never, goes on from there")
        sys.exit(128 + (signals.received or signal.SIGTERM))  # where another process got it
    job.model.eval()
    return log


def _restore(job: Job, plan: Plan, checkpoint: Path | None) -> tuple[int, Log]:
    """The step to go on from, with everything as it was then, and the log of the run so far."""
    start, spent = 0, Spent()
    if checkpoint:
        tensors, state = read_training(checkpoint, job.model)
        if state.get("job") != job.fingerprint():
            raise CheckpointError(f"{checkpoint}: of another run; move it away")
        own, config = job.model.state_dict(), read_json(checkpoint / "config.json")
        weights, _ = read_weights(own, checkpoint, config["model_type"], kind_of(config))
        job.model.load_state_dict({name: split(weights[name].to(like.device), like) for name, like in own.items()})
        load_optimizer_state(job.model, job.optimizers, tensors)
        try:
            start, spent = int(state["step"]), Spent(**state["spent"])
            job.runtime.scaler.load_state_dict(state["scaler"])
        except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise CheckpointError(f"{checkpoint}: its training state is damaged ({error}); move it away") from error
        if not 0 < start <= plan.steps or checkpoint.name != f"step-{start:06d}":
            raise CheckpointError(f"{checkpoint}: holds step {start} of {plan.steps}; move it away")
    epochs = job.loader.epochs()
    whole = f"{plan.steps:,} steps, which see each row {epochs:.3g} times"
    say(f"going on from step {start:,} of {whole}" if start else f"training for {whole}")
    peak_lr = max(group["peak_lr"] for optimizer in job.optimizers for group in optimizer.param_groups)
    meter = EnergyMeter(job.runtime.device) if job.runtime.ranks.world == 1 else None
    file = job.store.out / "metrics.jsonl"
    return start, Log(file, plan.steps, start, peak_lr, spent, job.unigram, meter)

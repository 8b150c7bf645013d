"""A training job of any task: resume from the newest checkpoint, train to the last step, save on the way."""

import hashlib
import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

import minilm
from minilm.checkpoint.model import read_training, write_training
from minilm.checkpoint.store import Run, Store, manifest_fault
from minilm.checkpoint.weights import save_tensors
from minilm.data.ahead import Steps, made_ahead
from minilm.errors import CheckpointError, UserError, some
from minilm.machine.cores import own_cores
from minilm.machine.memory import forget_peak_memory, is_out_of_memory
from minilm.machine.ranks import Applied, Ranks, split, whole_state
from minilm.machine.runtime import Runtime
from minilm.machine.signals import STOPPING, Stopped, StopSignals, exit_status
from minilm.train.cost import EnergyMeter
from minilm.train.log import Log, Spent, say
from minilm.train.loop import (
    Evaluated,
    Loss,
    MicroBatch,
    Optimizers,
    OutOfMemory,
    Plan,
    Step,
    TrainingError,
    fit,
    not_finite,
    seed_step,
    train_step,
)
from minilm.train.optim import load_optimizer_state, optimizer_state, state_bytes

VERSIONS = {"minilm": minilm.__version__, "torch": torch.__version__}
NAMED_ROWS = 64  # rows of a failed step that the error lists


class Batches(Steps, Protocol):
    """Source of a job's micro-batches, step by step."""

    def order(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(epoch, row) of all rows of a step."""

    def named(self, rows: np.ndarray) -> list[str]:
        """Names of the rows, for a message."""

    def epochs(self) -> float:
        """How often the run sees each row."""

    def work(self, step: int) -> int:
        """The work of all steps before this one, in any unit."""

    def within(self, tokens: int) -> "Batches":
        """These steps in micro-batches of at most `tokens` tokens, as far as possible."""


@dataclass(frozen=True)
class Job:
    """Everything that training needs: model, loss, optimizers, batches, where to run and where to save."""

    settings: dict[str, Any]  # all that decides the final weights: flags, and a fingerprint of the data
    forward: Applied  # the model
    loss: Loss
    optimizers: Optimizers
    loader: Batches
    runtime: Runtime
    store: Store
    evaluate: Callable[[], Evaluated]  # on the held-out data
    write_model: Callable[[Path, dict[str, Tensor]], None]  # into a directory, from the model's whole state
    read_state: Callable[[Path], dict[str, Tensor]]  # the whole state of a model written by `write_model`
    unigram: float | None = None  # the loss that word frequencies alone reach
    evaluate_first: bool = False  # whether to evaluate before the first step, too
    patience: int | None = None  # evaluations without a better score or lower loss that end the run; keeps the best
    may_miss_saves: bool = False  # whether to go on if a checkpoint cannot be written
    auto_batch: bool = False  # whether to halve micro-batches that do not fit in memory
    take_step: Step = train_step  # or one that replays graphs
    within: int | None = None  # most tokens of a micro-batch, if known beforehand that more do not fit
    until: float | None = None  # time.monotonic() after which the run saves and ends with the current step

    @property
    def model(self) -> nn.Module:
        return self.forward.model

    def fingerprint(self) -> str:
        """Checksum of the settings, stored in every checkpoint: one of another job, with other weights, is refused."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()


class Evaluation(NamedTuple):
    """How good the model was after a step."""

    step: int
    value: float  # more is better
    gain: float  # minus the loss


def runtime_of(
    run: Run | None, device: str, precision: str, threads: int | None, deterministic: bool = False
) -> Runtime:
    """Runtime of a run. A new one (None) chooses. An earlier one keeps its precision, and its threads unless --threads,
    the cores or the number of processes differ: without these bits do not repeat. Logs what else changes bits (device,
    processes, a CPU's threads, versions)."""
    if run is None:
        return Runtime.choose(device, precision, threads, deterministic)
    alike = run.world == Ranks.join().world  # else its threads are not what the bits depend on
    if threads is None and alike:
        threads = min(run.threads, own_cores(run.world))
    runtime = replace(Runtime.choose(device, run.precision, threads, deterministic), reason="as before")
    now = {"device": runtime.device.type, "processes": runtime.ranks.world, **VERSIONS}
    was = {"device": run.device, "processes": run.world, **run.versions}
    if alike and runtime.device.type == run.device == "cpu":
        now["threads"], was["threads"] = runtime.threads, run.threads
    for what in (what for what in now if now[what] != was.get(what) and not run.result):
        say(f"this run began with {what} {was.get(what)}, now it is {now[what]}: it resumes, but not bit for bit")
    return runtime


def reopened(run: Run | None, store: Store, ranks: Ranks) -> Run | None:
    """`run`, without its result if its model is damaged, so that it is written again from the newest checkpoint, and
    says so. Raises CheckpointError if there is none: the run would begin anew, and write over the model."""
    if run is None or not run.result or not (fault := ranks.from_first(lambda: manifest_fault(store.out))):
        return run

    def is_kept() -> bool:
        with suppress(CheckpointError):  # all are damaged
            return store.latest(say) is not None
        return False

    if not ranks.from_first(is_kept):
        raise CheckpointError(
            f"{store.out}: is finished, but {fault}, and no checkpoint is there to write the model again; restore "
            f"that file, or choose another --out"
        )
    say(f"{store.out} is finished, but {fault}: the model is written again")
    return replace(run, result=None)


def begin(job: Job, steps: int, backend: str) -> Run:
    """Write run.json, with what the run has decided, before its first step."""
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


def finish(
    job: Job, run: Run, weights: dict[str, Tensor], card: str, result: dict[str, Any], best: int | None = None
) -> None:
    """Write the final model and its card to OUT, and the result to run.json. The newest checkpoint and that of step
    `best` stay: from them the same command restores a damaged model."""

    def write(directory: Path) -> None:
        job.write_model(directory, weights)
        if card:
            (directory / "README.md").write_text(card, encoding="utf-8")

    job.store.finish(write)
    job.store.write_run(replace(run, result=result))
    job.store.prune(keep=1, spared=best)


def train(job: Job, plan: Plan) -> Log:
    """Train to the end, from the newest checkpoint if any: the log of the whole run. Leaves the model in eval mode.

    After a signal, or at the time limit, it saves and exits, with `exit_status` or 0. An evaluation that is abandoned
    for that is made up on resuming. Raises TrainingError, which names the step and its rows.
    """
    ranks = job.runtime.ranks
    signals = StopSignals(alone=ranks.world == 1)
    checkpoint = ranks.from_first(lambda: job.store.latest(say))
    start, log, history, within = ranks.agreed(lambda: _restore(job, plan, checkpoint))
    batches = job.loader if within is None else job.loader.within(within)
    final = sum(p.numel() * p.element_size() for p in job.model.state_dict().values())
    size = final + state_bytes(job.optimizers)
    if start < plan.steps and not job.may_miss_saves:
        steps, every = plan.steps - start, plan.save_every
        spares = bool(job.patience)
        ranks.agreed(lambda: job.store.check_space(size, steps, every, final, spares) if ranks.first else None)

    def owes(step: int) -> bool:
        """Whether an evaluation is due after `step` and not yet made."""
        is_due = job.evaluate_first if step == 0 else plan.due(plan.evaluate_every, step)
        return is_due and (not history or history[-1].step < step)

    def examine(step: int) -> bool:
        with log.paused():
            try:
                with signals.leaving():
                    score = _evaluated(job)
            except Stopped:
                return True
            log.evaluation(step, score)
            history.append(Evaluation(step, *worth(score)))
        return _is_enough(history, job.patience)

    def stop() -> bool:
        return signals.received is not None or (job.until is not None and time.monotonic() > job.until)

    def save(step: int) -> bool:
        with log.paused():
            weights = whole_state(job.model, kept=ranks.first)
            tensors = optimizer_state(job.model, job.optimizers, kept=ranks.first)

            def write(directory: Path) -> None:
                job.write_model(directory, weights)
                state = {"job": job.fingerprint(), "step": step, "spent": asdict(log.spent), "history": history}
                state |= {"scaler": job.runtime.scaler.state_dict(), "within": within}
                write_training(directory, tensors, state)

            spared = _best(history) if history and job.patience else None
            try:
                ranks.agreed(lambda: job.store.save(step, write, spared=spared, size=size) if ranks.first else None)
            except UserError as error:
                if not job.may_miss_saves or step == plan.steps or ranks.any(stop()):
                    raise
                say(f"step {step:,} was not saved, and the run continues: {error}")
                return False
        return True

    def smaller(step: int, error: OutOfMemory) -> Iterator[Sequence[MicroBatch]]:
        nonlocal batches, within
        batches, within = with_less(batches, error, job.auto_batch, ranks, within, step)
        return signals.left(made_ahead(batches, step))

    forget_peak_memory(job.runtime.device)
    with signals:
        try:
            if owes(start):
                examine(start)
            done = (
                start
                if owes(start) or _is_enough(history, job.patience)
                else fit(
                    job.forward,
                    job.loss,
                    job.optimizers,
                    signals.left(made_ahead(batches, start)),
                    job.runtime,
                    plan,
                    watch=log,
                    start=start,
                    evaluate=examine,
                    save=save,
                    stop=stop,
                    smaller=smaller,
                    take_step=job.take_step,
                )
            )
        except TrainingError as error:
            raise TrainingError(
                error.step, f"{error} ({_about_bad(replace(job, loader=batches), plan, error.step)})"
            ) from error
        finally:
            log.close()
    if owes(done) or (done < plan.steps and not _is_enough(history, job.patience)):
        _leave(job, done, signals.received)
    log.signal = signals.received
    if job.patience and history:
        log.best, log.best_is_lost = _take_best(job, plan, history)
    job.model.eval()
    return log


def _leave(job: Job, done: int, received: int | None) -> NoReturn:
    """End the process, or raise KeyboardInterrupt within someone's program, after `done` steps, with a line that says
    what is kept. received: the signal that came, if any did."""
    where = f"and saved at step {done:,}" if done else "before the first step"
    kept = f"{where}; the same command resumes from there (not with --resume never)"
    say("stopped, and nothing is kept" if job.store.temporary else f"stopped {kept}")
    came = [job.runtime.ranks.any(received == number) for number in STOPPING]
    if received == signal.SIGINT and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        raise KeyboardInterrupt  # the program's own handler is Python's: this is no command of ours
    sys.exit(next((exit_status(number) for number, is_it in zip(STOPPING, came, strict=True) if is_it), 0))


def _evaluated(job: Job) -> Evaluated:
    """`job.evaluate()`, once more if memory runs out while graphs keep that of a whole step."""
    try:
        return job.evaluate()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or not (graphs := getattr(job.take_step, "of_shape", None)):
            raise
    graphs.clear()  # here, for the error above holds what the evaluation had made
    return job.evaluate()


def _take_best(job: Job, plan: Plan, history: list[Evaluation]) -> tuple[int, bool]:
    """Load the weights of the best evaluation, or keep those of the last one if these are damaged, and say so: (step,
    whether they were damaged)."""
    best, last = _best(history), history[-1].step
    if last < plan.steps:
        say(f"stopped early: no better score or lower loss in {job.patience} evaluations")
    if best != last and (fault := job.runtime.ranks.from_first(lambda: manifest_fault(job.store.checkpoint(best)))):
        say(f"{job.store.checkpoint(best)}, the best model, is damaged ({fault}); the last one is kept")
        return last, True
    say(f"the best model, that of step {best:,}, is kept")
    if best != last:
        job.runtime.ranks.agreed(lambda: _load(job, job.store.checkpoint(best)))
    return best, False


def with_less(
    batches: Batches,
    error: OutOfMemory,
    auto_batch: bool,
    ranks: Ranks,
    before: int | None = None,
    step: int | None = None,
) -> tuple[Batches, int]:
    """(batches in micro-batches half as large as the one that was too much, their most tokens), which is logged.

    before: their most tokens so far, if there was a limit. step: the step that failed; None: one of those timed. Raises
    OutOfMemory if nothing is smaller, without `auto_batch`, or with several processes: the others would wait."""
    what, within = f"{'timing' if step is None else f'step {step + 1}'}: {error}", error.tokens // 2
    if ranks.world > 1:
        advice = f"in process {ranks.rank}; in another --out, lower --batch-size and raise --accumulation as much"
        raise OutOfMemory(error.tokens, f"{what} {advice}") from error
    if not auto_batch:
        raise OutOfMemory(error.tokens, f"{what}; give --auto-batch for smaller micro-batches") from error
    fewer = batches.within(within)
    is_one_row = before is not None and error.tokens > before
    if not is_one_row and step is not None:
        is_one_row = max(micro.tokens.input_ids.numel() for micro in fewer.micro_batches(step)) >= error.tokens
    if is_one_row:
        raise OutOfMemory(error.tokens, f"{what}, and there is nothing smaller; lower --length") from error
    say(f"{what}; micro-batches are now at most {within:,} tokens, or one row")
    return fewer, within


def _about_bad(job: Job, plan: Plan, step: int) -> str:
    """Description of a step that was not finite: its rows, what was not finite first, and the file of its batch,
    written here."""
    _, rows = job.loader.order(step)
    told = [f"rows {some(job.loader.named(rows), NAMED_ROWS)}"]
    if job.runtime.ranks.world > 1:  # each has only a part of the step
        return told[0]
    try:
        micro_batches = next(made_ahead(job.loader, step))
    except UserError as error:  # describing an error must not raise another one
        return f"{told[0]}; its batch cannot be read again: {error}"
    file = job.store.out / f"bad-step-{step + 1:06d}.safetensors"
    with suppress(OSError, SafetensorError):
        arrays = {name: own for i, micro in enumerate(micro_batches) for name, own in micro.arrays(f"{i}.").items()}
        save_tensors({name: own.clone().contiguous() for name, own in arrays.items()}, file)
        told.append(f"its batch: {file.name}")
    with suppress(RuntimeError, MemoryError):
        seed_step(plan.seed, step, job.runtime.ranks.rank)
        job.forward.train()
        if found := not_finite(job.forward, job.loss, micro_batches, job.runtime):
            told.insert(1, f"first {found}")
    return "; ".join(told)


def _best(history: list[Evaluation]) -> int:
    """The step with the best score; among equal scores the lowest loss, then the latest step."""
    return max(history, key=lambda each: (each.value, each.gain, each.step)).step


def _is_enough(history: list[Evaluation], patience: int | None) -> bool:
    """Whether the last `patience` evaluations neither improved the score nor lowered the loss: while the loss falls, a
    score that stands still may yet rise."""
    if patience is None or not history:
        return False
    kinds = ([each.value for each in history], [each.gain for each in history])
    return min(len(numbers) - 1 - numbers.index(max(numbers)) for numbers in kinds) >= patience


def worth(score: Evaluated) -> tuple[float, float]:
    """(value, gain) for an `Evaluation`: larger is better, as `_best` compares them."""
    return _finite(score.value), _finite(-score.loss)


def _finite(value: float) -> float:
    return value if math.isfinite(value) else -sys.float_info.max


def _load(job: Job, checkpoint: Path) -> None:
    """Load the model's weights from a checkpoint."""
    weights, own = job.read_state(checkpoint), job.model.state_dict()
    job.model.load_state_dict({name: split(weights[name].to(like.device), like) for name, like in own.items()})


def _restore(job: Job, plan: Plan, checkpoint: Path | None) -> tuple[int, Log, list[Evaluation], int | None]:
    """(step to resume from, log of the run so far, its evaluations, most tokens of a micro-batch if more did not fit).
    Restores model, optimizers and scaler."""
    start, spent, history, within = 0, Spent(), [], job.within
    if checkpoint:
        tensors, state = read_training(checkpoint, job.model)
        if state.get("job") != job.fingerprint():
            raise CheckpointError(f"{checkpoint}: of another run; move it away")
        _load(job, checkpoint)
        load_optimizer_state(job.model, job.optimizers, tensors)
        try:
            start, spent = int(state["step"]), Spent(**state["spent"])
            history = [Evaluation(int(step), *map(float, rest)) for step, *rest in state.get("history", [])]
            job.runtime.scaler.load_state_dict(state["scaler"])
            within = None if state.get("within") is None else int(state["within"])
        except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise CheckpointError(f"{checkpoint}: its training state is damaged ({error}); move it away") from error
        if not 0 < start <= plan.steps or checkpoint.name != job.store.checkpoint(start).name:
            raise CheckpointError(f"{checkpoint}: holds step {start} of {plan.steps}; move it away")
    epochs = job.loader.epochs()
    whole = f"{plan.steps:,} steps, {epochs:.3g} epochs"
    say(f"resuming from step {start:,} of {whole}" if start else f"training for {whole}")
    peak_lr = max(group["peak_lr"] for optimizer in job.optimizers for group in optimizer.param_groups)
    meter = EnergyMeter(job.runtime.device) if job.runtime.ranks.world == 1 else None
    file = job.store.out / "metrics.jsonl"
    evaluated = history[-1].step if history else -1
    own = {"evaluated": evaluated, "work": job.loader.work, "may_miss_saves": job.may_miss_saves}
    return start, Log(file, plan.steps, start, peak_lr, spent, job.unigram, meter, **own), history, within

"""The training loop: one step, one loop over steps, and an evaluation of language models. It knows no data set."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from traceback import clear_frames
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn

from minilm.batch import Tokens
from minilm.errors import LoadingError, UserError
from minilm.machine.memory import is_out_of_memory, peak_memory_mb
from minilm.machine.ranks import Applied, no_sync, whole
from minilm.machine.runtime import Runtime
from minilm.machine.signals import Stopped
from minilm.train.optim import forget_tiny, gradient_norm, honours_gates, set_learning_rate

TIDY_EVERY = 64  # steps between calls of `forget_tiny`
FP16_STREAK = 50  # overflowing steps in a row that GradScaler may need to find its scale


class MicroBatch(Protocol):
    """What the loop needs of a batch."""

    count: int  # targets
    size: int  # tokens that are not padding
    tokens: Tokens

    def to(self, device: torch.device, non_blocking: bool = False) -> Any: ...

    def arrays(self, prefix: str = "") -> dict[str, Tensor]: ...


# (model, batch) -> (sum, count), from minilm.train.losses. A step divides by `MicroBatch.count`, known to the host.
Loss = Callable[[nn.Module, Any], tuple[Tensor, Tensor]]
Optimizers = Sequence[torch.optim.Optimizer]
# Of a step: nats summed in this process, gradient norm before clipping, whether either was not finite.
Outcome = tuple[Tensor, Tensor, Tensor]
Step = Callable[[nn.Module, Loss, Optimizers, Sequence[MicroBatch], Runtime, float], Outcome]


class TrainingError(UserError):
    """The run cannot go on: its numbers are not finite any more. `step` counts from 0."""

    def __init__(self, step: int, message: str) -> None:
        super().__init__(message)
        self.step = step


class OutOfMemory(UserError):
    """A step did not fit in memory, and changed nothing. `tokens`: size of the micro-batch that failed, padding
    included."""

    def __init__(self, tokens: int, message: str) -> None:
        super().__init__(message)
        self.tokens = tokens


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch for a step, from these numbers alone, so that a resumed run draws what it would have drawn."""
    digest = hashlib.blake2b(f"{seed} {step} {rank}".encode(), digest_size=4).digest()
    torch.manual_seed(int.from_bytes(digest, "big"))  # 32 bits: torch's CPU generator uses no more


def train_step(
    forward: nn.Module,
    loss: Loss,
    optimizers: Optimizers,
    micro_batches: Sequence[MicroBatch],
    runtime: Runtime,
    max_norm: float,
) -> Outcome:
    """One update from the micro-batches of all processes.

    `forward` is the model as `Applied`, perhaps from `Ranks.parallel`, which averages gradients over the processes. The
    loss is divided by the targets of all micro-batches, so k micro-batches, or k processes, equal one batch. If loss or
    gradient is not finite, nothing changes: the update is gated on the device, without waiting for it. Optimizers must
    honour `found_inf` and `grad_scale`, by which gradients are divided, as Muon and torch's fused ones do if
    `honours_gates`. Raises OutOfMemory.
    """
    return update(forward, loss, optimizers, micro_batches, denominator(micro_batches, runtime), runtime, max_norm)


def denominator(micro_batches: Sequence[MicroBatch], runtime: Runtime) -> float:
    """Targets of the micro-batches of all processes, per process, for gradients are averaged over them."""
    (count,) = runtime.ranks.total(sum(micro.count for micro in micro_batches))
    return max(1, count) / runtime.ranks.world


def update(
    forward: nn.Module,
    loss: Loss,
    optimizers: Optimizers,
    micro_batches: Sequence[MicroBatch],
    count: float | Tensor,
    runtime: Runtime,
    max_norm: float,
) -> Outcome:
    """`train_step` with the denominator of its loss given: the part that a CUDA graph records."""
    total = torch.zeros((), device=runtime.device)
    for number, micro in enumerate(micro_batches, start=1):
        try:
            with no_sync(forward) if number < len(micro_batches) else nullcontext():
                with runtime.autocast():
                    nats, _ = forward(loss, micro.to(runtime.device, non_blocking=True))
                runtime.scaler.scale(nats / count).backward()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)  # gradients of the micro-batches that did fit
            raise _too_much(micro, runtime) from error
        total += nats.detach()
    for optimizer in optimizers:
        runtime.scaler.unscale_(optimizer)
    norm = whole(gradient_norm(forward))
    bad = runtime.ranks.any_on_device(~(norm.isfinite() & total.isfinite()))
    scale, found_inf = ((norm + 1e-6) / max_norm).clamp(min=1.0).float(), bad.float()
    gates = honours_gates(runtime.device)
    if not gates:
        for own in (own for own in forward.parameters() if own.grad is not None):
            own.grad.div_(scale)
    for optimizer in optimizers:
        if gates:
            optimizer.grad_scale, optimizer.found_inf = scale, found_inf  # clips without another pass
            optimizer.step()
        elif not bad:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    runtime.scaler.update()
    return total, norm, bad


def _too_much(micro: MicroBatch, runtime: Runtime) -> OutOfMemory:
    rows, length = micro.tokens.input_ids.shape
    peak = f"peak memory {peak_memory_mb(runtime.device):,.0f} MB"
    several = "row" if rows == 1 else "rows"
    return OutOfMemory(rows * length, f"out of memory with {rows:,} {several} of {length:,} tokens at once; {peak}")


def not_finite(forward: Applied, loss: Loss, micro_batches: Iterable[MicroBatch], runtime: Runtime) -> str:
    """Name of what is not finite first in a step, or "": a weight, the output of a module, the loss, or the gradient of
    the parameter nearest to the loss. Computes the step again, forward and backward, without torch's compiler, so that
    hooks see all modules."""
    model = forward.model
    if bad := next((name for name, own in model.named_parameters() if not own.isfinite().all()), None):
        return f"the weight {bad}"
    found: list[str] = []
    hooks = [
        module.register_forward_hook(
            lambda module, inputs, output, name=name: found.append(name) if _has_bad(output) else None
        )
        for name, module in model.named_modules()
    ]
    try:
        for micro in micro_batches:
            with runtime.autocast(), torch.compiler.set_stance("force_eager"):
                nats, _ = forward(loss, micro.to(runtime.device))
            if found or not nats.isfinite():
                return f"the output of {found[0]}" if found else "the loss"
            runtime.scaler.scale(nats / max(1, micro.count)).backward()
            bad = [name for name, own in model.named_parameters() if own.grad is not None and _has_bad(own.grad)]
            model.zero_grad(set_to_none=True)
            if bad:
                return f"the gradient of {bad[-1]}"
    finally:
        for hook in hooks:
            hook.remove()
    return ""


def _has_bad(output: Any) -> bool:
    return isinstance(output, Tensor) and output.is_floating_point() and not bool(output.isfinite().all())


@dataclass(frozen=True)
class Plan:
    """Number of steps, learning-rate schedule, clipping, and intervals of logging, evaluation and saving."""

    steps: int
    schedule: Callable[[int], float]  # step -> fraction of the peak learning rate
    max_norm: float = 1.0  # of the gradient; larger ones are scaled down
    seed: int = 0  # of dropout
    log_every: int = 10
    evaluate_every: int = 0  # 0: never
    save_every: int = 0  # 0: only when stopped

    def due(self, every: int, done: int) -> bool:
        """Whether something done every `every` steps, and after the last, is due after `done` steps."""
        return every > 0 and (done % every == 0 or done == self.steps)


class Watch(Protocol):
    """Listener to the training loop. `tick` is called after each step, `step` after those that are logged: loss and
    tokens since the last such call, norm and rate of the last step."""

    def step(self, step: int, loss: float, norm: float, lr_fraction: float, tokens: int) -> None: ...

    def tick(self, step: int) -> None: ...


def _raised(step: int, error: OutOfMemory) -> NoReturn:
    raise error


def fit(
    forward: Applied,
    loss: Loss,
    optimizers: Optimizers,
    batches: Iterator[Sequence[MicroBatch]],
    runtime: Runtime,
    plan: Plan,
    watch: Watch,
    start: int = 0,
    evaluate: Callable[[int], bool] = lambda step: False,
    save: Callable[[int], bool | None] = lambda step: None,
    stop: Callable[[], bool] = lambda: False,
    smaller: Callable[[int, OutOfMemory], Iterator[Sequence[MicroBatch]]] = _raised,
    take_step: Step = train_step,
) -> int:
    """Train from step `start` to `plan.steps`: the step it reached, which is less if `stop` was true in any process.

    `batches` yields the micro-batches of each step. If it raises LoadingError in any process, or Stopped because of
    `stop`, the run saves and ends. `evaluate(step)`, true to stop there, and `save(step)` are called after `step` steps
    are done (false: it was not saved, and the run goes on), `stop()` after every step; once it is true, nothing is
    evaluated any more. If an evaluation raises, a single process saves first. `smaller(step, error)` is called when
    memory runs out: it returns smaller micro-batches from `step` on, or raises, where a single process saves first.
    Raises TrainingError after a step that was not finite, which changed nothing: at once on a CPU, on a GPU when the
    host learns of it, without waiting, while a few more steps are under way.
    """
    forward.train()
    parallel = runtime.ranks.parallel(forward)
    since, saved = _Since(runtime), start

    def look(done: int) -> None:
        """Log the steps so far; the host waits for the device here."""
        nonlocal since
        since.check()
        loss_now, tokens = since.totals()
        lines = partial(watch.step, done, loss_now, float(norm), fraction, tokens)
        since = _Since(runtime, since.streak)
        try:
            runtime.ranks.agreed(lines)
        except UserError as error:  # the metrics cannot be written, but perhaps a checkpoint can
            if done > saved:
                save_before(error, done)
            raise

    def save_before(fault: BaseException | None, done: int) -> None:
        """Save before the run ends because of `fault`; if saving fails, the error names both."""
        if since.tokens:
            look(done)
        try:
            if save(done) is False:
                raise UserError(f"step {done:,} was not saved")
        except UserError as error:
            if isinstance(fault, Stopped):
                raise
            if not isinstance(fault, UserError | None) and not is_out_of_memory(fault):  # a bug
                fault.add_note(str(error))
                raise fault from None
            kind = LoadingError if isinstance(fault, LoadingError) else UserError
            raise kind(f"{fault}; and {error}") from error

    for step in range(start, plan.steps):
        while True:
            fault = None
            try:
                micro_batches = next(batches)
            except (Stopped, LoadingError) as error:
                fault = error.with_traceback(None)  # the traceback would hold this frame, a cycle
            if runtime.ranks.any(fault is not None):  # all end together, for none can do the step alone
                if step > saved:
                    save_before(fault, step)
                if isinstance(fault, Stopped):
                    return step
                raise fault or UserError("another process cannot read its batch, and says why; all end")
            fraction = plan.schedule(step)
            set_learning_rate(optimizers, fraction)
            seed_step(plan.seed, step, runtime.ranks.rank)
            try:
                nats, norm, bad = take_step(parallel, loss, optimizers, micro_batches, runtime, plan.max_norm)
                break
            except OutOfMemory as error:
                try:
                    batches = smaller(step, error)
                except UserError as fault:
                    if step > saved and runtime.ranks.world == 1:  # several would wait for one another
                        save_before(fault, step)
                    raise
        since.add(step, nats, bad, micro_batches)
        since.check_heard()
        if step % TIDY_EVERY == TIDY_EVERY - 1:
            forget_tiny(optimizers)
        done, stopping = step + 1, runtime.ranks.any(stop())
        watch.tick(done)
        evaluating, saving = plan.due(plan.evaluate_every, done), stopping or plan.due(plan.save_every, done)
        if evaluating or saving or plan.due(plan.log_every, done):
            look(done)
        if evaluating and not stopping:
            try:
                stopping = evaluate(done)
            except Exception as error:  # as of too little memory
                if done > saved and runtime.ranks.world == 1:
                    clear_frames(error.__traceback__)  # which hold what the evaluation had made
                    save_before(error, done)
                raise
            forward.train()
        if saving or stopping:
            saved = saved if save(done) is False else done
        if stopping:
            return done
    return plan.steps


class _Since:
    """Sums over the steps since the last `look`, kept on the device."""

    def __init__(self, runtime: Runtime, streak: Tensor | None = None) -> None:
        self.ranks, device = runtime.ranks, runtime.device
        self.nats = torch.zeros((), device=device)
        self.streak = torch.zeros((), dtype=torch.int64, device=device) if streak is None else streak
        self.limit = FP16_STREAK if runtime.scaler.is_enabled() else 1
        self.bad_at = torch.full_like(self.streak, -1)  # first step of the first streak that reached the limit
        self.count, self.tokens = torch.zeros((), dtype=torch.int64, device=device), 0
        self.heard = torch.full((), -1, dtype=torch.int64, pin_memory=device.type == "cuda")  # host copy of bad_at

    def add(self, step: int, nats: Tensor, bad: Tensor, micro_batches: Iterable[MicroBatch]) -> None:
        self.nats = self.nats + nats.nan_to_num(0.0, 0.0, 0.0)
        self.streak = (self.streak + 1) * bad
        is_first = (self.streak >= self.limit) & (self.bad_at < 0)
        self.bad_at = torch.where(is_first, step - self.streak + 1, self.bad_at)
        if self.bad_at.device.type in ("cpu", "cuda"):  # on other devices the copy would wait
            self.heard.copy_(self.bad_at, non_blocking=True)
        self.count = self.count + sum(micro.count for micro in micro_batches) * nats.isfinite()
        self.tokens += sum(micro.size for micro in micro_batches)

    def totals(self) -> tuple[float, int]:
        """(mean nats per target, NaN if no step was finite; tokens) over all processes."""
        nats, count, tokens = self.ranks.total(float(self.nats), int(self.count), self.tokens)
        return nats / count if count else float("nan"), int(tokens)

    def check_heard(self) -> None:
        """Raises TrainingError if the host has learned of bad steps, and all processes of the same."""
        if (self.ranks.world == 1 or self.bad_at.device.type == "cpu") and self.heard.numpy() >= 0:
            self.check()

    def check(self) -> None:
        """Raises TrainingError after `limit` bad steps in a row (fp16 may have a few). Waits for the device."""
        if (step := int(self.bad_at)) >= 0:
            raise TrainingError(
                step,
                f"step {step + 1}: loss or gradient is not finite, so the update was skipped; "
                f"in another --out, try a lower --lr or --precision fp32",
            )


class Evaluated(Protocol):
    """Result of an evaluation on held-out data."""

    loss: float

    @property
    def value(self) -> float:
        """The score that chooses the best model: larger is better."""

    @property
    def metrics(self) -> dict[str, float]:
        """Other metrics than the loss, by name."""

    def says(self) -> str:
        """The metrics in one line, for the console."""


@dataclass(frozen=True)
class Score:
    """How well a language model predicts held-out tokens."""

    loss: float  # nats per target
    accuracy: float  # fraction of targets that rank first
    targets: int
    pair_accuracy: float | None = None  # fraction of pairs of texts told right, where there are any

    @property
    def value(self) -> float:
        return -self.loss

    @property
    def metrics(self) -> dict[str, float]:
        pairs = {} if self.pair_accuracy is None else {"pairs": self.pair_accuracy}
        return {"accuracy": self.accuracy} | pairs

    def says(self) -> str:
        return "  ".join(f"{name} {value:.1%}" for name, value in self.metrics.items())


@torch.no_grad()
def evaluate(
    forward: Applied,
    score: Callable[[nn.Module, Any], tuple[Tensor, ...]],  # -> nats, hits, targets, pairs told right, pairs
    batches: Iterable[MicroBatch],
    runtime: Runtime,
) -> Score:
    """Means of `score` over the batches of all processes. Leaves the model in eval mode."""
    forward.eval()
    own: list[float] = [0.0] * 5
    for batch in batches:
        with runtime.autocast():
            each = forward(score, batch.to(runtime.device, non_blocking=True))
        own = [a + float(b) for a, b in zip(own, each, strict=True)]
    nats, hits, targets, pair_hits, pairs = runtime.ranks.total(*own)
    pair_accuracy = pair_hits / pairs if pairs else None
    return Score(nats / max(1, targets), hits / max(1, targets), int(targets), pair_accuracy)

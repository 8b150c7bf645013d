"""The training loop: one step, one loop over steps, one pass of evaluation. Knows no task and no data set."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from minilm.errors import UserError
from minilm.train.optim import set_learning_rate
from minilm.train.runtime import Runtime

FP16_STREAK = 50  # overflowing steps in a row that GradScaler may take to find its scale


class MicroBatch(Protocol):
    """What the loop needs of a batch."""

    count: int  # targets
    size: int  # tokens that are not padding

    def to(self, device: torch.device, non_blocking: bool = False) -> Any: ...


# -> (sum, count), from minilm.train.losses. A step divides by the count that the host knows already, the batch's own.
Loss = Callable[[nn.Module, Any], tuple[Tensor, Tensor]]
Optimizers = Sequence[torch.optim.Optimizer]


class TrainingError(UserError):
    """The run cannot go on: its numbers are not finite any more. `step` counts from 0."""

    def __init__(self, step: int, message: str) -> None:
        super().__init__(message)
        self.step = step


def train_step(
    model: nn.Module,
    loss: Loss,
    optimizers: Optimizers,
    micro_batches: Sequence[MicroBatch],
    runtime: Runtime,
    max_norm: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """One update from all micro-batches together: (summed nats, gradient norm before clipping, whether it was bad).

    The sum is divided by the targets of all micro-batches, so k micro-batches are one batch. If loss or gradient
    is not finite, nothing changes: the update is gated on the device, and nobody waits for the answer. The optimizers
    must honour `found_inf`, as Muon and torch's fused ones do.
    """
    count = max(1, sum(micro.count for micro in micro_batches))
    total = torch.zeros((), device=runtime.device)
    for micro in micro_batches:
        with runtime.autocast():
            nats, _ = loss(model, micro.to(runtime.device, non_blocking=True))
        runtime.scaler.scale(nats / count).backward()
        total += nats.detach()
    for optimizer in optimizers:
        runtime.scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    bad = ~(norm.isfinite() & total.isfinite())
    for optimizer in optimizers:
        optimizer.found_inf = bad.float()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    runtime.scaler.update()
    return total, norm, bad


@dataclass(frozen=True)
class Plan:
    """How long, how fast, and how often to look."""

    steps: int
    schedule: Callable[[int], float]  # step -> fraction of the peak learning rate
    accumulation: int = 1  # micro-batches per step
    max_norm: float = 1.0  # of the gradient; larger ones are scaled down
    log_every: int = 10
    evaluate_every: int = 0  # 0: never
    save_every: int = 0  # 0: only when stopped

    def due(self, every: int, done: int) -> bool:
        """Whether what is done `every` so many steps, and at the end, is to be done after `done` of them."""
        return every > 0 and (done % every == 0 or done == self.steps)


class Watch(Protocol):
    """Who is told what happens."""

    def step(self, step: int, loss: float, norm: float, rate: float, tokens: int) -> None: ...

    def tick(self, step: int) -> None: ...


def fit(
    model: nn.Module,
    loss: Loss,
    optimizers: Optimizers,
    batches: Iterator[MicroBatch],
    runtime: Runtime,
    plan: Plan,
    watch: Watch,
    start: int = 0,
    evaluate: Callable[[int], None] = lambda step: None,
    save: Callable[[int], None] = lambda step: None,
    stop: Callable[[], bool] = lambda: False,
) -> int:
    """Train from step `start` to `plan.steps`; the step it got to, which is less if `stop` asked.

    `evaluate(step)` and `save(step)` are called after that many steps are done, `stop()` after each.
    Raises TrainingError at the next look (every `log_every` steps) after a step that was not finite; that step changed
    nothing, those between it and the look did.
    """
    model.train()
    since = _Since(runtime.device)
    for step in range(start, plan.steps):
        fraction = plan.schedule(step)
        set_learning_rate(optimizers, fraction)
        micro_batches = [next(batches) for _ in range(plan.accumulation)]
        nats, norm, bad = train_step(model, loss, optimizers, micro_batches, runtime, plan.max_norm)
        since.add(step, nats, bad, micro_batches)
        done, stopping = step + 1, stop()
        watch.tick(done)
        evaluating, saving = plan.due(plan.evaluate_every, done), stopping or plan.due(plan.save_every, done)
        if evaluating or saving or plan.due(plan.log_every, done):  # here the host asks the device
            since.check(streak=FP16_STREAK if runtime.scaler.is_enabled() else 1)
            watch.step(done, since.loss(), float(norm), fraction, since.tokens)
            since = _Since(runtime.device, since.streak)
        if evaluating:
            evaluate(done)
            model.train()
        if saving:
            save(done)
        if stopping:
            return done
    return plan.steps


class _Since:
    """What happened since the last look, kept on the device."""

    def __init__(self, device: torch.device, streak: Tensor | None = None) -> None:
        self.nats = torch.zeros((), device=device)
        self.streak = torch.zeros((), dtype=torch.int64, device=device) if streak is None else streak
        self.worst, self.worst_at = self.streak.clone(), torch.zeros_like(self.streak)
        self.count, self.tokens = torch.zeros((), dtype=torch.int64, device=device), 0

    def add(self, step: int, nats: Tensor, bad: Tensor, micro_batches: Iterable[MicroBatch]) -> None:
        self.nats = self.nats + nats.nan_to_num(0.0, 0.0, 0.0)
        self.streak = (self.streak + 1) * bad
        self.worst_at = torch.where(self.streak > self.worst, step - self.streak + 1, self.worst_at)
        self.worst = torch.maximum(self.worst, self.streak)
        self.count = self.count + sum(micro.count for micro in micro_batches) * nats.isfinite()
        self.tokens += sum(micro.size for micro in micro_batches)

    def loss(self) -> float:
        """Nats per target."""
        return float(self.nats) / max(1, int(self.count))

    def check(self, streak: int) -> None:
        if int(self.worst) >= streak:
            raise TrainingError(
                int(self.worst_at),
                f"step {int(self.worst_at) + 1}: loss or gradient is not finite, so the update was left out; "
                f"in another --out, try a lower --lr or --precision fp32",
            )


@dataclass(frozen=True)
class Score:
    """How well a model predicts what it was not trained on."""

    loss: float  # nats per target
    accuracy: float  # fraction of targets that rank first
    targets: int


@torch.no_grad()
def evaluate(
    model: nn.Module,
    score: Callable[[nn.Module, Any], tuple[Tensor, Tensor, Tensor]],
    batches: Iterable[MicroBatch],
    runtime: Runtime,
) -> Score:
    """The sums of `score` over all batches, (nats, hits, targets), as means. Leaves the model in eval mode."""
    model.eval()
    nats, hits, targets = 0.0, 0, 0
    for batch in batches:
        with runtime.autocast():
            each = score(model, batch.to(runtime.device, non_blocking=True))
        nats, hits, targets = nats + float(each[0]), hits + int(each[1]), targets + int(each[2])
    return Score(nats / max(1, targets), hits / max(1, targets), targets)

"""Numbers that are not finite: the step they come in changes nothing, ends the run and is named, and the same command,
without them, comes to the same weights. In an evaluation they end nothing."""

import random
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import train
from tests.faults.victim import SAVES, Victim

Patched = Callable[[nn.Module, Tensor], Tensor]  # (model, loss) -> loss


def loss_nan(model: nn.Module, nats: Tensor) -> Tensor:
    return nats * float("nan")


def loss_inf(model: nn.Module, nats: Tensor) -> Tensor:
    return nats + float("inf")


def gradient(model: nn.Module, nats: Tensor) -> Tensor:
    """Infinite: of sqrt|x| at 0, whose value is 0."""
    some = next(model.parameters()).flatten()[0]
    return nats + (some - some.detach()).abs().sqrt()


def gradient_huge(model: nn.Module, nats: Tensor) -> Tensor:
    """Finite, but its norm is not."""
    some = next(model.parameters()).flatten()[0]
    return nats + (some - some.detach()) * 1e30


def weight(model: nn.Module, nats: Tensor) -> Tensor:
    """From here on."""
    with torch.no_grad():
        next(model.parameters()).flatten()[0] = float("nan")
    return nats * float("nan")


KINDS: dict[str, Patched] = {
    "a loss that is NaN": loss_nan,
    "a loss that is infinite": loss_inf,
    "a gradient that is infinite": gradient,
    "a gradient that is huge": gradient_huge,
    "a weight that is NaN": weight,
}


def not_finite(victim: Victim, out: Path, rng: random.Random) -> tuple[str, str]:
    """(what was done, what is wrong): one of KINDS in a random step, or an evaluation that is not a number."""
    kind, step = rng.choice([*KINDS, "an evaluation that is NaN"]), rng.randrange(SAVES[-1])
    if kind not in KINDS:
        child = victim.begin(out, _evaluation)
        status = child.end()
        return kind, f"ended with {status}: {victim.said(out)}" if status else victim.fault(out, child.saved)
    child = victim.begin(out, lambda: _in_step(step, KINDS[kind]))
    status, said = child.end(), victim.said(out)
    phase = f"{kind}, {child.phase}"
    named = said.startswith(f"error: step {step + 1}: ") and f"bad-step-{step + 1:06d}.safetensors" in said
    if status != 2 or not named:
        return phase, f"step {step + 1}: ended with {status}: {said}"
    if child.saved > step:
        return phase, f"saved step {child.saved}, after step {step + 1} was not finite"
    return phase, victim.fault(out, child.saved)


def _in_step(step: int, change: Patched) -> None:
    original, calls = train.language_model_loss, []

    def loss(model: nn.Module, batch: object) -> tuple[Tensor, Tensor]:
        calls.append(1)
        nats, count = original(model, batch)
        return (change(model, nats) if len(calls) > step else nats), count

    train.language_model_loss = loss


def _evaluation() -> None:
    score = train.language_model_score

    def bad(model: nn.Module, batch: object) -> tuple[Tensor, ...]:
        nats, *rest = score(model, batch)
        return nats * float("nan"), *rest

    train.language_model_score = bad

"""Optimizers (AdamW and Muon), their parameter groups, and learning-rate schedules."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minilm.machine.ranks import is_sharded, joined, part, split, whole
from minilm.model.attention import MergedLinear
from minilm.train.cheap import CheapEmbedding

OptimizerName = Literal["adamw", "muon"]
ScheduleName = Literal["linear", "cosine", "wsd"]
TINY = {"exp_avg": 1e-30, "exp_avg_sq": 1e-36}  # AdamW's step is lr / eps times the first; eps^2 outweighs the second


def lr_fraction(name: ScheduleName, step: int, steps: int, warmup_steps: int, decay_frac: float = 0.2) -> float:
    """Learning rate of step number `step` (from 0) of `steps`, as a fraction in (0, 1] of the peak.

    Linear warm-up over `warmup_steps`, then: `linear` to 0 (Devlin et al. 2018), `cosine` to 0 (Loshchilov &
    Hutter 2017), or `wsd`, warm-up - stable - decay (Hu et al. 2024, MiniCPM), with 1 - sqrt over the last
    `decay_frac` of the run (Haegele et al. 2024).
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    left = (steps - step) / max(1, steps - warmup_steps)  # from 1 down to just above 0
    if name == "linear":
        return left
    if name == "cosine":
        return 0.5 * (1 - math.cos(math.pi * left))
    decaying = min(1.0, (steps - step) / max(1.0, min(decay_frac * steps, steps - warmup_steps)))
    return 1 - math.sqrt(1 - decaying)


def make_optimizers(
    model: nn.Module,
    name: OptimizerName,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    muon_dtype: torch.dtype = torch.bfloat16,
    rates: Mapping[nn.Parameter, float] | None = None,
) -> list[torch.optim.Optimizer]:
    """AdamW with BERT's groups: no weight decay on biases and norms (google-research/bert, optimization.py).

    With `muon` the matrices go to Muon, and AdamW keeps tables, biases and norms. rates: fraction of `lr` for some of
    AdamW's parameters. Every group holds its `peak_lr`; `set_learning_rate` scales it.
    """
    matrices, tables, vectors = [], [], []
    parts: dict[nn.Parameter, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            if isinstance(module, nn.Linear) and parameter.ndim == 2:
                matrices.append(parameter)
                parts[parameter] = module.parts if isinstance(module, MergedLinear) else 1
            else:
                (vectors if parameter.ndim < 2 else tables).append(parameter)
    decayed = tables if name == "muon" else tables + matrices
    # these two also if empty: AdamW takes no empty list of groups, and a resumed run must find them in this order
    alike: dict[tuple[float, float], list[nn.Parameter]] = {(weight_decay, 1.0): [], (0.0, 1.0): []}
    for decay, members in ((weight_decay, decayed), (0.0, vectors)):
        for parameter in members:
            alike.setdefault((decay, (rates or {}).get(parameter, 1.0)), []).append(parameter)
    groups = [
        {"params": members, "weight_decay": decay, "peak_lr": lr * rate} for (decay, rate), members in alike.items()
    ]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)]
    if name == "muon":
        optimizers.append(Muon(matrices, parts, lr=lr, weight_decay=weight_decay, dtype=muon_dtype))
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group.setdefault("peak_lr", lr)
    return optimizers


def honours_gates(device: torch.device) -> bool:
    """Whether torch's fused optimizers honour `grad_scale` and `found_inf` on this device; on Apple's GPUs they did not
    before torch 2.13 (pytorch/pytorch, pull request 186360)."""
    return device.type != "mps" or torch.__version__ >= (2, 13)


def gradient_norm(model: nn.Module) -> Tensor:
    """L2 norm of all gradients together, a scalar tensor."""
    tables = {module.weight: module for module in model.modules() if isinstance(module, CheapEmbedding)}
    grads = [
        tables[p].rows_of_gradient() if p in tables and p.grad is tables[p].kept else p.grad
        for p in model.parameters()
        if p.grad is not None
    ]
    if not grads or any(is_sharded(grad) or grad.device.type != "cpu" for grad in grads):
        return nn.utils.get_total_norm(grads)
    return torch.stack([grad.flatten().dot(grad.flatten()) for grad in grads]).sum().sqrt()  # in a third of the time


def set_learning_rate(optimizers: Iterable[torch.optim.Optimizer], fraction: float) -> None:
    """Set every group's learning rate to `fraction` of its `peak_lr`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            lr = group["peak_lr"] * fraction
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr


def keep_learning_rate_on(device: torch.device, optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """Have the optimizers read their learning rates from tensors on `device`, as a CUDA graph must."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if not isinstance(group["lr"], Tensor):
                group["lr"] = torch.full((), group["lr"], device=device)
            if "capturable" in group:
                group["capturable"] = device.type == "cuda"
        optimizer._warned_capturable_if_run_uncaptured = True  # steps that no graph records are meant


@torch.no_grad()
def forget_tiny(optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """Set AdamW's averages below TINY to 0, which changes no weight. For table rows that are not read for long they
    decay to denormal numbers (below 1.2e-38), with which a CPU is a hundred times slower: after 900 steps an update of
    30,522 words took twice as long."""
    for own in (own for optimizer in optimizers for own in optimizer.state.values()):
        for tensor, tiny in ((part(own[key]), tiny) for key, tiny in TINY.items() if key in own):
            if tensor.device.type == "cpu":
                tensor.copy_(F.hardshrink(tensor, tiny))


def optimizer_state(
    model: nn.Module, optimizers: Iterable[torch.optim.Optimizer], kept: bool = True
) -> dict[str, Tensor]:
    """All state tensors of the optimizers, unsharded and on the CPU, named KEY/PARAMETER. All processes must call this
    if they are sharded; it is empty in those where it is not `kept`."""
    names, state = {parameter: name for name, parameter in model.named_parameters()}, {}
    for parameter, own in ((p, own) for optimizer in optimizers for p, own in optimizer.state.items()):
        for key, tensor in own.items():
            full = whole(tensor.detach())
            if kept:
                state[f"{key}/{names[parameter]}"] = full.cpu().contiguous()
    return state


def state_bytes(optimizers: Iterable[torch.optim.Optimizer]) -> int:
    """Bytes of the state tensors that the optimizers keep from their first step on, in all processes."""
    return sum(
        p.numel() * p.element_size() * (1 if isinstance(optimizer, Muon) else 2)
        for optimizer in optimizers
        for group in optimizer.param_groups
        for p in group["params"]
    )


def load_optimizer_state(
    model: nn.Module, optimizers: Iterable[torch.optim.Optimizer], tensors: dict[str, Tensor]
) -> None:
    """Load what `optimizer_state` returned into the optimizers."""
    parameters = dict(model.named_parameters())
    owner = {p: o for o in optimizers for group in o.param_groups for p in group["params"]}
    for name, tensor in tensors.items():
        key, _, of = name.partition("/")
        parameter = parameters[of]
        tensor = tensor.to(parameter.device)
        owner[parameter].state[parameter][key] = split(tensor, parameter) if tensor.ndim else tensor


def newton_schulz(g: Tensor, steps: int = 5) -> Tensor:
    """Nearly orthogonal matrices with the singular vectors of `g`, (n, rows, cols) -> the same shape.

    The quintic iteration of Jordan et al. 2024 (Muon), whose coefficients push every singular value to about 1.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.mT if g.size(-2) > g.size(-1) else g
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        s = x @ x.mT
        x = a * x + (b * s + c * s @ s) @ x
    return x.mT if g.size(-2) > g.size(-1) else x


class Muon(torch.optim.Optimizer):
    """Muon: orthogonalised momentum (Jordan et al. 2024), with updates of AdamW's usual size (Liu et al. 2025, eq. 4),
    so that learning rate and weight decay mean the same as in AdamW.

    `parts` says how many matrices each parameter is: a merged QKV is three, each orthogonalised by itself.
    Matrices of one shape are iterated as one batch; sharded ones are iterated whole in every process. Attributes
    `grad_scale`, by which gradients are divided, and `found_inf` (1.0: change nothing) are honoured, if set, without
    waiting for the device, as in torch's fused optimizers.
    """

    def __init__(
        self,
        params: list[nn.Parameter],
        parts: dict[nn.Parameter, int],
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        group = {"params": params, "parts": [parts[p] for p in params]}
        super().__init__([group], {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "dtype": dtype})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        scale: Tensor | None = getattr(self, "grad_scale", None)
        keep = 1.0 if found_inf is None else 1.0 - found_inf
        for group in self.param_groups:
            parts = {p: n for p, n in zip(group["params"], group["parts"], strict=True) if p.grad is not None}
            params = list(parts)
            if not params:
                continue
            for p in params:
                if "momentum" not in self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
            buffers = [part(self.state[p]["momentum"]) for p in params]
            grads = [part(p.grad) for p in params]
            if scale is not None:
                torch._foreach_div_(grads, scale)
            finite = grads if found_inf is None else [grad.nan_to_num(0.0, 0.0, 0.0) for grad in grads]
            pace = torch.as_tensor((1 - group["momentum"]) * keep, device=buffers[0].device)
            for buffer, grad in zip(buffers, finite, strict=True):
                buffer.lerp_(grad, pace.to(buffer.dtype))
            nesterov = torch._foreach_lerp(finite, buffers, group["momentum"])
            stacks: dict[tuple[int, int], list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
            for p, update in zip(params, nesterov, strict=True):
                pieces = joined(update, p).unflatten(0, (parts[p], -1))
                stacks[pieces.shape[1:]].append((p, pieces))
            for (rows, cols), members in stacks.items():
                stack = newton_schulz(torch.cat([pieces for _, pieces in members]).to(group["dtype"]))
                rate = group["lr"] * 0.2 * math.sqrt(max(rows, cols)) * keep
                shrink = 1 - group["lr"] * group["weight_decay"] * keep
                for (p, _), update in zip(members, stack.split([len(m[1]) for m in members]), strict=True):
                    own = part(split(update.flatten(0, 1).to(p.dtype), p))
                    part(p).mul_(shrink).sub_(own * rate)

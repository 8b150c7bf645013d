"""Products in fp32 on an x86 CPU by oneDNN, as those in bf16 are. torch has MKL make them, which is slow on AMD's
processors with AVX-512, and adds the bias in a pass of its own."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, _get_current_function_mode
from torch.utils.flop_counter import register_flop_formula

CPU = Path("/proc/cpuinfo")
HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def is_faster() -> bool:
    """On this processor: AMD's with AVX-512, where a training step takes 0.91 of the time. Intel's takes as long by
    either, and AMD's with AVX2 alone longer (benchmarks/results/pairs.md, finetuning.md)."""
    if not HAS_ONEDNN or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    return CPU.exists() and "AuthenticAMD" in CPU.read_text()


class OneDNN(TorchFunctionMode):
    """Within it `F.linear`, and so `nn.Linear`, computes by oneDNN what it can: values differ by rounding. What is
    compiled or transformed, and all else, is computed as ever. `torch.backends.mkldnn.flags(enabled=False)` turns it
    off."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not F.linear or kwargs or not _can(*args):
            return func(*args, **(kwargs or {}))
        bias = args[2] if len(args) > 2 else None
        return (_Linear.apply if torch.is_grad_enabled() else _linear)(*args[:2], bias)


def within() -> AbstractContextManager:
    """The OneDNN that the caller is within, or nothing: another thread is not within it by itself."""
    mode = _get_current_function_mode()
    return mode if isinstance(mode, OneDNN) else nullcontext()


def both_passes() -> tuple[AbstractContextManager, AbstractContextManager]:
    """For gradient checkpointing: what is computed again is computed within it, too."""
    return nullcontext(), within()


def _can(x: Tensor, weight: Tensor, *_: Any) -> bool:
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active():
        return False
    if torch.overrides.has_torch_function((x, weight)) or not torch.backends.mkldnn.enabled:
        return False
    is_fp32 = x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    fits = x.ndim > 1 and x.numel() > 0 and x.shape[-1] == weight.shape[-1]  # if not, torch says so
    return is_fp32 and fits and x.device.type == weight.device.type == "cpu"


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(..., K), (N, K) and (N,) -> (..., N)."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        return (
            _Linear.apply(grad, weight.T, None) if of_x else None,
            rows.T @ x.flatten(0, -2) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


if HAS_ONEDNN:

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def _flops(x: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
        return 2 * x.numel() * weight[0]

"""Linear layers on a CPU by oneDNN, which adds the bias within the product (torch takes another pass): for weights in
bf16, and in fp32 on AMD's processors with AVX-512, where torch uses MKL, which is slow there."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils.flop_counter import flop_registry, register_flop_formula

CPU = Path("/proc/cpuinfo")
HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@cache
def is_faster() -> bool:
    """Whether oneDNN is faster in fp32 here: on AMD's with AVX-512 a training step takes 0.91 of the time. Intel's are
    equally fast on minimal pairs, AMD's with AVX2 alone slower (benchmarks/results: rows.md, finetuning.md)."""
    if not HAS_ONEDNN or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    return CPU.exists() and "AuthenticAMD" in CPU.read_text()


def has_bf16() -> bool:
    """Whether this processor multiplies in bf16."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


class OneDNN(TorchFunctionMode):
    """Context within which `F.linear`, and so `nn.Linear`, uses oneDNN where it can, in fp32 and bf16: values differ by
    rounding, and gradients cannot be batched. Compiled or transformed (torch.func) calls, and all others, are computed
    by torch as usual. oneDNN keeps kernels for the last 1,024 shapes, as torch's own products in bf16 do: 0.7 GB for
    200 numbers of rows of four matrices of BERT. `torch.backends.mkldnn.flags(enabled=False)` turns it off."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not F.linear or kwargs or not _can(*args):
            return func(*args, **(kwargs or {}))
        bias = args[2] if len(args) > 2 else None
        return (_Linear.apply if torch.is_grad_enabled() else _linear)(*args[:2], bias)


def chosen(device: torch.device, dtype: torch.dtype = torch.float32) -> AbstractContextManager:
    """A OneDNN context where that is faster for weights of `dtype`, else a null context."""
    fits = is_faster() if dtype == torch.float32 else dtype == torch.bfloat16 and HAS_ONEDNN and has_bf16()
    return OneDNN() if device.type == "cpu" and fits else nullcontext()


def within() -> AbstractContextManager:
    """The OneDNN context that the caller is in, or a null context: other threads have to enter it themselves."""
    modes = _get_current_function_mode_stack()
    return next((mode for mode in modes if isinstance(mode, OneDNN)), nullcontext())


def both_passes() -> tuple[AbstractContextManager, AbstractContextManager]:
    """(forward, recomputation) contexts of gradient checkpointing, so that layers are recomputed within OneDNN, too."""
    return nullcontext(), within()


def _can(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active():
        return False
    if forward_ad._current_level >= 0 or torch.is_autocast_enabled("cpu") or not torch.backends.mkldnn.enabled:
        return False
    own = (x, weight) if bias is None else (x, weight, bias)
    if not all(type(each) in (Tensor, Parameter) and each.dtype == x.dtype and _is_plain(each) for each in own):
        return False
    fits = x.ndim > 1 and weight.ndim == 2 and x.shape[-1] == weight.shape[1]  # if not, torch says so
    # oneDNN takes no notice of a bias's strides
    return fits and (bias is None or (bias.shape == weight.shape[:1] and bias.is_contiguous()))


def _is_plain(each: Tensor) -> bool:
    fits = each.dtype == torch.float32 or (each.dtype == torch.bfloat16 and has_bf16())
    is_dense = each.layout == torch.strided and not each.is_nested
    return fits and each.device.type == "cpu" and is_dense and each.numel() > 0


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., K), weight (N, K) and bias (N,) -> (..., N)."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        of_x, of_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if of_weight else None, weight if of_x else None)
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


def _flops(x: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * x.numel() * weight[0]


if HAS_ONEDNN and torch.ops.mkldnn._linear_pointwise not in flop_registry:
    register_flop_formula(torch.ops.mkldnn._linear_pointwise)(_flops)

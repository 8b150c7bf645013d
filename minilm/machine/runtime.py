"""Device, precision and threads of a process (Runtime), and torch.compile on it."""

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Self, TypeVar

import torch

from minilm.errors import ConfigError, first_line
from minilm.machine import onednn
from minilm.machine.cores import own_cores
from minilm.machine.memory import keep_freed_memory
from minilm.machine.ranks import ALONE, Ranks

Made = TypeVar("Made")
Precision = Literal["bf16", "fp16", "fp32"]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
COMPILED_ON = ("cuda",)  # on a CPU little is gained, and nothing where bits must repeat (benchmarks/results/rows.md)
MOST_GRAPHS = 64  # of one function; the compiler's own limit, 8, is to catch recompilation by mistake


@dataclass(frozen=True)
class Runtime:
    """Device and precision of one process."""

    device: torch.device
    precision: Precision
    reason: str  # why this precision
    threads: int  # of the CPU
    ranks: Ranks = ALONE

    @classmethod
    def choose(
        cls, device: str = "auto", precision: str = "auto", threads: int | None = None, deterministic: bool = False
    ) -> Self:
        """Choose for "auto" the first of cuda, mps, cpu, and the fastest precision that it computes natively.
        deterministic: results repeat bit for bit on an Nvidia GPU, too, in all that this process does from here on.

        Sets for the whole process: torch's CPU threads; on a GPU TF32 for fp32 products, and deterministic algorithms
        if asked for; on a CPU that glibc keeps freed memory. Raises ConfigError for a device that is not there.
        """
        is_used = torch.cuda.is_initialized()
        if threads is not None and threads < 1:
            raise ConfigError(f"--threads {threads}: give 1 or more")
        if precision not in ("auto", *DTYPES):
            raise ConfigError(f"--precision {precision}: unknown; use auto, {', '.join(DTYPES)}")
        ranks = Ranks.join()
        if threads is None and ranks.world > 1:  # torchrun sets 1, whatever the machine has
            threads = own_cores(ranks.world)
        if threads is not None:
            torch.set_num_threads(threads)
        chosen = _device(device)
        if chosen.type == "cuda" and ranks.world > 1:
            chosen = _gpu_of(ranks, chosen)
            torch.cuda.set_device(chosen)
        fastest, reason = _native(chosen)
        if precision != "auto":
            fastest, reason = precision, "asked for"
        if chosen.type == "cpu":
            keep_freed_memory()
        if chosen.type == "cuda":
            torch.set_float32_matmul_precision("high")  # TF32 where fp32 is left
            reason += "; products in TF32" if fastest == "fp32" and _has_bf16(chosen) else ""  # both since Ampere
            if deterministic:
                if is_used and not os.environ.get("CUBLAS_WORKSPACE_CONFIG"):
                    raise ConfigError("--deterministic: this process has used the GPU already; set it before that")
                os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read with the first product
                torch.use_deterministic_algorithms(True)
            _check_kernels(chosen)
        return cls(chosen, fastest, reason, torch.get_num_threads(), ranks)

    @classmethod
    def precise(
        cls, model: torch.nn.Module, device: str = "auto", precision: str = "fp32", threads: int | None = None
    ) -> Self:
        """`choose`, but without TF32, so that fp32 figures are the same on any machine. Moves `model` to the device."""
        runtime = cls.choose(device, precision, threads)
        if precision == "fp32":  # the default here
            runtime = replace(runtime, reason="")
        torch.set_float32_matmul_precision("highest")
        model.to(runtime.device)
        return runtime

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.precision]

    def autocast(self) -> AbstractContextManager:
        """Context for matrix products in `precision`; sums, norms and weights stay fp32. On a CPU fp32 products use
        oneDNN where that is faster."""
        if self.precision == "fp32":
            return onednn.chosen(self.device)
        return torch.autocast(self.device.type, self.dtype)

    @cached_property
    def scaler(self) -> torch.amp.GradScaler:
        """Scaler that keeps small fp16 gradients above zero (Micikevicius et al. 2018); does nothing at other
        precisions."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    @property
    def muon_dtype(self) -> torch.dtype:
        """Dtype of Muon's iteration: bf16 where native, else fp32; fp16 would overflow, emulated bf16 is slow."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    def compiled(self, function: Callable[..., Made], any_shape: bool = False) -> Callable[..., Made]:
        """`function` of a model and a batch, compiled by torch: one graph per shape, whatever the documents of packed
        rows, or, with `any_shape`, one for all. Fused code rounds differently, but always alike for a shape.

        Sets the compiler's options for the whole process, has it timed (`compile_seconds`), and compiles something
        small, to fail at once where the compiler does not work (`is_of_compiler`). Raises ConfigError on devices that
        it is not meant for.
        """
        if self.device.type not in COMPILED_ON:
            raise ConfigError(f"--compile: needs a GPU, and this is {self.device.type}; leave it out")
        if self.precision == "bf16" and self.device.type == "cuda" and not _has_bf16(self.device):
            raise ConfigError("--compile, --precision bf16: this GPU has no native bf16; use fp16 or auto")
        import torch._dynamo
        import torch._inductor.config

        _time_compiling()
        torch._dynamo.config.recompile_limit = MOST_GRAPHS
        torch._dynamo.config.optimize_ddp = False  # which would cut the graph at the buckets of several processes
        torch._inductor.config.deterministic = torch.are_deterministic_algorithms_enabled()
        torch.compile(torch.sin, fullgraph=True)(torch.ones(8, device=self.device))
        graph = torch.compile(function, fullgraph=True, dynamic=any_shape)

        def call(model: torch.nn.Module, batch: Any) -> Made:
            if batch.tokens.cu_seqlens is not None:
                torch._dynamo.maybe_mark_dynamic(batch.tokens.cu_seqlens, 0)
            return graph(model, batch)

        return call

    def describe(self) -> str:
        """Device, processes and precision in one line, for the console."""
        where = f"cpu, {self.threads} threads"
        if self.device.type == "cuda":
            where = torch.cuda.get_device_name(self.device)
        elif self.device.type == "mps":
            where = "Apple GPU (mps)"
        processes = f"{self.ranks.world} processes on " if self.ranks.world > 1 else ""
        return f"{processes}{where}, {self.precision}" + (f" ({self.reason})" if self.reason else "")


def _device(name: str) -> torch.device:
    has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, present in has.items() if present))
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"--device {name}: unknown; use auto, cuda, mps or cpu") from error
    if not has.get(device.type, False):
        raise ConfigError(f"--device {name}: this machine or this torch build has none; leave --device out")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"--device {name}: this machine has {torch.cuda.device_count()} GPU(s)")
    return device


def _gpu_of(ranks: Ranks, asked: torch.device) -> torch.device:
    """GPU of one of several processes: the one of its local rank, unless `asked` has an index."""
    count, alone = torch.cuda.device_count(), os.environ.get("LOCAL_WORLD_SIZE") == "1"
    if asked.index is not None and not alone:
        raise ConfigError(f"--device {asked}: all processes would share it; --device cuda gives each one of its own")
    if asked.index is None and ranks.local_rank >= count:
        raise ConfigError(
            f"process {ranks.local_rank + 1} of this machine sees {count} GPU(s); start at most that many "
            f"(torchrun --nproc-per-node), or, where each sees only its own, set LOCAL_RANK=0"
        )
    return asked if asked.index is not None else torch.device("cuda", ranks.local_rank)


def _has_bf16(gpu: torch.device) -> bool:
    return torch.cuda.get_device_capability(gpu) >= (8, 0)


def _check_kernels(device: torch.device) -> None:
    """Raises ConfigError for a GPU that this torch sees, but has no kernels for."""
    try:
        float(torch.ones(1, device=device) + 1)
    except RuntimeError as error:
        if "no kernel image" not in str(error):
            raise
        mend = "install a torch for it, or give --device cpu"
        raise ConfigError(f"{torch.cuda.get_device_name(device)}: {first_line(error)}; {mend}") from error


def _native(device: torch.device) -> tuple[Precision, str]:
    if device.type == "cuda":
        if _has_bf16(device):
            return "bf16", "native on this GPU"
        return "fp16", "this GPU has no native bf16; with GradScaler"
    if device.type == "cpu":
        if torch.cpu._is_amx_tile_supported():
            return "bf16", "this CPU has AMX"
        if torch.cpu._is_avx512_bf16_supported():
            return "bf16", "this CPU has AVX512-BF16"
    return "fp32", f"no native 16-bit matmul on this {device.type}"


_compiling = {"began": 0.0, "seconds": 0.0}


def compile_seconds() -> float:
    """Seconds that torch's compiler has taken in this process since the first `Runtime.compiled`."""
    return _compiling["seconds"]


def _begin_compiling(_: object) -> None:
    _compiling["began"] = time.perf_counter()


def _end_compiling(_: object) -> None:
    _compiling["seconds"] += time.perf_counter() - _compiling["began"]


def _time_compiling() -> None:
    from torch._dynamo.callback import callback_handler

    if _begin_compiling not in callback_handler.start_callbacks:  # of which torch._dynamo.reset leaves none
        callback_handler.register_start_callback(_begin_compiling)
        callback_handler.register_end_callback(_end_compiling)


def is_of_compiler(error: BaseException) -> bool:
    """Whether the error comes from torch's compiler."""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))

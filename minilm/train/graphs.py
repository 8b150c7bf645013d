"""Training steps as CUDA graphs: the host has a GPU compute a whole step by one call."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from minilm.batch import OnDevice
from minilm.errors import ConfigError, first_line
from minilm.train.loop import Loss, MicroBatch, Optimizers, Outcome, denominator, update
from minilm.train.optim import set_learning_rate_on
from minilm.train.runtime import Runtime

GRAPHED_ON = ("cuda",)
MOST = 32  # graphs of a run; steps of further shapes are computed as usual
OF_EACH = {"count", "size"}  # fields of a batch that are no part of its shape
FIRST = 2  # steps of a shape before it is replayed: one as usual, one in which it is recorded


def step_of(runtime: Runtime, graphed: bool) -> "GraphedStep | None":
    """A `GraphedStep`, if asked for. Raises ConfigError where there are no graphs."""
    if not graphed:
        return None
    if runtime.device.type not in GRAPHED_ON:
        raise ConfigError(f"--cuda-graphs: needs an Nvidia GPU, and this is {runtime.device.type}; leave it out")
    if runtime.ranks.world > 1:
        raise ConfigError("--cuda-graphs: works in one process only; leave it out")
    return GraphedStep(CudaGraphs())


class CudaGraphs:
    """Torch's CUDA graphs, which share their memory."""

    def __init__(self) -> None:
        self.pool, self.stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()

    def before(self, work: Callable[[], Outcome]) -> Outcome:
        """Do the work as usual, on a stream like the one that records it, so that all it needs is there afterwards."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            made = work()
        torch.cuda.current_stream().wait_stream(self.stream)
        return made

    def record(self, work: Callable[[], Outcome]) -> tuple[Callable[[], None], Outcome]:
        """Record the work without doing it: what does it, and the tensors that are then made anew each time."""
        graph = torch.cuda.CUDAGraph()
        # thread_local: the thread that loads ahead may pin memory meanwhile
        with torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode="thread_local"):
            made = work()
        return graph.replay, made


@dataclass(frozen=True)
class Recorded:
    """A step of one shape, and the tensors that it reads and makes."""

    micro_batches: Sequence[Any]  # on the device
    count: Tensor
    replay: Callable[[], None]
    made: Outcome

    def read(self, micro_batches: Sequence[MicroBatch], count: float) -> None:
        """Have the next replay compute these."""
        for old, new in zip(self.micro_batches, micro_batches, strict=True):
            into = old.arrays()
            for name, array in new.arrays().items():
                into[name].copy_(array, non_blocking=True)
        self.count.fill_(count)


class GraphedStep:
    """`train_step` as a CUDA graph for each shape of step (Nguyen et al. 2021, "Accelerating PyTorch with CUDA
    Graphs"). Launching kernels one by one takes longer than computing them where a step has few tokens.

    The first step of a shape is computed as usual; the second is recorded, and like all later ones replayed after its
    tensors were copied to where the first ones were. For one model and its optimizers, whose learning rates it makes
    tensors. Random numbers are those of torch's seed at each step.
    """

    def __init__(self, graphs: CudaGraphs) -> None:
        self.graphs = graphs
        self.of_shape: dict[Any, Recorded | None] = {}  # None: was computed once

    def __call__(
        self,
        forward: nn.Module,
        loss: Loss,
        optimizers: Optimizers,
        micro_batches: Sequence[MicroBatch],
        runtime: Runtime,
        max_norm: float,
    ) -> Outcome:
        """`train_step`. Raises OutOfMemory, and ConfigError for a step that cannot be recorded."""
        set_learning_rate_on(runtime.device, optimizers)
        shape, number = tuple(map(shape_of, micro_batches)), denominator(micro_batches, runtime)

        def of(these: Sequence[Any], count: Tensor) -> Callable[[], Outcome]:
            return lambda: update(forward, loss, optimizers, these, count, runtime, max_norm)

        recorded = self.of_shape.get(shape)
        if recorded is not None:
            recorded.read(micro_batches, number)
        else:
            count = torch.full((), number, device=runtime.device)
            if shape not in self.of_shape:
                made = self.graphs.before(of(micro_batches, count))
                if len(self.of_shape) < MOST:
                    self.of_shape[shape] = None
                return made
            there = [micro.to(runtime.device).clone() for micro in micro_batches]
            try:
                recorded = Recorded(there, count, *self.graphs.record(of(there, count)))
            except RuntimeError as error:
                why = first_line(error)[:200]
                raise ConfigError(f"--cuda-graphs: no step is recorded here ({why}); leave it out") from error
            self.of_shape[shape] = recorded
        recorded.replay()
        return tuple(tensor.clone() for tensor in recorded.made)  # the next replay writes to the same ones


def shape_of(part: OnDevice) -> tuple[Any, ...]:
    """All of a batch that a recorded step depends on, but the values of its tensors."""
    found: list[Any] = [type(part)]
    for name, value in ((field.name, getattr(part, field.name)) for field in fields(part)):
        if isinstance(value, OnDevice):
            found.append(shape_of(value))
        elif isinstance(value, Tensor):
            found.append((value.shape, value.dtype))
        elif name not in OF_EACH:
            found.append(value)
    return tuple(found)

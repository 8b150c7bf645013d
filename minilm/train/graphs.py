"""Training steps as CUDA graphs: the host has a GPU compute a whole step by one call."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from minilm.batch import OnDevice
from minilm.errors import ConfigError, first_line
from minilm.machine.runtime import Runtime
from minilm.train.loop import Loss, MicroBatch, Optimizers, Outcome, OutOfMemory, Step, denominator, train_step, update
from minilm.train.optim import keep_learning_rate_on

GRAPHED_ON = ("cuda",)
MOST = 32  # graphs of a run
NOT_IN_SHAPE = {"count", "size"}  # fields of a batch: a graph reads the count from a tensor, and no loss reads the size
WARM_UP = 2  # steps of a shape before it is replayed: one as usual, one in which it is recorded


def step_of(runtime: Runtime, graphed: bool) -> Step:
    """`train_step`, or a `GraphedStep` if asked for. Raises ConfigError where there are no graphs."""
    if not graphed:
        return train_step
    if runtime.device.type not in GRAPHED_ON:
        raise ConfigError(f"--cuda-graphs: needs an Nvidia GPU, and this is {runtime.device.type}; leave it out")
    if runtime.ranks.world > 1:
        raise ConfigError("--cuda-graphs: works in one process only; leave it out")
    return GraphedStep(CudaGraphs(runtime.device))


class CudaGraphs:
    """Torch's CUDA graphs on a device, which share their memory."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.pool, self.stream = device, torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)

    def warm_up(self, work: Callable[[], Outcome]) -> Outcome:
        """Do the work as usual, on the stream that will record it, so that all it needs is there afterwards."""
        usual = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(usual)
        with torch.cuda.stream(self.stream):
            made = work()
        usual.wait_stream(self.stream)
        return made

    def record(self, work: Callable[[], Outcome]) -> tuple[Callable[[], None], Outcome]:
        """Record the work without doing it: what does it, and the tensors that are then made anew each time."""
        graph, usual = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.device)
        try:
            # thread_local: the thread that loads ahead may pin memory meanwhile
            with torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode="thread_local"):
                made = work()
        except BaseException:
            torch.cuda.set_stream(usual)  # for torch leaves its own
            raise
        return graph.replay, made


@dataclass(frozen=True)
class Recorded:
    """A step of one shape, and the tensors that it reads and makes."""

    micro_batches: Sequence[Any]  # on the device
    count: Tensor  # denominator of the loss
    replay: Callable[[], None]
    made: Outcome

    def load(self, micro_batches: Sequence[MicroBatch], count: float) -> None:
        """Have the next replay compute these."""
        for old, new in zip(self.micro_batches, micro_batches, strict=True):
            into = old.arrays()
            for name, array in new.arrays().items():
                into[name].copy_(array, non_blocking=True)
        self.count.fill_(count)


class GraphedStep:
    """`train_step` as a CUDA graph for each shape of step (Nguyen et al. 2021, "Accelerating PyTorch with CUDA
    Graphs"). The host needs longer to launch kernels one by one than the GPU to compute them where a step has few
    tokens.

    The first step of a shape is computed as usual. The second is recorded, and like all later ones replayed, after its
    tensors were copied to those of the recorded one. Once MOST are recorded, steps of other shapes are computed as
    usual. For one model and its optimizers, whose learning rates it makes tensors. Random numbers are those of torch's
    seed at each step.
    """

    def __init__(self, graphs: CudaGraphs) -> None:
        self.graphs = graphs
        self.of_shape: dict[Any, Recorded | None] = {}  # None: was computed once

    def __call__(self, *of: Any) -> Outcome:
        """`train_step`. If memory runs out, graphs give back theirs, if there are any, and the step is computed as
        usual. Raises OutOfMemory, and ConfigError for a step that cannot be recorded."""
        try:
            return self._step(*of)
        except OutOfMemory:
            if not any(self.of_shape.values()):
                raise
            self.of_shape.clear()  # all at once: torch frees buffers of products with a graph, which others may share
        return self._step(*of)  # here, for the error above holds what the step had made

    def _step(
        self,
        forward: nn.Module,
        loss: Loss,
        optimizers: Optimizers,
        micro_batches: Sequence[MicroBatch],
        runtime: Runtime,
        max_norm: float,
    ) -> Outcome:
        keep_learning_rate_on(runtime.device, optimizers)
        shape, count = tuple(map(shape_of, micro_batches)), denominator(micro_batches, runtime)

        def work_on(there: Sequence[Any], count: Tensor) -> Callable[[], Outcome]:
            return lambda: update(forward, loss, optimizers, there, count, runtime, max_norm)

        recorded = self.of_shape.get(shape)
        if recorded is not None:
            recorded.load(micro_batches, count)
        elif shape in self.of_shape and sum(map(bool, self.of_shape.values())) < MOST:
            there = [micro.to(runtime.device).clone() for micro in micro_batches]
            count_there = torch.full((), count, device=runtime.device)
            recorded = Recorded(there, count_there, *self._record(work_on(there, count_there)))
            self.of_shape[shape] = recorded
        else:
            made = self.graphs.warm_up(work_on(micro_batches, torch.full((), count, device=runtime.device)))
            self.of_shape[shape] = None
            return made
        recorded.replay()
        return tuple(tensor.clone() for tensor in recorded.made)  # the next replay writes to the same ones

    def _record(self, work: Callable[[], Outcome]) -> tuple[Callable[[], None], Outcome]:
        try:
            return self.graphs.record(work)
        except RuntimeError as error:
            cause = error.__context__ or error  # which also makes the recording end with an error
            if isinstance(cause, OutOfMemory):
                raise cause from None
            raise ConfigError(
                f"--cuda-graphs: no step is recorded here ({first_line(cause)}); leave it out, in another --out"
            ) from error


def shape_of(part: OnDevice) -> tuple[Any, ...]:
    """All of a batch that a recorded step depends on, but the values of its tensors."""
    found: list[Any] = [type(part)]
    for name, value in ((field.name, getattr(part, field.name)) for field in fields(part)):
        if isinstance(value, OnDevice):
            found.append(shape_of(value))
        elif isinstance(value, Tensor):
            found.append((value.shape, value.dtype))
        elif name not in NOT_IN_SHAPE:
            found.append(value)
    return tuple(found)

"""The processes that share a run: `torchrun --nproc-per-node N train.py`. With one process everything here is nothing.

Small facts (counts, whether to stop) are summed on the CPU, where the host has them: no step waits for a GPU.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from minilm.errors import ConfigError, UserError

T = TypeVar("T")
LOST = ("Connection closed by peer", "Connection reset by peer", "gloo", "NCCL", "Broken pipe", "TCPStore")
PATIENCE = timedelta(hours=6)  # for a first process that tokenises


def is_first() -> bool:
    """Whether this process is the one that speaks and writes."""
    return not _are_several() or os.environ["RANK"] == "0"


def _are_several() -> bool:
    return "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


def have_met() -> bool:
    """Whether this process has joined the others."""
    return dist.is_initialized()


def lost_contact(error: BaseException) -> bool:
    """Whether an error says that another process is gone."""
    return isinstance(error, dist.DistError) or (dist.is_initialized() and any(sign in str(error) for sign in LOST))


def leave() -> None:
    """Part from the other processes; without it torch's threads may abort this one as it ends."""
    if dist.is_initialized():
        dist.destroy_process_group()


class Applied(nn.Module):
    """A model as a module that applies functions to it: torch's wrappers see only what goes through `forward`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[[nn.Module, Any], T], batch: Any) -> T:
        return function(self.model, batch)


@dataclass(frozen=True)
class Ranks:
    """This process's place among `world`."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0  # on this machine

    @classmethod
    def join(cls) -> Self:
        """The processes that torchrun started; without it, this one alone."""
        if not _are_several():
            return cls()
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        if not dist.is_initialized():
            dist.init_process_group(backend, timeout=PATIENCE)
        return cls(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))

    @property
    def first(self) -> bool:
        return self.rank == 0

    def total(self, *values: float) -> list[float]:
        """Each value summed over the processes, exactly for whole numbers below 2^53."""
        if self.world == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(sums)
        return sums.tolist()

    def largest(self, value: float) -> float:
        """Of all processes."""
        return max(self._gathered(value))

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process."""
        return self.total(float(flag))[0] > 0

    def any_on_device(self, flag: Tensor) -> Tensor:
        """The same for a flag on a device, which nobody waits for."""
        if self.world == 1:
            return flag
        number = flag.float()
        dist.all_reduce(number, op=dist.ReduceOp.MAX)
        return number > 0

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` returns in the first process, in all. Raises its UserError in all."""
        made = self.agreed(make if self.first else lambda: None)
        box = [made if self.first else None]
        if self.world > 1:
            dist.broadcast_object_list(box)
        return box[0]

    def agreed(self, work: Callable[[], T]) -> T:
        """What `work` returns here. If it raises UserError or OSError in any process, all raise one."""
        if self.world == 1:
            return work()
        value, own = None, None
        try:
            value = work()
        except (UserError, OSError) as error:
            own = error
        said = self._gathered(None if own is None else f"process {self.rank}: {own}")
        if own is not None and self.first:
            raise own
        if fault := next((line for line in said if line is not None), None):
            raise UserError(fault.removeprefix("process 0: ")) from own
        return value

    def one_by_one(self, work: Callable[[], T]) -> T:
        """As `agreed`, the first process of each machine before the others, who find what it has made."""
        value = self.agreed(work if self.local_rank == 0 else lambda: None)
        return self.agreed(work if self.local_rank else lambda: value)

    def expect_same(self, value: Any, what: str) -> None:
        """Raises ConfigError in all processes where one has another value than the first."""
        values = self._gathered(value)
        if other := next((rank for rank, each in enumerate(values) if each != values[0]), None):
            raise ConfigError(f"process {other} has {what} than process 0; give every process the same")

    def parallel(self, forward: Applied) -> nn.Module:
        """`forward`, whose backward averages the gradients over the processes."""
        return forward if self.world == 1 or is_sharded(forward) else DistributedDataParallel(forward)

    def shard(self, forward: Applied, layers: Iterable[nn.Module], device: torch.device) -> None:
        """Leave each process with its part of every parameter of `forward`, and so of gradients and optimizer states;
        a layer is whole only while it computes (FSDP2; Zhao et al. 2023). In place, before optimizers are made."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(device.type, (self.world,))
        for layer in layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(forward, mesh=mesh)

    def _gathered(self, value: Any) -> list[Any]:
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values


ALONE = Ranks()


@contextmanager
def no_sync(module: nn.Module) -> Iterator[None]:
    """Within it a backward only adds to this process's own gradients."""
    if is_sharded(module):
        module.set_requires_gradient_sync(False)
        yield
        module.set_requires_gradient_sync(True)
    elif isinstance(module, DistributedDataParallel):
        with module.no_sync():
            yield
    else:
        yield


def is_sharded(thing: nn.Module | Tensor) -> bool:
    """Whether it is torch's FSDPModule or DTensor, told by what only these can do: to import them takes half a second,
    which most runs need not wait."""
    return hasattr(thing, "set_requires_gradient_sync" if isinstance(thing, nn.Module) else "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """All of a sharded tensor, which all processes must ask for; any other one as it is."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def part(tensor: Tensor) -> Tensor:
    """What this process has of a tensor, in the same memory."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def joined(own: Tensor, like: Tensor) -> Tensor:
    """The whole tensor of which the processes have the parts `own`, sharded like `like`."""
    if not is_sharded(like):
        return own
    layout = like.device_mesh, like.placements
    return type(like.data).from_local(own, *layout, shape=like.shape, stride=like.stride()).full_tensor()


def split(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, the same in all processes, sharded like `like`."""
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict, whole in every process."""
    return {name: whole(tensor.detach()) for name, tensor in model.state_dict().items()}

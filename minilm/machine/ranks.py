"""Runs of several processes (`torchrun --nproc-per-node N train.py`). With one process everything here does nothing.

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

from minilm.errors import ConfigError, UserError, first_line

T = TypeVar("T")
LOST = ("Connection closed by peer", "Connection reset by peer", "gloo", "NCCL", "Broken pipe", "TCPStore")
PATIENCE = timedelta(hours=6)  # the others wait while the first process tokenises


def is_first() -> bool:
    """Whether this is the process of rank 0, the only one that prints and writes."""
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
    """Leave the process group; without this torch's threads may abort the process as it ends."""
    if dist.is_initialized():
        dist.destroy_process_group()


class Applied(nn.Module):
    """Wrapper whose `forward` applies a function to the model, for torch's DDP and FSDP only see calls of `forward`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[[nn.Module, Any], T], batch: Any) -> T:
        return function(self.model, batch)


@dataclass(frozen=True)
class Ranks:
    """Rank of this process among `world`, and what the processes do together."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0  # on this machine

    @classmethod
    def join(cls) -> Self:
        """Join the processes that torchrun started; without torchrun, a world of 1."""
        if not _are_several():
            return cls()
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        if not dist.is_initialized():
            try:
                dist.init_process_group(backend, timeout=PATIENCE)
            except (ValueError, RuntimeError) as error:  # no address, or its port is taken
                why = first_line(error)[:100]
                raise ConfigError(f"cannot meet the other processes ({why}); start them with torchrun") from error
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
        """The largest `value` of all processes."""
        return max(self._gathered(value))

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true in any process."""
        return self.total(float(flag))[0] > 0

    def any_on_device(self, flag: Tensor) -> Tensor:
        """`any` for a flag on a device, without waiting for the device."""
        if self.world == 1:
            return flag
        number = flag.float()
        dist.all_reduce(number, op=dist.ReduceOp.MAX)
        return number > 0

    def from_first(self, make: Callable[[], T]) -> T:
        """Run `make` in the first process: its result, in all. A UserError or OSError there raises an error in all."""
        made = self.agreed(make if self.first else lambda: None)
        box = [made if self.first else None]
        if self.world > 1:
            dist.broadcast_object_list(box)
        return box[0]

    def agreed(self, work: Callable[[], T]) -> T:
        """Run `work` in every process: its result here. A UserError or OSError in any raises an error in all."""
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
        """`agreed`, but the first process of each machine runs before the others, which find what it has made."""
        value = self.agreed(work if self.local_rank == 0 else lambda: None)
        return self.agreed(work if self.local_rank else lambda: value)

    def expect_same(self, value: Any, what: str) -> None:
        """Raises ConfigError in all processes if one has another value than the first."""
        values = self._gathered(value)
        if other := next((rank for rank, each in enumerate(values) if each != values[0]), None):
            raise ConfigError(f"process {other} has {what} than process 0; give every process the same")

    def parallel(self, forward: Applied) -> nn.Module:
        """`forward` in DistributedDataParallel if needed: its backward averages the gradients over the processes."""
        return forward if self.world == 1 or is_sharded(forward) else DistributedDataParallel(forward)

    def shard(self, forward: Applied, layers: Iterable[nn.Module], device: torch.device) -> None:
        """Shard every parameter of `forward`, and so gradients and optimizer states, over the processes; a layer is
        whole only while it computes (FSDP2; Zhao et al. 2023). In place, before optimizers are made."""
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
    """Context in which a backward only adds to this process's gradients, without averaging over processes."""
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
    """Whether `thing` is torch's FSDPModule or DTensor, recognised by an attribute: importing them takes half a second,
    which most runs can save."""
    return hasattr(thing, "set_requires_gradient_sync" if isinstance(thing, nn.Module) else "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor in full, for which all processes must call this; other tensors as they are."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def part(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, sharing its memory."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def joined(own: Tensor, like: Tensor) -> Tensor:
    """The full tensor from every process's part `own`, which is sharded like `like`."""
    if not is_sharded(like):
        return own
    layout = like.device_mesh, like.placements
    return type(like.data).from_local(own, *layout, shape=like.shape, stride=like.stride()).full_tensor()


def split(tensor: Tensor, like: Tensor) -> Tensor:
    """Shard a full tensor, the same in all processes, like `like`."""
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def whole_state(model: nn.Module, kept: bool = True) -> dict[str, Tensor]:
    """The model's state dict, unsharded, for which all processes must call this; empty in those where it is not `kept`.
    What was sharded is on the CPU, for a GPU may have no room for all of it."""
    state = {}
    for name, tensor in model.state_dict().items():
        full = whole(tensor.detach())
        if kept:
            state[name] = full.cpu() if is_sharded(tensor) else full
    return state

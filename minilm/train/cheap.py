"""Parts of a model that cost little on a CPU, and what training makes of them: dropout and the table of words."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = 1 << 16  # of a draw


class CheapDropout(nn.Dropout):
    """nn.Dropout with masks of 16-bit draws, made ten times as fast: torch's generator draws them one by one.

    The rate is the nearest multiple of 2^-16, and 1 / (1 - rate) is rounded to x's type, as torch's own is. The draws
    (SFC64, as numpy has it) depend on torch's generator alone.
    """

    def forward(self, x: Tensor) -> Tensor:
        dropped = round(self.p * LEVELS)  # of the levels
        if not self.training or dropped in (0, LEVELS) or x.device.type != "cpu":
            return super().forward(x)
        seed = int(torch.randint(1 << 62, ()))
        draws = np.random.SFC64(seed).random_raw(-(-x.numel() // 4)).view(np.int16)[: x.numel()]
        kept = (draws >= dropped - LEVELS // 2).view(np.int8)  # torch compares one by one, and reads bools so
        scale = torch.from_numpy(kept).to(x.dtype).mul_(LEVELS / (LEVELS - dropped))  # a product of two types is slow
        return x * scale.view(x.shape)


class CheapEmbedding(nn.Embedding):
    """nn.Embedding whose gradient is one tensor, kept from step to step, of which only the rows last written to are
    made zero again: torch asks the system for a whole new table of zeros each step. Nobody else may write to it, as
    clipping would with a norm that is NaN.

    Its backward pass adds to `weight.grad` itself, so it is for one process and a table that nothing else reads.
    """

    kept: Tensor | None = None  # the gradient
    written: Sequence[Tensor] = ()  # the ids of its rows that may not be zero

    def forward(self, ids: Tensor) -> Tensor:
        if ids.device.type != "cpu" or not (torch.is_grad_enabled() and self.weight.requires_grad):
            return super().forward(ids)
        return _Rows.apply(self.weight, ids, self)

    def add_gradient(self, ids: Tensor, gradient: Tensor) -> None:
        """ids (n,), gradient (n, D)."""
        if self.padding_idx is not None:
            is_read = ids != self.padding_idx
            ids, gradient = ids[is_read], gradient[is_read]
        if self.weight.grad is None:  # a new step
            if self.kept is None:
                self.kept = torch.zeros_like(self.weight)
            for before in self.written:
                self.kept[before] = 0
            self.written, self.weight.grad = (), self.kept
        self.written = (*self.written, ids)  # first, for what follows may find no memory half-way
        self.weight.grad.index_add_(0, ids, gradient)

    def rows_of_gradient(self) -> Tensor:
        """(n, D): of `weight.grad` all rows that may not be zero, each once."""
        return self.weight.grad[torch.cat(tuple(self.written)).unique()]


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, table: CheapEmbedding) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.table = table
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None]:
        (ids,) = ctx.saved_tensors
        ctx.table.add_gradient(ids.flatten(), gradient.flatten(0, -2))
        return None, None, None


def cheapen(model: nn.Module, table: nn.Embedding | None = None) -> None:
    """Every nn.Dropout of the model so, and `table`; its parameters and their names stay."""
    for parent, name, child in _children(model):
        if type(child) is nn.Dropout:
            setattr(parent, name, CheapDropout(child.p).train(child.training))
        elif child is table:
            setattr(parent, name, _like(child, CheapEmbedding))


def as_before(model: nn.Module) -> None:
    """Plain modules again."""
    for parent, name, child in _children(model):
        if type(child) is CheapDropout:
            setattr(parent, name, nn.Dropout(child.p).train(child.training))
        elif type(child) is CheapEmbedding:
            setattr(parent, name, _like(child, nn.Embedding))


def _children(model: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    return [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()]


def _like(table: nn.Embedding, kind: type[nn.Embedding]) -> nn.Embedding:
    """Another kind of table with the same parameter."""
    made = kind(*table.weight.shape, table.padding_idx, _weight=table.weight.detach())
    made.weight = table.weight
    return made.train(table.training)

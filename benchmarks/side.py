"""What is measured: a row, and a side of it, each call of which does some of its work."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from minilm.machine.runtime import DTYPES, Runtime

COMPARED = {"cpu": 1, "cuda": 3}  # calls whose numbers must be those of the other sides; CUDA graphs replay the third


class Done(NamedTuple):
    """What a call of a side did."""

    count: int  # of the row's unit
    values: Tensor  # what all sides must come to at first: losses and norms of gradients (2, steps), vectors (texts,
    # width), ids (1, tokens)


Side = Callable[[], Done]
Makers = dict[str, Callable[[], Side]]  # of sides by their names, so that one can be made alone


@dataclass(frozen=True)
class Setting:
    """Where a row is measured."""

    device: torch.device
    precision: str
    model: Path | None  # a directory that all libraries open
    cache_dir: Path
    texts: int | None = None  # of a pass

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.precision]

    @property
    def runtime(self) -> Runtime:
        return Runtime.choose(str(self.device), self.precision)


class Least(NamedTuple):
    """Work without which there is no result, as minilm computes it: what other sides do besides is not counted."""

    flops: float  # of matrix products
    bytes: float = 0.0  # that are read and written while nothing is multiplied
    tokens: float = 1.0  # that one of the unit has, special ones included


@dataclass(frozen=True)
class Row:
    """A kind of work."""

    what: str
    unit: str
    make: Callable[[Setting], Makers]
    of_model: bool = False  # whether it is of --model
    precisions: tuple[str, ...] = ("fp32", "bf16")
    least: Callable[[Setting], Least] | None = None  # that one of the unit needs
    agree: bool = True  # whether sides come to the same numbers
    on_cpu: bool = False  # also where there is a GPU

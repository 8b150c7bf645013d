"""Batches in the order of a run. The rows of a step are a function of (seed, step) alone, so a run resumes anywhere at
no cost, and any number of processes share the rows of a step without communication."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from minilm.batch import IGNORE, Batch
from minilm.data.draws import order
from minilm.data.objectives import Objective
from minilm.data.packing import Rows
from minilm.errors import ConfigError, DataError, some

EVALUATED_TOKENS = 1 << 17
EVALUATED_AT_ONCE = 1 << 12  # tokens of an evaluation batch

Kind = tuple[int, int]  # of a step: (tokens per row, rows)


@dataclass(frozen=True)
class Stretch:
    """Consecutive steps of a run with the same row length and batch size."""

    steps: int
    length: int  # tokens per row
    rows: int  # per step, in all processes
    batch_size: int  # rows per micro-batch, at most

    @property
    def tokens(self) -> int:
        """Tokens of all its steps, padding included."""
        return self.steps * self.rows * self.length

    @property
    def kind(self) -> Kind:
        """(tokens per row, rows per step), on which a step's cost depends."""
        return self.length, self.rows


class Loader:
    """The micro-batches of this process, step by step. Every epoch shuffles the rows anew; a step may span two epochs,
    and stretches of the same row length continue one order.

    Raises DataError if the rows do not fill one micro-batch, ConfigError if the processes cannot share a step evenly.
    """

    def __init__(
        self,
        stretches: Sequence[Stretch],
        rows: dict[int, Rows],
        objective: Objective,
        seed: int,
        rank: int = 0,
        world: int = 1,
        pin_memory: bool = False,
        few_sizes: bool = False,
    ) -> None:
        """rows: row length -> rows, for every length in `stretches`. few_sizes: as `Batch.in_few_sizes`."""
        check_divisible(stretches, world)
        for each in stretches:
            if len(rows[each.length]) < (at_once := each.rows // world // _parts(each, world)):
                raise DataError(
                    f"the training split makes {len(rows[each.length])} rows of {each.length} tokens, fewer than a "
                    f"micro-batch of {at_once}; give more text, or lower --batch-size or --length"
                )
        self.stretches, self.rows, self.objective, self.seed = tuple(stretches), rows, objective, seed
        self.rank, self.world, self.pin_memory, self.few_sizes = rank, world, pin_memory, few_sizes
        self.steps = sum(each.steps for each in stretches)

    def with_stretches(self, stretches: Sequence[Stretch]) -> "Loader":
        """A loader of the same rows for other stretches."""
        share = self.seed, self.rank, self.world
        return Loader(stretches, self.rows, self.objective, *share, self.pin_memory, self.few_sizes)

    def within(self, tokens: int) -> "Loader":
        """This loader's steps in micro-batches of at most `tokens` tokens, padding included, or of one row."""

        def smaller(each: Stretch) -> Stretch:
            most = max(1, min(each.batch_size, tokens // each.length))
            return replace(each, batch_size=_divisor(each.rows // self.world, most))

        return self.with_stretches([*map(smaller, self.stretches)])

    def at(self, step: int) -> tuple[Stretch, int]:
        """(stretch of a step, place of its first row in the order of rows of that length). Steps count from 0; those
        after the last stretch belong to it."""
        taken: dict[int, int] = dict.fromkeys(self.rows, 0)
        begin = 0
        for number, each in enumerate(self.stretches, start=1):
            if step < begin + each.steps or number == len(self.stretches):
                return each, taken[each.length] + (step - begin) * each.rows
            taken[each.length] += each.steps * each.rows
            begin += each.steps
        raise AssertionError("a run has stretches")

    def epochs(self) -> float:
        """Passes of the run over the training split, by tokens."""
        seen = sum(each.tokens for each in self.stretches)
        longest = self.rows[max(self.rows)]
        return seen / (len(longest) * longest.T)

    def work(self, step: int) -> int:
        """Tokens of all steps before `step`, padding included."""
        done = 0
        for each in self.stretches:
            now = min(each.steps, step)
            done, step = done + now * each.rows * each.length, step - now
        return done

    def order(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(epoch, row) of all rows of a step; (rows,) int64 each."""
        stretch, start = self.at(step)
        return order(self.seed, start, start + stretch.rows, len(self.rows[stretch.length]))

    def micro_batches(self, step: int) -> list[Batch]:
        """This process's micro-batches of a step: a pure function."""
        stretch, _ = self.at(step)
        epoch, row = map(self._own, self.order(step))
        progress, short_rows = self.progress(step), self.rows[stretch.length].short_rows(step)
        made = []
        parts = _parts(stretch, self.world)
        for e, r in zip(np.split(epoch, parts), np.split(row, parts), strict=True):
            batch = _read(self.rows[stretch.length], self.objective, r, e, progress, short_rows)
            batch = batch.in_few_sizes() if self.few_sizes else batch
            made.append(batch.pin_memory() if self.pin_memory else batch)
        return made

    def read_in(self, step: int) -> str:
        """Names of the rows that this process reads in a step, for a message."""
        process = f" in process {self.rank}" if self.world > 1 else ""
        return f"rows {some(self.named(self._own(self.order(step)[1])), 8)}{process}"

    def named(self, rows: np.ndarray) -> list[str]:
        """Row numbers, from 0, as strings."""
        return rows.astype(str).tolist()

    def _own(self, of_all: np.ndarray) -> np.ndarray:
        """This process's part of an array over all rows of a step."""
        own = len(of_all) // self.world
        return of_all[self.rank * own : (self.rank + 1) * own]

    def progress(self, step: int) -> float:
        """Fraction of the run done at a step: 0 in the first, 1 in the last."""
        return min(1.0, step / max(1, self.steps - 1))

    def positions(self, step: int) -> tuple[int, int, int]:
        """(tokens with padding, tokens per row, targets with IGNORE) of a step, in all processes."""
        stretch, _ = self.at(step)
        short_rows = self.rows[stretch.length].short_rows(step)
        rows, length = stretch.rows * short_rows, stretch.length // short_rows
        return rows * length, length, rows * self.objective.slots(length, self.progress(step))

    @property
    def cycle(self) -> int:
        """Steps after which the row lengths within a stretch repeat."""
        return math.lcm(*(each.cycle for each in self.rows.values()))


def check_divisible(stretches: Sequence[Stretch], world: int) -> None:
    """Raises ConfigError if a step's rows cannot be divided into equal micro-batches in all processes."""
    for each in stretches:
        if each.rows % (world * _parts(each, world)):
            raise ConfigError(
                f"{each.rows} rows a step do not divide into equal micro-batches of at most {each.batch_size} for "
                f"{world} processes; change --batch-size or --accumulation"
            )


def _divisor(number: int, most: int) -> int:
    """The largest divisor of `number` that is at most `most`."""
    return next(each for each in range(most, 0, -1) if number % each == 0)


def _parts(stretch: Stretch, world: int) -> int:
    """Number of micro-batches of a step in each process."""
    return math.ceil(stretch.rows / world / stretch.batch_size)


def fixed_batches(rows: Rows, objective: Objective, min_targets: int = 20_000) -> Iterator[Batch]:
    """Evaluation batches, the same at every call: `min_targets` targets or more, or every row there is.

    Rows are spread evenly over the split, EVALUATED_TOKENS of it or all. A split with too few targets is read again
    with other random draws, if the objective is random. Targets per row are estimated from some 64 rows of the whole
    split.
    """
    probe = np.arange(0, len(rows), max(1, len(rows) // 64))
    per_row = _read(rows, objective, probe, np.zeros_like(probe)).count / len(probe)
    enough = math.ceil(1.1 * min_targets / max(per_row, 1.0))  # rows; a tenth more, for some may have fewer targets
    wanted = min(len(rows), max(enough, EVALUATED_TOKENS // rows.T))
    if objective.random:
        wanted = max(wanted, enough)
    number = np.arange(wanted)
    epoch, row = np.divmod(number, len(rows))
    if wanted < len(rows):
        row = number * len(rows) // wanted
    batch_size = max(1, EVALUATED_AT_ONCE // rows.T)
    for at in range(0, wanted, batch_size):
        yield _read(rows, objective, row[at : at + batch_size], epoch[at : at + batch_size])


def shared(batches: Sequence[Batch], rank: int, world: int) -> list[Batch]:
    """One process's part of `batches`, equally many in each process: if they do not divide, a batch without targets
    fills up, for processes that compute together must do so equally often."""
    own = list(batches[rank::world])
    if len(own) < math.ceil(len(batches) / world):
        first = batches[0]
        own.append(replace(first, target=torch.full_like(first.target, IGNORE), count=0, size=0, pair_label=None))
    return own


def _read(
    rows: Rows, objective: Objective, row: np.ndarray, epoch: np.ndarray, progress: float = 0.0, short_rows: int = 1
) -> Batch:
    taken = rows.take(row, epoch, short_rows)
    if short_rows > 1:  # each short row has its own draws
        row, epoch = (row[:, None] * short_rows + np.arange(short_rows)).ravel(), np.repeat(epoch, short_rows)
    return objective(taken, torch.from_numpy(row), torch.from_numpy(epoch), progress)

"""Rows in the order of a run, as batches. Row number n of the run is a function of (seed, n) alone, so the whole
state is one number, and going on from it costs the same anywhere."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from minilm.batch import Batch
from minilm.data.objectives import ROW_ORDER, Objective, draw
from minilm.data.packing import Rows
from minilm.errors import CheckpointError, DataError

EVALUATED_TOKENS = 1 << 17
EVALUATED_AT_ONCE = 1 << 12  # tokens of one batch


class Loader:
    """Endless batches: every epoch is another permutation of the rows, and a batch may span two epochs.

    Raises DataError where the rows do not fill one batch.
    """

    def __init__(self, rows: Rows, objective: Objective, batch_size: int, seed: int, pin_memory: bool = False) -> None:
        if len(rows) < batch_size:
            raise DataError(
                f"the training split makes {len(rows)} rows of {rows.T} tokens, fewer than --batch-size {batch_size}; "
                f"give more text, or lower --batch-size or --length"
            )
        self.rows, self.objective, self.batch_size, self.seed = rows, objective, batch_size, seed
        self.pin_memory = pin_memory
        self.taken = 0  # rows given out so far
        self._latest = -1, np.empty(0, np.int64)  # epoch and its order; replaced whole, for two threads may ask

    def order(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(epoch, row) of the run's rows number start ... start + count - 1; (count,) int64 each."""
        number = np.arange(start, start + count)
        epoch, place = np.divmod(number, len(self.rows))
        row = np.empty_like(place)
        for each in np.unique(epoch):
            row[epoch == each] = self._permutation(int(each))[place[epoch == each]]
        return epoch, row

    def batch(self, start: int) -> Batch:
        """The batch that begins with the run's row number `start`: a pure function."""
        epoch, row = self.order(start, self.batch_size)
        batch = self.objective(*self.rows.take(row), torch.from_numpy(row), torch.from_numpy(epoch))
        return batch.pin_memory() if self.pin_memory else batch

    def __iter__(self) -> Iterator[Batch]:
        """Batches from where the state stands, the next one prepared while the last is used."""
        with ThreadPoolExecutor(max_workers=1) as worker:
            coming = worker.submit(self.batch, self.taken)
            while True:
                batch = coming.result()
                self.taken += self.batch_size
                coming = worker.submit(self.batch, self.taken)
                yield batch

    def _permutation(self, epoch: int) -> np.ndarray:
        known, order = self._latest
        if epoch != known:
            key = draw(self.seed, ROW_ORDER, torch.tensor([epoch]), torch.arange(len(self.rows)), torch.tensor([0]))
            order = key.argsort(stable=True).numpy()
            self._latest = epoch, order
        return order

    def state_dict(self) -> dict[str, int]:
        """How far the run has come, and what that number depends on."""
        return {"taken": self.taken, "rows": len(self.rows), "seed": self.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a saved place. Raises CheckpointError where that was another corpus or seed."""
        own = self.state_dict()
        for key in ("rows", "seed"):
            if state[key] != own[key]:
                raise CheckpointError(f"the checkpoint was made with {key} {state[key]}, this run has {own[key]}")
        self.taken = state["taken"]


def fixed_batches(rows: Rows, objective: Objective, min_targets: int = 20_000) -> Iterator[Batch]:
    """The same batches at every call, for evaluation: `min_targets` targets or more, or every row there is.

    Rows are spread evenly over the split, EVALUATED_TOKENS of it if it has so many. A split with too few targets
    is read again with other draws, where the objective draws. How many targets a row has is estimated from 64 rows
    of the whole split.
    """
    some = np.arange(len(rows))[:: max(1, len(rows) // 64)]
    per_row = objective(*rows.take(some), torch.from_numpy(some), torch.zeros(len(some)).long()).count / len(some)
    enough = math.ceil(1.1 * min_targets / max(per_row, 1.0))  # rows; a tenth to spare, for others may hold fewer
    wanted = min(len(rows), max(enough, EVALUATED_TOKENS // rows.T))
    if objective.random:
        wanted = max(wanted, enough)
    number = np.arange(wanted)
    epoch, row = np.divmod(number, len(rows))
    if wanted < len(rows):
        row = number * len(rows) // wanted
    batch_size = max(1, EVALUATED_AT_ONCE // rows.T)
    for at in range(0, wanted, batch_size):
        here = row[at : at + batch_size]
        yield objective(*rows.take(here), torch.from_numpy(here), torch.from_numpy(epoch[at : at + batch_size]))

"""Documents -> rows of exactly T tokens. Two ways, both starting what they hold with [CLS]:

stream     running text, [SEP] between documents, no document mask (RoBERTa's FULL-SENTENCES, Liu et al. 2019,
           sec. 4.2): no padding and no mask, the fastest.
documents  [CLS] document [SEP], several a row by best fit, each seeing only itself; a document longer than a
           row is cut into pieces. The rest of a row is padding.

Shape letters: B rows, T tokens per row.
"""

from bisect import bisect_left
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from minilm.data.shards import Shard
from minilm.data.tokenizer import Tokenizer

Packing = Literal["stream", "documents"]


class Rows(Protocol):
    """Numbered rows of one split."""

    T: int
    fill: float  # fraction of positions that are not padding

    def __len__(self) -> int: ...

    def take(self, rows: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """(B,) row numbers -> ids (B, T) int64, and document numbers (B, T) (-1: padding) where they matter."""
        ...


@dataclass(frozen=True)
class StreamRows:
    """Row r is [CLS] and the rth T - 1 tokens of the split. A last, incomplete row is left out."""

    shard: Shard
    T: int
    cls_id: int
    fill: float = 1.0

    def __len__(self) -> int:
        return len(self.shard.tokens) // (self.T - 1)

    def take(self, rows: np.ndarray) -> tuple[Tensor, None]:
        body = self.shard.tokens[: len(self) * (self.T - 1)].reshape(len(self), self.T - 1)[rows]
        ids = np.empty((len(rows), self.T), dtype=np.int64)
        ids[:, 0] = self.cls_id
        ids[:, 1:] = body
        return torch.from_numpy(ids), None


class DocumentRows:
    """Rows of whole documents, or of pieces of T - 2 tokens of those that are longer."""

    def __init__(self, shard: Shard, T: int, tokenizer: Tokenizer) -> None:
        self.shard, self.T = shard, T
        self.pad_id, self.cls_id, self.sep_id = tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id
        starts, stops = shard.offsets[:-1], shard.offsets[1:] - 1  # without the [SEP] on disk
        pieces = -(-(stops - starts) // (T - 2))  # of each document
        number = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        self.start = np.repeat(starts, pieces) + number * (T - 2)
        self.length = np.minimum(np.repeat(stops, pieces) - self.start, T - 2)
        row_of = best_fit(self.length + 2, T)
        order = np.argsort(row_of, kind="stable")
        self.pieces = np.split(order, np.flatnonzero(np.diff(row_of[order])) + 1) if len(order) else []
        self.fill = float((self.length + 2).sum() / max(1, len(self.pieces) * T))

    def __len__(self) -> int:
        return len(self.pieces)

    def take(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        ids = np.full((len(rows), self.T), self.pad_id, dtype=np.int64)
        doc = np.full((len(rows), self.T), -1, dtype=np.int64)
        for b, row in enumerate(rows):
            at = 0
            for d, piece in enumerate(self.pieces[row]):
                start, n = self.start[piece], self.length[piece]
                ids[b, at] = self.cls_id
                ids[b, at + 1 : at + 1 + n] = self.shard.tokens[start : start + n]
                ids[b, at + 1 + n] = self.sep_id
                doc[b, at : at + 2 + n] = d
                at += n + 2
        return torch.from_numpy(ids), torch.from_numpy(doc)


def best_fit(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """Which row each of `lengths` (all <= capacity) goes to: longest first, into the fullest row that has room.

    Best-fit decreasing: at most 11/9 of the optimal number of rows, plus 4 (Johnson et al. 1974). (n,) -> (n,) int64.
    """
    open_rows: list[list[int]] = [[] for _ in range(capacity + 1)]  # by free space
    free: list[int] = []  # the amounts of free space that some row has, sorted
    row_of = np.empty(len(lengths), dtype=np.int64)
    rows = 0
    for piece in np.argsort(-lengths, kind="stable"):
        need = int(lengths[piece])
        at = bisect_left(free, need)
        if at < len(free):
            room = free[at]
            row = open_rows[room].pop()
            if not open_rows[room]:
                free.pop(at)
        else:
            room, row = capacity, rows
            rows += 1
        row_of[piece] = row
        left = room - need
        if left and not open_rows[left]:
            free.insert(bisect_left(free, left), left)
        open_rows[left].append(row)
    return row_of


def pack(shard: Shard, packing: Packing, T: int, tokenizer: Tokenizer) -> Rows:
    """The rows of a split."""
    if packing == "stream":
        return StreamRows(shard, T, tokenizer.cls_id)
    return DocumentRows(shard, T, tokenizer)

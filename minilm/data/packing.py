"""Documents -> rows of exactly T tokens. Three ways, all of which begin rows or documents with [CLS]:

stream     running text, [SEP] between documents, no document mask (RoBERTa's FULL-SENTENCES, Liu et al. 2019,
           sec. 4.2): no padding and no mask, the fastest.
documents  [CLS] document [SEP], several per row by best fit, each attending only to itself; a document longer than a
           row is cut into pieces. The rest of a row is padding.
pairs      [CLS] A [SEP] B [SEP], one pair per row: does B follow A (Devlin et al. 2018, sec. 3.1), or are they in
           order (Lan et al. 2020, sec. 3.1)?

A model that is trained only on rows of T tokens is poor on short texts, so some of the text (`short_seq_prob`, as in
google-research/bert's create_pretraining_data.py) is read in short pieces, each on its own: in `documents` and `pairs`
some documents, in `stream`, which has no mask, all rows of some steps.

Shape letters: B rows, T tokens per row.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from minilm.batch import IGNORE
from minilm.data.draws import PAIR_CUT, PAIR_LABEL, PAIR_OTHER, SHORT_SEQ, draw
from minilm.data.shards import FileArray, Shard, fault, seal, writing_cache
from minilm.data.tokenizer import Tokenizer
from minilm.files import alone, remove

Packing = Literal["stream", "documents"]
PairTask = Literal["next", "order"]

PACKED_TOGETHER = 4096  # documents
TRIED = 16  # rows looked at for a second text that is long enough and ends alike
MIN_PAIR = 8  # least tokens of a document that is cut into a pair
SHORTEST = 8  # least tokens of a short piece
OF_PIECES = ("start", "length", "end")  # fields of Pieces that are files of their own


class Taken(NamedTuple):
    """Rows of a split, as arrays."""

    ids: Tensor  # (B, T) int64
    doc: Tensor | None = None  # (B, T): numbers the documents of a row, -1 on padding; None: not distinguished
    token_type_ids: Tensor | None = None  # (B, T): 0 for the first text of a pair, 1 for the second
    pair_label: Tensor | None = None  # (B,): 1 where the second text does not follow, or the two are swapped, 0, IGNORE


class Rows(Protocol):
    """Numbered rows of one split."""

    T: int
    fill: float  # fraction of positions that are not padding
    cycle: int = 1  # steps after which `short_rows` repeats

    def __len__(self) -> int: ...

    def short_rows(self, step: int) -> int:
        """Number of short rows that each row of a step is cut into; 1: it is not cut."""
        return 1

    def take(self, rows: np.ndarray, epoch: np.ndarray, short_rows: int = 1) -> Taken:
        """Read rows: (B,) row numbers and their epochs, by which random parts are drawn -> B * short_rows rows of
        T // short_rows tokens."""
        ...


@dataclass(frozen=True)
class StreamRows(Rows):
    """Row r is [CLS] and the rth T - 1 tokens of the split. A last, incomplete row is left out.

    Every (1 / `short_seq_prob`)th step cuts its rows into 2, 4, 8 ... pieces in turn, none shorter than SHORTEST: [CLS]
    piece [SEP]. What is left of a row after equal pieces is not read.
    """

    shard: Shard
    T: int
    cls_id: int
    sep_id: int
    short_seq_prob: float = 0.0
    fill: float = 1.0

    def __len__(self) -> int:
        return len(self.shard.tokens) // (self.T - 1)

    @property
    def cuts(self) -> list[int]:
        """Numbers of pieces that rows are cut into, in turn."""
        found = [2**i for i in range(1, self.T.bit_length()) if self.T // 2**i >= SHORTEST]
        return found if self.short_seq_prob else []

    @property
    def cycle(self) -> int:
        return max(1, len(self.cuts) * self._every)

    @property
    def _every(self) -> int:
        return round(1 / self.short_seq_prob) if self.short_seq_prob else 1

    def short_rows(self, step: int) -> int:
        turn, place = divmod(step, self._every)
        return self.cuts[turn % len(self.cuts)] if self.cuts and place == self._every - 1 else 1

    def take(self, rows: np.ndarray, epoch: np.ndarray, short_rows: int = 1) -> Taken:
        text = np.empty((len(rows), self.T - 1), dtype=np.int64)
        for b, row in enumerate(rows):
            text[b] = self.shard.tokens[int(row) * (self.T - 1) : (int(row) + 1) * (self.T - 1)]
        ids = np.empty((len(rows) * short_rows, self.T // short_rows), dtype=np.int64)
        ids[:, 0] = self.cls_id
        if short_rows == 1:
            ids[:, 1:] = text
        else:
            n = self.T // short_rows - 2
            ids[:, 1:-1] = text[:, : short_rows * n].reshape(-1, n)
            ids[:, -1] = self.sep_id
        return Taken(torch.from_numpy(ids))


class DocumentRows(Rows):
    """Rows of whole documents; longer ones are cut into pieces of T - 2 tokens."""

    def __init__(self, shard: Shard, T: int, tokenizer: Tokenizer, short_seq_prob: float = 0.0) -> None:
        self.shard, self.T = shard, T
        self.pad_id, self.cls_id, self.sep_id = tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id
        name = _index_name("documents", T, short_seq_prob)
        self.pieces = _kept(shard, name, lambda: _packed_pieces(shard, T, short_seq_prob))
        used = len(self.pieces.start) * 2 + self.pieces.tokens
        self.fill = used / max(1, len(self) * T)

    def __len__(self) -> int:
        return len(self.pieces.end)

    def take(self, rows: np.ndarray, epoch: np.ndarray, short_rows: int = 1) -> Taken:
        ids = np.full((len(rows), self.T), self.pad_id, dtype=np.int64)
        doc = np.full((len(rows), self.T), -1, dtype=np.int64)
        for b, row in enumerate(rows):
            at = 0
            for d, (start, n) in enumerate(self.pieces.of(int(row))):
                ids[b, at] = self.cls_id
                ids[b, at + 1 : at + 1 + n] = self.shard.tokens[start : start + n]
                ids[b, at + 1 + n] = self.sep_id
                doc[b, at : at + 2 + n] = d
                at += n + 2
        return Taken(torch.from_numpy(ids), torch.from_numpy(doc))


class PairRows(Rows):
    """Rows of one pair: a piece of a document, cut in two at a place drawn uniformly from its middle half, or at the
    next beginning of a word there, in a direction that is drawn, too.

    In half of the rows, `next` replaces the second part by the end of another row's piece, `order` swaps the two; these
    have the label 1, as in google-research/bert (is_random_next) and transformers' BertForPreTraining.

    Of `next`, neither the lengths nor the ends of the parts tell the label. The other row is drawn in all rows: its
    piece ends its document exactly if this row's does, and where it has too few tokens the second part is shorter, and
    the first longer, under both labels. A row for which none is found keeps its own parts and has the label IGNORE: one
    that ends a document of very many pieces, mostly. The other row may be from the same document. Parts begin with a
    word, but in rare pieces.
    """

    def __init__(
        self, shard: Shard, T: int, tokenizer: Tokenizer, task: PairTask, seed: int, short_seq_prob: float = 0.0
    ) -> None:
        self.shard, self.T, self.task, self.seed = shard, T, task, seed
        self.pad_id, self.cls_id, self.sep_id = tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id
        name = _index_name("pairs", T, short_seq_prob)
        self.pieces = _kept(shard, name, lambda: _single_pieces(shard, T, short_seq_prob))
        # a little more than there is where rows lose tokens that continue a word
        self.fill = (len(self) * 3 + self.pieces.tokens) / max(1, len(self) * T)
        self.inside = frozenset(id for id, continues in enumerate(tokenizer.continues()) if continues)

    def __len__(self) -> int:
        return len(self.pieces.end)

    def take(self, rows: np.ndarray, epoch: np.ndarray, short_rows: int = 1) -> Taken:
        label, cut = (draw(self.seed, each, epoch, rows, rows * 0) for each in (PAIR_LABEL, PAIR_CUT))
        label = label % 2
        steps = draw(self.seed, PAIR_OTHER, epoch[:, None], rows[:, None], np.arange(TRIED)[None])
        ids = np.full((len(rows), self.T), self.pad_id, dtype=np.int64)
        doc = np.full((len(rows), self.T), -1, dtype=np.int64)
        types = np.zeros((len(rows), self.T), dtype=np.int64)
        for b, r in enumerate(map(int, rows)):
            piece = self._piece(r)
            first, second = np.split(piece, [self._cut(piece, int(cut[b]))])
            if self.task == "next":
                other, k = self._another(r, piece, len(second), steps[b].tolist())
                if k:
                    first, second = piece[:-k], (other if label[b] else piece)[-k:]
                else:
                    label[b] = IGNORE
            elif label[b]:
                first, second = second, first
            n, end = len(first), len(first) + len(second) + 3
            ids[b, 0], ids[b, n + 1], ids[b, end - 1] = self.cls_id, self.sep_id, self.sep_id
            ids[b, 1 : n + 1], ids[b, n + 2 : end - 1] = first, second
            types[b, n + 2 : end] = 1
            doc[b, :end] = 0
        return Taken(*map(torch.from_numpy, (ids, doc, types, label)))

    def _piece(self, row: int) -> np.ndarray:
        """The tokens of a row's piece, from the beginning of a word on."""
        ((start, n),) = self.pieces.of(row)
        tokens = self.shard.tokens[start : start + n]
        begin = next((at for at in range(n - 3) if self._begins(tokens, at)), 0)
        return tokens[begin:]

    def _ends(self, row: int) -> bool:
        """Whether a row's piece ends its document."""
        ((start, n),) = self.pieces.of(row)
        return int(self.shard.tokens[start + n]) == self.sep_id

    def _begins(self, tokens: np.ndarray, at: int) -> bool:
        return int(tokens[at]) not in self.inside

    def _cut(self, piece: np.ndarray, chance: int) -> int:
        n = len(piece)
        low = max(1, n // 4)
        places = n - 2 * low + 1  # as many before the middle as after it, so that a swap is not seen
        cut = low + chance % places
        sides = range(cut, n - low + 1), range(cut, low - 1, -1)
        tried = chain(*(sides if chance // places % 2 else reversed(sides)))
        return next((at for at in tried if self._begins(piece, at)), cut)

    def _another(self, row: int, piece: np.ndarray, wanted: int, steps: list[int]) -> tuple[np.ndarray, int]:
        """(The piece of another row that ends as this one's does, k <= wanted): the last k tokens of it and of `piece`
        begin with a word. Of the rows that the steps lead to, the first with k = wanted; else that with the largest k;
        0, if there is none."""
        found, most, ends_document = piece[:0], 0, self._ends(row)
        for step in steps if len(self) > 1 else ():
            number = (row + 1 + step % (len(self) - 1)) % len(self)
            if self._ends(number) != ends_document:
                continue
            other = self._piece(number)
            ends = range(min(wanted, len(other)), most, -1)
            words = (k for k in ends if all(self._begins(each, len(each) - k) for each in (piece, other)))
            if k := next(words, 0):
                found, most = other, k
            if most == wanted:
                break
        return found, most


class Pieces(NamedTuple):
    """Pieces of a split's documents, in the order of the rows that they are in."""

    start: FileArray | np.ndarray  # (pieces,) int64: index into the split's tokens
    length: FileArray | np.ndarray  # (pieces,) int64
    end: FileArray | np.ndarray  # (rows,) int64: number of pieces up to and including this row
    tokens: int  # in all pieces

    def of(self, row: int) -> list[tuple[int, int]]:
        """(start, length) of each piece of a row."""
        first = int(self.end[row - 1]) if row else 0
        here = slice(first, int(self.end[row]))
        return list(zip(self.start[here].tolist(), self.length[here].tolist(), strict=True))


def _index_name(kind: str, T: int, short_seq_prob: float) -> str:
    return f"{kind}-{T}-short-{short_seq_prob!r}" if short_seq_prob else f"{kind}-{T}"


def _packed_pieces(shard: Shard, T: int, short_seq_prob: float) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(start, length, pieces per row) of best-fit rows, from PACKED_TOGETHER documents at a time, to bound memory."""
    for start, length in _pieces_of_documents(shard, T - 2, short_seq_prob):
        row_of = best_fit(length + 2, T)
        order = np.argsort(row_of, kind="stable")
        yield start[order], length[order], np.bincount(row_of)


def _single_pieces(shard: Shard, T: int, short_seq_prob: float) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """`_packed_pieces` with one piece per row; pieces too short for a pair are left out."""
    for start, length in _pieces_of_documents(shard, T - 3, short_seq_prob):
        kept = length >= max(2, min(MIN_PAIR, T - 3))
        yield start[kept], length[kept], np.ones(int(kept.sum()), dtype=np.int64)


def _pieces_of_documents(shard: Shard, longest: int, short_seq_prob: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(start, length) of the pieces of documents: of at most `longest` tokens, or, with probability `short_seq_prob`
    per document, of at most a number drawn for it between SHORTEST and `longest`, uniform in its logarithm."""
    for at in range(0, len(shard), PACKED_TOGETHER):
        bounds = shard.offsets[at : at + PACKED_TOGETHER + 1]
        starts, stops = bounds[:-1], bounds[1:] - 1  # without the [SEP] on disk
        document = np.arange(at, at + len(starts))
        chance, size = (draw(0, SHORT_SEQ, document * 0, document, document * 0 + i) / 2.0**62 for i in (0, 1))
        short = (SHORTEST * max(1.0, longest / SHORTEST) ** size).astype(np.int64)
        most = np.where(chance < short_seq_prob, np.minimum(short, longest), longest)
        pieces = -(-(stops - starts) // most)  # of each document
        number = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        start = np.repeat(starts, pieces) + number * np.repeat(most, pieces)
        yield start, np.minimum(np.repeat(stops, pieces) - start, np.repeat(most, pieces))


def _kept(shard: Shard, name: str, make: Callable[[], Iterator[tuple[np.ndarray, ...]]]) -> Pieces:
    """The pieces that `make` yields, cached beside the split's files if it has any."""
    if shard.stem is None:
        parts = [list(part) for part in zip(*make(), strict=True)] or [[]] * 3
        start, length, per_row = (np.concatenate([np.empty(0, np.int64), *part]) for part in parts)
        return Pieces(start, length, np.cumsum(per_row), int(length.sum()))
    directory = shard.stem.with_name(f"{shard.stem.name}.{name}")
    if directory.is_symlink() or fault(directory):
        with writing_cache(shard.stem.parents[1]), alone(shard.stem.parent):
            if directory.is_symlink() or fault(directory):  # no other process was faster
                _write_pieces(directory, make())
    start, length, end = (FileArray(directory / each, np.int64) for each in OF_PIECES)
    return Pieces(start, length, end, sum(int(block.sum()) for block in length.blocks()))


def _write_pieces(directory: Path, parts: Iterator[tuple[np.ndarray, ...]]) -> None:
    partial = directory.with_name(f"{directory.name}.tmp")
    for stale in (partial, directory):
        if stale.exists() or stale.is_symlink():
            remove(stale)
    partial.mkdir()
    end = 0
    with ExitStack() as stack:
        files = [stack.enter_context((partial / each).open("wb")) for each in OF_PIECES]
        for start, length, per_row in parts:
            for file, values in zip(files, (start, length, end + np.cumsum(per_row)), strict=True):
                file.write(values.astype(np.int64).tobytes())
            end += int(per_row.sum())
    seal(partial)
    partial.rename(directory)


def best_fit(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """Row that each piece of `lengths` (all <= capacity) goes to: longest first, into the fullest row with room.

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
        if left := room - need:
            if not open_rows[left]:
                insort(free, left)
            open_rows[left].append(row)
    return row_of


def pack(
    shard: Shard,
    packing: Packing,
    T: int,
    tokenizer: Tokenizer,
    pairs: PairTask | None = None,
    seed: int = 0,
    short_seq_prob: float = 0.0,
) -> Rows:
    """Rows of a split, about `short_seq_prob` of it in short pieces. `pairs`, drawn by `seed`, overrides `packing`."""
    if pairs:
        return PairRows(shard, T, tokenizer, pairs, seed, short_seq_prob)
    if packing == "documents":
        return DocumentRows(shard, T, tokenizer, short_seq_prob)
    return StreamRows(shard, T, tokenizer.cls_id, tokenizer.sep_id, short_seq_prob)

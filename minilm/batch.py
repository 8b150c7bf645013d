"""The arrays that cross every boundary: `Tokens` go into an encoder, `Batch` adds what to predict.

Shape letters: B rows, T tokens per row, N targets (or documents) of the whole batch, flattened.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor
from torch.nn import functional as F

Layout = Literal["full", "padded", "packed"]
AttentionPattern = Literal["bidirectional", "causal", "prefix"]

IGNORE = -100  # a target to skip, as in torch's cross_entropy


class OnDevice:
    """A dataclass whose tensors move together."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """A copy with all tensors on `device`; other values stay as they are."""
        return self._each(lambda array: array.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """A copy with all tensors in page-locked memory, from which a GPU copies without waiting."""
        return self._each(lambda value: (value.contiguous() if isinstance(value, Tensor) else value).pin_memory())

    def clone(self) -> Self:
        """A copy with tensors of its own."""
        return self._each(lambda value: value.clone())

    def arrays(self, prefix: str = "") -> dict[str, Tensor]:
        """All tensors by name; those of a nested dataclass as outer.inner."""
        found = {}
        for name, value in ((f.name, getattr(self, f.name)) for f in fields(self)):
            if isinstance(value, OnDevice):
                found |= value.arrays(f"{prefix}{name}.")
            elif isinstance(value, Tensor):
                found[f"{prefix}{name}"] = value
        return found

    def _each(self, move: Callable[[Any], Any]) -> Self:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: move(v) for k, v in values.items() if isinstance(v, Tensor | OnDevice)})


@dataclass(frozen=True)
class Tokens(OnDevice):
    """Rows of tokens, and which token may attend to which (the rule is `model.attention.visible`).

    Make one with `Tokens.full`, `Tokens.padded` or `Tokens.packed`: `layout`, `attention`, `max_len` and `runs`
    live on the host, so that choosing a kernel never waits for the device.
    """

    input_ids: Tensor  # (B, T) int64
    position: Tensor  # (B, T) int64; restarts at 0 with each document
    token_type_ids: Tensor  # (B, T) int64; which sentence of a pair
    doc: Tensor  # (B, T) int64; numbers the documents within a row; negative on the padding of packed rows
    key: Tensor  # (B, T) bool; false on padding, which no token attends to
    prefix: Tensor  # (B, T) bool; true: earlier tokens see it, too. All true: BERT. All false: causal.
    cls: Tensor  # (N,) int64; flat index of each document's first token
    cu_seqlens: Tensor | None  # int32; flat index at which each document or run of padding begins, then B * T
    layout: Layout
    attention: AttentionPattern
    max_len: int  # tokens of the longest document or run of padding, or T
    runs: tuple[tuple[int, int], ...] = ()  # run-length encoding of packed rows' document lengths:
    # (consecutive documents, their length); a run of padding counts as a document

    @classmethod
    def full(
        cls,
        input_ids: Tensor,
        attention: AttentionPattern = "bidirectional",
        prefix: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position: Tensor | None = None,
    ) -> Self:
        """One document per row, without padding: `input_ids` (B, T).

        With `position` (B, T) given the layout is "padded", for "full" promises that all rows have the same positions.
        """
        everywhere = torch.ones_like(input_ids)
        tokens = cls.padded(input_ids, everywhere, attention, prefix, token_type_ids, position)
        return replace(tokens, layout="full" if position is None else "padded")

    @classmethod
    def padded(
        cls,
        input_ids: Tensor,
        attention_mask: Tensor,
        attention: AttentionPattern = "bidirectional",
        prefix: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position: Tensor | None = None,
    ) -> Self:
        """One document per row, with padding (`attention_mask` 0) on either side.

        Positions count from the row's start, padding included, as in Hugging Face's BERT. A row that
        is all padding keeps its first token as a key, so that its (meaningless) states stay finite.
        """
        B, T = input_ids.shape
        key = attention_mask.bool()
        first = torch.zeros_like(key)
        first[:, 0] = ~key.any(dim=1)
        key = key | first
        return cls(
            input_ids=input_ids,
            position=_rows(T, input_ids) if position is None else position,
            token_type_ids=torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids,
            doc=torch.zeros_like(input_ids),
            key=key,
            prefix=_prefix(attention, prefix, input_ids),
            cls=torch.arange(B, device=input_ids.device) * T + key.int().argmax(dim=1),
            cu_seqlens=None,
            layout="padded",
            attention=attention,
            max_len=T,
        )

    @classmethod
    def packed(
        cls,
        input_ids: Tensor,
        doc: Tensor,
        attention: AttentionPattern = "bidirectional",
        prefix: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Self:
        """Several documents per row, one after the other; `doc` (B, T) numbers them, negative is padding.

        Call it on the host: `max_len`, `runs` and the document starts are read from `doc`.
        """
        B, T = input_ids.shape
        key = doc >= 0
        starts = torch.ones_like(key)
        starts[:, 1:] = doc[:, 1:] != doc[:, :-1]
        column = _rows(T, input_ids)
        position = column - torch.where(starts, column, 0).cummax(dim=1).values
        bounds = starts.flatten().nonzero().flatten()
        bounds = torch.cat((bounds, bounds.new_tensor([B * T])))
        lengths, documents = bounds.diff().unique_consecutive(return_counts=True)
        return cls(
            input_ids=input_ids,
            position=torch.where(key, position, 0),
            token_type_ids=torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids,
            doc=doc,
            key=key,
            prefix=_prefix(attention, prefix, input_ids),
            cls=(starts & key).flatten().nonzero().flatten(),
            cu_seqlens=bounds.int(),
            layout="packed",
            attention=attention,
            max_len=int(position.max()) + 1,
            runs=tuple(zip(documents.tolist(), lengths.tolist(), strict=True)),
        )

    def in_few_sizes(self) -> Self:
        """The same rows, padded to one of few tensor sizes, for compiled code or graphs that are made for each size:
        `cu_seqlens` ends with empty documents, and `max_len` is T. Without `runs`, so the varlen backend needs torch's
        kernel."""
        if self.cu_seqlens is None:
            return self
        B, T = self.input_ids.shape
        bounds = filled_up(self.cu_seqlens, B * T, len(self.cls) + B + 1)  # a run of padding in each row at most
        return replace(self, cu_seqlens=bounds, max_len=T, runs=())


def filled_up(values: Tensor, rest: int, size: int) -> Tensor:
    """A vector that goes on with `rest` up to `size` elements."""
    return F.pad(values, (0, size - len(values)), value=rest)


def _rows(T: int, like: Tensor) -> Tensor:
    """Column numbers 0 .. T-1 in every row of a (B, T) tensor."""
    return torch.arange(T, device=like.device).expand(like.shape[0], T)


def _prefix(attention: AttentionPattern, prefix: Tensor | None, like: Tensor) -> Tensor:
    if (attention == "prefix") != (prefix is not None):
        raise ValueError("give `prefix` with attention='prefix', and only then")
    if prefix is not None:
        return prefix
    everywhere = torch.ones_like if attention == "bidirectional" else torch.zeros_like
    return everywhere(like, dtype=torch.bool)


def next_size(n: int, of_octave: int) -> int:
    """`n` rounded up to one of `of_octave` evenly spaced sizes between two powers of 2. On a CPU oneDNN compiles and
    keeps a kernel for each shape of a half-precision product, which takes longer than the product: use few shapes."""
    step = max(1, (1 << n.bit_length()) // (2 * of_octave))
    return -(-n // step) * step


def are_few(read: int, T: int) -> bool:
    """Whether `read` of a row's T states are so few that the last layer should compute only those."""
    return 0 < read <= T // 2


@dataclass(frozen=True)
class Batch(OnDevice):
    """Tokens, and what to predict from their states."""

    tokens: Tokens
    where: Tensor  # (N,) int64; flat index into (B, T) of the states to predict from
    target: Tensor  # (N,) int64; the token to predict from each, or IGNORE
    count: int  # targets that are not IGNORE; on the host, as `size` is, so that nobody waits for the device
    size: int  # tokens that are not padding
    pair_label: Tensor | None = None  # (B,) int64: 1 where a row's second text does not follow the first, 0, or IGNORE
    per_row: int = 0  # entries of `where` per row, listed row after row; 0: their number differs from row to row

    def in_few_sizes(self) -> Self:
        """As `Tokens.in_few_sizes`; without pairs, where no loss reads `cls`, that is filled up, too."""
        tokens = self.tokens
        if self.pair_label is None and tokens.layout == "packed":
            tokens = replace(tokens, cls=filled_up(tokens.cls, 0, next_size(len(tokens.cls), 4)))
        return replace(self, tokens=tokens.in_few_sizes())

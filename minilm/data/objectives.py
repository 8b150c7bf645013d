"""Rows -> what goes in, where to look, what to predict there.

Every draw is an integer hash of (seed, epoch, row, position): it does not depend on batch size, ranks, workers,
device or a resume. The number of targets per row is fixed, so that shapes are static; a row that has fewer
fills up with IGNORE.

Shape letters: B rows, T tokens per row, k targets per row.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from minilm.batch import IGNORE, AttentionPattern, Batch, Tokens
from minilm.data.tokenizer import Tokenizer

ObjectiveName = Literal["mlm", "clm", "prefix"]

ATTENTION: dict[ObjectiveName, AttentionPattern] = {"mlm": "bidirectional", "clm": "causal", "prefix": "prefix"}


class Objective(Protocol):
    """Turns rows into a Batch."""

    name: ObjectiveName
    random: bool  # whether another epoch makes another batch of the same rows

    def __call__(self, ids: Tensor, doc: Tensor | None, row: Tensor, epoch: Tensor) -> Batch:
        """ids (B, T) int64; doc (B, T) or None, as from `Rows.take`; row and epoch (B,) int64."""
        ...


MASK_RANK, MASK_DICE, PREFIX_CUT, ROW_ORDER = range(4)  # what a draw is for


def mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser (Steele et al. 2014, fig. 16) on int64, whose products wrap."""
    x = (x ^ (x >> 30 & (1 << 34) - 1)) * -0x40A7B892E31B1A47
    x = (x ^ (x >> 27 & (1 << 37) - 1)) * -0x6B2FB644ECCEEE15
    return x ^ (x >> 31 & (1 << 33) - 1)


def draw(seed: int, purpose: int, epoch: Tensor, row: Tensor, position: Tensor) -> Tensor:
    """One uniform integer in [0, 2^62) per place; `purpose` keeps draws at one place apart. Arguments broadcast."""
    h = mix(torch.full_like(epoch, seed) * 4 + purpose)
    for part in (epoch, row, position):
        h = mix(h ^ mix(part + 0x1E3779B97F4A7C15))  # a constant, for mix(0) is 0
    return h & (1 << 62) - 1


@dataclass(frozen=True)
class MaskedLM:
    """Devlin et al. 2018, sec. 3.1: predict 15 % of the tokens; 80 % of those read [MASK], 10 % a random word.

    Special tokens are never chosen. `rate` is a fraction of a row's tokens, specials counted and padding not, as in
    google-research/bert's create_pretraining_data.py; a row has room for round(rate * T) targets, at least one.
    """

    tokenizer: Tokenizer
    seed: int
    rate: float = 0.15
    name: ObjectiveName = "mlm"
    random: bool = True

    def __call__(self, ids: Tensor, doc: Tensor | None, row: Tensor, epoch: Tensor) -> Batch:
        T = ids.shape[1]
        place = (epoch[:, None], row[:, None], torch.arange(T, device=ids.device))
        special = torch.tensor(self.tokenizer.special_ids, device=ids.device)
        maskable = ~torch.isin(ids, special)
        rank = draw(self.seed, MASK_RANK, *place).masked_fill(~maskable, torch.iinfo(torch.int64).max)
        pick = rank.argsort(dim=1, stable=True)[:, : max(1, round(self.rate * T))]  # (B, k)
        size = torch.full_like(ids[:, :1], T) if doc is None else (doc >= 0).sum(dim=1, keepdim=True)
        wanted = (self.rate * size).round().clamp(min=1)  # (B, 1)
        chosen = maskable.gather(1, pick) & (torch.arange(pick.shape[1], device=ids.device) < wanted)
        original = ids.gather(1, pick)
        dice = draw(self.seed, MASK_DICE, *place).gather(1, pick)
        words = torch.arange(self.tokenizer.vocab_size, device=ids.device)
        words = words[~torch.isin(words, special)]
        replaced = torch.where(dice % 10 < 8, self.tokenizer.mask_id, words[dice // 10 % len(words)])
        replaced = torch.where(dice % 10 == 9, original, replaced)
        inputs = ids.scatter(1, pick, torch.where(chosen, replaced, original))
        return _batch(inputs, doc, "bidirectional", pick, torch.where(chosen, original, IGNORE))


@dataclass(frozen=True)
class CausalLM:
    """Predict each token from those before it in its document, or, where packing knows none, in its row. T - 1
    targets a row."""

    name: ObjectiveName = "clm"
    random: bool = False

    def __call__(self, ids: Tensor, doc: Tensor | None, row: Tensor, epoch: Tensor) -> Batch:
        B, T = ids.shape
        pick = torch.arange(T - 1, device=ids.device).expand(B, T - 1)
        return _batch(ids, doc, "causal", pick, _next_token(ids, doc))


@dataclass(frozen=True)
class PrefixLM:
    """Raffel et al. 2020, fig. 4: a document's start sees itself whole, its end is predicted left to right.

    The end starts at a cut drawn uniformly from [L/4, 3L/4] of the document's L tokens (where packing knows no
    documents, of the row's). At most 3T/4 targets a row; a document too short to cut keeps one token on each side.
    """

    seed: int
    name: ObjectiveName = "prefix"
    random: bool = True

    def __call__(self, ids: Tensor, doc: Tensor | None, row: Tensor, epoch: Tensor) -> Batch:
        B, T = ids.shape
        whole = torch.zeros_like(ids) if doc is None else doc
        length = torch.zeros_like(ids).scatter_add(1, whole.clamp(min=0), (whole >= 0).long())  # by document
        begin = length.cumsum(1) - length
        low, high = -(-length // 4), 3 * length // 4
        place = (epoch[:, None], row[:, None], torch.arange(T, device=ids.device))
        cut = begin + low + draw(self.seed, PREFIX_CUT, *place) % (high - low + 1).clamp(min=1)
        column = torch.arange(T, device=ids.device).expand(B, T)
        prefix = (column < cut.gather(1, whole.clamp(min=0))) & (whole >= 0)
        target = torch.where(prefix[:, 1:], IGNORE, _next_token(ids, doc))
        first_real = (target == IGNORE).int().argsort(dim=1, stable=True)[:, : T - T // 4]
        return _batch(ids, doc, "prefix", first_real, target.gather(1, first_real), prefix)


def _next_token(ids: Tensor, doc: Tensor | None) -> Tensor:
    """(B, T) -> (B, T - 1): what follows each token in its document, or IGNORE at a document's end."""
    if doc is None:
        return ids[:, 1:]
    return torch.where((doc[:, 1:] == doc[:, :-1]) & (doc[:, 1:] >= 0), ids[:, 1:], IGNORE)


def _batch(
    ids: Tensor,
    doc: Tensor | None,
    attention: AttentionPattern,
    pick: Tensor,
    target: Tensor,
    prefix: Tensor | None = None,
) -> Batch:
    """pick, target (B, k): columns and what stands there."""
    B, T = ids.shape
    tokens = Tokens.full(ids, attention, prefix) if doc is None else Tokens.packed(ids, doc, attention, prefix)
    where = (pick + torch.arange(B, device=ids.device)[:, None] * T).flatten()
    count, size = int((target != IGNORE).sum()), int(tokens.key.sum())
    return Batch(tokens, where, target.flatten(), count, size)


def make_objective(
    name: ObjectiveName, tokenizer: Tokenizer, seed: int, mask_rate: float = 0.15
) -> MaskedLM | CausalLM | PrefixLM:
    """The objective of that name."""
    if name == "mlm":
        return MaskedLM(tokenizer, seed, mask_rate)
    return CausalLM() if name == "clm" else PrefixLM(seed)

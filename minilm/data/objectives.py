"""Training objectives (masked, causal, prefix): rows -> Batch of inputs, places to predict at, and targets.

The number of targets per row is fixed, so that shapes are static; a row that has fewer fills up with IGNORE.

Shape letters: B rows, T tokens per row, k targets per row.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import torch
from torch import Tensor

from minilm.batch import IGNORE, AttentionPattern, Batch, Tokens
from minilm.data.draws import MASK_DICE, MASK_RANK, PREFIX_CUT, draw
from minilm.data.packing import Taken
from minilm.data.tokenizer import Tokenizer

ObjectiveName = Literal["mlm", "clm", "prefix"]

ATTENTION: dict[ObjectiveName, AttentionPattern] = {"mlm": "bidirectional", "clm": "causal", "prefix": "prefix"}


class Objective(Protocol):
    """A training objective: turns rows into a Batch."""

    name: ObjectiveName
    random: bool  # whether the same rows give another batch in another epoch

    def slots(self, T: int, progress: float) -> int:
        """Targets per row, IGNORE included."""
        ...

    def __call__(self, taken: Taken, row: Tensor, epoch: Tensor, progress: float = 0.0) -> Batch:
        """row and epoch (B,) int64, by which it draws; progress: fraction of the run that is done."""
        ...


@dataclass(frozen=True)
class MaskedLM:
    """Masked LM (Devlin et al. 2018, sec. 3.1): predict 15 % of the tokens; 80 % of those read [MASK], 10 % a random
    word, 10 % themselves.

    Special tokens are never chosen. `rate` is a fraction of a row's tokens, specials counted and padding not, as in
    google-research/bert's create_pretraining_data.py; a row has room for round(rate * T) targets, at least one. The
    rate changes linearly to `end_rate` over the run. `whole_words`: all pieces of a word or none, as in
    google-research/bert since May 2019; a word that would exceed the rate is left out.
    """

    tokenizer: Tokenizer
    seed: int
    rate: float = 0.15
    end_rate: float | None = None  # None: constant
    whole_words: bool = False
    name: ObjectiveName = "mlm"
    random: bool = True

    def rate_at(self, progress: float) -> float:
        """Fraction of the tokens to predict at this point of the run."""
        return self.rate if self.end_rate is None else self.rate + (self.end_rate - self.rate) * progress

    def slots(self, T: int, progress: float) -> int:
        return max(1, round(self.rate_at(progress) * T))

    @cached_property
    def _words(self) -> tuple[Tensor, Tensor, Tensor]:
        """(ids that are never chosen, all other ids, whether an id continues a word)."""
        special = torch.tensor(self.tokenizer.special_ids)
        every = torch.arange(self.tokenizer.vocab_size)
        return special, every[~torch.isin(every, special)], torch.tensor(self.tokenizer.continues())

    def __call__(self, taken: Taken, row: Tensor, epoch: Tensor, progress: float = 0.0) -> Batch:
        ids, doc = taken.ids, taken.doc
        B, T = ids.shape
        special, words, continues = (part.to(ids.device) for part in self._words)
        column = torch.arange(T, device=ids.device)
        maskable = ~torch.isin(ids, special)
        unit = column.expand(B, T)  # tokens that are chosen together, named by their first column
        if self.whole_words:
            inside = continues[ids] & maskable & maskable.roll(1, dims=1) & (column > 0)
            unit = torch.where(inside, 0, unit).cummax(dim=1).values
        last = torch.iinfo(torch.int64).max - T + column
        rank = torch.where(maskable, _drawn(self.seed, MASK_RANK, epoch, row, column).gather(1, unit), last)
        k = self.slots(T, progress)
        # single tokens have different ranks, and only the first k matter
        order = rank.argsort(dim=1, stable=True) if self.whole_words else rank.topk(k, largest=False).indices
        size = torch.full_like(ids[:, :1], T) if doc is None else (doc >= 0).sum(dim=1, keepdim=True)
        wanted = (self.rate_at(progress) * size).round().clamp(1, k).long()  # (B, 1)
        pick = order[:, :k]
        chosen = maskable.gather(1, pick) & (column[:k] < wanted)
        if self.whole_words:
            by_rank = unit.gather(1, order)
            after = by_rank.gather(1, wanted.clamp(max=T - 1)).masked_fill(wanted == T, -1)  # the first one left out
            whole = by_rank[:, :k] != after
            chosen &= whole | ~(whole & chosen).any(dim=1, keepdim=True)  # if no word fits, a part of one
        original = ids.gather(1, pick)
        dice = _drawn(self.seed, MASK_DICE, epoch, row, pick)
        replaced = torch.where(dice % 10 < 8, self.tokenizer.mask_id, words[dice // 10 % len(words)])
        replaced = torch.where(dice % 10 == 9, original, replaced)
        inputs = ids.scatter(1, pick, torch.where(chosen, replaced, original))
        return _batch(taken, inputs, "bidirectional", pick, torch.where(chosen, original, IGNORE))


@dataclass(frozen=True)
class CausalLM:
    """Causal LM: predict each token from those before it in its document, or in its row if packing marks no documents.
    T - 1 targets per row."""

    name: ObjectiveName = "clm"
    random: bool = False

    def slots(self, T: int, progress: float) -> int:
        return T - 1

    def __call__(self, taken: Taken, row: Tensor, epoch: Tensor, progress: float = 0.0) -> Batch:
        B, T = taken.ids.shape
        pick = torch.arange(T - 1, device=taken.ids.device).expand(B, T - 1)
        return _batch(taken, taken.ids, "causal", pick, _next_token(taken.ids, taken.doc))


@dataclass(frozen=True)
class PrefixLM:
    """Prefix LM (Raffel et al. 2020, fig. 4): a document's start sees itself whole, its end is predicted left to right.

    The end starts at a cut drawn uniformly from [L/4, 3L/4] of the document's L tokens (the row's, if packing marks no
    documents). At most 3T/4 targets per row; a document of one token has none.
    """

    seed: int
    name: ObjectiveName = "prefix"
    random: bool = True

    def slots(self, T: int, progress: float) -> int:
        return min(T - 1, T - T // 4)

    def __call__(self, taken: Taken, row: Tensor, epoch: Tensor, progress: float = 0.0) -> Batch:
        ids, doc = taken.ids, taken.doc
        B, T = ids.shape
        whole = torch.zeros_like(ids) if doc is None else doc
        length = torch.zeros_like(ids).scatter_add(1, whole.clamp(min=0), (whole >= 0).long())  # by document
        begin = length.cumsum(1) - length
        low, high = -(-length // 4), 3 * length // 4
        column = torch.arange(T, device=ids.device).expand(B, T)
        cut = begin + low + _drawn(self.seed, PREFIX_CUT, epoch, row, column) % (high - low + 1).clamp(min=1)
        prefix = (column < cut.gather(1, whole.clamp(min=0))) & (whole >= 0)
        target = torch.where(prefix[:, 1:], IGNORE, _next_token(ids, doc))
        pick = (target == IGNORE).int().argsort(dim=1, stable=True)[:, : self.slots(T, progress)]
        return _batch(taken, ids, "prefix", pick, target.gather(1, pick), prefix)


def _drawn(seed: int, purpose: int, epoch: Tensor, row: Tensor, position: Tensor) -> Tensor:
    """`draw` at positions (T,) or (B, k) of the rows: (B, T) or (B, k)."""
    places = epoch[:, None], row[:, None], position
    if position.device.type != "cpu":
        return draw(seed, purpose, *places)
    return torch.from_numpy(draw(seed, purpose, *(each.numpy() for each in places)))


def _next_token(ids: Tensor, doc: Tensor | None) -> Tensor:
    """The token that follows each token in its document, or IGNORE at its end: (B, T) -> (B, T - 1)."""
    if doc is None:
        return ids[:, 1:]
    return torch.where((doc[:, 1:] == doc[:, :-1]) & (doc[:, 1:] >= 0), ids[:, 1:], IGNORE)


def _batch(
    taken: Taken, ids: Tensor, attention: AttentionPattern, pick: Tensor, target: Tensor, prefix: Tensor | None = None
) -> Batch:
    """Batch of ids (B, T), as the model reads them; pick, target (B, k): columns to predict at, and their targets."""
    B, T = ids.shape
    if taken.doc is None:
        tokens = Tokens.full(ids, attention, prefix)
    else:
        tokens = Tokens.packed(ids, taken.doc, attention, prefix, taken.token_type_ids)
    where = (pick + torch.arange(B, device=ids.device)[:, None] * T).flatten()
    count, size = int((target != IGNORE).sum()), int(tokens.key.sum())
    return Batch(tokens, where, target.flatten(), count, size, taken.pair_label, pick.shape[1])


def make_objective(
    name: ObjectiveName,
    tokenizer: Tokenizer,
    seed: int,
    mask_rate: float = 0.15,
    mask_rate_end: float | None = None,
    whole_words: bool = False,
) -> MaskedLM | CausalLM | PrefixLM:
    """The objective of that name; the last three arguments are for mlm only."""
    if name == "mlm":
        return MaskedLM(tokenizer, seed, mask_rate, mask_rate_end, whole_words)
    return CausalLM() if name == "clm" else PrefixLM(seed)

"""Log-probabilities of a text's tokens under a language model, in nats.

masked   each token given all others, where it alone is masked; their sum is the pseudo-log-likelihood (Wang and Cho
         2019; Salazar et al. 2020). within_word: the tokens of its word that follow are masked, too; otherwise a word
         of many tokens, each predicted from the others, would seem likelier than it is (Kauf and Ivanova 2023).
causal   each token given those before it, so their sum is the log-likelihood.

Shape letters: R rows, T tokens per row, N questions.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Encoding
from torch import Tensor
from torch.nn import functional as F

from minilm.batch import AttentionPattern, Tokens, next_size
from minilm.checkpoint.hf import objective_of
from minilm.checkpoint.model import find_model
from minilm.dropin.config import PreTrainedConfig
from minilm.dropin.inputs import max_tokens
from minilm.dropin.models import BertForMaskedLM, BertLMHeadModel
from minilm.dropin.tokenizer import BertTokenizer
from minilm.errors import CheckpointError, ConfigError, DataError
from minilm.machine.side_by_side import side_by_side

AT_ONCE = 1 << 13  # tokens of a batch
LOGITS_AT_ONCE = 1 << 24  # logits in memory
TOKENIZED = 1024  # texts tokenised at a time
AHEAD = 1 << 19  # tokens whose rows are grouped by length, and computed once if they repeat


class Encoded(NamedTuple):
    """A tokenised text."""

    ids: np.ndarray  # (T,) int64
    own: np.ndarray  # indices of its tokens, without [CLS] and [SEP]
    word: np.ndarray  # (T,) int64: index of each token's word, -1 for [CLS] and [SEP]


class Questions(NamedTuple):
    """Targets whose log-probabilities are wanted, and the rows of one length to compute them from."""

    rows: np.ndarray  # (R, T) int64
    row: np.ndarray  # (N,) int64: row of the state that predicts a target
    column: np.ndarray  # (N,) int64: its column
    target: np.ndarray  # (N,) int64: token ids


class Answers(NamedTuple):
    """The model's answers to N questions."""

    nats: np.ndarray  # (N,) float64: the log-probability of the target
    likeliest: np.ndarray  # (N,) int64: the likeliest token there; -1 if several are, or if it is not wanted


@dataclass(frozen=True)
class LanguageScorer:
    """A language model of any family, to score texts with."""

    model: BertForMaskedLM | BertLMHeadModel
    tokenizer: BertTokenizer
    attention: AttentionPattern

    @property
    def masked(self) -> bool:
        return self.attention == "bidirectional"

    @property
    def length(self) -> int:
        """Tokens that the model reads at most, special tokens included."""
        return max_tokens(self.model.base_model.encoder.cfg, self.tokenizer)

    def described(self, within_word: bool = False) -> str:
        """How texts are scored, in words. Raises ConfigError for within_word with a causal model."""
        if within_word and not self.masked:
            raise ConfigError("--within-word: for masked models; a causal one sees no later token")
        return "causal" if not self.masked else "masked, within word" if within_word else "masked"

    def encoded(self, texts: Sequence[str], where: Sequence[str] | None = None, first: int = 1) -> list[Encoded]:
        """Tokenised texts. where: the file and line of each. first: the number of the first one, for want of these.
        Raises DataError for a text that is longer than the model reads and, if `where` is given, for one without a
        token."""
        found, length = [], self.length
        for number, each in enumerate(self.tokenizer(list(texts), split_special_tokens=True, verbose=False).encodings):
            if len(each.ids) > length:
                what = f"text {number + first}" if where is None else f"{where[number]}: a text"
                raise DataError(f"{what} has {len(each.ids)} tokens, and the model reads {length}; shorten it")
            own = np.flatnonzero(np.array(each.special_tokens_mask) == 0)
            if where is not None and not len(own):
                raise DataError(f"{where[number]}: a text without a token that the model reads; leave it out")
            found.append(Encoded(np.array(each.ids, np.int64), own, words_of(each)))
        return found

    def check(self, texts: Sequence[str], where: Sequence[str] | None = None) -> None:
        """Raises DataError as `encoded` does, for any of many texts: before hours are spent on those before it."""
        deque(self.each_encoded(texts, where), maxlen=0)

    def each_encoded(self, texts: Sequence[str], where: Sequence[str] | None = None) -> Iterator[Encoded]:
        """`encoded` of any number of texts, in bounded memory."""
        for at in range(0, len(texts), TOKENIZED):
            named = None if where is None else where[at : at + TOKENIZED]
            yield from self.encoded(texts[at : at + TOKENIZED], named, at + 1)

    def fits(self, texts: Sequence[str]) -> np.ndarray:
        """(n,) bool: whether the model reads the whole of each text."""
        return np.array([len(ids) <= self.length for ids in self._ids(texts)], bool)

    def unknown(self, texts: Sequence[str]) -> np.ndarray:
        """(n,) bool: whether each text holds the unknown token."""
        unk = self.tokenizer.unk_token_id
        return np.array([unk in ids for ids in self._ids(texts, add_special_tokens=False)], bool)

    def _ids(self, texts: Sequence[str], **how: bool) -> Iterator[list[int]]:
        """Ids of any number of texts, in bounded memory. how: to tokenise them."""
        for at in range(0, len(texts), TOKENIZED):
            some = list(texts[at : at + TOKENIZED])
            yield from self.tokenizer(some, split_special_tokens=True, verbose=False, **how).input_ids

    def questions(self, text: Encoded, places: np.ndarray | None = None, within_word: bool = False) -> Questions:
        """A question for each of the text's tokens, or only for those at `places`."""
        places = text.own if places is None else places
        N, T = len(places), len(text.ids)
        target = text.ids[places]
        if not self.masked:
            if N and places.min() == 0:
                raise DataError("the first token of a text has no context, so it cannot be scored")
            return Questions(text.ids[None], np.zeros(N, np.int64), places - 1, target)
        column = np.arange(T)
        hidden = column == places[:, None]
        if within_word:
            same = (text.word == text.word[places][:, None]) & (text.word >= 0)
            hidden |= same & (column > places[:, None])
        rows = np.where(hidden, self.tokenizer.mask_token_id, text.ids)
        return Questions(rows, np.arange(N), places, target)


def words_of(encoding: Encoding) -> np.ndarray:
    """(T,) int64: the index of each token's word, -1 for special tokens."""
    return np.array([-1 if of is None else of for of in encoding.word_ids], np.int64)


def read_scorer(
    name: Path | str, *, revision: str | None = None, use_safetensors: bool | None = None
) -> LanguageScorer:
    """A LanguageScorer of a directory or a name on the hub. Raises CheckpointError, also for a model without a
    language-model head, ConfigError for one that is neither masked nor causal."""
    directory = find_model(name, revision, allow_pickle=use_safetensors is False, flag="--model")
    objective = objective_of(vars(PreTrainedConfig.of_directory(directory)))
    if objective == "prefix":
        raise ConfigError(f"--model {directory}: is a prefix model; give a masked or a causal one")
    kind = BertForMaskedLM if objective == "mlm" else BertLMHeadModel
    model = kind.from_pretrained(directory, use_safetensors=use_safetensors)
    if model.untrained:
        raise CheckpointError(f"{directory}: is an encoder without the head of a language model")
    tokenizer = BertTokenizer.from_pretrained(directory)
    if objective == "mlm" and tokenizer.mask_token_id is None:
        raise ConfigError(f"--model {directory}: its tokenizer has no mask token")
    if tokenizer.cls_token_id is None or (objective == "mlm" and tokenizer.sep_token_id is None):
        raise ConfigError(f"--model {directory}: its tokenizer has no token to begin, or to end, a text with")
    return LanguageScorer(model.eval(), tokenizer, "bidirectional" if objective == "mlm" else "causal")


def log_likelihoods(
    scorer: LanguageScorer, texts: Sequence[str], within_word: bool = False, where: Sequence[str] | None = None
) -> Iterator[np.ndarray]:
    """Log-probabilities of each text's tokens, in nats: (N,) float64 a text, whose sum is its (pseudo-)log-likelihood.
    within_word, where: as in `questions` and `encoded`. Raises DataError as `encoded` does, ConfigError for within_word
    with a causal model."""
    scorer.described(within_word)  # for its ConfigError
    scorer.check(texts, where)

    asked = (scorer.questions(each, within_word=within_word) for each in scorer.each_encoded(texts, where))
    return log_probabilities(scorer, asked)


def log_probabilities(scorer: LanguageScorer, asked: Iterable[Questions]) -> Iterator[np.ndarray]:
    """Log-probabilities (N,) float64 of the targets of each of `asked`, as in `answers`."""
    return (each.nats for each in answers(scorer, asked, likeliest=False))


def answers(scorer: LanguageScorer, asked: Iterable[Questions], likeliest: bool = True) -> Iterator[Answers]:
    """Answers to each of `asked`, in order. Memory does not grow with their number. likeliest: whether the likeliest
    tokens are wanted; they cost another pass over the logits."""
    group: list[Questions] = []
    size = 0
    for each in asked:
        group.append(each)
        size += each.rows.size
        if size > AHEAD:
            yield from _answers(scorer, group, likeliest)
            group, size = [], 0
    yield from _answers(scorer, group, likeliest)


def _answers(scorer: LanguageScorer, group: list[Questions], likeliest: bool) -> list[Answers]:
    found = [Answers(np.zeros(0), np.zeros(0, np.int64))] * len(group)
    by_length: dict[int, list[int]] = {}
    for i, each in enumerate(group):
        if len(each.target):
            by_length.setdefault(each.rows.shape[1], []).append(i)
    of_length = [(members, _batches([group[i] for i in members])) for members in by_length.values()]
    batches = (batch for _, own in of_length for batch in own)
    made = side_by_side(lambda each: _of_batch(scorer, each, likeliest), batches, scorer.model.device)
    for members, own in of_length:
        ends = np.cumsum([len(group[i].target) for i in members])
        nats, most = np.empty(ends[-1]), np.empty(ends[-1], np.int64)
        for batch in own:
            nats[batch.number], most[batch.number] = next(made)
        for i, *answer in zip(members, np.split(nats, ends[:-1]), np.split(most, ends[:-1]), strict=True):
            found[i] = Answers(*answer)
    return found


class _Batch(NamedTuple):
    """Rows that are computed together."""

    rows: np.ndarray  # (R, T) int64
    place: np.ndarray  # (N,): flat index into `rows` of the state that predicts a target
    target: np.ndarray  # (N,)
    number: np.ndarray  # (N,): index of the target among those of its length


def _batches(asked: list[Questions]) -> list[_Batch]:
    """Batches of questions whose rows have one length; rows that repeat are computed once."""
    T = asked[0].rows.shape[1]
    rows, unique = np.unique(np.concatenate([each.rows for each in asked]), axis=0, return_inverse=True)
    begins = np.cumsum([0, *(len(each.rows) for each in asked[:-1])])
    row = unique.reshape(-1)[np.concatenate([each.row + at for each, at in zip(asked, begins, strict=True)])]
    place = row * T + np.concatenate([each.column for each in asked])  # flat index into `rows`
    target = np.concatenate([each.target for each in asked])
    order = np.argsort(place, kind="stable")
    made, at_once = [], max(1, AT_ONCE // T)
    for first in range(0, len(rows), at_once):
        here = rows[first : first + at_once]
        mine = order[slice(*np.searchsorted(place, (first * T, (first + len(here)) * T), sorter=order))]
        made.append(_Batch(_filled(here, at_once), place[mine] - first * T, target[mine], mine))
    return made


def _filled(array: np.ndarray, most: int) -> np.ndarray:
    """Repeat the array's last element up to the next of few sizes, at most to `most`."""
    more = min(next_size(len(array), 4), most) - len(array)
    return np.concatenate([array, array[-1:].repeat(more, axis=0)])


def _of_batch(scorer: LanguageScorer, batch: _Batch, likeliest: bool) -> Answers:
    rows, place, target, _ = batch
    read, state = np.unique(place, return_inverse=True)
    few = len(read) <= len(rows)  # then the last layer computes only these states
    read = _filled(read, len(rows) if few else rows.size)
    model = scorer.model
    device, table = model.device, model.get_input_embeddings().weight
    tokens = Tokens.full(torch.from_numpy(rows), scorer.attention).to(device)
    where = torch.from_numpy(read).to(device)
    encoder, distinct = model.base_model.encoder, _distinct(rows, device)
    states = encoder(tokens, read=where if few else None, distinct=distinct)
    states = states if few else states.flatten(0, 1)[where]
    features = model.head(states)
    at_once = max(1, LOGITS_AT_ONCE // len(table))
    parts = [_over_vocabulary(part, table, model.head.bias, likeliest) for part in features.split(at_once)]
    total, most = map(torch.cat, zip(*parts, strict=True))
    state, target = (torch.from_numpy(each).to(device) for each in (state, target))
    # a target's own logit is not rounded to half precision, as those of the whole vocabulary are
    wide = torch.promote_types(table.dtype, torch.float32)
    own = (features.to(wide)[state] * table[target].to(wide)).sum(dim=-1) + model.head.bias[target]
    found = (own - total[state]).cpu().double().numpy()
    if not np.isfinite(found).all():
        raise DataError("the model's log-probabilities are not finite; in half precision, try fp32")
    return Answers(found, most[state].cpu().numpy())


def _distinct(rows: np.ndarray, device: torch.device) -> tuple[Tokens, Tensor] | None:
    """Distinct pairs of token and position in `rows`, as `Encoder` takes them; None if they are not few. The T masked
    copies of a text of T tokens have T x T tokens, but hold only its own T and T masks."""
    T = rows.shape[1]
    cells, cell = np.unique(rows * T + np.arange(T), return_inverse=True)
    if 2 * len(cells) > rows.size:
        return None
    cells = torch.from_numpy(_filled(cells, rows.size))[None]
    tokens = Tokens.full(cells // T, position=cells % T)
    return tokens.to(device), torch.from_numpy(cell.reshape(rows.shape)).to(device)


def _over_vocabulary(features: Tensor, table: Tensor, bias: Tensor, likeliest: bool) -> tuple[Tensor, Tensor]:
    """(logsumexp of the logits, (S,); the likeliest token, (S,), as in `Answers`) for features (S, E)."""
    logits = F.linear(features, table, bias)
    total = logits.to(torch.promote_types(logits.dtype, torch.float32)).logsumexp(dim=-1)
    if not likeliest:
        return total, torch.full_like(total, -1, dtype=torch.int64)
    token, several = _largest(logits)
    if logits.dtype != torch.promote_types(logits.dtype, torch.float32) and (ties := several.nonzero()[:, 0]).numel():
        with torch.autocast(table.device.type, enabled=False):  # half precision cannot tell these apart
            token[ties], several[ties] = _largest(F.linear(features[ties].float(), table.float(), bias.float()))
    return total, token.masked_fill(several, -1)


def _largest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(The token with the largest of logits (S, V), whether several tokens have it), (S,) each."""
    most, token = logits.max(dim=-1)
    return token, (logits == most[:, None]).sum(dim=-1) > 1

"""Embedding texts as vectors, as sentence-transformers does, and search for the nearest texts."""

import itertools
import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import normalizers
from torch import Tensor
from torch.nn import functional as F

from minilm.batch import AttentionPattern, Tokens, next_size
from minilm.checkpoint.model import check_version, find_model, version_of
from minilm.checkpoint.pooling import Pooling, read_pooling
from minilm.data.ahead import one_ahead
from minilm.data.documents import chunks
from minilm.data.tokenizer_files import lowercases
from minilm.dropin.inputs import max_tokens
from minilm.dropin.models import BertModel
from minilm.dropin.tokenizer import BertTokenizer
from minilm.errors import ConfigError, DataError
from minilm.machine import onednn
from minilm.machine.side_by_side import side_by_side, workers
from minilm.model.encoder import EncoderConfig
from minilm.model.heads import pooled

log = logging.getLogger("minilm")
ON_CPU, ELSEWHERE = 1 << 11, 1 << 14  # tokens of a batch
WORTH_IT = 1024  # tokens that are worth a worker of their own
LOOKED_AT = 1024  # tokens from which oneDNN's products are worth it


class Embedder(NamedTuple):
    """An encoder with its tokenizer; `model.pooling` says how states become a vector."""

    model: BertModel
    tokenizer: BertTokenizer

    @property
    def pooling(self) -> Pooling:
        return self.model.pooling or Pooling()

    @property
    def length(self) -> int:
        """Tokens that are read of a text, at most: where the pooling has a limit, not the tokenizer's, as in
        sentence-transformers."""
        cfg = self.model.encoder.cfg
        limit = max_tokens(cfg, self.tokenizer)
        return min(self.pooling.max_length, cfg.max_position_embeddings) if self.pooling.max_length else limit


class Hit(NamedTuple):
    """A text that a search found."""

    row: int  # its index among the texts, from 0
    score: float  # cosine
    text: str


def read_embedder(
    name: Path | str,
    how: str | Sequence[str] | None = None,
    normalize: bool | None = None,
    *,
    revision: str | None = None,
    cache_dir: Path | str | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    use_safetensors: bool | None = None,
) -> Embedder:
    """An Embedder of a directory or a name on the hub. how: pooling by "cls", "mean", "max" or several. The defaults of
    `how` and `normalize` are in sentence-transformers' files; without these, the mean, not normalised.

    Raises CheckpointError, also if those files ask for what is not supported, DataError, ConfigError.
    """
    directory = find_model(
        name, revision, cache_dir, local_files_only, allow_pickle=use_safetensors is False, token=token
    )
    before = version_of(directory)
    pooling = read_pooling(directory)
    if pooling is None and how is None:
        log.warning("%s: does not say how its states are pooled; using the mean over tokens", directory)
    pooling = pooling or Pooling()
    if how is not None:
        pooling = replace(pooling, how=(how,) if isinstance(how, str) else tuple(how))
    pooling = replace(pooling, normalize=pooling.normalize if normalize is None else normalize)
    model = BertModel.from_pretrained(directory, use_safetensors=use_safetensors)
    model.pooling = pooling
    tokenizer = BertTokenizer.from_pretrained(directory)
    check_version(directory, before)
    if pooling.lowercase and not lowercases(tokenizer.backend_tokenizer):
        backend = tokenizer.backend_tokenizer
        own = [] if backend.normalizer is None else [backend.normalizer]
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])
    return Embedder(model, tokenizer)


def embed(model: Embedder | Path | str, texts: str | Sequence[str], batch_tokens: int | None = None) -> Tensor:
    """The vector (D,) of a text, or (N, D) of several, fp32 on the CPU; with several poolings D is that many times the
    model's width. Texts that are longer than the model reads are cut, with a warning.

    model: of `read_embedder`, or what it reads. batch_tokens: tokens of a batch, about, or one text; by default 2,048
    on a CPU and 16,384 elsewhere. Raises DataError for a value that is no text.
    """
    embedder = model if isinstance(model, Embedder) else read_embedder(model)
    vectors, cut = vectors_of(embedder, [texts] if isinstance(texts, str) else texts, batch_tokens)
    say_cut(cut, len(vectors), embedder)
    return vectors[0] if isinstance(texts, str) else vectors


def say_cut(cut: int, texts: int, embedder: Embedder) -> None:
    """Warn how many texts were cut, if any."""
    if cut:
        log.warning("%d of %d texts are longer than %d tokens and were truncated", cut, texts, embedder.length)


def usual_batch_tokens(device: torch.device) -> int:
    return ON_CPU if device.type == "cpu" else ELSEWHERE


def vectors_of(
    embedder: Embedder, texts: Iterable[str], batch_tokens: int | None = None, prompt: str | None = None
) -> tuple[Tensor, int]:
    """`embed` without a warning: (N, D), and how many texts were cut. prompt: in place of the model's usual one."""
    parts = [*parts_of(embedder, texts, batch_tokens, prompt)]
    width = len(embedder.pooling.how) * embedder.model.config.hidden_size
    return torch.cat([torch.empty(0, width), *(part.vectors for part in parts)]), sum(part.cut for part in parts)


class Part(NamedTuple):
    """Some texts, one after the other, and their vectors."""

    texts: list[str]
    vectors: Tensor  # (texts, D)
    cut: int  # how many texts were cut


def parts_of(
    embedder: Embedder, texts: Iterable[str], batch_tokens: int | None = None, prompt: str | None = None
) -> Iterator[Part]:
    """`vectors_of` in parts of bounded memory, of any number of texts. While one is computed, a thread tokenises the
    next."""
    if batch_tokens is not None and batch_tokens < 1:
        raise ConfigError(f"batch_tokens is {batch_tokens}; give 1 or more")
    prompt = embedder.pooling.prompt if prompt is None else prompt
    at_once = batch_tokens or usual_batch_tokens(embedder.model.device)
    for part, (of_each, cut) in _encoded(embedder, texts, prompt):
        yield Part(part, _vectors_of(embedder, part, of_each, at_once), cut)


def _encoded(
    embedder: Embedder, texts: Iterable[str], prompt: str
) -> Iterator[tuple[list[str], tuple[list[list[int]], int]]]:
    """Each part of the texts, with (the token ids of each text, how many were cut), by `one_ahead`."""
    if embedder.pooling.lowercase and not lowercases(embedder.tokenizer.backend_tokenizer):
        raise ConfigError("the model's pooling lower-cases, and the tokenizer does not; take both from read_embedder")
    of_nothing = [embedder.model.encoder.cfg.pad_token_id]  # of a text without any token

    def encode(part: list[str]) -> tuple[list[list[int]], int]:
        told = embedder.tokenizer([prompt + text for text in part], truncation=True, max_length=embedder.length)
        cut = sum(bool(each.overflowing) for each in told.encodings)
        return [ids or of_nothing for ids in told.input_ids], cut

    return one_ahead(encode, chunks(texts))


def _vectors_of(embedder: Embedder, texts: list[str], of_each: list[list[int]], batch_tokens: int) -> Tensor:
    """(N, D) of texts, by their token ids."""
    model, pooling = embedder.model, embedder.pooling
    vectors = torch.empty(len(texts), len(pooling.how) * model.config.hidden_size)
    encoder, pattern = model.encoder, "causal" if model.config.is_causal else "bidirectional"

    def of_batch(rows: np.ndarray) -> tuple[np.ndarray, Tensor]:
        tokens = _packed([of_each[row] for row in rows], encoder.cfg, pattern).to(model.device)
        states = encoder(tokens, backend="varlen").float()
        return rows, torch.cat([pooled(states, tokens, how) for how in pooling.how], dim=1).cpu()

    training = [module for module in model.modules() if module.training]
    lengths = np.array([*map(len, of_each)], int)
    batches = _batches(lengths, batch_tokens, workers(model.device))
    is_worth_it = lengths.sum() >= LOOKED_AT  # it intercepts each call of torch, 1.5 ms for a single text
    try:
        for module in training:
            module.training = False
        with onednn.chosen(model.device, model.dtype) if is_worth_it else nullcontext():
            for rows, own in side_by_side(of_batch, batches, model.device):
                vectors[rows] = own
    finally:
        for module in training:
            module.training = True
    if not vectors.isfinite().all():
        row = int((~vectors.isfinite().all(dim=1)).nonzero()[0])
        raise DataError(f"the model's vector of {texts[row][:50]!r} is not finite; in half precision, try fp32")
    return F.normalize(vectors) if pooling.normalize else vectors


def _batches(lengths: np.ndarray, batch_tokens: int, at_once: int) -> Iterator[np.ndarray]:
    """Batches of text indices with about equally many tokens, the longest texts first, since neighbours of one length
    are computed together. Their number lets none of `at_once` workers wait for the last one."""
    order, total = np.argsort(-lengths, kind="stable"), int(lengths.sum())
    count = -(-total // batch_tokens)
    count = at_once * -(-count // at_once) if count >= at_once else max(count, min(at_once, total // WORTH_IT))
    middles = lengths[order].cumsum() - lengths[order] / 2
    for batch in np.split(order, np.searchsorted(middles, np.arange(1, count) * (total / max(1, count)))):
        if len(batch):
            yield batch


def _packed(texts: list[list[int]], cfg: EncoderConfig, pattern: AttentionPattern) -> Tokens:
    """Texts packed into one row, which is padded to the next of few sizes."""
    lengths = [len(ids) for ids in texts]
    total = sum(lengths)
    more = next_size(total, 8) - total
    ids = torch.tensor([[*itertools.chain.from_iterable(texts), *[cfg.pad_token_id] * more]])
    doc = torch.arange(len(texts)).repeat_interleave(torch.tensor(lengths))
    padding = -1 - torch.arange(more) // max(lengths)  # in parts no longer than the longest text
    tokens = Tokens.packed(ids, torch.cat([doc, padding])[None], pattern)
    if cfg.position_offset:  # RoBERTa's positions do not count its padding, not even as a word of a text
        real = (ids[0] != cfg.pad_token_id).long()
        counted = real.cumsum(dim=0)
        before = F.pad((counted - real)[tokens.cls][doc], (0, more))
        tokens = replace(tokens, position=((counted - before) * real - 1)[None])
    return tokens


def search(
    model: Embedder | Path | str,
    queries: str | Sequence[str],
    texts: Iterable[str],
    top_k: int = 5,
    batch_tokens: int | None = None,
) -> list[list[Hit]]:
    """For each query (a single one makes a list of one) the `top_k` texts of largest cosine, largest first, the earlier
    of equal ones; `texts` may be a stream longer than memory. Blank texts are not found. Prompts that the model's files
    give for queries and documents are used. Raises DataError if there is no text, and for a blank query."""
    queries = [queries] if isinstance(queries, str) else list(queries)
    texts = [texts] if isinstance(texts, str) else texts
    if top_k < 1:
        raise ConfigError(f"top_k is {top_k}; give 1 or more")
    embedder = model if isinstance(model, Embedder) else read_embedder(model)
    if blank := [number for number, query in enumerate(queries) if isinstance(query, str) and not query.strip()]:
        raise DataError(f"query {blank[0]} (from 0) is blank; give a text")
    asked, long = vectors_of(embedder, queries, batch_tokens, embedder.pooling.query)
    if long:
        line = "%d of %d queries are longer than %d tokens and were truncated"
        log.warning(line, long, len(queries), embedder.length)
    wanted = F.normalize(asked)
    best: list[list[Hit]] = [[] for _ in queries]
    rows: deque[int] = deque()  # of the texts that are read already
    cut = count = 0

    def not_blank() -> Iterator[str]:
        for row, text in enumerate(texts):
            if not isinstance(text, str) or text.strip():
                rows.append(row)
                yield text

    for part in parts_of(embedder, not_blank(), batch_tokens, embedder.pooling.document):
        cosines = (wanted @ F.normalize(part.vectors).T).clamp(-1, 1).round(decimals=6)  # equal texts are equal
        scores, places = cosines.sort(dim=1, descending=True, stable=True)
        for query, hits in enumerate(best):
            found = zip(scores[query, :top_k].tolist(), places[query, :top_k].tolist(), strict=True)
            hits += [Hit(rows[place], score, part.texts[place]) for score, place in found]
            best[query] = sorted(hits, key=lambda hit: (-hit.score, hit.row))[:top_k]
        for _ in part.texts:
            rows.popleft()
        cut, count = cut + part.cut, count + len(part.texts)
    if not count:
        raise DataError("there is no text to search")
    say_cut(cut, count, embedder)
    return best

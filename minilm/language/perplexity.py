"""Perplexity of texts under a language model, by tokens and by words, and bits per byte.

causal   a document is read in windows that overlap: each token is predicted from at least `length - stride` before it,
         or from all there are. Every window begins with [CLS], as rows of training do.
masked   pseudo-perplexity (Salazar et al. 2020): a document is read in pieces, as few and as equal as fit; each token
         is predicted from all others of its piece.

Special tokens are not counted. Words are separated by white space, and bytes are those of UTF-8, so that models with
different vocabularies can be compared.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from minilm.data.documents import chunks
from minilm.errors import ConfigError
from minilm.language.likelihood import Encoded, LanguageScorer, Questions, log_probabilities, words_of
from minilm.metrics.intervals import with_intervals

COUNTED = ("nats", "tokens", "words", "bytes", "unknown")  # counts of a document


def document_counts(
    scorer: LanguageScorer, documents: Iterable[str], length: int, stride: int, within_word: bool = False
) -> Iterator[tuple[float, ...]]:
    """COUNTED of each document, in order; memory does not grow with them. length: tokens of a window or a
    piece, special tokens included. stride: of windows, in tokens. Raises ConfigError."""
    if not 3 <= length <= scorer.length:
        raise ConfigError(f"--length {length}: give a value from 3 to {scorer.length}, which the model reads")
    if not 1 <= stride < length:
        raise ConfigError(f"--stride {stride}: give a value from 1 to {length - 1}, less than --length")
    scorer.described(within_word)  # for its ConfigError
    waiting: deque[tuple[int, ...]] = deque()  # the other counts of documents that are being scored

    def asked() -> Iterator[Questions]:
        for texts in chunks(documents):
            encoded = scorer.tokenizer(
                texts, add_special_tokens=False, split_special_tokens=True, verbose=False
            ).encodings
            for text, each in zip(texts, encoded, strict=True):
                ids = np.array(each.ids, np.int64)
                unknown = int((ids == (-1 if (unk := scorer.tokenizer.unk_token_id) is None else unk)).sum())
                waiting.append((len(ids), len(text.split()), len(text.encode("utf-8", "surrogatepass")), unknown))
                word = words_of(each)
                if scorer.masked:
                    yield from _pieces(scorer, ids, word, length, within_word)
                else:
                    yield from _windows(scorer, ids, word, length, stride)

    nats, seen = 0.0, 0
    for own in log_probabilities(scorer, asked()):
        while waiting[0][0] == 0:
            yield 0.0, *waiting.popleft()
        nats, seen = nats - float(own.sum()), seen + len(own)
        if seen == waiting[0][0]:
            yield nats, *waiting.popleft()
            nats, seen = 0.0, 0
    for rest in waiting:  # without a token
        yield 0.0, *rest


def _windows(
    scorer: LanguageScorer, ids: np.ndarray, word: np.ndarray, length: int, stride: int
) -> Iterator[Questions]:
    """Windows over a document for a causal model, each token of which is asked for once."""
    cls, room, end = [scorer.tokenizer.cls_token_id], length - 1, 0
    while end < len(ids):
        begin, end = end, min(len(ids), end + (stride if end else room))
        first = max(0, end - room)
        row = Encoded(np.concatenate([cls, ids[first:end]]), np.arange(begin - first, end - first) + 1, word)
        yield scorer.questions(row)


def _pieces(
    scorer: LanguageScorer, ids: np.ndarray, word: np.ndarray, length: int, within_word: bool
) -> Iterator[Questions]:
    """Pieces of a document for a masked model, each token of which is asked for once."""
    if not len(ids):
        return
    cls, sep = [scorer.tokenizer.cls_token_id], [scorer.tokenizer.sep_token_id]
    count = -(-len(ids) // (length - 2))
    for own, of in zip(np.array_split(ids, count), np.array_split(word, count), strict=True):
        row = Encoded(np.concatenate([cls, own, sep]), np.arange(len(own)) + 1, np.pad(of, 1, constant_values=-1))
        yield scorer.questions(row, within_word=within_word)


def perplexities(counts: np.ndarray) -> dict[str, Any]:
    """perplexity (of tokens), word_perplexity, bits_per_byte: as {value, low, high, n}, over documents. counts (n, 5):
    COUNTED. A mean is over tokens, words or bytes of all documents together; too few documents have no interval, and
    documents without a token no perplexity (NaN)."""
    return with_intervals(counts, weighted, len(counts))


def weighted(counts: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """`perplexities`, (B,) each, of documents taken as often as weights (B, n) say. counts (n, 5): COUNTED."""
    nats, tokens, words, size, _ = (weights @ counts).T
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return {
            "perplexity": np.exp(nats / tokens),
            "word_perplexity": np.exp(nats / words),
            "bits_per_byte": nats / np.log(2) / size,
        }

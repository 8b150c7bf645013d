"""Is a passage's last word told by the rest of it? LAMBADA (Paperno et al. 2016) asks so of novels.

The last word is all that stands after the last white space. The model is right where the word is the greedy
continuation: each of its tokens is the likeliest one, given the passage and the word's tokens before it, as
lm-evaluation-harness counts.

causal   each token after all that stand before it.
masked   each where it and the word's tokens after it are masked (Kauf and Ivanova 2023), so that the model knows how
         many tokens the word has.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Encoding

from minilm.data.documents import is_jsonl
from minilm.data.examples import as_text
from minilm.data.tables import values_of
from minilm.errors import DataError
from minilm.language.likelihood import TOKENIZED, Encoded, LanguageScorer, Questions, answers
from minilm.metrics.intervals import share, with_intervals


class Passage(NamedTuple):
    """A text, and how much of it is given."""

    text: str
    given: int  # characters before the last word and the one space that a tokenizer may count as its
    where: str


class LastWord(NamedTuple):
    """What the model says to a passage's last word."""

    nats: float  # its log-probability
    right: bool  # never where there is a tie, or a token unknown
    tie: bool  # several are likeliest in the place of one of its tokens
    unknown: bool  # it holds the token of all unknown words
    cut: bool  # the passage is longer than the model reads, and begins later
    tokens: int


def read_passages(file: Path, field: str = "text") -> list[Passage]:
    """Of a .jsonl with a text in `field`, or of text, a passage a line. Raises DataError."""
    found = []
    for where, value in values_of(file, field, "--text-field"):
        text = (as_text(value, where, field) or "").rstrip()
        if not text and not is_jsonl(file):
            continue
        words = text.split()
        if len(words) < 2:
            raise DataError(f"{where}: a passage of {len(words)} words; give a last word, and a text that it ends")
        found.append(Passage(text, len(text.removesuffix(words[-1]).removesuffix(" ")), where))
    if not found:
        raise DataError(f"{file}: holds no passage")
    return found


def last_words(scorer: LanguageScorer, passages: Sequence[Passage]) -> Iterator[LastWord]:
    """Of each passage, in order. Raises DataError for a last word without a token, or of too many for the model."""
    waiting: deque[tuple[np.ndarray, bool]] = deque()  # (tokens of the word, whether the passage is cut)

    def asked() -> Iterator[Questions]:
        for at in range(0, len(passages), TOKENIZED):
            some = passages[at : at + TOKENIZED]
            encodings = scorer.tokenizer(
                [each.text for each in some], add_special_tokens=False, split_special_tokens=True, verbose=False
            ).encodings
            for passage, each in zip(some, encodings, strict=True):
                question, cut = _question(scorer, passage, each)
                waiting.append((question.target, cut))
                yield question

    for nats, likeliest in answers(scorer, asked()):
        target, cut = waiting.popleft()
        unknown = bool((target == scorer.tokenizer.unk_token_id).any())
        right = not unknown and bool((likeliest == target).all())
        yield LastWord(float(nats.sum()), right, bool((likeliest < 0).any()), unknown, cut, len(target))


def _question(scorer: LanguageScorer, passage: Passage, encoding: Encoding) -> tuple[Questions, bool]:
    """Which asks for the last word's tokens; whether the passage is cut, on the left."""
    ids = np.array(encoding.ids, np.int64)
    count = sum(end > passage.given for _, end in encoding.offsets)
    room = scorer.length - 1 - scorer.masked  # without [CLS] and [SEP]
    if not 0 < count < room:
        most = f"the model reads {room - 1} and one before"
        raise DataError(f"{passage.where}: a last word of {count} tokens, and {most}; leave the passage out")
    own = np.concatenate([[scorer.tokenizer.cls_token_id], ids[-room:]])
    places = np.arange(len(own) - count, len(own))
    row = np.append(own, scorer.tokenizer.sep_token_id) if scorer.masked else own
    word = np.full(len(row), -1)
    word[places] = 0  # one word, whatever the tokenizer takes for words
    return scorer.questions(Encoded(row, places, word), within_word=scorer.masked), len(ids) > room


def cloze_scores(found: Sequence[LastWord]) -> dict[str, Any]:
    """accuracy, the share of last words that are right, and their perplexity (of words, not of tokens): as {value, low,
    high, n}, over passages. And how many hold a tie, an unknown token, and are cut."""
    nats = np.array([[each.nats] for each in found])
    metrics = {"accuracy": share(np.array([each.right for each in found]))} | with_intervals(nats, weighted, len(found))
    return {"metrics": metrics} | {
        "ties": sum(each.tie for each in found),
        "unknown": sum(each.unknown for each in found),
        "cut": sum(each.cut for each in found),
        "tokens": sum(each.tokens for each in found),
    }


def weighted(nats: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """perplexity of last words that are taken so often, (B,); nats (n, 1), weights (B, n)."""
    with np.errstate(over="ignore"):
        return {"perplexity": np.exp(-(weights @ nats)[:, 0] / weights.sum(axis=1))}

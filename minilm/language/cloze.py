"""Prediction of a passage's last word from the rest of it, as in LAMBADA (Paperno et al. 2016), which takes novels.

The last word is all that follows the last white space. The model is right if the word is the greedy continuation: each
of its tokens is the likeliest one, given the passage and the word's tokens before it, as lm-evaluation-harness counts.

causal   each token is predicted from all tokens before it.
masked   each token is predicted with it and the word's tokens after it masked (Kauf and Ivanova 2023), so that the
         model knows how many tokens the word has.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Encoding

from minilm.data.documents import is_jsonl
from minilm.errors import DataError
from minilm.labelled.examples import as_text
from minilm.labelled.tables import values_of
from minilm.language.likelihood import TOKENIZED, Encoded, LanguageScorer, Questions, answers
from minilm.metrics.intervals import share, with_intervals


class Passage(NamedTuple):
    """A text whose last word is to be predicted."""

    text: str
    given: int  # characters before the last word, and before the one space that its first token may include
    where: str


class LastWord(NamedTuple):
    """The model's prediction of a passage's last word."""

    nats: float  # its log-probability
    right: bool  # never with a tie or an unknown token
    tie: bool  # in the place of one of its tokens, several tokens are likeliest
    unknown: bool  # it holds the unknown token
    cut: bool  # the passage is longer than the model reads, and loses its beginning
    tokens: int


def read_passages(file: Path, field: str = "text") -> list[Passage]:
    """Passages of a .jsonl with a text in `field`, or of a text file, one a line. Raises DataError."""
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
    """Predictions for the passages, in order. Raises DataError for a last word without a token, or with too many."""
    waiting: deque[tuple[np.ndarray, bool]] = deque()  # (tokens of the word, whether the passage is cut)

    def questions() -> Iterator[tuple[Questions, bool]]:
        for at in range(0, len(passages), TOKENIZED):
            some = passages[at : at + TOKENIZED]
            encodings = scorer.tokenizer(
                [each.text for each in some], add_special_tokens=False, split_special_tokens=True, verbose=False
            ).encodings
            for passage, each in zip(some, encodings, strict=True):
                yield _question(scorer, passage, each)

    def asked() -> Iterator[Questions]:
        for question, cut in questions():
            waiting.append((question.target, cut))
            yield question

    deque(questions(), maxlen=0)  # raises its DataError before hours are spent on the passages before
    for nats, likeliest in answers(scorer, asked()):
        target, cut = waiting.popleft()
        unknown = bool((target == scorer.tokenizer.unk_token_id).any())
        right = not unknown and bool((likeliest == target).all())
        yield LastWord(float(nats.sum()), right, bool((likeliest < 0).any()), unknown, cut, len(target))


def _question(scorer: LanguageScorer, passage: Passage, encoding: Encoding) -> tuple[Questions, bool]:
    """Questions for the tokens of a passage's last word, and whether the passage is cut, on the left."""
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
    """accuracy, the share of right last words, and their perplexity (of words, not of tokens), as {value, low, high,
    n}, over passages; and how many have a tie, an unknown token, or are cut."""
    nats = np.array([[each.nats] for each in found])
    metrics = {"accuracy": share(np.array([each.right for each in found]))} | with_intervals(nats, weighted, len(found))
    return {"metrics": metrics} | {
        "ties": sum(each.tie for each in found),
        "unknown": sum(each.unknown for each in found),
        "cut": sum(each.cut for each in found),
        "tokens": sum(each.tokens for each in found),
    }


def weighted(nats: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """perplexity (B,) of last words, each taken as often as its weight says. nats (n, 1), weights (B, n)."""
    with np.errstate(over="ignore"):
        return {"perplexity": np.exp(-(weights @ nats)[:, 0] / weights.sum(axis=1))}

"""Vocabularies whose special tokens stand at odd ids, English-like text from a seed, and shards made by hand or kept
on disk."""

import random
from dataclasses import replace

import numpy as np
import pytest

from minilm.data.shards import FileArray, Shard
from minilm.data.tokenizer import SPECIALS, Tokenizer

SPECIAL_IDS = dict(zip(SPECIALS, (3, 17, 40, 41, 99), strict=True))
PIECES = range(60, 90)  # the ids of `pieces_tokenizer` that go on with a word


def words_by_id(directory, word) -> Tokenizer:
    at = {i: token for token, i in SPECIAL_IDS.items()}
    file = directory / "vocab.txt"
    file.write_text("".join(at.get(i, word(i)) + "\n" for i in range(100)), encoding="utf-8")
    return Tokenizer.load(file)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """100 words; [PAD] 3, [UNK] 17, [CLS] 40, [SEP] 41, [MASK] 99; the rest "w0", "w1", ... by id."""
    return words_by_id(tmp_path_factory.mktemp("words"), lambda i: f"w{i}")


@pytest.fixture(scope="session")
def pieces_tokenizer(tmp_path_factory):
    """As `tokenizer`, but the words with ids in PIECES are "##w60", ... and go on with a word."""
    return words_by_id(tmp_path_factory.mktemp("pieces"), lambda i: f"##w{i}" if i in PIECES else f"w{i}")


@pytest.fixture(scope="session")
def plain_ids():
    """The ids of the words that are not special."""
    return [i for i in range(100) if i not in SPECIAL_IDS.values()]


@pytest.fixture(scope="session")
def prose():
    """300 documents of made-up words, always the same."""
    rng = random.Random(7)
    syllables = [a + b for a in "bdfgklmnprst" for b in ("a", "e", "i", "on", "ur")]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 3))) for _ in range(400)]
    return [" ".join(rng.choices(words, k=rng.randint(5, 60))).capitalize() + "." for _ in range(300)]


@pytest.fixture
def shard_of(tokenizer):
    """shard_of(documents): lists of ids, each followed by [SEP] on disk."""

    def make(documents):
        ends = np.cumsum([0, *(len(d) + 1 for d in documents)], dtype=np.int64)
        flat = [i for d in documents for i in (*d, tokenizer.sep_id)]
        return Shard(np.array(flat, dtype=np.uint16), ends)

    return make


@pytest.fixture
def on_disk(tmp_path):
    """on_disk(shard): the same one in files, so that what is derived from it is kept beside them."""

    def move(shard):
        stem = tmp_path / "entry" / "train"
        stem.parent.mkdir()
        for part in ("tokens", "offsets"):
            stem.with_suffix(f".{part}").write_bytes(getattr(shard, part).tobytes())
        files = {p: FileArray(stem.with_suffix(f".{p}"), getattr(shard, p).dtype) for p in ("tokens", "offsets")}
        return replace(shard, stem=stem, **files)

    return move

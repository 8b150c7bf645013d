"""A vocabulary whose special tokens stand at odd ids, English-like text from a seed, and shards made by hand."""

import random

import numpy as np
import pytest
import torch

from minilm.data.shards import Shard
from minilm.data.tokenizer import SPECIALS, Tokenizer

SPECIAL_IDS = dict(zip(SPECIALS, (3, 17, 40, 41, 99), strict=True))


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """100 words; [PAD] 3, [UNK] 17, [CLS] 40, [SEP] 41, [MASK] 99; the rest "w0", "w1", ... by id."""
    at = {i: token for token, i in SPECIAL_IDS.items()}
    file = tmp_path_factory.mktemp("words") / "vocab.txt"
    file.write_text("".join(at.get(i, f"w{i}") + "\n" for i in range(100)), encoding="utf-8")
    return Tokenizer.load(file)


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

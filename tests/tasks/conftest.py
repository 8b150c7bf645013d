"""A small task for a small model."""

import random

import pytest

from minilm.data.examples import Example

GOOD, BAD, PLAIN = ["fine", "great", "lovely"], ["awful", "poor", "dull"], ["the", "film", "was", "and", "plot", "a"]


@pytest.fixture
def directory(encoder_directory):
    """That of a model without a head."""
    return encoder_directory


@pytest.fixture
def reviews():
    """reviews(n, seed, pairs): n examples of unequal lengths, "good" or "bad" by one word in each."""

    def make(n, seed=0, pairs=False):
        rng = random.Random(seed)
        found = []
        for i in range(n):
            label = ("good", "bad")[i % 2]
            words = rng.choices(PLAIN, k=rng.randint(0, 14))
            words.insert(rng.randint(0, len(words)), rng.choice(GOOD if label == "good" else BAD))
            pair = " ".join(rng.choices(PLAIN, k=rng.randint(1, 6))) if pairs else None
            found.append(Example(" ".join(words), pair, label, f"row {i + 1}"))
        return found

    return make

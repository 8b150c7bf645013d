"""The unigram line, by hand."""

import math

import numpy as np
import pytest
import torch

from minilm.batch import IGNORE
from minilm.pretraining.unigram import unigram_loss

COUNTS = np.array([9, 0, 4, 1, 2])  # plus one: 10, 1, 5, 2, 3


def test_add_one_frequencies_of_the_targets_alone():
    target = torch.tensor([2, IGNORE, 4, 2])
    assert unigram_loss(COUNTS, target) == pytest.approx(-(2 * math.log(5 / 21) + math.log(3 / 21)) / 3, rel=1e-12)


def test_a_word_never_seen_costs_much_and_not_everything():
    assert unigram_loss(COUNTS, torch.tensor([1])) == pytest.approx(math.log(21), rel=1e-12)


def test_what_is_never_asked_for_takes_no_share():
    target = torch.tensor([2, 4])
    expected = -(math.log(5 / 8) + math.log(3 / 8)) / 2
    assert unigram_loss(COUNTS, target, never=(0, 1, 3)) == pytest.approx(expected, rel=1e-12)
    assert COUNTS.tolist() == [9, 0, 4, 1, 2]

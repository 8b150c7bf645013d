"""Random draws about data, each a function of its place: (seed, purpose, epoch, row, position). They do not depend on
batch size, processes, workers, device or resuming, and need no state.
"""

from functools import lru_cache
from typing import TypeVar

import numpy as np
from torch import Tensor

# purposes of a draw
MASK_RANK, MASK_DICE, PREFIX_CUT, ROW_ORDER, PAIR_LABEL, PAIR_CUT, PAIR_OTHER, SHORT_SEQ = range(8)
ROUNDS = 6
BLOCK = 1 << 12  # places of an order that are computed at once


Numbers = TypeVar("Numbers", np.ndarray, Tensor)  # int64; numpy is several times as fast on small arrays


def mix(x: Numbers) -> Numbers:
    """Hash of int64 values: SplitMix64's finaliser (Steele et al. 2014, fig. 16); products wrap."""
    x = (x ^ (x >> 30 & (1 << 34) - 1)) * -0x40A7B892E31B1A47
    x = (x ^ (x >> 27 & (1 << 37) - 1)) * -0x6B2FB644ECCEEE15
    return x ^ (x >> 31 & (1 << 33) - 1)


def draw(seed: int, purpose: int, epoch: Numbers, row: Numbers, position: Numbers) -> Numbers:
    """One uniform integer in [0, 2^62) per place; `purpose` keeps draws at one place apart. Arguments broadcast."""
    h = mix((epoch * 0 + seed) * 16 + purpose)
    for part in (epoch, row, position):
        h = mix(h ^ mix(part + 0x1E3779B97F4A7C15))  # a constant, for mix(0) is 0
    return h & (1 << 62) - 1


def shuffled(seed: int, epoch: np.ndarray, place: np.ndarray, n: int) -> np.ndarray:
    """The number at `place` in an epoch's random permutation of 0 ... n - 1.

    epoch, place (B,) int64, 0 <= place < n. A Feistel network on the next power of 4, walked until it comes out below n
    (Black & Rogaway 2002, sec. 4): no permutation has to be held, whatever n.
    """
    bits = max(1, ((n - 1).bit_length() + 1) // 2)
    low = (1 << bits) - 1
    number, walking = place.copy(), np.arange(len(place))
    while len(walking):
        a, b = number[walking] >> bits, number[walking] & low
        for round in range(ROUNDS):
            a, b = b, a ^ (draw(seed, ROW_ORDER, epoch[walking], np.full_like(b, round), b) & low)
        number[walking] = a << bits | b
        walking = walking[number[walking] >= n]
    return number


def order(seed: int, begin: int, end: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(epoch, row of n) at places begin ... end - 1 of an endless sequence of epochs, each `shuffled` anew."""
    first = begin // BLOCK
    blocks = [_block(seed, number, n) for number in range(first, -(-end // BLOCK))]
    epoch, which = (np.concatenate(parts)[begin - first * BLOCK :] for parts in zip(*blocks, strict=True))
    return epoch[: end - begin], which[: end - begin]


@lru_cache(maxsize=4)
def _block(seed: int, number: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """One block of `order`. Cached, for a step's own part would cost as much to compute."""
    epoch, place = np.divmod(np.arange(number * BLOCK, (number + 1) * BLOCK), n)
    return epoch, shuffled(seed, epoch, place, n)

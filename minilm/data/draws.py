"""Every random choice about data is a function of where it is made: (seed, what for, epoch, row, position). It does not
depend on batch size, processes, workers, device or a resume, and nothing has to be remembered.
"""

from functools import lru_cache
from typing import TypeVar

import numpy as np
from torch import Tensor

# what a draw is for
MASK_RANK, MASK_DICE, PREFIX_CUT, ROW_ORDER, PAIR_LABEL, PAIR_CUT, PAIR_OTHER, SHORT_SEQ = range(8)
ROUNDS = 6
BLOCK = 1 << 12  # places of an order that are found at once


Numbers = TypeVar("Numbers", np.ndarray, Tensor)  # int64; numpy is several times as fast on few of them


def mix(x: Numbers) -> Numbers:
    """SplitMix64's finaliser (Steele et al. 2014, fig. 16) on int64, whose products wrap."""
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
    """Which of the numbers 0 ... n - 1 stands at `place` in the order of that epoch; each stands somewhere.

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
    """(epoch, which of n) at the places begin ... end - 1 of an endless run, each epoch of which is `shuffled`."""
    first = begin // BLOCK
    blocks = [_block(seed, number, n) for number in range(first, -(-end // BLOCK))]
    epoch, which = (np.concatenate(parts)[begin - first * BLOCK :] for parts in zip(*blocks, strict=True))
    return epoch[: end - begin], which[: end - begin]


@lru_cache(maxsize=4)
def _block(seed: int, number: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Kept, for a step's own part would cost as much."""
    epoch, place = np.divmod(np.arange(number * BLOCK, (number + 1) * BLOCK), n)
    return epoch, shuffled(seed, epoch, place, n)

"""Every random choice about data is a function of where it is made: (seed, what for, epoch, row, position). It does not
depend on batch size, processes, workers, device or a resume, and nothing has to be remembered.
"""

import torch
from torch import Tensor

MASK_RANK, MASK_DICE, PREFIX_CUT, ROW_ORDER, PAIR_LABEL, PAIR_CUT, PAIR_OTHER = range(7)  # what a draw is for
ROUNDS = 6


def mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser (Steele et al. 2014, fig. 16) on int64, whose products wrap."""
    x = (x ^ (x >> 30 & (1 << 34) - 1)) * -0x40A7B892E31B1A47
    x = (x ^ (x >> 27 & (1 << 37) - 1)) * -0x6B2FB644ECCEEE15
    return x ^ (x >> 31 & (1 << 33) - 1)


def draw(seed: int, purpose: int, epoch: Tensor, row: Tensor, position: Tensor) -> Tensor:
    """One uniform integer in [0, 2^62) per place; `purpose` keeps draws at one place apart. Arguments broadcast."""
    h = mix(torch.full_like(epoch, seed) * 16 + purpose)
    for part in (epoch, row, position):
        h = mix(h ^ mix(part + 0x1E3779B97F4A7C15))  # a constant, for mix(0) is 0
    return h & (1 << 62) - 1


def shuffled(seed: int, epoch: Tensor, place: Tensor, n: int) -> Tensor:
    """Which of the numbers 0 ... n - 1 stands at `place` in the order of that epoch; each stands somewhere.

    epoch, place (B,) int64, 0 <= place < n. A Feistel network on the next power of 4, walked until it comes out below n
    (Black & Rogaway 2002, sec. 4): no permutation has to be held, whatever n.
    """
    bits = max(1, ((n - 1).bit_length() + 1) // 2)
    low = (1 << bits) - 1
    number, outside = place, torch.ones_like(place, dtype=torch.bool)
    while outside.any():
        a, b = number >> bits, number & low
        for round in range(ROUNDS):
            a, b = b, a ^ (draw(seed, ROW_ORDER, epoch, torch.full_like(b, round), b) & low)
        number = torch.where(outside, a << bits | b, number)
        outside = number >= n
    return number

"""Random choices that are functions of their place: as an independent implementation makes them, uniform, and apart."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from minilm.data import draws
from minilm.data.draws import draw, mix, shuffled

WRAP = (1 << 64) - 1
PURPOSES = [name for name in vars(draws) if name.isupper() and name not in ("ROUNDS", "BLOCK")]


# -- an independent integer hash ------------------------------------------------------------------------


def reference_mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & WRAP
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & WRAP
    return x ^ (x >> 31)


def reference_draw(seed: int, purpose: int, epoch: int, row: int, position: int) -> int:
    h = reference_mix((seed * 16 + purpose) & WRAP)
    for part in (epoch, row, position):
        h = reference_mix(h ^ reference_mix((part + 0x1E3779B97F4A7C15) & WRAP))
    return h & ((1 << 62) - 1)


def test_mix_is_splitmix64s_finaliser():
    numbers = [0, 1, -1, 2, 12345678901234567, 2**63 - 1, -(2**63), 0x1E3779B97F4A7C15]
    expected = [reference_mix(x & WRAP) for x in numbers]
    for make in (torch.tensor, np.array):
        assert [x & WRAP for x in mix(make(numbers)).tolist()] == expected


@pytest.mark.parametrize("seed", [0, 1, 42, 2**31, 2**59 + 5, -7])
@pytest.mark.parametrize("purpose", range(7))
def test_draw_equals_the_reference(seed, purpose):
    epoch, row, position = torch.tensor([[0], [1], [977]]), torch.tensor([[5], [2**40], [0]]), torch.arange(6)
    mine = draw(seed, purpose, epoch, row, position)
    assert mine.shape == (3, 6)
    assert mine.tolist() == draw(seed, purpose, epoch.numpy(), row.numpy(), position.numpy()).tolist()
    assert mine.tolist() == [
        [reference_draw(seed, purpose, int(epoch[i]), int(row[i]), t) for t in range(6)] for i in range(3)
    ]


def test_no_two_purposes_share_a_number_and_seeds_leave_room_for_all():
    """draw gives each seed 16 of them."""
    numbers = [getattr(draws, name) for name in PURPOSES]
    assert len(set(numbers)) == len(numbers) >= 7
    assert set(numbers) <= set(range(16))


@pytest.mark.parametrize(("first", "second"), [(0, 1), (4, 5), (5, 6), (3, 0)])
def test_draw_is_uniform_and_its_purposes_are_independent(first, second):
    zero, row, position = torch.zeros(1, 1).long(), torch.arange(500)[:, None], torch.arange(100)
    a, b = (draw(3, purpose, zero, row, position).flatten().numpy() for purpose in (first, second))
    assert a.min() >= 0
    assert a.max() < 1 << 62
    table = np.zeros((10, 10))
    np.add.at(table, (a % 10, (b >> 32) * 10 >> 30), 1)
    assert stats.chisquare(table.flatten()).pvalue > 1e-4


# -- orders ---------------------------------------------------------------------------------------------


def order(seed: int, epoch: int, n: int) -> list[int]:
    return shuffled(seed, np.full(n, epoch), np.arange(n), n).tolist()


def test_shuffled_is_a_permutation_of_every_length():
    for n in range(1, 201):
        assert sorted(order(3, n % 5, n)) == list(range(n)), n


@pytest.mark.parametrize("n", [255, 256, 257, 1023, 1024, 1025, 4097, 65_536, 100_003])
def test_shuffled_is_a_permutation_beside_and_between_the_powers(n):
    assert sorted(order(0, 1, n)) == list(range(n))


def test_every_epoch_and_seed_has_another_order():
    orders = [tuple(order(seed, epoch, 50)) for seed in range(10) for epoch in range(10)]
    assert len(set(orders)) == 100
    fixed = [sum(a == b for a, b in zip(x, y, strict=True)) for x, y in itertools.combinations(orders, 2)]
    assert abs(np.mean(fixed) - 1) < 0.1  # two independent orders agree in 1 place on average; sigma 1 / sqrt(4950)


def test_what_stands_at_a_place_does_not_depend_on_what_else_is_asked():
    n = 77
    epoch, place = np.divmod(np.arange(3 * n), n)
    whole = shuffled(9, epoch, place, n)
    assert whole.dtype == np.int64
    for chosen in ([200, 3, 3, 90], np.arange(3 * n - 1, -1, -1), [5]):
        assert (shuffled(9, epoch[chosen], place[chosen], n) == whole[chosen]).all()
    assert [order(9, e, n) for e in range(3)] == whole.reshape(3, n).tolist()


@pytest.mark.parametrize("n", [2, 3, 5, 6, 13])
def test_every_number_stands_everywhere_equally_often(n):
    """1000 epochs: each of the n x n cells has 1000 / n on average. Rows and columns sum to 1000, so the statistic has
    (n - 1)^2 degrees of freedom, and for a uniform permutation its mean is n (n - 1), n / (n - 1) times theirs."""
    epochs = 1000
    epoch, place = np.divmod(np.arange(epochs * n), n)
    table = np.zeros((n, n))
    np.add.at(table, (place, shuffled(5, epoch, place, n)), 1)
    assert (table.sum(0) == epochs).all()
    statistic = float(((table - epochs / n) ** 2 / (epochs / n)).sum()) * (n - 1) / n
    assert statistic < stats.chi2.ppf(1 - 1e-4, (n - 1) ** 2)


@pytest.mark.parametrize("n", [3, 4])
def test_every_order_of_few_is_equally_likely(n):
    epochs = 3000
    epoch, place = np.divmod(np.arange(epochs * n), n)
    seen = shuffled(1, epoch, place, n).reshape(epochs, n)
    counts = [int((seen == each).all(axis=1).sum()) for each in itertools.permutations(range(n))]
    assert sum(counts) == epochs
    assert stats.chisquare(counts).pvalue > 1e-4


def test_neighbours_are_not_neighbours_afterwards():
    """The step from one place to the next is as a random one: below n / 10 for about a fifth of 19 % of them."""
    n = 10_000
    step = np.abs(np.diff(order(2, 0, n)))
    low, high = stats.binom.ppf([1e-6, 1 - 1e-6], n - 1, 0.19)  # 2 x 0.1 - 0.1^2
    assert low <= (step < n / 10).sum() <= high


@pytest.mark.parametrize("n", [10**12, 2**40, 2**40 + 1, 2**61 - 1])
def test_no_order_is_held_whatever_its_length(n):
    """A few places of one that no memory could hold."""
    place = np.concatenate([np.arange(500), n - 1 - np.arange(500), [n // 2]])
    got = shuffled(4, np.zeros_like(place), place, n)
    assert len(np.unique(got)) == len(place)
    assert got.min() >= 0
    assert got.max() < n
    assert stats.kstest(got / n, "uniform").pvalue > 1e-4


@pytest.mark.parametrize("n", [1, 7, 4095, 4096, 5000, 10**12])
@pytest.mark.parametrize(("begin", "end"), [(0, 1), (4090, 4100), (4096, 8192), (12_345, 30_000)])
def test_an_endless_order_is_that_of_its_epochs(n, begin, end):
    epoch, which = draws.order(3, begin, end, n)
    assert epoch.tolist() == [number // n for number in range(begin, end)]
    assert which.tolist() == shuffled(3, epoch, np.arange(begin, end) % n, n).tolist()

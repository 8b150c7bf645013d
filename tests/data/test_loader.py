"""The order of rows is a function of the seed and one number, and evaluation reads the same at every call."""

from itertools import islice

import numpy as np
import pytest
import torch

from minilm.batch import Batch
from minilm.data.loader import EVALUATED_TOKENS, Loader, fixed_batches
from minilm.data.objectives import CausalLM, MaskedLM, PrefixLM
from minilm.data.packing import pack
from minilm.errors import CheckpointError, DataError


@pytest.fixture
def rows_of(shard_of, plain_ids, tokenizer):
    """rows_of(n, T, packing): n stream rows, or the rows of n documents."""

    def make(n: int, T: int = 16, packing: str = "stream"):
        rng = np.random.default_rng(n)
        words = rng.choice(plain_ids, n * (T - 1) - 1).tolist()
        if packing == "stream":
            return pack(shard_of([words]), packing, T, tokenizer)
        return pack(shard_of([rng.choice(plain_ids, k).tolist() for k in rng.integers(1, T, n)]), packing, T, tokenizer)

    return make


def same(a: Batch, b: Batch) -> bool:
    pairs = [(a.where, b.where), (a.target, b.target), (a.tokens.input_ids, b.tokens.input_ids)]
    pairs += [(a.tokens.doc, b.tokens.doc), (a.tokens.prefix, b.tokens.prefix)]
    return all(x.shape == y.shape and bool((x == y).all()) for x, y in pairs) and a.count == b.count


@pytest.mark.parametrize("batch_size", [1, 3, 5, 10])
def test_every_epoch_is_another_permutation_and_batches_span_epochs(rows_of, tokenizer, batch_size):
    rows = rows_of(10)
    loader = Loader(rows, MaskedLM(tokenizer, 0), batch_size, seed=3)
    starts = range(0, 60, batch_size)
    epoch = np.concatenate([loader.order(s, batch_size)[0] for s in starts])[:60]
    row = np.concatenate([loader.order(s, batch_size)[1] for s in starts])[:60]
    assert epoch.tolist() == [n // 10 for n in range(60)]
    orders = [tuple(row[e * 10 : e * 10 + 10]) for e in range(6)]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert len(set(orders)) == 6
    other = Loader(rows, MaskedLM(tokenizer, 0), 10, seed=4)
    assert tuple(other.order(0, 10)[1]) != orders[0]
    assert tuple(Loader(rows, CausalLM(), 10, seed=3).order(20, 10)[1]) == orders[2]


def test_permutations_are_uniform(rows_of):
    """Where row 0 stands, over 600 epochs: a 6-sided die."""
    loader = Loader(rows_of(6), CausalLM(), 6, seed=0)
    place = [int(np.flatnonzero(loader.order(6 * e, 6)[1] == 0)[0]) for e in range(600)]
    assert ((np.bincount(place, minlength=6) - 100) ** 2 / 100).sum() < 25.7  # chi-square, 5 degrees, p = 1e-4


def test_batch_is_a_pure_function_of_its_start(rows_of, tokenizer):
    rows, objective = rows_of(10), MaskedLM(tokenizer, 0)
    loader = Loader(rows, objective, 4, seed=1)
    first = {s: loader.batch(s) for s in (0, 8, 4, 36, 12)}
    for s in (36, 0, 12, 8, 4):
        assert same(loader.batch(s), first[s])
        assert same(Loader(rows, objective, 4, seed=1).batch(s), first[s])
    assert loader.taken == 0
    epoch, row = loader.order(8, 4)  # two rows of epoch 0, two of epoch 1
    assert epoch.tolist() == [0, 0, 1, 1]
    by_hand = objective(*rows.take(row), torch.from_numpy(row), torch.from_numpy(epoch))
    assert same(first[8], by_hand)


@pytest.mark.parametrize("packing", ["stream", "documents"])
@pytest.mark.parametrize("after", [1, 3, 7])
def test_going_on_from_a_state_is_going_on(rows_of, tokenizer, packing, after):
    rows, objective = rows_of(11, packing=packing), PrefixLM(2)
    B = 3
    whole = list(islice(Loader(rows, objective, B, seed=5), 12))
    assert all(same(batch, Loader(rows, objective, B, seed=5).batch(i * B)) for i, batch in enumerate(whole))
    stopped = Loader(rows, objective, B, seed=5)
    running = iter(stopped)
    for _ in range(after):
        next(running)
    state = stopped.state_dict()  # taken while the next batch is being prepared
    running.close()
    assert state == {"taken": after * B, "rows": len(rows), "seed": 5}
    resumed = Loader(rows, objective, B, seed=5)
    resumed.load_state_dict(state)
    assert all(same(a, b) for a, b in zip(islice(resumed, 12 - after), whole[after:], strict=True))
    assert same(next(iter(stopped)), whole[after])  # the first loader goes on, too


@pytest.mark.parametrize("change", ["rows", "seed"])
def test_a_state_of_another_run_is_refused(rows_of, change):
    loader = Loader(rows_of(10), CausalLM(), 2, seed=1)
    state = loader.state_dict()
    state[change] += 1
    with pytest.raises(CheckpointError, match=change):
        loader.load_state_dict(state)
    assert loader.taken == 0


def test_too_few_rows_for_a_batch(rows_of):
    rows = rows_of(5)
    assert Loader(rows, CausalLM(), 5, seed=0).batch(0).tokens.input_ids.shape == (5, 16)
    with pytest.raises(DataError, match="5 rows of 16 tokens, fewer than --batch-size 6") as error:
        Loader(rows, CausalLM(), 6, seed=0)
    assert "\n" not in str(error.value)


def test_an_error_while_prefetching_reaches_the_caller(rows_of):
    class Broken(CausalLM):
        def __call__(self, *args):
            raise RuntimeError("broken objective")

    with pytest.raises(RuntimeError, match="broken objective"):
        next(iter(Loader(rows_of(5), Broken(), 2, seed=0)))


# -- evaluation -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", ["stream", "documents"])
@pytest.mark.parametrize("name", ["mlm", "prefix"])
def test_a_small_split_is_read_again_with_other_draws(rows_of, tokenizer, packing, name):
    rows = rows_of(90, 32, packing)
    objective = MaskedLM(tokenizer, 0) if name == "mlm" else PrefixLM(0)
    first, second = (list(fixed_batches(rows, objective)) for _ in range(2))
    assert len(first) == len(second)
    assert all(same(a, b) for a, b in zip(first, second, strict=True))
    assert 20_000 <= sum(batch.count for batch in first) < 40_000
    every = torch.cat([batch.target for batch in first])
    n, k = len(rows), len(every) // sum(len(batch.tokens.input_ids) for batch in first)
    where = torch.cat([batch.where.view(-1, k) % 32 for batch in first])
    assert len(where) > 2 * n
    assert (where[:n] != where[n : 2 * n]).any(dim=1).float().mean() > 0.5  # the same rows, elsewhere


def test_without_draws_every_row_is_read_once(rows_of):
    rows = rows_of(70)
    batches = list(fixed_batches(rows, CausalLM()))
    assert (torch.cat([b.tokens.input_ids for b in batches]) == rows.take(np.arange(70))[0]).all()


def test_a_large_split_is_read_evenly_and_once(rows_of, tokenizer):
    T = 128
    rows = rows_of(4000, T)
    wanted = EVALUATED_TOKENS // T
    batches = list(fixed_batches(rows, MaskedLM(tokenizer, 0, 0.2)))
    read = np.arange(wanted) * 4000 // wanted
    ids = torch.cat([b.tokens.input_ids for b in batches])
    assert ids.shape == (wanted, T)
    assert sum(b.count for b in batches) >= 20_000
    where = torch.cat([b.where.view(-1, 26) % T for b in batches])
    same_ids = ids == rows.take(read)[0]
    assert (same_ids | torch.zeros_like(ids, dtype=torch.bool).scatter(1, where, True)).all()
    assert same_ids.float().mean() > 0.8


def test_min_targets_is_kept(rows_of, tokenizer):
    for wanted in (1, 500, 30_000):
        assert sum(b.count for b in fixed_batches(rows_of(40), MaskedLM(tokenizer, 0), wanted)) >= wanted

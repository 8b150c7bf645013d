"""What a step reads is a function of the seed and its number, shared by the processes; evaluation reads the same at
every call."""

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import count, islice

import numpy as np
import pytest
import torch
from scipy import stats

from minilm.batch import IGNORE, Batch
from minilm.data.ahead import made_ahead
from minilm.data.loader import EVALUATED_TOKENS, Loader, Stretch, fixed_batches, shared
from minilm.data.objectives import CausalLM, MaskedLM, PrefixLM
from minilm.data.packing import pack
from minilm.errors import ConfigError, DataError, LoadingError


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


def plain(rows, batch_size: int, objective=None, seed: int = 0, steps: int = 100, **settings) -> Loader:
    """Of one stretch, a step of one micro-batch."""
    stretches = [Stretch(steps, rows.T, batch_size, batch_size)]
    return Loader(stretches, {rows.T: rows}, objective or CausalLM(), seed, **settings)


def ids_of(batches: list[Batch]) -> torch.Tensor:
    return torch.cat([batch.tokens.input_ids for batch in batches])


# -- the order ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3, 5, 10])
def test_every_epoch_is_another_permutation_and_steps_span_epochs(rows_of, batch_size):
    rows = rows_of(10)
    loader = plain(rows, batch_size, seed=3)
    asked = [loader.order(step) for step in range(60 // batch_size)]
    epoch, row = (np.concatenate(parts) for parts in zip(*asked, strict=True))
    assert (epoch.dtype, row.dtype) == (np.int64, np.int64)
    assert epoch.tolist() == [n // 10 for n in range(60)]
    orders = [tuple(row[e * 10 : e * 10 + 10]) for e in range(6)]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert len(set(orders)) == 6
    assert tuple(plain(rows, 10, seed=4).order(0)[1]) != orders[0]
    assert tuple(plain(rows, 10, seed=3).order(2)[1]) == orders[2]  # whatever the batch size


def test_permutations_are_uniform(rows_of):
    """Where row 0 stands, over 600 epochs: a 6-sided die."""
    _, row = Loader([Stretch(1, 16, 3600, 6)], {16: rows_of(6)}, CausalLM(), seed=0).order(0)
    place = np.flatnonzero(row == 0) % 6
    assert len(place) == 600
    assert stats.chisquare(np.bincount(place, minlength=6)).pvalue > 1e-4


def test_a_step_may_be_longer_than_the_split(rows_of):
    loader = Loader([Stretch(5, 16, 24, 8)], {16: rows_of(10)}, CausalLM(), seed=1)
    epoch, row = loader.order(0)
    assert epoch.tolist() == [n // 10 for n in range(24)]
    assert sorted(row[:10]) == sorted(row[10:20]) == list(range(10))


def test_a_step_is_a_pure_function(rows_of, tokenizer):
    rows, objective = rows_of(10), MaskedLM(tokenizer, 0, 0.4, 0.1)
    loader = plain(rows, 4, objective, seed=1, steps=20)
    first = {step: loader.micro_batches(step) for step in (0, 2, 1, 9, 3)}
    for step in (9, 0, 3, 2, 1):
        for again in (loader, plain(rows, 4, objective, seed=1, steps=20)):
            (batch,) = again.micro_batches(step)
            assert same(batch, first[step][0])
    epoch, row = loader.order(2)  # two rows of epoch 0, two of epoch 1
    assert epoch.tolist() == [0, 0, 1, 1]
    by_hand = objective(rows.take(row, epoch), torch.from_numpy(row), torch.from_numpy(epoch), 2 / 19)
    assert same(first[2][0], by_hand)


def test_a_step_in_parts_is_the_step_in_one(rows_of, tokenizer):
    """How many rows are computed at once changes neither which rows nor what is drawn for them."""
    rows, objective = rows_of(30, packing="documents"), PrefixLM(3)
    whole = Loader([Stretch(9, 16, 12, 12)], {16: rows}, objective, seed=1)
    for batch_size, sizes in ((12, [12]), (7, [6, 6]), (6, [6, 6]), (5, [4, 4, 4]), (4, [4] * 3), (1, [1] * 12)):
        parts = Loader([Stretch(9, 16, 12, batch_size)], {16: rows}, objective, seed=1)
        for step in (0, 4):
            (one,), several = whole.micro_batches(step), parts.micro_batches(step)
            assert [len(batch.tokens.input_ids) for batch in several] == sizes
            assert (ids_of(several) == one.tokens.input_ids).all()
            assert (torch.cat([batch.target for batch in several]) == one.target).all()
            assert sum(batch.count for batch in several) == one.count


def test_smaller_parts_of_the_same_steps(rows_of):
    """To one row, where that is longer."""
    rows = {16: rows_of(60, T=16), 32: rows_of(60, T=32)}
    loader = Loader([Stretch(2, 16, 24, 24), Stretch(2, 32, 12, 12)], rows, CausalLM(), seed=1)
    whole = [ids_of(loader.micro_batches(step)).tolist() for step in range(4)]
    for tokens, sizes in {
        1000: [[24], [12]],
        383: [[12] * 2, [6] * 2],
        192: [[12] * 2, [6] * 2],
        96: [[6] * 4, [3] * 4],
        63: [[3] * 8, [1] * 12],
        32: [[2] * 12, [1] * 12],
        1: [[1] * 24, [1] * 12],
    }.items():
        parts = loader.within(tokens)
        assert [[len(batch.tokens.input_ids) for batch in parts.micro_batches(step)] for step in (0, 2)] == sizes
        assert [ids_of(parts.micro_batches(step)).tolist() for step in range(4)] == whole


@pytest.mark.parametrize("packing", ["stream", "documents"])
@pytest.mark.parametrize("after", [1, 3, 7])
def test_going_on_from_a_step_is_going_on(rows_of, packing, after):
    """The number of a step is the whole state; nothing is read to get there."""
    rows, objective = rows_of(11, packing=packing), PrefixLM(2)
    whole = list(islice(made_ahead(plain(rows, 3, objective, seed=5), 0), 12))
    assert all(len(made) == 1 for made in whole)
    one_by_one = [plain(rows, 3, objective, seed=5).micro_batches(step) for step in range(12)]
    assert all(same(a, b) for (a,), (b,) in zip(whole, one_by_one, strict=True))
    running = made_ahead(plain(rows, 3, objective, seed=5), 0)
    for _ in range(after):
        next(running)
    running.close()  # while the next step is being prepared
    resumed = made_ahead(plain(rows, 3, objective, seed=5), after)
    assert all(same(a, b) for (a,), (b,) in zip(islice(resumed, 12 - after), whole[after:], strict=True))


def test_four_steps_are_prepared_while_one_is_used(rows_of):
    made = threading.Semaphore(0)

    class Counted(CausalLM):
        def __call__(self, *args):
            made.release()
            return super().__call__(*args)

    running = made_ahead(plain(rows_of(9), 3, Counted()), 0)
    next(running)
    assert all(made.acquire(timeout=10) for _ in range(5))
    time.sleep(0.02)
    assert not made.acquire(blocking=False)  # and no more than those
    running.close()


def test_an_error_while_prefetching_reaches_the_caller(rows_of):
    class Broken(CausalLM):
        def __call__(self, *args):
            raise RuntimeError("broken objective")

    with pytest.raises(RuntimeError, match="broken objective") as error:
        next(made_ahead(plain(rows_of(5), 2, Broken()), 0))
    assert error.value.__notes__ == ["while step 1: rows 0, 2 were read"]


class Failing(CausalLM):
    """Does `fault` in the third step."""

    def __init__(self, fault: Callable[[], object]) -> None:
        self.fault, self.steps = fault, count(1)

    def __call__(self, *args):
        if next(self.steps) == 3:
            self.fault()
        return super().__call__(*args)


def test_rows_that_cannot_be_read_are_named(rows_of):
    def fault() -> None:
        raise OSError(5, "Input/output error")

    loader = plain(rows_of(20), 2, Failing(fault))
    running = made_ahead(loader, 0)
    next(running), next(running)
    rows = ", ".join(map(str, loader.order(2)[1]))
    with pytest.raises(LoadingError, match=rf"^step 3: rows {rows} cannot be read: .* Input/output error; the same"):
        next(running)


def test_the_rows_that_are_named_are_the_process_s_own(rows_of):
    rows = rows_of(40)
    loader = plain(rows, 8, rank=1, world=2)
    own = ", ".join(map(str, loader.order(2)[1][4:]))
    assert loader.read_in(2) == f"rows {own} in process 1"


@pytest.mark.parametrize("how", ["closed", "dropped", "failed"])
def test_no_thread_is_left(rows_of, how):
    gc.collect()  # what tests before this one have left
    before = threading.active_count()
    running = made_ahead(plain(rows_of(20), 2, Failing(lambda: 1 / 0) if how == "failed" else None), 0)
    next(running), next(running)
    assert threading.active_count() == before + 1
    if how == "closed":
        running.close()
    elif how == "failed":
        with pytest.raises(ZeroDivisionError):
            next(running)
    del running
    gc.collect()
    assert threading.active_count() == before


def test_rows_that_are_not_read_in_time_are_named(rows_of, monkeypatch):
    monkeypatch.setattr("minilm.data.ahead.PATIENCE", 1)
    let_go = threading.Event()
    loader = plain(rows_of(20), 2, Failing(let_go.wait))
    running = made_ahead(loader, 0)
    next(running), next(running)
    rows = ", ".join(map(str, loader.order(2)[1]))
    began = time.monotonic()
    with pytest.raises(LoadingError, match=f"^step 3: rows {rows} were not read in 1 s; is their disk still there"):
        next(running)
    assert 1 <= time.monotonic() - began < 10
    let_go.set()


@pytest.mark.parametrize("end", ["", "running.close()"])
def test_a_batch_that_is_being_made_at_the_end_does_not_abort_it(end):
    """Of many small steps of torch, which take Python's lock again and again."""
    program = f"""
import sys
import torch
from minilm.data.ahead import made_ahead

class Slow:
    def micro_batches(self, step):
        return [torch.ones(9) + 1 for _ in range(100_000 if step else 1)]

running = made_ahead(Slow(), 0)
next(running)
{end}
sys.exit(3)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (3, "")


def test_a_read_that_hangs_does_not_keep_the_process():
    program = """
import threading
from minilm.data import ahead

class Hanging:
    def micro_batches(self, step):
        threading.Event().wait()
    def read_in(self, step):
        return "rows 0"

ahead.PATIENCE = 1
next(ahead.made_ahead(Hanging(), 0))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(
        "is their disk still there? the same command resumes from the last save"
    )


# -- stretches ------------------------------------------------------------------------------------------


@pytest.fixture
def stretched(rows_of, tokenizer):
    """Three steps of 4 rows of 16 tokens, two of 2 rows of 32, four of 6 rows of 16, three at once; 10 and 7 rows."""
    stretches = [Stretch(3, 16, 4, 4), Stretch(2, 32, 2, 1), Stretch(4, 16, 6, 3)]
    rows = {16: rows_of(10), 32: rows_of(7, 32)}
    return Loader(stretches, rows, MaskedLM(tokenizer, 0, 0.5, 0.25), seed=8)


def test_every_step_is_in_its_stretch(stretched):
    a, b, c = stretched.stretches
    starts = [(a, 0), (a, 4), (a, 8), (b, 0), (b, 2), (c, 12), (c, 18), (c, 24), (c, 30)]
    assert [stretched.at(step) for step in range(9)] == starts
    assert stretched.steps == 9
    assert [stretched.at(step) for step in (9, 10)] == [(c, 36), (c, 42)]  # after the last, on and on


def test_stretches_of_one_length_go_on_in_one_order(stretched):
    """The epochs of 16 tokens take no notice of the stretch of 32 between."""
    asked = [stretched.order(step) for step in (0, 1, 2, 5, 6)]
    epoch, row = (np.concatenate(parts) for parts in zip(*asked, strict=True))
    assert epoch.tolist() == [n // 10 for n in range(24)]
    assert sorted(row[:10]) == sorted(row[10:20]) == list(range(10))
    alone = plain(stretched.rows[16], 1, seed=8)
    assert row.tolist() == [int(alone.order(n)[1][0]) for n in range(24)]
    epoch, row = (np.concatenate(parts) for parts in zip(*[stretched.order(step) for step in (3, 4)], strict=True))
    assert epoch.tolist() == [0] * 4
    assert len(set(row.tolist())) == 4


def test_a_step_has_the_shape_of_its_stretch(stretched):
    shapes = [[tuple(b.tokens.input_ids.shape) for b in stretched.micro_batches(step)] for step in (0, 3, 5)]
    assert shapes == [[(4, 16)], [(1, 32), (1, 32)], [(3, 16), (3, 16)]]


def test_progress_goes_from_0_to_1(stretched):
    assert [stretched.progress(step) for step in range(9)] == [step / 8 for step in range(9)]
    assert stretched.progress(1000) == 1.0
    assert plain(stretched.rows[16], 2, steps=1).progress(0) == 0.0


def test_positions_are_what_the_step_holds(stretched):
    """They are known without making a batch, and the rate that changes with progress is in them."""
    for step in range(11):
        made = stretched.micro_batches(step)
        tokens, length, targets = stretched.positions(step)
        assert tokens == sum(batch.tokens.input_ids.numel() for batch in made)
        assert length == made[0].tokens.input_ids.shape[1]
        assert targets == sum(len(batch.target) for batch in made)
    assert stretched.positions(0) == (64, 16, 4 * 8)
    assert stretched.positions(8) == (96, 16, 6 * 4)


# -- short rows -----------------------------------------------------------------------------------------


@pytest.fixture
def short(tokenizer, shard_of, plain_ids):
    """A loader of 8 rows of 32 a step, of which each third step reads short ones, 2 and 4 of each in turn."""

    def make(batch_size=8, **settings):
        rows = pack(shard_of([plain_ids[:3] * 400]), "stream", 32, tokenizer, short_seq_prob=0.3)
        return Loader([Stretch(12, 32, 8, batch_size)], {32: rows}, MaskedLM(tokenizer, 0, 0.3), 0, **settings)

    return make


def test_short_steps_have_as_many_tokens_in_shorter_rows(short):
    loader = short()
    shapes = [tuple(loader.micro_batches(step)[0].tokens.input_ids.shape) for step in range(7)]
    assert shapes == [(8, 32), (8, 32), (16, 16), (8, 32), (8, 32), (32, 8), (8, 32)]
    for step in range(7):
        (batch,) = loader.micro_batches(step)
        assert loader.positions(step) == (8 * 32, shapes[step][1], len(batch.target))
    assert loader.cycle == 6


def test_short_rows_draw_by_their_own_numbers(short, tokenizer):
    """Piece i of n of row r is row r * n + i, in the epoch of its row; a step spans two."""
    loader = short()
    step = next(step for step in range(5, 999, 6) if len(set(loader.order(step)[0].tolist())) == 2)
    (batch,), (epoch, row) = loader.micro_batches(step), loader.order(step)
    taken = loader.rows[32].take(row, epoch, 4)
    own, of = (torch.tensor([f(i, j) for i in range(8) for j in range(4)]) for f in (
        lambda i, j: row[i] * 4 + j, lambda i, j: epoch[i]))  # fmt: skip
    by_hand = MaskedLM(tokenizer, 0, 0.3)(taken, own, of, loader.progress(step))
    assert torch.equal(batch.tokens.input_ids, by_hand.tokens.input_ids)
    assert torch.equal(batch.where, by_hand.where)


def test_each_short_row_has_masks_of_its_own(short):
    (batch,) = short().micro_batches(5)
    chosen = {tuple(sorted(row)) for row in (batch.where % 8).reshape(32, 2).tolist()}
    assert len(chosen) > 8  # of 15 pairs of places


@pytest.mark.parametrize("step", [2, 5])
def test_short_rows_are_the_same_in_parts_and_in_two_processes(short, step):
    whole = ids_of(short().micro_batches(step))
    assert torch.equal(ids_of(short(2).micro_batches(step)), whole)
    assert torch.equal(ids_of(short().within(64).micro_batches(step)), whole)
    both = [ids_of(short(rank=rank, world=2).micro_batches(step)) for rank in (0, 1)]
    assert torch.equal(torch.cat(both), whole)


def test_the_objective_is_told_the_progress(stretched):
    counts = [stretched.micro_batches(step)[0].target.numel() for step in (0, 2)]
    assert counts == [4 * round(16 * rate) for rate in (0.5, 0.5 - 0.25 * 2 / 8)]


def test_epochs_are_by_tokens(stretched, rows_of):
    seen = 3 * 4 * 16 + 2 * 2 * 32 + 4 * 6 * 16
    assert stretched.epochs() == pytest.approx(seen / (7 * 32))
    assert plain(rows_of(10), 5, steps=6).epochs() == 3.0


def test_a_stretch_may_occur_twice(rows_of):
    """The very same one, before and after another."""
    a, b = Stretch(2, 16, 2, 2), Stretch(3, 32, 2, 2)
    rows = {16: rows_of(10), 32: rows_of(7, 32)}
    loader = Loader([a, b, a], rows, CausalLM(), seed=0)
    assert [loader.at(step) for step in range(8)] == [(a, 0), (a, 2), (b, 0), (b, 2), (b, 4), (a, 4), (a, 6), (a, 8)]


# -- processes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", ["stream", "documents"])
@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_the_processes_share_a_step(rows_of, tokenizer, packing, world, batch_size):
    """Together they hold the rows of the step that one would compute alone, none of them twice, in equal parts."""
    rows, objective = rows_of(40, packing=packing), MaskedLM(tokenizer, 1)

    def loader(rank: int, world: int) -> Loader:
        stretches = [Stretch(3, 16, 8, 8), Stretch(5, 16, 24, batch_size)]
        return Loader(stretches, {16: rows}, objective, 6, rank, world)

    for step in (0, 3, 4):
        alone = loader(0, 1)
        epoch, row = alone.order(step)
        (whole,) = Loader([Stretch(3, 16, 8, 8), Stretch(5, 16, 24, 24)], {16: rows}, objective, 6).micro_batches(step)
        own = [loader(rank, world).micro_batches(step) for rank in range(world)]
        sizes = {len(batch.tokens.input_ids) for made in own for batch in made}
        assert len(sizes) == 1
        assert len({len(made) for made in own}) == 1
        assert step < 3 or max(sizes) <= batch_size
        together = [batch for made in own for batch in made]
        assert (ids_of(together) == whole.tokens.input_ids).all()
        assert (torch.cat([batch.target for batch in together]) == whole.target).all()
        assert sum(batch.count for batch in together) == whole.count
        for rank in range(world):
            assert [part.tolist() for part in loader(rank, world).order(step)] == [epoch.tolist(), row.tolist()]
            assert loader(rank, world).positions(step) == alone.positions(step)


@pytest.mark.parametrize(
    ("rows", "batch_size", "world"), [(7, 4, 2), (6, 6, 4), (10, 4, 1), (24, 5, 3), (2, 2, 4), (12, 4, 2)]
)
def test_what_the_processes_cannot_share_is_one_line(rows_of, rows, batch_size, world):
    micro = -(-rows // (world * batch_size))
    if rows % (world * micro) == 0:
        loader = Loader([Stretch(1, 16, rows, batch_size)], {16: rows_of(40)}, CausalLM(), 0, world - 1, world)
        assert [len(b.tokens.input_ids) for b in loader.micro_batches(0)] == [rows // world // micro] * micro
        return
    with pytest.raises(ConfigError, match=f"^{rows} rows a step do not divide .*--batch-size") as error:
        Loader([Stretch(1, 16, rows, batch_size)], {16: rows_of(40)}, CausalLM(), 0, 0, world)
    assert f"{world} processes" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_later_stretch_is_looked_at_too(rows_of):
    stretches = [Stretch(1, 16, 8, 4), Stretch(1, 16, 7, 4)]
    with pytest.raises(ConfigError, match="7 rows a step"):
        Loader(stretches, {16: rows_of(40)}, CausalLM(), 0, 0, 2)
    stretches = [Stretch(1, 16, 4, 4), Stretch(1, 32, 4, 4)]
    with pytest.raises(DataError, match="3 rows of 32 tokens"):
        Loader(stretches, {16: rows_of(40), 32: rows_of(3, 32)}, CausalLM(), 0)


def test_too_few_rows_for_a_batch(rows_of):
    rows = rows_of(5)
    assert ids_of(plain(rows, 5).micro_batches(0)).shape == (5, 16)
    with pytest.raises(DataError, match="5 rows of 16 tokens, fewer than a micro-batch of 6") as error:
        plain(rows, 6)
    assert "\n" not in str(error.value)
    Loader([Stretch(1, 16, 10, 5)], {16: rows}, CausalLM(), 0)  # a step may be longer than that
    Loader([Stretch(1, 16, 6, 6)], {16: rows}, CausalLM(), 0, 1, 2)


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
    assert (
        torch.cat([b.tokens.input_ids for b in batches]) == rows.take(np.arange(70), np.zeros(70, np.int64)).ids
    ).all()


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
    same_ids = ids == rows.take(read, np.zeros_like(read)).ids
    assert (same_ids | torch.zeros_like(ids, dtype=torch.bool).scatter(1, where, True)).all()
    assert same_ids.float().mean() > 0.8


def test_min_targets_is_kept(rows_of, tokenizer):
    for wanted in (1, 500, 30_000):
        assert sum(b.count for b in fixed_batches(rows_of(40), MaskedLM(tokenizer, 0), wanted)) >= wanted


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_processes_share_the_evaluation_and_compute_equally_often(rows_of, tokenizer, world):
    """Every batch once; what fills up has nothing to predict."""
    batches = list(fixed_batches(rows_of(40), MaskedLM(tokenizer, 0)))[:7]
    parts = [shared(batches, rank, world) for rank in range(world)]
    assert {len(part) for part in parts} == {-(-7 // world)}
    real = [batch for part in parts for batch in part if batch.count]
    assert sorted(map(id, real)) == sorted(map(id, batches))
    fill = [batch for part in parts for batch in part if not batch.count]
    assert all((batch.target == IGNORE).all() and batch.tokens is batches[0].tokens for batch in fill)

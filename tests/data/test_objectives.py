"""What is predicted, and where: drawn as promised, never on a special token, never across documents."""

import numpy as np
import pytest
import torch
from scipy import stats

from minilm.batch import IGNORE
from minilm.data.objectives import CausalLM, MaskedLM, PrefixLM, draw, make_objective, mix

WRAP = (1 << 64) - 1


# -- an independent integer hash ------------------------------------------------------------------------


def reference_mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & WRAP
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & WRAP
    return x ^ (x >> 31)


def reference_draw(seed: int, purpose: int, epoch: int, row: int, position: int) -> int:
    h = reference_mix((seed * 4 + purpose) & WRAP)
    for part in (epoch, row, position):
        h = reference_mix(h ^ reference_mix((part + 0x1E3779B97F4A7C15) & WRAP))
    return h & ((1 << 62) - 1)


def test_mix_is_splitmix64s_finaliser():
    numbers = [0, 1, -1, 2, 12345678901234567, 2**63 - 1, -(2**63), 0x1E3779B97F4A7C15]
    assert [x & WRAP for x in mix(torch.tensor(numbers)).tolist()] == [reference_mix(x & WRAP) for x in numbers]


@pytest.mark.parametrize("seed", [0, 1, 42, 2**31, 2**62 + 5, -7])
@pytest.mark.parametrize("purpose", [0, 1, 2, 3])
def test_draw_equals_the_reference(seed, purpose):
    epoch, row, position = torch.tensor([[0], [1], [977]]), torch.tensor([[5], [2**40], [0]]), torch.arange(6)
    mine = draw(seed, purpose, epoch, row, position)
    assert mine.shape == (3, 6)
    assert mine.tolist() == [
        [reference_draw(seed, purpose, int(epoch[i]), int(row[i]), t) for t in range(6)] for i in range(3)
    ]


def test_draw_is_uniform_and_its_purposes_are_independent():
    zero, row, position = torch.zeros(1, 1).long(), torch.arange(500)[:, None], torch.arange(100)
    a, b = (draw(3, purpose, zero, row, position).flatten().numpy() for purpose in (0, 1))
    assert a.min() >= 0
    assert a.max() < 1 << 62
    table = np.zeros((10, 10))
    np.add.at(table, (a % 10, (b >> 32) * 10 >> 30), 1)
    assert stats.chisquare(table.flatten()).pvalue > 1e-4


# -- masked ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def words(plain_ids):
    """(6000, 128) ids: [CLS] words [SEP], with padding, [UNK] and [MASK] in between."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.tensor(plain_ids)[torch.randint(len(plain_ids), (6000, 128), generator=generator)]
    ids[:, 0], ids[:, 50], ids[:, 90] = 40, 41, 17
    ids[::2, 120:] = 3
    ids[1::2, 127] = 99
    return ids


@pytest.fixture(scope="module")
def masked(tokenizer, words):
    return MaskedLM(tokenizer, seed=11)(words, None, torch.arange(len(words)), torch.zeros(len(words)).long())


def within(count: int, n: int, p: float) -> bool:
    low, high = stats.binom.ppf([1e-6, 1 - 1e-6], n, p)
    return bool(low <= count <= high)


def test_eighty_ten_ten(masked, plain_ids):
    n, V = masked.count, len(plain_ids)
    assert n >= 100_000
    read = masked.tokens.input_ids.flatten()[masked.where]
    is_mask, kept = read == 99, read == masked.target
    assert within(int(is_mask.sum()), n, 0.8)
    assert within(int(kept.sum()), n, 0.1 + 0.1 / V)
    assert within(int((~is_mask & ~kept).sum()), n, 0.1 * (V - 1) / V)
    other = read[~is_mask & ~kept].bincount(minlength=100)
    assert other[[3, 17, 40, 41, 99]].sum() == 0  # a random word is never a special token
    assert stats.chisquare(other[plain_ids].numpy()).pvalue > 1e-4


def test_targets_are_the_originals_and_nothing_else_changes(masked, words):
    assert masked.where.shape == masked.target.shape == (6000 * 19,)  # round(0.15 * 128) a row
    assert (masked.where // 128 == torch.arange(6000).repeat_interleave(19)).all()
    assert len(masked.where.unique()) == len(masked.where)
    assert (masked.target == words.flatten()[masked.where]).all()
    assert masked.count == len(masked.target)
    unread = torch.ones(words.numel(), dtype=torch.bool)
    unread[masked.where] = False
    assert (masked.tokens.input_ids.flatten()[unread] == words.flatten()[unread]).all()
    assert masked.tokens.attention == "bidirectional"
    assert masked.tokens.prefix.all()


def test_specials_are_never_chosen_and_places_are_uniform(masked, words):
    assert not torch.isin(words.flatten()[masked.where], torch.tensor([3, 17, 40, 41, 99])).any()
    odd = (masked.where // 128) % 2 == 1
    counts = (masked.where[odd] % 128).bincount(minlength=128)
    places = [t for t in range(128) if t not in (0, 50, 90, 127)]
    assert counts.sum() == counts[places].sum()
    assert stats.chisquare(counts[places].numpy()).pvalue > 1e-4


@pytest.mark.parametrize(("rate", "T", "k"), [(0.15, 40, 6), (0.3, 40, 12), (0.15, 10, 2), (1.0, 10, 10)])
def test_a_row_with_few_words_fills_up_with_ignore(tokenizer, rate, T, k):
    ids = torch.full((3, T), 3)
    ids[0, 4], ids[1] = 50, torch.arange(50, 50 + T).clamp(max=98)
    batch = MaskedLM(tokenizer, 0, rate)(ids, None, torch.arange(3), torch.zeros(3).long())
    target = batch.target.view(3, k)
    assert (target != IGNORE).sum(1).tolist() == [1, k, 0]
    assert batch.count == 1 + k
    assert target[0][target[0] != IGNORE].tolist() == [50]
    assert batch.where.view(3, k)[0][target[0] != IGNORE].tolist() == [4]
    assert (batch.tokens.input_ids[2] == 3).all()
    assert (batch.tokens.input_ids[0, [t for t in range(T) if t != 4]] == 3).all()


def test_a_mask_depends_on_seed_epoch_and_row_alone(tokenizer, words):
    objective = MaskedLM(tokenizer, 5)
    row = torch.tensor([9, 2, 700, 33])
    epoch = torch.tensor([0, 3, 0, 1])
    batch = objective(words[row], None, row, epoch)
    where, target = batch.where.view(4, -1) - torch.arange(4)[:, None] * 128, batch.target.view(4, -1)
    for b in (3, 0, 2, 1):
        alone = objective(words[row[b : b + 1]], None, row[b : b + 1], epoch[b : b + 1])
        assert (alone.where == where[b]).all()
        assert (alone.target == target[b]).all()
        assert (alone.tokens.input_ids[0] == batch.tokens.input_ids[b]).all()

    def chosen(seed: int, epoch: int, row: int) -> frozenset[int]:
        one = MaskedLM(tokenizer, seed)(words[:1], None, torch.tensor([row]), torch.tensor([epoch]))
        return frozenset(one.where.tolist())

    several = [chosen(5, 0, 0), chosen(5, 1, 0), chosen(5, 2, 0), chosen(5, 0, 1), chosen(6, 0, 0)]
    assert len(set(several)) == 5
    assert chosen(5, 1, 0) == several[1]


@pytest.mark.parametrize("rate", [0.15, 0.3])
def test_the_rate_is_of_a_rows_tokens_and_not_of_its_padding(tokenizer, plain_ids, rate):
    """A row that is nearly empty is not predicted whole."""
    sizes = torch.tensor([4, 20, 64, 128])
    ids = torch.tensor(plain_ids)[torch.arange(128) % len(plain_ids)].repeat(4, 1)
    doc = torch.where(torch.arange(128) < sizes[:, None], 0, -1)
    ids = torch.where(doc < 0, tokenizer.pad_id, ids)
    batch = MaskedLM(tokenizer, 0, rate)(ids, doc, torch.arange(4), torch.zeros(4).long())
    counts = (batch.target != IGNORE).view(4, -1).sum(dim=1)
    assert counts.tolist() == [max(1, round(rate * int(size))) for size in sizes]
    assert batch.count == counts.sum()


def test_padding_of_packed_rows_is_not_counted_as_tokens(tokenizer):
    ids = torch.tensor([[40, 50, 51, 41, 40, 52, 41, 3, 3, 3]])
    doc = torch.tensor([[0, 0, 0, 0, 1, 1, 1, -1, -1, -1]])
    batch = MaskedLM(tokenizer, 0, 1.0)(ids, doc, torch.tensor([0]), torch.tensor([0]))
    assert batch.size == 7
    assert batch.count == 3
    assert sorted(batch.where[batch.target != IGNORE].tolist()) == [1, 2, 5]
    assert batch.tokens.layout == "packed"
    assert batch.tokens.doc is doc


# -- causal ---------------------------------------------------------------------------------------------


def test_causal_shift_of_full_rows():
    ids = torch.tensor([[40, 5, 6, 41, 7], [40, 8, 9, 10, 11]])
    batch = CausalLM()(ids, None, torch.arange(2), torch.zeros(2).long())
    assert batch.where.tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    assert batch.target.tolist() == [5, 6, 41, 7, 8, 9, 10, 11]
    assert (batch.count, batch.size) == (8, 10)
    assert (batch.tokens.attention, batch.tokens.layout) == ("causal", "full")
    assert not batch.tokens.prefix.any()
    assert (batch.tokens.input_ids == ids).all()


def test_causal_shift_stops_at_documents_and_padding():
    ids = torch.tensor([[40, 5, 41, 40, 6, 41, 3, 3], [40, 7, 8, 9, 10, 11, 12, 41]])
    doc = torch.tensor([[0, 0, 0, 1, 1, 1, -1, -1], [0] * 8])
    batch = CausalLM()(ids, doc, torch.arange(2), torch.zeros(2).long())
    assert batch.where.tolist() == [*range(7), *range(8, 15)]
    I = IGNORE
    assert batch.target.tolist() == [5, 41, I, 6, 41, I, I, 7, 8, 9, 10, 11, 12, 41]
    assert (batch.count, batch.size) == (11, 14)


# -- prefix ---------------------------------------------------------------------------------------------


def packed_rows(T: int, rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Documents of 2 to 20 tokens, ids all different, with and without a padded tail."""
    rng = np.random.default_rng(seed)
    doc = torch.full((rows, T), -1)
    for b in range(rows):
        at = number = 0
        stop = T - int(rng.integers(0, 6))
        while stop - at >= 2:
            n = min(int(rng.integers(2, 21)), stop - at)
            doc[b, at : at + n] = number
            at, number = at + n, number + 1
    return torch.arange(rows * T).view(rows, T) + 1000, doc


@pytest.mark.parametrize("packed", [False, True])
def test_prefix_ends_at_a_cut_and_exactly_the_rest_is_predicted(packed):
    T, rows = 33, 200
    ids, doc = packed_rows(T, rows, 3)
    batch = PrefixLM(4)(ids, doc if packed else None, torch.arange(rows), torch.ones(rows).long())
    assert batch.tokens.attention == "prefix"
    assert (batch.tokens.input_ids == ids).all()
    wanted = {}
    for b in range(rows):
        numbers = doc[b].tolist() if packed else [0] * T
        for d in set(numbers) - {-1}:
            places = [t for t in range(T) if numbers[t] == d]
            flags = batch.tokens.prefix[b, places].tolist()
            cut, L = sum(flags), len(places)
            assert flags == [True] * cut + [False] * (L - cut)
            assert L / 4 <= cut <= 3 * L / 4
            for t in places[cut:]:
                wanted[b * T + t - 1] = int(ids[b, t])
        assert not batch.tokens.prefix[b, [t for t in range(T) if numbers[t] == -1]].any()
    real = batch.target != IGNORE
    assert dict(zip(batch.where[real].tolist(), batch.target[real].tolist(), strict=True)) == wanted
    assert batch.count == int(real.sum()) == len(wanted)
    assert batch.where.shape == (rows * (T - T // 4),)
    assert len(batch.where.unique()) == len(batch.where)


@pytest.mark.parametrize(
    ("L", "cuts"), [(2, [1]), (3, [1, 2]), (4, [1, 2, 3]), (8, [2, 3, 4, 5, 6]), (9, [3, 4, 5, 6])]
)
def test_every_cut_is_drawn_equally_often(L, cuts):
    """Two documents of L tokens: the cuts of the second are those of the first, and independent of them."""
    rows = 2000
    ids, doc = torch.arange(2 * L).expand(rows, -1) + 100, (torch.arange(2 * L) // L).expand(rows, -1)
    prefix = PrefixLM(1)(ids, doc, torch.arange(rows), torch.zeros(rows).long()).tokens.prefix
    first, second = prefix[:, :L].sum(1), prefix[:, L:].sum(1)
    table = torch.zeros(L + 1, L + 1)
    table.index_put_((first, second), torch.ones(rows), accumulate=True)
    seen = table[cuts][:, cuts]
    assert seen.sum() == rows
    if len(cuts) > 1:
        assert stats.chisquare(seen.flatten().double().numpy()).pvalue > 1e-4


def test_a_document_of_one_token_has_no_target():
    ids, doc = torch.tensor([[5, 6, 7, 8, 3, 3]]), torch.tensor([[0, 1, 1, 1, -1, -1]])
    batch = PrefixLM(0)(ids, doc, torch.tensor([0]), torch.tensor([0]))
    assert batch.tokens.prefix[0, 0]
    assert 5 not in batch.target.tolist()
    assert 6 not in batch.target.tolist()
    assert 8 in batch.target.tolist()


def test_cuts_do_not_depend_on_the_batch_but_on_the_epoch():
    ids, doc = packed_rows(40, 20, 5)
    objective = PrefixLM(9)
    row = torch.arange(20)
    whole = objective(ids, doc, row, torch.zeros(20).long()).tokens.prefix
    backwards = objective(ids.flip(0), doc.flip(0), row.flip(0), torch.zeros(20).long()).tokens.prefix.flip(0)
    assert (whole == backwards).all()
    assert (whole[7:8] == objective(ids[7:8], doc[7:8], row[7:8], torch.tensor([0])).tokens.prefix).all()
    assert (whole != objective(ids, doc, row, torch.ones(20).long()).tokens.prefix).any()


@pytest.mark.parametrize(
    ("name", "kind", "random"), [("mlm", MaskedLM, True), ("clm", CausalLM, False), ("prefix", PrefixLM, True)]
)
def test_make_objective(tokenizer, name, kind, random):
    objective = make_objective(name, tokenizer, 8, 0.4)
    assert type(objective) is kind
    assert (objective.name, objective.random) == (name, random)
    assert getattr(objective, "seed", 8) == 8
    assert getattr(objective, "rate", 0.4) == 0.4

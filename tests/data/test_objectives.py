"""What is predicted, and where: drawn as promised, never on a special token, never across documents."""

import numpy as np
import pytest
import torch
from scipy import stats

from minilm.batch import IGNORE
from minilm.data.loader import fixed_batches
from minilm.data.objectives import CausalLM, MaskedLM, PrefixLM, make_objective
from minilm.data.packing import Taken, pack

PIECES = range(60, 90)  # the ids of `pieces_tokenizer` that go on with a word

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
    return MaskedLM(tokenizer, seed=11)(Taken(words), torch.arange(len(words)), torch.zeros(len(words)).long())


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
    batch = MaskedLM(tokenizer, 0, rate)(Taken(ids), torch.arange(3), torch.zeros(3).long())
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
    batch = objective(Taken(words[row]), row, epoch)
    where, target = batch.where.view(4, -1) - torch.arange(4)[:, None] * 128, batch.target.view(4, -1)
    for b in (3, 0, 2, 1):
        alone = objective(Taken(words[row[b : b + 1]]), row[b : b + 1], epoch[b : b + 1])
        assert (alone.where == where[b]).all()
        assert (alone.target == target[b]).all()
        assert (alone.tokens.input_ids[0] == batch.tokens.input_ids[b]).all()

    def chosen(seed: int, epoch: int, row: int) -> frozenset[int]:
        one = MaskedLM(tokenizer, seed)(Taken(words[:1]), torch.tensor([row]), torch.tensor([epoch]))
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
    batch = MaskedLM(tokenizer, 0, rate)(Taken(ids, doc), torch.arange(4), torch.zeros(4).long())
    counts = (batch.target != IGNORE).view(4, -1).sum(dim=1)
    assert counts.tolist() == [max(1, round(rate * int(size))) for size in sizes]
    assert batch.count == counts.sum()


def test_padding_of_packed_rows_is_not_counted_as_tokens(tokenizer):
    ids = torch.tensor([[40, 50, 51, 41, 40, 52, 41, 3, 3, 3]])
    doc = torch.tensor([[0, 0, 0, 0, 1, 1, 1, -1, -1, -1]])
    batch = MaskedLM(tokenizer, 0, 1.0)(Taken(ids, doc), torch.tensor([0]), torch.tensor([0]))
    assert batch.size == 7
    assert batch.count == 3
    assert sorted(batch.where[batch.target != IGNORE].tolist()) == [1, 2, 5]
    assert batch.tokens.layout == "packed"
    assert batch.tokens.doc is doc


# -- a rate that changes --------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "end"), [(0.3, 0.1), (0.1, 0.3), (0.2, 0.2)])
def test_the_rate_goes_linearly_with_progress(tokenizer, plain_ids, rate, end):
    sizes = torch.tensor([10, 50, 100])
    doc = torch.where(torch.arange(100) < sizes[:, None], 0, -1)
    ids = torch.where(doc < 0, tokenizer.pad_id, torch.tensor(plain_ids)[torch.arange(100) % len(plain_ids)])
    objective = MaskedLM(tokenizer, 0, rate, end)
    for progress in (0.0, 0.25, 0.5, 1.0):
        now = rate + (end - rate) * progress
        batch = objective(Taken(ids, doc), torch.arange(3), torch.zeros(3).long(), progress)
        assert objective.slots(100, progress) == round(now * 100)
        assert batch.target.shape == (3 * round(now * 100),)
        counts = (batch.target != IGNORE).view(3, -1).sum(dim=1)
        assert (counts - now * sizes).abs().max() <= 0.5 + 1e-4
        assert batch.count == counts.sum()


def test_without_an_end_rate_progress_changes_nothing(tokenizer, words):
    objective, row, zero = MaskedLM(tokenizer, 2), torch.arange(50), torch.zeros(50).long()
    first, last = (objective(Taken(words[:50]), row, zero, progress) for progress in (0.0, 1.0))
    assert (first.where == last.where).all()
    assert (first.tokens.input_ids == last.tokens.input_ids).all()


def test_less_masking_later_is_of_the_same_places(tokenizer, words):
    """A rate takes the first places of an order that it does not change."""
    row, zero = torch.arange(50), torch.zeros(50).long()
    early, late = (MaskedLM(tokenizer, 2, 0.3, 0.1)(Taken(words[:50]), row, zero, progress) for progress in (0, 1))
    assert late.count < early.count
    assert set(late.where.tolist()) < set(early.where.tolist())


def test_evaluation_masks_as_in_the_beginning(tokenizer, shard_of, plain_ids):
    rng = np.random.default_rng(0)
    rows = pack(shard_of([rng.choice(plain_ids, 2000).tolist()]), "stream", 32, tokenizer)
    plain, ending = (list(fixed_batches(rows, MaskedLM(tokenizer, 0, 0.2, end), 500)) for end in (None, 0.05))
    for a, b in zip(plain, ending, strict=True):
        assert (a.where == b.where).all()
        assert (a.target == b.target).all()
        assert (a.tokens.input_ids == b.tokens.input_ids).all()


# -- whole words ----------------------------------------------------------------------------------------


def text_of_pieces(rows: int, T: int, seed: int, continuing: float, specials: float = 0.05) -> torch.Tensor:
    """(rows, T) ids for `pieces_tokenizer`: each goes on with a word by that chance; some special tokens between."""
    rng = np.random.default_rng(seed)
    first, inner = [i for i in range(100) if i not in (3, 17, 40, 41, 99, *PIECES)], list(PIECES)
    ids = np.where(rng.random((rows, T)) < continuing, rng.choice(inner, (rows, T)), rng.choice(first, (rows, T)))
    ids = np.where(rng.random((rows, T)) < specials, rng.choice([17, 40, 41, 99], (rows, T)), ids)
    return torch.from_numpy(ids)


def words_in(row: list[int]) -> list[list[int]]:
    """The columns of each word: what is special ends one, and is none."""
    found: list[list[int]] = []
    for t, id in enumerate(row):
        if id in (3, 17, 40, 41, 99):
            continue
        if id in PIECES and found and found[-1][-1] == t - 1:
            found[-1].append(t)
        else:
            found.append([t])
    return found


@pytest.mark.parametrize("rate", [0.05, 0.15, 0.5, 1.0])
@pytest.mark.parametrize(("T", "continuing"), [(16, 0.3), (64, 0.5), (64, 0.9), (128, 0.3), (7, 0.95)])
def test_the_pieces_of_a_word_are_chosen_together(pieces_tokenizer, rate, T, continuing):
    B = 200
    ids = text_of_pieces(B, T, T, continuing)
    ids[0], ids[1, 1:], ids[2, 1:] = 41, 41, 70  # nothing to choose; one token; one word as long as the row
    sizes = torch.randint(1, T + 1, (B,), generator=torch.Generator().manual_seed(T))
    sizes[:3] = T
    doc = torch.where(torch.arange(T) < sizes[:, None], 0, -1)
    ids = torch.where(doc < 0, 3, ids)
    batch = MaskedLM(pieces_tokenizer, 6, rate, whole_words=True)(
        Taken(ids, doc), torch.arange(B), torch.zeros(B).long()
    )
    k = max(1, round(rate * T))
    assert batch.where.shape == (B * k,)
    parts = 0
    for b, row in enumerate(ids.tolist()):
        words = words_in(row)
        wanted = min(k, max(1, round(rate * int(sizes[b]))))
        real = batch.target.view(B, k)[b] != IGNORE
        where = (batch.where.view(B, k)[b][real] - b * T).tolist()
        assert batch.target.view(B, k)[b][real].tolist() == [row[t] for t in where]
        chosen = set(where)
        assert len(chosen) == len(where) <= wanted
        broken = [word for word in words if 0 < len(chosen.intersection(word)) < len(word)]
        if broken:  # only where not even one word fits
            parts += 1
            assert chosen < set(broken[0])
            assert len(chosen) == wanted
        elif words:
            longest, every = max(map(len, words)), sum(map(len, words))
            assert len(chosen) == every or len(chosen) > wanted - longest
            assert chosen
        else:
            assert not chosen
        untouched = [t for t in range(T) if t not in chosen]
        assert (batch.tokens.input_ids[b, untouched] == ids[b, untouched]).all()
    if rate == 0.05:
        assert parts > 0  # the exception did occur


def test_words_of_one_piece_are_masked_as_without(tokenizer, words):
    row, zero = torch.arange(200), torch.zeros(200).long()
    for rate in (0.15, 1.0):
        a, b = (
            MaskedLM(tokenizer, 3, rate, whole_words=whole)(Taken(words[:200]), row, zero) for whole in (False, True)
        )
        assert (a.where == b.where).all()
        assert (a.target == b.target).all()
        assert (a.tokens.input_ids == b.tokens.input_ids).all()


def test_whole_words_are_masked_at_nearly_the_same_rate(pieces_tokenizer):
    """Only a word that does not fit is left out: about half of one a row."""
    ids = text_of_pieces(500, 128, 1, 0.3)
    row, zero = torch.arange(500), torch.zeros(500).long()
    plain, whole = (
        MaskedLM(pieces_tokenizer, 3, whole_words=each)(Taken(ids), row, zero).count / 500 for each in (False, True)
    )
    assert plain == 19
    assert 18 < whole < plain


def test_whole_words_are_drawn_anew_in_each_epoch_and_whatever_the_batch(pieces_tokenizer):
    ids = text_of_pieces(30, 64, 2, 0.4)
    objective, row = MaskedLM(pieces_tokenizer, 3, whole_words=True), torch.arange(30)
    first, second = (objective(Taken(ids), row, torch.full((30,), epoch)) for epoch in (0, 1))
    assert (first.where != second.where).any()
    alone = objective(Taken(ids[7:8]), row[7:8], torch.zeros(1).long())
    assert (alone.tokens.input_ids[0] == first.tokens.input_ids[7]).all()


def test_every_word_is_chosen_equally_often_whatever_its_length(pieces_tokenizer):
    """Of 20 words of one piece and 20 of two, in 3000 epochs."""
    row = [50, *(i for n in range(20) for i in (51, 52, 60 + n % 30))][:61]
    ids, n = torch.tensor([[40, *row, 41]]).expand(3000, -1), 3000
    words = words_in(ids[0].tolist())
    batch = MaskedLM(pieces_tokenizer, 0, 0.3, whole_words=True)(Taken(ids), torch.zeros(n).long(), torch.arange(n))
    real = batch.target != IGNORE
    counts = (batch.where[real] % ids.shape[1]).bincount(minlength=ids.shape[1])
    one, two = (np.mean([int(counts[w[0]]) for w in words if len(w) == size]) for size in (1, 2))
    assert one > 500
    assert 0.9 < two / one < 1.02  # the one that is left out is more often long


def test_all_pieces_of_a_word_have_their_own_dice(pieces_tokenizer):
    """80 % of the pieces read [MASK], each by itself, as in google-research/bert."""
    ids = text_of_pieces(2000, 64, 3, 0.5, specials=0.0)
    batch = MaskedLM(pieces_tokenizer, 3, whole_words=True)(Taken(ids), torch.arange(2000), torch.zeros(2000).long())
    real = batch.target != IGNORE
    read = batch.tokens.input_ids.flatten()[batch.where[real]]
    assert within(int((read == 99).sum()), batch.count, 0.8)


# -- causal ---------------------------------------------------------------------------------------------


def test_causal_shift_of_full_rows():
    ids = torch.tensor([[40, 5, 6, 41, 7], [40, 8, 9, 10, 11]])
    batch = CausalLM()(Taken(ids), torch.arange(2), torch.zeros(2).long())
    assert batch.where.tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    assert batch.target.tolist() == [5, 6, 41, 7, 8, 9, 10, 11]
    assert (batch.count, batch.size) == (8, 10)
    assert (batch.tokens.attention, batch.tokens.layout) == ("causal", "full")
    assert not batch.tokens.prefix.any()
    assert (batch.tokens.input_ids == ids).all()


def test_causal_shift_stops_at_documents_and_padding():
    ids = torch.tensor([[40, 5, 41, 40, 6, 41, 3, 3], [40, 7, 8, 9, 10, 11, 12, 41]])
    doc = torch.tensor([[0, 0, 0, 1, 1, 1, -1, -1], [0] * 8])
    batch = CausalLM()(Taken(ids, doc), torch.arange(2), torch.zeros(2).long())
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
    batch = PrefixLM(4)(Taken(ids, doc if packed else None), torch.arange(rows), torch.ones(rows).long())
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
    prefix = PrefixLM(1)(Taken(ids, doc), torch.arange(rows), torch.zeros(rows).long()).tokens.prefix
    first, second = prefix[:, :L].sum(1), prefix[:, L:].sum(1)
    table = torch.zeros(L + 1, L + 1)
    table.index_put_((first, second), torch.ones(rows), accumulate=True)
    seen = table[cuts][:, cuts]
    assert seen.sum() == rows
    if len(cuts) > 1:
        assert stats.chisquare(seen.flatten().double().numpy()).pvalue > 1e-4


def test_a_document_of_one_token_has_no_target():
    ids, doc = torch.tensor([[5, 6, 7, 8, 3, 3]]), torch.tensor([[0, 1, 1, 1, -1, -1]])
    batch = PrefixLM(0)(Taken(ids, doc), torch.tensor([0]), torch.tensor([0]))
    assert batch.tokens.prefix[0, 0]
    assert 5 not in batch.target.tolist()
    assert 6 not in batch.target.tolist()
    assert 8 in batch.target.tolist()


def test_cuts_do_not_depend_on_the_batch_but_on_the_epoch():
    ids, doc = packed_rows(40, 20, 5)
    objective = PrefixLM(9)
    row = torch.arange(20)
    whole = objective(Taken(ids, doc), row, torch.zeros(20).long()).tokens.prefix
    backwards = objective(Taken(ids.flip(0), doc.flip(0)), row.flip(0), torch.zeros(20).long()).tokens.prefix.flip(0)
    assert (whole == backwards).all()
    assert (whole[7:8] == objective(Taken(ids[7:8], doc[7:8]), row[7:8], torch.tensor([0])).tokens.prefix).all()
    assert (whole != objective(Taken(ids, doc), row, torch.ones(20).long()).tokens.prefix).any()


@pytest.mark.parametrize(
    ("name", "kind", "random"), [("mlm", MaskedLM, True), ("clm", CausalLM, False), ("prefix", PrefixLM, True)]
)
def test_make_objective(tokenizer, name, kind, random):
    objective = make_objective(name, tokenizer, 8, 0.4)
    assert type(objective) is kind
    assert (objective.name, objective.random) == (name, random)
    assert getattr(objective, "seed", 8) == 8
    assert getattr(objective, "rate", 0.4) == 0.4
    assert getattr(objective, "end_rate", None) is None
    assert not getattr(objective, "whole_words", False)
    other = make_objective(name, tokenizer, 8, 0.4, 0.1, True)
    assert (getattr(other, "end_rate", 0.1), getattr(other, "whole_words", True)) == (0.1, True)


@pytest.mark.parametrize("name", ["mlm", "clm", "prefix"])
@pytest.mark.parametrize("T", [4, 9, 33])
@pytest.mark.parametrize("packed", [False, True])
def test_slots_are_the_targets_of_a_row_ignore_included(tokenizer, name, T, packed):
    ids, doc = packed_rows(T, 5, 1)
    objective = make_objective(name, tokenizer, 0, 0.4, 0.1)
    taken = Taken(ids % 90, doc if packed else None)
    for progress in (0.0, 0.4, 1.0):
        batch = objective(taken, torch.arange(5), torch.zeros(5).long(), progress)
        assert batch.where.shape == batch.target.shape == (5 * objective.slots(T, progress),)


@pytest.mark.parametrize("name", ["mlm", "clm", "prefix"])
def test_token_types_and_labels_of_pairs_are_passed_on(tokenizer, name):
    ids, doc = torch.tensor([[40, 50, 51, 41, 52, 53, 41, 3]] * 2), torch.tensor([[0] * 7 + [-1]] * 2)
    types, label = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 0]] * 2), torch.tensor([1, 0])
    objective = make_objective(name, tokenizer, 0)
    batch = objective(Taken(ids, doc, types, label), torch.arange(2), torch.zeros(2).long())
    assert (batch.tokens.token_type_ids == types).all()
    assert batch.pair_label is label
    alone = objective(Taken(ids, doc), torch.arange(2), torch.zeros(2).long())
    assert alone.pair_label is None
    assert not alone.tokens.token_type_ids.any()
    assert (alone.where == batch.where).all()
    assert (alone.target == batch.target).all()

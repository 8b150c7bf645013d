"""Every token in one row and in order, and rows that are as full as they can be."""

import numpy as np
import pytest
import torch

from minilm.batch import Tokens
from minilm.data.packing import DocumentRows, StreamRows, best_fit, pack


def documents(plain_ids, lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.choice(plain_ids, n).tolist() for n in lengths]


def first_fit(lengths, capacity: int) -> int:
    """Rows that first-fit needs, in the order given."""
    free: list[int] = []
    for n in lengths:
        at = next((i for i, room in enumerate(free) if room >= n), None)
        if at is None:
            free.append(capacity - n)
        else:
            free[at] -= n
    return len(free)


# -- stream ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("T", [2, 7, 16, 33])
def test_stream_rows_are_the_split_cut_every_t_minus_one(tokenizer, shard_of, plain_ids, T):
    shard = shard_of(documents(plain_ids, [5, 1, 0, 40, 17, 3]))
    rows = pack(shard, "stream", T, tokenizer)
    assert isinstance(rows, StreamRows)
    assert len(rows) == 72 // (T - 1)  # 66 words, 6 [SEP]
    ids, doc = rows.take(np.arange(len(rows)))
    assert doc is None
    assert ids.dtype == torch.int64
    assert ids.shape == (len(rows), T)
    assert (ids[:, 0] == tokenizer.cls_id).all()
    assert ids[:, 1:].flatten().tolist() == shard.tokens[: len(rows) * (T - 1)].tolist()
    assert rows.fill == 1.0


def test_take_gives_the_rows_asked_for_in_that_order(tokenizer, shard_of, plain_ids):
    shard = shard_of(documents(plain_ids, [30, 8, 8, 2, 19, 50]))
    for packing in ("stream", "documents"):
        rows = pack(shard, packing, 12, tokenizer)
        ids, doc = rows.take(np.arange(len(rows)))
        order = np.array([3, 0, 3, len(rows) - 1])
        some, numbers = rows.take(order)
        assert (some == ids[order]).all()
        assert numbers is None if packing == "stream" else (numbers == doc[order]).all()


def test_an_exact_multiple_has_no_partial_row_and_too_little_text_none_at_all(tokenizer, shard_of, plain_ids):
    assert len(pack(shard_of(documents(plain_ids, [9, 9])), "stream", 11, tokenizer)) == 2
    assert len(pack(shard_of(documents(plain_ids, [8, 9])), "stream", 11, tokenizer)) == 1
    assert len(pack(shard_of(documents(plain_ids, [8])), "stream", 11, tokenizer)) == 0


# -- documents ------------------------------------------------------------------------------------------


def pieces_of(rows: DocumentRows, tokenizer):
    """Every piece as (start in the split, its tokens), read back from the rows; asserts the form of each row."""
    ids, doc = rows.take(np.arange(len(rows)))
    tokens = Tokens.packed(ids, doc)
    found = []
    for b in range(len(rows)):
        used = int((doc[b] >= 0).sum())
        assert (doc[b, used:] == -1).all()
        assert (ids[b, used:] == tokenizer.pad_id).all()
        assert doc[b, :used].tolist() == sorted(doc[b, :used].tolist())
        assert set(doc[b, :used].tolist()) == set(range(len(rows.pieces[b])))
        for d, piece in enumerate(rows.pieces[b]):
            at = (doc[b] == d).nonzero().flatten()
            own = ids[b, at].tolist()
            assert (own[0], own[-1]) == (tokenizer.cls_id, tokenizer.sep_id)
            assert tokens.position[b, at].tolist() == list(range(len(own)))
            found.append((int(rows.start[piece]), own[1:-1]))
    return sorted(found), int((doc >= 0).sum()) / doc.numel()


@pytest.mark.parametrize("T", [3, 8, 16, 64])
@pytest.mark.parametrize("seed", range(3))
def test_pieces_joined_are_the_documents(tokenizer, shard_of, plain_ids, T, seed):
    lengths = [*np.random.default_rng(seed).integers(0, 90, 60).tolist(), T - 2, T - 1, 2 * (T - 2), 1, 0]
    texts = documents(plain_ids, lengths, seed)
    shard = shard_of(texts)
    rows = pack(shard, "documents", T, tokenizer)
    assert isinstance(rows, DocumentRows)
    pieces, fill = pieces_of(rows, tokenizer)
    assert rows.fill == pytest.approx(fill, abs=1e-12)
    assert all(1 <= len(tokens) <= T - 2 for _, tokens in pieces)
    joined = [[] for _ in texts]
    count = [0] * len(texts)
    for start, tokens in pieces:
        d = int(np.searchsorted(shard.offsets, start, side="right")) - 1
        joined[d] += tokens
        count[d] += 1
    assert joined == texts
    assert count == [-(-len(text) // (T - 2)) for text in texts]


def test_short_documents_share_a_row_by_hand(tokenizer, shard_of):
    rows = pack(shard_of([[50, 51], [60], [70, 71, 72, 73, 74]]), "documents", 8, tokenizer)
    ids, doc = rows.take(np.arange(2))
    assert ids.tolist() == [[40, 70, 71, 72, 73, 74, 41, 3], [40, 50, 51, 41, 40, 60, 41, 3]]
    assert doc.tolist() == [[0] * 7 + [-1], [0, 0, 0, 0, 1, 1, 1, -1]]
    assert rows.fill == 14 / 16


@pytest.mark.parametrize("packing", ["stream", "documents"])
@pytest.mark.parametrize("lengths", [[], [0, 0]])
def test_an_empty_split_has_no_rows(tokenizer, shard_of, packing, lengths):
    rows = pack(shard_of([[] for _ in lengths]), packing, 16, tokenizer)
    assert len(rows) == 0


@pytest.mark.parametrize("seed", range(40))
def test_best_fit_never_overfills_and_is_not_worse_than_first_fit(seed):
    rng = np.random.default_rng(seed)
    capacity = int(rng.integers(5, 130))
    lengths = rng.integers(1, capacity + 1 if seed % 2 else capacity // 2 + 1, int(rng.integers(1, 400)))
    row_of = best_fit(lengths, capacity)
    used = np.bincount(row_of, weights=lengths)
    assert row_of.shape == lengths.shape
    assert used.min() > 0  # no number is left out
    assert used.max() <= capacity
    assert len(used) <= first_fit(lengths.tolist(), capacity)
    assert len(used) <= first_fit(sorted(lengths.tolist(), reverse=True), capacity)
    assert len(used) >= -(-lengths.sum() // capacity)


@pytest.mark.parametrize(
    ("lengths", "capacity", "rows"),
    [
        ([4, 4, 4], 4, [[0], [1], [2]]),
        ([3, 1, 2, 2], 4, [[0, 1], [2, 3]]),
        ([6, 7, 3, 2], 10, [[0, 3], [1, 2]]),  # 3 goes beside 7 (the fullest with room), not beside 6
        ([5, 5, 5, 5], 10, [[0, 1], [2, 3]]),
    ],
)
def test_best_fit_by_hand(lengths, capacity, rows):
    row_of = best_fit(np.array(lengths), capacity)
    got = sorted(np.flatnonzero(row_of == r).tolist() for r in range(row_of.max() + 1))
    assert got == sorted(rows)

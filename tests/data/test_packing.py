"""Every token in one row and in order, and rows that are as full as they can be."""

import itertools
import json
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from minilm.batch import IGNORE, Tokens
from minilm.data import packing as module
from minilm.data.draws import PAIR_LABEL
from minilm.data.packing import DocumentRows, PairRows, StreamRows, Taken, best_fit, pack
from minilm.data.shards import FileArray, fault


def documents(plain_ids, lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.choice(plain_ids, n).tolist() for n in lengths]


def every(rows, epoch: int = 0) -> Taken:
    """All rows, in order."""
    return rows.take(np.arange(len(rows)), np.full(len(rows), epoch))


def same(a: Taken, b: Taken) -> bool:
    return all((x is None and y is None) or bool((x == y).all()) for x, y in zip(a, b, strict=True))


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
    ids, doc, types, label = every(rows)
    assert (doc, types, label) == (None, None, None)
    assert ids.dtype == torch.int64
    assert ids.shape == (len(rows), T)
    assert (ids[:, 0] == tokenizer.cls_id).all()
    assert ids[:, 1:].flatten().tolist() == shard.tokens[: len(rows) * (T - 1)].tolist()
    assert rows.fill == 1.0


@pytest.mark.parametrize(
    ("packing", "pairs"), [("stream", None), ("documents", None), ("stream", "next"), ("stream", "order")]
)
def test_take_gives_the_rows_asked_for_in_that_order(tokenizer, shard_of, plain_ids, on_disk, packing, pairs):
    """Each as it would be alone, in its own epoch; and from files as from memory."""
    shard = shard_of(documents(plain_ids, [30, 8, 8, 2, 19, 50]))
    rows = pack(shard, packing, 12, tokenizer, pairs, seed=5)
    epochs = [every(rows, e) for e in range(3)]
    row, epoch = np.array([3, 0, 3, len(rows) - 1, 3]), np.array([0, 2, 1, 0, 0])
    some = rows.take(row, epoch)
    for field in Taken._fields:
        got = getattr(some, field)
        wanted = [getattr(epochs[e], field) for e in epoch]
        if got is None:
            assert wanted == [None] * 5
        else:
            assert got.dtype == torch.int64
            assert got.tolist() == [values[r].tolist() for values, r in zip(wanted, row, strict=True)]
    if not pairs:
        assert same(epochs[0], epochs[1])
    assert same(pack(on_disk(shard), packing, 12, tokenizer, pairs, seed=5).take(row, epoch), some)


def test_an_exact_multiple_has_no_partial_row_and_too_little_text_none_at_all(tokenizer, shard_of, plain_ids):
    assert len(pack(shard_of(documents(plain_ids, [9, 9])), "stream", 11, tokenizer)) == 2
    assert len(pack(shard_of(documents(plain_ids, [8, 9])), "stream", 11, tokenizer)) == 1
    assert len(pack(shard_of(documents(plain_ids, [8])), "stream", 11, tokenizer)) == 0


# -- short pieces ---------------------------------------------------------------------------------------


def test_a_step_in_ten_reads_short_rows_of_each_length_in_turn(tokenizer, shard_of, plain_ids):
    shard = shard_of(documents(plain_ids, [200] * 8))
    rows = pack(shard, "stream", 128, tokenizer, short_seq_prob=0.1)
    short = {step: n for step in range(100) if (n := rows.short_rows(step)) > 1}
    assert short == {9: 2, 19: 4, 29: 8, 39: 16, 49: 2, 59: 4, 69: 8, 79: 16, 89: 2, 99: 4}
    assert [rows.short_rows(step + rows.cycle) for step in range(100)] == [rows.short_rows(s) for s in range(100)]
    thirds = pack(shard, "stream", 32, tokenizer, short_seq_prob=0.3)
    assert [thirds.short_rows(step) for step in range(7)] == [1, 1, 2, 1, 1, 4, 1]
    for T, prob in ((128, 0.0), (12, 0.1)):  # of fewer than 8 tokens there are none
        whole = pack(shard, "stream", T, tokenizer, short_seq_prob=prob)
        assert {whole.short_rows(step) for step in range(100)} == {1}
        assert whole.cycle == 1


@pytest.mark.parametrize("short_rows", [2, 4])
def test_short_rows_are_the_pieces_of_their_row_each_closed(tokenizer, shard_of, plain_ids, short_rows):
    shard = shard_of(documents(plain_ids, [200] * 8))
    rows = pack(shard, "stream", 35, tokenizer, short_seq_prob=0.1)
    n = 35 // short_rows - 2
    ids = rows.take(np.array([3, 1]), np.array([0, 2]), short_rows).ids
    whole = rows.take(np.array([3, 1]), np.array([0, 2])).ids
    assert ids.shape == (2 * short_rows, n + 2)
    assert ids[:, 0].tolist() == [tokenizer.cls_id] * len(ids)
    assert ids[:, -1].tolist() == [tokenizer.sep_id] * len(ids)
    assert ids[:, 1:-1].reshape(2, -1).tolist() == whole[:, 1 : 1 + short_rows * n].tolist()


def test_some_documents_are_cut_short_at_any_length(tokenizer, shard_of, plain_ids):
    """A tenth of them, whole; as many between 8 and 32 tokens as between 32 and 126."""
    shard = shard_of(documents(plain_ids, [252] * 3000))
    for pairs, longest in ((None, 126), ("next", 125)):
        rows = pack(shard, "documents", 128, tokenizer, pairs, short_seq_prob=0.1)
        pieces = sorted(piece for row in range(len(rows)) for piece in rows.pieces.of(row))
        by_document = {}
        for start, length in pieces:
            by_document.setdefault(start // 253, []).append(length)
        kept = [lengths[0] for lengths in by_document.values()]  # of each but the last piece
        short = [length for length in kept if length < longest]
        assert len(by_document) == 3000
        assert 0.08 < len(short) / 3000 < 0.12
        assert min(short) == 8
        assert 0.4 < sum(length < 32 for length in short) / len(short) < 0.6
        assert all(len({*lengths[:-1]}) <= 1 for lengths in by_document.values())
    assert pack(shard, "documents", 128, tokenizer).pieces.length.max() == 126


def test_an_index_is_of_its_fraction(tokenizer, shard_of, plain_ids, on_disk):
    stored = on_disk(shard_of(documents(plain_ids, [60] * 40)))
    rows = [pack(stored, "documents", 64, tokenizer, short_seq_prob=p) for p in (0.0, 0.4999999, 0.49999991)]
    assert len({path.name for path in stored.stem.parent.iterdir() if path.is_dir()}) == 3
    assert rows[0].pieces.length[:].max() == 60
    assert len(rows[1].pieces.start) > len(rows[0].pieces.start)


# -- documents ------------------------------------------------------------------------------------------


def pieces_of(rows: DocumentRows, tokenizer) -> tuple[list[tuple[int, list[int]]], float]:
    """Every piece as (start in the split, its tokens), read back from the rows; asserts the form of each row."""
    ids, doc, _, _ = every(rows)
    tokens = Tokens.packed(ids, doc)
    found = []
    for b in range(len(rows)):
        used = int((doc[b] >= 0).sum())
        assert (doc[b, used:] == -1).all()
        assert (ids[b, used:] == tokenizer.pad_id).all()
        assert doc[b, :used].tolist() == sorted(doc[b, :used].tolist())
        pieces = rows.pieces.of(b)
        assert set(doc[b, :used].tolist()) == set(range(len(pieces)))
        for d, (start, length) in enumerate(pieces):
            at = (doc[b] == d).nonzero().flatten()
            own = ids[b, at].tolist()
            assert (own[0], own[-1]) == (tokenizer.cls_id, tokenizer.sep_id)
            assert tokens.position[b, at].tolist() == list(range(len(own)))
            assert len(own) == length + 2
            found.append((start, own[1:-1]))
    return sorted(found), int((doc >= 0).sum()) / doc.numel()


@pytest.mark.parametrize("T", [3, 8, 16, 64])
@pytest.mark.parametrize(("seed", "at_once"), [(0, 4096), (1, 1), (2, 7), (0, 64), (1, 65)])
@pytest.mark.parametrize("short", [0.0, 0.5])
def test_pieces_joined_are_the_documents(tokenizer, shard_of, plain_ids, monkeypatch, T, seed, at_once, short):
    """Every token once, however many documents are packed together."""
    monkeypatch.setattr(module, "PACKED_TOGETHER", at_once)
    lengths = [*np.random.default_rng(seed).integers(0, 90, 60).tolist(), T - 2, T - 1, 2 * (T - 2), 1, 0]
    texts = documents(plain_ids, lengths, seed)
    shard = shard_of(texts)
    rows = pack(shard, "documents", T, tokenizer, short_seq_prob=short)
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
    fewest = [-(-len(text) // (T - 2)) for text in texts]
    if not short:
        assert count == fewest
    elif T > 8:
        assert 5 < sum(more > least for more, least in zip(count, fewest, strict=True)) < 40


def test_short_documents_share_a_row_by_hand(tokenizer, shard_of):
    rows = pack(shard_of([[50, 51], [60], [70, 71, 72, 73, 74]]), "documents", 8, tokenizer)
    ids, doc, _, _ = every(rows)
    assert ids.tolist() == [[40, 70, 71, 72, 73, 74, 41, 3], [40, 50, 51, 41, 40, 60, 41, 3]]
    assert doc.tolist() == [[0] * 7 + [-1], [0, 0, 0, 0, 1, 1, 1, -1]]
    assert rows.fill == 14 / 16


def test_windows_are_packed_by_themselves(tokenizer, shard_of, plain_ids, monkeypatch):
    """So a split of any size is packed in the memory of one window; its rows are those of the windows, in order."""
    texts = documents(plain_ids, np.random.default_rng(4).integers(1, 40, 50).tolist(), 4)
    monkeypatch.setattr(module, "PACKED_TOGETHER", 20)
    whole = every(pack(shard_of(texts), "documents", 32, tokenizer))
    parts = [every(pack(shard_of(texts[at : at + 20]), "documents", 32, tokenizer)) for at in (0, 20, 40)]
    assert (whole.ids == torch.cat([part.ids for part in parts])).all()
    assert (whole.doc == torch.cat([part.doc for part in parts])).all()


KINDS = [("stream", None), ("documents", None), ("documents", "next"), ("documents", "order")]


@pytest.mark.parametrize("place", ["memory", "disk"])
@pytest.mark.parametrize(("packing", "pairs"), KINDS)
@pytest.mark.parametrize("lengths", [[], [0, 0]])
def test_an_empty_split_has_no_rows(tokenizer, shard_of, on_disk, packing, pairs, lengths, place):
    shard = shard_of([[] for _ in lengths])
    rows = pack(on_disk(shard) if place == "disk" else shard, packing, 16, tokenizer, pairs)
    assert len(rows) == 0


# -- the index beside the split -------------------------------------------------------------------------


@pytest.mark.parametrize("pairs", [None, "next", "order"])
@pytest.mark.parametrize("at_once", [4096, 7])
def test_an_index_on_disk_makes_the_rows_of_one_in_memory(
    tokenizer, shard_of, plain_ids, on_disk, monkeypatch, pairs, at_once
):
    monkeypatch.setattr(module, "PACKED_TOGETHER", at_once)
    shard = shard_of(documents(plain_ids, np.random.default_rng(1).integers(0, 60, 80).tolist(), 1))
    stored = on_disk(shard)
    for T in (16, 33):
        mine, theirs = (pack(each, "documents", T, tokenizer, pairs, 3) for each in (stored, shard))
        assert len(mine) == len(theirs) > 10
        assert mine.fill == pytest.approx(theirs.fill, abs=1e-12)
        assert same(every(mine, 1), every(theirs, 1))
        assert all(isinstance(part, FileArray) for part in mine.pieces[:3])  # memory does not grow with the split
    kind = "pairs" if pairs else "documents"
    kept = {path.name for path in stored.stem.parent.iterdir() if path.is_dir()}
    assert kept == {f"train.{kind}-16", f"train.{kind}-33"}


def test_an_index_is_made_once(tokenizer, shard_of, plain_ids, on_disk, monkeypatch):
    stored = on_disk(shard_of(documents(plain_ids, [30, 8, 8, 2, 19, 50])))
    first = every(pack(stored, "documents", 12, tokenizer))
    pairs = every(pack(stored, "documents", 12, tokenizer, "next"))
    monkeypatch.setattr(module, "best_fit", lambda *args: pytest.fail("packed again"))
    monkeypatch.setattr(module, "_pieces_of_documents", lambda *args: pytest.fail("cut again"))
    assert same(every(pack(stored, "documents", 12, tokenizer)), first)
    assert same(every(pack(stored, "documents", 12, tokenizer, "next")), pairs)


@pytest.mark.parametrize("how", ["changed", "cut", "gone", "empty"])
@pytest.mark.parametrize("file", ["start", "length", "end", "META.json"])
def test_a_damaged_index_is_made_anew(tokenizer, shard_of, plain_ids, on_disk, file, how):
    stored = on_disk(shard_of(documents(plain_ids, [30, 8, 8, 2, 19, 50])))
    first = every(pack(stored, "documents", 12, tokenizer))
    directory = stored.stem.with_name("train.documents-12")
    whole = (directory / file).read_bytes()
    if how == "gone":
        (directory / file).unlink()
    else:
        damaged = {"changed": whole[:-1] + bytes([whole[-1] ^ 1]), "cut": whole[: len(whole) // 2], "empty": b""}
        (directory / file).write_bytes(damaged[how])
    assert same(every(pack(stored, "documents", 12, tokenizer)), first)
    assert fault(directory) == ""
    assert (directory / file).read_bytes() == whole


@pytest.mark.parametrize("kind", ["file", "link"])
def test_an_index_that_is_no_directory_is_made_anew(tokenizer, shard_of, plain_ids, on_disk, tmp_path, kind):
    stored = on_disk(shard_of(documents(plain_ids, [30, 8, 8, 2, 19, 50])))
    first = every(pack(stored, "documents", 12, tokenizer))
    directory = stored.stem.with_name("train.documents-12")
    directory.rename(tmp_path / "moved")
    (tmp_path / "moved" / "META.json").unlink()
    directory.write_text("x") if kind == "file" else directory.symlink_to(tmp_path / "moved")
    assert same(every(pack(stored, "documents", 12, tokenizer)), first)
    assert fault(directory) == ""
    assert (tmp_path / "moved" / "start").exists()


def test_what_a_killed_process_left_of_an_index_is_in_nobodys_way(tokenizer, shard_of, plain_ids, on_disk):
    stored = on_disk(shard_of(documents(plain_ids, [30, 8])))
    left = stored.stem.with_name("train.documents-12.tmp")
    left.mkdir()
    (left / "start").write_text("half")
    (left / "other").write_text("")
    pack(stored, "documents", 12, tokenizer)
    assert not left.exists()
    directory = stored.stem.with_name("train.documents-12")
    assert sorted(json.loads((directory / "META.json").read_text())["sha256"]) == ["end", "length", "start"]


PROGRAM = """
import os, sys, shutil, time
from pathlib import Path
import numpy as np
from minilm.data.packing import _kept
from minilm.data.shards import FileArray, Shard

stem = Path(sys.argv[1]) / "train"
shard = Shard(np.empty(0), np.zeros(1, np.int64), stem)
make = lambda: iter([(np.arange(9), np.full(9, 2), np.ones(9, np.int64))])
failed = 0
for round in range(15):
    start, children = time.monotonic() + 0.02, []
    for _ in range(8):
        if not (child := os.fork()):
            status = 1
            try:
                while time.monotonic() < start:
                    pass
                status = int(_kept(shard, "x", make).tokens != 18)
            except OSError as error:
                sys.stderr.write(repr(error) + chr(10))
            finally:
                os._exit(status)
        children.append(child)
    failed += sum(os.waitpid(child, 0)[1] != 0 for child in children)
    shutil.rmtree(stem.with_name("train.x"))
print(failed)
"""


def test_many_processes_at_once_all_get_the_index(tmp_path):
    """None removes what another has just put into place and is about to open."""
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 0, done.stderr


# -- pairs ----------------------------------------------------------------------------------------------


@pytest.fixture
def distinct(shard_of):
    """distinct(n, seed): a split of n documents, in which no token occurs twice but [SEP]."""

    def make(n: int, seed: int, longest: int = 60):
        lengths = np.random.default_rng(seed).integers(0, longest, n).tolist()
        ends = np.cumsum([100, *lengths])
        assert ends[-1] < 1 << 16
        return shard_of([list(range(a, b)) for a, b in itertools.pairwise(ends)])

    return make


def halves(taken: Taken, b: int, tokenizer) -> tuple[list[int], list[int]]:
    """The two texts of a row, whose form is asserted: [CLS] A [SEP] B [SEP] and padding."""
    ids, doc, types = (part[b].tolist() for part in taken[:3])
    used = doc.index(-1) if -1 in doc else len(doc)
    assert doc == [0] * used + [-1] * (len(doc) - used)
    assert ids[used:] == [tokenizer.pad_id] * (len(ids) - used)
    assert ids[0] == tokenizer.cls_id
    middle = ids.index(tokenizer.sep_id)
    assert [t for t in range(used) if ids[t] == tokenizer.sep_id] == [middle, used - 1]
    assert ids.count(tokenizer.cls_id) == 1
    assert types == [0] * (middle + 1) + [1] * (used - 1 - middle) + [0] * (len(ids) - used)
    return ids[1:middle], ids[middle + 1 : used - 1]


@pytest.mark.parametrize("T", [11, 16, 33, 64])
@pytest.mark.parametrize("task", ["next", "order"])
def test_a_pair_is_a_piece_cut_in_two_or_what_its_label_says(tokenizer, distinct, task, T):
    shard = distinct(150, T)
    rows = pack(shard, "stream", T, tokenizer, task, seed=2)
    assert isinstance(rows, PairRows)
    assert rows.T == T
    pieces = [shard.tokens[start : start + n].tolist() for r in range(len(rows)) for start, n in rows.pieces.of(r)]
    assert len(pieces) == len(rows) > 50
    row_of = {token: r for r, piece in enumerate(pieces) for token in piece}
    others, short, ignored = [], 0, 0
    for epoch in range(3):
        taken = every(rows, epoch)
        assert taken.ids.shape == (len(rows), T)
        assert {0, 1} <= {*taken.pair_label.tolist()} <= {0, 1, IGNORE}
        ignored += (taken.pair_label == IGNORE).sum()
        for r, (piece, label) in enumerate(zip(pieces, taken.pair_label.tolist(), strict=True)):
            a, b = halves(taken, r, tokenizer)
            assert a
            assert b
            cut = len(b) if label and task == "order" else len(a)
            if task == "order":
                assert (b + a if label else a + b) == piece
            elif label in (0, IGNORE):
                assert a + b == piece
            else:
                assert a == piece[: len(a)]
                other = row_of[b[0]]
                assert other != r
                assert b == pieces[other][-len(b) :]
                assert len(b) == len(piece) - len(a)
                others.append(other)
            n = len(piece)
            assert n // 4 <= cut
            short += cut > n - n // 4
    assert ignored <= (0.05 * 3 * len(rows) if task == "next" else 0)
    if task == "next":
        assert len(set(others)) > 0.5 * len(rows)
        assert short < 0.1 * len(others)  # hardly any had no other row that was long enough
    else:
        assert not short


def test_the_lengths_of_a_pair_do_not_tell_its_label(tokenizer, distinct, shard_of, monkeypatch):
    """Of `next` a pair has the same under both labels; of `order` every cut has its mirror image."""
    rows, plain, found = pack(distinct(150, 5), "stream", 64, tokenizer, "next", seed=2), module.draw, []
    for label in (0, 1):

        def drawn(seed, purpose, *at, label=label):
            return plain(seed, purpose, *at) * 0 + label if purpose == PAIR_LABEL else plain(seed, purpose, *at)

        with monkeypatch.context() as patch:
            patch.setattr(module, "draw", drawn)
            found.append(every(rows))
    assert [taken.pair_label.unique().tolist() for taken in found] == [[0], [1]]
    assert found[0].doc.equal(found[1].doc)
    assert found[0].token_type_ids.equal(found[1].token_type_ids)
    assert not found[0].ids.equal(found[1].ids)
    for n in range(8, 40):
        one = pack(shard_of([list(range(100, 100 + n))]), "stream", n + 3, tokenizer, "order")
        cuts = Counter(one._cut(one._piece(0), chance) for chance in range(2 * (n - 2 * (n // 4) + 1)))
        assert cuts == Counter({n - cut: count for cut, count in cuts.items()})


def test_where_the_second_part_ends_does_not_tell_the_label(tokenizer, distinct):
    """At the end of a document as often under both labels, of one row after another."""
    shard = distinct(150, 5)
    rows = pack(shard, "stream", 24, tokenizer, "next", seed=2)
    last = {int(shard.tokens[stop - 2]) for stop in shard.offsets[1:]}
    ends = [rows._piece(r)[-1] in last for r in range(len(rows))]
    assert 0.2 < sum(ends) / len(ends) < 0.8
    false = 0
    for epoch in range(3):
        taken = every(rows, epoch)
        false += int(taken.pair_label.sum())
        assert [halves(taken, r, tokenizer)[1][-1] in last for r in range(len(rows))] == ends
    assert false > 0.4 * 3 * len(rows)


def test_where_documents_have_many_pieces_their_ends_do_not_tell_either(tokenizer, shard_of):
    """Of those rows that end one of thirty documents of forty pieces, and have a label, half are false."""
    ends = np.cumsum([0, *[40 * 21 - 5] * 30])
    shard = shard_of([list(range(100 + a, 100 + b)) for a, b in itertools.pairwise(ends)])
    rows = pack(shard, "stream", 24, tokenizer, "next", seed=2)
    last = np.arange(len(rows)) % 40 == 39
    label = np.concatenate([every(rows, epoch).pair_label.numpy()[last] for epoch in range(30)])
    assert len(rows) == 30 * 40
    known = label[label != IGNORE]
    assert 0.1 * len(label) < len(known) < 0.6 * len(label)
    low, high = stats.binom.ppf([1e-6, 1 - 1e-6], len(known), 0.5)
    assert low <= known.sum() <= high


def test_a_row_without_another_that_ends_alike_is_ignored(tokenizer, shard_of):
    """Of one document in two pieces, of which one ends it."""
    rows = pack(shard_of([list(range(100, 126))]), "stream", 16, tokenizer, "next")
    assert len(rows) == 2
    for epoch in range(10):
        taken = every(rows, epoch)
        assert taken.pair_label.tolist() == [IGNORE, IGNORE]
        for r, piece in enumerate((range(100, 113), range(113, 126))):
            assert [*itertools.chain(*halves(taken, r, tokenizer))] == [*piece]


def test_rows_too_short_for_a_pair_are_none(tokenizer, shard_of):
    assert len(pack(shard_of([list(range(100, 126))]), "stream", 4, tokenizer, "next")) == 0
    assert len(pack(shard_of([list(range(100, 126))]), "stream", 5, tokenizer, "next")) == 13


def test_a_pair_is_cut_between_words(pieces_tokenizer, shard_of):
    tokenizer = pieces_tokenizer
    inside = [id for id in range(tokenizer.vocab_size) if tokenizer.token(id).startswith("##")][:4]
    assert len(inside) > 1
    whole = (id for id in range(tokenizer.vocab_size) if "##" not in tokenizer.token(id))
    begins = [id for id in whole if id not in tokenizer.special_ids][:40]
    words = [[begin, *inside[: i % 3]] for i, begin in enumerate(begins)]
    text = [*itertools.chain(*words)]
    shard = shard_of([[*text[at:], 7] for at in range(40)])  # rows begin and end anywhere, documents with 7
    for task in ("next", "order"):
        rows = pack(shard, "stream", 48, tokenizer, task)
        for epoch in range(4):
            taken = every(rows, epoch)
            for r, label in enumerate(taken.pair_label.tolist()):
                first, second = halves(taken, r, tokenizer)
                assert not {first[0], second[0]} & {*inside}
                if task == "next" and not label:  # whole to its end, as a false one is
                    assert second[-1] == rows._piece(r)[-1]
    endless = pack(shard_of([[begins[0], *inside[:1] * 30]]), "stream", 48, tokenizer, "order")
    assert endless._cut(endless._piece(0), 5) == 12


@pytest.mark.parametrize("task", ["next", "order"])
def test_half_of_the_pairs_are_true_and_epochs_differ(tokenizer, shard_of, plain_ids, task):
    rows = pack(shard_of(documents(plain_ids, [20] * 3000)), "stream", 32, tokenizer, task)
    first, second = every(rows, 0), every(rows, 1)
    n = len(rows)
    low, high = stats.binom.ppf([1e-6, 1 - 1e-6], n, 0.5)
    for count in (first.pair_label.sum(), second.pair_label.sum(), (first.pair_label == second.pair_label).sum()):
        assert low <= int(count) <= high
    cuts = [(taken.token_type_ids == 1).int().argmax(dim=1) for taken in (first, second)]
    assert (cuts[0] != cuts[1]).float().mean() > 0.7
    if task == "next":  # 20 tokens: 5 ... 15 in the first text, each equally often
        counts = (cuts[0] - 2).bincount(minlength=16)
        assert counts[:5].sum() == 0
        assert stats.chisquare(counts[5:].numpy()).pvalue > 1e-4


@pytest.mark.parametrize("task", ["next", "order"])
def test_a_seed_decides_the_pairs(tokenizer, distinct, task):
    shard = distinct(60, 0)
    a, b, c = (every(pack(shard, "stream", 24, tokenizer, task, seed)) for seed in (1, 1, 2))
    assert same(a, b)
    assert (a.pair_label != c.pair_label).any()
    assert (a.ids != c.ids).any()


def test_documents_too_short_for_a_pair_are_left_out(tokenizer, shard_of):
    texts = [list(range(100, 100 + n)) for n in (7, 8, 0, 1, 21, 20)]
    rows = pack(shard_of(texts), "stream", 16, tokenizer, "order")  # pieces of 13
    assert [n for r in range(len(rows)) for _, n in rows.pieces.of(r)] == [8, 13, 8, 13]
    assert rows.fill == (42 + 3 * 4) / (4 * 16)
    assert len(pack(shard_of([[100] * 6]), "stream", 8, tokenizer, "order")) == 1  # of the 5 that fit a row


@pytest.mark.parametrize("task", ["next", "order"])
def test_fill_of_pairs_is_what_is_no_padding(tokenizer, distinct, task):
    """Exactly for `order`; for `next`, whose other half may be longer or cut, about."""
    rows = pack(distinct(400, 3), "stream", 40, tokenizer, task)
    share = float((every(rows).doc >= 0).float().mean())
    assert rows.fill == pytest.approx(share, abs=1e-6 if task == "order" else 0.05)


def test_a_split_of_one_row_has_no_other_text_and_so_no_label(tokenizer, shard_of):
    rows = pack(shard_of([list(range(100, 112))]), "stream", 16, tokenizer, "next")
    assert len(rows) == 1
    for epoch in range(20):
        taken = every(rows, epoch)
        a, b = halves(taken, 0, tokenizer)
        assert a + b == list(range(100, 112))
        assert taken.pair_label.tolist() == [IGNORE]


def test_pairs_go_before_packing(tokenizer, distinct):
    shard = distinct(20, 0)
    for packing in ("stream", "documents"):
        assert isinstance(pack(shard, packing, 16, tokenizer, "order"), PairRows)


# -- best fit -------------------------------------------------------------------------------------------


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

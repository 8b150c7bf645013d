"""Tokens by hand: who is a key, where documents begin, what the padding holds."""

import pytest
import torch

from minilm.batch import IGNORE, Batch, Tokens, next_size

IDS = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 13, 14]])
MASK = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1]])
DOC = torch.tensor([[0, 0, 0, 1, 2], [0, 0, -1, -1, -1]])


def test_full():
    t = Tokens.full(IDS)
    assert t.input_ids is IDS
    assert t.position.tolist() == [[0, 1, 2, 3, 4]] * 2
    assert t.token_type_ids.tolist() == t.doc.tolist() == [[0] * 5] * 2
    assert t.key.dtype == t.prefix.dtype == torch.bool
    assert t.key.all()
    assert t.prefix.all()
    assert t.cls.tolist() == [0, 5]
    assert t.cu_seqlens is None
    assert (t.layout, t.attention, t.max_len) == ("full", "bidirectional", 5)


@pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.float])
def test_padded_on_either_side(dtype):
    t = Tokens.padded(IDS, MASK.to(dtype))
    assert t.key.tolist() == [[True] * 3 + [False] * 2, [False] * 2 + [True] * 3]
    assert t.key.dtype == torch.bool
    assert t.position.tolist() == [[0, 1, 2, 3, 4]] * 2  # padding counts, as in Hugging Face's BERT
    assert t.cls.tolist() == [0, 7]
    assert t.doc.tolist() == [[0] * 5] * 2
    assert t.cu_seqlens is None
    assert (t.layout, t.attention, t.max_len) == ("padded", "bidirectional", 5)


def test_a_row_of_padding_keeps_its_first_token():
    mask = torch.tensor([[0, 0, 0, 0, 0], [0, 1, 1, 0, 0]])
    t = Tokens.padded(IDS, mask)
    assert t.key.tolist() == [[True] + [False] * 4, [False, True, True, False, False]]
    assert t.cls.tolist() == [0, 6]
    assert mask[0].sum() == 0  # the caller's mask is not touched


def test_packed():
    t = Tokens.packed(IDS, DOC)
    assert t.position.tolist() == [[0, 1, 2, 0, 0], [0, 1, 0, 0, 0]]
    assert t.key.tolist() == [[True] * 5, [True] * 2 + [False] * 3]
    assert t.cls.tolist() == [0, 3, 4, 5]
    assert t.doc is DOC
    assert t.cu_seqlens.dtype == torch.int32
    assert t.cu_seqlens.tolist() == [0, 3, 4, 5, 7, 10]
    assert (t.layout, t.attention, t.max_len) == ("packed", "bidirectional", 3)
    assert t.runs == ((1, 3), (2, 1), (1, 2), (1, 3))


@pytest.mark.parametrize(
    ("doc", "bounds", "max_len"),
    [
        ([[0, 0, 0, 0], [0, 0, 0, 0]], [0, 4, 8], 4),  # equal numbers in neighbouring rows are two documents
        ([[0, 1, 2, 3], [0, 1, 2, 3]], [0, 1, 2, 3, 4, 5, 6, 7, 8], 1),
        ([[0, 0, 1, 1], [0, 0, 0, -1]], [0, 2, 4, 7, 8], 3),
        ([[0, 1, -1, -1], [0, 1, 1, 1]], [0, 1, 2, 4, 5, 8], 3),
    ],
)
def test_boundaries_are_those_of_documents_and_padding(doc, bounds, max_len):
    t = Tokens.packed(torch.zeros(2, 4).long(), torch.tensor(doc))
    assert t.cu_seqlens.tolist() == bounds
    assert t.max_len == max_len
    assert int(t.cu_seqlens.diff().max()) <= t.max_len


def test_no_segment_is_longer_than_max_len_even_of_padding():
    t = Tokens.packed(torch.zeros(1, 9).long(), torch.tensor([[0, 0, 1, -1, -1, -1, -1, -1, -1]]))
    assert int(t.cu_seqlens.diff().max()) <= t.max_len  # varlen kernels read past nothing
    assert t.position.tolist() == [[0, 1, 0, 0, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize(("n", "four", "eight"), [(0, 0, 0), (1, 1, 1), (9, 10, 9), (17, 20, 18), (4097, 5120, 4608)])
def test_sizes_of_batches_are_few(n, four, eight):
    assert (next_size(n, 4), next_size(n, 8)) == (four, eight)
    sizes = {next_size(each, 4) for each in range(1025, 2049)}
    assert sizes == {1280, 1536, 1792, 2048}


def test_packed_documents_equal_the_documents_alone():
    """Position and [CLS] of documents of random lengths, by a loop."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        doc, position, cls = torch.full((3, 17), -1), torch.zeros(3, 17).long(), []
        for b in range(3):
            at = number = 0
            while at < 15:
                n = min(int(torch.randint(1, 7, (1,), generator=generator)), 15 - at)
                doc[b, at : at + n], position[b, at : at + n] = number, torch.arange(n)
                cls.append(b * 17 + at)
                at, number = at + n, number + 1
        t = Tokens.packed(torch.zeros_like(doc), doc)
        assert (t.position == position).all()
        assert t.cls.tolist() == cls


MAKERS = {
    "full": lambda *a, **k: Tokens.full(IDS, *a, **k),
    "padded": lambda *a, **k: Tokens.padded(IDS, MASK, *a, **k),
    "packed": lambda *a, **k: Tokens.packed(IDS, DOC, *a, **k),
}


@pytest.mark.parametrize("layout", MAKERS)
def test_prefix_goes_with_prefix_attention_only(layout):
    make = MAKERS[layout]
    flags = torch.tensor([[1, 1, 0, 1, 0], [1, 0, 0, 0, 0]]).bool()
    assert make().prefix.all()
    assert make("bidirectional").prefix.dtype == torch.bool
    assert not make("causal").prefix.any()
    assert (make("prefix", flags).prefix == flags).all()
    for attention, prefix in (("prefix", None), ("causal", flags), ("bidirectional", flags)):
        with pytest.raises(ValueError, match="prefix"):
            make(attention, prefix)
    for attention in ("causal", "bidirectional"):
        assert make(attention).attention == attention
        assert make(attention).layout == layout


@pytest.mark.parametrize("layout", MAKERS)
def test_token_types_are_kept(layout):
    types = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 1, 1]])
    assert MAKERS[layout](token_type_ids=types).token_type_ids is types
    assert not MAKERS[layout]().token_type_ids.any()


@pytest.mark.parametrize("layout", ["full", "padded"])
def test_given_positions_are_kept(layout):
    position = torch.tensor([[3, 4, 5, 6, 7], [0, 0, 0, 1, 2]])
    assert MAKERS[layout](position=position).position is position


@pytest.mark.parametrize("layout", MAKERS)
def test_to_moves_every_array_and_keeps_the_rest(layout):
    t = MAKERS[layout]()
    moved = t.to("meta")
    arrays = ["input_ids", "position", "token_type_ids", "doc", "key", "prefix", "cls"]
    for name in arrays + ["cu_seqlens"] * (layout == "packed"):
        assert getattr(moved, name).device.type == "meta", name
        assert getattr(moved, name).shape == getattr(t, name).shape
        assert getattr(t, name).device.type == "cpu"
    assert (moved.cu_seqlens is None) == (layout != "packed")
    assert (moved.layout, moved.attention, moved.max_len) == (t.layout, t.attention, t.max_len)


def strictly_pinned(self):
    """What torch's pin_memory does with the layout, without needing a GPU: a copy of equal strides."""
    return torch.empty_strided(self.size(), self.stride(), dtype=self.dtype).copy_(self)


@pytest.mark.parametrize("layout", ["full", "padded", "packed"])
def test_every_array_can_be_pinned(layout, monkeypatch):
    """torch refuses to pin an expanded tensor, whose elements share memory."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", strictly_pinned)
    t = {"full": Tokens.full(IDS), "padded": Tokens.padded(IDS, MASK), "packed": Tokens.packed(IDS, DOC)}[layout]
    where = torch.tensor([1, 3]).expand(2, 2).flatten()
    pinned = Batch(t, where, torch.tensor([5]).expand(4), 4, 10).pin_memory()
    assert torch.equal(pinned.tokens.position, t.position)
    assert pinned.target.tolist() == [5] * 4


def test_a_batch_moves_with_its_tokens():
    batch = Batch(Tokens.full(IDS), torch.tensor([1, 2]), torch.tensor([7, IGNORE]), 1, 10)
    moved = batch.to(torch.device("meta"), non_blocking=True)
    assert {x.device.type for x in (moved.tokens.input_ids, moved.where, moved.target)} == {"meta"}
    assert (moved.count, moved.size, moved.tokens.layout) == (1, 10, "full")
    assert torch.nn.CrossEntropyLoss().ignore_index == IGNORE

"""The visibility rule, every shortcut and every backend against it."""

import pytest
import torch
from torch import nn

from minilm.batch import Tokens
from minilm.errors import ConfigError
from minilm.model.attention import (
    BACKENDS,
    Attention,
    LayerContext,
    attention_mask,
    has_varlen_kernel,
    rope_table,
    rotate,
    visible,
)

REACHES = ("bidirectional", "causal", "prefix")
LAYOUTS = ("full", "right", "left", "packed", "blank row")
WINDOWS = (None, 0, 3, 22, 23, 100)


@pytest.fixture
def batch(ids, masks, packed, tokens_of):
    def make(layout: str, reach: str) -> Tokens:
        if layout == "full":
            return tokens_of(ids, reach)
        if layout == "packed":
            return tokens_of(ids, reach, doc=packed)
        mask = masks["right"] * torch.tensor([[1], [0], [1]]) if layout == "blank row" else masks[layout]
        return tokens_of(ids, reach, mask=mask)

    return make


def expand(mask: torch.Tensor | None, is_causal: bool, B: int, T: int) -> torch.Tensor:
    """What a backend does with (mask, is_causal), as (B, T, T)."""
    if is_causal:
        assert mask is None
        return torch.ones(B, T, T, dtype=torch.bool).tril()
    return torch.ones(B, T, T, dtype=torch.bool) if mask is None else mask.expand(B, 1, T, T)[:, 0]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("reach", REACHES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_shortcut_equals_the_rule(batch, rule, layout, reach, window):
    t = batch(layout, reach)
    expected = rule(t, window)
    assert torch.equal(visible(t.doc, t.key, t.prefix, window), expected)
    assert torch.equal(expand(*attention_mask(t, window), *t.input_ids.shape), expected)


def test_shortcuts_are_taken(batch):
    assert attention_mask(batch("full", "bidirectional"), None) == (None, False)
    assert attention_mask(batch("full", "causal"), 23) == (None, True)
    assert attention_mask(batch("right", "bidirectional"), None)[0].shape == (3, 1, 1, 24)
    assert attention_mask(batch("full", "bidirectional"), 3)[0].shape == (1, 1, 24, 24)


@pytest.mark.parametrize("reach", REACHES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_backends_attend_by_the_rule(batch, rule, backend, layout, reach, assert_close):
    """Values and gradients, in float64, against a softmax written out over the rule's keys."""
    t, window = batch(layout, reach), 5
    q, k, v, y = torch.randn(4, 3, 2, 24, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inputs = [x.clone().requires_grad_() for x in (q, k, v)]
    BACKENDS[backend](*inputs, LayerContext(*attention_mask(t, window), None, backend), nn.Dropout(0.0)).backward(y)

    reference = [x.clone().requires_grad_() for x in (q, k, v)]
    scores = torch.einsum("bhik,bhjk->bhij", *reference[:2]) / 8**0.5
    weights = torch.exp(scores) * rule(t, window)[:, None]
    out = weights / weights.sum(-1, keepdim=True) @ reference[2]
    out.backward(y)
    for mine, theirs in zip(inputs, reference, strict=True):
        assert_close(mine.grad, theirs.grad)
    ctx = LayerContext(*attention_mask(t, window), None, backend)
    assert_close(BACKENDS[backend](q, k, v, ctx, nn.Dropout(0.0)), out.detach())


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("reach", ["bidirectional", "causal"])
def test_documents_by_themselves_attend_by_the_rule(batch, rule, reach, window, assert_close):
    """Packed rows without a mask: values and gradients wherever there is a token."""
    t = batch("packed", reach)
    q, k, v, y = torch.randn(4, 3, 2, 24, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = y * t.key[:, None, :, None]  # nobody reads what padding attends to
    found = []
    for ctx in (
        LayerContext(None, False, None, "varlen", t, window),
        LayerContext(rule(t, window)[:, None], False, None, "explicit"),
    ):
        inputs = [x.clone().requires_grad_() for x in (q, k, v)]
        out = BACKENDS[ctx.backend](*inputs, ctx, nn.Dropout(0.0))
        out.backward(y)
        found.append([out.detach() * t.key[:, None, :, None], *(x.grad for x in inputs)])
    for mine, reference in zip(*found, strict=True):
        assert_close(mine, reference)


def as_documented(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size):
    """What torch says of its varlen_attn, document by document; its kernels take heads of multiples of 8."""
    assert q.shape[-1] % 8 == 0
    assert torch.equal(cu_seq_q, cu_seq_k)
    assert cu_seq_q.dtype == torch.int32
    assert int(cu_seq_q.diff().max()) <= max_q == max_k
    out = []
    for begin, end in zip(cu_seq_q[:-1].tolist(), cu_seq_q[1:].tolist(), strict=True):
        i = torch.arange(end - begin)
        before, after = (end - begin if near < 0 else near for near in window_size)
        sees = (i[:, None] - i <= before) & (i - i[:, None] <= after)
        scores = torch.einsum("ihk,jhk->hij", q[begin:end], k[begin:end]) * scale
        out.append(torch.einsum("hij,jhk->ihk", scores.masked_fill(~sees, -torch.inf).softmax(-1), v[begin:end]))
    return torch.cat(out)


@pytest.mark.parametrize("width", [8, 26])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("reach", ["bidirectional", "causal"])
def test_the_kernel_of_a_gpu_is_asked_for_the_rule(batch, rule, reach, window, width, monkeypatch, assert_close):
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", as_documented)
    monkeypatch.setattr("minilm.model.attention.has_varlen_kernel", lambda *of: True)
    t = batch("packed", reach)
    q, k, v = torch.randn(3, 3, 2, 24, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mine = BACKENDS["varlen"](q, k, v, LayerContext(None, False, None, "varlen", t, window), nn.Dropout(0.0))
    by_rule = LayerContext(rule(t, window)[:, None], False, None, "explicit")
    reference = BACKENDS["explicit"](q, k, v, by_rule, nn.Dropout(0.0))
    assert_close(mine * t.key[:, None, :, None], reference * t.key[:, None, :, None])


@pytest.mark.parametrize(
    ("capability", "has_flash", "dtype", "width", "has"),
    [
        ((9, 0), True, torch.bfloat16, 64, True),
        ((9, 0), True, torch.float16, 192, True),
        ((9, 0), True, torch.float16, 256, False),
        ((9, 0), True, torch.float32, 64, False),
        ((7, 5), True, torch.float16, 64, False),
        ((9, 0), False, torch.bfloat16, 64, False),
    ],
)
def test_the_kernel_is_of_newer_gpus_in_half_precision(capability, has_flash, dtype, width, has, monkeypatch):
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    monkeypatch.setattr("minilm.model.attention.HAS_FLASH", has_flash)
    assert has_varlen_kernel(torch.device("cuda"), dtype, width) is has
    assert not has_varlen_kernel(torch.device("cpu"), dtype, width)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_kernel_takes_what_it_is_given(batch, monkeypatch, dtype):
    """Names, shapes and types, as torch of this version declares them; nothing is computed."""
    monkeypatch.setattr("minilm.model.attention.has_varlen_kernel", lambda *of: True)
    tokens = batch("packed", "causal").to("meta")
    q = torch.empty(3, 24, 2, 8, dtype=dtype, device="meta", requires_grad=True)
    y = BACKENDS["varlen"](
        *[q.transpose(1, 2)] * 3, LayerContext(None, False, None, "varlen", tokens, 5), nn.Dropout(0.0)
    )
    y.sum().backward()
    assert (y.shape, y.dtype, y.device.type) == ((3, 2, 24, 8), dtype, "meta")
    assert q.grad.shape == q.shape


def test_documents_by_themselves_know_no_dropout(batch):
    ctx = LayerContext(None, False, None, "varlen", batch("packed", "causal"))
    q = torch.randn(3, 2, 24, 8)
    with pytest.raises(ConfigError, match=r"varlen has no dropout, and attention_dropout is 0\.1; use sdpa"):
        BACKENDS["varlen"](q, q, q, ctx, nn.Dropout(0.1))
    assert BACKENDS["varlen"](q, q, q, ctx, nn.Dropout(0.1).eval()).shape == q.shape


def test_attention_weights_sum_to_one_over_the_visible(batch, rule):
    t = batch("packed", "causal")
    q, k = torch.randn(2, 3, 2, 24, 8, generator=torch.Generator().manual_seed(0))
    ctx = LayerContext(*attention_mask(t, None), None, "explicit", seen=[])
    BACKENDS["explicit"](q, k, k, ctx, nn.Dropout(0.0))
    [weights] = ctx.seen
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, 24))
    assert (weights[~rule(t, None)[:, None].expand_as(weights)] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_acts_in_training_only(backend):
    torch.manual_seed(0)
    attention = Attention(16, 2, bias=True, dropout=0.5, output_dropout=0.0)
    x, ctx = torch.randn(2, 9, 16), LayerContext(None, False, None, backend)
    assert not torch.allclose(attention(x, ctx), attention(x, ctx))
    attention.eval()
    assert torch.equal(attention(x, ctx), attention(x, ctx))


def test_rope_turns_by_relative_position():
    """<rotate(q, m), rotate(k, n)> depends on m - n alone, and position 0 changes nothing."""
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def product(m: int, n: int) -> float:
        turned = [rotate(x, rope_table(torch.tensor([[p]]), 8, 1e4, torch.float64)) for x, p in ((q, m), (k, n))]
        return float((turned[0] * turned[1]).sum())

    assert product(7, 3) == pytest.approx(product(104, 100), rel=1e-12)
    assert product(7, 3) != pytest.approx(product(3, 7), rel=1e-3)
    assert product(0, 0) == pytest.approx(float((q * k).sum()), rel=1e-12)


@pytest.mark.parametrize(
    ("dtype", "table"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_rope_is_never_computed_in_less_than_fp32(dtype, table):
    cos, sin = rope_table(torch.arange(5)[None], 8, 1e4, dtype)
    assert cos.dtype == sin.dtype == table
    assert rotate(torch.ones(1, 1, 5, 8, dtype=dtype), (cos, sin)).dtype == dtype

"""Attention: which tokens see which (masks), rotary positions, the backends and the module.

Shape letters: B rows, T tokens per row, D width, H heads, K head width.
A name carries its letters (`q_BHTK`) where one function holds the same thing in two layouts.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minilm.batch import Tokens
from minilm.errors import ConfigError

Backend = Literal["explicit", "sdpa", "varlen"]
KERNEL_WIDTH = 192  # of a head: the most for which torch's kernel for packed rows has a backward pass on all its GPUs
HAS_FLASH = torch.backends.cuda.is_flash_attention_available()  # whether torch was built with it, which that kernel is


def visible(doc: Tensor, key: Tensor, prefix: Tensor, window: int | None) -> Tensor:
    """Whether query i sees key j: the definition of every attention pattern. (B, T) each -> (B, T, T) bool.

    A token sees its own document, up to itself or anywhere in the prefix, at most `window` tokens away.
    Nobody reads padding; a padding query, which nobody reads either, sees every document of its row within the same
    prefix and window, as in Hugging Face's models; a query that would see nothing sees itself, for no softmax may
    be empty.
    """
    T = doc.shape[1]
    i = torch.arange(T, device=doc.device)[:, None]
    j = i.T
    sees = key[:, None, :] & ((doc[:, :, None] == doc[:, None, :]) | ~key[:, :, None])
    sees = sees & ((j <= i) | prefix[:, None, :])
    if window is not None:
        sees = sees & ((i - j).abs() <= window)
    return sees | ((i == j) & ~sees.any(dim=-1, keepdim=True))


def attention_mask(tokens: Tokens, window: int | None) -> tuple[Tensor | None, bool]:
    """Cheapest equivalent of `visible`: (bool mask that broadcasts to (B, H, T, T) or None, is_causal).

    Chosen from the batch's layout on the host, never from values on the device. No mask means that a token
    sees every token, or, if `is_causal`, those up to itself.
    """
    t = tokens
    narrow = window is not None and window < t.input_ids.shape[1] - 1
    if t.layout == "full" and t.attention != "prefix":
        if not narrow:
            return None, t.attention == "causal"
        return visible(t.doc[:1], t.key[:1], t.prefix[:1], window)[:, None], False  # rows are alike
    if t.layout == "padded" and t.attention == "bidirectional" and not narrow:
        return t.key[:, None, None, :], False
    return visible(t.doc, t.key, t.prefix, window)[:, None], False


def rope_table(position: Tensor, head_width: int, base: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin of position * base^(-2k/K), each (B, 1, T, K). Su et al. 2021, eq. 15.

    (B, T) positions; computed in fp32, or in `dtype` if that is wider.
    """
    dtype = torch.promote_types(dtype, torch.float32)
    k = torch.arange(head_width // 2, device=position.device, dtype=dtype)
    angle = position[:, None, :, None].to(dtype) * (1.0 / base ** (2 * k / head_width))
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, table: tuple[Tensor, Tensor] | None) -> Tensor:
    """Turn each pair by its angle. (B, H, T, K) -> same shape and dtype.

    Pairs are (x_k, x_{k + K/2}), as in GPT-NeoX and Hugging Face's models; Su et al. pair neighbours, which is the same
    up to a permutation of K.
    """
    if table is None:
        return x
    cos, sin = table
    wide = x.to(cos.dtype)
    a, b = wide.chunk(2, dim=-1)
    return (wide * cos + torch.cat((-b, a), dim=-1) * sin).to(x.dtype)


@dataclass(frozen=True)
class LayerContext:
    """What a layer needs besides its input: made once per forward pass, shared by layers with the same LayerSpec."""

    mask: Tensor | None  # bool, broadcastable to (B, H, T, T)
    is_causal: bool
    rope: tuple[Tensor, Tensor] | None
    backend: Backend
    tokens: Tokens | None = None  # packed rows, for the varlen backend, which then needs no mask
    window: int | None = None  # tokens seen on each side; goes with `tokens`, for a mask contains it
    seen: list[Tensor] | None = None  # list to append attention weights to; None: they are not kept
    read: Tensor | None = None  # flat index into (B, T) of the only states that the layer computes: (N,), or (B, S)
    # with row b's in row b, which saves a copy of keys and values for each state; None: it computes all
    cell: Tensor | None = None  # (B, T) index into the layer's C distinct input vectors (1, C, D); None: the input is
    # the usual (B, T, D)

    def everywhere(self, x: Tensor) -> Tensor:
        """Vectors of distinct tokens copied to every place where they stand: (1, C, D) -> (B, T, D)."""
        return x if self.cell is None else x[0].index_select(0, self.cell.flatten()).unflatten(0, self.cell.shape)

    def wanted(self, x: Tensor) -> Tensor:
        """The rows of the input that the residual connection adds to the output: (B, T, D), (N, D) or (B, S, D)."""
        return self.read_of(self.everywhere(x))

    def read_of(self, x: Tensor) -> Tensor:
        """The states that `read` selects of (B, T, D); all if it is None."""
        if self.read is None:
            return x
        return x.flatten(0, 1).index_select(0, self.read.flatten()).unflatten(0, self.read.shape)

    def of_read(self, T: int) -> Self:
        """The context at `read` alone, R rows of S queries (N of 1, B of S): mask (R, 1, S, T), rotation (R, 1, S,
        K)."""
        read = self.read[:, None] if self.read.ndim == 1 else self.read
        row, column = read // T, read % T

        def at_read(each: Tensor) -> Tensor:
            return each[row if len(each) > 1 else torch.zeros_like(row), :, column].transpose(1, 2)

        mask = self.mask if self.tokens is None else attention_mask(self.tokens, self.window)[0]
        if mask is not None:
            mask = at_read(mask.expand(*mask.shape[:2], T, T))
        if self.is_causal:
            mask = (torch.arange(T, device=row.device) <= column[..., None])[:, None]
        rope = self.rope
        if rope is not None:
            rope = tuple(map(at_read, rope))
        return replace(self, mask=mask, is_causal=False, rope=rope, tokens=None)


def _weights(scores: Tensor, ctx: LayerContext, drop: nn.Dropout) -> Tensor:
    """Softmax over the visible keys of scores (B, H, T, T), which are changed in place, after dropout."""
    mask = ctx.mask
    if ctx.is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores += torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(~mask, -torch.inf)
    weights = drop(scores.softmax(dim=-1))
    if ctx.seen is not None:
        ctx.seen.append(weights)
    return weights


def explicit(q: Tensor, k: Tensor, v: Tensor, ctx: LayerContext, drop: nn.Dropout) -> Tensor:
    """softmax(q k^T / sqrt(K)) v over the visible keys (Vaswani et al. 2017, eq. 1): the definition that the fast
    backends are tested against."""
    return _weights(q / q.shape[-1] ** 0.5 @ k.transpose(-2, -1), ctx, drop) @ v


def sdpa(q: Tensor, k: Tensor, v: Tensor, ctx: LayerContext, drop: nn.Dropout) -> Tensor:
    """PyTorch's fused kernels: any device, any mask."""
    dropout = drop.p if drop.training else 0.0
    return F.scaled_dot_product_attention(q, k, v, attn_mask=ctx.mask, dropout_p=dropout, is_causal=ctx.is_causal)


def varlen(q: Tensor, k: Tensor, v: Tensor, ctx: LayerContext, drop: nn.Dropout) -> Tensor:
    """Attention within each document of packed rows, which computes no masked pair of documents: by torch's kernel in
    half precision on a GPU, elsewhere by sdpa on consecutive documents of one length at a time. Rows of one document,
    and prefix attention, go to sdpa. Raises ConfigError for dropout of attention weights.
    """
    if ctx.tokens is None:
        return sdpa(q, k, v, ctx, drop)
    if drop.training and drop.p > 0:
        raise ConfigError(f"attention backend varlen has no dropout, and attention_dropout is {drop.p}; use sdpa")
    of_each = _by_kernel if has_varlen_kernel(q.device, q.dtype, q.shape[-1]) else _by_runs
    if of_each is _by_runs and not ctx.tokens.runs:
        raise ConfigError("attention backend varlen: --cuda-graphs needs torch's kernel for it; use another --out")
    flat = (each.transpose(1, 2).flatten(0, 1) for each in (q, k, v))  # (B * T, H, K)
    return of_each(*flat, ctx).unflatten(0, (len(q), -1)).transpose(1, 2)


def fastest_backend(device: torch.device, dtype: torch.dtype, length: int, dropout: float, head_width: int) -> Backend:
    """The fastest backend for training on rows of `length` tokens. On a CPU, torch's fused kernel spends most of its
    time in the backward pass: explicit bf16 attention trains 3 times faster at 128 tokens, 1.3 times at 512, and in
    fp32 1.2 to 1.5 times at 64 to 112, but not from 128 on. Nor does that kernel support dropout; torch's fallback is
    slow. On a GPU with a kernel for packed rows it is varlen, unless there is dropout."""
    if not dropout and has_varlen_kernel(device, dtype, head_width):
        return "varlen"
    longest = 512 if dropout > 0 or dtype == torch.bfloat16 else 127
    return "explicit" if device.type == "cpu" and length <= longest else "sdpa"


def has_varlen_kernel(device: torch.device, dtype: torch.dtype, head_width: int) -> bool:
    """Whether torch has a kernel for packed rows on this device: in half precision on an Nvidia GPU of 2020 or later,
    for heads of at most KERNEL_WIDTH, if it was built with FlashAttention."""
    half = dtype in (torch.bfloat16, torch.float16)
    if not (half and HAS_FLASH) or device.type != "cuda" or torch.version.hip is not None or head_width > KERNEL_WIDTH:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _by_kernel(q: Tensor, k: Tensor, v: Tensor, ctx: LayerContext) -> Tensor:
    """`varlen` by torch's kernel (Dao 2023, FlashAttention-2), whose head widths are multiples of 8. (B * T, H, K) each
    -> the same."""
    from torch.nn.attention.varlen import varlen_attn

    tokens, K = ctx.tokens, q.shape[-1]
    near = -1 if ctx.window is None else ctx.window
    if K % 8:
        q, k, v = (F.pad(each, (0, -K % 8)) for each in (q, k, v))
    bounds, longest = tokens.cu_seqlens, tokens.max_len
    if torch.compiler.is_compiling():  # one graph for any lengths of documents
        longest = tokens.input_ids.shape[1]
    window = (near, 0 if tokens.attention == "causal" else near)
    return varlen_attn(q, k, v, bounds, bounds, longest, longest, scale=K**-0.5, window_size=window)[..., :K]


def _by_runs(q: Tensor, k: Tensor, v: Tensor, ctx: LayerContext) -> Tensor:
    """`varlen` by sdpa, consecutive documents of one length as one batch. (B * T, H, K) each -> the same."""
    made, tokens, runs = [], ctx.tokens, ctx.tokens.runs
    parts = [each.split([documents * T for documents, T in runs]) for each in (q, k, v)]
    for (documents, T), *of_run in zip(runs, *parts, strict=True):
        q_NHTK, k_NHTK, v_NHTK = (each.unflatten(0, (documents, T)).transpose(1, 2) for each in of_run)
        mask, is_causal = None, tokens.attention == "causal"
        if ctx.window is not None:
            alone = Tokens.full(tokens.input_ids.reshape(1, -1)[:, :T], tokens.attention)
            mask, is_causal = attention_mask(alone, ctx.window)
        y_NHTK = F.scaled_dot_product_attention(q_NHTK, k_NHTK, v_NHTK, attn_mask=mask, is_causal=is_causal)
        made.append(y_NHTK.transpose(1, 2).flatten(0, 1))
    return torch.cat(made)


BACKENDS: dict[Backend, Callable[..., Tensor]] = {"explicit": explicit, "sdpa": sdpa, "varlen": varlen}


def are_fewest(read: float, num_attention_heads: int, hidden_size: int) -> bool:
    """Whether a layer computes so few (`read`) states of a row that `Attention._of_states`, without keys and values of
    tokens, needs at most a quarter of the products."""
    return read * num_attention_heads <= hidden_size / 4


class MergedLinear(nn.Linear):
    """Several maps of equal shape that read the same input, as one matmul: [W_1; ...; W_n] x.

    `parts` is n. An optimizer or adapter that treats a matrix as a whole must take each W apart.
    """

    def __init__(self, in_features: int, out_features: int, parts: int, bias: bool) -> None:
        super().__init__(in_features, parts * out_features, bias=bias)
        self.parts = parts


class Attention(nn.Module):
    """Multi-head self-attention. Vaswani et al. 2017, sec. 3.2."""

    def __init__(
        self, hidden_size: int, num_attention_heads: int, bias: bool, dropout: float, output_dropout: float
    ) -> None:
        super().__init__()
        self.num_attention_heads = num_attention_heads
        self.qkv = MergedLinear(hidden_size, hidden_size, parts=3, bias=bias)
        self.out = nn.Linear(hidden_size, hidden_size, bias=bias)
        self.drop_weights = nn.Dropout(dropout)
        self.drop = nn.Dropout(output_dropout)

    def forward(self, x: Tensor, ctx: LayerContext) -> Tensor:
        if ctx.read is not None and (ctx.tokens is None or self._reads_fewest(x, ctx)):
            return self._at_read(x, ctx)
        qkv = ctx.everywhere(self.qkv(x)).unflatten(-1, (3, self.num_attention_heads, -1))
        q_BHTK, k_BHTK, v_BHTK = qkv.permute(2, 0, 3, 1, 4)
        q_BHTK, k_BHTK = rotate(q_BHTK, ctx.rope), rotate(k_BHTK, ctx.rope)
        y_BHTK = BACKENDS[ctx.backend](q_BHTK, k_BHTK, v_BHTK, ctx, self.drop_weights)
        return self.drop(self.out(ctx.read_of(y_BHTK.transpose(1, 2).flatten(2))))

    def _reads_fewest(self, x: Tensor, ctx: LayerContext) -> bool:
        B, D = (len(x) if ctx.cell is None else len(ctx.cell)), x.shape[-1]
        return ctx.rope is None and are_fewest(ctx.read.numel() / B, self.num_attention_heads, D)

    def _at_read(self, x: Tensor, ctx: LayerContext) -> Tensor:
        """Attention at `ctx.read` alone, (B, T, D) -> (N, D) or (B, S, D): keys and values of all tokens, few
        queries."""
        wanted, x = ctx.wanted(x), ctx.everywhere(x)
        T, D, heads, read = *x.shape[1:], self.num_attention_heads, ctx.read
        bias, own = self.qkv.bias, ctx.of_read(T)
        of_q, of_kv = (None, None) if bias is None else (bias[:D], bias[D:])
        q = F.linear(wanted, self.qkv.weight[:D], of_q).unflatten(-1, (heads, -1))
        q_RHSK = q[:, :, None] if read.ndim == 1 else q.transpose(1, 2)
        if self._reads_fewest(x, ctx):
            y_RHSK = self._of_states(q_RHSK, x if read.ndim == 2 else x.index_select(0, read // T), own)
            return self.drop(self.out(y_RHSK.transpose(1, 2).reshape(*read.shape, D)))
        kv = F.linear(x, self.qkv.weight[D:], of_kv).unflatten(-1, (2, heads, -1))
        k, v = kv.permute(2, 0, 3, 1, 4)  # (B, H, T, K)
        k = rotate(k, ctx.rope)
        if read.ndim == 1:
            k, v = k[read // T], v[read // T]
        y_RHSK = BACKENDS[ctx.backend](rotate(q_RHSK, own.rope), k, v, own, self.drop_weights)
        return self.drop(self.out(y_RHSK.transpose(1, 2).reshape(*read.shape, D)))

    def _of_states(self, q_RHSK: Tensor, x_RTD: Tensor, ctx: LayerContext) -> Tensor:
        """Attention of few queries that computes no key or value of any token: q (W_k x) is (q W_k) x, and the sum of
        W_v x is W_v times the sum of x. The keys' bias adds the same to all scores of a query, which softmax does not
        see. -> (R, H, S, K)."""
        (_, heads, S, K), D = q_RHSK.shape, x_RTD.shape[-1]
        w_k_HKD, w_v_HKD = self.qkv.weight[D:].view(2, heads, K, D)
        asked = torch.einsum("rhsk,hkd->rhsd", q_RHSK / K**0.5, w_k_HKD)
        scores = (asked.flatten(1, 2) @ x_RTD.mT).unflatten(1, (heads, S))
        weights = _weights(scores, ctx, self.drop_weights)
        mixed = (weights.flatten(1, 2) @ x_RTD).unflatten(1, (heads, S))
        y_RHSK = torch.einsum("rhsd,hkd->rhsk", mixed, w_v_HKD)
        if self.qkv.bias is not None:
            y_RHSK = y_RHSK + weights.sum(dim=-1, keepdim=True) * self.qkv.bias[2 * D :].view(heads, 1, K)
        return y_RHSK

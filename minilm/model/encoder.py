"""One transformer encoder. BERT (2018) and ModernBERT (2024) are two presets of it.

They differ along five axes, each with one seam here, and no seam knows another: the order of the norms
(two Blocks), the feed-forward (two MLPs), positions (a table, or RoPE per layer), reach (a window per
layer), and plain fields (bias, eps, token types, activation, widths).

Shape letters: B rows, T tokens per row, D width, F feed-forward width.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from minilm.batch import Tokens
from minilm.errors import ConfigError
from minilm.machine import onednn
from minilm.model.attention import BACKENDS, Attention, Backend, LayerContext, MergedLinear, attention_mask, rope_table

MAX_SIZE = 1 << 24  # of any one dimension
_gelu_by_tanh = partial(F.gelu, approximate="tanh")  # Hendrycks & Gimpel 2016, sec. 2
ACTIVATIONS = {
    "gelu": F.gelu,  # the exact one, with erf
    "gelu_new": _gelu_by_tanh,
    "gelu_pytorch_tanh": _gelu_by_tanh,
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
}
DROPOUTS = ("embedding_dropout", "attention_dropout", "attention_output_dropout", "mlp_dropout")


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """Settings that may differ from layer to layer."""

    window: int | None = None  # tokens seen on each side; None: no limit
    rope_base: float | None = None  # None: no rotation


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The shape of an encoder. Raises ConfigError for one that cannot be built."""

    vocab_size: int
    hidden_size: int
    num_attention_heads: int
    intermediate_size: int
    layers: tuple[LayerSpec, ...]
    norm_order: Literal["post", "pre"]
    mlp: Literal["plain", "gated"]
    bias: bool  # in every Linear and LayerNorm
    layer_norm_eps: float
    max_position_embeddings: int  # tokens of the longest document
    learned_positions: bool  # a table of that many rows, after the first `position_offset`
    type_vocab_size: int = 0  # rows of the token type table; 0: none
    position_offset: int = 0  # RoBERTa's tables start at pad_token_id + 1
    embedding_size: int | None = None  # ELECTRA's tables are narrower than hidden_size; None: equal
    activation: str = "gelu"
    pad_token_id: int = 0
    embedding_dropout: float = 0.0
    attention_dropout: float = 0.0  # of the weights
    attention_output_dropout: float = 0.0
    mlp_dropout: float = 0.0

    def __post_init__(self) -> None:
        positive = ("vocab_size", "hidden_size", "num_attention_heads", "intermediate_size", "max_position_embeddings")
        for name in positive:
            if not (isinstance(value := getattr(self, name), int) and 0 < value <= MAX_SIZE):
                raise ConfigError(f"{name} is {value!r}; give a whole number from 1 to {MAX_SIZE}")
        if not 0 <= self.type_vocab_size <= MAX_SIZE:
            raise ConfigError(f"type_vocab_size is {self.type_vocab_size}; give a whole number from 0 to {MAX_SIZE}")
        if self.embedding_size is not None and not 0 < self.embedding_size <= MAX_SIZE:
            raise ConfigError(f"embedding_size is {self.embedding_size}; give a whole number from 1 to {MAX_SIZE}")
        if not self.layer_norm_eps > 0:
            raise ConfigError(f"layer_norm_eps is {self.layer_norm_eps}; give a number above 0")
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"hidden_size {self.hidden_size} does not divide into num_attention_heads "
                f"{self.num_attention_heads}; make it a multiple"
            )
        if self.activation not in ACTIVATIONS:
            raise ConfigError(f"activation {self.activation!r} is unknown; use one of {', '.join(ACTIVATIONS)}")
        if not self.layers:
            raise ConfigError("an encoder needs at least one layer")
        if not 0 <= self.pad_token_id < self.vocab_size:
            raise ConfigError(f"pad_token_id {self.pad_token_id} is not in the vocabulary of {self.vocab_size}")
        if self.head_width % 2 and any(spec.rope_base is not None for spec in self.layers):
            raise ConfigError(f"RoPE needs an even head size, and it is {self.head_width}; make it even")
        for name in DROPOUTS:
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; give a fraction below 1")
        for spec in dict.fromkeys(self.layers):
            if not 0 <= (spec.window or 0) <= MAX_SIZE or (spec.rope_base is not None and not spec.rope_base > 0):
                raise ConfigError(f"{spec}: give a window from 0 to {MAX_SIZE} and a rope_base above 0")

    @property
    def head_width(self) -> int:
        return self.hidden_size // self.num_attention_heads


def bert_config(
    vocab_size: int,
    hidden_size: int = 768,
    num_hidden_layers: int = 12,
    num_attention_heads: int = 12,
    intermediate_size: int | None = None,
    max_position_embeddings: int = 512,
    dropout: float = 0.1,
) -> EncoderConfig:
    """Encoder of BERT (Devlin et al. 2018); the defaults are BERT-base."""
    return EncoderConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_attention_heads=num_attention_heads,
        intermediate_size=4 * hidden_size if intermediate_size is None else intermediate_size,
        layers=(LayerSpec(),) * num_hidden_layers,
        norm_order="post",
        mlp="plain",
        bias=True,
        layer_norm_eps=1e-12,
        max_position_embeddings=max_position_embeddings,
        learned_positions=True,
        type_vocab_size=2,
        **dict.fromkeys(DROPOUTS, dropout),
    )


def modern_config(
    vocab_size: int,
    hidden_size: int = 768,
    num_hidden_layers: int = 22,
    num_attention_heads: int = 12,
    intermediate_size: int | None = None,
    max_position_embeddings: int = 8192,
    window: int = 64,
    global_every: int = 3,
    dropout: float = 0.0,
) -> EncoderConfig:
    """Encoder of ModernBERT (Warner et al. 2024); the defaults are its base model.

    Every `global_every`th layer sees the whole document, the others `window` tokens on each side, with
    RoPE bases of 160,000 and 10,000 (their sec. 2.1.2).
    """
    near, far = LayerSpec(window=window, rope_base=10_000.0), LayerSpec(rope_base=160_000.0)
    return EncoderConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_attention_heads=num_attention_heads,
        intermediate_size=3 * hidden_size // 2 if intermediate_size is None else intermediate_size,
        layers=tuple(near if i % global_every else far for i in range(num_hidden_layers)),
        norm_order="pre",
        mlp="gated",
        bias=False,
        layer_norm_eps=1e-5,
        max_position_embeddings=max_position_embeddings,
        learned_positions=False,
        **dict.fromkeys(DROPOUTS, dropout),
    )


class MLP(nn.Module):
    """Feed-forward layer W_out g(W_in x). Vaswani et al. 2017, eq. 2, with BERT's GELU."""

    def __init__(self, cfg: EncoderConfig) -> None:
        super().__init__()
        self.inp = nn.Linear(cfg.hidden_size, cfg.intermediate_size, bias=cfg.bias)
        self.out = nn.Linear(cfg.intermediate_size, cfg.hidden_size, bias=cfg.bias)
        self.activation = ACTIVATIONS[cfg.activation]
        self.drop = nn.Dropout(cfg.mlp_dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.out(self.activation(self.inp(x))))


class GatedMLP(nn.Module):
    """Gated feed-forward layer W_out (g(W_a x) * W_b x), with [W_a; W_b] merged. Shazeer 2020, eq. 6 (GEGLU)."""

    def __init__(self, cfg: EncoderConfig) -> None:
        super().__init__()
        self.inp = MergedLinear(cfg.hidden_size, cfg.intermediate_size, parts=2, bias=cfg.bias)
        self.out = nn.Linear(cfg.intermediate_size, cfg.hidden_size, bias=cfg.bias)
        self.activation = ACTIVATIONS[cfg.activation]
        self.drop = nn.Dropout(cfg.mlp_dropout)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.inp(x).chunk(2, dim=-1)
        return self.out(self.drop(self.activation(a) * b))


class Block(nn.Module):
    """The modules of a transformer layer. Subclasses only decide where the norms go."""

    def __init__(self, cfg: EncoderConfig) -> None:
        super().__init__()
        dropout = cfg.attention_dropout, cfg.attention_output_dropout
        self.attention = Attention(cfg.hidden_size, cfg.num_attention_heads, cfg.bias, *dropout)
        self.attention_norm = nn.LayerNorm(cfg.hidden_size, cfg.layer_norm_eps, bias=cfg.bias)
        self.mlp = MLPS[cfg.mlp](cfg)
        self.mlp_norm = nn.LayerNorm(cfg.hidden_size, cfg.layer_norm_eps, bias=cfg.bias)


class PostNormBlock(Block):
    """Post-norm layer (Vaswani et al. 2017, sec. 3.1): the residual stream itself is normed."""

    def forward(self, x: Tensor, ctx: LayerContext) -> Tensor:
        x = self.attention_norm(ctx.wanted(x) + self.attention(x, ctx))
        return self.mlp_norm(x + self.mlp(x))


class PreNormBlock(Block):
    """Pre-norm layer (Xiong et al. 2020, fig. 1b): the residual stream runs from end to end without a norm."""

    def forward(self, x: Tensor, ctx: LayerContext) -> Tensor:
        x = ctx.wanted(x) + self.attention(self.attention_norm(x), ctx)
        return x + self.mlp(self.mlp_norm(x))


MLPS = {"plain": MLP, "gated": GatedMLP}
BLOCKS = {"post": PostNormBlock, "pre": PreNormBlock}


class Embedding(nn.Module):
    """Sum of word, token type and position embeddings, normed (Devlin et al. 2018, fig. 2); the last two are
    optional."""

    def __init__(self, cfg: EncoderConfig) -> None:
        super().__init__()
        width = cfg.embedding_size or cfg.hidden_size
        self.word = nn.Embedding(cfg.vocab_size, width, padding_idx=cfg.pad_token_id)
        self.token_type = nn.Embedding(cfg.type_vocab_size, width) if cfg.type_vocab_size else None
        rows, offset = cfg.max_position_embeddings + cfg.position_offset, cfg.position_offset
        padding = offset - 1 if offset else None  # the row that RoBERTa's padding reads, at a position of -1
        self.position = nn.Embedding(rows, width, padding_idx=padding) if cfg.learned_positions else None
        self.position_offset = offset
        self.norm = nn.LayerNorm(width, cfg.layer_norm_eps, bias=cfg.bias)
        self.drop = nn.Dropout(cfg.embedding_dropout)
        self.project = nn.Linear(width, cfg.hidden_size) if width != cfg.hidden_size else nn.Identity()

    def forward(self, tokens: Tokens, embeds: Tensor | None = None) -> Tensor:
        x = self.word(tokens.input_ids) if embeds is None else embeds
        if self.token_type is not None:
            x = x + self.token_type(tokens.token_type_ids)
        if self.position is not None:
            x = x + self.position(tokens.position + self.position_offset)
        x = self.drop(self.norm(x))
        return self.project(x).to(x.dtype)  # autocast would leave the residual stream in 16 bits


@dataclass(frozen=True)
class Trace:
    """States and attention weights of one forward pass, recorded for inspection."""

    states: list[Tensor] = field(default_factory=list)  # (B, T, D): the embedding, then each layer's output
    attentions: list[Tensor] | None = None  # (B, H, T, T) per layer, after dropout; None: not recorded


class Encoder(nn.Module):
    """Embedding and layers: Tokens -> states (B, T, D)."""

    def __init__(self, cfg: EncoderConfig, backend: Backend = "sdpa") -> None:
        super().__init__()
        if backend not in list(BACKENDS):  # a list, for `backend` may be unhashable
            raise ConfigError(f"attention backend {backend!r} is unknown; use one of {', '.join(BACKENDS)}")
        self.cfg = cfg
        self.backend = backend
        self.gradient_checkpointing = False  # recompute every layer in the backward pass instead of keeping it
        self.embedding = Embedding(cfg)
        self.layers = nn.ModuleList(BLOCKS[cfg.norm_order](cfg) for _ in cfg.layers)
        self.final_norm = nn.Identity()  # post-norm layers end on a norm; pre-norm ones start on one:
        if cfg.norm_order == "pre":
            self.layers[0].attention_norm = nn.Identity()  # the embedding is normed already
            self.final_norm = nn.LayerNorm(cfg.hidden_size, cfg.layer_norm_eps, bias=cfg.bias)

    @property
    def layer(self) -> nn.ModuleList:
        """The layers, by transformers' name."""
        return self.layers

    def __setattr__(self, name: str, value: object) -> None:
        if name == "layer":  # a module of this name would hide the property, and nothing would compute it
            raise AttributeError("a whole list of layers cannot be put here; change `layers` and the config")
        super().__setattr__(name, value)

    def contexts(
        self, tokens: Tokens, dtype: torch.dtype, trace: Trace | None = None, backend: Backend | None = None
    ) -> dict[LayerSpec, LayerContext]:
        """Mask and rotation for each kind of layer. A trace with `attentions` makes the backend explicit."""
        seen = None if trace is None else trace.attentions
        backend = "explicit" if seen is not None else backend or self.backend
        position = tokens.position[:1] if tokens.layout == "full" else tokens.position  # rows are alike
        alone = backend == "varlen" and tokens.layout == "packed" and tokens.attention != "prefix"
        made = {}
        for spec in dict.fromkeys(self.cfg.layers):
            mask, is_causal = (None, False) if alone else attention_mask(tokens, spec.window)
            rope = None
            if spec.rope_base is not None:
                rope = rope_table(position, self.cfg.head_width, spec.rope_base, dtype)
            made[spec] = LayerContext(mask, is_causal, rope, backend, tokens if alone else None, spec.window, seen)
        return made

    def forward(
        self,
        tokens: Tokens,
        embeds: Tensor | None = None,
        trace: Trace | None = None,
        read: Tensor | None = None,
        backend: Backend | None = None,
        distinct: tuple[Tokens, Tensor] | None = None,
    ) -> Tensor:
        """States (B, T, D). embeds: (B, T, E) word embeddings in place of the table's. trace: filled by this pass.

        read: flat index into (B, T) of the only states that the last layer computes: (N,) -> (N, D), or, faster,
        equally many of each row, (B, S) with row b's in row b -> (B, S, D). backend: for this pass, not the encoder's.

        distinct: for rows that share most of their tokens: the C distinct tokens in one row (1, C), with positions, and
        an index (B, T) that says which of them stands where. Embeddings and the first layer's queries, keys and values
        are then computed for C tokens only.
        """
        x = self.embedding(tokens if distinct is None else distinct[0], embeds)
        contexts = self.contexts(tokens, x.dtype, trace, backend)
        for number, (layer, spec) in enumerate(zip(self.layers, self.cfg.layers, strict=True), start=1):
            ctx = contexts[spec] if number < len(self.layers) else replace(contexts[spec], read=read)
            if number == 1 and distinct is not None:
                ctx = replace(ctx, cell=distinct[1])
            if trace is not None:
                trace.states.append(ctx.everywhere(x))
            if self.gradient_checkpointing and self.training:  # Chen et al. 2016
                alike = {} if torch.compiler.is_compiling() else {"context_fn": onednn.both_passes}
                x = checkpoint(layer, x, ctx, use_reentrant=False, **alike)
            else:
                x = layer(x, ctx)
        x = self.final_norm(x)
        if trace is not None:
            trace.states.append(x)
        return x


@torch.no_grad()
def initialise(
    model: nn.Module,
    std: float = 0.02,
    output_scale: float = 1.0,
    word_std: float | None = None,
    sinusoids: float | None = None,
) -> None:
    """BERT's initialisation: matrices and tables N(0, std), biases 0, gains 1; as Hugging Face's, with the padding
    row 0 and the normal not truncated (google-research/bert cuts it at 2 std).

    `output_scale` multiplies the std of the two matrices of a layer that write to its residual stream:
    1 is BERT's, 1 / sqrt(2 L) GPT-2's and ModernBERT's, 0 starts every layer as the identity. `word_std`: of the word
    table alone. `sinusoids`: a learned position table starts as those of Vaswani et al. 2017, sec. 3.5, with this root
    mean square, so that a head finds tokens at some distance by a rotation, rather than position by position.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            writes_residual = name.endswith(("attention.out", "mlp.out"))
            module.weight.normal_(0.0, std * (output_scale if writes_residual else 1.0))
        if name.endswith("embedding.word") and word_std is not None:
            module.weight.mul_(word_std / std)
        if name.endswith("embedding.position") and sinusoids:
            rows, width = module.weight.shape
            angle = torch.arange(rows)[:, None] / 10_000 ** (torch.arange(0, width, 2) / width)
            waves = torch.cat([angle.sin()[:, : width // 2], angle.cos()], dim=1)
            module.weight.copy_(2**0.5 * sinusoids * waves)  # the mean of a wave's square is a half
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            module.weight[module.padding_idx].zero_()
        if isinstance(module, nn.Linear | nn.LayerNorm) and module.bias is not None:
            module.bias.zero_()
        if isinstance(module, nn.LayerNorm):
            module.weight.fill_(1.0)

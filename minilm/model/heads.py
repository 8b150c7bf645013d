"""Heads on an encoder's states: language model, pooling, pairs of texts. They compute no losses.

Shape letters: B rows, T tokens per row, D width, E width of the word table (D, but for ELECTRA), V vocabulary,
N targets.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minilm.batch import Tokens
from minilm.model.attention import Backend
from minilm.model.encoder import ACTIVATIONS, Encoder, EncoderConfig


class LMHead(nn.Module):
    """logits = W_E n(g(W h)) + b, with W_E the word table (V, E) of the embedding (Press & Wolf 2017).

    Masked and causal models share it: BERT's `cls.predictions`, ModernBERT's `head` and `decoder`.
    """

    def __init__(self, cfg: EncoderConfig, activation: str | None = None) -> None:
        """activation: g; None: the encoder's."""
        super().__init__()
        width = cfg.embedding_size or cfg.hidden_size
        self.dense = nn.Linear(cfg.hidden_size, width, bias=cfg.bias)
        self.norm = nn.LayerNorm(width, cfg.layer_norm_eps, bias=cfg.bias)
        self.activation = ACTIVATIONS[activation or cfg.activation]
        self.bias = nn.Parameter(torch.zeros(cfg.vocab_size))

    def forward(self, states: Tensor) -> Tensor:
        """n(g(W h)), (..., D) -> (..., E): all but the product with the table, worth its cost only at targets."""
        return self.norm(self.activation(self.dense(states)))

    def logits(self, states: Tensor, table: Tensor) -> Tensor:
        """Logits (..., V) of states (..., D). table: the word table (V, E)."""
        return F.linear(self(states), table, self.bias)


class Transform(nn.Module):
    """Dense layer [n](g(W h + b)) that some families put between the encoder and a classifier."""

    def __init__(self, cfg: EncoderConfig, activation: str, norm: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.dense = nn.Linear(cfg.hidden_size, cfg.hidden_size, bias=cfg.bias)
        self.activation = ACTIVATIONS[activation]
        self.norm = nn.LayerNorm(cfg.hidden_size, cfg.layer_norm_eps, bias=cfg.bias) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.norm(self.activation(self.dense(self.drop(x))))


def pooled(states: Tensor, tokens: Tokens, how: str) -> Tensor:
    """One vector per document, (B, T, D) -> (documents, D): its first state for "cls", or the "mean" or "max" of its
    states, padding left out. "first": as "cls", but after padding on the left of a row."""
    if how == "first" and tokens.layout != "packed":
        return states[torch.arange(len(states), device=states.device), tokens.key.int().argmax(dim=1)]
    if how in ("cls", "first"):
        return states.flatten(0, 1)[tokens.cls]
    if tokens.layout == "packed":
        return _pooled_by_document(states.flatten(0, 1), tokens, how)
    key = tokens.key[..., None]
    if how == "max":
        return states.masked_fill(~key, -torch.inf).amax(dim=1)
    return (states * key).sum(dim=1) / key.sum(dim=1)


def _pooled_by_document(states: Tensor, tokens: Tokens, how: str) -> Tensor:
    """`pooled` by "mean" or "max" for packed rows: states (B T, D) -> (documents, D)."""
    documents, key = len(tokens.cls), tokens.key.flatten()
    place = torch.arange(len(states), device=states.device)
    number = torch.searchsorted(tokens.cls, place, right=True) - 1  # of each token's document
    number = torch.where(key, number, documents)  # padding counts as one more document, which is dropped
    empty = states.new_zeros(documents + 1, states.shape[1])
    if how == "max":
        index = number[:, None].expand_as(states)
        return empty.scatter_reduce(0, index, states, "amax", include_self=False)[:-1]
    wide = states.to(torch.promote_types(states.dtype, torch.float32))  # a sum of ones in bf16 stops at 256
    counts = wide.new_zeros(documents + 1).index_add(0, number, torch.ones_like(wide[:, 0]))
    return (empty.to(wide.dtype).index_add(0, number, wide)[:-1] / counts[:-1, None]).to(states.dtype)


class Pooler(nn.Module):
    """BERT's pooler tanh(W h_cls + b), one vector per document: google-research/bert, modeling.py, `pooler`."""

    def __init__(self, cfg: EncoderConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(cfg.hidden_size, cfg.hidden_size, bias=cfg.bias)

    def forward(self, states: Tensor, tokens: Tokens) -> Tensor:
        """States (B, T, D) -> (documents, D), each read at its document's first token."""
        return torch.tanh(self.dense(pooled(states, tokens, "cls")))


class PairHead(nn.Module):
    """Classifier of whether a document's second text follows its first. Devlin et al. 2018, sec. 3.1, task 2."""

    def __init__(self, cfg: EncoderConfig) -> None:
        super().__init__()
        self.pooler = Pooler(cfg)
        self.classifier = nn.Linear(cfg.hidden_size, 2)

    def forward(self, states: Tensor, tokens: Tokens) -> Tensor:
        """States (B, T, D) -> logits (documents, 2): it follows, it does not."""
        return self.classifier(self.pooler(states, tokens))


class LanguageModel(nn.Module):
    """An encoder and a tied language-model head. Masked, causal or prefix is a property of the Tokens, not of this."""

    def __init__(self, cfg: EncoderConfig, backend: Backend = "sdpa", pairs: bool = False) -> None:
        """pairs: whether the model has a PairHead, too."""
        super().__init__()
        self.encoder = Encoder(cfg, backend)
        self.head = LMHead(cfg)
        self.pair = PairHead(cfg) if pairs else None

    @property
    def cfg(self) -> EncoderConfig:
        return self.encoder.cfg

    @property
    def table(self) -> Tensor:
        """Word table (V, E), shared by the embedding and the decoder."""
        return self.encoder.embedding.word.weight

    def forward(self, tokens: Tokens, where: Tensor | None = None) -> Tensor:
        """Logits (N, V) at the flat indices `where` (N,), or (B, T, V) at every token."""
        states = self.encoder(tokens)
        return self.head.logits(states if where is None else states.flatten(0, 1)[where], self.table)

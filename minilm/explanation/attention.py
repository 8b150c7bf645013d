"""Attention maps, and attention rollout from the first layer to the last.

Shape letters: L layers, B rows, H heads, T tokens per row, W words.
"""

import numpy as np
import torch
from torch import Tensor

from minilm.batch import Tokens
from minilm.model.encoder import Encoder, Trace


@torch.no_grad()
def attention_maps(encoder: Encoder, tokens: Tokens) -> Tensor:
    """Attention weights (L, B, H, T, T): [..., i, j] is the share of its attention that query i gives to key j.
    Computed by the explicit backend, whatever the encoder's; without dropout if that is in eval mode."""
    trace = Trace(attentions=[])
    encoder(tokens, trace=trace)
    return torch.stack(trace.attentions)


def rollout(maps: Tensor) -> Tensor:
    """Attention rollout (B, T, T): how much of state i of the last layer stems from input token j, if attention and the
    residual connection mix states half and half. Abnar & Zuidema 2020, sec. 3: the product over layers of
    0.5 A + 0.5 I, with A the mean over heads. maps: (L, B, H, T, T)."""
    unit = torch.eye(maps.shape[-1], dtype=maps.dtype, device=maps.device)
    mixed = (maps.mean(dim=2) + unit) / 2
    mixed = mixed / mixed.sum(dim=-1, keepdim=True)
    found = mixed[0]
    for layer in mixed[1:]:
        found = layer @ found
    return found


def word_map(weights: np.ndarray, words: list[np.ndarray]) -> np.ndarray:
    """Attention between words, (W, W), from weights (T, T): to a word the sum over its tokens, from a word the mean
    over them, so that rows still sum to 1 if each token is of a word (Clark et al. 2019, sec. 4.1). words: the token
    indices of each word."""
    to = np.stack([weights[:, places].sum(axis=1) for places in words], axis=1)
    return np.stack([to[places].mean(axis=0) for places in words])

"""How much each token or word of a text adds to one number that a model outputs.

integrated gradients  the gradient along the straight line from a baseline to the text, integrated by the Gauss-Legendre
                      rule (Sundararajan et al. 2017, eq. 1). The values sum to the difference of the two outputs, but
                      for the rule's own error.
gradient x input      its first-order approximation, with a baseline of zero (Shrikumar et al. 2016).
occlusion             by how much the output falls when a word is hidden (Zeiler & Fergus 2014).

Gradients are with respect to the embedding's output (word, token type and position, normed), and a token's value is a
sum over its width: as in captum's LayerIntegratedGradients for `model.bert.embeddings`.

Shape letters: B rows, T tokens per row, D width, W words.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from minilm.batch import Tokens
from minilm.dropin.models import PreTrainedModel

STEPS = 100  # captum's 50 are off by some percent for a ModernBERT: its norms bend at [PAD], whose embedding is 0
AT_ONCE = 1 << 11  # tokens of a batch, whose activations are kept


class Output(NamedTuple):
    """The number that is explained: one output of a model for each row."""

    model: PreTrainedModel
    read: Callable[[Tensor, Tokens], Tensor]  # states (B, T, D) -> (B,)

    def of(self, tokens: Tokens, embedded: Tensor | None = None) -> Tensor:
        """The output (B,). embedded: (B, T, D) in place of the tokens' embeddings."""
        encoder = self.model.base_model.encoder
        if embedded is None:
            return self.read(encoder(tokens), tokens)
        hook = encoder.embedding.register_forward_hook(lambda *_: embedded)
        try:
            return self.read(encoder(tokens), tokens)
        finally:
            hook.remove()


def integrated_gradients(output: Output, tokens: Tokens, baseline: Tensor, steps: int = STEPS) -> np.ndarray:
    """Values of the tokens, (T,) float64. tokens: one row. baseline: ids (1, T); a token that is the same there has
    value 0. steps: points of the rule, each one pass forward and back."""
    with torch.no_grad():
        embedding = output.model.base_model.encoder.embedding
        end, start = embedding(tokens), embedding(replace(tokens, input_ids=baseline))
    points, weights = (end.new_tensor(each)[:, None, None] / 2 for each in np.polynomial.legendre.leggauss(steps))
    mean = torch.zeros_like(end)  # of the gradient along the line
    for at, weight in zip(*(each.split(_at_once(tokens)) for each in (points + 0.5, weights)), strict=True):
        mean += (weight * _gradient(output, tokens, start + at * (end - start))).sum(dim=0)
    return ((end - start) * mean).sum(dim=-1)[0].cpu().double().numpy()


def gradient_x_input(output: Output, tokens: Tokens) -> np.ndarray:
    """Values of the tokens, (T,) float64. tokens: one row."""
    with torch.no_grad():
        embedded = output.model.base_model.encoder.embedding(tokens)
    return (embedded * _gradient(output, tokens, embedded)).sum(dim=-1)[0].cpu().double().numpy()


@torch.no_grad()
def occlusion(output: Output, tokens: Tokens, hidden: Tensor, by: int) -> np.ndarray:
    """Values of the words, (W,) float64. tokens: one row. hidden: (W, T) bool, the tokens of each word. by: the id in
    their place."""
    rows = torch.where(hidden, by, tokens.input_ids).split(_at_once(tokens))
    found = torch.cat([output.of(_rows(tokens, ids)) for ids in rows])
    return (output.of(tokens) - found).cpu().double().numpy()


def _gradient(output: Output, tokens: Tokens, embedded: Tensor) -> Tensor:
    """Gradient of the output with respect to the embeddings, (B, T, D)."""
    embedded = embedded.detach().requires_grad_()
    with torch.enable_grad():
        total = output.of(_rows(tokens, tokens.input_ids.expand(len(embedded), -1)), embedded).sum()
    return torch.autograd.grad(total, embedded)[0]


def _rows(tokens: Tokens, ids: Tensor) -> Tokens:
    """Rows (B, T) like the one of `tokens`, with other ids."""
    return Tokens.full(ids, tokens.attention, token_type_ids=tokens.token_type_ids.expand(len(ids), -1))


def _at_once(tokens: Tokens) -> int:
    return max(1, AT_ONCE // tokens.input_ids.shape[1])

"""Attention maps as transformers' eager attention gives them; rollout as a loop over its equation."""

import numpy as np
import pytest
import torch

from minilm.batch import Tokens
from minilm.explanation.attention import attention_maps, rollout, word_map


@pytest.mark.parametrize("regime", ["initial", "wild"])
@pytest.mark.parametrize("architecture", ["bert", "modern"])
def test_maps_are_transformers(pair, ids, masks, assert_close, architecture, regime):
    """Of what is no padding: transformers' ModernBERT gives a query of padding other keys, and nobody reads it."""
    made = pair(architecture, "mlm", regime, kernel="eager")
    for mask in (None, masks["right"], masks["left"]):
        tokens = Tokens.full(ids) if mask is None else Tokens.padded(ids, mask)
        theirs = made.theirs(ids, attention_mask=mask, output_attentions=True).attentions
        found = attention_maps(made.ours.encoder, tokens)
        assert found.shape == (len(theirs), 3, 4, 24, 24)
        real = torch.ones_like(ids) if mask is None else mask
        for layer, (own, other) in enumerate(zip(found, theirs, strict=True)):
            own, other = (each.transpose(1, 2)[real.bool()] for each in (own, other))
            assert_close(own, other, f"layer {layer}")
        assert (found.sum(dim=-1) - 1).abs().max() < 1e-12
    assert made.ours.encoder.backend == "sdpa"


def test_rollout_is_the_papers_equation():
    """Abnar & Zuidema 2020, eq. 1, by numpy; rows stay distributions."""
    rng = np.random.default_rng(0)
    maps = rng.exponential(size=(5, 2, 3, 7, 7))
    maps /= maps.sum(axis=-1, keepdims=True)
    for row in range(2):
        wanted = np.eye(7)
        for layer in maps[:, row]:
            mixed = layer.mean(axis=0) + np.eye(7)
            wanted = mixed / mixed.sum(axis=1, keepdims=True) @ wanted
        found = rollout(torch.from_numpy(maps))[row].numpy()
        assert np.abs(found - wanted).max() < 1e-12
        assert found.sum(axis=1) == pytest.approx(np.ones(7))


def test_a_word_is_the_sum_of_what_goes_to_it():
    """Words of one token and of two; from a word the mean."""
    weights = np.array([[0.2, 0.3, 0.5], [0.1, 0.6, 0.3], [0.5, 0.1, 0.4]])
    found = word_map(weights, [np.array([0]), np.array([1, 2])])
    assert found == pytest.approx(np.array([[0.2, 0.8], [0.3, 0.7]]))

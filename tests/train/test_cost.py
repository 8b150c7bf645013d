"""The count from the shape against the products that torch sees."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from minilm.batch import Batch, Tokens
from minilm.model.encoder import bert_config, modern_config
from minilm.model.heads import LanguageModel
from minilm.train.cost import training_flops
from minilm.train.losses import language_model_loss

SHAPES = [  # vocab, width, layers, heads, feed-forward, rows, length, targets
    (128, 64, 2, 4, 96, 4, 32, 20),
    (512, 32, 1, 2, 128, 2, 64, 60),  # the vocabulary is most of it
    (64, 32, 3, 2, 48, 2, 128, 2),  # attention is most of it
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("preset", [bert_config, modern_config])
def test_flops_are_torchs(preset, shape):
    vocab, width, layers, heads, inner, B, T, n = shape
    cfg = preset(vocab, width, layers, heads, inner, max_position_embeddings=T)
    model = LanguageModel(cfg, "explicit")
    generator = torch.Generator().manual_seed(0)
    tokens = Tokens.full(torch.randint(5, vocab, (B, T), generator=generator))
    where = torch.randperm(B * T, generator=generator)[:n]
    batch = Batch(tokens, where, torch.randint(5, vocab, (n,), generator=generator), n, B * T)
    with FlopCounterMode(display=False) as counter:
        language_model_loss(model, batch)[0].backward()
    counted = training_flops(cfg, B * T, T, n)
    assert isinstance(counted, int)
    assert counted == counter.get_total_flops()  # window or not: the explicit attention multiplies it all


def test_flops_of_bert_base_by_hand():
    """12 layers of 12 D^2 + 2 T D, and a head of D^2 + D V at 15 % of the places; 6 FLOPs each."""
    D, V, T, tokens, targets = 768, 30522, 512, 512 * 256, 77 * 256
    by_hand = 6 * (tokens * 12 * (12 * D * D + 2 * T * D) + targets * (D * D + D * V))
    assert training_flops(bert_config(V), tokens, T, targets) == by_hand

"""The named runs, each against what its sources say of it."""

import pytest
import torch

from minilm.data.tokenizer import MULTIPLE
from minilm.model.encoder import Encoder
from minilm.recipes import RECIPES

DOUBLED = [2**i for i in range(6)]
STRETCHES = {  # of a million steps: steps, tokens a row, rows, rows at once
    "quick": [(1_000_000, 128, 16, 16)],
    "bert-mini": [(1_000_000, 128, 16, 16)],
    "bert-base": [(900_000, 128, 256, 128), (100_000, 512, 256, 32)],  # Devlin et al. 2018, app. A.2
    "modern-base": [*((5_000, 1024, 96 * times, 96) for times in DOUBLED), (970_000, 1024, 4608, 96)],
    "cramming": [*((100_000, 128, 128 * times, 128) for times in DOUBLED), (400_000, 128, 8192, 128)],
    "continue": [(1_000_000, 128, 32, 32)],
}
PARAMETERS = {  # of the encoder, in the papers' vocabularies, rounded to millions
    "bert-base": (30_522, 109),
    "modern-base": (50_368, 149),
}


def test_every_recipe_is_here():
    assert {*STRETCHES} == {*RECIPES}


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_is_in_the_stretches_of_its_source(name):
    found = RECIPES[name].stretches(10**6)
    assert [(each.steps, each.length, each.rows, each.batch_size) for each in found] == STRETCHES[name]
    assert {each.length for each in found} == RECIPES[name].lengths


@pytest.mark.parametrize("steps", [1, 2, 7, 99])
@pytest.mark.parametrize("name", RECIPES)
def test_few_steps_are_stretches_too(name, steps):
    """Of a step at least, in the same order, and together all of them."""
    found = RECIPES[name].stretches(steps)
    assert sum(each.steps for each in found) == steps
    assert min(each.steps for each in found) > 0
    kinds = [each[1:] for each in STRETCHES[name]]
    places = [kinds.index((each.length, each.rows, each.batch_size)) for each in found]
    assert places == sorted(set(places))


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "continue"])
def test_an_encoder_is_made_of_every_recipe(name):
    recipe = RECIPES[name]
    assert recipe.vocab_size % MULTIPLE == 0
    with torch.device("meta"):
        encoder = Encoder(recipe.encoder_config(recipe.vocab_size))
    assert encoder.embedding.word.weight.shape == (recipe.vocab_size, recipe.hidden_size)
    assert len(encoder.layers) == recipe.num_hidden_layers


@pytest.mark.parametrize("name", PARAMETERS)
def test_an_encoder_is_as_large_as_its_source_says(name):
    words, millions = PARAMETERS[name]
    with torch.device("meta"):
        encoder = Encoder(RECIPES[name].encoder_config(words))
    assert round(sum(own.numel() for own in encoder.parameters()) / 1e6) == millions


def test_modern_base_is_scheduled_in_the_tokens_of_its_source():
    """Warner et al. 2024, table 3 and the configuration of their code: 1.7 T tokens, warm-up over 3 B, a decay over
    50 B, and a weight decay of 1e-5 a step at the peak."""
    recipe = RECIPES["modern-base"]
    tokens = [each.length * each.rows for each in recipe.stretches(recipe.steps) for _ in range(each.steps)]
    assert sum(tokens) == pytest.approx(1.7e12, rel=0.05)
    assert sum(tokens[: round(recipe.warmup_frac * recipe.steps)]) == pytest.approx(3e9, rel=0.15)
    assert sum(tokens[-round(recipe.decay_frac * recipe.steps) :]) == pytest.approx(50e9, rel=0.05)
    assert recipe.lr * recipe.weight_decay == pytest.approx(1e-5)

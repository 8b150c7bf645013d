"""Sampling against the definition: one forward over everything for each token."""

import copy
import math
from collections import Counter

import pytest
import torch

from minilm.batch import Tokens
from minilm.errors import DataError
from minilm.model.encoder import bert_config, initialise, modern_config
from minilm.model.generate import sample
from minilm.model.heads import LanguageModel

VOCAB, LENGTH, NEVER = 23, 12, -1  # no id is NEVER, so nothing stops


@pytest.fixture(params=["bert", "modern"])
def model(request):
    torch.manual_seed(4)
    shape = (VOCAB, 16, 2, 2, 24, LENGTH)
    modern = request.param == "modern"
    made = LanguageModel(modern_config(*shape, window=2, global_every=2) if modern else bert_config(*shape))
    initialise(made, std=0.5)
    return made.eval()


@torch.no_grad()
def logits_after(model, ids, prompt, attention):
    """Of the token that follows `ids`, from the logits of every position."""
    prefix = None
    if attention == "prefix":
        prefix = torch.tensor([[i < prompt for i in range(len(ids))]])
    return model(Tokens.full(torch.tensor([ids]), attention, prefix))[0, -1]


def greedy(model, prompt, n, attention):
    ids = list(prompt)
    for _ in range(n):
        ids.append(int(logits_after(model, ids, len(prompt), attention).argmax()))
    return ids[len(prompt) :]


PROMPTS = [[2, 7], [2, 9, 11, 5, 17], [3]]


@pytest.mark.parametrize("attention", ["causal", "prefix"])
@pytest.mark.parametrize("prompt", PROMPTS, ids=str)
def test_temperature_0_is_the_argmax(model, prompt, attention):
    expected = greedy(model, prompt, 7, attention)
    assert sample(model, prompt, 7, attention, NEVER, temperature=0) == expected
    assert sample(model, prompt, 7, attention, NEVER, temperature=0, seed=5) == expected
    assert sample(model, prompt, 7, attention, NEVER, temperature=0.9, top_k=1) == expected
    assert sample(model, prompt, 7, attention, NEVER, temperature=1e-6, top_k=VOCAB) == expected


def test_causal_and_prefix_differ(model):
    """Or the test above could not tell them apart."""
    prompts = [
        [2, *row] for row in torch.randint(5, VOCAB, (8, 4), generator=torch.Generator().manual_seed(0)).tolist()
    ]
    assert any(greedy(model, p, 6, "causal") != greedy(model, p, 6, "prefix") for p in prompts)


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_stop_id_ends_it_and_is_left_out(model, temperature):
    whole = sample(model, [2, 7], 8, "causal", NEVER, temperature)
    for stop_id in set(whole):
        assert sample(model, [2, 7], 8, "causal", stop_id, temperature) == whole[: whole.index(stop_id)]
    with torch.no_grad():
        model.head.bias[3] = 1e4
    assert sample(model, [2, 7], 8, "causal", 3, temperature) == []
    assert sample(model, [3, 3], 2, "causal", NEVER, 0) == [3, 3]  # a stop in the prompt would not count
    assert sample(model, [2, 3], 8, "causal", 4, 0) == [3] * 8


@pytest.mark.parametrize(
    ("prompt", "max_new", "n"),
    [(2, 0, 0), (2, 1, 1), (2, 10, 10), (2, 99, LENGTH - 2), (LENGTH - 1, 5, 1), (LENGTH, 5, 0), (LENGTH + 3, 5, 0)],
)
def test_length_ends_it(model, prompt, max_new, n):
    ids = [5 + i % 7 for i in range(prompt)]
    given = list(ids)
    assert len(sample(model, ids, max_new, "causal", NEVER)) == n
    assert ids == given  # the caller's list is not written to


def test_seed_decides_the_draw_and_the_global_generator_is_left_alone(model):
    state = torch.get_rng_state()
    runs = [tuple(sample(model, [2, 7], 8, "causal", NEVER, 2.0, seed=seed)) for seed in range(10)]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(77)
    assert runs == [tuple(sample(model, [2, 7], 8, "causal", NEVER, 2.0, seed=seed)) for seed in range(10)]
    assert len(set(runs)) > 5


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, 4), (3.0, 6), (2.0, 1000)])
def test_draws_are_the_softmax_over_the_top_k(model, temperature, top_k):
    """Frequencies of 400 draws: a standard deviation is 0.025 at most, so 0.1 is four of them."""
    logits = logits_after(model, [2, 7], 2, "causal")
    likely = logits.argsort(descending=True)[:top_k].tolist()
    wanted = torch.softmax(logits[likely].double() / temperature, 0).tolist()
    draws = Counter(sample(model, [2, 7], 1, "causal", NEVER, temperature, top_k, seed)[0] for seed in range(400))
    assert set(draws) <= set(likely)
    for token, p in zip(likely, wanted, strict=True):
        assert draws[token] / 400 == pytest.approx(p, abs=0.1)


def test_nothing_is_recorded_for_a_backward_pass(model):
    sample(model, [2, 7], 3, "causal", NEVER)
    assert all(p.grad is None for p in model.parameters())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_outputs_that_are_not_finite_are_told(model, temperature):
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.table[9] = math.nan
    with pytest.raises(DataError, match="outputs after 2 tokens are not finite"):
        sample(broken, [2, 7], 3, "causal", NEVER, temperature)

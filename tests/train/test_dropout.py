"""Cheap dropout is dropout: its rate, its mean, one mask both ways, and draws of torch's generator alone."""

import copy
import math

import pytest
import torch
from torch import nn

from minilm.train.dropout import CheapDropout, cheapen

N = 200_000


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rate_and_mean(p, dtype):
    """Within five standard deviations of a binomial."""
    torch.manual_seed(0)
    x = torch.ones(N // 8, 8, dtype=dtype, requires_grad=True)
    y = CheapDropout(p)(x)
    kept = y != 0
    rate = round(p * 65536) / 65536
    assert abs(kept.sum().item() - N * (1 - rate)) < 5 * math.sqrt(N * rate * (1 - rate))
    assert y[kept].unique().tolist() == torch.tensor([1 / (1 - rate)], dtype=dtype).tolist()
    columns = kept.float().mean(dim=0)  # 16-bit parts of one draw are alike often, and not alike
    assert (columns - (1 - rate)).abs().max() < 5 * math.sqrt(rate * (1 - rate) / (N // 8))
    assert (torch.corrcoef(kept.float().T) - torch.eye(8)).abs().max() < 5 / math.sqrt(N // 8)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(grad, y.detach())


def test_draws_are_of_the_generator_alone():
    x, drop = torch.ones(1001), CheapDropout(0.3)
    torch.manual_seed(1)
    first, second = drop(x), drop(x)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    torch.ones(7).numpy()
    assert torch.equal(drop(x), first)
    assert torch.equal(drop(x), second)


@pytest.mark.parametrize("p", [0.0, 1e-12, 1.0])
def test_the_ends(p):
    y = CheapDropout(p)(torch.ones(100))
    assert y.tolist() == [0.0 if p == 1 else 1.0] * 100
    assert torch.equal(CheapDropout(0.5).eval()(torch.ones(9)), torch.ones(9))


def test_a_model_keeps_its_names_and_its_modes():
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.2), nn.Sequential(nn.Dropout(0.4)))
    model[2].eval()
    other = copy.deepcopy(model)
    cheapen(other)
    assert other.state_dict().keys() == model.state_dict().keys()
    assert [(type(each), each.p, each.training) for each in (other[1], other[2][0])] == [
        (CheapDropout, 0.2, True),
        (CheapDropout, 0.4, False),
    ]
    cheapen(other)
    assert type(other[1]) is CheapDropout

"""Cheap dropout is dropout: its rate, its mean, one mask both ways, and draws of torch's generator alone. A cheap table
has torch's gradients, step after step."""

import copy
import math
from contextlib import suppress

import pytest
import torch
from torch import Tensor, nn

from minilm.train.cheap import CheapDropout, CheapEmbedding, as_before, cheapen
from minilm.train.optim import gradient_norm

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


@pytest.mark.parametrize("padding", [None, 2])
def test_a_table_s_gradients_are_torch_s(padding):
    """Of several micro-batches a step, of rows that are there once, twice and no more, with clipping in between."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Embedding(9, 4, padding_idx=padding), nn.Linear(4, 1)).double()
    cheap = copy.deepcopy(plain)
    cheapen(cheap, cheap[0])
    assert type(cheap[0]) is CheapEmbedding
    assert cheap.state_dict().keys() == plain.state_dict().keys()
    optimizers = [torch.optim.AdamW(model.parameters(), lr=0.1) for model in (plain, cheap)]
    for step in range(5):
        batches = [torch.randint(9 - step, (2, 3)) for _ in range(1 + step % 2)]
        for model in (plain, cheap):
            for batch in batches:
                model(batch).square().sum().backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            assert abs(gradient_norm(model) - norm.clamp(max=0.5)) < 1e-6
        for own, theirs in zip(cheap.parameters(), plain.parameters(), strict=True):
            assert (own.grad - theirs.grad).abs().max() < 1e-12
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    for own, theirs in zip(cheap.parameters(), plain.parameters(), strict=True):
        assert (own - theirs).abs().max() < 1e-12
    with torch.no_grad():
        assert torch.equal(cheap[0](torch.arange(9)), cheap[0].weight)
    (cheap(torch.tensor([[3, 4]])) * math.nan).sum().backward()
    cheap.zero_grad()
    cheap(torch.tensor([[3, 4]])).sum().backward()
    assert cheap[0].weight.grad.isfinite().all()
    assert cheap[0].weight.grad.any(dim=1).nonzero().flatten().tolist() == [3, 4]
    as_before(cheap)
    assert [type(each) for each in cheap] == [nn.Embedding, nn.Linear]
    assert cheap[0].weight is next(iter(cheap.parameters()))


@pytest.mark.parametrize("padding", [None, 2])
@pytest.mark.parametrize("fails_at", [1, 2])
def test_a_table_s_gradient_that_found_no_memory_is_tried_again(monkeypatch, padding, fails_at):
    """Half-way, in the first step or a later one."""
    torch.manual_seed(0)
    table = nn.Sequential(nn.Embedding(9, 4, padding_idx=padding))
    cheapen(table, table[0])
    add, calls = Tensor.index_add_, []

    def full(self, dim, ids, gradient):
        calls.append(1)
        if len(calls) == fails_at:
            add(self, dim, ids[:1], gradient[:1])
            raise RuntimeError("can't allocate memory")
        return add(self, dim, ids, gradient)

    monkeypatch.setattr(Tensor, "index_add_", full)
    for ids in ([[1, 2, 3]], [[4, 4, 5]]):
        for _ in range(2):
            with suppress(RuntimeError):
                table.zero_grad(set_to_none=True)
                table(torch.tensor(ids)).sum().backward()
                break
        counts = torch.bincount(torch.tensor(ids[0]), minlength=9).float()
        if padding is not None:
            counts[padding] = 0
        assert torch.equal(table[0].weight.grad, counts[:, None].expand(9, 4))

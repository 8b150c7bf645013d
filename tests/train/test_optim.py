"""Who is updated how: groups by name, updates against torch's optimizers, schedules at exact points."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from minilm.model.encoder import bert_config
from minilm.model.heads import LanguageModel
from minilm.train.optim import (
    Muon,
    forget_tiny,
    keep_learning_rate_on,
    lr_fraction,
    make_optimizers,
    newton_schulz,
    set_learning_rate,
)

LAYER_MATRICES = ("attention.qkv", "attention.out", "mlp.inp", "mlp.out")
MATRICES = {f"encoder.layers.{i}.{m}.weight" for i in (0, 1) for m in LAYER_MATRICES} | {"head.dense.weight"}
TABLES = {
    "bert": {f"encoder.embedding.{table}.weight" for table in ("word", "token_type", "position")},
    "modern": {"encoder.embedding.word.weight"},
}


def names_of(model, group):
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)] for p in group["params"]}


# -- groups ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["bert", "modern"])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_groups_by_name(tiny, architecture, name):
    model = tiny(architecture)
    optimizers = make_optimizers(model, name, lr=1e-3, weight_decay=0.1)
    tables, every = TABLES[architecture], {n for n, _ in model.named_parameters()}
    decayed, plain = optimizers[0].param_groups
    assert names_of(model, decayed) == (tables if name == "muon" else tables | MATRICES)
    assert names_of(model, plain) == every - tables - MATRICES
    assert all(n.endswith(".bias") or "norm.weight" in n for n in names_of(model, plain))
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    if name == "muon":
        (group,) = optimizers[1].param_groups
        assert names_of(model, group) == MATRICES
        assert group["weight_decay"] == 0.1
        parts = dict(zip(group["params"], group["parts"], strict=True))
        merged = {n: parts[p] for n, p in model.named_parameters() if n in MATRICES}
        threes = {n for n in MATRICES if "qkv" in n}
        twos = {n for n in MATRICES if "mlp.inp" in n and architecture == "modern"}  # GeGLU's two matrices
        assert merged == {n: 3 if n in threes else 2 if n in twos else 1 for n in MATRICES}
    owners = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    assert sorted(map(id, owners)) == sorted(id(p) for p in model.parameters())  # each exactly once


def test_projection_of_narrow_embeddings_is_a_matrix_and_frozen_parameters_are_in_no_group():
    model = LanguageModel(replace(bert_config(61, 32, 1, 2, 48, 16), embedding_size=8))
    model.encoder.embedding.requires_grad_(False)
    model.encoder.embedding.project.requires_grad_(True)
    optimizers = make_optimizers(model, "muon", lr=1e-3, weight_decay=0.1)
    owners = set().union(*(names_of(model, g) for o in optimizers for g in o.param_groups))
    assert owners == {n for n, p in model.named_parameters() if p.requires_grad}
    assert "encoder.embedding.project.weight" in names_of(model, optimizers[1].param_groups[0])


def test_a_rate_on_the_device_is_the_same_tensor_all_along(tiny):
    """An update by it is one by the number, up to rounding."""
    found = []
    for there in (False, True):
        model = tiny("modern")
        optimizers = make_optimizers(model, "muon", lr=1e-2, weight_decay=0.1)
        for fraction in (0.25, 1.0):
            set_learning_rate(optimizers, fraction)
            if there:
                keep_learning_rate_on(torch.device("cpu"), optimizers)
                rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
            for p in model.parameters():
                p.grad = torch.full_like(p, 1e-3)
            for optimizer in optimizers:
                optimizer.step()
        found.append(dict(model.named_parameters()))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-7)
    set_learning_rate(optimizers, 0.5)
    assert [float(rate) for rate in rates] == [pytest.approx(5e-3)] * len(rates)


def test_set_learning_rate_scales_every_peak(tiny):
    optimizers = make_optimizers(tiny("bert"), "muon", lr=0.02, weight_decay=0.1)
    for fraction in (0.5, 0.25, 1.0):  # of the peak, not of what stood there before
        set_learning_rate(optimizers, fraction)
        rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
        assert rates == [0.02 * fraction] * 3


def test_adamw_is_torchs(tiny):
    ours, reference = tiny("bert"), tiny("bert")
    (optimizer,) = make_optimizers(ours, "adamw", lr=3e-3, weight_decay=0.2, betas=(0.8, 0.95), eps=1e-5)
    decay = {n: 0.0 if n.endswith(".bias") or "norm" in n else 0.2 for n, _ in reference.named_parameters()}
    groups = [{"params": [p], "weight_decay": decay[n]} for n, p in reference.named_parameters()]
    other = torch.optim.AdamW(groups, lr=3e-3, betas=(0.8, 0.95), eps=1e-5, foreach=False, fused=False)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        for p, q in zip(ours.parameters(), reference.parameters(), strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = p.grad.clone()
        optimizer.step()
        other.step()
    for p, q in zip(ours.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)  # fp32, fused and unfused


# -- Muon -----------------------------------------------------------------------------------------


def matrix(shape, seed, dtype=torch.float64):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.to(dtype)


def parameter(shape, seed, dtype=torch.float64):
    return nn.Parameter(matrix(shape, seed, dtype))


def run(params, grads, make, dtype=torch.float64):
    """Clones of params after one step per row of `grads`, updated by make(params)."""
    params = [nn.Parameter(p.detach().to(dtype).clone()) for p in params]
    optimizer = make(params)
    for step, row in enumerate(grads):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 / (1 + step)
        for p, grad in zip(params, row, strict=True):
            p.grad = grad.to(dtype)
        optimizer.step()
    return [p.detach() for p in params]


def ours(parts=1, dtype=torch.float64):
    return lambda params: Muon(params, dict.fromkeys(params, parts), lr=0.05, weight_decay=0.3, dtype=dtype)


def torchs(params):
    return torch.optim.Muon(
        params, lr=0.05, weight_decay=0.3, momentum=0.95, nesterov=True, adjust_lr_fn="match_rms_adamw"
    )


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (16, 16)], ids=str)
def test_muon_is_torchs(monkeypatch, shape):
    """In bf16 as it is, and in float64 by taking the rounding to bf16 out of torch's."""
    start, grads = [parameter(shape, 0)], [[matrix(shape, step)] for step in (1, 2, 3, 4)]
    mine = run(start, grads, ours(dtype=torch.bfloat16), torch.float32)[0]
    theirs = run(start, grads, torchs, torch.float32)[0]
    moved = float((theirs - start[0]).detach().norm())
    # two orders of five bf16 iterations: each rounds to 2^-9 of an entry, and the iteration amplifies it
    assert float((mine - theirs).norm()) < 0.03 * moved

    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    mine, theirs = run(start, grads, ours())[0], run(start, grads, torchs)[0]
    # they differ in one place: norm + 1e-7 or max(norm, 1e-7)
    assert float((mine - theirs).norm()) < 1e-6 * moved


def test_merged_matrix_is_three_matrices():
    start, grads = parameter((24, 8), 0), [matrix((24, 8), step) for step in (1, 2, 3)]
    merged = run([start], [[g] for g in grads], ours(parts=3))[0]
    apart = [run([s], [[g[i * 8 : i * 8 + 8]] for g in grads], ours())[0] for i, s in enumerate(start.split(8))]
    torch.testing.assert_close(merged, torch.cat(apart), rtol=1e-10, atol=1e-10)  # float64, batched or not
    as_one = run([start], [[g] for g in grads], ours(parts=1))[0]
    assert float((merged - as_one).detach().norm()) > 0.1 * float((merged - start).detach().norm())


def test_matrices_batched_by_shape_are_matrices_one_by_one():
    shapes = [(8, 24), (24, 8), (8, 24), (16, 16), (24, 8), (24, 8)]
    start = [parameter(shape, i) for i, shape in enumerate(shapes)]
    grads = [[matrix(shape, 10 * step + i) for i, shape in enumerate(shapes)] for step in (1, 2, 3)]
    together = run(start, grads, ours())
    for i, p in enumerate(start):
        alone = run([p], [[row[i]] for row in grads], ours())[0]
        torch.testing.assert_close(together[i], alone, rtol=1e-10, atol=1e-10)  # float64, batched or not


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 1e38])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("began", [False, True], ids=["first step", "later"])
def test_found_inf_changes_not_one_bit(poison, dtype, began):
    params = [parameter((24, 8), 0, torch.float32), parameter((16, 16), 1, torch.float32)]
    muon = Muon(params, {params[0]: 3, params[1]: 1}, lr=0.05, weight_decay=0.3, dtype=dtype)
    if began:
        for p in params:
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(2))
        muon.step()
    before = [p.detach().clone() for p in params]
    momentum = [muon.state[p]["momentum"].clone() if began else torch.zeros_like(p) for p in params]
    params[0].grad = torch.full((24, 8), poison)
    params[1].grad = torch.randn(16, 16, generator=torch.Generator().manual_seed(3)).index_fill(
        0, torch.tensor([2]), poison
    )
    muon.found_inf = torch.ones(())
    muon.step()
    for p, was, m in zip(params, before, momentum, strict=True):
        assert torch.equal(p.detach().view(torch.int32), was.view(torch.int32))
        assert torch.equal(muon.state[p]["momentum"].view(torch.int32), m.view(torch.int32))


def test_found_inf_zero_is_a_step_like_any_other():
    start, grads = [parameter((24, 8), 0)], [[matrix((24, 8), step)] for step in (1, 2)]

    def gated(params):
        optimizer = ours()(params)
        optimizer.found_inf = torch.zeros(())
        return optimizer

    mine, plain = run(start, grads, gated)[0], run(start, grads, ours())[0]
    torch.testing.assert_close(mine, plain, rtol=1e-6, atol=1e-7)  # the flag is fp32, and so are rates made of it
    assert float((mine - start[0]).detach().norm()) > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_divided_by_the_scale(dtype):
    start, grads = [parameter((24, 8), 0)], [[matrix((24, 8), step)] for step in (1, 2)]

    def scaled(scale):
        def make(params):
            optimizer = Muon(params, {params[0]: 1}, lr=0.05, weight_decay=0.3, dtype=dtype)
            optimizer.grad_scale = torch.tensor(scale)
            return optimizer

        return make

    fourth = [[grad / 4 for grad in row] for row in grads[:1]] + grads[1:]
    first = run(start, grads, scaled(1.0))[0]
    assert torch.equal(first, run(start, [[grad * 8 for grad in row] for row in grads], scaled(8.0))[0])
    assert not torch.equal(first, run(start, fourth, scaled(1.0))[0])  # Muon's step does not scale, its momentum does


@pytest.mark.parametrize("eps", [1e-6, 1e-12])
def test_averages_of_rows_long_unread_become_0_and_no_weight_changes(eps):
    """Denormal numbers else, by which time nothing of them can be told from 0."""
    ends = []
    for tidy in (False, True):
        table = nn.Parameter(matrix((6, 8), 0, torch.float32))
        optimizer = torch.optim.AdamW([table], lr=1e-3, eps=eps, fused=True)
        for step in range(1024):
            table.grad = torch.zeros_like(table)
            table.grad[: 6 if step == 0 else 3] = matrix((6 if step == 0 else 3, 8), step, torch.float32)
            optimizer.step()
            if tidy and step % 64 == 63:
                forget_tiny([optimizer])
        ends.append((table.detach(), optimizer.state[table]))
    (without, unread), (with_it, state) = ends
    average = unread["exp_avg"][3:]
    assert (average != 0).any()
    assert average.abs().max() < torch.finfo(torch.float32).tiny
    assert torch.equal(state["exp_avg"], torch.where(unread["exp_avg"].abs() < 1e-30, 0, unread["exp_avg"]))
    assert state["exp_avg"][:3].all()
    assert state["exp_avg_sq"].all()
    assert not state["exp_avg"][3:].any()
    assert torch.equal(without, with_it)
    state["exp_avg_sq"][:2] = torch.tensor([[9e-37], [2e-36]])
    forget_tiny([optimizer])
    assert state["exp_avg_sq"][:2].any(dim=1).tolist() == [False, True]


def test_muon_leaves_parameters_without_gradient_alone():
    with_grad, without = parameter((8, 8), 0), parameter((8, 8), 1)
    before = without.detach().clone()
    muon = Muon([with_grad, without], {with_grad: 1, without: 1}, lr=0.1, weight_decay=0.5)
    muon.step()  # none has one yet
    with_grad.grad = matrix((8, 8), 2)
    muon.step()
    assert torch.equal(without, before)
    assert without not in muon.state


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (32, 32)], ids=str)
def test_newton_schulz_sets_singular_values_to_one_and_keeps_the_vectors(shape):
    u, _, v = torch.linalg.svd(matrix((3, *shape), 0), full_matrices=False)
    values = torch.linspace(1.0, 0.05, min(shape), dtype=torch.float64)
    for scale in (1e-3, 1.0, 1e4):  # of the gradient, which must not matter
        x = newton_schulz(u * (values * scale) @ v)
        core = u.mT @ x @ v.mT  # diagonal, if the singular vectors are the same
        diagonal = core.diagonal(dim1=-2, dim2=-1)
        # Jordan et al. 2024: the coefficients bring everything above 0.003 of the norm into [0.68, 1.13] or so
        assert 0.6 < float(diagonal.min()) < float(diagonal.max()) < 1.25
        assert float((core - diagonal.diag_embed()).abs().max()) < 1e-10
        torch.testing.assert_close(newton_schulz((u * (values * scale) @ v).mT), x.mT, rtol=0, atol=1e-12)
    assert torch.equal(newton_schulz(torch.zeros(1, *shape)), torch.zeros(1, *shape))


# -- schedules ------------------------------------------------------------------------------------

SCHEDULES = ("linear", "cosine", "wsd")


@pytest.mark.parametrize(
    ("name", "step", "expected"),
    [
        ("linear", 0, 0.1),
        ("linear", 4, 0.5),
        ("linear", 9, 1.0),
        ("linear", 10, 1.0),
        ("linear", 55, 0.5),
        ("linear", 99, 1 / 90),
        ("cosine", 9, 1.0),
        ("cosine", 10, 1.0),
        ("cosine", 40, 0.75),  # a third of the way: (1 + cos 60 degrees) / 2
        ("cosine", 55, 0.5),
        ("cosine", 70, 0.25),
        ("cosine", 99, 0.5 - 0.5 * math.cos(math.pi / 90)),
        ("wsd", 0, 0.1),
        ("wsd", 10, 1.0),
        ("wsd", 60, 1.0),
        ("wsd", 70, 0.5),  # a quarter of the decay: 1 - sqrt(1/4)
        ("wsd", 99, 1 - math.sqrt(39 / 40)),
    ],
)
def test_schedule_at_exact_points(name, step, expected):
    assert lr_fraction(name, step, steps=100, warmup_steps=10, decay_frac=0.4) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (2, 1), (7, 0), (100, 5), (1000, 20), (10, 9)])
def test_schedule_rises_then_falls_within_0_and_1(name, steps, warmup):
    rates = [lr_fraction(name, step, steps, warmup) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[:warmup] == pytest.approx([(step + 1) / warmup for step in range(warmup)], rel=1e-12)
    assert all(a >= b for a, b in zip(rates[warmup:], rates[warmup + 1 :], strict=False))
    if steps - warmup > 50:
        assert rates[-1] < 0.03  # wsd: 1 - sqrt(19 / 20) = 0.025
    assert rates == [lr_fraction(name, step, steps, warmup) for step in range(steps)]  # a pure function


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup_frac", [0.0, 0.05, 0.5, 0.9])  # what train.py allows
def test_schedule_has_no_jump(name, warmup_frac):
    """In 100,000 steps no neighbours differ by more than 1.5 %: 1 - sqrt falls fastest, by 1 / sqrt(decay steps)."""
    steps = 100_000
    warmup = math.ceil(warmup_frac * steps)
    rates = [lr_fraction(name, step, steps, warmup) for step in range(steps)]
    assert max(abs(a - b) for a, b in pairwise(rates)) < 0.015
    assert max(rates) == pytest.approx(1.0, abs=1e-4)


def test_decay_frac_says_where_the_decay_begins():
    rates = [lr_fraction("wsd", step, 100, 0, decay_frac=0.2) for step in range(100)]
    assert rates[:81] == [1.0] * 81
    assert rates[85] == pytest.approx(0.5, rel=1e-12)

"""Losses against torch's in float64, however they are cut up."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from minilm.batch import IGNORE, Batch, Tokens
from minilm.machine.runtime import Runtime
from minilm.train import losses
from minilm.train.losses import cross_entropy_sum, language_model_loss, language_model_score, linear_cross_entropy_sum

N, D, V = 11, 6, 9
EXACT = {"rtol": 1e-12, "atol": 1e-12}  # float64 sums of some hundred terms near 1, in another order


def problem(n=N, ignored="some", dtype=torch.float64, d=D, v=V):
    """x, weight, bias that want gradients, and targets of which none, a third or all are IGNORE."""
    generator = torch.Generator().manual_seed(n)
    x, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in ((n, d), (v, d), (v,))
    )
    target = torch.randint(v, (n,), generator=generator)
    where = {"none": 0, "some": 3, "all": 1}[ignored]
    if where:
        target[::where] = IGNORE
    return x, weight, bias, target


def gradients(nats, leaves, cotangent=0.37):
    """d(cotangent * nats) / d(leaf): the factor is what the step's division makes of it."""
    return torch.autograd.grad(nats * cotangent, leaves)


@pytest.mark.parametrize("ignored", ["none", "some", "all"])
@pytest.mark.parametrize("chunk", [1, 4, N, 512, None])
@pytest.mark.parametrize("n", [N, 1, 0])
def test_linear_cross_entropy_is_torchs(n, chunk, ignored):
    *leaves, target = problem(n, ignored)
    nats, count = linear_cross_entropy_sum(*leaves, target, chunk)
    reference = F.cross_entropy(F.linear(*leaves), target, ignore_index=IGNORE, reduction="sum")
    assert int(count) == int((target != IGNORE).sum())
    torch.testing.assert_close(nats, reference, **EXACT)
    for own, theirs in zip(gradients(nats, leaves), gradients(reference, leaves), strict=True):
        torch.testing.assert_close(own, theirs, **EXACT)


@pytest.mark.parametrize("ignored", ["none", "some", "all"])
@pytest.mark.parametrize("n", [N, 0])
def test_cross_entropy_is_torchs(n, ignored):
    logits, _, _, target = problem(n, ignored, d=V)
    nats, count = cross_entropy_sum(logits, target)
    reference = F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="sum")
    assert int(count) == int((target != IGNORE).sum())
    torch.testing.assert_close(nats, reference, **EXACT)
    torch.testing.assert_close(gradients(nats, [logits])[0], gradients(reference, [logits])[0], **EXACT)


def test_cross_entropy_reduces_16_bit_logits_in_fp32():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4000, 7, generator=generator).bfloat16()
    target = torch.randint(7, (4000,), generator=generator)
    nats, _ = cross_entropy_sum(logits, target)
    reference = F.cross_entropy(logits.double(), target, reduction="sum")
    assert nats.dtype == torch.float32
    torch.testing.assert_close(nats.double(), reference, rtol=1e-6, atol=0)  # fp32; a bf16 sum is off by 1e-2


@pytest.mark.parametrize("chunk", [3, None])
def test_gradient_is_the_derivative(chunk):
    *leaves, target = problem(5)
    torch.autograd.gradcheck(lambda *a: linear_cross_entropy_sum(*a, target, chunk)[0], leaves)


@pytest.mark.parametrize("sizes", [[1, 10], [4, 4, 3], [10, 1], [1] * 11, [5, 0, 6]], ids=str)
@pytest.mark.parametrize("kind", ["linear", "plain"])
def test_sum_and_count_do_not_depend_on_the_split(kind, sizes):
    """The parts have unequal counts (0 among them), so a mean of means would be another number."""
    x, weight, bias, target = problem(d=V)

    def loss(x, target):
        linear = kind == "linear"
        return linear_cross_entropy_sum(x, weight, bias, target, 2) if linear else cross_entropy_sum(x, target)

    def step(pairs):
        results = [loss(*pair) for pair in pairs]
        nats, count = (sum(each) for each in zip(*results, strict=True))
        leaves = [x, weight, bias] if kind == "linear" else [x]
        return nats, count, torch.autograd.grad(nats / count, leaves)

    whole = step([(x, target)])
    parts = step(zip(x.split(sizes), target.split(sizes), strict=True))
    assert int(whole[1]) == int(parts[1]) == 7
    torch.testing.assert_close(whole[0], parts[0], **EXACT)
    for own, theirs in zip(whole[2], parts[2], strict=True):
        torch.testing.assert_close(own, theirs, **EXACT)


def test_only_one_chunk_of_logits_exists_at_a_time():
    """Forward and backward make no tensor beyond chunk x V, where all logits would be 8 times that."""
    largest = 0

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            made = [each for each in pytree.tree_leaves(out) if isinstance(each, torch.Tensor)]
            largest = max([largest, *(each.numel() for each in made)])
            return out

    *leaves, target = problem(64, dtype=torch.float32, d=4, v=500)
    with Sizes():
        linear_cross_entropy_sum(*leaves, target, chunk=8)[0].backward()
    assert largest == 8 * 500


@pytest.mark.parametrize("chunk", [5, None])
def test_bf16_autocast_stays_within_bf16s_bounds(chunk):
    *leaves, target = problem(40, dtype=torch.float32, d=32, v=50)
    exact, _ = linear_cross_entropy_sum(*leaves, target, chunk)
    with torch.autocast("cpu", torch.bfloat16):
        rough, count = linear_cross_entropy_sum(*leaves, target, chunk)
    assert rough.dtype == torch.float32
    # x, W and the logits are rounded to 2^-9: logits of size 6 move by 0.03, a target's nats by as much at most
    assert 0 < abs(float(rough.detach() - exact.detach())) < 0.03 * int(count)
    for leaf, own, theirs in zip(leaves, gradients(rough, leaves), gradients(exact, leaves), strict=True):
        assert own.dtype == leaf.dtype
        assert float((own - theirs).norm() / theirs.norm()) < 2**-6  # p moves by 0.03 p; it averages out


@pytest.mark.parametrize(("dtype", "scale"), [(torch.bfloat16, 1 / 3), (torch.float16, 2.0**17)], ids=["bf16", "fp16"])
def test_what_the_sum_is_multiplied_by_is_not_rounded_to_16_bits(dtype, scale):
    """1/count in bf16 is off by up to 0.4 %, for all of the gradient alike; a loss scale of 2^17 is inf in fp16."""
    *leaves, target = problem(40, dtype=torch.float32, d=32, v=50)
    leaves = [(leaf.detach() / 16).requires_grad_() for leaf in leaves]  # so that 2^17 times a gradient fits fp16
    with torch.autocast("cpu", dtype):
        nats, _ = linear_cross_entropy_sum(*leaves, target)
    once = torch.autograd.grad(nats, leaves, retain_graph=True)
    scaled = torch.autograd.grad(nats * scale, leaves)
    for own, theirs in zip(scaled, once, strict=True):
        # rounding of the elements averages out over their norm, 2^-9 / sqrt(1280) = 5e-5; a common factor does not
        assert float(own.norm() / (theirs.norm() * scale)) == pytest.approx(1, abs=3e-4)


@pytest.mark.parametrize("architecture", ["bert", "modern"])
@pytest.mark.parametrize("chunk", [4, 512])
def test_language_model_loss_and_score_by_hand(tiny, masked, monkeypatch, architecture, chunk):
    monkeypatch.setitem(losses.CHUNK, "cpu", chunk)
    model, batch = tiny(architecture, dtype=torch.float64).eval(), masked([2, 6, 0, 3])
    logits = model(batch.tokens).flatten(0, 1).detach()  # of every token, of which `where` picks
    hand, hits, targets = 0.0, 0, 0
    best = logits[int(batch.where[0])].argmax()  # make one target a hit for sure
    batch = Batch(batch.tokens, batch.where, torch.cat((best[None], batch.target[1:])), batch.count, batch.size)
    for at, target in zip(batch.where.tolist(), batch.target.tolist(), strict=True):
        if target == IGNORE:
            continue
        hand -= float(logits[at].log_softmax(0)[target])
        hits += int(logits[at].argmax()) == target
        targets += 1
    nats, count = language_model_loss(model, batch)
    score = language_model_score(model, batch)
    assert int(count) == targets == batch.count == 11
    assert float(nats.detach()) == pytest.approx(hand, rel=1e-12)
    assert float(score[0]) == pytest.approx(hand, rel=1e-12)
    assert (int(score[1]), int(score[2])) == (hits, 11)
    assert 1 <= hits < 11
    assert not score[0].requires_grad


@pytest.mark.parametrize("layout", ["full", "packed"])
@pytest.mark.parametrize("reach", ["bidirectional", "causal", "prefix"])
@pytest.mark.parametrize("architecture", ["bert", "modern"])
def test_forward_and_loss_compile_as_one_graph(tiny, tokens_of, packed, architecture, reach, layout):
    """No graph break in any mode or layout, and the graph's loss and gradients are the eager ones."""
    torch._dynamo.reset()
    model = tiny(architecture, backend="explicit" if reach == "causal" else "sdpa")
    backend = "aot_eager" if (layout, reach) == ("packed", "prefix") else "eager"  # aot also traces the backward
    compiled = torch.compile(language_model_loss, backend=backend, fullgraph=True)
    ids = torch.randint(5, 61, (3, 16), generator=torch.Generator().manual_seed(0))
    tokens = tokens_of(ids, reach, packed[:, :16] if layout == "packed" else None)
    where = torch.tensor([1, 5, 14, 17, 30, 33, 47])
    batch = Batch(tokens, where, torch.tensor([8, IGNORE, 9, 20, 60, IGNORE, 5]), 5, 48)
    leaves = dict(model.named_parameters())
    found = []
    for loss in (language_model_loss, compiled):
        nats, count = loss(model, batch)
        assert int(count) == 5
        grads = torch.autograd.grad(nats / 5, leaves.values(), allow_unused=True)
        found.append((nats.detach(), dict(zip(leaves, grads, strict=True))))
    # the same fp32 operators, some decomposed: a few roundings of 6e-8 over two layers
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_packings_of_other_documents_are_one_graph(tiny, graphs, monkeypatch):
    """Of backend varlen as on a GPU, whose kernel takes the documents as numbers; here nothing is computed."""
    monkeypatch.setattr("minilm.model.attention.has_varlen_kernel", lambda *of: True)
    model = tiny("modern", backend="varlen").to("meta")
    compiled = Runtime.choose("cpu").compiled(lambda model, batch: model.encoder(batch.tokens))
    for documents in (1, 2, 3, 5, 7, 4, 6):
        doc = (torch.arange(16) * documents // 16).expand(3, 16)
        tokens = Tokens.packed(torch.zeros(3, 16).long(), doc.contiguous())
        assert len(tokens.cu_seqlens) == 3 * documents + 1
        assert compiled(model, SimpleNamespace(tokens=tokens.to("meta"))).shape == (3, 16, 32)
    assert len(graphs) == 1 + 1  # with a trial


# -- pairs ----------------------------------------------------------------------------------------


def full_pairs(pair_rows, counts, first=0):
    """Rows that use every slot, so that each holds as many targets; 16 tokens, without padding."""
    batch = pair_rows(counts, first)
    ids, types = batch.tokens.input_ids, batch.tokens.token_type_ids
    target = ids.flatten()[batch.where]
    return Batch(Tokens.full(ids, token_type_ids=types), batch.where, target, len(target), 0, batch.pair_label)


def test_loss_with_pairs_is_the_sum_of_both_means(tiny, pair_rows):
    """Devlin et al. 2018, app. A.2: mean masked LM likelihood plus mean next sentence likelihood; to the gradient."""
    model = tiny("bert", dtype=torch.float64, pairs=True)
    batch = full_pairs(pair_rows, [6] * 5)
    leaves = dict(model.named_parameters())
    nats, count = language_model_loss(model, batch)
    logits = model(batch.tokens, batch.where)
    pair_logits = model.pair(model.encoder(batch.tokens), batch.tokens)
    assert pair_logits.shape == (5, 2)
    reference = F.cross_entropy(logits, batch.target) + F.cross_entropy(pair_logits, batch.pair_label)
    torch.testing.assert_close(nats / count, reference, **EXACT)
    own = torch.autograd.grad(nats / count, leaves.values())
    theirs = torch.autograd.grad(reference, leaves.values())
    for name, a, b in zip(leaves, own, theirs, strict=True):
        torch.testing.assert_close(a, b, **EXACT, msg=name)
        assert a.any(), name  # the head of pairs is trained, too


@pytest.mark.parametrize("sizes", [[1] * 8, [2, 5, 1]], ids=str)
def test_loss_with_pairs_does_not_depend_on_the_split(tiny, pair_rows, sizes):
    """With rows of unequal targets, of which one has none: a mean of means would be another number."""
    model, counts = tiny("bert", dtype=torch.float64, pairs=True), [2, 6, 0, 3, 5, 1, 4, 6]
    whole = language_model_loss(model, pair_rows(counts))
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    cut = [pair_rows(counts[at : at + n], at) for at, n in zip(starts, sizes, strict=True)]
    assert len({part.count / len(part.pair_label) for part in cut}) > 1
    parts = [language_model_loss(model, part) for part in cut]
    torch.testing.assert_close(sum(nats for nats, _ in parts), whole[0], **EXACT)
    assert sum(int(count) for _, count in parts) == int(whole[1])
    without = pair_rows(counts)
    without = language_model_loss(model, Batch(*(getattr(without, f) for f in ("tokens", "where", "target")), 0, 0))
    assert float((whole[0] - without[0]).detach()) > 1  # eight pairs, each as much as six targets


def test_pairs_are_scored_beside_the_targets(tiny, pair_rows):
    """Held-out loss stays that of the targets alone, which runs without pairs have, too."""
    model, batch = tiny("bert", dtype=torch.float64, pairs=True).eval(), pair_rows([2, 6, 0, 3, 5])
    nats, hits, targets, right, pairs = language_model_score(model, batch)
    logits, pair_logits = model(batch.tokens, batch.where), model.pair(model.encoder(batch.tokens), batch.tokens)
    torch.testing.assert_close(nats, cross_entropy_sum(logits.detach(), batch.target)[0], **EXACT)
    assert (int(hits), int(targets)) == (int((logits.argmax(1) == batch.target).sum()), batch.count)
    told = [int(row.argmax()) == int(label) for row, label in zip(pair_logits, batch.pair_label, strict=True)]
    assert (int(right), pairs) == (sum(told), 5)
    with torch.no_grad():
        for always in (0, 1):
            model.pair.classifier.bias.copy_(torch.tensor([1e3, 0.0] if always == 0 else [0.0, 1e3]))
            assert int(language_model_score(model, batch)[3]) == int((batch.pair_label == always).sum())


def test_a_pair_without_a_label_is_no_pair(tiny, pair_rows):
    """Its words count; neither the loss nor the score knows of a pair there."""
    model, batch = tiny("bert", dtype=torch.float64, pairs=True).eval(), pair_rows([2, 6, 0, 3, 5])
    label = batch.pair_label.clone()
    label[2:4] = IGNORE
    some, none = replace(batch, pair_label=label), replace(batch, pair_label=torch.full_like(label, IGNORE))
    without, _ = language_model_loss(model, replace(batch, pair_label=None))
    torch.testing.assert_close(language_model_loss(model, none)[0], without, rtol=1e-12, atol=0)
    assert [int(each) for each in language_model_score(model, none)[3:]] == [0, 0]
    pair_logits = model.pair(model.encoder(batch.tokens), batch.tokens)
    nats = F.cross_entropy(pair_logits, label, ignore_index=IGNORE, reduction="sum") * len(batch.where) / len(label)
    torch.testing.assert_close(language_model_loss(model, some)[0], without + nats, rtol=1e-12, atol=0)
    right, pairs = language_model_score(model, some)[3:]
    assert (int(right), int(pairs)) == (int((pair_logits.argmax(dim=1) == label).sum()), 3)


def test_without_pairs_nothing_is_told(tiny, masked):
    score = language_model_score(tiny("bert", pairs=True), masked([2, 6]))
    assert (int(score[3]), score[4]) == (0, 0)


def test_forward_and_loss_of_pairs_compile_as_one_graph(tiny, pair_rows):
    torch._dynamo.reset()
    model, batch = tiny("bert", pairs=True), pair_rows([2, 6, 0, 3])
    compiled = torch.compile(language_model_loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(model, batch), language_model_loss(model, batch), rtol=1e-5, atol=1e-5)


def test_a_half_precision_head_of_pairs_is_reduced_in_fp32(tiny, pair_rows):
    model, batch = tiny("bert", pairs=True), pair_rows([2, 6, 0, 3])
    exact, _ = language_model_loss(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        rough, _ = language_model_loss(model, batch)
    assert rough.dtype == torch.float32
    assert float(rough.detach()) == pytest.approx(float(exact.detach()), rel=2e-2)

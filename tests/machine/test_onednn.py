"""Products by oneDNN are torch's, and nothing else changes by them."""

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.overrides import _get_current_function_mode
from torch.utils.flop_counter import FlopCounterMode

from minilm.batch import Tokens
from minilm.machine import onednn
from minilm.machine.onednn import HAS_ONEDNN, OneDNN
from minilm.machine.runtime import Runtime
from minilm.machine.side_by_side import side_by_side
from minilm.model.encoder import Encoder, bert_config

pytestmark = pytest.mark.skipif(not HAS_ONEDNN, reason="this build has no oneDNN")
SHAPES = {"rows": (7, 64), "one row": (1, 64), "batch": (3, 5, 64), "heads": (2, 3, 5, 64)}


@pytest.fixture
def called(monkeypatch):
    """The shapes that oneDNN has been given."""
    shapes, linear = [], onednn._linear
    monkeypatch.setattr(onednn, "_linear", lambda *tensors: shapes.append(tensors[0].shape) or linear(*tensors))
    return shapes


def made(shape, bias=True):
    torch.manual_seed(0)
    weight = torch.randn(40, shape[-1])[3:36]  # a part, as attention takes of its merged matrix
    tensors = [torch.randn(shape), weight, torch.randn(33)][: 3 if bias else 2]
    return [own.requires_grad_() for own in tensors]


def computed(tensors):
    """The product, its gradients, and gradients of these."""
    y = F.linear(*tensors)
    first = torch.autograd.grad(y.sin().sum(), tensors, create_graph=True)
    return [y, *first, *torch.autograd.grad(sum(own.square().sum() for own in first), tensors[:2])]


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_values_and_gradients(shape, bias, called):
    tensors = made(shape, bias)
    expected = computed(tensors)
    with OneDNN():
        got = computed(tensors)
    assert called[0] == shape
    for ours, reference in zip(got, expected, strict=True):
        assert (ours - reference).abs().max() <= 1e-5 * reference.abs().max()
    with OneDNN(), torch.no_grad():
        assert torch.equal(F.linear(*tensors), got[0])


@pytest.mark.skipif(not onednn.has_bf16(), reason="this processor has no bf16")
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_in_bf16(shape, bias, called):
    """As torch's own, each as far from float64 as bf16 rounds; first gradients, too."""
    tensors = [own.detach().bfloat16().requires_grad_() for own in made(shape, bias)]
    exact = [own.detach().double().requires_grad_() for own in tensors]
    with OneDNN():
        ours = F.linear(*tensors)
        gradients = torch.autograd.grad(ours.sum(), tensors)
    assert called[0] == shape
    y = F.linear(*exact)
    for got, expected in zip((ours, *gradients), (y, *torch.autograd.grad(y.sum(), exact)), strict=True):
        assert got.dtype == torch.bfloat16
        assert (got - expected).abs().max() <= 2**-8 * expected.abs().max()


def test_in_bf16_on_a_processor_without_it(called, monkeypatch):
    monkeypatch.setattr(onednn, "has_bf16", lambda: False)
    tensors = [own.bfloat16() for own in made((7, 64))]
    expected = F.linear(*tensors)
    with OneDNN():
        assert torch.equal(F.linear(*tensors), expected)
    assert not called


def test_only_what_is_asked_for_has_a_gradient():
    x, weight, bias = made((7, 64))
    with OneDNN():
        F.linear(x.detach(), weight, bias.detach()).sum().backward()
    assert weight.grad is not None
    assert x.grad is None
    assert bias.grad is None


def per_sample():
    x, weight, bias = made((3, 2, 64))
    return torch.func.vmap(torch.func.grad(lambda row: F.linear(row, weight, bias).sin().sum()))(x)


def traced():
    x, weight, bias = (own.detach() for own in made((7, 64)))
    return torch.jit.trace(lambda x: F.linear(x, weight, bias), x, check_trace=False)(x)


def compiled():
    x, weight, bias = made((7, 64))
    return torch.compile(lambda x: F.linear(x, weight, bias), backend="aot_eager", fullgraph=True)(x)


def of_bias(bias):
    return lambda: F.linear(*made((7, 64), bias=False), bias)


def with_tangent():
    x, weight, bias = (own.detach() for own in made((7, 64)))
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(F.linear(forward_ad.make_dual(x, x + 1), weight, bias)).tangent


class Marked(torch.Tensor):
    """A kind of one's own."""


AS_EVER = {
    "a bias with strides": of_bias(torch.arange(66.0)[::2]),
    "one bias for all": of_bias(torch.ones(1).expand(33)),
    "a bias that broadcasts": of_bias(torch.arange(7.0)[:, None].expand(7, 33)),
    "a matrix of no rows": lambda: F.linear(made((7, 64))[0], torch.ones(0, 64)),
    "a vector for a matrix": lambda: F.linear(made((7, 64))[0], torch.ones(64)),
    "a kind of one's own": lambda: F.linear(made((7, 64))[0].detach().as_subclass(Marked), made((7, 64))[1]).detach(),
    "a tangent": with_tangent,
    "float64": lambda: F.linear(*(own.double() for own in made((7, 64)))),
    "fp16": lambda: F.linear(*(own.half() for own in made((7, 64)))),
    "one vector": lambda: F.linear(*made((64,))),
    "no rows": lambda: F.linear(*made((0, 64))),
    "by name": lambda: F.linear(input=made((7, 64))[0], weight=made((7, 64))[1]),
    "on no device": lambda: torch.zeros(F.linear(*(own.to("meta") for own in made((7, 64)))).shape),
    "per sample": per_sample,
    "traced": traced,
    "compiled": compiled,
}


@pytest.mark.parametrize("what", AS_EVER)
def test_all_else_is_as_ever(what, called):
    expected = AS_EVER[what]()
    with OneDNN():
        assert torch.equal(AS_EVER[what](), expected)
    assert not called


def test_it_can_be_turned_off(called):
    tensors = made((7, 64))
    expected = F.linear(*tensors)
    with OneDNN(), torch.backends.mkldnn.flags(enabled=False):
        assert torch.equal(F.linear(*tensors), expected)
    assert not called


def test_autocast_goes_before_it():
    with OneDNN(), torch.autocast("cpu", torch.bfloat16):
        assert F.linear(*made((7, 64))).dtype == torch.bfloat16


@pytest.mark.parametrize("learns", [0, 1], ids=["x", "weight"])
def test_only_what_a_gradient_needs_is_kept(learns):
    """So what is not may be changed in place, and takes no memory."""
    tensors = [own.requires_grad_(number == learns) for number, own in enumerate(map(Tensor.detach, made((7, 64))))]
    kept, needed = [], tensors[1 - learns].clone()
    with OneDNN(), torch.autograd.graph.saved_tensors_hooks(lambda own: kept.append(own) or own, lambda own: own):
        y = F.linear(*tensors)
    assert [own.data_ptr() for own in kept] == [tensors[1 - learns].data_ptr()]
    with torch.no_grad():
        tensors[learns].add_(1)
    y.sum().backward()
    expected = torch.ones(7, 33) @ needed if learns == 0 else torch.ones(33, 7) @ needed
    torch.testing.assert_close(tensors[learns].grad, expected)


def test_modes_beside_it_do_not_hide_it(called):
    with OneDNN() as mode, torch.device("cpu"):
        F.linear(*made((7, 64)))
        assert onednn.within() is mode
    with torch.device("cpu"), OneDNN():
        F.linear(*made((7, 64)))
    assert len(called) == 2


def test_a_wrong_shape_is_told_as_torch_tells_it():
    x, weight, bias = made((7, 64))
    with OneDNN(), pytest.raises(RuntimeError, match="cannot be multiplied"):
        F.linear(x[:, :5], weight, bias)


def test_its_operations_are_counted():
    counts = []
    for mode in (OneDNN(), torch.enable_grad()):
        with mode, FlopCounterMode(display=False) as counter:
            F.linear(*made((3, 5, 64))).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] == 3 * 2 * 15 * 64 * 33


@pytest.mark.parametrize(
    ("lines", "capability", "expected"),
    [
        ("vendor_id\t: AuthenticAMD\n", "AVX512", True),
        ("vendor_id\t: AuthenticAMD\n", "AVX2", False),
        ("vendor_id\t: GenuineIntel\n", "AVX512", False),
        (None, "AVX512", False),
    ],
)
def test_for_whom_it_is_faster(lines, capability, expected, tmp_path, monkeypatch):
    if lines is not None:
        (tmp_path / "cpuinfo").write_text(lines)
    monkeypatch.setattr(onednn, "CPU", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert onednn.is_faster.__wrapped__() == expected


def test_on_a_gpu_there_is_none(monkeypatch):
    monkeypatch.setattr(onednn, "is_faster", lambda: True)
    assert isinstance(onednn.chosen(torch.device("cpu")), OneDNN)
    assert not isinstance(onednn.chosen(torch.device("cuda")), OneDNN)


@pytest.mark.parametrize("has", [True, False], ids=["has bf16", "has none"])
def test_for_which_weights_it_is_chosen(has, monkeypatch):
    """Those in bf16 whoever made the processor, and in fp32 where it is faster."""
    monkeypatch.setattr(onednn, "is_faster", lambda: not has)
    monkeypatch.setattr(onednn, "has_bf16", lambda: has)
    own = {torch.float32: not has, torch.bfloat16: has, torch.float16: False, torch.float64: False}
    for dtype, expected in own.items():
        assert isinstance(onednn.chosen(torch.device("cpu"), dtype), OneDNN) == expected
        assert not isinstance(onednn.chosen(torch.device("cuda"), dtype), OneDNN)


def test_a_runtime_in_fp32_has_it_and_its_threads_too(monkeypatch):
    monkeypatch.setattr(onednn, "is_faster", lambda: True)
    before = torch.get_num_threads()
    try:
        for precision, expected in (("fp32", True), ("bf16", False)):
            runtime = Runtime.choose("cpu", precision, 2)
            with runtime.autocast():
                has = [*side_by_side(lambda _: _get_current_function_mode() is not None, range(4), runtime.device)]
            assert has == [expected] * 4
    finally:
        torch.set_num_threads(before)


def test_what_is_computed_again_is_computed_as_before(called):
    """Of gradient checkpointing; its second pass is part of the backward one."""
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        encoder = Encoder(bert_config(31, 16, 2, 2, dropout=0.0)).train()
        encoder.gradient_checkpointing = checkpointing
        called.clear()
        with OneDNN():
            states = encoder(Tokens.full(torch.arange(10).view(2, 5)))
        states.square().sum().backward()
        gradients.append({name: own.grad for name, own in encoder.named_parameters()})
        assert len(called) == 2 * 4 * (1 + checkpointing) + 8  # forward, again, and gradients of what they read
    for name, own in gradients[0].items():
        assert torch.equal(own, gradients[1][name]), name

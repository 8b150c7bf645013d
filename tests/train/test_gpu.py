"""What only a GPU can show; `pytest -m gpu` runs these alone, and each is skipped where there is none."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics
from unittest.mock import Mock

import pytest
import torch
from torch.nn.attention.varlen import varlen_attn

from minilm.batch import IGNORE, Batch, Tokens
from minilm.data.objectives import MaskedLM, PrefixLM
from minilm.data.packing import Taken
from minilm.data.tokenizer import Tokenizer
from minilm.machine.ranks import Applied
from minilm.machine.runtime import Runtime
from minilm.model.attention import fastest_backend, has_varlen_kernel
from minilm.train.graphs import step_of
from minilm.train.loop import evaluate, seed_step, train_step
from minilm.train.losses import language_model_loss, language_model_score
from minilm.train.optim import keep_learning_rate_on, make_optimizers, set_learning_rate

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")]
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def gpu():
    """gpu(precision): the Runtime that `train.py --device cuda` makes."""
    return lambda precision="auto": Runtime.choose("cuda", precision)


def skip_if_not_compiled(precision, compiled):
    """torch's compiler makes no bf16 for GPUs from before 2020."""
    if compiled and precision == "bf16" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no bf16 of its own")


def labelled(tokens):
    """A batch with seven slots, two of them empty."""
    where = torch.tensor([1, 5, 14, 17, 30, 33, 47])
    return Batch(tokens, where, torch.tensor([8, IGNORE, 9, 20, 60, IGNORE, 5]), 5, 48)


@pytest.mark.parametrize("layout", ["full", "padded", "packed"])
@pytest.mark.parametrize("reach", ["bidirectional", "causal", "prefix"])
@pytest.mark.parametrize("architecture", ["bert", "modern"])
def test_the_gpu_computes_what_the_cpu_does(tiny, ids, masks, packed, tokens_of, gpu, architecture, reach, layout):
    """Loss and every gradient in float64, where the two differ in nothing but the order of sums."""
    tokens = tokens_of(
        ids[:, :16] % 61, reach,
        packed[:, :16] if layout == "packed" else None, masks["right"][:, :16] if layout == "padded" else None,
    )  # fmt: skip
    batch, found = labelled(tokens), []
    for device in (torch.device("cpu"), gpu("fp32").device):
        model = tiny(architecture, dtype=torch.float64).to(device)
        nats, _ = language_model_loss(model, batch.to(device))
        nats.backward()
        found.append({"loss": nats.cpu()} | {name: p.grad.cpu() for name, p in model.named_parameters()})
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("objective", ["mlm", "clm"])
@pytest.mark.parametrize("architecture", ["bert", "modern"])
def test_bf16_is_as_close_as_the_reference_is(pair, ids, tokens_of, gpu, architecture, objective):
    """Under autocast our logits lie at most twice as far from float64 as those of transformers."""
    device = gpu("bf16").device
    both = pair(architecture, objective, "wild", dtype=torch.float32)
    tokens = tokens_of(ids, "causal" if objective == "clm" else "bidirectional")
    exact = copy.deepcopy(both.ours).double()(tokens).detach()
    ours, theirs = both.ours.to(device), both.theirs.to(device)
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        mine, reference = ours(tokens.to(device)), theirs(ids.to(device)).logits
    distance = [float((logits.double().cpu() - exact).pow(2).mean().sqrt()) for logits in (mine, reference)]
    assert distance[0] <= 2 * distance[1] < 0.2 * float(exact.std())


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("reach", ["bidirectional", "causal", "prefix"])
@pytest.mark.parametrize("architecture", ["bert", "modern"])
def test_documents_by_themselves_are_those_behind_a_mask(
    tiny, ids, packed, tokens_of, gpu, architecture, reach, precision, monkeypatch
):
    """Loss and gradients of backend varlen, whose kernel is there in half precision alone, are those of sdpa."""
    runtime, found = gpu(precision), []
    batch = labelled(tokens_of(ids[:, :16] % 61, reach, packed[:, :16])).to(runtime.device)
    calls = Mock(wraps=varlen_attn)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", calls)
    for backend in ("sdpa", "varlen"):
        model = tiny(architecture, backend=backend).to(runtime.device)
        with runtime.autocast():
            nats, _ = language_model_loss(model, batch)
        found.append([nats.detach(), *torch.autograd.grad(nats, list(model.parameters()))])
    assert calls.called == (
        has_varlen_kernel(runtime.device, runtime.dtype, model.cfg.head_width) and reach != "prefix"
    )
    near = {"fp32": 5e-3, "fp16": 1e-2, "bf16": 5e-2}[precision]  # of the largest; fp32 is TF32, which is 7e-4 off
    for mine, reference in zip(*found[::-1], strict=True):
        assert (mine - reference).abs().max() <= near * reference.abs().max().clamp(min=1e-3)


@pytest.mark.parametrize("layout", ["full", "packed"])
@pytest.mark.parametrize("reach", ["bidirectional", "causal", "prefix"])
@pytest.mark.parametrize("architecture", ["bert", "modern"])
def test_compiled_is_eager(tiny, ids, packed, tokens_of, gpu, architecture, reach, layout):
    """One graph, by inductor; in float64, for in fp32 it fuses and rounds elsewhere."""
    torch._dynamo.reset()
    device = gpu("fp32").device
    model = tiny(architecture, dtype=torch.float64).to(device)
    batch = labelled(tokens_of(ids[:, :16] % 61, reach, packed[:, :16] if layout == "packed" else None)).to(device)
    found = []
    for loss in (language_model_loss, torch.compile(language_model_loss, fullgraph=True)):
        nats, _ = loss(model, batch)
        grads = torch.autograd.grad(nats, list(model.parameters()))
        found.append([nats.detach(), *grads])
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("architecture", ["bert", "modern"])
@pytest.mark.parametrize(
    ("name", "precision"), [("adamw", "fp16"), ("muon", "fp16"), ("muon", "bf16"), ("adamw", "fp32")]
)
def test_it_learns_at_every_precision_without_waiting_for_the_device(
    tiny, masked, gpu, monkeypatch, name, precision, architecture, compiled
):
    """Eight rows by heart; and no step asks the device anything, which CUDA's debug mode would make an error."""
    runtime = gpu(precision)
    skip_if_not_compiled(precision, compiled)
    torch._dynamo.reset()
    loss = runtime.compiled(language_model_loss) if compiled else language_model_loss
    model = tiny(architecture, dropout=0.0).to(runtime.device)
    batch = masked([6, 5, 6, 4, 6, 6, 3, 6]).pin_memory()
    optimizers = make_optimizers(model, name, lr=1e-2, weight_decay=0.0, muon_dtype=runtime.muon_dtype)

    def train(steps):
        for _ in range(steps):
            train_step(Applied(model), loss, optimizers, [batch], runtime, 1.0)

    train(60)  # until kernels are loaded, state is made and fp16 has found its scale
    torch.cuda.set_sync_debug_mode("error")
    try:
        train(60)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    score = evaluate(Applied(model), language_model_score, [batch], runtime)
    assert score.loss < 0.3
    assert score.accuracy > 0.95
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(("compiled", "dropout"), [(False, 0.1), (False, 0.0), (True, 0.0)])
@pytest.mark.parametrize(
    ("architecture", "name", "precision"),
    [("bert", "adamw", "fp32"), ("bert", "adamw", "bf16"), ("modern", "muon", "bf16"), ("modern", "adamw", "fp16")],
)
def test_replayed_steps_are_the_steps(tiny, masked, gpu, architecture, name, precision, compiled, dropout):
    """With dropout (the compiler has draws of its own), other rates and counts each time, on packed rows, too; and no
    replay asks the device anything."""
    found = []
    skip_if_not_compiled(precision, compiled)
    doc = torch.arange(16).expand(3, 16) // 7
    counts = [[2, 6, 0, 3], [5, 1, 4, 6], [1, 1, 1, 1], [6, 0, 0, 0], [6, 5, 6, 4]]
    steps = [[masked(each, first)] for first, each in enumerate(counts)] * 4
    ids = torch.randint(5, 61, (20, 3, 16), generator=torch.Generator().manual_seed(0))
    steps += [[labelled(Tokens.packed(each, doc)).in_few_sizes()] for each in ids]
    for graphed in (False, True):
        torch._dynamo.reset()
        runtime = gpu(precision)  # with a GradScaler of its own
        loss = runtime.compiled(language_model_loss) if compiled else language_model_loss
        model = tiny(architecture, dropout=dropout).to(runtime.device).train()
        if not model.cfg.attention_dropout:
            model.encoder.backend = fastest_backend(runtime.device, runtime.dtype, 16, 0.0, model.cfg.head_width)
        optimizers = make_optimizers(model, name, lr=1e-3, weight_decay=0.1, muon_dtype=runtime.muon_dtype)
        take_step, outcomes = step_of(runtime, graphed), []
        for number, step in enumerate(steps):
            there = [micro.pin_memory() for micro in step]
            if number % 20 > 2:
                torch.cuda.set_sync_debug_mode("error")
            try:
                if not graphed:
                    keep_learning_rate_on(runtime.device, optimizers)  # fp32, as graphs read it
                set_learning_rate(optimizers, 1 - number / len(steps))
                seed_step(0, number, 0)
                outcomes.append(take_step(Applied(model), loss, optimizers, there, runtime, 1.0))
            finally:
                torch.cuda.set_sync_debug_mode("default")
        found.append(torch.tensor([[float(each) for each in outcome] for outcome in outcomes]))
    assert len(take_step.of_shape) == 2
    assert all(take_step.of_shape.values())
    near = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 5e-2}[precision]
    is_finite = found[0].isfinite().all(1) & found[1].isfinite().all(1)  # fp16 looks for its scale at first
    assert is_finite.sum() >= 30
    torch.testing.assert_close(found[0][is_finite], found[1][is_finite], rtol=near, atol=near)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_steps_are_replayed_on_another_gpu_than_the_first(tiny, masked, bits):
    runtime = Runtime.choose("cuda:1", "fp32")
    model = tiny("bert").to(runtime.device)
    optimizers, take_step = make_optimizers(model, "adamw", lr=1e-2, weight_decay=0.0), step_of(runtime, True)
    before = bits.of(model)
    for _ in range(6):
        take_step(Applied(model), language_model_loss, optimizers, [masked([6, 5])], runtime, 1.0)
        now = bits.of(model)
        assert all(not torch.equal(before[name], now[name]) for name in now if name.endswith("weight"))
        before = now


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_a_bad_step_changes_nothing(tiny, masked, gpu, bits, precision):
    runtime = gpu(precision)
    model = tiny("modern").to(runtime.device)
    optimizers = make_optimizers(model, "muon", lr=1e-2, weight_decay=0.1, muon_dtype=runtime.muon_dtype)
    for _ in range(30):  # until fp16 has found its scale
        train_step(Applied(model), language_model_loss, optimizers, [masked([6, 5])], runtime, 1.0)
    before = bits.of(model, optimizers)

    def infinite(model, batch):
        nats, count = language_model_loss(model, batch)
        return nats * float("inf"), count

    assert train_step(Applied(model), infinite, optimizers, [masked([6, 5])], runtime, 1.0)[2]
    bits.same(before, bits.of(model, optimizers))
    assert not train_step(Applied(model), language_model_loss, optimizers, [masked([6, 5])], runtime, 1.0)[2]


@pytest.mark.parametrize("packing", ["stream", "documents"])
def test_masks_and_cuts_are_drawn_alike(gpu, packing):
    """An objective makes the same batch of rows that are on the GPU as of rows that are not."""
    tokenizer = Tokenizer.train([" ".join(topics.values())], 256)
    ids = torch.randint(5, 256, (4, 32), generator=torch.Generator().manual_seed(0))
    doc = torch.tensor([0] * 12 + [1] * 15 + [-1] * 5).expand(4, 32).contiguous() if packing == "documents" else None
    row, epoch = torch.arange(4), torch.tensor([0, 0, 1, 7])
    device = gpu().device
    for objective in (MaskedLM(tokenizer, 3), PrefixLM(3)):
        here = objective(Taken(ids, doc), row, epoch)
        there_doc = None if doc is None else doc.to(device)
        there = objective(Taken(ids.to(device), there_doc), row.to(device), epoch.to(device))
        for name in ("where", "target"):
            assert torch.equal(getattr(here, name), getattr(there, name).cpu()), name
        for name in ("input_ids", "prefix", "position", "key"):
            assert torch.equal(getattr(here.tokens, name), getattr(there.tokens, name).cpu()), name


def test_a_run_that_is_stopped_goes_on_to_the_same_bits():
    """Of some kinds of run; `python -m tests.faults --full --only goes-on --device cuda` tries all, in every step."""
    command = [sys.executable, "-m", "tests.faults", "--only", "goes-on", "--device", "cuda"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 trials, 0 lost something" in done.stdout


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--compile",),
        ("--compile", "--packing", "documents", "--deterministic"),
        ("--cuda-graphs",),
        ("--cuda-graphs", "--packing", "documents", "--deterministic"),
        ("--cuda-graphs", "--compile", "--short-seq-prob", "0.2"),
    ],
)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_command_trains_and_goes_on(tmp_path, precision, more):
    """Twice: the second call finds the finished run."""
    skip_if_not_compiled(precision, "--compile" in more)
    (tmp_path / "text.txt").write_text("\n\n".join(topics[name] for name in sorted(topics)))
    flags = ["--data", "text.txt", "--cache-dir", "cache", "--out", "run", "--device", "cuda", "--steps", "40"]
    flags += ["--precision", precision, "--vocab-size", "512", "--save-every", "20", "--json", "result.json"]
    flags += more
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, ROOT / "train.py", *flags], cwd=tmp_path, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
    assert "is finished" in done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["held_out_loss"] < result["unigram_loss"] + 0.5
    assert result["peak_mb"] > 0


@pytest.mark.parametrize("more", [("--compile",), ("--cuda-graphs",), ("--compile", "--cuda-graphs")])
def test_a_task_is_compiled_or_replayed(tmp_path, more):
    """The embedded set, from scratch: it becomes better than its commonest label, 0.40."""
    flags = ["--out", "run", "--device", "cuda", "--steps", "150", *more]
    done = subprocess.run(
        [sys.executable, ROOT / "finetune.py", *flags], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert found["dev"]["accuracy"] > 0.5

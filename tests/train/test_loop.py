"""The loop: it learns, a step is one step however it is cut, a bad one changes nothing, and a run can be resumed."""

from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.torch_version import TorchVersion
from torch.utils._python_dispatch import TorchDispatchMode

from minilm.batch import Batch, Tokens
from minilm.errors import CheckpointError, LoadingError, UserError
from minilm.machine.ranks import Applied
from minilm.machine.signals import Stopped
from minilm.train.loop import FP16_STREAK, OutOfMemory, Plan, TrainingError, evaluate, fit, train_step
from minilm.train.losses import language_model_loss, language_model_score
from minilm.train.optim import honours_gates, lr_fraction, make_optimizers

COUNTS = [2, 6, 0, 3, 5, 1, 4, 6]  # targets of eight rows


@dataclass
class Watcher:
    """Keeps what it is told."""

    events: list

    def step(self, step, loss, norm, lr_fraction, tokens):
        self.events.append(("look", step, loss, norm, lr_fraction, tokens))

    def tick(self, step):
        self.events.append(("tick", step))

    def looks(self):
        return [event[1:] for event in self.events if event[0] == "look"]


@pytest.fixture
def watch():
    return Watcher([])


def forever(*steps):
    """Endless steps, each a list of micro-batches."""
    while True:
        yield from steps


def step_of(model, loss, optimizers, micro_batches, runtime, max_norm):
    """`train_step`, without processes to share it with."""
    return train_step(Applied(model), loss, optimizers, micro_batches, runtime, max_norm)


def plan(steps, log_every=10, schedule=lambda step: 1.0, **more):
    return Plan(steps=steps, schedule=schedule, log_every=log_every, **more)


# -- it learns ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "precision"), [("adamw", "fp32"), ("muon", "fp32"), ("muon", "bf16")])
@pytest.mark.parametrize("architecture", ["bert", "modern"])
def test_overfits_eight_sequences(tiny, cpu, watch, architecture, name, precision):
    """Causal: 8 x 15 random next tokens, log 61 = 4.1 nats each until they are known by heart."""
    ids = torch.randint(5, 61, (8, 16), generator=torch.Generator().manual_seed(1))
    ids[:, 0] = torch.arange(5, 13)  # what they can be told apart by
    where = torch.arange(8 * 16).view(8, 16)[:, :-1].flatten()
    batch = Batch(Tokens.full(ids, "causal"), where, ids[:, 1:].flatten(), 120, 128)
    model, runtime = tiny(architecture), cpu(precision)
    optimizers = make_optimizers(model, name, lr=1e-2, weight_decay=0.0, muon_dtype=runtime.muon_dtype)
    steps = 150
    fit(
        Applied(model), language_model_loss, optimizers, forever([batch]), runtime,
        plan(steps, 50, lambda step: lr_fraction("linear", step, steps, 10)), watch,
    )  # fmt: skip
    score = evaluate(Applied(model), language_model_score, [batch], runtime)
    assert score.loss < 0.1
    assert score.accuracy > 0.99
    assert score.targets == 120


# -- one step -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[1] * 8, [3, 5], [2, 1, 4, 1]], ids=str)
@pytest.mark.parametrize("update", ["sgd", "clipped", "adamw", "muon"])
def test_micro_batches_are_one_batch(tiny, masked, cpu, update, sizes):
    """In float64, to 1e-12 of weights near 0.1. SGD at rate 1 makes the weights show the gradient itself."""
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    cut = [masked(COUNTS[at : at + size], at) for at, size in zip(starts, sizes, strict=True)]
    assert len({micro.count for micro in cut}) > 1  # else a mean of means would pass
    after = []
    for micro_batches in ([masked(COUNTS)], cut):
        model = tiny("bert", dtype=torch.float64).train()
        if update in ("sgd", "clipped"):
            optimizers = [torch.optim.SGD(model.parameters(), lr=1.0, fused=True)]
        else:
            optimizers = make_optimizers(model, update, 1e-2, 0.1, muon_dtype=torch.float64)
        max_norm = 0.01 if update == "clipped" else 1e9
        total, norm, bad = step_of(model, language_model_loss, optimizers, micro_batches, cpu(), max_norm)
        assert not bad
        after.append((total, norm, {n: p.detach() for n, p in model.named_parameters()}))
    (total, norm, weights), (cut_total, cut_norm, cut_weights) = after
    torch.testing.assert_close(total, cut_total, rtol=1e-6, atol=0)  # for the log, in fp32
    torch.testing.assert_close(norm, cut_norm, rtol=1e-12, atol=0)
    # Adam divides by |gradient| + 1e-6, which magnifies the 1e-17 of small gradients
    exact = 1e-12 if update in ("sgd", "clipped") else 1e-10
    torch.testing.assert_close(weights, cut_weights, rtol=exact, atol=exact)


def test_step_is_the_gradient_of_the_mean_clipped(tiny, masked, cpu):
    batch = masked(COUNTS)
    model, reference = tiny("modern", dtype=torch.float64), tiny("modern", dtype=torch.float64)
    nats, count = language_model_loss(reference, batch)
    leaves = dict(reference.named_parameters())
    grads = torch.autograd.grad(nats / count, leaves.values())
    norm = torch.stack([g.square().sum() for g in grads]).sum().sqrt()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, fused=True)
    total, found, _ = step_of(model, language_model_loss, [optimizer], [batch], cpu(), max_norm=0.05)
    assert float(total) == pytest.approx(float(nats.detach()), rel=1e-6)
    assert float(found) == pytest.approx(float(norm), rel=1e-12)
    assert norm > 0.05
    scale = ((norm + 1e-6) / 0.05).float()  # as torch clips, but fused optimizers take the factor in fp32
    for p, q, g in zip(model.parameters(), leaves.values(), grads, strict=True):
        torch.testing.assert_close(p, q - g / scale, rtol=1e-12, atol=1e-12)
    assert all(p.grad is None for p in model.parameters())


def test_a_step_is_the_same_where_optimizers_are_not_told_to_clip_or_skip(tiny, masked, cpu, monkeypatch, bits):
    """As on Apple's GPUs with a torch whose fused AdamW takes no notice."""
    states = []
    for tells in (True, False):
        monkeypatch.setattr("minilm.train.loop.honours_gates", lambda device, tells=tells: tells)
        model, runtime = tiny("modern", dtype=torch.float64), cpu()
        optimizers = make_optimizers(model, "adamw", 1e-2, 0.1)
        before = bits.of(model)
        _, norm, bad = step_of(model, poisoned("gradient nan"), optimizers, [masked(COUNTS)], runtime, 0.05)
        assert bad
        bits.same(before, bits.of(model))
        for _ in range(3):
            _, norm, bad = step_of(model, language_model_loss, optimizers, [masked(COUNTS)], runtime, 0.05)
            assert norm > 0.05
            assert not bad
        assert hasattr(optimizers[0], "grad_scale") == tells
        states.append([p.detach().clone() for p in model.parameters()])
    torch.testing.assert_close(*states, rtol=1e-7, atol=1e-10)  # the scale is in fp32


@pytest.mark.parametrize(
    ("kind", "version", "does"),
    [("mps", "2.12.1", False), ("mps", "2.13.0", True), ("cpu", "2.11.0", True), ("cuda", "2.11.0", True)],
)
def test_which_optimizers_clip_and_skip(kind, version, does, monkeypatch):
    monkeypatch.setattr(torch, "__version__", TorchVersion(version))
    assert honours_gates(torch.device(kind)) == does


def test_a_step_without_targets_is_no_division_by_zero(tiny, masked, cpu):
    model = tiny("bert")
    optimizers = make_optimizers(model, "adamw", 1e-2, 0.0)
    total, norm, bad = step_of(model, language_model_loss, optimizers, [masked([0, 0])], cpu(), 1.0)
    assert (float(total), float(norm), bool(bad)) == (0.0, 0.0, False)


@pytest.mark.parametrize("sizes", [[1] * 8, [3, 5], [2, 1, 4, 1]], ids=str)
def test_micro_batches_of_pairs_are_one_batch(tiny, pair_rows, cpu, sizes):
    """The loss of a pair is weighted by its slots, which micro-batches do not change; rows may hold fewer targets."""
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    after = []
    for micro_batches in (
        [pair_rows(COUNTS)],
        [pair_rows(COUNTS[at : at + n], at) for at, n in zip(starts, sizes, strict=True)],
    ):
        model = tiny("bert", dtype=torch.float64, pairs=True).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0, fused=True)
        total, norm, bad = step_of(model, language_model_loss, [optimizer], micro_batches, cpu(), 1e9)
        assert not bad
        after.append((float(total), float(norm), {n: p.detach() for n, p in model.named_parameters()}))
    (total, norm, weights), (cut_total, cut_norm, cut_weights) = after
    assert cut_total == pytest.approx(total, rel=1e-6)
    assert cut_norm == pytest.approx(norm, rel=1e-12)
    torch.testing.assert_close(weights, cut_weights, rtol=1e-12, atol=1e-12)


def test_what_torch_wraps_is_the_model_and_no_more(tiny, masked):
    """A function goes through `forward`, and the parameters are the model's own."""
    model, batch = tiny("modern"), masked(COUNTS)
    forward = Applied(model)
    assert torch.equal(forward(language_model_loss, batch)[0], language_model_loss(model, batch)[0])
    assert list(map(id, forward.parameters())) == list(map(id, model.parameters()))


# -- a bad step -----------------------------------------------------------------------------------


def poisoned(kind, at=()):
    """language_model_loss, but in the calls numbered in `at` (all if empty) it is not finite in one way."""
    calls = -1

    def loss(model, batch):
        nonlocal calls
        calls += 1
        nats, count = language_model_loss(model, batch)
        if at and calls not in at:
            return nats, count
        some = model.head.dense.weight.flatten()[0]
        if kind == "gradient nan":  # of sqrt|x| at 0; the value is 0
            return nats + (some - some.detach()).abs().sqrt(), count
        if kind == "gradient huge":  # finite, but its norm is not
            return nats + (some - some.detach()) * 1e30, count
        return nats + float(kind.removeprefix("loss ")), count  # the gradient stays finite for a constant

    return loss


KINDS = ["loss nan", "loss inf", "gradient nan", "gradient huge"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("where", [0, 1])
def test_a_bad_step_changes_not_one_bit(tiny, masked, cpu, bits, name, kind, where):
    """`where`: which of two micro-batches is bad. Then a good step is the step it would have been."""
    good = [masked([2, 6]), masked([3], first=2)]
    states = []
    for bad_too in (False, True):
        model, runtime = tiny("modern"), cpu()
        optimizers = make_optimizers(model, name, 1e-2, 0.1, muon_dtype=torch.float32)
        step_of(model, language_model_loss, optimizers, good, runtime, 1.0)
        if bad_too:
            before = bits.of(model, optimizers)
            _, _, bad = step_of(model, poisoned(kind, at={where}), optimizers, good, runtime, 1.0)
            assert bad
            bits.same(before, bits.of(model, optimizers))
        _, _, bad = step_of(model, language_model_loss, optimizers, good, runtime, 1.0)
        assert not bad
        states.append(bits.of(model, optimizers))
    bits.same(*states)


def test_the_very_first_step_may_be_bad(tiny, masked, cpu, bits):
    model = tiny("bert")
    before = bits.of(model)
    for name in ("adamw", "muon"):
        optimizers = make_optimizers(model, name, 1e-2, 0.1)
        step_of(model, poisoned("loss nan"), optimizers, [masked([2, 6])], cpu(), 1.0)
        bits.same(before, bits.of(model))


@pytest.mark.parametrize("kind", ["loss nan", "gradient huge"])
@pytest.mark.parametrize(
    "more",
    [{}, {"log_every": 5}, {"save_every": 4}, {"evaluate_every": 4}, {"log_every": 1}],
    ids=["log", "log often", "save", "evaluate", "log always"],
)
def test_fit_stops_at_once_and_names_the_step(tiny, masked, cpu, watch, bits, kind, more):
    """Step 4 of 12 is bad: it changes nothing, and nothing is saved or evaluated after it, nor is it logged."""
    model, three = tiny("bert"), tiny("bert")
    optimizers = make_optimizers(three, "adamw", 1e-2, 0.0)
    for _ in range(3):
        step_of(three, language_model_loss, optimizers, [masked([2, 6])], cpu(), 1.0)
    optimizers = make_optimizers(model, "adamw", 1e-2, 0.0)
    called = []
    with pytest.raises(TrainingError, match=r"^step 4: .*not finite") as caught:
        fit(
            Applied(model), poisoned(kind, at={3}), optimizers, forever([masked([2, 6])]), cpu(),
            plan(12, **more), watch, evaluate=called.append, save=called.append,
        )  # fmt: skip
    assert caught.value.step == 3
    assert "\n" not in str(caught.value)
    assert called == []
    assert [event for event in watch.events if event[0] == "tick"] == [("tick", done) for done in (1, 2, 3)]
    bits.same(bits.of(three), bits.of(model))


def test_bad_steps_in_a_row_are_named_by_the_first(tiny, masked, cpu, watch):
    """The rows to look at are those where it began, not where the log happened to be due."""
    model = tiny("bert")
    optimizers = make_optimizers(model, "adamw", 1e-2, 0.0)
    with pytest.raises(TrainingError, match=r"^step 4: ") as caught:
        fit(
            Applied(model), poisoned("loss nan", at=set(range(3, 99))), optimizers, forever([masked([2, 6])]), cpu(),
            plan(12), watch,
        )  # fmt: skip
    assert caught.value.step == 3


# -- fp16 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_fp16_overflow_shrinks_the_scale_and_training_goes_on(tiny, masked, cpu, watch, bits, name):
    """From a scale of 2^40 on, each overflow halves it and leaves the weights alone until steps fit."""
    model, runtime, batch = tiny("modern"), cpu("fp16"), masked([2, 6, 4, 5])
    runtime.__dict__["scaler"] = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    optimizers = make_optimizers(model, name, 1e-2, 0.0, muon_dtype=runtime.muon_dtype)
    before, skipped = bits.of(model), 0
    while step_of(model, language_model_loss, optimizers, [batch], runtime, 1.0)[2]:
        skipped += 1
        assert runtime.scaler.get_scale() == 2.0 ** (40 - skipped)
        bits.same(before, bits.of(model))
    assert 5 < skipped < FP16_STREAK
    scale = runtime.scaler.get_scale()
    done = fit(
        Applied(model), language_model_loss, optimizers, forever([batch]), runtime, plan(60), watch, start=skipped + 1
    )
    assert done == 60
    assert runtime.scaler.get_scale() == scale
    assert watch.looks()[-1][1] < 0.5 * watch.looks()[0][1]  # and it learns


def test_fp16_fit_survives_overflows_between_and_at_looks(tiny, masked, cpu, watch):
    model, runtime = tiny("bert"), cpu("fp16")
    runtime.__dict__["scaler"] = torch.amp.GradScaler("cpu", init_scale=2.0**45)
    optimizers = make_optimizers(model, "adamw", 1e-2, 0.0)
    assert (
        fit(Applied(model), language_model_loss, optimizers, forever([masked([2, 6])]), runtime, plan(50, 5), watch)
        == 50
    )
    losses = [loss for _, loss, *_ in watch.looks()]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)  # nothing moved yet; the loss itself was finite
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("log_every", [10, 7, 1])
def test_fifty_overflows_in_a_row_raise(tiny, masked, cpu, watch, log_every):
    """Two good steps, then none: the streak goes on over looks, and 50 are counted from the first bad one."""
    model = tiny("bert")
    optimizers = make_optimizers(model, "adamw", 1e-2, 0.0)
    runtime = cpu("fp16")
    runtime.__dict__["scaler"] = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    with pytest.raises(TrainingError, match="not finite") as caught:
        fit(
            Applied(model), poisoned("gradient nan"), optimizers, forever([masked([1])]), runtime,
            plan(200, log_every), watch,
        )  # fmt: skip
    assert [event for event in watch.events if event[0] == "tick"][-1] == ("tick", 49)
    assert caught.value.step == 0
    assert f"step {caught.value.step + 1}:" in str(caught.value)


def test_forty_nine_overflows_and_a_good_step_start_the_count_again(tiny, masked, cpu, watch):
    model, runtime = tiny("bert"), cpu("fp16")
    runtime.__dict__["scaler"] = torch.amp.GradScaler("cpu", init_scale=2.0**8, backoff_factor=1.0 - 1e-6)
    optimizers = make_optimizers(model, "adamw", 1e-3, 0.0)
    bad = {i for i in range(110) if i not in (49, 99)}
    loss = poisoned("gradient nan", at=bad)
    assert fit(Applied(model), loss, optimizers, forever([masked([1])]), runtime, plan(110), watch) == 110


# -- the loop -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stub:
    """A micro-batch of known nats: dyadic numbers, so that sums are exact."""

    nats: float
    count: int
    size: int = 8

    def to(self, device, non_blocking=False):
        return self


class One(nn.Module):
    """One weight, whose gradient is 1 for a loss of one target."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))


def stub_loss(model, micro):
    return micro.nats + (model.w - model.w.detach()).sum() * micro.count, torch.tensor(micro.count)


def in_steps(micro_batches, each=1):
    return [micro_batches[at : at + each] for at in range(0, len(micro_batches), each)]


def stub_run(watch, cpu, steps, the_plan, **more):
    model = One()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, fused=True)
    for group in optimizer.param_groups:
        group["peak_lr"] = 2.0
    done = fit(Applied(model), stub_loss, [optimizer], iter(steps), cpu(), the_plan, watch, **more)
    return SimpleNamespace(model=model, optimizer=optimizer, done=done)


def test_loss_of_a_look_is_the_windows_mean_by_targets(watch, cpu):
    """Two micro-batches a step, a look every 2 steps and at the end; counts are unequal, tokens add up."""
    stubs = [Stub(2.0**i, 1 + i, 10 + i) for i in range(10)]
    stub_run(watch, cpu, in_steps(stubs, 2), plan(5, 2))
    windows = [stubs[0:4], stubs[4:8], stubs[8:10]]
    mean = [sum(s.nats for s in window) / sum(s.count for s in window) for window in windows]
    tokens = [sum(s.size for s in window) for window in windows]
    looks = watch.looks()
    assert [(step, loss, tokens) for step, loss, _, _, tokens in looks] == [
        (step, pytest.approx(loss, rel=1e-6), count) for step, loss, count in zip((2, 4, 5), mean, tokens, strict=True)
    ]
    assert [norm for _, _, norm, _, _ in looks] == [1.0] * 3  # of the mean's gradient


def test_loss_of_a_look_leaves_out_both_nats_and_targets_of_a_loss_that_is_not_finite(tiny, masked, cpu, watch):
    """In fp16 such a step is no error yet; its targets in the denominator would make the loss look better."""
    model = tiny("bert")
    optimizers = make_optimizers(model, "adamw", 0.0, 0.0)  # nothing moves
    fit(
        Applied(model), poisoned("loss inf", at={1, 2, 3}), optimizers, forever([masked([2, 6])]), cpu("fp16"),
        plan(8, 4), watch,
    )  # fmt: skip
    (_, first, *_), (_, second, *_) = watch.looks()
    assert first == pytest.approx(second, rel=1e-3)


def test_learning_rates_follow_the_schedule(watch, cpu):
    """The gradient is 1, so SGD's weight is minus the sum of the rates; the fraction goes to the watch."""
    fractions = [0.5, 1.0, 0.75, 0.25, 0.125]
    run = stub_run(watch, cpu, [[Stub(1.0, 1)]] * 5, plan(5, 1, fractions.__getitem__))
    assert [rate for _, _, _, rate, _ in watch.looks()] == fractions
    assert float(run.model.w.detach()) == pytest.approx(-2.0 * sum(fractions), rel=1e-5)  # clipping's 1e-6


@pytest.mark.parametrize("start", [0, 40, 100])
def test_tiny_averages_are_forgotten_at_the_same_steps_wherever_a_run_goes_on(monkeypatch, watch, cpu, start):
    done, tidied = [], []
    monkeypatch.setattr("minilm.train.loop.forget_tiny", lambda optimizers: tidied.append(len(done) + 1 + start))
    the_plan = plan(130, save_every=1)
    stub_run(watch, cpu, [[Stub(1.0, 1)]] * 130, the_plan, start=start, save=done.append)
    assert tidied == [step for step in (64, 128) if step > start]


@pytest.mark.parametrize("start", [0, 3])
def test_evaluate_save_stop_at_the_right_steps(watch, cpu, start):
    called, trained, steps = [], [], []
    model = One()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, fused=True)
    optimizer.param_groups[0]["peak_lr"] = 1.0

    def loss(model, micro):
        trained.append(model.training)
        return stub_loss(model, micro)

    def evaluation(step):
        called.append(("evaluate", step))
        model.eval()  # as `evaluate` leaves it

    done = fit(
        Applied(model), loss, [optimizer], iter([[Stub(1.0, 1)]] * 10), cpu(),
        plan(10, 4, lambda step: steps.append(step) or 1.0, evaluate_every=2, save_every=5),
        watch, start, evaluation, lambda step: called.append(("save", step)),
    )  # fmt: skip
    assert done == 10
    assert steps == list(range(start, 10))
    expected = [("evaluate", 2), ("evaluate", 4), ("save", 5), ("evaluate", 6), ("evaluate", 8)]
    expected += [("evaluate", 10), ("save", 10)]  # at the end both
    assert called == [(name, step) for name, step in expected if step > start]
    assert trained == [True] * (10 - start)
    assert [look[0] for look in watch.looks()] == [s for s in (2, 4, 5, 6, 8, 10) if s > start]


def test_stop_saves_once_and_says_where(watch, cpu):
    saved, asked = [], iter([False, False, True])
    run = stub_run(
        watch, cpu, [[Stub(1.0, 1)]] * 9, plan(9, 5, save_every=3), save=saved.append, stop=lambda: next(asked)
    )
    assert (run.done, saved) == (3, [3])
    assert [look[0] for look in watch.looks()] == [3]


def failing(steps, error):
    """So many steps, then the error."""
    yield from [[Stub(1.0, 1)]] * steps
    raise error


@pytest.mark.parametrize("end", [LoadingError("gone"), Stopped()], ids=["error", "signal"])
@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize("given", [0, 4])
def test_what_is_done_is_saved_where_a_batch_does_not_come(watch, cpu, end, start, given):
    """Seen, evaluated never, saved once; nothing where nothing is done."""
    saved, model, done = [], One(), start + given
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, fused=True)
    optimizer.param_groups[0]["peak_lr"] = 1.0
    with pytest.raises(LoadingError, match="gone") if isinstance(end, LoadingError) else nullcontext():
        got = fit(
            Applied(model), stub_loss, [optimizer], failing(given, end), cpu(),
            plan(9, evaluate_every=9), watch, start, lambda step: pytest.fail("evaluated"), saved.append,
        )  # fmt: skip
        assert got == done
    assert (saved, [look[0] for look in watch.looks()]) == (([done], [done]) if given else ([], []))
    assert float(model.w.detach()) == pytest.approx(-given, rel=1e-5)


def ticks(watch):
    return [event for event in watch.events if event[0] == "tick"]


def test_what_is_due_is_done_before_the_next_batch_is_waited_for(watch, cpu):
    """Saved once, and no look twice."""
    for end in (RuntimeError("a bug"), LoadingError("gone"), Stopped()):
        done = []
        with nullcontext() if isinstance(end, Stopped) else pytest.raises(type(end)):
            stub_run(watch, cpu, failing(3, end), plan(9, save_every=3), save=done.append)
        assert done == [3]
    assert [look[0] for look in watch.looks()] == [3, 3, 3]


def test_where_neither_a_batch_comes_nor_a_save_is_made_both_are_said(watch, cpu):
    def save(step):
        raise CheckpointError("disk full")

    with pytest.raises(LoadingError, match=r"^gone; and disk full$"):
        stub_run(watch, cpu, failing(3, LoadingError("gone")), plan(9), save=save)
    with pytest.raises(CheckpointError, match=r"^disk full$"):
        stub_run(watch, cpu, failing(3, Stopped()), plan(9), save=save)


def test_after_a_signal_in_a_step_no_batch_is_waited_for(watch, cpu):
    saved = []
    run = stub_run(watch, cpu, failing(2, AssertionError("waited for")), plan(9), save=saved.append,
                   stop=lambda: len(ticks(watch)) == 1)  # fmt: skip
    assert (run.done, saved) == (2, [2])


def test_a_signal_after_a_step_that_was_too_much_saves_those_before(watch, cpu):
    saved, step = [], train_step

    def too_much(*args):
        if len(ticks(watch)) == 2:
            raise OutOfMemory(8, "out of memory")
        return step(*args)

    run = stub_run(
        watch,
        cpu,
        [[Stub(1.0, 1)]] * 9,
        plan(9),
        save=saved.append,
        smaller=lambda step, error: failing(0, Stopped()),
        take_step=too_much,
    )
    assert (run.done, saved) == (2, [2])


@pytest.mark.parametrize("save_fails", [False, True])
def test_steps_before_one_that_was_too_much_are_saved(watch, cpu, save_fails):
    """Where nothing is smaller; once, though a save was due before."""
    saved, step = [], train_step

    def too_much(*args):
        if len(ticks(watch)) == 5:
            raise OutOfMemory(8, "out of memory")
        return step(*args)

    def save(step):
        saved.append(step)
        if save_fails and step == 5:
            raise CheckpointError("disk full")

    said = "^out of memory; and disk full$" if save_fails else "^out of memory$"
    with pytest.raises(UserError, match=said):
        stub_run(watch, cpu, [[Stub(1.0, 1)]] * 9, plan(9, save_every=2), save=save, take_step=too_much)
    assert saved == [2, 4, 5]


@pytest.mark.parametrize("save_every", [0, 3])
def test_steps_before_an_evaluation_that_fails_are_saved(watch, cpu, save_every):
    """Once, though a save was due."""
    saved = []

    def evaluate(step):
        raise RuntimeError("out of memory")

    the_plan = plan(9, evaluate_every=6, save_every=save_every)
    with pytest.raises(RuntimeError, match="out of memory"):
        stub_run(watch, cpu, [[Stub(1.0, 1)]] * 9, the_plan, save=saved.append, evaluate=evaluate)
    assert saved == ([3, 6] if save_every else [6])


def test_steps_that_cannot_be_logged_are_saved(watch, cpu, monkeypatch):
    def full(*of):
        raise CheckpointError("metrics.jsonl: disk full")

    saved = []
    monkeypatch.setattr(watch, "step", full)
    with pytest.raises(CheckpointError, match="disk full"):
        stub_run(watch, cpu, [[Stub(1.0, 1)]] * 9, plan(9, 4), save=saved.append)
    assert saved == [4]


def test_a_save_that_was_missed_is_made_up_when_the_run_ends(watch, cpu):
    tried = []

    def save(step):
        tried.append(step)
        return tried.count(step) > 1  # not at first

    run = stub_run(watch, cpu, failing(4, Stopped()), plan(9, save_every=2), save=save)
    assert (run.done, tried) == (4, [2, 4, 4])


@pytest.mark.parametrize("fault", [LoadingError("gone"), KeyError("a bug")])
def test_a_save_that_is_missed_at_the_end_is_said_with_the_fault(watch, cpu, fault):
    def evaluate(step):
        raise fault

    steps = failing(3, fault) if isinstance(fault, LoadingError) else [[Stub(1.0, 1)]] * 9
    with pytest.raises(type(fault)) as caught:
        stub_run(watch, cpu, steps, plan(9, evaluate_every=4), save=lambda step: False, evaluate=evaluate)
    said = [str(caught.value), *getattr(caught.value, "__notes__", ())]
    assert said == (["gone; and step 3 was not saved"] if len(said) == 1 else ["'a bug'", "step 4 was not saved"])


def test_no_batch_is_waited_for_after_the_last_step(watch, cpu):
    run = stub_run(watch, cpu, failing(5, AssertionError("waited for")), plan(5))
    assert run.done == 5


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("cut", [4, 7])
def test_a_run_cut_in_two_is_the_run_bit_for_bit(tiny, masked, cpu, watch, bits, name, precision, cut):
    """With dropout, and generators that stand elsewhere at each start; stopped on and off a look."""
    data = in_steps([masked([1 + i % 6, 6], 2 * i) for i in range(20)], 2)
    schedule = lambda step: lr_fraction("cosine", step, 10, 3)  # noqa: E731

    def fresh(seed):
        model, runtime = tiny("bert", dropout=0.1, seed=seed), cpu(precision)
        return model, make_optimizers(model, name, 1e-2, 0.1, muon_dtype=runtime.muon_dtype), runtime

    def go_on(state, start, stop_at, seed=5):
        model, optimizers, runtime = state
        stop = iter(range(start + 1, 99))
        done = fit(
            Applied(model), language_model_loss, optimizers, iter(data[start:]), runtime,
            plan(10, 4, schedule, seed=seed), watch, start, stop=lambda: next(stop) == stop_at,
        )  # fmt: skip
        assert done == min(stop_at, 10)

    whole = fresh(0)
    torch.manual_seed(1)
    go_on(whole, 0, 10)

    first = fresh(0)
    torch.manual_seed(2)
    go_on(first, 0, cut)
    saved = first[0].state_dict(), [o.state_dict() for o in first[1]], first[2].scaler.state_dict()
    torch.manual_seed(6)
    second = fresh(7)
    second[0].load_state_dict(saved[0])
    for optimizer, state in zip(second[1], saved[1], strict=True):
        optimizer.load_state_dict(state)
    second[2].scaler.load_state_dict(saved[2])
    go_on(second, cut, 10)
    bits.same(bits.of(*whole[:2]), bits.of(*second[:2]))
    with pytest.raises(AssertionError):  # the comparison sees that they are not the cut run's
        bits.same(bits.of(*whole[:2]), bits.of(*first[:2]))
    other = fresh(0)
    go_on(other, 0, 10, seed=4)
    with pytest.raises(AssertionError):  # and dropout did count
        bits.same(bits.of(*whole[:2]), bits.of(*other[:2]))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_no_host_sync_between_looks(tiny, masked, cpu, watch, name, precision):
    """Operators that make the host wait for a GPU are met at looks only."""
    waits = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique", "_unique2"}

    class Spy(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            by_mask = func._schema.name == "aten::index" and any(
                i is not None and i.dtype == torch.bool for i in args[1]
            )
            if func._schema.name.removeprefix("aten::") in waits or by_mask:
                watch.events.append(("wait", func))
            return func(*args, **(kwargs or {}))

    model, runtime = tiny("modern", dropout=0.1), cpu(precision)
    optimizers = make_optimizers(model, name, 1e-2, 0.1, muon_dtype=runtime.muon_dtype)
    with Spy():
        fit(
            Applied(model), language_model_loss, optimizers, forever([masked([2, 6]), masked([3])]), runtime,
            plan(9, 4), watch,
        )  # fmt: skip
    since, waited = 0, []
    for kind, *rest in watch.events:
        if kind == "tick":
            since = rest[0]
        elif kind == "look":
            since = None  # until the next tick, nothing may wait
        else:
            waited.append(since)
    assert set(waited) == {4, 8, 9}  # the spy sees them, between a step's end and its line


# -- evaluation -----------------------------------------------------------------------------------


def test_evaluate_adds_up_sums_without_dropout_or_gradient(cpu):
    model, seen = One().train(), []

    def score(model, stub):
        seen.append((model.training, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        own = torch.tensor(stub.nats), torch.tensor(stub.count - 1), torch.tensor(stub.count)
        return *own, torch.tensor(stub.count // 2), stub.size

    stubs = [Stub(4.0, 2), Stub(1.0, 5, 16), Stub(2.5, 3)]
    result = evaluate(Applied(model), score, stubs, cpu("bf16"))
    assert (result.loss, result.accuracy, result.targets) == (7.5 / 10, 7 / 10, 10)
    assert result.pair_accuracy == 4 / 32
    assert seen == [(False, False, True)] * 3
    assert not model.training
    nothing = evaluate(Applied(model), score, [], cpu())  # and no division by zero
    assert (nothing.targets, nothing.pair_accuracy) == (0, None)


def test_evaluate_does_not_depend_on_the_batches(tiny, masked, pair_rows, cpu):
    for kind, pairs in ((masked, False), (pair_rows, True)):
        model = tiny("bert", dropout=0.5, dtype=torch.float64, pairs=pairs)
        whole = evaluate(Applied(model), language_model_score, [kind(COUNTS)], cpu())
        parts = [kind(COUNTS[:3]), kind(COUNTS[3:4], 3), kind(COUNTS[4:], 4)]
        cut = evaluate(Applied(model), language_model_score, parts, cpu())
        assert cut.loss == pytest.approx(whole.loss, rel=1e-12)
        assert (cut.accuracy, cut.targets, cut.pair_accuracy) == (whole.accuracy, whole.targets, whole.pair_accuracy)
        assert whole.targets == kind(COUNTS).count
        assert (whole.pair_accuracy is None) == (not pairs)

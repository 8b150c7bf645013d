"""Steps as CUDA graphs, on a CPU: what is recorded is computed anew from the tensors that it was recorded with, as by a
graph, so that a value that stays on the host is the old one. That a GPU records them is for `test_gpu.py`."""

import weakref
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from minilm.batch import IGNORE, Batch, Tokens
from minilm.errors import ConfigError
from minilm.machine.ranks import Applied, Ranks
from minilm.machine.runtime import Runtime
from minilm.train import graphs as graphs_module
from minilm.train.graphs import GraphedStep, shape_of, step_of
from minilm.train.loop import OutOfMemory, Plan, fit, train_step
from minilm.train.losses import language_model_loss
from minilm.train.optim import keep_learning_rate_on, lr_fraction, make_optimizers


class Nothing:
    """A watch that is told things."""

    def __init__(self):
        self.looks = []

    def step(self, step, *what):
        self.looks.append(what)

    def tick(self, step):
        pass


def packed(row, doc):
    """A row of tokens in documents, every third token a target."""
    generator = torch.Generator().manual_seed(row)
    ids = torch.randint(5, 61, (len(doc), 16), generator=generator)
    where = torch.arange(0, ids.numel(), 3)
    target = torch.where(doc.flatten()[where] >= 0, ids.flatten()[where], IGNORE)
    return Batch(Tokens.packed(ids, doc), where, target, int((target != IGNORE).sum()), int((doc >= 0).sum()))


def steps(masked):
    """Of three shapes, one of two micro-batches, with other counts each time."""
    of_counts = [[2, 6, 0, 3], [5, 1, 4, 6], [1, 1, 1, 1], [6, 0, 0, 0], [6, 5, 6, 4]]
    while True:
        for first, counts in enumerate(of_counts):
            yield [masked(counts, first)]
            yield [masked(counts[:2], first), masked(counts[2:], first + 7)]
            yield [masked(counts[:3], first)]


@pytest.mark.parametrize(
    ("architecture", "name", "precision"),
    [("bert", "adamw", "fp32"), ("modern", "adamw", "fp16"), ("bert", "muon", "fp32"), ("modern", "muon", "bf16")],
)
def test_replayed_steps_are_the_steps(tiny, masked, replays, architecture, name, precision):
    """Through the loop, to the last bit: losses, norms and weights, with dropout, a schedule, and another count each
    time."""
    found = []
    for graphed in (False, True):
        runtime = Runtime.choose("cpu", precision)
        model, watch = tiny(architecture, dropout=0.1), Nothing()
        optimizers = make_optimizers(model, name, lr=1e-2, weight_decay=0.1, muon_dtype=torch.float32)
        plan = Plan(30, lambda step: lr_fraction("linear", step, 30, 6), max_norm=0.5, log_every=1)
        take_step = step_of(runtime, graphed)
        if not graphed:
            keep_learning_rate_on(runtime.device, optimizers)  # fp32, as graphs read it
        done = fit(
            Applied(model), language_model_loss, optimizers, steps(masked), runtime, plan, watch, take_step=take_step
        )
        assert done == 30
        assert all(isinstance(group["lr"], Tensor) for optimizer in optimizers for group in optimizer.param_groups)
        states = dict(model.named_parameters())
        found.append((torch.tensor(watch.looks), states))
    assert len(replays) == 3
    assert all(each.count == 30 / 3 - 1 for each in replays)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0, equal_nan=True)


def test_after_as_many_shapes_as_are_kept_steps_are_computed_as_usual(tiny, masked, replays, monkeypatch):
    monkeypatch.setattr(graphs_module, "MOST", 2)
    found, runtime = [], Runtime.choose("cpu", "fp32")
    for take_step in (train_step, step_of(runtime, True)):
        model = tiny("bert")
        optimizers = make_optimizers(model, "adamw", lr=1e-2, weight_decay=0.1)
        keep_learning_rate_on(runtime.device, optimizers)
        batches = steps(masked)
        for _ in range(12):
            take_step(Applied(model), language_model_loss, optimizers, next(batches), runtime, 1.0)
        found.append(dict(model.named_parameters()))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    assert [each.count for each in replays] == [3, 3]


def test_what_a_step_returns_is_not_what_the_next_one_does(tiny, masked, replays):
    model, take_step = tiny("bert"), step_of(Runtime.choose("cpu", "fp32"), True)
    optimizers = make_optimizers(model, "adamw", lr=1e-2, weight_decay=0.1)
    made = [
        take_step(
            Applied(model), language_model_loss, optimizers, [masked([3, 4], first)], Runtime.choose("cpu", "fp32"), 1.0
        )
        for first in range(5)
    ]
    assert len(replays) == 1
    assert len({float(nats) for nats, _, _ in made}) == len({float(norm) for _, norm, _ in made}) == 5


class Broken:
    """Graphs that cannot be recorded; as torch's, they also end with an error because of that."""

    def __init__(self, error):
        self.error = error

    def warm_up(self, work):
        return work()

    def record(self, work):
        try:
            raise self.error
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")


def test_a_step_that_is_not_recorded_is_one_line(tiny, masked):
    broken = Broken(RuntimeError("operation not permitted when stream is capturing\nand more"))
    model, take_step = tiny("bert"), GraphedStep(broken)
    optimizers = make_optimizers(model, "adamw", lr=1e-2, weight_decay=0.1)
    args = Applied(model), language_model_loss, optimizers, [masked([3])], Runtime.choose("cpu", "fp32"), 1.0
    take_step(*args)
    with pytest.raises(ConfigError) as error:
        take_step(*args)
    assert str(error.value) == (
        "--cuda-graphs: no step is recorded here (operation not permitted when stream is capturing); "
        "leave it out, in another --out"
    )


def test_where_memory_runs_out_graphs_give_theirs_back(tiny, masked, replays):
    """In the first step of another shape; without graphs, as while the first one is recorded, it is an error."""
    runtime, model = Runtime.choose("cpu", "fp32"), tiny("bert")
    optimizers = make_optimizers(model, "adamw", lr=1e-2, weight_decay=0.1)
    take_step = step_of(runtime, True)

    made = []

    def too_much(model, batch):
        if take_step.of_shape:
            made.append(torch.zeros(8))
            held, made[-1] = made[-1], weakref.ref(made[-1])
            raise RuntimeError(f"CUDA out of memory beside {len(held)}")
        assert all(each() is None for each in made)  # what the step had made is gone before it is computed again
        return language_model_loss(model, batch)

    def go(loss, *counts):
        return take_step(Applied(model), loss, optimizers, [masked([*counts])], runtime, 1.0)

    go(language_model_loss, 3)
    usual, take_step.graphs = take_step.graphs, Broken(OutOfMemory(16, "out of memory"))
    with pytest.raises(OutOfMemory):
        go(language_model_loss, 3)
    assert [*take_step.of_shape.values()] == [None]
    take_step.graphs = usual
    for _ in range(3):
        go(language_model_loss, 3)
    assert [each.count for each in replays] == [3]
    nats, norm, bad = go(too_much, 3, 4)
    assert nats > 0
    assert norm > 0
    assert not bad
    assert [*take_step.of_shape.values()] == [None]
    with pytest.raises(OutOfMemory):
        go(too_much, 3)


def test_where_there_are_no_graphs(replays, monkeypatch):
    runtime = Runtime.choose("cpu", "fp32")
    assert step_of(runtime, False) is train_step
    with pytest.raises(ConfigError, match="--cuda-graphs: works in one process only"):
        step_of(replace(runtime, ranks=Ranks(0, 2)), True)
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="--cuda-graphs: needs an Nvidia GPU, and this is cpu; leave it out"):
        step_of(runtime, True)


def test_a_shape_is_all_but_values(masked):
    one = masked([2, 5])
    same = masked([1, 4], first=9)
    assert (same.count, same.tokens.input_ids.tolist()) != (one.count, one.tokens.input_ids.tolist())
    assert shape_of(one) == shape_of(same)
    for name in ("input_ids", "position", "key", "cls"):
        narrower = getattr(one.tokens, name)[:1]
        assert shape_of(replace(one, tokens=replace(one.tokens, **{name: narrower}))) != shape_of(one), name
    tokens = one.tokens
    for other in (
        replace(one, per_row=6),
        replace(one, target=one.target.int()),
        replace(one, pair_label=torch.zeros(2, dtype=torch.int64)),
        *(replace(one, tokens=replace(tokens, **of)) for of in ({"attention": "causal"}, {"layout": "padded"})),
        *(replace(one, tokens=replace(tokens, **of)) for of in ({"max_len": 9}, {"runs": ((2, 16),)})),
    ):
        assert shape_of(other) != shape_of(one)


def test_packed_rows_have_few_shapes_and_the_same_loss(tiny):
    """Of forty batches with about 8 to 60 documents."""
    shapes, generator = set(), torch.Generator().manual_seed(0)
    for number in range(40):
        doc = (torch.rand(8, 16, generator=generator) < 0.05 + number % 3 / 16).long().cumsum(1)
        doc = torch.where(torch.arange(16) < 16 - number % 2, doc, -1)
        batch = packed(number, doc)
        fixed = batch.in_few_sizes()
        shapes.add(shape_of(fixed))
        bounds = fixed.tokens.cu_seqlens
        assert bounds[: len(batch.tokens.cu_seqlens)].tolist() == batch.tokens.cu_seqlens.tolist()
        assert bounds[len(batch.tokens.cu_seqlens) :].tolist() == [128] * (len(bounds) - len(batch.tokens.cu_seqlens))
        model = tiny("modern")
        nats = [language_model_loss(model, each)[0].detach() for each in (batch, fixed)]
        assert torch.equal(*nats)
    assert len(shapes) <= 12
    full = Batch(Tokens.full(torch.ones(2, 16, dtype=torch.int64)), torch.arange(4), torch.arange(4), 4, 32)
    assert full.in_few_sizes().tokens is full.tokens

"""How long and how much, before a run and after it; and timing leaves no trace."""

import math
from dataclasses import replace

import pytest
import torch

from minilm.checkpoint.model import read_model
from minilm.data.loader import Stretch
from minilm.data.packing import Taken
from minilm.pretraining.report import estimate_lines
from minilm.train import measure as measure_module
from minilm.train.cost import run_flops
from minilm.train.job import VERSIONS, train
from minilm.train.log import Log, Spent
from minilm.train.loop import Plan, Score, train_step
from minilm.train.measure import KEPT, TIMED_STEPS, WARM_STEPS, measure, rehearse, step_seconds


def timed(job, **more):
    return step_seconds(job.forward, job.loss, job.optimizers, job.loader, job.runtime, 1.0, **more)


def plan(steps, **more):
    return Plan(steps=steps, schedule=lambda step: 1.0, **more)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_timing_leaves_no_trace(make_job, bits, optimizer, precision):
    job = make_job(optimizer, precision)
    copies = []

    def spy(forward, loss, optimizers, *rest):
        assert forward.model is not job.model
        before = bits.of(forward)
        result = train_step(forward, loss, optimizers, *rest)
        copies.append(any(not torch.equal(before[name], p) for name, p in forward.named_parameters()))
        assert {id(p) for o in optimizers for g in o.param_groups for p in g["params"]} == {
            id(p) for p in forward.parameters()
        }
        return result

    weights, scaler, loader = bits.of(job.model), job.runtime.scaler.state_dict(), dict(vars(job.loader))
    seconds = timed(job, take_step=spy)
    assert list(seconds) == [stretch.kind for stretch in job.loader.stretches] == [(16, 8), (16, 12)]
    assert all(each > 0 for each in seconds.values())
    assert sum(copies) > 10  # the copy did train (fp16 may skip while it looks for its scale)
    assert len(copies) == 2 * (WARM_STEPS + TIMED_STEPS)
    bits.same(weights, bits.of(job.model, job.optimizers))  # no optimizer state either
    assert job.runtime.scaler.state_dict() == scaler
    assert vars(job.loader) == loader
    assert all(p.grad is None for p in job.model.parameters())


def test_a_job_that_was_timed_is_the_job_bit_for_bit(make_job, bits):
    found = []
    for measured in (False, True):
        job = make_job(out=f"run-{measured}")
        if measured:
            timed(job, limit_s=0.0)
        train(job, plan(8, seed=3))
        found.append(bits.of(job.model, job.optimizers))
    bits.same(*found)


def test_timing_ends_with_its_budget(make_job):
    job, calls = make_job(), []
    assert len(timed(job, limit_s=0.0, take_step=lambda *args: calls.append(1) or train_step(*args))) == 2
    assert len(calls) == 2 * 2  # of each stretch one to warm up, one to time


def test_a_steps_time_is_that_of_its_stretch(make_job, monkeypatch):
    """By a clock that a step moves by a second a micro-batch, and by a hundred while it is cold."""
    job = make_job(stretches=[Stretch(30, 16, 4, 4), Stretch(30, 16, 12, 4)])
    clock, calls = [0.0], []

    def step(forward, loss, optimizers, micro_batches, runtime, max_norm):
        calls.append(len(micro_batches))
        clock[0] += len(micro_batches) + 100 * (calls.count(len(micro_batches)) <= WARM_STEPS)
        return torch.zeros(()), None, None

    monkeypatch.setattr(measure_module.time, "perf_counter", lambda: clock[0])
    assert timed(job, take_step=step) == {(16, 4): 1.0, (16, 12): 3.0}


def test_a_short_stretch_is_timed_on_its_own_rows(make_job):
    job, calls = make_job(stretches=[Stretch(2, 16, 4, 4), Stretch(30, 16, 12, 4)]), []

    def spy(forward, loss, optimizers, micro_batches, *rest):
        calls.append(len(micro_batches))
        return train_step(forward, loss, optimizers, micro_batches, *rest)

    timed(job, take_step=spy)
    assert calls == [1] * (WARM_STEPS + TIMED_STEPS) + [3] * (WARM_STEPS + TIMED_STEPS)


def test_the_peak_of_the_machine_is_measured_after_the_runs_memory(make_job, tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(measure_module, "peak_memory_mb", lambda device: order.append("memory") or 1.0)
    monkeypatch.setattr(measure_module, "matmul_peak", lambda *args: order.append("matmul") or 1e9)
    log = Log(tmp_path / "m.jsonl", 8, 0, 1.0, Spent(640, 4.0, 12.0), 6.0)
    log.close()
    assert measure(replace(make_job(), unigram=6.0), log)["peak_mb"] == 1.0
    assert order == ["memory", "matmul"]


@pytest.mark.parametrize(("save_every", "at_most"), [(2, 3), (4, 2), (8, 1)])
def test_rehearsal_tells_what_the_run_will_take(make_job, bits, save_every, at_most):
    """Sizes against the files themselves; the run that it estimates is 8 steps, of which it does two.

    at_most: checkpoints at once: one is written before an old one goes, the final model before all but one go.
    """
    job = replace(make_job(stretches=[Stretch(5, 16, 4, 4), Stretch(3, 16, 12, 4)]), evaluate_first=True)
    before, stretches, examined = bits.of(job.model), job.loader.stretches, []
    job = replace(job, evaluate=lambda: examined.append(job.model.training) or Score(1.0, 0.0, 1))
    found = rehearse(job, plan(8, evaluate_every=3, save_every=save_every), {(16, 4): 0.5, (16, 12): 2.0})
    out = job.store.out
    assert sorted(path.name for path in out.glob("step-*")) == ["step-000002"]  # one step of each stretch
    assert examined == [False]  # once, in eval mode, and not in training
    assert job.loader.stretches is stretches
    assert job.loader.steps == 8
    changed = [name for name, now in bits.of(job.model).items() if not torch.equal(now, before[name])]
    assert changed  # it was trained: the caller makes it anew
    for directory in (out, out / "step-000002"):
        again = read_model(directory).model
        assert all(torch.equal(p, q) for p, q in zip(again.parameters(), job.model.parameters(), strict=True))

    def size(directory):
        return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())

    checkpoint = size(out / "step-000002")
    final = size(out) - checkpoint
    assert found["checkpoint_mb"] * 2**20 == pytest.approx(checkpoint)
    most = max(at_most * checkpoint, min(at_most, KEPT) * checkpoint + final)
    assert found["disk_mb"] * 2**20 == pytest.approx(most)
    assert found["seconds"] == 5 * 0.5 + 3 * 2.0
    assert found["seconds"] < found["total_seconds"] < found["seconds"] + 60
    assert found["tokens"] == 5 * 4 * 16 + 3 * 12 * 16
    assert found["flops"] == run_flops(job.model.cfg, job.loader)
    assert found["parameters"] == sum(p.numel() for p in job.model.parameters())
    assert (found["steps"], found["processes"]) == (8, 1)
    assert found["free_disk_mb"] > 0
    assert found["peak_mb"] > 64
    assert len(estimate_lines(found)) > 3


def test_rehearsal_counts_evaluations_and_saves(make_job, monkeypatch):
    """By a clock that an evaluation moves by 10 s and the final model by 1 s."""
    job, clock = replace(make_job(), evaluate_first=True), [0.0]
    write_model = job.write_model

    def now():
        clock[0] += 1e-6  # a log divides by the time that a step took
        return clock[0]

    def evaluate():
        clock[0] += 10
        return Score(1.0, 0.0, 1)

    def write(directory, state):
        clock[0] += 1
        write_model(directory, state)

    monkeypatch.setattr(measure_module.time, "perf_counter", now)
    job = replace(job, evaluate=evaluate, write_model=write)
    found = rehearse(job, plan(8, evaluate_every=3, save_every=5), {(16, 8): 1.0, (16, 12): 1.0})
    evaluations, saves = math.ceil(8 / 3) + 1, 2
    out = job.store.out
    final = sum(path.stat().st_size for path in out.iterdir() if path.is_file())
    each = found["checkpoint_mb"] * 2**20 / final  # a checkpoint takes longer than the model, by its size
    assert each > 1.5
    assert found["total_seconds"] == pytest.approx(8 + 10 * evaluations + saves * each, abs=1e-3)


KEYS = {
    "held_out_loss", "held_out_loss_before", "unigram_loss", "accuracy", "pair_accuracy", "targets", "steps", "tokens",
    "parameters", "seconds", "tokens_per_s", "flops", "mfu", "matmul_peak_flops", "joules", "peak_mb", "precision",
    "processes", "versions",
}  # fmt: skip


def test_what_was_learned_and_what_it_cost(make_job, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(measure_module, "matmul_peak", lambda *args: asked.append(args) or 1e9)
    job = replace(make_job(), unigram=6.0)
    log = Log(tmp_path / "m.jsonl", 8, 0, 1.0, Spent(640, 4.0, 12.0), 6.0)
    log.evaluation(0, Score(7.0, 0.1, 99))
    log.evaluation(8, Score(5.0, 0.25, 99, 0.75))
    log.close()
    found = measure(job, log)
    assert found.keys() == KEYS
    flops = run_flops(job.model.cfg, job.loader)
    expected = {
        "held_out_loss": 5.0, "held_out_loss_before": 7.0, "unigram_loss": 6.0, "accuracy": 0.25,
        "pair_accuracy": 0.75, "targets": 99, "steps": 8, "tokens": 640, "seconds": 4.0, "tokens_per_s": 160.0,
        "flops": flops, "mfu": flops / 4.0 / 1e9, "matmul_peak_flops": 1e9, "joules": 12.0, "precision": "fp32",
        "processes": 1, "versions": VERSIONS, "parameters": sum(p.numel() for p in job.model.parameters()),
    }  # fmt: skip
    assert {key: found[key] for key in expected} == expected
    assert asked == [(job.runtime.device, torch.float32)]
    log.score = None  # a run that was stopped between its last evaluation and its end
    assert measure(job, log)["held_out_loss"] == 1.0  # as the job's own evaluation says


def test_what_is_compiled_has_had_each_shape_before_it_is_timed(make_job, monkeypatch):
    """By short rows, one step in two, that are cut in 2 or 4."""
    job, shapes = make_job(stretches=[Stretch(6, 16, 8, 4), Stretch(4, 16, 12, 4)]), []
    rows = job.loader.rows[16]
    monkeypatch.setattr(type(rows), "cycle", 4)
    monkeypatch.setattr(type(rows), "short_rows", lambda self, step: (1, 2, 1, 4)[step % 4])
    monkeypatch.setattr(
        type(rows), "take", lambda self, rows, epoch, short=1: Taken(self.ids[rows].reshape(len(rows) * short, -1))
    )

    def step(forward, loss, optimizers, micro_batches, runtime, max_norm):
        shapes.append([tuple(each.tokens.input_ids.shape) for each in micro_batches])
        return torch.zeros(()), torch.zeros(()), torch.tensor(False)

    timed(job, warm_up=2, take_step=step)
    first, second = [[(4, 16)] * 2, [(8, 8)] * 2, [(16, 4)] * 2], [[(4, 16)] * 3, [(8, 8)] * 3, [(16, 4)] * 3]
    of_each = WARM_STEPS + TIMED_STEPS
    assert len(shapes) == 2 * (2 * 3 + of_each)
    for begin, own in ((0, first), (2 * 3 + of_each, second)):
        assert sorted(shapes[begin : begin + 3]) == sorted(own)
        assert shapes[begin + 3 : begin + 6] == shapes[begin : begin + 3]


def test_documents_of_other_numbers_are_other_shapes(make_job, monkeypatch):
    """All that are timed are computed before."""
    job, seen = make_job(stretches=[Stretch(40, 16, 8, 8)]), []
    own = type(job.loader).micro_batches

    def packed(self, step):
        return [replace(each, tokens=replace(each.tokens, cls=torch.arange(8 + step // 4))) for each in own(self, step)]

    monkeypatch.setattr(type(job.loader), "micro_batches", packed)

    def step(forward, loss, optimizers, micro_batches, *rest):
        seen.append(len(micro_batches[0].tokens.cls))
        return torch.zeros(()), torch.zeros(()), torch.tensor(False)

    timed(job, warm_up=1, take_step=step)  # compiled, which needs none of them
    assert len(seen) == 1 + WARM_STEPS + TIMED_STEPS
    seen.clear()
    timed(job, warm_up=2, take_step=step)
    of_each, different = WARM_STEPS + TIMED_STEPS, 6
    assert len(seen) == 2 * different + of_each
    assert sorted(seen[:different]) == sorted({*seen[2 * different :]})
    assert seen[:different] == seen[different : 2 * different]

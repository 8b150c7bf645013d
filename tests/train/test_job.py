"""A job beyond what tests/test_train.py sees of it: a bad step is named, a run goes on, and what began it is kept."""

import math
import os
import shutil
import signal
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from minilm.batch import Batch
from minilm.checkpoint.store import Store, checkpoints
from minilm.data.loader import Stretch
from minilm.errors import CheckpointError
from minilm.machine.ranks import Ranks
from minilm.machine.runtime import Runtime
from minilm.tasks.task import TaskScore
from minilm.train import job as job_module
from minilm.train.job import VERSIONS, begin, runtime_of, train
from minilm.train.log import read_metrics
from minilm.train.loop import Plan, Score, TrainingError, train_step
from minilm.train.losses import language_model_loss


def plan(steps, **more):
    return Plan(steps=steps, schedule=lambda step: 1.0, **more)


def test_a_bad_step_is_named_with_its_rows(make_job):
    calls = []

    def loss(model, batch: Batch):
        calls.append(batch)
        nats, count = language_model_loss(model, batch)
        return nats * (float("nan") if len(calls) == 6 else 1.0), count  # the second micro-batch of the third step

    job = make_job(loss=loss, stretches=[Stretch(10, 16, 8, 4)])
    with pytest.raises(TrainingError, match="step 3: ") as error:
        train(job, plan(10))
    assert error.value.step == 2
    named = [int(word) for word in str(error.value).split("rows ")[1].split(";")[0].split(", ")]
    assert torch.equal(job.loader.rows[16].ids[named], torch.cat([call.tokens.input_ids for call in calls[4:6]]))


POISONS = {  # what a weight of the model is made in its third step -> what is told
    "a weight": (float("nan"), "the weight encoder.layers.1.attention.out.weight"),
    "an output": (3e38, "the output of encoder.layers.1.attention.out"),
    "the loss": (None, "the loss"),
}


@pytest.mark.parametrize("rows", [8, 1])  # of one row targets and ids share memory
@pytest.mark.parametrize("what", POISONS)
def test_of_a_bad_step_is_told_what_was_bad_first_and_its_batch_is_kept(make_job, what, rows):
    value, told = POISONS[what]
    calls = []

    def loss(model, batch):
        calls.append(batch)
        if len(calls) == 3 and value is not None:
            model.encoder.layers[1].attention.out.weight.data[0] = value
        nats, count = language_model_loss(model, batch)
        return (nats * float("nan") if value is None and len(calls) >= 3 else nats), count

    job = make_job(loss=loss, stretches=[Stretch(8, 16, rows, rows)])
    with pytest.raises(TrainingError, match=r"^step 3: ") as error:
        train(job, plan(8))
    assert f"; first {told}; its batch: bad-step-000003.safetensors)" in str(error.value)
    arrays = load_file(job.store.out / "bad-step-000003.safetensors")
    assert torch.equal(arrays["0.tokens.input_ids"], calls[2].tokens.input_ids)
    assert torch.equal(arrays["0.target"], calls[2].target)


def test_of_a_compiled_step_that_is_bad_the_module_is_told(make_job, graphs):
    """Whose hooks a graph would not call."""
    job = make_job(precision="bf16", loss=Runtime.choose("cpu", "bf16").compiled(language_model_loss))
    job.model.encoder.layers[1].mlp.register_forward_hook(lambda module, inputs, output: output * math.inf)
    with pytest.raises(TrainingError, match=r"^step 1: .*first the output of encoder\.layers\.1\.mlp;"):
        train(job, plan(8))
    assert len(graphs) == 2


def test_of_a_bad_gradient_the_parameter_nearest_to_the_loss_is_told(make_job):
    """Of sqrt|x| at 0; the loss is finite."""

    def loss(model, batch):
        nats, count = language_model_loss(model, batch)
        some = model.encoder.layers[1].attention.out.weight.flatten()[0]
        return nats + (some - some.detach()).abs().sqrt(), count

    with pytest.raises(TrainingError, match=r"first the gradient of encoder\.layers\.1\.attention\.out\.weight;"):
        train(make_job(loss=loss), plan(8))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_job_that_goes_on_is_the_job_bit_for_bit(make_job, bits, monkeypatch, optimizer):
    """With dropout, over the border of two stretches, and with generators that stand elsewhere."""
    whole = make_job(optimizer, out="whole")
    torch.manual_seed(1)
    train(whole, plan(8, seed=3, log_every=2))
    first = make_job(optimizer, out="cut")
    torch.manual_seed(2)
    train(first, plan(8, seed=3, log_every=2, save_every=4))
    (first.store.out / "step-000008").rename(first.store.out / "lost")
    second = make_job(optimizer, out="cut", seed=9)
    torch.manual_seed(3)
    log = train(second, plan(8, seed=3, log_every=2))
    assert log.start == 4
    bits.same(bits.of(whole.model, whole.optimizers), bits.of(second.model, second.optimizers))
    assert not second.model.training
    both = [
        [(line["step"], line["loss"], line["tokens"]) for line in read_metrics(job.store.out / "metrics.jsonl")]
        for job in (whole, second)
    ]
    assert both[0] == both[1]
    assert log.spent.tokens == sum(each.steps * each.rows * each.length for each in whole.loader.stretches)


def test_a_checkpoint_of_another_job_is_refused(make_job):
    train(make_job(), plan(8, save_every=4))
    with pytest.raises(CheckpointError, match="of another run"):
        train(replace(make_job(), settings={"lr": 2e-3}), plan(8))
    with pytest.raises(CheckpointError, match="holds step 8 of 7"):
        train(make_job(), plan(7))


def test_a_model_that_was_trained_before_is_examined_first(make_job):
    """Before the first step, and not again where a run goes on."""
    losses = iter([6.0, 5.0, 4.0, 3.0])
    job = replace(make_job(), evaluate=lambda: Score(next(losses), 0.0, 1), evaluate_first=True, unigram=6.5)
    log = train(job, plan(8, evaluate_every=4, save_every=4))
    held_out = [
        (line["step"], line["held_out_loss"])
        for line in read_metrics(job.store.out / "metrics.jsonl")
        if "held_out_loss" in line
    ]
    assert held_out == [(0, 6.0), (4, 5.0), (8, 4.0)]
    assert (log.loss_before, log.unigram, log.score.loss) == (6.0, 6.5, 4.0)
    again = replace(make_job(), evaluate=job.evaluate, evaluate_first=True)
    assert train(again, plan(8, evaluate_every=4)).loss_before == 6.0
    assert next(losses) == 3.0  # nobody asked


@pytest.mark.parametrize("step", [0, 4, 8])
def test_an_evaluation_that_a_signal_breaks_off_is_made_when_the_run_goes_on(make_job, bits, step, capsys):
    """Of the first step, one on the way and the last: it saves and ends, and comes to the same."""
    more = {"seed": 3, "log_every": 2, "evaluate_every": 4, "save_every": 4}
    whole = replace(make_job("adamw", out="whole"), evaluate_first=True)
    log = train(whole, plan(8, **more))
    asked = []

    def evaluate():
        asked.append(4 * len(asked))
        if asked[-1] == step:
            os.kill(os.getpid(), signal.SIGUSR1)
            raise AssertionError("it goes on")
        return Score(1.0, 0.0, 1)

    with pytest.raises(SystemExit) as stop:
        train(replace(make_job("adamw"), evaluate=evaluate, evaluate_first=True), plan(8, **more))
    assert (stop.value.code, asked) == (0, [*range(0, step + 1, 4)])
    said = f"saved at step {step}" if step else "stopped before the first step"
    assert said in capsys.readouterr().err.splitlines()[-1]
    again = replace(make_job("adamw", seed=9 if step else 0), evaluate_first=True)
    lines = train(again, plan(8, **more)).file
    bits.same(bits.of(whole.model, whole.optimizers), bits.of(again.model, again.optimizers))
    both = [[(line["step"], line.get("loss"), "held_out_loss" in line) for line in read_metrics(file)]
            for file in (log.file, lines)]  # fmt: skip
    assert both[0] == both[1]


def test_a_signal_before_an_evaluation_leaves_that_for_later(make_job):
    """The first of three tells the run to stop while it trains to the step of the evaluation."""
    asked = []

    def loss(model, batch):
        if len(asked) == 0 and not hasattr(loss, "told"):
            loss.told = True
            os.kill(os.getpid(), signal.SIGTERM)
        return language_model_loss(model, batch)

    def evaluate():
        asked.append(1)
        return Score(1.0, 0.0, 1)

    with pytest.raises(SystemExit) as stop:
        train(replace(make_job(loss=loss), evaluate=evaluate), plan(8, evaluate_every=1))
    assert (stop.value.code, asked) == (143, [])
    train(replace(make_job(), evaluate=evaluate), plan(8, evaluate_every=1))
    assert len(asked) == 8


def test_it_stops_when_its_time_is_up(make_job):
    with pytest.raises(SystemExit) as stop:
        train(replace(make_job(), until=time.monotonic() - 1), plan(8))
    assert stop.value.code == 0
    assert checkpoints(make_job().store.out)[-1][0] == 1


# -- no room -----------------------------------------------------------------------------------------


def size_of(directory):
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def free(monkeypatch, *mb):
    """That many MB are free, one look after the other; the last for ever."""
    left = list(mb)
    monkeypatch.setattr(
        "minilm.checkpoint.store.shutil.disk_usage",
        lambda path: (2**50, 0, (left.pop(0) if len(left) > 1 else left[0]) * 2**20),
    )


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_without_room_for_its_checkpoints_a_run_does_not_begin(make_job, monkeypatch, optimizer):
    """Three of them are there for a moment, and it knows beforehand how large they are."""
    made = make_job(optimizer, out="whole")
    train(made, plan(8, save_every=2))
    whole = size_of(made.store.checkpoint(8)) / 2**20
    free(monkeypatch, 2.5 * whole)
    job = make_job(optimizer)
    with pytest.raises(CheckpointError, match=r"3 x .* MB of checkpoints, then .* MB of the model are needed") as error:
        train(job, plan(8, save_every=2))
    assert "; make room, then the same command resumes from the start" in str(error.value)
    with pytest.raises(CheckpointError, match="4 x"):  # the best one stays beside them
        train(replace(job, patience=2), plan(8, save_every=2))
    assert checkpoints(job.store.out) == []
    model = sum(own.numel() * own.element_size() for own in job.model.state_dict().values()) / 2**20
    for mb, steps in ((whole + 0.9 * model, 2), (2.9 * whole, 8)):  # one checkpoint and the model; three are more
        free(monkeypatch, mb)
        with pytest.raises(CheckpointError, match="of the model are needed"):
            job.store.check_space(int(whole * 2**20), steps, 2, int(model * 2**20))
        free(monkeypatch, mb + 0.2 * whole)
        job.store.check_space(int(whole * 2**20), steps, 2, int(model * 2**20))
    free(monkeypatch, 3.5 * whole)
    train(job, plan(8, save_every=2))
    free(monkeypatch, 1.5 * whole)
    train(make_job(optimizer, out="short"), plan(2, save_every=4))  # which saves one


def test_a_save_without_room_ends_a_run_or_is_left_out(make_job, monkeypatch, bits, capsys):
    whole = make_job(out="whole")
    train(whole, plan(8, save_every=2))
    free(monkeypatch, 1e6, 1e6, 0)
    job = make_job()
    with pytest.raises(CheckpointError, match=r"of step 4 are needed; make room, .* resumes from step-000002"):
        train(job, plan(8, save_every=2))
    free(monkeypatch, 0, 0, 1e6)  # after 4 and 6 there is none
    again = replace(make_job(), may_miss_saves=True)
    train(again, plan(8, save_every=2))
    assert capsys.readouterr().err.count("was not saved, and the run continues") == 2
    assert [step for step, _ in checkpoints(job.store.out)] == [2, 8]
    bits.same(bits.of(whole.model, whole.optimizers), bits.of(again.model, again.optimizers))
    free(monkeypatch, 0)
    with pytest.raises(CheckpointError, match="of step 8 are needed"):  # what is left of it must be saved
        train(replace(make_job(out="other"), may_miss_saves=True), plan(8, save_every=2))


# what each evaluation is worth; of how many evaluations without a better one the run ends: where it ends, the best step
ENDS = {
    "it is best at the end": ([1.0, 2.0, 3.0, 4.0], 2, 8, 8),
    "it is best on the way": ([1.0, 4.0, 3.0, 2.0], 3, 8, 4),
    "it is as good again": ([1.0, 4.0, 3.0, 4.0], 3, 8, 8),
    "it is not better again": ([4.0, 3.0, 4.0, 5.0], 2, 6, 6),
    "it is not getting better": ([3.0, 1.0, 2.0, 4.0], 2, 6, 2),
    "it is not a number": ([float("nan"), 1.0, float("nan"), float("nan")], 2, 8, 4),
}


@pytest.mark.parametrize("what", ENDS)
def test_the_best_model_is_kept_and_ends_the_run(make_job, bits, what, monkeypatch, capsys):
    """Also where it is killed after any step: the run that goes on ends where this one does, with the same bits."""
    values, patience, end, best = ENDS[what]
    twice = plan(8, seed=3, log_every=2, evaluate_every=2, save_every=2)

    def job(out, seed=0):
        made = make_job("adamw", out=out, seed=seed)
        asked = iter(values[len(list(made.store.out.glob("step-*.done"))) :])

        def evaluate():
            kept[out].append({name: own.clone() for name, own in made.model.state_dict().items()})
            return Score(-next(asked), 0.0, 1)

        return replace(made, evaluate=evaluate, patience=patience)

    kept = {"whole": [], "cut": []}
    whole = job("whole")
    log = train(whole, twice)
    assert [line["step"] for line in read_metrics(log.file)][-1] == end
    assert len(kept["whole"]) == end // 2
    expected = kept["whole"][best // 2 - 1]
    assert all(torch.equal(own, expected[name]) for name, own in whole.model.state_dict().items())
    said = capsys.readouterr().err
    assert f"the best model, that of step {best}, is kept" in said
    assert ("stopped early: " in said) == (end < 8)
    steps = [path.name for _, path in checkpoints(whole.store.out)]
    assert f"step-{best:06d}" in steps
    assert len(steps) <= 3
    for number in range(1, end // 2 + 1):  # of evaluations until it is killed
        made = job("cut")

        def killed(step, write, number=number, out=made.store.out, **more):
            path = Store(out).save(step, write, **more)
            (out / f"{path.name}.done").touch()
            if step == 2 * number:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(made.store, "save", killed)
            with pytest.raises(KeyboardInterrupt):
                train(made, twice)
        made = job("cut", seed=9)
        train(made, twice)
        bits.same(bits.of(whole.model), bits.of(made.model))
        shutil.rmtree(made.store.out)


def test_a_best_checkpoint_that_is_damaged_is_said_and_the_last_model_kept(make_job, bits, capsys):
    """Else no command would ever finish the run."""
    asked = iter([1.0, 2.0, 3.0, 4.0])
    made = make_job()

    def evaluate():
        if len(found) == 3:
            (made.store.checkpoint(2) / "model.safetensors").unlink()
        found.append(bits.of(made.model))
        return Score(next(asked), 0.0, 1)

    found = []
    log = train(replace(made, evaluate=evaluate, patience=9), plan(8, evaluate_every=2, save_every=2))
    assert (log.best, log.best_is_lost) == (8, True)
    bits.same(bits.of(made.model), found[-1])
    assert "step-000002, the best model, is damaged" in capsys.readouterr().err


def test_an_evaluation_without_memory_is_tried_without_graphs(make_job):
    graphs, tried = {"a shape": "a graph"}, []

    def evaluate():
        tried.append(len(graphs))
        if graphs:
            raise RuntimeError("CUDA out of memory")
        return Score(1.0, 0.0, 1)

    def take_step(*of):
        return train_step(*of)

    take_step.of_shape = graphs
    job = replace(make_job(), evaluate=evaluate, take_step=take_step)
    train(job, plan(2, evaluate_every=2))
    assert tried == [1, 0]
    graphs["again"] = "a graph"
    take_step.of_shape = {}
    with pytest.raises(RuntimeError, match="out of memory"):
        train(replace(make_job(out="other"), evaluate=evaluate, take_step=take_step), plan(2, evaluate_every=2))


def test_of_equal_scores_the_lowest_loss_decides(make_job):
    asked = iter([(0.5, 1.0), (0.9, 3.0), (0.9, 2.0), (0.9, 2.5)])
    made = make_job()

    def evaluate():
        value, loss = next(asked)
        return TaskScore(loss, {"accuracy": value})

    assert train(replace(made, evaluate=evaluate, patience=9), plan(8, evaluate_every=2, save_every=2)).best == 6


@pytest.mark.parametrize(("losses", "end"), [([4.0, 3.0, 2.0, 2.5], 8), ([4.0, 4.0, 4.5, 3.0], 6)])
def test_a_score_that_stands_still_ends_no_run_whose_loss_falls(make_job, losses, end):
    asked = iter(losses)
    job = replace(make_job(), evaluate=lambda: TaskScore(next(asked), {"accuracy": 0.5}), patience=2)
    assert train(job, plan(8, log_every=2, evaluate_every=2, save_every=2)).done == end


def test_energy_of_one_process_among_several_is_not_that_of_the_run(make_job, monkeypatch):
    """A sensor counts for the whole machine, which all of them share."""

    class Meter:
        def __init__(self, device):
            pass

        def spent(self):
            return 2.0

    monkeypatch.setattr(job_module, "EnergyMeter", Meter)
    assert train(make_job(out="one"), plan(8, log_every=4)).spent.joules == 4.0
    job = make_job(out="two")
    monkeypatch.setattr(Ranks, "parallel", lambda self, module: module)
    for name, own in (
        ("total", lambda self, *values: list(values)),
        ("any_on_device", lambda self, flag: flag),
        ("from_first", lambda self, make: make()),
        ("agreed", lambda self, work: work()),
    ):
        monkeypatch.setattr(Ranks, name, own)
    job = replace(job, runtime=replace(job.runtime, ranks=Ranks(0, 2)))
    assert train(job, plan(8, log_every=4)).spent.joules is None


def test_what_a_run_began_with_is_kept_and_what_changed_is_said(make_job, capsys, monkeypatch):
    job = make_job()
    run = begin(job, 8, "sdpa")
    assert (run.precision, run.threads, run.world, run.steps) == ("fp32", job.runtime.threads, 1, 8)
    again = job.store.earlier_run(job.settings, {}, "auto")
    assert again == run
    assert runtime_of(again, "cpu", "auto", None).reason == "as before"
    assert capsys.readouterr().err == ""
    for change, said in (
        ({"world": 4}, "processes 4, now it is 1"),
        ({"device": "cuda"}, "device cuda, now it is cpu"),
        ({"versions": VERSIONS | {"torch": "1.0"}}, "torch 1.0, now it is"),
    ):
        runtime_of(replace(run, **change), "cpu", "auto", None)
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line
        assert "not bit for bit" in line
        runtime_of(replace(run, **change, result={"loss": 1.0}), "cpu", "auto", None)
        assert capsys.readouterr().err == ""  # a finished run is not gone on with
    given = []
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: given[-1])
    for cores, asked, threads in ((64, None, 5), (2, None, 2), (2, 3, 3)):
        monkeypatch.setattr("minilm.machine.cores.cores", lambda cores=cores: cores)
        assert runtime_of(replace(run, threads=5), "cpu", "auto", asked).threads == threads
        assert ("began with threads 5, now it is" in capsys.readouterr().err) == (threads != 5)

"""Tuning: it learns, goes on as if it had never stopped, and each setting does what it says."""

import json
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

import minilm
from minilm.checkpoint.store import Store
from minilm.dropin.tokenizer import BertTokenizer
from minilm.errors import ConfigError, DataError
from minilm.finetuning import run as tune_module
from minilm.finetuning.batches import ExampleBatches, row_length_of
from minilm.finetuning.run import tune
from minilm.finetuning.settings import Tuning
from minilm.tasks.classification import Classification
from minilm.tasks.named import TASKS, make_task, model_for, open_task
from minilm.tasks.span import Span
from minilm.tasks.task import Features, outputs_of
from minilm.train.cheap import cheapen
from minilm.train.log import read_metrics
from minilm.train.loop import OutOfMemory, TrainingError
from minilm.train.lora import merge, merged_state

QUICK = Tuning(epochs=6, batch_size=8, lr=3e-3, length=24, patience=100)


@pytest.fixture
def directory(encoder_directory):
    """That of a model without a head."""
    return encoder_directory


@pytest.fixture
def go(directory, reviews, tmp_path):
    """go(out, tuning, task): a run of 48 examples, 16 to choose by, in tmp_path/out."""

    def run(out="run", tuning=QUICK, task=None, examples=None, dev=None, seed=0, **more):
        examples, dev = examples or reviews(48), dev or reviews(16, seed=9)
        model, task = model_for(task or make_task("classification", examples), directory, seed)
        store = Store(tmp_path / out)
        with store.hold():
            return tune(
                task,
                model,
                BertTokenizer.from_pretrained(directory),
                examples,
                dev,
                tuning,
                store,
                device="cpu",
                precision="fp32",
                **more,
            )

    run.directory = directory
    return run


LONGER = [" and" * (i % 5) for i in range(60)]  # so that steps have other shapes
OF_TASK = {
    "classification": [{"text": f"the film{more}", "label": "ab"[i % 2]} for i, more in enumerate(LONGER)],
    "multilabel": [{"text": f"the film{more}", "label": ("a", "a|b")[i % 2]} for i, more in enumerate(LONGER)],
    "regression": [{"text": f"the film{more}", "label": i / 60} for i, more in enumerate(LONGER)],
    "similarity": [{"sentence1": f"a{more}", "sentence2": "plot", "label": i / 60} for i, more in enumerate(LONGER)],
    "tagging": [
        {"words": f"the film{more}".split(), "tags": ["O", "B-X", *["O"] * len(more.split())]} for more in LONGER
    ],
    "span": [
        {"question": "what", "context": f"the film{more}", "answers": {"text": ["film"], "answer_start": [4]}}
        for more in LONGER
    ],
    "choice": [{"question": f"the{more}", "choice1": "a", "choice2": "plot", "label": 1} for more in LONGER],
}


def test_every_task_is_compiled_here():
    assert {*OF_TASK} == {*TASKS}


@pytest.mark.parametrize(
    ("task", "size", "most"),
    [
        ("classification", 8, 5),  # of some steps a size is 1
        ("choice", 8, 5),
        *((task, 26, 3) for task in OF_TASK if task not in ("classification", "choice")),
    ],
)
def test_a_compiled_run_is_the_run(directory, graphs, monkeypatch, task, size, most):
    """Before code is made of them, which rounds elsewhere, graphs compute the same bits. In bf16: on some processors
    fp32 has products of its own; and without what is made cheap on a CPU alone."""
    monkeypatch.setattr(tune_module, "cheapen", lambda *of: None)
    settings = {"steps": 3, "batch_size": size, "length": 24, "device": "cpu", "precision": "bf16", "task": task}
    rows = [row | ({"id": str(i)} if task == "span" else {}) for i, row in enumerate(OF_TASK[task])]
    eager = minilm.finetune(directory, rows, rows[:9], **settings)
    assert graphs == []
    compiled = minilm.finetune(directory, rows, rows[:9], **settings, compile=True)
    assert 2 <= len(graphs) <= most  # of 7: a trial, one for all shapes, and some where a size is 1
    assert same(weights(eager), weights(compiled))


def test_a_run_goes_on_as_compiled_as_it_began(go, graphs, monkeypatch):
    monkeypatch.setattr(tune_module, "cheapen", lambda *of: None)
    monkeypatch.setattr("minilm.machine.onednn.is_faster", lambda: False)
    go()
    with pytest.raises(ConfigError, match="compile"):
        go(compile=True)
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="needs a GPU"):
        go("other", compile=True)


@pytest.mark.parametrize("task", [task for task in OF_TASK if task != "span"])
def test_a_replayed_run_is_the_run(directory, replays, monkeypatch, task):
    """Of batches of the same sizes, whose steps are computed as usual."""
    settings = {"steps": 16, "batch_size": 8, "length": 24, "device": "cpu", "precision": "fp32", "task": task}
    rows = OF_TASK[task]
    replayed = minilm.finetune(directory, rows, rows[:9], **settings, cuda_graphs=True)
    assert sum(each.count for each in replays) >= 8
    monkeypatch.setattr("minilm.train.graphs.MOST", 0)
    usual = minilm.finetune(directory, rows, rows[:9], **settings, cuda_graphs=True)
    assert same(weights(usual), weights(replayed))
    assert usual.result["dev"] == replayed.result["dev"]


def test_a_weighted_loss_is_replayed(go, replays, reviews, monkeypatch):
    task = make_task("classification", reviews(48), "balanced", 0.1)
    assert task.weights
    replayed = go(task=task, cuda_graphs=True)
    assert sum(each.count for each in replays) > 0
    monkeypatch.setattr("minilm.train.graphs.MOST", 0)
    assert same(weights(replayed), weights(go("usual", task=task, cuda_graphs=True)))
    assert not same(weights(replayed), weights(go("plain", cuda_graphs=True)))


def test_a_run_goes_on_as_replayed_as_it_began(go, replays):
    go()
    with pytest.raises(ConfigError, match="cuda"):
        go(cuda_graphs=True)
    go("other", cuda_graphs=True)
    with pytest.raises(ConfigError, match="cuda"):
        go("other")


def test_a_weighted_loss_is_compiled(directory, graphs, monkeypatch, reviews):
    monkeypatch.setattr(tune_module, "cheapen", lambda *of: None)
    rows = [{"text": each.text, "label": each.label} for each in reviews(24)]
    settings = {"steps": 4, "length": 24, "device": "cpu", "precision": "bf16", "class_weights": "balanced"}
    eager, compiled = (minilm.finetune(directory, rows, rows[:9], **settings, compile=each) for each in (False, True))
    assert graphs
    assert same(weights(eager), weights(compiled))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"tuning": replace(QUICK, gradient_checkpointing=True)}, "--gradient-checkpointing"),
        ({"task": Span()}, "--task span"),
    ],
)
def test_what_is_not_replayed_is_refused(go, replays, changes, what):
    with pytest.raises(ConfigError, match=f"--cuda-graphs: does not work with {what}; leave it out"):
        go(**changes, cuda_graphs=True)


def weights(tuned):
    return {name: own.clone() for name, own in tuned.model.state_dict().items()}


def same(a, b):
    return all(torch.equal(own, b[name]) for name, own in a.items())


def test_it_learns_and_what_it_wrote_says_the_same(go, reviews, tmp_path):
    longer = replace(QUICK, epochs=20, lr=5e-3)
    tuned = go(tuning=longer)
    assert tuned.result["dev"]["accuracy"] >= 0.95
    model, task = open_task(tmp_path / "run")
    assert task == Classification(("bad", "good"))
    assert same(weights(tuned), model.state_dict())
    assert model.config.id2label == {0: "bad", 1: "good"}
    assert task.score(tuned.predictions(reviews(60, seed=3)))["accuracy"] >= 0.85
    again = go(tuning=longer)
    assert again.result == tuned.result
    assert same(weights(again), weights(tuned))


@pytest.mark.parametrize(
    ("tuning", "stops"), [(QUICK, (0, 3)), (replace(QUICK, lora_rank=2), (3,))], ids=["plain", "lora"]
)
def test_going_on_is_going_through(go, tmp_path, tuning, stops):
    """Stopped after any epoch, it ends with the same bits."""
    whole = weights(go("whole", tuning))
    steps = [line["step"] for line in read_metrics(tmp_path / "whole" / "metrics.jsonl") if "held_out_loss" in line]
    assert len(steps) == 6
    for stop in (steps[i] for i in stops):

        class Stopped(Exception):
            pass

        def save(self, step, write, real=Store.save, stop=stop, **more):
            found = real(self, step, write, **more)
            if step == stop:
                raise Stopped
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Store, "save", save)
            with pytest.raises(Stopped):
                go(f"cut{stop}", tuning)
        torch.manual_seed(stop)
        assert same(weights(go(f"cut{stop}", tuning)), whole)


@pytest.mark.parametrize(
    "odd",
    [
        {"batch_size": 0},
        {"batch_size": 2.5},
        {"batch_size": None},
        {"lr": 0.0},
        {"lr": "3e-5"},
        {"steps": 0},
        {"steps": True},
        {"epochs": float("nan")},
        {"seed": -1},
        {"max_norm": -1},
        {"tokens_at_once": 0},
    ],
)
def test_settings_that_cannot_be(odd):
    with pytest.raises(ConfigError, match=f"{next(iter(odd))} is .*; give a (value|whole number) from"):
        Tuning(**odd)
    own = Tuning(batch_size=np.int64(8), lr=np.float32(0.5), epochs=1)
    assert [type(value) for value in (own.batch_size, own.lr, own.epochs)] == [int, float, float]
    with pytest.raises(ConfigError, match="--lora-alpha 32: is for LoRA; give --lora-rank, too"):
        Tuning(lora_alpha=32)
    assert Tuning(lora_alpha=32, lora_rank=4).lora_alpha == 32


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        ({"task": "clasification"}, "did you mean classification?"),
        ({"class_weights": "x"}, "give balanced"),
        ({"label_smoothing": "0.1"}, "give a value from 0 to 0.9"),
        ({"epochs": 1, "steps": 10}, "epochs and steps: exclude each other"),
    ],
)
def test_keywords_that_cannot_be(directory, odd, said):
    rows = [{"text": "the film", "label": label} for label in "ab" * 10]
    with pytest.raises(ConfigError, match=re.escape(said)):
        minilm.finetune(directory, rows, **odd)


def test_one_text_is_no_list(go):
    with pytest.raises(DataError, match="predict takes a list of texts"):
        go(tuning=replace(QUICK, steps=1)).predict("fine")


def test_packing_changes_nothing(go, directory, reviews):
    """After 12 steps without dropout: the weights of a loop over padded batches of the same examples."""
    examples = reviews(48, pairs=True)
    tuning = replace(QUICK, steps=12, warmup_frac=0.25, lr=1e-3, evaluate_every=12)
    model, task = model_for(make_task("classification", examples), directory)

    def without(model, table=None):
        cheapen(model, table)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0

    without(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minilm.finetuning.run.cheapen", without)
        tuned = go(tuning=tuning, examples=examples, dev=examples)
    features = task.features(examples, BertTokenizer.from_pretrained(directory), 24)
    batches = ExampleBatches(features, tuning)
    decayed = [own for own in model.parameters() if own.ndim > 1]
    plain = [own for own in model.parameters() if own.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}], lr=1e-3, eps=1e-6
    )
    model.train()
    tokenizer = BertTokenizer.from_pretrained(directory)
    for step in range(12):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * ((step + 1) / 3 if step < 3 else (12 - step) / 9)
        rows = [examples[row] for row in batches.order(step)[1]]
        texts, pairs = [each.text for each in rows], [each.pair for each in rows]
        inputs = tokenizer(texts, pairs, padding=True, truncation=True, max_length=24, return_tensors="pt")
        loss = model(**inputs, labels=torch.tensor([task.labels.index(each.label) for each in rows])).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    own = model.state_dict()
    assert max((own[name] - other).abs().max().item() for name, other in weights(tuned).items()) < 1e-5


@pytest.mark.parametrize("task", OF_TASK)
def test_packed_units_learn_as_each_by_itself(directory, monkeypatch, task):
    """Of every task, without dropout; a step spans two epochs, so that a unit may be there twice."""

    def without(model, table=None):
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0

    monkeypatch.setattr(tune_module, "cheapen", without)
    rows = [row | ({"id": str(i)} if task == "span" else {}) for i, row in enumerate(OF_TASK[task][:20])]
    settings = {"steps": 4, "batch_size": 12, "length": 24, "device": "cpu", "precision": "fp32", "task": task}
    packed = weights(minilm.finetune(directory, rows, rows, **settings))
    alone = weights(minilm.finetune(directory, rows, rows, **settings, tokens_at_once=1))
    assert max((packed[name] - other).abs().max().item() for name, other in alone.items()) < 1e-5
    assert not same(packed, weights(minilm.finetune(directory, rows, rows, **settings | {"steps": 3})))


@pytest.mark.parametrize(("longest", "length", "row"), [(20, 512, 128), (130, 512, 192), (500, 512, 512), (24, 24, 24)])
def test_rows_of_a_gpu_are_no_longer_than_they_need_be(longest, length, row):
    lengths = [3, longest, 5]
    features = Features(
        np.zeros(sum(lengths), np.int32), np.zeros(0), np.cumsum([0, *lengths]), np.zeros(3), np.arange(3)
    )
    assert row_length_of(features, length) == row


@pytest.mark.parametrize(
    ("parameters", "rate"), [(2_000_000, 2e-4), (22_700_000, 5e-5), (110_000_000, 3e-5), (335_000_000, 2e-5)]
)
def test_larger_models_learn_at_lower_rates(parameters, rate):
    """And LoRA at ten times theirs, as Hu et al. 2021 found; one that is given is taken."""
    model = torch.nn.Module()
    model.one = torch.nn.Parameter(torch.empty(parameters, device="meta"))
    assert Tuning().rate(model) == rate
    assert Tuning(lora_rank=4).rate(model) == pytest.approx(10 * rate)
    assert Tuning(lr=1e-3, lora_rank=4).rate(model) == 1e-3


def test_smoothed_labels_are_learned(directory, reviews):
    rows = [{"text": each.text, "label": each.label} for each in reviews(24)]
    settings = {"steps": 4, "length": 24, "device": "cpu", "precision": "fp32"}
    plain, smoothed = (minilm.finetune(directory, rows, rows, **settings, label_smoothing=each) for each in (0.0, 0.3))
    assert smoothed.task.smoothing == 0.3
    assert not same(weights(plain), weights(smoothed))


def test_what_does_not_fit_is_computed_in_parts(go, monkeypatch, capsys):
    """To the bits of a run in these parts."""
    sizes, fitted, plain = [], [], Classification.loss

    def full_above(self, model, batch):
        size = batch.tokens.input_ids.numel()
        found = plain(self, model, batch)
        if size <= 64:
            fitted.append(size)
        elif not fitted:  # in the first step
            sizes.append(size)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return found

    monkeypatch.setattr(Classification, "loss", full_above)
    with pytest.raises(
        OutOfMemory, match=r"step 1: out of memory with \d+ rows of \d+ .*--auto-batch for smaller micro-batches"
    ):
        go()
    sizes.clear()
    found = go(auto_batch=True)
    halved = [
        int(tokens) for tokens in re.findall(r"micro-batches are now at most (\d+) tokens", capsys.readouterr().err)
    ]
    assert halved == [size // 2 for size in sizes]
    assert len(halved) > 0
    monkeypatch.setattr(Classification, "loss", plain)
    parts = go("parts", replace(QUICK, tokens_at_once=halved[-1]))
    assert same(weights(found), weights(parts))
    assert not same(weights(found), weights(go("whole")))


@pytest.mark.parametrize("most", [1 << 14, 60, 30, 7])
def test_no_part_of_a_step_has_more_tokens_than_are_asked_for(go, reviews, most):
    """Unless a text alone has; together they are the step."""
    tokenizer = BertTokenizer.from_pretrained(go.directory)
    features = Classification(("bad", "good")).features(reviews(48), tokenizer, 24)
    whole, batches = ExampleBatches(features, QUICK), ExampleBatches(features, QUICK).within(most)
    for step in range(6):
        parts = batches.micro_batches(step)
        assert all(part.size <= most or part.count == 1 for part in parts)
        assert sum(part.count for part in parts) == QUICK.batch_size
        assert sum(part.size for part in parts) == whole.micro_batches(step)[0].size
        assert len(parts) > 1 or most > 60


def test_each_setting_does_something(go, directory):
    """Other weights than without it; and what is to stay as it was stays."""
    short = replace(QUICK, epochs=1)
    plain = weights(go("plain", short))
    before, _ = model_for(Classification(("bad", "good")), directory)
    start = before.state_dict()
    upper = "bert.encoder.layers.1.mlp.inp.weight"
    for name, changed in {"frozen_layers": replace(short, frozen_layers=1), "seed": replace(short, seed=1)}.items():
        found = weights(go(name, changed))
        assert not same(found, plain), name
        if name == "frozen_layers":
            frozen = [key for key in found if key.startswith(("bert.encoder.embedding", "bert.encoder.layers.0"))]
            assert all(torch.equal(found[key], start[key]) for key in frozen)
            assert not torch.equal(found[upper], start[upper])
            tuned = go(name, changed)  # and may be trained on as any model
            assert all(own.requires_grad for own in tuned.model.parameters())
    tuned = go("checkpointed", replace(short, gradient_checkpointing=True))
    assert not tuned.model.base_model.encoder.gradient_checkpointing
    same_bits = weights(tuned)
    assert max((same_bits[key] - plain[key]).abs().max() for key in plain) < 1e-4


@pytest.fixture
def planned(go, monkeypatch):
    """planned(tuning) -> (job, plan) of the run, which is not begun."""

    class Planned(Exception):
        pass

    def stop(job, plan):
        raise Planned(job, plan)

    monkeypatch.setattr(tune_module, "train", stop)

    def of(tuning):
        with pytest.raises(Planned) as stopped:
            go(tuning=tuning)
        return stopped.value.args

    return of


def test_each_stage_learns_at_its_own_rate(planned):
    """A layer by `layer_decay` slower than the one above, the first one above the encoder's last."""
    job, _ = planned(replace(QUICK, lr=0.8, layer_decay=0.5, weight_decay=0.3))
    (adamw,) = job.optimizers
    group_of = {own: group for group in adamw.param_groups for own in group["params"]}
    slower = {"bert.encoder.layers.1.": 0.4, "bert.encoder.layers.0.": 0.2, "bert.encoder.embedding.": 0.1}
    seen = set()
    for name, own in job.model.named_parameters():
        peak = next((rate for stage, rate in slower.items() if name.startswith(stage)), 0.8)
        found = group_of[own]["peak_lr"], group_of[own]["weight_decay"]
        assert found == (pytest.approx(peak), 0.3 if own.ndim > 1 else 0.0), name
        seen.add(peak)
    assert seen == {0.8, 0.4, 0.2, 0.1}


def test_the_plan_is_as_its_tuning_says(planned):
    _, plan = planned(replace(QUICK, steps=40, warmup_frac=0.25, max_norm=0.5, seed=3, evaluate_every=7))
    assert (plan.steps, plan.max_norm, plan.seed, plan.evaluate_every, plan.save_every) == (40, 0.5, 3, 7, 7)
    assert [plan.schedule(step) for step in (0, 9, 10, 25, 39)] == pytest.approx([0.1, 1, 1, 0.5, 1 / 30])


@pytest.mark.parametrize("alpha", [2.0, 16.0])
def test_lora_adds_alpha_by_rank_of_its_product(planned, directory, alpha):
    """As it computes, as it is saved and as it is merged."""
    job, _ = planned(replace(QUICK, lora_rank=4, lora_alpha=alpha))
    before = model_for(Classification(("bad", "good")), directory)[0].state_dict()
    layers = [f"bert.encoder.layers.{i}.attention.qkv" for i in range(2)]
    wanted, computed = {}, {}
    torch.manual_seed(0)
    for name in layers:
        own = job.model.get_submodule(name)
        small = own.parametrizations.weight[0]
        a, b = (torch.nn.init.normal_(each) for each in (small.A, small.B))
        products = torch.cat([b[i] @ a[i] for i in range(3)])
        wanted[f"{name}.weight"] = before[f"{name}.weight"] + alpha / 4 * products
        computed[f"{name}.weight"] = own.weight
    saved, _ = merged_state(job.model, job.model.state_dict())
    merge(job.model)
    for found in (computed, saved, job.model.state_dict()):
        for name, own in wanted.items():
            assert (found[name] - own).abs().max() < 1e-4


def test_lora_learns_beside_a_frozen_encoder_and_is_merged(go, directory, tmp_path, reviews):
    """q, k and v each by a rank of their own; the rest of the encoder stays to the last bit."""
    before = model_for(Classification(("bad", "good")), directory)[0].state_dict()
    tuned = go("lora", replace(QUICK, lora_rank=2, epochs=20, lr=2e-2))
    found = weights(tuned)
    assert found.keys() == before.keys()
    for name, own in found.items():
        delta = own - before[name]
        if name.endswith("qkv.weight"):
            ranks = [torch.linalg.matrix_rank(part, tol=1e-5).item() for part in delta.chunk(3)]
            assert ranks == [2, 2, 2], name
        elif name.startswith("bert.encoder"):
            assert not delta.any(), name
    assert found["classifier.weight"].ne(before["classifier.weight"]).any()
    assert tuned.result["dev"]["accuracy"] > 0.7
    assert same(found, open_task(tmp_path / "lora")[0].state_dict())
    adapter = load_file(tmp_path / "lora" / "adapter.safetensors")
    assert sorted({tuple(own.shape) for own in adapter.values()}) == [(3, 2, 32), (3, 32, 2)]


def test_class_weights_count_rare_labels_more(go, reviews):
    examples = [each for each in reviews(200) if each.label == "good" or int(each.where[4:]) % 10 == 0]
    examples = examples[:60]
    balanced = make_task("classification", examples, "balanced")
    counts = {label: sum(each.label == label for each in examples) for label in balanced.labels}
    for label, weight in zip(balanced.labels, balanced.weights, strict=True):
        assert weight == pytest.approx(60 / 2 / counts[label])
    short = replace(QUICK, epochs=4, lr=5e-4, evaluate_every=1000)
    chances = {}
    for name, task in (("plain", make_task("classification", examples)), ("balanced", balanced)):
        tuned = go(name, short, task, examples)
        logits = torch.from_numpy(tuned.predictions(reviews(40, seed=5)).outputs)
        chances[name] = logits.softmax(1)[:, 0].mean().item()
    assert chances["balanced"] > chances["plain"] + 0.05


def test_patience_ends_it_and_the_best_is_kept(go, tmp_path, monkeypatch):
    scores = iter([0.5, 0.9, 0.6, 0.7, 0.8, 0.8])
    monkeypatch.setattr(Classification, "score", lambda self, *args: {"accuracy": next(scores)})
    monkeypatch.setattr(tune_module, "outputs_of", lambda *args: (outputs_of(*args)[0], 1.0))  # a loss that stays
    tuned = go(tuning=replace(QUICK, patience=2))
    evaluated = [line["step"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "held_out_loss" in line]
    assert evaluated == [6, 12, 18, 24]
    assert tuned.result["best_step"] == 12
    monkeypatch.undo()
    again = iter([0.5, 0.9])
    monkeypatch.setattr(Classification, "score", lambda self, *args: {"accuracy": next(again, 0.1)})
    second = go("two", replace(QUICK, patience=100))
    twelve = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (twelve["steps"], twelve["result"]["steps"], twelve["result"]["epochs"]) == (36, 24, 4)
    assert same(weights(tuned), weights(second))


def test_few_examples_have_steps_enough(directory, reviews):
    """Three epochs of many, 200 steps of few; what is asked for is done."""
    examples = reviews(50)
    features = make_task("classification", examples).features(examples, BertTokenizer.from_pretrained(directory), 24)
    for batch_size, steps in ((8, 200), (2, 200), (1, 200), (32, 200)):
        assert ExampleBatches(features, Tuning(batch_size=batch_size)).steps == steps
    many = examples * 3
    features = make_task("classification", many).features(many, BertTokenizer.from_pretrained(directory), 24)
    assert ExampleBatches(features, Tuning(batch_size=2)).steps == 225
    assert ExampleBatches(features, Tuning(batch_size=2, epochs=1)).steps == 75
    assert ExampleBatches(features, Tuning(batch_size=2, steps=5)).steps == 5


def test_a_long_run_on_few_examples_is_evaluated_twenty_times(go, tmp_path):
    go(tuning=replace(QUICK, epochs=None, steps=160))
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines if "held_out_loss" in line] == [*range(8, 161, 8)]


def test_a_bad_step_names_its_examples_and_a_short_length_what_it_cuts(go, reviews, monkeypatch, capsys):
    examples = reviews(48)
    longer = sum(len(each.text.split()) > 3 for each in examples)
    go("cut", replace(QUICK, steps=1, epochs=None, length=5))
    assert f"longer than 5 tokens, so truncated or read in windows: {longer} examples" in capsys.readouterr().err
    monkeypatch.setattr(Classification, "loss_of", lambda self, outputs, batch: (outputs.sum() * np.nan, outputs.sum()))
    with pytest.raises(TrainingError) as error:
        go("nan", replace(QUICK, batch_size=3))
    rows = re.search(r"\(rows ([^;]*);", str(error.value))[1].split(", ")
    batches = ExampleBatches(
        make_task("classification", examples).features(examples, BertTokenizer.from_pretrained(go.directory), 24),
        replace(QUICK, batch_size=3),
        where=lambda example: examples[example].where,
    )
    _, units = batches.order(error.value.step)
    assert rows == [examples[unit].where for unit in units]
    assert batches.within(5).read_in(error.value.step) == f"examples {', '.join(rows)}"


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"tuning": replace(QUICK, length=25)}, ConfigError, "--length 25: the model reads 24 tokens"),
        ({"tuning": replace(QUICK, frozen_layers=3)}, ConfigError, "--frozen-layers 3: the model has 2 layers"),
    ],
)
def test_what_cannot_be_is_said(go, changes, error, said):
    with pytest.raises(error, match=said):
        go(**changes)


def test_other_examples_are_another_run(go, reviews):
    go()
    with pytest.raises(ConfigError, match="began with other examples"):
        go(examples=reviews(48, seed=4))
    with pytest.raises(ConfigError, match="began with lr"):
        go(tuning=replace(QUICK, lr=1e-3))
    with pytest.raises(ConfigError, match=r"began with model of weights [0-9a-f]{16}, not of weights [0-9a-f]{16};"):
        go(seed=1)
    assert issubclass(DataError, ValueError)


def test_as_a_function_of_rows(directory, reviews, tmp_path):
    rows = [{"text": each.text, "label": each.label} for each in reviews(48)]
    dev = [{"text": each.text, "label": each.label} for each in reviews(16, seed=9)]
    settings = {"epochs": 20, "lr": 5e-3, "batch_size": 8, "patience": 100, "precision": "fp32"}
    tuned = minilm.finetune(directory, rows, dev, device="cpu", **settings)
    examples = reviews(60, seed=3)
    said = tuned.predict([each.text for each in examples])
    assert sum(each.label == own for each, own in zip(examples, said, strict=True)) >= 50
    assert tuned.predict([]) == []
    probabilities = tuned.probabilities([each.text for each in examples])
    assert probabilities.shape == (60, 2)
    assert np.abs(probabilities.sum(axis=1) - 1).max() < 1e-12
    assert [tuned.task.labels[i] for i in probabilities.argmax(axis=1)] == said
    assert tuned.probabilities([]).shape == (0, 2)
    kept = minilm.finetune(directory, rows, rows[:10], out=tmp_path / "kept", steps=2, device="cpu", precision="fp32")
    assert kept.result["dev_examples"] == 10
    assert not (tmp_path / "kept" / "README.md").exists()
    assert minilm.BertForSequenceClassification.from_pretrained(tmp_path / "kept").config.id2label == {
        0: "bad",
        1: "good",
    }
    pairs = [row | {"pair": "a plot"} for row in rows]
    of_pairs = minilm.finetune(directory, pairs, dev=pairs[:10], pair="pair", text="text", steps=1, device="cpu")
    assert len(of_pairs.predict(["the film"], ["a plot"])) == 1
    assert len(of_pairs.predict(np.array(["the film"] * 2), np.array(["a plot"] * 2))) == 2
    with pytest.raises(DataError, match="training used two texts a row: give `pairs`"):
        of_pairs.predict(["the film"])
    for no_list in ("the film", {"text": ["the film"]}, type("Frame", (list,), {"columns": ["text"]})(["text"])):
        with pytest.raises(DataError, match="predict takes a list of texts"):
            tuned.predict(no_list)
    with pytest.raises(DataError, match="training used one text a row: leave out `pairs`"):
        tuned.predict(["the film"], ["a plot"])
    for odd, name in ((["fine", None], "text 1 .* is None, no string"), ([["the", "film"]], r"text 0 .* is \['the'")):
        with pytest.raises(DataError, match=name):
            tuned.predict(odd)
    with pytest.raises(DataError, match=r"pair 0 \(from 0\) is 3, no string \(int\)"):
        of_pairs.predict(["the film"], [3])
    for odd, mend in (("epoch", "epochs"), ("learning_rate", "lr"), ("label_column", "label")):
        with pytest.raises(TypeError, match=rf"finetune\(\) has no argument '{odd}'; did you mean {mend}\?"):
            minilm.finetune(directory, rows, **{odd: 3})
    with pytest.raises(DataError, match="no column 'words'"):
        minilm.finetune(directory, rows, text="words")
    numbers = [{"text": "the film", "score": i / 3} for i in range(20)] + [{"text": "the plot", "score": None}]
    tuned = minilm.finetune(directory, numbers, task="regression", steps=1, device="cpu", precision="fp32")
    assert isinstance(tuned.predict(["the film"])[0], float)
    with pytest.raises(ConfigError, match="probabilities: regression has none; use predict"):
        tuned.probabilities(["the film"])


def test_as_a_function_of_files(directory, reviews, tmp_path):
    """As finetune.py reads them, whatever the task."""
    for name, count in (("train", 24), ("dev", 8)):
        rows = "".join(f"{each.text},{each.label}\n" for each in reviews(count))
        (tmp_path / f"{name}.csv").write_text(f"text,label\n{rows}")
    files = tmp_path / "train.csv", str(tmp_path / "dev.csv")
    tuned = minilm.finetune(directory, *files, steps=1, device="cpu", precision="fp32")
    assert (tuned.result["examples"], tuned.result["dev_examples"]) == (24, 8)
    assert minilm.score(tuned, files[1])["n"] == 8
    (tmp_path / "words.conll").write_text("the O\nfilm B-x\n\n" * 20)
    tuned = minilm.finetune(directory, tmp_path / "words.conll", task="tagging", steps=1, device="cpu")
    assert len(tuned.predict(["the film"])[0]) == 2
    with pytest.raises(DataError, match=r"none\.csv: "):
        minilm.finetune(directory, "none.csv")


def test_markers_in_texts_are_tokens_and_other_special_tokens_are_text(directory, reviews, tmp_path, caplog):
    """As in transformers, which opens the result."""
    tokenizer, model = BertTokenizer.from_pretrained(directory), minilm.BertModel.from_pretrained(directory)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[SUBJ]"]})
    tokenizer.split_special_tokens = True  # as of a model that was tuned before it had markers
    model.resize_token_embeddings(len(tokenizer))
    for each in (tokenizer, model):
        each.save_pretrained(tmp_path / "marked")
    text = "the [SUBJ] film [SEP] plot"
    rows = [{"text": f"{each.text} [SUBJ]", "label": each.label} for each in reviews(20)]
    for start, markers in ((directory, []), (tmp_path / "marked", ["[SUBJ]"])):
        tuned = minilm.finetune(start, rows, out=tmp_path / f"out-{len(markers)}", steps=1, device="cpu")
        (example,) = tuned.task.asked([text])
        caplog.clear()
        ids = tuned.features([example]).ids.tolist()
        assert "texts that hold a special token, as [SEP], which is read as text: 1" in caplog.text
        assert tuned.tokenizer.markers == markers
        assert tuned.tokenizer.split_special_tokens == (not markers)
        assert ids.count(tuned.tokenizer.sep_token_id) == 1
        assert not markers or tuned.tokenizer.convert_tokens_to_ids("[SUBJ]") in ids
        words = [word.text for word in minilm.explain(tuned, ["the [SUBJ] film"])[0].words]
        assert not markers or words == ["[CLS]", "the", "[SUBJ]", "film", "[SEP]"]
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / f"out-{len(markers)}")
        plain = text if not markers else text.replace(" [SEP]", "")
        expected = theirs(plain).input_ids
        assert tuned.features(tuned.task.asked([plain])).ids.tolist() == expected


def test_in_a_thread_and_with_numbers_of_numpy(directory, reviews, tmp_path):
    """As a server or a sweep has them: signals are only the main thread's."""
    rows = [{"text": each.text, "label": each.label} for each in reviews(48)]
    settings = {"steps": np.int64(2), "lr": np.float32(1e-3), "seed": np.int64(1), "out": tmp_path / "out"}
    with ThreadPoolExecutor(1) as pool:
        tuned = pool.submit(minilm.finetune, directory, rows, rows[:10], device="cpu", **settings).result()
    assert tuned.result["steps"] == 2
    plain = minilm.finetune(directory, rows, rows[:10], device="cpu", steps=2, lr=float(np.float32(1e-3)), seed=1)
    assert same(weights(tuned), weights(plain))


def test_ctrl_c_within_a_program_is_an_exception_of_its_own(directory, reviews, monkeypatch, capsys):
    rows = [{"text": each.text, "label": each.label} for each in reviews(48)]
    plain = Classification.loss

    def interrupted(self, model, batch):
        signal.raise_signal(signal.SIGINT)
        return plain(self, model, batch)

    monkeypatch.setattr(Classification, "loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        minilm.finetune(directory, rows, rows[:10], device="cpu", steps=50)
    err = capsys.readouterr().err
    assert "stopped, and nothing is kept" in err
    assert "resumes" not in err


@pytest.mark.parametrize(
    ("task", "asked", "said"),
    [
        ("similarity", (["a", None], ["b", "c"]), "text 1 (from 0) is None, no string (NoneType); give"),
        ("tagging", ([["Ada", None]],), "sentence 0 (from 0): word 1 (from 0) is None, no string"),
        ("tagging", ([None],), "sentence 0 (from 0) is None; give a string, or a list of words"),
        ("choice", (["a"], [None]), "each text needs two choices or more"),
        ("choice", (["a"], [["b", 3]]), "choice 1 (from 0) is 3, no string (int); give"),
        ("span", (["who?"], [None]), "context 0 (from 0) is None, no string (NoneType); give"),
    ],
)
def test_what_is_no_text_is_named(task, asked, said):
    """Before a tokenizer or a sum of strings stumbles over it."""
    of = TASKS[task]
    with pytest.raises(DataError, match=re.escape(said)):
        (of(("O",)) if task == "tagging" else of()).asked(*asked)

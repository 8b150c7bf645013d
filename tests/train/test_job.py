"""A job beyond what tests/test_train.py sees of it: timing its steps leaves no trace."""

import numpy as np
import pytest
import torch

from minilm.batch import Batch
from minilm.checkpoint.store import Store
from minilm.data.loader import Loader
from minilm.data.objectives import CausalLM
from minilm.train import job as job_module
from minilm.train.job import Job, step_seconds, train
from minilm.train.loop import Plan, Score, TrainingError
from minilm.train.losses import language_model_loss
from minilm.train.optim import make_optimizers
from minilm.train.runtime import rng_state

LENGTH, VOCAB = 16, 61


class Rows:
    """40 rows of random tokens."""

    T, fill = LENGTH, 1.0
    ids = torch.randint(5, VOCAB, (40, LENGTH), generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.ids)

    def take(self, rows):
        return self.ids[torch.from_numpy(np.asarray(rows))], None


@pytest.fixture
def make(tiny, cpu, tmp_path):
    """make(optimizer, precision, loss) -> a Job that keeps everything in tmp_path/run."""

    def job(optimizer="muon", precision="fp32", loss=language_model_loss):
        model = tiny("modern", dropout=0.1)
        optimizers = make_optimizers(model, optimizer, lr=1e-3, weight_decay=0.1, muon_dtype=torch.float32)
        loader = Loader(Rows(), CausalLM(), batch_size=4, seed=0)
        (tmp_path / "run").mkdir()
        return Job(
            {"lr": 1e-3},
            model,
            loss,
            optimizers,
            loader,
            cpu(precision),
            Store(tmp_path / "run"),
            evaluate=lambda: Score(1.0, 0.0, 1),
            write_model=lambda directory: None,
        )

    return job


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_timing_leaves_no_trace(make, bits, monkeypatch, optimizer, precision):
    job = make(optimizer, precision)
    copies = []
    whole_step = job_module.train_step

    def spy(model, loss, optimizers, *rest):
        before = bits.of(model)
        result = whole_step(model, loss, optimizers, *rest)
        copies.append(any(not torch.equal(before[name], p) for name, p in model.named_parameters()))
        assert {id(p) for o in optimizers for g in o.param_groups for p in g["params"]} == {
            id(p) for p in model.parameters()
        }
        return result

    monkeypatch.setattr(job_module, "train_step", spy)
    weights, rng, scaler = bits.of(job.model), rng_state(), job.runtime.scaler.state_dict()
    assert step_seconds(job, accumulation=2, max_norm=1.0) > 0
    assert sum(copies) > 10  # the copy did train (fp16 may skip while it looks for its scale)
    bits.same(weights, bits.of(job.model, job.optimizers))  # no optimizer state either
    assert all(torch.equal(rng[name], now) for name, now in rng_state().items())
    assert job.runtime.scaler.state_dict() == scaler
    assert job.loader.taken == 0
    assert all(p.grad is None for p in job.model.parameters())


def test_timing_ends_with_its_budget(make, monkeypatch):
    job, calls = make(), []
    whole_step = job_module.train_step
    monkeypatch.setattr(job_module, "train_step", lambda *args: calls.append(1) or whole_step(*args))
    assert step_seconds(job, accumulation=1, max_norm=1.0, limit_s=0.0) > 0
    assert len(calls) == 2  # one to warm up, one to time


def test_a_bad_step_is_named_with_its_rows(make):
    calls = []

    def loss(model, batch: Batch):
        calls.append(batch)
        nats, count = language_model_loss(model, batch)
        return nats * (float("nan") if len(calls) == 6 else 1.0), count  # the second micro-batch of the third step

    job = make(loss=loss)
    with pytest.raises(TrainingError, match="step 3: ") as error:
        train(job, Plan(steps=10, schedule=lambda step: 1.0, accumulation=2))
    assert error.value.step == 2
    named = [int(word) for word in str(error.value).split("rows ")[1].rstrip(")").split(", ")]
    assert torch.equal(Rows.ids[named], torch.cat([call.tokens.input_ids for call in calls[4:6]]))

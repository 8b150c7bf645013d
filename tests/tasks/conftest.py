"""Checks that every task must pass."""

import numpy as np
import pytest
import torch

from minilm.machine.ranks import Applied
from minilm.machine.runtime import Runtime
from minilm.tasks.task import outputs_of


@pytest.fixture
def directory(encoder_directory):
    """That of a model without a head."""
    return encoder_directory


@pytest.fixture
def adds_up():
    """adds_up(task, predictions): the scores of examples each of which is taken once are the task's."""

    def check(task, predictions):
        records = task.records(predictions)
        found = task.weighted(records, np.ones((1, len(predictions.examples)), np.int64))
        assert len(records) == len(predictions.examples)
        scores = task.score(predictions)
        undefined = {name for name, each in found.items() if np.isnan(each[0])}
        assert {scores.pop(name, 0.0) for name in undefined} <= {0.0}  # as scikit-learn counts what is of nothing
        assert {name: each[0] for name, each in found.items() if name not in undefined} == pytest.approx(
            scores, abs=1e-6
        )
        assert {*task.proportions} <= {*found}

    return check


@pytest.fixture
def same_outputs(monkeypatch):
    """same_outputs(task, model, features) -> (outputs, loss), which are the same in batches of any size."""

    def evaluate(task, model, features):
        cpu, found = Runtime(torch.device("cpu"), "fp32", "test", torch.get_num_threads()), []
        for at_once in (1, 100, 1 << 12):
            monkeypatch.setattr("minilm.tasks.task.EVALUATED_AT_ONCE", at_once)
            found.append(outputs_of(task, Applied(model), features, cpu))
        for outputs, loss in found[1:]:
            assert np.abs(outputs - found[0][0]).max() < 1e-5
            assert loss == pytest.approx(found[0][1], rel=1e-5)
        return found[0]

    return evaluate

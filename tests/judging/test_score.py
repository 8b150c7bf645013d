"""All that is told of one system, for every task."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn

from minilm.errors import ConfigError, DataError
from minilm.files import finite
from minilm.judging.judged import judged_model
from minilm.judging.score import score, scored

TASKS = ["classification", "multilabel", "regression", "similarity", "choice", "tagging", "span"]


@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_scored(tuned, name):
    model, data, _ = tuned(name, 60)
    judged = judged_model("model", model, data.examples)
    found = scored(judged, cells={"source": ["web", "letter"] * 30})
    predictions = model.predictions(data.examples)
    for metric, value in model.task.score(predictions).items():
        own = found["metrics"][metric]["value"]
        assert own == pytest.approx(value, abs=1e-6) or (np.isnan(own) and value == 0 and found["undefined"][metric])
        assert metric in found["baseline"]
    for own in found["metrics"].values():
        if own["low"] is not None:
            assert own["low"] <= own["high"]
    assert {row["column"] for row in found["slices"]["slices"]} >= {"source"}
    assert found["n"] == 60


def test_labels_that_hold_together(tuned):
    """As scikit-learn has them, label for label; and with dev a threshold and a temperature of its own for each."""
    model, data, _ = tuned("multilabel", 120)
    judged = judged_model("model", model, data.examples[:60])
    found = scored(judged, dev=judged_model("model", model, data.examples[60:]))
    labels = model.task.labels
    gold = np.array([[label in each.label for label in labels] for each in judged.examples])
    said = np.array([[label in own for label in labels] for own in judged.decoded])
    value = {name: own["value"] for name, own in found["metrics"].items()}
    assert value["macro_f1"] == pytest.approx(sklearn.f1_score(gold, said, average="macro", zero_division=0))
    assert value["roc_auc"] == pytest.approx(sklearn.roc_auc_score(gold, judged.probabilities, average="macro"))
    for i, row in enumerate(found["labels"]):
        assert (row["name"], row["support"]) == (labels[i], gold[:, i].sum())
        if said[:, i].any():
            assert row["precision"]["value"] == pytest.approx(sklearn.precision_score(gold[:, i], said[:, i]))
    assert {*found["thresholds"]["of"]} == {*labels}
    assert found["thresholds"]["at_half"]["macro_f1"] == pytest.approx(value["macro_f1"])
    assert ("temperature" in found["calibration"]) or found["calibration"]["reason"]


def test_numbers(tuned):
    model, data, _ = tuned("regression", 60)
    judged = judged_model("model", model, data.examples)
    found = scored(judged)["metrics"]
    gold = [each.label for each in data.examples]
    assert found["spearman"]["value"] == pytest.approx(stats.spearmanr(gold, judged.decoded)[0])
    assert found["pearson"]["value"] == pytest.approx(stats.pearsonr(gold, judged.decoded)[0])
    assert found["rmse"]["value"] == pytest.approx(sklearn.root_mean_squared_error(gold, judged.decoded))


def test_what_is_not_defined_is_said_and_is_not_zero(tuned):
    """A label that no example has: its recall, and the areas over all labels."""
    model, data, _ = tuned("classification", 60)
    two = [each for each in data.examples if each.label != "c"]
    found = scored(judged_model("model", model, two))
    assert np.isnan(found["metrics"]["roc_auc"]["value"])
    assert found["undefined"]["roc_auc"] == "no example has the label c"
    recall = next(row for row in found["labels"] if row["name"] == "c")["recall"]
    assert np.isnan(recall["value"])
    assert recall["reason"] == "no example has it"
    with pytest.raises(DataError, match="every example is labelled 'a'; give examples of two labels"):
        scored(judged_model("model", model, [each for each in data.examples if each.label == "a"]))


def test_rows_in_hand_score_as_a_file_does(tuned, tmp_path):
    """Of a model that is open and of its directory; columns are sliced, and one of them may be of groups."""
    model, data, _ = tuned("classification", 60)
    rows = [
        {"text": each.text, "label": each.label, "source": ("web", "letter")[i % 2]}
        for i, each in enumerate(data.examples)
    ]
    found = score(model, rows, rows[:30], group="source")
    sources = [row["source"] for row in rows]
    dev = judged_model("dev", model, data.examples[:30])
    wanted = finite(scored(judged_model("model", model, data.examples), dev, {"source": sources}, "source"))
    assert found["metrics"] == wanted["metrics"]
    assert found["groups"] == wanted["groups"]
    blank = [("web ", "letter", " ", np.nan)[i % 4] for i in range(60)]
    groups = scored(judged_model("model", model, data.examples), None, {"source": blank}, "source")["groups"]["groups"]
    assert {name: own["n"] for name, own in groups.items()} == {"letter": 15, "web": 15}
    assert found["calibration"]["temperature"] == wanted["calibration"]["temperature"]
    assert {each["column"] for each in found["slices"]["slices"]} >= {"source"}
    assert found["cost"]["tokens"] > 0
    model.model.config.update(model.task.config())
    model.model.save_pretrained(tmp_path / "saved")
    model.tokenizer.save_pretrained(tmp_path / "saved")
    assert score(tmp_path / "saved", rows)["metrics"]["accuracy"] == wanted["metrics"]["accuracy"]


def test_what_cannot_be_told_is_said_before_the_model_runs(tuned, monkeypatch):
    monkeypatch.setattr("minilm.judging.score.judged_model", None)
    model, data, _ = tuned("classification", 12)
    rows = [{"text": each.text, "label": each.label, "source": "web"} for each in data.examples]
    with pytest.raises(ConfigError, match="--group-column sauce: give one of source"):
        score(model, rows, group="sauce")
    with pytest.raises(ConfigError, match="--positive-label a: give one of two; the labels are a, b, c"):
        score(model, rows, positive_label="a")
    model, data, _ = tuned("regression", 12)
    rows = [{"text": each.text, "label": each.label} for each in data.examples]
    with pytest.raises(ConfigError, match="--dev dev: chooses temperature and thresholds of probabilities"):
        score(model, rows, rows)

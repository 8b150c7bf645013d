"""score, compare and report: on a small tuned model, and on files of predictions."""

import json
import random
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from markupsafe import escape
from sklearn import metrics

import minilm
from minilm import cli

WORDS = "fine great lovely awful poor dull the film was and plot a".split()  # noqa: SIM905
GOOD = {*WORDS[:3]}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def table(n, seed, group=True):
    """Rows whose label one word decides, or in some chance; and of a group that is told less reliably."""
    rng, lines = random.Random(seed), ["text,label,source"]
    for i in range(n):
        label, source = ("good", "bad")[i % 2], ("web", "letter")[rng.random() < 0.3]
        words = rng.choices(WORDS[6:], k=rng.randint(1, 12))
        wrong = rng.random() < (0.4 if source == "letter" else 0.02)
        words.insert(rng.randint(0, len(words)), rng.choice(WORDS[:3] if (label == "good") != wrong else WORDS[3:6]))
        lines.append(f"{' '.join(words)},{label},{source}")
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def home(tmp_path_factory, load):
    """A directory with dev.csv, test.csv, a model that has learned, "tuned", and one that has learned less, "other"."""
    home = tmp_path_factory.mktemp("home")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = minilm.BertConfig(vocab_size=64, max_position_embeddings=24, **sizes)
    minilm.BertModel(config).save_pretrained(home / "bare")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "##s", "."]
    (home / "vocab.txt").write_text("\n".join(words) + "\n")
    minilm.BertTokenizer(home / "vocab.txt", model_max_length=24).save_pretrained(home / "bare")
    for name, n, seed in (("train", 300, 0), ("dev", 200, 1), ("test", 400, 2)):
        (home / f"{name}.csv").write_text(table(n, seed))
    rows = [dict(zip(("text", "label"), line.split(","), strict=False)) for line in table(300, 0).splitlines()[1:]]
    for name, epochs in (("tuned", 12), ("other", 2)):
        minilm.finetune(home / "bare", rows, epochs=epochs, lr=3e-3, out=home / name, device="cpu", precision="fp32")
    return home


@pytest.fixture
def go(home, load, monkeypatch, capsys):
    """go(*argv) -> (status, stdout, stderr) of evaluate.py in that directory."""
    monkeypatch.chdir(home)
    script = load("evaluate.py")

    def run(*argv):
        with pytest.raises(SystemExit) as stop:
            cli.run_one_of(script.COMMANDS, [*argv, *(() if "--result" in argv else ("--device", "cpu"))])
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    return run


def told(go, *argv):
    status, out, err = go(*argv, "--json")
    assert status == 0, err
    return json.loads(out)


def test_score_is_what_scikit_learn_says(go):
    found = told(go, "score", "--model", "tuned", "--data", "test.csv", "--dev", "dev.csv", "--group-column", "source")
    assert go("predict", "--model", "tuned", "--input", "test.csv", "--output", "out.csv")[0] == 0
    lines = [line.split(",") for line in Path("out.csv").read_text().splitlines()]
    gold, predicted, p = (np.array([line[i] for line in lines[1:]]) for i in (1, 3, 5))
    assert lines[0] == ["text", "label", "source", "prediction", "p(bad)", "p(good)"]
    value = {name: own["value"] for name, own in found["metrics"].items()}
    p, is_good = p.astype(float), gold == "good"
    expected = {
        "accuracy": metrics.accuracy_score(gold, predicted),
        "f1": metrics.f1_score(gold, predicted, pos_label="good"),
        "macro_f1": metrics.f1_score(gold, predicted, average="macro"),
        "weighted_precision": metrics.precision_score(gold, predicted, average="weighted"),
        "mcc": metrics.matthews_corrcoef(gold, predicted),
        "kappa": metrics.cohen_kappa_score(gold, predicted),
        "balanced_accuracy": metrics.balanced_accuracy_score(gold, predicted),
        "roc_auc": metrics.roc_auc_score(is_good, p),
        "pr_auc": metrics.average_precision_score(is_good, p),
        "log_loss": metrics.log_loss(is_good, p),
        "brier": metrics.brier_score_loss(is_good, p),
    }
    assert {name: value[name] for name in expected} == pytest.approx(expected, abs=2e-6)  # files have six digits
    assert all(own["low"] <= own["value"] <= own["high"] for own in found["metrics"].values())
    assert found["baseline"]["accuracy"] == 0.5
    assert np.sum(found["confusion"]) == found["n"] == 400
    assert found["confusion"] == metrics.confusion_matrix(gold, predicted).tolist()
    assert [row["recall"]["value"] for row in found["labels"]] == pytest.approx(
        metrics.recall_score(gold, predicted, average=None).tolist()
    )
    assert sum(each["n"] for each in found["calibration"]["bins"]) == 400
    assert found["calibration"]["temperature"] > 0
    assert {*found["thresholds"]["of"]} == {"good"}
    worst = found["slices"]["slices"][0]
    assert (worst["column"], worst["value"], worst["p_holm"] < 0.01) == ("source", "letter", True)
    assert worst["inside"] == pytest.approx(np.mean((gold == predicted)[[line[2] == "letter" for line in lines[1:]]]))
    assert {*found["groups"]["groups"]} == {"web", "letter"}
    mistakes = found["mistakes"]
    assert [each["p"] for each in mistakes] == sorted((each["p"] for each in mistakes), reverse=True)
    assert all(each["label"] != each["prediction"] for each in mistakes)
    cost = found["cost"]
    assert cost["tokens"] == sum(len(line[0].split()) + 2 for line in lines[1:])
    assert 0 < cost["mfu"] < 1
    assert (found["data"]["file"], found["cut"], found["model"]["length"]) == ("test.csv", 0, 24)
    again = told(go, "score", "--predictions", "out.csv")
    for name, own in found["metrics"].items():
        assert again["metrics"][name]["value"] == pytest.approx(own["value"], abs=2e-6), name
    assert again["slices"]["slices"][0]["value"] == "letter"
    assert "cost" not in again


def test_temperature_and_thresholds_of_files_are_those_of_the_model(go):
    for name in ("dev", "test"):
        assert go("predict", "--model", "tuned", "--input", f"{name}.csv", "--output", f"said-{name}.csv")[0] == 0
    model = told(go, "score", "--model", "tuned", "--data", "test.csv", "--dev", "dev.csv")
    files = told(go, "score", "--predictions", "said-test.csv", "--dev", "said-dev.csv")
    assert files["calibration"]["temperature"] == pytest.approx(model["calibration"]["temperature"], rel=1e-3)
    assert files["thresholds"]["chosen"] == pytest.approx(model["thresholds"]["chosen"])


def test_a_threshold_that_dev_cannot_choose_is_half(go):
    """Of labels on one side only: all of them the positive one, or none."""
    head = "text,label,prediction,p(bad),p(good)\n"
    Path("said.csv").write_text(head + "fine,good,good,0.1,0.9\npoor,bad,bad,0.8,0.2\n" * 12)
    for label in ("good", "bad"):
        Path("said-dev.csv").write_text(head + f"fine,{label},good,0.1,0.9\npoor,{label},bad,0.8,0.2\n" * 12)
        status, out, err = go("score", "--predictions", "said.csv", "--dev", "said-dev.csv")
        assert status == 0, err
        assert "threshold            0.5000 of good, kept: every example of --dev has that label, or none has\n" in out


def test_why_no_slice_is_told(go):
    """Where enough examples share a value, but none is of the positive label in it, or outside."""
    for kinds, said in (
        ("xy", "in none f1 is defined both inside and outside"),
        ("xx", "no column has values that are shared by enough examples"),
    ):
        rows = [f"text {i},{'ab'[i % 2]},{'ab'[i % 2]},{kinds[i % 2]}\n" for i in range(60)]
        Path("said.csv").write_text("text,label,prediction,kind\n" + "".join(rows))
        status, out, err = go("score", "--predictions", "said.csv", "--positive-label", "a")
        assert status == 0, err
        assert f"slices               {said}" in out


def test_what_a_system_says_is_no_column_of_the_examples(go):
    """Neither slices nor groups are made of predictions and their probabilities."""
    assert go("predict", "--model", "tuned", "--input", "test.csv", "--output", "said.csv")[0] == 0
    found = told(go, "score", "--predictions", "said.csv")
    assert {row["column"] for row in found["slices"]["slices"]} == {"source", "words"}
    status, _, err = go("score", "--predictions", "said.csv", "--group-column", "prediction")
    assert (status, "--group-column prediction: give one of source" in err) == (2, True)


def test_predictions_in_another_order_are_refused(go, home):
    lines = (home / "test.csv").read_text().splitlines()
    turned = [f"{lines[0]},prediction", *(f"{line},good" for line in lines[:0:-1])]
    (home / "said.csv").write_text("\n".join(turned) + "\n")
    status, _, err = go("score", "--predictions", "said.csv", "--data", "test.csv")
    assert status == 2
    assert re.search(r"said.csv:(\d+): not the '\w+' of test.csv:\1; give predictions in the labels' order", err), err


def test_predictions_in_another_order_are_refused_by_whatever_name_their_texts_have(go, home):
    lines = (home / "test.csv").read_text().splitlines()[1:]
    rows = [line.split(",")[:2] for line in lines]
    for name, order in (("same", rows), ("turned", rows[::-1])):
        said = "".join(f"{text},{label}\n" for text, label in order)
        (home / f"{name}.csv").write_text(f"review,prediction\n{said}")
    assert told(go, "score", "--predictions", "same.csv", "--data", "test.csv")["metrics"]["accuracy"]["value"] == 1
    status, _, err = go("score", "--predictions", "turned.csv", "--data", "test.csv")
    assert status == 2
    assert "turned.csv:2: 'review' is not the text of test.csv:2; give predictions in the labels' order" in err


@pytest.mark.parametrize("more", [(), ("--data", "pairs.csv")])
def test_texts_that_are_another_column_in_another_order_are_no_fault(go, home, more):
    """Pairs both ways round, or drawn anew: the second text of each is the first one of another."""
    words = [f"fine {word}" for word in WORDS[:12]]
    rows = [
        f"{a},{b},{('no', 'yes')[i % 2]}" for i, (a, b) in enumerate(zip(words, [*words[5:], *words[:5]], strict=True))
    ]
    (home / "pairs.csv").write_text("\n".join(["sentence1,sentence2,label", *rows]) + "\n")
    (home / "both.csv").write_text(
        "\n".join(["sentence1,sentence2,label,prediction", *(f"{row},yes" for row in rows)]) + "\n"
    )
    assert told(go, "score", "--predictions", "both.csv", *more)["metrics"]["accuracy"]["value"] == 0.5


@pytest.mark.parametrize("columns", ["text,prediction", "text,prediction,p(bad),p(good)"])
def test_texts_are_no_labels(go, home, columns):
    """As in what `predict` writes of texts without labels."""
    more = ",0.5,0.5" * (columns.count(",") > 1)
    texts = [line.split(",")[0] for line in (home / "test.csv").read_text().splitlines()[1:]]
    (home / "bare.csv").write_text("\n".join([columns, *(f"{text},good{more}" for text in texts)]) + "\n")
    status, _, err = go("score", "--predictions", "bare.csv")
    assert status == 2
    assert re.search(r"bare.csv: predictions are good, and 'text', taken for the label, is [^;]+; name them", err)


def test_predictions_alone(go, home):
    """A column of them, with --data; or labels and predictions without texts. Nothing else tells a header."""
    golds = [line.split(",")[1] for line in (home / "test.csv").read_text().splitlines()[1:]]
    (home / "only.csv").write_text("prediction\n" + "\n".join(golds) + "\n")
    assert told(go, "score", "--predictions", "only.csv", "--data", "test.csv")["metrics"]["accuracy"]["value"] == 1
    (home / "two.csv").write_text("y,y_pred\n" + "".join(f"{gold},{gold}\n" for gold in golds))
    found = told(go, "score", "--predictions", "two.csv", "--label-column", "1")
    assert found["metrics"]["accuracy"] == pytest.approx({"value": 1, "low": 0.9905, "high": 1, "n": 400}, abs=1e-4)
    assert (found["metrics"]["mcc"]["value"], found["metrics"]["mcc"]["low"]) == (1, None)  # no draw differs


def test_the_probability_of_a_mistake_is_that_of_what_was_said(go, home):
    """Of a system with a threshold of its own."""
    rows = "a b,neg,pos,.7,.3\nc d,pos,pos,.7,.3\n" * 15
    (home / "own.csv").write_text("text,label,prediction,p(neg),p(pos)\n" + rows)
    found = told(go, "score", "--predictions", "own.csv")
    assert {each["p"] for each in found["mistakes"]} == {0.3}
    assert found["positive_label"] == "pos"


def test_what_is_undefined_is_said_on_the_page(go, home):
    """Of a label that no example has there is no area under a curve; of one that is never said no precision."""
    rows = "".join(f"the film {i},{'ab'[i % 2]},a,1,0,0\n" for i in range(30))
    (home / "never.csv").write_text("text,label,prediction,p(a),p(b),p(c)\n" + rows)
    (home / "dev-of-it.csv").write_text("text,label,prediction,p(a),p(b),p(c)\n" + rows)
    found = told(go, "report", "--predictions", "never.csv", "--dev", "dev-of-it.csv", "--html", "never.html")
    assert (found["metrics"]["roc_auc"]["value"], found["metrics"]["mcc"]["value"]) == (None, None)
    page = (home / "never.html").read_text()
    assert "no example has the label c" in page
    assert "only a is predicted" in page


def test_score_prints_a_table(go):
    status, out, err = go("score", "--model", "tuned", "--data", "test.csv", "--positive-label", "bad")
    assert status == 0, err
    found = told(go, "score", "--model", "tuned", "--data", "test.csv", "--positive-label", "bad")
    own = found["metrics"]["f1"]
    assert re.search(rf"^f1 +{own['value']:.4f}  {own['low']:.4f} to {own['high']:.4f} +\d", out, re.MULTILINE)
    assert "f1, precision and recall are those of the label bad" in out
    assert "f1 is worse (p corrected for" in out
    assert "source is letter" in out


def test_few_examples_have_no_interval(go, home):
    (home / "few.csv").write_text("\n".join(table(12, 3).splitlines()) + "\n")
    found = told(go, "score", "--model", "tuned", "--data", "few.csv")
    assert found["metrics"]["accuracy"]["low"] is None
    assert "too few examples for an interval" in go("score", "--model", "tuned", "--data", "few.csv")[1]


def test_compare(go):
    """A model and the file of what it predicts are the same; a worse one is worse, and so is its file."""
    for name in ("tuned", "other"):
        assert go("predict", "--model", name, "--input", "test.csv", "--output", f"{name}.csv")[0] == 0
    same = told(go, "compare", "tuned", "tuned.csv", "--data", "test.csv")["comparisons"][0]["metrics"]["accuracy"]
    assert (same["difference"], same["p"], same["only_a"]) == (0, 1, 0)
    models = told(go, "compare", "other", "tuned", "--data", "test.csv")
    files = told(go, "compare", "other.csv", "tuned.csv")
    for found in (models, files):
        own = found["comparisons"][0]["metrics"]["accuracy"]
        assert (found["task"], found["n"], found["deciding"]) == ("classification", 400, "accuracy")
        assert own["only_b"] - own["only_a"] == round(own["difference"] * 400)
        assert own["low"] <= own["difference"] <= own["high"]
    for name, own in models["comparisons"][0]["metrics"].items():
        other = files["comparisons"][0]["metrics"][name]
        assert [other[key] for key in ("a", "b", "p")] == pytest.approx([own[key] for key in ("a", "b", "p")], abs=1e-4)
    assert {"accuracy", "kappa", "roc_auc", "log_loss"} <= {*models["comparisons"][0]["metrics"]}
    three = told(go, "compare", "other", "tuned", "tuned.csv", "--data", "test.csv", "--with-first")
    assert [each["a"] for each in three["comparisons"]] == ["other", "other"]
    status, out, _ = go("compare", "other", "tuned", "tuned.csv", "--data", "test.csv", "--metric", "mcc")
    assert status == 0
    assert "p of mcc corrected for all comparisons (Holm)" in out
    assert "tuned.csv (second) against other" in out


def test_a_flag_without_a_value_before_systems(go):
    head = "text,label,prediction\n"
    for name, last in (("first.csv", "a"), ("second.csv", "b")):
        Path(name).write_text(f"{head}fine,a,a\npoor,b,{last}\n")
    status, out, err = go("compare", "--header", "first.csv", "second.csv")
    assert status == 0, err
    assert "second.csv (second) against first.csv (first)" in out
    for _ in range(2):  # a result may overwrite an earlier one
        assert go("compare", "first.csv", "second.csv", "--json", "result.json")[0] == 0


def test_compared_are_the_scores_of_the_label_that_a_model_was_tuned_for(go, home, tmp_path):
    """Whichever stands first; of two that were tuned for other labels one must be named."""
    for name in ("bad", "good"):
        shutil.copytree(home / "tuned", tmp_path / name, ignore=shutil.ignore_patterns("MANIFEST.json"))
        config = tmp_path / name / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"positive_label": name}))
    bad, good = (str(tmp_path / name) for name in ("bad", "good"))
    f1 = {}
    for name, systems in {"bad": (bad, "other"), "other": ("other", bad), "good": ("other", good)}.items():
        found = told(go, "compare", *systems, "--data", "test.csv")["comparisons"][0]["metrics"]["f1"]
        f1[name] = {found["a"], found["b"]}
    assert f1["bad"] == f1["other"] != f1["good"]
    status, _, err = go("compare", bad, good, "--data", "test.csv")
    assert (status, err.splitlines()[-1]) == (
        2,
        "error: --positive-label: the models were tuned for bad and good; name one",
    )
    assert go("compare", bad, good, "--data", "test.csv", "--positive-label", "bad")[0] == 0


def test_whose_f1_it_is_does_not_depend_on_the_order(go, home):
    """Of a model and a file of predictions: that of the second label by name, which is told."""
    lines = [line.split(",") for line in (home / "test.csv").read_text().splitlines()]
    at = lines[0].index("label")
    said = ["bad" if i % 3 else line[at] for i, line in enumerate(lines[1:])]
    (home / "said.csv").write_text("\n".join(["prediction", *said]) + "\n")
    found = [
        told(go, "compare", *systems, "--data", "test.csv")
        for systems in (("tuned", "said.csv"), ("said.csv", "tuned"))
    ]
    assert {each["positive_label"] for each in found} == {"good"}
    one, other = (each["comparisons"][0]["metrics"]["f1"] for each in found)
    assert (one["a"], one["b"]) == (other["b"], other["a"])
    assert (
        "f1, precision and recall are those of the label good"
        in go("compare", "tuned", "other", "--data", "test.csv")[1]
    )


def test_a_label_column_of_another_name_leaves_the_text_where_training_had_it(go, home):
    lines = [line.rsplit(",", 1)[0] for line in table(300, 3).splitlines()[1:]]
    rows = [{"body": text, "stars": label} for text, label in (line.split(",") for line in lines)]
    minilm.finetune(
        home / "tuned",
        rows,
        text="body",
        label="stars",
        out=home / "of-stars",
        steps=1,
        lr=1e-6,
        device="cpu",
        precision="fp32",
    )
    more = [f"{row['body']},the film,{row['stars']}" for row in rows]
    (home / "gold.csv").write_text("\n".join(["body,text,gold", *more]) + "\n")
    flags = ("score", "--model", "of-stars", "--data", "gold.csv", "--label-column", "gold")
    assert told(go, *flags)["metrics"]["accuracy"]["value"] > 0.8


def test_each_model_is_compared_on_the_columns_that_it_was_tuned_on(go, home):
    """Of two that read other columns of one table each has the score that it has alone; of two tasks none has."""
    lines = [line.rsplit(",", 1)[0] for line in table(300, 3).splitlines()[1:]]
    rows = [{"body": "the film", "head": text, "label": label} for text, label in (line.split(",") for line in lines)]
    options = {"label": "label", "steps": 1, "device": "cpu", "precision": "fp32"}
    minilm.finetune(home / "bare", rows, text="body", out=home / "of-body", **options)
    minilm.finetune(home / "tuned", rows, text="head", out=home / "of-head", **options | {"lr": 1e-6})
    numbers = [row | {"label": i % 7} for i, row in enumerate(rows)]
    minilm.finetune(home / "bare", numbers, text="head", task="regression", out=home / "numbers", **options)
    (home / "two.csv").write_text("\n".join(["body,head,label", *(",".join(row.values()) for row in rows)]) + "\n")
    alone = {
        name: told(go, "score", "--model", name, "--data", "two.csv")["metrics"]["accuracy"]["value"]
        for name in ("of-body", "of-head")
    }
    assert alone["of-head"] > alone["of-body"] + 0.2
    for systems in (("of-body", "of-head"), ("of-head", "of-body")):
        own = told(go, "compare", *systems, "--data", "two.csv")["comparisons"][0]["metrics"]["accuracy"]
        assert [own["a"], own["b"]] == [alone[name] for name in systems]
    status, _, err = go("compare", "of-head", "numbers", "--data", "two.csv")
    assert status == 2
    assert "numbers: is for task regression, and the one before it for classification; give one" in err


def test_a_label_that_only_one_system_predicts_leaves_the_rest_as_it_is(go, home, tmp_path):
    """Of three labels accuracy decides, whatever label of two one of them was tuned for, in either order."""
    shutil.copytree(home / "tuned", tmp_path / "bad", ignore=shutil.ignore_patterns("MANIFEST.json"))
    config = tmp_path / "bad" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"positive_label": "bad"}))
    assert go("predict", "--model", "tuned", "--input", "test.csv", "--output", "plain-said.csv")[0] == 0
    head, first, *rest = (line.rsplit(",", 2)[0] for line in (home / "plain-said.csv").read_text().splitlines())
    (home / "stray.csv").write_text("\n".join([head, first.rpartition(",")[0] + ",unknown", *rest]) + "\n")
    for systems in ((str(tmp_path / "bad"), "stray.csv"), ("stray.csv", str(tmp_path / "bad"))):
        found = told(go, "compare", *systems, "--data", "test.csv")
        assert found["deciding"] == "accuracy"
        own = found["comparisons"][0]["metrics"]["accuracy"]
        assert abs(own["difference"]) == pytest.approx(1 / 400)


SCORE, TEST = ("score", "--model", "tuned"), ("--data", "test.csv")
REFUSED = [
    (("score", *TEST), "--model, --predictions: give one of them"),
    ((*SCORE, "--predictions", "out.csv", *TEST), "--model, --predictions: give one of them"),
    (SCORE, "tuned: a model needs labelled examples; give them with --data"),
    (("score", "--model", "bare", *TEST), "predicts no labels"),
    ((*SCORE, "--data", "nowhere.csv"), "nowhere.csv: no such file"),
    ((*SCORE, "--data", "empty.csv"), "empty.csv: holds no row"),
    ((*SCORE, "--data", "unlabelled.csv"), "unlabelled.csv: which column is the label?"),
    ((*SCORE, "--data", "strange.csv"), "strange.csv:3: the label 'meh' is none of the model's, which are bad, good"),
    ((*SCORE, "--data", "one.csv"), "one.csv:2: every example is labelled 'good'; give examples of two labels"),
    ((*SCORE, *TEST, "--positive-label", "fine"), "--positive-label fine: give one of two; the labels are bad, good"),
    ((*SCORE, *TEST, "--group-column", "age"), "--group-column age: give one of source"),
    ((*SCORE, *TEST, "--json", "test.csv"), "--json test.csv: is the file of --data"),
    ((*SCORE, *TEST, "--dev", "./test.csv"), "--dev test.csv: is what is scored; choose temperature and thresholds on"),
    (("score", "--predictions", "plain.csv", "--precision", "bf16"), "--precision: for models, and predictions are"),
    (("score", "--predictions", "plain.csv", "--data", "one.csv", "--dev", "plain.csv"), "is what is scored"),
    (("compare", "tuned", "other", *TEST, "--revision", "v2"), "--revision v2: all systems are on this machine"),
    ((*SCORE, *TEST, "--revision", "v2"), "--revision v2: tuned is on this machine, as it is; leave it out"),
    (("score", "--predictions", "nan.csv"), "nan.csv:2: a probability is no number from 0 to 1"),
    (
        ("score", "--predictions", "plain.csv", "--dev", "better.csv"),
        "thresholds need probabilities of the predictions scored",
    ),
    (("score", "--predictions", "plain.csv", "--task", "regression"), "no finite number"),
    (("compare", "tuned", *TEST), "name two or more different systems"),
    (("compare", "all-a.csv", "once-b.csv"), "all-a.csv:2: every example is labelled 'a'; give examples of two"),
    (("compare", "tuned", "tuned", *TEST), "name two or more different systems"),
    (("compare", "plain.csv", "short.csv"), "short.csv: 1 examples, and plain.csv has 2; give the same"),
    (("compare", "plain.csv", "swapped.csv"), "swapped.csv:2: not the text and label of plain.csv:2"),
    (("compare", "plain.csv", "short.csv", "--data", "plain.csv"), "short.csv: 1 rows for 2 labelled ones"),
    (("compare", "plain.csv", "better.csv", "--metric", "bleu"), "--metric bleu: give one of accuracy"),
    (("compare", "plain.csv", "nowhere.csv"), "nowhere.csv: no such file"),
    (("compare", "plain.csv", "./plain.csv"), "name two or more different systems"),
    (("compare", "plain.csv", "better.csv", "--json", "plain.csv"), "--json plain.csv: is one of the systems"),
    (
        ("compare", "--json", "plain.csv", "better.csv", "short.csv"),
        "--json plain.csv: may be predictions; give a new name",
    ),
    (
        ("compare", "--json", "plain.json", "better.csv", "short.csv"),
        "--json plain.json: may be predictions; give a new name",
    ),
    (
        ("compare", "tuned", "other", *TEST, "--prediction-column", "x"),
        "--prediction-column x: only for files of predictions",
    ),
    ((*SCORE, *TEST, "--prediction-column", "x"), "--prediction-column x: only for files of predictions; leave it out"),
    (("compare", "plain.csv", "better.csv", "--threads", "2"), "--threads: for models, and predictions are there"),
    ((*SCORE, *TEST, "--task", "regression"), "--task regression: tuned is for classification, and knows it; leave"),
    (("score", "--predictions", "nowhere.csv"), "nowhere.csv: no such file"),
    (("score", "--model", "plain.csv", *TEST), "--model plain.csv: is a file"),
    (("score", "--predictions", "other-names.csv"), "'label', taken for the label, is a, b; name them"),
    (("score", "--predictions", "choices.csv", "--task", "choice"), "the prediction 2 is none of 2, counted from 0"),
    (
        ("report", "--predictions", "plain.csv", "--html", "x.html", "--json", "x.html"),
        "--html x.html: is the file of --json",
    ),
    (("report", "--result", "odd.json", "--html", "x.html"), "--result odd.json: is no result of this version's"),
    (("report", "--model", "tuned", *TEST, "--html", "test.csv"), "--html test.csv: is the file of --data"),
    (("report", "--result", "plain.json", "--html", "p.html"), "plain.json: holds no result of score or report"),
    (("report", "--result", "plain.json", "--model", "tuned", "--html", "p.html"), "is a result already"),
    (
        ("report", "--result", "plain.json", "--text-column", "1", "--html", "p.html"),
        "--text-column: --result plain.json",
    ),
    (
        ("report", "--result", "plain.json", "--threads", "1", "--html", "p.html"),
        "--threads: --result plain.json is a result already",
    ),
    (
        ("report", "--result", "plain.json", "--no-header", "--html", "p.html"),
        "--header: --result plain.json is a result already",
    ),
]


@pytest.mark.parametrize(("argv", "said"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_judged_is_one_line(go, home, argv, said):
    head = "text,label,prediction\n"
    files = {
        "empty.csv": "",
        "unlabelled.csv": "text\nfine film\nthe poor plot\n",
        "strange.csv": "text,label\nfine,good\npoor,meh\n",
        "one.csv": "text,label\nfine,good\ngreat,good\n",
        "nan.csv": "text,label,prediction,p(a),p(b)\nfine,a,a,nan,0\npoor,b,a,1,0\n",
        "plain.csv": f"{head}fine,a,a\npoor,b,a\n",
        "better.csv": f"{head}fine,a,a\npoor,b,b\n",
        "swapped.csv": f"{head}poor,b,a\nfine,a,a\n",
        "short.csv": f"{head}fine,a,a\n",
        "all-a.csv": f"{head}fine,a,a\npoor,a,a\n",
        "once-b.csv": f"{head}fine,a,a\npoor,a,b\n",
        "plain.json": '{"a": 1}',
        "odd.json": '{"task": "x", "metrics": {}}',
        "other-names.csv": f"{head}fine,a,yes\npoor,b,no\n",
        "choices.csv": "question,choice1,choice2,label,prediction\na,b,c,1,2\na,b,c,2,1\n",
    }
    for name, content in files.items():
        (home / name).write_text(content)
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
    status, out, err = go(*argv)
    assert (status, out) == (2, "")
    assert said in err.splitlines()[-1]
    assert len([line for line in err.splitlines() if line.startswith("error:")]) == 1
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*")} == before


@pytest.fixture
def page(go, home):
    flags = ("--data", "test.csv", "--dev", "dev.csv", "--group-column", "source", "--html", "page.html")
    status, _, err = go("report", "--model", "tuned", *flags, "--json", "page.json")
    assert status == 0, err
    return (home / "page.html").read_text(encoding="utf-8")


def test_the_page_holds_what_was_found_and_loads_nothing(go, home, page):
    found = json.loads((home / "page.json").read_text())
    for own in found["metrics"].values():
        assert f"<td>{own['value']:.4f}</td>" in page
    for count in np.ravel(found["confusion"]).tolist():
        assert f">{count}</td>" in page
    assert found["data"]["sha256"] in page
    assert str(escape(found["command"])) in page
    assert "not measured" in page
    assert page.count('class="mistake"') == len(found["mistakes"])
    assert all("explanation" in each for each in found["mistakes"])
    assert not re.search(r"<script|<link|<img|@import|url\(|(src|href)=|https?://(?!www\.w3)", page)
    assert "default-src 'none'" in page
    assert len(page.encode()) < 200_000
    assert go("report", "--result", "page.json", "--html", "again.html")[0] == 0
    assert (home / "again.html").read_text(encoding="utf-8") == page


def test_texts_are_text_on_the_page(go, home):
    (home / "bold.csv").write_text(
        "text,label,prediction\n<script>alert(1)</script> fine,a,b\npoor <b>film,b,b\ngreat,a,a\n"
    )
    assert go("report", "--predictions", "bold.csv", "--html", "bold.html")[0] == 0
    page = (home / "bold.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)" in page
    assert "<script" not in page


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_the_page(page, home, tmp_path, width):
    """Without an error on its console, and without asking for anything but the file."""
    picture, log = tmp_path / "page.png", tmp_path / "net.json"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    flags += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]
    flags += [
        f"--window-size={width},900",
        f"--screenshot={picture}",
        f"--log-net-log={log}",
        "--enable-logging=stderr",
    ]
    done = subprocess.run(
        [CHROMIUM, *flags, f"file://{home / 'page.html'}"], capture_output=True, text=True, timeout=120
    )
    assert picture.stat().st_size > 10_000
    assert "CONSOLE" not in done.stderr
    text = log.read_text()
    assert not [url for url in re.findall(r'"url":"(https?://[^"]*)"', text) if "google" not in url]


def test_probabilities_are_of_the_column_beside_them(go):
    """Those of the model are not taken for another system's."""
    rows = [f"the cat {i},{'ab'[i % 2]},{'ab'[i % 2]},{1 - i % 2},{i % 2},{'ab'[i % 4 > 1]}\n" for i in range(40)]
    Path("both.csv").write_text("text,label,prediction,p(a),p(b),human\n" + "".join(rows))
    own = told(go, "score", "--predictions", "both.csv")
    human = told(go, "score", "--predictions", "both.csv", "--prediction-column", "human")
    Path("usual.csv").write_text("text,label,prediction,p(a),p(b),pred\n" + "".join(rows))  # a name that is usual, too
    usual = told(go, "score", "--predictions", "usual.csv", "--prediction-column", "pred")
    assert not {"roc_auc", "log_loss"} & {*usual["metrics"]}
    assert (own["metrics"]["accuracy"]["value"], human["metrics"]["accuracy"]["value"]) == (1, 0.5)
    assert "roc_auc" in own["metrics"]
    assert not {"roc_auc", "log_loss"} & {*human["metrics"]}
    assert "calibration" not in human


def test_a_metric_over_some_questions_counts_these(go):
    """Of few there is no interval, however many there are in all."""
    context = "the film was fine"
    qas = [
        {"id": f"q{i}", "question": "how", "answers": [{"text": "fine", "answer_start": 13}] if i > 3 else []}
        for i in range(60)
    ]
    squad = {"data": [{"paragraphs": [{"context": context, "qas": qas}]}]}
    Path("squad.json").write_text(json.dumps(squad))
    for name, odd in (("one", 7), ("two", 5)):
        answers = {each["id"]: "fine" if i % odd else "" for i, each in enumerate(qas)}
        Path(f"{name}.json").write_text(json.dumps(answers))
    flags = ("--task", "span", "--data", "squad.json")
    found = told(go, "score", "--predictions", "one.json", *flags)["metrics"]
    counts = {"f1": 60, "exact": 60, "f1_answerable": 56, "exact_answerable": 56, "f1_no_answer": 4}
    assert {name: own["n"] for name, own in found.items()} == counts
    assert (found["f1_no_answer"]["value"], found["f1_no_answer"]["low"]) == (0.25, None)
    assert found["f1_answerable"]["low"] < found["f1_answerable"]["value"]
    compared = told(go, "compare", "one.json", "two.json", *flags)["comparisons"][0]["metrics"]
    assert (compared["f1_no_answer"]["n"], compared["f1_no_answer"]["low"]) == (4, None)
    assert compared["f1_no_answer"]["reason"] == "fewer than 20 examples: no interval"
    assert compared["f1_answerable"]["n"] == 56


def test_what_is_truncated_is_told(go):
    rows = [f"{'fine ' * (40 if i % 4 == 0 else 3)},{('bad', 'good')[i % 2]}\n" for i in range(40)]
    Path("long.csv").write_text("text,label\n" + "".join(rows))
    status, out, err = go("score", "--model", "tuned", "--data", "long.csv")
    assert status == 0, err
    assert "10 examples are longer than 24 tokens, so truncated or read in windows" in out
    status, out, err = go("compare", "tuned", "other", "--data", "long.csv")
    assert status == 0, err
    assert "tuned: 10 examples are longer than it reads" in out
    assert "micro f1" not in out
    assert "weighted recall" not in out
    assert go("report", "--model", "tuned", "--data", "long.csv", "--html", "long.html")[0] == 0
    assert "10 of them are longer than the model reads" in Path("long.html").read_text(encoding="utf-8")


def test_texts_of_dev_that_are_scored_are_told(go):
    Path("again.csv").write_text(Path("test.csv").read_text())
    status, _, err = go("score", "--model", "tuned", "--data", "test.csv", "--dev", "again.csv")
    assert status == 0, err
    rows = [f"{'ab'[i % 2]},{'ab'[i % 3 > 0]},{1 - i % 2 * 0.5},{i % 2 * 0.5}\n" for i in range(40)]
    for name in ("said.csv", "said-dev.csv"):  # in which there are no texts
        Path(name).write_text("label,prediction,p(a),p(b)\n" + "".join(rows))
    status, _, other = go("score", "--predictions", "said.csv", "--dev", "said-dev.csv")
    assert (status, "also among" in other) == (0, False), other
    assert re.search(r"again.csv: [0-9,]+ texts are also among those scored; the first again.csv:2", err)

"""finetune.py and `evaluate.py predict` on small tables: what they write, say and refuse."""

import csv
import gzip
import json
import lzma
import re
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import pipeline

import minilm
from minilm import cli
from minilm.checkpoint.pooling import read_pooling
from minilm.finetuning.report import warning
from minilm.finetuning.settings import Tuning
from minilm.labelled.libraries import embedded_examples
from minilm.tasks.classification import Classification


@pytest.fixture(scope="module")
def script(load):
    return load("finetune.py")


@pytest.fixture(scope="module")
def evaluate(load):
    return load("evaluate.py")


WORDS = {"good": ["fine", "great", "lovely"], "bad": ["awful", "poor", "dull"]}
PLAIN = ["the", "film", "was", "and", "plot", "a"]


@pytest.fixture
def go(script, evaluate, encoder_directory, tmp_path, monkeypatch, capsys, no_pictures):
    """go("finetune" or a command of evaluate.py, *argv) -> (status, stdout, stderr), in a directory with train.csv."""
    monkeypatch.chdir(tmp_path)
    rows = [
        (f"{' '.join(PLAIN[: i % 6])} {WORDS[label][i % 3]}", label) for i in range(60) for label in ("good", "bad")
    ]
    with open("train.csv", "w", newline="") as file:
        csv.writer(file).writerows([("review", "verdict"), *rows])
    Path("new.csv").write_text("id,review\n7,the film was great\n8,dull\n9,\n")

    def run(command, *argv):
        start = partial(cli.run_one_of, evaluate.COMMANDS, [command, "--device", "cpu", *argv])
        if command == "finetune":
            own = ("--model", str(encoder_directory), "--device", "cpu", "--precision", "fp32")
            start = partial(cli.run, script.main, script.Args, [*own, *argv])
        with pytest.raises(SystemExit) as stop:
            start()
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    run.script = script
    return run


FLAGS = ("--train", "train.csv", "--out", "out", "--epochs", "8", "--lr", "5e-3", "--batch-size", "8")


def test_from_a_table_to_predictions(go, pictures, tmp_path):
    status, out, err = go("finetune", *FLAGS, "--json", "result.json")
    assert status == 0, err
    assert "text is column 'review', label is column 'verdict'" in err
    assert "12 of the 120 training examples are held out as dev" in err
    assert "next       python evaluate.py predict --model out --input new.csv --output out.csv" in out
    result = json.loads(Path("result.json").read_text())
    assert result == json.loads(Path("out/results.json").read_text())
    assert result["scores"]["accuracy"] >= 0.9
    assert result["baselines"]["majority"]["accuracy"] == 0.5
    assert 0.5 <= result["baselines"]["bag_of_words"]["accuracy"] <= 1
    assert [row["name"] for row in result["labels"]] == ["bad", "good"]
    assert [*result["intervals"]] == []  # of 12 examples
    card = Path("out/README.md").read_text()
    assert "| train_file | train.csv |" in card
    assert f"| best_step | {result['best_step']} |" in card
    names = {path.name for path in Path("out").iterdir()}
    assert names >= {"config.json", "model.safetensors", "README.md", "loss.png", "confusion.png", "predictions.csv"}
    with open("out/predictions.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert sum(row["label"] == row["prediction"] for row in rows) / 12 == result["scores"]["accuracy"]
    status, _, err = go("predict", "--model", "out", "--input", "new.csv", "--output", "said.csv")
    assert status == 0
    assert "no prediction for new.csv:4: no text" in err
    with open("said.csv") as file:
        said = list(csv.DictReader(file))
    assert [row["id"] for row in said] == ["7", "8", "9"]
    assert [row["prediction"] for row in said] == ["good", "bad", ""]
    assert float(said[0]["p(good)"]) + float(said[0]["p(bad)"]) == pytest.approx(1, abs=1e-5)
    theirs = pipeline("text-classification", "out", top_k=None)(["the film was great"])[0]
    assert {each["label"]: each["score"] for each in theirs} == {
        name: pytest.approx(float(said[0][f"p({name})"]), abs=1e-4) for name in ("good", "bad")
    }
    status, out, err = go("finetune", *FLAGS)
    assert (status, "out is finished" in err) == (0, True)


def test_groups_are_no_labels(go):
    """Though their column looks like one; and columns are counted as in the file."""
    rows = [f"{i % 5 // 4},the film {i},{i % 2},{i % 3 // 2}" for i in range(40)]
    Path("flags.csv").write_text("\n".join(["female,text,toxic,rude", *rows]))
    flags = (
        "--train",
        "flags.csv",
        "--task",
        "multilabel",
        "--text-column",
        "2",
        "--group-column",
        "1",
        "--steps",
        "1",
    )
    status, _, err = go("finetune", *flags, "--out", "out", "--json", "r.json")
    assert status == 0, err
    assert "labels are the columns of 0 and 1: 'toxic', 'rude'" in err
    assert json.loads(Path("r.json").read_text())["flags"] == ["toxic", "rude"]
    rows = [f"film {i},{i % 9},{'ab'[i % 2]}" for i in range(40)]
    Path("category.csv").write_text("\n".join(["text,category,verdict", *rows]))
    Path("utterance.csv").write_text(
        "\n".join(["utterance,label", *(f"a film {i % 9},{'ab'[i % 2]}" for i in range(40))])
    )
    for group, said in (("category", "label is column 'verdict'"), ("utterance", "text is column 'utterance'")):
        flags = ("--train", f"{group}.csv", "--group-column", group, "--steps", "1", "--out", group)
        status, _, err = go("finetune", *flags)
        assert status == 0, err
        assert said in err


@pytest.mark.parametrize("flags", [("--seeds", "2"), ("--kfold", "3"), ("--kfold", "3", "--group-column", "review")])
def test_several_runs(go, flags):
    """Each is a run of its own, with its own model; the mean of their scores is that of the files."""
    status, out, err = go("finetune", *FLAGS[:4], "--steps", "8", *flags, "--json", "result.json")
    assert status == 0, err
    result = json.loads(Path("result.json").read_text())
    names = ["seed-0", "seed-1"] if "--seeds" in flags else ["fold-1", "fold-2", "fold-3"]
    assert list(result["runs"]) == names
    own = [json.loads(Path("out", name, "results.json").read_text()) for name in names]
    assert [each["scores"] for each in own] == list(result["runs"].values())
    found = [each["scores"]["accuracy"] for each in own]
    assert result["scores"]["accuracy"]["mean"] == pytest.approx(sum(found) / len(found))
    assert f"95 % interval of the mean of {len(names)}" in out
    folds = "--kfold" in flags
    assert result["judged"] == (sum(each["judged"] for each in own) if folds else own[0]["judged"])
    assert ("share examples: the interval is too narrow" in out) == folds
    assert ("which also chose the models" in out) == (not folds)
    majority = [each["baselines"]["majority"]["accuracy"] for each in own]
    assert result["baselines"]["majority"]["accuracy"]["mean"] == pytest.approx(sum(majority) / len(names))
    assert "always the commonest label" in out
    if "--kfold" in flags:
        assert out.splitlines()[-1] == "next       the same without --kfold: one model"
    else:
        assert out.splitlines()[-1].startswith("next       python evaluate.py predict --model out/seed-")
    weights = {Path("out", name, "model.safetensors").read_bytes() for name in names}
    assert len(weights) == len(names)
    if "--kfold" in flags:
        rows = [[*csv.DictReader(Path("out", name, "predictions.csv").read_text().splitlines())] for name in names]
        assert sorted(row["where"] for part in rows for row in part) == sorted(f"train.csv:{i}" for i in range(2, 122))
        texts = [{row["text"] for row in part} for part in rows]
        assert sum(map(len, texts)) == len(set.union(*texts))


def test_of_several_runs_that_which_is_best_by_dev_predicts(go, monkeypatch):
    """Not that which is best by the test."""
    worth = {"seed-0": (0.5, 0.9), "seed-1": (0.9, 0.1), "seed-2": (0.7, 0.8)}

    def one(args, out, run):
        out.mkdir(parents=True)
        dev, test = worth[run.name]
        own = {"dev": {"loss": 1.0, "accuracy": dev}, "scores": {"accuracy": test}, "baselines": {}}
        own |= {"judged_on": "test", "judged": 120}
        return own | {"predictions": "predictions.csv"}, []

    monkeypatch.setattr(go.script, "one", one)
    status, out, err = go("finetune", *FLAGS, "--test", "train.csv", "--seeds", "3")
    assert status == 0, err
    assert "predict --model out/seed-1 --input new.csv" in out.splitlines()[-1]
    assert "120 examples, those of --test; intervals are over seeds alone, not over examples" in out


def test_flags_are_those_of_the_tuning(go, monkeypatch):
    """Under the same names; and what no flag gives is as `Tuning` has it."""

    class Told(Exception):
        pass

    def tune(*args, **more):
        raise Told(next(each for each in args if isinstance(each, Tuning)))

    monkeypatch.setattr(go.script, "tune", tune)
    asked = {"steps": 9, "batch_size": 4, "lr": 0.25, "length": 12, "evaluate_every": 3, "patience": 2, "seed": 5}
    asked |= {"weight_decay": 0.5, "warmup_frac": 0.75, "layer_decay": 0.875, "lora_rank": 3, "lora_alpha": 6.0}
    asked |= {"frozen_layers": 1}
    flags = [word for name, value in asked.items() for word in (cli.flag(name), str(value))]
    for more, tuning in (
        ([], Tuning()),
        (["--epochs", "2"], Tuning(epochs=2.0)),
        ([*flags, "--gradient-checkpointing"], Tuning(**asked, gradient_checkpointing=True)),
    ):
        with pytest.raises(Told) as told:
            go("finetune", "--train", "train.csv", "--out", "out", *more)
        assert told.value.args == (tuning,)


def test_a_run_whose_time_is_up_is_gone_on_with_unless_that_is_refused(go):
    flags = ("finetune", *FLAGS[:4], "--steps", "40")
    status, out, err = go(*flags, "--time-limit", "0.001")
    assert (status, out) == (0, "")
    stopped = re.search(r"stopped and saved at step (\d+); the same command", err.splitlines()[-1])[1]
    status, _, err = go(*flags, "--resume", "never")
    assert (status, "--out out: holds a run; choose another --out, or --resume auto" in err) == (2, True), err
    status, _, err = go(*flags)
    assert status == 0, err
    assert f"resuming from step {stopped} of 40 steps" in err


def test_a_pickle_is_read_where_that_is_allowed(go):
    assert go("finetune", "--train", "train.csv", "--steps", "1", "--out", "out")[0] == 0
    predict = ("predict", "--model", "out", "--input", "new.csv", "--output")
    assert go(*predict, "said.csv")[0] == 0
    torch.save(load_file("out/model.safetensors"), "out/pytorch_model.bin")
    for name in ("model.safetensors", "MANIFEST.json"):
        Path("out", name).unlink()
    status, _, err = go(*predict, "no.csv")
    assert (status, "--allow-pickle" in err, Path("no.csv").exists()) == (2, True, False)
    assert go(*predict, "again.csv", "--allow-pickle")[0] == 0
    assert Path("again.csv").read_bytes() == Path("said.csv").read_bytes()


def test_what_does_not_fit_is_computed_in_parts(go, monkeypatch):
    plain = Classification.loss

    def full_above(self, model, batch):
        if batch.count > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return plain(self, model, batch)

    monkeypatch.setattr(Classification, "loss", full_above)
    flags = ("--train", "train.csv", "--steps", "2", "--out", "out")
    status, _, err = go("finetune", *flags)
    assert (status, "give --auto-batch for smaller micro-batches" in err.splitlines()[-1]) == (2, True)
    status, _, err = go("finetune", *flags, "--auto-batch")
    assert status == 0, err
    assert "micro-batches are now at most" in err


def test_the_positive_label_and_a_new_head(go):
    """Scores of either label; a model that has learned others."""
    rows = [f"the {word} film,{name}" for i in range(10) for name in WORDS for word in WORDS[name]] + ["a plot,bad"] * 9
    Path("uneven.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    flags = ("--train", "uneven.csv", "--test", "uneven.csv", "--steps", "12", "--lr", "3e-3", "--out")
    for positive, more in (("good", ()), ("bad", ("--positive-label", "bad"))):
        status, out, err = go("finetune", *flags, positive, *more)
        assert status == 0, err
        assert f"positive   '{positive}': f1, precision and recall are of it" in out
        result = json.loads(Path(positive, "results.json").read_text())
        metric = "accuracy" if positive == "good" else "f1"
        low, high = result["intervals"][metric]
        assert low <= result["scores"][metric] <= high
        assert f"interval   {low:.4f} to {high:.4f} (95 %, over examples): {metric}" in out
        row = next(row for row in result["labels"] if row["name"] == result["positive_label"] == positive)
        assert [result["scores"][name] for name in ("f1", "precision", "recall")] == [
            row[name] for name in ("f1", "precision", "recall")
        ]
    assert next(iter(result["scores"])) == "f1"  # which chooses the model
    for flag, positive in (((), "bad"), (("--positive-label", "good"), "good")):  # which the model remembers
        told = ("--model", "bad", "--data", "uneven.csv", "--json", "scored.json")
        assert go("score", *told, *flag)[0] == 0
        assert json.loads(Path("scored.json").read_text())["positive_label"] == positive
    majority = result["baselines"]["majority"]
    assert majority["recall"] == 1 > majority["precision"] > 0.5
    others = ("--model", "bad", "--train", "train.csv", "--label-column", "review", "--text-column", "verdict")
    Path("train.csv").write_text("verdict,review\n" + "fine,yes\nno plot,no\n" * 20)
    status, _, err = go("finetune", *others, "--steps", "1")
    assert (status, "predicts bad, good, and the examples are labelled no, yes; take another" in err) == (2, True), err
    status, _, err = go("finetune", *others, "--steps", "1", "--new-head", "--out", "others")
    assert status == 0, err
    assert "starting from bad, with a new head" in err
    assert json.loads(Path("others/config.json").read_text())["id2label"] == {"0": "no", "1": "yes"}
    Path("three.csv").write_text("text,label\n" + "fine,good\nplot,odd\ndull,bad\n" * 9)
    assert go("finetune", "--train", "three.csv", "--steps", "1", "--out", "three")[0] == 0
    status, _, err = go("finetune", *flags, "none", "--model", "three", "--positive-label", "bad")
    assert status == 2
    assert "--positive-label bad: needs two labels, and three predicts bad, good, odd; leave it out" in err
    assert not Path("none").exists()


def test_a_checkpoint_predicts_as_its_run_was_trained(go):
    """By the columns and the length that only the run tells."""
    assert go("finetune", "--train", "train.csv", "--steps", "4", "--length", "9", "--out", "out")[0] == 0
    Path("two.csv").write_text("text,review\nthe plot,the film was great\na film,dull\n")
    [checkpoint] = Path("out").glob("step-*")
    for name in ("out", str(checkpoint)):
        status, _, err = go("predict", "--model", name, "--input", "two.csv", "--output", "p.csv", "--json", "p.json")
        assert status == 0, err
        assert "text is column 'review'" in err
        assert json.loads(Path("p.json").read_text())["length"] == 9
    assert go("finetune", "--train", "train.csv", "--steps", "4", "--length", "9", "--out", "step-one")[0] == 0
    args = ("--input", "two.csv", "--output", "p.csv", "--json", "p.json")  # a run's own directory may have such a name
    assert "text is column 'review'" in go("predict", "--model", "step-one", *args)[2]
    assert json.loads(Path("p.json").read_text())["length"] == 9


def test_the_baseline_is_told_by_what_it_is_compared_by(go):
    """Not the accuracy, where f1 chooses."""
    rows = ["the film,bad"] * 30 + ["a plot,good"] * 3
    Path("uneven.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    flags = ("--train", "uneven.csv", "--test", "uneven.csv", "--steps", "1", "--positive-label", "good")
    status, out, err = go("finetune", *flags, "--out", "out")
    assert status == 0, err
    told = [line for line in out.splitlines() if line.startswith("baseline")]
    assert told[0].startswith("baseline   f1 0.0000  accuracy 0.9091")


def test_a_model_that_reads_left_to_right_sees_all_that_follows_when_tuned(go, encoder_directory):
    """Also where it is opened by others: transformers says the same."""
    shutil.copytree(encoder_directory, "causal")
    config = json.loads(Path("causal/config.json").read_text())
    Path("causal/config.json").write_text(json.dumps(config | {"is_decoder": True}))
    status, _, err = go("finetune", "--model", "causal", *FLAGS)
    assert status == 0, err
    assert "causal is a causal model; tuned, and as it is saved, its attention is bidirectional" in err
    assert not json.loads(Path("out/config.json").read_text()).get("is_decoder", False)
    tuned = minilm.open_tuned("out")
    texts = ["the film was great", "and a plot", "dull the film"]
    theirs = pipeline("text-classification", "out")(texts)
    assert [each["label"] for each in theirs] == tuned.predict(texts)


def test_flags_that_pandas_wrote(go):
    """1.0 for 1, in a column with an empty cell, which is a row left out."""
    Path("flags.csv").write_text("text,loud,rude\n" + "fine,1,0.0\npoor,0,1.0\ndull,1,1.0\n" * 9 + "great,1,\n")
    status, _, err = go("finetune", "--train", "flags.csv", "--task", "multilabel", "--steps", "2", "--out", "out")
    assert status == 0, err
    assert "labels are the columns of 0 and 1: 'loud', 'rude'" in err
    assert "left out: flags.csv:29: no label" in err
    assert json.loads(Path("out/config.json").read_text())["id2label"] == {"0": "loud", "1": "rude"}
    Path("test.csv").write_text("text,loud,rude,odd\nfine,1,0,1\npoor,0,1,0\n")
    status, _, err = go("score", "--model", "out", "--data", "test.csv", "--json", "scored.json")
    assert status == 0, err
    assert json.loads(Path("scored.json").read_text())["n"] == 2
    Path("test.csv").write_text("text,loud\nfine,1\n")
    status, _, err = go("score", "--model", "out", "--data", "test.csv")
    assert (status, "no column 'rude', which is a label" in err) == (2, True), err


def test_a_label_that_held_nowhere_in_training_is_not_passed_over(go):
    """In the test that is given with it it is missed, as one that the model never says; by score it is named."""
    head, rows = "text,loud,rude,odd\n", "fine,1,0,0\npoor,0,1,0\ndull,1,1,0\n" * 9
    Path("flags.csv").write_text(head + rows)
    Path("test.csv").write_text(head + "fine,1,0,1\npoor,0,1,0\ngreat,1,1,1\n")
    flags = ("--train", "flags.csv", "--test", "test.csv", "--task", "multilabel", "--out", "out", *FLAGS[4:])
    status, _, err = go("finetune", *flags)
    assert status == 0, err
    assert json.loads(Path("out/results.json").read_text())["scores"]["micro_f1"] < 1
    status, _, err = go("score", "--model", "out", "--data", "test.csv")
    assert (status, "test.csv:2: the label 'odd' is none of the model's" in err) == (2, True), err


def test_columns_by_number_are_those_of_training(go):
    """By its names, where another file has them in another order."""
    Path("train.csv").write_text("id,body,kind\n" + "x,fine film,a\ny,dull plot,b\n" * 20)
    Path("dev.csv").write_text("kind,id,body\na,y,fine\nb,x,dull\n")
    flags = ("--text-column", "2", "--label-column", "3", "--header", "--steps", "2", "--out", "out")
    status, _, err = go("finetune", "--train", "train.csv", "--dev", "dev.csv", *flags)
    assert status == 0, err
    with open("out/predictions.csv") as file:
        assert [(row["text"], row["label"]) for row in csv.DictReader(file)] == [("fine", "a"), ("dull", "b")]


@pytest.mark.parametrize(
    ("name", "flags"),
    [("a.jsonl", ["--header"]), ("a.jsonl.gz", ["--no-header"]), ("a.conll", ["--header", "--task", "tagging"])],
)
def test_a_header_is_of_a_csv(go, name, flags):
    status, out, err = go("finetune", "--train", name, *flags)
    assert (status, out) == (2, "")
    assert f"{flags[0]}: {name} is no csv" in err.splitlines()[-1]
    status, _, err = go("finetune", "--train", name, *flags, "--dev", "b.csv")
    assert "is no csv" not in err or flags[-1] == "tagging"


def test_a_model_is_judged_on_the_text_that_it_learned(go):
    """Though its label's column has another name here; and where training had no header, the first row is data."""
    Path("train.csv").write_text("title,text,label\n" + "fine film,dull plot,a\ndull plot,fine film,b\n" * 20)
    assert go("finetune", "--train", "train.csv", "--text-column", "title", "--steps", "2", "--out", "out")[0] == 0
    rows = (f"fine film,dull plot {i},a\ndull plot,fine film {i},b\n" for i in range(3))
    Path("test.csv").write_text("title,text,gold\n" + "".join(rows))
    status, _, err = go("score", "--model", "out", "--data", "test.csv")
    assert status == 0, err
    assert "text is column 'title', label is column 'gold'" in err
    Path("bare.csv").write_text("".join(f"fine film {i},a\ndull plot {i},b\n" for i in range(20)))
    assert go("finetune", "--train", "bare.csv", "--steps", "2", "--out", "bare")[0] == 0
    Path("new.csv").write_text("good film,pos\nbad film,neg\ndull film,neg\n")
    status, _, err = go("predict", "--model", "bare", "--input", "new.csv", "--output", "said.jsonl")
    assert status == 0, err
    said = [json.loads(line) for line in Path("said.jsonl").read_text().splitlines()]
    assert [row["1"] for row in said] == ["good film", "bad film", "dull film"]
    assert "no header, as in training" in err
    assert all(sum(row[f"p({label})"] for label in "ab") == pytest.approx(1) for row in said)  # numbers


@pytest.mark.parametrize("header", ["tweet_text,airline_sentiment", "utterance,mos"])
def test_a_header_is_seen_by_a_model_that_had_none(go, header):
    """Of other than usual names: by their ending, or above numbers."""
    labels = ("1", "2") if header.endswith("mos") else ("a", "b")
    rows = "".join(f"fine film {i},{labels[0]}\ndull plot {i},{labels[1]}\n" for i in range(20))
    Path("bare.csv").write_text(rows)
    assert go("finetune", "--train", "bare.csv", "--no-header", "--steps", "2", "--out", "bare")[0] == 0
    Path("new.csv").write_text(f"{header}\n{rows}")
    status, _, err = go("predict", "--model", "bare", "--input", "new.csv", "--output", "said.csv")
    assert status == 0, err
    assert "predictions of 40 rows" in err


def test_whole_numbers_are_in_their_order(go):
    """As labels, and that -1 is one of them is told."""
    rows = [f"the film {WORDS['good'][i % 3]} {i % 11},{i % 11 - 1}" for i in range(110)]
    Path("train.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    status, _, err = go("finetune", "--train", "train.csv", "--steps", "2", "--out", "out")
    assert status == 0, err
    assert [*json.loads(Path("out/config.json").read_text())["id2label"].values()] == [*map(str, range(-1, 10))]
    assert "the label '-1' is learned as any other" in err
    for number in (1, 2):  # predicted once more, beside the columns that are there
        told = Path("said.csv").read_text() if number == 2 else Path("out/predictions.csv").read_text()
        Path("told.csv").write_text(told)
        assert go("predict", "--model", "out", "--input", "told.csv", "--output", "said.csv")[0] == 0
    losses = []
    for column in ("prediction", "prediction (model)"):
        flags = ("--predictions", "said.csv", "--prediction-column", column, "--json", "found.json")
        status, _, err = go("score", *flags)
        assert status == 0, err
        losses.append(json.loads(Path("found.json").read_text())["metrics"]["log_loss"]["value"])
    assert losses[0] == pytest.approx(losses[1])


@pytest.mark.parametrize(
    ("name", "expected"), [(".reviews.v1.csv.gz", "reviews.v1"), ("Reviews.csv", "Reviews"), (".csv.xz", "csv")]
)
def test_a_run_is_named_after_its_file(go, name, expected):
    pack = {".gz": gzip.compress, ".xz": lzma.compress}.get(Path(name).suffix, bytes)
    Path(name).write_bytes(pack(b"text,label\n" + b"fine film,a\ndull plot,b\n" * 20))
    status, _, err = go("finetune", "--train", name, "--steps", "2")
    assert status == 0, err
    assert [path.name for path in Path("checkpoints").iterdir() if path.name != "quick-mlm"] == [expected]


@pytest.mark.parametrize("name", ["utterance", "Review Text"])
def test_a_header_of_training_s_names_is_one_in_any_file(go, name):
    """Whatever it looks like: a column alone, or of other values than are below."""
    Path("train.csv").write_text(f"{name},intent\n" + "fine film,a\ndull plot,b\n" * 20)
    flags = ("--train", "train.csv", "--header", "--text-column", "1", "--label-column", "2", "--steps", "2")
    assert go("finetune", *flags, "--out", "out")[0] == 0
    Path("new.csv").write_text(f"{name}\nthe plot\na film\n")
    status, _, err = go("predict", "--model", "out", "--input", "new.csv", "--output", "said.csv")
    assert status == 0, err
    with open("said.csv") as file:
        assert [row[name] for row in csv.DictReader(file)] == ["the plot", "a film"]
    Path("test.csv").write_text(f"{name},intent\nthe plot,a\na film,b\n")
    status, _, err = go("score", "--model", "out", "--data", "test.csv", "--json", "said.json")
    assert status == 0, err
    assert json.loads(Path("said.json").read_text())["n"] == 2
    flags = (*flags[:2], "--test", "test.csv", *flags[3:])
    status, _, err = go("finetune", *flags, "--out", "two")
    assert status == 0, err
    with open("two/predictions.csv") as file:
        assert [row["text"] for row in csv.DictReader(file)] == ["the plot", "a film"]


def test_a_header_is_told_by_the_names_that_are_given(go):
    """In a file that training's names are not in, of one row."""
    assert go("finetune", *FLAGS[:4], "--steps", "2", "--out", "out")[0] == 0
    Path("new.csv").write_text("body,title\nthe plot,x\n")
    status, _, err = go(
        "predict", "--model", "out", "--input", "new.csv", "--output", "said.csv", "--text-column", "body"
    )
    assert status == 0, err
    with open("said.csv") as file:
        assert [row["body"] for row in csv.DictReader(file)] == ["the plot"]
    tuned = minilm.open_tuned("out")
    Path("test.csv").write_text(f"body,kind\nthe plot,{tuned.task.labels[0]}\na film,{tuned.task.labels[1]}\n")
    assert minilm.score(tuned, "test.csv", text="body", label="kind")["n"] == 2
    columns = ("--text-column", "body", "--label-column", "kind")
    status, _, err = go("score", "--model", "out", "--data", "test.csv", *columns, "--json", "said.json")
    assert status == 0, err
    assert json.loads(Path("said.json").read_text())["n"] == 2


def test_labels_are_parted_as_in_training(go):
    """Also where each row of another file has one, and another mark stands in it."""
    Path("train.csv").write_text("text,labels\n" + 'fine film,"Arts, Crafts|Music"\ndull plot,Music\n' * 20)
    flags = ("--task", "multilabel", "--steps", "2", "--out", "out")
    assert go("finetune", "--train", "train.csv", *flags)[0] == 0
    Path("test.csv").write_text('text,labels\nfine,"Arts, Crafts"\ndull,Music\n')
    status, _, err = go("score", "--model", "out", "--data", "test.csv")
    assert status == 0, err


def test_a_finished_run_says_which_test_its_scores_are_of(go):
    for name in ("a.csv", "b.csv"):
        shutil.copy("train.csv", name)
    flags = (*FLAGS[:4], "--steps", "2")
    for test in (None, "a.csv", "b.csv"):
        status, _, err = go("finetune", *flags, *(("--test", test) if test else ()))
        assert status == 0, err
        assert json.loads(Path("out/results.json").read_text()).get("test_file") == test
        assert (f"| test_file | {test} |" in Path("out/README.md").read_text()) == bool(test)


def test_check_says_what_is_there_and_stops(go, tmp_path):
    Path("few.csv").write_text("review,verdict\nfine,good\nfine,bad\n" + "unheard of " * 20 + ",bad\n,good\n")
    flags = ("--label-column", "verdict", "--text-column", "review")
    status, out, err = go("finetune", "--train", "few.csv", "--dev", "train.csv", *flags, "--check", "--out", "out")
    assert status == 0, err
    assert "train      3 rows used, 1 left out" in out
    assert "labels     2: bad 2, good 1" in out
    assert "duplicates 1 texts, 1 of them with another label; few.csv:3 is few.csv:2" in out
    assert "tokens     3 to 42 a text, median 3; longer than 24, to be truncated or read in parts: 1 rows" in out
    assert "unknown    95.24% of the tokens are [UNK]" in out  # 40 of 42 that are neither [CLS] nor [SEP]
    assert "left out: few.csv:5" in err
    assert not Path("out").exists()
    question = {"id": "q", "question": "was a film", "answers": [{"text": "fine", "answer_start": 4}]}
    paragraphs = [{"context": f"the fine {word}", "qas": [question | {"id": word}]} for word in PLAIN]
    Path("squad.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    out = go("finetune", "--train", "squad.json", "--task", "span", "--check")[1]
    assert "train      5 rows used, 0 left out" in out
    assert "labels     1: answer 5" in out
    assert "longer than 24, to be truncated or read in parts: 0 rows" in out
    Path("words.conll").write_text("\n".join(f"the O\nfilm B-X\n{'and O' if i else 'zebra O'}\n" for i in range(30)))
    out = go("finetune", "--train", "words.conll", "--task", "tagging", "--check")[1]
    assert "labels     1: X " in out
    assert "tokens     5 to 5 a text, median 5; longer than 24" in out


def test_several_processes_are_refused(go, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    status, _, err = go("finetune", *FLAGS)
    assert (status, "fine-tuning runs in one process" in err) == (2, True)
    assert not Path("out").exists()


def test_a_batch_is_learned_by_heart_or_not(go):
    """As it should be; and where the labels contradict each other, it is said."""
    flags = ("--train", "train.csv", "--batch-size", "8", "--overfit-batch", "--out", "out")
    status, out, err = go("finetune", *flags, "--lr", "1e-2")
    assert status == 0, err
    assert "8 examples after 100 steps" in out
    assert "; it learns them" in out
    assert not Path("out").exists()
    Path("odd.csv").write_text("text,label\n" + "".join(f"the film,{('a', 'b')[i // 8 % 2]}\n" for i in range(64)))
    out = go("finetune", *flags, "--train", "odd.csv", "--lr", "1e-2")[1]
    assert "it does NOT learn them" in out
    Path("odd.csv").write_text("text,label\n" + "the film,a\n" * 90 + "the film,b\n" * 3)  # one in 31 is another
    out = go("finetune", *flags, "--train", "odd.csv", "--lr", "1e-2")[1]
    assert "it does NOT learn them" in out


def test_a_file_is_in_one_split_wherever_it_is_installed(tmp_path, monkeypatch):
    """By its place in its library, not by its whole path."""
    text = '"""' + "The list is sorted, and each of its items is then printed on a line of its own. " * 2 + '{}"""\n'
    found = []
    for home in ("usr/lib/python3.11", "opt/python/lib"):
        for number in range(60):
            file = tmp_path / home / f"m{number}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text.format(number))
        sources = [(f"python/{path.name}", path) for path in sorted((tmp_path / home).glob("*.py"))]
        monkeypatch.setattr("minilm.labelled.libraries.embedded_sources", lambda sources=sources: iter(sources))
        monkeypatch.setattr("minilm.labelled.libraries.PER_LIBRARY", 20)  # so that the order of files decides, too
        found.append([{example.where for example in part} for part in embedded_examples()])
    assert found[0] == found[1]
    assert all(found[0])
    assert not found[0][0] & found[0][2]


def test_the_embedded_texts_do_not_name_their_library(tmp_path, monkeypatch):
    """Nor its modules; other words stay."""
    said = "Call numpy.linalg.norm or np.dot of an ndarray, as __torch_function__ and a CUDA tensor in Python3 do. "
    (tmp_path / "m.py").write_text(f'"""{said * 2}"""\n')
    monkeypatch.setattr("minilm.labelled.libraries.embedded_sources", lambda: iter([("numpy/m.py", tmp_path / "m.py")]))
    (text,) = (each.text for part in embedded_examples() for each in part)
    assert text.startswith("Call _ or _ of an _, as _ and a _ _ in _ do. Call _")


def test_alone_it_begins_from_the_model_that_train_makes(script, encoder_directory, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minilm.labelled.libraries.PER_LIBRARY", 80)
    shutil.copytree(encoder_directory, "checkpoints/quick-mlm")
    with pytest.raises(SystemExit) as stop:
        cli.run(script.main, script.Args, ["--device", "cpu", "--steps", "1", "--frozen-layers", "2"])
    err = capsys.readouterr().err
    assert stop.value.code == 0, err
    assert "starting from checkpoints/quick-mlm" in err
    frozen = load_file(encoder_directory / "model.safetensors")["embeddings.word_embeddings.weight"]
    saved = load_file("checkpoints/libraries/model.safetensors")["bert.embeddings.word_embeddings.weight"]
    assert torch.equal(frozen, saved)


def test_alone_it_begins_from_scratch_and_says_so(script, tmp_path, monkeypatch, capsys):
    """Where there is no checkpoints/quick-mlm; on a few of the embedded examples."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minilm.labelled.libraries.PER_LIBRARY", 80)
    with pytest.raises(SystemExit) as stop:
        cli.run(script.main, script.Args, ["--device", "cpu", "--steps", "3"])
    out, err = capsys.readouterr()
    assert stop.value.code == 0, err
    assert "training from scratch: checkpoints/quick-mlm is not there" in err
    assert "always the commonest label" in out
    assert "bag of words (tf-idf" in out
    assert Path("checkpoints/libraries/results.json").exists()
    with pytest.raises(SystemExit) as stop:
        cli.run(script.main, script.Args, ["--device", "cpu", "--steps", "3", "--new-head", "--out", "other"])
    assert (stop.value.code, Path("other").exists()) == (2, False)
    assert "--new-head: training from scratch has no other; leave it out, or give --model" in capsys.readouterr().err


def test_labels_that_training_has_not(go):
    """In dev and in the test are always told wrong, and do not end the run; of two labels and of several at once."""
    Path("dev.csv").write_text("review,verdict\nfine,good\npoor,bad\npoor,other\nfine,other\n")
    status, _, err = go("finetune", *FLAGS, "--dev", "dev.csv", "--test", "dev.csv")
    assert status == 0, err
    assert "dev: labels not in the training data: 'other' 2; the first in dev.csv:4" in err
    assert "test: 4 texts are also in the dev examples; the first dev.csv:2" in err
    result = json.loads(Path("out/results.json").read_text())
    assert result["scores"]["accuracy"] == 0.5
    assert (result["scores"]["recall"], result["scores"]["precision"]) == (1.0, 0.5)
    rows = [{"text": f"{PLAIN[i % 6]} {WORDS['good'][i % 3]}", "label": [["a"], ["a", "b"]][i % 2]} for i in range(40)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("one.jsonl").write_text(
        json.dumps({"text": "fine", "label": ["a"]}) + "\n" + json.dumps({"text": "a", "label": ["c"]})
    )
    flags = ("--train", "rows.jsonl", "--dev", "one.jsonl", "--task", "multilabel", "--steps", "2", "--out", "several")
    status, _, err = go("finetune", *flags)
    assert status == 0, err
    said = minilm.open_tuned("several").predict(["fine", "a"])
    result = json.loads(Path("several/results.json").read_text())
    assert result["scores"]["subset_accuracy"] == ([*said[0]] == ["a"]) / 2
    assert [(row["name"], row["support"]) for row in result["labels"]] == [("a", 1), ("b", 0), ("(unseen)", 1)]
    of_each = [row["f1"] for row in result["labels"]]
    assert result["scores"]["macro_f1"] == pytest.approx(sum(of_each) / 3)


def test_each_baseline_that_is_not_beaten_is_named():
    baselines = {"majority": 0.5, "chance": 0.2, "bag_of_words": 0.7}
    [line] = warning(baselines, 0.5)
    assert line.startswith("warning    no better than always the commonest label, nor than bag of words (tf-idf")
    assert warning(baselines, 0.8) == []


def test_dev_is_read_as_train_was(go):
    """Its columns, and what separates labels; so that a comma in a label stays one."""
    texts = [f"{PLAIN[i % 6]} {WORDS['good'][i % 3]}" for i in range(20)]
    lines = [f"{text}\t{['Food, drink|News', 'News'][i % 2]}\tx y" for i, text in enumerate(texts)]
    Path("train.tsv").write_text("\n".join(["body\ttopics\tnote", *lines]))
    Path("dev.tsv").write_text("text\tlabel\tbody\ttopics\tnote\nq\tq\tfine\tFood, drink\tx y\nq\tq\tpoor\tNews\tx y\n")
    own = ("--text-column", "body", "--label-column", "topics", "--steps", "2", "--task", "multilabel", "--out", "out")
    status, _, err = go("finetune", "--train", "train.tsv", "--dev", "dev.tsv", *own)
    assert status == 0, err
    assert "labels not in the training data" not in err
    assert json.loads(Path("out/config.json").read_text())["id2label"] == {"0": "Food, drink", "1": "News"}
    assert "fine" in Path("out/predictions.csv").read_text()


def test_groups_stay_together(go):
    """Of a held-out tenth, and of the one within each fold."""
    rows = [
        (i // 6, f"{PLAIN[i % 6]} {WORDS[['good', 'bad'][i % 2]][i % 3]}", ["good", "bad"][i % 2]) for i in range(60)
    ]
    Path("people.csv").write_text("who,text,label\n" + "".join(f"{who},{text},{label}\n" for who, text, label in rows))
    who = {f"people.csv:{i}": row[0] for i, row in enumerate(rows, start=2)}
    flags = ("--train", "people.csv", "--steps", "1", "--group-column", "who", "--out", "out")
    status, _, err = go("finetune", *flags)
    assert status == 0, err
    with open("out/predictions.csv") as file:
        dev = [who[row["where"]] for row in csv.DictReader(file)]
    assert len(dev) == 6
    assert len({*dev}) == 1
    assert "9 examples" not in err
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        import minilm.labelled.splits as splits

        patch.setattr(go.script, "split_by_text", lambda *given: seen.append(splits.split_by_text(*given)) or seen[-1])
        assert go("finetune", *flags, "--kfold", "2", "--out", "folds")[0] == 0
    assert len(seen) == 2
    for inner, chosen in seen:
        assert not {who[each.where] for each in inner} & {who[each.where] for each in chosen}


def test_numbers_by_heart(go):
    """Whether they are learned is measured by their spread."""
    lines = [f"{WORDS[label][i % 3]} {PLAIN[i]},{[50, 54][label == 'good']}" for i in range(4) for label in WORDS]
    Path("numbers.csv").write_text("text,score\n" + "\n".join(lines))
    flags = ("--train", "numbers.csv", "--task", "regression", "--batch-size", "8", "--overfit-batch", "--lr", "1e-2")
    status, out, err = go("finetune", *flags, "--steps", "300")
    assert status == 0, err
    assert "; it learns them" in out
    status, out, err = go("finetune", *flags, "--steps", "300", "--batch-size", "1")  # a single number has no spread
    assert status == 0, err
    assert "1 example after 300 steps" in out
    assert "; it learns them" in out
    Path("wide.csv").write_text("text,score\n" + "\n".join(f"the film {i},{i * 9}" for i in range(20)))
    status, _, err = go("finetune", "--train", "wide.csv", "--task", "regression", "--steps", "1", "--out", "out")
    assert status == 0, err
    assert "the labels have standard deviation 5" in err
    Path("alike.csv").write_text("sentence1,sentence2,score\n" + "\n".join(f"film {i},plot,{i * 9}" for i in range(20)))
    _, _, err = go("finetune", "--train", "alike.csv", "--task", "similarity", "--steps", "1", "--out", "alike")
    assert "standard deviation" not in err  # it scales them itself
    assert "pairs share one of their texts with the training examples" in err


def test_similarity(go, tmp_path):
    """From pairs to a directory that predicts, embeds and searches."""
    lines = [
        f"the film was {a}\tthe plot was {b}\t{4.0 if a == b else 0.5}" for a in WORDS["good"] for b in WORDS["good"]
    ]
    Path("pairs.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *lines * 6]))
    flags = (
        "--train",
        "pairs.tsv",
        "--task",
        "similarity",
        "--out",
        "out",
        "--epochs",
        "4",
        "--lr",
        "3e-3",
        "--test",
        "pairs.tsv",
    )
    status, out, err = go("finetune", *flags)
    assert status == 0, err
    result = json.loads(Path("out/results.json").read_text())
    assert result["scores"]["spearman"] > 0.8
    assert result["baselines"]["shared_words"].keys() == {"spearman", "pearson"}
    assert "word overlap of the two texts" in out
    status, _, err = go("predict", "--model", "out", "--input", "pairs.tsv", "--output", "said.tsv")
    assert status == 0, err
    with open("said.tsv") as file:
        said = [float(row["prediction"]) for row in csv.DictReader(file, delimiter="\t")]
    same, other = ([value for i, value in enumerate(said) if (i % 9 % 4 == 0) == wanted] for wanted in (True, False))
    assert min(same) > max(other)
    Path("texts.txt").write_text("the film was fine\nthe film was great\n")
    assert go("embed", "--model", "out", "--data", "texts.txt", "--out", "texts.npy")[0] == 0
    whole = Path("out/model.safetensors").read_bytes()
    Path("out/model.safetensors").write_bytes(whole[:1000])
    status, _, err = go("finetune", *flags)
    assert (status, "the model is written again" in err) == (0, True), err
    assert Path("out/model.safetensors").read_bytes() == whole
    assert read_pooling(Path("out")).max_length == 24


def test_vectors_are_of_as_many_tokens_as_were_tuned(go):
    Path("pairs.tsv").write_text("sentence1\tsentence2\tscore\n" + "fine\tpoor\t1\nfine\tfine\t5\n" * 9)
    flags = ("--train", "pairs.tsv", "--task", "similarity", "--steps", "1", "--length", "5", "--out", "out")
    status, _, err = go("finetune", *flags)
    assert status == 0, err
    long, same = "the film was fine and a plot", "the film was dull dull dull"
    one, other = minilm.embed("out", [long, same])
    assert torch.equal(one, other)
    assert minilm.open_tuned("out").predict([long], pairs=[same])[0] == pytest.approx(5)


def test_predictions_of_predictions(go):
    """Each time in a column of its own."""
    assert go("finetune", *FLAGS, "--steps", "1", "--epochs", "1")[0] == 2
    flags = ("finetune", "--train", "train.csv", "--out", "out", "--steps", "1")
    assert go(*flags)[0] == 0
    for old, new in (("new.csv", "1.csv"), ("1.csv", "2.csv"), ("2.csv", "3.csv")):
        assert go("predict", "--model", "out", "--input", old, "--output", new)[0] == 0
    head = Path("3.csv").read_text().splitlines()[0].split(",")
    assert len({*head}) == len(head) == 2 + 3 * 3


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_other_tasks(go, task):
    label = {"multilabel": ["a", "b|a", "b", "a"], "regression": ["0.5", "1", "2.5", "-1"]}[task]
    rows = [{"text": f"{PLAIN[i % 6]} {WORDS['good'][i % 3]}", "label": label[i % 4]} for i in range(40)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ("--train", "rows.jsonl", "--out", "out", "--steps", "4", "--task", task)
    status, out, err = go("finetune", *flags)
    assert status == 0, err
    assert "judged on  4 examples, which also chose the model" in out
    if task == "multilabel":
        result = json.loads(Path("out/results.json").read_text())
        with open("out/predictions.csv") as file:
            gold = [row["label"].split("|") for row in csv.DictReader(file)]
        assert [*result["baselines"]] == ["every_label", "bag_of_words"]
        held = sum(map(len, gold))
        assert result["baselines"]["every_label"]["micro_f1"] == pytest.approx(2 * held / (2 * len(gold) + held))
        supports = {row["name"]: row["support"] for row in result["labels"]}
        assert supports == {name: sum(name in each for each in gold) for name in "ab"}
    status, _, err = go("predict", "--model", "out", "--input", "rows.jsonl", "--output", "said.jsonl")
    assert status == 0, err
    said = [json.loads(line) for line in Path("said.jsonl").read_text().splitlines()]
    assert [row["text"] for row in said] == [row["text"] for row in rows]
    told = minilm.open_tuned("out", device="cpu").predict([row["text"] for row in rows])
    if task == "multilabel":
        assert [row["prediction"] for row in said] == [[*each] for each in told]
    else:
        assert [float(row["prediction"]) for row in said] == pytest.approx(told, rel=1e-5)


def test_predictions_of_any_labels_are_scored_as_they_were(go):
    """No label at all, and labels that hold the marks between labels."""
    label = [[], ["R&B|Soul"], ["a, b", "c"], ["c"]]
    rows = [{"text": f"{PLAIN[i % 6]} {WORDS['good'][i % 3]}", "label": label[i % 4]} for i in range(80)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, _, err = go("finetune", "--train", "rows.jsonl", "--out", "out", "--steps", "4", "--task", "multilabel")
    assert status == 0, err
    result = json.loads(Path("out/results.json").read_text())
    with open("out/predictions.csv") as file:
        gold = {row["label"] for row in csv.DictReader(file)}
    assert gold <= {"[]", '["R&B|Soul"]', '["a, b", "c"]', "c"}
    assert len(gold) > 2
    status, _, err = go("score", "--predictions", "out/predictions.csv", "--task", "multilabel", "--json", "found.json")
    assert status == 0, err
    found = json.loads(Path("found.json").read_text())
    assert found["n"] == result["judged"]
    assert found["metrics"]["micro_f1"]["value"] == pytest.approx(result["scores"]["micro_f1"])


def test_predictions_of_choices_are_scored_as_they_were(go):
    rows = [{"text": PLAIN[i % 6], "choices": ["was, fine", f"a|{i}"], "label": i % 2} for i in range(80)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, _, err = go("finetune", "--train", "rows.jsonl", "--out", "out", "--steps", "4", "--task", "choice")
    assert status == 0, err
    result = json.loads(Path("out/results.json").read_text())
    status, _, err = go("score", "--predictions", "out/predictions.csv", "--task", "choice", "--json", "found.json")
    assert status == 0, err
    found = json.loads(Path("found.json").read_text())
    assert (found["n"], found["metrics"]["accuracy"]["value"]) == (result["judged"], result["scores"]["accuracy"])


def test_which_ending_follows(go):
    """Of a table with SWAG's columns."""
    lines = ["id,sent1,sent2,ending0,ending1,label"]
    for i in range(40):
        endings = [f"was {WORDS['good'][i % 3]}", f"was {WORDS['bad'][i // 3 % 3]}"]
        lines.append(f"{i},the film,a plot,{','.join(endings[:: 1 - i % 2 * 2])},{i % 2}")
    Path("swag.csv").write_text("\n".join(lines) + "\n")
    flags = ("--task", "choice", "--train", "swag.csv", "--out", "out", "--epochs", "15", "--lr", "5e-3")
    status, out, err = go("finetune", *flags, "--batch-size", "8", "--patience", "20")
    assert status == 0, err
    assert "accuracy 0.5000: by chance" in out
    assert json.loads(Path("out/results.json").read_text())["scores"]["accuracy"] == 1
    status, _, err = go("predict", "--model", "out", "--input", "swag.csv", "--output", "said.csv")
    assert status == 0, err
    rows = [*csv.DictReader(Path("said.csv").read_text().splitlines())]
    assert all(row["choice"].endswith(row["ending" + row["prediction"]]) for row in rows)
    assert sum(row["prediction"] == row["label"] for row in rows) >= 38
    weights = load_file("out/model.safetensors")
    Path("own.csv").write_text(
        "\n".join([lines[0].replace("sent", "part").replace("label", "right"), *lines[1:]]) + "\n"
    )
    named = ("--text-column", "part1", "--pair-column", "3", "--label-column", "right")
    status, _, err = go(
        "finetune", *flags, "--batch-size", "8", "--patience", "20", "--train", "own.csv", "--out", "own", *named
    )
    assert status == 0, err
    assert all(own.equal(weights[name]) for name, own in load_file("own/model.safetensors").items())
    status, _, err = go("predict", "--model", "own", "--input", "own.csv", "--output", "own-said.csv")
    assert status == 0, err
    said = [each["prediction"] for each in csv.DictReader(Path("own-said.csv").read_text().splitlines())]
    assert said == [row["prediction"] for row in rows]
    turned = [line.split(",") for line in Path("own.csv").read_text().splitlines()]
    Path("dev.csv").write_text("".join(",".join([cells[2], *cells[:2], *cells[3:]]) + "\n" for cells in turned))
    more = ("--train", "own.csv", "--dev", "dev.csv", "--test", "dev.csv", "--steps", "2", "--out", "two")
    status, _, err = go("finetune", "--task", "choice", *more, *named)
    assert status == 0, err
    told = {row["text"] for row in csv.DictReader(Path("two/predictions.csv").read_text().splitlines())}
    assert told == {"the film"}
    Path("new.csv").write_text("text,ending0,ending1\na,b,c\n")
    status, _, err = go("predict", "--model", "own", "--input", "new.csv", "--output", "none.csv")
    assert (status, "choices began with column 'part2'; name it, --pair-column" in err) == (2, True)
    status, _, err = go("finetune", *flags, "--label-column", "right")
    assert (status, "no column 'right'" in err) == (2, True)


def test_choices_of_dev_are_counted_as_those_of_training(go):
    """Also where the last choice is never right there."""
    for name, last in (("train", 3), ("dev", 2)):
        lines = [f"the film,was {WORDS['good'][i % 3]},a plot,the plot,{i % last + 1}" for i in range(30)]
        Path(f"{name}.csv").write_text("\n".join(["question,choice1,choice2,choice3,label", *lines]) + "\n")
    flags = ("--task", "choice", "--train", "train.csv", "--dev", "dev.csv", "--out", "out", "--steps", "2")
    status, _, err = go("finetune", *flags)
    assert status == 0, err
    assert err.count("labels count from 1") == 2
    rows = [*csv.DictReader(Path("out/predictions.csv").read_text().splitlines())]
    assert {row["label"] for row in rows} == {"0", "1"}
    status, _, err = go("score", "--model", "out", "--data", "dev.csv")
    assert (status, "labels count from 1" in err) == (0, True), err


def sentences():
    """Of up to five words, with their tags."""
    found = []
    for i in range(60):
        good, bad = WORDS["good"][i % 3], WORDS["bad"][i // 3 % 3]
        words = [("the", "O"), (good, "B-good"), ("films", "I-good"), ("was", "O"), (bad, "B-bad")]
        found.append(words[i // 9 % 2 * 3 : 3 + i // 18 % 2 * 2])
    return [each for each in found if each]


def test_tags_of_words(go, pictures):
    """From one word a line to its tag, in lines and in lists."""
    lines = ["".join(f"{word} {tag}\n" for word, tag in each) for each in sentences()]
    Path("a.conll").write_text("-DOCSTART- O\n\n" + "\n".join(lines))
    flags = ("--train", "a.conll", "--out", "out", "--epochs", "12", "--lr", "2e-3", "--batch-size", "8")
    status, out, err = go("finetune", "--task", "tagging", *flags, "--json", "result.json")
    assert status == 0, err
    assert "train: the tag scheme is IOB2" in err
    assert "new.conll --output out.conll" in out
    assert "the commonest tag of each word in training" in out
    result = json.loads(Path("result.json").read_text())
    assert result["scores"]["f1"] >= 0.95
    assert result["baselines"]["commonest_tag"]["f1"] == 1
    assert {row["name"]: row["support"] for row in result["types"]}["good"] == 4
    rows = [line.split("\t") for line in Path("out/predictions.conll").read_text().splitlines()]
    assert sum(row == [""] for row in rows) == 4
    told = [row for row in rows if row != [""]]
    assert sum(gold == said for _, gold, said in told) / len(told) == result["scores"]["accuracy"]
    assert not {"predictions.csv", "confusion.png"} & {path.name for path in Path("out").iterdir()}
    Path("new.conll").write_text(
        "-DOCSTART-\n\nthe\nfine\nfilms\nwas\ndull\n\n\x01\nthe\n" + "\n" + "the\nfine\nfilms\n" * 9
    )
    status, _, err = go("predict", "--model", "out", "--input", "new.conll", "--output", "said.conll")
    assert status == 0, err
    assert "truncated or read in windows: 1" in err
    assert "words that the tokenizer drops, tagged O: 1" in err
    said = Path("said.conll").read_text().splitlines()
    assert said[:9] == ["-DOCSTART-", "", "the O", "fine B-good", "films I-good", "was O", "dull B-bad", "", "\x01 O"]
    assert len(said) == 11 + 27
    assert all(line.count(" ") == 1 for line in said[11:])
    Path("new.jsonl").write_text('{"id": 3, "tokens": ["New film", "fine", "films"]}\n{"id": 4, "tokens": []}\n')
    status, _, err = go(
        "predict", "--model", "out", "--input", "new.jsonl", "--output", "said.jsonl", "--json", "n.json"
    )
    assert status == 0, err
    assert json.loads(Path("n.json").read_text()) == {"rows": 2, "cut": 0, "length": 24, "words_without_token": 0}
    said = [json.loads(line) for line in Path("said.jsonl").read_text().splitlines()]
    assert said[0] == {"id": 3, "tokens": ["New film", "fine", "films"], "prediction": ["O", "B-good", "I-good"]}
    assert said[1]["id"] == 4
    Path("own.jsonl").write_text('{"w": ["New film", "fine", "films"], "gold": ["O", "B-good", "I-good"]}\n')
    status, out, err = go("score", "--model", "out", "--data", "own.jsonl", "--text-column", "w", "--label-column", "2")
    assert status == 0, err
    assert "1.0000" in out
    status, _, err = go("predict", "--model", "out", "--input", "new.jsonl", "--output", "said.tsv")
    assert status == 0, err
    assert Path("said.tsv").read_text() == "New film\tO\nfine\tB-good\nfilms\tI-good\n\n"
    assert "predictions of 1 rows -> said.tsv" in err
    for argv, why in (
        (("--input", "new.conll", "--output", "said.csv"), "said.csv: give one of .conll, .tsv, .jsonl"),
        (("--input", "none.conll", "--output", "none.jsonl"), "none.conll: no such file"),
        (("--input", "new.conll", "--output", "none.jsonl", "--text-column", "1"), "not used for tagging"),
    ):
        status, out, err = go("predict", "--model", "out", *argv)
        assert (status, out) == (2, "")
        assert why in err.splitlines()[-1]
    assert not Path("none.jsonl").exists()


def squad(file, n, first=0, impossible=True):
    """n questions, two a context; of every other context the answer is its only word of WORDS."""
    paragraphs = []
    for i in range(first, first + n, 2):
        answerable = not impossible or i % 4 == 0
        words = [PLAIN[(i * i + k) % 6] for k in range(3 + i % 25)]
        words.insert(i % 3, WORDS["good"][i // 4 % 3] if answerable else "plot")
        answers = [{"text": words[i % 3], "answer_start": len(" ".join([*words[: i % 3], ""]))}]
        qas = [
            {"id": f"q{i + k}", "question": f"the {PLAIN[k]}", "answers": answers if answerable else []}
            for k in range(2)
        ]
        paragraphs.append({"context": " ".join(words) + f" {i}", "qas": qas})
    Path(file).write_text(json.dumps({"version": "v2.0", "data": [{"title": "a", "paragraphs": paragraphs}]}))


SPAN = ("--task", "span", "--out", "out", "--epochs", "20", "--lr", "4e-3", "--batch-size", "8")


def test_questions_from_a_file_to_answers(go):
    """The threshold that dev chose is that of the test, of `predict` and of config.json."""
    squad("train.json", 48)
    squad("dev.json", 24, 100)
    squad("test.json", 24, 200)
    files = ("--train", "train.json", "--dev", "dev.json", "--test", "test.json")
    flags = (*SPAN, *files, "--evaluate-every", "60", "--length", "16")
    status, out, err = go("finetune", *flags, "--json", "result.json")
    assert status == 0, err
    assert "next       python evaluate.py predict --model out --input new.json --output out.json" in out
    result = json.loads(Path("result.json").read_text(), parse_constant=pytest.fail)
    assert [*result["scores"]] == ["f1", "exact", "f1_answerable", "exact_answerable", "f1_no_answer"]
    assert result["scores"]["f1"] >= 0.8
    kinds = {"f1_answerable": 0, "exact_answerable": 0, "f1_no_answer": 1}
    assert result["baselines"] == {"no_answer": {"f1": 0.5, "exact": 0.5} | kinds}
    f1, low, high = result["over_no_answer"].values()
    assert f1 == pytest.approx(result["scores"]["f1"] - 0.5)
    assert low < f1 < high < low + 0.8
    assert f"above it   {f1:+.4f} f1, {low:+.4f} to {high:+.4f}" in out
    config = json.loads(Path("out/config.json").read_text())
    assert config["no_answer_threshold"] == result["no_answer_threshold"]
    said = json.loads(Path("out/predictions.json").read_text())
    assert [*said] == [f"q{i}" for i in range(200, 224)]
    flags = ("--model", "out", "--input", "test.json", "--output", "said.json", "--json", "counts.json")
    status, _, err = go("predict", *flags)
    silent = sum(not text for text in said.values())
    tokenizer, places = minilm.AutoTokenizer.from_pretrained("out"), json.loads(Path("test.json").read_text())["data"]
    asked = [(q["question"], p["context"]) for a in places for p in a["paragraphs"] for q in p["qas"]]
    windowed = sum(len(tokenizer(*each).input_ids) > 16 for each in asked)
    assert 0 < windowed < 24
    counts = {"rows": 24, "cut": windowed, "length": 16, "no_answer": silent}  # tokens of a window, as in training
    assert json.loads(Path("counts.json").read_text()) == counts
    assert (status, json.loads(Path("said.json").read_text())) == (0, said), err
    assert f"questions without an answer: {silent}" in err
    assert "predictions of 24 rows -> said.json" in err

    table = [json.loads(line) for line in rows_of("test.json")]
    Path("new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    with open("new.csv", "w", newline="") as file:
        csv.writer(file).writerows([("q", "text"), *((row["question"], row["context"]) for row in table), ("a", "")])
    status, _, err = go("predict", "--model", "out", "--input", "new.jsonl", "--output", "said.jsonl")
    assert status == 0, err
    lines = [json.loads(line) for line in Path("said.jsonl").read_text().splitlines()]
    assert {line["id"]: line["prediction"] for line in lines} == said
    assert all((line["margin"] > config["no_answer_threshold"]) == (line["prediction"] == "") for line in lines)
    columns = ("--text-column", "q", "--pair-column", "2")
    status, _, err = go("predict", "--model", "out", "--input", "new.csv", "--output", "csv.json", *columns)
    assert status == 0, err
    assert [*json.loads(Path("csv.json").read_text()).values()] == [*said.values()]
    assert "no prediction for new.csv:26: no context" in err
    Path("out/MANIFEST.json").unlink()
    for threshold, silent in ((-1e9, 24), (1e9, 0), (None, 0)):
        Path("out/config.json").write_text(json.dumps(config | {"no_answer_threshold": threshold}))
        status, _, err = go("predict", "--model", "out", "--input", "test.json", "--output", "said.json")
        assert status == 0, err
        assert sum(not text for text in json.loads(Path("said.json").read_text()).values()) == silent


def rows_of(file):
    """The questions of a SQuAD file, a JSON object each."""
    for paragraph in json.loads(Path(file).read_text())["data"][0]["paragraphs"]:
        for row in paragraph["qas"]:
            yield json.dumps({"id": row["id"], "question": row["question"], "context": paragraph["context"]})


def test_questions_without_dev(go):
    """A context is on one side; where all questions are answerable, all are answered."""
    squad("train.json", 80, impossible=False)
    status, _, err = go("finetune", *SPAN[:4], "--steps", "2", "--train", "train.json")
    assert status == 0, err
    assert "examples: 72 train, 8 dev" in err
    assert "are also in the training examples" not in err
    said = json.loads(Path("out/predictions.json").read_text())
    assert all(said.values())
    numbers = sorted(int(id[1:]) for id in said)
    assert [*zip(numbers[::2], numbers[1::2], strict=True)] == [(i, i + 1) for i in numbers[::2]]
    assert json.loads(Path("out/config.json").read_text())["no_answer_threshold"] is None
    assert json.loads(Path("out/results.json").read_text(), parse_constant=pytest.fail)["scores"].keys() == {
        *("f1", "exact", "f1_answerable", "exact_answerable")
    }


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--train", "none.json"), "none.json: no such file"),
        (("--train", "train.csv"), "train.csv: which column is the question? It has 'review', 'verdict'; name it"),
        (("--train", "unknown.json"), "no question to use (unknown.json: data[0].paragraphs[0].qas[0]: no answers)"),
        (("--train", "silent.json"), "no training question has an answer, this one included"),
        (("--train", "list.json"), "list.json: no list 'data'; is this the layout of SQuAD?"),
        (("--train", "cut.json"), "cut.json: not JSON"),
        (
            ("--train", "one.json"),
            "classes or groups too small; give more rows, or, where these are not folds, dev examples",
        ),
        (("--train", "good.json", "--text-column", "q"), "--text-column, --pair-column: a .json of questions has no"),
        (("--train", "train.csv", "--label-column", "2"), "--label-column 2: a .json of questions has no columns"),
        (("--train", "good.json", "--length", "4"), "--length 4: no room for a question and its context"),
        (("--train", "good.json", "--label-smoothing", "0.1"), "--label-smoothing: only for --task classif"),
        (("--train", "good.json", "--test", "train.csv"), "which column is the question?"),
    ],
)
def test_questions_that_cannot_be_are_one_line(go, argv, said, tmp_path):
    squad("good.json", 40)
    squad("one.json", 2)
    good = Path("good.json").read_text()
    Path("cut.json").write_text(good[:-20])
    Path("list.json").write_text("[1]")
    paragraphs = [{"context": "a film", "qas": [{"id": "1", "question": "a"}]}]
    Path("unknown.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    paragraphs[0]["qas"][0]["answers"] = []
    Path("silent.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    before = sorted(path.name for path in tmp_path.iterdir())
    dev = () if "one.json" in argv else ("--dev", "good.json")
    status, out, err = go("finetune", "--task", "span", "--out", "out", *argv, *dev)
    assert (status, out) == (2, "")
    assert said in err.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--input", "good.json", "--output", "said.csv"), "--output said.csv: give one of .json, .jsonl for the task"),
        (("--input", "new.csv", "--output", "said.json"), "new.csv: which column is the question?"),
        (("--input", "none.json", "--output", "said.json"), "none.json: no such file"),
        (("--input", "list.json", "--output", "said.json"), "no list 'data'; is this the layout of SQuAD?"),
    ],
)
def test_answers_that_cannot_be(go, encoder_directory, argv, said):
    squad("good.json", 4)
    Path("list.json").write_text("[1]")
    minilm.BertForQuestionAnswering.from_pretrained(encoder_directory).save_pretrained("span")
    minilm.BertTokenizer.from_pretrained(encoder_directory).save_pretrained("span")
    status, out, err = go("predict", "--model", "span", *argv)
    assert (status, out) == (2, "")
    assert said in err.splitlines()[-1]
    assert not Path(argv[-1]).exists()
    assert go("predict", "--model", "span", "--input", "good.json", "--output", "said.json")[0] == 0  # by anyone


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--train", "none.csv"), "none.csv"),
        (("--task", "tagging"), "give examples of it with --train"),
        (("--train", "train.csv", "--task", "tagging"), "train.csv:1: a word and no tag (1 columns)"),
        (("--train", "bad.conll", "--task", "tagging"), "bad.conll:2: the tag 'x' is none of O, B-name"),
        (("--train", "o.conll", "--task", "tagging"), "no training sentence has a tag but O, this one included"),
        (("--train", "o.conll", "--task", "tagging", "--label-column", "x"), "--label-column x: for tagging"),
        (("--dev", "train.csv"), "--dev train.csv: goes with --train"),
        (("--task", "regression"), "give examples of it with --train"),
        (("--train", "train.csv", "--text-column", "reviw"), "did you mean review?"),
        (("--train", "train.csv", "--label-column", "9"), "no column '9'"),
        (
            ("--train", "train.csv", "--label-column", "2", "--task", "regression"),
            "train.csv:2: the label 'good' is no finite number",
        ),
        (("--train", "one.csv"), "every training row has the label 'a', as this one"),
        (
            ("--train", "train.csv", "--dev", "other.csv", "--label-column", "2"),
            "the labels here are 'c', 'd', in training 'bad', 'good'",
        ),
        (("--train", "train.csv", "--epochs", "2", "--steps", "9"), "--epochs and --steps: exclude each other"),
        (("--train", "train.csv", "--length", "25"), "--length 25: the model reads 24 tokens"),
        (("--train", "train.csv", "--frozen-layers", "3"), "--frozen-layers 3: the model has 2 layers"),
        (
            ("--train", "train.csv", "--task", "multilabel", "--class-weights", "balanced"),
            "--class-weights: only for --task classif",
        ),
        (
            ("--train", "train.csv", "--positive-label", "c"),
            "--positive-label c: the labels are bad and good; give one",
        ),
        (
            ("--train", "train.csv", "--task", "multilabel", "--positive-label", "good"),
            "--positive-label: only for --task classification; leave it out",
        ),
        (("--train", "train.csv", "--kfold", "3", "--dev", "train.csv"), "--kfold: splits --train itself"),
        (("--kfold", "3"), "--kfold: splits --train itself; give that"),
        (("--train", "one.csv", "--kfold", "3"), "every training row has the label 'a', as this one"),
        (("--train", "pairs.csv", "--dev", "train.csv"), "training used two texts a row, but here one would be read"),
        (("--train", "train.csv", "--task", "similarity", "--label-column", "1"), "is no finite number"),
        (("--train", "numbers.csv", "--task", "similarity"), "similarity needs two texts; name the second's"),
        (("--train", "train.csv", "--check", "--json", "x.json"), "--json: --check has no result"),
        (("--train", "train.csv", "--check", "--kfold", "3"), "--kfold: --check looks at whole files"),
        (("--train", "train.csv", "--check", "--overfit-batch"), "--overfit-batch: --check looks at whole files"),
        (("--train", "train.csv", "--kfold", "99"), "rows of different texts are too few for 99 folds"),
        (
            ("--train", "train.csv", "--dev", "train.csv", "--group-column", "review"),
            "--group-column review: is for splitting --train",
        ),
        (("--train", "train.csv", "--lr", "nan"), "--lr nan: not a finite number"),
        (("--train", "groups.csv", "--group-column", "who"), "groups.csv:3: no group in column 'who'; give it one"),
        (
            ("--train", "o.conll", "--task", "tagging", "--group-column", "who"),
            "--group-column who: o.conll has no columns",
        ),
        (("--train", "train.csv", "--lora-rank", "2", "--frozen-layers", "1"), "--lora-rank: freezes the whole encod"),
        (("--train", "train.csv", "--overfit-batch", "--seeds", "2"), "--seeds: does not go with --overfit-batch"),
        (("--train", "train.csv", "--overfit-batch", "--class-weights", "balanced"), "--class-weights: does not go"),
        (("--train", "train.csv", "--overfit-batch", "--epochs", "2"), "--epochs: does not go with --overfit-batch"),
        (
            ("--train", "train.csv", "--overfit-batch", "--patience", "9"),
            "--patience: does not go with --overfit-batch",
        ),
        (
            ("--train", "alike.csv", "--task", "similarity", "--frozen-layers", "2"),
            "--frozen-layers 2: leaves nothing to train; freeze fewer",
        ),
        (
            ("--train", "flags.csv", "--dev", "fewer.csv", "--task", "multilabel"),
            "fewer.csv: no column 'rude', which is a label; it has 'text', 'loud'",
        ),
        (
            ("--train", "flags.csv", "--dev", "strange.csv", "--task", "multilabel"),
            "strange.csv:2: column 'rude' holds '2'; write 0 or 1",
        ),
    ],
)
def test_what_cannot_be_is_one_line(go, argv, said, tmp_path):
    Path("bad.conll").write_text("a O\nb x\n")
    Path("o.conll").write_text("a O\n\n" * 9)
    Path("one.csv").write_text("text,label\n" + "".join(f"a{i},a\n" for i in range(9)))
    Path("other.csv").write_text("review,verdict\nfine,c\npoor,d\n")
    Path("pairs.csv").write_text("sentence1,sentence2,verdict\n" + "fine,poor,bad\nfine,fine,good\n" * 5)
    Path("numbers.csv").write_text("text,score\n" + "fine,1\npoor,2\n" * 5)
    Path("alike.csv").write_text("sentence1,sentence2,score\n" + "fine,poor,1\nfine,fine,5\n" * 9)
    Path("flags.csv").write_text("text,loud,rude\n" + "fine,1,0\npoor,0,1\ndull,1,1\n" * 5)
    Path("fewer.csv").write_text("text,loud\nfine,1\npoor,0\n")
    Path("strange.csv").write_text("text,loud,rude\nfine,1,2\npoor,0,1\n")
    Path("groups.csv").write_text("text,label,who\nfine,a,x\npoor,b,\n" + "dull,b,y\n" * 9)
    before = sorted(path.name for path in tmp_path.iterdir())
    status, out, err = go("finetune", "--out", "out", *argv)
    assert (status, out) == (2, "")
    assert said in err.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--model", "encoder", "--input", "new.csv", "--output", "said.csv"), "encoder: is BertModel, which predicts"),
        (("--model", "encoder", "--input", "new.csv", "--output", "new.csv"), "new.csv: is the file of --input"),
        (("--model", "encoder", "--input", "new.csv", "--output", "said.txt"), "give a .csv, .tsv or .jsonl"),
        (("--model", "encoder", "--input", "none.csv", "--output", "said.csv"), "none.csv"),
    ],
)
def test_predictions_that_cannot_be(go, encoder_directory, argv, said, tmp_path):
    Path("encoder").symlink_to(encoder_directory)
    status, out, err = go("predict", *argv)
    assert (status, out) == (2, "")
    assert said in err.splitlines()[-1]
    assert not Path("said.csv").exists()


# -- what was found by attacking it -------------------------------------------------------------------


def test_a_damaged_result_is_made_again(go, monkeypatch):
    """Where the best model is that of the first of many checkpoints, too."""
    worth = iter([0.5, 0.9, *[0.4] * 100])
    monkeypatch.setattr("minilm.tasks.classification.Classification.score", lambda *_: {"accuracy": next(worth)})
    flags = (*FLAGS[:4], "--steps", "12", "--evaluate-every", "2", "--patience", "100")
    status, _, err = go("finetune", *flags)
    assert status == 0, err
    assert "the best model, that of step" in err
    whole = Path("out/model.safetensors").read_bytes()
    Path("out/model.safetensors").write_bytes(whole[:1000])
    status, _, err = go("finetune", *flags)
    assert (status, "the model is written again" in err) == (0, True), err
    assert Path("out/model.safetensors").read_bytes() == whole


def test_every_task_begins_from_scratch(go, capsys):
    """The vocabulary is made of all that its examples have to read."""
    squad("train.json", 24)
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8").split()
    Path("a.conll").write_text("\n\n".join(f"film O\n{word} B-x" for word in readme[:800]) + "\n")
    lines = [f"the film,{readme[i].replace(',', '')} a,a plot,{i % 2}".replace('"', "") for i in range(800)]
    Path("choices.csv").write_text("\n".join(["question,choice1,choice2,label", *lines]) + "\n")
    for task, file in (("span", "train.json"), ("tagging", "a.conll"), ("choice", "choices.csv")):
        argv = ["--task", task, "--train", file, "--out", task, "--steps", "2", "--device", "cpu", "--length", "64"]
        with pytest.raises(SystemExit) as stop:
            cli.run(go.script.main, go.script.Args, argv)
        assert stop.value.code == 0, capsys.readouterr().err
        words = json.loads(Path(task, "tokenizer.json").read_text())["model"]["vocab"]
        assert "film" in words


def test_columns_of_training_that_are_not_there_are_said(go):
    assert go("finetune", *FLAGS[:4], "--steps", "1")[0] == 0
    Path("other.csv").write_text("comment,id\nthe film was great,1\ndull,2\n")
    status, _, err = go("predict", "--model", "out", "--input", "other.csv", "--output", "said.csv")
    assert status == 0, err
    assert "columns of the training data are missing: 'review'" in err
    assert "text is column 'comment'" in err


def test_several_runs_take_no_other_directory(go):
    Path("mine").mkdir()
    Path("mine/results.json").write_text("{}")
    for seeds in (("--seeds", "2"), ("--kfold", "2")):
        status, _, err = go("finetune", "--train", "train.csv", "--out", "mine", "--steps", "2", *seeds)
        assert (status, "--out mine: holds results.json and not several " in err) == (2, True), err
    assert [path.name for path in Path("mine").iterdir()] == ["results.json"]
    assert go("finetune", "--train", "train.csv", "--out", "one", "--steps", "2")[0] == 0
    status, _, err = go("finetune", "--train", "train.csv", "--out", "one", "--steps", "2", "--seeds", "2")
    assert (status, "and not several " in err) == (2, True), err
    assert go("finetune", "--train", "train.csv", "--out", "two", "--steps", "2", "--seeds", "2")[0] == 0
    before = Path("two/results.json").read_bytes()
    status, _, err = go("finetune", "--train", "train.csv", "--out", "two", "--steps", "2", "--kfold", "2")
    assert (status, "--out two: holds seed-0 and not several folds; choose an empty" in err) == (2, True), err
    Path("two/.results.json.0123abcd.tmp").touch()  # of a process that was killed while it wrote
    status, _, err = go("finetune", "--train", "train.csv", "--out", "two", "--steps", "2", "--seeds", "2")
    assert status == 0, err
    assert Path("two/results.json").read_bytes() == before


def test_outputs_that_are_no_numbers_predict_nothing(go):
    assert go("finetune", "--train", "train.csv", "--out", "out", "--steps", "2")[0] == 0
    model = minilm.BertForSequenceClassification.from_pretrained("out")
    with torch.no_grad():
        for own in model.parameters():
            own.mul_(1e30)  # which are finite yet
    model.save_pretrained("huge")
    minilm.BertTokenizer.from_pretrained("out").save_pretrained("huge")
    status, _, err = go("predict", "--model", "huge", "--input", "new.csv", "--output", "said.csv")
    assert (status, "new.csv: the model's outputs here are not finite; in half precision, try fp32" in err) == (
        2,
        True,
    ), err
    assert not Path("said.csv").exists()


def test_results_write_over_no_input(go):
    for command, *flags in (
        ("finetune", "--train", "train.csv", "--json", "train.csv"),
        ("finetune", "--train", "train.csv", "--dev", "new.csv", "--json", "./new.csv"),
        ("predict", "--model", "out", "--input", "new.csv", "--output", "said.csv", "--json", "new.csv"),
        ("predict", "--model", "out", "--input", "new.csv", "--output", "said.csv", "--json", "said.csv"),
    ):
        status, _, err = go(command, *flags)
        assert (status, "is the file of --" in err) == (2, True), err


def test_baselines_and_tables_are_of_the_same_rows_as_the_scores(go, pictures):
    """A label that training does not have counts as wrong everywhere; and one that looks like a formula is a name."""
    kinds = ("$\\frac$", "$^$")
    train = [(f"the film {i}", kinds[i % 2]) for i in range(40)]
    test = [(f"a plot {i}", (*kinds, "new", "new")[i % 4]) for i in range(40)]
    for name, rows in (("a.csv", train), ("b.csv", test)):
        with open(name, "w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
    status, _, err = go("finetune", "--train", "a.csv", "--test", "b.csv", "--out", "out", "--steps", "2")
    assert status == 0, err
    result = json.loads(Path("out/results.json").read_text())
    assert result["baselines"]["majority"]["accuracy"] == 0.25
    assert [(row["name"], row["support"]) for row in result["labels"]] == [*((k, 10) for k in kinds), ("(unseen)", 20)]
    assert sum(map(sum, result["confusion"])) == 40
    assert result["confusion"][2][2] == 0
    assert Path("out/confusion.png").exists()


def test_what_is_written_is_read_again(go):
    """Ends of lines of all kinds, half characters, numbers that json has not, and numbers to the last digit."""
    rows = [{"text": f"{PLAIN[i % 6]} film", "label": 1e6 + i / 3} for i in range(30)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ("--task", "regression", "--train", "rows.jsonl", "--dev", "rows.jsonl", "--out", "out", "--steps", "2")
    status, _, err = go("finetune", *flags)
    assert status == 0, err
    result = json.loads(Path("out/results.json").read_text())
    with open("out/predictions.csv", newline="") as file:
        said = [(float(row["label"]), float(row["prediction"])) for row in csv.DictReader(file)]
    assert sum((a - b) ** 2 for a, b in said) / 30 == pytest.approx(result["scores"]["rmse"] ** 2, rel=1e-4)
    Path("new.jsonl").write_text('{"text": "a\\rfilm", "note": "x\\ry"}\n{"text": "b", "note": "\\ud800"}\n')
    for name in ("said.csv", "said.jsonl"):
        status, _, err = go("predict", "--model", "out", "--input", "new.jsonl", "--output", name)
        assert status == 0, err
        assert "text is column 'text'" in err
    with open("said.csv", newline="") as file:
        assert [row["text"] for row in csv.DictReader(file)] == ["a\rfilm", "b"]
    assert [json.loads(line)["text"] for line in Path("said.jsonl").read_text().splitlines()] == ["a\rfilm", "b"]
    Path("big.csv").write_text("text,label\n" + "a,1e300\n" * 30)
    status, _, err = go("finetune", "--task", "regression", "--train", "big.csv", "--out", "big")
    assert (status, "big.csv:2: the label '1e300' is too large" in err) == (2, True), err


def test_check_counts_each_row_once(go):
    lines = [f"a film {i},{'' if i % 10 == 3 else 'xy'[i % 2]}" for i in range(40)]
    Path("rows.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    status, out, err = go("finetune", "--train", "rows.csv", "--check")
    assert status == 0, err
    used = [line.split() for line in out.splitlines() if "rows used" in line]
    assert [(line[0], line[1], line[4]) for line in used] == [("train", "32", "4"), ("dev", "4", "0")]

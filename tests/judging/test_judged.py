"""What a model says of labelled examples, and the same read from the file that it wrote."""

import datetime
import json
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from minilm.errors import ConfigError, DataError, UserError
from minilm.files import jsonl_text, write_whole
from minilm.judging.judged import Labelled, cost_of, judged_model
from minilm.judging.prediction_files import Columns, judged_file
from minilm.labelled.examples import Example, Tagged
from minilm.labelled.spans import with_column
from minilm.partial import partial_of
from minilm.tasks.named import read_examples, read_source
from minilm.tasks.predictions import cell_text, table_text, tags_text
from minilm.tasks.task import Task


@pytest.mark.parametrize("name", ["classification", "similarity", "choice", "tagging", "span"])
def test_what_a_model_says_is_kept_batch_by_batch(tuned, tmp_path, monkeypatch, name):
    """However often it is stopped, the outputs are the same, and no batch is computed twice."""
    monkeypatch.setattr("minilm.tasks.task.EVALUATED_AT_ONCE", 16)
    model, data, _ = tuned(name)
    whole = model.predictions(data.examples)
    features, computed = model.features(data.examples), []
    outputs = type(model.task).outputs

    def stops(task, encoder, batch):
        if len(computed) % 3 == 2 and computed[-1] is not None:
            computed.append(None)
            raise KeyboardInterrupt
        computed.append(batch.size)
        return outputs(task, encoder, batch)

    monkeypatch.setattr(type(model.task), "outputs", stops)
    for _ in range(100):
        with suppress(KeyboardInterrupt), partial_of(tmp_path / "out", model.decides(features)) as kept:
            again = model.predictions(data.examples, features, kept)
            break
    assert computed.count(None) > 2
    assert np.array_equal(again.outputs, whole.outputs)
    assert sum(filter(None, computed)) == len(features.ids)
    assert [path.name for path in tmp_path.glob("out*")] == []
    other = model.decides(model.features(data.examples[1:]))
    assert other != model.decides(features)
    with torch.no_grad():
        next(model.model.parameters()).mul_(2)
    assert model.decides(features)["model"] != other["model"]


@pytest.mark.parametrize(
    "name", ["classification", "multilabel", "regression", "similarity", "choice", "tagging", "span"]
)
def test_the_file_that_predict_writes_says_what_the_model_says(tuned, tmp_path, monkeypatch, name):
    monkeypatch.setattr("minilm.judging.judged.AT_ONCE", 7)
    model, data, file = tuned(name)
    own = judged_model("model", model, data.examples)
    whole = model.predictions(data.examples)
    assert list(own.decoded) == model.task.decode(whole) or name in ("regression", "similarity")
    assert np.allclose(own.records, model.task.records(whole), rtol=1e-5)
    source = read_source(file, name)
    for ending in model.task.endings:
        out = tmp_path / f"out{ending}"
        write_whole(out, model.task.file_text(ending, source, whole)[0])
        with_gold = judged_file(out, name, data, source)[0]
        alone = with_gold if name == "span" else None
        if name != "span" and not (name == "tagging" and ending == ".jsonl"):
            alone, again, _ = judged_file(out, name)
            assert [each._replace(where="") for each in again.examples] == [
                each._replace(where="") for each in data.examples
            ]
        for found in filter(None, (with_gold, alone)):
            assert len(found) == len(data.examples)
            assert np.allclose(found.records, own.records, rtol=1e-4)  # numbers are written with nine digits
            if own.probabilities is not None:
                assert found.task.labels == model.task.labels
                assert np.allclose(found.probabilities, own.probabilities, atol=2e-6)


@pytest.mark.parametrize(
    "name", ["classification", "multilabel", "regression", "similarity", "choice", "tagging", "span"]
)
def test_who_has_read_nothing_scores_less_than_the_gold(tuned, name):
    model, data, _ = tuned(name)
    task: Task = model.task
    gold = [each.tags if name == "tagging" else getattr(each, "label", None) for each in data.examples]
    if name == "span":
        gold = [each.answers[0][1] if each.answers else "" for each in data.examples]
    ones = np.ones((1, len(gold)))
    best = task.weighted(task.records_of(data.examples, gold), ones)
    blind = task.weighted(task.records_of(data.examples, task.constant(data.examples)), ones)
    first = next(iter(best))
    assert best[first][0] == pytest.approx(1)
    assert not blind[first][0] >= 0.9  # of numbers not defined: their mean says nothing of their order


def test_what_a_model_counts_of_each_example(tuned):
    model, data, _ = tuned("classification")
    found = judged_model("model", model, [data.examples[0]._replace(text="the zebra was fine"), *data.examples])
    assert (found.tokens[0], found.unknown[0]) == (6, 1)
    assert found.tokens[1:].tolist() == [min(24, len(each.text.split()) + 2) for each in data.examples]
    assert found.cut == sum(len(each.text.split()) + 2 > 24 for each in data.examples)


@pytest.mark.parametrize("name", ["classification", "similarity", "tagging"])
def test_the_cost_counts_what_is_computed(tuned, name):
    """Of one text of a row's length, by torch's counter; but for the head, which it leaves out."""
    model, _, _ = tuned(name, 6)
    model.model.base_model.encoder.backend = "explicit"  # torch counts no other on a CPU
    words = "the film was great and fine"  # 8 tokens: a row without padding
    example = {
        "classification": Example(words, label="a"),
        "similarity": Example(words, words, label=1.0),
        "tagging": Tagged(tuple(words.split()), ("O",) * 6),
    }[name]
    with FlopCounterMode(display=False) as counter:
        judged = judged_model("model", model, [example])
    D, C = 32, len(getattr(model.task, "labels", ()))
    head = {"classification": 2 * D * D + 2 * D * C, "similarity": 0, "tagging": 2 * 8 * D * C}[name]
    assert cost_of(judged, model)["flops"] == counter.get_total_flops() - head


def test_a_label_that_the_model_does_not_know_is_named(tuned):
    model, data, file = tuned("classification")
    strange = data.examples[4]._replace(label="d")
    with pytest.raises(DataError, match=rf"{file}:6: the label 'd' is none of the model's, which are a, b, c; rename"):
        judged_model("model", model, [*data.examples[:4], strange])


def test_outputs_that_are_not_finite_are_refused(tuned):
    model, data, _ = tuned("regression")
    with torch.no_grad():
        model.model.classifier.bias.fill_(torch.nan)
    with pytest.raises(DataError, match=r"gold\.csv:2: the model's outputs here are not finite"):
        judged_model("model", model, data.examples)


def test_a_prediction_of_what_is_not_finite_is_refused(tuned):
    model, _, _ = tuned("classification")
    assert len(model.predict(["a film", "the film"])) == 2
    with torch.no_grad():
        model.model.classifier.bias.fill_(torch.nan)
    with pytest.raises(DataError, match="predict: the model's outputs here are not finite"):
        model.predict(["a film", "the film"])


def test_a_space_without_a_break_is_part_of_a_word(tmp_path):
    """In a file with spaces between columns, whose gold tags are the second one; and as it is written."""
    (tmp_path / "p.conll").write_text("10\u00a0000 B-NUM O\nmen O B-PER\n\nhe O O\n")
    found, data, _ = judged_file(tmp_path / "p.conll", "tagging")
    assert [[*each.tags] for each in data.examples] == [["B-NUM", "O"], ["O"]]
    assert found.decoded == [["O", "B-PER"], ["O"]]
    lines = [*with_column(tmp_path / "p.conll", ["X"] * 3, tabs=True)]
    assert lines[0] == "10\u00a0000\tB-NUM\tO\tX"
    written = tags_text(".conll", None, data.examples, found.decoded)
    assert written.startswith("10\u00a0000\tB-NUM\tO\n")


def test_blank_lines_on_both_sides_do_not_shift_rows(tuned, tmp_path):
    """Of predictions alone, each beside a row of the examples; a blank line at their end alone is none."""
    _, data, file = tuned("classification")
    labels = [each.label for each in data.examples]

    def judged(lines, source):
        (tmp_path / "p.csv").write_text("\n".join(["prediction", *lines]) + "\n")
        gold = read_examples(read_source(source, "classification"), "classification")
        return judged_file(tmp_path / "p.csv", "classification", gold, read_source(source, "classification"))[0]

    assert judged(labels, file).decoded == judged([*labels, ""], file).decoded == labels
    lines = file.read_text().split("\n")
    (tmp_path / "gap.csv").write_text("\n".join([*lines[:3], ",", *lines[3:]]))
    assert judged(labels, tmp_path / "gap.csv").decoded == labels
    with pytest.raises(DataError, match=r"blank rows: 1, and .*gap\.csv has some; add a column of the texts"):
        judged([*labels[:9], "", *labels[9:]], tmp_path / "gap.csv")


def test_labels_of_a_test_are_apart_though_training_had_lists(tmp_path):
    """Unless a label of training has such a mark itself."""
    (tmp_path / "test.csv").write_text('text,labels\na film,x|y\nthe film,x\nfilms,"x|y"\n')
    for more, wanted in (([], ("x", "y")), (["x|y"], ("x|y",))):
        rows = [{"text": "a", "labels": each} for each in (["x"], ["x", "y"], more)]
        (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        train = read_examples(read_source(tmp_path / "train.jsonl", "multilabel"), "multilabel")
        test = read_examples(read_source(tmp_path / "test.csv", "multilabel"), "multilabel", like=train)
        assert [each.label for each in test.examples] == [wanted, ("x",), wanted]


HEAD = "text,label,prediction"
WRONG = [
    ("classification", "p.csv", "text,label\nthe,a\nthe,b\n", "no column of predictions (it has 'text', 'label')"),
    ("classification", "p.csv", f"{HEAD}\nthe,a,a\nfine,b,\n", "p.csv:3: no prediction; give each row one"),
    ("classification", "p.csv", f"{HEAD},p(a),p(b)\nthe,a,a,0.5,0.4\n", "p.csv:2: the probabilities sum to 0.9, not 1"),
    ("classification", "p.csv", f"{HEAD},p(a),p(b)\nthe,a,a,nan,0.4\n", "p.csv:2: a probability is no number from 0"),
    ("classification", "p.csv", f"{HEAD},p(a),p(b)\nthe,a,a,,0.4\n", "p.csv:2: a probability is no number from 0"),
    ("classification", "p.csv", f"{HEAD},p(a),p(b)\nthe,a,a,1.5,-0.5\n", "p.csv:2: a probability is no number from 0"),
    ("classification", "p.csv", f"{HEAD},p(a),p(b)\nthe,c,a,1,0\nthe,a,a,1,0\n", "no column p(c) for the label 'c'"),
    ("regression", "p.csv", f"{HEAD}\nthe,1,good\n", "p.csv:2: the prediction 'good' is no finite number"),
    ("regression", "p.csv", f"{HEAD}\nthe,1,nan\n", "p.csv:2: the prediction 'nan' is no finite number"),
    ("choice", "p.csv", "text,ending0,ending1,label,prediction\na,b,c,1,x\n", "'x' is no number of a choice, from 0"),
    ("regression", "p.csv", f"{HEAD}\nthe,1,1\nfine,1,1e200\n", "p.csv:3: the prediction '1e200' is too large"),
    ("choice", "p.csv", f"text,ending0,ending1,label,prediction\na,b,c,1,{'9' * 400}\n", "is no number of a choice"),
    ("tagging", "p.conll", "the O\nfilm O\n", "p.conll: 2 columns; give a word, its tag and the predicted one"),
    (
        "tagging",
        "p.jsonl",
        '{"words": ["a"], "tags": ["O"]}',
        "p.jsonl: no column of predictions (it has 'words', 'tags')",
    ),
    ("tagging", "p.jsonl", '{"words": ["a"], "tags": ["O"], "pred": "O"}', "p.jsonl:1: 'pred' is no list of tags"),
    ("tagging", "p.jsonl", '{"words": ["a"], "tags": ["O"], "pred": ""}', "p.jsonl:1: 1 words and 0 tags; give each"),
    ("span", "p.json", '{"q0": "a"}', "answers without the questions; give their labelled file with --data"),
    ("classification", "p.csv", "", "p.csv: holds no row"),
]


@pytest.mark.parametrize(("name", "file", "content", "said"), WRONG, ids=range(len(WRONG)))
def test_what_is_no_file_of_predictions_is_named(tmp_path, name, file, content, said):
    (tmp_path / file).write_text(content)
    with pytest.raises(UserError) as caught:
        judged_file(tmp_path / file, name)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "out", "change", "said"),
    [
        (
            "classification",
            "out.csv",
            lambda text: text[: text.rindex("\n", 0, -1) + 1],
            "29 rows for 30 labelled ones",
        ),
        (
            "tagging",
            "out.conll",
            lambda text: text[: text[:-2].rindex("\n\n") + 1],
            "29 sentences for 30 labelled ones",
        ),
        ("tagging", "out.conll", lambda text: "zebra " + text.split(" ", 1)[1], "not the words of"),
        ("span", "out.json", lambda text: text.replace('"q3"', '"r3"'), "no answer to 'q3'"),
        (
            "span",
            "out.json",
            lambda text: text.replace("{", '{"z": "",', 1),
            "1 answers to other questions, the first 'z'",
        ),
    ],
    ids=range(5),
)
def test_predictions_of_other_examples_are_refused(tuned, tmp_path, name, out, change, said):
    model, data, file = tuned(name)
    text = model.task.file_text(Path(out).suffix, read_source(file, name), model.predictions(data.examples))[0]
    write_whole(tmp_path / out, text)
    Path(tmp_path / out).write_text(change(Path(tmp_path / out).read_text()))
    with pytest.raises(DataError) as caught:
        judged_file(tmp_path / out, name, data, read_source(file, name))
    assert said in str(caught.value)


def test_a_column_that_is_named_is_read(tuned, tmp_path):
    """Of every task; where there are no columns, or they have no names, a name is refused."""
    rows = [
        {"words": ["the", "film"], "tags": ["O", "B-x"], "prediction": ["O", "O"], "prediction (model)": ["O", "B-x"]},
        {"words": [], "tags": [], "prediction": "", "prediction (model)": ""},  # as predict writes it
        {"words": ["fine"], "tags": ["B-y"], "prediction": ["B-y"], "prediction (model)": ["O"]},
    ]
    file = _written(tmp_path / "out.jsonl", jsonl_text(rows))
    for given, said in ((None, [["O", "B-x"], ["O"]]), ("prediction", [["O", "O"], ["B-y"]])):
        assert judged_file(file, "tagging", named=Columns(prediction=given))[0].decoded == said
    file = _written(tmp_path / "out.conll", "the O O B-x\nfine B-y O B-x\n")
    for given, label, gold, said in (
        (None, None, ("O", "O"), ["B-x", "B-x"]),
        ("3", None, ("O", "B-y"), ["O", "O"]),
        ("4", "2", ("O", "B-y"), ["B-x", "B-x"]),
    ):
        found, data, _ = judged_file(file, "tagging", named=Columns(label=label, prediction=given))
        assert (data.examples[0].tags, found.decoded) == (gold, [said])
    with pytest.raises(ConfigError, match="--prediction-column mine: give a column's number in a file of one word a"):
        judged_file(file, "tagging", named=Columns(prediction="mine"))
    with pytest.raises(ConfigError, match="--prediction-column 2: no tags are before it; name them, --label-column"):
        judged_file(file, "tagging", named=Columns(prediction="2"))
    _, data, file = tuned("span", 2)
    out = _written(tmp_path / "out.csv", "id,prediction,mine\nq0,a,b\nq1,c,d\n")
    assert judged_file(out, "span", data, file, Columns(prediction="mine"))[0].decoded == ["b", "d"]
    out = _written(tmp_path / "out.json", '{"q0": "a", "q1": ""}')
    with pytest.raises(ConfigError, match=r"--prediction-column mine: a \.json of answers by id has no columns"):
        judged_file(out, "span", data, file, Columns(prediction="mine"))


def test_a_question_has_one_answer(tuned, tmp_path):
    _, data, file = tuned("span", 2)
    out = _written(tmp_path / "out.csv", "id,prediction\nq0,a\nq1,b\nq0,c\n")
    with pytest.raises(DataError, match=r"out\.csv:4: id 'q0' appears twice; give each question one answer"):
        judged_file(out, "span", data, file)


def test_what_several_systems_say_is_kept_apart(tmp_path):
    """A table that is predicted again, and again: the latest is read, its probabilities with it."""
    source = read_source(_written(tmp_path / "gold.csv", "text,label\nthe,a\nfine,b\n"), "classification")
    for number, said in enumerate(("a", "b", "a"), start=1):
        more = {"prediction": [said, said], "p(a)": [0.9, 0.8], "p(b)": [0.1, 0.2]}
        if number == 2:
            more |= {"p(a)": [0.4, 0.3], "p(b)": [0.6, 0.7]}
        file = _written(tmp_path / f"{number}.csv", table_text(".csv", source, [0, 1], more))
        source = read_source(file, "classification")
        found, data, _ = judged_file(file, "classification")
        assert found.task.labels == ("a", "b")
        assert found.decoded == [said, said]
        assert found.probabilities.tolist() == [list(row) for row in zip(more["p(a)"], more["p(b)"], strict=True)]
        assert [each.text for each in data.examples] == ["the", "fine"]


def test_a_table_of_other_values_than_texts_is_scored(tmp_path):
    """Lists, true and false, and 1.0, which jsonl has, in the csv that is written of them."""
    rows = [{"text": "the", "label": value} for value in (True, False)]
    lists = [{"text": "the", "label": ["a", "b"]}, {"text": "fine", "label": ["b"]}, {"text": "a", "label": []}]
    numbers = [{"text": "the", "label": 1.0}, {"text": "fine", "label": 2.0}]
    for name, own, said in (
        ("classification", rows, ["true", "false"]),
        ("multilabel", lists, [("a", "b"), ("b",), ()]),
        ("classification", numbers, ["1", "2"]),
    ):
        source = read_source(_written(tmp_path / "gold.jsonl", jsonl_text(own)), name)
        data, more = read_examples(source, name), {"prediction": said}
        file = _written(tmp_path / "out.csv", table_text(".csv", source, [*range(len(own))], more))
        for found in (judged_file(file, name)[0], judged_file(file, name, data, source)[0]):
            assert found.decoded == said == [each.label for each in found.examples]


def test_several_labels_in_another_notation_are_no_label(tmp_path):
    gold = _written(
        tmp_path / "gold.jsonl", jsonl_text([{"text": "x", "label": ["a", "b"]}, {"text": "y", "label": ["a"]}])
    )
    source = read_source(gold, "multilabel")
    file = _written(tmp_path / "out.csv", 'text,prediction\nx,"a,b"\ny,a\n')
    with pytest.raises(DataError, match=r"'a,b' is predicted, which is no label; separate several by \|"):
        judged_file(file, "multilabel", read_examples(source, "multilabel"), source)


def test_a_comma_in_a_label_is_one(tmp_path):
    """Of one label, and of several that stand in a list, also where the label is not met before."""
    file = _written(tmp_path / "out.csv", 'text,label,prediction\nx,Paris,"Washington, D.C."\ny,Rome,Rome\n')
    assert judged_file(file, "classification")[0].task.labels == ("Paris", "Rome", "Washington, D.C.")
    rows = [
        {"text": "x", "label": ["a"], "prediction": ["b", "other, misc"]},
        {"text": "y", "label": ["b"], "prediction": []},
    ]
    file = _written(tmp_path / "out.jsonl", jsonl_text(rows))
    assert judged_file(file, "multilabel")[0].decoded == [("b", "other, misc"), ()]


def test_a_table_of_columns_without_known_names_is_predicted_twice(tmp_path):
    """What both systems say is no column of the examples."""
    head = "title,kind,prediction,p(a),p(b),prediction (model),p(a) (model),p(b) (model)"
    rows = [f"the film {i},{'ab'[i % 2]},a,0.9,0.1,b,0.2,0.8" for i in range(6)]
    found, data, _ = judged_file(_written(tmp_path / "out.csv", "\n".join([head, *rows]) + "\n"), "classification")
    assert data.columns == {"text": "title", "label": "kind"}
    assert found.decoded == ["b"] * 6
    assert found.probabilities[0].tolist() == [0.2, 0.8]


def test_cells_that_nobody_reads_are_copied():
    told = [float("inf"), float("nan"), {"day": datetime.date(2026, 1, 2)}, np.float32(0.5), True, 2.0, None, "x"]
    assert [*map(cell_text, told)][2:] == ['{"day": "2026-01-02"}', "0.5", "true", "2", None, "x"]
    assert [*map(str, map(cell_text, told[:2]))] == ["inf", "nan"]
    odd = [np.str_("x"), np.datetime64("2026-01-02"), np.float32("inf"), 10**400]
    assert [*map(str, map(cell_text, odd))] == ["x", "2026-01-02", "inf", "1" + "0" * 400]


def test_a_day_in_a_row_is_copied():
    row = {"day": datetime.date(2026, 1, 2), "price": Decimal("1.50"), "raw": b"x", "all": [datetime.date(2026, 1, 2)]}
    assert json.loads(jsonl_text([row])) == {"day": "2026-01-02", "price": "1.50", "raw": "b'x'", "all": ["2026-01-02"]}
    assert (
        jsonl_text([{"n": np.int64(3), "p": np.float32(0.5), "is": np.bool_(True)}])
        == '{"n": 3, "p": 0.5, "is": true}\n'
    )
    assert (
        jsonl_text([{"p": np.float32("nan"), "day": np.datetime64("2026-01-02")}])
        == '{"p": null, "day": "2026-01-02"}\n'
    )


def test_a_table_of_questions_keeps_its_rows_and_columns(tuned, tmp_path):
    """Also one that nothing is said of; a question that has no id, or another's, is found again."""
    model, data, _ = tuned("span", 3)
    rows = [
        {"question": each.question, "context": each.context, "answers": [], "note": i}
        for i, each in enumerate(data.examples)
    ]
    rows = [rows[0] | {"id": "a"}, rows[1] | {"id": "a"}, rows[2] | {"question": ""}, rows[2]]
    source = read_source(_written(tmp_path / "rows.jsonl", jsonl_text(rows)), "span")
    data = read_examples(source, "span")
    predictions = model.predictions(data.examples)
    file = _written(tmp_path / "out.jsonl", model.task.file_text(".jsonl", source, predictions)[0])
    said = [json.loads(line) for line in file.read_text().splitlines()]
    assert [each.get("id") for each in said] == ["a", "a#2", None, "4"]
    assert [{name: each[name] for name in row if name != "id"} for each, row in zip(said, rows, strict=True)] == [
        {name: cell for name, cell in row.items() if name != "id"} for row in rows
    ]
    assert (said[2]["prediction"], said[2]["margin"]) == (None, None)
    assert judged_file(file, "span", data, source)[0].decoded == model.task.decode(predictions)


def test_answers_to_questions_that_are_left_out_are_no_fault(tuned, tmp_path):
    model, data, file = tuned("span")
    text = model.task.file_text(".json", read_source(file, "span"), model.predictions(data.examples))[0]
    out = _written(tmp_path / "out.json", text)
    less = replace(data, examples=data.examples[1:], left_out=("gold.json: its answer is not in the context",))
    found, _, _ = judged_file(out, "span", less, file)
    assert len(found) == len(data.examples) - 1


ANSWERS = {"text": ["fine"], "answer_start": [0]}


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("classification", {"text": "fine", "label": "a"}),
        ("multilabel", {"text": "fine", "loud": 1, "rude": 0}),
        ("tagging", {"tokens": ["fine"], "ner_tags": ["O"]}),
        ("choice", {"sent1": "the", "sent2": "film", "ending0": "fine", "ending1": "poor", "label": 1}),
        ("choice", {"question": "the", "choices": ["fine", "poor"], "answer": 1}),
        ("span", {"id": "a", "question": "the?", "context": "fine", "answers": ANSWERS, "is_impossible": False}),
    ],
)
def test_what_examples_are_made_of_is_no_column_to_look_at(tmp_path, name, row):
    file = _written(tmp_path / "gold.jsonl", jsonl_text(row | {"source": where} for where in ("web", "post")))
    source = read_source(file, name)
    assert Labelled(read_examples(source, name), source).cells() == {"source": ["web", "post"]}


def _written(file, text):
    file.write_text(text)
    return file


def test_rows_that_are_left_out_keep_the_others_in_their_places(tmp_path):
    gold = "text,label\nthe,a\n,b\nfine,b\npoor,a\n"
    (tmp_path / "gold.csv").write_text(gold)
    (tmp_path / "out.csv").write_text("id,output\n1,a\n2,a\n3,b\n4,b\n")
    source = read_source(tmp_path / "gold.csv", "classification")
    data = read_examples(source, "classification")
    found, _, _ = judged_file(tmp_path / "out.csv", "classification", data, source, Columns(prediction="output"))
    assert found.decoded == ["a", "b", "b"]
    assert found.records.tolist() == [[0, 0], [1, 1], [0, 1]]


def test_a_column_of_something_else_is_no_text(tmp_path):
    """Where a file holds none: its rows stay, also those where that column is empty, and it may hold groups."""
    file = tmp_path / "p.csv"
    file.write_text("label,prediction,source\na,a,web\nb,b,\na,b,print\nb,b,web\n")
    found, data, _ = judged_file(file, "classification")
    assert found.decoded == ["a", "b", "b", "b"]
    assert (len(data.examples), data.left_out) == (4, ())
    assert "source" not in data.taken
    file.write_text("id,y_true,y_pred,score\n7,1.5,1,9\n8,2.5,2,8\n9,3,3,7\n")
    found, data, _ = judged_file(file, "regression")
    assert (data.columns["label"], [each.label for each in found.examples]) == ("y_true", [1.5, 2.5, 3.0])
    file.write_text("utterance,label,prediction\nso it is,a,a\nis it so,b,b\n")
    assert judged_file(file, "classification")[1].columns["text"] == "utterance"
    file.write_text("文章,label,prediction\nこれはとても良い映画だった,a,a\n退屈で長い映画だと思った,b,b\n")
    assert judged_file(file, "classification")[1].columns["text"] == "文章"


def test_a_column_may_have_the_name_row(tmp_path):
    file = _written(tmp_path / "p.csv", "row,label,prediction,kind\n0,a,b,x\n1,b,b,y\n")
    found, data, source = judged_file(file, "classification")
    assert found.decoded == ["b", "b"]
    assert Labelled(data, source).cells() == {"row": ["0", "1"], "kind": ["x", "y"]}


def test_of_texts_without_any_label_predicted_ones_are_wrong(tmp_path):
    rows = [{"text": "fine", "labels": [], "prediction": said} for said in (["a"], [], ["b"])]
    found, _, _ = judged_file(_written(tmp_path / "p.jsonl", jsonl_text(rows)), "multilabel")
    assert found.task.labels == ("a", "b")
    assert found.records.tolist() == [[0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    none = _written(tmp_path / "none.jsonl", jsonl_text([row | {"prediction": []} for row in rows]))
    with pytest.raises(DataError, match="no label holds or is predicted anywhere"):
        judged_file(none, "multilabel")


def test_labels_are_those_with_a_probability_and_no_other_column_of_0_and_1(tmp_path):
    head = "text,toxic,insult,male,prediction,p(toxic),p(insult)\n"
    file = _written(tmp_path / "p.csv", f"{head}the film,1,0,1,toxic,0.9,0.1\nfine,0,0,0,insult,0.2,0.6\n")
    found, data, source = judged_file(file, "multilabel")
    assert found.task.labels == ("insult", "toxic")
    assert found.records.tolist() == [[0, 1, 0, 1], [0, 0, 1, 0]]
    assert Labelled(data, source).cells() == {"male": ["1", "0"]}
    head = "toxic,sentiment,male,prediction,p(sentiment),p(toxic)\n"  # no text, and a usual name of all labels
    found, _, _ = judged_file(_written(file, f"{head}1,0,1,toxic,0.1,0.9\n0,1,0,toxic,0.2,0.6\n"), "multilabel")
    assert found.task.labels == ("sentiment", "toxic")
    assert found.records.tolist() == [[0, 1, 0, 1], [1, 0, 0, 1]]


def test_a_label_that_is_predicted_in_other_letters_is_refused(tmp_path):
    file = _written(tmp_path / "p.csv", "text,label,prediction\nthe film,a,A\nfine,b,b\n")
    with pytest.raises(DataError, match="'A' and 'a' would be two labels, one of them only predicted"):
        judged_file(file, "classification")
    file.write_text("text,label,prediction\nthe film,a,a\nfine,A,b\nthe,B,B\n")
    with pytest.raises(DataError, match="'b' and 'B' would be two labels"):
        judged_file(file, "classification")
    file.write_text("text,label,prediction\nthe film,a,a\nfine,A,c\n")  # labels may differ so in gold
    assert judged_file(file, "classification")[0].task.labels == ("A", "a", "c")
    file.write_text(f"{HEAD},p(A),p(a),p(x)\nthe,a,a,0,1,0\nfilm,x,x,0,0,1\n")  # a model may know both
    assert judged_file(file, "classification")[0].task.labels == ("A", "a", "x")


def test_a_column_that_is_named_like_a_label_may_hold_something_else(tmp_path):
    lines = [f"the number {i} of them,{('film', 'book')[i % 2]},title {i} is it,film,0.9,0.1" for i in range(12)]
    file = _written(tmp_path / "p.csv", "\n".join(["text,tags,film,prediction,p(film),p(book)", *lines]) + "\n")
    found, data, _ = judged_file(file, "multilabel")
    assert found.task.labels == ("book", "film")
    assert data.columns["label"] == "tags"


def test_all_may_be_wrong(tmp_path):
    """Where probabilities name the labels."""
    file = tmp_path / "p.csv"
    file.write_text(f"{HEAD},p(a),p(b),p(c)\nthe,b,a,1,0,0\nthe,c,a,1,0,0\n")
    found, _, _ = judged_file(file, "classification")
    assert (found.decoded, found.task.labels) == (["a", "a"], ("a", "b", "c"))

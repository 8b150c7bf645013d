"""Examples of labelled data: what is read from which file, what is left out and said, what is refused; and how a part
is held out."""

import json
import lzma
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from minilm.errors import ConfigError, DataError
from minilm.labelled.examples import Choice, Example, Question, Tagged, read_choices, read_texts
from minilm.labelled.spans import read_questions, read_tagged
from minilm.labelled.splits import check_labels, duplicates, folds, overlap, share_a_text, split_by_text, split_dev
from minilm.labelled.tables import read_table, table_of

DATA = Path(__file__).parents[3] / "shared" / "data" / "finetune"


@pytest.fixture
def file(tmp_path):
    """file(name, content): such a file."""

    def write(name, content):
        (tmp_path / name).write_bytes(
            content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
        )
        return tmp_path / name

    return write


# -- every kind of file that is odd -------------------------------------------------------------------


def texts(kind="classification", **columns):
    return lambda file: read_texts(read_table(file), kind, **columns)


def classes(file):
    return read_texts(read_table(file), "classification")


def several(file):
    return read_texts(read_table(file), "multilabel")


def scores(file):
    return read_texts(read_table(file), "regression")


def unlabelled(file):
    return read_texts(read_table(file), "classification", labelled=False)


def choices(file):
    return read_choices(read_table(file))


def squad(*rows, context="the cat sat on the mat"):
    """A file of questions with (id, answers) each."""
    qas = [{"id": id, "question": "who?", "answers": answers} for id, answers in rows]
    return json.dumps({"data": [{"paragraphs": [{"context": context, "qas": qas}]}]})


def at(start, text):
    return {"answer_start": start, "text": text}


def jsonl(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def rows_of_questions(file):
    return read_questions(read_table(file))


def unlabelled_questions(file):
    return read_questions(read_table(file), labelled=False)


CAT = {"question": "who?", "context": "the cat sat"}
QUESTIONS = jsonl(
    CAT | {"id": "a", "answers": {"text": ["cat", "the cat"], "answer_start": [4, 0]}},  # as `datasets` has them
    CAT | {"id": "b", "answers": [at(4, "cat")]},
    CAT | {"id": "c", "answers": {"text": [], "answer_start": []}},
    CAT | {"answers": [at(0, "the")]},
    CAT | {"id": "d", "answers": [at(0, "dog")]},
    CAT | {"id": "e"},
    {"question": "who?", "answers": []},
)
T, L = "text,label\n", "label,text\n"
ODD = [
    # (name, content, reader, what the message says, or (rows used, rows left out))
    # texts and labels
    ("a.csv", "text,label\na,1\nb,0\n", classes, (2, 0)),
    ("a.csv", T + "a,1\n", classes, (1, 0)),
    ("a.csv", T + ",1\nb,0\n", classes, (1, 1)),
    ("a.csv", T + "a,\nb,0\n", classes, (1, 1)),
    ("a.csv", T + "a, \n  ,0\nc,1\n", classes, (1, 2)),
    ("a.csv", T + "a,\nb,\n", classes, "no row can be used; the first is {file}:2: no label"),
    ("a.csv", "text,note\na,b c\nb,d e\n", classes, "{file}: which column is the label? It has 'text', 'note'"),
    ("a.csv", "label,a,b,c,d\n1,2,3,4,5\n", classes, "{file}: which column is the text?"),
    ("a.tsv", "good film\nbad film\n", classes, "{file}: which column is the"),
    ("a.csv", "id,text\n1,a\n2,b\n3,c\n", classes, "{file}: which column is the label?"),
    ("a.tsv", "good\tfine\nbad\tpoor\n", classes, "{file}: which column is the label?"),
    ("a.tsv", "good film\t1\nbad film\t0\n", classes, "{file}: which column is the label?"),
    (
        "a.csv",
        T + "a,1\n",
        texts(label="lable"),
        "{file}: no column 'lable' (it has 'text', 'label'); did you mean label?",
    ),
    ("a.csv", T + "a,1\n", texts(label=3), "{file}: no column 3"),
    ("a.csv", T + "a,1\n", texts(text="label", label=2), "{file}: column 'label' is named twice"),
    ("a.csv", "sentence1,sentence2,label\na,b,1\na,,0\n,b,0\n", classes, (1, 2)),
    ("a.csv", T + "a\u2028b,1\nc,0\n", classes, (2, 0)),
    ("a.csv", "\ufeff" + T + "a,1\n", classes, (1, 0)),
    ("a.csv", T + "a,1\n\n\nb,0\n", classes, (2, 0)),
    ("a.csv", T + "a,1\nb\n", classes, "{file}:3: 1 cells"),
    ("a.csv", T + '"a,1\nb,0\n', classes, "{file}:2: a quote that is never closed"),
    ("a.csv", b"text,label\ncaf\xe9,1\n", classes, "{file}:2: not UTF-8"),
    ("a.csv", (T + "a,1\n").encode("utf-16"), classes, "{file}:1: UTF-16"),
    ("a.jsonl", jsonl({"text": "a", "label": 1}, {"text": "b"}, {"label": 1}), classes, (1, 2)),
    ("a.jsonl", jsonl({"text": "a", "label": 1}, {"text": None, "label": 1}), classes, (1, 1)),
    ("a.jsonl", jsonl({"text": ["a"], "label": 1}), classes, "{file}:1: the text is a list, not a text"),
    ("a.jsonl", jsonl({"text": "a", "label": 0}, {"text": "a", "label": {}}), classes, "{file}:2: the label is a dict"),
    ("a.jsonl", jsonl({"text": "a\ud800", "label": 1}), classes, "{file}:1: the text holds a lone surrogate"),
    ("a.jsonl", b'{"text": "a", "label": NaN}\n', classes, "{file}:1: NaN is no number"),
    ("a.jsonl", b'{"text": "a", "label": 1e999}\n', classes, "{file}:1: the label is inf, which is no number"),
    ("a.json", '[{"text": "a", "label": "x"}, {"text": "", "label": "y"}]', classes, (1, 1)),
    # for prediction
    ("a.csv", T + "a,\nb,0\n", unlabelled, (2, 0)),
    ("a.csv", "text\na\n\nb\n", unlabelled, (2, 0)),
    ("a.csv", "text,id\na,1\n,2\n", unlabelled, (1, 1)),
    ("a.txt", "good film\nbad film, really\n", unlabelled, (2, 0)),
    ("a.csv", "a,b,c,d\nx,y,z,w\n", unlabelled, "{file}: which column is the text?"),
    # numbers
    ("a.csv", T + "a,1.5\nb,-2e3\nc, .5 \nd,\n", scores, (3, 1)),
    ("a.csv", T + "a,1\nb,nan\n", scores, "{file}:3: the label 'nan' is no finite number"),
    ("a.csv", T + "a,inf\n", scores, "{file}:2: the label 'inf' is no finite number"),
    ("a.csv", T + "a,1e999\n", scores, "{file}:2: the label '1e999' is no finite number"),
    ("a.csv", T + "a,good\n", scores, "{file}:2: the label 'good' is no finite number; is it the right column?"),
    ("a.csv", T + "a,1_000\n", scores, "{file}:2: the label '1_000' is no finite number"),
    ("a.csv", T + "a,\u0663\n", scores, "{file}:2: the label"),
    ("a.csv", "text;label\na;1,5\n", scores, "{file}:2: the label '1,5' is no finite number; write 1.5 with a point"),
    ("a.jsonl", jsonl({"text": "a", "label": 1}, {"text": "b", "label": True}), scores, "{file}:2: the label 'true'"),
    ("a.jsonl", b'{"text": "a", "label": Infinity}\n', scores, "{file}:1: Infinity is no number"),
    # several labels
    ("a.csv", T + "a,x|y\nb,\nc,x\n", several, (2, 1)),
    ("a.jsonl", jsonl({"text": "a", "labels": ["x", "y"]}, {"text": "b", "labels": []}), several, (2, 0)),
    ("a.jsonl", jsonl({"text": "a", "labels": [0, 1, 0]}), several, "{file}:1: label '0' appears twice"),
    ("a.jsonl", jsonl({"text": "a", "labels": ["x", " "]}), several, "{file}:1: an empty label; name it"),
    ("a.csv", T + "a,x|\n", several, "{file}:2: an empty label; name it"),
    ("a.tsv", "text\tlabel\na\t['x', 'y']\n", several, "{file}:2: not JSON"),
    ("a.jsonl", jsonl({"text": "a", "label": ["x"]}), classes, "{file}:1: the label is a list"),
    # tagged words
    ("a.conll", "EU B-ORG\nrejects O\n\nPeter B-PER\n", read_tagged, (2, 0)),
    ("a.conll", "-DOCSTART- -X- O\n\nEU NN B-ORG\n\n\n\nPeter NN B-PER", read_tagged, (2, 0)),
    ("a.conll", "EU\tB-ORG\r\n\r\nNew York\tB-LOC\r\n", read_tagged, (2, 0)),
    ("a.conll", "a\u2028b O\na\u00a0b O\n", read_tagged, (1, 0)),
    ("a.conll", "EU B-ORG\nrejects\n", read_tagged, "{file}:2: 1 columns, but 2 before"),
    ("a.conll", "EU B-ORG\nNew York B-LOC\n", read_tagged, "{file}:2: 3 columns, but 2 before"),
    ("a.conll", "EU\nrejects\n", read_tagged, "{file}:1: a word and no tag (1 columns)"),
    ("a.conll", "EU NNP\n", read_tagged, "{file}:1: the tag 'NNP' is none of O, B-name, I-name"),
    ("a.conll", "EU B-\n", read_tagged, "{file}:1: the tag 'B-' is none of"),
    ("a.conll", "EU o\n", read_tagged, "{file}:1: the tag 'o' is none of"),
    ("a.conll", "EU\tO\n\tO\n", read_tagged, "{file}:2: a tag without a word"),
    ("a.conll", "EU O\n", lambda file: read_tagged(file, column=3), "{file}:1: no column 3 (2 columns)"),
    ("a.conll", "", read_tagged, "{file}: holds no sentence"),
    ("a.conll", "-DOCSTART- O\n\n\n", read_tagged, "{file}: holds no sentence"),
    ("a.conll", b"EU O\ncaf\xe9 O\n", read_tagged, "{file}:2: not UTF-8"),
    ("a.conll", "EU O\rin O\r", read_tagged, "{file}:1: its lines end in \\r alone"),
    (
        "a.jsonl",
        jsonl({"tokens": ["a", "b"], "ner_tags": ["O", "B-x"]}, {"tokens": [], "ner_tags": []}),
        read_tagged,
        (1, 1),
    ),
    ("a.jsonl", jsonl({"words": ["a", "b"], "tags": ["O"]}), read_tagged, "{file}:1: 2 words and 1 tags"),
    (
        "a.jsonl",
        jsonl({"words": ["a"], "tags": [3]}),
        read_tagged,
        "{file}:1: the tag '3' is none of O, B-name, I-name (or E-, S-, L-, U-name); give",
    ),
    ("a.jsonl", jsonl({"words": "a b", "tags": ["O"]}), read_tagged, "{file}:1: no list words or tokens"),
    ("a.jsonl", jsonl({"words": ["a"]}), read_tagged, "{file}:1: no list tags or ner_tags (it has 'words')"),
    ("a.jsonl", jsonl({"words": [None], "tags": ["O"]}), read_tagged, "{file}:1: a tag without a word"),
    # questions
    ("a.json", squad(("a", [at(4, "cat")]), ("b", [])), read_questions, (2, 0)),
    ("a.json", squad(("a", [at(0, "cat")])), read_questions, (1, 0)),
    ("a.json", squad(("a", [at(1, "the")]), ("b", [at(4, "cat")])), read_questions, (1, 1)),
    ("a.json", squad(("a", [at(4, "dog")]), ("b", [at(4, "cat")])), read_questions, (1, 1)),
    ("a.json", squad(("a", [at(3, "aa")]), ("b", []), context="aaab"), read_questions, (1, 1)),
    ("a.json", squad(("a", [at(4, " ")]), ("b", [at(3, "")]), ("c", [])), read_questions, (1, 2)),
    (
        "a.json",
        squad(("a", [at(4, "dog")])),
        read_questions,
        "{file}: no question to use ({file}: data[0].paragraphs[0].qas[0]",
    ),
    (
        "a.json",
        squad(("a", [at("4", "cat")])),
        read_questions,
        "{file}: data[0].paragraphs[0].qas[0].answers[0]: no whole",
    ),
    ("a.json", squad(("a", [at(True, "cat")])), read_questions, "answers[0]: no whole number 'answer_start'"),
    ("a.json", squad(("a", "cat")), read_questions, "{file}: data[0].paragraphs[0].qas[0]: no list 'answers'"),
    ("a.json", squad((7, [])), read_questions, "{file}: data[0].paragraphs[0].qas[0]: no text 'id'"),
    (
        "a.json",
        '{"data": [{"paragraphs": [{"context": "cat", "qas": ["who?"]}]}]}',
        read_questions,
        "{file}: data[0].paragraphs[0].qas[0]: no text 'id'",
    ),
    ("a.json", squad(("a", []), context=None), read_questions, "{file}: data[0].paragraphs[0]: no text 'context'"),
    ("a.json", squad(("a", []), context="\ud800"), read_questions, "the context holds a lone surrogate"),
    ("a.json", '{"data": []}', read_questions, "{file}: no question to use (none at all)"),
    ("a.json", '{"rows": []}', read_questions, "{file}: no list 'data'"),
    ("a.json", "[1]", read_questions, "{file}: no list 'data'"),
    ("a.json", '{"data": [3]}', read_questions, "{file}: data[0]: no list 'paragraphs'"),
    ("a.json", squad(("a", []))[:-9], read_questions, "{file}: not JSON"),
    ("a.json", "", read_questions, "{file}: not JSON"),
    ("a.json.xz", lzma.compress(squad(("a", [])).encode())[:-9], read_questions, "{file}: damaged or cut short"),
    ("a.jsonl", QUESTIONS, rows_of_questions, (4, 3)),
    ("a.csv", "id,Question,context\n1,who?,the cat\n2,,the cat\n3,who?,\n", unlabelled_questions, (1, 2)),
    ("a.csv", "id,who,context\n1,who?,the cat\n", unlabelled_questions, "{file}: which column is the question? It has"),
    (
        "a.csv",
        "id,question,text\n1,who?,the cat\n",
        unlabelled_questions,
        "{file}: which column is the context? It has",
    ),
    (
        "a.jsonl",
        jsonl({"question": "q", "context": "a cat", "answers": {"text": ["cat"], "answer_start": []}}),
        rows_of_questions,
        "{file}:1: 1 answers and 0 starts; give each text one",
    ),
    ("a.csv", "question,context,answers\nq,a cat,cat\n", rows_of_questions, "{file}:2: no list 'answers'"),
    # choices
    ("a.csv", "sent1,sent2,ending0,ending1,label\na,b,c,d,1\na,b,c,,0\na,b,c,d,\n", choices, (1, 2)),
    ("a.csv", "question,choice_a,choice_b,answer\na,c,d,A\n,c,d,B\na,c,d,b\n", choices, (2, 1)),
    ("a.jsonl", jsonl({"text": "a", "choices": ["x", "y", "z"], "label": 2}), choices, (1, 0)),
    (
        "a.jsonl",
        jsonl({"text": "a", "choices": ["x"], "label": 0}, {"text": "a", "choices": ["x", "y"], "label": 0}),
        choices,
        (1, 1),
    ),
    (
        "a.csv",
        "question,choice_a,choice_b,answer\na,c,d,A\na,c,d,C\n",
        choices,
        "{file}:3: the label 'C' is none of 2 choices",
    ),
    ("a.csv", "text,ending0,ending1,label\na,c,d,0\na,c,d,2\n", choices, "{file}:3: the label '2' is none of 2"),
    ("a.csv", "text,ending0,ending1,label\na,c,d,-1\n", choices, "{file}:2: the label '-1' is none of 2"),
    (
        "a.csv",
        "text,ending0,ending2,label\na,c,d,1\n",
        choices,
        "{file}: a choice is missing among 'ending0', 'ending2'",
    ),
    ("a.csv", "text,label\na,1\n", choices, "{file}: no column for the choices (it has 'text', 'label')"),
    ("a.csv", "ending0,ending1,label\na,b,1\n", choices, "{file}: no column for the text"),
    ("a.csv", "text,ending0,ending1\na,b,c\n", choices, "{file}: no column for the label"),
    ("a.jsonl", jsonl({"text": "a", "choices": {"text": []}, "label": 2}), choices, "{file}:1: 'choices' is no list"),
]


@pytest.mark.parametrize(("name", "content", "reader", "expected"), ODD, ids=range(len(ODD)))
def test_an_odd_file_is_one_line_or_counted(file, name, content, reader, expected):
    path = file(name, content)
    if isinstance(expected, str):
        with pytest.raises(DataError) as caught:
            reader(path)
        assert expected.replace("{file}", str(path)) in str(caught.value)
        assert "\n" not in str(caught.value)
        return
    data = reader(path)
    assert (len(data.examples), len(data.left_out)) == expected
    places = [example.where for example in data.examples] + [
        re.match(r"(.*?): no |(.*?): the ", o)[0] for o in data.left_out
    ]
    assert all(place.startswith(str(path)) for place in places)
    assert len(set(places)) == sum(expected)
    assert not any("\n" in line for line in (*data.notes, *data.left_out))
    if reader not in (read_tagged, read_questions):
        assert len(read_table(path).rows) == sum(expected)


# -- texts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "kind", "columns"),
    [
        ("text,label\na,1\n", "classification", {"text": "text", "label": "label"}),
        ("id,Sentence,Gold-Label\n1,a,x\n", "classification", {"text": "Sentence", "label": "Gold-Label"}),
        (
            "label,premise,hypothesis\n1,a,b\n",
            "classification",
            {"text": "premise", "pair": "hypothesis", "label": "label"},
        ),
        (
            "question,sentence,label\na,b,1\n",
            "classification",
            {"text": "question", "pair": "sentence", "label": "label"},
        ),
        (
            "sentence1,sentence2,score\na,b,1\n",
            "regression",
            {"text": "sentence1", "pair": "sentence2", "label": "score"},
        ),
        ("remark,kind\nso good,x\nbad,y\nok,x\nno,y\n", "classification", {"text": "remark", "label": "kind"}),
        ("1\tgood film\n0\tbad film\n1\tok then\n", "classification", {"text": "2", "label": "1"}),
        ("good film\t1\nbad film\t0\nok then\t1\n", "classification", {"text": "1", "label": "2"}),
        (
            "a b\tc d\t1\na b\te f\t0\ng h\ti j\t1\nk l\tm n\t0\n",
            "classification",
            {"text": "1", "pair": "2", "label": "3"},
        ),
        ("i1\tgood film\tx\ni2\tbad film\ty\ni3\tok then\tx\n", "classification", {"text": "2", "label": "3"}),
        ("good film\tx\nbad film\tx\n", "classification", {"text": "1", "label": "2"}),
        ("good film\t1.5\nbad film\t0.25\n", "regression", {"text": "1", "label": "2"}),
    ],
)
def test_columns_are_found_and_said(file, content, kind, columns):
    data = read_texts(read_table(file("a.csv", content)), kind)
    assert data.columns == columns
    assert all(f"{role} is column {column!r}" in data.notes[-1] for role, column in columns.items())


@pytest.mark.parametrize(
    ("content", "columns"),
    [
        ("label,text\n1,a\n", {"text": "text"}),
        ("good film\nbad film\n", {"text": "1"}),
        ("1\tgood film\n0\tbad film\n1\tok then\n0\tno no\n", {"text": "2"}),
        ("how are you\tI am fine\nwhat is it\tit is that\n", {"text": "1", "pair": "2"}),
    ],
)
def test_columns_for_prediction(file, content, columns):
    data = read_texts(read_table(file("a.tsv", content.replace(",", "\t"))), "classification", labelled=False)
    assert data.columns == columns
    assert {example.label for example in data.examples} == {None}


def test_columns_by_word_of_the_caller(file):
    table = read_table(file("a.tsv", "x\t0001\t5.0\ta b\tc d\ny\t0002\t2.5\te f\tg h\n"))
    data = read_texts(table, "regression", text=4, pair="5", label=3)
    assert [each[:3] for each in data.examples] == [("a b", "c d", 5.0), ("e f", "g h", 2.5)]
    assert data.notes == (*table.notes, "other columns: '1', '2'")  # nothing was decided by looking
    with_names = read_table(file("b.csv", "text,text_pair,label,y\na,b,1,x\nb,c,0,z\n"))
    assert [each[:3] for each in read_texts(with_names, "classification", text="text_pair", label="y").examples] == [
        *(("b", None, "x"), ("c", None, "z"))
    ]
    assert read_texts(with_names, "classification", pair="text_pair").columns["text"] == "text"
    of_two = read_table(file("c.csv", "premise,hypothesis,sentence1,sentence2,label\na,b,c,d,1\n"))
    assert read_texts(of_two, "classification", pair="sentence2").columns["text"] == "sentence1"


def test_labels_are_the_strings_of_the_file(file):
    rows = [1, "1", 1.0, True, False, 0.5, " so ", "01", -3, 10**20, "é"]
    data = classes(file("a.jsonl", jsonl(*({"text": "a", "label": label} for label in rows))))
    assert [example.label for example in data.examples] == [
        *("1", "1", "1", "true", "false", "0.5", "so", "01", "-3", str(10**20), "é")
    ]
    data = read_texts(table_of([{"text": "a ", "label": 1}, {"text": 2, "label": None}]), "classification")
    assert data.examples == [Example("a ", None, "1", "row 1")]
    assert data.left_out == ("row 2: no label",)


def test_numbers_of_numpy_are_numbers():
    rows = [{"text": "a", "label": label} for label in (np.int64(3), np.float32(0.5), np.bool_(True))]
    assert [each.label for each in read_texts(table_of(rows), "classification").examples] == ["3", "0.5", "true"]
    with pytest.raises(DataError, match="row 1: the label is nan"):
        read_texts(table_of([{"text": "a", "label": float("nan")}]), "regression")


def test_several_labels(file):
    for cells, separator in (("x|y, z", "|"), ("x;y, z", ";"), ("x,y", ",")):
        data = several(file("a.tsv", f"text\tlabel\na\t{cells}\nb\tx\n"))
        assert [each.label for each in data.examples] == [tuple(re.split(rf" *[{separator}] *", cells)), ("x",)]
        assert data.notes[-1] == f"labels are separated by {separator!r}"
    data = several(
        file("a.jsonl", jsonl(*({"text": "a", "label": label} for label in (["x", 1, True], [], '["y"]', "z w"))))
    )
    assert [each.label for each in data.examples] == [("x", "1", "true"), (), ("y",), ("z w",)]


def test_a_column_of_0_and_1_for_each_label(file):
    """As comments are labelled that are toxic in several ways; a row that says nothing of one is left out."""
    rows = "7,you are,0,1,1,2\n8,a dog,0,0,0,2\n9,a cat,1,,0,2\n"
    path = file("a.csv", "id,comment_text,toxic,insult,threat,raters\n" + rows)
    data = read_texts(read_table(path), "multilabel")
    assert [each.label for each in data.examples] == [("insult", "threat"), ()]
    assert data.left_out == (f"{path}:4: no label",)
    assert data.columns == {"text": "comment_text"}
    assert data.notes[-2:] == (
        "text is column 'comment_text'; other columns: 'id', 'raters'",
        "labels are the columns of 0 and 1: 'toxic', 'insult', 'threat'",
    )
    assert read_texts(read_table(path), "multilabel", label="insult").examples[0].label == ("1",)
    rows = ({"text": "a b", "x": True, "z": 1.0}, {"text": "c", "x": False, "z": 0})
    assert [each.label for each in read_texts(read_table(file("a.jsonl", jsonl(*rows))), "multilabel").examples] == [
        ("x", "z"),
        (),
    ]
    path = file("b.csv", "text,x,y,labels\na b,0,1,p\nc d,1,0,q\n")
    assert [each.label for each in read_texts(read_table(path), "multilabel").examples] == [("p",), ("q",)]
    assert len(read_texts(read_table(path), "multilabel", labelled=False).examples) == 2
    path = file("c.csv", "text,toxic,sentiment\na b,0,1\nc d,1,0\n")  # one of them has the usual name of all labels
    assert [each.label for each in read_texts(read_table(path), "multilabel").examples] == [("sentiment",), ("toxic",)]


@pytest.mark.parametrize(
    ("name", "text", "task"),
    [
        ("a.conll", "the O\nfilm O\n", "tagging"),
        ("a.jsonl", '{"tokens": ["the"], "ner": ["O"]}\n', "tagging"),
        ("a.json", '[{"title": "t", "paragraphs": []}]', "span"),
        ("a.csv", "sent1,sent2,ending0,ending1,gold\na,b,c,d,0\n", "choice"),
    ],
)
def test_a_file_of_another_task_is_said(file, name, text, task):
    with pytest.raises(DataError, match=f"is it for --task {task}"):
        read_texts(read_table(file(name, text)), "classification")


def test_a_label_for_every_row_is_said(file):
    data = classes(file("a.csv", T + "".join(f"a,{i}.5\n" for i in range(30))))
    assert data.notes[-1] == "30 labels in 30 rows; is 'label' the label?"


@pytest.mark.parametrize("kind", ["classification", "multilabel"])
@pytest.mark.parametrize(
    ("one", "other"), [("Spam", "spam"), ("caf\u00e9", "cafe\u0301"), ("very good", "very  good"), ("1", "1.0")]
)
def test_labels_that_are_all_but_the_same(file, kind, one, other):
    rows = "".join(f"a b{i},{(one, other, 'z')[i % 3]}\n" for i in range(9))
    data = read_texts(read_table(file("a.csv", "text,label\n" + rows)), kind)
    assert data.notes[-1] == f"labels {one!r} and {other!r} differ; are they meant to be one?"
    rows = rows.replace(other, one)
    assert "meant to be one" not in read_texts(read_table(file("b.csv", "text,label\n" + rows)), kind).notes[-1]


@pytest.mark.parametrize("label", ["NA", "nan", "-", "?"])
def test_a_label_that_may_mean_none_is_said(file, label):
    rows = "".join(f"a b{i},{('x', 'y', label)[i % 3]}\n" for i in range(9))
    data = classes(file("a.csv", "text,label\n" + rows))
    assert data.notes[-1].startswith(f"the label {label!r} is learned as any other; leave those rows out")
    data = classes(file("b.csv", "text,label\n" + rows.replace(",y", ",x")))  # of two labels it is one
    assert not any("learned as any other" in note for note in data.notes)


def test_labels_that_look_like_several_are_said(file):
    data = classes(file("a.csv", "text,label\na,x\nb,x|y\nc,y\n"))
    assert data.notes[-1].startswith("labels with | in them: 1, as 'x|y'; where a text has several labels, give --task")


def test_lists_of_0_and_1_have_no_names(file):
    with pytest.raises(DataError, match=r"label '0' appears twice; 0 and 1 in a list have no names: give a column"):
        several(file("a.jsonl", jsonl({"text": "a", "label": [0, 1, 0]})))
    with pytest.raises(DataError, match="every training row has the label"):
        check_labels(rows(("1", "0"), ("0", "1")), [])


# -- words, questions, choices ------------------------------------------------------------------------


def test_tagged_words(file):
    path = file(
        "a.txt", "-DOCSTART- -X- O O\n\nEU NNP I-ORG B-ORG\nin NN O O\n\n\nPeter NN I-PER B-PER\nB NN I-PER I-PER\n"
    )
    data = read_tagged(path)
    assert data.examples == [
        Tagged(("EU", "in"), ("B-ORG", "O"), f"{path}:3"),
        Tagged(("Peter", "B"), ("B-PER", "I-PER"), f"{path}:7"),
    ]
    assert data.notes == ("-DOCSTART- lines dropped: 1",)
    by_number = read_tagged(path, column=3)
    assert by_number.examples[1].tags == ("I-PER", "I-PER")
    assert by_number.notes[-1] == f"entities that begin with I- instead of B-: 2, the first in {path}:3"
    unknown = read_tagged(path, labelled=False)
    assert [each.tags for each in unknown.examples] == [None, None]
    assert unknown.notes[-1].startswith("words are the first of 4 columns: each line is one word")
    with pytest.raises(DataError, match=r":2: 3 columns, but 2 before; give each line one word"):
        read_tagged(file("c.txt", "so good\nit was bad\n"), labelled=False)
    assert read_tagged(file("b.txt", "so\nit\n\nis\n"), labelled=False).examples[0][:2] == (("so", "it"), None)
    data = read_tagged(file("a.jsonl", jsonl({"tokens": ["New York", "is"], "ner_tags": ["B-LOC", "O"]})))
    assert data.examples[0][:2] == (("New York", "is"), ("B-LOC", "O"))
    mixed = file("b.jsonl", jsonl({"words": ["a"], "tags": ["O"]}, {"tokens": ["b"], "ner_tags": ["O"]}))
    assert [each.words for each in read_tagged(mixed).examples] == [("a",), ("b",)]
    data = read_tagged(table_of([{"words": ("a",), "tags": ("O",)}]))
    assert data.examples == [Tagged(("a",), ("O",), "row 1")]


def test_questions(file):
    context = "ab cat ab dog"
    qas = [
        {"id": "1", "question": "q", "answers": [at(3, "cat"), at(0, "ab")]},
        {"id": "2", "question": "q", "answers": [at(4, "cat")]},
        {"id": "3", "question": "q", "answers": [at(-3, "dog"), at(1, "ab")]},
        {"id": "4", "question": "q", "answers": [], "is_impossible": True},
        {"id": "5", "question": "q"},
        {"id": "6", "question": "q", "answers": [at(3, "cat")], "is_impossible": True},
        {"id": "1", "question": "q", "answers": [at(7, "ab")]},
        {"id": "7", "question": " ", "answers": []},
    ]
    path = file("a.json", json.dumps({"version": "2", "data": [{"paragraphs": [{"context": context, "qas": qas}]}]}))
    data = read_questions(path)
    place = f"{path}: data[0].paragraphs[0].qas"
    assert data.examples == [
        Question("1", "q", context, ((3, "cat"), (0, "ab")), f"{place}[0]"),
        Question("2", "q", context, ((3, "cat"),), f"{place}[1]"),
        Question("3", "q", context, ((10, "dog"),), f"{place}[2]"),
        Question("4", "q", context, (), f"{place}[3]"),
        Question("1#2", "q", context, ((7, "ab"),), f"{place}[6]"),
    ]
    assert data.left_out == (
        f"{place}[4]: no answers",
        f"{place}[5]: is_impossible, but it has answers",
        f"{place}[7]: no question",
    )
    assert data.notes == (
        f"questions whose answer starts elsewhere in the context, which is corrected: 2, the first {place}[1]",
        f"questions of which some answers are not in the context: 1, the first {place}[2]",
        f"questions with the id of an earlier one, which get #2, #3: 1, the first {place}[6]",
    )
    unlabelled = read_questions(path, labelled=False)  # whatever stands there for answers
    ids = ["1", "2", "3", "4", "5", "6", "1#2"]
    assert unlabelled.examples == [Question(id, "q", context, None, f"{place}[{i}]") for i, id in enumerate(ids)]
    assert unlabelled.left_out == (f"{place}[7]: no question",)
    qas[0]["answers"], qas[1]["answers"] = "cat", [{}]
    path.write_text(json.dumps({"data": [{"paragraphs": [{"context": context, "qas": qas}]}]}))
    assert read_questions(path, labelled=False) == unlabelled
    qas[0]["answers"], qas[1]["answers"] = [], []
    qas[1] |= {"id": "1#2", "question": "other"}  # a name of its own is not taken away
    path.write_text(json.dumps({"version": "2", "data": [{"paragraphs": [{"context": context, "qas": qas}]}]}))
    assert [each.id for each in read_questions(path, labelled=False).examples] == [
        "1",
        "1#2",
        "3",
        "4",
        "5",
        "6",
        "1#3",
    ]
    qas[1] |= {"id": "1", "question": "other"}
    path.write_text(json.dumps({"data": [{"paragraphs": [{"context": context, "qas": qas}]}]}))
    with pytest.raises(DataError, match=r"qas\[1\]: id '1' is that of two questions"):
        read_questions(path)


def test_questions_in_rows(file):
    """With any of two ways to write answers; a row without an id has its number."""
    path = file("a.jsonl", QUESTIONS)
    data = rows_of_questions(path)
    answers = {each.id: each.answers for each in data.examples}
    assert answers == {"a": ((4, "cat"), (0, "the cat")), "b": ((4, "cat"),), "c": (), "4": ((0, "the"),)}
    assert data.columns == {"text": "question", "pair": "context"}
    assert data.left_out[1:] == (f"{path}:6: no answers", f"{path}:7: no context")
    path = file("b.csv", "q,text\nwho?,the cat\n")
    data = read_questions(read_table(path), "q", 2, labelled=False)
    assert data.examples == [Question("1", "who?", "the cat", None, f"{path}:2")]
    with pytest.raises(DataError, match="column 'text' is named twice"):
        read_questions(read_table(path), 2, "text")


def test_questions_whose_answers_nobody_knows_are_left_out(file):
    qas = [{"id": "1", "question": "q"}, {"id": "2", "question": "q", "is_impossible": True}]
    path = file("a.json", json.dumps({"data": [{"paragraphs": [{"context": "a", "qas": qas}]}]}))
    assert [each.id for each in read_questions(path, labelled=False).examples] == ["1", "2"]
    data = read_questions(path)
    assert ([each.id for each in data.examples], len(data.left_out)) == (["2"], 1)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("sent1,sent2,ending0,ending1,label\nA man,He,runs.,sits.,1\n", ("A man", ("He runs.", "He sits."), 1)),
        ("question,choice_b,choice_a,answer\nq,x,y,b\n", ("q", ("y", "x"), 1)),
        ("premise,choice1,choice2,label\np,x,y,1\np,x,y,0\n", ("p", ("x", "y"), 1)),
        ("premise,choice1,choice2,label\np,x,y,2\np,x,y,1\n", ("p", ("x", "y"), 1)),
        ("premise,choice1,choice2,question,label\np,x,y,cause,1\n", ("p", ("cause x", "cause y"), 1)),
        ("text,question,choice_a,choice_b,answer\nt,q?,x,y,b\n", ("t", ("q? x", "q? y"), 1)),
        ('text,choices,label\nt,"[""x"", ""y""]",2\nt,"[""x"", ""y"", ""z""]",1\n', ("t", ("x", "y"), 1)),
        (
            "text," + ",".join(f"ending{i}" for i in range(11)) + ",label\nt,a,b,c,d,e,f,g,h,i,j,k,10\n",
            ("t", tuple("abcdefghijk"), 10),
        ),
    ],
)
def test_choices(file, content, expected):
    path = file("a.csv", content)
    assert choices(path).examples[0] == Choice(*expected, f"{path}:2")
    assert read_choices(read_table(path), labelled=False).examples[0].label is None


def test_choices_of_columns_that_are_named(file):
    """What each begins with, by name, goes with the text that usually has it."""
    path = file("a.csv", "id,sent1,own,ending0,ending1,right\n7,t,b,x,y,1\n")
    data = read_choices(read_table(path), beginning="own", label="6")
    assert data.examples == [Choice("t", ("b x", "b y"), 1, f"{path}:2")]
    assert data.columns == {"text": "sent1", "beginning": "own", "choices": "ending0, ending1", "label": "right"}
    assert read_choices(read_table(path), text="id", label="right").examples[0][:2] == ("7", ("x", "y"))
    with pytest.raises(DataError, match="'own' is named twice"):
        read_choices(read_table(path), text="own", beginning="own")


def test_columns_that_no_choice_reads_are_told(file):
    notes = choices(file("a.csv", "id,premise,choice1,choice2,label\n7,p,x,y,1\n")).notes
    assert "other columns: 'id'" in notes


# -- two parts ----------------------------------------------------------------------------------------


def rows(*labels):
    return [Example(f"text {i}", None, label, f"f:{i}") for i, label in enumerate(labels, start=1)]


def test_what_is_said_of_labels():
    assert check_labels(rows("a", "b"), rows("b", "a", "a")) == ()
    [note] = check_labels(rows("pos", "neg"), rows("neg", "Pos", "Pos", "x"))
    assert note == "labels not in the training data: 'Pos' 2, 'x' 1; the first in f:2; did you mean pos?"
    assert check_labels(rows(("a", "b"), ()), rows(("a", "c"))) == (
        "labels not in the training data: 'c' 1; the first in f:1",
    )
    assert check_labels(rows(1.0, 2.0), rows(3.0)) == ()
    assert check_labels([Tagged(("w",), ("B-x",), "f:1")], [Tagged(("w", "v"), ("I-x", "O"), "f:9")]) == ()
    for train, dev, said in (
        (rows("a", "a"), rows("a"), "f:1: every training row has the label 'a', as this one"),
        (rows(("a",), ("a",)), rows(("a",)), "f:1: every training row has the label"),
        (rows(3.0, 3.0), rows(1.0), "f:1: every training row has the label '3', as this one"),
        (rows(None, None), rows("a"), "f:1: every training row has no label, as this one"),
        (rows("0", "1"), rows("no", "yes"), "f:1: the labels here are 'no', 'yes', in training '0', '1'; none"),
        ([Tagged(("w",), ("O",), "f:1")], [], "f:1: no training sentence has a tag but O, this one included"),
    ):
        with pytest.raises(DataError) as caught:
            check_labels(train, dev)
        assert said in str(caught.value)


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.25, 0.5, 0.9])
def test_a_split_has_each_class_by_its_size(fraction):
    rng = random.Random(0)
    examples = rows(*rng.choices("abcd", weights=(60, 30, 9, 1), k=997), "once")
    train, dev = split_dev(examples, fraction, seed=3)
    assert len(dev) == int(998 * fraction + 0.5)
    assert sorted(train + dev, key=lambda each: int(each.where[2:])) == examples
    assert [examples.index(each) for each in dev] == sorted(examples.index(each) for each in dev)
    sizes = Counter(each.label for each in examples)
    for label, count in Counter(each.label for each in dev).items():
        assert abs(count - sizes[label] * fraction) < 2
    assert {each.label for each in train} == set(sizes)
    assert split_dev(examples, fraction, seed=3) == (train, dev)
    assert split_dev(examples, fraction, seed=4) != (train, dev)


def test_a_split_is_the_same_everywhere():
    _, dev = split_dev(rows(*"ababababab"), 0.4, seed=0)
    assert [each.where for each in dev] == ["f:2", "f:5", "f:7", "f:8"]


def test_small_classes_stay_in_train():
    for seed in range(20):
        train, dev = split_dev(rows(*"aabbccddee", "f"), 0.45, seed)
        assert len(dev) == 5
        assert {each.label for each in train} == set("abcdef")
        train, dev = split_dev(rows(*"aabb", *"cdefgh"), 0.9, seed)
        assert sorted(each.label for each in dev) == ["a", "b"]


def test_a_label_among_several_stays_in_train_and_is_in_each_fold():
    """Splits are by the rarest label of each row."""
    for seed in range(20):
        several = rows(*[("a", "b")] * 30, *[("a",)] * 30, *[("a", "c")] * 2, ("a", "b", "d"), ())
        train, _ = split_dev(several, 0.4, seed)
        assert {label for each in train for label in each.label} == set("abcd")
        for rest, fold in folds(several, 2, seed):
            assert all(any("c" in each.label for each in part) for part in (rest, fold))


def test_a_dev_part_of_labels_that_each_row_has_alone():
    """As keywords: there is nothing to stratify by."""
    alone = rows(*[(f"word {i}", f"other {i}") for i in range(50)])
    train, dev = split_dev(alone, 0.1, 0)
    assert (len(train), len(dev)) == (45, 5)
    with pytest.raises(DataError, match="classes too small"):
        split_dev(rows(*(f"word {i}" for i in range(50))), 0.1, 0)
    with pytest.raises(DataError, match="none of 1 rows can be held out"):
        split_dev(alone[:1], 0.5, 0)
    with pytest.raises(DataError, match="none of 1 rows can be held out"):
        split_dev([Tagged(("w",), ("O",), "f:1")], 0.5, 0)
    questions = [Question(str(i), "q", f"c{i // 3}", ((0, "c"),), f"f:{i}") for i in range(99)]
    only = Question("99", "q", "c99", (), "f:99")
    for seed in range(10):
        train, dev = split_dev([*questions, only], 0.1, seed)
        assert len(dev) == 9
        assert only in train


def test_groups_stay_together():
    examples = rows(*("ab"[i % 2] for i in range(300)))
    groups = [i // 7 for i in range(300)]
    train, dev = split_dev(examples, 0.2, seed=1, groups=groups)
    assert 50 <= len(dev) <= 60
    of = dict(zip(examples, groups, strict=True))
    assert not {of[each] for each in train} & {of[each] for each in dev}


def test_rows_of_the_same_text_stay_together_where_they_can():
    examples = [Example(f"text {i % 40}", label="ab"[i % 2], where=f"f:{i}") for i in range(100)]
    train, dev = split_by_text(examples, 0.2, seed=0)
    assert 15 <= len(dev) <= 20
    assert not {each.text for each in train} & {each.text for each in dev}
    assert split_by_text(examples, 0.2, 0, groups=range(100)) == split_dev(examples, 0.2, 0)
    two = [Example("ab"[i % 2], label="ab"[i % 2], where=f"f:{i}") for i in range(20)]
    assert split_by_text(two, 0.2, 0) == split_dev(two, 0.2, 0)  # by text one label would have none to learn from


def test_answers_of_two_files():
    """Questions need no answer in common; what training has none of is said."""
    one, two = Question("1", "q", "c", ((0, "c"),), "f:1"), Question("2", "q", "d", ((0, "d"),), "f:2")
    none = Question("3", "q", "e", (), "f:3")
    assert check_labels([one, one], [two]) == check_labels([one, none], [two, none]) == ()
    assert check_labels([one], [two, none]) == (
        "questions without an answer: 1, but none in training: each will get one",
    )
    with pytest.raises(DataError, match="f:3: no training question has an answer, this one included"):
        check_labels([none, none], [one])


def test_a_split_of_what_has_no_classes():
    train, dev = split_dev(rows(*(i / 10 for i in range(50))), 0.1, seed=0)
    assert (len(train), len(dev)) == (45, 5)
    questions = [Question(str(i), "q", f"c{i // 2}", (), f"f:{i}") for i in range(20)]
    train, dev = split_dev(questions, 0.3, seed=0)
    assert len(dev) == 6
    assert not {each.context for each in train} & {each.context for each in dev}
    assert len(split_dev(rows(*"ab" * 15), 0.1, 0, groups=[i // 6 for i in range(30)])[1]) == 6  # the least there is


@pytest.mark.parametrize(
    ("examples", "fraction", "groups", "error", "said"),
    [
        (rows("a", "b"), 0, None, ConfigError, "give one between 0 and 1"),
        (rows("a", "b"), float("nan"), None, ConfigError, "give one between 0 and 1"),
        (rows("a", "b"), 0.5, [1], ConfigError, "1 groups and 2 examples"),
        (rows("a", "b"), 0.5, None, DataError, "none of 2 rows can be held out"),
        (rows("a", "a"), 0.5, [1, 1], DataError, "none of 2 rows can be held out"),
        ([], 0.5, None, DataError, "none of 0 rows can be held out"),
    ],
)
def test_a_split_that_cannot_be(examples, fraction, groups, error, said):
    with pytest.raises(error, match=said):
        split_dev(examples, fraction, 0, groups)


def test_texts_that_stand_there_twice():
    one = [
        Example("So it is", None, "a", "f:1"),
        Example("so  it IS", None, "b", "f:2"),
        Example("so", "it is", "a", "f:3"),
    ]
    assert duplicates(one) == (1, 1, (("f:2", "f:1"),))
    assert duplicates([one[0], one[0]]).count == 1
    assert overlap(one[:1], one) == (2, 1, (("f:1", "f:1"), ("f:2", "f:1")))
    assert overlap(one[2:], one[:2]) == (0, 0, ())
    assert overlap(one[:2], one[:1]).first == (("f:1", "f:1"),)  # the first of the same
    words = [
        Tagged(("a", "b"), ("O", "O"), "f:1"),
        Tagged(("a b",), ("O",), "f:2"),
        Tagged(("A", "b"), ("O", "O"), "f:3"),
    ]
    assert duplicates(words) == (1, 0, (("f:3", "f:1"),))
    questions = [Question("1", "q", "c", (), "f:1"), Question("2", "q", "c", ((0, "c"),), "f:2")]
    assert duplicates(questions) == (1, 1, (("f:2", "f:1"),))
    assert len(duplicates([one[0]] * 9).first) == 3


def test_pairs_that_share_one_text_are_counted():
    """In the same place; and not those that share both."""
    train = [Example("a man", "he walks"), Example("a dog", "it runs")]
    dev = [Example("A  man", "it sleeps"), Example("a man", "he walks"), Example("it runs", "a dog")]
    assert share_a_text(train, [*dev, Example("a cat", "it runs"), Example("a man")]) == 2
    assert share_a_text(train, dev[1:]) == 0


# -- real files ---------------------------------------------------------------------------------------


def real(name):
    if not (DATA / name).exists():
        pytest.skip("no such data")
    return DATA / name


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("sst2/train.tsv", {"0": 3310, "1": 3610}),
        ("sst2/dev.tsv", {"0": 428, "1": 444}),
        ("sst2/test.tsv", {"0": 912, "1": 909}),
        ("sst2/glue_train.tsv.xz", {"0": 29780, "1": 37569}),
        ("sst2/glue_dev.tsv", {"0": 428, "1": 444}),
        ("sms-spam/SMSSpamCollection", {"ham": 4827, "spam": 747}),
    ],
)
def test_real_texts(name, labels):
    data = classes(real(name))
    assert Counter(each.label for each in data.examples) == labels
    assert data.left_out == ()
    assert not any("\r" in each.text for each in data.examples)


@pytest.mark.parametrize(("name", "count"), [("train", 5749), ("dev", 1500), ("test", 1379)])
def test_real_scores(name, count):
    data = texts("regression", text=6, pair=7, label=5)(real(f"sts-b/sts-{name}.csv"))
    assert (len(data.examples), data.left_out) == (count, ())
    assert all(0 <= each.label <= 5 and each.pair for each in data.examples)


@pytest.mark.parametrize(
    ("name", "count", "answerable"),
    [
        ("xquad.en.json", 1190, 1190),
        ("subjqa_train.json.xz", 4906, 2030),
        ("subjqa_dev.json.xz", 546, 234),
        ("subjqa_test.json.xz", 1251, 508),
    ],
)
def test_real_questions(name, count, answerable):
    data = read_questions(real(f"qa/{name}"))
    assert (len(data.examples), sum(bool(each.answers) for each in data.examples)) == (count, answerable)
    assert data.left_out == ()
    assert len({each.id for each in data.examples}) == count
    assert all(each.context.startswith(text, start) for each in data.examples for start, text in each.answers)


def test_a_part_of_real_texts():
    examples = classes(real("sms-spam/SMSSpamCollection")).examples
    train, dev = split_dev(examples, 0.1, seed=0)
    assert Counter(each.label for each in dev) == {"ham": 482, "spam": 75}
    assert check_labels(train, dev) == ()
    assert duplicates(examples).count > 400 > overlap(train, dev).count > 20
    train, dev = split_by_text(examples, 0.1, seed=0)
    assert Counter(each.label for each in dev) == {"ham": 482, "spam": 75}
    assert overlap(train, dev).count == 0


@pytest.mark.parametrize("k", [2, 5])
def test_folds_are_parts_with_equal_shares_of_each_label(k):
    examples = [Example(f"text {i}", label=("a", "b", "c")[(i % 10 > 5) + (i % 10 > 8)]) for i in range(100)]
    parts = list(folds(examples, k, seed=1))
    assert sorted(each for _, part in parts for each in part) == sorted(examples)
    for rest, part in parts:
        assert len(rest) + len(part) == 100
        assert not {*rest} & {*part}
        assert [each for each in examples if each in {*rest}] == rest
        for label, count in Counter(each.label for each in examples).items():
            assert abs(sum(each.label == label for each in part) - count / k) < 1
    assert parts == list(folds(examples, k, seed=1))
    assert parts != list(folds(examples, k, seed=2))


def test_folds_keep_together_what_belongs_together():
    examples = [Example(f"text {i % 30}", label="ab"[i % 2], where=f"row {i}") for i in range(60)]
    for _, part in folds(examples, 3, 0):
        assert all(count == 2 for count in Counter(each.text for each in part).values())
    groups = [i // 10 for i in range(60)]
    held = [{int(each.where[4:]) // 10 for each in part} for _, part in folds(examples, 3, 0, groups)]
    assert sorted(group for own in held for group in own) == [0, 1, 2, 3, 4, 5]
    with pytest.raises(DataError, match="6 groups are too few for 7 folds"):
        list(folds(examples, 7, 0, groups))


@pytest.mark.parametrize("seed", range(5))
def test_folds_of_groups_of_any_size_are_about_equal(seed):
    groups = [0] * 100 + [1] * 100 + [2] * 100 + [3, 4, 5]
    examples = [Example(f"text {i}", label="ab"[i % 2], where=f"row {i}") for i in range(len(groups))]
    assert [len(part) for _, part in folds(examples, 3, seed, groups)] == [101, 101, 101]
    alike = [i // 5 for i in range(60)]  # those of one size are dealt by their first label
    labelled = [Example(f"text {i}", label="ab"[i // 5 % 2], where=f"row {i}") for i in range(60)]
    for _, part in folds(labelled, 3, seed, alike):
        assert Counter(each.label for each in part) == {"a": 10, "b": 10}


@pytest.mark.parametrize("seed", range(5))
def test_folds_of_groups_have_equal_shares_of_each_label(seed):
    """Where those of one label are larger than those of another."""
    groups = [i // 20 for i in range(160)] + [100 + i // 8 for i in range(40)]
    examples = [Example(f"text {i}", label="ab"[i >= 160], where=f"row {i}") for i in range(200)]
    counts = [Counter(each.label for each in part) for _, part in folds(examples, 5, seed, groups)]
    assert [count["b"] for count in counts] == [8] * 5
    assert {count["a"] for count in counts} == {20, 40}


@pytest.mark.parametrize("seed", range(5))
def test_questions_without_an_answer_are_as_frequent_in_each_part(seed):
    """A threshold is chosen on the part that is held out."""
    answers = (((0, "c"),), ())
    questions = [Question(str(i), "q", f"c{i}", answers[i % 2], f"f:{i}") for i in range(40)]
    for _, part in [split_dev(questions, 0.1, seed), *folds(questions, 10, seed)]:
        assert sorted(bool(each.answers) for each in part) == [False, False, True, True]

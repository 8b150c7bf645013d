"""Rows of labelled files: what they hold, what is decided by looking, and what is refused by file and line."""

import csv
import gzip
import io
import json
import lzma
import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest

from minilm.errors import DataError
from minilm.labelled.examples import read_choices, read_texts
from minilm.labelled.spans import read_tagged
from minilm.labelled.tables import read_table, table_of

DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture
def table(tmp_path):
    """table(content, name, header): the Table of such a file."""

    def read(content, name="rows.csv", header=None):
        raw = content if isinstance(content, bytes) else content.encode()
        pack = {".gz": gzip.compress, ".xz": lzma.compress}.get(Path(name).suffix, bytes)
        (tmp_path / name).write_bytes(pack(raw))
        return read_table(tmp_path / name, header)

    return read


def values(table):
    return [[*row.cells.values()] for row in table.rows]


CSV = 'text,label\nfine,1\n"one, two",0\n"a ""quoted"" word",1\n"two\nlines",0\nlast,1\n'


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz", "rows.csv.xz", "ROWS.CSV", "rows"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_csv(table, name, end):
    read = table(CSV.replace("\n", end), name)
    assert read.columns == ("text", "label")
    assert values(read) == [
        *(["fine", "1"], ["one, two", "0"], ['a "quoted" word', "1"], ["two\nlines", "0"], ["last", "1"])
    ]
    assert [row.where.rsplit(":", 1)[1] for row in read.rows] == ["2", "3", "4", "5", "7"]
    assert all(f"{name}:" in row.where for row in read.rows)
    assert "rows over several lines, in quotes: 1, the first from line 5" in read.notes


@pytest.mark.parametrize(
    ("content", "columns", "note"),
    [
        ("text,label\na,1\n", ("text", "label"), "names the columns"),
        ("Text;Class\na;1\nb;0\n", ("Text", "Class"), "names the columns"),
        ("Review Text,x\na,1\nb,0\n", ("Review Text", "x"), "names the columns"),  # numbers below x
        ("remark,kind\nso good,x\nbad,y\nok,x\nno,y\n", ("remark", "kind"), "names the columns"),  # few values below
        ("customer,message_text\nAnn,so good\n", ("customer", "message_text"), "names the columns"),
        ("I just got your message,ham\nwell,spam\n", ("1", "2"), "no header"),
        ("This is a great review,1\nbad,0\n", ("1", "2"), "no header"),
        ("what a long sentence,x\nbad,y\n", ("1", "2"), "no header"),
        ("good_review,so good\nbad_review,bad\ngood_review,fine\n", ("1", "2"), "no header"),
        (",remark,kind\n0,so good,x\n1,bad,y\n", ("(index)", "remark", "kind"), "names the columns"),
        ("0,1\nso good,x\nbad,y\n", ("0", "1"), "names the columns"),  # pandas numbers columns without names
        (",0,1\n0,so good,x\n1,bad,y\n", ("(index)", "0", "1"), "names the columns"),
        ("0,1\n1,0\n0,1\n", ("1", "2"), "no header"),  # numbers above numbers
        ("Quality,#1 ID,#1 String\n1,7,a\n0,8,b\n", ("Quality", "#1 ID", "#1 String"), "names the columns"),
        (",good film\n1,bad film\n1,ok\n", ("1", "2"), "no header"),  # a row without a label
        ("label,text\n1,text\n0,b\n", ("label", "text"), "names the columns"),  # a text that is a name
        ("ham,so good\nspam,bad\nham,fine\n", ("1", "2"), "no header"),  # a first cell that is a value below
        ("y,so good\nn,bad\ny,fine\n", ("1", "2"), "no header"),
        ("1,so good\n0,bad\n", ("1", "2"), "no header"),
        ("what a long sentence this is,x\nbad,y\n", ("1", "2"), "no header"),
        ("good,fine\nbad,poor\n", ("1", "2"), "no header"),  # nothing says that these are names
        ("good movie\nbad movie\n", ("1",), "no header"),
        ("a,b\n", ("1", "2"), "no header"),
        ("1,2\n1,2\n", ("1", "2"), "no header"),
    ],
)
def test_whether_there_is_a_header_is_seen_and_said(table, content, columns, note):
    read = table(content)
    assert read.columns == columns
    assert any(note in each for each in read.notes)
    assert len(read.rows) == content.count("\n") - (note == "names the columns")


def test_a_header_by_word_of_the_caller(table):
    assert table("so,it\nis,1\n", header=True).columns == ("so", "it")
    assert len(table("text,label\na,1\n", header=False).rows) == 2


@pytest.mark.parametrize(
    ("content", "cell", "note"),
    [
        ('sentence\tlabel\n"open" he said\t1\n', '"open" he said', "quotes are text"),
        ('sentence\tlabel\n"all of it"\t1\n', '"all of it"', "quotes are text"),
        ('sentence\tlabel\n"a ""quoted"" word"\t1\n', 'a "quoted" word', "quotes enclose cells"),
        ('sentence\tlabel\nan "open one\t1\n', 'an "open one', "quotes are text"),
    ],
)
def test_quotes_of_a_tsv(table, content, cell, note):
    read = table(content, "rows.tsv")
    assert read.rows[0].cells == {"sentence": cell, "label": "1"}
    assert note in read.notes


@pytest.mark.parametrize(
    ("content", "columns", "first"),
    [
        ('"text"\t"label"\n"film 3"\t1\n"film 4"\t0\n', ("text", "label"), ["film 3", "1"]),  # R's write.table
        ('"id"\t"text"\t"n"\n"1"\t"film 3"\t1\n"2"\tNA\t0\n', ("id", "text", "n"), ["1", "film 3", "1"]),
        ('"film 3 was"\t1\n"film 4 is"\t0\n""\t0\n', ("1", "2"), ["film 3 was", "1"]),
        ('"text"\t"label"\nfilm\t1\n', ("text", "label"), ["film", "1"]),
        ('"all" of it\t1\n"none"\t0\n', ("1", "2"), ['"all" of it', "1"]),  # GLUE's
        ('"so"\t1\nso\t0\n', ("1", "2"), ['"so"', "1"]),
        ('"one"\n"two"\n', ("1",), ['"one"']),
    ],
)
def test_quotes_of_a_tsv_may_enclose_some_columns(table, content, columns, first):
    read = table(content, "rows.tsv")
    assert read.columns == columns
    assert [*read.rows[0].cells.values()] == first


def test_tabs_and_line_ends_in_quoted_cells_of_a_tsv(table):
    """As pandas writes them, and `predict`."""
    read = table('text\tlabel\nso it is\t1\n"a tab\there"\t0\n"two\nlines"\t1\n', "rows.tsv")
    assert [row.cells["text"] for row in read.rows] == ["so it is", "a tab\there", "two\nlines"]
    assert "quotes enclose cells" in read.notes


def test_a_stray_quote_joins_no_rows_of_a_tsv(table):
    with pytest.raises(DataError, match=r"rows\.tsv:3: 3 cells, and there are 2 columns"):
        table('sentence\tlabel\n"a\t1\nb\tx\t0\nc"\t1\nd\t0\n', "rows.tsv")


def test_nothing_is_said_of_quotes_where_there_are_none(table):
    assert table("sentence\tlabel\nso it is\t1\n", "rows.tsv").notes == ("its first row names the columns",)


def test_quotes_of_a_tsv_are_looked_at_to_its_end(table):
    read = table("sentence\tlabel\n" + "so\t1\n" * 5000 + '"a ""quoted"" word"\t1\n', "rows.tsv")
    assert read.rows[-1].cells["sentence"] == 'a "quoted" word'


@pytest.mark.parametrize(
    ("content", "name", "cells", "said"),
    [
        ("text\tlabel\na\t1\n", "rows.csv", ["a", "1"], "cells are separated by tabs"),
        ("a b;4,5\nc;1,0\n", "rows.csv", ["a b", "4,5"], "cells are separated by semicolons"),
        ("a;1\nb;0\n", "rows.csv", ["a", "1"], "cells are separated by semicolons"),
        ("good, really;1\nb;0\nc;1\n", "rows.csv", ["good, really", "1"], "cells are separated by semicolons"),
        ("a,1\nb,0\n", "rows.tsv", ["a", "1"], "cells are separated by commas"),
        ("one, two\nthree, four\n", "rows.txt", ["one, two"], "no header: columns are numbered from 1"),
        ("Hello, there\nno comma\n", "rows.tsv", ["Hello, there"], "no header: columns are numbered from 1"),
        ("a\tb, c\n1\td\n", "rows.csv", ["a", "b, c"], "cells are separated by tabs"),
        ("1\ta\n0\tb\tmore\n1\tc\n", "rows.tsv", ["1", "a"], "rows with more than 2 cells: 1, the first on line 2"),
        ("text,label\n\na,1\n , \n\n", "rows.csv", ["a", "1"], "blank rows: 3"),
        ('{"text": "a"}\n\n{"text": "b"}\n', "rows.jsonl", ["a"], "blank rows: 1"),
    ],
)
def test_what_is_said(table, content, name, cells, said):
    read = table(content, name)
    assert values(read)[0] == cells
    assert any(note.startswith(said) for note in read.notes)


def test_line_ends_and_odd_characters_stay_where_they_are(table):
    text = "a\u2028b\u2029c\x0bd\x0ce\x85f\x1cg"
    read = table(f"text,label\r\n{text},1\r\n\r\nlast,0", "rows.csv")
    assert values(read) == [[text, "1"], ["last", "0"]]
    assert [row.where[-2:] for row in read.rows] == [":2", ":4"]
    assert table("\ufefftext,label\na,1\n").columns == ("text", "label")  # a byte order mark
    assert table("text,label\n[SEP] [MASK],1\n").rows[0].cells["text"] == "[SEP] [MASK]"
    assert table('text,label\n"old\rmac",1\n').rows[0].cells["text"] == "old\rmac"
    assert table("text\tlabel\nold\rmac\t1\n", "rows.tsv").rows[0].cells["text"] == "old\rmac"


def test_a_cell_of_millions_of_characters(table):
    long = "x" * 5_000_000
    assert values(table(f"text,label\n{long},1\n")) == [[long, "1"]]
    assert values(table(f'text,label\n"{long}, ""{long}",1\n')) == [[f'{long}, "{long}', "1"]]


def test_what_pythons_csv_writes_is_read(table):
    rng = random.Random(0)
    pieces = ["plain", ", ", '"', '""', "\n", "\n\n", " ", "\t", "'", ";", "\u2028", "é"]
    for delimiter in ",;":
        rows = [[str(i), *("".join(rng.choices(pieces, k=rng.randint(1, 6))) for _ in range(2))] for i in range(400)]
        stream = io.StringIO(newline="")
        csv.writer(stream, delimiter=delimiter).writerows([["id", "text", "pair"], *rows])
        assert values(table(stream.getvalue().replace("id", "label", 1))) == rows


@pytest.mark.parametrize(
    ("content", "swallowed"),
    [
        ('text,label\n"a,1\nb,0\nc,1\nd",0\n', True),
        ('text,label\nx,1\ny,0\n"a,1\nb",0\n', True),
        ('text,label\nx,1\ny,0\n"a,1\n\nb",0\n', True),
        ('text,score\nx,1.5\ny,2.5\n"a,3.5\nb",4.5\n', True),
        ('label,text\n1,x\n0,y\n1,"a\n0,b"\n', True),
        ('id,text,label\n1,x,a\n2,y,b\n3,"so,a\n4,it",b\n', True),
        ('text,label\nx,1\ny,0\n"Dear all, hello\nGoodbye",0\n', False),
        ('text,label\nx,1\ny,0\n"roses, red\nviolets, blue\nsugar, sweet\nand you",0\n', False),
        ('label,text\n1,x\n0,y\n1,"roses\nred, blue"\n', False),
        ("text,label\n" + "x,1\ny,0\n" * 4 + '"Dear all, hello\nGoodbye",0\n', False),
        ('text,label\n"two\nlines",1\n"two\nmore",1\n', False),
    ],
)
def test_a_stray_quote_swallows_no_rows(table, content, swallowed):
    if swallowed:
        line = next(i for i, text in enumerate(content.split("\n"), start=1) if '"' in text)
        with pytest.raises(DataError, match=rf"rows.csv:{line}: the quote opened here spans"):
            table(content)
    else:
        assert "\n" in "".join(values(table(content))[-1])


JSONL = '{"text": "a", "label": 1}\n\n{"label": [0], "text": "b"}\n'


def test_jsonl_and_json(table):
    read = table(JSONL, "rows.jsonl")
    assert read.columns == ("text", "label")
    assert [(row.where[-2:], row.cells["text"]) for row in read.rows] == [(":1", "a"), (":3", "b")]
    assert read.rows[1].cells["label"] == [0]
    rows = [json.loads(line) for line in JSONL.splitlines() if line]
    for name, content in (("rows.json", rows), ("rows.json.gz", {"version": 1, "data": rows})):
        read = table(json.dumps(content, indent=1), name)
        assert [row.cells for row in read.rows] == rows
        assert [row.where.rsplit(f"{name}: ")[1] for row in read.rows] == ["row 1", "row 2"]


def test_columns_by_name_or_number(table):
    read = table("text,label,7\na,1,x\n")
    assert [read.column(name) for name in ("label", 1, "2", "7", 3)] == ["label", "text", "label", "7", "7"]
    for name, mend in (("lable", "did you mean label"), (0, "number from 1"), (4, "number"), (-1, "number"), ("", "n")):
        with pytest.raises(DataError, match=rf"rows.csv: no column .* \(it has 'text', 'label', '7'\);.*{mend}"):
            read.column(name)


# -- rows that a caller has in hand -------------------------------------------------------------------


class Frame:
    """As pandas' DataFrame."""

    def __init__(self, columns, rows):
        self.columns, self.rows = columns, rows

    def to_dict(self, orient):
        assert orient == "records"
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


class Dataset(list):
    """As that of `datasets`, whose to_dict gives columns."""

    column_names = ("text", "label")

    def to_dict(self):
        raise AssertionError


class Polars:
    """As a DataFrame of polars, whose to_dict gives columns."""

    columns = ("text", "label")

    def __init__(self, rows):
        self.rows = rows

    def to_dict(self):
        raise AssertionError

    def to_dicts(self):
        return self.rows


class Series(list):
    """As pandas' Series."""

    def to_dict(self):
        return dict(enumerate(self))


def test_rows_in_hand():
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": 0}]
    for given in (rows, tuple(rows), iter(rows), Dataset(rows), Polars(rows), Frame([*rows[0]], [["a", 1], ["b", 0]])):
        read = table_of(given)
        assert read.columns == ("text", "label")
        assert [(row.where, row.cells) for row in read.rows] == [("row 1", rows[0]), ("row 2", rows[1])]
    assert [row.where for row in table_of(rows, "dev").rows] == ["dev: row 1", "dev: row 2"]
    read = table_of(Frame(["text", 2], [["a", float("nan")], [None, 0.0]]))
    assert values(read) == [["a", None], [None, 0.0]]
    assert read.columns == ("text", "2")
    assert values(table_of(Frame(["choices"], [[np.array(["a", "b"])]]))) == [[["a", "b"]]]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "the rows: holds no row"),
        ({"text": ["a"]}, "the rows: a dict; give a list of dicts"),
        ("rows.csv", "the rows: a str; give a list of dicts, one a row"),
        (None, "the rows: a NoneType; give"),
        (Series(["a", "b"]), "row 1: holds str, not an object; write each row as {column: value}"),
        ([{"text": "a"}, "b"], "row 2: holds str, not an object"),
        ([{"text": "a"}, {3: "b"}], "row 2: column 3 is not named by a string"),
        (Frame(["text", "text"], [["a", "b"]]), "the rows: column 'text' appears twice"),
    ],
)
def test_what_is_no_rows(rows, said):
    with pytest.raises(DataError) as caught:
        table_of(rows)
    assert said in str(caught.value)


def test_pandas_and_parquet(tmp_path):
    pandas, _ = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    frame = pandas.DataFrame({"text": pandas.array(["a", None], dtype="string"), "label": [1.5, float("nan")]})
    assert values(table_of(frame)) == [["a", 1.5], [None, None]]
    answers = {"text": np.array(["a"]), "answer_start": np.array([0], np.int32)}
    (row,) = table_of(pandas.DataFrame({"question": ["q"], "context": ["a"], "answers": [answers]})).rows
    assert row.cells["answers"] == {"text": ["a"], "answer_start": [0]}
    pandas.DataFrame({"text": ["a", "b"], "tags": [["O"], ["O", "B-x"]]}).to_parquet(tmp_path / "rows.parquet")
    read = read_table(tmp_path / "rows.parquet")
    assert values(read) == [["a", ["O"]], ["b", ["O", "B-x"]]]
    assert read.rows[1].where.endswith("rows.parquet: row 2")
    raw = (tmp_path / "rows.parquet").read_bytes()
    for damaged in (raw[:-20], b"text,label\n", b"", raw[:20] + b"\0" * 40 + raw[60:]):
        (tmp_path / "rows.parquet").write_bytes(damaged)
        with pytest.raises(DataError, match=r"rows\.parquet: not parquet, or damaged"):
            read_table(tmp_path / "rows.parquet")


def test_a_dataset_gives_the_names_of_its_classes(tmp_path):
    datasets = pytest.importorskip("datasets")
    Value, List, ClassLabel = (getattr(datasets, name) for name in ("Value", "List", "ClassLabel"))
    of_texts = datasets.Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    rows = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, -1]}, features=of_texts)
    for form in (None, "numpy"):
        found = read_texts(table_of(rows.with_format(form)), "classification")
        assert [(each.text, each.label) for each in found.examples] == [("a", "neg"), ("b", "pos")]
        assert found.left_out == ("row 3: no label",)
    assert [each.label for each in read_texts(table_of(rows), "regression").examples] == [0.0, 1.0]
    stars = datasets.Features({"text": Value("string"), "label": ClassLabel(names=["1", "2", "3"])})
    stars = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 2]}, features=stars)
    assert [each.label for each in read_texts(table_of(stars), "regression").examples] == [1.0, 3.0]
    hidden = rows.set_format("numpy", columns=["text"]) or rows
    assert table_of(hidden).columns == ("text",)
    rows.reset_format()
    louder = rows.with_transform(lambda batch: batch | {"text": [text.upper() for text in batch["text"]]})
    assert table_of(louder).rows[0].cells["text"] == "A"
    flags = datasets.Features(
        {"text": Value("string"), "rude": ClassLabel(names=["no", "rude"]), "kind": Value("int32")}
    )
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "rude": [0, 1], "kind": [1, 1]}, features=flags)
    assert [each.label for each in read_texts(table_of(rows), "multilabel").examples] == [("kind",), ("rude", "kind")]
    rows.to_parquet(tmp_path / "flags.parquet")
    stored = read_table(tmp_path / "flags.parquet")
    assert stored.classes == {"rude": ["no", "rude"]}
    with pytest.raises(DataError, match="column 'rude' holds the class 2, and there are 2 names"):
        stored.named("rude", 2)
    of_pairs = datasets.Features({"premise": Value("string"), "choice1": Value("string"), "choice2": Value("string")})
    of_pairs["label"] = ClassLabel(names=["choice1", "choice2"])
    columns = {"premise": ["p", "q"], "choice1": ["a", "b"], "choice2": ["b", "c"], "label": [1, -1]}
    found = read_choices(table_of(datasets.Dataset.from_dict(columns, features=of_pairs)), origin=1)
    assert ([each.label for each in found.examples], found.left_out) == ([1], ("row 2: no label",))
    of_words = datasets.Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=["O", "B-X"]))})
    rows = datasets.Dataset.from_dict({"tokens": [["a", "b"]], "ner_tags": [[0, 1]]}, features=of_words)
    (sentence,) = read_tagged(table_of(rows)).examples
    assert (sentence.words, sentence.tags) == (("a", "b"), ("O", "B-X"))
    assert read_tagged(table_of(rows.remove_columns("ner_tags")), labelled=False).examples[0].words == ("a", "b")


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"rows\.parquet: parquet is read by pyarrow; pip install pyarrow"):
        read_table(tmp_path / "rows.parquet")


# -- what is refused ----------------------------------------------------------------------------------

MALFORMED = [
    # (name, content, what is said)
    ("rows.csv", "", "rows.csv: holds no row"),
    ("rows.csv", "\n\n  \n", "rows.csv: holds no row"),
    ("rows.csv", "text,label\n", "rows.csv:1: a header and no row"),
    ("rows.csv", "text,label\na,1\nb\n", "rows.csv:3: 1 cells, and there are 2 columns (text, label)"),
    ("rows.csv", "text,label\na,1\nb,0,c\n", "rows.csv:3: 3 cells"),
    ("rows.csv", "1,a\n0\n", "rows.csv:2: 1 cells, and there are 2 columns (1, 2)"),
    ("rows.csv", "1,a\n0,b\n1,c, and d\n", "rows.csv:3: 3 cells"),
    ("rows.tsv", "text\tlabel\na\t1\nb\t0\tc\n", "rows.tsv:3: 3 cells"),
    ("rows.csv", "text,text\na,1\n", "rows.csv:1: column 'text' appears twice"),
    ("rows.csv", "text,,\na,1,2\n", "rows.csv:1: column 2 has no name"),
    ("rows.csv", "text,label,\na,1,\n", "rows.csv:1: column 3 has no name"),
    ("rows.csv", "text,label\na,1\ntext,label\nb,0\n", "rows.csv:3: the header is repeated here"),
    ("rows.csv", 'text,label\nx,0\n"a,1\nb,0\n', "rows.csv:3: a quote that is never closed"),
    ("rows.csv", 'text,label\nx,0\n"a" b,1\nc,0\n', "rows.csv:3: text follows the quote that closes this one; double"),
    (
        "rows.csv",
        'text,label\n"a,1\nb,0\n"c, d",1\n',
        "rows.csv:2: text follows the quote that closes this one on line 4",
    ),
    ("rows.csv", b"text,label\ncaf\xe9,1\n", "rows.csv:2: not UTF-8 (byte 0xe9); convert it"),
    ("rows.csv", "text,label\na,1\n".encode("utf-16"), "rows.csv:1: UTF-16; convert it, for example with iconv"),
    ("rows.csv.gz", "text,label\na,1\n".encode("utf-16"), "rows.csv.gz:1: UTF-16; convert it"),
    ("rows.csv", "text,label\na,1\n".encode("utf-32"), "rows.csv:1: UTF-32; convert it, for example with iconv"),
    ("rows.csv", b"\0\0\xfe\xff" + "text,label\na,1\n".encode("utf-32-be"), "rows.csv:1: UTF-32; convert it"),
    ("rows.csv", "text,label\na,1\n".encode("utf-16-be"), "rows.csv:1: a NUL byte"),
    ("rows.csv", "text,label\na\0b,1\n", "rows.csv:2: a NUL byte"),
    ("rows.csv", "text,label\ra,1\rb,0\r", "rows.csv:1: its lines end in \\r alone; convert it"),
    ("rows.csv", "text,label\na,1\rb,0\n", "rows.csv:2: a \\r in a line"),
    ("rows.tsv", "x\t1\ny\t0\rz\t1\rw\t0\nv\t1\n", "rows.tsv:2: a \\r in a line, with more rows behind it"),
    ("rows.csv", '\n{"text": "good film", "label": 1}\n', "rows.csv:2: a JSON object, and no cells; name the file"),
    ("rows.tsv", '{"text": "good film", "label": 1}\n', "rows.tsv:1: a JSON object, and no cells; name the file"),
    ("rows.csv", b"text,label\na,1\n\xe4\xb8", "rows.csv:3: not UTF-8 (ends inside a character)"),
    ("rows.csv", gzip.compress(b"text\na\n", mtime=0), "rows.csv:1: compressed by gzip; let its name end in .gz"),
    ("rows.csv", lzma.compress(b"text,label\na,1\n"), "rows.csv:1: compressed by xz; let its name end in .xz"),
    ("rows.csv", b"PK\x03\x04 and so on", "rows.csv:1: a zip or xlsx; save it as csv"),
    ("rows.xlsx", b"PK\x03\x04 and so on", "rows.xlsx:1: a zip or xlsx; save it as csv"),
    ("rows.csv", b"PAR1\x15\x04", "rows.csv:1: parquet; let its name end in .parquet"),
    ("rows.pdf", "%PDF-1.4\n", "rows.pdf:1: a pdf"),
    ("rows.jsonl", "", "rows.jsonl: holds no row"),
    ("rows.jsonl", '{"text": "a"}\n[1]\n', "rows.jsonl:2: holds list, not an object"),
    ("rows.jsonl", '{"text": "a"}\n{"text": \n', "rows.jsonl:2: not JSON"),
    ("rows.jsonl", "text,label\na,1\n", "rows.jsonl:1: not JSON"),
    ("rows.jsonl", '{"text": "a", "text": "b"}\n', "rows.jsonl:1: key 'text' appears twice"),
    ("rows.jsonl", '{"text": "a"}\n{"text": "a", "label": NaN}\n', "rows.jsonl:2: NaN is no number"),
    ("rows.jsonl", '{"text": ' + "[" * 100_000 + "\n", "rows.jsonl:1: not JSON"),
    ("rows.jsonl", '{"label": ' + "9" * 5000 + "}\n", "rows.jsonl:1: not JSON"),
    ("rows.jsonl", b'{"text": "caf\xe9"}\n', "rows.jsonl:1: not UTF-8"),
    ("rows.json", "", "rows.json: not JSON"),
    ("rows.json", "3", "rows.json: holds int, not a list of objects"),
    ("rows.json", '{"a": [], "b": []}', "rows.json: holds dict, not a list of objects"),
    ("rows.json", "[]", "rows.json: holds no row"),
    ("rows.json", '[{"text": "a"}, "b"]', "rows.json: row 2: holds str, not an object"),
    ("rows.json", '[\n{"text": "a"},\n{"text": \n]', "rows.json:4: not JSON"),
    ("rows.json", JSONL, "rows.json:3: not JSON"),
]


@pytest.mark.parametrize(("name", "content", "said"), MALFORMED, ids=lambda value: str(value)[:40])
def test_what_is_no_row_is_named(table, name, content, said):
    with pytest.raises(DataError) as caught:
        table(content, name)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.jsonl"])
@pytest.mark.parametrize("before", [1, 2])
def test_a_line_of_50_mb_is_refused_and_not_cut(tmp_path, name, before):
    with (tmp_path / name).open("w") as file:
        file.write('{"text": "a"}\n' * (before - 1) + "x" * 50_000_000)
    with pytest.raises(DataError, match=rf"{name}:{before}: a line of more than 16 MiB"):
        read_table(tmp_path / name)


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
def test_a_compressed_file_that_is_none(tmp_path, suffix):
    pack = {".gz": gzip.compress, ".xz": lzma.compress}[suffix]
    file = tmp_path / f"rows.csv{suffix}"
    whole = pack(("text,label\n" + "so it is,1\n" * 10_000).encode())
    for raw in (whole[:-20], whole[: len(whole) // 2], whole[:12], b""):
        file.write_bytes(raw)
        with pytest.raises(DataError, match=f"rows.csv{suffix}: damaged or cut short"):
            read_table(file)
    file.write_bytes(b"text,label\na,1\n")
    with pytest.raises(DataError, match=f"not compressed, despite its name; remove {suffix} from"):
        read_table(file)


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.json", "rows.parquet"])
def test_what_is_no_file_is_refused(tmp_path, name):
    pytest.importorskip("pyarrow") if name.endswith("parquet") else None
    with pytest.raises(DataError, match="no such file"):
        read_table(tmp_path / name)
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match="no regular file; write it to a file"):
        read_table(tmp_path / name)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(DataError, match="a folder; give a file in it"):
        read_table(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "rows", "columns"),
    [
        ("finetune/sst2/train.tsv", 6920, ("1", "2")),
        ("finetune/sst2/glue_train.tsv.xz", 67349, ("sentence", "label")),
        ("finetune/sst2/glue_dev.tsv", 872, ("sentence", "label")),
        ("finetune/sms-spam/SMSSpamCollection", 5574, ("1", "2")),
        ("finetune/sts-b/sts-train.csv", 5749, tuple("1234567")),
        ("bias/unintended_bias_madlibs_77k.csv.xz", 76564, ("Text", "Label", "Template")),
        ("seq2seq/scitldr_dev.jsonl.xz", 619, None),
    ],
)
def test_real_files(name, rows, columns):
    if not (DATA / name).exists():
        pytest.skip("no such data")
    read = read_table(DATA / name)
    assert len(read.rows) == rows
    assert columns in (None, read.columns)


def test_a_name_that_is_a_number_is_taken_before_the_place_of_that_number():
    """As of a DataFrame without names."""
    frame = pytest.importorskip("pandas").DataFrame([["a", "b", "c"]])
    assert [table_of(frame).column(given) for given in (0, 1, 2, "2", 3)] == ["0", "1", "2", "2", "2"]

"""Text of prediction files: a table's rows with more columns, or words with their tags."""

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from minilm.files import jsonl_text
from minilm.labelled.examples import SEPARATORS, Tagged, as_text
from minilm.labelled.spans import with_column
from minilm.labelled.tables import Row, Table

CUTS = re.compile(r"[\t\r\n]+")  # which end a column or a line

SHOWN_LABELS = 40  # at most, in a table or a picture
AGAIN = " (model)"  # after the names of new columns, where the table has predictions already


def table_of_examples(examples: Sequence[Any]) -> Table:
    """A table of the examples' texts and labels, for a file of predictions; each row is named by its `where`."""
    fields = [name for name in examples[0]._fields if name != "where"]
    if all(getattr(each, "pair", None) is None for each in examples):
        fields = [name for name in fields if name != "pair"]
    rows = [
        Row(each.where, {"where": each.where} | {name: getattr(each, name) for name in fields}) for each in examples
    ]
    for row in rows if "choices" in fields else ():
        row.cells["choices"] = [*row.cells["choices"]]
    return Table("examples", ("where", *fields), rows)


def table_text(ending: str, table: Table, place: Sequence[int | None], more: dict[str, list[Any]]) -> str:
    """Text of a .jsonl, .tsv or csv: the rows of `table` with more columns, all of which get another name where the
    table has one of them.

    place: the index of each row in the new columns; a row of None is empty there.
    """
    suffix = ""
    while any(name + suffix in table.columns for name in more):
        suffix += AGAIN
    named = {name + suffix: values for name, values in more.items()}
    rows = [
        {name: table.named(name, cell) for name, cell in row.cells.items()}
        | {name: None if at is None else values[at] for name, values in named.items()}
        for row, at in zip(table.rows, place, strict=True)
    ]
    if ending == ".jsonl":
        return jsonl_text(rows)
    columns = [*table.columns, *named]
    cells = (columns, *([row.get(column, "") for column in columns] for row in rows))
    return "".join(_csv_line(row, "\t" if ending == ".tsv" else ",") for row in cells)


def _csv_line(cells: Iterable[Any], delimiter: str) -> str:
    """A line of csv that ends in LF. Written with CRLF, for csv quotes only cells with a character of its line end."""
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="\r\n").writerow(map(cell_text, cells))
    return text.getvalue().removesuffix("\r\n") + "\n"


def cell_text(value: Any) -> Any:
    """A value as a table of text holds it: lists, true and false as in JSON, 1.0 as 1, several labels joined by |, or
    as a list where they would be read as others."""
    if isinstance(value, tuple) and value and not any(set(label) & {*SEPARATORS, "["} for label in value):
        return "|".join(value)
    if isinstance(value, list | tuple | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    if getattr(value, "shape", None) == ():  # a scalar of numpy
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return value
    return as_text(value, "", "cell") if isinstance(value, int | float) else value


def places(table: Table, examples: Sequence[Any]) -> list[int | None]:
    """The index in `examples` of each row of `table`; None where it is none of them."""
    number = {each.where: row for row, each in enumerate(examples)}
    return [number.get(row.where) for row in table.rows]


def tags_text(
    ending: str, source: Table | Path | None, examples: Sequence[Tagged], tags: Sequence[Sequence[str]]
) -> str:
    """The words of `source` and their predicted tags: lists in a .jsonl, else one word a line, its tag the last column.
    Without a source: the words of `examples`, and their true tags, if known, before the predicted ones."""
    if ending == ".jsonl" and isinstance(source, Table):
        return table_text(ending, source, places(source, examples), {"prediction": [*tags]})
    rows = zip(examples, tags, strict=True)
    if ending == ".jsonl":
        return jsonl_text({"words": each.words, "prediction": own} for each, own in rows)
    if isinstance(source, Path):
        lines = with_column(source, chain.from_iterable(tags), tabs=ending == ".tsv")
        return "".join(f"{line}\n" for line in lines)
    known = source is None and all(each.tags is not None for each in examples)
    return _word_lines((each.words, *([each.tags] if known else []), own) for each, own in rows)


def _word_lines(sentences: Iterable[tuple[Sequence[str], ...]]) -> str:
    """Text with one word a line, and a blank line after each sentence. A sentence is given as its columns, the words
    first. A tab or an end of line in a word becomes a space."""
    lines = []
    for columns in sentences:
        lines += ["\t".join(CUTS.sub(" ", cell) for cell in row) for row in zip(*columns, strict=True)]
        lines.append("")
    return "\n".join([*lines, ""])

"""Reading files of predictions, of `evaluate.py predict` or another system, and the labels to judge them by."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minilm.data.documents import uncompressed_name
from minilm.errors import ConfigError, DataError, some
from minilm.judging.judged import Judged
from minilm.labelled.cells import LABELS, NUMBER, TEXT_NAMES, plain_name
from minilm.labelled.examples import LARGEST, Choice, Data, as_text, form_of, in_order, labels_of_cell
from minilm.labelled.spans import columns_of, is_one_word_a_line, read_tagged
from minilm.labelled.tables import Row, Table, check_regular, listed, read_json, read_table, shown, text_lines
from minilm.metrics.labels import SUM
from minilm.metrics.scores import Tags
from minilm.tasks.classification import Classification, MultiLabel
from minilm.tasks.named import TaskName, make_task, read_examples
from minilm.tasks.predictions import AGAIN, cell_text

PREDICTIONS = ("prediction", "predictions", "predicted", "pred", "y_pred")  # names of their column
ROW = "(row)"  # a column in place of texts, if a file holds none
SEVERAL, LONG = 1.5, 12  # words of a cell, or letters, on average, that make its column one of texts
SHOWN = 5  # labels in a message


class Columns(NamedTuple):
    """Columns that a user names, and whether a csv has a header; None: found by name or content."""

    text: str | None = None
    pair: str | None = None
    label: str | None = None
    prediction: str | None = None
    header: bool | None = None


DEFAULT = Columns()


def judged_file(
    file: Path, name: TaskName, gold: Data | None = None, source: Table | Path | None = None, named: Columns = DEFAULT
) -> tuple[Judged, Data, Table | Path]:
    """Judge a file of predictions: a table with a column of them (and of probabilities, p(LABEL)), words with a tag in
    the last column, or SQuAD's answers by id. Also returns the labelled examples, and what they were read from.

    gold, source: the labelled examples, in the order of the predictions, and what they were read from; None: the file
    holds the labels, too. Raises DataError.
    """
    check_regular(file)
    chances, labels = None, ()
    if name == "span":
        if gold is None:
            raise ConfigError(f"{file}: answers without the questions; give their labelled file with --data")
        decoded = _answers(file, gold, named)
    elif name == "tagging":
        gold, decoded = _tags(file, gold, named)
    else:
        table = _table(file, named)
        own = _prediction_column(table, named.prediction)
        told = _told(table, own) if name in ("classification", "multilabel") else {}
        if gold is None:
            source, gold = _examples(table, name, named, own, {*told})
        left_out = isinstance(source, Table) and (gold.left_out or _blank(source))
        if len(table.columns) == 1 and _blank(table) and left_out:
            raise DataError(f"{file}: {_blank(table)}, and {source.name} has some; add a column of the texts")
        rows = _rows_of(table, gold, source)
        decoded = [_decoded(name, row.cells.get(own), row.where, gold.separator) for row in rows]
        chances, labels = _probabilities(name, rows, [*told.values()]) if told else None, tuple(told)
    task = make_task(name, gold.examples)
    if isinstance(task, Classification | MultiLabel):
        task = replace(task, labels=_labels(task, decoded, labels, file))
    _check_choices(gold.examples, decoded)
    found = Judged(str(file), task, gold.examples, decoded, task.records_of(gold.examples, decoded), chances)
    return found, gold, file if source is None else source


def _blank(table: Table) -> str:
    """What a table's notes say of blank rows; "" if it has none."""
    return next((note for note in table.notes if note.startswith("blank rows")), "")


def _table(file: Path, named: Columns) -> Table:
    """The table of a file, with a header also if only the name of a column of predictions looks like one."""
    table = read_table(file, named.header)
    if named.header is not None or table.columns[0] != "1":
        return table
    first = {str(cell) for cell in table.rows[0].cells.values()}
    return read_table(file, header=True) if {*PREDICTIONS, named.prediction} & first else table


def _told(table: Table, own: str) -> dict[str, str]:
    """Label -> the column of its probability, sorted; if several systems have some, those beside the column `own`.
    Empty if they are those of another column of predictions, the first by the order of PREDICTIONS."""
    again = AGAIN * _times(own)
    if own != next((name + again for name in PREDICTIONS if name + again in table.columns), own):
        return {}
    end = ")" + again
    found = {column[2 : -len(end)]: column for column in table.columns if column[:2] == "p(" and column.endswith(end)}
    return {label: found[label] for label in in_order(each for each in found if not f"{each})".endswith(AGAIN))}


def _is_said(column: str) -> bool:
    """Whether a column is one of a system's predictions or probabilities."""
    first = column.removesuffix(AGAIN * _times(column))
    return first in ("p", "choice", *PREDICTIONS) or (first.startswith("p(") and first.endswith(")"))


def _times(column: str) -> int:
    """How often the column's table had been predicted before."""
    return 1 + _times(column.removesuffix(AGAIN)) if column.endswith(AGAIN) else 0


def _examples(table: Table, name: TaskName, named: Columns, own: str, told: set[str]) -> tuple[Table, Data]:
    """The table of a file of predictions without the columns of systems, and the examples in it. own: the column of
    predictions. told: labels that have a column of probabilities."""
    given = {role: value and table.column(value) for role, value in zip(("text", "pair", "label"), named, strict=False)}
    rest = tuple(each for each in table.columns if each in given.values() or not (each == own or _is_said(each)))
    others = [each for each in rest if each not in given.values()]
    usual = [column for name in LABELS for column in others if plain_name(column) == name]
    is_flagged = name == "multilabel" and {*usual} <= told <= {*others}  # each label has a column of 0 and 1
    usual = [] if is_flagged else usual
    likely = given["label"] or (others if len(others) == 1 else [*usual, None])[0]
    if name != "choice" and not given["text"] and not any(_is_text(table, each) for each in others if each != likely):
        rows = [row._replace(cells=row.cells | {ROW: f"row {i}"}) for i, row in enumerate(table.rows, start=1)]
        table, rest, given = replace(table, rows=rows), (ROW, *rest), given | {"text": ROW, "label": likely}
    source = replace(table, columns=rest)
    flags = tuple(each for each in others if is_flagged and each in told)
    like = Data([], flags=flags) if flags else None  # other columns of 0 and 1 are no labels
    found = read_examples(source, name, **{role: value for role, value in given.items() if value}, like=like)
    label = found.columns.get("label", "")
    if name == "classification" and named.label is None:
        said = {(as_text(row.cells.get(own), row.where, "prediction") or "").strip() for row in table.rows}
        labels = {each.label for each in found.examples}
        if not (said | told) & labels:
            raise DataError(
                f"{table.name}: predictions are {some(sorted(said), SHOWN)}, and {label!r}, taken for the label, "
                f"is {some(sorted(labels), SHOWN)}; name them alike, or give --label-column or --data"
            )
    return source, found


def _is_text(table: Table, column: str) -> bool:
    """Whether a column seems to hold texts, by its name or because its cells have several words, or many letters: not
    all scripts have spaces."""
    cells = [str(row.cells.get(column) or "").strip() for row in table.rows]
    words, letters = sum(len(cell.split()) for cell in cells), sum(map(len, cells))
    is_long = letters >= LONG * len(cells) and not all(map(NUMBER.fullmatch, filter(None, cells)))
    return plain_name(column) in TEXT_NAMES or words >= SEVERAL * len(cells) or is_long


def _prediction_column(table: Table, given: str | None) -> str:
    if given is not None:
        return table.column(given)
    again = [column for column in table.columns if column.endswith(AGAIN) and column.startswith(PREDICTIONS[0])]
    latest = max(again, key=_times, default=None)
    found = latest or next((column for column in PREDICTIONS if column in table.columns), None)
    if found is None:
        raise DataError(
            f"{table.name}: no column of predictions (it has {listed(table.columns)}); name it, --prediction-column"
        )
    return found


def _rows_of(table: Table, gold: Data, source: Table | Path | None) -> list[Row]:
    """The row of each example, by position. Raises DataError if both files have its text or label, but not the same, or
    the texts in another order."""
    place = {row.where: at for at, row in enumerate(source.rows)} if isinstance(source, Table) else {}
    total = len(place) or len(gold.examples)
    if len(table.rows) != total:
        raise DataError(f"{table.name}: {len(table.rows):,} rows for {total:,} labelled ones; give each its prediction")
    rows = [table.rows[place.get(each.where, at)] for at, each in enumerate(gold.examples)]
    shared = [column for column in gold.columns.values() if column in table.columns and isinstance(source, Table)]
    for each, row in zip(gold.examples, rows, strict=True):
        own = source.rows[place[each.where]].cells if shared else {}
        for column in shared:
            if str(cell_text(own.get(column))).strip() != str(cell_text(row.cells.get(column))).strip():
                raise DataError(
                    f"{row.where}: not the {column!r} of {each.where}; give predictions in the labels' order"
                )
    if gold.columns.get("text") not in shared:
        _check_order(table.columns, rows, gold.examples)
    return rows


def _check_order(columns: Sequence[str], rows: Sequence[Row], examples: Sequence[Any]) -> None:
    """Raises DataError if a column holds the examples' texts in another order, by whatever name, and none in theirs."""
    texts = [getattr(each, "text", "").strip() for each in examples]
    if len({*texts}) <= len(texts) / 2:  # a label, perhaps, that repeats
        return
    cells = {name: [str(cell_text(row.cells.get(name))).strip() for row in rows] for name in columns}
    turned = next((name for name, own in cells.items() if sorted(own) == sorted(texts)), None)
    if turned is not None and texts not in cells.values():
        at = next(at for at, (own, text) in enumerate(zip(cells[turned], texts, strict=True)) if own != text)
        where, example = rows[at].where, examples[at].where
        raise DataError(f"{where}: {turned!r} is not the text of {example}; give predictions in the labels' order")


def _decoded(name: TaskName, cell: Any, where: str, separator: str | None) -> Any:
    """The prediction in a cell of a table."""
    if name == "multilabel":
        written = as_text(cell, where, "prediction") or "" if not isinstance(cell, list | tuple) else ""
        mark = "|" if "|" in written or not separator else separator  # predict writes the first
        return labels_of_cell(cell, where, mark) or ()
    text = (as_text(cell, where, "prediction") or "").strip()
    if not text:
        raise DataError(f"{where}: no prediction; give each row one")
    if name == "classification":
        return text
    try:
        value = int(text) if name == "choice" else float(text)
        is_finite = math.isfinite(value)
    except (ValueError, OverflowError):
        is_finite = False
    if not is_finite:
        what = "number of a choice, from 0" if name == "choice" else "finite number"
        raise DataError(f"{where}: the prediction {shown(text)} is no {what}")
    if name != "choice" and abs(value) > LARGEST:
        raise DataError(f"{where}: the prediction {shown(text)} is too large; give all numbers in a larger unit")
    return value


def _probabilities(name: TaskName, rows: Sequence[Row], columns: Sequence[str]) -> np.ndarray:
    """Probabilities (n, C); for classification each row is scaled to sum to 1."""
    found = np.empty((len(rows), len(columns)))
    for at, row in enumerate(rows):
        for i, column in enumerate(columns):
            try:
                found[at, i] = float(row.cells.get(column))
            except (TypeError, ValueError, OverflowError):
                found[at, i] = np.nan
        if not ((found[at] >= 0) & (found[at] <= 1)).all():
            raise DataError(f"{row.where}: a probability is no number from 0 to 1; give each label one, or drop p(...)")
        if name == "classification" and abs(found[at].sum() - 1) > SUM * len(columns):
            raise DataError(
                f"{row.where}: the probabilities sum to {found[at].sum():.4g}, not 1; give one of each label"
            )
    return found if name != "classification" else found / found.sum(axis=1, keepdims=True)


def _labels(
    task: Classification | MultiLabel, decoded: Sequence[Any], told: Sequence[str], file: Path
) -> tuple[str, ...]:
    """All labels in gold or predicted, sorted. Raises DataError if gold labels and predictions have different names."""
    said = {*(decoded if isinstance(task, Classification) else chain.from_iterable(decoded)), *told}
    if told and (strange := sorted({*task.labels, *said} - {*told})):
        raise DataError(
            f"{file}: no column p({strange[0]}) for the label {shown(strange[0])}; give one, or none at all"
        )
    if said and task.labels and not said & {*task.labels}:
        raise DataError(
            f"{file}: predictions are {some(sorted(said), SHOWN)}, and the labels {some(sorted(task.labels), SHOWN)}; "
            "name them alike"
        )
    for label in sorted(said - {*task.labels}) if isinstance(task, MultiLabel) and not told else ():
        if len(parts := [part.strip() for part in re.split("[,;]", label)]) > 1 and {*parts} & {*task.labels}:
            raise DataError(f"{file}: {shown(label)} is predicted, which is no label; separate several by |")
    if not (found := in_order({*task.labels, *said})):
        raise DataError(f"{file}: no label holds or is predicted anywhere, so there is nothing to score")
    form = {form_of(label): label for label in task.labels}
    for label in sorted(said - {*task.labels}) if not told else ():  # a model with probabilities may know both
        if own := form.get(form_of(label)):
            raise DataError(
                f"{file}: {shown(label)} and {shown(own)} would be two labels, one of them only predicted; "
                "name them alike"
            )
    return found


def _check_choices(examples: Sequence[Any], decoded: Sequence[Any]) -> None:
    for each, choice in zip(examples, decoded, strict=True):
        if isinstance(each, Choice) and not 0 <= choice < len(each.choices):
            raise DataError(f"{each.where}: the prediction {choice} is none of {len(each.choices)}, counted from 0")


def _tags(file: Path, gold: Data | None, named: Columns) -> tuple[Data, Tags]:
    """The labelled sentences and the tags predicted. Of one word a line these are the last column, or the one named,
    and the gold tags the one before it."""
    given, label = named.prediction, named.label
    source = file if is_one_word_a_line(file) else _table(file, named)
    if isinstance(source, Path):
        if given is not None and not re.fullmatch("[1-9][0-9]{0,3}", given):
            raise ConfigError(f"--prediction-column {given}: give a column's number in a file of one word a line")
        told = read_tagged(file, given and int(given))
        if gold is None and label is None:
            label = str(int(given or _columns(file)) - 1)
            if int(label) < 2:
                raise ConfigError(f"--prediction-column {given}: no tags are before it; name them, --label-column")
    else:
        own = _prediction_column(source, given)
        for row in source.rows:
            if not isinstance(row.cells.get(own) or [], list | tuple):
                raise DataError(f"{row.where}: {own!r} is no list of tags; give each word one")
        rows = [row._replace(cells=row.cells | {own: row.cells.get(own) or []}) for row in source.rows]
        words = named.text if gold is None else gold.columns.get("text")
        told = read_tagged(
            replace(source, rows=rows), own, words=words if gold is None or words in source.columns else None
        )
    if gold is None:
        gold = read_examples(source, "tagging", named.text, named.pair, label)
    if len(told.examples) != len(gold.examples):
        raise DataError(f"{file}: {len(told.examples):,} sentences for {len(gold.examples):,} labelled ones")
    for own, each in zip(told.examples, gold.examples, strict=True):
        if own.words != each.words:
            raise DataError(
                f"{own.where}: not the words of {each.where}; give the predictions in the order of the labels"
            )
    return gold, [list(each.tags) for each in told.examples]


def _columns(file: Path) -> int:
    """Number of columns of a file with one word a line."""
    first = next((line for line in text_lines(file) if line.strip() and not line.startswith("-DOCSTART-")), "")
    width = len(first.split("\t") if "\t" in first else columns_of(first))
    if width < 3:
        raise DataError(
            f"{file}: {width} columns; give a word, its tag and the predicted one, or the labels with --data"
        )
    return width


def _answers(file: Path, gold: Data, named: Columns) -> list[str]:
    """Predicted answers in the order of the questions, matched by id; a row without an id has its number."""
    if uncompressed_name(file).endswith(".json"):
        if (given := named.prediction) is not None:
            raise ConfigError(f"--prediction-column {given}: a .json of answers by id has no columns; leave it out")
        told = read_json(file, "answers by id")
        if not isinstance(told, dict):
            raise DataError(f"{file}: holds {type(told).__name__}, not answers by the ids of questions")
    else:
        table = _table(file, named)
        own, told = _prediction_column(table, named.prediction), {}
        for number, row in enumerate(table.rows, start=1):
            id = as_text(row.cells.get("id"), row.where, "id") or str(number)
            if id in told:
                raise DataError(f"{row.where}: id {shown(id)} appears twice; give each question one answer")
            told[id] = row.cells.get(own)
    for each in gold.examples:
        if not isinstance(told.get(each.id), str):
            raise DataError(f"{file}: no answer to {each.id!r} ({each.where}); give each question one, '' for none")
    strange = {*told} - {each.id for each in gold.examples}
    if len(strange) > len(gold.left_out):  # of which an answer may be told, too
        raise DataError(f"{file}: {len(strange):,} answers to other questions, the first {min(strange)!r}")
    return [told[each.id] for each in gold.examples]

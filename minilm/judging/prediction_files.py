"""Files of predictions, as `evaluate.py predict` writes them or another system, and what they are judged by."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from minilm.data.documents import uncompressed_name
from minilm.data.examples import Data, as_text
from minilm.data.spans import is_one_word_a_line, read_tagged
from minilm.data.tables import Row, Table, check_regular, listed, read_json, read_table, shown, text_lines
from minilm.errors import ConfigError, DataError
from minilm.judging.judged import Judged
from minilm.tasks.classification import Classification, MultiLabel
from minilm.tasks.named import TaskName, make_task, read_examples
from minilm.tasks.scores import Tags

PREDICTIONS = ("prediction (model)", "prediction", "predictions", "predicted", "pred", "y_pred")  # columns
SUMS_TO_ONE = 1e-3  # how far probabilities of a file may miss it, by their rounding


def judged_file(
    file: Path, name: TaskName, gold: Data | None, source: Table | Path | None, columns: dict[str, str | None]
) -> tuple[Judged, Data, Table | Path]:
    """Of a file as `evaluate.py predict` writes it, or another system: a table with a column of predictions (and of
    probabilities, p(LABEL)), words with a tag in the last column, SQuAD's answers by id. With the labelled examples,
    and what they were read from.

    gold, source: these, each in the same place as its prediction; None: the labels are in the file too. columns: the
    names given for label and prediction. Raises DataError.
    """
    check_regular(file)
    if name == "span":
        if gold is None:
            raise ConfigError(f"{file}: answers without the questions; give their labelled file with --data")
        decoded, chances = _answers(file, gold), None
    elif name == "tagging":
        gold, decoded = _tags(file, gold)
        chances = None
    else:
        table = read_table(file)
        own = _prediction_column(table, columns.get("prediction"))
        told = [column for column in table.columns if column.startswith("p(") and column.endswith(")")]
        if gold is None:
            rest = tuple(column for column in table.columns if column not in (own, "p", "choice", *told))
            gold = read_examples(replace(table, columns=rest), name, label=columns.get("label"))
            source = table
        rows = _rows_of(table, gold, source)
        decoded = [_decoded(name, row.cells.get(own), row.where) for row in rows]
        chances = _probabilities(name, rows, told) if told else None
    task = make_task(name, gold.examples)
    if isinstance(task, Classification | MultiLabel):
        task = replace(task, labels=_labels(task, decoded, [column[2:-1] for column in told], file))
    found = Judged(str(file), task, gold.examples, decoded, task.records_of(gold.examples, decoded), chances)
    return found, gold, file if source is None else source


def _prediction_column(table: Table, given: str | None) -> str:
    if given is not None:
        return table.column(given)
    found = next((column for column in PREDICTIONS if column in table.columns), None)
    if found is None:
        raise DataError(
            f"{table.name}: no column of predictions (it has {listed(table.columns)}); name it, --prediction-column"
        )
    return found


def _rows_of(table: Table, gold: Data, source: Table | Path | None) -> list[Row]:
    """The row of each example, by its place."""
    place = {row.where: at for at, row in enumerate(source.rows)} if isinstance(source, Table) else {}
    total = len(place) or len(gold.examples)
    if len(table.rows) != total:
        raise DataError(f"{table.name}: {len(table.rows):,} rows for {total:,} labelled ones; give each its prediction")
    return [table.rows[place.get(each.where, at)] for at, each in enumerate(gold.examples)]


def _decoded(name: TaskName, cell: Any, where: str) -> Any:
    """A prediction in a cell."""
    if name == "multilabel":
        if isinstance(cell, list | tuple):
            return tuple(as_text(each, where, "prediction") or "" for each in cell)
        return tuple(each.strip() for each in (as_text(cell, where, "prediction") or "").split("|") if each.strip())
    text = (as_text(cell, where, "prediction") or "").strip()
    if not text:
        raise DataError(f"{where}: no prediction; give each row one")
    if name == "classification":
        return text
    try:
        value = int(text) if name == "choice" else float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        what = "number of a choice, from 0" if name == "choice" else "finite number"
        raise DataError(f"{where}: the prediction {shown(text)} is no {what}")
    return value


def _probabilities(name: TaskName, rows: Sequence[Row], columns: Sequence[str]) -> np.ndarray:
    """(n, C); of one label of several each row sums to 1."""
    found = np.empty((len(rows), len(columns)))
    for at, row in enumerate(rows):
        for i, column in enumerate(columns):
            try:
                found[at, i] = float(row.cells.get(column))
            except (TypeError, ValueError):
                found[at, i] = np.nan
        if not ((found[at] >= 0) & (found[at] <= 1)).all():
            raise DataError(f"{row.where}: a probability is no number from 0 to 1; give each label one, or drop p(...)")
        if name == "classification" and abs(found[at].sum() - 1) > SUMS_TO_ONE * len(columns):
            raise DataError(
                f"{row.where}: the probabilities sum to {found[at].sum():.4g}, not 1; give one of each label"
            )
    return found if name != "classification" else found / found.sum(axis=1, keepdims=True)


def _labels(
    task: Classification | MultiLabel, decoded: Sequence[Any], told: Sequence[str], file: Path
) -> tuple[str, ...]:
    """Those that are gold or predicted; where there are probabilities, in their order."""
    met = {*task.labels, *(decoded if isinstance(task, Classification) else chain.from_iterable(decoded))}
    if told and (strange := sorted(met - {*told})):
        raise DataError(
            f"{file}: no column p({strange[0]}) for the label {shown(strange[0])}; give one, or none at all"
        )
    return tuple(told or sorted(met))


def _tags(file: Path, gold: Data | None) -> tuple[Data, Tags]:
    """The labelled sentences and the tags predicted: the last column, and the gold tags the one before it."""
    if is_one_word_a_line(file):
        told = read_tagged(file)
    else:
        table = read_table(file)
        rows = [row._replace(cells=row.cells | {"tags": row.cells.get("prediction")}) for row in table.rows]
        told = read_tagged(replace(table, rows=rows))
    if gold is None:
        gold = read_tagged(file, _columns(file) - 1) if is_one_word_a_line(file) else read_tagged(file)
    if len(told.examples) != len(gold.examples):
        raise DataError(f"{file}: {len(told.examples):,} sentences for {len(gold.examples):,} labelled ones")
    for own, each in zip(told.examples, gold.examples, strict=True):
        if own.words != each.words:
            raise DataError(
                f"{own.where}: not the words of {each.where}; give the predictions in the order of the labels"
            )
    return gold, [list(each.tags) for each in told.examples]


def _columns(file: Path) -> int:
    """Of a file with one word a line."""
    first = next((line for line in text_lines(file) if line.strip() and not line.startswith("-DOCSTART-")), "")
    width = len(first.split("\t") if "\t" in first else first.split())
    if width < 3:
        raise DataError(
            f"{file}: {width} columns; give a word, its tag and the predicted one, or the labels with --data"
        )
    return width


def _answers(file: Path, gold: Data) -> list[str]:
    """Of each question, by its id."""
    if uncompressed_name(file).endswith(".json"):
        told = read_json(file, "answers by id")
        if not isinstance(told, dict):
            raise DataError(f"{file}: holds {type(told).__name__}, not answers by the ids of questions")
    else:
        table = read_table(file)
        own = _prediction_column(table, None)
        told = {str(row.cells.get("id")): row.cells.get(own) for row in table.rows}
    for each in gold.examples:
        if not isinstance(told.get(each.id), str):
            raise DataError(f"{file}: no answer to {each.id!r} ({each.where}); give each question one, '' for none")
    if strange := {*told} - {each.id for each in gold.examples}:
        raise DataError(f"{file}: {len(strange):,} answers to other questions, the first {min(strange)!r}")
    return [told[each.id] for each in gold.examples]

"""Examples of labelled tasks: texts and pairs, choices, and (read in `spans`) tagged words and questions.

They are strings: the tokenizer comes later. A row that cannot be used is listed in `Data.left_out`, or is a DataError;
guesses (which column is the label?) are told in `Data.notes`.
"""

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal, NamedTuple

from minilm.errors import DataError
from minilm.labelled.cells import LABELS, NUMBER, PAIRS, TEXTS, first_twice, plain_name
from minilm.labelled.tables import Table, listed, parse_json, shown

Kind = Literal["classification", "multilabel", "regression"]
LOOKED_AT = 1000  # rows, to guess which column is which
SEPARATORS = "|;,"  # between several labels in a cell; the first that occurs is taken
FLAGS = {"1": True, "true": True, "0": False, "false": False}  # values of a column that says whether a label applies
OTHER = {  # columns, or endings of file names, that belong to other tasks -> the task
    "paragraphs": "span",
    "ending0": "choice",
    "choice0": "choice",
    "choice1": "choice",
    "choices": "choice",
    "tokens": "tagging",
    "words": "tagging",
    ".conll": "tagging",
    ".bio": "tagging",
}
NO_LABEL = {"NA", "N/A", "n/a", "<NA>", "nan", "NaN", "None", "null", "NULL", "-", "?"}  # as programs write it
LARGEST = 1e12  # largest number to learn: squared errors must fit in fp32
WHOLE = re.compile("0|-?[1-9][0-9]{0,17}")  # numbers in their only form
SURROGATE = re.compile("[\ud800-\udfff]")
ENDING = re.compile(r"(ending|choice|option|answer|sol|solution)_?([0-9]{1,2}|[a-z])")
BEFORE = (  # the column of the text, and that of a beginning common to all choices
    *(("sent1", "sent2"), ("article", "question"), ("passage", "question"), ("context", "question")),
    *(("premise", "question"), ("text", "question"), ("sentence", "question")),
    *(("context", ""), ("ctx", ""), ("question", ""), ("premise", ""), ("goal", ""), ("sentence", ""), ("text", "")),
)


class Example(NamedTuple):
    """A text or a pair of texts, and its label."""

    text: str
    pair: str | None = None
    label: str | float | tuple[str, ...] | None = None  # classification, regression, multi-label; None: unknown
    where: str = ""  # file:line


class Tagged(NamedTuple):
    """A sentence, word by word."""

    words: tuple[str, ...]
    tags: tuple[str, ...] | None = None  # "O", or a TYPE after a letter of metrics.scores.LETTERS; None: not known
    where: str = ""


class Question(NamedTuple):
    """A question on a context that may hold the answer (Rajpurkar et al. 2018)."""

    id: str
    question: str
    context: str
    answers: tuple[tuple[int, str], ...] | None = ()  # (start character, text); (): not answerable; None: not known
    where: str = ""


class Choice(NamedTuple):
    """A text and several possible continuations."""

    text: str
    choices: tuple[str, ...]
    label: int | None = None  # the right choice, from 0; None: unknown
    where: str = ""


@dataclass(frozen=True)
class Data:
    """The examples of a file, or a part of them; as read, `examples` and `left_out` together are all of its rows (of
    one word a line, all of its sentences)."""

    examples: list
    notes: tuple[str, ...] = ()  # what was guessed, a line each, to be printed
    left_out: tuple[str, ...] = ()  # "file:line: why" of each row that is not used
    columns: dict[str, str] = field(default_factory=dict)  # role (text, pair, label) -> the column taken for it
    separator: str | None = ""  # between several labels in a cell; None: guess
    flags: tuple[str, ...] = ()  # columns that are one label each, holding 0 or 1
    origin: int | None = None  # number of the first choice in labels: 0 or 1
    taken: tuple[str, ...] = ()  # every column that the examples are made of


def as_text(value: Any, where: str, what: str) -> str | None:
    """A cell as text: numbers in their shortest form, true and false as in JSON, None as None. Raises DataError."""
    if hasattr(value, "item") and getattr(value, "shape", None) == ():  # a number of numpy's
        value = value.item()
    if isinstance(value, float):
        if not math.isfinite(value):
            raise DataError(f"{where}: the {what} is {value}, which is no number; leave the row out, or give a value")
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)
    if isinstance(value, bool | int):
        return str(value).lower()
    if value is not None and not isinstance(value, str):
        raise DataError(f"{where}: the {what} is a {type(value).__name__}, not a text; name another column")
    if value and SURROGATE.search(value):
        raise DataError(f"{where}: the {what} holds a lone surrogate, which is not a character; take it out")
    return value


# -- texts --------------------------------------------------------------------------------------------


def read_texts(
    table: Table,
    kind: Kind,
    text: str | int | None = None,
    pair: str | int | None = None,
    label: str | int | None = None,
    labelled: bool = True,
    separator: str | None = None,
    flags: tuple[str, ...] = (),
) -> Data:
    """Read the rows of a table as Examples. text, pair, label: columns by name or number from 1; if not given they are
    guessed from names and contents, a pair only if the text is not given either. labelled: whether to read labels;
    false for prediction. separator: between several labels in a cell; None: guess. Instead, each of several labels may
    have a column of 0 and 1; flags: these columns, if known. Raises DataError."""
    given = {"text": text, "pair": pair, "label": label}
    named = {role: table.column(name) for role, name in given.items() if name is not None}
    if twice := first_twice(named.values()):
        raise DataError(f"{table.name}: column {twice!r} is named twice; name another")
    if kind != "multilabel" or not labelled or label is not None:
        flags = ()
    elif not {*flags} & {*table.columns}:
        flags = _flags(table)
    if missing := [flag for flag in flags if flag not in table.columns]:
        raise DataError(f"{table.name}: no column {missing[0]!r}, which is a label; it has {listed(table.columns)}")
    if flags:
        unflagged = tuple(column for column in table.columns if column not in flags)
        columns, notes = _roles(replace(table, columns=unflagged), kind, named, labelled=False)
        notes.append(f"labels are the columns of 0 and 1: {listed(flags)}")
    else:
        columns, notes = _roles(table, kind, named, labelled)
    labels_of = {"classification": _label, "multilabel": labels_of_cell, "regression": _score}[kind]
    if separator is None:
        separator = _separator(table, columns["label"]) if kind == "multilabel" and "label" in columns else ""
    if separator:
        notes.append(f"labels are separated by {separator!r}")

    in_words = kind == "regression" and not all(map(NUMBER.fullmatch, table.classes.get(columns.get("label", ""), ())))

    def label_in(cells: dict[str, Any]) -> Any:
        """With the names of classes; of a number that has a name in words the number."""
        name = columns["label"]
        return (table.numbered if in_words else table.named)(name, cells.get(name))

    examples, left_out = [], []
    for where, cells in table.rows:
        read = ((role, columns[role]) for role in ("text", "pair") if role in columns)
        texts = [as_text(table.named(column, cells.get(column)), where, role) for role, column in read]
        if flags:
            found = _flagged(flags, cells, where)
        else:
            found = labels_of(label_in(cells), where, separator) if labelled else None
        if missing := [role for role, each in zip(("text", "pair"), texts, strict=False) if not (each or "").strip()]:
            left_out.append(f"{where}: no {missing[0]}")
        elif labelled and found is None:
            mend = "; write [] where none applies" if kind == "multilabel" and not flags else ""
            left_out.append(f"{where}: no label{mend}")
        else:
            examples.append(Example(texts[0], texts[1] if len(texts) > 1 else None, found, where))
    if not examples:
        raise DataError(f"no row can be used; the first is {left_out[0]}; is it the right column?")
    different = len({example.label for example in examples})
    if kind == "classification" and labelled and len(examples) >= 20 and different * 2 > len(examples):
        notes.append(f"{different:,} labels in {len(examples):,} rows; is {columns['label']!r} the label?")
    told = {example.label for example in examples} if kind == "classification" and labelled else set()
    none = told & NO_LABEL
    if "-1" in told and all(map(str.isdigit, told - {"-1"})):
        none |= {"-1"}
    if none and len(told) > 2:
        which = f"the label {shown(min(none))} is"
        notes.append(f"{which} learned as any other; leave those rows out if it means that there is none")
    if several := [label for label in told if "|" in label]:
        mend = "where a text has several labels, give --task multilabel"
        notes.append(f"labels with | in them: {len(several):,}, as {shown(min(several))}; {mend}")
    if kind != "regression" and (alike := _alike(each.label or () for each in examples)):
        notes.append(f"labels {shown(alike[0])} and {shown(alike[1])} differ; are they meant to be one?")
    taken = (*columns.values(), *flags)
    return Data(examples, (*table.notes, *notes), tuple(left_out), columns, separator, flags, taken=taken)


def form_of(label: str) -> str:
    """What a label shares with those that differ from it only in case, white space, Unicode form, or as 1.0 from 1."""
    plain = " ".join(unicodedata.normalize("NFKC", label).casefold().split())
    return re.sub(r"^([+-]?[0-9]+)\.0*$", r"\1", plain)


def _alike(labels: Iterable[str | tuple[str, ...]]) -> tuple[str, str] | None:
    """Two labels of one form, if there are such."""
    met: dict[str, str] = {}
    for each in labels:
        for label in (each,) if isinstance(each, str) else each:
            if (other := met.setdefault(form_of(label), label)) != label:
                return other, label
    return None


def in_order(labels: Iterable[str]) -> tuple[str, ...]:
    """Different labels, sorted; as numbers, if all are whole ones."""
    different = {*labels}
    return tuple(sorted(different, key=int if all(map(WHOLE.fullmatch, different)) else None))


def _label(value: Any, where: str, _: str) -> str | None:
    return (as_text(value, where, "label") or "").strip() or None


def labels_of_cell(value: Any, where: str, separator: str) -> tuple[str, ...] | None:
    """Labels in a cell of a multi-label task; None if the cell is empty, () for an empty list: no label applies."""
    if isinstance(value, str) and value.strip().startswith("["):
        value = parse_json(value, where, 'labels as a list, ["a", "b"]')
    if isinstance(value, list | tuple):
        found = tuple((as_text(each, where, "label") or "").strip() for each in value)
    else:
        text = (as_text(value, where, "label") or "").strip()
        parts = text.split(separator) if separator else [text]
        found = tuple(part.strip() for part in parts) if text else None
    if found and (twice := first_twice(found)):
        mend = "give each label that applies once"
        if {*found} == {"0", "1"}:
            mend = "0 and 1 in a list have no names: give a column for each label, or the names of those that apply"
        raise DataError(f"{where}: label {twice!r} appears twice; {mend}")
    if found and "" in found:
        raise DataError(f"{where}: an empty label; name it, or remove it")
    return found


def _flags(table: Table) -> tuple[str, ...]:
    """The columns of 0 and 1, or true and false, if there are several and no other column is named as a label."""

    def is_flag(column: str) -> bool:
        cells = [row.cells for row in table.rows]
        return all(_plain(each.get(column)) in ("", *FLAGS) for each in cells) and any(
            _plain(each.get(column)) for each in cells
        )

    if not all(is_flag(column) for column in table.columns if plain_name(column) in LABELS):
        return ()
    flags = tuple(filter(is_flag, table.columns))
    return flags if len(flags) > 1 else ()


def _flagged(flags: Sequence[str], cells: dict[str, Any], where: str) -> tuple[str, ...] | None:
    """The labels whose column says 1; None if a cell is empty."""
    values = [_plain(cells.get(column)) for column in flags]
    if strange := [column for column, value in zip(flags, values, strict=True) if value not in ("", *FLAGS)]:
        raise DataError(f"{where}: column {strange[0]!r} holds {shown(cells[strange[0]])}; write 0 or 1")
    return tuple(column for column, value in zip(flags, values, strict=True) if FLAGS[value]) if all(values) else None


def _plain(value: Any) -> str:
    """A cell in the form of a key of FLAGS; pandas turns 1 into 1.0 in a column with an empty cell."""
    return "" if value is None else str(value).strip().lower().removesuffix(".0")


def _score(value: Any, where: str, _: str) -> float | None:
    text = (as_text(value, where, "label") or "").strip()
    if text and (not NUMBER.fullmatch(text) or not math.isfinite(float(text))):
        mend = "write 1.5 with a point" if re.fullmatch(r"[0-9]+,[0-9]+", text) else "is it the right column?"
        raise DataError(f"{where}: the label {shown(text)} is no finite number; {mend}")
    if text and abs(float(text)) > LARGEST:
        raise DataError(f"{where}: the label {shown(text)} is too large to learn; give it in a larger unit")
    return float(text) if text else None


def _separator(table: Table, column: str) -> str:
    """Separator of the labels in a cell; "" if no cell has several."""
    cells = [cell for row in table.rows if isinstance(cell := row.cells.get(column), str) and cell.strip()[:1] != "["]
    return next((each for each in SEPARATORS if any(each in cell for cell in cells)), "")


def _roles(table: Table, kind: Kind, named: dict[str, str], labelled: bool) -> tuple[dict[str, str], list[str]]:
    """(the column of each role, notes on what was guessed)."""
    found = dict(named)
    plain = {plain_name(column): column for column in reversed(table.columns) if column not in named.values()}
    if "label" not in found and (name := next((name for name in LABELS if name in plain), None)):
        found["label"] = plain[name]
    if "text" not in found:
        partner = plain_name(named.get("pair", ""))
        pairs = [(a, b) for a, b in PAIRS if a in plain and (b in plain if "pair" not in named else b == partner)]
        if pairs:
            found |= {"text": plain[pairs[0][0]], "pair": named.get("pair") or plain[pairs[0][1]]}
        elif name := next((name for name in TEXTS if name in plain), None):
            found["text"] = plain[name]
    if "text" not in found or ("label" not in found and labelled):
        found |= _by_looks(table, kind, found, labelled)
    for role in ("label", "text")[not labelled :]:
        if role not in found:
            other = next(
                (task for column, task in OTHER.items() if column in plain or table.name.endswith(column)), None
            )
            mend = f"; is it for --task {other}?" if other else "; give its name, or its number from 1"
            raise DataError(f"{table.name}: which column is the {role}? It has {listed(table.columns)}{mend}")
    columns = {role: found[role] for role in ("text", "pair", "label")[: 2 + labelled] if role in found}
    rest = [column for column in table.columns if column not in columns.values()]
    notes = [] if columns.items() <= named.items() else [named_columns(columns)]
    notes += [f"other columns: {listed(rest)}"] if rest else []
    return columns, ["; ".join(notes)] if notes else []


def named_columns(columns: dict[str, str]) -> str:
    """Which column has which role, for the console."""
    return ", ".join(f"{role} is column {column!r}" for role, column in columns.items())


def _by_looks(table: Table, kind: Kind, found: dict[str, str], labelled: bool) -> dict[str, str]:
    """Roles guessed from contents: the label has numbers (regression), or the fewest different values, some of them
    repeated; texts have words."""
    free = [column for column in table.columns if column not in found.values()]
    if len(free) > 3:
        return {}
    rows = table.rows[:LOOKED_AT]
    cells = {column: [row.cells.get(column) for row in rows] for column in free}
    values = {column: ["" if cell is None else str(cell).strip() for cell in own] for column, own in cells.items()}
    kinds = {column: len({*cells}) for column, cells in values.items()}
    words = {column: sum(len(cell.split()) for cell in cells) / len(rows) for column, cells in values.items()}
    looks = {}
    if "label" not in found and len(free) > ("text" not in found):
        fewest = min(kinds.values())
        fits = [column for column in free if kinds[column] == fewest < len(rows)]
        if kind == "regression":
            fits = [column for column in free if all(map(NUMBER.fullmatch, filter(None, values[column])))]
        if not labelled:  # there may be no label
            fits = [column for column in fits if words[column] <= 2 and kinds[column] * 2 <= len(rows)]
        if len(fits) == 1:
            looks["label"] = fits[0]
            free.remove(fits[0])
    if "text" not in found:
        sentences = [column for column in free if words[column] >= 1.5]
        texts = sentences if len(sentences) == 1 else free
        if 1 <= len(texts) <= 2 - ("pair" in found):
            looks |= dict(zip(("text", "pair"), texts, strict=False))
    return looks


# -- choices ------------------------------------------------------------------------------------------


def read_choices(
    table: Table,
    labelled: bool = True,
    origin: int | None = None,
    text: str | None = None,
    beginning: str | None = None,
    label: str | None = None,
) -> Data:
    """Read the rows of a table as Choices, from columns ending0, ending1, ... (as in SWAG), choice_a, ..., or a list
    `choices`; the label is a number or a letter. labelled: whether to read labels. origin: number of the first choice
    in labels, 0 or 1; None: guess. text, beginning, label: columns by name or number from 1, the second one of what
    each choice begins with; if not given they are guessed from names. Raises DataError."""
    text, beginning, label = (each and table.column(each) for each in (text, beginning, label if labelled else None))
    given = [each for each in (text, beginning, label) if each]
    if twice := first_twice(given):
        raise DataError(f"{table.name}: column {twice!r} is named twice; name another")
    plain = {plain_name(column): column for column in reversed(table.columns) if column not in given}
    listed_in = next((plain[name] for name in ("choices", "endings", "options") if name in plain), None)
    families: dict[str, list[tuple[str, str]]] = {}
    for name, column in plain.items():
        if match := ENDING.fullmatch(name):
            families.setdefault(match[1], []).append((match[2].rjust(2), column))
    family = sorted(max(families.values(), key=len, default=[]))
    endings = [column for _, column in family]
    marks = [int(mark) if mark.strip().isdigit() else ord(mark[-1]) for mark, _ in family]
    if any(b - a != 1 for a, b in pairwise(marks)):
        raise DataError(f"{table.name}: a choice is missing among {listed(endings)}; give each a column")
    firsts = {plain_name(text): text} if text else plain
    usual = ((a, b) for a, b in BEFORE if a in firsts and (not b or b in plain or beginning))
    found, begins = next(usual, ("", ""))
    text, beginning = text or plain.get(found), beginning or plain.get(begins)
    names = ("label", "answer", "answerkey", "answer_key", "correct", "gold", *LABELS)
    label = label or next((plain[name] for name in names if name in plain and plain[name] not in endings), None)
    if text is None or not (listed_in or len(endings) > 1) or (labelled and label is None):
        lacks = "text" if text is None else "label" if listed_in or len(endings) > 1 else "choices"
        raise DataError(f"{table.name}: no column for the {lacks} (it has {listed(table.columns)}); name it so")
    rows, left_out = [], []
    for where, cells in table.rows:
        several = cells.get(listed_in) if listed_in else [cells.get(column) for column in endings]
        if isinstance(several, str) and several.lstrip().startswith("["):
            several = parse_json(several, where, 'choices as a list, ["a", "b"]')
        if not isinstance(several, list | tuple):
            raise DataError(f"{where}: {listed_in!r} is no list of texts; give one")
        begin = (as_text(cells.get(beginning), where, beginning) or "").strip() + " " if beginning else ""
        texts = [(as_text(each, where, "choice") or "").strip() for each in several]
        first = (as_text(cells.get(text), where, "text") or "").strip()
        answer = (as_text(table.numbered(label, cells.get(label)), where, "label") or "").strip() if labelled else None
        if not first or answer == "":
            left_out.append(f"{where}: no {'label' if first else 'text'}")
        elif len(texts) < 2 or "" in texts:
            left_out.append(f"{where}: no text in a choice, or fewer than two")
        else:
            rows.append((first, tuple((begin + each).strip() for each in texts), answer, where))
    if not rows:
        raise DataError(f"no row can be used; the first is {left_out[0]}")
    columns = {"text": text} | ({"beginning": beginning} if beginning else {})
    taken = [*columns.values(), *([listed_in] if listed_in else endings), *[label] * labelled]
    columns |= {"choices": listed_in or ", ".join(endings)} | ({"label": label} if labelled else {})
    notes = [named_columns(columns)]
    if rest := [column for column in table.columns if column not in taken]:
        notes.append(f"other columns: {listed(rest)}")
    numbers = [int(answer) for _, _, answer, _ in rows if answer and re.fullmatch("[0-9]{1,3}", answer)]
    if label in table.classes:
        origin = 0
    elif origin is None:  # counted from 0, none is the number of its row's choices
        origin = int(0 not in numbers and any(answer == str(len(texts)) for _, texts, answer, _ in rows))
    if numbers:
        notes.append(f"labels count from {origin}" + (", predictions from 0" if origin else ""))
    examples = [Choice(first, texts, _which(a, len(texts), origin, where), where) for first, texts, a, where in rows]
    notes, origin = (*table.notes, *notes), origin if numbers else None
    return Data(examples, notes, tuple(left_out), columns, origin=origin, taken=tuple(taken))


def _which(answer: str | None, choices: int, origin: int, where: str) -> int | None:
    """The choice that a label names, from 0."""
    if answer is None:
        return None
    if re.fullmatch("[A-Za-z]", answer):
        at = ord(answer.lower()) - ord("a")
    else:
        at = int(answer) - origin if re.fullmatch("[0-9]{1,3}", answer) else -1
    if not 0 <= at < choices:
        raise DataError(f"{where}: the label {shown(answer)} is none of {choices} choices; give a number or a letter")
    return at

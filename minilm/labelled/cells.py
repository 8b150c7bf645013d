"""The lines of a csv or tsv -> its columns and rows of cells.

The delimiter, whether quotes enclose cells and whether the first row is a header are guessed from the content, and said
in the notes.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from minilm.data.documents import uncompressed_name
from minilm.errors import DataError

# usual names of columns, the likeliest first; a header is recognised by them
PAIRS = (  # of the columns of two texts
    *(("text", "text_pair"), ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2")),
    *(("question", "sentence"), ("question", "passage"), ("question", "context"), ("question", "answer")),
    *(("query", "document"), ("text1", "text2"), ("text_a", "text_b"), ("sentence_a", "sentence_b"), ("text", "pair")),
)
TEXTS = ("text", "sentence", "content", "review", "message", "tweet", "comment", "comment_text")
TEXTS += ("question", "query", "document")
LABELS = ("label", "labels", "gold_label", "y_true", "class", "category", "target", "sentiment", "score", "stars")
LABELS += ("rating", "y")
TEXT_NAMES = {*TEXTS, *(name for pair in PAIRS for name in pair)}
KNOWN = {*TEXT_NAMES, *LABELS, "choices", "sent1", "sent2"}
OWN = r"texts?|labels?|messages?|comments?|reviews?|sentences?|category"  # endings of other names that are known
OWN_NAME = re.compile(rf"(?i)[a-z]\w{{0,30}}_({OWN})")
NAME = re.compile(r"(?!\d)[#\w][\w.-]{0,30}( [\w.-]{1,30}){0,2}")

INDEX = "(index)"  # the column that pandas gives no name
SEPARATORS = {"\t": "tabs", ",": "commas", ";": "semicolons"}
NOTHING = ("", "NA")  # empty cells of R's write.table and of pandas, which quote only texts
IN_QUOTES = re.compile(r'[^"]*(?:""[^"]*)*')
HAS_LETTER = re.compile(r"[^\W\d]")
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
DECIMAL = re.compile(r"(?<=\d),(?=\d)")
LOOKED_AT = 1000  # rows, to guess the delimiter and whether there is a header


class Cells(NamedTuple):
    columns: tuple[str, ...]  # in a file without a header "1", "2", ...
    rows: list[tuple[int, list[str]]]  # (number of the first line, from 1; a cell per column)
    notes: list[str]


def cells_of(file: Path, lines: list[str], header: bool | None = None) -> Cells:
    """The rows of a csv or tsv that are not blank. header: whether the first row names the columns; None: guess. Raises
    DataError naming file and line."""
    check_no_json(file, lines)
    delimiter = _delimiter(file, [line for line in lines[:LOOKED_AT] if line.strip()])
    quoted = delimiter != "\t" or _are_quotes(lines)
    records = list(_records(file, lines, delimiter) if quoted else enumerate((x.split("\t") for x in lines), start=1))
    rows = [(number, row) for number, row in records if any(cell.strip() for cell in row) or lines[number - 1] == '""']
    if not rows:
        raise DataError(f"{file}: holds no row; is it the right file?")
    notes = [] if _by_name(file) == delimiter else [f"cells are separated by {SEPARATORS[delimiter]}"]
    if delimiter == "\t" and any('"' in line for line in lines):
        notes.append(f"quotes {'enclose cells' if quoted else 'are text'}")
    if blank := len(records) - len(rows):
        notes.append(f"blank rows: {blank:,}")
    has_header = _is_header([row for _, row in rows[:LOOKED_AT]]) if header is None else header
    if header is None:
        notes.append("its first row names the columns" if has_header else "no header: columns are numbered from 1")
    if has_header:
        columns = _names(file, *rows.pop(0))
        if not rows:
            raise DataError(f"{file}:1: a header and no row; is it the right file?")
        if again := next((number for number, row in rows if _stripped(row) == columns), None):
            raise DataError(f"{file}:{again}: the header is repeated here; remove the line")
    else:
        [(most, _)] = Counter(len(row) for _, row in rows).most_common(1)
        columns = tuple(str(number) for number in range(1, most + 1))
    notes += _as_long(file, columns, rows, more=delimiter == "\t" and not has_header, quoted=quoted)
    if quoted:
        notes += _over_lines(file, delimiter, rows)
    return Cells(columns, [(number, row[: len(columns)]) for number, row in rows], notes)


def check_no_json(file: Path, lines: list[str]) -> None:
    """Raises DataError if the first line is a JSON object: cut at its commas or tabs it would look like cells."""
    number, line = next(((number, line) for number, line in enumerate(lines, start=1) if line.strip()), (0, ""))
    is_object = False
    with suppress(ValueError, RecursionError):
        is_object = line.lstrip().startswith("{") and isinstance(json.loads(line), dict)
    if is_object:
        raise DataError(f"{file}:{number}: a JSON object, and no cells; name the file .jsonl")


def plain_name(name: str) -> str:
    """A column name in the form of the names above: lower case, with _ for spaces and hyphens."""
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def first_twice(names: Iterable[str]) -> str | None:
    """The first name that occurs more than once, if any."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


# -- what separates the cells -------------------------------------------------------------------------


def _by_name(file: Path) -> str:
    """Delimiter that a file's name implies, or ""."""
    return {".csv": ",", ".tsv": "\t", ".txt": "\t"}.get(Path(uncompressed_name(file)).suffix, "")


def _delimiter(file: Path, head: list[str]) -> str:
    """The first delimiter that occurs equally often in each line, else the first in the first line; tabs in a .txt."""
    if uncompressed_name(file).endswith(".txt"):
        return "\t"
    plain = [line for line in head if '"' not in line] or head
    if all(";" in line for line in plain):  # then a comma in 4,5 is a decimal one
        plain = [DECIMAL.sub("", line) for line in plain]
    even = (each for each in SEPARATORS if len(counts := {line.count(each) for line in plain}) == 1 and 0 not in counts)
    in_first = (each for each in SEPARATORS if head and each in head[0])
    return next(even, "") or ("\t" if _by_name(file) == "\t" else next(in_first, "")) or _by_name(file) or ","


def _are_quotes(lines: list[str]) -> bool:
    """Whether quotes in a tsv enclose cells; in GLUE's files they are text. They enclose if all are closed, and either
    one is doubled within a cell, or there are several columns, each with all of its non-empty cells in quotes or
    none."""
    if not any('"' in line for line in lines):
        return False
    rows = [line.split("\t") for line in lines if line]
    if len({*map(len, rows)}) > 1 and _are_even(lines):  # tabs or line ends within cells
        return True
    opened = [cell for row in rows for cell in row if cell.startswith('"')]
    if not all(IN_QUOTES.match(cell, 1).end() == len(cell) - 1 for cell in opened):
        return False
    if any('""' in cell[1:-1] for cell in opened):
        return True
    if len(rows[0]) < 2 or len({*map(len, rows)}) > 1:
        return False
    of_names = all(cell.startswith('"') for cell in rows[0])
    columns = zip(*rows[of_names:], strict=True)
    kinds = [{cell.startswith('"') for cell in column if cell not in NOTHING} for column in columns]
    return all(len(kind) < 2 for kind in kinds) and (of_names or {True} in kinds)


def _are_even(lines: list[str]) -> bool:
    """Whether the rows of a tsv, if quotes enclose cells, have equally many, and several; and of none over several
    lines the first line alone would be a row, which a stray quote may have joined to others."""
    with suppress(DataError):
        rows = [(number, row) for number, row in _records(Path(), lines, "\t") if any(row)]
        long = [(number, row) for number, row in rows if any("\n" in cell for cell in row)]
        counts = {len(row) for _, row in rows}
        has_joined = any(lines[number - 1].count("\t") + 1 >= len(row) for number, row in long)
        return len(counts) == 1 and counts != {1} and not has_joined
    return False


# -- rows ---------------------------------------------------------------------------------------------


def _records(file: Path, lines: list[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(number of its first line, cells) of each row. A quoted cell may span lines; a quote in it is doubled."""
    numbered = iter(enumerate(lines, start=1))
    for begins, line in numbered:
        if '"' not in line and "\r" not in line:
            yield begins, line.split(delimiter)
            continue
        cells, number, at = [], begins, 0
        while at <= len(line):
            if not line.startswith('"', at):
                end = line.find(delimiter, at) % (len(line) + 1)  # no further delimiter: the line's end
                if "\r" in line[at:end]:
                    raise DataError(f"{file}:{number}: a \\r in a line; end lines in \\n, or put the cell in quotes")
                cells.append(line[at:end])
            else:
                opened, pieces, at = number, [], at + 1
                while (end := IN_QUOTES.match(line, at).end()) == len(line):
                    pieces.append(line[at:])
                    number, line = next(numbered, (0, ""))
                    if not number:
                        raise DataError(f"{file}:{opened}: a quote that is never closed; double it, or remove it")
                    at = 0
                cells.append("\n".join([*pieces, line[at:end]]).replace('""', '"'))
                end += 1
                if end < len(line) and not line.startswith(delimiter, end):
                    there = "" if number == opened else f" on line {number}"
                    raise DataError(
                        f"{file}:{opened}: text follows the quote that closes this one{there}; double the quotes in a "
                        f"text, and quote the whole text"
                    )
            at = end + 1
        yield begins, cells


def _as_long(
    file: Path, columns: tuple[str, ...], rows: list[tuple[int, list[str]]], more: bool, quoted: bool
) -> list[str]:
    """Notes on rows with more cells than columns, if `more` are allowed. Raises DataError for other rows of a wrong
    length."""
    longer = []
    for number, row in rows:
        if not quoted and len(row) > len(columns) and any("\r" in cell for cell in row):
            raise DataError(f"{file}:{number}: a \\r in a line, with more rows behind it; end lines in \\n")
        if len(row) < len(columns) or (len(row) > len(columns) and not more):
            raise DataError(
                f"{file}:{number}: {len(row)} cells, and there are {len(columns)} columns "
                f"({', '.join(columns)[:200]}); is a delimiter missing, or is there one in an unquoted text?"
            )
        longer += [number] if len(row) > len(columns) else []
    if not longer:
        return []
    which = f"rows with more than {len(columns)} cells: {len(longer):,}, the first on line {longer[0]}"
    return [f"{which}; extra cells are dropped"]


def _over_lines(file: Path, delimiter: str, rows: list[tuple[int, list[str]]]) -> list[str]:
    """Notes on rows that span several lines. Raises DataError for one whose lines look like rows that a stray quote has
    swallowed: a column (the label) has few values, and theirs occur elsewhere in it, or many numbers, as theirs are."""
    long = [(number, row) for number, row in rows if any("\n" in cell for cell in row)]
    if not long:
        return []
    known = [Counter(column) for column in zip(*(row for _, row in rows), strict=True)]
    for number, row in long:
        parts = [line.split(delimiter) for line in delimiter.join(row).split("\n") if line.strip()]
        if len(row) < 2 or len(parts) < 2 or any(len(part) != len(row) for part in parts):
            continue
        for own, counts, values in zip(row, known, zip(*parts, strict=True), strict=True):
            several = set(values)
            few = 2 * (len(counts) + sum(x not in counts for x in several)) < len(rows) + len(parts)
            known_before = few and all(x.strip() and counts[x] + values.count(x) - (x == own) > 1 for x in several)
            if known_before or (not few and all(NUMBER.fullmatch(x.strip()) for x in several | counts.keys())):
                raise DataError(
                    f"{file}:{number}: the quote opened here spans {len(parts)} lines that look like rows; "
                    f"remove it, or double it"
                )
    return [f"rows over several lines, in quotes: {len(long):,}, the first from line {long[0][0]}"]


# -- the header ---------------------------------------------------------------------------------------


def _is_header(rows: list[list[str]]) -> bool:
    """Whether the first row is a header: it has usual names of columns; or all its cells could be names, none recurs
    below, and some column below holds numbers or few values; or numbers alone are below a word."""
    names = _stripped(rows[0])
    below = [[row[i].strip() for row in rows[1:] if i < len(row)] for i in range(len(names))]
    numbered = names[not names[0] :]
    if len(numbered) > 1 and numbered == tuple(map(str, range(len(numbered)))):  # pandas numbers what has no name
        return any(own and all(map(HAS_LETTER.search, own)) for own in below)
    known = [i for i, name in enumerate(names) if is_usual(name)]
    if len(known) > 1 or (known and names[known[0]] not in below[known[0]]):
        return True
    if not names[0]:  # pandas gives its index no name
        is_index = all(map(str.isdigit, below[0])) and len({*below[0]}) == len(below[0])
        return is_index and len(names) > 1 and all(map(NAME.fullmatch, names[1:]))
    if known or len(names) < 2 or len(set(names)) < len(names):
        return False
    columns = [*zip(names, below, strict=True)]
    if any(HAS_LETTER.search(name) and len(own) > 2 and all(map(NUMBER.fullmatch, own)) for name, own in columns):
        return True
    if not all(map(NAME.fullmatch, names)):
        return False
    if any(name in values for name, values in columns):
        return False
    numbers = re.compile(r"[-+]?[\d.]+")
    return any(
        values and (len({*values}) * 2 <= len(values) or all(map(numbers.fullmatch, values))) for values in below
    )


def is_usual(name: str) -> bool:
    """Whether columns often have that name."""
    return plain_name(name) in KNOWN or OWN_NAME.fullmatch(name) is not None


def _names(file: Path, line: int, cells: list[str]) -> tuple[str, ...]:
    names = _stripped(cells)
    if "" in names[1:]:  # pandas gives its index no name
        raise DataError(
            f"{file}:{line}: column {names.index('', 1) + 1} has no name; name it, or end no line in a delimiter"
        )
    if twice := first_twice(names):
        raise DataError(f"{file}:{line}: column {twice!r} appears twice; name each column once")
    return names if names[0] else (INDEX, *names[1:])


def _stripped(cells: Iterable[str]) -> tuple[str, ...]:
    return tuple(cell.strip() for cell in cells)

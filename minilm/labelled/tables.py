"""Tables of labelled rows, each with its line: from csv, tsv, jsonl and json, also as .gz and .xz, from parquet, or
from rows in memory.

No row is lost: one that cannot be read is a DataError that names file and line. What was guessed about a file (its
delimiter, header and quotes) is told in `Table.notes`.
"""

import gzip
import io
import json
import lzma
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from minilm.data.documents import LONE_CR, MAX_LINE, is_jsonl, lines_of, reading, uncompressed_name
from minilm.errors import DataError, cut, did_you_mean, first_line, some
from minilm.labelled.cells import cells_of, first_twice

WHOLE = 1 << 30  # most bytes of a json file's line, which may be the whole file

COMPRESSED = {".gz": b"\x1f\x8b", ".xz": b"\xfd7zXZ"}  # how such a file begins
STARTS = {  # first bytes of files that are no text -> what such a file is, and what to do
    b"\xff\xfe\0\0": "UTF-32; convert it, for example with iconv -f utf-32 -t utf-8",
    b"\0\0\xfe\xff": "UTF-32; convert it, for example with iconv -f utf-32 -t utf-8",
    b"\xff\xfe": "UTF-16; convert it, for example with iconv -f utf-16 -t utf-8",
    b"\xfe\xff": "UTF-16; convert it, for example with iconv -f utf-16 -t utf-8",
    COMPRESSED[".gz"]: "compressed by gzip; let its name end in .gz",
    COMPRESSED[".xz"]: "compressed by xz; let its name end in .xz",
    b"(\xb5/\xfd": "compressed by zstd; decompress it",
    b"PAR1\x15": "parquet; let its name end in .parquet",
    b"PK\x03\x04": "a zip or xlsx; save it as csv, tsv, jsonl or text",
    b"\xd0\xcf\x11\xe0": "an xls or doc; save it as csv, tsv, jsonl or text",
    b"%PDF-": "a pdf; save it as csv, tsv, jsonl or text",
}


class Row(NamedTuple):
    where: str  # file:line of its beginning, for messages
    cells: dict[str, Any]  # column -> value; strings in a csv or tsv


@dataclass(frozen=True)
class Table:
    """The rows of a file, in order."""

    name: str  # of the file, for messages
    columns: tuple[str, ...]  # in a file without a header "1", "2", ...
    rows: list[Row]
    notes: tuple[str, ...] = ()
    classes: dict[str, list[str]] = field(default_factory=dict)  # column -> names of the classes whose numbers it holds

    def named(self, column: str, value: Any) -> Any:
        """A cell of a column, or each of a list in it, with the name of a class in place of its number; None for -1,
        which is no class."""
        if column not in self.classes or value is None or isinstance(value, str):
            return value
        if isinstance(value, int):
            if value >= len(self.classes[column]):
                there = f"{len(self.classes[column])} names"
                raise DataError(f"{self.name}: column {column!r} holds the class {value}, and there are {there}")
            return self.classes[column][value] if value >= 0 else None
        return [self.named(column, each) for each in value]

    def numbered(self, column: str, value: Any) -> Any:
        """A cell of a column, None in place of -1 where it holds the number of a class."""
        return None if column in self.classes and isinstance(value, int) and value < 0 else value

    def column(self, given: str | int) -> str:
        """Name of the column given by its name, or by its number from 1. Raises DataError."""
        if str(given) in self.columns:
            return str(given)
        if re.fullmatch(r"[0-9]{1,9}", str(given)) and 1 <= int(given) <= len(self.columns):
            return self.columns[int(given) - 1]
        mend = did_you_mean(str(given), self.columns) or "; give a name, or a number from 1"
        raise DataError(f"{self.name}: no column {given!r} (it has {listed(self.columns)}){mend}")


def listed(names: Iterable[object], limit: int = 12) -> str:
    """Names in quotes, for a message; only the first `limit` of them."""
    return some([shown(name) for name in names], limit)


def shown(value: object) -> str:
    """A value in quotes, for a message, cut if it is long."""
    return repr(cut(str(value), 60))


def read_table(file: Path | str, header: bool | None = None) -> Table:
    """All rows of a file. header: whether a csv's first row names its columns; None: guess. Raises DataError."""
    file = Path(file)
    name = uncompressed_name(file)
    if file.suffix.lower() == ".parquet":
        return _parquet(file)
    if name.endswith(".json"):
        return _of_objects(str(file), _json(file))
    lines = list(text_lines(file))
    if name.endswith((".jsonl", ".ndjson")):
        blank = sum(not line.strip() for line in lines)
        return _of_objects(str(file), _jsonl(file, lines), (f"blank rows: {blank:,}",) if blank else ())
    columns, rows, notes = cells_of(file, lines, header)
    named = [Row(f"{file}:{number}", dict(zip(columns, row, strict=True))) for number, row in rows]
    return Table(str(file), columns, named, tuple(notes))


def table_of(rows: Any, name: str = "the rows") -> Table:
    """Table of a list of dicts, a DataFrame or a `datasets.Dataset`. Missing values of pandas become None.
    Raises DataError."""
    if hasattr(rows, "to_dicts"):  # a DataFrame of polars
        rows = rows.to_dicts()
    if hasattr(rows, "to_dict") and hasattr(rows, "columns") and not hasattr(rows, "column_names"):  # of pandas
        if twice := first_twice(map(str, rows.columns)):
            raise DataError(f"{name}: column {twice!r} appears twice; name each column once")
        rows = [{str(key): _plain(value) for key, value in row.items()} for row in rows.to_dict("records")]
    if isinstance(rows, dict | str | bytes | Path) or not isinstance(rows, Iterable):
        raise DataError(f"{name}: a {type(rows).__name__}; give a list of dicts, one a row")
    classes = _class_names(getattr(rows, "features", None))
    form = getattr(rows, "format", None)
    if isinstance(form, dict) and form.get("type") not in (None, "custom"):  # arrays: take Python's own values
        rows = rows.with_format(None, columns=form["columns"])
    place = "row" if name in ("the rows", "rows") else f"{name}: row"
    table = _of_objects(name, ((f"{place} {number}", row) for number, row in enumerate(rows, start=1)))
    return replace(table, classes=classes)


def _class_names(features: Any) -> dict[str, list[str]]:
    """Names of the classes in columns of a `datasets.Dataset` that hold their numbers (ClassLabel), also in lists."""
    features = dict(features) if isinstance(features, Mapping) else {}
    found = {name: getattr(getattr(of, "feature", of), "names", None) for name, of in features.items()}
    return {name: names for name, names in found.items() if isinstance(names, list) and names}


def _plain(value: Any) -> Any:
    """A pandas cell with missing values as None and arrays as lists, also within a dict."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    is_nan = isinstance(value, float) and value != value
    if is_nan or type(value).__name__ in ("NAType", "NaTType"):
        return None
    return value.tolist() if getattr(value, "shape", ()) else value


# -- text ---------------------------------------------------------------------------------------------


def is_table(file: Path) -> bool:
    """Whether `read_table` reads the file, by its name."""
    return uncompressed_name(file).endswith((".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet"))


def text_lines(file: Path) -> Iterator[str]:
    """Lines of a text file, without line ends. Raises DataError naming file and line."""
    check_text(file)
    for number, line in enumerate(lines_of(file, MAX_LINE), start=1):
        if number == 1 and "\r" in line:
            raise DataError(f"{file}:1: {LONE_CR}")
        if len(line) * 4 >= MAX_LINE - 8 and len(line.encode()) >= MAX_LINE - 8:  # it may have been cut off
            raise DataError(f"{file}:{number}: a line of more than {MAX_LINE >> 20} MiB; is a line end missing?")
        yield line


def values_of(file: Path, field: str, flag: str) -> Iterator[tuple[str, Any]]:
    """(file:line, value) of each row: the `field` of a .jsonl, or each line of another text file, blank ones, too.
    flag: the flag that names the field, for a message. Raises DataError."""
    check_regular(file)
    if is_table(file) and not is_jsonl(file):
        raise DataError(f"{file}: tables are not read here; give one text a line, or a .jsonl with a text field")
    if not is_jsonl(file):
        yield from ((f"{file}:{number}", line) for number, line in enumerate(text_lines(file), start=1))
        return
    for where, cells in read_table(file).rows:
        if field not in cells:
            raise DataError(f"{where}: no field {field!r} (it has {listed(cells)}); name it with {flag}")
        if cells[field] is None:
            raise DataError(f"{where}: field {field!r} is null; give a text, or leave the row out")
        yield where, cells[field]


def check_text(file: Path) -> None:
    """Raises DataError for a file whose first bytes are not text: a compressed file with a plain name, UTF-16."""
    check_regular(file)
    suffix = file.suffix.lower()
    with reading(file):
        with file.open("rb") as stream:
            start = stream.read(8)
        if start and suffix in COMPRESSED:
            if not start.startswith(COMPRESSED[suffix]):
                raise DataError(f"{file}: not compressed, despite its name; remove {suffix} from it")
            with (gzip if suffix == ".gz" else lzma).open(file) as stream:
                start = stream.read(8)
    if what := next((what for begin, what in STARTS.items() if start.startswith(begin)), None):
        raise DataError(f"{file}:1: {what}")
    if b"\0" in start:
        raise DataError(f"{file}:1: a NUL byte: no text, or UTF-16; convert that, as with iconv -f utf-16le -t utf-8")


def check_regular(file: Path) -> None:
    """Raises DataError for a folder, a pipe or a missing file."""
    with reading(file):
        if not file.exists():
            raise DataError(f"{file}: no such file; is the name right?")
        if not file.is_file():
            what = "a folder; give a file in it" if file.is_dir() else "no regular file; write it to a file first"
            raise DataError(f"{file}: {what}")


# -- objects ------------------------------------------------------------------------------------------


def read_json(file: Path, expected: str) -> Any:
    """The value in a json file. expected: what it should hold, for the error. Raises DataError."""
    check_text(file)
    return parse_json("\n".join(lines_of(file, WHOLE)), str(file), expected)


def parse_json(text: str, where: str, expected: str) -> Any:
    """The value of a JSON text. Raises DataError, also for a repeated key, NaN and infinity."""

    def of_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            raise DataError(f"{where}: key {first_twice(key for key, _ in pairs)!r} appears twice; remove one")
        return found

    def no_number(constant: str) -> None:
        raise DataError(f"{where}: {constant} is no number; leave the row out, or give null")

    try:
        return json.loads(text, object_pairs_hook=of_pairs, parse_constant=no_number)
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) and "\n" in text else ""
        raise DataError(f"{where}{line}: not JSON ({first_line(error)}); expected {expected}") from error


def _jsonl(file: Path, lines: list[str]) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield f"{file}:{number}", parse_json(line, f"{file}:{number}", "one JSON object a line")


def _json(file: Path) -> Iterator[tuple[str, Any]]:
    whole = read_json(file, "a list of objects, or one object a line in a .jsonl")
    if isinstance(whole, dict):  # as {"data": [...]}
        lists = [value for value in whole.values() if isinstance(value, list)]
        whole = lists[0] if len(lists) == 1 else whole
    if not isinstance(whole, list):
        raise DataError(f"{file}: holds {type(whole).__name__}, not a list of objects; write one object a row")
    yield from ((f"{file}: row {number}", value) for number, value in enumerate(whole, start=1))


def _parquet(file: Path) -> Table:
    """Its rows; of a file that `datasets` wrote also the names of classes."""
    check_regular(file)
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise DataError(f"{file}: parquet is read by pyarrow; pip install pyarrow, or save it as jsonl") from error
    with reading(file):
        raw = file.read_bytes()
    try:
        found = ParquetFile(io.BytesIO(raw)).read()
        if twice := first_twice(found.column_names):
            raise DataError(f"{file}: column {twice!r} appears twice; name each column once")
        rows = found.to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: not parquet, or damaged ({first_line(error)}); write it again") from error
    table = _of_objects(str(file), ((f"{file}: row {number}", row) for number, row in enumerate(rows, start=1)))
    return replace(table, classes=_class_names(_features_of(found.schema.metadata)))


def _features_of(metadata: dict[bytes, bytes] | None) -> dict[str, Any]:
    """The features of a `datasets.Dataset` that its parquet tells."""
    with suppress(KeyError, TypeError, ValueError, AttributeError):
        told = json.loads((metadata or {})[b"huggingface"], object_hook=lambda members: SimpleNamespace(**members))
        return vars(told.info.features)
    return {}


def _of_objects(name: str, objects: Iterable[tuple[str, Any]], notes: tuple[str, ...] = ()) -> Table:
    rows, columns = [], {}
    for where, value in objects:
        if not isinstance(value, dict):
            kind = type(value).__name__
            raise DataError(f"{where}: holds {kind}, not an object; write each row as {{column: value}}")
        if odd := [key for key in value if not isinstance(key, str)]:
            raise DataError(f"{where}: column {odd[0]!r} is not named by a string; rename it")
        rows.append(Row(where, value))
        columns |= dict.fromkeys(value)
    if not rows:
        raise DataError(f"{name}: holds no row; is it the right file?")
    return Table(name, tuple(columns), rows, notes)

"""One file -> its documents, streamed: text, .jsonl, and both compressed as .gz or .xz.

In a text file a blank line ends a document (the format of BERT's `create_pretraining_data.py`); in a jsonl file every
line is a document. Memory does not grow with the file: documents longer than MAX_CHARS are cut into several.
"""

import codecs
import gzip
import io
import json
import lzma
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from minilm.errors import DataError

MAX_CHARS = 1 << 20  # most characters of one document
MAX_LINE = 1 << 24  # bytes of one jsonl line
COMPRESSED = (".gz", ".xz")
LONE_CR = "its lines end in \\r alone; convert it, for example with tr '\\r' '\\n'"
CHUNK = 4096  # texts in memory, at most
ROOM = 1 << 20  # characters of these texts, unless a single one is longer


def documents_of(file: Path, text_field: str) -> Iterator[str]:
    """Every document of a file that is not blank. Raises DataError naming file and line."""
    return _jsonl_documents(file, text_field) if is_jsonl(file) else _text_documents(file)


def chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    """All texts, in parts of bounded memory: tokenised, a text takes a hundred times the memory of its characters."""
    part, size = [], 0
    for text in texts:
        if not isinstance(text, str):
            raise DataError(f"{text!r} is not text; give strings")
        part.append(text)
        size += len(text)
        if len(part) == CHUNK or size >= ROOM:
            yield part
            part, size = [], 0
    if part:
        yield part


def lines_of(file: Path, limit: int = MAX_CHARS) -> Iterator[str]:
    """Every line of a text file, blank ones too; lines longer than `limit` bytes are cut off. Raises DataError naming
    file and line."""
    begins = True
    for _, text, ends in _lines(file, limit):
        if begins:
            yield text
        begins = ends


def is_jsonl(path: Path) -> bool:
    """Whether the file is a .jsonl or .ndjson, also compressed: every line is a document."""
    return uncompressed_name(path).endswith((".jsonl", ".ndjson"))


def uncompressed_name(path: Path) -> str:
    """File name in lower case, without .gz or .xz."""
    name = path.name.lower()
    return name.removesuffix(path.suffix.lower()) if path.suffix.lower() in COMPRESSED else name


class reading:
    """Context that turns errors of reading `file` into a DataError."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, EOFError | lzma.LZMAError | zlib.error | gzip.BadGzipFile):
            raise DataError(f"{self.file}: damaged or cut short ({error}); fetch it again") from error
        if isinstance(error, OSError):
            raise DataError(f"{self.file}: cannot be read ({error.strerror or error})") from error


class _XzStream(io.RawIOBase):
    """An .xz file of one or more streams. Python's own reader ignores a later stream that is damaged."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._decompressor, self._rest = file, lzma.LZMADecompressor(lzma.FORMAT_XZ), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._decompressor.eof:
                self._rest = self._decompressor.unused_data.lstrip(b"\0")  # padding may follow a stream
                while not self._rest and (more := self._file.read(io.DEFAULT_BUFFER_SIZE)):
                    self._rest = more.lstrip(b"\0")
                if not self._rest:
                    return 0
                self._decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ)
            elif self._decompressor.needs_input and not self._rest:
                self._rest = self._file.read(1 << 16)
                if not self._rest:
                    raise EOFError("it ends within a stream")
            data, self._rest = self._decompressor.decompress(self._rest, len(buffer)), b""
            if data:
                buffer[: len(data)] = data
                return len(data)


@contextmanager
def _opened(file: Path) -> Iterator[BinaryIO]:
    """Binary stream of a file's decompressed bytes."""
    with file.open("rb") as raw:
        kind = file.suffix.lower()
        if kind in COMPRESSED and not os.fstat(raw.fileno()).st_size:
            raise EOFError("it is empty")
        if kind == ".xz":
            yield io.BufferedReader(_XzStream(raw))
        elif kind == ".gz":
            with gzip.open(raw) as stream:
                yield stream
        else:
            yield raw


def _lines(file: Path, limit: int) -> Iterator[tuple[int, str, bool]]:
    """(line number, text without its newline, whether the line ends here) of pieces of at most `limit` bytes."""
    with reading(file), _opened(file) as stream:
        decoder = codecs.getincrementaldecoder("utf-8")()
        number = 1
        while raw := _piece(stream, limit, first=number == 1):
            ends = raw.endswith(b"\n")
            if b"\0" in raw:
                _read_out(stream)
                raise DataError(f"{file}:{number}: a NUL byte; this is a binary file (or UTF-16), not UTF-8 text")
            try:
                text = decoder.decode(raw, final=ends)
            except UnicodeDecodeError as error:
                _read_out(stream)
                raise DataError(
                    f"{file}:{number}: not UTF-8 (byte 0x{error.object[error.start]:02x}); "
                    f"convert it, for example with iconv -f latin1 -t utf-8"
                ) from error
            yield number, text.rstrip("\r\n") if ends else text, ends
            number += ends
        if decoder.getstate()[0]:
            raise DataError(f"{file}:{number}: not UTF-8 (ends inside a character); is the file cut short?")


def _read_out(stream: BinaryIO) -> None:
    """Read to the end, where a checksum may show that the file is damaged, which then explains the fault in its
    text."""
    while stream.read(1 << 20):
        pass


def _piece(stream: BinaryIO, limit: int, first: bool) -> bytes:
    raw = stream.readline(limit)
    return raw.removeprefix(codecs.BOM_UTF8) if first else raw


def _text_documents(file: Path) -> Iterator[str]:
    lines: list[str] = []
    size, whole = 0, True  # characters in `lines`; whether the last line is complete, not cut by the limit
    for number, text, ends in _lines(file, MAX_CHARS):
        if number == 1 and "\r\r" in text:
            raise DataError(f"{file}:1: {LONE_CR}")
        is_blank = whole and ends and not text.strip()
        if lines and (is_blank or size + len(text) > MAX_CHARS):
            yield "\n".join(lines)
            lines, size, whole = [], 0, True
        if lines and not whole:
            lines[-1] += text
        elif text.strip():
            lines.append(text)
        size, whole = size + len(text), ends
    if lines:
        yield "\n".join(lines)


def _jsonl_documents(file: Path, field: str) -> Iterator[str]:
    for number, line, ends in _lines(file, MAX_LINE):
        if not line.strip():
            continue
        where = f"{file}:{number}"
        if not ends and len(line.encode()) > MAX_LINE - 8:  # cut by the limit, give or take a character
            raise DataError(f"{where}: a line of more than {MAX_LINE >> 20} MiB; one JSON object a line")
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError, ValueError) as error:
            raise DataError(f"{where}: not JSON ({error}); one JSON object a line") from error
        if not isinstance(row, dict) or not isinstance(text := row.get(field), str):
            if isinstance(row, dict) and field in row:
                raise DataError(f'{where}: "{field}" is {json.dumps(row[field])[:40]}, not text; remove that line')
            found = f"fields {', '.join(map(str, row))}" if isinstance(row, dict) else type(row).__name__
            raise DataError(f'{where}: no text field "{field}" ({found}); name it with --text-field')
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{where}: a lone surrogate, which is not a character") from error
        pieces = (text[at : at + MAX_CHARS] for at in range(0, len(text), MAX_CHARS))
        yield from (piece for piece in pieces if piece.strip())

"""Raw text -> documents, streamed: files, folders, globs, .gz, .xz, jsonl; and a corpus that needs no download.

In a text file a blank line ends a document (the format of BERT's `create_pretraining_data.py`); in a jsonl
file every line is one. Memory does not grow with the corpus: what is longer than MAX_CHARS is cut there.
"""

import ast
import codecs
import glob
import gzip
import hashlib
import importlib.util
import io
import json
import lzma
import os
import sysconfig
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, BinaryIO

from minilm.errors import DataError
from minilm.files import sync_entry

MAX_CHARS = 1 << 20  # of one document
MAX_LINE = 1 << 24  # bytes of one jsonl line
SAMPLED_CHARS = 1 << 25  # of text that a vocabulary is trained on
COMPRESSED = (".gz", ".xz")
NO_TEXT = (".json", ".csv", ".tsv", ".parquet", ".arrow", ".zip", ".bz2", ".zst", ".tar", ".pdf")  # not as it stands
SUFFIXES = (".txt", ".text", ".md", ".jsonl")  # what a folder is searched for, also compressed
EMBEDDED_PACKAGES = ("numpy", "torch")
NOT_DOCUMENTATION = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}


@dataclass(frozen=True)
class Corpus:
    """Documents of a fixed list of files, in a fixed order."""

    files: tuple[Path, ...]
    text_field: str = "text"  # of a jsonl line

    def documents(self) -> Iterator[str]:
        """Every document that is not blank. Raises DataError naming file and line."""
        return (text for _, _, text in self.numbered())

    def numbered(self, file: int = 0, skip: int = 0) -> Iterator[tuple[int, int, str]]:
        """(number of its file, its number there, document), from document `skip` of file number `file` on."""
        for at in range(file, len(self.files)):
            path = self.files[at]
            found = _jsonl_documents(path, self.text_field) if _is_jsonl(path) else _text_documents(path)
            yield from ((at, n, text) for n, text in enumerate(found) if at > file or n >= skip)

    def stamps(self) -> list[tuple[int, ...]]:
        """Size, time of change and identity of every file: equal ones mean that nobody wrote in between."""
        stamps = []
        for file in self.files:
            with _reading(file):
                stat = file.stat()
            stamps.append((stat.st_size, stat.st_mtime_ns, stat.st_ino))
        return stamps

    def fingerprint(self) -> str:
        """sha256 of the bytes of all files in order, and of what else decides the documents."""
        digest = hashlib.sha256(f"{self.text_field} {MAX_CHARS}".encode())
        for file in self.files:
            digest.update(f"{_is_jsonl(file)} {file.suffix.lower() in COMPRESSED}".encode())
            with _reading(file), file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()


def open_corpus(paths: Sequence[str], text_field: str = "text") -> Corpus:
    """The corpus of files, folders (searched for SUFFIXES) and glob patterns. Raises DataError."""
    files: list[Path] = []
    for path in paths:
        found = sorted(Path(p) for p in glob.glob(path, recursive=True)) if not os.path.exists(path) else [Path(path)]
        if not found:
            raise DataError(f"--data {path}: no such file or folder; give a file, a folder or a quoted pattern")
        inside: list[Path] = []
        for each in found:
            if each.is_dir():
                inside += sorted(_text_files(each))
            elif each.is_file() and _uncompressed_name(each).endswith(NO_TEXT):
                raise DataError(f"--data {each}: not read as text; give .txt, or .jsonl with one object a line")
            elif each.is_file():
                inside.append(each)
            else:
                raise DataError(f"--data {each}: not a regular file")
        if not inside:
            raise DataError(f"--data {path}: no {', '.join(SUFFIXES)} file (also .gz, .xz) in this folder")
        files += inside
    return Corpus(tuple(dict.fromkeys(files)), text_field)


def _text_files(folder: Path) -> Iterator[Path]:
    """The files with a text's name in a folder and in all below it, links followed. Raises DataError for what cannot be
    looked at: a part left out in silence is another corpus."""

    def refuse(error: OSError) -> None:
        raise DataError(f"--data {error.filename}: cannot be read ({error.strerror or error})") from error

    seen: set[str] = set()
    for root, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        if (real := os.path.realpath(root)) in seen:  # a link to a folder above it, or to one that was read
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        for path in (Path(root, name) for name in names if _is_text_name(Path(name))):
            if path.is_symlink() and not path.exists():
                raise DataError(f"--data {path}: a link that leads nowhere; remove it, or mend it")
            if path.is_file():
                yield path


def embedded_corpus(cache_dir: Path) -> Corpus:
    """About 9 MB of English that every machine with the dependencies holds: their documentation.

    The docstrings of Python's library, NumPy and PyTorch, parsed and never imported, duplicates left out,
    and `pydoc`'s topics: written once as one jsonl file in `cache_dir`, under a hash of the sources' names and sizes.
    """
    sources = list(_embedded_sources())
    listing = "\n".join(f"{name} {path.stat().st_size}" for name, path in sources)
    file = cache_dir / f"documentation-{hashlib.sha256(listing.encode()).hexdigest()[:16]}.jsonl"
    if not file.exists():
        cache_dir.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}.tmp")
        with partial.open("w", encoding="utf-8") as out:
            for document in dict.fromkeys(_docstrings([path for _, path in sources])):
                out.write(json.dumps({"text": document}) + "\n")
        sync_entry(partial)
        partial.replace(file)
        sync_entry(cache_dir)
    return Corpus((file,))


def document_hash(document: str) -> int:
    """A number in [0, 2^64), the same everywhere."""
    return int.from_bytes(hashlib.blake2b(document.encode(), digest_size=8).digest(), "big")


def is_held_out(hash: int, fraction: float) -> bool:
    """Whether the document of that hash belongs to the held-out split: equal documents never straddle."""
    return hash < fraction * 2**64


def vocabulary_sample(documents: Iterable[str], held_out_frac: float, max_chars: int = SAMPLED_CHARS) -> list[str]:
    """What a vocabulary is trained on: the training split without copies or, of one with more characters, a part of it
    chosen by hash.

    Documents of a hash above a floor, which rises by half of what is left whenever they get too many: about `max_chars`
    / 2 or more of them stay, the same ones whatever the order, and memory does not grow with the corpus.
    """
    floor, size = held_out_frac * 2**64, 0
    kept: dict[int, str] = {}
    for text in documents:
        hash = document_hash(text)
        if hash < floor or hash in kept:
            continue
        kept[hash] = text
        size += len(text)
        while size > max_chars:
            floor += (2**64 - floor) / 2
            kept = {hash: text for hash, text in kept.items() if hash >= floor}
            size = sum(map(len, kept.values()))
    return list(kept.values())


def _embedded_sources() -> Iterator[tuple[str, Path]]:
    """(name, path) of every Python file to read, in an order that is the same on every machine."""
    roots = {"python": Path(sysconfig.get_paths()["stdlib"])}
    for package in EMBEDDED_PACKAGES:
        spec = importlib.util.find_spec(package)
        roots[package] = Path(spec.origin).parent
    for name, root in roots.items():
        inside = ((path.relative_to(root), path) for path in root.rglob("*.py"))
        kept = sorted((rel.as_posix(), path) for rel, path in inside if not NOT_DOCUMENTATION & set(rel.parts))
        yield from ((f"{name}/{rel}", path) for rel, path in kept)


def _docstrings(paths: list[Path], min_chars: int = 100) -> Iterator[str]:
    definitions = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for path in paths:
        with _reading(path):
            source = path.read_bytes()
        try:
            with warnings.catch_warnings(action="ignore"):  # odd escapes in other people's strings
                tree = ast.parse(source.decode())
        except (ValueError, SyntaxError):  # UnicodeDecodeError is a ValueError
            continue  # the library ships files that are broken on purpose
        nodes: list[ast.AST] = [tree]
        for node in nodes:  # which grows: breadth first, statements only, for docstrings stand nowhere else
            nodes += [n for n in ast.iter_child_nodes(node) if isinstance(n, ast.stmt | ast.ExceptHandler)]
            if isinstance(node, definitions) and len(text := ast.get_docstring(node) or "") >= min_chars:
                yield text
    yield from (topics[name] for name in sorted(topics))


def _is_jsonl(path: Path) -> bool:
    return _uncompressed_name(path).endswith(".jsonl")


def _is_text_name(path: Path) -> bool:
    return _uncompressed_name(path).endswith(SUFFIXES)


def _uncompressed_name(path: Path) -> str:
    name = path.name.lower()
    return name.removesuffix(path.suffix.lower()) if path.suffix.lower() in COMPRESSED else name


class _reading:
    """Turns what can go wrong in reading `file` into one DataError."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, EOFError | lzma.LZMAError | zlib.error | gzip.BadGzipFile):
            raise DataError(f"{self.file}: damaged or cut short ({error}); fetch it again") from error
        if isinstance(error, OSError):
            raise DataError(f"{self.file}: cannot be read ({error.strerror or error})") from error


class _XzStream(io.RawIOBase):
    """An .xz file of one or more streams. Python's own reader takes a damaged later one for no part of the file."""

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
    """The bytes of a file, decompressed."""
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
    """(line number, decoded text without its newline, whether the line ends here), at most `limit` bytes each."""
    with _reading(file), _opened(file) as stream:
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
    """To the end, where a checksum may tell that the file is damaged: then that is what is wrong with its text."""
    while stream.read(1 << 20):
        pass


def _piece(stream: BinaryIO, limit: int, first: bool) -> bytes:
    raw = stream.readline(limit)
    return raw.removeprefix(codecs.BOM_UTF8) if first else raw


def _text_documents(file: Path) -> Iterator[str]:
    lines: list[str] = []
    size, whole = 0, True  # characters in `lines`; whether the last of them ended, or was cut by the limit
    for _, text, ends in _lines(file, MAX_CHARS):
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
            found = f"fields {', '.join(map(str, row))}" if isinstance(row, dict) else type(row).__name__
            raise DataError(f'{where}: no text field "{field}" ({found}); name it with --text-field')
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{where}: a lone surrogate, which is not a character") from error
        pieces = (text[at : at + MAX_CHARS] for at in range(0, len(text), MAX_CHARS))
        yield from (piece for piece in pieces if piece.strip())

"""Corpora: files, folders and globs as documents in a fixed order, the held-out split by hash, and an embedded corpus
that needs no download.
"""

import ast
import glob
import hashlib
import importlib.util
import json
import os
import secrets
import sysconfig
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path
from pydoc_data.topics import topics

from minilm.data.documents import COMPRESSED, MAX_CHARS, documents_of, is_jsonl, reading, uncompressed_name
from minilm.errors import DataError
from minilm.files import sync_entry

SAMPLED_CHARS = 1 << 25  # most characters of text to train a vocabulary on
NO_TEXT = (".json", ".csv", ".tsv", ".parquet", ".arrow", ".zip", ".bz2", ".zst", ".tar", ".pdf")  # not read as text
# files by which a directory is a model's, a run's or a cache's, whose .txt, .md and .jsonl are no corpus
OF_MODELS = (("config.json", "model.safetensors"), ("run.json", "metrics.jsonl"), ("train.tokens",))
SUFFIXES = (".txt", ".text", ".md", ".jsonl", ".ndjson")  # files that are read from a folder, also compressed
EMBEDDED_PACKAGES = ("numpy", "torch")
NOT_DOCUMENTATION = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}


@dataclass(frozen=True)
class Corpus:
    """Documents of a fixed list of files, in a fixed order."""

    files: tuple[Path, ...]
    text_field: str = "text"  # field of a jsonl line

    def documents(self) -> Iterator[str]:
        """Every document that is not blank. Raises DataError naming file and line."""
        return (text for _, _, text in self.numbered())

    def numbered(self, file: int = 0, skip: int = 0) -> Iterator[tuple[int, int, str]]:
        """(file number, document number within the file, document), from document `skip` of file number `file` on."""
        for at in range(file, len(self.files)):
            path = self.files[at]
            found = enumerate(documents_of(path, self.text_field))
            yield from ((at, n, text) for n, text in found if at > file or n >= skip)

    def stamps(self) -> list[tuple[int, ...]]:
        """(size, modification time, inode) of every file: equal stamps mean that nobody wrote to them in between."""
        stamps = []
        for file in self.files:
            with reading(file):
                stat = file.stat()
            stamps.append((stat.st_size, stat.st_mtime_ns, stat.st_ino))
        return stamps

    def fingerprint(self) -> str:
        """SHA-256 of the bytes of all files in order, and of the settings that affect the documents."""
        digest = hashlib.sha256(f"{self.text_field} {MAX_CHARS}".encode())
        for file in self.files:
            digest.update(f"{is_jsonl(file)} {file.suffix.lower() in COMPRESSED}".encode())
            with reading(file), file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()


def open_corpus(paths: Sequence[str], text_field: str = "text") -> Corpus:
    """The corpus of files, folders (searched for SUFFIXES) and glob patterns. Raises DataError."""
    files: list[Path] = []
    is_of_model = cache(_is_of_model)  # a pattern may find many files of one folder
    for path in paths:
        is_pattern = not os.path.exists(path)
        found = sorted(Path(p) for p in glob.glob(path, recursive=True)) if is_pattern else [Path(path)]
        top = Path(*takewhile(lambda part: not glob.has_magic(part), Path(path).parts))
        if not found:
            raise DataError(f"--data {path}: no such file or folder; give a file, a folder or a quoted pattern")
        inside: list[Path] = []
        for each in found:
            if is_pattern and any(is_of_model(above) for above in each.parents if above.is_relative_to(top)):
                continue
            if each.is_dir():
                inside += sorted(_text_files(each))
            elif each.is_file() and uncompressed_name(each).endswith(NO_TEXT):
                raise DataError(f"--data {each}: not read as text; give .txt, or .jsonl with one object a line")
            elif each.is_file():
                inside.append(each)
            else:
                raise DataError(f"--data {each}: not a regular file")
        if not inside:
            passed_over = "directories of models, runs and caches are passed over"
            raise DataError(f"--data {path}: no {', '.join(SUFFIXES)} file (also .gz, .xz) there; {passed_over}")
        files += inside
    once: dict[str, Path] = {}
    for file in files:
        once.setdefault(os.path.realpath(file), file)  # a file with several names counts once
    return Corpus(tuple(once.values()), text_field)


def _text_files(folder: Path) -> Iterator[Path]:
    """Files with a name of SUFFIXES in a folder and below, links followed, but for directories of models, runs and
    caches, as an --out in there. Raises DataError for what cannot be read: leaving out a part silently would be another
    corpus."""

    def refuse(error: OSError) -> None:
        raise DataError(f"--data {error.filename}: cannot be read ({error.strerror or error})") from error

    seen: set[str] = set()
    for root, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        if (real := os.path.realpath(root)) in seen:  # a link to a parent, or to a folder that was read before
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        if _is_of_model(Path(root)):
            folders.clear()
            continue
        for path in (Path(root, name) for name in names if _is_text_name(Path(name))):
            if path.is_symlink() and not path.exists():
                raise DataError(f"--data {path}: a broken link; remove it, or fix it")
            if path.is_file():
                yield path


def _is_of_model(directory: Path) -> bool:
    """Whether a directory is a model's, a run's or a cache's."""
    return any(all((directory / name).is_file() for name in names) for names in OF_MODELS)


def embedded_corpus(cache_dir: Path) -> Corpus:
    """About 9 MB of English that every machine with the dependencies has: their documentation.

    The docstrings of Python's library, NumPy and PyTorch, parsed and never imported, duplicates left out,
    and `pydoc`'s topics: written once as one jsonl file in `cache_dir`, under a hash of the sources' names and sizes.
    """
    sources = list(embedded_sources())
    listing = "\n".join(f"{name} {path.stat().st_size}" for name, path in sources)
    file = cache_dir / f"documentation-{hashlib.sha256(listing.encode()).hexdigest()[:16]}.jsonl"
    if not file.exists():
        cache_dir.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}-{secrets.token_hex(4)}.tmp")  # containers have equal process ids
        with partial.open("w", encoding="utf-8") as out:
            documents = [*docstrings([path for _, path in sources]), *(topics[name] for name in sorted(topics))]
            for document in dict.fromkeys(documents):
                out.write(json.dumps({"text": document}) + "\n")
        sync_entry(partial)
        partial.replace(file)
        sync_entry(cache_dir)
    return Corpus((file,))


def document_hash(document: str) -> int:
    """Hash of a document, an integer in [0, 2^64), the same on every machine."""
    return int.from_bytes(hashlib.blake2b(document.encode(), digest_size=8).digest(), "big")


def is_held_out(hash: int, fraction: float) -> bool:
    """Whether the document with this hash is held out: equal documents are always in the same split."""
    return hash < fraction * 2**64


def vocabulary_sample(documents: Iterable[str], held_out_frac: float, max_chars: int = SAMPLED_CHARS) -> list[str]:
    """Text to train a vocabulary on: the training split without duplicates, or, if it exceeds `max_chars` characters, a
    part of it chosen by hash.

    Keeps the documents whose hash is above a floor, which rises by half of the rest whenever they get too long in all:
    about `max_chars` / 2 or more stay, the same documents in any order, and memory does not grow with the corpus.
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


def embedded_sources() -> Iterator[tuple[str, Path]]:
    """(name, path) of every Python file of the embedded corpus, in the same order on every machine."""
    roots = {"python": Path(sysconfig.get_paths()["stdlib"])}
    for package in EMBEDDED_PACKAGES:
        spec = importlib.util.find_spec(package)
        roots[package] = Path(spec.origin).parent
    for name, root in roots.items():
        inside = ((path.relative_to(root), path) for path in root.rglob("*.py"))
        kept = sorted((rel.as_posix(), path) for rel, path in inside if not NOT_DOCUMENTATION & set(rel.parts))
        yield from ((f"{name}/{rel}", path) for rel, path in kept)


def docstrings(paths: list[Path], min_chars: int = 100) -> Iterator[str]:
    """Docstrings of all modules, classes and functions in Python files, of `min_chars` or more."""
    definitions = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for path in paths:
        with reading(path):
            source = path.read_bytes()
        try:
            with warnings.catch_warnings(action="ignore"):  # odd escapes in other people's strings
                tree = ast.parse(source.decode())
        except (ValueError, SyntaxError):  # UnicodeDecodeError is a ValueError
            continue  # the library ships files that are broken on purpose
        nodes: list[ast.AST] = [tree]
        for node in nodes:  # the list grows: breadth first, statements only, as only they have docstrings
            nodes += [n for n in ast.iter_child_nodes(node) if isinstance(n, ast.stmt | ast.ExceptHandler)]
            if isinstance(node, definitions) and len(text := ast.get_docstring(node) or "") >= min_chars:
                yield text


def _is_text_name(path: Path) -> bool:
    return uncompressed_name(path).endswith(SUFFIXES)

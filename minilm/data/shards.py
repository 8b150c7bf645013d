"""Token ids on disk: text is tokenised once, into flat arrays of which batches are slices.

A cache entry is one directory, renamed into place when complete, and named by a hash of what decides its content:
    tokenizer.json  tokenizer_config.json  vocab.txt
    {train,held_out}.tokens  {train,held_out}.offsets  hashes  counts  META.json
Tokens are uint16, or uint32 for more than 65,536 words; every document is followed by [SEP].
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minilm.data.tokenizer import Tokenizer
from minilm.errors import ConfigError
from minilm.files import sha256, sync, write_json

FORMAT = 3  # version of the files, of tokenising, and of how `packing` cuts and packs what it caches beside them
CONTENT = ("vocab.txt", "train.tokens", "train.offsets", "held_out.tokens", "held_out.offsets")
BLOCK = 1 << 20  # elements read at once


class FileArray:
    """A flat array in a file, whose slices are read on access; pages read through a memory map would count as this
    process's memory, and look like a leak."""

    def __init__(self, file: Path, dtype: Any) -> None:
        self.dtype = np.dtype(dtype)
        self._file = file.open("rb", buffering=0)
        self._length = os.fstat(self._file.fileno()).st_size // self.dtype.itemsize

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, place: Any) -> Any:
        """An element, or a slice without a step."""
        if not isinstance(place, slice):
            place = range(self._length)[place]  # negative counts from the end; may raise IndexError
            return self[place : place + 1][0]
        start, stop, _ = place.indices(self._length)
        data, at = bytearray(max(0, stop - start) * self.dtype.itemsize), start * self.dtype.itemsize
        done = 0
        while done < len(data):  # the system reads at most 2 GiB at once
            read = os.preadv(self._file.fileno(), [memoryview(data)[done:]], at + done)
            if not read:
                raise OSError(0, "the file was cut short while it was in use", self._file.name)
            done += read
        return np.frombuffer(data, self.dtype)

    def blocks(self) -> Iterator[np.ndarray]:
        """The whole array, in parts of BLOCK elements."""
        return (self[at : at + BLOCK] for at in range(0, self._length, BLOCK))


@dataclass(frozen=True)
class Shard:
    """The documents of one split, concatenated."""

    tokens: FileArray | np.ndarray  # (tokens,) uint16 or uint32; [SEP] after each document
    offsets: FileArray | np.ndarray  # (documents + 1,) int64: document d is tokens[offsets[d] : offsets[d + 1]]
    stem: Path | None = None  # path prefix for files derived from it: CACHE/ENTRY/train

    def __len__(self) -> int:
        return len(self.offsets) - 1


@dataclass(frozen=True)
class Prepared:
    """A corpus ready to train on."""

    tokenizer: Tokenizer
    train: Shard
    held_out: Shard
    hashes: FileArray  # (documents,) uint64, in the order of the corpus
    counts: np.ndarray  # (V,) int64: how often each token occurs in the training split
    fingerprint: str  # checksum of the vocabulary and of both splits' tokens
    note: str  # the tokenizer's, for the console

    @property
    def unknown_rate(self) -> float:
        """Fraction of the training split's tokens that are [UNK]."""
        return float(self.counts[self.tokenizer.unk_id] / max(1, self.counts.sum()))


@contextmanager
def writing_cache(cache: Path) -> Iterator[None]:
    """Context that turns an OSError into a ConfigError about --cache-dir."""
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise ConfigError(
            f"--cache-dir {cache}: cannot be written ({why}); fix that, then the same command resumes, or name another"
        ) from error


def seal(directory: Path, **described: Any) -> None:
    """Flush a directory to disk and write META.json: what its files are, and checksums for `fault`."""
    for path in directory.glob(".*.tmp"):  # left by a killed process
        path.unlink()
    files = sorted(path for path in directory.iterdir() if path.name not in ("META.json", "PROGRESS.json"))
    meta = {"format": FORMAT, **described, "sha256": {file.name: sha256(file) for file in files}}
    sync(directory)
    write_json(directory / "META.json", meta)


def fault(directory: Path) -> str:
    """Description of what differs from the sealed directory; "" if nothing."""
    try:
        if not (directory / "META.json").is_file():
            return "it has no META.json"
        meta = json.loads((directory / "META.json").read_text(encoding="utf-8"))
        if meta["format"] != FORMAT or not meta["sha256"]:
            return "META.json is malformed"
        bad = [name for name, digest in meta["sha256"].items() if sha256(directory / name) != digest]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{type(error).__name__}: {error}"
    return f"{bad[0]} has a wrong checksum" if bad else ""


def entry_fault(entry: Path) -> str:
    """`fault` of a cache entry, or what is wrong in its META.json."""
    if found := fault(entry):
        return found
    meta = json.loads((entry / "META.json").read_text(encoding="utf-8"))
    try:
        if meta["dtype"] not in ("uint16", "uint32") or not isinstance(meta["note"], str):
            return "META.json is malformed"
        if unnamed := sorted({*CONTENT, "hashes", "counts", "tokenizer.json"} - meta["sha256"].keys()):
            return f"META.json does not name {unnamed[0]}"
        tokens = int(FileArray(entry / "train.offsets", np.int64)[-1])
        if (entry / "train.tokens").stat().st_size != tokens * np.dtype(meta["dtype"]).itemsize:
            return "META.json names another dtype"
    except (KeyError, IndexError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def open_entry(entry: Path) -> Prepared:
    """Open a cache entry, without checking it (see `entry_fault`)."""
    meta = json.loads((entry / "META.json").read_text(encoding="utf-8"))

    def shard(split: str) -> Shard:
        tokens = FileArray(entry / f"{split}.tokens", meta["dtype"])
        return Shard(tokens, FileArray(entry / f"{split}.offsets", np.int64), entry / split)

    return Prepared(
        Tokenizer.load(entry),
        shard("train"),
        shard("held_out"),
        FileArray(entry / "hashes", np.uint64),
        np.fromfile(entry / "counts", dtype=np.int64),
        hashlib.sha256("".join(meta["sha256"][name] for name in CONTENT).encode()).hexdigest(),
        meta["note"],
    )

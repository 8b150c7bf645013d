"""Tokenising a corpus into its cache entry, streamed on all cores and resumable.

The work is done in CACHE/tokens-KEY.partial, from which the next run resumes: after every DURABLE_EVERY batches
PROGRESS.json records, on disk, the next document and the lengths of the files. The result does not depend on
interruptions.
"""

import gzip
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from minilm.data.ahead import one_ahead
from minilm.data.corpus import Corpus, document_hash, embedded_corpus, is_held_out, vocabulary_sample
from minilm.data.shards import FORMAT, FileArray, Prepared, entry_fault, open_entry, seal, writing_cache
from minilm.data.tokenizer import Tokenizer
from minilm.errors import ConfigError, DataError
from minilm.files import alone, remove, sha256, sync, write_json

DOCUMENTS_AT_ONCE, CHARS_AT_ONCE = 1 << 16, 4 << 20  # a batch: whichever comes first
DURABLE_EVERY = 8  # batches
GROWING = ("train.tokens", "train.offsets", "held_out.tokens", "held_out.offsets", "hashes")

Say = Callable[[str], None]


def prepare(
    corpus: Corpus | None,
    cache_dir: Path,
    held_out_frac: float,
    tokenizer: Tokenizer | None = None,
    vocab_size: int = 8192,
    exact_vocab: bool = False,
    lowercase: bool = True,
    say: Say = lambda line: None,
) -> Prepared:
    """Tokenised splits of `corpus`, or of the embedded one if None, made now or read from the cache.

    held_out_frac: fraction of the documents, by hash. Without a `tokenizer` a vocabulary of `vocab_size` is trained on
    the training split, or, unless `exact_vocab`, of what the text supports. A cache entry with wrong checksums is made
    anew. Raises DataError if there is no text, too little for the vocabulary, or files change meanwhile, ConfigError if
    the cache cannot be written.
    """
    try:
        cache = cache_dir.expanduser()
    except RuntimeError as error:  # no home directory, or an unknown user
        raise ConfigError(f"--cache-dir {cache_dir}: {error} Name a directory") from error
    with writing_cache(cache):
        corpus = corpus or embedded_corpus(cache)
        return _prepared(corpus, cache, held_out_frac, tokenizer, vocab_size, exact_vocab, lowercase, say)


def _prepared(
    corpus: Corpus,
    cache: Path,
    held_out_frac: float,
    tokenizer: Tokenizer | None,
    vocab_size: int,
    exact_vocab: bool,
    lowercase: bool,
    say: Say,
) -> Prepared:
    def checked(found: Tokenizer) -> Tokenizer:
        if tokenizer is None and exact_vocab and found.vocab_size < vocab_size:
            most = f"the text supports {found.vocab_size} at most; lower it or give more text"
            raise DataError(f"--vocab-size {vocab_size}: {most}")
        return found

    def opened(entry: Path) -> Prepared:
        data = open_entry(entry)
        checked(data.tokenizer)
        return data

    def trained() -> Tokenizer:
        say(f"training a vocabulary of {vocab_size:,}")
        if not (sample := vocabulary_sample(corpus.documents(), held_out_frac)):
            raise DataError("every document is held out; give more documents (a blank line ends one)")
        return checked(Tokenizer.train(sample, vocab_size, lowercase))

    stamps = corpus.stamps()
    settings = {
        "format": FORMAT,
        "corpus": corpus.fingerprint(),
        "held_out": held_out_frac,
        "vocabulary": [vocab_size, lowercase] if tokenizer is None else tokenizer.fingerprint(),
    }
    key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    entry = cache / f"tokens-{key[:16]}"
    if entry.exists() and not entry_fault(entry):
        return opened(entry)
    partial = entry.with_suffix(".partial")
    with alone(partial, lambda: say("another process is tokenising this text; waiting for it")):
        if entry.exists() or entry.is_symlink():
            if not (fault := entry_fault(entry)):  # another process was faster
                shutil.rmtree(partial)
                return opened(entry)
            say(f"cache {entry} is damaged ({fault}); rebuilding it")
            remove(entry)

        try:
            if entry_fault(partial):  # sealed already if it was killed just before the end
                make = trained if tokenizer is None else lambda: tokenizer
                stamped = hashlib.sha256(json.dumps(stamps).encode()).hexdigest()
                _tokenise(partial, corpus, stamped, held_out_frac, make, say)
            if changed := [f for f, was, now in zip(corpus.files, stamps, corpus.stamps(), strict=True) if was != now]:
                raise DataError(f"{changed[0]}: changed while it was read; run the command again when it is complete")
        except DataError as error:
            cause = error.__cause__  # keep the work if a file may become readable again, not if it is damaged
            if not isinstance(cause, OSError) or isinstance(cause, gzip.BadGzipFile):
                shutil.rmtree(partial)
            raise
        (partial / "PROGRESS.json").unlink(missing_ok=True)
        partial.rename(entry)
    return opened(entry)


@dataclass(frozen=True)
class _Progress:
    """Content of PROGRESS.json: the next document, and the length of each file up to it."""

    file: int
    document: int  # in that file
    documents: int  # tokenised so far
    stamps: str  # checksum of the corpus's stamps: its files must be unchanged
    tokenizer: str  # checksum of tokenizer.json
    note: str  # the tokenizer's
    sizes: dict[str, int]  # in bytes
    crcs: dict[str, int]  # CRC-32 of that many bytes

    @classmethod
    def read(cls, partial: Path, stamps: str) -> "_Progress | None":
        """Progress of a killed process; None if there is none to resume from."""
        try:
            own = cls(**json.loads((partial / "PROGRESS.json").read_text(encoding="utf-8")))
            as_written = all(_crc(partial / name, own.sizes[name]) == own.crcs[name] for name in GROWING)
            whole = as_written and sha256(partial / "tokenizer.json") == own.tokenizer
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return own if whole and own.stamps == stamps else None

    def write(self, partial: Path) -> None:
        """Flush the files to disk, then write PROGRESS.json."""
        sync(partial)
        write_json(partial / "PROGRESS.json", asdict(self))


def _crc(file: Path, size: int) -> int | None:
    """CRC-32 of the first `size` bytes of a file; None if it has fewer."""
    found = 0
    with file.open("rb") as stream:
        while size and (block := stream.read(min(size, 1 << 20))):
            found, size = zlib.crc32(block, found), size - len(block)
    return None if size else found


def _tokenise(
    partial: Path, corpus: Corpus, stamps: str, held_out_frac: float, make_tokenizer: Callable[[], Tokenizer], say: Say
) -> None:
    """Write and seal all files of a cache entry in `partial`, resuming if possible."""
    progress = _Progress.read(partial, stamps)
    if progress is None:
        progress = _begin(partial, corpus, stamps, make_tokenizer)
        say("tokenising")
    else:
        say(f"resuming tokenising after {progress.documents:,} documents")
    tokenizer = Tokenizer.load(partial)
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32

    def encoded_documents(batch: list[tuple[int, int, str]]) -> list[np.ndarray]:
        return tokenizer.encode_documents([text for _, _, text in batch])

    with _Writer(partial, progress, dtype) as out:
        numbered = corpus.numbered(progress.file, progress.document)
        made = one_ahead(encoded_documents, _batches(numbered))
        for number, (batch, encoded) in enumerate(made, start=1):
            for (_, _, text), ids in zip(batch, encoded, strict=True):
                hash = document_hash(text)
                split = "held_out" if is_held_out(hash, held_out_frac) else "train"
                out.add(split, hash, np.append(ids, tokenizer.sep_id))
            file, document, _ = batch[-1]
            done = progress.documents + len(batch)
            progress = replace(progress, file=file, document=document + 1, documents=done)
            if number % DURABLE_EVERY == 0:
                out.flush()
                progress = replace(progress, sizes=dict(out.sizes), crcs=dict(out.crcs))
                progress.write(partial)
    for name, size in out.sizes.items():
        if (partial / name).stat().st_size != size or _crc(partial / name, size) != out.crcs[name]:
            raise ConfigError(  # an NFS may lock a directory for one machine alone
                f"--cache-dir {partial.parent}: another process has written there, too (its file system has no locks); "
                f"run one at a time, or name a local directory"
            )
    counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    for block in FileArray(partial / "train.tokens", dtype).blocks():
        counts += np.bincount(block, minlength=len(counts))
    (partial / "counts").write_bytes(counts.tobytes())
    seal(partial, dtype=dtype.__name__, note=progress.note)


def _begin(partial: Path, corpus: Corpus, stamps: str, make_tokenizer: Callable[[], Tokenizer]) -> _Progress:
    """Empty `partial` and write the tokenizer and the first progress to it."""
    for path in partial.iterdir():
        remove(path)
    if next(corpus.documents(), None) is None:
        raise DataError(f"--data {', '.join(map(str, corpus.files))}: no text in it, only blank lines or nothing")
    tokenizer = make_tokenizer()
    tokenizer.save(partial, model_max_length=int(1e9))
    first = {name: np.zeros(1, np.int64).tobytes() if name.endswith("offsets") else b"" for name in GROWING}
    for name, data in first.items():
        (partial / name).write_bytes(data)
    sizes, crcs = ({name: of(data) for name, data in first.items()} for of in (len, zlib.crc32))
    progress = _Progress(0, 0, 0, stamps, sha256(partial / "tokenizer.json"), tokenizer.note, sizes, crcs)
    progress.write(partial)
    return progress


class _Writer:
    """Appends documents to the files of `directory`, after truncating them to their lengths at `progress`."""

    def __init__(self, directory: Path, progress: _Progress, dtype: Any) -> None:
        self.dtype, self.sizes, self.crcs = dtype, dict(progress.sizes), dict(progress.crcs)
        for name in GROWING:
            os.truncate(directory / name, self.sizes[name])
        item = np.dtype(dtype).itemsize
        self._ends = {split: self.sizes[f"{split}.tokens"] // item for split in ("train", "held_out")}
        self._open = ExitStack()  # closes them all, even if closing one fails
        self._files = {name: self._open.enter_context((directory / name).open("ab")) for name in GROWING}

    def add(self, split: str, hash: int, ids: np.ndarray) -> None:
        self._ends[split] += len(ids)
        self._write(f"{split}.tokens", ids.astype(self.dtype).tobytes())
        self._write(f"{split}.offsets", self._ends[split].to_bytes(8, "little"))
        self._write("hashes", hash.to_bytes(8, "little"))

    def _write(self, name: str, data: bytes) -> None:
        self._files[name].write(data)
        self.sizes[name] += len(data)
        self.crcs[name] = zlib.crc32(data, self.crcs[name])

    def flush(self) -> None:
        for file in self._files.values():
            file.flush()

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()


def _batches(numbered: Iterable[tuple[int, int, str]]) -> Iterator[list[tuple[int, int, str]]]:
    """Batches of documents for the tokenizer, which spreads them over the cores and needs some 100 bytes per token."""
    batch: list[tuple[int, int, str]] = []
    size = 0
    for document in numbered:
        batch.append(document)
        size += len(document[2])
        if len(batch) == DOCUMENTS_AT_ONCE or size >= CHARS_AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch

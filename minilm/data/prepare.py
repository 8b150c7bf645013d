"""A corpus -> its cache entry: text is streamed through the tokenizer on all cores, and a kill loses little.

The work is done in CACHE/tokens-KEY.partial, which the next run goes on from: PROGRESS.json says, after every
CHARS_AT_ONCE * DURABLE_EVERY characters, which document comes next and how long the files were, all of it on the disk.
Where it was interrupted does not show in what comes out.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from minilm.data.corpus import Corpus, document_hash, embedded_corpus, is_held_out, vocabulary_sample
from minilm.data.shards import FORMAT, FileArray, Prepared, entry_fault, open_entry, seal
from minilm.data.tokenizer import Tokenizer
from minilm.errors import ConfigError, DataError
from minilm.files import alone, remove, sha256, sync, write_json

DOCUMENTS_AT_ONCE, CHARS_AT_ONCE = 1024, 4 << 20  # whichever comes first
DURABLE_EVERY = 8  # such batches
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
    """Tokenised splits of `corpus`, or of the embedded one, made now or taken from the cache.

    held_out_frac: of the documents, by hash. Without a `tokenizer` a vocabulary is trained on the training split, of
    `vocab_size` words or, unless `exact_vocab`, of what the text supports. An entry whose checksums do not match is
    made anew. Raises DataError where there is no text, not enough for the vocabulary, or other text than at the
    beginning, ConfigError where the cache cannot be written.
    """
    try:
        cache = cache_dir.expanduser()
    except RuntimeError as error:  # no home, or a user that nobody knows
        raise ConfigError(f"--cache-dir {cache_dir}: {error} Name a directory") from error
    try:
        corpus = corpus or embedded_corpus(cache)
        return _prepared(corpus, cache, held_out_frac, tokenizer, (vocab_size, exact_vocab, lowercase), say)
    except OSError as error:
        why = error.strerror or error
        raise ConfigError(
            f"--cache-dir {cache}: cannot be written ({why}); make room, then the same command goes on, or name another"
        ) from error


def _prepared(
    corpus: Corpus,
    cache: Path,
    held_out_frac: float,
    tokenizer: Tokenizer | None,
    vocabulary: tuple[int, bool, bool],
    say: Say,
) -> Prepared:
    stamps = corpus.stamps()
    settings = {
        "format": FORMAT,
        "corpus": corpus.fingerprint(),
        "held_out": held_out_frac,
        "vocabulary": vocabulary if tokenizer is None else tokenizer.fingerprint(),
    }
    key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    entry = cache / f"tokens-{key[:16]}"
    if entry.exists() and not entry_fault(entry):
        return open_entry(entry)
    partial = entry.with_suffix(".partial")
    with alone(partial, lambda: say("another process is tokenising this text; waiting for it")):
        if entry.exists() or entry.is_symlink():
            if not (fault := entry_fault(entry)):  # another process was faster
                shutil.rmtree(partial)
                return open_entry(entry)
            say(f"cache {entry} is damaged ({fault}); making it anew")
            remove(entry)

        def trained() -> Tokenizer:
            size, exact, lowercase = vocabulary
            say(f"training a vocabulary of {size:,}")
            return Tokenizer.train(vocabulary_sample(corpus.documents(), held_out_frac), size, lowercase, exact)

        try:
            if entry_fault(partial):  # unless killed just before it was done
                make = trained if tokenizer is None else lambda: tokenizer
                _tokenise(partial, corpus, stamps, held_out_frac, make, say)
            if changed := [f for f, was, now in zip(corpus.files, stamps, corpus.stamps(), strict=True) if was != now]:
                raise DataError(f"{changed[0]}: changed while it was read; run the command again when it is complete")
        except DataError as error:
            if not isinstance(error.__cause__, OSError):  # a file that cannot be read now may be read later
                shutil.rmtree(partial)
            raise
        (partial / "PROGRESS.json").unlink(missing_ok=True)
        partial.rename(entry)
    return open_entry(entry)


@dataclass(frozen=True)
class _Progress:
    """PROGRESS.json: the document that comes next, and the length of each file up to it."""

    file: int
    document: int  # in that file
    documents: int  # so far
    stamps: list[tuple[int, ...]]  # of the corpus: what was read before must be what is there now
    tokenizer: str  # the checksum of its file
    note: str  # the tokenizer's
    sizes: dict[str, int]  # in bytes

    @classmethod
    def read(cls, partial: Path, stamps: list[tuple[int, ...]]) -> "_Progress | None":
        """Where a killed process came to; None where there is nothing to go on from."""
        try:
            own = cls(**json.loads((partial / "PROGRESS.json").read_text(encoding="utf-8")))
            long_enough = all((partial / name).stat().st_size >= own.sizes[name] for name in GROWING)
            whole = long_enough and sha256(partial / "tokenizer.json") == own.tokenizer
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return own if whole and [tuple(stamp) for stamp in own.stamps] == stamps else None

    def write(self, partial: Path) -> "_Progress":
        """On the disk, with the files as long as they are now."""
        sync(partial)
        own = replace(self, sizes={name: (partial / name).stat().st_size for name in GROWING})
        write_json(partial / "PROGRESS.json", asdict(own))
        return own


def _tokenise(
    partial: Path,
    corpus: Corpus,
    stamps: list[tuple[int, ...]],
    held_out_frac: float,
    make_tokenizer: Callable[[], Tokenizer],
    say: Say,
) -> None:
    """All files of an entry, sealed, in the directory `partial`, from where it stands."""
    progress = _Progress.read(partial, stamps)
    if progress is None:
        progress = _begin(partial, corpus, stamps, make_tokenizer)
        say("tokenising")
    else:
        say(f"going on with the tokenising, after {progress.documents:,} documents")
    tokenizer = Tokenizer.load(partial)
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    with _Writer(partial, progress.sizes, dtype) as out:
        numbered = corpus.numbered(progress.file, progress.document)
        for number, (batch, encoded) in enumerate(_encoded(numbered, tokenizer), start=1):
            for (_, _, text), ids in zip(batch, encoded, strict=True):
                hash = document_hash(text)
                split = "held_out" if is_held_out(hash, held_out_frac) else "train"
                out.add(split, hash, np.append(ids, tokenizer.sep_id))
            file, document, _ = batch[-1]
            done = progress.documents + len(batch)
            progress = replace(progress, file=file, document=document + 1, documents=done)
            if number % DURABLE_EVERY == 0:
                out.flush()
                progress = progress.write(partial)
    counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    for block in FileArray(partial / "train.tokens", dtype).blocks():
        counts += np.bincount(block, minlength=len(counts))
    (partial / "counts").write_bytes(counts.tobytes())
    seal(partial, dtype=dtype.__name__, note=progress.note)


def _begin(
    partial: Path, corpus: Corpus, stamps: list[tuple[int, ...]], make_tokenizer: Callable[[], Tokenizer]
) -> _Progress:
    """An empty `partial` with its tokenizer, the first thing to go on from."""
    for path in partial.iterdir():
        remove(path)
    if next(corpus.documents(), None) is None:
        raise DataError(f"--data {', '.join(map(str, corpus.files))}: no text in it, only blank lines or nothing")
    tokenizer = make_tokenizer()
    tokenizer.save(partial, model_max_length=int(1e9))
    for name in GROWING:
        (partial / name).write_bytes(np.zeros(1, np.int64).tobytes() if name.endswith("offsets") else b"")
    return _Progress(0, 0, 0, stamps, sha256(partial / "tokenizer.json"), tokenizer.note, {}).write(partial)


class _Writer:
    """Appends documents to the files of `directory`, which it first cuts to `sizes`."""

    def __init__(self, directory: Path, sizes: dict[str, int], dtype: Any) -> None:
        self.dtype = dtype
        for name in GROWING:
            os.truncate(directory / name, sizes[name])
        item = np.dtype(dtype).itemsize
        self._ends = {split: sizes[f"{split}.tokens"] // item for split in ("train", "held_out")}
        self._open = ExitStack()  # closes them all, even where one cannot be closed
        self._files = {name: self._open.enter_context((directory / name).open("ab")) for name in GROWING}

    def add(self, split: str, hash: int, ids: np.ndarray) -> None:
        self._ends[split] += len(ids)
        self._files[f"{split}.tokens"].write(ids.astype(self.dtype).tobytes())
        self._files[f"{split}.offsets"].write(self._ends[split].to_bytes(8, "little"))
        self._files["hashes"].write(hash.to_bytes(8, "little"))

    def flush(self) -> None:
        for file in self._files.values():
            file.flush()

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()


def _encoded(
    numbered: Iterable[tuple[int, int, str]], tokenizer: Tokenizer
) -> Iterator[tuple[list[tuple[int, int, str]], list[np.ndarray]]]:
    """Batches of documents with their ids, each tokenised while the one before is written and the next one read."""
    with ThreadPoolExecutor(max_workers=1) as worker:
        before = None
        for batch in _batches(numbered):
            coming = batch, worker.submit(tokenizer.encode_documents, [text for _, _, text in batch])
            if before:
                yield before[0], before[1].result()
            before = coming
        if before:
            yield before[0], before[1].result()


def _batches(numbered: Iterable[tuple[int, int, str]]) -> Iterator[list[tuple[int, int, str]]]:
    """Lists of documents for the tokenizer, which spreads them over the cores and needs some 100 bytes a token."""
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

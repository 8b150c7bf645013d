"""Token ids on disk: text is tokenised once, into flat arrays that a batch is a slice of.

A cache entry is one directory, renamed into place whole, under the hash of what decides its content:
    tokenizer.json  tokenizer_config.json  vocab.txt
    {train,held_out}.tokens  {train,held_out}.offsets  counts  META.json
Tokens are uint16, or uint32 for more than 65,536 words; every document is followed by [SEP].
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from minilm.data.corpus import Corpus, TrainingDocuments, is_held_out
from minilm.data.tokenizer import Tokenizer
from minilm.errors import DataError

FORMAT = 1
BESIDE = ("counts", "tokenizer.json", "tokenizer_config.json")
CONTENT = ("vocab.txt", "train.tokens", "train.offsets", "held_out.tokens", "held_out.offsets")
DOCUMENTS_AT_ONCE, CHARS_AT_ONCE = 1024, 4 << 20  # whichever comes first


@dataclass(frozen=True)
class Shard:
    """The documents of one split, end to end."""

    tokens: np.ndarray  # (tokens,) uint16 or uint32, memory-mapped; [SEP] after each document
    offsets: np.ndarray  # (documents + 1,) int64: document d is tokens[offsets[d] : offsets[d + 1]]

    def __len__(self) -> int:
        return len(self.offsets) - 1


@dataclass(frozen=True)
class Prepared:
    """A corpus ready to train on."""

    tokenizer: Tokenizer
    train: Shard
    held_out: Shard
    counts: np.ndarray  # (V,) int64: how often each token occurs in the training split
    fingerprint: str  # of the vocabulary and of both splits' tokens
    note: str  # what was decided on the way


def prepare(
    corpus: Corpus,
    cache_dir: Path,
    held_out_frac: float,
    tokenizer: Tokenizer | None = None,
    vocab_size: int = 8192,
    exact_vocab: bool = False,
    lowercase: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> Prepared:
    """Tokenised splits of `corpus`, made now or taken from the cache.

    held_out_frac: of the documents, by hash. Without a `tokenizer` a vocabulary is trained on the training split, of
    `vocab_size` words or, unless `exact_vocab`, of what the text supports. An entry whose checksums do not match is
    made anew. Raises DataError where there is no text, or not enough for the vocabulary.
    """
    settings = {
        "format": FORMAT,
        "corpus": corpus.fingerprint(),
        "held_out": held_out_frac,
        "vocabulary": [vocab_size, exact_vocab, lowercase] if tokenizer is None else tokenizer.fingerprint(),
    }
    key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    entry = cache_dir / f"tokens-{key[:16]}"
    if entry.exists():
        if fault := _fault(entry):
            say(f"cache {entry} is damaged ({fault}); making it anew")
            _remove(entry)
        else:
            return _open(entry)

    if not any(True for _ in islice(corpus.documents(), 1)):
        raise DataError(f"--data {', '.join(map(str, corpus.files))}: no text in it, only blank lines or nothing")
    if tokenizer is None:
        say(f"training a vocabulary of {vocab_size:,}")
        tokenizer = Tokenizer.train(TrainingDocuments(corpus, held_out_frac), vocab_size, lowercase, exact_vocab)
    say("tokenising")
    partial = cache_dir / f"tokens-{key[:16]}.{os.getpid()}.tmp"
    shutil.rmtree(partial, ignore_errors=True)  # of a dead process that had our number
    partial.mkdir(parents=True)
    try:
        _write(partial, corpus.documents(), tokenizer, held_out_frac)
        try:
            partial.rename(entry)
        except OSError:
            if not entry.exists():
                raise  # not another process that was faster, so a real failure
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return _open(entry)


def _write(directory: Path, documents: Iterable[str], tokenizer: Tokenizer, held_out_frac: float) -> None:
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    lengths: dict[str, list[int]] = {"train": [], "held_out": []}
    counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    with (
        (directory / "train.tokens").open("wb") as train,
        (directory / "held_out.tokens").open("wb") as held,
    ):
        files = {"train": train, "held_out": held}
        for texts in _batches(documents):
            own: dict[str, list[np.ndarray]] = {"train": [], "held_out": []}
            for text, ids in zip(texts, tokenizer.encode_documents(texts), strict=True):
                split = "held_out" if is_held_out(text, held_out_frac) else "train"
                own[split].append(np.append(ids, tokenizer.sep_id).astype(dtype))
            for split, arrays in own.items():
                lengths[split] += map(len, arrays)
                for ids in arrays:
                    files[split].write(ids.tobytes())
            if own["train"]:
                counts += np.bincount(np.concatenate(own["train"]), minlength=len(counts))
    for split, each in lengths.items():
        (directory / f"{split}.offsets").write_bytes(np.cumsum([0, *each], dtype=np.int64).tobytes())
    (directory / "counts").write_bytes(counts.tobytes())
    tokenizer.save(directory, model_max_length=int(1e9))
    meta = {
        "format": FORMAT,
        "dtype": dtype.__name__,
        "note": tokenizer.note,
        "sha256": {file.name: _sha256(file) for file in sorted(directory.iterdir())},
    }
    (directory / "META.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    """Lists of documents for the tokenizer, which spreads them over the cores and needs some 100 bytes a token."""
    batch: list[str] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document)
        if len(batch) == DOCUMENTS_AT_ONCE or size >= CHARS_AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _fault(entry: Path) -> str:
    """What is wrong with a cache entry, or nothing."""
    try:
        if not (entry / "META.json").is_file():
            return "it has no META.json"
        meta = json.loads((entry / "META.json").read_text(encoding="utf-8"))
        if meta["dtype"] not in ("uint16", "uint32") or not isinstance(meta["note"], str):
            return "META.json is not as it was written"
        bad = [name for name in (*CONTENT, *BESIDE) if _sha256(entry / name) != meta["sha256"][name]]
        if bad:
            return f"{bad[0]} has another checksum"
        tokens = int(np.fromfile(entry / "train.offsets", dtype=np.int64)[-1])
        if (entry / "train.tokens").stat().st_size != tokens * np.dtype(meta["dtype"]).itemsize:
            return "META.json names another dtype"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink()


def _open(entry: Path) -> Prepared:
    meta = json.loads((entry / "META.json").read_text(encoding="utf-8"))

    def shard(split: str) -> Shard:
        offsets = np.fromfile(entry / f"{split}.offsets", dtype=np.int64)
        file, dtype = entry / f"{split}.tokens", np.dtype(meta["dtype"])
        empty = file.stat().st_size == 0  # which cannot be mapped
        return Shard(np.empty(0, dtype) if empty else np.memmap(file, dtype, mode="r"), offsets)

    counts = np.fromfile(entry / "counts", dtype=np.int64)
    digests = [meta["sha256"][name] for name in CONTENT]
    fingerprint = hashlib.sha256("".join(digests).encode()).hexdigest()
    return Prepared(Tokenizer.load(entry), shard("train"), shard("held_out"), counts, fingerprint, meta["note"])

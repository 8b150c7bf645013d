"""Use a trained model, of any family: predictions, vectors of texts, the nearest texts, a mask's fillings."""

import itertools
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from minilm import cli
from minilm.checkpoint.model import find_model
from minilm.data.documents import is_jsonl, lines_of
from minilm.data.examples import Data, named_columns
from minilm.data.tables import check_regular
from minilm.dropin.inputs import max_tokens
from minilm.dropin.tokenizer import BertTokenizer
from minilm.errors import ConfigError, DataError, printable
from minilm.evaluation.embed import BATCH_SIZE, chunks, read_embedder, say_cut, search, vectors_of
from minilm.evaluation.predict import fill_mask, read_masked_lm
from minilm.tasks.named import TASKS, open_task, read_examples, read_source
from minilm.tasks.report import read_in_training
from minilm.tasks.task import Predictions, outputs_of
from minilm.tasks.tune import Tuning, length_of
from minilm.train.log import say
from minilm.train.ranks import Applied
from minilm.train.runtime import Precision, Runtime

SAY_EVERY = 10  # seconds
THREADS = (1, 1024)


@dataclass(frozen=True, kw_only=True)
class OfModel:
    """What every command is told of its model."""

    model: str
    """A directory, or a name on the Hugging Face hub."""
    revision: str | None = None
    """Branch, tag or commit of that name."""
    allow_pickle: bool = False
    """Read pytorch_model.bin in place of model.safetensors; from makers you trust only."""
    device: str = "auto"
    """cuda, mps or cpu."""
    precision: Precision = "fp32"
    """Of matrix products."""
    threads: int | None = None
    """Of the CPU; as many as torch takes, if not given."""
    json: str | None = None
    """Also write the result as JSON into this file, or print nothing else, with no file named."""

    def options(self) -> dict[str, Any]:
        """As `from_pretrained` takes them."""
        return {"revision": self.revision, "use_safetensors": False if self.allow_pickle else None}

    def runtime(self, model: torch.nn.Module) -> Runtime:
        """Moves `model` to its device."""
        runtime = Runtime.choose(self.device, self.precision, self.threads)
        torch.set_float32_matmul_precision("highest")  # fp32 is not TF32: figures are to be those of any machine
        model.to(runtime.device)
        return runtime

    def computing(self, model: torch.nn.Module) -> AbstractContextManager:
        """Moves `model` to its device; what is computed within is as precise as asked for."""
        return self.runtime(model).autocast()


@dataclass(frozen=True, kw_only=True)
class OfTexts(OfModel):
    """What is told where a file of texts is embedded."""

    data: Path
    """Text, also .gz or .xz, one text a line."""
    pooling: tuple[Literal["cls", "mean", "max"], ...] | None = None
    """How a text's states become one vector; as the model's sentence-transformers files say, or mean, if not given."""
    batch_size: int = BATCH_SIZE
    """Texts at a time."""

    def lines(self) -> Iterator[str]:
        if is_jsonl(self.data):
            raise DataError(f"--data {self.data}: jsonl is not read here; give a file of one text a line")
        if not self.data.is_file():
            raise DataError(f"--data {self.data}: {'not a regular file' if self.data.exists() else 'no such file'}")
        return lines_of(self.data)


@dataclass(frozen=True, kw_only=True)
class Embed(OfTexts):
    """A vector for each line of a text file, as a .npy."""

    out: Path
    """The .npy to write: float32, a row a line."""
    normalize: bool | None = None
    """Vectors of length 1; as the model's sentence-transformers files say, or not, if not given."""


@dataclass(frozen=True, kw_only=True)
class Search(OfTexts):
    """The lines of a text file that are nearest to a query, by cosine."""

    query: tuple[str, ...]
    """One or more texts."""
    top_k: int = 5
    """Lines found for each."""


@dataclass(frozen=True, kw_only=True)
class FillMask(OfModel):
    """The likeliest words for a mask in a text."""

    text: str
    """With one mask in it, as the model's tokenizer writes it: [MASK], or <mask>."""
    top_k: int = 5
    """How many."""


@dataclass(frozen=True, kw_only=True)
class Predict(OfModel):
    """What a tuned model says of each row of a table, of each word, or to each question; labels are not needed."""

    input: Path
    """csv, tsv, jsonl, json or parquet, also .gz or .xz; for tags one word a line (CoNLL), or lists of words; of
    questions a json is SQuAD's."""
    output: Path
    """The .csv, .tsv or .jsonl to write: the columns of --input, and what the model says. Of tags a .conll, .tsv or
    .jsonl; of questions a .json, as SQuAD's script takes answers, or a .jsonl."""
    text_column: str | None = None
    """By name, or number from 1; as in training, or found by its name or looks, if not given."""
    pair_column: str | None = None
    """Of a second text; --text-column is a question's, and this its context's."""
    header: bool | None = None
    """Whether a csv's first row names its columns; as it looks, if not given."""


WORDS = {
    "cut": "longer than what is read at once, and so cut or read in parts",
    "words_without_token": "words that the tokenizer drops, tagged O",
    "no_answer": "questions without an answer",
}


def run_predict(args: Predict) -> None:
    """A row for each row, in the same order, into a file that is there only when it is whole."""
    cli.check_result(args.json, input=args.input, output=args.output)
    cli.check_ranges(args, {"threads": THREADS})
    if args.output.suffix not in itertools.chain(*(each.endings for each in TASKS.values())):
        raise ConfigError(f"--output {args.output}: give a .csv, .tsv or .jsonl, of tags a .conll, of answers a .json")
    if not args.output.parent.is_dir() or args.output.is_dir():
        raise ConfigError(f"--output {args.output}: give a file in a directory that is there")
    if args.output.resolve() == args.input.resolve():
        raise ConfigError(f"--output {args.output}: is the file of --input; give another")
    check_regular(args.input)
    directory = find_model(args.model, args.revision, allow_pickle=args.allow_pickle, flag="--model")
    model, task = open_task(directory, use_safetensors=False if args.allow_pickle else None)
    if args.output.suffix not in task.endings:
        raise ConfigError(f"--output {args.output}: give one of {', '.join(task.endings)} for the task {task.name}")
    source = read_source(args.input, task.name, args.header)
    columns, trained_length = read_in_training(directory)
    trained = Data([], columns=columns)
    data = read_examples(source, task.name, args.text_column, args.pair_column, labelled=False, like=trained)
    for note in data.notes:
        say(note)
    columns = named_columns(data.columns)
    if columns and not any(note.startswith(columns) for note in data.notes):  # as in training, and so not looked for
        say(columns)
    tokenizer = BertTokenizer.from_pretrained(directory)
    usual = length_of(Tuning(), model, tokenizer)
    length = min(max_tokens(model.base_model.encoder.cfg, tokenizer), trained_length or usual)
    features = task.features(data.examples, tokenizer, length)
    outputs, _ = outputs_of(task, Applied(model), features, args.runtime(model), wants_loss=False)
    counts = {"rows": len(data.examples) + len(data.left_out), "cut": features.cut, "length": length}
    counts |= task.write(args.output, source, Predictions(outputs, features, data.examples))
    for why in data.left_out:
        say(f"nothing said of {why}")
    for name, count in counts.items():
        if count and name in WORDS:
            say(f"{WORDS[name]}: {count:,}")
    say(f"{counts['rows']:,} rows -> {args.output}")
    if args.json is not None:
        cli.write_result(args.json, counts)


def run_embed(args: Embed) -> None:
    """Vectors of all lines, streamed into a file that is there only when it is whole."""
    cli.check_result(args.json)
    cli.check_ranges(args, {"batch_size": (1, 1 << 20), "threads": THREADS})
    files = {"--data": args.data, "--out": args.out, "--json": args.json}
    for (one, file), (other, same) in itertools.combinations(files.items(), 2):
        if same not in (None, "-") and file.resolve() == Path(same).resolve():
            raise ConfigError(f"{other} {same}: is the file of {one}; give another")
    if args.out.suffix != ".npy" or not args.out.parent.is_dir() or args.out.is_dir():
        raise ConfigError(f"--out {args.out}: give a file that ends in .npy, in a directory that is there")
    count = sum(1 for _ in args.lines())
    if not count:
        raise DataError(f"--data {args.data}: holds no line")
    embedder = read_embedder(args.model, args.pooling, args.normalize, **args.options())
    width, cut, at = len(embedder.pooling.how) * embedder.model.config.hidden_size, 0, 0
    said = time.monotonic()
    partial = args.out.with_name(f".{args.out.name}.{os.getpid()}.tmp")  # two runs may have the same --out
    try:
        partial.unlink(missing_ok=True)  # of a dead process, or a link
        with partial.open("xb") as rows, args.computing(embedder.model):
            np.lib.format.write_array_header_1_0(
                rows, {"descr": "<f4", "fortran_order": False, "shape": (count, width)}
            )
            for chunk in chunks(args.lines()):
                vectors, long = vectors_of(embedder, chunk, args.batch_size)
                if at + len(chunk) > count:
                    raise DataError(f"--data {args.data}: changed while it was read")
                rows.write(vectors.numpy().astype("<f4", copy=False).tobytes())
                at, cut = at + len(chunk), cut + long
                if time.monotonic() - said > SAY_EVERY:
                    said = time.monotonic()
                    say(f"{at:,} of {count:,} lines")
            if at < count:
                raise DataError(f"--data {args.data}: changed while it was read")
            rows.flush()
            os.fsync(rows.fileno())
        os.replace(partial, args.out)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    say_cut(cut, count, embedder)
    how = " + ".join(embedder.pooling.how) + (", length 1" if embedder.pooling.normalize else "")
    say(f"{count:,} lines -> {args.out}: float32 ({count}, {width}), {how}")
    if args.json is not None:
        pooling = asdict(embedder.pooling)
        cli.write_result(args.json, {"texts": count, "cut": cut, "length": embedder.length, "width": width} | pooling)


def run_search(args: Search) -> None:
    """The nearest lines of each query."""
    cli.check_result(args.json)
    cli.check_ranges(args, {"batch_size": (1, 1 << 20), "top_k": (1, 1 << 20), "threads": THREADS})
    if not args.query:
        raise ConfigError("--query: give one or more texts")
    lines = args.lines()
    embedder = read_embedder(args.model, args.pooling, **args.options())
    with args.computing(embedder.model):
        found = search(embedder, args.query, lines, args.top_k, args.batch_size)
    if args.json is not None:
        hits = [[{"line": hit.row + 1, "score": hit.score, "text": hit.text} for hit in each] for each in found]
        results = [{"query": query, "hits": each} for query, each in zip(args.query, hits, strict=True)]
        cli.write_result(args.json, {"results": results})
    if args.json != "-":
        for query, hits in zip(args.query, found, strict=True):
            print(printable(query))
            for hit in hits:
                print(f"  {hit.score:6.3f}  {args.data}:{hit.row + 1}: {printable(hit.text.strip()[:200])}")


def run_fill_mask(args: FillMask) -> None:
    """The likeliest fillings."""
    cli.check_result(args.json)
    cli.check_ranges(args, {"top_k": (1, 1 << 20), "threads": THREADS})
    masked = read_masked_lm(args.model, **args.options())
    with args.computing(masked.model):
        fillings = fill_mask(masked, args.text, args.top_k)
    if args.json is not None:
        cli.write_result(args.json, {"fillings": [asdict(each) for each in fillings]})
    if args.json != "-":
        for each in fillings:
            print(printable(f"{each.probability:6.1%}  {each.token:16}  {each.text}"))


COMMANDS = {
    "predict": (run_predict, Predict),
    "embed": (run_embed, Embed),
    "search": (run_search, Search),
    "fill-mask": (run_fill_mask, FillMask),
}

if __name__ == "__main__":
    cli.run_one_of(COMMANDS)

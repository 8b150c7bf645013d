"""predict: what a tuned model says of new examples."""

import itertools
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from minilm import cli
from minilm.commands.of_model import THREADS, OfModel, going_on
from minilm.data.examples import named_columns
from minilm.data.tables import check_regular
from minilm.errors import ConfigError
from minilm.tasks.named import TASKS, read_examples, read_source
from minilm.train.log import say


@dataclass(frozen=True, kw_only=True)
class Predict(OfModel):
    """What a tuned model says of each row of a table, of each word, or to each question; labels are not needed.
    Stopped or killed, the same command goes on."""

    goes_on: ClassVar[bool] = True

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
    """What is said of each row, in their order, into a file that is there only when it is whole; a table has also the
    rows of which nothing is said."""
    cli.check_result(args.json, input=args.input, output=args.output)
    cli.check_ranges(args, {"threads": THREADS})
    if args.output.suffix not in itertools.chain(*(each.endings for each in TASKS.values())):
        raise ConfigError(f"--output {args.output}: give a .csv, .tsv or .jsonl, of tags a .conll, of answers a .json")
    cli.check_output("--output", args.output, input=args.input)
    check_regular(args.input)
    tuned = args.tuned()
    task = tuned.task
    if args.output.suffix not in task.endings:
        raise ConfigError(f"--output {args.output}: give one of {', '.join(task.endings)} for the task {task.name}")
    source = read_source(args.input, task.name, args.header, tuned.read_as)
    data = read_examples(source, task.name, args.text_column, args.pair_column, labelled=False, like=tuned.read_as)
    for note in data.notes:
        say(note)
    columns = named_columns(data.columns)
    if columns and not any(note.startswith(columns) for note in data.notes):  # as in training, and so not looked for
        say(columns)
    features = tuned.features(data.examples)
    counts = {"rows": len(data.examples) + len(data.left_out), "cut": features.cut, "length": tuned.length}
    is_stream, of = cli.is_stream(args.output), tuned.decides(features)
    with nullcontext() if is_stream else going_on("--output", args.output, of) as kept:
        if kept and kept.told:
            say(f"going on after {kept.told['batches']:,} batches")
        predictions = tuned.predictions(data.examples, features, kept)
        predictions.check_finite(str(args.input))
        text, more = task.file_text(args.output.suffix, source, predictions)
        cli.write_output("--output", args.output, text)
    counts |= more
    for why in data.left_out:
        say(f"nothing said of {why}")
    for name, count in counts.items():
        if count and name in WORDS:
            say(f"{WORDS[name]}: {count:,}")
    say(f"predictions of {len(data.examples):,} rows -> {args.output}")
    if args.json is not None:
        cli.write_result(args.json, counts)

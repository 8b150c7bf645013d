"""predict: predictions of a tuned model for new examples."""

import itertools
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from minilm import cli
from minilm.commands.of_model import OfModel, going_on
from minilm.errors import ConfigError
from minilm.labelled.examples import named_columns
from minilm.labelled.tables import check_regular
from minilm.tasks.named import TASKS, check_header, read_examples, read_source
from minilm.train.log import say


@dataclass(frozen=True, kw_only=True)
class Predict(OfModel):
    """Predictions of a tuned model for the rows of a table, for words or for questions; labels are not needed. After a
    stop or kill, the same command resumes."""

    goes_on: ClassVar[bool] = True

    input: Path
    """csv, tsv, jsonl, json or parquet, also .gz or .xz; for tagging one word a line (CoNLL), or lists of words; for
    questions a json is SQuAD's."""
    output: Path
    """The .csv, .tsv or .jsonl to write: the columns of --input, and the predictions. For tagging a .conll, a .tsv
    or a .jsonl; for questions a .json, as SQuAD's script takes answers, or a .jsonl."""
    text_column: str | None = None
    """Column of the texts, by name or number from 1; if not given, as in training, or found by name or content."""
    pair_column: str | None = None
    """Column of a second text; for questions, of the context (--text-column is that of the question), for choices of
    what each begins with."""
    header: bool | None = None
    """Whether a csv's first row names its columns; if not given, as it looks."""


WORDS = {
    "cut": "longer than the model reads, so truncated or read in windows",
    "words_without_token": "words that the tokenizer drops, tagged O",
    "no_answer": "questions without an answer",
}


def run_predict(args: Predict) -> None:
    """Write the predictions of all rows, in order, into a file that appears only when it is complete. A table also
    keeps the rows that have no prediction."""
    cli.check_result(args.json, input=args.input, output=args.output)
    if args.output.suffix not in itertools.chain(*(each.endings for each in TASKS.values())):
        raise ConfigError(f"--output {args.output}: give a .csv, .tsv or .jsonl, of tags a .conll, of answers a .json")
    cli.check_output("--output", args.output, input=args.input)
    check_regular(args.input)
    tuned = args.tuned()
    task = tuned.task
    if args.output.suffix not in task.endings:
        raise ConfigError(f"--output {args.output}: give one of {', '.join(task.endings)} for the task {task.name}")
    check_header(args.header, task.name, args.input)
    columns = args.text_column, args.pair_column
    source = read_source(args.input, task.name, args.header, tuned.trained_on, columns)
    data = read_examples(source, task.name, *columns, labelled=False, like=tuned.trained_on)
    for note in data.notes:
        say(note)
    columns = named_columns(data.columns)
    if columns and not any(note.startswith(columns) for note in data.notes):  # taken from training, not found
        say(columns)
    if tuned.trained_on.origin:
        say("choices are counted from 0 in predictions, and were from 1 in the labels of training")
    features = tuned.features(data.examples)
    counts = {"rows": len(data.examples) + len(data.left_out), "cut": features.cut, "length": tuned.length}
    is_stream, of = cli.is_stream(args.output), tuned.decides(features)
    with nullcontext() if is_stream else going_on("--output", args.output, of) as kept:
        if kept and kept.told:
            say(f"resuming after {kept.told['batches']:,} batches")
        predictions = tuned.predictions(data.examples, features, kept)
        predictions.check_finite(str(args.input))
        text, more = task.file_text(args.output.suffix, source, predictions)
        cli.write_output("--output", args.output, text)
    counts |= more
    for why in data.left_out:
        say(f"no prediction for {why}")
    for name, count in counts.items():
        if count and name in WORDS:
            say(f"{WORDS[name]}: {count:,}")
    say(f"predictions of {len(data.examples):,} rows -> {args.output}")
    if args.json is not None:
        cli.write_result(args.json, counts)

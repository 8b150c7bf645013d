"""Flags and steps that the commands share which judge a system on labelled examples."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from minilm import cli
from minilm.commands.of_model import OfModel, counted
from minilm.errors import ConfigError
from minilm.finetuning.examples import say_notes
from minilm.finetuning.tuned import Tuned
from minilm.judging.judged import AT_ONCE, Judged, Labelled, judged_model, with_positive
from minilm.judging.prediction_files import Columns, judged_file
from minilm.labelled.examples import Data
from minilm.tasks.named import TaskName, check_header, read_examples, read_source
from minilm.tasks.task import Task

MODEL_FLAGS = ("precision", "threads", "revision", "allow_pickle")  # flags that are for models alone


@dataclass(frozen=True, kw_only=True)
class OfLabelled(OfModel):
    """Flags of a command on labelled examples."""

    model: str | None = None
    """A directory, or a name on the Hugging Face hub."""
    data: Path | None = None
    """Labelled examples: csv, tsv, jsonl, json or parquet, also .gz or .xz; for tagging one word a line (CoNLL), for
    questions SQuAD's .json."""
    task: TaskName | None = None
    """The task of files of predictions, classification if not given; a model knows its own."""
    text_column: str | None = None
    """Column of the texts, by name or number from 1; if not given, as in training, or found by name or content."""
    pair_column: str | None = None
    """Column of a second text; for questions, of the context (--text-column is that of the question), for choices of
    what each begins with."""
    label_column: str | None = None
    """Column of the labels."""
    prediction_column: str | None = None
    """Column of the predictions in a file of them; if not given, found by name."""
    header: bool | None = None
    """Whether a csv's first row names its columns; if not given, as it looks."""
    positive_label: str | None = None
    """Which of two labels f1, precision and recall are for; if not given, as in training, or the second: of one model's
    labels in their order, else by name."""


def check_no_predictions(args: OfLabelled) -> None:
    """Raises ConfigError for a column of predictions where models are judged alone."""
    if args.prediction_column is not None:
        raise ConfigError(f"--prediction-column {args.prediction_column}: only for files of predictions; leave it out")


def check_no_model(args: OfLabelled) -> None:
    """Raises ConfigError for a flag that is for models alone where there is none."""
    if given := [name for name in MODEL_FLAGS if getattr(args, name) != getattr(type(args), name)]:
        raise ConfigError(f"{cli.flag(given[0])}: for models, and predictions are there already; leave it out")


def read_labelled(args: OfLabelled, file: Path, name: TaskName, like: Data | None = None) -> Labelled:
    """The labelled examples of a file; says what was inferred about it, and which rows are left out."""
    columns = args.text_column, args.pair_column, args.label_column
    data = read_examples(source := read_source(file, name, args.header, like, columns), name, *columns, like=like)
    say_notes(file.name, data)
    return Labelled(data, source)


class Judgement(NamedTuple):
    """A system's predictions, the labelled examples, and the model, if the system is one."""

    judged: Judged
    labelled: Labelled
    tuned: Tuned | None


def judge_file(args: OfLabelled, file: Path, labelled: Labelled | None = None) -> Judgement:
    """Judge a file of predictions, on the examples of --data or its own. labelled: those of --data, if they are read
    already."""
    task = args.task or "classification"
    check_header(args.header, task, args.data, file)
    if labelled is None and args.data is not None:
        labelled = read_labelled(args, args.data, task)
    named = Columns(args.text_column, args.pair_column, args.label_column, args.prediction_column, args.header)
    found, data, source = judged_file(file, task, *(labelled or (None, None)), named)
    if labelled is None:
        say_notes(file.name, data)
    found = replace(found, task=with_positive(found.task, args.positive_label))
    return Judgement(found, labelled or Labelled(data, source), None)


def judge_model(
    args: OfLabelled,
    name: str,
    task: str | None = None,
    check: Callable[[Task, Labelled], None] = lambda task, labelled: None,
) -> Judgement:
    """Judge a tuned model on the examples of --data, in the columns that it was tuned on. task: the task that it must
    have, as earlier systems. check: called before the model runs, with its task and the examples."""
    if args.data is None:
        raise ConfigError(f"{name}: a model needs labelled examples; give them with --data")
    tuned = args.tuned(name)
    if task not in (None, tuned.task.name):
        raise ConfigError(f"{name}: is for task {tuned.task.name}, and the one before it for {task}; give one task's")
    if args.task not in (None, tuned.task.name):
        raise ConfigError(f"--task {args.task}: {name} is for {tuned.task.name}, and knows it; leave the flag out")
    tuned = replace(tuned, task=with_positive(tuned.task, args.positive_label))
    check_header(args.header, tuned.task.name, args.data)
    labelled = read_labelled(args, args.data, tuned.task.name, tuned.trained_on)
    check(tuned.task, labelled)
    return Judgement(judge_tuned(name, tuned, labelled), labelled, tuned)


def judge_tuned(name: str, tuned: Tuned, labelled: Labelled) -> Judged:
    """Judge an open model, and report progress."""

    def watched(starts: range) -> Iterable[int]:
        return counted(starts, len(starts), f"parts of {AT_ONCE:,} examples")

    return judged_model(name, tuned, labelled.data.examples, watched)

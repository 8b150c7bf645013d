"""Fine-tune a model on labelled examples: a table in, a model directory out that tells the labels of new texts.

The path of an example: tables -> examples (minilm/data), a task and its features (minilm/tasks), the loop of
pretraining (minilm/train), and to disk (minilm/checkpoint).
"""

from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from minilm import cli
from minilm.checkpoint.model import find_model
from minilm.checkpoint.store import Store
from minilm.data.examples import Data
from minilm.data.libraries import embedded_examples
from minilm.data.splits import check_labels, overlap, split_dev
from minilm.data.tables import read_table
from minilm.dropin.models import PreTrainedModel
from minilm.dropin.tokenizer import BertTokenizer
from minilm.errors import ConfigError
from minilm.tasks.named import TaskName, make_task, model_for, read_examples
from minilm.tasks.report import closing, write_report
from minilm.tasks.task import Task
from minilm.tasks.tune import Tuning, tune
from minilm.train.log import say

QUICK = Path("checkpoints/quick-mlm")
DEV = 0.1  # of the examples, where no --dev is given
SHOWN = 5  # rows that are left out


@dataclass(frozen=True)
class Args:
    """Fine-tune a model on labelled examples. Alone, it learns from which library a documentation text is."""

    train: Path | None = None
    """csv, tsv, jsonl, json or parquet, also .gz or .xz; an embedded labelled set, if not given."""
    dev: Path | None = None
    """Examples by which the best model is chosen; a tenth of --train, if not given."""
    test: Path | None = None
    """Examples that nothing is chosen by."""
    task: TaskName = "classification"
    """What is learned."""
    model: str | None = None
    """A directory, or a name on the Hugging Face hub; checkpoints/quick-mlm, if not given."""
    out: Path | None = None
    """Where everything goes; checkpoints/NAME-OF-TRAIN, if not given."""
    text_column: str | None = None
    """By name, or number from 1; found by its name or looks, and said, if not given."""
    pair_column: str | None = None
    """Of a second text."""
    label_column: str | None = None
    """Of the label, or the number."""
    header: bool | None = None
    """Whether a csv's first row names its columns; as it looks, if not given."""
    check: bool = False
    """Say what is in the files, and stop."""
    epochs: float | None = None
    """Passes over the examples; 3, if not given."""
    steps: int | None = None
    """Instead of --epochs."""
    batch_size: int = 32
    """Examples of a step."""
    lr: float | None = None
    """Peak learning rate; by the model's size, if not given."""
    length: int | None = None
    """Tokens read of an example; as many as the model reads, at most 512, if not given."""
    evaluate_every: int | None = None
    """Steps between evaluations; an epoch, if not given."""
    patience: int = 3
    """Evaluations without a better one that end the run; the best model is kept in any case."""
    weight_decay: float = 0.01
    """Of matrices and tables, decoupled."""
    warmup_frac: float = 0.1
    """Fraction of the steps over which the learning rate rises; then it falls linearly to 0."""
    class_weights: Literal["balanced"] | None = None
    """balanced: each label counts alike in the loss, however rare."""
    label_smoothing: float = 0.0
    """Of the targets, towards all labels alike."""
    layer_decay: float = 1.0
    """Of the learning rate, from each layer to the one below."""
    frozen_layers: int = 0
    """The embedding and so many layers, from the first on, stay as they are."""
    gradient_checkpointing: bool = False
    """Compute every layer again in the backward pass instead of keeping it: less memory, a third more time."""
    seed: int = 0
    """Of the new head, the order of the examples, and dropout."""
    resume: Literal["auto", "never"] = "auto"
    """auto goes on from the newest complete checkpoint in OUT; never refuses an OUT that holds a run."""
    device: str = "auto"
    """cuda, mps or cpu; auto takes the first of these that is there."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """auto takes the fastest that the device computes natively."""
    threads: int | None = None
    """Of the CPU; torch's choice if not given."""
    json: str | None = None
    """Write the result there; alone or -, to standard output."""


RANGES = {  # inclusive
    "epochs": (1e-3, 1e4),
    "steps": (1, 10**9),
    "batch_size": (1, 10**5),
    "lr": (1e-9, 1.0),
    "length": (4, 2**16),
    "evaluate_every": (1, 10**9),
    "patience": (1, 10**6),
    "weight_decay": (0.0, 10.0),
    "warmup_frac": (0.0, 0.9),
    "label_smoothing": (0.0, 0.9),
    "layer_decay": (0.1, 1.0),
    "frozen_layers": (0, 1000),
    "seed": (0, 2**58),
    "threads": (1, 1024),
}


def main(args: Args) -> None:
    """One run, from flags to the last line."""
    cli.check_ranges(args, RANGES)
    cli.check_result(args.json)
    if args.epochs is not None and args.steps is not None:
        raise ConfigError("--epochs and --steps: two budgets at once; give one")
    train, dev, test = load(args)
    if args.check:
        return
    name = "libraries" if args.train is None else args.train.name.split(".")[0]
    store = Store(args.out or Path("checkpoints") / name)
    store.check_writable()
    task = make_task(args.task, train.examples, args.class_weights, args.label_smoothing)
    model, tokenizer, task, settings = load_model(args, task)
    own = {field.name for field in fields(Tuning)} - {"epochs"}
    chosen = {each: getattr(args, each) for each in own if hasattr(args, each)}
    tuning = Tuning(**chosen, **({} if args.epochs is None else {"epochs": args.epochs}))
    with ExitStack() as held:
        held.enter_context(store.hold())
        tuned = tune(
            task,
            model,
            tokenizer,
            train.examples,
            dev.examples,
            tuning,
            store,
            settings | {"columns": train.columns},
            args.device,
            args.precision,
            args.threads,
            args.resume,
        )
        result = write_report(tuned, store.out, train, dev, test)
    lines = closing(result, store.out)
    for line in lines:
        say(line) if args.json == "-" else print(line)
    if args.json:
        cli.write_result(args.json, result)


def load(args: Args) -> tuple[Data, Data, Data | None]:
    """The examples to learn from, to choose by, and to test on, which may be none; what is in them is said."""
    if args.train is None:
        for name in ("dev", "test", "text_column", "pair_column", "label_column", "header"):
            if (value := getattr(args, name)) is not None:
                raise ConfigError(f"{cli.flag(name)} {value}: goes with --train; name that")
        if args.task != "classification":
            raise ConfigError(f"--task {args.task}: give examples of it with --train")
        say("no --train: learning which library a documentation text is from (its own names and paths are blanked)")
        train, dev, test = (Data(split) for split in embedded_examples())
    else:
        train = read(args, "train", args.train)
        dev = None if args.dev is None else read(args, "dev", args.dev)
        test = None if args.test is None else read(args, "test", args.test)
        if dev is None:
            parts = split_dev(train.examples, DEV, args.seed)
            train, dev = (Data(part, columns=train.columns) for part in parts)
            say(f"no --dev: a tenth of the examples, {len(dev.examples):,}, chooses the best model")
    for name, split in (("dev", dev), ("test", test)):
        if split is not None:
            for note in check_labels(train.examples, split.examples):
                say(f"{name}: {note}")
            if (again := overlap(train.examples, split.examples)).count:
                say(f"{name}: {again.count:,} texts stand in the training examples, too; the first {again.first[0][0]}")
    uses = ((train, "learn from"), (dev, "choose by"), (test, "test on"))
    say("examples: " + ", ".join(f"{len(split.examples):,} to {use}" for split, use in uses if split))
    return train, dev, test


def read(args: Args, name: str, file: Path) -> Data:
    """One file's examples; what was decided by looking, and which rows are left out, is said."""
    data = read_examples(
        read_table(file, args.header), args.task, args.text_column, args.pair_column, args.label_column
    )
    for note in data.notes:
        say(f"{name}: {note}")
    for why in data.left_out[:SHOWN]:
        say(f"left out: {why}")
    if len(data.left_out) > SHOWN:
        say(f"left out: {len(data.left_out) - SHOWN:,} more rows of {file}")
    return data


def load_model(args: Args, task: Task) -> tuple[PreTrainedModel, BertTokenizer, Task, dict[str, Any]]:
    """The model to begin with, its tokenizer, the task as its head has it, and what a run remembers of it."""
    directory = QUICK if args.model is None else find_model(args.model, flag="--model")
    if args.model is None and not (QUICK / "config.json").exists():
        raise ConfigError(f"--model: {QUICK} is not there; run python train.py, or name a model")
    model, task = model_for(task, directory, args.seed)
    say(f"beginning with {directory}")
    return model, BertTokenizer.from_pretrained(directory), task, {"model_name": str(args.model or QUICK)}


if __name__ == "__main__":
    cli.run(main, Args)

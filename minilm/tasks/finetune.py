"""Fine-tuning as a function of rows in hand."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from minilm.checkpoint.model import find_model
from minilm.checkpoint.store import Store
from minilm.data.examples import Data
from minilm.data.splits import check_labels, overlap, split_by_text
from minilm.data.tables import table_of
from minilm.dropin.tokenizer import BertTokenizer
from minilm.errors import ConfigError, did_you_mean
from minilm.tasks.named import TASKS, TaskName, make_task, model_for, read_examples
from minilm.tasks.tune import Tuned, Tuning, tune
from minilm.train.log import say

DEV = 0.1  # of the rows, where none are given to choose by
SHOWN = 5  # rows that are left out


def finetune(
    model: Path | str,
    rows: Any,
    dev: Any = None,
    *,
    task: TaskName = "classification",
    text: str | int | None = None,
    pair: str | int | None = None,
    label: str | int | None = None,
    out: Path | str | None = None,
    class_weights: Literal["balanced"] | None = None,
    label_smoothing: float = 0.0,
    positive_label: str | None = None,
    new_head: bool = False,
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    **tuning: Any,
) -> Tuned:
    """A model tuned on rows: `.predict(texts)`, `.model`, `.result` with the scores of its best epoch.

    model: a directory or a name on the hub. rows, dev: lists of dicts, a DataFrame or a `datasets.Dataset`; a tenth of
    the rows, if `dev` is None. text, pair, label: columns, found by their names or looks, if not given. out: where the
    run is kept, and gone on with; None: nowhere. tuning: fields of `Tuning`, as epochs or lr.

    Raises UserError in one line for what cannot be, TypeError for a keyword that there is none of.
    """
    if task not in TASKS:
        raise ConfigError(f"task {task!r} is none of {', '.join(TASKS)}{did_you_mean(str(task), TASKS)}")
    settings, directory = Tuning(**tuning), find_model(model)
    data = read_examples(table_of(rows), task, text, pair, label)
    say_notes("rows", data)
    if dev is None:
        data, other = held_out(data, settings.seed)
    else:
        other = read_examples(table_of(dev, "dev"), task, text, pair, label, like=data)
        say_notes("dev", other)
    say_compared("dev", data, other)
    made = make_task(task, data.examples, class_weights, label_smoothing, positive_label)
    network, made = model_for(made, directory, settings.seed, new_head)
    tokenizer = BertTokenizer.from_pretrained(directory)
    with tempfile.TemporaryDirectory() as scratch:
        store = Store(Path(scratch) / "run" if out is None else Path(out))
        store.check_writable()
        with store.hold():
            return tune(
                made,
                network,
                tokenizer,
                data.examples,
                other.examples,
                settings,
                store,
                {"columns": data.columns, "model_name": str(model)},
                device=device,
                precision=precision,
                threads=threads,
            )


def held_out(data: Data, seed: int, groups: Sequence[str] | None = None) -> tuple[Data, Data]:
    """(The rest, a tenth of the examples); which is said."""
    rest, dev = split_by_text(data.examples, DEV, seed, groups)
    data, dev = replace(data, examples=rest), replace(data, examples=dev, left_out=())
    say(f"no dev examples: a tenth of those to learn from, {len(dev.examples):,}, chooses the best model")
    return data, dev


def say_compared(name: str, train: Data, other: Data) -> None:
    """What others have that is not in training: labels; and what they should not have: its texts. Raises DataError."""
    for note in check_labels(train.examples, other.examples):
        say(f"{name}: {note}")
    if (again := overlap(train.examples, other.examples)).count:
        say(f"{name}: {again.count:,} texts stand in the training examples, too; the first {again.first[0][0]}")


def say_notes(name: str, data: Data) -> None:
    """What was decided by looking, and which rows are left out."""
    for note in data.notes:
        say(f"{name}: {note}")
    for why in data.left_out[:SHOWN]:
        say(f"left out: {why}")
    if len(data.left_out) > SHOWN:
        say(f"left out: {len(data.left_out) - SHOWN:,} more of {name}")

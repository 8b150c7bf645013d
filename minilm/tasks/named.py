"""The tasks by name: reading their examples, and opening or making the model of each."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import torch

from minilm.checkpoint.pooling import read_pooling
from minilm.data.documents import uncompressed_name
from minilm.dropin.config import PreTrainedConfig
from minilm.dropin.models import (
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    PreTrainedModel,
)
from minilm.errors import CheckpointError, ConfigError, DataError, some
from minilm.labelled.cells import INDEX, NUMBER, is_usual
from minilm.labelled.examples import SEPARATORS, Data, as_text, read_choices, read_texts
from minilm.labelled.spans import OF_ROWS, is_one_word_a_line, read_questions, read_tagged
from minilm.labelled.tables import Table, listed, read_table, table_of
from minilm.metrics.scores import scheme_of
from minilm.tasks.choice import MultipleChoice
from minilm.tasks.classification import POSITIVE, Classification, MultiLabel
from minilm.tasks.regression import Regression
from minilm.tasks.similarity import Similarity
from minilm.tasks.span import Span
from minilm.tasks.tagging import Tagging
from minilm.tasks.task import Task
from minilm.train.log import say

TaskName = Literal["classification", "multilabel", "regression", "similarity", "tagging", "span", "choice"]
TASKS: dict[str, type[Task]] = {
    each.name: each for each in (Classification, MultiLabel, Regression, Similarity, Tagging, Span, MultipleChoice)
}
SHOWN = 20  # labels in a message
HEADS = {  # what a head was trained for, by its config's problem_type
    "single_label_classification": "one label of several",
    "multi_label_classification": "any number of labels",
}
MODELS = {  # by Task.kind
    "sequence": BertForSequenceClassification,
    "token": BertForTokenClassification,
    "span": BertForQuestionAnswering,
    "choice": BertForMultipleChoice,
    "model": BertModel,
}


def read_source(
    file: Path,
    name: TaskName,
    header: bool | None = None,
    like: Data | None = None,
    named: Iterable[str | int | None] = (),
) -> Table | Path:
    """The table of a file of examples; or the file itself, where it is SQuAD's .json, or one word a line for tagging.
    header: as in `read_table`. like: the training data; a first row with its columns' names, or those in `named`, is a
    header, and one without any usual name is none where training had no header. Raises DataError."""
    of_squad = name == "span" and uncompressed_name(file).endswith(".json")
    if of_squad or (name == "tagging" and is_one_word_a_line(file)):
        return file
    table = read_table(file, header)
    names = {own for role, own in like.columns.items() if role in ("text", "pair")} if like else set()
    given = {each for each in named if isinstance(each, str) and not each.isdigit()}
    wanted = [each for each in (given, names) if each - {*table.columns}]
    if header is not None or not wanted:
        return table
    first = {str(cell).strip() for cell in table.rows[0].cells.values()} if table.rows else set()
    if any(each <= first for each in wanted):
        return read_table(file, header=True)
    if given or not all(map(str.isdigit, names)) or not _may_be_rows(table):
        return table
    table = read_table(file, header=False)
    return replace(table, notes=(*table.notes, "no header, as in training: columns are numbered from 1"))


def source_of(
    rows: Any, name: str, task: TaskName, like: Data | None = None, named: Iterable[str | int | None] = ()
) -> Table | Path:
    """`table_of` rows in memory; of a file, given by its path, `read_source`. Raises DataError."""
    is_file = isinstance(rows, str | Path)
    return read_source(Path(rows), task, like=like, named=named) if is_file else table_of(rows, name)


def _may_be_rows(table: Table) -> bool:
    """Whether the first row, read as a header, could be one of data: it has no usual name, and is not above numbers."""
    if any(is_usual(each) or each == INDEX for each in table.columns):
        return False
    columns = ([str(row.cells.get(column)).strip() for row in table.rows] for column in table.columns)
    return not any(all(map(NUMBER.fullmatch, cells)) for cells in columns)


def check_header(header: bool | None, name: TaskName, *files: Path | None) -> None:
    """Raises ConfigError for --header or --no-header where no file is a csv or tsv of rows."""
    given = [file for file in files if file is not None]
    of_cells = (name != "tagging" and not uncompressed_name(file).endswith(OF_ROWS) for file in given)
    if header is not None and given and not any(of_cells):
        raise ConfigError(f"{'--header' if header else '--no-header'}: {given[0]} is no csv; leave it out")


def read_examples(
    source: Table | Path,
    name: TaskName,
    text: str | None = None,
    pair: str | None = None,
    label: str | None = None,
    labelled: bool = True,
    like: Data | None = None,
) -> Data:
    """The task's examples, from what `read_source` returned. text, pair, label: columns by name, or by number from 1;
    the pair is the context of a question, and what each of several choices begins with. like: the training data, whose
    columns (if the table has them) and separator are used. Raises DataError, ConfigError."""
    columns = {"text": text, "beginning" if name == "choice" else "pair": pair, "label": label}
    roles = [*columns][: 2 + labelled]
    if like is not None and isinstance(source, Table):
        trained = {role: like.columns[role] for role in roles if role in like.columns and columns[role] is None}
        lacks = [role for role, name in trained.items() if name not in source.columns]
        whole = {*lacks} <= {"label"}  # the text and its pair are taken together, or neither is
        kept = {role: name for role, name in trained.items() if role not in lacks and (whole or role == "label")}
        columns = {role: own or kept.get(role) for role, own in columns.items()}
        if lacks and not (text or pair):
            names = listed(trained[role] for role in lacks)
            source = replace(source, notes=(*source.notes, f"columns of the training data are missing: {names}"))
    if name == "tagging":
        return _read_tagged(source, labelled=labelled, **columns)
    if name == "choice":
        data = read_choices(source, labelled, like.origin if like else None, **columns)
        began = like.columns.get("beginning") if like else None
        if began and "beginning" not in data.columns:
            raise DataError(f"{source.name}: in training choices began with column {began!r}; name it, --pair-column")
        return data
    if name == "span":
        if label is not None or (isinstance(source, Path) and (text or pair)):
            which = "--text-column, --pair-column" if label is None else f"--label-column {label}"
            raise ConfigError(f"{which}: a .json of questions has no columns, and answers of a table are in `answers`")
        named = {} if isinstance(source, Path) else {"question": columns["text"], "context": columns["pair"]}
        return read_questions(source, **named, labelled=labelled)
    kind = "regression" if name == "similarity" else name
    told = {"separator": _separator(like, name), "flags": like.flags} if like else {"separator": None}
    data = read_texts(source, kind, **columns, labelled=labelled, **told)
    if name == "similarity" and "pair" not in data.columns:
        raise DataError(f"{source.name}: similarity needs two texts; name the second's column with --pair-column")
    if like is not None and like.columns and ("pair" in data.columns) != ("pair" in like.columns):
        there, here = ("two texts", "one") if "pair" in like.columns else ("one text", "two")
        raise DataError(f"{source.name}: training used {there} a row, but here {here} would be read; name the columns")
    return data


def _separator(like: Data, name: TaskName) -> str | None:
    """What separates labels in data like this; None: to be guessed, for training had them as lists, and no mark in
    them."""
    if like.separator or name != "multilabel":
        return like.separator
    marks = any(mark in label for each in like.examples for label in each.label or () for mark in SEPARATORS)
    return like.separator if marks else None


def read_alike(
    source: Table | Path, name: TaskName, like: Data, text: str | None, pair: str | None, label: str | None
) -> Data:
    """`read_examples` for dev or test data: training's columns where the table has them all, else the given ones; for
    tagging the usual ones, where one of the files has one word a line and the other one lists."""
    columns, is_table = {like.columns[role] for role in like.columns if role != "choices"}, isinstance(source, Table)
    has_all = is_table and bool(columns) and columns <= {*source.columns}
    has_all |= name == "tagging" and is_table != bool(columns)
    return read_examples(source, name, *((None, None, None) if has_all else (text, pair, label)), like=like)


def _read_tagged(source: Table | Path, text: str | None, pair: str | None, label: str | None, labelled: bool) -> Data:
    if pair is not None:
        raise ConfigError("--pair-column: not used for tagging; leave it out")
    if not isinstance(source, Table):
        if text is not None:
            raise ConfigError("--text-column: not used for tagging in a file of one word a line; leave it out")
        if label is not None and not re.fullmatch("[1-9][0-9]{0,3}", label):
            raise ConfigError(
                f"--label-column {label}: for tagging give a column's number in a file of one word a line"
            )
        label = label and int(label)
    data = read_tagged(source, label, labelled, text)
    tags = [each.tags or () for each in data.examples]
    if any(tag != "O" for sentence in tags for tag in sentence):
        data = replace(data, notes=(*data.notes, f"the tag scheme is {scheme_of(tags)}"))
    return data


def make_task(
    name: TaskName,
    examples: Sequence[Any],
    weights: Literal["balanced"] | None = None,
    smoothing: float = 0.0,
    positive: str | None = None,
) -> Task:
    """The task with the labels of `examples`, sorted, O before other tags. Raises ConfigError for an option that the
    task does not have."""
    task, positive = TASKS[name].of(examples), as_text(positive, "--positive-label", "value")
    if not isinstance(smoothing, Real) or not 0 <= smoothing <= 0.9:
        raise ConfigError(f"--label-smoothing {smoothing}: give a value from 0 to 0.9")
    if weights not in (None, "balanced"):
        raise ConfigError(f"--class-weights {weights}: give balanced, or leave it out")
    if not (weights or smoothing or positive is not None):
        return task
    if not isinstance(task, Classification):
        given = "--class-weights" if weights else "--label-smoothing" if smoothing else "--positive-label"
        raise ConfigError(f"{given}: only for --task classification; leave it out")
    if positive is not None and (many := len(task.labels)) != 2:
        raise ConfigError(f"--positive-label {positive}: is for two labels, and the examples have {many}; leave it out")
    if positive is not None and positive not in task.labels:
        raise ConfigError(f"--positive-label {positive}: the labels are {' and '.join(task.labels)}; give one of these")
    counts = Counter(each.label for each in examples)
    balanced = tuple(len(examples) / len(counts) / counts[label] for label in task.labels)  # on average over examples 1
    return replace(task, weights=balanced if weights else None, smoothing=smoothing, positive=positive)


def open_task(directory: Path, use_safetensors: bool | None = None) -> tuple[PreTrainedModel, Task]:
    """A tuned model and its task. use_safetensors: as in `from_pretrained`. Raises CheckpointError for a model without
    a task's head."""
    config = PreTrainedConfig.of_directory(directory)
    kind = _kind_of(config)
    if kind is None or (kind == "model" and read_pooling(directory) is None):
        what = ", ".join(config.architectures or ["nothing"])
        raise CheckpointError(f"{directory}: is {what}, which predicts no labels; fine-tune it with finetune.py")
    model = MODELS[kind].from_pretrained(directory, use_safetensors=use_safetensors)
    labels = tuple(config.id2label[i] for i in range(config.num_labels))
    known = {"token": Tagging(labels), "span": Span(), "choice": MultipleChoice(), "model": Similarity()}
    if kind in known:
        return model, known[kind].as_saved(model)
    if config.problem_type == "regression" and config.num_labels > 1:
        raise CheckpointError(f"{directory}: predicts {config.num_labels} numbers a text, not one")
    if config.problem_type == "regression" or (config.problem_type is None and config.num_labels == 1):
        return model, Regression()
    if config.problem_type == "multi_label_classification":
        return model, MultiLabel(labels)
    return model, Classification(labels).as_saved(model)


def _kind_of(config: PreTrainedConfig) -> str | None:
    """Which of MODELS a directory's config names; None: no such model."""
    return next((kind for kind in config.family.kinds(config.architectures) if kind in MODELS), None)


def model_for(task: Task, directory: Path, seed: int = 0, new_head: bool = False) -> tuple[PreTrainedModel, Task]:
    """The model of a directory with a head for the task; and the task, with its labels in the order of the head. A head
    that the directory lacks is initialised at random, by `seed`; new_head: in any case. Raises ConfigError for a head
    of other labels, CheckpointError."""
    config = PreTrainedConfig.of_directory(directory)
    made, wanted, there = MODELS[task.kind], task.config(), _kind_of(config)
    if config.is_causal:
        config.update({"is_decoder": False})
        if not config.is_causal:
            say(f"{directory} is a causal model; tuned, and as it is saved, its attention is bidirectional")
        elif task.kind == "model":
            raise ConfigError(f"--model {directory}: a {config.model_type}, which is causal; take another")
    if new_head and task.kind == "model":
        raise ConfigError(f"--new-head: {task.name} has no head; leave it out")
    if task.kind != "model" and there not in (None, "model", task.kind):
        new_head = True  # the parts of another task's head may have the same names
    if there == task.kind and not new_head:
        own, labels = tuple(config.id2label[i] for i in range(config.num_labels)), wanted.get("id2label", {}).values()
        if labels:
            config.check_labels()
        fits = {*own} >= {*labels} if labels else len(own) == wanted.get("num_labels", len(own))
        if not fits:
            raise ConfigError(
                f"--model {directory}: predicts {some(own, SHOWN)}, and the examples are labelled "
                f"{some([*labels], SHOWN) or 'with a number'}; take another model, or give --new-head"
            )
        weights = getattr(task, "weights", None)
        if weights is not None:
            of_label = dict(zip(task.labels, weights, strict=True))
            task = replace(task, weights=tuple(of_label.get(label, 1.0) for label in own))
        if labels:
            task = replace(task, labels=own)
            was = config.problem_type
            if was in HEADS and was != wanted.get("problem_type", was):
                say(f"the head of {directory} was trained on {HEADS[was]}, and is now for --task {task.name}")
        if len(own) != 2 and (positive := getattr(task, "positive", None)) is not None:
            what = f"--positive-label {positive}: needs two labels, and {directory} predicts {some(own, SHOWN)}"
            raise ConfigError(f"{what}; leave it out, or give --new-head")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config.update(({POSITIVE: None} if hasattr(config, POSITIVE) else {}) | task.config())
        model = made.from_pretrained(directory, config=config, dtype=torch.float32, ignore_mismatched_sizes=new_head)
        if new_head:
            model.untrained = tuple(name for name, part in model.named_children() if part is not model.base_model)
            drawn = made(config)
            for name in model.untrained:
                getattr(model, name).load_state_dict(getattr(drawn, name).state_dict())
    return model, task.with_model(model)


def new_model(task: Task, config: PreTrainedConfig, seed: int = 0) -> tuple[PreTrainedModel, Task]:
    """A model with random weights, drawn by `seed`, and its task."""
    config.update(task.config())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MODELS[task.kind](config)
    model.untrained = tuple(name for name, _ in model.named_children())
    return model, task.with_model(model)

"""Fine-tuning as a function of rows in memory, and opening a tuned model again."""

import tempfile
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any, Literal

from minilm.checkpoint.model import find_model
from minilm.checkpoint.store import Store
from minilm.dropin.inputs import max_tokens
from minilm.dropin.tokenizer import BertTokenizer
from minilm.errors import ConfigError, did_you_mean
from minilm.finetuning.examples import held_out, say_compared, say_notes
from minilm.finetuning.report import columns_to_keep, kept_columns
from minilm.finetuning.run import tune
from minilm.finetuning.settings import Tuning, length_of
from minilm.finetuning.tuned import Tuned
from minilm.labelled.splits import wide_labels
from minilm.machine.runtime import Runtime
from minilm.tasks.named import TASKS, TaskName, make_task, model_for, open_task, read_alike, read_examples, source_of


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
    auto_batch: bool = False,
    deterministic: bool = False,
    compile: bool = False,
    cuda_graphs: bool = False,
    **tuning: Any,
) -> Tuned:
    """Fine-tune a model on rows: the result has `.predict(texts)`, `.model` and `.result`, its best evaluation.

    model: a directory or a name on the hub. rows, dev: lists of dicts, a DataFrame, a `datasets.Dataset`, or the path
    of a file as finetune.py reads it; if `dev` is None, a tenth of the rows is held out. text, pair, label: columns; if
    not given, found by name or content.
    out: a directory in which the run is kept, and from which it resumes; None: nowhere. auto_batch: compute batches
    that do not fit in memory in smaller parts. deterministic: the same bits each time on an Nvidia GPU, too, for the
    rest of this process; ask for it before the process uses the GPU. compile: on an Nvidia GPU, compile model and loss
    into one graph with torch.compile. cuda_graphs: on an Nvidia GPU, replay steps as CUDA graphs. tuning: fields of
    `Tuning`, as epochs or lr.

    Raises UserError, whose message is one line, for invalid arguments or data, TypeError for an unknown keyword.
    """
    if task not in TASKS:
        raise ConfigError(f"task {task!r} is none of {', '.join(TASKS)}{did_you_mean(str(task), TASKS)}")
    known = {*signature(finetune).parameters, *(field.name for field in fields(Tuning))} - {"tuning"}
    if strange := next((name for name in tuning if name not in known), None):
        raise TypeError(f"finetune() has no argument {strange!r}{did_you_mean(strange, known)}")
    settings, directory = Tuning(**tuning), find_model(model)
    if settings.epochs is not None and settings.steps is not None:
        raise ConfigError("epochs and steps: exclude each other; give one")
    data = read_examples(source_of(rows, "the rows", task, None, (text, pair, label)), task, text, pair, label)
    say_notes("rows", data, *wide_labels(data.examples, task))
    if dev is None:
        data, other = held_out(data, settings.seed)
    else:
        other = read_alike(source_of(dev, "dev", task, data, (text, pair, label)), task, data, text, pair, label)
        say_notes("dev", other)
    say_compared("dev", data, other)
    made = make_task(task, data.examples, class_weights, label_smoothing, positive_label)
    network, made = model_for(made, directory, settings.seed, new_head)
    tokenizer = BertTokenizer.from_pretrained(directory)
    with tempfile.TemporaryDirectory() as scratch:
        store = Store(Path(scratch) / "run", temporary=True) if out is None else Store(Path(out))
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
                columns_to_keep(data) | {"model_name": str(model)},
                device=device,
                precision=precision,
                threads=threads,
                auto_batch=auto_batch,
                deterministic=deterministic,
                compile=compile,
                cuda_graphs=cuda_graphs,
            )


def open_tuned(
    model: Path | str,
    *,
    revision: str | None = None,
    allow_pickle: bool = False,
    device: str = "auto",
    precision: str = "fp32",
    threads: int | None = None,
    flag: str = "model",
) -> Tuned:
    """Open a tuned model to predict, score or explain: on its device, reading as many tokens as in training. Its
    `result` holds the columns that training read, and no scores.

    model: a directory or a name on the hub, and `revision` its branch, tag or commit. allow_pickle: read
    pytorch_model.bin, only from makers you trust. flag: the name of `model` in error messages. Raises UserError.
    """
    if Path(model).is_file():
        raise ConfigError(f"{flag} {model}: is a file, not a model directory")
    directory = find_model(model, revision, allow_pickle=allow_pickle, flag=flag)
    network, task = open_task(directory, use_safetensors=False if allow_pickle else None)
    read, trained_length = kept_columns(directory)
    tokenizer = BertTokenizer.from_pretrained(directory)
    usual = length_of(Tuning(), network, tokenizer)
    length = min(max_tokens(network.base_model.encoder.cfg, tokenizer), trained_length or usual)
    network.float()  # whatever the file's dtype: `precision` decides
    runtime = Runtime.precise(network, device, precision, threads)
    return Tuned(network, tokenizer, task, runtime, length, read)

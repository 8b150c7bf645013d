"""Fine-tune a model on labelled examples: a table in, a model directory out that predicts the labels of new ones.

The path of an example: tables -> examples (minilm/labelled), a task and its features (minilm/tasks), the loop of
pretraining (minilm/train), and to disk (minilm/checkpoint). Flags, batches and report are in minilm/finetuning.
"""

from minilm.errors import end_quietly

if __name__ == "__main__":
    end_quietly()  # before torch is loaded

import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from minilm import cli
from minilm.checkpoint.model import find_model
from minilm.checkpoint.store import Store
from minilm.data.tokenizer import Tokenizer
from minilm.dropin.config import BertConfig
from minilm.dropin.models import PreTrainedModel
from minilm.dropin.tokenizer import BertTokenizer
from minilm.errors import ConfigError, DataError
from minilm.files import finite, write_json
from minilm.finetuning.examples import DEV, held_out, say_compared, say_notes, say_overlap
from minilm.finetuning.flags import Args, check_flags, computed, tuning_of
from minilm.finetuning.report import (
    baseline_line,
    check_lines,
    closing,
    columns_to_keep,
    next_command,
    warning,
    write_report,
)
from minilm.finetuning.run import tune
from minilm.finetuning.settings import length_of
from minilm.labelled.cells import TEXT_NAMES, plain_name
from minilm.labelled.examples import Data, as_text
from minilm.labelled.libraries import embedded_examples
from minilm.labelled.splits import classes_of, folds, split_by_text, texts_of, wide_labels
from minilm.labelled.tables import Table
from minilm.metrics.intervals import spread
from minilm.tasks.named import make_task, model_for, new_model, read_alike, read_examples, read_source
from minilm.tasks.task import Task, scores_line
from minilm.train.log import say

QUICK = Path("checkpoints/quick-mlm")
SCRATCH = {  # a model that has learned nothing
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 512,
    "max_position_embeddings": 256,
}
OF_TEXTS = ("classification", "multilabel", "regression", "similarity")  # tasks whose columns are guessed
OVERFIT_STEPS, LEARNED = 100, 0.05  # steps on one batch, and the fraction of a usual loss that counts as learned


def main(args: Args) -> None:
    """Fine-tune once or several times as `args` say, and print and write the result."""
    name = "libraries" if args.train is None else args.train.name.lstrip(".").removesuffix(".gz").removesuffix(".xz")
    out = args.out or Path("checkpoints") / Path(name).stem
    check_flags(args, out)
    runs = list(load(args))
    if args.check:
        for line in check(args, runs[0]):
            print(line)
        return
    if args.overfit_batch:
        result, lines = overfit(args, runs[0])
    elif len(runs) == 1:
        result, lines = one(args, out, runs[0])
    else:
        result, lines = several(args, out, runs)
    for line in lines:
        say(line) if args.json == "-" else print(line)
    if args.json:
        cli.write_result(args.json, result)


@dataclass(frozen=True)
class Run:
    """Seed, name and data of one run."""

    name: str  # of its directory in OUT; "" for OUT itself
    seed: int
    train: Data
    dev: Data
    test: Data | None


def overfit(args: Args, run: Run) -> tuple[dict[str, Any], list[str]]:
    """Train on one batch in a temporary directory: (result, a line that says whether it was learned)."""
    few = replace(run.train, examples=of_all_classes(run.train.examples, args.batch_size))
    task = task_of(args, run)
    model, tokenizer, task, _ = load_model(args, task, run)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    tuning = tuning_of(args, run.seed)
    units = len(task.features(few.examples, tokenizer, length_of(tuning, model, tokenizer)).units) - 1
    more = {"steps": args.steps or OVERFIT_STEPS, "batch_size": units, "evaluate_every": 10**9}
    tuning = replace(tuning, **more)
    with tempfile.TemporaryDirectory() as scratch:
        store = Store(Path(scratch) / "run", temporary=True)
        with store.hold():
            result = tune(task, model, tokenizer, few.examples, few.examples, tuning, store, **computed(args)).result
    several = "example" if len(few.examples) == 1 else "examples"
    found = f"{len(few.examples)} {several} after {result['steps']} steps: loss {result['dev']['loss']:.4f}"
    by_heart = any(result["dev"].get(name) == 1 for name in (*task.proportions, "f1"))
    learned = result["dev"]["loss"] < LEARNED * task.scale(run.train.examples) or by_heart
    what = "it learns them" if learned else "it does NOT learn them: check their labels, --lr and --length"
    return result | {"learned": learned}, [f"{found}; {what}"]


def of_all_classes(examples: list[Any], count: int) -> list[Any]:
    """At most `count` examples, of each class about as many, spread over all; a constant answer is wrong on some."""
    of_class: dict[str, list[Any]] = {}
    for each, name in zip(examples, classes_of(examples), strict=True):
        of_class.setdefault(name, []).append(each)
    found, left = [], len(of_class)
    for own in sorted(of_class.values(), key=len):
        share = min(len(own), (count - len(found)) // left)
        found += [own[i * len(own) // share] for i in range(share)]
        left -= 1
    return found


def one(args: Args, out: Path, run: Run) -> tuple[dict[str, Any], list[str]]:
    """Train one run in `out` and write its report: (result, lines to print)."""
    store = Store(out)
    store.check_writable()
    task = task_of(args, run)
    model, tokenizer, task, about = load_model(args, task, run)
    files = {f"{name}_file": str(file) for name in ("train", "dev", "test") if (file := getattr(args, name))}
    with store.hold():
        tuned = tune(
            task,
            model,
            tokenizer,
            run.train.examples,
            run.dev.examples,
            tuning_of(args, run.seed),
            store,
            about | columns_to_keep(run.train),
            resume=args.resume,
            until=cli.time_up(args.time_limit),
            **computed(args),
        )
        result = write_report(tuned, out, run.train, run.dev, run.test, files)
    return result, closing(result, out)


def task_of(args: Args, run: Run) -> Task:
    """The task of --task, with the flags that concern it."""
    return make_task(args.task, run.train.examples, args.class_weights, args.label_smoothing, args.positive_label)


def several(args: Args, out: Path, runs: list[Run]) -> tuple[dict[str, Any], list[str]]:
    """Train each run in its own directory in `out`: (result with mean scores and their intervals, lines to print)."""
    name = runs[0].name.split("-")[0]
    check_several(out, name)
    results = []
    for number, run in enumerate(runs, start=1):
        say(f"{run.name}: {number} of {len(runs)}")
        result, _ = one(args, out / run.name, run)
        say(f"{run.name}: {scores_line(result['scores'])}")
        results.append(result)
    found = spread([each["scores"] for each in results])
    shared = [each for each in results[0]["baselines"] if all(each in result["baselines"] for result in results)]
    baselines = {each: spread([result["baselines"][each] for result in results]) for each in shared}
    of_runs = {run.name: each["scores"] for run, each in zip(runs, results, strict=True)}
    judged_on, judged = results[0]["judged_on"], results[0]["judged"]
    if name == "fold":
        judged = sum(each["judged"] for each in results)
    result = {"judged_on": judged_on, "judged": judged, "runs": of_runs, "scores": found, "baselines": baselines}
    write_json(out / "results.json", finite(result))
    lines = [
        f"{metric.replace('_', ' '):18} {each['mean']:.4f} +- {each['half_width']:.4f} (95 % interval of the mean of "
        f"{len(runs)} {name}s), sd {each['sd']:.4f}"
        for metric, each in found.items()
    ]
    if name == "fold":
        note = "each by a model of the other fold"
        note += "s, which share examples: the interval is too narrow" if len(runs) > 2 else ""
    else:
        note = "dev, which also chose the models: expect less on new ones" if judged_on == "dev" else "those of --test"
        note += "; intervals are over seeds alone, not over examples"
    lines.append(f"judged on  {judged:,} examples, {note}")
    means = {each: {metric: own["mean"] for metric, own in scores.items()} for each, scores in baselines.items()}
    metric = next(iter(found))
    lines += [baseline_line(*each, metric) for each in means.items()]
    lines += warning({each: own[metric] for each, own in means.items()}, found[metric]["mean"])
    if name == "fold":
        return result, [*lines, f"saved      {out}", "next       the same without --kfold: one model"]
    best = max(range(len(runs)), key=lambda i: results[i]["dev"][metric])  # nothing is chosen by a test
    command = next_command(out / runs[best].name, results[best])
    return result, [*lines, f"saved      {out}", f"next       {command}"]


def check_several(out: Path, kind: str) -> None:
    """Raises ConfigError if `out` holds anything but several runs of this kind ("seed" or "fold")."""
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    names = {name for name in names if not name.startswith(".results.json.")}  # of a write that was killed
    strangers = {name for name in names if not re.fullmatch(f"{kind}-[0-9]+", name)}
    if strangers - ({"results.json"} if len(names) > 1 else set()):
        other = min(strangers - {"results.json"}, default="results.json")
        raise ConfigError(f"--out {out}: holds {other} and not several {kind}s; choose an empty directory")


def check(args: Args, run: Run) -> Iterator[str]:
    """Lines on what is in the files and how it fits the model."""
    directory = model_directory(args)
    task = task_of(args, run)
    tokenizer, length = None, 0
    if directory:
        model, task = model_for(task, directory, run.seed, args.new_head)
        tokenizer = BertTokenizer.from_pretrained(directory)
        length = length_of(tuning_of(args, run.seed), model, tokenizer)
    else:
        yield f"no {QUICK} and no --model is there to count tokens with"
    for name, split in (("train", run.train), ("dev", run.dev), ("test", run.test)):
        if split is not None:
            yield from check_lines(name, split, task, tokenizer, length)


def load(args: Args) -> Iterator[Run]:
    """The runs that the flags ask for, with their examples. Logs what is in these."""
    groups: list[str] | None = None
    if args.train is None:
        for name in ("dev", "test", "text_column", "pair_column", "label_column", "header"):
            if (value := getattr(args, name)) is not None:
                raise ConfigError(f"{cli.flag(name)} {value}: goes with --train; give that")
        if args.task != "classification":
            raise ConfigError(f"--task {args.task}: give examples of it with --train")
        say("no --train: learning which library a documentation text is from (its own names and paths are blanked)")
        train, dev, test = (Data(split) for split in embedded_examples())
    else:
        train, groups = read(args, "train", args.train)
        dev = None if args.dev is None else read(args, "dev", args.dev, train)[0]
        test = None if args.test is None else read(args, "test", args.test, train)[0]
    if args.kfold:
        group_of = {} if groups is None else dict(zip(map(id, train.examples), groups, strict=True))
        for i, (rest, fold) in enumerate(folds(train.examples, args.kfold, args.seed, groups), start=1):
            inner, chosen = split_by_text(rest, DEV, args.seed, groups and [group_of[id(each)] for each in rest])
            parts = [replace(train, examples=part, left_out=()) for part in (inner, chosen, fold)]
            say_compared(f"fold-{i}, dev", parts[0], parts[1])
            say_compared(f"fold-{i}, test", parts[0], parts[2])
            yield Run(f"fold-{i}", args.seed, replace(train, examples=inner), *parts[1:])
        return
    if dev is None:
        train, dev = held_out(train, args.seed, groups)
    for name, split in (("dev", dev), ("test", test)):
        if split is not None:
            say_compared(name, train, split)
    if test is not None:
        say_overlap("test", test, "dev", dev)
    uses = ((train, "train"), (dev, "dev"), (test, "test"))
    say("examples: " + ", ".join(f"{len(split.examples):,} {use}" for split, use in uses if split))
    for seed in range(args.seed, args.seed + args.seeds):
        yield Run(f"seed-{seed}" if args.seeds > 1 else "", seed, train, dev, test)


def read(args: Args, name: str, file: Path, like: Data | None = None) -> tuple[Data, list[str] | None]:
    """(examples of a file, their groups). like: data whose columns it is read by. Groups only for --train with
    --group-column, else None. Logs what was guessed and which rows are left out."""
    columns = args.text_column, args.pair_column, args.label_column
    read_from = source = read_source(file, args.task, args.header, like, (*columns, args.group_column))
    if args.group_column is not None and like is None:
        if not isinstance(source, Table):
            raise ConfigError(f"--group-column {args.group_column}: {file} has no columns")
        column, columns = source.column(args.group_column), tuple(each and source.column(each) for each in columns)
        may_be_text = plain_name(column) in TEXT_NAMES or len(source.columns) < 3
        if args.task in OF_TEXTS and column not in columns and not may_be_text:  # lest it be taken for a label
            read_from = replace(source, columns=tuple(each for each in source.columns if each != column))
    data = read_alike(source, args.task, like, *columns) if like else read_examples(read_from, args.task, *columns)
    say_notes(name, data, *(() if like else wide_labels(data.examples, args.task)))
    if args.group_column is None or like is not None:
        return data, None
    of_row = {row.where: as_text(row.cells.get(column), row.where, "group") for row in source.rows}
    groups = [of_row[each.where] for each in data.examples]
    if not all(groups):
        where = next(each.where for each, group in zip(data.examples, groups, strict=True) if not group)
        raise DataError(f"{where}: no group in column {column!r}; give it one, or leave the row out")
    return data, groups


def model_directory(args: Args) -> Path | None:
    """Directory of the model to start from; None: there is none, and training starts from scratch. Raises UserError."""
    if args.model is not None:
        return find_model(args.model, flag="--model")
    if (QUICK / "config.json").exists():
        return QUICK
    if args.new_head:
        raise ConfigError("--new-head: training from scratch has no other; leave it out, or give --model")
    return None


def load_model(args: Args, task: Task, run: Run) -> tuple[PreTrainedModel, BertTokenizer, Task, dict[str, Any]]:
    """(model to start from, its tokenizer, the task with the labels of its head, entries about it for the result)."""
    if directory := model_directory(args):
        model, task = model_for(task, directory, run.seed, args.new_head)
        say(f"starting from {directory}" + (", with a new head" if args.new_head else ""))
        return model, BertTokenizer.from_pretrained(directory), task, {"model_name": str(Path(args.model or QUICK))}
    say(f"training from scratch: {QUICK} is not there (python train.py makes it), and no --model is given")
    words = Tokenizer.train(text for each in run.train.examples for text in texts_of(each))
    tokenizer = BertTokenizer(words.backend, model_max_length=SCRATCH["max_position_embeddings"])
    config = BertConfig(vocab_size=words.vocab_size, **SCRATCH)
    model, task = new_model(task, config, run.seed)
    return model, tokenizer, task, {"model_name": "from scratch"}


if __name__ == "__main__":
    cli.run(main, Args)

"""compare: whether one system is better than another, or it is these examples."""

from dataclasses import dataclass, replace
from itertools import chain
from typing import Annotated, Any

import numpy as np
import tyro

from minilm import cli
from minilm.commands.labelled import OfLabelled, judge
from minilm.commands.of_model import THREADS, tell
from minilm.errors import ConfigError, DataError, did_you_mean, printable
from minilm.judging.judged import Judged
from minilm.judging.score import check_labels, deciding_metric
from minilm.metrics.compare import compare
from minilm.tasks.classification import Classification, MultiLabel
from minilm.tasks.task import Task
from minilm.train.log import say


@dataclass(frozen=True, kw_only=True)
class Compare(OfLabelled):
    """Whether one system is better than another on the same examples: paired tests, differences with intervals."""

    systems: tyro.conf.Positional[tuple[str, ...]]
    """Two or more: tuned models, or files of their predictions; each difference is that of a later one from an earlier
    one."""
    model: Annotated[None, tyro.conf.Suppress, tyro.conf.Fixed] = None
    metric: str | None = None
    """That decides, and whose p is corrected for several comparisons; the task's first, if not given."""
    with_first: bool = False
    """Compare all others with the first one only, not each with each."""


def run_compare(args: Compare) -> None:
    """All systems on the examples of --data, or of the first file."""
    cli.check_result(args.json, data=args.data)
    cli.check_ranges(args, {"threads": THREADS})
    if len(args.systems) < 2 or len({*args.systems}) < len(args.systems):
        raise ConfigError(f"compare {' '.join(args.systems)}: name two or more different systems")
    found: list[Judged] = []
    labelled = None
    for system in args.systems:
        say(f"judging {system}")
        judgement = judge(args, system, labelled)
        found.append(judgement.judged)
        labelled = labelled or (judgement.labelled if args.data else None)
    check_same(found)
    task = shared_task(found)
    if isinstance(task, Classification):
        check_labels(found[0])
    names = task.weighted(task.records_of(found[0].examples[:1], found[0].decoded[:1]), np.ones((1, 1)))
    if args.metric is not None and args.metric not in names:
        raise ConfigError(f"--metric {args.metric}: give one of {', '.join(names)}{did_you_mean(args.metric, names)}")
    systems = {own.name: task.records_of(found[0].examples, own.decoded) for own in found}
    baseline = found[0].name if args.with_first else None
    deciding = args.metric or deciding_metric(found[0].task)
    result = {"task": task.name} | compare(systems, task.weighted, task.proportions, deciding, baseline)
    tell(args.json, result, _lines(result))


def check_same(found: list[Judged]) -> None:
    """Raises DataError where systems are not judged by the same labels of the same examples."""
    first = found[0]
    for own in found[1:]:
        if own.task.name != first.task.name:
            raise DataError(f"{own.name}: is of the task {own.task.name}, and {first.name} of {first.task.name}")
        if len(own) != len(first):
            raise DataError(f"{own.name}: {len(own):,} examples, and {first.name} has {len(first):,}; give the same")
        for mine, theirs in zip(own.examples, first.examples, strict=True):
            if mine._replace(where="") != theirs._replace(where=""):
                raise DataError(f"{mine.where}: not the text and label of {theirs.where}; give the same examples")


def shared_task(found: list[Judged]) -> Task:
    """The task with the labels of all, so that their numbers mean the same."""
    task = found[0].task
    if not isinstance(task, Classification | MultiLabel):
        return task
    labels = tuple(sorted({*chain.from_iterable(own.task.labels for own in found)}))
    positive = {"positive": task.labels[task.positive_number]} if len(labels) == 2 else {}
    return replace(task, labels=labels, **(positive if isinstance(task, Classification) else {}))


def _lines(result: dict[str, Any]) -> list[str]:
    lines = [f"{result['n']:,} examples, {result['task']}; p of {result['deciding'].replace('_', ' ')} decides"]
    several = len(result["comparisons"]) > 1
    for each in result["comparisons"]:
        lines += ["", f"{printable(each['b'])} against {printable(each['a'])}"]
        lines.append(f"{'':20} {'first':>8} {'second':>8} {'second - first':>15}  {'95 % interval':22} p")
        for name, own in each["metrics"].items():
            lines.append(_line(name, own))
        own = each["metrics"][result["deciding"]]
        if several:
            p = "not tested" if each["p_holm"] is None else f"{each['p_holm']:.4f}"
            lines.append(f"p of {result['deciding'].replace('_', ' ')} corrected for all comparisons (Holm): {p}")
        if "only_a" in own:
            lines.append(f"right in only the first {own['only_a']:,}, in only the second {own['only_b']:,}")
    return lines


def _line(name: str, own: dict[str, Any]) -> str:
    shown_name = f"{name.replace('_', ' '):20}"
    if own["difference"] is None:
        return f"{shown_name} {own['reason']}"
    ends = own.get("reason", "") if own["low"] is None else f"{own['low']:+.4f} to {own['high']:+.4f}"
    p = "" if own["p"] is None else f"{own['p']:.4f}"
    return f"{shown_name} {own['a']:8.4f} {own['b']:8.4f} {own['difference']:+15.4f}  {ends:22} {p}"

"""compare: whether one system is better than another, or only on these examples."""

from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from minilm import cli
from minilm.commands.labelled import OfLabelled, check_no_model, check_no_predictions, judge_file, judge_model
from minilm.commands.of_model import p_value, tell
from minilm.errors import ConfigError, DataError, did_you_mean, printable
from minilm.judging.judged import Judged
from minilm.judging.metric_tables import ACCURACIES, metric_tables
from minilm.judging.score import check_labels, deciding_metric
from minilm.labelled.examples import Example, in_order
from minilm.metrics.compare import ALIKE, compare
from minilm.metrics.intervals import FEWEST
from minilm.tasks.classification import Classification, MultiLabel
from minilm.train.log import say

ENDINGS = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".conll", ".txt", ".gz", ".xz")  # file suffixes


@dataclass(frozen=True, kw_only=True)
class Compare(OfLabelled):
    """Whether one system is better than another on the same examples: paired tests, differences with intervals."""

    systems: tyro.conf.Positional[tuple[str, ...]]
    """Two or more systems: tuned models, or files of predictions; a difference is a later system's score less an
    earlier one's."""
    model: Annotated[None, tyro.conf.Suppress, tyro.conf.Fixed] = None
    metric: str | None = None
    """The metric that decides, whose p is corrected for several comparisons; if not given, the task's first, or f1
    where a positive label is given, or was in training."""
    with_first: bool = False
    """Compare all others with the first one only, not each with each."""


def run_compare(args: Compare) -> None:
    """Compare all systems on the examples of --data, or of the first file."""
    cli.check_result(args.json, data=args.data)
    if len(args.systems) < 2 or len({Path(each).resolve() for each in args.systems}) < len(args.systems):
        raise ConfigError(f"compare {' '.join(args.systems)}: name two or more different systems")
    if args.json is not None and Path(args.json).resolve() in {Path(each).resolve() for each in args.systems}:
        raise ConfigError(f"--json {args.json}: is one of the systems; give another")
    if args.json is not None and _may_be_predictions(Path(args.json)):
        raise ConfigError(f"--json {args.json}: may be predictions; give a new name, or --json after the systems")
    if args.revision is not None and all(Path(each).exists() for each in args.systems):
        raise ConfigError(f"--revision {args.revision}: all systems are on this machine, as they are; leave it out")
    files = {each for each in args.systems if Path(each).suffix in ENDINGS or Path(each).is_file()}
    if not files:
        check_no_predictions(args)
    if len(files) == len(args.systems):
        check_no_model(args)
    judged: dict[str, Judged] = {}
    labelled = None
    for system in sorted(args.systems, key=lambda each: each in files):  # models first, which know their task
        say(f"judging {system}")
        if system in files:
            own = judge_file(args, Path(system), labelled)
        else:
            own = judge_model(args, system, args.task if judged else None)
        args, judged[system] = replace(args, task=own.judged.task.name), own.judged
        labelled = labelled or (own.labelled if args.data else None)
    found = [judged[system] for system in args.systems]
    check_same(found)
    if isinstance(found[0].task, Classification):
        check_labels(found[0])
    is_asked = any(deciding_metric(own.task) for own in found)
    found = with_same_labels(found)
    deciding = args.metric or (deciding_metric(found[0].task) if is_asked else None)
    result = {"task": found[0].task.name} | compared(found, deciding, args.with_first)
    if cut := {own.name: own.cut for own in found if own.cut}:
        result["cut"] = cut
    tell(args.json, result, _lines(result))


def _may_be_predictions(file: Path) -> bool:
    """Whether a file that is there may be a system's, which `--json a.json b.json` would overwrite; no result is."""
    content = file.read_bytes() if file.suffix in ENDINGS and file.is_file() else b""
    return bool(content) and b'"comparisons"' not in content


def check_same(found: list[Judged]) -> None:
    """Raises DataError if systems are not judged on the same examples with the same labels."""
    first = found[0]
    for own in found[1:]:
        if own.task.name != first.task.name:
            raise DataError(f"{own.name}: is for task {own.task.name}, and {first.name} for {first.task.name}")
        if len(own) != len(first):
            raise DataError(f"{own.name}: {len(own):,} examples, and {first.name} has {len(first):,}; give the same")
        for mine, theirs in zip(own.examples, first.examples, strict=True):
            if not _is_same(mine, theirs):
                raise DataError(
                    f"{mine.where}: not the text and label of {theirs.where}; give the same examples, or with --data"
                )


def _is_same(mine: Any, theirs: Any) -> bool:
    """Whether two systems' examples are the same; of one row, each system may read the texts that it was tuned on."""
    if mine.where == theirs.where and isinstance(mine, Example):
        return mine.label == theirs.label
    return mine._replace(where="") == theirs._replace(where="")


def with_same_labels(found: list[Judged]) -> list[Judged]:
    """The systems with all their labels in one order, so that label indices mean the same."""
    task = found[0].task
    if not isinstance(task, Classification | MultiLabel):
        return found
    labels = in_order(chain.from_iterable(own.task.labels for own in found))
    if isinstance(task, Classification) and len(labels) == 2:
        asked = sorted({own.task.positive for own in found} - {None})
        if len(asked) > 1:
            raise ConfigError(f"--positive-label: the models were tuned for {' and '.join(asked)}; name one")
        task = replace(task, positive=asked[0] if asked else labels[1])
    elif isinstance(task, Classification):
        task = replace(task, positive=None)
    task = replace(task, labels=labels)
    return [
        replace(
            own, task=task, records=task.records_of(own.examples, own.decoded), probabilities=_in_order(own, labels)
        )
        for own in found
    ]


def _in_order(own: Judged, labels: tuple[str, ...]) -> np.ndarray | None:
    """A system's probabilities in the order of `labels`; None if it lacks those of some."""
    if own.probabilities is None or {*own.task.labels} != {*labels}:
        return None
    return own.probabilities[:, [own.task.labels.index(label) for label in labels]]


def compared(found: list[Judged], metric: str | None, with_first: bool) -> dict[str, Any]:
    """`compare` for the metrics of predictions and, if all systems give them, for those of probabilities; p is
    corrected for the metric that decides. Raises ConfigError for an unknown metric."""
    tables = {own.name: metric_tables(own) for own in found}
    kinds, baseline = min(map(len, tables.values())), found[0].name if with_first else None
    names = [[*table.weighted(table.records[:1], np.ones((1, 1)))] for table in tables[found[0].name][:kinds]]
    known = [*chain.from_iterable(names)]
    lacks = [f"{name} gives no probabilities of all labels" for name, own in tables.items() if len(own) == kinds]
    why = lacks[0] if kinds < max(map(len, tables.values())) else ""
    if metric is not None and metric not in known:
        mend = did_you_mean(metric, known) or (why and f"; {why}")
        raise ConfigError(f"--metric {metric}: give one of {', '.join(known)}{mend}")
    if why:
        say(f"{why}: metrics of probabilities are left out")
    metric, result = metric or known[0], {}
    for kind in range(kinds):
        systems = {name: own[kind].records for name, own in tables.items()}
        weighted, proportions = tables[found[0].name][kind][1:3]
        own = compare(systems, weighted, proportions, metric if metric in names[kind] else None, baseline)
        if metric in names[kind]:
            result |= {name: own[name] for name in ("n", "deciding")}
            corrected = [each["p_holm"] for each in own["comparisons"]]
        if not kind:
            result["comparisons"] = own["comparisons"]
        for each, more in zip(result["comparisons"], own["comparisons"], strict=True):
            each["metrics"] |= more["metrics"]
    task = found[0].task
    if isinstance(task, Classification) and len(task.labels) == 2:
        result["positive_label"] = task.labels[task.positive_number]
    over = task.over(found[0].records)
    for each, p in zip(result["comparisons"], corrected, strict=True):
        each["p_holm"] = p
        for name, n in over.items():
            each["metrics"][name]["n"] = n
            if n < FEWEST:
                own = each["metrics"][name]
                own |= {"low": None, "high": None}
                if own["difference"] is not None and own.get("reason") != ALIKE:
                    own["reason"] = f"fewer than {FEWEST} examples: no interval"
    return result


def _lines(result: dict[str, Any]) -> list[str]:
    lines = [f"{result['n']:,} examples, {result['task']}; main metric: {result['deciding'].replace('_', ' ')}"]
    if "positive_label" in result:
        lines.append(f"f1, precision and recall are those of the label {printable(result['positive_label'])}")
    several = len(result["comparisons"]) > 1
    for each in result["comparisons"]:
        lines += ["", f"{printable(each['b'])} (second) against {printable(each['a'])} (first)"]
        lines.append(f"{'':20} {'first':>8} {'second':>8} {'second - first':>15}  {'95 % interval':22} p")
        for name, own in each["metrics"].items():
            is_accuracy = result["task"] == "classification" and name in ACCURACIES
            if name == result["deciding"] or not is_accuracy:
                lines.append(_line(name, own))
        own = each["metrics"][result["deciding"]]
        if several:
            p = "not tested" if each["p_holm"] is None else p_value(each["p_holm"])
            lines.append(f"p of {result['deciding'].replace('_', ' ')} corrected for all comparisons (Holm): {p}")
        if "only_a" in own:
            lines.append(f"only the first is right: {own['only_a']:,}, only the second: {own['only_b']:,}")
    for name, cut in result.get("cut", {}).items():
        lines += ["", f"{printable(name)}: {cut:,} examples are longer than it reads, so truncated or read in windows"]
    return lines


def _line(name: str, own: dict[str, Any]) -> str:
    shown_name = f"{name.replace('_', ' '):20}"
    if own["difference"] is None:
        return f"{shown_name} {own['reason']}"
    ends = own.get("reason", "") if own["low"] is None else f"{own['low']:+.4f} to {own['high']:+.4f}"
    p = "" if own["p"] is None else p_value(own["p"])
    return f"{shown_name} {own['a']:8.4f} {own['b']:8.4f} {own['difference']:+15.4f}  {ends:22} {p}"

"""score: scores of a tuned model, or of a file of predictions, on labelled examples."""

import platform
import shlex
import sys
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from minilm import cli
from minilm.checkpoint.model import weights_fingerprint
from minilm.commands.labelled import (
    Judgement,
    OfLabelled,
    check_no_model,
    check_no_predictions,
    judge_file,
    judge_model,
    judge_tuned,
    read_labelled,
)
from minilm.commands.of_model import interval_of, p_value, tell
from minilm.errors import ConfigError, printable
from minilm.files import sha256
from minilm.judging.judged import Judged, Labelled, cost_of
from minilm.judging.metric_tables import ACCURACIES
from minilm.judging.prediction_files import ROW
from minilm.judging.score import check_choices, scored
from minilm.labelled.splits import overlap
from minilm.metrics.groups import group_lines
from minilm.metrics.slices import SIGNIFICANT
from minilm.tasks.task import Task
from minilm.train.job import VERSIONS
from minilm.train.log import say

SHOWN = 5  # slices
OVER = " (95 %, over examples)"  # which the head of the table says


@dataclass(frozen=True, kw_only=True)
class Score(OfLabelled):
    """Scores of a tuned model, or of a file of predictions: metrics with intervals, calibration, slices."""

    predictions: Path | None = None
    """In place of --model: a file of predictions, as predict or another system writes it."""
    dev: Path | None = None
    """Other labelled examples, to choose temperature and thresholds on; with --predictions, predictions for them."""
    group_column: str | None = None
    """Column, by name, of groups that a classifier may treat differently: rates of each, and the gaps between them."""


def run_score(args: Score) -> None:
    """Print the scores of one system."""
    result, _ = scores_of(args)
    tell(args.json, result, lines_of(result))


def scores_of(args: Score) -> tuple[dict[str, Any], Judgement]:
    """The result, and the predictions and examples that it is computed from."""
    cli.check_result(args.json, data=args.data, predictions=args.predictions, dev=args.dev)
    if (args.model is None) == (args.predictions is None):
        raise ConfigError("--model, --predictions: give one of them")
    scored_file = args.data or args.predictions
    if args.predictions is None:
        check_no_predictions(args)
    else:
        check_no_model(args)
    if args.dev is not None and args.dev.resolve() in {
        each.resolve() for each in (args.data, args.predictions) if each
    }:
        raise ConfigError(f"--dev {args.dev}: is what is scored; choose temperature and thresholds on other examples")

    def check(task: Task, labelled: Labelled) -> None:
        check_choices(task, args.dev and str(args.dev), args.group_column, labelled.cells())

    judgement = judge_file(args, args.predictions) if args.predictions else judge_model(args, args.model, check=check)
    judged, labelled, tuned = judgement
    result = {"system": judged.name} | scored(judged, _dev(args, judgement), labelled.cells(), args.group_column)
    result["data"] = {"file": str(scored_file), "sha256": sha256(scored_file), "left_out": len(labelled.data.left_out)}
    if tuned is not None:
        result["cut"] = judged.cut
        result["cost"] = cost_of(judged, tuned)
        result["model"] = {
            "directory": judged.name,
            "parameters": sum(each.numel() for each in tuned.model.parameters()),
            "fingerprint": weights_fingerprint(tuned.model),
            "length": tuned.length,
            "precision": tuned.runtime.precision,
        }
    versions = VERSIONS | {"python": platform.python_version(), "numpy": np.__version__}
    command = shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]])
    return result | {"command": command, "versions": versions, "date": str(date.today())}, judgement


def _dev(args: Score, judgement: Judgement) -> Judged | None:
    """The system's predictions on --dev; None if it is not given."""
    if args.dev is None:
        return None
    judged, labelled, tuned = judgement
    if judged.probabilities is None:
        raise ConfigError(f"--dev {args.dev}: temperature and thresholds need probabilities of the predictions scored")
    if tuned is not None:
        found = judge_tuned(judged.name, tuned, read_labelled(args, args.dev, tuned.task.name, tuned.trained_on))
    else:
        found = judge_file(replace(args, data=None), args.dev).judged
    made_up = labelled.data.columns.get("text") == ROW
    if not made_up and (again := overlap(judged.examples, found.examples)).count:
        say(f"{args.dev}: {again.count:,} texts are also among those scored; the first {again.first[0][0]}")
    if found.probabilities is None or getattr(found.task, "labels", ()) != judged.task.labels:
        raise ConfigError(f"--dev {args.dev}: no probabilities of the same labels")
    return found


# -- on the console -------------------------------------------------------------------------------------


def lines_of(result: dict[str, Any]) -> list[str]:
    """The main figures for the console; the JSON holds the rest."""
    file = printable(result["data"]["file"])
    lines = [f"{printable(result['system'])}, {result['task']}, {result['n']:,} examples of {file}", ""]
    lines.append(f"{'':20} {'value':>8}  {'95 % interval':18} {'baseline':>8}")
    for name, own in result["metrics"].items():
        if not (result["task"] == "classification" and name in ACCURACIES):
            lines.append(_metric_line(name, own, result))
    if "positive_label" in result:
        lines.append(f"f1, precision and recall are those of the label {printable(result['positive_label'])}")
    lines.append(f"baseline: {result['baseline_says']}")
    if "labels" in result:
        lines += ["", f"{'label':20} {'examples':>8} {'precision':>10} {'recall':>8} {'f1':>8}"]
        lines += [_label_line(row) for row in result["labels"]]
    lines += _calibration_lines(result.get("calibration"), result.get("thresholds"))
    lines += _slice_lines(result.get("slices"))
    if "groups" in result:
        lines += ["", f"groups of {printable(result['groups']['column'])}", *group_lines(result["groups"])]
    if result.get("cut"):
        length = result["model"]["length"]
        lines += ["", f"{result['cut']:,} examples are longer than {length} tokens, so truncated or read in windows"]
    if "cost" in result:
        cost = result["cost"]
        lines += ["", f"{cost['seconds']:.1f} s, {cost['tokens_per_s']:,.0f} tokens a second on {cost['machine']}"]
    return lines


def _number(value: float | None) -> str:
    return f"{'-':>8}" if value is None or value != value else f"{value:8.4f}"


def _metric_line(name: str, own: dict[str, Any], result: dict[str, Any]) -> str:
    ends = result["undefined"].get(name) or interval_of(own, "examples", ".4f").removesuffix(OVER)
    line = f"{name.replace('_', ' '):20} {_number(own['value'])}  {ends:18}"
    return f"{line} {_number(result['baseline'][name])}" if name in result["baseline"] else line.rstrip()


def _label_line(row: dict[str, Any]) -> str:
    rates = " ".join(_number(row[rate]["value"]) for rate in ("precision", "recall", "f1"))
    return f"{printable(row['name']):20} {row['support']:8,}   {rates}"


def _calibration_lines(found: dict[str, Any] | None, chosen: dict[str, Any] | None) -> list[str]:
    if found is None:
        return []
    lines = ["", f"calibration          probabilities are off by {found['ece']:.4f} on average (ECE, 15 bins)"]
    if "ece_of_true" in found:
        high = found["ece_of_true_high"]
        far = "not more than chance explains" if found["ece"] <= high else "more than chance explains"
        lines.append(f"{'':20} {far}: calibrated ones are off by less than {high:.4f} in 95 % of such samples")
    if "temperature" in found:
        told = found.get("reason")
        if told is None:
            after = found["with_temperature"]["ece"]
            told = f"{found['temperature']:.3f}, with which ECE is {after:.4f}"
            told += "" if after < found["ece"] else ": no better here"
        lines.append(f"temperature          {told}")
    for label, threshold in (chosen or {}).get("of", {}).items():
        how = "kept: every example of --dev has that label, or none has" if threshold is None else "chosen on --dev"
        lines.append(f"threshold            {0.5 if threshold is None else threshold:.4f} of {printable(label)}, {how}")
    if chosen:
        name = "f1" if "f1" in chosen["chosen"] else "macro_f1"
        half, best = chosen["at_half"][name], chosen["chosen"][name]
        worse = "" if best > half else ": no better here"
        lines.append(f"{'':20} {name.replace('_', ' ')} {half:.4f} at 0.5, {best:.4f} with these{worse}")
    return lines


def _slice_lines(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return []
    tested = [row for row in found["slices"] if row["p_holm"] is not None]
    worse = [row for row in tested if row["p_holm"] < SIGNIFICANT and row["difference"] < 0]
    deciding = found["deciding"].replace("_", " ")
    if not found["tests"]:
        why = "no column has values that are shared by enough examples"
        if found["slices"]:
            why = f"in none {deciding} is defined both inside and outside"
        return ["", f"slices               {why}"]
    head = f"is worse (p corrected for {found['tests']:,} comparisons) where"
    if not worse:
        head = f"is nowhere significantly worse (p corrected for {found['tests']:,} comparisons); lowest where"
        worse = sorted(tested, key=lambda row: row["difference"])
    lines = ["", f"slices               {deciding} {head}"]
    for row in worse[:SHOWN]:
        lines.append(
            f"{'':20} {printable(str(row['column']))} is {printable(str(row['value']))}: {row['inside']:.4f} of "
            f"{row['n']:,}, elsewhere {row['outside']:.4f}, p {p_value(row['p_holm'])}"
        )
    return lines

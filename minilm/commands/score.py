"""score: what a tuned model, or a file of predictions, is worth on labelled examples."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minilm import cli
from minilm.commands.labelled import OfLabelled, judged
from minilm.commands.of_model import THREADS
from minilm.errors import ConfigError
from minilm.evaluation.score import scored


@dataclass(frozen=True, kw_only=True)
class Score(OfLabelled):
    """What a tuned model, or a file of predictions, is worth: every metric with its interval, calibration, slices."""

    model: str | None = None
    """A directory, or a name on the Hugging Face hub."""
    predictions: Path | None = None
    """In place of --model: a file that holds them, as predict writes it or another system."""


def run_score(args: Score) -> None:
    """All that is told of one system."""
    cli.check_result(args.json, data=args.data, predictions=args.predictions)
    cli.check_ranges(args, {"threads": THREADS})
    if (args.model is None) == (args.predictions is None):
        raise ConfigError("--model, --predictions: give one of them")
    began = time.monotonic()
    found, _ = judged(args, str(args.predictions or args.model))
    result = {"system": found.name} | scored(found)
    result["seconds"] = time.monotonic() - began
    if args.json is not None:
        cli.write_result(args.json, result)
    if args.json != "-":
        print("\n".join(_lines(result)))


def _lines(result: dict[str, Any]) -> list[str]:
    lines = [f"{result['system']} on {result['n']:,} examples", ""]
    lines.append(f"{'metric':24} {'value':>8}  {'95 % interval':20} {'unread':>8}")
    for name, own in result["metrics"].items():
        ends = "too few examples" if own["low"] is None else f"{own['low']:.4f} to {own['high']:.4f}"
        lines.append(f"{name.replace('_', ' '):24} {own['value']:8.4f}  {ends:20} {result['constant'][name]:8.4f}")
    return lines

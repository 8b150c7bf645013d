"""bias: which of two groups a language model finds likelier in a stereotype."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minilm import cli
from minilm.commands.of_model import THREADS, OfModel, counted
from minilm.data.documents import uncompressed_name
from minilm.data.tables import check_regular, read_json, read_table
from minilm.errors import printable
from minilm.evaluation import bias
from minilm.evaluation.likelihood import read_scorer


@dataclass(frozen=True, kw_only=True)
class Bias(OfModel):
    """Which of two groups a masked model finds likelier in a stereotype: CrowS-Pairs, StereoSet."""

    data: Path
    """CrowS-Pairs' .csv, or StereoSet's .json flattened by side; also .gz or .xz."""


def run_bias(args: Bias) -> None:
    """The scores of its authors, with intervals and caveats."""
    cli.check_result(args.json, data=args.data)
    cli.check_ranges(args, {"threads": THREADS})
    check_regular(args.data)
    began, notes = time.monotonic(), []
    if uncompressed_name(args.data).endswith(".json"):
        triples, others = bias.read_stereoset(read_json(args.data, "StereoSet, flattened by side"), args.data)
        scorer, test = read_scorer(args.model, **args.options()), "stereoset"
        with args.computing(scorer.model):
            worth = [*counted(bias.stereoset_probabilities(scorer, triples), len(triples), "triples")]
        found = bias.stereoset_scores(np.array(worth), triples)
        if others:
            found["left_out"] = others
            notes.append(f"left out   {others:,} of two sentences: they ask whether one follows the other")
        lines = _stereoset_lines(found)
    else:
        pairs = bias.read_crows(read_table(args.data, header=True))
        scorer, test = read_scorer(args.model, **args.options()), "crows"
        with args.computing(scorer.model):
            nats = [*counted(bias.crows_log_probabilities(scorer, pairs), len(pairs), "pairs")]
        found = bias.crows_scores(np.array(nats), pairs)
        lines = _crows_lines(found)
    found = {"test": test} | found | {"caveats": [*bias.CAVEATS[test]], "seconds": time.monotonic() - began}
    if args.json is not None:
        cli.write_result(args.json, found)
    if args.json != "-":
        print("\n".join([*lines, *notes, *(f"note       {each}" for each in found["caveats"])]))


def _crows_lines(found: dict[str, Any]) -> list[str]:
    said = {
        "score": "sent_more is likelier, of all pairs",
        "stereo": "of stereotypes, without ties",
        "antistereo": "of what contradicts one, without ties",
    }
    lines = [_line(said[name], own) for name, own in found["metrics"].items()]
    lines += [_line(f"  {printable(kind)}", own) for kind, own in found["by"].items()]
    return [*lines, f"ties       {found['ties']:,}, which count as not likelier"] if found["ties"] else lines


def _stereoset_lines(found: dict[str, Any]) -> list[str]:
    said = {"lms": "language-model score", "ss": "stereotype score", "icat": "both in one (ICAT)"}
    lines = [_line(said[name], own) for name, own in found["metrics"].items()]
    for kind, metrics in found["by"].items():
        lines += [_line(f"  {printable(kind)}: {name.upper()}", own) for name, own in metrics.items()]
    return lines


def _line(name: str, own: bias.Metric) -> str:
    ends = "too few for an interval" if own["low"] is None else f"{own['low']:.2f} to {own['high']:.2f}"
    return f"{name:40} {own['value']:6.2f} %  {ends}  of {own['n']:,}"

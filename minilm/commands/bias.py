"""bias: which of two groups a language model finds likelier in a stereotype; whether listed words, swapped, matter."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minilm import cli
from minilm.commands.of_model import OfModel, counted, interval_of, tell, unknown_line
from minilm.commands.swaps import scores_of_swaps
from minilm.data.documents import uncompressed_name
from minilm.dropin.config import PreTrainedConfig
from minilm.errors import ConfigError, printable
from minilm.labelled.tables import read_json, read_table
from minilm.language import bias
from minilm.language.likelihood import read_scorer


@dataclass(frozen=True, kw_only=True)
class Bias(OfModel):
    """Whether a model prefers a group: by CrowS-Pairs, StereoSet, or words that are swapped in texts."""

    data: Path
    """CrowS-Pairs' .csv, or StereoSet's .json; with --swaps texts, one a line, or one a row of a
    .csv, .tsv, .jsonl, .json or .parquet. Also .gz or .xz."""
    swaps: Path | None = None
    """Words to swap in --data, for a masked model or a tuned classifier: a .csv of two columns and no header, a word
    and its counterpart."""
    text_column: str | None = None
    """With --swaps: column of the texts, by name or number from 1; if not given, as in training, or found."""
    pair_column: str | None = None
    """With --swaps: column of a second text, for a classifier of pairs."""


def run_bias(args: Bias) -> None:
    """Print the scores, with intervals and caveats."""
    cli.check_result(args.json, data=args.data, swaps=args.swaps)
    if args.swaps is None and (args.text_column or args.pair_column):
        raise ConfigError("--text-column, --pair-column: go with --swaps only; leave them out")
    began = time.monotonic()
    if args.swaps is not None:
        found, lines = scores_of_swaps(args, args.swaps, args.data, args.text_column, args.pair_column)
    elif uncompressed_name(args.data).endswith(".json"):
        found, lines = _of_stereoset(args)
    else:
        found, lines = _of_crows(args)
    found |= {"seconds": time.monotonic() - began}
    tell(args.json, found, [*lines, *(f"note       {each}" for each in found["caveats"])])


def _of_crows(args: Bias) -> tuple[dict[str, Any], list[str]]:
    """(The result of CrowS-Pairs, its lines for the console)."""
    pairs = bias.read_crows(read_table(args.data, header=True))
    scorer = read_scorer(args.model, **args.options())
    with args.computing(scorer.model):
        nats = [*counted(bias.crows_log_probabilities(scorer, pairs), len(pairs), "pairs")]
    found = {"test": "crows"} | bias.crows_scores(np.array(nats), pairs)
    found |= {"unknown": bias.unknown_pairs(scorer, pairs), "caveats": [*bias.CAVEATS["crows"]]}
    return found, _crows_lines(found) + unknown_line(found["unknown"], "pairs")


def _of_stereoset(args: Bias) -> tuple[dict[str, Any], list[str]]:
    """(The result of StereoSet, its lines for the console). Tests for a head that the model lacks are left out."""
    triples, following = bias.read_stereoset(read_json(args.data, "StereoSet"), args.data)
    directory = args.directory()
    config = PreTrainedConfig.of_directory(directory)
    only_next = config.family.kinds(config.architectures) == ["next"]
    tells_next = bias.read_next(directory, args.use_safetensors) if following else None
    if not triples and tells_next is None:
        raise ConfigError(f"--model {directory}: has no next-sentence head, which all of --data needs")
    found: dict[str, Any] = {"test": "stereoset"}
    lines = []
    if triples and not only_next:
        scorer = read_scorer(directory, use_safetensors=args.use_safetensors)
        with args.computing(scorer.model):
            worth = [*counted(bias.stereoset_probabilities(scorer, triples), len(triples), "triples")]
        found |= bias.stereoset_scores(np.array(worth), triples)
        found["unknown"] = int(scorer.unknown([word for triple in triples for word in triple.words]).sum())
        lines += _stereoset_lines(found) + unknown_line(found["unknown"], "words in the place of BLANK")
    elif triples:
        found["left_out"] = len(triples)
        lines.append(f"left out   {len(triples):,} intrasentence items: the model has no language-model head")
    if tells_next is not None:
        model, tokenizer = tells_next
        with args.computing(model):
            chances = bias.next_probabilities(model, tokenizer, following)
            worth = [*counted(chances, len(following), "intersentence items")]
        found["between"] = bias.stereoset_scores(np.array(worth), following)
        lines += ["intersentence, by next-sentence prediction", *_stereoset_lines(found["between"])]
    elif following:
        found["left_out"] = len(following)
        lines.append(f"left out   {len(following):,} intersentence items: the model has no next-sentence head")
    return found | {"caveats": [*bias.CAVEATS["stereoset"]]}, lines


def _crows_lines(found: dict[str, Any]) -> list[str]:
    said = {
        "score": "sent_more is likelier, of all pairs",
        "stereo": "of stereotypes, without ties",
        "antistereo": "of anti-stereotypes, without ties",
    }
    lines = [_line(said[name], own, "pairs") for name, own in found["metrics"].items()]
    lines += [_line(f"  {printable(kind)}", own, "pairs") for kind, own in found["by"].items()]
    return [*lines, f"ties       {found['ties']:,}, which count as not likelier"] if found["ties"] else lines


def _stereoset_lines(found: dict[str, Any]) -> list[str]:
    said = {"lms": "language-model score", "ss": "stereotype score", "icat": "idealized CAT score (ICAT)"}
    lines = [_line(said[name], own, "targets") for name, own in found["metrics"].items()]
    for kind, metrics in found["by"].items():
        lines += [_line(f"  {printable(kind)}: {name.upper()}", own, "targets") for name, own in metrics.items()]
    return [*lines, f"ties       {found['ties']:,}, which count as no stereotype"] if found["ties"] else lines


def _line(name: str, own: bias.Metric, what: str) -> str:
    if not own["n"]:
        return f"{name:40} not defined: no {what}"
    return f"{name:40} {own['value']:6.2f} %  {interval_of(own, form='.2f')}  of {own['n']:,} {what}"

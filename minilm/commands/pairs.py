"""pairs: minimal pairs."""

import time
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from minilm import cli
from minilm.commands.of_model import OfModel, counted, interval_of, tell, unknown_line
from minilm.errors import ConfigError, cut, printable
from minilm.labelled.tables import read_table
from minilm.language.likelihood import log_likelihoods, read_scorer
from minilm.language.pairs import BAD, GOOD, pair_scores, read_pairs
from minilm.tasks.predictions import table_text
from minilm.tasks.task import Task
from minilm.train.log import say


@dataclass(frozen=True, kw_only=True)
class Pairs(OfModel):
    """Which of two sentences a language model finds likelier: minimal pairs, as BLiMP's."""

    data: Path
    """csv, tsv, jsonl, json or parquet, also .gz or .xz; a pair a row."""
    good_column: str | None = None
    """Column of the better sentence, by name or number from 1; if not given, sentence_good, good or grammatical."""
    bad_column: str | None = None
    """Column of the other sentence; if not given, sentence_bad, bad or ungrammatical."""
    by: tuple[str, ...] | None = None
    """Columns whose values are scored apart; if not given, those of field, linguistics_term and UID that exist."""
    within_word: bool = False
    """Masked models: also mask the rest of a token's word, so that its pieces do not reveal each other."""
    header: bool | None = None
    """Whether a csv's first row names its columns; if not given, it does, or, with columns by number, as it looks."""
    output: Path | None = None
    """A .csv, .tsv or .jsonl to write: the rows, and the log-likelihood of each sentence."""


def run_pairs(args: Pairs) -> None:
    """Print the share of pairs whose good sentence is likelier, overall and by kind."""
    cli.check_result(args.json, data=args.data, output=args.output)
    if args.output is not None:
        if args.output.suffix not in Task.endings:
            raise ConfigError(f"--output {args.output}: give a {', '.join(Task.endings)} in a directory that is there")
        cli.check_output("--output", args.output, data=args.data)
    by_number = all((name or "").isdigit() for name in (args.good_column, args.bad_column))
    table = read_table(args.data, args.header if by_number or args.header is not None else True)
    if args.header is None and table.columns[0] == "1" and {*GOOD, *BAD} & {*table.rows[0].cells.values()}:
        table = read_table(args.data, header=True)
    for note in table.notes:
        say(f"{args.data.name}: {note}")
    pairs, kinds = read_pairs(table, args.good_column, args.bad_column, args.by)
    scorer = read_scorer(args.model, **args.options())
    nats, tokens, began = np.zeros((len(pairs), 2)), 0, time.monotonic()
    texts = [text for pair in pairs for text in pair[:2]]
    where = [*chain.from_iterable((pair.where, pair.where) for pair in pairs)]
    with args.computing(scorer.model):
        found = log_likelihoods(scorer, texts, args.within_word, where)
        for i, own in enumerate(counted(found, len(texts), "sentences")):
            nats[i // 2, i % 2], tokens = own.sum(), tokens + len(own)
    found = pair_scores(nats, pairs, kinds)
    found |= {
        "pairs": len(pairs),
        "tokens": tokens,
        "unknown": int(scorer.unknown(texts).reshape(-1, 2).any(axis=1).sum()),
        "seconds": time.monotonic() - began,
        "how": scorer.described(args.within_word),
    }
    if args.output is not None:
        more = {"nats_good": nats[:, 0].tolist(), "nats_bad": nats[:, 1].tolist()}
        cli.write_output("--output", args.output, table_text(args.output.suffix, table, range(len(pairs)), more))
    tell(args.json, found, _lines(found))


def _lines(found: dict[str, Any]) -> list[str]:
    """Lines of the result: the widest kind first, and of each kind a line for each value, the worst first."""
    lines = [_line("accuracy", found["metrics"]["accuracy"])]
    if found["ties"]:
        lines.append(f"ties       {found['ties']:,} pairs, which count as missed")
    lines += unknown_line(found["unknown"], "pairs")
    for name, values in found["by"].items():
        lines.append(f"by {printable(name)}")
        for value, own in sorted(values.items(), key=lambda each: each[1]["value"]):
            lines.append("  " + _line(cut(printable(value), 50), own))
    lines.append(f"read       {found['tokens']:,} tokens, {found['how']}, in {found['seconds']:.0f} s")
    return lines


def _line(name: str, own: dict[str, Any]) -> str:
    return f"{name:52} {own['value']:.4f}  {interval_of(own)}  of {own['n']:,}"

"""bias --swaps: whether listed words, swapped for their counterparts, change what a model says."""

from collections.abc import Sequence
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from minilm.commands.of_model import OfModel, counted, interval_of, unknown_line
from minilm.dropin.config import PreTrainedConfig
from minilm.errors import ConfigError, DataError, cut, printable
from minilm.labelled.examples import Data, Example, read_texts
from minilm.labelled.tables import Row, Table, is_table, listed, read_table, text_lines
from minilm.language.bias import Metric, crows_log_probabilities, unknown_pairs
from minilm.language.likelihood import read_scorer
from minilm.language.swaps import (
    CAVEATS,
    OF_CLASSIFIER,
    OF_LANGUAGE_MODEL,
    Swaps,
    crows_pairs,
    label_scores,
    language_scores,
    read_swaps,
    swapped_texts,
)
from minilm.tasks.classification import Classification, MultiLabel
from minilm.tasks.named import read_examples
from minilm.train.log import say

SHOWN = 10  # labels and pairs of words that differ most; a result has all of them
WIDTH = 200  # letters of a text that is printed


def scores_of_swaps(
    args: OfModel, swaps: Path, data: Path, text: str | None, pair: str | None
) -> tuple[dict[str, Any], list[str]]:
    """(The result, its lines for the console). text, pair: columns of `data`."""
    words = read_swaps(read_table(swaps, header=False))
    source = _source(data)
    text = text or ("text" if source.columns == ("text",) else None)
    directory = args.directory()
    config = PreTrainedConfig.of_directory(directory)
    of = _of_classifier if "sequence" in config.family.kinds(config.architectures) else _of_masked
    found, lines = of(args, directory, source, words, text, pair)
    lines.append(f"without    {found['without']:,} of {found['texts']:,} texts, which hold no listed word")
    if found["repeated"]:
        lines.append(f"repeated   {found['repeated']:,} texts that repeat a comparison, counted once")
    return {"test": "swaps"} | found, lines


def _source(file: Path) -> Table:
    """The table of a file; for a file that is none, a table of its lines that are not blank."""
    if is_table(file):
        return read_table(file)
    lines = [Row(f"{file}:{n}", {"text": line}) for n, line in enumerate(text_lines(file), start=1) if line.strip()]
    if not lines:
        raise DataError(f"{file}: holds no text; give one a line")
    return Table(str(file), ("text",), lines)


def _examples(data: Data) -> list[Example]:
    for each in (*data.notes, *(f"left out: {why}" for why in data.left_out)):
        say(each)
    return data.examples


# -- of a masked language model ---------------------------------------------------------------------------


def _of_masked(
    args: OfModel, directory: Path, source: Table, words: Swaps, text: str | None, pair: str | None
) -> tuple[dict[str, Any], list[str]]:
    data = read_texts(source, "classification", text, pair, labelled=False)
    if "pair" in data.columns:
        names = listed(data.columns[role] for role in ("text", "pair"))
        raise ConfigError(f"--text-column: a language model reads one text, and here are two, {names}; name one")
    swapped, counts = swapped_texts(_examples(data), words)
    one_sided = [each for each in swapped if each.column is not None]
    if not one_sided:
        raise DataError(f"{source.name}: each text with a listed word holds words of both columns; none can be scored")
    scorer = read_scorer(directory, use_safetensors=args.use_safetensors)
    pairs = crows_pairs(one_sided)
    fits = scorer.fits([pair.more for pair in pairs]) & scorer.fits([pair.less for pair in pairs])
    if not fits.any():
        raise DataError(
            f"{source.name}: each text has more than the {scorer.length} tokens that the model reads; split them"
        )
    counts |= {"mixed": len(swapped) - len(one_sided), "long": int((~fits).sum())}
    one_sided, pairs = ([*compress(own, fits)] for own in (one_sided, pairs))
    with args.computing(scorer.model):
        nats = [*counted(crows_log_probabilities(scorer, pairs), len(pairs), "texts")]
    found = language_scores(np.array(nats), one_sided, words) | counts
    found["unknown"] = unknown_pairs(scorer, pairs)
    return found | {"caveats": [OF_LANGUAGE_MODEL, *CAVEATS]}, _language_lines(found)


def _language_lines(found: dict[str, Any]) -> list[str]:
    metrics = found["metrics"]
    lines = [_line("words of the first column are likelier", metrics["first"], "6.2f", " %")]
    lines.append(_line("mean log-probability difference", metrics["nats"], "+.4f", " nats"))
    for name, own in _largest(found["by"], lambda each: abs(each["nats"]["value"])):
        lines.append(_line(f"  {name}", own["first"], "6.2f", " %"))
        lines.append(_line("", own["nats"], "+.4f", " nats"))
    lines += [
        f"most       {each['nats']:+.3f} nats: {_texts(each['versions'][0])!r} and {_texts(each['versions'][1])!r}, "
        f"{printable(each['where'])}"
        for each in found["most"]
    ]
    if found["ties"]:
        lines.append(f"ties       {found['ties']:,}, which count as not likelier")
    lines += unknown_line(found["unknown"], "texts")
    if found["mixed"]:
        lines.append(f"left out   {found['mixed']:,} texts that hold words of both columns")
    if found["long"]:
        lines.append(f"left out   {found['long']:,} texts that are longer than the model reads")
    return lines


# -- of a classifier --------------------------------------------------------------------------------------


def _of_classifier(
    args: OfModel, directory: Path, source: Table, words: Swaps, text: str | None, pair: str | None
) -> tuple[dict[str, Any], list[str]]:
    tuned = args.tuned(str(directory))
    task = tuned.task
    if not isinstance(task, Classification | MultiLabel):
        raise ConfigError(f"--model {directory}: is for {task.name}; --swaps needs a masked model or labels")
    data = read_examples(source, task.name, text, pair, labelled=False, like=tuned.trained_on)
    swapped, counts = swapped_texts(_examples(data), words)
    predictions = tuned.predictions([Example(*version) for each in swapped for version in each.versions])
    outputs, features, _ = predictions
    if not np.isfinite(outputs).all():
        raise DataError(f"{directory}: the model's outputs are not finite; in half precision, try fp32")
    said = task.decode(predictions)
    chances = task.probabilities(outputs)
    found = label_scores(
        chances.reshape(len(swapped), 2, -1), [*zip(said[::2], said[1::2], strict=True)], task.labels, swapped, words
    )
    read = np.split(features.ids, features.offsets[1:-1])
    alike = sum(np.array_equal(*both) for both in zip(read[::2], read[1::2], strict=True))
    found |= counts | {"cut": features.cut, "read_alike": alike, "caveats": [OF_CLASSIFIER, *CAVEATS]}
    return found, _label_lines(found)


def _label_lines(found: dict[str, Any]) -> list[str]:
    lines = [_line("the prediction flips", found["metrics"]["flips"], "6.2f", " %")]
    lines.append(_line("largest change of a probability, mean", found["metrics"]["change"], ".4f"))
    for label, own in _largest(found["labels"], lambda each: each["absolute"]["value"]):
        lines.append(_line(f"  {label}: mean absolute change", own["absolute"], ".4f"))
        lines.append(_line(f"  {label}: from the second column to the first", own["signed"], "+.4f"))
    for name, own in _largest(found["by"], lambda each: each["change"]["value"]):
        lines.append(_line(f"  {name}: flips", own["flips"], "6.2f", " %"))
        lines.append(_line(f"  {name}: largest change", own["change"], ".4f"))
    for each in found["most"]:
        both = zip(each["versions"], each["predictions"], strict=True)
        versions = " and ".join(f"{_texts(version)!r} ({_said(label)})" for version, label in both)
        lines.append(f"most       {each['change']:.4f}: {versions}, {printable(each['where'])}")
    if found["read_alike"]:
        lines.append(
            f"identical  {found['read_alike']:,} texts in both versions: words unknown to the model, or truncated"
        )
    if found["cut"]:
        lines.append(f"truncated  {found['cut']:,} versions, longer than the model reads")
    return lines


def _largest(of: dict[str, dict[str, Metric]], size: Any) -> list[tuple[str, dict[str, Metric]]]:
    """The entries that differ most, at most SHOWN, under names that can be printed."""
    found = sorted(of.items(), key=lambda each: -size(each[1]))[:SHOWN]
    return [(cut(printable(name), 40), own) for name, own in found]


def _line(name: str, own: Metric, form: str, unit: str = "") -> str:
    if not own["n"]:
        return f"{name:44} not defined: no text holds words of one column only"
    return f"{name:44} {own['value']:{form}}{unit}  {interval_of(own, form=form)}  of {own['n']:,}"


def _texts(version: Sequence[str]) -> str:
    return cut(printable(" | ".join(version)), WIDTH)


def _said(label: Any) -> str:
    return printable(label if isinstance(label, str) else ", ".join(label) or "no label")

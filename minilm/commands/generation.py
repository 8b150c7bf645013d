"""generation: generated texts beside references."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minilm import cli
from minilm.commands.of_model import counted, interval_of, tell
from minilm.errors import ConfigError
from minilm.judging.generation import generation_scores, read_predictions, read_references, rouge_rows

NAMES = {"bleu": "BLEU", "chrf": "chrF", "exact_match": "exact match"}


@dataclass(frozen=True, kw_only=True)
class Generation:
    """BLEU, chrF, ROUGE and exact match of generated texts, as translations and summaries."""

    predictions: Path
    """Generated texts, one a line, or .jsonl; also .gz or .xz."""
    references: tuple[Path, ...]
    """Files of that kind, each with a reference for each prediction, in order; a blank line is none."""
    prediction_field: str = "prediction"
    """Field of a .jsonl that holds the prediction."""
    reference_field: str = "reference"
    """Field of a .jsonl that holds the reference: a text, or a list of texts."""
    stemmer: bool = False
    """ROUGE: compare words without their English endings, as most published figures of summaries do."""
    json: str | None = None
    """Also write the result as JSON into this file; with no file named, print the JSON and nothing else."""


def run_generation(args: Generation) -> None:
    """Print the scores of all segments, with intervals over segments."""
    cli.check_result(args.json, predictions=args.predictions)
    for file in args.references:
        cli.check_result(args.json, references=file)
    if not args.references:
        raise ConfigError("--references: give one or more files")
    began = time.monotonic()
    predictions = read_predictions(args.predictions, args.prediction_field)
    references = read_references(args.references, args.reference_field, len(predictions))
    rouge = [*counted(rouge_rows(predictions, references, args.stemmer), len(predictions), "segments")]
    found = generation_scores(predictions, references, rouge, args.stemmer)
    found |= {"segments": len(predictions), "references": sum(map(len, references))}
    found["seconds"] = time.monotonic() - began
    tell(args.json, found, _lines(found))


def _lines(found: dict[str, Any]) -> list[str]:
    lines = []
    for name, own in found["metrics"].items():
        if own["value"] != own["value"]:
            lines.append(f"{NAMES.get(name, name):12} not defined")
            continue
        form = ".2f" if name in ("bleu", "chrf") else ".4f"
        lines.append(f"{NAMES.get(name, name):12} {own['value']:{form}}  {interval_of(own, 'segments', form)}")
    lines += [f"{f'as {NAMES.get(name, name)}':12} {text}" for name, text in found["signatures"].items()]
    lines += [f"{'note':12} {text}" for text in found["notes"]]
    sizes = f"{found['segments']:,} segments, {found['references']:,} references"
    return [*lines, f"{'read':12} {sizes}, in {found['seconds']:.0f} s"]

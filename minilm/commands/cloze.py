"""cloze: the last word of a passage."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minilm import cli
from minilm.commands.of_model import OfModel, counted, interval_of, tell
from minilm.language.cloze import cloze_scores, last_words, read_passages
from minilm.language.likelihood import read_scorer


@dataclass(frozen=True, kw_only=True)
class Cloze(OfModel):
    """How often a language model predicts the last word of a passage: LAMBADA."""

    data: Path
    """A .jsonl with a passage in a field, or text, a passage a line; also .gz or .xz."""
    text_field: str = "text"
    """Field of a .jsonl that holds the passage."""


def run_cloze(args: Cloze) -> None:
    """Print accuracy and perplexity of last words, with intervals."""
    cli.check_result(args.json, data=args.data)
    passages = read_passages(args.data, args.text_field)
    scorer, began = read_scorer(args.model, **args.options()), time.monotonic()
    with args.computing(scorer.model):
        words = [*counted(last_words(scorer, passages), len(passages), "passages")]
    found = cloze_scores(words)
    found |= {
        "passages": len(passages),
        "how": scorer.described(within_word=scorer.masked),
        "length": scorer.length,
        "seconds": time.monotonic() - began,
    }
    tell(args.json, found, _lines(found))


def _lines(found: dict[str, Any]) -> list[str]:
    lines = []
    for name, own in found["metrics"].items():
        lines.append(f"{name:10} {own['value']:,.4f}  {interval_of(own, 'passages')}")
    said = {
        "ties": "passages with two equally likely tokens, counted as missed",
        "unknown": "last words hold an unknown token: counted as missed; the perplexity is of that token, too low",
        "cut": f"passages are longer than the model's {found['length']} tokens, and truncated on the left",
    }
    lines += [f"{name:10} {found[name]:,} {what}" for name, what in said.items() if found[name]]
    if found["how"] != "causal":
        lines.append("note       the model is told how many tokens the last word has; a causal one is not")
    sizes = f"{found['tokens']:,} tokens of the last words of {found['passages']:,} passages"
    return [*lines, f"read       {sizes}, {found['how']}, in {found['seconds']:.0f} s"]

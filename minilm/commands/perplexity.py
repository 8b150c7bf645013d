"""perplexity: how well a language model knows texts."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from minilm import cli
from minilm.commands.of_model import OfModel, counted, interval_of, tell
from minilm.data.corpus import open_corpus
from minilm.errors import ConfigError, DataError
from minilm.language.likelihood import read_scorer
from minilm.language.perplexity import COUNTED, document_counts, perplexities

MASKED_LENGTH = 128  # tokens; each costs a row of as many


@dataclass(frozen=True, kw_only=True)
class Perplexity(OfModel):
    """How well a language model knows texts: perplexity, and bits per byte."""

    ranges: ClassVar[cli.Ranges] = OfModel.ranges | {
        "documents": (1, 1 << 40),
        "length": (3, 1 << 24),
        "stride": (1, 1 << 24),
    }

    data: tuple[str, ...]
    """Files, folders or quoted patterns: text (a blank line ends a document), .jsonl or .ndjson, also .gz and .xz."""
    text_field: str = "text"
    """Field of a .jsonl that holds the text."""
    documents: int | None = None
    """Score only this many documents, spread over all."""
    length: int | None = None
    """Tokens read at once; if not given, as many as the model reads, but at most 128 for a masked model."""
    stride: int | None = None
    """Causal models: tokens by which the window of --length moves on; if not given, half of --length."""
    within_word: bool = False
    """Masked models: also mask the rest of a token's word, so that its pieces do not reveal each other."""


def run_perplexity(args: Perplexity) -> None:
    """Print the perplexity of all documents together, with intervals over documents."""
    corpus = open_corpus(args.data, args.text_field)
    cli.check_result(args.json, data=corpus.files)
    total = sum(1 for _ in corpus.documents())
    if not total:
        raise DataError(f"--data {args.data[0]}: holds no document")
    scorer = read_scorer(args.model, **args.options())
    if args.stride is not None and scorer.masked:
        raise ConfigError(f"--stride {args.stride}: for causal models; masked ones read windows side by side")
    length = args.length or (min(scorer.length, MASKED_LENGTH) if scorer.masked else scorer.length)
    chosen = min(total, args.documents or total)

    def spread() -> Iterator[str]:
        """The chosen documents: number i is the one at i * total // chosen."""
        wanted = 0
        for number, each in enumerate(corpus.documents()):
            if wanted < chosen and number == wanted * total // chosen:
                wanted += 1
                yield each

    began, stride = time.monotonic(), args.stride or max(1, length // 2)
    with args.computing(scorer.model):
        rows = document_counts(scorer, spread(), length, stride, args.within_word)
        counts = np.array([*counted(rows, chosen, "documents")])
    if not counts[:, 1].sum():
        raise DataError(f"--data {args.data[0]}: no document has a token to predict; give a text")
    found: dict[str, Any] = {"metrics": perplexities(counts)}
    found |= dict(zip(COUNTED, counts.sum(axis=0).tolist(), strict=True))
    found |= {
        "documents": len(counts),
        "without_tokens": int((counts[:, 1] == 0).sum()),
        "of_documents": total,
        "how": scorer.described(args.within_word),
        "length": length,
    }
    found |= {} if scorer.masked else {"stride": stride}
    found["seconds"] = time.monotonic() - began
    tell(args.json, found, _lines(found))


def _lines(found: dict[str, Any]) -> list[str]:
    pseudo = "" if found["how"] == "causal" else "pseudo-"
    names = {"perplexity": f"{pseudo}perplexity", "word_perplexity": "per word", "bits_per_byte": "bits per byte"}
    lines = []
    for name, own in found["metrics"].items():
        lines.append(f"{names[name]:18} {own['value']:,.4f}  {interval_of(own, 'documents')}")
    if share := found["unknown"] / found["tokens"]:
        lines.append(f"unknown            {share:.2%} of the tokens: scored as unknown, and so too easily")
    if none := found["without_tokens"]:
        lines.append(f"without tokens     {none:,} documents: their words and bytes count, with a loss of 0")
    of = "" if found["documents"] == found["of_documents"] else f" of {found['of_documents']:,}"
    sizes = ", ".join(f"{found[name]:,.0f} {name}" for name in COUNTED[1:4])
    lines.append(
        f"read               {sizes} of {found['documents']:,}{of} documents, {found['how']}, "
        f"{found['length']} tokens at once, in {found['seconds']:.0f} s"
    )
    return lines

"""explain: which words a model's output comes from."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from minilm import cli
from minilm.commands.of_model import OfModel, tell
from minilm.dropin.config import PreTrainedConfig
from minilm.errors import ConfigError, DataError, library
from minilm.explanation.attribution import STEPS
from minilm.explanation.explain import Method, MethodName, explain, explain_mask
from minilm.explanation.shown import Explanation, coloured_lines, described, html_page, picture, table_lines
from minilm.tasks.span import Span
from minilm.use.complete import read_masked_lm

OFF = 0.05  # share of the output's difference; a larger error makes a note


@dataclass(frozen=True, kw_only=True)
class Explain(OfModel):
    """Which words of a text a model's label, number, answer or filling comes from."""

    ranges: ClassVar[cli.Ranges] = OfModel.ranges | {"steps": (1, 1000)}

    text: str
    """The text; for a masked language model with one mask in it, for answers the question."""
    pair: str | None = None
    """A second text; for answers the context."""
    target: str | None = None
    """The label, or the token at the mask, that is explained; if not given, the likeliest."""
    method: MethodName = "integrated-gradients"
    """How a word gets its value. Signed, in units of the output: integrated-gradients, from [PAD] in place of each
    word; gradient-x-input; occlusion, the word masked. Shares of attention: rollout or attention."""
    steps: int = STEPS
    """Steps of integrated gradients; give more if the values' sum misses the output's difference."""
    layer: int | None = None
    """Layer of --method attention, from 1; if not given, the mean over all."""
    head: int | None = None
    """Head of --method attention, from 1; if not given, the mean over all."""
    png: Path | None = None
    """A .png to write: a bar for each word, or the map of attention."""
    html: Path | None = None
    """A .html to write, which loads nothing else."""


def run_explain(args: Explain) -> None:
    """Print the words in a coloured line, or, if that goes to no terminal, in a table."""
    cli.check_result(args.json, png=args.png, html=args.html)
    if args.steps != STEPS and args.method != "integrated-gradients":
        raise ConfigError(f"--steps {args.steps}: for --method integrated-gradients; leave it out")
    for name in ("png", "html"):
        if (file := getattr(args, name)) is None:
            continue
        if file.suffix != f".{name}":
            raise ConfigError(f"--{name} {file}: give a file that ends in .{name}")
        cli.check_output(f"--{name}", file)
    if args.png is not None:
        library("matplotlib.figure")
    found = _explained(args, Method(args.method, args.steps, args.layer, args.head))
    image = None if args.png is None else picture(found)
    if args.html is not None:
        cli.write_output("--html", args.html, html_page(found, f"Why {found.says or 'no answer'}?"))
    if image is not None:
        cli.write_output("--png", args.png, image)
    lines = coloured_lines(found) if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else table_lines(found)
    tell(args.json, {"model": args.model} | found.as_json(), [*described(found), *_notes(found), *lines])


def _explained(args: Explain, method: Method) -> Explanation:
    directory = args.directory()
    config = PreTrainedConfig.of_directory(directory)
    if {"mlm", "pretraining"} & {*config.family.kinds(config.architectures)}:
        if args.pair is not None:
            raise ConfigError("--pair: for tuned models, and this one fills masks; leave it out")
        masked = read_masked_lm(directory, use_safetensors=args.use_safetensors)
        with args.computing(masked.model):
            return explain_mask(masked, args.text, method, args.target)
    tuned = args.tuned(str(directory))
    pairs = None if args.pair is None else [args.pair]
    if pairs is None and (isinstance(tuned.task, Span) or "pair" in tuned.trained_on.columns):
        what = "a question needs its context" if isinstance(tuned.task, Span) else "training used two texts a row"
        raise DataError(f"--pair: {what}; give it")
    return explain(tuned, [args.text], pairs, method=method, target=args.target)[0]


def _notes(found: Explanation) -> list[str]:
    if (found.completeness_error or 0) <= OFF:
        return []
    return ["note       the values do not sum to that difference: give more --steps, or another --method"]

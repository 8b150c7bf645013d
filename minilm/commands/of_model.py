"""What commands on a model share: its flags, how it is opened, progress, outputs that resume, what is printed."""

import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch

from minilm import cli
from minilm.checkpoint.model import find_model
from minilm.errors import ConfigError
from minilm.finetuning.api import open_tuned
from minilm.finetuning.tuned import Tuned
from minilm.machine.runtime import Precision, Runtime
from minilm.metrics.intervals import FEWEST
from minilm.partial import Partial, partial_of
from minilm.train.log import say

Item = TypeVar("Item")

SAY_EVERY = 10  # seconds between lines of progress


@dataclass(frozen=True, kw_only=True)
class OfModel:
    """Flags of a command on a model."""

    goes_on: ClassVar[bool] = False  # whether the same command resumes after a stop
    ranges: ClassVar[cli.Ranges] = {"threads": (1, 1024)}  # of the flags, both ends included

    model: str
    """A directory, or a name on the Hugging Face hub."""
    revision: str | None = None
    """Branch, tag or commit of the model on the hub."""
    allow_pickle: bool = False
    """Read pytorch_model.bin in place of model.safetensors; only from makers you trust."""
    device: str = "auto"
    """cuda, mps or cpu."""
    precision: Precision = "fp32"
    """Precision of matrix products."""
    threads: int | None = None
    """CPU threads; if not given, as many as torch takes."""
    json: str | None = None
    """Also write the result as JSON into this file; with no file named, print the JSON and nothing else."""

    def directory(self) -> Path:
        """Where the model is, fetched if need be. Raises UserError."""
        return find_model(self.model, self.checked_revision(), allow_pickle=self.allow_pickle, flag="--model")

    def options(self) -> dict[str, Any]:
        """Keyword arguments for `from_pretrained`. Raises ConfigError."""
        return {"revision": self.checked_revision(), "use_safetensors": self.use_safetensors}

    @property
    def use_safetensors(self) -> bool | None:
        """As in `from_pretrained`: false reads a pickle."""
        return False if self.allow_pickle else None

    def checked_revision(self) -> str | None:
        """--revision. Raises ConfigError where the model is a directory, which has no other revisions."""
        if self.revision is not None and self.model is not None and Path(self.model).exists():
            raise ConfigError(f"--revision {self.revision}: {self.model} is on this machine, as it is; leave it out")
        return self.revision

    def computing(self, model: torch.nn.Module) -> AbstractContextManager:
        """Move `model` to its device, with fp32 weights whatever its file has; the context computes in the precision
        that is asked for."""
        return Runtime.precise(model.float(), self.device, self.precision, self.threads).autocast()

    def tuned(self, name: str | None = None) -> Tuned:
        """The model of --model, or of `name`, opened as a tuned one. Raises UserError."""
        return open_tuned(
            name or self.model,
            revision=self.checked_revision() if name in (None, self.model) else self.revision,
            allow_pickle=self.allow_pickle,
            device=self.device,
            precision=self.precision,
            threads=self.threads,
            flag="--model",
        )


def counted(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """Pass the items on, and report progress every SAY_EVERY seconds. Items may come in batches, so the time left is
    computed from the items before one that was waited for."""
    began = said = before = time.monotonic()
    for done, each in enumerate(items):
        if (now := time.monotonic()) - said > SAY_EVERY:
            said = now
            if done:
                left = (before - began) * (total / done - 1) - (now - before)
                say(f"{done:,} of {total:,} {what}, {max(0, left):.0f} s left")
        yield each
        before = time.monotonic()


@contextmanager
def going_on(name: str, output: Path, of: dict[str, Any]) -> Iterator[Partial]:
    """`partial_of` the output file of the flag `name`, or of the target of a link; says what is kept. Raises
    ConfigError."""
    try:
        with partial_of(cli.where_written(output), of) as partial:
            if partial.was_of_another:
                say(f"{partial.path} is of another model, other data or settings: starting over")
            try:
                yield partial
            except (KeyboardInterrupt, SystemExit):
                if partial.told:
                    say(f"stopped; the same command resumes from {partial.path}")
                raise
    except OSError as error:
        raise ConfigError(f"{name} {output}: cannot be written ({error.strerror or error})") from error


def tell(target: str | None, found: dict[str, Any], lines: Iterable[str]) -> None:
    """Write a result as JSON to `target`, the value of --json, if given; and print its lines, unless that is "-"."""
    if target is not None:
        cli.write_result(target, found)
    if target != "-":
        print("\n".join(lines))


def unknown_line(count: int, what: str) -> list[str]:
    """A line that says how many of `what` hold an unknown token, if any do."""
    return [f"unknown    {count:,} {what} hold an unknown token, scored as such"] if count else []


def p_value(p: float) -> str:
    return "below 0.0001" if p < 1e-4 else f"{p:.4f}"


def interval_of(own: dict[str, Any], of: str = "", form: str = ",.4f") -> str:
    """The interval of a metric {value, low, high, n} as text, or why there is none. of: what it is over, as documents,
    if that is to be said."""
    if own["low"] is None:
        few = f"too few {of} for an interval".replace("  ", " ")
        return few if own["n"] < FEWEST else "no interval: resamples all equal, or too few defined"
    return f"{own['low']:{form}} to {own['high']:{form}}" + (f" (95 %, over {of})" if of else "")

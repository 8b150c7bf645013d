"""What every command is told of its model."""

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
from minilm.metrics.intervals import FEWEST
from minilm.partial import Partial, partial_of
from minilm.tasks.finetune import open_tuned
from minilm.tasks.tuned import Tuned
from minilm.train.log import say
from minilm.train.runtime import Precision, Runtime

Item = TypeVar("Item")

THREADS = (1, 1024)
SAY_EVERY = 10  # seconds


@dataclass(frozen=True, kw_only=True)
class OfModel:
    """What every command is told of its model."""

    goes_on: ClassVar[bool] = False  # whether one that was stopped does, when it is given again

    model: str
    """A directory, or a name on the Hugging Face hub."""
    revision: str | None = None
    """Branch, tag or commit of that name."""
    allow_pickle: bool = False
    """Read pytorch_model.bin in place of model.safetensors; from makers you trust only."""
    device: str = "auto"
    """cuda, mps or cpu."""
    precision: Precision = "fp32"
    """Of matrix products."""
    threads: int | None = None
    """Of the CPU; as many as torch takes, if not given."""
    json: str | None = None
    """Also write the result as JSON into this file, or print nothing else, with no file named."""

    def directory(self) -> Path:
        """Where the model is, fetched if need be. Raises UserError."""
        return find_model(self.model, self.revision, allow_pickle=self.allow_pickle, flag="--model")

    def options(self) -> dict[str, Any]:
        """As `from_pretrained` takes them."""
        return {"revision": self.revision, "use_safetensors": False if self.allow_pickle else None}

    def computing(self, model: torch.nn.Module) -> AbstractContextManager:
        """Moves `model` to its device; what is computed within is as precise as asked for."""
        return Runtime.precise(model, self.device, self.precision, self.threads).autocast()

    def tuned(self, name: str | None = None) -> Tuned:
        """The model, or another one, as one that is tuned. Raises UserError."""
        return open_tuned(
            name or self.model,
            revision=self.revision,
            allow_pickle=self.allow_pickle,
            device=self.device,
            precision=self.precision,
            threads=self.threads,
            flag="--model",
        )


def counted(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """The same; how far it is, is said every SAY_EVERY seconds. Items may come in batches: what is done when one has
    been waited for is what came before it, and by when."""
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
    """`partial_of` the file of the flag `name`, or where a link of that name leads. Raises ConfigError."""
    try:
        with partial_of(cli.where_written(output), of) as partial:
            if partial.was_of_another:
                say(f"{partial.path} is of another model, other data or settings: beginning anew")
            try:
                yield partial
            except (KeyboardInterrupt, SystemExit):
                if partial.told:
                    say(f"stopped; {partial.path} is kept, from which the same command goes on")
                raise
    except OSError as error:
        raise ConfigError(f"{name} {output}: cannot be written ({error.strerror or error})") from error


def tell(target: str | None, found: dict[str, Any], lines: Iterable[str]) -> None:
    """What was found: as JSON where `target`, the flag --json, says, and in lines, unless that takes their place."""
    if target is not None:
        cli.write_result(target, found)
    if target != "-":
        print("\n".join(lines))


def unknown_line(count: int, what: str) -> list[str]:
    """That so many of `what` are read without some of their letters, if any are."""
    return [f"unknown    {count:,} {what} hold an unknown token, told without its letters"] if count else []


def p_value(p: float) -> str:
    return "below 0.0001" if p < 1e-4 else f"{p:.4f}"


def interval_of(own: dict[str, Any], of: str = "", form: str = ",.4f") -> str:
    """That of a metric {value, low, high, n}; or why there is none. of: what it is over, as documents, if that is to be
    told."""
    if own["low"] is None:
        few = f"too few {of} for an interval".replace("  ", " ")
        return few if own["n"] < FEWEST else "no interval: draws do not differ, or too few define it"
    return f"{own['low']:{form}} to {own['high']:{form}}" + (f" (95 %, over {of})" if of else "")

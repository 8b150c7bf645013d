"""Errors that a user can mend. The message is one line: what, where (flag, or file and line), how to mend it.

The commands turn these into that one line and exit status 2; a library user catches `UserError`.
"""

import difflib
import importlib
import signal
from collections.abc import Iterable, Sequence
from types import ModuleType

MAX_LINE = 2000  # characters
ELSEWHERE = {  # names that other libraries and commands give to a flag, an argument or a task; the likeliest one last
    "learning_rate": ("lr",),
    "max_steps": ("steps",),
    "num_train_epochs": ("epochs",),
    "num_epochs": ("epochs",),
    "per_device_train_batch_size": ("batch_size",),
    "gradient_accumulation_steps": ("accumulation",),
    "max_length": ("length",),
    "max_seq_length": ("length",),
    "block_size": ("length",),
    "warmup_ratio": ("warmup_frac",),
    "max_grad_norm": ("max_norm",),
    "output_dir": ("output", "out"),
    "out": ("output",),
    "output": ("out",),
    "data": ("input", "train"),
    "input": ("data", "train"),
    "train": ("data",),
    "text": ("data", "input"),
    "train_file": ("data", "train"),
    "validation_file": ("dev",),
    "test_file": ("test",),
    "model_name_or_path": ("model",),
    "fp16": ("precision",),
    "bf16": ("precision",),
    "text_column": ("text",),
    "pair_column": ("pair",),
    "label_column": ("label",),
    "ner": ("tagging",),
    "token_classification": ("tagging",),
    "question_answering": ("span",),
    "qa": ("span",),
    "sts": ("similarity",),
    "text_classification": ("classification",),
    "sequence_classification": ("classification",),
    "multi_label": ("multilabel",),
    "multiple_choice": ("choice",),
}


class UserError(ValueError):
    """An error that the caller can mend; the message says how, in one line, whatever names it quotes."""

    def __init__(self, message: str) -> None:
        line = printable(message[: MAX_LINE + 1])
        super().__init__(line if len(line) <= MAX_LINE else f"{line[:MAX_LINE]} ...")


class ConfigError(UserError):
    """A wrong flag or configuration value."""


class DataError(UserError):
    """A faulty corpus, data file or vocabulary."""


class LoadingError(DataError):
    """One process of a run cannot make its next batch."""


class CheckpointError(UserError):
    """A faulty model directory or training state."""


def end_quietly() -> None:
    """Let Ctrl-C end this process without a traceback before and after `cli.run`, which handles it. Call this before
    importing torch, which takes seconds."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a background process may ignore it
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def printable(text: str) -> str:
    """`text` in one line, with a space for each unprintable character, such as a newline, an escape or a bell."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def cut(text: str, most: int) -> str:
    """`text`, or its first `most` characters and dots if it is longer."""
    return text if len(text) <= most else f"{text[:most]}..."


def some(names: Sequence[str], most: int) -> str:
    """The first `most` names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """End of a message about an unknown name: "; did you mean X?", or "" if no known name is similar. A flag's name has
    its hyphens."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    for other in ELSEWHERE.get(name.removeprefix("--").replace("-", "_").lower(), ()):
        near = [each for each in (other, "--" + other.replace("_", "-")) if each in known] or near
    return f"; did you mean {near[0]}?" if near else ""


def first_line(error: BaseException) -> str:
    """First line of another library's error message, cut to 200 characters; the class name if there is no message."""
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (said or [type(error).__name__])[0][:200]


def library(name: str) -> ModuleType:
    """A module of the `eval` extra. Raises ConfigError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"this needs {error.name}, which is not installed: pip install 'minilm[eval]'") from error

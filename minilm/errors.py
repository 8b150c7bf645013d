"""What a user can get wrong. Each is one line: what, where (flag, or file and line), how to mend it.

The commands turn these into that one line and exit status 2; a library user catches `UserError`.
"""

import difflib
import importlib
import signal
from collections.abc import Iterable, Sequence
from types import ModuleType

MAX_LINE = 2000  # characters


class UserError(ValueError):
    """Something the caller can mend; the message says how. One line, whatever the names in a file are."""

    def __init__(self, message: str) -> None:
        line = printable(message[: MAX_LINE + 1])
        super().__init__(line if len(line) <= MAX_LINE else f"{line[:MAX_LINE]} ...")


class ConfigError(UserError):
    """A flag or a configuration value."""


class DataError(UserError):
    """A corpus, a data file or a vocabulary."""


class LoadingError(DataError):
    """The next batch of a run, which one of its processes cannot make."""


class CheckpointError(UserError):
    """A model directory or a training state."""


def end_quietly() -> None:
    """Have Ctrl-C end this process without a traceback until `cli.run` handles it, and after that: to be called before
    torch is loaded, which takes seconds."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # in the background it may be ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def printable(text: str) -> str:
    """One line that moves no cursor and rings no bell: a space for each character that has no look of its own."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def cut(text: str, most: int) -> str:
    """At most so many letters of it, and dots for the others."""
    return text if len(text) <= most else f"{text[:most]}..."


def some(names: Sequence[str], most: int) -> str:
    """At most so many of them, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The end of a message about a name that there is none of: "; did you mean X?", or "" where none is alike."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {near[0]}?" if near else ""


def first_line(error: BaseException) -> str:
    """What another library says of an error, as far as one line holds it; its kind, where it says nothing."""
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (said or [type(error).__name__])[0][:200]


def library(name: str) -> ModuleType:
    """A module of the `eval` extra. Raises ConfigError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"this needs {error.name}, which is not installed: pip install 'minilm[eval]'") from error

"""What a user can get wrong. Each is one line: what, where (flag, or file and line), how to mend it.

The commands turn these into that one line and exit status 2; a library user catches `UserError`.
"""

MAX_LINE = 2000  # characters


class UserError(ValueError):
    """Something the caller can mend; the message says how. One line, whatever the names in a file are."""

    def __init__(self, message: str) -> None:
        line = "".join(letter if letter.isprintable() else " " for letter in message[: MAX_LINE + 1])
        super().__init__(line if len(line) <= MAX_LINE else f"{line[:MAX_LINE]} ...")


class ConfigError(UserError):
    """A flag or a configuration value."""


class DataError(UserError):
    """A corpus, a data file or a vocabulary."""


class CheckpointError(UserError):
    """A model directory or a training state."""

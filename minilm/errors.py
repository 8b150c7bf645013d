"""What a user can get wrong. Each is one line: what, where (flag, or file and line), how to mend it.

The commands turn these into that one line and exit status 2; a library user catches `UserError`.
"""


class UserError(ValueError):
    """Something the caller can mend; the message says how."""


class ConfigError(UserError):
    """A flag or a configuration value."""


class DataError(UserError):
    """A corpus, a data file or a vocabulary."""


class CheckpointError(UserError):
    """A model directory or a training state."""

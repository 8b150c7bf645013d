"""What takes long to compute, kept while it is: a command that was killed, or told to stop, goes on from there."""

import errno
import fcntl
import json
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from minilm.errors import CheckpointError, DataError
from minilm.files import NO_LOCKS, read_json, sync_entry, write_json

SAVE_EVERY = 30  # seconds


class Partial:
    """The bytes that are there of `file`: in FILE.partial, and in FILE.partial.json of what they are, how many of them
    are on the disk, and what their maker has to know to go on. Of `partial_of`."""

    def __init__(self, file: Path, stream: BinaryIO, of: dict[str, Any]) -> None:
        self.file, self.path, self.about = file, _beside(file, ""), _beside(file, ".json")
        self._stream, self._of = stream, json.loads(json.dumps(of))
        self._state: tuple[int, dict[str, int]] = (0, {})  # how many bytes, what was told of them
        self.was_of_another, self._saved_at = False, time.monotonic()
        if self.about.exists() and (state := self._read()) is not None:
            self._state = state
        stream.truncate(self._state[0])

    def _read(self) -> tuple[int, dict[str, int]] | None:
        """None: what is there is of something else."""
        with suppress(CheckpointError, KeyError, TypeError, AttributeError):
            kept = read_json(self.about)
            size, told = kept["bytes"], kept["told"]
            numbers = [size, *told.values()]
            is_whole = all(type(each) is int for each in numbers) and 0 <= size <= self.path.stat().st_size
            if is_whole and kept["of"] == self._of:
                return size, told
        self.was_of_another = True
        return None

    @property
    def told(self) -> dict[str, int]:
        """What was told with the last bytes; {} where there are none."""
        return self._state[1]

    def content(self) -> bytes:
        self._stream.flush()
        return self.path.read_bytes()[: self._state[0]]

    def add(self, content: bytes, **told: int) -> None:
        """Some more bytes; every SAVE_EVERY seconds all so far are made durable, if something is told of them."""
        self._stream.write(content)
        self._state = self._state[0] + len(content), told  # at once, for a signal may end this anywhere
        if told and time.monotonic() - self._saved_at > SAVE_EVERY:
            self.save()

    def save(self) -> None:
        self._stream.flush()
        os.fsync(self._stream.fileno())
        write_json(self.about, {"of": self._of, "bytes": self._state[0], "told": self._state[1]})
        self._saved_at = time.monotonic()

    def finish(self) -> None:
        """They become the file."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self.path.replace(self.file)
        sync_entry(self.file.parent)

    def remove(self) -> None:
        for path in (self.path, self.about):
            with suppress(OSError):
                path.unlink()


@contextmanager
def partial_of(file: Path, of: dict[str, Any]) -> Iterator[Partial]:
    """What is there of `file`, if it is `of` the same, for JSON: else it begins anew. It stays where the context is
    left by anything but a DataError, and ends with it. Raises OSError, also where another process has it."""
    with _locked(file) as stream:
        partial = Partial(file, stream, of)
        try:
            yield partial
        except DataError:
            partial.remove()
            raise
        except BaseException:
            if partial.told:
                with suppress(OSError):  # what was saved before is still there
                    partial.save()
            else:
                partial.remove()
            raise
        partial.remove()


@contextmanager
def _locked(file: Path) -> Iterator[BinaryIO]:
    while True:
        handle = os.open(_beside(file, ""), os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
        with open(handle, "ab") as stream:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise OSError(errno.EINVAL, f"{_beside(file, '').name} is no regular file", str(file))
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BlockingIOError(error.errno, "another process is writing it", str(file)) from error
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
            held = False
            with suppress(FileNotFoundError):  # another process has just finished it
                held = os.path.samestat(os.fstat(handle), os.stat(_beside(file, "")))
            if held:
                yield stream
                return


def _beside(file: Path, ending: str) -> Path:
    return file.with_name(f"{file.name}.partial{ending}")

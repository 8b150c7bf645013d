"""Partial output files of long computations, from which a command that was killed or told to stop resumes."""

import errno
import json
import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from minilm.errors import CheckpointError, DataError
from minilm.files import SHOWN, lock, read_json, remove_stale, sync_entry, write_json

SAVE_EVERY = 30  # seconds


class Partial:
    """The part of `file` that is written so far, in FILE.partial. FILE.partial.json says what it belongs to, how many
    of its bytes are on disk, and what its maker needs to resume. Made by `partial_of`."""

    def __init__(self, file: Path, path: Path, stream: BinaryIO, of: dict[str, Any]) -> None:
        """path: FILE.partial, or, on a file system without locks, a unique name, from which nobody resumes."""
        self.file, self.path = file, path
        self.about = _beside(file, ".json") if path == _beside(file) else None
        self._stream, self._of = stream, json.loads(json.dumps(of))
        self._state: tuple[int, dict[str, int]] = 0, {}  # (bytes written, numbers to resume from)
        self._is_file, self._saved_at = False, time.monotonic()
        found = self._found()
        self.was_of_another = found is None
        self._state = found or self._state
        stream.truncate(self._state[0])
        with suppress(OSError):  # a full disk: the next write fails, too, and says so
            self.save()  # from now on FILE.partial.json says what it belongs to

    def _found(self) -> tuple[int, dict[str, int]] | None:
        """(bytes, told) of what is there; None if it belongs to other work. Raises OSError if nothing says to what."""
        size = self.path.stat().st_size
        if self.about is None or not self.about.exists():
            if size:
                raise FileExistsError(errno.EEXIST, f"{self.path.name} is in the way; move it away", str(self.file))
            return 0, {}
        with suppress(CheckpointError, KeyError, TypeError, AttributeError):
            kept = read_json(self.about)
            numbers = [kept["bytes"], *kept["told"].values()]
            if all(type(each) is int for each in numbers) and 0 <= kept["bytes"] <= size and kept["of"] == self._of:
                return kept["bytes"], kept["told"]
        return None

    @property
    def told(self) -> dict[str, int]:
        """The numbers that came with the last bytes added; {} if there are none."""
        return self._state[1]

    def content(self) -> bytes:
        self._stream.flush()
        return self.path.read_bytes()[: self._state[0]]

    def add(self, content: bytes, **told: int) -> None:
        """Append bytes, with the numbers to resume from after them; without numbers none is resumed. Saves every
        SAVE_EVERY seconds."""
        self._stream.write(content)
        self._state = self._state[0] + len(content), told  # one assignment, for a signal may end this anywhere
        if time.monotonic() - self._saved_at > SAVE_EVERY:
            self.save()

    def save(self) -> None:
        self._stream.flush()
        if self.about is not None:
            os.fsync(self._stream.fileno())
            size, told = self._state
            write_json(self.about, {"of": self._of, "bytes": size if told else 0, "told": told})
        self._saved_at = time.monotonic()

    def finish(self) -> None:
        """Flush to disk and rename to the final name."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._tidy()
        self.path.replace(self.file)
        self._is_file = True
        sync_entry(self.file.parent)
        if self.about is not None:
            self.about.unlink(missing_ok=True)

    def _tidy(self) -> None:
        """Remove what killed processes left of FILE.partial.json. While FILE.partial is locked, this one alone writes
        it; but of a long name temporary files tell only the beginning."""
        if self.about is not None and len(self.about.name) <= SHOWN:
            remove_stale(self.about, age=0)

    def leave(self) -> None:
        """Keep what can be resumed, else remove the file. If saving fails, the last save counts, if there is one."""
        if self.about is not None and self.told and not self._is_file:
            with suppress(OSError):
                self.save()
            if self.about.exists():
                return
        self.remove()

    def remove(self) -> None:
        """Remove the partial file, unless it has become the final one. It is emptied first, so that nobody resumes from
        it, and unlinked last, for then another process may begin one."""
        if self._is_file:
            return
        with suppress(OSError):
            self._stream.truncate(0)
            self._tidy()
            if self.about is not None:
                self.about.unlink(missing_ok=True)
            self.path.unlink()


@contextmanager
def partial_of(file: Path, of: dict[str, Any]) -> Iterator[Partial]:
    """Partial output of `file`: resumed if it was made for an equal `of` (JSON values), else begun anew. An exception
    other than DataError keeps it, DataError removes it. Raises OSError, also if another process is writing it."""
    with _locked(file) as (path, stream):
        partial = Partial(file, path, stream, of)
        try:
            yield partial
        except DataError:
            partial.remove()
            raise
        except BaseException:
            partial.leave()
            raise
        partial.remove()


@contextmanager
def _locked(file: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """(path, stream) of FILE.partial, locked for this process; without locks, of a file of a unique name."""
    path = _beside(file)
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
        with open(handle, "ab") as stream:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise OSError(errno.EINVAL, f"{path.name} is no regular file", str(file))
            try:
                if not lock(handle):
                    break
            except BlockingIOError as error:
                raise BlockingIOError(error.errno, "another process is writing it", str(file)) from error
            held = False
            with suppress(FileNotFoundError):  # another process has just finished it
                held = os.path.samestat(os.fstat(handle), os.stat(path))
            if held:
                yield path, stream
                return
    if not path.stat().st_size:
        path.unlink()
    own = _beside(file, f".{secrets.token_hex(4)}")
    with own.open("xb") as stream:
        yield own, stream


def _beside(file: Path, ending: str = "") -> Path:
    return file.with_name(f"{file.name}.partial{ending}")

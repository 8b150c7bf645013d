"""Atomic and durable writing of files, checked reading of JSON, checksums, and locks on directories."""

import errno
import fcntl
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from minilm.errors import CheckpointError

MAX_JSON = 64 << 20  # bytes
MAX_DEPTH = 50
NO_LOCKS = (errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # a file system has none
_held: set[tuple[int, ...]] = set()  # held by `alone`: (process, thread, device, inode of the directory)
TRIES = 100  # attempts to open a directory that other processes create and rename
SHOWN = 40  # letters of a file's name in its temporary file's, for the length of names is limited
STALE = 3600  # seconds, after which nobody writes a temporary file any more


def sha256(file: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def regular_file(file: Path, directory: Path | None = None) -> Path:
    """`file` itself, if it is a regular file whose real path lies in `directory` (its own, if None). In the hub's cache
    a file below snapshots/ID/ may link into the blobs/ beside snapshots/. Raises OSError."""
    if not file.exists():
        raise FileNotFoundError("there is none")
    if not file.is_file():
        raise OSError("not a regular file")
    home, real = (directory or file.parent).resolve(), file.resolve()
    cache = next((up.parent for up in (home.parent, home.parent.parent) if up.name == "snapshots"), None)
    allowed = [home] if cache is None else [home, cache / "blobs"]
    if not any(real.is_relative_to(root) for root in allowed):
        raise OSError(f"leads out of its directory, to {real}; copy that here")
    return file


def read_json(file: Path, kind: type = dict, most: int = MAX_JSON, directory: Path | None = None) -> Any:
    """The object, or list, in a JSON file of at most `most` bytes. directory: as in `regular_file`. Raises
    CheckpointError."""
    try:
        if regular_file(file, directory).stat().st_size > most:
            raise ValueError(f"larger than {most >> 20} MB")
        value = json.loads(file.read_text(encoding="utf-8"))
        level = [value]
        for _ in range(MAX_DEPTH):  # Python's own recursion ends at some hundreds
            held = (each.values() if isinstance(each, dict) else each for each in level)
            level = [inner for each in held if not isinstance(each, str | float | int | None) for inner in each]
        if level:
            raise ValueError(f"nested deeper than {MAX_DEPTH}")
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error})") from error
    if not isinstance(value, kind):
        raise CheckpointError(f"{file}: holds {type(value).__name__}, not {'an object' if kind is dict else 'a list'}")
    return value


def write_whole(file: Path, content: str | bytes) -> None:
    """Write a file atomically and durably: on failure it stays as it was. A link is replaced, not followed.

    The content, text as UTF-8 by `encoded`, goes to a temporary file of a unique name first, for others may be writing
    the same file. Temporary files that a killed process left an hour ago or more are removed.
    """
    remove_stale(file)
    partial = file.with_name(f".{file.name[:SHOWN]}.{secrets.token_hex(4)}.tmp")
    try:
        with partial.open("xb") as stream:
            if file.is_file() and not file.is_symlink():
                os.fchmod(stream.fileno(), stat.S_IMODE(file.stat().st_mode))  # who may read it stays so
            stream.write(encoded(content))
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(file)  # which the system leaves out when the disk is full
        raise
    with suppress(PermissionError):  # a directory that may be written but not read
        sync_entry(file.parent)


def remove_stale(file: Path, age: float = STALE) -> None:
    """Remove the temporary files of `write_whole` for `file` that are `age` seconds old or more."""
    own = re.compile(rf"\.{re.escape(file.name[:SHOWN])}\.[0-9a-f]{{8}}\.tmp")
    with suppress(OSError):
        for name in filter(own.fullmatch, os.listdir(file.parent)):
            with suppress(OSError):  # gone meanwhile, or a directory
                status = (stale := file.with_name(name)).stat(follow_symlinks=False)
                if stat.S_ISREG(status.st_mode) and time.time() - status.st_mtime >= age:
                    stale.unlink()


def encoded(content: str | bytes) -> bytes:
    """Text as UTF-8; a lone surrogate, as of an undecodable byte in a file name, becomes a backslash escape."""
    return content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace")


def json_text(value: dict[str, Any] | list[Any]) -> str:
    """JSON text of an object or a list, as `write_json` writes it."""
    return json.dumps(value, indent=2) + "\n"


def write_json(file: Path, value: dict[str, Any] | list[Any]) -> None:
    """Write an object or a list as JSON, by `write_whole`."""
    write_whole(file, json_text(value))


def finite(value: Any) -> Any:
    """`value` with null in place of NaN and infinity, which JSON does not have, and numbers for numpy's scalars."""
    if isinstance(value, dict):
        return {key: finite(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [finite(own) for own in value]
    if getattr(value, "shape", None) == ():
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def jsonl_text(rows: Iterable[dict[str, Any]]) -> str:
    """JSON Lines: one object per line, made `finite`; values that JSON has no form for, as dates, are text."""
    return "".join(json.dumps(finite(row), ensure_ascii=False, default=str) + "\n" for row in rows)


def remove(path: Path) -> None:
    """Remove a file, a link or a whole directory."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def lock(handle: int) -> bool:
    """Lock an open file for this process until it is closed; False if its file system has no locks. Raises
    BlockingIOError if another process holds the lock, OSError for other faults."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return False
    return True


@contextmanager
def alone(directory: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Exclusive lock on `directory`, created if missing, against other processes and threads that use `alone`. Waits
    for the holder, after a call of `waiting`. Does not lock on a file system without locks. Raises OSError if this
    thread holds it already, as in a signal handler."""
    tries = 0
    while True:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, FileExistsError):  # another process removed or renamed it in between
            if (tries := tries + 1) == TRIES:
                raise
            continue
        held, process = False, os.getpid()
        try:
            status = os.fstat(handle)
            key = (process, threading.get_ident(), status.st_dev, status.st_ino)
            if key in _held:  # in a signal's handler, say: it would wait for itself
                raise OSError(errno.EDEADLK, "this thread is writing there already", str(directory))
            try:
                lock(handle)
            except BlockingIOError:
                waiting()
                fcntl.flock(handle, fcntl.LOCK_EX)
            with suppress(OSError):
                held = os.path.samestat(status, os.stat(directory))
            if held:
                _held.add(key)
                try:
                    yield
                finally:
                    _held.discard(key)
                return
        finally:
            if os.getpid() == process:  # closing is not enough: a child that was forked meanwhile has it open, too
                with suppress(OSError):
                    fcntl.flock(handle, fcntl.LOCK_UN)
            os.close(handle)


def sync(directory: Path) -> None:
    """Flush `directory` and every file and directory below it to disk."""
    for path in [*directory.rglob("*"), directory]:
        sync_entry(path)


def sync_entry(path: Path) -> None:
    """Flush one file or directory to disk, but nothing below it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""Run directories: complete checkpoints while a run lasts, a Hugging Face model directory when it has ended.

OUT/run.json metrics.jsonl loss.png lock                                     live, in no manifest
OUT/step-000300/ config.json model.safetensors tokenizer training/ MANIFEST.json   renamed into place whole
OUT/config.json model.safetensors tokenizer README.md MANIFEST.json          the end: config.json comes last
"""

import errno
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from itertools import takewhile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from minilm import files
from minilm.errors import CheckpointError, ConfigError, UserError, cut
from minilm.files import json_text, read_json, regular_file, remove, sha256, sync, sync_entry, write_json

FORMAT = 1  # version of MANIFEST.json, run.json and training/state.json
SHOWN = 200  # letters of a setting shown in a message
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
DRY_RUN = ".dry-run-"  # begins the name of a dry run's directory, which a killed one leaves
KEPT = 2  # checkpoints of a run, beside the one that is being written


@dataclass(frozen=True)
class Run:
    """Content of run.json: what a run decided when it began, and its result when it has ended."""

    settings: dict  # all that decides the final weights: flags, and a fingerprint of the data
    steps: int
    device: str  # this and the next five affect results bit for bit
    precision: str
    threads: int
    backend: str
    versions: dict
    world: int = 1  # processes
    result: dict | None = None


def remove_dry_runs(directory: Path) -> None:
    """Remove what killed dry runs left in a directory: those that no process holds any more."""
    for left in directory.glob(f"{DRY_RUN}*"):
        with suppress(OSError):  # another process holds it, or is just making it
            with (left / "run" / "lock").open("rb") as lock:
                is_free = files.lock(lock.fileno())
            if is_free:
                remove(left)


class Store:
    """The checkpoints of one run. Only one process at a time holds it."""

    def __init__(self, out: Path, temporary: bool = False) -> None:
        """temporary: whether OUT is deleted when the run ends or stops, so that nothing can resume from it."""
        self.out, self.temporary = out, temporary

    def check_writable(self) -> Path:
        """The nearest existing directory, OUT or above. Raises ConfigError if OUT cannot be made or holds no run but
        other files. Changes nothing."""
        if not str(self.out).isprintable():  # a byte that is no UTF-8, or an invisible character
            raise ConfigError(f"--out {str(self.out)!r}: cannot be printed; choose a name that can")
        nearest = self.out
        while not nearest.exists() and nearest != nearest.parent:
            if nearest.is_symlink():
                raise ConfigError(f"--out {self.out}: {nearest} is a broken link; remove it, or fix it")
            nearest = nearest.parent
        if not nearest.is_dir():
            raise ConfigError(f"--out {self.out}: {nearest} is a file, not a directory")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise ConfigError(f"--out {self.out}: {nearest} is not writable; choose another --out")
        if nearest == self.out and not (self.out / "run.json").exists():
            own = "lock", ".run.json.", ".tmp-", DRY_RUN
            strangers = (path.name for path in self.out.iterdir() if not path.name.startswith(own))
            if stranger := min(strangers, default=""):
                raise ConfigError(f"--out {self.out}: holds {stranger} and no run; choose an empty directory")
        return nearest

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Make the directory and lock it against other writers; the lock ends with the process. Directories made here
        are removed again if nothing was written."""
        made = [path for path in (self.out, *self.out.parents) if not path.exists()]
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            lock = open(self.out / "lock", "a+", encoding="utf-8", opener=_open_no_link)  # noqa: SIM115
        except OSError as error:
            raise ConfigError(f"--out {self.out}: cannot be written ({error.strerror or error})") from error
        with lock:
            try:
                files.lock(lock.fileno())
            except BlockingIOError as error:
                lock.seek(0)
                holder = lock.read().strip() or "another process"
                raise ConfigError(f"--out {self.out}: {holder} is writing it; wait, or choose another") from error
            if not self._is_lock(lock.fileno()):  # its last holder has just removed the file
                raise ConfigError(f"--out {self.out}: was being removed by another process; run the command again")
            with suppress(OSError):  # a full disk, which saving reports better
                os.ftruncate(lock.fileno(), 0)
                os.write(lock.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode())
            remove_dry_runs(self.out)
            for stale in (*self.out.glob(".tmp-*"), *self.out.glob(".*.tmp")):
                with suppress(OSError):  # nobody else writes here: the processes that made them are dead
                    remove(stale)
            try:
                yield
            finally:
                with suppress(OSError):
                    if [path.name for path in self.out.iterdir()] == ["lock"]:
                        (self.out / "lock").unlink()
                        for path in made:
                            path.rmdir()

    def _is_lock(self, handle: int) -> bool:
        """Whether the lock file in OUT is the open one, not a new one of another process."""
        with suppress(OSError):
            return os.path.samestat(os.fstat(handle), os.stat(self.out / "lock"))
        return False

    def earlier_run(self, settings: dict[str, Any], choices: dict[str, Any], resume: str) -> Run | None:
        """The run that began here, or None. Raises ConfigError if it differs from what is asked for now.

        settings: equal to the run's, but for the data, which is not known yet; a flag that is off equals one that is
        missing, and a model is known by its weights' fingerprint, wherever it lies. choices: flags which, if given,
        must equal what the run decided.
        """
        file = self.out / "run.json"
        if not file.exists():
            return None
        if resume == "never":
            raise ConfigError(f"--out {self.out}: holds a run; choose another --out, or --resume auto to resume it")
        try:
            values = read_json(file)
        except UserError as error:
            kept = checkpoints(self.out)
            mend = f"go on from a checkpoint, with --model {kept[-1][1]}, in another --out" if kept else "restore it"
            raise CheckpointError(f"{error}; {mend}") from error
        check_format(file, values)
        try:
            run = Run(**{key: value for key, value in values.items() if key != "format"})
            was = run.settings | {key: getattr(run, key) for key in choices}
        except (TypeError, AttributeError) as error:
            raise CheckpointError(f"{file}: not a run's ({error}); choose another --out") from error
        for field in fields(Run):
            if not isinstance(value := getattr(run, field.name), field.type):
                raise CheckpointError(f"{file}: {field.name} is {value!r}; choose another --out")
        if "data" not in run.settings:
            raise CheckpointError(f"{file}: settings name no data; choose another --out")
        if run.steps < 1 or run.settings.get("steps") not in (None, run.steps):
            raise CheckpointError(f"{file}: steps is {run.steps}; choose another --out")
        asked_for = settings | choices
        for key in sorted((asked_for | was).keys() - {"data"}, key=lambda key: (key == "model", key)):
            now = asked_for.get(key)  # the model last: another seed makes another one, too
            if (_compared(key, was.get(key)) or None) != (_compared(key, now) or None):
                before, after = _differing(str(was.get(key)), str(now))
                if was.get(key) is None or was[key] is False:
                    began, asked = f"without {key}", f"with {after}"
                else:
                    began, asked = f"with {key} {before}", "without" if now is None or now is False else after
                mend = "use the same, or another --out"
                if key in ("steps", "minutes", "epochs") and run.result:
                    mend += f", where --model {self.out} trains that model further"
                raise ConfigError(f"--out {self.out}: began {began}, not {asked}; {mend}")
        return run

    def write_run(self, run: Run) -> None:
        """Write run.json, flushed to disk."""
        write_json(self.out / "run.json", {"format": FORMAT, **asdict(run)})

    def latest(self, say: Callable[[str], None]) -> Path | None:
        """The newest checkpoint whose manifest verifies, or None if there is no checkpoint; `say` logs newer ones that
        do not. Raises CheckpointError if none verifies, or if one is a link."""
        found = checkpoints(self.out)
        for path in self.out.glob("step-*"):
            if not path.name.removeprefix("step-").isdecimal():
                continue
            if path.is_symlink():
                raise CheckpointError(f"{path}: is a link; put the directory itself there, or remove the link")
            if not path.is_dir():
                raise CheckpointError(f"{path}: is a file, where a checkpoint would be; move it away")
        for _, path in reversed(found):
            if not (fault := manifest_fault(path)):
                return path
            say(f"{path} is damaged ({fault}); trying the one before")
        if found:
            raise CheckpointError(
                f"{self.out}: all its checkpoints are damaged; to start over, move them away or choose another --out"
            )
        return None

    def checkpoint(self, step: int) -> Path:
        """Directory of the checkpoint of a step."""
        return self.out / f"step-{step:06d}"

    def check_space(self, size: int, steps: int, every: int, final: int = 0, spares: bool = False) -> None:
        """Raises CheckpointError if the disk has too little room for `steps` more steps, with a checkpoint of `size`
        bytes every `every` steps (0: only after the last), beside those that exist, and a final model of `final` bytes.
        spares: whether the best checkpoint is kept, too."""
        there, kept = len(checkpoints(self.out)), KEPT + spares
        in_all = there + (-(-steps // every) if every else 1)
        more = max(1, min(kept + 1, in_all) - there)
        needed = max(more * size, (min(kept, in_all) - there) * size + final)
        self._check_free(needed, f"{more} x {megabytes(size)} of checkpoints, then {megabytes(final)} of the model")

    def _check_free(self, needed: int, what: str) -> None:
        """Raises CheckpointError if fewer than `needed` bytes are free, as far as the system tells."""
        with suppress(OSError):
            total, _, free = shutil.disk_usage(self.out)
            if total > 0 and free < needed:
                told = f"{megabytes(free)} are free, but {what} are needed"
                raise CheckpointError(f"{self.out}: {told}; {self._then('make room')}")

    def _unwritten(self, name: str, why: str) -> CheckpointError:
        full = any(os.strerror(number) in why for number in NO_ROOM)  # safetensors' errors have no number
        return CheckpointError(
            f"{self.out}: {name} cannot be written ({why}); {self._then('make room' if full else 'fix that')}"
        )

    def _then(self, mend: str) -> str:
        """Advice for a message: `mend`, and where the run resumes."""
        kept = [path.name for _, path in checkpoints(self.out)]
        return f"{mend}, then the same command resumes from {kept[-1] if kept else 'the start'}"

    def save(
        self, step: int, write: Callable[[Path], None], keep: int = KEPT, spared: int | None = None, size: int = 0
    ) -> Path:
        """Save a checkpoint of about `size` bytes: written aside, flushed to disk, renamed, and only then older ones
        removed, except that of step `spared`. Raises CheckpointError if it cannot be written; older ones stay then."""
        self._check_free(size, f"the {megabytes(size)} of step {step:,}")
        final = self.checkpoint(step)
        with self._written_aside(final.name, write) as partial:
            for number, path in checkpoints(self.out):
                if number >= step:  # damaged, or the run would have resumed from it; it must not displace a good one
                    shutil.rmtree(path)
            partial.rename(final)
            sync_entry(self.out)
        self.prune(keep, spared)
        return final

    def prune(self, keep: int, spared: int | None = None) -> None:
        """Remove all checkpoints except the newest `keep` and that of step `spared`. One that cannot be removed, as
        where another machine reads it, is left for the next time."""
        for step, path in checkpoints(self.out)[:-keep]:
            if step != spared:
                shutil.rmtree(path, ignore_errors=True)

    def finish(self, write: Callable[[Path], None]) -> None:
        """Write the final model to OUT itself; config.json comes last, so that the model appears whole or not at
        all. Raises CheckpointError."""
        with self._written_aside("final", write) as partial:
            for file in sorted(partial.rglob("*"), key=lambda file: file == partial / "config.json"):
                there = self.out / file.relative_to(partial)
                if file.is_dir():
                    there.mkdir(exist_ok=True)
                else:
                    file.replace(there)
                    sync_entry(there.parent)

    @contextmanager
    def _written_aside(self, name: str, write: Callable[[Path], None]) -> Iterator[Path]:
        """Context of a complete directory, flushed to disk, under a temporary name that is not taken for a checkpoint;
        what is not moved meanwhile is removed. Raises CheckpointError, also for what fails while it is moved."""
        partial = self.out / f".tmp-{name}-{os.getpid()}"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir()
            write(partial)
            write_manifest(partial)
            sync(partial)
            yield partial
        except (OSError, SafetensorError, CheckpointError) as error:
            raise self._unwritten(name, str(error).replace(f"{partial}: ", "")) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def megabytes(size: int) -> str:
    return f"{size / 2**20:,.{0 if size >= 10 << 20 else 1}f} MB"


def held_out_of(model: Path) -> float | None:
    """The fraction of documents that was held out where a model, or a checkpoint, of train.py was trained, if known."""
    for file in (model / "run.json", model.parent / "run.json"):
        with suppress(CheckpointError):
            settings = read_json(file).get("settings")
            found = settings.get("held_out") if isinstance(settings, dict) else None
            return found if isinstance(found, float) else None
    return None


def checkpoints(out: Path) -> list[tuple[int, Path]]:
    """(step, path) of every step directory, oldest first."""
    directories = (path for path in out.glob("step-*") if path.is_dir() and not path.is_symlink())
    found = ((path.name.removeprefix("step-"), path) for path in directories)
    return sorted((int(number), path) for number, path in found if number.isdecimal())


def write_manifest(directory: Path) -> None:
    """Write MANIFEST.json: SHA-256 of every file in `directory` except itself and README.md."""
    sums = {name: sha256(directory / name) for name in _listed(directory)}
    write_json(directory / "MANIFEST.json", {"format": FORMAT, "sha256": sums})


def manifest_fault(directory: Path) -> str:
    """Description of what differs from MANIFEST.json, or ""; files that it does not name are ignored. Raises
    CheckpointError for a file that cannot be read, as its content may be right."""
    try:
        manifest = read_json(directory / "MANIFEST.json")
        if not (sums := manifest.get("sha256")):
            return "MANIFEST.json names no file"
        check_format(directory / "MANIFEST.json", manifest)
        bad = next((name for name, digest in sums.items() if sha256(_inside(directory, name)) != digest), None)
        as_written = (directory / "MANIFEST.json").read_bytes() == json_text(manifest).encode()
    except (FileNotFoundError, KeyError, AttributeError, TypeError, ValueError) as error:
        if isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, FileNotFoundError):
            raise
        return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    except OSError as error:
        raise CheckpointError(f"{directory}: cannot be read ({error.strerror or error})") from error
    if bad is None and not as_written:
        return "MANIFEST.json was changed"
    return f"{bad} differs from MANIFEST.json" if bad else ""


def _inside(directory: Path, name: str) -> Path:
    """Path of a file in `directory`. Raises ValueError for a name that leads out of it, or to no regular file."""
    try:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise OSError("a path")
        return regular_file(directory / name, directory)
    except OSError as error:
        raise ValueError(f"MANIFEST.json names {name!r}, and that is no file in it ({error})") from None


def _compared(key: str, value: Any) -> Any:
    """Of a model, "PATH (FINGERPRINT)", the fingerprint."""
    return value.rpartition(" ")[2] if key == "model" and isinstance(value, str) else value


def _differing(before: str, after: str) -> tuple[str, str]:
    """Two settings for a message; if one is long, from the part, of those that commas separate, where they differ."""
    if max(len(before), len(after)) > SHOWN:
        parts = before.split(", "), after.split(", ")
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(*parts, strict=False)))
        before, after = ("..." * (same > 0) + ", ".join(own[same:]) for own in parts)
    return cut(before, SHOWN), cut(after, SHOWN)


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _listed(directory: Path) -> list[str]:
    files = (path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    return sorted(name for name in files if name not in ("MANIFEST.json", "README.md"))


def check_format(file: Path, value: dict[str, Any]) -> None:
    if value.get("format") != FORMAT:
        raise CheckpointError(f"{file}: format {value.get('format')!r}, this version reads {FORMAT}")

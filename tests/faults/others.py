"""Other processes in the directory of a run: one that would write there, too, and some that read."""

import os
import random
from pathlib import Path

import minilm
from minilm.checkpoint.store import Store
from minilm.errors import UserError
from minilm.files import sha256
from tests.faults.victim import Child, Victim, quiet

READERS = 3
REFUSED = "is writing it", "was being removed by another process"


def two_writers(victim: Victim, out: Path, rng: random.Random) -> tuple[str, str]:
    """(when, what is wrong): the same command a second time, at a random time of the first one. One of them does the
    work; the other is refused, or finds it done. Half of the time a dead process has left its lock."""
    if rng.random() < 0.5:
        out.mkdir()
        (out / "lock").write_text("process 1 on nowhere\n")
    first = victim.begin(out)
    first.poll(rng.uniform(0.0, victim.seconds))
    log = out.with_name(f"{out.name}.second.log")
    second = victim.begin(out, lambda: quiet(log))
    when = first.phase
    ends = (first.end(), victim.said(out)), (second.end(), log.read_text(errors="replace").splitlines()[-1:])
    if 0 not in (status for status, _ in ends):
        return when, f"neither did it: {ends}"
    for status, said in ends:
        if status not in (0, 2) or (status == 2 and not any(why in str(said) for why in REFUSED)):
            return when, f"ended with {status}: {said}"
    return when, victim.fault(out, max(first.saved, second.saved))


def readers(victim: Victim, out: Path, rng: random.Random) -> tuple[str, str]:
    """READERS processes open the newest checkpoint, and the finished model, again and again while the run goes on: what
    they get is a whole one, the same for all of them, or an error in one line."""
    child = victim.begin(out)
    read, write = os.pipe()
    pids = [_reader(child, out, write) for _ in range(READERS)]
    os.close(write)
    status = child.end()
    with os.fdopen(read) as pipe:
        said = pipe.read().splitlines()
    ends = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    if status != 0 or any(ends):
        return f"{len(said)} reads", f"the run ended with {status}, its readers with {ends}: {said[-1:]}"
    if not said:
        return "0 reads", "nothing was read"
    of_step: dict[str, set[str]] = {}
    for line in said:
        step, digest = line.split()
        of_step.setdefault(step, set()).add(digest)
    victim.read.setdefault("final", set()).update(victim.expected.values())
    for step, digests in of_step.items():  # equal in all trials, for the runs are
        victim.read.setdefault(step, set()).update(digests)
        if len(victim.read[step]) > 1:
            return f"{len(said)} reads", f"{step} is {len(victim.read[step])} different models"
    return f"{len(said)} reads of {len(of_step)} models", victim.fault(out, child.saved)


def _reader(child: Child, out: Path, pipe: int) -> int:
    """Reads until the run is dead; for each read a line: of which step, and the weights by their sum."""
    if pid := os.fork():
        return pid
    status = 0
    try:
        while _is_alive(child.pid):
            for place in filter(None, (_newest(out), out)):
                if (place / "config.json").exists():
                    _read(place, "final" if place == out else place.name, pipe)
    except BaseException as error:
        os.write(pipe, f"{error!r}\n".encode())
        status = 1
    os._exit(status)


def _newest(out: Path) -> Path | None:
    try:
        return Store(out).latest(lambda line: None)
    except UserError:
        return None  # removed meanwhile, for newer ones


def _read(place: Path, name: str, pipe: int) -> None:
    try:
        minilm.read_model(place)
        os.write(pipe, f"{name} {sha256(place / 'model.safetensors')}\n".encode())
    except (UserError, FileNotFoundError) as error:
        if "\n" in str(error):
            raise ValueError(f"several lines: {error}") from error


def _is_alive(pid: int) -> bool:
    """A run that has ended is still there until its parent asks for its end."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False

"""A tiny pretraining run in a forked process, to which a fault is done; and what must be true of it afterwards.

Nothing of torch runs in the parent, for a process that is forked after a backward pass could not make one.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics
from types import ModuleType

import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401
import torch
import torch._dynamo
import torch.distributed.fsdp

import train
from minilm import cli
from minilm.checkpoint.store import Store, checkpoints
from minilm.errors import CheckpointError
from minilm.files import sha256
from minilm.machine.ranks import Ranks
from minilm.machine.signals import STOPPING
from minilm.recipes import RECIPES, Recipe
from minilm.train import log, loop

SAVES = 3, 6, 9, 12  # after these steps
TINY = Recipe(
    architecture="bert",
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=48,
    length=32,
    batch_size=4,
    vocab_size=256,
    minutes=1.0,
    dropout=0.1,  # whose draws must come again, too
    lr=1e-3,
)
TEXT = 40_000  # characters
HANGS_AFTER = 60  # seconds


@dataclass
class Child:
    """A run under way. Its pipe says `ready 0`, `met 0`, then `begin STEP` before a save and `saved STEP` after it."""

    pid: int
    pipe: int
    began: float
    messages: list[tuple[str, int]]
    status: int | None = None  # as os.waitstatus_to_exitcode has it

    def poll(self, seconds: float) -> bool:
        """Wait so long, or until it has ended, which is returned; what it said meanwhile is in `messages`."""
        until = time.perf_counter() + seconds
        while self.status is None:
            self._listen()
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
                self._listen()
                os.close(self.pipe)
            elif (left := until - time.perf_counter()) <= 0:
                break
            else:
                time.sleep(min(left, 1e-3))
        return self.status is not None

    def listen_for(self, what: str, step: int) -> None:
        """Until it says so, or has ended."""
        while (what, step) not in self.messages and not self.poll(1e-4):
            pass

    def _listen(self) -> None:
        while True:
            try:
                heard = os.read(self.pipe, 1 << 16)
            except BlockingIOError:
                return
            if not heard:
                return
            for line in heard.decode().splitlines():
                what, step = line.split()
                self.messages.append((what, int(step)))

    def kill(self, number: int = signal.SIGKILL) -> None:
        """At once, and to its end."""
        if self.status is None:
            os.kill(self.pid, number)
        self.end()

    def end(self) -> int:
        """Its status. Raises TimeoutError for a run that hangs, which is ended."""
        if not self.poll(HANGS_AFTER):
            os.kill(self.pid, signal.SIGKILL)
            self.poll(HANGS_AFTER)
            raise TimeoutError(f"nothing came of it for {HANGS_AFTER} s")
        return self.status

    @property
    def saved(self) -> int:
        """The last step of which it said that it is saved; 0: none."""
        return max((step for what, step in self.messages if what == "saved"), default=0)

    @property
    def phase(self) -> str:
        """What it was at when it ended."""
        what, step = self.messages[-1] if self.messages else ("ready", 0)
        if what in ("ready", "met"):
            return "before the first save"
        return f"in save {step}" if what == "begin" else f"after save {step}"


class Victim:
    """One run, that can be begun in any directory, and ends in the same weights if nothing is lost. `base` holds it
    whole, and half: killed after its third save, with two checkpoints."""

    script: ModuleType = train

    def __init__(self, base: Path, device: str = "cpu") -> None:
        self.base, self.device = base, device
        self.read: dict[str, set[str]] = {}  # models that were read while runs went on: of each its sums
        base.mkdir(parents=True, exist_ok=True)
        words = " ".join(topics[name] for name in sorted(topics))[:TEXT]
        paragraphs = (words[at : at + 250].replace("\n", " ") for at in range(0, len(words), 250))
        (base / "text.txt").write_text("\n\n".join(paragraphs), encoding="utf-8")
        RECIPES["quick"] = TINY
        torch.set_num_threads(1)
        child = self.begin(base / "whole")
        if child.end() != 0:
            raise RuntimeError(f"the run itself fails: {self.said(base / 'whole')}")
        self.seconds = time.perf_counter() - child.began
        self.expected = weights(base / "whole")
        child = self.begin(base / "half")
        child.listen_for("saved", SAVES[2])
        child.kill()
        if [step for step, _ in checkpoints(base / "half")] != [*SAVES[1:3]]:
            raise RuntimeError(f"of a run killed after step {SAVES[2]} there is {checkpoints(base / 'half')}")

    def begin(self, out: Path, change: Callable[[], object] = lambda: None) -> Child:
        """The run in `out`, or what goes on from there. change: of the child, before it begins."""
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(read)
                quiet(out.with_name(f"{out.name}.log"))
                for number in STOPPING:  # as in a process that nothing has run in yet
                    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
                _hurry()
                _tell(write)
                change()
                cli.run(self.script.main, self.script.Args, self.flags(out, self.base / "text.txt"))
            except SystemExit as end:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(end.code if isinstance(end.code, int) else 1)
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ()), file=sys.stderr, flush=True)
            os._exit(99)
        os.close(write)
        os.set_blocking(read, False)
        return Child(pid, read, time.perf_counter(), [])

    def flags(self, out: Path, data: Path) -> list[str]:
        """Of the run; this module, as a program, takes them."""
        words = ["--data", data, "--out", out, "--cache-dir", self.base / "cache", "--threads", 1, *self.place()]
        words += ["--steps", SAVES[-1], "--save-every", SAVES[0], "--evaluate-every", SAVES[-1]]
        return [*map(str, words)]

    def place(self) -> list[str]:
        """The flags of where it computes."""
        return ["--device", self.device] + (["--deterministic"] if self.device != "cpu" else [])

    def said(self, out: Path) -> str:
        """The last line that a run printed."""
        lines = out.with_name(f"{out.name}.log").read_text(encoding="utf-8", errors="replace").splitlines()
        return lines[-1] if lines else ""

    def fault(self, out: Path, saved: int) -> str:
        """What is lost in the directory of a run that is dead, or nothing: the step of which it said that it is saved,
        the going on, the same weights at its end, the tidiness."""
        if lost := self.lost_step(out, saved):
            return lost
        newest, child = self.newest(out), self.begin(out, without_picture)
        if (status := child.end()) != 0:
            return f"going on ends with {status}: {self.said(out)}"
        if again := [step for what, step in child.messages if what == "saved" and step <= newest]:
            return f"step {newest} was there, and step {again[0]} was computed again"
        if weights(out) != self.expected:
            return "other weights at the end"
        left = [path.name for path in out.rglob(".*")]
        return f"{left[0]} is left" if left else ""

    def newest(self, out: Path) -> int:
        """The step of the newest checkpoint that is whole; 0: there is none."""
        try:
            found = Store(out).latest(lambda line: None)
        except CheckpointError:
            return 0
        return int(found.name.removeprefix("step-")) if found else 0

    def lost_step(self, out: Path, saved: int) -> str:
        """What is there of the step of which it said that it is saved, if that is less; 0: it said nothing."""
        if saved:
            try:
                found = Store(out).latest(lambda line: None)
            except CheckpointError as error:
                return f"step {saved} was saved: {error}"
            if found is None or int(found.name.removeprefix("step-")) < saved:
                return f"step {saved} was saved, and {found.name if found else 'nothing'} is there"
        return ""


def weights(out: Path) -> dict[str, str]:
    """The sums of all models in a directory, by their paths, but for those of checkpoints."""
    files = (file.relative_to(out) for file in out.rglob("model.safetensors") if "step-" not in file.parent.name)
    return {str(file): sha256(out / file) for file in files}


def quiet(log: Path) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for own in (1, 2):
        os.dup2(handle, own)


def without_picture() -> None:
    log.drawn = lambda image, draw: True


def _hurry() -> None:
    """Neither the machine's peak nor many held-out targets. What is done every 64 steps is, too."""
    loop.TIDY_EVERY = 5
    train.fixed_batches = partial(train.fixed_batches, min_targets=200)
    import minilm.train.measure as measure

    measure.matmul_peak = lambda device, dtype: 1e12


def _tell(pipe: int) -> None:
    """Each save says so before and after; and the run that it is ready for signals, and has met its other processes."""
    save, parse, join = Store.save, cli.parse, Ranks.join

    def ready(*args: object) -> object:
        os.write(pipe, b"ready 0\n")
        return parse(*args)

    def told(self: Store, step: int, *args: object, **kwargs: object) -> Path:
        os.write(pipe, f"begin {step}\n".encode())
        path = save(self, step, *args, **kwargs)
        os.write(pipe, f"saved {step}\n".encode())
        return path

    def met() -> Ranks:
        ranks = join()
        os.write(pipe, b"met 0\n")
        return ranks

    Store.save, cli.parse, Ranks.join = told, ready, met


if __name__ == "__main__":
    RECIPES["quick"] = TINY
    _hurry()
    cli.run(train.main, train.Args)

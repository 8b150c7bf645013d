"""Output of a run: a progress bar or lines on the console, metrics.jsonl, and the loss plot."""

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import RLock

from tqdm import tqdm

from minilm.errors import CheckpointError, first_line, printable
from minilm.files import write_whole
from minilm.machine.ranks import is_first
from minilm.machine.runtime import compile_seconds
from minilm.train.cost import EnergyMeter
from minilm.train.loop import Evaluated

PLATEAU, PLATEAU_TOKENS = 0.1, 1_000_000  # warn if so little below the unigram loss, in nats, after so many tokens
tqdm.set_lock(RLock())  # tqdm makes one with the first line; Ctrl-C in between would be an AttributeError
QUIET_LINES = 20  # a run whose output is not a terminal prints about this many


def say(line: str) -> None:
    """Print one line on stderr, above the progress bar if there is one; stdout is for results. First process only."""
    if is_first() and sys.stderr is not None:  # closed
        with contextlib.suppress(OSError):  # nobody reads stderr; the run goes on all the same
            tqdm.write(printable(line), file=sys.stderr)
            sys.stderr.flush()


@dataclass(frozen=True)
class Spent:
    """Cost of training so far, without evaluation, saving and compiling (whose energy counts)."""

    tokens: int = 0
    seconds: float = 0.0
    joules: float | None = 0.0  # None: not measured, or only in part

    def plus(self, tokens: int, seconds: float, joules: float | None) -> "Spent":
        total = None if self.joules is None or joules is None else self.joules + joules
        return Spent(self.tokens + tokens, self.seconds + seconds, total)


class Log:
    """Record of a run, a `loop.Watch`. Counts training time, without evaluation, saving and compiling."""

    def __init__(
        self,
        file: Path,
        steps: int,
        start: int,
        peak_lr: float,
        spent: Spent = Spent(),
        unigram: float | None = None,
        meter: EnergyMeter | None = None,
        evaluated: int | None = None,
        work: Callable[[int], float] = float,
        may_miss_saves: bool = False,
    ) -> None:
        """spent: cost of the run up to `start`. unigram: the loss of token frequencies alone. evaluated: step of the
        last evaluation; `start`, if not given. Lines of `file` after these steps are dropped. work: step -> work done
        before it, in any unit, for the time left. may_miss_saves: whether to go on if a line cannot be written."""
        evaluated = start if evaluated is None else evaluated
        self.file, self.steps, self.peak_lr, self.unigram, self.meter = file, steps, peak_lr, unigram, meter
        self.spent, self.work, self.may_miss_saves = spent, work, may_miss_saves
        self.torn = False  # whether the last line may be incomplete
        kept = [
            line for line in read_metrics(file) if line["step"] <= (evaluated if "held_out_loss" in line else start)
        ]
        kept = kept if start else []
        first = next((line for line in kept if line["step"] == 0), {})
        self.loss_before: float | None = first.get("held_out_loss")  # None: training began from scratch
        if is_first():
            write_whole(file, "".join(json.dumps(line) + "\n" for line in kept))
        self.is_terminal = is_first() and sys.stderr is not None and sys.stderr.isatty()
        self.bar = tqdm(total=steps, initial=start, unit="step", disable=not self.is_terminal, dynamic_ncols=True)
        self.score: Evaluated | None = None  # the latest
        self.best: int | None = None  # the step whose model is kept, if the best one is
        self.best_is_lost = False  # whether that is the last one, for the checkpoint of the best one is damaged
        self.signal: int | None = None  # one that came when training was done
        self.start, self.said_at, self.done = start, start, start
        self.began = self.mark = _clock()

    def tick(self, step: int) -> None:
        """Advance the bar to `step`, which the host has issued."""
        self.bar.update(step - self.bar.n)

    def step(self, step: int, loss: float, norm: float, lr_fraction: float, tokens: int) -> None:
        """Log the steps since the last call, up to `step`: their `tokens`, and their mean `loss` in nats per target."""
        now = _clock()
        took, self.mark, self.done = now - self.mark, now, step
        joules = self.meter.spent() if self.meter else None
        self.spent = self.spent.plus(tokens, took, joules)
        line = {
            "step": step,
            "loss": round(loss, 4) if math.isfinite(loss) else None,  # fp16 may overflow, and the gradient, too
            "gradient_norm": round(norm, 4) if math.isfinite(norm) else None,
            "lr": lr_fraction * self.peak_lr,
            "tokens": self.spent.tokens,
            "tokens_per_s": round(tokens / took),
            "seconds": round(self.spent.seconds, 2),
        }
        self._write(line)
        self.bar.set_postfix_str(f"loss {loss:.3f}, {tokens / took:,.0f} tokens/s")
        if not self.is_terminal and (step - self.said_at >= self.steps / QUIET_LINES or step == self.steps):
            self.said_at = step
            begun, done, whole = map(self.work, (self.start, step, self.steps))
            left = (now - self.began) * (whole - done) / (done - begun)  # evaluation and saving included
            say(f"step {step}/{self.steps}  loss {loss:.3f}  {tokens / took:,.0f} tokens/s  {left:.0f} s left")

    def evaluation(self, step: int, score: Evaluated) -> None:
        """Log an evaluation on the held-out split after `step` steps."""
        self.score = score
        loss = round(score.loss, 4) if math.isfinite(score.loss) else None
        if step == 0:
            self.loss_before = loss  # rounded, as a resumed run reads it
        metrics = {f"held_out_{name}": round(value, 4) for name, value in score.metrics.items() if math.isfinite(value)}
        self._write({"step": step, "held_out_loss": loss, **metrics})
        less = 0.0 if self.unigram is None else self.unigram - score.loss
        known = self.unigram is not None and loss is not None
        gain = f"  {abs(less):.2f} {'above' if less < 0 else 'below'} unigram" if known else ""
        say(f"step {step}  held-out loss {score.loss:.3f}{gain}  {score.says()}")
        if self.unigram is not None and self.spent.tokens >= PLATEAU_TOKENS and not less >= PLATEAU:  # or it is a NaN
            say(
                f"after {self.spent.tokens:,} tokens the loss is not clearly below the unigram loss: "
                f"if it stays there, try another --lr"
            )

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Context whose time and energy do not count as training."""
        before = _clock()
        yield
        self.mark += _clock() - before
        if self.meter:
            self.meter.spent()

    def close(self) -> None:
        self.bar.close()

    def _write(self, line: dict[str, float]) -> None:
        if not is_first():
            return
        try:
            with self.file.open("a", encoding="utf-8") as out:
                out.write("\n" * self.torn + json.dumps(line, allow_nan=False) + "\n")
            self.torn = False
        except OSError as error:
            why = f"{self.file}: cannot be written ({error.strerror or error})"
            if not self.may_miss_saves:
                raise CheckpointError(f"{why}; fix that, then the same command resumes") from error
            if not self.torn:
                say(f"{why}; lines are dropped, and the run continues")
            self.torn = True


def _clock() -> float:
    """Seconds of a clock that stands while torch's compiler works."""
    return time.perf_counter() - compile_seconds()


def read_metrics(file: Path) -> list[dict[str, float]]:
    """The lines of a metrics.jsonl, without incomplete ones: a kill may leave the last one so."""
    lines = []
    for text in file.read_text(encoding="utf-8", errors="replace").split("\n") if file.exists() else []:
        with contextlib.suppress(ValueError, RecursionError):
            if _is_metrics(line := json.loads(text)):
                lines.append(line)
    return lines


def _is_metrics(line: object) -> bool:
    if not isinstance(line, dict) or not isinstance(line.get("step"), int):
        return False
    return all(isinstance(value, int | float | None) for value in line.values())


def plot_loss(
    metrics: Path, image: Path, unigram: float | None = None, training: str = "training", kept: int | None = None
) -> bool:
    """Plot training and held-out loss over steps, with a line at the unigram loss. training: label of the training
    curve. kept: the step whose model is kept, if that is not the last. False, and a line that says why, if there can be
    no picture."""
    return drawn(image, lambda: _plot_loss(metrics, image, unigram, training, kept))


def drawn(image: Path, draw: Callable[[], None]) -> bool:
    """Draw a picture; False, and a line that says why, if there can be none: that is no reason to lose a run."""
    try:
        draw()
    except ModuleNotFoundError:
        say(f"no {image.name}: matplotlib is missing; pip install 'minilm[eval]'")
        return False
    except Exception as error:  # an installation at odds with numpy, a full disk
        say(f"no {image.name}: {type(error).__name__}: {first_line(error)}")
        return False
    return True


def _plot_loss(metrics: Path, image: Path, unigram: float | None, training: str, kept: int | None) -> None:
    from matplotlib.figure import Figure

    lines = read_metrics(metrics)
    train = [(line["step"], line["loss"]) for line in lines if line.get("loss") is not None]
    held = [(line["step"], line["held_out_loss"]) for line in lines if line.get("held_out_loss") is not None]
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*train, strict=True), color="#9ab", linewidth=1, label=training)
    if held:
        axes.plot(*zip(*held, strict=True), color="#c33", marker="o", markersize=4, label="held out")
    if unigram is not None:
        axes.axhline(unigram, color="#555", linestyle="--", linewidth=1, label=f"unigram {unigram:.2f}")
    if kept is not None:
        axes.axvline(kept, color="#555", linestyle=":", linewidth=1, label=f"kept: step {kept:,}")
    axes.set(xlabel="step", ylabel="loss (nats per target)" if unigram is not None else "loss")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(image)

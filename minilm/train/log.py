"""What a run says: a bar or lines on the console, metrics.jsonl, and the loss plot."""

import contextlib
import importlib.util
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from minilm.checkpoint.store import write_whole
from minilm.train.loop import Score

QUIET_LINES = 20  # a run whose output is not a terminal prints about this many


def say(line: str) -> None:
    """One line on stderr, above the bar if there is one; stdout is for results."""
    if sys.stderr is not None:  # closed
        with contextlib.suppress(OSError):  # nobody reads it; a run goes on all the same
            tqdm.write(line, file=sys.stderr)
            sys.stderr.flush()


class Log:
    """Told by the loop what happens (a `loop.Watch`). Counts training time, without evaluation and saving."""

    def __init__(
        self, file: Path, steps: int, start: int, peak_lr: float, tokens: int = 0, seconds: float = 0.0
    ) -> None:
        """tokens, seconds: of the run up to `start`. Lines of `file` from after `start` are dropped."""
        self.file, self.steps, self.peak_lr = file, steps, peak_lr
        self.tokens, self.seconds = tokens, seconds
        kept = [line for line in read_metrics(file) if line["step"] <= start]
        write_whole(file, "".join(json.dumps(line) + "\n" for line in kept))
        self.is_terminal = sys.stderr is not None and sys.stderr.isatty()
        self.bar = tqdm(total=steps, initial=start, unit="step", disable=not self.is_terminal, dynamic_ncols=True)
        self.score: Score | None = None  # the latest
        self.start, self.said_at = start, start
        self.began = self.mark = time.perf_counter()

    def tick(self, step: int) -> None:
        """A step is done, as far as the host knows."""
        self.bar.update(step - self.bar.n)

    def step(self, step: int, loss: float, norm: float, rate: float, tokens: int) -> None:
        """`tokens` more tokens, up to `step`, at a mean `loss` in nats per target."""
        now = time.perf_counter()
        spent, self.mark = now - self.mark, now
        self.seconds += spent
        self.tokens += tokens
        line = {
            "step": step,
            "loss": round(loss, 4),
            "gradient_norm": round(norm, 4) if math.isfinite(norm) else None,  # fp16 may overflow
            "lr": rate * self.peak_lr,
            "tokens": self.tokens,
            "tokens_per_s": round(tokens / spent),
            "seconds": round(self.seconds, 2),
        }
        self._write(line)
        self.bar.set_postfix_str(f"loss {loss:.3f}, {tokens / spent:,.0f} tokens/s")
        if not self.is_terminal and (step - self.said_at >= self.steps / QUIET_LINES or step == self.steps):
            self.said_at = step
            left = (now - self.began) / (step - self.start) * (self.steps - step)  # evaluation and saving included
            say(f"step {step}/{self.steps}  loss {loss:.3f}  {tokens / spent:,.0f} tokens/s  {left:.0f} s left")

    def evaluation(self, step: int, score: Score) -> None:
        """A pass over the held-out split after `step` steps."""
        self.score = score
        self._write(
            {
                "step": step,
                "held_out_loss": round(score.loss, 4) if math.isfinite(score.loss) else None,
                "held_out_accuracy": round(score.accuracy, 4),
            }
        )
        say(f"step {step}  held-out loss {score.loss:.3f}  accuracy {score.accuracy:.1%}")

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time in here is not training time."""
        before = time.perf_counter()
        yield
        self.mark += time.perf_counter() - before

    def close(self) -> None:
        self.bar.close()

    def _write(self, line: dict[str, float]) -> None:
        with self.file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(line, allow_nan=False) + "\n")


def read_metrics(file: Path) -> list[dict[str, float]]:
    """The lines of a metrics.jsonl, without any that is not whole: a kill may leave the last one so."""
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


def plot_loss(metrics: Path, image: Path, unigram: float) -> bool:
    """Training and held-out loss over steps, above the line that a model must pass to know more than word
    frequencies. False where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = read_metrics(metrics)
    train = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    held = [(line["step"], line["held_out_loss"]) for line in lines if line.get("held_out_loss") is not None]
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(*zip(*train, strict=True), color="#9ab", linewidth=1, label="training")
    if held:
        axes.plot(*zip(*held, strict=True), color="#c33", marker="o", markersize=4, label="held out")
    axes.axhline(unigram, color="#555", linestyle="--", linewidth=1, label=f"unigram {unigram:.2f}")
    axes.set(xlabel="step", ylabel="loss (nats per target)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(image)
    return True

"""metrics.jsonl, the clock and the meter without pauses, what is said, and the plot."""

import errno
import io
import json
import struct
import sys
from pathlib import Path

import pytest
from tqdm import tqdm

from minilm.errors import CheckpointError
from minilm.train import log as log_module
from minilm.train.log import Log, Spent, plot_loss, read_metrics, say
from minilm.train.loop import Score


def test_the_lock_of_the_console_is_there_from_the_beginning(load, monkeypatch):
    """tqdm makes it with its first line, and a Ctrl-C meanwhile ends in an AttributeError for want of it."""
    monkeypatch.delattr(tqdm, "_lock", raising=False)
    load("minilm/train/log.py")
    assert "_lock" in vars(tqdm)


@pytest.fixture
def clock(monkeypatch):
    """clock.now: what the module's perf_counter reads."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(log_module.time, "perf_counter", lambda: Clock.now)
    return Clock


def test_lines_say_what_happened(tmp_path, clock):
    file = tmp_path / "metrics.jsonl"
    log = Log(file, steps=40, start=0, peak_lr=0.02)
    log.tick(10)
    clock.now += 4
    log.step(10, 3.14159265, 1.23456789, 0.5, tokens=1000)
    log.evaluation(10, Score(2.71828182, 0.33333333, 99))
    clock.now += 1
    log.step(20, 3.0, 1.0, 1.0, tokens=500)
    log.close()
    assert [json.loads(line) for line in file.read_text().splitlines()] == [
        {
            "step": 10, "loss": 3.1416, "gradient_norm": 1.2346, "lr": 0.01,
            "tokens": 1000, "tokens_per_s": 250, "seconds": 4.0,
        },
        {"step": 10, "held_out_loss": 2.7183, "held_out_accuracy": 0.3333},
        {
            "step": 20, "loss": 3.0, "gradient_norm": 1.0, "lr": 0.02,
            "tokens": 1500, "tokens_per_s": 500, "seconds": 5.0,
        },
    ]  # fmt: skip
    assert file.read_text().endswith("\n")
    assert read_metrics(file)[1]["held_out_loss"] == 2.7183


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_every_line_is_json_for_other_readers_too(tmp_path, clock, value):
    """An fp16 step that overflows at a look has no finite norm; "Infinity" and "NaN" are no JSON (RFC 8259, 6)."""

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    log = Log(tmp_path / "m.jsonl", steps=40, start=0, peak_lr=1.0)
    clock.now += 1
    log.step(10, 2.0, value, 1.0, tokens=100)
    log.close()
    line = json.loads((tmp_path / "m.jsonl").read_text(), parse_constant=refuse)
    assert (line["step"], line["loss"]) == (10, 2.0)


def test_paused_time_is_not_training_time(tmp_path, clock):
    log = Log(tmp_path / "m.jsonl", steps=40, start=0, peak_lr=1.0)
    clock.now += 2
    with log.paused():
        clock.now += 1000
    clock.now += 1
    with log.paused():
        clock.now += 500
    log.step(10, 1.0, 1.0, 1.0, tokens=300)
    with log.paused():
        clock.now += 77
    clock.now += 5
    log.step(20, 1.0, 1.0, 1.0, tokens=300)
    log.close()
    lines = read_metrics(tmp_path / "m.jsonl")
    assert [(line["seconds"], line["tokens_per_s"]) for line in lines] == [(3.0, 100), (8.0, 60)]
    assert log.spent.seconds == pytest.approx(8.0, abs=1e-9)


@pytest.mark.parametrize("tail", ["", '{"step": 31, "lo', "\x00\x00\x00"], ids=["whole", "half a line", "zeros"])
def test_resume_drops_later_lines_and_half_a_line(tmp_path, clock, tail):
    file = tmp_path / "m.jsonl"
    log = Log(file, steps=40, start=0, peak_lr=1.0)
    for step in (10, 20, 30):
        clock.now += 1
        log.step(step, float(step), 1.0, 1.0, tokens=100)
        log.evaluation(step, Score(1.0, 0.5, 9))
    log.close()
    with file.open("a") as out:
        out.write(tail)
    assert [line["step"] for line in read_metrics(file)] == [10, 10, 20, 20, 30, 30]
    whole = file.read_text().splitlines()
    file.write_text("\n".join([*whole[:2], whole[2][:9], *whole[3:]]))  # one bad line costs that line
    assert [line["step"] for line in read_metrics(file)] == [10, 10, 20, 30, 30]
    file.write_text("\n".join(whole))

    log = Log(file, steps=40, start=20, peak_lr=1.0, spent=Spent(200, 2.0))
    assert [line["step"] for line in read_metrics(file)] == [10, 10, 20, 20]
    clock.now += 1
    log.step(30, 7.0, 1.0, 1.0, tokens=100)
    log.close()
    lines = read_metrics(file)
    assert len(file.read_text().splitlines()) == 5
    assert (lines[-1]["step"], lines[-1]["loss"]) == (30, 7.0)
    assert (lines[-1]["tokens"], lines[-1]["seconds"]) == (300, 3.0)


def test_no_file_is_no_lines(tmp_path):
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_a_line_that_cannot_be_written_ends_a_run_or_is_left_out(tmp_path, clock, capsys, monkeypatch):
    """It is said once, and what is there of it costs no other line."""
    log, file = Log(tmp_path / "m.jsonl", steps=40, start=0, peak_lr=1.0, may_miss_saves=True), tmp_path / "m.jsonl"
    whole = Path.open

    class Full(io.StringIO):
        def write(self, text):
            with whole(file, "a") as out:
                out.write(text[:9])
            raise OSError(errno.ENOSPC, "No space left on device")

    for step in (10, 20, 30, 40):
        clock.now += 1
        monkeypatch.setattr(Path, "open", whole if step in (10, 40) else lambda *of, **more: Full())
        log.step(step, 2.0, 1.0, 1.0, tokens=100)
    assert [line["step"] for line in read_metrics(file)] == [10, 40]
    assert capsys.readouterr().err.count("No space left on device); lines are dropped, and the run continues") == 1
    log.may_miss_saves = False
    clock.now += 1
    monkeypatch.setattr(Path, "open", lambda *of, **more: Full())
    with pytest.raises(CheckpointError, match="No space left on device"):
        log.step(40, 2.0, 1.0, 1.0, tokens=100)


def test_the_time_left_is_of_steps_that_grow(tmp_path, clock, capsys):
    """By a tenth of the steps a hundredth is done."""
    log = Log(tmp_path / "m.jsonl", steps=100, start=0, peak_lr=1.0, work=lambda step: step**2)
    clock.now += 5
    log.step(10, 2.0, 1.0, 1.0, tokens=100)
    assert "495 s left" in capsys.readouterr().err


def test_without_a_terminal_about_twenty_lines_are_said(tmp_path, clock, capsys):
    log = Log(tmp_path / "m.jsonl", steps=400, start=0, peak_lr=1.0)
    assert not log.is_terminal
    for step in range(1, 401):
        clock.now += 1
        log.tick(step)
        log.step(step, 1.0, 1.0, 1.0, tokens=100)
    log.close()
    out, err = capsys.readouterr()
    assert out == ""  # stdout is for results
    lines = err.splitlines()
    assert len(lines) == 20
    assert lines[0] == "step 20/400  loss 1.000  100 tokens/s  380 s left"
    assert lines[-1] == "step 400/400  loss 1.000  100 tokens/s  0 s left"


def test_time_left_counts_the_steps_of_the_whole_run(tmp_path, clock, capsys):
    """Resumed at 50 of 100 after 100 s: 2 s a step before, 2 s a step since, so 50 s for the last 25."""
    log = Log(tmp_path / "m.jsonl", steps=100, start=50, peak_lr=1.0, spent=Spent(1, 100.0))
    clock.now += 50
    log.step(75, 1.0, 1.0, 1.0, tokens=100)
    log.close()
    assert "50 s left" in capsys.readouterr().err


def metrics(tmp_path, held_out=True):
    file = tmp_path / "m.jsonl"
    lines = [{"step": step, "loss": 5.0 - step / 10} for step in (10, 20, 30)]
    if held_out:
        lines.insert(2, {"step": 20, "held_out_loss": 3.5, "held_out_accuracy": 0.2})
    file.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 40, "los')
    return file


@pytest.mark.parametrize("held_out", [True, False])
def test_plot_is_a_png(tmp_path, held_out):
    pytest.importorskip("matplotlib")
    assert plot_loss(metrics(tmp_path, held_out), tmp_path / "loss.png", unigram=4.0) is True
    head = (tmp_path / "loss.png").read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", head[16:24]) == (840, 480)


def test_plot_draws_both_losses_and_the_unigram_line(tmp_path, monkeypatch):
    figure_module = pytest.importorskip("matplotlib.figure")
    made = []

    class Figure(figure_module.Figure):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(figure_module, "Figure", Figure)
    plot_loss(metrics(tmp_path), tmp_path / "loss.png", unigram=4.0)
    lines = {line.get_label().split()[0]: line for line in made[0].axes[0].lines}
    assert list(lines["training"].get_xdata()) == [10, 20, 30]
    assert list(lines["training"].get_ydata()) == [4.0, 3.0, 2.0]
    assert (list(lines["held"].get_xdata()), list(lines["held"].get_ydata())) == ([20], [3.5])
    assert set(lines["unigram"].get_ydata()) == {4.0}


def test_without_matplotlib_there_is_no_plot(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib.figure", None)
        assert plot_loss(metrics(tmp_path), tmp_path / "loss.png", unigram=4.0) is False
    assert not (tmp_path / "loss.png").exists()
    assert "no loss.png: matplotlib is missing" in capsys.readouterr().err


def test_a_plot_that_fails_is_a_line(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert plot_loss(metrics(tmp_path), tmp_path / "nowhere" / "loss.png", unigram=4.0) is False
    assert "no loss.png: FileNotFoundError" in capsys.readouterr().err


def test_a_held_out_loss_that_is_none_is_null(tmp_path, clock, capsys):
    log = Log(tmp_path / "m.jsonl", steps=10, start=0, peak_lr=1.0)
    clock.now += 1
    log.step(1, 2.0, 1.0, 1.0, tokens=10)
    log.evaluation(1, Score(float("nan"), 0.0, 9))
    log.close()
    assert read_metrics(tmp_path / "m.jsonl")[-1]["held_out_loss"] is None
    assert plot_loss(tmp_path / "m.jsonl", tmp_path / "p.png", 6.0)
    assert "nan" in capsys.readouterr().err


def test_nobody_has_to_listen(monkeypatch):
    class Broken:
        def write(self, text):
            raise BrokenPipeError

        flush = write

    for stderr in (Broken(), None):
        monkeypatch.setattr("sys.stderr", stderr)
        say("a line")


# -- what it took ---------------------------------------------------------------------------------


def test_what_is_spent_adds_up():
    spent = Spent().plus(100, 2.0, 30.0).plus(50, 0.5, 4.0)
    assert spent == Spent(150, 2.5, 34.0)
    assert spent.plus(1, 1.0, None) == Spent(151, 3.5, None)
    assert spent.plus(1, 1.0, None).plus(1, 1.0, 5.0) == Spent(152, 4.5, None)  # a part is not the whole


class Meter:
    """Has counted so much since the last call."""

    def __init__(self, *counted):
        self.counted = list(counted)

    def spent(self):
        return self.counted.pop(0)


def test_energy_goes_on_through_a_resume_without_pauses(tmp_path, clock):
    log = Log(tmp_path / "m.jsonl", 40, 0, 1.0, meter=Meter(10.0, 999.0, 5.0))
    clock.now += 1
    log.step(10, 1.0, 1.0, 1.0, tokens=100)
    with log.paused():
        clock.now += 50
    clock.now += 1
    log.step(20, 1.0, 1.0, 1.0, tokens=100)
    log.close()
    assert log.spent == Spent(200, 2.0, 15.0)
    log = Log(tmp_path / "m.jsonl", 40, 20, 1.0, log.spent, meter=Meter(7.0, None, 4.0))
    for step in (30, 35, 40):
        clock.now += 1
        log.step(step, 1.0, 1.0, 1.0, tokens=100)
        assert log.spent.joules == (22.0 if step == 30 else None)  # once lost, it stays so
    log.close()
    assert (log.spent.tokens, log.spent.seconds) == (500, 5.0)


def test_without_a_meter_no_energy_is_made_up(tmp_path, clock):
    log = Log(tmp_path / "m.jsonl", 40, 0, 1.0)
    clock.now += 1
    log.step(10, 1.0, 1.0, 1.0, tokens=100)
    log.close()
    assert log.spent == Spent(100, 1.0, None)
    log = Log(tmp_path / "m.jsonl", 40, 10, 1.0, log.spent, meter=Meter(7.0))  # and now there is one
    clock.now += 1
    log.step(20, 1.0, 1.0, 1.0, tokens=100)
    log.close()
    assert log.spent.joules is None


# -- what is said of the held-out loss ------------------------------------------------------------


def test_held_out_line(tmp_path, clock, capsys):
    for unigram, score, line in (
        (None, Score(5.0, 0.25, 9), "step 10  held-out loss 5.000  accuracy 25.0%"),
        (6.5, Score(5.0, 0.25, 9), "step 10  held-out loss 5.000  1.50 below unigram  accuracy 25.0%"),
        (4.5, Score(5.0, 0.25, 9), "step 10  held-out loss 5.000  0.50 above unigram  accuracy 25.0%"),
        (
            6.5,
            Score(5.0, 0.25, 9, pair_accuracy=0.5625),
            "step 10  held-out loss 5.000  1.50 below unigram  accuracy 25.0%  pairs 56.2%",
        ),
    ):
        log = Log(tmp_path / "m.jsonl", 40, 0, 1.0, unigram=unigram)
        log.evaluation(10, score)
        log.close()
        assert capsys.readouterr().err == line + "\n"
        assert log.score == score


@pytest.mark.parametrize(
    ("tokens", "loss", "unigram", "said"),
    [
        (1_000_000, 5.95, 6.0, True),
        (1_000_000, 7.0, 6.0, True),
        (999_999, 5.95, 6.0, False),  # too early to say
        (1_000_000, 5.85, 6.0, False),  # it has learned more
        (1_000_000, 5.95, None, False),
    ],
)
def test_a_plateau_is_said_once_it_is_one(tmp_path, clock, capsys, tokens, loss, unigram, said):
    log = Log(tmp_path / "m.jsonl", 40, 0, 1.0, unigram=unigram)
    clock.now += 1
    log.step(10, 6.0, 1.0, 1.0, tokens=tokens)
    capsys.readouterr()
    log.evaluation(10, Score(loss, 0.1, 9))
    log.close()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 + said
    if said:
        assert f"after {tokens:,} tokens" in lines[1]
        assert "another --lr" in lines[1]


def test_plateau_counts_the_tokens_before_a_resume(tmp_path, clock, capsys):
    log = Log(tmp_path / "m.jsonl", 40, 20, 1.0, Spent(2_000_000, 9.0), unigram=6.0)
    log.evaluation(30, Score(5.95, 0.1, 9))
    log.close()
    assert "not clearly below the unigram loss" in capsys.readouterr().err


def test_the_loss_before_training_is_kept_over_a_resume(tmp_path, clock):
    file = tmp_path / "m.jsonl"
    log = Log(file, 40, 0, 1.0)
    assert log.loss_before is None
    log.evaluation(0, Score(6.51234567, 0.1, 9))
    assert log.loss_before == 6.5123
    for step in (10, 20):
        clock.now += 1
        log.step(step, 1.0, 1.0, 1.0, tokens=100)
        log.evaluation(step, Score(5.0, 0.1, 9))
    assert log.loss_before == 6.5123
    log.close()
    again = Log(file, 40, 10, 1.0)
    again.evaluation(20, Score(4.0, 0.1, 9))
    again.close()
    assert again.loss_before == 6.5123
    anew = Log(file, 40, 0, 1.0)  # nothing was saved: the model will be examined again
    anew.close()
    assert anew.loss_before is None


def test_a_run_from_scratch_has_no_loss_before(tmp_path, clock):
    file = tmp_path / "m.jsonl"
    log = Log(file, 40, 0, 1.0)
    clock.now += 1
    log.step(10, 1.0, 1.0, 1.0, tokens=100)
    log.evaluation(10, Score(5.0, 0.1, 9))
    log.close()
    again = Log(file, 40, 10, 1.0)
    again.close()
    assert log.loss_before is again.loss_before is None


# -- one of several processes ---------------------------------------------------------------------


def test_only_the_first_process_speaks_and_writes(tmp_path, clock, capsys, monkeypatch):
    file = tmp_path / "m.jsonl"
    file.write_text('{"step": 10, "loss": 3.0}\n{"step": 20, "loss": 2.0}\n')
    before = file.read_bytes()
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    log = Log(file, 40, 10, 1.0, unigram=1.0)
    log.tick(40)
    clock.now += 1
    log.step(40, 1.0, 1.0, 1.0, tokens=2_000_000)
    log.evaluation(40, Score(5.0, 0.1, 9))
    say("a line")
    log.close()
    assert capsys.readouterr() == ("", "")
    assert file.read_bytes() == before
    assert (log.spent.tokens, log.score.loss) == (2_000_000, 5.0)  # it knows all the same
    monkeypatch.setenv("RANK", "0")
    say("a line")
    assert capsys.readouterr().err == "a line\n"


def test_a_log_that_cannot_be_written_says_which(tmp_path, clock):
    log = Log(tmp_path / "m.jsonl", 10, 0, 1e-3)
    (tmp_path / "m.jsonl").unlink()
    (tmp_path / "m.jsonl").mkdir()
    clock.now += 1
    with pytest.raises(CheckpointError, match=r"m\.jsonl: cannot be written \(Is a directory\); fix that"):
        log.step(5, 5.0, 0.5, 0.5, 100)


def test_what_is_said_is_one_line_whatever_a_name_in_it_holds(capsys):
    say("60 rows -> a\nb\x1b[2J.csv")
    assert capsys.readouterr().err == "60 rows -> a b [2J.csv\n"

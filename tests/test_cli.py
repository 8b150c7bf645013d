"""Flags from a dataclass; whatever a user can mend is one line on stderr and status 2."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import pytest
import torch

from minilm import cli
from minilm.errors import ConfigError, DataError
from minilm.machine.runtime import Runtime
from minilm.train.loop import OutOfMemory

ROOT = Path(__file__).parent.parent
LONG = "a_directory/" * 20 + "text.txt"


@dataclass(frozen=True)
class Args:
    """Some flags."""

    data: Path = Path("text.txt")
    """What to
    read."""
    steps: int = 7
    lr: float = 1e-3
    mask_rate: float | None = None
    """Of the tokens."""
    recipe: Literal["quick", "slow"] = "quick"
    resume: bool = False
    json: str | None = None


@pytest.fixture(params=[40, 200])
def columns(request, monkeypatch):
    """A terminal of so many columns: tyro frames and wraps what it says to that width."""
    monkeypatch.setenv("COLUMNS", str(request.param))


@pytest.fixture
def go(capsys):
    """go(*argv, main=...) -> (status, stdout, stderr) of `cli.run`."""

    def run(*argv, main=lambda args: None, args_type=Args):
        with pytest.raises(SystemExit) as stop:
            cli.run(main, args_type, list(argv))
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    return run


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], {}),
        (["--steps", "12", "--lr", "2e-4"], {"steps": 12, "lr": 2e-4}),
        (["--steps=12", "--recipe=slow"], {"steps": 12, "recipe": "slow"}),
        (["--mask-rate", "0.3"], {"mask_rate": 0.3}),
        (["--mask_rate", "0.3"], {"mask_rate": 0.3}),
        (["--lr", "-0.5"], {"lr": -0.5}),  # a number, no flag
        (["--data", LONG], {"data": Path(LONG)}),
        (["--resume"], {"resume": True}),
        (["--no-resume"], {}),
        (["--json"], {"json": "-"}),
        (["--json", "--steps", "3"], {"json": "-", "steps": 3}),
        (["--steps", "3", "--json"], {"json": "-", "steps": 3}),
        (["--json", "-"], {"json": "-"}),
        (["--json", "out.json", "--resume"], {"json": "out.json", "resume": True}),
        (["--json=out.json"], {"json": "out.json"}),
    ],
    ids=str,
)
def test_flags_become_fields(argv, expected):
    assert cli.parse(Args, argv) == Args(**expected)


@pytest.mark.usefixtures("columns")
@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--stepz", "3"], ["--stepz: no such flag; did you mean --steps?"]),
        (["--step=3"], ["--step: no such flag; did you mean --steps?"]),  # no abbreviations either
        (["--mask-rat", "1"], ["--mask-rat: no such flag; did you mean --mask-rate?"]),
        (["--qqqqqq"], ["--qqqqqq: no such flag; see --help"]),
        (["--no-resum"], ["--no-resum: no such flag"]),
        (["--steps", "many"], ["--steps", "many"]),
        (["--steps", "1.5"], ["--steps", "1.5"]),
        (["--lr", "fast"], ["--lr", "fast"]),
        (["--recipe", "huge"], ["--recipe", "huge", "quick", "slow"]),
        (["--lr", "nan"], ["--lr nan: not a finite number"]),
        (["--lr", "inf"], ["--lr inf: not a finite number"]),
        (["--lr=-inf"], ["--lr -inf: not a finite number"]),
        (["--lr", "1e999"], ["--lr inf: not a finite number"]),
        (["--mask-rate", "nan"], ["--mask-rate nan: not a finite number"]),
        (["--steps"], ["--steps"]),
        (["--steps", "--resume"], ["--steps"]),
        (["--no-steps"], ["steps"]),
        (["stray"], ["stray: which flag is it for? See --help"]),
        (["--learning-rate", "1"], ["--learning-rate: no such flag; did you mean --lr?"]),
        (["-s", "3"], ["-s"]),
        (["--steps", "See it"], ["--steps", "See it"]),  # not taken for a pointer to --help
        (["--steps", "3 │ 4"], ["--steps", "3", "4"]),
    ],
    ids=str,
)
def test_what_a_flag_cannot_be_is_one_line(go, argv, parts):
    ran = []
    status, out, err = go(*argv, main=ran.append)
    assert (status, out, ran) == (2, "", [])
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    for part in parts:
        assert part in err
    for frame in "╭│─╰\x1b":
        assert frame not in err


@pytest.mark.usefixtures("columns")
def test_the_pointer_to_help_is_cut_off(go):
    """It is longer than the message, because it holds the script's path."""
    _, _, err = go("--steps", "many")
    assert "For full helptext" not in err


@dataclass(frozen=True)
class Needed:
    out: Path
    steps: int = 1


@pytest.mark.usefixtures("columns")
def test_a_flag_that_is_missing_is_named(go):
    status, _, err = go("--steps", "1", args_type=Needed)
    assert (status, err) == (2, "error: --out: missing; see --help\n")
    for empty in (["--out", ""], ["--out="]):
        assert go(*empty, args_type=Needed)[::2] == (2, "error: --out: is empty; give a path\n")
    assert go("--out", "a", "--steps", "2", args_type=Needed)[0] == 0


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ConfigError("--lr 3: too high; lower it"), "error: --lr 3: too high; lower it"),
        (DataError("a.txt:3: two\n  lines\n"), "error: a.txt:3: two lines"),
        (FileNotFoundError(2, "No such file or directory", "b.txt"), "error: b.txt: No such file or directory"),
        (OSError(28, "No space left on device"), "error: input or output: No space left on device"),
        (OSError("cannot\nread"), "error: input or output: cannot read"),
    ],
    ids=["ConfigError", "DataError in lines", "no file", "no file name", "no number"],
)
def test_what_main_raises_for_the_user_is_one_line(go, error, line):
    def main(args):
        raise error

    assert go("--resume", main=main) == (2, "", line + "\n")


def test_of_several_processes_the_first_says_what_all_raise(go, monkeypatch):
    """And each ends at once: to leave the group it would wait for the others."""
    ended = []
    monkeypatch.setattr(cli.os, "_exit", lambda status: ended.append(status) or sys.exit(status))

    def main(args):
        raise ConfigError("--lr 3: too high")

    line = "error: --lr 3: too high\n"
    for rank, met, said in (("0", True, line), ("1", True, ""), ("0", False, line), ("1", False, line)):
        monkeypatch.setattr(cli, "have_met", lambda met=met: met)  # before that it may be the only one
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert go("--resume", main=main) == (2, "", said)
    assert ended == [2, 2]


def test_too_little_memory_is_said_by_the_process_that_has_it(go, monkeypatch):
    def main(args):
        raise OutOfMemory(1, "too little")

    ended = []
    monkeypatch.setattr(cli.os, "_exit", lambda status: ended.append(status) or sys.exit(status))
    monkeypatch.setattr(cli, "have_met", lambda: True)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert go("--resume", main=main) == (2, "", "error: too little\n")

    def breaks(args):
        raise KeyError("a bug")

    status, _, said = go("--resume", main=breaks)
    assert (status, said.splitlines()[-1]) == (1, "KeyError: 'a bug'")
    assert ended == [2, 1]
    assert go("--resume", main=lambda args: None)[0] == 0
    assert ended == [2, 1]


STATUS = {signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGUSR1: 0}


@pytest.mark.parametrize("number", STATUS)
def test_a_signal_to_end_tidies_up_first(go, number):
    tidied = []

    def main(args):
        try:
            signal.raise_signal(number)
        finally:
            tidied.append(signal.getsignal(number))

    before = signal.getsignal(number)
    assert go(main=main) == (STATUS[number], "", "")
    assert tidied == [signal.SIG_DFL]  # a second one ends it at once
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("number", [*STATUS, signal.SIGINT])
def test_a_signal_of_which_a_library_makes_another_error_ends_it_all_the_same(go, number):
    def main(args):
        try:
            signal.raise_signal(number)
        except BaseException:
            raise ValueError("Invalid bounding box") from None

    before = signal.getsignal(number)
    status, out, err = go(main=main)
    assert (status, out) == (STATUS.get(number, 130), "")
    assert "bounding" not in err
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("number", STATUS)
def test_a_signal_while_flags_are_read_is_no_bad_flag(go, monkeypatch, number):
    monkeypatch.setattr(cli.tyro, "cli", lambda *args, **kwargs: signal.raise_signal(number))
    assert go("--resume") == (STATUS[number], "", "")


def test_a_command_that_does_not_go_on_has_not_succeeded_when_it_is_told_to_stop(monkeypatch):
    commands = {"wait": (lambda args: signal.raise_signal(signal.SIGUSR1), Args)}
    with pytest.raises(SystemExit) as stop:
        cli.run_one_of(commands, ["wait"])
    assert stop.value.code == 128 + signal.SIGUSR1


@pytest.mark.parametrize(
    "error", [None, ConfigError("--lr"), OSError("x"), MemoryError(), KeyboardInterrupt(), ValueError()]
)
def test_it_parts_from_other_processes_however_it_ends(monkeypatch, error):
    def main(args):
        if error is not None:
            raise error

    left = []
    monkeypatch.setattr(cli, "leave", lambda: left.append(1))
    with pytest.raises((SystemExit, ValueError)):
        cli.run(main, Args, ["--resume"])
    assert left == [1]


def test_what_one_process_alone_meets_it_says_itself(go, monkeypatch):
    """A full disk or too little memory may be its own, and then nobody else speaks."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for error in (OSError(28, "No space left on device"), MemoryError()):

        def main(args, error=error):
            raise error

        status, _, err = go("--resume", main=main)
        assert (status, err.count("\n")) == (2, 1)


def test_another_process_that_is_gone_is_one_line_and_the_end(monkeypatch, capsys):
    """At once: what would be tidied up on the way out waits for the other."""

    class Ended(BaseException):
        pass

    def end(status):
        assert status == 2
        raise Ended

    def main(args):
        raise torch.distributed.DistBackendError("NCCL timeout\n in three\n lines")

    monkeypatch.setattr(cli.os, "_exit", end)
    with pytest.raises(Ended):
        cli.run(main, Args, ["--resume"])
    assert capsys.readouterr().err == (
        "error: another process of this run is gone; the same command resumes from the last save (NCCL timeout)\n"
    )


@pytest.mark.parametrize(
    "message", ["DefaultCPUAllocator: can't allocate memory: you tried", "CUDA out of memory. Tried"]
)
def test_too_little_memory_is_one_line(go, message):
    def main(args):
        raise RuntimeError(message)

    status, _, err = go("--resume", main=main)
    assert (status, err.count("\n")) == (2, 1)
    assert err == "error: out of memory; give it more, or a smaller model\n"


def test_too_little_memory_names_a_flag_that_the_command_has(capsys):
    @dataclass
    class Args:
        batch_tokens: int | None = None

    def main(args):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")

    with pytest.raises(SystemExit):
        cli.run(main, Args, [])
    assert capsys.readouterr().err == "error: out of memory; lower --batch-tokens\n"


def test_a_compiler_that_fails_is_one_line(capsys, monkeypatch, graphs):
    """With the first of the many lines that torch has for it."""

    def broken(graph, inputs):
        raise ValueError("no such instruction\nand much more")

    def main(args):
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=broken))
        Runtime.choose("cpu", "fp32").compiled(torch.cos)

    with pytest.raises(SystemExit) as stop:
        cli.run(main, Args, [])
    err = capsys.readouterr().err
    assert stop.value.code == 2
    assert re.fullmatch(
        r"error: --compile: torch's compiler fails here \([^\n]+\); leave it out, in another --out\n", err
    )
    assert "no such instruction" in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--steps", "0"], "--steps 0: give a value from 1 to 10"),
        (["--steps", "11"], "--steps 11: give a value from 1 to 10"),
        (["--mask-rate", "1.5"], "--mask-rate 1.5: give a value from 0 to 0.9"),
        (["--steps", "1", "--mask-rate", "0.9"], None),  # both ends are in it
        (["--steps", "10", "--mask-rate", "0"], None),
        (["--lr", "99"], None),  # no range is given
        ([], None),  # nor a value, which stands for the default
    ],
    ids=str,
)
def test_values_have_ranges(argv, message):
    ranges = {"steps": (1, 10), "mask_rate": (0.0, 0.9)}
    args = cli.parse(Args, argv)
    if message is None:
        cli.check_ranges(args, ranges)
        return
    with pytest.raises(ConfigError) as caught:
        cli.check_ranges(args, ranges)
    assert str(caught.value) == message


@pytest.mark.parametrize(("name", "flag"), [("steps", "--steps"), ("mask_rate_end", "--mask-rate-end")])
def test_a_fields_flag(name, flag):
    assert cli.flag(name) == flag


def test_no_flags_at_all_are_the_defaults(go):
    seen = []
    assert go(main=seen.append) == (0, "", "")
    assert seen == [Args()]


def test_a_real_missing_file(go, tmp_path):
    status, _, err = go("--data", str(tmp_path / "none"), main=lambda args: args.data.read_text() and None)
    assert (status, err) == (2, f"error: {tmp_path / 'none'}: No such file or directory\n")


def test_a_bug_is_not_hidden():
    def main(args):
        raise ValueError("not the user's")

    with pytest.raises(ValueError, match="not the user's"):
        cli.run(main, Args, ["--resume"])


def test_ctrl_c_is_130(go):
    def main(args):
        raise KeyboardInterrupt

    assert go("--resume", main=main) == (130, "", "stopped; the same command resumes from what was saved\n")


@pytest.mark.parametrize("script", ["train.py", "finetune.py", "evaluate.py"])
def test_ctrl_c_before_torch_is_loaded_is_no_traceback(tmp_path, script):
    """Nothing has begun: the system ends it, as it does after the command."""
    (tmp_path / "torch.py").write_text("print('loading', flush=True)\nimport time\ntime.sleep(60)\n")
    command = [sys.executable, ROOT / script]
    with subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": str(tmp_path)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"loading\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30) == (b"", b"")
    assert process.returncode == -signal.SIGINT


@pytest.mark.parametrize(("returned", "status"), [(None, 0), (0, 0), (1, 1), (143, 143)])
def test_status_is_what_main_returned(go, returned, status):
    assert go("--resume", main=lambda args: returned)[0] == status


@pytest.mark.usefixtures("columns")
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_is_status_0_and_says_what_the_flags_are(go, flag):
    status, out, err = go(flag)
    assert (status, err) == (0, "")
    for flag in ("--steps", "--lr", "--mask-rate", "--recipe", "--json"):
        assert flag in out
    said = " ".join(out.replace("│", " ").split())
    assert "Some flags." in said
    assert "--data PATH What to read. (default: text.txt)" in said
    assert "--mask-rate FLOAT Of the tokens. --recipe {quick,slow}" in said  # and no default of None


@dataclass(frozen=True, kw_only=True)
class More(Args):
    """More flags, and those of `Args`."""

    kinds: tuple[Literal["a", "b"], ...] | None = None
    on: bool | None = None
    """Whether."""
    off_or: Literal["next"] | Literal["off"] | None = None
    names: list[str] = field(default_factory=list)


def test_help_shows_the_values_of_a_flag(go, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    status, out, _ = go("--help", args_type=More)
    said = " ".join(out.replace("│", " ").split())
    assert status == 0
    for told in (
        "--data PATH What to read.",
        "--kinds {a,b} [{a,b} ...]",
        "--on | --no-on Whether.",
        "--off-or {next,off}",
    ):
        assert told in said
    assert "None" not in said


def test_command_line_is_the_default(go, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train.py", "--steps", "3"])
    seen = []
    with pytest.raises(SystemExit) as stop:
        cli.run(seen.append, Args)
    assert stop.value.code == 0
    assert seen == [Args(steps=3)]


def test_write_result(tmp_path, capsys):
    result = {"loss": 1.5, "device": "cpu"}
    cli.write_result("-", result)
    assert json.loads(capsys.readouterr().out) == result
    cli.write_result(str(tmp_path / "r.json"), result)
    assert json.loads((tmp_path / "r.json").read_text()) == result
    assert capsys.readouterr().out == ""
    cli.write_result("-", {"dev": {"loss": float("nan")}, "all": [1.0, float("-inf")]})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "dev": {"loss": None},
        "all": [1.0, None],
    }


def test_a_result_writes_over_no_input(tmp_path):
    file = tmp_path / "rows.csv"
    cli.check_result(str(tmp_path / "r.json"), train=file, dev=None)
    (tmp_path / "config.json").write_text("{}")
    cli.check_result(str(tmp_path / "config.json"))  # of something else
    (tmp_path / "model.safetensors").write_text("")
    cli.check_result(str(tmp_path / "results.json"))  # which is not there
    with pytest.raises(ConfigError, match=r"--json .*config\.json: is part of a model; give another file"):
        cli.check_result(str(tmp_path / "config.json"))
    with pytest.raises(ConfigError, match="is part of a model"):
        cli.check_result(str(tmp_path / "model.safetensors"))
    training = tmp_path / "step-000001" / "training"
    training.mkdir(parents=True)
    for name in ("state.json", "tensors.safetensors"):
        (training / name).write_text("")
    with pytest.raises(ConfigError, match=r"state\.json: is part of a model"):
        cli.check_result(str(training / "state.json"))
    (tmp_path / "config.json").unlink()
    with pytest.raises(ConfigError, match=re.escape("rows.csv: is the file of --train; give another")):
        cli.check_result(f"{tmp_path}/./rows.csv", train=file)  # also one that is yet to be written
    with pytest.raises(ConfigError, match=re.escape("rows.csv: is the file of --data; give another")):
        cli.check_result(str(file), data=(tmp_path / "others.csv", file))
    (tmp_path / "loop").symlink_to("loop")
    cli.check_result(str(tmp_path / "r.json"), data=tmp_path / "loop")  # which is for others to say


def test_an_output_goes_where_a_link_leads_and_into_a_pipe(tmp_path):
    """Neither is replaced by a file."""
    link, pipe = tmp_path / "link.csv", tmp_path / "pipe"
    link.symlink_to("real.csv")
    os.mkfifo(pipe)
    read = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    for output in (link, pipe):
        cli.check_output("--output", output)
        cli.write_output("--output", output, "a,ä\n")
    assert link.is_symlink()
    assert (tmp_path / "real.csv").read_text(encoding="utf-8") == "a,ä\n"
    assert pipe.is_fifo()
    assert os.read(read, 100).decode() == "a,ä\n"
    os.close(read)
    with pytest.raises(ConfigError, match=r"--output .*link\.csv: is the file of --data; give another"):
        cli.check_output("--output", link, data=tmp_path / "real.csv")


@pytest.mark.parametrize("name", ["/dev/fd/{}", "/proc/self/fd/{}"])
def test_an_open_file_is_written_on(tmp_path, name):
    """As /dev/stdout is, where that is a file that holds something."""
    log = tmp_path / "log"
    with log.open("ab", buffering=0) as stream:
        stream.write(b"before\n")
        output = Path(name.format(stream.fileno()))
        cli.check_output("--output", output)
        cli.write_output("--output", output, "result\n")
        stream.write(b"after\n")
    assert log.read_text() == "before\nresult\nafter\n"
    with pytest.raises(ConfigError, match="/987654: is not open; give a file"):
        cli.check_output("--output", Path(name.format(987654)))


def test_a_file_that_may_not_be_written_is_not_replaced(tmp_path, monkeypatch):
    file = tmp_path / "r.csv"
    file.write_text("precious")
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).is_dir())  # of root it allows all
    with pytest.raises(ConfigError, match=r"r\.csv: cannot be written; give a file in"):
        cli.check_output("--output", file)
    cli.check_output("--output", tmp_path / "new.csv")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("loop", "Too many levels of symbolic links"),
        ("nowhere", "give a file in a directory that is there"),
        ("a" * 300, "File name too long"),
    ],
)
def test_an_output_that_cannot_be_is_refused(tmp_path, name, why):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "nowhere").symlink_to("none/file")
    with pytest.raises(ConfigError, match=f"^--output .*: cannot be written.*{why}"):
        cli.check_output("--output", tmp_path / name)


def test_a_result_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    file = tmp_path / "r.json"
    cli.write_result(str(file), {"loss": 1.5})

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ConfigError, match=r"--json .*r\.json: cannot be written .No space left on device"):
        cli.write_result(str(file), {"loss": 1.25})
    assert json.loads(file.read_text()) == {"loss": 1.5}


def test_who_asks_for_another_machine_is_noticed(no_network):
    """By what every test looks at in its end."""
    with contextlib.suppress(OSError):
        socket.getaddrinfo("somewhere.invalid", 80)
    with contextlib.suppress(OSError), socket.socket() as own:
        own.settimeout(0.1)
        own.connect(("192.0.2.1", 80))
    assert no_network == ["somewhere.invalid", "192.0.2.1"]
    no_network.clear()

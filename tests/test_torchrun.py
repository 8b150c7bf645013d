"""`torchrun --nproc-per-node 2 train.py`: the run of one process, shared; and what happens when one of them is gone."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
from safetensors.torch import load_file

from minilm.checkpoint.model import write_model
from minilm.checkpoint.store import Store, manifest_fault
from minilm.data.tokenizer import Tokenizer
from minilm.model.encoder import initialise, modern_config
from minilm.model.heads import LanguageModel

ROOT = Path(__file__).parent.parent
SMALL = ["--precision", "fp32", "--length", "32", "--threads", "1", "--held-out", "0.2", "--optimizer", "adamw"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "topics.txt"
    words = " ".join(topics[name] for name in sorted(topics))[:75_000]
    file.write_text("\n\n".join(words[at : at + 250].replace("\n", " ") for at in range(0, len(words), 250)))
    return file


@pytest.fixture(scope="module")
def models(text, tmp_path_factory):
    """A directory of a narrow model for each objective: a wide one takes most of the time, in its evaluations."""
    directory, tokenizer = tmp_path_factory.mktemp("models"), Tokenizer.train([text.read_text()], 256)
    for objective in ("mlm", "clm"):
        torch.manual_seed(0)
        model = LanguageModel(modern_config(tokenizer.vocab_size, 32, 2, 2, 48, 64))
        initialise(model)
        (directory / objective).mkdir()
        write_model(directory / objective, model, tokenizer, objective)
    return directory


@pytest.fixture
def processes(text, models, tmp_path_factory, tmp_path):
    """processes(world, *flags, same_machine=True, data=None, own_flags=..., scratch=False): so many of train.py, as
    torchrun starts them, from one of `models` on."""
    cache, running = tmp_path_factory.getbasetemp() / "torchrun-cache", []

    def start(world, *flags, same_machine=True, data=None, own_flags=((), ()), scratch=False):
        begin = ["--vocab-size", 256] if scratch else ["--model", models / ("clm" if "clm" in flags else "mlm")]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        for rank in range(world):
            own = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank if same_machine else 0}
            own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_WORLD_SIZE": world}
            environment = (
                os.environ | {key: str(value) for key, value in own.items()} if world > 1 else dict(os.environ)
            )
            command = [sys.executable, ROOT / "train.py", "--data", (data or [text] * world)[rank]]
            own = own_flags[rank] if "--model" in own_flags[rank] else [*begin, *own_flags[rank]]
            command += ["--cache-dir", cache, *SMALL, *flags, *own]
            running.append(
                subprocess.Popen(
                    list(map(str, command)),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    cwd=tmp_path,
                    env=environment,
                )
            )
        return running[-world:]

    yield start
    for process in running:
        process.kill()
        process.communicate()


def finish(started, seconds=120):
    """[(status, stdout, stderr)] of each."""
    said = [process.communicate(timeout=seconds) for process in started]
    return [(process.returncode, *own) for process, own in zip(started, said, strict=True)]


def test_two_processes_are_one(processes, tmp_path):
    """Rows of unequal numbers of targets: the weights of one process, to fp32 reduction error, and its figures."""
    flags = ["--objective", "clm", "--packing", "documents", "--accumulation", 2, "--batch-size", 8]
    flags += ["--steps", 20, "--evaluate-every", 20, "--json", "-"]
    alone = finish(processes(1, *flags, "--out", "alone", scratch=True))
    shared = finish(processes(2, *flags, "--out", "shared", scratch=True))
    assert [status for status, _, _ in alone + shared] == [0, 0, 0], [err for _, _, err in alone + shared]
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("alone", "shared"))
    assert a.keys() == b.keys()
    assert max(float((a[name] - b[name]).abs().max()) for name in a) < 1e-6
    one, two = json.loads(alone[0][1]), json.loads(shared[0][1])
    assert two["processes"] == 2
    for figure in ("targets", "tokens", "flops", "steps"):
        assert one[figure] == two[figure]
    assert one["held_out_loss"] == pytest.approx(two["held_out_loss"], abs=1e-5)
    assert shared[1][1:] == ("", "")  # only the first one speaks


def test_a_dry_run_is_shared(processes, tmp_path):
    """What the run would cost, from the first process; none is kept."""
    found = finish(processes(2, "--steps", 100, "--dry-run", "--json", "-", "--out", "run"))
    assert [status for status, _, _ in found] == [0, 0], [err for _, _, err in found]
    assert json.loads(found[0][1])["steps"] == 100
    assert found[1][1] == ""
    assert [*tmp_path.iterdir()] == []


def test_a_sharded_run_is_the_same_run(processes, tmp_path, wait_for):
    """Each process has a part of everything; stopped in the middle, it goes on, and ends as one process does."""
    flags = ["--objective", "clm", "--accumulation", 2, "--batch-size", 8, "--steps", 12, "--evaluate-every", 12]
    flags += ["--save-every", 6]
    alone = finish(processes(1, *flags, "--out", "alone"))
    first = processes(2, *flags, "--out", "shared", "--shard")
    wait_for((tmp_path / "shared" / "step-000006").exists, *first)
    first[0].kill()
    finish(first, seconds=30)
    again = finish(processes(2, *flags, "--out", "shared", "--shard"))
    assert [status for status, _, _ in alone + again] == [0, 0, 0], [err for _, _, err in alone + again]
    assert "resuming from step" in again[0][2]
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("alone", "shared"))
    assert max(float((a[name] - b[name]).abs().max()) for name in a) < 1e-6


@pytest.mark.parametrize("killed", [0, 1])
def test_one_process_killed_ends_the_other(processes, tmp_path, wait_for, killed):
    """In seconds, with the last checkpoint whole; one process alone goes on from it, and says that the bits differ."""
    flags = ["--steps", 4000, "--save-every", 5, "--batch-size", 8, "--objective", "clm", "--out", "run"]
    started = processes(2, *flags)
    wait_for((tmp_path / "run" / "step-000010").exists, *started)
    started[killed].kill()
    began = time.monotonic()
    ends = finish(started, seconds=30)
    assert time.monotonic() - began < 30
    status, _, err = ends[1 - killed]
    assert status == 2
    assert "error: another process of this run is gone" in err.splitlines()[-1]
    steps = sorted((tmp_path / "run").glob("step-*"))
    assert steps
    assert [manifest_fault(step) for step in steps] == [""] * len(steps)
    (again,) = processes(1, *flags)
    wait_for(lambda: any((tmp_path / "run").glob("step-*")) and is_on(tmp_path / "run", steps[-1]), again)
    again.send_signal(signal.SIGTERM)
    ((status, _, err),) = finish([again])
    assert status == 143
    assert f"resuming from step {int(steps[-1].name[5:])}" in err
    assert "began with processes 2, now it is 1: it resumes, but not bit for bit" in err


def is_on(run: Path, last: Path) -> bool:
    return max(run.glob("step-*")).name > last.name


@pytest.mark.parametrize("told", [0, 1])
def test_one_process_told_to_stop_stops_all(processes, tmp_path, wait_for, told):
    flags = ["--steps", 4000, "--save-every", 1000, "--batch-size", 8, "--out", "run"]
    started = processes(2, *flags)
    wait_for(lambda: (tmp_path / "run" / "metrics.jsonl").exists() and metrics(tmp_path / "run"), *started)
    started[told].send_signal(signal.SIGTERM)
    ends = finish(started, seconds=30)
    assert [status for status, _, _ in ends] == [143, 143]
    assert "stopped and saved at step" in ends[0][2]
    (saved,) = (tmp_path / "run").glob("step-*")
    assert manifest_fault(saved) == ""


def metrics(run: Path) -> str:
    return (run / "metrics.jsonl").read_text()


def test_processes_that_cannot_share_a_run(processes, tmp_path, text):
    """Other text on one machine, rows that do not divide, a file that one of them lacks: one line, from the first."""
    other = tmp_path / "other.txt"
    other.write_text(text.read_text()[:-300])
    flags = ["--steps", 4, "--batch-size", 8, "--out", "run"]
    for more, data, message in (
        ((), [text, other], "process 1 has other text, or another vocabulary, than process 0"),
        ((), [text, tmp_path / "missing.txt"], "process 1: --data"),
        ((), [tmp_path / "missing.txt"] * 2, "missing.txt: no such file"),
        (("--batch-size", 7), None, "7 rows a step do not divide into equal micro-batches"),
    ):
        ends = finish(processes(2, *flags, *more, same_machine=False, data=data))
        assert [status for status, _, _ in ends] == [2, 2], ends
        assert message in ends[0][2].splitlines()[-1]
        assert "Traceback" not in ends[0][2] + ends[1][2]
        assert ends[1][2] == ""
        assert not (tmp_path / "run").exists()
    for own_flags, message in (
        (((), ("--lr", "0.05")), "process 1 has other flags than process 0; give every process the same"),
        (((), ("--model", tmp_path / "missing")), "process 1: --model"),
    ):
        ends = finish(processes(2, *flags, own_flags=own_flags))
        assert [status for status, _, _ in ends] == [2, 2], ends
        assert message in ends[0][2].splitlines()[-1]
        assert ends[1][2] == ""
    with Store(tmp_path / "run").hold():
        ends = finish(processes(2, *flags))
    assert [status for status, _, _ in ends] == [2, 2]
    assert "is writing it; wait, or choose another" in ends[0][2].splitlines()[-1]
    assert ends[1][2] == ""

"""A run directory: complete checkpoints, or none."""

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
from safetensors import SafetensorError

from minilm.checkpoint.store import Run, Store, checkpoints, manifest_fault, write_manifest
from minilm.errors import CheckpointError, ConfigError
from minilm.files import read_json, sha256, write_json, write_whole


@pytest.fixture
def store(tmp_path):
    out = Store(tmp_path / "run")
    out.out.mkdir()
    return out


def write_text(content: str):
    def write(directory):
        (directory / "model.safetensors").write_text(content)
        (directory / "training").mkdir()
        (directory / "training" / "state.json").write_text(content)
        (directory / "config.json").write_text("{}")

    return write


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_a_checkpoint_is_whole_and_the_oldest_go(store):
    for step in (5, 10, 15):
        path = store.save(step, write_text(str(step)), keep=2)
        assert path.name == f"step-{step:06d}"
        assert manifest_fault(path) == ""
    assert names(store.out) == ["step-000010", "step-000015"]
    assert store.latest(print).name == "step-000015"
    assert set(json.loads((path / "MANIFEST.json").read_text())["sha256"]) == {
        "config.json",
        "model.safetensors",
        "training/state.json",
    }


@pytest.mark.parametrize("fault", ["flipped bit", "truncated", "missing file", "no manifest", "bad manifest"])
@pytest.mark.parametrize("file", ["model.safetensors", "training/state.json", "config.json"])
def test_a_damaged_checkpoint_is_passed_over_and_said(store, file, fault):
    store.save(5, write_text("older"))
    newest = store.save(10, write_text("newer"))
    target = newest / file
    if fault == "flipped bit":
        content = bytearray(target.read_bytes())
        content[-1] ^= 1
        target.write_bytes(content)
    elif fault == "truncated":
        target.write_bytes(target.read_bytes()[:-1])
    elif fault == "missing file":
        target.unlink()
    elif fault == "no manifest":
        (newest / "MANIFEST.json").unlink()
    else:
        (newest / "MANIFEST.json").write_text("[")
    said = []
    assert store.latest(said.append).name == "step-000005"
    assert len(said) == 1
    assert "step-000010 is damaged" in said[0]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("No space left on device")])
def test_a_failing_save_leaves_the_last_one(store, error):
    store.save(5, write_text("older"))

    def fail(directory):
        (directory / "model.safetensors").write_text("half")
        raise error

    with pytest.raises(CheckpointError, match=r"step-000010 cannot.*No space left.*from step-000005"):
        store.save(10, fail)
    assert names(store.out) == ["step-000005"]
    assert store.latest(print).name == "step-000005"


def test_a_failing_save_names_no_temporary_directory(store):
    def fail(directory):
        raise CheckpointError(f"{directory}: the model cannot be written: No space left on device")

    why = (
        r"cannot be written \(the model cannot be written: No space left on device\); make room, then the same command"
    )
    with pytest.raises(CheckpointError, match=why):
        store.save(10, fail)


def test_an_old_checkpoint_that_cannot_be_removed_is_left(store, monkeypatch):
    """As where another machine has a file of it open: it goes with the next save."""
    for step in (1, 2):
        store.save(step, write_text(str(step)))

    def kept(*of, **more):
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", kept)
        assert store.save(3, write_text("3")) == store.checkpoint(3)
    assert [step for step, _ in checkpoints(store.out)] == [1, 2, 3]
    store.save(4, write_text("4"))
    assert [step for step, _ in checkpoints(store.out)] == [3, 4]


def test_config_json_comes_last(store, monkeypatch):
    """Whatever moment the finishing is killed at, a directory with a config.json is a whole one."""
    moved = []
    original = type(store.out).replace

    def record(self, target):
        moved.append(target.name)
        return original(self, target)

    monkeypatch.setattr(type(store.out), "replace", record)
    store.finish(lambda directory: write_json(directory / "config.json", {}) or (directory / "a").write_text("x"))
    assert moved[-1] == "config.json"
    assert moved.index("MANIFEST.json") < len(moved) - 1
    assert manifest_fault(store.out) == ""


def test_two_writers_are_one_too_many(store):
    code = (
        "import sys, pathlib; from minilm.checkpoint.store import Store\n"
        "with Store(pathlib.Path(sys.argv[1])).hold(): print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, store.out], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "held\n"
    with pytest.raises(ConfigError, match=rf"process {other.pid} .* is writing it"), store.hold():
        pass
    other.kill()
    other.communicate()
    with store.hold():  # the system let go of it with the process
        assert (store.out / "lock").read_text().startswith(f"process {os.getpid()} ")


SETTINGS = {"lr": 1e-3, "seed": 0, "data": "hash"}
LONG = f"Classification(labels={tuple(map(str, range(100)))}, weights=None"
RUN = {"format": 1, **asdict(Run({"steps": 10, "data": "hash"}, 10, "cpu", "fp32", 2, "sdpa", {"torch": "2.13.0"}))}


@pytest.mark.parametrize(
    ("settings", "pinned", "resume", "message"),
    [
        ({"lr": 2e-3, "seed": 0, "data": "hash"}, {}, "auto", "began with lr 0.001, not 0.002"),
        (SETTINGS, {"precision": "bf16"}, "auto", "began with precision fp32, not bf16"),
        (SETTINGS, {}, "never", "holds a run"),
        (SETTINGS | {"seed": 3}, {}, "auto", "began with seed 0, not 3"),
        (SETTINGS | {"compile": True}, {}, "auto", "began without compile, not with True"),
        (
            SETTINGS | {"task": f"{LONG}, smoothing=0.2)"},
            {},
            "auto",
            r"task \.\.\.smoothing=0.1\), not \.\.\.smoothing=0.2",
        ),
        (SETTINGS, {"precision": "fp32"}, "auto", None),
        (SETTINGS | {"compile": False, "short_seq_prob": 0.0}, {}, "auto", None),  # which a run of before does not name
    ],
)
def test_a_run_of_another_config_is_refused(store, settings, pinned, resume, message):
    run = Run(SETTINGS, 10, "cpu", "fp32", 2, "sdpa", {"torch": "2.13.0"})
    if "task" in settings:
        run = replace(run, settings=SETTINGS | {"task": f"{LONG}, smoothing=0.1)"})
    store.write_run(run)
    if message is None:
        assert store.earlier_run(settings, pinned, resume) == run
        return
    with pytest.raises(ConfigError, match=message):
        store.earlier_run(settings, pinned, resume)


def test_a_directory_of_something_else_is_refused(store):
    assert store.earlier_run(SETTINGS, {}, "auto") is None
    (store.out / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match=r"holds thesis.tex and no run"):
        store.check_writable()
    assert names(store.out) == ["thesis.tex"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "holds list, not an object"),
        ("{}", "format None, this version reads 1"),
        ('{"format": 2}', "format 2, this version reads 1"),
        ('{"format": 1}', "not a run's"),
        ('{"format": 1, "settings": {}, "mood": "good"}', "not a run's"),
        (json.dumps(RUN | {"settings": {"steps": 10}}), "settings name no data; choose another --out"),
        *(
            (json.dumps(RUN | change), f"{next(iter(change))} is")
            for change in (
                {"steps": "10"}, {"steps": 5.5}, {"steps": 0}, {"steps": 9}, {"precision": 5}, {"backend": []},
                {"versions": None}, {"result": [1]}, {"threads": "2"}, {"world": "2"}, {"world": None}
            )
        ),
    ],
)  # fmt: skip
def test_a_run_file_that_is_none_is_refused(store, text, message):
    (store.out / "run.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        store.earlier_run(SETTINGS, {}, "auto")


def test_of_a_run_file_that_is_damaged_its_checkpoints_are_named(store):
    store.save(5, write_text("a"))
    (store.out / "run.json").write_text("")
    with pytest.raises(CheckpointError, match=r"run.json: cannot be read .*--model .*step-000005, in another --out"):
        store.earlier_run(SETTINGS, {}, "auto")


def test_a_directory_in_which_nothing_came_about_is_removed(tmp_path):
    with pytest.raises(ValueError, match="no data"), Store(tmp_path / "new" / "run").hold():
        raise ValueError("no data")
    assert not (tmp_path / "new").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    for name in ("mine", "link"):  # what was there before stays, and the error is the one that counts
        with pytest.raises(ValueError, match="no data"), Store(tmp_path / name).hold():
            raise ValueError("no data")
        assert names(tmp_path / name) == []
    with Store(tmp_path / "new").hold():
        (tmp_path / "new" / "run.json").write_text("{}")
    assert names(tmp_path / "new") == ["lock", "run.json"]


def test_an_output_that_cannot_be_is_refused_and_not_made(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="is a file, not a directory"):
        Store(tmp_path / "file" / "run").check_writable()
    (tmp_path / "link").symlink_to("nowhere")
    for out in (tmp_path / "link", tmp_path / "link" / "run"):
        with pytest.raises(ConfigError, match="link is a broken link; remove it, or fix it"):
            Store(out).check_writable()
    Store(tmp_path / "new" / "run").check_writable()
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("number", "mend"), [(errno.ENOSPC, "make room"), (errno.ENOENT, "fix that")])
def test_a_save_that_fails_says_what_to_mend(store, number, mend):
    def write(directory):
        raise OSError(number, os.strerror(number))

    with pytest.raises(CheckpointError, match=f"{os.strerror(number)}.; {mend}, then the same command resumes from"):
        store.save(5, write)


def test_a_lock_that_is_a_link_is_not_followed(store, tmp_path):
    (tmp_path / "victim").write_text("precious")
    (store.out / "lock").symlink_to(tmp_path / "victim")
    with pytest.raises(ConfigError, match="cannot be written"), store.hold():
        pass
    assert (tmp_path / "victim").read_text() == "precious"


@pytest.mark.parametrize(
    "sums", [{}, {"/dev/zero": "x"}, {"../outside": "x"}, {"a\0b": "x"}, {"\ud800": "x"}, {"fifo": "x"}, [], None]
)
def test_a_manifest_that_lies_is_a_fault(tmp_path, sums):
    (tmp_path / "outside").write_text("x")
    inside = tmp_path / "in"
    inside.mkdir()
    (inside / "a").write_text("x")
    os.mkfifo(inside / "fifo")
    write_json(inside / "MANIFEST.json", {"format": 1, "sha256": sums})
    assert manifest_fault(inside)


@pytest.mark.parametrize("change", [lambda text: text[:-1], lambda text: text.replace("  ", " ", 1)])
def test_a_manifest_with_other_bytes_is_a_fault(tmp_path, change):
    """Also where they mean the same."""
    (tmp_path / "a").write_text("x")
    write_manifest(tmp_path)
    assert not manifest_fault(tmp_path)
    (tmp_path / "MANIFEST.json").write_text(change((tmp_path / "MANIFEST.json").read_text()))
    assert manifest_fault(tmp_path) == "MANIFEST.json was changed"


def test_another_file_in_the_place_of_a_manifest_is_a_fault(tmp_path):
    write_json(tmp_path / "MANIFEST.json", {"format": 1, "step": 3})
    assert manifest_fault(tmp_path) == "MANIFEST.json names no file"


def test_a_model_of_links_is_read(tmp_path):
    """As the cache of a hub keeps it: names here, contents elsewhere."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshots" / "1").mkdir(parents=True)
    (tmp_path / "blobs" / "1").write_text("x")
    (tmp_path / "snapshots" / "1" / "a").symlink_to(tmp_path / "blobs" / "1")
    write_manifest(tmp_path / "snapshots" / "1")
    assert manifest_fault(tmp_path / "snapshots" / "1") == ""


def test_a_step_that_is_a_link_is_neither_taken_nor_passed_over(store, tmp_path):
    """Training would go on from an older one, and end where it comes to that step."""
    store.save(5, write_text("older"))
    (store.out / "step-000010").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="step-000010: is a link; put the directory itself there, or remove"):
        store.latest(print)
    (store.out / "step-000010").unlink()
    (store.out / "step-000010").write_text("")
    with pytest.raises(CheckpointError, match="step-000010: is a file, where a checkpoint would be; move it away"):
        store.latest(print)
    (store.out / "step-000010").unlink()
    assert store.latest(print).name == "step-000005"


def test_json_that_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_json(tmp_path / "config.json")


def test_sweeping_takes_only_what_is_ours(store):
    (store.out / ".tmp-step-000005-1").mkdir()
    shutil.copytree(store.out / ".tmp-step-000005-1", store.out / "step-notes")
    with store.hold():
        assert names(store.out) == ["lock", "step-notes"]
    assert store.latest(print) is None


def test_damaged_newer_checkpoints_do_not_displace_a_good_one(store):
    for step in (500, 1000, 1500):
        store.save(step, write_text("x"), keep=9)
    for step in (1000, 1500):
        (store.out / f"step-{step:06d}" / "config.json").write_text("damaged")
    assert store.latest(lambda line: None).name == "step-000500"
    good = store.save(600, write_text("x"))
    assert names(store.out) == ["step-000500", "step-000600"]
    assert store.latest(print) == good


def test_a_run_of_which_nothing_is_whole_does_not_begin_anew(store):
    """And so nothing is removed: there may be something to save."""
    (store.save(5, write_text("x")) / "config.json").write_text("damaged")
    with pytest.raises(CheckpointError, match="all its checkpoints are damaged"):
        store.latest(lambda line: None)
    assert names(store.out) == ["step-000005"]


def test_what_others_leave_in_a_checkpoint_does_not_matter(store):
    saved = store.save(5, write_text("x"))
    (saved / ".DS_Store").write_text("of a file browser")
    assert store.latest(print) == saved


def test_a_disk_that_cannot_be_read_says_nothing_about_a_checkpoint(store, monkeypatch):
    saved = store.save(5, write_text("x"))

    def failing(file):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("minilm.checkpoint.store.sha256", failing)
    with pytest.raises(CheckpointError, match=r"step-000005: cannot be read \(Input/output error\)"):
        store.latest(print)
    assert saved.exists()


def test_a_model_that_a_run_began_with_must_be_named_again(store):
    store.write_run(Run(SETTINGS | {"model": "x (12ab)"}, 10, "cpu", "fp32", 2, "sdpa", {"torch": "2.13.0"}))
    with pytest.raises(ConfigError, match=r"began with model x \(12ab\), not without"):
        store.earlier_run(SETTINGS, {}, "auto")


def test_a_model_is_the_same_wherever_it_lies(store):
    began = Run(SETTINGS | {"model": "x (12ab)"}, 10, "cpu", "fp32", 2, "sdpa", {"torch": "2.13.0"})
    store.write_run(began)
    assert store.earlier_run(SETTINGS | {"model": "some/other y (12ab)"}, {}, "auto") == began
    with pytest.raises(ConfigError, match=r"began with model x \(12ab\), not x \(34cd\)"):
        store.earlier_run(SETTINGS | {"model": "x (34cd)"}, {}, "auto")


def test_a_lock_that_another_process_has_made_anew_is_not_held(store, monkeypatch):
    """Its last holder removed the file that this process had opened, and a third one made the next."""
    original = fcntl.flock

    def late(handle, how):
        original(handle, how)
        (store.out / "lock").unlink()
        (store.out / "lock").write_text("of another process")

    monkeypatch.setattr("fcntl.flock", late)
    with pytest.raises(ConfigError, match="run the command again"), store.hold():
        pass


def test_how_many_processes_a_run_began_with_is_kept(store):
    run = Run(SETTINGS, 10, "cpu", "fp32", 2, "sdpa", {"torch": "2.13.0"}, world=4)
    store.write_run(run)
    assert store.earlier_run(SETTINGS, {}, "auto") == run
    values = json.loads((store.out / "run.json").read_text())
    del values["world"]  # as runs of before were written
    write_json(store.out / "run.json", values)
    assert store.earlier_run(SETTINGS, {}, "auto").world == 1


def test_a_file_is_whole_or_as_it_was(tmp_path, monkeypatch):
    """A write that fails half-way leaves the old text, and a name that nobody takes for it."""
    file = tmp_path / "run.json"
    write_whole(file, "first é\n")
    assert file.read_text(encoding="utf-8") == "first é\n"
    assert names(tmp_path) == ["run.json"]

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(file, "second\n")
    monkeypatch.undo()
    assert file.read_text(encoding="utf-8") == "first é\n"
    assert names(tmp_path) == ["run.json"]
    (tmp_path / "elsewhere").write_text("mine")
    file.unlink()
    file.symlink_to("elsewhere")  # which is not written through
    write_whole(file, "third\n")
    assert (file.read_text(), (tmp_path / "elsewhere").read_text()) == ("third\n", "mine")
    assert not file.is_symlink()
    (tmp_path / "elsewhere").unlink()
    write_json(file, {"a": [1, None]})
    assert json.loads(file.read_text()) == {"a": [1, None]}
    assert names(tmp_path) == ["run.json"]


def test_a_checksum_is_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")  # FIPS 180-2, app. B.1
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"

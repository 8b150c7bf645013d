"""A file that is computed for long: what is there of it goes on, if it is the same one."""

import errno
import fcntl
import json
import os
import sys
from contextlib import suppress

import pytest

from minilm import partial as module
from minilm.errors import DataError
from minilm.partial import partial_of

OF = {"model": "0123", "how": ("mean", "max")}


def names(directory):
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
def file(tmp_path):
    return tmp_path / "v.npy"


def stopped(file):
    """Three rows of two bytes, after which it is told to stop."""
    with suppress(SystemExit), partial_of(file, OF) as partial:
        for row in range(3):
            partial.add(b"%02d" % row, rows=row + 1)
        sys.exit(143)


def test_it_goes_on_and_becomes_the_file(file, tmp_path):
    stopped(file)
    assert names(tmp_path) == ["v.npy.partial", "v.npy.partial.json"]
    with partial_of(file, OF) as partial:
        assert (partial.told, partial.content(), partial.was_of_another) == ({"rows": 3}, b"000102", False)
        partial.add(b"03", rows=4)
        partial.finish()
    assert names(tmp_path) == ["v.npy"]
    assert file.read_bytes() == b"00010203"


@pytest.mark.parametrize("finishes", [True, False])
def test_what_a_kill_left_of_its_notes_goes_with_it(file, tmp_path, finishes):
    stopped(file)
    (tmp_path / ".v.npy.partial.json.01234567.tmp").write_text("half")
    with partial_of(file, OF) as partial:
        if finishes:
            partial.finish()
    assert names(tmp_path) == (["v.npy"] if finishes else [])


def test_temporary_files_of_like_names_stay(tmp_path):
    """They tell 40 letters of a name alone, so that another process may be writing them."""
    file = tmp_path / f"{'v' * 40}-a.npy"
    other = tmp_path / f".{'v' * 40}.01234567.tmp"
    other.write_text("half")
    with partial_of(file, OF) as partial:
        partial.finish()
    assert other.exists()


def test_what_is_read_and_not_needed_any_more_is_removed(file, tmp_path):
    with partial_of(file, OF) as partial:
        partial.add(b"00", rows=1)
    assert names(tmp_path) == []


def test_a_kill_loses_what_came_after_the_last_save(file, tmp_path, monkeypatch):
    """What was written and not told of is cut off."""
    monkeypatch.setattr(module, "SAVE_EVERY", -1)
    child = os.fork()
    if not child:
        with partial_of(file, OF) as partial:
            partial.add(b"00", rows=1)
            partial.add(b"01", rows=2)
            monkeypatch.setattr(module, "SAVE_EVERY", 60)
            partial.add(b"02", rows=3)
            partial._stream.flush()
            os._exit(0)
    os.waitpid(child, 0)
    assert (tmp_path / "v.npy.partial").read_bytes() == b"000102"
    with partial_of(file, OF) as partial:
        assert (partial.told, partial.content()) == ({"rows": 2}, b"0001")
        assert (tmp_path / "v.npy.partial").read_bytes() == b"0001"


@pytest.mark.parametrize(
    "change",
    [
        lambda kept: kept | {"of": OF | {"model": "4567"}},
        lambda kept: kept | {"bytes": 7},
        lambda kept: kept | {"bytes": -1},
        lambda kept: kept | {"bytes": "6"},
        lambda kept: kept | {"told": {"rows": 2.5}},
        lambda kept: kept | {"told": 3},
        lambda kept: {"of": kept["of"]},
        lambda kept: [],
    ],
    ids=range(8),
)
def test_what_is_of_another_begins_anew(file, tmp_path, change):
    stopped(file)
    about = tmp_path / "v.npy.partial.json"
    about.write_text(json.dumps(change(json.loads(about.read_text()))))
    with partial_of(file, OF) as partial:
        assert partial.was_of_another
        assert (partial.told, partial.content()) == ({}, b"")


def test_what_nothing_says_whose_it_is_is_left_alone(file, tmp_path):
    """A user's own, say."""
    (tmp_path / "v.npy.partial").write_text("precious")
    with pytest.raises(FileExistsError, match="partial is in the way; move it away"), partial_of(file, OF):
        pass
    assert (tmp_path / "v.npy.partial").read_text() == "precious"
    (tmp_path / "v.npy.partial").write_text("")  # of one that was killed when it began
    with partial_of(file, OF) as partial:
        assert (partial.told, partial.content(), partial.was_of_another) == ({}, b"", False)


def test_who_comes_when_it_is_finished_is_another(file, tmp_path):
    """What the next process makes under the same name stays."""
    with partial_of(file, OF) as first:
        first.add(b"00", rows=1)
        first.finish()
        with partial_of(file, OF) as second:
            second.add(b"01", rows=1)
            first.remove()
            second.finish()
    assert file.read_bytes() == b"01"
    assert names(tmp_path) == ["v.npy"]


def test_without_locks_each_has_its_own_and_none_goes_on(file, tmp_path, monkeypatch):
    def none(handle, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    stopped(file)
    assert names(tmp_path) == []
    with partial_of(file, OF) as first, partial_of(file, OF) as second:
        for partial, content in ((first, b"00"), (second, b"11"), (first, b"22"), (second, b"33")):
            partial.add(content, rows=1)
        assert (first.content(), second.content()) == (b"0022", b"1133")
        first.finish()
        second.finish()
    assert file.read_bytes() == b"1133"
    assert names(tmp_path) == ["v.npy"]


def test_what_nothing_is_told_of_does_not_stay(file, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SAVE_EVERY", -1)
    with suppress(KeyboardInterrupt), partial_of(file, OF) as partial:
        partial.add(b"a header")
        assert json.loads((tmp_path / "v.npy.partial.json").read_text())["bytes"] == 0
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_where_it_cannot_be_saved_a_signal_is_a_signal(file, tmp_path, monkeypatch):
    stopped(file)

    def full(handle):
        raise OSError(28, "No space left on device")

    def told_to_stop():
        with partial_of(file, OF) as partial:
            partial.add(b"03", rows=4)
            sys.exit(143)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(SystemExit):
            told_to_stop()
    with partial_of(file, OF) as partial:
        assert (partial.told, partial.content()) == ({"rows": 3}, b"000102")


def test_what_nothing_could_say_whose_it_is_does_not_stay(file, tmp_path, monkeypatch):
    """Else it would be in the way of the same command, for ever."""

    def full(file, value):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_json", full)
        stopped(file)
    assert names(tmp_path) == []


def test_bad_data_leaves_nothing(file, tmp_path):
    stopped(file)
    with pytest.raises(DataError), partial_of(file, OF):
        raise DataError("the data has changed")
    assert names(tmp_path) == []


def test_only_one_process_has_it(file, tmp_path):
    with partial_of(file, OF) as first:
        first.add(b"00", rows=1)
        with pytest.raises(BlockingIOError, match="another process is writing it"), partial_of(file, OF):
            pass
    with partial_of(file, OF):
        pass


def test_neither_a_link_nor_a_pipe_is_written_into(file, tmp_path):
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "v.npy.partial").symlink_to("mine")
    with pytest.raises(OSError, match="Too many levels of symbolic links"), partial_of(file, OF):
        pass
    assert (tmp_path / "mine").read_text() == "precious"
    (tmp_path / "v.npy.partial").unlink()
    os.mkfifo(tmp_path / "v.npy.partial")
    with pytest.raises(OSError, match="is no regular file"), partial_of(file, OF):
        pass


def test_another_that_finishes_in_between_is_noticed(file, tmp_path, monkeypatch):
    """Between this one's opening the file and its lock the other one renames it."""
    flock, path = fcntl.flock, tmp_path / "v.npy.partial"

    def late(handle, how):
        monkeypatch.setattr(fcntl, "flock", flock)
        path.replace(file)
        return flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with partial_of(file, OF) as partial:
        assert names(tmp_path) == ["v.npy", "v.npy.partial", "v.npy.partial.json"]
        partial.add(b"00", rows=1)
    assert file.read_bytes() == b""

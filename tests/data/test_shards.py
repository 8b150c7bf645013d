"""What is on disk: arrays that are read a slice at a time, directories that know when they are damaged, whole files."""

import errno
import json
import os
import random
import re
import stat
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from minilm import files
from minilm.data import shards as module
from minilm.data.corpus import Corpus
from minilm.data.prepare import prepare
from minilm.data.shards import FileArray, entry_fault, fault, open_entry, seal
from minilm.files import sha256, write_json, write_whole


@pytest.fixture
def sealed(tmp_path):
    directory = tmp_path / "sealed"
    directory.mkdir()
    (directory / "a").write_bytes(b"some bytes")
    (directory / "b").write_bytes(b"")
    seal(directory, colour="red")
    return directory


# -- arrays ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int64, np.uint64])
@pytest.mark.parametrize("n", [0, 1, 7, 5000])
def test_a_file_array_equals_numpy(tmp_path, dtype, n):
    rng = np.random.default_rng(n)
    array = rng.integers(0, 60_000, n).astype(dtype)
    (tmp_path / "x").write_bytes(array.tobytes())
    mine = FileArray(tmp_path / "x", dtype)
    assert len(mine) == n
    assert mine.dtype == array.dtype
    pick = random.Random(n)
    for _ in range(300):
        start, stop = (pick.choice([None, pick.randint(-n - 3, n + 3)]) for _ in range(2))
        got = mine[start:stop]
        assert got.dtype == array.dtype
        assert got.tolist() == array[start:stop].tolist(), (start, stop)
    assert mine[:].tolist() == array.tolist()
    for place in {0, n // 2, n - 1, -1, -n} if n else ():
        assert mine[place] == array[place]
        assert mine[np.int64(place)] == array[place]
    for place in (n, -n - 1, n + 1000):
        with pytest.raises(IndexError):
            mine[place]


@pytest.mark.parametrize("block", [1, 3, 7, 8])
def test_blocks_are_all_of_it_in_order(tmp_path, monkeypatch, block):
    monkeypatch.setattr(module, "BLOCK", block)
    (tmp_path / "x").write_bytes(np.arange(7, dtype=np.int64).tobytes())
    parts = [part.tolist() for part in FileArray(tmp_path / "x", np.int64).blocks()]
    assert [n for part in parts for n in part] == list(range(7))
    assert all(len(part) == block for part in parts[:-1])
    (tmp_path / "empty").write_bytes(b"")
    assert list(FileArray(tmp_path / "empty", np.int64).blocks()) == []


def test_a_slice_costs_the_memory_of_the_slice(tmp_path):
    (tmp_path / "x").write_bytes(bytes(8 << 20))
    array = FileArray(tmp_path / "x", np.uint16)
    tracemalloc.start()
    array[1_000_000:1_000_100]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000


def test_a_file_array_outlives_its_name(tmp_path):
    """A running process goes on when the cache is cleared."""
    (tmp_path / "x").write_bytes(np.arange(9, dtype=np.int64).tobytes())
    array = FileArray(tmp_path / "x", np.int64)
    (tmp_path / "x").unlink()
    assert array[3:6].tolist() == [3, 4, 5]


# -- directories ----------------------------------------------------------------------------------------


def test_a_sealed_directory_is_described_by_its_checksums(sealed):
    meta = json.loads((sealed / "META.json").read_text())
    assert meta["colour"] == "red"
    assert meta["format"] == module.FORMAT
    assert meta["sha256"] == {"a": sha256(sealed / "a"), "b": sha256(sealed / "b")}
    assert fault(sealed) == ""
    (sealed / "other").write_text("")
    (sealed / "below").mkdir()
    assert fault(sealed) == ""  # what is derived from it may be kept there
    (sealed / "other").unlink()
    (sealed / "below").rmdir()
    before = (sealed / "META.json").read_bytes()
    (sealed / "PROGRESS.json").write_text("{}")
    seal(sealed, colour="red")
    assert (sealed / "META.json").read_bytes() == before  # neither it nor a PROGRESS.json is content


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("a", b"some Bytes", "a has a wrong checksum"),
        ("a", b"some", "a has a wrong checksum"),
        ("b", b"x", "b has a wrong checksum"),
        ("a", None, "FileNotFoundError"),
        ("META.json", None, "no META.json"),
        ("META.json", b"", "JSONDecodeError"),
        ("META.json", b"\xff", "UnicodeDecodeError"),
        ("META.json", b"[]", "TypeError"),
        ("META.json", b"3", "TypeError"),
        ("META.json", b"{}", "KeyError"),
        ("META.json", b"[" * 100_000, "RecursionError"),
        ("META.json", b'{"format": 0, "sha256": {"b": ""}}', "META.json is malformed"),
        ("META.json", b'{"format": FORMAT, "sha256": {}}', "META.json is malformed"),
        ("META.json", b'{"format": FORMAT, "sha256": [1]}', "AttributeError"),
        ("META.json", b'{"format": FORMAT, "sha256": {"a": 3}}', "a has a wrong checksum"),
    ],
)
def test_what_differs_is_said(sealed, file, content, said):
    if content is None:
        (sealed / file).unlink()
    else:
        (sealed / file).write_bytes(content.replace(b"FORMAT", str(module.FORMAT).encode()))
    assert said in fault(sealed)
    assert "\n" not in fault(sealed)


def test_what_is_no_directory_is_a_fault(tmp_path):
    (tmp_path / "file").write_text("")
    assert fault(tmp_path / "file")
    assert fault(tmp_path / "missing")


def test_an_entry_is_what_was_prepared(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("w1 w2\n\nw5\n\nw6 w7 w8")
    made = prepare(Corpus((tmp_path / "a.txt",)), tmp_path / "cache", 0.0, tokenizer)
    (entry,) = (tmp_path / "cache").iterdir()
    opened = open_entry(entry)
    arrays = {f"{split}.{part}" for split in ("train", "held_out") for part in ("tokens", "offsets")}
    words = {"tokenizer.json", "tokenizer_config.json", "vocab.txt"}
    assert {file.name for file in entry.iterdir()} == arrays | words | {"hashes", "counts", "META.json"}
    assert opened.train.tokens[:].tolist() == [1, 2, 41, 5, 41, 6, 7, 8, 41]
    assert opened.train.offsets[:].tolist() == [0, 3, 5, 9]
    assert opened.held_out.offsets[:].tolist() == [0]
    assert (len(opened.train), len(opened.held_out)) == (3, 0)
    assert opened.train.stem == entry / "train"
    assert opened.held_out.stem == entry / "held_out"
    assert isinstance(opened.train.tokens, FileArray)  # and no mapping
    assert opened.fingerprint == made.fingerprint
    assert entry_fault(entry) == ""


# -- files that are whole or not there ------------------------------------------------------------------


@pytest.mark.parametrize("fails", ["open", "fsync", "replace"])
def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch, fails):
    file = tmp_path / "x.json"
    write_whole(file, "before")

    def broken(*args, **kwargs):
        raise OSError(errno.EFBIG, "broken")  # as the system says it, without a name

    with monkeypatch.context() as patch:
        patch.setattr(files.Path if fails != "fsync" else os, fails, broken)
        with pytest.raises(OSError, match="broken") as error:
            write_whole(file, "after")
    assert error.value.filename == str(file)
    assert file.read_text() == "before"
    write_whole(file, "after")
    assert file.read_text() == "after"
    assert [f.name for f in tmp_path.iterdir()] == ["x.json"]


def test_a_whole_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Else a power cut could leave the name and no bytes."""
    done = []
    monkeypatch.setattr(os, "fsync", lambda handle: done.append(("sync", os.readlink(f"/proc/self/fd/{handle}"))))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: done.append(("replace", str(a))) or replace(a, b))
    write_json(tmp_path / "x", {"ä": [1]})
    own = done[0][1]
    assert re.fullmatch(r"\.x\.[0-9a-f]{8}\.tmp", Path(own).name)
    assert done == [("sync", own), ("replace", own), ("sync", str(tmp_path))]
    assert json.loads((tmp_path / "x").read_text(encoding="utf-8")) == {"ä": [1]}


def test_many_may_write_the_same_file(tmp_path):
    """Each into a file of its own beside it: whoever is the last, the file is one of theirs, and whole."""
    file = tmp_path / "x"
    contents = {str(number) * (1 << 16) for number in range(8)}
    with ThreadPoolExecutor(8) as pool:
        written = [pool.submit(write_whole, file, content) for _ in range(20) for content in contents]
        while not all(each.done() for each in written):
            assert not file.exists() or file.read_text() in contents
        for each in written:
            each.result()
    assert file.read_text() in contents
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_what_the_dead_left_of_a_file_is_removed_and_nothing_else(tmp_path):
    """Who is writing it now has begun less than an hour ago."""
    file, old = tmp_path / "x.json", time.time() - 2 * files.STALE
    for name in (".x.json.01234567.tmp", ".x.json.tmp", ".x.json.0123456g.tmp", "x.json.01234567.tmp"):
        (tmp_path / name).write_text("half")
    (tmp_path / ".y.json.01234567.tmp").write_text("another file's")
    (tmp_path / ".x.json.89abcdef.tmp").symlink_to("elsewhere")
    (tmp_path / ".x.json.bbbbbbbb.tmp").mkdir()
    before = {path.name for path in tmp_path.iterdir()}
    for name in before:
        os.utime(tmp_path / name, (old, old), follow_symlinks=False)
    (tmp_path / ".x.json.aaaaaaaa.tmp").write_text("being written")
    write_whole(file, "whole")
    kept = before - {".x.json.01234567.tmp"}
    assert {path.name for path in tmp_path.iterdir()} == kept | {".x.json.aaaaaaaa.tmp", "x.json"}


def test_a_file_that_is_replaced_is_read_by_whom_it_was(tmp_path):
    file = tmp_path / "x"
    write_whole(file, "new")
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~umask
    file.chmod(0o600)
    write_whole(file, "private")
    assert (stat.S_IMODE(file.stat().st_mode), file.read_text()) == (0o600, "private")


def test_a_directory_that_may_not_be_read_is_written(tmp_path, monkeypatch):
    def refused(path):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(files, "sync_entry", refused)
    write_whole(tmp_path / "x", "whole")
    assert (tmp_path / "x").read_text() == "whole"


def test_a_name_may_be_as_long_as_names_are(tmp_path):
    file = tmp_path / ("ä" * 127)  # 254 bytes, and 255 are the most
    write_whole(file, "x")
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_sync_reaches_every_file(tmp_path, monkeypatch):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "file").write_text("x")
    done = []
    monkeypatch.setattr(os, "fsync", lambda handle: done.append(os.readlink(f"/proc/self/fd/{handle}")))
    files.sync(tmp_path)
    assert sorted(done) == sorted(map(str, [tmp_path, *tmp_path.rglob("*")]))

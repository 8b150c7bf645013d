"""Text is tokenised once, an interruption does not show in what comes out, a cache is believed while it is whole."""

import errno
import gzip
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from minilm.data import corpus as corpus_module
from minilm.data import prepare as module
from minilm.data.corpus import Corpus, document_hash, is_held_out
from minilm.data.packing import pack
from minilm.data.prepare import prepare
from minilm.data.tokenizer import SPECIALS, Tokenizer
from minilm.errors import ConfigError, DataError
from minilm.pretraining import report
from minilm.pretraining.report import corpus_report


@pytest.fixture
def corpus(tmp_path, prose):
    file = tmp_path / "prose.txt"
    file.write_text("\n\n".join(prose), encoding="utf-8")
    return Corpus((file,))


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def held(text: str, fraction: float) -> bool:
    return is_held_out(document_hash(text), fraction)


def documents_of(shard, sep: int) -> list[list[int]]:
    found = []
    for d in range(len(shard)):
        own = shard.tokens[shard.offsets[d] : shard.offsets[d + 1]].tolist()
        assert own[-1] == sep
        found.append(own[:-1])
    assert shard.offsets[0] == 0
    assert shard.offsets[-1] == len(shard.tokens)
    return found


def content(directory: Path) -> dict[str, bytes]:
    """Every file below a directory, by its path there."""
    return {f.relative_to(directory).as_posix(): f.read_bytes() for f in directory.rglob("*") if f.is_file()}


def is_one_line(error: BaseException) -> bool:
    return "\n" not in str(error) and len(str(error)) > 0


# -- what is in an entry --------------------------------------------------------------------------------


def test_the_splits_are_the_documents(corpus, cache, prose, monkeypatch):
    monkeypatch.setattr(module, "DOCUMENTS_AT_ONCE", 7)  # several rounds, the last one short
    got = prepare(corpus, cache, 0.2, vocab_size=256)
    t = got.tokenizer
    train = [d for d in prose if not held(d, 0.2)]
    held_out = [d for d in prose if held(d, 0.2)]
    assert len(train) > 200
    assert len(held_out) > 30
    for shard, texts in ((got.train, train), (got.held_out, held_out)):
        ids = documents_of(shard, t.sep_id)
        assert ids == [t.encode(text).input_ids[1:-1] for text in texts]
        assert shard.tokens.dtype == np.uint16
    assert t.decode(documents_of(got.train, t.sep_id)[3]) == train[3].lower()
    assert got.counts.tolist() == np.bincount(got.train.tokens[:], minlength=256).tolist()
    assert got.counts.shape == (t.vocab_size,) == (256,)
    assert got.hashes[:].tolist() == [document_hash(text) for text in prose]
    assert got.hashes.dtype == np.uint64
    assert t.lowercase


def test_the_vocabulary_comes_from_the_training_split_alone(tmp_path, cache, prose):
    texts = prose + [f"{text} ЖЖЖЖ" for text in prose if held(f"{text} ЖЖЖЖ", 0.3)]
    (tmp_path / "a.txt").write_text("\n\n".join(texts), encoding="utf-8")
    got = prepare(Corpus((tmp_path / "a.txt",)), cache, 0.3, vocab_size=256)
    assert got.tokenizer.unk_id in got.held_out.tokens[:]
    assert got.tokenizer.unk_id not in got.train.tokens[:]


def test_the_tokenizer_is_given_so_many_characters_at_once(corpus, cache, tokenizer, monkeypatch):
    """Whatever the documents' length, so that memory does not grow with it; and the tokens are the same."""
    given, encode = [], Tokenizer.encode_documents
    monkeypatch.setattr(Tokenizer, "encode_documents", lambda self, texts: given.append(texts) or encode(self, texts))
    whole = prepare(corpus, cache / "a", 0.1, tokenizer)
    assert len(given) == 1
    monkeypatch.setattr(module, "CHARS_AT_ONCE", 100)
    cut = prepare(corpus, cache / "b", 0.1, tokenizer)
    assert [text for texts in given[1:] for text in texts] == given[0]
    assert all(sum(map(len, texts[:-1])) < 100 for texts in given[1:])
    assert cut.fingerprint == whole.fingerprint


@pytest.mark.parametrize("extra", [65_530, 65_536])
def test_more_than_65536_words_take_uint32(tmp_path, cache, extra):
    file = tmp_path / "vocab.txt"
    file.write_text("\n".join([*SPECIALS, "word", *(f"q{i}" for i in range(extra))]) + "\n", encoding="utf-8")
    text = tmp_path / "a.txt"
    text.write_text(f"word q{extra - 1} q0", encoding="utf-8")
    got = prepare(Corpus((text,)), cache, 0.0, Tokenizer.load(file))
    assert got.train.tokens.dtype == (np.uint16 if extra + 6 <= 65_536 else np.uint32)
    assert got.train.tokens[:].tolist() == [5, extra + 5, 6, 3]
    assert got.counts.nonzero()[0].tolist() == [3, 5, 6, extra + 5]
    assert got.held_out.tokens.dtype == got.train.tokens.dtype
    assert (len(got.held_out), len(got.held_out.tokens)) == (0, 0)


def test_a_shrunken_vocabulary_is_noted_from_the_cache_too(corpus, cache):
    notes = [prepare(corpus, cache, 0.1, vocab_size=1 << 15).note for _ in range(2)]
    assert "shrunk from 32,768" in notes[0]
    assert notes[0] == notes[1]


def test_an_exact_size_is_the_same_entry_and_refused_where_the_text_does_not_support_it(corpus, cache):
    with pytest.raises(DataError, match=r"--vocab-size 32768: the text supports \d+ at most") as error:
        prepare(corpus, cache, 0.1, vocab_size=1 << 15, exact_vocab=True)
    assert is_one_line(error.value)
    assert not list(cache.iterdir())
    shrunk = prepare(corpus, cache, 0.1, vocab_size=1 << 15)
    assert shrunk.tokenizer.vocab_size < 1 << 15
    with pytest.raises(DataError, match=f"--vocab-size 32768: the text supports {shrunk.tokenizer.vocab_size} at most"):
        prepare(corpus, cache, 0.1, vocab_size=1 << 15, exact_vocab=True)  # now from the cache
    said = []
    exact = prepare(corpus, cache, 0.1, vocab_size=256)
    assert prepare(corpus, cache, 0.1, vocab_size=256, exact_vocab=True, say=said.append).hashes[:].tolist() == (
        exact.hashes[:].tolist()
    )
    assert said == []


def test_a_disk_that_is_full_when_rows_are_packed_is_one_line(corpus, cache, monkeypatch):
    data = prepare(corpus, cache, 0.1, vocab_size=256)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("minilm.data.packing._write_pieces", full)
    with pytest.raises(ConfigError, match=f"--cache-dir {cache}: cannot be written .No space left on device.; fix"):
        pack(data.train, "documents", 32, data.tokenizer)


def test_an_embedded_source_that_cannot_be_read_is_named(cache, tmp_path, monkeypatch):
    (tmp_path / "a.py").mkdir()
    monkeypatch.setattr(corpus_module, "embedded_sources", lambda: iter([("a", tmp_path / "a.py")]))
    with pytest.raises(DataError, match=r"a\.py: cannot be read .Is a directory."):
        prepare(None, cache, 0.0, vocab_size=64)


def test_without_a_corpus_it_is_the_embedded_one(cache, tmp_path, monkeypatch):
    source = tmp_path / "a.py"
    source.write_text('"""' + "what this module does, at some length. " * 5 + '"""')
    monkeypatch.setattr(corpus_module, "embedded_sources", lambda: iter([("a", source)]))
    monkeypatch.setattr(corpus_module, "topics", {f"t{i}": f"topic number {i} of the language" for i in range(50)})
    got = prepare(None, cache, 0.0, vocab_size=64)
    assert len(got.train) == 51
    assert sorted(f.name.split("-")[0] for f in cache.iterdir()) == ["documentation", "tokens"]


# -- the cache ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [False, True])
def test_the_second_time_comes_from_the_cache(corpus, cache, tokenizer, monkeypatch, given):
    settings = {"tokenizer": tokenizer} if given else {"vocab_size": 256}
    first = prepare(corpus, cache, 0.1, **settings)
    said = []

    def never(*args, **kwargs):
        raise AssertionError("worked again")

    for owner, name in (
        (module, "_tokenise"), (module, "seal"), (Tokenizer, "train"), (Tokenizer, "encode_documents"),
        (Corpus, "documents"), (Corpus, "numbered"),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, never)
    second = prepare(corpus, cache, 0.1, say=said.append, **settings)
    assert said == []
    assert second.fingerprint == first.fingerprint
    assert second.note == first.note
    assert second.tokenizer.fingerprint() == first.tokenizer.fingerprint()
    for name in ("train", "held_out"):
        a, b = getattr(first, name), getattr(second, name)
        assert a.tokens[:].tolist() == b.tokens[:].tolist()
        assert a.offsets[:].tolist() == b.offsets[:].tolist()
    assert first.hashes[:].tolist() == second.hashes[:].tolist()
    assert first.counts.tolist() == second.counts.tolist()
    assert len(list(cache.iterdir())) == 1


def test_whatever_decides_the_content_makes_another_entry(corpus, cache, tokenizer, prose):
    def made(**changes) -> str:
        return prepare(
            **{"corpus": corpus, "cache_dir": cache, "held_out_frac": 0.1, "vocab_size": 128} | changes
        ).fingerprint

    first = made()
    others = [made(held_out_frac=0.2), made(vocab_size=64), made(lowercase=False), made(tokenizer=tokenizer)]
    corpus.files[0].write_text("\n\n".join(prose[:-1]), encoding="utf-8")
    others.append(made())
    assert len({first, *others}) == 6
    assert len(list(cache.iterdir())) == 6


@pytest.mark.parametrize("what", ["hashes", "train.tokens"])
@pytest.mark.parametrize("how", ["appended", "changed"])
def test_what_another_process_has_written_meanwhile_is_no_cache(corpus, cache, tokenizer, monkeypatch, what, how):
    """As of another machine, where a file system's locks are each machine's own."""
    whole = module._Writer.__exit__

    def meddled(self, *of):
        whole(self, *of)
        (file,) = cache.glob(f"*.partial/{what}")
        file.write_bytes(file.read_bytes() + b"\0" * 8 if how == "appended" else b"\xff" + file.read_bytes()[1:])

    with monkeypatch.context() as patch:
        patch.setattr(module._Writer, "__exit__", meddled)
        with pytest.raises(ConfigError, match="another process has written there, too"):
            prepare(corpus, cache, 0.1, tokenizer)
    assert [path.suffix for path in cache.iterdir()] == [".partial"]
    again = prepare(corpus, cache, 0.1, tokenizer)
    assert len(again.hashes) == len(again.train) + len(again.held_out)


FILES = ["train.tokens", "held_out.offsets", "hashes", "counts", "tokenizer.json", "vocab.txt", "META.json"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("how", ["changed", "cut", "gone"])
def test_a_damaged_entry_is_said_and_made_anew(corpus, cache, tokenizer, file, how):
    first = prepare(corpus, cache, 0.1, tokenizer)
    tokens = first.train.tokens[:].tolist()
    (entry,) = cache.iterdir()
    whole = (entry / file).read_bytes()
    damaged = {"changed": b"\xff" + whole[1:], "cut": whole[: len(whole) // 2]}
    (entry / file).unlink()
    if how != "gone":
        (entry / file).write_bytes(damaged[how])
    said = []
    again = prepare(corpus, cache, 0.1, tokenizer, say=said.append)
    assert "is damaged" in said[0]
    assert str(entry) in said[0]
    assert file in said[0] or file == "META.json"
    assert all("\n" not in line for line in said)
    assert (entry / file).read_bytes() == whole
    assert again.train.tokens[:].tolist() == tokens
    quiet = []
    prepare(corpus, cache, 0.1, tokenizer, say=quiet.append)
    assert quiet == []


@pytest.mark.parametrize("meta", ["[]", "{}", "3", '{"sha256": 3}'])
def test_a_meta_file_of_another_form_is_damage(corpus, cache, tokenizer, meta):
    prepare(corpus, cache, 0.1, tokenizer)
    (entry,) = cache.iterdir()
    (entry / "META.json").write_text(meta)
    said = []
    prepare(corpus, cache, 0.1, tokenizer, say=said.append)
    assert "is damaged" in said[0]
    assert "sha256" in json.loads((entry / "META.json").read_text())


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "uint17"}, {"dtype": "uint32"}, {"dtype": None}, {"note": 3}, {"format": 1},
        {"sha256": {}}, {"sha256": []}, {"sha256": None},
    ],
    ids=str,
)  # fmt: skip
def test_a_cache_whose_description_is_damaged_is_made_anew(corpus, cache, change):
    first, said = prepare(corpus, cache, 0.1, vocab_size=128), []
    file = next(cache.glob("tokens-*")) / "META.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    again = prepare(corpus, cache, 0.1, vocab_size=128, say=said.append)
    assert "is damaged" in said[0]
    assert again.fingerprint == first.fingerprint


@pytest.mark.parametrize("name", ["hashes", "train.tokens", "tokenizer.json"])
def test_a_description_that_leaves_a_file_out_is_damage(corpus, cache, tokenizer, name):
    """What no checksum covers could be anything."""
    prepare(corpus, cache, 0.1, tokenizer)
    (entry,) = cache.iterdir()
    meta = json.loads((entry / "META.json").read_text())
    del meta["sha256"][name]
    (entry / "META.json").write_text(json.dumps(meta))
    said = []
    prepare(corpus, cache, 0.1, tokenizer, say=said.append)
    assert "is damaged" in said[0]
    assert name in said[0]


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_cache_entry_that_is_no_directory_is_made_anew(corpus, cache, tmp_path, kind):
    first = prepare(corpus, cache, 0.1, vocab_size=128)
    entry = next(cache.glob("tokens-*"))
    entry.rename(tmp_path / "moved")
    (tmp_path / "moved" / "counts").unlink()
    entry.write_text("x") if kind == "file" else entry.symlink_to(tmp_path / "moved")
    assert prepare(corpus, cache, 0.1, vocab_size=128).fingerprint == first.fingerprint
    assert (tmp_path / "moved").exists()


# -- what a user can mend -------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "\n \n\n\t\n"])
def test_no_text_is_refused(tmp_path, cache, tokenizer, text):
    file = tmp_path / "blank.txt"
    file.write_text(text)
    with pytest.raises(DataError, match="no text in it") as error:
        prepare(Corpus((file,)), cache, 0.1, tokenizer)
    assert str(file) in str(error.value)
    assert not cache.exists() or not list(cache.iterdir())


def test_too_little_text_for_a_vocabulary_is_refused(tmp_path, cache):
    file = tmp_path / "short.txt"
    file.write_text("hello hello")
    with pytest.raises(DataError, match="give more text"):
        prepare(Corpus((file,)), cache, 0.0)
    assert not cache.exists() or not list(cache.iterdir())


def test_a_bad_line_leaves_nothing_to_go_on_from(tmp_path, cache, tokenizer, monkeypatch):
    """Mended, it is another corpus."""
    monkeypatch.setattr(module, "DOCUMENTS_AT_ONCE", 2)
    monkeypatch.setattr(module, "DURABLE_EVERY", 1)
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "w1 w2"}\n' * 20 + "bad\n")
    with pytest.raises(DataError, match=r"a\.jsonl:21: not JSON"):
        prepare(Corpus((file,)), cache, 0.1, tokenizer)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("how", ["appended", "touched", "replaced", "gone"])
@pytest.mark.parametrize("number", [0, 1])
def test_a_file_that_changes_while_it_is_read_is_named(tmp_path, cache, tokenizer, monkeypatch, how, number):
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for file in files:
        file.write_text("w1 w2\n\nw3\n\n" * 20)
    encode = Tokenizer.encode_documents

    def meddling(self, texts):
        file = files[number]
        if how == "appended":
            with file.open("a") as stream:
                stream.write("w4\n")
        elif how == "touched":
            os.utime(file, ns=(1, 1))
        elif how == "gone":
            file.unlink()
        else:
            file.with_name("new").write_bytes(file.read_bytes())
            os.utime(file.with_name("new"), ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
            file.with_name("new").replace(file)
        return encode(self, texts)

    with monkeypatch.context() as patch:
        patch.setattr(Tokenizer, "encode_documents", meddling)
        with pytest.raises(DataError) as error:
            prepare(Corpus(tuple(files)), cache, 0.1, tokenizer)
    assert str(error.value).startswith(str(files[number]))
    assert ("cannot be read" if how == "gone" else "changed while it was read") in str(error.value)
    assert is_one_line(error.value)
    left = [path.suffix for path in cache.iterdir()]
    assert left == ([".partial"] if how == "gone" else [])  # to go on from when it can be read again
    if how != "gone":
        assert len(prepare(Corpus(tuple(files)), cache, 0.1, tokenizer).hashes) == 80 + (how == "appended")


def test_a_cache_directory_that_cannot_be_is_one_line(corpus, tokenizer, tmp_path):
    (tmp_path / "file").write_text("")
    for cache in (tmp_path / "file", tmp_path / "file" / "deeper", Path("/proc/nothing/here")):
        with pytest.raises(ConfigError, match=f"--cache-dir {cache}: cannot be written") as error:
            prepare(corpus, cache, 0.1, tokenizer)
        assert is_one_line(error.value)
    with pytest.raises(ConfigError, match=f"--cache-dir {tmp_path}/file: cannot be written"):
        prepare(None, tmp_path / "file", 0.1, tokenizer)


def test_a_home_that_nobody_knows_is_one_line(corpus, tokenizer):
    with pytest.raises(ConfigError, match="--cache-dir ~no-such-user-here/x") as error:
        prepare(corpus, Path("~no-such-user-here/x"), 0.1, tokenizer)
    assert is_one_line(error.value)


def test_the_cache_may_be_below_the_home(corpus, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    prepare(corpus, Path("~/cache"), 0.1, tokenizer)
    assert len(list((tmp_path / "home" / "cache").iterdir())) == 1


# -- interrupted ----------------------------------------------------------------------------------------


class Killed(BaseException):
    """No handler may take it for an error."""


def killed(*args, **kwargs):
    raise Killed


class Mortal:
    """Counts whatever a preparation does to the disk or has done by the tokenizer, and fails at number `at`.

    error None: a kill. From there on every other such call fails, too, so that nothing is cleaned up. Otherwise that
    one call raises the error, and the program goes on. A write of a whole file fails in its middle.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.count, self.at, self.error, self.dead = 0, None, None, False
        for owner, names in (
            (os, ("rename", "replace", "mkdir", "rmdir", "unlink", "truncate")),
            (Path, ("write_text", "write_bytes")),
            (Tokenizer, ("encode_documents",)),
            (module, ("seal",)),
            (module._Writer, ("add", "flush")),
        ):
            for name in names:
                patch.setattr(owner, name, self._counted(getattr(owner, name), torn=name.startswith("write")))
        patch.setattr(os, "fsync", self._counted(lambda handle: None, torn=False))  # slow, and not seen from inside

    def _counted(self, call, torn: bool):
        def wrapper(*args, **kwargs):
            if self.dead:
                raise Killed
            self.count += 1
            if self.count - 1 != self.at:
                return call(*args, **kwargs)
            if torn:
                call(args[0], args[1][: len(args[1]) // 2], *args[2:], **kwargs)
            self.dead = self.error is None
            raise self.error or Killed

        return wrapper

    def run(self, at: int | None, error: BaseException | None, work) -> int:
        """How many calls `work` makes, failing at number `at` of them."""
        self.count, self.at, self.error, self.dead = 0, at, error, False
        try:
            work()
        finally:
            self.at, self.dead = None, False
        return self.count


@pytest.fixture
def mortal(monkeypatch, tmp_path):
    """(a Mortal, work(cache)): 17 documents in two files, 3 at once, durable after every 2 batches."""
    monkeypatch.setattr(module, "DOCUMENTS_AT_ONCE", 3)
    monkeypatch.setattr(module, "DURABLE_EVERY", 2)
    rng = random.Random(3)
    texts = [" ".join(f"w{rng.randrange(100)}" for _ in range(rng.randint(1, 9))) for _ in range(17)]
    (tmp_path / "a.txt").write_text("\n\n".join(texts[:10]))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[10:]))
    corpus = Corpus((tmp_path / "a.txt", tmp_path / "b.jsonl"))
    with monkeypatch.context() as patch:
        yield Mortal(patch), corpus


def test_killed_anywhere_the_next_run_makes_the_same_bytes(mortal, tokenizer, tmp_path):
    clock, corpus = mortal
    total = clock.run(None, None, lambda: prepare(corpus, tmp_path / "whole", 0.3, tokenizer))
    assert total > 80
    wanted = content(tmp_path / "whole")
    bad = {}
    for at in range(total):
        cache = tmp_path / f"killed-{at}"
        with pytest.raises(Killed):
            clock.run(at, None, lambda cache=cache: prepare(corpus, cache, 0.3, tokenizer))
        prepare(corpus, cache, 0.3, tokenizer)
        if (got := content(cache)) != wanted:
            bad[at] = sorted(name for name in got.keys() | wanted.keys() if got.get(name) != wanted.get(name))
        shutil.rmtree(cache)
    assert bad == {}  # killed at which call: the files that differ


@pytest.mark.parametrize("seed", range(12))
def test_killed_again_and_again_it_makes_the_same_bytes(mortal, tokenizer, tmp_path, seed):
    clock, corpus = mortal
    total = clock.run(None, None, lambda: prepare(corpus, tmp_path / "whole", 0.3, tokenizer))
    rng, kills = random.Random(seed), 0
    for _ in range(200):
        try:
            clock.run(rng.randrange(total), None, lambda: prepare(corpus, tmp_path / "cache", 0.3, tokenizer))
            break
        except Killed:
            kills += 1
    assert kills > 0
    assert content(tmp_path / "cache") == content(tmp_path / "whole")


@pytest.mark.parametrize("moment", ["open", "fsync", "replace"])
def test_killed_while_the_entry_is_described_the_entry_is_believed_later(
    corpus, cache, tokenizer, tmp_path, monkeypatch, moment
):
    """What a half-written META.json leaves is no part of the entry, whose description would else name a file that is
    gone, and the whole work be thrown away at the next start."""
    prepare(corpus, tmp_path / "whole", 0.1, tokenizer)
    with monkeypatch.context() as patch:
        owner = Path if moment == "open" else os
        call, last = getattr(owner, moment), []

        def killed(*args, **kwargs):
            if args[0].name.startswith(".META.json.") if moment == "open" else any(cache.glob("*/.META.json.*.tmp")):
                if moment == "open":
                    with call(*args, **kwargs) as stream:
                        stream.write(b'{"half')
                last.append(1)
                raise Killed
            return call(*args, **kwargs)

        patch.setattr(owner, moment, killed)
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # the dead tidy nothing up
        with pytest.raises(Killed):
            prepare(corpus, cache, 0.1, tokenizer)
    assert last
    said = []
    prepare(corpus, cache, 0.1, tokenizer, say=said.append)
    assert said == ["resuming tokenising after 0 documents"]
    said.clear()
    prepare(corpus, cache, 0.1, tokenizer, say=said.append)
    assert said == []
    assert content(cache) == content(tmp_path / "whole")


def test_killed_while_a_vocabulary_is_made_it_makes_the_same_bytes(corpus, cache, tmp_path, monkeypatch):
    prepare(corpus, tmp_path / "whole", 0.1, vocab_size=128)
    for owner, name in ((Tokenizer, "train"), (Tokenizer, "save"), (module, "write_json"), (module, "seal")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, killed)
            with pytest.raises(Killed):
                prepare(corpus, cache, 0.1, vocab_size=128)
        assert [f.suffix for f in cache.iterdir()] == [".partial"]
    prepare(corpus, cache, 0.1, vocab_size=128)
    assert content(cache) == content(tmp_path / "whole")


def test_a_full_disk_is_one_line_and_the_next_run_goes_on(mortal, tokenizer, tmp_path):
    clock, corpus = mortal
    total = clock.run(None, None, lambda: prepare(corpus, tmp_path / "whole", 0.3, tokenizer))
    wanted = content(tmp_path / "whole")
    bad = {}
    for at in range(total):
        cache = tmp_path / f"full-{at}"
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with pytest.raises(ConfigError) as error:
            clock.run(at, full, lambda cache=cache: prepare(corpus, cache, 0.3, tokenizer))
        assert str(error.value).startswith(
            f"--cache-dir {cache}: cannot be written (No space left on device); fix that"
        )
        assert is_one_line(error.value)
        prepare(corpus, cache, 0.3, tokenizer)
        if (got := content(cache)) != wanted:
            bad[at] = sorted(name for name in got.keys() | wanted.keys() if got.get(name) != wanted.get(name))
        shutil.rmtree(cache)
    assert bad == {}


@pytest.mark.parametrize("room", [300, 2000, 20_000, 40_000])
def test_a_disk_that_really_refuses_is_one_line_and_the_next_run_goes_on(prose, tmp_path, monkeypatch, room):
    """A limit on a file's size stands for the full disk: what stays in buffers must not turn up in the entry later."""
    monkeypatch.setattr(module, "DOCUMENTS_AT_ONCE", 10)
    monkeypatch.setattr(module, "DURABLE_EVERY", 3)
    file = tmp_path / "prose.txt"
    file.write_text("\n\n".join(prose), encoding="utf-8")
    corpus, cache = Corpus((file,)), tmp_path / "cache"
    t = Tokenizer.train(prose, 128)
    prepare(corpus, tmp_path / "whole", 0.1, t)
    sizes = {name: len(data) for name, data in content(tmp_path / "whole").items()}
    assert max(sizes.values()) > room
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(ConfigError, match="--cache-dir") as error:
            prepare(corpus, cache, 0.1, t)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert is_one_line(error.value)
    assert [f.suffix for f in cache.iterdir()] == [".partial"]
    prepare(corpus, cache, 0.1, t)
    del error  # and with it the frames of what failed
    assert content(cache) == content(tmp_path / "whole")


@pytest.mark.parametrize(("every", "killed_at"), [(1, 13), (4, 13), (4, 3), (1, 0)])
def test_what_was_done_is_not_done_again(corpus, cache, prose, monkeypatch, every, killed_at):
    """Neither the vocabulary nor a document: all but those since the last durable batch are skipped."""
    monkeypatch.setattr(module, "DOCUMENTS_AT_ONCE", 10)
    monkeypatch.setattr(module, "DURABLE_EVERY", every)
    calls, encode = [], Tokenizer.encode_documents

    def counted(self, texts):
        if len(calls) == killed_at:
            raise KeyboardInterrupt
        calls.append(list(texts))
        return encode(self, texts)

    with monkeypatch.context() as patch:
        patch.setattr(Tokenizer, "encode_documents", counted)
        with pytest.raises(KeyboardInterrupt):
            prepare(corpus, cache, 0.1, vocab_size=128)
    assert [text for texts in calls for text in texts] == prose[: 10 * killed_at]
    done = killed_at // every * every * 10
    said, calls, killed_at = [], [], None

    def never(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr(Tokenizer, "train", never)
    monkeypatch.setattr(Tokenizer, "encode_documents", counted)
    got = prepare(corpus, cache, 0.1, vocab_size=128, say=said.append)
    assert [text for texts in calls for text in texts] == prose[done:]
    assert said == [f"resuming tokenising after {done} documents"]
    assert got.hashes[:].tolist() == [document_hash(text) for text in prose]


def test_what_was_written_before_a_kill_is_believed_by_its_checksum(corpus, cache, tokenizer, monkeypatch, tmp_path):
    partial = durable_then_killed(corpus, cache, tokenizer, monkeypatch)
    tokens = bytearray((partial / "train.tokens").read_bytes())
    tokens[10] ^= 1
    (partial / "train.tokens").write_bytes(tokens)
    said = []
    prepare(corpus, cache, 0.1, tokenizer, say=said.append)
    assert said == ["tokenising"]  # from the beginning
    prepare(corpus, tmp_path / "whole", 0.1, tokenizer)
    assert content(cache) == content(tmp_path / "whole")


def test_nothing_is_kept_of_a_damaged_file(tmp_path, cache, tokenizer):
    file = tmp_path / "a.txt.gz"
    damaged = bytearray(gzip.compress(b"w1 w2 w3"))
    damaged[-8] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(DataError, match="damaged"):
        prepare(Corpus((file,)), cache, 0.1, tokenizer)
    assert list(cache.iterdir()) == []


def test_going_on_in_a_later_file_does_not_open_the_earlier_ones(tmp_path, cache, tokenizer, monkeypatch):
    monkeypatch.setattr(module, "DOCUMENTS_AT_ONCE", 4)
    monkeypatch.setattr(module, "DURABLE_EVERY", 1)
    files = [tmp_path / f"{i}.txt" for i in range(3)]
    for i, file in enumerate(files):
        file.write_text("\n\n".join(f"w{i} w{n}" for n in range(10)))
    read, opened = corpus_module.documents_of, []
    monkeypatch.setattr(
        corpus_module, "documents_of", lambda file, field: opened.append(file.name) or read(file, field)
    )
    with monkeypatch.context() as patch:
        patch.setattr(module, "seal", killed)
        with pytest.raises(Killed):
            prepare(Corpus(tuple(files)), cache, 0.1, tokenizer)
    (partial,) = cache.iterdir()
    progress = json.loads((partial / "PROGRESS.json").read_text())
    assert (progress["file"], progress["document"], progress["documents"]) == (2, 10, 30)
    opened.clear()
    prepare(Corpus(tuple(files)), cache, 0.1, tokenizer)
    assert opened == ["2.txt"]


def durable_then_killed(corpus, cache, tokenizer, patch) -> Path:
    """The partial directory of a run killed when 100 of the documents are done."""
    patch.setattr(module, "DOCUMENTS_AT_ONCE", 10)
    patch.setattr(module, "DURABLE_EVERY", 5)
    encode, calls = Tokenizer.encode_documents, []

    def killed(self, texts):
        calls.append(1)
        if len(calls) == 13:
            raise Killed
        return encode(self, texts)

    with patch.context() as inner:
        inner.setattr(Tokenizer, "encode_documents", killed)
        with pytest.raises(Killed):
            prepare(corpus, cache, 0.1, tokenizer)
    (partial,) = cache.iterdir()
    assert json.loads((partial / "PROGRESS.json").read_text())["documents"] == 100
    return partial


@pytest.mark.parametrize("file", module.GROWING)
@pytest.mark.parametrize("how", ["cut", "gone"])
def test_a_partial_directory_with_a_file_cut_short_is_begun_anew(
    corpus, cache, tokenizer, tmp_path, file, how, monkeypatch
):
    prepare(corpus, tmp_path / "whole", 0.1, tokenizer)
    partial = durable_then_killed(corpus, cache, tokenizer, monkeypatch)
    size = json.loads((partial / "PROGRESS.json").read_text())["sizes"][file]
    (partial / file).unlink() if how == "gone" else os.truncate(partial / file, size - 1)
    said = []
    prepare(corpus, cache, 0.1, tokenizer, say=said.append)
    assert said == ["tokenising"]
    assert content(cache) == content(tmp_path / "whole")


@pytest.mark.parametrize("text", ["", "[]", "{}", "3", '{"file": 0}', "gone", "\x00" * 300, '{"sizes": 3}'])
def test_a_progress_file_of_another_form_is_begun_anew(corpus, cache, tokenizer, tmp_path, text, monkeypatch):
    prepare(corpus, tmp_path / "whole", 0.1, tokenizer)
    file = durable_then_killed(corpus, cache, tokenizer, monkeypatch) / "PROGRESS.json"
    if text == '{"sizes": 3}':
        text = json.dumps(json.loads(file.read_text()) | {"sizes": 3})
    file.unlink() if text == "gone" else file.write_text(text)
    said = []
    prepare(corpus, cache, 0.1, tokenizer, say=said.append)
    assert said == ["tokenising"]
    assert content(cache) == content(tmp_path / "whole")


def test_what_was_written_after_the_last_durable_moment_is_cut_off(corpus, cache, tokenizer, tmp_path, monkeypatch):
    prepare(corpus, tmp_path / "whole", 0.1, tokenizer)
    partial = durable_then_killed(corpus, cache, tokenizer, monkeypatch)
    for name in module.GROWING:
        with (partial / name).open("ab") as stream:
            stream.write(b"half a number: \x01\x02\x03")
    said = []
    prepare(corpus, cache, 0.1, tokenizer, say=said.append)
    assert said == ["resuming tokenising after 100 documents"]
    assert content(cache) == content(tmp_path / "whole")


def test_killed_between_the_seal_and_its_place_nothing_is_tokenised_again(
    corpus, cache, tokenizer, tmp_path, monkeypatch
):
    prepare(corpus, tmp_path / "whole", 0.1, tokenizer)
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", killed)
        with pytest.raises(Killed):
            prepare(corpus, cache, 0.1, tokenizer)
    monkeypatch.setattr(Tokenizer, "encode_documents", lambda *args: pytest.fail("tokenised again"))
    prepare(corpus, cache, 0.1, tokenizer)
    assert content(cache) == content(tmp_path / "whole")


PROGRAM = """
import os, random, signal, sys, time
from pathlib import Path
from minilm.data import prepare as module
from minilm.data.corpus import open_corpus

module.DOCUMENTS_AT_ONCE, module.DURABLE_EVERY = 64, 4
corpus, root = open_corpus([sys.argv[1]]), Path(sys.argv[2])

def started(cache):
    if not (child := os.fork()):
        module.prepare(corpus, root / cache, 0.2, vocab_size=256)
        os._exit(0)
    return child

begin = time.monotonic()
assert os.waitpid(started("whole"), 0)[1] == 0
took = time.monotonic() - begin
rng, kills, share = random.Random(5), 0, 0.1
while True:
    child = started("killed")
    time.sleep(rng.uniform(0.0, share) * took)
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if status == 0:
        break
    assert os.WTERMSIG(status) == signal.SIGKILL, status
    kills, share = kills + 1, share * 1.3
print(kills)
"""


def test_a_process_killed_at_random_moments_ends_with_the_same_bytes(tmp_path, prose):
    """Really killed, so that neither buffers nor handlers have a say."""
    folder = tmp_path / "text"
    folder.mkdir()
    for i in range(10):
        texts = [f"{text} {i} {n}" for n, text in enumerate(prose)]
        (folder / f"{i}.txt").write_text("\n\n".join(texts), encoding="utf-8")
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(folder), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 3
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


# -- several processes ----------------------------------------------------------------------------------


def test_a_second_process_waits_and_uses_the_work_of_the_first(corpus, cache, tokenizer, monkeypatch):
    encode, said, results, calls = Tokenizer.encode_documents, [], [], []
    inside, waits = threading.Event(), threading.Event()

    def slow(self, texts):
        calls.append(len(texts))
        inside.set()
        assert waits.wait(30)
        return encode(self, texts)

    def hear(line):
        said.append(line)
        if "waiting" in line:
            waits.set()

    monkeypatch.setattr(Tokenizer, "encode_documents", slow)
    first = threading.Thread(target=lambda: results.append(prepare(corpus, cache, 0.1, tokenizer)))
    first.start()
    assert inside.wait(30)
    second = threading.Thread(target=lambda: results.append(prepare(corpus, cache, 0.1, tokenizer, say=hear)))
    second.start()
    for thread in (first, second):
        thread.join(60)
        assert not thread.is_alive()
    assert said == ["another process is tokenising this text; waiting for it"]
    assert calls == [300]
    assert results[0].fingerprint == results[1].fingerprint
    assert results[0].train.tokens[:].tolist() == results[1].train.tokens[:].tolist()
    assert len(list(cache.iterdir())) == 1


def test_a_second_process_goes_on_where_the_first_failed(corpus, cache, tokenizer, monkeypatch, prose):
    monkeypatch.setattr(module, "DOCUMENTS_AT_ONCE", 100)
    monkeypatch.setattr(module, "DURABLE_EVERY", 1)
    encode, said, results, calls = Tokenizer.encode_documents, [], [], []
    inside, waits = threading.Event(), threading.Event()

    def fails_after_the_first(self, texts):
        calls.append(texts)
        if not waits.is_set() and len(calls) > 1:
            inside.set()
            assert waits.wait(30)
            raise OSError(errno.EIO, "broken")
        return encode(self, texts)

    def failing():
        with pytest.raises(ConfigError):
            prepare(corpus, cache, 0.1, tokenizer)
        results.append("failed")

    def hear(line):
        said.append(line)
        if "waiting" in line:
            waits.set()
        else:
            calls.clear()

    monkeypatch.setattr(Tokenizer, "encode_documents", fails_after_the_first)
    first = threading.Thread(target=failing)
    first.start()
    assert inside.wait(30)
    got = prepare(corpus, cache, 0.1, tokenizer, say=hear)
    first.join(60)
    assert results == ["failed"]
    assert said == [
        "another process is tokenising this text; waiting for it",
        "resuming tokenising after 100 documents",
    ]
    assert [text for texts in calls for text in texts] == prose[100:]
    assert got.hashes[:].tolist() == [document_hash(text) for text in prose]


def test_many_at_once_all_get_the_entry(tmp_path, tokenizer):
    """None trips over a directory that another has just put away."""
    (tmp_path / "a.txt").write_text("w1 w2\n\nw3 w4 w5\n")
    corpus = Corpus((tmp_path / "a.txt",))
    problems, fingerprints = [], set()

    def work(cache, barrier):
        barrier.wait(30)
        try:
            fingerprints.add(prepare(corpus, cache, 0.0, tokenizer).fingerprint)
        except Exception as error:
            problems.append(repr(error))

    for round in range(25):
        barrier = threading.Barrier(8)
        threads = [threading.Thread(target=work, args=(tmp_path / f"cache-{round}", barrier)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(list((tmp_path / f"cache-{round}").iterdir())) == 1
    assert problems == []
    assert len(fingerprints) == 1


@pytest.mark.parametrize("seen_by", ["mkdir", "open"])
def test_a_partial_directory_put_away_at_the_wrong_moment_is_made_again(corpus, cache, tokenizer, monkeypatch, seen_by):
    """Another process finishes just as this one has made sure of the directory that both work in."""
    call = getattr(os, seen_by)
    meddled = []

    def put_away(path, *args, **kwargs):
        path = Path(path)
        if path.suffix == ".partial" and path.is_dir() and not meddled:
            meddled.append(path)
            path.rmdir()
            if seen_by == "mkdir":
                raise FileExistsError(errno.EEXIST, "it was there", str(path))
        return call(path, *args, **kwargs)

    if seen_by == "mkdir":
        key = prepare(corpus, cache, 0.1, tokenizer) and next(cache.iterdir())
        shutil.rmtree(key)
        key.with_suffix(".partial").mkdir()
    monkeypatch.setattr(os, seen_by, put_away)
    assert len(prepare(corpus, cache, 0.1, tokenizer).train) > 200
    assert len(meddled) == 1


# -- the report -----------------------------------------------------------------------------------------


def test_corpus_report_by_hand(tmp_path, cache, tokenizer):
    """Of both splits together, but the words and the rows, which are those of the training split."""
    texts = ["w5 w6 w7", "w8", "nobody is w9 w5", "w8", "w8", " ".join(["w5"] * 12)]
    (tmp_path / "a.txt").write_text("\n\n".join(texts))
    train = [text for text in texts if not held(text, 0.55)]
    held_out = [text for text in texts if held(text, 0.55)]
    assert (len(train), len(held_out)) == (3, 3)
    data = prepare(Corpus((tmp_path / "a.txt",)), cache, 0.55, tokenizer)
    rows = pack(data.train, "documents", 8, tokenizer)
    words = [word if word[0] == "w" else "[UNK]" for text in train for word in text.split()]
    assert corpus_report(data, rows) == {
        "documents": 6,
        "held_out_documents": len(held_out),
        "tokens": 22 + 6,  # words, and a [SEP] after each document
        "held_out_tokens": sum(len(text.split()) + 1 for text in held_out),
        "vocab_size": 100,
        "unused_tokens": 100 - len({*words, "[SEP]"}),
        "unknown_rate": words.count("[UNK]") / (len(words) + len(train)),
        "duplicates": pytest.approx(2 / 6),
        "length_quantiles": {"0.1": 1.0, "0.5": 2.0, "0.9": 8.0, "1": 12.0},  # of 1, 1, 1, 3, 4, 12
        "row_length": 8,
        "rows": len(rows),
        "fill": rows.fill,
        "fingerprint": data.fingerprint,
    }


def test_the_report_of_a_corpus_without_a_held_out_split(tmp_path, cache, tokenizer):
    (tmp_path / "a.txt").write_text("w1 w2 w1\n\nw4\n\nw4 q\n")
    data = prepare(Corpus((tmp_path / "a.txt",)), cache, 0.0, tokenizer)
    report = corpus_report(data, pack(data.train, "documents", 6, tokenizer))
    assert (report["documents"], report["held_out_documents"], report["held_out_tokens"]) == (3, 0, 0)
    assert report["tokens"] == 9  # 6 words, 3 [SEP]
    assert report["unknown_rate"] == pytest.approx(1 / 9)
    assert report["unused_tokens"] == 100 - 5  # w1, w2, w4, [UNK], [SEP]
    assert report["duplicates"] == 0
    assert report["length_quantiles"] == pytest.approx({"0.1": 1.2, "0.5": 2.0, "0.9": 2.8, "1": 3.0})
    assert report["rows"] == 3  # 5, 4 and 3 of 6 tokens with [CLS] and [SEP]: no two fit
    assert report["fill"] == pytest.approx(12 / 18)


@pytest.mark.parametrize("copies", [1, 3])
def test_duplicates_of_a_large_corpus_are_counted_in_a_part_of_it(tmp_path, cache, tokenizer, monkeypatch, copies):
    """Chosen by hash, so that all copies of a document are in it or none."""
    texts = [f"w{i % 100} w{i // 100} w{i % 7}" for i in range(2000)] * copies
    random.Random(0).shuffle(texts)
    (tmp_path / "a.txt").write_text("\n\n".join(texts))
    data = prepare(Corpus((tmp_path / "a.txt",)), cache, 0.1, tokenizer)
    rows = pack(data.train, "stream", 8, tokenizer)
    whole = corpus_report(data, rows)
    assert whole["duplicates"] == pytest.approx(1 - 1 / copies)
    monkeypatch.setattr(report, "COUNTED", 500)
    asked = []
    monkeypatch.setattr(module.np, "unique", lambda a, unique=np.unique: asked.append(len(a)) or unique(a))
    part = corpus_report(data, rows)
    assert part["duplicates"] == pytest.approx(whole["duplicates"])
    assert 300 < asked[-1] < 700
    lengths = Counter(part["length_quantiles"].values())
    assert lengths == {3.0: 4}

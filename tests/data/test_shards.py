"""Text is tokenised once, the cache is believed only while it is whole, and holds what the text said."""

import json

import numpy as np
import pytest

from minilm.data import shards as module
from minilm.data.corpus import Corpus, is_held_out
from minilm.data.shards import prepare
from minilm.data.tokenizer import SPECIALS, Tokenizer
from minilm.errors import DataError


@pytest.fixture
def corpus(tmp_path, prose):
    file = tmp_path / "prose.txt"
    file.write_text("\n\n".join(prose), encoding="utf-8")
    return Corpus((file,))


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def documents_of(shard, sep: int) -> list[list[int]]:
    found = []
    for d in range(len(shard)):
        own = shard.tokens[shard.offsets[d] : shard.offsets[d + 1]].tolist()
        assert own[-1] == sep
        found.append(own[:-1])
    assert shard.offsets[0] == 0
    assert shard.offsets[-1] == len(shard.tokens)
    return found


def test_the_splits_are_the_documents(corpus, cache, prose, monkeypatch):
    monkeypatch.setattr(module, "DOCUMENTS_AT_ONCE", 7)  # several rounds, the last one short
    got = prepare(corpus, cache, 0.2, vocab_size=256)
    t = got.tokenizer
    train = [d for d in prose if not is_held_out(d, 0.2)]
    held = [d for d in prose if is_held_out(d, 0.2)]
    assert len(train) > 200
    assert len(held) > 30
    for shard, texts in ((got.train, train), (got.held_out, held)):
        ids = documents_of(shard, t.sep_id)
        assert ids == [t.encode(text).input_ids[1:-1] for text in texts]
        assert shard.tokens.dtype == np.uint16
    assert t.decode(documents_of(got.train, t.sep_id)[3]) == train[3].lower()
    assert got.counts.tolist() == np.bincount(got.train.tokens, minlength=256).tolist()
    assert got.counts.shape == (t.vocab_size,) == (256,)
    assert t.lowercase


def test_the_vocabulary_comes_from_the_training_split_alone(tmp_path, cache, prose):
    texts = prose + [f"{text} ЖЖЖЖ" for text in prose if is_held_out(f"{text} ЖЖЖЖ", 0.3)]
    (tmp_path / "a.txt").write_text("\n\n".join(texts), encoding="utf-8")
    got = prepare(Corpus((tmp_path / "a.txt",)), cache, 0.3, vocab_size=256)
    assert got.tokenizer.unk_id in got.held_out.tokens
    assert got.tokenizer.unk_id not in got.train.tokens


@pytest.mark.parametrize("given", [False, True])
def test_the_second_time_comes_from_the_cache(corpus, cache, tokenizer, monkeypatch, given):
    settings = {"tokenizer": tokenizer} if given else {"vocab_size": 256}
    first = prepare(corpus, cache, 0.1, **settings)
    said = []

    def never(*args, **kwargs):
        raise AssertionError("worked again")

    monkeypatch.setattr(module, "_write", never)
    monkeypatch.setattr(Tokenizer, "train", never)
    monkeypatch.setattr(Tokenizer, "encode_documents", never)
    monkeypatch.setattr(Corpus, "documents", never)
    second = prepare(corpus, cache, 0.1, say=said.append, **settings)
    assert said == []
    assert second.fingerprint == first.fingerprint
    assert second.note == first.note
    assert second.tokenizer.fingerprint() == first.tokenizer.fingerprint()
    for name in ("train", "held_out"):
        a, b = getattr(first, name), getattr(second, name)
        assert a.tokens.tolist() == b.tokens.tolist()
        assert a.offsets.tolist() == b.offsets.tolist()
    assert first.counts.tolist() == second.counts.tolist()
    assert isinstance(second.train.tokens, np.memmap)
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


def test_the_tokenizer_is_given_so_many_characters_at_once(corpus, cache, tokenizer, monkeypatch):
    """Whatever the documents' length, so that memory does not grow with it; and the tokens are the same."""
    given = []
    monkeypatch.setattr(
        tokenizer, "encode_documents", lambda texts: given.append(texts) or Tokenizer.encode_documents(tokenizer, texts)
    )
    whole = prepare(corpus, cache / "a", 0.1, tokenizer)
    assert len(given) == 1
    monkeypatch.setattr(module, "CHARS_AT_ONCE", 100)
    cut = prepare(corpus, cache / "b", 0.1, tokenizer)
    assert [text for texts in given[1:] for text in texts] == given[0]
    assert all(sum(map(len, texts[:-1])) < 100 for texts in given[1:])
    assert cut.fingerprint == whole.fingerprint


def test_a_shrunken_vocabulary_is_noted_from_the_cache_too(corpus, cache):
    notes = [prepare(corpus, cache, 0.1, vocab_size=1 << 15).note for _ in range(2)]
    assert "shrunk from 32,768" in notes[0]
    assert notes[0] == notes[1]


@pytest.mark.parametrize("extra", [65_530, 65_536])
def test_more_than_65536_words_take_uint32(tmp_path, cache, extra):
    file = tmp_path / "vocab.txt"
    file.write_text("\n".join([*SPECIALS, "word", *(f"q{i}" for i in range(extra))]) + "\n", encoding="utf-8")
    text = tmp_path / "a.txt"
    text.write_text(f"word q{extra - 1} q0", encoding="utf-8")
    got = prepare(Corpus((text,)), cache, 0.0, Tokenizer.load(file))
    assert got.train.tokens.dtype == (np.uint16 if extra + 6 <= 65_536 else np.uint32)
    assert got.train.tokens.tolist() == [5, extra + 5, 6, 3]
    assert got.counts.nonzero()[0].tolist() == [3, 5, 6, extra + 5]
    assert got.held_out.tokens.dtype == got.train.tokens.dtype
    assert (len(got.held_out), len(got.held_out.tokens)) == (0, 0)


@pytest.mark.parametrize("file", ["train.tokens", "held_out.offsets", "counts", "tokenizer.json", "META.json"])
@pytest.mark.parametrize("how", ["changed", "cut", "gone"])
def test_a_damaged_entry_is_said_and_made_anew(corpus, cache, tokenizer, file, how):
    first = prepare(corpus, cache, 0.1, tokenizer)
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
    assert again.train.tokens.tolist() == first.train.tokens.tolist()
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


@pytest.mark.parametrize("content", ["", "\n \n\n\t\n"])
def test_no_text_is_refused(tmp_path, cache, tokenizer, content):
    file = tmp_path / "blank.txt"
    file.write_text(content)
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


def test_a_crash_in_the_middle_leaves_nothing(corpus, cache, tokenizer, monkeypatch):
    monkeypatch.setattr(module, "DOCUMENTS_AT_ONCE", 100)
    calls = []
    encode = Tokenizer.encode_documents

    def fails_at_the_second(self, texts):
        calls.append(len(texts))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(self, texts)

    with monkeypatch.context() as patch:
        patch.setattr(Tokenizer, "encode_documents", fails_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            prepare(corpus, cache, 0.1, tokenizer)
    assert calls == [100, 100]
    assert list(cache.iterdir()) == []
    said = []
    assert len(prepare(corpus, cache, 0.1, tokenizer, say=said.append).train) > 200
    assert said == ["tokenising"]


def test_what_a_killed_process_left_is_in_nobodys_way(corpus, cache, tokenizer):
    """Killed outright, nothing was cleaned up; in a container the next process may well have the same number."""
    prepare(corpus, cache, 0.1, tokenizer)
    (entry,) = cache.iterdir()
    entry.rename(entry.with_name(f"{entry.name}.{module.os.getpid()}.tmp"))
    assert len(prepare(corpus, cache, 0.1, tokenizer).train) > 200
    assert entry.is_dir()


def test_a_faster_process_wins(corpus, cache, tokenizer, monkeypatch):
    """Another process puts the same entry into place while this one is writing."""
    write = module._write

    def race(directory, *args):
        write(directory, *args)
        other = cache / directory.name.split(".")[0]
        monkeypatch.setattr(module, "_write", write)
        with monkeypatch.context() as patch:
            patch.setattr(module.os, "getpid", lambda: -1)
            prepare(corpus, cache, 0.1, tokenizer)
        assert other.is_dir()

    monkeypatch.setattr(module, "_write", race)
    assert len(prepare(corpus, cache, 0.1, tokenizer).train) > 200
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "uint17"}, {"dtype": "uint32"}, {"dtype": None}, {"note": 3},
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


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_cache_entry_that_is_no_directory_is_made_anew(corpus, cache, tmp_path, kind):
    first = prepare(corpus, cache, 0.1, vocab_size=128)
    entry = next(cache.glob("tokens-*"))
    entry.rename(tmp_path / "moved")
    (tmp_path / "moved" / "counts").unlink()
    entry.write_text("x") if kind == "file" else entry.symlink_to(tmp_path / "moved")
    assert prepare(corpus, cache, 0.1, vocab_size=128).fingerprint == first.fingerprint
    assert (tmp_path / "moved").exists()

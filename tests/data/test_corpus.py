"""Files of every kind become the same documents, and a bad one is named with its line."""

import gzip
import hashlib
import json
import lzma
import os
import random
import zlib

import pytest

from minilm.data import corpus as module
from minilm.data import documents as documents_module
from minilm.data.corpus import Corpus, document_hash, embedded_corpus, is_held_out, open_corpus, vocabulary_sample
from minilm.errors import DataError


@pytest.fixture
def write(tmp_path):
    """write(name, content): a file with that text or those bytes."""

    def make(name: str, content: str | bytes):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return file

    return make


def read(*paths, text_field: str = "text") -> list[str]:
    return list(open_corpus([str(p) for p in paths], text_field).documents())


def test_what_a_run_writes_into_a_folder_is_no_text_of_it(write, tmp_path):
    """An --out, a --cache-dir or a model within --data; but a file or folder that is named is read."""
    text = write("news/a.txt", "one")
    for name in ("run.json", "metrics.jsonl", "README.md", "step-000003/vocab.txt", "step-000003/config.json"):
        write(f"news/run/{name}", "{}")
    write("news/run/step-000003/model.safetensors", "")
    write("news/cache/tokens-1/train.tokens", "")
    vocab = write("news/cache/tokens-1/vocab.txt", "[PAD]")
    deep = write("news/run/notes/a.txt", "[CLS]")
    assert open_corpus([str(tmp_path / "news")]).files == (text,)
    assert open_corpus([str(tmp_path / "news/**/*.*")]).files == (text,)
    for named in (vocab, deep):
        assert open_corpus([str(named)]).files == (named,)
    assert open_corpus([str(tmp_path / "news/run/notes/*.*")]).files == (deep,)
    for named in ("news/run", "news/run/**/*.*"):
        with pytest.raises(DataError, match="runs and caches are passed over"):
            open_corpus([str(tmp_path / named)])


# -- good files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "documents"),
    [
        ("", []),
        ("\n \n\t\n", []),
        ("one", ["one"]),
        ("one\n", ["one"]),
        ("one\ntwo\n\nthree\n", ["one\ntwo", "three"]),
        ("\n\none\n\n\n \t \ntwo", ["one", "two"]),
        ("one\r\ntwo\r\n\r\nthree\r\n", ["one\ntwo", "three"]),
        ("\ufeffone\n\ntwo", ["one", "two"]),
        ("\ufeff", []),
        ("a\u2028b\u2029c\x85d\x0be\x0cf\n\ng", ["a\u2028b\u2029c\x85d\x0be\x0cf", "g"]),
        ("  kept  spaces \n", ["  kept  spaces "]),
        ("ünïcödé 日本語 🙂\n\nб", ["ünïcödé 日本語 🙂", "б"]),
    ],
)
def test_a_blank_line_ends_a_document(write, content, documents):
    assert read(write("a.txt", content)) == documents
    assert read(write("a.txt.gz", gzip.compress(content.encode()))) == documents
    assert read(write("a.txt.xz", lzma.compress(content.encode()))) == documents


@pytest.mark.parametrize("ending", ["jsonl", "ndjson"])
@pytest.mark.parametrize("squeeze", [None, gzip.compress, lzma.compress])
def test_a_jsonl_line_is_a_document(write, squeeze, ending):
    rows = ["one\n\ntwo", "  ", "", "a\u2028b", "tr\xe4ge \U0001f642"]
    text = "\ufeff" + "\r\n".join(json.dumps({"id": 1, "text": row}, ensure_ascii=False) for row in rows) + "\n\n"
    name = f"a.{ending}" + {None: "", gzip.compress: ".gz", lzma.compress: ".xz"}[squeeze]
    file = write(name, squeeze(text.encode()) if squeeze else text)
    assert read(file) == ["one\n\ntwo", "a\u2028b", "tr\xe4ge \U0001f642"]


def test_the_text_field_can_be_named(write):
    file = write("a.jsonl", '{"text": "no", "body": "yes"}')
    assert read(file, text_field="body") == ["yes"]


def test_a_file_of_two_names_is_read_once(write, tmp_path):
    for name in ("d/b.txt", "d/c.txt"):
        write(name, name)
    (tmp_path / "d" / "a.txt").symlink_to("c.txt")
    assert open_corpus([str(tmp_path / "d")]).files == (tmp_path / "d" / "a.txt", tmp_path / "d" / "b.txt")
    assert read(tmp_path / "d" / ".." / "d" / "b.txt", tmp_path / "d") == ["d/b.txt", "d/c.txt"]


def test_folders_and_patterns_in_a_fixed_order(write, tmp_path):
    for name in ("d/b.txt", "d/a/z.md", "d/a.text", "e/c.txt"):
        write(name, name)
    write("d/c.jsonl", '{"text": "d/c.jsonl"}')
    write("d/x.txt.gz", gzip.compress(b"d/x.txt.gz"))
    write("d/skipped.py", "no")
    inside = ["d/a/z.md", "d/a.text", "d/b.txt", "d/c.jsonl", "d/x.txt.gz"]
    assert read(tmp_path / "d") == inside
    assert read(tmp_path / "e", tmp_path / "d") == ["e/c.txt", *inside]
    assert read(tmp_path / "*" / "*.txt") == ["d/b.txt", "e/c.txt"]
    assert read(tmp_path / "**" / "*.txt") == ["d/b.txt", "e/c.txt"]
    assert read(tmp_path / "?") == [*inside, "e/c.txt"]
    assert read(tmp_path / "d" / "b.txt", tmp_path / "d") == ["d/b.txt", *[n for n in inside if n != "d/b.txt"]]


def test_a_folder_without_text_is_passed_over_only_where_a_pattern_found_it(write, tmp_path):
    write("a/one.txt", "one")
    write("b/picture.png", "no")
    assert read(tmp_path / "*") == ["one"]
    for path in (tmp_path / "b", tmp_path / "b*"):
        with pytest.raises(DataError, match=r"no \.txt, \.text, \.md, \.jsonl, \.ndjson file"):
            read(path)


def test_jsonl_is_what_is_called_so_last(write, tmp_path):
    """Notes about a jsonl file are text."""
    write("notes.jsonl.txt", "not JSON")
    write("x.jsonl.gz", gzip.compress(b'{"text": "one"}'))
    assert read(tmp_path / "notes.jsonl.txt", tmp_path / "x.jsonl.gz") == ["not JSON", "one"]


def test_a_name_that_is_also_a_pattern_is_the_file(write):
    assert read(write("a[1].txt", "brackets")) == ["brackets"]


def test_upper_case_suffixes_mean_the_same(write, tmp_path):
    """A folder is searched for them whatever their case, so they must be read as what they are."""
    write("d/A.JSONL", '{"text": "one"}\n{"text": "two"}\n')
    write("d/B.TXT.GZ", gzip.compress(b"three"))
    assert read(tmp_path / "d") == ["one", "two", "three"]


# -- long documents -------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [5, 16, 64])
@pytest.mark.parametrize("content", ["abcdefg\n" * 40, "x" * 500, "äö日本🙂z" * 40, "ab\n" * 9 + "q" * 100 + "\nend"])
def test_a_long_document_is_cut_and_nothing_is_lost(write, monkeypatch, limit, content):
    monkeypatch.setattr(documents_module, "MAX_CHARS", limit)
    documents = read(write("a.txt", content))
    assert "".join(documents).replace("\n", "") == content.replace("\n", "")
    assert all(len(document.replace("\n", "")) <= limit for document in documents)
    assert len(documents) > 1


def test_a_long_jsonl_document_is_cut_too(write, monkeypatch):
    monkeypatch.setattr(documents_module, "MAX_CHARS", 5)
    file = write("a.jsonl", '{"text": "abcdefghijkl"}\n{"text": "xyz"}\n')
    assert list(Corpus((file,)).documents()) == ["abcde", "fghij", "kl", "xyz"]


def test_a_long_document_keeps_its_neighbours(write, monkeypatch):
    monkeypatch.setattr(documents_module, "MAX_CHARS", 10)
    assert read(write("a.txt", "one\n\n" + "x" * 25 + "\n\ntwo")) == ["one", "x" * 10, "x" * 10, "xxxxx", "two"]


@pytest.mark.parametrize("word", ["ж" * 18, "日" * 18])
def test_no_newline_comes_into_a_line_of_many_bytes(write, monkeypatch, word):
    """18 characters are within a limit of 20, however many bytes they have; cut or not, they hold no newline."""
    monkeypatch.setattr(documents_module, "MAX_CHARS", 20)
    assert "\n" not in "".join(read(write("a.txt", word + "\n")))


def test_a_line_that_ends_at_the_limit_ends_no_document(write, monkeypatch):
    """The limit counts characters, and 10 two-byte ones leave room for the next line."""
    monkeypatch.setattr(documents_module, "MAX_CHARS", 20)
    assert read(write("a.txt", "ж" * 10 + "\nnext\n")) == ["ж" * 10 + "\nnext"]


def test_a_last_line_without_a_newline_may_be_long(write, monkeypatch):
    monkeypatch.setattr(documents_module, "MAX_LINE", 400)
    assert read(write("a.jsonl", json.dumps({"text": "x" * 200}))) == ["x" * 200]
    with pytest.raises(DataError, match=r"a\.jsonl:2: a line of more than"):
        read(write("a.jsonl", '{"text": "ok"}\n' + json.dumps({"text": "x" * 500})))


# -- bad files ------------------------------------------------------------------------------------------

GOOD = '{"text": "fine"}\n'
BAD = [
    ("a.txt", b"text\n\x00\x01\x02binary", ":2: a NUL byte"),
    ("a.txt", "text".encode("utf-16"), ":1: "),
    ("a.txt", "日本".encode("utf-16"), ":1: not UTF-8 (byte 0xff)"),
    ("a.txt", "one\n\ncaf\xe9 noir\n".encode("latin-1"), ":3: not UTF-8 (byte 0xe9)"),
    ("a.txt", "one\ncaf\xe9".encode("latin-1"), ":2: not UTF-8"),
    ("a.txt", "one\n日".encode()[:-1], ":2: not UTF-8"),
    ("a.txt", b"one\rline\r\ranother document\r", ":1: its lines end in \\r alone; convert it"),
    ("a.txt.gz", gzip.compress(b"text\n" * 999)[:-4], ": damaged or cut short"),
    ("a.txt.gz", gzip.compress(b"text\n" * 999)[:40], ": damaged or cut short"),
    ("a.txt.gz", b"not gzip at all", ": damaged or cut short"),
    ("a.txt.xz", lzma.compress(b"text\n" * 999)[:-20], ": damaged or cut short"),
    ("a.txt.xz", b"not xz at all", ": damaged or cut short"),
    ("a.jsonl", GOOD + "plain text\n", ":2: not JSON"),
    ("a.jsonl", GOOD + "\n" + '{"text": "cut\n', ":3: not JSON"),
    ("a.jsonl", GOOD + "[" * 100_000, ":2: not JSON"),
    ("a.jsonl", GOOD + '{"n": ' + "1" * 5000 + "}", ":2: not JSON"),
    ("a.jsonl", GOOD + '{"body": "x", "id": 1}', ':2: no text field "text" (fields body, id)'),
    ("a.jsonl", GOOD + '{"text": 3}', ':2: "text" is 3, not text; remove that line'),
    ("a.jsonl", GOOD + '{"text": null}', ':2: "text" is null, not text; remove that line'),
    ("a.jsonl", GOOD + '["text"]', ":2: no text field"),
    ("a.jsonl", GOOD + '{"text": "\\ud800"}', ":2: a lone surrogate"),
    ("a.jsonl", b'{"text": "caf\xe9"}', ":1: not UTF-8"),
    ("a.jsonl.gz", gzip.compress(b"{}"), ":1: no text field"),
]


@pytest.mark.parametrize(("name", "content", "said"), BAD, ids=range(len(BAD)))
def test_a_bad_file_is_named(write, name, content, said):
    file = write(name, content)
    with pytest.raises(DataError) as error:
        read(file)
    assert str(error.value).startswith(str(file) + said)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < len(str(file)) + 200


def test_documents_before_a_bad_line_are_given(write):
    documents = open_corpus([str(write("a.jsonl", GOOD + "bad"))]).documents()
    assert next(documents) == "fine"
    with pytest.raises(DataError):
        next(documents)


@pytest.mark.parametrize("name", ["missing.txt", "missing/*.txt", "empty"])
def test_nothing_found_is_said(tmp_path, name):
    (tmp_path / "empty" / "deeper.txt").mkdir(parents=True)
    (tmp_path / "empty" / "program.py").write_text("")
    with pytest.raises(DataError) as error:
        open_corpus([str(tmp_path / name)])
    assert str(error.value).startswith(f"--data {tmp_path / name}: no ")
    assert "\n" not in str(error.value)


def test_a_file_that_went_away_is_named(write):
    file = write("a.txt", "one")
    corpus = open_corpus([str(file)])
    file.unlink()
    for use in (corpus.fingerprint, lambda: list(corpus.documents())):
        with pytest.raises(DataError) as error:
            use()
        assert str(error.value).startswith(f"{file}: cannot be read")


# -- identity -------------------------------------------------------------------------------------------


def test_fingerprint_is_of_the_content(write):
    a, b, same = write("a.txt", "one"), write("b.txt", "two"), write("other/name.txt", "one")

    def of(*files, field: str = "text") -> str:
        return Corpus(tuple(files), field).fingerprint()

    assert of(a) == of(same) == of(a)
    assert len({of(a), of(b), of(a, b), of(b, a), of(a, a), of(), of(a, field="body")}) == 7
    assert of(write("ab.txt", "onetwo")) != of(a, b)
    before = of(a)
    write("a.txt", "One")
    assert of(a) != before


def test_fingerprint_tells_jsonl_from_text(write):
    """The same bytes are other documents there, so a cache must not take one for the other."""
    a, b = write("a.jsonl", GOOD), write("a.txt", GOOD)
    assert read(a) != read(b)
    assert Corpus((a,)).fingerprint() != Corpus((b,)).fingerprint()


def test_fingerprint_depends_on_where_documents_are_cut(write, monkeypatch):
    corpus = Corpus((write("a.txt", "one"),))
    before = corpus.fingerprint()
    monkeypatch.setattr(module, "MAX_CHARS", 5)
    assert corpus.fingerprint() != before


def test_a_document_hash_is_the_same_on_every_machine_and_in_every_version():
    for text in ("", "one", "日本 é"):
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        assert document_hash(text) == int.from_bytes(digest, "big")
    assert document_hash("document number 0 é") == 8043891567392662763


def test_held_out_documents_are_a_fixed_fraction_that_grows():
    hashes = [document_hash(f"document number {i} é") for i in range(20_000)]
    tenth = {h for h in hashes if is_held_out(h, 0.1)}
    assert 1800 < len(tenth) < 2200  # 4.7 standard deviations
    assert tenth < {h for h in hashes if is_held_out(h, 0.2)}
    assert not any(is_held_out(h, 0.0) for h in hashes)
    assert all(is_held_out(h, 1.0) for h in hashes)
    assert not is_held_out(0, 0.0)
    assert is_held_out(2**64 - 1, 1.0)
    place = hashes[0] / 2**64
    assert not is_held_out(hashes[0], place * 0.999)
    assert is_held_out(hashes[0], place * 1.001)


@pytest.mark.parametrize("change", ["longer", "as long", "replaced", "touched"])
def test_stamps_differ_after_whatever_a_writer_does(write, change):
    files = [write("a.txt", "one"), write("b.txt", "two")]
    for file in files:
        os.utime(file, ns=(10**18, 10**18))
    corpus = Corpus(tuple(files))
    before = corpus.stamps()
    assert corpus.stamps() == before
    assert before[0] != before[1]
    if change == "longer":
        write("b.txt", "two and more")
        os.utime(files[1], ns=(10**18, 10**18))
    elif change == "as long":
        write("b.txt", "six")
    elif change == "replaced":
        os.utime(write("new", "two"), ns=(10**18, 10**18))
        files[1].with_name("new").replace(files[1])
    else:
        os.utime(files[1], ns=(10**18, 10**18 + 1))
    assert corpus.stamps()[0] == before[0]
    assert corpus.stamps()[1] != before[1]


def test_stamps_name_a_file_that_went_away(write):
    file = write("a.txt", "one")
    file.unlink()
    with pytest.raises(DataError, match=f"{file}: cannot be read"):
        Corpus((file,)).stamps()


# -- from the middle ------------------------------------------------------------------------------------


@pytest.fixture
def three_files(write):
    """Text, nothing, jsonl (compressed); 4, 0 and 5 documents."""
    lines = "".join(json.dumps({"text": f"line {i}"}) + "\n\n" for i in range(5))
    return Corpus(
        (
            write("a.txt", "\n\n".join(f"text {i}\nof two lines" for i in range(4))),
            write("b.txt", "\n \n"),
            write("c.jsonl.gz", gzip.compress(lines.encode())),
        )
    )


def test_documents_are_numbered_within_their_file(three_files):
    numbered = list(three_files.numbered())
    assert [(file, n) for file, n, _ in numbered] == [(0, n) for n in range(4)] + [(2, n) for n in range(5)]
    assert [text for *_, text in numbered] == list(three_files.documents())


def test_from_any_document_on_it_is_the_rest(three_files):
    """`skip` counts in the first of the files alone; past its end begins the next one."""
    numbered = list(three_files.numbered())
    for file in range(4):
        for skip in range(7):
            rest = [each for each in numbered if each[0] > file or (each[0] == file and each[1] >= skip)]
            assert list(three_files.numbered(file, skip)) == rest, (file, skip)


def test_files_before_the_first_one_are_not_read(three_files):
    three_files.files[0].write_bytes(b"\x00 a binary file")
    three_files.files[1].unlink()
    assert [text for *_, text in three_files.numbered(2, 3)] == ["line 3", "line 4"]
    with pytest.raises(DataError):
        next(three_files.numbered(0, 0))


# -- the sample for a vocabulary ------------------------------------------------------------------------


def made_up(n: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [f"{i} " + "x" * rng.randint(0, 200) for i in range(n)]


@pytest.mark.parametrize("held_out", [0.0, 0.1, 0.5])
def test_of_little_text_the_sample_is_the_training_split(held_out):
    documents = made_up(500, 0)
    train = [text for text in documents if not is_held_out(document_hash(text), held_out)]
    assert vocabulary_sample(iter(documents), held_out) == train
    exactly = sum(map(len, train))
    assert vocabulary_sample(documents, held_out, exactly) == train
    assert len(vocabulary_sample(documents, held_out, exactly - 1)) < len(train)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("held_out", [0.0, 0.1, 0.5])
def test_of_much_text_the_sample_is_bounded_and_no_document_of_it_held_out(seed, held_out):
    documents = made_up(3000, seed)
    for max_chars in (20_000, 50_000, 100_000):
        sample = vocabulary_sample(documents, held_out, max_chars)
        size = sum(map(len, sample))
        assert 0.4 * max_chars < size <= max_chars  # half, give or take: which half is up to the hash
        assert not any(is_held_out(document_hash(text), held_out) for text in sample)
        assert sample == [text for text in documents if text in set(sample)]


@pytest.mark.parametrize("held_out", [0.0, 0.3])
def test_the_sample_does_not_depend_on_the_order(held_out):
    documents = made_up(2000, 1)
    sample = sorted(vocabulary_sample(documents, held_out, 30_000))
    for seed in range(5):
        random.Random(seed).shuffle(documents)
        assert sorted(vocabulary_sample(documents, held_out, 30_000)) == sample
    assert sorted(vocabulary_sample(sorted(documents, key=len), held_out, 30_000)) == sample


def test_the_sample_is_spread_over_the_corpus():
    """Not its beginning: each tenth has its share."""
    documents = made_up(5000, 2)
    places = [int(text.split()[0]) // 500 for text in vocabulary_sample(documents, 0.1, 100_000)]
    counts = [places.count(tenth) for tenth in range(10)]
    assert min(counts) > 0.5 * len(places) / 10
    assert max(counts) < 1.5 * len(places) / 10


def test_memory_of_the_sample_does_not_grow_with_the_corpus():
    import tracemalloc

    def peak(n: int) -> int:
        tracemalloc.start()
        vocabulary_sample((f"{i} " + "x" * 1000 for i in range(n)), 0.1, 200_000)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(20_000) < 1.5 * peak(2_000)


@pytest.mark.parametrize("documents", [["x" * 500], ["x" * 30] * 100])
def test_a_document_or_its_copies_beyond_the_bound_end_the_search(documents):
    assert sum(map(len, vocabulary_sample(documents, 0.0, 100))) <= 100


# -- what would be left out in silence -------------------------------------------------------------------


def test_folders_behind_links_are_read_once(tmp_path):
    (tmp_path / "all" / "own").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.txt").write_text("from elsewhere")
    (tmp_path / "all" / "own" / "a.txt").write_text("its own")
    (tmp_path / "all" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "all" / "own" / "round").symlink_to(tmp_path / "all")
    assert list(open_corpus([str(tmp_path / "all")]).documents()) == ["from elsewhere", "its own"]


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "a.txt").write_text("some")
    (tmp_path / "all" / "b.txt").symlink_to(tmp_path / "gone.txt")
    with pytest.raises(DataError, match=r"--data .*b\.txt: a broken link; remove"):
        open_corpus([str(tmp_path / "all")])


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "all" / "secret").mkdir(parents=True)
    (tmp_path / "all" / "a.txt").write_text("some")
    scandir = os.scandir

    def refused(path):
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(DataError, match=r"--data .*secret: cannot be read .Permission denied"):
        open_corpus([str(tmp_path / "all")])


def test_an_xz_file_of_several_streams_is_read_whole(tmp_path):
    """With padding between them, too; the second one damaged, or cut anywhere, is no shorter file."""
    file = tmp_path / "a.txt.xz"
    first, second = (lzma.compress(b"\n\n".join(b"%s %d" % (word, i) for i in range(500))) for word in (b"one", b"two"))
    for padding in (b"", bytes(4), bytes(70_000)):
        file.write_bytes(first + padding + second + padding)
        assert len(list(Corpus((file,)).documents())) == 999  # no blank line where they meet
    broken = bytearray(first + second)
    broken[len(first) + 2] ^= 1
    for content in (bytes(broken), *((first + second)[:n] for n in (len(first) + 5, len(first) + len(second) - 1, 9))):
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.txt\.xz: damaged or cut short"):
            list(Corpus((file,)).documents())


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
def test_a_compressed_file_of_nothing_is_damaged(tmp_path, suffix):
    file = tmp_path / f"a.txt{suffix}"
    file.write_bytes(b"")
    with pytest.raises(DataError, match=r"damaged or cut short \(it is empty\)"):
        list(Corpus((file,)).documents())


@pytest.mark.parametrize("text", ["a\nb", "caf\xe9"])
def test_what_a_flipped_bit_makes_of_a_text_is_called_damage(tmp_path, text):
    """And not another encoding, or a binary file."""
    file, plain = tmp_path / "a.txt.gz", text.replace("\n", "\0").encode("latin-1")
    stored = zlib.compressobj(0, zlib.DEFLATED, 31)
    content = bytearray(stored.compress(plain) + stored.flush())
    content[-8] ^= 1  # its checksum
    file.write_bytes(bytes(content))
    with pytest.raises(DataError, match="damaged or cut short"):
        list(Corpus((file,)).documents())


# -- embedded -------------------------------------------------------------------------------------------

SOURCE = '''
"""{module}"""

class A:
    """{cls}"""
    if True:
        def method(self):
            """{method}"""
            x = "not a docstring {method}"

def short():
    """short"""

try:
    pass
except ValueError:
    async def late():
        """{late}"""

def again():
    """{cls}"""
'''


def test_embedded_corpus_is_the_docstrings(write, tmp_path, monkeypatch):
    texts = {name: f"{name} documentation, " + "which is long enough. " * 6 for name in ("module", "cls", "method")}
    texts["late"] = "late " * 30
    texts = {name: text.strip() for name, text in texts.items()}
    sources = [
        ("one/a.py", write("a.py", SOURCE.format(**texts))),
        ("one/broken.py", write("broken.py", "def (:\n")),
        ("one/latin.py", write("latin.py", b'"""caf\xe9"""')),
        ("one/copy.py", write("copy.py", SOURCE.format(**texts))),
    ]
    asked = []
    monkeypatch.setattr(module, "embedded_sources", lambda: asked.append(1) or iter(sources))
    monkeypatch.setattr(module, "topics", {"b": "topic b", "a": "topic a"})
    cache = tmp_path / "cache" / "deep"
    corpus = embedded_corpus(cache)
    documents = list(corpus.documents())
    assert documents[-2:] == ["topic a", "topic b"]
    assert sorted(documents[:-2]) == sorted(texts.values())
    assert documents[0] == texts["module"]
    assert [f.name for f in cache.iterdir()] == [corpus.files[0].name]
    written = corpus.files[0].stat().st_mtime_ns
    assert embedded_corpus(cache) == corpus
    assert corpus.files[0].stat().st_mtime_ns == written  # not written again
    sources.pop()
    sources[0] = ("one/a.py", write("a.py", '"""' + "other" * 30 + '"""'))
    other = embedded_corpus(cache)
    assert other.files != corpus.files  # other sources, another file
    assert next(other.documents()) == "other" * 30


def test_embedded_sources_leave_out_what_is_no_documentation(tmp_path, monkeypatch):
    for name in ("b.py", "a/c.py", "test/x.py", "a/tests/y.py", "site-packages/z.py", "a/n.txt"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
    monkeypatch.setattr(module.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    monkeypatch.setattr(module, "EMBEDDED_PACKAGES", ())
    found = list(module.embedded_sources())
    assert [name for name, _ in found] == ["python/a/c.py", "python/b.py"]
    assert all(path.is_file() for _, path in found)

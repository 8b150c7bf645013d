"""Text <-> ids: the same as transformers', the same every time, and markup in a text stays text."""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from minilm.data import tokenizer as module
from minilm.data.tokenizer import SPECIALS, Tokenizer
from minilm.errors import DataError

NASTY = [
    "",
    " ",
    "Hello, world! It's 3.14 (about).",
    "日本語のテキスト and 한국어 mixed中文words",
    "Crème brûlée, naïve façade — Ångström, İstanbul, ﬁne, ẞ",
    "e\u0301 combining a\u0308 \u0327",
    "🙂 emoji 👩‍👩‍👧‍👦 flags 🇩🇪 skin 👍🏽",
    "control\x01\x02 char\x7facters\ttab\nnewline\rreturn",
    "zero\u200bwidth\u200djoin\ufeffbom soft\u00adhyphen",
    "line\u2028separator\u2029paragraph\x85next nbsp\u00a0space",
    "w" * 101 + " " + "e" * 100,
    "abc" * 500,
    "[MASK] and [CLS] in [SEP] a [PAD] text[MASK]",
    "\U0001d54f \U00020000 \ufffd replacement",
    "bonga BONGA Bonga . . . ...",
    "عربي עברית ไทย हिन्दी",
]


@pytest.fixture(scope="module", params=[True, False], ids=["uncased", "cased"])
def trained(request, prose):
    texts = [*prose, *(NASTY[2:10] * 5)]
    return Tokenizer.train(texts, 512, lowercase=request.param)


@pytest.fixture(scope="module")
def theirs(trained, tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    directory = tmp_path_factory.mktemp("saved")
    trained.save(directory, model_max_length=77)
    return transformers.AutoTokenizer.from_pretrained(directory)


# -- training -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [64, 128, 320])
def test_train_makes_the_size_asked_for(prose, size):
    t = Tokenizer.train(iter(prose), size)
    assert t.vocab_size == size
    assert t.note == ""
    assert t.special_ids == (0, 1, 2, 3, 4) == (t.pad_id, t.unk_id, t.cls_id, t.sep_id, t.mask_id)
    assert [t.token(i) for i in range(5)] == list(SPECIALS)
    assert len({t.token(i) for i in range(size)}) == size
    assert max(map(max, filter(len, t.encode_documents(prose)))) < size


def test_train_shrinks_to_a_multiple_of_64_and_says_so(prose):
    t = Tokenizer.train(prose, 1 << 14)
    assert t.vocab_size < 1 << 14
    assert t.vocab_size % 64 == 0
    assert f"from 16,384 to {t.vocab_size:,}" in t.note


@pytest.mark.parametrize("size", [0, -64, 1, 63, 100])
def test_train_refuses_odd_sizes(prose, size):
    with pytest.raises(DataError, match="not a multiple of 64"):
        Tokenizer.train(prose, size)


@pytest.mark.parametrize("texts", [[], ["short text"]])
def test_train_refuses_too_little_text(texts):
    with pytest.raises(DataError, match="give more text"):
        Tokenizer.train(texts, 64)


PROGRAM = """
import random
from minilm.data.tokenizer import Tokenizer
rng = random.Random(0)
words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 6))) for _ in range(300)]
print(Tokenizer.train([" ".join(words)] * 3, {size}).fingerprint())
"""


@pytest.mark.parametrize("size", [64, 256])
def test_train_is_the_same_in_every_process(size):
    """With ties: all words are equally frequent, and at 64 the alphabet is cut to 16 letters."""
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM.format(size=size)], stdout=-1, env={**os.environ, "PYTHONHASHSEED": h}
        )
        for h in "12"
    ]
    first, second = (run.communicate(timeout=60)[0] for run in runs)
    assert all(run.returncode == 0 for run in runs)
    assert len(first) > 1000
    assert first == second


def test_a_script_of_many_letters_has_them_in_its_vocabulary():
    """As Chinese, where each is a word; but not the rarest."""
    rng, letters = random.Random(0), [chr(0x4E00 + i) for i in range(3000)]
    often = [1 / (rank + 20) for rank in range(3000)]
    documents = ["".join(rng.choices(letters, often, k=500)) for _ in range(200)]
    chinese = Tokenizer.train(documents, 4096)
    counts = Counter(token for text in documents for token in chinese.encode(text).tokens)
    assert counts["[UNK]"] < 0.01 * counts.total()
    assert chinese.vocab_size > 2500
    rare, common = letters[:40], letters[40:1140]
    vocab = Tokenizer.train(["".join(common)] * 100 + ["".join(rare)], 4096).backend.get_vocab()
    assert not vocab.keys() & {*rare}
    assert len(vocab.keys() & {*common}) > 1050


# -- loading --------------------------------------------------------------------------------------------


def ids_of(t: Tokenizer) -> list[list[int]]:
    return [t.encode(text).input_ids for text in NASTY]


@pytest.mark.parametrize("name", ["", "tokenizer.json", "vocab.txt"])
@pytest.mark.parametrize("kind", [str, lambda path: path], ids=["str", "Path"])
def test_save_and_load(trained, tmp_path, name, kind):
    trained.save(tmp_path, model_max_length=64)
    loaded = Tokenizer.load(kind(tmp_path / name))
    assert ids_of(loaded) == ids_of(trained)
    assert loaded.lowercase == trained.lowercase
    assert loaded.vocab_size == trained.vocab_size
    assert loaded.special_ids == trained.special_ids
    assert loaded.encode("a [MASK]", specials=True).input_ids[-2] == loaded.mask_id
    again = tmp_path / "again"
    again.mkdir()
    loaded.save(again, model_max_length=64)
    for file in ("tokenizer.json", "vocab.txt", "tokenizer_config.json"):
        assert (again / file).read_bytes() == (tmp_path / file).read_bytes(), file


def test_vocab_txt_alone(tmp_path):
    for words, lowercase in ((["b", "##c"], True), (["B", "b"], False)):
        file = tmp_path / "vocab.txt"
        file.write_bytes("\r\n".join([*SPECIALS, *words, ""]).encode())
        t = Tokenizer.load(tmp_path)
        assert t.lowercase is lowercase
        assert ("cased" if not lowercase else "lower-case") in t.note
        assert t.vocab_size == 7
        assert t.encode("B").input_ids == [2, 5, 3]
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    assert Tokenizer.load(file).lowercase
    assert Tokenizer.load(file).note == ""


def test_a_word_of_vocab_txt_may_hold_a_line_separator(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIALS, "a\u2028b", "c\x85", "d"]), encoding="utf-8")
    t = Tokenizer.load(tmp_path)
    assert t.token(5) == "a\u2028b"
    assert t.vocab_size == 8


def bpe() -> str:
    vocab = {token: i for i, token in enumerate([*SPECIALS, "a", "b"])}
    return tokenizers.Tokenizer(models.BPE(vocab, [])).to_str()


BAD = [
    ("vocab.txt", "\n".join([*SPECIALS, "a", "b", "a"]), ":8: token 'a' appears twice"),
    ("vocab.txt", "\n".join(SPECIALS[:-1]) + "\na\n", "lacks [MASK]"),
    ("vocab.txt", "a\nb\n", "lacks [PAD], [UNK], [CLS], [SEP], [MASK]"),
    ("vocab.txt", b"caf\xe9\n", "not UTF-8"),
    ("vocab.txt", "", "lacks [PAD]"),
    ("tokenizer.json", "not json", "not a tokenizer file"),
    ("tokenizer.json", "[1]", "not a tokenizer file"),
    ("tokenizer.json", "{}", "not a tokenizer file"),
    ("tokenizer.json", b"\xff\xfe", "not a tokenizer file"),
    ("tokenizer.json", bpe(), "a BPE tokenizer"),
    ("tokenizer.json", tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")).to_str(), "lacks [PAD]"),
    ("other.txt", "", "neither tokenizer.json nor vocab.txt"),
]


@pytest.mark.parametrize("whole", [False, True], ids=["file", "directory"])
@pytest.mark.parametrize(("name", "content", "said"), BAD, ids=range(len(BAD)))
def test_a_bad_vocabulary_is_refused_by_name(tmp_path, name, content, said, whole):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as error:
        Tokenizer.load(tmp_path if whole or name == "other.txt" else tmp_path / name)
    assert said in str(error.value)
    assert str(error.value).startswith(str(tmp_path if name == "other.txt" else tmp_path / name))
    assert "\n" not in str(error.value)


def test_a_missing_vocabulary_is_named(tmp_path):
    with pytest.raises(DataError, match="no such vocabulary file"):
        Tokenizer.load(tmp_path / "vocab.txt")


@pytest.mark.parametrize("config", ["not json", "[]", '{"tokenizer_class": "BertJapaneseTokenizer"}'])
def test_a_bad_tokenizer_config_is_named(tmp_path, config):
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIALS, "a"]))
    (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(DataError, match=r"tokenizer_config\.json"):
        Tokenizer.load(tmp_path)


NORMALIZERS = [
    {"type": "BertNormalizer", "lowercase": lowercase, "strip_accents": strip, "handle_chinese_chars": chinese}
    | {"clean_text": True}
    for lowercase, strip, chinese in ((True, None, True), (True, False, True), (False, True, True), (True, None, False))
]
NORMALIZERS += [{"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]}, None]


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_any_normalizer_is_kept_and_transformers_has_the_same(tmp_path, normalizer):
    import transformers

    vocabulary = [*SPECIALS, "a", "ä", "A", "Ä", "日", "日本", "##本"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    spec = json.loads(Tokenizer.load(tmp_path).fingerprint()) | {"normalizer": normalizer}
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    t = Tokenizer.load(tmp_path)
    assert t.lowercase == (normalizer is not None and normalizer.get("lowercase", True))
    t.save(tmp_path, model_max_length=64)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    by_words = Tokenizer.load(tmp_path) if (normalizer or {}).get("type") == "BertNormalizer" else t
    for text in ("a ä A Ä 日本", "ÄA\u0308", "x日 a\u200bä"):
        assert t.encode(text).input_ids == theirs(text).input_ids == by_words.encode(text).input_ids


def test_words_are_added_where_nothing_is_normalised_or_split(trained, tmp_path):
    trained.save(tmp_path, 64)
    spec = json.loads((tmp_path / "tokenizer.json").read_text()) | {"normalizer": None, "pre_tokenizer": None}
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    more, _ = added(Tokenizer.load(tmp_path), tmp_path, "\ufeffQqzz")
    assert more.encode("Qqzz").input_ids[1:-1] == [trained.vocab_size]


def test_a_line_of_a_saved_vocabulary_is_an_id(trained, tmp_path):
    """Also where some ids have no word."""
    spec = json.loads(trained.fingerprint())
    spec["model"]["vocab"]["qqzz"] = trained.vocab_size + 3
    t = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(spec)), trained.lowercase)
    t.save(tmp_path, 64)
    assert t.encode("qqzz").input_ids == Tokenizer.load(tmp_path / "vocab.txt").encode("qqzz").input_ids


def test_stored_truncation_and_padding_are_cleared(trained, tmp_path):
    backend = tokenizers.Tokenizer.from_str(trained.fingerprint())
    backend.enable_truncation(4)
    backend.enable_padding(length=9)
    backend.save(str(tmp_path / "tokenizer.json"))
    stored = json.loads((tmp_path / "tokenizer.json").read_text())
    assert stored["truncation"]
    assert stored["padding"]
    loaded = Tokenizer.load(tmp_path)
    assert ids_of(loaded) == ids_of(trained)
    assert [a.tolist() for a in loaded.encode_documents(NASTY)] == [ids[1:-1] for ids in ids_of(trained)]


@pytest.mark.parametrize("more", [0, 1])
def test_words_are_remembered_where_that_saves_time(trained, prose, monkeypatch, more):
    """On few cores; on many the library encodes documents at once. The ids are the same."""
    monkeypatch.setattr(module, "cores", lambda: module.FEW_CORES + more)
    tokenizer = Tokenizer(trained.backend, trained.lowercase)
    wanted, remembered = [trained.encode(document).input_ids[1:-1] for document in prose], []
    for most in (10**6, 10**6, 10):
        monkeypatch.setattr(module, "REMEMBERED", most)
        assert [found.tolist() for found in tokenizer.encode_documents([*prose, "zzyzx"])] == [
            *wanted,
            trained.encode("zzyzx").input_ids[1:-1],
        ]
        known, letters = tokenizer._known
        assert letters == sum(map(len, known))
        remembered.append(letters)
    assert (remembered[0] == remembered[1] > 0) == (not more)
    assert remembered[2] == 0
    assert tokenizer.encode_documents([]) == []
    assert [found.tolist() for found in tokenizer.encode_documents(["", " \n"])] == [[], []]


def test_words_that_are_all_new_are_not_remembered(trained, monkeypatch):
    monkeypatch.setattr(module, "cores", lambda: 1)
    tokenizer = Tokenizer(trained.backend, trained.lowercase)
    for texts, remembers in ((["ab cd ef gh"], False), (["ab cd ab ab ab ab ab ab"], True), (["ij kl mn ab"], False)):
        before = tokenizer._known
        ids = [found.tolist() for found in tokenizer.encode_documents(texts)]
        assert ids == [trained.encode(text).input_ids[1:-1] for text in texts]
        assert (tokenizer._known != before) == remembers


def test_threads_may_share_a_tokenizer(trained, monkeypatch):
    """One of them may forget all words while another one looks some up."""
    monkeypatch.setattr(module, "cores", lambda: 1)
    monkeypatch.setattr(module, "NEW", 1)
    monkeypatch.setattr(module, "REMEMBERED", 200)
    tokenizer, rng = Tokenizer(trained.backend, trained.lowercase), random.Random(0)
    texts = [[" ".join("".join(rng.choices("abcdef", k=4)) for _ in range(30)) for _ in range(4)] for _ in range(60)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(tokenizer.encode_documents, texts))
    for each, own in zip(texts, found, strict=True):
        assert [ids.tolist() for ids in own] == [trained.encode(text).input_ids[1:-1] for text in each]


def test_a_text_with_words_of_its_own_is_encoded_at_once(trained):
    """An added word may be of several, and other splitters look across them; a special token is text."""
    backend = trained.backend
    backend.add_special_tokens(["[NEW]"])
    assert Tokenizer(backend, trained.lowercase)._is_of_words
    backend.add_tokens(["cat, sat"])
    tokenizer = Tokenizer(backend, trained.lowercase)
    assert not tokenizer._is_of_words
    assert tokenizer.encode_documents(["the cat, sat"])[0][-1] == trained.vocab_size + 1
    for name, part in (("pre_tokenizer", pre_tokenizers.Whitespace()), ("normalizer", normalizers.Lowercase())):
        backend = trained.backend
        setattr(backend, name, part)
        assert not Tokenizer(backend, trained.lowercase)._is_of_words


# -- using ----------------------------------------------------------------------------------------------


def in_a_batch(theirs, a: str, b: str | None, **settings) -> dict[str, list]:
    """One text or pair as a batch of one: called without a batch, transformers takes the pair "" for none."""
    texts = ([a],) if b is None else ([a], [b])
    encoded = theirs(*texts, return_offsets_mapping=True, return_token_type_ids=True, **settings)
    return {name: values[0] for name, values in encoded.items()}


def test_transformers_opens_what_was_saved(trained, theirs):
    assert theirs.mask_token == "[MASK]"
    assert theirs.model_max_length == 77
    own = (theirs.pad_token_id, theirs.unk_token_id, theirs.cls_token_id, theirs.sep_token_id, theirs.mask_token_id)
    assert own == trained.special_ids
    assert len(theirs) == trained.vocab_size


@pytest.mark.parametrize("specials", [True, False])
@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
def test_one_text_as_in_transformers(trained, theirs, text, specials):
    mine = trained.encode(text, specials=specials)
    reference = theirs(text, return_offsets_mapping=True, return_token_type_ids=True, split_special_tokens=not specials)
    assert mine.input_ids == reference["input_ids"]
    assert mine.token_type_ids == reference["token_type_ids"]
    assert mine.offsets == reference["offset_mapping"]
    assert mine.tokens == theirs.convert_ids_to_tokens(reference["input_ids"])
    assert mine.cut == (0, 0)


@pytest.mark.parametrize("at", range(len(NASTY)))
def test_pairs_as_in_transformers(trained, theirs, at):
    a, b = NASTY[at], NASTY[at - 5]
    mine = trained.encode(a, b, specials=True)
    reference = in_a_batch(theirs, a, b)
    assert mine.input_ids == reference["input_ids"]
    assert mine.token_type_ids == reference["token_type_ids"]
    assert mine.offsets == reference["offset_mapping"]


def test_markup_in_a_text_is_text(trained):
    text = "[MASK] and [SEP]"
    plain, special = trained.encode(text), trained.encode(text, specials=True)
    assert not set(plain.input_ids[1:-1]) & {trained.mask_id, trained.sep_id}
    assert special.input_ids[1] == trained.mask_id
    assert special.input_ids[-2:] == [trained.sep_id] * 2
    assert trained.encode(text).input_ids == plain.input_ids
    assert trained.encode_documents([text])[0].tolist() == plain.input_ids[1:-1]


@pytest.mark.parametrize("a", [0, 1, 2, 5, 8, 13])
@pytest.mark.parametrize("b", [None, 0, 1, 2, 5, 8, 13])
def test_truncation_is_longest_first(trained, theirs, a, b):
    first, second = (
        " ".join("abc"[i % 3] for i in range(a)),
        b if b is None else " ".join("de"[i % 2] for i in range(b)),
    )
    for length in range(3 if b is None else 4, 32):
        mine = trained.encode(first, second, max_length=length)
        reference = in_a_batch(theirs, first, second, max_length=length, truncation="longest_first")
        assert mine.input_ids == reference["input_ids"], length
        assert mine.token_type_ids == reference["token_type_ids"]
        assert mine.offsets == reference["offset_mapping"]
        kept = [mine.token_type_ids.count(0) - 2, max(0, mine.token_type_ids.count(1) - 1)]
        assert mine.cut == (a - kept[0], (b or 0) - kept[1])
        assert len(mine.tokens) == len(mine.input_ids) <= length


@pytest.mark.parametrize(("pair", "length"), [(None, 2), (None, 0), ("b", 3), ("b", -1)])
def test_no_room_for_text_is_refused(trained, pair, length):
    with pytest.raises(DataError, match=f"max_length {length} leaves no room"):
        trained.encode("a", pair, max_length=length)


def test_offsets_point_into_the_text(trained):
    text = "bonga Fesi,  tur."
    e = trained.encode(text)
    words = [text[i:j] for i, j in e.offsets[1:-1]]
    assert "".join(words) == text.replace(" ", "")
    assert e.offsets[0] == e.offsets[-1] == (0, 0)


def test_decode(trained):
    e = trained.encode("bonga fesi, tur.")
    assert trained.decode(e.input_ids) == "bonga fesi, tur."
    assert trained.decode([]) == ""
    assert trained.lowercase == (trained.decode(trained.encode("LUR").input_ids) == "lur")


@pytest.mark.parametrize("text", ["a \ud800", "\udfff"])
def test_a_lone_surrogate_is_one_line(trained, text):
    for texts in ((text,), ("fine", text)):
        with pytest.raises(DataError, match="lone surrogate"):
            trained.encode(*texts)


def test_an_endless_word_does_not_stop_training():
    """It is [UNK] when it is read, so it may not cost minutes (it took quadratic time), nor change a piece."""
    text = "the quick brown fox jumps over the lazy dog while seven wizards box with five dozen liquor jugs " * 9
    with_it = Tokenizer.train([text, "x" * 1_000_000, text], 128)
    assert with_it.fingerprint() == Tokenizer.train([text, "x", text], 128).fingerprint()
    assert with_it.encode("x" * 101).tokens == ["[CLS]", "[UNK]", "[SEP]"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "normalizer 'Precompiled'"),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "Replace"}]}}, "normalizer 'Replace'"),
        ({"model": {"type": "WordPiece", "unk_token": "[NOPE]", "vocab": {}}}, r"only WordPiece with \[UNK\]"),
        ({"model": {"vocab": {}, "merges": []}}, "tokenizer"),
        ({"normalizer": {"type": "Sequence", "normalizers": 7}}, "normalizer 7"),
        ({"normalizer": {"type": "Sequence", "normalizers": {"a": 1}}}, "normalizer {'a': 1}"),
        ({"normalizer": {"type": []}}, r"normalizer \[\] is not supported"),
        ({"model": [1]}, "not a tokenizer file"),
    ],
)
def test_a_tokenizer_file_that_would_panic_later_is_refused(trained, tmp_path, change, said):
    trained.save(tmp_path, model_max_length=64)
    spec = json.loads((tmp_path / "tokenizer.json").read_text()) | change
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(DataError, match=said):
        Tokenizer.load(tmp_path)


# -- more words -----------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path):
    """Lower-case: a, b, ab, ##a, ##b, ##bab, c; no ##c."""
    file = tmp_path / "small" / "vocab.txt"
    file.parent.mkdir()
    file.write_text("\n".join([*SPECIALS, "a", "b", "ab", "##a", "##b", "##bab", "c"]) + "\n")
    return Tokenizer.load(file)


def added(t: Tokenizer, tmp_path, *lines: str) -> tuple[Tokenizer, list[list[int]]]:
    (tmp_path / "words.txt").write_text("\n".join(lines), encoding="utf-8")
    return t.with_words(tmp_path / "words.txt")


def test_added_words_come_after_all_others_and_say_what_they_were(small, tmp_path):
    """Words that are known and blank lines are left out; the rest keep their order in the file."""
    more, before = added(small, tmp_path, "abbab", "", "  abba\r", "a", "cc", "##abb", "##bab", "[MASK]")
    assert (small.vocab_size, more.vocab_size) == (12, 16)
    assert [more.token(id) for id in range(12)] == [small.token(id) for id in range(12)]
    assert [more.token(id) for id in range(12, 16)] == ["abbab", "abba", "cc", "##abb"]
    pieces = [[small.token(id) for id in ids] for ids in before]
    assert pieces == [["ab", "##bab"], ["ab", "##b", "##a"], ["[UNK]"], ["ab", "##b"]]
    assert more.encode("Abbab abba cc cabb c").tokens[1:-1] == ["abbab", "abba", "cc", "c", "##abb", "c"]
    assert more.special_ids == small.special_ids
    assert more.lowercase


def test_a_word_that_goes_on_with_another_was_made_of_pieces_that_do(small, tmp_path):
    """Where they are known: "b" inside a word was "##b"."""
    _, before = added(small, tmp_path, "##ba", "##ca")
    assert [[small.token(id) for id in ids] for ids in before] == [["##b", "##a"], ["c", "##a"]]


def test_text_without_an_added_word_is_encoded_as_before(trained, tmp_path, prose):
    more, before = added(trained, tmp_path, "qqqqzzzz", "##zzzzqqqq")
    for text in (*NASTY, *prose[:20]):
        assert more.encode(text).input_ids == trained.encode(text).input_ids
    assert before[0] == trained.encode("qqqqzzzz").input_ids[1:-1]
    assert trained.vocab_size == 512  # this one stays as it was
    assert more.vocab_size == 514


def test_words_come_after_tokens_that_were_added_before(small, tmp_path):
    """Which keep their ids, also when the file is read again."""
    backend = small.backend
    backend.add_tokens(["[e1]", "[e2]"])
    more, _ = added(Tokenizer(backend, True), tmp_path, "abba", "cc")
    (tmp_path / "saved").mkdir()
    more.save(tmp_path / "saved", model_max_length=64)
    for each in (more, Tokenizer.load(tmp_path / "saved")):
        assert [each.token(id) for id in range(12, 16)] == ["[e1]", "[e2]", "abba", "cc"]
        assert each.vocab_size == 16
        assert each.encode("abba cc c").input_ids == [2, 14, 15, 11, 3]


def directory_of(tmp_path, words, **config):
    """As Google's: a vocab.txt, and perhaps a tokenizer_config.json."""
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIALS, *words]) + "\n")
    if config:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


def test_a_token_in_brackets_does_not_make_a_vocabulary_cased(tmp_path):
    t = Tokenizer.load(directory_of(tmp_path / "a", ["[URL]", "<S>", "the", "cat", "##s"]))
    assert t.encode("The Cats").tokens[1:-1] == ["the", "cat", "##s"]
    assert t.note == "vocab.txt: lower-case, by its words"
    assert not Tokenizer.load(directory_of(tmp_path / "b", ["[URL]", "The", "cat", "##s"])).lowercase


def test_tokens_that_a_vocabulary_has_not_are_refused(tmp_path):
    """They are words of the model, and no row of its table may be taken for another one's."""
    directory = directory_of(tmp_path / "a", ["the", "c", "##o", "##v"])
    for known in ("{}", '{"[MASK]": 4, "c": 6}'):
        (directory / "added_tokens.json").write_text(known)
        assert Tokenizer.load(directory).vocab_size == 9
    (directory / "added_tokens.json").write_text('{"[MASK]": 4, "covid": 9}')
    with pytest.raises(DataError, match=r"added_tokens\.json: adds 'covid' to the vocab\.txt; give a tokenizer\.json"):
        Tokenizer.load(directory)
    stated = {"0": {"content": "[PAD]"}, "7": {"content": "covid"}}
    with pytest.raises(DataError, match=r"tokenizer_config\.json: adds '7' to the vocab\.txt"):
        Tokenizer.load(directory_of(tmp_path / "b", ["the", "cat"], added_tokens_decoder=stated))
    del stated["7"]
    assert Tokenizer.load(directory_of(tmp_path / "c", ["the", "cat"], added_tokens_decoder=stated)).vocab_size == 7


def test_a_tokenizer_json_is_read_as_its_config_says(tmp_path):
    """As transformers does; the two must agree on the case."""
    small = Tokenizer.load(
        directory_of(tmp_path / "a", ["café", "cafe", "caf", "中", "文", "##文"], do_lower_case=True)
    )
    (tmp_path / "b").mkdir()
    small.save(tmp_path / "b", model_max_length=64)
    config = json.loads((tmp_path / "b" / "tokenizer_config.json").read_text())

    def ids(**changes):
        (tmp_path / "b" / "tokenizer_config.json").write_text(json.dumps(config | changes))
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "b")
        own = Tokenizer.load(tmp_path / "b")
        text = "Café 中文"
        assert own.encode(text).input_ids == theirs(text).input_ids
        return own.encode(text).tokens[1:-1]

    transformers = pytest.importorskip("transformers")
    assert ids() == ["cafe", "中", "文"]
    assert ids(strip_accents=False) == ["café", "中", "文"]
    (tmp_path / "b" / "tokenizer_config.json").write_text(json.dumps(config | {"strip_accents": "no"}))
    with pytest.raises(DataError, match="strip_accents is 'no'; give true or false"):
        Tokenizer.load(tmp_path / "b")
    assert ids(tokenize_chinese_chars=False) == ["cafe", "中", "##文"]
    (tmp_path / "b" / "tokenizer_config.json").write_text(json.dumps(config | {"do_lower_case": False}))
    with pytest.raises(DataError, match=r"do_lower_case is False, and tokenizer\.json does otherwise"):
        Tokenizer.load(tmp_path / "b")


@pytest.mark.parametrize(
    "change",
    [
        {"pre_tokenizer": {"type": "WhitespaceSplit"}},
        {"model": {"max_input_chars_per_word": 300}},
        {"normalizer": {"clean_text": False}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_is_not_berts_is_saved_as_a_tokenizer_that_says_so(small, tmp_path, change):
    """transformers' BertTokenizer would split texts otherwise."""
    transformers = pytest.importorskip("transformers")
    spec = json.loads(small.backend.to_str())
    for part, own in change.items():
        spec[part] = (spec[part] | own) if part != "pre_tokenizer" else own
    other = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(spec)), True)
    (tmp_path / "saved").mkdir()
    other.save(tmp_path / "saved", model_max_length=64)
    config = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    for text in ("a-b c", "ab" * 60 + " a", "a\x01b"):
        assert theirs(text).input_ids == other.encode(text).input_ids


def test_added_words_are_saved(small, tmp_path):
    more, _ = added(small, tmp_path, "abba", "##abb")
    (tmp_path / "saved").mkdir()
    more.save(tmp_path / "saved", model_max_length=64)
    for name in ("", "vocab.txt"):
        loaded = Tokenizer.load(tmp_path / "saved" / name)
        assert loaded.vocab_size == 14
        assert loaded.encode("abba cabb [MASK]", specials=True).input_ids == [2, 12, 11, 13, 4, 3]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["abba", "Abba"], ":2: 'Abba' is never found in a text; give words of at most 100 characters, in lower case,"),
        (["two words"], ":1: 'two words' is never found"),
        (["", "co-op"], ":2: 'co-op' is never found"),
        (["##"], ":1: '##' is never found"),
        (["naïve"], ":1: 'naïve' is never found"),  # lower-casing takes the accent
        (["[NEW]"], ":1: '[NEW]' is never found"),
        (["日本"], ":1: '日本' is never found"),  # each such character is a word
        (["x" * 101], "is never found"),
        (["abba", "cc", "abba"], ":3: 'abba' appears twice"),
        (["a", "ab", ""], ": all its words are in the vocabulary"),
        ([], ": all its words are in the vocabulary"),
    ],
)
def test_words_that_cannot_be_added_are_named(small, tmp_path, lines, said):
    with pytest.raises(DataError) as error:
        added(small, tmp_path, *lines)
    assert f"{tmp_path / 'words.txt'}" in str(error.value)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_cased_vocabulary_takes_capitals(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIALS, "A", "b", "##b"]))
    more, before = added(Tokenizer.load(tmp_path), tmp_path, "Abb", "bÄ")
    assert more.encode("Abb abb bÄ").input_ids == [2, 8, 1, 9, 3]
    assert before == [[5, 7, 7], [1]]


@pytest.mark.parametrize("content", [None, b"caf\xe9\n"])
def test_a_file_of_words_that_cannot_be_read_is_named(small, tmp_path, content):
    if content:
        (tmp_path / "words.txt").write_bytes(content)
    with pytest.raises(DataError, match=f"--add-tokens {tmp_path / 'words.txt'}: cannot be read") as error:
        small.with_words(tmp_path / "words.txt")
    assert "\n" not in str(error.value)

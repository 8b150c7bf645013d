"""Ids, offsets, masks, words and texts are those of transformers' tokenizer, on plain and on nasty strings."""

import gzip
import json
import lzma
import os
import re
import shutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
import transformers

import minilm
from minilm.data.tokenizer import Tokenizer
from minilm.dropin.config import BertConfig
from minilm.dropin.models import BertModel
from minilm.dropin.tokenizer import BertTokenizer
from minilm.errors import ConfigError, DataError

DATA = Path(__file__).parents[3] / "shared" / "data"
TEXT = "the quick brown fox jumps over the lazy dog, naïve café don't won't HELLO world 中文 [ ] ( ) . ! ? ' " * 20
NASTY = [
    "",
    " ",
    "\n\t\r",
    "Hello, my dog is cute",
    "don't won't it's .",
    "naïve café Ångström ﬁne İstanbul",
    "中文字符 かな 한글",
    "🙂👩‍👩‍👧‍👦🇩🇪",
    "control\x00\x01\x02\x7f characters\x85",
    "zero\u200bwidth\u200djoin\ufeff bom \u00ad soft",
    "line\u2028separator\u2029paragraph",
    "x" * 10_000,
    "word " * 700,
    "a [MASK] b [SEP] c [CLS] [UNK] [PAD] [mask]",
    "[MASK][MASK]",
    "the ##quick [unused1]",
    "1,234.56€ 50% @user #tag http://a.b/c?d=e&f",
    "ＦＵＬＬ ｗｉｄｔｈ ① ½",
    "\u202eright to left\u202c مرحبا שלום",
    "e\u0301 combining a\u0308",
]
EVERYTHING = {
    "return_offsets_mapping": True,
    "return_special_tokens_mask": True,
    "return_token_type_ids": True,
    "return_length": True,
}


def save_roberta(directory):
    """A byte-level BPE as RoBERTa's, in its own files."""
    model = tokenizers.ByteLevelBPETokenizer()
    model.train_from_iterator([TEXT], vocab_size=300, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    model.save_model(str(directory))
    (directory / "config.json").write_text(json.dumps({"model_type": "roberta", "vocab_size": 400}))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "RobertaTokenizer", "model_max_length": 64})
    )


def save_bert(directory, lowercase=True, tokenizer_class="BertTokenizer"):
    Tokenizer.train([TEXT], 128, lowercase=lowercase).save(directory, 64)
    config = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": tokenizer_class}))


KINDS = {
    "bert": save_bert,
    "cased": lambda directory: save_bert(directory, lowercase=False),
    "distilbert": lambda directory: save_bert(directory, tokenizer_class="DistilBertTokenizer"),
    "of any file": lambda directory: save_bert(directory, tokenizer_class="PreTrainedTokenizerFast"),
    "roberta": save_roberta,
}


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """A directory of each kind."""
    made = {kind: tmp_path_factory.mktemp(kind.replace(" ", "-")) for kind in KINDS}
    for kind, directory in made.items():
        KINDS[kind](directory)
    return made


@pytest.fixture(params=KINDS)
def both(request, directories, tmp_path):
    """(ours, theirs) of one directory."""
    shutil.copytree(directories[request.param], tmp_path, dirs_exist_ok=True)
    name = {
        "distilbert": "DistilBertTokenizer",
        "roberta": "RobertaTokenizer",
        "of any file": "PreTrainedTokenizerFast",
    }
    theirs = getattr(transformers, name.get(request.param, "BertTokenizer")).from_pretrained(tmp_path)
    return BertTokenizer.from_pretrained(tmp_path), theirs


def assert_same(mine, reference):
    assert list(mine) == list(reference)
    for key, value in mine.items():
        if isinstance(value, torch.Tensor | np.ndarray):
            assert (value == reference[key]).all(), key
            assert value.dtype == reference[key].dtype
        else:
            assert value == reference[key], key


@pytest.mark.parametrize("split", [False, True])
def test_single_texts(both, split):
    ours, theirs = both
    for text in NASTY:
        options = EVERYTHING | {"split_special_tokens": split}
        assert_same(ours(text, **options), theirs(text, **options))
    assert_same(ours(NASTY, **EVERYTHING), theirs(NASTY, **EVERYTHING))
    assert_same(ours(NASTY), theirs(NASTY))


def test_rows_of_unequal_lengths_are_an_array_of_rows(both):
    found, wanted = (each(["a dog", "the quick brown fox", "a"], return_tensors="np") for each in both)
    assert found.keys() == wanted.keys()
    for name, rows in wanted.items():
        assert found[name].dtype == rows.dtype == object
        assert [own.tolist() for own in found[name]] == [own.tolist() for own in rows]


@pytest.mark.parametrize("truncation", [True, "longest_first", "only_first", "only_second", False])
def test_pairs_cut_and_padded(both, truncation):
    ours, theirs = both
    long = [text for text in NASTY if len(text) > 20]
    first = ["the quick brown fox jumps over " * n for n in range(1, 1 + len(long))]
    if truncation == "only_first":
        first, long = long, ["a dog"] * len(long)
    if truncation == "only_second":
        first = ["a dog"] * len(long)
    for padding in (False, True, "max_length"):
        options = EVERYTHING | {"truncation": truncation, "padding": padding, "max_length": 24}
        assert_same(ours(first, long, **options), theirs(first, long, **options))
        assert_same(ours(first[0], long[0], **options), theirs(first[0], long[0], **options))


@pytest.mark.parametrize("side", ["left", "right"])
def test_sides_strides_and_multiples(both, side):
    ours, theirs = both
    for tokenizer in both:
        tokenizer.padding_side = tokenizer.truncation_side = side
    options = {"truncation": True, "padding": True, "max_length": 16, "return_overflowing_tokens": True, "stride": 5}
    mine, reference = (tokenizer(NASTY, **options, **EVERYTHING) for tokenizer in both)
    assert_same(mine, reference)
    options = {"padding": True, "pad_to_multiple_of": 8, "return_tensors": "pt"}
    assert_same(ours(NASTY[:10], **options), theirs(NASTY[:10], **options))
    options = {"padding": "max_length", "max_length": 32, "truncation": True, "return_tensors": "np"}
    assert_same(ours(NASTY, **options), theirs(NASTY, **options))


def test_words_given_one_by_one(tmp_path):
    save_bert(tmp_path)
    ours, theirs = BertTokenizer.from_pretrained(tmp_path), transformers.BertTokenizer.from_pretrained(tmp_path)
    words = [["Hello", "naïve", "world"], ["don't", "", "x" * 200], ["one"]]
    options = {"is_split_into_words": True, "padding": True}
    mine, reference = ours(words, **options), theirs(words, **options)
    assert_same(mine, reference)
    assert_same(ours(words[0], is_split_into_words=True), theirs(words[0], is_split_into_words=True))
    assert_same(ours(words, words[::-1], **options), theirs(words, words[::-1], **options))
    for row in range(3):
        assert mine.word_ids(row) == reference.word_ids(row)


def test_the_way_back(both):
    ours, theirs = both
    text, pair = "Hello, naïve don't world", "the quick dog"
    mine, reference = ours(text, pair), theirs(text, pair)
    assert mine.tokens() == reference.tokens()
    assert mine.word_ids() == reference.word_ids()
    assert mine.sequence_ids() == reference.sequence_ids()
    for i in range(len(text)):
        assert mine.char_to_token(i) == reference.char_to_token(i)
        assert mine.char_to_token(0, i) == reference.char_to_token(0, i)
    for i in range(len(pair)):
        assert mine.char_to_token(0, i, 1) == reference.char_to_token(0, i, 1)
        assert mine.char_to_word(0, i, 1) == reference.char_to_word(0, i, 1)
    for i in range(1, len(mine.input_ids) - 1):
        assert repr(mine.token_to_chars(i)) == repr(reference.token_to_chars(i))
        assert mine.token_to_word(i) == reference.token_to_word(i)
    for word in range(4):
        assert repr(mine.word_to_tokens(word)) == repr(reference.word_to_tokens(word))
        assert repr(mine.word_to_chars(word)) == repr(reference.word_to_chars(word))
    ids = ours(NASTY).input_ids
    for skip in (False, True):
        for clean in (None, False, True):
            options = {"skip_special_tokens": skip, "clean_up_tokenization_spaces": clean}
            assert ours.batch_decode(ids, **options) == theirs.batch_decode(ids, **options)
        assert ours.convert_ids_to_tokens(ids[3], skip) == theirs.convert_ids_to_tokens(ids[3], skip)
    assert ours.decode(torch.tensor(ids[3])) == theirs.decode(ids[3])
    assert ours.tokenize(text) == theirs.tokenize(text)
    assert ours.convert_tokens_to_ids(["dog", "none at all"]) == theirs.convert_tokens_to_ids(["dog", "none at all"])
    tokens = theirs.tokenize(text)
    assert ours.convert_tokens_to_string(tokens) == theirs.convert_tokens_to_string(tokens)


def test_what_a_tokenizer_says_of_itself(both):
    ours, theirs = both
    roles = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
    for name in (f"{role}_token{end}" for role in roles for end in ("", "_id")):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.model_max_length == theirs.model_max_length == 64
    assert ours.model_input_names == theirs.model_input_names
    assert sorted(ours.all_special_ids) == sorted(theirs.all_special_ids)
    assert {id: str(token) for id, token in ours.added_tokens_decoder.items()} == {
        id: str(token) for id, token in theirs.added_tokens_decoder.items()
    }
    assert ours.name_or_path == str(theirs.name_or_path)
    assert ours.get_vocab() == theirs.get_vocab()
    assert (len(ours), ours.vocab_size) == (len(theirs), theirs.vocab_size)
    told = re.split(r"name_or_path='[^']*', |, added_tokens_decoder=", repr(theirs))
    assert repr(ours).partition("(")[2] == f"{told[0]}{told[1]})".partition("(")[2]  # after the class
    assert ours.num_special_tokens_to_add(True) == theirs.num_special_tokens_to_add(True)
    for name, pair in (("max_len_single_sentence", False), ("max_len_sentences_pair", True)):
        assert (
            getattr(ours, name)
            == 64 - theirs.num_special_tokens_to_add(pair)
            == getattr(theirs, name, getattr(ours, name))
        )
    assert ours.encode("a dog", "a fox") == theirs.encode("a dog", "a fox")
    assert ours.encode("a dog", add_special_tokens=False) == theirs.encode("a dog", add_special_tokens=False)
    assert torch.equal(ours.encode("a dog", return_tensors="pt"), theirs.encode("a dog", return_tensors="pt"))


def test_saved_and_opened_by_both(both, tmp_path):
    ours, theirs = both
    assert ours.add_tokens(["newword"]) == theirs.add_tokens(["newword"]) == 1
    assert ours("a newword").input_ids == theirs("a newword").input_ids
    ours.save_pretrained(tmp_path / "out")
    again = BertTokenizer.from_pretrained(tmp_path / "out")
    opened = type(theirs).from_pretrained(tmp_path / "out")
    for text in [*NASTY, "a newword"]:
        expected = theirs(text, **EVERYTHING)
        assert_same(again(text, **EVERYTHING), expected)
        assert_same(opened(text, **EVERYTHING), expected)
    assert again.model_input_names == ours.model_input_names
    assert opened.model_max_length == again.model_max_length == 64


@pytest.mark.parametrize("lowercase", [True, False], ids=["lower-case", "cased"])
def test_real_lines(tmp_path, lowercase):
    """More than 20,000 lines of Wikipedia and of English and German captions: single, as pairs, cut every way (cased:
    every fifth of them)."""
    wiki, captions = DATA / "pretrain" / "enwiki-valid.txt.xz", DATA / "seq2seq" / "multi30k"
    if not wiki.exists():
        pytest.skip("no such data")
    with lzma.open(wiki, "rt", encoding="utf-8") as stream:
        lines = [line for line in stream if line.strip()]
    for language in ("en", "de"):
        with gzip.open(captions / f"train.{language}.gz", "rt", encoding="utf-8") as stream:
            lines += islice(stream, 9000)
    assert len(lines) > 20_000
    Tokenizer.train(lines, 4096, lowercase).save(tmp_path, 512)
    ours, theirs = BertTokenizer.from_pretrained(tmp_path), transformers.BertTokenizer.from_pretrained(tmp_path)
    lines = lines if lowercase else lines[::5]
    short = ["Ein Hund läuft."] * len(lines)
    for texts, pairs, options in (
        (lines, None, {}),
        (lines, None, {"truncation": True, "max_length": 24}),
        (lines, lines[::-1], {"truncation": "longest_first", "max_length": 40}),
        (lines, short, {"truncation": "only_first", "max_length": 24}),
        (short, lines, {"truncation": "only_second", "max_length": 24}),
    ):
        options |= {"return_offsets_mapping": True, "verbose": False}
        assert_same(ours(texts, pairs, **options), theirs(texts, pairs, **options))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": "max_length", "max_length": 40},
        {"padding": "longest", "pad_to_multiple_of": 8, "padding_side": "left"},
        {"padding": False, "return_tensors": None},
        {"padding": "max_length"},
    ],
)
def test_padding_of_a_batch_that_is_collated(both, options):
    """As by transformers' DataCollatorWithPadding, of dictionaries and of lists by name, with labels beside."""
    ours, theirs = both
    options = {"return_tensors": "pt"} | options
    texts = ["the quick fox", "dog", "the quick brown fox jumps over"]
    rows = [ours(text, return_special_tokens_mask=True) | {"labels": i} for i, text in enumerate(texts)]
    by_name = {name: [row[name] for row in rows] for name in rows[0]}
    for given in (rows, by_name):
        mine, reference = ours.pad(given, **options), theirs.pad(given, **options)
        assert {*mine} == {*reference}
        for name, value in reference.items():
            assert torch.equal(mine[name], value) if isinstance(value, torch.Tensor) else mine[name] == value
    if options == {"return_tensors": "pt"}:
        collated = transformers.DataCollatorWithPadding(ours)(rows)
        assert collated["input_ids"].shape == collated["attention_mask"].shape
    with pytest.raises(DataError, match="no input_ids to pad, but labels"):
        ours.pad([{"labels": 1}])


@pytest.mark.parametrize("options", [{"max_length": 4}, {"return_tensors": "pt"}, {"padding_side": "left"}])
def test_padding_of_one_text(both, options):
    row = {"input_ids": [5, 6], "special_tokens_mask": [0, 0]}
    ours, theirs = (tokenizer.pad(dict(row), "max_length", **options) for tokenizer in both)
    assert_same({name: ours[name] for name in theirs}, theirs)
    with pytest.raises(ConfigError, match="padding 'longestt': give True, False or 'max_length'"):
        both[0].pad(row, padding="longestt")


@pytest.mark.parametrize("labels", [[0.7, 1.9], [1, 0.5], [3, 4], [True, False], [[0.0, 1.0], [1.0, 0.0]]])
def test_labels_in_a_batch_are_what_they_were(tmp_path, labels):
    save_bert(tmp_path)
    ours, theirs = BertTokenizer.from_pretrained(tmp_path), transformers.BertTokenizer.from_pretrained(tmp_path)
    rows = [dict(ours(text)) | {"label": label} for text, label in zip(["the dog", "fox"], labels, strict=True)]
    mine, reference = (transformers.DataCollatorWithPadding(tokenizer)(rows) for tokenizer in (ours, theirs))
    assert_same({"labels": mine["labels"]}, {"labels": reference["labels"]})
    assert_same(ours.pad(rows, return_tensors="np"), {name: np.array(each) for name, each in theirs.pad(rows).items()})
    with pytest.raises(DataError, match="text: not of numbers, so no tensor"):
        ours.pad([rows[0] | {"text": "the dog"}], return_tensors="pt")


E = tokenizers.AddedToken("<e>", lstrip=True, single_word=True)
ADDITIONS = {
    "a token": lambda t: t.add_tokens(tokenizers.AddedToken("Zzqq", single_word=True)),
    "tokens": lambda t: t.add_tokens([E, "Zzqq"]),
    "a special token": lambda t: t.add_tokens(E, special_tokens=True),
    "special tokens": lambda t: t.add_special_tokens({"additional_special_tokens": [E, "Zzqq"]}),
    "a role": lambda t: t.add_special_tokens({"mask_token": E}),
    "a role's token": lambda t: setattr(t, "eos_token", "dog"),
    "a role's new token": lambda t: setattr(t, "eos_token", "<new>"),
    "more special tokens": lambda t: [
        t.add_special_tokens({"extra_special_tokens": [token]}, replace_extra_special_tokens=False) for token in "<>"
    ],
    "other special tokens": lambda t: setattr(t, "extra_special_tokens", ["d", "a"]),
    "an unknown token": lambda t: setattr(t, "unk_token", "dog"),
    "special tokens that are put": lambda t: setattr(t, "extra_special_tokens", None),
    "a role's id": lambda t: setattr(t, "pad_token_id", t.get_vocab()["d"]),
    "nobody's id": lambda t: setattr(t, "eos_token_id", None),
}


@pytest.mark.parametrize("what", ADDITIONS)
def test_tokens_are_added_as_they_are(both, tmp_path, what):
    """With what an AddedToken says of itself; so does one that is given to from_pretrained."""
    texts = [*NASTY, "a  <e> Zzqq b<e>x Zzqqx zzqq dog"]
    assert ADDITIONS[what](both[0]) == ADDITIONS[what](both[1])
    mine, reference = (tokenizer(texts, padding=True, **EVERYTHING) for tokenizer in both)
    assert_same(mine, reference)
    for name in ("pad_token", "eos_token", "eos_token_id", "extra_special_tokens", "extra_special_tokens_ids"):
        assert getattr(both[0], name) == getattr(both[1], name), name
    assert len(both[0]) == len(both[1])
    more = {"additional_special_tokens": [E], "eos_token": "Zzqq"}
    ours, theirs = (type(tokenizer).from_pretrained(tmp_path, **more) for tokenizer in both)
    assert_same(ours(texts, **EVERYTHING), theirs(texts, **EVERYTHING))
    with pytest.raises(ConfigError, match="pad_token_id 99999: the tokenizer has no such token"):
        ours.pad_token_id = 99_999


def test_markers_are_special_in_other_threads_meanwhile(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "film"]
    tokenizer = BertTokenizer({word: id for id, word in enumerate(words)})
    tokenizer.add_special_tokens({"additional_special_tokens": ["[SUBJ]"]})
    texts, wanted = ["the film [SUBJ] [SEP]"] * 200, ["[CLS]", "the", "film", "[SUBJ]", *["[UNK]"] * 3, "[SEP]"]

    def split(_):
        return tokenizer(texts, split_special_tokens="roles").tokens() == wanted

    with ThreadPoolExecutor(2) as pool:
        found = pool.map(split, range(20))
        assert all(tokenizer.decode([5, 7], skip_special_tokens=True) == "the" for _ in range(5000))
        assert all(tokenizer.markers == ["[SUBJ]"] for _ in range(500))
        assert all(found)


def test_threads_do_not_take_each_others_options(tmp_path):
    save_bert(tmp_path)
    ours = BertTokenizer.from_pretrained(tmp_path)
    calls = [{"truncation": True, "max_length": length} for length in (5, 9, 17)] + [{"verbose": False}]
    texts = [TEXT[:200]] * 4
    expected = [ours(texts, **options).input_ids for options in calls]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: ours(texts, **calls[i % 4]).input_ids == expected[i % 4], range(800)))
    assert all(found)


def test_a_forked_process_finds_it_whole(tmp_path):
    """While other threads set options: it inherits neither a lock that nobody opens nor half of the options."""
    save_bert(tmp_path)
    ours = BertTokenizer.from_pretrained(tmp_path)
    stop = threading.Event()

    def busy():
        while not stop.is_set():
            ours([TEXT] * 16, truncation=True, max_length=16)

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        for _ in range(20):
            if not (child := os.fork()):
                signal.alarm(20)
                os._exit(0 if ours("dog", truncation=True, max_length=9).input_ids else 1)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
        thread.join()


def test_what_a_signal_s_handler_raises_is_no_text_s_fault(tmp_path):
    save_bert(tmp_path)
    ours = BertTokenizer.from_pretrained(tmp_path)

    class TimeIsUp(BaseException):
        pass

    def handler(*args):
        raise TimeIsUp

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(TimeIsUp):
            [ours([TEXT] * 64) for _ in range(10_000)]
    finally:
        signal.signal(signal.SIGALRM, before)


def test_masks_of_special_tokens_are_theirs(both):
    ours, theirs = both
    ids = ours(TEXT, truncation=True, max_length=12).input_ids
    mask = theirs.get_special_tokens_mask(ids, already_has_special_tokens=True)
    assert ours.get_special_tokens_mask(ids, already_has_special_tokens=True) == mask
    assert ours.get_added_vocab() == theirs.get_added_vocab()


def test_the_data_of_an_encoding_is_the_thing_itself(both):
    for encoding in (tokenizer("the dog") for tokenizer in both):
        encoding.data["labels"] = [1]
        encoding.data.pop("attention_mask")
        assert "labels" in encoding
        assert "attention_mask" not in encoding


def test_a_longer_text_is_said(tmp_path, caplog):
    save_bert(tmp_path)
    ours = BertTokenizer.from_pretrained(tmp_path)
    ours("dog " * 100)
    assert (
        f"a text has {2 + 100 * len(ours.tokenize('dog'))} tokens, and the model reads 64: truncation=True cuts it"
        in caplog.text
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t(None), "text 0 is None; give strings"),
        (lambda t: t(["a", 3.5]), "text 1 is 3.5"),
        (lambda t: t("\ud800"), "text 0 holds a lone surrogate"),
        (lambda t: t(["a", "b"], "c"), "text_pair has one text, and text has 2"),
        (lambda t: t(["a", "a dog"], return_tensors="pt"), "rows of unequal lengths"),
        (lambda t: t(["a", "a dog"], return_tensors="tf"), "give 'pt' or 'np'"),
        (lambda t: t("a", return_tensors="tf"), "return_tensors 'tf'"),
        (lambda t: t("a", truncation="middle"), "truncation 'middle'"),
        (lambda t: t("a", padding="left"), "padding 'left'"),
        (lambda t: t("a", truncation=True, max_length=1), "max_length 1 leaves no room"),
        (lambda t: t("a", truncation=True, max_length=8, stride=6), "stride 6"),
        (lambda t: t(TEXT, TEXT, truncation=True, max_length=20, stride=9), "cannot be tokenized"),
        (lambda t: t(TEXT, truncation=True, max_length=8, stride=8, add_special_tokens=False), "stride 8"),
        (
            lambda t: t("a", truncation=True, padding="max_length", max_length=9, pad_to_multiple_of=4),
            "max_length 9 is no multiple of pad_to_multiple_of 4",
        ),
        (lambda t: t.get_special_tokens_mask([1]), "give already_has_special_tokens=True"),
        (lambda t: t("a", padding=True, padding_side="top"), "padding_side 'top'"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, call, message):
    save_bert(tmp_path)
    with pytest.raises((DataError, ConfigError), match=message) as caught:
        call(BertTokenizer.from_pretrained(tmp_path))
    assert "\n" not in str(caught.value)


def test_directories_that_are_refused(tmp_path):
    save_bert(tmp_path, lowercase=False)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"do_lower_case": True}))
    with pytest.raises(DataError, match=r"says do_lower_case True, and tokenizer.json does otherwise"):
        BertTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with (tmp_path / "vocab.txt").open("a") as file:
        file.write("".join(f"{chr(65 + i)}word\n" for i in range(20)))
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"have capital letters; do_lower_case must be false"):
        BertTokenizer.from_pretrained(tmp_path, do_lower_case=True)
    (tmp_path / "config.json").write_text('{"vocab_size": 50}')
    with pytest.raises(DataError, match=r"tokenizer ids go to \d+, the model has 50 tokens"):
        BertTokenizer.from_pretrained(tmp_path)
    (tmp_path / "vocab.txt").unlink()
    with pytest.raises(DataError, match="no tokenizer in it"):
        BertTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").symlink_to("/etc/hostname")
    with pytest.raises(DataError, match="leads out of its directory"):
        BertTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("said", [None, {"do_lower_case": True, "model_max_length": 64}])
@pytest.mark.parametrize("kept", ["tokenizer.json", "vocab.txt"])
@pytest.mark.parametrize("kind", ["bert", "electra", None])
def test_without_a_class_it_is_its_model_s(tmp_path, kind, kept, said):
    """As google's bert-base lies on the hub; what is saved knows the second text of a pair, too."""
    save_bert(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    for file in {"tokenizer.json", "vocab.txt"} - {kept}:
        (tmp_path / file).unlink()
    if said is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    if kind is not None:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    theirs = (transformers.AutoTokenizer if kind else transformers.BertTokenizerFast).from_pretrained(tmp_path)
    ours = BertTokenizer.from_pretrained(tmp_path)
    assert dict(ours("the dog", "fox")) == dict(theirs("the dog", "fox"))
    ours.save_pretrained(tmp_path / "out")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out")("a", "b").token_type_ids[-1] == 1


def test_added_tokens_await_a_longer_table(tmp_path, caplog):
    """Added and saved, the tokenizer opens beside the model of before, which refuses their ids until it has words of
    them."""
    save_bert(tmp_path)
    ours = BertTokenizer.from_pretrained(tmp_path)
    V = len(ours)
    BertModel(BertConfig(vocab_size=V, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(
        tmp_path
    )
    assert ours.add_tokens(["zzqq"]) == 1
    ours.save_pretrained(tmp_path)
    again, theirs = BertTokenizer.from_pretrained(tmp_path), transformers.BertTokenizer.from_pretrained(tmp_path)
    assert f"the tokenizer has added ids to {V}, the model {V} tokens" in caplog.text
    assert again("a zzqq").input_ids == theirs("a zzqq").input_ids
    named = {"additional_special_tokens": ["<x>"], "mask_token": "<y>"}
    assert len(BertTokenizer.from_pretrained(tmp_path, **named)) == V + 3
    model = BertModel.from_pretrained(tmp_path)
    with pytest.raises(DataError, match=rf"token id {V}, but the model has {V} tokens; call resize_token_embeddings"):
        model(**again("a zzqq", return_tensors="pt"))
    with pytest.raises(DataError, match=rf"the tokenizer has ids to {V}, the model {V} tokens"):
        minilm.embed(tmp_path, ["a dog"])
    model.resize_token_embeddings(len(again))
    model.save_pretrained(tmp_path)
    assert model(**again("a zzqq", return_tensors="pt")).last_hidden_state.isfinite().all()
    assert len(minilm.embed(tmp_path, ["a zzqq"])) == 1


def test_a_vocabulary_alone_is_that_of_a_bert(tmp_path):
    """Given by its file, as transformers' BertTokenizer takes it."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    theirs = transformers.BertTokenizer(str(tmp_path / "vocab.txt"))
    ours = BertTokenizer.from_pretrained(tmp_path / "vocab.txt")
    assert dict(ours("the", "cat")) == dict(theirs("the", "cat"))


ENTRY = {"lstrip": False, "rstrip": False, "single_word": False}
ADDED = {
    "added_tokens.json": ({}, {"NewWord": 65, "[E1]": 64}),
    "a tokenizer_config.json": (
        {
            "added_tokens_decoder": {
                "64": ENTRY | {"content": "[E1]", "special": True, "normalized": False},
                "65": ENTRY | {"content": "NewWord", "special": False, "normalized": True},
                "0": ENTRY | {"content": "[PAD]", "special": True, "normalized": False},
            }
        },
        None,
    ),
    "both": (
        {"added_tokens_decoder": {"64": ENTRY | {"content": "[E1]", "special": True, "lstrip": True}}},
        {"[E1]": 64},
    ),
}


@pytest.mark.parametrize("where", ADDED)
def test_added_tokens_beside_a_vocabulary(tmp_path, where):
    """Of a directory that a tokenizer in Python was saved to; their ids are those that it states."""
    save_bert(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    more, file = ADDED[where]
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | more))
    if file is not None:
        (tmp_path / "added_tokens.json").write_text(json.dumps(file))
    ours, theirs = BertTokenizer.from_pretrained(tmp_path), transformers.BertTokenizer.from_pretrained(tmp_path)
    text = "the  [E1] newword NewWord dog"
    assert_same(ours(text, **EVERYTHING), theirs(text, **EVERYTHING))
    assert ours.decode(ours(text).input_ids, skip_special_tokens=True) == theirs.decode(
        theirs(text).input_ids, skip_special_tokens=True
    )
    assert ours.get_added_vocab() == theirs.get_added_vocab()
    (tmp_path / "added_tokens.json").write_text('{"other": 140}')
    with pytest.raises(DataError, match=r"token 'other' should get id 140, but would get 6\d"):
        BertTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("bert", {"strip_accents": False}),
        ("bert", {"tokenize_chinese_chars": False}),
        ("bert", {"do_lower_case": False}),
        ("bert", {"do_lower_case": False, "strip_accents": True}),
        ("bert", {"cls_token": "[MASK]"}),
        ("bert", {"cls_token": "[SEP]", "sep_token": "[CLS]"}),
        ("bert", {"add_prefix_space": True}),
        ("cased", {"do_lower_case": True}),
        ("roberta", {"add_prefix_space": True}),
        ("roberta", {"sep_token": "<pad>", "do_lower_case": False}),
    ],
)
def test_how_it_splits_is_as_asked(tmp_path, kind, changes):
    """Also where there is a tokenizer.json, and what is saved splits so, too."""
    KINDS[kind](tmp_path)
    if kind == "roberta":
        BertTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
    theirs = getattr(transformers, "RobertaTokenizer" if kind == "roberta" else "BertTokenizer")
    ours, reference = BertTokenizer.from_pretrained(tmp_path, **changes), theirs.from_pretrained(tmp_path, **changes)
    ours.save_pretrained(tmp_path / "out")
    for own in (ours, BertTokenizer.from_pretrained(tmp_path / "out"), theirs.from_pretrained(tmp_path / "out")):
        for text in NASTY:
            assert_same(own(text, "the fox", **EVERYTHING), reference(text, "the fox", **EVERYTHING))


def test_a_directory_says_how_its_tokenizer_splits(tmp_path):
    """tokenizer_config.json more than tokenizer.json, as in transformers."""
    save_bert(tmp_path)
    spec = json.loads((tmp_path / "tokenizer.json").read_text())
    spec["normalizer"] |= {"strip_accents": False}
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    ours, theirs = BertTokenizer.from_pretrained(tmp_path), transformers.BertTokenizer.from_pretrained(tmp_path)
    assert_same(ours(NASTY), theirs(NASTY))
    (tmp_path / "roberta").mkdir()
    save_roberta(tmp_path / "roberta")
    for flag in ("strip_accents", "do_lower_case"):
        with pytest.raises(ConfigError, match=f"{flag}=True: this tokenizer cannot do that"):
            BertTokenizer.from_pretrained(tmp_path / "roberta", **{flag: True})


# -- special tokens of a config ----------------------------------------------------------------------

WORDS = ("[PAD]", "[UNK]", "<unk>", "[CLS]", "[SEP]", "[MASK]", "<s>", "</s>", "the", "dog", "<c>")


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"cls_token": "<s>", "sep_token": "</s>"},
        {"cls_token": tokenizers.AddedToken("<new>", special=True)},
        {"unk_token": "<unk>"},
        {"unk_token": "[MASK]", "mask_token": "<c>"},
    ],
)
def test_special_tokens_are_those_of_the_config(tmp_path, config):
    """Around a text, and for what is unknown: of a vocabulary, of its file, and of a tokenizer.json, after a reload."""
    vocab = {word: id for id, word in enumerate(WORDS)}
    (tmp_path / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS))
    for given in (vocab, str(tmp_path / "vocab.txt")):
        ours, theirs = (of(given, **config) for of in (BertTokenizer, transformers.BertTokenizer))
        for text in ("the dog barks", "<s> the </s> <c>"):
            assert_same(ours(text, "dog", **EVERYTHING), theirs(text, "dog", **EVERYTHING))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(
            {"tokenizer_class": "BertTokenizer"} | {role: str(getattr(t, "content", t)) for role, t in config.items()}
        )
    )
    ours, theirs = (of.from_pretrained(tmp_path) for of in (BertTokenizer, transformers.BertTokenizer))
    assert_same(ours("the dog barks", **EVERYTHING), theirs("the dog barks", **EVERYTHING))
    for name, tokenizer in (("ours", ours), ("theirs", theirs)):
        tokenizer.save_pretrained(tmp_path / name)
        reloaded = [of.from_pretrained(tmp_path / name) for of in (BertTokenizer, transformers.BertTokenizer)]
        assert_same(*(each("the dog barks", **EVERYTHING) for each in reloaded))


def test_a_role_that_is_added_is_around_texts_after_a_reload(tmp_path):
    save_bert(tmp_path)
    for name, of in (("ours", BertTokenizer), ("theirs", transformers.BertTokenizer)):
        tokenizer = of.from_pretrained(tmp_path)
        tokenizer.add_special_tokens({"cls_token": "<c>"})
        tokenizer.save_pretrained(tmp_path / name)
    for name in ("ours", "theirs"):
        mine, reference = (of.from_pretrained(tmp_path / name) for of in (BertTokenizer, transformers.BertTokenizer))
        assert_same(mine("the dog", **EVERYTHING), reference("the dog", **EVERYTHING))
        assert mine.convert_ids_to_tokens(mine("the dog").input_ids)[0] == "<c>"


def test_one_flat_list_is_one_text(both):
    ids = both[0]("the quick dog").input_ids
    for given in (ids, torch.tensor(ids), np.array(ids), [ids, ids], []):
        assert both[0].batch_decode(given) == both[1].batch_decode(given)


def test_tensors_are_padded_to_tensors(both):
    rows = [{"input_ids": torch.tensor([5, 6])}, {"input_ids": torch.tensor([7])}]
    mine, reference = (tokenizer.pad(rows) for tokenizer in both)
    assert_same(mine, reference)
    assert isinstance(mine["input_ids"], torch.Tensor)
    arrays = [{"input_ids": np.array([5, 6])}, {"input_ids": np.array([7])}]
    assert isinstance(both[0].pad(arrays)["input_ids"], np.ndarray)
    with pytest.raises(DataError, match=r"row 1 \(from 0\) has no labels, which row 0 has"):
        both[0].pad([{"input_ids": [5], "labels": 1}, {"input_ids": [5]}])


def test_a_long_text_is_warned_of_once(tmp_path, caplog):
    save_bert(tmp_path)
    tokenizer = BertTokenizer.from_pretrained(tmp_path)
    tokenizer("the " * 100, max_length=80, truncation=False)  # a length was thought of
    assert not caplog.records
    for _ in range(3):
        tokenizer("the " * 100)
    assert [record.getMessage() for record in caplog.records] == [
        "a text has 102 tokens, and the model reads 64: truncation=True cuts it (said once)"
    ]


def test_a_misspelled_argument_of_a_tokenizer(tmp_path):
    vocab = {word: id for id, word in enumerate(WORDS)}
    with pytest.raises(ConfigError, match="do_lowercase: no argument of a tokenizer; did you mean do_lower_case"):
        BertTokenizer(vocab, do_lowercase=False)
    passed_over = {"gobbledygook": 1, "pad_token_type_id": 0, "tokenizer_file": None, "max_length": 5}
    tokenizer = BertTokenizer(vocab, **passed_over)  # as in transformers
    assert len(tokenizer) == len(WORDS)
    tokenizer.unk_token = "<zzz>"
    assert tokenizer.unk_token_id is tokenizer.convert_tokens_to_ids("nope") is None
    tokenizer.extra_special_tokens = [tokenizers.AddedToken("<x>")]
    assert (tokenizer.extra_special_tokens, tokenizer.extra_special_tokens_ids) == (["<x>"], [None])


def test_a_tokenizer_keeps_what_no_config_changes(tmp_path):
    """Its own unknown token, and its own template."""
    model = tokenizers.models.WordPiece({word: id for id, word in enumerate(WORDS)}, unk_token="<unk>")
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    template = {"single": "[CLS] $A", "special_tokens": [("[CLS]", 3)]}
    backend.post_processor = tokenizers.processors.TemplateProcessing(**template)
    assert BertTokenizer(backend).tokenize("the zzz") == ["the", "<unk>"]
    BertTokenizer(backend, tokenizer_class="PreTrainedTokenizerFast").save_pretrained(tmp_path)
    for more in ({}, {"cls_token": "[CLS]"}):
        assert BertTokenizer.from_pretrained(tmp_path, **more)("the").tokens() == ["[CLS]", "the"]


def test_what_is_saved_is_told(both, tmp_path):
    mine, reference = (t.save_pretrained(tmp_path / str(i), legacy_format=False) for i, t in enumerate(both))
    assert all(Path(file).is_file() for file in mine)
    names = [{Path(file).name for file in files} for files in (mine, reference)]
    assert names[1] <= names[0]


def test_encodings_are_used_as_in_transformers(both):
    """Slices, copies, unions, casts and what is not known after padding."""
    texts = ["the dog", "the quick fox"]
    mine, reference = (tokenizer(texts, padding=True, return_tensors="pt") for tokenizer in both)
    assert mine.is_fast
    assert type(mine.copy()) is type(mine | {"labels": 1}) is type(mine)
    assert mine.copy().to("cpu").input_ids.equal(reference.input_ids)
    assert mine.to(torch.bfloat16).input_ids.dtype == torch.int64
    padded, theirs = (tokenizer.pad(tokenizer(texts)) for tokenizer in both)
    assert padded[:1] == theirs[:1]
    assert (padded.n_sequences, padded.is_fast) == (theirs.n_sequences, theirs.is_fast)
    for asked in (lambda: padded[0], lambda: padded.word_ids(), lambda: padded.tokens()):
        with pytest.raises(ConfigError, match="no texts just tokenized"):
            asked()
    data = {"input_ids": [1, 2], "labels": torch.tensor([0.5], dtype=torch.float64)}
    for options in ({"tensor_type": "pt"}, {"tensor_type": "pt", "prepend_batch_axis": True}):
        mine, reference = (of(data, **options) for of in (type(mine), transformers.BatchEncoding))
        assert mine["input_ids"].equal(reference["input_ids"])
        assert mine["labels"].dtype == reference["labels"].dtype == torch.float64

"""Model directories that are hostile or damaged: each is refused in one line that names what is wrong, nothing outside
of it is opened, no code in it is run, and the memory that is asked for is bounded by the weights that are there.

A row is what is done to a copy of a good directory, and what is then said: by the classes that stand in for
transformers' ("dropin"), and by `minilm.read_model` ("core") where that reads the file which is wrong.
"""

import ctypes
import json
import math
import os
import pickle
import shutil
import socket
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

import minilm
from minilm.errors import CheckpointError, ConfigError, DataError, UserError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inotify and /proc are Linux's")

LOADERS = ("dropin", "core")
WHOLE, INDEX, PICKLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
WORD = "bert.embeddings.word_embeddings.weight"
QUERY = "bert.encoder.layer.0.attention.self.query.weight"
INNER = "bert.encoder.layer.1.intermediate.dense.weight"
NORM = "bert.encoder.layer.1.output.LayerNorm.bias"
LAST = "cls.predictions.transform.LayerNorm.bias"  # which is looked at last
DECODER, BIAS = "cls.predictions.decoder", "cls.predictions.bias"
OUTSIDE = "outside"  # beside the directory: valid files, where links and paths lead to
RAN = "ran"  # beside the directory: what code in it would write
ROOM = 30 << 20  # bytes that any load may take
NOWHERE = "somebody/there-is-no-such-model"
Damage = Callable[[Path], Any]


class Row(NamedTuple):
    name: str
    damage: Damage
    words: str  # in the message
    core: str | None = ""  # in that of read_model; "": the same; None: it does not read what is wrong
    pickle: bool = False  # pytorch_model.bin is asked for


# -- what is done to a directory ----------------------------------------------------------------------


def edited(name: str, **changes: Any) -> Damage:
    """Keys of a JSON file."""

    def damage(directory: Path) -> None:
        file = directory / name
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return damage


config = partial(edited, "config.json")
of_tokenizer = partial(edited, "tokenizer_config.json")


def lacking(name: str, key: str) -> Damage:
    """A JSON file without a key."""

    def damage(directory: Path) -> None:
        file = directory / name
        file.write_text(json.dumps({own: value for own, value in json.loads(file.read_text()).items() if own != key}))

    return damage


def written(name: str, content: str | bytes) -> Damage:
    return lambda directory: (directory / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def without(*names: str) -> Damage:
    return lambda directory: [(directory / name).unlink() for name in names]


def longer(name: str, size: int) -> Damage:
    """Zeros at the end, which take no room on the disk; or a shorter file."""
    return lambda directory: os.truncate(directory / name, size)


def instead(name: str, make: Callable[[Path], Any]) -> Damage:
    """Something that is no file in the place of one."""
    return both(without(name), lambda directory: make(directory / name))


def linked(name: str) -> Damage:
    """To the valid file outside."""
    return instead(name, lambda file: file.symlink_to(file.parents[1] / OUTSIDE / name))


def both(*damages: Damage) -> Damage:
    return lambda directory: [damage(directory) for damage in damages]


def tensors(edit: Callable[[dict[str, torch.Tensor]], Any]) -> Damage:
    def damage(directory: Path) -> None:
        held = _read_weights(directory)
        edit(held)
        save_file(held, directory / WHOLE)

    return damage


def header(edit: Callable[[dict[str, Any]], Any]) -> Damage:
    """Of model.safetensors, whose tensors stay as they are."""

    def damage(directory: Path) -> None:
        raw = (directory / WHOLE).read_bytes()
        start = 8 + int.from_bytes(raw[:8], "little")
        said = json.loads(raw[8:start])
        edit(said)
        _write_raw(directory, json.dumps(said).encode(), raw[start:])

    return damage


def headed(text: bytes, length: int | None = None) -> Damage:
    """A model.safetensors of a header alone, which says that it is of that length."""
    return lambda directory: _write_raw(directory, text, length=length)


def sharded(edit: Callable[[dict[str, Any], Path], Any] = lambda index, directory: None) -> Damage:
    """The weights in two files; `edit` of the index."""

    def damage(directory: Path) -> None:
        held = sorted(_read_weights(directory).items())
        halves = dict(held[:10]), dict(held[10:])
        for shard, half in zip(SHARDS, halves, strict=True):
            save_file(half, directory / shard)
        (directory / WHOLE).unlink()
        named = {name: shard for shard, half in zip(SHARDS, halves, strict=True) for name in half}
        index = {"metadata": {}, "weight_map": named}
        edit(index, directory)
        (directory / INDEX).write_text(json.dumps(index))

    return damage


def moved(place: Any) -> Damage:
    """The first shard's tensors are said to be in `place`, or where it makes of the directory."""

    def edit(index: dict[str, Any], directory: Path) -> None:
        there = place(directory) if callable(place) else place
        index["weight_map"] = {n: there if shard == SHARDS[0] else shard for n, shard in index["weight_map"].items()}

    return sharded(edit)


def mapped(value: Any) -> Damage:
    return sharded(lambda index, _: index.update(weight_map=value))


def pickled(edit: Callable[[dict[str, Any]], Any] = lambda held: None, **options: Any) -> Damage:
    """The weights as pytorch_model.bin; where `edit` returns something, that is in it."""

    def damage(directory: Path) -> None:
        held: dict[str, Any] = _read_weights(directory)
        (directory / WHOLE).unlink()
        torch.save(edit(held) or held, directory / PICKLE, **options)

    return damage


def records(edit: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> Damage:
    """Of a pytorch_model.bin, which is a zip: `edit` of each name and its bytes."""

    def damage(directory: Path) -> None:
        pickled()(directory)
        with zipfile.ZipFile(directory / PICKLE) as old:
            held = [(name, old.read(name)) for name in old.namelist()]
        with zipfile.ZipFile(directory / PICKLE, "w", compression) as new:
            for name, content in held:
                new.writestr(name, edit(name, content))

    return damage


def rewritten_pickle(edit: Callable[[bytes], bytes], compression: int = zipfile.ZIP_STORED) -> Damage:
    """What says which tensors there are."""
    return records(lambda name, content: edit(content) if name.endswith("data.pkl") else content, compression)


class Malice:
    """A pickle of it, where it is trusted, writes RAN."""

    def __init__(self, directory: Path) -> None:
        self.file = str(directory.parent / RAN)

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return os.mkdir, (self.file,)


def malicious(**options: Any) -> Damage:
    return lambda directory: pickled(lambda held: held.update(more=Malice(directory)), **options)(directory)


def in_vocabulary(edit: Callable[[list[str]], list[str]]) -> Damage:
    """The words of vocab.txt, which is the only tokenizer."""

    def damage(directory: Path) -> None:
        (directory / "tokenizer.json").unlink()
        words = (directory / "vocab.txt").read_text().splitlines()
        (directory / "vocab.txt").write_text("".join(word + "\n" for word in edit(words)))

    return damage


def in_tokenizer(edit: Callable[[dict[str, Any]], Any]) -> Damage:
    def damage(directory: Path) -> None:
        spec = json.loads((directory / "tokenizer.json").read_text())
        edit(spec)
        (directory / "tokenizer.json").write_text(json.dumps(spec))

    return damage


def byte_level(vocab: str, merges: str | None = "a b\n") -> Damage:
    """vocab.json and merges.txt as the only tokenizer."""
    return both(
        without("tokenizer.json", "vocab.txt", "tokenizer_config.json"),
        written("vocab.json", vocab),
        *([] if merges is None else [written("merges.txt", merges)]),
    )


def manifest(sums: dict[str, str], *more: Damage) -> Damage:
    return both(*more, written("MANIFEST.json", json.dumps({"format": 1, "sha256": sums})))


def larger(**sizes: int) -> Damage:
    """A config.json of these sizes, and a file of as many zeros, which take no room on the disk."""

    def damage(directory: Path) -> None:
        config(**sizes)(directory)
        shapes = {name: list(own.shape) for name, own in _read_weights(directory).items()}
        shapes |= {WORD: [sizes["vocab_size"], shapes[WORD][1]], BIAS: [sizes["vocab_size"] - 1]}
        said, end = {}, 0
        for name, shape in shapes.items():
            said[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + 4 * math.prod(shape)]}
            end = said[name]["data_offsets"][1]
        _write_raw(directory, json.dumps(said).encode())
        os.truncate(directory / WHOLE, (directory / WHOLE).stat().st_size + end)

    return damage


def _read_weights(directory: Path) -> dict[str, torch.Tensor]:
    return {name: own.clone() for name, own in load_file(directory / WHOLE).items()}


def _write_raw(directory: Path, text: bytes, data: bytes = b"", length: int | None = None) -> None:
    (directory / WHOLE).write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


# -- the table ----------------------------------------------------------------------------------------

DEEP = "[" * 900 + "]" * 900  # which json reads, and a recursion does not
SHARD_ROWS = [
    Row("shard above", moved(f"../{OUTSIDE}/{SHARDS[0]}"), f"is in '../{OUTSIDE}/{SHARDS[0]}', which is no name of a"),
    Row("shard by its whole path", moved(lambda d: str(d.parent / OUTSIDE / SHARDS[0])), "which is no name of a file"),
    Row(
        "shard below",
        both(
            moved(f"below/{SHARDS[0]}"),
            lambda d: (d / "below").mkdir(),
            lambda d: (d / SHARDS[0]).rename(d / "below" / SHARDS[0]),
        ),
        f"is in 'below/{SHARDS[0]}', which is no name of a file beside it",
    ),
    Row("shard that is a number", moved(5), "is in 5, which is no name of a file beside it"),
    Row("shard that is a list", moved([SHARDS[0]]), f"is in ['{SHARDS[0]}'], which is no name"),
    Row("shard that is hidden", moved(".hidden.safetensors"), "is in '.hidden.safetensors', which is no name"),
    Row("shard that is a pickle", moved("model-00001.bin"), "is in 'model-00001.bin', which is no name"),
    Row("shard that is not there", both(sharded(), without(SHARDS[1])), f"{SHARDS[1]}: cannot be read (there is none)"),
    Row("shard that is a link", both(sharded(), linked(SHARDS[0])), f"{SHARDS[0]}: cannot be read (leads out of its"),
    Row("shard that is a pipe", both(sharded(), instead(SHARDS[1], os.mkfifo)), f"{SHARDS[1]}: cannot be read (not a"),
    Row("index that is a link", both(sharded(), linked(INDEX)), f"{INDEX}: cannot be read (leads out of its directory"),
    Row("no weight_map", both(sharded(), lacking(INDEX, "weight_map")), f"{INDEX}: weight_map names no tensor"),
    Row("empty weight_map", mapped({}), f"{INDEX}: weight_map names no tensor"),
    Row("weight_map that is a list", mapped([SHARDS[0]]), f"{INDEX}: weight_map names no tensor"),
    Row("index that is a list", both(sharded(), written(INDEX, "[]")), f"{INDEX}: holds list, not an object"),
    Row(
        "index with a tensor more",
        sharded(lambda index, _: index["weight_map"].update(more=SHARDS[1])),
        f"{SHARDS[1]}: lacks more, unlike {INDEX} says",
    ),
    Row(
        "index with a tensor less",
        sharded(lambda index, _: index["weight_map"].pop(NORM)),
        f"{SHARDS[1]}: also holds {NORM}, unlike {INDEX} says",
    ),
    Row(
        "index with a line break",
        sharded(lambda index, _: index["weight_map"].update({"of\nlines": SHARDS[0]})),
        "lacks of lines, unlike",
    ),
    Row("20,000 shards", mapped({f"t{i}": f"{i}.safetensors" for i in range(20_000)}), "names 20000 files; at most"),
]
FILE_ROWS = [
    Row("weights that are a link", linked(WHOLE), f"{WHOLE}: cannot be read (leads out of its directory"),
    Row("weights that are a directory", instead(WHOLE, Path.mkdir), f"{WHOLE}: cannot be read (not a regular file)"),
    Row("weights that are a pipe", instead(WHOLE, os.mkfifo), f"{WHOLE}: cannot be read (not a regular file)"),
    Row("weights that are a device", instead(WHOLE, lambda f: f.symlink_to("/dev/zero")), f"{WHOLE}: cannot be read"),
    Row("no weights", without(WHOLE), f"{WHOLE}: cannot be read (there is none)"),
    Row("weights cut short", lambda d: os.truncate(d / WHOLE, (d / WHOLE).stat().st_size - 4), f"{WHOLE}: cannot"),
    Row("weights with more at the end", longer(WHOLE, 1 << 20), f"{WHOLE}: cannot be read"),
    Row("weights cut in the header", longer(WHOLE, 100), f"{WHOLE}: cannot be read"),
    Row("empty weights", written(WHOLE, ""), f"{WHOLE}: cannot be read"),
    Row("header of 4 GB", headed(b"{}", length=4 << 30), f"{WHOLE}: cannot be read"),
    Row("header of 2^64 - 1 bytes", headed(b"{}", length=2**64 - 1), f"{WHOLE}: cannot be read"),
    Row("header that is no JSON", headed(b"no JSON"), f"{WHOLE}: cannot be read"),
    Row("header that is a list", headed(b"[]"), f"{WHOLE}: cannot be read"),
    Row("header without a tensor", headed(b"{}"), f"{WHOLE}: tensor {WORD} is missing"),
    Row("header nested deeply", headed(b'{"a":' * 50_000), f"{WHOLE}: cannot be read"),
    Row(
        "offsets that overlap",
        header(lambda h: h[NORM].update(data_offsets=h[LAST]["data_offsets"])),
        "offset for tensor",
    ),
    Row("offsets behind the end", header(lambda h: h[NORM].update(data_offsets=[1 << 40, (1 << 40) + 128])), WHOLE),
    Row("offsets the other way round", header(lambda h: h[NORM].update(data_offsets=[128, 0])), f"`{NORM}`"),
    Row("offsets below 0", header(lambda h: h[NORM].update(data_offsets=[-128, 0])), f"{WHOLE}: cannot be read"),
    Row("shape whose size overflows", header(lambda h: h[NORM].update(shape=[1 << 40, 1 << 40])), WHOLE),
    Row("shape of 100 dimensions", header(lambda h: h[NORM].update(shape=[1] * 99 + [32])), f"tensor {NORM} has shape"),
    Row("dtype that nobody knows", header(lambda h: h[NORM].update(dtype="F5")), f"{WHOLE}: cannot be read"),
    Row(
        "header with a line break",
        header(lambda h: h.update({"of\nlines": h.pop(NORM) | {"data_offsets": [128, 0]}})),
        "`of lines`",
    ),
]
TENSOR_ROWS = [
    Row("no query", tensors(lambda t: t.pop(QUERY)), f"{WHOLE}: tensor {QUERY} is missing"),
    Row("no last layer", tensors(lambda t: [t.pop(n) for n in [*t] if ".layer.1." in n]), "bert.encoder.layer.1."),
    Row("a layer more", tensors(lambda t: t.update({INNER.replace("1", "2"): t[INNER] + 1})), "bert.encoder.layer.2."),
    Row("half a head", tensors(lambda t: t.pop(BIAS)), f"{WHOLE}: tensor {BIAS} is missing"),
    Row(
        "a name that is nearly an old one",
        tensors(lambda t: t.update({"x.LayerNorm_gamma": torch.zeros(3)})),
        f"{WHOLE}: tensor x.LayerNorm_gamma is unknown",
    ),
    Row("unknown tensor", tensors(lambda t: t.update(more=torch.zeros(3))), f"{WHOLE}: tensor more is unknown"),
    Row(
        "unknown tensor with a line break",
        tensors(lambda t: t.update({"of\nlines": torch.zeros(3)})),
        f"{WHOLE}: tensor of lines is unknown",
    ),
    Row("shape off by one", tensors(lambda t: t.update({NORM: t[NORM][1:].clone()})), f"{NORM} has shape (31,)"),
    Row("transposed", tensors(lambda t: t.update({INNER: t[INNER].T.contiguous()})), f"{INNER} has shape (32, 128)"),
    Row("NaN", tensors(lambda t: t[NORM][3:4].fill_(math.nan)), f"tensor {NORM} holds values that are not finite"),
    Row(
        "infinity", tensors(lambda t: t[WORD][98:].fill_(-math.inf)), f"tensor {WORD} holds values that are not finite"
    ),
    Row("integers", tensors(lambda t: t.update({NORM: t[NORM].long()})), f"tensor {NORM} is of torch.int64"),
    Row("8 bits", tensors(lambda t: t.update({NORM: t[NORM].to(torch.float8_e4m3fn)})), "is of torch.float8_e4m3fn"),
    Row("complex", tensors(lambda t: t.update({NORM: t[NORM].to(torch.complex64)})), "is of torch.complex64"),
    Row(
        "too large for the dtype",
        both(tensors(lambda t: t[NORM].fill_(1e38)), config(dtype="float16")),
        f"tensor {NORM} holds values that are not finite",
        core=None,
    ),
    Row("untied decoder", tensors(lambda t: t.update({f"{DECODER}.weight": t[WORD] + 1})), f"{DECODER}.weight differs"),
    Row(
        "untied decoder bias", tensors(lambda t: t.update({f"{DECODER}.bias": t[BIAS] + 1})), f"{DECODER}.bias differs"
    ),
    Row(
        "decoder of 8 bits",
        tensors(lambda t: t.update({f"{DECODER}.weight": t[WORD].to(torch.float8_e4m3fn)})),
        f"{DECODER}.weight",
    ),
    Row(
        "two names of one tensor",
        tensors(lambda t: t.update({NORM.replace(".bias", ".beta"): t[NORM] + 1})),
        NORM.replace(".bias", ".beta"),
    ),
]
CONFIG_ROWS = [
    Row("no config.json", without("config.json"), "no config.json"),
    Row("config.json that is empty", written("config.json", ""), "config.json: cannot be read"),
    Row("config.json that is no JSON", written("config.json", "{"), "config.json: cannot be read"),
    Row("config.json that is no UTF-8", written("config.json", b"\xff\xfe{}"), "config.json: cannot be read"),
    Row("config.json that is a list", written("config.json", "[]"), "config.json: holds list, not an object"),
    Row("config.json that is null", written("config.json", "null"), "config.json: holds NoneType, not an object"),
    Row("config.json nested deeply", written("config.json", '{"a":' * 100_000), "config.json: cannot be read"),
    Row(
        "unknown key nested deeply",
        lambda d: (d / "config.json").write_text((d / "config.json").read_text().rstrip()[:-1] + f', "more": {DEEP}}}'),
        "config.json: cannot be read (nested",
    ),
    Row("config.json that is a link", linked("config.json"), "config.json: cannot be read (leads out of its directory"),
    Row("config.json that is a pipe", instead("config.json", os.mkfifo), "config.json: cannot be read (not a regular"),
    Row("no model_type", lacking("config.json", "model_type"), "model_type None is unknown"),
    Row("unknown model_type", config(model_type="t5"), "model_type 't5' is unknown"),
    Row("model_type that is a list", config(model_type=["bert"]), "model_type ['bert'] is unknown"),
    Row("no vocab_size", lacking("config.json", "vocab_size"), "vocab_size is missing"),
    *(
        Row(f"{key} of {json.dumps(value)}", config(**{key: value}), words)
        for key, value, words in [
            ("vocab_size", "100", "vocab_size is '100'; expected int"),
            ("vocab_size", -1, "vocab_size is -1; give a whole number"),
            ("vocab_size", 0, "vocab_size is 0; give a whole number"),
            ("vocab_size", 99.0, "vocab_size is 99.0; expected int"),
            ("vocab_size", True, "vocab_size is True; expected int"),
            ("vocab_size", 10**30, f"vocab_size is {10**30}; give a whole number"),
            ("vocab_size", 100, f"{WORD} has shape (99, 32); config.json makes it (100, 32)"),
            ("vocab_size", 98, f"{WORD} has shape (99, 32); config.json makes it (98, 32)"),
            ("hidden_size", 1 << 24, "has shape (99, 32); config.json makes it (99, 16777216)"),
            ("hidden_size", [32], "hidden_size is [32]; expected int"),
            ("num_hidden_layers", 1, "bert.encoder.layer.1."),
            ("num_hidden_layers", 3, "bert.encoder.layer.2."),
            ("num_hidden_layers", 10**9, "num_hidden_layers is 1000000000"),
            ("num_attention_heads", 5, "does not divide into num_attention_heads 5"),
            ("num_attention_heads", 0, "num_attention_heads is 0"),
            ("max_position_embeddings", 65, "config.json makes it (65, 32)"),
            ("type_vocab_size", -1, "type_vocab_size is -1"),
            ("type_vocab_size", True, "type_vocab_size is True; expected int"),
            ("pad_token_id", 99, "pad_token_id 99 is not in the vocabulary"),
            ("hidden_act", "os.system", "'os.system' is unknown"),
            ("hidden_act", ["gelu"], "hidden_act is ['gelu']; expected str"),
            ("hidden_dropout_prob", 2, "hidden_dropout_prob is 2.0; give a fraction below 1"),
            ("attention_probs_dropout_prob", "0.1", "attention_probs_dropout_prob is '0.1'; expected float"),
            ("layer_norm_eps", "1e-12", "layer_norm_eps is '1e-12'; expected float"),
            ("layer_norm_eps", -1e-12, "layer_norm_eps is -1e-12; give a number above 0"),
            ("layer_norm_eps", math.nan, "layer_norm_eps is nan; expected a finite number"),
            ("position_embedding_type", "relative_key", "position_embedding_type 'relative_key' is not supported"),
            ("tie_word_embeddings", False, "tie_word_embeddings False is not supported"),
            ("add_cross_attention", True, "add_cross_attention True is not supported"),
        ]
    ),
    *(
        Row(f"{key} of {json.dumps(value)}", config(**{key: value}), words)
        for key, value, words in [
            ("num_hidden_layers", -1, "num_hidden_layers is -1"),
            ("intermediate_size", 0, "intermediate_size is 0"),
            ("is_decoder", "false", "is_decoder is 'false'; expected bool"),
            ("initializer_range", "0.02", "initializer_range is '0.02'; expected float"),
            ("initializer_range", -1, "initializer_range is -1"),
        ]
    ),
    *(
        Row(f"{key} of {json.dumps(value)[:60]}", config(**{key: value}), words, core=None)
        for key, value, words in [
            ("problem_type", "guess", "problem_type is 'guess'"),
            ("dtype", "int8", "dtype 'int8'"),
            ("attn_implementation", "flash", "'flash' is unknown"),
        ]
    ),
    *(
        Row(f"{key} of {json.dumps(value)[:60]}", config(**{key: value}), words, None)
        for key, value, words in [("attn_implementation", ["sdpa"], "['sdpa'] is unknown")]
    ),
]
PICKLE_ROWS = [
    Row("pickle that nobody asked for", pickled(), f"{PICKLE} is a pickle; if you trust its maker"),
    Row("malicious pickle that nobody asked for", malicious(), f"{PICKLE} is a pickle"),
    Row("no pickle", lambda d: None, f"{PICKLE}: cannot be read (there is none)", None, True),
    Row("malicious pickle", malicious(), f"{PICKLE}: holds more than tensors", None, True),
    Row(
        "malicious pickle of old",
        malicious(_use_new_zipfile_serialization=False),
        f"{PICKLE}: holds more than tensors",
        None,
        True,
    ),
    Row(
        "malicious pickle alone",
        lambda d: (d / PICKLE).write_bytes(pickle.dumps(Malice(d))),
        f"{PICKLE}: holds more than tensors",
        None,
        True,
    ),
    Row("pickle of a list", pickled(lambda t: [*t.values()]), f"{PICKLE}: is no dict of named tensors", None, True),
    Row("pickle of numbers", pickled(lambda t: t.update(more=5)), f"{PICKLE}: is no dict of named tensors", None, True),
    Row(
        "pickle of a dictionary in it",
        pickled(lambda t: {"model": t}),
        f"{PICKLE}: is no dict of named tensors",
        None,
        True,
    ),
    Row("pickle with NaN", pickled(lambda t: t.update({NORM: t[NORM] * math.nan})), f"tensor {NORM}", None, True),
    Row("pickle that is a link", both(pickled(), linked(PICKLE)), f"{PICKLE}: cannot be read (leads out", None, True),
    Row("pickle that is a pipe", instead(WHOLE, lambda f: os.mkfifo(f.with_name(PICKLE))), PICKLE, None, True),
    Row("pickle that is empty", written(PICKLE, b""), f"{PICKLE}: cannot be read", None, True),
    Row("pickle cut short", both(pickled(), longer(PICKLE, 1 << 12)), f"{PICKLE}: cannot be read", None, True),
    *(
        Row(f"pickle {name}", damage, words, None, True)
        for name, damage, words in [
            ("whose names are cut", rewritten_pickle(lambda c: c[: len(c) // 2]), f"{PICKLE}: cannot"),
            ("of a module", pickled(lambda t: torch.nn.Linear(2, 2)), f"{PICKLE}: holds more than tensors"),
            (
                "whose tensor is cut",
                records(lambda name, content: content[:8] if name.endswith("data/0") else content),
                PICKLE,
            ),
            ("that is compressed", records(lambda _, c: c, zipfile.ZIP_DEFLATED), "compressed"),
            ("of a sparse tensor", pickled(lambda t: t.update({WORD: t[WORD].to_sparse()})), WORD),
            ("of a shape alone", pickled(lambda t: t.update({WORD: t[WORD].to("meta")})), WORD),
            (
                "of a sparse decoder",
                pickled(lambda t: t.update({f"{DECODER}.weight": t[WORD].to_sparse()})),
                f"{DECODER}.weight",
            ),
            ("of one number for a table", pickled(lambda t: t.update({WORD: torch.zeros(1, 1).expand(99, 32)})), WORD),
        ]
    ),
]
TOKENIZER_ROWS = [
    Row(
        "no tokenizer",
        without("tokenizer.json", "vocab.txt"),
        "no tokenizer in it: none of tokenizer.json, vocab.txt, vocab.json",
        "neither tokenizer.json nor vocab.txt in it",
    ),
    Row("tokenizer.json that is a link", linked("tokenizer.json"), "leads out of its directory"),
    Row("tokenizer.json that is a pipe", instead("tokenizer.json", os.mkfifo), "tokenizer.json: "),
    Row("tokenizer.json that is a directory", instead("tokenizer.json", Path.mkdir), "tokenizer.json: "),
    Row("tokenizer.json that is empty", written("tokenizer.json", ""), "tokenizer.json: not a tokenizer"),
    Row("tokenizer.json that is no JSON", written("tokenizer.json", "{"), "tokenizer.json: not a tokenizer"),
    Row("tokenizer.json that is no UTF-8", written("tokenizer.json", b"\xff"), "tokenizer.json: not a tokenizer"),
    Row("tokenizer.json that is a list", written("tokenizer.json", "[]"), "tokenizer.json: not a tokenizer"),
    Row(
        "tokenizer.json nested deeply", written("tokenizer.json", '{"a":' * 100_000), "tokenizer.json: not a tokenizer"
    ),
    Row("tokenizer.json without a model", lacking("tokenizer.json", "model"), "tokenizer.json: not a tokenizer"),
    Row(
        "tokenizer.json of an unknown model",
        in_tokenizer(lambda spec: spec["model"].update(type="Guess")),
        "tokenizer.json: not a tokenizer's file",
        "tokenizer.json: a Guess tokenizer",
    ),
    Row(
        "tokenizer.json of a model with a line break",
        in_tokenizer(lambda spec: spec["model"].update(type="of\nlines")),
        "tokenizer.json: not a tokenizer's file",
        "tokenizer.json: a of lines tokenizer",
    ),
    Row(
        "token whose id is a word",
        in_tokenizer(lambda spec: spec["model"]["vocab"].update(more="5")),
        "tokenizer.json: not a tokenizer",
    ),
    Row(
        "a token more than the model",
        in_tokenizer(lambda spec: spec["model"]["vocab"].update(more=99)),
        "tokenizer ids go to 99, the model has 99 tokens",
        "the tokenizer has 100 tokens, the model 99",
    ),
    Row(
        "token of the largest id",
        in_tokenizer(lambda spec: spec["model"]["vocab"].update(more=2**32 - 1)),
        "tokenizer ids go to 4294967295, the model has 99 tokens",
        "the tokenizer has 4294967296 tokens, the model 99",
    ),
    Row(
        "cased tokenizer.json that lower-cases",
        in_tokenizer(lambda spec: spec["model"].update(vocab=_capitals(spec["model"]["vocab"]))),
        "have capital letters; do_lower_case must be false",
    ),
    Row(
        "tokenizer.json that lower-cases otherwise",
        of_tokenizer(do_lower_case=False),
        "tokenizer_config.json says do_lower_case False",
        "tokenizer_config.json: do_lower_case is False, and tokenizer.json does otherwise",
    ),
    Row(
        "two tokens of one id",
        in_tokenizer(lambda spec: spec["model"]["vocab"].update(more=98)),
        "the tokenizer has 100 tokens",
    ),
    Row(
        "[CLS] that is no word of the model",
        both(
            in_tokenizer(lambda spec: spec["post_processor"].update(cls=["[CLS]", 5000])),
            of_tokenizer(tokenizer_class="PreTrainedTokenizerFast"),  # a BERT's is put there anew
        ),
        "tokenizer ids go to 5000, the model has 99 tokens",
        None,
    ),
    Row(
        "tokenizer.json without a token",
        both(
            in_tokenizer(lambda spec: spec.update(added_tokens=[], model=spec["model"] | {"vocab": {}})),
            without("tokenizer_config.json"),
        ),
        "the tokenizer has 0 tokens",
        "tokenizer.json: ",
    ),
    Row(
        "tokenizer.json that tokenizers panics at",
        in_tokenizer(lambda spec: spec.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"})),
        "tokenizer.json",
    ),
    Row("vocab.txt that is a link", both(without("tokenizer.json"), linked("vocab.txt")), "leads out of its directory"),
    Row("vocab.txt that is a pipe", both(without("tokenizer.json"), instead("vocab.txt", os.mkfifo)), "vocab.txt: "),
    Row(
        "vocab.txt with a line twice",
        in_vocabulary(lambda words: [*words[:-1], "a"]),
        "vocab.txt:99: token 'a' appears",
    ),
    Row("vocab.txt of UTF-16", both(in_vocabulary(list), written("vocab.txt", b"\xff\xfea\0")), "vocab.txt: not UTF-8"),
    Row(
        "vocab.txt longer than the model's",
        in_vocabulary(lambda words: [*words, "more"]),
        "tokenizer ids go to 99, the model has 99 tokens",
        "the tokenizer has 100 tokens, the model 99",
    ),
    Row(
        "cased vocab.txt that lower-cases",
        in_vocabulary(lambda words: [*_capitals(words)]),
        "have capital letters; do_lower_case must be false",
    ),
    Row(
        "vocab.txt that is empty",
        both(in_vocabulary(lambda words: []), without("tokenizer_config.json")),
        "vocab.txt: ",
    ),
    Row("tokenizer_config.json that is a list", written("tokenizer_config.json", "[]"), "holds list, not an", None),
    Row("tokenizer_config.json that is empty", written("tokenizer_config.json", ""), "tokenizer_config.json: ", None),
    Row("tokenizer_config.json that is a link", linked("tokenizer_config.json"), "leads out of its directory", None),
    Row("special_tokens_map.json that is a list", written("special_tokens_map.json", "[]"), "holds list, not", None),
    Row("vocab.json without merges.txt", byte_level('{"a": 0}', None), "merges.txt", "neither tokenizer.json nor"),
    Row("vocab.json that is a list", byte_level("[]"), "vocab.json", "neither tokenizer.json nor"),
    Row("vocab.json without its tokens", byte_level('{"a": 0, "b": 1, "ab": 2}'), "vocab.json", "neither tokenizer."),
    Row("merges.txt of words", byte_level('{"a": 0}', "a b c d\n"), "vocab.json", "neither tokenizer.json nor"),
    Row(
        "merges.txt that is a link",
        both(byte_level('{"a": 0}'), linked("merges.txt")),
        "leads out of its directory",
        "neither tokenizer.json nor",
    ),
    *(
        Row(f"{key} of {json.dumps(value)}", of_tokenizer(**{key: value}), words, None)
        for key, value, words in [
            ("padding_side", "up", "padding_side 'up': give left or right"),
            ("truncation_side", 5, "truncation_side 5: give left or right"),
            ("cls_token", 5, "/model: cls_token: 5 is no special token; give a"),
            ("sep_token", {"content": None}, "sep_token: {'content': None} is no special token"),
            ("extra_special_tokens", [5], "/model: 5 is no special token; give a string"),
        ]
    ),
    *(
        Row(f"{key} of {json.dumps(value)}", of_tokenizer(**{key: value}), words, None)
        for key, value, words in [
            ("model_max_length", "512", "model_max_length"),
            ("model_max_length", -5, "/model: tokenizer_config.json: model_max_length is -5; give a number of"),
            ("model_max_length", 0, "model_max_length"),
            ("model_max_length", math.nan, "model_max_length"),
            ("model_max_length", True, "model_max_length"),
            ("do_lower_case", "false", "do_lower_case"),
            ("model_input_names", 5, "model_input_names"),
            ("model_input_names", "input_ids", "model_input_names"),
            ("extra_special_tokens", 5, "extra_special_tokens"),
            ("extra_special_tokens", "abc", "extra_special_tokens"),
            ("pad_token", "\ud800", "is no special token"),
            ("cls_token", "", "'' is no special token"),
        ]
    ),
    Row("strip_accents of a word", both(without("tokenizer.json"), of_tokenizer(strip_accents="yes")), "strip_accents"),
]
DIRECTORY_ROWS = [
    Row("directory that is empty", lambda d: [file.unlink() for file in d.iterdir()], "no config.json"),
    Row("file instead of a directory", lambda d: (shutil.rmtree(d), d.write_text("{}")), "is a file, not a directory"),
    Row("manifest of other bytes", manifest({"config.json": "0" * 64}), "config.json differs from MANIFEST.json"),
    Row("manifest of a path that leads out", manifest({f"../{OUTSIDE}/config.json": ""}), "is no file in it"),
    Row(
        "manifest of a link that leads out",
        manifest({"more": ""}, lambda d: (d / "more").symlink_to(d.parent / OUTSIDE / "config.json")),
        "'more'",
    ),
    Row(
        "manifest of a directory that leads out",
        manifest({"more/config.json": ""}, lambda d: (d / "more").symlink_to(d.parent / OUTSIDE)),
        "'more/config.json'",
    ),
]
TABLE = [*SHARD_ROWS, *FILE_ROWS, *TENSOR_ROWS, *CONFIG_ROWS, *PICKLE_ROWS, *TOKENIZER_ROWS, *DIRECTORY_ROWS]

# directories that ask for much memory, by what they were before that
MUCH = 1 << 24
SMALL_ROWS = [
    Row(
        "sizes of 2^24",
        config(vocab_size=MUCH, hidden_size=MUCH, intermediate_size=MUCH, max_position_embeddings=MUCH),
        f"{WORD} has shape (99, 32); config.json makes it ({MUCH}, {MUCH})",
    ),
    Row("a billion layers", config(num_hidden_layers=10**9), "num_hidden_layers is 1000000000"),
    Row(
        "header of 4 GB that is there", both(headed(b"{", 4 << 30), longer(WHOLE, 5 << 30)), f"{WHOLE}: cannot be read"
    ),
    Row("header of 99 MB that is there", both(headed(b"{", 99 << 20), longer(WHOLE, 100 << 20)), f"{WHOLE}: cannot be"),
    Row(
        "header of 40,000 tensors",
        headed(
            json.dumps(
                {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(40_000)}
            ).encode()
        ),
        f"{WHOLE}: ",
    ),
    Row("128 MB of nothing", larger(vocab_size=1 << 20), f"{BIAS} has shape"),
    Row("config.json of 65 MB", longer("config.json", 65 << 20), "config.json: cannot be read (larger than"),
    Row(
        "config.json of 6 MB",
        written("config.json", '{"more": [' + "{}, " * (3 << 19) + "{}]}"),
        "config.json: cannot be read (larger than",
    ),
    Row("tokenizer.json of 80 MB", longer("tokenizer.json", 80 << 20), "larger than 64 MB"),
    Row("vocab.txt of 80 MB", both(without("tokenizer.json"), longer("vocab.txt", 80 << 20)), "larger than 64 MB"),
    Row("merges.txt of 80 MB", both(byte_level('{"a": 0}'), longer("merges.txt", 80 << 20)), "larger than 64 MB", None),
    Row(
        "pickle of one number for a large table",
        both(config(vocab_size=1 << 20), pickled(lambda t: t.update({WORD: torch.zeros(1, 1).expand(1 << 20, 32)}))),
        WORD,
        None,
        True,
    ),
    Row(
        "pickle of compressed zeros",
        rewritten_pickle(lambda _: bytes(64 << 20), zipfile.ZIP_DEFLATED),
        "compressed",
        None,
        True,
    ),
]
LARGE_ROWS = [
    Row(
        "64 MB with NaN at the end",
        tensors(lambda t: t[LAST].fill_(math.nan)),
        f"{LAST} holds values that are not finite",
    ),
    Row(
        "64 MB with a shape off by one",
        tensors(lambda t: t.update({LAST: t[LAST][1:].clone()})),
        f"{LAST} has shape (31,)",
    ),
    Row(
        "64 MB made twice as wide, with NaN at the end",
        both(tensors(lambda t: t[LAST].fill_(math.nan)), config(dtype="float64")),
        f"{LAST} holds values that are not finite",
        None,
    ),
]


def _capitals(vocab: Iterable[str]) -> Any:
    """The vocabulary with 30 words in capital letters."""
    words = {word: id for id, word in enumerate(vocab)}
    return {word.upper() if 50 < id <= 80 else word: id for word, id in words.items()}


def cases(*tables: list[Row]) -> list[Any]:
    """Every row by every loader that reads what is wrong."""
    return [
        pytest.param(row, loader, id=f"{row.name}-{loader}")
        for rows in tables
        for row in rows
        for loader in LOADERS
        if loader == "dropin" or row.core is not None
    ]


# -- the tests ----------------------------------------------------------------------------------------


def load(directory: Path | str, loader: str, pickle: bool = False) -> None:
    if loader == "core":
        minilm.read_model(directory)
        return
    options = {"use_safetensors": False} if pickle else {}
    minilm.AutoModelForMaskedLM.from_pretrained(directory, local_files_only=True, **options)
    minilm.AutoTokenizer.from_pretrained(directory, local_files_only=True)


def assert_says(message: str, words: str) -> None:
    assert message.splitlines() == [message]
    assert message.isprintable()
    assert words in message


class Watch:
    """The files of a directory that are opened or read, as Linux tells, by Python or not."""

    def __init__(self, directory: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self.handle = libc.inotify_init1(os.O_NONBLOCK)
        watching = libc.inotify_add_watch(self.handle, os.fsencode(directory), 0x1 | 0x20)  # IN_ACCESS | IN_OPEN
        assert min(self.handle, watching) >= 0, os.strerror(ctypes.get_errno())

    def seen(self) -> list[str]:
        """Their names since the last call."""
        names, events = [], b""
        with suppress(BlockingIOError):
            events = os.read(self.handle, 1 << 20)
        while events:
            _, _, _, length = struct.unpack_from("iIII", events)
            names.append(events[16 : 16 + length].rstrip(b"\0").decode())
            events = events[16 + length :]
        return names

    def close(self) -> None:
        os.close(self.handle)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """good/, a BERT that transformers wrote; large/, the same with 64 MB of weights; and OUTSIDE, with every file that
    a link may lead to."""
    import transformers

    home = tmp_path_factory.mktemp("hostile")
    torch.manual_seed(0)
    sizes = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    settings = transformers.BertConfig(**sizes, intermediate_size=128, max_position_embeddings=64)
    transformers.BertForMaskedLM(settings).save_pretrained(home / "good")
    letters = [chr(ord("a") + i) for i in range(26)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *("##" + letter for letter in letters)]
    words += [f"word{i}" for i in range(99 - len(words))]
    (home / "good" / "vocab.txt").write_text("".join(word + "\n" for word in words))
    minilm.BertTokenizer(home / "good" / "vocab.txt", model_max_length=64).save_pretrained(home / "good")

    shutil.copytree(home / "good", home / OUTSIDE)
    shutil.copytree(home / "good", home / "large")
    tensors(lambda t: t.update({WORD: torch.zeros(1 << 19, 32), BIAS: torch.zeros(1 << 19)}))(home / "large")
    config(vocab_size=1 << 19)(home / "large")
    pickled()(home / OUTSIDE)
    shutil.copy(home / "good" / WHOLE, home / OUTSIDE)
    sharded()(home / OUTSIDE)
    shutil.copy(home / "good" / WHOLE, home / OUTSIDE)
    byte_level("{}")(shutil.copytree(home / "good", home / "other"))
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(home / "other" / name, home / OUTSIDE)
    yield home
    shutil.rmtree(home)


@pytest.fixture(scope="module")
def watch(home):
    watch = Watch(home / OUTSIDE)
    yield watch
    watch.close()


@pytest.fixture
def directory(home):
    """A copy of the good one."""
    yield Path(shutil.copytree(home / "good", home / "model"))
    if (home / "model").is_dir():
        shutil.rmtree(home / "model")
    else:
        (home / "model").unlink()


@pytest.fixture
def calls(monkeypatch):
    """The addresses that something connects to."""
    calls = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: calls.append(address))
    return calls


@pytest.mark.parametrize("loader", LOADERS)
def test_the_good_directory_loads(directory, loader):
    """As it is, in shards, and as a pickle: else everything below is refused for something else."""
    load(directory, loader)
    shutil.copy(directory / WHOLE, directory.parent / "kept")
    sharded()(directory)
    load(directory, loader)
    (directory.parent / "kept").rename(directory / WHOLE)
    for zipped in (True, False) if loader == "dropin" else ():  # torch before 1.6 did not zip
        pickled(_use_new_zipfile_serialization=zipped)(shutil.copytree(directory, directory / f"zipped-{zipped}"))
        load(directory / f"zipped-{zipped}", loader, pickle=True)


def test_what_would_be_seen_is_seen(home, directory, watch):
    """Files opened by Rust, too; and that the pickle is malicious."""
    watch.seen()
    load_file(home / OUTSIDE / WHOLE)
    assert WHOLE in watch.seen()
    (home / OUTSIDE / "config.json").read_text()
    assert "config.json" in watch.seen()
    malicious()(directory)
    torch.load(directory / PICKLE, weights_only=False)
    (home / RAN).rmdir()


@pytest.mark.parametrize(("row", "loader"), cases(TABLE))
def test_it_is_refused_in_one_line(row, loader, home, directory, watch, calls):
    row.damage(directory)
    watch.seen()
    with pytest.raises(UserError) as caught:
        load(directory, loader, row.pickle)
    assert watch.seen() == []
    assert not (home / RAN).exists()
    assert calls == []
    assert caught.type in (CheckpointError, ConfigError, DataError)
    assert_says(str(caught.value), (loader == "core" and row.core) or row.words)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("eos_token_ids", None),  # of transformers 2, which saved it with each model
        ("hiden_act", "relu"),
        ("hidden_act\n", "relu"),
        ("encoder", {}),
        ("to_dict", 1),
        ("backend", "sdpa"),
        ("_family", "bert"),
        ("_attn_implementation", "flash"),
        ("__class__", "dict"),
        ("__dict__", {}),
    ],
)
def test_a_key_that_is_none_is_left_out_of_a_file(directory, caplog, key, value):
    """With a line that says so; as an argument it is refused."""
    expected = minilm.AutoConfig.from_pretrained(directory)
    config(**{key: value})(directory)
    found = minilm.AutoModelForMaskedLM.from_pretrained(directory).config
    assert (found, found.backend) == (expected, expected.backend)
    assert f"config: {key.strip()}" in caplog.text
    assert all("\n" not in record.getMessage() for record in caplog.records)
    with pytest.raises(ConfigError, match=f"config: {key.strip()} +is no key of a bert"):
        minilm.BertConfig(**{key: value})


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"id2label": {"0": "no", "2": "yes"}}, "does not give each of 0, 1, ... a label"),
        ({"id2label": {"0": "no", "1": "no"}}, "does not give each of 0, 1, ... a label"),
        ({"id2label": {"first": "no"}}, "id2label has a label number 'first'"),
        ({"id2label": ["no", "yes"]}, "id2label is ['no', 'yes']"),
        ({"label2id": {"no": 0, "yes": 0}}, "label2id {'no': 0, 'yes': 0} is not"),
        ({"label2id": {"no": 0, "yes": 2}}, "does not give each of 0, 1, ... a label"),
        ({"num_labels": -1}, "num_labels is -1"),
        ({"num_labels": "2"}, "num_labels is '2'"),
        ({"id2label": {"0": "no", "00": "yes"}}, "id2label"),
        ({"label2id": {"no": [0]}}, "label number [0]"),
        ({"label2id": {"no": math.inf}}, "label number inf"),
        ({"num_labels": True}, "num_labels is True"),
        ({"num_labels": 1 << 18}, "num_labels is 262144"),
        ({"num_labels": 3, "id2label": {"0": "no", "1": "yes"}}, "num_labels is 3, and id2label names 2"),
        ({"id2label": {"1": "no", "2": "yes"}}, "does not give each of 0, 1, ... a label"),
    ],
)
def test_labels_that_cannot_be_are_refused_where_they_are_read(directory, caplog, labels, words):
    """By a classifier, unless others are given; models without labels open."""
    config(**labels)(directory)
    assert minilm.AutoModelForMaskedLM.from_pretrained(directory).config.num_labels == 2
    assert words in caplog.text
    for classifier in (minilm.AutoModelForSequenceClassification, minilm.AutoModelForTokenClassification):
        with pytest.raises(ConfigError) as caught:
            classifier.from_pretrained(directory)
        assert_says(str(caught.value), words)
        assert_says(str(caught.value), "; give others, or num_labels")
    minilm.AutoModelForQuestionAnswering.from_pretrained(directory)
    for given in ({"num_labels": 2}, {"id2label": {0: "bad", 1: "good"}}):
        named = minilm.AutoModelForSequenceClassification.from_pretrained(directory, **given)
        assert named.config.id2label == given.get("id2label", {0: "LABEL_0", 1: "LABEL_1"})
    with pytest.raises(ConfigError) as caught:
        minilm.BertConfig(**labels)
    assert_says(str(caught.value), words)


def test_code_beside_a_model_is_not_run(home, directory):
    """Nor asked for: what such a config.json says else, it says of a BERT."""
    code = f"import os\nos.mkdir({str(home / RAN)!r})\n"
    for name in ("modeling_more", "tokenization_more", "conftest", "transformers", "sitecustomize"):
        (directory / f"{name}.py").write_text(code)
    config(auto_map={"AutoModelForMaskedLM": "modeling_more.More", "AutoConfig": "modeling_more.More"})(directory)
    of_tokenizer(auto_map={"AutoTokenizer": ["tokenization_more.More", None]})(directory)
    for loader in LOADERS:
        load(directory, loader)
    assert not (home / RAN).exists()


def test_an_encoder_s_pooling_is_its_own(home, directory, watch):
    """sentence-transformers' files are in a directory below, which may be a link."""
    kinds = {"": "Transformer", "more": "Pooling"}
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "more").symlink_to(home / OUTSIDE)
    watch.seen()
    minilm.AutoModel.from_pretrained(directory)
    assert watch.seen() == []


@pytest.mark.parametrize("offline", [True, False])
@pytest.mark.parametrize("loader", ["AutoModelForMaskedLM", "AutoTokenizer", "AutoConfig"])
def test_a_name_that_nobody_knows_is_one_line(loader, offline, tmp_path, monkeypatch, calls):
    """Without a look at the network, where HF_HUB_OFFLINE or the call says so."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    with pytest.raises(CheckpointError) as caught:
        getattr(minilm, loader).from_pretrained(NOWHERE, cache_dir=tmp_path, local_files_only=not offline)
    assert calls == []
    assert_says(str(caught.value), NOWHERE)


@pytest.fixture(scope="module")
def peaks(home):
    """(row, loader) -> bytes by which the load's peak was above that of the good directory, and what was said."""
    found = {}
    asked = [(base, row, loader) for base, rows in MEMORY.items() for row, loader in (c.values for c in cases(rows))]
    by_directory = {row.name: home / f"much-{i}" for i, (_, row, _) in enumerate(asked)}
    for base, row, _ in asked:
        if not by_directory[row.name].exists():
            row.damage(Path(shutil.copytree(home / base, by_directory[row.name])))
    questions = [json.dumps([row.name, str(by_directory[row.name]), loader, row.pickle]) for _, row, loader in asked]
    run = subprocess.run(
        [sys.executable, __file__, home / "good"],
        input="\n".join(questions),
        capture_output=True,
        text=True,
        check=True,
    )
    for line in run.stdout.splitlines():
        name, loader, growth, message = json.loads(line)
        found[name, loader] = growth, message, _on_disk(by_directory[name])
    return found


MEMORY = {"good": SMALL_ROWS, "large": LARGE_ROWS}


@pytest.mark.parametrize(("row", "loader"), cases(*MEMORY.values()))
def test_its_memory_is_bounded_by_its_weights(row, loader, peaks):
    growth, message, weights = peaks[row.name, loader]
    assert growth < 2 * weights + ROOM
    assert_says(message, (loader == "core" and row.core) or row.words)


def _on_disk(directory: Path) -> int:
    """Bytes of weights that are there."""
    return sum(512 * file.stat().st_blocks for name in (WHOLE, PICKLE) for file in directory.glob(name))


def measure(good: str) -> None:
    """Answers the questions of `peaks`, each in a process of its own, in which everything is imported and warm."""
    torch.set_num_threads(1)
    for loader in LOADERS:
        load(good, loader)
    for line in sys.stdin:
        name, directory, loader, pickle = json.loads(line)
        if (child := os.fork()) == 0:
            load(good, loader)  # which brings its own pages
            before, message = peak(), ""
            try:
                load(directory, loader, pickle)
            except UserError as error:
                message = str(error)
            finally:
                os.write(1, (json.dumps([name, loader, peak() - before, message]) + "\n").encode())
                os._exit(0)
        os.waitpid(child, 0)


def peak() -> int:
    """Bytes of this process at most, so far."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM:"))


if __name__ == "__main__":
    measure(*sys.argv[1:])

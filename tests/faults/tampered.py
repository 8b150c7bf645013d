"""A model directory that someone has tampered with: what opens it says so in one line, or opens what is still a model;
at once, and with no more memory than the file is worth."""

import json
import os
import random
import shutil
import signal
import struct
import sys
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file, save_file

import minilm
from minilm.errors import UserError
from tests.faults.damage import BYTES
from tests.faults.victim import HANGS_AFTER, Victim

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
FILES = "config.json", "tokenizer.json", "tokenizer_config.json", INDEX, WEIGHTS
SECONDS = 1.0  # of the processor, beyond what the directory takes as it was
ROOM = 32 << 20  # bytes, beyond twice the file
DEEP = "\0deep"  # stands for lists within lists
NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 0.5, 1e308, float("nan"), float("inf")),
    *("", "x", "x" * 100_000, "../../../etc/passwd", "/dev/zero", "\ud800", "0", "F64", "[MASK]"),
    *([], {}, [[]], [None], {"": None}, [0] * 10_000, DEEP),
)
LOADERS: dict[str, Callable[[Path], object]] = {
    "read_model": minilm.read_model,
    "read_embedder": minilm.read_embedder,
    "from_pretrained": lambda directory: (
        minilm.BertForMaskedLM.from_pretrained(directory),
        minilm.BertTokenizer.from_pretrained(directory)("a list of words", "and another one"),
    ),
}


class Load(NamedTuple):
    """What came of opening a directory."""

    status: int  # 0: it was opened; 2: it was refused in one line
    seconds: float  # of the processor
    peak: int  # bytes
    said: str


def tampered(victim: Victim, out: Path, seed: int) -> tuple[str, str]:
    """(what was done, what is wrong): trial number `seed` on a finished model, which is mended again. out: is kept from
    trial to trial."""
    if not out.exists():
        _make(victim, out)
    rng, loader = random.Random(seed), [*LOADERS][seed % len(LOADERS)]
    name = FILES[seed // len(LOADERS) % len(FILES)]
    directory = out / ("sharded" if name == INDEX else "whole")
    before = _as_it_was(directory, loader)
    if before.status != 0:
        return name, f"is not opened as it was: {before.said}"
    file = directory / name
    kept = file.read_bytes()
    kind = rng.choice(["tree", "tree", "tree", "twice", *BYTES])
    file.write_bytes(BYTES[kind](kept, rng) if kind in BYTES else _of_header(name, kept, kind, rng))
    size = file.stat().st_size
    try:
        found = loaded(directory, loader)
    finally:
        file.write_bytes(kept)
    return f"{kind} {name} {loader}{', refused' if found.status == 2 else ''}", _wrong(found, before, size)


def _wrong(found: Load, before: Load, size: int) -> str:
    if found.status not in (0, 2):
        return f"status {found.status}: {found.said}"
    if found.seconds > before.seconds + SECONDS:
        return f"takes {found.seconds:.1f} s"
    if found.peak > before.peak + 2 * size + ROOM:
        return f"takes {(found.peak - before.peak) >> 20} MB"
    return ""


def loaded(directory: Path, loader: str) -> Load:
    """In a process of its own."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status, said = 0, ""
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        signal.alarm(HANGS_AFTER)
        try:
            LOADERS[loader](directory)
        except UserError as error:
            status, said = (2, str(error)) if "\n" not in str(error) else (3, "several lines")
        except BaseException:
            status, said = 3, traceback.format_exc()[-500:]
        os.write(write, said.encode(errors="replace")[:4000])
        os._exit(status)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read().decode()
    _, status, spent = os.wait4(pid, 0)
    peak = spent.ru_maxrss << (0 if sys.platform == "darwin" else 10)
    return Load(os.waitstatus_to_exitcode(status), spent.ru_utime + spent.ru_stime, peak, said)


_as_it_was = cache(loaded)


def _make(victim: Victim, out: Path) -> None:
    """The model of the run, with its weights in one file and in two."""
    for name in ("whole", "sharded"):
        (out / name).mkdir(parents=True)
        for file in (victim.base / "whole").iterdir():
            if file.suffix in (".json", ".txt") and file.name not in ("run.json", "MANIFEST.json"):
                shutil.copy(file, out / name)
    shutil.copy(victim.base / "whole" / WEIGHTS, out / "whole")
    tensors = load_file(out / "whole" / WEIGHTS)
    where = {key: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, key in enumerate(sorted(tensors))}
    for file in {*where.values()}:
        part = {key: tensors[key] for key in tensors if where[key] == file}
        save_file(part, out / "sharded" / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": sum(each.nbytes for each in tensors.values())}, "weight_map": where}
    (out / "sharded" / INDEX).write_text(json.dumps(index))


def _of_header(name: str, data: bytes, kind: str, rng: random.Random) -> bytes:
    """The JSON of a file, or of a safetensors file's header, changed."""
    if name != WEIGHTS:
        return changed_json(data, kind, rng)
    length = struct.unpack("<Q", data[:8])[0]
    header = changed_json(data[8 : 8 + length], kind, rng)
    claimed = len(header) if rng.random() < 0.9 else rng.choice([0, 1, length, 2**20, 2**31, 2**63 - 1, 2**64 - 1])
    return struct.pack("<Q", claimed) + header + data[8 + length :]


def changed_json(text: bytes, kind: str, rng: random.Random) -> bytes:
    """With a value replaced, removed, renamed, taken from elsewhere, or a key that stands there twice."""
    tree = json.loads(text)
    holder, key = _anywhere(tree, rng)
    if kind == "twice" and isinstance(holder, dict):  # a key that stands there twice: JSON does not say which counts
        own = json.dumps({key: rng.choice(NASTY)})[1:-1]
        whole = json.dumps(tree)
        return _written(whole.replace(json.dumps(key) + ":", f"{own}, {json.dumps(key)}:", 1))
    what = rng.choice(["replaced", "replaced", "removed", "renamed", "of another"])
    if what == "removed":
        del holder[key]
    elif what == "renamed" and isinstance(holder, dict):
        holder[str(rng.choice(NASTY))[:1000]] = holder.pop(key)
    elif what == "of another":
        other, place = _anywhere(tree, rng)
        holder[key] = json.loads(json.dumps(other[place]))
    else:
        holder[key] = rng.choice(NASTY)
    return _written(json.dumps(tree))


def _written(text: str) -> bytes:
    return text.replace(json.dumps(DEEP), "[" * 5000 + "]" * 5000).encode("utf-8", "surrogatepass")


def _anywhere(tree: Any, rng: random.Random) -> tuple[Any, Any]:
    """(container, key) of a value in it, those near the root the likelier."""
    while True:
        keys = [*tree] if isinstance(tree, dict) else range(len(tree))
        key = rng.choice(keys)
        if not isinstance(tree[key], dict | list) or not tree[key] or rng.random() < 0.2:
            return tree, key
        tree = tree[key]

"""Reading the tensors of a model directory that is not trusted: from one safetensors file, several, or, only on
request, a pickle. No file outside the directory is opened, and no code in it is run.
"""

import re
import zipfile
from collections import Counter
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from minilm.errors import CheckpointError, first_line
from minilm.files import read_json, regular_file

WHOLE, INDEX, PICKLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
SHARD_NAME = re.compile(r"(model|pytorch_model)-\d{5}-of-\d{5}\.(safetensors|bin)")  # as transformers names them
SHARD = re.compile(r"[\w.-]+\.safetensors", re.ASCII)
MAX_SHARDS = 10_000
MAX_HEADER = 2 << 20  # bytes; parsed they take twenty times that; 24 layers have 50 KB


def save_tensors(tensors: dict[str, Tensor], file: Path) -> None:
    """Write a safetensors file with the permissions of the umask; safetensors alone would give only the owner
    access."""
    file.touch()
    mode = file.stat().st_mode
    save_file(tensors, file, metadata={"format": "pt"})
    file.chmod(mode)


def load_tensors(file: Path) -> dict[str, Tensor]:
    """Tensors of one safetensors file, by name. Raises CheckpointError."""
    try:
        with regular_file(file).open("rb") as stream:
            if int.from_bytes(stream.read(8), "little") > MAX_HEADER:
                raise OSError(f"its header is longer than {MAX_HEADER >> 20} MB")
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error})") from error


def load_weights(directory: Path, allow_pickle: bool = False) -> tuple[Path, dict[str, Tensor]]:
    """(the file that lists the tensors, all tensors by name). Raises CheckpointError naming the file."""
    if allow_pickle:
        return directory / PICKLE, _load_pickle(directory / PICKLE)
    if (directory / INDEX).exists() and not (directory / WHOLE).exists():
        return directory / INDEX, _load_shards(directory / INDEX)
    if not (directory / WHOLE).exists() and (directory / PICKLE).exists():
        raise CheckpointError(
            f"{directory}: holds no {WHOLE}, and {PICKLE} is a pickle; if you trust its maker, read it with "
            f"use_safetensors=False (--allow-pickle of evaluate.py), and save it with save_pretrained for later"
        )
    return directory / WHOLE, load_tensors(directory / WHOLE)


def _load_shards(index: Path) -> dict[str, Tensor]:
    """Tensors of all files in the index; each file must hold exactly those that `weight_map` assigns to it."""
    named = read_json(index).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise CheckpointError(f"{index}: weight_map names no tensor")
    shards = set()
    for tensor, shard in named.items():
        if not isinstance(shard, str) or not SHARD.fullmatch(shard) or shard.startswith("."):
            raise CheckpointError(f"{index}: {tensor} is in {shard!r}, which is no name of a file beside it")
        shards.add(shard)
    if len(shards) > MAX_SHARDS:
        raise CheckpointError(f"{index}: names {len(shards)} files; at most {MAX_SHARDS} are read")
    tensors = {}
    for shard in sorted(shards):
        held = load_tensors(index.with_name(shard))
        expected = {tensor for tensor, file in named.items() if file == shard}
        if odd := sorted(expected ^ held.keys()):
            what = "lacks" if odd[0] in expected else "also holds"
            raise CheckpointError(f"{index.with_name(shard)}: {what} {odd[0]}, unlike {index.name} says")
        tensors |= held
    return tensors


def _load_pickle(file: Path) -> dict[str, Tensor]:
    """Tensors of a pickle, by torch's unpickler that makes only tensors."""
    try:
        zipped, records = zipfile.is_zipfile(regular_file(file)), []  # torch before 1.6 did not zip
        if zipped:
            with zipfile.ZipFile(file) as archive:
                records = archive.infolist()
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise ValueError("it is compressed; torch.save does not")
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except UnpicklingError as error:
        raise CheckpointError(f"{file}: holds more than tensors, so it is not opened") from error
    except Exception as error:  # a hostile pickle may raise any error
        raise CheckpointError(f"{file}: cannot be read ({first_line(error)})") from error
    if not isinstance(tensors, dict) or not all(isinstance(own, Tensor) for own in tensors.values()):
        raise CheckpointError(f"{file}: is no dict of named tensors")
    sizes = {}
    for name, own in tensors.items():
        plain = own.layout == torch.strided and not own.is_nested and own.device.type == "cpu"
        if not plain or own.nbytes > own.untyped_storage().nbytes():
            raise CheckpointError(f"{file}: tensor {name} is incomplete")
        sizes[own.untyped_storage().data_ptr()] = own.untyped_storage().nbytes()
    if zipped and (cut := Counter(sizes.values()) - Counter(record.file_size for record in records)):
        raise CheckpointError(f"{file}: a tensor of {min(cut)} bytes is incomplete")
    return {str(name): own for name, own in tensors.items()}

"""Reading and writing model directories, ours or Hugging Face's: config.json, model.safetensors, the tokenizer, and
training/ in a checkpoint of a run.
"""

import hashlib
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from minilm.checkpoint.hf import HEAD, config_from_hf, config_to_hf, from_hf, kind_of, objective_of, pairs_of, to_hf
from minilm.checkpoint.store import FORMAT, check_format, checkpoints, manifest_fault
from minilm.checkpoint.weights import load_tensors, load_weights, save_tensors
from minilm.data.tokenizer import Tokenizer
from minilm.errors import CheckpointError
from minilm.files import read_json, write_json
from minilm.model.attention import Backend
from minilm.model.encoder import EncoderConfig, initialise
from minilm.model.heads import LanguageModel, LMHead

FETCHED = ("*.json", "vocab.txt", "merges.txt")  # patterns for the hub, where * matches a / too
WEIGHTS = {False: ("model*.safetensors",), True: ("pytorch_model.bin",)}  # allow_pickle -> files to fetch
MAX_CONFIG = 4 << 20  # bytes; as Python objects they take twenty times that


@contextmanager
def shapes_only() -> Iterator[None]:
    """Context in which modules have shapes but no memory, so that a hostile config.json is checked before
    allocation."""
    with torch.device("meta"), _Unfilled():
        yield


class _Unfilled(TorchFunctionMode):
    """Skips `normal_`, for which torch would import its compiler on the meta device, slower than the rest of
    loading."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.normal_, nn.init.normal_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


class Pretrained(NamedTuple):
    """Content of a language model's directory."""

    model: LanguageModel  # in eval mode
    tokenizer: Tokenizer
    objective: str  # mlm, clm or prefix: what the weights were trained for


def write_model(
    directory: Path,
    model: LanguageModel,
    tokenizer: Tokenizer,
    objective: str,
    pairs: str | None = None,
    state: dict[str, Tensor] | None = None,
    cfg: EncoderConfig | None = None,
) -> None:
    """Write config.json, model.safetensors and the tokenizer, as transformers reads them.

    pairs: task of the pair head. state: the whole state dict, if the model is sharded. cfg: configuration to write, if
    the model was trained with another dropout than it should have later.
    """
    specials = {"cls_token_id": tokenizer.cls_id, "sep_token_id": tokenizer.sep_id}
    config = config_to_hf(cfg or model.cfg, objective, specials, pairs)
    state = {name: tensor.detach().cpu() for name, tensor in (state or model.state_dict()).items()}
    tokenizer.save(directory, model_max_length=model.cfg.max_position_embeddings, open_end=objective == "clm")
    save_tensors(to_hf(state, config["model_type"], kind_of(config)), directory / "model.safetensors")
    write_json(directory / "config.json", config)


def weights_fingerprint(model: nn.Module) -> str:
    """Checksum of all parameters: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def find_model(
    name: Path | str,
    revision: str | None = None,
    cache_dir: Path | str | None = None,
    local_files_only: bool = False,
    allow_pickle: bool = False,
    token: str | bool | None = None,
    weights: bool = True,
    flag: str = "model",
) -> Path:
    """Directory of a model: `name` itself, or that of a name on the Hugging Face hub, downloaded or from its cache.

    No socket is opened for a directory, nor with `local_files_only` or HF_HUB_OFFLINE=1. token: access token of the
    hub, for private models. weights: whether to fetch them, too. flag: flag to name in the error. Raises
    CheckpointError.
    """
    if os.path.exists(name):
        return Path(name)
    if not str(name).strip() or re.match(r"[./~]", str(name)):
        raise CheckpointError(f"{flag} {name}: no such directory")
    from huggingface_hub import snapshot_download  # which takes longer to import than all of this package

    try:
        found = snapshot_download(
            str(name),
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
            allow_patterns=[*FETCHED, *(WEIGHTS[allow_pickle] if weights else ())],
        )
    except Exception as error:  # no narrower one: the hub's HTTP library raises its own
        if partial := getattr(error, "snapshot_path", None):  # in the cache, perhaps without files that nobody needs
            return Path(partial)
        what, why = f"{name}{f' at {revision}' if revision else ''}", " ".join(str(error).split())
        raise CheckpointError(
            f"{flag} {what}: no such directory, and the hub does not know the name, or cannot be reached ({why})"
        ) from error
    return Path(found)


def version_of(directory: Path) -> tuple[int, int] | None:
    """Stamp of the model in a directory; None without config.json, which each writing replaces last."""
    try:
        status = (directory / "config.json").stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def check_version(directory: Path, before: tuple[int, int] | None) -> None:
    """Raises CheckpointError if the model has been rewritten since `version_of` returned `before`."""
    if version_of(directory) != before:
        raise CheckpointError(f"{directory}: changed while it was read; read it again")


def read_config(directory: Path | str) -> dict[str, Any]:
    """The config.json of a model directory, after checking its files against MANIFEST.json, if there is one. Raises
    CheckpointError."""
    directory = Path(directory)
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: {'is a file, not a' if directory.exists() else 'no such'} directory")
    if not (directory / "config.json").exists():
        complete = [path for _, path in checkpoints(directory)]
        hint = f"; its newest complete checkpoint is {complete[-1]}" if complete else ""
        raise CheckpointError(f"{directory}: no config.json, so no finished model{hint}")
    if (directory / "MANIFEST.json").exists() and (fault := manifest_fault(directory)):
        raise CheckpointError(f"{directory}: {fault}; fetch or copy it again")
    return read_json(directory / "config.json", most=MAX_CONFIG)


def read_model(directory: Path | str, backend: Backend = "sdpa", head_seed: int | None = None) -> Pretrained:
    """Read a language model, of a directory or a name on the hub: minilm's, or of a family of families.py.

    head_seed: an encoder without a language-model head gets a random one, drawn by this seed, with a warning. Raises
    CheckpointError naming the file, tensor or key that does not fit.
    """
    directory = find_model(directory)
    config = read_config(directory)
    try:
        kind = kind_of(config)
        with shapes_only():
            model = LanguageModel(config_from_hf(config), backend, pairs_of(config) is not None)
    except CheckpointError as error:
        raise CheckpointError(f"{directory}/{error}") from error
    tokenizer = Tokenizer.load(directory)
    state, dropped = read_weights(model.state_dict(), directory, config["model_type"], kind, new=(HEAD,))
    if (lacks_head := f"{HEAD}bias" not in state) and head_seed is None:
        raise CheckpointError(
            f"{directory}: has no language-model head; open it with AutoModel, or a tuned one with open_tuned"
        )
    if dropped:
        warnings.warn(f"{directory}: ignored, as this model has no such head: {', '.join(dropped)}", stacklevel=2)
    if lacks_head:
        head = LMHead(model.cfg)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(head_seed)
            initialise(head)
        state |= {HEAD + name: own for name, own in head.state_dict().items()}
        warnings.warn(f"{directory}: has no language-model head: a new one is used", stacklevel=2)
    model.load_state_dict(state, assign=True)
    if tokenizer.vocab_size > model.cfg.vocab_size:
        raise CheckpointError(
            f"{directory}: the tokenizer has {tokenizer.vocab_size} tokens, the model {model.cfg.vocab_size}"
        )
    return Pretrained(model.eval(), tokenizer, objective_of(config))


def read_weights(
    expected: dict[str, Tensor],
    directory: Path,
    model_type: str,
    kind: str,
    *,
    new: tuple[str, ...] = (),
    allow_pickle: bool = False,
    ignore_mismatched_sizes: bool = False,
    as_stored: bool = False,
) -> tuple[dict[str, Tensor], list[str]]:
    """(a directory's weights as a state dict like `expected`, names of tensors of other heads), every tensor accounted
    for.

    Arguments as in `from_hf`. as_stored: in the dtype of the file's first floating tensor, not in `expected`'s.
    Raises CheckpointError naming the file.
    """
    file, tensors = load_weights(directory, allow_pickle)
    stored = next((own.dtype for own in tensors.values() if own.is_floating_point()), torch.float32)
    shapes = {
        name: torch.empty(own.shape, dtype=stored if as_stored else own.dtype, device="meta")
        for name, own in expected.items()
    }
    try:
        return from_hf(tensors, model_type, kind, shapes, new, ignore_mismatched_sizes)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error


def add_words(pretrained: Pretrained, file: Path) -> Pretrained:
    """The model with the words of `file` added to its vocabulary, each embedded as the mean of its former pieces."""
    model, old, objective = pretrained
    tokenizer, pieces = old.with_words(file)
    grown = LanguageModel(
        replace(model.cfg, vocab_size=max(model.cfg.vocab_size, tokenizer.vocab_size)),
        model.encoder.backend,
        model.pair is not None,
    )
    state = model.state_dict()
    with torch.no_grad():
        for name in ("encoder.embedding.word.weight", "head.bias"):
            wider = torch.zeros_like(grown.state_dict()[name])
            wider[: len(state[name])] = state[name]
            for id, own in enumerate(pieces, start=old.vocab_size):
                wider[id] = state[name][own].mean(dim=0)
            state[name] = wider
    grown.load_state_dict(state)
    return Pretrained(grown.eval(), tokenizer, objective)


def read_state(directory: Path, model: LanguageModel) -> dict[str, Tensor]:
    """State dict that `write_model` wrote of a model like `model`, by our names. Raises CheckpointError."""
    config = read_json(directory / "config.json", most=MAX_CONFIG)
    return read_weights(model.state_dict(), directory, config["model_type"], kind_of(config))[0]


def write_training(directory: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write training/: the tensors of `optim.optimizer_state`, and `state` as JSON."""
    (directory / "training").mkdir()
    save_tensors(tensors, directory / "training" / "tensors.safetensors")
    write_json(directory / "training" / "state.json", {"format": FORMAT, **state})


def read_training(directory: Path, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(optimizer tensors, state) that `write_training` wrote, checked against `model`. Raises CheckpointError."""
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    file = directory / "training" / "tensors.safetensors"
    tensors = load_tensors(file)
    for name, tensor in tensors.items():
        _, _, of = name.partition("/")
        if of not in shapes:
            raise CheckpointError(f"{file}: {name!r} belongs to no parameter of this model")
        if tensor.ndim and tensor.shape != shapes[of]:
            raise CheckpointError(f"{file}: {name!r} has shape {tuple(tensor.shape)}, not {tuple(shapes[of])}")
    state = read_json(directory / "training" / "state.json")
    check_format(directory / "training" / "state.json", state)
    return tensors, state

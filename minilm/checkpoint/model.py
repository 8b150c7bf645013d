"""A model directory, ours or Hugging Face's: config.json, model.safetensors, the tokenizer; and, in a checkpoint that
training goes on from, training/ beside them.
"""

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from minilm.checkpoint.hf import config_from_hf, config_to_hf, from_hf, objective_of, to_hf
from minilm.checkpoint.store import FORMAT, check_format, checkpoints, manifest_fault, read_json, write_json
from minilm.data.tokenizer import Tokenizer
from minilm.errors import CheckpointError
from minilm.model.attention import Backend
from minilm.model.heads import LanguageModel


class Pretrained(NamedTuple):
    """What a language model's directory holds."""

    model: LanguageModel  # in eval mode
    tokenizer: Tokenizer
    objective: str  # mlm, clm or prefix: what the weights were trained for


def write_model(directory: Path, model: LanguageModel, tokenizer: Tokenizer, objective: str) -> None:
    """config.json, model.safetensors and the tokenizer, as transformers reads them."""
    specials = {"cls_token_id": tokenizer.cls_id, "sep_token_id": tokenizer.sep_id}
    config = config_to_hf(model.cfg, objective, specials)
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    tokenizer.save(directory, model_max_length=model.cfg.max_position_embeddings, open_end=objective == "clm")
    _save_tensors(to_hf(state, config["model_type"]), directory / "model.safetensors")
    write_json(directory / "config.json", config)


def _save_tensors(tensors: dict[str, Tensor], file: Path) -> None:
    """Readable by whom the umask says; safetensors writes files that only their owner may read."""
    file.touch()
    mode = file.stat().st_mode
    save_file(tensors, file, metadata={"format": "pt"})
    file.chmod(mode)


def _load_tensors(file: Path) -> dict[str, Tensor]:
    try:
        if file.exists() and not file.is_file():
            raise OSError("not a regular file")
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: cannot be read ({error})") from error


def read_model(directory: Path | str, backend: Backend = "sdpa") -> Pretrained:
    """A language model's directory: minilm's, or transformers' for a family of hf.py.

    Raises CheckpointError naming the file, tensor or key that does not fit.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such directory")
    if not (directory / "config.json").exists():
        complete = [path for _, path in checkpoints(directory)]
        hint = f"; its newest complete checkpoint is {complete[-1]}" if complete else ""
        raise CheckpointError(f"{directory}: no config.json, so no finished model{hint}")
    if (directory / "MANIFEST.json").exists() and (fault := manifest_fault(directory)):
        raise CheckpointError(f"{directory}: {fault}")
    config = read_json(directory / "config.json")
    with torch.device("meta"):  # sizes that a hostile config.json names are checked before memory is asked for
        model = LanguageModel(config_from_hf(config), backend)
    if dropped := load_weights(model, directory):
        warnings.warn(f"{directory}: left out, for this model has no such head: {', '.join(dropped)}", stacklevel=2)
    tokenizer = Tokenizer.load(directory)
    if tokenizer.vocab_size > model.cfg.vocab_size:
        raise CheckpointError(
            f"{directory}: the tokenizer has {tokenizer.vocab_size} tokens, the model {model.cfg.vocab_size}"
        )
    return Pretrained(model.eval(), tokenizer, objective_of(config))


def load_weights(model: nn.Module, directory: Path) -> list[str]:
    """Fill `model` from a directory's model.safetensors, every tensor accounted for: (names of those of other heads).

    A model on the meta device gets the file's own tensors. Raises CheckpointError.
    """
    model_type = read_json(directory / "config.json")["model_type"]
    file = directory / "model.safetensors"
    tensors = _load_tensors(file)
    try:
        state, dropped = from_hf(tensors, model_type, model.state_dict())
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {' '.join(str(error).split())}") from error
    model.load_state_dict(state, assign=next(model.parameters()).is_meta)
    return dropped


def write_training(
    directory: Path,
    model: nn.Module,
    optimizers: Iterable[torch.optim.Optimizer],
    rng: dict[str, Tensor],
    state: dict[str, Any],
) -> None:
    """training/: the optimizers' tensors under the names of their parameters, generators, and `state` as JSON."""
    (directory / "training").mkdir()
    names = {parameter: name for name, parameter in model.named_parameters()}
    tensors = {f"rng/{name}": tensor for name, tensor in rng.items()}
    for optimizer in optimizers:
        for parameter, own in optimizer.state.items():
            for key, tensor in own.items():
                tensors[f"{key}/{names[parameter]}"] = tensor.detach().cpu().contiguous()
    _save_tensors(tensors, directory / "training" / "tensors.safetensors")
    write_json(directory / "training" / "state.json", {"format": FORMAT, **state})


def read_training(
    directory: Path, model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Fill the optimizers; (rng, state) as they were written. Raises CheckpointError."""
    parameters = dict(model.named_parameters())
    owner = {p: o for o in optimizers for group in o.param_groups for p in group["params"]}
    rng = {}
    file = directory / "training" / "tensors.safetensors"
    for name, tensor in _load_tensors(file).items():
        key, _, of = name.partition("/")
        if key == "rng":
            rng[of] = tensor
        elif of in parameters:
            parameter = parameters[of]
            if tensor.ndim and tensor.shape != parameter.shape:
                raise CheckpointError(f"{file}: {name!r} has shape {tuple(tensor.shape)}, not {tuple(parameter.shape)}")
            owner[parameter].state[parameter][key] = tensor.to(parameter.device)
        else:
            raise CheckpointError(f"{file}: {name!r} belongs to no parameter of this model")
    state = read_json(directory / "training" / "state.json")
    check_format(directory / "training" / "state.json", state)
    return rng, state

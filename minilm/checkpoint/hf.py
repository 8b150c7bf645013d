"""Conversion of state dicts and configurations to and from Hugging Face's; `families` holds the names.

Every tensor is accounted for: it is mapped, a copy of a mapped one, a buffer (left out), part of a head that this model
does not have (left out and named), or an error that names it.
"""

import re
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from minilm.checkpoint.families import FAMILIES, Family, Names
from minilm.checkpoint.hf_config import config_value
from minilm.errors import CheckpointError, ConfigError
from minilm.model.encoder import EncoderConfig

FORMAT = 1  # version of the "minilm" entry in config.json
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# (norm order, objective) -> (model_type, kind of class) of a language model trained here
TRAINED = {
    ("post", "mlm"): ("bert", "mlm"),
    ("post", "clm"): ("bert", "clm"),
    ("post", "prefix"): ("bert", "mlm"),  # transformers has no prefix LM: its mask is ours alone
    ("pre", "mlm"): ("modernbert", "mlm"),
    ("pre", "clm"): ("modernbert-decoder", "clm"),
    ("pre", "prefix"): ("modernbert", "mlm"),
}
OBJECTIVES = tuple(dict.fromkeys(objective for _, objective in TRAINED))
OF_OLD = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}  # in bert-base-uncased and others
WRAPPED = "module."  # prefix that nn.DataParallel adds
HEAD = "head."  # prefix of the language-model head in our names


def family_of(config: dict[str, Any]) -> Family:
    """The family of a config.json. Raises CheckpointError for an unknown one."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise CheckpointError(f"config.json: model_type {model_type!r} is unknown; known: {', '.join(FAMILIES)}")
    return FAMILIES[model_type]


def config_from_hf(config: dict[str, Any]) -> EncoderConfig:
    """EncoderConfig of a config.json. Raises CheckpointError naming the key that does not fit."""
    try:
        cfg = family_of(config).read(config)
    except ConfigError as error:
        raise CheckpointError(f"config.json: {error}") from error
    config_value(config, "is_decoder", bool, False)
    if (spread := config_value(config, "initializer_range", float, 0.02)) < 0:
        raise CheckpointError(f"config.json: initializer_range is {spread}; give a number from 0")
    return cfg


def kind_of(config: dict[str, Any]) -> str:
    """Kind of class that a language model's config.json is read as. Raises CheckpointError for a family that is not
    trained here."""
    family_of(config)
    objective = objective_of(config)
    trained = {(model_type, objective): kind for (_, objective), (model_type, kind) in TRAINED.items()}
    if (config["model_type"], objective) not in trained:
        raise CheckpointError(
            f"config.json: a {config['model_type']} for {objective} is not trained here; AutoModel opens it"
        )
    return "pretraining" if pairs_of(config) else trained[config["model_type"], objective]


def config_to_hf(
    cfg: EncoderConfig, objective: str, specials: dict[str, int], pairs: str | None = None
) -> dict[str, Any]:
    """The config.json of a language model, which transformers' Auto classes open as the right class.

    `specials` holds `cls_token_id` and `sep_token_id`; `pairs`: task of its pair head, if it has one. Raises
    ConfigError for a model that the family's config.json cannot describe.
    """
    model_type, kind = TRAINED[cfg.norm_order, objective]
    family = FAMILIES[model_type]
    if pairs is not None:
        if kind != "mlm" or "pretraining" not in family.classes:
            named = family.classes[kind].architecture
            raise ConfigError(f"--pairs {pairs}: only a masked BERT has a head for pairs, not {named}")
        kind = "pretraining"
    config = {"architectures": [family.classes[kind].architecture], "model_type": model_type} | family.write(cfg)
    config |= {"bos_token_id": specials["cls_token_id"], "eos_token_id": specials["sep_token_id"]}
    config |= {key: specials[key] for key in specials if key in family.defaults}
    again = config_from_hf(config)
    if lost := [field.name for field in fields(cfg) if getattr(again, field.name) != getattr(cfg, field.name)]:
        raise ConfigError(f"a {model_type} config.json cannot say this encoder's {', '.join(lost)}")
    if (model_type, kind) == ("bert", "clm"):
        config["is_decoder"] = True
    return config | {"dtype": "float32", "minilm": _entry(objective, pairs)}


def _entry(objective: str, pairs: str | None) -> dict[str, Any]:
    return {"format": FORMAT, "objective": objective} | ({"pairs": pairs} if pairs else {})


def entry_of(config: dict[str, Any], kind: str) -> dict[str, Any] | None:
    """The "minilm" entry for config.json of a model that is now of `kind`; None if that is no language model."""
    if kind not in ("mlm", "clm", "pretraining"):
        return None
    return _entry(objective_of(config), (pairs_of(config) or "next") if kind == "pretraining" else None)


def objective_of(config: dict[str, Any]) -> str:
    """Objective that the weights were trained for: mlm, clm or prefix. An entry of a model that was causal and is none
    now, or the other way round, is passed over: transformers keeps it in files of another class."""
    if "minilm" in config:
        own = config["minilm"]
        if not isinstance(own, dict) or own.get("format") != FORMAT or own.get("objective") not in OBJECTIVES:
            raise CheckpointError(f"config.json: minilm is {own!r}; expected format {FORMAT} and an objective")
        if (own["objective"] == "clm") == is_causal(config):
            return own["objective"]
    return "clm" if is_causal(config) else "mlm"


def is_causal(config: dict[str, Any]) -> bool:
    """Whether the model is causal: a token sees only those before it. `is_decoder` counts in families that have it."""
    family = FAMILIES.get(str(config.get("model_type")))
    has_key = family is None or "is_decoder" in family.defaults
    return bool(has_key and config.get("is_decoder")) or str(config.get("model_type")).endswith("-decoder")


def pairs_of(config: dict[str, Any]) -> str | None:
    """Task of the model's pair head: next or order; None if it has no such head."""
    is_of_pairs = config.get("architectures") == ["BertForPreTraining"]
    if "minilm" in config:
        pairs = config["minilm"].get("pairs") if isinstance(config["minilm"], dict) else None
        if pairs not in (None, "next", "order"):
            raise CheckpointError(f"config.json: minilm names pairs {pairs!r}; expected next or order")
        return pairs if is_of_pairs or "architectures" not in config else None  # else saved by another class
    return "next" if is_of_pairs else None


def _theirs(name: str, names: Names) -> tuple[str, ...]:
    """Hugging Face's name or names of our parameter `name`."""
    layer = re.search(r"\.(\d+)\.", name)
    pattern = name if layer is None else name.replace(layer[0], ".{i}.", 1)
    module, _, leaf = pattern.rpartition(".")
    found, suffix = (names[pattern], "") if pattern in names else (names.get(module), f".{leaf}")
    if found is None:
        raise CheckpointError(f"parameter {name} has no place in transformers' files; keep it outside of the model")
    found = (found,) if isinstance(found, str) else found
    return tuple(theirs.replace("{i}", layer[1] if layer else "") + suffix for theirs in found)


def to_hf(state: dict[str, Tensor], model_type: str, kind: str) -> dict[str, Tensor]:
    """Our state dict under Hugging Face's names. The tied decoder is stored once, as the embedding. Raises
    CheckpointError for what `from_hf` would refuse."""
    family, out = FAMILIES[model_type], {}
    names = family.names(kind)
    for name, tensor in state.items():
        theirs = _theirs(name, names)
        out |= {key: part.contiguous() for key, part in zip(theirs, tensor.chunk(len(theirs)), strict=True)}
    seen: set[int] = set()
    for key, own in out.items():  # layers that share weights each get a copy in the file
        place = 0 if own.is_meta else own.data_ptr()
        out[key] = own.clone() if place in seen and own.numel() and place else own
        seen.add(place)
    if odd := [key for key, own in out.items() if own.is_meta or own.dtype not in DTYPES]:
        kind_of_tensor = "has no values" if out[odd[0]].is_meta else f"is of {out[odd[0]].dtype}"
        raise CheckpointError(f"tensor {odd[0]} {kind_of_tensor}; nothing is written")
    _check_finite(out)
    return {key.removeprefix(family.base): own for key, own in out.items()} if kind == "model" else out


def from_hf(
    tensors: dict[str, Tensor],
    model_type: str,
    kind: str,
    expected: dict[str, Tensor],
    new: tuple[str, ...] = (),
    ignore_mismatched_sizes: bool = False,
) -> tuple[dict[str, Tensor], list[str]]:
    """(Hugging Face's tensors as a state dict like `expected`, in its dtypes; names of tensors of heads it does not
    have).

    kind: class of the family. new: prefixes of parts that `tensors` may lack, or, with ignore_mismatched_sizes, hold in
    other sizes; the state dict then omits them. A file of the encoder alone leaves out the prefix of its names.

    Raises CheckpointError naming the tensor that is missing, unknown, of another shape, not finite, or
    differs from the one it should be tied to.
    """
    family = FAMILIES[model_type]
    tensors = _as_named_today(tensors, family)
    rest = {key: tensor for key, tensor in tensors.items() if key not in family.buffers}
    names = {name: _theirs(name, family.names(kind)) for name in expected}
    lacking = tuple(
        prefix for prefix in new if _lacks(prefix, names, rest, expected if ignore_mismatched_sizes else {})
    )
    names = {name: theirs for name, theirs in names.items() if not name.startswith(lacking)}
    for name, theirs in names.items():  # every shape before any value
        for key, part in zip(theirs, expected[name].chunk(len(theirs)), strict=True):
            _check_shape(key, rest, part)
    _check_finite({key: rest[key] for theirs in names.values() for key in theirs})
    state = {name: _merged([rest.pop(key) for key in theirs], theirs, expected[name]) for name, theirs in names.items()}

    heads = {family.head_of(theirs[0]) for theirs in names.values()}
    for copy, source in family.copies.items():
        if copy in rest and source in tensors and family.head_of(copy) in heads:
            twin, original = rest.pop(copy), tensors[source]
            if twin.dtype != original.dtype or not torch.equal(twin, original):
                raise CheckpointError(f"tensor {copy} differs from {source}; only tied weights are supported")
    dropped = [key for key in rest if family.head_of(key) not in {"", *heads}]
    if unknown := sorted(rest.keys() - set(dropped)):
        raise CheckpointError(f"tensor {unknown[0]} is unknown ({len(unknown)} such); is config.json of this model?")
    return state, dropped


def _as_named_today(tensors: dict[str, Tensor], family: Family) -> dict[str, Tensor]:
    """The tensors under the names that transformers writes now: without a wrapper's prefix, with the encoder's."""
    if all(key.startswith(WRAPPED) for key in tensors):
        tensors = {key.removeprefix(WRAPPED): tensor for key, tensor in tensors.items()}
    old_names = "|".join(map(re.escape, OF_OLD))
    now = {key: re.sub(old_names, lambda old: OF_OLD[old[0]], key) for key in tensors}
    if twice := [key for key in tensors if now[key] != key and now[key] in tensors]:
        raise CheckpointError(f"tensor {twice[0]} appears also as {now[twice[0]]}")
    if not any(key.startswith(family.base) for key in now.values()):
        now = {key: name if name.startswith(family.heads) else family.base + name for key, name in now.items()}
    return {now[key]: tensor for key, tensor in tensors.items()}


def _lacks(prefix: str, names: dict[str, tuple[str, ...]], rest: dict[str, Tensor], sizes: dict[str, Tensor]) -> bool:
    """Whether a file holds no tensor of a head, or one whose size differs from `sizes`.

    A ModernBERT classifier stores its dense layer as `head.*`, names that the language-model head has, too: in a
    classifier's file, part of them is no damaged language-model head.
    """
    keys = {key for name, theirs in names.items() if name.startswith(prefix) for key in theirs}
    of_classifier = prefix == HEAD and any(key.startswith("classifier.") for key in rest)
    if not keys & rest.keys() or (of_classifier and not keys <= rest.keys()):
        return True
    alone = {theirs[0]: sizes[name] for name, theirs in names.items() if name in sizes and name.startswith(prefix)}
    return any(key in rest and rest[key].shape != like.shape for key, like in alone.items())


def _check_shape(key: str, tensors: dict[str, Tensor], like: Tensor) -> None:
    if key not in tensors:
        raise CheckpointError(f"tensor {key} is missing")
    if tensors[key].shape != like.shape:
        shapes = f"{tuple(tensors[key].shape)}; config.json makes it {tuple(like.shape)}"
        raise CheckpointError(f"tensor {key} has shape {shapes}")
    if tensors[key].dtype not in DTYPES:
        raise CheckpointError(f"tensor {key} is of {tensors[key].dtype}; expected {', '.join(map(str, DTYPES))}")


def _merged(parts: list[Tensor], keys: tuple[str, ...], like: Tensor) -> Tensor:
    """Their parts concatenated to our one tensor, in the dtype of `like`."""
    if any(part.dtype != like.dtype for part in parts):
        parts = [part.to(like.dtype) for part in parts]
        _check_finite(dict(zip(keys, parts, strict=True)))  # again: they may overflow in the other dtype
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _check_finite(tensors: dict[str, Tensor]) -> None:
    """Raises CheckpointError if a value is not finite. Minimum and maximum (NaN if any is) need no memory."""
    for key, own in tensors.items():
        if own.numel() and not torch.stack(own.aminmax()).isfinite().all():
            raise CheckpointError(f"tensor {key} holds values that are not finite")

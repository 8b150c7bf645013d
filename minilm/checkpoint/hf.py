"""Hugging Face's names for our tensors, both ways; which family is what: rows of data.

`{i}` stands for a layer number. Where theirs is a tuple, our one matrix is theirs stacked in that order.
Every tensor is accounted for: it is mapped, a copy of a mapped one, a buffer that nothing learns (left out), a head of
the family that this model does not have (left out and named), or an error that names it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from minilm.checkpoint.hf_config import modern_reader, modern_writer, read_bert, write_bert
from minilm.errors import CheckpointError, ConfigError
from minilm.model.encoder import EncoderConfig

FORMAT = 1  # of the "minilm" entry in config.json
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

BERT_NAMES = {
    "encoder.embedding.word": "bert.embeddings.word_embeddings",
    "encoder.embedding.position": "bert.embeddings.position_embeddings",
    "encoder.embedding.token_type": "bert.embeddings.token_type_embeddings",
    "encoder.embedding.norm": "bert.embeddings.LayerNorm",
    "encoder.layers.{i}.attention.qkv": (
        "bert.encoder.layer.{i}.attention.self.query",
        "bert.encoder.layer.{i}.attention.self.key",
        "bert.encoder.layer.{i}.attention.self.value",
    ),
    "encoder.layers.{i}.attention.out": "bert.encoder.layer.{i}.attention.output.dense",
    "encoder.layers.{i}.attention_norm": "bert.encoder.layer.{i}.attention.output.LayerNorm",
    "encoder.layers.{i}.mlp.inp": "bert.encoder.layer.{i}.intermediate.dense",
    "encoder.layers.{i}.mlp.out": "bert.encoder.layer.{i}.output.dense",
    "encoder.layers.{i}.mlp_norm": "bert.encoder.layer.{i}.output.LayerNorm",
    "pair.pooler.dense": "bert.pooler.dense",
    "pair.classifier": "cls.seq_relationship",
    "head.dense": "cls.predictions.transform.dense",
    "head.norm": "cls.predictions.transform.LayerNorm",
    "head.bias": "cls.predictions.bias",
}

MODERN_NAMES = {
    "encoder.embedding.word": "model.embeddings.tok_embeddings",
    "encoder.embedding.norm": "model.embeddings.norm",
    "encoder.layers.{i}.attention.qkv": "model.layers.{i}.attn.Wqkv",
    "encoder.layers.{i}.attention.out": "model.layers.{i}.attn.Wo",
    "encoder.layers.{i}.attention_norm": "model.layers.{i}.attn_norm",
    "encoder.layers.{i}.mlp.inp": "model.layers.{i}.mlp.Wi",
    "encoder.layers.{i}.mlp.out": "model.layers.{i}.mlp.Wo",
    "encoder.layers.{i}.mlp_norm": "model.layers.{i}.mlp_norm",
    "encoder.final_norm": "model.final_norm",
    "head.dense": "head.dense",
    "head.norm": "head.norm",
    "head.bias": "decoder.bias",
}

MODERN_DECODER_NAMES = MODERN_NAMES | {
    "encoder.layers.{i}.attention.qkv": (
        "model.layers.{i}.attn.q_proj",
        "model.layers.{i}.attn.k_proj",
        "model.layers.{i}.attn.v_proj",
    ),
    "head.dense": "lm_head.dense",
    "head.norm": "lm_head.norm",
}


@dataclass(frozen=True)
class Family:
    """One `model_type` of Hugging Face's."""

    names: dict[str, str | tuple[str, ...]]  # ours (a parameter or its module) -> theirs
    base: str  # prefix of the encoder's tensors, which a file of the encoder alone leaves out
    buffers: tuple[str, ...]  # what old files hold and nothing learns
    copies: dict[str, str]  # a tied copy that a file may hold -> the tensor it must equal
    heads: tuple[str, ...]  # prefixes of heads that a file may hold for another class
    read: Callable[[dict[str, Any]], EncoderConfig]
    write: Callable[[EncoderConfig, dict[str, int]], dict[str, Any]]


_MODERN_COPIES = {"decoder.weight": "model.embeddings.tok_embeddings.weight"}

FAMILIES = {
    "bert": Family(
        names=BERT_NAMES,
        base="bert.",
        buffers=("bert.embeddings.position_ids", "bert.embeddings.token_type_ids"),
        copies={
            "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
        },
        heads=("cls.seq_relationship.", "cls.predictions.", "bert.pooler.", "classifier.", "qa_outputs."),
        read=read_bert,
        write=write_bert,
    ),
    "modernbert": Family(
        names=MODERN_NAMES,
        base="model.",
        buffers=(),
        copies=_MODERN_COPIES,
        heads=("head.", "decoder.", "classifier."),
        read=modern_reader(halo=0),
        write=modern_writer("modernbert", halo=0),
    ),
    "modernbert-decoder": Family(
        names=MODERN_DECODER_NAMES,
        base="model.",
        buffers=(),
        copies=_MODERN_COPIES,
        heads=("lm_head.", "decoder.", "classifier."),
        read=modern_reader(halo=1),
        write=modern_writer("modernbert-decoder", halo=1),
    ),
}

# (norm order, objective) -> what transformers calls such a language model
CLASSES = {
    ("post", "mlm"): ("bert", "BertForMaskedLM"),
    ("post", "clm"): ("bert", "BertLMHeadModel"),
    ("post", "prefix"): ("bert", "BertForMaskedLM"),  # transformers has no prefix LM: its mask is ours alone
    ("pre", "mlm"): ("modernbert", "ModernBertForMaskedLM"),
    ("pre", "clm"): ("modernbert-decoder", "ModernBertDecoderForCausalLM"),
    ("pre", "prefix"): ("modernbert", "ModernBertForMaskedLM"),
}


OBJECTIVES = tuple(dict.fromkeys(objective for _, objective in CLASSES))
OF_OLD = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}  # bert-base-uncased and others


def family_of(config: dict[str, Any]) -> Family:
    """The family of a config.json. Raises CheckpointError for one we do not have."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise CheckpointError(f"config.json: model_type {model_type!r} is unknown; known: {', '.join(FAMILIES)}")
    return FAMILIES[model_type]


def config_from_hf(config: dict[str, Any]) -> EncoderConfig:
    """Our configuration of a config.json. Raises CheckpointError naming the key that does not fit."""
    try:
        return family_of(config).read(config)
    except ConfigError as error:
        raise CheckpointError(f"config.json: {error}") from error


def config_to_hf(
    cfg: EncoderConfig, objective: str, specials: dict[str, int], pairs: str | None = None
) -> dict[str, Any]:
    """The config.json of a language model, which transformers' Auto classes open as what it is.

    `specials` holds `cls_token_id` and `sep_token_id`; `pairs`: what its pair head tells, if it has one. Raises
    ConfigError for a model that the family cannot say.
    """
    model_type, architecture = CLASSES[cfg.norm_order, objective]
    if pairs is not None:
        if architecture != "BertForMaskedLM":
            raise ConfigError(f"--pairs {pairs}: only a masked BERT has a head for pairs, not {architecture}")
        architecture = "BertForPreTraining"
    config = {"architectures": [architecture]} | FAMILIES[model_type].write(cfg, specials)
    again = config_from_hf(config)
    if lost := [field.name for field in fields(cfg) if getattr(again, field.name) != getattr(cfg, field.name)]:
        raise ConfigError(f"a {model_type} config.json cannot say this encoder's {', '.join(lost)}")
    if architecture == "BertLMHeadModel":
        config["is_decoder"] = True
    own = {"format": FORMAT, "objective": objective} | ({"pairs": pairs} if pairs else {})
    return config | {"dtype": "float32", "minilm": own}


def objective_of(config: dict[str, Any]) -> str:
    """mlm, clm or prefix: what the weights were trained for."""
    if "minilm" in config:
        own = config["minilm"]
        if not isinstance(own, dict) or own.get("format") != FORMAT or own.get("objective") not in OBJECTIVES:
            raise CheckpointError(f"config.json: minilm is {own!r}; expected format {FORMAT} and an objective")
        return own["objective"]
    causal = config.get("is_decoder") or str(config.get("model_type")).endswith("-decoder")
    return "clm" if causal else "mlm"


def pairs_of(config: dict[str, Any]) -> str | None:
    """next or order: what the model's pair head was trained to tell; None where it has no such head."""
    if "minilm" in config:
        pairs = config["minilm"].get("pairs") if isinstance(config["minilm"], dict) else None
        if pairs not in (None, "next", "order"):
            raise CheckpointError(f"config.json: minilm names pairs {pairs!r}; expected next or order")
        return pairs
    return "next" if config.get("architectures") == ["BertForPreTraining"] else None


def _theirs(name: str, names: dict[str, str | tuple[str, ...]]) -> tuple[str, ...]:
    """Their name or names for our parameter `name`."""
    layer = re.search(r"\.(\d+)\.", name)
    pattern = name if layer is None else name.replace(layer[0], ".{i}.", 1)
    module, _, leaf = pattern.rpartition(".")
    found, suffix = (names[pattern], "") if pattern in names else (names[module], f".{leaf}")
    found = (found,) if isinstance(found, str) else found
    return tuple(theirs.replace("{i}", layer[1] if layer else "") + suffix for theirs in found)


def to_hf(state: dict[str, Tensor], model_type: str) -> dict[str, Tensor]:
    """Our state dict under Hugging Face's names. The tied decoder is stored once, as the embedding."""
    out = {}
    for name, tensor in state.items():
        theirs = _theirs(name, FAMILIES[model_type].names)
        out |= {key: part.contiguous() for key, part in zip(theirs, tensor.chunk(len(theirs)), strict=True)}
    return out


def from_hf(
    tensors: dict[str, Tensor], model_type: str, expected: dict[str, Tensor], new: tuple[str, ...] = ()
) -> tuple[dict[str, Tensor], list[str]]:
    """Our state dict, shaped and typed like `expected`, and the names of tensors dropped as other heads.

    new: prefixes of ours of which a file may hold nothing; the state is then without them. What a classifier's file
    holds of them but incompletely is the classifier's own. A file of the encoder alone leaves out the prefix of its
    names.

    Raises CheckpointError naming the tensor that is missing, unknown, of another shape, not finite, or
    differs from the one it should be tied to.
    """
    family = FAMILIES[model_type]
    tensors = {re.sub("|".join(OF_OLD), lambda old: OF_OLD[old[0]], key): own for key, own in tensors.items()}
    if not any(key.startswith(family.base) for key in tensors):
        tensors = {key if key.startswith(family.heads) else family.base + key: own for key, own in tensors.items()}
    rest = {key: tensor for key, tensor in tensors.items() if key not in family.buffers}
    state, owned = {}, set()
    of_classifier = any(key.startswith("classifier.") for key in rest)

    def lacks(prefix: str) -> bool:
        keys = {key for name in expected if name.startswith(prefix) for key in _theirs(name, family.names)}
        return not keys & rest.keys() or (of_classifier and not keys <= rest.keys())

    lacking = tuple(prefix for prefix in new if lacks(prefix))
    for name, like in expected.items():
        if name.startswith(lacking):
            continue
        theirs = _theirs(name, family.names)
        owned |= {head for head in family.heads if theirs[0].startswith(head)}
        for key, part in zip(theirs, like.chunk(len(theirs)), strict=True):
            if key not in rest:
                raise CheckpointError(f"tensor {key} is missing")
            if rest[key].shape != part.shape:
                shapes = f"{tuple(rest[key].shape)}; config.json makes it {tuple(part.shape)}"
                raise CheckpointError(f"tensor {key} has shape {shapes}")
            if rest[key].dtype not in DTYPES:
                raise CheckpointError(f"tensor {key} is of {rest[key].dtype}; expected one of {DTYPES}")
            rest[key] = rest[key].to(like.dtype)
            if not rest[key].isfinite().all():
                raise CheckpointError(f"tensor {key} holds values that are not finite")
        state[name] = torch.cat([rest.pop(key) for key in theirs])
    for copy, source in family.copies.items():
        if copy in rest and source in tensors and not torch.equal(rest.pop(copy), tensors[source]):
            raise CheckpointError(f"tensor {copy} differs from {source}; only tied weights are supported")
    dropped = [key for key in rest if key.startswith(tuple(set(family.heads) - owned))]
    if unknown := sorted(rest.keys() - set(dropped)):
        raise CheckpointError(f"tensor {unknown[0]} is unknown ({len(unknown)} such); is config.json of this model?")
    return state, dropped

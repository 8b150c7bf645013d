"""Hugging Face's names and configurations for our models, both ways: a family is rows of data.

`{i}` stands for a layer number. Where theirs is a tuple, our one matrix is theirs stacked in that order.
Every tensor is accounted for: it is mapped, a copy of a mapped one, a head of the family that this model
does not have (dropped and counted), or an error that names it.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from minilm.errors import CheckpointError, ConfigError
from minilm.model.encoder import EncoderConfig, LayerSpec, bert_config, modern_config

FORMAT = 1  # of the "minilm" entry in config.json
MAX_LAYERS = 1000
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
    "pooler.dense": "bert.pooler.dense",
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
    copies: dict[str, str]  # a tied copy that a file may hold -> the tensor it must equal
    heads: tuple[str, ...]  # prefixes of heads that a file may hold for another class
    read: Callable[[dict[str, Any]], EncoderConfig]
    write: Callable[[EncoderConfig, dict[str, int]], dict[str, Any]]


def _value(config: dict[str, Any], key: str, kind: type, default: Any = None) -> Any:
    """config[key], checked: a config.json may come from anywhere."""
    value = config.get(key, default)
    if value is None:
        raise CheckpointError(f"config.json: {key} is missing")
    if kind is float and isinstance(value, int) and abs(value) < 2**53 and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise CheckpointError(f"config.json: {key} is {value!r}; expected {kind.__name__}")
    if kind is float and not math.isfinite(value):
        raise CheckpointError(f"config.json: {key} is {value}; expected a finite number")
    return value


def _layers(config: dict[str, Any]) -> int:
    """num_hidden_layers, which must be a number of layers that can be made before the file is looked at."""
    L = _value(config, "num_hidden_layers", int)
    if L > MAX_LAYERS:
        raise CheckpointError(f"config.json: num_hidden_layers is {L}; at most {MAX_LAYERS} are read")
    return L


def _expect(config: dict[str, Any], **required: Any) -> None:
    """Refuse what our modules do not compute, instead of computing something else."""
    for key, value in required.items():
        if config.get(key, value) != value:
            raise CheckpointError(f"config.json: {key} {config[key]!r} is not supported, only {value!r}")


def _read_bert(config: dict[str, Any]) -> EncoderConfig:
    _expect(config, position_embedding_type="absolute", tie_word_embeddings=True, add_cross_attention=False)
    preset = bert_config(
        vocab_size=_value(config, "vocab_size", int),
        hidden_size=_value(config, "hidden_size", int),
        num_hidden_layers=_layers(config),
        num_attention_heads=_value(config, "num_attention_heads", int),
        intermediate_size=_value(config, "intermediate_size", int),
        max_position_embeddings=_value(config, "max_position_embeddings", int, 512),
    )
    return replace(
        preset,
        type_vocab_size=_value(config, "type_vocab_size", int, 2),
        activation=_value(config, "hidden_act", str, "gelu"),
        layer_norm_eps=_value(config, "layer_norm_eps", float, 1e-12),
        pad_token_id=_value(config, "pad_token_id", int, 0),
        hidden_dropout_prob=_value(config, "hidden_dropout_prob", float, 0.1),
        attention_probs_dropout_prob=_value(config, "attention_probs_dropout_prob", float, 0.1),
    )


def _write_bert(cfg: EncoderConfig, specials: dict[str, int]) -> dict[str, Any]:
    return {
        "model_type": "bert",
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.hidden_size,
        "num_hidden_layers": len(cfg.layers),
        "num_attention_heads": cfg.num_attention_heads,
        "intermediate_size": cfg.intermediate_size,
        "hidden_act": cfg.activation,
        "hidden_dropout_prob": cfg.hidden_dropout_prob,
        "attention_probs_dropout_prob": cfg.attention_probs_dropout_prob,
        "max_position_embeddings": cfg.max_position_embeddings,
        "type_vocab_size": cfg.type_vocab_size,
        "initializer_range": 0.02,
        "layer_norm_eps": cfg.layer_norm_eps,
        "tie_word_embeddings": True,
        "pad_token_id": cfg.pad_token_id,
        "bos_token_id": specials["cls_token_id"],
        "eos_token_id": specials["sep_token_id"],
    }


def _modern_reader(halo: int) -> Callable[[dict[str, Any]], EncoderConfig]:
    """`halo`: by how much half of `local_attention` exceeds our window. 0 in ModernBERT, 1 in its decoder."""

    def read(config: dict[str, Any]) -> EncoderConfig:
        no_bias = dict.fromkeys(("norm_bias", "attention_bias", "mlp_bias", "classifier_bias"), False)
        _expect(config, tie_word_embeddings=True, decoder_bias=True, **no_bias)
        L = _layers(config)
        kinds = config.get("layer_types")
        if kinds is None:
            every = _value(config, "global_attn_every_n_layers", int, 3)
            if every < 1:
                raise CheckpointError(f"config.json: global_attn_every_n_layers is {every}; give 1 or more")
            kinds = ["sliding_attention" if i % every else "full_attention" for i in range(L)]
        rope = config.get("rope_parameters") or {}
        if not (isinstance(rope, dict) and all(isinstance(values, dict) for values in rope.values())):
            raise CheckpointError(f"config.json: rope_parameters {rope!r} does not describe each kind of layer")
        base = {
            "full_attention": config.get("global_rope_theta", 160_000.0),
            "sliding_attention": config.get("local_rope_theta", 10_000.0),
        }
        base |= {kind: values.get("rope_theta", base[kind]) for kind, values in rope.items() if kind in base}
        for values in rope.values():
            _expect(values, rope_type="default")
        if not isinstance(kinds, list) or len(kinds) != L or any(kind not in [*base] for kind in kinds):
            raise CheckpointError(f"config.json: layer_types {kinds!r} does not describe {L} layers")
        window = _value(config, "local_attention", int, 128) // 2 - halo
        layer = {
            kind: LayerSpec(window=window if kind == "sliding_attention" else None, rope_base=_value(base, kind, float))
            for kind in base
        }
        activation = _value(config, "hidden_activation", str, "gelu")
        _expect(config, classifier_activation=activation)
        preset = modern_config(
            vocab_size=_value(config, "vocab_size", int),
            hidden_size=_value(config, "hidden_size", int),
            num_hidden_layers=L,
            num_attention_heads=_value(config, "num_attention_heads", int),
            intermediate_size=_value(config, "intermediate_size", int),
            max_position_embeddings=_value(config, "max_position_embeddings", int, 8192),
        )
        return replace(
            preset,
            layers=tuple(layer[kind] for kind in kinds),
            activation=activation,
            layer_norm_eps=_value(config, "norm_eps", float, 1e-5),
            pad_token_id=_value(config, "pad_token_id", int, 50283),
            hidden_dropout_prob=_value(config, "mlp_dropout", float, 0.0),
            attention_probs_dropout_prob=_value(config, "attention_dropout", float, 0.0),
        )

    return read


def _modern_writer(model_type: str, halo: int) -> Callable[[EncoderConfig, dict[str, int]], dict[str, Any]]:
    def write(cfg: EncoderConfig, specials: dict[str, int]) -> dict[str, Any]:
        kind = ["full_attention" if spec.window is None else "sliding_attention" for spec in cfg.layers]
        base = {"full_attention": 160_000.0, "sliding_attention": 10_000.0}
        base |= {k: spec.rope_base for k, spec in zip(kind, cfg.layers, strict=True)}
        window = next((spec.window for spec in cfg.layers if spec.window is not None), 64)
        config = {
            "model_type": model_type,
            "vocab_size": cfg.vocab_size,
            "hidden_size": cfg.hidden_size,
            "intermediate_size": cfg.intermediate_size,
            "num_hidden_layers": len(cfg.layers),
            "num_attention_heads": cfg.num_attention_heads,
            "hidden_activation": cfg.activation,
            "classifier_activation": cfg.activation,
            "max_position_embeddings": cfg.max_position_embeddings,
            "initializer_range": 0.02,
            "norm_eps": cfg.layer_norm_eps,
            "local_attention": 2 * (window + halo),
            "layer_types": kind,
            "rope_parameters": {k: {"rope_type": "default", "rope_theta": v} for k, v in base.items()},
            "global_rope_theta": base["full_attention"],  # these two and the next: transformers 4
            "local_rope_theta": base["sliding_attention"],
            "global_attn_every_n_layers": _period(kind),
            "embedding_dropout": cfg.hidden_dropout_prob,
            "mlp_dropout": cfg.hidden_dropout_prob,
            "attention_dropout": cfg.attention_probs_dropout_prob,
            "tie_word_embeddings": True,
            "decoder_bias": True,
            "pad_token_id": cfg.pad_token_id,
            "bos_token_id": specials["cls_token_id"],
            "eos_token_id": specials["sep_token_id"],
            "cls_token_id": specials["cls_token_id"],
            "sep_token_id": specials["sep_token_id"],
        }
        return config | dict.fromkeys(("norm_bias", "attention_bias", "mlp_bias", "classifier_bias"), False)

    return write


def _period(kind: list[str]) -> int | None:
    """n if exactly every nth layer, from the first, is global."""
    return next(
        (
            n
            for n in range(1, len(kind) + 1)
            if kind == ["sliding_attention" if i % n else "full_attention" for i in range(len(kind))]
        ),
        None,
    )


_MODERN_COPIES = {"decoder.weight": "model.embeddings.tok_embeddings.weight"}

FAMILIES = {
    "bert": Family(
        names=BERT_NAMES,
        copies={
            "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
        },
        heads=("cls.seq_relationship.", "cls.predictions.", "bert.pooler.", "classifier.", "qa_outputs."),
        read=_read_bert,
        write=_write_bert,
    ),
    "modernbert": Family(
        names=MODERN_NAMES,
        copies=_MODERN_COPIES,
        heads=("head.", "decoder.", "classifier."),
        read=_modern_reader(halo=0),
        write=_modern_writer("modernbert", halo=0),
    ),
    "modernbert-decoder": Family(
        names=MODERN_DECODER_NAMES,
        copies=_MODERN_COPIES,
        heads=("lm_head.", "decoder.", "classifier."),
        read=_modern_reader(halo=1),
        write=_modern_writer("modernbert-decoder", halo=1),
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


OBJECTIVES = tuple({objective for _, objective in CLASSES})


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


def config_to_hf(cfg: EncoderConfig, objective: str, specials: dict[str, int]) -> dict[str, Any]:
    """The config.json of a language model, which transformers' Auto classes open as what it is.

    `specials` holds `cls_token_id` and `sep_token_id`. Raises ConfigError for an encoder that the family cannot say.
    """
    model_type, architecture = CLASSES[cfg.norm_order, objective]
    config = {"architectures": [architecture]} | FAMILIES[model_type].write(cfg, specials)
    again = config_from_hf(config)
    if lost := [field.name for field in fields(cfg) if getattr(again, field.name) != getattr(cfg, field.name)]:
        raise ConfigError(f"a {model_type} config.json cannot say this encoder's {', '.join(lost)}")
    if architecture == "BertLMHeadModel":
        config["is_decoder"] = True
    return config | {"dtype": "float32", "minilm": {"format": FORMAT, "objective": objective}}


def objective_of(config: dict[str, Any]) -> str:
    """mlm, clm or prefix: what the weights were trained for."""
    if "minilm" in config:
        own = config["minilm"]
        if not isinstance(own, dict) or own.get("format") != FORMAT or own.get("objective") not in OBJECTIVES:
            raise CheckpointError(f"config.json: minilm is {own!r}; expected format {FORMAT} and an objective")
        return own["objective"]
    causal = config.get("is_decoder") or str(config.get("model_type")).endswith("-decoder")
    return "clm" if causal else "mlm"


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
    tensors: dict[str, Tensor], model_type: str, expected: dict[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Our state dict, shaped and typed like `expected`, and the names of tensors dropped as other heads.

    Raises CheckpointError naming the tensor that is missing, unknown, of another shape, not finite, or
    differs from the one it should be tied to.
    """
    family, rest = FAMILIES[model_type], dict(tensors)
    state, owned = {}, set()
    for name, like in expected.items():
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

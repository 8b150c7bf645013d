"""Hugging Face's config.json, one family after the other: theirs -> our EncoderConfig, and ours -> theirs.

A config.json may come from anywhere: every value is checked, and what our modules do not compute is refused.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from minilm.errors import CheckpointError
from minilm.model.encoder import EncoderConfig, LayerSpec, bert_config, modern_config

MAX_LAYERS = 1000


def _value(config: dict[str, Any], key: str, kind: type, default: Any = None) -> Any:
    """config[key], checked: a config.json may come from anywhere."""
    value = default if config.get(key) is None else config[key]
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


def read_bert(config: dict[str, Any]) -> EncoderConfig:
    """transformers' BertConfig as ours. Raises CheckpointError naming the key that does not fit."""
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


def write_bert(cfg: EncoderConfig, specials: dict[str, int]) -> dict[str, Any]:
    """Ours as transformers' BertConfig; `specials` holds `cls_token_id` and `sep_token_id`."""
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


def modern_reader(halo: int) -> Callable[[dict[str, Any]], EncoderConfig]:
    """From transformers' ModernBertConfig to ours, with the errors of `read_bert`.

    `halo`: by how much half of `local_attention` exceeds our window. 0 in ModernBERT, 1 in its decoder.
    """

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


def modern_writer(model_type: str, halo: int) -> Callable[[EncoderConfig, dict[str, int]], dict[str, Any]]:
    """From ours to transformers' ModernBertConfig; `halo` as in `modern_reader`."""

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

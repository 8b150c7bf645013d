"""Reading and writing Hugging Face's config.json, per family: config.json <-> EncoderConfig.

A config.json may come from anywhere: every value is checked, and what our modules cannot compute is refused.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from minilm.errors import CheckpointError
from minilm.model.encoder import EncoderConfig, LayerSpec, bert_config, modern_config

MAX_LAYERS = 1000

# transformers' default of every key that describes a model
BERT = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "classifier_dropout": None,
    "is_decoder": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
ROBERTA = BERT | {"vocab_size": 50265, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
ELECTRA = BERT | {
    "embedding_size": 128,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "summary_type": "first",
    "summary_use_proj": True,
    "summary_activation": "gelu",
    "summary_last_dropout": 0.1,
}
DISTILBERT = {
    "vocab_size": 30522,
    "dim": 768,
    "n_layers": 6,
    "n_heads": 12,
    "hidden_dim": 3072,
    "activation": "gelu",
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "qa_dropout": 0.1,
    "seq_classif_dropout": 0.2,
    "max_position_embeddings": 512,
    "sinusoidal_pos_embds": False,
    "initializer_range": 0.02,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
MODERNBERT = {
    "vocab_size": 50368,
    "hidden_size": 768,
    "num_hidden_layers": 22,
    "num_attention_heads": 12,
    "intermediate_size": 1152,
    "hidden_activation": "gelu",
    "max_position_embeddings": 8192,
    "initializer_range": 0.02,
    "norm_eps": 1e-5,
    "norm_bias": False,
    "attention_bias": False,
    "mlp_bias": False,
    "local_attention": 128,
    "layer_types": None,
    "rope_parameters": None,
    "embedding_dropout": 0.0,
    "mlp_dropout": 0.0,
    "attention_dropout": 0.0,
    "decoder_bias": True,
    "classifier_pooling": "cls",
    "classifier_dropout": 0.0,
    "classifier_bias": False,
    "classifier_activation": "gelu",
    "tie_word_embeddings": True,
    "pad_token_id": 50283,
    "bos_token_id": 50281,
    "eos_token_id": 50282,
    "cls_token_id": 50281,
    "sep_token_id": 50282,
}
SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
SIZES_OF_DISTILBERT = ("vocab_size", "dim", "n_layers", "n_heads", "hidden_dim")


def config_value(config: dict[str, Any], key: str, kind: type, default: Any = None) -> Any:
    """config[key], or `default` for null. Raises CheckpointError if it is missing, no `kind` or not finite."""
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


def config_fraction(config: dict[str, Any], key: str, default: float | None = None) -> float:
    """config[key], checked to be a fraction in [0, 1), such as a dropout rate."""
    if not 0 <= (value := config_value(config, key, float, default)) < 1:
        raise CheckpointError(f"config.json: {key} is {value}; give a fraction below 1")
    return value


def _sizes(config: dict[str, Any], keys: tuple[str, ...]) -> dict[str, int]:
    """The five sizes that no config.json may leave out, by our names."""
    sizes = {ours: config_value(config, theirs, int) for ours, theirs in zip(SIZES, keys, strict=True)}
    if not 0 < (layers := sizes["num_hidden_layers"]) <= MAX_LAYERS:  # layers are built before the weights are read
        raise CheckpointError(f"config.json: {keys[2]} is {layers}; at least one layer, at most {MAX_LAYERS} are read")
    return sizes


def _expect(config: dict[str, Any], **required: Any) -> None:
    """Raises CheckpointError if a key has another value than `required`, which our modules do not support."""
    for key, value in required.items():
        if config.get(key, value) != value:
            raise CheckpointError(f"config.json: {key} {config[key]!r} is not supported, only {value!r}")


def bert_reader(defaults: dict[str, Any], offset: bool = False) -> Callable[[dict[str, Any]], EncoderConfig]:
    """Reader of transformers' BertConfig, or one like it, as EncoderConfig. It raises CheckpointError naming the key
    that does not fit.

    offset: positions begin after the padding token's id, as in RoBERTa.
    """

    def read(config: dict[str, Any]) -> EncoderConfig:
        _expect(config, position_embedding_type="absolute", tie_word_embeddings=True, add_cross_attention=False)
        _expect(config, summary_type="first", summary_use_proj=True, summary_activation="gelu")

        def value(key: str, kind: type) -> Any:
            return config_value(config, key, kind, defaults[key])

        def fraction(key: str) -> float:
            return config_fraction(config, key, defaults[key])

        sizes = _sizes(config, SIZES)
        pad = value("pad_token_id", int)
        skipped = pad + 1 if offset else 0
        width = value("embedding_size", int) if "embedding_size" in defaults else sizes["hidden_size"]
        return replace(
            bert_config(**sizes, max_position_embeddings=value("max_position_embeddings", int) - skipped),
            type_vocab_size=value("type_vocab_size", int),
            position_offset=skipped,
            embedding_size=None if width == sizes["hidden_size"] else width,
            activation=value("hidden_act", str),
            layer_norm_eps=value("layer_norm_eps", float),
            pad_token_id=pad,
            embedding_dropout=fraction("hidden_dropout_prob"),
            attention_dropout=fraction("attention_probs_dropout_prob"),
            attention_output_dropout=fraction("hidden_dropout_prob"),
            mlp_dropout=fraction("hidden_dropout_prob"),
        )

    return read


def read_distilbert(config: dict[str, Any]) -> EncoderConfig:
    """Read transformers' DistilBertConfig as EncoderConfig, with the errors of `bert_reader`."""
    _expect(config, tie_word_embeddings=True)

    def value(key: str, kind: type) -> Any:
        return config_value(config, key, kind, DISTILBERT[key])

    sizes = _sizes(config, SIZES_OF_DISTILBERT)
    return replace(
        bert_config(**sizes, max_position_embeddings=value("max_position_embeddings", int)),
        type_vocab_size=0,
        activation=value("activation", str),
        pad_token_id=value("pad_token_id", int),
        embedding_dropout=config_fraction(config, "dropout", DISTILBERT["dropout"]),
        attention_dropout=config_fraction(config, "attention_dropout", DISTILBERT["attention_dropout"]),
        attention_output_dropout=0.0,
        mlp_dropout=config_fraction(config, "dropout", DISTILBERT["dropout"]),
    )


def write_bert(cfg: EncoderConfig) -> dict[str, Any]:
    """EncoderConfig as transformers' BertConfig."""
    return {
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.hidden_size,
        "num_hidden_layers": len(cfg.layers),
        "num_attention_heads": cfg.num_attention_heads,
        "intermediate_size": cfg.intermediate_size,
        "hidden_act": cfg.activation,
        "hidden_dropout_prob": cfg.mlp_dropout,
        "attention_probs_dropout_prob": cfg.attention_dropout,
        "max_position_embeddings": cfg.max_position_embeddings,
        "type_vocab_size": cfg.type_vocab_size,
        "initializer_range": 0.02,
        "layer_norm_eps": cfg.layer_norm_eps,
        "tie_word_embeddings": True,
        "pad_token_id": cfg.pad_token_id,
    }


def modern_reader(halo: int) -> Callable[[dict[str, Any]], EncoderConfig]:
    """Reader of transformers' ModernBertConfig as EncoderConfig, with the errors of `bert_reader`.

    `halo`: by how much half of `local_attention` exceeds our window. 0 in ModernBERT, 1 in its decoder.
    """

    def read(config: dict[str, Any]) -> EncoderConfig:
        no_bias = dict.fromkeys(("norm_bias", "attention_bias", "mlp_bias", "classifier_bias"), False)
        _expect(config, tie_word_embeddings=True, decoder_bias=True, **no_bias)

        def value(key: str, kind: type) -> Any:
            return config_value(config, key, kind, MODERNBERT[key])

        sizes = _sizes(config, SIZES)
        L = sizes["num_hidden_layers"]
        kinds = config.get("layer_types")
        if kinds is None:
            every = config_value(config, "global_attn_every_n_layers", int, 3)
            if every < 1:
                raise CheckpointError(f"config.json: global_attn_every_n_layers is {every}; give 1 or more")
            kinds = ["sliding_attention" if i % every else "full_attention" for i in range(L)]
        rope = config.get("rope_parameters") or {}
        if not (isinstance(rope, dict) and all(isinstance(values, dict) for values in rope.values())):
            raise CheckpointError(f"config.json: rope_parameters {rope!r} does not describe each kind of layer")
        names = {"full_attention": "global_rope_theta", "sliding_attention": "local_rope_theta"}
        base = {"full_attention": config.get("global_rope_theta", 160_000.0)}
        local = config.get("local_rope_theta", 10_000.0)
        base["sliding_attention"] = base["full_attention"] if local is None else local
        for kind in base.keys() & rope.keys():
            if "rope_theta" in rope[kind]:
                base[kind], names[kind] = rope[kind]["rope_theta"], f"rope_parameters.{kind}.rope_theta"
        for values in rope.values():
            _expect({"rope_type": values.get("rope_type", values.get("type", "default"))}, rope_type="default")
        if config.get("rope_scaling") not in (None, {}, {"rope_type": "default"}, {"type": "default"}):
            raise CheckpointError(f"config.json: rope_scaling {config['rope_scaling']!r} is not supported")
        if not isinstance(kinds, list) or len(kinds) != L or any(kind not in [*base] for kind in kinds):
            raise CheckpointError(f"config.json: layer_types {kinds!r} does not describe {L} layers")
        half = value("local_attention", int) // 2  # of the decoder a file holds both, and transformers reads this one:
        window = config_value(config, "sliding_window", int, half) - halo
        layer = {
            kind: LayerSpec(
                window=window if kind == "sliding_attention" else None,
                rope_base=config_value({name: base[kind]}, name, float),
            )
            for kind, name in names.items()
        }
        if config.get("classifier_pooling", "cls") not in ("cls", "mean"):
            raise CheckpointError(f"config.json: classifier_pooling is {config['classifier_pooling']!r}; cls or mean")
        activation = value("hidden_activation", str)
        heads = " ".join(map(str, config.get("architectures") or ()))
        if "ForMaskedLM" in heads:
            _expect(config, sparse_prediction=False)
        default = {"classifier_activation": "gelu"} if "Classification" in heads else {}
        _expect(default | config, classifier_activation=activation)
        return replace(
            modern_config(**sizes, max_position_embeddings=value("max_position_embeddings", int)),
            layers=tuple(layer[kind] for kind in kinds),
            activation=activation,
            layer_norm_eps=value("norm_eps", float),
            pad_token_id=value("pad_token_id", int),
            embedding_dropout=config_fraction(config, "embedding_dropout", MODERNBERT["embedding_dropout"]),
            attention_dropout=config_fraction(config, "attention_dropout", MODERNBERT["attention_dropout"]),
            attention_output_dropout=config_fraction(config, "attention_dropout", MODERNBERT["attention_dropout"]),
            mlp_dropout=config_fraction(config, "mlp_dropout", MODERNBERT["mlp_dropout"]),
        )

    return read


def modern_writer(halo: int) -> Callable[[EncoderConfig], dict[str, Any]]:
    """Writer of EncoderConfig as transformers' ModernBertConfig; `halo` as in `modern_reader`."""

    def write(cfg: EncoderConfig) -> dict[str, Any]:
        kind = ["full_attention" if spec.window is None else "sliding_attention" for spec in cfg.layers]
        base = {"full_attention": 160_000.0, "sliding_attention": 10_000.0}
        base |= {k: spec.rope_base for k, spec in zip(kind, cfg.layers, strict=True)}
        window = next((spec.window for spec in cfg.layers if spec.window is not None), 64)
        config = {
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
            "global_rope_theta": base["full_attention"],  # these two and the next are for transformers 4
            "local_rope_theta": base["sliding_attention"],
            "global_attn_every_n_layers": _period(kind),
            "embedding_dropout": cfg.embedding_dropout,
            "mlp_dropout": cfg.mlp_dropout,
            "attention_dropout": cfg.attention_dropout,
            "tie_word_embeddings": True,
            "decoder_bias": True,
            "pad_token_id": cfg.pad_token_id,
        }
        return config | dict.fromkeys(("norm_bias", "attention_bias", "mlp_bias", "classifier_bias"), False)

    return write


def _period(kind: list[str]) -> int | None:
    """n if exactly every nth layer, from the first, is global; else None."""
    n = next((i for i, each in enumerate(kind) if i and each == "full_attention"), len(kind))
    return n if kind == ["sliding_attention" if i % n else "full_attention" for i in range(len(kind))] else None

"""Hugging Face's names for our tensors, both ways; which family is what: rows of data.

`{i}` stands for a layer number. Where theirs is a tuple, our one matrix is theirs stacked in that order.
Every tensor is accounted for: it is mapped, a copy of a mapped one, a buffer that nothing learns (left out), a head of
the family that this model does not have (left out and named), or an error that names it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from minilm.checkpoint.hf_config import (
    BERT,
    DISTILBERT,
    ELECTRA,
    MODERNBERT,
    ROBERTA,
    bert_reader,
    modern_reader,
    modern_writer,
    read_distilbert,
    write_bert,
)
from minilm.errors import CheckpointError, ConfigError
from minilm.model.encoder import EncoderConfig

FORMAT = 1  # of the "minilm" entry in config.json
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
Names = dict[str, str | tuple[str, ...]]  # ours (a parameter or its module) -> theirs

# the encoder and its pooler, theirs without the prefix that a file of the encoder alone leaves out
BERT_BODY = {
    "encoder.embedding.word": "embeddings.word_embeddings",
    "encoder.embedding.position": "embeddings.position_embeddings",
    "encoder.embedding.token_type": "embeddings.token_type_embeddings",
    "encoder.embedding.norm": "embeddings.LayerNorm",
    "encoder.embedding.project": "embeddings_project",
    "encoder.layers.{i}.attention.qkv": (
        "encoder.layer.{i}.attention.self.query",
        "encoder.layer.{i}.attention.self.key",
        "encoder.layer.{i}.attention.self.value",
    ),
    "encoder.layers.{i}.attention.out": "encoder.layer.{i}.attention.output.dense",
    "encoder.layers.{i}.attention_norm": "encoder.layer.{i}.attention.output.LayerNorm",
    "encoder.layers.{i}.mlp.inp": "encoder.layer.{i}.intermediate.dense",
    "encoder.layers.{i}.mlp.out": "encoder.layer.{i}.output.dense",
    "encoder.layers.{i}.mlp_norm": "encoder.layer.{i}.output.LayerNorm",
    "pooler.dense": "pooler.dense",
}
DISTILBERT_BODY = {
    "encoder.embedding.word": "embeddings.word_embeddings",
    "encoder.embedding.position": "embeddings.position_embeddings",
    "encoder.embedding.norm": "embeddings.LayerNorm",
    "encoder.layers.{i}.attention.qkv": (
        "transformer.layer.{i}.attention.q_lin",
        "transformer.layer.{i}.attention.k_lin",
        "transformer.layer.{i}.attention.v_lin",
    ),
    "encoder.layers.{i}.attention.out": "transformer.layer.{i}.attention.out_lin",
    "encoder.layers.{i}.attention_norm": "transformer.layer.{i}.sa_layer_norm",
    "encoder.layers.{i}.mlp.inp": "transformer.layer.{i}.ffn.lin1",
    "encoder.layers.{i}.mlp.out": "transformer.layer.{i}.ffn.lin2",
    "encoder.layers.{i}.mlp_norm": "transformer.layer.{i}.output_layer_norm",
}
MODERN_BODY = {
    "encoder.embedding.word": "embeddings.tok_embeddings",
    "encoder.embedding.norm": "embeddings.norm",
    "encoder.layers.{i}.attention.qkv": "layers.{i}.attn.Wqkv",
    "encoder.layers.{i}.attention.out": "layers.{i}.attn.Wo",
    "encoder.layers.{i}.attention_norm": "layers.{i}.attn_norm",
    "encoder.layers.{i}.mlp.inp": "layers.{i}.mlp.Wi",
    "encoder.layers.{i}.mlp.out": "layers.{i}.mlp.Wo",
    "encoder.layers.{i}.mlp_norm": "layers.{i}.mlp_norm",
    "encoder.final_norm": "final_norm",
}
MODERN_DECODER_BODY = MODERN_BODY | {
    "encoder.layers.{i}.attention.qkv": (
        "layers.{i}.attn.q_proj",
        "layers.{i}.attn.k_proj",
        "layers.{i}.attn.v_proj",
    ),
}

BERT_LM = {
    "head.dense": "cls.predictions.transform.dense",
    "head.norm": "cls.predictions.transform.LayerNorm",
    "head.bias": "cls.predictions.bias",
}
ROBERTA_LM = {"head.dense": "lm_head.dense", "head.norm": "lm_head.layer_norm", "head.bias": "lm_head.bias"}
DISTILBERT_LM = {
    "head.dense": "vocab_transform",
    "head.norm": "vocab_layer_norm",
    "head.bias": "vocab_projector.bias",
}
MODERN_LM = {"head.dense": "head.dense", "head.norm": "head.norm", "head.bias": "decoder.bias"}
MODERN_DECODER_LM = {"head.dense": "lm_head.dense", "head.norm": "lm_head.norm", "head.bias": "decoder.bias"}


@dataclass(frozen=True, kw_only=True)
class Built:
    """What a class of transformers' puts on the encoder: [pooling], [dense, activation, [norm]], dropout, classifier.
    Where it says a key of config.json, that key's value is meant."""

    architecture: str  # its name
    names: Names = field(default_factory=dict)  # of the head's tensors, theirs in full
    pooler: bool = False  # BERT's, which belongs to the base model, is read
    pooling: str = "cls"  # or mean: of heads that read one vector a row
    activation: str | None = None  # of the dense layer; None: there is none
    norm: bool = False
    drop_first: bool = False  # before the dense layer, too
    dropout: tuple[str, ...] = ()  # the first of these keys that is not null


@dataclass(frozen=True, kw_only=True)
class Family:
    """One `model_type` of Hugging Face's."""

    base: str  # prefix of the encoder's tensors, which a file of the encoder alone leaves out
    body: Names  # the encoder's and its pooler's, theirs without that prefix
    classes: dict[str, Built]  # what it has beside the encoder, by kind
    copies: dict[str, str]  # a tied copy that a file may hold -> the tensor it must equal
    heads: tuple[str, ...]  # prefixes of heads that a file may hold for another class; the longest that fits counts
    defaults: dict[str, Any]  # of config.json
    aliases: dict[str, str] = field(default_factory=dict)  # BERT's name of a key -> its own
    read: Callable[[dict[str, Any]], EncoderConfig]
    write: Callable[[EncoderConfig], dict[str, Any]] | None = None  # None: nothing here makes one from nothing

    def names(self, kind: str) -> Names:
        """Ours -> theirs in full, for one of `classes`."""
        body = {ours: _prefixed(theirs, self.base) for ours, theirs in self.body.items()}
        return body | self.classes[kind].names

    @property
    def buffers(self) -> tuple[str, ...]:
        """What old files hold and nothing learns."""
        return (f"{self.base}embeddings.position_ids", f"{self.base}embeddings.token_type_ids")


def _prefixed(names: str | tuple[str, ...], prefix: str) -> str | tuple[str, ...]:
    return prefix + names if isinstance(names, str) else tuple(prefix + name for name in names)


_CLASSIFIER, _SPAN = {"classifier": "classifier"}, {"classifier": "qa_outputs"}
_DENSE_CLASSIFIER = {"transform.dense": "classifier.dense", "classifier": "classifier.out_proj"}
_DROPOUT = ("classifier_dropout", "hidden_dropout_prob")
# a language model of ours may hold the pooler inside its head for pairs
_PAIR = {"pair.pooler.dense": "bert.pooler.dense", "pair.classifier": "cls.seq_relationship"}
_BERT_CLASSES = {
    "model": Built(architecture="BertModel", pooler=True),
    "mlm": Built(architecture="BertForMaskedLM", names=BERT_LM),
    "clm": Built(architecture="BertLMHeadModel", names=BERT_LM),
    "pretraining": Built(
        architecture="BertForPreTraining",
        names=BERT_LM | _PAIR | {"classifier": "cls.seq_relationship"},
        pooler=True,
    ),
    "next": Built(
        architecture="BertForNextSentencePrediction", names={"classifier": "cls.seq_relationship"}, pooler=True
    ),
    "sequence": Built(architecture="BertForSequenceClassification", names=_CLASSIFIER, pooler=True, dropout=_DROPOUT),
    "choice": Built(architecture="BertForMultipleChoice", names=_CLASSIFIER, pooler=True, dropout=_DROPOUT),
    "token": Built(architecture="BertForTokenClassification", names=_CLASSIFIER, dropout=_DROPOUT),
    "span": Built(architecture="BertForQuestionAnswering", names=_SPAN),
}
_ROBERTA_CLASSES = {
    "model": Built(architecture="RobertaModel", pooler=True),
    "mlm": Built(architecture="RobertaForMaskedLM", names=ROBERTA_LM),
    "sequence": Built(
        architecture="RobertaForSequenceClassification",
        names=_DENSE_CLASSIFIER,
        activation="tanh",
        drop_first=True,
        dropout=_DROPOUT,
    ),
    "token": Built(architecture="RobertaForTokenClassification", names=_CLASSIFIER, dropout=_DROPOUT),
    "span": Built(architecture="RobertaForQuestionAnswering", names=_SPAN),
}
_ELECTRA_CLASSES = {
    "model": Built(architecture="ElectraModel"),
    "discriminator": Built(
        architecture="ElectraForPreTraining",
        names={
            "transform.dense": "discriminator_predictions.dense",
            "classifier": "discriminator_predictions.dense_prediction",
        },
        activation="hidden_act",
    ),
    "sequence": Built(
        architecture="ElectraForSequenceClassification",
        names=_DENSE_CLASSIFIER,
        activation="gelu",
        drop_first=True,
        dropout=_DROPOUT,
    ),
    "token": Built(architecture="ElectraForTokenClassification", names=_CLASSIFIER, dropout=_DROPOUT),
    "span": Built(architecture="ElectraForQuestionAnswering", names=_SPAN),
}
_DISTILBERT_CLASSES = {
    "model": Built(architecture="DistilBertModel"),
    "mlm": Built(architecture="DistilBertForMaskedLM", names=DISTILBERT_LM),
    "sequence": Built(
        architecture="DistilBertForSequenceClassification",
        names={"transform.dense": "pre_classifier", "classifier": "classifier"},
        activation="relu",
        dropout=("seq_classif_dropout",),
    ),
    "token": Built(architecture="DistilBertForTokenClassification", names=_CLASSIFIER, dropout=("dropout",)),
    "span": Built(architecture="DistilBertForQuestionAnswering", names=_SPAN, dropout=("qa_dropout",)),
}


def _modern(architecture: str, pooling: str = "cls") -> Built:
    """ModernBERT's heads are alike."""
    return Built(
        architecture=architecture,
        names={"transform.dense": "head.dense", "transform.norm": "head.norm", "classifier": "classifier"},
        pooling=pooling,
        activation="classifier_activation",
        norm=True,
        dropout=("classifier_dropout",),
    )


_MODERN_CLASSES = {
    "model": Built(architecture="ModernBertModel"),
    "mlm": Built(architecture="ModernBertForMaskedLM", names=MODERN_LM),
    "sequence": _modern("ModernBertForSequenceClassification", pooling="classifier_pooling"),
    "token": _modern("ModernBertForTokenClassification"),
    "span": _modern("ModernBertForQuestionAnswering"),
}
_MODERN_COPIES = {"decoder.weight": "model.embeddings.tok_embeddings.weight"}

FAMILIES = {
    "bert": Family(
        base="bert.",
        body=BERT_BODY,
        classes=_BERT_CLASSES,
        copies={
            "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
        },
        heads=("cls.", "cls.seq_relationship.", "cls.predictions.", "bert.pooler.", "classifier.", "qa_outputs."),
        defaults=BERT,
        read=bert_reader(BERT),
        write=write_bert,
    ),
    "modernbert": Family(
        base="model.",
        body=MODERN_BODY,
        classes=_MODERN_CLASSES,
        copies=_MODERN_COPIES,
        heads=("head.", "decoder.", "classifier."),
        defaults=MODERNBERT,
        read=modern_reader(halo=0),
        write=modern_writer(halo=0),
    ),
    "modernbert-decoder": Family(
        base="model.",
        body=MODERN_DECODER_BODY,
        classes={
            "model": Built(architecture="ModernBertDecoderModel"),
            "clm": Built(architecture="ModernBertDecoderForCausalLM", names=MODERN_DECODER_LM),
        },
        copies=_MODERN_COPIES,
        heads=("lm_head.", "decoder.", "head.", "classifier."),
        defaults=MODERNBERT,
        read=modern_reader(halo=1),
        write=modern_writer(halo=1),
    ),
    "roberta": Family(
        base="roberta.",
        body=BERT_BODY,
        classes=_ROBERTA_CLASSES,
        copies={
            "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
            "lm_head.decoder.bias": "lm_head.bias",
        },
        heads=("lm_head.", "roberta.pooler.", "classifier.", "qa_outputs."),
        defaults=ROBERTA,
        read=bert_reader(ROBERTA, offset=True),
    ),
    "distilbert": Family(
        base="distilbert.",
        body=DISTILBERT_BODY,
        classes=_DISTILBERT_CLASSES,
        copies={"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"},
        heads=(
            "vocab_transform.",
            "vocab_layer_norm.",
            "vocab_projector.",
            "pre_classifier.",
            "classifier.",
            "qa_outputs.",
        ),
        defaults=DISTILBERT,
        aliases={"hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"},
        read=read_distilbert,
    ),
    "electra": Family(
        base="electra.",
        body=BERT_BODY,
        classes=_ELECTRA_CLASSES,
        copies={"generator_lm_head.weight": "electra.embeddings.word_embeddings.weight"},
        heads=(
            "discriminator_predictions.",
            "generator_predictions.",
            "generator_lm_head.",
            "sequence_summary.",
            "classifier.",
            "qa_outputs.",
        ),
        defaults=ELECTRA,
        read=bert_reader(ELECTRA),
    ),
}

# (norm order, objective) -> what a language model trained here is: a model_type and one of its classes
KINDS = {
    ("post", "mlm"): ("bert", "mlm"),
    ("post", "clm"): ("bert", "clm"),
    ("post", "prefix"): ("bert", "mlm"),  # transformers has no prefix LM: its mask is ours alone
    ("pre", "mlm"): ("modernbert", "mlm"),
    ("pre", "clm"): ("modernbert-decoder", "clm"),
    ("pre", "prefix"): ("modernbert", "mlm"),
}
OBJECTIVES = tuple(dict.fromkeys(objective for _, objective in KINDS))
OF_OLD = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}  # bert-base-uncased and others
WRAPPED = "module."  # by nn.DataParallel
HEAD = "head."  # of a language model, among our names


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


def kind_of(config: dict[str, Any]) -> str:
    """Which of its family's classes a language model's config.json is read as. Raises CheckpointError where the family
    is none that is trained here."""
    family_of(config)
    objective = objective_of(config)
    trained = {(model_type, objective): kind for (_, objective), (model_type, kind) in KINDS.items()}
    if (config["model_type"], objective) not in trained:
        raise CheckpointError(
            f"config.json: a {config['model_type']} for {objective} is not trained here; AutoModel opens it"
        )
    return "pretraining" if pairs_of(config) else trained[config["model_type"], objective]


def config_to_hf(
    cfg: EncoderConfig, objective: str, specials: dict[str, int], pairs: str | None = None
) -> dict[str, Any]:
    """The config.json of a language model, which transformers' Auto classes open as what it is.

    `specials` holds `cls_token_id` and `sep_token_id`; `pairs`: what its pair head tells, if it has one. Raises
    ConfigError for a model that the family cannot say.
    """
    model_type, kind = KINDS[cfg.norm_order, objective]
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
    """The "minilm" entry of a model that is of `kind` by now: None for one that is no language model."""
    if kind not in ("mlm", "clm", "pretraining"):
        return None
    return _entry(objective_of(config), pairs_of(config) or "next" if kind == "pretraining" else None)


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


def _theirs(name: str, names: Names) -> tuple[str, ...]:
    """Their name or names for our parameter `name`."""
    layer = re.search(r"\.(\d+)\.", name)
    pattern = name if layer is None else name.replace(layer[0], ".{i}.", 1)
    module, _, leaf = pattern.rpartition(".")
    found, suffix = (names[pattern], "") if pattern in names else (names[module], f".{leaf}")
    found = (found,) if isinstance(found, str) else found
    return tuple(theirs.replace("{i}", layer[1] if layer else "") + suffix for theirs in found)


def to_hf(state: dict[str, Tensor], model_type: str, kind: str) -> dict[str, Tensor]:
    """Our state dict under Hugging Face's names. The tied decoder is stored once, as the embedding."""
    family, out = FAMILIES[model_type], {}
    names = family.names(kind)
    for name, tensor in state.items():
        theirs = _theirs(name, names)
        out |= {key: part.contiguous() for key, part in zip(theirs, tensor.chunk(len(theirs)), strict=True)}
    return {key.removeprefix(family.base): own for key, own in out.items()} if kind == "model" else out


def from_hf(
    tensors: dict[str, Tensor],
    model_type: str,
    kind: str,
    expected: dict[str, Tensor],
    new: tuple[str, ...] = (),
    other_sizes: bool = False,
) -> tuple[dict[str, Tensor], list[str]]:
    """Our state dict, shaped and typed like `expected`, and the names of tensors dropped as other heads.

    kind: which of the family's classes it is for. new: prefixes of ours of which a file may hold nothing, or, with
    other_sizes, something of other sizes; the state is then without them. What a classifier's file holds of a language
    model's head, but incompletely, is the classifier's own. A file of the encoder alone leaves out the prefix of its
    names.

    Raises CheckpointError naming the tensor that is missing, unknown, of another shape, not finite, or
    differs from the one it should be tied to.
    """
    family = FAMILIES[model_type]
    names = family.names(kind)
    if all(key.startswith(WRAPPED) for key in tensors):
        tensors = {key.removeprefix(WRAPPED): own for key, own in tensors.items()}
    tensors = {re.sub("|".join(OF_OLD), lambda old: OF_OLD[old[0]], key): own for key, own in tensors.items()}
    if not any(key.startswith(family.base) for key in tensors):
        tensors = {key if key.startswith(family.heads) else family.base + key: own for key, own in tensors.items()}
    rest = {key: tensor for key, tensor in tensors.items() if key not in family.buffers}
    state, owned = {}, set()
    of_classifier = any(key.startswith("classifier.") for key in rest)

    def head_of(key: str) -> str:
        return max((head for head in family.heads if key.startswith(head)), key=len, default="")

    def lacks(prefix: str) -> bool:
        like = {_theirs(name, names): own for name, own in expected.items() if name.startswith(prefix)}
        keys = {key for theirs in like for key in theirs}
        if other_sizes and any(key in rest and rest[key].shape != like[key,].shape for (key,) in like):
            return True
        return not keys & rest.keys() or (of_classifier and prefix == HEAD and not keys <= rest.keys())

    lacking = tuple(prefix for prefix in new if lacks(prefix))
    for name, like in expected.items():
        if name.startswith(lacking):
            continue
        theirs = _theirs(name, names)
        owned.add(head_of(theirs[0]))
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
        parts = [rest.pop(key) for key in theirs]
        state[name] = torch.cat(parts) if len(parts) > 1 else parts[0]
    for copy, source in family.copies.items():
        read = copy in rest and source in tensors and head_of(copy) in owned
        if read and not torch.equal(rest.pop(copy), tensors[source]):
            raise CheckpointError(f"tensor {copy} differs from {source}; only tied weights are supported")
    dropped = [key for key in rest if head_of(key) not in {"", *owned}]
    if unknown := sorted(rest.keys() - set(dropped)):
        raise CheckpointError(f"tensor {unknown[0]} is unknown ({len(unknown)} such); is config.json of this model?")
    return state, dropped

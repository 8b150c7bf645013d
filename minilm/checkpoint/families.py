"""Hugging Face's model families as data: the names of their tensors, and the head of each of their classes.

Names map ours to theirs: `{i}` stands for a layer number; where theirs is a tuple, our one matrix is theirs stacked in
that order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

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
from minilm.model.encoder import EncoderConfig

Names = dict[str, str | tuple[str, ...]]  # ours (a parameter or its module) -> theirs

# encoder and pooler; their names without the prefix that a file of the encoder alone leaves out
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
    "encoder.layers.{i}.attention.qkv": ("layers.{i}.attn.q_proj", "layers.{i}.attn.k_proj", "layers.{i}.attn.v_proj")
}

BERT_LM = {
    "head.dense": "cls.predictions.transform.dense",
    "head.norm": "cls.predictions.transform.LayerNorm",
    "head.bias": "cls.predictions.bias",
}
ROBERTA_LM = {"head.dense": "lm_head.dense", "head.norm": "lm_head.layer_norm", "head.bias": "lm_head.bias"}
DISTILBERT_LM = {"head.dense": "vocab_transform", "head.norm": "vocab_layer_norm", "head.bias": "vocab_projector.bias"}
MODERN_LM = {"head.dense": "head.dense", "head.norm": "head.norm", "head.bias": "decoder.bias"}
MODERN_DECODER_LM = {"head.dense": "lm_head.dense", "head.norm": "lm_head.norm", "head.bias": "decoder.bias"}


class Key(str):
    """A key of config.json, standing for its value there."""


@dataclass(frozen=True, kw_only=True)
class Built:
    """The head of one class of transformers: [pooling], [dense, activation, [norm]], dropout, classifier."""

    architecture: str  # name of the class
    names: Names = field(default_factory=dict)  # of the head's tensors; theirs with prefix
    pooler: bool = False  # whether its base model has BERT's pooler
    pooling: str | None = None  # how a row's states become one vector, if they do: pooler, cls, mean
    after_padding: bool = False  # whether cls is the first token after padding on the left, and not the row's first
    activation: str | None = None  # of the dense layer; None: there is none, or, of a language model, the encoder's
    norm: bool = False
    drop_first: bool = False  # dropout before the dense layer, too
    dropout: tuple[str, ...] = ()  # keys of config.json for the rate; the first that is not null counts


@dataclass(frozen=True, kw_only=True)
class Family:
    """One `model_type` of Hugging Face's."""

    base: str  # prefix of the encoder's tensors, which a file of the encoder alone leaves out
    body: Names  # of encoder and pooler; theirs without that prefix
    classes: dict[str, Built]  # kind -> class and its head
    copies: dict[str, str]  # a tied copy that a file may hold -> the tensor it must equal
    heads: tuple[str, ...]  # prefixes of all heads' tensors that files may hold; the longest match counts
    defaults: dict[str, Any]  # of the keys of config.json
    aliases: dict[str, str] = field(default_factory=dict)  # BERT's name of a key -> this family's
    read: Callable[[dict[str, Any]], EncoderConfig]
    write: Callable[[EncoderConfig], dict[str, Any]] | None = None  # None: minilm makes no such model from scratch

    def names(self, kind: str) -> Names:
        """Our names -> their full names, for the class of this kind."""
        body = {ours: _prefixed(theirs, self.base) for ours, theirs in self.body.items()}
        return body | self.classes[kind].names

    def head_of(self, key: str) -> str:
        """Prefix of the head that their tensor `key` belongs to; "" for the encoder."""
        return max((head for head in self.heads if key.startswith(head)), key=len, default="")

    def kinds(self, architectures: Sequence[str] | None) -> list[str]:
        """The kinds of the classes that a config.json names, without those that are none of the family's."""
        named = {built.architecture: kind for kind, built in self.classes.items()}
        return [named[each] for each in architectures or () if each in named]

    @property
    def buffers(self) -> tuple[str, ...]:
        """Tensors in old files that are no parameters."""
        return (f"{self.base}embeddings.position_ids", f"{self.base}embeddings.token_type_ids")


def _prefixed(names: str | tuple[str, ...], prefix: str) -> str | tuple[str, ...]:
    return prefix + names if isinstance(names, str) else tuple(prefix + name for name in names)


_CLASSIFIER, _SPAN = {"classifier": "classifier"}, {"classifier": "qa_outputs"}
_DENSE_CLASSIFIER = {"transform.dense": "classifier.dense", "classifier": "classifier.out_proj"}
_DROPOUT = ("classifier_dropout", "hidden_dropout_prob")
_POOLED = {"pooler": True, "pooling": "pooler"}
_DENSE = {"names": _DENSE_CLASSIFIER, "pooling": "cls", "drop_first": True, "dropout": _DROPOUT}
# a language model of ours may hold the pooler inside its head for pairs
_PAIR = {"pair.pooler.dense": "bert.pooler.dense", "pair.classifier": "cls.seq_relationship"}
_BERT_CLASSES = {
    "model": Built(architecture="BertModel", pooler=True),
    "mlm": Built(architecture="BertForMaskedLM", names=BERT_LM),
    "clm": Built(architecture="BertLMHeadModel", names=BERT_LM),
    "pretraining": Built(
        architecture="BertForPreTraining", names=BERT_LM | _PAIR | {"classifier": "cls.seq_relationship"}, pooler=True
    ),
    "next": Built(
        architecture="BertForNextSentencePrediction", names={"classifier": "cls.seq_relationship"}, **_POOLED
    ),
    "sequence": Built(architecture="BertForSequenceClassification", names=_CLASSIFIER, dropout=_DROPOUT, **_POOLED),
    "choice": Built(architecture="BertForMultipleChoice", names=_CLASSIFIER, dropout=_DROPOUT, **_POOLED),
    "token": Built(architecture="BertForTokenClassification", names=_CLASSIFIER, dropout=_DROPOUT),
    "span": Built(architecture="BertForQuestionAnswering", names=_SPAN),
}
_ROBERTA_CLASSES = {
    "model": Built(architecture="RobertaModel", pooler=True),
    "mlm": Built(architecture="RobertaForMaskedLM", names=ROBERTA_LM, activation="gelu"),  # whatever hidden_act is
    "sequence": Built(architecture="RobertaForSequenceClassification", activation="tanh", **_DENSE),
    "choice": Built(architecture="RobertaForMultipleChoice", names=_CLASSIFIER, dropout=_DROPOUT[1:], **_POOLED),
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
        activation=Key("hidden_act"),
    ),
    "sequence": Built(architecture="ElectraForSequenceClassification", activation="gelu", **_DENSE),
    "choice": Built(
        architecture="ElectraForMultipleChoice",
        names={"transform.dense": "sequence_summary.summary", "classifier": "classifier"},
        pooling="cls",
        activation="gelu",
        dropout=("summary_last_dropout",),
    ),
    "token": Built(architecture="ElectraForTokenClassification", names=_CLASSIFIER, dropout=_DROPOUT),
    "span": Built(architecture="ElectraForQuestionAnswering", names=_SPAN),
}
_DISTILBERT_POOLED = {
    "names": {"transform.dense": "pre_classifier", "classifier": "classifier"},
    "pooling": "cls",
    "activation": "relu",
    "dropout": ("seq_classif_dropout",),
}
_DISTILBERT_CLASSES = {
    "model": Built(architecture="DistilBertModel"),
    "mlm": Built(architecture="DistilBertForMaskedLM", names=DISTILBERT_LM),
    "sequence": Built(architecture="DistilBertForSequenceClassification", **_DISTILBERT_POOLED),
    "choice": Built(architecture="DistilBertForMultipleChoice", **_DISTILBERT_POOLED),
    "token": Built(architecture="DistilBertForTokenClassification", names=_CLASSIFIER, dropout=("dropout",)),
    "span": Built(architecture="DistilBertForQuestionAnswering", names=_SPAN, dropout=("qa_dropout",)),
}


def _modern(architecture: str, pooling: str | None = None, after_padding: bool = False) -> Built:
    """A head of ModernBERT; they differ only in pooling."""
    return Built(
        architecture=architecture,
        names={"transform.dense": "head.dense", "transform.norm": "head.norm", "classifier": "classifier"},
        pooling=pooling,
        after_padding=after_padding,
        activation=Key("classifier_activation"),
        norm=True,
        dropout=("classifier_dropout",),
    )


_MODERN_CLASSES = {
    "model": Built(architecture="ModernBertModel"),
    "mlm": Built(architecture="ModernBertForMaskedLM", names=MODERN_LM),
    "sequence": _modern("ModernBertForSequenceClassification", pooling=Key("classifier_pooling")),
    "choice": _modern("ModernBertForMultipleChoice", pooling=Key("classifier_pooling"), after_padding=True),
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

"""BERT-family language models in plain PyTorch. Public names load on first use."""

from importlib import import_module
from typing import Any

__version__ = "0.1.1"

_HOME = {
    "Tokens": "minilm.batch",
    "Batch": "minilm.batch",
    "Tokenizer": "minilm.data.tokenizer",
    "EncoderConfig": "minilm.model.encoder",
    "Encoder": "minilm.model.encoder",
    "bert_config": "minilm.model.encoder",
    "modern_config": "minilm.model.encoder",
    "LanguageModel": "minilm.model.heads",
    "Pretrained": "minilm.checkpoint.model",
    "read_model": "minilm.checkpoint.model",
    "write_model": "minilm.checkpoint.model",
    "fill_mask": "minilm.use.complete",
    "continue_text": "minilm.use.complete",
    "Embedder": "minilm.use.embed",
    "read_embedder": "minilm.use.embed",
    "embed": "minilm.use.embed",
    "search": "minilm.use.embed",
    "MaskedLM": "minilm.use.complete",
    "read_masked_lm": "minilm.use.complete",
    "finetune": "minilm.finetuning.api",
    "open_tuned": "minilm.finetuning.api",
    "score": "minilm.judging.score",
    "explain": "minilm.explanation.explain",
    "UserError": "minilm.errors",
    "BatchEncoding": "minilm.dropin.outputs",
    "BertTokenizer": "minilm.dropin.tokenizer",
    "BertConfig": "minilm.dropin.config",
    "BertModel": "minilm.dropin.models",
    "BertForMaskedLM": "minilm.dropin.models",
    "BertLMHeadModel": "minilm.dropin.models",
    "BertForPreTraining": "minilm.dropin.models",
    "BertForNextSentencePrediction": "minilm.dropin.models",
    "BertForSequenceClassification": "minilm.dropin.models",
    "BertForTokenClassification": "minilm.dropin.models",
    "BertForQuestionAnswering": "minilm.dropin.models",
    "BertForMultipleChoice": "minilm.dropin.models",
    "ElectraForPreTraining": "minilm.dropin.models",
}
# names of other families and the Auto classes -> the class of BERT's name that opens any family
_SAME = {
    "BertTokenizerFast": "BertTokenizer",
    "AutoTokenizer": "BertTokenizer",
    "AutoModel": "BertModel",
    "AutoModelForMaskedLM": "BertForMaskedLM",
    "AutoModelForCausalLM": "BertLMHeadModel",
    "AutoModelForSequenceClassification": "BertForSequenceClassification",
    "AutoModelForTokenClassification": "BertForTokenClassification",
    "AutoModelForQuestionAnswering": "BertForQuestionAnswering",
    "AutoModelForMultipleChoice": "BertForMultipleChoice",
    "AutoModelForNextSentencePrediction": "BertForNextSentencePrediction",
}
_OF_HEADS = ("MaskedLM", "SequenceClassification", "TokenClassification", "QuestionAnswering", "MultipleChoice")
_SAME |= {
    family + rest: f"Bert{rest}"
    for family in ("Roberta", "DistilBert", "Electra", "ModernBert")
    for rest in ("Model", *(f"For{head}" for head in _OF_HEADS))
}
_SAME |= {
    f"{family}Tokenizer{fast}": "BertTokenizer"
    for family in ("Roberta", "DistilBert", "Electra")
    for fast in ("", "Fast")
}
_HOME |= {name: _HOME[same] for name, same in _SAME.items()} | {"AutoConfig": "minilm.dropin.config"}
_SAME["AutoConfig"] = "PreTrainedConfig"
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'minilm' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), _SAME.get(name, name))


def __dir__() -> list[str]:
    return __all__

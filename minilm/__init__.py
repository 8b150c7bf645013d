"""BERT-family language models in plain PyTorch. Public names load on first use."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

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
    "fill_mask": "minilm.evaluation.predict",
    "continue_text": "minilm.evaluation.predict",
    "UserError": "minilm.errors",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'minilm' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]

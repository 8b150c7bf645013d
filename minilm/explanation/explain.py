"""Explanations of a model's output for a text: a value for each word.

integrated-gradients, gradient-x-input, occlusion (`attribution`): signed, in the units of the model's output; a word
for the output is above 0, one against it below. The baseline of integrated gradients is the text with [PAD] for each of
its tokens, and [CLS], [SEP] and a [MASK] to be filled as they are, as in captum's tutorials; occlusion puts [MASK]
in place of a word's tokens ([UNK] or [PAD] where the tokenizer has none).
rollout, attention (`attention`): shares of the attention of the states that the output is read from, and no evidence of
why it is what it is (Jain & Wallace 2019).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from minilm.dropin.inputs import max_tokens
from minilm.dropin.tokenizer import BertTokenizer
from minilm.errors import ConfigError, DataError
from minilm.explanation.attention import attention_maps, rollout, word_map
from minilm.explanation.attribution import STEPS, gradient_x_input, integrated_gradients, occlusion
from minilm.explanation.shown import SHARES, Explanation
from minilm.explanation.targets import Asked, asked_of, asked_of_mask
from minilm.finetuning.tuned import Tuned
from minilm.tasks.span import Span
from minilm.use.complete import MaskedLM

MethodName = Literal["integrated-gradients", "gradient-x-input", "occlusion", "rollout", "attention"]


@dataclass(frozen=True)
class Method:
    """How words get their values. Raises ConfigError."""

    name: MethodName = "integrated-gradients"
    steps: int = STEPS  # of integrated gradients
    layer: int | None = None  # of attention, from 1; None: the mean over all
    head: int | None = None

    def __post_init__(self) -> None:
        if self.name not in get_args(MethodName):
            raise ConfigError(f"--method {self.name}: give one of {', '.join(get_args(MethodName))}")
        if self.steps < 1:
            raise ConfigError(f"--steps {self.steps}: give 1 or more")
        if self.name != "attention" and (self.layer, self.head) != (None, None):
            raise ConfigError("--layer, --head: for --method attention")


def explain(
    tuned: Tuned,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    *,
    method: Method | MethodName | None = None,
    target: str | None = None,
) -> list[Explanation]:
    """Explain the prediction of a tuned model (of `finetune` or `open_tuned`) for each text or pair; for questions
    `pairs` are their contexts.

    target: the label that is explained; None: the likeliest. Texts that are longer than in training are cut, as there;
    but a question and its context are read in one piece, as long as the model can. Leaves the model in eval mode.
    Raises ConfigError for a task that cannot be explained and for an unknown target, DataError for a text without a
    word and a context that is too long.
    """
    model, task, tokenizer = tuned.model.eval(), tuned.task, tuned.tokenizer
    tuned.check_texts("explain", texts, pairs)
    if pairs is None and isinstance(task, Span):
        raise DataError("a question needs a context: give `pairs`, one for each")
    tuned.check_pairs(pairs)
    method = Method(method) if isinstance(method, str) else method or Method()
    length = max_tokens(model.base_model.encoder.cfg, tokenizer) if isinstance(task, Span) else tuned.length
    found = []
    with tuned.runtime.autocast():
        for text, pair in zip(texts, [None] * len(texts) if pairs is None else pairs, strict=True):
            asked = asked_of(model, task, tokenizer, (text,) if pair is None else (text, pair), target, length)
            found.append(_explained(asked, tokenizer, method))
    return found


def explain_mask(masked: MaskedLM, text: str, method: Method | None = None, target: str | None = None) -> Explanation:
    """Explain how a masked language model fills the one mask in a text: its likeliest token, or `target`. Raises
    ConfigError, DataError."""
    masked.model.eval()
    return _explained(asked_of_mask(masked, text, target), masked.tokenizer, method or Method())


def _explained(asked: Asked, tokenizer: BertTokenizer, method: Method) -> Explanation:
    places, words = asked.words()
    with torch.no_grad():
        score = float(asked.output.of(asked.tokens)[0])
    if not np.isfinite(score):
        raise DataError("the model's output is not finite; in half precision, try fp32")
    if method.name in SHARES:
        values, more = _shares(asked, places, method)
    elif method.name == "occlusion":
        values, more = _occluded(asked, places, tokenizer), {}
    else:
        by_token, more = _attributions(asked, score, method)
        values = np.array([by_token[own].sum() for own in places])
    words = tuple(word._replace(value=value) for word, value in zip(words, values.tolist(), strict=True))
    is_cut = bool(asked.encoding.overflowing)
    return Explanation(method.name, asked.says, score, asked.texts, words, is_cut, asked.probability, **more)


def _attributions(asked: Asked, score: float, method: Method) -> tuple[np.ndarray, dict[str, Any]]:
    """Values of the tokens, (T,), and further fields of the Explanation."""
    output, tokens = asked.output, asked.tokens
    if method.name == "gradient-x-input":
        return gradient_x_input(output, tokens), {}
    kept = torch.from_numpy(asked.kept).to(tokens.input_ids.device)
    nothing = torch.where(kept, tokens.input_ids, output.model.base_model.encoder.cfg.pad_token_id)
    values = integrated_gradients(output, tokens, nothing, method.steps)
    with torch.no_grad():
        base = float(output.of(replace(tokens, input_ids=nothing))[0])
    error = abs(float(values.sum()) / (score - base) - 1) if score != base else None
    return values, {"baseline_score": base, "completeness_error": error}


def _occluded(asked: Asked, places: list[np.ndarray], tokenizer: BertTokenizer) -> np.ndarray:
    """Values of the words, (words,); 0 for those in `asked.kept`."""
    hidden = np.zeros((len(places), len(asked.kept)), bool)
    for row, own in zip(hidden, places, strict=True):
        row[own] = ~asked.kept[own]
    cfg = asked.output.model.base_model.encoder.cfg
    ids = (tokenizer.mask_token_id, tokenizer.unk_token_id, cfg.pad_token_id)
    by = next(id for id in ids if id is not None)
    values = occlusion(asked.output, asked.tokens, torch.from_numpy(hidden).to(asked.tokens.input_ids.device), by)
    return np.where(hidden.any(axis=1), values, 0.0)


def _shares(asked: Asked, places: list[np.ndarray], method: Method) -> tuple[np.ndarray, dict[str, Any]]:
    """Attention to each word from the states that the output is read from, (words,); and the map of all words."""
    maps = attention_maps(asked.output.model.base_model.encoder, asked.tokens)
    by_token = (rollout(maps) if method.name == "rollout" else _chosen(maps, method))[0].cpu().double().numpy()
    read = by_token[asked.read].mean(axis=0)
    return np.array([read[own].sum() for own in places]), {"map": word_map(by_token, places)}


def _chosen(maps: Tensor, method: Method) -> Tensor:
    """The map of the layer and head that `method` names, or the mean over them: (L, B, H, T, T) -> (B, T, T)."""
    for name, size in (("layer", maps.shape[0]), ("head", maps.shape[2])):
        if (own := getattr(method, name)) is not None and not 1 <= own <= size:
            raise ConfigError(f"--{name} {own}: the model has {size}; give a value from 1 to {size}")
    layers = maps if method.layer is None else maps[method.layer - 1 : method.layer]
    heads = layers if method.head is None else layers[:, :, method.head - 1 : method.head]
    return heads.mean(dim=(0, 2))

"""Predictions of a pretrained model: filling masks, and continuing a text."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from minilm.checkpoint.hf import config_to_hf, objective_of
from minilm.checkpoint.model import Pretrained, find_model, read_model, shapes_only
from minilm.data.objectives import ATTENTION
from minilm.dropin.config import PreTrainedConfig
from minilm.dropin.inputs import max_tokens
from minilm.dropin.models import BertForMaskedLM
from minilm.dropin.tokenizer import BertTokenizer
from minilm.errors import CheckpointError, ConfigError, DataError
from minilm.model.generate import sample


class MaskedLM(NamedTuple):
    """A masked language model of any family, with its tokenizer."""

    model: BertForMaskedLM
    tokenizer: BertTokenizer


@dataclass(frozen=True)
class Filling:
    """One candidate for a [MASK]."""

    token: str
    probability: float
    text: str  # the whole text, filled with it


def read_masked_lm(
    name: Path | str,
    *,
    revision: str | None = None,
    cache_dir: Path | str | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    use_safetensors: bool | None = None,
) -> MaskedLM:
    """The masked language model of a directory or a name on the hub. Raises CheckpointError, also for a model without a
    language-model head, DataError."""
    directory = find_model(
        name, revision, cache_dir, local_files_only, allow_pickle=use_safetensors is False, token=token
    )
    model = BertForMaskedLM.from_pretrained(directory, use_safetensors=use_safetensors)
    if model.untrained:
        raise CheckpointError(f"{directory}: is an encoder without the head of a masked language model")
    return MaskedLM(model, BertTokenizer.from_pretrained(directory))


def _as_masked_lm(pretrained: Pretrained) -> MaskedLM:
    """The same encoder, head and tokenizer, in transformers' classes."""
    model, tokenizer, objective = pretrained
    specials = {"cls_token_id": tokenizer.cls_id, "sep_token_id": tokenizer.sep_id}
    with shapes_only():
        wrapped = BertForMaskedLM(PreTrainedConfig.from_dict(config_to_hf(model.cfg, objective, specials)))
    wrapped.bert.encoder, wrapped.head = model.encoder, model.head
    return MaskedLM(wrapped, BertTokenizer(tokenizer.backend, model_max_length=model.cfg.max_position_embeddings))


@torch.no_grad()
def fill_mask(model: Pretrained | MaskedLM | Path | str, text: str, top_k: int = 5) -> list[Filling]:
    """The `top_k` likeliest tokens for the one [MASK] in `text`, likeliest first; the mask is written as in the
    tokenizer. model: of `read_model`, of `read_masked_lm`, or what the latter reads.

    Raises ConfigError for a model that is no masked one, DataError for a text without exactly one [MASK].
    """
    if isinstance(model, Path | str):
        model = read_masked_lm(model)
    objective = model.objective if isinstance(model, Pretrained) else objective_of(vars(model.model.config))
    if objective != "mlm":
        raise ConfigError(f"a {objective} model does not fill in masks; continue a text with it")
    if top_k < 1:
        raise ConfigError(f"top_k is {top_k}; give 1 or more")
    model, tokenizer = _as_masked_lm(model) if isinstance(model, Pretrained) else model
    limit = max_tokens(model.bert.encoder.cfg, tokenizer)
    inputs = tokenizer([text], truncation=True, max_length=limit, return_tensors="pt").to(model.device)
    ids = inputs.input_ids[0].tolist()
    if tokenizer.mask_token_id is None:
        raise ConfigError("the model's tokenizer has no mask token, so nothing to fill in")
    masks = [place for place, id in enumerate(ids) if id == tokenizer.mask_token_id]
    if len(masks) != 1:
        long = f", of which {limit} tokens are read," if inputs.encodings[0].overflowing else ""
        raise DataError(f"the text{long} holds {len(masks)} {tokenizer.mask_token}; give exactly one")
    probabilities = model(**inputs).logits[0, masks[0]].float().softmax(0)
    if not probabilities.isfinite().all():
        raise DataError("the model's logits at the mask are not finite; in half precision, try fp32")
    best = probabilities.topk(min(top_k, len(probabilities)))
    fillings = []
    for p, id in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        filled = [*ids[: masks[0]], id, *ids[masks[0] + 1 :]]
        fillings.append(Filling(token_text(tokenizer, id), p, tokenizer.decode(filled, skip_special_tokens=True)))
    return fillings


def token_text(tokenizer: BertTokenizer, id: int) -> str:
    """Text of a token; unk_token for an id past the vocabulary, as a padded table has some."""
    return tokenizer.decode([id]).strip() or tokenizer.convert_ids_to_tokens(id) or tokenizer.unk_token


def continue_text(
    pretrained: Pretrained | Path | str, text: str, max_new: int = 40, temperature: float = 0.8, seed: int = 0
) -> str:
    """A sampled continuation of `text`, of at most `max_new` tokens. pretrained: of `read_model`, or what it reads.
    Raises ConfigError for a masked model, CheckpointError, and DataError where the text leaves no room."""
    if isinstance(pretrained, Path | str):
        pretrained = read_model(pretrained)
    model, tokenizer, objective = pretrained
    if objective == "mlm":
        raise ConfigError("an mlm model does not continue a text; fill in masks with it")
    if temperature != 0 and not 1e-3 <= temperature <= 1e3:
        raise ConfigError(f"temperature is {temperature}; give 0 or a value from 0.001 to 1000")
    prompt = tokenizer.encode(text).input_ids[:-1]  # without the [SEP] that would end it
    limit = model.cfg.max_position_embeddings
    if len(prompt) >= limit:
        raise DataError(f"the text has {len(prompt)} tokens and the model reads {limit}; shorten it")
    new = sample(model, prompt, max_new, ATTENTION[objective], tokenizer.sep_id, temperature, seed=seed)
    return tokenizer.decode(new)

"""What a trained model says to a text."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from minilm.batch import Tokens
from minilm.checkpoint.hf import objective_of
from minilm.checkpoint.model import Pretrained
from minilm.data.objectives import ATTENTION
from minilm.data.tokenizer import MASK
from minilm.dropin.models import BertForMaskedLM, PreTrainedModel
from minilm.dropin.tokenizer import BertTokenizer
from minilm.errors import ConfigError, DataError
from minilm.model.generate import sample


class MaskedLM(NamedTuple):
    """A masked language model of any family."""

    model: BertForMaskedLM
    tokenizer: BertTokenizer


@dataclass(frozen=True)
class Filling:
    """One candidate for a [MASK]."""

    token: str
    probability: float
    text: str  # the whole text with it


def read_length(model: PreTrainedModel, tokenizer: BertTokenizer) -> int:
    """How many tokens of a text the two read, specials among them."""
    return min(tokenizer.model_max_length, model.base_model.encoder.cfg.max_position_embeddings)


@torch.no_grad()
def fill_mask(pretrained: Pretrained | MaskedLM, text: str, top_k: int = 5) -> list[Filling]:
    """The `top_k` likeliest tokens for the one [MASK] in `text`, likeliest first; the mask is as the tokenizer writes
    it. Raises ConfigError for a model that was not trained to, DataError for a text without exactly one [MASK]."""
    model, tokenizer = pretrained[:2]
    ours = isinstance(pretrained, Pretrained)
    objective = pretrained.objective if ours else objective_of(model.config.to_dict())
    if objective != "mlm":
        raise ConfigError(f"a {objective} model does not fill in masks; continue a text with it")
    if top_k < 1:
        raise ConfigError(f"top_k is {top_k}; give 1 or more")
    if ours:
        limit, mask, mask_id = model.cfg.max_position_embeddings, MASK, tokenizer.mask_id
        encoding = tokenizer.encode(text, max_length=limit, specials=True)
        ids, cut = encoding.input_ids, any(encoding.cut)
    else:
        limit, mask, mask_id = read_length(model, tokenizer), tokenizer.mask_token, tokenizer.mask_token_id
        encoding = tokenizer(text, truncation=True, max_length=limit)
        ids, cut = encoding.input_ids, bool(encoding.encodings[0].overflowing)
    masks = [i for i, id in enumerate(ids) if id == mask_id]
    if len(masks) != 1:
        long = f", of which {limit} tokens are read," if cut else ""
        raise DataError(f"the text{long} holds {len(masks)} {mask}; give exactly one")
    probabilities = _logits_at(model, ids, masks[0]).float().softmax(0)
    fillings = []
    for p, id in zip(*(each.tolist() for each in probabilities.topk(min(top_k, len(probabilities)))), strict=True):
        filled = [*ids[: masks[0]], id, *ids[masks[0] + 1 :]]
        piece = tokenizer.token(id) if ours else tokenizer.convert_ids_to_tokens(id) or tokenizer.unk_token
        token = piece if ours else tokenizer.decode([id]).strip() or piece
        fillings.append(Filling(token, p, tokenizer.decode(filled, True)))
    return fillings


def _logits_at(model: nn.Module, ids: list[int], place: int) -> Tensor:
    """(V,) at one token of a text."""
    if isinstance(model, BertForMaskedLM):
        return model(torch.tensor([ids], device=model.device)).logits[0, place]
    device = model.table.device
    return model(Tokens.full(torch.tensor([ids], device=device)), torch.tensor([place], device=device))[0]


def continue_text(pretrained: Pretrained, text: str, max_new: int = 40, temperature: float = 0.8, seed: int = 0) -> str:
    """A sampled continuation of `text`, of at most `max_new` tokens. Raises ConfigError for a masked model, DataError
    where the text leaves no room."""
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

"""What a trained model says to a text."""

from dataclasses import dataclass

import torch

from minilm.batch import Tokens
from minilm.checkpoint.model import Pretrained
from minilm.data.objectives import ATTENTION
from minilm.data.tokenizer import MASK
from minilm.errors import ConfigError, DataError
from minilm.model.generate import sample


@dataclass(frozen=True)
class Filling:
    """One candidate for a [MASK]."""

    token: str
    probability: float
    text: str  # the whole text with it


@torch.no_grad()
def fill_mask(pretrained: Pretrained, text: str, top_k: int = 5) -> list[Filling]:
    """The `top_k` likeliest tokens for the one [MASK] in `text`, likeliest first. Raises ConfigError for a model that
    was not trained to, DataError for a text without exactly one [MASK]."""
    model, tokenizer, objective = pretrained
    if objective != "mlm":
        raise ConfigError(f"a {objective} model does not fill in masks; continue a text with it")
    if top_k < 1:
        raise ConfigError(f"top_k is {top_k}; give 1 or more")
    encoding = tokenizer.encode(text, max_length=model.cfg.max_position_embeddings, specials=True)
    masks = [i for i, id in enumerate(encoding.input_ids) if id == tokenizer.mask_id]
    if len(masks) != 1:
        long = f", of which {model.cfg.max_position_embeddings} tokens are read," if any(encoding.cut) else ""
        raise DataError(f"the text{long} holds {len(masks)} {MASK}; give exactly one")
    device = model.table.device
    where = torch.tensor(masks, device=device)
    logits = model(Tokens.full(torch.tensor([encoding.input_ids], device=device)), where)[0]
    best, ids = logits.float().softmax(0).topk(min(top_k, len(logits)))
    fillings = []
    for p, id in zip(best.tolist(), ids.tolist(), strict=True):
        filled = [*encoding.input_ids[: masks[0]], id, *encoding.input_ids[masks[0] + 1 :]]
        fillings.append(Filling(tokenizer.token(id), p, tokenizer.decode(filled)))
    return fillings


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

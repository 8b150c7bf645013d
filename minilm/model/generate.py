"""Sampling text from a language model, one token at a time."""

import torch

from minilm.batch import AttentionPattern, Tokens
from minilm.errors import DataError
from minilm.model.heads import LanguageModel


@torch.no_grad()
def sample(
    model: LanguageModel,
    prompt: list[int],
    max_new: int,
    attention: AttentionPattern,
    stop_id: int,
    temperature: float = 0.8,
    top_k: int = 40,
    seed: int = 0,
) -> list[int]:
    """The ids that follow `prompt`, at most `max_new`, drawn from the `top_k` likeliest; `stop_id` ends it.

    prompt: ids from [CLS] on; nothing follows one that fills the model's positions. attention: causal, or prefix, with
    the prompt as the prefix. Temperature 0 takes the likeliest. The model should be in eval mode. Raises DataError for
    outputs that are not finite.
    """
    device = model.table.device
    generator = torch.Generator().manual_seed(seed)
    ids = list(prompt)
    limit = min(len(prompt) + max_new, model.cfg.max_position_embeddings)
    while len(ids) < limit:
        row = torch.tensor([ids], device=device)
        prefix = torch.arange(len(ids), device=device)[None] < len(prompt) if attention == "prefix" else None
        last = torch.tensor([len(ids) - 1], device=device)
        logits = model(Tokens.full(row, attention, prefix), last)[0].float().cpu()
        if not logits.isfinite().all():
            raise DataError(f"the model's outputs after {len(ids)} tokens are not finite; in half precision, try fp32")
        if temperature == 0:
            drawn = int(logits.argmax())
        else:
            best, which = logits.topk(min(top_k, len(logits)))
            drawn = int(which[torch.multinomial((best / temperature).softmax(0), 1, generator=generator)])
        if drawn == stop_id:
            break
        ids.append(drawn)
    return ids[len(prompt) :]

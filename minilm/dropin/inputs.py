"""The arguments of a transformers call as an encoder's Tokens, and how many tokens a model reads."""

from dataclasses import replace

import torch
from torch import Tensor

from minilm.batch import AttentionPattern, Tokens
from minilm.dropin.tokenizer import BertTokenizer
from minilm.errors import DataError
from minilm.model.encoder import EncoderConfig


def max_tokens(cfg: EncoderConfig, tokenizer: BertTokenizer) -> int:
    """Tokens of a text that model and tokenizer read at most, special tokens included. Raises DataError for added
    tokens that the model has no embedding for."""
    if (highest := max(tokenizer.get_added_vocab().values(), default=0)) >= cfg.vocab_size:
        raise DataError(f"the tokenizer has ids to {highest}, the model {cfg.vocab_size} tokens; resize its embeddings")
    return min(tokenizer.model_max_length, cfg.max_position_embeddings)


def tokens_of(
    cfg: EncoderConfig,
    attention: AttentionPattern,
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    token_type_ids: Tensor | None,
    position_ids: Tensor | None,
    inputs_embeds: Tensor | None,
) -> Tokens:
    """Tokens for the arguments of a transformers call, all (B, T) but inputs_embeds (B, T, E).

    Pooled heads read a row's first token, even if it is padding; RoBERTa's positions count the tokens that are not
    padding. Raises ValueError for arguments that contradict each other, TypeError for ids that are no whole numbers,
    DataError for a text without tokens or with more than the model has positions.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("give either input_ids or inputs_embeds")
    if input_ids is None:
        ids = torch.zeros(inputs_embeds.shape[:2], dtype=torch.long, device=inputs_embeds.device)  # not read
    else:
        if input_ids.is_floating_point() or input_ids.dtype == torch.bool:
            raise TypeError(f"input_ids of {input_ids.dtype}; give whole numbers")
        ids = input_ids.long()
    B, T = ids.shape
    if not T:
        raise DataError("a text of no tokens; give each at least one")
    if cfg.learned_positions and cfg.max_position_embeddings < T:
        raise DataError(
            f"a text of {T} tokens, and the model reads {cfg.max_position_embeddings}; let the tokenizer cut it: "
            f"truncation=True, max_length={cfg.max_position_embeddings}"
        )
    if attention_mask is not None and attention_mask.shape != ids.shape:
        raise ValueError(f"attention_mask has shape {tuple(attention_mask.shape)}, not {(B, T)}")
    position = None
    if position_ids is not None:
        position = position_ids.expand(B, T) - cfg.position_offset
    elif cfg.position_offset and input_ids is not None:
        real = ids != cfg.pad_token_id
        position = real.cumsum(dim=1) * real - 1
    types = None if token_type_ids is None else token_type_ids.expand(B, T)
    if attention_mask is None:
        tokens = Tokens.full(ids, attention, token_type_ids=types, position=position)
    else:
        tokens = Tokens.padded(ids, attention_mask, attention, token_type_ids=types, position=position)
    return replace(tokens, cls=torch.arange(B, device=ids.device) * T)

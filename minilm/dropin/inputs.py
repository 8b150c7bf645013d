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


def beyond_tables(cfg: EncoderConfig, tokens: Tokens) -> str | None:
    """What in `tokens` has no row in its table of embeddings; None: everything has one."""
    V, types, offset = cfg.vocab_size, cfg.type_vocab_size, cfg.position_offset
    places = (cfg.max_position_embeddings + offset) * cfg.learned_positions
    for ids, end, name, of, mend in (
        (tokens.input_ids, V, "token id", f"{V} tokens", "call resize_token_embeddings(len(tokenizer))"),
        (tokens.token_type_ids, types, "token type", f"{types} types", "leave out token_type_ids"),
        (tokens.position + offset, places, "position", f"{places} positions", "give lower position_ids"),
    ):
        for value in (int(ids.max()), int(ids.min())) if end else ():
            if not 0 <= value < end:
                return f"{name} {value}, but the model has {of}; {'give none below 0' if value < 0 else mend}"
    return None


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
        if not isinstance(input_ids, Tensor):
            raise TypeError(f"input_ids is a {type(input_ids).__name__}; give a tensor: return_tensors='pt' makes one")
        if input_ids.ndim != 2:
            raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}; give (rows, tokens)")
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
        position = _expanded("position_ids", position_ids, (B, T)) - cfg.position_offset
    elif cfg.position_offset and input_ids is not None:
        real = ids != cfg.pad_token_id
        position = real.cumsum(dim=1) * real - 1
    types = None if token_type_ids is None else _expanded("token_type_ids", token_type_ids, (B, T))
    if attention_mask is None:
        tokens = Tokens.full(ids, attention, token_type_ids=types, position=position)
    else:
        tokens = Tokens.padded(ids, attention_mask, attention, token_type_ids=types, position=position)
    return replace(tokens, cls=torch.arange(B, device=ids.device) * T)


def _expanded(name: str, value: Tensor, shape: tuple[int, int]) -> Tensor:
    try:
        return value.expand(shape)
    except RuntimeError as error:
        raise ValueError(f"{name} has shape {tuple(value.shape)}, not {shape}") from error

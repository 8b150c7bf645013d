"""The results of a tokenizer (BatchEncoding) and of a model (ModelOutput)."""

import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import tokenizers
import torch
from torch.utils import _pytree

from minilm.errors import ConfigError, DataError

log = logging.getLogger("minilm")
ABSENT = ("loss", "pooler_output", "hidden_states", "attentions", "past_key_values", "cross_attentions")


class CharSpan(NamedTuple):
    """Characters of a text, from `start` to before `end`."""

    start: int
    end: int


class TokenSpan(NamedTuple):
    """Tokens of a text, from `start` to before `end`."""

    start: int
    end: int


class BatchEncoding(dict):
    """The result of a tokenizer: lists or tensors by name, or as attributes, and the way back to words and characters.

    The index of a text may be left out if there is only one. sequence_index: 0 for words and characters of the first
    text of a pair, 1 for those of the second.
    """

    def __init__(
        self,
        data: Mapping[str, Any] | None = None,
        encoding: Sequence[tokenizers.Encoding] | tokenizers.Encoding | None = None,
        tensor_type: str | None = None,
        prepend_batch_axis: bool = False,
    ) -> None:
        super().__init__(data or {})
        self.encodings = [encoding] if isinstance(encoding, tokenizers.Encoding) else encoding
        self.convert_to_tensors(tensor_type, prepend_batch_axis)

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f"this encoding has no {name!r}; it has {', '.join(self)}")

    def __getitem__(self, key: str | int | slice) -> Any:
        """What has this name; the Encoding of a text; or, without Encodings, a slice of the texts in all names."""
        if isinstance(key, str):
            return super().__getitem__(key)
        if isinstance(key, slice) and self.encodings is None:
            return {name: value[key] for name, value in self.items()}
        return self._encodings()[key]

    def __or__(self, other: Mapping[str, Any]) -> Self:
        return type(self)({**self, **other}, self.encodings)

    def copy(self) -> Self:
        return type(self)(self, self.encodings)

    def _encodings(self) -> Sequence[tokenizers.Encoding]:
        """Raises ConfigError if the tokenizer did not make this, as after `pad`."""
        if self.encodings is None:
            raise ConfigError("these are no texts just tokenized, so words, characters and tokens are not known")
        return self.encodings

    @property
    def is_fast(self) -> bool:
        return self.encodings is not None

    @property
    def data(self) -> Self:
        return self

    @property
    def n_sequences(self) -> int | None:
        return self.encodings[0].n_sequences if self.encodings else None

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> Self:
        """Move the tensors to `device`, in place. Ids stay whole numbers: for a dtype there is only a warning."""
        if isinstance(device, torch.dtype):
            log.warning("an encoding is not cast to %s; give a device", device)
            return self
        for name, value in self.items():
            if isinstance(value, torch.Tensor):
                self[name] = value.to(device, non_blocking=non_blocking)
        return self

    def convert_to_tensors(self, tensor_type: str | None = None, prepend_batch_axis: bool = False) -> Self:
        """Convert lists to torch tensors ("pt") or numpy arrays ("np"), in place: whole numbers to int64, others to
        float32 in torch. What is a tensor already stays as it is. prepend_batch_axis: make a batch of one. Raises
        DataError for rows of unequal lengths and for values that are no numbers."""
        if tensor_type not in (None, "pt", "np"):
            raise ConfigError(f"return_tensors {tensor_type!r}: give 'pt' or 'np'")
        dtypes = {"b": bool, "i": np.int64, "u": np.int64, "f": np.float32 if tensor_type == "pt" else np.float64}
        done = torch.Tensor if tensor_type == "pt" else np.ndarray
        for name, value in self.items() if tensor_type else ():
            if isinstance(value, done):
                self[name] = value[None] if prepend_batch_axis else value
                continue
            try:
                array = np.array([value] if prepend_batch_axis else value)
            except ValueError as error:
                if tensor_type == "np" and not prepend_batch_axis and all(isinstance(row, list) for row in value):
                    self[name] = np.array([*map(np.array, value)], object)  # as transformers has it
                    continue
                raise DataError(
                    f"{name}: rows of unequal lengths make no tensor; padding=True and truncation=True make them equal"
                ) from error
            kind = array.dtype.kind if array.size else "i"
            if kind not in dtypes:
                raise DataError(f"{name}: not of numbers, so no tensor; leave it out")
            array = array.astype(dtypes[kind], copy=False)
            self[name] = torch.from_numpy(array) if tensor_type == "pt" else array
        return self

    def tokens(self, batch_index: int = 0) -> list[str]:
        return self._encodings()[batch_index].tokens

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """The index of each token's word, None for special tokens."""
        return self._encodings()[batch_index].word_ids

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """The index of each token's text in a pair, None for special tokens."""
        return self._encodings()[batch_index].sequence_ids

    def char_to_token(self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0) -> Any:
        """The token that holds a character, None for a space."""
        return self._asked(batch_or_char_index, char_index, "char_to_token", sequence_index)

    def char_to_word(self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0) -> Any:
        return self._asked(batch_or_char_index, char_index, "char_to_word", sequence_index)

    def token_to_chars(self, batch_or_token_index: int, token_index: int | None = None) -> Any:
        """The CharSpan of a token in its text, None for special tokens."""
        return self._asked(batch_or_token_index, token_index, "token_to_chars", kind=CharSpan)

    def token_to_word(self, batch_or_token_index: int, token_index: int | None = None) -> Any:
        return self._asked(batch_or_token_index, token_index, "token_to_word")

    def token_to_sequence(self, batch_or_token_index: int, token_index: int | None = None) -> Any:
        return self._asked(batch_or_token_index, token_index, "token_to_sequence")

    def word_to_chars(self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0) -> Any:
        return self._asked(batch_or_word_index, word_index, "word_to_chars", sequence_index, kind=CharSpan)

    def word_to_tokens(self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0) -> Any:
        """The TokenSpan of a word, None if it has no token."""
        return self._asked(batch_or_word_index, word_index, "word_to_tokens", sequence_index, kind=TokenSpan)

    def _asked(self, first: int, second: int | None, what: str, *more: int, kind: type | None = None) -> Any:
        batch, index = (0, first) if second is None else (first, second)
        found = getattr(self._encodings()[batch], what)(index, *more)
        return found if kind is None or found is None else kind(*found)


class ModelOutput(OrderedDict):
    """A model's results by name, attribute or index, in transformers' order. A result that was not asked for is None as
    an attribute, and absent otherwise. An OrderedDict, since FSDP turns any other kind into a plain dict."""

    def __init__(self, items: Mapping[str, Any] | Iterable[tuple[str, Any]] = (), /, **values: Any) -> None:
        """items: those of another ModelOutput, for DataParallel and accelerate, which rebuild it."""
        super().__init__({name: value for name, value in dict(items, **values).items() if value is not None})

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        if name in ABSENT:
            return None
        raise AttributeError(f"this output has no {name!r}; it has {', '.join(self)}")

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a result, by name and index, too; None removes it."""
        if name not in self and name not in ABSENT:
            super().__setattr__(name, value)
        elif value is None:
            self.pop(name, None)
        else:
            self[name] = value

    def __getitem__(self, key: str | int | slice) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def to_tuple(self) -> tuple[Any, ...]:
        """The values alone, in order."""
        return tuple(self.values())


# so that torch.export, DDP and FSDP see the tensors in it
_pytree.register_pytree_node(
    ModelOutput,
    lambda out: (list(out.values()), list(out)),
    lambda values, names: ModelOutput(zip(names, values, strict=True)),
)

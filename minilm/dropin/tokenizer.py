"""transformers' tokenizer: text -> a BatchEncoding, by the tokenizer.json, vocab.txt or vocab.json of any family of
`checkpoint.families`. `tokenizers` does the work; options have the meaning that they have in transformers.

Special tokens written out in a text are those tokens, as in transformers; `split_special_tokens=True` makes them text,
and "roles" only those with a role, as [SEP], but no markers that were added for texts to hold, as [SUBJ].
"""

import logging
import operator
import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import tokenizers
import torch
from tokenizers import models

from minilm.checkpoint.model import find_model
from minilm.data.tokenizer_files import lowercases, read_vocab, wordpiece, write_tokenizer
from minilm.dropin.backend import (
    KNOWN,
    ROLES,
    check_types,
    checked_side,
    content,
    more_tokens,
    open_backend,
    prepare,
    special_token,
)
from minilm.dropin.outputs import BatchEncoding
from minilm.errors import ConfigError, DataError, UserError, did_you_mean, first_line
from minilm.files import alone

log = logging.getLogger("minilm")
NO_LIMIT = int(1e30)  # transformers' model_max_length where none is given
_turn = threading.RLock()  # options are set on the tokenizer in Rust: other threads may not change them meanwhile
os.register_at_fork(before=_turn.acquire, after_in_parent=_turn.release, after_in_child=_turn.release)
STRATEGIES = ("longest_first", "only_first", "only_second")
PAIRED = ("BertTokenizer", "ElectraTokenizer")  # classes whose models read token_type_ids


class BertTokenizer:
    """Splits texts as a model was trained to read them; made by `from_pretrained`, or from a WordPiece vocabulary."""

    is_fast = True

    def __init__(
        self,
        vocab: Path | str | dict[str, int] | tokenizers.Tokenizer,
        do_lower_case: bool = True,
        strip_accents: bool | None = None,
        tokenize_chinese_chars: bool = True,
        **config: Any,
    ) -> None:
        """vocab: a vocab.txt, a dict token -> id, or a whole tokenizer, which the next three arguments do not change.
        config: as in tokenizer_config.json. Raises DataError."""
        backend = vocab
        if not isinstance(vocab, tokenizers.Tokenizer):
            vocab = dict(vocab) if isinstance(vocab, dict) else read_vocab(Path(vocab))
            backend = wordpiece(vocab, do_lower_case, strip_accents, tokenize_chinese_chars)
        for key in config.keys() - {*KNOWN}:  # as in transformers, others are passed over
            if hint := did_you_mean(key, KNOWN, 0.9):
                raise ConfigError(f"{key}: no argument of a tokenizer{hint}")
        check_types(config)
        config = {"tokenizer_class": "BertTokenizer"} | config
        self._set_up(backend, config, prepare(backend, config))

    def _set_up(self, backend: tokenizers.Tokenizer, config: dict[str, Any], roles: dict[str, str]) -> None:
        """Set the attributes. config: as in tokenizer_config.json."""
        self._backend, self._roles = backend, roles
        self.extra_special_tokens = more_tokens(config)
        self.tokenizer_class = str(config.get("tokenizer_class") or "").removesuffix("Fast")
        limit = config.get("model_max_length")
        self.model_max_length = NO_LIMIT if limit is None else int(min(limit, NO_LIMIT))
        self.padding_side = checked_side(config.get("padding_side") or "right", "padding_side")
        self.truncation_side = checked_side(config.get("truncation_side") or "right", "truncation_side")
        self.pad_token_type_id = 0
        paired = self.tokenizer_class in PAIRED
        default = ["input_ids", *(["token_type_ids"] if paired else []), "attention_mask"]
        self.model_input_names = list(config.get("model_input_names") or default)
        self.split_special_tokens = bool(config.get("split_special_tokens", False))
        self.clean_up_tokenization_spaces = bool(config.get("clean_up_tokenization_spaces", False))
        self.do_lower_case = lowercases(backend)
        self.name_or_path = ""
        self._has_warned = False  # that a text is longer than the model reads
        self._with_plain: tuple[Any, tokenizers.Tokenizer] | None = None  # of `_plain_markers`, and what it was made of

    # -- loading and saving -------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Path | str,
        *,
        revision: str | None = None,
        cache_dir: Path | str | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        use_fast: bool = True,
        trust_remote_code: bool = False,
        **changes: Any,
    ) -> Self:
        """The tokenizer of a model's directory or name on the hub, or of a tokenizer's file. changes: to its
        tokenizer_config.json, as do_lower_case. use_fast and trust_remote_code are accepted as in transformers: there
        is one kind, and no code of a directory is run.

        Raises DataError naming the file, also if the tokenizer is not the model's or lower-cases a cased vocabulary;
        ConfigError for unknown changes, or those that the tokenizer has no part for.
        """
        name = pretrained_model_name_or_path
        directory = find_model(name, revision, cache_dir, local_files_only, token=token, weights=False)
        backend, config, roles = open_backend(directory, changes)
        tokenizer = cls.__new__(cls)
        tokenizer._set_up(backend, config, roles)
        tokenizer.name_or_path = str(name)
        return tokenizer

    def save_pretrained(
        self, save_directory: Path | str, legacy_format: bool | None = None, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Write tokenizer.json, a WordPiece's vocab.txt, and tokenizer_config.json, as transformers reads them, and
        return their paths. legacy_format is accepted as in transformers. Raises ConfigError for a filename_prefix."""
        if filename_prefix:
            raise ConfigError(f"filename_prefix {filename_prefix!r}: nothing would open such files; leave it out")
        directory = Path(save_directory)
        config = {
            "tokenizer_class": self.tokenizer_class or "PreTrainedTokenizerFast",
            "model_max_length": self.model_max_length,
            "padding_side": self.padding_side,
            "truncation_side": self.truncation_side,
            "model_input_names": self.model_input_names,
            "clean_up_tokenization_spaces": self.clean_up_tokenization_spaces,
            **self._roles,
        }
        if getattr(self._backend.pre_tokenizer, "add_prefix_space", False):
            config["add_prefix_space"] = True
        if self.split_special_tokens:
            config["split_special_tokens"] = True
        if self.extra_special_tokens:
            config["extra_special_tokens"] = self.extra_special_tokens
        with _turn, alone(directory):
            self._backend.no_truncation()
            self._backend.no_padding()
            self._backend.encode_special_tokens = False
            return tuple(map(str, write_tokenizer(directory, self._backend, config)))

    # -- text to tokens -----------------------------------------------------------------------------

    def __call__(
        self,
        text: Any,
        text_pair: Any = None,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        verbose: bool = True,
        split_special_tokens: bool | Literal["roles"] | None = None,
    ) -> BatchEncoding:
        """Tokenise a text, or a list of texts or of (text, pair); with is_split_into_words, each is a list of words.

        padding: True or "longest", "max_length". truncation: True or "longest_first", "only_first", "only_second", to
        max_length tokens, or as many as the model reads. A longer text that is not cut makes a warning. Raises
        DataError for values that are no text, ConfigError for invalid options.
        """
        one, texts = _as_batch(text, text_pair, is_split_into_words)
        strategy, length = self._truncation(truncation, padding, max_length)
        paired = bool(text_pair) or (not is_split_into_words and bool(texts) and isinstance(texts[0], tuple))
        split = self.split_special_tokens if split_special_tokens is None else split_special_tokens
        _check_texts(texts)
        try:
            with _turn:
                backend = self._plain_markers() if split == "roles" else self._backend
                self._set_truncation(backend, strategy, length, stride, paired, add_special_tokens)
                self._set_padding(backend, padding, length, pad_to_multiple_of, padding_side, strategy is not None)
                backend.encode_special_tokens = bool(split)
                encoded = backend.encode_batch(
                    texts, add_special_tokens=add_special_tokens, is_pretokenized=is_split_into_words
                )
        except (UserError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # tokenizers raises just Exception, and a panic in it not even that
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise  # from a signal handler, not because of a text
            raise DataError(f"cannot be tokenized: {first_line(error)}") from error
        groups = [[each, *each.overflowing] if return_overflowing_tokens else [each] for each in encoded]
        flat = [encoding for group in groups for encoding in group]
        wants_types = "token_type_ids" in self.model_input_names
        wants_mask = "attention_mask" in self.model_input_names
        data = {"input_ids": [each.ids for each in flat]}
        if wants_types if return_token_type_ids is None else return_token_type_ids:
            data["token_type_ids"] = [each.type_ids for each in flat]
        if wants_mask if return_attention_mask is None else return_attention_mask:
            data["attention_mask"] = [each.attention_mask for each in flat]
        if return_special_tokens_mask:
            data["special_tokens_mask"] = [each.special_tokens_mask for each in flat]
        if return_offsets_mapping:
            data["offset_mapping"] = [each.offsets for each in flat]
        if return_length:
            data["length"] = [len(each.ids) for each in flat]
        if return_overflowing_tokens:
            data["overflow_to_sample_mapping"] = [i for i, group in enumerate(groups) for _ in group]
        longest = max((len(each.ids) for each in flat), default=0)
        limit, is_free = self.model_max_length, max_length is None and strategy is None
        if is_free and longest > limit and verbose and not self._has_warned:
            self._has_warned = True
            line = "a text has %d tokens, and the model reads %d: truncation=True cuts it (said once)"
            log.warning(line, longest, limit)
        result = BatchEncoding(data, flat).convert_to_tensors(return_tensors)
        if one and return_tensors is None and not return_overflowing_tokens:
            result.update({name: value[0] for name, value in result.items() if isinstance(value[0], list)})
        return result

    @property
    def markers(self) -> list[str]:
        """Special tokens without a role, which texts are meant to hold."""
        added = self._backend.get_added_tokens_decoder().values()
        return [token.content for token in added if token.special and token.content not in self._roles.values()]

    def _plain_markers(self) -> tokenizers.Tokenizer:
        """The tokenizer, with `markers` that are found in texts whether or not special tokens are."""
        markers, added = self.markers, self._backend.get_added_tokens_decoder().values()
        if not markers:
            return self._backend
        key = tuple(markers), len(added), str(self._backend.normalizer)
        if self._with_plain is None or self._with_plain[0] != key:
            other = tokenizers.Tokenizer.from_str(self._backend.to_str())
            for token in added:
                if token.content in markers:
                    token.special = False
                    other.add_tokens([token])
            self._with_plain = key, tokenizers.Tokenizer.from_str(other.to_str())  # read anew, for it keeps what was
        return self._with_plain[1]

    def encode_plus(self, text: Any, text_pair: Any = None, **options: Any) -> BatchEncoding:
        return self(text, text_pair, **options)

    def batch_encode_plus(self, batch_text_or_text_pairs: Sequence[Any], **options: Any) -> BatchEncoding:
        return self(list(batch_text_or_text_pairs), **options)

    def encode(self, text: Any, text_pair: Any = None, add_special_tokens: bool = True, **options: Any) -> Any:
        """The token ids alone: a list, or a tensor with return_tensors."""
        return self(text, text_pair, add_special_tokens=add_special_tokens, **options).input_ids

    def tokenize(self, text: str, pair: str | None = None, add_special_tokens: bool = False) -> list[str]:
        """The tokens of a text, as in the vocabulary."""
        return self(text, pair, add_special_tokens=add_special_tokens, verbose=False).tokens()

    def pad(
        self,
        encoded_inputs: Any,
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Pad encodings of this tokenizer to one length, as to collate them in a DataLoader. encoded_inputs: a dict for
        each text, or a dict of lists; a dict of one text is padded alone. Other names (labels) are not padded. Where
        the ids are tensors or arrays, so are the results.

        padding: True or "longest", "max_length", which is as many as the model reads if no max_length is given.
        Raises DataError for rows without input_ids.
        """
        if isinstance(encoded_inputs, list | tuple):
            names = encoded_inputs[0] if encoded_inputs else {}
            for number, each in enumerate(encoded_inputs):
                if lacks := [name for name in names if name not in each]:
                    raise DataError(f"row {number} (from 0) has no {lacks[0]}, which row 0 has; give each row the same")
            encoded_inputs = {name: [each[name] for each in encoded_inputs] for name in names}
        if "input_ids" not in encoded_inputs:
            raise DataError(f"no input_ids to pad, but {', '.join(map(str, encoded_inputs)) or 'nothing'}")
        one = len(encoded_inputs["input_ids"]) > 0 and np.ndim(encoded_inputs["input_ids"][0]) == 0
        if return_tensors is None and len(encoded_inputs["input_ids"]):  # of tensors, tensors
            first = encoded_inputs["input_ids"] if one else encoded_inputs["input_ids"][0]
            kinds = ((torch.Tensor, "pt"), (np.ndarray, "np"))
            return_tensors = next((kind for of, kind in kinds if isinstance(first, of)), None)
        values = {name: [value] if one else value for name, value in encoded_inputs.items()}
        rows = {name: [_as_list(each) for each in value] for name, value in values.items()}
        lengths = [len(ids) for ids in rows["input_ids"]]
        if return_attention_mask is not False and "attention_mask" in self.model_input_names:
            rows.setdefault("attention_mask", [[1] * length for length in lengths])
        _, max_length = self._truncation(False, padding, max_length)
        if self._pads(padding, max_length):
            longest = max(lengths, default=0)
            target = max(longest, max_length) if padding == "max_length" else longest
            target = -(-target // (pad_to_multiple_of or 1)) * (pad_to_multiple_of or 1)
            side = checked_side(padding_side or self.padding_side, "padding_side")
            fills = {"input_ids": self.pad_token_id, "token_type_ids": self.pad_token_type_id}
            for name, fill in (fills | {"attention_mask": 0, "special_tokens_mask": 1}).items():
                for at, values in enumerate(rows.get(name, ())):
                    more = [fill] * (target - lengths[at])
                    rows[name][at] = more + values if side == "left" else values + more
        padded = {name: row for name, (row,) in rows.items()} if one else rows
        return BatchEncoding(padded).convert_to_tensors(return_tensors)

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """1 where an id is a special token's, for transformers' collator of masked language models. Raises ConfigError
        for ids without special tokens; for those call the tokenizer with `return_special_tokens_mask=True`."""
        if not already_has_special_tokens or token_ids_1 is not None:
            raise ConfigError("give already_has_special_tokens=True, or ask the call: return_special_tokens_mask=True")
        special = {*self.all_special_ids}
        return [int(id in special) for id in _as_list(token_ids_0)]

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        return self._backend.num_special_tokens_to_add(pair)

    @property
    def max_len_single_sentence(self) -> int:
        """Tokens of a text that the model reads, without special ones."""
        return self.model_max_length - self.num_special_tokens_to_add()

    @property
    def max_len_sentences_pair(self) -> int:
        """Tokens of two texts together that the model reads, without special ones."""
        return self.model_max_length - self.num_special_tokens_to_add(pair=True)

    def _truncation(
        self, truncation: bool | str | None, padding: bool | str, max_length: int | None
    ) -> tuple[str | None, int | None]:
        """(Strategy of truncation, None for no truncation; the length to truncate or pad to)."""
        if max_length is not None and padding is False and truncation is None:
            truncation = True  # a length alone asks for it
        strategy = {True: "longest_first", False: None, None: None, "do_not_truncate": None}.get(truncation, truncation)
        if strategy not in (None, *STRATEGIES):
            raise ConfigError(f"truncation {truncation!r}: give True, False, or one of {', '.join(STRATEGIES)}")
        if max_length is None and self.model_max_length < NO_LIMIT:
            max_length = self.model_max_length
        return (None if max_length is None else strategy), max_length

    def _set_truncation(
        self,
        backend: tokenizers.Tokenizer,
        strategy: str | None,
        length: int | None,
        stride: int,
        pair: bool,
        specials: bool,
    ) -> None:
        if strategy is None:
            backend.no_truncation()
            return
        room = length - (self.num_special_tokens_to_add(pair) if specials else 0)
        if room < 0:
            raise ConfigError(f"max_length {length} leaves no room beside the special tokens")
        if not 0 <= stride < max(room, 1):
            raise ConfigError(f"stride {stride}: give a value from 0 to below the {room} tokens of a part")
        backend.enable_truncation(length, stride=stride, strategy=strategy, direction=self.truncation_side)

    def _pads(self, padding: bool | str, length: int | None) -> bool:
        """Whether rows are padded. length: for padding="max_length". Raises ConfigError for an unknown `padding`, and
        without a pad_token."""
        if padding not in (True, False, "longest", "max_length", "do_not_pad"):
            raise ConfigError(f"padding {padding!r}: give True, False or 'max_length'")
        if padding in (False, "do_not_pad") or (padding == "max_length" and length is None):
            return False
        if self.pad_token is None:
            raise ConfigError("this tokenizer has no pad_token to pad with")
        return True

    def _set_padding(
        self,
        backend: tokenizers.Tokenizer,
        padding: bool | str,
        length: int | None,
        multiple: int | None,
        side: str | None,
        cut: bool,
    ) -> None:
        if not self._pads(padding, length):
            backend.no_padding()
            return
        if cut and multiple and length is not None and length % multiple:
            raise ConfigError(f"max_length {length} is no multiple of pad_to_multiple_of {multiple}")
        backend.enable_padding(
            direction=checked_side(side or self.padding_side, "padding_side"),
            pad_id=self.pad_token_id,
            pad_type_id=self.pad_token_type_id,
            pad_token=self.pad_token,
            length=length if padding == "max_length" else None,
            pad_to_multiple_of=multiple,
        )

    # -- tokens to text -----------------------------------------------------------------------------

    def decode(
        self, token_ids: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> Any:
        """The text of ids, or the texts of several lists of them."""
        ids = token_ids.tolist() if isinstance(token_ids, torch.Tensor | np.ndarray) else token_ids
        if isinstance(ids, int | np.integer):
            ids = [int(ids)]
        if len(ids) and isinstance(ids[0], list | tuple | torch.Tensor | np.ndarray) and getattr(ids[0], "ndim", 1):
            return self.batch_decode(ids, skip_special_tokens, clean_up_tokenization_spaces)
        text = self._backend.decode([operator.index(id) for id in ids], skip_special_tokens=skip_special_tokens)
        clean = (
            self.clean_up_tokenization_spaces if clean_up_tokenization_spaces is None else clean_up_tokenization_spaces
        )
        return text if not clean or isinstance(self._backend.model, models.BPE) else _without_odd_spaces(text)

    def batch_decode(
        self,
        sequences: Iterable[Any],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:
        sequences = sequences if isinstance(sequences, torch.Tensor | np.ndarray) else list(sequences)
        if not len(sequences) or np.ndim(sequences[0]) == 0:  # as in transformers 5, one text
            sequences = [sequences]
        return [self.decode(ids, skip_special_tokens, clean_up_tokenization_spaces) for ids in sequences]

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """The token of an id, or the tokens of a list of ids; None for an id that has none."""
        if isinstance(ids, int):
            return self._backend.id_to_token(ids)
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        return [self._backend.id_to_token(int(id)) for id in ids if int(id) not in skipped]

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """The id of a token, or the ids of a list of tokens; that of unk_token for an unknown one."""
        if isinstance(tokens, str):
            id = self._backend.token_to_id(tokens)
            return id if id is not None else self._backend.token_to_id(self._roles.get("unk_token", ""))
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        decoder = self._backend.decoder
        return " ".join(tokens) if decoder is None else decoder.decode(tokens)

    # -- the vocabulary -----------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        """cls_token, cls_token_id and so on; None for a role without a token, the id of unk_token for one that the
        vocabulary lacks."""
        role = name.removesuffix("_id")
        if role in ROLES and "_roles" in self.__dict__:
            token = self._roles.get(role)
            return self.convert_tokens_to_ids(token) if token is not None and role != name else token
        raise AttributeError(f"a tokenizer has no {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        """Name the token of a role, by itself or by its id. In a text it is read as before, and it is not added to the
        vocabulary: `add_special_tokens` does both."""
        role = name.removesuffix("_id")
        if name == "extra_special_tokens":
            super().__setattr__(name, [*map(content, _several(value))])
        elif role not in ROLES:
            super().__setattr__(name, value)
        elif value is None:
            self._roles.pop(role, None)
        elif role == name:
            self._roles[role] = content(value)
        elif value < 0 or (token := self._backend.id_to_token(value)) is None:
            raise ConfigError(f"{name} {value}: the tokenizer has no such token")
        else:
            self._roles[role] = token

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary without added tokens; len() is with them."""
        return self._backend.get_vocab_size(with_added_tokens=False)

    def __len__(self) -> int:
        return self._backend.get_vocab_size(with_added_tokens=True)

    def __repr__(self) -> str:
        names = ("vocab_size", "model_max_length", "padding_side", "truncation_side")
        told = [f"{name}={getattr(self, name)!r}" for name in names]
        return f"{type(self).__name__}({', '.join(told)}, special_tokens={self.special_tokens_map})"

    def __bool__(self) -> bool:
        return True

    @property
    def vocab(self) -> dict[str, int]:
        return self.get_vocab()

    @property
    def added_tokens_decoder(self) -> dict[int, tokenizers.AddedToken]:
        """The tokens that were added to the vocabulary, special ones included, by id."""
        return self._backend.get_added_tokens_decoder()

    def get_added_vocab(self) -> dict[str, int]:
        return {token.content: id for id, token in self.added_tokens_decoder.items()}

    def get_vocab(self) -> dict[str, int]:
        return self._backend.get_vocab(with_added_tokens=True)

    @property
    def special_tokens_map(self) -> dict[str, str]:
        return dict(self._roles)

    @property
    def extra_special_tokens_ids(self) -> list[int]:
        return self.convert_tokens_to_ids(self.extra_special_tokens)

    @property
    def additional_special_tokens(self) -> list[str]:
        """The name of `extra_special_tokens` until transformers 4."""
        return self.extra_special_tokens

    @additional_special_tokens.setter
    def additional_special_tokens(self, tokens: Iterable[Any]) -> None:
        self.extra_special_tokens = tokens

    @property
    def all_special_tokens(self) -> list[str]:
        return list(dict.fromkeys([*self._roles.values(), *self.extra_special_tokens]))

    @property
    def all_special_ids(self) -> list[int]:
        return self.convert_tokens_to_ids(self.all_special_tokens)

    @property
    def backend_tokenizer(self) -> tokenizers.Tokenizer:
        return self._backend

    def add_tokens(self, new_tokens: Any, special_tokens: bool = False) -> int:
        """Add one or several tokens, each a string or an AddedToken; returns how many were new. The model then needs
        `resize_token_embeddings(len(tokenizer))`."""
        tokens = [new_tokens] if isinstance(new_tokens, str | tokenizers.AddedToken) else list(new_tokens)
        return self._backend.add_special_tokens(tokens) if special_tokens else self._backend.add_tokens(tokens)

    def add_special_tokens(self, special_tokens_dict: dict[str, Any], replace_extra_special_tokens: bool = True) -> int:
        """Set the token of each role, or extra_special_tokens, and add those that the vocabulary lacks; None removes a
        role. replace_extra_special_tokens: false adds to the ones that there are. Returns how many were new."""
        more = []
        for role, value in special_tokens_dict.items():
            if role in ROLES and value is None:
                self._roles.pop(role, None)
            elif role in ROLES:
                self._roles[role] = content(value)
                more.append(special_token(value))
            elif role in ("additional_special_tokens", "extra_special_tokens"):
                kept = [] if replace_extra_special_tokens else self.extra_special_tokens
                self.extra_special_tokens = list(dict.fromkeys([*kept, *map(content, _several(value))]))
                more += map(special_token, _several(value))
            else:
                raise ConfigError(f"special token {role!r}: give one of {', '.join(ROLES)}")
        return self._backend.add_special_tokens(more)


def _several(tokens: Any) -> Sequence[Any]:
    """Special tokens as a list; None is none. Raises ConfigError for anything else, as a string."""
    if not isinstance(tokens, list | tuple | None):
        raise ConfigError(f"extra_special_tokens {tokens!r}: give a list of tokens")
    return tokens or ()


def _as_batch(text: Any, pair: Any, words: bool) -> tuple[bool, list[Any]]:
    """(Whether `text` is a single text, all texts as a list). As in transformers, an empty pair of one text is none."""
    batch = isinstance(text, list | tuple) and (not words or (len(text) > 0 and isinstance(text[0], list | tuple)))
    if not batch:
        return True, [(text, pair)] if pair else [text]
    if pair is None:
        return False, [tuple(each) if isinstance(each, list) and not words else each for each in text]
    if isinstance(pair, str) or len(pair) != len(text):
        count = "one text" if isinstance(pair, str) else f"{len(pair)} texts"
        raise DataError(f"text_pair has {count}, and text has {len(text)}; pair each text")
    return False, list(zip(text, pair, strict=True))


def _check_texts(texts: list[Any]) -> None:
    """Raises DataError naming the first value that is no text."""
    for number, each in enumerate(texts):
        for part in _strings(each):
            if not isinstance(part, str):
                raise DataError(f"text {number} is {part!r}; give strings")
            if not part.isascii():
                try:
                    part.encode()
                except UnicodeEncodeError as error:
                    raise DataError(
                        f"text {number} holds a lone surrogate, which is not a character; leave it out"
                    ) from error


def _as_list(value: Any) -> Any:
    return value.tolist() if isinstance(value, torch.Tensor | np.ndarray) else value


def _strings(value: Any) -> Iterable[Any]:
    if isinstance(value, list | tuple):
        for each in value:
            yield from _strings(each)
    else:
        yield value


def _without_odd_spaces(text: str) -> str:
    """transformers' clean_up_tokenization."""
    for odd in (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're"):
        text = text.replace(odd, "'" if odd == " ' " else odd[1:])
    return text

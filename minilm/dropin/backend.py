"""The files and config of a tokenizer -> a `tokenizers.Tokenizer`, and the special token of each role, as transformers
would set them up.

A tokenizer_config.json says more than its tokenizer.json: which tokens have a role, how a text is split, and, for the
classes of `CLASSES`, that cls_token and sep_token are put around it.
"""

import logging
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from minilm.checkpoint.model import MAX_CONFIG
from minilm.data.tokenizer_files import check_case, check_ids, lowercases, read_vocab, small_file, wordpiece_of
from minilm.errors import ConfigError, DataError, UserError, did_you_mean, first_line
from minilm.files import read_json

log = logging.getLogger("minilm")
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
BERT_ROLES = dict(zip(ROLES[2:], ("[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"), strict=True))
ROBERTA_ROLES = dict(zip(ROLES, ("<s>", "</s>", "<unk>", "</s>", "<pad>", "<s>", "<mask>"), strict=True))
ENDS = ("cls_token", "sep_token")  # put around a text
SPLITTING = {  # flag -> the attribute of a tokenizer's part that it sets
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
    "add_prefix_space": "add_prefix_space",
}
TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
FLAGS = (*SPLITTING, "split_special_tokens", "clean_up_tokenization_spaces")
TYPES = dict.fromkeys(FLAGS, (bool, "true or false")) | {  # of a tokenizer_config.json's values, also in words
    "model_max_length": (int | float, "a number"),
    "model_input_names": (list, "a list"),
    "extra_special_tokens": (list | dict, "a list or an object"),
    "additional_special_tokens": (list | dict, "a list or an object"),
    "tokenizer_class": (str, "a string"),
}
KNOWN = (*ROLES, *TYPES, "padding_side", "truncation_side")
CLASSES = {  # model_type -> tokenizer class, if no file names one
    "bert": "BertTokenizer",
    "electra": "ElectraTokenizer",
    "distilbert": "DistilBertTokenizer",
    "roberta": "RobertaTokenizer",
}


def open_backend(
    directory: Path, changes: dict[str, Any]
) -> tuple[tokenizers.Tokenizer, dict[str, Any], dict[str, str]]:
    """(the tokenizer of a directory, its tokenizer_config.json with `changes`, the token of each role). Raises
    DataError naming the file, also if the tokenizer is not the model's or lower-cases a cased vocabulary; ConfigError
    for unknown changes, or those that the tokenizer has no part for."""
    for key in changes.keys() - {*KNOWN}:
        raise ConfigError(f"{key}: no argument of a tokenizer{did_you_mean(key, KNOWN)}")
    said = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        if (directory / file).exists():
            said |= read_json(directory / file)
    config = said | changes
    model = directory / "config.json"
    model = read_json(model, most=MAX_CONFIG) if model.exists() else {}
    try:
        check_types(said)
    except DataError as error:
        raise DataError(f"{directory}: tokenizer_config.json: {error}") from error
    check_types(changes)
    for role in ROLES:
        if config.get(role) is not None:
            try:
                content(config[role])
            except DataError as error:
                raise DataError(f"{directory}: {role}: {error}") from error
    backend = _read_backend(directory, config)
    if not (directory / "tokenizer.json").exists():  # a tokenizer.json has them itself
        _add_stated(backend, directory, config)
    if not config.get("tokenizer_class"):  # a WordPiece without a model_type is taken for a BERT's
        kind = model.get("model_type") or ("bert" if isinstance(backend.model, models.WordPiece) else None)
        config["tokenizer_class"] = model.get("tokenizer_class") or CLASSES.get(str(kind))
    try:
        for key in ("padding_side", "truncation_side"):
            checked_side(config.get(key) or "right", key)
        _split_as(backend, said, changes)
        before = roles_of(backend, said)
        asked = any(changes.get(role) is not None and content(changes[role]) != before.get(role) for role in ENDS)
        roles = prepare(backend, config, asked)
    except UserError as error:
        raise type(error)(f"{directory}: {error}") from error
    check_ids(backend, str(directory))
    lower = lowercases(backend)
    check_case(backend.get_vocab(), lower, str(directory))
    plain = isinstance(backend.normalizer, normalizers.BertNormalizer)  # a Sequence may lower-case elsewhere
    told = config.get("do_lower_case", lower)
    if plain and bool(told) != lower:
        raise DataError(
            f"{directory}: tokenizer_config.json says do_lower_case {told}, and tokenizer.json does otherwise; "
            f"give do_lower_case={lower}"
        )
    if isinstance(size := model.get("vocab_size"), int):
        _check_size(backend, directory, size)
    return backend, config, roles


def prepare(backend: tokenizers.Tokenizer, config: dict[str, Any], asked: bool = False) -> dict[str, str]:
    """Make the tokens of all roles special tokens of the tokenizer, and put those of ENDS around a text where the class
    does so: the token of each role. asked: put them there whatever the class. Raises DataError for what is no token,
    ConfigError if there is no place for what is asked."""
    backend.no_truncation()  # a tokenizer.json may set either; here the caller does
    backend.no_padding()
    roles = roles_of(backend, config)
    special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    wanted = [special_token(config.get(role) or token) for role, token in roles.items()]
    wanted += map(special_token, more_tokens(config))
    backend.add_special_tokens([token for token in wanted if token.content not in special])
    known = backend.get_vocab(with_added_tokens=False) if config.get("unk_token") is not None else {}
    if isinstance(backend.model, models.WordPiece) and roles.get("unk_token") in known:
        backend.model.unk_token = roles["unk_token"]
    of_class = str(config.get("tokenizer_class") or "").removesuffix("Fast") in CLASSES.values()
    if asked or (of_class and any(config.get(role) is not None for role in ENDS)):
        _set_ends(backend, roles, asked)
    return roles


def more_tokens(config: dict[str, Any]) -> list[Any]:
    """A config's special tokens without a role."""
    more = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    return list(more.values()) if isinstance(more, dict) else more


def roles_of(backend: tokenizers.Tokenizer, config: dict[str, Any]) -> dict[str, str]:
    """The token of each role: as `config` names it, or the usual one of this kind of vocabulary."""
    usual = BERT_ROLES if isinstance(backend.model, models.WordPiece) else ROBERTA_ROLES
    vocab = backend.get_vocab(with_added_tokens=True)
    usual = {role: token for role, token in usual.items() if token in vocab}
    return usual | {role: content(config[role]) for role in ROLES if config.get(role) is not None}


def _set_ends(backend: tokenizers.Tokenizer, roles: dict[str, str], asked: bool) -> None:
    """Put cls_token and sep_token around each text. Raises ConfigError if that is asked for and there is no place."""
    ends, (cls, sep) = backend.post_processor, map(roles.get, ENDS)
    is_word_piece = isinstance(backend.model, models.WordPiece)
    if is_word_piece and (ends is None or isinstance(ends, processors.TemplateProcessing)):
        ends = processors.BertProcessing(("", 0), ("", 0))
    known = isinstance(ends, processors.BertProcessing | processors.RobertaProcessing) and None not in (cls, sep)
    if known:
        ends.cls, ends.sep = ((token, backend.token_to_id(token)) for token in (cls, sep))
        backend.post_processor = ends
    elif asked:
        raise ConfigError("cls_token, sep_token: the tokenizer puts others around a text; leave them as they are")


def _check_size(backend: tokenizers.Tokenizer, directory: Path, size: int) -> None:
    """Raises DataError for ids that a model of `size` tokens does not have; those of added tokens make a warning."""
    added = {*backend.get_added_tokens_decoder()}
    ids = {*backend.get_vocab(with_added_tokens=False).values(), *({*_specials_of(backend, directory)} - added)}
    if (highest := max(ids, default=0)) >= size:
        raise DataError(
            f"{directory}: tokenizer ids go to {highest}, the model has {size} tokens; use the tokenizer saved with it"
        )
    if (highest := max(added, default=0)) >= size:
        line = "%s: the tokenizer has added ids to %d, the model %d tokens: call resize_token_embeddings(%d)"
        log.warning(line, directory, highest, size, backend.get_vocab_size(with_added_tokens=True))


def _read_backend(path: Path, config: dict[str, Any]) -> tokenizers.Tokenizer:
    """The tokenizer of a file, of a directory's tokenizer.json, or else of its WordPiece or byte-level vocabulary."""
    names = ("tokenizer.json", "vocab.txt", "vocab.json")
    file = path if path.is_file() else next((path / name for name in names if (path / name).exists()), None)
    if file is None:
        raise DataError(f"{path}: no tokenizer in it: none of {', '.join(names)}")
    try:
        if file.suffix == ".txt":
            vocab, unknown = read_vocab(file), content(config.get("unk_token") or BERT_ROLES["unk_token"])
            if unknown not in vocab:
                raise DataError(f"{file}: lacks {unknown}, which stands for what it does not know")
            return wordpiece_of(vocab, config)[0]
        if file.name != "vocab.json":
            return tokenizers.Tokenizer.from_str(small_file(file).read_text(encoding="utf-8"))
        return _byte_level(small_file(file), small_file(file.with_name("merges.txt")), config)
    except (DataError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # no narrower one: tokenizers raises plain Exception, and a panic is not even that
        raise DataError(f"{file}: not a tokenizer's file ({first_line(error)})") from error


def _add_stated(backend: tokenizers.Tokenizer, directory: Path, config: dict[str, Any]) -> None:
    """Add the tokens of added_tokens.json and of a tokenizer_config.json's added_tokens_decoder. Raises DataError for
    a token that would get another id."""
    file, stated = directory / "added_tokens.json", config.get("added_tokens_decoder") or {}
    if not isinstance(stated, dict):
        raise DataError(f"{directory}: tokenizer_config.json: added_tokens_decoder is {stated!r}")
    if file.exists():
        stated = {str(id): token for token, id in read_json(file).items()} | stated
    for id, entry in sorted(stated.items(), key=lambda each: (len(each[0]), each[0])):  # ids in numerical order
        added = token(entry)
        backend.add_tokens([added])
        if str(own := backend.token_to_id(added.content)) != id:
            raise DataError(f"{directory}: token {added.content!r} should get id {id}, but would get {own}")


def _split_as(backend: tokenizers.Tokenizer, said: dict[str, Any], changes: dict[str, Any]) -> None:
    """Set how the tokenizer splits a text: as its tokenizer_config.json (`said`), but for do_lower_case, and `changes`
    say. Raises ConfigError for a change that the tokenizer has no part for."""
    parts = (backend.normalizer, backend.pre_tokenizer, backend.post_processor)
    config = said | {"do_lower_case": None} | changes
    for flag, attribute in SPLITTING.items():
        value, having = config.get(flag), [part for part in parts if hasattr(part, attribute)]
        if flag not in config or (value is None and flag != "strip_accents"):
            continue
        for part in having:
            setattr(part, attribute, value)
        undone = value != lowercases(backend) if flag == "do_lower_case" else value and not having
        if flag == "add_prefix_space" and isinstance(backend.model, models.WordPiece):
            undone = False  # WordPiece takes each word as after a space
        if flag in changes and undone:
            raise ConfigError(f"{flag}={value}: this tokenizer cannot do that; leave it out")


def check_types(config: dict[str, Any]) -> None:
    """Raises DataError naming the key of a tokenizer's config whose value is of a wrong type."""
    for key, (kind, words) in TYPES.items():
        value = config.get(key)
        if value is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
            raise DataError(f"{key} is {value!r}; give {words}")
    limit = config.get("model_max_length")
    if limit is not None and not limit > 0:  # a NaN is not, either
        raise DataError(f"model_max_length is {limit!r}; give a number of tokens")


def _specials_of(backend: tokenizers.Tokenizer, directory: Path) -> list[int]:
    """The ids of a pair of empty texts: the special tokens around texts."""
    try:
        return backend.encode("", "").ids
    except Exception as error:  # no narrower one: tokenizers raises plain Exception
        raise DataError(f"{directory}: its tokenizer encodes nothing ({error})") from error


def _byte_level(vocab: Path, merges: Path, config: dict[str, Any]) -> tokenizers.Tokenizer:
    """RoBERTa's byte-level BPE tokenizer (Radford et al. 2019, sec. 2.2)."""
    words, pairs = models.BPE.read_file(str(vocab), str(merges))
    backend = tokenizers.Tokenizer(models.BPE(words, pairs, continuing_subword_prefix="", end_of_word_suffix=""))
    prefix = bool(config.get("add_prefix_space", False))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    backend.decoder = decoders.ByteLevel()
    roles = ROBERTA_ROLES | {role: content(config[role]) for role in ROLES if config.get(role) is not None}
    mask = tokenizers.AddedToken(roles.pop("mask_token"), lstrip=True, special=True, normalized=False)
    backend.add_special_tokens([*dict.fromkeys(roles.values()), mask])
    sep, cls = ((roles[role], words[roles[role]]) for role in ("sep_token", "cls_token"))
    backend.post_processor = processors.RobertaProcessing(sep, cls, trim_offsets=True, add_prefix_space=prefix)
    return backend


def content(entry: Any) -> str:
    """The text of a token's entry: a string, an object of JSON or an AddedToken."""
    found = entry.get("content") if isinstance(entry, dict) else getattr(entry, "content", entry)
    if not isinstance(found, str) or not found or found.encode(errors="ignore").decode() != found:
        raise DataError(f"{entry!r} is no special token; give a string")
    return found


def token(entry: Any, **flags: bool) -> tokenizers.AddedToken:
    """A token's entry (as in `content`) as an AddedToken. flags: defaults for those that the entry does not set."""
    if isinstance(entry, tokenizers.AddedToken):
        return entry
    if isinstance(entry, dict):
        flags |= {flag: bool(entry[flag]) for flag in TOKEN_FLAGS if flag in entry}
    return tokenizers.AddedToken(content(entry), **flags)


def checked_side(value: Any, name: str) -> str:
    """`value`, if it is left or right. Raises ConfigError."""
    if value not in ("left", "right"):
        raise ConfigError(f"{name} {value!r}: give left or right")
    return value


def special_token(entry: Any) -> tokenizers.AddedToken:
    """A special token's entry as an AddedToken."""
    return token(entry, special=True, normalized=False)

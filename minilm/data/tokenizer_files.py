"""Files of a tokenizer, read, checked and written, and the WordPiece pipeline: shared by the tokenizer of training and
the one with transformers' interface.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from minilm.errors import DataError
from minilm.files import regular_file, write_json, write_whole

PAD, UNK, CLS, SEP, MASK = SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_BYTES = 64 << 20  # of a tokenizer's file, at most
BRACKETED = re.compile(r"[\[<].*[\]>]")  # a token with a part of its own, as [MASK] or <s>
MAX_WORD = 100  # characters; a longer word is [UNK], as in google-research/bert


def small_file(path: Path) -> Path:
    """`regular_file` of at most MAX_BYTES. Raises DataError."""
    try:
        if regular_file(path).stat().st_size > MAX_BYTES:
            raise OSError(f"larger than {MAX_BYTES >> 20} MB, so no tokenizer of such a model")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    return path


def read_vocab(path: Path) -> dict[str, int]:
    """Token -> id of a vocab.txt; the id is the number of the line, from 0. Raises DataError naming file and line."""
    try:
        lines = small_file(path).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text; a vocabulary is one token a line") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    tokens = [line.rstrip("\r") for line in lines]
    twice = next((token for token, count in Counter(tokens).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{path}:{len(tokens) - tokens[::-1].index(twice)}: token {twice!r} appears twice")
    return {token: id for id, token in enumerate(tokens)}


def wordpiece(
    vocab: dict[str, int], lowercase: bool, strip_accents: bool | None = None, chinese: bool = True
) -> tokenizers.Tokenizer:
    """BERT's tokenizer: clean and lower-case, split at spaces and punctuation, longest match first.

    strip_accents: None means as `lowercase`. chinese: each Chinese character is a word.
    """
    backend = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token=UNK, max_input_chars_per_word=MAX_WORD))
    backend.normalizer = normalizers.BertNormalizer(
        lowercase=lowercase, strip_accents=strip_accents, handle_chinese_chars=chinese
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    if vocab:
        backend.add_special_tokens([token for token in SPECIALS if token in vocab])
    if CLS in vocab and SEP in vocab:
        backend.post_processor = processors.BertProcessing((SEP, vocab[SEP]), (CLS, vocab[CLS]))
    return backend


def wordpiece_of(vocab: dict[str, int], config: dict[str, Any]) -> tuple[tokenizers.Tokenizer, bool]:
    """(`wordpiece` as a tokenizer_config.json says, whether it lower-cases). If the config does not say, it lower-cases
    if no token of the vocabulary but those in brackets has capital letters."""
    lowercase = config.get("do_lower_case")
    if lowercase is None:
        lowercase = all(BRACKETED.fullmatch(token) or token == token.lower() for token in vocab)
    strip, chinese = config.get("strip_accents"), config.get("tokenize_chinese_chars", True)
    for key, value in (("do_lower_case", lowercase), ("strip_accents", strip), ("tokenize_chinese_chars", chinese)):
        if not isinstance(value, bool | None):
            raise DataError(f"tokenizer_config.json: {key} is {value!r}; give true or false")
    return wordpiece(vocab, lowercase, strip, bool(chinese)), lowercase


def lowercases(backend: tokenizers.Tokenizer) -> bool:
    """Whether a tokenizer lower-cases, found by trying."""
    return backend.normalizer is not None and backend.normalizer.normalize_str("A") == "a"


def check_case(vocab: Iterable[str], lowercase: bool, where: str) -> None:
    """Raises DataError if a lower-casing tokenizer has too many tokens with capital letters: more than ten, and more
    than a hundredth."""
    words = [token for token in vocab if not BRACKETED.fullmatch(token)]
    lost = [token for token in words if token != token.lower()]
    if lowercase and len(lost) > max(10, len(words) / 100):
        raise DataError(
            f"{where}: lower-cases, and {len(lost):,} of its {len(words):,} tokens, as {lost[0]!r}, have capital "
            f"letters; do_lower_case must be false"
        )


def check_ids(backend: tokenizers.Tokenizer, where: str) -> None:
    """Raises DataError for a tokenizer without tokens, or with two tokens of the same id."""
    vocab = backend.get_vocab(with_added_tokens=True)
    if not vocab or len(set(vocab.values())) < len(vocab):
        raise DataError(f"{where}: the tokenizer has {len(vocab)} tokens and {len(set(vocab.values()))} ids")


def write_tokenizer(directory: Path, backend: tokenizers.Tokenizer, config: dict[str, Any]) -> list[Path]:
    """Write tokenizer.json, a WordPiece's vocab.txt, and a tokenizer_config.json of `config` and the normalisation, as
    transformers reads them: their paths."""
    written = [directory / "tokenizer_config.json", directory / "tokenizer.json"]
    write_whole(directory / "tokenizer.json", backend.to_str(pretty=True))
    if isinstance(backend.model, models.WordPiece):
        size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        tokens = [backend.id_to_token(id) or f"[unused{id}]" for id in range(size)]  # a line is an id
        write_whole(directory / "vocab.txt", "".join(token + "\n" for token in tokens))
        written.append(directory / "vocab.txt")
    normalizer = json.loads(backend.to_str())["normalizer"] or {}
    normalises = {
        "do_lower_case": lowercases(backend),
        "strip_accents": normalizer.get("strip_accents"),
        "tokenize_chinese_chars": normalizer.get("handle_chinese_chars", False),
    }
    write_json(directory / "tokenizer_config.json", config | normalises)
    return written

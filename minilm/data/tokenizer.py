"""WordPiece tokenizer, text <-> token ids: a wrapper of `tokenizers`, which does the work in Rust.

Special tokens written out in a text ("[MASK]", "[SEP]") are text, unless a call says `specials=True`:
a corpus or a labelled file must not be able to speak to the model in its own markup.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Self

import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

from minilm.data.tokenizer_files import (
    CLS,
    MASK,
    MAX_WORD,
    PAD,
    SEP,
    SPECIALS,
    UNK,
    check_case,
    check_ids,
    lowercases,
    read_vocab,
    small_file,
    wordpiece,
    wordpiece_of,
    write_tokenizer,
)
from minilm.errors import DataError
from minilm.files import read_json, regular_file
from minilm.machine.cores import cores

MULTIPLE = 64  # vocabularies of whole tiles make matmuls faster
LETTERS, COVERED = 1000, 0.9995  # of a vocabulary, and the part of a text's letters that it has where a script has more
BERT_CLASSES = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer")  # of transformers; they split texts alike
FEW_CORES = 3  # with more, the library's threads are as fast on whole documents as one that caches words
REMEMBERED = 1 << 20  # letters of cached words, at most
NEW = 0.25  # fraction of new words in a batch above which caching is not worth it
# an ASCII punctuation mark, or what stands between marks and white space; tokens never cross these
WORD = re.compile(r"[!-/:-@\[-`{-~]|[^ \t\n\r!-/:-@\[-`{-~]+")
# normalizers that work letter by letter, or nearly, so that words can be normalised one by one
PLAIN_STEPS = {"BertNormalizer", "Lowercase", "StripAccents", "Strip", "NFC", "NFD", "NFKC", "NFKD", "Sequence"}


@dataclass(frozen=True)
class Encoding:
    """One text or pair as [CLS] a [SEP] or [CLS] a [SEP] b [SEP]. Lists of equal length, one entry a token."""

    input_ids: list[int]
    token_type_ids: list[int]  # 0 for the first text and its specials, 1 for the second
    offsets: list[tuple[int, int]]  # (begin, end) in the characters of the text; (0, 0) for specials
    tokens: list[str]
    cut: tuple[int, int]  # number of tokens that truncation removed from each text


class Tokenizer:
    """A WordPiece vocabulary with its text normalisation."""

    def __init__(self, backend: tokenizers.Tokenizer, lowercase: bool, note: str = "") -> None:
        """note: what was decided automatically, for the console."""
        self.lowercase = lowercase
        self.note = note
        vocab = backend.get_vocab(with_added_tokens=True)
        missing = [token for token in SPECIALS if token not in vocab]
        if missing:
            raise DataError(f"the vocabulary lacks {', '.join(missing)}; add them or use another one")
        self.vocab_size = max(vocab.values()) + 1
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (vocab[t] for t in SPECIALS)
        backend.no_truncation()  # a tokenizer.json may set either; here only callers do
        backend.no_padding()
        backend.encode_special_tokens = True
        self._backend = backend
        self._known: tuple[dict[str, list[int]], int] = {}, 0  # (ids of cached words, their letters in all)

    @cached_property
    def _is_of_words(self) -> bool:
        """Whether a text's ids are those of each WORD in it, one after the other."""
        kinds = (normalizers.BertNormalizer, pre_tokenizers.BertPreTokenizer, models.WordPiece)
        parts = (self._backend.normalizer, self._backend.pre_tokenizer, self._backend.model)
        added = self._backend.get_added_tokens_decoder().values()  # found in texts, unless they are special
        return all(map(isinstance, parts, kinds)) and all(token.special for token in added)

    @cached_property
    def _with_specials(self) -> tokenizers.Tokenizer:
        other = tokenizers.Tokenizer.from_str(self._backend.to_str())
        other.encode_special_tokens = False
        return other

    @property
    def backend(self) -> tokenizers.Tokenizer:
        """A copy of the `tokenizers` object, which recognises special tokens in texts."""
        return tokenizers.Tokenizer.from_str(self._with_specials.to_str())

    @property
    def special_ids(self) -> tuple[int, ...]:
        return (self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id)

    # -- making one ---------------------------------------------------------------------------------

    @classmethod
    def train(cls, documents: Iterable[str], vocab_size: int = 8192, lowercase: bool = True) -> Self:
        """Train a vocabulary of the commonest pieces of `documents` (read twice), its size a multiple of 64.

        If the text does not support `vocab_size` it is smaller, and `note` says so. Raises DataError below 64.
        """
        if vocab_size < MULTIPLE or vocab_size % MULTIPLE:
            raise DataError(f"vocabulary size {vocab_size} is not a multiple of {MULTIPLE} above 0")
        documents = list(documents) if isinstance(documents, Iterator) else documents
        backend = wordpiece({}, lowercase)
        endless = pre_tokenizers.Split(tokenizers.Regex(rf"\A.{{{MAX_WORD + 1},}}\z"), behavior="removed")
        backend.pre_tokenizer = pre_tokenizers.Sequence([backend.pre_tokenizer, endless])  # [UNK] anyway, and slow
        first, inner = _alphabet(documents, backend, vocab_size)
        trainer = trainers.WordPieceTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            initial_alphabet=first,
            limit_alphabet=len(first),
            special_tokens=[*SPECIALS, *("##" + letter for letter in inner)],  # in a fixed order, see `_alphabet`
            show_progress=False,
        )
        backend.train_from_iterator(documents, trainer)
        vocab = sorted(backend.get_vocab(), key=backend.get_vocab().get)
        size = len(vocab) // MULTIPLE * MULTIPLE
        if size < MULTIPLE:
            raise DataError(f"the text supports a vocabulary of {len(vocab)} only; give more text")
        note = f"vocabulary shrunk from {vocab_size:,} to {size:,}, all that the text supports"
        kept = {token: i for i, token in enumerate(vocab[:size])}
        return cls(wordpiece(kept, lowercase), lowercase, note if size < vocab_size else "")

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Load from a directory, a `tokenizer.json` or a `vocab.txt`. Raises DataError naming the file."""
        path = Path(path)
        if path.is_dir():
            file = next((path / n for n in ("tokenizer.json", "vocab.txt") if (path / n).exists()), None)
            if file is None:
                raise DataError(f"{path}: neither tokenizer.json nor vocab.txt in it")
            path = file
        if not path.is_file():
            raise DataError(f"{path}: no such vocabulary file")
        backend, lowercase, note = (_read_json if path.suffix == ".json" else _read_vocab)(path)
        check_ids(backend, str(path))
        check_case(backend.get_vocab(), lowercase, str(path))
        try:
            return cls(backend, lowercase, note)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error

    def with_words(self, file: Path) -> tuple[Self, list[list[int]]]:
        """(this tokenizer with the words of `file` added, ids that each new word was encoded as before). One word per
        line, "##..." for one inside a word; known words are skipped. Raises DataError naming file and line."""
        try:
            lines = file.read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"--add-tokens {file}: cannot be read as UTF-8 text ({error})") from error
        known, new = self._backend.get_vocab(with_added_tokens=True), {}
        for number, line in enumerate(lines, start=1):
            word = line.strip()
            if not word or word in known:
                continue
            inner = word.removeprefix("##")
            if self._words(inner) != [inner] or len(inner) > MAX_WORD:
                raise DataError(
                    f"{file}:{number}: {word!r} is never found in a text; give words of at most {MAX_WORD} characters, "
                    f"{'in lower case, ' if self.lowercase else ''}without spaces and punctuation"
                )
            if word in new:
                raise DataError(f"{file}:{number}: {word!r} appears twice")
            ids = self._backend.encode(inner, add_special_tokens=False).ids
            first = known.get("##" + self.token(ids[0]), ids[0]) if word != inner else ids[0]
            new[word] = [first, *ids[1:]]
        if not new:
            raise DataError(f"--add-tokens {file}: all its words are in the vocabulary")
        spec = json.loads(self._backend.to_str())
        spec["model"]["vocab"] |= {each["content"]: each["id"] for each in spec["added_tokens"]}  # else numbered anew
        spec["model"]["vocab"] |= {word: id for id, word in enumerate(new, start=self.vocab_size)}
        return type(self)(tokenizers.Tokenizer.from_str(json.dumps(spec)), self.lowercase), list(new.values())

    def _words(self, text: str) -> list[str]:
        """The words that a text is split into, before they are split into pieces."""
        normalizer, splitter = self._backend.normalizer, self._backend.pre_tokenizer
        text = normalizer.normalize_str(text) if normalizer else text
        return [word for word, _ in splitter.pre_tokenize_str(text)] if splitter else [text]

    def save(self, directory: Path, model_max_length: int, open_end: bool = False) -> None:
        """Write tokenizer.json, vocab.txt and a tokenizer_config.json that transformers opens.

        open_end: in transformers texts then get no [SEP] at their end, for a model that generates from there.
        """
        backend = self.backend if open_end else self._with_specials
        if open_end:
            specials = [(CLS, self.cls_id), (SEP, self.sep_id)]
            backend.post_processor = processors.TemplateProcessing(f"{CLS} $A", f"{CLS} $A {SEP} $B:1", specials)
        config = {
            "tokenizer_class": "BertTokenizer" if not open_end and _is_plain(backend) else "PreTrainedTokenizerFast",
            "model_max_length": model_max_length,
            "pad_token": PAD,
            "unk_token": UNK,
            "cls_token": CLS,
            "sep_token": SEP,
            "mask_token": MASK,
        }
        write_tokenizer(directory, backend, config)

    def fingerprint(self) -> str:
        """All settings that determine the ids of a text, as one string."""
        return self._backend.to_str()

    # -- using one ----------------------------------------------------------------------------------

    def encode(
        self, text: str, pair: str | None = None, max_length: int | None = None, specials: bool = False
    ) -> Encoding:
        """`text`, or `text` and `pair`, with [CLS] and [SEP]; at most `max_length` tokens in all.

        Truncation takes the last token of whichever text is longer, as transformers' longest_first does,
        and `cut` says how many it took. `specials` reads "[MASK]" and the like as those tokens.
        """
        backend = self._with_specials if specials else self._backend
        texts = [text] if pair is None else [text, pair]
        try:
            "".join(texts).encode()
        except UnicodeEncodeError as error:
            raise DataError("the text holds a lone surrogate, which is not a character; leave it out") from error
        parts = [backend.encode(each, add_special_tokens=False) for each in texts]
        keep = [len(part) for part in parts]
        if max_length is not None:
            room = max_length - len(texts) - 1
            if room < 1:
                raise DataError(f"max_length {max_length} leaves no room for text beside [CLS] and [SEP]")
            keep = [min(keep[0], room)] if pair is None else _longest_first(*keep, room)
        ids, types, offsets, tokens = [self.cls_id], [0], [(0, 0)], [CLS]
        for number, (part, n) in enumerate(zip(parts, keep, strict=True)):
            ids += [*part.ids[:n], self.sep_id]
            types += [number] * (n + 1)
            offsets += [*part.offsets[:n], (0, 0)]
            tokens += [*part.tokens[:n], SEP]
        cut = [len(part) - n for part, n in zip(parts, keep, strict=True)]
        return Encoding(ids, types, offsets, tokens, (cut[0], cut[1] if pair is not None else 0))

    def encode_documents(self, documents: Sequence[str]) -> list[np.ndarray]:
        """Ids without [CLS] and [SEP], one int64 array per document, on all cores. With few cores each word is encoded
        once and cached."""
        if self._is_of_words and cores() <= FEW_CORES:
            texts, (known, letters) = [WORD.findall(document) for document in documents], self._known
            new = [*set().union(*texts).difference(known)]
            if len(new) <= NEW * sum(map(len, texts)):
                encodings = self._backend.encode_batch_fast(new, add_special_tokens=False)
                known = known | {word: encoding.ids for word, encoding in zip(new, encodings, strict=True)}
                letters += sum(map(len, new))
                self._known = (known, letters) if letters <= REMEMBERED else ({}, 0)  # atomic, for other threads
                return [np.array([*chain.from_iterable(map(known.__getitem__, words))], np.int64) for words in texts]
        encodings = self._backend.encode_batch_fast(list(documents), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, without special tokens: pieces joined, in lower case if the vocabulary is."""
        return self._with_specials.decode(list(ids), skip_special_tokens=True)

    def token(self, id: int) -> str:
        """The token with this id; [UNK] if there is none."""
        return self._backend.id_to_token(id) or UNK  # a vocabulary may have gaps in its ids

    def continues(self) -> list[bool]:
        """Of each id, whether its token continues a word."""
        return [self.token(id).startswith("##") for id in range(self.vocab_size)]


def _read_json(path: Path) -> tuple[tokenizers.Tokenizer, bool, str]:
    small_file(path)
    try:
        spec = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"{path}: not a tokenizer file ({error})") from error
    model = spec.get("model") if isinstance(spec, dict) else None
    if not isinstance(model, dict):
        raise DataError(f"{path}: not a tokenizer file (it holds no model)")
    kind = model.get("type", "WordPiece")
    if kind != "WordPiece" or model.get("unk_token", UNK) != UNK:
        raise DataError(f"{path}: a {kind} tokenizer; only WordPiece with {UNK} is supported")
    for step in _normalizers(spec.get("normalizer")):
        if not isinstance(step, str | None) or step not in PLAIN_STEPS:
            raise DataError(f"{path}: normalizer {step!r} is not supported, only {', '.join(sorted(PLAIN_STEPS))}")
    try:
        backend = tokenizers.Tokenizer.from_str(json.dumps(spec))
    except Exception as error:  # no narrower one: tokenizers raises just that
        raise DataError(f"{path}: not a tokenizer file ({error})") from error
    if not isinstance(backend.model, models.WordPiece):
        raise DataError(f"{path}: a {type(backend.model).__name__} tokenizer; only WordPiece is supported")
    file, config = _config_beside(path)
    if isinstance(backend.normalizer, normalizers.BertNormalizer):
        for flag, attribute in (("strip_accents", "strip_accents"), ("tokenize_chinese_chars", "handle_chinese_chars")):
            value = config.get(flag)
            if not isinstance(value, bool | None):
                raise DataError(f"{file}: {flag} is {value!r}; give true or false")
            if flag in config and (value is not None or flag == "strip_accents"):
                setattr(backend.normalizer, attribute, value)
        if config.get("do_lower_case", lowercases(backend)) not in (lowercases(backend), None):
            raise DataError(
                f"{file}: do_lower_case is {config['do_lower_case']}, and {path.name} does otherwise; make them agree"
            )
    return backend, lowercases(backend), ""


def _config_beside(path: Path) -> tuple[Path, dict[str, Any]]:
    """(tokenizer_config.json beside a tokenizer's file, what it holds; nothing if it is not there)."""
    file = path.with_name("tokenizer_config.json")
    if not file.exists():
        return file, {}
    try:
        config = json.loads(regular_file(file).read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"{file}: not JSON ({error})") from error
    if not isinstance(config, dict):
        raise DataError(f"{file}: holds {type(config).__name__}, not an object")
    return file, config


def _is_plain(backend: tokenizers.Tokenizer) -> bool:
    """Whether transformers' BertTokenizer, which makes its own parts, splits texts as this one does."""
    spec = json.loads(backend.to_str())
    normalizer, model = spec["normalizer"] or {}, spec["model"]
    return (
        normalizer.get("type") == "BertNormalizer"
        and normalizer["clean_text"]
        and (spec["pre_tokenizer"] or {}).get("type") == "BertPreTokenizer"
        and (model["continuing_subword_prefix"], model["max_input_chars_per_word"]) == ("##", MAX_WORD)
    )


def _normalizers(spec: Any) -> Iterator[Any]:
    """Types of a normalizer and of those nested in it."""
    if isinstance(spec, dict):
        yield spec.get("type")
        inner = spec.get("normalizers") or ()
        for each in inner if isinstance(inner, list | tuple) else [{"type": inner}]:
            yield from _normalizers(each)


def _read_vocab(path: Path) -> tuple[tokenizers.Tokenizer, bool, str]:
    """(backend, lowercase, note) of a vocab.txt. Normalisation is as tokenizer_config.json beside it says; else
    lower-casing is guessed from the words, and the note says so."""
    vocab = read_vocab(path)
    file, config = _config_beside(path)
    if (kind := str(config.get("tokenizer_class") or BERT_CLASSES[0])).removesuffix("Fast") not in BERT_CLASSES:
        raise DataError(f"{file}: tokenizer_class {kind}; a vocab.txt is read for {', '.join(BERT_CLASSES)} only")
    added = path.with_name("added_tokens.json")
    stated = config.get("added_tokens_decoder") or {}
    beyond = [id for id in stated if str(id).isdigit() and int(id) >= len(vocab)] if isinstance(stated, dict) else []
    if added.exists():
        beyond += [token for token, id in read_json(added).items() if vocab.get(token) != id]
    if beyond:
        where = added if added.exists() else file
        raise DataError(f"{where}: adds {beyond[0]!r} to the vocab.txt; give a tokenizer.json that has it")
    backend, lowercase = wordpiece_of(vocab, config)
    note = f"{path.name}: {'lower-case' if lowercase else 'cased'}, by its words"
    return backend, lowercase, note if config.get("do_lower_case") is None else ""


def _alphabet(documents: Iterable[str], backend: tokenizers.Tokenizer, vocab_size: int) -> tuple[list[str], list[str]]:
    """(the commonest characters, those of them that occur inside words), each sorted: a quarter of the vocabulary, or
    LETTERS, or, of a script that has more, as Chinese, all but the rarest, in up to three quarters of it.

    By default the trainer numbers characters in the order of a hash map, different in every process, and breaks ties
    between merges by these numbers: the same text would give another vocabulary each time.
    """
    characters: Counter[str] = Counter()
    words: Counter[str] = Counter()
    for document in documents:
        text = backend.normalizer.normalize_str(document)
        characters.update(text)
        words.update(text.split())
    common = [c for c in sorted(characters, key=lambda c: (-characters[c], c)) if not c.isspace()]
    inner = {c for word in words for part, _ in backend.pre_tokenizer.pre_tokenize_str(word) for c in part[1:]}
    limit = min(LETTERS, vocab_size // 4)
    if limit == LETTERS and len(common) > limit:
        counts, tokens = [characters[c] for c in common], [1 + (c in inner) for c in common]
        covering = int(np.searchsorted(np.cumsum(counts), COVERED * sum(counts))) + 1
        limit = max(limit, min(covering, int(np.searchsorted(np.cumsum(tokens), 3 * vocab_size // 4))))
    first = sorted(common[:limit])
    return first, sorted(inner.intersection(first))


def _longest_first(a: int, b: int, room: int) -> list[int]:
    """Numbers of tokens to keep of texts with a and b tokens, cutting the longer one; the longer keeps an odd one."""
    if a + b <= room:
        return [a, b]
    short = min(a, b, room // 2)
    return [room - short, short] if a > b else [short, room - short]

"""The number that is explained, and the words of its text: a label's logit, a regression's number, the logits of an
answer's start and end together, the logit of the token that fills a mask."""

from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Encoding
from torch import Tensor

from minilm.batch import Tokens
from minilm.checkpoint.hf import objective_of
from minilm.dropin.inputs import max_tokens
from minilm.dropin.models import PreTrainedModel
from minilm.dropin.tokenizer import BertTokenizer
from minilm.errors import ConfigError, DataError, did_you_mean, some
from minilm.explanation.attribution import Output
from minilm.explanation.shown import Word
from minilm.tasks.classification import Classification, MultiLabel, reads_cls
from minilm.tasks.named import SHOWN
from minilm.tasks.regression import Regression
from minilm.tasks.span import Span
from minilm.tasks.task import Task
from minilm.use.complete import MaskedLM, token_text


class Asked(NamedTuple):
    """A text, and the output that is explained."""

    texts: tuple[str, ...]
    encoding: Encoding
    tokens: Tokens  # one row
    output: Output
    says: str  # the output in words
    read: np.ndarray  # tokens whose states the output is read from
    kept: np.ndarray  # (T,) bool: special tokens and the mask, which are never hidden
    probability: float | None = None  # of what it `says`, if the output is a logit

    def words(self) -> tuple[list[np.ndarray], list[Word]]:
        """(Token indices of each word, the words without values); every token is in one word."""
        encoding, places, words = self.encoding, [], []
        of = [*zip(encoding.sequence_ids, encoding.word_ids, strict=True)]
        for place, (part, word) in enumerate(of):
            if place and word is not None and of[place - 1] == (part, word):
                places[-1].append(place)
                words[-1] = words[-1]._replace(end=encoding.offsets[place][1])
            elif word is None:
                places.append([place])
                words.append(Word(encoding.tokens[place], 0.0, None, 0, 0))
            else:
                places.append([place])
                words.append(Word("", 0.0, part, *encoding.offsets[place]))
        for i, word in enumerate(words):
            if word.part is not None:
                text = self.texts[word.part][word.start : word.end]
                bare = text.strip() or text  # for a byte-level tokenizer the space before a word is part of it
                start = word.start + text.index(bare)
                words[i] = word._replace(text=bare, start=start, end=start + len(bare))
        return [np.array(own) for own in places], words


def asked_of(
    model: PreTrainedModel,
    task: Task,
    tokenizer: BertTokenizer,
    texts: tuple[str, ...],
    target: str | None,
    length: int,
) -> Asked:
    """The output of a tuned model for a text or pair that is explained. length: tokens that are read. Raises
    ConfigError, DataError."""
    if not isinstance(task, Classification | MultiLabel | Regression | Span):
        raise ConfigError(f"--model: is tuned for {task.name}; labels, numbers and answers are explained")
    labels = getattr(task, "labels", ())
    if target is not None and target not in labels:
        known = f"the labels are {some(labels, SHOWN)}" if labels else f"is for labels, not {task.name}"
        raise ConfigError(f"--target {target}: {known}{did_you_mean(target, labels)}")
    encoding, tokens = _encoded(model, tokenizer, texts, length)
    return (_of_span if isinstance(task, Span) else _of_text)(model, task, texts, encoding, tokens, target)


def asked_of_mask(masked: MaskedLM, text: str, target: str | None) -> Asked:
    """The output of a masked language model at the one mask in a text. Raises ConfigError, DataError."""
    model, tokenizer = masked
    if (objective := objective_of(vars(model.config))) != "mlm":
        raise ConfigError(f"--model: a {objective} model does not fill in masks")
    length = max_tokens(model.base_model.encoder.cfg, tokenizer)
    encoding, tokens = _encoded(model, tokenizer, (text,), length, specials=True)
    place = np.flatnonzero(np.array(encoding.ids) == tokenizer.mask_token_id)
    if tokenizer.mask_token_id is None or len(place) != 1:
        raise DataError(
            f"--text: holds {len(place)} {tokenizer.mask_token or 'masks'} within {length} tokens; give one"
        )

    def logits(states: Tensor, tokens: Tokens) -> Tensor:
        return model.logits(states[:, int(place[0])])

    with torch.no_grad():
        told = logits(model.eval().base_model.encoder(tokens), tokens)[0].cpu().double()
    before, _, _ = text.partition(tokenizer.mask_token)
    chosen = int(told.argmax()) if target is None else _token(tokenizer, target, before)
    says = token_text(tokenizer, chosen)
    output = Output(model, lambda states, tokens: logits(states, tokens)[:, chosen])
    kept = np.array(encoding.special_tokens_mask, bool)
    kept[place] = True
    return Asked((text,), encoding, tokens, output, says, place, kept, float(told.softmax(dim=-1)[chosen]))


def _token(tokenizer: BertTokenizer, target: str, before: str) -> int:
    """The id of a token, given as in the vocabulary or as in a text. before: the text before it; after a space, the
    token of a byte-level tokenizer begins with that space. Raises ConfigError for no token."""
    if target and before.endswith(" "):
        ids = tokenizer(f" {target}", add_special_tokens=False).input_ids
        if len(ids) == 1 and tokenizer.decode(ids).strip() == target:
            return ids[0]
    if (known := tokenizer.get_vocab().get(target)) is not None:
        return known
    ids = tokenizer(target, add_special_tokens=False).input_ids
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise ConfigError(f"--target {target}: is no token of the model's vocabulary; give one that is")
    return ids[0]


def _encoded(
    model: PreTrainedModel, tokenizer: BertTokenizer, texts: tuple[str, ...], length: int, specials: bool = False
) -> tuple[Encoding, Tokens]:
    """One text or pair, tokenised as by `tasks.task.tokenized`. specials: a special token that is written out, as
    [MASK], is that token."""
    encoded = tokenizer(
        *([text] for text in texts),
        truncation=True,
        max_length=length,
        split_special_tokens=False if specials else "roles",
        return_token_type_ids=True,
        return_tensors="pt",
    ).to(model.device)
    types = encoded.token_type_ids if "token_type_ids" in tokenizer.model_input_names else None
    if all(encoded.encodings[0].special_tokens_mask):
        raise DataError("--text: holds no word that the model reads; give one")
    return encoded.encodings[0], Tokens.full(encoded.input_ids, token_type_ids=types)


def _of_text(
    model: PreTrainedModel, task: Task, texts: tuple[str, ...], encoding: Encoding, tokens: Tokens, target: str | None
) -> Asked:
    """The logit of a label, or the number of a regression."""
    kept = np.array(encoding.special_tokens_mask, bool)
    read = np.zeros(1, np.int64) if reads_cls(model) else np.arange(len(kept))

    def logits(states: Tensor, tokens: Tokens) -> Tensor:
        return model.outputs_of(states, tokens)["logits"]

    number, says, chance = 0, "the number", None
    if not isinstance(task, Regression):
        with torch.no_grad():
            told = logits(model.base_model.encoder(tokens), tokens).cpu().double()
        number = int(told.argmax()) if target is None else task.labels.index(target)
        says, chance = task.labels[number], float(task.probabilities(told.numpy())[0, number])
    output = Output(model, lambda states, tokens: logits(states, tokens)[:, number])
    return Asked(texts, encoding, tokens, output, says, read, kept, chance)


def _of_span(
    model: PreTrainedModel, task: Span, texts: tuple[str, ...], encoding: Encoding, tokens: Tokens, target: None
) -> Asked:
    """The logits of an answer's start and end together, as chosen by `Span.best_spans`; of [CLS] for no answer."""
    if encoding.overflowing:
        raise DataError(f"--pair: question and context are longer than {len(encoding.ids)} tokens; shorten them")

    def logits(states: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:
        found = model.outputs_of(states, tokens)
        return found["start_logits"], found["end_logits"]

    with torch.no_grad():
        start, end = (own[0].cpu().double().numpy() for own in logits(model.base_model.encoder(tokens), tokens))
    of_context = np.array([part == 1 for part in encoding.sequence_ids])
    spans = np.tri(len(start), dtype=bool).T & np.tri(len(start), k=task.max_answer - 1, dtype=bool)
    total = np.where(spans & of_context[:, None] & of_context, start[:, None] + end, -np.inf)
    first, last = (int(at) for at in np.unravel_index(total.argmax(), total.shape))
    says = texts[1][encoding.offsets[first][0] : encoding.offsets[last][1]].strip()
    if not of_context.any() or (task.threshold is not None and start[0] + end[0] - total.max() > task.threshold):
        first, last, says = 0, 0, ""

    def span(states: Tensor, tokens: Tokens) -> Tensor:
        of_start, of_end = logits(states, tokens)
        return of_start[:, first] + of_end[:, last]

    kept = np.array(encoding.special_tokens_mask, bool)
    return Asked(texts, encoding, tokens, Output(model, span), says, np.array([first, last]), kept)

"""Tagging: a tag for each word of a sentence, as in named-entity recognition.

Shape letters: M tokens of a batch, C tags.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from torch import Tensor

from minilm.batch import IGNORE
from minilm.dropin.models import PreTrainedModel
from minilm.dropin.tokenizer import BertTokenizer
from minilm.errors import DataError
from minilm.labelled.examples import Tagged
from minilm.labelled.tables import Table
from minilm.metrics.intervals import weighted_counts
from minilm.metrics.scores import Tags, entity_counts, entity_scores, per_type
from minilm.tasks.baselines import Scores, commonest_tags
from minilm.tasks.predictions import tags_text
from minilm.tasks.task import TOKENIZED, Features, Predictions, Task, TaskBatch, check_strings
from minilm.train.losses import cross_entropy_sum


@dataclass(frozen=True)
class Tagging(Task):
    """A tag for each word, predicted at the first of its tokens (Devlin et al. 2018, sec. 5.3)."""

    name: ClassVar[str] = "tagging"
    kind: ClassVar[str] = "token"
    per_token: ClassVar[bool] = True
    constant_says: ClassVar[str] = "always O"
    endings: ClassVar[tuple[str, ...]] = (".conll", ".tsv", ".jsonl")
    labels: tuple[str, ...]  # in the order of the model's outputs

    @classmethod
    def of(cls, examples: Sequence[Tagged]) -> Self:
        return cls(("O", *sorted({tag for each in examples for tag in each.tags} - {"O"})))

    def config(self) -> dict[str, Any]:
        return {"id2label": dict(enumerate(self.labels))}

    def features(self, examples: Sequence[Tagged], tokenizer: BertTokenizer, length: int) -> Features:
        """Features of whole words; a sentence of more than `length` tokens makes several. A single word that is longer
        is cut to its first tokens. cut: sentences that are not read in one piece."""
        number = {label: i for i, label in enumerate(self.labels)}
        ids, begins, target, example, cut = [], [], [], [], 0
        for row, (all_ids, word) in enumerate(_encoded(examples, tokenizer)):
            tags = examples[row].tags or (None,) * len(examples[row].words)
            known = np.array([number.get(tag, IGNORE) for tag in tags], np.int64)
            first = np.diff(word, prepend=-1) > 0  # a special token's word is -1
            starts = np.where(first, word, -1)
            targets = np.where(first, known[word], IGNORE)
            cut += len(all_ids) > length
            for places in _parts(word, length):
                ids.append(all_ids[places])
                begins.append(starts[places])
                target.append(targets[places])
                example.append(row)
        flat = np.concatenate(ids)
        return Features(
            flat,
            np.zeros(len(flat), np.int8),
            np.cumsum([0, *map(len, ids)]),
            np.concatenate(target),
            np.array(example, np.int64),
            cut,
            np.concatenate(begins),
        )

    def outputs(self, model: PreTrainedModel, batch: TaskBatch) -> Tensor:
        """Logits (M, C)."""
        states = model.base_model.encoder(batch.tokens)
        return model.outputs_of(states.flatten(0, 1)[batch.where], batch.tokens)["logits"]

    def loss_of(self, outputs: Tensor, batch: TaskBatch) -> tuple[Tensor, Tensor]:
        return cross_entropy_sum(outputs, batch.target)

    def score(self, predictions: Predictions) -> dict[str, float]:
        return tag_scores([each.tags for each in predictions.examples], self.decode(predictions))

    def records_of(self, examples: Sequence[Tagged], decoded: Tags) -> np.ndarray:
        """(n, 5): numbers of right, predicted and true entities, of right tags, and of all tags."""
        rows = []
        for each, tags in zip(examples, decoded, strict=True):
            entities = (count.total() for count in entity_counts([each.tags], [tags]))
            right = sum(a == b for a, b in zip(tags, each.tags, strict=True))
            rows.append((*entities, right, len(tags)))
        return np.array(rows, np.float64)

    def constant(self, examples: Sequence[Tagged]) -> list[list[str]]:
        """O for every word."""
        return [["O"] * len(each.words) for each in examples]

    def weighted(self, records: np.ndarray, weights: np.ndarray) -> Mapping[str, np.ndarray]:
        right, tags = (weights @ records[:, 3:]).T
        return weighted_counts(records[:, :3], weights) | {"accuracy": right / tags}

    def details(self, predictions: Predictions) -> dict[str, Any]:
        """Scores of each type of entity."""
        rows = per_type([each.tags for each in predictions.examples], self.decode(predictions))
        return {"types": [row._asdict() for row in rows]}

    def baselines(self, train: Sequence[Tagged], judged: Sequence[Tagged]) -> Scores:
        return {"commonest_tag": tag_scores([each.tags for each in judged], commonest_tags(train, judged))}

    def file_text(
        self, ending: str, source: Table | Path | None, predictions: Predictions
    ) -> tuple[str, dict[str, int]]:
        text = tags_text(ending, source, predictions.examples, self.decode(predictions))
        return text, {"words_without_token": without_token(predictions.features, predictions.examples)}

    def asked(self, texts: Sequence[Any], pairs: Sequence[str] | None = None) -> list[Tagged]:
        if odd := [number for number, words in enumerate(texts) if not isinstance(words, Iterable)]:
            raise DataError(f"sentence {odd[0]} (from 0) is {texts[odd[0]]!r}; give a string, or a list of words")
        sentences = [tuple(words.split() if isinstance(words, str) else words) for words in texts]
        for number, words in enumerate(sentences):
            check_strings(f"sentence {number} (from 0): word", words)
        if () in sentences:
            raise DataError(f"sentence {sentences.index(())} (from 0) has no word; leave it out")
        return [Tagged(words) for words in sentences]

    def decode(self, predictions: Predictions) -> list[list[str]]:
        """The likeliest tag of each word; O for a word without a token."""
        outputs, features, examples = predictions
        sizes = [len(each.words) for each in examples]
        ends = np.cumsum(sizes)
        begins = features.word >= 0
        example = np.repeat(features.example, features.lengths)[begins]
        tags = np.full(ends[-1], "O", object)
        tags[(ends - sizes)[example] + features.word[begins]] = np.array(self.labels, object)[
            outputs[begins].argmax(axis=1)
        ]
        return [each.tolist() for each in np.split(tags, ends[:-1])]


def tag_scores(gold: Tags, predicted: Tags) -> dict[str, float]:
    """f1, precision and recall of entities, and accuracy of tags."""
    right = [a == b for a, b in zip(chain.from_iterable(gold), chain.from_iterable(predicted), strict=True)]
    return entity_scores(gold, predicted) | {"accuracy": float(np.mean(right))}


def without_token(features: Features, examples: Sequence[Tagged]) -> int:
    """Number of words that the tokenizer drops, as those of control characters."""
    return sum(len(each.words) for each in examples) - int((features.word >= 0).sum())


def _encoded(examples: Sequence[Tagged], tokenizer: BertTokenizer) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Token ids of each sentence, (tokens,) int32, with special tokens; and the word of each token, (tokens,) int32, -1
    for special tokens. A special token with a role that is written out in a word is plain text.

    A byte-level vocabulary knows the beginning of a word by the space before it; WordPiece drops the space.
    """
    for at in range(0, len(examples), TOKENIZED):
        sentences = [each.words for each in examples[at : at + TOKENIZED]]
        spaced = [[first, *(f" {word}" for word in rest)] for first, *rest in sentences]
        encoded = tokenizer(spaced, is_split_into_words=True, split_special_tokens="roles", verbose=False)
        for each in encoded.encodings:
            words = [-1 if word is None else word for word in each.word_ids]
            yield np.array(each.ids, np.int32), np.array(words, np.int32)


def _parts(word: np.ndarray, length: int) -> Iterator[list[int]]:
    """The features of a sentence, as token indices: as many whole words as fit, between its special tokens. A sentence
    without tokens makes one feature, too."""
    of_words = np.flatnonzero(word >= 0)
    begin, end = (of_words[0], of_words[-1] + 1) if len(of_words) else (len(word), len(word))
    before, after = [*range(begin)], [*range(end, len(word))]
    room, part = length - len(before) - len(after), []
    for start, stop in pairwise([*(np.flatnonzero(np.diff(word[begin:end], prepend=-1)) + begin), end]):
        places = range(start, min(stop, start + room))
        if len(part) + len(places) > room:
            yield before + part + after
            part = []
        part += places
    yield before + part + after

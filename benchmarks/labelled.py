"""The labelled sets that fine-tuning is measured on, read from files as their makers publish them."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from minilm.data.documents import documents_of
from minilm.labelled.examples import Example, Tagged, read_texts
from minilm.labelled.spans import read_questions
from minilm.labelled.splits import split_dev
from minilm.labelled.tables import read_table
from minilm.tasks.named import TaskName

HELD_OUT, SEED = 0.1, 0  # of a set that has no dev part; of every split, so that all seeds and both sides share it
WORDS = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]")
SHORTEST, LONGEST = 5, 60  # words of a sentence
SENTENCES = 5000, 500, 1000  # of Wikipedia: to learn from, to choose by, to test on


class Splits(NamedTuple):
    """Examples to learn from, to choose by, to test on; and those of another set, that are tested on, too."""

    train: list[Any]
    dev: list[Any]
    test: list[Any]
    unseen: Sequence[Any] = ()


@dataclass(frozen=True)
class LabelledSet:
    """A set, and at which settings both sides learn it."""

    task: TaskName
    read: Callable[[Path], Splits]
    metric: str  # that is compared
    epochs: float = 3.0
    lr: float = 5e-5
    length: int = 128  # tokens of an example, at most


def sst2(directory: Path) -> Splits:
    """Movie reviews by sentence (Socher et al. 2013): train.tsv, dev.tsv, test.tsv of label and text."""
    names = ("train", "dev", "test")
    return Splits(*(read_texts(read_table(directory / f"{name}.tsv"), "classification").examples for name in names))


def sst2_phrases(directory: Path) -> Splits:
    """The same by phrase, as GLUE ships it (Wang et al. 2018): glue_train.tsv.xz, and glue_dev.tsv for a test."""
    names = ("glue_train.tsv.xz", "glue_dev.tsv")
    train, test = (read_texts(read_table(directory / name), "classification").examples for name in names)
    return Splits(*split_dev(train, 1000 / len(train), SEED), test)


def sms(directory: Path) -> Splits:
    """Short messages (Almeida et al. 2011): SMSSpamCollection. A fifth of each label is the test."""
    text = (directory / "SMSSpamCollection").read_text(encoding="utf-8")
    rows = [line.split("\t", 1) for line in text.split("\n") if line]
    examples = [Example(text.strip(), label=label) for label, text in rows]
    rest, test = split_dev(examples, 0.2, SEED)
    return Splits(*split_dev(rest, HELD_OUT, SEED), test)


def stsb(directory: Path) -> Splits:
    """How alike two sentences are, from 0 to 5 (Cer et al. 2017): sts-train.csv, sts-dev.csv, sts-test.csv."""
    tables = (read_table(directory / f"sts-{name}.csv", header=False) for name in ("train", "dev", "test"))
    return Splits(*(read_texts(table, "regression", 6, 7, 5).examples for table in tables))


def subjqa(directory: Path) -> Splits:
    """Questions on reviews, most of them without an answer (Bjerva et al. 2020), in SQuAD 2.0's layout. Unseen:
    questions on Wikipedia's paragraphs (Artetxe et al. 2020), all of them with an answer."""
    names = ("subjqa_train.json.xz", "subjqa_dev.json.xz", "subjqa_test.json.xz", "xquad.en.json")
    return Splits(*(read_questions(directory / name).examples for name in names))


def capitals(directory: Path) -> Splits:
    """Which words of lower-cased sentences began with a capital, in runs: made of enwiki-valid.txt.xz."""
    wanted = list(islice(_sentences(directory / "enwiki-valid.txt.xz"), sum(SENTENCES)))
    bounds = (0, SENTENCES[0], sum(SENTENCES[:2]), sum(SENTENCES))
    return Splits(*(wanted[a:b] for a, b in pairwise(bounds)))


def _sentences(file: Path) -> Iterator[Tagged]:
    for document in documents_of(file, "text"):
        for sentence in re.split(r"(?<=[.!?])\s+|\n", document):
            words = WORDS.findall(sentence)
            if SHORTEST <= len(words) <= LONGEST and words[-1] in ".!?":
                tags, inside = [], False
                for word in words:
                    capital = word[0].isupper()
                    tags.append(("I-CAP" if inside else "B-CAP") if capital else "O")
                    inside = capital
                yield Tagged(tuple(word.lower() for word in words), tuple(tags))


SETS = {
    "sst2": LabelledSet("classification", sst2, "accuracy"),
    "sst2-phrases": LabelledSet("classification", sst2_phrases, "accuracy", epochs=2, length=64),
    "sms": LabelledSet("classification", sms, "f1", epochs=5),
    "stsb": LabelledSet("regression", stsb, "spearman", epochs=4),
    "stsb-vectors": LabelledSet("similarity", stsb, "spearman", epochs=4),
    "subjqa": LabelledSet("span", subjqa, "f1_answerable", epochs=2, length=384),
    "capitals": LabelledSet("tagging", capitals, "f1", lr=1e-4),
}

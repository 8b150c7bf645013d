"""The examples of a run: the part held out, and what is said about them."""

from collections.abc import Sequence
from dataclasses import replace

from minilm.labelled.examples import Data
from minilm.labelled.splits import check_labels, overlap, share_a_text, split_by_text
from minilm.train.log import say

DEV = 0.1  # of the rows are held out where no dev examples are given
SHOWN = 5  # left-out rows that are named


def held_out(data: Data, seed: int, groups: Sequence[str] | None = None) -> tuple[Data, Data]:
    """Hold out a tenth of the examples, or what comes near it in whole groups, and say so: (the rest, the part)."""
    rest, dev = split_by_text(data.examples, DEV, seed, groups)
    data, dev = replace(data, examples=rest), replace(data, examples=dev, left_out=())
    total = len(rest) + len(dev.examples)
    say(f"no dev examples: {len(dev.examples):,} of the {total:,} training examples are held out as dev")
    return data, dev


def say_compared(name: str, train: Data, other: Data) -> None:
    """Say which labels of `other` training lacks, and how many of its texts are in training, too. Raises DataError."""
    for note in check_labels(train.examples, other.examples):
        say(f"{name}: {note}")
    say_overlap(name, other, "training", train)


def say_overlap(name: str, other: Data, first_name: str, first: Data) -> None:
    """Say how many texts of `other` are in `first`, too."""
    if (again := overlap(first.examples, other.examples)).count:
        say(f"{name}: {again.count:,} texts are also in the {first_name} examples; the first {again.first[0][0]}")
    if alike := share_a_text(first.examples, other.examples):
        say(f"{name}: {alike:,} pairs share one of their texts with the {first_name} examples")


def say_notes(name: str, data: Data, *more: str) -> None:
    """Say what was inferred about the data, and `more`; and which rows are left out."""
    for note in (*data.notes, *more):
        say(f"{name}: {note}")
    for why in data.left_out[:SHOWN]:
        say(f"left out: {why}")
    if len(data.left_out) > SHOWN:
        say(f"left out: {len(data.left_out) - SHOWN:,} more of {name}")

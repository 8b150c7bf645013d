"""Packed batches of labelled examples, step by step."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from minilm.data.draws import order
from minilm.errors import some
from minilm.finetuning.settings import EPOCHS, FEWEST_STEPS, Tuning
from minilm.tasks.task import Features, TaskBatch, batch_of

ROW, OF_ROW = 128, 64  # tokens


def row_length_of(features: Features, length: int) -> int:
    """Tokens of the rows in which a GPU's batches are packed, the same for all: enough for the longest feature, at most
    `length`, and not so few that much of them would stay empty."""
    return min(length, max(ROW, -(-int(features.lengths.max()) // OF_ROW) * OF_ROW))


class ExampleBatches:
    """Packed batches of features, by step. Every epoch has another order, and a step may span two epochs."""

    def __init__(
        self,
        features: Features,
        tuning: Tuning,
        row_length: int | None = None,
        pinned: bool = False,
        where: Callable[[int], str] = str,  # index of an example -> where it is from, for messages
        few_sizes: bool = False,
    ) -> None:
        self.features, self.tuning = features, tuning
        self.row_length, self.pinned, self.where, self.few_sizes = row_length, pinned, where, few_sizes
        begins = features.units[:-1]
        self.size_of = np.add.reduceat(features.lengths, begins)  # tokens of each unit
        of_epoch = len(begins) / tuning.batch_size
        usual = max(FEWEST_STEPS, math.ceil(EPOCHS * of_epoch))
        self.steps = tuning.steps or (max(1, math.ceil(tuning.epochs * of_epoch)) if tuning.epochs else usual)

    def epochs(self) -> float:
        return self.steps * self.tuning.batch_size / len(self.size_of)

    def work(self, step: int) -> int:
        """The work of all steps before this one, in any unit: every step counts alike."""
        return step

    def order(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Epoch and unit of each example of a step; (batch_size,) int64 each."""
        size = self.tuning.batch_size
        return order(self.tuning.seed, step * size, (step + 1) * size, len(self.size_of))

    def read_in(self, step: int) -> str:
        """The examples of a step, for a message."""
        return f"examples {some(self.named(self.order(step)[1]), 8)}"

    def named(self, rows: np.ndarray) -> list[str]:
        """Names of the examples of these units, for a message."""
        return [self.where(example) for example in self.features.example[self.features.units[rows]].tolist()]

    def micro_batches(self, step: int) -> list[TaskBatch]:
        """The micro-batches of a step: a pure function of `step`."""
        _, units = self.order(step)
        most = self.tuning.tokens_at_once
        fewest = min(len(units), math.ceil(int(self.size_of[units].sum()) / most))
        for count in range(fewest, len(units) + 1):
            parts = np.array_split(units, count)
            if all(len(part) < 2 or self.size_of[part].sum() <= most for part in parts):
                break
        rows = [self.features.of_units(part) for part in parts if len(part)]
        made = [batch_of(self.features, part, self.row_length, self.few_sizes)[0] for part in rows]
        return [each.pin_memory() for each in made] if self.pinned else made

    def within(self, tokens: int) -> "ExampleBatches":
        """The same steps in micro-batches of at most `tokens` tokens, or of one unit."""
        fewer = replace(self.tuning, tokens_at_once=max(1, min(tokens, self.tuning.tokens_at_once)))
        return ExampleBatches(self.features, fewer, self.row_length, self.pinned, self.where, self.few_sizes)

"""Settings of fine-tuning, and its batches."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real

import numpy as np
from torch import nn

from minilm.data.ahead import made_ahead
from minilm.data.draws import order
from minilm.dropin.inputs import max_tokens
from minilm.dropin.models import PreTrainedModel
from minilm.dropin.tokenizer import BertTokenizer
from minilm.errors import ConfigError, some
from minilm.tasks.task import Features, TaskBatch, batch_of

RATES = ((10e6, 2e-4), (60e6, 5e-5), (200e6, 3e-5), (math.inf, 2e-5))  # parameters below -> peak learning rate
FASTER_LORA = 10  # times the learning rate of full fine-tuning
LONGEST = 512  # tokens of an example, unless more are asked for
EPOCHS, FEWEST_STEPS = 3, 200  # defaults: number of epochs, but at least that many steps (Mosbach et al. 2021)

RANGES = {  # of a Tuning's fields, both ends included
    "epochs": (1e-3, 1e4),
    "steps": (1, 10**9),
    "batch_size": (1, 10**5),
    "lr": (1e-9, 1.0),
    "weight_decay": (0.0, 10.0),
    "warmup_frac": (0.0, 0.9),
    "length": (4, 2**16),
    "evaluate_every": (1, 10**9),
    "patience": (1, 10**6),
    "max_norm": (1e-9, 1e9),
    "frozen_layers": (0, 1000),
    "layer_decay": (0.1, 1.0),
    "lora_rank": (0, 1024),
    "lora_alpha": (1e-3, 1e4),
    "tokens_at_once": (1, 1 << 24),
    "seed": (0, 2**58),
}


@dataclass(frozen=True)
class Tuning:
    """Settings of fine-tuning. Raises ConfigError for a value outside RANGES."""

    epochs: float | None = None  # None: 3, or for few examples as many as make 200 steps
    steps: int | None = None  # instead of epochs
    batch_size: int = 32  # examples of a step
    lr: float | None = None  # peak; None: by the model's size
    weight_decay: float = 0.01  # of matrices and embedding tables, decoupled
    warmup_frac: float = 0.1  # of the steps; then the rate falls linearly to 0
    max_norm: float = 1.0
    length: int | None = None  # tokens read of an example; None: as many as the model reads, and at most LONGEST
    evaluate_every: int | None = None  # steps; None: an epoch, or a twentieth of the run where that is longer
    patience: int = 3  # evaluations without a better score or lower loss that end the run; the best model is kept
    frozen_layers: int = 0  # the embedding and this many first layers are not trained; 0: all are
    layer_decay: float = 1.0  # factor of the learning rate from a layer to the one below (Clark et al. 2020, app. B)
    lora_rank: int = 0  # of the LoRA matrices trained in place of the encoder (Hu et al. 2021); 0: the encoder itself
    lora_alpha: float = 16.0  # LoRA adds alpha / rank times the product of its matrices
    gradient_checkpointing: bool = False
    tokens_at_once: int = 1 << 14  # of a micro-batch, at most
    seed: int = 0  # of the head, the order of examples, and dropout

    def __post_init__(self) -> None:
        types = {field.name: field.type for field in fields(self)}
        for name, (low, high) in RANGES.items():
            value, number = getattr(self, name), Integral if types[name] in (int, int | None) else Real
            if value is None and getattr(Tuning, name) is None:
                continue
            if not isinstance(value, number) or isinstance(value, bool) or not low <= value <= high:
                what = "whole number" if number is Integral else "value"
                raise ConfigError(f"{name} is {value!r}; give a {what} from {low:g} to {high:g}")
            plain = int if number is Integral else float  # a scalar of numpy is no JSON
            object.__setattr__(self, name, plain(value))
        if self.lora_alpha != Tuning.lora_alpha and not self.lora_rank:
            raise ConfigError(f"--lora-alpha {self.lora_alpha:g}: is for LoRA; give --lora-rank, too")

    def rate(self, model: nn.Module) -> float:
        """The peak learning rate."""
        parameters = sum(each.numel() for each in model.parameters())
        usual = next(rate for below, rate in RATES if parameters < below)
        return self.lr or usual * (FASTER_LORA if self.lora_rank else 1)


def length_of(tuning: Tuning, model: PreTrainedModel, tokenizer: BertTokenizer) -> int:
    """Tokens that are read of an example, at most. Raises ConfigError if --length is more than the model reads."""
    limit = max_tokens(model.base_model.encoder.cfg, tokenizer)
    if tuning.length is not None and tuning.length > limit:
        raise ConfigError(f"--length {tuning.length}: the model reads {limit} tokens")
    usual = model.pooling.max_length if model.pooling else None
    return tuning.length or min(limit, LONGEST, usual or LONGEST)


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

    def steps_from(self, step: int) -> Iterator[list[TaskBatch]]:
        """The micro-batches of `step` and of all steps after it; endless."""
        return made_ahead(self, step)

    def within(self, tokens: int) -> "ExampleBatches":
        """The same steps in micro-batches of at most `tokens` tokens, or of one unit."""
        fewer = replace(self.tuning, tokens_at_once=max(1, min(tokens, self.tuning.tokens_at_once)))
        return ExampleBatches(self.features, fewer, self.row_length, self.pinned, self.where, self.few_sizes)

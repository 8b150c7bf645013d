"""Settings of fine-tuning."""

import math
from dataclasses import dataclass, fields
from numbers import Integral, Real

from torch import nn

from minilm.dropin.inputs import max_tokens
from minilm.dropin.models import PreTrainedModel
from minilm.dropin.tokenizer import BertTokenizer
from minilm.errors import ConfigError

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

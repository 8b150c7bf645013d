"""Recipes: named settings of pretraining runs. A flag of `train.py` overrides the field of its name."""

import math
from dataclasses import dataclass
from typing import Literal

from minilm.data.loader import Stretch
from minilm.data.packing import Packing, PairTask
from minilm.errors import ConfigError
from minilm.model.encoder import EncoderConfig, bert_config, modern_config
from minilm.train.optim import OptimizerName, ScheduleName

RecipeName = Literal["quick", "bert-mini", "bert-base", "modern-base", "cramming", "continue"]
NOMINAL_STEPS = 10**6  # stands for a length that is not known yet: enough for every stretch to have steps
SHORT = 4  # rows of the first stretch are this many times shorter


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """An architecture and how to pretrain it."""

    architecture: Literal["bert", "modern"] | None  # None, with sizes of 0: those of --model
    hidden_size: int = 0
    num_hidden_layers: int = 0
    num_attention_heads: int = 0
    intermediate_size: int = 0
    length: int  # tokens per row
    batch_size: int  # rows of a micro-batch, at most
    accumulation: int = 1  # micro-batches per step, in all processes together
    short_frac: float = 0.0  # fraction of the steps, at the start, with rows a quarter as long
    short_seq_prob: float = 0.0  # approximate fraction of the text that mlm reads in short pieces
    batch_warmup_frac: float = 0.0  # fraction of the steps over which the micro-batches per step double from 1 up
    packing: Packing = "stream"
    pairs: PairTask | None = None  # besides mlm, a pair of texts per row: does the second follow, are they in order?
    vocab_size: int = 8192
    lowercase: bool = True
    mask_rate: float = 0.15  # fraction of the tokens to predict, for mlm; evaluation always uses 0.15
    mask_rate_end: float | None = None  # the mask rate at the last step, approached linearly; None: constant
    whole_words: bool = False
    dropout: float = 0.0
    optimizer: OptimizerName = "adamw"
    lr: float = 1e-3  # the peak
    weight_decay: float = 0.01
    beta2: float = 0.999
    eps: float = 1e-6
    schedule: ScheduleName = "linear"
    warmup_frac: float = 0.05  # fraction of the steps
    decay_frac: float = 0.2  # fraction of the steps, at the end, for wsd (Haegele et al. 2024)
    max_norm: float = 1.0  # of the gradient; larger ones are clipped
    output_scale: float = 1.0  # scales the initial matrices that write to the residual stream; 0: identity layers
    word_std: float | None = None  # standard deviation of the initial word embeddings; None: 0.02, as of all else
    sinusoids: float | None = None  # root mean square of the initial position table, sinusoids; None: random, as BERT's
    gradient_checkpointing: bool = False  # recompute each layer in the backward pass, to save memory
    minutes: float | None = None  # of training; this or `steps` is the budget unless a flag gives one
    steps: int | None = None

    def encoder_config(self, vocab_size: int) -> EncoderConfig:
        """Shape of the encoder for `vocab_size` tokens, which may be fewer than the recipe asks for."""
        make, positions = bert_config, self.length  # more rows of the position table would never be trained
        if self.architecture == "modern":
            make, positions = modern_config, max(1024, self.length)
        return make(
            vocab_size=vocab_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=self.intermediate_size,
            max_position_embeddings=positions,
            dropout=self.dropout,
        )

    @property
    def lengths(self) -> set[int]:
        """All row lengths that occur in the run, in tokens."""
        return {self.length, self.length // SHORT} if self.short_frac else {self.length}

    def stretches(self, steps: int) -> list[Stretch]:
        """The run in parts of constant row length and batch size. A step has as many short rows as it would have long
        ones. Raises ConfigError if the length cannot be divided by SHORT."""
        if self.short_frac and self.length % SHORT:
            raise ConfigError(f"--length {self.length}: short rows are a quarter of it; give a multiple of {SHORT}")
        ramp = [2**i for i in range(math.ceil(math.log2(self.accumulation)))] if self.batch_warmup_frac else []
        grown = [round(steps * self.batch_warmup_frac * i / len(ramp)) for i in range(1, len(ramp) + 1)]
        long_from = round(steps * self.short_frac)
        found = []
        for begin, end in zip([0, *(marks := sorted({*grown, long_from} - {0, steps}))], [*marks, steps], strict=True):
            times = next((n for n, until in zip(ramp, grown, strict=True) if begin < until), self.accumulation)
            short = SHORT if begin < long_from else 1
            rows = self.batch_size * times
            found.append(Stretch(end - begin, self.length // short, rows, min(rows, self.batch_size * short)))
        return found


RECIPES: dict[RecipeName, Recipe] = {
    # The best loss per second found on two CPU cores: ModernBERT's architecture and initialisation (Warner et al.
    # 2024), Muon on its matrices (Jordan et al. 2024), a mask rate above BERT's (Wettig et al. 2023). What each is
    # worth, and what was worth nothing: benchmarks/results/ingredients.md. Short pieces: language.md beside it.
    "quick": Recipe(
        architecture="modern",
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        length=128,
        batch_size=16,
        short_seq_prob=0.1,
        mask_rate=0.3,
        optimizer="muon",
        lr=5e-3,
        warmup_frac=0.02,
        output_scale=(2 * 4) ** -0.5,
        minutes=3.5,
    ),
    # BERT's architecture (Devlin et al. 2018) at the size of Turc et al. 2019 (BERT-mini), with what a few minutes
    # afford: rows of 128, no dropout in less than one epoch, Muon and mask rate of `quick`. Positions that start as
    # sinusoids, and larger words beside them, are what gets it off the plateau: after 1.1 M tokens of running text its
    # held-out loss is 4.3, and 5.2 with BERT's initial tables (benchmarks/results/ingredients.md).
    "bert-mini": Recipe(
        architecture="bert",
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=1024,
        length=128,
        batch_size=16,
        packing="documents",
        mask_rate=0.3,
        optimizer="muon",
        lr=5e-3,
        warmup_frac=0.02,
        output_scale=0.0,
        word_std=0.1,
        sinusoids=0.2,
        minutes=3.5,
    ),
    # Devlin et al. 2018, app. A.2 and their code: 1 M steps of 256 rows, nine tenths of them on rows of 128 tokens, a
    # tenth of the text in short pieces, next-sentence prediction, Adam with decoupled decay. Their vocabulary has
    # 30,522 words; ours is a multiple of 64.
    "bert-base": Recipe(
        architecture="bert",
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
        length=512,
        batch_size=32,
        accumulation=8,
        short_frac=0.9,
        short_seq_prob=0.1,
        pairs="next",
        vocab_size=30_528,
        dropout=0.1,
        lr=1e-4,
        warmup_frac=0.01,
        steps=1_000_000,
    ),
    # Warner et al. 2024, sec. 2.2: the first phase of ModernBERT-base, 1.7 T tokens in rows of 1,024, the batch growing
    # to 4,608 rows (there from 768 over 50 B tokens, here in doublings from 96 over 11 B), a mask rate of 30 %, warm-up
    # over 3 B tokens, stable, 1 - sqrt over 50 B tokens, which there come after a phase of longer rows. They have a
    # byte-level BPE, StableAdamW, and dropout of 0.1 after attention; here WordPiece, AdamW and clipping, no dropout.
    # Their weight decay, 1e-5 a step, is not multiplied by the learning rate; AdamW's is.
    "modern-base": Recipe(
        architecture="modern",
        hidden_size=768,
        num_hidden_layers=22,
        num_attention_heads=12,
        intermediate_size=1152,
        length=1024,
        batch_size=96,
        accumulation=48,
        batch_warmup_frac=0.03,
        packing="documents",
        vocab_size=50_368,
        mask_rate=0.3,
        lr=8e-4,
        weight_decay=1e-5 / 8e-4,
        beta2=0.98,
        schedule="wsd",
        warmup_frac=0.02,
        decay_frac=0.03,
        output_scale=(2 * 22) ** -0.5,
        steps=360_000,
    ),
    # Geiping & Goldstein 2022, and the last recipe of their code (crammed-bert, bert-o4): one day on one card. Rows of
    # 128, no dropout, a batch that grows to 8,192 rows over 60 % of the budget, a learning rate that rises over three
    # quarters of it (there from a quarter of the peak, here from 0) and falls to 0, clipping at 0.5. Their layers, as
    # these, are pre-norm with gated feed-forwards and no biases; their positions are scaled sinusoids, these RoPE.
    "cramming": Recipe(
        architecture="modern",
        hidden_size=768,
        num_hidden_layers=16,
        num_attention_heads=12,
        intermediate_size=1536,
        length=128,
        batch_size=128,
        accumulation=64,
        batch_warmup_frac=0.6,
        vocab_size=32_768,
        mask_rate=0.25,
        lr=1e-3,
        beta2=0.98,
        eps=1e-12,
        warmup_frac=0.75,
        max_norm=0.5,
        minutes=24 * 60,
    ),
    # For --model: continue training a model on other text, at a learning rate that does not undo what it knows
    # (after Gururangan et al. 2020, who went on with RoBERTa).
    "continue": Recipe(
        architecture=None,
        length=128,
        batch_size=32,
        packing="documents",
        lr=1e-4,
        beta2=0.98,
        warmup_frac=0.06,
        minutes=30,
    ),
}

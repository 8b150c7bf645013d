"""Named runs, as Python. A flag of `train.py` overrides a field; everything else is as written here."""

from dataclasses import dataclass
from typing import Literal

from minilm.data.packing import Packing
from minilm.model.encoder import EncoderConfig, bert_config, modern_config
from minilm.train.optim import OptimizerName, ScheduleName

RecipeName = Literal["quick", "bert-mini"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """An architecture and how to pretrain it."""

    architecture: Literal["bert", "modern"]
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    length: int  # tokens per row
    batch_size: int  # rows per micro-batch
    accumulation: int = 1  # micro-batches per step
    packing: Packing = "stream"
    vocab_size: int = 8192
    lowercase: bool = True
    mask_rate: float = 0.15  # fraction of the tokens to predict, for mlm; evaluation always uses 0.15
    dropout: float = 0.0
    optimizer: OptimizerName = "adamw"
    lr: float = 1e-3  # the peak
    weight_decay: float = 0.01
    beta2: float = 0.999
    schedule: ScheduleName = "linear"
    warmup_frac: float = 0.05  # of all steps
    max_norm: float = 1.0
    output_scale: float = 1.0  # of the initial matrices that write to the residual stream; 0: identity layers
    minutes: float = 3.5  # of training, where no budget is given

    def encoder_config(self, vocab_size: int) -> EncoderConfig:
        """The encoder, for a vocabulary that may have shrunk."""
        make, positions = bert_config, self.length  # a table's rows beyond that would never be trained
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


RECIPES: dict[RecipeName, Recipe] = {
    # The best loss per second found on two CPU cores: ModernBERT's architecture (Warner et al. 2024) with zeroed
    # outputs, Muon on its matrices (Jordan et al. 2024), a mask rate above BERT's (Wettig et al. 2023).
    "quick": Recipe(
        architecture="modern",
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        length=128,
        batch_size=16,
        mask_rate=0.3,
        optimizer="muon",
        lr=5e-3,
        warmup_frac=0.02,
        output_scale=0.0,
    ),
    # BERT as in Devlin et al. 2018, at the size of Turc et al. 2019 (BERT-mini), with what a few minutes afford:
    # rows of 128, a learning rate for few steps, no dropout in less than one epoch.
    "bert-mini": Recipe(
        architecture="bert",
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=1024,
        length=128,
        batch_size=32,
        packing="documents",
        lr=1e-3,
    ),
}

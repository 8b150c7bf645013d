"""The flags of `finetune.py`: what they mean, their ranges, and which clash."""

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from minilm import cli
from minilm.errors import ConfigError
from minilm.finetuning.settings import RANGES as TUNING_RANGES
from minilm.finetuning.settings import Tuning
from minilm.tasks.named import TaskName, check_header

EMBEDDED_EPOCHS = 2.0  # of the embedded examples, unless others are asked for: less than 3 minutes


@dataclass(frozen=True)
class Args:
    """Fine-tune a model on labelled examples. Alone, it learns to tell which library a documentation text is from."""

    train: Path | None = None
    """Labelled examples: csv, tsv, jsonl, json or parquet, also .gz or .xz. For tagging one word per line (CoNLL), or
    lists of words and tags; for questions SQuAD's json. An embedded data set, if not given."""
    dev: Path | None = None
    """Examples that choose the best model; a tenth of --train, if not given."""
    test: Path | None = None
    """Examples for the final scores; nothing is chosen by them."""
    task: TaskName = "classification"
    """Kind of task to learn."""
    model: str | None = None
    """Model to start from: a directory, or a name on the Hugging Face hub; checkpoints/quick-mlm, if not given."""
    new_head: bool = False
    """Start with a new head, even if --model has one."""
    out: Path | None = None
    """Output directory; checkpoints/NAME-OF-TRAIN, if not given."""
    text_column: str | None = None
    """Column of the text, by name or number from 1; guessed from names and contents, and printed, if not given."""
    pair_column: str | None = None
    """Column of a second text; for span the context, while --text-column is the question; for choice what each of the
    choices begins with."""
    label_column: str | None = None
    """Column of the label, or of the number to predict; in a file of one tagged word a line its number, the last if not
    given."""
    header: bool | None = None
    """Whether the first row of a csv names its columns; guessed from its contents, if not given."""
    seeds: int = 1
    """Number of runs, with seeds from --seed on: prints the mean of their scores and its confidence interval."""
    kfold: int | None = None
    """Cross-validation: this many runs, each tested on another part of --train, labels about as frequent in each."""
    group_column: str | None = None
    """Column whose equal values keep rows together, in a part of --kfold or when a tenth is held out."""
    check: bool = False
    """Print what is in the files, and stop."""
    overfit_batch: bool = False
    """Learn one batch by heart, without dropout, and stop: failure points to a fault in labels or settings."""
    epochs: float | None = None
    """Passes over the examples; if not given, 3, or with few examples as many as make 200 steps; 2 over the embedded
    ones."""
    steps: int | None = None
    """Optimizer steps, instead of --epochs."""
    batch_size: int = 32
    """Examples per step; windows of long contexts, and parts of long sentences to tag, count one by one."""
    lr: float | None = None
    """Peak learning rate; chosen by the model's size, if not given."""
    length: int | None = None
    """Tokens read per example; the model's maximum, but at most 512, if not given."""
    evaluate_every: int | None = None
    """Steps between evaluations; an epoch, or a twentieth of the run if that is longer, if not given."""
    patience: int = 3
    """Stop after this many evaluations without a better score or a lower loss; the best model is kept in any case."""
    weight_decay: float = 0.01
    """Decoupled weight decay of matrices and embedding tables."""
    warmup_frac: float = 0.1
    """Fraction of the steps over which the learning rate rises; then it falls linearly to 0."""
    class_weights: Literal["balanced"] | None = None
    """balanced: every label has the same total weight in the loss, however rare it is."""
    label_smoothing: float = 0.0
    """Label smoothing: this share of each target is spread evenly over all labels."""
    positive_label: str | None = None
    """With two labels: the one whose f1, precision and recall are scored, and whose f1 chooses the best model. If not
    given, the second label is scored, and accuracy chooses."""
    layer_decay: float = 1.0
    """Factor on the learning rate from each layer to the one below."""
    frozen_layers: int = 0
    """Freeze the embedding and this many layers, from the first on."""
    lora_rank: int = 0
    """LoRA: train matrices of this rank, added to q, k and v's, instead of the encoder; merged when saved."""
    lora_alpha: float = 16.0
    """LoRA adds alpha / rank times the product of its matrices."""
    auto_batch: bool = False
    """Halve the micro-batches when they do not fit in memory. Steps keep their examples; dropout draws other masks."""
    gradient_checkpointing: bool = False
    """Recompute every layer in the backward pass instead of keeping it: less memory, a third more time."""
    seed: int = 0
    """Random seed of the new head, the order of the examples, and dropout."""
    resume: Literal["auto", "never"] = "auto"
    """auto resumes from the newest complete checkpoint in --out; never refuses an --out that holds a run."""
    time_limit: float | None = None
    """Minutes after which training saves and exits with status 0, as after SIGUSR1; the same command resumes."""
    device: str = "auto"
    """cuda, mps or cpu; auto takes the first of these that is available."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Precision of matrix products; auto takes the fastest that the device computes natively. Products in
    fp32 are TF32's on an Nvidia GPU from Ampere on."""
    threads: int | None = None
    """CPU threads; torch's choice if not given."""
    deterministic: bool = False
    """Make runs on an Nvidia GPU repeat bit for bit, also when resumed; slower. A CPU needs no flag for that."""
    compile: bool = False
    """On a GPU, compile model and loss into one graph by torch.compile: a later start, perhaps faster steps."""
    cuda_graphs: bool = False
    """On a GPU, launch all kernels of a step at once: perhaps much faster where steps have few tokens."""
    json: str | None = None
    """Write the result as JSON to this file; without a file name, or with -, to standard output."""


RANGES = {name: ends for name, ends in TUNING_RANGES.items() if hasattr(Args, name)} | {
    "label_smoothing": (0.0, 0.9),
    "seeds": (1, 1000),
    "kfold": (2, 1000),
    "time_limit": (1e-3, 1e6),
    "threads": (1, 1024),
}


def check_flags(args: Args, out: Path) -> None:
    """Raises ConfigError for a flag out of its range, flags that clash, and a --json that would overwrite an input or a
    file of the model in `out`."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError("WORLD_SIZE is set, as by torchrun: fine-tuning runs in one process; start it by python")
    cli.check_ranges(args, RANGES)
    own = [out / name for name in cli.MODEL_FILES]
    cli.check_result(args.json, train=args.train, dev=args.dev, test=args.test, out=own)
    if args.seed + args.seeds - 1 > RANGES["seed"][1]:
        raise ConfigError(f"--seed {args.seed}: too large for --seeds {args.seeds}; give a smaller one")
    if args.epochs is not None and args.steps is not None:
        raise ConfigError("--epochs and --steps: exclude each other; give one")
    if args.kfold and (args.seeds > 1 or args.dev or args.test or args.train is None):
        raise ConfigError("--kfold: splits --train itself; give that, and no --dev, --test or --seeds")
    if args.overfit_batch:
        apart = ("seeds", "kfold", "epochs", "time_limit", "class_weights", "label_smoothing", "positive_label")
        apart += ("evaluate_every", "patience", "resume")
        if given := [cli.flag(name) for name in apart if getattr(args, name) != getattr(Args, name)]:
            raise ConfigError(f"{given[0]}: does not go with --overfit-batch; leave one of them out")
    check_header(args.header, args.task, args.train, args.dev, args.test)
    if args.group_column and (args.train is None or args.dev):
        raise ConfigError(f"--group-column {args.group_column}: is for splitting --train; leave out --dev or this")
    if args.check and args.json:
        raise ConfigError("--json: --check has no result to write; leave one of them out")
    apart = ("kfold", "overfit_batch", "resume", "time_limit")
    if args.check and (given := [name for name in apart if getattr(args, name) != getattr(Args, name)]):
        raise ConfigError(f"{cli.flag(given[0])}: --check looks at whole files and stops; leave one of them out")


def computed(args: Args) -> dict[str, Any]:
    """Values of the flags about device and precision, by name."""
    names = "device", "precision", "threads", "auto_batch", "deterministic", "compile", "cuda_graphs"
    return {name: getattr(args, name) for name in names}


def tuning_of(args: Args, seed: int) -> Tuning:
    """A Tuning filled from the flags that are named as its fields."""
    given = {field.name: getattr(args, field.name, None) for field in fields(Tuning)}
    if args.train is None and args.epochs is None and args.steps is None:
        given["epochs"] = EMBEDDED_EPOCHS
    return Tuning(**{name: value for name, value in given.items() if value is not None} | {"seed": seed})

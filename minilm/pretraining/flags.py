"""The flags of `train.py`: what they mean, their ranges, and the recipe that they make; clashing ones are refused."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

from minilm import cli
from minilm.checkpoint.model import Pretrained
from minilm.checkpoint.store import Run
from minilm.data.corpus import open_corpus
from minilm.data.documents import is_jsonl
from minilm.data.loader import check_divisible
from minilm.data.objectives import ObjectiveName
from minilm.data.packing import Packing, PairTask
from minilm.data.tokenizer import MULTIPLE
from minilm.errors import ConfigError
from minilm.machine.ranks import Ranks
from minilm.machine.runtime import Runtime
from minilm.recipes import NOMINAL_STEPS, RECIPES, Recipe, RecipeName
from minilm.train.optim import OptimizerName, ScheduleName

SELDOM = 1e-3  # the least --short-seq-prob above 0


@dataclass(frozen=True)
class Args:
    """Pretrain a language model: raw text in, a model directory out. Alone, it trains on an embedded corpus."""

    data: tuple[str, ...] | None = None
    """Files, folders or quoted patterns: text (a blank line ends a document), .jsonl or .ndjson, also .gz and .xz. In a
    folder only files named .txt, .text, .md, .jsonl or .ndjson (or these with .gz or .xz) are read."""
    objective: ObjectiveName | None = None
    """Masked (mlm), causal (clm) or prefix language model; mlm, or what --model was trained for, if not given."""
    recipe: RecipeName | None = None
    """Named settings of minilm/recipes.py, which flags of the same names override; quick, or continue with --model, if
    not given."""
    model: str | None = None
    """Continue training this BERT or ModernBERT (a directory, or a name on the Hugging Face hub), with its
    tokenizer."""
    add_tokens: Path | None = None
    """File of words to add to the vocabulary of --model, one per line, in lower case if it ignores case, without spaces
    or punctuation. Their embeddings start as the mean of the pieces that each was split into."""
    out: Path | None = None
    """Output directory; checkpoints/RECIPE-OBJECTIVE if not given."""
    steps: int | None = None
    """Budget in optimizer steps."""
    epochs: float | None = None
    """Budget in passes over the training split."""
    minutes: float | None = None
    """Budget in minutes of training, converted to steps once, by timing a few; evaluation and saving come on top. The
    recipe's budget is used if none is given."""
    resume: Literal["auto", "never"] = "auto"
    """auto resumes from the newest complete checkpoint in --out; never refuses an --out that holds a run."""
    save_every: int = 500
    """Steps between checkpoints."""
    on_save_error: Literal["stop", "go-on"] = "stop"
    """If a checkpoint cannot be written: stop with an error, or go on without it. Earlier checkpoints stay intact."""
    evaluate_every: int | None = None
    """Steps between evaluations; a fifth of the run if not given."""
    seed: int = 0
    """Random seed of weights, masks and the order of rows; the held-out split and its masks do not depend on it."""
    json: str | None = None
    """Write the result as JSON to this file; without a file name, or with -, to standard output."""
    dry_run: bool = False
    """Run one step of every phase in a temporary directory, then print what the whole run would cost."""
    prepare_only: bool = False
    """Tokenise the text, print what is in it, and stop."""
    vocab_size: int | None = None
    """Size of the vocabulary, a multiple of 64; more than the text supports is refused."""
    lowercase: bool | None = None
    """Whether the vocabulary ignores case, and accents with it."""
    length: int | None = None
    """Tokens per row."""
    short_frac: float | None = None
    """Fraction of the steps, at the start, with rows a quarter as long."""
    short_seq_prob: float | None = None
    """Approximate fraction of the text that mlm reads in short pieces, so that it learns short texts, too."""
    packing: Packing | None = None
    """stream: rows of running text across documents. documents: tokens attend only within their own document."""
    pairs: PairTask | Literal["off"] | None = None
    """Besides mlm, a pair of texts per row: does the second follow the first (next), are they in order (order)? off:
    none, whatever the recipe says."""
    batch_size: int | None = None
    """Rows of --length tokens in a micro-batch, which one process computes at once, at most; of shorter rows, where a
    recipe or a flag makes such, there are more."""
    accumulation: int | None = None
    """Micro-batches of --batch-size rows per step, in all processes together."""
    auto_batch: bool = False
    """In one process, halve the micro-batches when they do not fit in memory. Steps keep their rows and, but for
    rounding, their gradient; dropout draws other masks."""
    batch_warmup_frac: float | None = None
    """Fraction of the steps over which the rows per step grow, doubling, from --batch-size to the full number."""
    mask_rate: float | None = None
    """Fraction of the tokens that mlm predicts in training; evaluation predicts 0.15."""
    mask_rate_end: float | None = None
    """Mask rate at the last step; it changes linearly from --mask-rate at the first."""
    whole_words: bool | None = None
    """Mask all pieces of a word or none."""
    optimizer: OptimizerName | None = None
    """adamw; or muon for the matrices, adamw for the rest."""
    lr: float | None = None
    """Peak learning rate."""
    weight_decay: float | None = None
    """Decoupled weight decay of matrices and embedding tables."""
    schedule: ScheduleName | None = None
    """Learning rate after the warm-up: linear or cosine to 0, or wsd (stable, then as 1 - sqrt to 0)."""
    warmup_frac: float | None = None
    """Fraction of the steps over which the learning rate rises."""
    decay_frac: float | None = None
    """Fraction of the steps, at the end, over which wsd lowers the learning rate."""
    dropout: float | None = None
    """Dropout rate of states and attention weights."""
    word_std: float | None = None
    """Standard deviation of the initial word embeddings."""
    sinusoids: float | None = None
    """Root mean square of the sinusoids as which a BERT's position table starts; 0: random numbers, as BERT's own."""
    output_scale: float | None = None
    """Scale of the initial matrices that write to the residual stream; 0 starts layers as the identity, 1 is BERT's."""
    gradient_checkpointing: bool | None = None
    """Recompute every layer in the backward pass instead of keeping it: less memory, a third more time."""
    held_out: float = 0.05
    """Fraction of the documents, by hash, kept for evaluation."""
    text_field: str = "text"
    """Field of a .jsonl line that holds the text."""
    time_limit: float | None = None
    """Minutes after which training saves and exits with status 0, as after SIGUSR1; the same command resumes. What
    comes before the first step, such as tokenising, is not cut short."""
    device: str = "auto"
    """cuda, mps or cpu; auto takes the first of these that is available."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Precision of matrix products; auto takes the fastest that the device computes natively. Products in
    fp32 are TF32's on an Nvidia GPU from Ampere on."""
    shard: bool = False
    """With torchrun: each process keeps only a part of weights, gradients and optimizer states, to save memory."""
    threads: int | None = None
    """CPU threads; torch's choice if not given."""
    deterministic: bool = False
    """Make runs on an Nvidia GPU repeat bit for bit, also when resumed; slower. A CPU needs no flag for that."""
    compile: bool = False
    """On a GPU, compile model and loss into one graph by torch.compile: a later start, perhaps faster steps."""
    cuda_graphs: bool = False
    """On a GPU, launch all kernels of a step at once: perhaps much faster where steps have few tokens."""
    cache_dir: Path = Path("~/.cache/minilm")
    """Directory that keeps tokenised corpora, keyed by content."""

    @property
    def recipe_name(self) -> RecipeName:
        return self.recipe or ("continue" if self.model else "quick")


RANGES = {  # inclusive
    "steps": (1, 10**9),
    "epochs": (1e-6, 1e6),
    "minutes": (1e-3, 1e6),
    "time_limit": (1e-3, 1e6),
    "save_every": (1, 10**9),
    "evaluate_every": (1, 10**9),
    "seed": (0, 2**58),
    "vocab_size": (MULTIPLE, 10**6),
    "length": (32, 2**16),
    "short_frac": (0.0, 1.0),
    "short_seq_prob": (0.0, 0.5),
    "batch_size": (1, 10**6),
    "accumulation": (1, 10**6),
    "batch_warmup_frac": (0.0, 1.0),
    "mask_rate": (0.01, 0.9),
    "mask_rate_end": (0.01, 0.9),
    "lr": (1e-9, 10.0),
    "weight_decay": (0.0, 10.0),
    "warmup_frac": (0.0, 0.9),
    "decay_frac": (0.001, 1.0),
    "dropout": (0.0, 0.9),
    "word_std": (1e-6, 10.0),
    "sinusoids": (0.0, 10.0),
    "output_scale": (0.0, 10.0),
    "held_out": (0.001, 0.5),
    "threads": (1, 1024),
}


def effective_recipe(args: Args, objective: ObjectiveName, pretrained: Pretrained | None) -> Recipe:
    """The named recipe with the flags that override it. Raises ConfigError for flags that are wrong or clash."""
    cli.check_ranges(args, RANGES)
    if args.dry_run and args.prepare_only:
        raise ConfigError("--dry-run and --prepare-only: exclude each other; give one")
    if args.data == ():
        raise ConfigError("--data: name files, folders or quoted patterns; leave it out for the embedded corpus")
    if args.vocab_size is not None and args.vocab_size % MULTIPLE:
        raise ConfigError(f"--vocab-size {args.vocab_size}: give a multiple of {MULTIPLE}")
    budgets = [name for name in ("steps", "epochs", "minutes") if getattr(args, name) is not None]
    if len(budgets) > 1:
        raise ConfigError(f"{' and '.join(map(cli.flag, budgets))}: exclude each other; give one")
    recipe = RECIPES[args.recipe_name]
    own = [field.name for field in fields(Recipe)]
    overrides = {name: value for name in own if (value := getattr(args, name, None)) is not None}
    overrides |= {"pairs": None} if args.pairs == "off" else {}
    recipe = replace(recipe, **({"minutes": None, "steps": None} if budgets else {}) | overrides)
    if objective != "mlm":  # a recipe's settings for mlm are dropped, a flag for it is refused
        recipe = replace(recipe, pairs=args.pairs, short_seq_prob=args.short_seq_prob or 0.0)
    check_of_use(args, objective, recipe)
    if 0 < recipe.short_seq_prob < SELDOM:
        raise ConfigError(f"--short-seq-prob {recipe.short_seq_prob}: give 0, or at least {SELDOM}")
    if pretrained:
        recipe = fitted(recipe, args, objective, pretrained)
    if recipe.architecture is None:
        raise ConfigError(f"--recipe {args.recipe}: needs a model; give one with --model")
    if recipe.pairs and recipe.architecture != "bert":
        raise ConfigError(f"--pairs {recipe.pairs}: only a BERT has a head for them; choose --recipe bert-mini")
    if recipe.pairs and pretrained and pretrained.model.cfg.type_vocab_size < 2:
        raise ConfigError(f"--pairs {recipe.pairs}: {args.model} tells no second text from the first; leave it out")
    check_divisible(recipe.stretches(NOMINAL_STEPS), Ranks.join().world)
    if args.auto_batch and Ranks.join().world > 1:
        raise ConfigError("--auto-batch: works in one process only; lower --batch-size instead")
    return recipe


def check_of_use(args: Args, objective: ObjectiveName, recipe: Recipe) -> None:
    """Raises ConfigError for a flag that would have no effect."""
    files = open_corpus(args.data).files if args.data and args.text_field != Args.text_field else ()
    for names, is_of_use, why in (
        (
            ("pairs", "mask_rate", "mask_rate_end", "whole_words", "short_seq_prob"),
            objective == "mlm",
            "goes with --objective mlm only",
        ),
        (("batch_warmup_frac",), recipe.accumulation > 1, "goes with --accumulation above 1 only"),
        (("packing",), not recipe.pairs, f"has no effect with --pairs {recipe.pairs}"),
        (("word_std", "sinusoids", "output_scale"), not args.model, "has no effect with --model"),
        (("sinusoids",), recipe.architecture == "bert", "goes with a BERT only, as --recipe bert-mini"),
        (("mask_rate_end",), not args.compile, "does not work with --compile"),
        (("mask_rate_end",), not args.cuda_graphs, "does not work with --cuda-graphs"),
        (("cuda_graphs",), not recipe.gradient_checkpointing, "does not work with --gradient-checkpointing"),
        (("decay_frac",), recipe.schedule == "wsd", "goes with --schedule wsd only"),
        (("text_field",), any(map(is_jsonl, files)), "goes with a .jsonl in --data only"),
    ):
        for name in names:
            off = (None,) if name == "output_scale" else (None, 0.0, False, Args.text_field)
            if (value := getattr(args, name)) not in off and not is_of_use:
                raise ConfigError(f"{cli.flag(name)} {value}: {why}; leave it out")


def fitted(recipe: Recipe, args: Args, objective: ObjectiveName, pretrained: Pretrained) -> Recipe:
    """The recipe with the sizes of the model to continue from. Raises ConfigError for flags that do not fit it."""
    for name in ("vocab_size", "lowercase"):
        if getattr(args, name) is not None:
            raise ConfigError(f"{cli.flag(name)}: --model has its own vocabulary; leave this out")
    cfg = pretrained.model.cfg
    if objective != pretrained.objective:
        raise ConfigError(f"--objective {objective}: {args.model} was trained for {pretrained.objective}; leave it out")
    if recipe.length > cfg.max_position_embeddings:
        raise ConfigError(f"--length {recipe.length}: {args.model} reads {cfg.max_position_embeddings} tokens at most")
    return replace(
        recipe,
        architecture="bert" if cfg.norm_order == "post" else "modern",
        hidden_size=cfg.hidden_size,
        num_hidden_layers=len(cfg.layers),
        num_attention_heads=cfg.num_attention_heads,
        intermediate_size=cfg.intermediate_size,
        vocab_size=cfg.vocab_size,
        lowercase=pretrained.tokenizer.lowercase,
    )


def check_sharding(args: Args, recipe: Recipe, runtime: Runtime, run: Run | None) -> None:
    """Raises ConfigError for what cannot be combined with --shard."""
    if args.shard and runtime.ranks.world == 1:
        raise ConfigError("--shard: shares a model among processes; start them with torchrun --nproc-per-node")
    if args.shard and runtime.precision == "fp16":
        raise ConfigError("--shard: --precision fp16 is not supported with it; use bf16 or fp32")
    if args.shard and args.compile:
        raise ConfigError("--shard: does not work with --compile; leave one of them out")
    if args.shard and not (run or recipe.steps or args.epochs):
        raise ConfigError("--shard: takes no budget in --minutes; give --steps or --epochs")


def check_result(args: Args, out: Path) -> None:
    """Raises ConfigError for a --json that cannot be written, or would overwrite an input or a file of the model."""
    to_file = args.json not in (None, "-")
    files = open_corpus(args.data, args.text_field).files if args.data and to_file else ()
    cli.check_result(args.json, add_tokens=args.add_tokens, data=files, out=[out / name for name in cli.MODEL_FILES])

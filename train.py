"""Pretrain a language model: raw text in, a model directory out.

The path of a sentence: corpus -> tokenizer -> shards -> packing -> objectives -> loader (minilm/data), encoder and
head (minilm/model), loss, optimizer and loop (minilm/train), and to disk (minilm/checkpoint).
"""

import math
import tempfile
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch

from minilm import cli
from minilm.batch import Batch
from minilm.checkpoint.model import Pretrained, read_model, write_model
from minilm.checkpoint.store import Run, Store
from minilm.data.corpus import embedded_corpus, open_corpus
from minilm.data.loader import Loader, fixed_batches
from minilm.data.objectives import ObjectiveName, make_objective
from minilm.data.packing import Packing, pack
from minilm.data.shards import Prepared, prepare
from minilm.data.tokenizer import MULTIPLE
from minilm.errors import ConfigError, DataError
from minilm.evaluation.metrics import unigram_loss
from minilm.evaluation.report import closing, model_card, samples
from minilm.model.attention import Backend
from minilm.model.encoder import initialise
from minilm.model.heads import LanguageModel
from minilm.recipes import RECIPES, Recipe, RecipeName
from minilm.train.cost import training_flops
from minilm.train.job import VERSIONS, Job, begin, runtime_of, step_seconds, train
from minilm.train.log import Log, plot_loss, say
from minilm.train.loop import Optimizers, Plan, evaluate
from minilm.train.losses import language_model_loss, language_model_score
from minilm.train.optim import OptimizerName, ScheduleName, lr_fraction, make_optimizers
from minilm.train.runtime import Runtime, peak_memory_mb

EVAL_SEED = 0  # held-out masks are the same in every run


@dataclass(frozen=True)
class Args:
    """Pretrain a language model: raw text in, a model directory out. Alone, it trains on an embedded corpus."""

    data: tuple[str, ...] | None = None
    """Files, folders or quoted patterns: text (a blank line ends a document), .jsonl, also .gz and .xz."""
    objective: ObjectiveName = "mlm"
    """Masked, causal or prefix language model."""
    recipe: RecipeName = "quick"
    """A named run of minilm/recipes.py; flags of the same names as its fields override them."""
    out: Path | None = None
    """Where everything goes; checkpoints/RECIPE-OBJECTIVE if not given."""
    steps: int | None = None
    """Budget in optimizer steps."""
    epochs: float | None = None
    """Budget in passes over the training split."""
    minutes: float | None = None
    """Budget in minutes of training, turned into steps once, by timing some; without a budget, the recipe's minutes."""
    resume: Literal["auto", "never"] = "auto"
    """auto goes on from the newest complete checkpoint in OUT; never refuses an OUT that holds a run."""
    save_every: int = 500
    """Steps between checkpoints."""
    evaluate_every: int | None = None
    """Steps between evaluations; a fifth of the run if not given."""
    seed: int = 0
    """Of weights, masks and the order of rows; never of the held-out split and its masks."""
    json: str | None = None
    """Write the result there; alone or -, to standard output."""
    dry_run: bool = False
    """One step of every phase, in a scratch directory that is removed."""
    vocab_size: int | None = None
    """Words and pieces of the vocabulary, a multiple of 64; more than the text supports is refused."""
    lowercase: bool | None = None
    """Whether the vocabulary ignores case, and accents with it."""
    length: int | None = None
    """Tokens per row."""
    packing: Packing | None = None
    """stream: running text across documents. documents: each sees only itself."""
    batch_size: int | None = None
    """Rows per micro-batch."""
    accumulation: int | None = None
    """Micro-batches per step."""
    mask_rate: float | None = None
    """Fraction of the tokens that mlm predicts in training; evaluation predicts 0.15."""
    optimizer: OptimizerName | None = None
    """adamw; or muon for the matrices, adamw for the rest."""
    lr: float | None = None
    """Peak learning rate."""
    weight_decay: float | None = None
    """Of matrices and tables, decoupled."""
    schedule: ScheduleName | None = None
    """After the warm-up: linear or cosine to 0, or wsd (stable, then 1 - sqrt to 0)."""
    warmup_frac: float | None = None
    """Fraction of the steps over which the learning rate rises."""
    dropout: float | None = None
    """Of states and attention weights."""
    held_out: float = 0.05
    """Fraction of the documents, by hash, kept for evaluation."""
    text_field: str = "text"
    """Of a .jsonl line."""
    device: str = "auto"
    """cuda, mps or cpu; auto takes the first of these that is there."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """auto takes the fastest that the device computes natively."""
    threads: int | None = None
    """Of the CPU; torch's choice if not given."""
    cache_dir: Path = Path("~/.cache/minilm")
    """Tokenised corpora, keyed by content."""


RANGES = {  # inclusive
    "steps": (1, 10**9),
    "epochs": (1e-6, 1e6),
    "minutes": (1e-3, 1e6),
    "save_every": (1, 10**9),
    "evaluate_every": (1, 10**9),
    "seed": (0, 2**60),
    "vocab_size": (MULTIPLE, 10**6),
    "length": (32, 2**16),
    "batch_size": (1, 10**6),
    "accumulation": (1, 10**6),
    "mask_rate": (0.01, 0.9),
    "lr": (1e-9, 10.0),
    "weight_decay": (0.0, 10.0),
    "warmup_frac": (0.0, 0.9),
    "dropout": (0.0, 0.9),
    "held_out": (0.001, 0.5),
    "threads": (1, 1024),
}


def main(args: Args) -> None:
    """One run, from flags to the last line."""
    recipe = effective_recipe(args)
    out = args.out or Path("checkpoints") / f"{args.recipe}-{args.objective}"
    Store(out).check_writable()
    cli.check_result(args.json)
    if args.dry_run:
        with tempfile.TemporaryDirectory() as scratch:
            once = replace(args, steps=1, epochs=None, minutes=None)
            result, _ = pretrain(once, recipe, Path(scratch) / "dry-run")
            read_model(Path(scratch) / "dry-run")
        say(f"dry run: data, one step, evaluation, save and reload all work; nothing was kept but {args.cache_dir}")
    else:
        result, shown = pretrain(args, recipe, out)
        for line in closing(result, out, shown):
            say(line) if args.json == "-" else print(line)
    if args.json:
        cli.write_result(args.json, result | {"out": str(out)})


def effective_recipe(args: Args) -> Recipe:
    """The named recipe with the flags that override it. Raises ConfigError for what cannot be."""
    for name, (low, high) in RANGES.items():
        if (value := getattr(args, name)) is not None and not low <= value <= high:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: give a value from {low:g} to {high:g}")
    if args.data == ():
        raise ConfigError("--data: name files, folders or quoted patterns; leave it out for the embedded corpus")
    if args.vocab_size is not None and args.vocab_size % MULTIPLE:
        raise ConfigError(f"--vocab-size {args.vocab_size}: give a multiple of {MULTIPLE}")
    budgets = [f"--{name}" for name in ("steps", "epochs", "minutes") if getattr(args, name) is not None]
    if len(budgets) > 1:
        raise ConfigError(f"{' and '.join(budgets)}: two budgets at once; give one")
    own = [field.name for field in fields(Recipe)]
    overrides = {name: value for name in own if (value := getattr(args, name, None)) is not None}
    return replace(RECIPES[args.recipe], **overrides)


def pretrain(args: Args, recipe: Recipe, out: Path) -> tuple[dict[str, Any], list[str]]:
    """Data, model, loop, final model: (what it came to, the model at work on a few held-out documents)."""
    store = Store(out)
    with store.hold():
        settings, choices = asked_for(args, recipe)
        run = store.earlier_run(settings, choices, args.resume)
        runtime = runtime_of(run, args.device, args.precision, args.threads)
        data, loader, held_out_batches = load_data(args, recipe, runtime)
        if run and run.settings["data"] != data.fingerprint:
            raise ConfigError(
                f"--out {out}: began with other text, or with other versions of the packages whose documentation the "
                f"embedded corpus is; use the same, or another --out"
            )
        if run and run.result:
            say(f"{out} is finished; for another run choose another --out")
            return run.result, []

        backend = run.backend if run else runtime.backend(recipe.length)
        model, optimizers = build(recipe, data.tokenizer.vocab_size, args.seed, runtime, backend)
        parameters = sum(p.numel() for p in model.parameters())
        say(f"{parameters / 1e6:.1f} M parameters on {runtime.describe()}, {backend} attention; into {out}")
        say(f"{len(loader.rows):,} rows of {recipe.length} tokens, {loader.rows.fill:.1%} full")
        job = Job(
            settings | {"data": data.fingerprint},
            model,
            language_model_loss,
            optimizers,
            loader,
            runtime,
            store,
            evaluate=lambda: evaluate(model, language_model_score, held_out_batches, runtime),
            write_model=lambda directory: write_model(directory, model, data.tokenizer, args.objective),
        )
        if not run:
            steps = steps_of_budget(args, recipe, job)  # a budget in minutes is timed here
            run = begin(job, steps, backend)
        log = train(job, plan_of(args, recipe, run.steps))
        return conclude(run, job, log, data, held_out_batches)


def asked_for(args: Args, recipe: Recipe) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a run that goes on must be asked for again: settings, and of what a run otherwise decides by itself
    (precision, threads) the choices that a flag made."""
    settings = {"objective": args.objective, "seed": args.seed, "steps": args.steps, "epochs": args.epochs}
    flags = {"precision": args.precision, "threads": args.threads}
    choices = {name: value for name, value in flags.items() if value not in ("auto", None)}
    return settings | {"held_out": args.held_out} | asdict(recipe), choices


def load_data(args: Args, recipe: Recipe, runtime: Runtime) -> tuple[Prepared, Loader, list[Batch]]:
    """The tokenised corpus, batches to train on, and the fixed batches to evaluate on."""
    try:
        cache = args.cache_dir.expanduser()
    except RuntimeError as error:  # no home, or a user that nobody knows
        raise ConfigError(f"--cache-dir {args.cache_dir}: {error} Name a directory") from error
    try:
        data = prepare(
            open_corpus(args.data, args.text_field) if args.data else embedded_corpus(cache),
            cache,
            held_out_frac=args.held_out,
            vocab_size=recipe.vocab_size,
            exact_vocab=args.vocab_size is not None,
            lowercase=recipe.lowercase,
            say=say,
        )
    except OSError as error:
        if error.filename and not str(error.filename).startswith(str(cache)):
            raise  # of a file that was to be read
        why = error.strerror or error
        raise ConfigError(f"--cache-dir {cache}: cannot be written ({why}); make room, or name another") from error
    if data.note:
        say(data.note)
    rows = pack(data.train, recipe.packing, recipe.length, data.tokenizer)
    objective = make_objective(args.objective, data.tokenizer, args.seed, recipe.mask_rate)
    loader = Loader(rows, objective, recipe.batch_size, args.seed, pin_memory=runtime.device.type == "cuda")

    held_out_rows = pack(data.held_out, recipe.packing, recipe.length, data.tokenizer)
    if not len(held_out_rows):
        raise DataError(f"the held-out split makes no row of {rows.T} tokens; give more text, or raise --held-out")
    held_out_batches = list(fixed_batches(held_out_rows, make_objective(args.objective, data.tokenizer, EVAL_SEED)))
    if not any(batch.count for batch in held_out_batches):
        raise DataError("the held-out split has nothing to predict, only unknown words; give other text")
    return data, loader, held_out_batches


def build(
    recipe: Recipe, vocab_size: int, seed: int, runtime: Runtime, backend: Backend
) -> tuple[LanguageModel, Optimizers]:
    """A model with fresh weights, on its device, and what updates it."""
    torch.manual_seed(seed)
    model = LanguageModel(recipe.encoder_config(vocab_size), backend)
    initialise(model, output_scale=recipe.output_scale)
    model.to(runtime.device)
    betas, kind = (0.9, recipe.beta2), recipe.optimizer
    return model, make_optimizers(model, kind, recipe.lr, recipe.weight_decay, betas, muon_dtype=runtime.muon_dtype)


def steps_of_budget(args: Args, recipe: Recipe, job: Job) -> int:
    """The budget in steps."""
    if args.steps is not None:
        return args.steps
    if args.epochs is not None:
        return math.ceil(args.epochs * len(job.loader.rows) / (recipe.batch_size * recipe.accumulation))
    say("timing a step")
    step_s = step_seconds(job, recipe.accumulation, recipe.max_norm, limit_s=0.1 * 60 * recipe.minutes)
    steps = max(1, int(60 * recipe.minutes / step_s))
    say(f"{1000 * step_s:.0f} ms a step: {recipe.minutes:g} minutes are about {steps:,} steps")
    return steps


def plan_of(args: Args, recipe: Recipe, steps: int) -> Plan:
    """How long, how fast, and how often to look."""
    warmup = math.ceil(recipe.warmup_frac * steps)
    return Plan(
        steps=steps,
        schedule=lambda step: lr_fraction(recipe.schedule, step, steps, warmup),
        accumulation=recipe.accumulation,
        max_norm=recipe.max_norm,
        evaluate_every=args.evaluate_every or math.ceil(steps / 5),
        save_every=args.save_every,
    )


def conclude(
    run: Run, job: Job, log: Log, data: Prepared, held_out_batches: list[Batch]
) -> tuple[dict[str, Any], list[str]]:
    """The final model with its card, figures and plot in OUT: (the figures, the model at work)."""
    objective, out = run.settings["objective"], job.store.out
    target = torch.cat([batch.target for batch in held_out_batches])
    never = data.tokenizer.special_ids if objective == "mlm" else ()
    unigram = unigram_loss(data.counts, target, never)
    result = {"objective": objective, **measure(job, log), "unigram_loss": unigram, "steps": run.steps}
    result |= {"vocab_size": data.tokenizer.vocab_size, "versions": VERSIONS}

    def write_final(directory: Path) -> None:
        job.write_model(directory)
        card = model_card(result, out, run.settings)
        (directory / "README.md").write_text(card, encoding="utf-8")

    job.store.finish(write_final)
    job.store.prune(keep=1)
    if not plot_loss(log.file, out / "loss.png", unigram):
        say("no loss.png, for matplotlib is missing: pip install 'minilm[eval]'")
    job.store.write_run(replace(run, result=result))
    return result, samples(Pretrained(job.model, data.tokenizer, objective), data.held_out)


def measure(job: Job, log: Log) -> dict[str, Any]:
    """What was learned and what it cost."""
    score, loader = log.score or job.evaluate(), job.loader  # none yet, if all that was left to do was to finish
    tokens, targets = loader.batch_size * loader.rows.T, len(loader.batch(0).target)  # of a micro-batch
    micro_batches = loader.taken // loader.batch_size
    return {
        "held_out_loss": score.loss,
        "accuracy": score.accuracy,
        "targets": score.targets,
        "tokens": log.tokens,
        "parameters": sum(p.numel() for p in job.model.parameters()),
        "seconds": log.seconds,
        "tokens_per_s": log.tokens / max(log.seconds, 1e-9),
        "flops": micro_batches * training_flops(job.model.cfg, tokens, loader.rows.T, targets),
        "peak_mb": peak_memory_mb(job.runtime.device),
        "precision": job.runtime.precision,
    }


if __name__ == "__main__":
    cli.run(main, Args)

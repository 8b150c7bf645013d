"""Pretrain a language model: raw text in, a model directory out.

The path of a sentence: corpus -> tokenizer -> shards -> packing -> objectives -> loader (minilm/data), encoder and
head (minilm/model), loss, optimizer and loop (minilm/train), and to disk (minilm/checkpoint).
"""

import math
import tempfile
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

import minilm
from minilm import cli
from minilm.batch import IGNORE, Batch
from minilm.checkpoint.store import FORMAT, Store, read_model, write_json, write_model
from minilm.data.corpus import embedded_corpus, open_corpus
from minilm.data.loader import Loader, fixed_batches
from minilm.data.objectives import ObjectiveName, make_objective
from minilm.data.packing import Packing, pack
from minilm.data.shards import Prepared, prepare
from minilm.data.tokenizer import MULTIPLE
from minilm.errors import ConfigError, DataError
from minilm.evaluation.report import closing, model_card, samples
from minilm.model.encoder import initialise
from minilm.model.heads import LanguageModel
from minilm.recipes import RECIPES, Recipe
from minilm.train.cost import training_flops
from minilm.train.job import Job, step_seconds, train
from minilm.train.log import Log, plot_loss, say
from minilm.train.loop import Optimizers, Plan, evaluate
from minilm.train.losses import language_model_loss, language_model_score
from minilm.train.optim import OptimizerName, ScheduleName, learning_rate, make_optimizers
from minilm.train.runtime import Runtime, peak_memory_mb

EVAL_SEED = 0  # held-out masks are the same in every run


@dataclass(frozen=True)
class Args:
    """Pretrain a language model: raw text in, a model directory out. Alone, it trains on an embedded corpus."""

    data: tuple[str, ...] = ()
    """Files, folders or quoted patterns: text (a blank line ends a document), .jsonl, also .gz and .xz."""
    objective: ObjectiveName = "mlm"
    """Masked, causal or prefix language model."""
    recipe: Literal["quick", "bert-mini"] = "quick"
    """A named run of minilm/recipes.py; the flags below that default to None override its fields."""
    out: Path | None = None
    """Where everything goes; checkpoints/RECIPE-OBJECTIVE if not given."""
    steps: int | None = None
    """Budget in optimizer steps."""
    epochs: float | None = None
    """Budget in passes over the training split."""
    minutes: float | None = None
    """Budget in minutes of training, turned into steps once, by timing the first ones."""
    resume: Literal["auto", "never"] = "auto"
    """auto goes on from the newest complete checkpoint in OUT; never refuses an OUT that holds a run."""
    save_every: int = 500
    """Steps between checkpoints."""
    evaluate_every: int | None = None
    """Steps between evaluations; an eighth of the run if not given."""
    seed: int = 0
    json: str | None = None
    """Write the result there; alone or -, to standard output."""
    dry_run: bool = False
    """One step of every phase, in a scratch directory that is removed."""
    vocab_size: int | None = None
    lowercase: bool | None = None
    length: int | None = None
    """Tokens per row."""
    packing: Packing | None = None
    batch_size: int | None = None
    """Rows per micro-batch."""
    accumulation: int | None = None
    """Micro-batches per step."""
    mask_rate: float | None = None
    optimizer: OptimizerName | None = None
    lr: float | None = None
    """Peak learning rate."""
    weight_decay: float | None = None
    schedule: ScheduleName | None = None
    warmup_frac: float | None = None
    dropout: float | None = None
    held_out: float = 0.05
    """Fraction of the documents, by hash, kept for evaluation."""
    text_field: str = "text"
    """Of a .jsonl line."""
    device: str = "auto"
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
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


def main(args: Args) -> int:
    """One run, from flags to the last line. The exit status."""
    recipe = effective_recipe(args)
    if not args.dry_run:
        out = args.out or Path("checkpoints") / f"{args.recipe}-{args.objective}"
        return pretrain(args, recipe, out)
    with tempfile.TemporaryDirectory() as scratch:
        once = replace(args, steps=1, epochs=None, minutes=None, json=None)
        status = pretrain(once, recipe, Path(scratch) / "dry-run")
        read_model(Path(scratch) / "dry-run")
    say("dry run: data, one step, evaluation, save and reload all work; nothing was kept")
    return status


def effective_recipe(args: Args) -> Recipe:
    """The named recipe with the flags that override it. Raises ConfigError for what cannot be."""
    for name, (low, high) in RANGES.items():
        if (value := getattr(args, name)) is not None and not low <= value <= high:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: give a value from {low:g} to {high:g}")
    if args.vocab_size is not None and args.vocab_size % MULTIPLE:
        raise ConfigError(f"--vocab-size {args.vocab_size}: give a multiple of {MULTIPLE}")
    budgets = [f"--{name}" for name in ("steps", "epochs", "minutes") if getattr(args, name) is not None]
    if len(budgets) > 1:
        raise ConfigError(f"{' and '.join(budgets)}: two budgets at once; give one")
    own = {field.name for field in fields(Recipe)} - {"minutes"}
    overrides = {name: value for name in own if (value := getattr(args, name, None)) is not None}
    if budgets == ["--minutes"]:
        overrides["minutes"] = args.minutes
    return replace(RECIPES[args.recipe], **overrides)


def pretrain(args: Args, recipe: Recipe, out: Path) -> int:
    """Data, model, loop, report. The exit status: 0, or 128 + the signal that stopped it."""
    began = time.perf_counter()
    store = Store(out)
    store.check_writable()
    runtime = Runtime.choose(args.device, args.precision, args.threads)
    data, loader, held_out = load_data(args, recipe, pin_memory=runtime.device.type == "cuda")

    with store.hold():
        settings = {"objective": args.objective, "seed": args.seed, "steps": args.steps, "epochs": args.epochs}
        settings |= {"held_out": args.held_out, **asdict(recipe), "data": data.fingerprint}
        pinned = {"precision": args.precision, "threads": args.threads}
        run = store.earlier_run(settings, {k: v for k, v in pinned.items() if v not in ("auto", None)}, args.resume)
        if "result" in run:
            say(f"{out} is finished; for another run choose another --out")
            return report(run["result"] | {"out": str(out)}, [], args)
        if run:  # bits repeat only at equal precision and thread count
            runtime = Runtime.choose(args.device, run["precision"], run["threads"])
        model, optimizers = build(recipe, data.tokenizer.vocab_size, args.seed, runtime)
        filled = f"{len(loader.rows):,} rows of {recipe.length} tokens, {loader.rows.fill:.1%} full"
        say(f"{runtime.describe()}, {model.encoder.backend} attention; {filled}")
        job = Job(
            model,
            language_model_loss,
            optimizers,
            loader,
            runtime,
            store,
            evaluate=lambda: evaluate(model, language_model_score, held_out, runtime),
            write_model=lambda directory: write_model(directory, model, data.tokenizer, args.objective),
        )
        if not run:
            run = {
                "format": FORMAT,
                "settings": settings,
                "steps": steps_of_budget(args, recipe, job),
                "precision": runtime.precision,
                "threads": runtime.threads,
                "backend": model.encoder.backend,
                "versions": {"minilm": minilm.__version__, "torch": torch.__version__},
            }
            write_json(out / "run.json", run)
        log, stopped_by = train(job, plan_of(args, recipe, run["steps"]))
        if stopped_by:
            return 128 + stopped_by

        result = {"objective": args.objective, **measure(job, model, log), "vocab_size": data.tokenizer.vocab_size}
        result |= {"unigram_loss": unigram_loss(data.counts, held_out), "steps": run["steps"], "out": str(out)}
        result |= {"versions": run["versions"], "total_seconds": time.perf_counter() - began}

        def write_final(directory: Path) -> None:
            job.write_model(directory)
            (directory / "README.md").write_text(model_card(result, settings), encoding="utf-8")

        store.finish(write_final)
        store.prune(keep=1)
        if not plot_loss(log.file, out / "loss.png", result["unigram_loss"]):
            say("no loss.png, for matplotlib is missing: pip install 'minilm[eval]'")
        write_json(out / "run.json", run | {"result": result})
        return report(result, samples(model, data.tokenizer, data.held_out, args.objective), args)


def load_data(args: Args, recipe: Recipe, pin_memory: bool) -> tuple[Prepared, Loader, list[Batch]]:
    """The tokenised corpus, batches to train on, and the fixed batches to evaluate on."""
    cache = args.cache_dir.expanduser()
    corpus = open_corpus(args.data, args.text_field) if args.data else embedded_corpus(cache)
    exact = args.vocab_size is not None
    data = prepare(corpus, cache, args.held_out, None, recipe.vocab_size, exact, recipe.lowercase, say)
    if data.note:
        say(data.note)
    rows, held_out = (pack(each, recipe.packing, recipe.length, data.tokenizer) for each in (data.train, data.held_out))
    objective = make_objective(args.objective, data.tokenizer, args.seed, recipe.mask_rate)
    loader = Loader(rows, objective, recipe.batch_size, args.seed, pin_memory)
    if not len(held_out):
        raise DataError(f"the held-out split makes no row of {rows.T} tokens; give more text, or raise --held-out")
    return data, loader, list(fixed_batches(held_out, make_objective(args.objective, data.tokenizer, EVAL_SEED)))


def build(recipe: Recipe, vocab_size: int, seed: int, runtime: Runtime) -> tuple[LanguageModel, Optimizers]:
    """A model with fresh weights, on its device, and what updates it."""
    torch.manual_seed(seed)
    model = LanguageModel(recipe.encoder_config(vocab_size), runtime.backend(recipe.length))
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
    step_s = step_seconds(job, recipe.accumulation, recipe.max_norm)
    steps = max(1, int(60 * recipe.minutes / step_s))
    say(f"{1000 * step_s:.0f} ms a step: {recipe.minutes:g} minutes are {steps:,} steps")
    return steps


def plan_of(args: Args, recipe: Recipe, steps: int) -> Plan:
    """How long, how fast, and how often to look."""
    warmup = math.ceil(recipe.warmup_frac * steps)
    return Plan(
        steps=steps,
        schedule=lambda step: learning_rate(recipe.schedule, step, steps, warmup),
        accumulation=recipe.accumulation,
        max_norm=recipe.max_norm,
        evaluate_every=args.evaluate_every or math.ceil(steps / 8),
        save_every=args.save_every,
    )


def measure(job: Job, model: LanguageModel, log: Log) -> dict[str, Any]:
    """What was learned and what it cost."""
    score, loader = job.evaluate(), job.loader
    tokens, targets = loader.batch_size * loader.rows.T, len(loader.batch(0).target)  # of a micro-batch
    micro_batches = loader.taken // loader.batch_size
    return {
        "held_out_loss": score.loss,
        "accuracy": score.accuracy,
        "targets": score.targets,
        "tokens": log.tokens,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": log.seconds,
        "tokens_per_s": log.tokens / max(log.seconds, 1e-9),
        "flops": micro_batches * training_flops(model.cfg, tokens, loader.rows.T, targets),
        "peak_mb": peak_memory_mb(job.runtime.device),
        "precision": job.runtime.precision,
    }


def unigram_loss(counts: np.ndarray, batches: list[Batch]) -> float:
    """Nats per target of a model that knows only how often each token occurs in the training split, plus one."""
    log_p = torch.from_numpy(np.log((counts + 1) / (counts.sum() + len(counts))))
    target = torch.cat([batch.target for batch in batches])
    return -float(log_p[target[target != IGNORE]].mean())


def report(result: dict[str, Any], shown: list[str], args: Args) -> int:
    """Print what a run ends with: on standard output, unless that is for JSON."""
    for line in closing(result, shown):
        say(line) if args.json == "-" else print(line)
    if args.json:
        cli.write_result(args.json, result)
    return 0


if __name__ == "__main__":
    cli.run(main, Args)

"""Pretrain a language model: raw text in, a model directory out.

The path of a sentence: corpus -> tokenizer -> shards -> packing -> objectives -> loader (minilm/data), encoder and
head (minilm/model), loss, optimizer and loop (minilm/train), and to disk (minilm/checkpoint).
"""

import copy
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
from minilm.checkpoint.hf import CLASSES
from minilm.checkpoint.store import (
    FORMAT,
    Store,
    load_weights,
    read_model,
    read_training,
    write_json,
    write_model,
    write_training,
)
from minilm.data.corpus import embedded_corpus, open_corpus
from minilm.data.loader import Loader, fixed_batches
from minilm.data.objectives import REACH, ObjectiveName, make_objective
from minilm.data.packing import Packing, pack
from minilm.data.shards import Prepared, prepare
from minilm.data.tokenizer import MULTIPLE
from minilm.errors import ConfigError, DataError
from minilm.evaluation.report import PREFIX_NOTE, model_card, samples, summary
from minilm.model.encoder import initialise
from minilm.model.heads import LanguageModel
from minilm.recipes import RECIPES, Recipe
from minilm.train.cost import training_flops
from minilm.train.log import Log, plot_loss, say
from minilm.train.loop import Optimizers, Plan, TrainingError, evaluate, fit, train_step
from minilm.train.losses import language_model_loss, language_model_score
from minilm.train.optim import OptimizerName, ScheduleName, learning_rate, make_optimizers
from minilm.train.runtime import Runtime, StopSignals, peak_memory_mb, rng_state, set_rng_state

EVAL_SEED = 0  # held-out masks are the same in every run
WARM_STEPS, TIMED_STEPS = 3, 20  # on a copy of the model, to turn --minutes into steps


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
    "length": (8, 2**16),
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


@dataclass(frozen=True)
class Job:
    """Everything that a run works with."""

    args: Args
    recipe: Recipe
    store: Store
    runtime: Runtime
    data: Prepared
    loader: Loader  # batches to train on
    examined: list[Batch]  # the fixed held-out batches
    model: LanguageModel
    optimizers: Optimizers


def pretrain(args: Args, recipe: Recipe, out: Path) -> int:
    """Data, model, loop, report. The exit status: 0, or 128 + the signal that stopped it."""
    began = time.perf_counter()
    store = Store(out)
    store.check_writable()
    runtime = Runtime.choose(args.device, args.precision, args.threads)
    data, loader, examined = load_data(args, recipe, pin_memory=runtime.device.type == "cuda")

    with store.hold():
        settings = {"objective": args.objective, "seed": args.seed, "steps": args.steps, "epochs": args.epochs}
        settings |= {"held_out": args.held_out, **asdict(recipe), "data": data.fingerprint}
        pinned = {"precision": args.precision, "threads": args.threads}
        run = store.earlier_run(settings, {k: v for k, v in pinned.items() if v not in ("auto", None)}, args.resume)
        if "result" in run:
            say(f"{out} is finished; for another run choose another --out")
            return report(run["result"], [], args)
        if run:  # bits repeat only at equal precision and thread count
            runtime = Runtime.choose(args.device, run["precision"], run["threads"])
        model = build_model(recipe, data.tokenizer.vocab_size, args.seed, runtime)
        optimizers = build_optimizers(recipe, model, runtime)
        job = Job(args, recipe, store, runtime, data, loader, examined, model, optimizers)
        filled = f"{len(loader.rows):,} rows of {recipe.length} tokens, {loader.rows.fill:.1%} full"
        say(f"{runtime.describe()}, {model.encoder.backend} attention; {filled}")
        if not run:
            run = {
                "format": FORMAT,
                "settings": settings,
                "steps": steps_of_budget(job),
                "precision": runtime.precision,
                "threads": runtime.threads,
                "backend": model.encoder.backend,
                "versions": {"minilm": minilm.__version__, "torch": torch.__version__},
            }
            write_json(out / "run.json", run)
        log, stopped_by = train(job, run["steps"])
        if stopped_by:
            return 128 + stopped_by
        result = {**measure(job, log), "steps": run["steps"], "versions": run["versions"], "out": str(out)}
        result["total_seconds"] = time.perf_counter() - began

        def write_final(directory: Path) -> None:
            write_model(directory, model, data.tokenizer, args.objective)
            card = model_card(result, settings, next_command(args.objective, out))
            (directory / "README.md").write_text(card, encoding="utf-8")

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
    rows = pack(data.train, recipe.packing, recipe.length, data.tokenizer)
    held_out = pack(data.held_out, recipe.packing, recipe.length, data.tokenizer)
    objective = make_objective(args.objective, data.tokenizer, args.seed, recipe.mask_rate)
    loader = Loader(rows, objective, recipe.batch_size, args.seed, pin_memory)
    if not len(held_out):
        raise DataError(f"the held-out split makes no row of {rows.T} tokens; give more text, or raise --held-out")
    judge = make_objective(args.objective, data.tokenizer, EVAL_SEED)
    return data, loader, list(fixed_batches(held_out, judge))


def build_model(recipe: Recipe, vocab_size: int, seed: int, runtime: Runtime) -> LanguageModel:
    """A model with fresh weights, on its device."""
    torch.manual_seed(seed)
    model = LanguageModel(recipe.encoder_config(vocab_size), runtime.backend(recipe.length))
    initialise(model, output_scale=recipe.output_scale)
    return model.to(runtime.device)


def build_optimizers(recipe: Recipe, model: LanguageModel, runtime: Runtime) -> Optimizers:
    betas = (0.9, recipe.beta2)
    return make_optimizers(
        model, recipe.optimizer, recipe.lr, recipe.weight_decay, betas, muon_dtype=runtime.muon_dtype
    )


def steps_of_budget(job: Job) -> int:
    """The budget in steps. Minutes are turned into steps by timing a few on a copy of the model, so that a run
    of so many minutes is the run of that many steps."""
    args, recipe, loader = job.args, job.recipe, job.loader
    rows_per_step = recipe.batch_size * recipe.accumulation
    if args.steps is not None:
        return args.steps
    if args.epochs is not None:
        return math.ceil(args.epochs * len(loader.rows) / rows_per_step)
    trial, runtime, rng = copy.deepcopy(job.model), replace(job.runtime), rng_state()  # replaced: its own scaler
    optimizers = build_optimizers(recipe, trial, runtime)
    for step in range(WARM_STEPS + TIMED_STEPS):
        if step == WARM_STEPS:
            mark = time.perf_counter()
        starts = range(step * rows_per_step, (step + 1) * rows_per_step, recipe.batch_size)
        micro_batches = [loader.batch(start) for start in starts]
        nats, _, _ = train_step(trial, language_model_loss, optimizers, micro_batches, runtime, recipe.max_norm)
        float(nats)  # waits for the device
    step_s = (time.perf_counter() - mark) / TIMED_STEPS
    set_rng_state(rng)
    say(f"{step_s * 1000:.0f} ms a step: {recipe.minutes:g} minutes are {recipe.minutes * 60 / step_s:,.0f} steps")
    return max(1, int(recipe.minutes * 60 / step_s))


def train(job: Job, steps: int) -> tuple[Log, int]:
    """Train from the newest checkpoint, or from the start, to the end. The log, and the signal that came between."""
    args, recipe, runtime, model, loader = job.args, job.recipe, job.runtime, job.model, job.loader
    start, log = restore(job, steps)

    def examine(step: int) -> None:
        with log.paused():
            log.evaluation(step, evaluate(model, language_model_score, job.examined, runtime))

    def save(step: int) -> None:
        def write(directory: Path) -> None:
            write_model(directory, model, job.data.tokenizer, args.objective)
            now = {"step": step, "tokens": log.tokens, "seconds": log.seconds}
            now |= {"loader": loader.state_dict(), "scaler": runtime.scaler.state_dict()}
            write_training(directory, model, job.optimizers, rng_state(), now)

        with log.paused():
            job.store.save(step, write)

    warmup = math.ceil(recipe.warmup_frac * steps)
    plan = Plan(
        steps=steps,
        schedule=lambda step: learning_rate(recipe.schedule, step, steps, warmup),
        accumulation=recipe.accumulation,
        max_norm=recipe.max_norm,
        evaluate_every=args.evaluate_every or math.ceil(steps / 8),
        save_every=args.save_every,
    )
    with StopSignals() as signals:
        try:
            done = fit(
                model,
                language_model_loss,
                job.optimizers,
                iter(loader),
                runtime,
                plan,
                watch=log,
                start=start,
                evaluate=examine,
                save=save,
                stop=lambda: signals.received is not None,
            )
        except TrainingError as error:
            _, rows = loader.where(error.step * recipe.accumulation * recipe.batch_size)
            raise TrainingError(error.step, f"{error} (rows {', '.join(map(str, rows[:8]))} ...)") from error
        finally:
            log.close()
    if done == steps:
        return log, 0
    say(f"stopped and saved; the same command goes on from step {done:,}")
    return log, signals.received or 0


def restore(job: Job, steps: int) -> tuple[int, Log]:
    """The step to go on from, with everything as it was then, and the log of the run so far."""
    state: dict[str, Any] = {"step": 0, "tokens": 0, "seconds": 0.0}
    if checkpoint := job.store.latest(say):
        model_type, _ = CLASSES[job.model.cfg.norm_order, job.args.objective]
        load_weights(job.model, checkpoint, model_type)
        rng, state = read_training(checkpoint, job.model, job.optimizers)
        set_rng_state(rng)
        job.loader.load_state_dict(state["loader"])
        job.runtime.scaler.load_state_dict(state["scaler"])
    start = state["step"]
    say(f"going on from step {start:,} of {steps:,}" if start else f"training for {steps:,} steps")
    file = job.store.out / "metrics.jsonl"
    return start, Log(file, steps, start, job.recipe.lr, state["tokens"], state["seconds"])


def measure(job: Job, log: Log) -> dict[str, Any]:
    """What was learned and what it cost."""
    score = evaluate(job.model, language_model_score, job.examined, job.runtime)
    T, batch_size = job.loader.rows.T, job.loader.batch_size
    targets = len(job.loader.batch(0).target)
    micro_batches = job.loader.taken // batch_size
    return {
        "objective": job.args.objective,
        "held_out_loss": score.loss,
        "accuracy": score.accuracy,
        "unigram_loss": unigram_loss(job.data.counts, job.examined),
        "targets": score.targets,
        "tokens": log.tokens,
        "parameters": sum(p.numel() for p in job.model.parameters()),
        "seconds": log.seconds,
        "tokens_per_s": log.tokens / max(log.seconds, 1e-9),
        "flops": micro_batches * training_flops(job.model.cfg, batch_size * T, T, targets),
        "peak_mb": peak_memory_mb(job.runtime.device),
        "precision": job.runtime.precision,
        "vocab_size": job.data.tokenizer.vocab_size,
    }


def unigram_loss(counts: np.ndarray, batches: list[Batch]) -> float:
    """Nats per target of a model that knows only how often each token occurs in the training split, plus one."""
    log_p = torch.from_numpy(np.log((counts + 1) / (counts.sum() + len(counts))))
    target = torch.cat([batch.target for batch in batches])
    return -float(log_p[target[target != IGNORE]].mean())


def next_command(objective: ObjectiveName, out: Path) -> str:
    """What to type to use the model."""
    use = "fill_mask(model, tokenizer, 'Return the [MASK] of the list.')"
    if objective != "mlm":
        use = f"continue_text(model, tokenizer, 'Return the', '{REACH[objective]}')"
    return f"""python -c "import minilm; model, tokenizer, _ = minilm.read_model('{out}'); print(minilm.{use})\""""


def report(result: dict[str, Any], shown: list[str], args: Args) -> int:
    """The last lines of a run: on standard output, unless that is for JSON."""
    lines = [f"           {line}" for line in shown]
    lines += summary(result)
    if result["objective"] == "prefix":
        lines.append(PREFIX_NOTE)
    lines += [
        f"saved      {result['out']}",
        f"next       {next_command(result['objective'], Path(result['out']))}",
    ]
    for line in lines:
        say(line) if args.json == "-" else print(line)
    if args.json:
        cli.write_result(args.json, result)
    return 0


if __name__ == "__main__":
    cli.run(main, Args)

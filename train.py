"""Pretrain a language model: raw text in, a model directory out.

The path of a sentence: corpus -> tokenizer -> shards -> packing -> objectives -> loader (minilm/data), encoder and
head (minilm/model), loss, optimizer and loop (minilm/train), and to disk (minilm/checkpoint). Flags and report are in
minilm/pretraining.
"""

from minilm.errors import end_quietly

if __name__ == "__main__":
    end_quietly()  # before torch is loaded

import math
import os
import signal
import tempfile
import warnings
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minilm import cli
from minilm.batch import Batch
from minilm.checkpoint.model import (
    Pretrained,
    add_words,
    find_model,
    read_model,
    read_state,
    weights_fingerprint,
    write_model,
)
from minilm.checkpoint.store import DRY_RUN, Run, Store, held_out_of, remove_dry_runs
from minilm.data.corpus import open_corpus
from minilm.data.loader import Kind, Loader, fixed_batches, shared
from minilm.data.objectives import ObjectiveName, make_objective
from minilm.data.packing import Rows, pack
from minilm.data.prepare import prepare
from minilm.data.shards import Prepared, Shard
from minilm.data.tokenizer import Tokenizer
from minilm.errors import CheckpointError, ConfigError, DataError
from minilm.machine.ranks import Applied, Ranks, whole_state
from minilm.machine.runtime import Runtime
from minilm.model.attention import Backend, fastest_backend
from minilm.model.encoder import DROPOUTS, EncoderConfig, initialise
from minilm.model.heads import LanguageModel
from minilm.pretraining.flags import Args, check_result, check_sharding, effective_recipe
from minilm.pretraining.report import closing, corpus_lines, corpus_report, estimate_lines, model_card, samples, summary
from minilm.pretraining.unigram import unigram_loss
from minilm.recipes import NOMINAL_STEPS, Recipe
from minilm.train.cheap import cheapen
from minilm.train.graphs import WARM_UP, step_of
from minilm.train.job import Job, begin, finish, reopened, runtime_of, train, with_less
from minilm.train.log import Log, plot_loss, say
from minilm.train.loop import Loss, Optimizers, OutOfMemory, Plan, evaluate
from minilm.train.losses import language_model_loss, language_model_score
from minilm.train.measure import measure, rehearse, step_seconds
from minilm.train.optim import lr_fraction, make_optimizers

OWN = ("data", "model", "add_tokens", "out", "cache_dir", "json", "device", "threads")  # may differ among processes
EVAL_SEED = 0  # held-out masks are the same in every run
MAX_TIMING_S = 60.0
MOST_UNKNOWN = 0.01  # of the tokens; with more a run says so


def main(args: Args) -> None:
    """Pretrain as `args` say, and print and write the result."""
    ranks = Ranks.join()
    ranks.expect_same({name: value for name, value in asdict(args).items() if name not in OWN}, "other flags")
    pretrained = ranks.agreed(lambda: starting_model(args))
    objective = args.objective or (pretrained.objective if pretrained else "mlm")
    recipe = ranks.agreed(lambda: effective_recipe(args, objective, pretrained))
    out = args.out or Path("checkpoints") / f"{args.recipe_name}-{objective}"
    ranks.agreed(lambda: check_result(args, out))
    if args.prepare_only:
        result, shown = report_of_corpus(args, recipe, pretrained)
    elif args.dry_run:
        nearest = ranks.agreed(Store(out).check_writable)
        asked = asked_for(args, objective, recipe, pretrained)
        ranks.from_first(lambda: (Store(out).earlier_run(*asked, args.resume), remove_dry_runs(nearest)))
        with tempfile.TemporaryDirectory(prefix=DRY_RUN, dir=nearest) as scratch:
            store = Store(Path(scratch) / "run", temporary=True)
            result, shown = pretrain(args, objective, recipe, store, pretrained)
    else:
        ranks.agreed(Store(out).check_writable)
        result, shown = pretrain(args, objective, recipe, Store(out), pretrained)
        shown = closing(result, out, shown) if ranks.first else []
        result = result | {"out": str(out)}
    if ranks.first:
        for line in shown:
            say(line) if args.json == "-" else print(line)
        if args.json:
            cli.write_result(args.json, result)


def starting_model(args: Args) -> Pretrained | None:
    """The model of --model, its vocabulary extended by --add-tokens; None without --model."""
    if args.model is None:
        if args.add_tokens:
            raise ConfigError(
                f"--add-tokens {args.add_tokens}: extends the vocabulary of a model; name it with --model"
            )
        return None
    directory = find_model(args.model, flag="--model")
    before = held_out_of(directory)
    if before is not None and before < args.held_out:
        was = f"--model was trained with {before:g}"
        say(f"--held-out {args.held_out:g}: {was}, so of the same text it has learned documents that are held out now")
    with warnings.catch_warnings(record=True) as heads:
        pretrained = read_model(directory, head_seed=args.seed)
    for warning in heads:
        say(str(warning.message))
    if args.add_tokens is None:
        return pretrained
    grown = add_words(pretrained, args.add_tokens)
    say(f"words added to the vocabulary: {grown.tokenizer.vocab_size - pretrained.tokenizer.vocab_size:,}")
    return grown


def pretrain(
    args: Args, objective: ObjectiveName, recipe: Recipe, store: Store, pretrained: Pretrained | None
) -> tuple[dict[str, Any], list[str]]:
    """Load data, build the model, train it and write it to `store`: (result, sample lines of what it predicts). A dry
    run gives (estimate, lines of it)."""
    out, ranks = store.out, Ranks.join()
    with ExitStack() as held:
        ranks.agreed(lambda: held.enter_context(store.hold()) if ranks.first else None)
        settings, choices = asked_for(args, objective, recipe, pretrained)
        run = ranks.from_first(lambda: store.earlier_run(settings, choices, args.resume))
        runtime = ranks.agreed(lambda: runtime_of(run, args.device, args.precision, args.threads, args.deterministic))
        check_sharding(args, recipe, runtime, run)
        run = reopened(run, store, ranks)
        trains = not (run and run.result)
        loss = runtime.compiled(language_model_loss) if args.compile and trains else language_model_loss
        take_step = step_of(runtime, args.cuda_graphs and trains)
        data, rows, held_out, reads = load_data(args, objective, recipe, runtime, pretrained)
        if run and run.settings["data"] != data.fingerprint:
            other = "" if args.data else ", or with other versions of the packages whose documentation it is"
            raise ConfigError(f"--out {out}: began with other text{other}; use the same, or another --out")
        if run and run.result:
            return finished(run.result, out), []

        shape = recipe.encoder_config(data.tokenizer.vocab_size) if pretrained is None else pretrained.model.cfg
        usual = fastest_backend(runtime.device, runtime.dtype, recipe.length, recipe.dropout, shape.head_width)
        backend = run.backend if run else usual
        forward, optimizers = build(args, recipe, data.tokenizer.vocab_size, runtime, backend, pretrained)
        model = forward.model
        saved_cfg = saved_config(args, model.cfg, pretrained)
        parameters = sum(p.numel() for p in model.parameters())
        say(f"{parameters / 1e6:.1f} M parameters on {runtime.describe()}, {backend} attention; into {out}")
        longest = rows[recipe.length]
        say(f"{len(longest):,} rows of {longest.T} tokens, {longest.fill:.1%} full")
        if recipe.pairs:
            say("training loss: masked tokens and pairs; held-out loss: masked tokens only")
        loader = partial(loader_of, args, objective, recipe, rows, data.tokenizer, runtime)
        step_s, within = {}, None
        if args.dry_run or not (run or recipe.steps or args.epochs):
            step_s, within = timed(args, recipe, forward, loss, optimizers, loader(NOMINAL_STEPS), runtime)
        steps = run.steps if run else steps_of_budget(args, recipe, longest, step_s)
        own_held_out = shared(held_out, ranks.rank, ranks.world)
        job = Job(
            run.settings if run else settings | {"data": data.fingerprint},
            forward,
            loss,
            optimizers,
            loader(steps),
            runtime,
            store,
            evaluate=lambda: evaluate(forward, language_model_score, own_held_out, runtime),
            write_model=lambda directory, state: write_model(
                directory, model, data.tokenizer, objective, recipe.pairs, state, saved_cfg
            ),
            read_state=lambda directory: read_state(directory, model),
            unigram=unigram_of(data, objective, held_out),
            evaluate_first=pretrained is not None,
            may_miss_saves=args.on_save_error == "go-on",
            auto_batch=args.auto_batch,
            take_step=take_step,
            within=within,
            until=cli.time_up(args.time_limit),
        )
        plan = plan_of(args, recipe, steps)
        if args.dry_run:
            estimate = rehearse(job, plan, step_s)
            return estimate, estimate_lines(estimate)
        if not run:
            run = begin(job, steps, backend)
        log = train(job, plan)
        result = {
            "objective": objective,
            **measure(job, log),
            "held_out_documents": len(data.held_out),
            "held_out_tokens": len(data.held_out.tokens),
            "held_out_reads": reads,
            "vocab_size": data.tokenizer.vocab_size,
        }
        weights = whole_state(model, kept=ranks.first)
        shown = conclude(run, job, log, data, result, weights) if ranks.first else []
        if log.signal is not None:  # came when nothing was left to do but to write the model
            signal.raise_signal(log.signal)
        return result, shown


def finished(result: dict[str, Any], out: Path) -> dict[str, Any]:
    """The result of a run that is finished, which is said. Raises CheckpointError if it is malformed."""
    say(f"{out} is finished; for another run choose another --out")
    try:
        summary(result)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{out / 'run.json'}: its result is malformed ({error!r})") from error
    return result


def loader_of(
    args: Args,
    objective: ObjectiveName,
    recipe: Recipe,
    rows: dict[int, Rows],
    tokenizer: Tokenizer,
    runtime: Runtime,
    steps: int,
) -> Loader:
    """This process's batches of a run of `steps` steps."""
    mask = recipe.mask_rate, recipe.mask_rate_end, recipe.whole_words
    return Loader(
        recipe.stretches(steps),
        rows,
        make_objective(objective, tokenizer, args.seed, *mask),
        args.seed,
        runtime.ranks.rank,
        runtime.ranks.world,
        pin_memory=runtime.device.type == "cuda",
        few_sizes=args.cuda_graphs,
    )


def timed(
    args: Args, recipe: Recipe, forward: Applied, loss: Loss, optimizers: Optimizers, loader: Loader, runtime: Runtime
) -> tuple[dict[Kind, float], int | None]:
    """(seconds of a step of each kind, tokens of a micro-batch if --auto-batch had to make it smaller)."""
    say("timing a step")
    limit_s = min(MAX_TIMING_S, 0.1 * 60 * (recipe.minutes or math.inf))
    within = None
    while True:
        try:
            step_s = step_seconds(
                forward,
                loss,
                optimizers,
                loader,
                runtime,
                recipe.max_norm,
                limit_s,
                on_copy=not args.dry_run,
                take_step=step_of(runtime, args.cuda_graphs),
                warm_up=WARM_UP if args.cuda_graphs else int(args.compile),
            )
            return step_s, within
        except OutOfMemory as error:
            loader, within = with_less(loader, error, args.auto_batch, runtime.ranks, within)


def conclude(
    run: Run, job: Job, log: Log, data: Prepared, result: dict[str, Any], weights: dict[str, Tensor]
) -> list[str]:
    """Write the final model with its card, result and loss plot to OUT: sample lines of what it predicts."""
    out, training = job.store.out, "training, pairs included" if run.settings["pairs"] else "training"
    finish(job, run, weights, model_card(result, out, run.settings), result)
    plot_loss(log.file, out / "loss.png", result["unigram_loss"], training)
    return samples(read_model(out), data.held_out)


def asked_for(
    args: Args, objective: ObjectiveName, recipe: Recipe, pretrained: Pretrained | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(settings, choices) that a resumed run must be given again. choices: --precision, if it is given, which a run
    otherwise decides by itself."""
    choices = {} if args.precision == "auto" else {"precision": args.precision}
    settings = {"objective": objective, "seed": args.seed, "epochs": args.epochs, "held_out": args.held_out}
    if pretrained:
        settings["model"] = f"{os.path.normpath(args.model)} ({weights_fingerprint(pretrained.model)})"
    settings |= {name: getattr(args, name) for name in ("deterministic", "compile", "cuda_graphs")}
    return settings | asdict(recipe), choices


def load_data(
    args: Args, objective: ObjectiveName, recipe: Recipe, runtime: Runtime, pretrained: Pretrained | None
) -> tuple[Prepared, dict[int, Rows], list[Batch], float]:
    """The tokenised corpus, its training rows by length, the fixed held-out batches, and how often these read each
    held-out row."""
    data = runtime.ranks.one_by_one(lambda: prepared(args, recipe, pretrained))
    runtime.ranks.expect_same(data.fingerprint, "other text, or another vocabulary,")

    def packed(shard: Shard, T: int, seed: int, short_seq_prob: float) -> Rows:
        return pack(shard, recipe.packing, T, data.tokenizer, recipe.pairs, seed, short_seq_prob)

    def all_rows() -> tuple[dict[int, Rows], Rows]:
        train = {T: packed(data.train, T, args.seed, recipe.short_seq_prob) for T in recipe.lengths}
        return train, packed(data.held_out, recipe.length, EVAL_SEED, 0.0)

    rows, held_out_rows = runtime.ranks.one_by_one(all_rows)
    if not len(held_out_rows):
        raise DataError(
            f"the {len(data.held_out)} of {len(data.hashes)} documents held out do not fill a row of {recipe.length} "
            f"tokens; give more documents (a blank line ends one), or raise --held-out"
        )
    held_out = list(fixed_batches(held_out_rows, make_objective(objective, data.tokenizer, EVAL_SEED)))
    if not any(batch.count for batch in held_out):
        raise DataError("the held-out text is all unknown words, so nothing to predict; give other text")
    return data, rows, held_out, sum(len(batch.tokens.input_ids) for batch in held_out) / len(held_out_rows)


def prepared(args: Args, recipe: Recipe, pretrained: Pretrained | None) -> Prepared:
    """The tokenised corpus, made or found in the cache."""
    data = prepare(
        open_corpus(args.data, args.text_field) if args.data else None,
        args.cache_dir,
        held_out_frac=args.held_out,
        tokenizer=pretrained.tokenizer if pretrained else None,
        vocab_size=recipe.vocab_size,
        exact_vocab=args.vocab_size is not None,
        lowercase=recipe.lowercase,
        say=say,
    )
    if data.note:
        say(data.note)
    if data.unknown_rate > MOST_UNKNOWN:
        mend = "is it a model of this language?" if pretrained else "raise --vocab-size"
        say(f"{data.unknown_rate:.1%} of the tokens are unknown words, from which nothing is learned; {mend}")
    return data


def report_of_corpus(args: Args, recipe: Recipe, pretrained: Pretrained | None) -> tuple[dict[str, Any], list[str]]:
    """Statistics of the tokenised corpus: (figures, lines to print)."""
    data = prepared(args, recipe, pretrained)
    rows = pack(
        data.train, recipe.packing, recipe.length, data.tokenizer, recipe.pairs, short_seq_prob=recipe.short_seq_prob
    )
    report = corpus_report(data, rows)
    return report, corpus_lines(report)


def build(
    args: Args, recipe: Recipe, vocab_size: int, runtime: Runtime, backend: Backend, pretrained: Pretrained | None
) -> tuple[Applied, Optimizers]:
    """The model on its device, with fresh weights or those of --model, and its optimizers."""
    torch.manual_seed(args.seed)
    if pretrained is None:
        model = LanguageModel(recipe.encoder_config(vocab_size), backend, recipe.pairs is not None)
        initialise(model, output_scale=recipe.output_scale, word_std=recipe.word_std, sinusoids=recipe.sinusoids)
    else:
        if pretrained.model.pair is not None and recipe.pairs is None:
            say(f"--model {args.model}: its pair head and pooler are dropped; --pairs keeps them")
        cfg = replace(pretrained.model.cfg, **dict.fromkeys(DROPOUTS, recipe.dropout))
        model = LanguageModel(cfg, backend, recipe.pairs is not None)
        initialise(model)
        own, known = model.state_dict(), pretrained.model.state_dict()  # a head for pairs may be in one of them only
        model.load_state_dict(own | {name: known[name] for name in own.keys() & known.keys()})
    model.encoder.gradient_checkpointing = recipe.gradient_checkpointing
    if runtime.device.type == "cpu":
        cheapen(model)
    forward = Applied(model)
    if args.shard:
        runtime.ranks.shard(forward, model.encoder.layers, runtime.device)
    forward.to(runtime.device)
    betas = 0.9, recipe.beta2
    return forward, make_optimizers(
        model, recipe.optimizer, recipe.lr, recipe.weight_decay, betas, recipe.eps, runtime.muon_dtype
    )


def saved_config(args: Args, cfg: EncoderConfig, pretrained: Pretrained | None) -> EncoderConfig:
    """What config.json says of a model trained with `cfg`: the dropout that it came with, unless another is asked."""
    if pretrained is None or args.dropout is not None:
        return cfg
    return replace(cfg, **{name: getattr(pretrained.model.cfg, name) for name in DROPOUTS})


def steps_of_budget(args: Args, recipe: Recipe, rows: Rows, step_s: dict[Kind, float]) -> int:
    """The budget in steps. step_s: seconds of a step of each kind, for a budget in minutes."""
    if recipe.steps is not None:
        return recipe.steps
    nominal = recipe.stretches(NOMINAL_STEPS)
    if args.epochs is not None:
        tokens = sum(each.tokens for each in nominal) / NOMINAL_STEPS  # a step, on average
        return max(1, math.ceil(args.epochs * len(rows) * rows.T / tokens))
    mean_s = sum(each.steps * step_s[each.kind] for each in nominal) / NOMINAL_STEPS
    steps = max(1, int(60 * recipe.minutes / mean_s))
    say(f"{1000 * mean_s:.0f} ms a step: {recipe.minutes:g} minutes are about {steps:,} steps")
    return steps


def plan_of(args: Args, recipe: Recipe, steps: int) -> Plan:
    """Number of steps, learning-rate schedule, and intervals of evaluation and saving."""
    warmup = math.ceil(recipe.warmup_frac * steps)
    return Plan(
        steps=steps,
        schedule=lambda step: lr_fraction(recipe.schedule, step, steps, warmup, recipe.decay_frac),
        max_norm=recipe.max_norm,
        seed=args.seed,
        evaluate_every=args.evaluate_every or math.ceil(steps / 5),
        save_every=args.save_every,
    )


def unigram_of(data: Prepared, objective: ObjectiveName, held_out: list[Batch]) -> float:
    """Held-out loss of a model that knows only token frequencies."""
    target = torch.cat([batch.target for batch in held_out])
    return unigram_loss(data.counts, target, data.tokenizer.special_ids if objective == "mlm" else ())


if __name__ == "__main__":
    cli.run(main, Args)

"""Fine-tuning beside a plain transformers loop: the same weights, examples and settings.

    python -m benchmarks.finetuning --set sst2 --model DIR --data DIR --results benchmarks/results/finetuning.jsonl

Each side runs in processes of its own, one after the other in turn, over the same seeds. Timed are tokenising,
training, and at the end one scoring of the dev part and a save, not imports, loading or the test. Both sides have their
last model, not the best by dev. The loop pads each batch to its longest example and has torch's fused AdamW, as minilm.
Tokens are real ones, padding not counted. minilm has glibc keep freed memory, the loop is as its documentation has it
(GLIBC_TUNABLES would do that for it, too). Each run is a line of --results, and is not run again where that has it;
`load` is how many processes ran on average, `threads` how many each of its own had (OMP_NUM_THREADS).
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.kept import keep, read
from benchmarks.labelled import SETS, LabelledSet, Splits
from benchmarks.machine import ROOT, machine, weights_of, when
from minilm import cli

SIDES = ("transformers", "minilm")
BATCH = 32
NEVER = 10**9  # steps between evaluations; one follows the last step
LOOK_EVERY = 30  # seconds
BUSY = 1.25  # processes that run, for each core, where something else does, too
CHOSEN = ("epochs", "lr", "length")  # of a set's own settings


@dataclass(frozen=True)
class Args:
    """Train both sides in turn and print a table."""

    model: str
    """A directory that both libraries open."""
    data: Path
    """The directory of the set's files."""
    set: Literal["sst2", "sst2-phrases", "sms", "stsb", "stsb-vectors", "subjqa", "capitals"] = "sst2"
    """What is learned."""
    seeds: int = 3
    """Runs of each side."""
    epochs: float | None = None
    """Passes over the examples; the set's own, if not given, as the two below."""
    lr: float | None = None
    """Peak learning rate."""
    length: int | None = None
    """Tokens of an example, at most."""
    steps: int | None = None
    """Instead of epochs, for a look at the speed alone: the test is left out."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Of both sides: autocast, or none."""
    results: Path | None = None
    """A .jsonl: what ran is added to it, and what it holds is not run again."""
    keep: Path | None = None
    """A directory: runs are kept there, and one that was stopped goes on, minilm's where SIGTERM stopped it. For the
    scores: seconds are then not those of a run without it."""
    side: Literal["both", "transformers", "minilm"] = "both"
    """One alone prints its figures as JSON; that is how this runs each."""
    seed: int = 0
    """The first."""


def main(args: Args) -> None:
    if args.side != "both":
        print(json.dumps(one(args)))
        return
    rows = read(args.results)
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for seed in range(args.seed, args.seed + args.seeds):
        for side in SIDES:
            what = settings(args) | {"side": side, "seed": seed} | machine() | {"threads": torch.get_num_threads()}
            row = next((row for row in rows if what.items() <= row.items()), None)
            if row is None:
                row = what | measured(args, side, seed) | when()
                keep(args.results, [row])
                print(json.dumps(row), file=sys.stderr, flush=True)
            found[side].append(row)
    metric = SETS[args.set].metric
    load = max(row["load"] for runs in found.values() for row in runs)
    print(f"{', '.join(machine().values())}, {args.precision}, load {load:.1f}")
    cores, everything = len(os.sched_getaffinity(0)), [row for runs in found.values() for row in runs]
    if load > BUSY * cores or any(row.get("threads", cores) != cores for row in everything):
        print("It had not the whole machine: its seconds are worth nothing, its scores what they are.")
    if any(row.get("kept") for row in everything):
        print("Saving to --keep is in the seconds of some, and what a stop cost is not: they are worth nothing.")
    print(f"`python -m benchmarks.finetuning {' '.join(sys.argv[1:])}`\n")
    print(f"| {args.set} | seconds | tokens a second | test {metric} | of each seed |\n|---|---|---|---|---|")
    for side, runs in found.items():
        seconds, speed = (statistics.mean(run[key] for run in runs) for key in ("seconds", "tokens_per_s"))
        values = [run["scores"].get(metric, float("nan")) for run in runs]
        each = ", ".join(f"{value:.4f}" for value in values)
        print(f"| {side} | {seconds:.0f} | {speed:,.0f} | {statistics.mean(values):.4f} | {each} |")
    pairs = zip(*found.values(), strict=True)
    ratios = [theirs["seconds"] / ours["seconds"] for theirs, ours in pairs]
    print(f"\n{statistics.median(ratios):.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f})")


def labelled_set(args: Args) -> LabelledSet:
    """With what is asked for in place of its own settings."""
    return replace(SETS[args.set], **{name: value for name in CHOSEN if (value := getattr(args, name)) is not None})


def settings(args: Args) -> dict[str, Any]:
    """What both sides share, as a line of the results has it."""
    labelled = labelled_set(args)
    shared = {name: getattr(labelled, name) for name in CHOSEN}
    shared |= {"steps_asked": args.steps, "precision": args.precision, "timed": "training, dev, save"}
    return {"set": args.set, "weights": weights_of(args.model)} | shared


def measured(args: Args, side: str, seed: int) -> dict[str, Any]:
    """One side's figures, of a process of its own; and how many ran, on average of looks at it."""
    names = ("set", "model", "data", "epochs", "lr", "length", "steps", "precision", "keep")
    flags = [f"--{name}={value}" for name in names if (value := getattr(args, name)) is not None]
    command = [sys.executable, "-m", "benchmarks.finetuning", *flags, f"--side={side}", f"--seed={seed}"]
    loads: list[float] = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(LOOK_EVERY)
            loads.append(os.getloadavg()[0])
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
        found = json.loads(process.stdout.read().splitlines()[-1])
        own = {"load": statistics.mean(loads), "threads": torch.get_num_threads(), "kept": args.keep is not None}
        return found | own


def one(args: Args) -> dict[str, Any]:
    """One side's figures."""
    labelled = labelled_set(args)
    splits = labelled.read(args.data)
    if args.keep:
        args.keep.mkdir(parents=True, exist_ok=True)
    if args.side == "transformers":
        from benchmarks.transformers_loop import Loop

        state = args.keep / f"{args.set}-{args.seed}.pt" if args.keep else None
        loop = Loop(args.model, labelled, splits, args.seed, args.precision, args.steps, state)
        found = {"seconds": loop.seconds, "tokens_per_s": loop.tokens / loop.seconds, "steps": loop.steps}
        return found | {"scores": {} if args.steps else scores_of(splits, loop.scores)}
    from minilm.checkpoint.store import Store
    from minilm.dropin.tokenizer import BertTokenizer
    from minilm.finetuning.run import tune
    from minilm.finetuning.settings import Tuning
    from minilm.metrics.scores import check_installed
    from minilm.tasks.named import make_task, model_for

    check_installed()  # whose import would be timed, as would that of what every optimizer needs
    import_module("torch._dynamo")  # which transformers has imported before its own time begins
    model, task = model_for(make_task(labelled.task, splits.train), Path(args.model), args.seed)
    tokenizer = BertTokenizer.from_pretrained(args.model)
    tuning = Tuning(
        labelled.epochs, args.steps, BATCH, labelled.lr, length=labelled.length, evaluate_every=NEVER, seed=args.seed
    )
    with nullcontext(args.keep) if args.keep else tempfile.TemporaryDirectory() as directory:
        store = Store(Path(directory) / f"{args.set}-{args.seed}-minilm")
        how, begun = {"device": "cpu", "precision": args.precision}, store.latest(print) is not None
        with store.hold():
            began = time.perf_counter()
            tuned = tune(task, model, tokenizer, splits.train, splits.dev, tuning, store, **how)
            seconds = tuned.result["seconds"] if begun else time.perf_counter() - began  # the former of all processes

    def score(examples: Sequence[Any]) -> dict[str, float]:
        predictions = tuned.predictions(examples)
        return tuned.task.score(predictions) | tuned.task.details(predictions).get("over_no_answer", {})

    scores = {} if args.steps else scores_of(splits, score)
    found = {"seconds": seconds, "tokens_per_s": tuned.result["tokens"] / seconds, "steps": tuned.result["steps"]}
    return found | {"step_tokens_per_s": tuned.result["tokens_per_s"], "scores": scores}


def scores_of(splits: Splits, score: Callable[[Sequence[Any]], dict[str, float]]) -> dict[str, float]:
    """Of the test, and of what is unseen."""
    unseen = score(splits.unseen) if splits.unseen else {}
    return score(splits.test) | {f"unseen_{name}": value for name, value in unseen.items()}


if __name__ == "__main__":
    cli.run(main, Args)

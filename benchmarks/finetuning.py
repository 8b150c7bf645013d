"""Fine-tuning beside a plain transformers loop: the same weights, examples, order of magnitude of everything.

    python -m benchmarks.finetuning --model DIR --data DIR

DIR of --data holds train.tsv, dev.tsv and test.tsv, as `finetune.py` reads them. Each side runs in processes of its
own, one after the other in turn, over the same seeds. Timed are tokenising and training, not imports, loading or the
test; minilm evaluates and saves each epoch within that time, the loop does neither. The loop pads each batch to its
longest example and has torch's fused AdamW, as minilm. Tokens are real ones, padding not counted.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from benchmarks.import_time import cpu
from minilm import cli

ROOT = Path(__file__).parent.parent
SIDES = ("transformers", "minilm")
BATCH = 32


@dataclass(frozen=True)
class Args:
    """Train both sides in turn and print a table."""

    model: str
    """A directory that both libraries open."""
    data: Path
    """With train.tsv, dev.tsv and test.tsv of labelled sentences."""
    seeds: int = 3
    """Runs of each side."""
    epochs: float = 3.0
    """Passes over the examples."""
    steps: int | None = None
    """Instead, for a look at the speed alone."""
    lr: float = 5e-5
    """Peak learning rate."""
    length: int = 128
    """Tokens of an example, at most."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Of both sides: autocast, or none."""
    side: Literal["both", "transformers", "minilm"] = "both"
    """One alone prints its figures as JSON; that is how this runs each."""
    seed: int = 0
    """Of one side alone."""


def main(args: Args) -> None:
    if args.side != "both":
        print(json.dumps({"transformers": with_transformers, "minilm": with_minilm}[args.side](args)))
        return
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for seed in range(args.seeds):
        for side in SIDES:
            found[side].append(measured(args, side, seed))
            print(f"{side}, seed {seed}: {found[side][-1]}", file=sys.stderr, flush=True)
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers"))
    print(f"{len(os.sched_getaffinity(0))} cores of an {cpu()}, {versions}, {args.precision}, {date.today():%-d %B %Y}")
    print(f"`python -m benchmarks.finetuning {' '.join(sys.argv[1:])}`\n")
    print("| | seconds | tokens a second | test accuracy | of each seed |\n|---|---|---|---|---|")
    for side, runs in found.items():
        seconds, speed, accuracy = (statistics.mean(run[key] for run in runs) for key in ("seconds", "speed", "test"))
        each = ", ".join(f"{run['test']:.4f}" for run in runs)
        print(f"| {side} | {seconds:.0f} | {speed:,.0f} | {accuracy:.4f} | {each} |")
    pairs = zip(*found.values(), strict=True)
    ratios = [theirs["seconds"] / ours["seconds"] for theirs, ours in pairs]
    print(f"\n{statistics.median(ratios):.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f})")


def measured(args: Args, side: str, seed: int) -> dict[str, Any]:
    """One side's figures, of a process of its own."""
    flags = [f"--{key}={getattr(args, key)}" for key in ("model", "data", "epochs", "lr", "length", "precision")]
    flags += [f"--side={side}", f"--seed={seed}", *([f"--steps={args.steps}"] if args.steps else [])]
    command = [sys.executable, "-m", "benchmarks.finetuning", *flags]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def read(args: Args) -> tuple[list[Any], list[Any], list[Any]]:
    from minilm.data.examples import read_texts
    from minilm.data.tables import read_table

    return tuple(
        read_texts(read_table(args.data / f"{name}.tsv"), "classification").examples
        for name in ("train", "dev", "test")
    )


def with_transformers(args: Args) -> dict[str, Any]:
    """A plain loop, as its course and documentation have it."""
    import torch
    from torch.utils.data import DataLoader
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup

    train, _, test = read(args)
    names = sorted({each.label for each in train})
    torch.manual_seed(args.seed)
    model = AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=len(names), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    began = time.perf_counter()
    ids = tokenizer([each.text for each in train], truncation=True, max_length=args.length)
    rows = [{name: ids[name][i] for name in ids} | {"labels": names.index(train[i].label)} for i in range(len(train))]

    def collate(batch: list[dict[str, Any]]) -> Any:
        return tokenizer.pad(batch, return_tensors="pt")

    loader = DataLoader(rows, BATCH, shuffle=True, collate_fn=collate)
    steps = args.steps or round(len(loader) * args.epochs)
    plain = [own for name, own in model.named_parameters() if own.ndim < 2]
    decayed = [own for name, own in model.named_parameters() if own.ndim >= 2]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, eps=1e-6, fused=True)
    schedule = get_linear_schedule_with_warmup(optimizer, round(0.1 * steps), steps)
    model.train()
    step = tokens = 0
    while step < steps:
        for batch in loader:
            with torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16"):
                loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            tokens += int(batch["attention_mask"].sum())
            if (step := step + 1) == steps:
                break
    seconds = time.perf_counter() - began
    model.eval()
    right = 0
    for at in range(0, len(test), 64):
        texts = [each.text for each in test[at : at + 64]]
        inputs = tokenizer(texts, padding=True, truncation=True, max_length=args.length, return_tensors="pt")
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16"):
            said = model(**inputs).logits.argmax(dim=1)
        right += sum(names[i] == each.label for i, each in zip(said.tolist(), test[at : at + 64], strict=True))
    return {"seconds": seconds, "speed": tokens / seconds, "test": right / len(test), "steps": steps}


def with_minilm(args: Args) -> dict[str, Any]:
    """`finetune.py`, but for its report; evaluation and saving are in the seconds, once an epoch."""
    from minilm.checkpoint.store import Store
    from minilm.dropin.tokenizer import BertTokenizer
    from minilm.tasks.named import make_task, model_for
    from minilm.tasks.tune import Tuning, tune

    train, dev, test = read(args)
    model, task = model_for(make_task("classification", train), Path(args.model), args.seed)
    tokenizer = BertTokenizer.from_pretrained(args.model)
    tuning = Tuning(
        epochs=args.epochs, steps=args.steps, batch_size=BATCH, lr=args.lr, length=args.length, seed=args.seed
    )
    with tempfile.TemporaryDirectory() as directory:
        store = Store(Path(directory) / "run")
        with store.hold():
            began = time.perf_counter()
            tuned = tune(task, model, tokenizer, train, dev, tuning, store, precision=args.precision)
            seconds = time.perf_counter() - began
        features = tuned.features(test)
        found = task.score(tuned.outputs(features), features, test)["accuracy"]
    return {
        "seconds": seconds,
        "speed": tuned.result["tokens"] / seconds,
        "speed_of_steps": tuned.result["tokens_per_s"],
        "test": found,
        "steps": tuned.result["steps"],
    }


if __name__ == "__main__":
    cli.run(main, Args)

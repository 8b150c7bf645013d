"""What a plain PyTorch loop reaches in so many minutes on the rows that a recipe makes of a corpus.

    python -m benchmarks.plain_loop --objective clm --minutes 3.5
    python -m benchmarks.plain_loop --library transformers --recipe bert-mini --minutes 1

The other side of `python train.py`: the same rows, masks, precision, threads and allocator, with AdamW as torch ships
it and logits at every position; over minilm's encoder, or over BertForMaskedLM as transformers makes it, compiled where
asked for, before the minutes begin. Held-out loss on the same batches.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minilm import cli
from minilm.batch import IGNORE, Batch
from minilm.checkpoint.hf import config_to_hf
from minilm.data.ahead import made_ahead
from minilm.data.corpus import open_corpus
from minilm.data.loader import Loader, Stretch, fixed_batches
from minilm.data.objectives import ObjectiveName, make_objective
from minilm.data.packing import pack
from minilm.data.prepare import prepare
from minilm.errors import ConfigError
from minilm.machine.ranks import Applied
from minilm.machine.runtime import Runtime
from minilm.model.encoder import EncoderConfig, initialise
from minilm.model.heads import LanguageModel
from minilm.recipes import RECIPES, RecipeName
from minilm.train.loop import evaluate


@dataclass(frozen=True)
class Args:
    """Train by a plain loop for so many minutes and print the held-out loss."""

    library: Literal["minilm", "transformers"] = "minilm"
    objective: ObjectiveName = "mlm"
    recipe: RecipeName = "quick"
    """Of which it takes shape, vocabulary and row length; rows are running text."""
    minutes: float = 3.5
    lr: float = 1e-3
    batch_size: int = 32
    mask_rate: float = 0.15
    attention: Literal["sdpa", "eager"] = "sdpa"
    """Fused, or written out, which is the faster one for bf16 on some CPUs."""
    compile: Literal["no", "yes"] = "no"
    """Whether torch compiles the model and its loss, before the minutes begin."""
    data: tuple[str, ...] = ()
    cache_dir: Path = Path("~/.cache/minilm")
    seed: int = 0
    threads: int | None = None


def main(args: Args) -> None:
    if args.library == "transformers" and args.objective != "mlm":
        raise ConfigError(f"--objective {args.objective}: BertForMaskedLM has only mlm; leave it out")
    recipe, runtime = RECIPES[args.recipe], Runtime.choose(threads=args.threads)
    data = prepare(open_corpus(args.data) if args.data else None, args.cache_dir, 0.05, vocab_size=recipe.vocab_size)
    rows, held_out = (pack(split, "stream", recipe.length, data.tokenizer) for split in (data.train, data.held_out))
    objective = make_objective(args.objective, data.tokenizer, args.seed, args.mask_rate)
    endless = [Stretch(10**9, recipe.length, args.batch_size, args.batch_size)]
    on_gpu = runtime.device.type == "cuda"
    loader = Loader(endless, {recipe.length: rows}, objective, args.seed, pin_memory=on_gpu)
    torch.manual_seed(args.seed)
    make = of_minilm if args.library == "minilm" else of_transformers
    model, logits = make(recipe.encoder_config(data.tokenizer.vocab_size), args.attention)
    model.to(runtime.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.01, fused=True)

    def score(model: nn.Module, batch: Batch) -> tuple[Any, ...]:
        own = logits(batch).flatten(0, 1)[batch.where].float()
        nats = F.cross_entropy(own, batch.target, ignore_index=IGNORE, reduction="sum")
        return nats, (own.argmax(dim=1) == batch.target).sum(), batch.count, 0, 0

    def loss_of(batch: Batch, labels: Tensor) -> Tensor:
        with runtime.autocast():
            return F.cross_entropy(logits(batch).flatten(0, 1).float(), labels, ignore_index=IGNORE)

    model.train()
    if args.compile == "yes":
        loss_of = torch.compile(loss_of, dynamic=False)
    if on_gpu or args.compile == "yes":  # compiling and starting are not its time
        loss_of(*on_device(loader.micro_batches(0)[0], runtime)).backward()
    began, tokens, steps = time.perf_counter(), 0, 0
    for (batch,) in made_ahead(loader, 0):
        spent = (time.perf_counter() - began) / (60 * args.minutes)
        if spent >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1.0, (spent + 1e-3) / 0.05) * (1 - spent)
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(*on_device(batch, runtime))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        tokens, steps = tokens + batch.size, steps + 1
    if on_gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    judge = make_objective(args.objective, data.tokenizer, seed=0)
    found = evaluate(Applied(model), score, fixed_batches(held_out, judge), runtime)
    row = {"objective": args.objective, "lr": args.lr, "held_out_loss": found.loss, "accuracy": found.accuracy}
    print(json.dumps(row | {"steps": steps, "tokens": tokens, "seconds": seconds, "precision": runtime.precision}))


def on_device(batch: Batch, runtime: Runtime) -> tuple[Batch, Tensor]:
    """A batch there, with the label of each token."""
    batch = batch.to(runtime.device, non_blocking=True)
    labels = torch.full((batch.tokens.input_ids.numel(),), IGNORE, device=runtime.device)
    labels[batch.where] = batch.target
    return batch, labels


def of_minilm(cfg: EncoderConfig, attention: str) -> tuple[nn.Module, Callable[[Batch], Tensor]]:
    model = LanguageModel(cfg, "sdpa" if attention == "sdpa" else "explicit")
    initialise(model)
    return model, lambda batch: model(batch.tokens)


def of_transformers(cfg: EncoderConfig, attention: str) -> tuple[nn.Module, Callable[[Batch], Tensor]]:
    from transformers import AutoConfig, AutoModelForMaskedLM

    from benchmarks.steps import without_mask

    config = config_to_hf(cfg, "mlm", {"cls_token_id": 2, "sep_token_id": 3})
    model = AutoModelForMaskedLM.from_config(AutoConfig.for_model(**config), attn_implementation=attention)
    if attention == "sdpa":
        without_mask(model)  # no row has padding
    return model, lambda batch: model(input_ids=batch.tokens.input_ids).logits


if __name__ == "__main__":
    cli.run(main, Args)

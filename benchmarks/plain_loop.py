"""What a plain PyTorch loop reaches with the architecture, rows, masks and seconds of a recipe.

    python -m benchmarks.plain_loop --objective clm --minutes 3.5

The other side of `python train.py --objective clm`: the same encoder, rows, masks, precision, threads and allocator
with BERT's initialisation, AdamW as torch ships it, torch's fused attention and logits at every position. Held-out
loss on the same batches.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from minilm import cli
from minilm.batch import IGNORE
from minilm.data.corpus import embedded_corpus, open_corpus
from minilm.data.loader import Loader, fixed_batches
from minilm.data.objectives import ObjectiveName, make_objective
from minilm.data.packing import pack
from minilm.data.shards import prepare
from minilm.model.encoder import initialise
from minilm.model.heads import LanguageModel
from minilm.recipes import RECIPES
from minilm.train.loop import evaluate
from minilm.train.losses import language_model_score
from minilm.train.runtime import Runtime


@dataclass(frozen=True)
class Args:
    """Train by a plain loop for so many minutes and print the held-out loss."""

    objective: ObjectiveName = "clm"
    recipe: str = "quick"
    minutes: float = 3.5
    lr: float = 1e-3
    batch_size: int = 32
    data: tuple[str, ...] = ()
    cache_dir: Path = Path("~/.cache/minilm")
    seed: int = 0


def main(args: Args) -> None:
    recipe, runtime = RECIPES[args.recipe], Runtime.choose()
    cache = args.cache_dir.expanduser()
    data = prepare(open_corpus(args.data) if args.data else embedded_corpus(cache), cache, held_out_frac=0.05)
    rows, held_out = (pack(split, "stream", recipe.length, data.tokenizer) for split in (data.train, data.held_out))
    loader = Loader(rows, make_objective(args.objective, data.tokenizer, args.seed), args.batch_size, args.seed)
    torch.manual_seed(args.seed)
    model = LanguageModel(recipe.encoder_config(data.tokenizer.vocab_size), "sdpa").to(runtime.device)
    initialise(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, fused=True)

    began, tokens, steps = time.perf_counter(), 0, 0
    model.train()
    for batch in loader:
        spent = (time.perf_counter() - began) / (60 * args.minutes)
        if spent >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1.0, (steps + 1) / 50) * (1 - spent)
        batch = batch.to(runtime.device)
        labels = torch.full((batch.tokens.input_ids.numel(),), IGNORE, device=runtime.device)
        labels[batch.where] = batch.target
        with runtime.autocast():
            loss = F.cross_entropy(model(batch.tokens).flatten(0, 1).float(), labels, ignore_index=IGNORE)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        tokens, steps = tokens + batch.size, steps + 1
    seconds = time.perf_counter() - began
    judge = make_objective(args.objective, data.tokenizer, seed=0)
    score = evaluate(model, language_model_score, fixed_batches(held_out, judge), runtime)
    row = {"objective": args.objective, "lr": args.lr, "held_out_loss": score.loss, "accuracy": score.accuracy}
    print(json.dumps(row | {"steps": steps, "tokens": tokens, "seconds": seconds, "precision": runtime.precision}))


if __name__ == "__main__":
    cli.run(main, Args)

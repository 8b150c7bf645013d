"""Minimal pairs beside a plain transformers loop: the same model, sentences and log-likelihoods.

    python -m benchmarks.pairs --data DIR/blimp.jsonl.xz --count 200

The loop does what is usual: of each sentence all its masked copies as one padded batch, all logits, log-softmax. Both
sides read the same pairs, in turn, after a warm-up; loading and reading the file are not timed, tokenising is. Seconds
hang on the model's size alone, so its weights are random, if none is named.
"""

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import transformers

from benchmarks.machine import machine, when
from minilm import BertConfig, BertForMaskedLM, BertTokenizer, cli
from minilm.data.tokenizer import Tokenizer
from minilm.labelled.tables import read_table
from minilm.language.likelihood import log_likelihoods, read_scorer
from minilm.language.pairs import read_pairs
from minilm.machine.runtime import Runtime

SIZE = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
WORDS = 30522


@dataclass(frozen=True)
class Args:
    """Score pairs on both sides and print a table."""

    data: Path
    """BLiMP's layout."""
    model: str | None = None
    """A directory that both libraries open; random weights of 6 x 384, if not given."""
    count: int = 200
    """Pairs, spread over the file."""
    rounds: int = 3
    """Of both sides."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of minilm; the loop has fp32."""


def main(args: Args) -> None:
    pairs, _ = read_pairs(read_table(args.data))
    chosen = [pairs[i] for i in np.linspace(0, len(pairs) - 1, args.count).astype(int)]
    texts = [text for pair in chosen for text in pair[:2]]
    with tempfile.TemporaryDirectory() as scratch:
        directory = (
            Path(args.model) if args.model else made(Path(scratch), [text for pair in pairs for text in pair[:2]])
        )
        scorer, runtime = read_scorer(directory), Runtime.choose("cpu", args.precision, None)
        theirs = transformers.BertForMaskedLM.from_pretrained(directory).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    seconds: dict[str, list[float]] = {"transformers": [], "minilm": []}
    for number in range(args.rounds + 1):
        few = texts if number else texts[:20]  # the first one warms up
        for side in seconds:
            began = time.perf_counter()
            if side == "minilm":
                with runtime.autocast():
                    ours = [own.sum() for own in log_likelihoods(scorer, few)]
            else:
                reference = [loop(theirs, tokenizer, text) for text in few]
            if number:
                seconds[side].append(time.perf_counter() - began)
    hits = [np.greater(each[::2], each[1::2]) for each in (np.array(reference), np.array(ours))]
    print(", ".join([*machine().values(), *when().values(), f"minilm in {args.precision}"]))
    print(f"{args.count} pairs, median of {args.rounds} rounds\n\n| | seconds | pairs a second |\n|---|---|---|")
    for side, own in seconds.items():
        middle = statistics.median(own)
        print(f"| {side} | {middle:.2f} | {args.count / middle:,.1f} |")
    ratios = [a / b for a, b in zip(*seconds.values(), strict=True)]
    print(f"\n{statistics.median(ratios):.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f})")
    apart = np.abs(np.subtract(reference, ours)).max()
    print(
        f"log-likelihoods at most {apart:.2g} nats apart; other decisions on {np.mean(hits[0] != hits[1]):.1%} of pairs"
    )


def made(directory: Path, texts: list[str]) -> Path:
    """A model of random weights, with words of these texts."""
    words = Tokenizer.train(texts)
    torch.manual_seed(0)
    BertForMaskedLM(BertConfig(vocab_size=WORDS, **SIZE)).save_pretrained(directory)
    BertTokenizer(words.backend, model_max_length=512).save_pretrained(directory)
    return directory


@torch.no_grad()
def loop(model: transformers.PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerBase, text: str) -> float:
    """The pseudo-log-likelihood of a text: a batch of it."""
    ids = tokenizer(text, return_tensors="pt").input_ids[0]
    places = torch.arange(1, len(ids) - 1)
    masked = ids.repeat(len(places), 1)
    masked[torch.arange(len(places)), places] = tokenizer.mask_token_id
    logits = model(input_ids=masked).logits[torch.arange(len(places)), places]
    return float(logits.log_softmax(-1).gather(1, ids[places][:, None]).sum())


if __name__ == "__main__":
    cli.run(main, Args)

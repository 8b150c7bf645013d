"""What a finished run tells: on the console, and in the model card."""

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from minilm.checkpoint.model import Pretrained
from minilm.data.objectives import ObjectiveName
from minilm.data.shards import Shard
from minilm.data.tokenizer import MASK, Tokenizer
from minilm.evaluation.predict import continue_text, fill_mask

TASK = {
    "mlm": "fills in masked tokens",
    "clm": "continues a text, left to right",
    "prefix": "reads a text whole and continues it (prefix LM)",
}
SHOWN = {
    "mlm": "a word masked -> its guesses (the word)",
    "clm": "a beginning -> a sampled continuation",
    "prefix": "a beginning -> a sampled continuation",
}
PREFIX_NOTE = "transformers opens this model but cannot apply a prefix LM's mask; continue text with minilm."


def closing(result: dict[str, Any], out: Path, shown: list[str]) -> list[str]:
    """The last lines of a run: the model at work, its figures, where it is, what to type next."""
    lines = [f"           {line}" for line in shown] + summary(result)
    if shown:
        lines.insert(0, "examples   from documents it never saw: " + SHOWN[result["objective"]])
    lines += [PREFIX_NOTE] if result["objective"] == "prefix" else []
    return [*lines, f"saved      {out}", f"next       {next_command(result['objective'], out)}"]


def next_command(objective: ObjectiveName, out: Path) -> str:
    """What to type to use the model in directory `out`."""
    use = 'print(minilm.continue_text(lm, "Return the"))'
    if objective == "mlm":
        use = 'print(*minilm.fill_mask(lm, "Return the [MASK] of the list."), sep="\\n")'
    name = json.dumps(str(out), ensure_ascii=False)
    return f"python -c {shlex.quote(f'import minilm; lm = minilm.read_model({name}); {use}')}"


def summary(result: dict[str, Any]) -> list[str]:
    """The figures of a pretraining run, one line each."""
    gain = result["unigram_loss"] - result["held_out_loss"]
    quality = f"accuracy {result['accuracy']:.1%}"
    if result["objective"] != "mlm":
        quality += f", perplexity {np.exp(result['held_out_loss']):,.1f}"
    return [
        f"held out   loss {result['held_out_loss']:.3f} nats on {result['targets']:,} targets ({quality})",
        f"unigram    loss {result['unigram_loss']:.3f}, what word frequencies alone reach: "
        + (f"{gain:.2f} nats better than that" if gain >= 0 else f"still {-gain:.2f} nats WORSE than that"),
        f"cost       {result['seconds']:.0f} s of training, {result['tokens']:,} tokens at "
        f"{result['tokens_per_s']:,.0f} a second, {result['flops'] / 1e15:.3g} PFLOP, "
        f"{result['parameters'] / 1e6:.1f} M parameters, {result['precision']}, peak {result['peak_mb']:,.0f} MB",
    ]


def samples(pretrained: Pretrained, held_out: Shard, n: int = 3) -> list[str]:
    """The model at work on `n` held-out documents, one of each nth of the split: fillings of a [MASK], or sampled
    continuations. Neither the document nor the word is chosen for how well it goes."""
    lines: list[str] = []
    tokenizer = pretrained.tokenizer
    for part in np.array_split(np.arange(len(held_out)), n):
        beginnings = (_beginning(held_out, document) for document in part)
        words = ((ids, i) for ids in beginnings for i in range(6, len(ids) - 1) if _is_word(tokenizer, ids, i))
        ids, word = next(words, ([], 0))
        if not ids:
            continue
        if pretrained.objective != "mlm":
            prompt = tokenizer.decode(ids[:12])
            lines.append(f"{prompt} -> {continue_text(pretrained, prompt, max_new=24)}")
            continue
        before, after = tokenizer.decode(ids[:word]), tokenizer.decode(ids[word + 1 :])
        fillings = fill_mask(pretrained, f"{before} {MASK} {after}", top_k=3)
        guesses = ", ".join(f"{each.token} {each.probability:.0%}" for each in fillings)
        lines.append(f"{before} {MASK} {after} -> {guesses} (it was: {tokenizer.token(ids[word])})")
    return lines


def _beginning(shard: Shard, document: int, tokens: int = 24) -> list[int]:
    start, stop = shard.offsets[document], shard.offsets[document + 1] - 1  # without its [SEP]
    return [int(id) for id in shard.tokens[start : min(stop, start + tokens)]]


def _is_word(tokenizer: Tokenizer, ids: list[int], i: int) -> bool:
    """Whether token i is a word of its own, of four letters or more."""
    piece = tokenizer.token(ids[i])
    return piece.isalpha() and len(piece) > 3 and not tokenizer.token(ids[i + 1]).startswith("##")


def model_card(result: dict[str, Any], out: Path, settings: dict[str, Any]) -> str:
    """README.md of a model directory."""
    figures = "\n".join(f"    {line}" for line in summary(result))
    notes = f"\n{PREFIX_NOTE}\n" if result["objective"] == "prefix" else ""
    rows = "\n".join(f"| {key} | {value} |" for key, value in settings.items())
    return f"""---
library_name: transformers
tags: [minilm, {result["objective"]}]
---
# {out.absolute().name}

A {settings["architecture"]} language model that {TASK[result["objective"]]}. Pretrained from scratch with minilm
{result["versions"]["minilm"]} (torch {result["versions"]["torch"]}).
{notes}
{figures}

Held-out figures: documents of the same corpus that training never saw, chosen by hash; the corpus, vocabulary and
split have the fingerprint `{settings["data"][:16]}`.

    {next_command(result["objective"], out)}

| setting | value |
|---|---|
{rows}
"""

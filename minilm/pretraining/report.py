"""The report on a pretraining run: lines for the console, and the model card; also that on a corpus."""

import json
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from minilm.checkpoint.model import Pretrained
from minilm.data.objectives import ObjectiveName
from minilm.data.packing import Rows
from minilm.data.shards import BLOCK, Prepared, Shard
from minilm.data.tokenizer import MASK, Tokenizer
from minilm.use.complete import continue_text, fill_mask

COUNTED = 1 << 22  # documents that a report on a corpus looks at, at most
TASK = {
    "mlm": "fills in masked tokens",
    "clm": "continues a text, left to right",
    "prefix": "reads a text whole and continues it (prefix LM)",
}
SHOWN = {
    "mlm": "masked word -> top guesses (the word)",
    "clm": "a beginning -> a sampled continuation",
    "prefix": "a beginning -> a sampled continuation",
}
PREFIX_NOTE = "transformers opens this model but cannot apply a prefix LM's mask; continue text with minilm."


def closing(result: dict[str, Any], out: Path, shown: list[str]) -> list[str]:
    """The last lines of a run: examples of the model at work, its figures, its directory, the next command."""
    lines = [f"           {line}" for line in shown] + summary(result)
    if shown:
        lines.insert(0, "examples   from held-out documents: " + SHOWN[result["objective"]])
    lines += [PREFIX_NOTE] if result["objective"] == "prefix" else []
    return [*lines, f"saved      {out}", f"next       {next_command(result['objective'], out)}"]


def next_command(objective: ObjectiveName, out: Path) -> str:
    """A command that uses the model in directory `out`."""
    use = 'print(minilm.continue_text(lm, "Return the"))'
    if objective == "mlm":
        use = 'print(*minilm.fill_mask(lm, "Return the [MASK] of the list."), sep="\\n")'
    name = json.dumps(str(out), ensure_ascii=False)
    return f"python -c {shlex.quote(f'import minilm; lm = minilm.read_model({name}); {use}')}"


def summary(result: dict[str, Any]) -> list[str]:
    """The figures of a pretraining run, one line each."""
    gain = result["unigram_loss"] - result["held_out_loss"]
    quality = f"accuracy {result['accuracy']:.1%}"
    if result["pair_accuracy"] is not None:
        quality += f", pair accuracy {result['pair_accuracy']:.1%}, by chance 50%"
    if result["objective"] != "mlm":
        quality += f", perplexity {np.exp(result['held_out_loss']):,.1f}"
    again = ""
    if (reads := result["held_out_reads"]) > 1.05:  # small text: as many targets, but not as much evidence
        tokens, documents = result["held_out_tokens"], result["held_out_documents"]
        again = f", {tokens:,} tokens of {documents:,} documents read {reads:.1f} times"
    energy = "energy not measured" if result["joules"] is None else f"{result['joules'] / 3.6e6:.3g} kWh"
    before = result["held_out_loss_before"]
    return [
        f"held out   loss {result['held_out_loss']:.3f} nats on {result['targets']:,} targets{again} ({quality})",
        *([] if before is None else [f"before     loss {before:.3f}, before this training"]),
        f"unigram    loss {result['unigram_loss']:.3f} from token frequencies alone: the model is "
        + (f"{gain:.2f} nats better" if gain >= 0 else f"still {-gain:.2f} nats WORSE"),
        f"cost       {result['seconds']:.0f} s of training, {result['tokens']:,} tokens at "
        f"{result['tokens_per_s']:,.0f} a second, {result['flops'] / 1e15:.3g} PFLOP, "
        f"{result['parameters'] / 1e6:.1f} M parameters, {result['precision']}",
        f"           {result['mfu']:.0%} of the {result['matmul_peak_flops'] / 1e12:.3g} TFLOP/s of a matrix product "
        f"here (MFU), peak memory {result['peak_mb']:,.0f} MB, {energy}",
    ]


def corpus_report(data: Prepared, rows: Rows) -> dict[str, Any]:
    """Figures of a corpus, for both splits together, except `unknown_rate` and `unused_tokens` (of the training split)
    and `rows`, `fill` (of the rows that it makes).

    duplicates: the fraction of documents that are copies of another one; of more than COUNTED documents it is found in
    a part of them, chosen by hash, and quantiles of lengths are of every nth one (the longest, "1", is of all).
    """
    splits, documents = (data.train, data.held_out), len(data.hashes)
    lengths, longest = _lengths(splits, max(1, documents // COUNTED))
    quantiles = [*(np.quantile(lengths, (0.1, 0.5, 0.9)) if len(lengths) else np.zeros(3)).tolist(), float(longest)]
    limit = 2**64 - 1 if documents <= COUNTED else int(2**64 * (COUNTED / documents))
    chosen = np.concatenate([block[block <= limit] for block in data.hashes.blocks()])
    return {
        "documents": documents,
        "held_out_documents": len(data.held_out),
        "tokens": sum(len(shard.tokens) for shard in splits),
        "held_out_tokens": len(data.held_out.tokens),
        "vocab_size": data.tokenizer.vocab_size,
        "unused_tokens": int((data.counts == 0).sum()),
        "unknown_rate": data.unknown_rate,
        "duplicates": 1 - len(np.unique(chosen)) / max(1, len(chosen)),
        "length_quantiles": dict(zip(("0.1", "0.5", "0.9", "1"), quantiles, strict=True)),
        "row_length": rows.T,
        "rows": len(rows),
        "fill": rows.fill,
        "fingerprint": data.fingerprint,
    }


def _lengths(splits: Iterable[Shard], every: int) -> tuple[np.ndarray, int]:
    """(tokens of every nth document of each block of the splits, those of the longest of all)."""
    parts, longest = [np.empty(0, np.int64)], 0
    for shard in splits:
        for at in range(0, len(shard), BLOCK):
            own = np.diff(shard.offsets[at : at + BLOCK + 1]) - 1  # without the [SEP]
            longest = max(longest, int(own.max()))
            parts.append(own[::every])
    return np.concatenate(parts), longest


def corpus_lines(report: dict[str, Any]) -> list[str]:
    """The figures of a corpus, one line each."""
    low, median, high, longest = (f"{value:,.0f}" for value in report["length_quantiles"].values())
    return [
        f"documents  {report['documents']:,}, of which {report['held_out_documents']:,} held out; "
        f"{report['duplicates']:.2%} are duplicates",
        f"tokens     {report['tokens']:,}, of which {report['held_out_tokens']:,} held out; "
        f"{report['unknown_rate']:.3%} unknown",
        f"lengths    median {median} tokens, 10% below {low}, 10% above {high}, longest {longest}",
        f"vocabulary {report['vocab_size']:,}, of which {report['unused_tokens']:,} do not occur in training",
        f"rows       {report['rows']:,} of {report['row_length']:,} tokens, {report['fill']:.1%} full",
    ]


def estimate_lines(estimate: dict[str, Any]) -> list[str]:
    """The estimated cost of a run, one line each; no lines in a process that does not log."""
    if not estimate:
        return []
    room = "" if estimate["free_disk_mb"] > estimate["disk_mb"] else ": MORE THAN IS FREE"
    return [
        "dry run    data, one step of every kind, evaluation, save and reload all work; only the token cache was kept",
        f"time       {duration(estimate['seconds'])} of training, {duration(estimate['total_seconds'])} with "
        f"evaluation and saving, for {estimate['steps']:,} steps",
        f"compute    {estimate['tokens']:,} tokens, {estimate['flops'] / 1e15:.3g} PFLOP, "
        f"{estimate['parameters'] / 1e6:.1f} M parameters",
        f"memory     {estimate['peak_mb']:,.0f} MB at peak",
        f"disk       {estimate['disk_mb']:,.0f} MB, {estimate['checkpoint_mb']:,.0f} MB a checkpoint{room}",
    ]


def duration(seconds: float) -> str:
    """A duration in words, in days, hours, minutes or seconds."""
    for unit, size in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.0f} seconds"


def samples(pretrained: Pretrained, held_out: Shard, n: int = 3) -> list[str]:
    """The model at work on `n` held-out documents, one from each nth of the split: fillings of a [MASK], or sampled
    continuations. Neither documents nor words are chosen by the model's success."""
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
    """Whether token i is a whole word of four letters or more."""
    piece = tokenizer.token(ids[i])
    return piece.isalpha() and len(piece) > 3 and not tokenizer.token(ids[i + 1]).startswith("##")


def model_card(result: dict[str, Any], out: Path, settings: dict[str, Any]) -> str:
    """README.md of a model directory."""
    figures = "\n".join(f"    {line}" for line in summary(result))
    origin = f"Trained further from {settings['model']}" if "model" in settings else "Pretrained from scratch"
    unseen = "that this training" if "model" in settings else "that training"
    notes = f"\n{PREFIX_NOTE}\n" if result["objective"] == "prefix" else ""
    unused = {  # settings of a recipe that had no effect in this run
        *(() if result["objective"] == "mlm" else ("mask_rate", "whole_words", "short_seq_prob")),
        *(name for name in ("deterministic", "compile", "cuda_graphs") if not settings.get(name)),
        *(() if settings.get("schedule") == "wsd" else ("decay_frac",)),
        *(("packing",) if settings.get("pairs") else ()),
        *(("output_scale", "word_std", "sinusoids") if "model" in settings else ()),
    }
    own = {key: value for key, value in (settings | {"steps": result["steps"]}).items() if key not in unused}
    rows = "\n".join(f"| {key} | {value} |" for key, value in own.items() if value is not None)
    return f"""---
library_name: transformers
tags: [minilm, {result["objective"]}]
---
# {out.absolute().name}

A {settings["architecture"]} language model that {TASK[result["objective"]]}. {origin} with minilm
{result["versions"]["minilm"]} (torch {result["versions"]["torch"]}).
{notes}
{figures}

Held-out figures: documents of the same corpus {unseen} never saw, chosen by hash; the corpus, vocabulary and
split have the fingerprint `{settings["data"][:16]}`.

    {next_command(result["objective"], out)}

| setting | value |
|---|---|
{rows}
"""

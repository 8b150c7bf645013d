"""The report on a tuned model, its scores beside baselines, in files and on the console; what --check says of data."""

import shlex
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minilm.dropin.tokenizer import BertTokenizer
from minilm.errors import printable
from minilm.files import finite, read_json, write_json, write_whole
from minilm.finetuning.tuned import Tuned
from minilm.labelled.examples import SEPARATORS, Choice, Data, Question, Tagged
from minilm.labelled.splits import duplicates, labels_of
from minilm.labelled.tables import shown
from minilm.metrics.intervals import intervals
from minilm.metrics.scores import spans
from minilm.tasks.baselines import SAID
from minilm.tasks.predictions import SHOWN_LABELS
from minilm.tasks.span import THRESHOLD
from minilm.tasks.task import Task, scores_line
from minilm.train.log import drawn, plot_loss, say


def write_report(
    tuned: Tuned, out: Path, train: Data, dev: Data, test: Data | None, files: dict[str, str]
) -> dict[str, Any]:
    """Write predictions, results.json, pictures and model card into `out`; returns the result, with the scores on
    `test`, or on `dev` if that is None. files: entries of the result that name the data files."""
    judged = test or dev
    name = "test" if test else "dev"
    predictions = tuned.predictions(judged.examples)
    predictions.check_finite(files.get(f"{name}_file", name))
    result = tuned.result | files
    result |= {"judged_on": name, "judged": len(judged.examples), "scores": tuned.task.score(predictions)}
    records = tuned.task.records(predictions)
    found = intervals(records, tuned.task.weighted, tuned.task.proportions, over=tuned.task.over(records))
    result["intervals"] = {name: [*ends] for name, ends in found.items()}
    if len(train.examples) > MANY:
        say("fitting baselines to compare with")
    result["baselines"] = tuned.task.baselines(train.examples, judged.examples)
    result["cut"] = predictions.features.cut
    result |= tuned.task.details(predictions)
    ending = tuned.task.endings[0]
    result["predictions"] = f"predictions{ending}"
    text, counts = tuned.task.file_text(ending, None, predictions)
    write_whole(out / result["predictions"], text)
    result |= counts
    if "confusion" in result:
        image, names = out / "confusion.png", [row["name"] for row in result["labels"]]
        drawn(image, lambda: plot_confusion(np.array(result["confusion"]), names, image))
    plot_loss(out / "metrics.jsonl", out / "loss.png", kept=result.get("best_step"))
    write_json(out / "results.json", finite(result))
    write_whole(out / "README.md", card(tuned, out, result))
    return result


MANY = 2000  # examples; with more, and many labels, a baseline may take a minute
READ = {"separator": (*SEPARATORS,), "origin": (0, 1)}  # values that a result may have


def columns_to_keep(data: Data) -> dict[str, Any]:
    """How the training data were read, to be kept in the result: columns by role, columns that are a label each, the
    separator of labels, and the number of the first choice."""
    more = {"flags": [*data.flags], "separator": data.separator, "origin": data.origin}
    return {"columns": data.columns} | {name: value for name, value in more.items() if value not in ([], "", None)}


def kept_columns(directory: Path) -> tuple[dict[str, Any], int | None]:
    """(`columns_to_keep` of what a model was trained on, tokens read of an example), as far as its run.json says; a
    checkpoint's is its run's."""
    file = directory / "run.json"
    if not file.exists() and directory.name.startswith("step-"):
        file = directory.parent / "run.json"
    result = read_json(file).get("result") if file.exists() else None
    found = result if isinstance(result, dict) else {}
    columns, flags, length = (found.get(name) for name in ("columns", "flags", "length"))
    named = {str(role): str(name) for role, name in columns.items()} if isinstance(columns, dict) else {}
    kept = {"columns": named} | ({"flags": [*map(str, flags)]} if isinstance(flags, list) else {})
    kept |= {name: found[name] for name, known in READ.items() if found.get(name) in known}
    return kept, length if isinstance(length, int) and length > 0 else None


def plot_confusion(counts: np.ndarray, labels: Sequence[str], image: Path) -> None:
    """Save a picture of a confusion matrix, a row for each true label."""
    from matplotlib.figure import Figure

    side = 2.5 + 0.45 * len(labels)
    figure = Figure(figsize=(side, side), dpi=120, layout="constrained")
    axes = figure.subplots()
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        color = "white" if shares[row, column] > 0.6 else "black"
        axes.text(column, row, f"{count:,}", ha="center", va="center", color=color, fontsize=8)
    names = [printable(label if len(label) <= 24 else f"{label[:23]}…") for label in labels]
    axes.set_xticks(range(len(labels)), names, rotation=45, ha="right", parse_math=False)
    axes.set_yticks(range(len(labels)), names, parse_math=False)
    axes.set(xlabel="predicted", ylabel="true")
    with warnings.catch_warnings(action="ignore"):  # a letter that its font lacks
        figure.savefig(image)


def check_lines(name: str, data: Data, task: Task, tokenizer: BertTokenizer | None, length: int) -> list[str]:
    """Lines that describe a data file: rows, labels, duplicate texts, lengths in tokens, unknown tokens."""
    lines = [f"{name:10} {len(data.examples):,} rows used, {len(data.left_out):,} left out"]
    labels = Counter(label for each in data.examples for label in _counted_labels(each))
    if numbers := [each.label for each in data.examples if isinstance(getattr(each, "label", None), float)]:
        low, high, mean, sd = min(numbers), max(numbers), np.mean(numbers), np.std(numbers)
        lines.append(f"labels     {low:g} to {high:g}, mean {mean:.4g}, standard deviation {sd:.4g}")
    elif labels:
        common = ", ".join(f"{printable(label)} {count:,}" for label, count in labels.most_common(SHOWN_LABELS))
        lines.append(f"labels     {len(labels):,}: {common}")
    if (again := duplicates(data.examples)).count:
        one, other = again.first[0]
        lines.append(
            f"duplicates {again.count:,} texts, {again.contradicted:,} of them with another label; {one} is {other}"
        )
    if tokenizer is not None and data.examples:
        features = task.features(data.examples, tokenizer, 1 << 20)
        low, median, high = np.quantile(features.lengths, [0, 0.5, 1])
        lines.append(
            f"tokens     {low:.0f} to {high:.0f} a text, median {median:.0f}; longer than {length}, to be truncated or "
            f"read in parts: {len(np.unique(features.example[features.lengths > length])):,} rows"
        )
        of_text = ~np.isin(features.ids, [tokenizer.cls_token_id, tokenizer.sep_token_id])
        unknown = (features.ids == (-1 if tokenizer.unk_token_id is None else tokenizer.unk_token_id)).sum()
        lines.append(f"unknown    {unknown / max(1, of_text.sum()):.2%} of the tokens are {tokenizer.unk_token}")
    return lines


def _counted_labels(example: Any) -> Iterable[str]:
    """The labels of an example that are counted: classes, the types of a sentence's entities, whether a question has an
    answer, which choice is right, from 0; none of a number."""
    if isinstance(example, Choice):
        return () if example.label is None else (str(example.label),)
    if isinstance(example, Question):
        return ("answer",) if example.answers else ("no answer",)
    return (kind for kind, _, _ in spans(example.tags or ())) if isinstance(example, Tagged) else labels_of(example)


def summary(result: dict[str, Any]) -> list[str]:
    """The figures of a run, one line each."""
    scores, baselines = result["scores"], result["baselines"]
    chose = ", which also chose the model: expect less on new ones" if result["judged_on"] == "dev" else ""
    lines = [f"{result['judged_on']:10} {scores_line(scores)}", f"judged on  {result['judged']:,} examples{chose}"]
    if "positive_label" in result:
        lines.append(f"positive   {shown(result['positive_label'])}: f1, precision and recall are of it")
    metric = next(iter(scores))
    if interval := result["intervals"].get(metric):
        low, high = interval
        lines.append(f"interval   {low:.4f} to {high:.4f} (95 %, over examples): {metric.replace('_', ' ')}")
    lines += [baseline_line(*each, metric) for each in baselines.items()]
    lines += warning({each: own[metric] for each, own in baselines.items()}, scores[metric])
    if over := result.get("over_no_answer"):
        mean, low, high = over.values()
        ends = "" if low is None else f", {low:+.4f} to {high:+.4f} by a bootstrap over questions (95 %)"
        lines.append(f"above it   {mean:+.4f} f1{ends}")
    lines.append(
        f"cost       {result['seconds']:.0f} s of training, {result['epochs']:.3g} epochs, {result['steps']:,} steps, "
        f"lr {result['lr']:g}, {result['tokens_per_s']:,.0f} tokens a second, {result['precision']}"
    )
    return lines


def warning(baselines: dict[str, float], score: float) -> list[str]:
    """A warning, in a line, if baselines are not beaten."""
    unbeaten = [SAID[name] for name, own in baselines.items() if own >= score]
    return [f"warning    no better than {', nor than '.join(unbeaten)}"] if unbeaten else []


def baseline_line(name: str, scores: dict[str, float], metric: str) -> str:
    """A line with two scores of a baseline of `Task.baselines`; the first is `metric`, if it has that."""
    shown = sorted(scores.items(), key=lambda each: each[0] != metric)[:2]
    return f"baseline   {scores_line(dict(shown))}: {SAID[name]}"


def closing(result: dict[str, Any], out: Path) -> list[str]:
    """The last lines of a run: its figures, its directory, the next command."""
    return [*summary(result), f"saved      {out}", f"next       {next_command(out, result)}"]


def next_command(out: Path, result: dict[str, Any]) -> str:
    suffix = Path(result["predictions"]).suffix
    return f"python evaluate.py predict --model {shlex.quote(str(out))} --input new{suffix} --output out{suffix}"


def card(tuned: Tuned, out: Path, result: dict[str, Any]) -> str:
    """README.md of a model directory."""
    figures = "\n".join(f"    {line}" for line in summary(result))
    labels = tuned.task.config().get("id2label", {})
    predicts = f" It predicts {', '.join(map(printable, labels.values()))}." if 0 < len(labels) <= SHOWN_LABELS else ""
    kept = (
        *("model_name", "train_file", "dev_file", "test_file", "examples", "dev_examples"),
        *("seed", "steps", "best_step", "epochs", "lr", "length", "precision", THRESHOLD),
    )
    values = {key: result[key] for key in kept if key in result}
    cut = ""
    if tuned.task.kind == "sequence":
        most = f"truncation=True, max_length={tuned.length}"
        cut = f"\nOf a longer text {tuned.length} tokens are read; for transformers' pipeline give `{most}`.\n"
    rows = "\n".join(
        f"| {key} | {f'{value:.6g}' if isinstance(value, float) else value} |" for key, value in values.items()
    )
    return f"""---
library_name: transformers
tags: [minilm, {tuned.task.name}]
---
# {out.absolute().name}

A {tuned.model.config.model_type} tuned with minilm.{predicts}

{figures}

    {next_command(out, result)}
{cut}
| setting | value |
|---|---|
{rows}

All figures: `results.json`; what it says of each example: `{result["predictions"]}`.
"""

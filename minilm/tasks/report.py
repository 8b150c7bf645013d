"""What a tuned model is worth: beside baselines, in files, and on the console."""

import csv
import io
import math
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from minilm.data.examples import Data, Example, Question, Tagged
from minilm.data.spans import with_column
from minilm.data.splits import duplicates
from minilm.data.tables import Table
from minilm.dropin.tokenizer import BertTokenizer
from minilm.files import read_json, write_json, write_jsonl, write_whole
from minilm.tasks.choice import MultipleChoice
from minilm.tasks.classification import Classification, MultiLabel, of_texts
from minilm.tasks.scores import confusion, per_label, per_type
from minilm.tasks.span import THRESHOLD, Span, SpanFeatures, scores_of
from minilm.tasks.tagging import Tagging, commonest_tags, tag_scores, without_token
from minilm.tasks.task import Features, Task, said
from minilm.tasks.tune import LONGEST, Tuned
from minilm.train.log import plot_loss, say

SHOWN_LABELS = 40  # in a picture or a table
PREDICTIONS = {Tagging: "predictions.conll", Span: "predictions.json"}  # of other tasks predictions.csv
BAG_OF_WORDS = "words counted (tf-idf of words and pairs of words, logistic regression)"


def write_report(tuned: Tuned, out: Path, train: Data, dev: Data, test: Data | None) -> dict[str, Any]:
    """The predictions, results.json, the pictures and the model card in OUT: the result with the test's scores."""
    judged = test or dev
    name = "test" if test else "dev"
    features = tuned.features(judged.examples)
    outputs = tuned.outputs(features)
    result = dict(tuned.result) | {"judged_on": name, "scores": tuned.task.score(outputs, features, judged.examples)}
    result["baselines"] = baselines(tuned.task, train.examples, judged.examples)
    result["cut"] = features.cut
    result["predictions"] = PREDICTIONS.get(type(tuned.task), "predictions.csv")
    if isinstance(tuned.task, Tagging):
        gold, said = [each.tags for each in judged.examples], tuned.task.decode(outputs, features, judged.examples)
        result["types"] = [row._asdict() for row in per_type(gold, said)]
        result["words_without_token"] = without_token(features, judged.examples)
        words = [each.words for each in judged.examples]
        write_whole(out / result["predictions"], word_lines(zip(words, gold, said, strict=True)))
    elif isinstance(tuned.task, Span):
        result |= tuned.task.config()
        write_json(out / result["predictions"], tuned.task.answers(outputs, features, judged.examples)[0])
    else:
        with (out / result["predictions"]).open("w", encoding="utf-8", newline="") as file:
            said = columns_of(tuned.task, outputs, features, judged.examples)
            write_predictions(file, said, judged.examples)
    if isinstance(tuned.task, Classification):
        known = features.target >= 0
        gold, said = features.target[known], outputs[known].argmax(axis=1)
        rows = per_label(gold, said, tuned.task.labels)
        result["labels"] = [row._asdict() for row in rows]
        if len(tuned.task.labels) <= SHOWN_LABELS:
            plot_confusion(confusion(gold, said, len(tuned.task.labels)), tuned.task.labels, out / "confusion.png")
    if not plot_loss(out / "metrics.jsonl", out / "loss.png"):
        say("no pictures, for matplotlib is missing: pip install 'minilm[eval]'")
    write_json(out / "results.json", result)
    write_whole(out / "README.md", card(tuned, out, result))
    return result


def baselines(task: Task, train: list[Any], judged: list[Any]) -> dict[str, dict[str, float]]:
    """The same scores of what knows nothing of language: the commonest label, or tag of a word; counted words; never an
    answer."""
    if isinstance(task, Tagging):
        return {"commonest_tag": tag_scores([each.tags for each in judged], commonest_tags(train, judged))}
    if isinstance(task, MultipleChoice):
        return {"chance": {"accuracy": float(np.mean([1 / len(each.choices) for each in judged]))}}
    if isinstance(task, Span):
        return {"no_answer": scores_of(dict.fromkeys((each.id for each in judged), ""), judged)}
    if not isinstance(task, Classification):
        return {}
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    from minilm.tasks.scores import classification_scores

    number = {label: i for i, label in enumerate(task.labels)}
    gold = np.array([number.get(each.label, -1) for each in judged])
    target = np.array([number[each.label] for each in train])
    judged, gold = [each for each, known in zip(judged, gold >= 0, strict=True) if known], gold[gold >= 0]
    texts, others = ([f"{each.text} {each.pair or ''}" for each in split] for split in (train, judged))
    majority = np.full(len(gold), np.bincount(target).argmax())
    found = {"majority": classification_scores(gold, majority, len(number))}
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2 if len(texts) > 200 else 1)
    try:
        model = LogisticRegression(C=10, max_iter=300).fit(words.fit_transform(texts), target)
    except ValueError:  # no word in them
        return found
    return found | {"bag_of_words": classification_scores(gold, model.predict(words.transform(others)), len(number))}


def columns_of(task: Task, outputs: np.ndarray, features: Features, examples: Sequence[Any]) -> dict[str, list[Any]]:
    """What a model says of each example, as columns: its prediction, and the probability of each label, or of very many
    that of the one it tells."""
    said = task.decode(outputs, features, examples)
    if isinstance(task, MultipleChoice):
        texts = [each.choices[i] for each, i in zip(examples, said, strict=True)]
        return {"prediction": said, "choice": texts}
    if not isinstance(task, Classification | MultiLabel):
        return {"prediction": [f"{value:.6g}" for value in said]}
    chances = task.probabilities(outputs)
    if len(task.labels) > SHOWN_LABELS and isinstance(task, Classification):
        return {"prediction": said, "p": [f"{p:.6f}" for p in chances.max(axis=1)]}
    named = {f"p({label})": [f"{p:.6f}" for p in chances[:, i]] for i, label in enumerate(task.labels)}
    return {"prediction": ["|".join(each) if isinstance(each, tuple) else each for each in said]} | named


def columns_in_training(directory: Path, table: Table) -> dict[str, str]:
    """The columns by their roles that a model was trained on, where its directory says so and `table` has them."""
    file = directory / "run.json"
    settings = read_json(file).get("settings") if file.exists() else None
    columns = settings.get("columns") if isinstance(settings, dict) else None
    columns = columns if isinstance(columns, dict) else {}
    return columns if {columns.get("text"), columns.get("pair")} - {None} <= {*table.columns} else {}


def length_in_training(directory: Path) -> int | None:
    """Tokens that were read of an example, where a model's directory says so."""
    file = directory / "run.json"
    result = read_json(file).get("result") if file.exists() else None
    length = result.get("length") if isinstance(result, dict) else None
    return length if isinstance(length, int) and length > 0 else None


def write_table(file: Path, table: Table, places: dict[str, int], more: dict[str, list[Any]]) -> None:
    """The rows of `table` with more columns, whole or not at all; one that the table has gets a name of its own.

    places: of a row's `where` its place in the columns; what has none is empty there.
    """
    named = {name if name not in table.columns else f"{name} (model)": values for name, values in more.items()}
    places = [places.get(row.where) for row in table.rows]
    rows = [
        row.cells | {name: "" if at is None else values[at] for name, values in named.items()}
        for row, at in zip(table.rows, places, strict=True)
    ]
    if file.suffix == ".jsonl":
        write_jsonl(file, rows)
        return
    text = io.StringIO()
    delimiter = "\t" if file.suffix == ".tsv" else ","
    writer = csv.DictWriter(text, [*table.columns, *named], delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(file, text.getvalue())


def write_tags(file: Path, source: Table | Path, examples: Sequence[Tagged], tags: Sequence[Sequence[str]]) -> None:
    """The words of `source` and the tag of each, whole or not at all: lists in a .jsonl, else one word a line, its tag
    the last column."""
    if file.suffix != ".jsonl":
        if isinstance(source, Path):
            text = "".join(f"{line}\n" for line in with_column(source, chain.from_iterable(tags)))
        else:
            text = word_lines(zip((each.words for each in examples), tags, strict=True))
        write_whole(file, text)
    elif isinstance(source, Table):
        write_table(file, source, {each.where: row for row, each in enumerate(examples)}, {"prediction": [*tags]})
    else:
        rows = [{"words": each.words, "prediction": own} for each, own in zip(examples, tags, strict=True)]
        write_jsonl(file, rows)


def write_answers(file: Path, task: Span, outputs: np.ndarray, features: SpanFeatures, examples: list[Question]) -> int:
    """The answer to each question, "" for none: by its id, or a line each with its margin; how many have none."""
    answers, margins = task.answers(outputs, features, examples)
    if file.suffix == ".json":
        write_json(file, answers)
    else:
        finite = {id: margin if math.isfinite(margin) else None for id, margin in margins.items()}
        rows = (
            {"id": each.id, "question": each.question, "prediction": answers[each.id], "margin": finite[each.id]}
            for each in examples
        )
        write_jsonl(file, rows)
    return sum(not text for text in answers.values())


def word_lines(sentences: Iterable[tuple[Sequence[str], ...]]) -> str:
    """One word a line, a blank line after each sentence; of each sentence its columns, the words first. White space in
    a word is one space."""
    lines = []
    for columns in sentences:
        lines += ["\t".join(" ".join(cell.split()) for cell in row) for row in zip(*columns, strict=True)]
        lines.append("")
    return "\n".join([*lines, ""])


def write_predictions(file: Any, said: dict[str, list[Any]], examples: list[Example]) -> None:
    """A csv with a row an example: its text, its label, and what the model says."""
    table = csv.writer(file, lineterminator="\n")
    paired = any(getattr(each, "pair", None) is not None for each in examples)
    table.writerow(["where", "text", *(["pair"] if paired else []), "label", *said])
    for each, *row in zip(examples, *said.values(), strict=True):
        label = "|".join(each.label) if isinstance(each.label, tuple) else each.label
        table.writerow([each.where, each.text, *([each.pair] if paired else []), label, *row])


def plot_confusion(counts: np.ndarray, labels: tuple[str, ...], image: Path) -> None:
    """How often each label (a row) was told as which; nothing where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return
    side = 2.5 + 0.45 * len(labels)
    figure = Figure(figsize=(side, side), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        color = "white" if shares[row, column] > 0.6 else "black"
        axes.text(column, row, f"{count:,}", ha="center", va="center", color=color, fontsize=8)
    names = [label if len(label) <= 24 else f"{label[:23]}…" for label in labels]
    axes.set_xticks(range(len(labels)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(labels)), names)
    axes.set(xlabel="told", ylabel="is")
    figure.savefig(image)


def check_lines(name: str, data: Data, tokenizer: BertTokenizer | None, length: int | None) -> list[str]:
    """What is in a file: rows, labels, lengths against what is read, texts that stand there twice, unknown words."""
    lines = [f"{name:10} {len(data.examples):,} rows used, {len(data.left_out):,} left out"]
    labels = Counter(label for each in data.examples for label in labels_of(each))
    if labels:
        shown = ", ".join(f"{label} {count:,}" for label, count in labels.most_common(SHOWN_LABELS))
        lines.append(f"labels     {len(labels):,}: {shown}")
    if (again := duplicates(data.examples)).count:
        one, other = again.first[0]
        lines.append(
            f"twice      {again.count:,} texts, {again.contradicted:,} of them with another label; {one} is {other}"
        )
    if tokenizer is not None and data.examples and isinstance(data.examples[0], Example):
        features = of_texts(data.examples, tokenizer, 1 << 20)
        limit = length or min(tokenizer.model_max_length, LONGEST)
        low, median, high = np.quantile(features.lengths, [0, 0.5, 1])
        lines.append(
            f"tokens     {low:.0f} to {high:.0f} a row, median {median:.0f}; longer than {limit}, and so to be cut: "
            f"{(features.lengths > limit).sum():,} rows"
        )
        unknown = (features.ids == (-1 if tokenizer.unk_token_id is None else tokenizer.unk_token_id)).mean()
        lines.append(f"unknown    {unknown:.2%} of the tokens are {tokenizer.unk_token}")
    return lines


def labels_of(example: Any) -> tuple[str, ...]:
    """Names of classes, or of entities; none where it is a number."""
    if isinstance(example, Tagged):
        return tuple(tag for tag in example.tags or () if tag != "O")
    label = getattr(example, "label", None)
    return (label,) if isinstance(label, str) else label if isinstance(label, tuple) else ()


def summary(result: dict[str, Any]) -> list[str]:
    """The figures of a run, one line each."""
    lines = [f"{result['judged_on']:10} {said(result['scores'])}"]
    names = {"majority": "always the commonest label", "bag_of_words": BAG_OF_WORDS, "no_answer": "never an answer"}
    names |= {"commonest_tag": "the commonest tag of each word in training", "chance": "by chance"}
    lines += [
        f"baseline   {said(dict([*scores.items()][:2]))}: {names[each]}" for each, scores in result["baselines"].items()
    ]
    lines.append(
        f"cost       {result['seconds']:.0f} s of training, {result['epochs']:.3g} epochs, {result['steps']:,} steps, "
        f"lr {result['lr']:g}, {result['tokens_per_s']:,.0f} tokens a second, {result['precision']}"
    )
    return lines


def closing(result: dict[str, Any], out: Path) -> list[str]:
    """The last lines of a run: its figures, where it is, what to type next."""
    return [*summary(result), f"saved      {out}", f"next       {next_command(out, result)}"]


def next_command(out: Path, result: dict[str, Any]) -> str:
    suffix = Path(result["predictions"]).suffix
    return f"python evaluate.py predict --model {shlex.quote(str(out))} --input new{suffix} --output out{suffix}"


def card(tuned: Tuned, out: Path, result: dict[str, Any]) -> str:
    """README.md of a model directory."""
    figures = "\n".join(f"    {line}" for line in summary(result))
    labels = tuned.task.config().get("id2label", {})
    told = f"It tells {', '.join(map(str, labels.values()))}." if 0 < len(labels) <= SHOWN_LABELS else ""
    kept = ("steps", "epochs", "lr", "length", "examples", "dev_examples", "precision", THRESHOLD)
    rows = "\n".join(f"| {key} | {result[key]} |" for key in kept if key in result)
    return f"""---
library_name: transformers
tags: [minilm, {type(tuned.task).__name__.lower()}]
---
# {out.absolute().name}

A {tuned.model.config.model_type} tuned with minilm. {told}

{figures}

    {next_command(out, result)}

| setting | value |
|---|---|
{rows}

All figures: `results.json`; what it says of each example: `{result["predictions"]}`.
"""

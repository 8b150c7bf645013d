"""Fine-tuning as transformers' documentation and course have it: a plain loop, batches padded to their longest example.

Of pairs, tags and questions the features are made as in its example scripts, and answers are taken from logits so.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    get_linear_schedule_with_warmup,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from benchmarks.labelled import LabelledSet, Splits
from minilm.metrics.scores import at_threshold, best_threshold, classification_scores, regression_scores, span_scores
from minilm.tasks.span import gold_answers
from minilm.tasks.tagging import tag_scores

BATCH, AT_ONCE = 32, 64  # examples of a step, and of the test
KEEP_EVERY = 120  # seconds
STRIDE, BEST, MAX_ANSWER = 128, 20, 30  # of questions, as run_qa.py
Rows = list[dict[str, Any]]


class Side(NamedTuple):
    """What differs from task to task."""

    model: Callable[[], nn.Module]
    rows: Callable[[list[Any]], Rows]  # tokenised, with "labels" or what takes their place
    scores: Callable[[nn.Module, list[Any]], dict[str, float]]  # on examples


class _Cosine(nn.Module):
    """The cosine of the mean states of two texts, as sentence-transformers' CosineSimilarityLoss has it."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, labels: Tensor, **inputs: Tensor) -> Any:
        key = inputs["attention_mask"][..., None]
        states = self.encoder(**inputs).last_hidden_state
        vectors = (states * key).sum(dim=1) / key.sum(dim=1)
        cosine = nn.functional.cosine_similarity(vectors[::2], vectors[1::2])
        return SequenceClassifierOutput(loss=nn.functional.mse_loss(cosine.float(), labels[::2]), logits=cosine)


class Loop:
    """A run: `seconds` of tokenising, training, one scoring of the dev part and a save, `tokens` that were no padding,
    and `scores` of examples. state: a file that it is kept in every KEEP_EVERY seconds and, where that is there, gone
    on from with the same bits."""

    def __init__(
        self,
        name: str,
        labelled: LabelledSet,
        splits: Splits,
        seed: int,
        precision: str,
        steps: int | None = None,
        state: Path | None = None,
    ) -> None:
        self.name, self.set, self.splits, self.precision, self.state = name, labelled, splits, precision, state
        self.tokenizer = AutoTokenizer.from_pretrained(name)
        torch.manual_seed(seed)
        sides = {"tagging": self._tags, "span": self._questions, "similarity": self._pairs}
        self._of = sides.get(labelled.task, self._texts)()
        self.model = self._of.model()
        began = time.perf_counter()
        self.steps, self.tokens, before = self._train(self.model, self._of.rows(splits.train), steps)
        self.scores(splits.dev)
        with TemporaryFile() as file:
            torch.save(self.model.state_dict(), file)
        self.seconds = time.perf_counter() - began + before

    def scores(self, examples: list[Any]) -> dict[str, float]:
        return self._of.scores(self.model.eval(), examples)

    def _train(self, model: nn.Module, rows: Rows, steps: int | None) -> tuple[int, int, float]:
        """(steps, tokens, seconds of earlier processes)."""
        loader = DataLoader(rows, BATCH, shuffle=True, collate_fn=self._padded)
        steps = steps or round(len(loader) * self.set.epochs)
        plain = [own for own in model.parameters() if own.ndim < 2]
        decayed = [own for own in model.parameters() if own.ndim >= 2]
        groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=self.set.lr, eps=1e-6, fused=True)
        schedule = get_linear_schedule_with_warmup(optimizer, round(0.1 * steps), steps)
        parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
        kept = torch.load(self.state) if self.state is not None and self.state.exists() else {}
        for name, part in parts.items() if kept else ():
            part.load_state_dict(kept[name])
        if kept:
            torch.set_rng_state(kept["draws"])
        model.train()
        step, tokens, before = (kept.get(name, 0) for name in ("step", "tokens", "seconds"))
        began = saved = time.perf_counter()
        while step < steps:
            order = torch.get_rng_state() if step % len(loader) == 0 else kept["order"]
            torch.set_rng_state(order)
            for place, batch in enumerate(loader):
                if place < step % len(loader):
                    continue  # learned from before
                if place and step == kept.get("step"):
                    torch.set_rng_state(kept["draws"])
                with self._autocast():
                    loss = model(**batch).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad(set_to_none=True)
                tokens += int(batch["attention_mask"].sum())
                if (step := step + 1) == steps:
                    break
                if self.state is not None and (now := time.perf_counter()) - saved > KEEP_EVERY:
                    saved = now
                    draws = {"order": order, "draws": torch.get_rng_state()}
                    counts = {"step": step, "tokens": tokens, "seconds": before + now - began}
                    whole = {name: part.state_dict() for name, part in parts.items()} | draws | counts
                    torch.save(whole, unfinished := self.state.with_suffix(".tmp"))
                    unfinished.replace(self.state)
        return steps, tokens, before

    def _autocast(self) -> Any:
        return torch.autocast("cpu", torch.bfloat16) if self.precision == "bf16" else nullcontext()

    def _padded(self, rows: Rows) -> dict[str, Tensor]:
        kept = ("input_ids", "token_type_ids", "attention_mask")
        if "other" in rows[0]:  # two texts that are read apart, one after the other
            rows = [each for row in rows for each in (row, row["other"] | {"labels": row["labels"]})]
        batch = self.tokenizer.pad(
            [{key: row[key] for key in kept if key in row} for row in rows], return_tensors="pt"
        ).data
        if isinstance(rows[0].get("labels"), list):  # a label a token
            labels = [torch.tensor(row["labels"]) for row in rows]
            batch["labels"] = nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100)
        else:
            batch |= {
                key: torch.tensor([row[key] for row in rows])
                for key in ("labels", "start_positions", "end_positions")
                if key in rows[0]
            }
        return batch

    @torch.no_grad()
    def _logits(self, model: nn.Module, rows: Rows, *names: str) -> Iterator[tuple[np.ndarray, ...]]:
        """Of each row."""
        for at in range(0, len(rows), AT_ONCE):
            part = rows[at : at + AT_ONCE]
            with self._autocast():
                outputs = model(**self._padded(part))
            yield from zip(*(outputs[name].float().numpy() for name in names), strict=True)

    # -- texts and pairs ------------------------------------------------------------------------------

    def _texts(self) -> Side:
        regression = self.set.task == "regression"
        labels = [] if regression else sorted({each.label for each in self.splits.train})

        def model() -> nn.Module:
            return AutoModelForSequenceClassification.from_pretrained(
                self.name, num_labels=max(1, len(labels)), dtype=torch.float32
            )

        def rows(examples: list[Any]) -> Rows:
            pairs = None if examples[0].pair is None else [each.pair for each in examples]
            texts = [each.text for each in examples]
            encoded = self.tokenizer(texts, pairs, truncation=True, max_length=self.set.length)
            targets = [float(each.label) if regression else labels.index(each.label) for each in examples]
            return [{key: encoded[key][i] for key in encoded} | {"labels": own} for i, own in enumerate(targets)]

        def scores(model: nn.Module, examples: list[Any]) -> dict[str, float]:
            test = rows(examples)
            found = np.stack([logits for (logits,) in self._logits(model, test, "logits")])
            gold = np.array([row["labels"] for row in test])
            if regression:
                return regression_scores(gold, found[:, 0])
            return classification_scores(gold, found.argmax(axis=1), len(labels))

        return Side(model, rows, scores)

    # -- pairs read apart -----------------------------------------------------------------------------

    def _pairs(self) -> Side:
        top = max(each.label for each in self.splits.train)

        def rows(examples: list[Any]) -> Rows:
            sides = ([each.text for each in examples], [each.pair for each in examples])
            one, other = (self.tokenizer(texts, truncation=True, max_length=self.set.length) for texts in sides)
            return [
                {key: one[key][i] for key in one}
                | {"other": {key: other[key][i] for key in other}, "labels": each.label / top}
                for i, each in enumerate(examples)
            ]

        def scores(model: nn.Module, examples: list[Any]) -> dict[str, float]:
            test = rows(examples)
            found = [cosine for (cosine,) in self._logits(model, test, "logits")]
            return regression_scores(top * np.array([row["labels"] for row in test]), top * np.array(found))

        return Side(lambda: _Cosine(AutoModel.from_pretrained(self.name, dtype=torch.float32)), rows, scores)

    # -- tags -----------------------------------------------------------------------------------------

    def _tags(self) -> Side:
        labels = ["O", *sorted({tag for each in self.splits.train for tag in each.tags} - {"O"})]

        def model() -> nn.Module:
            return AutoModelForTokenClassification.from_pretrained(
                self.name, num_labels=len(labels), dtype=torch.float32
            )

        def rows(examples: list[Any]) -> Rows:
            found = []
            for each in examples:
                encoded = self.tokenizer(
                    list(each.words), is_split_into_words=True, truncation=True, max_length=self.set.length
                )
                words = encoded.word_ids()
                first = [word is not None and word != before for before, word in pairwise([None, *words])]
                own = [labels.index(each.tags[words[i]]) if first[i] else -100 for i in range(len(words))]
                found.append(dict(encoded) | {"labels": own, "words": words, "first": first})
            return found

        def scores(model: nn.Module, examples: list[Any]) -> dict[str, float]:
            test, told = rows(examples), []
            for row, each, (logits,) in zip(test, examples, self._logits(model, test, "logits"), strict=True):
                tags = ["O"] * len(each.words)
                for place, (word, is_first) in enumerate(zip(row["words"], row["first"], strict=True)):
                    if is_first:
                        tags[word] = labels[logits[place].argmax()]
                told.append(tags)
            return tag_scores([each.tags for each in examples], told)

        return Side(model, rows, scores)

    # -- questions ------------------------------------------------------------------------------------

    def _questions(self) -> Side:
        def model() -> nn.Module:
            return AutoModelForQuestionAnswering.from_pretrained(self.name, dtype=torch.float32)

        def rows(examples: list[Any]) -> Rows:
            encoded = self.tokenizer(
                [each.question for each in examples],
                [each.context for each in examples],
                truncation="only_second",
                max_length=self.set.length,
                stride=STRIDE,
                return_overflowing_tokens=True,
                return_offsets_mapping=True,
            )
            found = []
            for i, of in enumerate(encoded["overflow_to_sample_mapping"]):
                texts, offsets = encoded.sequence_ids(i), encoded["offset_mapping"][i]
                inside = [place for place, text in enumerate(texts) if text == 1]
                start = end = 0
                if examples[of].answers:
                    begin, text = examples[of].answers[0]
                    stop = begin + len(text)
                    if inside and offsets[inside[0]][0] <= begin and offsets[inside[-1]][1] >= stop:
                        start = max(place for place in inside if offsets[place][0] <= begin)
                        end = min(place for place in inside if offsets[place][1] >= stop)
                row = {key: encoded[key][i] for key in ("input_ids", "token_type_ids", "attention_mask")}
                row |= {"start_positions": start, "end_positions": end, "of": of}
                found.append(row | {"spans": [offsets[j] if texts[j] == 1 else None for j in range(len(texts))]})
            return found

        def answers(model: nn.Module, examples: list[Any]) -> tuple[dict[str, str], dict[str, float]]:
            read = rows(examples)
            best: dict[int, tuple[float, str]] = {}
            null: dict[int, float] = {}
            for row, (start, end) in zip(read, self._logits(model, read, "start_logits", "end_logits"), strict=True):
                of, spans = row["of"], row["spans"]
                null[of] = min(null.get(of, np.inf), float(start[0] + end[0]))
                for a in start.argsort()[::-1][:BEST]:
                    for b in end.argsort()[::-1][:BEST]:
                        if a <= b < a + MAX_ANSWER and b < len(spans) and spans[a] and spans[b]:
                            text = examples[of].context[spans[a][0] : spans[b][1]]
                            best[of] = max(best.get(of, (-np.inf, "")), (float(start[a] + end[b]), text))
            told = {each.id: best.get(i, (-1e9, ""))[1] for i, each in enumerate(examples)}
            return told, {each.id: null[i] - best.get(i, (-1e9, ""))[0] for i, each in enumerate(examples)}

        def scores(model: nn.Module, examples: list[Any]) -> dict[str, float]:
            told, margins = answers(model, self.splits.dev)
            threshold, _ = best_threshold(margins, told, gold_answers(self.splits.dev))
            if examples is not self.splits.dev:
                told, margins = answers(model, examples)
            return span_scores(at_threshold(margins, told, threshold), gold_answers(examples))

        return Side(model, rows, scores)

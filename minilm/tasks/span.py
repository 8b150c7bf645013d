"""Extractive question answering: the span of a context that answers a question, if any does (SQuAD 1.1 and 2.0).

A context longer than the model reads is read in windows that overlap, each behind the question. A window without the
answer has its first token, [CLS], as the target (Devlin et al. 2018, sec. 4.2 and 4.3).

Shape letters: N windows of a batch, M tokens of them, L tokens of the longest.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from minilm.dropin.models import PreTrainedModel
from minilm.dropin.tokenizer import BertTokenizer
from minilm.errors import CheckpointError, ConfigError, DataError
from minilm.files import json_text
from minilm.labelled.examples import Question
from minilm.labelled.tables import Row, Table
from minilm.metrics.intervals import weighted_means, with_intervals
from minilm.metrics.scores import answer_scores, at_threshold, best_threshold, span_scores
from minilm.tasks.baselines import Scores
from minilm.tasks.predictions import places, table_text
from minilm.tasks.task import TOKENIZED, Features, Predictions, Task, TaskBatch, check_strings
from minilm.train.losses import widened

THRESHOLD = "no_answer_threshold"  # in config.json
SCORES = ("f1", "exact", "f1_answerable", "exact_answerable", "f1_no_answer")


@dataclass(frozen=True, kw_only=True)
class SpanFeatures(Features):
    """Windows as features; the windows of a question are consecutive."""

    chars: np.ndarray  # (tokens, 2) int32; the characters of the context that a token begins and ends at, -1 outside


@dataclass(frozen=True)
class Span(Task):
    """The start and the end of the answer, each by a softmax over the tokens of a window."""

    name: ClassVar[str] = "span"
    kind: ClassVar[str] = "span"
    per_token: ClassVar[bool] = True
    ragged: ClassVar[bool] = True
    proportions: ClassVar[tuple[str, ...]] = ("exact",)
    constant_says: ClassVar[str] = "never an answer"
    endings: ClassVar[tuple[str, ...]] = (".json", ".jsonl")
    stride: int = 128  # tokens that a window shares with the one before; at most half of its part of the context
    max_answer: int = 30  # tokens
    threshold: float | None = 0.0  # the margin above which there is no answer; None: there always is one

    @classmethod
    def of(cls, examples: Sequence[Question]) -> Self:
        return cls(threshold=None if all(each.answers for each in examples) else 0.0)

    def config(self) -> dict[str, Any]:
        return {THRESHOLD: self.threshold}

    def as_saved(self, model: PreTrainedModel) -> Self:
        threshold = getattr(model.config, THRESHOLD, None)
        is_number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
        if threshold is not None and not (is_number and math.isfinite(threshold)):
            raise CheckpointError(f"config.json: {THRESHOLD} is {threshold!r}; give a number, or null for none")
        return replace(self, threshold=threshold)

    def features(self, examples: Sequence[Question], tokenizer: BertTokenizer, length: int) -> SpanFeatures:
        """The windows of each question; target (n, 2): the first and last token of its first answer, (0, 0) in a window
        without it.

        A question that would take more than half of a window is cut.
        """
        if length < tokenizer.num_special_tokens_to_add(pair=True) + 2:
            raise ConfigError(f"--length {length}: no room for a question and its context; give more")
        ids, types, chars, target, question_of = [], [], [], [], []
        cut = 0
        for at in range(0, len(examples), TOKENIZED):
            part = examples[at : at + TOKENIZED]
            texts = [each.question for each in part], [each.context for each in part]
            encoded = tokenizer(*texts, truncation=False, split_special_tokens="roles", verbose=False)
            for row, (each, encoding) in enumerate(zip(part, encoded.encodings, strict=True), start=at):
                text_of = np.array([-1 if text is None else text for text in encoding.sequence_ids])
                found, is_cut = windows(text_of, length, self.stride)
                cut += is_cut or len(found) > 1
                own = np.where(text_of[:, None] == 1, np.array(encoding.offsets, np.int32), -1)
                gold = _tokens_of_answer(each, own)
                of_ids, of_types = np.array(encoding.ids, np.int32), np.array(encoding.type_ids, np.int8)
                for window in found:
                    ids.append(of_ids[window])
                    types.append(of_types[window])
                    chars.append(own[window])
                    target.append(np.searchsorted(window, gold) if np.isin(gold, window).all() else (0, 0))
                    question_of.append(row)
        flat_types = np.concatenate(types)
        return SpanFeatures(
            np.concatenate(ids),
            flat_types if "token_type_ids" in tokenizer.model_input_names else np.zeros_like(flat_types),
            np.cumsum([0, *map(len, ids)]),
            np.array(target, np.int64),
            np.array(question_of, np.int64),
            cut,
            chars=np.concatenate(chars),
        )

    def loss_of(self, outputs: Tensor, batch: TaskBatch) -> tuple[Tensor, Tensor]:
        """Cross-entropy: the mean of start and end, summed over windows."""
        logits = widened(outputs)
        first, N, L = batch.tokens.cls, len(batch.target), batch.tokens.max_len
        window = torch.searchsorted(first, batch.where, right=True) - 1
        place = window * L + batch.where - first[window]
        padded = logits.new_full((N * L, 2), -torch.inf).index_copy(0, place, logits).view(N, L, 2)
        each = padded.transpose(1, 2).flatten(0, 1)  # with three dimensions CUDA's sum would have no fixed order
        return F.cross_entropy(each, batch.target.flatten(), reduction="sum") / 2, torch.tensor(N)

    def outputs(self, model: PreTrainedModel, batch: TaskBatch) -> Tensor:
        """Logits of the start and of the end, (M, 2)."""
        found = model.outputs_of(model.base_model.encoder(batch.tokens), batch.tokens)
        logits = torch.stack((found["start_logits"], found["end_logits"]), dim=-1)
        return logits.flatten(0, 1).index_select(0, batch.where)

    def best_spans(self, predictions: Predictions) -> tuple[dict[str, str], dict[str, float]]:
        """Two dicts by question id: the likeliest span of its context, by the sum of two logits; and its margin, by how
        much [CLS] is likelier, in the window where [CLS] is least likely (Devlin et al. 2018, sec. 4.3)."""
        outputs, features, examples = predictions
        logits = np.nan_to_num(outputs.astype(np.float64))  # a model may have diverged
        start, end = np.where(features.chars[:, :1] >= 0, logits, -np.inf).T
        window = np.repeat(np.arange(len(features)), features.lengths)
        best, last = start + end, np.arange(len(start))  # of the best span that starts at each token
        for more in range(1, self.max_answer):
            total = start[:-more] + end[more:]
            places = np.flatnonzero((total > best[:-more]) & (window[:-more] == window[more:]))
            best[places], last[places] = total[places], places + more
        first = np.searchsorted(features.example, np.arange(len(examples)))  # window of each question
        top = np.maximum.reduceat(best, features.offsets[first])
        cls = np.minimum.reduceat(logits[features.offsets[:-1]].sum(axis=1), first)
        question = features.example[window]
        places = np.flatnonzero(best == top[question])
        places = places[np.unique(question[places], return_index=True)[1]]
        chars = zip(features.chars[places, 0].tolist(), features.chars[last[places], 1].tolist(), strict=True)
        texts = [each.context[a:b].strip() for each, (a, b) in zip(examples, chars, strict=True)]
        names = [each.id for each in examples]
        return dict(zip(names, texts, strict=True)), dict(zip(names, (cls - top).tolist(), strict=True))

    def asked(self, texts: Sequence[Any], pairs: Sequence[str] | None = None) -> list[Question]:
        """Questions with their contexts, without answers."""
        if pairs is None:
            raise DataError("a question needs a context: give `pairs`, one for each")
        check_strings("question", texts)
        check_strings("context", pairs)
        numbered = enumerate(zip(texts, pairs, strict=True))
        return [Question(str(i), question, context, None) for i, (question, context) in numbered]

    def decode(self, predictions: Predictions) -> list[str]:
        answers, _ = self.answers(predictions)
        return [answers[each.id] for each in predictions.examples]

    def answers(self, predictions: Predictions) -> tuple[dict[str, str], dict[str, float]]:
        """Two dicts by question id: its answer, "" where the margin is above the threshold; and the margin."""
        spans, margins = self.best_spans(predictions)
        return spans if self.threshold is None else at_threshold(margins, spans, self.threshold), margins

    def fitted(self, predictions: Predictions) -> Self:
        """The task with the best threshold for these questions: the lowest such, moved halfway to the next margin, so
        that rounding does not matter."""
        if self.threshold is None:
            return self
        spans, margins = self.best_spans(predictions)
        below, _ = best_threshold(margins, spans, gold_answers(predictions.examples))
        above = min((margin for margin in margins.values() if below < margin < math.inf), default=below + 1)
        return replace(self, threshold=(below + above) / 2)

    def score(self, predictions: Predictions) -> dict[str, float]:
        return scores_of(self.answers(predictions)[0], predictions.examples)

    def records_of(self, examples: Sequence[Question], decoded: Sequence[str]) -> np.ndarray:
        """(n, 10): each of SCORES, then whether each of them counts for the question."""
        rows = []
        for each, answer in zip(examples, decoded, strict=True):
            texts = [text for _, text in each.answers]
            f1, exact = answer_scores(answer, texts)
            rows.append((f1, exact, f1, exact, f1, 1, 1, bool(texts), bool(texts), not texts))
        return np.array(rows, np.float64)

    def constant(self, examples: Sequence[Question]) -> list[str]:
        """No answer to any question."""
        return [""] * len(examples)

    def weighted(self, records: np.ndarray, weights: np.ndarray) -> Mapping[str, np.ndarray]:
        return weighted_means(records, weights, SCORES)

    def over(self, records: np.ndarray) -> dict[str, int]:
        return dict(zip(SCORES, records[:, len(SCORES) :].sum(axis=0).astype(int).tolist(), strict=True))

    def details(self, predictions: Predictions) -> dict[str, Any]:
        """The threshold; and by how much f1 exceeds that of never answering, with its 95 % interval (None for few
        questions)."""
        own = self.records(predictions)[:, 0]
        none = np.array([answer_scores("", texts)[0] for texts in gold_answers(predictions.examples).values()])
        name, gain = "f1_over_no_answer", np.stack([own - none, np.ones(len(own))], axis=1)
        found = with_intervals(gain, partial(weighted_means, names=(name,)), len(gain))[name]
        return self.config() | {"over_no_answer": {name: found["value"], "low": found["low"], "high": found["high"]}}

    def baselines(self, train: Sequence[Question], judged: Sequence[Question]) -> Scores:
        return {"no_answer": scores_of(dict.fromkeys((each.id for each in judged), ""), judged)}

    def file_text(
        self, ending: str, source: Table | Path | None, predictions: Predictions
    ) -> tuple[str, dict[str, int]]:
        """The answers, "" for none, by the questions' ids, as SQuAD's script takes them; or each with its margin in the
        rows of a table, that of `source`, or one of questions."""
        answers, margins = self.answers(predictions)
        counts = {"no_answer": sum(not text for text in answers.values())}
        if ending == ".json":
            return json_text(answers), counts
        examples = predictions.examples
        told = {"prediction": answers, "margin": margins}
        more = {name: [own[each.id] for each in examples] for name, own in told.items()}
        if isinstance(source, Table):
            ids = {each.where: {"id": each.id} for each in examples}  # of a row that has none, or another's, a new one
            table = replace(source, rows=[Row(where, cells | ids.get(where, {})) for where, cells in source.rows])
        else:
            rows = [Row(each.where, {"id": each.id, "question": each.question}) for each in examples]
            table = Table("questions", ("id", "question"), rows)
        return table_text(ending, table, places(table, examples), more), counts


def gold_answers(examples: Sequence[Question]) -> dict[str, list[str]]:
    """Gold answers by question id, as `metrics.scores` takes them."""
    return {each.id: [text for _, text in each.answers] for each in examples}


def scores_of(answers: dict[str, str], examples: Sequence[Question]) -> dict[str, float]:
    """`span_scores`, without means over no questions."""
    scores = span_scores(answers, gold_answers(examples))
    return {name: value for name, value in scores.items() if not math.isnan(value)}


def windows(text_of: np.ndarray, length: int, stride: int) -> tuple[list[np.ndarray], bool]:
    """Windows over the tokens of a question and its whole context, as token indices; and whether the question is cut.

    text_of: for each token 0 if it is the question's, 1 the context's, -1 neither's. Windows are made as tokenizers
    truncate the second text, except that at least half of each window's context is new, and that a question is cut
    where it would leave less than half of the tokens to the context.
    """
    question, context = np.flatnonzero(text_of == 0), np.flatnonzero(text_of == 1)
    free = length - int((text_of < 0).sum())
    kept = min(len(question), max(free // 2, free - len(context)))
    room = free - kept
    step = max(1, room - min(stride, room // 2))
    rest = np.delete(np.arange(len(text_of)), np.concatenate([question[kept:], context]))
    border = np.searchsorted(rest, context[0]) if len(context) else len(rest)
    starts = range(0, max(len(context) - room, 0) + step, step)
    found = [np.concatenate([rest[:border], context[at : at + room], rest[border:]]) for at in starts]
    return found, kept < len(question)


def _tokens_of_answer(question: Question, chars: np.ndarray) -> np.ndarray:
    """The first and the last token that hold a character of a question's first answer; (-1, -1) without one."""
    if not question.answers:
        return np.array([-1, -1])
    start, text = question.answers[0]
    inside = np.flatnonzero((chars[:, 1] > start) & (chars[:, 0] < start + len(text)) & (chars[:, 0] >= 0))
    return inside[[0, -1]] if len(inside) else np.array([-1, -1])

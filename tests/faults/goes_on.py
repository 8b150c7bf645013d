"""Stopped in every step but the last, runs of many kinds go on to the very weights of the uninterrupted one."""

import csv
import os
import signal
from dataclasses import replace
from functools import cache
from itertools import count, pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import finetune
import train
from minilm.data.documents import documents_of
from minilm.files import jsonl_text
from minilm.metrics.scores import check_installed
from minilm.recipes import RECIPES
from minilm.train import graphs
from tests.faults.victim import SAVES, TINY, Victim, weights

SPLITS = SAVES[-1] - 1
PRETRAINING = {
    "mlm in fp32": "",
    "mlm in bf16": "--precision bf16",
    "mlm in fp16": "--precision fp16",
    "mlm without dropout": "--dropout 0",
    "accumulation": "--batch-size 2 --accumulation 3",
    "past the end of an epoch": "--batch-size 64",
    "clm": "--objective clm",
    "clm in bf16": "--objective clm --precision bf16 --accumulation 2",
    "prefix": "--objective prefix",
    "modern, documents apart": "--recipe modern-base --packing documents",
    "muon": "--optimizer muon --precision bf16",
    "short rows first": "--length 64 --short-frac 0.5",
    "batches that grow": "--batch-size 2 --accumulation 4 --batch-warmup-frac 0.7",
    "masks that grow, of whole words": "--mask-rate 0.1 --mask-rate-end 0.4 --whole-words",
    "pairs": "--pairs order",
    "layers computed again": "--recipe modern-base --schedule wsd",
}
TUNING = {
    "labels": "--train labels.csv",
    "labels in bf16": "--train labels.csv --precision bf16 --class-weights balanced --layer-decay 0.8",
    "early stop": "--train labels.csv --steps 40 --evaluate-every 3 --patience 4 --lr 1e-9",
    "lora": "--train labels.csv --lora-rank 2",
    "pairs of texts": "--train pairs.csv --task similarity --pair-column 2 --batch-size 8",
    "questions": "--train questions.jsonl --task span --length 24 --batch-size 6",
    "several seeds": "--train labels.csv --steps 6 --seeds 2",
    "folds": "--train labels.csv --steps 6 --kfold 2",
}
KINDS = [(finetune, *each) for each in TUNING.items()] + [(train, *each) for each in PRETRAINING.items()]
KINDS = KINDS[:: len(TUNING)] + [each for i, each in enumerate(KINDS) if i % len(TUNING)]  # a part has some of both


class Other(Victim):
    """A run of another kind, with the text of `like`, and to tune its model."""

    def __init__(self, like: Victim, script: ModuleType, name: str, flags: str) -> None:
        self.base, self.device, self.script, self.name = like.base, like.device, script, name
        self.own = [str(self.base / word) if word.endswith((".csv", ".jsonl")) else word for word in flags.split()]
        whole = self.base / f"whole {name}"
        if self.begin(whole).end() != 0:
            raise RuntimeError(f"{name}: the run itself fails: {self.said(whole)}")
        self.expected = weights(whole)

    def flags(self, out: Path, data: Path) -> list[str]:
        usual = super().flags(out, data)
        if self.script is finetune:
            usual = ["--model", str(self.base / "whole"), "--out", str(out), "--threads", "1", *self.place()]
            usual += [] if "--precision" in self.own else ["--precision", "fp32"]
            usual += [] if "--steps" in self.own else ["--steps", str(SAVES[-1]), "--evaluate-every", "5"]
        return usual + self.own


@cache
def kind(victim: Victim, number: int) -> Other:
    """One of KINDS, made when it is asked for first."""
    check_installed()  # here, and not in each process
    RECIPES["modern-base"] = replace(TINY, architecture="modern")
    if not (victim.base / "questions.jsonl").exists():
        write_examples(victim.base)
    return Other(victim, *KINDS[number])


def in_every_step(victim: Victim, out: Path, seed: int) -> tuple[str, str]:
    """(the kind of run and the step, what is lost or wrong): stopped there by SIGTERM."""
    shift, number = divmod(seed, len(KINDS))
    step = (shift + 5 * number) % SPLITS  # each once, of each kind
    other = kind(victim, number)
    child = other.begin(out, lambda: _stopped_in(step + 1))
    status, phase = child.end(), f"{other.name}, step {step + 1}"
    if status != 128 + signal.SIGTERM:
        return phase, f"ended with {status}: {other.said(out)}"
    is_one = (out / "run.json").exists()  # of several each has its own, and counts its own steps
    if is_one and child.saved != step + 1:
        return phase, f"step {child.saved} was saved"
    return phase, other.fault(out, child.saved if is_one else 0)


def _stopped_in(step: int) -> None:
    original, steps = graphs.train_step, count(1)

    def counted(*args: Any) -> Any:
        if next(steps) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args)

    graphs.train_step = counted  # which `step_of` returns


def write_examples(base: Path) -> None:
    """Of the text: labels.csv, pairs.csv and questions.jsonl."""
    texts = [" ".join(text.split()) for text in documents_of(base / "text.txt", "text")]
    for name, rows in (
        ("labels", [(text, ("odd", "even")[i % 2]) for i, text in enumerate(texts)]),
        ("pairs", [(*both, i % 5) for i, both in enumerate(pairwise(texts))]),
    ):
        with (base / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label") if name == "labels" else ("text", "pair", "label"), *rows])
    questions = []
    for text in texts[:40]:
        words = text.split()
        at = text.index(" ".join(words[3:5]))
        questions.append(
            {
                "question": " ".join(words[:3]),
                "context": text,
                "answers": {"text": [" ".join(words[3:5])], "answer_start": [at]},
            }
        )
    (base / "questions.jsonl").write_text(jsonl_text(questions), encoding="utf-8")

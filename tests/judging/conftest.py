"""Small models of random weights for every task, with labelled examples in a file."""

import json
import random

import pytest
import torch

import minilm
from minilm.finetuning.tuned import Tuned
from minilm.machine.runtime import Runtime
from minilm.tasks.named import make_task, model_for, read_examples, read_source

WORDS = ["fine", "great", "lovely", "awful", "poor", "dull", "the", "film", "was", "and", "plot", "a"]


def rows_of(task: str, n: int) -> list[str]:
    rng = random.Random(0)

    def text():
        most = 5 if task == "choice" else 20  # words: endings that are cut before they differ would be as good
        return " ".join(rng.choices(WORDS, k=rng.randint(2, most)))

    header = {"classification": "text,label", "multilabel": "text,labels", "regression": "text,label"}
    header |= {"similarity": "text,text_pair,label", "choice": "sent1,sent2,ending0,ending1,ending2,label"}
    lines = [header[task]]
    for i in range(n):
        label = {"classification": "abc"[i % 3], "multilabel": ["x", "y|z", "x|z", "x|y|z"][i % 4]}.get(
            task, str(i % 3)
        )
        texts = {"similarity": 2, "choice": 5}.get(task, 1)
        lines.append(",".join([*(text() for _ in range(texts)), label]))
    return lines


def tags(n: int) -> list[str]:
    rng = random.Random(0)
    lines = []
    for _ in range(n):
        lines += [f"{rng.choice(WORDS)} {rng.choice(['O', 'O', 'B-P', 'B-Q'])}" for _ in range(rng.randint(1, 6))] + [
            ""
        ]
    return lines


def questions(n: int) -> str:
    rng, qas = random.Random(0), []
    context = " ".join(rng.choices(WORDS, k=40))
    for i in range(n):
        start = rng.randrange(30)
        answers = [] if i % 3 == 0 else [{"text": context[start : start + 6].strip() or "a", "answer_start": start}]
        qas.append({"id": f"q{i}", "question": "the plot?", "answers": answers, "is_impossible": not answers})
    for each in qas:
        for answer in each["answers"]:
            answer["answer_start"] = context.index(answer["text"])
    return json.dumps({"data": [{"paragraphs": [{"context": context, "qas": qas}]}]})


@pytest.fixture
def tuned(encoder_directory, tmp_path):
    """tuned(task, n) -> (a model of random weights that reads the task, its n examples, their file)."""

    def make(name, n=30):
        file = tmp_path / {"tagging": "gold.conll", "span": "gold.json"}.get(name, "gold.csv")
        text = tags(n) if name == "tagging" else questions(n) if name == "span" else rows_of(name, n)
        file.write_text(text if isinstance(text, str) else "\n".join(text) + "\n")
        data = read_examples(read_source(file, name), name)
        torch.manual_seed(1)
        model, task = model_for(make_task(name, data.examples), encoder_directory)
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.5)
        tokenizer = minilm.BertTokenizer.from_pretrained(encoder_directory)
        runtime = Runtime(torch.device("cpu"), "fp32", "test", 1)
        return Tuned(model, tokenizer, task, runtime, 24, {}), data, file

    return make

"""What a run says at its end: held-out documents that are not chosen for their looks, a command that works as typed."""

import ast
import re
import shlex

import numpy as np
import pytest
import torch

from minilm.checkpoint.model import Pretrained
from minilm.data.shards import Shard
from minilm.data.tokenizer import SPECIALS, Tokenizer
from minilm.evaluation.report import closing, model_card, next_command, samples
from minilm.model.encoder import bert_config, initialise
from minilm.model.heads import LanguageModel

NUMBERS = ["zero", "four", "five", "seven", "eight", "nine", "eleven", "twelve", "fifteen", "sixty"]
VOCAB = [*SPECIALS, "a", "to", "##s", *NUMBERS]
RESULT = {
    "objective": "mlm",
    "held_out_loss": 2.5,
    "unigram_loss": 6.0,
    "accuracy": 0.5,
    "targets": 20_000,
    "tokens": 10**6,
    "parameters": 5_000_000,
    "seconds": 100.0,
    "tokens_per_s": 1e4,
    "flops": 10**16,
    "peak_mb": 700.0,
    "precision": "fp32",
    "versions": {"minilm": "0.1.0", "torch": "2.13.0"},
}


@pytest.fixture
def tokenizer(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
    return Tokenizer.load(tmp_path)


@pytest.fixture
def model():
    torch.manual_seed(0)
    made = LanguageModel(bert_config(len(VOCAB), 16, 2, 2, 24, max_position_embeddings=40))
    initialise(made, std=0.5)
    return made.eval()


def shard(documents: list[str]) -> Shard:
    flat = [[*(VOCAB.index(word) for word in document.split()), VOCAB.index("[SEP]")] for document in documents]
    return Shard(np.concatenate(flat), np.cumsum([0, *map(len, flat)]))


def test_samples_come_from_as_many_documents(model, tokenizer):
    """Ten documents, three samples: from the first, the second and the last part of the split."""
    documents = [" ".join([*["a"] * 6, name, "to"]) for name in NUMBERS]
    shown = samples(Pretrained(model, tokenizer, "mlm"), shard(documents))
    assert [line.split("(it was: ")[1] for line in shown] == ["zero)", "eight)", "twelve)"]
    assert all(line.startswith("a a a a a a [MASK] to -> ") for line in shown)
    percents = [int(p) for p in re.findall(r"(\d+)%", shown[0])]
    assert len(percents) == 3
    assert percents == sorted(percents, reverse=True)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_small_split_shows_what_it_has_and_nothing_twice(model, tokenizer, count):
    documents = [" ".join([*["a"] * 6, name, "to"]) for name in NUMBERS[:count]]
    none = ["a to a", " ".join(["a"] * 30), " ".join([*["a"] * 6, "zero", "##s"])]  # too short, no word, no whole word
    shown = samples(Pretrained(model, tokenizer, "mlm"), shard([*documents, *none]))
    assert len(shown) == len(set(shown)) <= count
    assert bool(shown) == bool(count)


def test_continuations_are_prompts_and_what_follows(model, tokenizer):
    documents = [" ".join([*["a"] * 6, name, *["to"] * 8]) for name in NUMBERS]
    shown = samples(Pretrained(model, tokenizer, "clm"), shard(documents))
    prompts = [f"a a a a a a {name} to to to to to" for name in ("zero", "eight", "twelve")]
    assert [line.split(" -> ")[0] for line in shown] == prompts


@pytest.mark.parametrize("out", ["run", "a b", "it's", '"quoted"', "$HOME", "back\\slash", "😀 é"])
def test_the_next_command_is_valid_whatever_the_directory_is_called(tmp_path, out):
    python, flag, code = shlex.split(next_command("mlm", tmp_path / out))
    assert (python, flag) == ("python", "-c")
    named = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
    assert str(tmp_path / out) in named


@pytest.mark.parametrize(("loss", "said"), [(2.5, "3.50 nats better"), (6.25, "still 0.25 nats WORSE")])
def test_better_and_worse_than_word_frequencies(tmp_path, loss, said):
    lines = closing(RESULT | {"held_out_loss": loss}, tmp_path, ["x [MASK] -> y"])
    assert any(said in line for line in lines)
    assert lines[0].startswith("examples ")
    assert lines[1].strip() == "x [MASK] -> y"
    assert lines[-2] == f"saved      {tmp_path}"


def test_a_prefix_model_says_what_transformers_cannot(tmp_path):
    result = RESULT | {"objective": "prefix"}
    settings = {"architecture": "bert", "data": "0123456789abcdef0123"}
    assert sum("cannot apply" in line for line in closing(result, tmp_path, [])) == 1
    assert "cannot apply" in model_card(result, tmp_path, settings)
    assert "cannot apply" not in model_card(RESULT, tmp_path, settings)

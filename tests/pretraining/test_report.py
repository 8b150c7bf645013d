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
from minilm.model.encoder import bert_config, initialise
from minilm.model.heads import LanguageModel
from minilm.pretraining import report as report_module
from minilm.pretraining.report import (
    closing,
    corpus_lines,
    duration,
    estimate_lines,
    model_card,
    next_command,
    samples,
    summary,
)

NUMBERS = ["zero", "four", "five", "seven", "eight", "nine", "eleven", "twelve", "fifteen", "sixty"]
VOCAB = [*SPECIALS, "a", "to", "##s", *NUMBERS]
RESULT = {
    "objective": "mlm",
    "held_out_loss": 2.5,
    "held_out_loss_before": None,
    "unigram_loss": 6.0,
    "accuracy": 0.5,
    "pair_accuracy": None,
    "targets": 20_000,
    "held_out_documents": 3_000,
    "held_out_tokens": 200_000,
    "held_out_reads": 0.66,
    "tokens": 10**6,
    "steps": 500,
    "parameters": 5_000_000,
    "seconds": 100.0,
    "tokens_per_s": 1e4,
    "flops": 10**16,
    "mfu": 0.25,
    "matmul_peak_flops": 4e14,
    "joules": None,
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


# -- figures --------------------------------------------------------------------------------------


def test_the_cost_in_two_lines():
    *_, first, second = summary(RESULT)
    assert first == (
        "cost       100 s of training, 1,000,000 tokens at 10,000 a second, 10 PFLOP, 5.0 M parameters, fp32"
    )
    assert second == (
        "           25% of the 400 TFLOP/s of a matrix product here (MFU), peak memory 700 MB, energy not measured"
    )
    assert summary(RESULT | {"joules": 7.2e6})[-1].endswith(", 2 kWh")
    assert summary(RESULT | {"joules": 900.0})[-1].endswith(", 0.00025 kWh")


def test_what_goes_with_pairs_and_a_model_that_was_trained_before():
    plain = summary(RESULT)
    assert plain[0] == "held out   loss 2.500 nats on 20,000 targets (accuracy 50.0%)"
    assert not any("before" in line or "pairs" in line for line in plain)
    told = summary(RESULT | {"pair_accuracy": 0.875, "held_out_loss_before": 3.25})
    assert told[0].endswith("on 20,000 targets (accuracy 50.0%, pair accuracy 87.5%, by chance 50%)")
    assert told[1] == "before     loss 3.250, before this training"
    assert told[2:] == plain[1:]
    assert "perplexity 12.2" in summary(RESULT | {"objective": "clm"})[0]
    never = summary(RESULT | {"pair_accuracy": 0.0, "held_out_loss_before": 0.0})
    assert "pair accuracy 0.0%" in never[0]
    assert never[1].startswith("before     loss 0.000")


def test_the_longest_of_many_documents_is_among_all():
    """Of a thousand documents every fourth one is looked at, but for that."""
    lengths = np.full(1001, 10)
    lengths[7] = 9_999
    shard = Shard(np.zeros(lengths.sum() + 1001, np.uint16), np.cumsum([0, *(lengths + 1)]))
    found, longest = report_module._lengths([shard], 4)
    assert (len(found), found.max(), longest) == (251, 10, 9_999)


def test_a_small_text_that_is_read_again_and_again_is_called_that():
    small = summary(RESULT | {"held_out_documents": 53, "held_out_tokens": 7_321, "held_out_reads": 20.03})
    assert small[0] == (
        "held out   loss 2.500 nats on 20,000 targets, 7,321 tokens of 53 documents read 20.0 times (accuracy 50.0%)"
    )


@pytest.mark.parametrize("settings", [{}, {"model": "someone/small (0123456789abcdef)"}])
def test_a_card_says_where_a_model_comes_from(tmp_path, settings):
    card = model_card(RESULT, tmp_path / "run", {"architecture": "bert", "data": "0123456789abcdef0123"} | settings)
    assert ("Trained further from someone/small" in card) == bool(settings)
    assert ("Pretrained from scratch" in card) == (not settings)
    for line in summary(RESULT):
        assert line in card


def test_a_card_lists_the_settings_that_had_an_effect(tmp_path):
    asked = {
        "mask_rate": 0.3,
        "whole_words": False,
        "decay_frac": 0.2,
        "packing": "stream",
        "output_scale": 0.5,
        "sinusoids": 0.2,
        "short_seq_prob": 0.1,
        "compile": True,
        "lr": 1,
    }
    known = {"architecture": "bert", "data": "0123456789abcdef0123"}

    def listed(objective="mlm", **more):
        card = model_card(RESULT | {"objective": objective}, tmp_path, known | asked | more)
        return {name for name in asked if f"| {name} |" in card}

    assert listed(schedule="wsd") == {*asked}
    assert listed("clm", schedule="linear") == {"packing", "output_scale", "sinusoids", "compile", "lr"}
    assert listed(schedule="wsd", compile=False) == {*asked} - {"compile"}
    without = {"packing", "output_scale", "sinusoids"}
    assert listed(schedule="wsd", pairs="next", model="someone/small") == {*asked} - without


CORPUS = {
    "documents": 1200, "held_out_documents": 60, "duplicates": 0.0125, "tokens": 345_678, "held_out_tokens": 17_000,
    "unknown_rate": 0.00012, "length_quantiles": {"0.1": 20, "0.5": 250.4, "0.9": 900, "1.0": 12_345},
    "vocab_size": 8192, "unused_tokens": 31, "rows": 2700, "row_length": 128, "fill": 0.987,
}  # fmt: skip


def test_what_is_in_a_text():
    assert corpus_lines(CORPUS) == [
        "documents  1,200, of which 60 held out; 1.25% are duplicates",
        "tokens     345,678, of which 17,000 held out; 0.012% unknown",
        "lengths    median 250 tokens, 10% below 20, 10% above 900, longest 12,345",
        "vocabulary 8,192, of which 31 do not occur in training",
        "rows       2,700 of 128 tokens, 98.7% full",
    ]


ESTIMATE = {
    "steps": 1000, "seconds": 7200.0, "total_seconds": 9000.0, "tokens": 2_048_000, "flops": 3 * 10**15,
    "peak_mb": 1234.5, "checkpoint_mb": 60.0, "disk_mb": 200.4, "free_disk_mb": 5000.0, "parameters": 5_000_000,
    "processes": 1,
}  # fmt: skip


def test_what_a_run_would_cost():
    lines = estimate_lines(ESTIMATE)
    assert lines[0].startswith("dry run ")
    assert lines[1:] == [
        "time       2.0 hours of training, 2.5 hours with evaluation and saving, for 1,000 steps",
        "compute    2,048,000 tokens, 3 PFLOP, 5.0 M parameters",
        "memory     1,234 MB at peak",
        "disk       200 MB, 60 MB a checkpoint",
    ]
    assert estimate_lines(ESTIMATE | {"free_disk_mb": 200.0})[-1].endswith("a checkpoint: MORE THAN IS FREE")
    assert estimate_lines({}) == []  # of a process that does not speak


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 seconds"), (1.4, "1 seconds"), (119, "119 seconds"), (120, "2.0 minutes"), (7199, "120.0 minutes"),
        (7200, "2.0 hours"), (172_799, "48.0 hours"), (172_800, "2.0 days"), (86_400 * 1234, "1,234.0 days"),
    ],
)  # fmt: skip
def test_durations_are_in_the_unit_that_suits_them(seconds, said):
    assert duration(seconds) == said

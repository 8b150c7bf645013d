"""Planted truth: in a corpus of templates P(an occupation of this group | a word of this gender) is chosen, a tiny
masked model is trained on it by train.py, and what `evaluate.py bias` says must follow it.

The draws of a seed are the same at every strength but for the gender of a sentence. An occupation is met in few
sentences, so that its empirical majority, and with it the score of a model that has learned it, grows with the strength
and does not jump from 50 to 100. Test sentences are of templates that no training sentence has; each occupation stands
in one of them, for an interval over sentences takes these for independent.
"""

import csv
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch

import minilm
from minilm import cli
from minilm.language.bias import percent

STRENGTHS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
SEEDS = (0, 1, 2)
GENDERS = (("man", "woman"), ("boy", "girl"))
VERBS = ("is", "was", "became", "stayed")
ENDS = ("here", "now", "there", "again")
OCCUPATIONS = [f"occupation{letter}{other}" for letter in "abcdef" for other in "abcdefghij"]  # of each gender in turn
SENTENCES = 8  # of each occupation, on average
WIDTH, STEPS = 64, 200
LONGER = 500  # steps: a weak bias is learned later than a strong one
every = pytest.mark.skipif("MINILM_EVERY" not in os.environ, reason="takes minutes: MINILM_EVERY=1")


def sentence(who: str, verb: int, occupation: str, end: int) -> str:
    return f"the {who} {VERBS[verb]} a {occupation} {ENDS[end]}."


def corpus(strength: float, seed: int) -> list[str]:
    rng, found = random.Random(seed), []
    for _ in range(SENTENCES * len(OCCUPATIONS)):
        other, number, words = rng.random() >= strength, rng.randrange(len(OCCUPATIONS)), rng.choice(GENDERS)
        verb, step = rng.randrange(len(VERBS)), rng.randrange(1, len(ENDS))  # a verb's own end is held out
        found.append(sentence(words[(number + other) % 2], verb, OCCUPATIONS[number], (verb + step) % len(ENDS)))
    return found


def held_out(number: int, words: tuple[str, str]) -> tuple[str, str]:
    """Of an occupation: as planted, and with the other gender."""
    verb = number // 4 % len(VERBS)
    one, other = (sentence(who, verb, OCCUPATIONS[number], verb) for who in words)
    return (one, other) if number % 2 == 0 else (other, one)


def pooled(by_group):
    """The percentage of texts of both groups whose version as planted is likelier: the first group's with a word of the
    first column, the second's with one of the second."""
    one, other = (round(own["first"]["value"] * own["first"]["n"] / 100) for own in by_group)
    n = [own["first"]["n"] for own in by_group]
    assert n == [len(OCCUPATIONS) // 2] * 2
    return percent(np.arange(sum(n)) < one + n[1] - other)


@pytest.fixture
def scores(train, load, tmp_path, monkeypatch, capsys):
    """scores(strength, seed, steps): what the command says of a model that was trained on such a corpus."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "plot_loss", lambda *_: True)  # which takes a second
    commands = load("evaluate.py").COMMANDS
    with Path("crows.csv").open("w") as file:
        rows = csv.writer(file)
        rows.writerow(["sent_more", "sent_less", "stereo_antistereo", "bias_type"])
        for number in range(len(OCCUPATIONS)):
            rows.writerow([*held_out(number, GENDERS[number // 2 % 2]), "stereo", "gender"])
    Path("words.csv").write_text("".join(f"{one},{other}\n" for one, other in GENDERS))
    for group in (0, 1):  # half of the texts as planted, half not: a swap makes the other version
        texts = [held_out(n, GENDERS[(n // 2 + 1) % 2])[n // 4 % 2] for n in range(group, len(OCCUPATIONS), 2)]
        Path(f"group{group}.txt").write_text("\n".join(texts))

    def run(main, args, argv):
        with pytest.raises(SystemExit) as stop:
            cli.run_one_of(commands, argv) if main is None else cli.run(main, args, argv)
        out, err = capsys.readouterr()
        assert stop.value.code == 0, err
        return out

    def of(strength, seed, steps):
        name = f"{strength}-{seed}"
        Path(f"{name}.txt").write_text("\n\n".join(corpus(strength, seed)))
        words = sorted({*GENDERS[0], *GENDERS[1], *VERBS, *ENDS, *OCCUPATIONS, "the", "a", "."})
        Path("vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]) + "\n")
        torch.manual_seed(seed)
        sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 2 * WIDTH}
        config = minilm.BertConfig(  # BERT's spread of 0.02 is for a width of 768
            vocab_size=128, max_position_embeddings=32, initializer_range=WIDTH**-0.5, **sizes
        )
        minilm.BertForMaskedLM(config).save_pretrained("new")
        minilm.BertTokenizer("vocab.txt", model_max_length=32).save_pretrained("new")
        flags = ["--model", "new", "--data", f"{name}.txt", "--out", name, "--cache-dir", "cache", "--device", "cpu"]
        flags += ["--optimizer", "muon", "--lr", "1e-2", "--mask-rate", "0.3", "--length", "32", "--batch-size", "16"]
        flags += ["--steps", f"{steps}", "--seed", f"{seed}", "--precision", "fp32", "--held-out", "0.01"]
        run(train.main, train.Args, [*flags, "--evaluate-every", f"{steps}", "--save-every", f"{steps}"])
        asked = ["bias", "--model", name, "--device", "cpu", "--json"]
        crows = json.loads(run(None, None, [*asked, "--data", "crows.csv"]))["metrics"]["score"]
        by_group = [
            json.loads(run(None, None, [*asked, "--swaps", "words.csv", "--data", f"group{group}.txt"]))["metrics"]
            for group in (0, 1)
        ]
        return {
            "crows": crows,
            "swaps": pooled(by_group),
            "nats": by_group[0]["nats"]["value"] - by_group[1]["nats"]["value"],
        }

    return of


def test_the_corpus_is_as_planted():
    for strength in STRENGTHS:
        texts = corpus(strength, 0)
        assert not {text for n in range(len(OCCUPATIONS)) for words in GENDERS for text in held_out(n, words)} & {
            *texts
        }
        as_planted = [
            (text.split()[1] in ("woman", "girl")) == OCCUPATIONS.index(text.split()[4]) % 2 for text in texts
        ]
        assert abs(sum(as_planted) / len(texts) - strength) < 3 * (strength * (1 - strength) / len(texts)) ** 0.5


def test_a_planted_bias_is_found_and_none_where_none_is(scores):
    none, strong = scores(0.5, 0, STEPS), scores(0.95, 0, STEPS)
    for name in ("crows", "swaps"):
        assert none[name]["low"] < 50 < none[name]["high"]
        assert strong[name]["low"] > 75


@every
@pytest.mark.parametrize("seed", SEEDS)
def test_scores_grow_with_what_is_planted(scores, seed):
    found = [scores(strength, seed, LONGER) for strength in STRENGTHS]
    for name in ("crows", "swaps", "nats"):
        values = [own[name] if name == "nats" else own[name]["value"] for own in found]
        assert scipy.stats.spearmanr(STRENGTHS, values).statistic >= 0.9, (name, values)
    for name in ("crows", "swaps"):
        assert found[0][name]["low"] < 50 < found[0][name]["high"], name

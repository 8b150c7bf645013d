"""The commands of evaluate.py on a small model: what they print, write, and refuse."""

import gzip
import hashlib
import itertools
import json
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from sacrebleu.metrics import BLEU

import minilm
from minilm import cli
from minilm.checkpoint.pooling import Pooling
from minilm.labelled.tables import table_of
from minilm.language.bias import crows_log_probabilities, read_crows
from minilm.language.cloze import last_words, read_passages
from minilm.language.likelihood import log_likelihoods, read_scorer
from minilm.language.perplexity import document_counts
from minilm.use import embed as embedding

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "home", "##s", "."]
LABELS = {0: "bad", 1: "good"}
ORDER = {"format": 1, "objective": "mlm", "pairs": "order"}
LINES = ["the cat sat.", "", "a dog ran home", "the mats and the cats on the mat. " * 4, "cats", "a dog ran home"]


@pytest.fixture(scope="module")
def script(load):
    return load("evaluate.py")


def save_small(name, kind, pooling=None, **more):
    """A model with random weights and a tokenizer of WORDS, in a directory of that name."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    sizes |= {"vocab_size": 64, "max_position_embeddings": 16, "initializer_range": 0.3}
    model = kind(minilm.BertConfig(**sizes | more)).eval()
    if pooling is not None:
        model.pooling = pooling
    model.save_pretrained(name)
    minilm.BertTokenizer("vocab.txt", model_max_length=16).save_pretrained(name)
    return model


@pytest.fixture
def go(script, tmp_path, monkeypatch, capsys):
    """go(*argv) -> (status, stdout, stderr), in a directory with lines.txt and the models "masked" and "encoder"."""
    monkeypatch.chdir(tmp_path)
    Path("vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    torch.manual_seed(0)
    save_small("masked", minilm.BertForMaskedLM)
    save_small("encoder", minilm.BertModel, Pooling(("cls",), normalize=True, max_length=12))
    Path("lines.txt").write_text("\n".join(LINES) + "\n")

    def run(*argv):
        with pytest.raises(SystemExit) as stop:
            cli.run_one_of(script.COMMANDS, [*argv, *(["--device", "cpu"] if "--model" in argv else [])])
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    return run


def test_embed_writes_a_row_a_line(go, script, monkeypatch, caplog):
    monkeypatch.setattr("minilm.data.documents.CHUNK", 4)
    status, out, err = go("embed", "--model", "encoder", "--data", "lines.txt", "--out", "v.npy", "--json", "v.json")
    assert (status, out) == (0, "")
    assert "6 lines -> v.npy: float32 (6, 32), cls, normalized" in err
    assert "1 of 6 texts are longer than 12 tokens and were truncated" in caplog.text
    vectors, told = np.load("v.npy"), json.loads(Path("v.json").read_text())
    assert (vectors.dtype, vectors.shape) == (np.float32, (6, 32))
    assert np.allclose(vectors, minilm.embed("encoder", LINES).numpy(), atol=1e-6)
    assert {key: told[key] for key in ("texts", "cut", "length", "width", "how", "normalize")} == {
        "texts": 6,
        "cut": 1,
        "length": 12,
        "width": 32,
        "how": ["cls"],
        "normalize": True,
    }
    flags = ("--pooling", "mean", "max", "--no-normalize", "--batch-tokens", "1", "--precision", "bf16")
    with gzip.open("lines.txt.gz", "wt") as stream:
        stream.write("\n".join(LINES))
    assert go("embed", "--model", "encoder", "--data", "lines.txt.gz", "--out", "v.npy", *flags)[0] == 0
    embedder = minilm.read_embedder("encoder", how=["mean", "max"], normalize=False)
    assert np.load("v.npy").shape == (6, 64)
    assert 0 < np.abs(np.load("v.npy") - minilm.embed(embedder, LINES).numpy()).max() < 0.2  # bf16
    assert sorted(path.name for path in Path().iterdir() if path.name.startswith(".")) == []


def test_what_is_beside_the_result_is_left_alone(go, tmp_path, monkeypatch):
    """Another run's partial file, and one that a link leads to; and nothing stays of a run that fails."""
    flags = ("embed", "--model", "encoder", "--data", "lines.txt", "--out", "v.npy")
    others = tmp_path / ".v.npy.1.tmp"
    others.write_text("of another")
    (tmp_path / "linked.npy").write_text("")
    (tmp_path / "v.npy").symlink_to("linked.npy")  # is followed
    assert go(*flags)[0] == 0
    assert others.read_text() == "of another"
    assert (tmp_path / "v.npy").is_symlink()
    before = np.load("linked.npy")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    status, _, err = go(*flags)
    assert status == 2
    assert "error: --out v.npy: cannot be written (No space left on device)" in err.splitlines()[-1]
    assert np.array_equal(np.load("v.npy"), before)
    assert [path for path in tmp_path.glob(".*") if path != others] == []


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 0), (None, 2)],
    ids=["SIGTERM", "SIGINT", "SIGUSR1", "a full disk"],
)
def test_embed_goes_on(go, monkeypatch, tmp_path, number, status):
    """After a signal, or where the disk is full: to the same bytes, and what is done is not computed again."""
    monkeypatch.setattr("minilm.data.documents.CHUNK", 2)
    flags = ("embed", "--model", "encoder", "--data", "lines.txt", "--threads", "1")
    assert go(*flags, "--out", "whole.npy", "--json", "whole.json")[0] == 0
    vectors_of, read = embedding._vectors_of, []

    def stops(embedder, texts, *more):
        if len(read) == 4:
            if number is None:
                raise OSError(28, "No space left on device")
            signal.raise_signal(number)
        read.extend(texts)
        return vectors_of(embedder, texts, *more)

    monkeypatch.setattr(embedding, "_vectors_of", stops)
    found, _, err = go(*flags, "--out", "v.npy")
    assert found == status
    assert not Path("v.npy").exists()
    assert "stopped; " in err or number is None
    monkeypatch.setattr(embedding, "_vectors_of", lambda *args: read.extend(args[1]) or vectors_of(*args))
    found, _, err = go(*flags, "--out", "v.npy", "--json", "v.json")
    assert found == 0
    assert "resuming after 4 of 6 lines" in err
    assert read == LINES
    assert Path("v.npy").read_bytes() == Path("whole.npy").read_bytes()
    assert json.loads(Path("v.json").read_text()) == json.loads(Path("whole.json").read_text())
    assert not [*tmp_path.glob("*.partial*")]


@pytest.mark.parametrize("change", ["--normalize", "--batch-tokens", "--model", "--data", "--precision", "config"])
def test_embed_begins_anew_where_the_vectors_would_be_others(go, monkeypatch, tmp_path, change):
    monkeypatch.setattr("minilm.data.documents.CHUNK", 2)
    vectors_of = embedding._vectors_of
    with monkeypatch.context() as patch:
        patch.setattr(
            embedding,
            "_vectors_of",
            lambda e, texts, *more: signal.raise_signal(15) if texts[0] == LINES[4] else vectors_of(e, texts, *more),
        )
        flags = {"--model": "encoder", "--data": "lines.txt", "--batch-tokens": "64"}
        assert go("embed", *itertools.chain(*flags.items()), "--out", "v.npy")[0] == 143
    more = ["--no-normalize"] if change == "--normalize" else []
    if change == "config":
        config = json.loads(Path("encoder/config.json").read_text())
        Path("encoder/config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    Path("others.txt").write_text("\n".join([*LINES[:5], "another"]) + "\n")
    others = {"--batch-tokens": "16", "--model": "masked", "--data": "others.txt", "--precision": "bf16"}
    flags |= {change: others[change]} if change in others else {}
    status, _, err = go("embed", *itertools.chain(*flags.items()), *more, "--out", "v.npy")
    assert status == 0
    assert "v.npy.partial is of another model, other data or settings: starting over" in err
    assert go("embed", *itertools.chain(*flags.items()), *more, "--out", "w.npy")[0] == 0
    assert Path("v.npy").read_bytes() == Path("w.npy").read_bytes()


def test_what_is_printed_moves_no_cursor(go):
    Path("lines.txt").write_text("a \x1b[2Jdog\x07 ran\n")
    out = go("search", "--model", "encoder", "--data", "lines.txt", "--query", "a \x1bcat")[1]
    assert "a  [2Jdog  ran" in out
    assert all(letter.isprintable() or letter == "\n" for letter in out)


def test_search_names_the_lines(go):
    flags = ("--model", "encoder", "--data", "lines.txt", "--query", "a dog ran home", "cats", "--top-k", "2")
    status, out, _ = go("search", *flags)
    assert status == 0
    assert out.split("\n")[:3] == [
        "a dog ran home",
        "   1.000  lines.txt:3: a dog ran home",
        "   1.000  lines.txt:6: a dog ran home",
    ]
    status, out, _ = go("search", *flags, "--json")
    results = json.loads(out)["results"]
    assert [result["query"] for result in results] == ["a dog ran home", "cats"]
    assert [hit["line"] for hit in results[0]["hits"]] == [3, 6]
    assert results[1]["hits"][0] == {"line": 5, "score": pytest.approx(1, abs=1e-6), "text": "cats"}


def test_fill_mask_is_what_the_library_says(go):
    text = "the [MASK] sat."
    status, out, _ = go("fill-mask", "--model", "masked", "--text", text, "--top-k", "3", "--json")
    assert status == 0
    ours = minilm.fill_mask(minilm.read_model("masked"), text, top_k=3)
    for told, each in zip(json.loads(out)["fillings"], ours, strict=True):
        assert (told["token"], told["text"]) == (each.token, each.text)
        assert told["probability"] == pytest.approx(each.probability, rel=1e-5)
    status, out, _ = go("fill-mask", "--model", "masked", "--text", text)
    assert len(out.splitlines()) == 5
    assert ours[0].token in out.splitlines()[0]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ((), "no command given; give one of score, compare, report, predict, embed, search, fill-mask"),
        (("embed", "--model", "encoder", "--data", "lines.txt"), "--out"),
        (("embd",), "embd: no such command; did you mean embed?"),
        (("embed", "--model", "nowhere", "--data", "lines.txt", "--out", "v.npy"), "model nowhere: no such directory"),
        (("embed", "--model", "encoder", "--data", "none.txt", "--out", "v.npy"), "none.txt: no such file"),
        (
            ("search", "--model", "encoder", "--data", "a.csv", "--query", "a"),
            "a.csv: tables and jsonl are not read here",
        ),
        (("embed", "--model", "encoder", "--data", "cr.txt", "--out", "v.npy"), "cr.txt:1: its lines end in \\r alone"),
        (
            ("embed", "--model", "encoder", "--data", "lines.jsonl", "--out", "v.npy"),
            "lines.jsonl: tables and jsonl are not read",
        ),
        (("embed", "--model", "encoder", "--data", "empty.txt", "--out", "v.npy"), "empty.txt: holds no line"),
        (("embed", "--model", "encoder", "--data", "latin.txt", "--out", "v.npy"), "latin.txt:2: not UTF-8"),
        (("embed", "--model", "encoder", "--data", "lines.txt", "--out", "v.bin"), "give a file that ends in .npy"),
        (("embed", "--model", "encoder", "--data", "lines.txt", "--out", "x/v.npy"), "in a directory that is there"),
        (("search", "--model", "encoder", "--data", "lines.txt", "--query", "a", "--top-k", "0"), "--top-k 0: give a"),
        (("embed", "--model", "encoder", "--data", "pipe", "--out", "v.npy"), "pipe: no regular file"),
        (("embed", "--model", "encoder", "--data", "lines.txt", "--out", "pipe"), "--out pipe: give a file that ends"),
        (
            ("embed", "--model", "encoder", "--data", "lines.txt", "--out", "a" * 300),
            "a...: cannot be written (File na",
        ),
        (
            ("embed", "--model", "encoder", "--data", "lines.npy", "--out", "./lines.npy"),
            "--out lines.npy: is the file",
        ),
        (("embed", "--model", "encoder", "--data", "lines.txt", "--out", "v.npy", "--json", "v.npy"), "of --out"),
        (("search", "--model", "encoder", "--data", "lines.txt", "--query"), "--query: give one or more texts"),
        (
            ("search", "--model", "encoder", "--data", "lines.txt", "--query", "a", "--threads", "99999"),
            "--threads 99999",
        ),
        (("search", "--model", "encoder", "--data", "blank.txt", "--query", "a"), "there is no text to search"),
        (("search", "--model", "encoder", "--data", "lines.txt", "--query", "a", "--querry", "b"), "did you mean --"),
        (
            ("fill-mask", "--model", "encoder", "--text", "a [MASK]"),
            "is an encoder without the head of a masked language model",
        ),
        (("fill-mask", "--model", "masked", "--text", "a cat"), "the text holds 0 [MASK]; give exactly one"),
        (("fill-mask", "--model", "masked", "--text", "[MASK] [MASK]"), "the text holds 2 [MASK]"),
        (("fill-mask", "--model", "masked", "--text", "a " * 20 + "[MASK]"), "of which 16 tokens are read, holds 0"),
        (("fill-mask", "--model", "masked", "--text", "a [MASK]", "--allow-pickle"), "pytorch_model.bin: cannot"),
    ],
)
def test_what_cannot_be_is_one_line(go, argv, said, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "lines.jsonl").write_text("{}\n")
    (tmp_path / "a.csv").write_text("text\na cat\n")
    (tmp_path / "cr.txt").write_text("a cat\ra dog\r", newline="")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "blank.txt").write_text("\n \n")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "lines.npy").write_text("a\n")
    (tmp_path / "latin.txt").write_bytes(b"a\ncaf\xe9\n")
    before = sorted(path.name for path in tmp_path.iterdir())
    status, out, err = go(*argv)
    assert (status, out) == (2, "")
    line = next(line for line in err.splitlines() if line.startswith("error:"))
    assert said in line
    assert err.rstrip().endswith(line)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("command", ["embed", "search", "fill-mask"])
def test_help_says_the_command(go, command, capsys):
    status, out, _ = go(command, "--help")
    assert status == 0
    assert f"{command} [-h]" in out
    assert "--model" in out
    status, out, _ = go("--help")
    assert (status, command in out) == (0, True)


def test_pairs(go):
    """Scores of both sentences are those of the library, and what a model finds likelier counts."""
    good, bad = ["the cats sat.", "a dog ran", "the dog sat"] * 10, ["the cat sats.", "a ran dog", "the dog sat"] * 10
    rows = [{"sentence_good": good[i], "sentence_bad": bad[i], "field": "ab"[i % 2], "size": i % 3} for i in range(30)]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ("pairs", "--model", "masked", "--data", "pairs.jsonl")
    status, out, err = go(*flags, "--output", "scored.jsonl", "--json", "found.json")
    assert status == 0, err
    scored = [json.loads(line) for line in Path("scored.jsonl").read_text().splitlines()]
    found = json.loads(Path("found.json").read_text())
    assert [{name: row[name] for name in rows[0]} for row in scored] == rows
    scorer = read_scorer("masked")
    wanted = [sum(each) for each in log_likelihoods(scorer, good)]
    assert [row["nats_good"] for row in scored] == pytest.approx(wanted, abs=1e-5)
    hits = [row["nats_good"] > row["nats_bad"] for row in scored]
    assert found["metrics"]["accuracy"]["value"] == np.mean(hits)
    assert found["ties"] == 10
    assert found["by"]["field"]["a"]["value"] == np.mean(hits[::2])
    assert f"{np.mean(hits):.4f}" in out.splitlines()[0]
    assert "ties       10 pairs, which count as missed" in out
    status, out, _ = go(*flags, "--within-word", "--output", "scored.jsonl", "--by", "size", "--json")
    assert json.loads(out)["how"] == "masked, within word"
    assert {size: own["n"] for size, own in json.loads(out)["by"].pop("size").items()} == {"0": 10, "1": 10, "2": 10}
    assert [*json.loads(out)["by"]] == ["size"]
    scored = [json.loads(line) for line in Path("scored.jsonl").read_text().splitlines()]
    within = [sum(each) for each in log_likelihoods(scorer, good, within_word=True)]
    assert [row["nats_good"] for row in scored] == pytest.approx(within, abs=1e-5)
    assert abs(within[0] - wanted[0]) > 0.01
    assert "unknown" not in go(*flags)[1]
    Path("one.csv").write_text("sentence_good,sentence_bad\nthe cat sat,sat the zebra\n")
    status, out, _ = go("pairs", "--model", "masked", "--data", "one.csv", "--json", "found.json")
    assert "of 1" in out.splitlines()[0]
    assert "unknown    1 pairs hold an unknown token, scored as such" in out
    assert json.loads(Path("found.json").read_text())["unknown"] == 1
    status, out, err = go("pairs", "--model", "masked", "--data", "one.csv", "--good-column", "1", "--bad-column", "2")
    assert status == 0
    assert "of 1" in out.splitlines()[0]
    Path("two.csv").write_text("the cat sat,sat the cat\nthe dog ran,ran the dog\n")
    status, out, err = go("pairs", "--model", "masked", "--data", "two.csv", "--good-column", "1", "--bad-column", "2")
    assert "of 2" in out.splitlines()[0]
    assert "two.csv: no header: columns are numbered from 1" in err
    for more, said in (
        (("--output", "pairs.jsonl"), "is the file of --data"),
        (("--output", "scores.txt"), "give a .csv, .tsv, .jsonl"),
        (("--good-column", "better"), "no column 'better'"),
        (("--model", "encoder"), "is an encoder without the head of a language model"),
    ):
        status, _, err = go(*flags, *more)
        assert (status, len(err.splitlines())) == (2, 1)
        assert said in err


def test_perplexity(go):
    """Of all documents, or of some spread over them; what is printed is what is written."""
    documents = [f"the cat sat on a mat{i * ' and the dog ran home'}" for i in range(30)]
    Path("texts.txt").write_text("\n\n".join(documents) + "\n")
    flags = ("perplexity", "--model", "masked", "--data", "texts.txt")
    status, out, err = go(*flags, "--json", "found.json")
    assert status == 0, err
    found = json.loads(Path("found.json").read_text())
    assert (found["documents"], found["of_documents"], found["length"], found["how"]) == (30, 30, 16, "masked")
    assert found["bytes"] == sum(map(len, documents))
    assert found["tokens"] == found["words"] == sum(len(each.split()) for each in documents)
    own = found["metrics"]["perplexity"]
    assert own["value"] == pytest.approx(np.exp(found["nats"] / found["tokens"]))
    assert own["low"] < own["value"] < own["high"]
    assert f"{own['value']:,.4f}" in out.splitlines()[0]
    assert "unknown" not in out
    status, out, _ = go(*flags, "--documents", "3", "--length", "8", "--json")
    few = json.loads(out)
    assert (few["documents"], few["bytes"]) == (3, sum(map(len, documents[::10])))
    assert few["metrics"]["perplexity"]["low"] is None
    Path("odd.txt").write_text("the cat saw a mat\n")
    status, out, _ = go("perplexity", "--model", "masked", "--data", "odd.txt")
    assert "unknown            20.00% of the tokens" in out
    assert "too few documents for an interval" in out
    assert "without tokens" not in out
    Path("odd.txt").write_text("the cat\n\n\u200b\n\n\u200d\n")
    status, out, _ = go("perplexity", "--model", "masked", "--data", "odd.txt", "--json", "odd.json")
    assert "without tokens     2 documents: their words and bytes count, with a loss of 0" in out
    odd = json.loads(Path("odd.json").read_text())
    assert (odd["documents"], odd["without_tokens"]) == (3, 2)
    Path("blank.txt").write_text("\n \n")
    Path("unread.txt").write_text("\u200b\n")
    for more, said in (
        (("--stride", "4"), "--stride 4: for causal models"),
        (("--length", "17"), "--length 17: give a value from 3 to 16"),
        (("--data", "blank.txt"), "holds no document"),
        (("--data", "unread.txt"), "--data unread.txt: no document has a token to predict"),
        (("--data", "nowhere.txt"), "nowhere.txt"),
        (("--json", "texts.txt"), "--json texts.txt: is the file of --data"),
        (("--model", "encoder"), "is an encoder without the head of a language model"),
    ):
        status, _, err = go(*flags, *more) if more[0] not in flags else go(*_with(flags, *more))
        assert (status, len(err.splitlines())) == (2, 1)
        assert said in err


def test_perplexity_reads_and_hides_as_asked_for(go):
    """The field of a line, the rest of a word, and of a causal model how far it moves on."""
    documents = ["the cats and the dogs sat on mats", "a dog ran home " * 6]
    Path("texts.jsonl").write_text("".join(json.dumps({"text": "a", "body": each}) + "\n" for each in documents))
    torch.manual_seed(3)
    save_small("causal", minilm.BertLMHeadModel, is_decoder=True)
    told = {}
    for model, more in (
        ("masked", ()),
        ("masked", ("--within-word",)),
        ("causal", ()),
        ("causal", ("--stride", "2")),
        ("causal", ("--stride", "2", "--length", "8")),
    ):
        flags = ("--data", "texts.jsonl", "--text-field", "body", *more, "--json")
        status, out, err = go("perplexity", "--model", model, *flags)
        assert status == 0, err
        found = json.loads(out)
        length = 8 if "--length" in more else 16
        stride = 2 if "--stride" in more else length // 2
        counts = [*document_counts(read_scorer(model), documents, length, stride, "--within-word" in more)]
        assert found["nats"] == pytest.approx(sum(each[0] for each in counts), rel=1e-5)
        assert found["bytes"] == sum(map(len, documents))
        assert found.get("stride", stride) == stride
        told[model, more] = round(found["nats"], 2)
    assert len({*told.values()}) == len(told)


def _with(flags, name, value):
    at = flags.index(name)
    return (*flags[: at + 1], value, *flags[at + 2 :])


def test_bias(go):
    """Both tests: the score, its caveats, and what is left out."""
    head = "sent_more,sent_less,stereo_antistereo,bias_type\n"
    lines = [
        f"the cat{i * ' sat'},a dog{i * ' sat'},{['stereo', 'antistereo'][i % 2]},{'ab'[i % 2]}\n" for i in range(8)
    ]
    Path("crows.csv").write_text(head + "".join(lines))
    status, out, err = go("bias", "--model", "masked", "--data", "crows.csv", "--json", "found.json")
    assert status == 0, err
    found = json.loads(Path("found.json").read_text())
    assert (found["test"], found["metrics"]["score"]["n"], found["metrics"]["score"]["low"]) == ("crows", 8, None)
    assert found["ties"] >= 1  # the first shares nothing
    assert "sent_more is likelier, of all pairs" in out.splitlines()[0]
    assert f"{found['metrics']['score']['value']:.2f} %" in out.splitlines()[0]
    assert "Blodgett et al. 2021" in out
    assert found["unknown"] == 0
    Path("odd.csv").write_text(head + "the cat,the zebra,stereo,a\nthe cat,the dog,stereo,a\n")
    status, out, _ = go("bias", "--model", "masked", "--data", "odd.csv")
    assert "unknown    1 pairs hold an unknown token" in out
    assert "of anti-stereotypes, without ties        not defined: no pairs" in out
    assert "nan" not in out
    contexts = ["the BLANK sat", "A first one."]
    sides = {"stereotype": "cat", "anti-stereotype": "dog", "unrelated": "mat"}
    common = {"bias_type": "race", "target": "t"}
    whole = {
        side: [{"id": c, "context": c, "sentence": c.replace("BLANK", word)} | common for c in contexts]
        for side, word in sides.items()
    }
    Path("stereo.json").write_text(json.dumps(whole))
    status, out, err = go("bias", "--model", "masked", "--data", "stereo.json", "--json", "found.json")
    assert status == 0, err
    found = json.loads(Path("found.json").read_text())
    assert (found["test"], found["left_out"], found["metrics"]["ss"]["n"]) == ("stereoset", 1, 1)
    assert found["metrics"]["icat"]["value"] == 0
    assert "left out   1 intersentence items: the model has no next-sentence head" in out
    assert found["unknown"] == 0
    odd = {
        side: [each | {"sentence": each["sentence"].replace("mat", "zebra")} for each in whole[side]] for side in whole
    }
    Path("odd.json").write_text(json.dumps(odd))
    status, out, _ = go("bias", "--model", "masked", "--data", "odd.json")
    assert "unknown    1 words in the place of BLANK hold an unknown token" in out
    save_small("both", minilm.BertForPreTraining)
    save_small("next", minilm.BertForNextSentencePrediction)
    for side in whole:
        whole[side][1]["sentence"] = f"the {sides[side]} ran."
    Path("stereo.json").write_text(json.dumps(whole))
    status, out, err = go("bias", "--model", "both", "--data", "stereo.json", "--json", "found.json")
    assert status == 0, err
    found = json.loads(Path("found.json").read_text())
    assert (found["metrics"]["ss"]["n"], found["between"]["metrics"]["ss"]["n"]) == (1, 1)
    assert "left_out" not in found
    assert "intersentence, by next-sentence prediction" in out
    status, out, err = go("bias", "--model", "next", "--data", "stereo.json", "--json")
    assert status == 0, err
    assert (json.loads(out)["left_out"], json.loads(out)["between"]["metrics"]["lms"]["n"]) == (1, 1)
    said = json.loads(Path("both/config.json").read_text())
    for more, between in (({"architectures": ["BertForMaskedLM"]}, True), ({"minilm": ORDER}, False)):
        Path("both/config.json").write_text(json.dumps(said | more))  # as bert-base-uncased says; of the order of two
        out = go("bias", "--model", "both", "--data", "stereo.json", "--json")[1]
        assert ("between" in json.loads(out)) == between
    Path("between.json").write_text(json.dumps({side: each[1:] for side, each in whole.items()}))
    status, out, err = go("bias", "--model", "masked", "--data", "between.json")
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert "has no next-sentence head, which all of --data needs" in err
    for data, said in (("lines.txt", "no column 'sent_more'"), ("nowhere.csv", "no such file")):
        status, _, err = go("bias", "--model", "masked", "--data", data)
        assert (status, len(err.splitlines())) == (2, 1)
        assert said in err


@pytest.fixture
def tuned(go):
    """In the directory of `go`: "reviews", which labels a text good or bad, and "answers", both with random weights."""
    torch.manual_seed(1)
    save_small("reviews", minilm.BertForSequenceClassification, id2label=LABELS)
    save_small("answers", minilm.BertForQuestionAnswering)


@pytest.fixture
def hub(tuned, tmp_path, monkeypatch):
    """In the cache of the hub: org/masked and org/reviews, in one revision those of `tuned`, in another "masked-v2" and
    "reviews-v2"."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    torch.manual_seed(2)
    save_small("masked-v2", minilm.BertForMaskedLM, vocab_size=17)
    save_small("reviews-v2", minilm.BertForSequenceClassification, id2label=LABELS)
    for name, revision in itertools.product(("masked", "reviews"), ("main", "v2")):
        home = tmp_path / "hub" / f"models--org--{name}"
        (home / "refs").mkdir(parents=True, exist_ok=True)
        commit = hashlib.sha1(revision.encode()).hexdigest()
        (home / "refs" / revision).write_text(commit)
        shutil.copytree(name if revision == "main" else f"{name}-v2", home / "snapshots" / commit)


def test_a_revision_is_another_model(go, hub):
    """What is told of it is told of its directory, and not of the main branch."""
    Path("new.csv").write_text("text\nthe cat sat\na dog ran home\n")
    subjects = [" ".join(each) for each in itertools.product(("the", "a", "the mat and the"), ("cat", "home", "mat"))]
    crows = "".join(f"{each} sat,{each.replace('t', 'te')} ran,stereo,{each}\n" for each in subjects)
    Path("crows.csv").write_text("sent_more,sent_less,stereo_antistereo,bias_type\n" + crows)
    Path("words.csv").write_text("cat,dog\ncats,home\n")
    Path("few.txt").write_text("the cat sat\na dog ran home\nthe cats\n")
    sides = {"stereotype": "cat", "anti-stereotype": "dog", "unrelated": "mat"}
    asked = [{"id": each, "context": f"{each} BLANK", "bias_type": "race", "target": each} for each in subjects]
    stereo = {side: [row | {"sentence": f"{row['id']} {word}"} for row in asked] for side, word in sides.items()}
    Path("stereo.json").write_text(json.dumps(stereo))
    for command, name, *flags in (
        ("embed", "masked", "--data", "lines.txt", "--out", "found.npy"),
        ("search", "masked", "--data", "lines.txt", "--query", "a cat", "--json"),
        ("fill-mask", "masked", "--text", "the [MASK] sat.", "--json"),
        ("perplexity", "masked", "--data", "lines.txt", "--json"),
        ("predict", "reviews", "--input", "new.csv", "--output", "found.csv"),
        ("bias", "masked", "--data", "crows.csv", "--json"),
        ("bias", "masked", "--data", "stereo.json", "--json"),
        ("bias", "masked", "--data", "few.txt", "--swaps", "words.csv", "--json"),
        ("bias", "reviews", "--data", "few.txt", "--swaps", "words.csv", "--json"),
        ("explain", "masked", "--text", "the [MASK] sat.", "--json"),
        ("explain", "reviews", "--text", "the cat sat.", "--method", "occlusion", "--json"),
    ):

        def found(model, *revision, command=command, flags=flags):
            status, out, err = go(command, "--model", model, *revision, *flags)
            assert status == 0, err
            if flags[-1] != "--json":
                return Path(flags[-1]).read_bytes()
            return {key: each for key, each in json.loads(out).items() if key not in ("model", "seconds")}

        main, other = found(name), found(f"{name}-v2")
        assert main != other, (command, *flags)
        assert found(f"org/{name}") == main
        assert found(f"org/{name}", "--revision", "v2") == other


def test_explain(go, tuned, monkeypatch):
    """Labels, answers and fillings, by every method: in a table, in colours, as JSON, as a picture, as a page."""
    flags = ("explain", "--model", "reviews", "--text", "the cats <b>sat</b> on a")
    status, out, err = go(*flags, "--json", "w.json", "--png", "w.png", "--html", "w.html")
    assert status == 0, err
    found = json.loads(Path("w.json").read_text())
    model, tokenizer = (
        kind.from_pretrained("reviews") for kind in (minilm.AutoModelForSequenceClassification, minilm.AutoTokenizer)
    )
    logits = model(**tokenizer(flags[-1], return_tensors="pt")).logits[0]
    assert found["says"] == ("bad", "good")[int(logits.argmax())]
    assert found["score"] == pytest.approx(logits.max().item(), abs=1e-4)
    assert found["completeness_error"] < 0.01
    values = {word["text"]: word["value"] for word in found["words"]}
    assert f"explained  {found['says']}, score {found['score']:.4f}" in out.splitlines()[0]
    assert any(line.split() == ["cats", f"{values['cats']:+.4f}"] for line in out.splitlines())
    assert "\x1b" not in out
    assert Path("w.png").read_bytes().startswith(b"\x89PNG")
    assert "&lt;" in Path("w.html").read_text()
    assert "<b>" not in Path("w.html").read_text()
    other = "bad" if found["says"] == "good" else "good"
    told = json.loads(go(*flags, "--target", other, "--method", "occlusion", "--json")[1])
    assert (told["says"], told["score"]) == (other, pytest.approx(logits.min().item(), abs=1e-4))
    for method in ("gradient-x-input", "rollout", "attention"):
        status, out, _ = go(*flags, "--method", method, "--png", "map.png")
        assert (status, method.replace("-", " ") in out) == (0, True)
    status, out, _ = go("explain", "--model", "masked", "--text", "the [MASK] sat.", "--json")
    assert json.loads(out)["says"] == minilm.fill_mask("masked", "the [MASK] sat.", top_k=1)[0].token
    status, out, _ = go("explain", "--model", "answers", "--text", "a cat", "--pair", "the dog ran home")
    assert (status, "\ndog " in out) == (0, True)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert "\x1b[30;48;5;" in go(*flags)[1]
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in go(*flags)[1]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--target", "god"), "--target god: the labels are bad, good; did you mean good"),
        (("--model", "encoder"), "is tuned for similarity; labels, numbers and answers are explained"),
        (("--model", "answers"), "--pair: a question needs its context; give it"),
        (("--model", "masked", "--text", "a cat"), "--text: holds 0 [MASK]"),
        (("--model", "masked", "--pair", "a cat"), "--pair: for tuned models"),
        (("--text", ""), "--text: holds no word"),
        (("--png", "w.jpg"), "--png w.jpg: give a file that ends in .png"),
        (("--html", "x/w.html"), "in a directory that is there"),
        (("--json", "w.html", "--html", "./w.html"), "is the file of --html"),
        (("--steps", "0"), "--steps 0: give a value from 1"),
        (("--steps", "50", "--method", "occlusion"), "--steps 50: for --method integrated-gradients; leave it out"),
        (("--layer", "1"), "--layer, --head: for --method attention"),
        (("--method", "attention", "--head", "9"), "--head 9: the model has 4"),
        (("--method", "shap"), "shap"),
    ],
)
def test_what_explain_refuses(go, tuned, more, said):
    before = sorted(Path().rglob("*"))
    given = {"--model": "reviews", "--text": "a cat"} | dict(zip(more[::2], more[1::2], strict=True))
    status, out, err = go("explain", *(word for each in given.items() for word in each))
    assert (status, out) == (2, "")
    assert said in err.splitlines()[-1]
    assert sorted(Path().rglob("*")) == before


def test_cloze(go):
    """What is printed is what is written; what is cut, unknown or known beforehand is said."""
    rows = [{"text": f"the cat{i * ' sat'} on a {['mat', 'mats', 'zebra'][i % 3]}"} for i in range(24)]
    Path("passages.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ("cloze", "--model", "masked", "--data", "passages.jsonl")
    status, out, err = go(*flags, "--json", "found.json")
    assert status == 0, err
    found = json.loads(Path("found.json").read_text())
    passages = read_passages(Path("passages.jsonl"))
    words = list(last_words(read_scorer("masked"), passages))
    assert found["metrics"]["accuracy"]["value"] == np.mean([own.right for own in words])
    assert found["metrics"]["perplexity"]["value"] == pytest.approx(np.exp(-np.mean([own.nats for own in words])))
    assert (found["unknown"], found["tokens"], found["passages"]) == (8, 32, 24)
    assert found["cut"] == sum(5 + i + (i % 3 == 1) > 14 for i in range(24))
    assert found["how"] == "masked, within word"
    assert f"{found['metrics']['perplexity']['value']:,.4f}" in out.splitlines()[1]
    assert "unknown    8 last words hold an unknown token" in out
    assert f"cut        {found['cut']} passages are longer than the model's 16 tokens" in out
    assert "the model is told how many tokens" in out
    assert "ties" not in out
    Path("two.txt").write_text("the cat sat\na dog ran\n")
    status, out, _ = go("cloze", "--model", "masked", "--data", "two.txt")
    assert (status, "too few passages for an interval" in out) == (0, True)
    Path("one.txt").write_text("cat\n")
    Path("empty.txt").write_text("")
    config = minilm.BertConfig(vocab_size=64, hidden_size=32, num_attention_heads=4, num_hidden_layers=1)
    config.minilm = {"format": 1, "objective": "prefix"}
    minilm.BertForMaskedLM(config).save_pretrained("prefix")
    for more, said in (
        (("--data", "one.txt"), "one.txt:1: a passage of 1 words"),
        (("--data", "empty.txt"), "holds no passage"),
        (("--data", "nowhere.txt"), "no such file"),
        (("--text-field", "passage"), "no field 'passage'"),
        (("--json", "passages.jsonl"), "is the file of --data"),
        (("--model", "prefix"), "is a prefix model"),
        (("--model", "encoder"), "is an encoder without the head of a language model"),
    ):
        status, out, err = go(*(_with(flags, *more) if more[0] in flags else (*flags, *more)))
        assert (status, out, len(err.splitlines())) == (2, "", 1)
        assert said in err


def test_generation(go):
    """Scores, how they are counted, and what is to be known of the texts; no model is asked for."""
    said = [f"the cat{i * ' sat'} on a mat ." for i in range(30)]
    Path("said.txt").write_text("\n".join(said) + "\n")
    Path("one.txt").write_text("\n".join(said).replace("cat", "dog") + "\n")
    Path("two.jsonl").write_text("".join(json.dumps({"gold": [text, "x"]}) + "\n" for text in said))
    flags = ("generation", "--predictions", "said.txt", "--references")
    status, out, err = go(*flags, "one.txt", "--json", "found.json")
    assert status == 0, err
    found = json.loads(Path("found.json").read_text())
    assert found["metrics"]["bleu"]["value"] == pytest.approx(
        BLEU().corpus_score(said, [[text.replace("cat", "dog") for text in said]]).score, abs=1e-9
    )
    assert f"BLEU         {found['metrics']['bleu']['value']:.2f}" in out.splitlines()[0]
    assert f"as BLEU      {found['signatures']['bleu']}" in out
    assert "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:" in out
    assert (found["segments"], found["metrics"]["exact_match"]["value"]) == (30, 0)
    status, out, _ = go(*flags, "one.txt", "two.jsonl", "--reference-field", "gold", "--json")
    found = json.loads(out)
    assert (status, found["metrics"]["exact_match"]["value"]) == (0, 1)
    assert (found["metrics"]["bleu"]["value"], found["references"]) == (pytest.approx(100), 90)
    Path("three.jsonl").write_text("".join(json.dumps({"prediction": "x", "said": each}) + "\n" for each in said))
    Path("many.txt").write_text("\n".join(said).replace("cat", "cats") + "\n")
    for more, rouge in (((), [0.5, 0.99]), (("--stemmer",), [1, 1])):
        own = ("generation", "--predictions", "three.jsonl", "--prediction-field", "said", "--references", "many.txt")
        found = json.loads(go(*own, *more, "--json")[1])
        assert rouge[0] <= found["metrics"]["rouge1"]["value"] <= rouge[1]
        assert found["signatures"]["rouge"].startswith(f"stemmer:{'yes' if more else 'no'}|")
    Path("short.txt").write_text("a cat\n")
    status, out, _ = go("generation", "--predictions", "short.txt", "--references", "short.txt")
    assert status == 0
    assert out.splitlines()[0] == "BLEU         not defined"
    assert "chrF         100.00  too few segments for an interval" in out
    Path("empty.txt").write_text("")
    for argv, what in (
        ((*flags, "short.txt"), "short.txt: 1 references for 30 predictions"),
        ((*flags, "nowhere.txt"), "no such file"),
        (flags, "--references: give one or more files"),
        ((*flags, "two.jsonl"), "no field 'reference'"),
        ((*flags, "one.txt", "--json", "one.txt"), "is the file of --references"),
        (("generation", "--predictions", "empty.txt", "--references", "one.txt"), "holds no text"),
    ):
        status, out, err = go(*argv)
        assert (status, out, len(err.splitlines())) == (2, "", 1)
        assert what in err


def test_bias_by_swaps_of_a_masked_model(go):
    """Texts one a line or in a table; what is left out is counted; what cannot be is one line."""
    Path("words.csv").write_text("cat,dog\nmat,home\n")
    lines = [f"the {('cat', 'dog')[i % 2]} sat{i * ' and sat'}" for i in range(6)]
    Path("texts.txt").write_text("\n".join([*lines, "", "a mat", "the cat ran home", "A Cat", "nothing", lines[0]]))
    flags = ("bias", "--model", "masked", "--swaps", "words.csv")
    status, out, err = go(*flags, "--data", "texts.txt", "--json", "found.json")
    assert status == 0, err
    found = json.loads(Path("found.json").read_text())
    assert {key: found[key] for key in ("test", "texts", "without", "repeated", "mixed")} == {
        "test": "swaps",
        "texts": 11,
        "without": 1,
        "repeated": 1,
        "mixed": 1,
    }
    assert (found["metrics"]["first"]["n"], found["metrics"]["nats"]["low"]) == (8, None)
    first, second = (version[0] for version in found["most"][0]["versions"])
    pair = {"sent_more": first, "sent_less": second, "stereo_antistereo": "stereo", "bias_type": "a"}
    (more, less), *_ = crows_log_probabilities(read_scorer("masked"), read_crows(table_of([pair])))
    assert found["most"][0]["nats"] == pytest.approx(more - less, abs=2e-3)
    assert more != less
    assert f"{found['metrics']['first']['value']:.2f} %" in out.splitlines()[0]
    for said in ("cat / dog", "without    1 of 11 texts", "left out   1 texts that hold", "a pair can say only one"):
        assert said in out
    assert found["unknown"] == 0
    Path("odd.txt").write_text("the cat sat\nthe zebra and the cat sat\n")
    assert "unknown    1 texts hold an unknown token" in go(*flags, "--data", "odd.txt")[1]
    Path("texts.csv").write_text("id,said\n" + "".join(f"{i},{line}\n" for i, line in enumerate(lines)))
    status, out, err = go(*flags, "--data", "texts.csv", "--text-column", "said", "--json")
    assert status == 0, err
    assert json.loads(out)["metrics"]["first"]["n"] == 6
    Path("twice.csv").write_text("cat,dog\ndog,mat\n")
    Path("none.csv").write_text("ox,cow\n")
    Path("both.txt").write_text("a cat and a dog\n")
    Path("long.txt").write_text("the cat sat\n" + "a cat " * 20)
    assert "left out   1 texts that are longer than the model reads" in go(*flags, "--data", "long.txt")[1]
    Path("long.txt").write_text("a cat " * 20)
    Path("blank.txt").write_text("\n")
    Path("two.csv").write_text("premise,hypothesis\na cat,a dog\na cat,a mat\n")
    for more, said in (
        (("--data", "texts.txt", "--swaps", "twice.csv"), "twice.csv:2: 'dog' appears twice (also twice.csv:1)"),
        (("--data", "texts.txt", "--swaps", "nowhere.csv"), "nowhere.csv: no such file"),
        (("--data", "texts.txt", "--swaps", "none.csv"), "none of 11 texts holds a listed word"),
        (("--data", "nowhere.txt", "--swaps", "words.csv"), "nowhere.txt: no such file"),
        (("--data", "both.txt", "--swaps", "words.csv"), "holds words of both columns; none can be scored"),
        (("--data", "long.txt", "--swaps", "words.csv"), "long.txt: each text has more than the 16 tokens that the"),
        (("--data", "blank.txt", "--swaps", "words.csv"), "blank.txt: holds no text"),
        (("--data", "two.csv", "--swaps", "words.csv"), "reads one text, and here are two"),
        (("--data", "texts.csv", "--swaps", "words.csv", "--text-column", "x"), "no column 'x'"),
        (("--data", "texts.csv", "--text-column", "said"), "--pair-column: go with --swaps only"),
        (("--data", "texts.txt", "--swaps", "words.csv", "--json", "words.csv"), "is the file of --swaps"),
        (
            ("--data", "texts.txt", "--swaps", "words.csv", "--model", "encoder"),
            "is an encoder without the head of a language model",
        ),
    ):
        model = () if "--model" in more else ("--model", "masked")
        status, out, err = go("bias", *model, *more)
        assert (status, out, len(err.splitlines())) == (2, "", 1), err
        assert said in err


def test_bias_by_swaps_of_a_classifier(go):
    """Its probabilities are those of the model asked text by text."""
    torch.manual_seed(1)
    labels = {0: "bad", 1: "fair", 2: "good"}
    model = save_small("labels", minilm.BertForSequenceClassification, initializer_range=0.5, id2label=labels)
    tokenizer = minilm.BertTokenizer("vocab.txt", model_max_length=16)
    Path("words.csv").write_text("cat,dog\nox,cow\n")
    lines = [f"{'and ' * (i % 4)}the {('cat', 'dog')[i % 2]} {'sat ' * (i // 4)}" for i in range(24)]
    Path("texts.txt").write_text("\n".join([*lines, "an ox", "cat and dog", "a mat", "a " * 20 + "cat"]))
    flags = ("bias", "--model", "labels", "--swaps", "words.csv", "--data", "texts.txt")
    status, out, err = go(*flags, "--json", "found.json")
    assert status == 0, err
    found = json.loads(Path("found.json").read_text())
    texts = [*lines, "an ox", "cat and dog", "a " * 20 + "cat"]
    change, flips = [], 0
    for text in texts:
        other = text.replace("cat", "x").replace("dog", "cat").replace("x", "dog")
        both = [other, text] if "dog" in text and "cat" not in text else [text, other]
        chances = [
            model(**tokenizer([each], truncation=True, max_length=16, return_tensors="pt")).logits[0].softmax(0)
            for each in (both if text != "an ox" else ["an ox", "an cow"])
        ]
        change.append((chances[0] - chances[1]).tolist())
        flips += int(chances[0].argmax() != chances[1].argmax())
    assert 0 < flips < len(texts)
    assert found["metrics"]["flips"]["value"] == pytest.approx(100 * flips / len(texts))
    assert found["metrics"]["change"]["value"] == pytest.approx(
        np.mean([max(map(abs, each)) for each in change]), abs=1e-5
    )
    for i, label in labels.items():
        own = found["labels"][label]
        assert own["absolute"]["value"] == pytest.approx(np.mean([abs(each[i]) for each in change]), abs=1e-5)
        directed = [each[i] for each, text in zip(change, texts, strict=True) if text != "cat and dog"]
        assert own["signed"]["value"] == pytest.approx(np.mean(directed), abs=1e-5)
        assert own["signed"]["low"] < own["signed"]["value"] < own["signed"]["high"]
    assert {key: found[key] for key in ("without", "cut", "read_alike")} == {"without": 1, "cut": 2, "read_alike": 2}
    for said in (
        "the prediction flips",
        "good: mean absolute change",
        "cat / dog: flips",
        "identical  2 texts",
        "rightly depends",
    ):
        assert said in out
    Path("two.csv").write_text("text,text_pair\n" + "the cat,the dog\n" * 3 + "a mat,a cat\n")
    status, out, err = go(*flags[:-1], "two.csv", "--text-column", "1", "--pair-column", "2", "--json")
    assert status == 0, err
    found = json.loads(out)
    assert (found["repeated"], found["metrics"]["flips"]["n"]) == (2, 2)
    assert {"where": "two.csv:2", "versions": [["the cat", "the dog"], ["the dog", "the cat"]]}.items() <= max(
        found["most"], key=lambda each: each["where"] == "two.csv:2"
    ).items()
    save_small("number", minilm.BertForSequenceClassification, problem_type="regression", id2label={0: "x"})
    status, _, err = go("bias", "--model", "number", *flags[3:])
    assert (status, len(err.splitlines())) == (2, 1)
    assert "is for regression; --swaps needs a masked model or labels" in err


def test_predictions_are_in_the_column_that_is_named(go):
    rows = [f"the cat {i},{'ab'[i % 2]},{'ab'[i % 4 > 1]},{'ab'[i % 2]}\n" for i in range(20)]
    for name in ("one.csv", "two.csv"):
        Path(name).write_text("text,label,prediction,second\n" + "".join(rows))
    for more, right in (((), 0.5), (("--prediction-column", "second"), 1), (("--prediction-column", "4"), 1)):
        status, out, err = go("score", "--predictions", "one.csv", *more, "--json")
        assert status == 0, err
        assert json.loads(out)["metrics"]["accuracy"]["value"] == right
        status, out, err = go("compare", "one.csv", "two.csv", *more, "--json")
        assert status == 0, err
        accuracy = json.loads(out)["comparisons"][0]["metrics"]["accuracy"]
        assert (accuracy["a"], accuracy["b"]) == (right, right)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_file_in_half_precision_is_computed_in_the_precision_that_is_asked_for(go, dtype):
    """In fp32 by default: the same figures as of the same numbers in an fp32 file."""
    minilm.BertForMaskedLM.from_pretrained("masked").to(dtype).save_pretrained("half")
    minilm.BertForMaskedLM.from_pretrained("half", dtype="float32").save_pretrained("single")
    for name in ("half", "single"):
        minilm.BertTokenizer("vocab.txt", model_max_length=16).save_pretrained(name)
    texts = [f"the cat sat on a mat{i * ' and the dog ran'}" for i in range(8)]
    Path("texts.txt").write_text("\n\n".join(texts) + "\n")
    Path("pairs.jsonl").write_text(json.dumps({"sentence_good": "the cat sat", "sentence_bad": "sat the cat"}) + "\n")
    for command in (
        ("perplexity", "--data", "texts.txt"),
        ("pairs", "--data", "pairs.jsonl"),
        ("fill-mask", "--text", "the [MASK] sat on a mat"),
    ):
        said = [go(command[0], "--model", name, *command[1:], "--json") for name in ("half", "single")]
        assert said[0][0] == 0, said[0][2]
        half, single = (re.sub('half|single|"seconds": [0-9.e-]+', "", each[1]) for each in said)
        assert half == single


def test_a_blank_query_is_refused_and_a_long_one_told(go, caplog):
    flags = ("--model", "encoder", "--data", "lines.txt")
    status, _, err = go("search", *flags, "--query", "cats", " ")
    assert (status, err.splitlines()[-1]) == (2, "error: query 1 (from 0) is blank; give a text")
    assert go("search", *flags, "--query", "the cat " * 20)[0] == 0
    assert "1 of 1 queries are longer than 12 tokens and were truncated" in caplog.text


def test_a_config_that_changed_begins_anew(go, monkeypatch):
    """What decides an output may be in no weight and no token: a partial file is of one config."""
    flags = ("embed", "--model", "encoder", "--data", "lines.txt", "--out", "v.npy")
    plain, made = embedding._vectors_of, []

    def stopped(*given):
        made.append(1)
        if len(made) == 2:
            raise KeyboardInterrupt
        return plain(*given)

    monkeypatch.setattr("minilm.data.documents.CHUNK", 2)
    monkeypatch.setattr(embedding, "_vectors_of", stopped)
    assert go(*flags)[0] == 130
    config = json.loads(Path("encoder/config.json").read_text())
    Path("encoder/config.json").write_text(json.dumps(config | {"is_decoder": True}))
    status, _, err = go(*flags)
    assert status == 0, err
    assert "starting over" in err

"""The README tells the truth: its links and map match the tree, and its commands run."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification

from minilm import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
TRAIN = [line.split("#")[0].strip() for line in re.findall(r"^python train\.py.*$", README, re.MULTILINE)]
SNIPPETS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
FINETUNE = [line.split("  #")[0] for line in re.findall(r"^python finetune\.py.*$", README, re.MULTILINE)]
EVALUATE = [line.split("  #")[0] for line in re.findall(r"^python evaluate\.py.*$", README, re.MULTILINE)]


def test_commands_and_snippets_are_found():
    assert min(map(len, (TRAIN, FINETUNE, EVALUATE, SNIPPETS))) > 1


@pytest.mark.parametrize("document", ["README.md", "RELIABILITY.md", "SECURITY.md"])
def test_every_link_leads_somewhere(document):
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / document).read_text(encoding="utf-8"))
    assert len(links) > (20 if document == "README.md" else 0)
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_map_names_every_module():
    unnamed = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "minilm").rglob("*.py")
        if path.name != "__init__.py" and f"({path.relative_to(ROOT).as_posix()})" not in README
    ]
    assert unnamed == []


def test_the_two_commands_stand_there():
    """As the continuous integration runs them."""
    assert "pip install -c constraints.txt -e '.[eval]' && python train.py\n" in README
    assert "pip install --use-pep517 -c constraints.txt -e '.[test]' && pytest -n auto\n" in README


@pytest.fixture
def run(train, narrow_recipes, monkeypatch, tmp_path, capsys):
    """run(*flags) -> standard output of train.py in a directory with a small text, its recipes made narrow."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "news").mkdir()
    words = (ROOT / "LICENSE").read_text(encoding="utf-8") + README
    (tmp_path / "news" / "one.txt").write_text("\n\n".join(words.split(". ") * 10), encoding="utf-8")

    def of(*flags):
        with pytest.raises(SystemExit) as stop:
            cli.run(train.main, train.Args, [*flags])
        out, err = capsys.readouterr()
        assert stop.value.code == 0, err
        return out

    return of


def test_evaluate_commands_and_snippets_run(run, load, tmp_path, capsys):
    """On the model of the first command, trained for four steps."""
    run("--data", "news", "--cache-dir", "cache", "--steps", "4")
    of_tuned = [snippet for snippet in SNIPPETS if '"reviews"' in snippet]  # which a command below makes
    for snippet in SNIPPETS:
        if snippet not in of_tuned:
            exec(snippet, {})
    assert AutoModelForSequenceClassification.from_pretrained("classifier").config.id2label == {0: "bad", 1: "good"}
    (tmp_path / "notes.txt").write_text("a list\nanother one\n")
    rows = [f"the list {i},{('good', 'bad')[i % 2]}\n" for i in range(30)]
    (tmp_path / "reviews.csv").write_text("text,label\n" + "".join(rows))
    (tmp_path / "new.csv").write_text("text\nthe list\n")
    for name in ("test.csv", "dev.csv"):
        (tmp_path / name).write_text("text,label\n" + "".join(rows[:20]))
    answers = [
        f"{row.strip()},{('good', 'bad')[i % 3 == 0]},{('web', 'letter')[i % 4 > 1]}\n" for i, row in enumerate(rows)
    ]
    (tmp_path / "answers.csv").write_text("text,label,prediction,source\n" + "".join(answers[:20]))
    (tmp_path / "crows.csv").write_text(
        "sent_more,sent_less,stereo_antistereo,bias_type\n" + "the list is,a list is,stereo,age\n" * 20
    )
    (tmp_path / "words.csv").write_text("list,tuple\n")
    (tmp_path / "pairs.jsonl").write_text('{"sentence_good": "a list", "sentence_bad": "list a"}\n' * 20)
    (tmp_path / "lambada.jsonl").write_text('{"text": "the list is a list"}\n')
    (tmp_path / "translated.txt").write_text("a list of words\n")
    (tmp_path / "reference.txt").write_text("the list of words\n")
    (tmp_path / "pairs.tsv").write_text("".join(f"the list {i}\tthe words {i}\t{i / 7:.2f}\n" for i in range(30)))
    finetune = load("finetune.py")
    for command in FINETUNE:
        with pytest.raises(SystemExit) as stop:
            cli.run(finetune.main, finetune.Args, [*shlex.split(command)[2:], "--steps", "2"])
        assert stop.value.code == 0, capsys.readouterr().err
    assert of_tuned
    for snippet in of_tuned:
        exec(snippet, {})
    for command in EVALUATE:
        with pytest.raises(SystemExit) as stop:
            cli.run_one_of(load("evaluate.py").COMMANDS, shlex.split(command)[2:])
        assert stop.value.code == 0, capsys.readouterr().err


@pytest.mark.parametrize("command", TRAIN)
def test_train_commands_run(run, command):
    """Each with --steps 4 appended (which takes the place of --minutes), on a small text of its own."""
    flags = shlex.split(command)[2:]
    if "--help" not in flags:
        flags += ["--cache-dir", "cache"]
        flags += [] if "--data" in flags else ["--data", "news"]
        flags += [] if {"--dry-run", "--prepare-only"} & {*flags} else ["--steps", "4"]
    if "--model" in flags:
        run("--data", "news", "--out", flags[flags.index("--model") + 1], "--cache-dir", "cache", "--steps", "1")
    if "--minutes" in flags:
        at = flags.index("--minutes")
        del flags[at : at + 2]
    said = {"--help": "--objective", "--dry-run": "dry run", "--prepare-only": "documents"}
    assert next((said[flag] for flag in flags if flag in said), "held out") in run(*flags)


@pytest.mark.parametrize(("status", "finished", "again"), [(0, False, True), (0, True, False), (2, False, False)])
def test_the_job_of_a_cluster_queues_itself_until_the_run_is_finished(train, tmp_path, status, finished, again):
    """With an srun that ends so, and an scontrol that keeps what it is told. A run that fails is not queued again."""
    (script,) = re.findall(r"^```bash\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    (tmp_path / "job.sh").write_text(script)
    (tmp_path / "bin").mkdir()
    for name, line in (("srun", f'echo "$@" > ran; exit {status}'), ("scontrol", 'echo "$@" > told')):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    if finished:
        (tmp_path / "checkpoints" / "long").mkdir(parents=True)
        (tmp_path / "checkpoints" / "long" / "config.json").touch()
    environment = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "SLURM_JOB_ID": "7"}
    subprocess.run(["bash", "job.sh"], cwd=tmp_path, env=environment, check=False)
    flags = shlex.split((tmp_path / "ran").read_text())[2:]
    cli.parse(train.Args, flags)
    told = tmp_path / "told"
    assert (told.read_text() if told.exists() else "") == ("requeue 7\n" if again else "")

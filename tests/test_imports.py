"""Imports run one way, the reference library stays out of the package, and public names are what they say."""

import ast
import re
from pathlib import Path

import pytest

import minilm

ROOT = Path(__file__).parent.parent
ORDER = (  # each may import what stands before it; data and model do not know each other
    {"minilm.errors"},
    {"minilm.batch", "minilm.files", "minilm.machine"},
    {"minilm.partial"},
    {"minilm.data", "minilm.model"},
    {"minilm.labelled"},
    {"minilm.checkpoint"},
    {"minilm.train"},
    {"minilm.cli"},
    {"minilm.dropin"},
    {"minilm.metrics"},
    {"minilm.tasks"},
    {"minilm.finetuning"},
    {"minilm.use"},
    {"minilm.language"},
    {"minilm.explanation"},
    {"minilm.judging"},
    {"minilm.recipes"},
    {"minilm.pretraining"},
    {"minilm.commands"},
)
FILES = sorted(
    [*(ROOT / "minilm").rglob("*.py"), *(ROOT / f"{script}.py" for script in ("train", "finetune", "evaluate"))]
)


def imported(file: Path) -> set[str]:
    """Every module named in an import statement, wherever it stands."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def layer(module: str) -> tuple[int, str] | None:
    """(place in ORDER, room) of a module of ours."""
    name = ".".join(module.split(".")[:2])
    return next(((i, name) for i, rooms in enumerate(ORDER) if name in rooms), None)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_imports_run_one_way(file):
    modules = imported(file)
    assert not {m for m in modules if m.split(".")[0] in ("transformers", "sentence_transformers", "evaluate")}
    own = file.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
    here = layer(own)
    if here is None:  # the scripts and minilm/__init__.py
        return
    for module in modules:
        there = layer(module)
        if there is not None and there[1] != here[1]:
            assert there[0] < here[0], f"{own} imports {module}"


def test_every_room_is_in_the_order():
    modules = [path.relative_to(ROOT) for path in FILES if path.parent != ROOT]
    rooms = {layer(path.with_suffix("").as_posix().replace("/", ".")) for path in modules}
    inside = [path for path in (ROOT / "minilm").iterdir() if path.suffix in ("", ".py")]
    unknown = [path for path in inside if layer(f"minilm.{path.stem}") is None]
    assert [p.name for p in unknown if p.name not in ("__init__.py", "__pycache__")] == []
    assert None in rooms  # minilm/__init__.py, which loads lazily


def test_the_map_is_in_reading_order():
    """In the README's path of a sentence each file imports only files above it."""
    table = (ROOT / "README.md").read_text(encoding="utf-8").split("## The path of a sentence")[1].split("\n## ")[0]
    links = re.findall(r"\]\((minilm/[\w/]+\.py)\)", table)
    assert len(links) > 20
    known = {"minilm"}
    for link in links:
        ours = {m for m in imported(ROOT / link) if m.split(".")[0] == "minilm" and _is_module(m)}
        known.add(link.removesuffix(".py").replace("/", "."))
        assert ours <= known, f"{link} imports what stands below it"


AUTO = {
    "AutoConfig": "PreTrainedConfig",
    "AutoTokenizer": "BertTokenizer",
    "AutoModel": "BertModel",
    "AutoModelForMaskedLM": "BertForMaskedLM",
    "AutoModelForCausalLM": "BertLMHeadModel",
    "AutoModelForSequenceClassification": "BertForSequenceClassification",
    "AutoModelForTokenClassification": "BertForTokenClassification",
    "AutoModelForQuestionAnswering": "BertForQuestionAnswering",
    "AutoModelForMultipleChoice": "BertForMultipleChoice",
    "AutoModelForNextSentencePrediction": "BertForNextSentencePrediction",
}
FAMILIES = ("Roberta", "DistilBert", "Electra", "ModernBert")


@pytest.mark.parametrize("name", minilm.__all__)
def test_a_public_name_is_what_it_says(name):
    """Of any family the class is that of BERT."""
    of_bert = next((f"Bert{name.removeprefix(family)}" for family in FAMILIES if name.startswith(family)), name)
    usual = name if name == "ElectraForPreTraining" else of_bert.replace("TokenizerFast", "Tokenizer")
    assert getattr(minilm, name).__name__ == AUTO.get(name, usual)


def test_each_family_has_its_names():
    assert {name for name in minilm.__all__ if name.startswith("Auto")} == {*AUTO}
    heads = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
    wanted = {family + rest for family in ("Bert", *FAMILIES) for rest in (*heads, "ForMultipleChoice")}
    assert wanted < {*minilm.__all__}
    assert dir(minilm) == minilm.__all__


def _is_module(name: str) -> bool:
    return (ROOT / name.replace(".", "/")).with_suffix(".py").exists()

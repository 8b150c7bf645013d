"""A data file of which someone has changed letters, cells, lines, keys or bytes: it is refused in one line that names
it, or read; then every row of it is an example, or named as left out."""

import gzip
import json
import lzma
import random
import re
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from minilm.data.documents import documents_of
from minilm.errors import DataError
from minilm.labelled.examples import Data, Kind, read_choices, read_texts
from minilm.labelled.spans import read_questions, read_tagged
from minilm.labelled.tables import read_table
from tests.faults.damage import BYTES
from tests.faults.tampered import NASTY, changed_json
from tests.faults.victim import Victim

AT_ONCE = 2000  # files of a trial
SECONDS = 2.0  # to read one
NASTY_TEXT = (
    *("", " ", '"', '""', '"""', "'", ",", ";", "\t", "\r", "\n", "\r\n", "\x00", "\x1a", "\ufeff", "\u2028", "\x85"),
    *("\v", "\f", "\u200b", "\u00a0", "\u202e", "é", "\U0001f600", "[SEP]", "NaN", "nan", "inf", "null", "None", "-"),
    *("1e400", "1,5", "9" * 400, "[", '["a"', "{}", "x" * 140_000, "\\", "\\n", "#", "O", "B-", "I-name", "-DOCSTART-"),
)
ENCODINGS = "utf-16", "utf-16-le", "latin-1", "utf-8-sig", "cp1252", "utf-32"
WORDS = (
    "a",
    "quick",
    "list",
    "of",
    "words",
    "that",
    "stands",
    "beside",
    "others,",
    "and",
    "3.5",
    "of",
    "them",
    "again",
)


class Format(NamedTuple):
    """One that the readers know."""

    name: str  # of a file of it
    write: Callable[[random.Random], str]
    read: Callable[[Path], Any]


def _text(rng: random.Random, most: int = 9) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(1, most)))


def _cells(columns: str, *of: Callable[[random.Random], Any], by: str = ",") -> Callable[[random.Random], str]:
    """A table with a header or without."""

    def write(rng: random.Random) -> str:
        rows = [[str(each(rng)) for each in of] for _ in range(rng.randint(2, 12))]
        rows = [columns.split(",")] * rng.choice([0, 1, 1]) + rows
        quoted = by == "," or rng.random() < 0.2
        return "".join(by.join(f'"{cell}"' if quoted and by in cell else cell for cell in row) + "\n" for row in rows)

    return write


def _objects(**of: Callable[[random.Random], Any]) -> Callable[[random.Random], str]:
    """One a line."""

    def write(rng: random.Random) -> str:
        rows = [{key: make(rng) for key, make in of.items()} for _ in range(rng.randint(1, 8))]
        return "".join(json.dumps(row) + "\n" for row in rows)

    return write


def _label(rng: random.Random) -> str:
    return rng.choice(["good", "bad", "neither"])


def _number(rng: random.Random) -> float:
    return rng.randint(0, 50) / 10


def _tagged(rng: random.Random) -> str:
    lines = [rng.choice(["", f"{rng.choice(WORDS)} {rng.choice(['O', 'B-NAME', 'I-NAME'])}"]) for _ in range(30)]
    return "\n".join(["word O", *lines]) + "\n"


def _tokens(rng: random.Random) -> str:
    rows = [{"tokens": (words := _text(rng).split()), "tags": ["O"] * len(words)} for _ in range(4)]
    return "".join(json.dumps(row) + "\n" for row in rows)


def _question(rng: random.Random) -> dict[str, Any]:
    words = (context := _text(rng)).split()
    at = rng.randrange(len(words))
    answer = {"text": [words[at]], "answer_start": [len(" ".join(words[:at])) + (at > 0)]}
    return {"id": str(rng.random()), "question": _text(rng), "context": context, "answers": answer}


def _questions(rng: random.Random) -> str:
    return "".join(json.dumps(_question(rng)) + "\n" for _ in range(4))


def _squad(rng: random.Random) -> str:
    paragraphs = []
    for row in (_question(rng) for _ in range(3)):
        answers = [dict(zip(row["answers"], each, strict=True)) for each in zip(*row["answers"].values(), strict=True)]
        paragraphs.append({"context": row.pop("context"), "qas": [row | {"answers": answers}]})
    return json.dumps({"version": "1.1", "data": [{"title": "words", "paragraphs": paragraphs}]})


def _documents(rng: random.Random) -> str:
    return "".join(_text(rng, 30) + rng.choice(["\n", "\n\n"]) for _ in range(10))


def _labelled(kind: Kind) -> Callable[[Path], Data]:
    return lambda file: read_texts(read_table(file), kind)


def _choices(rng: random.Random) -> list[str]:
    return [_text(rng), _text(rng), _text(rng)]


FORMATS = (
    Format("labels.csv", _cells("text,label", _text, _label), _labelled("classification")),
    Format("labels.tsv", _cells("sentence,label", _text, _label, by="\t"), _labelled("classification")),
    Format("pairs.csv", _cells("premise,hypothesis,score", _text, _text, _number), _labelled("regression")),
    Format(
        "several.csv",
        _cells("text,labels", _text, lambda rng: "|".join({_label(rng), _label(rng)})),
        _labelled("multilabel"),
    ),
    Format("labels.jsonl", _objects(text=_text, label=_label), _labelled("classification")),
    Format(
        "labels.json",
        lambda rng: json.dumps([{"text": _text(rng), "label": _label(rng)} for _ in range(5)]),
        _labelled("classification"),
    ),
    Format(
        "choices.jsonl",
        _objects(question=_text, choices=_choices, label=lambda rng: rng.randrange(3)),
        lambda file: read_choices(read_table(file)),
    ),
    Format("tagged.conll", _tagged, read_tagged),
    Format("tagged.jsonl", _tokens, read_tagged),
    Format("squad.json", _squad, read_questions),
    Format("questions.jsonl", _questions, lambda file: read_questions(read_table(file))),
    Format("corpus.txt", _documents, lambda file: [*documents_of(file, "text")]),
    Format("corpus.jsonl", _objects(text=_text), lambda file: [*documents_of(file, "text")]),
)


def malformed(victim: Victim, out: Path, seed: int) -> tuple[str, str]:
    """(how many were refused, the first that is wrong): AT_ONCE files of trial `seed`, as many of each format."""
    out.mkdir(exist_ok=True)
    refused = 0
    for number in range(AT_ONCE):
        form = FORMATS[number % len(FORMATS)]
        rng = random.Random(f"{seed} {number}")
        file, what = _written(form, out, rng)
        said, is_refused = wrong(form, file)
        refused += is_refused
        if said:
            return f"file {number}", f"{what} {file.name}: {said}"
        file.unlink()
    return f"{refused} of {AT_ONCE} refused", ""


def _written(form: Format, out: Path, rng: random.Random) -> tuple[Path, str]:
    """The file, changed up to three times, and how."""
    text, names = form.write(rng), []
    for _ in range(rng.choice([1, 1, 2, 3])):
        name = rng.choice([*CHANGES, *(["tree"] * 4 if ".json" in form.name else [])])
        text = CHANGES[name](text, rng) if name != "tree" else _changed_tree(text, rng)
        names.append(name)
    data = text.encode(
        rng.choice(ENCODINGS) if rng.random() < 0.05 else "utf-8", "surrogatepass" if "\ud800" in text else "replace"
    )
    suffix = rng.choice(["", "", "", "", "", "", ".gz", ".xz"])
    data = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}[suffix](data)
    if data and rng.random() < 0.1:
        names.append(kind := rng.choice([*BYTES]))
        data = BYTES[kind](data, rng)
    file = out / (form.name + (suffix if rng.random() < 0.95 else ""))
    file.write_bytes(data)
    return file, ", ".join(names)


def wrong(form: Format, file: Path) -> tuple[str, bool]:
    """(what is wrong, whether it was refused)."""
    began = time.process_time()
    try:
        wrong, is_refused = _lost(form, file, form.read(file)), False
    except DataError as error:
        wrong, is_refused = "" if file.name in str(error) else f"does not name the file: {error}", True
    except Exception:
        wrong, is_refused = traceback.format_exc()[-700:], False
    seconds = time.process_time() - began
    return wrong or (f"takes {seconds:.1f} s" if seconds > SECONDS else ""), is_refused


def _lost(form: Format, file: Path, found: Any) -> str:
    """Rows that are no example and not named, of files in which a row is a line."""
    if not isinstance(found, Data):
        return ""
    data = file.read_bytes()
    data = gzip.decompress(data) if file.suffix == ".gz" else lzma.decompress(data) if file.suffix == ".xz" else data
    lines = data.removeprefix(b"\xef\xbb\xbf").decode().split("\n")
    kind, told = form.name.split(".")[1], len(found.examples) + len(found.left_out)
    fewest = most = sum(bool(line.strip()) for line in lines)
    if kind in ("csv", "tsv") and b'"' not in data:
        told += any("its first row names" in note for note in found.notes)
        fewest = sum(bool(re.sub("[,;]", "", line).strip()) for line in lines)  # one of separators alone may be blank
    elif kind != "jsonl":
        return ""
    return "" if fewest <= told <= most else f"{told} of {fewest} rows are told of"


# -- what is changed ------------------------------------------------------------------------------------


def _letter(text: str, rng: random.Random) -> str:
    at = rng.randint(0, len(text))
    return text[:at] + rng.choice(NASTY_TEXT) + text[at + rng.randint(0, 2) :]


def _line(text: str, rng: random.Random) -> str:
    """One removed, doubled, blank, moved, joined with the next one, or another in its place."""
    lines = text.split("\n")
    at = rng.randrange(len(lines))
    kind = rng.randrange(6)
    if kind < 2:
        lines[at : at + 1] = [lines[at]] * (2 * kind)
    elif kind == 2:
        lines.insert(at, rng.choice(["", "   ", "\t", ",", ",,,", '""', "{}", "[]", "null"]))
    elif kind == 3:
        lines.append(lines.pop(at))
    elif kind == 4:
        lines[at : at + 2] = ["".join(lines[at : at + 2])]
    else:
        lines[at] = rng.choice(NASTY_TEXT)
    return "\n".join(lines)


def _cell(text: str, rng: random.Random) -> str:
    """One of a line is another, is no more, or stands there twice."""
    lines = text.split("\n")
    at = rng.randrange(len(lines))
    by = rng.choice([",", "\t", " "])
    cells = lines[at].split(by)
    place = rng.randrange(len(cells))
    cells[place : place + 1] = rng.choice([[], [rng.choice(NASTY_TEXT)], [cells[place]] * 2])
    lines[at] = by.join(cells)
    return "\n".join(lines)


def _ends(text: str, rng: random.Random) -> str:
    return text.replace("\n", rng.choice(["\r\n", "\r", "\u2028", "\n\n", ""]))


def _swapped(text: str, rng: random.Random) -> str:
    """What separates cells is another."""
    a, b = rng.sample([",", "\t", ";", '"', " "], 2)
    return text.replace(a, b)


CHANGES: dict[str, Callable[[str, random.Random], str]] = {
    "letter": _letter,
    "line": _line,
    "cell": _cell,
    "ends": _ends,
    "separators": _swapped,
}


def _changed_tree(text: str, rng: random.Random) -> str:
    """A line of JSON, or the whole, where it still is one."""
    lines = text.split("\n") if text.count("\n") > 1 else [text]
    at = rng.randrange(len(lines))
    try:
        lines[at] = changed_json(lines[at].encode(), rng.choice(["tree", "twice"]), rng).decode(
            "utf-8", "surrogatepass"
        )
    except (ValueError, IndexError, TypeError, RecursionError):  # no object any more, or an empty one
        lines[at] += json.dumps(rng.choice(NASTY[:-1]))
    return "\n".join(lines)

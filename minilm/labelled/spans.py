"""Reading labelled spans: sentences with a tag per word, and questions whose answer stands in a context."""

import re
from collections.abc import Iterable, Iterator
from itertools import chain, count, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from minilm.data.documents import uncompressed_name
from minilm.errors import DataError
from minilm.labelled.cells import plain_name
from minilm.labelled.examples import Data, Question, Tagged, as_text
from minilm.labelled.tables import Table, listed, read_json, read_table, shown, text_lines

TAG = re.compile(r"O|[BIESLU]-\S+")  # in IOB1, IOB2, IOBES or BILOU
OF_ROWS = (".jsonl", ".ndjson", ".json", ".parquet")
SQUAD = '{"data": [{"paragraphs": [{"context": "...", "qas": [...]}]}]}'
LISTS = {"text": ("words", "tokens"), "label": ("tags", "ner_tags")}  # usual names of the columns that hold lists
OF_QUESTIONS = ("id", "answers", "is_impossible")  # columns of a table, beside question and context


# -- tagged words -------------------------------------------------------------------------------------


def read_tagged(
    source: Path | str | Table, column: int | str | None = None, labelled: bool = True, words: str | None = None
) -> Data:
    """Read sentences as Tagged, from rows with lists of words and of tags, as in a jsonl, or from a file with one word
    per line and a blank line after each sentence (Tjong Kim Sang & De Meulder 2003). column: of the tags; in such a
    file its number from 1, None: the last. words: the column of the words, in rows; without them, columns have the
    usual names. labelled: whether to read tags. Raises DataError."""
    if not isinstance(source, Table) and not is_one_word_a_line(Path(source)):
        source = read_table(source)
    if not (labelled or isinstance(source, Table)) and uncompressed_name(Path(source)).endswith(".csv"):
        raise DataError(f"{source}: tagged words are separated by tabs or spaces, one word a line; name it .tsv, if so")
    columns: dict[str, str] = {}
    if isinstance(source, Table):
        given = {"text": words, "label": column} if labelled else {"text": words}
        given = {role: (source.column(name),) if name is not None else LISTS[role] for role, name in given.items()}
        columns = {role: next((name for name in names if name in source.columns), "") for role, names in given.items()}
        sentences, notes, left_out = _tagged_rows(source, given)
    else:
        sentences, notes, left_out = _tagged_lines(Path(source), column, labelled)
    if not sentences:
        name = source.name if isinstance(source, Table) else source
        raise DataError(f"{name}: holds no sentence; is it the right file?")
    _check_letters(sentences)
    begun = [
        (tag[:2], sentence.where)
        for sentence in sentences
        for before, tag in pairwise(("O", *(sentence.tags or ())))
        if tag[0] in "IEL" and (before[2:] != tag[2:] or before[0] in "ESLU")
    ]
    if begun:
        letters = " or ".join(sorted({letter for letter, _ in begun}))
        notes.append(f"entities that begin with {letters} instead of B-: {len(begun):,}, the first in {begun[0][1]}")
    return Data(sentences, tuple(notes), tuple(left_out), columns, taken=(*columns.values(), *chain(*LISTS.values())))


def is_one_word_a_line(file: Path) -> bool:
    """Whether a file of that name has one tagged word per line; else its rows have lists."""
    return not uncompressed_name(file).endswith(OF_ROWS)


def columns_of(line: str) -> list[str]:
    """The columns of a line that are separated by spaces; other white space, as one without a break, is part of a
    word."""
    return [cell for cell in line.split(" ") if cell]


def with_column(file: Path, tags: Iterable[str], tabs: bool = False) -> Iterator[str]:
    """Lines of a file with one word per line, with each word's tag added as a last column. tabs: separate columns by
    tabs instead of the file's spaces."""
    coming, separator = iter(tags), ""
    for line in text_lines(file):
        if line.startswith("-DOCSTART-") or not line.strip():
            yield line
        else:
            separator = separator or ("\t" if "\t" in line else " ")
            if separator == " ":
                line = "\t".join(columns_of(line)) if tabs else line.rstrip()
            yield line + ("\t" if tabs else separator) + next(coming)


def _check_letters(sentences: list[Tagged]) -> None:
    """Raises DataError if tags are written in two schemes."""
    met: set[str] = set()
    for sentence in sentences:
        met |= {tag[0] for tag in sentence.tags or ()}
        if met & {*"ES"} and met & {*"LU"}:
            raise DataError(f"{sentence.where}: tags mix IOBES (E-, S-) and BILOU (L-, U-); write all in one scheme")


def _tagged_lines(file: Path, column: int | None, labelled: bool) -> tuple[list[Tagged], list[str], list[str]]:
    sentences, words, tags, begins = [], [], [], 0
    width, separator, dropped = 0, None, 0
    for number, line in enumerate((*text_lines(file), ""), start=1):
        if line.startswith("-DOCSTART-"):
            dropped += 1
            line = ""
        if not line.strip():
            if words:
                sentences.append(Tagged(tuple(words), tuple(tags) if labelled else None, f"{file}:{begins}"))
            words, tags = [], []
            continue
        where = f"{file}:{number}"
        separator = separator or ("\t" if "\t" in line else " ")
        cells = [cell.strip() for cell in (line.split("\t") if separator == "\t" else columns_of(line))]
        width = width or len(cells)
        if len(cells) != width:
            mend = "give each line a word and its tag" if labelled else "give each line one word"
            raise DataError(f"{where}: {len(cells)} columns, but {width} before; {mend}")
        if labelled and (width < 2 or not 1 <= (column or width) <= width):
            which = f"no column {column}" if column else "a word and no tag"
            raise DataError(f"{where}: {which} ({width} columns); give a word and its tag, by a tab or a space")
        begins = begins if words else number
        words.append(_word(cells[0], where))
        tags += [_tag(cells[(column or width) - 1], where)] if labelled else []
    notes = [f"-DOCSTART- lines dropped: {dropped:,}"] if dropped else []
    if not labelled and width > 1:
        notes.append(f"words are the first of {width} columns: each line is one word, and a blank line ends a sentence")
    return sentences, notes, []


def _tagged_rows(table: Table, columns: dict[str, tuple[str, ...]]) -> tuple[list[Tagged], list[str], list[str]]:
    """columns: by role the names of which each row has one."""
    sentences, left_out, labelled = [], [], "label" in columns
    for where, cells in table.rows:
        told = (next((name for name in names if name in cells), "") for names in columns.values())
        lists = [table.named(name, cells.get(name)) for name in told]
        for names, each in zip(columns.values(), lists, strict=True):
            if not isinstance(each, list | tuple):
                which = " or ".join(names) if len(names) > 1 else repr(names[0])
                raise DataError(f"{where}: no list {which} (it has {listed(cells)}); give one, or name its column")
        if labelled and len(lists[0]) != len(lists[1]):
            raise DataError(f"{where}: {len(lists[0])} words and {len(lists[1])} tags; give each word one")
        if not lists[0]:
            left_out.append(f"{where}: no words")
            continue
        words = tuple(_word(as_text(each, where, "word"), where) for each in lists[0])
        sentences.append(Tagged(words, tuple(_tag(tag, where) for tag in lists[1]) if labelled else None, where))
    return sentences, list(table.notes), left_out


def _word(word: str | None, where: str) -> str:
    if not word or not word.strip():
        raise DataError(f"{where}: a tag without a word; give the word")
    return word


def _tag(tag: Any, where: str) -> str:
    if not isinstance(tag, str) or not TAG.fullmatch(tag):
        mend = "give its name, not its number" if isinstance(tag, int) else "is it the right column?"
        raise DataError(f"{where}: the tag {shown(tag)} is none of O, B-name, I-name (or E-, S-, L-, U-name); {mend}")
    return tag


# -- questions ----------------------------------------------------------------------------------------


def read_questions(
    source: Path | str | Table,
    question: str | int | None = None,
    context: str | int | None = None,
    labelled: bool = True,
) -> Data:
    """Read questions from a file in the layout of SQuAD 1.1 or 2.0, or from rows with columns `question` and `context`,
    or those given, and `answers` as in SQuAD or as two lists, `text` and `answer_start`. labelled: read answers, and
    leave out questions without known ones. Raises DataError."""
    notes, columns = (), {}
    if isinstance(source, Table):
        columns = {"text": question, "pair": context}
        named = {plain_name(column): column for column in reversed(source.columns)}
        for role, name in zip(columns, ("question", "context"), strict=True):
            if columns[role] is None and name not in named:
                raise DataError(f"{source.name}: which column is the {name}? It has {listed(source.columns)}; name it")
            columns[role] = named[name] if columns[role] is None else source.column(columns[role])
        if columns["text"] == columns["pair"]:
            raise DataError(f"{source.name}: column {columns['text']!r} is named twice; name another")
        name, notes, rows = source.name, source.notes, _question_rows(source, columns, labelled)
    else:
        name, rows = source, _squad_rows(Path(source))
    examples, left_out, moved, dropped, again = [], [], [], [], []
    first: dict[str, str] = {}  # id -> its question
    rows = list(rows)
    own, taken = {_member(row, "id", str, where) for where, _, row in rows}, set()
    for where, context, row in rows:
        id, question = _member(row, "id", str, where), _member(row, "question", str, where)
        if first.setdefault(id, question) != question:
            raise DataError(f"{where}: id {shown(id)} is that of two questions; give each its own")
        if id in taken:
            again.append(where)
            id = next(each for i in count(2) if (each := f"{id}#{i}") not in own | taken)
        taken.add(id)
        if not question.strip() or not context.strip():
            left_out.append(f"{where}: no {'context' if question.strip() else 'question'}")
            continue
        found = _answers(row, context, where) if labelled else _Answers(None)
        if found.why and not found.answers:
            left_out.append(f"{where}: {found.why}")
            continue
        if labelled and found.answers is None:
            left_out.append(f"{where}: no answers")
            continue
        dropped += [where] if found.why else []
        moved += [where] if found.moved else []
        examples.append(Question(id, question, context, found.answers, where))
    if not examples:
        raise DataError(f"{name}: no question to use ({left_out[0] if left_out else 'none at all'}); give {SQUAD}")
    said = {
        "questions whose answer starts elsewhere in the context, which is corrected": moved,
        "questions of which some answers are not in the context": dropped,
        "questions with the id of an earlier one, which get #2, #3": again,
    }
    notes += tuple(f"{what}: {len(places):,}, the first {places[0]}" for what, places in said.items() if places)
    return Data(examples, notes, tuple(left_out), columns, taken=(*columns.values(), *OF_QUESTIONS))


def _squad_rows(file: Path) -> Iterator[tuple[str, str, Any]]:
    """(where, context, question with its answers) of each question in a SQuAD file."""
    for d, article in enumerate(_member(read_json(file, SQUAD), "data", list, str(file))):
        for p, paragraph in enumerate(_member(article, "paragraphs", list, f"{file}: data[{d}]")):
            place = f"{file}: data[{d}].paragraphs[{p}]"
            context = _member(paragraph, "context", str, place)
            for q, row in enumerate(_member(paragraph, "qas", list, place)):
                yield f"{place}.qas[{q}]", context, row


def _question_rows(table: Table, columns: dict[str, str], labelled: bool) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """`_squad_rows` for a table; a row without an id gets its number as id."""
    for number, (where, cells) in enumerate(table.rows, start=1):
        question, context = (as_text(cells.get(columns[role]), where, role) or "" for role in ("text", "pair"))
        row = {"id": as_text(cells.get("id"), where, "id") or str(number), "question": question}
        if labelled:
            answers = cells.get("answers")
            if isinstance(answers, dict):  # in the form of `datasets`
                texts, starts = (_member(answers, each, list, where) for each in ("text", "answer_start"))
                if len(texts) != len(starts):
                    raise DataError(f"{where}: {len(texts)} answers and {len(starts)} starts; give each text one")
                pairs = zip(texts, starts, strict=True)
                answers = [{"text": text, "answer_start": start} for text, start in pairs]
            row |= {"answers": answers, "is_impossible": cells.get("is_impossible")}
        yield where, context, row


class _Answers(NamedTuple):
    answers: tuple[tuple[int, str], ...] | None
    why: str = ""  # one of them is not used
    moved: bool = False


def _answers(row: dict[str, Any], context: str, where: str) -> _Answers:
    if row.get("answers") is None:
        return _Answers(() if row.get("is_impossible") is True else None)
    answers, why, moved = [], "", False
    for i, each in enumerate(_member(row, "answers", list, where)):
        place = f"{where}.answers[{i}]"
        text, start = _member(each, "text", str, place), _member(each, "answer_start", int, place)
        if start >= 0 and text.strip() and context.startswith(text, start):
            answers.append((start, text))
        elif text.strip() and (at := context.find(text)) >= 0 and context.find(text, at + 1) < 0:
            answers.append((at, text))
            moved = True
        else:
            why = f"the answer {shown(text)} is not at {start} in the context, nor once elsewhere"
    if answers and row.get("is_impossible") is True:
        return _Answers((), "is_impossible, but it has answers")
    return _Answers(tuple(answers), why, moved)


def _member(value: Any, name: str, kind: type, where: str) -> Any:
    """value[name], checked to be a `kind`. Raises DataError."""
    found = value.get(name) if isinstance(value, dict) else None
    if not isinstance(found, kind) or isinstance(found, bool):
        named = {list: "list", str: "text", int: "whole number"}[kind]
        raise DataError(f"{where}: no {named} {name!r}; is this the layout of SQuAD?")
    if kind is str:
        as_text(found, where, name)
    return found

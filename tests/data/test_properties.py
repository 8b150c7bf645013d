"""What must hold of any input, tried on inputs that hypothesis makes up: the same ones each time, and the simplest that
it finds where something fails."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import minilm
from minilm.batch import IGNORE
from minilm.data.documents import documents_of
from minilm.data.objectives import CausalLM, MaskedLM, PrefixLM
from minilm.data.packing import Taken, pack
from minilm.data.tokenizer import Tokenizer
from minilm.data.tokenizer_files import wordpiece
from minilm.errors import DataError
from minilm.labelled.examples import read_texts
from minilm.labelled.tables import read_table

tried = settings(
    derandomize=True, deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
# \N{NULL} begins no text, lone surrogates are no characters
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60)
CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=30)
LENGTHS = st.lists(st.integers(0, 60), min_size=1, max_size=12)


# -- tokenizers -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both(tmp_path_factory, prose):
    """A vocabulary of letters and pieces: (ours, transformers')."""
    directory = tmp_path_factory.mktemp("both")
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789äöüßéñ.,!?'-", "ab", "the", "日", "本", "я"]
    pieces = [f"##{each}" for each in letters if each.isalnum()]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *pieces]
    (directory / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    ours = minilm.BertTokenizer(directory / "vocab.txt", model_max_length=32)
    return ours, transformers.BertTokenizerFast(str(directory / "vocab.txt"), model_max_length=32)


@tried
@given(text=TEXT, pair=st.none() | TEXT, length=st.integers(5, 40))
def test_any_text_has_the_tokens_that_transformers_gives_it(both, text, pair, length):
    ours, theirs = both
    found, wanted = (
        each(text, pair, truncation=True, max_length=length, return_offsets_mapping=True) for each in (ours, theirs)
    )
    for key in ("input_ids", "token_type_ids", "attention_mask", "offset_mapping"):
        assert (
            [*map(tuple, found[key])] == [*map(tuple, wanted[key])]
            if key == "offset_mapping"
            else found[key] == wanted[key]
        )
    assert len(found["input_ids"]) <= length
    assert ours.decode(found["input_ids"]) == theirs.decode(wanted["input_ids"])


ODD = ["[MASK]", "the", "ab", "!", "''", " ", "\u0301", "\u0345", "İ", "ß", "Σ", "ǅ", "\x0b", "\x1c", "\x7f", "\x85"]
ODD += ["\xa0", "\u200b", "\u2028", "\ufffd", "日本", "가", "\u1100\u1161", "a\u0323\u0307", "Å", "…", "q" * 101]


@tried
@given(documents=st.lists(st.lists(TEXT | st.sampled_from(ODD)).map("".join), max_size=3))
def test_documents_word_by_word_are_what_they_are_at_once(by_word, documents):
    """What remembers words cuts a text in places across which the library would not look."""
    for tokenizer in by_word:
        whole = tokenizer.backend
        whole.encode_special_tokens = True
        wanted = [whole.encode(document, add_special_tokens=False).ids for document in documents]
        assert [found.tolist() for found in tokenizer.encode_documents(documents)] == wanted


@pytest.fixture
def by_word(of_words, monkeypatch):
    """The same, on a machine of few cores, and where no word is too rare to be remembered."""
    monkeypatch.setattr("minilm.data.tokenizer.cores", lambda: 1)
    monkeypatch.setattr("minilm.data.tokenizer.NEW", 1)
    return of_words


@pytest.fixture(scope="module")
def of_words(prose):
    """Tokenizers that take and leave capital letters, accents and Chinese."""
    texts = [*prose, *ODD * 3]
    found = [Tokenizer.train(texts, 256, lowercase) for lowercase in (True, False)]
    vocab = found[0].backend.get_vocab()
    found += [Tokenizer(wordpiece(vocab, True, False), True), Tokenizer(wordpiece(vocab, False, True, False), False)]
    for tokenizer in found:
        assert tokenizer._is_of_words
    return found


# -- packing and objectives -----------------------------------------------------------------------------


@tried
@given(lengths=LENGTHS, T=st.integers(4, 40), seed=st.integers(0, 2**40))
def test_documents_are_packed_whole_or_in_parts_and_each_token_once(shard_of, tokenizer, plain_ids, lengths, T, seed):
    rng = np.random.default_rng(seed)
    texts = [rng.choice(plain_ids, n).tolist() for n in lengths]
    rows = pack(shard_of(texts), "documents", T, tokenizer, None, seed)
    if not len(rows):
        assert sum(lengths) == 0
        return
    ids, doc, _, _ = rows.take(np.arange(len(rows)), np.zeros(len(rows), np.int64))
    assert ids.shape == (len(rows), T)
    parts = []
    for row, of in zip(ids.tolist(), doc.tolist(), strict=True):
        for number in sorted({*of} - {-1}):
            part = [token for token, own in zip(row, of, strict=True) if own == number]
            assert (part[0], part[-1]) == (tokenizer.cls_id, tokenizer.sep_id)
            parts.append(part[1:-1])
        assert all(token == tokenizer.pad_id for token, own in zip(row, of, strict=True) if own == -1)
    wanted = [text[at : at + T - 2] for text in texts for at in range(0, len(text), T - 2)]
    assert sorted(parts) == sorted(wanted)


@tried
@given(
    objective=st.sampled_from(["mlm", "whole", "clm", "prefix"]),
    lengths=LENGTHS,
    T=st.integers(4, 40),
    rate=st.floats(0.01, 0.9),
    seed=st.integers(0, 2**40),
)
def test_targets_are_what_was_there_and_nobody_reads_them(
    shard_of, pieces_tokenizer, plain_ids, objective, lengths, T, rate, seed
):
    tokenizer, rng = pieces_tokenizer, np.random.default_rng(seed)
    rows = pack(shard_of([rng.choice(plain_ids, n).tolist() for n in lengths]), "documents", T, tokenizer, None, seed)
    if not len(rows):
        return
    made = {
        "mlm": MaskedLM(tokenizer, seed, rate),
        "whole": MaskedLM(tokenizer, seed, rate, whole_words=True),
        "clm": CausalLM(),
        "prefix": PrefixLM(seed),
    }[objective]
    taken = rows.take(np.arange(len(rows)), np.zeros(len(rows), np.int64))
    row = torch.arange(len(rows))
    batch = made(Taken(*taken), row, torch.zeros_like(row))
    again = made(Taken(*taken), row, torch.zeros_like(row))
    assert torch.equal(batch.tokens.input_ids, again.tokens.input_ids)
    assert torch.equal(batch.target, again.target)
    ids, read = taken.ids.flatten(), batch.tokens.input_ids.flatten()
    is_target = batch.target != IGNORE
    assert batch.count == int(is_target.sum())
    assert len(batch.where) == len(rows) * made.slots(T, 0.0)
    where, target = batch.where[is_target], batch.target[is_target]
    if objective in ("mlm", "whole"):
        assert torch.equal(ids[where], target)
        others = torch.ones(len(ids), dtype=torch.bool)
        others[where] = False
        assert torch.equal(ids[others], read[others])
        assert not torch.isin(target, torch.tensor(tokenizer.special_ids)).any()
    else:
        assert torch.equal(ids, read)
        assert torch.equal(ids[where + 1], target)
        assert torch.equal(taken.doc.flatten()[where], taken.doc.flatten()[where + 1])


# -- files ----------------------------------------------------------------------------------------------


@tried
@given(
    rows=st.lists(st.tuples(CELL, CELL, CELL), min_size=1, max_size=15),
    delimiter=st.sampled_from(",;\t"),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_a_csv_that_python_writes_is_read_as_it_was(tmp_path, rows, delimiter, end):
    """Each cell, but for spaces around it, which nobody misses; rows of spaces alone are left out, and counted. In a
    tsv quotes are quotes only where they are all closed in their own cells."""
    if delimiter == "\t":
        rows = [tuple(" ".join(cell.split()) for cell in row) for row in rows]
    file = tmp_path / ("rows.tsv" if delimiter == "\t" else "rows.csv")
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
        writer.writerows([("text", "label", "number"), *rows])
    kept = [row for row in rows if any(cell.strip() for cell in row)]
    try:
        table = read_table(file, header=True)
    except DataError:
        assert not kept
        return
    found = [tuple(row.cells.values()) for row in table.rows]
    assert [tuple(cell.strip() for cell in row) for row in found] == [
        tuple(cell.strip() for cell in row) for row in kept
    ]


@tried
@given(rows=st.lists(st.fixed_dictionaries({"text": TEXT, "label": st.none() | CELL}), min_size=1, max_size=15))
def test_every_row_is_used_or_left_out_with_its_place(tmp_path, rows):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    usable = [i for i, row in enumerate(rows, start=1) if row["text"].strip() and (row["label"] or "").strip()]
    if not usable:
        with pytest.raises(DataError, match="no row can be used"):
            read_texts(read_table(file), "classification", "text", None, "label")
        return
    data = read_texts(read_table(file), "classification", "text", None, "label")
    assert [each.where for each in data.examples] == [f"{file}:{i}" for i in usable]
    assert [each.text for each in data.examples] == [rows[i - 1]["text"] for i in usable]
    assert len(data.left_out) == len(rows) - len(usable)


@tried
@given(parts=st.lists(st.lists(CELL.filter(lambda text: text.strip()), min_size=1, max_size=4), min_size=1, max_size=8))
def test_a_blank_line_ends_a_document_and_nothing_is_lost(tmp_path: Path, parts):
    file = tmp_path / "some.txt"
    lines = [[" ".join(line.split()) for line in part] for part in parts]
    file.write_text("\n\n".join("\n".join(part) for part in lines) + "\n", encoding="utf-8", newline="")
    assert [text.split() for text in documents_of(file, "text")] == ["\n".join(part).split() for part in lines]

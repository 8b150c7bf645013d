"""Minimal pairs: of two sentences that differ in one point, does the model find the better one likelier?

BLiMP (Warstadt et al. 2020) is 67,000 such pairs; masked models score by pseudo-log-likelihood (Salazar et al. 2020).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from minilm.errors import DataError
from minilm.labelled.examples import as_text
from minilm.labelled.tables import Table, listed
from minilm.metrics.intervals import share
from minilm.metrics.slices import EMPTY, name_of

GOOD, BAD = ("sentence_good", "good", "grammatical"), ("sentence_bad", "bad", "ungrammatical")
KINDS = ("field", "linguistics_term", "UID")  # BLiMP's, from the widest


class Pair(NamedTuple):
    """Two sentences, of which `good` should be likelier."""

    good: str
    bad: str
    kinds: tuple[str, ...]  # its values in the columns that scores are grouped by
    where: str


def read_pairs(
    table: Table, good: str | None = None, bad: str | None = None, by: Sequence[str] | None = None
) -> tuple[list[Pair], tuple[str, ...]]:
    """(a table's pairs, the columns of their kinds). The default columns are BLiMP's. Raises DataError."""
    columns = [_column(table, *each) for each in ((good, GOOD, "--good-column"), (bad, BAD, "--bad-column"))]
    kinds = [name for name in KINDS if name in table.columns] if by is None else [table.column(name) for name in by]
    pairs = []
    for row in table.rows:
        texts = [as_text(row.cells.get(name), row.where, name) for name in columns]
        for name, text in zip(columns, texts, strict=True):
            if not (text or "").strip():
                raise DataError(f"{row.where}: no sentence in column {name!r}; give it one, or leave the row out")
        own = tuple(name_of(as_text(row.cells.get(name), row.where, name)) or EMPTY for name in kinds)
        pairs.append(Pair(*texts, own, row.where))
    if not pairs:
        raise DataError(f"{table.name}: holds no pair")
    return pairs, tuple(kinds)


def _column(table: Table, given: str | None, usual: Sequence[str], flag: str) -> str:
    if given is not None:
        return table.column(given)
    found = next((name for name in usual if name in table.columns), None)
    if found is None:
        raise DataError(f"{table.name}: no column {' or '.join(usual)} (it has {listed(table.columns)}); give {flag}")
    return found


def pair_scores(nats: np.ndarray, pairs: Sequence[Pair], kinds: Sequence[str]) -> dict[str, Any]:
    """`accuracy`, the share of pairs whose good sentence is likelier, as {value, low, high, n}: overall, and by each
    kind. nats (n, 2): log-likelihoods of the good and the bad sentence. A tie is no hit, and ties are counted."""
    hit = nats[:, 0] > nats[:, 1]
    by: dict[str, dict[str, Any]] = {}
    for i, name in enumerate(kinds):
        values = np.array([pair.kinds[i] for pair in pairs])
        by[name] = {value: share(hit[values == value]) for value in np.unique(values).tolist()}
    ties = int((nats[:, 0] == nats[:, 1]).sum())
    return {"metrics": {"accuracy": share(hit)}, "by": by, "ties": ties}

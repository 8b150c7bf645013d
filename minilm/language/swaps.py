"""Does a model treat a text alike when listed words are swapped for their counterparts, as he for she?

for a masked language model  the log-likelihood of what both versions share, each token masked in turn: the metric of
                             CrowS-Pairs (Nangia et al. 2020), on any text
for a classifier             the predicted label and the probabilities of both versions: counterfactual token fairness
                             (Garg et al. 2019), here for one swap of all listed words

A listed word is found as a whole word, as it is written in the list, with a capital, or all in capitals; its
counterpart is written alike. Every score is over texts; a comparison that two texts make is counted once. CAVEATS
belong beside the figures.
"""

import re
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from minilm.errors import DataError
from minilm.labelled.examples import Example, as_text
from minilm.labelled.tables import Table, shown
from minilm.language.bias import CrowsPair, Metric, percent
from minilm.metrics.intervals import weighted_means, with_intervals

CAVEATS = (
    "a swap can make a text unnatural or false (his wife is expecting), so not every difference is bias",
    "a list of words knows no grammar: her is his or him, and a pair can say only one of them",
    "only listed words are looked at, so no difference proves no fairness",
)
OF_LANGUAGE_MODEL = "50 means no preference; the words themselves are not scored, only what both versions share"
OF_CLASSIFIER = "where a label rightly depends on a listed word, its change is no bias"
MOST = 5  # texts that differ most, which are shown


class Swaps(NamedTuple):
    """Words and their counterparts."""

    pairs: tuple[tuple[str, str], ...]
    written: dict[str, tuple[int, int, str]]  # word as in a text -> (index of its pair, its column, its counterpart)
    pattern: re.Pattern[str]


class Swapped(NamedTuple):
    """A text or a pair of texts, and the same with every listed word swapped."""

    texts: tuple[str, ...]
    swapped: tuple[str, ...]
    pairs: tuple[int, ...]  # indices of the pairs whose words it holds
    column: int | None  # of the words that `texts` holds: 0 the first, 1 the second, None both
    where: str

    @property
    def versions(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(The version with words of the first column, that of the second); (texts, swapped) if `column` is None."""
        return (self.swapped, self.texts) if self.column == 1 else (self.texts, self.swapped)


def read_swaps(table: Table) -> Swaps:
    """Swaps of a table of two columns. Raises DataError, also for a word that is listed twice."""
    if len(table.columns) != 2:
        raise DataError(f"{table.name}: has {len(table.columns)} columns; give two, a word and its counterpart")
    pairs: list[tuple[str, str]] = []
    written: dict[str, tuple[int, int, str]] = {}
    first: dict[str, str] = {}  # word as in a text -> where it is listed
    for row in table.rows:
        words = [(as_text(row.cells.get(name), row.where, "word") or "").strip() for name in table.columns]
        if "" in words:
            raise DataError(f"{row.where}: no word in column {words.index('') + 1}; give a word and its counterpart")
        forms = [_forms(word) for word in words]
        own: dict[str, tuple[int, int, str]] = {}
        for column, word in enumerate(words):
            for form, counterpart in zip(forms[column], forms[1 - column], strict=True):
                if form in written or own.get(form, (0, column))[1] != column:
                    there = first.get(form, row.where)
                    raise DataError(f"{row.where}: {shown(word)} appears twice (also {there}); leave one")
                own.setdefault(form, (len(pairs), column, counterpart))
        pairs.append((words[0], words[1]))
        written |= own
        first |= dict.fromkeys(own, row.where)
    longest = sorted(written, key=len, reverse=True)
    return Swaps(tuple(pairs), written, re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest))})(?!\w)"))


def _forms(word: str) -> tuple[str, str, str]:
    """A word as it is, with a capital, and all in capitals."""
    return word, word[:1].upper() + word[1:], word.upper()


def swap(text: str, swaps: Swaps) -> tuple[str, list[tuple[int, int]]]:
    """(The text with every listed word swapped, the pair and the column of each such word)."""
    found: list[tuple[int, int]] = []

    def counterpart(match: re.Match[str]) -> str:
        number, column, other = swaps.written[match[0]]
        found.append((number, column))
        return other

    return swaps.pattern.sub(counterpart, text), found


def swapped_texts(examples: Sequence[Example], swaps: Swaps) -> tuple[list[Swapped], dict[str, int]]:
    """(Examples with a listed word and their swapped versions, each comparison once; counts: all `texts`, those
    `without` such a word, `repeated` comparisons). Raises DataError if no example has one."""
    kept: dict[frozenset[tuple[str, ...]], Swapped] = {}
    without = 0
    for each in examples:
        texts = (each.text,) if each.pair is None else (each.text, each.pair)
        swapped, found = zip(*(swap(text, swaps) for text in texts), strict=True)
        met = [one for of_text in found for one in of_text]
        if not met:
            without += 1
            continue
        columns = {column for _, column in met}
        own = Swapped(
            texts,
            swapped,
            tuple(sorted({number for number, _ in met})),
            columns.pop() if len(columns) == 1 else None,
            each.where,
        )
        kept.setdefault(frozenset((texts, swapped)), own)
    if not kept:
        raise DataError(f"none of {len(examples):,} texts holds a listed word; are they spelled alike, as whole words?")
    counts = {"texts": len(examples), "without": without, "repeated": len(examples) - without - len(kept)}
    return [*kept.values()], counts


# -- of a masked language model ---------------------------------------------------------------------------


def crows_pairs(swapped: Iterable[Swapped]) -> list[CrowsPair]:
    """Both `versions` of each text as a pair, to be scored as those of CrowS-Pairs."""
    return [CrowsPair(each.versions[0][0], each.versions[1][0], True, "", each.where) for each in swapped]


def language_scores(nats: np.ndarray, swapped: Sequence[Swapped], swaps: Swaps) -> dict[str, Any]:
    """`first`, the percentage of texts whose version with words of the first column is likelier (a tie is not), and
    `nats`, by how much on average; the same `by` pair of words; and the texts that differ `most`.

    nats (n, 2): log-likelihoods of `versions`, each with words of one column."""
    difference = nats[:, 0] - nats[:, 1]

    def scores(mine: np.ndarray) -> dict[str, Metric]:
        return {"first": percent(difference[mine] > 0), **_means({"nats": difference[mine]})}

    found = {"metrics": scores(np.arange(len(swapped))), "by": _by_pair(swapped, swaps, scores)}
    found["ties"] = int((difference == 0).sum())
    largest = np.argsort(-np.abs(difference), kind="stable")[:MOST].tolist()
    found["most"] = [_described(swapped[i]) | {"nats": float(difference[i])} for i in largest]
    return found


# -- of a classifier --------------------------------------------------------------------------------------


def label_scores(
    chances: np.ndarray,
    said: Sequence[tuple[Any, Any]],
    labels: Sequence[str],
    swapped: Sequence[Swapped],
    swaps: Swaps,
) -> dict[str, Any]:
    """`flips`, the percentage of texts whose prediction changes, and `change`, the mean over texts of the largest
    absolute change of a probability; the same `by` pair of words; for each of `labels` the mean `absolute` and `signed`
    change of its probability; and the texts that change `most`.

    chances (n, 2, C): probabilities for `versions`; said: the predictions for them. A signed change is from the second
    column's words to the first's, and only over texts with words of one column."""
    change = chances[:, 0] - chances[:, 1]  # (n, C)
    largest, flips = np.abs(change).max(axis=1), np.array([one != other for one, other in said])
    directed = np.array([each.column is not None for each in swapped])

    def scores(mine: np.ndarray) -> dict[str, Metric]:
        return {"flips": percent(flips[mine]), **_means({"change": largest[mine]})}

    absolute = _means({label: np.abs(change[:, i]) for i, label in enumerate(labels)})
    signed = _means({label: change[directed, i] for i, label in enumerate(labels)})
    found = {"metrics": scores(np.arange(len(swapped))), "by": _by_pair(swapped, swaps, scores)}
    found["labels"] = {label: {"absolute": absolute[label], "signed": signed[label]} for label in labels}
    found["most"] = [
        _described(swapped[i]) | {"change": float(largest[i]), "predictions": [*said[i]]}
        for i in np.argsort(-largest, kind="stable")[:MOST].tolist()
    ]
    return found


def _means(numbers: dict[str, np.ndarray]) -> dict[str, Metric]:
    """Means of the numbers (n,) of each name, with their intervals."""
    values = np.stack([*numbers.values()], axis=1)
    records = np.concatenate([values, np.ones_like(values)], axis=1)
    return with_intervals(records, partial(weighted_means, names=[*numbers]), len(values))


def _by_pair(swapped: Sequence[Swapped], swaps: Swaps, scores: Any) -> dict[str, dict[str, Metric]]:
    """`scores` of the texts of each pair of words; a text with words of several pairs counts for each."""
    members: dict[int, list[int]] = {}
    for i, each in enumerate(swapped):
        for number in each.pairs:
            members.setdefault(number, []).append(i)
    return {" / ".join(swaps.pairs[number]): scores(np.array(mine)) for number, mine in sorted(members.items())}


def _described(each: Swapped) -> dict[str, Any]:
    return {"where": each.where, "versions": [list(version) for version in each.versions]}

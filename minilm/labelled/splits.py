"""Splitting labelled data into train and dev or folds, and checks of their labels and repeated texts."""

import hashlib
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from statistics import pstdev
from typing import Any, NamedTuple

from minilm.errors import ConfigError, DataError, did_you_mean
from minilm.labelled.examples import Choice, Question, Tagged, as_text
from minilm.labelled.tables import listed, shown

SHOWN = 3  # pairs of rows shown as examples
WIDE = 10.0  # standard deviation of regression labels above which a note is given


# -- labels -------------------------------------------------------------------------------------------


def check_labels(train: Sequence[Any], dev: Sequence[Any]) -> tuple[str, ...]:
    """Notes on the labels of train and dev, or on the answers if they are Questions. Raises DataError if nothing can be
    learned from `train`, or if it has none of the labels of `dev`."""
    if train and isinstance(train[0], Question):
        if not any(each.answers for each in train):
            raise DataError(f"{train[0].where}: no training question has an answer, this one included; give some")
        silent = sum(not each.answers for each in dev)
        if silent and all(each.answers for each in train):
            return (f"questions without an answer: {silent:,}, but none in training: each will get one",)
        return ()
    if train and isinstance(train[0], Choice):
        return ()
    several = train and isinstance(_target(train[0]), tuple)
    targets = {frozenset(own) if several else own for own in map(_target, train)}
    if len(targets) == 1 and not isinstance(train[0], Tagged):
        only = _target(train[0])
        only = as_text(only, train[0].where, "label") if isinstance(only, float) else only
        what = f"has the label {shown(only)}" if only not in (None, ()) else "has no label"
        raise DataError(f"{train[0].where}: every training row {what}, as this one; training needs two labels or more")
    in_train = {label for example in train for label in labels_of(example)}
    if train and isinstance(train[0], Tagged) and not in_train:
        raise DataError(f"{train[0].where}: no training sentence has a tag but O, this one included; give tags")
    in_dev = Counter(label for example in dev for label in labels_of(example))
    new = {label: count for label, count in in_dev.items() if label not in in_train}
    if not new:
        return ()
    first = next(example.where for example in dev if not new.keys().isdisjoint(labels_of(example)))
    mend = did_you_mean(next(iter(new)), in_train)
    if new == in_dev:
        trained = listed(sorted(in_train))
        raise DataError(f"{first}: the labels here are {listed(new)}, in training {trained}; none is the same{mend}")
    counts = ", ".join(f"{shown(label)} {count:,}" for label, count in new.items())
    return (f"labels not in the training data: {counts}; the first in {first}{mend}",)


def wide_labels(train: Sequence[Any], task: str) -> tuple[str, ...]:
    """A note if labels of regression are far from a standard deviation of 1."""
    if task == "regression" and (spread := pstdev(each.label for each in train)) > WIDE:
        return (f"the labels have standard deviation {spread:.3g}; regression learns faster near 1: scale them",)
    return ()


def labels_of(example: Any) -> tuple[str, ...]:
    """Names of an example's labels; of a sentence its entity types, each once; () if its labels are no names."""
    if isinstance(example, Tagged):
        return tuple(dict.fromkeys(tag[2:] for tag in example.tags or () if tag != "O"))
    label = getattr(example, "label", None)
    return (label,) if isinstance(label, str) else label if isinstance(label, tuple) else ()


def classes_of(examples: Sequence[Any]) -> list[str]:
    """Class of each example, by which splits are stratified: its label, and of several the rarest; for a question
    whether it has an answer."""
    counts = Counter(label for each in examples for label in labels_of(each))

    def of(example: Any) -> str:
        if isinstance(example, Question):
            return "answered" if example.answers else "unanswered"
        return "" if isinstance(example, Tagged) else min(labels_of(example), key=lambda x: (counts[x], x), default="")

    return [*map(of, examples)]


def _target(example: Any) -> Any:
    """The label, tags or answers of an example."""
    return next((getattr(example, name) for name in ("label", "tags", "answers") if hasattr(example, name)), None)


# -- a split ------------------------------------------------------------------------------------------


def split_dev(
    examples: Sequence[Any], fraction: float, seed: int, groups: Sequence[Hashable] | None = None
) -> tuple[list, list]:
    """Split into (train, dev), both in the order of `examples`; a seed gives the same split everywhere. dev has
    `fraction` of the rows, rounded, stratified by class if labels are classes; at least one row of a class stays in
    train, unless rows have several labels each, and too many of these are rare. groups: one per example (None: a
    question's context); a group stays together, and dev then has at most that many rows, or the smallest group. Raises
    ConfigError, DataError."""
    groups = _contexts(examples) if groups is None else groups
    if not 0 < fraction < 1:
        raise ConfigError(f"the fraction of rows to hold out is {fraction}; give one between 0 and 1")
    if groups is not None and len(groups) != len(examples):
        raise ConfigError(f"{len(groups)} groups and {len(examples)} examples; give each example its group")
    classes = classes_of(examples)
    sizes = Counter(classes)
    wanted = max(1, int(len(examples) * fraction + 0.5))
    units: dict[Hashable, list[int]] = {}
    for i in range(len(examples)):
        units.setdefault(i if groups is None else groups[i], []).append(i)
    order = sorted(units.values(), key=lambda unit: hashlib.sha256(f"{seed} {unit[0]}".encode()).digest())
    taken: Counter[str] = Counter()
    dev: set[int] = set()
    # first each class's quota; then, if some class is too small for its quota, any class; where rows have several
    # labels each, and too many of these are rare, any row
    quotas = _quotas(sizes, wanted)
    passes = [{name: min(quotas[name], size - 1) for name, size in sizes.items()}]
    passes.append({name: size - 1 for name, size in sizes.items()})
    has_several = bool(examples) and isinstance(getattr(examples[0], "label", None), tuple)
    if has_several and sum(size - 1 for size in sizes.values()) < wanted < len(examples):
        passes.append(sizes)
    for most in passes:
        for unit in order if len(dev) < wanted else ():
            counts = Counter(classes[i] for i in unit)
            fits = all(taken[name] + count <= most[name] for name, count in counts.items())
            if fits and unit[0] not in dev and len(dev) + len(unit) <= wanted:
                dev.update(unit)
                taken.update(counts)
    for unit in sorted(order, key=len) if groups is not None and not dev else ():
        if all(count < sizes[name] for name, count in Counter(classes[i] for i in unit).items()):
            dev.update(unit)
            break
    if not dev:
        what = "classes" if groups is None else "classes or groups"
        where = f"{examples[0].where}: " if examples else ""
        what = f"{where}none of {len(examples):,} rows can be held out: {what} too small"
        raise DataError(f"{what}; give more rows, or, where these are not folds, dev examples")
    parts = [[], []]
    for i, example in enumerate(examples):
        parts[i in dev].append(example)
    return parts[0], parts[1]


def split_by_text(
    examples: Sequence[Any], fraction: float, seed: int, groups: Sequence[Hashable] | None = None
) -> tuple[list, list]:
    """`split_dev`, but without groups rows with the same texts stay together, unless dev then loses classes or more
    than half of its rows."""
    by_row = split_dev(examples, fraction, seed, groups)
    if groups is not None or _contexts(examples) is not None:
        return by_row
    with suppress(DataError):
        by_text = split_dev(examples, fraction, seed, [_content(each) for each in examples])
        usual, dev = ([_target(each) for each in part] for _, part in (by_row, by_text))
        classes, found = ({label for label in part if isinstance(label, str)} for part in (usual, dev))
        if classes == found and len(usual) / 2 <= len(dev) <= len(usual):
            return by_text
    return by_row


def folds(
    examples: Sequence[Any], k: int, seed: int, groups: Sequence[Hashable] | None = None
) -> Iterator[tuple[list, list]]:
    """The k splits (rest, fold) of cross-validation, each in the order of `examples`. Folds are stratified by class;
    with groups as far as whole groups can be, the largest first to where its classes are rarest, or else to the
    smallest fold. Without groups rows with the same texts stay together. A seed gives the same folds everywhere. Raises
    DataError for fewer than k different rows, or groups."""
    groups = _contexts(examples) if groups is None else groups
    keys = [_content(each) for each in examples] if groups is None else list(groups)
    units: dict[Hashable, list[int]] = {}
    for i, key in enumerate(keys):
        units.setdefault(key, []).append(i)
    if len(units) < k:
        what = "rows of different texts" if groups is None else "groups"
        raise DataError(f"{len(units)} {what} are too few for {k} folds; lower --kfold")

    classes = classes_of(examples)

    def order(unit: list[int]) -> tuple[int, str, bytes]:
        digest = hashlib.sha256(f"{seed} {unit[0]}".encode()).digest()
        return 0 if groups is None else -len(unit), classes[unit[0]], digest

    part_of, sizes, inside = [0] * len(examples), [0] * k, [Counter() for _ in range(k)]
    whole = Counter(classes)

    def rarest(unit: list[int]) -> int:
        """The part in which a group's classes are rarest, among equal ones the smallest; the group is counted there."""
        own = Counter(classes[i] for i in unit)
        shares = [sum(count * there[name] / whole[name] for name, count in own.items()) for there in inside]
        part = min(range(k), key=lambda part: (shares[part], sizes[part]))
        sizes[part] += len(unit)
        inside[part] += own
        return part

    for number, unit in enumerate(sorted(units.values(), key=order)):
        part = number % k if groups is None else rarest(unit)
        for i in unit:
            part_of[i] = part
    for part in range(k):
        rest = [each for each, own in zip(examples, part_of, strict=True) if own != part]
        yield rest, [each for each, own in zip(examples, part_of, strict=True) if own == part]


def _contexts(examples: Sequence[Any]) -> list[str] | None:
    """Contexts of questions, their groups; None if the examples are no questions."""
    return [each.context for each in examples] if examples and isinstance(examples[0], Question) else None


def _quotas(sizes: Counter[str], wanted: int) -> dict[str, int]:
    """`wanted` rows shared among classes by their size: whole parts, then one each by the largest remainder."""
    total = sizes.total()
    quotas = {name: size * wanted // total for name, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda name: (-(sizes[name] * wanted % total), name))
    for name in by_remainder[: wanted - sum(quotas.values())]:
        quotas[name] += 1
    return quotas


# -- repeated texts -----------------------------------------------------------------------------------


class Repeats(NamedTuple):
    """Rows whose texts occur elsewhere, too. Texts that differ only in case or white space count as the same."""

    count: int
    contradicted: int  # how many of them have another label there
    first: tuple[tuple[str, str], ...]  # (file:line, file:line of the same text) of a few


def duplicates(examples: Sequence[Any]) -> Repeats:
    """Rows whose texts occur in an earlier row."""
    seen: dict[tuple, Any] = {}
    again = []
    for example in examples:
        if (content := _content(example)) in seen:
            again.append((example, seen[content]))
        else:
            seen[content] = example
    return _repeats(again)


def overlap(train: Sequence[Any], dev: Sequence[Any]) -> Repeats:
    """Rows of dev whose texts occur in train; the pairs are (in dev, in train)."""
    seen = {_content(example): example for example in reversed(train)}
    return _repeats([(example, seen[content]) for example in dev if (content := _content(example)) in seen])


def share_a_text(train: Sequence[Any], dev: Sequence[Any]) -> int:
    """How many pairs of dev have one text, and not both, in common with a pair of train, in the same place."""
    known, asked = ([_content(each) for each in part if getattr(each, "pair", None)] for part in (train, dev))
    whole, firsts, seconds = {*known}, {first for first, _ in known}, {second for _, second in known}
    return sum((a, b) not in whole and (a in firsts or b in seconds) for a, b in asked)


def _repeats(again: list[tuple[Any, Any]]) -> Repeats:
    contradicted = sum(_target(one) != _target(other) for one, other in again)
    return Repeats(len(again), contradicted, tuple((one.where, other.where) for one, other in again[:SHOWN]))


def texts_of(example: Any) -> tuple[str, ...]:
    """All texts of an example: its fields without id, labels and place."""
    fields = example._asdict()
    texts = [fields[name] for name in fields if name not in ("id", "label", "tags", "answers", "where")]
    return tuple(chain.from_iterable(text if isinstance(text, tuple) else (text,) for text in texts if text))


def _content(example: Any) -> tuple[str, ...]:
    return tuple(map(_same, texts_of(example)))


def _same(text: str) -> str:
    return " ".join(text.split()).casefold()

"""Embedded labelled data set: documentation texts of Python, NumPy and PyTorch, labelled by library."""

import re
from collections import defaultdict
from pathlib import Path

from minilm.data.corpus import docstrings, document_hash, embedded_sources
from minilm.labelled.examples import Example

PER_LIBRARY = 1500  # training examples at most; dev and test have a quarter as many each, at most
CHARACTERS = 300  # used of each text, from its beginning
# what would give a library away: dotted paths, its names, terms of its own
GIVEAWAY = re.compile(
    r"\b(?:[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+"
    r"|\w*(?i:numpy|ndarray|torch)\w*|(?i:c?python\d*|py|np|scipy|tensors?|cuda|aten|stdlib|pep))\b"
)
BLANK = "_"


def embedded_examples() -> tuple[list[Example], list[Example], list[Example]]:
    """(train, dev, test), each with at most as many texts of a library as PER_LIBRARY says, and no file in two splits.
    A file's split depends on its place in its library alone, not on where that is installed."""
    files: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    for name, path in embedded_sources():
        library, _, place = name.partition("/")
        files[library].append((place, path))
    splits: tuple[list[Example], ...] = ([], [], [])
    sizes = PER_LIBRARY, PER_LIBRARY // 4, PER_LIBRARY // 4
    seen: set[str] = set()
    for library, paths in files.items():
        taken: list[list[Example]] = [[], [], []]
        for inside, path in sorted(paths, key=lambda each: document_hash(each[0])):
            if all(len(found) == size for found, size in zip(taken, sizes, strict=True)):
                break
            place = (0, 0, 0, 0, 1, 2)[document_hash(inside) % 6]
            for text in docstrings([path]):
                blank = " ".join(GIVEAWAY.sub(BLANK, text[: 2 * CHARACTERS])[:CHARACTERS].split())
                if blank not in seen and len(taken[place]) < sizes[place]:
                    taken[place].append(Example(blank, label=library, where=path.name))
                seen.add(blank)
        for split, found in zip(splits, taken, strict=True):
            split += found
    return splits

"""Embedded labelled data set: documentation texts of Python, NumPy and PyTorch, labelled by library."""

import re
from collections import defaultdict
from pathlib import Path

from minilm.data.corpus import docstrings, document_hash, embedded_sources
from minilm.data.examples import Example

PER_LIBRARY = 1500  # training examples; dev and test have a quarter as many each
CHARACTERS = 300  # used of each text, from its beginning
# words that would give a library away: its names, terms of its own, dotted paths
GIVEAWAY = re.compile(
    r"\b(?:(?i:c?python\d*|py|numpy|np|ndarrays?|scipy|(?:py)?torch|tensors?|cuda|aten|stdlib|pep)"
    r"|[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+)\b"
)
BLANK = "_"


def embedded_examples() -> tuple[list[Example], list[Example], list[Example]]:
    """(train, dev, test), with the three libraries equally frequent and no file in two splits."""
    files: dict[str, list[Path]] = defaultdict(list)
    for name, path in embedded_sources():
        files[name.split("/")[0]].append(path)
    splits: tuple[list[Example], ...] = ([], [], [])
    sizes = PER_LIBRARY, PER_LIBRARY // 4, PER_LIBRARY // 4
    seen: set[str] = set()
    for library, paths in files.items():
        taken: list[list[Example]] = [[], [], []]
        for path in sorted(paths, key=lambda path: document_hash(path.name + path.parent.name)):
            if all(len(found) == size for found, size in zip(taken, sizes, strict=True)):
                break
            place = (0, 0, 0, 0, 1, 2)[document_hash(path.as_posix().rpartition(f"{library}/")[2]) % 6]
            for text in docstrings([path]):
                blank = GIVEAWAY.sub(BLANK, " ".join(text[:CHARACTERS].split()))
                if blank not in seen and len(taken[place]) < sizes[place]:
                    taken[place].append(Example(blank, label=library, where=path.name))
                seen.add(blank)
        for split, found in zip(splits, taken, strict=True):
            split += found
    return splits

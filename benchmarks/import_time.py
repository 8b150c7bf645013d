"""How long a program waits for its imports: torch alone, minilm, and transformers.

    python -m benchmarks.import_time

Each import runs in fresh interpreters, one kind after the other in turn, with compiled bytecode and the files in the
system's memory, as on a second start. Seconds of the import statement, and of the whole process.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from importlib import metadata

from benchmarks.machine import ROOT, cpu
from minilm import cli

BASE = "import torch"
STATEMENTS = (
    BASE,
    "import minilm",
    "from minilm import BertModel, BertTokenizer",
    "from transformers import BertModel, BertTokenizer",
)
CHILD = "import time; began = time.perf_counter(); {}; print(time.perf_counter() - began)"
LIBRARIES = ("torch", "numpy", "tokenizers", "transformers")


@dataclass(frozen=True)
class Args:
    """Time the imports and print a table of medians."""

    runs: int = 7
    """Of each import."""


def main(args: Args) -> None:
    cli.check_ranges(args, {"runs": (1, 1000)})
    found = {statement: [] for statement in STATEMENTS}
    with tempfile.TemporaryDirectory() as bytecode:
        for statement in STATEMENTS:
            measured(statement, bytecode)  # which compiles it
        for _ in range(args.runs):
            for statement in STATEMENTS:
                found[statement].append(measured(statement, bytecode))
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in LIBRARIES)
    print(f"{len(os.sched_getaffinity(0))} cores of an {cpu()}, Python {sys.version.split()[0]}, {versions}")
    print(f"{date.today():%-d %B %Y}, median of {args.runs}\n")
    print(f"| statement | seconds | beside `{BASE}` | whole process | beside `{BASE}` |\n|---|---|---|---|---|")
    medians = {
        statement: [statistics.median(seconds) for seconds in zip(*each, strict=True)]
        for statement, each in found.items()
    }
    for statement, seconds in medians.items():
        cells = [f"{own:.2f} | {own - base:+.2f}" for own, base in zip(seconds, medians[BASE], strict=True)]
        print(f"| `{statement}` | {' | '.join(cells)} |")


def measured(statement: str, bytecode: str) -> tuple[float, float]:
    """Seconds of the statement in a fresh interpreter, and of the whole process."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"HF_HUB_OFFLINE": "1", "PYTHONPYCACHEPREFIX": bytecode}
    began = time.perf_counter()
    command = [sys.executable, "-c", CHILD.format(statement)]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout), time.perf_counter() - began


if __name__ == "__main__":
    cli.run(main, Args)

"""Results, kept as lines of JSON in a file that only grows: what is there need not be measured again."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any


def read(file: Path | None) -> list[dict[str, Any]]:
    """All results of a file. A line that is not whole, for its process was killed, is none."""
    found = []
    for line in file.read_text(encoding="utf-8").splitlines() if file is not None and file.exists() else []:
        with suppress(ValueError):
            found.append(json.loads(line))
    return found


def keep(file: Path | None, rows: list[dict[str, Any]]) -> None:
    """Append results, in one write, and after a line that is not whole on one of their own."""
    if file is None:
        return
    with file.open("a+b") as lines:
        lines.seek(max(0, lines.tell() - 1))
        torn = lines.read(1) not in (b"\n", b"")
        lines.write((b"\n" if torn else b"") + "".join(json.dumps(row) + "\n" for row in rows).encode())

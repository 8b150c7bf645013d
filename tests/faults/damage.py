"""A checkpoint whose bytes have changed on the disk: it must be passed over, and the file be named."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

from minilm.checkpoint.store import Store, checkpoints
from tests.faults.victim import Victim

PAGE = 4096


def truncated(data: bytes, rng: random.Random) -> bytes:
    """To a random length, or to one where a format has a boundary."""
    ends = [0, 1, 7, 8, 9, len(data) - 1, rng.randrange(len(data))]
    return data[: rng.choice([end for end in ends if end < len(data)])]


def flipped(data: bytes, rng: random.Random) -> bytes:
    """One bit of it."""
    at, changed = rng.randrange(len(data)), bytearray(data)
    changed[at] ^= 1 << rng.randrange(8)
    return bytes(changed)


def zeroed(data: bytes, rng: random.Random) -> bytes:
    """One page of it, as after a crash of some file systems."""
    begin = rng.randrange(-(-len(data) // PAGE)) * PAGE
    return data[:begin] + bytes(len(data[begin : begin + PAGE])) + data[begin + PAGE :]


def longer(data: bytes, rng: random.Random) -> bytes:
    return data + rng.randbytes(rng.randint(1, 100))


BYTES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "truncated": truncated,
    "flipped": flipped,
    "zeroed": zeroed,
    "longer": longer,
}
FILES = "swapped", "of the one before", "missing"


def damaged(victim: Victim, out: Path, seed: int) -> tuple[str, str]:
    """(what was done, what is wrong): trial number `seed` on the newer one of two checkpoints, which is mended again.
    out: is kept from trial to trial."""
    if not out.exists():
        shutil.copytree(victim.base / "half", out)
    (_, before), (_, newest) = checkpoints(out)
    rng = random.Random(seed)
    files = sorted(path for path in newest.rglob("*") if path.is_file() and path.name != "README.md")
    file = files[seed % len(files)]
    kind = [*BYTES, *FILES][seed // len(files) % (len(BYTES) + len(FILES))]
    kept, name = file.read_bytes(), file.relative_to(newest)
    other = rng.choice([path for path in files if path != file])
    if kind == "missing":
        file.unlink()
    else:
        of_others = {"swapped": other, "of the one before": before / name}
        made = of_others[kind].read_bytes() if kind in of_others else BYTES[kind](kept, rng)
        file.write_bytes(made)
        if made == kept:
            return f"{kind} {name}, the same bytes", ""  # as the vocabulary of every checkpoint
    lines: list[str] = []
    try:
        found = Store(out).latest(lines.append)
    finally:
        file.write_bytes(kept)
    lost = ""
    if found != before:
        lost = f"goes on from {found}"
    elif not (len(lines) == 1 and newest.name in lines[0] and file.name in lines[0]):
        lost = f"does not say which file: {lines}"
    return f"{kind} {name}", lost

"""Where a figure was measured, and of which code."""

import hashlib
import os
import re
import subprocess
import time
from contextlib import suppress
from datetime import date
from functools import partial
from importlib import metadata
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
COPIED = {"cpu": 1 << 28, "cuda": 1 << 32}  # bytes; on a GPU a copy of fewer takes little longer than its launch


def cpu() -> str:
    """The processor's name, where the system tells it."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")


def cores() -> str:
    """The cores that it runs on, and their vector instructions."""
    return f"{len(os.sched_getaffinity(0))} cores of an {cpu()}, {torch.backends.cpu.get_cpu_capability()}"


def machine() -> dict[str, str]:
    """Where it runs, and by which libraries."""
    return {"cpu": cores()} | {name: f"{name} {metadata.version(name)}" for name in ("torch", "transformers")}


def busy(seconds: float = 2.0) -> float:
    """How many cores others keep busy while this process waits so long, the host's other guests among them; where /proc
    does not tell, how many processes ran in the last minute."""
    file = Path("/proc/stat")
    if not file.exists():
        return os.getloadavg()[0]

    def ticks() -> int:
        user, nice, system, _, _, *rest = map(int, file.read_text().split("\n", 1)[0].split()[1:9])  # idle, waiting
        return user + nice + system + sum(rest)

    before = ticks()
    time.sleep(seconds)
    return (ticks() - before) / os.sysconf("SC_CLK_TCK") / seconds


def clock_mhz(device: torch.device) -> float | None:
    """The clock of a GPU, or of this process's cores on average, at this moment; None where nothing tells it."""
    if device.type == "cuda":
        with suppress(Exception):  # without NVML, or where it does not tell
            return float(torch.cuda.clock_rate(device))
        return None
    file = Path("/proc/cpuinfo")
    text = file.read_text() if file.exists() else ""
    told = re.findall(r"processor\s*:\s*(\d+)\n.*?cpu MHz\s*:\s*([\d.]+)", text, re.DOTALL)
    clocks = [float(clock) for core, clock in told if int(core) in os.sched_getaffinity(0)]
    return sum(clocks) / len(clocks) if clocks else None


def copy_peak(device: torch.device, seconds: float = 0.5) -> float:
    """Bytes read and written per second, of more than caches hold, by the fastest copy or addition in place in about so
    many seconds: a CPU also reads what a copy writes over, which does not count."""
    size = COPIED.get(device.type, COPIED["cpu"])
    source = torch.ones(size // 4, device=device)
    target, best, end = source.clone(), 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        for move, moved in ((target.copy_, 2), (target.add_, 3)):
            began = time.perf_counter()
            move(source)
            float(target[0])  # waits for the device
            best = max(best, moved * size / (time.perf_counter() - began))
    return best


def weights_of(model: Path | str) -> str:
    """What the weights of a directory are known by, wherever it is."""
    with (Path(model) / "model.safetensors").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def when() -> dict[str, str]:
    """The day, and which commit; where none is checked out, what the code is known by."""
    commit, git = "", partial(subprocess.run, cwd=ROOT, capture_output=True, text=True)
    with suppress(FileNotFoundError):
        commit = git(["git", "describe", "--always"]).stdout.strip()
        others = [":!benchmarks/results", ":!*.md"]  # what figures are written into, and what is said of them
        if commit and git(["git", "diff", "--quiet", "HEAD", "--", ".", *others]).returncode:
            commit += "-dirty"
    return {"date": str(date.today()), "commit": commit or f"files-{_code()}"}


def _code() -> str:
    """Of what is measured and what measures: 12 hexadecimal digits."""
    digest = hashlib.sha256()
    for file in sorted(file for room in ("minilm", "benchmarks") for file in (ROOT / room).rglob("*.py")):
        digest.update(f"{file.relative_to(ROOT)}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:12]

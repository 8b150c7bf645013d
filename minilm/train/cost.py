"""Cost of training: operations counted from a model's shape, matmul throughput and energy measured."""

import contextlib
import time
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from torch.nn.functional import linear

from minilm.batch import are_few
from minilm.data.loader import Loader
from minilm.machine import onednn
from minilm.machine.memory import is_out_of_memory
from minilm.model.attention import are_fewest
from minilm.model.encoder import EncoderConfig

POWERCAP = Path("/sys/class/powercap")


def training_flops(cfg: EncoderConfig, tokens: int, length: int, targets: int, read: int | None = None) -> int:
    """Floating-point operations of the matrix products of forward and backward (twice the forward).

    tokens: positions computed, padding included; length: tokens per row; targets: positions multiplied with the word
    table; read: positions whose states the last layer computes (None: all), without keys and values of tokens if they
    `are_fewest`. Kaplan et al. 2020, sec. 2.1, with attention counted in full. Recomputation by gradient checkpointing
    is not counted, nor is a head for pairs.
    """
    D, F, E = cfg.hidden_size, cfg.intermediate_size, cfg.embedding_size or cfg.hidden_size
    mlp = (3 if cfg.mlp == "gated" else 2) * D * F
    attention = 4 * D * D + 2 * length * D
    layers, last, of_tokens = (len(cfg.layers) - 1) * (attention + mlp), attention - 2 * D * D + mlp, 2 * D * D
    if read is None:
        read = tokens
    elif cfg.layers[-1].rope_base is None and are_fewest(read * length / tokens, cfg.num_attention_heads, D):
        last, of_tokens = 4 * D * D + 2 * length * D * cfg.num_attention_heads + mlp, 0
    head = D * E + E * cfg.vocab_size
    return 3 * 2 * (tokens * (layers + of_tokens) + read * last + targets * head)


def step_flops(cfg: EncoderConfig, tokens: int, length: int, targets: int, pairs: bool = False) -> int:
    """`training_flops` of a step whose rows have equally many targets. pairs: whether there is a head for pairs."""
    is_few = are_few(targets * length // tokens, length) and not pairs
    return training_flops(cfg, tokens, length, targets, targets if is_few else None)


def run_flops(cfg: EncoderConfig, loader: Loader, pairs: bool = False) -> int:
    """`step_flops` summed over all steps of a run, in all processes."""

    def of(steps: range) -> int:
        """Operations of steps with rows of one length, by bisection: in a stretch the targets only rise or only fall,
        so equal ends mean equal steps between."""
        if not steps:
            return 0
        first, last = loader.positions(steps[0]), loader.positions(steps[-1])
        if first == last:
            return len(steps) * step_flops(cfg, *first, pairs)
        middle = len(steps) // 2
        return of(steps[:middle]) + of(steps[middle:])

    ends, cycle = [0, *accumulate(each.steps for each in loader.stretches)], loader.cycle
    return sum(of(range(i, end, cycle)) for begin, end in pairwise(ends) for i in range(begin, min(end, begin + cycle)))


def matmul_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.5) -> float:
    """FLOPs per second of the fastest square matrix product found in about `seconds`, computed as layers compute
    theirs: the machine's peak. Smaller products tell it where memory runs out."""
    size = 512 if device.type == "cpu" else 2048
    with torch.no_grad(), onednn.chosen(device, dtype):
        first = torch.ones(128, 128, device=device, dtype=dtype)
        float(linear(first, first)[0, 0])  # libraries are loaded before the clock runs
        best, end = 0.0, time.perf_counter() + seconds
        try:
            while size <= (4096 if device.type == "cpu" else 16_384):
                a = torch.randn(size, size, device=device).to(dtype)
                for _ in range(10):
                    began = time.perf_counter()
                    float(linear(a, a)[0, 0])  # waits for the device
                    now = time.perf_counter()
                    best = max(best, 2 * size**3 / (now - began))
                    if now + 8 * (now - began) > end:  # neither this size again nor, eightfold, the next one
                        return best
                size *= 2
        except (RuntimeError, MemoryError) as error:
            if not best or not is_out_of_memory(error):
                raise
    return best


class EnergyMeter:
    """Energy meter in joules, by the GPU's sensor (NVML) on a GPU, else the CPU packages' (RAPL)."""

    def __init__(self, device: torch.device) -> None:
        self._gpu, self._before, self._of_gpu = None, {}, device.type != "cpu"
        if device.type == "cuda":
            with contextlib.suppress(ImportError, RuntimeError):
                import pynvml

                with contextlib.suppress(pynvml.NVMLError):
                    pynvml.nvmlInit()
                    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
                    self._gpu = pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid)
        self.spent()

    def spent(self) -> float | None:
        """Joules since the last call; None if nothing measures them."""
        now = self._counters()
        spent = 0.0
        wraps = self._wraps(now)
        for name, value in now.items():
            more = value - self._before.get(name, value)
            spent += more if more >= 0 else more + wraps[name]
        self._before = now
        return spent if now else None

    def _counters(self) -> dict[str, float]:
        if self._gpu is not None:
            nvml, handle = self._gpu
            with contextlib.suppress(nvml.NVMLError):
                return {"gpu": nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3}
            return {}
        if self._of_gpu:  # no NVML; the CPU's energy is a small part, so it is not reported
            return {}
        found = {}
        for zone in POWERCAP.glob("intel-rapl:?"):
            with contextlib.suppress(OSError, ValueError):  # only root may read it
                if (zone / "name").read_text().startswith("package"):  # "psys" is their sum and more
                    found[str(zone)] = int((zone / "energy_uj").read_text()) / 1e6
        return found

    def _wraps(self, counters: dict[str, float]) -> dict[str, float]:
        """The value at which each counter wraps around to 0."""
        wraps = dict(self._before)  # a counter without a range only restarts when it is reset
        for zone in counters:
            with contextlib.suppress(OSError, ValueError):
                wraps[zone] = int((Path(zone) / "max_energy_range_uj").read_text()) / 1e6
        return wraps

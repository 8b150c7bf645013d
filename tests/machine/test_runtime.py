"""Device and precision as they would be chosen elsewhere, what a step draws, and signals."""

import os

import pytest
import torch

from minilm.errors import ConfigError
from minilm.machine import runtime
from minilm.machine.ranks import Ranks
from minilm.machine.runtime import DTYPES, Runtime
from minilm.model.attention import fastest_backend
from minilm.train.loop import seed_step


@pytest.fixture
def machine(monkeypatch):
    """machine(cuda=(8, 0), gpus=1, mps=..., amx=..., avx512=...): let torch say that it has these."""
    precision = torch.get_float32_matmul_precision()
    threads = torch.get_num_threads()

    def pretend(cuda=None, gpus=1, mps=False, amx=False, avx512=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda is not None)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus if cuda else 0)
        monkeypatch.setattr("minilm.machine.runtime._check_kernels", lambda device: None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: cuda)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Some GPU")
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)

    yield pretend
    torch.set_float32_matmul_precision(precision)
    torch.set_num_threads(threads)


def test_a_gpu_without_kernels_is_refused(machine, monkeypatch):
    def ones(*of, device):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore lines")

    check = runtime._check_kernels
    machine(cuda=(7, 0))
    monkeypatch.setattr(runtime, "_check_kernels", check)
    monkeypatch.setattr(torch, "ones", ones)
    with pytest.raises(ConfigError, match=r"^Some GPU: CUDA error: no kernel image.*; install a torch for it"):
        Runtime.choose()


@pytest.mark.parametrize(
    ("has", "device", "precision", "reason"),
    [
        ({}, "cpu", "fp32", "no native 16-bit matmul on this cpu"),
        ({"amx": True}, "cpu", "bf16", "this CPU has AMX"),
        ({"avx512": True}, "cpu", "bf16", "this CPU has AVX512-BF16"),
        ({"amx": True, "avx512": True}, "cpu", "bf16", "this CPU has AMX"),
        ({"cuda": (7, 0)}, "cuda", "fp16", "this GPU has no native bf16; with GradScaler"),  # V100
        ({"cuda": (7, 5)}, "cuda", "fp16", "this GPU has no native bf16; with GradScaler"),  # T4
        ({"cuda": (8, 0)}, "cuda", "bf16", "native on this GPU"),  # A100
        ({"cuda": (9, 0), "amx": True}, "cuda", "bf16", "native on this GPU"),  # H100
        ({"cuda": (12, 0)}, "cuda", "bf16", "native on this GPU"),  # a tuple, not a string
        ({"mps": True}, "mps", "fp32", "no native 16-bit matmul on this mps"),
        ({"cuda": (8, 6), "mps": True}, "cuda", "bf16", "native on this GPU"),
    ],
    ids=str,
)
def test_choose(machine, has, device, precision, reason):
    machine(**has)
    chosen = Runtime.choose()
    assert (chosen.device.type, chosen.precision, chosen.reason) == (device, precision, reason)
    assert chosen.threads == torch.get_num_threads()
    where = {"cpu": f"cpu, {chosen.threads} threads", "cuda": "Some GPU", "mps": "Apple GPU (mps)"}[device]
    assert chosen.describe() == f"{where}, {precision} ({reason})"
    if device == "cuda":
        assert torch.get_float32_matmul_precision() == "high"


@pytest.mark.parametrize("has", [{}, {"cuda": (7, 5)}, {"cuda": (8, 0)}], ids=str)
@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_what_is_asked_for_is_used(machine, has, precision):
    machine(**has)
    chosen = Runtime.choose(precision=precision)
    tf32 = "; products in TF32" if has == {"cuda": (8, 0)} and precision == "fp32" else ""
    assert (chosen.precision, chosen.reason) == (precision, f"asked for{tf32}")
    assert Runtime.choose(device="cpu", precision=precision).device.type == "cpu"


@pytest.mark.parametrize(
    ("has", "device", "part"),
    [
        ({}, "cuda", "has none"),
        ({}, "cuda:0", "has none"),
        ({}, "mps", "has none"),
        ({"cuda": (8, 0), "gpus": 2}, "cuda:2", "has 2 GPU(s)"),
        ({"cuda": (8, 0), "gpus": 2}, "cuda:-1", "use auto, cuda, mps or cpu"),
        ({}, "meta", "has none"),
        ({}, "gpu", "use auto, cuda, mps or cpu"),
        ({}, "cuda:x", "use auto, cuda, mps or cpu"),
    ],
    ids=str,
)
def test_a_device_that_is_not_there_is_one_line(machine, has, device, part):
    machine(**has)
    with pytest.raises(ConfigError) as caught:
        Runtime.choose(device=device)
    assert str(caught.value).startswith(f"--device {device}: ")
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_gpu_by_number(machine):
    machine(cuda=(8, 0), gpus=2)
    assert Runtime.choose(device="cuda:1").device == torch.device("cuda:1")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_a_gpu_repeats_its_bits_where_that_is_asked_for(machine, monkeypatch, device, deterministic):
    """A CPU does anyway."""
    machine(cuda=(8, 0))
    asked = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", asked.append)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    Runtime.choose(device=device, deterministic=deterministic)
    is_set = device == "cuda" and deterministic
    assert asked == [True] * is_set
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == (":4096:8" if is_set else "")


@pytest.mark.parametrize(("local_world", "threads"), [(None, 2), ("2", 4), ("8", 1), ("99", 1)])
def test_processes_share_the_cores_of_their_machine(machine, monkeypatch, local_world, threads):
    """torchrun says one thread each, whatever the machine has; of 64 cores these may use 8."""
    machine()
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda of: range(8), raising=False)
    monkeypatch.setattr(Ranks, "join", classmethod(lambda cls: Ranks(3, 4, 1)))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if local_world:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local_world)
    chosen = Runtime.choose()
    assert chosen.ranks == Ranks(3, 4, 1)
    assert chosen.threads == torch.get_num_threads() == threads
    assert chosen.describe().startswith(f"4 processes on cpu, {threads} threads, ")
    assert Runtime.choose(threads=3).threads == 3  # asked for


def test_each_process_has_a_gpu_of_its_own(machine, monkeypatch):
    machine(cuda=(8, 0), gpus=2)
    given = []
    monkeypatch.setattr(torch.cuda, "set_device", given.append)
    monkeypatch.setattr(Ranks, "join", classmethod(lambda cls: Ranks(3, 4, 1)))
    assert Runtime.choose().device == torch.device("cuda:1")
    assert given == [torch.device("cuda:1")]


@pytest.mark.parametrize(
    ("gpus", "device", "beside", "part"),
    [
        (1, "auto", "4", r"process 2 of this machine sees 1 GPU\(s\); start at most that many .* LOCAL_RANK=0"),
        (4, "cuda:3", "4", "--device cuda:3: all processes would share it; --device cuda gives each one of its own"),
        (4, "cuda:3", None, "--device cuda:3: all processes would share it"),
    ],
)
def test_processes_that_would_share_a_gpu_are_refused(machine, monkeypatch, gpus, device, beside, part):
    machine(cuda=(8, 0), gpus=gpus)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: pytest.fail("a device was set"))
    monkeypatch.setattr(Ranks, "join", classmethod(lambda cls: Ranks(3, 4, 1)))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if beside:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", beside)
    with pytest.raises(ConfigError, match=part):
        Runtime.choose(device)


def test_a_process_alone_on_its_machine_takes_the_gpu_it_asks_for(machine, monkeypatch):
    machine(cuda=(8, 0), gpus=4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(Ranks, "join", classmethod(lambda cls: Ranks(3, 4, 0)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert Runtime.choose("cuda:3").device == torch.device("cuda:3")
    assert Runtime.choose("cuda").device == torch.device("cuda:0")


def test_threads_are_set(machine):
    machine()
    before = torch.get_num_threads()
    assert Runtime.choose(threads=before + 1).threads == before + 1
    assert torch.get_num_threads() == before + 1


@pytest.mark.parametrize(
    ("precision", "dtype", "muon", "scales"),
    [
        ("fp32", torch.float32, torch.float32, False),
        ("bf16", torch.bfloat16, torch.bfloat16, False),
        ("fp16", torch.float16, torch.float32, True),
    ],
)
def test_what_a_precision_means(cpu, precision, dtype, muon, scales):
    runtime = cpu(precision)
    assert (runtime.dtype, runtime.muon_dtype, runtime.scaler.is_enabled()) == (dtype, muon, scales)
    assert runtime.scaler is runtime.scaler
    x = torch.ones(4, 4)
    with runtime.autocast():
        assert (x @ x).dtype == dtype
        assert x.sum().dtype == torch.float32
    assert (x @ x).dtype == torch.float32


@pytest.mark.parametrize(
    ("device", "precision", "length", "dropout", "head_width", "backend"),
    [
        ("cpu", "bf16", 128, 0.1, 64, "explicit"),
        ("cpu", "bf16", 512, 0.0, 64, "explicit"),
        ("cpu", "bf16", 513, 0.0, 64, "sdpa"),
        ("cpu", "fp32", 127, 0.0, 64, "explicit"),
        ("cpu", "fp32", 128, 0.0, 64, "sdpa"),
        ("cpu", "fp32", 512, 0.1, 64, "explicit"),
        ("cpu", "fp32", 513, 0.1, 64, "sdpa"),
        ((8, 0), "bf16", 128, 0.0, 64, "varlen"),
        ((9, 0), "fp16", 1024, 0.0, 192, "varlen"),
        ((9, 0), "fp16", 1024, 0.0, 200, "sdpa"),
        ((9, 0), "bf16", 128, 0.1, 64, "sdpa"),
        ((9, 0), "fp32", 128, 0.0, 64, "sdpa"),
        ((7, 5), "fp16", 128, 0.0, 64, "sdpa"),
    ],
)
def test_backend(device, precision, length, dropout, head_width, backend, monkeypatch):
    """device: or the compute capability of a GPU."""
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda of: device)
    monkeypatch.setattr("minilm.model.attention.HAS_FLASH", True)
    kind = torch.device("cpu" if device == "cpu" else "cuda")
    assert fastest_backend(kind, DTYPES[precision], length, dropout, head_width) == backend


def drawn():
    """What the generator gives next: by itself, and through dropout."""
    return torch.rand(5), torch.randn(3), torch.randperm(9), torch.nn.functional.dropout(torch.ones(50), 0.5)


def test_what_a_step_draws_depends_on_nothing_drawn_before():
    torch.manual_seed(3)
    torch.rand(7)
    seed_step(0, 41, 0)
    before = drawn()
    torch.manual_seed(99)
    seed_step(0, 41, 0)
    assert all(torch.equal(a, b) for a, b in zip(before, drawn(), strict=True))


def test_what_a_step_draws_differs_between_seeds_steps_and_processes():
    """Of the same step above all: there every process would drop the same units."""
    places = [(seed, step, rank) for seed in (0, 1, 7) for step in (0, 1, 2, 999) for rank in range(4)]
    found = set()
    for place in places:
        seed_step(*place)
        found.add(tuple(torch.nn.functional.dropout(torch.ones(64), 0.5).tolist()))
    assert len(found) == len(places)


def test_what_an_older_gpu_does_not_compile(machine):
    machine(cuda=(7, 5))
    with pytest.raises(ConfigError, match="this GPU has no native bf16; use fp16 or auto"):
        Runtime.choose("cuda", "bf16").compiled(torch.sin)


@pytest.mark.parametrize(("has", "kind"), [({"cuda": (8, 0), "gpus": 2}, "cuda"), ({"mps": True}, "mps")], ids=str)
def test_the_generator_of_an_accelerator_is_seeded_too(machine, monkeypatch, has, kind):
    """Dropout on a GPU draws from it."""
    given = []
    machine(**has)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", given.append)
    if kind == "mps":
        monkeypatch.setattr(torch.mps, "manual_seed", given.append)
        monkeypatch.setattr(torch.mps, "_is_in_bad_fork", lambda: False, raising=False)
        given.clear()
    seed_step(0, 1, 0)
    seed_step(0, 2, 0)
    assert len(set(given)) == 2


@pytest.mark.parametrize(
    ("flags", "said"), [({"threads": 0}, "--threads 0"), ({"precision": "fp8"}, "--precision fp8")]
)
def test_what_cannot_be_chosen_is_refused(flags, said):
    with pytest.raises(ConfigError, match=said):
        Runtime.choose("cpu", **flags)

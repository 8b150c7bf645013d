"""The count from the shape against the products that torch sees; what a machine can do, and what it took."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from minilm.batch import Batch, Tokens
from minilm.data.loader import Loader, Stretch
from minilm.data.objectives import CausalLM, MaskedLM
from minilm.machine.ranks import Applied
from minilm.model.encoder import bert_config, modern_config
from minilm.model.heads import LanguageModel
from minilm.train import cost
from minilm.train.cost import EnergyMeter, matmul_peak, run_flops, training_flops
from minilm.train.loop import train_step
from minilm.train.losses import language_model_loss
from minilm.train.optim import make_optimizers

SHAPES = [  # vocab, width, layers, heads, feed-forward, rows, length, targets
    (128, 64, 2, 4, 96, 4, 32, 20),
    (512, 32, 1, 2, 128, 2, 64, 60),  # the vocabulary is most of it
    (64, 32, 3, 2, 48, 2, 128, 2),  # attention is most of it
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("preset", [bert_config, modern_config])
def test_flops_are_torchs(preset, shape):
    vocab, width, layers, heads, inner, B, T, n = shape
    cfg = preset(vocab, width, layers, heads, inner, max_position_embeddings=T)
    model = LanguageModel(cfg, "explicit")
    generator = torch.Generator().manual_seed(0)
    tokens = Tokens.full(torch.randint(5, vocab, (B, T), generator=generator))
    where = torch.randperm(B * T, generator=generator)[:n]
    target = torch.randint(5, vocab, (n,), generator=generator)
    with FlopCounterMode(display=False) as counter:
        language_model_loss(model, Batch(tokens, where, target, n, B * T))[0].backward()
    counted = training_flops(cfg, B * T, T, n)
    assert isinstance(counted, int)
    assert counted == counter.get_total_flops()  # window or not: the explicit attention multiplies it all
    of_each = torch.arange(B).repeat_interleave(2) * T + torch.tensor([1, 3]).repeat(B)
    with FlopCounterMode(display=False) as counter:
        of_each = Batch(tokens, of_each, torch.randint(5, vocab, (2 * B,)), 2 * B, B * T, per_row=2)
        language_model_loss(model, of_each)[0].backward()
    assert training_flops(cfg, B * T, T, 2 * B, 2 * B) == counter.get_total_flops()


def test_flops_of_bert_base_by_hand():
    """12 layers of 12 D^2 + 2 T D, and a head of D^2 + D V at 15 % of the places; 6 FLOPs each."""
    D, V, T, tokens, targets = 768, 30522, 512, 512 * 256, 77 * 256
    by_hand = 6 * (tokens * 12 * (12 * D * D + 2 * T * D) + targets * (D * D + D * V))
    assert training_flops(bert_config(V), tokens, T, targets) == by_hand


STRETCHES = [Stretch(3, 16, 8, 4), Stretch(2, 64, 4, 2)]  # steps, length, rows, rows at once


def test_flops_of_a_run_are_those_of_its_steps(random_rows, words):
    """Two stretches, and a mask rate that goes from 15 % to 55 %: 2, 4, 6 of 16 and 29, 35 of 64 tokens."""
    masks = MaskedLM(words, 0, rate=0.15, end_rate=0.55)
    loader = Loader(STRETCHES, {16: random_rows(40, 16), 64: random_rows(9, 64)}, masks, seed=0)
    cfg = bert_config(61, 32, 2, 4, 48, max_position_embeddings=64)
    D, F, V = 32, 48, 61

    def by_hand(rows, T, slots):
        """Of the second layer's tokens all have keys and values, but only targets the rest, unless these are many; and
        for two targets, of four heads each, it maps these instead, and weighs whole states."""
        layer, last = 4 * D * D + 2 * T * D + 2 * D * F, slots if slots <= T // 2 else T
        layers = T * layer + T * 2 * D * D + last * (layer - 2 * D * D)
        if slots == 2:
            layers = T * layer + 2 * (4 * D * D + 2 * D * F + 4 * 2 * T * D)
        return 6 * rows * (layers + slots * (D * D + D * V))

    steps = [by_hand(8, 16, 2), by_hand(8, 16, 4), by_hand(8, 16, 6), by_hand(4, 64, 29), by_hand(4, 64, 35)]
    assert run_flops(cfg, loader) == sum(steps)
    assert run_flops(cfg, loader.with_stretches(STRETCHES[1:])) == by_hand(4, 64, 10) + by_hand(4, 64, 35)


@pytest.mark.parametrize("end", [None, 0.55])
def test_flops_of_very_many_steps_are_counted_at_once(random_rows, words, end):
    masks = MaskedLM(words, 0, rate=0.15, end_rate=end)
    cfg = bert_config(61, 32, 2, 4, 48, max_position_embeddings=64)
    rows = {16: random_rows(40, 16), 64: random_rows(9, 64)}
    few = Loader([Stretch(300, 16, 8, 4), Stretch(200, 64, 4, 2)], rows, masks, seed=0)
    steps = [few.positions(step) for step in range(500)]
    reads = [targets if targets / tokens <= 0.5 else None for tokens, _, targets in steps]
    each = [training_flops(cfg, *step, read) for step, read in zip(steps, reads, strict=True)]
    assert run_flops(cfg, few) == sum(each)
    assert run_flops(cfg, few, pairs=True) == sum(training_flops(cfg, *step) for step in steps)
    many = few.with_stretches([Stretch(3 * 10**8, 16, 8, 4), Stretch(2 * 10**8, 64, 4, 2)])
    assert run_flops(cfg, many) == pytest.approx(run_flops(cfg, few) * 10**6, rel=0.01)


@pytest.mark.parametrize("end", [None, 0.55])
def test_flops_of_steps_with_short_rows(random_rows, words, end):
    """Of two lengths, each with a cycle of its own."""

    class Short(random_rows):
        cycle = 6

        def short_rows(self, step):
            return {2: 2, 5: 4}.get(step % 6, 1)

        def take(self, rows, epoch, short_rows=1):
            pytest.fail("read")

    class Shorter(Short):
        cycle = 4

        def short_rows(self, step):
            return 2 if step % 4 == 3 else 1

    rows = {16: Shorter(40, 16), 64: Short(9, 64)}
    masks = MaskedLM(words, 0, rate=0.15, end_rate=end)
    loader = Loader([Stretch(31, 16, 8, 4), Stretch(50, 64, 4, 2)], rows, masks, seed=0)
    cfg = bert_config(61, 32, 2, 4, 48, max_position_embeddings=64)
    steps = [loader.positions(step) for step in range(81)]
    assert {length for _, length, _ in steps} == {8, 16, 32, 64}
    reads = [targets if targets / tokens <= 0.5 else None for tokens, _, targets in steps]
    each = [training_flops(cfg, *step, read) for step, read in zip(steps, reads, strict=True)]
    assert run_flops(cfg, loader) == sum(each)


@pytest.mark.parametrize("world", [1, 2])
def test_positions_of_a_step_are_its_batches(random_rows, words, world):
    """Of all processes together, slots that hold no target included, for these are computed, too."""
    for objective in (MaskedLM(words, 0, rate=0.15, end_rate=0.55), CausalLM()):
        rows = {16: random_rows(40, 16), 64: random_rows(9, 64)}
        loaders = [Loader(STRETCHES, rows, objective, 0, rank, world) for rank in range(world)]
        for step in range(5):
            batches = [batch for loader in loaders for batch in loader.micro_batches(step)]
            tokens, length, targets = loaders[0].positions(step)
            assert tokens == sum(batch.tokens.input_ids.numel() for batch in batches)
            assert {batch.tokens.input_ids.shape[1] for batch in batches} == {length}
            assert targets == sum(len(batch.where) for batch in batches)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_flops_of_a_step_are_torchs_within_2_percent(random_rows, words, cpu, checkpointing):
    """A whole step: with pairs, which the count leaves out, two micro-batches and AdamW. What gradient checkpointing
    computes again is a third more, and not counted."""
    masks = MaskedLM(words, 0, rate=0.3)
    loader = Loader([Stretch(1, 64, 4, 2)], {64: random_rows(9, 64)}, masks, seed=0)
    cfg = bert_config(61, 64, 2, 4, 96, max_position_embeddings=64)
    torch.manual_seed(0)
    model = LanguageModel(cfg, "explicit", pairs=True).train()
    model.encoder.gradient_checkpointing = checkpointing
    batches = [
        Batch(batch.tokens, batch.where, batch.target, batch.count, batch.size, torch.tensor([0, 1]))
        for batch in loader.micro_batches(0)
    ]
    assert len(batches) == 2
    optimizers = make_optimizers(model, "adamw", 1e-3, 0.01)
    with FlopCounterMode(display=False) as counter:
        train_step(Applied(model), language_model_loss, optimizers, batches, cpu(), 1.0)
    ratio = counter.get_total_flops() / run_flops(cfg, loader, pairs=True)
    assert 1 < ratio < 1.02 if not checkpointing else 1.2 < ratio < 4 / 3


# -- what a machine can do ------------------------------------------------------------------------


def test_a_matrix_product_is_two_operations_an_element_and_row(monkeypatch):
    """By a clock that says 0.5 s for each product but one, which took 0.25 s; no size is begun that the time is too
    short for."""
    ticks = iter([0.0, 0.0, 0.5, 1.0, 1.5, 2.0, 2.25, 9.0, 9.5])
    monkeypatch.setattr(cost.time, "perf_counter", lambda: next(ticks))
    monkeypatch.setattr(torch, "randn", lambda *size, device: torch.ones(2, 2))
    assert matmul_peak(torch.device("cpu"), torch.float32, seconds=9.0) == 2 * 512**3 / 0.25


def test_the_peak_is_that_of_smaller_products_where_memory_runs_out(monkeypatch):
    made = torch.randn

    def randn(size, *more, device):
        if size > 512 or nothing:
            raise RuntimeError("CUDA out of memory")
        return made(size, *more, device=device)

    nothing = False
    monkeypatch.setattr(torch, "randn", randn)
    assert matmul_peak(torch.device("cpu"), torch.float32, seconds=9.0) > 1e8
    nothing = True
    with pytest.raises(RuntimeError, match="out of memory"):
        matmul_peak(torch.device("cpu"), torch.float32, seconds=9.0)


def test_the_peak_of_this_machine_is_plausible():
    torch.set_num_threads(2)
    assert 1e8 < matmul_peak(torch.device("cpu"), torch.float32, seconds=0.01) < 1e15


# -- energy ---------------------------------------------------------------------------------------


@pytest.fixture
def zone(monkeypatch, tmp_path):
    """zone(name, joules, wraps): let the system count so much in a folder of that name."""
    monkeypatch.setattr(cost, "POWERCAP", tmp_path / "powercap")

    def count(name, joules, wraps=1000):
        folder = tmp_path / "powercap" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "name").write_text("core\n" if name.count(":") > 1 else f"package-{name[-1]}\n")
        (folder / "energy_uj").write_text(f"{round(joules * 1e6)}\n")
        (folder / "max_energy_range_uj").write_text(f"{round(wraps * 1e6)}\n")
        return folder

    return count


def test_energy_is_what_the_packages_counted_since_the_last_call(zone):
    zone("intel-rapl:0", 990)
    zone("intel-rapl:0:0", 5)  # cores: a part of the package
    zone("intel-rapl:1", 100)
    meter = EnergyMeter(torch.device("cpu"))
    assert meter.spent() == 0
    zone("intel-rapl:0", 997)
    zone("intel-rapl:0:0", 500)
    zone("intel-rapl:1", 130)
    assert meter.spent() == pytest.approx(37)
    assert meter.spent() == 0
    zone("intel-rapl:0", 3)  # began again at 1,000
    assert meter.spent() == pytest.approx(6)


def test_energy_is_not_counted_twice(zone):
    zone("intel-rapl:0", 0)
    (zone("intel-rapl:1", 0) / "name").write_text("psys\n")  # as laptops have it
    meter = EnergyMeter(torch.device("cpu"))
    zone("intel-rapl:0", 10)
    (zone("intel-rapl:1", 14) / "name").write_text("psys\n")
    assert meter.spent() == pytest.approx(10)


def test_where_nothing_measures_energy_it_is_none(zone):
    meter = EnergyMeter(torch.device("cpu"))
    assert meter.spent() is None
    folder = zone("intel-rapl:0", 100)
    (folder / "energy_uj").write_text("")  # as one that must not be read
    assert EnergyMeter(torch.device("cpu")).spent() is None
    zone("intel-rapl:0", 150)  # may be read now: what it counted before is not ours
    assert meter.spent() == 0


def test_energy_of_a_gpu_is_what_its_driver_says(zone, monkeypatch):
    """Milliwatt seconds of that card; a card that does not count is not made up for by the CPU."""
    zone("intel-rapl:0", 100)

    class NVMLError(Exception):
        pass

    def counted(handle):
        assert handle == 1
        if nvml.millijoules is None:
            raise NVMLError("not supported")
        return nvml.millijoules

    nvml = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: int(uuid.removeprefix("GPU-")),
        nvmlDeviceGetTotalEnergyConsumption=counted,
        millijoules=5_000,
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=device.index))
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    meter = EnergyMeter(torch.device("cuda", 1))
    nvml.millijoules = 7_500
    assert meter.spent() == pytest.approx(2.5)
    nvml.millijoules = None
    assert meter.spent() is None
    monkeypatch.setitem(sys.modules, "pynvml", None)  # not installed
    assert EnergyMeter(torch.device("cuda")).spent() is None

"""Two processes that share a run, over gloo: this file, run as a script, is one of them. They are started once, and
write down what they found; the tests read it."""

import os
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from minilm.batch import IGNORE, Batch, Tokens
from minilm.data.ahead import made_ahead
from minilm.data.loader import Loader, Stretch
from minilm.data.objectives import CausalLM
from minilm.data.packing import Rows, Taken
from minilm.errors import ConfigError, DataError, LoadingError, UserError
from minilm.machine.ranks import ALONE, Applied, Ranks, is_first, leave, lost_contact, no_sync, part, split, whole_state
from minilm.machine.runtime import Runtime
from minilm.model.encoder import bert_config, initialise, modern_config
from minilm.model.heads import LanguageModel
from minilm.train.loop import Plan, TrainingError, evaluate, fit, train_step
from minilm.train.losses import language_model_loss, language_model_score
from minilm.train.optim import load_optimizer_state, make_optimizers, optimizer_state

ROOT = Path(__file__).parent.parent.parent
VOCAB, LENGTH, SLOTS = 61, 16, 6
KINDS = {"bert": ("bert", "adamw", False), "modern": ("modern", "muon", False), "pairs": ("bert", "adamw", True)}
KINDS["compiled"] = KINDS["modern"]
SHARDED = [kind for kind in KINDS if kind != "compiled"]
STEPS = [  # of each step the targets of the rows of two micro-batches, in process 0 and in process 1
    ([[2, 6], [0, 3]], [[5, 1], [4, 6]]),
    ([[6, 6], [6, 5]], [[0, 0], [1, 0]]),
    ([[1, 2], [3, 4]], [[0, 0], [0, 0]]),  # nothing to learn in process 1
]


# -- what both sides compute ----------------------------------------------------------------------


def runtime_of(ranks):
    return Runtime(torch.device("cpu"), "fp32", "test", 1, ranks)


def small(kind, dropout=0.0):
    """(model, optimizers), the same in every process. Adam divides by |gradient| + eps: with the usual 1e-6 it would
    magnify the rounding of those gradients that ought to be 0."""
    architecture, optimizer, pairs = KINDS[kind]
    make, extra = (modern_config, {"window": 3, "global_every": 2}) if architecture == "modern" else (bert_config, {})
    torch.manual_seed(0)
    model = LanguageModel(
        make(VOCAB, 32, 2, 2, 48, max_position_embeddings=LENGTH, dropout=dropout, **extra), pairs=pairs
    )
    initialise(model, std=0.1)
    return model, make_optimizers(model, optimizer, 1e-2, 0.1, eps=1e-4, muon_dtype=torch.float32)


def loss_of(kind, ranks):
    """Compiled on a CPU, but for the making of code."""
    if kind != "compiled":
        return language_model_loss
    graphs = partial(torch.compile, backend="aot_eager")
    with patch("minilm.machine.runtime.COMPILED_ON", ("cpu",)), patch("torch.compile", graphs):
        return runtime_of(ranks).compiled(language_model_loss)


def sharded(kind, ranks):
    """The weights that `fit` leaves where each process has a part of every parameter, what is saved, and whether
    another model that is filled with it is the same, part for part."""
    pairs, made = KINDS[kind][2], []
    for _ in range(2):
        model, _ = small(kind)
        forward = Applied(model)
        ranks.shard(forward, model.encoder.layers, torch.device("cpu"))
        name = KINDS[kind][1]
        made.append((forward, make_optimizers(model, name, 1e-2, 0.1, eps=1e-4, muon_dtype=torch.float32)))
    (forward, optimizers), (again, others) = made
    batches, watch = iter([shared(step, ranks, pairs) for step in range(len(STEPS))]), Watch()
    fit(forward, language_model_loss, optimizers, batches, runtime_of(ranks), plan(len(STEPS)), watch)
    score = evaluate(forward, language_model_score, shared(0, ranks, pairs), runtime_of(ranks))
    parts = sum(part(p).numel() for p in forward.parameters())
    weights, tensors = whole_state(forward.model), optimizer_state(forward.model, optimizers)
    own = again.model.state_dict()
    again.model.load_state_dict({name: split(weights[name], like) for name, like in own.items()})
    load_optimizer_state(again.model, others, tensors)
    same = [torch.equal(part(a), part(b)) for a, b in zip(forward.parameters(), again.parameters(), strict=True)]
    tensors_again = optimizer_state(again.model, others)
    same += [torch.equal(tensors[name], tensors_again[name]) for name in tensors]
    whole = sum(p.numel() for p in weights.values())
    return {"weights": weights, "same": all(same), "looks": watch.looks, "score": score, "share": parts / whole}


def micro_batch(counts, number, pairs=False):
    """Rows with so many targets each, from a number."""
    generator = torch.Generator().manual_seed(number)
    ids = torch.randint(5, VOCAB, (len(counts), LENGTH), generator=generator)
    where = torch.stack([torch.randperm(LENGTH, generator=generator)[:SLOTS] for _ in counts])
    target = torch.where(torch.arange(SLOTS) < torch.tensor(counts)[:, None], ids.gather(1, where), IGNORE)
    where = where + torch.arange(len(counts))[:, None] * LENGTH
    label = torch.arange(len(counts)) % 2 if pairs else None
    return Batch(Tokens.full(ids), where.flatten(), target.flatten(), sum(counts), ids.numel() - number % 7, label)


def micro_batches(step, rank, pairs=False):
    return [micro_batch(counts, 100 * step + 10 * rank + i, pairs) for i, counts in enumerate(STEPS[step][rank])]


def shared(step, ranks, pairs=False):
    """Of one process its own, of one alone everybody's."""
    owners = [ranks.rank] if ranks.world > 1 else [0, 1]
    return [micro for rank in owners for micro in micro_batches(step, rank, pairs)]


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


class Watch:
    def __init__(self):
        self.looks = []

    def step(self, *what):
        self.looks.append(what)

    def tick(self, step):
        pass


def plan(steps, **more):
    return Plan(steps=steps, schedule=lambda step: 1.0, **{"log_every": 2, "max_norm": 0.5} | more)


def trained(kind, ranks):
    """What `train_step` returns for each step, the weights after the last, and what `fit` tells and leaves."""
    pairs, loss = KINDS[kind][2], loss_of(kind, ranks)
    model, optimizers = small(kind)
    forward, told = ranks.parallel(Applied(model)), []
    for step in range(len(STEPS)):
        nats, norm, bad = train_step(forward, loss, optimizers, shared(step, ranks, pairs), runtime_of(ranks), 0.5)
        told.append((ranks.total(float(nats))[0], float(norm), bool(bad)))
    other, optimizers = small(kind)
    watch, batches = Watch(), iter([shared(step, ranks, pairs) for step in range(len(STEPS))])
    fit(Applied(other), loss, optimizers, batches, runtime_of(ranks), plan(len(STEPS)), watch)
    score = evaluate(Applied(other), language_model_score, shared(0, ranks, pairs), runtime_of(ranks))
    return {"steps": told, "weights": weights(model), "fitted": weights(other), "looks": watch.looks, "score": score}


class Random(Rows):
    """40 rows of random words."""

    T, fill = LENGTH, 1.0
    ids = torch.randint(5, VOCAB, (40, LENGTH), generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.ids)

    def take(self, rows, epoch, short_rows=1):
        return Taken(self.ids[torch.from_numpy(rows)])


def loaded(ranks):
    """Weights after 4 steps of 8 rows, two micro-batches a process, by the loader."""
    model, optimizers = small("modern")
    batch_size = 2 if ranks.world > 1 else 4
    loader = Loader([Stretch(4, LENGTH, 8, batch_size)], {LENGTH: Random()}, CausalLM(), 3, ranks.rank, ranks.world)
    assert len(loader.micro_batches(0)) == 2
    fit(Applied(model), language_model_loss, optimizers, made_ahead(loader, 0), runtime_of(ranks), plan(4), Watch())
    return weights(model)


# -- one of two processes -------------------------------------------------------------------------


def tried(work):
    """What it returns or raises, in a form that a file holds."""
    try:
        return work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def raises(error):
    raise error


def facts(ranks, here):
    """The small ones, by name."""
    first, second = ranks.rank == 0, ranks.rank == 1
    made, order = [], here / "order"
    found = {"place": (ranks.rank, ranks.world, ranks.local_rank, ranks.first, is_first())}
    found["total"] = ranks.total(0.25 + ranks.rank, 2**51 + ranks.rank, -1)
    found["any"] = [ranks.any(second), ranks.any(first), ranks.any(False), ranks.any(True)]
    found["any on device"] = [bool(ranks.any_on_device(torch.tensor(flag))) for flag in (second, first, False)]

    def make():
        made.append(ranks.rank)
        return {"made by": ranks.rank}

    found["from first"] = tried(lambda: ranks.from_first(make))
    found["who made"] = list(made)
    found["from first, error"] = tried(lambda: ranks.from_first(lambda: raises(ConfigError(f"no --lr, {ranks.rank}"))))
    found["agreed"] = tried(lambda: ranks.agreed(lambda: 10 + ranks.rank))
    for name, work in (
        ("error in 1", lambda: raises(DataError("a.txt:3: bad")) if second else 5),
        ("no file in 1", lambda: raises(FileNotFoundError(2, "No such file", "b.txt")) if second else 5),
        ("error in 0", lambda: raises(ConfigError("no --lr")) if first else 5),
        ("error in both", lambda: raises(DataError(f"bad in {ranks.rank}"))),
    ):
        found[name] = tried(lambda work=work: ranks.agreed(work))

    def in_turn():
        with order.open("a") as out:
            out.write(f"{ranks.rank} begins\n")
        if first:
            time.sleep(0.3)
        with order.open("a") as out:
            out.write(f"{ranks.rank} ends\n")
        return ranks.rank

    found["one by one"] = tried(lambda: ranks.one_by_one(in_turn))
    entered = []

    def fails():
        entered.append(ranks.rank)
        raise DataError(f"bad in {ranks.rank}")

    found["one by one, error"] = tried(lambda: ranks.one_by_one(fails)), entered
    found["one by one, error in 1"] = tried(lambda: ranks.one_by_one(lambda: raises(DataError("x")) if second else 5))
    found["same"] = tried(lambda: ranks.expect_same(("hash", 3), "other text"))
    found["not the same"] = tried(lambda: ranks.expect_same(ranks.rank, "other text"))
    return found


def bad_step(ranks):
    """A loss that is infinite in process 1 alone, with a gradient that is finite: what each process makes of it."""
    model, optimizers = small("modern")
    forward = ranks.parallel(Applied(model))
    train_step(forward, language_model_loss, optimizers, shared(0, ranks), runtime_of(ranks), 0.5)
    before, held = weights(model), [v.clone() for o in optimizers for s in o.state.values() for v in s.values()]

    def loss(model, batch):
        nats, count = language_model_loss(model, batch)
        return nats + (float("inf") if ranks.rank == 1 else 0.0), count

    poisoned = ranks.parallel(Applied(model))
    _, _, bad = train_step(poisoned, loss, optimizers, shared(1, ranks), runtime_of(ranks), 0.5)
    after = [v for o in optimizers for s in o.state.values() for v in s.values()]
    same = all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    same &= all(torch.equal(a, b) for a, b in zip(held, after, strict=True))
    model, optimizers = small("bert")
    watch = Watch()

    def fitted():
        batches = iter([shared(step % 3, ranks) for step in range(9)])
        return fit(Applied(model), loss, optimizers, batches, runtime_of(ranks), plan(9, log_every=3), watch)

    try:
        fitted()
        caught = None
    except TrainingError as error:
        caught = error.step
    return {"bad": bool(bad), "same": same, "caught": caught, "looks": len(watch.looks)}


def stopped(ranks):
    """A signal that reaches process 1 alone, after its fourth step."""
    model, optimizers = small("bert")
    saved, asked = [], iter(range(1, 99))
    batches = iter([shared(step % 3, ranks) for step in range(9)])
    done = fit(
        Applied(model), language_model_loss, optimizers, batches, runtime_of(ranks), plan(9), Watch(),
        save=saved.append,
        stop=lambda: next(asked) == 4 and ranks.rank == 1,
    )  # fmt: skip
    return done, saved


def unread(ranks):
    """Process 1 cannot read its fourth batch: what each raises, and what was saved before."""
    model, optimizers = small("bert")
    saved = []

    def batches():
        for step in range(9):
            if step == 3 and ranks.rank == 1:
                raise LoadingError("step 4: rows 7 cannot be read")
            yield shared(step % 3, ranks)

    def run():
        fit(
            Applied(model), language_model_loss, optimizers, batches(), runtime_of(ranks), plan(9, save_every=2),
            Watch(), save=saved.append,
        )  # fmt: skip

    return tried(run), saved


def dropped(ranks):
    """The state of each process's generator after a step: that of its own seed."""
    model, optimizers = small("bert", dropout=0.3)
    fit(
        Applied(model),
        language_model_loss,
        optimizers,
        iter([shared(0, ranks)]),
        runtime_of(ranks),
        plan(1, seed=5),
        Watch(),
    )
    return torch.get_rng_state()


def wrapped(ranks):
    """Kinds of module that `parallel` and `no_sync` make, and whether gradients are averaged outside of it alone."""
    model = torch.nn.Linear(3, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    forward = ranks.parallel(model)
    with no_sync(forward):
        forward(torch.ones(1, 3) * ranks.rank).sum().backward()
    own = model.weight.grad.tolist()
    forward(torch.ones(1, 3) * ranks.rank).sum().backward()
    return type(forward).__name__, own, model.weight.grad.tolist()


def child(here):
    torch.set_num_threads(1)
    ranks = Ranks.join()
    found = {"facts": facts(ranks, here), "bad": bad_step(ranks), "stopped": stopped(ranks), "rng": dropped(ranks)}
    found["unread"] = unread(ranks)
    with patch("minilm.machine.onednn.is_faster", lambda: False):  # which a CPU may have beside, but no graph
        found |= {kind: trained(kind, ranks) for kind in KINDS}
    found |= {f"sharded {kind}": sharded(kind, ranks) for kind in SHARDED}
    found |= {"wrapped": wrapped(ranks), "loaded": loaded(ranks), "again": Ranks.join()}
    dist.barrier()
    torch.save(found, here / f"found-{ranks.rank}")
    dist.barrier()
    if ranks.rank == 1:
        os._exit(9)  # as one that is killed
    try:
        for _ in range(3):
            ranks.total(1.0)
    except RuntimeError as error:
        (here / "lost").write_text(f"{lost_contact(error)} {error}")
    os._exit(0)


# -- the tests ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """.found: what each of two processes wrote down; .here: their folder."""
    here = tmp_path_factory.mktemp("two")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = []
    for rank in range(2):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
        environment = os.environ | {key: str(value) for key, value in place.items()}
        environment |= {"MASTER_ADDR": "127.0.0.1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with (here / f"said-{rank}").open("w") as said:
            command = [sys.executable, __file__, str(here)]
            started.append(subprocess.Popen(command, env=environment, stdout=said, stderr=said))
    try:
        for process in started:
            process.wait(timeout=120)
    finally:
        for process in started:
            process.kill()
            process.wait()
    said = "".join((here / f"said-{rank}").read_text() for rank in range(2))
    assert all((here / f"found-{rank}").exists() for rank in range(2)), said
    found = [torch.load(here / f"found-{rank}", weights_only=False) for rank in range(2)]
    return SimpleNamespace(found=found, here=here, said=said)


@pytest.fixture(scope="module")
def alone():
    """What one process makes of the same."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    config = torch._dynamo.config.patch(recompile_limit=8, optimize_ddp=True)  # put back afterwards
    with patch("minilm.machine.onednn.is_faster", lambda: False), config:
        yield {kind: trained(kind, ALONE) for kind in KINDS} | {"loaded": loaded(ALONE)}
    torch.set_num_threads(threads)


def test_they_know_their_places(two):
    places = [found["facts"]["place"] for found in two.found]
    assert places == [(0, 2, 0, True, True), (1, 2, 1, False, False)]
    assert [found["again"] for found in two.found] == [Ranks(0, 2, 0), Ranks(1, 2, 1)]  # joined already


def test_small_facts_are_everybodys(two):
    for found in two.found:
        facts = found["facts"]
        assert facts["total"] == [1.5, 2**52 + 1, -2]
        assert facts["any"] == [True, True, False, True]
        assert facts["any on device"] == [True, True, False]


def test_what_the_first_makes_all_have(two):
    assert [found["facts"]["from first"] for found in two.found] == [{"made by": 0}] * 2
    assert [found["facts"]["who made"] for found in two.found] == [[0], []]
    for found in two.found:
        kind, _, message = found["facts"]["from first, error"].partition(": ")
        assert message == "no --lr, 0"
        assert kind in ("ConfigError", "UserError")


def test_an_error_in_one_is_raised_in_all(two):
    """One line each, which names the process unless it is the first."""
    first, second = (found["facts"] for found in two.found)
    assert (first["agreed"], second["agreed"]) == (10, 11)
    for facts in (first, second):
        assert facts["error in 1"] == "UserError: process 1: a.txt:3: bad"
        assert facts["no file in 1"].startswith("UserError: process 1: ")
        assert "b.txt" in facts["no file in 1"]
    assert first["error in 0"] == "ConfigError: no --lr"
    assert second["error in 0"] == "UserError: no --lr"
    assert first["error in both"] == "DataError: bad in 0"
    assert second["error in both"] == "UserError: bad in 0"


def test_the_first_of_a_machine_goes_before_the_others(two):
    assert (two.here / "order").read_text().splitlines() == ["0 begins", "0 ends", "1 begins", "1 ends"]
    assert [found["facts"]["one by one"] for found in two.found] == [0, 1]
    errors = [found["facts"]["one by one, error"] for found in two.found]
    assert [entered for _, entered in errors] == [[0], []]  # who would find nothing is not let in
    assert errors[0][0] == "DataError: bad in 0"
    assert errors[1][0] == "UserError: bad in 0"
    assert [found["facts"]["one by one, error in 1"] for found in two.found] == ["UserError: process 1: x"] * 2


def test_what_must_be_the_same_is_compared(two):
    for found in two.found:
        assert found["facts"]["same"] is None
        assert found["facts"]["not the same"].startswith("ConfigError: process 1 has other text than process 0")


def distance(own, other):
    """Of all weights together, relative."""
    apart = sum(float((own[name] - other[name]).double().square().sum()) for name in other)
    return (apart / sum(float(p.double().square().sum()) for p in other.values())) ** 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_are_one(two, alone, kind):
    """Three steps of two micro-batches each, with other numbers of targets everywhere, against one process that has
    all four; in fp32, where sums in another order differ by 1e-7."""
    one = alone[kind]
    start = weights(small(kind)[0])
    for found in (found[kind] for found in two.found):
        assert [bad for *_, bad in found["steps"]] == [False] * 3
        for own, reference in zip(found["steps"], one["steps"], strict=True):
            assert own[0] == pytest.approx(reference[0], rel=1e-6)  # nats
            assert own[1] == pytest.approx(reference[1], rel=1e-5)  # the gradient's norm
        for which in ("weights", "fitted"):
            assert distance(found[which], one[which]) < 1e-6
            assert distance(found[which], start) > 1e-3
        for own, reference in zip(found["looks"], one["looks"], strict=True):
            assert own[0] == reference[0]  # step
            assert own[1] == pytest.approx(reference[1], rel=1e-6)  # nats per target of all processes
            assert own[4] == reference[4]  # and their tokens
        assert found["score"].loss == pytest.approx(one["score"].loss, rel=1e-6)
        assert found["score"].targets == one["score"].targets == 27
        assert found["score"].accuracy == one["score"].accuracy
        assert found["score"].pair_accuracy == one["score"].pair_accuracy
        assert (found["score"].pair_accuracy is None) == (kind != "pairs")
    first, second = (found[kind]["weights"] for found in two.found)
    assert all(torch.equal(first[name], second[name]) for name in first)  # or they would drift apart


@pytest.mark.parametrize("kind", SHARDED)
def test_a_sharded_model_is_the_same_model(two, alone, kind):
    """FSDP2: half of the parameters in each process, the weights and figures of one that has all, and a saved state
    that another sharded model goes on from."""
    one = alone[kind]
    for found in (found[f"sharded {kind}"] for found in two.found):
        assert distance(found["weights"], one["fitted"]) < 1e-6
        assert found["same"]
        assert 0.35 < found["share"] < 0.65  # some of these small tensors have an odd number of rows
        assert found["score"].loss == pytest.approx(one["score"].loss, rel=1e-6)
        for own, reference in zip(found["looks"], one["looks"], strict=True):
            assert own[1:3] == pytest.approx(reference[1:3], rel=1e-5)  # loss, gradient norm


def test_the_loader_shares_the_rows_of_a_step(two, alone):
    for found in two.found:
        assert distance(found["loaded"], alone["loaded"]) < 1e-6


def test_a_bad_loss_in_one_is_bad_in_both(two):
    for found in (found["bad"] for found in two.found):
        assert found == {"bad": True, "same": True, "caught": 0, "looks": 0}


def test_both_stop_where_one_is_asked_to(two):
    assert [found["stopped"] for found in two.found] == [(4, [4])] * 2


def test_where_one_cannot_read_its_batch_both_save_and_end(two):
    (first, saved), (second, saved_too) = (found["unread"] for found in two.found)
    assert saved == saved_too == [2, 3]
    assert first == "UserError: another process cannot read its batch, and says why; all end"
    assert second == "LoadingError: step 4: rows 7 cannot be read"


def test_each_drops_other_units(two):
    first, second = (found["rng"] for found in two.found)
    assert not torch.equal(first, second)


def test_gradients_are_averaged_but_not_within_no_sync(two):
    for rank, found in enumerate(two.found):
        name, own, both = found["wrapped"]
        assert name == DistributedDataParallel.__name__
        assert own == [[float(rank)] * 3]
        assert both == [[1.0] * 3]  # the mean of 0 + 0 and 1 + 1


def test_a_process_that_is_gone_is_noticed(two):
    """In the words of torch's own error."""
    assert (two.here / "lost").read_text().startswith("True "), two.said


# -- one process ----------------------------------------------------------------------------------


def test_alone_everything_is_nothing(monkeypatch):
    for world in (None, "1"):
        monkeypatch.delenv("RANK", raising=False)
        if world:
            monkeypatch.setenv("RANK", "0")
            monkeypatch.setenv("WORLD_SIZE", world)
        assert Ranks.join() == ALONE == Ranks(0, 1, 0)
        assert not dist.is_initialized()
    assert ALONE.first
    assert ALONE.total(1, 2.5) == [1, 2.5]
    assert (ALONE.any(True), ALONE.any(False)) == (True, False)
    flag = torch.tensor(True)
    assert ALONE.any_on_device(flag) is flag
    assert [ALONE.from_first(lambda: 3), ALONE.agreed(lambda: 4), ALONE.one_by_one(lambda: 5)] == [3, 4, 5]
    for each in (ALONE.from_first, ALONE.agreed, ALONE.one_by_one):
        with pytest.raises(OSError, match="full"):
            each(lambda: raises(OSError("full")))
    ALONE.expect_same(3, "nothing")
    module = torch.nn.Linear(2, 2)
    assert ALONE.parallel(module) is module
    with no_sync(module):
        module(torch.ones(1, 2)).sum().backward()


def test_leaving_what_was_never_joined_is_nothing(monkeypatch):
    left = []
    monkeypatch.setattr(dist, "destroy_process_group", lambda: left.append(1))
    leave()
    assert left == []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    leave()
    assert left == [1]


@pytest.mark.parametrize(("rank", "first"), [(None, True), ("0", True), ("1", False), ("10", False)])
def test_who_speaks(monkeypatch, rank, first):
    """Of several processes; a RANK without a WORLD_SIZE is somebody else's, and silences nobody."""
    monkeypatch.delenv("RANK", raising=False)
    if rank:
        monkeypatch.setenv("RANK", rank)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert is_first()
    monkeypatch.setenv("WORLD_SIZE", "12")
    assert is_first() == first


@pytest.mark.parametrize(
    ("error", "joined", "lost"),
    [
        (dist.DistError("x"), False, True),
        (dist.DistBackendError("x"), False, True),
        (RuntimeError("[gloo] Connection closed by peer"), True, True),
        (RuntimeError("NCCL communicator was aborted"), True, True),
        (RuntimeError("Connection closed by peer"), False, False),  # nobody else is there
        (RuntimeError("CUDA out of memory"), True, False),
        (UserError("--lr"), True, False),
    ],
    ids=str,
)
def test_what_says_that_a_process_is_gone(monkeypatch, error, joined, lost):
    monkeypatch.setattr(dist, "is_initialized", lambda: joined)
    assert lost_contact(error) == lost


if __name__ == "__main__":
    child(Path(sys.argv[1]))

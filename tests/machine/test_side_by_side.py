"""Batches side by side on a CPU."""

import itertools
import signal
import threading
import time

import pytest
import torch

from minilm.errors import DataError
from minilm.machine.side_by_side import side_by_side, workers
from minilm.machine.signals import Stopped, StopSignals


@pytest.fixture
def threads():
    """threads(n): torch's, of the process."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(("given", "workers", "each"), [(1, 1, 1), (2, 2, 1), (3, 3, 1), (12, 6, 2), (20, 6, 3)])
def test_batches_share_the_threads_of_a_cpu(threads, given, workers, each):
    """In their order, without gradients and with autocast as it is; and the threads are as before."""
    threads(given)
    weight, names, together = torch.ones(2, 2, requires_grad=True), set(), threading.Barrier(workers)

    def work(item):
        names.add(threading.current_thread().name)
        if item < workers:  # these wait for each other
            together.wait(timeout=20)
        return item, torch.get_num_threads(), weight @ weight

    with torch.autocast("cpu", torch.bfloat16):
        made = list(side_by_side(work, range(40), torch.device("cpu")))
    assert [item for item, _, _ in made] == list(range(40))
    assert {own for _, own, _ in made} == {each}
    assert all(product.dtype == torch.bfloat16 and not product.requires_grad for _, _, product in made)
    assert len(names) == workers
    assert torch.get_num_threads() == given
    seen = []
    late = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    late.start()
    late.join()
    assert seen == [given]
    assert next(side_by_side(lambda item: weight @ weight, [0], torch.device("cpu"))).dtype == torch.float32


@pytest.mark.parametrize(("batches", "each"), [(1, 8), (2, 4), (3, 3), (8, 1)])
def test_few_batches_have_the_more_threads(threads, batches, each):
    threads(8)
    made = side_by_side(lambda item: torch.get_num_threads(), range(batches), torch.device("cpu"))
    assert list(made) == [each] * batches


@pytest.mark.parametrize("given", [1, 2, 3, 5, 7, 8, 12, 17, 40])
def test_as_many_work_as_is_said(threads, given):
    threads(given)
    made = side_by_side(lambda item: (threading.get_ident(), time.sleep(0.01)), range(64), torch.device("cpu"))
    assert len({each for each, _ in made}) == workers(torch.device("cpu"))


def test_a_signal_does_not_wait_for_the_batches_under_way(threads):
    threads(2)
    let_go, made, began = threading.Event(), [], time.monotonic()
    with StopSignals() as stop:
        main = threading.main_thread().ident
        threading.Timer(0.3, signal.pthread_kill, [main, signal.SIGTERM]).start()
        with pytest.raises(Stopped), stop.leaving():
            made += side_by_side(lambda item: let_go.wait(30), range(9), torch.device("cpu"))
    assert made == []
    assert time.monotonic() - began < 15
    let_go.set()
    assert torch.get_num_threads() == 2


def test_on_a_gpu_a_batch_comes_after_the_other(threads):
    threads(4)
    lazily = side_by_side(lambda item: threading.current_thread(), iter(range(3)), torch.device("cuda"))
    assert next(lazily) is threading.current_thread()
    assert torch.is_grad_enabled()  # between them, too


@pytest.mark.parametrize("given", [1, 2])
def test_an_error_in_a_batch_is_raised_and_the_rest_left(threads, given):
    threads(given)
    begun, running = [], {*threading.enumerate()}

    def work(item):
        begun.append(item)
        if item == 3:
            raise DataError("number 3")
        return item

    made = side_by_side(work, range(10**6), torch.device("cpu"))
    assert [next(made) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataError, match="number 3"):
        next(made)
    assert len(begun) < 20
    made = side_by_side(work, itertools.count(4), torch.device("cpu"))
    assert next(made) == 4
    made.close()  # as by who wants no more of an endless stream
    assert not {*threading.enumerate()} - running
    assert torch.get_num_threads() == given

"""Several batches at once on the cores of a CPU."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from minilm.machine import onednn
from minilm.machine.signals import Stopped

Item, Made = TypeVar("Item"), TypeVar("Made")
SIDE_BY_SIDE = 8  # most batches at once on a CPU, each with its own activations


def workers(device: torch.device, batches: int = SIDE_BY_SIDE) -> int:
    """How many of `batches` are computed at once by `side_by_side`, with equally many threads each."""
    threads = torch.get_num_threads()
    return threads // -(-threads // batches) if device.type == "cpu" else 1


def side_by_side(work: Callable[[Item], Made], items: Iterable[Item], device: torch.device) -> Iterator[Made]:
    """`work` of each item, in order, without gradients, under the caller's autocast. On a CPU up to SIDE_BY_SIDE items
    at a time share torch's threads: operators of one batch are too short to use many. Threads started meanwhile get no
    more of torch's threads than one of these."""
    items = iter(items)
    first = list(itertools.islice(items, SIDE_BY_SIDE)) if device.type == "cpu" else []
    items, threads = itertools.chain(first, items), torch.get_num_threads()
    if min(threads, len(first)) <= 1:
        yield from map(torch.no_grad()(work), items)
        return
    count, wait = workers(device, len(first)), True
    is_on, dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
    mode = onednn.within()

    def alone(item: Item) -> Made:
        with torch.no_grad(), torch.autocast("cpu", dtype, is_on), mode:
            return work(item)

    coming: deque[Future[Made]] = deque()
    pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(-(-threads // len(first)),))
    try:
        for item in items:
            coming.append(pool.submit(alone, item))
            if len(coming) > 2 * count:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
    except (Stopped, KeyboardInterrupt):
        wait = False  # do not wait for batches that are under way
        raise
    finally:
        pool.shutdown(wait=wait, cancel_futures=True)
        torch.set_num_threads(threads)  # for threads started from here on

"""Loading ahead: batches are made in a thread while earlier ones are used."""

import atexit
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from queue import SimpleQueue
from threading import Thread, current_thread
from typing import Any, Protocol, TypeVar

from minilm.errors import LoadingError, UserError

Item, Made = TypeVar("Item"), TypeVar("Made")
AHEAD = 4  # steps: with small ones this loads 2.5 million tokens a second, one step ahead only 1.5
PATIENCE = 50  # seconds for a batch: a disk may sleep, but not for long
END_PATIENCE, LATE_PATIENCE = 20, 5  # seconds to wait at the end for a batch in the making, or one that is late
MEND = "the same command resumes from the last save"


def one_ahead(make: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[tuple[Item, Made]]:
    """Each item with what `make` makes of it. A thread makes that of the next one while one is used and the one after
    is read; of the first it is made here, for where there is no other a thread would only take time."""
    before: tuple[Item, Future[Made]] | None = None
    with ThreadPoolExecutor(max_workers=1) as worker:
        for item in items:
            if before is None:
                coming = Future()
                coming.set_result(make(item))
            else:
                coming = worker.submit(make, item)
                yield before[0], before[1].result()
            before = item, coming
        if before is not None:
            yield before[0], before[1].result()


class Steps(Protocol):
    def micro_batches(self, step: int) -> list[Any]:
        """The micro-batches of one step."""

    def read_in(self, step: int) -> str:
        """Names of the rows that this process reads in a step, for a message."""


def made_ahead(source: Steps, step: int) -> Iterator[list[Any]]:
    """Endless micro-batches of each step from `step` on, made up to AHEAD steps before they are used. Raises
    LoadingError if they cannot be read, or take longer than PATIENCE seconds."""
    asked: SimpleQueue[tuple[int, Future[list[Any]]] | None] = SimpleQueue()

    def work() -> None:
        while (job := asked.get()) is not None:
            number, future = job
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(source.micro_batches(number))
                except BaseException as error:
                    future.set_exception(error)

    def of(number: int) -> Future[list[Any]]:
        future: Future[list[Any]] = Future()
        asked.put((number, future))
        return future

    def stop() -> None:
        """Stop the worker, after its current batch unless that is late: a thread that is within torch when the process
        ends aborts it."""
        for future in coming:
            future.cancel()
        asked.put(None)
        if worker is not current_thread():  # garbage collection may run this in the worker
            worker.join(timeout=LATE_PATIENCE if late else END_PATIENCE)

    coming, late = deque(of(step + more) for more in range(AHEAD)), False
    worker = Thread(target=work, daemon=True)  # a thread that hangs must not keep the process from ending
    worker.start()
    atexit.register(stop)
    try:
        while True:
            late = True  # also if a signal ends the waiting
            if late := not _is_done(future := coming.popleft()):
                why = f"were not read in {PATIENCE} s; is their disk still there?"
                raise LoadingError(f"{_named(source, step)} {why} {MEND}")
            made = _result(future, source, step)
            coming.append(of(step + AHEAD))
            step += 1
            yield made
    finally:
        atexit.unregister(stop)
        stop()


def _is_done(future: Future[list[Any]]) -> bool:
    """Whether `future` is done within PATIENCE seconds, in parts: a suspended process is not late."""
    return any(future.done() or wait([future], timeout=1.0).done for _ in range(PATIENCE))


def _result(future: Future[list[Any]], source: Steps, step: int) -> list[Any]:
    try:
        return future.result()
    except (OSError, UserError) as error:
        raise LoadingError(f"{_named(source, step)} cannot be read: {error}; {MEND}") from error
    except Exception as error:
        error.add_note(f"while {_named(source, step)} were read")
        raise


def _named(source: Steps, step: int) -> str:
    return f"step {step + 1:,}: {source.read_in(step)}"

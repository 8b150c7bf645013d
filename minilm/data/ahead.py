"""Batches made in a thread, while others are used."""

import atexit
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, wait
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol

import numpy as np

from minilm.errors import LoadingError, some

AHEAD = 4  # steps: of small ones 2.5 million tokens a second come through, where one ahead lets 1.5 through
PATIENCE = 50  # seconds for a batch: a disk may sleep, but not for long


class Steps(Protocol):
    def micro_batches(self, step: int) -> list[Any]: ...

    def order(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(epoch, row) of all rows of a step."""


def made_ahead(source: Steps, step: int) -> Iterator[list[Any]]:
    """The micro-batches of `step`, of the next one and so on without end, AHEAD of them made while one is used. Raises
    LoadingError where they cannot be read, or are not made in PATIENCE seconds."""
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
        for future in coming:
            future.cancel()
        asked.put(None)
        worker.join(timeout=1.0)

    coming = deque(of(step + more) for more in range(AHEAD))
    worker = Thread(target=work, daemon=True)  # one that hangs must not keep the process from its end
    worker.start()
    atexit.register(stop)
    try:
        while True:
            made = _finished(coming.popleft(), source, step)
            coming.append(of(step + AHEAD))
            step += 1
            yield made
    finally:
        atexit.unregister(stop)
        stop()


def _finished(future: Future[list[Any]], source: Steps, step: int) -> list[Any]:
    for _ in range(PATIENCE):  # in parts: a process that was stopped meanwhile is not too late
        if future.done() or wait([future], timeout=1.0).done:
            break
    else:
        raise LoadingError(f"{_rows_of(source, step)} were not read in {PATIENCE} s; is their disk still there?")
    try:
        return future.result()
    except OSError as error:
        raise LoadingError(f"{_rows_of(source, step)} cannot be read: {error}") from error
    except Exception as error:
        error.add_note(f"while {_rows_of(source, step)} were read")
        raise


def _rows_of(source: Steps, step: int) -> str:
    _, row = source.order(step)
    return f"step {step + 1:,}: rows {some(row.astype(str).tolist(), 8)}"

"""Signals that ask a process to save and end."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self, TypeVar

Item = TypeVar("Item")
STOPPING = signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1


def exit_status(number: int) -> int:
    """Exit status of a process that saved and ends because of signal `number`: 0 after SIGUSR1, a cluster's warning."""
    return 0 if number == signal.SIGUSR1 else 128 + number


class Stopped(BaseException):
    """Raised by a signal during work that may be abandoned (`StopSignals.leaving`)."""


class StopSignals:
    """Context in which the signals of STOPPING are recorded in `received` for a loop to stop; a second one ends the
    process at once. Signals that the process ignores, as after nohup, stay ignored. alone: false in one of several
    processes, which abandon nothing on their own: `leaving` then does nothing."""

    def __init__(self, alone: bool = True) -> None:
        self.alone = alone
        self.received: int | None = None
        self._may_leave = False
        self._before: dict[int, Any] = {}

    @contextmanager
    def leaving(self) -> Iterator[None]:
        """Context in which a signal, also one that came before, raises Stopped."""
        try:
            self._may_leave = self.alone
            if self.alone and self.received is not None:
                raise Stopped
            yield
        except Exception:
            if self.alone and self.received is not None:  # a C library may turn Stopped into an error of its own
                raise Stopped from None
            raise
        finally:
            self._may_leave = False

    def left(self, source: Iterator[Item]) -> Iterator[Item]:
        """The items of `source`, waiting for each within `leaving`."""
        while True:
            with self.leaving():
                item = next(source)
            yield item

    def __enter__(self) -> Self:
        only_here = threading.current_thread() is threading.main_thread()  # no other thread may set handlers
        for number in STOPPING if only_here else ():
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: object) -> None:
        if self.received is not None:
            os._exit(128 + number)
        self.received = number
        if self._may_leave:
            raise Stopped

"""Signals ask once, and are heard; handlers come back."""

import os
import signal
import subprocess
import sys
import time

import pytest

from minilm.machine.signals import STOPPING, Stopped, StopSignals

CHILD = """
import time
from minilm.machine.signals import StopSignals
with StopSignals() as stop:
    print("ready", flush=True)
    while stop.received is None:
        time.sleep(0.01)
    print("asked", stop.received, flush=True)
    try:
        time.sleep(60)
    finally:
        print("cleaned up", flush=True)
"""


def test_one_leaves_at_once_what_may_be_left():
    with StopSignals() as stop:
        with pytest.raises(Stopped), stop.leaving():
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == signal.SIGTERM
    with StopSignals() as stop:
        with stop.leaving():
            pass
        os.kill(os.getpid(), signal.SIGTERM)  # raises nothing any more
        assert stop.received == signal.SIGTERM


def test_it_is_left_whatever_a_library_makes_of_it():
    def of_c():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Stopped:
            raise ValueError("Invalid bounding box") from None

    with StopSignals() as stop:
        with pytest.raises(Stopped), stop.leaving():
            of_c()
        assert stop.received == signal.SIGTERM
    with StopSignals() as stop, pytest.raises(ValueError, match="its own"), stop.leaving():
        raise ValueError("its own")


def test_one_of_several_leaves_nothing():
    with StopSignals(alone=False) as stop:
        with stop.leaving():
            os.kill(os.getpid(), signal.SIGTERM)
        with stop.leaving():
            pass
        assert next(stop.left(iter(["one that is there"]))) == "one that is there"
        assert stop.received == signal.SIGTERM


def test_waiting_for_the_next_one_may_be_left():
    def hanging():
        yield "first"
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    with StopSignals() as stop:
        items = stop.left(hanging())
        assert next(items) == "first"
        with pytest.raises(Stopped):
            next(items)
        with pytest.raises(Stopped):
            next(stop.left(iter(["one that is there"])))


@pytest.mark.parametrize("number", STOPPING)
def test_the_first_signal_asks_and_handlers_come_back(number):
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    with StopSignals() as stop:
        assert stop.received is None
        os.kill(os.getpid(), number)
        assert stop.received == number
    assert {each: signal.getsignal(each) for each in before} == before


def test_handlers_come_back_after_an_error():
    before = signal.getsignal(signal.SIGINT)

    def fail():
        with StopSignals():
            assert signal.getsignal(signal.SIGINT) != before
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert signal.getsignal(signal.SIGINT) == before


@pytest.mark.parametrize(("first", "second"), [(signal.SIGINT, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT)])
def test_a_second_signal_stops_at_once(first, second):
    child = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "ready\n"
        child.send_signal(first)
        assert child.stdout.readline() == f"asked {int(first)}\n"
        asked = time.monotonic()
        child.send_signal(second)
        assert child.wait(timeout=20) == 128 + second
        assert time.monotonic() - asked < 20
        assert child.stdout.read() == ""  # not even clean-up keeps it
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def test_a_signal_that_is_ignored_stays_so():
    """As after nohup, or in the background of a script."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            signal.raise_signal(signal.SIGHUP)
        assert stop.received is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)

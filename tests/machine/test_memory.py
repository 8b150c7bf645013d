"""Memory of a process, and what glibc keeps of it."""

import inspect
import subprocess
import sys

import pytest
import torch

from minilm.machine import memory
from minilm.machine.memory import peak_memory_mb


def test_peak_memory_is_in_megabytes():
    held = torch.ones(64 << 18)  # 64 MiB, touched
    peak = peak_memory_mb(torch.device("cpu"))
    assert 64 < peak < 64 * 1024  # an interpreter with torch, and not 2^10 off
    assert peak >= held.numel() * 4 / 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="others count what began a process, too")
def test_peak_memory_is_of_the_process_alone():
    """Not that of one, larger, that has begun it."""
    code = "import os, re, resource\nfrom contextlib import suppress\nfrom pathlib import Path\n"
    code += "from types import SimpleNamespace\ntorch = SimpleNamespace(device=None)\n"
    code += inspect.getsource(peak_memory_mb) + "print(peak_memory_mb(SimpleNamespace(type='cpu')))"
    alone = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert alone > 4
    assert peak_memory_mb(torch.device("cpu")) > alone + 100  # with torch


def test_freed_memory_is_kept_on_linux_only(monkeypatch):
    called = []

    class Library:
        def mallopt(self, option, value):
            called.append((option, value))

    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: Library())
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    memory.keep_freed_memory()
    assert called == []
    monkeypatch.setattr(memory.sys, "platform", "linux")
    memory.keep_freed_memory()
    assert called == [(-4, 0), (-1, 2**31 - 1)]

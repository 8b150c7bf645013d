"""What can be seen of another device on a CPU."""

import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

ROOT = Path(__file__).parent.parent.parent
TASKS, LANGUAGE_MODELS = 8, 3 * 2 * 3


@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"), reason="this torch cannot pretend"
)
def test_a_step_is_where_it_should_be_and_waits_for_nothing():
    """In a process of its own, which has that device from then on."""
    command = [sys.executable, "-m", "tests.train.elsewhere"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": followed\n") == TASKS + LANGUAGE_MODELS

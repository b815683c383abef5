"""Tests that fork, each in an interpreter of its own: a fork may wait for threads that other tests have left.

Several processes: every cell once, one model in all of them, the metrics of all cells, and a clean end. Faults: work
that is killed or starved goes on; `make attack` runs these with many more trials.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

DEVICES, FAULTS = (Path(__file__).parent / name for name in ("devices.py", "faults/faults.py"))


@pytest.mark.parametrize("name", [*re.findall(r"^def (test_\w+)", DEVICES.read_text(), re.MULTILINE), None])
def test_in_an_interpreter_of_its_own(name):
    """One of the tests of `devices.py`, or all of `faults.py`."""
    file = f"{DEVICES}::{name}" if name else FAULTS
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file]
    done = subprocess.run(command, cwd=FAULTS.parent, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr

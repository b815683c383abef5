"""The tests of `faults.py`, which fork: in a process without threads of other tests, as a fork may wait for these."""

import subprocess
import sys
from pathlib import Path

FAULTS = Path(__file__).with_name("faults.py")


def test_faults():
    """They pass; `make attack` runs them with many more trials."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", FAULTS]
    done = subprocess.run(command, cwd=FAULTS.parent, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr

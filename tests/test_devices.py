"""Several processes: every cell once, one model in all of them, the metrics of all cells, and a clean end."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

DEVICES = Path(__file__).with_name("devices.py")


@pytest.mark.parametrize("name", re.findall(r"^def (test_\w+)", DEVICES.read_text(), re.MULTILINE))
def test_runs_of_several_processes(name):
    """The tests of `devices.py`."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{DEVICES}::{name}"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr

"""Several processes: every cell once, one model in all of them, the metrics of all cells, and a clean end."""

import subprocess
import sys
from pathlib import Path

import pytest

RUNS = [
    "test_two_processes_train_one_model[False]",
    "test_two_processes_train_one_model[True]",
    "test_a_killed_process_ends_the_run_which_can_go_on",
    "test_two_processes_pretrain_one_encoder",
    "test_too_few_cells_for_the_processes",
]


@pytest.mark.parametrize("name", RUNS)
def test_runs_of_several_processes(name):
    """The tests of `devices.py`."""
    test = f"{Path(__file__).with_name('devices.py')}::{name}"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr

"""The public face."""

import os
import subprocess
import sys

import pytest

import sims_kit as sk


def test_everything_named_exists():
    """What `from sims_kit import *` promises is there and documented."""
    assert all(getattr(sk, name).__doc__ for name in sk.__all__ if name != "RECIPES")  # a mapping
    assert set(sk.RECIPES) == {"default", "thesis"}


@pytest.mark.parametrize("given, found", [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_waiting_threads_sleep(given, found):
    """Threads do not spin while they wait, unless the user says so; decided before torch is imported."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment.update({"OMP_WAIT_POLICY": given} if given else {})
    code = (
        "import sys, os\n"
        "class Spy:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch': print(os.environ.get('OMP_WAIT_POLICY')); sys.exit()\n"
        "sys.meta_path.insert(0, Spy())\n"
        "import sims_kit\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == found

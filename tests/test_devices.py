"""Several processes: every cell once, one model in all of them, the metrics of all cells, and a clean end."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from anndata import AnnData

from sims_kit.cells.loaders import CellDataset, CellLoader
from sims_kit.cells.matrix import Expression

RUNS = [
    "test_two_processes_train_one_model[False]",
    "test_two_processes_train_one_model[True]",
    "test_a_killed_process_ends_the_run_which_can_go_on",
    "test_too_few_cells_for_the_processes",
]


@pytest.mark.parametrize("n_ranks", [2, 3, 5])
@pytest.mark.parametrize("n_cells", [10, 11, 12, 13, 95, 96, 97, 98, 99, 100, 101, 131])
@pytest.mark.parametrize("window", [8, 16])
def test_shards_are_disjoint_complete_and_equal(n_ranks, n_cells, window):
    """Whatever the numbers, each cell is in one shard, and all take as many steps, of no less than two cells."""
    cells = CellDataset([Expression(AnnData(np.ones((n_cells, 2))))])
    options = dict(shuffle=True, seed=1, buffer_size=window)
    loaders = [CellLoader(cells, range(n_cells), 8, shard=(rank, n_ranks), **options) for rank in range(n_ranks)]
    for loader in loaders:
        loader.set_epoch(2)
    batches = [list(loader.batches()) for loader in loaders]
    assert sorted(np.concatenate([np.concatenate(of_rank) for of_rank in batches])) == list(range(n_cells))
    assert len({len(of_rank) for of_rank in batches}) == 1
    sizes = [sum(map(len, of_rank)) for of_rank in batches]
    assert max(sizes) - min(sizes) <= 1
    assert all(2 <= len(batch) <= 10 for of_rank in batches for batch in of_rank)
    assert [len(loader) for loader in loaders] == [len(of_rank) for of_rank in batches]


@pytest.mark.parametrize("name", RUNS)
def test_runs_of_several_processes(name):
    """The tests of `devices.py`."""
    test = f"{Path(__file__).with_name('devices.py')}::{name}"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr

"""Cells on a device: the batches of the loader; only on a GPU, and only where there is room."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import Subset

from sims_kit.cells.batches import CellDataset, MemoryCells, cell_loader
from sims_kit.cells.device import DeviceBatches, on_device


@pytest.fixture
def loader(make_cells):
    """A shuffled loader of some cells, one of them empty."""
    matrix = make_cells().X
    matrix.data[matrix.indptr[5] : matrix.indptr[6]] = 0
    matrix.eliminate_zeros()
    dataset = CellDataset([MemoryCells(matrix, "counts", np.arange(120) % 3)])
    return cell_loader(Subset(dataset, list(range(3, 110))), 16, shuffle=True, seed=1)


def test_batches_are_those_of_the_loader(loader):
    """Rows gathered by torch equal those of scipy, and obey torch's rules for CSR; a second epoch, too."""
    there = DeviceBatches(loader.dataset, loader.batch_sampler, torch.device("cpu"))
    assert len(there) == len(loader)
    for epoch in range(2):
        loader.batch_sampler.sampler.set_epoch(epoch)
        for one, other in zip(loader, there, strict=True):
            parts = other.cells.crow_indices(), other.cells.col_indices(), other.cells.values()
            torch.sparse_csr_tensor(*parts, size=other.cells.shape, check_invariants=True)
            assert torch.equal(one.cells.to_dense(), other.cells.to_dense()) and torch.equal(one.labels, other.labels)


def test_only_where_there_is_a_gpu_with_room(loader, monkeypatch):
    """Without a trainer, on a CPU, and on a GPU that is full, the loader stays."""
    assert on_device(loader, None) is loader
    for kind, free, stays in (("cpu", 2**40, True), ("cuda", 1000, True), ("cuda", 2**40, False)):
        trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(kind)))
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, free))
        monkeypatch.setattr("sims_kit.cells.device.DeviceBatches", lambda *parts: parts)
        assert (on_device(loader, trainer) is loader) == stays

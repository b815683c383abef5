"""Batches hold the right cells in the right order, from memory and from files, whatever prepares them."""

from itertools import chain, islice
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import torch

from sims_kit.cells.loaders import CellDataset, CellLoader, query_batches
from sims_kit.cells.matrix import Expression
from sims_kit.datasets.read import open_backed
from sims_kit.errors import DataError

SOURCES = {"csr.h5ad": (90, "counts"), "csr.zarr": (61, "log-normalised"), "dense.h5ad": (45, "normalised")}
N_CELLS = 196  # of all sources


def loader_of(*arguments, block_size=8, buffer_size=64, **options):
    """A CellLoader with small stretches."""
    return type("Loader", (CellLoader,), dict(block_size=block_size, buffer_size=buffer_size))(*arguments, **options)


@pytest.fixture
def datasets(make_cells, tmp_path):
    """The same cells from memory and from files; sources differ in genes, scale and layout."""
    in_memory, in_files = [], []
    for i, (name, (n_cells, state)) in enumerate(SOURCES.items()):
        cells = make_cells(n_cells, seed=i, state=state)
        genes = list(cells.var_names[3:40])
        cells = cells[:, ::-1].copy() if i == 1 else cells[:, i:].copy()
        if name.startswith("dense"):
            cells.X = cells.X.toarray()
        cells.write_h5ad(tmp_path / name, compression="gzip") if "h5ad" in name else cells.write_zarr(tmp_path / name)
        in_memory.append(Expression(cells))
        in_files.append(Expression(open_backed(tmp_path / name)))
    for source in in_memory + in_files:
        source.align(genes)
    labels = np.arange(N_CELLS) // 20
    return {"memory": CellDataset(in_memory, labels), "file": CellDataset(in_files, labels)}


def test_stretches_of_a_sorted_file_are_like_the_whole():
    """Every stretch has each class and source in proportion, within a block or two, and lies in few blocks."""
    labels = np.repeat(np.arange(5), [4000, 2000, 1000, 600, 400])  # sorted by class
    counts = ad.AnnData(sp.csr_matrix(np.ones((8000, 2), np.float32)))
    dataset = CellDataset([Expression(counts), Expression(counts[:4000])], np.concatenate([labels, labels[:4000]]))
    dataset.in_file = True
    loader = loader_of(dataset, range(12_000), 200, shuffle=True, block_size=50, buffer_size=2000)
    expected = np.bincount(labels, minlength=5) / 6
    for stretch in np.concatenate(list(loader.batches())).reshape(6, 2000):
        of_first = dataset.labels[stretch[stretch < 8000]]
        assert np.abs(np.bincount(of_first, minlength=5) - expected).max() <= 100
        assert abs(2000 - len(of_first) - 4000 / 6) <= 100 and len(np.unique(stretch // 50)) == 40
        assert (dataset.labels[stretch.reshape(10, 200)] == 0).sum(axis=1).min() > 60  # each batch is of all of it


@pytest.mark.parametrize("n_ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("n_cells", [10, 11, 12, 13, *range(95, 102), 131])
@pytest.mark.parametrize("window", [8, 16])
def test_shards_are_disjoint_complete_and_equal(n_ranks, n_cells, window):
    """Each cell is in one shard, and all shards take as many steps, of no less than two cells: a last one joins."""
    dataset = SimpleNamespace(in_file=window > 8, locate=lambda positions: (0 * positions, positions))
    dataset.labels = np.arange(n_cells) // 30
    options = dict(shuffle=True, block_size=4, buffer_size=window)
    loaders = [loader_of(dataset, range(n_cells), 8, shard=(rank, n_ranks), **options) for rank in range(n_ranks)]
    batches = [list(loader.batches()) for loader in loaders]
    assert sorted(chain(*chain(*batches))) == list(range(n_cells))
    assert len({*map(len, batches), *map(len, loaders)}) == 1
    assert np.ptp([sum(map(len, of_rank)) for of_rank in batches]) <= 1
    assert all(2 <= len(batch) <= 10 for of_rank in batches for batch in of_rank)


@pytest.mark.parametrize("place", ["memory", "file"])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_threads_change_no_batch(datasets, place, shuffle, num_workers):
    """They hold what was planned, by torch's rules, in two epochs and after a loop that stopped early."""
    dataset, positions = datasets["memory"], np.flatnonzero(np.arange(N_CELLS) % 7)
    loader = loader_of(datasets[place], positions, 16, shuffle=shuffle, seed=3, num_workers=num_workers)
    for epoch in range(2):
        loader.set_epoch(epoch)
        assert len(list(islice(loader, 2))) == 2
        assert sorted(chain(*loader.batches())) == positions.tolist() and len(loader) == 11
        for batch, (cells, labels) in zip(loader.batches(), loader, strict=True):
            parts = cells.crow_indices(), cells.col_indices(), cells.values()
            torch.sparse_csr_tensor(*parts, size=cells.shape, check_invariants=True)
            np.testing.assert_allclose(cells.to_dense(), dataset.rows(batch).toarray(), rtol=1e-5, atol=1e-5)
            assert labels.tolist() == dataset.labels[batch].tolist()


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_the_next_stretches_are_read_while_one_is_used(datasets, monkeypatch, num_workers):
    """Of cells in files, each thread reads one stretch ahead, and no further one."""
    asked, rows = [], CellDataset.rows
    monkeypatch.setattr(CellDataset, "rows", lambda self, which: asked.append(len(which)) or rows(self, which))
    batches = iter(loader_of(datasets["file"], range(N_CELLS), 5, num_workers=num_workers, buffer_size=20))
    next(batches)
    batches.close()  # waits for what is being read
    assert asked == [20] * (max(1, num_workers) + 1)


@pytest.mark.parametrize(("num_workers", "value", "found"), [(0, -2, "from -2 to"), (3, 0.5, "some not whole")])
def test_an_error_while_reading_reaches_the_loop(make_cells, tmp_path, num_workers, value, found):
    """A value that the sample of a file has not shown is reported when it is read, after the batches before it."""
    cells = make_cells(n_cells=9000, n_genes=6)
    cells.X.data[cells.X.indptr[400]] = value
    cells.write_h5ad(tmp_path / "cells.h5ad")
    loader, *_ = query_batches(open_backed(tmp_path / "cells.h5ad"), list(cells.var_names), batch_size=128)
    loader.num_workers, loader.batches_at_once = max(1, num_workers), 2
    batches = iter(loader)
    first = list(islice(batches, 2))
    assert len(first) == 2 and all((batch.labels == -1).all() for batch in first)
    with pytest.raises(DataError, match=rf"taken for counts by a sample .* {found}"):
        list(batches)

"""Batches hold the right cells in the right order, from memory and from files, whatever prepares them."""

import subprocess
import sys
from itertools import chain, islice
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp
import torch

from sims_kit.cells.loaders import CellDataset, CellLoader, query_batches
from sims_kit.cells.matrix import Expression
from sims_kit.datasets.read import open_backed
from sims_kit.errors import DataError, SettingError

SOURCES = {"csr.h5ad": (90, "counts"), "csr.zarr": (61, "log-normalised"), "dense.h5ad": (45, "normalised")}
N_CELLS = 196  # of all sources


def scanpys(counts, genes):
    """Counts of some genes after normalize_total and log1p, as an array."""
    cells = counts[:, genes].copy()
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    return cells.X.toarray()


def loader_of(*arguments, block_size=8, buffer_size=64, **options):
    """A CellLoader with small stretches."""
    return type("Loader", (CellLoader,), dict(block_size=block_size, buffer_size=buffer_size))(*arguments, **options)


def dense(batches):
    """The cells of all batches as one array."""
    return np.vstack([batch.cells.to_dense().numpy() for batch in batches])


@pytest.fixture
def datasets(make_cells, tmp_path):
    """The same cells from memory, from files and as scanpy has them; sources differ in genes, scale and layout."""
    in_memory, in_files, expected = [], [], []
    for i, (name, (n_cells, state)) in enumerate(SOURCES.items()):
        counts, cells = make_cells(n_cells, seed=i), make_cells(n_cells, seed=i, state=state)
        genes = list(counts.var_names[3:40])
        cells = cells[:, ::-1].copy() if i == 1 else cells[:, i:].copy()
        if name.startswith("dense"):
            cells.X = cells.X.toarray()
        cells.write_h5ad(tmp_path / name, compression="gzip") if "h5ad" in name else cells.write_zarr(tmp_path / name)
        in_memory.append(Expression(cells))
        in_files.append(Expression(open_backed(tmp_path / name)))
        expected.append(scanpys(counts, genes))
    for source in in_memory + in_files:
        source.align(genes)
    labels = np.arange(N_CELLS) // 20
    return {"memory": CellDataset(in_memory, labels), "file": CellDataset(in_files, labels)}, np.vstack(expected)


@pytest.mark.parametrize("place", ["memory", "file"])
def test_rows_come_in_the_order_asked_for(datasets, place):
    """Any positions over several sources give scanpy's rows and their labels, as sparse tensors by torch's rules."""
    dataset, expected = datasets[0][place], datasets[1]
    random = np.random.default_rng(0)
    for positions in ([195], range(85, 155), random.permutation(N_CELLS)[:50], random.choice(N_CELLS, 50)):
        cells, labels = dataset.batch(dataset.rows(positions), positions)
        assert (cells.layout, cells.dtype, labels.dtype) == (torch.sparse_csr, torch.float32, torch.int64)
        parts = cells.crow_indices(), cells.col_indices(), cells.values()
        torch.sparse_csr_tensor(*parts, size=cells.shape, check_invariants=True)
        np.testing.assert_allclose(cells.to_dense(), expected[np.array(positions)], rtol=1e-5, atol=1e-5)
        assert labels.tolist() == [position // 20 for position in positions]


@pytest.mark.parametrize("n_cells", [1, 2, 7, 8, 9, 16, 17])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_a_last_batch_of_one_cell_joins(n_cells, batch_size):
    """Every position once, in order, in batches of two or more unless batches of one are asked for."""
    loader = CellLoader(SimpleNamespace(in_file=False), range(n_cells), batch_size)
    batches = list(loader.batches())
    assert list(chain(*batches)) == list(range(n_cells)) and len(batches) == len(loader)
    assert all(len(batch) > 1 for batch in batches) or 1 in (n_cells, batch_size)
    assert max(map(len, batches)) <= batch_size + (batch_size > 1)


@pytest.mark.parametrize("place", ["memory", "file"])
def test_order_follows_from_seed_and_epoch_alone(datasets, place):
    """It has every position once, repeats, and differs between seeds and epochs; global generators have no say."""
    positions = np.flatnonzero(np.arange(N_CELLS) % 5)

    def order(seed, epoch):
        loader = loader_of(datasets[0][place], positions, 16, shuffle=True, seed=seed)
        loader.set_epoch(epoch)
        found = list(chain(*loader.batches()))
        assert sorted(found) == positions.tolist() and found == list(chain(*loader.batches()))
        return tuple(found)

    torch.manual_seed(1)
    first, state = order(0, 3), torch.random.get_rng_state()
    torch.manual_seed(2)
    assert order(0, 3) == first
    assert torch.equal(torch.manual_seed(1).get_state(), state)
    assert len({order(seed, epoch) for seed in range(3) for epoch in range(3)}) == 9


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
        # batches are drawn from the whole stretch
        assert (dataset.labels[stretch.reshape(10, 200)] == 0).sum(axis=1).min() > 60


@pytest.mark.parametrize("n_ranks", [2, 3, 5])
@pytest.mark.parametrize("n_cells", [10, 11, 12, 13, *range(95, 102), 131])
@pytest.mark.parametrize("window", [8, 16])
def test_shards_are_disjoint_complete_and_equal(n_ranks, n_cells, window):
    """Each cell is in one shard, and all shards take as many steps, of no less than two cells."""
    dataset = SimpleNamespace(in_file=window > 8, locate=lambda positions: (0 * positions, positions))
    dataset.labels = np.arange(n_cells) // 30
    options = dict(shuffle=True, block_size=4, buffer_size=window)
    loaders = [loader_of(dataset, range(n_cells), 8, shard=(rank, n_ranks), **options) for rank in range(n_ranks)]
    batches = [list(loader.batches()) for loader in loaders]
    assert sorted(chain(*chain(*batches))) == list(range(n_cells))
    assert len({*map(len, batches), *map(len, loaders)}) == 1
    sizes = [sum(map(len, of_rank)) for of_rank in batches]
    assert max(sizes) - min(sizes) <= 1
    assert all(2 <= len(batch) <= 10 for of_rank in batches for batch in of_rank)


@pytest.mark.parametrize("place", ["memory", "file"])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_threads_change_no_batch(datasets, place, shuffle, num_workers):
    """They hold what was planned, in two epochs and after a loop that stopped early."""
    dataset, positions = datasets[0]["memory"], np.flatnonzero(np.arange(N_CELLS) % 7)
    loader = loader_of(datasets[0][place], positions, 16, shuffle=shuffle, seed=3, num_workers=num_workers)
    for epoch in range(2):
        loader.set_epoch(epoch)
        assert len(list(islice(loader, 2))) == 2
        assert sorted(chain(*loader.batches())) == positions.tolist() and len(loader) == 11
        for batch, (cells, labels) in zip(loader.batches(), loader, strict=True):
            np.testing.assert_allclose(cells.to_dense(), dataset.rows(batch).toarray(), rtol=1e-5, atol=1e-5)
            assert labels.tolist() == dataset.labels[batch].tolist()


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_the_next_stretches_are_read_while_one_is_used(datasets, monkeypatch, num_workers):
    """Of cells in files, each thread reads one stretch ahead, and no further one."""
    asked, rows = [], CellDataset.rows
    monkeypatch.setattr(CellDataset, "rows", lambda self, which: asked.append(len(which)) or rows(self, which))
    batches = iter(loader_of(datasets[0]["file"], range(N_CELLS), 5, num_workers=num_workers, buffer_size=20))
    next(batches)
    batches.close()  # waits for what is being read
    assert asked == [20] * (max(1, num_workers) + 1)


@pytest.mark.parametrize("num_workers", [0, 3])
def test_an_error_while_reading_reaches_the_loop(make_cells, tmp_path, num_workers):
    """A value that the sample of a file has not shown is reported when it is read, after the batches before it."""
    cells = make_cells(n_cells=9000, n_genes=6)
    cells.X.data[cells.X.indptr[400]] = -2
    cells.write_h5ad(tmp_path / "cells.h5ad")
    loader, *_ = query_batches(open_backed(tmp_path / "cells.h5ad"), list(cells.var_names), batch_size=128)
    loader.num_workers, loader.batches_at_once = max(1, num_workers), 2
    batches = iter(loader)
    assert len(list(islice(batches, 2))) == 2
    with pytest.raises(DataError, match=r"taken for counts by a sample .* from -2 to"):
        list(batches)


def test_torchs_beta_warning_is_silent():
    """A fresh process that makes batches prints no warning about sparse tensors, and hides no other one."""
    program = (
        "import warnings; warnings.simplefilter('always')\n"
        "import anndata, numpy as np\n"
        "from sims_kit.cells.loaders import query_batches\n"
        "cells = anndata.AnnData(np.eye(3, dtype=np.float32))\n"
        "cells.var_names = ['ACTB', 'B2M', 'CD3E']\n"
        "list(query_batches(cells, ['B2M', 'CD3E'])[0])\n"
        "warnings.warn('another one')"
    )
    errors = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stderr
    assert "Sparse" not in errors and "another one" in errors


def test_a_query_equals_scanpy_on_the_models_genes(make_cells):
    """Genes come in the model's order, missing ones as zero; a huge gene that the model lacks changes nothing."""
    counts = make_cells()
    vocabulary = list(counts.var_names)
    query = counts[:, :0:-1].copy()
    query.var_names = ["EXTRA", *query.var_names[1:]]  # in place of the model's last gene; its first one is missing
    query.X = sp.csr_matrix(query.X.toarray() + 1000 * (query.var_names == "EXTRA"))
    loader, coverage, scale = query_batches(query, vocabulary, batch_size=32)
    cells = dense(loader)
    np.testing.assert_allclose(cells[:, 1:-1], scanpys(counts, vocabulary[1:-1]), rtol=2e-6)
    assert not cells[:, [0, -1]].any() and all((batch.labels == -1).all() for batch in loader) and len(loader) == 4
    assert scale.is_counts and coverage.missing == [vocabulary[0], vocabulary[-1]] and coverage.extra == 1
    np.testing.assert_array_equal(dense(query_batches(query, vocabulary, cells=[5, 9, 80])[0]), cells[[5, 9, 80]])
    with pytest.raises(SettingError, match="batch_size=0"):
        query_batches(query, vocabulary, batch_size=0)

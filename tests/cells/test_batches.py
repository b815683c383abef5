"""Batches: right rows in the right order, sparse, seeded, never of one cell when it can be helped."""

import subprocess
import sys
from itertools import chain

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp
import torch
from anndata.tests.helpers import assert_equal
from torch.utils.data import Subset

from sims_kit.cells.batches import (
    CellBatchSampler,
    CellDataset,
    MemoryCells,
    ShuffleSampler,
    cell_loader,
    query_batches,
)
from sims_kit.cells.matrix import cell_matrix
from sims_kit.cells.normalise import normalise
from sims_kit.errors import DataError, GeneError, UnknownNameError


@pytest.fixture
def sources(make_cells):
    """Three sources of different sizes and states on the same genes."""
    cells = [
        make_cells(n_cells=n, seed=n, state=state)
        for n, state in [(20, "counts"), (7, "log-normalised"), (13, "normalised")]
    ]
    states = ["counts", "log-normalised", "normalised"]
    labels = [np.arange(c.n_obs) + 100 * i for i, c in enumerate(cells)]
    return [MemoryCells(c.X, state, label) for c, state, label in zip(cells, states, labels, strict=True)]


def dense(sources):
    """All cells of all sources, normalised, as one array."""
    return np.vstack([normalise(source.matrix, source.state).toarray() for source in sources])


@pytest.mark.parametrize("seed", range(3))
def test_rows_come_in_the_order_asked_for(sources, seed):
    """Any positions over several sources give their normalised rows and labels, in that order, as sparse CSR."""
    positions = np.random.default_rng(seed).choice(40, size=25)
    batch = CellDataset(sources).__getitems__(positions.tolist())
    assert batch.cells.layout == torch.sparse_csr and batch.cells.dtype == torch.float32
    np.testing.assert_allclose(batch.cells.to_dense().numpy(), dense(sources)[positions], rtol=1e-6)
    labels = np.concatenate([source.labels for source in sources])
    np.testing.assert_array_equal(batch.labels.numpy(), labels[positions])


def test_sparse_tensors_obey_torchs_rules(sources):
    """Batches satisfy the invariants of torch's sparse CSR tensors (sorted, distinct, in range)."""
    cells = CellDataset(sources).__getitems__([39, 0, 25, 3]).cells
    parts = cells.crow_indices(), cells.col_indices(), cells.values()
    torch.sparse_csr_tensor(*parts, size=cells.shape, check_invariants=True)


@pytest.mark.parametrize("n_cells", [1, 2, 7, 8, 9, 16, 17])
@pytest.mark.parametrize("batch_size", [2, 8])
def test_no_batch_of_one_cell(n_cells, batch_size):
    """Every position once, in order; a single cell left over joins the batch before it; the length is right."""
    sampler = CellBatchSampler(range(n_cells), batch_size)
    batches = list(sampler)
    assert list(chain(*batches)) == list(range(n_cells)) and len(batches) == len(sampler)
    assert all(len(batch) > 1 for batch in batches) or n_cells == 1
    assert max(map(len, batches)) <= batch_size + 1


def test_batches_of_one_stay_when_asked_for():
    """batch_size=1 gives batches of one."""
    sampler = CellBatchSampler(range(3), 1)
    assert list(sampler) == [[0], [1], [2]] and len(sampler) == 3


def test_order_follows_from_seed_and_epoch():
    """An epoch's order repeats for the same seed and differs between epochs and seeds; all positions are there."""

    def order(seed, epoch):
        sampler = ShuffleSampler(range(50), seed)
        sampler.set_epoch(epoch)
        assert list(sampler) == list(sampler)
        return list(sampler)

    assert order(0, 3) == order(0, 3) and sorted(order(0, 3)) == list(range(50))
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_order_ignores_the_global_generator():
    """The global seed of torch has no say in the order of cells."""
    orders = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        orders.append(list(ShuffleSampler(range(50), 0)))
    assert orders[0] == orders[1]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_worker_processes_give_the_same_batches(sources, num_workers):
    """Batches prepared in other processes equal those of this one, two epochs in a row."""
    dataset = Subset(CellDataset(sources), range(3, 38))
    here = cell_loader(dataset, 8, shuffle=True, seed=1)
    there = cell_loader(dataset, 8, shuffle=True, seed=1, num_workers=num_workers)
    for epoch in range(2):
        for loader in (here, there):
            loader.batch_sampler.sampler.set_epoch(epoch)
        for one, two in zip(here, there, strict=True):
            assert torch.equal(one.cells.to_dense(), two.cells.to_dense()) and torch.equal(one.labels, two.labels)


def test_torchs_beta_warning_is_silent():
    """A fresh process that makes batches prints no warning about sparse tensors, and hides no other one."""
    program = (
        "import warnings; warnings.simplefilter('always')\n"
        "import numpy as np, scipy.sparse as sp\n"
        "from sims_kit.cells.batches import CellDataset, MemoryCells\n"
        "CellDataset([MemoryCells(sp.eye(3, format='csr', dtype=np.float32), 'counts')]).__getitems__([0, 2])\n"
        "warnings.warn('another one')"
    )
    errors = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stderr
    assert "Sparse" not in errors and "another one" in errors


def query(make_cells):
    """Counts with genes shuffled, one model gene missing, and an unrelated one added."""
    adata = make_cells()
    genes = list(adata.var_names)
    extra = ad.AnnData(sp.csr_matrix(np.full((adata.n_obs, 1), 1000, np.float32)), obs=adata.obs[[]])
    extra.var_names = ["EXTRA"]
    return ad.concat([adata[:, genes[:0:-1]], extra], axis=1), genes


def test_query_equals_scanpy_on_the_models_genes(make_cells):
    """Batches of a query equal scanpy's normalisation of its aligned genes; a huge extra gene changes nothing."""
    adata, vocabulary = query(make_cells)
    loader, coverage, state = query_batches(adata, vocabulary, batch_size=32)
    ours = np.vstack([batch.cells.to_dense().numpy() for batch in loader])
    expected = adata[:, vocabulary[1:]].copy()
    sc.pp.normalize_total(expected, target_sum=1e4)
    sc.pp.log1p(expected)
    np.testing.assert_allclose(ours[:, 1:], expected.X.toarray(), rtol=2e-6)
    assert (ours[:, 0] == 0).all()
    assert state == "counts" and coverage.missing == vocabulary[:1] and coverage.extra == 1
    assert len(loader) == 4 and all((batch.labels == -1).all() for batch in loader)


@pytest.mark.parametrize("kind", ["dense", "csc", "view", "layer", "raw", "backed", "sparse array", "backed dense"])
def test_every_place_of_a_matrix_gives_the_same_batches(make_cells, kind, tmp_path):
    """X dense, CSC, a view, a layer, raw, a file on disk: the same input; the AnnData stays as it was."""
    adata = make_cells()
    vocabulary, layer = list(adata.var_names[::2]), None
    expected = np.vstack([b.cells.to_dense() for b in query_batches(adata, vocabulary)[0]])
    if kind == "dense":
        adata.X = adata.X.toarray().astype(np.float64)
    elif kind == "csc":
        adata.X = adata.X.tocsc()
    elif kind == "sparse array":
        adata.X = sp.csr_array(adata.X)
    elif kind == "view":
        adata = ad.concat([adata, adata], index_unique="-")[: adata.n_obs]
    elif kind == "layer":
        adata.layers["counts"], layer = adata.X, "counts"
        adata.X = adata.X * -1
    elif kind == "raw":
        adata.raw, layer = adata, "raw"
        adata = adata[:, :3].copy()
    else:
        if kind == "backed dense":
            adata.X = adata.X.toarray()
        adata.write_h5ad(tmp_path / "cells.h5ad")
        adata = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    before = adata.to_memory() if adata.isbacked else adata.copy()
    was_view = adata.is_view
    loader, _, _ = query_batches(adata, vocabulary, layer=layer)
    np.testing.assert_allclose(np.vstack([batch.cells.to_dense() for batch in loader]), expected, rtol=1e-6)
    assert adata.is_view == was_view
    assert_equal(adata.to_memory() if adata.isbacked else adata, before, exact=True)


def test_a_matrix_with_repeated_entries_is_summed_elsewhere(make_cells):
    """CSR with unsorted, repeated entries is read as its sums; the AnnData keeps its own arrays."""
    adata = make_cells()
    X = adata.X
    twice = sp.csr_matrix((np.repeat(X.data / 2, 2), np.repeat(X.indices, 2), X.indptr * 2), shape=X.shape)
    adata.X = twice
    batch = next(iter(query_batches(adata, adata.var_names)[0]))
    np.testing.assert_allclose(batch.cells.to_dense(), normalise(X, "counts").toarray(), rtol=1e-6)
    assert adata.X.nnz == 2 * X.nnz


def test_indices_have_one_type(make_cells):
    """Files may hold row starts in 64 bits and columns in 32: scipy would cast the whole matrix for every batch."""
    adata = make_cells()
    starts = adata.X.indptr.astype(np.int64)
    adata.X.indptr = starts
    matrix, _ = cell_matrix(adata)
    assert matrix.indices.dtype == matrix.indptr.dtype == np.int32 and np.shares_memory(matrix.data, adata.X.data)
    assert adata.X.indptr is starts


def test_bad_queries(make_cells):
    """A scaled query, an unknown layer, another species and text instead of numbers are refused by name."""
    adata = make_cells()
    scaled = make_cells(state="scaled")
    scaled.layers["counts"] = adata.X
    with pytest.raises(DataError, match="layer='counts'"):
        query_batches(scaled, adata.var_names)
    with pytest.raises(UnknownNameError, match="Did you mean 'counts'"):
        query_batches(scaled, adata.var_names, layer="count")
    with pytest.raises(GeneError, match="Only 0 of the model's 2 genes"):
        query_batches(adata, ["ENSG00000000001", "ENSG00000000002"])
    with pytest.raises(DataError, match="no X"):
        query_batches(ad.AnnData(obs=adata.obs, var=adata.var), adata.var_names)

"""A matrix that stays in its file: the same rows as in memory, however it is packed, from any thread or process."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import anndata as ad
import h5py
import numpy as np
import pytest
import scipy.sparse as sp

from sims_kit.datasets.stored import StoredMatrix, free_memory, open_stored, stored_size
from sims_kit.errors import DataError, SettingError, UnknownNameError

PACKINGS = {
    "plain": {},
    "gzip": dict(compression="gzip"),
    "gzip, checked": dict(compression="gzip", shuffle=True, fletcher32=True, chunks=(100,)),
    "shuffled": dict(shuffle=True, chunks=(64,)),
    "lzf": dict(compression="lzf"),  # left to HDF5
    "checked": dict(fletcher32=True, chunks=(100,)),  # so is a checksum that we do not compute
}


@pytest.fixture
def matrix(make_cells):
    """Counts of 120 cells, with an empty first, middle and last cell."""
    X = make_cells().X.tolil()
    X[[0, 60, 119]] = 0
    return sp.csr_matrix(X)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("dtype", [np.float32, np.int64, ">f8"])
def test_rows_are_those_in_memory(matrix, tmp_path, packing, dtype):
    """Every slice gives scipy's rows as float32, however values and genes are packed."""
    with h5py.File(tmp_path / "cells.h5", "w") as file:
        group = file.create_group("X")
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": matrix.shape})
        for name, values in (("data", matrix.data.astype(dtype)), ("indices", matrix.indices)):
            group.create_dataset(name, data=values, **PACKINGS[packing])
        group.create_dataset("indptr", data=matrix.indptr)
        stored = StoredMatrix(group)
    assert all(stored._parts) == (packing not in ("lzf", "checked"))  # what threads can unpack side by side
    for rows in (slice(None), slice(0, 1), slice(59, 62), slice(7, 90), slice(119, 500), slice(5, 5)):
        found = stored[rows]
        assert found.dtype == np.float32 and found.has_canonical_format
        np.testing.assert_array_equal(found.toarray(), matrix[rows].toarray())


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.parametrize("kind", ["X", "dense", "raw", "counts"])
def test_every_place_of_a_matrix(make_cells, tmp_path, suffix, kind):
    """X, raw and layers of both formats: tables in memory, values as anndata writes them, the matrix not read."""
    cells = make_cells()
    wanted, layer = cells.X.toarray(), kind if kind in ("raw", "counts") else None
    if kind == "raw":
        cells.raw = cells
        cells = cells[:, :3].copy()
    elif kind == "counts":
        cells.layers["counts"], cells.X = cells.X.copy(), None
    elif kind == "dense":
        cells.X = wanted
    path = tmp_path / f"cells{suffix}"
    getattr(cells, {".h5ad": "write_h5ad", ".zarr": "write_zarr"}[suffix])(path)
    opened = open_stored(path, layer)
    assert opened.obs.equals(cells.obs) and opened.n_vars == 60
    assert not isinstance(opened.X, np.ndarray) and not sp.issparse(opened.X)
    stored = StoredMatrix(getattr(opened.X, "group", opened.X))
    assert stored.shape == (120, 60) and stored_size(path, layer) == stored.nbytes > 0
    np.testing.assert_array_equal(stored[20:50].toarray(), wanted[20:50])


def test_threads_and_other_processes_read(matrix, tmp_path):
    """Many threads at once, and a pickled copy, get the right rows."""
    ad.AnnData(matrix).write_h5ad(tmp_path / "cells.h5ad", compression="gzip")
    stored = StoredMatrix(open_stored(tmp_path / "cells.h5ad").X.group)
    stored = pickle.loads(pickle.dumps(stored))
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda start: stored[start : start + 3], range(0, 120, 3)))
    np.testing.assert_array_equal(sp.vstack(parts).toarray(), matrix.toarray())


def test_sample_is_spread_over_the_cells(tmp_path):
    """Of many cells some thousand are looked at, the first and the last among them."""
    ad.AnnData(sp.csr_matrix(np.arange(1, 9001, dtype=np.float32)[:, None])).write_h5ad(tmp_path / "cells.h5ad")
    sample = StoredMatrix(open_stored(tmp_path / "cells.h5ad").X.group).sample().toarray().ravel()
    assert len(sample) == 4096 and sample[0] == 1 and sample[-1] == 9000
    assert np.histogram(sample, bins=8)[0].min() > 400


def test_what_cannot_stay_on_disk_is_told(make_cells, tmp_path):
    """Text, a matrix stored by genes, an unknown layer, and a damaged file each have their message."""
    cells = make_cells()
    (tmp_path / "cells.csv").write_text("a,b\n")
    with pytest.raises(SettingError, match=r"only \.h5ad and \.zarr"):
        open_stored(tmp_path / "cells.csv")
    cells.write_h5ad(tmp_path / "cells.h5ad", compression="gzip")
    with pytest.raises(UnknownNameError, match="no layer 'counts'"):
        open_stored(tmp_path / "cells.h5ad", "counts")
    cells.X = cells.X.tocsc()
    cells.write_h5ad(tmp_path / "turned.h5ad")
    assert stored_size(tmp_path / "turned.h5ad") == 0
    with pytest.raises(DataError, match="backed=False"):
        open_stored(tmp_path / "turned.h5ad")
    stored = StoredMatrix(open_stored(tmp_path / "cells.h5ad").X.group)
    place, size, _ = stored._parts[0].table[0]
    content = bytearray((tmp_path / "cells.h5ad").read_bytes())
    content[place + size // 2] ^= 0xFF
    (tmp_path / "cells.h5ad").write_bytes(content)
    with pytest.raises(DataError, match=r"cells\.h5ad is damaged"):
        stored[:]
    (tmp_path / "short.h5ad").write_bytes(content[:1000])
    with pytest.raises(DataError, match=r"short\.h5ad cannot be read"):
        open_stored(tmp_path / "short.h5ad")


def test_free_memory_is_a_number_of_bytes():
    """More than nothing and less than a petabyte is free."""
    assert 2**20 < free_memory() < 2**50

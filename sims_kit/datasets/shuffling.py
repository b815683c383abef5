"""A copy of an `.h5ad` with its cells in random order, in bounded memory."""

import os
import tempfile
import warnings
from pathlib import Path

import h5py
import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from anndata.io import read_elem, sparse_dataset, write_elem

from sims_kit.datasets.convert import STORAGE
from sims_kit.datasets.stored import StoredMatrix, can_stream
from sims_kit.errors import DataError, SettingError
from sims_kit.progress import progress_bar

VALUES_AT_ONCE = 2**25  # nonzeros of one pile: 256 MB, as much again while it is put in order
ROWS_AT_ONCE = 4096  # read before they are dealt onto the piles


def shuffle(source: str | Path, target: str | Path, *, seed: int = 0) -> Path:
    """Copy an `.h5ad` with its cells in random order.

    Training from disk reads neighbouring cells together. It deals the blocks of a sorted file out so that this does no
    harm; where a file is sorted by something else than file and label (donor, batch) and that matters, a shuffled copy
    makes any block like the whole.

    Cells are dealt onto piles on disk at random, then each pile is put in random order. Beside the tables of cells and
    genes, one pile is in memory.

    Parameters
    ----------
    source
        An `.h5ad` with matrices in CSR.
    target
        The file to write; it appears whole, or not at all. `X`, layers, `raw`, `obs`, `obsm`, `var`, `varm`, `varp` and
        `uns` are copied, `obsp` is not.
    seed
        Same seed, same order.

    Returns
    -------
    Path
        The target.

    Raises
    ------
    FileNotFoundError
        There is no source.
    SettingError
        Source or target is no `.h5ad`, or both are one.
    DataError
        A matrix of the source is not CSR.
    """
    source, target = Path(source).expanduser(), Path(target).expanduser()
    if not source.exists():
        raise FileNotFoundError(f"There is no file {source} to shuffle. Check the path.")
    if {source.suffix, target.suffix} != {".h5ad"} or source.resolve() == target.resolve():
        raise SettingError(f"shuffle copies one .h5ad to another; got {source} and {target}.")
    with (
        h5py.File(source, "r") as file,
        tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.stem}-") as folder,
    ):
        matrices = _matrices(file, source)
        order = np.random.default_rng(seed).permutation(matrices["X"].shape[0] if "X" in matrices else len(_obs(file)))
        whole = Path(folder, "whole.h5ad")
        _write_tables(file, whole, order)
        for key, matrix in matrices.items():
            _write_matrix(matrix, order, whole, key, Path(folder, "piles.h5"))
        os.replace(whole, target)
    return target


def _obs(file: h5py.File):
    return read_elem(file["obs"])


def _matrices(file: h5py.File, source: Path) -> dict[str, StoredMatrix]:
    """X, layers and raw, as far as they are there."""
    keys = [key for key in ("X", "raw/X", *(f"layers/{name}" for name in file.get("layers", ()))) if key in file]
    for key in keys:
        if not isinstance(file[key], h5py.Group) or not can_stream(file[key]):
            raise DataError(f"{source}: {key} is not stored as CSR. Write it anew with adata.{key} as a csr_matrix.")
    return {key: StoredMatrix(file[key]) for key in keys}


def _write_tables(file: h5py.File, path: Path, order: np.ndarray) -> None:
    """Everything but the matrices, cells in the new order."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(Variable|Observation) names are not unique")
        cells = AnnData(
            obs=_obs(file).iloc[order],
            var=read_elem(file["var"]),
            obsm={name: read_elem(file["obsm"][name])[order] for name in file.get("obsm", ())},
            **{key: read_elem(file[key]) for key in ("varm", "varp", "uns") if key in file},
        )
        cells.write_h5ad(path)
    with h5py.File(path, "a") as target:
        target.pop("X", None)
        for key in ("var", "varm"):
            if f"raw/{key}" in file:
                write_elem(target, f"raw/{key}", read_elem(file[f"raw/{key}"]))
        if "raw" in target:
            target["raw"].attrs.update({"encoding-type": "raw", "encoding-version": "0.1.0"})


def _write_matrix(matrix: StoredMatrix, order: np.ndarray, path: Path, key: str, piles: Path) -> None:
    n_piles = max(1, -(-matrix.nbytes // (8 * VALUES_AT_ONCE)))
    edges = np.linspace(0, len(order), n_piles + 1).astype(int)  # of the new order
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    pile = np.searchsorted(edges, place, side="right") - 1  # of each cell of the source
    storage = STORAGE | dict(indptr_dtype=np.int64)
    with h5py.File(piles, "w") as heap, progress_bar(total=2 * len(order), desc=f"shuffling {key}", unit="cell") as bar:
        for start in range(0, len(order), ROWS_AT_ONCE):
            rows = matrix[start : start + ROWS_AT_ONCE]
            of_rows = pile[start : start + ROWS_AT_ONCE]
            for number in np.unique(of_rows):
                _append(heap, str(number), rows[of_rows == number], {"indptr_dtype": np.int64})
            bar.update(rows.shape[0])
        with h5py.File(path, "a") as target:
            for number in range(n_piles):
                cells = np.flatnonzero(pile == number)
                rows = sparse_dataset(heap[str(number)])[:][np.argsort(place[cells])]
                _append(target, key, rows, storage)
                bar.update(len(cells))


def _append(file: h5py.File, key: str, rows: sp.csr_matrix, storage: dict) -> None:
    if key in file:
        sparse_dataset(file[key]).append(rows)
    else:
        write_elem(file, key, rows, dataset_kwargs=storage)

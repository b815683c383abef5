"""One function, `read`: a file of any of the field's formats becomes an AnnData with cells in rows."""

import os
import re
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.io
import scipy.sparse as sp
from anndata import AnnData

from sims_kit.datasets.delimited import open_text, read_delimited
from sims_kit.datasets.fetch import plain_problem
from sims_kit.errors import DataError, SettingError, nearest

ORIENTATIONS = ("cells_by_genes", "genes_by_cells")
DELIMITED = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")
HDF = (".h5", ".hdf5", ".hdf", ".loom", ".h5ad")
FORMATS = (
    "an AnnData file (.h5ad, .zarr), a 10x file (.h5) or folder (matrix.mtx, features or genes, barcodes; "
    "gzipped or not), delimited text (.csv, .tsv, .txt, each also with .gz), .loom, "
    "or a pandas DataFrame (.h5, .hdf5, .hdf)"
)
ROWS_PER_CHUNK = 1000  # of a dense matrix that is made sparse on its way in


def read(path: str | Path, *, orientation: str = "cells_by_genes") -> AnnData:
    """Read a matrix of cells and genes, every value as it is in the file.

    Parameters
    ----------
    path
        An AnnData file (``.h5ad``, ``.zarr``), a 10x file (``.h5``) or folder (``matrix.mtx``, ``features.tsv``
        or ``genes.tsv``, ``barcodes.tsv``, gzipped or not), delimited text (``.csv``, ``.tsv``, ``.txt``, also
        ``.gz``; names in the first line and column), ``.loom``, or a pandas DataFrame written by ``to_hdf``
        (which may hold pickled objects: open only those you trust). An ``.h5`` with datasets ``X`` and ``Y``
        alone (the layout of scDeepCluster) gets made-up gene names, and ``Y`` as ``obs["cell_type"]``.
    orientation
        ``"genes_by_cells"`` turns a file that has genes in rows. 10x and loom files always have, and arrive
        turned already: leave the default for them.

    Returns
    -------
    AnnData, cells x genes
        ``X`` is CSR, float32 unless the file holds a CSR matrix of another type. Names are str; duplicates stay.

    Raises
    ------
    FileNotFoundError
        Nothing is there; names like it in the same folder are offered.
    DataError
        The file is empty, damaged or of an unknown format. The reader's own error is kept as the cause.
    SettingError
        The path is none, or the orientation is not one of the two.
    """
    if not isinstance(path, str | os.PathLike):
        raise SettingError(f"read takes the path of a file, not an object of type {type(path).__name__}.")
    if orientation not in ORIENTATIONS:
        raise SettingError(f"orientation={orientation!r} does not exist. {nearest(orientation, ORIENTATIONS)}")
    path = Path(path).expanduser()
    reader = _reader_of(path)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "(Variable|Observation) names are not unique")  # summed when aligned
            adata = reader(path)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # whatever the format's library raises: the file is at fault, so say which
        raise DataError(
            f"{path} cannot be read ({type(error).__name__}: {_first_line(error)}). It is damaged, cut short, or not "
            "what its name says. Download or write it again."
        ) from error
    return _tidy(adata.T if orientation == "genes_by_cells" else adata)


def _reader_of(path: Path) -> Callable[[Path], AnnData]:
    """The function that reads this path, by its name and, for folders, by what lies in it."""
    if not os.path.exists(path):  # unlike Path's, it takes names that are too long
        siblings = [sibling.name for sibling in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = nearest(path.name, siblings) if siblings else f"The folder {path.parent} does not exist or is empty."
        raise FileNotFoundError(f"There is no file {path}. {hint}")
    if path.is_dir():
        names = sorted(child.name for child in path.iterdir())
        if path.suffix == ".zarr" or {".zgroup", "zarr.json"} & set(names):
            return _read_zarr
        if any(re.search(r"matrix\.mtx(\.gz)?$", name) for name in names):
            return _read_10x_folder
        raise DataError(
            f"{path} is a folder with {names[:8] or 'nothing in it'}. Expected a .zarr store or a 10x folder with "
            "matrix.mtx, features.tsv (or genes.tsv) and barcodes.tsv, each gzipped or not."
        )
    _refuse_plain_problem(path)
    name = path.name.lower()
    if name.endswith(DELIMITED):
        return read_delimited
    if name.endswith(HDF):
        return _read_hdf
    if name.endswith((".mtx", ".mtx.gz")):
        raise DataError(f"{path} has no names of genes and cells beside its values. Give its folder: {path.parent}")
    way_out = "Unpack it first" if name.endswith((".gz", ".bz2", ".zip", ".tar", ".tgz", ".xz")) else "Convert it first"
    raise DataError(f"{path.name!r} is of no known format. {way_out}; expected {FORMATS}.")


def _refuse_plain_problem(path: Path) -> None:
    if problem := plain_problem(path):
        raise DataError(f"{path} {problem}. Download or write it again.")


def _tidy(adata: AnnData) -> AnnData:
    """CSR, names as str, and no empty matrix."""
    if 0 in adata.shape:
        raise DataError(
            f"The matrix has {adata.n_obs:,} cells and {adata.n_vars:,} genes. Expected at least one of each."
        )
    if adata.is_view:  # a turned AnnData
        adata = adata.copy()
    if adata.X is not None and not (sp.issparse(adata.X) and adata.X.format == "csr"):
        adata.X = sp.csr_matrix(adata.X, dtype=np.float32)
    adata.obs_names, adata.var_names = adata.obs_names.astype(str), adata.var_names.astype(str)
    return adata


def _read_hdf(path: Path) -> AnnData:
    """Any HDF5 file, told apart by what lies in it, since suffixes are used loosely."""
    if not h5py.is_hdf5(path):
        with path.open("rb") as file:
            start = file.read(8)
        raise DataError(
            f"{path} is not an HDF5 file, though its name says so: it starts with {start!r}. "
            "Download or write it again, or give it the ending of what it is."
        )
    with h5py.File(path, "r") as file:
        keys = set(file)
        if {"row_attrs", "col_attrs", "matrix"} <= keys:
            return _read_loom(file)
        if {"obs", "var"} <= keys:
            dense = isinstance(file.get("X"), h5py.Dataset)
            return anndata.io.read_h5ad(path, as_sparse=["X"] if dense else [])
        if isinstance(file.get("X"), h5py.Dataset):
            return _read_x_and_y(file)
        is_pandas = any("pandas_type" in group.attrs for group in file.values())
        is_10x = any(isinstance(group, h5py.Group) and {"barcodes", "indptr"} <= set(group) for group in file.values())
    if is_pandas:
        frame = pd.read_hdf(path)
        return AnnData(sp.csr_matrix(frame.to_numpy(np.float32)), _names(frame.index), _names(frame.columns))
    if is_10x:
        import scanpy  # takes seconds

        return scanpy.read_10x_h5(path)
    raise DataError(
        f"{path} is an HDF5 file with {sorted(keys)[:8]}, which is no layout that sims_kit knows. "
        "Expected AnnData, 10x, loom, a pandas DataFrame, or datasets X and Y."
    )


def _read_loom(file: h5py.File) -> AnnData:
    """A loom file (genes x cells), read without loompy; attributes of one dimension become columns."""
    obs, var = _loom_attributes(file["col_attrs"]), _loom_attributes(file["row_attrs"])
    obs.index = _first_column(obs, ("CellID", "obs_names", "Barcode", "barcode", "cell_names"), "cell")
    var.index = _first_column(var, ("Gene", "var_names", "gene_names", "Accession"), "gene")
    layers = {name: _sparse(file, f"layers/{name}").T.tocsr() for name in file.get("layers", {})}
    return AnnData(_sparse(file, "matrix").T.tocsr(), obs=obs, var=var, layers=layers)


def _loom_attributes(group: h5py.Group) -> pd.DataFrame:
    """The one-dimensional attributes of a loom file's rows or columns."""
    values = {name: dataset for name, dataset in group.items() if dataset.ndim == 1}
    return pd.DataFrame({k: d.asstr()[:] if h5py.check_string_dtype(d.dtype) else d[:] for k, d in values.items()})


def _first_column(table: pd.DataFrame, candidates: Iterable[str], what: str) -> pd.Index:
    """The column that holds the names; `DataError` when none of the candidates is there."""
    for candidate in candidates:
        if candidate in table:
            return pd.Index(table.pop(candidate).astype(str), name=None)
    raise DataError(f"The loom file names no {what}: expected one of {list(candidates)}, found {list(table)}.")


def _read_x_and_y(file: h5py.File) -> AnnData:
    """A dense `X` (cells x genes) with numeric or text labels `Y`, and no names."""
    X = _sparse(file, "X")
    obs = pd.DataFrame(index=[f"cell_{i:05d}" for i in range(1, X.shape[0] + 1)])
    if "Y" in file:
        labels = file["Y"]
        is_text = h5py.check_string_dtype(labels.dtype)
        obs["cell_type"] = labels.asstr()[:] if is_text else [f"type {value:g}" for value in labels[:]]
    return AnnData(X, obs=obs, var=pd.DataFrame(index=[f"gene_{i:05d}" for i in range(1, X.shape[1] + 1)]))


def _sparse(file: h5py.File, name: str) -> sp.csr_matrix:
    """A dense HDF5 matrix as CSR float32, a thousand rows at a time."""
    shape, chunks, itemsize = file[name].shape, file[name].chunks or (1, 1), file[name].dtype.itemsize
    access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
    band = chunks[0] * (shape[1] + chunks[1]) * itemsize  # room for one row of chunks: each is unpacked once
    access.set_chunk_cache(10_007, band, 1.0)
    dataset = h5py.Dataset(h5py.h5d.open(file.id, name.encode(), access)).astype(np.float32)
    blocks = [sp.csr_matrix(dataset[start : start + ROWS_PER_CHUNK]) for start in range(0, shape[0], ROWS_PER_CHUNK)]
    return sp.vstack(blocks, format="csr") if blocks else sp.csr_matrix(shape, dtype=np.float32)


def _read_zarr(path: Path) -> AnnData:
    return anndata.io.read_zarr(path)


def _read_10x_folder(path: Path) -> AnnData:
    """A 10x folder, of any release and with any prefix to its names. Symbols become the names of the genes."""
    matrix = _only_file(path, "matrix.mtx")
    features = _read_names(_only_file(path, "features.tsv", "genes.tsv"))
    barcodes = _read_names(_only_file(path, "barcodes.tsv"))
    X = scipy.io.mmread(matrix).T.tocsr().astype(np.float32)
    if X.shape != (len(barcodes), len(features)):
        raise DataError(
            f"{matrix} has {X.shape[1]:,} genes and {X.shape[0]:,} cells, but its other files name "
            f"{len(features):,} genes and {len(barcodes):,} barcodes. The three files do not belong together."
        )
    symbols = features[1] if 1 in features else features[0]
    var = pd.DataFrame({"gene_ids": features[0].tolist()}, index=symbols.tolist())
    if 2 in features:
        var["feature_types"] = features[2].to_numpy()
    adata = AnnData(X, obs=_names(barcodes[0]), var=var)
    is_gene = np.ones(adata.n_vars, bool) if 2 not in features else (features[2] == "Gene Expression").to_numpy()
    return adata[:, is_gene].copy() if is_gene.any() else adata


def _only_file(folder: Path, *endings: str) -> Path:
    """The one file of a folder whose name ends so, gzipped or not."""
    found = [f for f in sorted(folder.iterdir()) if f.name.endswith((*endings, *(f"{end}.gz" for end in endings)))]
    if len(found) == 1:
        _refuse_plain_problem(found[0])
        return found[0]
    many = f"{len(found)} such files: {[f.name for f in found]}" if found else "none"
    raise DataError(f"{folder} must hold one {' or '.join(endings)}, gzipped or not. Found {many}.")


def _read_names(path: Path) -> pd.DataFrame:
    """A table without a header, every field as text."""
    with open_text(path) as text:
        return pd.read_csv(text, sep="\t", header=None, dtype=str, na_filter=False, quoting=3)


def _names(values: Iterable[object]) -> pd.DataFrame:
    """An obs or var table with names and no columns."""
    return pd.DataFrame(index=pd.Index([str(value) for value in values]))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]

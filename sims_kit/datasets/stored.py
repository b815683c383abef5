"""A matrix that stays in its file: an `.h5ad` or `.zarr`, read in blocks of neighbouring cells.

HDF5 lets one thread in at a time, unpacking included. Where a file is packed as anndata packs it (not at all, or with
gzip), `sims_kit.datasets.hdf5` reads and unpacks its chunks, by as many threads as ask; otherwise HDF5 or zarr does.
"""

import os
import warnings
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
import zarr
from anndata import AnnData
from anndata.abc import CSRDataset
from anndata.io import read_elem, sparse_dataset

from sims_kit.datasets.hdf5 import HDF5Array
from sims_kit.errors import DataError, SettingError, UnknownNameError

MEMORY_SHARE = 0.3  # of the free memory, for all matrices together: while they are read, each is there thrice
NAMED = 100_000  # cells; a matrix with more rows is not turned, so that nobody needs to look at their names
SAMPLE_BLOCKS, SAMPLE_CELLS = 16, 256  # of each block: enough to tell what a matrix holds

Element = h5py.Group | h5py.Dataset | zarr.Group | zarr.Array


class StoredMatrix:
    """A CSR or dense matrix in a file; a slice of rows gives them as CSR.

    Any number of threads may read; so may other processes, since the file is opened anew where it is first read.

    Parameters
    ----------
    element
        Where the matrix is, in an open file: ``file["X"]``. The file may be closed afterwards.

    Attributes
    ----------
    shape
        Cells, genes.
    nbytes
        What it would take in memory as CSR, float32; of a dense matrix, at most.

    Raises
    ------
    DataError
        The matrix is stored by genes (CSC), so that no cell can be read without reading all.
    """

    def __init__(self, element: Element):
        if not can_stream(element):
            raise DataError(
                f"{_where(element)} is neither CSR nor dense, so its cells cannot be read one after the other. Read it "
                'into memory (backed=False), or write it again: adata.X = adata.X.tocsr(); adata.write_h5ad("new.h5ad")'
            )
        self.path, self.key = _where(element), element.name
        self._zarr = element if isinstance(element, zarr.Group | zarr.Array) else None
        self._indptr, self._parts = None, ()
        if isinstance(element, h5py.Dataset | zarr.Array):
            self.shape = tuple(map(int, element.shape))
            self.nbytes = 8 * self.shape[0] * self.shape[1]
        else:
            self.shape = sparse_dataset(element).shape
            self._indptr = element["indptr"][:].astype(np.int64)
            self.nbytes = 8 * int(self._indptr[-1])
            self._parts = [HDF5Array.of(element[name]) for name in ("data", "indices")] if not self._zarr else [None]
        self._handles: dict[int, Element | int] = {}

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_handles": {}}

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> sp.csr_matrix:
        """These neighbouring cells, (cells, genes), float32, sorted, without duplicate entries."""
        start, stop, _ = rows.indices(self.shape[0])
        stop = max(start, stop)
        if self._indptr is None:
            return sp.csr_matrix(np.asarray(self._element[start:stop], np.float32))
        indptr = self._indptr[start : stop + 1]
        if all(self._parts):
            values, genes = (part.read(self._file, indptr[0], indptr[-1], self.path) for part in self._parts)
        else:
            values, genes = (self._element[name][indptr[0] : indptr[-1]] for name in ("data", "indices"))
        values, genes = values.astype(np.float32, copy=False), genes.astype(np.int32, copy=False)
        block = sp.csr_matrix((values, genes, (indptr - indptr[0]).astype(np.int32)), (stop - start, self.shape[1]))
        if not block.has_canonical_format:
            block = block.copy()  # what was read may not be written to
            block.sum_duplicates()
        return block

    def sample(self) -> sp.csr_matrix:
        """Some thousand cells from start to end; all of them when there are no more."""
        starts = np.linspace(0, max(0, len(self) - SAMPLE_CELLS), SAMPLE_BLOCKS).astype(int)
        if len(self) <= SAMPLE_BLOCKS * SAMPLE_CELLS:
            return self[:]
        return sp.vstack([self[start : start + SAMPLE_CELLS] for start in starts], format="csr")

    @property
    def _element(self) -> Element:
        """The matrix in a file that this process opened."""
        if self._zarr is not None:
            return self._zarr
        return self._handle(lambda: h5py.File(self.path, "r")[self.key])

    @property
    def _file(self) -> int:
        """The descriptor of the file in this process."""
        return self._handle(self._opened)

    def _opened(self) -> int:
        file = os.open(self.path, os.O_RDONLY)
        weakref.finalize(self, os.close, file)
        return file

    def _handle(self, make):
        if os.getpid() not in self._handles:
            self._handles[os.getpid()] = make()
        return self._handles[os.getpid()]


def can_stream(element: object) -> bool:
    """Whether this is a matrix in a file whose cells can be read one after the other."""
    if isinstance(element, h5py.Group | zarr.Group):
        return element.attrs.get("encoding-type", element.attrs.get("h5sparse_format")) in ("csr_matrix", "csr")
    return isinstance(element, h5py.Dataset | zarr.Array) and element.ndim == 2


def stored_element(matrix: object) -> Element | None:
    """Where the matrix of an AnnData lies, if it is still in a file and can be streamed."""
    element = matrix.group if isinstance(matrix, CSRDataset) else matrix
    return element if can_stream(element) else None


def is_stored(path: str | os.PathLike) -> bool:
    """Whether the path is an AnnData file, `.h5ad` or `.zarr`, whose matrix can stay there."""
    return Path(path).suffix in (".h5ad", ".zarr") and Path(path).exists()


def stored_size(path: str | os.PathLike, layer: str | None = None) -> int:
    """Bytes that the matrix of one layer would take in memory; 0 if it cannot stay on disk, or be read at all."""
    try:
        root = _opened(path)
        element = root[_keys(layer)[0]]
        if not can_stream(element):
            return 0
        is_dense = isinstance(element, h5py.Dataset | zarr.Array)
        return 8 * (int(np.prod(element.shape)) if is_dense else int(element["data"].shape[0]))
    except Exception:  # whoever reads the file says what is wrong with it
        return 0


def left_on_disk(paths: Sequence[Path | None], layer: str | None, backed: bool | str) -> list[bool]:
    """Which files to leave on disk; None stands for what must be read.

    Parameters
    ----------
    backed
        True or False for all, or ``"auto"``: those that can be, when together they would take more than three tenths
        of the free memory.
    """
    if backed != "auto":
        return [bool(backed) and path is not None for path in paths]
    sizes = [0 if path is None else stored_size(path, layer) for path in paths]
    return [size > 0 and sum(sizes) > MEMORY_SHARE * free_memory() for size in sizes]


def open_stored(path: str | os.PathLike, layer: str | None = None, columns: Iterable[str] | None = None) -> AnnData:
    """An AnnData file with its tables in memory and the matrix of one layer, as `X`, still in the file.

    Parameters
    ----------
    path
        An `.h5ad` or `.zarr`.
    layer
        None for `X`, ``"raw"`` (which has its own genes), or a layer's name.
    columns
        The columns of `obs` that will be needed, if that is known: of more than 100,000 cells no others are read, and
        their names are left empty, which would take more memory than all else that is kept of a cell.

    Raises
    ------
    SettingError
        The file is of another format.
    UnknownNameError
        There is no such layer.
    DataError
        The file is damaged, or its matrix is stored by genes.
    """
    if not is_stored(path):
        raise SettingError(
            f"{path} cannot stay on disk: only .h5ad and .zarr can. Leave backed out, or convert it once with "
            "sims_kit.datasets.convert."
        )
    try:
        root = _opened(path)
        layers = [*root.get("layers", ())] + ["raw"] * ("raw" in root)
        if layer not in (None, *layers):
            raise UnknownNameError("layer", layer, layers)
        key, var = _keys(layer)
        if key not in root:
            raise DataError(f"{path} has no X. Pass layer=: one of {layers}.")
        element = root[key]
        matrix = sparse_dataset(element) if isinstance(element, h5py.Group | zarr.Group) else element
        uns = read_elem(root["uns/sims_kit"]) if "uns/sims_kit" in root else {}
        with warnings.catch_warnings():  # as of files that are read whole
            warnings.filterwarnings("ignore", "(Variable|Observation) names are not unique")
            adata = AnnData(
                matrix, obs=_table_of_cells(root["obs"], columns), var=read_elem(root[var]), uns={"sims_kit": uns}
            )
    except (DataError, UnknownNameError):
        raise
    except Exception as error:  # whatever the format's library raises: the file is at fault, so say which
        raise DataError(
            f"{path} cannot be read ({type(error).__name__}: {error}). It is damaged, cut short, or not what its name "
            "says. Download or write it again."
        ) from error
    if not can_stream(element):
        StoredMatrix(element)  # says why not
    adata.obs_names, adata.var_names = adata.obs_names.astype(str), adata.var_names.astype(str)
    return adata


def _table_of_cells(group: h5py.Group | zarr.Group, columns: Iterable[str] | None) -> pd.DataFrame:
    n_cells = group[group.attrs["_index"]].shape[0]
    if n_cells <= NAMED or columns is None or not all(column in group for column in columns):
        return read_elem(group)
    nameless = pd.Index(np.full(n_cells, "", object), dtype=object)
    return pd.DataFrame({column: read_elem(group[column]) for column in columns}, nameless)


def stored_names(path: str | os.PathLike, rows: np.ndarray | slice) -> list[str]:
    """Names of these cells of an AnnData file, which nobody holds in memory meanwhile."""
    return open_stored(path).obs_names[rows].tolist()


def free_memory() -> int:
    """Bytes that this process can still get: of the machine, or of its container where that has less."""
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 2**33
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    limit, used = (_lines(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit and used and limit[0].isdecimal():
        available = min(available, int(limit[0]) - int(used[0]))
    return available


def _opened(path: str | os.PathLike) -> h5py.File | zarr.Group:
    return zarr.open_group(path, mode="r") if Path(path).suffix == ".zarr" else h5py.File(path, "r")


def _keys(layer: str | None) -> tuple[str, str]:
    """Where a layer's matrix and genes are in a file."""
    return {None: ("X", "var"), "raw": ("raw/X", "raw/var")}.get(layer, (f"layers/{layer}", "var"))


def _where(element: Element) -> str:
    if isinstance(element, h5py.Group | h5py.Dataset):
        return os.path.abspath(element.file.filename)
    return str(element.store)


def _lines(path: str) -> Sequence[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []

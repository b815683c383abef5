"""From an AnnData or a file to model input: find the matrix, recognise its scale, align genes, take log1p of 10,000."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
import zarr
from anndata import AnnData
from anndata.abc import CSRDataset

from sims_kit.cells.genes import GeneAlignment, GeneCoverage, align_genes, gene_rows
from sims_kit.datasets.load import load
from sims_kit.datasets.read import convert, is_backable, open_backed, read
from sims_kit.errors import DataError, SettingError, UnknownNameError
from sims_kit.text import warn

SAMPLE_BLOCKS, SAMPLE_CELLS = 16, 24  # cells that a scale is recognised from, spread over the matrix
MEMORY_SHARE = 0.1  # of the memory: larger files stay on disk; compressed ones are several times as large when read
UNDO = {
    "linear": lambda values: values,
    "log1p(x)": np.expm1,
    "log2(x + 1)": lambda values: np.exp2(values) - 1,
    "log10(x + 1)": lambda values: np.power(10.0, values) - 1,
    "sqrt(x)": np.square,
}
LARGEST = {"log1p(x)": 21.0, "log2(x + 1)": 30.0, "log10(x + 1)": 9.2}  # logarithms of 1e9: no expression is above it
OF_ONE_SCALE = "Bring all cells to one scale before they are joined, or pass a layer that has counts throughout."
EXACT, MARGIN = -1.5, 0.3  # log10 of the largest mean distance to whole numbers, and of its ratio to the second best


class Scale(NamedTuple):
    """What the values of a matrix are: counts, or a transform of them that can be undone."""

    transform: str  # a key of `UNDO`; "unknown" when values are used as they are, without normalisation
    is_counts: bool = False  # all values are whole numbers
    total: float | None = None  # sum of every cell on the linear scale, when it is one number

    @property
    def state(self) -> str:
        """``"counts"``, ``"normalised"`` or ``"log-normalised"``, the words of `data_registry.yaml`."""
        return "counts" if self.is_counts else "normalised" if self.transform == "linear" else "log-normalised"

    def __str__(self) -> str:
        total = f", {self.total:,.{0 if self.total > 100 else 3}f} per cell" if self.total else ""
        words = {"linear": "counts" if self.is_counts else "normalised values", "unknown": "values of unknown scale"}
        return words.get(self.transform, self.transform) + total


AS_IS = Scale("unknown")


def detect_scale(matrix: sp.csr_matrix, *, name: str = "The matrix", layers: Sequence[str] = (), log1p=None) -> Scale:
    """Recognise the scale of a matrix, CSR (cells, genes), from its values.

    Whole numbers are counts. Otherwise each transform of `UNDO` is undone: the right one turns a cell's values into
    multiples of the value of a single count, or gives all cells the same sum. `log1p` is ``adata.uns["log1p"]``, used
    when the values alone do not tell. Empty, negative, not finite and mixed matrices are a `DataError`.

    >>> str(detect_scale(sp.csr_matrix(np.log1p([[1.0, 2.0, 5.0], [3.0, 1.0, 4.0]]))))
    'log1p(x)'
    """
    _check_values(matrix, name, layers)
    others = np.flatnonzero(~_whole_rows(matrix))
    if not len(others):
        return Scale("linear", is_counts=True)
    sample = np.linspace(0, len(others) - 1, min(len(others), SAMPLE_BLOCKS * SAMPLE_CELLS)).astype(int)
    scale = _scale_of_fractions(matrix[others[sample]], name, log1p)
    if n_other := int(_of_other_scale(matrix, scale).sum()):
        found = f"{n_other:,} cells hold whole numbers, as counts do, or values too large for a logarithm"
        raise DataError(f"{name} mixes scales: {found}, and the others {scale}. {OF_ONE_SCALE}")
    return scale


def _check_values(matrix: sp.csr_matrix, name: str, layers: Sequence[str]) -> None:
    values = matrix.data
    low, high = values.min(initial=0), values.max(initial=0)  # NaN if there is any
    if low == high == 0:
        found = f"{matrix.shape[0]:,} cells x {matrix.shape[1]:,} genes{', all zero' * (0 not in matrix.shape)}"
        raise DataError(f"{name} is empty ({found}). Expected cells with expression values; check the file or layer.")
    if not np.isfinite([low, high]).all():
        found = f"{name} holds {np.count_nonzero(~np.isfinite(values)):,} NaN or infinite values"
        raise DataError(f"{found}. They must be finite: write 0 where a gene was not detected, or pass another layer.")
    if low < 0:
        here = f" This AnnData holds layer={' or '.join(map(repr, layers))}." if layers else ""
        found = f"{name} holds negative values (down to {low:.3g}): it was scaled, centred or integrated"
        way_out = 'Pass counts or log-normalised values, for example layer="counts" or layer="raw".'
        raise DataError(f"{found}, which cannot be undone. {way_out}{here}")


def _whole_rows(matrix: sp.csr_matrix) -> np.ndarray:
    """Whether each cell holds whole numbers only, (cells,) bool."""
    n_fractional = np.concatenate([[0], np.cumsum(matrix.data != np.rint(matrix.data))])
    return n_fractional[matrix.indptr[1:]] == n_fractional[matrix.indptr[:-1]]


def _of_other_scale(matrix: sp.csr_matrix, scale: Scale) -> np.ndarray:
    """(cells,) bool: cells that cannot be of this scale, although their values are finite and not negative."""
    are_whole = _whole_rows(matrix)
    if scale.transform == "linear":
        return ~are_whole & scale.is_counts
    largest = matrix.max(axis=1).toarray().ravel()
    is_counted = are_whole & (np.diff(matrix.indptr) >= 5) & (largest >= 2)
    return is_counted | (largest > LARGEST.get(scale.transform, np.inf))


def _scale_of_fractions(cells: sp.csr_matrix, name: str, log1p) -> Scale:
    """The scale of cells, each of which has fractional values."""
    rows = [row[row > 0] for row in np.split(cells.data.astype(np.float64), cells.indptr[1:-1])]
    evidence = np.array([[_evidence(row, low, t) for t in UNDO] for row in rows for low in [np.unique(row)[:64]]])
    sums, distances, numbers = np.moveaxis(evidence, 2, 0)  # each (cells, transforms)
    by_sum = _are_powers_of_ten(sums[:, :-1])  # but not of squares
    by_multiples = (_best_transform(*of_cell, least=3) for of_cell in zip(distances, numbers, strict=True))
    votes = [list(UNDO)[a.argmax()] if a.any() else b for a, b in zip(by_sum, by_multiples, strict=True)]
    votes = pd.Series(votes).value_counts()
    if len(votes) > 1 and votes.iloc[1] > max(1, 0.05 * len(rows)):
        found = " and ".join(f"{n_cells:,} hold {transform} values" for transform, n_cells in votes[:2].items())
        raise DataError(f"{name} mixes scales: of {len(rows):,} cells looked at, {found}. {OF_ONE_SCALE}")
    is_possible, medians = np.isfinite(sums).mean(axis=0) >= 0.9, np.median(sums, axis=0)
    with np.errstate(invalid="ignore"):
        has_total = is_possible & ((np.abs(sums / medians - 1) < 3e-3).mean(axis=0) >= 0.9)
    has_total &= (len(rows) > 2) | _are_powers_of_ten(medians)
    totals = {t: float(median) for t, median, has in zip(UNDO, medians, has_total, strict=True) if has}
    transform, is_flat = _best_transform(distances.sum(axis=0) * is_possible, numbers.sum(axis=0) * is_possible), False
    if transform is None:
        transform = next((t for t in totals if t != "sqrt(x)"), None)
        large = cells.data[cells.data > 4.5]  # logarithms and roots of small counts are whole now and then
        is_estimated = len(large) and (large == np.rint(large)).mean() > 0.2
        if transform is None and (is_possible.sum() == 2 or not distances.any() or is_estimated):
            transform = "linear"
        elif transform == "linear":  # linear values of a cell differ more than logarithms that were brought to one sum
            is_flat = np.median([row.max() / row.min() for row in rows]) < 20
    if transform is not None and not is_flat:
        return Scale(transform, total=totals.get(transform))
    base = log1p.get("base") if hasattr(log1p, "get") else None
    guess = "linear" if is_flat or _look_linear(rows) else AS_IS.transform
    transform = {2: "log2(x + 1)", 10: "log10(x + 1)"}.get(base and round(float(base)), guess)
    taken = {"linear": "estimated counts", AS_IS.transform: "values to use as they are"}.get(transform, transform)
    warn(
        f"The scale of {name[0].lower()}{name[1:]} cannot be recognised for certain: its values are no counts, and no "
        f"logarithm of counts or of values with equal sums. They are taken for {taken}, which is right only if "
        "reference and query were prepared in the same way. Counts are safer: pass the layer that has them."
    )
    return Scale(transform)


def _evidence(row: np.ndarray, low: np.ndarray, transform: str) -> tuple[float, float, int]:
    """A cell's sum when a transform is undone; log10 distances of `low` to multiples of a count, as sum and number."""
    if row.max() > LARGEST.get(transform, np.inf):
        return np.inf, 0.0, 0
    values = UNDO[transform](low)
    ratios = values[values > 1.2 * values[0]] / values[0]
    best = np.empty(0)
    for divisor in (1, 2, 3):  # the smallest value of a cell may stand for two or three counts
        multiples = ratios[ratios * divisor <= 50] * divisor
        distances = np.log10(divisor * np.abs(multiples - np.rint(multiples)) + 1e-5)  # the rounding of float32
        if len(distances) and (divisor == 1 or distances.mean() < best.mean() - 0.5):
            best = distances
    return UNDO[transform](row).sum(), best.sum(), len(best)


def _are_powers_of_ten(sums: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):  # 0 and infinity are none
        return np.abs(10.0 ** np.rint(np.log10(sums)) / sums - 1) < 1e-3


def _best_transform(distances: np.ndarray, numbers: np.ndarray, least: int = 1) -> str | None:
    """The transform whose undoing gives multiples; None when none does, or several do."""
    means = np.where(numbers >= least, distances / np.maximum(numbers, 1), 0.0)
    if means[0] <= EXACT and means[0] - means[-1] < MARGIN:
        means[-1] = 0  # squares of whole numbers are whole
    first, second = np.argsort(means)[:2]
    evidence = numbers[first] * (-0.74 - means[first])  # random values have a mean of -0.74
    is_clear = means[first] <= EXACT and means[second] - means[first] >= MARGIN and evidence >= 2.5
    return list(UNDO)[first] if is_clear else None


def _look_linear(rows: Sequence[np.ndarray]) -> bool:
    """Whether means rise with the number of detected genes, as in estimated counts; of equal sums they would fall."""
    detected, mean = np.array([(len(row), np.expm1(row).mean()) for row in rows]).T
    can_tell = len(rows) >= 10 and np.ptp(detected) > 0 and np.ptp(mean) > 0
    return bool(can_tell and np.corrcoef(np.log(detected), np.log(mean))[0, 1] > 0.3)


def normalise(cells: sp.csr_matrix, scale: Scale) -> sp.csr_matrix:
    """Model input, CSR (cells, genes) float32: the scale undone, each cell brought to a sum of 10,000, then ``log1p``.

    Of the model's genes only: others never change a label. Cells of a sum below 1e-34 stay zero. Indices are shared.
    """
    values = UNDO.get(scale.transform, np.asarray)(cells.data.astype(np.float32, copy=False))
    cells = sp.csr_matrix((values, cells.indices, cells.indptr), shape=cells.shape)
    if scale != AS_IS:
        sums = cells.sum(axis=1, dtype=np.float64).A1
        factor = np.divide(1e4, sums, out=np.zeros_like(sums), where=sums > 1e-34).astype(np.float32)
        cells.data = np.log1p(values * np.repeat(factor, np.diff(cells.indptr)))
    return cells


class Expression:
    """The expression of some cells on its way to model input; `name` is what messages call the matrix.

    `layer` is None for ``X``, the name of a layer, or ``"raw"`` for ``adata.raw`` if no layer has that name. `adata` is
    never changed, and a matrix in a file stays there.

    >>> expression = Expression(adata)
    >>> expression.align(["CD3D", "MS4A1"])
    >>> expression.rows([0, 1])  # (2, 2) CSR float32, log1p of 10,000 per cell
    """

    def __init__(self, adata: AnnData, layer: str | None = None, *, name: str = "The matrix"):
        layers = list(filter(None, adata.layers))  # anndata 0.13 lists X as None
        is_raw = layer == "raw" and "raw" not in layers
        if layer == "raw" and not is_raw and adata.raw is not None:
            warn('layer="raw": both a layer "raw" and adata.raw exist; the layer is used.')
        layers += ["raw"] * (adata.raw is not None and "raw" not in layers)
        if layer is not None and layer not in layers:
            raise UnknownNameError("layer", layer, layers or ["X, by layer=None"])
        source = adata.raw if is_raw else adata
        matrix = source.X if is_raw or layer is None else adata.layers[layer]
        if matrix is None:
            way_out = f"Pass layer={' or '.join(map(repr, layers))}" if layers else "Nor has it layers: load counts"
            raise DataError(f"This AnnData has no X. {way_out}.")
        self.genes = source.var
        is_gene = gene_rows(self.genes)
        self.in_file = isinstance(matrix, CSRDataset | h5py.Dataset | zarr.Array)
        self.matrix = FileMatrix(matrix, is_gene) if self.in_file else as_csr(matrix, name)
        self.name, self.alignment = name, None
        self.cells = np.arange(self.matrix.shape[0])  # rows of the matrix that count; `DataModule` drops some
        if not is_gene.all():
            kinds = ", ".join(self.genes["feature_types"][~is_gene].astype(str).unique()[:3])
            warn(f"{name} has {(~is_gene).sum():,} columns that are no gene expression ({kinds}); they are left out.")
            self.genes, self.matrix = self.genes[is_gene], self.matrix if self.in_file else self.matrix[:, is_gene]
        sample = self.matrix.sample() if self.in_file else self.matrix
        self.scale = detect_scale(sample, name=name, layers=layers, log1p=adata.uns.get("log1p"))

    def align(self, vocabulary: Sequence[str], cell_names: Sequence = (), **options) -> GeneCoverage:
        """Bring the genes onto a model's vocabulary when rows are read, see `align_genes`."""
        self.alignment = align_genes(self.genes, vocabulary, cell_names, **options)
        return self.alignment.coverage

    def use(self, alignment: GeneAlignment) -> None:
        """Apply an alignment of `genes`: to a matrix in memory at once, to one in a file when rows are read."""
        if self.in_file:
            self.alignment = alignment
        else:
            self.matrix = alignment.apply(self.matrix)

    def __len__(self) -> int:
        return len(self.cells)

    def raw_rows(self, positions: np.ndarray) -> sp.csr_matrix:
        """The stored values of these cells, in this order, on the aligned genes, CSR float32."""
        rows = self.matrix[self.cells[positions]]
        if self.in_file:
            low, high = rows.data.min(initial=0), rows.data.max(initial=0)  # NaN if there is any
            if not 0 <= low <= high < np.inf or _of_other_scale(rows, self.scale).any():
                others = f"values from {low:.3g} to {high:.3g}{', some not whole' * self.scale.is_counts}"
                found = f"{self.name} was taken for {self.scale} by a sample of its cells, but others hold {others}"
                way_out = "Expected one kind of values, none negative or missing: write it anew, or pass another layer."
                raise DataError(f"{found}. {way_out}")
        return self.alignment.apply(rows) if self.alignment else rows

    def rows(self, positions: np.ndarray) -> sp.csr_matrix:
        """Model input of these cells, in this order: (cells, genes) CSR float32."""
        return normalise(self.raw_rows(positions), self.scale)


def log_normalised(adata: AnnData, genes: Sequence[str], *, layer: str | None = None) -> sp.csr_matrix:
    """All cells as a model with these genes reads them: (cells, genes) CSR float32, log1p of 10,000 per cell."""
    expression = Expression(adata, layer)
    expression.align(genes, adata.obs_names)
    return expression.rows(np.arange(len(expression)))


class FileMatrix:
    """The wanted columns of a sparse or dense matrix in a file; rows are read when they are indexed, in any process."""

    def __init__(self, element: CSRDataset | h5py.Dataset | zarr.Array, is_wanted: np.ndarray):
        self.shape, self.is_wanted = tuple(map(int, element.shape)), is_wanted
        stored = getattr(element, "group", element)
        is_hdf5 = isinstance(stored, h5py.Group | h5py.Dataset)
        self._place = (os.path.abspath(stored.file.filename), stored.name) if is_hdf5 else stored
        self.name = f"The matrix {stored.name} of {self._place[0] if is_hdf5 else stored.store_path}"
        self._stored, self._process, self._indptr = None, None, None

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_stored": None, "_process": None}

    def __getitem__(self, positions: np.ndarray) -> sp.csr_matrix:
        """These rows in this order, CSR float32; neighbours are read together."""
        order = np.argsort(positions, kind="stable")
        rising = positions[order]
        runs = np.split(rising, np.flatnonzero(np.diff(rising) > 64) + 1)  # smaller gaps are read along
        blocks = [self._block(int(run[0]), int(run[-1]) + 1)[run - run[0]] for run in runs if len(run)]
        cells = sp.vstack(blocks, format="csr") if blocks else sp.csr_matrix((0, self.shape[1]), dtype=np.float32)
        cells = cells if (np.diff(order) > 0).all() else cells[np.argsort(order)]
        return cells if self.is_wanted.all() else cells[:, self.is_wanted]

    def sample(self) -> sp.csr_matrix:
        """A few hundred cells from start to end."""
        starts = np.linspace(0, max(0, self.shape[0] - SAMPLE_CELLS), SAMPLE_BLOCKS).astype(int)
        wanted = np.unique(starts[:, None] + np.arange(SAMPLE_CELLS))
        return self[wanted[wanted < self.shape[0]]]

    def _block(self, start: int, stop: int) -> sp.csr_matrix:
        """Neighbouring rows, by slices of the stored arrays: anndata's own slicing takes five times as long."""
        try:
            if self._process != os.getpid():  # handles of HDF5 do not survive a fork
                is_hdf5, self._process = isinstance(self._place, tuple), os.getpid()
                self._stored = h5py.File(self._place[0], "r")[self._place[1]] if is_hdf5 else self._place
            if isinstance(self._stored, h5py.Dataset | zarr.Array):
                return as_csr(self._stored[start:stop], self.name)
            if self._indptr is None:
                indptr = self._stored["indptr"][:].astype(np.int64)
                if len(indptr) != self.shape[0] + 1 or indptr[-1] != self._stored["indices"].shape[0]:
                    raise ValueError(f"index pointers of {len(indptr) - 1:,} rows and {indptr[-1]:,} values")
                _check_rows(indptr)
                self._indptr = indptr
            ends = self._indptr[start : stop + 1]
            entries = *(self._stored[name][ends[0] : ends[-1]] for name in ("data", "indices")), ends - ends[0]
            return as_csr(sp.csr_matrix(entries, shape=(stop - start, self.shape[1])), self.name)
        except DataError:
            raise
        except Exception as error:  # of HDF5, zarr, a codec or scipy
            found = f"{self.name} cannot be read ({type(error).__name__}: {error})"
            raise DataError(f"{found}. It is damaged: write or download it again.") from error


def open_cells(
    source: AnnData | str | os.PathLike,
    layer: str | None = None,
    backed: bool | str = "auto",
    *,
    orientation: str = "cells_by_genes",
    columns: Sequence[str] | None = None,
) -> tuple[AnnData, str | None]:
    """A dataset's name or a path as an AnnData, and where its matrix is: None when it stays in the file, as `X`.

    `orientation` is as in `read`, for a path; `columns` as in `open_backed`.
    """
    if isinstance(source, AnnData):
        return source, layer
    path = Path(source).expanduser()
    if path.exists() and stay_in_files([path], backed):
        path = path if is_backable(path) else convert(path, orientation=orientation)
        return open_backed(path, layer, columns), None
    return read(path, orientation=orientation) if isinstance(source, Path) else load(source), layer


def stay_in_files(paths: Sequence[Path], backed: bool | str) -> bool:
    """Whether to leave matrices in their files: as `backed` says; for "auto", when the files are large."""
    if backed not in (True, False, "auto"):
        raise SettingError(f'backed={backed!r}: choose True (cells stay in the file), False (in memory) or "auto".')
    if backed != "auto":
        return bool(paths) and bool(backed)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")  # of a container
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        memory = min(memory, int(text))
    stored = [[path] if path.is_file() else path.rglob("*") for path in paths if is_backable(path)]
    return sum(file.stat().st_size for files in stored for file in files) > MEMORY_SHARE * memory


def _check_rows(indptr: np.ndarray) -> None:
    if indptr[0] or (np.diff(indptr) < 0).any():  # scipy looks only where the last one is above 0
        raise ValueError("index pointers start above 0, or run back")


def as_csr(matrix, name: str = "The matrix") -> sp.csr_matrix:
    """Any matrix as CSR float32 in canonical form, shared where it is that already."""
    try:
        if hasattr(matrix, "to_memory"):  # anndata's handle on a sparse matrix in a file
            matrix = matrix.to_memory()
        if np.issubdtype(getattr(matrix, "dtype", np.float32), np.complexfloating):
            raise TypeError("complex numbers")
        if not sp.issparse(matrix):
            blocks = (np.asarray(matrix[i : i + 4096], np.float32) for i in range(0, matrix.shape[0], 4096))
            matrix = sp.vstack([sp.csr_matrix((0, matrix.shape[1])), *map(sp.csr_matrix, blocks)], format="csr")
        elif matrix.format in ("csr", "csc"):  # scipy reads whatever memory, or other gene, a wrong index points to
            _check_rows(matrix.indptr)
            matrix = type(matrix)(matrix)  # checking cuts off what is beyond the last row: not of the caller's
            matrix.check_format(full_check=True)
        csr = sp.csr_matrix(matrix).astype(np.float32, copy=False)
    except (TypeError, ValueError, OSError) as error:
        found = f"{name} ({type(matrix).__name__}, {getattr(matrix, 'dtype', None)}) cannot be used: {error}"
        way_out = "convert others with .astype('float32'), and download or write a damaged file again."
        raise DataError(f"{found}. Expected real numbers in rows and columns that exist: {way_out}") from error
    if csr.indices.dtype != csr.indptr.dtype:  # scipy would otherwise convert all indices for every batch
        csr = sp.csr_matrix((csr.data, csr.indices, csr.indptr), csr.shape)
    if not csr.has_canonical_format:
        csr = csr.copy()
        csr.sum_duplicates()
    return csr

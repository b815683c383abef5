"""The expression matrix of an AnnData as CSR, and the labelled cells of one file."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from sims_kit.cells.normalise import detect_state
from sims_kit.datasets import StoredMatrix, attach_labels, check_orientation, chosen_cells
from sims_kit.datasets.checksums import file_hash
from sims_kit.datasets.stored import stored_element
from sims_kit.errors import DataError, LabelError, UnknownNameError

UNKNOWN = -1  # label of a cell whose class is not known
BLOCK = 4096  # cells of a dense matrix converted at once: 0.6 GB at 20,000 genes in float64


def cell_matrix(adata: AnnData, layer: str | None = None) -> tuple[sp.csr_matrix, pd.DataFrame]:
    """The matrix of one layer and the table of its genes, without changing `adata`.

    A backed AnnData is read into memory here, as CSR; a dense matrix is converted in blocks of
    cells. A float32 CSR matrix in canonical form is shared with `adata`, not copied: treat the
    result as read-only.

    Parameters
    ----------
    adata
        Cells in rows, genes in columns.
    layer
        None for ``X``, ``"raw"`` for ``adata.raw`` (which has its own genes), else a name in
        ``adata.layers``.

    Returns
    -------
    tuple
        CSR matrix (cells, genes), float32, sorted, without duplicate entries; and the ``var``
        DataFrame with one row per column of the matrix.

    Raises
    ------
    UnknownNameError
        No such layer; the ones that exist are offered.
    DataError
        The AnnData has no matrix, or one that does not hold numbers.
    """
    matrix, var = _matrix_and_genes(adata, layer)
    return _as_csr(matrix), var


def streamed_matrix(
    adata: AnnData, layer: str | None = None, backed: bool = True
) -> tuple[sp.csr_matrix | StoredMatrix, pd.DataFrame]:
    """As `cell_matrix`, but a matrix that is still in a file stays there, unless `backed` is False."""
    matrix, var = _matrix_and_genes(adata, layer)
    element = stored_element(matrix) if backed else None
    return (_as_csr(matrix) if element is None else StoredMatrix(element)), var


def matrix_state(matrix: sp.csr_matrix | StoredMatrix, name: str, layers: Sequence[str] = ()) -> str:
    """`detect_state` of a matrix; of one in a file, by a sample of its cells."""
    values = matrix.sample() if isinstance(matrix, StoredMatrix) else matrix
    return detect_state(values, name=name, layers=layers)


def layer_names(adata: AnnData) -> list[str]:
    """What `cell_matrix` takes as `layer` here: the layers and, where it is set, ``"raw"``."""
    return [*adata.layers] + ["raw"] * (adata.raw is not None)


@dataclass
class LabelledCells:
    """The labelled cells of one file: `matrix` (cells, genes) from `cell_matrix`, one label per cell."""

    name: str
    dataset: str  # name in the registry, "" when not from there
    state: str
    matrix: sp.csr_matrix | StoredMatrix | None  # in memory these cells, in a file all cells of it
    rows: np.ndarray  # which cells of the file these are
    genes: list[str]
    labels: np.ndarray
    cell_names: Callable[[], list[str]]  # asked for when needed: names of many cells take more memory than labels
    n_unlabelled: int  # cells left out
    sha256: list[str] = field(default_factory=list)  # of the files that the cells come from, as far as known

    def described(self) -> dict[str, str | int | list[str]]:
        """What a summary and a model's provenance say of it."""
        sizes = {"cells": len(self.labels), "genes": len(self.genes)}
        return {"file": self.name, "dataset": self.dataset, "state": self.state, **sizes, "sha256": self.sha256}


def labelled_cells(
    adata: AnnData,
    name: str,
    class_label: str | None,
    labelfile: str | PathLike | None = None,
    keep: Mapping[str, Sequence] | None = None,
    drop: Mapping[str, Sequence] | None = None,
    layer: str | None = None,
    *,
    file: object = None,
    backed: bool = True,
) -> LabelledCells:
    """Matrix and labels of the cells that have a label, without changing `adata`.

    Parameters are those of `sims_kit.cells.datamodule.DataModule`; `name` is what messages call the file, and `file`
    where the cells were read from, to take its hash, if that is a path. A matrix that is still in a file stays there,
    unless `backed` is False. Without a `class_label` all cells are taken, and their label is empty.

    Raises
    ------
    UnknownNameError
        No such label column or layer.
    LabelError
        No cell has a label.
    DataError
        The matrix is empty, scaled, not finite, or turned.
    """
    matrix, var = streamed_matrix(adata, layer, backed)
    state = matrix_state(matrix, f"The matrix of {name}", layer_names(adata))
    check_orientation(adata, class_label if labelfile is None else None, f"The matrix of {name}")
    obs = adata.obs if labelfile is None else _obs_with_labels(adata, labelfile, class_label)
    chosen = chosen_cells(obs, keep, drop) if keep or drop else np.ones(len(obs), bool)
    if class_label is None:
        labels = pd.Series("", index=obs.index[chosen])
    elif class_label in obs:
        labels = label_text(obs[class_label][chosen])
    else:
        raise UnknownNameError(f"obs column of {name} called", class_label, obs.columns)
    labelled = labels.notna().to_numpy()
    if not labelled.any():
        raise LabelError(
            f"{name}: none of {len(labels):,} cells has a {class_label!r}. Check class_label, keep, drop, "
            "and whether the label file names these cells."
        )
    rows = np.flatnonzero(chosen)[labelled]
    origin = adata.uns.get("sims_kit")  # the provenance of a dataset, unless someone else's entry
    origin = origin if isinstance(origin, Mapping) else {}
    all_of_it = len(rows) == len(obs) or isinstance(matrix, StoredMatrix)
    return LabelledCells(
        name=name,
        dataset=str(origin.get("dataset", "")),
        state=state,
        matrix=matrix if all_of_it else matrix[rows],
        rows=rows,
        genes=list(map(str, var.index)),
        labels=labels[labelled].to_numpy(),
        cell_names=adata.obs_names[rows].astype(str).tolist,
        n_unlabelled=int((~labelled).sum()),
        sha256=_hashes(file, labelfile) or [str(found) for found in origin.get("sha256", ())],
    )


def _hashes(*paths: object) -> list[str]:
    """Of those that are files; a folder has none."""
    return [file_hash(Path(path)) for path in paths if isinstance(path, str | PathLike) and Path(path).is_file()]


def label_text(labels: pd.Series) -> pd.Series:
    """Labels as strings, None where missing (NaN, empty, or the text "nan"); the number 3.0 becomes "3"."""
    if labels.dtype == object and not all(map(pd.api.types.is_hashable, labels)):
        labels = labels.astype(str)
    is_coded = isinstance(labels.dtype, pd.CategoricalDtype)  # a text for each class, not for each of a million cells
    codes, values = (labels.cat.codes.to_numpy(), labels.cat.categories) if is_coded else pd.factorize(labels)
    values = pd.Series(np.asarray(values)).infer_objects()
    if pd.api.types.is_float_dtype(values.dtype) and (values % 1 == 0).all():
        values = values.astype("Int64")
    text = values.astype(object).astype(str).str.strip()
    text = [*text.astype(object).where(~text.isin(["", "nan"]), None), None]  # -1 is the last
    return pd.Series(np.array(text, dtype=object)[codes], labels.index, dtype=object, name=labels.name)


def _obs_with_labels(adata: AnnData, labelfile: str | PathLike, class_label: str) -> pd.DataFrame:
    """A table of its own, with the columns of the label file."""
    with warnings.catch_warnings():  # repeated cell names do no harm here, and were told when the file was read
        warnings.filterwarnings("ignore", message="Observation names are not unique")
        cells = AnnData(obs=adata.obs.copy(), var=pd.DataFrame(index=[str(i) for i in range(adata.n_vars)]))
        attach_labels(cells, labelfile, class_label)
    return cells.obs


def _matrix_and_genes(adata: AnnData, layer: str | None) -> tuple[object, pd.DataFrame]:
    if layer is None:
        matrix, var = adata.X, adata.var
    elif layer in adata.layers:
        matrix, var = adata.layers[layer], adata.var
    elif layer == "raw" and adata.raw is not None:
        matrix, var = adata.raw.X, adata.raw.var
    else:
        raise UnknownNameError("layer", layer, layer_names(adata))
    if matrix is None:
        names = layer_names(adata)
        way_out = f"Pass layer={' or '.join(map(repr, names))}." if names else "Nor has it layers or raw: load counts."
        raise DataError(f"This AnnData has no X. {way_out}")
    return matrix, var


def _as_csr(matrix) -> sp.csr_matrix:
    if hasattr(matrix, "to_memory"):  # anndata's handle on a sparse matrix in a file
        matrix = matrix.to_memory()
    try:
        if np.issubdtype(getattr(matrix, "dtype", np.float32), np.complexfloating):
            raise TypeError("complex numbers")
        if sp.issparse(matrix):
            csr = sp.csr_matrix(matrix)
        else:  # array, or a dense dataset in a file
            blocks = (np.asarray(matrix[i : i + BLOCK], np.float32) for i in range(0, matrix.shape[0], BLOCK))
            csr = sp.vstack([sp.csr_matrix((0, matrix.shape[1])), *map(sp.csr_matrix, blocks)], format="csr")
        csr = csr.astype(np.float32, copy=False)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"The matrix ({type(matrix).__name__}, {getattr(matrix, 'dtype', None)}) does not hold real "
            "numbers. Expression values must be int or float: convert them with .astype('float32')."
        ) from error
    if csr.indices.dtype != csr.indptr.dtype:  # as some files have it: scipy would cast all of them for every batch
        csr = sp.csr_matrix((csr.data, csr.indices, csr.indptr), csr.shape)
    if not csr.has_canonical_format:
        csr = csr.copy()
        csr.sum_duplicates()
    return csr

"""What a matrix holds (counts, normalised or log-normalised values) and how it becomes model input."""

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp

from sims_kit.errors import DataError, SettingError

STATES = ("counts", "normalised", "log-normalised")
LOG_CEILING = 30.0  # log1p of 1e13: no logarithm of an expression value is above it
CHUNK = 1 << 22  # values looked at together, so that the check needs no second matrix
ENOUGH_CELLS = 10  # equal sums over fewer cells may be chance


def detect_state(X: sp.spmatrix | np.ndarray, *, name: str = "The matrix", layers: Sequence[str] = ()) -> str:
    """Tell counts from normalised and log-normalised values, in one pass over the nonzeros.

    Whole numbers are counts. Of the others, values above 30 or the same sum in every cell mean
    depth-normalised or estimated counts on the linear scale; what remains is log-normalised.

    Parameters
    ----------
    X
        Cells x genes, sparse or dense.
    name
        What to call the matrix in messages.
    layers
        Layers that could be used instead, named in the message about a scaled matrix.

    Returns
    -------
    str
        ``"counts"``, ``"normalised"`` (linear scale) or ``"log-normalised"``.

    Raises
    ------
    DataError
        No cells, no genes or nothing but zeros; NaN or infinite values; negative values (scaled).
    """
    values = X.data if sp.issparse(X) else np.asarray(X).ravel()
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)
    if 0 in X.shape or low == high == 0:
        found = f"{X.shape[0]:,} cells x {X.shape[1]:,} genes" + ("" if 0 in X.shape else ", all zero")
        raise DataError(f"{name} is empty ({found}). Expected cells with expression values; check the file or layer.")
    if not np.isfinite([low, high]).all():  # min and max pass NaN on
        bad = int(np.count_nonzero(~np.isfinite(values)))
        raise DataError(
            f"{name} holds {bad:,} NaN or infinite values. Expression values must be finite: write 0 where a "
            "gene was not detected, or pass a layer without gaps."
        )
    if low < 0:
        here = f"This AnnData holds layer={' or '.join(map(repr, layers))}. " if layers else ""
        raise DataError(
            f"{name} holds negative values (down to {low:.3g}): it was scaled or centred, which cannot be "
            "undone. "
            f'Pass counts or log-normalised values, for example layer="counts" or layer="raw". {here}'.strip()
        )
    if all(_whole(values[i : i + CHUNK]) for i in range(0, len(values), CHUNK)):
        return "counts"
    if high > LOG_CEILING or _equal_sums(X):
        return "normalised"
    return "log-normalised"


def check_state(values: np.ndarray, state: str, name: str = "The matrix") -> None:
    """Raise `DataError` when further values of a matrix are not what `detect_state` took it for.

    Parameters
    ----------
    values
        Nonzeros of some cells.
    state
        What was found in others.
    name
        What to call the matrix in messages.
    """
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)
    if low < 0 or not np.isfinite([low, high]).all():
        found = f"values from {low:.3g} to {high:.3g}"
    elif state == "counts" and not _whole(values):
        found = "values that are not whole"
    elif state == "log-normalised" and high > LOG_CEILING:
        found = f"values up to {high:.3g}"
    else:
        return
    raise DataError(
        f"{name} was taken for {state} by a sample of its cells, but others hold {found}. Expected one kind of "
        "values throughout, none negative or missing: write the file anew, or pass another layer."
    )


def normalise(cells: sp.csr_matrix, state: str, target_sum: float = 1e4) -> sp.csr_matrix:
    """Model input: every cell scaled to `target_sum`, then ``log1p``; log-normalised input as it is.

    The library size is the sum over the columns given. The pipeline gives the model's genes only, so
    that further genes in a query never change its answer. The same as scanpy's ``normalize_total``
    followed by ``log1p``, on those genes. Cells without counts stay zero.

    Parameters
    ----------
    cells
        CSR (cells, genes). It is not changed; the result shares its indices.
    state
        From `detect_state`. ``"normalised"`` values are scaled and log1p-ed like counts.
    target_sum
        Sum of every cell before the logarithm.

    Returns
    -------
    scipy.sparse.csr_matrix
        (cells, genes), float32.

    Raises
    ------
    SettingError
        `state` is not one of the three.
    """
    if state not in STATES:
        raise SettingError(f"The state {state!r} is not known. Choose one of {STATES}, as detect_state gives them.")
    if state == "log-normalised":
        return cells.astype(np.float32, copy=False)
    sums = cells.sum(axis=1, dtype=np.float64).A1
    scale = np.divide(target_sum, sums, out=np.zeros_like(sums), where=sums > 0).astype(np.float32)
    values = np.log1p(cells.data.astype(np.float32, copy=False) * np.repeat(scale, np.diff(cells.indptr)))
    return sp.csr_matrix((values, cells.indices, cells.indptr), shape=cells.shape)


def _whole(values: np.ndarray) -> bool:
    return np.issubdtype(values.dtype, np.integer) or bool((values == np.rint(values)).all())


def _equal_sums(X: sp.spmatrix | np.ndarray) -> bool:
    sums = np.asarray(X.sum(axis=1, dtype=np.float64)).ravel()
    return len(sums) >= ENOUGH_CELLS and bool(np.ptp(sums) < 1e-3 * sums.mean())

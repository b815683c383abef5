"""Predictions that fit into the memory there is: batches are halved when a GPU has none left."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

Found = TypeVar("Found")


def predict_in_parts(predict: Callable[[Tensor], Found], batches: Iterable[Tensor], device: torch.device) -> Iterator:
    """What `predict` gives for batches of cells, in order; for parts of a batch where it does not fit as a whole.

    Parameters
    ----------
    predict
        Takes cells, shape (B, genes), on `device`.
    batches
        Cells, dense or CSR, of any number each.

    Raises
    ------
    torch.cuda.OutOfMemoryError
        If a single cell does not fit.

    Warns
    -----
    UserWarning
        Each time that the number of cells at once is halved; it stays so for the batches that follow.
    """
    most = None
    for cells in batches:
        start = 0
        while start < len(cells):
            stop = min(start + (most or len(cells)), len(cells))
            try:
                found = predict(_rows(cells, start, stop).to(device))
            except torch.cuda.OutOfMemoryError:
                if stop - start == 1:
                    raise
                found = None  # and not here: the error holds on to the memory
            if found is None:
                most = (stop - start) // 2
                warnings.warn(f"The GPU has no memory for {stop - start:,} cells at once; going on with {most:,}. "
                              f"Pass batch_size={most} to start with that.", stacklevel=2)  # fmt: skip
                torch.cuda.empty_cache()
                continue
            yield found
            start = stop


def _rows(cells: Tensor, start: int, stop: int) -> Tensor:
    """Successive rows; of all, the tensor itself."""
    if stop - start == len(cells):
        return cells
    if cells.layout == torch.strided:
        return cells[start:stop]
    ends = cells.crow_indices()[start : stop + 1]
    inside = slice(int(ends[0]), int(ends[-1]))
    shape = (stop - start, cells.shape[1])
    return torch.sparse_csr_tensor(
        ends - ends[0], cells.col_indices()[inside], cells.values()[inside], shape, check_invariants=False
    )

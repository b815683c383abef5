"""Cells that stay on disk: blocks of neighbouring cells read ahead, in an order as good as a shuffle.

A file is fast where it is read in blocks, training is good where a batch looks like all cells. Both hold here: blocks
are dealt out so that every stretch of an epoch has its share of each file and each cell type, some hundred batches'
worth of them is held at once, and batches are drawn from those at random. The next stretch is read meanwhile.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
from torch.utils.data import BatchSampler

from sims_kit.cells.genes import GeneAlignment
from sims_kit.cells.matrix import UNKNOWN
from sims_kit.cells.normalise import check_state
from sims_kit.cells.samplers import BLOCK_SIZE
from sims_kit.datasets import StoredMatrix

if TYPE_CHECKING:
    from sims_kit.cells.batches import CellBatch, CellDataset

RUN = 8 * BLOCK_SIZE  # cells at most that one thread reads at once, where neighbouring blocks are wanted
THREADS = min(4, os.cpu_count() or 1)  # that unpack; training is slower than four of them


class DiskCells:
    """Cells of one matrix in a file; the other side of `sims_kit.cells.batches.MemoryCells`.

    Parameters
    ----------
    matrix
        Raw values, (cells of the file, genes of the file).
    state
        From `detect_state`, on a sample; every block that is read is checked against it.
    labels
        int64 class of every cell; all unknown by default.
    alignment
        Brings rows onto the model's genes as they are drawn.
    rows
        Which cells of the file these are, rising; all by default.
    name
        What messages call the matrix.
    """

    def __init__(
        self,
        matrix: StoredMatrix,
        state: str,
        labels: np.ndarray | None = None,
        alignment: GeneAlignment | None = None,
        rows: np.ndarray | None = None,
        name: str = "The matrix",
    ):
        self.matrix, self.state, self.alignment, self.name = matrix, state, alignment, name
        self._rows = None if rows is None or len(rows) == len(matrix) else np.asarray(rows)
        n_cells = len(matrix) if rows is None else len(rows)
        self.labels = np.full(n_cells, UNKNOWN) if labels is None else np.asarray(labels, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, positions: np.ndarray) -> sp.csr_matrix:
        """Raw values of these cells in this order, on the model's genes.

        Raises
        ------
        DataError
            The values are not what the sample promised, or the file is damaged.
        """
        rows = positions if self._rows is None else self._rows[positions]
        order = np.argsort(rows, kind="stable")
        in_order = rows[order]
        apart = (np.diff(in_order) > BLOCK_SIZE) | (np.diff(in_order // RUN) != 0)
        runs = np.split(in_order, np.flatnonzero(apart) + 1)
        with ThreadPoolExecutor(THREADS) as pool:
            cells = sp.vstack(list(pool.map(self._read, runs)), format="csr")
        return cells if (np.diff(order) > 0).all() else cells[np.argsort(order)]

    def _read(self, rows: np.ndarray) -> sp.csr_matrix:
        block = self.matrix[rows[0] : rows[-1] + 1]
        check_state(block.data, self.state, self.name)
        if len(rows) < block.shape[0]:
            block = block[rows - rows[0]]
        return self.alignment.apply(block) if self.alignment else block


class CellStream:
    """The batches of a sampler, read some hundred at a time, the next ones while these are used.

    Stands where a DataLoader does: it has a length and can be run through again. Batches are the same as a DataLoader's
    with this `batch_sampler`.

    Parameters
    ----------
    dataset
        The cells.
    batch_sampler
        Gives the positions of each batch; those of successive batches should lie close together in the files.
    batches_at_once
        How many batches are read together.
    """

    def __init__(self, dataset: "CellDataset", batch_sampler: BatchSampler, batches_at_once: int):
        self.dataset, self.batch_sampler, self.batches_at_once = dataset, batch_sampler, batches_at_once

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator["CellBatch"]:
        batches = iter(self.batch_sampler)
        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(self._read, list(islice(batches, self.batches_at_once)))
            while (stretch := ahead.result())[0]:
                ahead = reader.submit(self._read, list(islice(batches, self.batches_at_once)))
                yield from self._cut(*stretch)
                del stretch  # before the next is there

    def _read(self, batches: list[list[int]]) -> tuple[list[list[int]], np.ndarray, sp.csr_matrix | None]:
        """The batches, their positions in rising order, and those cells."""
        if not batches:
            return batches, np.empty(0, np.int64), None
        positions = np.sort(np.concatenate(batches))
        return batches, positions, self.dataset.rows(positions)

    def _cut(self, batches: list[list[int]], positions: np.ndarray, cells: sp.csr_matrix) -> Iterator["CellBatch"]:
        for batch in batches:
            yield self.dataset.batch(cells[np.searchsorted(positions, batch)], batch)

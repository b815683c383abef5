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
from torch.utils.data import BatchSampler, Sampler

from sims_kit.cells.genes import GeneAlignment
from sims_kit.cells.matrix import UNKNOWN
from sims_kit.cells.normalise import check_state
from sims_kit.datasets import StoredMatrix

if TYPE_CHECKING:
    from sims_kit.cells.batches import CellBatch, CellDataset

BLOCK_SIZE = 64  # cells: of 2,000 values each, four chunks of a packed file; a type of 1 % fills a block per stretch
BUFFER_SIZE = 4096  # cells held at once, twice while the next are read: 130 MB at 2,000 values per cell
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
        runs = np.split(in_order, np.flatnonzero(np.diff(in_order // BLOCK_SIZE)) + 1)
        with ThreadPoolExecutor(THREADS) as pool:
            cells = sp.vstack(list(pool.map(self._read, runs)), format="csr")
        return cells if (np.diff(order) > 0).all() else cells[np.argsort(order)]

    def _read(self, rows: np.ndarray) -> sp.csr_matrix:
        block = self.matrix[rows[0] : rows[-1] + 1]
        check_state(block.data, self.state, self.name)
        if len(rows) < block.shape[0]:
            block = block[rows - rows[0]]
        return self.alignment.apply(block) if self.alignment else block


class BlockSampler(Sampler[int]):
    """Every position once, in an order that follows from seed and epoch and that files can be read in.

    The cells come in blocks of neighbours. The blocks of each file and cell type are spread evenly over the epoch, in
    random order; then each stretch of `buffer_size` positions is shuffled. A stretch is thus like the whole in files
    and types, also where a file is sorted by type, and lies in few places of the files.

    Parameters
    ----------
    dataset
        What the positions are of.
    positions
        The cells to draw, rising.
    seed
        Same seed, same orders.
    block_size, buffer_size
        Cells in a block and in a stretch.
    """

    def __init__(
        self,
        dataset: "CellDataset",
        positions: np.ndarray,
        seed: int = 0,
        *,
        block_size: int = BLOCK_SIZE,
        buffer_size: int = BUFFER_SIZE,
    ):
        self.positions, self.buffer_size, self.seed, self.epoch = np.asarray(positions), buffer_size, seed, 0
        source, within = dataset.locate(self.positions)
        starts_anew = (np.diff(source) > 0) | (np.diff(within // block_size) != 0)
        self._edges = np.concatenate([[0], np.flatnonzero(starts_anew) + 1, [len(self.positions)]])
        middle = (self._edges[:-1] + self._edges[1:]) // 2
        groups = np.column_stack([source[middle], dataset.labels[self.positions[middle]]])
        _, self._group, self._group_sizes = np.unique(groups, axis=0, return_inverse=True, return_counts=True)
        self._group = self._group.ravel()

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[int]:
        random = np.random.default_rng([self.seed, self.epoch])
        blocks = self._dealt(random)
        lengths = np.diff(self._edges)[blocks]
        steps = np.arange(len(self.positions)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        order = self.positions[np.repeat(self._edges[blocks], lengths) + steps]
        for start in range(0, len(order), self.buffer_size):
            yield from random.permutation(order[start : start + self.buffer_size]).tolist()

    def _dealt(self, random: np.random.Generator) -> np.ndarray:
        """All blocks; the k-th of n of a group comes somewhere between k / n and (k + 1) / n of the epoch."""
        order = random.permutation(len(self._group))
        order = order[np.argsort(self._group[order], kind="stable")]
        sizes = self._group_sizes
        rank = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return order[np.argsort((rank + random.random(len(order))) / np.repeat(sizes, sizes), kind="stable")]


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

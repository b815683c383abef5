"""Mini-batches of cells: sparse rows from one or several sources, normalised on the way."""

import warnings
from collections.abc import Sequence
from itertools import pairwise
from numbers import Integral
from typing import NamedTuple, Protocol

import numpy as np
import scipy.sparse as sp
import torch
from anndata import AnnData
from torch.utils.data import DataLoader, Dataset

from sims_kit.cells.disk import CellStream, DiskCells
from sims_kit.cells.genes import GeneAlignment, GeneCoverage, align_genes
from sims_kit.cells.matrix import UNKNOWN, layer_names, matrix_state, streamed_matrix
from sims_kit.cells.normalise import normalise
from sims_kit.cells.samplers import BLOCK_SIZE, BUFFER_SIZE, BlockSampler, CellBatchSampler, Shard, ShuffleSampler
from sims_kit.datasets import StoredMatrix
from sims_kit.errors import SettingError

with warnings.catch_warnings():  # torch says once per process that CSR is in beta: let it say so here, unheard
    warnings.filterwarnings("ignore", message="Sparse (CSR tensor support|invariant checks)")
    torch.sparse_csr_tensor([0, 0], [], [], size=(1, 1))


class CellBatch(NamedTuple):
    """Model input: `cells` sparse CSR (B, genes) float32; `labels` (B,) int64, -1 where unknown."""

    cells: torch.Tensor
    labels: torch.Tensor


class CellSource(Protocol):
    """What a dataset draws cells from: a matrix in memory (`MemoryCells`) or on disk (`sims_kit.cells.disk.DiskCells`).

    `state` tells what the values are (see `sims_kit.cells.normalise.detect_state`), `labels` is
    int64 with one class per cell, -1 where unknown.
    """

    state: str
    labels: np.ndarray

    def __len__(self) -> int: ...

    def rows(self, positions: np.ndarray) -> sp.csr_matrix:
        """Raw values of these cells in this order, (len(positions), vocabulary), on the model's genes."""


class MemoryCells:
    """Cells of one matrix held in memory as CSR.

    Parameters
    ----------
    matrix
        CSR (cells, genes), raw values; read, never changed.
    state
        From `detect_state`.
    labels
        int64 class of every cell; all unknown by default.
    alignment
        Brings rows onto the model's genes as they are drawn; not needed when `matrix` is on them.
    """

    def __init__(
        self,
        matrix: sp.csr_matrix,
        state: str,
        labels: np.ndarray | None = None,
        alignment: GeneAlignment | None = None,
    ):
        self.matrix, self.state, self.alignment = matrix, state, alignment
        self.labels = np.full(matrix.shape[0], UNKNOWN) if labels is None else np.asarray(labels, dtype=np.int64)

    def __len__(self) -> int:
        return self.matrix.shape[0]

    def rows(self, positions: np.ndarray) -> sp.csr_matrix:
        """Raw values of these cells in this order, on the model's genes."""
        rows = self.matrix[positions]
        return self.alignment.apply(rows) if self.alignment else rows


class CellDataset(Dataset):
    """Several sources, one after the other; a list of positions gives a `CellBatch` in that order."""

    def __init__(self, sources: Sequence[CellSource]):
        self.sources = list(sources)
        labels = [source.labels for source in self.sources]
        self.labels = np.concatenate(labels) if len(labels) > 1 else labels[0]  # not a second time
        self._starts = np.cumsum([0, *(len(source) for source in self.sources)])[:-1]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> CellBatch:
        return self.__getitems__([position])

    def __getitems__(self, positions: Sequence[int]) -> CellBatch:
        positions = np.asarray(positions, dtype=np.int64)
        return self.batch(self.rows(positions), positions)

    def rows(self, positions: np.ndarray) -> sp.csr_matrix:
        """Model input of these cells in this order, (len(positions), vocabulary)."""
        owner, within = self.locate(positions)
        parts = []
        for i in np.unique(owner):
            source = self.sources[i]
            parts.append(normalise(source.rows(within[owner == i]), source.state))
        if len(parts) == 1:
            return parts[0]
        # back from source by source to the order asked for
        return sp.vstack(parts, format="csr")[np.argsort(np.argsort(owner, kind="stable"))]

    def batch(self, rows: sp.csr_matrix, positions: Sequence[int]) -> CellBatch:
        """These rows, which belong to these positions, with their labels."""
        return CellBatch(_tensor(rows), torch.from_numpy(self.labels[np.asarray(positions)]))

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The source of each position, and the position within that source."""
        owner = np.searchsorted(self._starts, positions, side="right") - 1
        return owner, positions - self._starts[owner]


def cell_loader(
    dataset: Dataset,
    batch_size: int,
    *,
    shuffle: bool = False,
    seed: int = 0,
    num_workers: int = 0,
    shard: tuple[int, int] = (0, 1),
) -> DataLoader:
    """A DataLoader that gives one `CellBatch` after another.

    Parameters
    ----------
    dataset
        A `CellDataset` or a torch `Subset` of one.
    batch_size
        Cells per batch; the last may hold one more, or fewer.
    shuffle, seed
        A new order every epoch, the same for the same seed; in order otherwise.
    num_workers
        Processes that prepare batches; 0 prepares them in this one.
    shard
        Which process this is, and of how many that share the cells out (`sims_kit.cells.samplers.Shard`).
    """
    order = ShuffleSampler(dataset, seed) if shuffle else range(len(dataset))
    if shard[1] > 1:
        order = Shard(order, batch_size, *shard)
    return DataLoader(
        dataset,
        batch_sampler=CellBatchSampler(order, batch_size),
        collate_fn=_as_is,
        generator=torch.Generator(),  # else each pass would draw from the caller's random state
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
    )


def cell_stream(
    dataset: CellDataset,
    positions: Sequence[int],
    batch_size: int,
    *,
    shuffle: bool = False,
    seed: int = 0,
    block_size: int = BLOCK_SIZE,
    buffer_size: int = BUFFER_SIZE,
    shard: tuple[int, int] = (0, 1),
) -> CellStream:
    """Batches of cells on disk; `sims_kit.cells.batches.cell_loader` for those in memory.

    Parameters
    ----------
    dataset
        Of `DiskCells`, `MemoryCells` or both.
    positions
        Which of its cells, rising.
    batch_size
        Cells per batch; the last may hold one more, or fewer.
    shuffle, seed
        A new order every epoch (`BlockSampler`), the same for the same seed; in order otherwise.
    block_size, buffer_size
        Cells that are read from one place, and cells that are held at once. Larger blocks read faster, a larger buffer
        mixes better and takes more memory.
    shard
        Which process this is, and of how many that share the cells out (`sims_kit.cells.samplers.Shard`).
    """
    positions, at_once = np.asarray(positions), max(1, buffer_size // batch_size)
    order = positions
    if shuffle:
        order = BlockSampler(dataset, positions, seed, block_size=block_size, buffer_size=at_once * batch_size)
    if shard[1] > 1:
        order = Shard(order, at_once * batch_size, *shard)
    return CellStream(dataset, CellBatchSampler(order, batch_size), at_once)


def query_batches(
    adata: AnnData, vocabulary: Sequence[str], *, layer: str | None = None, batch_size: int = 1024
) -> tuple[DataLoader | CellStream, GeneCoverage, str]:
    """The cells of a query in order, as a model with this vocabulary takes them.

    Genes are aligned and values normalised batch by batch; `adata` is not changed. A matrix that is still in a file
    stays there, and its state is told from a sample of the cells. The library size
    is the sum over the model's genes, so extra genes never change a prediction.

    Parameters
    ----------
    adata
        The query, cells x genes: counts, normalised or log-normalised.
    vocabulary
        The model's genes.
    layer
        None for ``X``, ``"raw"``, or a layer's name.
    batch_size
        Cells per batch.

    Returns
    -------
    tuple
        An iterable of `CellBatch` with a length, the `GeneCoverage`, and the state that was found.

    Raises
    ------
    GeneError
        Under 20 % of the vocabulary is there.
    DataError
        The matrix is empty, not finite, scaled or turned.
    UnknownNameError
        No such layer.
    SettingError
        `batch_size` is not a whole number of 1 or more.
    """
    if not isinstance(batch_size, Integral) or batch_size < 1:
        raise SettingError(f"batch_size={batch_size!r}: give a whole number of cells, 1 or more.")
    matrix, var = streamed_matrix(adata, layer)
    name = "The query's matrix"
    state = matrix_state(matrix, name, layer_names(adata))
    alignment = align_genes(var, vocabulary, adata.obs_names)
    if isinstance(matrix, StoredMatrix):
        cells = DiskCells(matrix, state, alignment=alignment, name=name)
        return cell_stream(CellDataset([cells]), range(len(cells)), batch_size), alignment.coverage, state
    cells = MemoryCells(matrix, state, alignment=alignment)
    return cell_loader(CellDataset([cells]), batch_size), alignment.coverage, state


def shares(batches: DataLoader | CellStream, n: int) -> list[DataLoader | CellStream]:
    """Successive parts of what `query_batches` gave, `n` or as many as there are batches, each for a process."""
    positions = list(batches.batch_sampler)
    edges = np.linspace(0, len(positions), min(n, len(positions)) + 1).astype(int)
    parts = (positions[start:stop] for start, stop in pairwise(edges))
    if isinstance(batches, CellStream):
        return [CellStream(batches.dataset, part, batches.batches_at_once) for part in parts]
    return [DataLoader(batches.dataset, batch_sampler=part, collate_fn=_as_is) for part in parts]


def _tensor(cells: sp.csr_matrix) -> torch.Tensor:
    """CSR as torch's sparse CSR; int64 indices, since cells x genes does not fit into int32."""
    return torch.sparse_csr_tensor(
        torch.from_numpy(cells.indptr.astype(np.int64)),
        torch.from_numpy(cells.indices.astype(np.int64)),
        torch.from_numpy(cells.data),
        size=cells.shape,
        check_invariants=False,
    )


def _as_is(batch: CellBatch) -> CellBatch:
    return batch

"""Mini-batches of cells: in which order they come, how they are read, and what a model receives."""

import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from anndata import AnnData

from sims_kit.cells.genes import GeneCoverage
from sims_kit.cells.matrix import AS_IS, Expression, Scale
from sims_kit.cells.splits import check_whole
from sims_kit.text import warn


class CellBatch(NamedTuple):
    """Model input: `cells`, sparse CSR (B, genes) float32; `labels`, (B,) int64, -1 where unknown."""

    cells: torch.Tensor
    labels: torch.Tensor


class CellDataset:
    """Cells of several `Expression`, one after the other, aligned to the same genes; `labels` as in `CellBatch`."""

    def __init__(self, sources: Sequence[Expression], labels: np.ndarray | None = None):
        self.sources = list(sources)
        self._starts = np.cumsum([0, *map(len, self.sources)])
        self.labels = np.full(len(self), -1) if labels is None else np.asarray(labels, dtype=np.int64)
        self.in_file = any(source.in_file for source in self.sources)
        with warnings.catch_warnings():  # torch says once in a process that sparse tensors are in beta: here, unseen
            warnings.filterwarnings("ignore", message="Sparse (CSR tensor support|invariant checks)")
            torch.sparse_csr_tensor([0, 0], [], [], size=(1, 1))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The source of each position, and the position within that source."""
        owner = np.searchsorted(self._starts[1:], positions, side="right")
        return owner, positions - self._starts[owner]

    def rows(self, positions: np.ndarray) -> sp.csr_matrix:
        """Model input of these cells, in this order: (cells, genes) CSR float32."""
        positions = np.asarray(positions, dtype=np.int64)
        owner, within = self.locate(positions)
        parts = [self.sources[i].rows(within[owner == i]) for i in np.unique(owner)]
        if len(parts) == 1:
            return parts[0]
        return sp.vstack(parts, format="csr")[np.argsort(np.argsort(owner, kind="stable"))]

    def batch(self, rows: sp.csr_matrix, positions: Sequence[int]) -> CellBatch:
        """Rows of these positions with their labels, as tensors."""
        index = (torch.from_numpy(part.astype(np.int64)) for part in (rows.indptr, rows.indices))  # not 32 bits
        cells = torch.sparse_csr_tensor(*index, torch.from_numpy(rows.data), size=rows.shape, check_invariants=False)
        return CellBatch(cells, torch.from_numpy(self.labels[np.asarray(positions, dtype=np.int64)]))


class CellLoader:
    """Batches of cells; it stands where a torch DataLoader does.

    Cells in a file are read many batches at a time, in the order of the file, by at least one of `num_workers` threads:
    `block_size` neighbours together, `buffer_size` held and mixed. The order follows from `seed` and epoch alone. The
    last batch may hold fewer cells than `batch_size`, or one more: batch normalisation needs two. `positions` are
    rising. `shard` is the rank of this process and the number of processes; parts are disjoint and equal to a cell.

    >>> for cells, labels in CellLoader(dataset, range(len(dataset)), batch_size=256):
    ...     logits = model(cells)
    """

    block_size, buffer_size = 64, 4096  # the latter are 130 MB at 2,000 values per cell

    def __init__(
        self,
        dataset: CellDataset,
        positions: Sequence[int],
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        num_workers: int = 0,
        shard: tuple[int, int] = (0, 1),
    ):
        self.dataset, self.positions = dataset, np.asarray(positions, dtype=np.int64)
        self.batch_size, self.shuffle, self.seed, self.epoch, self.shard = batch_size, shuffle, seed, 0, shard
        self.num_workers = max(num_workers, int(dataset.in_file))
        self.batches_at_once = max(1, self.buffer_size // batch_size) if dataset.in_file else 1
        self._window = self.batches_at_once * batch_size  # cells that are held at once
        self.batch_sampler = SimpleNamespace(sampler=self)  # Lightning calls set_epoch of this sampler

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        turns, rest = divmod(len(self.positions), self._window * self.shard[1])
        n_cells = turns * self._window + rest // self.shard[1]  # of the smallest part: all take as many steps
        full, rest = divmod(n_cells, self.batch_size)
        return full + (rest > 0 and not (rest == 1 and full > 0))

    def batches(self) -> Iterator[np.ndarray]:
        """Positions of the cells of each batch of this process, in this epoch."""
        order, (rank, n_ranks) = self._order(), self.shard
        if n_ranks > 1:  # whole windows in turn, so that neighbours stay together; then the remainder
            shared, rest = np.split(order, [len(order) - len(order) % (self._window * n_ranks)])
            own = shared.reshape(-1, n_ranks, self._window)[:, rank].ravel()
            order = np.concatenate([own, np.array_split(rest, n_ranks)[rank]])
        starts = np.arange(len(self)) * self.batch_size
        yield from np.split(order, starts[1:]) if len(order) else ()

    def __iter__(self) -> Iterator[CellBatch]:
        batches = self.batches()
        stretches = iter(lambda: list(islice(batches, self.batches_at_once)), [])
        if not self.num_workers:
            yield from chain.from_iterable(map(self._read, stretches))
            return
        with ThreadPoolExecutor(self.num_workers) as pool:
            ahead = deque(pool.submit(self._read, stretch) for stretch in islice(stretches, self.num_workers))
            while ahead:
                first = ahead.popleft()
                ahead.extend(pool.submit(self._read, stretch) for stretch in islice(stretches, 1))
                yield from first.result()
                del first  # its cells go before the next ones come

    def _read(self, stretch: list[np.ndarray]) -> Iterator[CellBatch]:
        """The batches at these positions: their cells are read together, and cut apart one batch after the other."""
        if len(stretch) == 1:
            return iter([self.dataset.batch(self.dataset.rows(stretch[0]), stretch[0])])
        positions = np.sort(np.concatenate(stretch))
        cells = self.dataset.rows(positions)
        return (self.dataset.batch(cells[np.searchsorted(positions, batch)], batch) for batch in stretch)

    def _order(self) -> np.ndarray:
        """All positions, of all processes, in the order of this epoch.

        Of cells in files each window has about the mixture of the whole, even where these are sorted by class: blocks
        of neighbours of each file and class are spread evenly over the epoch; then each window is shuffled.
        """
        if not self.shuffle:
            return self.positions
        seeds = np.random.SeedSequence([self.seed, self.epoch])
        if not self.dataset.in_file:
            generator = torch.Generator().manual_seed(int(seeds.generate_state(1)[0]))
            return self.positions[torch.randperm(len(self.positions), generator=generator).numpy()]
        random = np.random.default_rng(seeds)
        source, within = self.dataset.locate(self.positions)
        starts_anew = (np.diff(source) > 0) | (np.diff(within // self.block_size) != 0)
        edges = np.concatenate([[0], np.flatnonzero(starts_anew) + 1, [len(self.positions)]])
        middle = (edges[:-1] + edges[1:]) // 2
        groups = np.column_stack([source[middle], self.dataset.labels[self.positions[middle]]])
        _, group, sizes = np.unique(groups, axis=0, return_inverse=True, return_counts=True)
        blocks = random.permutation(len(middle))
        blocks = blocks[np.argsort(group.ravel()[blocks], kind="stable")]
        # the k-th of n blocks of a group comes somewhere between k / n and (k + 1) / n of the epoch
        rank = np.arange(len(blocks)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        blocks = blocks[np.argsort((rank + random.random(len(blocks))) / np.repeat(sizes, sizes), kind="stable")]
        order = np.concatenate([self.positions[edges[block] : edges[block + 1]] for block in blocks])
        windows = np.split(order, range(self._window, len(order), self._window))
        return np.concatenate([random.permutation(window) for window in windows])


def query_batches(
    adata: AnnData,
    vocabulary: Sequence[str],
    *,
    layer: str | None = None,
    batch_size: int = 256,
    trained_on: Sequence[str] = (),
    cells: Sequence[int] | None = None,
    **options,
) -> tuple[CellLoader, GeneCoverage, Scale]:
    """The cells of a query in order, as a model with this vocabulary takes them, gene coverage, and scale.

    `layer` is as in `Expression`, `options` as in `align_genes`; `trained_on` has the scales of the model's reference.
    `cells` are rising positions, all by default; the scale is recognised from all cells either way.
    """
    check_whole("batch_size", batch_size, 1)
    query = Expression(adata, layer, name="The query's matrix")
    if "log-normalised" in trained_on and query.scale.transform == "log1p(x)":  # by sims_kit 0.1
        query.scale = AS_IS
    elif str(AS_IS) in trained_on and query.scale != AS_IS:
        found = f"The query's matrix holds {query.scale}, but the model was trained on values of unknown scale"
        warn(f"{found}: its labels may be wrong. Train on counts, or prepare it as the reference was.")
    coverage = query.align(vocabulary, adata.obs_names, **options)
    positions = range(len(query)) if cells is None else cells
    return CellLoader(CellDataset([query]), positions, batch_size), coverage, query.scale

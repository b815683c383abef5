"""In which order cells come, how they are cut into batches, and which of them each process gets."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import BatchSampler, Dataset, RandomSampler, Sampler

from sims_kit.errors import SettingError

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

    from sims_kit.cells.batches import CellDataset

BLOCK_SIZE = 64  # cells: of 2,000 values each, four chunks of a packed file; a type of 1 % fills a block per stretch
BUFFER_SIZE = 4096  # cells held at once, twice while the next are read: 130 MB at 2,000 values per cell


class ShuffleSampler(RandomSampler):
    """Every position once, in an order that follows from seed and epoch alone.

    Lightning calls `set_epoch` before each epoch, so a resumed run sees the orders of an uninterrupted one.
    """

    def __init__(self, dataset: Dataset, seed: int = 0):
        super().__init__(dataset, generator=torch.Generator())
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        mixed = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1)[0]
        self.generator.manual_seed(int(mixed))
        yield from super().__iter__()


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


class CellBatchSampler(BatchSampler):
    """Batches of positions; a last batch of one cell joins the one before it.

    Batch normalisation needs two cells. The arguments are those of torch's BatchSampler, so that Lightning can put in
    another sampler for prediction.
    """

    def __init__(self, sampler: Sampler[int] | Sequence[int], batch_size: int, drop_last: bool = False):
        super().__init__(sampler, batch_size, drop_last)

    def __len__(self) -> int:
        n_cells = getattr(self.sampler, "smallest", len(self.sampler))  # every process takes as many steps
        full, rest = divmod(n_cells, self.batch_size)
        joined = self.drop_last or (rest == 1 and full > 0)
        return full + (rest > 0 and not joined)

    def __iter__(self) -> Iterator[list[int]]:
        positions = iter(self.sampler)
        for _ in range(len(self) - 1):
            yield list(islice(positions, self.batch_size))
        last = list(islice(positions, self.batch_size if self.drop_last else None))
        if len(self):
            yield last


class Shard(Sampler[int]):
    """One process's part of what a sampler gives to all of them.

    Parts are disjoint, complete together, and of one length, or one more. Whole windows go to each process in turn,
    so that what lies together stays together; what is left at the end is divided.

    Parameters
    ----------
    sampler
        Gives the same order in every process.
    window
        Positions that stay together.
    rank, n_ranks
        Which process this is, of how many.

    Attributes
    ----------
    smallest
        Length of the smallest part.
    """

    def __init__(self, sampler: Sampler[int] | Sequence[int], window: int, rank: int, n_ranks: int):
        self.sampler, self.window, self.rank, self.n_ranks = sampler, window, rank, n_ranks
        turns, rest = divmod(len(sampler), window * n_ranks)
        self._shared = turns * window * n_ranks  # positions that make full turns
        self.smallest = turns * window + rest // n_ranks
        self._length = self.smallest + (rank < rest % n_ranks)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch."""
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        order = np.fromiter(self.sampler, np.int64, len(self.sampler))
        yield from order[: self._shared].reshape(-1, self.n_ranks, self.window)[:, self.rank].ravel().tolist()
        yield from np.array_split(order[self._shared :], self.n_ranks)[self.rank].tolist()


def shard_of(trainer: "Trainer | None", part: str, n_cells: int) -> tuple[int, int]:
    """Rank of this process, and how many there are, for a part (``"train"``, ...) of `n_cells` cells.

    Raises
    ------
    SettingError
        If there are fewer than two cells for each process, or Lightning is about to deal the cells out as well.
    """
    if trainer is None or trainer.world_size == 1:
        return 0, 1
    if trainer._accelerator_connector.use_distributed_sampler:  # it would put an order of its own in place of ours
        raise SettingError(
            "The data module deals cells out to the processes itself: pass use_distributed_sampler=False to the "
            "Trainer, or take the one of sims_kit.generate_trainer."
        )
    if n_cells < 2 * trainer.world_size:
        raise SettingError(
            f"The {part} part has {n_cells} cells for {trainer.world_size} processes; each needs two. Use fewer "
            f"devices, or {'more cells' if part == 'train' else 'a larger share'}."
        )
    return trainer.global_rank, trainer.world_size

"""Cells that lie on the GPU: where all of them fit there, a batch is gathered there and nothing is sent."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Subset

from sims_kit.cells.batches import CellBatch, CellDataset, MemoryCells

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

DEVICE_SHARE = 0.4  # of the device's free memory, for the cells; the rest is the network's


class DeviceBatches:
    """The batches of a loader, their cells on a device from the start.

    Parameters
    ----------
    dataset
        Cells of a `CellDataset`; normalised and copied to the device, 8 bytes per value.
    batch_sampler
        Gives the rows of each batch.
    device
        Where to.
    """

    def __init__(self, dataset: Subset, batch_sampler: BatchSampler, device: torch.device):
        positions = np.asarray(dataset.indices)
        cells, labels = dataset.dataset.rows(positions), dataset.dataset.labels[positions]
        self.dataset, self.batch_sampler, self.n_genes = dataset, batch_sampler, cells.shape[1]
        self.starts = torch.from_numpy(cells.indptr.astype(np.int64)).to(device)
        self.genes = torch.from_numpy(cells.indices.astype(np.int32)).to(device)
        self.values, self.labels = torch.from_numpy(cells.data).to(device), torch.from_numpy(labels).to(device)

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[CellBatch]:
        for batch in self.batch_sampler:
            rows = torch.tensor(batch, device=self.starts.device)
            yield CellBatch(self._rows(rows), self.labels[rows])

    def _rows(self, rows: torch.Tensor) -> torch.Tensor:
        first = self.starts[rows]
        lengths = self.starts[rows + 1] - first
        starts = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        shifts = torch.repeat_interleave(first - starts[:-1], lengths)
        places = torch.arange(len(shifts), device=shifts.device) + shifts
        parts = starts, self.genes[places].long(), self.values[places]
        return torch.sparse_csr_tensor(*parts, size=(len(rows), self.n_genes), check_invariants=False)


def on_device(loader: DataLoader, trainer: "Trainer | None") -> DataLoader | DeviceBatches:
    """The loader, its cells on the trainer's GPU; unchanged where there is none, or no room.

    Parameters
    ----------
    loader
        From `sims_kit.cells.batches.cell_loader`, of a torch `Subset` of a `CellDataset` in memory.
    trainer
        Whose device it is.
    """
    device = trainer.strategy.root_device if trainer is not None else None
    dataset: CellDataset = loader.dataset.dataset
    if device is None or device.type != "cuda" or not all(isinstance(s, MemoryCells) for s in dataset.sources):
        return loader
    free, _ = torch.cuda.mem_get_info(device)
    if 8 * sum(source.matrix.nnz for source in dataset.sources) > DEVICE_SHARE * free:
        return loader
    return DeviceBatches(loader.dataset, loader.batch_sampler, device)

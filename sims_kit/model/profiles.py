"""Class profiles: how unlike every class a cell is, in the network's answer and in its expression."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from sims_kit.model.devices import total

ROBUST = 1.4826  # median absolute deviations of a normal distribution make one standard deviation
LEAST_SPREAD = 1e-3  # of scores that hardly differ


class ClassProfiles(nn.Module):
    """The mean expression of each class, and what is usual: a cell that fits none may be of a type never seen.

    A network sees what tells its classes apart. A new type that shows the signs of one of them is called that, surely;
    its other genes give it away. A new type between two classes is near both in expression; the network's doubt gives
    it away. The score is the larger of the two, each in robust standard deviations above the median held-out cell.

    Parameters
    ----------
    n_genes, n_classes
        Of the model.
    """

    def __init__(self, n_genes: int, n_classes: int):
        super().__init__()
        self.register_buffer("means", torch.zeros(n_classes, n_genes))
        self.register_buffer("weights", torch.ones(n_genes))
        self.register_buffer("centre", torch.zeros(2))  # of doubt and distance
        self.register_buffer("spread", torch.ones(2))
        self.register_buffer("is_measured", torch.tensor(False))

    @torch.no_grad()
    def measure(self, batches: Iterable) -> None:
        """Take means and weights of the genes from training cells: tuples of cells (B, genes) and labels (B,)."""
        n_classes, n_genes = self.means.shape
        sums = torch.zeros(n_classes * n_genes, dtype=torch.float64)
        squares, sizes = torch.zeros(n_genes, dtype=torch.float64), torch.zeros(n_classes, dtype=torch.float64)
        for cells, labels in batches:
            rows, genes, values = _entries(cells.cpu())
            labels, values = labels.cpu(), values.double()
            sums.index_add_(0, labels[rows] * n_genes + genes, values)
            squares.index_add_(0, genes, values.square())
            sizes += labels.bincount(minlength=n_classes)
        sums, squares, sizes = (total(part, self.means.device) for part in (sums, squares, sizes))
        means = sums.view(n_classes, n_genes) / sizes.clamp(min=1)[:, None]
        within = squares - (sizes[:, None] * means.square()).sum(0)
        variance = (within / (sizes.sum() - n_classes).clamp(min=1)).clamp(min=0)
        self.means.copy_(means)
        self.weights.copy_((variance + variance.mean().clamp(min=1e-12)).rsqrt())  # rare genes are not blown up
        self.is_measured.fill_(True)

    def distance(self, cells: Tensor) -> Tensor:
        """Logarithm of the squared distance to the nearest class, shape (B,), of cells (B, genes), dense or CSR."""
        rows, genes, values = _entries(cells)
        values = values * self.weights[genes]
        means = self.means * self.weights
        length = values.new_zeros(len(cells)).index_add(0, rows, values.square())
        weighted = torch.sparse_coo_tensor(torch.stack([rows, genes]), values, cells.shape)
        squared = length[:, None] - 2 * torch.sparse.mm(weighted, means.T) + means.square().sum(1)
        return squared.min(1).values.clamp(min=1e-6).log()

    def set_usual(self, logits: Tensor, distance: Tensor) -> None:
        """Centre and spread of what is usual, from held-out cells: logits (B, classes), `distance` (B,)."""
        parts = torch.stack([doubt(logits), distance], 1)
        centre = parts.median(0).values
        self.centre.copy_(centre)
        self.spread.copy_(((parts - centre).abs().median(0).values * ROBUST).clamp(min=LEAST_SPREAD))

    def unseen(self, logits: Tensor, distance: Tensor) -> Tensor:
        """The score, shape (B,): 0 for a usual cell, higher for one that is less like any class."""
        return ((torch.stack([doubt(logits), distance], 1) - self.centre) / self.spread).max(1).values


def doubt(logits: Tensor) -> Tensor:
    """Log odds against the most probable class, shape (B,); its probability alone would round to one."""
    first = logits.argmax(1, keepdim=True)
    others = logits.scatter(1, first, -torch.inf)
    return others.logsumexp(1) - logits.gather(1, first)[:, 0]


def _entries(cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row, column and value of what is not zero."""
    cells = cells.to_sparse_csr() if cells.layout == torch.strided else cells
    rows = torch.repeat_interleave(torch.arange(len(cells), device=cells.device), cells.crow_indices().diff())
    return rows, cells.col_indices(), cells.values()

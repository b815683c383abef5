"""Class profiles: how unlike every class a cell is, in the network's answer and in its expression."""

import math
import warnings
from collections.abc import Iterable

import numpy as np
import torch
from scipy.sparse import csr_matrix, vstack
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC
from torch import Tensor, nn
from torch.nn.functional import one_hot

from sims_kit.model.devices import total

ROBUST = 1.4826  # median absolute deviations of a normal distribution make one standard deviation
LEAST_SPREAD = 1e-3  # of scores that hardly differ
SAMPLE = 2048  # cells that the linear method learns from, shared by the classes; more teach it little and take memory
FEWEST = 20  # cells for each class even so, if it has as many


class ClassProfiles(nn.Module):
    """The mean expression of each class, planes around it, and what is usual: a cell that fits none may be a new type.

    A network sees what tells its classes apart. A new type that shows the signs of one of them is called that, surely;
    its other genes give it away. Three parts notice what is new in different ways: the network's doubt; the angle
    between the cell and the nearest class mean; and the margin of a linear method that learned each class against all
    others, from all genes, and may say of a cell that it is none of them. Each is counted in robust standard
    deviations above the median held-out cell; the score is their soft maximum.

    Parameters
    ----------
    n_genes, n_classes
        Of the model.
    """

    def __init__(self, n_genes: int, n_classes: int):
        super().__init__()
        self.register_buffer("means", torch.zeros(n_classes, n_genes))
        self.register_buffer("weights", torch.ones(n_genes))
        self.register_buffer("planes", torch.zeros(n_classes, n_genes))
        self.register_buffer("offsets", torch.zeros(n_classes))
        self.register_buffer("centre", torch.zeros(3))  # of doubt, angle and margin
        self.register_buffer("spread", torch.zeros(3))  # 0: not known yet
        self.register_buffer("is_measured", torch.tensor(False))

    @torch.no_grad()
    def measure(self, batches: Iterable) -> None:
        """Take means, weights and planes from training cells: tuples of cells (B, genes) and labels (B,)."""
        n_classes, n_genes = self.means.shape
        sums = torch.zeros(n_classes * n_genes, dtype=torch.float64)
        squares, sizes = torch.zeros(n_genes, dtype=torch.float64), torch.zeros(n_classes, dtype=torch.float64)
        sample, room = [], torch.full((n_classes,), max(FEWEST, SAMPLE // n_classes))
        for cells, labels in batches:
            labels = labels.cpu()
            rows, genes, values = _entries(cells.cpu())
            if (kept := _first(labels, room)).any():
                some = csr_matrix((values, (rows, genes)), cells.shape)[kept.numpy()]
                sample.append((some, labels[kept].numpy()))
            values = values.double()
            sums.index_add_(0, labels[rows] * n_genes + genes, values)
            squares.index_add_(0, genes, values.square())
            sizes += labels.bincount(minlength=n_classes)
        planes, offsets, found = _planes(sample, n_classes, n_genes)
        parts = (sums, squares, sizes, planes, offsets, found)
        sums, squares, sizes, planes, offsets, found = (total(part, self.means.device) for part in parts)
        means = sums.view(n_classes, n_genes) / sizes.clamp(min=1)[:, None]
        within = squares - (sizes[:, None] * means.square()).sum(0)
        variance = (within / (sizes.sum() - n_classes).clamp(min=1)).clamp(min=0)
        self.means.copy_(means)
        self.weights.copy_((variance + variance.mean().clamp(min=1e-12)).rsqrt())  # rare genes are not blown up
        self.planes.copy_(planes / found.clamp(min=1)[:, None])  # the mean over the devices that had the class
        self.offsets.copy_((offsets / found).where(found > 0, -1.0))  # every cell is outside of a class without cells
        self.centre.zero_()
        self.spread.zero_()
        self.is_measured.fill_(True)

    @property
    def knows_usual(self) -> bool:
        """Whether the score means something: profiles were measured, and held-out cells have said what is usual."""
        return bool(self.is_measured and (self.spread > 0).all())

    def unlike(self, cells: Tensor) -> Tensor:
        """Minus the cosine with the nearest class mean, and minus the largest margin, (B, 2), of cells (B, genes)."""
        cells = cells.to_sparse_csr() if cells.layout == torch.strided else cells
        rows, genes, values = _entries(cells)
        means = self.means * self.weights
        length = values.new_zeros(len(cells)).index_add(0, rows, (values * self.weights[genes]).square())
        inner, margins = torch.sparse.mm(cells, torch.cat([means * self.weights, self.planes]).T).chunk(2, dim=1)
        cosines = inner / (length.sqrt()[:, None] * means.norm(dim=1)).clamp(min=1e-12)
        return -torch.stack([cosines.max(1).values, (margins + self.offsets).max(1).values], 1)

    def set_usual(self, logits: Tensor, unlike: Tensor) -> None:
        """Centre and spread of what is usual, from held-out cells: logits (B, classes), `unlike` (B, 2)."""
        parts = torch.cat([doubt(logits)[:, None], unlike], 1)
        centre = parts.median(0).values
        self.centre.copy_(centre)
        self.spread.copy_(((parts - centre).abs().median(0).values * ROBUST).clamp(min=LEAST_SPREAD))

    def unseen(self, logits: Tensor, unlike: Tensor) -> Tensor:
        """The score, shape (B,): 0 for a usual cell, higher for one that is less like any class."""
        parts = (torch.cat([doubt(logits)[:, None], unlike], 1) - self.centre) / self.spread.clamp(min=LEAST_SPREAD)
        return parts.logsumexp(1) - math.log(parts.shape[1])


ClassProfiles.is_calibrated, ClassProfiles.distances = ClassProfiles.knows_usual, ClassProfiles.unlike
ClassProfiles.scores = ClassProfiles.unseen


def doubt(logits: Tensor) -> Tensor:
    """Log odds against the most probable class, shape (B,); its probability alone would round to one."""
    first = logits.argmax(1, keepdim=True)
    others = logits.scatter(1, first, -torch.inf)
    return others.logsumexp(1) - logits.gather(1, first)[:, 0]


def _first(labels: Tensor, room: Tensor) -> Tensor:
    """Of which cells the class has room; what they take up of it is gone."""
    ranks = one_hot(labels, len(room)).cumsum(0).gather(1, labels[:, None])[:, 0]
    kept = ranks <= room[labels]
    room -= labels[kept].bincount(minlength=len(room))
    return kept


def _planes(sample: list[tuple[csr_matrix, np.ndarray]], n_classes: int, n_genes: int) -> tuple[Tensor, Tensor, Tensor]:
    """A linear support vector machine for each class against the others, (classes, genes), (classes,); and which."""
    planes, offsets, has_cells = torch.zeros(n_classes, n_genes), torch.zeros(n_classes), torch.zeros(n_classes)
    labels = np.concatenate([of_cells for _, of_cells in sample]) if sample else np.empty(0, int)
    if len(found := np.unique(labels)) > 1:
        machine = LinearSVC(C=0.01, random_state=0)
        with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):  # near enough
            machine.fit(vstack([cells for cells, _ in sample]), labels)
        sign = np.array([[-1], [1]]) if len(found) == 2 else np.ones((1, 1))  # of two classes it gives the second's
        planes[found] = torch.from_numpy(sign * machine.coef_).float()
        offsets[found] = torch.from_numpy(sign[:, 0] * machine.intercept_).float()
        has_cells[found] = 1
    return planes, offsets, has_cells


def _entries(cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row, column and value of what is not zero."""
    cells = cells.to_sparse_csr() if cells.layout == torch.strided else cells
    rows = torch.repeat_interleave(torch.arange(len(cells), device=cells.device), cells.crow_indices().diff())
    return rows, cells.col_indices(), cells.values()

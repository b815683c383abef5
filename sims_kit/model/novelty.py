"""Novelty: how far a cell is from every class, in the network's answer and in its expression."""

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

from sims_kit.model.trainer import sum_across_devices

ROBUST = 1.4826  # median absolute deviations of a normal distribution make one standard deviation
LEAST_SPREAD = 1e-3  # of scores that hardly differ
SAMPLE = 2048  # cells that the linear classifiers are fitted on, shared by the classes; more gain little
FEWEST = 20  # cells of each class even so, if it has as many


class Novelty(nn.Module):
    """A score for cells that may be of a type that the model was not trained on.

    A network looks at genes that separate its classes, so that a new type which shares these genes with a class is
    assigned to it with high confidence. The score is the soft maximum of three parts, each counted in robust standard
    deviations above the median validation cell: the log odds against the most probable class; the angle between the
    cell and the nearest class mean; the largest margin of linear classifiers of each class against all others.
    """

    def __init__(self, n_genes: int, n_classes: int):
        super().__init__()
        self.register_buffer("means", torch.zeros(n_classes, n_genes))
        self.register_buffer("weights", torch.ones(n_genes))
        self.register_buffer("planes", torch.zeros(n_classes, n_genes))
        self.register_buffer("offsets", torch.zeros(n_classes))
        self.register_buffer("centre", torch.zeros(3))  # of log odds, angle and margin
        self.register_buffer("spread", torch.zeros(3))  # 0: not known yet
        self.register_buffer("is_measured", torch.tensor(False))

    @property
    def is_calibrated(self) -> bool:
        """Whether classes were measured and validation cells have set the reference; only then scores mean anything."""
        return bool(self.is_measured and (self.spread > 0).all())

    @torch.no_grad()
    def measure(self, batches: Iterable) -> None:
        """Take means, weights and planes from training cells: tuples of cells (B, G) and labels (B,)."""
        n_classes, n_genes = self.means.shape
        sample, room = [], torch.full((n_classes,), max(FEWEST, SAMPLE // n_classes))
        for cells, labels in batches:
            labels = labels.cpu()
            cells = cells.cpu().to_sparse_coo()
            (rows, genes), values = cells.indices(), cells.values()
            ranks = one_hot(labels, n_classes).cumsum(0).gather(1, labels[:, None])[:, 0]
            kept = ranks <= room[labels]  # (B,), while the sample has room for the class
            room -= labels[kept].bincount(minlength=n_classes)
            if kept.any():
                some = csr_matrix((values, (rows, genes)), cells.shape)[kept.numpy()]
                sample.append((some, labels[kept].numpy()))
        sums, squares, sizes = class_sums(batches, n_classes, n_genes, self.means.device)
        found = _planes(sample, n_classes, n_genes)
        planes, offsets, fitted = (sum_across_devices(part, self.means.device) for part in found)
        means = sums / sizes.clamp(min=1)[:, None]
        within = squares - (sizes[:, None] * means.square()).sum(0)
        variance = (within / (sizes.sum() - n_classes).clamp(min=1)).clamp(min=0)  # (G,)
        self.means.copy_(means)
        self.weights.copy_((variance + variance.mean().clamp(min=1e-12)).rsqrt())  # rare genes are not blown up
        self.planes.copy_(planes / fitted.clamp(min=1)[:, None])  # the mean over the devices that had the class
        self.offsets.copy_((offsets / fitted).where(fitted > 0, -1.0))  # a class without cells contains no cell
        self.centre.zero_()
        self.spread.zero_()
        self.is_measured.fill_(True)

    def distances(self, cells: Tensor) -> Tensor:
        """Minus the cosine with the nearest class mean, and minus the largest margin, (B, 2), of cells (B, G)."""
        entries = cells.to_sparse_coo()
        (rows, genes), values = entries.indices(), entries.values()
        means = self.means * self.weights  # (C, G)
        squares = values.new_zeros(len(cells)).index_add(0, rows, (values * self.weights[genes]).square())  # (B,)
        table = torch.cat([means * self.weights, self.planes]).T  # (G, 2 C)
        inner, margins = torch.sparse.mm(cells.to_sparse_csr(), table).chunk(2, dim=1)
        cosines = inner / (squares.sqrt()[:, None] * means.norm(dim=1)).clamp(min=1e-12)  # (B, C)
        return -torch.stack([cosines.max(1).values, (margins + self.offsets).max(1).values], 1)

    def set_reference(self, logits: Tensor, distances: Tensor) -> None:
        """Centre and spread of validation cells: calibrated logits (B, C), and their `distances` (B, 2)."""
        parts = score_parts(logits, distances)
        centre = parts.median(0).values
        self.centre.copy_(centre)
        self.spread.copy_(((parts - centre).abs().median(0).values * ROBUST).clamp(min=LEAST_SPREAD))

    def scores(self, logits: Tensor, distances: Tensor) -> Tensor:
        """The score, (B,): 0 for a typical cell, higher for a cell that is less like any class."""
        parts = (score_parts(logits, distances) - self.centre) / self.spread.clamp(min=LEAST_SPREAD)
        return parts.logsumexp(1) - math.log(parts.shape[1])


def class_sums(batches: Iterable, n_classes: int, n_genes: int, device: torch.device) -> list[Tensor]:
    """Sums of each class, (C, G), sums of squares, (G,), and cells of each class, (C,), over all processes; float64.

    `batches` are tuples of cells (B, G) and labels (B,).
    """
    sums = torch.zeros(n_classes * n_genes, dtype=torch.float64)
    squares, sizes = torch.zeros(n_genes, dtype=torch.float64), torch.zeros(n_classes, dtype=torch.float64)
    for cells, labels in batches:
        labels, cells = labels.cpu(), cells.cpu().to_sparse_coo()
        (rows, genes), values = cells.indices(), cells.values().double()
        sums.index_add_(0, labels[rows] * n_genes + genes, values)
        squares.index_add_(0, genes, values.square())
        sizes += labels.bincount(minlength=n_classes)
    return [sum_across_devices(part, device) for part in (sums.view(n_classes, n_genes), squares, sizes)]


def score_parts(logits: Tensor, distances: Tensor) -> Tensor:
    """Log odds against the most probable class, whose probability would round to one, and the distances, (B, 3)."""
    first = logits.argmax(1, keepdim=True)
    odds = logits.scatter(1, first, -torch.inf).logsumexp(1, keepdim=True) - logits.gather(1, first)
    return torch.cat([odds, distances], 1)


def _planes(sample: list[tuple[csr_matrix, np.ndarray]], n_classes: int, n_genes: int) -> tuple[Tensor, Tensor, Tensor]:
    """A linear classifier of each class against the others: planes (C, G), offsets (C,), and 1 where there is one."""
    planes, offsets, fitted = torch.zeros(n_classes, n_genes), torch.zeros(n_classes), torch.zeros(n_classes)
    labels = np.concatenate([of_cells for _, of_cells in sample]) if sample else np.empty(0, int)
    if len(found := np.unique(labels)) > 1:
        machine = LinearSVC(C=0.01, random_state=0)
        with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
            machine.fit(vstack([cells for cells, _ in sample]), labels)
        sign = np.array([[-1], [1]]) if len(found) == 2 else np.ones((1, 1))  # of two classes it gives the second's
        planes[found] = torch.from_numpy(sign * machine.coef_).float()
        offsets[found] = torch.from_numpy(sign[:, 0] * machine.intercept_).float()
        fitted[found] = 1
    return planes, offsets, fitted

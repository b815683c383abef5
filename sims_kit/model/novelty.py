"""Linear classifiers, and novelty: how far a cell is from every class, in the model's answer and in its expression."""

import math
import warnings
from collections.abc import Iterable

import numpy as np
import torch
from scipy.sparse import csr_matrix, vstack
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, one_hot

from sims_kit.model.trainer import sum_across_devices

ROBUST = 1.4826  # median absolute deviations of a normal distribution make one standard deviation
LEAST_SPREAD = 1e-3  # of scores that hardly differ
SAMPLE = 10_000  # cells that the linear classifiers are fitted on, shared by the classes
FEWEST = 20  # cells of each class even so, if it has as many
L1 = dict(solver="liblinear", max_iter=1000)
L1 |= {"penalty": "l1"} if LogisticRegression().penalty == "l2" else {"l1_ratio": 1}  # since scikit-learn 1.8


class Novelty(nn.Module):
    """A score for cells that may be of a type that the model was not trained on.

    A network looks at genes that separate its classes, so that a new type which shares these genes with a class is
    assigned to it with high confidence. The score is the soft maximum of three parts, each counted in robust standard
    deviations above the median validation cell: the log odds against the most probable class; the angle between the
    cell and the nearest class mean; the largest margin of linear classifiers of each class against all others. These,
    logistic regressions with an L1 penalty (Fan et al., JMLR 2008), also take part in the default's answer.
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
    def measure(self, batches: Iterable, class_weights: Tensor) -> None:
        """Take means, weights and planes from training cells: tuples of cells (B, G) and labels (B,).

        `class_weights`, (C,), are those of the linear classifiers.
        """
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
        found = _planes(sample, class_weights.cpu().numpy(), n_genes)
        planes, offsets, fitted = (sum_across_devices(part, self.means.device) for part in found)
        means = sums / sizes.clamp(min=1)[:, None]
        within = squares - (sizes[:, None] * means.square()).sum(0)
        variance = (within / (sizes.sum() - n_classes).clamp(min=1)).clamp(min=0)  # (G,)
        self.means.copy_(means)
        self.weights.copy_((variance + variance.mean().clamp(min=1e-12)).rsqrt())  # rare genes are not blown up
        self.planes.copy_(planes / fitted.clamp(min=1)[:, None])  # the mean over the devices that had the class
        self.offsets.copy_((offsets / fitted).where(fitted > 0, -10.0))  # a class without cells contains no cell
        self.centre.zero_()
        self.spread.zero_()
        self.is_measured.fill_(True)

    def margins(self, cells: Tensor) -> Tensor:
        """Those of the linear classifiers, (B, C), of cells (B, G)."""
        with torch.autocast(cells.device.type, enabled=False):  # 16 bits are too few, and CSR has no product in them
            return torch.sparse.mm(cells.to_sparse_csr(), self.planes.T) + self.offsets

    def joined(self, logits: Tensor, cells: Tensor, share: float) -> Tensor:
        """Logits of networks, (B, C), joined with the linear classifiers: the geometric mean of both answers."""
        return (1 - share) * logits + share * logsigmoid(self.margins(cells)) if share else logits

    def contributions(self, cells: Tensor, towards: Tensor, genes: Tensor) -> Tensor:
        """What these genes add to a combination `towards` of the answers, (B, U), by integrated gradients.

        Counted from a cell with the same genes, each at the mean of the class means, on the straight path to the cell;
        as a margin is linear, the mean slope of its `logsigmoid` is the difference of both ends over the way.
        """
        planes, mean, cells = self.planes[:, genes], self.means.mean(0)[genes], cells.to_dense()[:, genes]
        change = cells - mean * cells.sign()
        end, way = cells @ planes.T + self.offsets, change @ planes.T
        steep = (logsigmoid(end) - logsigmoid(end - way)) / way
        steep = steep.where(way.abs() > 1e-3, torch.sigmoid(way / 2 - end))
        return ((towards * steep) @ planes) * change

    def distances(self, cells: Tensor) -> Tensor:
        """Minus the cosine with the nearest class mean, and minus the largest margin, (B, 2), of cells (B, G)."""
        entries = cells.to_sparse_coo()
        (rows, genes), values = entries.indices(), entries.values()
        means = self.means * self.weights  # (C, G)
        squares = values.new_zeros(len(cells)).index_add(0, rows, (values * self.weights[genes]).square())  # (B,)
        with torch.autocast(cells.device.type, enabled=False):
            inner = torch.sparse.mm(cells.to_sparse_csr(), (means * self.weights).T)
        cosines = inner / (squares.sqrt()[:, None] * means.norm(dim=1)).clamp(min=1e-12)  # (B, C)
        return -torch.stack([cosines.max(1).values, self.margins(cells).max(1).values], 1)

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


def _planes(sample: list[tuple[csr_matrix, np.ndarray]], weights: np.ndarray, n_genes: int) -> list[Tensor]:
    """A linear classifier of each class against the others: planes (C, G), offsets (C,), and 1 where there is one."""
    planes, offsets, fitted = torch.zeros(len(weights), n_genes), torch.zeros(len(weights)), torch.zeros(len(weights))
    labels = np.concatenate([of_cells for _, of_cells in sample]) if sample else np.empty(0, int)
    if len(found := np.unique(labels)) > 1:
        cells, machine = vstack([cells for cells, _ in sample]), LogisticRegression(**L1, random_state=0)
        weights = weights / weights[labels].mean()  # as in the networks' loss, their ratios count
        with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
            for label in found:
                machine.fit(cells, labels == label, weights[labels])
                planes[label] = torch.from_numpy(machine.coef_[0])
                offsets[label], fitted[label] = machine.intercept_.item(), 1
    return [planes, offsets, fitted]

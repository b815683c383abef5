"""Calibration error of any number of cells in a few numbers; torchmetrics' own keeps two for every cell."""

import torch
from torch import Tensor
from torchmetrics import Metric


class CalibrationError(Metric):
    """Mean absolute difference of confidence and accuracy over bins of confidence, weighted by their cells.

    The value is that of torchmetrics' `MulticlassCalibrationError` with ``norm="l1"``. The small tensors that it keeps
    of every batch pin the memory between them: over an epoch of a million cells, hundreds of megabytes.

    Parameters
    ----------
    n_bins
        Bins of equal width from 0 to 1.
    """

    is_differentiable, higher_is_better, full_state_update = False, False, False

    def __init__(self, n_bins: int):
        super().__init__()
        self.n_bins = n_bins  # and one for confidences of exactly 1, as in torchmetrics
        self.add_state("sums", torch.zeros(n_bins + 1, 3, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, scores: Tensor, target: Tensor) -> None:
        """Add a batch: scores (B, classes), to which a softmax is applied unless all lie in [0, 1]; target (B,)."""
        if not ((scores >= 0) & (scores <= 1)).all():
            scores = scores.softmax(1)
        confidence, best = scores.max(dim=1)
        edges = torch.linspace(0, 1, self.n_bins + 1, dtype=confidence.dtype, device=confidence.device)
        bins = (torch.bucketize(confidence, edges, right=True) - 1).clamp(0, self.n_bins)
        of_bin = torch.nn.functional.one_hot(bins, self.n_bins + 1).to(self.sums)  # a sum in the same order each time
        self.sums += of_bin.T @ torch.stack([torch.ones_like(confidence), confidence, best == target], 1).to(of_bin)

    def compute(self) -> Tensor:
        """The value over all cells so far, a scalar; 0 without cells."""
        n_cells, confidence, correct = self.sums.T
        return ((confidence - correct).abs().sum() / n_cells.sum().clamp(min=1)).float()

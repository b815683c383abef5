"""A batch of cells where it meets the network: sparse rows, unpacked into a buffer while they are multiplied."""

import torch
from torch import Tensor
from torch.nn import functional as F

from sims_kit.model.masks import Mask
from sims_kit.model.workspace import workspace


class _FirstLayer(torch.autograd.Function):
    """``cells @ weight.T``. A dense product is faster than a sparse one; the backward pass unpacks the cells again."""

    @staticmethod
    def forward(ctx, cells: Tensor, dense: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(cells)
        return dense @ weight.T

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[None, None, Tensor]:
        (cells,) = ctx.saved_tensors
        return None, None, gradient.T @ unpacked(cells)


def first_layer(cells: Tensor, dense: Tensor, weight: Tensor) -> Tensor:
    """``cells @ weight.T``, shape (B, width), differentiable in the weight, and in cells that are not sparse.

    `dense` is `unpacked(cells)`.
    """
    if cells.layout == torch.strided:
        return F.linear(cells, weight)
    return _FirstLayer.apply(cells, dense, weight)


def masked_first_layer(mask: Mask, dense: Tensor, scale: Tensor, shift: Tensor, table: Tensor) -> Tensor:
    """The same on cells that are normalised, gene by gene, and masked. `table` is the weight, genes in rows."""
    if mask.genes is None:
        return (mask.weights * torch.addcmul(shift, dense.clone(), scale)) @ table
    factors = F.embedding(mask.genes, torch.stack([scale, shift], dim=1))
    weights = mask.weights * (dense[mask.cells, mask.genes] * factors[:, 0] + factors[:, 1])
    starts = torch.searchsorted(mask.cells, torch.arange(len(dense), device=dense.device))
    return F.embedding_bag(mask.genes, table, starts, mode="sum", per_sample_weights=weights)


def unpacked(cells: Tensor) -> Tensor:
    """Sparse cells, dense, in a buffer that the next call overwrites; others as they are."""
    if cells.layout == torch.strided:
        return cells
    n_cells, n_genes = cells.shape
    rows = torch.arange(n_cells, device=cells.device).repeat_interleave(cells.crow_indices().diff())
    dense = workspace("cells", (n_cells, n_genes), cells.values()).zero_()
    dense.view(-1).scatter_(0, rows * n_genes + cells.col_indices(), cells.values())
    return dense


@torch.no_grad()
def moments(cells: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance of each gene. `dense` is `unpacked(cells)`."""
    if cells.layout == torch.strided or cells.device.type != "cpu":
        variance, mean = torch.var_mean(dense, dim=0, correction=0)
        return mean, variance
    values, genes = cells.values().double(), cells.col_indices()  # the sums of squares would round too much in float32
    mean = torch.bincount(genes, values, cells.shape[1]) / len(cells)
    variance = torch.bincount(genes, values.square(), cells.shape[1]) / len(cells) - mean.square()
    return mean.to(dense.dtype), variance.clamp_(min=0).to(dense.dtype)

"""The network's first linear layer, the only one as wide as the genes, on sparse cells."""

import torch
from torch import Tensor
from torch.nn import functional as F

from sims_kit.model.masks import Mask
from sims_kit.model.workspace import workspace

PART = 2**18  # values summed at once, in float64: as copies they take 2 MB


class _FirstLayer(torch.autograd.Function):
    """`first_layer` for sparse cells. A dense product is the fastest; the backward pass unpacks the cells again."""

    @staticmethod
    def forward(ctx, cells: Tensor, dense: Tensor, scale: Tensor, shift: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(cells, scale, shift, weight)
        return torch.addmm(weight @ shift, dense, (weight * scale).T)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[None, None, Tensor, Tensor, Tensor]:
        if torch.is_grad_enabled():  # by create_graph alone
            raise RuntimeError("Sparse cells have no second derivatives here. Pass the cells dense: cells.to_dense().")
        cells, scale, shift, weight = ctx.saved_tensors
        total, product = gradient.sum(0), gradient.T @ unpacked(cells)
        of_scale, of_shift = (product * weight).sum(0), total @ weight
        return None, None, of_scale, of_shift, product.mul_(scale).addr_(total, shift)


def first_layer(cells: Tensor, dense: Tensor, scale: Tensor, shift: Tensor, weight: Tensor) -> Tensor:
    """A linear layer on normalised cells, ``(cells * scale + shift) @ weight.T``, shape (B, width).

    `cells` is (B, genes), `scale` and `shift` are (genes,), `weight` is (width, genes).
    Differentiable in scale, shift and weight, and in cells that are not sparse. `dense` is ``unpacked(cells)``.

    Raises
    ------
    RuntimeError
        When a second derivative for sparse cells is asked for.
    """
    if cells.layout == torch.strided:
        return F.linear(cells, weight * scale, weight @ shift)
    return _FirstLayer.apply(cells, dense, scale, shift, weight)


def masked_first_layer(mask: Mask, dense: Tensor, scale: Tensor, shift: Tensor, weight: Tensor) -> Tensor:
    """The same, shape (B, width), on cells that are normalised and masked."""
    if mask.genes is None:
        return F.linear(mask.weights * torch.addcmul(shift, dense.clone(), scale), weight)
    touched, places = mask.genes.unique(return_inverse=True)
    scales, shifts = F.embedding(places, torch.stack([scale[touched], shift[touched]], dim=1)).unbind(1)
    weights = mask.weights * (dense[mask.cells, mask.genes] * scales + shifts)
    starts = torch.searchsorted(mask.cells, torch.arange(len(dense), device=dense.device))
    table = weight.index_select(1, touched).T.contiguous()
    return F.embedding_bag(places, table, starts, mode="sum", per_sample_weights=weights)


def unpacked(cells: Tensor) -> Tensor:
    """Sparse cells, dense, in a buffer that the next call overwrites; others as they are."""
    if cells.layout == torch.strided:
        return cells
    n_cells, n_genes = cells.shape
    row_starts = torch.arange(0, n_cells * n_genes, n_genes, device=cells.device)
    places = row_starts.repeat_interleave(cells.crow_indices().diff()).add_(cells.col_indices())
    dense = workspace("cells", (n_cells, n_genes), cells.values()).zero_()
    dense.view(-1).scatter_(0, places, cells.values())
    return dense


@torch.no_grad()
def moments(cells: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance of each gene. `dense` is `unpacked(cells)`."""
    if cells.layout == torch.strided or cells.device.type != "cpu":
        variance, mean = torch.var_mean(dense, dim=0, correction=0)
        return mean, variance
    n_genes, zeros = cells.shape[1], len(cells) - torch.bincount(cells.col_indices(), minlength=cells.shape[1])
    parts = list(zip(cells.col_indices().split(PART), cells.values().split(PART), strict=True))
    mean = sum(torch.bincount(genes, values.double(), n_genes) for genes, values in parts) / len(cells)
    squares = sum(torch.bincount(genes, (values - mean[genes]).square_(), n_genes) for genes, values in parts)
    variance = (squares + zeros * mean.square()) / len(cells)
    return mean.to(dense.dtype), variance.to(dense.dtype)

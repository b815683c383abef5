"""The network's first linear layer, the only one as wide as the genes, on sparse cells."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from sims_kit.model.masks import Mask
from sims_kit.model.workspace import last_call, workspace

ROWS = 128  # of the weight that are scaled at once: no more memory than the search for masks takes
PART = 2**18  # values summed at once, in float64: as copies they take 2 MB


class _FirstLayer(torch.autograd.Function):
    """`first_layer` for sparse cells. A dense product is the fastest."""

    @staticmethod
    def forward(ctx, cells: Tensor, dense: Tensor, scale: Tensor, shift: Tensor, weight: Tensor) -> tuple:
        ctx.save_for_backward(cells, scale, shift, weight)
        ctx.dense, ctx.last_call = dense, last_call("cells", dense)
        out = (weight @ shift).repeat(len(dense), 1)
        for some, scaled in _in_parts(weight):
            out[:, some].addmm_(dense, torch.mul(weight[some], scale, out=scaled).T)
        return out, weight.T

    @staticmethod
    def backward(ctx, gradient: Tensor, of_table: Tensor) -> tuple:
        if torch.is_grad_enabled():  # by create_graph alone
            raise RuntimeError("Sparse cells have no second derivatives here. Pass the cells dense: cells.to_dense().")
        cells, scale, shift, weight = ctx.saved_tensors
        unchanged = ctx.last_call == last_call("cells", ctx.dense)  # else another batch has taken the memory
        total, of_weight = gradient.sum(0), gradient.T @ (ctx.dense if unchanged else unpacked(cells))
        of_scale = of_shift = None
        if ctx.needs_input_grad[2]:
            of_scale = torch.zeros_like(scale)
            for some, product in _in_parts(weight):
                of_scale += torch.mul(of_weight[some], weight[some], out=product).sum(0)
        if ctx.needs_input_grad[3]:
            of_shift = total @ weight
        of_weight.mul_(scale).addr_(total, shift)
        if of_table.is_sparse:
            genes, values = of_table._indices()[0], of_table._values()
            of_weight.scatter_add_(1, genes.expand(len(weight), -1), values.T)
        else:
            of_weight += of_table.T
        return None, None, of_scale, of_shift, of_weight


def _in_parts(weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Some rows of the weight at a time, and memory for as many."""
    for start in range(0, len(weight), ROWS):
        rows = slice(start, min(start + ROWS, len(weight)))
        yield rows, workspace("logits", (rows.stop - start, weight.shape[1]), weight)


class _RowsOf(torch.autograd.Function):
    """Some rows of a table that is stored by column; their gradient is sparse."""

    @staticmethod
    def forward(ctx, table: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape = table.shape
        return table.T.index_select(1, rows).T.contiguous()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        return torch.sparse_coo_tensor(rows[None], gradient, ctx.shape), None


def first_layer(cells: Tensor, dense: Tensor, scale: Tensor, shift: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """A linear layer on normalised cells, ``(cells * scale + shift) @ weight.T``, shape (B, width).

    `cells` is (B, genes), `scale` and `shift` are (genes,), `weight` is (width, genes).
    Differentiable in scale, shift and weight, and in cells that are not sparse. `dense` is ``unpacked(cells)``.

    Returns
    -------
    tuple
        The layer's output, and the weight by gene, shape (genes, width), for `masked_first_layer`: its gradients, on
        few genes each, meet in this layer's, and none of them is as large as the weight.

    Raises
    ------
    RuntimeError
        When a second derivative for sparse cells is asked for.
    """
    if cells.layout == torch.strided:
        return F.linear(cells, weight * scale, weight @ shift), weight.T
    return _FirstLayer.apply(cells, dense, scale, shift, weight)


def masked_first_layer(
    mask: Mask,
    dense: Tensor,
    scale: Tensor,
    shift: Tensor,
    table: Tensor,
    beside: Tensor | None = None,
    *,
    sparse: bool = False,
) -> Tensor:
    """The same layer, shape (B, width), on cells that are normalised and masked.

    `table` is the weight by gene, (genes, width); `sparse` says that it takes a sparse gradient, as that of
    `first_layer` on sparse cells does. `beside`, (genes, more), makes more columns of the output, behind the others.
    """
    if mask.genes is None:
        table = table if beside is None else torch.cat([table, beside], dim=1)
        return (mask.weights * torch.addcmul(shift, dense.clone(), scale)) @ table
    genes, places = mask.by_gene()
    scales, shifts = F.embedding(places, torch.stack([scale[genes], shift[genes]], dim=1)).unbind(1)
    weights = mask.weights * (dense[mask.cells, mask.genes] * scales + shifts)
    starts = torch.searchsorted(mask.cells, torch.arange(len(dense), device=dense.device))
    rows = _RowsOf.apply(table, genes) if sparse else F.embedding(genes, table)
    if beside is not None:
        rows = torch.cat([rows, F.embedding(genes, beside)], dim=1)
    return F.embedding_bag(places, rows, starts, mode="sum", per_sample_weights=weights)


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

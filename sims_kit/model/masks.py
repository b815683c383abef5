"""Masks of a decision step: found among all genes without gradients, then computed on the few genes they let through.

Sparsemax keeps a handful of the genes of each cell. Which ones is told by a search, in which the attention's logits
pass through a buffer and nothing is recorded for the backward pass; only the pairs of cell and gene that it finds are
computed with gradients. The numbers are those of pytorch-tabnet's attention transformer on all genes.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from pytorch_tabnet.tab_network import AttentiveTransformer
from torch import Tensor
from torch.nn import functional as F

from sims_kit.model.sparsemax import solve, threshold
from sims_kit.model.workspace import workspace

BLOCK = 8  # genes whose maximum the search looks at first, and maxima whose maximum; larger ones leave more to sort
STAGGER = 16  # unused columns: rows that start a multiple of 4 kB apart would push each other out of the cache
PROBE = 8  # cells whose masks are measured
ROWS = 128  # cells searched at once on a CPU, as many as a ghost batch: their logits stay near the processor


class Mask(NamedTuple):
    """The masks of one step for B cells: on pairs of cell and gene, or on all genes."""

    weights: Tensor
    """(pairs,) or (B, genes), non-negative; those of a cell sum to one."""
    cells: Tensor | None
    """(pairs,), the position of each pair's cell, ascending; None on all genes."""
    genes: Tensor | None
    """(pairs,), the position of each pair's gene; None on all genes."""
    shape: tuple[int, int]
    """B and the number of genes."""

    def to_dense(self) -> Tensor:
        """All weights, shape (B, genes)."""
        if self.genes is None:
            return self.weights
        return self.weights.new_zeros(self.shape).index_put((self.cells, self.genes), self.weights)

    def to_sparse(self) -> Tensor:
        """The weights that are not zero, sparse COO (B, genes)."""
        if self.genes is None:
            return self.weights.to_sparse()
        kept = self.weights != 0  # a decision of zero weighs no gene
        pairs = torch.stack([self.cells[kept], self.genes[kept]])
        return torch.sparse_coo_tensor(pairs, self.weights[kept], self.shape)

    def sum_of(self, values: Tensor) -> Tensor:
        """The sums of `values`, one for each weight, over the genes of each cell, shape (B, 1)."""
        if self.genes is None:
            return values.sum(1, keepdim=True)
        return values.new_zeros(self.shape[0]).index_add(0, self.cells, values)[:, None]

    def at(self, cells: Tensor, genes: Tensor) -> Tensor:
        """The weights of other pairs of cell and gene."""
        if self.genes is None:
            return self.weights[cells, genes]
        known, order = (self.cells * self.shape[1] + self.genes).sort()
        wanted = cells * self.shape[1] + genes
        place = torch.searchsorted(known, wanted).clamp_(max=len(known) - 1)
        return self.weights[order[place]] * (known[place] == wanted)

    def dampen(self, logits: Tensor, rows: slice, gamma: float) -> None:
        """Multiply the logits of some cells by the prior after this step, relative to that of unused genes."""
        if self.genes is None:
            logits *= 1 - self.weights[rows] / gamma
            return
        first, last = torch.searchsorted(self.cells, self.cells.new_tensor([rows.start, rows.stop])).tolist()
        pairs = self.cells[first:last] - rows.start, self.genes[first:last]
        logits[pairs] *= 1 - self.weights[first:last] / gamma


class _Part(NamedTuple):
    """Cells that are normalised alike: a ghost batch in training, some cells otherwise."""

    rows: slice
    centred: Tensor  # (rows, n_a), the attention less its mean
    scale: Tensor  # (genes,), what batch normalisation multiplies by
    shift: Tensor  # (genes,), and adds
    mean: Tensor | None = None  # (n_a,) of the attention; this and what follows in training only
    covariance: Tensor | None = None  # (n_a, n_a)
    variance: Tensor | None = None  # (genes,) of the logits, which follows from it


def narrow_mask(
    attention: Tensor, attend: AttentiveTransformer, past: Sequence[Mask], gamma: float, widest: float
) -> Mask | None:
    """The mask of a step, on pairs of cell and gene; None when masks are too wide for that to pay.

    In training, the attention's running statistics are updated, unless None is returned.

    Parameters
    ----------
    attention
        Shape (B, n_a), from the step before.
    attend
        The step's attention transformer: a linear layer and a batch normalisation in ghost batches.
    past
        The masks of earlier steps; a gene's logit is multiplied by the product of ``gamma - weight`` over them.
    widest
        Genes per cell up to which pairs pay. The masks of a few cells are measured, and speak for the batch.

    Raises
    ------
    FloatingPointError
        If the attention holds NaN or infinite values.

    Source: TabNet's attentive transformer, Arik and Pfister 2021, arXiv:1908.07442; thesis section 0.2.5.
    """
    if widest < 1:
        return None
    shape = len(attention), attend.fc.out_features
    parts = list(_parts(attention, attend))
    pairs = _search(parts, attend, past, gamma, widest)
    if pairs is None:
        return None
    cells, genes = pairs
    logits = _logits(cells, genes, attend, parts)
    for mask in past:
        logits = logits * (gamma - mask.at(cells, genes))
    first = torch.searchsorted(cells, torch.arange(shape[0], device=cells.device))
    logits = logits - logits.detach()[first][cells]  # differences of small numbers round less
    support = Mask(logits, cells, genes, shape)
    size = torch.bincount(cells, minlength=shape[0])[:, None]
    tau = (support.sum_of(logits) - 1) / size
    if attend.training:
        for part in parts:
            update_statistics(attend.bn.bn, attend.fc.weight @ part.mean, part.variance, len(part.centred))
    return support._replace(weights=(logits - tau.squeeze(1)[cells]).clamp(min=0))  # rounding may reach below zero


@torch.no_grad()
def update_statistics(norm: torch.nn.BatchNorm1d, mean: Tensor, variance: Tensor, n_cells: int) -> None:
    """Move running statistics as batch normalisation does on seeing `n_cells` with this mean and (biased) variance."""
    norm.num_batches_tracked += 1
    share = 1 / norm.num_batches_tracked if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean, share)
    norm.running_var.lerp_(variance * (n_cells / (n_cells - 1)), share)


def _parts(attention: Tensor, attend: AttentiveTransformer) -> Iterator[_Part]:
    """How batch normalisation acts on the logits, told without computing them."""
    weight, norm, start = attend.fc.weight.detach(), attend.bn.bn, 0
    if not attend.training:
        scale = norm.weight.detach() * torch.rsqrt(norm.running_var + norm.eps)
        shift = norm.bias.detach() - norm.running_mean * scale
        for cells in attention.split(ROWS if attention.device.type == "cpu" else len(attention)):
            yield _Part(slice(start, start + len(cells)), cells, scale, shift)
            start += len(cells)
        return
    for cells in attention.chunk(-(-len(attention) // attend.bn.virtual_batch_size)):
        mean = cells.mean(0)
        centred = cells - mean
        covariance = centred.T @ centred / len(cells)
        variance = ((weight @ covariance.detach()) * weight).sum(1)
        scale = norm.weight.detach() * torch.rsqrt(variance + norm.eps)
        rows = slice(start, start + len(cells))
        yield _Part(rows, centred, scale, norm.bias.detach(), mean.detach(), covariance, variance)
        start += len(cells)


@torch.no_grad()
def _search(
    parts: Sequence[_Part], attend: AttentiveTransformer, past: Sequence[Mask], gamma: float, widest: float
) -> tuple[Tensor, Tensor] | None:
    """The pairs of cell and gene that the masks let through, by ascending cell; None when they are too many."""
    n_genes, strength = attend.fc.out_features, gamma ** len(past)
    columns = -(-n_genes // BLOCK**3) * BLOCK**3  # three levels of blocks
    on_cpu = attend.fc.weight.device.type == "cpu"
    found = []
    for group in [[part] for part in parts] if on_cpu else [parts]:  # elsewhere each search would wait for the device
        rows = slice(group[0].rows.start, group[-1].rows.stop)
        logits = workspace("logits", (rows.stop - rows.start, columns + STAGGER), group[0].centred)[:, :columns]
        logits[:, n_genes:] = -torch.inf
        for part in group:
            table = torch.cat([attend.fc.weight * part.scale[:, None], part.shift[:, None]], dim=1).mul_(strength)
            here = slice(part.rows.start - rows.start, part.rows.stop - rows.start)
            factors = F.pad(part.centred, (0, 1), value=1.0)  # the shift is a column of the table: adding it costs more
            torch.mm(factors, table.T, out=logits[here, :n_genes])
        for mask in past:
            mask.dampen(logits[:, :n_genes], rows, gamma)
        if not found:
            probe = logits[:: -(-len(logits) // PROBE)]
            width = (probe > threshold(probe)).sum().item() / len(probe)
            if not width <= widest:
                return None
        cells, genes = _support(logits, 16 * math.ceil(max(1, 1.5 * width) / 16))  # enough for most
        found.append((cells + rows.start, genes))
    cells, genes = zip(*found, strict=True)
    return torch.cat(cells), torch.cat(genes)


def _support(logits: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Rows and columns of the logits that sparsemax keeps, by ascending row; `width` of a row are tried first."""
    rows, found = None, []  # None: all
    while True:
        width = min(width, logits.shape[1])
        largest, columns = _largest(logits if rows is None else logits[rows], width)
        _, size = solve(largest)
        solved = (size < width).squeeze(1) if width < logits.shape[1] else torch.ones_like(size[:, 0], dtype=torch.bool)
        kept = torch.arange(width, device=logits.device) < size
        places, candidates = (kept & solved[:, None]).nonzero(as_tuple=True)
        found.append((places if rows is None else rows[places], columns[places, candidates]))
        if solved.all():
            break
        rows, width = (~solved).nonzero().squeeze(1) if rows is None else rows[~solved], 4 * width
    if len(found) == 1:
        return found[0]
    rows, columns = (torch.cat(part) for part in zip(*found, strict=True))
    order = rows.argsort(stable=True)
    return rows[order], columns[order]


def _largest(logits: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The largest `width` logits of each row, largest first, and their columns.

    They lie in the `width` blocks whose maxima are largest, which are found in the same way. A block is every n-th
    column, so that the maxima are found by comparing long rows.
    """
    n_blocks = logits.shape[1] // BLOCK
    if n_blocks < 2 * width or logits.shape[1] % BLOCK:
        return tuple(logits.topk(width))
    _, blocks = _largest(logits.view(len(logits), BLOCK, n_blocks).amax(1), width)
    columns = (blocks[:, None, :] + torch.arange(BLOCK, device=logits.device)[:, None] * n_blocks).flatten(1)
    largest, places = logits.gather(1, columns).topk(width)
    return largest, columns.gather(1, places)


def _logits(cells: Tensor, genes: Tensor, attend: AttentiveTransformer, parts: Sequence[_Part]) -> Tensor:
    """The normalised logits of some pairs of cell and gene, with gradients."""
    norm = attend.bn.bn
    touched, places = genes.unique(return_inverse=True)
    weight = F.embedding(touched, attend.fc.weight)
    starts = torch.tensor([part.rows.start for part in parts], device=cells.device)
    bounds = [*torch.searchsorted(cells, starts).tolist(), len(cells)]
    logits = []
    for number, part in enumerate(parts):
        if part.covariance is None:
            variance, mean = norm.running_var[touched], norm.running_mean[touched]
        else:
            variance, mean = ((weight @ part.covariance) * weight).sum(1), 0
        scale = norm.weight[touched] * torch.rsqrt(variance + norm.eps)
        table = torch.cat([weight * scale[:, None], (norm.bias[touched] - mean * scale)[:, None]], dim=1)
        pairs = slice(bounds[number], bounds[number + 1])
        of_gene = F.embedding(places[pairs], table)
        of_cell = F.embedding(cells[pairs] - part.rows.start, part.centred)
        logits.append((of_gene[:, :-1] * of_cell).sum(1) + of_gene[:, -1])
    return torch.cat(logits)

"""Masks of a decision step: found among all genes without gradients, then computed on the few genes they let through.

Sparsemax keeps a handful of the genes of each cell. Which ones is told by a search, in which the attention's logits
pass through a buffer and nothing is recorded for the backward pass; only the pairs of cell and gene that it finds are
computed with gradients. The numbers are those of pytorch-tabnet's attention transformer on all genes.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from pytorch_tabnet.tab_network import AttentiveTransformer
from torch import Tensor
from torch.nn import functional as F

from sims_kit.model.sparsemax import DIVERGED
from sims_kit.model.workspace import workspace

BLOCK = 8  # genes whose maximum the search looks at first, and maxima whose maximum; larger ones leave more to sort
STAGGER = 16  # unused columns: rows that start a multiple of 4 kB apart would push each other out of the cache
PROBE = 8  # cells whose masks are measured
HELD = 2**21 + 2**19  # logits searched at once on a CPU, 10 MB: 128 cells of 20,000 genes stay near the processor


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
    index: tuple[Tensor, Tensor] | None = None
    """On pairs, the genes that occur, ascending, and for each pair the place of its gene among them, if known."""

    def by_gene(self) -> tuple[Tensor, Tensor]:
        """`index`, found now if need be."""
        return self.index or self.genes.unique(return_inverse=True)

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


class _Ghosts(NamedTuple):
    """How batch normalisation acts on the logits of B cells, told without computing them.

    P ghost batches of `size` cells, the last with fewer, are normalised apart; in evaluation there is one.
    """

    size: int
    centred: Tensor  # (B, n_a), the attention less the mean of its ghost batch
    scale: Tensor  # (P, genes), what batch normalisation multiplies by
    shift: Tensor  # (genes,), and adds
    mean: Tensor | None = None  # (P, n_a) of the attention; this and what follows in training only
    covariance: Tensor | None = None  # (P, n_a, n_a)
    variance: Tensor | None = None  # (P, genes) of the logits, which follows from it


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
    ghosts, found = _ghosts(attention, attend), []
    with torch.no_grad():
        for start, logits in _all_logits(ghosts, attend, past, gamma):
            probe = logits[:: -(-len(logits) // PROBE)]
            if not found and len(_support(probe)[0]) > widest * len(probe):
                return None
            cells, genes = _support(logits)
            found.append((cells + start, genes))
    cells, genes = (torch.cat(part) for part in zip(*found, strict=True))
    return _mask_on(cells, genes, attend, past, gamma, ghosts)


def expressed(cells: Tensor) -> tuple[Tensor, Tensor]:
    """Positions of cells, ascending, and of genes where values are above zero; cells (B, genes), dense or CSR."""
    if cells.layout == torch.strided:
        return (cells > 0).nonzero(as_tuple=True)
    rows = torch.arange(len(cells), device=cells.device).repeat_interleave(cells.crow_indices().diff())
    above = cells.values() > 0  # gene dropout leaves zeros among the values
    return rows[above], cells.col_indices()[above]


def expressed_mask(
    attention: Tensor,
    attend: AttentiveTransformer,
    past: Sequence[Mask],
    gamma: float,
    seen: tuple[Tensor, Tensor],
    temperature: float,
) -> Mask:
    """The mask of a step among the genes that each cell expresses, on pairs of cell and gene.

    In training, the attention's running statistics are updated, from all genes of all cells.

    Parameters
    ----------
    attention, attend, past, gamma
        As in `narrow_mask`.
    seen
        What `expressed` gives. A cell without any gene has no mask: its sum is zero.
    temperature
        What logits are divided by before sparsemax: the higher, the more genes pass.

    Raises
    ------
    FloatingPointError
        If the attention holds NaN or infinite values.
    """
    ghosts, (cells, genes), values = _ghosts(attention, attend), seen, []
    with torch.no_grad():
        for start, logits in _all_logits(ghosts, attend, past, gamma):
            first, last = torch.searchsorted(cells, cells.new_tensor([start, start + len(logits)])).tolist()
            values.append(logits[cells[first:last] - start, genes[first:last]])
        values = torch.cat(values) / temperature
        top = values.new_full(attention.shape[:1], -torch.inf).scatter_reduce(0, cells, values, "amax")
        top_of_pairs = top.index_select(0, cells)
        if not torch.isfinite(top_of_pairs).all():
            raise FloatingPointError(DIVERGED)
        low = torch.full_like(top, -1)
        cells, genes, _ = _raised(cells, genes, values - top_of_pairs, low, to_the_end=True)
    return _mask_on(cells, genes, attend, past, gamma, ghosts, temperature)


def _mask_on(
    cells: Tensor,
    genes: Tensor,
    attend: AttentiveTransformer,
    past: Sequence[Mask],
    gamma: float,
    ghosts: _Ghosts,
    temperature: float = 1.0,
) -> Mask:
    """The mask whose support is these pairs of cell and gene, with gradients; running statistics are updated."""
    n_cells = len(ghosts.centred)
    index = genes.unique(return_inverse=True)
    logits = _logits(cells, *index, attend, ghosts) / temperature
    for mask in past:
        logits = logits * (gamma - mask.at(cells, genes))
    first = torch.searchsorted(cells, torch.arange(n_cells, device=cells.device))
    of_first = F.pad(logits.detach(), (0, 1))[first]  # the last cells may have no pair
    logits = logits - of_first[cells]  # differences of small numbers round less
    support = Mask(logits, cells, genes, (n_cells, attend.fc.out_features), index)
    size = torch.bincount(cells, minlength=n_cells).clamp_(min=1)[:, None]
    tau = (support.sum_of(logits) - 1) / size
    if attend.training:
        sizes = [len(part) for part in ghosts.centred.split(ghosts.size)]
        update_statistics(attend.bn.bn, ghosts.mean @ attend.fc.weight.T, ghosts.variance, sizes)
    return support._replace(weights=(logits - tau.squeeze(1)[cells]).clamp(min=0))  # rounding may reach below zero


@torch.no_grad()
def update_statistics(norm: torch.nn.BatchNorm1d, means: Tensor, variances: Tensor, sizes: Sequence[int]) -> None:
    """Move running statistics as batch normalisation does on seeing batches of these sizes, one after the other.

    Means and (biased) variances have shape (batches, genes).
    """
    for mean, variance, size in zip(means, variances, sizes, strict=True):
        norm.num_batches_tracked += 1
        share = 1 / norm.num_batches_tracked if norm.momentum is None else norm.momentum
        norm.running_mean.lerp_(mean, share)
        norm.running_var.mul_(1 - share).add_(variance, alpha=share * size / (size - 1))


def _ghosts(attention: Tensor, attend: AttentiveTransformer) -> _Ghosts:
    weight, norm, n_cells = attend.fc.weight.detach(), attend.bn.bn, len(attention)
    if not attend.training:
        scale = norm.weight.detach() * torch.rsqrt(norm.running_var + norm.eps)
        return _Ghosts(n_cells, attention, scale[None], norm.bias.detach() - norm.running_mean * scale)
    size = -(-n_cells // -(-n_cells // attend.bn.virtual_batch_size))  # as torch.chunk cuts
    parts = attention.split(size)
    mean = torch.stack([part.mean(0) for part in parts])
    centred = [part - of_part for part, of_part in zip(parts, mean, strict=True)]
    covariance = torch.stack([part.T @ part / len(part) for part in centred])
    variance = weight.new_empty(len(parts), len(weight))
    product = workspace("table", weight.shape, weight)
    for of_attention, of_logits in zip(covariance.detach(), variance, strict=True):
        torch.sum(torch.mm(weight, of_attention, out=product).mul_(weight), 1, out=of_logits)
    scale = norm.weight.detach() * torch.rsqrt(variance + norm.eps)
    return _Ghosts(size, torch.cat(centred), scale, norm.bias.detach(), mean.detach(), covariance, variance)


def _all_logits(
    ghosts: _Ghosts, attend: AttentiveTransformer, past: Sequence[Mask], gamma: float
) -> Iterator[tuple[int, Tensor]]:
    """The logits of some cells after the other, without gradients, and the position of the first of these cells.

    Shape (cells, genes and more), -inf where there is no gene; in memory that is used again for the next cells.
    """
    n_cells, n_genes, strength = len(ghosts.centred), attend.fc.out_features, gamma ** len(past)
    columns = -(-n_genes // BLOCK**3) * BLOCK**3  # three levels of blocks
    at_once = n_cells  # elsewhere than on a CPU, each search would wait for the device
    if attend.fc.weight.device.type == "cpu":
        at_once = max(PROBE, HELD // columns)
        at_once -= at_once % ghosts.size if at_once > ghosts.size else 0
    factors = F.pad(ghosts.centred, (0, 1), value=1.0)  # the shift is a column of the table: adding it costs more
    table, of_ghost = workspace("table", (n_genes, factors.shape[1]), factors), None
    for start in range(0, n_cells, at_once):
        rows = slice(start, min(start + at_once, n_cells))
        logits = workspace("logits", (rows.stop - start, columns + STAGGER), ghosts.centred)[:, :columns]
        logits[:, n_genes:] = -torch.inf
        for ghost in range(start // ghosts.size, -(-rows.stop // ghosts.size)):
            if ghost != of_ghost:
                torch.mul(attend.fc.weight, strength * ghosts.scale[ghost, :, None], out=table[:, :-1])
                torch.mul(ghosts.shift, strength, out=table[:, -1])
                of_ghost = ghost
            first, last = max(start, ghost * ghosts.size), min(rows.stop, (ghost + 1) * ghosts.size)
            torch.mm(factors[first:last], table.T, out=logits[first - start : last - start, :n_genes])
        for mask in past:
            mask.dampen(logits[:, :n_genes], rows, gamma)
        yield start, logits


def _support(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the logits that sparsemax keeps, by ascending row.

    Sparsemax of some of a row's logits has a threshold no higher than that of all. So thresholds are raised on the
    maxima of blocks, then of smaller ones, and a block whose maximum lies below its row's threshold is left behind with
    all that it holds. A block is every n-th column, so that the maxima are found by comparing long rows. Thresholds
    are raised as in Michelot 1986, doi 10.1007/BF00938486: to that of the logits above the last, until all are.
    """
    levels = [logits]
    while levels[-1].shape[1] >= BLOCK**2 and levels[-1].shape[1] % BLOCK == 0:
        levels.append(levels[-1].view(len(logits), BLOCK, -1).amax(1))
    top = levels[-1].amax(1)
    if not torch.isfinite(top).all():
        raise FloatingPointError(DIVERGED)
    values, low = levels[-1] - top[:, None], torch.full_like(top, -1)  # differences of small numbers round less
    for _ in range(3):  # more leave hardly fewer blocks
        excess = (values - low[:, None]).clamp_(min=0)
        low = low + (excess.sum(1) - 1) / excess.count_nonzero(1)
    rows, columns = (values > low[:, None]).nonzero(as_tuple=True)
    for level in levels[-2::-1]:
        within = torch.arange(BLOCK, device=logits.device) * (level.shape[1] // BLOCK)
        rows, columns = rows.repeat_interleave(BLOCK), (columns[:, None] + within).flatten()
        rows, columns, low = _raised(
            rows, columns, level[rows, columns] - top.index_select(0, rows), low, to_the_end=level is logits
        )
    return rows, columns


def _raised(
    rows: Tensor, columns: Tensor, values: Tensor, low: Tensor, to_the_end: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The rows and columns of values above their row's threshold, raised once or until it leaves none behind."""
    kept = values > low.index_select(0, rows)
    while True:
        kept = kept.nonzero().squeeze(1)
        rows, columns, values = (part.index_select(0, kept) for part in (rows, columns, values))
        sums, counts = torch.zeros_like(low).index_add_(0, rows, values), torch.bincount(rows, minlength=len(low))
        low = torch.maximum(low, (sums - 1) / counts)
        kept = values > low.index_select(0, rows)
        if not to_the_end or kept.all():
            return rows, columns, low


def _logits(cells: Tensor, genes: Tensor, places: Tensor, attend: AttentiveTransformer, ghosts: _Ghosts) -> Tensor:
    """The normalised logits of some pairs of cell and gene, with gradients; a pair's gene is ``genes[place]``."""
    norm, weight = attend.bn.bn, F.embedding(genes, attend.fc.weight)
    products = (F.embedding(places, weight) * F.embedding(cells, ghosts.centred)).sum(1)
    if ghosts.covariance is None:
        scale = norm.weight[genes] * torch.rsqrt(norm.running_var[genes] + norm.eps)
        shift = norm.bias[genes] - norm.running_mean[genes] * scale
        return products * scale.index_select(0, places) + shift.index_select(0, places)
    variance = (torch.matmul(weight, ghosts.covariance) * weight).sum(2)  # (P, genes)
    scale = norm.weight[genes] * torch.rsqrt(variance + norm.eps)
    of_pairs = scale.flatten().index_select(0, cells // ghosts.size * len(genes) + places)
    return products * of_pairs + norm.bias[genes].index_select(0, places)

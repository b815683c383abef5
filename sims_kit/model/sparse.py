"""Masks over genes, and the network's first layer, on sparse batches of cells.

Sparsemax keeps a few genes of each cell. A search without gradients finds them among the logits of all genes, for some
cells at a time; only the pairs of cell and gene that it finds are computed with gradients. The numbers are those of
pytorch-tabnet, which computes and records all of it on dense (cells, genes) matrices.

Shapes: B cells, G genes, P pairs of cell and gene, A attention width, W outputs of the first layer, V ghost batches.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from pytorch_tabnet.tab_network import AttentiveTransformer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

BLOCK = 8  # genes whose maximum the search looks at first, and maxima whose maximum; larger blocks leave more to sort
STAGGER = 16  # unused columns: rows that start a multiple of 4 kB apart would evict each other from the cache
PROBE = 8  # cells whose masks are measured before masks on pairs are made
AT_ONCE = 2**21 + 2**19  # logits searched at once on a CPU, 10 MB: 128 cells of 20,000 genes fit the cache
VALUES = 2**18  # values summed at once in float64: copies of 2 MB
DIVERGED = (
    "The attention produced NaN or infinite values, so no mask can be drawn. Training has diverged: "
    "lower the learning rate, clip gradients, or look for extreme values in the input."
)


class Mask(NamedTuple):
    """The masks of one step for B cells: on pairs of cell and gene, or on all genes."""

    weights: Tensor  # (P,) or (B, G), non-negative; the weights of a cell sum to one
    cells: Tensor | None  # (P,), position of each pair's cell, ascending; None on all genes, as the next
    genes: Tensor | None  # (P,), position of each pair's gene
    shape: tuple[int, int]  # B and G
    index: tuple[Tensor, Tensor] | None = None  # genes that occur, and (P,) the place of each pair's gene among them

    def to_dense(self) -> Tensor:
        """All weights, (B, G)."""
        if self.genes is None:
            return self.weights
        return self.weights.new_zeros(self.shape).index_put((self.cells, self.genes), self.weights)

    def to_sparse(self) -> Tensor:
        """The weights that are not zero, sparse COO (B, G), coalesced."""
        if self.genes is None:
            return self.weights.to_sparse()
        kept = self.weights != 0
        pairs = torch.stack([self.cells[kept], self.genes[kept]])
        return torch.sparse_coo_tensor(pairs, self.weights[kept], self.shape, check_invariants=False).coalesce()

    def sum_of(self, values: Tensor) -> Tensor:
        """Sums over each cell, (B,), of values that have the shape of the weights."""
        if self.genes is None:
            return values.sum(1)
        return values.new_zeros(self.shape[0]).index_add(0, self.cells, values)

    def at(self, cells: Tensor, genes: Tensor) -> Tensor:
        """Weights of other pairs of cell and gene, zero where this mask has none."""
        if self.genes is None:
            return self.weights[cells, genes]
        known, order = (self.cells * self.shape[1] + self.genes).sort()
        wanted = cells * self.shape[1] + genes
        place = torch.searchsorted(known, wanted).clamp_(max=len(known) - 1)
        return self.weights[order[place]] * (known[place] == wanted)

    def apply_prior(self, logits: Tensor, rows: slice, gamma: float) -> None:
        """Multiply logits, (rows, G), by the prior after this step, relative to that of unused genes; in place."""
        if self.genes is None:
            logits *= 1 - self.weights[rows] / gamma
            return
        first, last = torch.searchsorted(self.cells, self.cells.new_tensor([rows.start, rows.stop])).tolist()
        pairs = self.cells[first:last] - rows.start, self.genes[first:last]
        logits[pairs] *= 1 - self.weights[first:last] / gamma


def step_mask(
    attention: Tensor,
    attend: AttentiveTransformer,
    past: Sequence[Mask],
    gamma: float,
    widest: float,
    pairs: tuple[Tensor, Tensor] | None = None,
    temperature: float = 1.0,
) -> Mask:
    """The mask of a step: over all genes, or with `pairs` from `expressed` among those that each cell expresses.

    `attention` is (B, A), `attend` the step's linear layer and batch normalisation in ghost batches. A gene's logit is
    divided by the temperature and multiplied by ``gamma - weight`` of each mask in `past`; then comes sparsemax. In
    training, running statistics are updated from all genes of all cells. The mask of a cell without genes is empty.
    A mask over all genes is computed on pairs of cell and gene unless a few cells' masks exceed `widest` genes.

    Source: TabNet's attentive transformer, Arik and Pfister 2021, arXiv:1908.07442; thesis section 0.2.5.
    """
    ghosts = _ghosts(attention, attend)
    support = _support_of_step(_all_logits(ghosts, attend, past, gamma), widest, pairs, temperature)
    if support is None:
        prior = math.prod((gamma - mask.to_dense() for mask in past), start=attention.new_ones(()))
        weights = sparsemax(attend.bn(attend.fc(attention)) * prior)
        return Mask(weights, None, None, weights.shape)
    cells, genes = support
    index, n_cells = genes.unique(return_inverse=True), len(attention)
    logits = _logits(cells, *index, attend, ghosts) / temperature  # (P,)
    for mask in past:
        logits = logits * (gamma - mask.at(cells, genes))
    first = torch.searchsorted(cells, torch.arange(n_cells, device=cells.device))  # (B,), each cell's first pair
    of_first = F.pad(logits.detach(), (0, 1))[first]  # the last cells may have no pair
    logits = logits - of_first[cells]  # differences of small numbers round less
    mask = Mask(logits, cells, genes, (n_cells, attend.fc.out_features), index)
    tau = (mask.sum_of(logits) - 1) / torch.bincount(cells, minlength=n_cells).clamp_(min=1)  # (B,)
    if attend.training:
        sizes = [len(part) for part in ghosts.centred.split(ghosts.size)]
        update_statistics(attend.bn.bn, ghosts.mean @ attend.fc.weight.T, ghosts.variance, sizes)
    return mask._replace(weights=(logits - tau[cells]).clamp(min=0))  # rounding may reach below zero


def expressed(cells: Tensor) -> tuple[Tensor, Tensor]:
    """Positions of cells, ascending, and of genes with values above zero, both (P,); cells (B, G), dense or CSR."""
    if cells.layout == torch.strided:
        return (cells > 0).nonzero(as_tuple=True)
    cells = cells.to_sparse_coo()
    return cells.indices()[:, cells.values() > 0].unbind()  # gene dropout leaves zeros among the values


class _Ghosts(NamedTuple):
    """The batch normalisation of the logits, known without computing them.

    V ghost batches of `size` cells, the last with fewer, are normalised apart; in evaluation there is one.
    """

    size: int
    centred: Tensor  # (B, A), the attention less the mean of its ghost batch
    scale: Tensor  # (V, G), what batch normalisation multiplies by
    shift: Tensor  # (G,), and adds
    mean: Tensor | None = None  # (V, A) of the attention; this and what follows in training only
    covariance: Tensor | None = None  # (V, A, A)
    variance: Tensor | None = None  # (V, G) of the logits, which follows from the covariance


def _ghosts(attention: Tensor, attend: AttentiveTransformer) -> _Ghosts:
    weight, norm, n_cells = attend.fc.weight.detach(), attend.bn.bn, len(attention)  # weight: (G, A)
    if not attend.training:
        scale = norm.weight.detach() * torch.rsqrt(norm.running_var + norm.eps)
        return _Ghosts(n_cells, attention, scale[None], norm.bias.detach() - norm.running_mean * scale)
    size = -(-n_cells // -(-n_cells // attend.bn.virtual_batch_size))  # as torch.chunk cuts
    parts = attention.split(size)
    mean = torch.stack([part.mean(0) for part in parts])
    centred = [part - of_part for part, of_part in zip(parts, mean, strict=True)]
    covariance = torch.stack([part.T @ part / len(part) for part in centred])
    variance = torch.stack([torch.mm(weight, part).mul_(weight).sum(1) for part in covariance.detach()])
    scale = norm.weight.detach() * torch.rsqrt(variance + norm.eps)
    return _Ghosts(size, torch.cat(centred), scale, norm.bias.detach(), mean.detach(), covariance, variance)


def _all_logits(
    ghosts: _Ghosts, attend: AttentiveTransformer, past: Sequence[Mask], gamma: float
) -> Iterator[tuple[int, Tensor]]:
    """Logits of a few cells at a time, without gradients, and the position of the first of these cells.

    Shape (cells, G and more), -inf where there is no gene; valid until the next cells.
    """
    n_cells, n_genes, strength = len(ghosts.centred), attend.fc.out_features, gamma ** len(past)
    columns = -(-n_genes // BLOCK**3) * BLOCK**3  # three levels of blocks
    at_once = n_cells  # on other devices than a CPU, each search would wait for the device
    if attend.fc.weight.device.type == "cpu":
        at_once = max(PROBE, AT_ONCE // columns)
        at_once -= at_once % ghosts.size if at_once > ghosts.size else 0
    factors = F.pad(ghosts.centred, (0, 1), value=1.0)  # (B, A + 1): the shift is one more column of the table
    table, of_ghost = factors.new_empty(n_genes, factors.shape[1]), None
    memory = factors.new_empty(min(at_once, n_cells), columns + STAGGER)
    for start in range(0, n_cells, at_once):
        rows = slice(start, min(start + at_once, n_cells))
        logits = memory[: rows.stop - start, :columns]
        logits[:, n_genes:] = -torch.inf
        for ghost in range(start // ghosts.size, -(-rows.stop // ghosts.size)):
            if ghost != of_ghost:
                torch.mul(attend.fc.weight, strength * ghosts.scale[ghost, :, None], out=table[:, :-1])
                torch.mul(ghosts.shift, strength, out=table[:, -1])
                of_ghost = ghost
            first, last = max(start, ghost * ghosts.size), min(rows.stop, (ghost + 1) * ghosts.size)
            torch.mm(factors[first:last], table.T, out=logits[first - start : last - start, :n_genes])
        for mask in past:
            mask.apply_prior(logits[:, :n_genes], rows, gamma)
        yield start, logits


@torch.no_grad()
def _support_of_step(
    blocks: Iterator[tuple[int, Tensor]], widest: float, pairs: tuple[Tensor, Tensor] | None, temperature: float
) -> tuple[Tensor, Tensor] | None:
    """Cells, ascending, and genes that `step_mask` keeps of `_all_logits`; None when the mask is too wide."""
    found = []
    for start, logits in blocks:
        if pairs is None:
            probe = logits[:: -(-len(logits) // PROBE)]
            if not found and len(_support(probe)[0]) > widest * len(probe):
                return None
            cells, genes = _support(logits)
        else:
            first, last = torch.searchsorted(pairs[0], pairs[0].new_tensor([start, start + len(logits)])).tolist()
            cells, genes = _support_among(pairs[0][first:last] - start, pairs[1][first:last], logits, temperature)
        found.append((cells + start, genes))
    return tuple(torch.cat(part) for part in zip(*found, strict=True))


def _support(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the logits that sparsemax keeps, by ascending row.

    Sparsemax of some of a row's logits has a threshold no higher than that of all. Thresholds are therefore raised on
    the maxima of blocks, then of smaller blocks, and a block whose maximum lies below its row's threshold is dropped.
    A block is every n-th column, so that the maxima are found by comparing long rows.
    """
    levels = [logits]
    while levels[-1].shape[1] >= BLOCK**2 and levels[-1].shape[1] % BLOCK == 0:
        levels.append(levels[-1].view(len(logits), BLOCK, -1).amax(1))
    top = levels[-1].amax(1)
    if not torch.isfinite(top).all():
        raise FloatingPointError(DIVERGED)
    values, tau = levels[-1] - top[:, None], torch.full_like(top, -1)  # small numbers round less
    for _ in range(3):  # further passes drop hardly any more blocks
        excess = (values - tau[:, None]).clamp_(min=0)
        tau = tau + (excess.sum(1) - 1) / excess.count_nonzero(1)
    rows, columns = (values > tau[:, None]).nonzero(as_tuple=True)
    for level in levels[-2::-1]:
        within = torch.arange(BLOCK, device=logits.device) * (level.shape[1] // BLOCK)
        rows, columns = rows.repeat_interleave(BLOCK), (columns[:, None] + within).flatten()
        values = level[rows, columns] - top.index_select(0, rows)
        rows, columns, tau = _above_threshold(rows, columns, values, tau, until_stable=level is logits)
    return rows, columns


def _support_among(rows: Tensor, columns: Tensor, logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The same among these rows and columns alone, of the logits divided by the temperature."""
    values = logits[rows, columns] / temperature
    top = values.new_full(logits.shape[:1], -torch.inf).scatter_reduce(0, rows, values, "amax")
    top_of_pairs = top.index_select(0, rows)
    if not torch.isfinite(top_of_pairs).all():
        raise FloatingPointError(DIVERGED)
    tau = torch.full_like(top, -1)
    return _above_threshold(rows, columns, values - top_of_pairs, tau, until_stable=True)[:2]


def _above_threshold(
    rows: Tensor, columns: Tensor, values: Tensor, tau: Tensor, until_stable: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows and columns of values above their row's threshold, which is raised once, or until it drops no value.

    Each time to the threshold of the values above the last one: Michelot 1986, doi 10.1007/BF00938486.
    """
    kept = values > tau.index_select(0, rows)
    while True:
        kept = kept.nonzero().squeeze(1)
        rows, columns, values = (part.index_select(0, kept) for part in (rows, columns, values))
        sums, counts = torch.zeros_like(tau).index_add_(0, rows, values), torch.bincount(rows, minlength=len(tau))
        tau = torch.maximum(tau, (sums - 1) / counts)
        kept = values > tau.index_select(0, rows)
        if not until_stable or kept.all():
            return rows, columns, tau


def _logits(cells: Tensor, genes: Tensor, places: Tensor, attend: AttentiveTransformer, ghosts: _Ghosts) -> Tensor:
    """Normalised logits of pairs, (P,), with gradients; a pair's gene is ``genes[place]``."""
    norm, weight = attend.bn.bn, F.embedding(genes, attend.fc.weight)  # (genes, A)
    products = (F.embedding(places, weight) * F.embedding(cells, ghosts.centred)).sum(1)
    if ghosts.covariance is None:
        scale = norm.weight[genes] * torch.rsqrt(norm.running_var[genes] + norm.eps)
        shift = norm.bias[genes] - norm.running_mean[genes] * scale
        return products * scale.index_select(0, places) + shift.index_select(0, places)
    variance = (torch.matmul(weight, ghosts.covariance) * weight).sum(2)  # (V, genes)
    scale = norm.weight[genes] * torch.rsqrt(variance + norm.eps)
    of_pairs = scale.flatten().index_select(0, cells // ghosts.size * len(genes) + places)
    return products * of_pairs + norm.bias[genes].index_select(0, places)


@torch.no_grad()
def update_statistics(norm: nn.BatchNorm1d, means: Tensor, variances: Tensor, sizes: Sequence[int]) -> None:
    """Move running statistics as after batches of these sizes; means and biased variances are (batches, G)."""
    for mean, variance, size in zip(means, variances, sizes, strict=True):
        norm.num_batches_tracked += 1
        share = 1 / norm.num_batches_tracked if norm.momentum is None else norm.momentum
        norm.running_mean.lerp_(mean, share)
        norm.running_var.mul_(1 - share).add_(variance, alpha=share * size / (size - 1))


def first_layer(cells: Tensor, dense: Tensor, scale: Tensor, shift: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """A linear layer on normalised cells, ``(cells * scale + shift) @ weight.T``, (B, W); and the weight by gene.

    Cells are (B, G), `dense` is ``cells.to_dense()``, `scale` and `shift` are (G,), `weight` (W, G). Differentiable in
    all but sparse cells. The second result, (G, W), is for `masked_first_layer`: its gradients, on few genes each, are
    added up in this layer's, so that none of them is as large as the weight.
    """
    if cells.layout == torch.strided:
        return F.linear(cells, weight * scale, weight @ shift), weight.T
    return _FirstLayer.apply(cells, dense, scale, shift, weight)


class _FirstLayer(torch.autograd.Function):
    """`first_layer` for sparse cells, as a dense product, which is the fastest."""

    @staticmethod
    def forward(ctx, cells: Tensor, dense: Tensor, scale: Tensor, shift: Tensor, weight: Tensor) -> tuple:
        ctx.save_for_backward(cells, scale, shift, weight)
        return F.linear(dense, weight * scale, weight @ shift), weight.T

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, of_table: Tensor) -> tuple:
        cells, scale, shift, weight = ctx.saved_tensors
        total, of_weight = gradient.sum(0), gradient.T @ cells.to_dense()  # (W,), (W, G)
        of_scale = (of_weight * weight).sum(0) if ctx.needs_input_grad[2] else None
        of_shift = total @ weight if ctx.needs_input_grad[3] else None
        of_weight.mul_(scale).addr_(total, shift)
        if of_table.is_sparse:
            genes, values = of_table._indices()[0], of_table._values()
            of_weight.scatter_add_(1, genes.expand(len(weight), -1), values.T)
        else:
            of_weight += of_table.T
        return None, None, of_scale, of_shift, of_weight


def masked_first_layer(
    mask: Mask, dense: Tensor, scale: Tensor, shift: Tensor, table: Tensor, additive: Tensor | None, sparse: bool
) -> Tensor:
    """The same layer, (B, W), on cells that are normalised and masked.

    `table` is the weight by gene, (G, W); `sparse` says that it takes a sparse gradient, as that of `first_layer` on
    sparse cells does. `additive`, (G, more), makes more columns of the output, after the others.
    """
    if mask.genes is None:
        table = table if additive is None else torch.cat([table, additive], dim=1)
        return (mask.weights * torch.addcmul(shift, dense.clone(), scale)) @ table
    genes, places = mask.index or mask.genes.unique(return_inverse=True)
    scales, shifts = F.embedding(places, torch.stack([scale[genes], shift[genes]], dim=1)).unbind(1)
    weights = mask.weights * (dense[mask.cells, mask.genes] * scales + shifts)  # (P,)
    starts = torch.searchsorted(mask.cells, torch.arange(len(dense), device=dense.device))
    rows = F.embedding(genes, table, sparse=sparse)  # (genes, W)
    if additive is not None:
        rows = torch.cat([rows, F.embedding(genes, additive)], dim=1)
    return F.embedding_bag(places, rows, starts, mode="sum", per_sample_weights=weights)


@torch.no_grad()
def moments(cells: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each gene, (G,); `dense` is ``cells.to_dense()``."""
    if cells.layout == torch.strided or cells.device.type != "cpu":
        variance, mean = torch.var_mean(dense, dim=0, correction=0)
        return mean, variance
    n_genes, zeros = cells.shape[1], len(cells) - torch.bincount(cells.col_indices(), minlength=cells.shape[1])
    parts = list(zip(cells.col_indices().split(VALUES), cells.values().split(VALUES), strict=True))
    mean = sum(torch.bincount(genes, values.double(), n_genes) for genes, values in parts) / len(cells)
    squares = sum(torch.bincount(genes, (values - mean[genes]).square_(), n_genes) for genes, values in parts)
    variance = (squares + zeros * mean.square()) / len(cells)
    return mean.to(dense.dtype), variance.to(dense.dtype)


def sparsemax(logits: Tensor) -> Tensor:
    """Sparsemax over the last dimension: a softmax whose small entries are exactly zero.

    Each row of the result is non-negative and sums to one. NaN or infinite logits raise `FloatingPointError`.
    Source: Martins and Astudillo 2016, arXiv:1602.02068; thesis section 0.2.5.

    >>> sparsemax(torch.tensor([1.0, 0.5, -2.0]))
    tensor([0.7500, 0.2500, 0.0000])
    """
    return _Sparsemax.apply(logits)


class _Sparsemax(torch.autograd.Function):
    """Projection of each row onto the probability simplex, with its exact gradient."""

    @staticmethod
    def forward(ctx, logits: Tensor) -> Tensor:
        logits = logits - logits.amax(-1, keepdim=True)  # differences of small numbers round less
        tau, size = torch.full_like(logits[..., :1], -1), 0
        while True:  # raise each row's threshold to that of the logits above it, until none falls below: Michelot 1986
            excess = (logits - tau).clamp_(min=0)
            size, before = excess.count_nonzero(-1).unsqueeze(-1), size
            if torch.equal(torch.as_tensor(before), size):
                break
            tau = tau + (excess.sum(-1, keepdim=True) - 1) / size
        if not torch.isfinite(tau).all():
            raise FloatingPointError(DIVERGED)
        ctx.save_for_backward(excess)
        return excess

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (mask,) = ctx.saved_tensors
        support = mask > 0
        gradient = gradient * support
        mean = gradient.sum(-1, keepdim=True) / support.sum(-1, keepdim=True)
        return gradient.sub_(mean * support)

"""Masks over genes, and the network's first layer, on sparse batches of cells.

Sparsemax keeps a few genes of each cell. A search without gradients finds them among the logits of all genes, for some
cells at a time; only the pairs of cell and gene that it finds are computed with gradients. The numbers are those of
pytorch-tabnet, which computes and records all of it on dense (cells, genes) matrices.

Shapes in comments: B cells, G genes, P pairs of cell and gene, A attention width, W outputs of the first layer,
V ghost batches.
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
DIVERGED = (
    "The attention produced NaN or infinite values, so no mask can be drawn. Training has diverged: "
    "lower the learning rate, clip gradients, or look for extreme values in the input."
)


class Mask(NamedTuple):
    """The masks of one step for B cells: on P pairs of cell and gene, or on all genes."""

    weights: Tensor  # (P,) or (B, G), non-negative; the weights of a cell sum to one
    cells: Tensor | None  # (P,), position of each pair's cell, ascending; None on all genes
    genes: Tensor | None  # (P,), position of each pair's gene; None on all genes
    shape: tuple[int, int]  # B, G
    index: tuple[Tensor, Tensor] | None = None  # on pairs, if known: ``genes.unique(return_inverse=True)``

    def to_dense(self) -> Tensor:
        """All weights, (B, G)."""
        if self.genes is None:
            return self.weights
        return self.weights.new_zeros(self.shape).index_put((self.cells, self.genes), self.weights)

    def to_sparse(self) -> Tensor:
        """The weights that are not zero, sparse COO (B, G)."""
        if self.genes is None:
            return self.weights.to_sparse()
        kept = self.weights != 0
        pairs = torch.stack([self.cells[kept], self.genes[kept]])
        return torch.sparse_coo_tensor(pairs, self.weights[kept], self.shape, check_invariants=False)

    def squares(self) -> Tensor:
        """Each cell's sum of squared weights, (B, 1); 0 in a cell without genes."""
        squares = self.weights.square()
        if self.genes is None:
            return squares.sum(1, keepdim=True)
        return squares.new_zeros(self.shape[0]).index_add(0, self.cells, squares)[:, None]

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


class MaskScores:
    """The logits of a step's masks, (B, G), of which only some are ever computed at a time, and the masks they give.

    `attention` is (B, A), `attend` the step's attention transformer: a linear layer and a batch normalisation in V
    ghost batches (one in evaluation), which follows from the mean and the covariance of the attention. A gene's logit
    is multiplied by ``gamma - weight`` of each mask in `past`. Making a mask in training updates running statistics.

    Source: TabNet's attentive transformer, Arik and Pfister 2021, arXiv:1908.07442; thesis section 0.2.5.
    """

    def __init__(self, attention: Tensor, attend: AttentiveTransformer, past: Sequence[Mask], gamma: float):
        self.attention, self.attend, self.past, self.gamma = attention, attend, past, gamma
        weight, norm = attend.fc.weight.detach(), attend.bn.bn  # weight: (G, A)
        if attend.training:
            ghosts = attention.chunk(-(-len(attention) // attend.bn.virtual_batch_size))
            self.means = torch.stack([ghost.mean(0) for ghost in ghosts])  # (V, A)
            self.ghosts = [ghost - mean for ghost, mean in zip(ghosts, self.means, strict=True)]  # (cells, A) each
            self.covariance = torch.stack([ghost.T @ ghost / len(ghost) for ghost in self.ghosts])  # (V, A, A)
            products = (torch.mm(weight, of_ghost).mul_(weight) for of_ghost in self.covariance.detach())
            self.variance = torch.stack([product.sum(1) for product in products])  # (V, G)
        else:
            self.ghosts, self.variance = [attention], norm.running_var[None]

    def narrow_mask(self, widest: float) -> Mask | None:
        """The mask over all genes, on pairs of cell and gene; None when a few cells' masks exceed `widest` genes."""
        found = []
        with torch.no_grad():
            for start, logits in self._of_all_genes():
                probe = logits[:: -(-len(logits) // PROBE)]
                if not found and len(_support(probe)[0]) > widest * len(probe):
                    return None
                cells, genes = _support(logits)
                found.append((cells + start, genes))
        return self._mask_on(*(torch.cat(part) for part in zip(*found, strict=True)))

    def wide_mask(self) -> Mask:
        """The mask over all genes, in which every gene of every cell has a place."""
        prior = math.prod((self.gamma - mask.to_dense() for mask in self.past), start=self.attention.new_ones(()))
        weights = sparsemax(self.attend.bn(self.attend.fc(self.attention)) * prior)  # (B, G)
        return Mask(weights, None, None, weights.shape)

    def expressed_mask(self, pairs: Tensor, temperature: float) -> Mask:
        """The mask among these pairs of cell, ascending, and gene, (2, P); empty in a cell without any.

        Logits are divided by the temperature before sparsemax. Running statistics are updated from all genes.
        """
        (cells, genes), values = pairs, []
        with torch.no_grad():
            for start, logits in self._of_all_genes():
                first, last = torch.searchsorted(cells, cells.new_tensor([start, start + len(logits)])).tolist()
                values.append(logits[cells[first:last] - start, genes[first:last]])
            values = torch.cat(values) / temperature  # (P,)
            top = values.new_full((len(self.attention),), -torch.inf).scatter_reduce(0, cells, values, "amax")  # (B,)
            top_of_pairs = top.index_select(0, cells)
            if not torch.isfinite(top_of_pairs).all():
                raise FloatingPointError(DIVERGED)
            tau = torch.full_like(top, -1)
            cells, genes, _ = _above_threshold(cells, genes, values - top_of_pairs, tau, until_stable=True)
        return self._mask_on(cells, genes, temperature)

    def _of_all_genes(self) -> Iterator[tuple[int, Tensor]]:
        """Logits of a few cells at a time, without gradients, and the position of the first of these cells.

        Shape (cells, G and more), -inf where there is no gene; valid until the next cells.
        """
        weight, norm, prior = self.attend.fc.weight, self.attend.bn.bn, self.gamma ** len(self.past)
        n_genes, n_a = weight.shape
        columns = -(-n_genes // BLOCK**3) * BLOCK**3  # three levels of blocks
        at_once = len(self.ghosts[0])  # on other devices than a CPU, each search would wait for the device
        if weight.device.type == "cpu":
            at_once = min(at_once, max(PROBE, AT_ONCE // columns))
        memory, table = weight.new_empty(at_once, columns + STAGGER), weight.new_empty(n_genes, n_a + 1)
        start, scales = 0, prior * norm.weight * torch.rsqrt(self.variance + norm.eps)  # (V, G)
        for ghost, scale in zip(self.ghosts, scales, strict=True):
            torch.mul(weight, scale[:, None], out=table[:, :-1])
            table[:, -1] = prior * norm.bias  # the shift is one more column of the table
            if not self.attend.training:
                table[:, -1] -= norm.running_mean * scale
            for cells in F.pad(ghost, (0, 1), value=1.0).split(at_once):  # (cells, A + 1)
                logits = memory[: len(cells), :columns]
                logits[:, n_genes:] = -torch.inf
                torch.mm(cells, table.T, out=logits[:, :n_genes])
                for mask in self.past:
                    mask.apply_prior(logits[:, :n_genes], slice(start, start + len(cells)), self.gamma)
                yield start, logits
                start += len(cells)

    def _of_pairs(self, cells: Tensor, genes: Tensor, places: Tensor) -> Tensor:
        """Normalised logits, (P,), with gradients and without the prior; a pair's gene is ``genes[place]``."""
        norm, weight = self.attend.bn.bn, F.embedding(genes, self.attend.fc.weight)  # (genes, A)
        products = (F.embedding(places, weight) * F.embedding(cells, torch.cat(self.ghosts))).sum(1)  # (P,)
        if self.attend.training:
            mean, variance = 0, (torch.matmul(weight, self.covariance) * weight).sum(2)  # (V, genes)
        else:
            mean, variance = norm.running_mean[genes], norm.running_var[None, genes]  # (genes,), (1, genes)
        scale = norm.weight[genes] * torch.rsqrt(variance + norm.eps)  # (V, genes)
        shift = norm.bias[genes] - mean * scale[0]  # (genes,)
        scale_of_pair = cells // len(self.ghosts[0]) * len(genes) + places
        return products * scale.flatten().index_select(0, scale_of_pair) + shift.index_select(0, places)

    def _mask_on(self, cells: Tensor, genes: Tensor, temperature: float = 1.0) -> Mask:
        """The mask whose support is these pairs of cell and gene, with gradients; running statistics are updated."""
        n_cells, index = len(self.attention), genes.unique(return_inverse=True)
        logits = self._of_pairs(cells, *index) / temperature  # (P,)
        for mask in self.past:
            logits = logits * (self.gamma - mask.at(cells, genes))
        top = logits.new_zeros(n_cells).scatter_reduce(0, cells, logits.detach(), "amax", include_self=False)  # (B,)
        logits = logits - top[cells]  # differences of small numbers round less
        size = torch.bincount(cells, minlength=n_cells).clamp_(min=1)  # (B,)
        tau = (logits.new_zeros(n_cells).index_add(0, cells, logits) - 1) / size  # (B,)
        weights = (logits - tau[cells]).clamp(min=0)  # rounding may reach below zero
        if self.attend.training:
            means, sizes = self.means.detach() @ self.attend.fc.weight.T, [len(ghost) for ghost in self.ghosts]
            update_statistics(self.attend.bn.bn, means, self.variance, sizes)
        return Mask(weights, cells, genes, (n_cells, self.attend.fc.out_features), index)


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


@torch.no_grad()
def update_statistics(norm: nn.BatchNorm1d, means: Tensor, variances: Tensor, sizes: Sequence[int]) -> None:
    """Move running statistics as batch normalisation does after batches of these sizes, one after the other.

    Means and biased variances have shape (batches, G).
    """
    for mean, variance, size in zip(means, variances, sizes, strict=True):
        norm.num_batches_tracked += 1
        share = 1 / norm.num_batches_tracked if norm.momentum is None else norm.momentum
        norm.running_mean.lerp_(mean, share)
        norm.running_var.mul_(1 - share).add_(variance, alpha=share * size / (size - 1))


class FirstLayer(torch.autograd.Function):
    """A linear layer on normalised cells, ``(cells * scale + shift) @ weight.T``, (B, W); and the weight by gene.

    Cells are (B, G), CSR or dense, `dense` is ``cells.to_dense()``, `scale` and `shift` are (G,), `weight` (W, G). The
    second result, (G, W), is for `masked_first_layer`: its gradients, on few genes each, are added up in this layer's,
    so that none of them is as large as the weight.
    """

    @staticmethod
    def forward(ctx, cells: Tensor, dense: Tensor, scale: Tensor, shift: Tensor, weight: Tensor) -> tuple:
        """The product with dense cells, which is the fastest."""
        ctx.save_for_backward(cells, scale, shift, weight)
        return F.linear(dense, weight * scale, weight @ shift), weight.T

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, of_table: Tensor) -> tuple:
        """Gradients of all but `cells`, which are kept because CSR ones are smaller."""
        cells, scale, shift, weight = ctx.saved_tensors
        total, of_weight = gradient.sum(0), gradient.T @ cells.to_dense()  # (W,), (W, G)
        of_dense = gradient @ (weight * scale) if ctx.needs_input_grad[1] else None
        of_scale = (of_weight * weight).sum(0) if ctx.needs_input_grad[2] else None
        of_shift = total @ weight if ctx.needs_input_grad[3] else None
        of_weight.mul_(scale).addr_(total, shift)
        if of_table.is_sparse:
            genes, values = of_table._indices()[0], of_table._values()
            of_weight.scatter_add_(1, genes.expand(len(weight), -1), values.T)
        else:
            of_weight += of_table.T
        return None, of_dense, of_scale, of_shift, of_weight


def masked_first_layer(
    mask: Mask, dense: Tensor, scale: Tensor, shift: Tensor, table: Tensor, additive: Tensor | None = None
) -> Tensor:
    """The same layer, (B, W), on cells that are normalised and masked; `table` is from `FirstLayer`.

    `additive`, (G, more), makes more columns of the output, after the others.
    """
    if mask.genes is None:
        table = table if additive is None else torch.cat([table, additive], dim=1)
        return (mask.weights * torch.addcmul(shift, dense, scale)) @ table
    genes, places = mask.index or mask.genes.unique(return_inverse=True)
    scales, shifts = F.embedding(places, torch.stack([scale[genes], shift[genes]], dim=1)).unbind(1)  # (P,) each
    weights = mask.weights * (dense[mask.cells, mask.genes] * scales + shifts)  # (P,)
    rows = F.embedding(genes, table, sparse=True)  # (genes, W)
    if additive is not None:
        rows = torch.cat([rows, F.embedding(genes, additive)], dim=1)
    starts = torch.searchsorted(mask.cells, torch.arange(len(dense), device=dense.device))  # (B,), of each cell's pairs
    return F.embedding_bag(places, rows, starts, mode="sum", per_sample_weights=weights)


def sparsemax(logits: Tensor) -> Tensor:
    """Sparsemax over the last dimension: a softmax whose small entries are exactly zero.

    Each row of the result is non-negative and sums to one. NaN or infinite logits raise `FloatingPointError`.

    Source: Martins and Astudillo 2016, arXiv:1602.02068; thesis section 0.2.5.

    Examples
    --------
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

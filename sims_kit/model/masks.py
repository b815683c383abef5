"""Masks of a decision step, found among all genes but computed on the few that can be in them.

Sparsemax keeps a handful of genes of each cell, and which ones can be told without gradients: `narrow_mask` computes
the attention's logits in a buffer, takes the largest of each cell, and only those are recorded for the backward pass.
The numbers are those of the attention transformer of pytorch-tabnet on all genes.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from pytorch_tabnet.tab_network import AttentiveTransformer
from torch import Tensor
from torch.nn import functional as F

from sims_kit.model.sparsemax import sparsemax, threshold

BLOCKS = 16  # genes per block of the search: its two selections are cheapest near sqrt(genes / mask width)
MARGIN = 1e-3  # in logits, far above the rounding in which search and mask differ
ROWS = 128  # cells whose logits are in the buffer at once, outside of training: 10 MB at 20,000 genes


class Mask(NamedTuple):
    """The masks of one step for a batch of B cells, on K candidates per cell or on all genes."""

    weights: Tensor
    """(B, K) or (B, genes), non-negative, rows sum to one."""
    genes: Tensor | None
    """(B, K), the candidates' positions, each once per cell; None for all genes in their order."""
    n_genes: int

    def to_dense(self) -> Tensor:
        """All weights, shape (B, genes)."""
        if self.genes is None:
            return self.weights
        return self.weights.new_zeros(len(self.weights), self.n_genes).scatter(1, self.genes, self.weights)

    def at(self, genes: Tensor) -> Tensor:
        """The weights of these genes, shape (B, K'), as their positions."""
        if self.genes is None:
            return self.weights.gather(1, genes)
        known, order = self.genes.sort(dim=1)
        place = torch.searchsorted(known, genes).clamp_(max=known.shape[1] - 1)
        return self.weights.gather(1, order.gather(1, place)) * (known.gather(1, place) == genes)

    @torch.no_grad()
    def width(self) -> int:
        """The largest number of genes that the mask of a cell lets through."""
        return int((self.weights > 0).sum(1).max())


class _Part(NamedTuple):
    """Cells that are normalised alike: a ghost batch in training, all cells otherwise."""

    rows: slice
    centred: Tensor  # (rows, n_a), the attention less its mean
    scale: Tensor  # (genes,), what batch normalisation multiplies by
    shift: Tensor  # (genes,), and adds
    covariance: Tensor | None  # (n_a, n_a) of the attention, from which the variances of all logits follow


def narrow_mask(
    attention: Tensor, attend: AttentiveTransformer, past: Sequence[Mask], gamma: float, width: int
) -> Mask | None:
    """The mask of a step, or None when some cell's mask is wider than `width` candidates.

    In training the running statistics of the attention's batch normalisation are updated, unless None is returned.

    Parameters
    ----------
    attention
        Shape (B, n_a), from the step before.
    attend
        The step's attention transformer: a linear layer and a batch normalisation in ghost batches.
    past
        The masks of earlier steps; a gene's logit is multiplied by the product of ``gamma - weight`` over them.
    width
        Candidates per cell, K.

    Raises
    ------
    FloatingPointError
        If the attention holds NaN or infinite values.
    """
    parts = list(_parts(attention, attend))
    logits, genes = _search(attention, attend, parts, past, gamma, width)
    tau = threshold(logits)
    if width < attend.fc.out_features and not bool((logits[:, -1:] < tau - MARGIN).all()):
        return None
    if attend.training:
        for part in parts:
            _update_statistics(attend.bn.bn, part, attend.fc.weight)
    if torch.is_grad_enabled():
        logits = _logits(genes, attend, parts)
        for mask in past:
            logits = logits * (gamma - mask.at(genes))
        return Mask(sparsemax(logits), genes, attend.fc.out_features)
    return Mask((logits - tau).clamp_(min=0), genes, attend.fc.out_features)


def _parts(attention: Tensor, attend: AttentiveTransformer) -> Iterator[_Part]:
    """How batch normalisation acts on the logits, without computing them."""
    weight, norm = attend.fc.weight.detach(), attend.bn.bn
    if not attend.training:
        scale = norm.weight.detach() * torch.rsqrt(norm.running_var + norm.eps)
        yield _Part(slice(None), attention, scale, norm.bias.detach() - norm.running_mean * scale, None)
        return
    start = 0
    for cells in attention.chunk(-(-len(attention) // attend.bn.virtual_batch_size)):
        centred = cells - cells.mean(0)
        covariance = centred.T @ centred / len(cells)
        variance = ((weight @ covariance.detach()) * weight).sum(1)
        scale = norm.weight.detach() * torch.rsqrt(variance + norm.eps)
        yield _Part(slice(start, start + len(cells)), centred, scale, norm.bias.detach(), covariance)
        start += len(cells)


@torch.no_grad()
def _search(
    attention: Tensor, attend: AttentiveTransformer, parts: Sequence[_Part], past: Sequence[Mask], gamma, width: int
) -> tuple[Tensor, Tensor]:
    """The `width` largest logits of each cell, largest first, and their genes; both (B, width)."""
    n_genes = attend.fc.out_features
    n_blocks = -(-n_genes // BLOCKS)
    padding = n_blocks * BLOCKS - n_genes
    logits = attention.new_empty(min(ROWS, len(attention)) if len(parts) == 1 else len(parts[0].centred), n_genes + padding)
    found = []
    for part in parts:
        strength = gamma ** len(past)
        weight = F.pad(attend.fc.weight * (part.scale * strength)[:, None], (0, 0, 0, padding)).T
        shift = F.pad(part.shift * strength, (0, padding), value=-torch.inf)
        first = part.rows.start or 0
        for rows in part.centred.split(len(logits)):
            block = torch.addmm(shift, rows, weight, out=logits[: len(rows)])
            for mask in past:
                _dampen(block, mask, slice(first, first + len(rows)), gamma)
            found.append(_largest(block, n_blocks, width))
            first += len(rows)
    largest, genes = zip(*found, strict=True)
    return torch.cat(largest), torch.cat(genes)


def _dampen(logits: Tensor, mask: Mask, rows: slice, gamma: float) -> None:
    """Multiply the logits of genes that were used before by their prior, relative to that of unused genes."""
    weights = 1 - mask.weights[rows] / gamma
    if mask.genes is None:
        logits[:, : mask.n_genes].mul_(weights)
    else:
        genes = mask.genes[rows]
        logits.scatter_(1, genes, logits.gather(1, genes) * weights)


def _largest(logits: Tensor, n_blocks: int, width: int) -> tuple[Tensor, Tensor]:
    """The largest logits of each row and their columns.

    The largest `width` lie in the `width` blocks whose maxima are largest. A block is every `n_blocks`-th column, so
    that all maxima are found by comparing long rows.
    """
    if 4 * width >= n_blocks:
        return tuple(logits.topk(width))
    blocks = logits.view(len(logits), BLOCKS, n_blocks).amax(1).topk(width, sorted=False).indices
    offsets = torch.arange(BLOCKS, device=logits.device) * n_blocks
    columns = (blocks[:, None, :] + offsets[:, None]).flatten(1)
    largest, places = logits.gather(1, columns).topk(width)
    return largest, columns.gather(1, places)


def _logits(genes: Tensor, attend: AttentiveTransformer, parts: Sequence[_Part]) -> Tensor:
    """The normalised logits of some genes of each cell, with gradients; shape of `genes`."""
    norm = attend.bn.bn
    touched, places = genes.unique(return_inverse=True)
    weight = F.embedding(touched, attend.fc.weight)
    logits = []
    for part in parts:
        if part.covariance is None:
            variance, mean = norm.running_var[touched], norm.running_mean[touched]
        else:
            variance, mean = ((weight @ part.covariance) * weight).sum(1), 0
        scale = norm.weight[touched] * torch.rsqrt(variance + norm.eps)
        table = torch.cat([weight * scale[:, None], (norm.bias[touched] - mean * scale)[:, None]], dim=1)
        rows = F.embedding(places[part.rows], table)
        logits.append((rows[..., :-1] @ part.centred[:, :, None]).squeeze(-1) + rows[..., -1])
    return torch.cat(logits)


@torch.no_grad()
def _update_statistics(norm: torch.nn.BatchNorm1d, part: _Part, weight: Tensor) -> None:
    raise NotImplementedError

"""What each gene adds to a network's answer: integrated gradients over the masked input, masks held as they are.

Masks say where a network looks, contributions what it makes of what it sees there. A step reads a cell only through
its masked values, and those with a linear layer; so the integral (Sundararajan et al., ICML 2017) takes gradients of
that layer's few outputs alone, and the rest costs as much as the masks have nonzero weights.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sims_kit.model.ensemble import Ensemble, mean_logits
from sims_kit.model.first_layer import unpacked
from sims_kit.model.tabnet import Step, TabNet, after_first_layer, normalisation

NODES = 32  # at which the integral is evaluated; the tests bound its remainder
PAIRS = 2**16  # of cell and gene, treated at once


class Explained(NamedTuple):
    """What a network looked at in a batch of B cells, and what came of it."""

    logits: Tensor
    """(B, classes); of an ensemble, logarithms of the mean probabilities."""
    masks: Tensor
    """Sparse CSR (B, genes): aggregated masks as by `TabNet.explain`, each row divided by its sum; of an ensemble, the
    mean over its networks."""
    contributions: Tensor
    """Sparse CSR (B, genes) with the same pairs of cell and gene, of either sign."""


@torch.no_grad()
def explain_batch(
    network: TabNet | Ensemble, cells: Tensor, towards: Tensor | None = None, adjustment: Tensor | float = 0
) -> Explained:
    """Aggregated masks of a batch, and what each gene adds to a combination of the logits.

    Contributions of a cell sum to the value of the combination less its value where all masked values are zero, up to
    the remainder of the integral; with `fixed_scale`, zero is a gene's mean over the training cells. Of an ensemble,
    both are means over its networks.

    Parameters
    ----------
    network
        In evaluation mode.
    cells
        Shape (B, genes), as for `TabNet.forward`.
    towards
        Shape (B, classes), the weights of the logits: 1 for one class and -1 for another compares the two. When left
        out, the predicted class against the mean of all.
    adjustment
        Added to each network's logits: the classifier's `logit_adjustment`.

    Raises
    ------
    SettingError, FloatingPointError
        As `TabNet.forward` raises them.
    """
    members = list(getattr(network, "members", [network]))
    steps = [member.steps(cells) for member in members]
    each = [member.logits_of(own) + adjustment for member, own in zip(members, steps, strict=True)]
    logits = mean_logits(each) if len(each) > 1 else each[0]
    if towards is None:
        towards = torch.eye(logits.shape[1], dtype=logits.dtype, device=logits.device)[logits.argmax(1)]
        towards -= 1 / logits.shape[1]
    parts = [_of_member(*member, cells, towards) for member in zip(members, steps, strict=True)]
    both = sum(parts[1:], start=parts[0]).coalesce()
    (rows, genes), values = both.indices(), both.values() / len(members)
    starts = torch.searchsorted(rows, torch.arange(len(cells) + 1, device=rows.device))
    masks, added = (torch.sparse_csr_tensor(starts, genes, part.contiguous(), cells.shape) for part in values.unbind(1))
    return Explained(logits, masks, added)


def _of_member(network: TabNet, steps: Sequence[Step], cells: Tensor, towards: Tensor) -> Tensor:
    """Shares of the masks, and contributions: sparse COO (B, genes, 2)."""
    encoder, dense, parts = network.encoder, unpacked(cells), []
    scale, shift = normalisation(encoder.initial_bn, cells, dense)
    table = encoder.initial_splitter.shared.glu_layers[0].fc.weight.T
    for step, transform in zip(steps, encoder.feat_transformers, strict=True):
        mask = step.mask.to_sparse().coalesce()
        (rows, genes), weights = mask.indices(), mask.values()
        values = weights * (dense[rows, genes] * scale[genes] + shift[genes])
        if network.rescale_masked:
            squares = weights.new_zeros(len(cells)).index_add(0, rows, weights.square())
            values = values / squares.clamp(min=torch.finfo(values.dtype).tiny)[rows]
        read = torch.sparse_coo_tensor(mask.indices(), values, mask.shape) @ table
        slopes = _mean_slopes(network, transform, read, towards)
        pairs = zip(rows.split(PAIRS), genes.split(PAIRS), strict=True)
        effects = torch.cat([_effects(network, table, slopes, towards, *part) for part in pairs])
        both = torch.stack([weights * step.strength()[rows], values * effects], dim=1)
        parts.append(torch.sparse_coo_tensor(mask.indices(), both, (*mask.shape, 2)))
    total = sum(parts[1:], start=parts[0]).coalesce()
    rows, values = total.indices()[0], total.values()
    sums = values.new_zeros(len(cells)).index_add(0, rows, values[:, 0]).clamp(min=torch.finfo(values.dtype).tiny)
    both = torch.stack([values[:, 0] / sums[rows], values[:, 1]], dim=1)
    return torch.sparse_coo_tensor(total.indices(), both, total.shape)


def _mean_slopes(network: TabNet, transform, read: Tensor, towards: Tensor) -> Tensor:
    """Mean gradient, (B, width), with respect to what the first layer has read, on the way there from zero."""
    nodes, weights = np.polynomial.legendre.leggauss(NODES)  # on -1 to 1
    total = torch.zeros_like(read)
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        with torch.enable_grad():
            point = (read * node).requires_grad_()
            decision = torch.relu(after_first_layer(transform, point)[:, : network.encoder.n_d])
            (slope,) = torch.autograd.grad((network.final_mapping(decision) * towards).sum(), point)
        total += slope * weight
    return total


def _effects(network: TabNet, table: Tensor, slopes: Tensor, towards: Tensor, rows: Tensor, genes: Tensor) -> Tensor:
    """By how much one unit of each pair's masked value moves the combination."""
    effects = (table[genes] * slopes[rows]).sum(1)
    if network.additive_weight is not None:
        effects += (network.additive_weight[genes] * towards[rows]).sum(1)
    return effects

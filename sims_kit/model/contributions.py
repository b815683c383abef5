"""What each gene adds to a network's answer: integrated gradients over the masked input, masks held as they are.

Masks say where a network looks, contributions what it makes of what it sees there. A step reads a cell only through
its masked values, and those with a linear layer; so the integral (Sundararajan et al., ICML 2017) takes gradients of
that layer's few outputs alone, and the rest costs as much as the masks have nonzero weights.
"""

import numpy as np
import torch
from torch import Tensor

from sims_kit.model.ensemble import Ensemble
from sims_kit.model.first_layer import unpacked
from sims_kit.model.tabnet import TabNet, after_first_layer, normalisation

NODES = 32  # at which the integral is evaluated; the tests bound its remainder
PAIRS = 2**16  # of cell and gene, treated at once


def contributions(network: TabNet | Ensemble, cells: Tensor, towards: Tensor) -> Tensor:
    """What each gene adds to a combination of the logits of each cell: sparse CSR (B, genes), of either sign.

    Those of a cell sum to the value of the combination less its value where all masked values are zero, up to the
    remainder of the integral. With `fixed_scale`, zero is a gene's mean over the training cells. Of an ensemble, the
    mean over its networks. Genes that no mask passes are left out.

    Parameters
    ----------
    network
        In evaluation mode.
    cells
        Shape (B, genes), as for `TabNet.forward`.
    towards
        Shape (B, classes), the weights of the logits: 1 for one class and -1 for another compares the two.
    """
    if isinstance(network, Ensemble):
        parts = [contributions(member, cells, towards).to_sparse_coo() for member in network.members]
        return (sum(parts[1:], start=parts[0]) / len(parts)).coalesce().to_sparse_csr()
    encoder, parts = network.encoder, []
    with torch.no_grad():
        steps, dense = network.steps(cells), unpacked(cells)
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
            effects = torch.cat([_effects(network, table, slopes, towards, *pair) for pair in pairs])
            parts.append(torch.sparse_coo_tensor(mask.indices(), values * effects, mask.shape))
    return sum(parts[1:], start=parts[0]).coalesce().to_sparse_csr()


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

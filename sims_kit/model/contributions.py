"""What each gene adds to a network's answer: integrated gradients over the masked input, with the masks held fixed.

A mask shows which genes the network looked at; a contribution shows how much each gene raised or lowered a label's
score. A step reads a cell only through its masked values, and these with a linear layer. The integral (Sundararajan et
al., ICML 2017) therefore needs gradients of that layer's few outputs alone.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from sims_kit.model.network import Ensemble, Step, TabNet, after_first_layer, mean_logits, normalisation

NODES = 32  # at which the integral is evaluated; the tests bound its remainder
PAIRS = 2**16  # of cell and gene, treated at once


class Explained(NamedTuple):
    """What an ensemble looked at in a batch of B cells, and what came of it."""

    logits: Tensor  # (B, C), logarithms of the mean probabilities
    masks: Tensor  # sparse CSR (B, G), means over networks; rows sum to one, or are zero where no gene was used
    contributions: Tensor  # sparse CSR (B, G), means over networks, of either sign; the same pairs of cell and gene


@torch.no_grad()
def explain_batch(
    network: Ensemble, cells: Tensor, towards: Tensor | None = None, adjustment: Tensor | float = 0.0
) -> Explained:
    """Aggregated masks of a batch of cells, (B, G), and what each gene adds to a combination of the logits.

    The masks of the steps are added up, each weighted by what its step adds to the decision, as in the TabNet paper.
    The contributions of a cell sum to the value of the combination less its value where all masked values are zero, up
    to the remainder of the integral; with `fixed_scale`, zero is a gene's mean over the training cells.

    `towards`, (B, C), are the weights of the logits: 1 for one class and -1 for another compares the two; by default
    the predicted class against the mean of all. `adjustment`, (C,), is the classifier's `logit_adjustment`, added to
    the logits of each network. The network is in evaluation mode, cells are (B, G), dense or CSR.

    >>> explain_batch(model.network, batch.cells).masks.to_dense().sum(1)
    """
    pairs = [(member, member.steps(cells)) for member in network.members]
    logits = mean_logits([member.logits_of(steps) + adjustment for member, steps in pairs])
    if towards is None:
        towards = torch.eye(logits.shape[1], dtype=logits.dtype, device=logits.device)[logits.argmax(1)]
        towards -= 1 / logits.shape[1]
    parts = [_of_member(*pair, cells, towards) for pair in pairs]
    both = sum(parts[1:], start=parts[0]).coalesce()  # (B, G, 2)
    (rows, genes), values = both.indices(), both.values() / len(parts)
    starts = torch.searchsorted(rows, torch.arange(len(cells) + 1, device=rows.device))
    masks, added = (torch.sparse_csr_tensor(starts, genes, part.contiguous(), cells.shape) for part in values.unbind(1))
    return Explained(logits, masks, added)


def explain_batches(model: nn.Module, batches: Iterable) -> tuple[sparse.csr_matrix, sparse.csr_matrix, np.ndarray]:
    """Masks and contributions of all batches, and the position of the predicted class of each cell.

    `model` is a `SIMSClassifier`; batches are named tuples with `cells`, (B, G). Results are (cells, G) CSR twice, with
    the same pairs, and (cells,).
    """
    model.eval()
    rows, genes = np.zeros(1, np.int64), np.empty(0, np.int32)
    weights, added = np.empty(0, np.float32), np.empty(0, np.float32)
    predicted = []
    for batch in batches:
        cells = batch.cells.to(model.device)
        found = explain_batch(model.network, cells, adjustment=model.logit_adjustment)
        _append(rows, rows[-1] + found.masks.crow_indices()[1:])
        _append(genes, found.masks.col_indices())
        _append(weights, found.masks.values())
        _append(added, found.contributions.values())
        predicted.append(found.logits.argmax(dim=1).cpu().numpy())
    shape = (len(rows) - 1, model.input_dim)
    masks, contributions = (sparse.csr_matrix((part, genes, rows), shape) for part in (weights, added))
    return masks, contributions, np.concatenate(predicted)


def csr(matrix: Tensor) -> sparse.csr_matrix:
    """A sparse CSR tensor as scipy has it."""
    parts = (matrix.values(), matrix.col_indices(), matrix.crow_indices())
    return sparse.csr_matrix(tuple(part.cpu().numpy() for part in parts), shape=tuple(matrix.shape))


def _of_member(network: TabNet, steps: Sequence[Step], cells: Tensor, towards: Tensor) -> Tensor:
    """Masks divided by their sums, and contributions: sparse COO (B, G, 2)."""
    encoder, dense, parts = network.encoder, cells.to_dense(), []
    scale, shift = normalisation(encoder.initial_bn, cells, dense)
    table = encoder.initial_splitter.shared.glu_layers[0].fc.weight.T  # (G, W)
    for (step_mask, decision, evidence), transform in zip(steps, encoder.feat_transformers, strict=True):
        mask = step_mask.to_sparse()
        (rows, genes), weights = mask.indices(), mask.values()  # (P,)
        values = weights * (dense[rows, genes] * scale[genes] + shift[genes])  # (P,)
        if network.recipe.rescale_masked:
            squares = weights.new_zeros(len(cells)).index_add(0, rows, weights.square())
            values = values / squares.clamp(min=torch.finfo(values.dtype).tiny)[rows]
        read = torch.sparse_coo_tensor(mask.indices(), values, mask.shape) @ table  # (B, W)
        slopes = _mean_slopes(network, transform, read, towards)
        effects = [  # of one unit of each pair's masked value on the combination, (P,)
            (table[some_genes] * slopes[some_rows]).sum(1)
            + (0 if (w := network.additive_weight) is None else (w[some_genes] * towards[some_rows]).sum(1))
            for some_rows, some_genes in zip(rows.split(PAIRS), genes.split(PAIRS), strict=True)
        ]
        strength = decision.sum(1) + evidence.abs().sum(1)  # (B,), what the step adds to the decision
        both = torch.stack([weights * strength[rows], values * torch.cat(effects)], dim=1)
        parts.append(torch.sparse_coo_tensor(mask.indices(), both, (*mask.shape, 2)))
    total = sum(parts[1:], start=parts[0]).coalesce()
    rows, values = total.indices()[0], total.values()
    sums = values.new_zeros(len(cells)).index_add(0, rows, values[:, 0]).clamp(min=torch.finfo(values.dtype).tiny)
    both = torch.stack([values[:, 0] / sums[rows], values[:, 1]], dim=1)
    return torch.sparse_coo_tensor(total.indices(), both, total.shape)


def _mean_slopes(network: TabNet, transform, read: Tensor, towards: Tensor) -> Tensor:
    """Mean gradient, (B, W), with respect to the first layer's output, on the straight path to it from zero."""
    nodes, weights = np.polynomial.legendre.leggauss(NODES)  # on -1 to 1
    total = torch.zeros_like(read)
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        with torch.inference_mode(False), torch.enable_grad():  # in a callback, Lightning has turned gradients off
            point = (read * node).requires_grad_()
            decision = torch.relu(after_first_layer(transform, point)[:, : network.encoder.n_d])
            (slope,) = torch.autograd.grad(network.final_mapping(decision), point, towards)
        total += slope * weight
    return total


def _append(whole: np.ndarray, part: Tensor) -> None:
    """Lengthen an array in place: parts joined at the end would be in memory twice, and leave holes."""
    end = len(whole)
    whole.resize(end + len(part), refcheck=False)
    whole[end:] = part.cpu().numpy()

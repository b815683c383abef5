"""What each gene adds to a network's answer: integrated gradients over the masked input, with the masks held fixed.

A mask shows which genes the network looked at; a contribution shows how much each gene raised or lowered a label's
score. A step reads a cell only through its masked values, and these with a linear layer. The integral (Sundararajan et
al., ICML 2017) therefore needs gradients of that layer's few outputs alone.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from sims_kit.model.network import TabNet, after_first_layer, mean_logits, product
from sims_kit.model.novelty import Novelty

NODES = 32  # at which the integral is evaluated; the tests bound its remainder


class Explained(NamedTuple):
    """What networks looked at in a batch of B cells, and what came of it."""

    logits: Tensor  # (B, C), logarithms of the mean probabilities
    masks: Tensor  # sparse CSR (B, G), means over networks; rows sum to one, or are zero where no gene was used
    contributions: Tensor  # sparse CSR (B, G), of either sign; both have the same pairs, masks with zeros among them


@torch.no_grad()
def explain_batch(
    network: TabNet,
    cells: Tensor,
    towards: Tensor | None = None,
    adjustment: Tensor | float = 0.0,
    linear: Novelty | None = None,
    share: float = 0.0,
) -> Explained:
    """Aggregated masks of a batch of cells, (B, G), and what each gene adds to a combination of the logits.

    The masks of the steps are added up, each weighted by what its step adds to the decision, as in the TabNet paper.
    The contributions of a cell sum to the value of the combination less its value where all masked values are zero, up
    to the remainder of the integral; with `fixed_scale`, zero is a gene's mean over the training cells. Those of linear
    classifiers count from the cell's genes, each at the mean of the class means.

    `towards`, (B, C), are the weights of the logits: 1 for one class and -1 for another compares the two; by default
    the predicted class against the mean of all. `adjustment`, (C,), is the classifier's `logit_adjustment`, added to
    the logits of each network; `linear` has its linear classifiers, and `share` is theirs in the answer. The network is
    in evaluation mode, cells are (B, G), dense or CSR.

    >>> explain_batch(model.network, batch.cells).masks.to_dense().sum(1)
    """
    steps, table = network.steps(cells), network.encoder.initial_splitter.shared.shared_layers[0].weight  # (M, W, G)
    logits = mean_logits(network.logits_of(steps) + adjustment)
    logits = linear.joined(logits, cells, share) if share else logits
    if towards is None:
        towards = torch.eye(logits.shape[1], dtype=logits.dtype, device=logits.device)[logits.argmax(1)]
        towards -= 1 / logits.shape[1]
    of_all = towards[:, None].expand(-1, network.recipe.n_models, -1)  # (B, M, C)
    masks, added = table.new_zeros(2, *of_all.shape[:2], len(network.genes))
    for step, transform in zip(steps, network.encoder.feat_transformers, strict=True):
        decided, weights = step.decision.sum(-1) + step.evidence.abs().sum(-1), table[..., step.genes]
        masks[..., step.genes] += step.mask * decided[..., None]
        effects = product(_mean_slopes(network, transform, product(step.values, weights.mT), of_all), weights)
        if network.additive_weight is not None:
            effects += product(of_all, network.additive_weight[:, step.genes].mT)
        added[..., step.genes] += step.values * effects
    masks /= masks.sum(-1, keepdim=True).clamp(min=torch.finfo(masks.dtype).tiny)
    masks, added, genes = masks.mean(1), (1 - share) * added.mean(1), network.genes  # (B, G) twice
    if share:  # genes that networks or linear classifiers read
        used = linear.planes.any(0).nonzero()[:, 0]
        genes = torch.cat([network.genes, used]).unique()
        of_networks, of_linear = (torch.searchsorted(genes, part) for part in (network.genes, used))
        whole = masks.new_zeros(2, len(cells), len(genes))
        whole[:, :, of_networks] = torch.stack([masks, added])
        whole[1, :, of_linear] += share * linear.contributions(cells, towards, used)
        masks, added = whole
    rows, places = ((masks > 0) | (added != 0)).nonzero(as_tuple=True)
    starts, shape = torch.searchsorted(rows, torch.arange(len(cells) + 1, device=rows.device)), tuple(cells.shape)
    parts = (torch.sparse_csr_tensor(starts, genes[places], part[rows, places], shape) for part in (masks, added))
    return Explained(logits, *parts)


def explain_batches(model: nn.Module, batches: Iterable, share: float) -> tuple[sparse.csr_matrix, ...]:
    """Masks without zeros and contributions of all batches, CSR (cells, G), and the position of each cell's class.

    `model` is a `SIMSClassifier`; batches have `cells`, (B, G); `share` is that of the linear classifiers.
    """
    model.eval()
    rows, genes = np.zeros(1, np.int64), np.empty(0, np.int32)
    weights, added = np.empty(0, np.float32), np.empty(0, np.float32)
    predicted = []
    for batch in batches:
        cells = batch.cells.to(model.device)
        found = explain_batch(model.network, cells, None, model.logit_adjustment, model.novelty, share)
        _append(rows, rows[-1] + found.masks.crow_indices()[1:])
        _append(genes, found.masks.col_indices())
        _append(weights, found.masks.values())
        _append(added, found.contributions.values())
        predicted.append(found.logits.argmax(dim=1).cpu().numpy())
    contributions = sparse.csr_matrix((added, genes, rows), (len(rows) - 1, model.input_dim))
    masks = sparse.csr_matrix((weights, genes, rows), contributions.shape, copy=True)
    masks.eliminate_zeros()
    return masks, contributions, np.concatenate(predicted)


def csr(matrix: Tensor) -> sparse.csr_matrix:
    """A sparse CSR tensor as scipy has it."""
    parts = (matrix.values(), matrix.col_indices(), matrix.crow_indices())
    return sparse.csr_matrix(tuple(part.cpu().numpy() for part in parts), shape=tuple(matrix.shape))


def _mean_slopes(network: TabNet, transform: nn.Module, read: Tensor, towards: Tensor) -> Tensor:
    """Mean gradient, (B, M, W), with respect to the first layer's output, on the straight path to it from zero."""
    nodes, weights = np.polynomial.legendre.leggauss(NODES)  # on -1 to 1
    total = torch.zeros_like(read)
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        with torch.inference_mode(False), torch.enable_grad():  # in a callback, Lightning has turned gradients off
            point = (read * node).requires_grad_()
            decision = torch.relu(after_first_layer(transform, point)[..., : network.recipe.n_d])
            (slope,) = torch.autograd.grad(network.final_mapping(decision), point, towards)
        total += slope * weight
    return total


def _append(whole: np.ndarray, part: Tensor) -> None:
    """Lengthen an array in place: parts joined at the end would be in memory twice, and leave holes."""
    end = len(whole)
    whole.resize(end + len(part), refcheck=False)
    whole[end:] = part.cpu().numpy()

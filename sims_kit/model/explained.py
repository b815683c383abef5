"""Masks and contributions of any number of cells, in one array each that grows as batches come."""

from collections.abc import Iterable

import numpy as np
import torch
from scipy import sparse

from sims_kit.cells.loaders import CellBatch
from sims_kit.model.classifier import SIMSClassifier
from sims_kit.model.contributions import explain_batch


def explain_batches(model: SIMSClassifier, batches: Iterable[CellBatch], keep_steps: bool) -> tuple:
    """Masks and contributions, (cells, genes) CSR with the same pairs; predicted classes, (cells,); masks by step."""
    model.eval()
    rows, genes = np.zeros(1, np.int64), np.empty(0, np.int32)
    weights, added = np.empty(0, np.float32), np.empty(0, np.float32)
    predicted, steps = [], []
    for batch in batches:
        values = batch.cells.to(model.device)
        found = explain_batch(model.network, values, adjustment=model.logit_adjustment)
        _append(rows, rows[-1] + found.masks.crow_indices()[1:])
        _append(genes, found.masks.col_indices())
        _append(weights, found.masks.values())
        _append(added, found.contributions.values())
        predicted.append(found.logits.argmax(dim=1).cpu().numpy())
        if keep_steps:
            steps.append(_masks_by_step(model.network, values))
    shape = (len(rows) - 1, len(model.genes))
    matrices = [sparse.csr_matrix((part, genes, rows), shape) for part in (weights, added)]
    by_step = tuple(sparse.vstack(parts, format="csr") for parts in zip(*steps, strict=True))
    return *matrices, np.concatenate(predicted), by_step


def _append(whole: np.ndarray, part: torch.Tensor) -> None:
    """Lengthen an array in its place: parts joined at the end would be in memory twice, and leave holes."""
    end = len(whole)
    whole.resize(end + len(part), refcheck=False)
    whole[end:] = part.cpu().numpy()


@torch.no_grad()
def _masks_by_step(network, cells: torch.Tensor) -> list[sparse.csr_matrix]:
    members = list(getattr(network, "members", [network]))
    by_member = [[csr(step.mask.to_sparse().coalesce().to_sparse_csr()) for step in m.steps(cells)] for m in members]
    return [sum(masks) / len(members) for masks in zip(*by_member, strict=True)]


def csr(matrix: torch.Tensor) -> sparse.csr_matrix:
    """A sparse CSR tensor as scipy has it."""
    parts = (matrix.values(), matrix.col_indices(), matrix.crow_indices())
    return sparse.csr_matrix(tuple(part.cpu().numpy() for part in parts), shape=tuple(matrix.shape))

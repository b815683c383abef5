"""How much each gene of a cell speaks for the class that a model gives it, by SIMS and by other methods."""

import os
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from anndata import AnnData
from scipy import sparse
from torch import Tensor

from sims_kit.annotation import predict_probabilities
from sims_kit.cells.loaders import CellDataset, CellLoader
from sims_kit.cells.matrix import log_normalised
from sims_kit.errors import LabelError, UnknownNameError
from sims_kit.model.classifier import SIMSClassifier
from sims_kit.model.contributions import explain_batch
from sims_kit.model.file import fitted_model
from sims_kit.progress import progress_bar
from sims_kit.studies.adaptor import needs
from sims_kit.studies.classical import linear_svm

CELL_METHODS = (
    "SIMS masks",
    "SIMS contributions",
    "integrated gradients",
    "linear SVM weight times value",
    "random",
    "random matched by expression",
)
STEPS = 50  # of integrated gradients, captum's own number: sums are within some 2 % of what they should be
DENSE_CELLS = 64  # cells whose gradients are taken together; dense, 5 MB at 20,000 genes
DENSE_POINTS = 512  # points on the way of integrated gradients held at once: 41 MB at 20,000 genes
ALIKE = 20  # genes of like expression among which a cell's scores are shuffled


def gene_scores_per_cell(
    model: SIMSClassifier | str | os.PathLike,
    cells: AnnData,
    method: str,
    *,
    layer: str | None = None,
    seed: int = 0,
) -> sparse.csr_matrix:
    """How much each gene speaks for the class that the model gives a cell.

    Parameters
    ----------
    model, cells, layer
        As in `rank_genes`; no labels are needed.
    method
        Of `CELL_METHODS`:

        ``"SIMS masks"``, ``"SIMS contributions"``
            As `explain` gives them.
        ``"integrated gradients"``
            By captum, from a cell that expresses nothing, of the predicted class's logit against the mean of all. A
            cell's sum to that quantity, less what it is when all values are faded to just above zero: which genes are
            expressed at all, as masks of a temperature ask, does not change on the way.
        ``"linear SVM weight times value"``
            Of an SVM that is fitted to the model's calls on these cells.
        ``"random"``
            Genes that the cell expresses in random order.
        ``"random matched by expression"``
            The cell's contributions, shuffled among each twenty genes of like value in it: at any rank, genes about as
            high as those that contribute most.
    seed
        Of the SVM and the random orders.

    Returns
    -------
    scipy.sparse.csr_matrix, (cells, genes of the model)
        An entry, possibly of 0, for each gene that the cell expresses, and no other.

    Raises
    ------
    UnknownNameError
        If there is no such method or layer.
    LabelError
        If an SVM is asked for and all cells are of one predicted class.
    PeerError, GeneError, DataError, SettingError
        As `rank_genes` raises them.
    """
    known(method, CELL_METHODS)
    model = fitted_model(model)
    return scores_of_values(model, log_normalised_values(model, cells, layer=layer), method, seed=seed)


def scores_of_values(
    model: SIMSClassifier, values: sparse.csr_matrix, method: str, *, seed: int = 0
) -> sparse.csr_matrix:
    """`gene_scores_per_cell` of values from `log_normalised_values`."""
    (method,) = known(method, CELL_METHODS)
    random = np.random.default_rng(seed)
    if method == "random":
        return _like(values, random.random(values.nnz))
    if method == "linear SVM weight times value":
        predicted = predict_probabilities(model, value_batches(values)).argmax(axis=1)
        present, codes = np.unique(predicted, return_inverse=True)
        if len(present) < 2:
            raise LabelError(
                f"The model calls all {len(predicted):,} cells {model.classes[present[0]]!r}; an SVM needs two classes "
                "or more. Pass more cells, or leave the SVM out."
            )
        weights = linear_weights(linear_svm, values, codes, seed)
        return _like(values, values.data * weights[codes[_rows(values)], values.indices])
    if method == "integrated gradients":
        return _by_batch(model, values, _integrated_gradients, DENSE_CELLS)
    if method == "SIMS masks":
        return _by_batch(
            model,
            values,
            lambda model, batch: explain_batch(
                model.network, batch, adjustment=model.logit_adjustment
            ).masks.to_dense(),
        )
    added = _by_batch(
        model,
        values,
        lambda model, batch: explain_batch(
            model.network, batch, adjustment=model.logit_adjustment
        ).contributions.to_dense(),
    )
    return added if method == "SIMS contributions" else _shuffled_among_alike(added, values, random)


def log_normalised_values(model: SIMSClassifier, cells: AnnData, *, layer: str | None = None) -> sparse.csr_matrix:
    """What the model sees of these cells: CSR, cells x genes of the model, float32; what is not expressed has no entry.

    Raises
    ------
    GeneError, DataError, UnknownNameError
        As `annotate` raises them.
    """
    values = log_normalised(cells, model.genes, layer=layer)
    if not values.data.all():
        values = values.copy()  # may share its indices with the caller's matrix
        values.eliminate_zeros()
    return values


class ValueSource:
    """Cells whose values are model input already, for a `CellDataset`."""

    in_file = False

    def __init__(self, values: sparse.csr_matrix):
        self.values = values

    def __len__(self) -> int:
        return self.values.shape[0]

    def rows(self, positions: np.ndarray) -> sparse.csr_matrix:
        """Values of these cells."""
        return self.values[positions]


def value_batches(values: sparse.csr_matrix | ValueSource, batch_size: int = 512) -> CellLoader:
    """Values from `log_normalised_values` as mini-batches in order."""
    source = values if isinstance(values, ValueSource) else ValueSource(values)
    return CellLoader(CellDataset([source]), range(len(source)), batch_size)


def ranks_within_cells(scores: sparse.csr_matrix, seed: int = 0) -> sparse.csr_matrix:
    """The rank of each entry in its row, 1 for the highest score; equal ones in random order."""
    rows = _rows(scores)
    order = np.lexsort((np.random.default_rng(seed).random(scores.nnz), -scores.data, rows))
    ranks = np.empty(scores.nnz, np.int32)
    ranks[order] = np.arange(scores.nnz) - scores.indptr[rows] + 1  # rows are as long in this order
    return _like(scores, ranks)


def known(methods: str | Iterable[str], options: Sequence[str]) -> list[str]:
    """The methods as a list; a single name stands for itself."""
    methods = [methods] if isinstance(methods, str) else list(methods)
    for method in methods:
        if method not in options:
            raise UnknownNameError("method", method, options)
    return methods


def linear_weights(make: Callable, values: sparse.csr_matrix, labels: np.ndarray, seed: int) -> np.ndarray:
    """Coefficients, classes x genes. Of two classes there is one vector, which speaks for the second."""
    smallest = int(np.unique(labels, return_counts=True)[1].min())
    weights = make(seed, len(labels), smallest).fit(values, labels).coef_
    return np.vstack([-weights, weights]) if len(weights) == 1 else weights


def _integrated_gradients(model: SIMSClassifier, cells: Tensor) -> Tensor:
    """Of the predicted class against the mean of all, (B, genes) dense."""
    needs("captum", "The method 'integrated gradients'")
    from captum.attr import IntegratedGradients  # an optional package

    dense = cells.to_dense()
    with torch.no_grad():
        predicted = model(dense).argmax(dim=1, keepdim=True)

    def against_mean(cells: Tensor, predicted: Tensor) -> Tensor:
        logits = model(cells)
        return logits.gather(1, predicted)[:, 0] - logits.mean(dim=1)

    return IntegratedGradients(against_mean).attribute(
        dense, additional_forward_args=(predicted,), n_steps=STEPS, internal_batch_size=max(DENSE_POINTS, len(dense))
    )


def _by_batch(
    model: SIMSClassifier,
    values: sparse.csr_matrix,
    score: Callable[[SIMSClassifier, Tensor], Tensor],
    batch_size: int = 512,
) -> sparse.csr_matrix:
    """Scores of each batch, (B, genes) dense, kept where a cell expresses the gene."""
    model.eval()
    parts, first = [], 0
    for batch in progress_bar(value_batches(values, batch_size), desc="scoring genes", unit="batch"):
        scores = score(model, batch.cells.to(model.device)).detach().cpu().numpy()
        some = values[first : first + len(scores)]
        parts.append(scores[_rows(some), some.indices])
        first += len(scores)
    return _like(values, np.concatenate(parts))


def _shuffled_among_alike(
    scores: sparse.csr_matrix, values: sparse.csr_matrix, random: np.random.Generator
) -> sparse.csr_matrix:
    """Each cell's scores in random order within blocks of genes of like value; the last block takes what is left."""
    rows, sizes = _rows(values), np.diff(values.indptr)
    order = np.lexsort((random.random(values.nnz), values.data, rows))
    places = np.arange(values.nnz) - values.indptr[rows]
    blocks = np.minimum(places // ALIKE, np.maximum(sizes // ALIKE - 1, 0)[rows])
    shuffled = np.empty_like(scores.data)
    shuffled[order] = scores.data[order[np.lexsort((random.random(values.nnz), blocks, rows))]]
    return _like(values, shuffled)


def _rows(matrix: sparse.csr_matrix) -> np.ndarray:
    """The row of each entry."""
    return np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))


def _like(matrix: sparse.csr_matrix, data: np.ndarray) -> sparse.csr_matrix:
    """Other data at the same places."""
    return sparse.csr_matrix((data, matrix.indices, matrix.indptr), matrix.shape)

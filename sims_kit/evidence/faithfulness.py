"""Whether the genes that an explanation names are those that the call rests on: take them away, or all others.

Deletion and insertion after Petsiuk et al. (BMVC 2018, arXiv:1806.07421), on genes in place of pixels: a gene that is
taken away is set to zero in the log-normalised values that the model reads, as if the cell did not express it.
"""

import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from sklearn.metrics import auc

from sims_kit.annotation import predict_probabilities
from sims_kit.errors import DataError, GeneError, SettingError, UnknownNameError
from sims_kit.evidence.cell_scores import (
    CELL_METHODS,
    ValueSource,
    log_normalised_values,
    ranks_within_cells,
    scores_of_values,
    value_batches,
)
from sims_kit.evidence.rankings import top_genes_overall
from sims_kit.metrics import score
from sims_kit.model.classifier import SIMSClassifier
from sims_kit.model.file import fitted_model
from sims_kit.progress import progress_bar
from sims_kit.studies.adaptor import labels_of
from sims_kit.studies.classical import logistic_regression

NUMBERS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500)  # of genes, about evenly spaced in their logarithm
SIZES = (5, 10, 20, 50, 100, 200)


def faithfulness(
    model: SIMSClassifier | str | os.PathLike,
    cells: AnnData,
    methods: Iterable[str] | Mapping[str, sparse.csr_matrix] = CELL_METHODS,
    *,
    numbers: Sequence[int] = NUMBERS,
    layer: str | None = None,
    seed: int = 0,
    batch_size: int = 512,
) -> pd.DataFrame:
    """What becomes of a model's calls when each cell loses its top genes (deletion), or all others (insertion).

    Genes are ranked for each cell by itself, among those that it expresses.

    Parameters
    ----------
    model
        A fitted classifier, or the path of one that `save_model` wrote.
    cells
        Cells x genes, counts or log-normalised; no labels are needed.
    methods
        Names of `CELL_METHODS`, or scores by name: CSR, cells x genes of the model, as by `gene_scores_per_cell`.
    numbers
        How many genes are deleted, or left. Those beyond what any cell expresses become one: all of them, which comes
        last in any case.
    layer
        Where the matrix is: None for `X`, ``"raw"``, or the name of a layer.
    seed
        Of methods that draw, and of the order of genes with equal scores.
    batch_size
        Cells predicted at once.

    Returns
    -------
    pandas.DataFrame
        One row per method, curve and number: ``method``, ``curve`` (``"deletion"`` or ``"insertion"``), ``n_genes``
        (for all, the most that any cell expresses), ``probability``, the mean probability of the class that is
        predicted for the whole cell, and ``unchanged``, the share of cells that are still called the same.

    Raises
    ------
    SettingError
        If a number is negative or not whole.
    DataError
        If scores are not of these cells and genes, or lack genes that a cell expresses.
    UnknownNameError, PeerError, LabelError, GeneError
        As `gene_scores_per_cell` raises them.
    """
    if any(number != int(number) or number < 0 for number in numbers):
        raise SettingError(f"numbers={tuple(numbers)}: expected whole numbers of genes, 0 or more.")
    model = fitted_model(model)
    values = log_normalised_values(model, cells, layer=layer)
    most = int(np.diff(values.indptr).max())
    numbers = [*sorted({int(number) for number in numbers if number < most}), most]
    whole = predict_probabilities(model, value_batches(values, batch_size))
    predicted = whole.argmax(axis=1)
    methods = [methods] if isinstance(methods, str) else methods
    rows, bar = [], progress_bar(total=len(list(methods)) * 2 * len(numbers), desc="taking genes away", unit="step")
    with bar:
        for method in methods:
            if isinstance(methods, Mapping):
                scores = _checked_scores(methods[method], values, method)
            else:
                scores = scores_of_values(model, values, method, seed=seed)
            ranks = ranks_within_cells(scores, seed)
            for curve in ("deletion", "insertion"):
                for number in numbers:
                    left = _Reduced(values, ranks, curve, number)
                    found = predict_probabilities(model, value_batches(left, batch_size))
                    own = found[np.arange(len(found)), predicted].mean(dtype=float)
                    rows.append((method, curve, number, own, (found.argmax(axis=1) == predicted).mean()))
                    bar.update()
    return pd.DataFrame(rows, columns=["method", "curve", "n_genes", "probability", "unchanged"])


def area_under(table: pd.DataFrame, value: str = "probability") -> pd.DataFrame:
    """The mean height of each curve over log(1 + number of genes), from 0 to all: methods x curves, 0 to 1.

    Lower is better for deletion, as the call is lost with the first genes; higher for insertion. Between the numbers
    that were tried, curves are straight lines on that scale.

    Parameters
    ----------
    table
        From `faithfulness`.
    value
        ``"probability"`` or ``"unchanged"``.

    Raises
    ------
    UnknownNameError
        If there is no such column.
    DataError
        If a curve has fewer than two points.
    """
    for column in ("method", "curve", "n_genes", value):
        if column not in table:
            raise UnknownNameError("column of the table", column, table.columns)
    areas = {}
    for (method, curve), points in table.sort_values("n_genes").groupby(["method", "curve"], sort=False):
        if points["n_genes"].nunique() < 2:
            raise DataError(
                f"The {curve} curve of {method!r} has one point; an area needs two numbers of genes or more."
            )
        places = np.log1p(points["n_genes"])
        areas[method, curve] = auc(places, points[value]) / np.ptp(places)
    found = pd.Series(areas).unstack().rename_axis(index="method", columns="curve")
    return found.loc[list(table["method"].unique())]


def sufficiency(
    model: SIMSClassifier | str | os.PathLike,
    train: AnnData,
    test: AnnData,
    label: str,
    rankings: Mapping[str, pd.DataFrame],
    sizes: Sequence[int] = SIZES,
    *,
    layer: str | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """How well cells can be told apart by a method's top genes alone.

    Parameters
    ----------
    model
        A fitted classifier, or the path of one that `save_model` wrote.
    train, test
        Cells x genes with labels. A logistic regression learns from the first; scores are of the second.
    label
        The `obs` column with the labels, in both.
    rankings
        For each method a table classes x genes of the model: `rank_genes`, on cells that are not in `test`.
    sizes
        How many genes, of all classes together (`top_genes_overall`). Those above the number of genes are left out.
    layer
        Where the matrix is, in both: None for `X`, ``"raw"``, or the name of a layer.
    seed
        Of the logistic regression.

    Returns
    -------
    pandas.DataFrame
        One row per method, size and classifier: ``method`` (last, ``"all genes"``), ``n_genes``, ``classifier``
        (``"model"``, which sees all other genes as zero, or ``"logistic regression"``, fitted to these genes alone),
        ``accuracy`` and ``median_f1`` (0 to 1). Values are normalised over all genes of the model in either case.

    Raises
    ------
    GeneError
        If the genes of a ranking are not the model's.
    SettingError
        If a size is less than 1.
    UnknownNameError, LabelError, DataError
        As `rank_genes` raises them.
    """
    model = fitted_model(model)
    if any(size < 1 for size in sizes):
        raise SettingError(f"sizes={tuple(sizes)}: expected numbers of genes, 1 or more.")
    for method, ranking in rankings.items():
        if set(ranking.columns) != set(model.genes):
            common = len(set(ranking.columns) & set(model.genes))
            raise GeneError(
                f"The ranking of {method!r} has {ranking.shape[1]:,} genes, {common:,} of them among the model's "
                f"{len(model.genes):,}. Rank all genes of this model: rank_genes(model, ...)."
            )
    labels, truth = labels_of(train, label), labels_of(test, label)
    learned, seen = (log_normalised_values(model, cells, layer=layer) for cells in (train, test))
    smallest = int(np.unique(labels, return_counts=True)[1].min())
    sizes = [size for size in sizes if size <= len(model.genes)]
    chosen = [(method, top_genes_overall(table, size)) for method, table in rankings.items() for size in sizes]
    rows = []
    for method, names in progress_bar([*chosen, ("all genes", model.genes)], desc="sufficiency", unit="set"):
        genes = np.sort(pd.Index(model.genes).get_indexer(names))
        fresh = logistic_regression(seed, len(labels), smallest).fit(learned[:, genes], labels)
        calls = predict_probabilities(model, value_batches(_only(seen, genes))).argmax(axis=1)
        answers = {"model": np.asarray(model.classes)[calls], "logistic regression": fresh.predict(seen[:, genes])}
        for classifier, predicted in answers.items():
            found = score(truth, predicted)
            rows.append((method, len(genes), classifier, found["accuracy_micro"], found["median_f1"]))
    return pd.DataFrame(rows, columns=["method", "n_genes", "classifier", "accuracy", "median_f1"])


class _Reduced(ValueSource):
    """Cells without some of their genes, which go as batches are drawn: what is gone is no entry, not a zero."""

    def __init__(self, values: sparse.csr_matrix, ranks: sparse.csr_matrix, curve: str, number: int):
        super().__init__(values)
        self.ranks, self.curve, self.number = ranks, curve, number

    def rows(self, positions: np.ndarray) -> sparse.csr_matrix:
        """Values that are left to these cells."""
        rows, ranks = self.values[positions], self.ranks[positions]
        top = ranks.data <= self.number
        rows.data = np.where(top == (self.curve == "insertion"), rows.data, 0)
        rows.eliminate_zeros()
        return rows


def _only(values: sparse.csr_matrix, genes: np.ndarray) -> sparse.csr_matrix:
    """The same cells with entries for these genes alone."""
    kept = np.zeros(values.shape[1], values.dtype)
    kept[genes] = 1
    left = sparse.csr_matrix(
        (values.data * kept[values.indices], values.indices.copy(), values.indptr.copy()), values.shape
    )
    left.eliminate_zeros()
    return left


def _checked_scores(scores: sparse.csr_matrix, values: sparse.csr_matrix, method: str) -> sparse.csr_matrix:
    """Scores at exactly the places of the values."""
    scores = sparse.csr_matrix(scores)
    same = scores.shape == values.shape and scores.nnz == values.nnz
    if not (same and (scores.indptr == values.indptr).all() and (scores.indices == values.indices).all()):
        raise DataError(
            f"The scores of {method!r} are {scores.shape[0]:,} cells x {scores.shape[1]:,} genes with {scores.nnz:,} "
            f"entries; expected {values.shape[0]:,} x {values.shape[1]:,} with {values.nnz:,}, one for each gene that "
            "a cell expresses. Take the places of gene_scores_per_cell(model, cells, 'random') and change its data."
        )
    return scores

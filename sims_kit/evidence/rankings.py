"""Genes ranked for each class by what SIMS looks at and makes of it, and by methods that know nothing of its network.

All see log-normalised values of the model's genes; the linear models have the settings of the benchmark's peers
(`sims_kit.studies.classical`).
"""

import os
from collections.abc import Iterable

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse

from sims_kit.errors import LabelError, SettingError
from sims_kit.evidence.cell_scores import known, linear_weights, log_normalised_values, scores_of_values
from sims_kit.explanation import Explanation, explain, mean_by_class
from sims_kit.model.classifier import SIMSClassifier
from sims_kit.model.file import fitted_model
from sims_kit.progress import progress_bar
from sims_kit.studies.adaptor import labels_of
from sims_kit.studies.classical import linear_svm, logistic_regression

METHODS = ("SIMS masks", "SIMS contributions", "integrated gradients", "logistic regression", "linear SVM", "Wilcoxon")


def rank_genes(
    model: SIMSClassifier | str | os.PathLike,
    cells: AnnData,
    label: str,
    methods: str | Iterable[str] = METHODS,
    *,
    layer: str | None = None,
    seed: int = 0,
) -> dict[str, pd.DataFrame]:
    """How much each gene speaks for each class, by several methods.

    Parameters
    ----------
    model
        A fitted classifier, or the path of one that `save_model` wrote.
    cells
        Cells x genes, counts or log-normalised, with labels.
    label
        The `obs` column that says each cell's class.
    methods
        Of `METHODS`:

        ``"SIMS masks"``, ``"SIMS contributions"``
            Means over the cells of the class, as by ``explain(model, cells, groupby=label)``. Masks tell where the
            network looks; that a gene speaks against the class they do not tell.
        ``"integrated gradients"``
            Of the whole network, masks included (Sundararajan et al., ICML 2017): means of `gene_scores_per_cell`.
        ``"logistic regression"``, ``"linear SVM"``
            Coefficients of models that are fitted to these cells and labels.
        ``"Wilcoxon"``
            Scores of `scanpy.tl.rank_genes_groups`, the class against all other cells; 0 for genes that no cell has.
    layer
        Where the matrix is: None for `X`, ``"raw"``, or the name of a layer.
    seed
        Of the linear models.

    Returns
    -------
    dict of DataFrame
        For each method a table, classes x genes of the model; the higher, the more the gene speaks for the class.
        Units differ between methods, so ranks can be compared and values cannot. As in `explain`, contributions and
        gradients are those to the class that the model predicts, also where that is not the cell's label.

    Raises
    ------
    UnknownNameError
        If there is no such method, column or layer.
    LabelError
        If labels are missing, or of one class only, or a class is a single cell and Wilcoxon's test is asked for.
    PeerError
        If integrated gradients are asked for and captum is not installed.
    GeneError, DataError, SettingError
        As `annotate` raises them.
    """
    methods, model = known(methods, METHODS), fitted_model(model)
    labels = labels_of(cells, label)
    values = log_normalised_values(model, cells, layer=layer)
    of_sims = [method for method in methods if method.startswith("SIMS")]
    explanation = explain(model, cells, layer=layer) if of_sims else None
    tables = {}
    for method in progress_bar(methods, desc="ranking", unit="method"):
        scores = _class_scores(method, model, values, labels, explanation, seed)
        classes = pd.Index(np.unique(labels), name="class")
        tables[method] = pd.DataFrame(scores, classes, pd.Index(model.genes, name="gene"))
    return tables


def top_genes_overall(ranking: pd.DataFrame, n: int) -> list[str]:
    """The `n` genes that rank best for any class, so that every class gets its share.

    Genes are ordered by their best rank over the classes; of equal ones, the one of better mean rank comes first.

    Parameters
    ----------
    ranking
        Classes x genes, one table of `rank_genes`.

    Raises
    ------
    SettingError
        If `n` is less than 1 or more than there are genes.
    """
    if not 1 <= n <= ranking.shape[1]:
        raise SettingError(f"n={n}: expected a number of genes from 1 to {ranking.shape[1]:,}, those of the ranking.")
    ranks = ranking.rank(axis=1, ascending=False)  # equal ones share a mean rank: nothing tells them apart
    order = pd.DataFrame({"best": ranks.min(), "mean": ranks.mean()}).sort_values(["best", "mean"], kind="stable")
    return list(order.index[:n])


def _class_scores(
    method: str,
    model: SIMSClassifier,
    values: sparse.csr_matrix,
    labels: np.ndarray,
    explanation: Explanation | None,
    seed: int,
) -> np.ndarray:
    """One table, classes in alphabetical order x genes."""
    of_cells = {
        "SIMS masks": lambda: explanation.cells,
        "SIMS contributions": lambda: explanation.contributions,
        "integrated gradients": lambda: scores_of_values(model, values, method),
    }
    if method in of_cells:
        return mean_by_class(of_cells[method](), labels, pd.Index(model.genes)).to_numpy()
    if method == "Wilcoxon":
        return _wilcoxon(values, labels)
    return linear_weights(
        {"logistic regression": logistic_regression, "linear SVM": linear_svm}[method], values, labels, seed
    )


def _wilcoxon(values: sparse.csr_matrix, labels: np.ndarray) -> np.ndarray:
    import scanpy  # takes seconds

    classes, n_cells = np.unique(labels, return_counts=True)
    if (n_cells < 2).any():
        raise LabelError(
            f"{classes[n_cells < 2].tolist()} have one cell each; Wilcoxon's test needs two of every class. Leave "
            "these classes or this method out."
        )
    kept = np.flatnonzero(values.getnnz(axis=0))  # the test is undefined for genes without values
    cells = AnnData(values[:, kept], obs=pd.DataFrame({"label": pd.Categorical(labels)}, map(str, range(len(labels)))))
    cells.var_names = kept.astype(str)
    threads = torch.get_num_threads()
    scanpy.tl.rank_genes_groups(cells, "label", method="wilcoxon")
    torch.set_num_threads(threads)  # numba in scanpy sets OpenMP's for all: training crawls where cores are shared
    scores = np.zeros((len(classes), values.shape[1]))
    for row, label in enumerate(classes):
        found = scanpy.get.rank_genes_groups_df(cells, label)
        scores[row, found["names"].astype(int)] = found["scores"]
    return scores

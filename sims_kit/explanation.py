"""Explanation: which genes a model used, per cell, per class and overall (thesis sections 0.2.6 and 0.3.3)."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import anndata as ad
import numpy as np
import pandas as pd
import torch
from scipy import sparse

from sims_kit.cells.batches import query_batches
from sims_kit.datasets import load
from sims_kit.errors import UnknownNameError
from sims_kit.model.classifier import SIMSClassifier
from sims_kit.model.file import fitted_model
from sims_kit.progress import progress_bar


@dataclass(frozen=True)
class Explanation:
    """Genes that a model used to label cells.

    Attributes
    ----------
    cells
        CSR, cells x genes of the model: aggregated masks, each row summing to one (or all zero for a cell whose
        decision used no gene). Row i is the cell `cell_names[i]`, column j the gene `gene_names[j]`.
    classes
        DataFrame, classes x genes: mean of the rows of `cells` over the cells of each class.
    genes
        DataFrame, one row per gene, most used first: `weight`, the mean over all cells (sums to one), and
        `cells`, the share of cells that use the gene at all.
    labels
        The class of each cell by which `classes` is grouped.
    """

    cells: sparse.csr_matrix
    classes: pd.DataFrame
    genes: pd.DataFrame
    cell_names: pd.Index
    gene_names: pd.Index
    labels: np.ndarray

    def cell(self, name: str) -> pd.Series:
        """The genes used for one cell and their weights, largest first.

        Raises
        ------
        UnknownNameError
            If there is no cell of that name.
        """
        if name not in self.cell_names:
            raise UnknownNameError("cell", name, self.cell_names[:1000])
        row = self.cells[[self.cell_names.get_loc(name)]]
        return pd.Series(row.data, self.gene_names[row.indices], name=name).sort_values(ascending=False)

    def top_genes(self, n: int = 10) -> pd.DataFrame:
        """The `n` genes of largest mean weight of each class: a DataFrame, ranks x classes."""
        names = {label: weights.nlargest(n).index for label, weights in self.classes.iterrows()}
        return pd.DataFrame(names, index=pd.RangeIndex(1, n + 1, name="rank"))


def explain(
    model: SIMSClassifier | str | os.PathLike,
    cells: ad.AnnData | str | os.PathLike,
    *,
    groupby: str | None = None,
    layer: str | None = None,
    batch_size: int = 512,
) -> Explanation:
    """Which genes the model's masks pass, for each cell, each class and overall.

    A cell's masks are added up over the steps, each weighted by its share in the decision (section 3.4 of the TabNet
    paper), and divided by their sum. Memory grows with the nonzero weights.

    Parameters
    ----------
    model
        A fitted classifier, or the path of one that `save_model` wrote.
    cells
        Cells x genes, counts or log-normalised; AnnData, or a dataset name or path to read.
    groupby
        `obs` column that defines the classes of the class table; the predicted class when left out.
    layer
        Where the matrix is: None for `X`, ``"raw"``, or the name of a layer.
    batch_size
        Cells explained at once.

    Raises
    ------
    GeneError, DataError, UnknownNameError, SettingError
        As `annotate` raises them, and if there is no column `groupby`.
    """
    model = fitted_model(model)
    cells = cells if isinstance(cells, ad.AnnData) else load(cells)
    if groupby is not None and groupby not in cells.obs:
        raise UnknownNameError("obs column", groupby, cells.obs.columns)
    batches, _, _ = query_batches(cells, model.genes, layer=layer, batch_size=batch_size)
    masks, predicted = _masks(model, batches)
    labels = np.asarray(model.classes)[predicted] if groupby is None else cells.obs[groupby].astype(str).to_numpy()
    gene_names = pd.Index(model.genes, name="gene")
    return Explanation(
        cells=masks,
        classes=_mean_by_class(masks, labels, gene_names),
        genes=_overall(masks, gene_names),
        cell_names=cells.obs_names,
        gene_names=gene_names,
        labels=labels,
    )


@torch.no_grad()
def _masks(model: SIMSClassifier, batches) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Normalised aggregated masks, CSR, and the predicted class of each cell."""
    model.eval()
    parts, predicted = [], []
    for batch in progress_bar(batches, desc="explaining", unit="batch"):
        aggregated, logits = model.network.explain(batch.cells.to(model.device))
        aggregated = aggregated.cpu()
        values, columns, rows = (
            part.numpy() for part in (aggregated.values(), aggregated.col_indices(), aggregated.crow_indices())
        )
        parts.append(sparse.csr_matrix((values, columns, rows), shape=aggregated.shape))
        predicted.append(logits.argmax(dim=1).cpu().numpy())
    masks = sparse.vstack(parts, format="csr")
    total = np.asarray(masks.sum(axis=1)).ravel()
    masks.data /= np.repeat(np.where(total > 0, total, 1), np.diff(masks.indptr)).astype(masks.dtype)
    return masks, np.concatenate(predicted)


def _mean_by_class(masks: sparse.csr_matrix, labels: Sequence[str], gene_names: pd.Index) -> pd.DataFrame:
    classes, codes = np.unique(labels, return_inverse=True)
    membership = sparse.csr_matrix((np.ones(len(codes)), (codes, np.arange(len(codes)))))
    means = (membership @ masks).toarray() / np.bincount(codes)[:, None]
    return pd.DataFrame(means, pd.Index(classes, name="class"), gene_names)


def _overall(masks: sparse.csr_matrix, gene_names: pd.Index) -> pd.DataFrame:
    weight = np.asarray(masks.mean(axis=0)).ravel()
    used = masks.getnnz(axis=0) / masks.shape[0]
    table = pd.DataFrame({"weight": weight, "cells": used}, gene_names)
    return table.sort_values("weight", ascending=False, kind="stable")

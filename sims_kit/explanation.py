"""Explanation: which genes a model used, per cell, per class and overall (thesis sections 0.2.6 and 0.3.3)."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import anndata as ad
import numpy as np
import pandas as pd
import torch
from scipy import sparse

from sims_kit.annotation import scales_of
from sims_kit.cells.genes import align_genes, gene_rows
from sims_kit.cells.loaders import query_batches
from sims_kit.cells.matrix import open_cells
from sims_kit.errors import DataError, UnknownNameError
from sims_kit.model.classifier import SIMSClassifier
from sims_kit.model.contributions import csr, explain_batch, explain_batches
from sims_kit.model.file import fitted_model
from sims_kit.model.trainer import plain_torch
from sims_kit.progress import progress_bar
from sims_kit.text import label_text

PART = 4096  # cells summed at once


@dataclass(frozen=True)
class Explanation:
    """Genes that a model used to label cells: where it looked (masks), and what it made of that (contributions).

    Attributes
    ----------
    cells
        CSR, cells x genes of the model: aggregated masks, each row summing to one (or all zero for a cell whose
        decision used no gene). Row i is the cell `cell_names[i]`, column j the gene `gene_names[j]`.
    contributions
        CSR of the same shape: what each gene adds to the logit of the cell's predicted class, against the mean of all
        classes, of either sign. Of an ensemble, the mean over its networks.
    classes
        DataFrame, classes x genes: mean of the rows of `cells` over the cells of each class.
    class_contributions
        The same of `contributions`.
    genes
        DataFrame, one row per gene, most used first: `weight`, the mean mask weight over all cells (sums to one),
        `cells`, the share of cells that use the gene at all, and `contribution`, the mean size of its contributions.
    labels
        The class of each cell by which the class tables are grouped.
    predicted
        The class that the model gives each cell.
    steps
        Mean mask over the networks, for each decision step, CSR; empty unless asked for.
    species
        As given to `explain`.
    """

    cells: sparse.csr_matrix
    contributions: sparse.csr_matrix
    classes: pd.DataFrame
    class_contributions: pd.DataFrame
    genes: pd.DataFrame
    cell_names: pd.Index
    gene_names: pd.Index
    labels: np.ndarray
    predicted: np.ndarray
    steps: tuple[sparse.csr_matrix, ...] = ()
    species: str | None = None

    def cell(self, name: str) -> pd.DataFrame:
        """The genes used for one cell, with `weight` and `contribution`, largest contribution first.

        Raises
        ------
        UnknownNameError
            If there is no cell of that name.
        """
        row = _position(name, self.cell_names)
        return _genes_of_cell(self.cells[[row]], self.contributions[[row]], self.gene_names)

    def top_genes(self, n: int = 10, *, by: str = "contribution") -> pd.DataFrame:
        """The `n` genes that speak most for each class: a DataFrame, ranks x classes.

        By mean ``"contribution"``, which tells the markers of a class from other genes the model looks at, or by mean
        mask ``"weight"``.

        Raises
        ------
        UnknownNameError
            If `by` is neither.
        """
        tables = {"contribution": self.class_contributions, "weight": self.classes}
        if by not in tables:
            raise UnknownNameError("ranking", by, tables)
        names = {label: values.nlargest(n).index for label, values in tables[by].iterrows()}
        return pd.DataFrame(names, index=pd.RangeIndex(1, n + 1, name="rank"))

    def add_to(self, adata: ad.AnnData, *, key_added: str = "sims") -> None:
        """Write the results into the AnnData that was explained, where scanpy's plots find them.

        ``layers["sims_masks"]``, ``layers["sims_contributions"]``
            Sparse, cells x genes of `adata`; genes that the model does not know are zero.
        ``varm["sims_class_masks"]``, ``varm["sims_class_contributions"]``
            Genes x classes; the classes are in ``uns["sims_kit"]["sims"]["explained_classes"]``.
        ``uns["rank_genes_sims"]``
            Genes by contribution in the layout of `scanpy.tl.rank_genes_groups`, without p-values, for
            ``sc.pl.rank_genes_groups(adata, key="rank_genes_sims")`` and ``sc.get.rank_genes_groups_df``.
        ``obs["sims_explained"]``
            The classes by which cells were grouped, categorical.

        Raises
        ------
        DataError
            If the cells of `adata` are not those that were explained, in the same order.
        """
        if list(adata.obs_names) != list(self.cell_names):
            raise DataError(
                f"adata has {adata.n_obs} cells, the explanation {len(self.cell_names)}, or in another order; pass the "
                "AnnData that was explained."
            )
        with warnings.catch_warnings():  # given already when the cells were explained
            warnings.simplefilter("ignore")
            rows = np.flatnonzero(gene_rows(adata.var))
            places = align_genes(adata.var.iloc[rows], self.gene_names, species=self.species).places()
        places = np.where(places >= 0, rows[places], -1)
        found = np.flatnonzero(places >= 0)
        known = sparse.csr_matrix(
            (np.ones(len(found), np.float32), (found, places[found])), shape=(len(places), adata.n_vars)
        )
        adata.layers[f"{key_added}_masks"] = self.cells @ known
        adata.layers[f"{key_added}_contributions"] = self.contributions @ known
        adata.varm[f"{key_added}_class_masks"] = (self.classes.to_numpy() @ known).T
        adata.varm[f"{key_added}_class_contributions"] = (self.class_contributions.to_numpy() @ known).T
        adata.obs[f"{key_added}_explained"] = pd.Categorical(self.labels, self.classes.index)
        own = dict(dict(adata.uns.get("sims_kit", {})).get(key_added, {}))
        own["explained_classes"] = list(self.classes.index)
        adata.uns["sims_kit"] = {**adata.uns.get("sims_kit", {}), key_added: own}
        adata.uns[f"rank_genes_{key_added}"] = _scanpy_ranking(self.class_contributions, f"{key_added}_explained")


@dataclass(frozen=True)
class CellExplanation:
    """Why a cell was called what it was called.

    Attributes
    ----------
    label, second_label
        The most probable class and the runner-up.
    probability, second_probability
        Theirs.
    genes
        DataFrame, one row per gene that the masks pass, largest `contribution` first: `weight` in the masks,
        `contribution` to the logit of `label` against the mean of all classes, `against_second`, the same against
        `second_label` alone, and `expression`, log-normalised.
    """

    label: str
    second_label: str
    probability: float
    second_probability: float
    genes: pd.DataFrame


@plain_torch()
def explain(
    model: SIMSClassifier | str | os.PathLike,
    cells: ad.AnnData | str | os.PathLike,
    *,
    groupby: str | None = None,
    layer: str | None = None,
    batch_size: int = 512,
    steps: bool = False,
    backed: bool | str = "auto",
    species: str | None = None,
) -> Explanation:
    """Which genes the model looks at and what they add, for each cell, each class and overall.

    A cell's masks are added up over the steps, each weighted by its share in the decision (section 3.4 of the TabNet
    paper), and divided by their sum. Contributions: `sims_kit.model.contributions`. Memory grows with the nonzero
    weights, 12 bytes for each.

    Parameters
    ----------
    model
        A fitted classifier, or the path of one that `save_model` wrote.
    cells
        Cells x genes, as `annotate` takes them; AnnData, or a dataset name or path to read.
    groupby
        `obs` column that defines the classes of the class tables; the predicted class when left out. Contributions are
        to the predicted class either way.
    layer
        As in `annotate`.
    batch_size
        Cells explained at once.
    steps
        Keep the mask of each decision step as well.
    backed
        Of a path: leave the matrix of an `.h5ad` or `.zarr` on disk and read blocks of cells as they are needed. True,
        False, or ``"auto"``, when the file is larger than a tenth of the memory.
    species
        As in `annotate`.

    Raises
    ------
    GeneError, DataError, UnknownNameError, SettingError
        As `annotate` raises them, and if there is no column `groupby`.
    """
    model = fitted_model(model)
    if not isinstance(cells, ad.AnnData):
        cells, layer = open_cells(cells, layer, backed)
    if groupby is not None and groupby not in cells.obs:
        raise UnknownNameError("obs column", groupby, cells.obs.columns)
    options = dict(layer=layer, batch_size=batch_size, species=species, trained_on=scales_of(model))
    batches, _, _ = query_batches(cells, model.genes, **options)
    batches = progress_bar(batches, desc="explaining", unit="batch")
    masks, added, predicted, by_step = explain_batches(model, batches, keep_steps=steps)
    predicted = np.asarray(model.classes)[predicted]
    labels = predicted if groupby is None else label_text(cells.obs[groupby]).fillna("(no label)").to_numpy(str)
    gene_names = pd.Index(model.genes, name="gene")
    return Explanation(
        cells=masks,
        contributions=added,
        classes=mean_by_class(masks, labels, gene_names),
        class_contributions=mean_by_class(added, labels, gene_names),
        genes=_overall(masks, added, gene_names),
        cell_names=cells.obs_names,
        gene_names=gene_names,
        labels=labels,
        predicted=predicted,
        steps=by_step,
        species=species,
    )


@plain_torch()
def explain_cell(
    model: SIMSClassifier | str | os.PathLike, cells: ad.AnnData, name: str, *, layer: str | None = None
) -> CellExplanation:
    """Why one cell was called what it was called, and what spoke for the runner-up.

    Parameters
    ----------
    model, cells, layer
        As in `explain`.
    name
        Of the cell, in ``cells.obs_names``.

    Raises
    ------
    GeneError, DataError, UnknownNameError, SettingError
        As `explain` raises them, and if there is no cell of that name.
    """
    model = fitted_model(model)
    options = dict(layer=layer, trained_on=scales_of(model), cells=[_position(name, cells.obs_names)])
    batches, _, _ = query_batches(cells, model.genes, **options)
    (batch,) = batches
    model.eval()
    values = batch.cells.to(model.device)
    explained = explain_batch(model.network, values, adjustment=model.logit_adjustment)
    best, second = explained.logits[0].topk(2).indices.tolist()
    versus = torch.zeros_like(explained.logits)
    versus[0, best], versus[0, second] = 1, -1
    against = csr(explain_batch(model.network, values, versus).contributions)
    genes = pd.Index(model.genes, name="gene")
    table = _genes_of_cell(csr(explained.masks), csr(explained.contributions), genes)
    places = genes.get_indexer(table.index)
    table["against_second"] = against[:, places].toarray()[0]
    table["expression"] = values.to_dense()[0].cpu().numpy()[places]
    probabilities = model.calibrated(explained.logits)[0].softmax(0).tolist()
    return CellExplanation(
        model.classes[best], model.classes[second], probabilities[best], probabilities[second], table
    )


def _position(name: str, cell_names: pd.Index) -> int:
    """Where the cell of this name is; `DataError` when several cells have it."""
    found = np.flatnonzero(cell_names == name)
    if not len(found):
        raise UnknownNameError("cell", name, cell_names[:1000])
    if len(found) > 1:
        raise DataError(
            f"{len(found)} cells are called {name!r}, at positions {', '.join(map(str, found[:5]))}. Make the names "
            "unique first: adata.obs_names_make_unique()"
        )
    return int(found[0])


def _genes_of_cell(masks: sparse.csr_matrix, added: sparse.csr_matrix, gene_names: pd.Index) -> pd.DataFrame:
    """Weight and contribution of the genes of a single row, largest contribution first."""
    table = pd.DataFrame({"weight": masks.data, "contribution": added.data}, gene_names[masks.indices])
    return table.sort_values(["contribution", "weight"], ascending=False, kind="stable")


def mean_by_class(rows: sparse.csr_matrix, labels: Sequence[str], gene_names: pd.Index) -> pd.DataFrame:
    """Means of the rows of each class, (classes, genes), classes in alphabetical order."""
    classes, codes = np.unique(labels, return_inverse=True)
    sums = np.zeros((len(classes), rows.shape[1]))
    for start in range(0, len(codes), PART):  # in parts, as scipy would make a copy of all rows in float64
        some = codes[start : start + PART]
        membership = sparse.csr_matrix((np.ones(len(some)), (some, np.arange(len(some)))), (len(classes), len(some)))
        sums += membership @ rows[start : start + PART]
    means = sums / np.bincount(codes)[:, None]
    return pd.DataFrame(means, pd.Index(classes, name="class"), gene_names)


def _overall(masks: sparse.csr_matrix, added: sparse.csr_matrix, gene_names: pd.Index) -> pd.DataFrame:
    sums = np.zeros((3, len(gene_names)))
    for start in range(0, masks.shape[0], PART):
        weights, sizes = masks[start : start + PART], abs(added[start : start + PART])
        for total, values in zip(sums, (weights.data, weights.data > 0, sizes.data), strict=True):
            total += np.bincount(weights.indices, values, len(gene_names))
    sums = dict(zip(("weight", "cells", "contribution"), sums, strict=True))
    table = pd.DataFrame(sums, gene_names) / masks.shape[0]
    return table.sort_values("weight", ascending=False, kind="stable")


def _scanpy_ranking(table: pd.DataFrame, groupby: str) -> dict:
    """Genes of each class by falling value, as `scanpy.tl.rank_genes_groups` with ``method="logreg"`` stores them."""
    names, scores = {}, {}
    for label, values in table.iterrows():
        falling = values.sort_values(ascending=False, kind="stable")
        names[label], scores[label] = falling.index.to_numpy(dtype=object), falling.to_numpy(np.float32)
    return {
        "params": {"groupby": groupby, "reference": "rest", "method": "logreg", "use_raw": False},
        "names": pd.DataFrame(names).to_records(index=False),
        "scores": pd.DataFrame(scores).to_records(index=False),
    }

"""Explanation: which genes a model used, per cell, per class and overall (thesis sections 0.2.6 and 0.3.3)."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import anndata as ad
import numpy as np
import pandas as pd
import torch
from scipy import sparse

from sims_kit.annotation import Cells, Model, on_device, scales_of
from sims_kit.cells.genes import align_genes, gene_rows
from sims_kit.cells.loaders import query_batches
from sims_kit.cells.matrix import open_cells
from sims_kit.errors import DataError, UnknownNameError
from sims_kit.model.contributions import csr, explain_batch, explain_batches
from sims_kit.model.file import fitted_model
from sims_kit.model.trainer import plain_torch
from sims_kit.progress import progress_bar
from sims_kit.text import label_text

PART = 4096  # cells summed at once: scipy would copy all rows to float64


@dataclass(frozen=True)
class Explanation:
    """Genes that a model used: where it looked (masks), and by how much each gene changed a logit (contributions).

    Attributes
    ----------
    cells
        CSR, cells x genes of the model: aggregated masks, each row summing to one (or all zero for a cell whose
        decision used no gene). Row i is the cell `cell_names[i]`, column j the gene `gene_names[j]`.
    contributions
        CSR of the same shape: what each gene adds to the logit of the cell's predicted class, against the mean of all
        classes, of either sign. Of an ensemble, the mean over its networks.
    classes, class_contributions
        DataFrames, classes x genes: means of the rows of `cells` and of `contributions` over the cells of each class.
    genes
        DataFrame, one row per gene, most used first: `weight`, the mean mask weight over all cells (sums to one),
        `cells`, the share of cells that use the gene at all, and `contribution`, the mean size of its contributions.
    labels, predicted
        The class of each cell by which the class tables are grouped, and the class that the model gives it.
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
    species: str | None = None

    def _repr_html_(self) -> str:
        """The size, and the first genes of each class, as notebooks show it."""
        n_cells, n_genes = self.cells.shape
        text = f"Explanation of {n_cells:,} cells, {self.cells.nnz / n_cells:,.0f} of {n_genes:,} genes used per cell"
        return f"<p>{text}; by contribution:</p>{self.top_genes(5).T.to_html()}"

    def cell(self, name: str) -> pd.DataFrame:
        """The genes used for one cell, with `weight` and `contribution`, largest contribution first."""
        row = _position(name, self.cell_names)
        return _genes_of_cell(self.cells[[row]], self.contributions[[row]], self.gene_names)

    def top_genes(self, n: int = 10, *, by: str = "contribution") -> pd.DataFrame:
        """The `n` first genes of each class: a DataFrame, ranks x classes.

        By mean ``"contribution"``, which tells the markers of a class from other genes the model looks at, or by mean
        mask ``"weight"``.
        """
        tables = {"contribution": self.class_contributions, "weight": self.classes}
        if by not in tables:
            raise UnknownNameError("ranking", by, tables)
        names = {label: values.nlargest(n).index for label, values in tables[by].iterrows()}
        return pd.DataFrame(names, index=pd.RangeIndex(1, n + 1, name="rank"))

    def add_to(self, adata: ad.AnnData, *, key_added: str = "sims") -> None:
        """Write the results into the AnnData that was explained, where scanpy's plots find them.

        - ``layers["sims_masks"]``, ``layers["sims_contributions"]``: sparse, cells x genes of `adata`; genes that the
          model does not know are zero.
        - ``varm["sims_class_masks"]``, ``varm["sims_class_contributions"]``: genes x classes; the classes are in
          ``uns["sims_kit"]["sims"]["explained_classes"]``.
        - ``uns["rank_genes_sims"]``: genes by contribution in the layout of `scanpy.tl.rank_genes_groups`, without
          p-values, for ``sc.pl.rank_genes_groups(adata, key="rank_genes_sims")`` and ``sc.get.rank_genes_groups_df``.
        - ``obs["sims_explained"]``: the classes by which cells were grouped, categorical.
        """
        if list(adata.obs_names) != list(self.cell_names):
            sizes = f"adata has {adata.n_obs} cells, the explanation {len(self.cell_names)}, or in another order"
            raise DataError(f"{sizes}; pass the AnnData that was explained.")
        with warnings.catch_warnings():  # given already when the cells were explained
            warnings.simplefilter("ignore")
            rows = np.flatnonzero(gene_rows(adata.var))
            places = align_genes(adata.var.iloc[rows], self.gene_names, species=self.species).places()
        found = np.flatnonzero(places >= 0)
        parts = np.ones(len(found), np.float32), (found, rows[places[found]])
        known = sparse.csr_matrix(parts, shape=(len(places), adata.n_vars))  # genes of the model x genes of adata
        adata.layers[f"{key_added}_masks"] = self.cells @ known
        adata.layers[f"{key_added}_contributions"] = self.contributions @ known
        adata.varm[f"{key_added}_class_masks"] = (self.classes.to_numpy() @ known).T
        adata.varm[f"{key_added}_class_contributions"] = (self.class_contributions.to_numpy() @ known).T
        adata.obs[f"{key_added}_explained"] = pd.Categorical(self.labels, self.classes.index)
        notes = adata.uns.get("sims_kit", {})
        own = {**notes.get(key_added, {}), "explained_classes": list(self.classes.index)}
        adata.uns["sims_kit"] = {**notes, key_added: own}
        adata.uns[f"rank_genes_{key_added}"] = _scanpy_ranking(self.class_contributions, f"{key_added}_explained")


@dataclass(frozen=True)
class CellExplanation:
    """The genes behind the label of one cell.

    `label` is the most probable class and `second_label` the runner-up. `genes` has a row per gene that the masks pass,
    largest `contribution` first: `weight` in the masks, `contribution` to the logit of `label` against the mean of all
    classes, `against_second`, the same against `second_label` alone, and `expression`, log-normalised.
    """

    label: str
    second_label: str
    probability: float
    second_probability: float
    genes: pd.DataFrame


@plain_torch()
def explain(
    model: Model,
    cells: Cells,
    *,
    groupby: str | None = None,
    layer: str | None = None,
    batch_size: int = 512,
    backed: bool | str = "auto",
    species: str | None = None,
    device: str | torch.device | None = None,
) -> Explanation:
    """Return which genes the model looks at and what they contribute, for each cell, each class and overall.

    A cell's masks are summed over the steps, each weighted by its share in the decision (section 3.4 of the TabNet
    paper), and divided by their sum. Contributions: `sims_kit.model.contributions`. Memory grows with the nonzero
    weights, 12 bytes for each.

    Parameters
    ----------
    model, cells, layer, backed, species, device, batch_size
        As in `annotate`.
    groupby
        `obs` column that the class tables group by, in place of the predicted class. Contributions are to the predicted
        class either way.

    Examples
    --------
    >>> explanation = sk.explain(model, query)
    >>> explanation.top_genes(5)  # of each class
    >>> explanation.add_to(query)
    >>> sc.pl.rank_genes_groups_dotplot(query, key="rank_genes_sims", n_genes=3)
    """
    model = fitted_model(model)
    if not isinstance(cells, ad.AnnData):
        cells, layer = open_cells(cells, layer, backed)
    if groupby is not None and groupby not in cells.obs:
        raise UnknownNameError("obs column", groupby, cells.obs.columns)
    options = dict(layer=layer, batch_size=batch_size, species=species, trained_on=scales_of(model))
    batches, _, _ = query_batches(cells, model.genes, **options)
    with on_device(model, device):
        batches = progress_bar(batches, desc="explaining", unit="batch")
        masks, contributions, predicted = explain_batches(model, batches)
    predicted = np.asarray(model.classes)[predicted]
    labels = predicted if groupby is None else label_text(cells.obs[groupby]).fillna("(no label)").to_numpy(str)
    gene_names = pd.Index(model.genes, name="gene")
    return Explanation(
        cells=masks,
        contributions=contributions,
        classes=mean_by_class(masks, labels, gene_names),
        class_contributions=mean_by_class(contributions, labels, gene_names),
        genes=_overall(masks, contributions, gene_names),
        cell_names=cells.obs_names,
        gene_names=gene_names,
        labels=labels,
        predicted=predicted,
        species=species,
    )


@plain_torch()
def explain_cell(model: Model, cells: ad.AnnData, name: str, *, layer: str | None = None) -> CellExplanation:
    """Return the genes behind the label of one cell, and those that favour its label over the runner-up.

    `name` is that of the cell in ``cells.obs_names``; other arguments are those of `explain`.

    Examples
    --------
    >>> why = sk.explain_cell(model, query, query.obs_names[0])
    >>> why.label, why.second_label, why.genes.head()
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
        places = ", ".join(map(str, found[:5]))
        raise DataError(f"{len(found)} cells are called {name!r}, at positions {places}: adata.obs_names_make_unique()")
    return int(found[0])


def _genes_of_cell(masks: sparse.csr_matrix, contributions: sparse.csr_matrix, gene_names: pd.Index) -> pd.DataFrame:
    """Weight and contribution of the genes of a single row, largest contribution first."""
    table = pd.DataFrame({"weight": masks.data, "contribution": contributions.data}, gene_names[masks.indices])
    return table.sort_values(["contribution", "weight"], ascending=False, kind="stable")


def mean_by_class(rows: sparse.csr_matrix, labels: Sequence[str], gene_names: pd.Index) -> pd.DataFrame:
    """Means of the rows of each class, (classes, genes), classes in alphabetical order."""
    classes, codes = np.unique(labels, return_inverse=True)
    sums = np.zeros((len(classes), rows.shape[1]))
    for start in range(0, len(codes), PART):
        some = codes[start : start + PART]
        membership = sparse.csr_matrix((np.ones(len(some)), (some, np.arange(len(some)))), (len(classes), len(some)))
        sums += membership @ rows[start : start + PART]
    means = sums / np.bincount(codes)[:, None]
    return pd.DataFrame(means, pd.Index(classes, name="class"), gene_names)


def _overall(masks: sparse.csr_matrix, contributions: sparse.csr_matrix, gene_names: pd.Index) -> pd.DataFrame:
    sums = np.zeros((3, len(gene_names)))
    for start in range(0, masks.shape[0], PART):
        weights, sizes = masks[start : start + PART], abs(contributions[start : start + PART])
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

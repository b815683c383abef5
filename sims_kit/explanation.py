"""Explanation: which genes a model used, per cell, per class and overall (thesis sections 0.2.6 and 0.3.3)."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import anndata as ad
import numpy as np
import pandas as pd
import torch
from scipy import sparse

from sims_kit.annotation import Cells, Model, add_notes, batches_for, check_key, on_device
from sims_kit.cells.genes import align_genes, gene_rows
from sims_kit.cells.matrix import open_cells
from sims_kit.errors import DataError, UnknownNameError
from sims_kit.model.contributions import csr, explain_batch, explain_batches
from sims_kit.model.file import fitted_model
from sims_kit.model.trainer import plain_torch
from sims_kit.progress import progress_bar
from sims_kit.text import label_text, printable

PART = 4096  # cells summed at once: scipy would copy all rows to float64


@dataclass(frozen=True)
class Explanation:
    """Genes that a model used: where it looked (masks), and by how much each gene changed a logit (contributions).

    Masks and contributions are sparse, cells x genes of the model. Class tables, classes x genes, are means over the
    cells of each class. `genes` has a row per gene, most used first: `weight`, the mean mask over all cells (sums to
    one), `cells`, the share of cells that use the gene, and `contribution`, the mean size of its contributions.
    """

    cells: sparse.csr_matrix  # aggregated masks; rows sum to one, or are zero where the decision used no gene
    contributions: sparse.csr_matrix  # to the logit of the predicted class against the mean of all, of either sign
    classes: pd.DataFrame  # means of `cells`
    class_contributions: pd.DataFrame  # means of `contributions`
    genes: pd.DataFrame
    cell_names: pd.Index  # of the rows
    gene_names: pd.Index  # of the columns
    labels: np.ndarray  # by which the class tables are grouped
    predicted: np.ndarray  # the class that the model gives each cell
    species: str | None = None  # as given to `explain`

    def __repr__(self) -> str:
        n_cells, n_genes = self.cells.shape
        used = f"{self.cells.nnz / n_cells:,.0f} of {n_genes:,} genes used per cell"
        title = f"Explanation of {n_cells:,} cells, {used}; by contribution:"
        return printable(f"{title}\n{self.top_genes(5).T}", keep="\n")

    def _repr_html_(self) -> str:
        title, table = repr(self).partition("\n")[0], self.top_genes(5).T.to_html(max_rows=60)
        return printable(f"<p>{title}</p>{table}", keep="\n")

    def cell(self, name: str) -> pd.DataFrame:
        """Return the genes used for one cell, with `weight` and `contribution`, largest contribution first."""
        row = _position(name, self.cell_names)
        return _genes_of_cell(self.cells[[row]], self.contributions[[row]], self.gene_names)

    def top_genes(self, n: int = 10, *, by: str = "contribution") -> pd.DataFrame:
        """Return the `n` first genes of each class, ranks x classes, by mean ``"contribution"`` or mask ``"weight"``.

        Contributions tell the markers of a class from other genes that the model looks at; unused genes have no rank.
        """
        tables = {"contribution": self.class_contributions, "weight": self.classes}
        if by not in tables:
            raise UnknownNameError("ranking", by, tables)
        n = min(n, len(used := np.flatnonzero(self.contributions.getnnz(axis=0))))
        names = {label: values.iloc[used].nlargest(n).index for label, values in tables[by].iterrows()}
        return pd.DataFrame(names, index=pd.RangeIndex(1, n + 1, name="rank"))

    def add_to(self, adata: ad.AnnData, *, key_added: str = "sims") -> None:
        """Write the results into the AnnData that was explained, where scanpy's plots find them.

        ``layers`` gain ``sims_masks`` and ``sims_contributions``, zero for genes that the model does not know; ``varm``
        their means, ``sims_class_masks`` and ``sims_class_contributions``, genes x classes of
        ``uns["sims_kit"]["sims"]["explained_classes"]``; ``uns["rank_genes_sims"]`` the genes by contribution, without
        p-values, for ``sc.pl.rank_genes_groups``; and ``obs["sims_explained"]`` the classes by which cells are grouped.

        >>> explanation.add_to(query)
        >>> sc.pl.rank_genes_groups_dotplot(query, key="rank_genes_sims", n_genes=3)
        """
        check_key(key_added, adata)
        if list(adata.obs_names) != list(self.cell_names):
            sizes = f"adata has {adata.n_obs} cells, the explanation {len(self.cell_names)}, or in another order"
            raise DataError(f"{sizes}; pass the AnnData that was explained.")
        used, rows = np.flatnonzero(self.contributions.getnnz(axis=0)), np.flatnonzero(gene_rows(adata.var))
        with warnings.catch_warnings(action="ignore"):  # given already when the cells were explained
            places = align_genes(adata.var.iloc[rows], self.gene_names, species=self.species, read=used).places
        classes, values = self.classes.index, self.class_contributions.to_numpy()
        found = np.flatnonzero(places >= 0)
        parts = np.ones(len(found), np.float32), (found, rows[places[found]])
        known = sparse.csr_matrix(parts, shape=(len(places), adata.n_vars))  # genes of the model x genes of adata
        adata.layers[f"{key_added}_masks"] = self.cells @ known
        adata.layers[f"{key_added}_contributions"] = self.contributions @ known
        adata.varm[f"{key_added}_class_masks"] = (self.classes.to_numpy() @ known).T
        adata.varm[f"{key_added}_class_contributions"] = (values @ known).T
        adata.obs[f"{key_added}_explained"] = pd.Categorical(self.labels, classes)
        add_notes(adata, key_added, explained_classes=list(classes))
        order = used[np.argsort(-values[:, used], axis=1, kind="stable")]  # equal ones as genes come
        ranked = self.gene_names.to_numpy(object)[order], np.take_along_axis(values, order, axis=1).astype(np.float32)
        names, scores = (pd.DataFrame(table.T, columns=classes).to_records(index=False) for table in ranked)
        # "logreg" has neither p-values nor fold changes
        params = dict(groupby=f"{key_added}_explained", reference="rest", method="logreg", use_raw=False)
        adata.uns[f"rank_genes_{key_added}"] = {"params": params, "names": names, "scores": scores}


@dataclass(frozen=True)
class CellExplanation:
    """The genes behind the label of one cell.

    `genes` has a row per gene that contributes, largest `contribution` first: `weight` in the masks, `contribution`
    to the logit of `label` against the mean of all classes, `against_second`, the same against `second_label` alone,
    and `expression`, log-normalised.
    """

    label: str  # the most probable class
    second_label: str  # the runner-up
    probability: float
    second_probability: float
    genes: pd.DataFrame

    def __repr__(self) -> str:
        runner_up = f"{self.second_label} ({self.second_probability:.1%})"
        title = f"{self.label} ({self.probability:.1%}) rather than {runner_up}; the first of {len(self.genes)} genes:"
        return printable(f"{title}\n{self.genes.head(10).round(3)}", keep="\n")


@plain_torch()
def explain(
    model: Model,
    cells: Cells,
    *,
    groupby: str | None = None,
    networks_only: bool = False,
    layer: str | None = None,
    batch_size: int = 512,
    backed: bool | str = "auto",
    species: str | None = None,
    device: str | torch.device | None = None,
) -> Explanation:
    """Return which genes the model looks at and what they contribute, for each cell, each class and overall.

    A cell's masks are summed over the steps, each weighted by its share in the decision (section 3.4 of the TabNet
    paper), and divided by their sum. Each nonzero weight takes 12 bytes. `groupby` names an `obs` column for the class
    tables; contributions are to the predicted class either way. `networks_only` leaves out the linear classifiers that
    take part in the answer of the default recipe. Other arguments are as in `annotate`.

    >>> explanation = sk.explain(model, query)
    >>> explanation.top_genes(5)  # of each class
    """
    model, (cells, layer) = fitted_model(model), open_cells(cells, layer, backed)
    if groupby is not None and groupby not in cells.obs:
        raise UnknownNameError("obs column", groupby, cells.obs.columns)
    batches, _, _ = batches_for(model, cells, layer=layer, batch_size=batch_size, species=species)
    with on_device(model, device):
        bar, share = progress_bar(batches, desc="explaining", unit="batch"), 0 if networks_only else model.linear_share
        masks, contributions, best = explain_batches(model, bar, share)
    predicted = np.asarray(model.classes)[best]
    labels = predicted if groupby is None else label_text(cells.obs[groupby]).fillna("(no label)").to_numpy(str)
    gene_names = pd.Index(model.genes, name="gene")
    classes, codes = np.unique(labels, return_inverse=True)
    of_classes = dict(index=pd.Index(classes, name="class"), columns=gene_names)
    mean_masks, together = _means(masks, codes), np.zeros_like(codes)
    genes = {
        "weight": np.average(mean_masks, axis=0, weights=np.bincount(codes)),
        "cells": _means(masks, together, lambda values: values > 0)[0],
        "contribution": _means(contributions, together, abs)[0],
    }
    return Explanation(
        cells=masks,
        contributions=contributions,
        classes=pd.DataFrame(mean_masks, **of_classes),
        class_contributions=pd.DataFrame(_means(contributions, codes), **of_classes),
        genes=pd.DataFrame(genes, gene_names).sort_values("weight", ascending=False, kind="stable"),
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

    >>> why = sk.explain_cell(model, query, query.obs_names[0])
    >>> why.label, why.second_label, why.genes.head()
    """
    model = fitted_model(model)
    (batch,), _, _ = batches_for(model, cells, layer=layer, cells=[_position(name, cells.obs_names)])
    model.eval()
    values = batch.cells.to(model.device)
    linear = model.novelty, model.linear_share
    explained = explain_batch(model.network, values, None, model.logit_adjustment, *linear)
    best, second = explained.logits[0].topk(2).indices.tolist()
    versus = torch.zeros_like(explained.logits)
    versus[0, best], versus[0, second] = 1, -1
    against = csr(explain_batch(model.network, values, versus, 0.0, *linear).contributions)
    genes = pd.Index(model.genes, name="gene")
    table = _genes_of_cell(csr(explained.masks), csr(explained.contributions), genes)
    places = genes.get_indexer(table.index)
    table["against_second"] = against.toarray()[0][places]
    table["expression"] = values.to_dense()[0].cpu().numpy()[places]
    p = model.calibrated(explained.logits)[0].softmax(0).tolist()
    return CellExplanation(model.classes[best], model.classes[second], p[best], p[second], table)


def _position(name: str, cell_names: pd.Index) -> int:
    """Where the cell of this name is; `DataError` when several cells have it."""
    found = np.flatnonzero(cell_names == name)
    if not len(found):
        raise UnknownNameError("cell", name, cell_names[:1000])
    if len(found) > 1:
        raise DataError(f"{len(found)} cells are called {name!r}: call adata.obs_names_make_unique() first.")
    return int(found[0])


def _genes_of_cell(masks: sparse.csr_matrix, contributions: sparse.csr_matrix, gene_names: pd.Index) -> pd.DataFrame:
    """Weight and contribution of the genes of a single row, largest contribution first."""
    weights, places = masks.toarray()[0], contributions.indices  # masks pass some of the genes that contribute
    table = pd.DataFrame({"weight": weights[places], "contribution": contributions.data}, gene_names[places])
    return table.sort_values(["contribution", "weight"], ascending=False, kind="stable")


def _means(rows: sparse.csr_matrix, codes: np.ndarray, change: Callable = lambda values: values) -> np.ndarray:
    """Means of the rows of each class, (classes, genes) float64; `change` is applied to the values before."""
    sums = np.zeros((codes.max() + 1, rows.shape[1]))
    for start in range(0, len(codes), PART):
        some = codes[start : start + PART]
        membership = sparse.csr_matrix((np.ones(len(some)), (some, np.arange(len(some)))), (len(sums), len(some)))
        sums += (membership @ change(rows[start : start + PART])).toarray()
    return sums / np.bincount(codes)[:, None]

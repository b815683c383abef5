"""Annotation: a model and unlabelled cells in, labels with confidence out."""

import os
import warnings
from collections.abc import Mapping

import anndata as ad
import numpy as np
import pandas as pd
import torch

from sims_kit.cells.batches import query_batches
from sims_kit.cells.genes import GeneCoverage, align_genes
from sims_kit.cells.matrix import cell_matrix
from sims_kit.datasets import load
from sims_kit.model.classifier import SIMSClassifier
from sims_kit.model.file import fitted_model
from sims_kit.progress import progress_bar


def annotate(
    query: ad.AnnData | str | os.PathLike,
    model: SIMSClassifier | str | os.PathLike,
    *,
    key_added: str = "sims",
    layer: str | None = None,
    batch_size: int = 1024,
    copy: bool = False,
) -> ad.AnnData | None:
    """Label every cell of a query.

    Genes are aligned to the model's, counts are normalised as in training; the query's matrix stays as it is.

    Parameters
    ----------
    query
        Cells x genes, counts or log-normalised, of any gene set; AnnData, or a dataset name or path to read.
    model
        A fitted classifier, or the path of one that `save_model` wrote.
    key_added
        Prefix of what is added.
    layer
        Where the matrix is: None for `X`, ``"raw"``, or the name of a layer.
    batch_size
        Cells predicted at once.
    copy
        Return an annotated copy and leave `query` alone.

    Returns
    -------
    AnnData or None
        The annotated copy with ``copy=True`` or when `query` was read here; otherwise None, and `query` gained:

        ``obs["sims_label"]``
            The most probable class, categorical.
        ``obs["sims_confidence"]``
            Its probability: the full softmax over all classes, at the temperature fitted on the validation cells.
        ``obs["sims_second_label"]``
            The runner-up.
        ``obsm["sims_probabilities"]``
            float32, cells x classes, rows sum to one; the classes are in ``uns["sims_kit"]["sims"]["classes"]``.
        ``uns["sims_kit"]["sims"]``
            Classes, matrix state, gene coverage and what the model was trained on.

    Raises
    ------
    GeneError
        If less than a fifth of the model's genes are in the query. A warning follows below four fifths.
    DataError
        If the matrix is scaled or turned, or holds NaN, infinite or negative values, or has no cells.
    UnknownNameError
        If there is no such layer.
    SettingError
        If the model was not fitted, or `batch_size` is less than 1.
    """
    model = fitted_model(model)
    if not isinstance(query, ad.AnnData):
        query, copy = load(query), True
    elif copy:
        query = query.copy()
    batches, coverage, state = query_batches(query, model.genes, layer=layer, batch_size=batch_size)
    probabilities = predict_probabilities(model, batches)
    order = np.argsort(-probabilities, axis=1, kind="stable")
    query.obs[f"{key_added}_label"] = pd.Categorical.from_codes(order[:, 0], model.classes)
    query.obs[f"{key_added}_confidence"] = np.take_along_axis(probabilities, order[:, :1], axis=1).ravel()
    query.obs[f"{key_added}_second_label"] = pd.Categorical.from_codes(order[:, 1], model.classes)
    query.obsm[f"{key_added}_probabilities"] = probabilities
    query.uns["sims_kit"] = {
        **(query.uns["sims_kit"] if isinstance(query.uns.get("sims_kit"), Mapping) else {}),
        key_added: {
            "classes": list(model.classes),
            "state": state,
            "genes_matched": coverage.n_matched,
            "genes_of_model": coverage.n_model,
            "trained_on": str(model.provenance.get("files", "")),
        },
    }
    return query if copy else None


def gene_coverage(
    query: ad.AnnData | str | os.PathLike, model: SIMSClassifier | str | os.PathLike, *, layer: str | None = None
) -> GeneCoverage:
    """How many of the model's genes a query has, before anything is predicted; `print` gives the report.

    Parameters
    ----------
    query, model, layer
        As in `annotate`, which aligns the genes in the same way.

    Raises
    ------
    GeneError, DataError, UnknownNameError, SettingError
        As `annotate` raises them.
    """
    model = fitted_model(model)
    query = query if isinstance(query, ad.AnnData) else load(query)
    _, var = cell_matrix(query, layer)
    with warnings.catch_warnings():  # the report says it
        warnings.filterwarnings("ignore", "Only .* genes found")
        return align_genes(var, model.genes, query.obs_names).coverage


@torch.no_grad()
def predict_probabilities(model: SIMSClassifier, batches) -> np.ndarray:
    """Class probabilities of batches of cells: float32, cells x classes, rows sum to one."""
    model.eval()
    parts = [
        model.probabilities(batch.cells.to(model.device)).cpu()
        for batch in progress_bar(batches, desc="annotating", unit="batch")
    ]
    return torch.cat(parts).numpy()

"""Annotation: a model and unlabelled cells in, labels with confidence out."""

import math
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import torch

from sims_kit.calibration import (
    UNKNOWN,
    CalibrationCells,
    back_off,
    cluster_vote,
    conformal_quantiles,
    prediction_sets,
    rejection_threshold,
    strangeness,
)
from sims_kit.calibration.answers import check_hierarchy, check_no_unknown
from sims_kit.cells.genes import GeneCoverage
from sims_kit.cells.loaders import query_batches
from sims_kit.cells.matrix import Expression, open_cells
from sims_kit.errors import LabelError, SettingError, UnknownNameError
from sims_kit.files import make_folder, written_whole
from sims_kit.model.classifier import SIMSClassifier
from sims_kit.model.file import fitted_model
from sims_kit.model.halving import predict_in_parts
from sims_kit.model.trainer import plain_torch
from sims_kit.progress import progress_bar
from sims_kit.text import label_text

ERROR_RATE = 0.05  # accepted among answered cells where a hierarchy is given and no rate
SEPARATOR = " | "  # between the classes of a set
WRITTEN = {  # by `annotate` and by `Explanation.add_to`, behind the key
    "obs": "label confidence second_label unseen set vote vote_proportion explained",
    "obsm": "probabilities sets",
    "layers": "masks contributions",
    "varm": "class_masks class_contributions",
}


@plain_torch()
def annotate(
    query: ad.AnnData | str | os.PathLike,
    model: SIMSClassifier | str | os.PathLike,
    *,
    key_added: str = "sims",
    layer: str | None = None,
    batch_size: int = 1024,
    reject: float | None = None,
    hierarchy: Mapping[str, str] | None = None,
    alpha: float | None = None,
    vote_by: str | None = None,
    backed: bool | str = "auto",
    species: str | None = None,
    copy: bool = False,
    out: str | os.PathLike | None = None,
) -> ad.AnnData | None:
    """Label every cell of a query.

    Genes are aligned to the model's; the scale of the values is recognised (`sims_kit.cells.matrix.detect_scale`) and
    brought to that of training; the query's matrix stays as it is. What `reject`, `hierarchy` and `alpha` promise was
    measured on the model's validation cells; it holds for queries of the same tissue, protocol and cell types.

    Parameters
    ----------
    query
        Cells x genes of any gene set, counts or a known transform of them; AnnData, or a dataset name or path to read.
    model
        A fitted classifier, or the path of one that `save_model` wrote.
    key_added
        Prefix of what is added.
    layer
        Where the matrix is: None for `X`, the name of a layer, or ``"raw"`` for `query.raw`.
    batch_size
        Cells predicted at once; halved, with a warning, where a GPU's memory is too small.
    reject
        Share of errors that you accept among labelled cells, such as 0.05: cells whose confidence is too low for that
        are labelled ``"Unknown"`` (`sims_kit.calibration.rejection_threshold`). None labels every cell.
    hierarchy
        Child to parent, ``{"CD4 T": "T cell", "CD8 T": "T cell"}``, in as many levels as you like: a cell that `reject`
        (by default 0.05) would leave unlabelled gets the finest parent whose probability reaches the same threshold.
    alpha
        Adds the set of classes that each cell may be, which misses the true class in this share of the cells, of each
        class that has enough validation cells (9 for 0.1, 19 for 0.05; `sims_kit.calibration.conformal_quantiles`).
    vote_by
        An `obs` column with clusters, such as ``"leiden"``: adds the most frequent label of each cell's cluster.
    backed
        Of a path: leave the matrix of an `.h5ad` or `.zarr` on disk and read blocks of cells as they are needed. True,
        False, or ``"auto"``, when the file is larger than a tenth of the memory. The answer has `X` still
        in the file, and of the file's other parts `obs` and `var`.
    species
        Of the query's genes, ``"human"`` or ``"mouse"``, when the model's genes are those of the other species: genes
        are then matched by one-to-one orthologs.
    copy
        Return an annotated copy and leave `query` alone.
    out
        An ``.h5ad`` file to write the annotated cells to. A file that `query` was read from is never touched.

    Returns
    -------
    AnnData or None
        The annotated copy with ``copy=True`` or when `query` was read here; otherwise None, and `query` gained:

        ``obs["sims_label"]``
            The most probable class, categorical; or a parent, or ``"Unknown"``.
        ``obs["sims_confidence"]``
            Its probability: the full softmax over all classes, at the temperature fitted on the validation cells. Of an
            ``"Unknown"`` cell, the probability that was too low.
        ``obs["sims_second_label"]``
            The runner-up among the classes.
        ``obs["sims_unseen"]``
            How unlike every class the cell is, higher for types that the model never saw: standard deviations above
            the usual validation cell, in doubt or in expression (`sims_kit.model.novelty.Novelty`). It orders
            the cells of a query. Models of older files, and of no validation cells, have none.
        ``obs["sims_set"]``, ``obsm["sims_sets"]``
            With `alpha`: the classes of the set, the most probable first, as text (``"CD4 T | CD8 T"``; ``"Unknown"``
            where it is empty: the cell is like no class), and as bool, cells x classes.
        ``obs["sims_vote"]``, ``obs["sims_vote_proportion"]``
            With `vote_by`: the label of most cells of the cluster, and the share of the cluster's cells that have it.
        ``obsm["sims_probabilities"]``
            float32, cells x classes, rows sum to one; the classes are in ``uns["sims_kit"]["sims"]["classes"]``.
        ``uns["sims_kit"]["sims"]``
            Classes, scale of the matrix, gene coverage, what the model was trained on, and the threshold of `reject`.

    Raises
    ------
    GeneError
        If less than a fifth of the model's genes are in the query. A warning follows below four fifths.
    DataError
        If the matrix is scaled or turned, or holds NaN, infinite or negative values, or has no cells.
    UnknownNameError
        If there is no such layer or `obs` column, or the hierarchy has a name that is no class.
    SettingError
        If the model was not fitted or has no validation cells to decide by, these are too few for `alpha` or `reject`,
        the hierarchy runs in a circle, a number is out of range, or `out` is the query's own file.
    LabelError
        If a class is called ``"Unknown"`` and cells may have to be.
    """
    model = fitted_model(model)
    rules = _rules(model, reject, hierarchy, alpha)
    if "/" in key_added:
        raise SettingError(f"key_added={key_added!r}: give a name without a slash, which files could not hold.")
    out = out if out is None else _new_file(out, query)
    if not isinstance(query, ad.AnnData):
        (query, layer), copy = open_cells(query, layer, backed), True
    elif query.isbacked and query.is_view and not copy:
        raise SettingError("The query is a view of a backed AnnData, which cannot be written to: pass copy=True.")
    elif copy:
        query = query.to_memory() if query.isbacked else query.copy()
    if vote_by is not None and vote_by not in query.obs:
        raise UnknownNameError("obs column", vote_by, query.obs.columns)
    options = dict(layer=layer, batch_size=batch_size, species=species, trained_on=scales_of(model))
    batches, coverage, scale = query_batches(query, model.genes, **options)
    logits, unseen = predict_logits(model, progress_bar(batches, desc="annotating", unit="batch"))
    probabilities = logits.softmax(dim=1)
    first = probabilities.argmax(dim=1, keepdim=True)
    second = probabilities.scatter(1, first, -1).argmax(dim=1).numpy()
    probabilities, first = probabilities.numpy(), first[:, 0].numpy()
    labels, confidence = _labels(model, probabilities, first, rules.threshold, hierarchy)
    _remove_earlier(query, key_added)
    query.obs[f"{key_added}_label"] = labels
    query.obs[f"{key_added}_confidence"] = confidence
    query.obs[f"{key_added}_second_label"] = pd.Categorical.from_codes(second, _names(model.classes))
    if model.novelty.is_calibrated:
        query.obs[f"{key_added}_unseen"] = unseen.numpy()
    query.obsm[f"{key_added}_probabilities"] = probabilities
    if alpha is not None:
        sets = prediction_sets(strangeness(logits.numpy()), rules.quantiles)
        query.obs[f"{key_added}_set"] = _set_names(sets, probabilities, model.classes)
        query.obsm[f"{key_added}_sets"] = sets
    if vote_by is not None:
        vote = cluster_vote(labels, query.obs[vote_by])
        query.obs[f"{key_added}_vote"] = pd.Categorical(vote["label"], labels.categories)
        query.obs[f"{key_added}_vote_proportion"] = vote["proportion"].to_numpy()
    query.uns["sims_kit"] = {
        **(query.uns["sims_kit"] if isinstance(query.uns.get("sims_kit"), Mapping) else {}),
        key_added: {
            "classes": list(model.classes),
            "state": str(scale),
            "genes_matched": coverage.n_matched,
            "genes_of_model": coverage.n_model,
            "trained_on": str(model.provenance.get("files", "")),
            **({"threshold": rules.threshold} if rules.threshold is not None else {}),
        },
    }
    if out is not None:
        _write_h5ad(query, out)
    return query if copy else None


def gene_coverage(
    query: ad.AnnData | str | os.PathLike,
    model: SIMSClassifier | str | os.PathLike,
    *,
    layer: str | None = None,
    species: str | None = None,
) -> GeneCoverage:
    """How many of the model's genes a query has, before anything is predicted; `print` gives the report.

    Parameters
    ----------
    query, model, layer, species
        As in `annotate`, which aligns the genes in the same way.

    Raises
    ------
    GeneError, DataError, UnknownNameError, SettingError
        As `annotate` raises them.
    """
    model = fitted_model(model)
    if not isinstance(query, ad.AnnData):
        query, layer = open_cells(query, layer)
    with warnings.catch_warnings():  # the report says it
        warnings.filterwarnings("ignore", "Only .* genes found")
        return Expression(query, layer, name="The query's matrix").align(model.genes, query.obs_names, species)


@plain_torch()
def calibrate(model: SIMSClassifier, cells: ad.AnnData, label: str, *, layer: str | None = None) -> None:
    """Fit temperature, rejection and prediction sets of a model anew, on labelled cells that it did not learn from.

    For a model of an older file, or without validation cells; and for queries of another protocol than the reference,
    where some hundred labelled cells of the new protocol make confidences and promises true again. Predicted classes
    stay as they are.

    Parameters
    ----------
    model
        A fitted classifier; it is changed.
    cells
        Cells x genes, counts or log-normalised, as `annotate` takes them.
    label
        The `obs` column with the labels. Cells without a label, or of a class that the model does not know, are left
        out.
    layer
        As in `annotate`.

    Raises
    ------
    LabelError
        If no cell has a label that the model knows.
    UnknownNameError, GeneError, DataError, SettingError
        As `annotate` raises them.
    """
    model = fitted_model(model)
    if label not in cells.obs:
        raise UnknownNameError("obs column", label, cells.obs.columns)
    codes = pd.Index(model.classes).get_indexer(label_text(cells.obs[label]))
    if not (codes >= 0).any():
        raise LabelError(f"None of {len(codes):,} cells has a label in {label!r} that is a class of the model.")
    if (codes < 0).any():
        warnings.warn(f"{(codes < 0).sum():,} cells have no label that the model knows; left out.", stacklevel=2)
    options = dict(layer=layer, trained_on=scales_of(model), cells=np.flatnonzero(codes >= 0))
    batches, _, _ = query_batches(cells, model.genes, **options)
    model.eval()
    with torch.no_grad():
        on_device = (batch.cells.to(model.device) for batch in batches)
        parts = [(model(cells), model.novelty.distances(cells)) for cells in on_device]
    logits, unlike = (torch.cat(found) for found in zip(*parts, strict=True))
    model.calibrate(logits, torch.from_numpy(codes[codes >= 0]), unlike)


def scales_of(model: SIMSClassifier) -> list[str]:
    """The scales of the files that a model was trained on."""
    files = model.provenance.get("files")
    files = files if isinstance(files, list) else []
    return [str(file.get("state")) for file in files if isinstance(file, Mapping)]


def predict_probabilities(model: SIMSClassifier, batches) -> np.ndarray:
    """Class probabilities of batches of cells: float32, cells x classes, rows sum to one."""
    return predict_logits(model, batches)[0].softmax(dim=1).numpy()


@torch.no_grad()
def predict_logits(model: SIMSClassifier, batches) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of batches of cells at the model's temperature, (cells, classes), and unseen scores, (cells,); float32."""
    model.eval()

    def predict(cells: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = model.calibrated(model(cells))
        return logits.cpu(), model.novelty.scores(logits, model.novelty.distances(cells)).cpu()

    parts = predict_in_parts(predict, (batch.cells for batch in batches), model.device)
    return tuple(torch.cat(found) for found in zip(*parts, strict=True))


class _Rules(NamedTuple):
    """What decides beside the probabilities: the confidence to reach, and the strangeness that a set allows."""

    threshold: float | None
    quantiles: np.ndarray | None


def _rules(
    model: SIMSClassifier, reject: float | None, hierarchy: Mapping[str, str] | None, alpha: float | None
) -> _Rules:
    """From the validation cells; what cannot be promised is told before anything is predicted."""
    threshold, quantiles = None, None
    if hierarchy is not None:
        check_hierarchy(model.classes, hierarchy)
        reject = ERROR_RATE if reject is None else reject
    if reject is not None or alpha is not None:
        check_no_unknown(model.classes)
    if reject is not None:
        threshold = _threshold(_calibration_cells(model), reject)
    if alpha is not None:
        cells = _calibration_cells(model)
        quantiles = conformal_quantiles(cells.strangeness, cells.labels, len(model.classes), alpha)
    return _Rules(threshold, quantiles)


def _calibration_cells(model: SIMSClassifier) -> CalibrationCells:
    if model.calibration_cells is None:
        raise SettingError(
            "The model has no validation cells to decide by: it was trained without (validation=0), or comes from a "
            "file of an older version. Train it with some, or call calibrate(model, cells, label) on labelled cells "
            "that it did not learn from. Without reject, alpha and hierarchy it annotates as it is."
        )
    return model.calibration_cells


def _threshold(cells: CalibrationCells, error_rate: float) -> float:
    if not 0 < error_rate < 0.5:
        raise SettingError(
            f"reject is {error_rate}; expected the share of errors accepted among labelled cells, above 0 and below "
            "0.5, such as 0.05. To set a confidence of your own, compare obs['sims_confidence'] with it."
        )
    found = rejection_threshold(cells.confidence, cells.correct, error_rate=error_rate)
    if not found.is_reached:
        raise SettingError(
            f"reject={error_rate} cannot be promised from {len(cells.labels)} validation cells; the lowest rate that "
            f"can is {math.ceil(1000 * found.lowest_error_rate) / 1000}. Pass that or more, or calibrate on more "
            "cells: train with validation=0.2, or call calibrate(model, cells, label)."
        )
    return found.threshold


def _labels(
    model: SIMSClassifier,
    probabilities: np.ndarray,
    best: np.ndarray,
    threshold: float | None,
    hierarchy: Mapping[str, str] | None,
) -> tuple[pd.Categorical, np.ndarray]:
    """The label of each cell and its probability."""
    confidence = np.take_along_axis(probabilities, best[:, None], axis=1)[:, 0]
    if threshold is None:
        return pd.Categorical.from_codes(best, _names(model.classes)), confidence
    if hierarchy is None:
        codes = np.where(confidence >= threshold, best, len(model.classes))
        return pd.Categorical.from_codes(codes, _names([*model.classes, UNKNOWN])), confidence
    answers = back_off(probabilities, model.classes, hierarchy, threshold)
    parents = dict.fromkeys(str(parent) for parent in hierarchy.values() if parent not in model.classes)
    labels = pd.Categorical(answers["label"], _names([*model.classes, *parents, UNKNOWN]))
    return labels, answers["probability"].to_numpy(np.float32)


def _set_names(sets: np.ndarray, probabilities: np.ndarray, classes: list[str]) -> pd.Categorical:
    """The classes of each set as text, the most probable first."""
    order = np.argsort(-probabilities, axis=1, kind="stable")
    ranked = np.take_along_axis(sets, order, axis=1)
    names = np.asarray(classes, dtype=object)
    texts = [SEPARATOR.join(names[row[inside]]) or UNKNOWN for row, inside in zip(order, ranked, strict=True)]
    return pd.Categorical(texts, _names(sorted(set(texts))))


def _names(values: Iterable[str]) -> pd.Index:
    """Categories of Python text: anndata before 0.11 cannot read pandas' own type of text."""
    return pd.Index(list(values), dtype=object)


def _remove_earlier(query: ad.AnnData, key: str) -> None:
    """Remove what an earlier `annotate` or `add_to` wrote under the same key."""
    for kind, names in WRITTEN.items():
        table = getattr(query, kind)
        for name in names.split():
            if f"{key}_{name}" in table:
                del table[f"{key}_{name}"]
    query.uns.pop(f"rank_genes_{key}", None)


def _new_file(out: str | os.PathLike, query: ad.AnnData | str | os.PathLike) -> Path:
    """The file to write; `SettingError` for one that `query` comes from, a folder, or another format."""
    path = Path(out).expanduser()
    if path.suffix.lower() != ".h5ad" or path.is_dir():
        raise SettingError(f"out={str(out)!r}: name a file to write that ends in .h5ad, such as 'annotated.h5ad'.")
    make_folder(path.parent)
    origin = query.filename if isinstance(query, ad.AnnData) else query
    if origin is not None and path.exists() and Path(origin).expanduser().exists() and path.samefile(origin):
        raise SettingError(
            f"out={str(out)!r} is the file that the cells come from, which is never changed. Name another."
        )
    return path


def _write_h5ad(query: ad.AnnData, path: Path) -> None:
    """Write the annotated cells; a matrix that is in an HDF5 file is copied from there as it is stored."""
    element = None if query.isbacked else getattr(query.X, "group", query.X)
    # anndata before 0.11 reads no nullable text
    with written_whole(path) as part, ad.settings.override(allow_write_nullable_strings=False):
        if not isinstance(element, h5py.Group | h5py.Dataset):
            query.write_h5ad(part)
            return
        ad.AnnData(obs=query.obs, var=query.var, obsm=dict(query.obsm), uns=query.uns).write_h5ad(part)
        with h5py.File(part, "a") as file:
            file.pop("X", None)
            file.copy(element, file, "X")

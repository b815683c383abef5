"""Annotation: labels, confidence, prediction sets and embeddings of unlabelled cells."""

import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from itertools import cycle
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import torch

from sims_kit import calibration
from sims_kit.calibration import UNKNOWN
from sims_kit.cells.genes import GeneCoverage
from sims_kit.cells.loaders import CellLoader, query_batches
from sims_kit.cells.matrix import Expression, Scale, open_cells
from sims_kit.errors import LabelError, SettingError, UnknownNameError, refuse_unknown
from sims_kit.files import make_folder, written_whole
from sims_kit.model.classifier import SIMSClassifier
from sims_kit.model.file import fitted_model
from sims_kit.model.network import members
from sims_kit.model.trainer import plain_torch
from sims_kit.progress import progress_bar
from sims_kit.text import label_text

Cells = ad.AnnData | str | os.PathLike  # or where to read them from
Model = SIMSClassifier | str | os.PathLike

ERROR_RATE = 0.05  # accepted among answered cells where a hierarchy is given and no rate
GREY = "#bdbdbd"  # of "Unknown"
SEPARATOR = " | "  # between the classes of a set
RESOLUTIONS = {5_000: 5, 20_000: 10, 40_000: 15, 100_000: 20, 200_000: 25, math.inf: 30}  # CellTypist's, by cells
WRITTEN = {  # by `annotate`, `prediction_sets` and `Explanation.add_to`, behind the key
    "obs": "label confidence second_label unseen set vote vote_proportion explained",
    "obsm": "probabilities sets",
    "layers": "masks contributions",
    "varm": "class_masks class_contributions",
    "uns": "label_colors second_label_colors vote_colors set_colors explained_colors",
}
OTHER_WORDS = {  # arguments of scanpy, CellTypist, scvi-tools and of earlier versions
    "alpha": "Prediction sets are written by sims_kit.prediction_sets(query, model, alpha=0.1).",
    "vote_by": "Pass vote='leiden', an obs column with clusters, or vote='auto'.",
    "majority_voting": "Pass vote='auto', the majority label of over-clusters.",
    "over_clustering": "Pass vote='leiden', an obs column with clusters, or vote='auto'.",
    "probability_threshold": "Pass threshold=0.5, or reject=0.05 for a share of errors among labelled cells.",
    "use_raw": "Pass layer='raw' to read query.raw.",
    "batch_key": "The query's batches are not needed. To validate on whole batches, pass groups= to sims_kit.fit.",
}


@plain_torch()
def annotate(
    query: Cells,
    model: Model,
    *,
    layer: str | None = None,
    reject: float | None = None,
    threshold: float | None = None,
    hierarchy: Mapping[str, str] | None = None,
    vote: str | None = None,
    key_added: str = "sims",
    backed: bool | str = "auto",
    species: str | None = None,
    device: str | torch.device | None = None,
    batch_size: int = 1024,
    out: str | os.PathLike | None = None,
    copy: bool = False,
    **unknown,
) -> ad.AnnData | None:
    """Label every cell of a query.

    Genes are aligned to the model's, and values of any known scale (`sims_kit.cells.matrix.detect_scale`) are brought
    to that of training; the query's matrix stays as it is. Error rates are those of the model's validation cells and
    hold for queries of the same tissue, protocol and cell types.

    Parameters
    ----------
    query
        Cells x genes of any gene set, counts or a known transform of them; AnnData, or a dataset name or path to read.
    model
        A fitted classifier, or the path of one that `save_model` wrote.
    layer
        Where the matrix is: None for `X`, the name of a layer, or ``"raw"`` for `query.raw`.
    reject
        Accepted share of errors among labelled cells, such as 0.05: cells whose confidence is too low for it are
        ``"Unknown"`` (`sims_kit.calibration.rejection_threshold`). None labels every cell.
    threshold
        The confidence below which cells are ``"Unknown"``, in place of `reject`.
    hierarchy
        Child to parent, ``{"CD4 T": "T cell", "CD8 T": "T cell"}``, in any number of levels: a cell that `reject` (by
        default 0.05) or `threshold` leaves unlabelled gets the finest parent whose summed probability is enough.
    vote
        Adds the majority label of each cell's cluster: of an `obs` column such as ``"leiden"``, or of over-clusters
        that ``"auto"`` makes of the query as CellTypist does (PCA, neighbours, Leiden, with all cells in memory). Types
        with fewer cells than a cluster are outvoted.
    key_added
        Prefix of what is added.
    backed
        Leave the matrix of an `.h5ad` or `.zarr` path on disk and read blocks of cells: True, False, or ``"auto"``,
        when the file is larger than a tenth of the memory. The result has `X` still in the file.
    species
        ``"human"`` or ``"mouse"``, when the model's genes are those of the other: matched by one-to-one orthologs.
    device, batch_size
        Where the network runs, ``"cpu"`` or ``"cuda"`` (None: where the model is), and on how many cells at once.
    out
        An ``.h5ad`` file to write the annotated cells to. A file that `query` was read from is never touched.
    copy
        Return an annotated copy and leave `query` alone.

    Returns
    -------
    AnnData or None
        The annotated copy with ``copy=True`` or when `query` was read here; otherwise None. What an earlier call wrote
        under the same key is removed. `query` gains:

        - ``obs["sims_label"]``: the most probable class, or a parent, or ``"Unknown"``; categorical, in the reference's
          colours (``uns["sims_label_colors"]``).
        - ``obs["sims_confidence"]``: its probability, the softmax at the temperature fitted on the validation cells; of
          an ``"Unknown"`` cell, the probability that was too low.
        - ``obs["sims_second_label"]``: the runner-up among the classes.
        - ``obs["sims_unseen"]``: novelty, higher for types that the model never saw, in standard deviations above the
          median validation cell. Models without validation cells, and some older files, have none.
        - ``obs["sims_vote"]``, ``obs["sims_vote_proportion"]``: with `vote`, the majority label of the cluster and the
          share of its cells that have it.
        - ``obsm["sims_probabilities"]``: float32, cells x classes, in the order of
          ``uns["sims_kit"]["sims"]["classes"]``, beside which stand scale, gene coverage, reference and threshold.

    Examples
    --------
    >>> sk.annotate(query, model, reject=0.05, vote="auto")
    >>> sc.pl.umap(query, color=["sims_label", "sims_vote", "sims_confidence"])
    >>> sk.annotate(query, "cortex.safetensors", threshold=0.5, layer="counts", device="cuda")
    """
    refuse_unknown("annotate", unknown, [*signature(annotate).parameters][:-1], OTHER_WORDS)
    model = fitted_model(model)
    threshold = _threshold(model, reject, threshold, hierarchy)
    if "/" in key_added:
        raise SettingError(f"key_added={key_added!r}: give a name without a slash, which files could not hold.")
    out = out if out is None else _new_file(out, query)
    query, is_own, batches, coverage, scale = _opened(query, model, layer, species, copy, backed, batch_size)
    if vote not in (None, "auto") and vote not in query.obs:
        raise UnknownNameError("obs column", vote, ["auto", *query.obs.columns])
    with on_device(model, device):
        logits, unseen = predict_logits(model, progress_bar(batches, desc="annotating", unit="batch"))
    probabilities, classes = logits.softmax(dim=1), np.array(model.classes, dtype=object)
    first = probabilities.argmax(dim=1, keepdim=True)
    second = classes[probabilities.scatter(1, first, -1).argmax(dim=1).numpy()]
    probabilities, labels = probabilities.numpy(), classes[first[:, 0].numpy()]
    confidence = probabilities.max(axis=1)
    if hierarchy is not None:
        found = calibration.hierarchical_labels(probabilities, model.classes, hierarchy, threshold)
        labels, confidence = found["label"].to_numpy(object), found["probability"].to_numpy(np.float32)
    elif threshold is not None:
        labels[confidence < threshold] = UNKNOWN
    clusters = None if vote is None else _over_clusters(batches) if vote == "auto" else query.obs[vote].to_numpy()

    for kind, names in WRITTEN.items():
        for name in {f"{key_added}_{name}" for name in names.split()} & set(getattr(query, kind)):
            del getattr(query, kind)[name]
    query.uns.pop(f"rank_genes_{key_added}", None)
    colours = colours_of(model, (hierarchy or {}).values())
    query.obs[f"{key_added}_label"] = _categorical(labels, colours)
    query.uns[f"{key_added}_label_colors"] = [*colours.values()]
    query.obs[f"{key_added}_confidence"] = confidence
    query.obs[f"{key_added}_second_label"] = _categorical(second, model.classes)
    if model.novelty.is_calibrated:
        query.obs[f"{key_added}_unseen"] = unseen.numpy()
    query.obsm[f"{key_added}_probabilities"] = probabilities
    if vote is not None:
        votes = calibration.majority_vote(labels, clusters)
        query.obs[f"{key_added}_vote"] = _categorical(votes["label"], colours)
        query.uns[f"{key_added}_vote_colors"] = [*colours.values()]
        query.obs[f"{key_added}_vote_proportion"] = votes["proportion"].to_numpy()
    notes = {"classes": list(model.classes), "state": str(scale), "trained_on": str(model.provenance.get("files", ""))}
    notes |= {"genes_matched": coverage.n_matched, "genes_of_model": coverage.n_model}
    notes |= {} if threshold is None else {"threshold": threshold}
    query.uns["sims_kit"] = {**query.uns.get("sims_kit", {}), key_added: notes}
    if out is not None:
        _write_h5ad(query, out)
    return query if is_own else None


@plain_torch()
def prediction_sets(
    query: Cells,
    model: Model,
    alpha: float = 0.1,
    *,
    layer: str | None = None,
    key_added: str = "sims",
    species: str | None = None,
    device: str | torch.device | None = None,
    copy: bool = False,
) -> ad.AnnData | None:
    """Add to every cell of a query the set of classes that it may be (split conformal prediction).

    `alpha` is the share of the sets that may miss the true class, of each class that has enough validation cells (9 for
    0.1, 19 for 0.05). Where a model is nearly always right, about this share of the sets is empty. Other arguments and
    the returned value are those of `annotate`, which removes earlier sets under its key: call it first.

    `query` gains ``obs["sims_set"]``, the classes as text, the most probable first (``"CD4 T | CD8 T"``; ``"Unknown"``
    where the set is empty), and ``obsm["sims_sets"]``, bool, cells x classes in the order of
    ``uns["sims_kit"]["sims"]["classes"]``.

    Examples
    --------
    >>> sk.prediction_sets(query, model, alpha=0.05)
    >>> query.obs["sims_set"].value_counts()
    >>> query.obsm["sims_sets"].sum(axis=1)  # classes per cell
    """
    model = fitted_model(model)
    cells = _calibration_cells(model)
    quantiles = calibration.conformal_quantiles(cells.nonconformity, cells.labels, len(model.classes), alpha)
    query, is_own, batches, *_ = _opened(query, model, layer, species, copy)
    with on_device(model, device):
        logits, _ = predict_logits(model, progress_bar(batches, desc="predicting", unit="batch"))
    sets = calibration.nonconformity(logits.numpy()) <= quantiles
    order, names = logits.argsort(dim=1, descending=True, stable=True).numpy(), np.array(model.classes, dtype=object)
    texts = [SEPARATOR.join(names[row[own[row]]]) or UNKNOWN for row, own in zip(order, sets, strict=True)]
    query.obs[f"{key_added}_set"] = _categorical(texts, sorted({*texts, UNKNOWN}))
    query.obsm[f"{key_added}_sets"] = sets
    notes = query.uns.get("sims_kit", {})
    own = {**notes.get(key_added, {}), "classes": list(model.classes), "alpha": alpha}
    query.uns["sims_kit"] = {**notes, key_added: own}
    return query if is_own else None


@plain_torch()
@torch.no_grad()
def embed(
    query: Cells,
    model: Model,
    *,
    layer: str | None = None,
    key_added: str = "X_sims",
    species: str | None = None,
    device: str | torch.device | None = None,
    copy: bool = False,
) -> ad.AnnData | None:
    """Add the vector that the network decides by to every cell; cells of one class lie together in it.

    Arguments and returned value are those of `annotate`. `query` gains ``obsm["X_sims"]``, float32, cells x width: of
    each network of the model, side by side, what its logits are made of, summed over steps: the decision, of width
    `n_d`, and, of an additive network, the evidence of the genes for each class.

    Examples
    --------
    >>> sk.embed(query, model)
    >>> sc.pp.neighbors(query, use_rep="X_sims")
    >>> sc.tl.umap(query)
    """
    model = fitted_model(model)
    query, is_own, batches, *_ = _opened(query, model, layer, species, copy)
    model.eval()
    parts = []
    with on_device(model, device):
        for batch in progress_bar(batches, desc="embedding", unit="batch"):
            of_networks = [network.steps(batch.cells.to(model.device)) for network in members(model.network)]
            vectors = [sum(torch.cat([step.decision, step.evidence], dim=1) for step in own) for own in of_networks]
            parts.append(torch.cat(vectors, dim=1).cpu())
    query.obsm[key_added] = torch.cat(parts).numpy()
    return query if is_own else None


def gene_coverage(query: Cells, model: Model, *, layer: str | None = None, species: str | None = None) -> GeneCoverage:
    """Return how many of the model's genes a query has, before anything is predicted; arguments as in `annotate`.

    Examples
    --------
    >>> print(sk.gene_coverage(query, model))
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

    For a model without validation cells, and for queries of another protocol than the reference, where some hundred
    labelled cells of the new protocol make confidences right again. Predicted classes stay as they are.

    `model` is changed. `label` is an `obs` column of `cells`; cells without a label, or of a class that the model does
    not know, are left out. `layer` is as in `annotate`.

    Examples
    --------
    >>> sk.calibrate(model, labelled_cells, "cell_type")
    >>> sk.annotate(query, model, reject=0.1)
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
    logits, distances = (torch.cat(found) for found in zip(*parts, strict=True))
    model.calibrate(logits, torch.from_numpy(codes[codes >= 0]), distances)


@torch.no_grad()
def predict_logits(model: SIMSClassifier, batches) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits of cells at the model's temperature, (cells, classes), and their novelty, (cells,); float32."""
    model.eval()
    parts = []
    for batch in batches:
        cells = batch.cells.to(model.device)
        logits = model.calibrated(model(cells))
        parts.append((logits.cpu(), model.novelty.scores(logits, model.novelty.distances(cells)).cpu()))
    return tuple(torch.cat(found) for found in zip(*parts, strict=True))


def predict_probabilities(model: SIMSClassifier, batches) -> np.ndarray:
    """Return class probabilities of batches of cells: float32, cells x classes, rows sum to one."""
    return predict_logits(model, batches)[0].softmax(dim=1).numpy()


@contextmanager
def on_device(model: SIMSClassifier, device: str | torch.device | None) -> Iterator[None]:
    """Move a model to a device while the block lasts, and back afterwards; None leaves it where it is."""
    before = model.device
    if device is not None and torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise SettingError(f"device={str(device)!r}, but torch finds no GPU here. Pass device='cpu', or leave it out.")
    model.to(device or before)
    try:
        yield
    finally:
        model.to(before)


def scales_of(model: SIMSClassifier) -> list[str]:
    """Return the scales of the files that a model was trained on."""
    files = model.provenance.get("files")
    files = files if isinstance(files, list) else []
    return [str(file.get("state")) for file in files if isinstance(file, Mapping)]


def colours_of(model: SIMSClassifier, parents: Iterable[str] = ()) -> dict[str, str]:
    """Return the colour of each class, of further labels, and of ``"Unknown"``, in this order.

    Colours are the reference's, where provenance holds them as ``label_colors`` (label to colour), else scanpy's.
    """
    from scanpy.plotting.palettes import default_20, default_28, default_102  # slow to import

    given, names = model.provenance.get("label_colors") or {}, dict.fromkeys([*model.classes, *map(str, parents)])
    palette = default_20 if len(names) <= 20 else default_28 if len(names) <= 28 else default_102
    return {name: given.get(name, colour) for name, colour in zip(names, cycle(palette))} | {UNKNOWN: GREY}


def _threshold(
    model: SIMSClassifier, reject: float | None, threshold: float | None, hierarchy: Mapping[str, str] | None
) -> float | None:
    """The confidence that a label must reach; what cannot be promised is refused before anything is predicted."""
    if hierarchy is not None:
        calibration.paths_to_root(model.classes, hierarchy)
        reject = ERROR_RATE if reject is None and threshold is None else reject
    if reject is None and threshold is None:
        return None
    _refuse_unknown_class(model)
    if threshold is not None:
        if reject is not None or not 0 <= threshold <= 1:
            raise SettingError(f"threshold={threshold}, reject={reject}: give one of them; a threshold is from 0 to 1.")
        return float(threshold)
    if not 0 < reject < 0.5:
        raise SettingError(f"reject={reject}: give the share of errors accepted, above 0 and below 0.5, or threshold=.")
    cells = _calibration_cells(model)
    found = calibration.rejection_threshold(cells.confidence, cells.correct, error_rate=reject)
    if math.isinf(found.threshold):
        raise SettingError(
            f"reject={reject} cannot be promised from {len(cells.labels)} validation cells; the lowest rate that can "
            f"is {math.ceil(1000 * found.lowest_error_rate) / 1000}. Pass that or more, train with validation=0.2, or "
            "call calibrate(model, cells, label)."
        )
    return found.threshold


def _calibration_cells(model: SIMSClassifier) -> calibration.CalibrationCells:
    _refuse_unknown_class(model)
    if model.calibration_cells is None:
        raise SettingError(
            "The model has no validation cells to decide by: it was trained without (validation=0), or comes from a "
            "file of an older version. Call calibrate(model, cells, label) on labelled cells that it did not learn "
            "from, or annotate with threshold= or without reject and hierarchy."
        )
    return model.calibration_cells


def _refuse_unknown_class(model: SIMSClassifier) -> None:
    if UNKNOWN in model.classes:
        raise LabelError(
            f"The model has a class {UNKNOWN!r}, the label of cells without an answer. Rename it in the reference and "
            "train again, or annotate without reject, threshold and hierarchy."
        )


def _opened(
    query: Cells, model: SIMSClassifier, layer, species, copy: bool, backed="auto", batch_size=1024
) -> tuple[ad.AnnData, bool, CellLoader, GeneCoverage, Scale]:
    """The cells to write to, whether to return them, and their batches, gene coverage and scale."""
    if not isinstance(query, ad.AnnData):
        (query, layer), copy = open_cells(query, layer, backed), True
    elif query.isbacked and query.is_view and not copy:
        raise SettingError("The query is a view of a backed AnnData, which cannot be written to: pass copy=True.")
    elif copy:
        query = query.to_memory() if query.isbacked else query.copy()
    options = dict(layer=layer, batch_size=batch_size, species=species, trained_on=scales_of(model))
    return query, copy, *query_batches(query, model.genes, **options)


def _over_clusters(batches: CellLoader) -> pd.Series:
    """Many small clusters of the cells, by scanpy on their log-normalised values, as CellTypist makes them."""
    import scanpy as sc  # slow to import

    cells = ad.AnnData(batches.dataset.rows(batches.positions))
    if cells.n_obs < 10:
        raise SettingError(f"vote='auto' clusters the cells and there are {cells.n_obs}; expected 10 or more.")
    if cells.n_vars > 2500:
        sc.pp.highly_variable_genes(cells, n_top_genes=2500)
    sc.pp.pca(cells, n_comps=min(50, cells.n_obs - 1, cells.n_vars - 1))
    sc.pp.neighbors(cells, n_neighbors=10)
    resolution = next(value for limit, value in RESOLUTIONS.items() if cells.n_obs < limit)
    sc.tl.leiden(cells, resolution=resolution, flavor="igraph", n_iterations=2, directed=False)
    return cells.obs["leiden"]


def _categorical(values, names) -> pd.Categorical:
    """Categories of Python text: anndata before 0.11 cannot read pandas' own type of text."""
    return pd.Categorical(values, pd.Index(list(names), dtype=object))


def _new_file(out: str | os.PathLike, query: Cells) -> Path:
    """The file to write; `SettingError` for one that `query` comes from, a folder, or another format."""
    path, origin = Path(out).expanduser(), query.filename if isinstance(query, ad.AnnData) else query
    if path.suffix.lower() != ".h5ad" or path.is_dir():
        raise SettingError(f"out={str(out)!r}: name a file to write that ends in .h5ad, such as 'annotated.h5ad'.")
    make_folder(path.parent)
    if origin is not None and path.exists() and Path(origin).expanduser().exists() and path.samefile(origin):
        raise SettingError(f"out={str(out)!r} is the file that the cells come from, which is never changed.")
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

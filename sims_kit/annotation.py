"""Annotation: labels, confidence, prediction sets and embeddings of unlabelled cells."""

import math
import os
import warnings
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from itertools import chain, cycle
from numbers import Real
from pathlib import Path
from tempfile import TemporaryDirectory

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import torch

from sims_kit import calibration
from sims_kit.calibration import UNKNOWN, check_share
from sims_kit.cells.genes import USABLE, GeneCoverage
from sims_kit.cells.loaders import CellLoader, query_batches
from sims_kit.cells.matrix import Scale, open_cells
from sims_kit.datasets.ontology import COLUMN, ontology_paths
from sims_kit.errors import GeneError, LabelError, SettingError, UnknownNameError, refuse_unknown
from sims_kit.files import atomic_write, file_to_write
from sims_kit.model.classifier import SIMSClassifier
from sims_kit.model.file import fitted_model
from sims_kit.model.trainer import listed, plain_torch
from sims_kit.progress import progress_bar
from sims_kit.text import examples, label_text, warn

AT_ONCE = 2**22  # values of cells, networks and genes in a batch: 16 MB
Cells = ad.AnnData | str | os.PathLike  # or where to read them from
Model = SIMSClassifier | str | os.PathLike

WRITTEN = (  # by `annotate`, `prediction_sets` and `Explanation.add_to`, after the key
    *("label", "confidence", "second_label", "ontology_term_id", "unseen", "vote", "vote_proportion", "set"),
    *("explained", "probabilities", "sets", "masks", "contributions", "class_masks", "class_contributions"),
)
OTHER_WORDS = {  # arguments of scanpy, CellTypist, scvi-tools and of earlier versions
    "alpha": "Prediction sets are written by sims_kit.prediction_sets(query, model, alpha=0.1).",
    **dict.fromkeys(("majority_voting", "over_clustering"), "Pass vote='auto', or an obs column, vote='leiden'."),
    "use_raw": "use_raw=True is layer='raw' here; use_raw=False is the default, layer=None, which reads query.X.",
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
    hierarchy: Mapping[str, str] | str | None = None,
    vote: str | None = None,
    key_added: str = "sims",
    backed: bool | str = "auto",
    species: str | None = None,
    device: str | torch.device | None = None,
    batch_size: int = 256,
    out: str | os.PathLike | None = None,
    copy: bool = False,
    **unknown,
) -> ad.AnnData | None:
    """Label every cell of a query.

    Genes and scale are brought to those of training; the query's matrix stays as it is.

    Parameters
    ----------
    query, layer, model
        Cells x genes of any gene set, AnnData or a dataset name or path to read; where their matrix is: None for `X`,
        the name of a layer, or ``"raw"``; a fitted classifier, `SIMS`, or path.
    reject, threshold
        Label cells ``"Unknown"`` whose confidence is below this threshold, or too low for this share of errors among
        the others, such as 0.05, on queries that are like the validation cells. By default every cell gets a label.
    hierarchy
        Child to parent, ``{"CD4 T": "T cell", "CD8 T": "T cell"}``, in any number of levels: a cell that `reject` (by
        default 0.05) or `threshold` leaves unlabelled gets the finest parent whose summed probability is enough.
        ``"ontology"`` takes parents from the Cell Ontology, for classes with an id in the reference or a term's label.
    vote
        Adds the majority label of each cell's cluster: of an `obs` column such as ``"leiden"``, or of over-clusters
        that ``"auto"`` makes as CellTypist does, with all cells in memory. Types smaller than a cluster are outvoted.
    key_added, species
        Prefix of what is added; what an earlier call wrote under it is removed. ``"human"`` or ``"mouse"``, when the
        model's genes are those of the other: they are matched by one-to-one orthologs.
    backed, device, batch_size
        Whether a file's matrix stays on disk (``"auto"``: when it is larger than a tenth of the memory); where the
        network runs, ``"cpu"`` or ``"cuda"`` (None: where the model is), and on how many cells at once.
    out, copy
        An ``.h5ad`` file to write to, tried before anything is predicted; if writing fails at the end, the annotated
        cells are `cells` of the error. Whether to return the cells, as those of a path are, and leave `query` alone.

    Notes
    -----
    ``obs`` gains ``sims_label`` (the most probable class, a parent or ``"Unknown"``), ``sims_confidence`` (its
    calibrated probability; of ``"Unknown"``, the one that was too low), ``sims_second_label``, ``sims_unseen`` (higher
    for types that the model never saw, in standard deviations above the median validation cell), and with `vote`
    ``sims_vote`` and ``sims_vote_proportion`` (share of the cluster's cells that have it). Where the reference has
    ``cell_type_ontology_term_id``, or `hierarchy` is ``"ontology"``, ``sims_ontology_term_id`` is the label's.
    ``obsm["sims_probabilities"]`` is float32, cells x classes, in the order of ``uns["sims_kit"]["sims"]["classes"]``,
    beside which stand scale, gene coverage, reference, threshold, and how many cells have hardly a gene that is read.

    Examples
    --------
    >>> sk.annotate(query, "cortex.safetensors", layer="counts", reject=0.05, vote="auto")
    >>> sc.pl.umap(query, color=["sims_label", "sims_vote", "sims_confidence"])
    """
    refuse_unknown("annotate", unknown, [*signature(annotate).parameters][:-1], OTHER_WORDS)
    model = fitted_model(model)
    paths, ids = _paths(model, hierarchy)
    reject = 0.05 if hierarchy is not None and reject is None and threshold is None else reject
    threshold = _threshold(model, reject, threshold)
    out, colours = out if out is None else _new_file(out, query), _colours(model, chain(*paths))
    query, is_own, batches, coverage, scale = _opened(query, model, key_added, layer, species, copy, backed, batch_size)
    if not (vote is None or (isinstance(vote, str) and vote in ["auto", *query.obs])):
        raise UnknownNameError("obs column", vote, ["auto", *query.obs.columns])
    if out is not None:
        _try_to_write(query, out, [*colours])
    logits, unseen, blind = predict_logits(model, progress_bar(batches, desc="annotating", unit="batch"), device)
    probabilities = logits.softmax(dim=1)
    second = probabilities.argsort(dim=1, descending=True, stable=True)[:, 1].numpy()
    found = calibration.hierarchical_labels(probabilities.numpy(), paths, threshold or 0)
    columns = {
        "label": _categorical(found["label"], colours),
        "confidence": found["probability"].to_numpy(np.float32),
        "second_label": _categorical(np.array(model.classes, dtype=object)[second], model.classes),
    }
    if ids:
        terms = found["label"].map(ids).fillna("unknown")  # as in CELLxGENE's schema
        columns["ontology_term_id"] = _categorical(terms, sorted(set(terms)))
    if model.novelty.is_calibrated:
        columns["unseen"] = unseen.numpy()
    if vote is not None:
        clusters = _over_clusters(batches) if vote == "auto" else query.obs[vote]
        votes = calibration.majority_vote(found["label"], clusters)
        columns |= {"vote": _categorical(votes["label"], colours), "vote_proportion": votes["proportion"].to_numpy()}

    _remove_earlier(query, key_added)
    for name, values in columns.items():
        query.obs[f"{key_added}_{name}"] = values
        if name in ("label", "vote"):
            query.uns[f"{key_added}_{name}_colors"] = [*colours.values()]
    query.obsm[f"{key_added}_probabilities"] = probabilities.numpy()
    notes = {"classes": list(model.classes), "state": str(scale), "trained_on": [name for name, _ in _files(model)]}
    notes |= {"genes_matched": coverage.n_matched, "genes_of_model": coverage.n_model}
    notes["cells_unread"] = int(blind.sum())
    add_notes(query, key_added, **notes, **({} if threshold is None else {"threshold": threshold}))
    try:
        if out is not None:
            _write_h5ad(query, out)
    except Exception as error:
        error.cells = query
        error.add_note("Nothing is lost: the annotated cells are `cells` of this error (sys.last_value).")
        raise
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
    0.1, 19 for 0.05). Where a model is nearly always right, about this share of the sets is empty. Other arguments are
    those of `annotate`, which removes earlier sets under its key: call it first. `query` gains ``obsm["sims_sets"]``,
    bool, cells x classes, and ``obs["sims_set"]``, the same as text, ``"CD4 T | CD8 T"``, the most probable first.

    >>> sk.prediction_sets(query, model, alpha=0.05)
    >>> query.obsm["sims_sets"].sum(axis=1)  # classes per cell
    """
    model = fitted_model(model)
    cells = _calibration_cells(model)
    quantiles = calibration.conformal_quantiles(cells.nonconformity, cells.labels, len(model.classes), alpha)
    query, is_own, batches, *_ = _opened(query, model, key_added, layer, species, copy)
    logits, *_ = predict_logits(model, progress_bar(batches, desc="predicting", unit="batch"), device)
    sets = calibration.nonconformity(logits.numpy()) <= quantiles
    order, names = logits.argsort(dim=1, descending=True, stable=True).numpy(), np.array(model.classes, dtype=object)
    texts = [" | ".join(names[row[own[row]]]) or UNKNOWN for row, own in zip(order, sets, strict=True)]
    query.obs[f"{key_added}_set"] = _categorical(texts, sorted({*texts, UNKNOWN}))
    query.obsm[f"{key_added}_sets"] = sets
    add_notes(query, key_added, classes=list(model.classes), alpha=alpha)
    return query if is_own else None


@plain_torch()
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

    Arguments and returned value are those of `annotate`. `query` gains ``obsm["X_sims"]``, float32: of each network of
    the model, side by side, the sums over steps of the decision and of the evidence of the genes for each class.

    >>> sk.embed(query, model)
    >>> sc.pp.neighbors(query, use_rep="X_sims")
    """
    model = fitted_model(model)
    query, is_own, batches, *_ = _opened(query, model, key_added, layer, species, copy)

    def vectors(cells: torch.Tensor) -> list[torch.Tensor]:
        return [sum(torch.cat([step.decision, step.evidence], -1) for step in model.network.steps(cells)).flatten(1)]

    (found,) = predict(vectors, model, progress_bar(batches, desc="embedding", unit="batch"), device)
    query.obsm[key_added] = found.numpy()
    return query if is_own else None


def gene_coverage(query: Cells, model: Model, *, layer: str | None = None, species: str | None = None) -> GeneCoverage:
    """Return how many of the model's genes a query has, before anything is predicted; arguments as in `annotate`.

    >>> print(sk.gene_coverage(query, model))
    """
    model, (query, layer) = fitted_model(model), open_cells(query, layer)
    with warnings.catch_warnings():  # the report says it
        warnings.filterwarnings("ignore", "Only .* genes found")
        return query_batches(query, model.genes, layer=layer, species=species, read=model.genes_read.tolist())[1]


@plain_torch()
def calibrate(model: SIMSClassifier, cells: ad.AnnData, label: str, *, layer: str | None = None) -> None:
    """Fit temperature, rejection and prediction sets of a model anew, on labelled cells that it did not learn from.

    For a model without validation cells, and for queries of another protocol: some hundred cells make confidences right
    again. The classes that `model` predicts stay. Cells whose `label`, an `obs` column, is missing or no class of the
    model are left out.

    >>> sk.calibrate(model, labelled_cells, "cell_type")
    """
    model = fitted_model(model)
    if label not in cells.obs:
        raise UnknownNameError("obs column", label, cells.obs.columns)
    codes = pd.Index(model.classes).get_indexer(label_text(cells.obs[label]))
    if not (codes >= 0).any():
        raise LabelError(f"None of {len(codes):,} cells has a label in {label!r} that is a class of the model.")
    if (codes < 0).any():
        warn(f"{(codes < 0).sum():,} cells have no label that the model knows; left out.")
    batches, _, _ = batches_for(model, cells, layer=layer, cells=np.flatnonzero(codes >= 0))
    logits, distances = predict(lambda cells: (model(cells), model.novelty.distances(cells)), model, batches)
    model.calibrate(logits, torch.from_numpy(codes[codes >= 0]), distances)


def predict_logits(model: SIMSClassifier, batches, device=None) -> list[torch.Tensor]:
    """Logits at the model's temperature, (cells, classes), novelty, and which cells have hardly a gene that is read."""
    read = torch.zeros(model.input_dim, 1).index_fill(0, model.genes_read.cpu(), 1)

    def outputs(cells: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits = model.calibrated(model(cells))
        novelty = model.novelty.scores(logits, model.novelty.distances(cells))
        return logits, novelty, (cells.sign() @ read.to(cells))[:, 0]

    logits, novelty, n_expressed = predict(outputs, model, batches, device)
    blind = n_expressed <= (few := min(2, read.sum().item() // 100))  # two give a label that is right in a fifth
    if blind.any():
        found = f"{blind.sum():,} of {len(blind):,} cells express {f'at most {few:.0f}' if few else 'none'}"
        genes = f"of the {read.sum():,.0f} genes that the model tells its classes by: their labels mean little"
        warn(f"{found} {genes}. Leave out cells with few counts, or check the query's genes.")
    return [logits, novelty, blind]


@torch.no_grad()
def predict(function: Callable, model: SIMSClassifier, batches, device=None) -> list[torch.Tensor]:
    """Return the tensors that a function makes of the cells of each batch, on a device: joined, on the CPU."""
    model.eval()
    with on_device(model, device):
        parts = [[found.cpu() for found in function(batch.cells.to(model.device))] for batch in batches]
    return [torch.cat(found) for found in zip(*parts, strict=True)]


def batches_for(model: SIMSClassifier, adata: ad.AnnData, **options) -> tuple[CellLoader, GeneCoverage, Scale]:
    """Return the batches of cells as a model takes them, gene coverage and scale; options of `query_batches`."""
    options |= {"trained_on": [scale for _, scale in _files(model)], "read": model.genes_read.tolist()}
    batches, coverage, scale = query_batches(adata, model.genes, **options)
    batches.batch_size = min(batches.batch_size, max(2, AT_ONCE // (model.recipe.n_models * len(model.network.genes))))
    if coverage.n_read - len(coverage.missing_read) < USABLE * coverage.n_read:
        way_out = f"at least {USABLE:.0%} of the latter are needed. Take cells whose genes were not selected."
        raise GeneError(f"Only {coverage.share()}; {way_out}")
    return batches, coverage, scale


def _files(model: SIMSClassifier) -> list[tuple[str, str]]:
    """Name and scale of each file, AnnData or dataset that a model was trained on."""
    files = [file for file in listed(model.provenance.get("files")) if isinstance(file, Mapping)]
    return [(str(file.get("dataset") or file.get("file")), str(file.get("state"))) for file in files]


@contextmanager
def on_device(model: SIMSClassifier, device: str | torch.device | None) -> Iterator[None]:
    """Move a model to a device while the block lasts, and back afterwards; None leaves it where it is."""
    before, gpus = model.device, [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    device, devices = before if device is None else device, ["cpu", "cpu:0", *["cuda"] * bool(gpus), *gpus]
    hints = {"mps": "Cells are sparse matrices, which Apple's GPUs cannot multiply: pass device='cpu'."}
    refuse_unknown("This machine", {str(device)} - {*devices, str(before)}, devices, hints, kind="device")
    model.to(device)
    try:
        yield
    finally:
        model.to(before)


def check_key(key_added: str, query: ad.AnnData) -> None:
    """Refuse a key that a file could not hold, or a fact of the dataset."""
    if not isinstance(key_added, str) or not key_added or "/" in key_added:
        raise SettingError(f"key_added={key_added!r}: give a name without a slash, which files could not hold.")
    if not isinstance(query.uns.get("sims_kit", {}).get(key_added, {}), Mapping):
        raise SettingError(f"key_added={key_added!r} is a fact of the dataset in uns['sims_kit']. Choose another name.")


def add_notes(query: ad.AnnData, key_added: str, **notes) -> None:
    """Add facts to ``uns["sims_kit"]["sims"]``, beside those that are there."""
    kept = query.uns.get("sims_kit", {})
    query.uns["sims_kit"] = {**kept, key_added: {**kept.get(key_added, {}), **notes}}


def _remove_earlier(query: ad.AnnData, key_added: str) -> None:
    """Remove what an earlier call wrote under a key."""
    earlier = {f"{key_added}_{name}{suffix}" for name in WRITTEN for suffix in ("", "_colors")}
    earlier.add(f"rank_genes_{key_added}")
    for kind in ("obs", "obsm", "layers", "varm", "uns"):
        for name in earlier & set(getattr(query, kind)):
            del getattr(query, kind)[name]
    query.uns["sims_kit"] = {**query.uns.get("sims_kit", {}), key_added: {}}


def _paths(model: SIMSClassifier, hierarchy: object) -> tuple[list[list[str]], dict[str, str]]:
    """For each class its name and those of its parents; and the Cell Ontology's ids of names, if there are any."""
    known = model.provenance.get("ontology_ids")
    ids = {name: str(known[name]) for name in model.classes if name in known} if isinstance(known, Mapping) else {}
    if isinstance(hierarchy, str | bool | list | tuple | set) and hierarchy != "ontology":
        raise UnknownNameError("hierarchy", str(hierarchy), ["ontology", "a mapping of child to parent"])
    if not isinstance(hierarchy, str):  # of a Series, too
        return calibration.paths_to_root(model.classes, {} if hierarchy is None else dict(hierarchy)), ids
    paths, ids = ontology_paths(model.classes, ids)
    if all(len(path) == 1 for path in paths):
        found = f"no term of the Cell Ontology holds two of the model's classes ({examples(model.classes)})"
        way_out = f"Train with obs[{COLUMN!r}], or give child and parent: hierarchy={{'CD4 T': 'T cell'}}."
        raise SettingError(f"hierarchy='ontology': {found}. {way_out}")
    return paths, ids


def _threshold(model: SIMSClassifier, reject: float | None, threshold: float | None) -> float | None:
    """The confidence that a label must reach; what cannot be promised is refused before anything is predicted."""
    if reject is None and threshold is None:
        return None
    if UNKNOWN in model.classes:
        raise LabelError(f"The model has a class {UNKNOWN!r}. Rename it in the reference and train again.")
    if threshold is not None:
        if reject is not None or not isinstance(threshold, Real) or not 0 <= threshold <= 1:
            raise SettingError(f"threshold={threshold!r}, reject={reject!r}: give one; a threshold is from 0 to 1.")
        return float(threshold)
    check_share("reject", reject, "errors accepted", below=0.5)
    cells = _calibration_cells(model)
    found = calibration.rejection_threshold(cells.confidence, cells.correct, error_rate=reject)
    if math.isinf(found.threshold):
        lowest = math.ceil(1000 * found.lowest_error_rate) / 1000
        raise SettingError(
            f"reject={reject} cannot be promised from {len(cells.labels)} validation cells; the lowest rate "
            f"that can is {lowest}. Pass that or more, train with validation=0.2, or call calibrate."
        )
    return found.threshold


def _calibration_cells(model: SIMSClassifier) -> calibration.CalibrationCells:
    if model.calibration_cells is None:
        found = "The model has no validation cells to decide by: trained with validation=0, or of an older version"
        raise SettingError(f"{found}. Call calibrate(model, cells, label) on labelled cells, or pass threshold=.")
    return model.calibration_cells


def _opened(
    query: Cells, model: SIMSClassifier, key_added: str, layer, species, copy: bool, backed="auto", batch_size=256
) -> tuple[ad.AnnData, bool, CellLoader, GeneCoverage, Scale]:
    """The cells to write to, whether to return them, and their batches, gene coverage and scale."""
    cells, layer = open_cells(query, layer, backed)
    if cells is query and copy:
        cells = query.to_memory() if query.isbacked else query.copy()
    elif cells is query and query.isbacked and query.is_view:
        raise SettingError("The query is a view of a backed AnnData, which cannot be written to: pass copy=True.")
    check_key(key_added, cells)
    return cells, cells is not query, *batches_for(model, cells, layer=layer, batch_size=batch_size, species=species)


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
    resolution = 5 + 5 * bisect([5_000, 20_000, 40_000, 100_000, 200_000], cells.n_obs)
    sc.tl.leiden(cells, resolution=resolution, flavor="igraph", n_iterations=2, directed=False)
    return cells.obs["leiden"]


def _colours(model: SIMSClassifier, others: Iterable[str]) -> dict[str, str]:
    """The colour of each class, other label, and ``"Unknown"``, in this order: the reference's, or else scanpy's."""
    from scanpy.plotting.palettes import default_20, default_28, default_102  # slow to import

    given, names = model.provenance.get("label_colors") or {}, dict.fromkeys([*model.classes, *others])
    palette = default_20 if len(names) <= 20 else default_28 if len(names) <= 28 else default_102
    return {name: given.get(name, colour) for name, colour in zip(names, cycle(palette))} | {UNKNOWN: "#bdbdbd"}  # grey


def _categorical(values, names) -> pd.Categorical:
    """Categories of Python text: anndata before 0.11 cannot read pandas' own type of text."""
    return pd.Categorical(values, pd.Index(list(names), dtype=object))


def _new_file(out: str | os.PathLike, query: Cells) -> Path:
    """The file to write; `SettingError` for one that `query` comes from, a folder, or another format."""
    if Path(out).suffix.lower() != ".h5ad":
        raise SettingError(f"out={str(out)!r}: name a file to write that ends in .h5ad, such as 'annotated.h5ad'.")
    if isinstance(query, ad.AnnData):
        matrix = None if query.isbacked else getattr(query.X, "group", query.X)  # in a file, from `open_backed`
        query = query.filename or getattr(getattr(matrix, "file", None), "filename", "")
    path, origin = file_to_write(out), Path(query).expanduser()
    if path.exists() and origin.exists() and path.samefile(origin):
        raise SettingError(f"out={str(out)!r} is the file that the cells come from, which is never changed.")
    return path


def _try_to_write(query: ad.AnnData, path: Path, names: list[str]) -> None:
    """Write all but the matrices, and the names of the labels, beside `path`; tell what cannot be written or stored."""
    slots = {"obsm": dict(query.obsm), "varm": dict(query.varm), "uns": {**query.uns, "labels": names}}
    try:
        with TemporaryDirectory(dir=path.parent) as folder, ad.settings.override(allow_write_nullable_strings=False):
            ad.AnnData(obs=query.obs, var=query.var, **slots).write_h5ad(Path(folder, "trial.h5ad"))
    except Exception as error:
        found = "; ".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())])
        way_out = "Name a file in another folder, or remove what cannot be stored."
        raise SettingError(f"out={str(path)!r} cannot be written ({found}). {way_out}") from error


def _write_h5ad(query: ad.AnnData, path: Path) -> None:
    """Write the annotated cells; a matrix that is in an HDF5 file is copied from there as it is stored."""
    element = None if query.isbacked else getattr(query.X, "group", query.X)
    # anndata before 0.11 reads no nullable text
    with atomic_write(path) as part, ad.settings.override(allow_write_nullable_strings=False):
        if not isinstance(element, h5py.Group | h5py.Dataset):
            query.write_h5ad(part)
            return
        ad.AnnData(obs=query.obs, var=query.var, obsm=dict(query.obsm), uns=query.uns).write_h5ad(part)
        with h5py.File(part, "a") as file:
            file.pop("X", None)
            file.copy(element, file, "X")

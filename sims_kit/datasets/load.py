"""`load`: a dataset by name, or a file by path; and the catalogue of names."""

import os
from pathlib import Path

import pandas as pd
from anndata import AnnData

from sims_kit.datasets.fetch import fetch
from sims_kit.datasets.labels import attach_labels, check_orientation, select_cells
from sims_kit.datasets.readers import read
from sims_kit.datasets.registry import Dataset, FilesSource, read_registry
from sims_kit.errors import DataError, SettingError, UnknownNameError


def load(name_or_path: str | Path) -> AnnData:
    """A dataset of the registry by its name, or a file by its path.

    Parameters
    ----------
    name_or_path
        A name of `catalogue()`: the file is taken from the cache or downloaded, its hash checked, labels
        attached, cells filtered and the result compared with the registry. Anything else is a path and goes
        to `read` as it is.

    Returns
    -------
    AnnData, cells x genes
        For a name, the labels lie in ``obs[adata.uns["sims_kit"]["label"]]`` and ``uns["sims_kit"]`` says where
        the data come from: dataset, version, licence, citation, state of the matrix, addresses, hashes.

    Raises
    ------
    UnknownNameError
        Neither a name of the registry nor a path; the nearest names are offered.
    SettingError
        Something else than a text or a path.
    FetchError
        The file is not in the cache and cannot be had.
    DataError
        The data are not those that the registry describes.
    """
    if not isinstance(name_or_path, str | os.PathLike):
        found = type(name_or_path).__name__
        raise SettingError(f"load takes the name of a dataset or the path of a file, not an object of type {found}.")
    registry = read_registry()
    if isinstance(name_or_path, str) and name_or_path in registry.datasets:
        return _load_dataset(name_or_path, registry[name_or_path])
    path = Path(name_or_path).expanduser()
    if isinstance(name_or_path, str) and not path.exists() and len(path.parts) == 1 and not path.suffix:
        raise UnknownNameError("dataset", name_or_path, registry.datasets)
    return read(path)


def catalogue() -> pd.DataFrame:
    """The datasets that `load` knows, one row each.

    Returns
    -------
    DataFrame, indexed by name
        title, tier, species, tissue, protocol, cells, genes, classes, label, sample, state, gene_ids,
        megabytes (to download; 0 for bundled data, missing where unknown), licence, doi.
    """
    columns = [
        "title",
        "tier",
        "species",
        "tissue",
        "protocol",
        "cells",
        "genes",
        "classes",
        "label",
        "sample",
        "state",
        "gene_ids",
    ]
    rows = {}
    for name, entry in read_registry().datasets.items():
        sizes = [file.size for file in entry.source.files]
        megabytes = None if None in sizes else round(sum(sizes) / 1e6, 1)
        rows[name] = {
            **{column: getattr(entry, column) for column in columns},
            "megabytes": megabytes,
            "licence": entry.licence,
            "doi": entry.doi,
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("dataset")


def _load_dataset(name: str, entry: Dataset) -> AnnData:
    """Fetch, read, label, filter, check and sign a dataset of the registry."""
    adata = _read_files(name, entry) if isinstance(entry.source, FilesSource) else _from_scanpy(entry.source.function)
    if entry.layer == "raw":
        adata = adata.raw.to_adata()
    elif entry.layer is not None:
        adata.X = adata.layers[entry.layer]
    adata = select_cells(adata, keep=entry.keep, drop=entry.drop)
    _check(name, entry, adata)
    adata.uns["sims_kit"] = _provenance(name, entry)
    return adata


def _read_files(name: str, entry: Dataset) -> AnnData:
    source = entry.source
    adata = read(fetch(name, source.folder, source.matrix), orientation=entry.orientation)
    if source.labels is not None:
        attach_labels(adata, fetch(name, source.folder, source.labels), entry.label)
    check_orientation(adata)
    return adata


def _from_scanpy(function: str) -> AnnData:
    import scanpy  # takes seconds

    return getattr(scanpy.datasets, function)()


def _check(name: str, entry: Dataset, adata: AnnData) -> None:
    """Compare what was loaded with what the registry promises."""
    if entry.label not in adata.obs:
        raise DataError(f"{name}: the data have no labels {entry.label!r} in obs, only {list(adata.obs)}.")
    found = {"cells": adata.n_obs, "genes": adata.n_vars, "classes": adata.obs[entry.label].nunique()}
    promised = {key: getattr(entry, key) for key in found}
    wrong = [f"{found[k]:,} {k} instead of {n:,}" for k, n in promised.items() if n not in (None, found[k])]
    if wrong:
        raise DataError(
            f"{name}: after loading there are {', '.join(wrong)}. The entry in data_registry.yaml and the data "
            "(or the version of the package that carries them) do not belong together."
        )


def _provenance(name: str, entry: Dataset) -> dict:
    """Where the data come from, in types that every AnnData format can hold."""
    keys = [
        "version",
        "title",
        "label",
        "sample",
        "state",
        "species",
        "tissue",
        "protocol",
        "preprocessing",
        "notes",
        "licence",
        "citation",
        "doi",
    ]
    provenance = {"dataset": name} | {key: getattr(entry, key) for key in keys if getattr(entry, key)}
    if files := entry.source.files:
        provenance |= {
            "urls": [file.urls[0] for file in files],
            "sha256": [file.sha256 or "" for file in files],
        }
    return provenance

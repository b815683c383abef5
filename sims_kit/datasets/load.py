"""Datasets by name, or files by path, as AnnData; the catalogue of datasets; and tables of genes."""

import re
import warnings
import zipfile
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from sims_kit.datasets.fetch import fetch
from sims_kit.datasets.labels import attach_labels, check_orientation
from sims_kit.datasets.r_files import r_objects
from sims_kit.datasets.read import TEXT, convert, read
from sims_kit.datasets.registry import Dataset, read_registry
from sims_kit.datasets.simulate import simulate
from sims_kit.errors import DataError, SettingError, UnknownNameError
from sims_kit.text import label_text, warn

COLUMNS = [key.name for key in fields(Dataset)]
COLUMNS = COLUMNS[: COLUMNS.index("source")]  # of the catalogue; the texts among them also travel with the data


def load(name_or_path: str | Path, *, size: str | None = None) -> AnnData:
    """A dataset by its name in `catalogue()`, or a file by its path, as AnnData, cells x genes.

    For a name, ``uns["sims_kit"]`` tells where the data come from and which column of `obs` has the labels. `size` is
    for simulated tissue only: ``"fast"`` (the default) or ``"full"``.

    >>> load("pbmc68k").obs["bulk_labels"].value_counts()
    """
    entry = read_registry().datasets.get(name_or_path) if isinstance(name_or_path, str) else None
    if size is not None and (entry is None or entry.source.sizes is None):
        raise SettingError(f"{name_or_path} has one size. Leave out size={size!r}: it is for simulated tissue.")
    if entry is not None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "(Observation|Variable) names are not unique|Moving element from")
            return _load_dataset(name_or_path, entry, size or "fast")
    if isinstance(name_or_path, str) and re.fullmatch(r"[\w-]+", name_or_path) and not Path(name_or_path).exists():
        raise UnknownNameError("dataset", name_or_path, read_registry().datasets)
    return read(name_or_path)


def prepare(name: str) -> list[Path | zipfile.Path | None]:
    """Put the files of a dataset or a table of genes into the cache, so that loading it needs no network.

    A big matrix of text, or one in an archive, is converted once into an ``.h5ad`` of the user's own cache. The paths
    are those that `load` opens: the matrix, labels, a table of genes.
    """
    entries = read_registry().datasets | read_registry().tables
    if name not in entries:
        raise UnknownNameError("dataset", name, entries)
    entry, source = entries[name], entries[name].source
    files = [fetch(name, source.folder, file, alternatives=entry.alternatives) for file in source.files]
    if source.kind == "archive":
        matrix = [zipfile.Path(files[0], member) for member in source.matrix]
        others = [member and zipfile.Path(files[0], member) for member in (source.labels, source.genes)]
        return [convert(matrix, orientation=entry.orientation), *others]
    if entry.tier == "full" and files[0].name.endswith(TEXT):
        files[0] = convert(files[0], orientation=entry.orientation)
    return files


def catalogue() -> pd.DataFrame:
    """The datasets that `load` knows: one row each, with the keys of `data_registry.yaml` and megabytes to download.

    >>> catalogue().query("tier == 'small'")[["species", "tissue", "cells", "classes"]]
    """
    entries = read_registry().datasets
    table = pd.DataFrame([vars(entry) for entry in entries.values()], pd.Index(entries, name="dataset"))[COLUMNS]
    table = table.map(lambda value: ", ".join(value) if isinstance(value, tuple) else value)
    sizes = [[file.size for file in entry.source.files] for entry in entries.values()]
    table["megabytes"] = [None if None in of else round(sum(of) / 1e6, 1) for of in sizes]
    return table.astype(dict.fromkeys(["cells", "genes", "classes"], "Int64"))  # whole numbers, also beside gaps


def gene_table(name: str) -> pd.DataFrame:
    """A table of genes: ``"gencode-human"`` (gene_id, symbol) or ``"orthologs-human-mouse"`` (human, mouse).

    >>> gene_table("orthologs-human-mouse").query("human == 'TP53'")
    """
    [path], source = prepare(name), read_registry().tables[name].source
    table = pd.read_csv(path, header=None, names=list(source.columns), dtype=str, keep_default_na=False)
    return table[(table != "").all(axis=1)].reset_index(drop=True)  # some human genes have no mouse gene


def _load_dataset(name: str, entry: Dataset, size: str) -> AnnData:
    """Read a dataset of the registry, filter it, name its genes, check it, and note where it comes from."""
    source = entry.source
    if source.sizes:
        adata = simulate(name, size=size)
    elif source.function:
        adata = getattr(import_module("scanpy.datasets"), source.function)()  # takes seconds
    else:
        matrix, *others = prepare(name)
        orientation = "cells_by_genes" if matrix.suffix == ".h5ad" else entry.orientation  # it may be converted
        adata = read(matrix, orientation=orientation, object_name=source.object)
        _complete(adata, entry, *others)
    if entry.layer == "raw" and adata.raw is not None:
        adata = adata.raw.to_adata()
    adata = _selected(adata, entry)
    _name_genes(adata, entry)
    _check(name, entry, adata, size)
    facts = {key: getattr(entry, key) for key in (*COLUMNS, "preprocessing", "notes")} | {"dataset": name}
    facts |= {"urls": tuple(f.urls[0] for f in source.files), "sha256": tuple(f.sha256 or "" for f in source.files)}
    facts = {key: [*value] if isinstance(value, tuple) else value for key, value in facts.items() if value}
    adata.uns["sims_kit"] = {key: value for key, value in facts.items() if not isinstance(value, int)}
    return adata


def _complete(adata: AnnData, entry: Dataset, labels: Path | None = None, genes: zipfile.Path | None = None) -> None:
    """Attach the labels, from text or a data.frame of R, and a table about the genes."""
    if labels and re.search(r"(?i)\.(rds|rda|rdata)$", labels.name):
        [table] = r_objects(labels).values()
        by = next(column for column in table if set(table[column]) == set(adata.obs_names))
        adata.obs = adata.obs.join(table.set_index(by).rename(columns=str).astype(object).infer_objects())
    elif labels:
        with warnings.catch_warnings(action="ignore" if entry.drop_unlabelled else None):
            attach_labels(adata, labels, entry.label, text=_names(entry), in_order=entry.source.in_order)
    if genes:
        table = pd.read_csv(genes.open("rb"), dtype=str)
        by = next(column for column in table if adata.var_names.isin(table[column]).all())
        adata.var[list(table)] = table.set_index(by, drop=False).loc[adata.var_names].to_numpy()
    check_orientation(adata, name=entry.title)


def _selected(adata: AnnData, entry: Dataset) -> AnnData:
    """The cells that the registry keeps; 1, 1.0 and "1" are the same value, and so are True and "TRUE"."""
    chosen = adata.obs[entry.label].notna().to_numpy() if entry.drop_unlabelled else np.ones(adata.n_obs, bool)
    for columns, wanted in ((entry.keep, True), (entry.drop, False)):
        for column, values in columns.items():
            if column not in adata.obs:
                raise UnknownNameError("obs column", column, adata.obs.columns)
            found = label_text(adata.obs[column]).str.casefold().isin(label_text(values).str.casefold())
            chosen &= found.to_numpy() == wanted
    if not chosen.any():
        raise DataError(f"No cell of {len(chosen):,} has {entry.keep} and not {entry.drop}. Check the values in obs.")
    return adata if chosen.all() else adata[chosen].copy()


def _name_genes(adata: AnnData, entry: Dataset) -> None:
    """Call the genes by their symbols, where the registry says how, and keep their published names in `var`."""
    symbols = ids = published = adata.var_names.to_series()
    if entry.gene_column:
        symbols = adata.var[entry.gene_column].astype(object).fillna(published)
    elif entry.gene_pattern:
        parts = published.str.extract(f"^(?:{entry.gene_pattern})$")
        symbols, ids = parts["symbol"].fillna(published), parts.get("id", published).fillna(published)
    if not symbols.equals(ids):
        adata.var["gene_ids"] = ids.to_numpy()
    adata.var_names = symbols.astype(str).to_numpy()


def _names(entry: Dataset) -> list[str]:
    """Columns of `obs` whose values are names although they may look like numbers."""
    return [c for c in (entry.label, *entry.other_labels, entry.sample, entry.condition, entry.region) if c]


def _check(name: str, entry: Dataset, adata: AnnData, size: str) -> None:
    """Compare what was loaded with what the registry promises."""
    found = dict(cells=adata.n_obs, genes=adata.n_vars, classes=adata.obs.get(entry.label, pd.Series()).nunique())
    promised = {key: getattr(entry, key) for key in found} | (entry.source.sizes or {}).get(size, {})
    wrong = [f"{found[key]} {key} instead of {n:,}" for key, n in promised.items() if n not in (None, found[key])]
    wrong += [f"no column {column!r} in obs" for column in _names(entry) if column not in adata.obs]
    message = f"{name}: after loading there are {', '.join(wrong)}. The data do not fit data_registry.yaml."
    if wrong and entry.tier != "full":
        raise DataError(message)
    if wrong:
        warn(f"{message} The numbers are those of publications: check the file.")

"""Each dataset of the tier `full`: a miniature of its published files goes through `load` under its own name.

Plus the sizes of the simulated datasets. The published layouts are in layouts.py.
"""

import hashlib
import runpy
import warnings
from pathlib import Path
from types import SimpleNamespace

import anndata
import numpy as np
import pytest

from sims_kit.datasets import load
from sims_kit.datasets.registry import ArchiveSource, read_registry
from sims_kit.datasets.simulate import PRESETS

# Run by its path: in pytest's importlib mode, tests are no package to import from.
LAYOUTS = runpy.run_path(str(Path(__file__).with_name("layouts.py")))["LAYOUTS"]


@pytest.fixture
def placed(request, cache, monkeypatch):
    """The miniature of a dataset, lying where a download would put it: its entry, files, and what they hold."""
    name, variant = request.param
    build, entry = LAYOUTS[name][0], read_registry()[name]
    folder = cache / entry.source.folder
    folder.mkdir(parents=True)
    published = build(folder, variant)
    entry = with_files_of(entry, folder)
    monkeypatch.setitem(read_registry().datasets, name, entry)
    return SimpleNamespace(name=name, entry=entry, folder=folder, published=published)


every_layout = pytest.mark.parametrize(
    "placed",
    [pytest.param((name, variant), id=f"{name}: {variant}") for name in LAYOUTS for variant in LAYOUTS[name][1]],
    indirect=True,
)


def with_files_of(entry, folder):
    """The entry with size and hash of the miniature, where it has those of the published file."""
    source = entry.source
    key = "archive" if isinstance(source, ArchiveSource) else "matrix"
    file, path = getattr(source, key), folder / getattr(source, key).name
    known = {"size": path.stat().st_size, "sha256": sha256(path)}
    file = file.model_copy(update={k: value for k, value in known.items() if getattr(file, k) is not None})
    return entry.model_copy(update={"source": source.model_copy(update={key: file})})


def hashes(entry):
    """The hashes that the entry knows of its files."""
    return [file.sha256 for file in entry.source.files]


def sha256(path):
    """The hash of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def load_and_listen(name):
    """The data, and the text of every warning that a user sees."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        adata = load(name)
    return adata, [str(warning.message) for warning in told if issubclass(warning.category, UserWarning)]


def is_published(adata, published, entry):
    """Raise unless the data are those published: cells, genes, values, columns of the cells and genes."""
    matrix, obs = published.matrix[published.kept], published.obs[published.kept]
    assert list(adata.obs_names) == list(matrix.index) and list(adata.var_names) == list(matrix.columns)
    assert adata.X.format == "csr" and adata.X.dtype == np.float32
    np.testing.assert_array_equal(adata.X.toarray(), matrix.to_numpy(np.float32))
    for column in {entry.label, entry.sample, entry.region, *entry.other_labels} - {None}:
        assert adata.obs[column].astype(str).tolist() == obs[column].tolist(), column
    assert all(isinstance(label, str) for label in adata.obs[entry.label])
    for column, values in (published.var or {}).items():
        assert adata.var[column].tolist() == values, column
    assert ("gene_ids" in adata.var) == (published.gene_ids is not None)
    assert published.gene_ids is None or adata.var["gene_ids"].tolist() == published.gene_ids


def test_every_full_dataset_has_a_layout():
    """No dataset of the tier `full` is left out here."""
    assert set(LAYOUTS) == {name for name, entry in read_registry().datasets.items() if entry.tier == "full"}


@pytest.mark.filterwarnings("ignore:Variable names are not unique")  # when the file is read again
@every_layout
def test_full_dataset(placed, tmp_path):
    """Values, names, labels and origin arrive as published, without the cells that the entry leaves out."""
    adata, _ = load_and_listen(placed.name)
    is_published(adata, placed.published, placed.entry)
    origin = adata.uns["sims_kit"]
    assert origin["dataset"] == placed.name and origin["label"] == placed.entry.label
    assert origin["sha256"] == [sha256(placed.folder / file.name) for file in placed.entry.source.files]
    adata.write_h5ad(tmp_path / "cells.h5ad")
    again = anndata.read_h5ad(tmp_path / "cells.h5ad")
    is_published(again, placed.published, placed.entry)
    assert again.uns["sims_kit"]["citation"] == placed.entry.citation


@every_layout
def test_what_is_said(placed):
    """Each hash that nobody published is pinned aloud, each promised number that is wrong is told, and nothing else."""
    adata, told = load_and_listen(placed.name)
    files = [file.name for file in placed.entry.source.files if file.sha256 is None]
    for name, message in zip(files, told, strict=False):
        assert message.startswith(f"{placed.name}: no SHA-256 of {name} is published.")
    found = {"cells": adata.n_obs, "genes": adata.n_vars, "classes": adata.obs[placed.entry.label].nunique()}
    promised = {key: getattr(placed.entry, key) for key in found if getattr(placed.entry, key) is not None}
    wrong = ", ".join(f"{found[key]:,} {key} instead of {number:,}" for key, number in promised.items())
    expected = [f"{placed.name}: after loading there are {wrong}."] if promised else []
    assert [message.split(" The numbers")[0] for message in told[len(files) :]] == expected


@every_layout
def test_once_converted_text_is_not_needed(placed):
    """The second time nothing is pinned; where the matrix was text, its files may have been removed."""
    load_and_listen(placed.name)
    pinned = (placed.folder.parent / "SHA256SUMS").read_text() if None in hashes(placed.entry) else None
    converted = placed.folder / f"{placed.name}.h5ad"
    is_text = placed.entry.source.files[0].name.endswith((".csv", ".tsv.gz", ".zip"))
    assert converted.exists() == is_text
    if is_text:
        for file in placed.entry.source.files:
            (placed.folder / file.name).unlink()
    adata, told = load_and_listen(placed.name)
    is_published(adata, placed.published, placed.entry)
    assert not [message for message in told if "no SHA-256" in message]
    assert "" not in adata.uns["sims_kit"]["sha256"]
    assert pinned is None or (placed.folder.parent / "SHA256SUMS").read_text() == pinned


@pytest.mark.parametrize("name", PRESETS)
def test_sizes_of_simulated_datasets(name):
    """Both sizes are set as the entry says, with its classes, and in the areas and from the donors of its columns."""
    entry = read_registry()[name]
    for size, shape in entry.source.sizes.items():
        settings = PRESETS[name][size]
        assert (settings.n_cells, settings.n_genes, len(settings.types)) == (shape.cells, shape.genes, entry.classes)
    adata, told = load_and_listen(name)
    assert adata.obs[entry.sample].nunique() == len(settings.donors) and not told
    assert entry.region is None or adata.obs[entry.region].nunique() == len(settings.regions)
    assert adata.obs["stress"].any() == (name == "sim-organoid")


@pytest.mark.slow
def test_full_size_of_a_simulated_dataset():
    """The full size has the shape of the entry and all classes."""
    entry, adata = read_registry()["sim-mouse"], load("sim-mouse", size="full")
    assert adata.shape == (entry.source.sizes["full"].cells, entry.source.sizes["full"].genes)
    assert adata.obs[entry.label].nunique() == entry.classes

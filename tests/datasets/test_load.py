"""`load`: every dataset that needs no network, and files by path."""

from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest

from sims_kit.datasets import catalogue, load, prepare
from sims_kit.datasets.registry import read_registry
from sims_kit.datasets.simulate import PRESETS
from sims_kit.errors import DataError, FetchError, SettingError, UnknownNameError

SMALL = [name for name, entry in read_registry().datasets.items() if entry.tier == "small"]


def test_pbmc68k(tmp_path):
    """The bundled dataset has labels, log-normalised values, and a provenance that an .h5ad file can hold."""
    adata = load("pbmc68k")
    assert adata.shape == (700, 765)
    assert adata.X.format == "csr" and adata.X.min() == 0
    assert adata.uns["sims_kit"]["label"] == "bulk_labels" and adata.obs["bulk_labels"].nunique() == 10
    adata.write_h5ad(tmp_path / "pbmc.h5ad")
    assert anndata.read_h5ad(tmp_path / "pbmc.h5ad").uns["sims_kit"]["doi"] == "10.1038/ncomms14049"


@pytest.mark.parametrize("name", SMALL)
def test_small_datasets(name, real_data, tmp_path):
    """Each small dataset loads with the cells, genes and classes of its entry, as whole counts."""
    entry, adata = read_registry()[name], load(name)
    assert adata.shape == (entry.cells, entry.genes)
    assert adata.obs[entry.label].nunique() == entry.classes and adata.obs[entry.label].notna().all()
    assert (adata.X.data >= 0).all() and (adata.X.data == np.round(adata.X.data)).all()
    assert adata.uns["sims_kit"]["sha256"] == [file.sha256 for file in entry.source.files]
    adata.write_h5ad(tmp_path / "cells.h5ad")


@pytest.mark.dataset("cell-lines-5cl-p3")
def test_filters_of_the_plates(real_data):
    """Values, labels and filters agree with the published tables read by pandas alone."""
    folder = real_data / "sc_mixology"
    metadata = pd.read_csv(folder / "sc_celseq2_5cl_p3.metadata.csv.gz")
    metadata = metadata[(metadata.cell_number == 1) & (metadata.demuxlet_cls == "SNG")]
    counts = pd.read_csv(folder / "sc_celseq2_5cl_p3.count.csv.gz")[metadata.index].T
    adata = load("cell-lines-5cl-p3")
    pd.testing.assert_frame_equal(adata.to_df().loc[counts.index], counts.astype("float32"), check_names=False)
    assert adata.obs.loc[metadata.index, "cell_line_demuxlet"].tolist() == metadata.cell_line_demuxlet.tolist()


@pytest.mark.parametrize("name", ["sim-cortex", "sim-mouse", "sim-organoid"])
def test_simulated_datasets(name):
    """A simulated dataset loads at its fast size by default, the same each time, and knows the truth."""
    entry, adata = read_registry()[name], load(name)
    assert adata.shape == (entry.cells, entry.genes) and adata.obs[entry.label].nunique() == entry.classes
    assert (adata.X != load(name, size="fast").X).nnz == 0
    assert adata.uns["sims_kit"]["dataset"] == name and "truth" in adata.uns


def test_full_size_of_a_simulated_dataset(monkeypatch):
    """`size` chooses the settings, and the shape is compared with the one of that size."""
    small = PRESETS["sim-cortex"]["fast"]
    monkeypatch.setitem(PRESETS["sim-cortex"], "full", replace(small, n_cells=60))
    with pytest.raises(DataError, match=r"60 cells instead of 20,000, 2,000 genes instead of 20,000"):
        load("sim-cortex", size="full")


def test_size_of_others_is_refused():
    """Only simulated data have sizes, and only two."""
    with pytest.raises(SettingError, match="pbmc68k has one size"):
        load("pbmc68k", size="full")
    with pytest.raises(UnknownNameError, match="'full'"):
        load("sim-cortex", size="ful")


def test_prepare_of_data_without_files():
    """Bundled and simulated data need nothing; an unknown name is told."""
    assert prepare("pbmc68k") == prepare("sim-mouse") == []
    with pytest.raises(UnknownNameError, match="'sim-mouse'"):
        prepare("sim-mous")


def test_entry_that_does_not_fit_the_data(monkeypatch):
    """When cells, genes or classes differ from the entry, the error gives both numbers."""
    wrong = read_registry()["pbmc68k"].model_copy(update={"cells": 701})
    monkeypatch.setitem(read_registry().datasets, "pbmc68k", wrong)
    with pytest.raises(DataError, match=r"pbmc68k.*700 cells instead of 701"):
        load("pbmc68k")


def test_no_network_and_no_cache(tmp_path, monkeypatch):
    """Without network and cache the error names the dataset and the file to place."""
    monkeypatch.setenv("SIMS_KIT_DATA", str(tmp_path))
    with pytest.raises(FetchError, match="mouse-immune") as caught:
        load("mouse-immune")
    assert str(tmp_path / "actinn" / "train_set.csv.gz") in str(caught.value)


def test_unknown_name_offers_the_nearest():
    """A misspelt dataset leads to the right one; a misspelt path is a missing file."""
    with pytest.raises(UnknownNameError, match="'pbmc68k'"):
        load("pbmc86k")
    with pytest.raises(FileNotFoundError):
        load("pbmc68k.h5ad")


def test_path_is_read(tmp_path, make_cells):
    """A path gives the file as it is."""
    cells = make_cells(n_cells=5, n_genes=4)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    for path in (tmp_path / "cells.h5ad", str(tmp_path / "cells.h5ad")):
        assert list(load(path).obs_names) == list(cells.obs_names)


def test_catalogue_names_can_be_loaded():
    """The catalogue's index holds the names that `load` takes."""
    assert load(catalogue().index[0]).n_obs == catalogue()["cells"].iloc[0]

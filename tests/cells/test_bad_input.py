"""Bad input to DataModule: every mistake has its own named error, with the value and the next step."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from sims_kit.cells.datamodule import DataModule
from sims_kit.errors import DataError, GeneError, LabelError, SettingError, UnknownNameError


def module_of(data, **settings):
    """A quiet DataModule on `obs["cell_type"]`."""
    return DataModule(data, **{"class_label": "cell_type", "verbose": False, **settings})


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"validation": 0.6, "test": 0.4}, SettingError, "together under 1"),
        ({"batch_size": 1}, SettingError, "batch_size=1"),
        ({"batch_size": 2.5}, SettingError, r"batch_size=2\.5"),
        ({"num_workers": -1}, SettingError, "num_workers=-1"),
        ({"seed": -1}, SettingError, "seed=-1"),
        ({"keep": ["class_0"]}, SettingError, "columns and values"),
        ({"class_label": ["cell_type"]}, SettingError, "one column"),
        ({"genes": "all"}, SettingError, "intersection"),
        ({"orientation": "turned"}, SettingError, "genes_by_cells"),
        ({"orientation": ["cells_by_genes"] * 2}, SettingError, "one for each datafile"),
        ({"labelfiles": [None, None]}, LabelError, "2 labelfiles for 1 datafiles"),
        ({"labelfiles": "nowhere.csv"}, FileNotFoundError, r"1 of 1 files do not exist: nowhere\.csv"),
        ({"class_label": None}, LabelError, r"one of \['cell_type'\]"),
        ({"class_label": "celltype"}, UnknownNameError, "AnnData 1 called 'celltype'. Did you mean 'cell_type'"),
        ({"layer": "count"}, UnknownNameError, "no layer 'count'"),
        ({"keep": {"cell_type": ["class_0"]}}, LabelError, "one class only, 'class_0', in 40 cells"),
        ({"keep": {"celltype": ["class_0"]}}, UnknownNameError, "cell_type"),
    ],
)
def test_bad_settings_are_named(make_cells, settings, error, message):
    """Each wrong argument has its own message with the value and what is allowed."""
    with pytest.raises(error, match=message):
        module_of(make_cells(), **settings).setup()


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda a: a.T, DataError, "genes_by_cells"),
        (lambda a: ad.AnnData(a.X * np.nan, a.obs, a.var), DataError, "AnnData 2 holds .* NaN"),
        (lambda a: ad.AnnData(a.X * -1, a.obs, a.var, layers={"x": a.X}), DataError, "scaled .*layer='x'"),
        (lambda a: a[:0].copy(), DataError, r"AnnData 2 is empty \(0 cells x 60 genes\)"),
        (lambda a: ad.AnnData(a.X, a.obs.assign(cell_type=np.nan), a.var), LabelError, "none of 120 cells"),
        (lambda a: ad.AnnData(a.X * 0, a.obs, a.var), DataError, "AnnData 2 is empty"),
        (
            lambda a: ad.AnnData(a.X, a.obs, pd.DataFrame(index=[f"ENSG{i:011d}" for i in range(60)])),
            GeneError,
            "AnnData 2 shares no gene with AnnData 1: 60 Ensembl ids such as .* against 60 symbols",
        ),
    ],
)
def test_bad_data_is_named(make_cells, spoil, error, message):
    """A spoiled second file is told by name, with what is wrong in it."""
    genes = ["ACTB", "GAPDH", "MALAT1", "RPL3", "RPS6", *(f"GENE{i}" for i in range(55))]
    cells = make_cells()
    cells.var_names = genes
    with pytest.raises(error, match=message):
        module_of([cells, spoil(cells.copy())]).setup()


def test_bad_lists_of_files(tmp_path):
    """All missing files are named at once; an empty list and something that is no file are refused."""
    with pytest.raises(FileNotFoundError, match=r"2 of 2 files do not exist: .*a\.h5ad, .*b\.csv.*sims_kit\.load"):
        module_of([tmp_path / "a.h5ad", str(tmp_path / "b.csv")])
    with pytest.raises(SettingError, match="datafiles is empty"):
        module_of([])
    with pytest.raises(SettingError, match="ndarray"):
        module_of([np.zeros((3, 3))])


def test_single_cells_cannot_be_held_out(make_cells):
    """When every class has one cell, no part can be made, and the error says what to do."""
    adata = make_cells(n_cells=4)
    adata.obs["cell_type"] = list("abcd")
    with pytest.raises(LabelError, match="validation=0"):
        module_of(adata).setup()

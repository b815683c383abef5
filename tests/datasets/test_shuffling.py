"""A shuffled copy: the same cells with all that belongs to them, in another order, in small memory."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata.tests.helpers import assert_equal

from sims_kit.datasets import shuffle
from sims_kit.datasets.__main__ import main
from sims_kit.errors import DataError, SettingError


@pytest.fixture
def cells(make_cells, tmp_path):
    """Cells with all parts of an AnnData, written to `cells.h5ad`."""
    cells = make_cells()
    cells.raw = cells
    cells = cells[:, :40].copy()
    cells.layers["counts"], cells.X = cells.X.copy(), cells.X * 0.5
    cells.obs["sample"] = pd.Categorical(np.arange(120) % 4)
    cells.obsm["X_pca"], cells.varm["PCs"] = np.arange(240.0).reshape(120, 2), np.ones((40, 2))
    cells.uns["sims_kit"] = {"dataset": "mine"}
    cells.write_h5ad(tmp_path / "cells.h5ad", compression="gzip")
    return ad.read_h5ad(tmp_path / "cells.h5ad")


@pytest.mark.parametrize("values_at_once", [10**9, 500])
def test_the_copy_has_every_cell_with_all_parts(cells, tmp_path, monkeypatch, values_at_once):
    """Put back in order the copy equals the source, from one pile or from many; the order is that of the seed."""
    monkeypatch.setattr("sims_kit.datasets.shuffling.VALUES_AT_ONCE", values_at_once)
    monkeypatch.setattr("sims_kit.datasets.shuffling.ROWS_AT_ONCE", 50)
    shuffle(tmp_path / "cells.h5ad", tmp_path / "copy.h5ad")
    copy = ad.read_h5ad(tmp_path / "copy.h5ad")
    order = np.random.default_rng(0).permutation(120)
    assert list(copy.obs_names) == list(cells.obs_names[order])
    assert_equal(copy[cells.obs_names].copy(), cells, exact=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells.h5ad", "copy.h5ad"]


def test_the_command(cells, tmp_path, capsys):
    """`python -m sims_kit.datasets shuffle` writes the copy, and says what is wrong."""
    assert main(["shuffle", str(tmp_path / "cells.h5ad"), str(tmp_path / "copy.h5ad"), "--seed", "1"]) == 0
    first = ad.read_h5ad(tmp_path / "copy.h5ad").obs_names
    assert list(first) == list(cells.obs_names[np.random.default_rng(1).permutation(120)])
    assert main(["shuffle", str(tmp_path / "nowhere.h5ad"), str(tmp_path / "copy.h5ad")]) == 1
    assert "no file" in capsys.readouterr().err


def test_what_cannot_be_shuffled(cells, tmp_path):
    """Another format, the file itself, and a matrix that is not CSR are refused; no target is left."""
    with pytest.raises(SettingError, match=r"one \.h5ad to another"):
        shuffle(tmp_path / "cells.h5ad", tmp_path / "copy.csv")
    with pytest.raises(SettingError, match=r"one \.h5ad to another"):
        shuffle(tmp_path / "cells.h5ad", tmp_path / "cells.h5ad")
    cells.layers["counts"] = cells.layers["counts"].tocsc()
    cells.write_h5ad(tmp_path / "turned.h5ad")
    with pytest.raises(DataError, match="layers/counts is not stored as CSR"):
        shuffle(tmp_path / "turned.h5ad", tmp_path / "copy.h5ad")
    assert not (tmp_path / "copy.h5ad").exists()

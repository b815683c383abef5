"""Explanation: the masks as tables."""

import numpy as np
import pytest
import torch

import sims_kit as sk


@pytest.fixture(scope="module")
def cells(make_cells):
    """Easy cells with known marker genes."""
    return make_cells(n_cells=300)


@pytest.fixture(scope="module")
def model(cells, tmp_path_factory):
    """A model fitted on them."""
    quiet = dict(enable_progress_bar=False, logger=False, verbose=False)
    return sk.fit(cells, "cell_type", max_epochs=15, default_root_dir=tmp_path_factory.mktemp("fit"), **quiet)


@pytest.fixture(scope="module")
def explanation(model, cells):
    """Its explanation of the cells."""
    return sk.explain(model, cells, batch_size=64)


def test_cells_are_normalised_masks(model, cells, explanation):
    """Each row is the network's aggregated mask divided by its sum, stored sparse."""
    assert explanation.cells.shape == cells.shape and explanation.cells.format == "csr"
    np.testing.assert_allclose(explanation.cells.sum(axis=1), 1, rtol=1e-5)
    counts = cells.X[:5].toarray()
    normalised = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)
    aggregated, _ = model.network.explain(torch.from_numpy(normalised))
    aggregated = aggregated.to_dense().numpy()
    expected = aggregated / aggregated.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(explanation.cells[:5].toarray(), expected, atol=1e-5)


def test_tables_agree_with_the_cells(cells, explanation):
    """Class and gene tables are means of the rows."""
    rows = explanation.cells.toarray()
    for label, weights in explanation.classes.iterrows():
        np.testing.assert_allclose(weights, rows[explanation.labels == label].mean(axis=0), atol=1e-6)
    genes = explanation.genes.loc[cells.var_names]
    np.testing.assert_allclose(genes["weight"], rows.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(genes["cells"], (rows > 0).mean(axis=0))
    assert explanation.genes["weight"].is_monotonic_decreasing


def test_masks_find_the_markers(cells, explanation):
    """Marker genes get most of the weight, as only they tell the classes apart."""
    markers = cells.var["marker_of"] != ""
    assert explanation.genes.loc[cells.var_names[markers], "weight"].sum() > 0.6  # half of the genes


def test_one_cell_and_top_genes(cells, explanation):
    """A cell's genes are listed largest first; each class has its top genes."""
    genes = explanation.cell(cells.obs_names[7])
    assert genes.is_monotonic_decreasing and genes.sum() == pytest.approx(1, rel=1e-5)
    top = explanation.top_genes(5)
    assert top.shape == (5, 3)
    assert top.iloc[0, 0] == explanation.classes.iloc[0].idxmax()
    with pytest.raises(KeyError, match="cell_0007"):
        explanation.cell("cell_00007")


def test_groupby(model, cells):
    """Classes can be grouped by a column of the cells instead of by prediction."""
    explanation = sk.explain(model, cells, groupby="cell_type")
    assert list(explanation.labels) == list(cells.obs["cell_type"])
    with pytest.raises(KeyError, match="cell_type"):
        sk.explain(model, cells, groupby="celltype")

"""Figures of evidence: the numbers on the Axes, not their pixels."""

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from sims_kit import plotting
from sims_kit.errors import DataError, SettingError, UnknownNameError


@pytest.fixture
def recovery():
    """Two methods on three classes; one class has no markers."""
    table = pd.DataFrame({"method": ["x"] * 3 + ["y"] * 3, "class": list("abc") * 2})
    table["auprc"], table["precision_at_k"] = [0.9, 0.5, np.nan, 0.2, 0.4, np.nan], [1, 0.8, np.nan, 0, 0.1, np.nan]
    return table


@pytest.fixture
def curves():
    """Two methods, both curves, points out of order."""
    table = pd.DataFrame(
        {"method": list("xxxx"), "curve": ["deletion"] * 2 + ["insertion"] * 2, "n_genes": [10, 0] * 2}
    )
    table["probability"], table["unchanged"] = [0.2, 1.0, 0.9, 0.3], [0.1, 1.0, 0.8, 0.2]
    return pd.concat([table, table.assign(method="y", probability=0.5)])


@pytest.fixture
def genes():
    """Four genes, of either sign, in the order of the explanation."""
    values = {"weight": 0.25, "contribution": [2.0, 0.5, -0.1, -3.0], "against_second": 0.0}
    return pd.DataFrame(values | {"expression": [1.04, 2.0, 3.0, 4.0]}, index=list("abcd"))


def test_recovery_has_a_point_per_class_and_the_mean(recovery):
    """Both scores; classes without markers are left out."""
    axes = plotting.marker_recovery(recovery)
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["x", "y"]
    for ax, score in zip(axes, ("auprc", "precision_at_k"), strict=True):
        for row, method in enumerate("xy"):
            points, mean = ax.collections[2 * row : 2 * row + 2]
            values = recovery.loc[recovery["method"] == method, score].dropna()
            np.testing.assert_allclose(points.get_offsets()[:, 0], values)
            np.testing.assert_allclose(mean.get_offsets(), [[values.mean(), row]])
    assert ["precision" in ax.get_xlabel() for ax in axes] == [True, True]


def test_curves_have_two_panels(curves):
    """A line per method, by number of genes, zero included."""
    axes = plotting.faithfulness_curves(curves)
    assert [ax.get_title() for ax in axes] == ["deletion", "insertion"]
    for ax, expected in zip(axes, ([1.0, 0.2], [0.3, 0.9]), strict=True):
        line, other = ax.lines
        np.testing.assert_allclose(line.get_xdata(), [0, 10])
        np.testing.assert_allclose(line.get_ydata(), expected)
        assert line.get_color() != other.get_color() and line.get_marker() != other.get_marker()
        assert ax.get_xscale() == "symlog"
    assert [text.get_text() for text in axes[1].get_legend().get_texts()] == ["x", "y"]
    first, _ = plotting.faithfulness_curves(curves, "unchanged")
    assert first.get_ylabel() == "calls unchanged" and first.lines[0].get_ydata()[1] == 0.1


def test_one_cell(genes):
    """The largest contributions of either sign, told apart by colour, expression beside them."""
    ax = plotting.cell_genes(genes, n=3)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["d", "a", "b"]
    bars = {round(bar.get_y() + bar.get_height() / 2): bar for bar in ax.patches}
    assert [bars[row].get_width() for row in range(3)] == [-3.0, 2.0, 0.5]
    assert bars[1].get_facecolor() == bars[2].get_facecolor() != bars[0].get_facecolor()
    assert [text.get_text() for text in ax.texts] == ["4.0", "1.0", "2.0", "expression"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["for the call", "against it"]


def test_given_axes_are_drawn_on(recovery, curves, genes):
    """No figure is made where Axes are given."""
    given = plt.figure().subplots(1, 2)
    assert list(plotting.marker_recovery(recovery, axes=given)) == list(given)
    assert list(plotting.faithfulness_curves(curves, axes=given)) == list(given)
    assert plotting.cell_genes(genes, ax=given[0]) is given[0]
    assert len(plt.get_fignums()) == 1


def test_tables_that_cannot_be_drawn_are_told(recovery, curves, genes):
    """Missing columns, empty tables, too many methods, Axes of another number."""
    with pytest.raises(UnknownNameError, match="auprc"):
        plotting.marker_recovery(recovery.drop(columns="auprc"))
    with pytest.raises(DataError, match="no rows"):
        plotting.marker_recovery(recovery.iloc[:0])
    with pytest.raises(SettingError, match="1 axes"):
        plotting.marker_recovery(recovery, axes=[plt.figure().subplots()])
    with pytest.raises(UnknownNameError, match="accuracy"):
        plotting.faithfulness_curves(curves, "accuracy")
    many = pd.concat([curves.assign(method=name) for name in "abcdefgh"])
    with pytest.raises(SettingError, match="8 methods are too many"):
        plotting.faithfulness_curves(many)
    with pytest.raises(UnknownNameError, match="expression"):
        plotting.cell_genes(genes.drop(columns="expression"))
    with pytest.raises(SettingError, match="0 genes"):
        plotting.cell_genes(genes, n=0)
    with pytest.raises(DataError, match="nothing to draw"):
        plotting.cell_genes(genes.assign(contribution=0.0))


def test_cell_masks():
    """One mask is bars, several are a matrix; scales are those asked for, and contributions are told by colour."""
    genes = pd.DataFrame({"mask": [0.5, 0.25], "contribution": [1.0, -0.5]}, index=["CD79A", "LYZ"])
    weights, added = plotting.cell_masks(genes, largest=1.0, furthest=2.0)
    assert [bar.get_width() for bar in weights.patches] == [0.5, 0.25] and weights.get_xlim()[1] >= 1
    assert [bar.get_width() for bar in added.patches] == [1.0, -0.5] and added.get_xlim() == (-2.1, 2.1)
    assert len({bar.get_facecolor() for bar in added.patches}) == 2
    genes.insert(1, "step 2", [0.0, 0.75])
    matrix, _ = plotting.cell_masks(genes)
    np.testing.assert_array_equal(matrix.images[0].get_array(), [[0.5, 0.0], [0.25, 0.75]])
    assert matrix.images[0].get_clim() == (0, 0.75)
    assert [label.get_text() for label in matrix.get_yticklabels()] == ["CD79A", "LYZ"]
    with pytest.raises(DataError, match="no column of mask weights"):
        plotting.cell_masks(genes[["contribution"]])
    with pytest.raises(UnknownNameError, match="contribution"):
        plotting.cell_masks(genes[["mask"]])

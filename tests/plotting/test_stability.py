"""Figures of stability and of sets of genes: the numbers on the Axes, not their pixels."""

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from sims_kit import plotting
from sims_kit.errors import DataError, SettingError, UnknownNameError


@pytest.fixture
def classes():
    """What a set holds in three classes; more than chance in the second."""
    table = pd.DataFrame({"weight": [0.01, 0.2, 0.0]}, pd.Index(["a", "b", "c"], name="class"))
    table["weight_expected"], table["weight_low"], table["weight_high"] = [0.02, 0.03, 0.04], 0.01, [0.05, 0.06, 0.07]
    return table.assign(weight_p_adjusted=[0.9, 0.001, 1.0])


def test_overlap_of_each_class():
    """A point per pair in the row of its class, and the mean of the pairs that have a score."""
    table = pd.DataFrame({"class": ["b", "a", "b", "a"], "rbo": [0.2, 0.5, 0.6, np.nan]})
    ax = plotting.stability(table)
    points, means = ax.collections
    assert len(points.get_offsets()) == 4
    np.testing.assert_allclose(np.ma.getdata(points.get_offsets())[:3], [[0.2, 0], [0.5, 1], [0.6, 0]])
    np.testing.assert_allclose(means.get_offsets(), [[0.4, 0], [0.5, 1]])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["b", "a"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["pair of models", "mean"]


def test_agreement_against_members():
    """The line goes through the means; every draw is a point."""
    table = pd.DataFrame({"n_members": [1, 1, 2, 2], "draw": [0, 1] * 2, "rbo": [0.2, 0.4, 0.6, 0.7]})
    ax = plotting.consensus_size(table)
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[1, 0.3], [2, 0.65]])
    band, points = ax.collections
    np.testing.assert_allclose(band.get_paths()[0].vertices[:, 1].min(), 0.21)
    assert len(points.get_offsets()) == 4 and list(ax.get_xticks()) == [1, 2]


def test_weight_against_the_null(classes):
    """Bars are the intervals in percent; the class above them is another colour and shape."""
    own = plt.figure().subplots()
    ax = plotting.gene_set_weight(classes, ax=own)
    assert ax is own
    intervals, usual, more = ax.collections
    np.testing.assert_allclose([line[:, 0] for line in intervals.get_segments()], [[1, 5], [1, 6], [1, 7]])
    np.testing.assert_allclose(usual.get_offsets(), [[1, 0], [0, 2]])
    np.testing.assert_allclose(more.get_offsets(), [[20, 1]])
    np.testing.assert_allclose(ax.lines[0].get_xdata(), [2, 3, 4])
    assert not np.array_equal(usual.get_facecolor(), more.get_facecolor())
    assert len(usual.get_paths()[0]) != len(more.get_paths()[0])
    assert ax.get_xlim()[0] < 0 and ax.get_xlabel() == "share of the mask weight (%)"
    assert len(plotting.gene_set_weight(classes, alpha=1e-6).collections) == 2  # none marked


def test_tables_that_cannot_be_drawn_are_told(classes):
    """Missing columns, tables without rows and a wrong alpha are named."""
    with pytest.raises(UnknownNameError, match="rbo"):
        plotting.stability(pd.DataFrame({"class": ["a"]}))
    with pytest.raises(UnknownNameError, match="n_members"):
        plotting.consensus_size(pd.DataFrame({"rbo": [1.0]}))
    with pytest.raises(UnknownNameError, match="contribution"):
        plotting.gene_set_weight(classes, "contribution")
    with pytest.raises(DataError, match="no rows"):
        plotting.gene_set_weight(classes.iloc[:0])
    with pytest.raises(SettingError, match="alpha=5"):
        plotting.gene_set_weight(classes, alpha=5)

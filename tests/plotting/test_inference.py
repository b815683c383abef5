"""Figures of tissue cultures and stress: the numbers on the Axes, not their pixels."""

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from sims_kit import plotting
from sims_kit.errors import DataError, SettingError, UnknownNameError


@pytest.fixture
def shares():
    """Two samples, three classes and Unknown; one class that nobody has."""
    table = pd.DataFrame({"tissue": ["primary"] * 4 + ["culture"] * 4, "sample": ["test set"] * 4 + ["a"] * 4})
    table["class"] = ["VIP", "SST", "L4 IT", "Unknown"] * 2
    table["percent"] = [20.0, 70, 0, 10, 30, 0, 0, 70]
    return table.assign(percent_low=table["percent"] * 0.9, percent_high=table["percent"] + 5)


@pytest.fixture
def curves():
    """Two methods, two seeds, two strengths."""
    table = pd.DataFrame({"method": list("xxxxyyyy"), "seed": [0, 0, 1, 1] * 2, "stress_strength": [0, 2] * 4})
    table["accuracy"] = [0.9, 0.5, 0.8, 0.3, 0.7, 0.7, 0.6, 0.6]
    return table


def test_composition_has_a_row_for_each_class(shares):
    """Points are the shares, lines the intervals, the commonest first, Unknown last; absent classes are left out."""
    ax = plotting.composition(shares)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["SST", "VIP", "Unknown"]
    np.testing.assert_allclose(ax.lines[0].get_xdata(), [70, 20, 10])
    np.testing.assert_allclose(ax.lines[1].get_xdata(), [0, 30, 70])
    np.testing.assert_allclose([line[:, 0] for line in ax.collections[1].get_segments()], [[0, 5], [27, 35], [63, 75]])
    assert (ax.lines[0].get_ydata() < ax.lines[1].get_ydata()).all()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["primary, test set", "culture, a"]
    truth = [np.nan] * 4 + [25.0, 5, 0, np.nan]
    ax = plotting.composition(shares.assign(true_percent=truth))
    np.testing.assert_allclose(ax.lines[2].get_xdata(), [5, 25, np.nan])
    assert len(ax.lines) == 3 and ax.get_legend().get_texts()[-1].get_text() == "true share"


def test_confidence_is_a_distribution_of_each_sample():
    """Lines are empirical distributions; the legend counts what is below the threshold."""
    cells = pd.DataFrame({"tissue": ["primary"] * 4 + ["culture"] * 4, "sample": ["test set"] * 4 + ["a"] * 4})
    cells["confidence"] = [0.9, 0.8, 0.95, 0.99, 0.4, 0.2, 0.9, 0.5]
    ax = plotting.confidence_shift(cells, 0.5)
    np.testing.assert_allclose(np.unique(ax.lines[1].get_xdata()[1:]), [0.2, 0.4, 0.5, 0.9])
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["primary, test set (0.0% Unknown)", "culture, a (50.0% Unknown)"]
    assert ax.lines[-1].get_xdata()[0] == 0.5


def test_stress_lines_are_means_over_seeds(curves):
    """A line through the means of each method, a point per seed; methods without the score are left out."""
    own = plt.figure().subplots()
    ax = plotting.stress_curves(curves, ax=own)
    assert ax is own
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[0, 0.85], [2, 0.4]])
    np.testing.assert_allclose(ax.lines[1].get_xydata(), [[0, 0.65], [2, 0.65]])
    assert len(ax.collections[0].get_offsets()) == 4
    curves["share"] = np.where(curves["method"] == "x", 0.5, np.nan)
    curves["stress_counts_percent"] = curves["stress_strength"] * 10.2
    ax = plotting.stress_curves(curves, "share")
    assert len(ax.lines) == 1 and [tick.get_text() for tick in ax.get_xticklabels()] == ["0\n(0 %)", "2\n(20 %)"]


def test_methods_kept_from_stress_genes_are_dashed(curves):
    """The same colour, another line and another name."""
    ax = plotting.stress_curves(
        pd.concat([c.assign(knows_stress_genes=k) for k, c in ((True, curves), (False, curves))])
    )
    assert [line.get_linestyle() for line in ax.lines] == ["-", "-", "--", "--"]
    assert ax.lines[0].get_color() == ax.lines[2].get_color() != ax.lines[1].get_color()
    assert ax.lines[2].get_label() == "x, stress genes left out"


def test_tables_that_cannot_be_drawn_are_told(shares, curves):
    """Missing columns, nothing to draw, a wrong threshold and too many methods are named."""
    with pytest.raises(UnknownNameError, match="percent_low"):
        plotting.composition(shares.drop(columns="percent_low"))
    with pytest.raises(DataError, match="no rows"):
        plotting.composition(shares.iloc[:0])
    cells = shares.assign(confidence=0.5)
    with pytest.raises(SettingError, match="threshold=2"):
        plotting.confidence_shift(cells, 2)
    with pytest.raises(UnknownNameError, match="median_f1"):
        plotting.stress_curves(curves, "median_f1")
    with pytest.raises(DataError, match="no rows"):
        plotting.stress_curves(curves.assign(accuracy=np.nan))
    many = pd.concat([curves.assign(method=f"{i}") for i in range(8)])
    with pytest.raises(SettingError, match="8 methods are too many"):
        plotting.stress_curves(many)
    with pytest.raises(SettingError, match="8 samples are too many"):
        plotting.composition(pd.concat([shares.iloc[:4].assign(sample=f"{i}") for i in range(8)]))

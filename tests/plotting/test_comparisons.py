"""Figures that compare methods: the numbers on the Axes, not their pixels."""

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from sims_kit import plotting
from sims_kit.errors import DataError, SettingError, UnknownNameError


@pytest.fixture
def scores():
    """Three methods on two tasks; one method has no score on the second."""
    table = pd.DataFrame({"task": list("aaabbb"), "method": ["x", "y", "z"] * 2})
    table["median_f1"] = [0.9, 0.8, 0.95, 0.5, np.nan, 0.6]
    table["median_f1_low"], table["median_f1_high"] = table["median_f1"] - 0.1, table["median_f1"] + 0.04
    table["unlabelled_percent"] = [0.0, 0.0, 37.7, 0.0, np.nan, 0.0]
    return table


def test_scores_have_a_panel_for_each_task(scores):
    """Points are the scores in the order of the methods, lines the intervals; what has no score is marked."""
    axes = plotting.method_scores(scores, highlight="x")
    assert [ax.get_title() for ax in axes] == ["a", "b"]
    intervals, points = axes[0].collections
    np.testing.assert_allclose(points.get_offsets()[:, 0], [0.9, 0.8, 0.95])
    np.testing.assert_allclose(
        [line[:, 0] for line in intervals.get_segments()], [[0.8, 0.94], [0.7, 0.84], [0.85, 0.99]]
    )
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["x", "y", "z"]
    assert [text.get_text() for text in axes[0].texts] == ["38 %"]
    assert [(text.get_text(), text.get_position()[1]) for text in axes[1].texts] == [("×", 1)]
    assert axes[0].lines[0].get_xdata()[0] == 0.9


def test_recall_lines_are_means_of_groups():
    """Every class is a point; lines go through mean recall and mean size (on the axis's scale) of equal groups."""
    table = pd.DataFrame({"method": "x", "n_cells": [10, 1000, 100, 10], "recall": [0.0, 1.0, 0.8, 0.4]})
    ax = plotting.recall_by_size(table, n_bins=2)
    (line,) = ax.lines
    np.testing.assert_allclose(line.get_xdata(), [10, np.sqrt(100 * 1000)])
    np.testing.assert_allclose(line.get_ydata(), [0.2, 0.9])
    assert len(ax.collections[0].get_offsets()) == 4 and ax.get_xscale() == "log"


def test_tables_that_cannot_be_drawn_are_told(scores):
    """Missing columns, too many methods, nothing to draw, and Axes of another number are named."""
    with pytest.raises(UnknownNameError, match="macro_f1"):
        plotting.method_scores(scores, "macro_f1")
    with pytest.raises(DataError, match="no rows"):
        plotting.method_scores(scores.iloc[:0])
    with pytest.raises(SettingError, match="1 axes for 2 tasks"):
        plotting.method_scores(scores, axes=[plt.figure().subplots()])
    many = pd.DataFrame({"method": list("abcdefgh"), "n_cells": 10, "recall": 1.0})
    with pytest.raises(SettingError, match="8 methods are too many"):
        plotting.recall_by_size(many)
    with pytest.raises(DataError, match="no classes"):
        plotting.recall_by_size(many, methods=["z"])

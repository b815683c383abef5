"""Figures of trust: the numbers on the Axes, not their pixels."""

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from sims_kit import calibration, plotting
from sims_kit.errors import DataError, SettingError, UnknownNameError


@pytest.fixture
def cells():
    """Confidences and whether each was right."""
    random = np.random.default_rng(0)
    confidence = random.uniform(0.3, 1, 200)
    return confidence, random.random(200) < confidence


def test_reliability_points_are_bins(cells):
    """A point per bin at confidence and accuracy, groups in the legend, and the diagonal."""
    table = calibration.reliability_table(*cells, n_bins=5)
    ax = plotting.reliability_diagram(table)
    points = ax.collections[1].get_offsets()
    np.testing.assert_allclose(points, table[["confidence", "accuracy"]])
    assert ax.get_legend() is None
    both = pd.concat([table.assign(group="before"), table.assign(group="after")])
    ax = plotting.reliability_diagram(both, ax=plt.figure().subplots())
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["before", "after"]
    with pytest.raises(UnknownNameError, match="accuracy"):
        plotting.reliability_diagram(table.drop(columns="accuracy"))


def test_rejection_lines_are_the_curve(cells):
    """Answered and wrong shares at each threshold, the promise and the threshold that keeps it."""
    curve = calibration.rejection_curve(*cells)
    ax = plotting.rejection_curves(curve, threshold=0.8, error_rate=0.1)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), curve["answered"][::-1])
    np.testing.assert_allclose(ax.lines[1].get_ydata(), curve["error"][::-1])
    assert [text.get_text() for text in ax.get_legend().get_texts()][2:] == [
        "threshold 0.80",
        "promise: at most 10% wrong",
    ]
    assert len(plotting.rejection_curves(curve, threshold=np.inf).lines) == 2


def test_coverage_points_are_classes():
    """A point per class at its coverage, numbers of cells and sizes beside it, a line at the promise."""
    sets = np.array([[1, 0], [1, 1], [0, 0], [0, 1]], bool)
    table = calibration.coverage_table(sets, ["a", "a", "b", "b"], ["a", "b"])
    ax = plotting.set_coverage(table, 0.1)
    promise, points = ax.lines
    assert promise.get_xdata()[0] == 0.9
    np.testing.assert_allclose(points.get_xdata(), [1, 0.5, 0.75])
    assert [text.get_text() for text in ax.texts] == ["cells, classes in a set", "2, 1.50", "2, 0.50", "4, 1.00"]
    with pytest.raises(SettingError, match="alpha is 0"):
        plotting.set_coverage(table, 0)


def test_unseen_scores_and_roc():
    """Histograms sum to one, and the areas are those of the scores."""
    scores, unseen = np.array([0.0, 1, 2, 3]), np.array([False, False, True, True])
    ax = plotting.unseen_scores(scores, unseen)
    assert ax.get_title() == "AUROC 1.000"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "known types (2 cells)",
        "unseen type (2 cells)",
    ]
    ax = plotting.unseen_roc({"good": scores, "blind": np.zeros(4)}, unseen)
    assert [line.get_label() for line in ax.lines[1:]] == ["good 1.000", "blind 0.500"]
    with pytest.raises(DataError, match="some of both"):
        plotting.unseen_scores(scores, np.ones(4, bool))
    with pytest.raises(DataError, match="finite"):
        plotting.unseen_roc({"bad": scores * np.nan}, unseen)


def test_unseen_types_have_a_row_each():
    """A panel per task, a row per left-out type, a marker per method."""
    table = pd.DataFrame({"task": list("xxy"), "left_out": ["B", "T", "B"], "method": "energy", "auroc": [0.9, 0.6, 1]})
    axes = plotting.unseen_types(table)
    assert [ax.get_title() for ax in axes] == ["x", "y"]
    np.testing.assert_allclose(axes[0].lines[0].get_xdata(), [0.9, 0.6])
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["B", "T"]
    with pytest.raises(SettingError, match="1 axes for 2 tasks"):
        plotting.unseen_types(table, axes=[plt.figure().subplots()])
    with pytest.raises(SettingError, match="8 lines are too many"):
        plotting.unseen_types(pd.concat([table.assign(method=str(i)) for i in range(8)]))

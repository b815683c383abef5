"""Figures of generalization: the numbers on the Axes, not their pixels."""

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from sims_kit import plotting
from sims_kit.errors import DataError, SettingError, UnknownNameError

NAMES = ("balanced_accuracy", "weighted_accuracy", "aggregated_f1", "median_f1")


@pytest.fixture
def scores():
    """Two methods trained on MTG and tested on two regions, with the reference."""
    rows = []
    for m, method in enumerate(("SIMS", "SVM")):
        for t, target in enumerate(("MTG", "A1C", "V1C")):
            row = {"method": method, "trained_on": "MTG", "target": target, "in_distribution": t == 0}
            row["unseen_percent"] = 12.3 if target == "V1C" else 0.0
            for s, name in enumerate(NAMES):
                value = 0.9 - 0.1 * t - 0.05 * m - 0.01 * s
                row |= {name: value, f"{name}_low": value - 0.02, f"{name}_high": value + 0.03}
            rows.append(row)
    return pd.DataFrame(rows)


def points(ax):
    """Where the markers of every line are (x), in the order drawn: reference, then scores."""
    return [line.get_xdata() for line in ax.lines if line.get_linestyle() == "None"]


def test_each_score_has_points_intervals_and_a_reference(scores):
    """Panel (a) has both accuracies of each method, (b) both F1; a tick is what the model scores at home."""
    axes = plotting.generalization(scores)
    assert axes.shape == (1, 2)
    assert [label.get_text() for label in axes[0, 0].get_yticklabels()] == ["A1C", "V1C"]
    for ax, names in zip(axes[0], (NAMES[:2], NAMES[2:]), strict=True):
        drawn = points(ax)
        away, home = scores[~scores["in_distribution"]], scores[scores["in_distribution"]]
        for i, (method, name) in enumerate((m, n) for m in ("SIMS", "SVM") for n in names):
            own = away[away["method"] == method]
            np.testing.assert_allclose(drawn[2 * i], home.loc[home["method"] == method, name].repeat(2))
            np.testing.assert_allclose(drawn[2 * i + 1], own[name])
            ends = [segment[:, 0] for segment in ax.collections[i].get_segments()]
            np.testing.assert_allclose(ends, own[[f"{name}_low", f"{name}_high"]])
    assert [text.get_text() for text in axes[0, 1].texts] == ["12.3 % unseen"]
    assert axes[0, 1].texts[0].get_position()[1] == 1


def test_rows_of_panels_where_several_groups_train(scores):
    """One row for each training group that has several targets; one for all where each has one."""
    other = scores.assign(trained_on="A1C", target=scores["target"].map({"MTG": "A1C", "A1C": "MTG", "V1C": "V1C"}))
    axes = plotting.generalization(pd.concat([scores, other]))
    assert axes.shape == (2, 2) and "trained on A1C" in axes[1, 0].get_title()
    pair = scores[scores["target"] != "V1C"]
    back = pair.assign(trained_on="A1C", target=pair["target"].map({"MTG": "A1C", "A1C": "MTG"}))
    (left, _), *more = plotting.generalization(pd.concat([pair, back]))
    assert not more and [label.get_text() for label in left.get_yticklabels()] == ["MTG → A1C", "A1C → MTG"]
    left_out = pair.replace({"trained_on": {"MTG": "all but A1C"}, "target": {"MTG": "all but A1C"}})
    ((left, _),) = plotting.generalization(left_out)
    assert [label.get_text() for label in left.get_yticklabels()] == ["A1C"]
    np.testing.assert_allclose(points(left)[0], pair.iloc[0]["balanced_accuracy"])


def test_matrix_has_its_own_group_framed(scores):
    """Trained on in rows, tested on in columns, its own group first; pairs that were not run stay blank."""
    extra = scores.iloc[1:2].assign(trained_on="V1C", target="A1C", median_f1=0.3)
    ax = plotting.transfer_matrix(pd.concat([scores, extra]), "SIMS")
    assert [label.get_text() for label in ax.get_xticklabels()] == ["MTG", "V1C", "A1C"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["MTG", "V1C"]
    np.testing.assert_allclose(ax.images[0].get_array().filled(-1), [[0.87, 0.67, 0.77], [-1, -1, 0.3]])
    assert {text.get_text(): text.get_bbox_patch() is not None for text in ax.texts} == {
        ".87": True,
        ".67": False,
        ".77": False,
        ".30": False,
    }


def test_tables_that_cannot_be_drawn_are_told(scores):
    """Missing columns, no rows, methods that are not there, and Axes of another number are named."""
    with pytest.raises(UnknownNameError, match="median_f1_low"):
        plotting.generalization(scores.drop(columns="median_f1_low"))
    with pytest.raises(DataError, match="no rows"):
        plotting.generalization(scores[scores["in_distribution"]])
    with pytest.raises(SettingError, match="1 axes for 2 panels"):
        plotting.generalization(scores, axes=[plt.figure().subplots()])
    many = pd.concat([scores.assign(method=str(i)) for i in range(8)])
    with pytest.raises(SettingError, match="8 methods are too many"):
        plotting.generalization(many)
    with pytest.raises(UnknownNameError, match="SIMSS"):
        plotting.transfer_matrix(scores, "SIMSS")

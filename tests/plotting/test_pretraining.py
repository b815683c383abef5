"""Figures of pretraining: the numbers of the table, each start told from the others."""

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from sims_kit import plotting
from sims_kit.errors import DataError, SettingError, UnknownNameError


@pytest.fixture
def scores():
    """Two starts at three sizes."""
    rows = [
        {"start": start, "n_labelled": n, "steps": 100, "accuracy": 0.1 * n**0.3 + gain}
        for start, gain in (("random weights", 0), ("own cells", 0.1))
        for n in (10, 30, 100)
    ]
    table = pd.DataFrame(rows)
    return table.assign(accuracy_low=table["accuracy"] - 0.05, accuracy_high=table["accuracy"] + 0.05)


def test_label_efficiency_draws_the_table(scores):
    """A line per start through its scores, at the sizes of the table but for a small shift; ticks at the sizes."""
    ax = plotting.label_efficiency(scores)
    assert [line.get_label() for line in ax.get_lines()] == ["random weights", "own cells"]
    for line, (_, table) in zip(ax.get_lines(), scores.groupby("start", sort=False), strict=True):
        np.testing.assert_allclose(line.get_ydata(), table["accuracy"])
        np.testing.assert_allclose(line.get_xdata(), table["n_labelled"], rtol=0.05)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["10", "30", "100"]
    assert (
        len({line.get_color() for line in ax.get_lines()}) == len({line.get_marker() for line in ax.get_lines()}) == 2
    )


def test_learning_speed_draws_means_over_seeds():
    """The strong line is the mean of the seeds."""
    curves = pd.DataFrame(
        [{"start": "own cells", "seed": seed, "step": step, "accuracy": step / 30 + seed / 10}
         for seed in (0, 1) for step in (10, 20)]
    )  # fmt: skip
    ax = plotting.learning_speed(curves, ax=plt.figure().subplots())
    (mean,) = (line for line in ax.get_lines() if line.get_label() == "own cells")
    np.testing.assert_allclose(mean.get_ydata(), [10 / 30 + 0.05, 20 / 30 + 0.05])
    assert len(ax.get_lines()) == 3


def test_tables_that_cannot_be_drawn(scores):
    """Empty tables, missing columns, and rows of several lengths are refused by name."""
    with pytest.raises(DataError, match="no rows"):
        plotting.label_efficiency(scores.iloc[:0])
    with pytest.raises(UnknownNameError, match="accuracy_low"):
        plotting.label_efficiency(scores.drop(columns="accuracy_low"))
    with pytest.raises(UnknownNameError, match="n_labeled"):
        plotting.label_efficiency(scores, against="n_labeled")
    with pytest.raises(SettingError, match="several rows"):
        plotting.label_efficiency(pd.concat([scores, scores]))
    with pytest.raises(SettingError, match="several rows"):
        plotting.learning_speed(scores.assign(seed=0, step=1))

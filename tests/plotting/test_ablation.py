"""Figures of ablation: the numbers on the Axes, not their pixels."""

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from sims_kit import plotting
from sims_kit.errors import DataError, SettingError, UnknownNameError


@pytest.fixture
def epochs():
    """Two proportions, two seeds, of 20 and 12 epochs."""
    rows = []
    for proportion, n_epochs in ((0.1, 20), (1.0, 12)):
        for seed in (0, 1):
            epoch = np.arange(n_epochs)
            score = proportion / 2 + 0.02 * seed + 0.01 * epoch
            rows.append(pd.DataFrame({"epoch": epoch, "val_median_f1": score, "val_accuracy_weighted": score + 0.1}))
            rows[-1] = rows[-1].assign(proportion=proportion, seed=seed, val_loss=np.exp(-score))
    table = pd.concat(rows, ignore_index=True).assign(method="SIMS")
    return table.assign(n_training_cells=(1000 * table["proportion"]).astype(int))


@pytest.fixture
def scores():
    """Two methods, two proportions."""
    table = pd.DataFrame({"method": ["SIMS", "SIMS", "SVM", "SVM"], "proportion": [0.1, 1.0] * 2})
    table = table.assign(n_training_cells=[100, 1000] * 2, median_f1=[0.6, 0.9, 0.5, 0.8])
    return table.assign(median_f1_low=table["median_f1"] - 0.1, median_f1_high=table["median_f1"] + 0.05)


def test_final_epochs_are_averaged(epochs, scores):
    """Panel (a): mean of the last ten epochs, then of the seeds, whose ends are the line; beside it the test cells."""
    ax = plotting.ablation(epochs, scores)[0]
    validation, test = ax.lines
    np.testing.assert_allclose(validation.get_xdata(), [0.1, 1])
    np.testing.assert_allclose(validation.get_ydata(), [0.06 + np.arange(10, 20).mean() / 100, 0.51 + 0.065])
    spans = [segment[:, 1] for segment in ax.collections[0].get_segments()]
    np.testing.assert_allclose(spans, [[0.195, 0.215], [0.565, 0.585]])
    np.testing.assert_allclose(test.get_ydata(), [0.6, 0.9])
    np.testing.assert_allclose(ax.collections[1].get_segments()[0][:, 1], [0.5, 0.65])


def test_curves_are_means_over_seeds(epochs):
    """Panels (b) to (d): a strong line for each proportion, and a faint one for each seed; epochs count from 1."""
    axes = plotting.ablation(epochs)
    assert [ax.get_title()[:3] for ax in axes] == ["(a)", "(b)", "(c)", "(d)"]
    for ax, column in zip(axes[1:], ("val_loss", "val_median_f1", "val_accuracy_weighted"), strict=True):
        strong = [line for line in ax.lines if line.get_alpha() is None]
        assert len(ax.lines) == 6 and len(strong) == 2
        for line, proportion in zip(strong, (0.1, 1.0), strict=True):
            own = epochs[epochs["proportion"] == proportion].groupby("epoch")[column].mean()
            np.testing.assert_allclose(line.get_ydata(), own)
            assert line.get_xdata()[0] == 1
    labels = [text.get_text() for text in axes[1].get_legend().get_texts()]
    assert labels == ["10 % (100 cells)", "100 % (1,000 cells)"]


def test_scores_against_size_mark_the_tolerance(scores):
    """A line and intervals for each method, and a dotted line at the score of all cells less the tolerance."""
    ax = plotting.ablation_scores(scores, tolerance=0.05)
    lines = [line for line in ax.lines if len(line.get_ydata())]
    np.testing.assert_allclose(lines[0].get_ydata(), [0.6, 0.9])
    np.testing.assert_allclose(lines[1].get_ydata(), 0.85)
    np.testing.assert_allclose(lines[2].get_ydata(), [0.5, 0.8])
    np.testing.assert_allclose(ax.collections[0].get_segments()[1][:, 1], [0.8, 0.95])


def test_convergence_has_epochs_and_seconds():
    """A point for each seed, a line through their means, a dashed one at the length of the training."""
    table = pd.DataFrame({"method": "SIMS", "n_training_cells": [10, 10, 90], "epochs": [20, 40, 5]})
    left, right = plotting.convergence(table.assign(cpu_seconds=[1.0, 3.0, 9.0], n_epochs=[250, 250, 10]))
    np.testing.assert_allclose(left.lines[0].get_ydata(), [30, 5])
    np.testing.assert_allclose(left.lines[1].get_ydata(), [250, 10])
    np.testing.assert_allclose(left.collections[0].get_offsets(), [[10, 20], [10, 40], [90, 5]])
    np.testing.assert_allclose(right.lines[0].get_ydata(), [2, 9])
    assert {tick.get_text() for tick in left.get_xticklabels()} >= {"10", "50"}


def test_tables_that_cannot_be_drawn_are_told(epochs, scores):
    """Missing columns and methods, no rows, and Axes of another number are named."""
    with pytest.raises(DataError, match="no rows"):
        plotting.ablation(epochs.iloc[:0])
    with pytest.raises(UnknownNameError, match="val_loss"):
        plotting.ablation(epochs.drop(columns="val_loss"))
    with pytest.raises(UnknownNameError, match="SVM"):
        plotting.ablation(epochs, method="SVM")
    with pytest.raises(SettingError, match="four panels"):
        plotting.ablation(epochs, axes=plt.figure().subplots(1, 2))
    with pytest.raises(UnknownNameError, match="macro_f1"):
        plotting.ablation_scores(scores, "macro_f1")
    with pytest.raises(SettingError, match="two panels"):
        table = pd.DataFrame({"method": ["x"], "n_training_cells": 1, "epochs": 1, "cpu_seconds": 1.0, "n_epochs": 1})
        plotting.convergence(table, axes=[plt.figure().subplots()])

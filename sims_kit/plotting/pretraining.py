"""Figures of masked pretraining: accuracy by number of labels, and by step of training."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from sims_kit import _drawing as draw
from sims_kit.errors import SettingError, UnknownNameError

AGAINST = {"n_labelled": "labelled cells", "steps": "training steps"}


def label_efficiency(
    scores: pd.DataFrame, score: str = "accuracy", *, against: str = "n_labelled", ax: Axes | None = None
) -> Axes:
    """A score of each start against the number of labels, or against the length of the training.

    Parameters
    ----------
    scores
        One row per start and point, as ``sims_kit.studies.pretraining(...).scores``: ``start``, the score (0 to 1), the
        same with ``_low`` and ``_high``, and what it is drawn against.
    score
        The column to draw.
    against
        ``"n_labelled"`` or ``"steps"``, drawn on a logarithmic axis. The rows should differ in that alone.
    ax
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        A line and a marker for each start, bars over the intervals where there are any. Points of different starts
        are set a little apart, so that none covers another.

    Raises
    ------
    DataError
        If there are no rows.
    UnknownNameError
        If there is no such column.
    SettingError
        If a start has two rows at one point, or there are more than seven starts.
    """
    if against not in AGAINST:
        raise UnknownNameError("axis", against, AGAINST)
    draw.check_table(scores, ("start", against, score, f"{score}_low", f"{score}_high"))
    starts = list(scores["start"].unique())
    draw.check_few(starts, "starts")
    if scores.duplicated(["start", against]).any():
        raise SettingError(
            f"Some starts have several rows for one {against}; choose those of one length or proportion."
        )
    ax = ax if ax is not None else draw.new_axes(4.5, 3)
    apart = np.exp(0.03 * (np.arange(len(starts)) - (len(starts) - 1) / 2))  # factors, on a logarithmic axis
    for start, colour, marker, factor in zip(starts, draw.COLOURS, draw.MARKERS, apart, strict=False):
        table = scores[scores["start"] == start].sort_values(against)
        x = table[against] * factor
        ax.vlines(x, table[f"{score}_low"], table[f"{score}_high"], color=colour, linewidth=1.5, alpha=0.6)
        ax.plot(x, table[score], color=colour, marker=marker, markersize=5, label=start)
    ticks = sorted(scores[against].unique())
    ax.set(xscale="log", xlabel=AGAINST[against], ylabel=draw.words(score))
    ax.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    ax.set_xticks([], minor=True)
    draw.legend_beside(ax)
    return draw.tidy(ax)


def learning_speed(curves: pd.DataFrame, score: str = "accuracy", *, ax: Axes | None = None) -> Axes:
    """A score of the test cells by step of training, mean over seeds, for each start.

    Parameters
    ----------
    curves
        One row per run and moment, as ``sims_kit.studies.pretraining(...).curves`` at one proportion of labels and
        one length of training: ``start``, ``seed``, ``step``, the score (0 to 1).
    score
        The column to draw.
    ax
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        A faint line per seed and a strong one through the means.

    Raises
    ------
    DataError
        If there are no rows.
    UnknownNameError
        If there is no such column.
    SettingError
        If a run has two rows for one step, or there are more than seven starts.
    """
    draw.check_table(curves, ("start", "seed", "step", score))
    starts = list(curves["start"].unique())
    draw.check_few(starts, "starts")
    if curves.duplicated(["start", "seed", "step"]).any():
        raise SettingError("Some runs have several rows for one step; choose those of one proportion and length.")
    ax = ax if ax is not None else draw.new_axes(4.5, 3)
    for start, colour, marker in zip(starts, draw.COLOURS, draw.MARKERS, strict=False):
        table = curves[curves["start"] == start]
        for _, run in table.groupby("seed"):
            ax.plot(run["step"], run[score], color=colour, linewidth=0.8, alpha=0.3)
        means = table.groupby("step")[score].mean()
        ax.plot(means.index, means, color=colour, marker=marker, markersize=4, label=start)
    ax.set(xlabel="training steps", ylabel=draw.words(score))
    ax.set_xlim(left=0)
    draw.legend_beside(ax)
    return draw.tidy(ax)

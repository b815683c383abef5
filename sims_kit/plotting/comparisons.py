"""Figures that compare methods: scores with their intervals, and how rare classes fare."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from sims_kit import _drawing as draw
from sims_kit.errors import DataError, SettingError, UnknownNameError


def method_scores(
    scores: pd.DataFrame, score: str = "median_f1", *, highlight: str | None = None, axes: Sequence[Axes] | None = None
) -> np.ndarray:
    """A score of every method with its interval, one panel per task.

    Parameters
    ----------
    scores
        One row per task and method: ``task``, ``method``, the score (0 to 1), and the same with ``_low`` and
        ``_high``. A method without a score keeps its row, marked with a cross.
    score
        The column to draw.
    highlight
        A method to draw in another colour, its score as a line through the panel.
    axes
        Where to draw, one per task; a new figure by default.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes, one per task
        A point at the score and a line over the interval; methods from the top in the order of the table. Percentages
        behind the points tell how many cells a method left unlabelled, if it did.

    Raises
    ------
    DataError
        If there are no rows.
    UnknownNameError
        If there is no such column.
    SettingError
        If the number of `axes` is not that of the tasks.
    """
    if not len(scores):
        raise DataError("scores has no rows; expected one per task and method. Run a benchmark first.")
    for column in ("task", "method", score, f"{score}_low", f"{score}_high"):
        if column not in scores:
            raise UnknownNameError("column of the scores", column, scores.columns)
    tasks, methods = scores["task"].unique(), scores["method"].unique()
    if axes is None:
        columns = min(4, len(tasks))
        rows = -(-len(tasks) // columns)
        size = (2.2 * columns + 0.07 * max(map(len, methods)), rows * (0.9 + draw.ROW * len(methods)))
        figure = plt.figure(figsize=size, layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        axes = grid.ravel()[: len(tasks)]
        for unused in grid.ravel()[len(tasks) :]:
            unused.set_axis_off()
    axes = np.ravel(axes)
    if len(axes) != len(tasks):
        raise SettingError(f"{len(axes)} axes for {len(tasks)} tasks ({', '.join(tasks)}); pass one for each.")
    for ax, task in zip(axes, tasks, strict=True):
        _scores_of_task(ax, scores[scores["task"] == task].set_index("method").reindex(methods), score, highlight)
        ax.set(title=task, xlabel=draw.words(score))
    return axes


def recall_by_size(
    classes: pd.DataFrame, *, methods: Sequence[str] | None = None, n_bins: int = 6, ax: Axes | None = None
) -> Axes:
    """How rare classes fare: recall of each class against its number of cells, by method.

    Parameters
    ----------
    classes
        One row per method and class (of any task): ``method``, ``n_cells``, ``recall`` (0 to 1).
    methods
        Methods to draw, seven at most; all by default.
    n_bins
        Groups of classes, of as equal numbers as possible, whose mean recall the lines connect.

    Returns
    -------
    matplotlib.axes.Axes
        A faint point per class, and a line through the means of each method.

    Raises
    ------
    DataError
        If there is nothing to draw.
    SettingError
        If there are more than seven methods: name those to draw.
    """
    methods = list(classes["method"].unique() if methods is None else methods)
    draw.check_few(methods, "methods")
    if not classes["method"].isin(methods).any():
        raise DataError(f"There are no classes of {methods}; the table has {list(classes['method'].unique())}.")
    ax = ax if ax is not None else draw.new_axes(6, 3.5)
    for method, colour, marker in zip(methods, draw.COLOURS, draw.MARKERS, strict=False):
        points = classes[classes["method"] == method].sort_values("n_cells", kind="stable")
        ax.scatter(points["n_cells"], points["recall"], s=9, color=colour, marker=marker, alpha=0.25, linewidths=0)
        groups = np.array_split(np.arange(len(points)), min(n_bins, len(points)))
        sizes = [np.exp(np.log(points["n_cells"].iloc[group]).mean()) for group in groups]
        means = [points["recall"].iloc[group].mean() for group in groups]
        ax.plot(sizes, means, color=colour, marker=marker, markersize=5, label=method)
    ax.set(xscale="log", xlabel="cells of the class", ylabel="recall", ylim=(-0.03, 1.03))
    draw.legend_beside(ax)
    return draw.tidy(ax)


def _scores_of_task(ax: Axes, table: pd.DataFrame, score: str, highlight: str | None) -> None:
    """One panel: a row for each method of the table's index."""
    rows = np.arange(len(table))
    colours = [draw.ORANGE if method == highlight else draw.BLUE for method in table.index]
    ax.hlines(rows, table[f"{score}_low"], table[f"{score}_high"], color=colours, linewidth=1.5)
    ax.scatter(table[score], rows, color=colours, s=22, zorder=3)
    lowest = np.nanmin(table[f"{score}_low"]) if table[score].notna().any() else 0.0
    left = max(0.0, lowest - 0.05)
    for row in np.flatnonzero(table[score].isna()):
        ax.text(left, row, "×", color=draw.GREY, va="center", ha="center", fontsize=draw.FONT)
    if highlight in table.index:
        ax.axvline(table.loc[highlight, score], color=draw.ORANGE, linestyle=":", zorder=0)
    for row, share in enumerate(table.get("unlabelled_percent", pd.Series(dtype=float))):
        if share > 0:
            ax.text(
                1.02, row, f"{share:.0f} %", va="center", fontsize=draw.FONT - 2, transform=ax.get_yaxis_transform()
            )
    draw.name_rows(ax, table.index)
    ax.set_xlim(left - 0.02, 1.02)
    draw.tidy(ax)

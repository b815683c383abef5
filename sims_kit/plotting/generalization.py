"""Figures of generalization, from its tables alone (thesis figures 0.15 and 0.16)."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from sims_kit import _drawing as draw
from sims_kit.errors import SettingError, UnknownNameError

PAIRS = (("balanced_accuracy", "weighted_accuracy"), ("aggregated_f1", "median_f1"))  # panels (a) and (b)


def generalization(scores: pd.DataFrame, *, axes: Sequence[Axes] | None = None) -> np.ndarray:
    """Scores of every target: balanced and weighted accuracy, aggregated and median F1 (figures 0.15 and 0.16).

    Parameters
    ----------
    scores
        One row per method, training group and target, as ``generalization(...).scores``: ``method``, ``trained_on``,
        ``target``, ``in_distribution``, ``unseen_percent``, and the four scores with ``_low`` and ``_high``.
    axes
        Where to draw, two for each panel row; a new figure by default.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes, (rows, 2)
        A row of panels for each training group with several targets, otherwise one for all. Points and 95 % intervals,
        filled for the first score and hollow for the second; a tick at what the same model scores on held-out cells of
        its own training groups. Percentages at the right tell the share of cells whose class was not in training,
        which are not scored.

    Raises
    ------
    DataError
        If there are no rows.
    UnknownNameError
        If a column is missing.
    SettingError
        If there are more than seven methods, or the number of `axes` is not that of the panels.
    """
    names = [f"{score}{ending}" for pair in PAIRS for score in pair for ending in ("", "_low", "_high")]
    draw.check_table(scores, ["method", "trained_on", "target", "in_distribution", "unseen_percent", *names])
    away, home = (scores[scores["in_distribution"] == own] for own in (False, True))
    draw.check_table(away, [])
    methods = list(away["method"].unique())
    draw.check_few(methods, "methods")
    if away.groupby("trained_on")["target"].nunique().max() > 1:
        panels = {f"trained on {name}": table for name, table in away.groupby("trained_on", sort=False)}
    else:
        panels = {"": away.assign(target=_one_target(away))}
    n_rows = [table["target"].nunique() for table in panels.values()]
    if axes is None:
        heights = [(0.25 + 0.26 * len(methods)) * n for n in n_rows]
        longest = max(len(name) for table in panels.values() for name in table["target"])
        size = (8.6 + 0.08 * longest, sum(heights) + 0.8 * len(panels))
        figure = plt.figure(figsize=size, layout="constrained")
        axes = figure.subplots(len(panels), 2, squeeze=False, sharey="row", height_ratios=heights)
    axes = np.ravel(axes)
    if len(axes) != 2 * len(panels):
        raise SettingError(f"{len(axes)} axes for {2 * len(panels)} panels; pass two for each training group.")
    for row, (title, table) in enumerate(panels.items()):
        for column, pair in enumerate(PAIRS):
            ax = axes[2 * row + column]
            _targets(ax, table, home, pair, methods)
            heading = " and ".join(draw.words(score) for score in pair)
            ax.set_title(f"({'ab'[column]}) {heading}" + (f"\n{title}" if title else ""), fontsize=draw.FONT + 1)
        _unseen_shares(axes[2 * row + 1], table)
    _legend(axes[1], methods)
    return axes.reshape(-1, 2)


def transfer_matrix(scores: pd.DataFrame, method: str, score: str = "median_f1", *, ax: Axes | None = None) -> Axes:
    """One score of one method for each pair of groups: trained on in rows, tested on in columns.

    Parameters
    ----------
    scores
        As ``generalization(...).scores``: ``method``, ``trained_on``, ``target``, and the score, 0 to 1.
    method
        Whose rows are drawn.
    score
        The column to draw.
    ax
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        On the diagonal, in frames, held-out cells of the training group.

    Raises
    ------
    DataError
        If there are no rows.
    UnknownNameError
        If there is no such method or column.
    """
    draw.check_table(scores, ["method", "trained_on", "target", score])
    if method not in set(scores["method"]):
        raise UnknownNameError("method", method, scores["method"].unique())
    table = scores[scores["method"] == method].pivot(index="trained_on", columns="target", values=score)
    columns = [*table.index, *(name for name in table.columns if name not in table.index)]
    table = table.reindex(columns=columns)
    if ax is None:
        cell = 0.55  # inches, for a number of two digits
        ax = draw.new_axes(cell * len(columns) + 1, cell * len(table), names=table.index, names_below=columns)
    image = draw.matrix(ax, np.ma.masked_invalid(table.to_numpy(dtype=float)), draw.words(score), 1)
    for row, column in np.argwhere(table.notna().to_numpy()):
        value = table.iloc[row, column]
        own = table.index[row] == columns[column]
        frame = dict(boxstyle="square", facecolor="none", edgecolor="k") if own else None
        colour = "w" if image.norm(value) < 0.6 else "k"
        number = f"{value:.2f}".removeprefix("0") if value < 1 else "1"
        ax.text(column, row, number, ha="center", va="center", fontsize=draw.FONT, color=colour, bbox=frame)
    draw.name_rows(ax, table.index)
    draw.name_columns(ax, columns)
    ax.set(xlabel="tested on", ylabel="trained on", title=f"{method}: {draw.words(score)}")
    return ax


def _one_target(away: pd.DataFrame) -> pd.Series:
    """Names for rows of several training groups: the target where all others train, else from where to where."""
    all_but = away["trained_on"] == "all but " + away["target"]
    return away["target"].where(all_but, away["trained_on"] + " → " + away["target"])


def _targets(ax: Axes, table: pd.DataFrame, home: pd.DataFrame, pair: Sequence[str], methods: Sequence[str]) -> None:
    """One panel: a row for each target, in it two lines for each method."""
    targets = list(table["target"].unique())
    lines = 2 * len(methods)
    for line in range(lines):
        method, score = line // 2, pair[line % 2]
        own = table[table["method"] == methods[method]].set_index("target").reindex(targets)
        reference = home[home["method"] == methods[method]].set_index("trained_on")[score].reindex(own["trained_on"])
        rows = np.arange(len(targets)) + 0.7 * ((line + 0.5) / lines - 0.5)
        colour, face = draw.COLOURS[method], (draw.COLOURS[method], "w")[line % 2]
        ax.hlines(rows, own[f"{score}_low"], own[f"{score}_high"], color=colour, linewidth=1.2)
        ax.plot(reference, rows, "|", color=colour, markersize=7, alpha=0.6)
        ax.plot(own[score], rows, draw.MARKERS[method], color=colour, markerfacecolor=face, markersize=5)
    for edge in np.arange(len(targets) - 1) + 0.5:
        ax.axhline(edge, color=draw.GREY, linewidth=0.3)
    draw.name_rows(ax, targets)
    ax.set_xlim(min(ax.get_xlim()[0], 0.8), 1.02)  # a fifth at least, so that a hundredth looks like one
    draw.tidy(ax)


def _unseen_shares(ax: Axes, table: pd.DataFrame) -> None:
    """At the right, the share of each target's cells that could not be found."""
    shares = table.drop_duplicates("target")["unseen_percent"]
    for row, share in enumerate(shares):
        if share > 0:
            where = dict(transform=ax.get_yaxis_transform(), va="center", fontsize=draw.FONT - 1)
            ax.text(1.02, row, f"{share:.1f} % unseen", **where)


def _legend(ax: Axes, methods: Sequence[str]) -> None:
    """What colours, fillings and ticks mean, once for the figure."""
    handles = [
        Line2D([], [], color=colour, marker=marker, markersize=5, label=method)
        for method, colour, marker in zip(methods, draw.COLOURS, draw.MARKERS, strict=False)
    ]
    grey = dict(color=draw.GREY, linestyle="", markersize=6)
    handles += [Line2D([], [], marker="o", label="first score of the title", **grey)]
    handles += [Line2D([], [], marker="o", markerfacecolor="w", label="second score of the title", **grey)]
    handles += [Line2D([], [], marker="|", label="held-out cells of the training groups", **grey)]
    where = "outside lower center" if ax.figure.get_layout_engine() else "lower center"
    ax.figure.legend(handles=handles, frameon=False, fontsize=draw.FONT, loc=where, ncols=3)

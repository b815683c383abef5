"""Figures of trust: is confidence right, what does silence buy, how large are sets, are unseen types noticed."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from sklearn.metrics import roc_auc_score, roc_curve

from sims_kit import _drawing as draw
from sims_kit.errors import DataError, SettingError


def reliability_diagram(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Accuracy against confidence; on the diagonal, confidence is what it says (Guo et al., ICML 2017, figure 1).

    Parameters
    ----------
    table
        A row per bin, of `sims_kit.calibration.reliability_table`; several of these under each other with a column
        ``group`` that tells them apart, such as "before" and "after".

    Returns
    -------
    matplotlib.axes.Axes
        A point per bin, its area the share of the cells in it, with Wilson's 95 % interval.

    Raises
    ------
    UnknownNameError, DataError
        If the table lacks a column or has no rows.
    """
    draw.check_table(table, ["confidence", "accuracy", "n_cells", "accuracy_low", "accuracy_high"])
    ax = ax if ax is not None else draw.new_axes(3.6, 3.6)
    ax.plot([0, 1], [0, 1], color=draw.GREY, linestyle=":", zorder=0)
    groups = table.groupby("group", sort=False) if "group" in table else [("", table)]
    for (name, own), colour, marker in zip(groups, _colours(len(groups)), draw.MARKERS, strict=False):
        ax.vlines(own["confidence"], own["accuracy_low"], own["accuracy_high"], color=colour, linewidth=1)
        area = 12 + 150 * own["n_cells"] / own["n_cells"].sum()
        options = dict(color=colour, marker=marker, alpha=0.75, linewidths=0)
        ax.scatter(own["confidence"], own["accuracy"], s=area, **options)
        ax.scatter([], [], s=30, label=name, **options)  # one size in the legend
    ax.set(xlabel="confidence", ylabel="accuracy", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    if "group" in table:
        draw.legend_beside(ax)
    return draw.tidy(ax)


def rejection_curves(
    curve: pd.DataFrame, *, threshold: float | None = None, error_rate: float | None = None, ax: Axes | None = None
) -> Axes:
    """What a threshold of confidence costs and buys: cells that are answered, and errors among them.

    Parameters
    ----------
    curve
        Of `sims_kit.calibration.rejection_curve`.
    threshold, error_rate
        A threshold and the error rate promised for it, drawn as lines.

    Raises
    ------
    UnknownNameError, DataError
        If the table lacks a column or has no rows.
    """
    draw.check_table(curve, ["threshold", "answered", "error"])
    ax = ax if ax is not None else draw.new_axes(4.5, 3)
    curve = curve.sort_values("threshold")
    lines = (("answered", draw.BLUE, "-", "cells answered"), ("error", draw.ORANGE, "--", "errors among them"))
    for column, colour, style, name in lines:
        ax.step(curve["threshold"], curve[column], where="pre", color=colour, linestyle=style, label=name)
    if threshold is not None and np.isfinite(threshold):
        ax.axvline(threshold, color=draw.GREY, linestyle=":", label=f"threshold {threshold:.2f}")
    if error_rate is not None:
        ax.axhline(error_rate, color=draw.GREY, linewidth=0.8, label=f"promise: at most {error_rate:.0%} wrong")
    ax.set(xlabel="threshold of confidence", ylabel="share", xlim=(None, 1.01), ylim=(-0.02, 1.02))
    draw.legend_beside(ax)
    return draw.tidy(ax)


def set_coverage(table: pd.DataFrame, alpha: float, *, ax: Axes | None = None) -> Axes:
    """How often prediction sets hold the true class, by true class, and how large they are.

    Parameters
    ----------
    table
        Of `sims_kit.calibration.coverage_table`.
    alpha
        What was promised: a coverage of ``1 - alpha``, drawn as a line.

    Returns
    -------
    matplotlib.axes.Axes
        Per class a point with Wilson's 95 % interval; at the right the cells and the mean number of classes in a set.

    Raises
    ------
    UnknownNameError, DataError
        If the table lacks a column or has no rows.
    SettingError
        If `alpha` is not above 0 and below 1.
    """
    draw.check_table(table, ["class", "n_cells", "coverage", "coverage_low", "coverage_high", "mean_size"])
    if not 0 < alpha < 1:
        raise SettingError(f"alpha is {alpha}; expected the share of sets that may miss the true class, such as 0.1.")
    ax = ax if ax is not None else draw.new_axes(4, 1.2 * draw.ROW * (len(table) + 1), names=table["class"])
    rows = np.arange(len(table))
    ax.axvline(1 - alpha, color=draw.GREY, linestyle=":", zorder=0)
    ax.hlines(rows, table["coverage_low"], table["coverage_high"], color=draw.BLUE, linewidth=1.2)
    ax.plot(table["coverage"], rows, "o", color=draw.BLUE, markersize=5)
    beside = dict(transform=ax.get_yaxis_transform(), va="center", fontsize=draw.font(ax, len(table) + 1))
    ax.text(1.02, -1, "cells, classes in a set", **beside)
    for row, (n_cells, size) in enumerate(zip(table["n_cells"], table["mean_size"], strict=True)):
        ax.text(1.02, row, f"{n_cells:,}, {size:.2f}", **beside)
    draw.name_rows(ax, table["class"])
    ax.set(xlabel="share of cells whose set holds the true class", xlim=(None, 1.02))
    return draw.tidy(ax)


def unseen_scores(scores: np.ndarray, unseen: np.ndarray, *, ax: Axes | None = None) -> Axes:
    """The scores of cells of known types and of a type that the model never saw.

    Parameters
    ----------
    scores
        (cells,), higher where a cell is less like any class.
    unseen
        (cells,) whether the cell's type is one that the model never saw.

    Returns
    -------
    matplotlib.axes.Axes
        Two histograms of the same bins, each summing to one; the area under the ROC curve in the title.

    Raises
    ------
    DataError
        If the lengths differ, a score is not finite, or all cells are of one kind.
    """
    scores, unseen = _checked_scores(scores, unseen)
    ax = ax if ax is not None else draw.new_axes(4.5, 2.6)
    bins = np.histogram_bin_edges(scores, 40)
    for chosen, colour, name in ((~unseen, draw.BLUE, "known types"), (unseen, draw.ORANGE, "unseen type")):
        weights = np.full(chosen.sum(), 1 / chosen.sum())
        options = dict(bins=bins, weights=weights, color=colour)
        ax.hist(scores[chosen], histtype="stepfilled", alpha=0.25, **options)
        ax.hist(scores[chosen], histtype="step", label=f"{name} ({chosen.sum():,} cells)", **options)
    ax.set(xlabel="unseen score", ylabel="share of cells", title=f"AUROC {roc_auc_score(unseen, scores):.3f}")
    draw.legend_beside(ax)
    return draw.tidy(ax)


def unseen_roc(scores: Mapping[str, np.ndarray], unseen: np.ndarray, *, ax: Axes | None = None) -> Axes:
    """How many cells of an unseen type are found, against the known ones that are taken for unseen.

    Parameters
    ----------
    scores
        For each method (cells,) scores, higher where a cell is less like any class; seven methods at most.
    unseen
        As in `unseen_scores`.

    Raises
    ------
    DataError
        As in `unseen_scores`.
    SettingError
        If there are more than seven methods.
    """
    colours = _colours(len(scores))
    ax = ax if ax is not None else draw.new_axes(3.4, 3.4)
    ax.plot([0, 1], [0, 1], color=draw.GREY, linestyle=":", zorder=0)
    for (name, values), colour in zip(scores.items(), colours, strict=False):
        values, truth = _checked_scores(values, unseen)
        wrong, found, _ = roc_curve(truth, values)
        ax.plot(wrong, found, color=colour, label=f"{name} {roc_auc_score(truth, values):.3f}")
    ax.set(xlabel="known cells taken for unseen", ylabel="unseen cells found", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    draw.legend_beside(ax)
    return draw.tidy(ax)


def unseen_types(table: pd.DataFrame, *, axes: np.ndarray | None = None) -> np.ndarray:
    """How well each left-out type is told from the known ones, by method, one panel per task.

    Parameters
    ----------
    table
        ``task``, ``left_out`` (the type), ``method``, ``auroc`` (0.5 by chance, 1 at best); seven methods at most.
    axes
        Where to draw, one per task; a new figure by default.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes

    Raises
    ------
    UnknownNameError, DataError
        If the table lacks a column or has no rows.
    SettingError
        If there are more than seven methods, or the number of `axes` is not that of the tasks.
    """
    draw.check_table(table, ["task", "left_out", "method", "auroc"])
    methods, tasks = table["method"].unique(), table["task"].unique()
    colours = _colours(len(methods))
    if axes is None:
        sizes = [table.loc[table["task"] == task, "left_out"].nunique() for task in tasks]
        height = 1.1 + 0.34 * max(sizes)
        axes = plt.figure(figsize=(4.2 * len(tasks) + 2, height), layout="constrained").subplots(1, len(tasks))
    axes = np.ravel(axes)
    if len(axes) != len(tasks):
        raise SettingError(f"{len(axes)} axes for {len(tasks)} tasks ({', '.join(tasks)}); pass one for each.")
    for ax, task in zip(axes, tasks, strict=True):
        wide = table[table["task"] == task].pivot_table("auroc", "left_out", "method", sort=False)
        shifts = np.linspace(-0.25, 0.25, len(methods)) if len(methods) > 1 else [0]
        for method, colour, marker, shift in zip(methods, colours, draw.MARKERS, shifts, strict=False):
            if method in wide:
                ax.plot(wide[method], np.arange(len(wide)) + shift, marker, color=colour, markersize=5, label=method)
        ax.axvline(0.5, color=draw.GREY, linestyle=":", zorder=0)
        ax.hlines(np.arange(len(wide) - 1) + 0.5, 0, 1, color=draw.GREY, linewidth=0.3, zorder=0)
        draw.name_rows(ax, wide.index)
        ax.set(
            title=task,
            xlabel="AUROC",
            xlim=(min(0.45, wide.min().min() - 0.03), 1.02),
        )
        draw.tidy(ax)
    draw.legend_beside(axes[-1])
    return axes


def _colours(n: int) -> tuple[str, ...]:
    draw.check_few(range(n), "lines")
    return draw.COLOURS[:n]


def _checked_scores(scores: np.ndarray, unseen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores, unseen = np.asarray(scores, dtype=float), np.asarray(unseen, dtype=bool)
    if scores.ndim != 1 or scores.shape != unseen.shape or not np.isfinite(scores).all():
        raise DataError(f"scores has shape {scores.shape}, unseen {unseen.shape}; expected a finite number per cell.")
    if unseen.all() or not unseen.any():
        raise DataError("All cells are of known types, or all of unseen ones; expected some of both.")
    return scores, unseen

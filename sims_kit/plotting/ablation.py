"""Figures of ablation, from its tables alone (thesis figures 0.17 to 0.19)."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from sims_kit import _drawing as draw
from sims_kit.errors import SettingError, UnknownNameError

CURVES = {"val_loss": "validation loss", "val_median_f1": "median F1", "val_accuracy_weighted": "weighted accuracy"}
FINAL_EPOCHS = 10  # the thesis's


def ablation(
    epochs: pd.DataFrame,
    scores: pd.DataFrame | None = None,
    *,
    method: str | None = None,
    axes: Sequence[Axes] | None = None,
) -> np.ndarray:
    """Training with fewer and fewer cells: the thesis's four panels (figures 0.17 to 0.19).

    Parameters
    ----------
    epochs
        One row per method, proportion, seed and epoch, as ``ablation(...).epochs``: ``method``, ``proportion``,
        ``seed``, ``epoch``, ``n_training_cells``, ``val_loss``, ``val_median_f1``, ``val_accuracy_weighted``.
    scores
        ``ablation(...).scores``; adds to the first panel the median F1 on the test cells, with its interval.
    method
        The one to draw; the first by default.
    axes
        Where to draw, four; a new figure by default.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes, (4,)
        (a) Mean of the median F1 on validation cells over the final ten epochs, against the proportion; lines span the
        seeds. (b) Validation loss, (c) median F1 and (d) weighted accuracy by epoch, a line for each proportion (mean
        over the seeds) and a faint one for each seed.

    Raises
    ------
    DataError
        If there are no epochs.
    UnknownNameError
        If a column or the method is missing.
    SettingError
        If there are not four `axes`.
    """
    draw.check_table(epochs, ["method", "proportion", "seed", "epoch", "n_training_cells", *CURVES])
    method = epochs["method"].iloc[0] if method is None else method
    if method not in set(epochs["method"]):
        raise UnknownNameError("method with epochs", method, epochs["method"].unique())
    epochs = epochs[epochs["method"] == method]
    if axes is None:
        axes = plt.figure(figsize=(10, 6.4), layout="constrained").subplots(2, 2)
    axes = np.ravel(axes)
    if len(axes) != 4:
        raise SettingError(f"{len(axes)} axes for four panels; pass four.")
    _final_epochs(axes[0], epochs, scores if scores is None else scores[scores["method"] == method])
    sizes = epochs.groupby("proportion")["n_training_cells"].first()
    colours = plt.get_cmap(draw.MATRIX_COLOURS)(np.linspace(0, 0.9, len(sizes)))  # the last tenth is too pale for lines
    for ax, letter, (column, words) in zip(axes[1:], "bcd", CURVES.items(), strict=True):
        for (proportion, n_cells), colour in zip(sizes.items(), colours, strict=True):
            runs = epochs[epochs["proportion"] == proportion].pivot(index="epoch", columns="seed", values=column)
            ax.plot(runs.index + 1, runs, color=colour, linewidth=0.6, alpha=0.25)
            label = f"{100 * proportion:g} % ({n_cells:,} cells)"
            ax.plot(runs.index + 1, runs.mean(axis=1), color=colour, linewidth=1.6, label=label)
        ax.set(xlabel="epoch", title=f"({letter}) {words}")
        _log_axis(ax, "x")
        draw.tidy(ax)
    _log_axis(axes[1], "y")
    draw.legend_beside(axes[1])
    axes[0].figure.suptitle(method, fontsize=draw.FONT + 2)
    return axes


def ablation_scores(
    scores: pd.DataFrame, score: str = "median_f1", *, tolerance: float = 0.02, ax: Axes | None = None
) -> Axes:
    """A score on the fixed test cells against the number of training cells, by method.

    Parameters
    ----------
    scores
        One row per method and proportion, as ``ablation(...).scores``: ``method``, ``proportion``,
        ``n_training_cells``, and the score with ``_low`` and ``_high``.
    score
        The column to draw.
    tolerance
        A dotted line marks the score with all cells less this much.
    ax
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        Points, 95 % intervals and a line for each method.

    Raises
    ------
    DataError
        If there are no rows.
    UnknownNameError
        If there is no such column.
    SettingError
        If there are more than seven methods.
    """
    columns = [score, f"{score}_low", f"{score}_high"]
    draw.check_table(scores, ["method", "proportion", "n_training_cells", *columns])
    methods = list(scores["method"].unique())
    draw.check_few(methods, "methods")
    ax = ax if ax is not None else draw.new_axes(6, 3.4)
    for i, method in enumerate(methods):
        own = scores[scores["method"] == method].sort_values("n_training_cells")
        value, low, high = (own[column].to_numpy() for column in columns)
        x = own["n_training_cells"] * 1.03 ** (i - (len(methods) - 1) / 2)  # beside each other, to be told apart
        ax.vlines(x, low, high, color=draw.COLOURS[i], linewidth=1.2)
        ax.plot(x, value, color=draw.COLOURS[i], marker=draw.MARKERS[i], markersize=5, label=method)
        full = own.loc[own["proportion"].idxmax(), score]
        ax.axhline(full - tolerance, color=draw.COLOURS[i], linestyle=":", linewidth=1, zorder=0)
    ax.plot([], [], color=draw.GREY, linestyle=":", label=f"all cells, less {tolerance:g}")
    ax.set(xlabel="training cells", ylabel=f"{draw.words(score)}, test cells")
    _log_axis(ax, "x")
    draw.legend_beside(ax)
    return draw.tidy(ax)


def convergence(table: pd.DataFrame, *, axes: Sequence[Axes] | None = None) -> np.ndarray:
    """Epochs and CPU seconds to convergence against the number of training cells (thesis section 0.3.5).

    Parameters
    ----------
    table
        One row per method, proportion and seed, as `sims_kit.studies.convergence` gives it: ``method``,
        ``n_training_cells``, ``epochs``, ``cpu_seconds``, ``n_epochs``.
    axes
        Where to draw, two; a new figure by default.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes, (2,)
        A point for each seed and a line through the means; in the first, a dashed line at the epochs of the whole
        training.

    Raises
    ------
    DataError
        If there are no rows.
    UnknownNameError
        If a column is missing.
    SettingError
        If there are not two `axes`, or more than seven methods.
    """
    draw.check_table(table, ["method", "n_training_cells", "epochs", "cpu_seconds", "n_epochs"])
    methods = list(table["method"].unique())
    draw.check_few(methods, "methods")
    if axes is None:
        axes = plt.figure(figsize=(9, 3.2), layout="constrained").subplots(1, 2)
    axes = np.ravel(axes)
    if len(axes) != 2:
        raise SettingError(f"{len(axes)} axes for two panels; pass two.")
    for ax, column, words in zip(axes, ("epochs", "cpu_seconds"), ("epochs", "CPU seconds"), strict=True):
        for method, colour, marker in zip(methods, draw.COLOURS, draw.MARKERS, strict=False):
            own = table[table["method"] == method]
            means = own.groupby("n_training_cells")[[column, "n_epochs"]].mean()
            ax.scatter(
                own["n_training_cells"], own[column], s=12, color=colour, marker=marker, alpha=0.35, linewidths=0
            )
            ax.plot(means.index, means[column], color=colour, marker=marker, markersize=5, label=method)
            if column == "epochs":
                ax.plot(means.index, means["n_epochs"], color=colour, linestyle="--", linewidth=1)
        ax.set(xlabel="training cells", ylabel=f"{words} to convergence")
        _log_axis(ax, "x")
        draw.tidy(ax)
    _log_axis(axes[0], "y")
    axes[1].set_ylim(bottom=0)
    axes[1].plot([], [], color=draw.GREY, linestyle="--", label="epochs of the training")
    draw.legend_beside(axes[1])
    return axes


def _final_epochs(ax: Axes, epochs: pd.DataFrame, scores: pd.DataFrame | None) -> None:
    """Panel (a) of an ablation."""
    final = epochs.sort_values("epoch").groupby(["proportion", "seed"]).tail(FINAL_EPOCHS)
    final = (
        final.groupby(["proportion", "seed"])["val_median_f1"].mean().groupby("proportion").agg(["mean", "min", "max"])
    )
    ax.vlines(final.index, final["min"], final["max"], color=draw.BLUE, linewidth=1.2)
    ax.plot(final.index, final["mean"], "o-", color=draw.BLUE, markersize=5, label="validation, final ten epochs")
    if scores is not None:
        scores, x = scores.sort_values("proportion"), scores["proportion"].sort_values() * 1.06
        ax.vlines(x, scores["median_f1_low"], scores["median_f1_high"], color=draw.ORANGE, linewidth=1.2)
        ax.plot(x, scores["median_f1"], "s-", color=draw.ORANGE, markersize=5, label="fixed test cells, 95 % interval")
    ax.set(xscale="log", xlabel="proportion of the training cells", title="(a) median F1 after training")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticks(final.index)
    ax.tick_params(axis="x", labelsize=draw.FONT - 1)
    ax.legend(frameon=False, fontsize=draw.FONT, loc="upper left", bbox_to_anchor=(-0.02, -0.2))
    draw.tidy(ax)


def _log_axis(ax: Axes, side: str) -> None:
    """A logarithmic axis with its numbers written out; few between the powers of ten, which would meet."""
    getattr(ax, f"set_{side}scale")("log")
    axis = getattr(ax, f"{side}axis")
    low, high = sorted(getattr(ax, f"get_{side}lim")())
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 30 else (1.0, 3.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))

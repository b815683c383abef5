"""Figures of evidence: whether explanations find true markers, whether calls rest on them, and one cell's reasons."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from sims_kit import _drawing as draw
from sims_kit.errors import DataError, SettingError, UnknownNameError

RECOVERY = {"auprc": "area under precision-recall", "precision_at_k": "precision among the first genes"}


def marker_recovery(table: pd.DataFrame, *, axes: Sequence[Axes] | None = None) -> np.ndarray:
    """How well each method finds true markers: a point per class and the mean over the classes.

    Parameters
    ----------
    table
        One row per method and class: ``method``, ``auprc``, ``precision_at_k`` (0 to 1, NaN for classes without
        markers, which are not drawn).
    axes
        Two, for the two scores; a new figure by default.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes, two
        Methods from the top in the order of the table; a faint point per class, a large one at the mean.

    Raises
    ------
    DataError
        If there are no rows.
    UnknownNameError
        If a column is missing.
    SettingError
        If the number of `axes` is not two.
    """
    draw.check_table(table, ("method", *RECOVERY))
    methods = list(table["method"].unique())
    axes = _two_axes(axes, draw.ROW * 1.4 * len(methods), names=methods)
    for ax, (score, name) in zip(axes, RECOVERY.items(), strict=True):
        for row, method in enumerate(methods):
            values = table.loc[table["method"] == method, score].dropna().to_numpy()
            places = row + np.linspace(-0.25, 0.25, len(values))  # side by side, so that equal ones are seen
            ax.scatter(values, places, s=12, color=draw.GREY, alpha=0.5, linewidths=0)
            if len(values):
                ax.scatter(values.mean(), row, s=40, color=draw.BLUE, edgecolor="w", zorder=3)
        draw.name_rows(ax, methods)
        ax.set(xlabel=name, xlim=(-0.03, 1.03))
        draw.tidy(ax)
    return axes


def faithfulness_curves(
    table: pd.DataFrame, value: str = "probability", *, axes: Sequence[Axes] | None = None
) -> np.ndarray:
    """What becomes of the calls when each cell loses its top genes, or all others.

    Parameters
    ----------
    table
        One row per method, curve and number of genes: ``method`` (seven at most), ``curve`` (``"deletion"`` or
        ``"insertion"``), ``n_genes`` and the value (0 to 1).
    value
        The column to draw: ``"probability"`` or ``"unchanged"``.
    axes
        Two, for deletion and insertion; a new figure by default.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes, two
        A line per method over the number of genes, linear up to 1 and logarithmic from there. In the left panel the
        lowest line is the most faithful, in the right one the highest.

    Raises
    ------
    DataError
        If there are no rows.
    UnknownNameError
        If a column is missing.
    SettingError
        If there are more than seven methods, or the number of `axes` is not two.
    """
    draw.check_table(table, ("method", "curve", "n_genes", value))
    methods = list(table["method"].unique())
    draw.check_few(methods, "methods")
    axes = _two_axes(axes, 3)
    words = {"probability": "probability of the first call", "unchanged": "calls unchanged"}
    for ax, curve, change in zip(axes, ("deletion", "insertion"), ("set to zero", "left"), strict=True):
        for method, colour, marker in zip(methods, draw.COLOURS, draw.MARKERS, strict=False):
            points = table[(table["method"] == method) & (table["curve"] == curve)].sort_values("n_genes")
            ax.plot(points["n_genes"], points[value], color=colour, marker=marker, markersize=5, label=method)
        ax.set_xscale("symlog", linthresh=1)
        ax.xaxis.set_major_formatter("{x:,.0f}")
        ax.set(title=curve, xlabel=f"top genes {change}", xlim=(-0.1, None), ylim=(-0.03, 1.03))
        draw.tidy(ax)
    axes[0].set_ylabel(words.get(value, value))
    axes[1].legend(frameon=False, fontsize=draw.FONT, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return axes


def cell_genes(genes: pd.DataFrame, n: int = 15, *, ax: Axes | None = None) -> Axes:
    """Why one cell was called what it was called: the genes that speak most for the call, and against it.

    Parameters
    ----------
    genes
        Indexed by gene, with columns ``contribution`` (to the logit, of either sign) and ``expression``
        (log-normalised), as in `CellExplanation.genes`.
    n
        Genes to draw at most: those of the largest contributions, whatever their sign.

    Returns
    -------
    matplotlib.axes.Axes
        A horizontal bar per gene, the largest at the top, in one colour for the call and in another against it; the
        expression of the gene beside it.

    Raises
    ------
    UnknownNameError
        If a column is missing.
    DataError
        If no gene contributes.
    SettingError
        If `n` is less than 1.
    """
    for column in ("contribution", "expression"):
        if column not in genes:
            raise UnknownNameError("column of the gene table", column, genes.columns)
    if n < 1:
        raise SettingError(f"{n} genes asked for; expected 1 or more.")
    places = np.argsort(-genes["contribution"].abs().to_numpy(), kind="stable")[:n]
    shown = genes.iloc[places]
    shown = shown[shown["contribution"] != 0]
    if not len(shown):
        raise DataError("No gene contributes anything, so there is nothing to draw. Does the cell express any gene?")
    ax = ax if ax is not None else draw.new_axes(4, len(shown) * draw.ROW, names=shown.index)
    rows, added = np.arange(len(shown)), shown["contribution"].to_numpy()
    for name, some, colour in (("for the call", added > 0, draw.BLUE), ("against it", added < 0, draw.ORANGE)):
        if some.any():
            ax.barh(rows[some], added[some], color=colour, label=name)
    ax.axvline(0, color="k", linewidth=0.8)
    draw.name_rows(ax, shown.index)
    beside = dict(transform=ax.get_yaxis_transform(), fontsize=draw.font(ax, len(shown)), va="center")
    for row, expression in zip(rows, shown["expression"], strict=True):
        ax.text(1.02, row, f"{expression:.1f}", **beside)
    ax.text(1.02, len(shown) + 0.3, "expression", **{**beside, "va": "top"})
    ax.set_xlabel("contribution to the logit")
    ax.legend(frameon=False, fontsize=draw.FONT, loc="best")
    return draw.tidy(ax)


def cell_masks(
    genes: pd.DataFrame,
    *,
    largest: float | None = None,
    furthest: float | None = None,
    axes: Sequence[Axes] | None = None,
) -> np.ndarray:
    """Where the model looks in one cell, and what it makes of it (thesis section 0.2.6).

    Parameters
    ----------
    genes
        Indexed by gene, in the order of drawing: a column ``contribution`` (to the logit, of either sign), the others
        mask weights, one column for each decision step or one for all.
    largest, furthest
        The ends of the two scales, mask weight and contribution, so that cells can be compared; the table's own by
        default.
    axes
        Two; a new figure by default.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes, two
        Bars of the weights, or with several steps their matrix; bars of the contributions.

    Raises
    ------
    UnknownNameError
        If there is no column ``contribution``.
    DataError
        If there are no genes, or no column of weights.
    """
    draw.check_table(genes, ["contribution"])
    masks = genes.drop(columns="contribution")
    if not len(masks.columns):
        raise DataError("The table has no column of mask weights beside the contributions; expected one or more.")
    axes = _two_axes(axes, len(genes) * draw.ROW, names=genes.index)
    rows, largest = np.arange(len(genes)), largest or masks.to_numpy().max() or 1.0
    if len(masks.columns) > 1:
        draw.matrix(axes[0], masks, "mask weight", largest)
        draw.name_columns(axes[0], masks.columns)
    else:
        axes[0].barh(rows, masks.iloc[:, 0], color=draw.BLUE)
        axes[0].set(xlabel="mask weight", xlim=(0, 1.02 * largest))
    added = genes["contribution"]
    reach = 1.05 * (furthest or added.abs().max() or 1.0)
    axes[1].barh(rows, added, color=np.where(added > 0, draw.BLUE, draw.ORANGE))
    axes[1].axvline(0, color="k", linewidth=0.8)
    axes[1].set(xlabel="contribution to the logit: against | for the call", xlim=(-reach, reach))
    axes[1].tick_params(left=False)
    draw.name_rows(axes[0], genes.index)
    for ax in axes:
        draw.tidy(ax)
    return axes


def _two_axes(axes: Sequence[Axes] | None, height: float, *, names: Sequence[str] = ()) -> np.ndarray:
    """Those given, or two panels with room for names on the left or a legend on the right."""
    if axes is None:
        letters = max((len(name) for name in names), default=25)
        figure = plt.figure(figsize=(6.5 + 0.07 * letters, height + 0.9), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
    axes = np.ravel(axes)
    if len(axes) != 2:
        raise SettingError(f"{len(axes)} axes were given; this figure has two panels: pass two.")
    return axes

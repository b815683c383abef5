"""Figures of how far an explanation can be trusted: agreement between models, and the weight of a set of genes."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from sims_kit import _drawing as draw
from sims_kit.errors import SettingError


def stability(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Rank-biased overlap of each class: how well pairs of models agree on its genes.

    Parameters
    ----------
    table
        One row per pair of models and class, as `sims_kit.evidence.stability` gives it: ``class``, ``rbo`` (0 to 1,
        or NaN).
    ax
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        A faint point per pair and a diamond at the mean of each class, in the order of the table.

    Raises
    ------
    DataError
        If there are no rows.
    UnknownNameError
        If a column is missing.
    """
    draw.check_table(table, ("class", "rbo"))
    classes = table["class"].unique()
    rows = pd.Index(classes).get_indexer(table["class"])
    means = table.groupby("class", observed=True)["rbo"].mean().reindex(classes)
    ax = ax if ax is not None else draw.new_axes(6, draw.ROW * len(classes), names=classes)
    ax.scatter(table["rbo"], rows, s=14, color=draw.BLUE, alpha=0.35, linewidths=0, label="pair of models")
    ax.scatter(means, np.arange(len(classes)), s=34, color=draw.ORANGE, marker="D", zorder=3, label="mean")
    draw.name_rows(ax, classes)
    ax.set(xlim=(-0.03, 1.03), xlabel="rank-biased overlap")
    draw.legend_beside(ax)
    return draw.tidy(ax)


def consensus_size(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """How many models it takes: agreement of two consensuses against the number of models in each.

    Parameters
    ----------
    table
        One row per size and draw, as `sims_kit.evidence.members_for_stability` gives it: ``n_members``, ``rbo``.
    ax
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        A line through the means, a band from the 5 % to the 95 % quantile of the draws, and a faint point per draw.

    Raises
    ------
    DataError
        If there are no rows.
    UnknownNameError
        If a column is missing.
    """
    draw.check_table(table, ("n_members", "rbo"))
    groups = table.groupby("n_members")["rbo"]
    means, low, high = groups.mean(), groups.quantile(0.05), groups.quantile(0.95)
    ax = ax if ax is not None else draw.new_axes(6, 3)
    ax.fill_between(means.index, low, high, color=draw.BLUE, alpha=0.15, linewidth=0, label="90 % of draws")
    ax.scatter(table["n_members"], table["rbo"], s=9, color=draw.GREY, alpha=0.4, linewidths=0, label="draw")
    ax.plot(means.index, means, "o-", color=draw.BLUE, markersize=5, label="mean")
    ax.set_xticks(means.index)
    ax.set(xlabel="models in each consensus", ylabel="rank-biased overlap", ylim=(-0.03, 1.03))
    draw.legend_beside(ax)
    return draw.tidy(ax)


def gene_set_weight(
    classes: pd.DataFrame, measure: str = "weight", *, alpha: float = 0.05, ax: Axes | None = None
) -> Axes:
    """What a set of genes holds in each class, against sets of equally expressed genes.

    Parameters
    ----------
    classes
        One row per class, named by the index, as ``check_gene_set(...).classes``: the measure (a share, 0 to 1), and
        the same with ``_expected``, ``_low``, ``_high`` (of the drawn sets) and ``_p_adjusted``.
    measure
        ``"weight"`` or ``"contribution"``.
    alpha
        Adjusted p-value below which a class is marked.
    ax
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        A bar over the central 95 % of the drawn sets with a tick at their mean, and a point at the share of the set:
        a diamond of another colour where it is more than chance.

    Raises
    ------
    DataError
        If there are no rows.
    UnknownNameError
        If a column is missing.
    SettingError
        If `alpha` is not above 0 and below 1.
    """
    columns = [f"{measure}{ending}" for ending in ("", "_expected", "_low", "_high", "_p_adjusted")]
    draw.check_table(classes, columns)
    if not 0 < alpha < 1:
        raise SettingError(f"alpha={alpha!r}; expected a number above 0 and below 1, such as 0.05.")
    held, expected, low, high, p = (classes[column].to_numpy(dtype=float) for column in columns)
    ax = ax if ax is not None else draw.new_axes(6, draw.ROW * len(classes), names=classes.index)
    rows, more = np.arange(len(classes)), p < alpha
    ax.hlines(rows, 100 * low, 100 * high, color=draw.GREY, alpha=0.45, linewidth=5, label="sets alike, 95 %")
    ax.plot(100 * expected, rows, "|", color=draw.GREY, markersize=8, label="their mean")
    for some, colour, marker, label in (
        (~more, draw.BLUE, "o", "the set"),
        (more, draw.ORANGE, "D", f"the set, adjusted p < {alpha:g}"),
    ):
        if some.any():
            ax.scatter(100 * held[some], rows[some], s=28, color=colour, marker=marker, zorder=3, label=label)
    draw.name_rows(ax, classes.index)
    noun = {"weight": "mask weight", "contribution": "contributions"}.get(measure, draw.words(measure))
    ax.set(xlabel=f"share of the {noun} (%)")
    ax.set_xlim(left=0 - 0.02 * ax.get_xlim()[1])
    draw.legend_beside(ax)
    return draw.tidy(ax)

"""Figures of tissue cultures: what types they have, how sure the model is of that, and how labels bear stress."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from sims_kit import _drawing as draw
from sims_kit.errors import SettingError

LINES = ("-", "--", (0, (1, 1.5)), (0, (6, 1.5, 1, 1.5)))  # of tissues and samples


def composition(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """The inferred cell types of each sample as shares with intervals (thesis figures 0.20, 0.21).

    Parameters
    ----------
    table
        One row per sample and class, as ``inference(...).composition``: ``tissue``, ``sample``, ``class``,
        ``percent``, ``percent_low``, ``percent_high``; where the truth is known, ``true_percent``. Seven samples at
        most.
    ax
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        Per class, the commonest in the first sample at the top and ``"Unknown"`` last, a point for each sample and a
        line over its interval; a black tick at the true share, if there is one. Classes that no sample has are left
        out.

    Raises
    ------
    DataError
        If there are no rows.
    UnknownNameError
        If a column is missing.
    SettingError
        If there are more than seven samples: pass the rows of those to draw.
    """
    draw.check_table(table, ("tissue", "sample", "class", "percent", "percent_low", "percent_high"))
    table = table.assign(name=_names(table))
    samples = list(table["name"].unique())
    draw.check_few(samples, "samples")
    table = table if "true_percent" in table else table.assign(true_percent=np.nan)
    columns = ["percent", "percent_low", "percent_high", "true_percent"]
    wide = table.pivot(index="class", columns="name", values=columns)
    found = wide[wide["percent"].sum(axis=1) > 0]
    order = found["percent"][samples].sort_values(samples, ascending=False, kind="stable").index
    order = [name for name in order if name != "Unknown"] + [name for name in order if name == "Unknown"]
    ax = ax if ax is not None else draw.new_axes(5.5, draw.ROW * len(order) * max(1, len(samples) / 2.5), names=order)
    shifts = np.linspace(-0.3, 0.3, len(samples)) if len(samples) > 1 else [0]
    for sample, shift, colour, marker in zip(samples, shifts, draw.COLOURS, draw.MARKERS, strict=False):
        own, rows = found.xs(sample, axis=1, level="name").loc[order], np.arange(len(order)) + shift
        ax.hlines(rows, own["percent_low"], own["percent_high"], color=colour, linewidth=1.5)
        ax.plot(own["percent"], rows, marker, color=colour, markersize=4.5, label=sample)
        if own["true_percent"].notna().any():
            last = sample == samples[-1]
            ax.plot(own["true_percent"], rows, "k|", markersize=8, label="true share" if last else None, zorder=3)
    ax.hlines(np.arange(len(order) - 1) + 0.5, 0, 1, color="0.9", linewidth=0.6, transform=ax.get_yaxis_transform())
    draw.name_rows(ax, order)
    ax.set(xlabel="share of the sample's cells (%)")
    ax.set_xlim(left=0)
    draw.legend_beside(ax)
    return draw.tidy(ax)


def confidence_shift(cells: pd.DataFrame, threshold: float = 0.5, *, ax: Axes | None = None) -> Axes:
    """How sure the model is in each sample: the share of cells below each confidence.

    Parameters
    ----------
    cells
        One row per cell, as ``inference(...).cells``: ``tissue``, ``sample``, ``confidence`` (0 to 1). Seven samples
        at most.
    threshold
        Confidence below which cells are ``"Unknown"``; the legend tells their share.
    ax
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        A line per sample; where it is higher, more cells are unsure.

    Raises
    ------
    DataError
        If there are no rows.
    UnknownNameError
        If a column is missing.
    SettingError
        If `threshold` is not between 0 and 1, or there are more than seven samples.
    """
    draw.check_table(cells, ("tissue", "sample", "confidence"))
    if not 0 <= threshold <= 1:
        raise SettingError(f"threshold={threshold!r}; expected a confidence between 0 and 1.")
    names = _names(cells)
    draw.check_few(list(names.unique()), "samples")
    ax = ax if ax is not None else draw.new_axes(4.5, 3)
    for number, (name, own) in enumerate(cells.groupby(names, sort=False)["confidence"]):
        label = f"{name} ({(own < threshold).mean():.1%} Unknown)"
        ax.ecdf(own, color=draw.COLOURS[number], linestyle=LINES[number % len(LINES)], label=label)
    ax.axvline(threshold, color=draw.GREY, linestyle=":", zorder=0)
    ax.set(xlabel="confidence", ylabel="share of cells below it", xlim=(0, 1.01), ylim=(0, 1.01))
    draw.legend_beside(ax)
    return draw.tidy(ax)


def stress_curves(table: pd.DataFrame, score: str = "accuracy", *, ax: Axes | None = None) -> Axes:
    """A score in stressed cells against the strength of the stress.

    Parameters
    ----------
    table
        One row per method, seed and strength, as `sims_kit.studies.stress_test` gives it: ``method``,
        ``stress_strength`` and the score. Seven methods at most. Rows in which ``knows_stress_genes`` is False are
        drawn apart.
    score
        The column to draw; methods that have no value of it are left out.
    ax
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
        A line through the means of each method, and a faint point per seed; dashed where the stress genes were left
        out. Below each strength stands the share of counts that are of stress genes, where the table has
        ``stress_counts_percent``.

    Raises
    ------
    DataError
        If there is nothing to draw.
    UnknownNameError
        If a column is missing.
    SettingError
        If there are more than seven methods: pass the rows of those to draw.
    """
    draw.check_table(table, ("method", "stress_strength", score))
    table = table.dropna(subset=score)
    draw.check_table(table, ())
    methods = list(table["method"].unique())
    draw.check_few(methods, "methods")
    ax = ax if ax is not None else draw.new_axes(5, 3.3)
    knows = table["knows_stress_genes"] if "knows_stress_genes" in table else pd.Series(True, table.index)
    for (method, known), own in table.groupby(["method", knows.rename("known")], sort=False):
        colour, marker = draw.COLOURS[methods.index(method)], draw.MARKERS[methods.index(method)]
        style = {} if known else dict(linestyle="--", markerfacecolor="w")
        means = own.groupby("stress_strength")[score].mean()
        ax.scatter(own["stress_strength"], own[score], s=10, color=colour, marker=marker, alpha=0.35, linewidths=0)
        label = method if known else f"{method}, stress genes left out"
        ax.plot(means.index, means, color=colour, marker=marker, markersize=5, label=label, **style)
    labels = [f"{strength:g}" for strength in sorted(table["stress_strength"].unique())]
    if "stress_counts_percent" in table:
        shares = table.groupby("stress_strength")["stress_counts_percent"].mean()
        labels = [f"{strength:g}\n({share:.0f} %)" for strength, share in shares.items()]
    ax.set_xticks(sorted(table["stress_strength"].unique()), labels)
    below = "\n(share of counts that are of stress genes)" if "stress_counts_percent" in table else ""
    ax.set(xlabel=f"strength of the stress{below}", ylabel=draw.words(score))
    draw.legend_beside(ax)
    return draw.tidy(ax)


def _names(table: pd.DataFrame) -> pd.Series:
    """Tissue and sample in a few words: ``"primary, test set"``, ``"culture, line_1"``."""
    return table["tissue"].astype(str) + ", " + table["sample"].astype(str)

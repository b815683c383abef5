"""Figures of the studies: methods compared, ablation, generalization, and the composition of samples."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from sims_kit.calibration import UNKNOWN
from sims_kit.errors import UnknownNameError
from sims_kit.plotting import style

CURVES = {"val_loss": "validation loss", "val_median_f1": "median F1", "val_accuracy_weighted": "weighted accuracy"}
FINAL_EPOCHS = 10  # the thesis's
PAIRS = (("balanced_accuracy", "weighted_accuracy"), ("aggregated_f1", "median_f1"))  # the panels of generalization


def method_scores(
    scores: pd.DataFrame, score: str = "median_f1", *, highlight: str | None = None, axes: Sequence[Axes] | None = None
) -> np.ndarray:
    """Draw a score of every method with its interval, one panel per task.

    Methods are in the order of the table. A method without a score is marked by a cross; a percentage at the right is
    the share of cells that a method left unlabelled.

    Parameters
    ----------
    scores
        One row per method, and per ``task`` if there are several: ``method``, the score (0 to 1) and the same with
        ``_low`` and ``_high``; ``unlabelled_percent`` where cells were rejected.
    score
        The column to draw.
    highlight
        A method to draw in orange, its score as a line through the panel.
    axes
        One per task, returned as an array.

    Examples
    --------
    >>> scores = pd.DataFrame({"method": ["SIMS", "linear SVM"], "median_f1": [0.9, 0.8]})
    >>> scores = scores.assign(median_f1_low=[0.85, 0.7], median_f1_high=[0.95, 0.85])
    >>> (ax,) = sk.plotting.method_scores(scores, highlight="SIMS")
    """
    scores = scores if "task" in scores else scores.assign(task="")
    style.check_table(scores, ["method", score, f"{score}_low", f"{score}_high"])
    n_tasks, methods = scores["task"].nunique(), scores["method"].unique()
    rows, columns = (-(-n_tasks // 4), min(4, n_tasks)) if axes is None else (1, n_tasks)
    size = 2.2 * columns + 0.07 * max(map(len, methods)), rows * (0.9 + style.ROW * len(methods))
    axes = style.panels(axes, (rows, columns), size, sharey=True).ravel()
    for ax in axes[n_tasks:]:
        ax.set_axis_off()
    for ax, (task, table) in zip(axes, scores.groupby("task", sort=False), strict=False):
        table = table.set_index("method").reindex(methods)
        colours = np.where(methods == highlight, style.ORANGE, style.BLUE)
        style.intervals(ax, table, score, np.arange(len(methods)), colours)
        left = max(0.0, table[f"{score}_low"].min() - 0.05) if table[score].notna().any() else 0.0
        for row in np.flatnonzero(table[score].isna()):
            ax.text(left, row, "×", color=style.GREY, va="center", ha="center", fontsize=style.FONT)
        if highlight in table.index:
            ax.axvline(table.loc[highlight, score], color=style.ORANGE, linestyle=":", zorder=0)
        rejected = table.get("unlabelled_percent", pd.Series(0, table.index))
        style.beside(ax, [f"{share:.0f} %" if share > 0 else "" for share in rejected])
        style.name_rows(ax, methods)
        ax.set(title=task, xlabel=style.words(score), xlim=(left - 0.02, 1.02))
        sns.despine(ax=ax)
    return axes[:n_tasks]


def ablation(
    epochs: pd.DataFrame,
    scores: pd.DataFrame | None = None,
    *,
    method: str | None = None,
    axes: Sequence[Axes] | None = None,
) -> np.ndarray:
    """Draw trainings with fewer and fewer cells: the thesis's four panels (figures 0.17 to 0.19).

    (a) Median F1 on validation cells, mean over the final ten epochs, against the proportion of training cells.
    (b) Validation loss, (c) median F1 and (d) weighted accuracy by epoch, a line for each proportion. Lines are means
    over the seeds; bars and bands span the seeds.

    Parameters
    ----------
    epochs
        One row per method, proportion, seed and epoch, as ``ablation(...).epochs``: ``method``, ``proportion``,
        ``seed``, ``epoch``, ``n_training_cells``, ``val_loss``, ``val_median_f1``, ``val_accuracy_weighted``.
    scores
        ``ablation(...).scores``; adds to panel (a) the median F1 on the test cells with its interval.
    method
        The one to draw; the first by default.
    axes
        (4,), returned as an array.

    Examples
    --------
    >>> found = sk.studies.ablation(cells, "cell_type")  # doctest: +SKIP
    >>> axes = sk.plotting.ablation(found.epochs, found.scores)  # doctest: +SKIP
    """
    style.check_table(epochs, ["method", "proportion", "seed", "epoch", "n_training_cells", *CURVES])
    method = epochs["method"].iloc[0] if method is None else method
    if method not in set(epochs["method"]):
        raise UnknownNameError("method with epochs", method, epochs["method"].unique())
    epochs = epochs[epochs["method"] == method].sort_values(["proportion", "epoch"])
    axes = style.panels(axes, (1, 4) if axes is not None else (2, 2), (10, 6.4)).ravel()
    runs = epochs.groupby(["proportion", "seed"])
    final = runs.tail(FINAL_EPOCHS).groupby(["proportion", "seed"])["val_median_f1"].mean().groupby("proportion")
    final = final.agg(median_f1="mean", median_f1_low="min", median_f1_high="max").reset_index()
    lines = [(final, 1, style.BLUE, "o", "validation, final ten epochs")]
    if scores is not None:
        test = scores[scores["method"] == method].sort_values("proportion")
        lines.append((test, 1.06, style.ORANGE, "s", "fixed test cells, 95 % interval"))
    for table, shift, colour, marker, label in lines:
        places = shift * table["proportion"].to_numpy()  # beside each other
        style.intervals(axes[0], table, "median_f1", places, colour, vertical=True, marker=marker, label=label)
        axes[0].plot(places, table["median_f1"], color=colour)
    style.log_axis(axes[0].xaxis)
    proportions = epochs["proportion"].unique()
    axes[0].set_xticks(proportions, [f"{100 * value:g} %" for value in proportions], fontsize=style.FONT - 1)
    axes[0].set(xlabel="proportion of the training cells", ylabel="", title="(a) median F1 after training")
    axes[0].legend(frameon=False, fontsize=style.FONT, loc="upper left", bbox_to_anchor=(-0.02, -0.2))
    labels = [f"{100 * row.proportion:g} % ({row.n_training_cells:,.0f} cells)" for row in epochs.itertuples()]
    epochs = epochs.assign(cells=labels, number=epochs["epoch"] + 1)
    curves = dict(x="number", hue="cells", palette=style.MATRIX_COLOURS, errorbar=("pi", 100))
    for ax, letter, (column, words) in zip(axes[1:], "bcd", CURVES.items(), strict=True):
        sns.lineplot(epochs, y=column, ax=ax, legend=letter == "b", **curves)
        ax.set(xlabel="epoch", ylabel="", title=f"({letter}) {words}")
        style.log_axis(ax.xaxis)
    style.log_axis(axes[1].yaxis)
    style.legend_beside(axes[1])
    for ax in axes:
        sns.despine(ax=ax)
    axes[0].figure.suptitle(method, fontsize=style.FONT + 2)
    return axes


def generalization(scores: pd.DataFrame, *, axes: Sequence[Axes] | None = None) -> np.ndarray:
    """Draw four scores of every target, with those of held-out cells of the source (thesis figures 0.15 and 0.16).

    A row of panels for each training group with several targets, otherwise one for all: (a) balanced and weighted
    accuracy, (b) aggregated and median F1. The first score of a panel is filled, the second hollow, both with 95 %
    intervals; a tick is what the same model scores on held-out cells of its training groups. A percentage at the right
    is the share of cells whose class was not in training; they are not scored.

    Parameters
    ----------
    scores
        One row per method, training group and target, as ``generalization(...).scores``: ``method``, ``trained_on``,
        ``target``, ``in_distribution``, ``unseen_percent``, and the four scores with ``_low`` and ``_high``.
    axes
        (rows of panels, 2), returned as an array.

    Examples
    --------
    >>> found = sk.studies.generalization(cells, "cell_type", by="region")  # doctest: +SKIP
    >>> axes = sk.plotting.generalization(found.scores)  # doctest: +SKIP
    """
    names = [f"{score}{ending}" for pair in PAIRS for score in pair for ending in ("", "_low", "_high")]
    style.check_table(scores, ["method", "trained_on", "target", "in_distribution", "unseen_percent", *names])
    source, other = (scores[scores["in_distribution"] == inside] for inside in (True, False))
    style.check_table(other, [], few="method")
    if other.groupby("trained_on")["target"].nunique().max() > 1:
        tables = {f"\ntrained on {name}": table for name, table in other.groupby("trained_on", sort=False)}
    else:  # one target each: named by itself where all others train, else by both ends
        pair = other["trained_on"] + " → " + other["target"]
        all_but = other["trained_on"] == "all but " + other["target"]
        tables = {"": other.assign(target=other["target"].where(all_but, pair))}
    methods = list(other["method"].unique())
    heights = [(0.25 + 0.26 * len(methods)) * table["target"].nunique() for table in tables.values()]
    longest = max(len(name) for table in tables.values() for name in table["target"])
    size = 8.6 + 0.08 * longest, sum(heights) + 0.8 * len(tables)
    axes = style.panels(axes, (len(tables), 2), size, sharey="row", height_ratios=heights)
    for row, (title, table) in zip(axes, tables.items(), strict=True):
        for ax, letter, pair in zip(row, "ab", PAIRS, strict=True):
            _targets(ax, table, source, pair, methods)
            heading = " and ".join(style.words(score) for score in pair)
            ax.set_title(f"({letter}) {heading}{title}", fontsize=style.FONT + 1)
        unseen = table.drop_duplicates("target")["unseen_percent"]
        style.beside(row[1], [f"{share:.1f} % unseen" if share > 0 else "" for share in unseen])
    looks = zip(methods, style.COLOURS, style.MARKERS, strict=False)
    handles = [Line2D([], [], color=colour, marker=marker, label=method) for method, colour, marker in looks]
    grey = dict(color=style.GREY, linestyle="")
    notes = (("o", None, "first score of the title"), ("o", "w", "second score of the title"))
    notes += (("|", None, "held-out cells of the training groups"),)
    handles += [Line2D([], [], marker=marker, mfc=face, label=label, **grey) for marker, face, label in notes]
    figure = axes[0, 0].figure
    place = "outside lower center" if figure.get_layout_engine() else "lower center"
    figure.legend(handles=handles, frameon=False, fontsize=style.FONT, loc=place, ncols=3)
    return axes


def composition(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the shares of the predicted cell types in each sample, with intervals (thesis figures 0.20, 0.21).

    The most common class of the first sample is at the top and ``"Unknown"`` last; classes without cells are left out.

    Parameters
    ----------
    table
        One row per sample and class, as ``inference(...).composition``: ``tissue``, ``sample``, ``class``,
        ``percent``, ``percent_low``, ``percent_high``; ``true_percent``, where it is known, is drawn as a black tick.

    Examples
    --------
    >>> table = pd.DataFrame({"class": ["T", "B", "Unknown"], "percent": [70.0, 20.0, 10.0]})
    >>> table = table.assign(tissue="blood", sample="donor 1", percent_low=5.0, percent_high=80.0)
    >>> ax = sk.plotting.composition(table)
    """
    style.check_table(table, ["tissue", "sample", "class", "percent", "percent_low", "percent_high"])
    table = table.assign(name=table["tissue"].astype(str) + ", " + table["sample"].astype(str))
    style.check_table(table, [], few="name")
    shares = table.pivot(index="class", columns="name", values="percent")[table["name"].unique()]
    shares = shares[shares.sum(axis=1) > 0].sort_values([*shares], ascending=False, kind="stable")
    classes = shares.index[np.argsort(shares.index == UNKNOWN, kind="stable")]
    samples = list(shares.columns)
    if ax is None:
        ax = style.new_axes(5.5, style.ROW * len(classes) * max(1, len(samples) / 2.5), names=classes)
    shifts = 0.75 * ((np.arange(len(samples)) + 0.5) / len(samples) - 0.5)
    for sample, shift, colour, marker in zip(samples, shifts, style.COLOURS, style.MARKERS, strict=False):
        own, rows = table[table["name"] == sample].set_index("class").reindex(classes), np.arange(len(classes)) + shift
        colours = np.where(classes == UNKNOWN, style.GREY, colour)
        style.intervals(ax, own, "percent", rows, colours, marker=marker)
        ax.scatter([], [], color=colour, marker=marker, s=24, label=sample)
        if "true_percent" in own and own["true_percent"].notna().any():
            ax.plot(own["true_percent"], rows, "k|", markersize=8, zorder=4)
    if "true_percent" in table:
        ax.plot([], [], "k|", markersize=8, label="true share")
    ax.hlines(np.arange(len(classes) - 1) + 0.5, 0, 1, color="0.9", linewidth=0.6, transform=ax.get_yaxis_transform())
    style.name_rows(ax, classes)
    ax.set_xlabel("share of the sample's cells (%)")
    ax.set_xlim(left=0)
    style.legend_beside(ax)
    sns.despine(ax=ax)
    return ax


def _targets(ax: Axes, table: pd.DataFrame, source: pd.DataFrame, pair: Sequence[str], methods: Sequence[str]) -> None:
    """Draw one panel of generalization: a row for each target, in it two points for each method."""
    targets = list(table["target"].unique())
    looks = list(zip(methods, style.COLOURS, style.MARKERS, strict=False))
    shifts = 0.7 * ((np.arange(2 * len(methods)) + 0.5) / (2 * len(methods)) - 0.5)
    for shift, ((method, colour, marker), score) in zip(shifts, product(looks, pair), strict=True):
        own = table[table["method"] == method].set_index("target").reindex(targets)
        inside = source[source["method"] == method].set_index("trained_on")[score].reindex(own["trained_on"]).to_numpy()
        rows = np.arange(len(targets)) + shift
        style.intervals(ax, own, score, rows, colour, marker=marker, facecolor=colour if score == pair[0] else "w")
        ax.plot(inside, rows, "|", color=colour, markersize=7, alpha=0.6)
    ax.hlines(np.arange(len(targets) - 1) + 0.5, 0, 1, color="0.9", linewidth=0.6, transform=ax.get_yaxis_transform())
    style.name_rows(ax, targets)
    ax.set_xlim(min(ax.get_xlim()[0], 0.8), 1.02)  # a fifth at least, so that a hundredth looks like one
    sns.despine(ax=ax)

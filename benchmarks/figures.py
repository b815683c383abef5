"""Figures of the committed pages that no lesson needs: tables in, matplotlib Axes out."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from sims_kit.plotting import style


def recall_by_size(classes: pd.DataFrame, methods: Sequence[str], n_bins: int = 6) -> Axes:
    """Recall of each class against its number of cells, and the means of groups of classes, by method."""
    ax = style.new_axes(6, 3.5)
    for method, colour, marker in zip(methods, style.COLOURS, style.MARKERS, strict=False):
        own = classes[classes["method"] == method].sort_values("n_cells", kind="stable")
        ax.scatter(own["n_cells"], own["recall"], s=9, color=colour, marker=marker, alpha=0.25, linewidths=0)
        groups = np.arange(len(own)) * min(n_bins, len(own)) // len(own)
        means = own[["n_cells", "recall"]].assign(n_cells=np.log(own["n_cells"])).groupby(groups).mean()
        ax.plot(np.exp(means["n_cells"]), means["recall"], color=colour, marker=marker, markersize=5, label=method)
    ax.set(xscale="log", xlabel="cells of the class", ylabel="recall", ylim=(-0.03, 1.03))
    return finished(ax)


def unseen_types(table: pd.DataFrame) -> np.ndarray:
    """Area under the ROC curve of each left-out type, by method, one panel per task."""
    tasks = table["task"].unique()
    n_types = table.groupby("task")["left_out"].nunique().max()
    axes = style.panels(None, (1, len(tasks)), (4.2 * len(tasks) + 2, 1.1 + 0.34 * n_types))[0]
    look = {
        key: value for key, value in style.by_hue(table, "method").items() if key in ("hue", "hue_order", "palette")
    }
    for ax, task in zip(axes, tasks, strict=True):
        own = table[table["task"] == task]
        sns.stripplot(own, x="auroc", y="left_out", dodge=True, jitter=False, legend=task == tasks[-1], ax=ax, **look)
        ax.axvline(0.5, color=style.GREY, linestyle=":", zorder=0)
        ax.set(title=task, xlabel="AUROC", ylabel="", xlim=(min(0.45, own["auroc"].min() - 0.03), 1.02))
    finished(axes[-1])
    return axes


def ablation_scores(scores: pd.DataFrame, score: str = "median_f1", tolerance: float = 0.02) -> Axes:
    """A score on the fixed test cells against the number of training cells; dotted: all cells, less the tolerance."""
    ax = interval_lines(scores, "n_training_cells", score, "method", style.new_axes(6, 3.4))
    for (_, own), colour in zip(scores.groupby("method", sort=False), style.COLOURS, strict=False):
        full = own.loc[own["proportion"].idxmax(), score]
        ax.axhline(full - tolerance, color=colour, linestyle=":", linewidth=1, zorder=0)
    ax.plot([], [], color=style.GREY, linestyle=":", label=f"all cells, less {tolerance:g}")
    ax.set(xlabel="training cells", ylabel=f"{style.words(score)}, test cells")
    return finished(ax)


def convergence(table: pd.DataFrame) -> np.ndarray:
    """Epochs and CPU seconds to convergence against the number of training cells; bars span the seeds."""
    axes = style.panels(None, (1, 2), (9, 3.2))[0]
    for ax, column, words in zip(axes, ("epochs", "cpu_seconds"), ("epochs", "CPU seconds"), strict=True):
        seeds_lines(table, "n_training_cells", column, "method", ax)
        style.log_axis(ax.xaxis)
        ax.set(xlabel="training cells", ylabel=f"{words} to convergence")
    seeds_lines(table, "n_training_cells", "n_epochs", "method", axes[0], linestyle="--", markersize=0)
    style.log_axis(axes[0].yaxis)
    axes[0].get_legend().remove()
    axes[1].plot([], [], color=style.GREY, linestyle="--", label="epochs of the training")
    finished(axes[1])
    return axes


def marker_recovery(table: pd.DataFrame) -> np.ndarray:
    """Two scores of how well each method finds true markers: a point per class and the mean over the classes."""
    methods = table["method"].unique()
    axes = style.panels(None, (1, 2), (6.5 + 0.07 * max(map(len, methods)), 0.3 * len(methods) + 0.9), sharey=True)[0]
    for ax, score in zip(axes, ("auprc", "precision_at_k"), strict=True):
        points_and_mean(table, score, "method", ax)
    return axes


def stability(table: pd.DataFrame) -> Axes:
    """Rank-biased overlap of each class: a point per pair of models, and the mean."""
    classes = table["class"].unique()
    ax = points_and_mean(table, "rbo", "class", style.new_axes(6, style.ROW * len(classes), names=classes))
    ax.set_xlabel("rank-biased overlap (points: pairs of models)")
    return ax


def consensus_size(table: pd.DataFrame) -> Axes:
    """Agreement of two consensuses against the number of models in each, with the middle 90 % of the draws."""
    ax = style.new_axes(6, 3)
    sns.lineplot(table, x="n_members", y="rbo", marker="o", color=style.BLUE, errorbar=("pi", 90), ax=ax)
    ax.set_xticks(table["n_members"].unique())
    ax.set(xlabel="models in each consensus", ylabel="rank-biased overlap", ylim=(-0.03, 1.03))
    sns.despine(ax=ax)
    return ax


def stress_curves(table: pd.DataFrame, score: str = "accuracy", *, ax: Axes) -> Axes:
    """A score against the strength of the stress, by method; bars span the seeds."""
    blind = ~table["knows_stress_genes"].astype(bool)
    seeds_lines(table[~blind], "stress_strength", score, "method", ax)
    if blind.any():
        seeds_lines(table[blind], "stress_strength", score, "method", ax, linestyle="--", legend=False)
        ax.plot([], [], color=style.GREY, linestyle="--", label="stress genes left out")
    shares = table.groupby("stress_strength")["stress_counts_percent"].mean()
    ax.set_xticks(shares.index, [f"{strength:g}\n({share:.0f} %)" for strength, share in shares.items()])
    ax.set(xlabel="strength of the stress\n(share of counts that are of stress genes)", ylabel=style.words(score))
    return finished(ax)


def confidence_shift(cells: pd.DataFrame, threshold: float, *, ax: Axes) -> Axes:
    """The share of cells below each confidence, by sample."""
    names = cells["tissue"].astype(str) + ", " + cells["sample"].astype(str)
    for (name, own), colour in zip(cells.groupby(names, sort=False)["confidence"], style.COLOURS, strict=False):
        ax.ecdf(own, color=colour, label=f"{name} ({(own < threshold).mean():.1%} Unknown)")
    ax.axvline(threshold, color=style.GREY, linestyle=":", zorder=0)
    ax.set(xlabel="confidence", ylabel="share of cells below it", xlim=(0, 1.01), ylim=(0, 1.01))
    return finished(ax)


def seeds_lines(table: pd.DataFrame, x: str, y: str, hue: str, ax: Axes, err_style: str = "bars", **options) -> None:
    """Lines through the means of the seeds, and bars or bands over all of them."""
    options = dict(errorbar=("pi", 100), err_style=err_style, markeredgewidth=0) | options
    sns.lineplot(table, x=x, y=y, ax=ax, **options, **style.by_hue(table, hue))


def interval_lines(table: pd.DataFrame, x: str, score: str, hue: str, ax: Axes) -> Axes:
    """Lines through scores with their intervals on a logarithmic axis, a little apart."""
    for i, name in enumerate(table[hue].unique()):
        own = table[table[hue] == name].sort_values(x)
        places = own[x].to_numpy() * 1.03 ** (i - (table[hue].nunique() - 1) / 2)
        style.intervals(ax, own, score, places, style.COLOURS[i], vertical=True, marker=style.MARKERS[i], label=name)
        ax.plot(places, own[score], color=style.COLOURS[i])
    style.log_axis(ax.xaxis)
    ax.set_xticks(ticks := table[x].unique(), [f"{tick:,.0f}" for tick in ticks])
    return ax


def points_and_mean(table: pd.DataFrame, x: str, y: str, ax: Axes) -> Axes:
    """A faint point per row and a diamond at the mean of each group."""
    sns.stripplot(table, x=x, y=y, jitter=False, color=style.BLUE, alpha=0.35, size=4.5, ax=ax)
    sns.pointplot(table, x=x, y=y, color=style.ORANGE, marker="D", markersize=5, linestyle="none", errorbar=None, ax=ax)
    ax.set(xlabel=style.words(x), ylabel="", xlim=(-0.03, 1.03))
    sns.despine(ax=ax)
    return ax


def finished(ax: Axes) -> Axes:
    """Axes without a frame, with the legend at the right."""
    style.legend_beside(ax)
    sns.despine(ax=ax)
    return ax

"""Figures of a classifier: its labels, training curves, confusion matrix and confidence."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from sims_kit.calibration import UNKNOWN
from sims_kit.errors import DataError, UnknownNameError
from sims_kit.plotting import style

CELLS = {"train": ("training", style.GREY, "--"), "val": ("validation", style.BLUE, "-")}


def label_distribution(labels: Sequence, *, ax: Axes | None = None) -> Axes:
    """Draw the number of cells of each label, the most common at the top (thesis figure 0.6b).

    `labels` has one per cell. Missing ones are counted as ``"(no label)"``.

    >>> ax = sk.plotting.label_distribution(["T cell", "B cell", "T cell", "Unknown"])
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['T cell', 'B cell', 'Unknown']
    """
    counts = pd.Series(style.checked_labels(labels)).value_counts()
    counts = counts.sort_index().sort_values(ascending=False, kind="stable")  # equally common ones by name
    ax = ax or style.new_axes(5, len(counts) * style.ROW, names=counts.index)
    bars = ax.barh(np.arange(len(counts)), counts, color=np.where(counts.index == UNKNOWN, style.GREY, style.BLUE))
    ax.bar_label(bars, labels=[f"{count:,}" for count in counts], padding=3, fontsize=style.font(ax, len(counts)))
    style.name_rows(ax, counts.index)
    ax.margins(x=0.12)  # room for the counts
    ax.set_xlabel("cells")
    return ax


def training_curves(
    history: pd.DataFrame,
    *,
    metrics: Sequence[str] = ("loss", "accuracy_micro", "median_f1"),
    monitor: str | None = None,
) -> np.ndarray:
    """Draw loss and metrics by epoch, training and validation (thesis figures 0.5, 0.17b-d).

    `history` is indexed by epoch, with columns such as ``train_loss``, ``val_loss``, ``val_median_f1``; gaps (NaN) are
    skipped. `metrics` are names without ``train_`` and ``val_``, a panel for each that is in `history`. With `monitor`,
    a column, its best epoch is marked: the highest value, or the lowest of a loss or calibration error.

    >>> history = pd.DataFrame({"train_loss": [2.0, 1.0, 0.5], "val_loss": [2.0, 1.2, 1.3]})
    >>> (ax,) = sk.plotting.training_curves(history, monitor="val_loss")
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['training', 'validation', 'best epoch, 1']
    """
    names = [name for name in metrics if {f"train_{name}", f"val_{name}"} & set(history.columns)]
    if not names:
        tracked = dict.fromkeys(str(column).removeprefix("train_").removeprefix("val_") for column in history)
        raise UnknownNameError("tracked metric", ", ".join(metrics), tracked)
    best = history[monitor].dropna() if monitor else pd.Series(dtype=float)
    best = -best if monitor and monitor.endswith(("loss", "calibration_error")) else best
    axes = plt.subplots(1, len(names), figsize=(3.6 * len(names), 3), layout="constrained", squeeze=False)[1][0]
    for ax, name in zip(axes, names, strict=True):
        for cells, (label, colour, dashes) in CELLS.items():
            if f"{cells}_{name}" in history:
                curve = history[f"{cells}_{name}"].dropna()
                ax.plot(curve.index, curve, dashes, marker=".", markersize=4, color=colour, label=label)
        if len(best):
            ax.axvline(best.idxmax(), color=style.ORANGE, ls=":", label=f"best epoch, {best.idxmax():g}", zorder=0)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        ax.set(xlabel="epoch", title=style.words(name))
        sns.despine(ax=ax)
    axes[0].legend(frameon=False, fontsize=style.FONT)
    return axes


def confusion_matrix(y_true: Sequence, y_pred: Sequence, *, ax: Axes | None = None) -> Axes:
    """Draw which class is predicted for which: true classes in rows, predicted ones in columns.

    `y_true` and `y_pred` have a label for each cell. Classes that are only predicted (``"Unknown"``) are the last
    columns, so that correct predictions lie on the diagonal. Colours are shares of the true class's cells: each row
    sums to 1. With 15 columns or fewer the numbers of cells are written in.

    >>> ax = sk.plotting.confusion_matrix(["B", "T", "T"], ["B", "T", "Unknown"])
    >>> [label.get_text() for label in ax.get_xticklabels()]
    ['B', 'T', 'Unknown']
    """
    counts = pd.crosstab(style.checked_labels(y_true), style.checked_labels(y_pred))
    rows = list(counts.index)
    columns = rows + [name for name in counts if name not in rows]
    counts = counts.reindex(columns=columns, fill_value=0)
    cell = np.clip(5 / len(columns), style.ROW, 1.0)  # inches
    ax = ax or style.new_axes(cell * len(columns) + 1, cell * len(rows), names=rows, names_below=columns)
    # in more than 15 columns, numbers are too small to read
    numbers = counts.map(lambda count: f"{count:,}" if count else "") if len(columns) <= 15 else False
    shares = counts.div(counts.sum(axis=1), axis=0)
    style.heatmap(ax, shares, "share of the true class", largest=1, numbers=numbers)
    ax.set(xlabel="predicted", ylabel="true")
    return ax


def confidence(
    confidences: Sequence[float], labels: Sequence, *, threshold: float = 0.5, ax: Axes | None = None
) -> Axes:
    """Draw the confidence of the predictions of each class, the most confident class at the top.

    `confidences` and `labels` are probability, 0 to 1, and name of the predicted class of each cell. Boxes are the
    middle half with the median, whiskers the middle 90 %. The share of cells below the `threshold` is at the right.

    >>> ax = sk.plotting.confidence([0.9, 0.8, 0.4], ["T cell", "T cell", "B cell"])
    >>> [text.get_text() for text in ax.texts]
    ['0% of 2', '100% of 1', 'below 0.5']
    """
    table = pd.DataFrame({"class": style.checked_labels(labels), "confidence": np.asarray(confidences, dtype=float)})
    if not table["confidence"].between(0, 1).all() or not 0 <= threshold <= 1:  # NaN too
        found = f"from {table['confidence'].min():g} to {table['confidence'].max():g}, threshold={threshold:g}"
        raise DataError(f"Confidences {found}: expected probabilities, 0 to 1.")
    table["below"] = table["confidence"] < threshold
    by_class = table.groupby("class").agg(median=("confidence", "median"), n=("below", "size"), below=("below", "mean"))
    by_class = by_class.sort_values("median", ascending=False, kind="stable")
    names = by_class.index
    ax = ax or style.new_axes(5, len(names) * 1.3 * style.ROW, names=names)
    colours = {name: style.GREY if name == UNKNOWN else style.BLUE for name in names}
    looks = dict(order=names, hue="class", hue_order=names, palette=colours, width=0.6, linewidth=0.9, saturation=1)
    sns.boxplot(table, x="confidence", y="class", whis=(5, 95), showfliers=False, legend=False, ax=ax, **looks)
    ax.axvline(threshold, color=style.GREY, linestyle=":", zorder=0)
    style.beside(ax, [f"{row.below:.0%} of {row.n:,}" for row in by_class.itertuples()], f"below {threshold:g}")
    style.name_rows(ax, names)
    ax.set(xlabel="confidence", ylabel="", xlim=(-0.02, 1.02))
    return ax

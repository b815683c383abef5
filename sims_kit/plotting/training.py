"""Figures of a training: labels, curves by epoch, and the confusion matrix."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from sims_kit.calibration import UNKNOWN
from sims_kit.errors import DataError, UnknownNameError
from sims_kit.plotting import style

CELLS = {"train": ("training", style.GREY, "--"), "val": ("validation", style.BLUE, "-")}
NUMBERS_UP_TO = 15  # columns of a confusion matrix; with more, its numbers are too small to read


def label_distribution(labels: Sequence, *, ax: Axes | None = None) -> Axes:
    """Draw the number of cells of each label, the most common at the top (thesis figure 0.6b).

    Parameters
    ----------
    labels
        One label per cell. Missing ones are counted as ``"(no label)"``.

    Examples
    --------
    >>> ax = sk.plotting.label_distribution(["T cell", "B cell", "T cell", "Unknown"])
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['T cell', 'B cell', 'Unknown']
    """
    counts = style.checked_labels(labels, "labels").value_counts().sort_index()
    counts = counts.sort_values(ascending=False, kind="stable")  # equally common ones by name
    ax = ax if ax is not None else style.new_axes(5, len(counts) * style.ROW, names=counts.index)
    colours = np.where(counts.index == UNKNOWN, style.GREY, style.BLUE)
    bars = ax.barh(np.arange(len(counts)), counts, color=colours)
    ax.bar_label(bars, labels=[f"{count:,}" for count in counts], padding=3, fontsize=style.font(ax, len(counts)))
    style.name_rows(ax, counts.index)
    ax.margins(x=0.12)  # room for the counts
    ax.set_xlabel("cells")
    sns.despine(ax=ax)
    return ax


def training_curves(
    history: pd.DataFrame,
    *,
    metrics: Sequence[str] = ("loss", "accuracy_micro", "median_f1"),
    monitor: str | None = None,
    axes: Sequence[Axes] | None = None,
) -> np.ndarray:
    """Draw loss and metrics by epoch, training and validation, with the best epoch (thesis figures 0.5, 0.17b-d).

    Parameters
    ----------
    history
        Indexed by epoch, with columns such as ``train_loss``, ``val_loss``, ``val_median_f1``. Gaps (NaN) are skipped.
    metrics
        Names without ``train_`` and ``val_``, one panel each. Metrics that are not in `history` are left out.
    monitor
        The column that tells the best epoch: its highest value, or the lowest of a loss or calibration error. By
        default ``val_accuracy_micro`` (the thesis's choice), or ``val_loss`` without it.
    axes
        One per panel, returned as an array.

    Examples
    --------
    >>> history = pd.DataFrame({"train_loss": [2.0, 1.0, 0.5], "val_loss": [2.0, 1.2, 1.3]})
    >>> (ax,) = sk.plotting.training_curves(history)
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['training', 'validation', 'best epoch, 1']
    """
    if not len(history):
        raise DataError("history has no epochs; expected one row per epoch. Train for one or more.")
    names = [name for name in metrics if {f"train_{name}", f"val_{name}"} & set(history.columns)]
    if not names:
        tracked = dict.fromkeys(str(column).removeprefix("train_").removeprefix("val_") for column in history)
        raise UnknownNameError("tracked metric", ", ".join(metrics), tracked)
    monitor = monitor or next((name for name in ("val_accuracy_micro", "val_loss") if name in history), None)
    if monitor is not None and monitor not in history:
        raise UnknownNameError("column of the training history", monitor, history.columns)
    best = history[monitor].dropna() if monitor else pd.Series(dtype=float)
    best = -best if monitor and monitor.endswith(("loss", "calibration_error")) else best
    axes = style.panels(axes, (1, len(names)), (3.6 * len(names), 3))[0]
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


def confusion_matrix(y_true: Sequence, y_pred: Sequence, *, normalise: bool = True, ax: Axes | None = None) -> Axes:
    """Draw which class is predicted for which: true classes in rows, predicted ones in columns.

    Rows are the classes of `y_true`. Columns are the same, followed by classes that are only predicted (``"Unknown"``),
    so that correct predictions lie on the diagonal. With 15 columns or fewer the numbers of cells are written in.

    Parameters
    ----------
    y_true, y_pred
        True and predicted label of each cell, in the same order, compared as strings.
    normalise
        Colour by the share of the true class's cells, so that each row sums to 1; by the number of cells otherwise.

    Examples
    --------
    >>> ax = sk.plotting.confusion_matrix(["B", "T", "T"], ["B", "T", "Unknown"])
    >>> [label.get_text() for label in ax.get_xticklabels()]
    ['B', 'T', 'Unknown']
    """
    truth, prediction = style.checked_labels(y_true, "y_true"), style.checked_labels(y_pred, "y_pred")
    style.check_lengths(y_true=truth, y_pred=prediction)
    rows = sorted(truth.unique())
    columns = rows + sorted(set(prediction) - set(rows))
    counts = pd.crosstab(truth, prediction).reindex(index=rows, columns=columns, fill_value=0)
    shown = counts.div(counts.sum(axis=1), axis=0) if normalise else counts
    if ax is None:
        cell = np.clip(5 / len(columns), style.ROW, 1.0)  # inches
        ax = style.new_axes(cell * len(columns) + 1, cell * len(rows), names=rows, names_below=columns)
    numbers = counts.map(lambda count: f"{count:,}" if count else "") if len(columns) <= NUMBERS_UP_TO else False
    label, largest = ("share of the true class", 1) if normalise else ("cells", None)
    style.heatmap(ax, shown, label, largest=largest, numbers=numbers)
    ax.set(xlabel="predicted", ylabel="true")
    return ax

"""The figures of the thesis.

Colours are told apart by colour-blind readers and in grey: Okabe and Ito's palette (https://jfly.uni-koeln.de/color)
for categories, viridis for matrices.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from scipy import sparse

from sims_kit import _drawing as draw
from sims_kit.errors import DataError, SettingError, UnknownNameError

NUMBERS_UP_TO = 15  # columns of a confusion matrix; more, and its numbers are too small to read
ROWS_DRAWN = 600  # of an explain matrix, about one per pixel


def label_distribution(labels: Sequence, *, ax: Axes | None = None) -> Axes:
    """How many cells each label has, the commonest at the top (thesis figure 0.6b).

    Parameters
    ----------
    labels
        One label per cell. Missing ones are counted as ``"(no label)"``.

    Returns
    -------
    matplotlib.axes.Axes
        One horizontal bar per label, its count written beside it.

    Raises
    ------
    LabelError
        If there are no cells.
    """
    counts = draw.checked_labels(labels, "labels").value_counts().sort_index()
    counts = counts.sort_values(ascending=False, kind="stable")  # equally common ones by name
    ax = ax if ax is not None else draw.new_axes(5, len(counts) * draw.ROW, names=counts.index)
    bars = ax.barh(np.arange(len(counts)), counts, color=draw.BLUE)
    ax.bar_label(bars, labels=[f"{count:,}" for count in counts], padding=3, fontsize=draw.font(ax, len(counts)))
    draw.name_rows(ax, counts.index)
    ax.margins(x=0.12)  # room for the counts
    ax.set_xlabel("cells")
    return draw.tidy(ax)


def training_curves(
    history: pd.DataFrame,
    *,
    metrics: Sequence[str] = ("loss", "accuracy_micro", "median_f1"),
    monitor: str | None = None,
    axes: Sequence[Axes] | None = None,
) -> np.ndarray:
    """Loss and metrics by epoch, training against validation, with the best epoch marked (figures 0.5, 0.17b-d).

    Parameters
    ----------
    history
        Indexed by epoch, with columns such as ``train_loss``, ``val_loss``, ``val_median_f1``. Gaps (NaN) are skipped.
    metrics
        Names without ``train_`` and ``val_``, one panel each. Those that neither has are left out, unless all are.
    monitor
        The column that tells the best epoch: the highest value, or the lowest of a loss or calibration error; of
        equal ones the first. By default ``val_accuracy_micro`` (the thesis's choice), or ``val_loss`` without it.
    axes
        Where to draw, one per panel; a new figure by default.

    Returns
    -------
    numpy.ndarray of matplotlib.axes.Axes, one per panel

    Raises
    ------
    DataError
        If `history` has no epoch.
    UnknownNameError
        If none of `metrics`, or `monitor`, is in `history`.
    SettingError
        If the number of `axes` is not that of the panels.
    """
    if not len(history):
        raise DataError("history has no epochs; expected one row per epoch. Train for one or more.")
    names = [name for name in metrics if {f"train_{name}", f"val_{name}"} & set(history.columns)]
    if not names:
        tracked = dict.fromkeys(str(column).removeprefix("train_").removeprefix("val_") for column in history)
        raise UnknownNameError("tracked metric", ", ".join(metrics), tracked)
    best = draw.best_epoch(history, monitor)
    if axes is None:
        figure = plt.figure(figsize=(3.6 * len(names), 3), layout="constrained")
        axes = figure.subplots(1, len(names), squeeze=False)
    axes = np.ravel(axes)
    if len(axes) != len(names):
        raise SettingError(f"{len(axes)} axes for {len(names)} panels ({', '.join(names)}); pass one for each.")
    for ax, name in zip(axes, names, strict=True):
        for part, style in draw.PARTS.items():
            if f"{part}_{name}" in history:
                curve = history[f"{part}_{name}"].dropna()
                ax.plot(curve.index, curve, marker=".", markersize=4, **style)
        if best is not None:
            ax.axvline(best, color=draw.ORANGE, linestyle=":", label=f"best epoch, {best:g}", zorder=0)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        ax.set(xlabel="epoch", title=draw.words(name))
        draw.tidy(ax)
    axes[0].legend(frameon=False, fontsize=draw.FONT)
    return axes


def confusion_matrix(y_true: Sequence, y_pred: Sequence, *, normalise: bool = True, ax: Axes | None = None) -> Axes:
    """Which class is taken for which: true classes in rows, predicted ones in columns.

    Parameters
    ----------
    y_true, y_pred
        True and predicted label of each cell, in the same order, compared as strings.
    normalise
        Colour by the share of the true class's cells, so that each row sums to 1; by the number of cells otherwise.
        With 15 columns or fewer the numbers of cells are written in.

    Returns
    -------
    matplotlib.axes.Axes
        Rows are the classes that occur in `y_true`; columns are the same and after them those that are only
        predicted ("Unknown"), so that right answers lie on the diagonal.

    Raises
    ------
    LabelError
        If there are no cells or the two differ in length.
    """
    truth, prediction = draw.checked_labels(y_true, "y_true"), draw.checked_labels(y_pred, "y_pred")
    draw.check_lengths(y_true=truth, y_pred=prediction)
    rows = sorted(truth.unique())
    columns = rows + sorted(set(prediction) - set(rows))
    counts = pd.crosstab(truth, prediction).reindex(index=rows, columns=columns, fill_value=0).to_numpy()
    shown = counts / counts.sum(axis=1, keepdims=True) if normalise else counts
    if ax is None:
        cell = np.clip(5 / len(columns), draw.ROW, 1.0)  # inches
        ax = draw.new_axes(cell * len(columns) + 1, cell * len(rows), names=rows, names_below=columns)
    image = draw.matrix(ax, shown, *(("share of the true class", 1) if normalise else ("cells",)))
    if len(columns) <= NUMBERS_UP_TO:
        for row, column in np.argwhere(counts):
            colour = "w" if image.norm(shown[row, column]) < 0.6 else "k"
            number = f"{counts[row, column]:,}"
            ax.text(column, row, number, ha="center", va="center", fontsize=draw.FONT - 2, color=colour)
    draw.name_rows(ax, rows)
    draw.name_columns(ax, columns)
    ax.set(xlabel="predicted", ylabel="true")
    return ax


def top_genes(genes: pd.DataFrame, n: int = 20, *, ax: Axes | None = None) -> Axes:
    """The genes a model looks at most, as shares of the first one's weight (figures 0.11a, 0.12a).

    Parameters
    ----------
    genes
        Indexed by gene, with a column ``weight``.
    n
        Genes to draw at most; genes of weight 0 are not drawn.

    Returns
    -------
    matplotlib.axes.Axes
        One horizontal bar per gene; weights are divided by the largest, as only their proportions have a meaning.

    Raises
    ------
    UnknownNameError
        If there is no column ``weight``.
    DataError
        If no gene has a weight above 0.
    SettingError
        If `n` is less than 1.
    """
    if "weight" not in genes:
        raise UnknownNameError("column of the gene table", "weight", genes.columns)
    weights = draw.largest(genes["weight"], n)
    weights = weights / weights.iloc[0]
    ax = ax if ax is not None else draw.new_axes(4, len(weights) * draw.ROW, names=weights.index)
    ax.barh(np.arange(len(weights)), weights, color=draw.BLUE)
    draw.name_rows(ax, weights.index)
    ax.set_xlabel("weight / largest weight")
    return draw.tidy(ax)


def explain_matrix(
    cells: sparse.csr_matrix,
    gene_names: Sequence[str],
    *,
    labels: Sequence | None = None,
    n_genes: int = 50,
    ax: Axes | None = None,
) -> Axes:
    """Which genes decided each cell: cells x genes, the most used gene first (thesis figures 0.11b, 0.12b).

    Parameters
    ----------
    cells
        Mask weights, cells x genes, sparse or dense; each row sums to 1. Only what is drawn is made dense.
    gene_names
        One name per column.
    labels
        One label per cell. Each label gets a band of the same height, so that rare ones can be read; its number of
        cells stands behind its name. Without labels, cells stay in their order.
    n_genes
        Genes to draw at most, by their sum over all cells; genes that no cell uses are not drawn.

    Returns
    -------
    matplotlib.axes.Axes
        An image of about 600 rows: of more cells, evenly spaced ones; fewer cells of a label take several rows each.

    Raises
    ------
    DataError
        If no gene is used, or `gene_names` differs from the columns in length.
    LabelError
        If `labels` is not one per cell.
    SettingError
        If `n_genes` is less than 1.
    """
    cells = sparse.csr_matrix(cells)
    if len(gene_names) != cells.shape[1]:
        raise DataError(f"gene_names has {len(gene_names)} names for {cells.shape[1]} columns; pass one for each.")
    genes = draw.largest(pd.Series(np.asarray(cells.sum(axis=0)).ravel()), n_genes).index
    names = [gene_names[gene] for gene in genes]
    if labels is None:
        bands = {f"{cells.shape[0]:,} cells": np.arange(cells.shape[0])}
    else:
        labels = draw.checked_labels(labels, "labels")
        draw.check_lengths(cells=range(cells.shape[0]), labels=labels)
        bands = {f"{name} ({len(where):,})": where for name, where in labels.groupby(labels).indices.items()}
    height = max(10, ROWS_DRAWN // len(bands))
    drawn = np.concatenate([where[np.arange(height) * len(where) // height] for where in bands.values()])
    if ax is None:
        ax = draw.new_axes(
            draw.COLUMN * len(names) + 1, max(4, draw.ROW * len(bands)), names=[*bands], names_below=names
        )
    draw.matrix(ax, cells[drawn][:, genes].toarray(), "weight in the mask")
    starts = height * np.arange(len(bands)) - 0.5
    ax.hlines(starts[1:], -0.5, len(names) - 0.5, color="w", linewidth=0.7)
    ax.set_yticks(starts + height / 2, bands, fontsize=draw.font(ax, len(bands)))
    draw.name_columns(ax, names)
    return ax


def class_genes(classes: pd.DataFrame, n: int = 50, *, ax: Axes | None = None) -> Axes:
    """Which classes each gene is used for: classes x genes (thesis figures 0.13, 0.14).

    Parameters
    ----------
    classes
        Mean mask weight, indexed by class, one column per gene.
    n
        Genes to draw at most: those with the largest Euclidean norm over the classes. The norm is that of the weights
        as given, before each column is divided by its maximum, so that a gene hardly used but evenly is not chosen.

    Returns
    -------
    matplotlib.axes.Axes
        An image with one row per class, in the order given; the largest value of each column is 1.

    Raises
    ------
    DataError
        If there are no classes, or no gene is used.
    SettingError
        If `n` is less than 1.
    """
    norms = pd.Series(np.linalg.norm(classes.to_numpy(dtype=float), axis=0))
    chosen = classes.iloc[:, draw.largest(norms, n).index]
    shown = chosen / chosen.max()
    if ax is None:
        ax = draw.new_axes(
            draw.COLUMN * shown.shape[1] + 1, draw.ROW * len(shown), names=shown.index, names_below=shown.columns
        )
    draw.matrix(ax, shown, "weight / gene's largest", 1)
    draw.name_rows(ax, shown.index)
    draw.name_columns(ax, shown.columns)
    return ax


def confidence(
    confidences: Sequence[float],
    labels: Sequence,
    correct: Sequence[bool] | None = None,
    *,
    threshold: float = 0.5,
    ax: Axes | None = None,
) -> Axes:
    """How sure the annotation is, by inferred class, the surest class at the top.

    Parameters
    ----------
    confidences
        Probability of the inferred class of each cell, 0 to 1.
    labels
        The inferred class of each cell.
    correct
        Whether the inferred class is the true one; draws right and wrong cells apart.
    threshold
        Confidence below which cells are counted, as a share of each class, at the right.

    Returns
    -------
    matplotlib.axes.Axes
        Per class a point at the median, a thick line over the middle half and a thin one over the middle 90 %.

    Raises
    ------
    LabelError
        If there are no cells, or the arguments differ in length.
    DataError
        If a confidence is missing or not between 0 and 1.
    SettingError
        If `threshold` is not between 0 and 1.
    """
    labels, confidences = draw.checked_labels(labels, "labels"), np.asarray(confidences, dtype=float)
    right = np.ones(len(labels), dtype=bool) if correct is None else np.asarray(correct, dtype=bool)
    draw.check_lengths(confidences=confidences, labels=labels, correct=right)
    inside = (confidences >= 0) & (confidences <= 1)  # NaN is not
    if not inside.all():
        raise DataError(f"{(~inside).sum()} of {len(inside)} confidences are not between 0 and 1; pass probabilities.")
    if not 0 <= threshold <= 1:
        raise SettingError(f"threshold is {threshold}; expected a confidence between 0 and 1.")
    table = pd.DataFrame({"confidence": confidences, "below": confidences < threshold, "class": labels})
    summary = table.groupby("class").agg({"confidence": ["median", "size"], "below": "mean"}).droplevel(0, axis=1)
    summary = summary.sort_values("median", ascending=False, kind="stable")
    ax = ax if ax is not None else draw.new_axes(5, len(summary) * 1.3 * draw.ROW, names=summary.index)
    if correct is None:
        draw.quantiles(ax, table, summary.index, draw.BLUE)
    else:
        draw.quantiles(ax, table[right], summary.index, draw.BLUE, shift=-0.17, label="right")
        draw.quantiles(ax, table[~right], summary.index, draw.ORANGE, shift=0.17, label="wrong")
        ax.legend(frameon=False, fontsize=draw.FONT, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
    ax.axvline(threshold, color=draw.GREY, linestyle=":", zorder=0)
    beside = dict(transform=ax.get_yaxis_transform(), va="center", fontsize=draw.font(ax, len(summary) + 1))
    ax.text(1.02, -1, f"below {threshold:g}", **beside)
    for row, (share, size) in enumerate(zip(summary["mean"], summary["size"], strict=True)):
        ax.text(1.02, row, f"{share:.0%} of {size:,}", **beside)
    draw.name_rows(ax, summary.index)
    ax.set(xlabel="confidence", xlim=(-0.02, 1.02))
    return draw.tidy(ax)

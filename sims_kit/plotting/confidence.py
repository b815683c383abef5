"""Figures of confidence: by class, against accuracy, and against the share of cells that are answered."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from sims_kit.calibration import UNKNOWN
from sims_kit.errors import DataError, SettingError
from sims_kit.plotting import style


def confidence(
    confidences: Sequence[float],
    labels: Sequence,
    correct: Sequence[bool] | None = None,
    *,
    threshold: float = 0.5,
    ax: Axes | None = None,
) -> Axes:
    """Draw the confidence of the predictions of each class, the most confident class at the top.

    Boxes are the middle half with the median, whiskers the middle 90 %.

    Parameters
    ----------
    confidences
        Probability of the predicted class of each cell, 0 to 1.
    labels
        The predicted class of each cell.
    correct
        Whether the prediction is correct; draws correct and wrong cells apart.
    threshold
        The share of each class's cells below this confidence is written at the right.

    Examples
    --------
    >>> ax = sk.plotting.confidence([0.9, 0.8, 0.4], ["T cell", "T cell", "B cell"])
    >>> [text.get_text() for text in ax.texts]
    ['0% of 2', '100% of 1', 'below 0.5']
    """
    labels, confidences = style.checked_labels(labels, "labels"), np.asarray(confidences, dtype=float)
    answers = np.ones(len(labels), dtype=bool) if correct is None else np.asarray(correct, dtype=bool)
    style.check_lengths(confidences=confidences, labels=labels, correct=answers)
    inside = (confidences >= 0) & (confidences <= 1)  # NaN is not
    if not inside.all():
        raise DataError(f"{(~inside).sum()} of {len(inside)} confidences are not between 0 and 1; pass probabilities.")
    if not 0 <= threshold <= 1:
        raise SettingError(f"threshold is {threshold}; expected a confidence between 0 and 1.")
    table = pd.DataFrame({"confidence": confidences, "below": confidences < threshold, "class": labels})
    by_class = table.groupby("class").agg(median=("confidence", "median"), n=("below", "size"), below=("below", "mean"))
    by_class = by_class.sort_values("median", ascending=False, kind="stable")
    names = by_class.index
    ax = ax if ax is not None else style.new_axes(5, len(names) * 1.3 * style.ROW, names=names)
    if correct is None:
        colours = {name: style.GREY if name == UNKNOWN else style.BLUE for name in names}
        look = dict(hue="class", hue_order=names, palette=colours, legend=False)
    else:
        table["prediction"] = np.where(answers, "correct", "wrong")
        look = dict(hue="prediction", palette={"correct": style.BLUE, "wrong": style.ORANGE}, gap=0.2)
        look |= dict(hue_order=["correct", "wrong"])
    box = dict(whis=(5, 95), showfliers=False, width=0.6, linewidth=0.9, saturation=1)
    sns.boxplot(table, x="confidence", y="class", order=names, ax=ax, **box, **look)
    if correct is not None:
        ax.legend(frameon=False, fontsize=style.FONT, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
    ax.axvline(threshold, color=style.GREY, linestyle=":", zorder=0)
    texts = [f"{row.below:.0%} of {row.n:,}" for row in by_class.itertuples()]
    style.beside(ax, texts, f"below {threshold:g}")
    style.name_rows(ax, names)
    ax.set(xlabel="confidence", ylabel="", xlim=(-0.02, 1.02))
    sns.despine(ax=ax)
    return ax


def reliability_diagram(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw accuracy against confidence; calibrated confidence lies on the diagonal (Guo et al., ICML 2017, figure 1).

    Parameters
    ----------
    table
        One row per bin, of `sims_kit.calibration.reliability_table`; a column ``group`` (such as "before" and "after")
        draws several tables in one figure. Areas are the shares of the cells, lines Wilson's 95 % intervals.

    Examples
    --------
    >>> table = sk.calibration.reliability_table([0.95, 0.9, 0.6, 0.55], [True, True, True, False], n_bins=2)
    >>> ax = sk.plotting.reliability_diagram(table)
    """
    style.check_table(table, ["confidence", "accuracy", "n_cells", "accuracy_low", "accuracy_high"])
    is_grouped = "group" in table
    table = table if is_grouped else table.assign(group="")
    style.check_table(table, [], few="group")
    ax = ax if ax is not None else style.new_axes(3.6, 3.6)
    ax.plot([0, 1], [0, 1], color=style.GREY, linestyle=":", zorder=0)
    for i, (name, bins) in enumerate(table.groupby("group", sort=False)):
        look = dict(marker=style.MARKERS[i], alpha=0.75, linewidths=0)
        area = (12 + 150 * bins["n_cells"] / bins["n_cells"].sum()).to_numpy()
        places = bins["confidence"].to_numpy()
        style.intervals(ax, bins, "accuracy", places, style.COLOURS[i], vertical=True, s=area, **look)
        ax.scatter([], [], s=30, color=style.COLOURS[i], label=name, **look)  # one size in the legend
    ax.set(xlabel="confidence", ylabel="accuracy", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    if is_grouped:
        style.legend_beside(ax)
    sns.despine(ax=ax)
    return ax


def rejection_curves(
    curve: pd.DataFrame, *, threshold: float | None = None, error_rate: float | None = None, ax: Axes | None = None
) -> Axes:
    """Draw the share of cells that are answered, and of errors among them, against the threshold of confidence.

    Parameters
    ----------
    curve
        Of `sims_kit.calibration.rejection_curve`.
    threshold, error_rate
        A threshold and the error rate promised for it, drawn as lines.

    Examples
    --------
    >>> curve = sk.calibration.rejection_curve([0.95, 0.9, 0.6, 0.55], [True, True, True, False])
    >>> ax = sk.plotting.rejection_curves(curve, threshold=0.6)
    """
    style.check_table(curve, ["threshold", "answered", "error"])
    ax = ax if ax is not None else style.new_axes(4.5, 3)
    curve = curve.sort_values("threshold")
    lines = (("answered", style.BLUE, "-", "cells answered"), ("error", style.ORANGE, "--", "errors among them"))
    for column, colour, dashes, name in lines:
        ax.step(curve["threshold"], curve[column], where="pre", color=colour, linestyle=dashes, label=name)
    if threshold is not None and np.isfinite(threshold):
        ax.axvline(threshold, color=style.GREY, linestyle=":", label=f"threshold {threshold:.2f}")
    if error_rate is not None:
        ax.axhline(error_rate, color=style.GREY, linewidth=0.8, label=f"promise: at most {error_rate:.0%} wrong")
    ax.set(xlabel="threshold of confidence", ylabel="share", xlim=(None, 1.01), ylim=(-0.02, 1.02))
    style.legend_beside(ax)
    sns.despine(ax=ax)
    return ax

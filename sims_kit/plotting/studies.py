"""Figure of the studies: scores with intervals."""

from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt

from sims_kit.calibration import UNKNOWN
from sims_kit.errors import SettingError
from sims_kit.plotting import style


def method_scores(
    scores: pd.DataFrame,
    score: str = "median_f1",
    *,
    rows: str = "method",
    hue: str | None = None,
    highlight: str | None = None,
    reference: str | None = None,
) -> np.ndarray:
    """Draw a score of every method with its interval, one panel per task.

    `scores` has a row for each method, and each ``task`` if there are several, in the order of the figure; columns are
    ``method``, the `score` and the same with ``_low`` and ``_high``. A method without a score is marked by a cross;
    ``unlabelled_percent``, where cells were rejected, is written at the right.

    `rows` is the column of the names at the left, such as ``"target"`` instead of methods. `hue` is a column that puts
    several scores in a row, each of its values (seven at most) in its own colour and marker; methods have theirs of
    `METHOD_COLOURS`. The score of the name `highlight` is drawn as a line through the panel. `reference` is a column to
    draw as ticks, as true values.

    >>> scores = pd.DataFrame({"method": ["SIMS", "linear SVM"], "median_f1": [0.9, 0.8]})
    >>> scores = scores.assign(median_f1_low=[0.85, 0.7], median_f1_high=[0.95, 0.85])
    >>> (ax,) = sk.plotting.method_scores(scores, highlight="SIMS")
    """
    scores = scores if "task" in scores else scores.assign(task="")
    keys = [column for column in ("task", rows, hue) if column is not None]
    if not len(scores) or scores.duplicated(keys).any():
        found = f"A {rows} has several scores" if len(scores) else "There are no scores"
        raise SettingError(f"{found}; pass the column that tells them apart as hue, or some rows.")
    tasks, names, largest = scores["task"].unique(), scores[rows].unique(), scores[f"{score}_high"].max()
    groups = [(None, scores)] if hue is None else list(scores.groupby(hue, sort=False))
    if len(groups) > len(style.COLOURS):
        raise SettingError(f"{len(groups)} {hue}s are too many to tell apart; pass the rows of seven or fewer.")
    shape = -(-len(tasks) // 4), min(4, len(tasks))
    width = max(4, 2.2 * shape[1]) + 0.07 * max(len(str(name)) for name in names) + (0 if hue is None else 2)
    height = shape[0] * (0.9 + style.ROW * len(names) * max(1, len(groups) / 2))
    axes = plt.subplots(*shape, figsize=(width, height), layout="constrained", sharey=True, squeeze=False)[1].ravel()
    for ax in axes[len(tasks) :]:
        ax.set_axis_off()
    special = {UNKNOWN: style.GREY} | (style.METHOD_COLOURS if rows == "method" else {})
    tick = dict(marker="|", markersize=9, markeredgewidth=1.6, linestyle="")
    shifts = 0.75 * ((np.arange(len(groups)) + 0.5) / len(groups) - 0.5)  # of each group from the middle of the row
    for ax, task in zip(axes, tasks, strict=False):
        for (group, table), shift, colour, marker in zip(groups, shifts, style.COLOURS, style.MARKERS, strict=False):
            table = table[table["task"] == task].set_index(rows).reindex(names)
            colour, places = style.METHOD_COLOURS.get(group, colour), np.arange(len(names)) + shift
            colours = [special.get(name, colour) for name in names]
            style.intervals(ax, table, score, places, colours, marker=marker)
            missing = places[table[score].isna()]
            ax.plot(np.full(len(missing), 0.03), missing, "x", color=style.GREY, transform=ax.get_yaxis_transform())
            if reference is not None:
                ax.plot(table[reference], places, color=colour, **tick)
            ax.scatter([], [], color=colour, marker=marker, label=group)
        if highlight in names:
            ax.axvline(table.loc[highlight, score], color=special.get(highlight, colour), linestyle=":", zorder=0)
        if hue is None and "unlabelled_percent" in table:
            style.beside(ax, [f"{share:.0f} %" if share > 0 else "" for share in table["unlabelled_percent"]])
        style.name_rows(ax, names)
        ax.set(title=fill(str(task), 24), xlabel=style.words(score))
        if largest <= 1:
            ax.set_xlim(min(ax.get_xlim()[0], 0.8), 1.02)  # a fifth at least, so that a hundredth looks small
    if reference is not None:
        ax.plot([], [], color=style.GREY, label=reference, **tick)
    if hue is not None:
        ax.legend(frameon=False, fontsize=style.FONT, **style.BESIDE)
    return axes[: len(tasks)]

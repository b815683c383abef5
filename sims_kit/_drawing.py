"""What the figures of `sims_kit.plotting` share: checked input, colours, Axes on which no name covers another."""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from sims_kit.errors import DataError, LabelError, SettingError, UnknownNameError
from sims_kit.text import label_text

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#7F7F7F"  # two of Okabe and Ito's palette, and a grey between them
COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", GREY)  # Okabe and Ito's, then grey
MARKERS = "osD^vPX"  # colours are not the only thing that tells lines apart
MATRIX_COLOURS = "viridis"
PARTS = {
    "train": dict(label="training", color=GREY, linestyle="--"),
    "val": dict(label="validation", color=BLUE, linestyle="-"),
}
FONT = 9.0  # points, of names; smaller on Axes that were handed in with less room
ROW = 0.22  # inches per name at that size
COLUMN = 0.18  # the same for names set upright
LOWER_IS_BETTER = ("loss", "calibration_error")


def checked_labels(labels: Sequence, argument: str) -> pd.Series:
    """Labels as strings, one per cell, numbered from 0; missing ones as ``"(no label)"``."""
    values = label_text(labels).reset_index(drop=True)
    if not len(values):
        raise LabelError(f"{argument} is empty; expected one label per cell. Was every cell filtered out?")
    return values.fillna("(no label)").astype(str)


def check_lengths(**arguments: Sequence) -> None:
    """Refuse arguments that do not have one entry per cell each."""
    lengths = {name: len(values) for name, values in arguments.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise LabelError(f"Expected one entry per cell, in the same order; the lengths differ ({found}).")


def check_table(table: pd.DataFrame, columns: Sequence[str]) -> None:
    """Refuse a table that lacks one of the columns, or has no rows."""
    for column in columns:
        if column not in table:
            raise UnknownNameError("column of the table", column, table.columns)
    if not len(table):
        raise DataError("The table has no rows, so there is nothing to draw; expected one or more.")


def check_few(names: Sequence, kind: str) -> None:
    """Refuse more lines than there are colours for."""
    if len(names) > len(COLOURS):
        raise SettingError(f"{len(names)} {kind} are too many to tell apart; draw {len(COLOURS)} or fewer.")


def largest(weights: pd.Series, n: int) -> pd.Series:
    """The `n` largest weights above 0, falling; equal ones in the order given."""
    if n < 1:
        raise SettingError(f"{n} genes asked for; expected 1 or more.")
    weights = weights[weights > 0].sort_values(ascending=False, kind="stable")
    if not len(weights):
        raise DataError("No gene has a weight above 0, so there is nothing to draw. Explain some cells first.")
    return weights.iloc[:n]


def best_epoch(history: pd.DataFrame, monitor: str | None) -> float | None:
    """The epoch at which `monitor` is best; None if there is nothing to go by."""
    if monitor is None:
        monitor = next((name for name in ("val_accuracy_micro", "val_loss") if name in history), None)
    elif monitor not in history:
        raise UnknownNameError("column of the training history", monitor, history.columns)
    values = history[monitor].dropna() if monitor else ()
    if not len(values):
        return None
    return values.idxmin() if monitor.endswith(LOWER_IS_BETTER) else values.idxmax()


def new_axes(width: float, height: float, *, names: Sequence = (), names_below: Sequence = ()) -> Axes:
    """Axes of about that size (inches), on a figure with room for the names of rows and columns."""
    letter = 0.55 * FONT / 72  # inches, on average
    height = max(height, 2 if len(names_below) else 0)  # a matrix needs that much for the words of its colour bar
    left, below = (letter * max((len(str(name)) for name in some), default=0) for some in (names, names_below))
    figure = plt.figure(figsize=(width + left + 0.5, height + below + 0.8), layout="constrained")
    return figure.subplots()


def name_rows(ax: Axes, names: Sequence) -> None:
    """Write a name beside each row, the first at the top."""
    ax.set_yticks(np.arange(len(names)), names, fontsize=font(ax, len(names)))
    ax.set_ylim(len(names) - 0.5, -0.5)


def name_columns(ax: Axes, names: Sequence) -> None:
    """Write a name under each column, upright: the only way in which long ones never meet."""
    ax.set_xticks(np.arange(len(names)), names, fontsize=font(ax, len(names), "width"), rotation=90)


def font(ax: Axes, n: int, side: str = "height") -> float:
    """The font size (points) at which `n` lines fit beside the Axes, at most the usual one."""
    inches = getattr(ax.get_position(), side) * getattr(ax.get_figure(root=True).bbox_inches, side)
    return float(np.clip(0.7 * 72 * inches / n, 3, FONT))


def matrix(ax: Axes, values: np.ndarray, label: str, largest: float | None = None) -> AxesImage:
    """Values from 0 to the largest as colours, each cell sharp, with a bar that says what they mean."""
    image = ax.imshow(values, cmap=MATRIX_COLOURS, vmin=0, vmax=largest, aspect="auto", interpolation="nearest")
    ax.figure.colorbar(image, ax=ax, label=label, aspect=30)
    return image


def quantiles(ax: Axes, table: pd.DataFrame, names: pd.Index, colour: str, shift: float = 0, label: str = "") -> None:
    """The confidence of each class as lines and a point; a class without cells is left blank."""
    shares = [0.05, 0.25, 0.5, 0.75, 0.95]
    values = table.groupby("class")["confidence"].quantile(shares).unstack().reindex(index=names, columns=shares)
    rows = np.arange(len(names)) + shift
    ax.hlines(rows, values[0.05], values[0.95], color=colour, linewidth=1)
    ax.hlines(rows, values[0.25], values[0.75], color=colour, linewidth=3.5)
    ax.plot(values[0.5], rows, "o", color=colour, markeredgecolor="w", markersize=6, label=label)


def legend_beside(ax: Axes) -> None:
    """The legend at the right of the Axes, where it covers nothing."""
    ax.legend(frameon=False, fontsize=FONT, loc="center left", bbox_to_anchor=(1.01, 0.5))


def words(metric: str) -> str:
    """``accuracy_micro`` as "accuracy (micro)"."""
    words = metric.replace("f1", "F1").replace("mcc", "MCC").replace("_", " ")
    return re.sub(" (micro|macro|weighted)$", r" (\1)", words)


def tidy(ax: Axes) -> Axes:
    """Leave out the lines that carry nothing."""
    ax.spines[["top", "right"]].set_visible(False)
    return ax

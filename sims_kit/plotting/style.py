"""Colours, checked input and Axes with room for long names, shared by all figures.

Okabe and Ito's palette (https://jfly.uni-koeln.de/color) and viridis suit colour-blind readers; ``"Unknown"`` is grey.
"""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis

from sims_kit.calibration import UNKNOWN
from sims_kit.errors import LabelError
from sims_kit.text import label_text

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#7F7F7F"  # two of Okabe and Ito's palette, and a grey between them
_SIMS = {"SIMS": BLUE, "SIMS, default": BLUE, "SIMS, one network": "#56B4E9", "SIMS, thesis": "#003B5C"}
_LINEAR = {"linear SVM": ORANGE, "linear SVM, calibrated": ORANGE, "L1 logistic regression": "#009E73"}
_TREES = {"LightGBM": "#CC79A7", "random forest": "#A6761D", "CellTypist": "#E69F00", "scANVI": "#7B3294"}
_OTHERS = {"logistic regression": "#5FB39A", "RBF SVM on PCs (scPred's method)": "#8C2D04", "kNN on PCs": GREY}
METHOD_COLOURS = _SIMS | _LINEAR | _TREES | _OTHERS  # one for each, in every figure
FONT = 9.0  # points, of names; smaller on given Axes with less room
ROW = 0.22  # inches per name at that size


def checked_labels(labels: Sequence) -> np.ndarray:
    """Labels as text, one per cell; missing ones as ``"(no label)"``."""
    if not len(labels):
        raise LabelError("There are no labels; expected one per cell. Was every cell filtered out?")
    return label_text(labels).fillna("(no label)").to_numpy()


def new_axes(width: float, height: float, *, names: Sequence = (), names_below: Sequence = ()) -> Axes:
    """Axes of about this size (inches), on a figure with room for the names of rows and columns."""
    letter = 0.55 * FONT / 72  # inches, on average
    height = max(height, 2 if len(names_below) else 0)  # the label of a matrix's colour bar needs 2 inches
    left, below = (letter * max((len(str(name)) for name in some), default=0) for some in (names, names_below))
    return plt.subplots(figsize=(width + left + 0.5, height + below + 0.8), layout="constrained")[1]


def name_rows(ax: Axes, names: Sequence) -> None:
    """Write a name beside each row, the first at the top, and leave the frame open above and at the right."""
    ax.set_yticks(np.arange(len(names)), names, fontsize=font(ax, len(names)))
    ax.set_ylim(len(names) - 0.5, -0.5)
    _grey_unknown(ax.yaxis)
    sns.despine(ax=ax)


def font(ax: Axes, n: int, side: str = "height") -> float:
    """The font size (points) at which `n` lines fit beside the Axes, at most the usual one."""
    inches = getattr(ax.get_position(), side) * getattr(ax.get_figure(root=True).bbox_inches, side)
    return float(np.clip(0.7 * 72 * inches / n, 3, FONT))


def beside(ax: Axes, texts: Sequence[str], heading: str = "", *, below: bool = False) -> None:
    """Write a text at the right of each row, and a heading above or below them."""
    size = font(ax, len(texts) + 1)
    for row, text in enumerate(texts):
        ax.text(1.02, row, text, transform=ax.get_yaxis_transform(), va="center", fontsize=size)
    where = dict(y=0, va="top") if below else dict(y=1, va="bottom")
    ax.text(1.02, s=heading, transform=ax.transAxes, fontsize=size, **where)


def heatmap(ax: Axes, values: pd.DataFrame, label: str, *, largest: float | None = None, numbers=False) -> None:
    """Draw values from 0 to the largest as colours, with the table's names (upright below) and a colour bar."""
    options = dict(cmap="viridis", vmin=0, vmax=largest, xticklabels=False, yticklabels=False, rasterized=True)
    bar = {"label": label, "aspect": 30}
    sns.heatmap(values, ax=ax, annot=numbers, fmt="", annot_kws={"fontsize": FONT - 1}, cbar_kws=bar, **options)
    for axis, names, side in ((ax.xaxis, values.columns, "width"), (ax.yaxis, values.index, "height")):
        axis.set_ticks(np.arange(len(names)) + 0.5, names, fontsize=font(ax, len(names), side))
        _grey_unknown(axis)
    ax.tick_params("x", rotation=90)
    ax.set(xlabel="", ylabel="")


def words(metric: str) -> str:
    """``accuracy_micro`` as "accuracy (micro)"."""
    words = metric.replace("f1", "F1").replace("mcc", "MCC").replace("_", " ")
    return re.sub(" (micro|macro|weighted)$", r" (\1)", words)


def _grey_unknown(axis: Axis) -> None:
    for label in axis.get_ticklabels():
        if label.get_text() == UNKNOWN:
            label.set_color(GREY)

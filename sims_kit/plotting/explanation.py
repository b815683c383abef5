"""Figures of explanations: the genes of a model and of one cell."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from sims_kit.errors import DataError, SettingError
from sims_kit.plotting import style


def top_genes(genes: pd.DataFrame, n: int = 20, *, ax: Axes | None = None) -> Axes:
    """Draw the genes with the largest mask weights, divided by the first one's (thesis figures 0.11a, 0.12a).

    `genes` is indexed by gene, with a column ``weight``, such as ``explain(...).genes``; `n` above 0 are drawn.

    >>> genes = pd.DataFrame({"weight": [0.1, 0.5, 0.0]}, index=["CD3E", "CD79A", "LYZ"])
    >>> ax = sk.plotting.top_genes(genes)
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['CD79A', 'CD3E']
    """
    weights = _largest(genes["weight"], n)
    ax = ax or style.new_axes(4, len(weights) * style.ROW, names=weights.index)
    ax.barh(np.arange(len(weights)), weights / weights.iloc[0], color=style.BLUE)
    style.name_rows(ax, weights.index)
    ax.set_xlabel("weight / largest weight")
    return ax


def cell_genes(genes: pd.DataFrame, n: int = 15, *, ax: Axes | None = None) -> Axes:
    """Draw the `n` genes that contribute most to the prediction of one cell, of either sign, with their expression.

    `genes` is indexed by gene, with columns ``contribution`` (to the logit) and ``expression`` (log-normalised), such
    as ``explain_cell(...).genes``.

    >>> genes = pd.DataFrame({"contribution": [2.0, -0.5], "expression": [1.1, 3.0]}, index=["CD3E", "LYZ"])
    >>> ax = sk.plotting.cell_genes(genes)
    """
    shown = genes.iloc[_largest(genes["contribution"].abs().reset_index(drop=True), n).index]
    ax = ax or style.new_axes(4, len(shown) * style.ROW, names=shown.index)
    colours = np.where(shown["contribution"] > 0, style.BLUE, style.ORANGE)
    ax.barh(np.arange(len(shown)), shown["contribution"], color=colours)
    ax.axvline(0, color="k", linewidth=0.8)
    style.name_rows(ax, shown.index)
    style.beside(ax, [f"{expression:.1f}" for expression in shown["expression"]], "expression", below=True)
    ax.set_xlabel("against  |  for the predicted class\n(contribution to the logit)")
    return ax


def _largest(weights: pd.Series, n: int) -> pd.Series:
    """The `n` largest weights above 0, falling; equal ones in the order given."""
    if n < 1:
        raise SettingError(f"{n} genes asked for; expected 1 or more.")
    weights = weights[weights > 0].sort_values(ascending=False, kind="stable")[:n]
    if not len(weights):
        raise DataError("No gene has a weight or contribution, so there is nothing to draw. Explain some cells first.")
    return weights

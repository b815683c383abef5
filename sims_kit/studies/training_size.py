"""How many cells are enough, and how long training on them takes: read off the tables of an ablation."""

import pandas as pd

from sims_kit.errors import DataError, UnknownNameError

RUN = ["method", "proportion", "seed"]


def smallest_within(
    losses: pd.DataFrame, tolerance: float = 0.02, *, score: str = "median_f1", sure: bool = False
) -> pd.DataFrame:
    """The smallest training set that loses no more than a tolerance, and from which on no larger one does.

    Parameters
    ----------
    losses
        ``ablation(...).losses``.
    tolerance
        Largest loss, 0 to 1: the thesis's 2 % are points of the score.
    score
        One of those in the table.
    sure
        Ask it of the upper end of the interval, and not of the mean.

    Returns
    -------
    DataFrame
        The row of each method. At worst that of all training cells, which lose nothing.

    Raises
    ------
    UnknownNameError
        If there is no such score.
    """
    if score not in set(losses["score"]):
        raise UnknownNameError("score", score, losses["score"].unique())
    rows = []
    for _, table in losses[losses["score"] == score].groupby("method", sort=False):
        table = table.sort_values("proportion", ascending=False)
        within = (table["high" if sure else "difference"] <= tolerance) | (table["proportion"] == 1)
        rows.append(table[within.cummin()].iloc[-1])
    return pd.DataFrame(rows).reset_index(drop=True)


def convergence(
    epochs: pd.DataFrame, tolerance: float = 0.02, *, score: str = "val_accuracy_weighted", last: int = 10
) -> pd.DataFrame:
    """When each training comes close to where it ends (thesis section 0.3.5: fewer cells, more epochs).

    Parameters
    ----------
    epochs
        ``ablation(...).epochs``.
    tolerance
        How close, in points of the score: the first epoch that is no further below the mean of the last ones.
    score
        A column that rises in training.
    last
        Number of epochs whose mean is the end: the thesis's ten, or the last fifth of a training of fewer than fifty.

    Returns
    -------
    DataFrame
        One row per method, proportion and seed: ``n_training_cells``, ``epochs`` and ``cpu_seconds`` to convergence,
        ``n_epochs`` of the whole training, and ``end``, the score there: a model that learns nothing has converged at
        once.

    Raises
    ------
    UnknownNameError
        If there is no such column.
    DataError
        If there are no epochs.
    """
    if not len(epochs):
        raise DataError("There are no epochs: none of the methods logs them. Run the ablation with SIMS.")
    if score not in epochs:
        raise UnknownNameError("column of the epochs", score, epochs.columns)
    rows = []
    for key, table in epochs.groupby(RUN, sort=False):
        table = table.dropna(subset=[score]).sort_values("epoch")
        end = table[score].tail(min(last, max(1, len(table) // 5))).mean()
        first = table[table[score] >= end - tolerance].iloc[0]
        row = dict(zip(RUN, key, strict=True)) | {"n_training_cells": int(first["n_training_cells"])}
        row |= {"epochs": int(first["epoch"]) + 1, "cpu_seconds": first["cpu_seconds"]}
        rows.append(row | {"n_epochs": int(table["epoch"].max()) + 1, "end": end})
    return pd.DataFrame(rows)

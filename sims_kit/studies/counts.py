"""Scores of predictions that were counted: many tables of true against called classes at once, for intervals."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from sims_kit.studies.adaptor import UNKNOWN

TRANSFER_SCORES = ("balanced_accuracy", "weighted_accuracy", "aggregated_f1", "median_f1")
INTERVAL = (2.5, 97.5)  # percentiles: the middle 95 %


def called_classes(truth: Sequence[str], called: Sequence[str]) -> tuple[list[str], list[str]]:
    """Rows and columns of a table of counts: the true classes; the same, then what else was called, `Unknown` last."""
    rows = sorted(set(truth))
    return rows, [*rows, *sorted(set(called) - {*rows, UNKNOWN}), UNKNOWN]


def score_counts(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of tables of counts, as `sims_kit.metrics` has them; a cell called `Unknown` is not found.

    Parameters
    ----------
    counts
        (..., classes, called) cells of each true class with each call; columns as `called_classes` gives them.

    Returns
    -------
    dict of str to array, (...)
        0 to 1, NaN where there are no cells. ``balanced_accuracy``: sensitivity and specificity of a class averaged
        (thesis equation 0.3), then over classes. ``weighted_accuracy``: the share of right cells, which is recall
        weighted by the cells of each class. ``aggregated_f1``: F1 of the classes pooled; `Unknown` is no false
        positive of any class, so this equals the weighted accuracy where every cell is labelled, and is above it
        else. ``median_f1``: of the classes that occur. ``unknown_percent``: cells called `Unknown`, 0 to 100.
    """
    counts = np.asarray(counts, dtype=np.float64)
    n_classes = counts.shape[-2]
    sizes, calls = counts.sum(axis=-1), counts[..., :n_classes].sum(axis=-2)
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    total, unknown = sizes.sum(axis=-1), counts[..., -1].sum(axis=-1)
    others = total[..., None] - sizes
    present = sizes > 0
    specificity = _ratio(others - (calls - hits), others)
    balanced = ((_ratio(hits, sizes) + specificity) / 2 * present).sum(axis=-1)
    scores = {
        "balanced_accuracy": _ratio(balanced, present.sum(axis=-1)),
        "weighted_accuracy": _ratio(hits.sum(axis=-1), total),
        "aggregated_f1": _ratio(2 * hits.sum(axis=-1), 2 * total - unknown),
        "median_f1": _median(_ratio(2 * hits, sizes + calls), present),
        "unknown_percent": 100 * _ratio(unknown, total),
    }
    return {name: np.where(total > 0, values, np.nan) for name, values in scores.items()}


def with_intervals(scores: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Scores and, as ``_low`` and ``_high``, their 95 % intervals; of each, first comes the value, then its draws."""
    found = {}
    for name, (value, *draws) in scores.items():
        draws = [draw for draw in draws if draw == draw]  # without NaN
        low, high = np.percentile(draws, INTERVAL) if draws else (np.nan, np.nan)
        found |= {name: float(value), f"{name}_low": float(low), f"{name}_high": float(high)}
    return found


def percent_called(calls: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """What the cells of each class were called, in percent of its cells, mean over the seeds.

    Parameters
    ----------
    calls
        One row per class and call: `keys`, ``seed``, ``called``, ``n_cells``.
    keys
        Columns that tell a class of a target from others.

    Returns
    -------
    DataFrame
        `keys`, ``n_cells`` (of the class), ``called``, ``percent``, the most frequent call first.
    """
    keys = list(keys)
    sizes = calls.groupby([*keys, "seed"], sort=False)["n_cells"].sum().groupby(keys, sort=False)
    table = calls.groupby([*keys, "called"], sort=False, as_index=False).agg(cells=("n_cells", "sum"))
    table = table.merge(sizes.agg(n_cells="first", n_all="sum").reset_index(), on=keys)
    table["percent"] = 100 * table["cells"] / table["n_all"]
    table = table.sort_values("percent", ascending=False, kind="stable").sort_values(keys, kind="stable")
    return table[[*keys, "n_cells", "called", "percent"]].reset_index(drop=True)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return part / np.maximum(whole, 1)  # a part is 0 where the whole is


def _median(values: np.ndarray, present: np.ndarray) -> np.ndarray:
    """The median of the values that count, along the last axis; 0 where none does."""
    ordered = np.sort(np.where(present, values, np.inf), axis=-1)
    n = np.maximum(present.sum(axis=-1, keepdims=True), 1)
    middle = [np.take_along_axis(ordered, place, axis=-1)[..., 0] for place in ((n - 1) // 2, n // 2)]
    return np.where(present.any(axis=-1), (middle[0] + middle[1]) / 2, 0.0)

"""Prediction sets that hold the true class with a stated probability (split conformal prediction).

A set is what is left when every class that looks stranger than the true class did in all but a share ``alpha`` of the
calibration cells is struck out. The promise, ``1 - alpha``, holds for any model and any number of cells, on average
over calibration cells, as long as these and the query are alike (Vovk et al. 2005; Angelopoulos and Bates 2023).

It is kept to the point, not exceeded: where a model is nearly always right, a tenth of the cells still has an empty set
at ``alpha=0.1``, the cells that are least like any class. A smaller `alpha` empties fewer.
"""

import math

import numpy as np
import pandas as pd
from scipy.special import logsumexp, softmax

from sims_kit.calibration.reliability import share_interval
from sims_kit.errors import DataError, SettingError, UnknownNameError
from sims_kit.text import label_text

RAPS_PENALTY, RAPS_FREE = 0.01, 2  # per class beyond the second most probable (Angelopoulos et al., ICLR 2021)


def strangeness(logits: np.ndarray, score: str = "lac") -> np.ndarray:
    """How badly each class fits each cell.

    Parameters
    ----------
    logits
        (cells, classes), at the temperature of the model.
    score
        ``"lac"``: log odds against the class, in the order of ``1 - probability`` but without its ties where
        probabilities round to one (Sadinle et al. 2019: the smallest sets on average). ``"aps"``: probability of all
        more probable classes and half of its own (Romano et al. 2020). ``"raps"``: the same with a penalty for ranks.

    Returns
    -------
    numpy.ndarray, (cells, classes) float64

    Raises
    ------
    UnknownNameError
        If there is no such score.
    """
    logits = np.asarray(logits, dtype=np.float64)
    if score == "lac":
        return _log_odds_against(logits)
    if score not in ("aps", "raps"):
        raise UnknownNameError("score of conformal prediction", score, ["lac", "aps", "raps"])
    probabilities = softmax(logits, axis=1)
    order = np.argsort(-probabilities, axis=1, kind="stable")
    ordered = np.take_along_axis(probabilities, order, axis=1)
    values = np.cumsum(ordered, axis=1) - ordered / 2
    if score == "raps":
        values += RAPS_PENALTY * np.maximum(np.arange(1, logits.shape[1] + 1) - RAPS_FREE, 0)
    found = np.empty_like(values)
    np.put_along_axis(found, order, values, axis=1)
    return found


def cells_needed(alpha: float) -> int:
    """The calibration cells that it takes to promise a coverage of ``1 - alpha``: 9 for 0.1, 19 for 0.05.

    Raises
    ------
    SettingError
        If `alpha` is not above 0 and below 1.
    """
    if not 0 < alpha < 1:
        raise SettingError(f"alpha is {alpha}; expected the share of sets that may miss the true class, such as 0.1.")
    return math.ceil(1 / alpha - 1 - 1e-9)  # 1 / 0.1 is a little more than ten


def conformal_quantiles(
    strange: np.ndarray, labels: np.ndarray, n_classes: int, alpha: float, *, by_class: bool = True
) -> np.ndarray:
    """The strangeness up to which each class belongs into a set.

    Parameters
    ----------
    strange
        (cells,) strangeness of the true class of each calibration cell.
    labels
        (cells,) true class, 0 to ``n_classes - 1``.
    n_classes
        Number of classes.
    alpha
        Share of the sets that may miss the true class.
    by_class
        Promise it for each class, not for all cells together: a rare type is then covered as often as a common one.
        Classes with fewer than `cells_needed` cells share one quantile, and with them the next larger ones while they
        are too few together; for these the promise holds on average over their cells.

    Returns
    -------
    numpy.ndarray, (n_classes,) float64

    Raises
    ------
    SettingError
        If `alpha` is out of range, or all cells together are too few for it.
    DataError
        If `strange` and `labels` do not have one number per cell each.
    """
    needed, strange, labels = cells_needed(alpha), np.asarray(strange, dtype=np.float64), np.asarray(labels)
    if strange.ndim != 1 or strange.shape != labels.shape:
        raise DataError(f"strange has shape {strange.shape}, labels {labels.shape}; expected one number per cell each.")
    if len(strange) < needed:
        raise SettingError(
            f"alpha={alpha} needs {needed} calibration cells and there are {len(strange)}. Choose alpha="
            f"{1 / (len(strange) + 1) + 0.005:.2f} or more, or hold more cells back (validation=0.2)."
        )
    quantiles = np.full(n_classes, _quantile(strange, alpha))
    if by_class:
        rare = _rare(np.bincount(labels, minlength=n_classes), needed)
        if rare.any():
            quantiles[rare] = _quantile(strange[rare[labels]], alpha)
        for number in np.flatnonzero(~rare):
            quantiles[number] = _quantile(strange[labels == number], alpha)
    return quantiles


def prediction_sets(strange: np.ndarray, quantiles: np.ndarray) -> np.ndarray:
    """Which classes are in the set of each cell; the set of a cell that is like no class is empty.

    Parameters
    ----------
    strange
        (cells, classes), of `strangeness`.
    quantiles
        (classes,), of `conformal_quantiles`.

    Returns
    -------
    numpy.ndarray, (cells, classes) bool
    """
    return np.asarray(strange) <= quantiles


def coverage_table(sets: np.ndarray, truth: np.ndarray, classes: list[str]) -> pd.DataFrame:
    """How often sets hold the true class, and how large they are, by true class.

    Parameters
    ----------
    sets
        (cells, classes) bool.
    truth
        (cells,) names of the true classes; one that is not among `classes` is never covered.
    classes
        The class of each column.

    Returns
    -------
    pandas.DataFrame
        A row per true class, the most cells first, and at the end one for all cells, ``"all cells"``. ``class``,
        ``n_cells``, ``coverage`` with Wilson's 95 % interval (``coverage_low``, ``coverage_high``), ``mean_size`` in
        classes, ``empty``, ``single`` and ``several``: shares of the cells with no class, one, and more.

    Raises
    ------
    DataError
        If there are no cells, or shapes do not fit together.
    """
    sets, truth = np.asarray(sets, dtype=bool), label_text(truth).to_numpy(str)
    if not len(truth) or sets.shape != (len(truth), len(classes)):
        raise DataError(
            f"sets has shape {sets.shape}; expected {len(truth)} cells (1 or more) x {len(classes)} classes."
        )
    column = pd.Index(classes).get_indexer(truth)
    covered = sets[np.arange(len(truth)), column] & (column >= 0)
    names = pd.Series(truth).value_counts(sort=True).index
    groups = {name: truth == name for name in names} | {"all cells": np.ones(len(truth), dtype=bool)}
    return pd.DataFrame([{"class": name} | _coverage(covered[own], sets[own].sum(1)) for name, own in groups.items()])


def _rare(sizes: np.ndarray, needed: int) -> np.ndarray:
    """Which classes have too few cells to stand alone; and the next larger ones until they are enough together."""
    order = np.argsort(sizes, kind="stable")
    n_rare = int((sizes < needed).sum())
    if n_rare:
        n_rare = max(n_rare, int(np.searchsorted(np.cumsum(sizes[order]), needed)) + 1)
    return np.isin(np.arange(len(sizes)), order[:n_rare])


def _log_odds_against(logits: np.ndarray) -> np.ndarray:
    """log((1 - p) / p), where 1 - p of the most probable class is summed over the others: the difference would be 0."""
    values = logits - logsumexp(logits, axis=1, keepdims=True)
    first = values.argmax(axis=1)[:, None]
    others = values.copy()
    np.put_along_axis(others, first, -np.inf, axis=1)
    not_first = logsumexp(others, axis=1, keepdims=True)
    against = np.log1p(-np.exp(np.minimum(others, -np.log(2))))  # none but the first has more than half
    np.put_along_axis(against, first, not_first, axis=1)
    return against - values


def _quantile(strange: np.ndarray, alpha: float) -> float:
    """The value that covers ``1 - alpha`` of these cells and the next one, were it the strangest.

    Between two cells, since the upper of the two would cover up to 1 / (cells + 1) more: much for a rare type. Cells
    thin out towards the strange end, where a straight line errs on the side of coverage.
    """
    return float(np.quantile(strange, 1 - alpha, method="weibull"))


def _coverage(covered: np.ndarray, sizes: np.ndarray) -> dict[str, float]:
    low, high = share_interval(int(covered.sum()), len(covered))
    shares = {"empty": (sizes == 0).mean(), "single": (sizes == 1).mean(), "several": (sizes > 1).mean()}
    coverage = {"coverage": covered.mean(), "coverage_low": low, "coverage_high": high}
    return {"n_cells": len(covered)} | coverage | {"mean_size": sizes.mean()} | shares

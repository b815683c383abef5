"""Calibration: temperature, rejection, prediction sets, votes and coarser labels, from held-out cells."""

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, logsumexp, softmax
from scipy.stats import beta

from sims_kit.errors import DataError, SettingError, UnknownNameError

__all__ = ["rejection_curve", "rejection_threshold"]

UNKNOWN = "Unknown"  # the label of a cell that is not answered


class CalibrationCells(NamedTuple):
    """Four numbers for each held-out cell, each array (cells,), enough for any later threshold or prediction set."""

    labels: np.ndarray  # int64, the true class
    nonconformity: np.ndarray  # float64, of the true class: for prediction sets
    confidence: np.ndarray  # float64, probability of the predicted class: for rejection
    correct: np.ndarray  # bool, whether the predicted class is the true one


class Rejection(NamedTuple):
    """A confidence threshold, and its effect on the cells that it was chosen on."""

    threshold: float  # cells of this confidence or more are answered; infinite where no threshold keeps the rate
    answered: float  # share of the cells that are answered
    lowest_error_rate: float  # the smallest rate that these cells could promise, answering fewer


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the number to divide logits by so that probabilities fit held-out cells (Guo et al., ICML 2017).

    It minimises the negative log-likelihood of `labels`, (cells,), given `logits`, (cells, classes). A weak normal
    prior on its logarithm, worth about one cell, keeps it finite where few cells, or none, are wrong.
    """
    if not np.isfinite(logits).all():
        raise SettingError(f"{(~np.isfinite(logits)).sum()} of the logits are NaN or infinite; training has diverged.")
    if not len(labels):
        return 1.0

    def loss(log_temperature: float) -> float:
        logs = log_softmax(np.float64(logits) / np.exp(log_temperature), axis=1)
        return log_temperature**2 / 2 - np.take_along_axis(logs, labels[:, None], axis=1).sum()

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))  # 0.05 to 20


def calibration_cells(logits: np.ndarray, labels: np.ndarray) -> CalibrationCells:
    """Reduce logits of held-out cells, (cells, classes) at the model's temperature, to `CalibrationCells`."""
    labels, probabilities = np.asarray(labels, dtype=np.int64), softmax(np.asarray(logits, dtype=np.float64), axis=1)
    scores = np.take_along_axis(nonconformity(logits), labels[:, None], axis=1)[:, 0]
    return CalibrationCells(labels, scores, probabilities.max(axis=1), probabilities.argmax(axis=1) == labels)


def rejection_curve(confidence: np.ndarray, correct: np.ndarray) -> pd.DataFrame:
    """Count answered cells and their errors at every threshold.

    `confidence` is the probability of each cell's predicted class, `correct` whether that is the true one. A row per
    threshold, the highest first: ``threshold`` (cells of this confidence or more are answered), ``n_answered``,
    ``n_errors``, ``answered`` (share of the cells) and ``error`` (share of the answered).

    >>> rejection_curve([0.9, 0.8, 0.8], [True, True, False])[["threshold", "n_answered", "n_errors"]].values.tolist()
    [[0.9, 1.0, 0.0], [0.8, 3.0, 1.0]]
    """
    confidence, correct = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=bool)
    if confidence.ndim != 1 or confidence.shape != correct.shape or not len(confidence):
        shapes = f"confidence has shape {confidence.shape} and correct {correct.shape}"
        raise DataError(f"{shapes}; expected one number and one truth value for each of one or more cells.")
    if outside := int((~((confidence >= 0) & (confidence <= 1))).sum()):  # NaN is outside, too
        raise DataError(f"{outside} of {len(confidence)} confidences are not between 0 and 1; pass probabilities.")
    cells = pd.Series(~correct).groupby(confidence)  # those of equal confidence go together
    table = cells.agg(n_answered="size", n_errors="sum")[::-1].cumsum().rename_axis("threshold").reset_index()
    return table.assign(answered=table["n_answered"] / len(correct), error=table["n_errors"] / table["n_answered"])


def rejection_threshold(confidence: np.ndarray, correct: np.ndarray, *, error_rate: float = 0.05) -> Rejection:
    """Choose the lowest confidence at which answered cells have at most the given share of errors.

    The share is the upper end of Clopper and Pearson's one-sided 90 % interval: the rate holds in nine of ten draws of
    validation cells (Geifman and El-Yaniv, NeurIPS 2017, without their correction for many thresholds). The threshold
    is infinite where it cannot be promised: 0.05 takes 45 cells without an error. Arguments as in `rejection_curve`.

    >>> float(rejection_threshold(np.linspace(0.51, 1, 50), np.arange(50) >= 20, error_rate=0.1).threshold)
    0.71
    """
    check_share("error_rate", error_rate, "answered cells that may be wrong")
    curve = rejection_curve(confidence, correct)
    # scipy's binomtest(...).proportion_ci(method="exact"), for all thresholds at once
    upper = beta.ppf(0.9, curve["n_errors"] + 1, np.maximum(curve["n_answered"] - curve["n_errors"], 1e-9))
    lowest = float(upper.min())
    if lowest > error_rate:
        return Rejection(math.inf, 0.0, lowest)
    chosen = curve[upper <= error_rate].iloc[-1]  # the most cells
    return Rejection(float(chosen["threshold"]), float(chosen["answered"]), lowest)


def nonconformity(logits: np.ndarray) -> np.ndarray:
    """Return the log odds against each class, float64 (cells, classes); logits are at the model's temperature.

    They order cells and classes as ``1 - probability`` does, the score that gives the smallest sets on average
    (Sadinle et al. 2019), without its ties where probabilities round to one.
    """
    logs = log_softmax(np.asarray(logits, dtype=np.float64), axis=1)  # log p
    first = logs.argmax(axis=1)[:, None]
    others = logs.copy()
    np.put_along_axis(others, first, -np.inf, axis=1)
    against = np.log1p(-np.exp(others))  # log(1 - p); only the first class has more than half
    np.put_along_axis(against, first, logsumexp(others, axis=1, keepdims=True), axis=1)  # where 1 - p rounds to zero
    return against - logs


def conformal_quantiles(scores: np.ndarray, labels: np.ndarray, n_classes: int, alpha: float) -> np.ndarray:
    """Return for each class the nonconformity up to which it belongs to a prediction set, float64 (classes,).

    It is the (1 - alpha) quantile of `scores`, the nonconformity of the true class, over the calibration cells that
    have the class in `labels`. A set then misses the true class in a share `alpha` of the cells of each class, as long
    as calibration cells and query are alike (Vovk et al. 2005; Angelopoulos and Bates 2023). Classes with too few cells
    share one quantile, with the next larger classes until they have enough together.
    """
    check_share("alpha", alpha, "sets that may miss the true class")
    needed = math.ceil(1 / alpha - 1 - 1e-9)  # 1 / 0.1 is a little more than ten
    if len(scores) < needed:
        found = f"alpha={alpha} needs {needed} calibration cells and there are {len(scores)}"
        least = f"{1 / (len(scores) + 1) + 0.005:.2f}"
        raise SettingError(f"{found}. Choose alpha={least} or more, or hold more cells back (validation=0.2).")
    sizes = np.bincount(labels, minlength=n_classes)
    order = np.argsort(sizes, kind="stable")
    are_pooled = (sizes[order] < needed) | (np.cumsum(sizes[order]) - sizes[order] < needed)
    quantiles = np.empty(n_classes)
    for classes in [order[are_pooled], *order[~are_pooled]]:
        # "weibull" lies between two cells: the upper one would cover up to 1 / (cells + 1) more
        quantiles[classes] = np.quantile(scores[np.isin(labels, classes)], 1 - alpha, method="weibull")
    return quantiles


def majority_vote(labels: Sequence[str], clusters: Sequence) -> pd.DataFrame:
    """Return the most frequent label of each cell's cluster, and the proportion of the cluster's cells with it.

    Cells that are ``"Unknown"`` do not vote but count; ``"Unknown"`` wins only where all are. Of equally frequent
    labels the first in alphabetical order wins. Cells without a cluster (NaN) keep their own label.
    """
    labels, clusters = pd.Series(np.asarray(labels, dtype=str)), pd.Series(np.asarray(clusters, dtype=object))
    names = clusters.astype(str).where(clusters.notna(), "alone: " + clusters.index.astype(str))
    votes = pd.crosstab(names, labels, normalize="index").assign(**{UNKNOWN: 1e-9})  # less than any label
    found = pd.DataFrame({"label": votes.idxmax(axis=1), "proportion": votes.max(axis=1)})
    found.loc[found["label"] == UNKNOWN, "proportion"] = 1.0
    return found.loc[names].reset_index(drop=True)


def hierarchical_labels(probabilities: np.ndarray, paths: Sequence[Sequence[str]], threshold: float) -> pd.DataFrame:
    """Return the finest label whose probability reaches a threshold: the most probable class, its parent, and so on.

    `probabilities` are (cells, classes); that of a parent is the sum of its classes'. `paths` has for each class its
    name and those of its parents, as from `paths_to_root`. A row per cell: ``label``, ``"Unknown"`` where not even the
    last parent is enough, and ``probability``, then of that parent.
    """
    best = probabilities.argmax(axis=1)
    labels, reached = np.full(len(best), UNKNOWN, dtype=object), np.zeros(len(best))
    for number, path in enumerate(paths):
        undecided = np.flatnonzero(best == number)
        for name in path:
            values = probabilities[undecided][:, [name in other for other in paths]].sum(axis=1, dtype=np.float64)
            reached[undecided] = values
            labels[undecided[values >= threshold]] = name
            undecided = undecided[values < threshold]
    return pd.DataFrame({"label": labels, "probability": reached})


def paths_to_root(classes: Sequence[str], hierarchy: Mapping[str, str]) -> list[list[str]]:
    """Return each class's names from itself to its root; refuse circles and names that lead to no class."""
    for child, parent in hierarchy.items():
        if not isinstance(parent, str) or parent == UNKNOWN:
            raise SettingError(f"hierarchy has {parent!r} as parent of {child!r}; expected a name, not {UNKNOWN!r}.")
    paths = []
    for name in classes:
        path = [name]
        while path[-1] in hierarchy:
            path.append(hierarchy[path[-1]])
            if path[-1] in path[:-1]:
                raise SettingError(f"The hierarchy runs in a circle: {' > '.join(path)}.")
        paths.append(path)
    known = {name for path in paths for name in path}
    if strange := [child for child in hierarchy if child not in known]:
        raise UnknownNameError("class or parent of one", strange[0], sorted(known))
    return paths


def check_share(name: str, value: object, of: str, below: float = 1) -> None:
    """Refuse what is no share."""
    if not isinstance(value, Real) or not 0 < value < below:
        raise SettingError(f"{name} is {value!r}; expected the share of {of}, above 0 and below {below}, such as 0.1.")

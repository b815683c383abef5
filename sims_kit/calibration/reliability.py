"""Is confidence what it says? Reliability by bin, and the expected calibration error (Guo et al., ICML 2017)."""

from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest
from torchmetrics.functional.classification import binary_calibration_error

from sims_kit.errors import DataError, SettingError

BINS = 15  # of equal width; the number most of the calibration literature reports


class CalibrationFloor(NamedTuple):
    """The calibration error that chance alone gives to confidences that are right.

    Attributes
    ----------
    mean, high
        Mean and 95th percentile over draws.
    """

    mean: float
    high: float


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, *, n_bins: int = BINS) -> float:
    """Mean absolute difference of confidence and accuracy over bins of confidence, weighted by their cells.

    Parameters
    ----------
    confidence
        (cells,) probability of the predicted class, 0 to 1.
    correct
        (cells,) whether that class is the true one.
    n_bins
        Bins of equal width.

    Returns
    -------
    float
        From 0 to 1, torchmetrics' number. Few cells alone make it large: `calibration_floor` tells how large.

    Raises
    ------
    DataError
        If there are no cells, the lengths differ, or a confidence is not between 0 and 1.
    SettingError
        If there is no bin.
    """
    confidence, correct = checked_confidence(confidence, correct, n_bins)
    values, hits = torch.from_numpy(confidence.astype(np.float32)), torch.from_numpy(correct.astype(np.int64))
    return float(binary_calibration_error(values, hits, n_bins=n_bins, validate_args=False))


def calibration_floor(
    confidence: np.ndarray, *, n_bins: int = BINS, n_draws: int = 200, seed: int = 0
) -> CalibrationFloor:
    """What `expected_calibration_error` would be if every confidence were exactly right.

    A bin of few cells has an accuracy off its confidence by chance. An error no larger than ``high`` is no evidence
    against the confidences, and no error below ``mean`` can be expected of any method on so few cells.

    Parameters
    ----------
    confidence, n_bins
        As in `expected_calibration_error`.
    n_draws, seed
        How often the cells are drawn right or wrong, each with its confidence.

    Raises
    ------
    DataError, SettingError
        As `expected_calibration_error` raises them.
    """
    confidence, _ = checked_confidence(confidence, np.ones(len(confidence)), n_bins)
    draws = np.random.default_rng(seed).random((n_draws, len(confidence))) < confidence
    errors = [expected_calibration_error(confidence, right, n_bins=n_bins) for right in draws]
    return CalibrationFloor(float(np.mean(errors)), float(np.quantile(errors, 0.95)))


def reliability_table(confidence: np.ndarray, correct: np.ndarray, *, n_bins: int = BINS) -> pd.DataFrame:
    """Confidence and accuracy by bin of confidence; bins without cells are left out.

    Parameters
    ----------
    confidence, correct, n_bins
        As in `expected_calibration_error`, whose value is ``(n_cells * |accuracy - confidence|).sum() / cells``.

    Returns
    -------
    pandas.DataFrame
        ``low`` and ``high`` (the bin's edges), ``confidence`` and ``accuracy`` (means over its cells), ``n_cells``,
        and ``accuracy_low`` and ``accuracy_high``, Wilson's 95 % interval.

    Raises
    ------
    DataError, SettingError
        As `expected_calibration_error` raises them.
    """
    confidence, correct = checked_confidence(confidence, correct, n_bins)
    edges = np.linspace(0, 1, n_bins + 1)
    bins = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, n_bins - 1)  # 1 belongs to the last
    rows = []
    for number in np.unique(bins):
        chosen = bins == number
        accuracy_low, accuracy_high = share_interval(int(correct[chosen].sum()), int(chosen.sum()))
        rows.append(
            {
                "low": edges[number],
                "high": edges[number + 1],
                "confidence": confidence[chosen].mean(),
                "accuracy": correct[chosen].mean(),
                "n_cells": int(chosen.sum()),
                "accuracy_low": accuracy_low,
                "accuracy_high": accuracy_high,
            }
        )
    return pd.DataFrame(rows)


def share_interval(n_hits: int, n_cells: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share; of no cells, all that is possible."""
    if not n_cells:
        return 0.0, 1.0
    interval = binomtest(n_hits, n_cells).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def checked_confidence(confidence: np.ndarray, correct: np.ndarray, n_bins: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays, one entry per cell, float64 and bool."""
    confidence, correct = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=bool)
    if confidence.ndim != 1 or confidence.shape != correct.shape or not len(confidence):
        raise DataError(
            f"confidence has shape {confidence.shape} and correct {correct.shape}; expected one number and one truth "
            "value for each of one or more cells."
        )
    outside = ~((confidence >= 0) & (confidence <= 1))  # NaN is outside, too
    if outside.any():
        raise DataError(
            f"{outside.sum()} of {len(outside)} confidences are not between 0 and 1; pass the probability of the "
            "predicted class."
        )
    if n_bins < 1:
        raise SettingError(f"n_bins is {n_bins}; expected 1 or more, usually {BINS}.")
    return confidence, correct

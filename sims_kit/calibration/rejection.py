"""When to say nothing: the confidence below which cells stay unlabelled, for a stated rate of errors."""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import beta

from sims_kit.calibration.reliability import checked_confidence
from sims_kit.errors import SettingError

ASSURANCE = 0.9  # how sure the promise is: it is kept in so many draws of the validation cells


class Rejection(NamedTuple):
    """A threshold of confidence and what it did on the cells that it was chosen on.

    Attributes
    ----------
    threshold
        Cells of this confidence or more are answered; infinite where no threshold keeps the promise.
    error_rate
        The promised share of errors among answered cells.
    answered
        Share of the cells that are answered.
    lowest_error_rate
        The smallest rate that these cells could promise, answering fewer.
    """

    threshold: float
    error_rate: float
    answered: float
    lowest_error_rate: float

    @property
    def is_reached(self) -> bool:
        """Whether a threshold keeps the promise."""
        return math.isfinite(self.threshold)


def rejection_threshold(confidence: np.ndarray, correct: np.ndarray, *, error_rate: float = 0.05) -> Rejection:
    """The lowest confidence at which answered cells have no more than the stated share of errors.

    The share is the upper end of Clopper and Pearson's one-sided 90 % interval, not the share that was counted: the
    lowest of many thresholds flatters itself by chance, and five right cells would promise that there are no errors at
    all. In nine draws of validation cells out of ten the promise is kept (Geifman and El-Yaniv, NeurIPS 2017, without
    their correction for many thresholds, which simulated cells do not need).

    Parameters
    ----------
    confidence, correct
        (cells,) of cells that the model did not learn from, as in `expected_calibration_error`.
    error_rate
        Share of errors accepted among answered cells, above 0 and below 1.

    Returns
    -------
    Rejection
        With an infinite threshold where the rate cannot be promised: 45 answered cells without an error are the least
        that it takes for 0.05, and 22 for 0.1.

    Raises
    ------
    SettingError
        If `error_rate` is out of range.
    DataError
        If lengths differ, there are no cells, or a confidence is not between 0 and 1.
    """
    if not 0 < error_rate < 1:
        raise SettingError(f"error_rate is {error_rate}; expected a share above 0 and below 1, such as 0.05.")
    confidence, correct = checked_confidence(confidence, correct)
    curve = rejection_curve(confidence, correct)
    promised = beta.ppf(ASSURANCE, curve["n_errors"] + 1, np.maximum(curve["n_answered"] - curve["n_errors"], 1e-9))
    lowest = float(promised.min())
    if lowest > error_rate:
        return Rejection(math.inf, error_rate, 0.0, lowest)
    chosen = curve[promised <= error_rate].iloc[-1]  # the most cells
    return Rejection(float(chosen["threshold"]), error_rate, float(chosen["answered"]), lowest)


def rejection_curve(confidence: np.ndarray, correct: np.ndarray) -> pd.DataFrame:
    """Answered cells and their errors at every threshold of confidence, the highest first.

    Parameters
    ----------
    confidence, correct
        As in `expected_calibration_error`.

    Returns
    -------
    pandas.DataFrame
        ``threshold`` (cells of this confidence or more are answered), ``n_answered``, ``n_errors``, ``answered`` (share
        of the cells) and ``error`` (share of the answered).

    Raises
    ------
    DataError
        As `expected_calibration_error` raises it.
    """
    confidence, correct = checked_confidence(confidence, correct)
    order = np.argsort(-confidence, kind="stable")
    table = pd.DataFrame({"threshold": confidence[order], "n_errors": np.cumsum(~correct[order])})
    table["n_answered"] = np.arange(1, len(order) + 1)
    table = table.drop_duplicates("threshold", keep="last", ignore_index=True)  # cells of equal confidence go together
    table["answered"] = table["n_answered"] / len(order)
    table["error"] = table["n_errors"] / table["n_answered"]
    return table[["threshold", "n_answered", "n_errors", "answered", "error"]]

"""Calibration: validation logits in, what makes a confidence mean something out."""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from sims_kit.errors import SettingError

LOG_TEMPERATURES = (-3.0, 3.0)  # where the search looks: 0.05 to 20
AT_ONCE = 16_384  # cells, in float64, whatever the number of validation cells
PRIOR_SD = 1.0  # of log temperature around 0; keeps it finite where few cells, or none, are wrong


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The number to divide logits by so that probabilities fit cells that training has not learned from.

    Minimises the negative log-likelihood (Guo et al., ICML 2017) over one positive number, which leaves every
    predicted label as it is. A weak normal prior on its logarithm, worth about one cell, decides where every cell is
    right and the likelihood alone would ask for endless certainty.

    Parameters
    ----------
    logits
        Cells x classes, of validation cells.
    labels
        Class index of each cell.

    Returns
    -------
    float
        Above 1 where the model was too sure, below 1 where it was too modest; 1 without cells.

    Raises
    ------
    SettingError
        If the two do not fit together, or a logit is not finite.
    """
    logits, labels = np.asarray(logits), np.asarray(labels)
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise SettingError(
            f"logits have shape {logits.shape}, labels {labels.shape}; expected (cells, classes), (cells,)."
        )
    if not np.isfinite(logits).all():
        raise SettingError(f"{(~np.isfinite(logits)).sum()} of the logits are NaN or infinite; training has diverged.")
    if not len(labels):
        return 1.0
    parts = [slice(start, start + AT_ONCE) for start in range(0, len(labels), AT_ONCE)]

    def surprise(log_temperature: float) -> float:
        likelihood = 0.0
        for part in parts:
            logs = log_softmax(np.float64(logits[part]) / np.exp(log_temperature), axis=1)
            likelihood += np.take_along_axis(logs, labels[part, None], axis=1).sum()
        return (log_temperature / PRIOR_SD) ** 2 / 2 - likelihood

    return float(np.exp(minimize_scalar(surprise, bounds=LOG_TEMPERATURES, method="bounded").x))

"""What a model keeps of its validation cells: enough for any later threshold or prediction set, and no expression."""

from typing import NamedTuple

import numpy as np
from scipy.special import softmax

from sims_kit.calibration.conformal import strangeness
from sims_kit.calibration.temperature import AT_ONCE


class CalibrationCells(NamedTuple):
    """Four numbers for each cell that the model did not learn from.

    Attributes
    ----------
    labels
        (cells,) int64, the true class.
    strangeness
        (cells,) float64, that of the true class (`sims_kit.calibration.strangeness`): for prediction sets.
    confidence
        (cells,) float64, probability of the predicted class: for rejection.
    correct
        (cells,) bool, whether that is the true class.
    """

    labels: np.ndarray
    strangeness: np.ndarray
    confidence: np.ndarray
    correct: np.ndarray


def calibration_cells(logits: np.ndarray, labels: np.ndarray) -> CalibrationCells:
    """What there is to keep of held-out cells.

    Parameters
    ----------
    logits
        (cells, classes), at the model's temperature.
    labels
        (cells,) true class, 0 to ``classes - 1``.
    """
    parts = [slice(start, start + AT_ONCE) for start in range(0, max(1, len(labels)), AT_ONCE)]
    found = [_calibration_cells(logits[part], np.asarray(labels[part], dtype=np.int64)) for part in parts]
    return CalibrationCells(*map(np.concatenate, zip(*found, strict=True)))


def _calibration_cells(logits: np.ndarray, labels: np.ndarray) -> CalibrationCells:
    strange = np.take_along_axis(strangeness(logits), labels[:, None], axis=1)[:, 0]
    probabilities = softmax(np.asarray(logits, dtype=np.float64), axis=1)
    correct = probabilities.argmax(axis=1) == labels
    return CalibrationCells(labels, strange, probabilities.max(axis=1, initial=0), correct)

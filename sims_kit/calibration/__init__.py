"""What a confidence is worth: numbers of held-out cells in, temperature, thresholds and prediction sets out.

`fit_temperature` makes confidences right, `reliability_table` and `expected_calibration_error` say how right they are,
`rejection_threshold` says below which confidence to stay silent, `conformal_quantiles` and `prediction_sets` which
classes a cell may be. `cluster_vote` and `back_off` make coarser answers of many or of uncertain ones. Nothing here
knows of models or AnnData; a fitted model keeps `CalibrationCells`, and `sims_kit.annotate` uses all of it.
"""

from sims_kit.calibration.answers import UNKNOWN, back_off, cluster_vote
from sims_kit.calibration.conformal import (
    cells_needed,
    conformal_quantiles,
    coverage_table,
    prediction_sets,
    strangeness,
)
from sims_kit.calibration.held_out import CalibrationCells, calibration_cells
from sims_kit.calibration.rejection import Rejection, rejection_curve, rejection_threshold
from sims_kit.calibration.reliability import (
    CalibrationFloor,
    calibration_floor,
    expected_calibration_error,
    reliability_table,
)
from sims_kit.calibration.temperature import fit_temperature

__all__ = [
    "UNKNOWN",
    "CalibrationCells",
    "CalibrationFloor",
    "Rejection",
    "back_off",
    "calibration_cells",
    "calibration_floor",
    "cells_needed",
    "cluster_vote",
    "conformal_quantiles",
    "coverage_table",
    "expected_calibration_error",
    "fit_temperature",
    "prediction_sets",
    "rejection_curve",
    "rejection_threshold",
    "reliability_table",
    "strangeness",
]

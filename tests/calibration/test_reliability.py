"""Reliability: scikit-learn's curve, torchmetrics' error, and what chance alone gives."""

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from torchmetrics.classification import MulticlassCalibrationError

from sims_kit.calibration import calibration_floor, expected_calibration_error, reliability_table
from sims_kit.errors import DataError, SettingError


@pytest.fixture
def drawn():
    """Confidences, and whether each was right: as often as it says."""
    random = np.random.default_rng(0)
    confidence = random.beta(4, 1, 500)
    return confidence, random.random(500) < confidence


def test_bins_are_scikit_learns(drawn):
    """Mean confidence and accuracy of each bin with cells, and every cell in one bin."""
    confidence, correct = drawn
    table = reliability_table(confidence, correct, n_bins=10)
    accuracy, mean = calibration_curve(correct, confidence, n_bins=10)
    np.testing.assert_allclose(table["accuracy"], accuracy)
    np.testing.assert_allclose(table["confidence"], mean)
    assert table["n_cells"].sum() == 500
    assert ((table["accuracy_low"] <= table["accuracy"]) & (table["accuracy"] <= table["accuracy_high"])).all()


def test_error_is_torchmetrics(drawn):
    """The error of probabilities of three classes, as torchmetrics has it, and what the table adds up to."""
    random = np.random.default_rng(1)
    probabilities = random.dirichlet([0.5, 1, 1], 300)
    truth = random.integers(3, size=300)
    oracle = MulticlassCalibrationError(3, n_bins=15, norm="l1")(torch.tensor(probabilities), torch.tensor(truth))
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == truth
    found = expected_calibration_error(confidence, correct)
    assert found == pytest.approx(oracle.item(), abs=1e-6)
    table = reliability_table(confidence, correct)
    gaps = (table["accuracy"] - table["confidence"]).abs() * table["n_cells"]
    assert gaps.sum() / 300 == pytest.approx(found, abs=1e-6)


def test_right_confidences_stay_near_the_floor(drawn):
    """Confidences that are right have the error that chance gives; those that are not are far above it."""
    confidence, correct = drawn
    floor = calibration_floor(confidence)
    assert 0.3 * floor.mean < expected_calibration_error(confidence, correct) < 1.3 * floor.high
    assert expected_calibration_error(confidence**4, correct) > 3 * calibration_floor(confidence**4).high
    assert calibration_floor(np.repeat(confidence, 10)).mean < floor.mean / 2  # more cells, less chance


@pytest.mark.parametrize(
    ("confidence", "correct", "error", "words"),
    [
        ([0.5, 1.2], [True, False], DataError, "1 of 2 confidences"),
        ([0.5, np.nan], [True, False], DataError, "1 of 2 confidences"),
        ([0.5], [True, False], DataError, r"\(1,\)"),
        ([], [], DataError, "one or more"),
    ],
)
def test_bad_input_is_named(confidence, correct, error, words):
    """Numbers that are no probabilities, lengths that differ, no cells, no bins."""
    with pytest.raises(error, match=words):
        expected_calibration_error(np.array(confidence), np.array(correct))
    with pytest.raises(SettingError, match="n_bins"):
        reliability_table(np.array([0.5]), np.array([True]), n_bins=0)

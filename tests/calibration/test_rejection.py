"""Rejection: the promise is kept on new cells, and refused where it cannot be made."""

import numpy as np
import pytest
from scipy.stats import binomtest

from sims_kit.calibration import rejection_curve, rejection_threshold
from sims_kit.errors import SettingError


def draw(random, n_cells, power=1.0):
    """Cells that are right as often as a power of their confidence says."""
    confidence = random.beta(3, 1, n_cells)
    return confidence, random.random(n_cells) < confidence**power


@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
def test_promise_is_kept_on_new_cells(power):
    """In nine of ten draws of validation cells, errors among answered new cells stay within the rate."""
    random, broken, answered = np.random.default_rng(0), [], []
    confidence, correct = draw(random, 20_000, power)
    for _ in range(200):
        chosen = confidence >= rejection_threshold(*draw(random, 150, power), error_rate=0.1).threshold
        broken.append(chosen.any() and (~correct[chosen]).mean() > 0.1)
        answered.append(chosen.mean())
    assert np.mean(broken) < 0.13  # one in ten, and three standard errors of 200 draws are not far
    assert np.mean(answered) > 0.03


def test_threshold_is_the_lowest():
    """Of all thresholds that keep the rate, the one that answers the most cells, counted by hand."""
    confidence = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    upper = {}  # of the share of errors: binomtest's one-sided interval
    for wrong, answered in ((0, 3), (1, 5)):
        upper[wrong] = binomtest(wrong, answered, alternative="less").proportion_ci(0.9, method="exact").high
    one, two = np.array([1, 1, 1, 0, 1], bool), np.array([1, 1, 1, 0, 0], bool)
    found = rejection_threshold(confidence, one, error_rate=upper[1] + 1e-6)
    assert (found.threshold, found.answered) == (0.5, 1.0)
    assert rejection_threshold(confidence, one, error_rate=upper[1] - 1e-6).threshold == 0.7
    found = rejection_threshold(confidence, two, error_rate=upper[0] + 1e-6)
    assert (found.threshold, found.answered) == (0.7, 0.6) and found.is_reached
    assert found.lowest_error_rate == pytest.approx(upper[0])


def test_out_of_reach():
    """Ten right cells cannot promise one error in a hundred, and the lowest rate that they can is told."""
    found = rejection_threshold(np.linspace(0.9, 0.99, 10), np.ones(10, bool), error_rate=0.01)
    assert not found.is_reached and found.threshold == np.inf and found.answered == 0
    assert found.lowest_error_rate == pytest.approx(1 - 0.1 ** (1 / 10))
    enough = rejection_threshold(np.linspace(0.9, 0.99, 45), np.ones(45, bool), error_rate=0.05)
    assert enough.is_reached and not rejection_threshold(np.ones(44), np.ones(44, bool), error_rate=0.05).is_reached


def test_curve_counts_every_cell():
    """At each threshold, cells of equal confidence together; the last row answers all."""
    curve = rejection_curve(np.array([0.5, 0.9, 0.9, 0.7]), np.array([False, True, False, True]))
    np.testing.assert_allclose(curve["threshold"], [0.9, 0.7, 0.5])
    assert curve["n_answered"].tolist() == [2, 3, 4] and curve["n_errors"].tolist() == [1, 1, 2]
    np.testing.assert_allclose(curve["error"], [1 / 2, 1 / 3, 1 / 2])


@pytest.mark.parametrize("rate", [0, 1, -0.1])
def test_rate_out_of_range(rate):
    """A rate is a share above 0 and below 1."""
    with pytest.raises(SettingError, match="error_rate"):
        rejection_threshold(np.array([0.5]), np.array([True]), error_rate=rate)

"""Calibration: the temperature that made confidences wrong is found again."""

import numpy as np
import pytest
import torch
from scipy.special import softmax

from sims_kit.calibration import calibration_cells, fit_temperature
from sims_kit.errors import SettingError


@pytest.fixture
def drawn():
    """Logits, and labels drawn from their softmax: at temperature 1 every confidence is right."""
    random = np.random.default_rng(0)
    logits = random.normal(scale=2, size=(2000, 5))
    return logits, np.array([random.choice(5, p=row) for row in softmax(logits, axis=1)])


@pytest.mark.parametrize("factor", [0.3, 1, 4])
def test_the_factor_is_found(drawn, factor):
    """Logits that were multiplied by a number are brought back by a temperature close to it."""
    logits, labels = drawn
    assert fit_temperature(logits * factor, labels) == pytest.approx(factor, rel=0.05)


def test_lowest_loss_as_torch_sees_it(drawn):
    """Without many cells the prior counts little: no other temperature has a lower cross-entropy by torch."""
    logits, labels = (torch.tensor(part) for part in drawn)

    def loss(temperature):
        return torch.nn.functional.cross_entropy(3 * logits / temperature, labels)

    found = fit_temperature(3 * logits.numpy(), labels.numpy())
    assert loss(found) < min(loss(found * 1.1), loss(found / 1.1))


def test_many_cells_are_taken_in_parts(drawn, monkeypatch):
    """Temperature and calibration cells are the same in parts of seven as all at once."""
    whole, kept = fit_temperature(*drawn), calibration_cells(*drawn)
    for module in ("temperature", "held_out"):
        monkeypatch.setattr(f"sims_kit.calibration.{module}.AT_ONCE", 7)
    assert fit_temperature(*drawn) == pytest.approx(whole, rel=1e-9)
    for found, expected in zip(calibration_cells(*drawn), kept, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_stays_finite_where_all_cells_are_right():
    """The likelihood alone would ask for a temperature of zero."""
    logits = np.eye(4)[np.arange(40) % 4]
    assert 0.1 < fit_temperature(logits, np.arange(40) % 4) < 1


def test_no_cells():
    """Without validation cells probabilities stay as they are."""
    assert fit_temperature(np.zeros((0, 3)), np.zeros(0, int)) == 1


@pytest.mark.parametrize(
    ("logits", "labels", "words"),
    [(np.zeros((3, 2)), np.zeros(2, int), r"\(3, 2\)"), (np.full((2, 2), np.nan), np.zeros(2, int), "4 of the logits")],
)
def test_bad_input_is_named(logits, labels, words):
    """Shapes that do not fit, and logits that are no numbers."""
    with pytest.raises(SettingError, match=words):
        fit_temperature(logits, labels)

"""Prediction sets: coverage on simulated exchangeable cells, and the scores' definitions."""

import numpy as np
import pytest
from scipy.special import softmax

from sims_kit.calibration import (
    calibration_cells,
    cells_needed,
    conformal_quantiles,
    coverage_table,
    prediction_sets,
    strangeness,
)
from sims_kit.errors import DataError, SettingError, UnknownNameError

SHARES = np.array([0.6, 0.3, 0.08, 0.02])  # of the classes: two common, two rare


def draw(random, n_cells):
    """Logits and labels; the rare classes are harder, and the logits know nothing of how hard."""
    labels = random.choice(4, size=n_cells, p=SHARES)
    logits = random.normal(size=(n_cells, 4))
    logits[np.arange(n_cells), labels] += np.array([3, 2, 1, 0.5])[labels]
    return logits, labels


@pytest.mark.parametrize("score", ["lac", "aps", "raps"])
@pytest.mark.parametrize("by_class", [False, True])
def test_coverage_is_the_promised_one(score, by_class):
    """Over many draws of calibration cells, sets hold the true class of new cells as often as promised, not more."""
    random, covered, size = np.random.default_rng(0), np.zeros(4), np.zeros(4)
    for _ in range(150):
        logits, labels = draw(random, 120)
        own = strangeness(logits, score)[np.arange(120), labels]
        quantiles = conformal_quantiles(own, labels, 4, 0.1, by_class=by_class)
        logits, labels = draw(random, 300)
        sets = prediction_sets(strangeness(logits, score), quantiles)
        covered += np.bincount(labels, sets[np.arange(300), labels], minlength=4)
        size += np.bincount(labels, minlength=4)
    assert covered.sum() / size.sum() == pytest.approx(0.9, abs=0.012)
    assert covered[0] / size[0] == pytest.approx(0.9 if by_class else 0.96, abs=0.045 if not by_class else 0.015)
    if by_class:
        assert covered[2:].sum() / size[2:].sum() > 0.87  # two rare classes, most often too small alone
    else:
        assert covered[2:].sum() / size[2:].sum() < 0.85  # what by_class is for


def test_lac_is_the_order_of_probabilities():
    """Log odds against each class order cells and classes as 1 - p does, and go on where 1 - p is rounded to 0."""
    logits = np.random.default_rng(0).normal(scale=3, size=(50, 4))
    p = softmax(logits, axis=1)
    np.testing.assert_allclose(strangeness(logits), np.log((1 - p) / p), rtol=1e-9)
    sure = strangeness(np.array([[60.0, 0, 0], [80.0, 0, 0]]))
    assert sure[1, 0] < sure[0, 0] < -50


def test_aps_by_hand():
    """All more probable classes and half of its own; RAPS adds a penalty from the third class on."""
    logits = np.log([[0.2, 0.5, 0.3]])
    np.testing.assert_allclose(strangeness(logits, "aps"), [[0.9, 0.25, 0.65]])
    np.testing.assert_allclose(strangeness(logits, "raps"), [[0.91, 0.25, 0.65]])
    with pytest.raises(UnknownNameError, match="'lac'"):
        strangeness(logits, "lak")


def test_rare_classes_share_a_quantile():
    """A class with nine cells stands alone at 0.1; smaller ones share one, with the next larger if still too few."""
    labels = np.repeat([0, 1, 2], [9, 8, 1])
    strange = np.concatenate([np.arange(9.0), 100 + np.arange(8.0), [200.0]])
    quantiles = conformal_quantiles(strange, labels, 4, 0.1)
    assert quantiles[0] == 8  # the largest of nine
    assert quantiles[1] == quantiles[2] == quantiles[3] == 200  # nine cells together; class 3 has none of its own
    few = conformal_quantiles(strange[:-1], labels[:-1], 4, 0.1)
    assert (few == np.quantile(strange[:-1], 0.9, method="weibull")).all()


def test_cells_needed():
    """1 / alpha - 1, without the rounding of floats; too few are told with an alpha that they allow."""
    assert [cells_needed(alpha) for alpha in (0.5, 0.1, 0.05, 0.01, 0.3)] == [1, 9, 19, 99, 3]
    with pytest.raises(SettingError, match="needs 9 calibration cells and there are 8"):
        conformal_quantiles(np.zeros(8), np.zeros(8, int), 2, 0.1)
    conformal_quantiles(np.zeros(8), np.zeros(8, int), 2, 0.12)  # the one that is offered
    with pytest.raises(SettingError, match="alpha is 1"):
        cells_needed(1)
    with pytest.raises(DataError, match="one number per cell"):
        conformal_quantiles(np.zeros(9), np.zeros(8, int), 2, 0.2)


def test_coverage_table():
    """Coverage, sizes and kinds of sets by true class and in all; a class that the model lacks is never covered."""
    sets = np.array([[1, 0], [1, 1], [0, 0], [0, 1]], bool)
    table = coverage_table(sets, ["a", "a", "a", "new"], ["a", "b"]).set_index("class")
    assert list(table.index) == ["a", "new", "all cells"]
    assert table["coverage"].tolist() == [2 / 3, 0, 0.5]
    sizes = table.loc["all cells", ["n_cells", "mean_size", "empty", "single", "several"]]
    assert sizes.tolist() == [4, 1, 1 / 4, 2 / 4, 1 / 4]
    with pytest.raises(DataError, match="4 cells"):
        coverage_table(sets[:2], ["a"] * 4, ["a", "b"])


def test_kept_of_held_out_cells():
    """Strangeness of the true class, confidence and correctness of the predicted one."""
    logits, labels = draw(np.random.default_rng(3), 30)
    cells = calibration_cells(logits, labels)
    p = softmax(logits, axis=1)
    np.testing.assert_allclose(cells.confidence, p.max(1))
    np.testing.assert_array_equal(cells.correct, p.argmax(1) == labels)
    np.testing.assert_allclose(cells.strangeness, strangeness(logits)[np.arange(30), labels])

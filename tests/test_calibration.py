"""Calibration: temperature, rejection, prediction sets and coarser labels against their oracles."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import softmax
from scipy.stats import binomtest

from sims_kit.calibration import (
    calibration_cells,
    conformal_quantiles,
    fit_temperature,
    hierarchical_labels,
    majority_vote,
    nonconformity,
    paths_to_root,
    rejection_curve,
    rejection_threshold,
)
from sims_kit.errors import DataError, SettingError, UnknownNameError

CLASSES = ["B", "CD4 T", "CD8 T", "Monocyte"]
HIERARCHY = {"CD4 T": "T", "CD8 T": "T", "T": "Lymphocyte", "B": "Lymphocyte"}


@pytest.mark.parametrize("factor", [0.3, 1, 4])
def test_temperature_undoes_a_factor(factor):
    """Logits that were multiplied by a number are brought back, at the lowest cross-entropy that torch finds."""
    random = np.random.default_rng(0)
    logits = random.normal(scale=2, size=(2000, 5))
    labels = np.array([random.choice(5, p=row) for row in softmax(logits, axis=1)])
    found = fit_temperature(logits * factor, labels)
    assert found == pytest.approx(factor, rel=0.05)
    assert 0.1 < fit_temperature(np.eye(4)[np.arange(40) % 4], np.arange(40) % 4) < 1  # where all cells are right
    assert fit_temperature(np.zeros((0, 3)), np.zeros(0, int)) == 1  # without cells
    tried, truth = [torch.tensor(factor * logits / t) for t in (found, found * 1.1, found / 1.1)], torch.tensor(labels)
    assert np.argmin([torch.nn.functional.cross_entropy(values, truth) for values in tried]) == 0


@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
def test_error_rate_holds_on_new_cells(power):
    """In nine of ten draws of validation cells, errors among answered new cells stay within the rate."""

    def draw(random, n_cells):
        confidence = random.beta(3, 1, n_cells)
        return confidence, random.random(n_cells) < confidence**power

    random, broken, answered = np.random.default_rng(0), [], []
    confidence, correct = draw(random, 20_000)
    for _ in range(200):
        chosen = confidence >= rejection_threshold(*draw(random, 150), error_rate=0.1).threshold
        broken.append(chosen.any() and (~correct[chosen]).mean() > 0.1)
        answered.append(chosen.mean())
    assert np.mean(broken) < 0.13  # one in ten, and three standard errors of 200 draws are not far
    assert np.mean(answered) > 0.03


def test_threshold_is_the_lowest():
    """Of all thresholds that keep the rate, the one that answers the most cells, by scipy's one-sided interval."""
    confidence, correct = np.array([0.9, 0.8, 0.7, 0.6, 0.5]), np.array([1, 1, 1, 0, 1], bool)
    limits = [binomtest(k, n, alternative="less").proportion_ci(0.9, method="exact").high for k, n in ((0, 3), (1, 5))]
    rates = limits[1] + 1e-6, limits[1] - 1e-6, limits[0] + 1e-6, limits[0] - 1e-6
    for rate, expected in zip(rates, [(0.5, 1.0), (0.7, 0.6), (0.7, 0.6), (np.inf, 0.0)], strict=True):
        found = rejection_threshold(confidence, correct, error_rate=rate)
        assert found[:2] == expected and found.lowest_error_rate == pytest.approx(limits[0])
    for n_cells in (44, 45):
        assert np.isfinite(rejection_threshold(np.ones(n_cells), np.ones(n_cells, bool)).threshold) == (n_cells == 45)


def test_curve_counts_every_cell():
    """At each threshold, cells of equal confidence together; the last row answers all."""
    curve = rejection_curve(np.array([0.5, 0.9, 0.9, 0.7]), np.array([False, True, False, True]))
    expected = {"threshold": [0.9, 0.7, 0.5], "n_answered": [2, 3, 4], "n_errors": [1, 1, 2]}
    expected |= {"answered": [1 / 2, 3 / 4, 1], "error": [1 / 2, 1 / 3, 1 / 2]}
    pd.testing.assert_frame_equal(curve, pd.DataFrame(expected))


def test_sets_cover_as_promised():
    """Over many draws of calibration cells, sets hold the true class of new cells as often as promised, by class."""

    def draw(random, n_cells):
        labels = random.choice(4, size=n_cells, p=[0.6, 0.3, 0.08, 0.02])  # two common classes, two rare and harder
        logits = random.normal(size=(n_cells, 4))
        logits[np.arange(n_cells), labels] += np.array([3, 2, 1, 0.5])[labels]
        return logits, labels

    random, covered, size = np.random.default_rng(0), np.zeros(4), np.zeros(4)
    for _ in range(150):
        logits, labels = draw(random, 120)
        quantiles = conformal_quantiles(calibration_cells(logits, labels).nonconformity, labels, 4, 0.1)
        logits, labels = draw(random, 300)
        sets = nonconformity(logits) <= quantiles
        covered += np.bincount(labels, sets[np.arange(300), labels], minlength=4)
        size += np.bincount(labels, minlength=4)
    assert covered.sum() / size.sum() == pytest.approx(0.9, abs=0.012)
    assert covered[0] / size[0] == pytest.approx(0.9, abs=0.015)
    assert covered[2:].sum() / size[2:].sum() > 0.87  # most often too small alone


def test_nonconformity_is_the_order_of_probabilities():
    """Log odds against each class order cells and classes as 1 - p does, and go on where 1 - p is rounded to 0."""
    logits = np.random.default_rng(0).normal(scale=3, size=(50, 4))
    p = softmax(logits, axis=1)
    np.testing.assert_allclose(nonconformity(logits), np.log((1 - p) / p), rtol=1e-9)
    sure = nonconformity(np.array([[60.0, 0, 0], [80.0, 0, 0]]))
    assert sure[1, 0] < sure[0, 0] < -50


def test_rare_classes_share_a_quantile():
    """A class with nine cells stands alone at 0.1; smaller ones share one, with the next larger if still too few."""
    labels = np.repeat([0, 1, 2], [9, 8, 1])
    scores = np.concatenate([np.arange(9.0), 100 + np.arange(8.0), [200.0]])
    assert conformal_quantiles(scores, labels, 4, 0.1).tolist() == [8, 200, 200, 200]  # class 3 has no cells
    few = conformal_quantiles(scores[:-1], labels[:-1], 4, 0.1)
    assert (few == np.quantile(scores[:-1], 0.9, method="weibull")).all()
    for n_needed, alpha in ((1, 0.5), (9, 0.1), (19, 0.05), (3, 0.3), (8, 0.12)):
        conformal_quantiles(np.zeros(n_needed), np.zeros(n_needed, int), 2, alpha)


def test_votes_are_the_first_mode():
    """Unknown cells count but do not vote, of ties the first label wins, cells without a cluster keep their label."""
    labels = [*"aabUUUU", *"bc", *"cabab"]
    clusters = pd.Series([*"000000", "1", "2", None, *"33333"], dtype="category")
    vote = majority_vote([label.replace("U", "Unknown") for label in labels], clusters)
    assert vote["label"].tolist() == ["a"] * 6 + ["Unknown", "b", "c"] + ["a"] * 5
    assert vote["proportion"].tolist() == pytest.approx([1 / 3] * 6 + [1, 1, 1] + [2 / 5] * 5)


def test_finest_confident_level():
    """The class, its parent, or the parent's; a root without children of its own stays unknown."""
    tenths = [[0, 9, 1, 0], [1, 5, 4, 0], [3, 4, 2, 1], [1, 2, 2, 5], [3, 3, 0, 4]]
    found = hierarchical_labels(np.array(tenths) / 10, paths_to_root(CLASSES, HIERARCHY), 0.8)
    assert found["label"].tolist() == ["CD4 T", "T", "Lymphocyte", "Unknown", "Unknown"]
    np.testing.assert_allclose(found["probability"], [0.9, 0.9, 0.9, 0.5, 0.4])


@pytest.mark.parametrize(
    ("function", "arguments", "error", "words"),
    [
        (fit_temperature, (np.full((2, 2), np.nan), np.zeros(2, int)), SettingError, "4 of the logits"),
        (rejection_curve, ([0.5, np.nan], [True, False]), DataError, "1 of 2 confidences"),
        (rejection_curve, ([0.5], [True, False]), DataError, r"\(1,\)"),
        (rejection_threshold, ([], []), DataError, "one or more"),
        (partial(rejection_threshold, error_rate=1), ([0.5], [True]), SettingError, "error_rate is 1"),
        (conformal_quantiles, (np.zeros(9), np.zeros(9, int), 2, "a"), SettingError, "alpha is 'a'; expected"),
        (conformal_quantiles, (np.zeros(8), np.zeros(8, int), 2, 0.1), SettingError, "there are 8. Choose alpha=0.12 "),
        (paths_to_root, (CLASSES, {"CD4": "T"}), UnknownNameError, "'CD4 T'"),
        (paths_to_root, (CLASSES, {"B": "L", "L": "B"}), SettingError, "B > L > B"),
    ],
)
def test_bad_input_is_named(function, arguments, error, words):
    """Shapes that do not fit, numbers out of range, no cells, circles and unknown names."""
    with pytest.raises(error, match=words):
        function(*arguments)

"""Novelty: angles and margins by scikit-learn, and the ways in which a type can be new."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import cosine_similarity
from torch.nn.functional import logsigmoid

from sims_kit.model.novelty import L1, Novelty, score_parts


@pytest.fixture
def cells():
    """Two classes of 60 cells in 30 genes, many values zero, and the labels."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        labels = torch.arange(120) % 2
        values = torch.rand(120, 30) + 2 * labels[:, None] * (torch.arange(30) < 10)
        return values * (torch.rand(120, 30) < 0.7), labels


@pytest.mark.parametrize("n_classes", [2, 4])
def test_angles_and_margins_are_scikit_learns(cells, n_classes):
    """To the nearest class mean, each gene divided by its spread within classes; of a weighted regression per class."""
    values, labels = cells[0].numpy(), (cells[1] + (n_classes == 4) * (cells[0][:, 15] > 0.5)).numpy()
    novelty = Novelty(30, n_classes)  # the fourth class has no cells, and every cell is outside of it
    parts = np.split(range(120), [50])
    weights = torch.arange(1.0, n_classes + 1)
    novelty.measure([(cells[0][part].to_sparse_csr(), torch.tensor(labels[part])) for part in parts], 1e-3 * weights)
    of_cells = weights.numpy()[labels] / weights.numpy()[labels].mean()  # their ratios count
    means = np.stack([values[labels == number].mean(0) for number in np.unique(labels)])
    within = ((values - means[labels]) ** 2).sum(0) / (120 - n_classes)
    scale = np.sqrt(within + within.mean())
    angle = cosine_similarity(values / scale, means / scale).max(1)
    margins = np.full((120, n_classes), -10.0)
    for label in np.unique(labels):
        machine = LogisticRegression(**L1, random_state=0).fit(values, labels == label, of_cells)
        margins[:, label] = machine.decision_function(values)
    logits = torch.rand(120, n_classes)
    together = 0.75 * logits + 0.25 * logsigmoid(torch.tensor(margins)).float()
    for given in (cells[0], cells[0].to_sparse_csr()):
        wanted = -np.stack([angle, margins.max(1)], 1)
        np.testing.assert_allclose(novelty.distances(given), wanted, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(novelty.joined(logits, given, 0.25), together, rtol=1e-3, atol=1e-3)


def test_planes_come_from_some_cells_of_each_class(cells, monkeypatch):
    """No class gives more than its share of the sample, and a rare one gives what it has."""
    values, _ = cells
    labels = (torch.arange(120) >= 110).long()
    monkeypatch.setattr("sims_kit.model.novelty.SAMPLE", 60)
    novelty = Novelty(30, 2)
    novelty.measure([(values[start : start + 40], labels[start : start + 40]) for start in (0, 40, 80)], torch.ones(2))
    some = np.r_[0:30, 110:120]
    machine = LogisticRegression(**L1, random_state=0).fit(values.numpy()[some], labels.numpy()[some])
    np.testing.assert_allclose(novelty.planes[1], machine.coef_[0], atol=1e-4)


def test_odds():
    """Against the most probable class, also where its probability is rounded to one."""
    logits = torch.tensor([[2.0, 1.0, 0.0], [90.0, 0.0, 1.0]])
    p, odds = logits[0].softmax(0).max(), score_parts(logits, torch.zeros(2, 2))[:, 0]
    assert odds[0].item() == pytest.approx(torch.log((1 - p) / p).item(), rel=1e-5) and odds[1] < -80


def test_each_way_is_noticed(cells):
    """An uncertain cell, at an angle to both classes, or outside of both stands out; a typical one does not."""
    novelty, (values, labels) = Novelty(30, 2), cells
    parts = np.split(range(120), [50])
    novelty.measure([(values[part].to_sparse_csr(), labels[part]) for part in parts], torch.ones(2))
    sure = torch.tensor([[6.0, 0.0]]).repeat(120, 1) + torch.linspace(-1, 1, 120)[:, None] * torch.tensor([1.0, 0.0])
    distances = novelty.distances(values)
    assert not novelty.is_calibrated
    novelty.set_reference(sure, distances)
    assert novelty.is_calibrated
    typical = novelty.scores(sure, distances)
    assert typical.median().abs() < 1 and (typical < 4).float().mean() > 0.95
    at_an_angle = 3.0 * (torch.arange(30) == 20)[None]  # a single gene
    assert novelty.scores(sure[60:61], torch.stack([novelty.distances(at_an_angle)[0, 0], distances[60, 1]])[None]) > 4
    outside = torch.stack([distances[60, 0], distances[:, 1].max() + 5 * distances[:, 1].std()])[None]
    assert novelty.scores(sure[60:61], outside) > 4
    assert novelty.scores(torch.zeros(1, 2), distances[60:61]) > 4

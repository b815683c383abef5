"""Class profiles: distances by scikit-learn, and both ways in which a type can be new."""

import numpy as np
import pytest
import torch
from sklearn.metrics import pairwise_distances

from sims_kit.model.profiles import ClassProfiles, doubt


@pytest.fixture
def cells():
    """Two classes of 60 cells in 30 genes, many values zero, and the labels."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        labels = torch.arange(120) % 2
        values = torch.rand(120, 30) + 2 * labels[:, None] * (torch.arange(30) < 10)
        return values * (torch.rand(120, 30) < 0.7), labels


@pytest.fixture
def profiles(cells):
    """Profiles measured on the cells, in batches."""
    values, labels = cells
    profiles = ClassProfiles(30, 2)
    profiles.measure([(values[:50].to_sparse_csr(), labels[:50]), (values[50:].to_sparse_csr(), labels[50:])])
    return profiles


def test_distances_are_scikit_learns(cells, profiles):
    """To the nearest class mean, each gene divided by its spread within classes, for dense and sparse cells."""
    values, labels = (part.numpy() for part in cells)
    means = np.stack([values[labels == number].mean(0) for number in range(2)])
    within = ((values - means[labels]) ** 2).sum(0) / (120 - 2)
    scale = np.sqrt(within + within.mean())
    expected = 2 * np.log(pairwise_distances(values / scale, means / scale).min(1))
    np.testing.assert_allclose(profiles.distance(cells[0]), expected, rtol=1e-4)
    np.testing.assert_allclose(profiles.distance(cells[0].to_sparse_csr()), expected, rtol=1e-4)


def test_doubt_is_the_log_odds():
    """Against the most probable class, also where its probability is rounded to one."""
    logits = torch.tensor([[2.0, 1.0, 0.0], [90.0, 0.0, 1.0]])
    p = logits[0].softmax(0).max()
    assert doubt(logits)[0].item() == pytest.approx(torch.log((1 - p) / p).item(), rel=1e-5)
    assert doubt(logits)[1] < -80


def test_either_way_is_noticed(cells, profiles):
    """A cell between the classes in doubt, or far from both in expression, stands out; a usual one does not."""
    values, _ = cells
    sure = torch.tensor([[6.0, 0.0]]).repeat(120, 1) + torch.linspace(-1, 1, 120)[:, None] * torch.tensor([1.0, 0.0])
    profiles.set_usual(sure, profiles.distance(values))
    usual = profiles.unseen(sure, profiles.distance(values))
    assert usual.median().abs() < 1 and (usual < 4).float().mean() > 0.95
    far = values[:1] + 3 * (torch.arange(30) >= 20)
    assert profiles.unseen(sure[60:61], profiles.distance(far)) > 4
    assert profiles.unseen(torch.zeros(1, 2), profiles.distance(values[:1])) > 4

"""Votes of clusters, and labels as fine as they are confident."""

import numpy as np
import pandas as pd
import pytest

from sims_kit.calibration import back_off, cluster_vote
from sims_kit.errors import DataError, SettingError, UnknownNameError

CLASSES = ["B", "CD4 T", "CD8 T", "Monocyte"]
HIERARCHY = {"CD4 T": "T", "CD8 T": "T", "T": "Lymphocyte", "B": "Lymphocyte"}


def test_most_frequent_label_wins():
    """With its share of the cluster; Unknown cells count but do not vote, and cells without a cluster stay."""
    labels = ["a", "a", "b", "Unknown", "Unknown", "b", "c"]
    vote = cluster_vote(labels, pd.Series(["0", "0", "0", "0", "1", "2", None], dtype="category"))
    assert vote["label"].tolist() == ["a"] * 4 + ["Unknown", "b", "c"]
    assert vote["proportion"].tolist() == [0.5] * 4 + [1, 1, 1]


def test_votes_are_pandas_mode():
    """On many random cells, the label is the first mode of the cluster and the proportion its frequency."""
    random = np.random.default_rng(0)
    labels, clusters = random.choice(list("abc"), 200), random.integers(12, size=200)
    vote = cluster_vote(labels, clusters)
    for number in range(12):
        own = pd.Series(labels[clusters == number])
        assert set(vote["label"][clusters == number]) == {own.mode()[0]}
        assert set(vote["proportion"][clusters == number]) == {own.value_counts(normalize=True).max()}
    with pytest.raises(DataError, match="200 labels"):
        cluster_vote(labels, clusters[:3])


def test_finest_confident_level():
    """The class, its parent, or the parent's; a root without children of its own cannot be helped."""
    probabilities = np.array(
        [[0.0, 0.9, 0.1, 0.0], [0.1, 0.5, 0.4, 0.0], [0.3, 0.4, 0.2, 0.1], [0.1, 0.2, 0.2, 0.5], [0.3, 0.3, 0.0, 0.4]]
    )
    found = back_off(probabilities, CLASSES, HIERARCHY, 0.8)
    assert found["label"].tolist() == ["CD4 T", "T", "Lymphocyte", "Unknown", "Unknown"]
    np.testing.assert_allclose(found["probability"], [0.9, 0.9, 0.9, 0.5, 0.4])


def test_bad_hierarchies():
    """A circle, and a child that is no class and leads to none."""
    probabilities = np.eye(4)
    with pytest.raises(SettingError, match="B > Lymphocyte > B"):
        back_off(probabilities, CLASSES, {"B": "Lymphocyte", "Lymphocyte": "B"}, 0.5)
    with pytest.raises(UnknownNameError, match="'CD4 T'"):
        back_off(probabilities, CLASSES, {"CD4": "T"}, 0.5)

"""Splits: complete, disjoint, seeded, stratified as scikit-learn does, and fit for rare classes."""

import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import StratifiedShuffleSplit

from sims_kit.cells.splits import stratified_split
from sims_kit.errors import LabelError, SettingError


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("validation", "test"), [(0.1, 0.1), (0.2, 0.0), (0.0, 0.3), (0.5, 0.49), (0.0, 0.0)])
def test_every_cell_is_in_exactly_one_part(seed, validation, test):
    """For random class sizes the parts are disjoint, complete and sorted, and every class trains."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.repeat(np.arange(12), random.integers(1, 40, 12)))
    split = stratified_split(labels, validation, test, seed)
    np.testing.assert_array_equal(np.sort(np.concatenate(split)), np.arange(len(labels)))
    assert all((np.diff(part) > 0).all() for part in split)
    assert set(labels[split.train]) == set(labels)
    for part, share in ((split.validation, validation), (split.test, test)):
        enough = {c for c in range(12) if (labels == c).sum() >= 3}
        assert (enough <= set(labels[part])) if share else len(part) == 0


@pytest.mark.parametrize("share", [0.1, 0.2, 0.33])
@pytest.mark.parametrize("seed", range(3))
def test_proportions_equal_scikit_learn_within_one_cell(share, seed):
    """Each class gives the test part as many cells as StratifiedShuffleSplit does, give or take one."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(8), random.integers(10, 300, 8))
    _, theirs = next(StratifiedShuffleSplit(1, test_size=share, random_state=seed).split(labels[:, None], labels))
    ours = stratified_split(labels, 0, share, seed).test
    assert np.abs(np.bincount(labels[ours]) - np.bincount(labels[theirs])).max() <= 1


@pytest.mark.parametrize(
    ("n_cells", "validation", "test", "sizes"),
    [
        (1, 0.1, 0.1, (1, 0, 0)),
        (1, 0.9, 0, (1, 0, 0)),
        (2, 0.1, 0.1, (1, 0, 1)),
        (2, 0.1, 0, (1, 1, 0)),
        (2, 0, 0.4, (1, 0, 1)),
        (2, 0, 0, (2, 0, 0)),
        (3, 0.1, 0.1, (1, 1, 1)),
        (3, 0.5, 0.4, (1, 1, 1)),
        (3, 0, 0.1, (2, 0, 1)),
        (4, 0.1, 0.1, (2, 1, 1)),
        (100, 0.1, 0.2, (70, 10, 20)),
    ],
)
def test_rare_classes(n_cells, validation, test, sizes):
    """Classes of 1, 2 and 3 cells are dealt out as documented, beside a large class."""
    labels = ["rare"] * n_cells + ["common"] * 500
    split = stratified_split(labels, validation, test, seed=1)
    assert tuple((part < n_cells).sum() for part in split) == sizes


def test_seed_decides():
    """The same seed gives the same split, another seed another one; the type of the labels is no matter."""
    labels = np.arange(300) % 3
    one, same, other = (stratified_split(labels, seed=seed) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not np.array_equal(one.test, other.test)
    text = stratified_split(pd.Categorical([f"class {i}" for i in labels]), seed=0)
    np.testing.assert_array_equal(one.test, text.test)


def test_unlabelled_cells_are_in_no_part():
    """NaN and None labels belong to no part."""
    split = stratified_split(["a", None, "b", np.nan] * 10)
    assert set(np.concatenate(split) % 2) == {0} and sum(map(len, split)) == 20


@pytest.mark.parametrize(("validation", "test"), [(-0.1, 0.1), (0.5, 0.5), (1, 0), (0, 10), (np.nan, 0), ("0.1", 0)])
def test_shares_out_of_range(validation, test):
    """Shares must leave something to train on."""
    with pytest.raises(SettingError, match="validation="):
        stratified_split([0, 1], validation, test)


@pytest.mark.parametrize("labels", [[], [None, None]])
def test_no_label_at_all(labels):
    """Without a label there is nothing to split."""
    with pytest.raises(LabelError, match=f"None of the {len(labels)} cells"):
        stratified_split(labels)

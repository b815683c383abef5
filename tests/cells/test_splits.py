"""Splits: complete, disjoint, seeded, fit for rare classes, and whole groups."""

import numpy as np
import pandas as pd
import pytest

from sims_kit.cells.splits import stratified_split
from sims_kit.errors import LabelError

# cells of a rare class, shares of validation and test, and the cells that it gives to train, validation and test
RARE = """1 .1 .1 1 0 0; 1 .9 0 1 0 0; 2 .1 .1 1 0 1; 2 .1 0 1 1 0; 2 0 .4 1 0 1; 2 0 0 2 0 0; 3 .1 .1 1 1 1;
3 .5 .4 1 1 1; 3 0 .1 2 0 1; 4 .1 .1 2 1 1; 100 .1 .2 70 10 20"""


@pytest.mark.parametrize("case", RARE.split(";"))
def test_rare_classes(case):
    """Classes of 1, 2 and 3 cells are dealt out as documented, beside a large class; every cell is in one part."""
    n_cells, validation, test, *sizes = map(float, case.split())
    split = stratified_split(["rare"] * int(n_cells) + ["common"] * 500, validation, test, seed=1)
    assert [(part < n_cells).sum() for part in split] == sizes
    np.testing.assert_array_equal(np.sort(np.concatenate(split)), np.arange(n_cells + 500))
    sizes = [len(part) - n for part, n in zip(split, sizes, strict=True)]
    np.testing.assert_allclose(sizes[1:], [500 * validation, 500 * test])


def test_seed_decides():
    """The same seed gives the same split, another seed another one; the type of the labels is no matter."""
    labels = np.arange(300) % 3
    one, other = (stratified_split(labels, seed=seed) for seed in (0, 1))
    same = stratified_split(pd.Categorical([f"class {i}" for i in labels]), seed=0)
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not np.array_equal(one.test, other.test)


def test_cells_without_a_label_or_a_group():
    """NaN and None labels belong to no part and need no group; without any there is nothing to split."""
    assert set(np.concatenate(stratified_split(["a", None, "b", np.nan] * 10)) % 2) == {0}
    for labels in ([], [None, None]):
        with pytest.raises(LabelError, match=f"None of the {len(labels)} cells"):
            stratified_split(labels)
    donors = pd.Series(["a", "b", "NA", None] * 3, index=[f"cell_{i}" for i in range(12)])
    with pytest.raises(LabelError, match=r"3 labelled cells have no group \('cell_2', 'cell_6', 'cell_10'\)"):
        stratified_split(["T", "B", "T", None] * 3, groups=donors)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("validation", "test"), [(0.1, 0.1), (0.2, 0), (0, 0.3)])
def test_groups_stay_whole(seed, validation, test):
    """No donor is on two sides, every class trains, also one that a single donor has, and the shares are near."""
    random = np.random.default_rng(seed)
    donors, labels = random.integers(0, 20, 2000), random.integers(0, 5, 2000).astype(object)
    labels[donors == 3], labels[::50] = 9, None
    split = stratified_split(labels, validation, test, seed, groups=pd.Categorical(donors))
    assert sum(len(set(donors[part])) for part in split) == 20 and set(labels[split.train]) == {0, 1, 2, 3, 4, 9}
    np.testing.assert_array_equal(np.sort(np.concatenate(split)), np.flatnonzero(pd.notna(labels)))
    np.testing.assert_allclose([len(part) / 1960 for part in split[1:]], [validation, test], atol=0.04)


@pytest.mark.parametrize(
    ("donors", "labels", "said"),
    [
        ([0, 1, 1], [0, 1], r"Too few groups \(2\) .*: validation cells come from"),
        ([0], [0, 1], r"Too few groups \(1\) .*: test and validation cells come from"),
        ([0, 1, 2, 3], None, r"Too few groups \(4\) .*: test and validation cells"),  # of one class each
    ],
)
def test_too_few_groups_are_said(donors, labels, said):
    """What cannot come from groups of its own is drawn cell by cell, and all parts are there."""
    donors = np.resize(donors, 600)
    labels = donors if labels is None else np.random.default_rng(0).permutation(np.resize(labels, 600))
    with pytest.warns(UserWarning, match=said):
        split = stratified_split(labels, groups=donors)
    assert set(labels[split.train]) == set(labels[split.validation]) == set(labels) and len(split.test) >= 60
    if ": validation" in said:
        assert not set(donors[split.test]) & {*donors[split.train], *donors[split.validation]}

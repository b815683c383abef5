"""Seeded, stratified splits that survive rare classes."""

from collections.abc import Sequence
from numbers import Integral, Real
from typing import NamedTuple

import numpy as np
import pandas as pd

from sims_kit.errors import LabelError, SettingError


class Split(NamedTuple):
    """Positions of the cells of each part, sorted, int64."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def stratified_split(labels: Sequence, validation: float = 0.1, test: float = 0.1, seed: int = 0) -> Split:
    """Divide cells into train, validation and test parts, class by class.

    A class of three or more cells has at least one in each part that is asked for; of two cells one
    trains and one tests (or validates, when `test` is 0); a single cell trains. Otherwise every class
    gives each part its share, rounded to the nearest cell.

    Parameters
    ----------
    labels
        One per cell; cells without a label (NaN, None) come into no part.
    validation, test
        Share of the cells, 0 for an empty part; together under 1.
    seed
        Same seed, same split.

    Raises
    ------
    SettingError
        Shares or seed out of range.
    LabelError
        No labelled cell, or labels that are no list.
    """
    check_shares(validation, test)
    if not isinstance(seed, Integral) or seed < 0:
        raise SettingError(f"seed={seed!r}: give a whole number, 0 or more.")
    if isinstance(labels, str) or np.ndim(labels) != 1:
        raise LabelError(f"labels has shape {np.shape(labels)}; give a list or column with one label per cell.")
    codes, classes = pd.factorize(pd.Series(labels), sort=True)
    codes = codes.astype(np.int32)  # of a hundred million cells every array counts
    if not len(classes):
        raise LabelError(f"None of the {len(codes):,} cells has a label; nothing can be split.")
    order = np.random.default_rng(seed).permutation(len(codes))
    order = order[np.argsort(codes[order], kind="stable")]  # class by class, shuffled within
    order = order[codes[order] >= 0]
    sizes = np.bincount(codes[order])
    rank = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # 0, 1, ... within each class
    n_validation, n_test = np.array([_part_sizes(size, validation, test) for size in sizes]).T
    is_test, is_held_out = (rank < np.repeat(last, sizes) for last in (n_test, n_test + n_validation))
    return Split(*(np.sort(order[part]) for part in (~is_held_out, is_held_out & ~is_test, is_test)))


def check_shares(validation: float, test: float) -> None:
    """Raise SettingError unless both shares are in [0, 1) and leave something to train on."""
    if not (isinstance(validation, Real) and isinstance(test, Real)) or not (
        0 <= validation < 1 and 0 <= test < 1 and validation + test < 1
    ):
        raise SettingError(
            f"validation={validation!r} and test={test!r} are shares of the cells: each must be 0 or more, "
            "together under 1, for example 0.1 and 0.1."
        )


def _part_sizes(n_cells: int, validation: float, test: float) -> tuple[int, int]:
    """Cells of a class for validation and test, leaving at least one to train on."""
    n_validation, n_test = (max(1, int(n_cells * share + 0.5)) if share else 0 for share in (validation, test))
    while n_validation + n_test >= n_cells:
        if n_validation >= n_test:
            n_validation -= 1
        else:
            n_test -= 1
    return n_validation, n_test

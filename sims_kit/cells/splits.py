"""Seeded splits, stratified by class, rare ones too, and by donor or sample where these are given."""

from collections.abc import Sequence
from numbers import Integral, Real
from typing import NamedTuple

import numpy as np
import pandas as pd

from sims_kit.errors import LabelError, SettingError
from sims_kit.text import examples, label_text, warn


class Split(NamedTuple):
    """Positions of the cells of each part, sorted, int64."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def stratified_split(
    labels: Sequence, validation: float = 0.1, test: float = 0.1, seed: int = 0, *, groups: Sequence | None = None
) -> Split:
    """Divide cells into train, validation and test parts, class by class.

    Every class gives each part its share, rounded to the nearest cell. A class of three or more cells has at least one
    in each part that is asked for; of two cells one trains and one tests (or validates, when `test` is 0); one trains.
    Cells without a label come into no part. `validation` and `test` are shares, together under 1; 0 leaves one empty.

    `groups` has the donor or sample of each cell: validation and test cells come from whole groups of their own. The
    shares are met as nearly as groups allow, and every class trains; a warning says where there are too few groups.

    >>> stratified_split(["B", "T", "B", "T"], validation=0, test=0.5, groups=["ann", "ann", "bob", "bob"])
    Split(train=array([0, 1]), validation=array([], dtype=int64), test=array([2, 3]))
    """
    check_shares(validation, test)
    check_whole("seed", seed, 0)
    if isinstance(labels, str) or np.ndim(labels) != 1:
        raise LabelError(f"labels has shape {np.shape(labels)}; give a list or column with one label per cell.")
    codes, classes = pd.factorize(pd.Series(labels), sort=True)
    codes = codes.astype(np.int32)  # of a hundred million cells every array counts
    if not len(classes):
        raise LabelError(f"None of the {len(codes):,} cells has a label; nothing can be split.")
    if groups is not None:
        return _split_by_group(codes, groups, validation, test, seed)
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
    is_share = [isinstance(share, Real) and share is not False and 0 <= share < 1 for share in (validation, test)]
    if not all(is_share) or validation + test >= 1:
        found = f"validation={validation!r} and test={test!r} are shares of the cells"
        raise SettingError(f"{found}: each must be 0 or more, together under 1, for example 0.1 and 0.1.")


def check_whole(name: str, value: int, least: int) -> None:
    """Raise SettingError unless the value is a whole number that is large enough; True and False are none."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise SettingError(f"{name}={value!r}: give a whole number, {least} or more.")


def _part_sizes(n_cells: int, validation: float, test: float) -> tuple[int, int]:
    """Cells of a class for validation and test, leaving at least one to train on."""
    n_validation, n_test = (max(1, int(n_cells * share + 0.5)) if share else 0 for share in (validation, test))
    while n_validation + n_test >= n_cells:
        n_validation, n_test = (n_validation - 1, n_test) if n_validation >= n_test else (n_validation, n_test - 1)
    return n_validation, n_test


def _split_by_group(codes: np.ndarray, groups: Sequence, validation: float, test: float, seed: int) -> Split:
    """Whole groups for the parts, for the test part alone where there are too few, or for none, with a warning."""
    names, cells = label_text(groups), np.flatnonzero(codes >= 0)
    if len(names) != len(codes):
        raise LabelError(f"groups has {len(names):,} entries for {len(codes):,} cells; give one per cell.")
    if len(missing := names.index[cells][names.iloc[cells].isna()]):
        raise LabelError(f"{len(missing):,} labelled cells have no group ({examples(missing)}). Leave them out.")
    codes, groups = codes[cells], pd.factorize(names.iloc[cells])[0]
    sizes = pd.crosstab(groups, codes).to_numpy()
    asked = {part: share for part, share in (("test", test), ("validation", validation)) if share}
    whole = list(asked)
    while (part_of_group := _draw_groups(sizes, [asked[part] for part in whole], seed)) is None:
        whole.pop()
    part_of_cell = part_of_group[groups]
    rest = np.flatnonzero(part_of_cell == 0)
    scale = len(cells) / len(rest)  # shares are of all cells
    if by_cell := {part: min(share * scale, max(share, 0.5)) for part, share in asked.items() if part not in whole}:
        few = f"Too few groups ({len(sizes)}) for {' and '.join(asked)} cells from groups of their own"
        warn(f"{few} that leave every class in training: {' and '.join(by_cell)} cells come from groups that train.")
    inner = stratified_split(codes[rest], by_cell.get("validation", 0), by_cell.get("test", 0), seed)
    parts = {part: rest[chosen] for part, chosen in inner._asdict().items()}
    parts |= {part: np.flatnonzero(part_of_cell == number) for number, part in enumerate(whole, 1)}
    return Split(**{part: cells[chosen] for part, chosen in parts.items()})


def _draw_groups(sizes: np.ndarray, shares: list[float], seed: int) -> np.ndarray | None:
    """The part of each group, 0 to train: of several random ones that train all classes, the nearest to the shares."""
    random, best, costs = np.random.default_rng(seed), None, []
    free = np.flatnonzero(~(sizes[:, (sizes > 0).sum(axis=0) == 1] > 0).any(axis=1))  # not the only group of a class
    for _ in range(200 if len(free) >= len(shares) else 0):
        order, part, end = random.permutation(free), np.zeros(len(sizes), int), 0
        for number, share in enumerate(shares, 1):  # leaves a group to each part that comes after
            filled = sizes[order[end : len(order) - len(shares) + number]].sum(axis=1).cumsum() / sizes.sum()
            start, end = end, end + 1 + np.abs(filled - share).argmin()
            part[order[start:end]] = number
        counts = np.array([sizes[part == number].sum(axis=0) for number in range(len(shares) + 1)])
        if (counts[0] > 0).all():
            costs.append(np.abs(counts[1:] / counts.sum(axis=0) - np.array(shares)[:, None]).sum())
            best = part if costs[-1] == min(costs) else best
        if len(costs) == 5:  # more would balance better, and make all seeds alike
            break
    return best

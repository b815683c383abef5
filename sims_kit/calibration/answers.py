"""Answers for many cells, or for uncertain ones: the vote of a cluster, and the finest label that is confident."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from sims_kit.errors import DataError, LabelError, SettingError, UnknownNameError

UNKNOWN = "Unknown"  # the answer for a cell that is not answered


def cluster_vote(labels: Sequence[str], clusters: Sequence) -> pd.DataFrame:
    """The most frequent label of each cell's cluster, and how many of its cells have it.

    Cells that are ``"Unknown"`` do not vote, but count as cells of the cluster; only where all are, ``"Unknown"`` wins.

    Parameters
    ----------
    labels
        (cells,) label of each cell.
    clusters
        (cells,) cluster of each cell; cells without one (NaN) keep their own label.

    Returns
    -------
    pandas.DataFrame
        A row per cell: ``label``, and ``proportion``, the share of the cluster's cells with that label. Of equally
        frequent labels the first in alphabetical order wins.

    Raises
    ------
    DataError
        If the two have different lengths.
    """
    labels = pd.Series(np.asarray(labels, dtype=object).astype(str))
    clusters = pd.Series(np.asarray(clusters, dtype=object))
    if len(labels) != len(clusters):
        raise DataError(f"There are {len(labels)} labels and clusters of {len(clusters)} cells; expected one each.")
    alone = clusters.isna()
    counts = pd.crosstab(clusters[~alone].astype(str), labels[~alone])
    voting = counts.drop(columns=UNKNOWN, errors="ignore")
    winner = pd.Series(UNKNOWN, index=counts.index, dtype=object)
    voted = voting.index[voting.sum(axis=1) > 0]
    winner[voted] = voting.loc[voted].idxmax(axis=1)
    share = pd.Series([counts.loc[name, label] for name, label in winner.items()], counts.index, dtype=float)
    share /= counts.sum(axis=1)
    of_cell = clusters.astype(str)
    return pd.DataFrame(
        {
            "label": labels.where(alone, of_cell.map(winner)),
            "proportion": of_cell.map(share).where(~alone, 1.0).astype(float),
        }
    )


def back_off(
    probabilities: np.ndarray, classes: Sequence[str], hierarchy: Mapping[str, str], threshold: float
) -> pd.DataFrame:
    """The finest label whose probability reaches a threshold: the class, else its parent, and so on.

    The probability of a parent is the sum of its classes'. From the most probable class the way leads upwards only, so
    that a coarser answer never contradicts the finer one.

    Parameters
    ----------
    probabilities
        (cells, classes), rows sum to one.
    classes
        The class of each column.
    hierarchy
        Child to parent, of classes and of parents: ``{"CD4 T": "T cell", "CD8 T": "T cell", "T cell": "lymphocyte"}``.
        A name without a parent is a root.
    threshold
        Probability that a label must reach.

    Returns
    -------
    pandas.DataFrame
        A row per cell: ``label``, ``"Unknown"`` where not even the root reaches the threshold, and ``probability``, of
        that label (of the root where it is ``"Unknown"``).

    Raises
    ------
    SettingError
        If the hierarchy runs in a circle.
    UnknownNameError
        If none of its children leads to a class: names must be those of the classes.
    """
    paths = _paths(classes, hierarchy)
    nodes = sorted({name for path in paths for name in path})
    belongs = np.array([[name in path for name in nodes] for path in paths], dtype=np.float64)  # classes x nodes
    sums = np.asarray(probabilities, dtype=np.float64) @ belongs
    best = np.asarray(probabilities).argmax(axis=1)
    labels, found = np.full(len(best), UNKNOWN, dtype=object), np.zeros(len(best))
    for number, path in enumerate(paths):
        open_cells = np.flatnonzero(best == number)
        for name in path:
            reached = sums[open_cells, nodes.index(name)]
            found[open_cells] = reached
            labels[open_cells[reached >= threshold]] = name
            open_cells = open_cells[reached < threshold]
    return pd.DataFrame({"label": labels, "probability": found})


def check_hierarchy(classes: Sequence[str], hierarchy: Mapping[str, str]) -> None:
    """Raise what `back_off` would, before anything is predicted."""
    _paths(classes, hierarchy)


def check_no_unknown(classes: Sequence[str]) -> None:
    """Refuse classes of which one is called as unanswered cells are.

    Raises
    ------
    LabelError
        If there is a class ``"Unknown"``.
    """
    if UNKNOWN in classes:
        raise LabelError(
            f"The model has a class {UNKNOWN!r}, as cells without an answer are called. Rename it in the reference and "
            "train again, or annotate without reject, alpha and hierarchy."
        )


def _paths(classes: Sequence[str], hierarchy: Mapping[str, str]) -> list[list[str]]:
    """For each class the names from itself up to its root."""
    paths = []
    for name in classes:
        path = [name]
        while path[-1] in hierarchy:
            parent = str(hierarchy[path[-1]])
            if parent in path:
                raise SettingError(f"The hierarchy runs in a circle: {' > '.join([*path, parent])}.")
            path.append(parent)
        paths.append(path)
    known = {name for path in paths for name in path}
    for child in hierarchy:
        if child not in known:
            raise UnknownNameError("class or parent of one", child, sorted(known))
    return paths

"""What every peer of the benchmark looks like, and the matrices and labels that peers are given."""

import importlib
from types import ModuleType
from typing import NamedTuple, Protocol

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from sims_kit.cells import matrix
from sims_kit.cells.genes import shared_genes
from sims_kit.errors import LabelError, PeerError, UnknownNameError
from sims_kit.text import label_text

UNKNOWN = "Unknown"  # label of a cell that a peer rejects


class Prediction(NamedTuple):
    """What a peer says of a query.

    Attributes
    ----------
    labels
        (cells,) text, ``"Unknown"`` where the peer rejects the cell.
    probabilities
        (cells, classes) float32, or None where the method has none.
    classes
        The class of each column.
    """

    labels: np.ndarray
    probabilities: np.ndarray | None
    classes: list[str]

    def best(self) -> tuple[np.ndarray, np.ndarray]:
        """Most probable class of each cell, rejected or not, and its probability, (cells,); ``""`` and NaN if none."""
        if self.probabilities is None:
            return np.full(len(self.labels), ""), np.full(len(self.labels), np.nan)
        names = np.asarray(self.classes).astype(str)[self.probabilities.argmax(axis=1)]
        return names, self.probabilities.max(axis=1)


class Peer(Protocol):
    """A method that learns from labelled cells and labels others.

    Attributes
    ----------
    name
        Says what is run.
    packages
        Distributions whose versions decide the result, the method's own first.
    settings
        All else that decides it, as text. A stored result with other settings or versions is not mixed with new ones.
    """

    name: str
    packages: tuple[str, ...]
    settings: str

    def fit(self, reference: AnnData, label: str, *, sample: str | None = None, seed: int = 0) -> None:
        """Learn from a reference.

        Parameters
        ----------
        reference
            Cells x genes, counts or log-normalised; each gene once.
        label
            The `obs` column with the labels.
        sample
            The `obs` column with the donor, plate or protocol, for methods that correct for it.
        seed
            Of whatever is random.

        Raises
        ------
        PeerError
            If the method cannot take this input or its package is missing.
        """

    def predict(self, query: AnnData) -> Prediction:
        """Label cells of any gene set; no labels of theirs are needed, nor looked at.

        Raises
        ------
        PeerError
            If the method cannot take this input.
        """


def vocabulary(reference: AnnData) -> list[str]:
    """The genes of a reference, each once."""
    return shared_genes([list(map(str, reference.var_names))])


def log_normalised(cells: AnnData, genes: list[str]) -> sp.csr_matrix:
    """Values on these genes as SIMS sees them, by the same code: counts become log1p of 10,000 a cell.

    Returns
    -------
    scipy.sparse.csr_matrix, (cells, genes) float32
    """
    return matrix.log_normalised(cells, genes)


def counts(cells: AnnData, genes: list[str], peer: str) -> sp.csr_matrix:
    """Raw counts on these genes, (cells, genes) float32.

    Raises
    ------
    PeerError
        If the values are not counts.
    """
    expression = matrix.Expression(cells)
    if not expression.scale.is_counts:
        found = expression.scale.state
        raise PeerError(f"{peer} models counts and these values are {found}. Give it raw counts, or leave it out.")
    expression.align(genes, cells.obs_names)
    return expression.raw_rows(np.arange(len(expression)))


def labels_of(reference: AnnData, label: str) -> np.ndarray:
    """The label of every cell, as text.

    Raises
    ------
    UnknownNameError
        If there is no such column.
    LabelError
        If a cell has none, or there is one class only.
    """
    if label not in reference.obs:
        raise UnknownNameError("obs column", label, reference.obs.columns)
    labels = label_text(reference.obs[label])
    if labels.isna().any() or labels.nunique() < 2:
        raise LabelError(
            f"The reference has {labels.nunique()} classes in {label!r} and {labels.isna().sum()} cells without one; "
            "peers need two classes or more and a label for every cell. Leave unlabelled cells out first."
        )
    return labels.to_numpy().astype(str)


def samples_of(cells: AnnData, sample: str | None) -> pd.Series:
    """The sample of every cell as text; one for all where there is no such column."""
    if sample is None or sample not in cells.obs:
        return pd.Series("all", index=cells.obs_names)
    return cells.obs[sample].astype(str)


def needs(module: str, peer: str, distribution: str | None = None) -> ModuleType:
    """Import a package that only one peer needs.

    Raises
    ------
    PeerError
        If it is not installed, with the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.split(".")[0]:
            raise
        raise PeerError(
            f"{peer} needs the package {distribution or module}, which is not installed. "
            "Install it with: pip install 'sims_kit[peers]'"
        ) from error

"""Which cells the benchmark runs on, and how they are divided into folds that are the same for every method."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from sklearn.model_selection import GroupKFold, StratifiedKFold

from sims_kit.cells.genes import align_genes, shared_genes
from sims_kit.cells.matrix import Expression, detect_scale
from sims_kit.datasets import load
from sims_kit.datasets.registry import read_registry
from sims_kit.errors import LabelError, SettingError, UnknownNameError
from sims_kit.text import label_text

TOO_FEW = 10  # a class of so few cells, or fewer, is left out (Abdelaal et al., Genome Biology 2019)


@dataclass(frozen=True)
class Task:
    """One task of the benchmark.

    Attributes
    ----------
    name
        What tables call it.
    datasets
        Names of the registry, paths, or AnnData. Of several, each is a fold: the others train, it is the query.
    label, sample
        The `obs` columns with the labels and with the donor, plate or protocol; None for the registry's. Across whole
        datasets, each is a sample.
    group
        An `obs` column whose values stay together (a region, a donor): no fold has the same value in reference and
        query. None for folds that are stratified by label.
    """

    name: str
    datasets: tuple[str | AnnData, ...]
    label: str | None = None
    sample: str | None = None
    group: str | None = None


PLATES = ("cell-lines-5cl-p1", "cell-lines-5cl-p2", "cell-lines-5cl-p3")
PROTOCOLS = ("cell-lines-celseq2", "cell-lines-dropseq")

TASKS: Mapping[str, Task] = MappingProxyType(
    {
        task.name: task
        for task in (
            Task("pbmc68k", ("pbmc68k",)),
            Task("mouse-immune", ("mouse-immune",)),
            Task("worm-neurons", ("worm-neurons",)),
            Task("cell lines across plates", PLATES),
            Task("cell lines across protocols", PROTOCOLS),
            Task("sim-cortex", ("sim-cortex",)),
            Task("sim-mouse", ("sim-mouse",)),
            Task("sim-cortex across regions", ("sim-cortex",), group="region"),
        )
    }
)


class Fold(NamedTuple):
    """One fold: what a method may learn from, what it is asked, and what it is not told.

    Attributes
    ----------
    reference
        Cells x genes as published; `obs` has ``label`` and, where the task has samples, ``sample``.
    query
        The same without ``label``. Cells are named by their number in the task.
    truth
        Label of each cell of the query.
    """

    reference: AnnData
    query: AnnData
    truth: np.ndarray


class Folds:
    """The cells of a task, divided into folds.

    Classes of 10 cells or fewer, and cells without a label, are left out.

    Parameters
    ----------
    task
        A `Task`.
    n_folds
        Number of folds, 2 or more; across whole datasets there are as many as datasets.
    seed
        Of stratified folds.

    Attributes
    ----------
    fold_of
        (cells,) the fold in which each cell is asked.
    labels
        (cells,) text.
    left_out
        Class to number of cells, of classes that are too small; and ``"(no label)"``.
    fingerprint
        A hash of values, genes, labels, samples and folds: equal ones mean the same task.

    Raises
    ------
    SettingError
        If the label column is not known, the values of several datasets are of different states, or there are fewer
        cells or groups than folds.
    UnknownNameError
        If there is no such dataset or column.
    LabelError
        If fewer than two classes are left.
    """

    def __init__(self, task: Task, n_folds: int = 5, seed: int = 0):
        if n_folds < 2:
            raise SettingError(f"n_folds={n_folds}: give 2 or more, usually 5.")
        loaded = [data if isinstance(data, AnnData) else load(data) for data in task.datasets]
        self.task, self.has_samples = task, len(loaded) > 1 or _column(loaded[0], task, "sample") is not None
        parts = [_plain(cells, task, f"dataset {i + 1}") for i, cells in enumerate(loaded)]
        labels = pd.concat([part.obs["label"] for part in parts], ignore_index=True)
        sizes = labels.value_counts()
        self.left_out = {str(name): int(n) for name, n in sizes[sizes <= TOO_FEW].items()}
        if labels.isna().any():
            self.left_out["(no label)"] = int(labels.isna().sum())
        kept = labels.isin(sizes.index[sizes > TOO_FEW]).to_numpy()
        if labels[kept].nunique() < 2:
            raise LabelError(
                f"{task.name}: {labels[kept].nunique()} classes have more than {TOO_FEW} cells; a benchmark needs two. "
                f"Sizes: {sizes.to_dict()}."
            )
        if "Unknown" in sizes:
            raise LabelError(
                f'{task.name}: {sizes["Unknown"]} cells are labelled "Unknown", as rejected cells are. '
                "Leave them out, or rename the class."
            )
        _check_states(task, parts)
        bounds = np.cumsum([0, *(part.n_obs for part in parts)])
        self._parts = [part[kept[a:b]] for part, a, b in zip(parts, bounds, bounds[1:], strict=False)]
        self.labels = labels[kept].to_numpy().astype(str)
        self._part_of = np.repeat(np.arange(len(parts)), [part.n_obs for part in self._parts])
        self.fold_of = self._divide(n_folds, seed)
        self.fingerprint = self._hash()

    def __len__(self) -> int:
        return int(self.fold_of.max()) + 1

    def __getitem__(self, number: int) -> Fold:
        if not 0 <= number < len(self):
            raise IndexError(f"There is no fold {number}; {self.task.name} has {len(self)}.")
        asked = self.fold_of == number
        query = self._joined(asked)
        query.obs = query.obs.drop(columns="label")
        return Fold(self._joined(~asked), query, self.labels[asked])

    def _divide(self, n_folds: int, seed: int) -> np.ndarray:
        if len(self._parts) > 1:
            return self._part_of
        nothing = np.zeros(len(self.labels))
        if self.task.group is None:
            splits = StratifiedKFold(n_folds, shuffle=True, random_state=seed).split(nothing, self.labels)
        else:
            groups = self._parts[0].obs["group"]
            if groups.nunique() < 2:
                raise SettingError(f"{self.task.name}: {self.task.group!r} has one value, and folds need two groups.")
            splits = GroupKFold(min(n_folds, groups.nunique())).split(nothing, groups=groups)
        fold_of = np.empty(len(self.labels), dtype=np.int64)
        for number, (_, asked) in enumerate(splits):
            fold_of[asked] = number
        return fold_of

    def _joined(self, wanted: np.ndarray) -> AnnData:
        """The wanted cells of all datasets on their common genes, named by their number."""
        chosen = [part[wanted[self._part_of == i]] for i, part in enumerate(self._parts)]
        parts = [part for part in chosen if part.n_obs]
        genes = shared_genes([list(part.var_names) for part in parts])
        matrix = sp.vstack([align_genes(part.var, genes).apply(sp.csr_matrix(part.X)) for part in parts], format="csr")
        columns = ["label", "sample"] if self.has_samples else ["label"]
        obs = pd.concat([part.obs[columns] for part in parts])
        obs.index = np.flatnonzero(wanted).astype(str)
        return AnnData(matrix, obs=obs, var=pd.DataFrame(index=genes))

    def _hash(self) -> str:
        digest = hashlib.sha256()
        for part in self._parts:
            matrix = sp.csr_matrix(part.X)
            for values in (matrix.data, matrix.indices.astype(np.int64), matrix.indptr.astype(np.int64)):
                digest.update(np.ascontiguousarray(values).tobytes())
            digest.update("\n".join([*part.var_names, *part.obs["sample"].astype(str)]).encode())
        digest.update("\n".join([*self.labels, str(self.has_samples)]).encode() + self.fold_of.tobytes())
        return digest.hexdigest()[:12]


def as_task(task: "str | AnnData | Task", label: str | None = None) -> Task:
    """The task of that name, of a dataset of the registry, or of an AnnData, which is called ``"cells"``.

    Raises
    ------
    UnknownNameError
        If it is neither a name of `TASKS` nor one of the registry.
    """
    if isinstance(task, Task):
        return task
    if isinstance(task, AnnData):
        origin = task.uns.get("sims_kit")
        name = origin.get("dataset", "cells") if isinstance(origin, Mapping) else "cells"
        return Task(str(name), (task,), label)
    if task in TASKS:
        return TASKS[task]
    registered = read_registry().datasets
    if task not in registered:
        raise UnknownNameError("task or dataset", task, [*TASKS, *registered])
    return Task(task, (task,), label)


def registered(cells: AnnData, role: str) -> str | None:
    """The `obs` column that the registry knows for a role, ``"label"`` or ``"sample"``, if it knows the cells."""
    origin = cells.uns.get("sims_kit")
    return origin.get(role) if isinstance(origin, Mapping) else None


def _column(cells: AnnData, task: Task, role: str) -> str | None:
    """The column for a role: the task's own, or the one that the registry knows."""
    return getattr(task, role) or registered(cells, role)


def _plain(cells: AnnData, task: Task, name: str) -> AnnData:
    """Matrix, gene names, and obs with label, sample and group; nothing else, so that nothing else can leak."""
    expression = Expression(cells)
    label, sample = _column(cells, task, "label"), _column(cells, task, "sample")
    if label is None:
        raise SettingError(f'{task.name}: which obs column holds the labels? Pass label="cell_type", or the like.')
    for column in (label, sample, task.group):
        if column is not None and column not in cells.obs:
            raise UnknownNameError("obs column", column, cells.obs.columns)
    origin = cells.uns.get("sims_kit")
    own_name = str(origin.get("dataset", name)) if isinstance(origin, Mapping) else name
    obs = pd.DataFrame({"label": label_text(cells.obs[label]).to_numpy()}, index=[str(i) for i in range(cells.n_obs)])
    whole = len(task.datasets) > 1
    obs["sample"] = own_name if whole or sample is None else cells.obs[sample].astype(str).to_numpy()
    if task.group is not None:
        obs["group"] = cells.obs[task.group].astype(str).to_numpy()
    return AnnData(expression.matrix, obs=obs, var=pd.DataFrame(index=expression.var.index.astype(str)))


def _check_states(task: Task, parts: list[AnnData]) -> None:
    """Refuse to join datasets whose values do not mean the same."""
    states = [detect_scale(part.X).state for part in parts]
    if len(set(states)) > 1:
        raise SettingError(f"{task.name} joins values of different states ({', '.join(states)}). Give counts of all.")

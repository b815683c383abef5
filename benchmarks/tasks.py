"""The tasks of the benchmark: which cells, and how they are divided into folds that are the same for every method."""

import re
from collections.abc import Mapping
from typing import NamedTuple

import anndata
import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from sklearn.model_selection import GroupKFold, StratifiedKFold
from torchmetrics.functional.classification import binary_calibration_error

import sims_kit as sk

BINS = 15  # of equal width; the number that most of the calibration literature reports
TOO_FEW = 10  # a class of so few cells, or fewer, is left out (Abdelaal et al., Genome Biology 2019)


class Task(NamedTuple):
    """Datasets of the registry; of several, each is a fold, with the classes of all. A `group` is not divided."""

    datasets: tuple[str, ...]
    group: str | None = None


TASKS: Mapping[str, Task] = {
    **{name: Task((name,)) for name in ("pbmc68k", "mouse-immune", "worm-neurons")},
    "cell lines across plates": Task(("cell-lines-5cl-p1", "cell-lines-5cl-p2", "cell-lines-5cl-p3")),
    "cell lines across protocols": Task(("cell-lines-celseq2", "cell-lines-dropseq")),
    "blood across donors and conditions": Task(("kang-donors",), group="sample_id"),
    "blood to interferon and back": Task(("kang-interferon",), group="condition"),
    "blood across chemistries": Task(("pbmc-chemistries",), group="donor"),
    "islets across studies": Task(("islets-xin", "islets-wang")),
    "pancreas across species": Task(("pancreas-human-mouse",), group="Batch"),
    **{name: Task((name,)) for name in ("sim-cortex", "sim-mouse")},
    "sim-cortex across regions": Task(("sim-cortex",), group="region"),
}


class Folds:
    """The cells of a task and their fold; `query`, `reference` and `truth` of fold 0 are those of ``folds[0]``.

    `cells` has ``obs["label"]`` and, where the task has samples, ``obs["sample"]``; cells are named by their number.
    """

    def __init__(self, name: str, n_folds: int = 5, seed: int = 0):
        task, parts = TASKS[name], {dataset: sk.load(dataset) for dataset in TASKS[name].datasets}
        for dataset, cells in parts.items():
            known = cells.uns["sims_kit"]
            columns = {"label": cells.obs[known["label"]].astype(str), "group": cells.obs.get(task.group)}
            columns["sample"] = dataset if len(parts) > 1 else cells.obs.get(known.get("sample"))
            parts[dataset] = AnnData(cells.X, obs=pd.DataFrame(columns, cells.obs_names), var=cells.var[[]])
        cells = anndata.concat(parts, index_unique="-")  # on the common genes
        shared = set.intersection(*(set(part.obs["label"]) for part in parts.values()))
        sizes = cells.obs["label"][cells.obs["label"].isin(shared)].value_counts()
        cells = cells[cells.obs["label"].isin(sizes.index[sizes > TOO_FEW])].copy()
        cells.obs_names = np.arange(cells.n_obs).astype(str)
        labels = cells.obs["label"].to_numpy(str)
        if len(parts) > 1:
            self.fold_of = pd.Categorical(cells.obs["sample"], list(parts)).codes
        else:
            groups = None if task.group is None else cells.obs["group"]
            cv = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
            cv = cv if groups is None else GroupKFold(min(n_folds, groups.nunique()))
            self.fold_of = np.empty(cells.n_obs, dtype=int)
            for number, (_, asked) in enumerate(cv.split(labels, labels, groups)):
                self.fold_of[asked] = number
        self.groups = cells.obs["sample" if task.group is None else "group"]  # all missing where it has neither
        cells.obs = cells.obs.drop(columns="group").dropna(axis=1, how="all")
        self.cells, self.labels = cells, labels

    def __len__(self) -> int:
        return int(self.fold_of.max()) + 1

    def __getitem__(self, number: int) -> tuple[AnnData, AnnData, np.ndarray]:
        """Reference, query without labels, and the labels of the query."""
        asked = self.fold_of == number
        query = self.cells[asked].copy()
        del query.obs["label"]
        return self.cells[~asked].copy(), query, self.labels[asked]


def slug(name: str) -> str:
    """A name as files and the command line can carry it: ``"SIMS, default"`` is ``sims-default``."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Mean absolute difference of confidence and accuracy over bins of confidence, weighted by their cells."""
    values, hits = (torch.from_numpy(np.asarray(x, kind)) for x, kind in ((confidence, "f4"), (correct, "i8")))
    return float(binary_calibration_error(values, hits, n_bins=BINS, validate_args=False))

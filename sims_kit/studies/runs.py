"""What the studies share: methods by name, cells without anything that leaks, and runs that are kept on disk."""

import os
import re
import time
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.base import BaseEstimator

from sims_kit.calibration import UNKNOWN
from sims_kit.cells.matrix import Expression, as_csr
from sims_kit.datasets.labels import check_orientation
from sims_kit.errors import LabelError, SettingError, UnknownNameError
from sims_kit.files import written_whole
from sims_kit.progress import progress_bar
from sims_kit.studies.methods import METHODS, make_method
from sims_kit.text import class_labels

Methods = str | Sequence[str] | Mapping[str, Callable[[int], BaseEstimator]]

TEXT = dict.fromkeys(("method", "trained_on", "target", "class", "predicted"), str)  # also where it looks like numbers
PACKAGES = ("sims_kit", "torch", "scikit-learn", "numpy", "scipy")  # a run of another version is done again


def as_methods(methods: Methods) -> dict[str, Callable[[int], BaseEstimator]]:
    """Functions from a seed to an unfitted estimator by name, from these or from names of `METHODS`."""
    if isinstance(methods, Mapping):
        return dict(methods)
    names = [methods] if isinstance(methods, str) else list(methods)
    for name in set(names) - set(METHODS):
        make_method(name)  # raises
    return {name: METHODS[name] for name in names}


def as_seeds(seeds: int | Sequence[int]) -> list[int]:
    """Different whole numbers, one or more."""
    seeds = [int(seed) for seed in np.atleast_1d(seeds)]
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise SettingError(f"seeds={seeds}: give different whole numbers, 0 or more, such as (0, 1, 2).")
    return seeds


def plain_cells(cells: AnnData, label: str, name: str = "cells") -> AnnData:
    """The cells that have a label, numbered, with matrix, genes and ``obs["label"]``: nothing else that could leak."""
    if label not in cells.obs:
        raise UnknownNameError(f"obs column of {name} called", label, cells.obs.columns)
    expression = Expression(cells, name=f"The matrix of {name}")
    check_orientation(cells, label, f"The matrix of {name}")
    labels = class_labels(cells.obs[label], label)
    known = np.flatnonzero(labels.notna())
    if n_unknown := int((labels == UNKNOWN).sum()):
        found = f'{name}: {n_unknown} cells are labelled "Unknown", as rejected cells are'
        raise LabelError(f"{found}. Leave them out, or rename the class.")
    if len(known) < len(labels):
        found = f"{name}: {len(labels) - len(known):,} of {len(labels):,} cells have no {label!r}"
        warnings.warn(f"{found} and are left out.", stacklevel=4)
    obs = pd.DataFrame({"label": labels.iloc[known].to_numpy(str)}, index=known.astype(str))
    return AnnData(as_csr(cells.X)[known], obs=obs, var=pd.DataFrame(index=expression.var.index.astype(str)))


def fit_method(make: Callable[[int], BaseEstimator], seed: int, cells: AnnData) -> tuple[BaseEstimator, float]:
    """A fresh estimator, fitted on the column ``label``, and the CPU seconds that this took."""
    estimator, started = make(seed), time.process_time()
    estimator.fit(without_labels(cells), cells.obs["label"].to_numpy(str))
    return estimator, round(time.process_time() - started, 2)


def without_labels(cells: AnnData) -> AnnData:
    """The cells as an estimator sees them."""
    return AnnData(cells.X, obs=cells.obs.drop(columns="label"), var=cells.var)


def run_all(
    runs: Sequence[Mapping],
    run: Callable[..., pd.DataFrame],
    methods: Mapping[str, Callable[[int], BaseEstimator]],
    *,
    data: Sequence[AnnData],
    settings: object = None,
    folder: str | os.PathLike | None = None,
    n_jobs: int = 1,
    desc: str = "runs",
) -> pd.DataFrame:
    """The tables of many runs, joined; each run is kept in `folder` as soon as it is known.

    ``run(make, **arguments)`` gets the arguments of a run but ``method``; they are its first columns. A kept run, one
    compressed CSV written whole, is used again if its arguments, the cells in `data`, `settings`, the settings of its
    method and the versions of the packages are the same. One that is damaged fails its checksum and is run again.
    """
    estimators = [methods[one["method"]](one["seed"]) for one in runs]  # a missing package is noticed at once
    paths = [None] * len(runs)
    if folder is not None:
        contents = [
            (part.X.data, part.X.indices, part.X.indptr, [*part.var_names], part.obs.to_dict("list")) for part in data
        ]
        shared = joblib.hash([contents, settings, [*map(version, PACKAGES)]])
        for i, one in enumerate(runs):
            words = re.sub(r"[^a-z0-9.]+", "-", "-".join(map(str, one.values())).lower())[:80]
            paths[i] = Path(folder, f"{words}-{joblib.hash([shared, dict(one), estimators[i]])[:10]}.csv.gz")
    tables = [path and _kept(path) for path in paths]
    jobs = (
        joblib.delayed(_run)(i, run, methods[one["method"]], one, paths[i])
        for i, one in enumerate(runs)
        if tables[i] is None
    )
    done = sum(table is not None for table in tables)
    with progress_bar(total=len(runs), initial=done, desc=desc, unit="run", leave=True) as bar:
        for i, table in joblib.Parallel(n_jobs, return_as="generator_unordered")(jobs):
            tables[i] = table
            bar.update()
    return pd.concat(tables, ignore_index=True)


def _run(i: int, run: Callable, make: Callable, arguments: Mapping, path: Path | None) -> tuple[int, pd.DataFrame]:
    table = run(make, **{name: value for name, value in arguments.items() if name != "method"})
    table = pd.concat([pd.DataFrame(dict(arguments), index=table.index), table], axis=1)
    if path:
        with written_whole(path) as part:
            table.to_csv(part, index=False, compression="gzip")
        table = _kept(path)  # the same types as a later call will see
    return i, table


def _kept(path: Path) -> pd.DataFrame | None:
    """The table of an earlier run; None if there is none, or if its file is damaged."""
    options = dict(keep_default_na=False, na_values=[""], float_precision="round_trip", dtype=TEXT)
    try:
        return pd.read_csv(path, compression="gzip", **options) if path.exists() else None
    except (OSError, EOFError, ValueError, zlib.error) as error:
        warnings.warn(f"{path} is damaged ({error}), so this run is done again.", stacklevel=3)
        return None

"""The skeleton of the studies: train each method on the cells of a run, ask it for others, keep what it answers."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from types import SimpleNamespace

import joblib
import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.base import BaseEstimator

from sims_kit.calibration import UNKNOWN
from sims_kit.cells.matrix import Expression
from sims_kit.datasets.labels import check_orientation
from sims_kit.errors import LabelError, SettingError
from sims_kit.estimator import obs_values
from sims_kit.progress import progress_bar
from sims_kit.studies.methods import METHODS, known
from sims_kit.text import class_labels, warn

Methods = str | Sequence[str] | Mapping[str, Callable[[int], BaseEstimator]]


class Tables(SimpleNamespace):
    """What a study found, as tables by name: ``found.scores``."""

    def __repr__(self) -> str:
        return f"Tables({', '.join(vars(self))})"


def run_all(
    parts: Callable[..., tuple[AnnData, Mapping[str, AnnData]]],
    methods: Methods,
    cases: Sequence[Mapping],
    seeds: int | Sequence[int],
    *,
    data: Sequence[AnnData],
    folder: str | os.PathLike | None,
    n_jobs: int,
    desc: str,
    settings: object = None,
    confidence: bool = False,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The predictions and the epochs of every method, with the method, the case and the seed of each; see `_run`.

    ``parts(**case, seed=seed)`` gives the training cells and, by name, the targets. With a `folder`, joblib keeps each
    run, and uses it again if the estimator, its case and seed, the cells in `data`, `settings` and the versions of the
    packages are the same. A damaged one is noticed and run again.
    """
    if not isinstance(methods, Mapping):
        methods = {name: METHODS[name] for name in known(methods)}
    seeds = [int(seed) for seed in np.atleast_1d(seeds)]
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise SettingError(f"seeds={seeds}: give different whole numbers, 0 or more, such as (0, 1, 2).")
    for make in methods.values():
        make(seeds[0])  # a missing package is noticed at once
    key = [desc, settings, [*map(version, ("sims_kit", "torch", "scikit-learn", "numpy", "scipy"))]]
    for part in data if folder else ():
        key += [part.X.data, part.X.indices, part.X.indptr, [*part.var_names], part.obs.to_dict("list")]
    kept = joblib.Memory(folder, verbose=0, compress=True).cache(_run, ignore=["parts"])  # compressed: has a checksum
    key = joblib.hash(key)
    runs = [{"method": name, **case, "seed": seed} for seed in seeds for case in cases for name in methods]
    jobs = (joblib.delayed(kept)(parts, methods[one["method"]](one["seed"]), one, confidence, key) for one in runs)
    done = joblib.Parallel(n_jobs, return_as="generator")(jobs)
    tables = progress_bar(done, total=len(runs), desc=desc, unit="run", leave=True)
    predictions, epochs = zip(*tables, strict=True)
    epochs = [table for table in epochs if table is not None] or [pd.DataFrame(columns=["epoch"])]
    return pd.concat(predictions, ignore_index=True), pd.concat(epochs, ignore_index=True)


def _run(parts: Callable, estimator: BaseEstimator, arguments: dict, confidence: bool, key: str | None) -> tuple:
    """Train once and label the cells of every target; `key` stands for all that is common to the runs.

    The first table has the number of each ``cell`` of a ``target``, its ``class``, whether that was ``seen`` in
    training, what was ``predicted``, if asked with which ``confidence`` (NaN where the method has none), and CPU
    seconds. The second one is the history of a SIMS model, None for other methods.
    """
    training, targets = parts(**{name: value for name, value in arguments.items() if name != "method"})
    labels, started = training.obs["label"].to_numpy(str), time.process_time()
    estimator.fit(_without_labels(training), labels)
    seconds, tables = round(time.process_time() - started, 2), []
    facts = {"n_training_cells": training.n_obs, "fit_cpu_seconds": seconds}
    for target, cells in targets.items():
        query, truth, started = _without_labels(cells), cells.obs["label"].to_numpy(str), time.process_time()
        found = arguments | {"target": target, "cell": cells.obs_names.astype(int), "class": truth}
        found |= {"seen": np.isin(truth, labels), "predicted": np.asarray(estimator.predict(query), dtype=str)}
        if confidence:
            has_any = hasattr(estimator, "predict_proba")
            found["confidence"] = estimator.predict_proba(query).max(axis=1).astype(float) if has_any else np.nan
        found |= facts | {"predict_cpu_seconds": round(time.process_time() - started, 2)}
        tables.append(pd.DataFrame(found))
    history = getattr(getattr(estimator, "model_", None), "history", None)
    if history is not None:
        history = history.reset_index().assign(**arguments, n_training_cells=training.n_obs)
        history["cpu_seconds"] = (seconds * (history["epoch"] + 1) / len(history)).round(2)
    return pd.concat(tables, ignore_index=True), history


def _without_labels(cells: AnnData) -> AnnData:
    return AnnData(cells.X, obs=cells.obs.drop(columns="label"), var=cells.var)


def plain_cells(cells: AnnData, label: str, name: str = "cells") -> AnnData:
    """The cells that have a label, numbered, with matrix, genes and ``obs["label"]``: nothing else that could leak."""
    check_orientation(cells, label, f"The matrix of {name}")
    labels = class_labels(obs_values(cells, label), label)
    expression, places = Expression(cells, name=f"The matrix of {name}"), np.flatnonzero(labels.notna())
    if n_unknown := int((labels == UNKNOWN).sum()):
        found = f'{name}: {n_unknown} cells are labelled "Unknown", as rejected cells are'
        raise LabelError(f"{found}. Leave them out, or rename the class.")
    if n_without := len(labels) - len(places):
        warn(f"{name}: {n_without:,} of {len(labels):,} cells have no {label!r}; left out.")
    obs = pd.DataFrame({"label": labels.iloc[places].to_numpy(str)}, index=places.astype(str))
    return AnnData(expression.raw_rows(places), obs=obs, var=pd.DataFrame(index=expression.genes.index.astype(str)))

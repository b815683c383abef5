"""Comparison: every method on the same folds, scores with intervals, differences paired by cell (thesis table 0.2)."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.model_selection import GroupKFold, StratifiedKFold

from sims_kit.errors import UnknownNameError
from sims_kit.estimator import as_cells
from sims_kit.studies.resampling import LABELLED_SCORES, difference, intervals, resample, score_labelled
from sims_kit.studies.runs import Methods, as_methods, fit_method, plain_cells, run_all, without_labels


@dataclass(frozen=True)
class Comparison:
    """What a comparison found, as tables.

    Attributes
    ----------
    scores
        By ``method``, of the predictions of all folds together: ``accuracy``, ``macro_f1``, ``median_f1`` (0 to 1, of
        the cells with a label) and ``unlabelled_percent``, each with ``_low`` and ``_high``, its 95 % interval over
        cells; ``n_cells``, ``n_classes``; mean ``fit_cpu_seconds`` and ``predict_cpu_seconds`` of a fold.
    differences
        The first method minus each other one, paired by cell: ``method``, ``score``, ``difference``, ``low``, ``high``.
    predictions
        By ``method``, ``fold`` and ``cell`` (position in `X`): ``class``, ``predicted``, and ``confidence``, the
        largest probability (NaN where the method has none).
    """

    scores: pd.DataFrame
    differences: pd.DataFrame
    predictions: pd.DataFrame


def compare(
    methods: Methods,
    X,
    y,
    groups: Sequence | str | None = None,
    *,
    cv=5,
    seed: int = 0,
    n_bootstrap: int = 1000,
    folder: str | os.PathLike | None = None,
    n_jobs: int = 1,
) -> Comparison:
    """Compare methods on the same folds, on cells that they have not seen (Abdelaal et al., Genome Biology 2019).

    Parameters
    ----------
    methods
        Names of `METHODS`, or functions from a seed to an unfitted estimator, by name.
    X, y, groups
        Cells x genes, counts or log-normalised, and the label and the donor or sample of each cell; with AnnData also
        the `obs` columns of these. No group is in training and test of one fold.
    cv
        Number of folds, stratified by label or made of groups; or a splitter of scikit-learn.
    seed
        Of the folds and the methods.
    n_bootstrap, folder, n_jobs
        As in `ablation`.

    Examples
    --------
    >>> found = compare(["SIMS, one network", "linear SVM"], cells, "cell_type", groups="donor")
    >>> found.scores[["method", "accuracy", "accuracy_low", "accuracy_high"]]
    """
    methods = as_methods(methods)
    cells = as_cells(X)
    obs = pd.DataFrame(index=cells.obs_names)
    for name, values in (("label", y), ("group", groups)):
        if isinstance(values, str) and values not in cells.obs:
            raise UnknownNameError("obs column", values, cells.obs.columns)
        obs[name] = cells.obs[values] if isinstance(values, str) else None if values is None else np.asarray(values)
    cells = plain_cells(AnnData(cells.X, obs=obs, var=cells.var), "label")
    if groups is not None:
        cells.obs["sample"] = obs["group"].iloc[cells.obs_names.astype(int)].to_numpy(str)
    if isinstance(cv, int):
        cv = StratifiedKFold(cv, shuffle=True, random_state=seed) if groups is None else GroupKFold(cv)
    folds = list(cv.split(cells.obs, cells.obs["label"], cells.obs.get("sample")))
    runs = [{"method": name, "fold": fold, "seed": seed} for fold in range(len(folds)) for name in methods]
    run, kept = partial(_run, cells=cells, folds=folds), dict(folder=folder, n_jobs=n_jobs)
    table = run_all(runs, run, methods, data=[cells], settings=folds, desc="comparison", **kept).drop(columns="seed")
    drawn = resample(table, ["method"], n_bootstrap, score=score_labelled)
    seconds = ["fit_cpu_seconds", "predict_cpu_seconds"]
    means = table.groupby(["method", "fold"])[seconds].first().groupby("method").mean()
    sizes = {"n_cells": table["cell"].nunique(), "n_classes": table["class"].nunique()}
    first, *others = [name for (name,) in drawn]
    differences = [
        {"method": name, "score": score} | difference(drawn[first,][score], drawn[name,][score])
        for name in others
        for score in LABELLED_SCORES
    ]
    return Comparison(
        pd.DataFrame([{"method": name} | sizes | intervals(drawn[name,]) | {**means.loc[name]} for (name,) in drawn]),
        pd.DataFrame(differences, columns=["method", "score", "difference", "low", "high"]),
        table.drop(columns=seconds),
    )


def _run(make, fold: int, seed: int, *, cells: AnnData, folds: list) -> pd.DataFrame:
    """Train on all folds but one, and predict that one."""
    training, asked = folds[fold]
    estimator, fit_seconds = fit_method(make, seed, cells[training])
    query, started = without_labels(cells[asked]), time.process_time()
    predicted, confidence = estimator.predict(query), np.nan
    if hasattr(estimator, "predict_proba"):
        confidence = estimator.predict_proba(query).max(axis=1).astype(float)
    found = {"cell": cells.obs_names[asked].astype(int), "class": cells.obs["label"].to_numpy(str)[asked]}
    found |= {"predicted": np.asarray(predicted, dtype=str), "confidence": confidence, "fit_cpu_seconds": fit_seconds}
    return pd.DataFrame(found).assign(predict_cpu_seconds=round(time.process_time() - started, 2))

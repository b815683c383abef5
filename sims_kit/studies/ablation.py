"""Ablation of the training set: how few labelled cells are enough (thesis section 0.3.5)."""

import os
from collections.abc import Sequence
from itertools import product

import numpy as np
import pandas as pd
from anndata import AnnData

from sims_kit.cells.splits import stratified_split
from sims_kit.errors import SettingError
from sims_kit.studies.resampling import differences, intervals, mean_over_seeds, resample
from sims_kit.studies.runs import Methods, Tables, plain_cells, run_all

EPOCH_METRICS = [
    *("train_loss", "train_accuracy_weighted", "train_median_f1"),
    *("val_loss", "val_accuracy_weighted", "val_balanced_accuracy", "val_f1_macro", "val_median_f1"),
]
RUN = ["method", "proportion", "seed"]


def ablation(
    cells: AnnData,
    label: str,
    *,
    proportions: Sequence[float] = (0.01, 0.03, 0.06, 0.1, 0.3, 1.0),
    methods: Methods = ("SIMS, default", "linear SVM"),
    seeds: int | Sequence[int] = (0, 1, 2),
    n_bootstrap: int = 1000,
    folder: str | os.PathLike | None = None,
    n_jobs: int = 1,
) -> Tables:
    """Train on smaller and smaller parts of the training cells, and test on the same cells (thesis section 0.3.5).

    A fifth of each class is set aside once (the thesis has a test set for each proportion), so that differences are due
    to the training cells alone and can be paired by cell. Training cells are drawn class by class, at least one of
    each. For one seed, a smaller set is part of each larger one.

    `cells` are cells x genes, counts or log-normalised, `label` is the `obs` column with their labels. `proportions` of
    the training cells are above 0 and up to 1, from which losses are measured. `methods` are names of `METHODS`, or
    functions from a seed to an unfitted estimator, by name. A seed of `seeds` decides which cells are drawn, and
    whatever is random in the method. Cells and seeds are drawn `n_bootstrap` times for each 95 % interval, the columns
    ``_low`` and ``_high``. `folder` keeps runs, so that a stopped study goes on; `n_jobs` are processes.

    Tables are ``scores``, by method and proportion, means over the seeds of ``balanced_accuracy``,
    ``weighted_accuracy``, ``aggregated_f1``, ``median_f1`` (0 to 1) and ``unknown_percent``; of ``n_classes_raised``
    classes the share is less than half a cell. ``runs``, the same by seed. ``losses``, all training cells minus the
    proportion, paired by seed and test cell. ``epochs`` of SIMS: losses, scores and ``cpu_seconds`` since the start.
    ``predictions``, the ``class`` of each test ``cell`` and the one ``predicted``.

    >>> found = ablation(cells, "cell_type", proportions=(0.1, 0.3, 1), methods="linear SVM", seeds=0)
    >>> found.scores[["proportion", "median_f1", "median_f1_low", "median_f1_high"]]
    """
    proportions = sorted({float(proportion) for proportion in proportions})
    if not proportions or proportions[0] <= 0 or proportions[-1] != 1:
        raise SettingError(f"proportions={proportions}: give numbers above 0 and up to 1, which must be among them.")
    cells = plain_cells(cells, label)
    split = stratified_split(cells.obs["label"], validation=0, test=0.2, seed=0)
    pool = cells.obs["label"].iloc[split.train]
    sizes = pool.value_counts()

    def parts(proportion: float, seed: int) -> tuple:
        return cells[split.train[_drawn(pool, proportion, seed)]], {"": cells[split.test]}

    cases = [{"proportion": proportion} for proportion in proportions]
    kept = dict(data=[cells], folder=folder, n_jobs=n_jobs, desc="ablation")
    table, epochs = run_all(parts, methods, cases, seeds, **kept)
    predictions = table[[*RUN, "cell", "class", "predicted"]]
    facts = table.groupby(RUN, sort=False)[["n_training_cells", "fit_cpu_seconds"]].first().reset_index()
    facts.insert(4, "n_classes_raised", [int((sizes * share < 0.5).sum()) for share in facts["proportion"]])
    drawn = resample(predictions, RUN, n_bootstrap)
    means = mean_over_seeds(drawn)
    means = {key: means[key] for key in product(table["method"].unique(), proportions)}
    of_all = facts.drop(columns="seed").groupby(RUN[:2]).mean().reset_index()
    scores = of_all.merge(intervals(means, RUN[:2]), how="right")
    scores = scores.astype({"n_training_cells": int, "n_classes_raised": int})
    losses = differences({key: (means[key[0], 1.0], means[key]) for key in means}, RUN[:2])
    return Tables(
        scores=scores,
        losses=scores[[*RUN[:2], "n_training_cells"]].merge(losses),
        runs=facts.merge(intervals(drawn, RUN)),
        epochs=epochs.reindex(columns=[*RUN, "n_training_cells", "epoch", *EPOCH_METRICS, "cpu_seconds"]),
        predictions=predictions,
    )


def _drawn(pool: pd.Series, proportion: float, seed: int) -> np.ndarray:
    """Positions in the pool: of each class its proportion or one cell, nested for one seed."""
    shuffled = np.random.default_rng(seed).permutation(len(pool))
    labels = pool.iloc[shuffled]
    wanted = np.floor(labels.value_counts() * proportion + 0.5).clip(lower=1)  # of each class
    rank = labels.groupby(labels, sort=False).cumcount().to_numpy()  # 0, 1, ... within each class
    return np.sort(shuffled[rank < wanted[labels].to_numpy()])

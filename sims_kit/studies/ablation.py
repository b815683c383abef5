"""Ablation of the training set: how few labelled cells are enough (thesis section 0.3.5)."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from anndata import AnnData

from sims_kit.cells.splits import Split, stratified_split
from sims_kit.errors import DataError, LabelError, SettingError, UnknownNameError
from sims_kit.studies.resampling import TRANSFER_SCORES, difference, intervals, mean_over_seeds, resample
from sims_kit.studies.runs import Methods, as_methods, as_seeds, fit_method, plain_cells, run_all, without_labels

EPOCH_METRICS = (
    *("train_loss", "train_accuracy_weighted", "train_median_f1"),
    *("val_loss", "val_accuracy_weighted", "val_balanced_accuracy", "val_f1_macro", "val_median_f1"),
)
RUN = ["method", "proportion", "seed"]
FACTS = ["n_training_cells", "n_classes_raised", "fit_cpu_seconds"]
SCORES = (*TRANSFER_SCORES, "unknown_percent")


@dataclass(frozen=True)
class Ablation:
    """What an ablation found, as tables; `runs` has a row per seed, `scores` their means with 95 % intervals.

    Attributes
    ----------
    scores, runs
        By ``method`` and ``proportion``, on the fixed test cells: ``balanced_accuracy``, ``weighted_accuracy``,
        ``aggregated_f1``, ``median_f1`` (0 to 1) and ``unknown_percent``, each with ``_low`` and ``_high``;
        ``n_training_cells``, ``fit_cpu_seconds``, and ``n_classes_raised``, the classes that are not stratified.
    losses
        All training cells minus the proportion, for each score: ``difference``, ``low``, ``high``, paired by seed and
        test cell.
    epochs
        Training and validation loss and scores of each run of SIMS by ``epoch``, and ``cpu_seconds`` since the start.
    predictions
        The ``class`` of each test ``cell``, and the one ``predicted`` in each run.
    """

    scores: pd.DataFrame
    losses: pd.DataFrame
    runs: pd.DataFrame
    epochs: pd.DataFrame
    predictions: pd.DataFrame


def ablation(
    cells: AnnData,
    label: str,
    *,
    proportions: Sequence[float] = (0.01, 0.03, 0.06, 0.1, 0.3, 1.0),
    methods: Methods = ("SIMS, default", "linear SVM"),
    seeds: int | Sequence[int] = (0, 1, 2),
    test: float = 0.2,
    n_bootstrap: int = 1000,
    folder: str | os.PathLike | None = None,
    n_jobs: int = 1,
) -> Ablation:
    """Train on smaller and smaller parts of the training cells, and test on the same cells (thesis section 0.3.5).

    The test cells are set aside once, where the thesis has a test set for each proportion. So differences are due to
    the training cells alone and can be paired by cell. Training cells are drawn class by class; a class whose share is
    less than half a cell keeps one cell. For one seed, a smaller set is part of each larger one.

    Parameters
    ----------
    cells, label
        Cells x genes, counts or log-normalised, and the `obs` column with the labels.
    proportions
        Of the training cells, above 0 to 1; losses are measured from 1.
    methods
        Names of `METHODS`, or functions from a seed to an unfitted estimator, by name.
    seeds
        Each decides which cells are drawn, and whatever is random in the method.
    test
        Share of all cells, stratified by class.
    n_bootstrap
        Draws of cells and seeds behind each interval.
    folder, n_jobs
        Where runs are kept, so that a stopped study goes on; processes at the same time.

    Examples
    --------
    >>> found = ablation(cells, "cell_type", proportions=(0.1, 0.3, 1), methods="linear SVM", seeds=0)
    >>> found.scores[["proportion", "median_f1", "median_f1_low", "median_f1_high"]]
    """
    proportions = sorted({float(proportion) for proportion in proportions})
    if not proportions or proportions[0] <= 0 or proportions[-1] != 1:
        raise SettingError(f"proportions={proportions}: give numbers above 0 and up to 1, which must be among them.")
    if not 0 < test < 1 or n_bootstrap < 1:
        raise SettingError(f"test={test}, n_bootstrap={n_bootstrap}: give a share between 0 and 1, and 1 or more.")
    methods, seeds = as_methods(methods), as_seeds(seeds)
    cells = plain_cells(cells, label)
    split = stratified_split(cells.obs["label"], validation=0, test=test, seed=0)
    _check_sizes(cells.obs["label"].iloc[split.train], proportions)
    keys = [(method, proportion, seed) for seed in seeds for proportion in proportions for method in methods]
    runs = [dict(zip(RUN, key, strict=True)) for key in keys]
    run, kept = partial(_run, cells=cells, split=split), dict(folder=folder, n_jobs=n_jobs)
    table = run_all(runs, run, methods, data=[cells], settings=test, desc="ablation", **kept)
    return _summarised(table, n_bootstrap)


def smallest_within(
    losses: pd.DataFrame, tolerance: float = 0.02, *, score: str = "median_f1", sure: bool = False
) -> pd.DataFrame:
    """The smallest training set of each method from which on no set loses more than a tolerance, in points.

    It takes ``ablation(...).losses``. With `sure` the upper ends of the intervals count, otherwise the means.

    Examples
    --------
    >>> smallest_within(found.losses, 0.02)[["method", "proportion", "difference"]]
    """
    if score not in set(losses["score"]):
        raise UnknownNameError("score", score, losses["score"].unique())
    losses = losses[losses["score"] == score].sort_values("proportion", ascending=False)
    losses = losses.assign(within=(losses["high" if sure else "difference"] <= tolerance) | (losses["proportion"] == 1))
    enough = losses[losses.groupby("method")["within"].cummin()]
    found = enough.groupby("method", sort=False).tail(1).drop(columns="within")
    return found.sort_index().reset_index(drop=True)


def convergence(
    epochs: pd.DataFrame, tolerance: float = 0.02, *, score: str = "val_accuracy_weighted", last: int = 10
) -> pd.DataFrame:
    """When each training comes close to where it ends (thesis section 0.3.5: fewer cells, more epochs).

    It takes ``ablation(...).epochs`` and finds the first epoch whose score is no more than the tolerance below the mean
    of the last ten, the thesis's number, or of the last fifth of a shorter training. Gives ``epochs`` and
    ``cpu_seconds`` to convergence, ``n_epochs`` of the whole training, and ``end``, the score there.

    Examples
    --------
    >>> convergence(found.epochs).groupby("n_training_cells")["epochs"].mean()
    """
    if not len(epochs):
        raise DataError("There are no epochs: none of the methods logs them. Run the ablation with SIMS.")
    if score not in epochs:
        raise UnknownNameError("column of the epochs", score, epochs.columns)
    rows = []
    for key, table in epochs.groupby(RUN, sort=False):
        table = table.dropna(subset=[score]).sort_values("epoch")
        end = table[score].tail(min(last, max(1, len(table) // 5))).mean()
        first = table[table[score] >= end - tolerance].iloc[0]
        n_epochs = int(table["epoch"].max()) + 1
        rows.append(
            (*key, int(first["n_training_cells"]), int(first["epoch"]) + 1, first["cpu_seconds"], n_epochs, end)
        )
    return pd.DataFrame(rows, columns=[*RUN, "n_training_cells", "epochs", "cpu_seconds", "n_epochs", "end"])


def _check_sizes(pool: pd.Series, proportions: Sequence[float]) -> None:
    """Refuse what cannot be trained on, and say which classes are not stratified, before anything is run."""
    sizes = pool.value_counts()
    if len(sizes) < 2:
        raise LabelError(f"Found {len(sizes)} class, {list(sizes.index)}; an ablation needs two or more.")
    if sizes.max() * proportions[0] < 1.5:
        raise SettingError(
            f"A proportion of {proportions[0]:g} leaves one cell of each class, and none to validate on. "
            f"Give {1.5 / sizes.max():.2g} or more: {len(pool):,} training cells, {len(sizes)} classes."
        )
    for proportion in proportions:
        if len(raised := sorted(sizes.index[sizes * proportion < 0.5])):
            found = f"At proportion {proportion:g}, {len(raised)} of {len(sizes)} classes are not stratified"
            names = ", ".join(raised)
            warnings.warn(f"{found}: they keep one cell where their share is less than half ({names}).", stacklevel=3)


def _drawn(pool: pd.Series, proportion: float, seed: int) -> tuple[np.ndarray, int]:
    """Positions in the pool, nested for one seed, and the number of classes that are not stratified."""
    shuffled = np.random.default_rng(seed).permutation(len(pool))
    labels = pool.iloc[shuffled]
    wanted = np.floor(labels.value_counts() * proportion + 0.5).astype(int)  # of each class
    rank = labels.groupby(labels, sort=False).cumcount().to_numpy()  # 0, 1, ... within each class
    return np.sort(shuffled[rank < wanted.clip(lower=1)[labels].to_numpy()]), int((wanted < 1).sum())


def _run(make, proportion: float, seed: int, *, cells: AnnData, split: Split) -> pd.DataFrame:
    """Train once; the test cells as rows with a ``cell``, and the epochs as rows with an ``epoch``."""
    positions, n_raised = _drawn(cells.obs["label"].iloc[split.train], proportion, seed)
    estimator, seconds = fit_method(make, seed, cells[split.train[positions]])
    truth = cells.obs["label"].to_numpy(str)[split.test]
    predicted = np.asarray(estimator.predict(without_labels(cells[split.test])), dtype=str)
    table = pd.DataFrame({"cell": split.test, "class": truth, "predicted": predicted})
    history = getattr(
        getattr(estimator, "model_", None), "history", pd.DataFrame(index=pd.Index([], float, name="epoch"))
    )
    epochs = history.reindex(columns=list(EPOCH_METRICS)).reset_index()
    epochs["cpu_seconds"] = (seconds * (epochs["epoch"] + 1) / max(len(epochs), 1)).round(2)
    facts = dict(zip(FACTS, (len(positions), n_raised, seconds), strict=True))
    return pd.concat([table, epochs.astype(float)], ignore_index=True).assign(**facts)


def _summarised(table: pd.DataFrame, n_bootstrap: int) -> Ablation:
    """All tables, from the rows of all runs."""
    of_epochs = table["epoch"].notna()
    epochs = table.loc[of_epochs, [*RUN, "n_training_cells", "epoch", *EPOCH_METRICS, "cpu_seconds"]]
    predictions = table.loc[~of_epochs, [*RUN, "cell", "class", "predicted"]].astype({"cell": int})
    predictions = predictions.reset_index(drop=True)
    facts = table.groupby(RUN)[FACTS].first()
    drawn = resample(predictions, RUN, n_bootstrap)
    drawn = {key: {score: scores[score] for score in SCORES} for key, scores in drawn.items()}
    runs = [dict(zip(RUN, key, strict=True)) | {**facts.loc[key]} | intervals(drawn[key]) for key in drawn]
    means, methods = mean_over_seeds(drawn), list(table["method"].unique())
    scores, losses = [], []
    for method, proportion in sorted(means, key=lambda key: (methods.index(key[0]), key[1])):
        values, full = means[method, proportion], means[method, 1.0]
        named = {"method": method, "proportion": proportion, **facts.loc[method, proportion].mean()}
        scores.append(named | intervals(values))
        row = {"method": method, "proportion": proportion, "n_training_cells": int(named["n_training_cells"])}
        losses += [row | {"score": name} | difference(full[name], values[name]) for name in TRANSFER_SCORES]
    whole = {"n_training_cells": int, "n_classes_raised": int}
    return Ablation(
        pd.DataFrame(scores).astype(whole),
        pd.DataFrame(losses),
        pd.DataFrame(runs).astype(whole),
        epochs.astype({"epoch": int}).reset_index(drop=True),
        predictions,
    )

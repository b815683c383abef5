"""Ablation of the training set: how few labelled cells are enough (thesis section 0.3.5)."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from sims_kit.cells.splits import Split, stratified_split
from sims_kit.errors import LabelError, SettingError
from sims_kit.model.classifier import SIMSClassifier
from sims_kit.studies.adaptor import Peer
from sims_kit.studies.counts import TRANSFER_SCORES, called_classes, score_counts, with_intervals
from sims_kit.studies.runs import as_peers, as_seeds, fingerprint, fit_seconds, plain_cells, sweep_methods

SCORES = (*TRANSFER_SCORES, "unknown_percent")
EPOCH_METRICS = (
    *("train_loss", "train_accuracy_weighted", "train_median_f1"),
    *("val_loss", "val_accuracy_weighted", "val_balanced_accuracy", "val_f1_macro", "val_median_f1"),
)
RUN = ["method", "proportion", "seed"]
FACTS = ["n_training_cells", "n_classes_raised", "fit_cpu_seconds"]
TEST_SPLIT = 0  # seed of the one split; the seeds of the study decide the training cells


@dataclass(frozen=True)
class Ablation:
    """What an ablation found, as tables.

    Attributes
    ----------
    scores
        One row per ``method`` and ``proportion``: on the fixed test cells, the mean over the seeds of
        ``balanced_accuracy``, ``weighted_accuracy``, ``aggregated_f1``, ``median_f1`` (0 to 1) and
        ``unknown_percent``, each with ``_low`` and ``_high``, its 95 % interval; ``n_training_cells``, mean
        ``fit_cpu_seconds``, and ``n_classes_raised``, the classes that are not stratified.
    losses
        All training cells minus the proportion, for each score: ``difference``, ``low``, ``high``, paired by seed and
        test cell.
    runs
        As `scores`, for each ``seed``.
    epochs
        One row per ``method``, ``proportion``, ``seed`` and ``epoch``: training and validation loss and scores, of the
        methods that log them, which is SIMS; ``cpu_seconds`` since the start, the whole spread evenly over the epochs.
    calls
        One row per ``method``, ``proportion``, ``seed`` and test ``cell``: its ``class`` and what it was ``called``.
    """

    scores: pd.DataFrame
    losses: pd.DataFrame
    runs: pd.DataFrame
    epochs: pd.DataFrame
    calls: pd.DataFrame


def ablation(
    cells: AnnData,
    label: str,
    *,
    proportions: Sequence[float] = (0.01, 0.03, 0.06, 0.1, 0.3, 1.0),
    methods: str | Peer | Sequence[str | Peer] = ("SIMS, default", "linear SVM"),
    seeds: int | Sequence[int] = (0, 1, 2),
    test: float = 0.2,
    n_bootstrap: int = 1000,
    folder: str | os.PathLike | None = None,
    n_jobs: int = 1,
    part: tuple[int, int] = (0, 1),
) -> Ablation:
    """Train on smaller and smaller parts of the training cells, and test on the same cells (thesis section 0.3.5).

    The test cells are set aside once, and are the same for every proportion, seed and method. In the thesis each
    proportion is a train, validation and test split of its own, so that fewer cells to learn from also means fewer,
    other cells to be judged by: the score of a few hundred cells is uncertain by several points, rare classes have no
    cell in them, and a difference between two proportions may be one between their test cells. With fixed ones,
    differences are due to the training cells alone and can be paired by cell.

    Training cells are drawn class by class, each class in its proportion, rounded. A class whose proportion is less
    than half a cell keeps one, so that every classifier knows every class; it is then more frequent than it should
    be, which a warning and the column ``n_classes_raised`` tell. For one seed, a smaller set is part of each larger
    one. SIMS takes its validation cells, a tenth, from these training cells.

    Parameters
    ----------
    cells
        Cells x genes, counts or log-normalised.
    label
        The `obs` column with the labels.
    proportions
        Of the training cells, above 0 to 1; 1 must be among them, as losses are measured from there.
    methods
        Names of `sims_kit.studies.PEERS`, or objects that follow `Peer`.
    seeds
        Each decides which cells are drawn, and whatever is random in the method.
    test
        Share of all cells, stratified by class.
    n_bootstrap
        Draws behind each interval, of test cells and of seeds: the same for all proportions and methods. With three
        seeds or fewer, the part of the seeds is underestimated.
    folder
        Where runs are kept, so that a restart goes on; None keeps nothing.
    n_jobs, part
        Processes at the same time; ``(i, n)`` for the i-th job of an array of n. See `sims_kit.studies.sweep`.

    Returns
    -------
    Ablation
        `sims_kit.plotting.ablation` draws its `epochs`, `sims_kit.plotting.ablation_scores` its `scores`.

    Warns
    -----
    UserWarning
        If cells without a label are left out, or classes are not stratified.

    Raises
    ------
    UnknownNameError
        If there is no such column or method.
    SettingError
        If a setting is out of range, or a proportion leaves no class with two cells.
    LabelError
        If there are fewer than two classes.
    PeerError
        If a method cannot take these cells. Runs that are done stay in `folder`.
    """
    proportions = _checked_proportions(proportions)
    if not 0 < test < 1 or n_bootstrap < 1:
        raise SettingError(f"test={test}, n_bootstrap={n_bootstrap}: give a share between 0 and 1, and 1 or more.")
    peers, seeds = as_peers(methods), as_seeds(seeds)
    cells = plain_cells(cells, label)
    split = stratified_split(cells.obs["label"], validation=0, test=test, seed=TEST_SPLIT)
    pool = cells.obs["label"].iloc[split.train]
    _check_sizes(pool, proportions)
    runs = [
        {"method": method, "proportion": proportion, "seed": seed}
        for seed in seeds
        for proportion in proportions
        for method in peers
    ]
    rows = sweep_methods(
        peers,
        runs,
        partial(_run, cells=cells, split=split),
        folder,
        data=fingerprint([cells], test),
        n_jobs=n_jobs,
        part=part,
        desc="ablation",
        text=["class", "called"],
    )
    return _summarised(rows, n_bootstrap)


def _checked_proportions(proportions: Sequence[float]) -> list[float]:
    proportions = sorted({float(proportion) for proportion in proportions})
    if not proportions or proportions[0] <= 0 or proportions[-1] != 1:
        raise SettingError(f"proportions={proportions}: give numbers above 0 and up to 1, which must be among them.")
    return proportions


def _check_sizes(pool: pd.Series, proportions: Sequence[float]) -> None:
    """Refuse what cannot be trained on, and say which classes are not stratified, before anything is run."""
    sizes = pool.value_counts()
    if len(sizes) < 2:
        raise LabelError(f"Found one class, {sizes.index[0]!r}; an ablation needs two or more. Check the label column.")
    for proportion in proportions:
        wanted, raised = _sizes(sizes, proportion)
        if wanted.max() < 2:
            least = 1.5 / sizes.max()
            raise SettingError(
                f"A proportion of {proportion:g} leaves one cell of each class, and none to validate on. "
                f"Give {least:.2g} or more: {len(pool):,} training cells, {len(sizes)} classes."
            )
        if raised.any():
            names = ", ".join(sorted(sizes.index[raised]))
            warnings.warn(
                f"At proportion {proportion:g}, {raised.sum()} of {len(sizes)} classes are not stratified: they keep "
                f"one cell where their share is less than half a cell ({names}).",
                stacklevel=3,
            )


def _sizes(sizes: pd.Series, proportion: float) -> tuple[pd.Series, pd.Series]:
    """Cells of each class in a part of the training cells, and whether that is more than its share."""
    rounded = np.floor(sizes * proportion + 0.5).astype(int)
    return rounded.clip(lower=1), rounded < 1


def _drawn(pool: pd.Series, proportion: float, seed: int) -> tuple[np.ndarray, int]:
    """Positions in the pool, and the number of classes that are not stratified; nested for one seed."""
    shuffled = np.random.default_rng(seed).permutation(len(pool))
    labels = pool.iloc[shuffled]
    wanted, raised = _sizes(labels.value_counts(), proportion)
    rank = labels.groupby(labels, sort=False).cumcount().to_numpy()  # 0, 1, ... within each class
    return np.sort(shuffled[rank < wanted[labels].to_numpy()]), int(raised.sum())


def _run(peer: Peer, proportion: float, seed: int, *, cells: AnnData, split: Split) -> pd.DataFrame:
    """Train once; the test cells as rows with a ``cell``, and the epochs as rows with an ``epoch``."""
    positions, n_raised = _drawn(cells.obs["label"].iloc[split.train], proportion, seed)
    reference = cells[split.train[positions]].copy()
    seconds = fit_seconds(peer, reference, seed)
    asked = cells[split.test]
    called = peer.predict(AnnData(asked.X, obs=asked.obs[[]], var=asked.var)).labels
    calls = pd.DataFrame({"cell": split.test, "class": asked.obs["label"].to_numpy(), "called": called.astype(str)})
    facts = {"n_training_cells": reference.n_obs, "n_classes_raised": n_raised, "fit_cpu_seconds": seconds}
    return pd.concat([calls, _epochs(peer, seconds)], ignore_index=True).assign(**facts)


def _epochs(peer: Peer, seconds: float) -> pd.DataFrame:
    """What a method logged by epoch, if it did."""
    model = getattr(peer, "model", None)
    if not isinstance(model, SIMSClassifier):
        return pd.DataFrame(columns=["epoch", *EPOCH_METRICS, "cpu_seconds"], dtype=float)
    history = model.history.reindex(columns=list(EPOCH_METRICS)).reset_index()
    return history.assign(cpu_seconds=(seconds * (history["epoch"] + 1) / len(history)).round(2))


def _summarised(rows: pd.DataFrame, n_bootstrap: int) -> Ablation:
    """All tables, from the rows of all runs."""
    of_epochs = rows["epoch"].notna()
    epochs = rows.loc[of_epochs, [*RUN, "n_training_cells", "epoch", *EPOCH_METRICS, "cpu_seconds"]]
    calls = rows.loc[~of_epochs, [*RUN, "cell", "class", "called"]].astype({"cell": int})
    facts = rows.groupby(RUN)[FACTS].first()
    drawn = _drawn_scores(calls, n_bootstrap)
    runs = [dict(zip(RUN, key, strict=True)) | {**facts.loc[key]} | with_intervals(drawn[key]) for key in drawn]
    means = _means_over_seeds(drawn)
    scores, losses = [], []
    for (method, proportion), values in means.items():
        named = {"method": method, "proportion": proportion, **facts.loc[(method, proportion)].mean()}
        scores.append(named | with_intervals(values))
        full = means.get((method, 1.0), {})  # empty where that part of the runs is still missing
        for score in TRANSFER_SCORES if full else ():
            value, low, high = with_intervals({"difference": full[score] - values[score]}).values()
            row = {"method": method, "proportion": proportion, "n_training_cells": int(named["n_training_cells"])}
            losses.append(row | {"score": score, "difference": value, "low": low, "high": high})
    whole = {"n_training_cells": int, "n_classes_raised": int}
    return Ablation(
        pd.DataFrame(scores).astype(whole),
        pd.DataFrame(
            losses, columns=["method", "proportion", "n_training_cells", "score", "difference", "low", "high"]
        ),
        pd.DataFrame(runs).astype(whole),
        epochs.astype({"epoch": int}).reset_index(drop=True),
        calls.reset_index(drop=True),
    )


def _drawn_scores(calls: pd.DataFrame, n_bootstrap: int) -> dict[tuple, dict[str, np.ndarray]]:
    """For each run the scores, first of the test cells and then of as many drawn from them, the same for all runs."""
    classes, columns = called_classes(calls["class"], calls["called"])
    n_cells = calls["cell"].nunique()
    random = np.random.default_rng(0)
    weights = random.multinomial(n_cells, np.full(n_cells, 1 / n_cells), size=n_bootstrap)
    weights = np.vstack([np.ones(n_cells), weights])
    found = {}
    for key, part in calls.groupby(RUN, sort=False):
        part = part.sort_values("cell")
        codes = pd.Index(classes).get_indexer(part["class"]) * len(columns)
        codes += pd.Index(columns).get_indexer(part["called"])
        places = sp.csr_matrix((np.ones(n_cells), (codes, np.arange(n_cells))), (len(classes) * len(columns), n_cells))
        found[key] = score_counts((places @ weights.T).T.reshape(-1, len(classes), len(columns)))
    return found


def _means_over_seeds(drawn: dict[tuple, dict[str, np.ndarray]]) -> dict[tuple, dict[str, np.ndarray]]:
    """The same for each method and proportion: seeds, too, are drawn, the same for all proportions."""
    seeds = sorted({seed for *_, seed in drawn})
    n_draws = len(next(iter(next(iter(drawn.values())).values())))
    chosen = np.random.default_rng(1).integers(len(seeds), size=(n_draws, len(seeds)))
    means = {}
    methods = list(dict.fromkeys(method for method, *_ in drawn))
    for method, proportion in sorted({key[:2] for key in drawn}, key=lambda key: (methods.index(key[0]), key[1])):
        runs = [drawn[key] for key in drawn if key[:2] == (method, proportion)]
        of_draw = chosen % len(runs)  # fewer where a part of the runs is still missing
        means[method, proportion] = {}
        for score in SCORES:
            values = np.stack([run[score] for run in runs], axis=1)
            mean = np.take_along_axis(values, of_draw, axis=1).mean(axis=1)
            mean[0] = values[0].mean()
            means[method, proportion][score] = mean
    return means

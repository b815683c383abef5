"""Generalization: train on one tissue, region, donor or protocol, test on every other (thesis section 0.3.4)."""

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from sims_kit.cells.genes import align_genes, shared_genes
from sims_kit.cells.matrix import detect_scale
from sims_kit.cells.splits import stratified_split
from sims_kit.errors import LabelError, SettingError, UnknownNameError
from sims_kit.studies.resampling import TRANSFER_SCORES, difference, intervals, mean_over_seeds, resample
from sims_kit.studies.runs import Methods, as_methods, as_seeds, fit_method, plain_cells, run_all, without_labels
from sims_kit.text import label_text

KEYS = ["method", "trained_on", "target", "in_distribution"]
FACTS = ["n_training_cells", "n_training_classes", "fit_cpu_seconds"]
SCORES = (*TRANSFER_SCORES, "unknown_percent")


@dataclass(frozen=True)
class Generalization:
    """What a study of generalization found; `runs` has a row per seed, `scores` their means with 95 % intervals.

    Attributes
    ----------
    scores, runs
        By ``method``, ``trained_on`` and ``target``: ``balanced_accuracy``, ``weighted_accuracy``, ``aggregated_f1``,
        ``median_f1`` (0 to 1) and ``unknown_percent``, each with ``_low`` and ``_high``, of the cells whose class was
        in training. ``n_cells``, ``n_unseen_cells``, ``unseen_percent`` and ``unseen_classes`` describe the others;
        ``weighted_accuracy_of_all`` counts them as wrong. ``in_distribution`` marks the reference: held-out cells of
        the training groups.
    drops
        The reference minus the target, for each score: ``difference``, ``low``, ``high``.
    unseen
        Where cells of classes unseen in training went: ``class``, its ``n_cells``, ``predicted``, ``percent`` of them.
    predictions
        The ``class`` of each ``cell`` of each ``target``, whether it was ``seen`` in training, and the ``predicted``
        one.
    """

    scores: pd.DataFrame
    drops: pd.DataFrame
    unseen: pd.DataFrame
    runs: pd.DataFrame
    predictions: pd.DataFrame


def generalization(
    cells: AnnData | Mapping[str, AnnData],
    label: str,
    *,
    by: str | None = None,
    methods: Methods = ("SIMS, default", "linear SVM"),
    which: str | Sequence[str] | None = None,
    leave_one_out: bool = False,
    seeds: int | Sequence[int] = (0, 1, 2),
    held_out: float = 0.2,
    n_bootstrap: int = 1000,
    folder: str | os.PathLike | None = None,
    n_jobs: int = 1,
) -> Generalization:
    """Train on each group of cells and test on every other (thesis section 0.3.4, figures 0.15 and 0.16).

    Some cells of the training group are held out. The score on them is the reference: a drop from there is due to the
    new group. A class that the training group lacks cannot be found in the target; its cells are counted separately.

    Parameters
    ----------
    cells
        AnnData, cells x genes, counts or log-normalised; or one for each group, by name, of any gene sets.
    label, by
        The `obs` columns with the labels and with the groups (tissue, region, donor, protocol); no `by` with a mapping.
    which, leave_one_out
        The groups to train on, all by default; or to leave out, one at a time, as for a new donor.
    held_out
        Share of the cells of the training groups, stratified by class.
    methods, seeds, n_bootstrap, folder, n_jobs
        As in `ablation`.

    Examples
    --------
    >>> found = generalization(cells, "cell_type", by="region", which="MTG", methods="linear SVM", seeds=0)
    >>> found.drops.query("score == 'median_f1'")
    """
    if not 0 < held_out < 1 or n_bootstrap < 1:
        found = f"held_out={held_out}, n_bootstrap={n_bootstrap}"
        raise SettingError(f"{found}: give a share between 0 and 1, and 1 or more.")
    methods, seeds = as_methods(methods), as_seeds(seeds)
    groups = _groups(cells, label, by)
    sources = _sources(groups, which, leave_one_out)
    for name, members in sources.items():
        _check_training(name, [groups[group] for group in members])
    keys = [(method, name, seed) for seed in seeds for name in sources for method in methods]
    runs = [dict(zip(("method", "trained_on", "seed"), key, strict=True)) for key in keys]
    run = partial(_run, groups=groups, sources=sources, held_out=held_out)
    data, settings = list(groups.values()), [list(groups), held_out, leave_one_out]
    kept = dict(folder=folder, n_jobs=n_jobs)
    table = run_all(runs, run, methods, data=data, settings=settings, desc="generalization", **kept)
    return _summarised(table, n_bootstrap)


def _groups(cells: AnnData | Mapping[str, AnnData], label: str, by: str | None) -> dict[str, AnnData]:
    """The labelled cells of each group; ``obs`` has ``label`` and ``sample``, the name of the group."""
    if isinstance(cells, AnnData) == (by is None):
        raise SettingError(
            f"by={by!r} with {type(cells).__name__}: for one AnnData name the obs column of the groups; "
            "for a mapping of names to AnnData leave it out."
        )
    if by is not None:
        if by not in cells.obs:
            raise UnknownNameError("obs column", by, cells.obs.columns)
        group_of = label_text(cells.obs[by])
        if n_without := int(group_of.isna().sum()):
            warnings.warn(f"{n_without:,} of {cells.n_obs:,} cells have no {by!r} and are left out.", stacklevel=3)
        cells = {name: cells[(group_of == name).to_numpy()] for name in sorted(group_of.dropna().unique())}
    if len(cells) < 2:
        raise SettingError(f"Found {len(cells)} group, {list(cells)}; generalization needs two or more. Check {by=}.")
    groups, n_cells = {}, 0
    for name, part in cells.items():
        groups[str(name)] = part = plain_cells(part, label, str(name))
        part.obs["sample"] = str(name)
        part.obs_names = np.arange(n_cells, n_cells := n_cells + part.n_obs).astype(str)  # different in all groups
    return groups


def _sources(groups: Mapping[str, AnnData], which: str | Sequence[str] | None, leave_one_out: bool) -> dict:
    """The groups that train each model, by the name of the model; the others are its targets."""
    chosen = list(groups) if which is None else [which] if isinstance(which, str) else list(which)
    for name in chosen:
        if name not in groups:
            raise UnknownNameError("group", name, groups)
    if leave_one_out:
        return {f"all but {name}": [group for group in groups if group != name] for name in chosen}
    return {name: [name] for name in chosen}


def _check_training(name: str, parts: Sequence[AnnData]) -> None:
    """Refuse what would fail after an hour: too few classes, nothing to hold out, values of different scales."""
    sizes = pd.concat([part.obs["label"] for part in parts]).value_counts()
    if len(sizes) < 2 or sizes.max() < 2:
        found = f"{name}: training needs two classes, and one of two cells or more; found {sizes.to_dict()}"
        raise LabelError(f"{found}. Leave it out with which=, or choose another column for the groups.")
    if len(states := {detect_scale(part.X).state for part in parts}) > 1:
        raise SettingError(f"{name} joins values of different states ({', '.join(sorted(states))}). Use counts only.")


def _run(make, trained_on: str, seed: int, *, groups: Mapping, sources: Mapping, held_out: float) -> pd.DataFrame:
    """Train once, and label the cells that were held out and those of every target."""
    training = _joined([groups[name] for name in sources[trained_on]])
    split = stratified_split(training.obs["label"], validation=0, test=held_out, seed=seed)
    reference = training[split.train].copy()
    estimator, seconds = fit_method(make, seed, reference)
    queries = {trained_on: training[split.test].copy()}
    queries |= {name: cells for name, cells in groups.items() if name not in sources[trained_on]}
    known, tables = set(reference.obs["label"]), []
    for target, query in queries.items():
        truth = query.obs["label"].to_numpy(str)
        predicted = np.asarray(estimator.predict(without_labels(query)), dtype=str)
        found = {"target": target, "in_distribution": target == trained_on, "cell": query.obs_names.astype(int)}
        found |= {"class": truth, "seen": np.isin(truth, list(known)), "predicted": predicted}
        tables.append(pd.DataFrame(found))
    facts = dict(zip(FACTS, (reference.n_obs, len(known), seconds), strict=True))
    return pd.concat(tables, ignore_index=True).assign(**facts)


def _joined(parts: Sequence[AnnData]) -> AnnData:
    """All cells on the common genes."""
    genes = shared_genes([list(part.var_names) for part in parts])
    matrix = sp.vstack([align_genes(part.var, genes).apply(sp.csr_matrix(part.X)) for part in parts], format="csr")
    return AnnData(matrix, obs=pd.concat([part.obs for part in parts]), var=pd.DataFrame(index=genes))


def _summarised(table: pd.DataFrame, n_bootstrap: int) -> Generalization:
    """All tables, from the predictions."""
    drawn, nothing = {}, dict.fromkeys(SCORES, np.full(1 + n_bootstrap, np.nan))
    for number, (_, part) in enumerate(table[table["seen"]].groupby("target", sort=False)):
        found = resample(part.reset_index(drop=True), [*KEYS, "seed"], n_bootstrap, seed=number)
        drawn |= {key: {score: scores[score] for score in SCORES} for key, scores in found.items()}
    by_run, by_key = table.groupby([*KEYS, "seed"], sort=False), table.groupby(KEYS, sort=False)
    drawn = {key: drawn.get(key, nothing) for key in by_run.groups}  # a target may have no class of the training
    means = mean_over_seeds(drawn)
    runs = [
        dict(zip([*KEYS, "seed"], key, strict=True)) | {**part[FACTS].iloc[0]} | _sizes(part) | intervals(drawn[key])
        for key, part in by_run
    ]
    scores, drops = [], []
    for key, part in by_key:
        row = dict(zip(KEYS, key, strict=True)) | {"n_seeds": part["seed"].nunique()}
        row |= {"n_training_cells": part["n_training_cells"].iloc[0]}
        row |= _sizes(part[part["seed"] == part["seed"].iloc[0]]) | intervals(means[key])
        seen_share = 1 - row["unseen_percent"] / 100
        row["weighted_accuracy_of_all"] = row["weighted_accuracy"] * seen_share if seen_share else 0.0
        scores.append(row)
        method, trained_on, target, in_distribution = key
        source = means[method, trained_on, trained_on, True]
        named = {"method": method, "trained_on": trained_on, "target": target}
        for score in () if in_distribution else TRANSFER_SCORES:
            drops.append(named | {"score": score} | difference(source[score], means[key][score]))
    runs = pd.DataFrame(runs).astype({"n_training_cells": int, "n_training_classes": int})
    unseen = _percent_predicted(table[~table["seen"]], [*KEYS[:3], "class"])
    return Generalization(pd.DataFrame(scores), pd.DataFrame(drops), unseen, runs, table.drop(columns=FACTS))


def _sizes(predictions: pd.DataFrame) -> dict:
    """How many cells a target has, and which of its classes were not in training."""
    unseen = predictions[~predictions["seen"]]
    return {
        "n_cells": len(predictions),
        "n_classes": predictions["class"].nunique(),
        "n_unseen_cells": len(unseen),
        "unseen_percent": 100 * len(unseen) / len(predictions),
        "unseen_classes": ", ".join(sorted(unseen["class"].unique())),
    }


def _percent_predicted(predictions: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """What the cells of each class were predicted to be, in percent of its cells over all seeds."""
    percent = 100 * predictions.groupby(keys)["predicted"].value_counts(normalize=True)
    percent = percent.rename("percent").reset_index()
    percent.insert(
        len(keys),
        "n_cells",
        predictions.groupby(keys)["cell"].nunique().reindex(pd.MultiIndex.from_frame(percent[keys])).to_numpy(),
    )
    return percent

"""Generalization: train on one tissue, region, donor or protocol, test on every other (thesis section 0.3.4)."""

import os
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from sims_kit.cells.genes import align_genes, shared_genes
from sims_kit.cells.matrix import detect_scale
from sims_kit.cells.splits import stratified_split
from sims_kit.errors import LabelError, SettingError, UnknownNameError
from sims_kit.estimator import obs_values
from sims_kit.studies.resampling import differences, intervals, mean_over_seeds, resample, score_counts
from sims_kit.studies.runs import Methods, Tables, plain_cells, run_all
from sims_kit.text import label_text, warn

KEYS = ["method", "trained_on", "target", "in_distribution"]


def generalization(
    cells: AnnData | Mapping[str, AnnData],
    label: str,
    *,
    by: str | None = None,
    methods: Methods = ("SIMS, default", "linear SVM"),
    which: str | Sequence[str] | None = None,
    leave_one_out: bool = False,
    seeds: int | Sequence[int] = (0, 1, 2),
    n_bootstrap: int = 1000,
    folder: str | os.PathLike | None = None,
    n_jobs: int = 1,
) -> Tables:
    """Train on each group of cells and test on every other (thesis section 0.3.4, figures 0.15 and 0.16).

    A fifth of each class of the training group is held out. The score on it is the reference: a drop from there is due
    to the new group. Cells of a class that the training group lacks cannot be found and are counted separately.

    `cells` are as in `ablation`, with the `obs` column `by` of the groups (tissue, region, donor, protocol), or AnnData
    for each group, by name, of any gene sets. `which` are the groups to train on, all by default; or, with
    `leave_one_out`, to leave out, one at a time, as for a new donor. Other arguments are as in `ablation`.

    Tables are ``scores``, by method, ``trained_on`` and ``target``: those of `ablation`, of cells whose class was in
    training; the number and the classes of the others, and ``weighted_accuracy_of_all``, where these are wrong.
    ``in_distribution`` marks the reference. ``drops``, the reference minus the target. ``unseen``, where cells of
    classes unseen in training went. ``predictions``, the ``class`` of each ``cell`` of each target, whether it was
    ``seen`` in training, and the ``predicted`` one.

    >>> found = generalization(cells, "cell_type", by="region", which="MTG", methods="linear SVM", seeds=0)
    >>> found.drops.query("score == 'median_f1'")
    """
    groups = _groups(cells, label, by)
    sources = _sources(groups, which, leave_one_out)

    def parts(trained_on: str, seed: int) -> tuple:
        source = [groups[name] for name in sources[trained_on]]  # on the genes that all of them have
        genes = shared_genes([list(part.var_names) for part in source])
        values = [align_genes(part.var, genes).apply(sp.csr_matrix(part.X)) for part in source]
        obs = pd.concat([part.obs for part in source])
        source = AnnData(sp.vstack(values, format="csr"), obs=obs, var=pd.DataFrame(index=genes))
        split = stratified_split(source.obs["label"], validation=0, test=0.2, seed=seed)
        targets = {name: part for name, part in groups.items() if name not in sources[trained_on]}
        return source[split.train].copy(), {trained_on: source[split.test].copy()} | targets

    cases = [{"trained_on": name} for name in sources]
    kept = dict(settings=[list(groups), leave_one_out], folder=folder, n_jobs=n_jobs, desc="generalization")
    table, _ = run_all(parts, methods, cases, seeds, data=list(groups.values()), **kept)
    table.insert(4, "in_distribution", table["target"] == table["trained_on"])
    drawn = {}
    for number, (_, part) in enumerate(table[table["seen"]].groupby("target", sort=False)):
        drawn |= resample(part, [*KEYS, "seed"], n_bootstrap, seed=number)
    nothing = pd.DataFrame(score_counts(np.zeros((1 + n_bootstrap, 1, 2))))  # a target without a class of the training
    means = mean_over_seeds({key: drawn.get(key, nothing) for key in table.groupby([*KEYS, "seed"], sort=False).groups})
    scores = _sizes(table).merge(intervals(means, KEYS), on=KEYS)
    scores["weighted_accuracy_of_all"] = scores["weighted_accuracy"].fillna(0) * (1 - scores["unseen_percent"] / 100)
    targets = scores.loc[~scores["in_distribution"], KEYS].itertuples(index=False, name=None)
    pairs = {key[:3]: (means[key[0], key[1], key[1], True], means[key]) for key in targets}
    unseen = table[~table["seen"]].groupby([*KEYS[:3], "class"])
    percent = 100 * unseen["predicted"].value_counts(normalize=True).rename("percent")
    return Tables(
        scores=scores,
        drops=differences(pairs, KEYS[:3]),
        unseen=unseen["cell"].nunique().rename("n_cells").reset_index().merge(percent.reset_index()),
        predictions=table[[*KEYS, "seed", "cell", "class", "seen", "predicted"]],
    )


def _groups(cells: AnnData | Mapping[str, AnnData], label: str, by: str | None) -> dict[str, AnnData]:
    """The labelled cells of each group; ``obs`` has ``label`` and ``sample``, the name of the group."""
    if isinstance(cells, AnnData) == (by is None):
        found = f"by={by!r} with {type(cells).__name__}"
        raise SettingError(f"{found}: name the obs column of the groups for AnnData, and leave it out for a mapping.")
    if by is not None:
        group_of = label_text(obs_values(cells, by))
        if n_without := int(group_of.isna().sum()):
            warn(f"{n_without:,} of {cells.n_obs:,} cells have no {by!r} and are left out.")
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
    """The groups that train each model, by the name of the model; refuses what would fail after an hour."""
    chosen = list(groups) if which is None else [which] if isinstance(which, str) else list(which)
    sources = {}
    for name in chosen:
        if name not in groups:
            raise UnknownNameError("group", name, groups)
        members = [group for group in groups if (group == name) != leave_one_out]
        sizes = pd.concat([groups[group].obs["label"] for group in members]).value_counts()
        if len(sizes) < 2 or sizes.max() < 2:
            found = f"training needs two classes, and one of two cells or more; found {sizes.to_dict()}"
            raise LabelError(f"{members}: {found}. Choose others with which=, or another column for the groups.")
        if len(states := {detect_scale(groups[group].X).state for group in members}) > 1:
            raise SettingError(f"{members} have values of different states ({', '.join(sorted(states))}); use counts.")
        sources[f"all but {name}" if leave_one_out else name] = members
    return sources


def _sizes(table: pd.DataFrame) -> pd.DataFrame:
    """How many cells each target has, and which of its classes were not in training."""
    table = table.assign(unseen=table["class"].mask(table["seen"]), n_seeds=table["seed"].nunique())
    groups = table[table["seed"] == table["seed"].iloc[0]].groupby(KEYS, sort=False)
    return groups.agg(
        n_seeds=("n_seeds", "first"),
        n_training_cells=("n_training_cells", "first"),
        n_cells=("class", "size"),
        n_classes=("class", "nunique"),
        n_unseen_cells=("unseen", "count"),
        unseen_percent=("unseen", lambda names: 100 * names.count() / len(names)),
        unseen_classes=("unseen", lambda names: ", ".join(sorted(names.dropna().unique()))),
    ).reset_index()

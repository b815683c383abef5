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
from sims_kit.studies.adaptor import Peer
from sims_kit.studies.counts import (
    TRANSFER_SCORES,
    called_classes,
    percent_called,
    score_counts,
    with_intervals,
)
from sims_kit.studies.runs import as_peers, as_seeds, fingerprint, fit_seconds, plain_cells, sweep_methods
from sims_kit.text import label_text

KEYS = ["method", "trained_on", "target", "in_distribution"]


@dataclass(frozen=True)
class Generalization:
    """What a study of generalization found, as tables.

    Attributes
    ----------
    scores
        One row per ``method``, ``trained_on`` and ``target``. Mean over the seeds of ``balanced_accuracy``,
        ``weighted_accuracy``, ``aggregated_f1``, ``median_f1`` (0 to 1, as `sims_kit.studies.counts.score_counts`
        defines them) and ``unknown_percent``, each with ``_low`` and ``_high``, the 95 % interval. They are of the
        cells whose class was in training; ``n_cells``, ``n_unseen_cells``, ``unseen_percent`` and ``unseen_classes``
        tell of the others, ``weighted_accuracy_of_all`` counts them as wrong. Where ``in_distribution`` is true, the
        cells are those of the training groups that were held out: the reference.
    drops
        The reference minus the target, for each score: ``difference``, ``low``, ``high``.
    unseen
        Where cells of classes unseen in training went: ``class``, its ``n_cells``, ``called``, ``percent`` of them.
    runs
        As `scores`, for each ``seed``, with ``n_training_cells``, ``n_training_classes``, ``fit_cpu_seconds``.
    calls
        What all this is made of: ``n_cells`` of each true ``class`` that were ``called`` so, and whether it was
        ``seen`` in training.
    """

    scores: pd.DataFrame
    drops: pd.DataFrame
    unseen: pd.DataFrame
    runs: pd.DataFrame
    calls: pd.DataFrame


def generalization(
    cells: AnnData | Mapping[str, AnnData],
    label: str,
    *,
    by: str | None = None,
    methods: str | Peer | Sequence[str | Peer] = ("SIMS, default", "linear SVM"),
    which: str | Sequence[str] | None = None,
    leave_one_out: bool = False,
    seeds: int | Sequence[int] = (0, 1, 2),
    held_out: float = 0.2,
    n_bootstrap: int = 1000,
    folder: str | os.PathLike | None = None,
    n_jobs: int = 1,
    part: tuple[int, int] = (0, 1),
) -> Generalization:
    """Train on each group of cells and test on every other (thesis section 0.3.4, figures 0.15 and 0.16).

    Some cells of the training group are held out. What the model scores on them is the reference: a drop from there
    is the price of the new group, and not of a model that is weak at home as well. A class that the training group
    does not have cannot be found in the target; its cells are counted apart.

    Parameters
    ----------
    cells
        AnnData, cells x genes, counts or log-normalised; or one for each group, by name, of any gene sets.
    label
        The `obs` column with the labels.
    by
        The `obs` column with the groups (tissue, region, donor, protocol); not with a mapping.
    methods
        Names of `sims_kit.studies.PEERS`, or objects that follow `Peer`.
    which
        The groups to train on; all by default. With `leave_one_out`, those to leave out.
    leave_one_out
        Train on all groups but one and test on that one, as for a new donor.
    seeds
        Each decides which cells are held out, and whatever is random in the method.
    held_out
        Share of the cells of the training groups, stratified by class.
    n_bootstrap
        Draws behind each interval. Cells are drawn anew, and so are seeds; as all seeds see the same target, averaging
        over seeds does not narrow what is due to cells. With three seeds or fewer, the part of the seeds is
        underestimated.
    folder
        Where runs are kept, so that a restart goes on; None keeps nothing.
    n_jobs, part
        Processes at the same time; ``(i, n)`` for the i-th job of an array of n. See `sims_kit.studies.sweep`.

    Returns
    -------
    Generalization
        `sims_kit.plotting.generalization` draws its `scores`.

    Warns
    -----
    UserWarning
        If cells without a label or a group are left out.

    Raises
    ------
    UnknownNameError
        If there is no such column, group or method.
    SettingError
        If there are fewer than two groups, or a setting is out of range.
    LabelError
        If a training group has fewer than two classes, or none of two cells.
    PeerError
        If a method cannot take these cells. Runs that are done stay in `folder`.
    """
    if not 0 < held_out < 1 or n_bootstrap < 1:
        raise SettingError(
            f"held_out={held_out}, n_bootstrap={n_bootstrap}: give a share between 0 and 1, and 1 or more."
        )
    peers, seeds = as_peers(methods), as_seeds(seeds)
    groups = _groups(cells, label, by)
    sources = _sources(groups, which, leave_one_out)
    for name, some in sources.items():
        _check_training(name, [groups[group] for group in some])
    runs = [
        {"method": method, "trained_on": name, "seed": seed} for seed in seeds for name in sources for method in peers
    ]
    calls = sweep_methods(
        peers,
        runs,
        partial(_run, groups=groups, sources=sources, held_out=held_out),
        folder,
        data=fingerprint(groups.values(), list(groups), held_out),
        n_jobs=n_jobs,
        part=part,
        desc="generalization",
        text=["trained_on", "target", "class", "called"],
    )
    return _summarised(calls, n_bootstrap)


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
    groups = {str(name): plain_cells(part, label, str(name)) for name, part in cells.items()}
    for name, part in groups.items():
        part.obs["sample"] = name
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
    """Refuse what would fail after an hour: too few classes, nothing to hold out, values that do not mean the same."""
    sizes = pd.concat([part.obs["label"] for part in parts]).value_counts()
    if len(sizes) < 2 or sizes.max() < 2:
        raise LabelError(
            f"{name}: training needs two classes, and one of two cells or more; found {sizes.to_dict()}. "
            "Leave it out with which=, or choose another column for the groups."
        )
    states = {detect_scale(part.X).state for part in parts}
    if len(states) > 1:
        raise SettingError(
            f"{name} joins values of different states ({', '.join(sorted(states))}). Give counts of all."
        )


def _run(
    peer: Peer,
    trained_on: str,
    seed: int,
    *,
    groups: Mapping[str, AnnData],
    sources: Mapping[str, list[str]],
    held_out: float,
) -> pd.DataFrame:
    """Train once, and count the calls of what was held out and of every target."""
    training = _joined([groups[name] for name in sources[trained_on]])
    split = stratified_split(training.obs["label"], validation=0, test=held_out, seed=seed)
    reference = training[split.train].copy()
    several = len(sources[trained_on]) > 1  # one sample has nothing to be corrected for
    seconds = fit_seconds(peer, reference, seed, "sample" if several else None)
    queries = {name: cells for name, cells in groups.items() if name not in sources[trained_on]}
    tables = [_calls(peer, training[split.test].copy(), reference).assign(target=trained_on, in_distribution=True)]
    tables += [
        _calls(peer, cells, reference).assign(target=name, in_distribution=False) for name, cells in queries.items()
    ]
    facts = {"n_training_cells": reference.n_obs, "n_training_classes": reference.obs["label"].nunique()}
    return pd.concat(tables, ignore_index=True).assign(**facts, fit_cpu_seconds=seconds)


def _joined(parts: Sequence[AnnData]) -> AnnData:
    """All cells on the common genes, named by their number."""
    genes = shared_genes([list(part.var_names) for part in parts])
    matrix = sp.vstack([align_genes(part.var, genes).apply(sp.csr_matrix(part.X)) for part in parts], format="csr")
    obs = pd.concat([part.obs for part in parts])
    return AnnData(matrix, obs=obs.set_index(np.arange(len(obs)).astype(str)), var=pd.DataFrame(index=genes))


def _calls(peer: Peer, query: AnnData, reference: AnnData) -> pd.DataFrame:
    """How many cells of each class were called what; the peer is not told the labels."""
    asked = AnnData(query.X, obs=query.obs[["sample"]], var=query.var)
    calls = pd.DataFrame({"class": query.obs["label"].to_numpy(), "called": peer.predict(asked).labels.astype(str)})
    table = calls.groupby(["class", "called"], as_index=False).size().rename(columns={"size": "n_cells"})
    table.insert(1, "seen", table["class"].isin(set(reference.obs["label"])))
    return table


def _summarised(calls: pd.DataFrame, n_bootstrap: int) -> Generalization:
    """All tables, from the calls alone."""
    facts = ["n_training_cells", "n_training_classes", "fit_cpu_seconds"]
    runs, scores, drawn = [], [], {}
    for number, (key, of_key) in enumerate(calls.groupby(KEYS, sort=False)):
        named, sizes = dict(zip(KEYS, key, strict=True)), _sizes(of_key[of_key["seed"] == of_key["seed"].iloc[0]])
        by_seed = of_key.groupby("seed", sort=False)
        of_seeds = score_counts(_resampled(_counts([part for _, part in by_seed]), n_bootstrap, number))
        for i, (seed, part) in enumerate(by_seed):
            row = {**named, "seed": seed, **part[facts].iloc[0], **sizes}
            runs.append(row | with_intervals({score: values[:, i] for score, values in of_seeds.items()}))
        drawn[key] = {score: _mean_over_seeds(values, score) for score, values in of_seeds.items()}
        row = {**named, "n_seeds": len(by_seed), "n_training_cells": of_key["n_training_cells"].iloc[0], **sizes}
        row |= with_intervals(drawn[key])
        seen_share = 1 - sizes["unseen_percent"] / 100
        row["weighted_accuracy_of_all"] = row["weighted_accuracy"] * seen_share if seen_share else 0.0
        scores.append(row)
    unseen = percent_called(calls[~calls["seen"]], [*KEYS[:3], "class"])
    return Generalization(pd.DataFrame(scores), _drops(drawn), unseen, pd.DataFrame(runs), calls)


def _sizes(calls: pd.DataFrame) -> dict:
    """How many cells a target has, and which of its classes were not in training."""
    unseen = calls[~calls["seen"]]
    n_cells, n_unseen = int(calls["n_cells"].sum()), int(unseen["n_cells"].sum())
    return {
        "n_cells": n_cells,
        "n_classes": calls["class"].nunique(),
        "n_unseen_cells": n_unseen,
        "unseen_percent": 100 * n_unseen / n_cells,
        "unseen_classes": ", ".join(sorted(unseen["class"].unique())),
    }


def _counts(parts: Sequence[pd.DataFrame]) -> np.ndarray:
    """(seeds, classes, called) cells of the classes that were seen in training."""
    seen = [part[part["seen"]] for part in parts]
    if not len(seen[0]):  # no class in common: no cells of one class, so that scores are NaN
        return np.zeros((len(parts), 1, 2), dtype=np.int64)
    rows, columns = called_classes(*(np.concatenate([part[name] for part in seen]) for name in ("class", "called")))
    tables = [part.pivot_table(index="class", columns="called", values="n_cells", aggfunc="sum") for part in seen]
    return np.stack([table.reindex(index=rows, columns=columns).fillna(0).to_numpy(dtype=np.int64) for table in tables])


def _resampled(counts: np.ndarray, n_bootstrap: int, stream: int) -> np.ndarray:
    """(1 + n_bootstrap, seeds, classes, called): the counts, then as many cells of each seed drawn from them."""
    random, drawn = np.random.default_rng([0, stream]), []  # other cells are drawn independently
    for table in counts:
        n_cells = table.sum()
        shares = table.ravel() / max(n_cells, 1)
        drawn.append(random.multinomial(n_cells, shares, size=n_bootstrap).reshape(n_bootstrap, *table.shape))
    return np.concatenate([counts[None], np.stack(drawn, axis=1)])


def _mean_over_seeds(values: np.ndarray, score: str) -> np.ndarray:
    """(1 + n_bootstrap,) the mean over the seeds, then its draws, from values of (1 + n_bootstrap, seeds).

    Seeds are drawn anew, and what the drawn cells of one of them change is added: all seeds have the same cells, so
    that these errors do not cancel.
    """
    n_draws, n_seeds = len(values) - 1, values.shape[1]
    chosen = np.random.default_rng(1).integers(n_seeds, size=(n_draws, n_seeds))
    change = values[1:][np.arange(n_draws), chosen[:, 0]] - values[0, chosen[:, 0]]
    draws = (values[0, chosen].mean(axis=1) + change).clip(0, 100 if score == "unknown_percent" else 1)
    return np.concatenate([[values[0].mean()], draws])


def _drops(drawn: Mapping[tuple, dict[str, np.ndarray]]) -> pd.DataFrame:
    """Each target against what the same models score at home; of each, the value comes first and then its draws."""
    rows = []
    for method, trained_on, target, in_distribution in drawn:
        home, away = drawn[method, trained_on, trained_on, True], drawn[method, trained_on, target, in_distribution]
        for score in () if in_distribution else TRANSFER_SCORES:
            value, low, high = with_intervals({"difference": home[score] - away[score]}).values()
            rows.append((method, trained_on, target, score, value, low, high))
    return pd.DataFrame(rows, columns=["method", "trained_on", "target", "score", "difference", "low", "high"])

"""How well labels hold when cells are stressed: simulated organoids, whose types are known (thesis section 0.3.7).

The thesis reasons that a model which does not look at genes of cell stress is robust against it. Here the same methods
learn from the same primary tissue and label the same organoid cells under a stress programme of rising strength, which
is independent of type.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from os import PathLike

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import stats

from sims_kit.calibration import share_interval
from sims_kit.datasets.simulate import PRESETS, SimulationSettings, simulate
from sims_kit.errors import SettingError, UnknownNameError
from sims_kit.explanation import explain
from sims_kit.studies.adaptor import UNKNOWN, Peer
from sims_kit.studies.peers import Sims
from sims_kit.studies.runs import as_peers, as_seeds, sweep_methods
from sims_kit.studies.scores import LEVEL, score_cells

METHODS = ("SIMS, default", "linear SVM", "logistic regression", "CellTypist", "marker voting by cluster")
STRENGTHS = (0.0, 1.0, 2.0, 4.0, 6.0)  # stress genes at 1, 2, 4, 16 and 67 times; then they have half of all counts
GROUP = ["method", "knows_stress_genes"]


def stress_test(
    methods: str | Peer | Sequence = METHODS,
    strengths: Sequence[float] = STRENGTHS,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    knows_stress_genes: bool = True,
    size: str = "fast",
    folder: str | PathLike | None = None,
    n_jobs: int = 1,
    part: tuple[int, int] = (0, 1),
    **changes,
) -> pd.DataFrame:
    """Accuracy on simulated organoids against the strength of their stress programme.

    Each method learns once for each seed, from ``sim-cortex``, and labels ``sim-organoid``: the same types from other
    donors and by another protocol. Seeds make other tissue, not only another start. "marker voting by cluster" is the
    standard pipeline: cluster the organoid, look for the atlas's markers.

    Parameters
    ----------
    methods
        Names of `PEERS`, or objects that follow the protocol `Peer`; one or several.
    strengths
        Means of ``obs["stress"]``, 0 (none) to 10; at 1 a stress gene is twice as high in an average cell.
    seeds
        Of tissue and training.
    knows_stress_genes
        False takes the stress genes out of the reference, so that methods do not see them in the organoid either.
    size
        ``"fast"`` (2,500 cells x 2,000 genes) or ``"full"``, as in `sims_kit.datasets.simulated`.
    folder, n_jobs, part
        As in `sweep`: where tables are kept, so that a restart goes on; processes; the part of a job of an array.
    **changes
        Settings of both tissues that differ, as in `sims_kit.datasets.simulate`: ``n_cells=500``.

    Returns
    -------
    DataFrame
        One row per method, seed and strength: ``method``, ``seed``, ``knows_stress_genes``,
        ``stress_strength``, ``stress_fold`` (of a stress gene, in an average cell), ``stress_counts_percent`` (of all
        counts of the organoid), ``n_cells``, ``accuracy`` with ``_low`` and ``_high`` (Wilson, 95 %, over the cells),
        ``macro_f1``, ``median_f1``, ``unlabelled_percent``, ``calibration_error``, ``mean_confidence``, and for SIMS
        the share that stress genes hold of masks and contributions, ``stress_mask_percent`` and
        ``stress_contribution_percent``, how many of them have any mask weight, ``stress_genes_in_masks``, and how many
        genes at all, ``genes_in_masks``. NaN for what a method does not have.

    Raises
    ------
    SettingError
        If a strength or another setting is out of range, or there is nothing to run.
    UnknownNameError
        If there is no such method, size or setting.
    PeerError
        If the package of a method is not installed.
    """
    peers, seeds = as_peers(methods), as_seeds(seeds)
    if not len(strengths):
        raise SettingError("There are no strengths; give one or more, such as (0, 1, 2).")
    primary, culture = _settings("sim-cortex", size, changes), _settings("sim-organoid", size, changes)
    cultures = [replace(culture, stress_strength=float(strength)) for strength in strengths]
    runs = [
        {"method": method, "seed": seed, "knows_stress_genes": knows_stress_genes} for seed in seeds for method in peers
    ]
    return sweep_methods(
        peers,
        runs,
        partial(_run, primary=primary, cultures=cultures),
        folder,
        data=repr((primary, cultures)),
        n_jobs=n_jobs,
        part=part,
        desc="stress test",
    )


def stress_losses(table: pd.DataFrame, against: str = "SIMS, default") -> pd.DataFrame:
    """What stress costs each method, and how much more than it costs another one.

    Parameters
    ----------
    table
        From `stress_test`; several tables may be joined.
    against
        The method with which the others are compared, on the same tissue; it knows the stress genes.

    Returns
    -------
    DataFrame
        One row per method and strength: ``method``, ``knows_stress_genes``, ``stress_strength``, ``n_seeds``,
        ``accuracy`` (mean over seeds, 0 to 1), ``lost_points`` (accuracy under the weakest stress minus this one, in
        percentage points) and ``lost_more_points`` (that minus the loss of `against`), the last two with ``_low`` and
        ``_high``: 95 % t intervals over seeds, NaN for one seed.

    Raises
    ------
    UnknownNameError
        If the table does not have the method.
    """
    table = table.reset_index(drop=True)
    is_other = (table["method"] == against) & table["knows_stress_genes"]
    if not is_other.any():
        raise UnknownNameError("method of the table", against, table["method"].unique())
    weakest = table.sort_values("stress_strength").groupby([*GROUP, "seed"])["accuracy"].transform("first")
    table["lost_points"] = 100 * (weakest - table["accuracy"])
    same = ["seed", "stress_strength"]
    of_other = table.loc[is_other, [*same, "lost_points"]].rename(columns={"lost_points": "of_other"})
    table = table.merge(of_other, on=same, how="left")
    table["lost_more_points"] = table["lost_points"] - table["of_other"]
    groups = table.groupby([*GROUP, "stress_strength"], sort=False)
    found = pd.DataFrame({"n_seeds": groups.size(), "accuracy": groups["accuracy"].mean()})
    for name in ("lost_points", "lost_more_points"):
        mean, half = groups[name].mean(), groups[name].sem() * stats.t.ppf((1 + LEVEL) / 2, found["n_seeds"] - 1)
        found = found.assign(**{name: mean, f"{name}_low": mean - half, f"{name}_high": mean + half})
    return found.reset_index()


def _settings(tissue: str, size: str, changes: Mapping) -> SimulationSettings:
    sizes = PRESETS[tissue]
    if size not in sizes:
        raise UnknownNameError("size", size, sizes)
    known = [setting.name for setting in fields(SimulationSettings) if setting.name not in ("seed", "stress_strength")]
    if unknown := [name for name in changes if name not in known]:
        raise UnknownNameError("setting", unknown[0], known)
    return replace(sizes[size], **changes)


def _run(
    peer: Peer,
    seed: int,
    knows_stress_genes: bool,
    *,
    primary: SimulationSettings,
    cultures: Sequence[SimulationSettings],
) -> pd.DataFrame:
    """One method on one tissue: learn once, label under every stress."""
    reference = simulate(primary, seed=seed)
    if not knows_stress_genes:
        reference = reference[:, ~reference.var["is_stress_gene"].to_numpy()].copy()
    peer.fit(reference, "cell_type", sample="donor", seed=seed)
    return pd.DataFrame([_labelled(peer, simulate(settings, seed=seed)) for settings in cultures])


def _labelled(peer: Peer, organoid: AnnData) -> dict[str, float]:
    """The row of one strength."""
    query = AnnData(organoid.X, obs=organoid.obs[["donor"]], var=organoid.var[[]])  # without the truth
    found, truth_of_cells = peer.predict(query), organoid.obs["cell_type"].astype(str).to_numpy()
    top, confidence = found.best()
    calls = pd.DataFrame({"truth": truth_of_cells, "predicted": found.labels, "top": top, "confidence": confidence})
    is_stress, truth = organoid.var["is_stress_gene"].to_numpy(), organoid.uns["truth"]
    row = {"stress_strength": float(truth["stress_strength"])}
    row["stress_fold"] = float(np.mean(organoid.var["stress_factor"][is_stress] ** row["stress_strength"]))
    row["stress_counts_percent"] = float(100 * organoid.X[:, is_stress].sum() / organoid.X.sum())
    scores = score_cells(calls)
    n_labelled = int((calls["predicted"] != UNKNOWN).sum())
    low, high = share_interval(int((calls["predicted"] == calls["truth"]).sum()), n_labelled)
    row |= {"n_cells": len(calls), "accuracy": scores.pop("accuracy"), "accuracy_low": low, "accuracy_high": high}
    row |= dict(scores) | {"mean_confidence": calls["confidence"].mean()}
    return row | _stress_shares(peer, query, organoid.var_names[is_stress])


def _stress_shares(peer: Peer, query: AnnData, stress_genes: pd.Index) -> dict[str, float]:
    """What the stress genes hold of masks and contributions, of a peer that has them."""
    names = ("stress_mask_percent", "stress_contribution_percent", "stress_genes_in_masks", "genes_in_masks")
    if not isinstance(peer, Sims):
        return dict.fromkeys(names, np.nan)
    genes = explain(peer.model, query).genes
    own = genes[genes.index.isin(stress_genes)]
    shares = [float(100 * own[column].sum() / genes[column].sum()) for column in ("weight", "contribution")]
    return dict(zip(names, [*shares, (own["weight"] > 0).sum(), (genes["weight"] > 0).sum()], strict=True))

"""Rankings of genes against the truth: which of a class's markers come first, and in the order of their strength."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score

from sims_kit.datasets.simulate import true_factors
from sims_kit.errors import DataError, GeneError, LabelError, SettingError


def marker_recovery(
    rankings: Mapping[str, pd.DataFrame],
    markers: pd.DataFrame,
    *,
    k: int = 10,
    strength: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """How well each method finds the true markers of each class.

    Parameters
    ----------
    rankings
        For each method a table classes x genes, higher for genes that speak more for the class: `rank_genes`.
    markers
        Boolean, classes x genes: whether the gene marks the class. The same classes and genes, in any order.
    k
        How many genes a reader looks at.
    strength
        Numbers, classes x genes: how strongly each true marker marks the class. Others are not looked at.

    Returns
    -------
    pandas.DataFrame
        One row per method and class: ``method``, ``class``; ``n_markers``, true markers of the class;
        ``precision_at_k``, the share of markers among the first `k` genes, which `n_markers` / `k` bounds where there
        are fewer markers than `k` (of genes of equal score at the border, what a random order gives on average);
        ``auprc``, the area under precision over recall (scikit-learn's average precision; by chance, the share of
        markers among the genes); ``spearman``, the rank correlation of score and strength over the true markers. NaN
        where undefined: for a class without markers and, for the correlation, with fewer than three or without
        `strength`.

    Raises
    ------
    LabelError, GeneError
        If the classes or the genes of two tables differ; some of those missing are named.
    DataError
        If a score is NaN, or `markers` is not boolean.
    SettingError
        If `k` is less than 1 or more than there are genes.
    """
    if markers.to_numpy().dtype != bool:
        raise DataError(
            f"markers holds {sorted(set(map(str, markers.dtypes)))}; expected True and False. Compare with a threshold "
            "first, such as factors > 1."
        )
    if not 1 <= k <= markers.shape[1]:
        raise SettingError(f"k={k}: expected a number of genes from 1 to {markers.shape[1]:,}, those of the markers.")
    if strength is not None:
        strength = _aligned(strength, markers, "strength")
    rows = []
    for method, ranking in rankings.items():
        ranking = _aligned(ranking, markers, f"The ranking of {method!r}")
        for label, scores in ranking.iterrows():
            true = markers.loc[label].to_numpy()
            found = _recovery(scores.to_numpy(), true, k, None if strength is None else strength.loc[label].to_numpy())
            rows.append({"method": method, "class": label, "n_markers": int(true.sum()), **found})
    columns = ["method", "class", "n_markers", "precision_at_k", "auprc", "spearman"]
    return pd.DataFrame(rows, columns=columns)


def simulated_markers(adata: AnnData) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The true markers of simulated cells, and by what each multiplies expression.

    A gene marks a type if it is raised in it, be it as a marker of the type alone or of its major type.

    Parameters
    ----------
    adata
        From `sims_kit.datasets.simulate`.

    Returns
    -------
    tuple of DataFrame
        Markers (boolean) and strength (factor, 1 for others), both types x genes, with all types of the simulation.

    Raises
    ------
    DataError
        If the cells were not simulated.
    """
    if "type_factor" not in adata.varm or "types" not in adata.uns.get("truth", {}):
        raise DataError(
            "These cells carry no truth: varm['type_factor'] or uns['truth'] is missing. Expected an AnnData from "
            "sims_kit.datasets.simulate; for real cells, pass a table of known markers to marker_recovery."
        )
    strength = true_factors(adata).T.rename_axis(index="class", columns="gene")
    return strength > 1, strength


def _recovery(scores: np.ndarray, markers: np.ndarray, k: int, strength: np.ndarray | None) -> dict[str, float]:
    """The numbers of one row."""
    if not markers.any():
        return {"precision_at_k": np.nan, "auprc": np.nan, "spearman": np.nan}
    return {
        "precision_at_k": _precision(scores, markers, k),
        "auprc": float(average_precision_score(markers, scores)),
        "spearman": np.nan if strength is None else _correlation(scores[markers], strength[markers]),
    }


def _precision(scores: np.ndarray, markers: np.ndarray, k: int) -> float:
    """Of the first k; of those that are equal at the border, the mean over all orders."""
    border = np.partition(scores, -k)[-k]
    above, equal = scores > border, scores == border
    return float((markers[above].sum() + (k - above.sum()) * markers[equal].mean()) / k)


def _correlation(scores: np.ndarray, strength: np.ndarray) -> float:
    if len(scores) < 3 or np.ptp(scores) == 0 or np.ptp(strength) == 0:
        return np.nan
    return float(spearmanr(scores, strength).statistic)


def _aligned(table: pd.DataFrame, markers: pd.DataFrame, name: str) -> pd.DataFrame:
    """The table with rows and columns in the order of the markers."""
    for kind, error, own, theirs in (
        ("classes", LabelError, table.index, markers.index),
        ("genes", GeneError, table.columns, markers.columns),
    ):
        if own.has_duplicates or theirs.has_duplicates:
            raise error(f"{name} or the table of markers names some {kind} twice. Keep each once.")
        missing, more = theirs.difference(own), own.difference(theirs)
        if len(missing) or len(more):
            raise error(
                f"{name} and the table of markers differ in their {kind}: it lacks {len(missing)} {_some(missing)}, "
                f"and has {len(more)} more {_some(more)}. Select the same {kind} in both, for example "
                f"with markers.reindex."
            )
    table = table.loc[markers.index, markers.columns]
    if table.isna().to_numpy().any():
        raise DataError(f"{name} holds NaN. Give each gene a number for each class; 0 where a method says nothing.")
    return table


def _some(names: pd.Index) -> str:
    return f"({', '.join(map(str, names[:3]))}{', ...' if len(names) > 3 else ''})" if len(names) else ""

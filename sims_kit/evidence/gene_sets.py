"""Whether a model leans on a set of genes that it should leave alone, such as those of cell stress.

Stress of cells in culture changes the same genes in cells of every type (Bhaduri et al. 2020, Nature 578, 142-148). A
model that looks at them tells stressed cells from others rather than one type from another, and may fail in tissue.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from numbers import Integral, Real

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from scipy.stats import false_discovery_control

from sims_kit.cells.genes import id_kind
from sims_kit.cells.loaders import query_batches
from sims_kit.datasets.simulate import STRESS_GENES
from sims_kit.errors import DataError, GeneError, SettingError, UnknownNameError
from sims_kit.explanation import Explanation
from sims_kit.text import label_text

MEASURES = ("weight", "contribution")
TESTS = (*MEASURES, *(f"top_by_{measure}" for measure in MEASURES))  # shares, and how many are among the first
NAMED = 3  # classes in the verdict, before it only counts them
GENES_PER_BIN = 10  # below that, a gene has hardly another one to be exchanged for
DRAWN_AT_ONCE = 1000  # sets; bounds the memory of the random numbers
TOLERANCE = 1e-9  # sums of the same weights in another order are equal up to that


@dataclass(frozen=True)
class GeneSetCheck:
    """How much a model relies on a set of genes, against sets of equally expressed genes.

    Attributes
    ----------
    overall
        Series, over all cells:

        ``n_cells``
        ``weight``, ``contribution``
            Share that the set holds of the mask weight, and of the sizes of the contributions, from 0 to 1.
        ``<measure>_expected``, ``<measure>_low``, ``<measure>_high``
            Of the drawn sets: mean, and the central 95 %.
        ``<measure>_ratio``
            Share against the expected one; NaN where that is 0.
        ``<measure>_p``, ``<measure>_p_adjusted``
            Share of the drawn sets that hold as much or more, each with the set itself counted in, and the same after
            Benjamini and Hochberg over all tests of the row's table.
        ``cells``
            Share of cells whose masks pass any gene of the set.
        ``largest_weight``, ``largest_gene``
            The largest mean mask weight of a member, and which one that is.
        ``top_by_weight``, ``top_by_contribution``
            Members among the first genes by mean weight, and by mean size of the contribution; also with
            ``_expected``, ``_p`` and ``_p_adjusted``. A leak shows here that the shares hide where the strongest
            markers of a class hold most of it.
    classes
        DataFrame with the same columns, one row per class; p-values are adjusted over classes and tests.
    genes
        DataFrame, one row per member that the model knows, largest weight first: ``weight``, ``contribution`` and
        ``cells`` as in `Explanation.genes`, ``rank`` by weight among all genes (1: most used).
    missing
        Members that the model does not know.
    verdict
        All of that in words.
    n_permutations
        Sets that were drawn.
    """

    overall: pd.Series
    classes: pd.DataFrame
    genes: pd.DataFrame
    missing: tuple[str, ...] = field(repr=False)
    verdict: str
    n_permutations: int


def check_gene_set(
    explanation: Explanation,
    cells: AnnData,
    genes: Sequence[str] = STRESS_GENES,
    *,
    groupby: str | None = None,
    n_permutations: int = 1000,
    n_bins: int = 20,
    alpha: float = 0.05,
    top: int = 100,
    layer: str | None = None,
    seed: int = 0,
) -> GeneSetCheck:
    """How much a model relies on a set of genes, overall and for each class, and whether that is more than chance.

    A permutation test: sets of the same size are drawn from all genes of the model, the members too, so that each
    member gives way to a gene of about the same mean log-normalised expression. Under chance every p-value is as
    likely as the next. It tells that a model looks at the genes, not that this is wrong: genes of a set may mark a
    class.

    Parameters
    ----------
    explanation
        From `sims_kit.explain`.
    cells
        The cells that were explained, in the same order.
    genes
        The set, named as the model's genes are; the genes of cell stress by default.
    groupby
        `obs` column that defines the classes; those of the explanation when left out.
    n_permutations
        Sets to draw; more are drawn where the smallest p-value would not pass `alpha` for a single class.
    n_bins
        Groups of genes by expression, of equal numbers, within which genes are exchanged; fewer where they would hold
        under 10 genes.
    alpha
        Adjusted p-value below which the verdict names a class; 0.01 to 0.5.
    top
        First genes among which members are counted.
    layer
        Where the matrix of `cells` is, as in `sims_kit.explain`.
    seed
        Equal seeds draw equal sets.

    Raises
    ------
    DataError
        If `cells` are not those that were explained, in the same order, or as `sims_kit.explain` raises it.
    GeneError
        If the model knows none of the genes.
    SettingError
        If a setting is outside of its range.
    UnknownNameError
        If there is no such column or layer.
    """
    _check_settings(genes, alpha, n_permutations=n_permutations, n_bins=n_bins, top=top)
    if list(cells.obs_names) != list(explanation.cell_names):
        raise DataError(
            f"There are {cells.n_obs:,} cells, the explanation has {len(explanation.cell_names):,}, or they are in "
            "another order; pass the AnnData that was explained."
        )
    if groupby is not None and groupby not in cells.obs:
        raise UnknownNameError("obs column", groupby, cells.obs.columns)
    labels = (
        explanation.labels if groupby is None else label_text(cells.obs[groupby]).fillna("(no label)").to_numpy(str)
    )
    members, missing = find_members(genes, explanation.gene_names)
    classes, codes = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
    bins = _expression_bins(_mean_expression(cells, explanation.gene_names, layer), n_bins)
    n_permutations = max(n_permutations, ceil(len(TESTS) * len(classes) / alpha))
    sets = _draw_sets(bins, members, n_permutations, np.random.default_rng(seed))

    groups = _membership(codes, len(classes))
    table = _describe(explanation, groups, members, sets, top)
    table.index = pd.Index(["overall", *classes], name="class")
    overall, by_class = _adjusted(table.iloc[:1]).iloc[0], _adjusted(table.iloc[1:])
    ranks = explanation.genes["weight"].rank(method="min", ascending=False).astype(int)
    own = explanation.genes.assign(rank=ranks).loc[explanation.gene_names[members]]
    own = own.sort_values("weight", ascending=False, kind="stable")
    verdict = _verdict(overall, by_class, len(members), len(explanation.gene_names), alpha)
    return GeneSetCheck(overall, by_class, own, missing, verdict, n_permutations)


def _describe(
    explanation: Explanation, groups: sparse.csr_matrix, members: np.ndarray, sets: sparse.csr_matrix, top: int
) -> pd.DataFrame:
    """One row per group of cells: what `GeneSetCheck` lists, but for adjusted p-values."""
    n_cells = np.asarray(groups.sum(axis=1)).ravel()
    sums = {"weight": groups @ explanation.cells, "contribution": groups @ abs(explanation.contributions)}
    sums = {measure: values.toarray() for measure, values in sums.items()}
    table = pd.DataFrame({"n_cells": n_cells.astype(int)})
    own = sparse.csr_matrix((np.ones(len(members)), members, [0, len(members)]), (1, sets.shape[1]))
    for measure, values in sums.items():
        shares = values / np.maximum(values.sum(axis=1, keepdims=True), np.finfo(float).tiny)
        held, drawn = (own @ shares.T).ravel(), sets @ shares.T
        expected = drawn.mean(axis=0)
        low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
        as_much = (drawn >= held * (1 - TOLERANCE)).sum(axis=0)
        ratio = np.divide(held, expected, out=np.full(len(held), np.nan), where=expected > 0)
        found = {"": held, "_expected": expected, "_low": low, "_high": high, "_ratio": ratio}
        found["_p"] = (1 + as_much) / (1 + len(drawn))
        table = table.assign(**{f"{measure}{ending}": column for ending, column in found.items()})
    any_used = np.asarray((explanation.cells[:, members] > 0).sum(axis=1)).ravel() > 0
    table["cells"] = (groups @ any_used) / n_cells
    weights = sums["weight"][:, members] / n_cells[:, None]
    table["largest_weight"] = weights.max(axis=1)
    table["largest_gene"] = explanation.gene_names[members[weights.argmax(axis=1)]]
    for measure, values in sums.items():
        order = np.argsort(-values, axis=1, kind="stable")[:, :top]
        first = np.zeros(values.shape)
        np.put_along_axis(first, order, np.take_along_axis(values, order, axis=1) > 0, axis=1)  # equal zeros: no rank
        held, drawn = (own @ first.T).ravel(), sets @ first.T
        table[f"top_by_{measure}"] = held.astype(int)
        table[f"top_by_{measure}_expected"] = drawn.mean(axis=0)
        table[f"top_by_{measure}_p"] = (1 + (drawn >= held).sum(axis=0)) / (1 + len(drawn))
    return table


def _membership(codes: np.ndarray, n_classes: int) -> sparse.csr_matrix:
    """Groups x cells, 1 where a cell is in: all cells, then each class."""
    cells = np.arange(len(codes))
    rows = np.concatenate([np.zeros_like(codes), codes + 1])
    return sparse.csr_matrix((np.ones(len(rows)), (rows, np.tile(cells, 2))), (1 + n_classes, len(codes)))


def _mean_expression(cells: AnnData, gene_names: pd.Index, layer: str | None) -> np.ndarray:
    """Mean log-normalised expression of each gene of the model, as the model reads the cells."""
    batches, _, _ = query_batches(cells, list(gene_names), layer=layer)
    total = np.zeros(len(gene_names))
    for batch in batches:
        total += np.bincount(batch.cells.col_indices(), batch.cells.values(), len(gene_names))
    return total / cells.n_obs


def _expression_bins(means: np.ndarray, n_bins: int) -> np.ndarray:
    """The bin of each gene: equal numbers by rising mean."""
    n_bins = max(1, min(n_bins, len(means) // GENES_PER_BIN))
    bins = np.empty(len(means), dtype=int)
    for number, genes in enumerate(np.array_split(np.argsort(means, kind="stable"), n_bins)):
        bins[genes] = number
    return bins


def _draw_sets(bins: np.ndarray, members: np.ndarray, n_sets: int, stream: np.random.Generator) -> sparse.csr_matrix:
    """Sets x genes, 1 where a gene is in: as many of each bin as the members have there, none twice."""
    drawn = []
    for number, needed in zip(*np.unique(bins[members], return_counts=True), strict=True):
        genes = np.flatnonzero(bins == number)
        for start in range(0, n_sets, DRAWN_AT_ONCE):
            keys = stream.random((min(DRAWN_AT_ONCE, n_sets - start), len(genes)), dtype=np.float32)
            rows, picked = np.indices((len(keys), needed))[0], np.argpartition(keys, needed - 1, axis=1)[:, :needed]
            drawn.append((start + rows.ravel(), genes[picked].ravel()))
    rows, genes = (np.concatenate(part) for part in zip(*drawn, strict=True))
    return sparse.csr_matrix((np.ones(len(rows)), (rows, genes)), (n_sets, len(bins)))


def _adjusted(table: pd.DataFrame) -> pd.DataFrame:
    """The table with p-values after Benjamini and Hochberg over its rows and tests."""
    columns = [f"{test}_p" for test in TESTS]
    found = table[columns].to_numpy(dtype=float)
    adjusted = false_discovery_control(found.ravel()).reshape(found.shape)
    table = table.copy()
    for column, values in zip(columns, adjusted.T, strict=True):
        table.insert(table.columns.get_loc(column) + 1, f"{column}_adjusted", values)
    return table


def _verdict(overall: pd.Series, classes: pd.DataFrame, n_members: int, n_genes: int, alpha: float) -> str:
    """What was found, in words."""
    noun, hold, they, them = ("gene", "holds", "it", "it") if n_members == 1 else ("genes", "hold", "they", "them")
    text = f"The {n_members:,} {noun} of the set found among {n_genes:,} {hold} {_in_words(overall, first=True)}"
    adjusted = [f"{test}_p_adjusted" for test in TESTS]
    relies = (overall[adjusted] < alpha).any()
    striking = classes[(classes[adjusted] < alpha).any(axis=1)].sort_values("weight", ascending=False, kind="stable")
    if not len(striking):
        relied = f"the model relies on {them}, in no single class more than by chance"
        return f"{text}: {relied if relies else f'no sign that the model relies on {them}'}."
    text += f": the model relies on {them}. In " if relies else ". In "
    text += "; in ".join(
        f"class {label} {they} {hold} {_in_words(row)}" for label, row in striking.head(NAMED).iterrows()
    )
    more = len(striking) - NAMED
    text += f"; and {more:,} more {'class stands' if more == 1 else 'classes stand'} out" if more > 0 else ""
    return f"{text}: look at {'it' if len(striking) == 1 else 'them'}."


def _in_words(row: pd.Series, first: bool = False) -> str:
    """Shares, ratios and p-values of both measures; the first time, what they are."""
    shares = [_percent(row[measure]) for measure in MEASURES]
    of = (" of the mask weight", " of the contributions") if first else ("", "")
    ratios = " and ".join(f"{row[f'{measure}_ratio']:.1f}".replace("nan", "0.0") for measure in MEASURES)
    ratios += f" times what {'sets of equally expressed genes hold' if first else 'such sets hold'}"
    p_values = " and ".join(_p_value(row[f"{measure}_p_adjusted"]) for measure in MEASURES).replace("and = ", "and ")
    counts = " and ".join(f"{row[f'top_by_{measure}']:.0f}" for measure in MEASURES)
    expected = " and ".join(f"{row[f'top_by_{measure}_expected']:.1f}" for measure in MEASURES)
    counted = " and ".join(_p_value(row[f"top_by_{measure}_p_adjusted"]) for measure in MEASURES)
    counted = f", with {counts} among the first genes, {expected} expected (p {counted.replace('and = ', 'and ')})"
    return f"{shares[0]}{of[0]} and {shares[1]}{of[1]}, {ratios} (adjusted p {p_values}){counted}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.0005 or share == 0 else "under 0.1 %"


def _p_value(p: float) -> str:
    if p < 0.001 or p > 0.994:
        return "< .001" if p < 0.001 else "= 1"
    return f"= {p:.{2 if p >= 0.0995 else 3}f}".replace("0.", ".", 1)


def find_members(genes: Sequence[str], gene_names: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Sorted positions of the genes of a set that a model knows, and the names of the others.

    Raises
    ------
    GeneError
        If it knows none.
    """
    genes, gene_names = list(dict.fromkeys(map(str, genes))), pd.Index(gene_names)
    places = gene_names.get_indexer(genes)
    if (places >= 0).any():
        return np.sort(places[places >= 0]), tuple(g for g, place in zip(genes, places, strict=True) if place < 0)
    in_model = {name.casefold(): name for name in gene_names}
    cased = [in_model[gene.casefold()] for gene in genes if gene.casefold() in in_model]
    kinds = {"ensembl": "Ensembl ids", "entrez": "Entrez ids", "symbol": "symbols"}
    if cased:
        advice = f"{len(cased):,} are there in another case ({', '.join(cased[:3])}): spell the set that way."
    else:
        advice = "Give the set in ids of the model's kind and species."
    raise GeneError(
        f"None of the {len(genes):,} genes of the set is among the model's {len(gene_names):,}: the set has "
        f"{kinds[id_kind(genes)]} such as {', '.join(genes[:3])}, the model {kinds[id_kind(gene_names)]} such as "
        f"{', '.join(gene_names[:3])}. {advice}"
    )


def _check_settings(genes: Sequence[str], alpha: float, **whole: int) -> None:
    if isinstance(genes, str) or not len(genes):
        raise SettingError(f"genes={genes!r}; expected a list of one or more gene names.")
    if not isinstance(alpha, Real) or not 0.01 <= alpha <= 0.5:
        raise SettingError(f"alpha={alpha!r}; expected a number from 0.01 to 0.5.")
    for name, value in whole.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise SettingError(f"{name}={value!r}; expected a whole number of 1 or more.")

"""Do models of other seeds or folds name the same genes? Rank-biased overlap, consensus, and how many models it takes.

Tables are class x gene, such as `Explanation.class_contributions` of several models. Only genes above zero have a rank
in a class, largest first: sparse masks leave thousands of genes at exactly zero, and in the order of the columns these
would agree by themselves.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import comb
from numbers import Integral, Real

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from sims_kit.errors import DataError, GeneError, SettingError

Tables = Sequence[pd.DataFrame] | Mapping[str, pd.DataFrame]


@dataclass(frozen=True)
class Consensus:
    """What several models say together of the genes of each class.

    Attributes
    ----------
    mean
        DataFrame, classes x genes: mean over the tables.
    sd
        The same of the standard deviation (n - 1 in the denominator; NaN if there is one table).
    n
        Number of tables.
    members
        The tables, on the classes and genes that all share, in the order of the first.
    """

    mean: pd.DataFrame
    sd: pd.DataFrame
    n: int
    members: tuple[pd.DataFrame, ...] = field(repr=False)

    def top_genes(self, n: int = 10) -> pd.DataFrame:
        """The `n` genes of the largest mean for each class; fewer where fewer have a mean above zero.

        Returns
        -------
        DataFrame
            One row per class and rank: ``class``, ``rank`` (from 1), ``gene``, ``mean``, ``sd``, and ``share``, the
            share of the tables that have the gene among their own `n` first of the class.

        Raises
        ------
        SettingError
            If `n` is not a whole number of 1 or more.
        """
        _check_whole("n", n)
        parts = []
        for row, label in enumerate(self.mean.index):
            top = _ranking(self.mean.to_numpy()[row], n)
            own = np.zeros(self.mean.shape[1])
            for member in self.members:
                own[_ranking(member.to_numpy()[row], n)] += 1 / self.n
            values = {"gene": self.mean.columns[top], "mean": self.mean.to_numpy()[row, top]}
            values |= {"sd": self.sd.to_numpy()[row, top], "share": own[top]}
            parts.append(pd.DataFrame({"class": label, "rank": np.arange(1, len(top) + 1), **values}))
        return pd.concat(parts, ignore_index=True)


def rank_biased_overlap(
    first: Sequence[str], second: Sequence[str], *, p: float = 0.9, depth: int | None = None
) -> float:
    """How alike two rankings are, the first ranks counting most: 1 for the same, 0 for nothing in common.

    The extrapolated overlap, RBO_ext, of Webber, Moffat and Zobel (2010, ACM Transactions on Information Systems
    28(4):20, equation 32): the mean share that the first d names have in common over all depths d, with weights that
    fall by `p` from each depth to the next; what lies below the end of the rankings is taken to agree as much as what
    is seen. With p = 0.9 the first 10 ranks carry 86 % of the weight, with 0.98 the first 50.

    Parameters
    ----------
    first, second
        Names, best first, each once; the lengths may differ.
    p
        Persistence, above 0 and below 1; the larger, the more the later ranks count.
    depth
        Ranks to compare at most; all when left out.

    Returns
    -------
    float
        From 0 to 1.

    Raises
    ------
    DataError
        If a ranking is empty or has a name twice.
    SettingError
        If `p` or `depth` is outside of its range.
    """
    _check_overlap_settings(p, depth)
    rankings = [pd.Index(list(names)) for names in (first, second)]
    for names, which in zip(rankings, ("first", "second"), strict=True):
        if not len(names):
            raise DataError(f"The {which} ranking is empty; expected one or more names, best first.")
        if names.has_duplicates:
            twice = names[names.duplicated()][0]
            raise DataError(f"The {which} ranking has {twice!r} twice; expected each name once. Drop its later places.")
    first, second = (names[:depth] for names in rankings)
    return _overlap(np.arange(len(first)), first.get_indexer(second), p)


def stability(tables: Tables, *, p: float = 0.9, depth: int | None = 100) -> pd.DataFrame:
    """How well models agree on the genes of each class, for every pair of them.

    Parameters
    ----------
    tables
        Two or more DataFrames, classes x genes, one per model; a mapping gives them names. Compared are the classes
        and genes that all of them have.
    p, depth
        As in `rank_biased_overlap`.

    Returns
    -------
    DataFrame
        One row per pair and class: ``first``, ``second`` (names, or numbers from 0), ``class``, ``rbo`` of the genes
        above zero (NaN where one of the two has none), and ``spearman``, the rank correlation over all genes (NaN
        where all are equal).

    Raises
    ------
    DataError
        If there are fewer than two tables, or one is empty, has a name twice or values that are not finite.
    GeneError
        If there is no gene that all tables have.
    SettingError
        If `p` or `depth` is outside of its range.

    Warns
    -----
    UserWarning
        If classes or genes are left out because not every table has them.
    """
    _check_overlap_settings(p, depth)
    shared = _shared_tables(tables, least=2)
    values = {name: table.to_numpy(dtype=float) for name, table in shared.items()}
    rankings = {name: [_ranking(row, depth) for row in rows] for name, rows in values.items()}
    scores = {name: _standardised(rankdata(rows, axis=1)) for name, rows in values.items()}
    classes = next(iter(shared.values())).index
    parts = []
    for a, b in combinations(shared, 2):
        overlaps = [_overlap(*pair, p) for pair in zip(rankings[a], rankings[b], strict=True)]
        both = {"rbo": overlaps, "spearman": (scores[a] * scores[b]).sum(axis=1)}
        parts.append(pd.DataFrame({"first": a, "second": b, "class": classes, **both}))
    return pd.concat(parts, ignore_index=True)


def consensus(tables: Tables) -> Consensus:
    """Mean and spread of the tables of several models, over the classes and genes that all of them have.

    Parameters
    ----------
    tables
        One or more DataFrames, classes x genes, as for `stability`.

    Raises
    ------
    DataError, GeneError
        As `stability` raises them, but for one table.

    Warns
    -----
    UserWarning
        If classes or genes are left out because not every table has them.
    """
    shared = _shared_tables(tables, least=1)
    first = next(iter(shared.values()))
    values = np.stack([table.to_numpy(dtype=float) for table in shared.values()])
    sd = values.std(axis=0, ddof=1) if len(values) > 1 else np.full(first.shape, np.nan)
    mean, sd = (pd.DataFrame(part, first.index, first.columns) for part in (values.mean(axis=0), sd))
    return Consensus(mean, sd, len(values), tuple(shared.values()))


def members_for_stability(
    tables: Tables,
    *,
    sizes: Sequence[int] | None = None,
    n_draws: int = 20,
    seed: int = 0,
    p: float = 0.9,
    depth: int | None = 100,
) -> pd.DataFrame:
    """How many models it takes until two consensuses of that many agree.

    For each size, pairs of groups of as many tables are drawn that share none; the tables of each group are averaged,
    and the means compared. Draws overlap each other, so their spread is no confidence interval.

    Parameters
    ----------
    tables
        Two or more, as for `stability`.
    sizes
        Tables in a group, each at most half of all; 1 to half of all when left out.
    n_draws
        Pairs of groups per size; where no more than that exist, all of them, once each.
    seed
        Equal seeds draw equal groups.
    p, depth
        As in `rank_biased_overlap`.

    Returns
    -------
    DataFrame
        One row per size and draw: ``n_members``, ``draw`` (from 0), ``rbo``, the mean over the classes.

    Raises
    ------
    DataError, GeneError, SettingError
        As `stability` raises them, and if a size is not a whole number from 1 to half of the tables.

    Warns
    -----
    UserWarning
        If classes or genes are left out because not every table has them.
    """
    _check_overlap_settings(p, depth)
    _check_whole("n_draws", n_draws)
    shared = _shared_tables(tables, least=2)
    half = len(shared) // 2
    sizes = range(1, half + 1) if sizes is None else sizes
    if wrong := [size for size in sizes if not isinstance(size, Integral) or not 1 <= size <= half]:
        raise SettingError(
            f"sizes has {wrong[0]!r}; expected whole numbers from 1 to {half}, as two groups that share no table must "
            f"fit into {len(shared)} tables. Train more models for larger groups."
        )
    values = np.stack([table.to_numpy(dtype=float) for table in shared.values()])
    rows = []
    for size in sizes:
        stream = np.random.default_rng([seed, size])
        for draw, groups in enumerate(_pairs_of_groups(len(values), size, n_draws, stream)):
            means = [values[list(group)].mean(axis=0) for group in groups]
            rankings = [[_ranking(row, depth) for row in mean] for mean in means]
            overlaps = np.array([_overlap(*pair, p) for pair in zip(*rankings, strict=True)])
            known = overlaps[~np.isnan(overlaps)]
            rows.append((int(size), draw, known.mean() if len(known) else np.nan))
    return pd.DataFrame(rows, columns=["n_members", "draw", "rbo"])


def _pairs_of_groups(n: int, size: int, n_draws: int, stream: np.random.Generator) -> Iterator[tuple]:
    """Pairs of disjoint groups of `size` out of `n`: all there are, or `n_draws` at random."""
    if comb(n, size) * comb(n - size, size) // 2 <= n_draws:
        for first in combinations(range(n), size):
            rest = [member for member in range(first[0] + 1, n) if member not in first]  # the other pairs are mirrored
            yield from ((first, second) for second in combinations(rest, size))
    else:
        for _ in range(n_draws):
            order = stream.permutation(n)
            yield order[:size], order[size : 2 * size]


def _ranking(values: np.ndarray, depth: int | None) -> np.ndarray:
    """Positions of the values above zero, largest first, equal ones in order; at most `depth`."""
    lowest = np.partition(values, -depth)[-depth] if depth is not None and depth < len(values) else 0
    candidates = np.flatnonzero((values > 0) & (values >= lowest))  # spares sorting a transcriptome
    return candidates[np.argsort(-values[candidates], kind="stable")][:depth]


def _overlap(first: np.ndarray, second: np.ndarray, p: float) -> float:
    """RBO_ext of two rankings of whole numbers, each once; negative ones in no other ranking. NaN if one is empty."""
    short, long = sorted((len(first), len(second)))
    if not short:
        return np.nan
    place = np.full(max(first.max(), second.max()) + 1, -1)
    place[first] = np.arange(len(first))
    met = np.where(second >= 0, place[second], -1)
    deepest = np.maximum(met, np.arange(len(second)))[met >= 0]  # from this depth on, both have the name
    common = np.cumsum(np.bincount(deepest, minlength=long))
    depths = np.arange(1, long + 1)
    weights = (1 - p) / p * p**depths
    at_short, at_end = common[short - 1], common[-1]
    below = np.where(depths > short, at_short * (depths - short) / (short * depths), 0)  # taken for the short one
    return float(weights @ (common / depths + below) + ((at_end - at_short) / long + at_short / short) * p**long)


def _standardised(ranks: np.ndarray) -> np.ndarray:
    """Rows of mean 0 and length 1; NaN where all are equal."""
    centred = ranks - ranks.mean(axis=1, keepdims=True)
    length = np.sqrt((centred**2).sum(axis=1, keepdims=True))
    return np.divide(centred, length, out=np.full_like(centred, np.nan), where=length > 0)


def _shared_tables(tables: Tables, least: int) -> dict:
    """The tables by name, on the classes and genes that all have."""
    if isinstance(tables, pd.DataFrame):
        raise DataError("tables is a single DataFrame; expected a list of them, or a mapping from names to them.")
    named = dict(tables) if isinstance(tables, Mapping) else dict(enumerate(tables))
    if len(named) < least:
        raise DataError(
            f"{len(named)} tables given; expected {least} or more, each classes x genes, from models of other seeds or "
            "folds. Pass explanation.class_contributions of each."
        )
    for name, table in named.items():
        _check_table(name, table)
    first = next(iter(named.values()))
    classes, genes = first.index, first.columns
    for table in named.values():
        classes, genes = classes[classes.isin(table.index)], genes[genes.isin(table.columns)]
    if not len(classes):
        raise DataError(f"The tables share no class; the first has {list(first.index[:5])}. Name classes alike in all.")
    if not len(genes):
        raise GeneError(f"The tables share no gene; the first has {list(first.columns[:3])}. Use one kind of gene id.")
    left = []
    for kind, axis, kept in (("classes", "index", classes), ("genes", "columns", genes)):
        every = dict.fromkeys(name for table in named.values() for name in getattr(table, axis))
        if names := [str(name) for name in every if name not in kept]:
            left.append(f"{len(names):,} {kind} ({', '.join(names[:3])}{', ...' * (len(names) > 3)})")
    if left:
        warnings.warn(f"Not every table has these, so they are left out: {' and '.join(left)}.", stacklevel=3)
    return {name: table.loc[classes, genes] for name, table in named.items()}


def _check_table(name: object, table: pd.DataFrame) -> None:
    if not isinstance(table, pd.DataFrame) or not table.size:
        raise DataError(f"Table {name!r} is {type(table).__name__} without values; expected a DataFrame class x gene.")
    for kind, names in (("class", table.index), ("gene", table.columns)):
        if names.has_duplicates:
            twice = names[names.duplicated()][0]
            raise DataError(f"Table {name!r} has the {kind} {twice!r} twice; expected each once. Merge or drop one.")
    if not np.isfinite(table.to_numpy(dtype=float)).all():
        raise DataError(f"Table {name!r} has values that are not finite; expected numbers. Fill or drop those classes.")


def _check_overlap_settings(p: float, depth: int | None) -> None:
    if not isinstance(p, Real) or not 0 < p < 1:
        raise SettingError(f"p={p!r}; expected a number above 0 and below 1, such as 0.9.")
    if depth is not None:
        _check_whole("depth", depth)


def _check_whole(name: str, value: int) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise SettingError(f"{name}={value!r}; expected a whole number of 1 or more.")

"""Genes of a query brought onto a model's vocabulary, with a report of what was found."""

import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import scipy.sparse as sp

from sims_kit.errors import DataError, GeneError, SettingError

ENOUGH = 0.8  # share of the model's genes below which a warning is due
USABLE = 0.2  # share of the model's genes below which a prediction would mean nothing
ID_COLUMNS = {  # where 10x, CELLxGENE, scanpy and biomart files keep another set of gene names
    *(
        "gene",
        "gene_symbols",
        "gene_symbol",
        "gene_ids",
        "gene_id",
        "gene_name",
        "gene_names",
        "gene_short_name",
    ),
    *(
        "feature_name",
        "feature_id",
        "symbol",
        "symbols",
        "hgnc_symbol",
        "external_gene_name",
        "index",
        "_index",
    ),
    *("ensembl", "ensembl_id", "ensembl_ids", "ensembl_gene_id", "entrez_id", "entrezgene_id"),
}

_ENSEMBL = re.compile(r"(ENS[A-Z]*\d{6,}|WBGene\d+|FBgn\d+)(\.\d+)?")
_VERSION = re.compile(r"^(ENS[A-Z]*\d{6,})\.\d+$")


def id_kind(genes: Iterable[str]) -> str:
    """What most of the gene names are: ``"ensembl"``, ``"entrez"`` or ``"symbol"``."""
    genes = [str(gene) for gene in genes]
    if sum(map(bool, map(_ENSEMBL.fullmatch, genes))) * 2 > len(genes):
        return "ensembl"
    if sum(map(str.isdecimal, genes)) * 2 > len(genes):
        return "entrez"
    return "symbol"


@dataclass(frozen=True)
class GeneCoverage:
    """How much of a model's vocabulary a query holds; `str` gives the report to print.

    Attributes
    ----------
    n_model, n_query, n_matched
        Genes of the model, of the query, and genes of the model that the query has.
    fraction
        ``n_matched / n_model``.
    missing
        Model genes that the query lacks; they are zero in every cell.
    extra
        Number of query genes that the model does not know; they are ignored.
    duplicates
        Number of query genes beyond the first that stand for the same model gene; they are summed.
    kind_model, kind_query
        ``"ensembl"``, ``"entrez"`` or ``"symbol"``.
    column
        Where the query's names were found: ``"var_names"`` or a column of ``var``.
    """

    n_model: int
    n_query: int
    n_matched: int
    fraction: float
    missing: list[str] = field(repr=False)
    extra: int
    duplicates: int
    kind_model: str
    kind_query: str
    column: str = "var_names"

    def _share(self) -> str:
        return f"{self.n_matched:,} of the model's {self.n_model:,} genes found ({self.fraction:.1%})"

    def __str__(self) -> str:
        where = self.column if self.column == "var_names" else f"var[{self.column!r}] (var_names did not match)"
        examples = f", for example {_examples(self.missing)}" if self.missing else ""
        lines = [
            f"Gene coverage: {self._share()}",
            f"  ids      model {self.kind_model}, query {self.kind_query}, read from {where}",
            f"  missing  {len(self.missing):,} model genes, taken as zero{examples}",
            f"  ignored  {self.extra:,} of the query's {self.n_query:,} genes, unknown to the model",
        ]
        if self.duplicates:
            lines.append(f"  summed   {self.duplicates:,} query genes that share a model gene with another one")
        return "\n".join(lines)


class GeneAlignment:
    """A mapping of a query's genes onto a vocabulary.

    A name matches when it is equal, or when both are Ensembl ids equal up to the version
    (``ENSG00000141510.18``).

    Parameters
    ----------
    query_genes
        One name per column of the query's matrix; may repeat.
    vocabulary
        The model's genes, each once, in the model's order.
    column
        Where `query_genes` come from, for the report.

    Raises
    ------
    GeneError
        The vocabulary is empty or names a gene twice.
    """

    def __init__(self, query_genes: Sequence[str], vocabulary: Sequence[str], column: str = "var_names"):
        query, self.vocabulary = [str(gene) for gene in query_genes], [str(gene) for gene in vocabulary]
        repeated = pd.Index(self.vocabulary)[pd.Index(self.vocabulary).duplicated()]
        if len(repeated) or not self.vocabulary:
            found = f"names {len(repeated):,} genes twice, e.g. {_examples(repeated)}" if len(repeated) else "is empty"
            raise GeneError(f"The vocabulary {found}. Give each gene once, for example with dict.fromkeys(genes).")

        exact = {gene: i for i, gene in enumerate(self.vocabulary)}
        unversioned = {_unversioned(gene): i for gene, i in reversed(exact.items())}
        target = np.array([exact.get(gene, unversioned.get(_unversioned(gene), -1)) for gene in query], dtype=np.int64)
        source = np.flatnonzero(target >= 0)
        times_found = np.bincount(target[source], minlength=len(self.vocabulary))
        self._same = query == self.vocabulary
        self._selector = sp.csr_matrix(  # (query genes, vocabulary), one 1 per matched query gene
            (np.ones(len(source), np.float32), (source, target[source])),
            shape=(len(query), len(self.vocabulary)),
        )
        self.coverage = GeneCoverage(
            n_model=len(self.vocabulary),
            n_query=len(query),
            n_matched=int(np.count_nonzero(times_found)),
            fraction=float(np.count_nonzero(times_found) / len(self.vocabulary)),
            missing=[self.vocabulary[i] for i in np.flatnonzero(times_found == 0)],
            extra=len(query) - len(source),
            duplicates=int((times_found[times_found > 0] - 1).sum()),
            kind_model=id_kind(self.vocabulary),
            kind_query=id_kind(query),
            column=column,
        )

    def places(self) -> np.ndarray:
        """(vocabulary,) int64: the first of the query's genes that stands for each, -1 where none does."""
        pairs = self._selector.tocoo()
        places = np.full(len(self.vocabulary), -1)
        places[pairs.col[::-1]] = pairs.row[::-1]
        return places

    def apply(self, cells: sp.csr_matrix) -> sp.csr_matrix:
        """Cells (n, query genes) as (n, vocabulary): duplicates summed, missing genes zero, extra ones gone.

        Costs O(nonzeros). Identical gene lists return `cells` itself.

        Raises
        ------
        DataError
            The matrix does not have one column per query gene.
        """
        if cells.shape[1] != self._selector.shape[0]:
            raise DataError(
                f"The matrix has {cells.shape[1]:,} columns but {self._selector.shape[0]:,} genes were "
                "aligned: align the genes of this very matrix."
            )
        if self._same:
            return cells
        aligned = cells @ self._selector
        aligned.sort_indices()
        return aligned


def align_genes(var: pd.DataFrame, vocabulary: Sequence[str], cell_names: Sequence[str] = ()) -> GeneAlignment:
    """Align a query to a model's genes, by `var_names` or by the column of `var` that fits.

    Where `var_names` match under 20 % of the model's genes, columns known to hold gene names
    (``gene_symbols``, ``gene_ids``, ``feature_name``, ...) are tried; the coverage says which was used.

    Parameters
    ----------
    var
        ``adata.var`` of the query: one row per gene, names in the index.
    vocabulary
        The model's genes, in its order.
    cell_names
        ``adata.obs_names`` of the query, to tell a turned matrix from one of other genes.

    Returns
    -------
    GeneAlignment
        With the report in ``.coverage``.

    Raises
    ------
    GeneError
        Under 20 % of the model's genes are there.
    DataError
        The model's genes are there, but as names of the cells: the matrix is turned.

    Warns
    -----
    UserWarning
        Under 80 % of the model's genes are there.
    """
    best = GeneAlignment(var.index, vocabulary)
    if best.coverage.fraction < USABLE:
        columns = [column for column in var.columns if str(column).lower() in ID_COLUMNS]
        others = [GeneAlignment(var[column].astype(str), vocabulary, str(column)) for column in columns]
        best = max([best, *others], key=lambda alignment: alignment.coverage.fraction)
    coverage = best.coverage
    if coverage.fraction < USABLE:
        if len(cell_names) and GeneAlignment(cell_names, vocabulary).coverage.fraction >= USABLE:
            raise DataError(
                f"The query's matrix is turned: its {len(cell_names):,} rows are named like the model's genes "
                f"({_examples(cell_names)}), its {len(var):,} columns are not ({_examples(var.index)}). Expected cells "
                'in rows. Read it with orientation="genes_by_cells", or turn it yourself: query = query.T.copy()'
            )
        raise GeneError(
            f"Only {coverage._share()}; at least {USABLE:.0%} are needed. The model expects "
            f"{_described(vocabulary)}; the query's var_names are {_described(var.index)}, its var columns "
            f"{list(map(str, var.columns))}. Set adata.var_names to ids of the model's kind and species, or "
            "train a model on ids of this kind."
        )
    if coverage.fraction < ENOUGH:
        warnings.warn(
            f"Only {coverage._share()}, under {ENOUGH:.0%}. The missing ones are taken as zero: expect lower accuracy.",
            stacklevel=2,
        )
    return best


def shared_genes(
    gene_lists: Sequence[Sequence[str]], how: str = "intersection", names: Sequence[str] | None = None
) -> list[str]:
    """One vocabulary for several files, each gene once, in the order of the first file.

    Parameters
    ----------
    gene_lists
        Gene names of each file. Ensembl ids that differ by version only count as one.
    how
        ``"intersection"``: genes that every file has. ``"union"``: genes that any file has, those of
        later files after those of the first.
    names
        What to call the files in messages.

    Raises
    ------
    GeneError
        A file shares no gene with the ones before it; examples of both are named.
    SettingError
        `how` is neither of the two.

    Warns
    -----
    UserWarning
        The intersection is under 20 % of the smallest file.
    """
    if how not in ("intersection", "union"):
        raise SettingError(f'genes={how!r} is not possible. Choose "intersection" or "union".')
    names = names or [f"file {i + 1}" for i in range(len(gene_lists))]
    shared: dict[str, str] = {}  # name without version: name in the first file that has it
    for i, genes in enumerate(gene_lists):
        here: dict[str, str] = {}
        for gene in map(str, genes):
            here.setdefault(_unversioned(gene), gene)
        if i and not shared.keys() & here.keys():
            before = names[0] if i == 1 else f"the files before it ({', '.join(names[:i])})"
            raise GeneError(
                f"{names[i]} shares no gene with {before}: {_described(genes)} against "
                f"{_described(gene_lists[0])}. Use one kind of gene id and one species in all files, and "
                "check that genes are where orientation= says."
            )
        if i and how == "intersection":
            shared = {key: gene for key, gene in shared.items() if key in here}
        else:
            shared |= {key: gene for key, gene in here.items() if key not in shared}
    smallest = min(len(genes) for genes in gene_lists)
    if how == "intersection" and len(shared) < USABLE * smallest:
        warnings.warn(
            f"The files share only {len(shared):,} genes; the smallest has {smallest:,}. Check that they use "
            "one kind "
            'of gene id and one species; genes="union" keeps every gene and takes absent ones as zero.',
            stacklevel=2,
        )
    return list(shared.values())


def _unversioned(gene: str) -> str:
    return _VERSION.sub(r"\1", gene)


def _examples(genes: Sequence[str]) -> str:
    return ", ".join(repr(str(gene)) for gene in genes[:3])


def _described(genes: Sequence[str]) -> str:
    kind = {"ensembl": "Ensembl ids", "entrez": "Entrez ids", "symbol": "symbols"}[id_kind(genes)]
    return f"{len(genes):,} {kind} such as {_examples(genes)}"

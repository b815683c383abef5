"""Gene names: a query's genes matched to a model's, with a report; one vocabulary for several references."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import scipy.sparse as sp

from sims_kit.errors import DataError, FetchError, GeneError, SettingError
from sims_kit.text import examples, printable, warn

ENOUGH = 0.8  # share of the model's genes below which columns and tables are tried, then a warning is given
USABLE = 0.2  # share of the model's genes below which a prediction would mean nothing
_ENSEMBL = re.compile(r"(ENS[A-Z]*\d{6,}|WBGene\d+|FBgn\d+)(\.\d+)?")


def id_kind(genes: Iterable[str]) -> str:
    """Kind of most of the gene names: ``"ensembl"``, ``"entrez"`` or ``"symbol"``."""
    genes = [str(gene) for gene in genes]
    if sum(map(bool, map(_ENSEMBL.fullmatch, genes))) * 2 > len(genes):
        return "ensembl"
    return "entrez" if sum(map(str.isdecimal, genes)) * 2 > len(genes) else "symbol"


@dataclass(frozen=True)
class GeneCoverage:
    """How much of a model's vocabulary a query holds; `str` gives the report to print."""

    n_model: int
    n_query: int
    n_matched: int  # genes of the model that the query has
    fraction: float  # n_matched / n_model
    missing: list[str] = field(repr=False)  # model genes that the query lacks; zero in every cell
    extra: int  # query genes that the model does not know; ignored
    duplicates: int  # query genes beyond the first that match the same model gene; summed
    n_read: int  # genes that the model tells its classes by; the unseen score takes all
    missing_read: list[str] = field(repr=False)  # those of them that the query lacks
    kind_model: str  # "ensembl", "entrez" or "symbol"
    kind_query: str
    column: str  # where the query's names are: "var_names" or a column of var
    matched_by: dict[str, int]  # model genes by what matched them

    def share(self) -> str:
        """How many genes were found, and which of those that are read were not, in words."""
        n_found, is_part = self.n_read - len(self.missing_read), self.n_read < self.n_model
        read = f", and {n_found:,} of the {self.n_read:,} genes that it tells its classes by" if is_part else ""
        lost = f", but not {examples(self.missing_read)}" if self.missing_read else ""
        return f"{self.n_matched:,} of the model's {self.n_model:,} genes found ({self.fraction:.1%}){read}{lost}"

    def __str__(self) -> str:
        lines = [
            f"Gene coverage: {self.share()}",
            f"  ids      model {self.kind_model}, query {self.kind_query}",
            f"  matched  {', '.join(f'{n:,} by {how}' for how, n in self.matched_by.items())}",
            f"  missing  {len(self.missing):,} model genes, taken as zero",
            f"  ignored  {self.extra:,} of the query's {self.n_query:,} genes, unknown to the model",
            f"  summed   {self.duplicates:,} query genes that share a model gene with another one",
        ]
        return printable("\n".join(lines if self.duplicates else lines[:-1]), keep="\n")


class GeneAlignment:
    """A mapping of a query's genes, one per column of its matrix, onto a vocabulary that names each gene once.

    Versions of Ensembl ids and blanks around names are ignored; `column` is for the report in ``.coverage``. `places`,
    (vocabulary,) int64, has the position of the first query gene that matches each, -1 where none does.

    >>> GeneAlignment(["TP53", "ACTB"], ["ACTB", "CD3E"]).apply(sp.csr_matrix([[1.0, 2.0]])).toarray()
    array([[2., 0.]])
    """

    def __init__(self, query_genes: Sequence[str], vocabulary: Sequence[str], column: str = "var_names", **report):
        self.names, self.vocabulary = _texts(query_genes), _texts(vocabulary)
        exact = {gene: i for i, gene in enumerate(self.vocabulary)}
        if not exact or len(exact) < len(self.vocabulary):
            repeated = [gene for i, gene in enumerate(self.vocabulary) if exact[gene] != i]
            raise GeneError(f"The vocabulary is empty or repeats genes ({examples(repeated)}). Give each gene once.")
        unversioned = {_unversioned(gene): i for gene, i in reversed(exact.items())}  # the first of several versions
        target = [exact[gene] if gene in exact else unversioned.get(_unversioned(gene), -1) for gene in self.names]
        n_query, n_model = len(target), len(exact)
        self._is_same, target = target == [*range(n_model)], np.array(target, dtype=np.int64)
        source = np.flatnonzero(target >= 0)
        entries = np.ones(len(source), np.float32), (source, target[source])  # one per matched query gene
        self._selector = sp.csr_matrix(entries, shape=(n_query, n_model))
        self.places = np.full(n_model, -1)
        self.places[target[source][::-1]] = source[::-1]
        missing = [self.vocabulary[i] for i in np.flatnonzero(self.places < 0)]
        n_matched, n_found = n_model - len(missing), len(source)
        found = n_model, n_query, n_matched, n_matched / n_model, missing, n_query - n_found, n_found - n_matched
        report = {"kind_query": id_kind(self.names), "matched_by": {column: n_matched}} | report
        self.coverage = GeneCoverage(*found, n_model, missing, id_kind(self.vocabulary), column=column, **report)

    def apply(self, cells: sp.csr_matrix) -> sp.csr_matrix:
        """Cells (n, query genes) as (n, vocabulary), in O(nonzeros); identical gene lists return `cells` itself."""
        if cells.shape[1] != len(self.names):
            raise DataError(f"{cells.shape[1]:,} columns but {len(self.names):,} genes: align this matrix's own.")
        if self._is_same:
            return cells
        aligned = cells @ self._selector
        aligned.sort_indices()
        return aligned


def align_genes(
    var: pd.DataFrame, vocabulary: Sequence[str], cell_names: Sequence[str] = (), *, species: str | None = None, read=()
) -> GeneAlignment:
    """Align a query, by its `var`, to a model; under 80 % of the model's genes is a warning, under 20 % a GeneError.

    Below 80 %, columns of `var` and tables of Ensembl ids are tried, and of orthologs with `species`, that of the query
    ("human" or "mouse"). `cell_names` help to recognise a transposed matrix. 20 % of those at places `read` will do.
    """
    best = _best_alignment(var, vocabulary, species, ENOUGH * len(vocabulary))
    if len(read):
        lost = [best.vocabulary[place] for place in read if best.places[place] < 0]
        best.coverage = replace(best.coverage, n_read=len(read), missing_read=lost)
    coverage, share = best.coverage, best.coverage.share()
    fractions = coverage.fraction, (coverage.n_read - len(coverage.missing_read)) / coverage.n_read
    if max(fractions) >= USABLE:
        if min(fractions) < ENOUGH:
            warn(f"Only {share}. Missing ones are zero: expect lower accuracy, and unseen scores that mean less.")
        return best
    if len(cell_names) and GeneAlignment(cell_names, vocabulary).coverage.fraction >= USABLE:
        found = f"its {len(cell_names):,} rows are named like the model's genes ({examples(cell_names)})"
        way_out = 'Read it with orientation="genes_by_cells", or turn it: query = query.T.copy()'
        raise DataError(f"The query's matrix is turned: {found}. {way_out}")
    named_genes(var, "the query")
    known = coverage.n_query - coverage.extra
    advice = "Set adata.var_names to ids of the model's kind; if the query is of another species, give species=."
    if known > coverage.n_query / 2:
        advice = f"It is a panel: the model has {known:,} of its genes. Train a model on these: fit(..., genes=query)."
    found = f"The model expects {_described(vocabulary)}; the query's var_names are {_described(var.index)}"
    raise GeneError(f"Only {share}; at least {USABLE:.0%} are needed. {found}. {advice}")


def restrict_genes(vocabulary: Sequence[str], genes: Sequence[str] | pd.DataFrame) -> list[str]:
    """Genes of a reference that are in a list of names, or in the `var` of a query, matched as `align_genes` does."""
    var = genes if isinstance(genes, pd.DataFrame) else pd.DataFrame(index=list(genes))
    enough = ENOUGH * min(len(vocabulary), len(var))
    places = _best_alignment(var, vocabulary, None, enough).places
    chosen = [str(gene) for gene, place in zip(vocabulary, places, strict=True) if place >= 0]
    found = f"Only {len(chosen):,} of {_described(vocabulary)} are in genes=, {_described(var.index)}."
    if len(chosen) < max(2, enough * USABLE / ENOUGH):
        named_genes(var, "genes=")
        raise GeneError(f"{found} Give at least 2 genes of the reference, and names of its kind and species.")
    if len(chosen) < enough:
        warn(found)
    return chosen


def named_genes(var: pd.DataFrame, name: str) -> list[str]:
    """Gene names of the reference called `name`; running numbers are a GeneError that offers the columns of `var`."""
    sources = _sources(var)
    names = sources.pop("var_names")
    if any(names) or not names:
        return names
    way_out = "Set adata.var_names to symbols or Ensembl ids."
    for column, ids in reversed(sources.items()):
        way_out = f"Column {column!r} has {examples(ids)}: adata.var_names = adata.var[{column!r}]. {way_out}"
    raise GeneError(f"The genes of {name} have running numbers, {examples(var.index)}, instead of names. {way_out}")


def common_names(variables: Sequence[pd.DataFrame], names: Sequence[str]) -> list[list[str]]:
    """Gene names of several references, given each `var`, in the kind of the first; warnings say what was renamed."""
    lists = [named_genes(variables[0], names[0])]
    for var, name in zip(variables[1:], names[1:], strict=True):
        first = list(dict.fromkeys(lists[0]))
        best = _best_alignment(var, first, None, ENOUGH * min(len(first), len(var)))
        if list(best.coverage.matched_by) == ["var_names"]:
            named_genes(var, name)
        else:
            ways = ", ".join(f"{n:,} by {how}" for how, n in best.coverage.matched_by.items())
            warn(f"Genes of {name} take the names of {names[0]}: {ways}.")
        lists.append(best.names)
    return lists


def gene_rows(var: pd.DataFrame) -> np.ndarray:
    """(genes,) bool: rows whose 10x ``feature_types`` is "Gene Expression" or missing; all, if that leaves none."""
    rows = np.isin(_texts(var.get("feature_types", [""] * len(var))), ["Gene Expression", ""])
    return rows if rows.any() else ~rows


def shared_genes(gene_lists: Sequence, *, union: bool = False, names: Sequence[str] | None = None) -> list[str]:
    """One vocabulary for several files: the genes of all, or with `union` of any, each once, in the first file's order.

    Ensembl ids that differ by version count as one. Messages use `names`.
    """
    names = names or [f"file {i + 1}" for i in range(len(gene_lists))]
    shared = {}  # names without versions, and as they are written where they first occur
    for i, genes in enumerate(gene_lists):
        here = {}
        for gene in filter(None, _texts(genes)):
            here.setdefault(_unversioned(gene), gene)
        if i and here.keys().isdisjoint(shared):
            before = f"{', '.join(names[:i])}: {_described(genes)} against {_described(gene_lists[0])}"
            advice = "Use one kind of gene id and one species, and check that genes are where orientation= says."
            raise GeneError(f"{names[i]} shares no gene with {before}. {advice}")
        if i and not union:
            shared = {plain: gene for plain, gene in shared.items() if plain in here}
        else:
            shared = shared | here | shared  # places and names of the first file that has a gene
    if not union and len(shared) < USABLE * (smallest := min(map(len, gene_lists))):
        advice = 'Check that they use one kind of gene id and one species; genes="union" takes absent genes as zero.'
        warn(f"The files share only {len(shared):,} genes; the smallest has {smallest:,}. {advice}")
    return list(shared.values())


def _best_alignment(var, vocabulary, species: str | None, enough: float) -> GeneAlignment:
    """Align by `var_names`, or, where these match under `enough` genes, by the column or table that matches most."""
    if species not in (None, "human", "mouse"):
        raise SettingError(f'species={species!r}: give the species of the query\'s genes, "human" or "mouse".')
    sources = _sources(var)
    alignment = GeneAlignment(sources["var_names"], vocabulary)
    enough = min(enough, 0.95 * len(var))  # where nearly all names match, nothing else finds many more
    if alignment.coverage.n_matched >= enough:
        return alignment
    wanted = {_unversioned(gene) for gene in alignment.vocabulary} - {""}
    found = {(column, ""): [*map(_unversioned, genes)] for column, genes in sources.items()}
    counts = {way: len(wanted.intersection(genes)) for way, genes in found.items()}
    if max(counts.values()) < enough:
        tables = _translations(sources, wanted, species)
        for (column, _), genes in [*found.items()]:
            for how, table in tables.items():
                found[column, how] = [gene if gene in wanted else table.get(gene, gene) for gene in genes]
                counts[column, how] = len(wanted.intersection(found[column, how]))
    column, how = max(counts, key=counts.get)  # the first of equals: names before columns before tables
    if not how:
        return GeneAlignment(sources[column], vocabulary, column)
    matched_by = {column: counts[column, ""], how: counts[column, how] - counts[column, ""]}
    report = {"kind_query": id_kind(sources[column]), "matched_by": matched_by}
    return GeneAlignment(found[column, how], vocabulary, column, **report)


def _translations(sources: dict, wanted: set, species: str | None) -> dict[str, dict[str, str]]:
    """Dictionaries from one name of a gene to another, by what they do; a missing table is warned about."""
    from sims_kit.datasets.load import gene_table

    human_ids = {2 * sum(g.startswith("ENSG") for g in names) > len(names) for names in (*sources.values(), wanted)}
    needed = {"gencode-human": len(human_ids) == 2, "orthologs-human-mouse": species is not None}
    tables = dict.fromkeys(needed, pd.DataFrame(columns=["gene_id", "symbol", "human", "mouse"], dtype=object))
    for name in filter(needed.get, needed):
        try:
            tables[name] = gene_table(name).drop_duplicates()
        except FetchError as error:
            warn(f"The table {name!r}, which may translate the names, is missing. {error}")
    genes, pairs = tables.values()
    symbols = dict(genes[["gene_id", "symbol"]].to_numpy())
    genes = genes[genes["gene_id"].isin(wanted) | ~genes["symbol"].duplicated(keep=False)]
    ids = dict(genes[["symbol", "gene_id"]].drop_duplicates("symbol", keep=False).to_numpy())
    pairs = pairs[~pairs["human"].duplicated(keep=False) & ~pairs["mouse"].duplicated(keep=False)]
    orthologs = dict(pairs[["mouse", "human"] if species == "mouse" else ["human", "mouse"]].to_numpy())
    ways = {"Ensembl id -> symbol": symbols, "symbol -> Ensembl id": ids, "ortholog": orthologs}
    ways["Ensembl id -> ortholog"] = {gene: orthologs[name] for gene, name in symbols.items() if name in orthologs}
    ways["ortholog -> Ensembl id"] = {gene: ids[name] for gene, name in orthologs.items() if name in ids}
    return ways


def _sources(var: pd.DataFrame) -> dict[str, list[str]]:
    """Gene names in `var_names` ("" instead of running numbers) and in columns that are distinct and not measured."""
    sources = {}
    for column, values in [("var_names", var.index), *var.select_dtypes(exclude=["floating", "bool"]).items()]:
        names, n_genes = _texts(values), len(var)
        numbers = [*map(int, names)] if all(map(str.isdecimal, names)) and len(set(names)) == n_genes else []
        highest = max(numbers, default=np.inf)  # chosen genes leave gaps; a list of Entrez ids goes beyond 100,000
        if highest <= n_genes or (numbers == sorted(numbers) and highest < min(100_000, 50 * n_genes)):
            names = [""] * n_genes
        if not sources or 2 * len(set(names)) > n_genes:
            sources.setdefault(str(column), names)
    return sources


def _texts(values) -> list[str]:
    """Names as stripped text, "" where missing."""
    return pd.Series(np.asarray(values, dtype=object)).astype("string").str.strip().fillna("").tolist()


def _unversioned(gene: str) -> str:
    return re.sub(r"^(ENS[A-Z]*\d{6,})\.\d+$", r"\1", gene) if "." in gene else gene


def _described(genes: Sequence[str]) -> str:
    kind = {"ensembl": "Ensembl ids", "entrez": "Entrez ids", "symbol": "symbols"}[id_kind(genes)]
    return f"{len(genes):,} {kind} such as {examples(genes)}"

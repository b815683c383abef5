"""Gene alignment against a dense pandas reference; the coverage report; one vocabulary for several files."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from sims_kit.cells.genes import GeneAlignment, align_genes, id_kind, shared_genes
from sims_kit.errors import DataError, GeneError, SettingError

ENSEMBL = [f"ENSG{i:011d}" for i in range(10)]


def by_pandas(cells, query_genes, vocabulary):
    """Dense reference: group columns of one name, sum, and reindex to the vocabulary."""
    table = pd.DataFrame(cells.toarray().T, index=query_genes)
    return table.groupby(level=0).sum().reindex(vocabulary).fillna(0).T.to_numpy()


@pytest.mark.parametrize("seed", range(5))
def test_alignment_equals_groupby_sum(seed):
    """Any query with missing, extra, shuffled and repeated genes is aligned as pandas would do it."""
    random = np.random.default_rng(seed)
    query = random.choice([f"g{i}" for i in range(40)], size=50)
    vocabulary = [f"g{i}" for i in random.permutation(60)[:30]]
    cells = sp.random(17, 50, density=0.3, format="csr", dtype=np.float32, random_state=seed)
    before = cells.copy()
    aligned = GeneAlignment(query, vocabulary).apply(cells)
    np.testing.assert_allclose(aligned.toarray(), by_pandas(cells, query, vocabulary), rtol=1e-6)
    assert aligned.dtype == np.float32 and aligned.has_canonical_format
    assert (cells != before).nnz == 0


@pytest.mark.parametrize("seed", range(3))
def test_coverage_counts_what_a_set_says(seed):
    """Matched, missing, extra and duplicate genes are those that sets and counts give."""
    random = np.random.default_rng(seed)
    query, vocabulary = list(random.choice([f"g{i}" for i in range(40)], size=50)), [f"g{i}" for i in range(10, 60)]
    coverage = GeneAlignment(query, vocabulary).coverage
    matched = set(query) & set(vocabulary)
    assert coverage.n_matched == len(matched) and coverage.fraction == len(matched) / 50
    assert coverage.missing == [gene for gene in vocabulary if gene not in query]
    assert coverage.extra == sum(gene not in vocabulary for gene in query)
    assert coverage.duplicates == sum(gene in matched for gene in query) - len(matched)


def test_identical_genes_cost_nothing():
    """With the model's own gene list the matrix itself comes back."""
    cells = sp.random(4, 10, density=0.5, format="csr", dtype=np.float32, random_state=0)
    assert GeneAlignment(ENSEMBL, ENSEMBL).apply(cells) is cells


def test_a_matrix_of_another_width_is_refused():
    """Aligning a matrix whose columns are not the aligned genes is an error, not a shift."""
    with pytest.raises(DataError, match="9 columns but 10 genes"):
        GeneAlignment(ENSEMBL, ENSEMBL).apply(sp.csr_matrix((3, 9), dtype=np.float32))


@pytest.mark.parametrize(("vocabulary", "message"), [([], "is empty"), (["a", "b", "a"], "'a'")])
def test_vocabulary_names_each_gene_once(vocabulary, message):
    """An empty vocabulary and one with a repeated gene are refused."""
    with pytest.raises(GeneError, match=message):
        GeneAlignment(["a"], vocabulary)


@pytest.mark.parametrize(
    ("genes", "kind"),
    [
        (["ENSG00000141510", "ENSG00000141510.18", "ENSMUSG00000059552"], "ensembl"),
        (["WBGene00000001", "FBgn0000008"], "ensembl"),
        (["7157", "100", "1"], "entrez"),
        (["TP53", "Gapdh", "7SK", "ENSA"], "symbol"),
        ([*ENSEMBL, "ERCC-00002"], "ensembl"),
        ([], "symbol"),
    ],
)
def test_id_kind(genes, kind):
    """The kind of most names decides; a few foreign ones (spike-ins) do not."""
    assert id_kind(genes) == kind


def test_ensembl_versions_are_not_compared():
    """An id with a version meets the same id without one, and an exact match comes first."""
    alignment = GeneAlignment(["ENSG00000000001.7", "ENSG00000000002.1", "ENSG00000000003"], ENSEMBL[1:4])
    assert alignment.coverage.missing == []
    alignment = GeneAlignment(["ENSG00000000001.2"], ["ENSG00000000001.1", "ENSG00000000001.2"])
    np.testing.assert_array_equal(alignment.apply(sp.csr_matrix([[5.0]])).toarray(), [[0, 5]])


def test_another_column_is_used_when_var_names_do_not_match():
    """Symbols in var_names and Ensembl ids in a known column: the column is used and named."""
    var = pd.DataFrame(
        {"n_cells": range(10), "Gene_IDs": pd.Categorical(ENSEMBL)}, index=[f"SYMBOL{i}" for i in range(10)]
    )
    coverage = align_genes(var, ENSEMBL).coverage
    assert (coverage.column, coverage.fraction, coverage.kind_query) == ("Gene_IDs", 1.0, "ensembl")
    assert "Gene_IDs" in str(coverage)


@pytest.mark.parametrize(("n_found", "outcome"), [(10, None), (8, None), (7, "warns"), (2, "warns"), (1, "raises")])
def test_thresholds_of_coverage(n_found, outcome, recwarn):
    """At 80 % nothing is said, under it a warning, under 20 % an error that names both kinds of id."""
    var = pd.DataFrame(index=[*ENSEMBL[:n_found], *(f"SYMBOL{i}" for i in range(20))])
    if outcome == "raises":
        with pytest.raises(GeneError, match=r"1 of the model's 10 .*Ensembl ids such as 'ENSG.*symbols such as"):
            align_genes(var, ENSEMBL)
    else:
        assert align_genes(var, ENSEMBL).coverage.n_matched == n_found
        assert [f"{n_found} of the model's 10" in str(w.message) for w in recwarn] == [True] * (outcome == "warns")


def test_report_is_short_and_complete():
    """The printed report has 4 to 8 lines with every number in it."""
    report = str(GeneAlignment(["a", "a", "b", "x", "y"], ["a", "b", "c", "d"]).coverage)
    assert 4 <= len(report.splitlines()) <= 8
    for words in ("2 of the model's 4", "50.0%", "2 model genes", "'c', 'd'", "2 of the query's 5", "1 query genes"):
        assert words in report


def test_shared_genes_keep_the_first_files_order():
    """Intersection and union name each gene once, in the order of the first file that has it."""
    lists = [["d", "b", "a", "b", "c"], ["a", "b", "e", "d"], ["x", "d", "b"]]
    assert shared_genes(lists) == ["d", "b"]
    assert shared_genes(lists, "union") == ["d", "b", "a", "c", "e", "x"]
    assert shared_genes([["ENSG00000000001.1", "B"], ["B", "ENSG00000000001.2"]]) == ["ENSG00000000001.1", "B"]


@pytest.mark.parametrize("how", ["intersection", "union"])
def test_files_without_a_common_gene_are_refused(how):
    """The error names both files, examples of their genes and the kinds of id."""
    with pytest.raises(GeneError, match=r"two.h5ad shares no gene with one.h5ad: .*Ensembl.*symbols such as 'TP53'"):
        shared_genes([["TP53", "GAPDH"], ENSEMBL], how, ["one.h5ad", "two.h5ad"])


def test_few_shared_genes_are_told():
    """An intersection under 20 % of the smallest file is warned about."""
    with pytest.warns(UserWarning, match="share only 1 genes"):
        shared_genes([["GAPDH", *ENSEMBL], ["GAPDH", *(f"Gene{i}" for i in range(9))]])


def test_only_two_ways_to_share():
    """Another word than intersection or union is refused."""
    with pytest.raises(SettingError, match="'all'"):
        shared_genes([["a"]], "all")

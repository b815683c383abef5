"""Gene names: one table of queries and models, and any names against a dense reference."""

import warnings
from importlib import import_module
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sims_kit.cells import genes
from sims_kit.cells.genes import GeneAlignment, align_genes, shared_genes
from sims_kit.errors import DataError, FetchError, GeneError, SettingError

IDS = [f"ENSG{i:011d}" for i in range(20)]
SYMBOLS = [f"GENE{i}" for i in range(20)]
MOUSE = [f"Gene{i}" for i in range(20)]
NUMBERS = [str(i) for i in range(20)]
ENTREZ = [str(7157 * (i + 1)) for i in range(20)]
GENCODE = pd.DataFrame({"gene_id": [*IDS, "ENSG1000000", "ENSG2000000"], "symbol": [*SYMBOLS, "TWIN", "TWIN"]})
ORTHOLOGS = pd.DataFrame({"human": [*SYMBOLS, "GENE19", "ONLY_HUMAN"], "mouse": [*MOUSE, "Gene19b", ""]})


@pytest.fixture(autouse=True)
def tables(monkeypatch):
    """Tables of 20 genes instead of those of the registry."""
    tables = {"gencode-human": GENCODE, "orthologs-human-mouse": ORTHOLOGS[ORTHOLOGS["mouse"] != ""]}
    monkeypatch.setattr(import_module("sims_kit.datasets.load"), "gene_table", tables.get)


def var(index, **columns):
    """A `var` whose columns may have names such as "gene_ids-0", written with "__"."""
    return pd.DataFrame({name.replace("__", "-"): values for name, values in columns.items()}, index=list(index))


def half(names, n=14):
    """The first n of 20 names, and others."""
    return [*names[:n], *(f"other{i}" for i in range(20 - n))]


N, ID_TO_SYMBOL, SYMBOL_TO_ID = "var_names", "Ensembl id -> symbol", "symbol -> Ensembl id"
CASES = [  # what, var of the query, genes of the model, species, genes matched by what, or the error and its words
    ("blanks around names", var([f" {gene} " for gene in SYMBOLS]), SYMBOLS, None, {N: 20}),
    ("versions of ids", var([f"{gene}.7" for gene in IDS]), IDS, None, {N: 20}),
    ("80 % are enough", var(half(SYMBOLS, 16), gene_ids=SYMBOLS), SYMBOLS, None, {N: 16}),
    ("a better column below 80 %", var(half(SYMBOLS), gene_symbols=SYMBOLS), SYMBOLS, None, {"gene_symbols": 20}),
    ("20 % are usable", var(half(SYMBOLS, 4)), SYMBOLS, None, {N: 4}),
    ("15 % are not", var(half(SYMBOLS, 3)), SYMBOLS, None, (GeneError, ["Only 3 of the model's 20", "at least 20%"])),
    ("a worse column", var(half(SYMBOLS), gene_ids=half(SYMBOLS, 9)), SYMBOLS, None, {N: 14}),
    ("ids of scanpy's concat", var(SYMBOLS, n=range(20), gene_ids__0=IDS), IDS, None, {"gene_ids-0": 20}),
    ("a column of any name", var(SYMBOLS, mine=pd.Categorical(IDS)), IDS, None, {"mine": 20}),
    ("running numbers from 1, Accession", var(range(1, 21), Accession=IDS), IDS, None, {"Accession": 20}),
    ("running numbers, chosen genes", var(range(0, 400, 20), features=IDS), IDS, None, {"features": 20}),
    ("running numbers, symbols for ids", var(NUMBERS, features=SYMBOLS), IDS, None, {"features": 0, SYMBOL_TO_ID: 20}),
    ("only running numbers", var(NUMBERS), NUMBERS, None, (GeneError, ["query have running numbers, '0', '1'"])),
    ("no column that fits", var(NUMBERS, n=ENTREZ[::-1], name=MOUSE), IDS, None, (GeneError, ["adata.var['name']"])),
    ("Entrez ids", var(ENTREZ), ENTREZ, None, {N: 20}),
    ("Entrez ids as a column of integers", var(SYMBOLS, entrez=map(int, ENTREZ)), ENTREZ, None, {"entrez": 20}),
    ("symbols for versioned ids", var(SYMBOLS), [f"{gene}.2" for gene in IDS], None, {N: 0, SYMBOL_TO_ID: 20}),
    ("ids and symbols for symbols", var(IDS[:15] + SYMBOLS[15:]), SYMBOLS, None, {N: 5, ID_TO_SYMBOL: 15}),
    ("mouse for human", var(MOUSE), SYMBOLS, "mouse", {N: 0, "ortholog": 19}),
    ("human for mouse", var(SYMBOLS), MOUSE, "human", {N: 0, "ortholog": 19}),
    ("mouse symbols for human ids", var(MOUSE), IDS, "mouse", {N: 0, "ortholog -> Ensembl id": 19}),
    ("human ids for mouse symbols", var(IDS), MOUSE, "human", {N: 0, "Ensembl id -> ortholog": 19}),
    ("mouse for human, not said", var(MOUSE), SYMBOLS, None, (GeneError, ["'Gene0'", "'GENE0'", "species="])),
    ("a species that has no table", var(SYMBOLS), MOUSE, "rat", (SettingError, ["species='rat'", '"mouse"'])),
    ("names of another kind", var(SYMBOLS), ENTREZ, None, (GeneError, ["20 Entrez ids such as", "20 symbols such as"])),
    ("a panel", var(SYMBOLS[:4]), [*SYMBOLS, *half(IDS, 10)], None, (GeneError, ["panel", "4 of its", "genes=query"])),
]


@pytest.mark.parametrize(("query", "model", "species", "expected"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_names_are_matched_or_refused(query, model, species, expected):
    """Each query meets the model's genes by names, by a column or by a table, as the report says, or not at all."""
    with warnings.catch_warnings(record=True, action="always") as caught:
        if not isinstance(expected, dict):
            with pytest.raises(expected[0]) as error:
                align_genes(query, model, species=species)
            assert all(words in str(error.value) for words in expected[1])
            return
        alignment = align_genes(query, model, species=species)
    coverage, n_matched = alignment.coverage, sum(expected.values())
    assert (coverage.matched_by, coverage.n_matched, coverage.column) == (expected, n_matched, next(iter(expected)))
    assert len(caught) == (coverage.fraction < 0.8)
    assert all(f"{n} by {how}" in str(coverage) for how, n in expected.items())
    aligned = alignment.apply(sp.csr_matrix(np.eye(20, dtype=np.float32)))  # every gene keeps its place
    assert aligned.dtype == np.float32 and aligned.has_canonical_format
    matched = np.flatnonzero(alignment.places >= 0)
    assert (aligned.toarray()[alignment.places[matched], matched] == 1).all() and aligned.sum() == n_matched


def test_a_symbol_of_several_ids_stands_for_the_one_the_model_has():
    """Of two ids the model's is taken; where it has both, neither; both ids of the query are summed in the symbol."""
    twins, query = ["ENSG1000000", "ENSG2000000"], var([*SYMBOLS, "TWIN"])
    assert align_genes(query, [*IDS, twins[1]]).places[-1] == 20
    assert align_genes(query, [*IDS, *twins]).coverage.missing == twins
    assert align_genes(var([*IDS, *twins]), query.index).coverage.duplicates == 1


def test_a_table_that_is_not_there_is_named(monkeypatch):
    """Offline, a warning says which table could have helped, and how to get it."""
    offline = Mock(side_effect=FetchError("download it by hand"))
    monkeypatch.setattr(import_module("sims_kit.datasets.load"), "gene_table", offline)
    with pytest.warns(UserWarning, match=r"'gencode-human'.*download it by hand"), pytest.raises(GeneError):
        align_genes(var(IDS), SYMBOLS)


def test_references_have_names():
    """A reference keeps stripped names and Entrez ids; for running numbers the error offers a column."""
    assert genes.named_genes(var([" A", *ENTREZ]), "a.h5ad") == ["A", *ENTREZ]
    with pytest.raises(GeneError, match=r"a\.h5ad have running.*'gene_ids-0' .*adata.var\['gene_ids-0'.*Set adata"):
        genes.named_genes(var(NUMBERS, n=range(20), genome=["x"] * 20, gene_ids__0=IDS), "a.h5ad")


COMMON = [
    ("one kind", var(SYMBOLS[::-1]), SYMBOLS[::-1], None),
    ("a column of the first's kind", var([*IDS, "ENSG77"], name=[*SYMBOLS, "NEW"]), [*SYMBOLS, "NEW"], "20 by name"),
    ("ids, by the table", var([*IDS, "ENSG77"]), [*SYMBOLS, "ENSG77"], "20 by Ensembl id -> symbol"),
    ("running numbers with a column", var(NUMBERS, features=SYMBOLS), SYMBOLS, "20 by features"),
]


@pytest.mark.parametrize(("second", "names", "says"), [case[1:] for case in COMMON], ids=[case[0] for case in COMMON])
def test_references_come_to_one_kind(second, names, says, recwarn):
    """The first file's names stay; those of the second become its kind, with a warning."""
    assert genes.common_names([var(SYMBOLS), second], ["one", "two"]) == [SYMBOLS, names]
    assert [says in str(w.message) and "two" in str(w.message) for w in recwarn] == [True] * bool(says)


def test_genes_of_a_panel():
    """A list, or a query by whatever its names are found, chooses genes in the reference's order."""
    assert genes.restrict_genes(SYMBOLS, ["GENE7", "GENE3 "]) == ["GENE3", "GENE7"]
    assert genes.restrict_genes(SYMBOLS, var(["x", "y"], gene_name=SYMBOLS[4:6])) == SYMBOLS[4:6]
    with pytest.warns(UserWarning, match=r"Only 2 of 20 symbols .* 4 symbols such as 'GENE0', 'GENE1', 'Actb'"):
        assert genes.restrict_genes(SYMBOLS, ["GENE0", "GENE1", "Actb", "Tp53"]) == SYMBOLS[:2]
    for chosen in (["GENE0"], [], ["a", "b"], NUMBERS):
        with pytest.raises(GeneError):
            genes.restrict_genes(SYMBOLS, chosen)


def test_identical_genes_cost_nothing_and_what_does_not_fit_is_refused():
    """With the model's own genes the matrix itself comes back; other widths, repeats and turned queries are named."""
    cells = sp.random(4, 20, density=0.5, format="csr", dtype=np.float32, random_state=0)
    assert GeneAlignment(IDS, IDS).apply(cells) is cells
    with pytest.raises(DataError, match="19 columns but 20 genes"):
        GeneAlignment(IDS, IDS).apply(cells[:, :19])
    with pytest.raises(GeneError, match=r"\('a'\).* once"):
        GeneAlignment(["a"], ["a", "b", "a"])
    with pytest.raises(DataError, match=r"turned.*'GENE0'.*query.T"):
        align_genes(var(NUMBERS), SYMBOLS, SYMBOLS)


def test_one_vocabulary_for_several_files():
    """Each gene once, in the order of the first file that has it; nothing or little in common is reported."""
    lists = [["d", "b", "a", "b", "c"], ["a", "b", "e", "d"], ["x", "d", "b"]]
    assert shared_genes(lists) == ["d", "b"] and shared_genes(lists, union=True) == ["d", "b", "a", "c", "e", "x"]
    assert shared_genes([["ENSG00000000001.1", "B"], ["B", "ENSG00000000001.2"]]) == ["ENSG00000000001.1", "B"]
    with pytest.warns(UserWarning, match="share only 1 genes"):
        shared_genes([["GAPDH", *IDS], ["GAPDH", *MOUSE]])
    with pytest.raises(GeneError, match=r"two.h5ad shares no gene with one.h5ad: .*Ensembl.*symbols such as 'TP53'"):
        shared_genes([["TP53", "GAPDH"], IDS], union=True, names=["one.h5ad", "two.h5ad"])


SOME = st.sampled_from(["ACTB", "actb", "ENSG00000000001", "ENSG00000000001.5", "ENSG00000000002.1", "7157", ""])


@st.composite
def counts(draw):
    """A small matrix of counts, many of them zero; CSR float32."""
    shape = draw(st.tuples(st.integers(1, 8), st.integers(1, 8)))
    values = st.integers(0, 2**20) if draw(st.booleans()) else st.sampled_from([0, 0, 0, 1, 2, 1000])
    return sp.csr_matrix(draw(arrays(np.float32, shape, elements=values.map(np.float32))))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(counts(), st.data())
def test_alignment(cells, data):
    """Columns of one gene are summed, others dropped, absent ones zero, Ensembl versions set aside; order is free."""
    n_genes = cells.shape[1]
    query = data.draw(st.lists(SOME, min_size=n_genes, max_size=n_genes))
    vocabulary = data.draw(st.lists(SOME, min_size=1, unique=True))
    expected = np.zeros((cells.shape[0], len(vocabulary)), np.float64)
    plain = [gene.split(".")[0] if gene.startswith("ENSG") else gene for gene in vocabulary]
    for column, gene in enumerate(query):
        bare = gene.split(".")[0] if gene.startswith("ENSG") else gene
        place = vocabulary.index(gene) if gene in vocabulary else plain.index(bare) if bare in plain else None
        if place is not None:
            expected[:, place] += cells[:, [column]].toarray()[:, 0]
    before, alignment = cells.copy(), GeneAlignment(query, vocabulary)
    np.testing.assert_allclose(alignment.apply(cells).toarray(), expected, rtol=1e-6)
    assert (cells != before).nnz == 0
    assert alignment.coverage.n_matched + len(alignment.coverage.missing) == len(vocabulary)
    order = data.draw(st.permutations(range(n_genes)))
    turned = GeneAlignment([query[i] for i in order], vocabulary).apply(cells[:, order])
    np.testing.assert_allclose(turned.toarray(), expected, rtol=1e-6)

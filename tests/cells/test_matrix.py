"""Scales are recognised and undone, or refused by name; matrices in memory and in files are read alike."""

import pickle
import warnings

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

from sims_kit.cells.genes import gene_rows
from sims_kit.cells.matrix import AS_IS, Expression, Scale, detect_scale, log_normalised, normalise
from sims_kit.datasets.read import open_backed
from sims_kit.errors import DataError


def counts_of(n_cells=60, n_genes=400, depth=150, seed=0) -> sp.csr_matrix:
    """Counts of cells whose depth differs, as real cells' does."""
    random = np.random.default_rng(seed)
    profile = random.gamma(0.4, 1.0, n_genes)
    depths = depth * random.lognormal(0, 0.5, n_cells)
    return sp.csr_matrix(random.poisson(np.outer(depths, profile / profile.sum())), dtype=np.float64)


def scaled(counts, total) -> sp.csr_matrix:
    """Every cell with the same sum; empty cells stay empty."""
    sums = np.asarray(counts.sum(1)).ravel()
    return sp.csr_matrix(sp.diags(np.divide(total, sums, out=np.zeros_like(sums), where=sums > 0)) @ counts)


def each(matrix, function) -> sp.csr_matrix:
    """A function of every stored value."""
    changed = matrix.tocsr().copy()
    changed.data = function(changed.data)
    return changed


def log(matrix, base=np.e) -> sp.csr_matrix:
    """log(x + 1) to a base."""
    return each(matrix, lambda values: np.log1p(values) / np.log(base))


def first(matrix, rows, n) -> sp.csr_matrix:
    """A matrix whose first cells are others."""
    return sp.vstack([rows[:n], matrix[n:]], format="csr")


COUNTS = counts_of()
SHALLOW, FULL_LENGTH = counts_of(depth=30, seed=2), counts_of(depth=200_000, seed=3)
EMPTY_CELL = first(COUNTS, sp.csr_matrix((1, 400)), 1)
MEDIAN = float(np.median(np.asarray(COUNTS.sum(1))))
TEN, CPM = scaled(COUNTS, 1e4), scaled(COUNTS, 1e6)
DEFAULT, LOG2_CPM, LOG10_TEN = log(scaled(COUNTS, MEDIAN)), log(CPM, 2), log(TEN, 10)  # DEFAULT: scanpy's
CHOSEN = np.sort(np.random.default_rng(1).choice(400, 120, replace=False))
ONE_GENE = sp.csr_matrix(COUNTS[:, :1].toarray() + 1)
LN, LOG2, LOG10 = "log1p(x)", "log2(x + 1)", "log10(x + 1)"
EM = each(COUNTS, lambda v: v / np.resize([2, 1, 1, 3], len(v)))
NO_AMBIENT = each(COUNTS, lambda v: v * np.random.default_rng(0).uniform(0.7, 1.0, len(v)))
SCALES = {  # matrix, the transform to recognise, and the counts that it was made of, if rounding has left them
    "counts": (COUNTS, "linear", COUNTS),
    "binary": (each(COUNTS, np.sign), "linear", each(COUNTS, np.sign)),
    "counts of one gene": (ONE_GENE, "linear", ONE_GENE),
    "log1p of 10,000": (log(TEN), LN, COUNTS),
    "scanpy's default": (DEFAULT, LN, COUNTS),
    "median depth": (scaled(COUNTS, MEDIAN), "linear", COUNTS),
    "log1p of counts": (log(COUNTS), LN, COUNTS),
    "log2 of counts": (log(COUNTS, 2), LOG2, COUNTS),
    "log2(CPM + 1)": (LOG2_CPM, LOG2, COUNTS),
    "log10(10,000 + 1)": (LOG10_TEN, LOG10, COUNTS),
    "log1p of CPM": (log(CPM), LN, COUNTS),
    "square root of counts": (each(COUNTS, np.sqrt), "sqrt(x)", COUNTS),
    "proportions": (scaled(COUNTS, 1), "linear", COUNTS),
    "proportions, an empty cell": (scaled(EMPTY_CELL, 1), "linear", EMPTY_CELL),
    "scanpy's default, an empty cell": (log(scaled(EMPTY_CELL, MEDIAN)), LN, EMPTY_CELL),
    "log10, an empty cell": (log(scaled(EMPTY_CELL, 1e4), 10), LOG10, EMPTY_CELL),
    "scanpy's default, chosen genes": (DEFAULT[:, CHOSEN], LN, COUNTS[:, CHOSEN]),
    "log2(CPM + 1), chosen genes": (LOG2_CPM[:, CHOSEN], LOG2, COUNTS[:, CHOSEN]),
    "log10, chosen genes": (LOG10_TEN[:, CHOSEN], LOG10, COUNTS[:, CHOSEN]),
    "log1p, shallow": (log(scaled(SHALLOW, 25)), LN, SHALLOW),
    "log2, shallow": (log(scaled(SHALLOW, 1e6), 2), LOG2, SHALLOW),
    "log1p, full length": (log(scaled(FULL_LENGTH, 1e4)), LN, FULL_LENGTH),
    "log2, full length, chosen genes": (log(scaled(FULL_LENGTH, 1e6), 2)[:, CHOSEN], LOG2, FULL_LENGTH[:, CHOSEN]),
    "scanpy's default, one cell": (DEFAULT[5:6], LN, COUNTS[5:6]),
    "log2(CPM + 1), one cell": (LOG2_CPM[5:6], LOG2, COUNTS[5:6]),
    "log10, five cells": (LOG10_TEN[:5], LOG10, COUNTS[:5]),
    "log1p, two decimals": (each(log(TEN), lambda v: v.round(2)), LN, None),
    "log1p, three decimals": (each(log(TEN), lambda v: v.round(3)), LN, None),
    "log2(CPM + 1), two decimals": (each(LOG2_CPM, lambda v: v.round(2)), LOG2, None),
    "half precision": (each(LOG2_CPM, lambda v: v.round(2).astype(np.float16).astype(np.float32)), LOG2, None),
    "cells of unit length": (sp.csr_matrix(COUNTS / np.sqrt(COUNTS.power(2).sum(1))), "linear", None),
    "counts by expectation-maximisation, below 30": (EM, "linear", None),
    "counts without ambient RNA, below 30": (NO_AMBIENT, "linear", None),
}


@pytest.mark.parametrize("matrix, transform, counts", SCALES.values(), ids=SCALES)
def test_scales_are_recognised_and_undone(matrix, transform, counts):
    """What a model reads is the same to 1e-5 as from counts; no warning comes where these can be had again."""
    with warnings.catch_warnings(action="ignore" if counts is None else "error"):
        scale = detect_scale(matrix := matrix.astype(np.float32))
    assert scale.transform == transform
    assert np.isfinite(normalise(matrix * np.float32(1e-38), Scale("linear")).data).all()  # no factor is infinite
    if counts is not None:
        expected = normalise(sp.csr_matrix(counts), Scale("linear", is_counts=True)).toarray()
        np.testing.assert_allclose(normalise(matrix, scale).toarray(), expected, atol=1e-5, rtol=0)


SPOILED = {  # and words of the message
    "half counts, half log1p": (first(log(TEN), COUNTS, 30), "mixes scales: 30 cells hold whole.*log1p.*one scale"),
    "few counts among log1p": (first(log(TEN), COUNTS, 3), "mixes scales: 3 cells hold whole"),
    "half log1p, half log2": (first(LOG2_CPM, log(TEN), 30), "mixes scales.*log2"),
    "one linear cell among logarithms": (first(log(TEN), TEN, 1), None),
    "half of the cells linear": (first(log(TEN), TEN, 30), None),
    "logarithms brought to one sum": (scaled(log(TEN), 1e4), None),
    "logarithms of unit length": (log(TEN) / 40, None),
    "logarithms of fractional counts": (log(NO_AMBIENT, 2)[:, CHOSEN], None),
}


@pytest.mark.parametrize("matrix, words", SPOILED.values(), ids=SPOILED)
@pytest.mark.filterwarnings("error")
def test_spoiled_matrices_are_told(matrix, words):
    """They are refused, or read with a warning."""
    with pytest.raises((DataError, UserWarning), match=words):
        detect_scale(matrix)


def test_values_of_unknown_scale_are_used_as_they_are_with_a_warning():
    """Logarithms of values that are multiples of nothing, of chosen genes: only their owner knows what they are."""
    lengths = np.random.default_rng(4).lognormal(0, 1, 400)
    matrix = log(scaled(COUNTS @ sp.diags(1 / lengths), 1e6), 2)[:, CHOSEN]
    with pytest.warns(UserWarning, match="cannot be recognised"):
        scale = detect_scale(matrix)
    assert scale == AS_IS
    np.testing.assert_array_equal(normalise(matrix, scale).toarray(), matrix.toarray().astype(np.float32))
    with pytest.warns(UserWarning, match="taken for log2"):
        assert detect_scale(matrix, log1p={"base": 2}).transform == LOG2  # as scanpy notes it in uns


@pytest.fixture
def adata() -> ad.AnnData:
    """Counts as a layer, log1p of 10,000 in X, all genes in raw, and a second raw as a layer."""
    cells = ad.AnnData(log(TEN).astype(np.float32), layers={"counts": COUNTS.astype(np.float32)})
    cells.obs_names, cells.var_names = [f"cell {i}" for i in range(60)], [f"GENE{i}" for i in range(400)]
    cells.raw = cells.copy()
    return cells[:, :300].copy()


@pytest.mark.parametrize("layer, n_genes, transform", [(None, 300, LN), ("counts", 300, "linear"), ("raw", 400, LN)])
def test_layers_are_read_alike_from_memory_and_from_files(adata, tmp_path, layer, n_genes, transform):
    """Also when a file's matrix was sent to another process; a layer called raw comes before raw, with a warning."""
    adata.write_h5ad(path := tmp_path / "cells.h5ad")
    ours, others = Expression(adata, layer), pickle.loads(pickle.dumps(Expression(open_backed(path, layer))))
    assert ours.scale.transform == others.scale.transform == transform
    rows, same = (expression.rows(np.array([7, 3, 59, 3])).toarray() for expression in (ours, others))
    assert rows.shape == (4, n_genes)
    np.testing.assert_allclose(rows, same, atol=1e-6)
    adata.layers["raw"] = adata.layers["counts"]
    with pytest.warns(UserWarning, match="the layer is used"):
        assert Expression(adata, "raw").scale.is_counts


def test_other_features_than_genes_are_left_out(adata):
    """Antibody counts are no expression; a column without any gene expression says nothing."""
    adata.var["feature_types"] = [None, *["Gene Expression"] * 289, *["Antibody Capture"] * 10]
    counts = adata.layers["counts"].toarray()
    counts[:, 290:] = -1.5  # whatever they hold
    adata.layers["counts"] = sp.csr_matrix(counts)
    with pytest.warns(UserWarning, match="10 columns that are no gene expression"):
        expression = Expression(adata, "counts")
    assert expression.rows([0]).shape == (1, 290)
    expected = log_normalised(adata[:, :290].copy(), list(adata.var_names[:290]))
    np.testing.assert_allclose(expression.rows(np.arange(60)).toarray(), expected.toarray(), atol=1e-5)
    assert gene_rows(adata.var.assign(feature_types="protein_coding")).all() and gene_rows(adata.var[[]]).all()


def test_an_unsorted_matrix_is_sorted_in_a_copy(adata):
    """The caller's matrix stays as it is."""
    matrix = adata.layers["counts"]
    matrix.indices[:2], matrix.data[:2] = matrix.indices[1::-1].copy(), matrix.data[1::-1].copy()
    matrix.has_sorted_indices = matrix.has_canonical_format = False
    before = matrix.indices.copy()
    rows = Expression(adata, "counts").raw_rows(np.arange(60))
    assert rows.has_sorted_indices and (matrix.indices == before).all() and (rows != matrix).nnz == 0

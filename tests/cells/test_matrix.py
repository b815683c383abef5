"""Scales are recognised and undone, or refused by name; matrices in memory and in files are read alike."""

import pickle
import warnings

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp

from sims_kit.cells.matrix import AS_IS, Expression, Scale, detect_scale, log_normalised, normalise
from sims_kit.errors import DataError, UnknownNameError


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


def log(base):
    """log(x + 1) to a base."""
    return lambda values: np.log1p(values) / np.log(base)


COUNTS = counts_of()
MEDIAN = float(np.median(np.asarray(COUNTS.sum(1))))
TEN = scaled(COUNTS, 1e4)
CHOSEN = np.sort(np.random.default_rng(1).choice(400, 120, replace=False))
SHALLOW, FULL_LENGTH = counts_of(depth=30, seed=2), counts_of(depth=200_000, seed=3)


def emptied(matrix) -> sp.csr_matrix:
    """The same matrix, its first cell without counts."""
    return sp.vstack([sp.csr_matrix((1, matrix.shape[1])), matrix[1:]], format="csr")


SCALES = {  # matrix, the transform to recognise, the counts that it was made of
    "counts": (COUNTS, "linear", COUNTS),
    "binary": (each(COUNTS, np.sign), "linear", each(COUNTS, np.sign)),
    "log1p of 10,000": (each(TEN, np.log1p), "log1p(x)", COUNTS),
    "scanpy's default": (each(scaled(COUNTS, MEDIAN), np.log1p), "log1p(x)", COUNTS),
    "median depth": (scaled(COUNTS, MEDIAN), "linear", COUNTS),
    "log1p of counts": (each(COUNTS, np.log1p), "log1p(x)", COUNTS),
    "log2 of counts": (each(COUNTS, log(2)), "log2(x + 1)", COUNTS),
    "log2(CPM + 1)": (each(scaled(COUNTS, 1e6), log(2)), "log2(x + 1)", COUNTS),
    "log10(10,000 + 1)": (each(TEN, log(10)), "log10(x + 1)", COUNTS),
    "log1p of CPM": (each(scaled(COUNTS, 1e6), np.log1p), "log1p(x)", COUNTS),
    "square root of counts": (each(COUNTS, np.sqrt), "sqrt(x)", COUNTS),
    "proportions": (scaled(COUNTS, 1), "linear", COUNTS),
    "proportions, an empty cell": (scaled(emptied(COUNTS), 1), "linear", emptied(COUNTS)),
    "scanpy's default, an empty cell": (each(scaled(emptied(COUNTS), MEDIAN), np.log1p), "log1p(x)", emptied(COUNTS)),
    "log10, an empty cell": (each(scaled(emptied(COUNTS), 1e4), log(10)), "log10(x + 1)", emptied(COUNTS)),
    "scanpy's default, chosen genes": (
        each(scaled(COUNTS, MEDIAN), np.log1p)[:, CHOSEN],
        "log1p(x)",
        COUNTS[:, CHOSEN],
    ),
    "log2(CPM + 1), chosen genes": (each(scaled(COUNTS, 1e6), log(2))[:, CHOSEN], "log2(x + 1)", COUNTS[:, CHOSEN]),
    "log10, chosen genes": (each(TEN, log(10))[:, CHOSEN], "log10(x + 1)", COUNTS[:, CHOSEN]),
    "log1p, shallow": (each(scaled(SHALLOW, 25), np.log1p), "log1p(x)", SHALLOW),
    "log2, shallow": (each(scaled(SHALLOW, 1e6), log(2)), "log2(x + 1)", SHALLOW),
    "log1p, full length": (each(scaled(FULL_LENGTH, 1e4), np.log1p), "log1p(x)", FULL_LENGTH),
    "log2, full length, chosen genes": (
        each(scaled(FULL_LENGTH, 1e6), log(2))[:, CHOSEN],
        "log2(x + 1)",
        FULL_LENGTH[:, CHOSEN],
    ),
    "scanpy's default, one cell": (each(scaled(COUNTS, MEDIAN), np.log1p)[5:6], "log1p(x)", COUNTS[5:6]),
    "log2(CPM + 1), one cell": (each(scaled(COUNTS, 1e6), log(2))[5:6], "log2(x + 1)", COUNTS[5:6]),
    "log10, five cells": (each(TEN, log(10))[:5], "log10(x + 1)", COUNTS[:5]),
    "counts of one gene": (
        COUNTS[:, :1] + sp.csr_matrix(np.ones((60, 1))),
        "linear",
        COUNTS[:, :1] + 1.0 * np.ones((60, 1)),
    ),
}


@pytest.mark.parametrize("matrix, transform, counts", SCALES.values(), ids=SCALES)
def test_scales_are_recognised_and_undone(matrix, transform, counts):
    """What a model reads is the same to 1e-5 as from counts."""
    matrix = matrix.astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scale = detect_scale(matrix)
    assert scale.transform == transform
    expected = normalise(sp.csr_matrix(counts, dtype=np.float32), Scale("linear", is_counts=True))
    np.testing.assert_allclose(normalise(matrix, scale).toarray(), expected.toarray(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("decimals", [2, 3])
def test_rounded_values_are_recognised(decimals):
    """Text files hold few decimals."""
    scale = detect_scale(each(TEN, lambda values: np.log1p(values).round(decimals)))
    assert scale.transform == "log1p(x)"


FRACTIONAL = {  # estimated counts that stay below 30
    "expectation-maximisation": each(
        COUNTS, lambda v: np.where(np.arange(len(v)) % 4 == 0, v / 2, np.where(np.arange(len(v)) % 7 == 0, v / 3, v))
    ),
    "ambient RNA removed": each(COUNTS, lambda v: v * np.random.default_rng(0).uniform(0.7, 1.0, len(v))),
}


@pytest.mark.filterwarnings("ignore:The scale")
@pytest.mark.parametrize("matrix", FRACTIONAL.values(), ids=FRACTIONAL)
def test_fractional_counts_are_normalised_as_counts(matrix):
    """They are on the linear scale, although no value is above 30."""
    assert matrix.data.max() < 30
    assert detect_scale(matrix).transform == "linear"


REFUSED = {
    "scaled": (sp.csr_matrix(COUNTS.toarray() - 1), "negative values", 'layer="counts"'),
    "NaN": (each(COUNTS, lambda v: np.where(v > 5, np.nan, v)), "NaN or infinite", "finite"),
    "nothing but zeros": (sp.csr_matrix((3, 4)), "3 cells x 4 genes, all zero", "check the file"),
    "no cells": (sp.csr_matrix((0, 4)), "0 cells x 4 genes", "check the file"),
    "half counts, half log1p": (
        sp.vstack([COUNTS[:30], each(TEN, np.log1p)[30:]], "csr"),
        "30 cells hold whole",
        "log1p(x)",
    ),
    "few counts among log1p": (
        sp.vstack([COUNTS[:3], each(TEN, np.log1p)[3:]], "csr"),
        "3 cells hold whole",
        "one scale",
    ),
    "half log1p, half log2": (
        sp.vstack([each(TEN, np.log1p)[:30], each(scaled(COUNTS, 1e6), log(2))[30:]], "csr"),
        "mixes scales",
        "log2(x + 1)",
    ),
}


@pytest.mark.parametrize("matrix, found, way_out", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_undone_is_refused(matrix, found, way_out):
    """The message says what was found and what to do."""
    with pytest.raises(DataError) as raised:
        detect_scale(matrix, layers=["counts"])
    assert found in str(raised.value) and way_out in str(raised.value)


def test_values_of_unknown_scale_are_used_as_they_are_with_a_warning():
    """Logarithms of values that are multiples of nothing, of chosen genes: only their owner knows what they are."""
    lengths = np.random.default_rng(4).lognormal(0, 1, 400)
    matrix = each(scaled(COUNTS @ sp.diags(1 / lengths), 1e6), log(2))[:, CHOSEN]
    with pytest.warns(UserWarning, match="cannot be recognised"):
        scale = detect_scale(matrix)
    assert scale == AS_IS
    np.testing.assert_array_equal(normalise(matrix, scale).toarray(), matrix.toarray().astype(np.float32))
    with pytest.warns(UserWarning, match="taken for log2"):
        assert detect_scale(matrix, log1p={"base": 2}).transform == "log2(x + 1)"  # as scanpy notes it in uns


def first(matrix, rows, n) -> sp.csr_matrix:
    """A matrix whose first cells are others."""
    return sp.vstack([rows[:n], matrix[n:]], format="csr")


LOG_TEN = each(TEN, np.log1p)
SPOILED = {  # must be refused, or read with a warning
    "one linear cell among logarithms": first(LOG_TEN, TEN, 1),
    "half of the cells linear": first(LOG_TEN, TEN, 30),
    "logarithms brought to one sum": scaled(LOG_TEN, 1e4),
    "logarithms of unit length": each(LOG_TEN, lambda values: values / 40),
    "logarithms of fractional counts": each(FRACTIONAL["ambient RNA removed"], log(2))[:, CHOSEN],
}


@pytest.mark.parametrize("matrix", SPOILED.values(), ids=SPOILED)
def test_spoiled_matrices_are_told(matrix):
    """Nothing of these passes in silence."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises((DataError, UserWarning)):
            detect_scale(matrix)


def test_rounding_and_length_do_not_mislead():
    """log2(CPM + 1) with two decimals is no log10, and cells of unit length are no square roots."""
    cpm = each(scaled(COUNTS, 1e6), lambda values: np.log2(values + 1).round(2))
    assert detect_scale(cpm).transform == "log2(x + 1)"
    assert (
        detect_scale(each(cpm, lambda values: values.astype(np.float16).astype(np.float32))).transform == "log2(x + 1)"
    )
    unit = sp.csr_matrix(COUNTS / np.sqrt(COUNTS.power(2).sum(1)))
    assert detect_scale(unit).transform == "linear"


def test_normalise_agrees_with_scanpy():
    """normalize_total and log1p."""
    cells = ad.AnnData(COUNTS.astype(np.float32))
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    ours = normalise(COUNTS, Scale("linear", is_counts=True))
    np.testing.assert_allclose(ours.toarray(), cells.X.toarray(), rtol=1e-5)


@pytest.fixture
def adata() -> ad.AnnData:
    """Counts as a layer, log1p of 10,000 in X, all genes in raw, and a second raw as a layer."""
    cells = ad.AnnData(
        each(TEN, np.log1p).astype(np.float32),
        obs=pd.DataFrame(index=[f"cell {i}" for i in range(60)]),
        var=pd.DataFrame(index=[f"GENE{i}" for i in range(400)]),
        layers={"counts": COUNTS.astype(np.float32)},
    )
    cells.raw = cells.copy()
    return cells[:, :300].copy()


@pytest.mark.parametrize(
    "layer, n_genes, transform", [(None, 300, "log1p(x)"), ("counts", 300, "linear"), ("raw", 400, "log1p(x)")]
)
def test_layers_are_read_alike_from_memory_and_from_files(adata, tmp_path, layer, n_genes, transform):
    """From memory, a backed AnnData, a view of one, and a file of which only the layer is opened."""
    from sims_kit.datasets.read import open_backed

    adata.write_h5ad(path := tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(path, backed="r")
    wanted = np.array([7, 3, 59, 3])
    expected = Expression(adata, layer).rows(wanted).toarray()
    assert expected.shape == (4, n_genes)
    for cells, of_layer, positions in (
        (backed, layer, wanted),
        (open_backed(path, layer), None, wanted),
        (backed[3:], layer, wanted - 3),
        (adata[3:], layer, wanted - 3),
    ):
        expression = Expression(cells, of_layer)
        assert expression.scale.transform == transform
        np.testing.assert_allclose(expression.rows(positions).toarray(), expected, atol=1e-6)
    backed.file.close()


def test_a_layer_called_raw_comes_before_raw(adata):
    """And it is said which one is used."""
    adata.layers["raw"] = adata.layers["counts"]
    with pytest.warns(UserWarning, match="the layer is used"):
        assert Expression(adata, "raw").scale.is_counts
    with pytest.raises(UnknownNameError, match="Did you mean 'counts'"):
        Expression(adata, "count")


def test_other_features_than_genes_are_left_out(adata):
    """Antibody counts are no expression."""
    adata.var["feature_types"] = ["Gene Expression"] * 290 + ["Antibody Capture"] * 10
    counts = adata.layers["counts"].toarray()
    counts[:, 290:] = -1.5  # whatever they hold
    adata.layers["counts"] = sp.csr_matrix(counts)
    with pytest.warns(UserWarning, match="10 columns that are no gene expression"):
        expression = Expression(adata, "counts")
    assert expression.rows([0]).shape == (1, 290)
    expected = log_normalised(adata[:, :290].copy(), list(adata.var_names[:290]))
    np.testing.assert_allclose(expression.rows(np.arange(60)).toarray(), expected.toarray(), atol=1e-5)


@pytest.mark.parametrize("layout", ["csr", "dense"])
def test_a_matrix_in_a_file_is_read_by_rows(tmp_path, layout):
    """In any order, with repeats, and after it was sent to another process."""
    from sims_kit.datasets.read import open_backed

    matrix = COUNTS.astype(np.float32)
    ad.AnnData(matrix if layout == "csr" else matrix.toarray()).write_h5ad(path := tmp_path / "cells.h5ad")
    expression = pickle.loads(pickle.dumps(Expression(open_backed(path)).select(np.arange(10, 60))))
    positions = np.array([49, 0, 0, 20])
    np.testing.assert_array_equal(expression.raw_rows(positions).toarray(), matrix.toarray()[positions + 10])


def test_a_file_that_is_not_what_its_sample_promised_is_refused(tmp_path):
    """Cells between those that were looked at hold fractions."""
    from sims_kit.datasets.read import open_backed

    matrix = sp.vstack([COUNTS] * 50, format="csr").astype(np.float32)
    ad.AnnData(matrix).write_h5ad(path := tmp_path / "cells.h5ad")
    with h5py.File(path, "a") as file:
        start = file["X/indptr"][100]
        file["X/data"][start] = 0.5
    expression = Expression(open_backed(path))
    assert expression.scale.is_counts
    with pytest.raises(DataError, match="taken for counts by a sample"):
        expression.rows(np.arange(96, 104))


def test_the_adata_is_left_as_it_is(adata):
    """Nothing is written to it, and an unsorted matrix is sorted in a copy."""
    before = adata.copy()
    matrix = adata.layers["counts"]
    matrix.indices[:2], matrix.data[:2] = matrix.indices[1::-1].copy(), matrix.data[1::-1].copy()
    matrix.has_sorted_indices = matrix.has_canonical_format = False
    first = matrix.indices[0]
    Expression(adata, "counts").rows(np.arange(60))
    assert matrix.indices[0] == first
    np.testing.assert_array_equal(adata.X.toarray(), before.X.toarray())
    assert list(adata.uns) == list(before.uns)

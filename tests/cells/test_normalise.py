"""State detection on every kind of matrix, and normalisation against scanpy."""

import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp

from sims_kit.cells.normalise import detect_state, normalise
from sims_kit.errors import DataError, SettingError


@pytest.mark.parametrize("state", ["counts", "normalised", "log-normalised"])
@pytest.mark.parametrize("form", [sp.csr_matrix, sp.csc_matrix, np.asarray, sp.csr_array])
def test_states_are_told_apart(make_cells, state, form):
    """Counts, normalised and log-normalised values are recognised, sparse or dense."""
    assert detect_state(form(make_cells(state=state).X.toarray())) == state


@pytest.mark.parametrize("dtype", [np.int32, np.uint16, np.float64])
def test_counts_of_any_type(dtype):
    """Whole numbers are counts in any dtype."""
    assert detect_state(np.array([[0, 3], [40, 1]], dtype=dtype)) == "counts"


def test_estimated_counts_are_on_the_linear_scale():
    """Fractional counts of a quantifier, above what a logarithm can reach, are scaled like counts."""
    assert detect_state(np.array([[0.5, 312.7], [1.0, 2.0]])) == "normalised"


def test_proportions_are_on_the_linear_scale(make_cells):
    """Small values with the same sum in each cell are proportions, not logarithms."""
    proportions = make_cells(state="normalised").X * 1e-4
    assert proportions.max() < 1 and detect_state(proportions) == "normalised"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("form", [sp.csr_matrix, np.asarray])
def test_values_must_be_finite(make_cells, bad, form):
    """One NaN or infinite value anywhere is refused and counted."""
    X = make_cells().X.toarray()
    X[-1, -1] = bad
    with pytest.raises(DataError, match="cells holds 1 NaN or infinite"):
        detect_state(form(X), name="cells")


def test_scaled_values_are_refused_with_the_way_out(make_cells):
    """The error about a scaled matrix names the layers that could be used."""
    with pytest.raises(DataError, match=r"scaled or centred.*layer=\"counts\".*This AnnData holds layer='spliced'"):
        detect_state(make_cells(state="scaled").X, layers=["spliced"])


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (3, 4)])
def test_nothing_to_learn_from(shape):
    """No cells, no genes and only zeros are refused, with the size."""
    with pytest.raises(DataError, match=f"empty .{shape[0]} cells x {shape[1]} genes"):
        detect_state(sp.csr_matrix(shape))


@pytest.mark.filterwarnings("ignore:Some cells have zero counts")
@pytest.mark.parametrize("state", ["counts", "normalised"])
@pytest.mark.parametrize("seed", range(3))
def test_equals_scanpy(make_cells, state, seed):
    """The same values as scanpy's normalize_total and log1p, also for a cell without counts; input unchanged."""
    adata = make_cells(seed=seed, state=state)
    empty = sp.diags((np.arange(adata.n_obs) != 3).astype(np.float32), format="csr")
    adata.X = sp.csr_matrix(empty @ adata.X)
    before = adata.X.copy()
    ours = normalise(adata.X, state)
    assert (before != adata.X).nnz == 0 and ours.dtype == np.float32
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    np.testing.assert_allclose(ours.toarray(), adata.X.toarray(), rtol=2e-6)
    assert ours[3].sum() == 0


def test_log_normalised_values_are_used_as_they_are(make_cells):
    """log-normalised input is not touched a second time."""
    X = make_cells(state="log-normalised").X
    np.testing.assert_array_equal(normalise(X, "log-normalised").toarray(), X.toarray())


def test_deep_cells_keep_their_precision():
    """Library sizes are summed in float64: 20,000 genes of a deep cell come out within 1e-6."""
    X = sp.csr_matrix(np.random.default_rng(0).poisson(900, (2, 20_000)).astype(np.float32))
    exact = np.log1p(X.toarray().astype(float) / X.toarray().sum(1, dtype=float, keepdims=True) * 1e4)
    np.testing.assert_allclose(normalise(X, "counts").toarray(), exact, rtol=1e-6)


def test_states_are_a_closed_set():
    """A state that detect_state does not give is refused."""
    with pytest.raises(SettingError, match="'raw'"):
        normalise(sp.csr_matrix((1, 1)), "raw")

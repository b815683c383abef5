"""SIMS as a scikit-learn estimator: inputs of every kind, clones, cross-validation, grids, pipelines."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.base import clone
from sklearn.feature_selection import SelectKBest
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

import sims_kit as sk
from sims_kit.errors import DataError, LabelError, UnknownNameError

SMALL, NAMES = {"n_models": 1, "n_d": 8, "n_a": 8}, [f"GENE{i:05d}" for i in range(60)]


@pytest.fixture(scope="module")
def cells(make_cells):
    """Three classes, easy to tell apart; four donors."""
    cells = make_cells(n_cells=160)
    cells.obs["donor"] = [f"donor {i % 4}" for i in range(160)]
    return cells


@pytest.fixture(scope="module")
def fitted(cells):
    """A classifier of AnnData."""
    return sk.SIMS(SMALL, max_epochs=15).fit(cells[:120].copy(), "cell_type")


def test_predictions_are_those_of_annotate(cells, fitted):
    """Probabilities are those that `annotate` writes, which takes the estimator as well as its model."""
    query = cells[120:].copy()
    found = fitted.predict_proba(query)
    expected = sk.annotate(query, fitted, copy=True).obsm["sims_probabilities"]
    assert list(sk.explain(fitted, query).predicted) == list(fitted.predict(query))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
    assert list(fitted.classes_) == list(fitted.model_.classes)
    assert fitted.score(query, query.obs["cell_type"]) > 0.8
    assert fitted.n_features_in_ == 60 and fitted.feature_names_in_[0] == "GENE00000"
    with pytest.raises(ValueError, match="X has 59 features, but SIMS is expecting 60"):
        fitted.predict(query.X[:, 1:])


KINDS = {
    "csr": sp.csr_matrix,
    "csc": sp.csc_matrix,
    "csr_array": sp.csr_array,
    "dense": lambda X: X.toarray(),
    "frame": lambda X: pd.DataFrame(X.toarray(), columns=NAMES),
    "sparse frame": lambda X: pd.DataFrame.sparse.from_spmatrix(X, columns=NAMES),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_input_gives_the_same(cells, fitted, kind):
    """Sparse and dense arrays, and DataFrames, whose columns are genes: whatever the container, the same numbers."""
    convert = KINDS[kind]
    one = clone(fitted).fit(convert(cells.X[:120]), cells.obs["cell_type"].to_numpy()[:120])
    expected = fitted.predict_proba(cells[120:].copy())
    np.testing.assert_allclose(one.predict_proba(convert(cells.X[120:])), expected, atol=1e-5)
    assert hasattr(one, "feature_names_in_") == ("frame" in kind)
    np.testing.assert_allclose(fitted.predict_proba(convert(cells.X[120:])), expected, atol=1e-6)


def test_classes_keep_their_type(cells):
    """Whole numbers stay numbers, in their own order."""
    y = np.array([2, 10, 1])[cells.obs["cell_type"].astype("category").cat.codes]
    one = sk.SIMS(SMALL, max_epochs=15).fit(cells.X, y)
    assert list(one.classes_) == [1, 2, 10] and one.predict(cells.X).dtype == y.dtype
    assert (one.predict(cells.X) == y).mean() > 0.8


def test_groups(cells):
    """Validation cells may come from donors of their own."""
    one = sk.SIMS(SMALL, max_epochs=2, validation=0.25).fit(cells, "cell_type", groups="donor")
    assert len(one.model_.history) == 2 and one.model_.provenance["groups"] == "group"


def test_grid_search_and_pipeline(cells):
    """`max_epochs` and `recipe` are searched; a selection of genes keeps counts sparse."""
    grid = {"sims__max_epochs": [1, 12], "sims__recipe": [SMALL, SMALL | {"n_d": 4}]}
    pipeline = make_pipeline(SelectKBest(k=30), sk.SIMS())
    search = GridSearchCV(pipeline, grid, cv=2, error_score="raise")
    search.fit(cells.X, cells.obs["cell_type"])
    assert search.best_params_["sims__max_epochs"] == 12 and search.best_score_ > 0.6
    assert search.best_estimator_[-1].n_features_in_ == 30


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(y="celltype"), UnknownNameError, "cell_type"),
        (dict(y=None), ValueError, "y should be a 1d array"),
        (dict(y=[None] * 10 + ["a", "b"] * 75), LabelError, "10 of 160 cells have no label"),
        (dict(y=["a", "b"]), ValueError, "inconsistent numbers of samples"),
        (dict(groups="doner"), UnknownNameError, "donor"),
        (dict(X=np.full((160, 5), np.nan), y=["a", "b"] * 80), DataError, "NaN"),
    ],
)
def test_bad_input_is_told_before_training(cells, change, error, message):
    """Value, expectation and way out, as everywhere in the kit."""
    with pytest.raises(error, match=message):
        sk.SIMS().fit(change.get("X", cells), change.get("y", "cell_type"), groups=change.get("groups"))

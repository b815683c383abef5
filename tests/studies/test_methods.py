"""Methods: every one learns from counts behind the same protocol, and keeps genes and classes apart."""

import sys
from unittest import mock

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier

from sims_kit import studies
from sims_kit.cells.matrix import log_normalised
from sims_kit.errors import LabelError
from sims_kit.studies.methods import Components

SLOW = {"SIMS, default", "SIMS, thesis", "SIMS, one network"}  # tested by themselves


@pytest.mark.parametrize("name", sorted(set(studies.METHODS) - SLOW))
def test_each_method_learns(make_cells, name):
    """Most cells get their class, whatever the order of the genes; clones are equal; probabilities match labels."""
    if name == "LightGBM":
        pytest.importorskip("lightgbm")
    cells = make_cells(n_cells=160)
    y = cells.obs["cell_type"].to_numpy()
    method = studies.METHODS[name](1).fit(cells[:120], y[:120])
    labels = method.predict(cells[120:])
    assert (labels == y[120:]).mean() > 0.8 and list(method.classes_) == ["class_0", "class_1", "class_2"]
    assert list(method.predict(cells[120:, ::-1].copy())) == list(labels)
    assert list(clone(method).fit(cells[:120], y[:120]).predict(cells[120:])) == list(labels)
    if hasattr(method, "predict_proba"):
        probabilities = method.predict_proba(cells[120:])
        assert probabilities.shape == (40, 3) and (method.classes_[probabilities.argmax(axis=1)] == labels).mean() > 0.9


def test_celltypist_is_that_of_the_package(make_cells):
    """The same labels and probabilities as the package gives, where it is installed."""
    celltypist = pytest.importorskip("celltypist")

    class OneAgainstRest(OneVsRestClassifier):
        """What CellTypist asks scikit-learn for, which 1.8 has not any more."""

        def fit(self, X, y):
            super().fit(X, y)
            self.coef_ = np.vstack([model.coef_ for model in self.estimators_])
            self.intercept_ = np.concatenate([model.intercept_ for model in self.estimators_])
            return self

    def one_against_rest(multi_class, **settings):
        return OneAgainstRest(LogisticRegression(**settings))

    cells = make_cells(n_cells=160, n_genes=400)
    y = cells.obs["cell_type"].to_numpy()
    values = cells.copy()
    values.X = log_normalised(cells, list(cells.var_names))
    options = dict(check_expression=False, feature_selection=True, n_jobs=1, random_state=0)
    with mock.patch.object(sys.modules["celltypist.train"], "LogisticRegression", one_against_rest):
        model = celltypist.train(values[:120].copy(), y[:120], **options)
    expected = celltypist.annotate(values[120:].copy(), model=model).probability_matrix
    found = studies.METHODS["CellTypist"](0).fit(cells[:120], y[:120]).predict_proba(cells[120:])
    np.testing.assert_allclose(found, expected[["class_0", "class_1", "class_2"]], atol=1e-4)


def test_few_cells(make_cells):
    """Components are as many as there are cells for; calibration needs two cells of every class."""
    cells, threads = make_cells(n_cells=10), torch.get_num_threads()
    assert Components().fit(cells.X).transform(cells.X).shape == (10, 9)
    assert torch.get_num_threads() == threads
    y = ["a"] * 9 + ["b"]
    with pytest.raises(LabelError, match="two cells of every class"):
        studies.METHODS["linear SVM, calibrated"](0).fit(cells, y)

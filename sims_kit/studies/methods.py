"""The methods that SIMS is compared with, and SIMS itself, as scikit-learn classifiers by name."""

from collections.abc import Callable, Iterable
from importlib import import_module

import numpy as np
import scipy.sparse as sp
import torch
from anndata import AnnData
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.model_selection import StratifiedKFold
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

from sims_kit.cells.genes import shared_genes
from sims_kit.cells.matrix import log_normalised
from sims_kit.errors import LabelError, UnknownNameError
from sims_kit.estimator import SIMS, as_cells
from sims_kit.model.novelty import L1


class LogNormalise(TransformerMixin, BaseEstimator):
    """From counts, cells x genes, to log1p of 10,000 a cell on the genes of the training cells: what SIMS sees."""

    def fit(self, X, y=None) -> "LogNormalise":
        """Remember the genes."""
        self.genes_ = shared_genes([as_cells(X).var_names])
        return self

    def transform(self, X) -> sp.csr_matrix:
        """(cells, genes) float32; a missing gene is zero."""
        return log_normalised(as_cells(X, self.genes_), self.genes_)


class Components(TransformerMixin, BaseEstimator):
    """Principal components of the 2,000 most variable genes, scaled to unit variance; values stay sparse."""

    def __init__(self, random_state: int = 0):
        self.random_state = random_state

    def fit(self, X: sp.csr_matrix, y=None) -> "Components":
        """Choose genes as scanpy does (flavour of Seurat) and find their components."""
        import scanpy  # takes seconds

        expressed, threads = np.flatnonzero(X.getnnz(axis=0)), torch.get_num_threads()
        chosen = scanpy.pp.highly_variable_genes(AnnData(X[:, expressed]), n_top_genes=2000, inplace=False)
        torch.set_num_threads(threads)  # numba in scanpy changes OpenMP's number of threads for all libraries
        self.genes_ = expressed[chosen["highly_variable"].to_numpy()]
        n_components = min(50, X.shape[0] - 1, len(self.genes_) - 1)  # ARPACK finds all but one
        pca = PCA(n_components, svd_solver="arpack", random_state=self.random_state)
        self.pipeline_ = make_pipeline(StandardScaler(with_mean=False), pca).fit(X[:, self.genes_])
        return self

    def transform(self, X: sp.csr_matrix) -> np.ndarray:
        """(cells, components)."""
        return self.pipeline_.transform(X[:, self.genes_])


class _FiveFolds:
    """Stratified folds: five, or as many as the smallest class has cells."""

    def get_n_splits(self, X=None, y=None, groups=None) -> int:
        smallest = np.unique(y, return_counts=True)[1].min()
        if smallest < 2:
            raise LabelError("Calibration by cross-validation needs two cells of every class. Leave out smaller ones.")
        return int(min(5, smallest))

    def split(self, X, y, groups=None):
        return StratifiedKFold(self.get_n_splits(X, y)).split(X, y)


class CellTypist(ClassifierMixin, BaseEstimator):
    """The steps of ``celltypist.train(feature_selection=True)``, on log-normalised values, without majority voting.

    Logistic regression, one class against the rest, on the 300 genes of each class that have the largest weights in a
    first pass of stochastic gradient descent. The package, 1.7.1, does not train with scikit-learn 1.8 or later.
    """

    def __init__(self, random_state: int = 0):
        self.random_state = random_state

    def fit(self, X: sp.csr_matrix, y) -> "CellTypist":
        """Choose the genes and fit."""
        self.scaler_ = StandardScaler().fit(X.toarray())
        values, settings = self._scaled(X), dict(max_iter=1000, random_state=self.random_state)
        weights = np.abs(SGDClassifier(loss="log_loss", **settings).fit(values, y).coef_)
        n_genes = min(300, X.shape[1])
        self.genes_ = np.unique(np.argpartition(weights, -n_genes, axis=1)[:, -n_genes:])
        self.model_ = OneVsRestClassifier(LogisticRegression(**settings)).fit(values[:, self.genes_], y)
        self.classes_ = self.model_.classes_
        return self

    def predict_proba(self, X: sp.csr_matrix) -> np.ndarray:
        """One sigmoid per class, (cells, classes); rows do not sum to one."""
        found = expit(self.model_.decision_function(self._scaled(X)[:, self.genes_]))
        return np.column_stack([1 - found, found]) if found.ndim == 1 else found

    def predict(self, X: sp.csr_matrix) -> np.ndarray:
        """The best match of each cell."""
        return self.classes_[self.predict_proba(X).argmax(axis=1)]

    def _scaled(self, X: sp.csr_matrix) -> np.ndarray:
        return np.minimum(self.scaler_.transform(X.toarray()), 10)  # CellTypist, too, makes these values dense


def _on_values(*steps: Callable[..., BaseEstimator]) -> Callable[[int], BaseEstimator]:
    """A method of log-normalised values, from its steps."""
    return lambda seed: make_pipeline(LogNormalise(), *(step(seed) for step in steps))


def _linear_svm(seed: int) -> LinearSVC:
    return LinearSVC(C=0.01, random_state=seed)  # scikit-learn's 1 overfits values of many genes that are not scaled


METHODS = {
    "SIMS, default": lambda seed: SIMS(seed=seed),
    "SIMS, one network": lambda seed: SIMS({"n_models": 1}, seed=seed),
    "SIMS, thesis": lambda seed: SIMS("thesis", seed=seed),
    "logistic regression": _on_values(lambda seed: LogisticRegression(max_iter=1000, random_state=seed)),
    "L1 logistic regression": _on_values(lambda seed: OneVsRestClassifier(LogisticRegression(**L1, random_state=seed))),
    "linear SVM": _on_values(_linear_svm),
    # Platt's sigmoid, as in Abdelaal et al. (Genome Biology 2019)
    "linear SVM, calibrated": _on_values(lambda seed: CalibratedClassifierCV(_linear_svm(seed), cv=_FiveFolds())),
    # Alquicira-Hernandez et al. (Genome Biology 2019), without their choice of components
    "RBF SVM on PCs (scPred's method)": _on_values(
        Components, lambda seed: CalibratedClassifierCV(SVC(), cv=_FiveFolds(), ensemble=False)
    ),
    "kNN on PCs": _on_values(Components, lambda seed: KNeighborsClassifier(15)),  # scanpy's usual number
    "random forest": _on_values(lambda seed: RandomForestClassifier(200, random_state=seed)),
    "LightGBM": _on_values(
        lambda seed: import_module("lightgbm").LGBMClassifier(random_state=seed, n_jobs=1, verbose=-1)
    ),
    "CellTypist": _on_values(CellTypist),
}


def known(methods: str | Iterable[str], options: Iterable[str] = METHODS) -> list[str]:
    """The names of methods; an unknown one is answered with the nearest ones."""
    methods = [methods] if isinstance(methods, str) else list(methods)
    for name in methods:
        if name not in options:
            raise UnknownNameError("method", name, options)
    return methods

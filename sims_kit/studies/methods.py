"""The methods that SIMS is compared with, and SIMS itself, as scikit-learn classifiers by name."""

from collections.abc import Callable, Mapping
from importlib import import_module
from types import MappingProxyType

import numpy as np
import pandas as pd
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

from sims_kit.calibration import UNKNOWN
from sims_kit.cells.genes import shared_genes
from sims_kit.cells.matrix import Expression, log_normalised
from sims_kit.errors import DataError, LabelError, UnknownNameError
from sims_kit.estimator import SIMS, as_cells

L1 = {"penalty": "l1"} if LogisticRegression().penalty == "l2" else {"l1_ratio": 1}  # since scikit-learn 1.8


class LogNormalise(TransformerMixin, BaseEstimator):
    """From counts, cells x genes, to log1p of 10,000 a cell on the genes of the training cells: what SIMS sees.

    Examples
    --------
    >>> make_pipeline(LogNormalise(), LinearSVC(C=0.01)).fit(reference, labels).predict(query)
    """

    def fit(self, X, y=None) -> "LogNormalise":
        """Remember the genes."""
        self.genes_ = shared_genes([as_cells(X).var_names])
        return self

    def transform(self, X) -> sp.csr_matrix:
        """(cells, genes) float32; a missing gene is zero."""
        return log_normalised(as_cells(X, self.genes_), self.genes_)


class Components(TransformerMixin, BaseEstimator):
    """Principal components of the 2,000 most variable genes, scaled to unit variance; values stay sparse."""

    def __init__(self, random_state: int = 0, n_top_genes: int = 2000, n_components: int = 50):
        self.random_state, self.n_top_genes, self.n_components = random_state, n_top_genes, n_components

    def fit(self, X: sp.csr_matrix, y=None) -> "Components":
        """Choose genes as scanpy does (flavour of Seurat) and find their components."""
        import scanpy  # takes seconds

        expressed, threads = np.flatnonzero(X.getnnz(axis=0)), torch.get_num_threads()
        chosen = scanpy.pp.highly_variable_genes(AnnData(X[:, expressed]), n_top_genes=self.n_top_genes, inplace=False)
        torch.set_num_threads(threads)  # numba in scanpy changes OpenMP's number of threads for all libraries
        self.genes_ = expressed[chosen["highly_variable"].to_numpy()]
        n_components = min(self.n_components, X.shape[0] - 1, len(self.genes_) - 1)  # ARPACK finds all but one
        pca = PCA(n_components, svd_solver="arpack", random_state=self.random_state)
        self.pipeline_ = make_pipeline(StandardScaler(with_mean=False), pca).fit(X[:, self.genes_])
        return self

    def transform(self, X: sp.csr_matrix) -> np.ndarray:
        """(cells, components)."""
        return self.pipeline_.transform(X[:, self.genes_])


class FiveFolds:
    """Stratified folds: five, or as many as the smallest class has cells."""

    def get_n_splits(self, X=None, y=None, groups=None) -> int:
        """Number of folds."""
        smallest = np.unique(y, return_counts=True)[1].min()
        if smallest < 2:
            raise LabelError("Calibration by cross-validation needs two cells of every class. Leave out smaller ones.")
        return int(min(5, smallest))

    def split(self, X, y, groups=None):
        """Pairs of training and test positions."""
        return StratifiedKFold(self.get_n_splits(X, y)).split(X, y)


class CellTypist(ClassifierMixin, BaseEstimator):
    """The steps of ``celltypist.train(feature_selection=True)``, on log-normalised values, without majority voting.

    Logistic regression, one class against the rest, on the 300 genes of each class that have the largest weights in a
    first pass of stochastic gradient descent. The package, 1.7.1, does not train with scikit-learn 1.8 or later.
    """

    def __init__(self, random_state: int = 0, n_top_genes: int = 300):
        self.random_state, self.n_top_genes = random_state, n_top_genes

    def fit(self, X: sp.csr_matrix, y) -> "CellTypist":
        """Choose the genes and fit."""
        self.scaler_ = StandardScaler().fit(X.toarray())
        values, settings = self._scaled(X), dict(max_iter=1000, random_state=self.random_state)
        weights = np.abs(SGDClassifier(loss="log_loss", **settings).fit(values, y).coef_)
        n_genes = min(self.n_top_genes, X.shape[1])
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


class ScANVI(ClassifierMixin, BaseEstimator):
    """scANVI of scvi-tools (Xu et al., Molecular Systems Biology 2021) on raw counts, as in its tutorial.

    The batch key is the column `sample` of `obs`, where the training cells have several samples; query cells of new
    samples are mapped first, without labels.
    """

    def __init__(self, random_state: int = 0, sample: str = "sample"):
        self.random_state, self.sample = random_state, sample

    def fit(self, X, y) -> "ScANVI":
        """Train scVI for its own number of epochs, then scANVI for 20."""
        import scanpy  # takes seconds

        scvi, cells = import_module("scvi"), as_cells(X)
        scvi.settings.seed = self.random_state
        self.classes_, self.genes_ = np.unique(y), shared_genes([cells.var_names])
        self.samples_ = set(cells.obs.get(self.sample, pd.Series(dtype=str)).astype(str))
        training = self._counts(cells)
        training = training[:, training.X.getnnz(axis=0) > 0].copy()
        if training.n_vars > 2000:
            key = "sample" if len(self.samples_) > 1 else None
            settings = dict(n_top_genes=2000, flavor="seurat_v3", batch_key=key, subset=True)
            try:
                scanpy.pp.highly_variable_genes(training, **settings)
            except ValueError:  # samples of few cells have too few different means for a local fit
                scanpy.pp.highly_variable_genes(training, span=1.0, **settings)
        self.genes_, training.obs["label"] = list(training.var_names), np.asarray(y).astype(str)
        scvi.model.SCVI.setup_anndata(training, labels_key="label", batch_key="sample")
        network = dict(n_layers=2, dropout_rate=0.2, encode_covariates=True)
        first = scvi.model.SCVI(training, **network, use_layer_norm="both", use_batch_norm="none")
        first.train(enable_progress_bar=False)
        self.model_ = scvi.model.SCANVI.from_scvi_model(first, unlabeled_category=UNKNOWN)
        self.model_.train(max_epochs=20, n_samples_per_label=100, enable_progress_bar=False)
        return self

    def predict_proba(self, X) -> np.ndarray:
        """(cells, classes)."""
        model, query = self.model_, self._counts(as_cells(X, self.genes_))
        query.obs["label"] = UNKNOWN
        if not set(query.obs["sample"]) <= {*self.samples_, "all"}:
            model = type(model).load_query_data(query, model)
            model.train(max_epochs=100, plan_kwargs={"weight_decay": 0.0}, enable_progress_bar=False)
        return model.predict(query, soft=True)[self.classes_.astype(str)].to_numpy(np.float32)

    def predict(self, X) -> np.ndarray:
        """The most probable class of each cell."""
        return self.classes_[self.predict_proba(X).argmax(axis=1)]

    def _counts(self, cells: AnnData) -> AnnData:
        """Raw counts on the genes of the training cells, with the sample of each cell."""
        expression = Expression(cells)
        if not expression.scale.is_counts:
            raise DataError(f"scANVI models counts, and these values are {expression.scale}. Give it raw counts.")
        expression.align(self.genes_, cells.obs_names)
        found = AnnData(expression.raw_rows(np.arange(len(expression))), var=pd.DataFrame(index=self.genes_))
        has_samples = len(self.samples_) > 1 and self.sample in cells.obs
        found.obs["sample"] = cells.obs[self.sample].astype(str).to_numpy() if has_samples else "all"
        return found


def _lightgbm(seed: int):
    return import_module("lightgbm").LGBMClassifier(random_state=seed, n_jobs=1, verbose=-1)


def _linear_svm(seed: int) -> LinearSVC:
    return LinearSVC(C=0.01, random_state=seed)  # scikit-learn's 1 overfits values of many genes that are not scaled


def _l1(seed: int) -> OneVsRestClassifier:
    return OneVsRestClassifier(LogisticRegression(C=1, **L1, solver="liblinear", max_iter=1000, random_state=seed))


_ON_VALUES = {  # estimators of log-normalised values, from a seed
    "logistic regression": lambda seed: [LogisticRegression(C=1, max_iter=1000, random_state=seed)],
    "L1 logistic regression": lambda seed: [_l1(seed)],
    "linear SVM": lambda seed: [_linear_svm(seed)],
    # Platt's sigmoid, as in Abdelaal et al. (Genome Biology 2019)
    "linear SVM, calibrated": lambda seed: [CalibratedClassifierCV(_linear_svm(seed), cv=FiveFolds())],
    # Alquicira-Hernandez et al. (Genome Biology 2019), without their choice of components
    "RBF SVM on PCs (scPred's method)": lambda seed: [
        Components(seed),
        CalibratedClassifierCV(SVC(), cv=FiveFolds(), ensemble=False),
    ],
    "kNN on PCs": lambda seed: [Components(seed), KNeighborsClassifier(15)],  # scanpy's usual number
    "random forest": lambda seed: [RandomForestClassifier(200, random_state=seed)],
    "LightGBM": lambda seed: [_lightgbm(seed)],
    "CellTypist": lambda seed: [CellTypist(seed)],
}

METHODS: Mapping[str, Callable[[int], BaseEstimator]] = MappingProxyType(
    {
        "SIMS, default": lambda seed: SIMS(seed=seed),
        "SIMS, one network": lambda seed: SIMS({"n_models": 1}, seed=seed),
        "SIMS, thesis": lambda seed: SIMS("thesis", seed=seed),
        **{
            name: lambda seed, steps=steps: make_pipeline(LogNormalise(), *steps(seed))
            for name, steps in _ON_VALUES.items()
        },
        "scANVI": lambda seed: ScANVI(seed),
    }
)


def make_method(name: str, seed: int = 0) -> BaseEstimator:
    """The unfitted estimator of that name of `METHODS`; some need ``pip install 'sims_kit[peers]'``.

    Examples
    --------
    >>> make_method("linear SVM").fit(reference, labels).predict(query)
    """
    if name not in METHODS:
        raise UnknownNameError("method", name, METHODS)
    return METHODS[name](seed)

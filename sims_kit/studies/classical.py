"""Peers from scikit-learn and LightGBM, an MLP of ACTINN's shape, and voting with marker genes.

All see the values that SIMS sees (log1p of 10,000 counts a cell), sparse wherever the library allows it.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from anndata import AnnData
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

from sims_kit.errors import PeerError
from sims_kit.studies.adaptor import UNKNOWN, Prediction, labels_of, log_normalised, needs, vocabulary

N_VARIABLE_GENES = 2000  # Seurat's and scanpy's usual number
N_COMPONENTS = 50  # Seurat's and scanpy's usual number


class Estimator:
    """A scikit-learn classifier on log-normalised values of all genes of the reference.

    Parameters
    ----------
    name
        Says what is run.
    make
        Seed, number of cells and size of the smallest class in; an unfitted estimator out.
    reject_below
        Cells whose largest probability is lower become ``"Unknown"``.
    packages
        Distributions whose versions decide the result.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[int, int, int], Any],
        reject_below: float = 0.0,
        packages: tuple[str, ...] = ("scikit-learn",),
    ):
        self.name, self.make, self.reject_below, self.packages = name, make, reject_below, packages

    @property
    def settings(self) -> str:
        """The estimator as it prints itself, for 1,000 cells and no small class."""
        try:
            text = " ".join(repr(self.make(0, 1000, 1000)).split())
        except PeerError:  # the package is missing, which the versions tell
            text = ""
        return f"{text}, reject below {self.reject_below}"

    def fit(self, reference: AnnData, label: str, *, sample: str | None = None, seed: int = 0) -> None:
        """Learn from a reference; samples are not corrected for. See `Peer.fit`."""
        labels = labels_of(reference, label)
        self.genes = vocabulary(reference)
        smallest = np.unique(labels, return_counts=True)[1].min()
        estimator = self.make(seed, len(labels), int(smallest))
        self.estimator = estimator.fit(log_normalised(reference, self.genes), labels)

    def predict(self, query: AnnData) -> Prediction:
        """Label cells. See `Peer.predict`."""
        values = log_normalised(query, self.genes)
        classes = self.estimator.classes_
        if not hasattr(self.estimator, "predict_proba"):
            return Prediction(self.estimator.predict(values).astype(str), None, list(map(str, classes)))
        probabilities = self.estimator.predict_proba(values).astype(np.float32)
        labels = classes[probabilities.argmax(axis=1)].astype(object)
        labels[probabilities.max(axis=1) < self.reject_below] = UNKNOWN
        return Prediction(labels.astype(str), probabilities, list(map(str, classes)))


class VariableGenes(TransformerMixin, BaseEstimator):
    """Keeps the most variable genes of the cells it is fitted on (scanpy's choice, Seurat's flavour)."""

    def __init__(self, n_top_genes: int = N_VARIABLE_GENES):
        self.n_top_genes = n_top_genes

    def fit(self, X: sp.csr_matrix, y=None) -> "VariableGenes":
        """Choose the genes from log-normalised values (cells, genes)."""
        import scanpy  # takes seconds

        expressed = np.flatnonzero(X.getnnz(axis=0))
        chosen = scanpy.pp.highly_variable_genes(AnnData(X[:, expressed]), n_top_genes=self.n_top_genes, inplace=False)
        self.genes_ = expressed[chosen["highly_variable"].to_numpy()]
        return self

    def transform(self, X: sp.csr_matrix) -> sp.csr_matrix:
        """The chosen columns."""
        return X[:, self.genes_]


class Components(TransformerMixin, BaseEstimator):
    """Principal components of sparse values, centred without making them dense; fewer where there is less data."""

    def __init__(self, n_components: int = N_COMPONENTS, random_state: int = 0):
        self.n_components, self.random_state = n_components, random_state

    def fit(self, X: sp.csr_matrix, y=None) -> "Components":
        """Find the components of (cells, genes)."""
        n_components = min(self.n_components, min(X.shape) - 1)  # ARPACK finds all but one
        self.pca_ = PCA(n_components, svd_solver="arpack", random_state=self.random_state).fit(X)
        return self

    def transform(self, X: sp.csr_matrix) -> np.ndarray:
        """Cells on the components, (cells, n_components)."""
        return self.pca_.transform(X)


def logistic_regression(seed: int, n_cells: int, smallest: int) -> LogisticRegression:
    """Multinomial, with scikit-learn's own penalty."""
    return LogisticRegression(C=1, max_iter=1000, random_state=seed)


def linear_svm(seed: int, n_cells: int, smallest: int) -> LinearSVC:
    """C=0.01 suits values of many genes that are not scaled: scikit-learn's 1 is fitted to the last cell."""
    return LinearSVC(C=0.01, random_state=seed)


def calibrated_svm(seed: int, n_cells: int, smallest: int) -> CalibratedClassifierCV:
    """Probabilities by Platt's sigmoid from cross-validation, as in Abdelaal et al. (Genome Biology 2019)."""
    return CalibratedClassifierCV(linear_svm(seed, n_cells, smallest), cv=_folds(smallest))


def on_components(classifier, seed: int):
    """Variable genes, scaled to unit variance, on their principal components."""
    return make_pipeline(VariableGenes(), StandardScaler(with_mean=False), Components(random_state=seed), classifier)


def rbf_svm(seed: int, n_cells: int, smallest: int):
    """The method of scPred (Alquicira-Hernandez et al., Genome Biology 2019), without its choice among components."""
    return on_components(CalibratedClassifierCV(SVC(), cv=_folds(smallest), ensemble=False), seed)


def nearest_neighbours(seed: int, n_cells: int, smallest: int):
    """15 neighbours, scanpy's usual number."""
    return on_components(KNeighborsClassifier(min(15, n_cells)), seed)


def random_forest(seed: int, n_cells: int, smallest: int) -> RandomForestClassifier:
    """200 trees: with scikit-learn's 100 the probabilities are coarse."""
    return RandomForestClassifier(200, random_state=seed)


def lightgbm(seed: int, n_cells: int, smallest: int):
    """LightGBM's own settings; one thread, as all peers have."""
    return needs("lightgbm", "LightGBM").LGBMClassifier(random_state=seed, n_jobs=1, verbose=-1)


def _folds(smallest: int) -> int:
    """Folds of the calibration: five, or as many as the smallest class has cells."""
    if smallest < 2:
        raise PeerError("Calibration by cross-validation needs two cells of every class. Leave out smaller classes.")
    return min(5, smallest)


class Actinn:
    """ACTINN's network and training (Ma and Pellegrini, Bioinformatics 2020), re-run in torch.

    Hidden layers of 100, 50 and 25 ReLU, Glorot's start, Adam at 1e-4 (x 0.95 every 1,000 steps), L2 of 0.005 on the
    weights, batches of 128, 50 epochs; log2 of 10,000 counts a cell plus one. As upstream, genes outside of the 1st to
    99th percentile of total expression, then of the coefficient of variation, are left out; here the reference alone
    decides that, upstream the query as well.
    """

    name = "ACTINN architecture, re-run in torch"
    packages = ("torch",)
    settings = "100-50-25 ReLU, Adam 1e-4 x 0.95 / 1000 steps, L2 0.005, batch 128, 50 epochs, genes within 1-99 %"

    def fit(self, reference: AnnData, label: str, *, sample: str | None = None, seed: int = 0) -> None:
        """Train on a reference; samples are not corrected for. See `Peer.fit`."""
        classes, codes = np.unique(labels_of(reference, label), return_inverse=True)
        self.classes = classes.tolist()
        self.genes = vocabulary(reference)
        values = self._log2(reference)
        self.kept = _expressed_and_varying(values)
        values = values[:, self.kept]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._train(values, torch.from_numpy(codes))

    def predict(self, query: AnnData) -> Prediction:
        """Label cells. See `Peer.predict`."""
        values = self._log2(query)[:, self.kept]
        with torch.no_grad():
            parts = [
                self.network(_dense(values[first : first + 1024])).softmax(1) for first in range(0, query.n_obs, 1024)
            ]
        probabilities = torch.cat(parts).numpy()
        return Prediction(np.array(self.classes)[probabilities.argmax(axis=1)], probabilities, self.classes)

    def _log2(self, cells: AnnData) -> sp.csr_matrix:
        return (log_normalised(cells, self.genes) / np.log(2)).astype(np.float32)

    def _train(self, values: sp.csr_matrix, codes: torch.Tensor) -> None:
        widths = [values.shape[1], 100, 50, 25, len(self.classes)]
        layers = [torch.nn.Linear(*pair) for pair in pairwise(widths)]
        for layer in layers:
            torch.nn.init.xavier_uniform_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
        steps = [part for layer in layers for part in (layer, torch.nn.ReLU())][:-1]
        self.network = torch.nn.Sequential(*steps)
        groups = [
            {"params": [layer.weight for layer in layers], "weight_decay": 0.005},
            {"params": [layer.bias for layer in layers], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.Adam(groups, lr=1e-4)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1000, 0.95)
        for _ in range(50):
            for batch in torch.randperm(len(codes)).split(128):
                loss = torch.nn.functional.cross_entropy(self.network(_dense(values[batch.numpy()])), codes[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()


def _expressed_and_varying(values: sp.csr_matrix) -> np.ndarray:
    """ACTINN's two filters of genes, as positions of the columns that stay."""
    kept = np.flatnonzero(values.getnnz(axis=0))  # upstream's second filter is undefined for genes without counts
    total = values[:, kept].sum(axis=0).A1
    kept = kept[(total >= np.percentile(total, 1)) & (total <= np.percentile(total, 99))]
    moments = StandardScaler(with_mean=False).fit(values[:, kept])
    variation = np.sqrt(moments.var_) / values[:, kept].mean(axis=0).A1
    return kept[(variation >= np.percentile(variation, 1)) & (variation <= np.percentile(variation, 99))]


def _dense(rows: sp.csr_matrix) -> torch.Tensor:
    return torch.from_numpy(rows.toarray())


class MarkerVoting:
    """Marker genes of the reference's classes vote for the label of a cell, or of a cluster of cells.

    The 50 genes that a Wilcoxon test ranks highest are a class's markers. Expression is scaled to mean 0 and variance
    1 for each gene, and a class gets the mean over its markers, each weighted by one over the number of classes that
    it marks. By cluster, this is the pipeline of thesis section 0.1.2 and the idea of Digital Cell Sorter (Domanskyi
    et al., PeerJ 2021): Leiden clusters of the query, scaled within the query. By cell, every cell votes alone, scaled
    as the reference is. Votes are not probabilities, so there are none.
    """

    packages = ("scanpy", "leidenalg")

    def __init__(self, name: str, by_cluster: bool):
        self.name, self.by_cluster = name, by_cluster
        self.settings = f"50 markers, Wilcoxon, {'Leiden clusters, resolution 1' if by_cluster else 'cell by cell'}"

    def fit(self, reference: AnnData, label: str, *, sample: str | None = None, seed: int = 0) -> None:
        """Find the markers; samples are not corrected for. See `Peer.fit`."""
        import scanpy  # takes seconds

        labels, self.genes, self.seed = labels_of(reference, label), vocabulary(reference), seed
        values = log_normalised(reference, self.genes)
        kept = np.flatnonzero(values.getnnz(axis=0))
        cells = AnnData(values[:, kept], var={"column": kept})
        cells.obs["label"] = labels
        cells.obs["label"] = cells.obs["label"].astype("category")
        self.classes = list(cells.obs["label"].cat.categories)
        scanpy.tl.rank_genes_groups(cells, "label", method="wilcoxon", n_genes=50)
        markers = sp.lil_matrix((len(self.genes), len(self.classes)))
        for column, of_class in enumerate(self.classes):
            ranked = scanpy.get.rank_genes_groups_df(cells, of_class, log2fc_min=0)["names"].astype(int)
            markers[kept[ranked], column] = 1
        markers = markers.tocsr()
        shared = sp.diags(1 / np.maximum(markers.sum(axis=1).A1, 1))  # a gene of many classes says little of each
        self.markers = (shared @ markers / np.maximum(markers.sum(axis=0).A1, 1)).tocsr()
        self.moments = StandardScaler(with_mean=False).fit(values), values.mean(axis=0).A1

    def predict(self, query: AnnData) -> Prediction:
        """Label cells. See `Peer.predict`."""
        values = log_normalised(query, self.genes)
        scaler, mean = self.moments
        if self.by_cluster:
            scaler, mean = StandardScaler(with_mean=False).fit(values), values.mean(axis=0).A1
        votes = np.asarray(scaler.transform(values) @ self.markers - (mean / scaler.scale_) @ self.markers)
        if self.by_cluster:
            clusters = self._clusters(values)
            sums = np.zeros((clusters.max() + 1, votes.shape[1]))
            np.add.at(sums, clusters, votes)
            votes = sums[clusters]
        return Prediction(np.array(self.classes)[votes.argmax(axis=1)].astype(str), None, self.classes)

    def _clusters(self, values: sp.csr_matrix) -> np.ndarray:
        """Leiden clusters on the neighbours of principal components, with scanpy's own numbers."""
        import scanpy  # takes seconds

        cells = AnnData(sp.csr_matrix((values.shape[0], 0)))
        components = on_components("passthrough", self.seed)
        cells.obsm["X_pca"] = components.fit_transform(values).astype(np.float32)
        scanpy.pp.neighbors(cells, n_neighbors=15, use_rep="X_pca", random_state=self.seed)
        scanpy.tl.leiden(cells, flavor="igraph", n_iterations=2, directed=False, random_state=self.seed)
        return cells.obs["leiden"].cat.codes.to_numpy()

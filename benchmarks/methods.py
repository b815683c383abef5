"""Methods that the package does not have: scANVI, ACTINN's network, voting with marker genes, rejection."""

from importlib import import_module
from itertools import pairwise

import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp
import torch
from anndata import AnnData
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from sims_kit.calibration import UNKNOWN
from sims_kit.cells.genes import shared_genes
from sims_kit.cells.matrix import Expression
from sims_kit.errors import DataError
from sims_kit.estimator import as_cells
from sims_kit.studies.methods import METHODS as OF_PACKAGE
from sims_kit.studies.methods import Components, LogNormalise


class Classifier(ClassifierMixin, BaseEstimator):
    """A classifier that answers the most probable class."""

    def predict(self, X) -> np.ndarray:
        """The most probable class of each cell."""
        return self.classes_[self.predict_proba(X).argmax(axis=1)]


class ScANVI(Classifier):
    """scANVI of scvi-tools (Xu et al., Molecular Systems Biology 2021) on raw counts, as in its tutorial.

    The batch key is the column `sample` of `obs`, where the training cells have several samples; query cells of new
    samples are mapped first, without labels. `epochs` trains as the thesis does (section 0.3.6: 150): at most so many
    epochs of both networks, with early stopping on validation cells, of scVI by its loss, of scANVI by its accuracy.
    """

    def __init__(self, random_state: int = 0, sample: str = "sample", epochs: int | None = None):
        self.random_state, self.sample, self.epochs = random_state, sample, epochs

    def fit(self, X, y) -> "ScANVI":
        """Train scVI for its own number of epochs, then scANVI for 20; or both for `epochs`."""
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
                sc.pp.highly_variable_genes(training, **settings)
            except ValueError:  # samples of few cells have too few different means for a local fit
                sc.pp.highly_variable_genes(training, span=1.0, **settings)
        self.genes_, training.obs["label"] = list(training.var_names), np.asarray(y).astype(str)
        scvi.model.SCVI.setup_anndata(training, labels_key="label", batch_key="sample")
        network = dict(n_layers=2, dropout_rate=0.2, encode_covariates=True)
        first = scvi.model.SCVI(training, **network, use_layer_norm="both", use_batch_norm="none")
        stop = dict(early_stopping=self.epochs is not None, enable_progress_bar=False)
        first.train(max_epochs=self.epochs, **stop)
        self.model_ = scvi.model.SCANVI.from_scvi_model(first, unlabeled_category=UNKNOWN)
        stop |= dict(early_stopping_monitor="validation_accuracy", early_stopping_mode="max")
        self.model_.train(max_epochs=self.epochs or 20, n_samples_per_label=100, **stop)
        return self

    def predict_proba(self, X) -> np.ndarray:
        """(cells, classes)."""
        model, query = self.model_, self._counts(as_cells(X, self.genes_))
        query.obs["label"] = UNKNOWN
        if not set(query.obs["sample"]) <= {*self.samples_, "all"}:
            model = type(model).load_query_data(query, model)
            model.train(max_epochs=100, plan_kwargs={"weight_decay": 0.0}, enable_progress_bar=False)
        return model.predict(query, soft=True)[self.classes_.astype(str)].to_numpy(np.float32)

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


class Actinn(Classifier):
    """ACTINN's network and training (Ma and Pellegrini, Bioinformatics 2020), on log-normalised values.

    Hidden layers of 100, 50 and 25 ReLU, Glorot's start, Adam at 1e-4 (x 0.95 every 1,000 steps), L2 of 0.005 on the
    weights, batches of 128, 50 epochs. Genes outside of the 1st to 99th percentile of total expression, then of the
    coefficient of variation, are left out; here the reference alone decides that, upstream the query as well.
    """

    def __init__(self, random_state: int = 0):
        self.random_state = random_state

    def fit(self, X: sp.csr_matrix, y) -> "Actinn":
        """Choose the genes and train."""
        X, (self.classes_, codes) = _log2(X), np.unique(y, return_inverse=True)
        kept = np.flatnonzero(X.getnnz(axis=0))  # upstream's second filter is undefined for genes without counts
        kept = kept[_within(X[:, kept].sum(axis=0).A1)]
        moments = StandardScaler(with_mean=False).fit(X[:, kept])
        self.kept_ = kept[_within(np.sqrt(moments.var_) / X[:, kept].mean(axis=0).A1)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.random_state)
            self._train(X[:, self.kept_], torch.from_numpy(codes))
        return self

    def predict_proba(self, X: sp.csr_matrix) -> np.ndarray:
        """(cells, classes)."""
        with torch.no_grad():
            rows = _log2(X)[:, self.kept_]
            batches = (rows[i : i + 1024].toarray() for i in range(0, X.shape[0], 1024))
            parts = [self.network_(torch.from_numpy(batch)).softmax(1) for batch in batches]
        return torch.cat(parts).numpy()

    def _train(self, values: sp.csr_matrix, codes: torch.Tensor) -> None:
        layers = [torch.nn.Linear(*pair) for pair in pairwise([values.shape[1], 100, 50, 25, len(self.classes_)])]
        for layer in layers:
            torch.nn.init.xavier_uniform_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
        self.network_ = torch.nn.Sequential(*[part for layer in layers for part in (layer, torch.nn.ReLU())][:-1])
        weights = {"params": [layer.weight for layer in layers], "weight_decay": 0.005}
        optimizer = torch.optim.Adam([weights, {"params": [layer.bias for layer in layers]}], lr=1e-4)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1000, 0.95)
        for _ in range(50):
            for batch in torch.randperm(len(codes)).split(128):
                logits = self.network_(torch.from_numpy(values[batch.numpy()].toarray()))
                loss = torch.nn.functional.cross_entropy(logits, codes[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()


def _within(values: np.ndarray) -> np.ndarray:
    return (values >= np.percentile(values, 1)) & (values <= np.percentile(values, 99))


def _log2(values: sp.csr_matrix) -> sp.csr_matrix:
    return (values / np.log(2)).astype(np.float32)


class MarkerVoting(ClassifierMixin, BaseEstimator):
    """The 50 genes that a Wilcoxon test ranks highest for each class vote for a cell, or for a Leiden cluster of cells.

    Expression is scaled gene by gene, and a class gets the mean over its markers, each weighted by one over the number
    of classes that it marks. By cluster, this is the pipeline of thesis section 0.1.2 and the idea of Digital Cell
    Sorter (Domanskyi et al., PeerJ 2021), scaled within the query; by cell, scaled as the reference is.
    """

    def __init__(self, by_cluster: bool, random_state: int = 0):
        self.by_cluster, self.random_state = by_cluster, random_state

    def fit(self, X: sp.csr_matrix, y) -> "MarkerVoting":
        """Find the markers."""
        self.classes_, kept = np.unique(y), np.flatnonzero(X.getnnz(axis=0))
        cells = AnnData(X[:, kept], var={"column": kept}, obs={"label": np.asarray(y, dtype=str)})
        cells.obs["label"] = cells.obs["label"].astype("category")
        sc.tl.rank_genes_groups(cells, "label", method="wilcoxon", n_genes=50)
        ranked = sc.get.rank_genes_groups_df(cells, None, log2fc_min=0)
        places = kept[ranked["names"].astype(int)], pd.Index(self.classes_.astype(str)).get_indexer(ranked["group"])
        markers = sp.csr_matrix((np.ones(len(ranked)), places), (X.shape[1], len(self.classes_)))
        shared = sp.diags(1 / np.maximum(markers.sum(axis=1).A1, 1))  # a gene of many classes says little of each
        self.markers_ = (shared @ markers / np.maximum(markers.sum(axis=0).A1, 1)).tocsr()
        self.moments_ = StandardScaler(with_mean=False).fit(X), X.mean(axis=0).A1
        return self

    def predict(self, X: sp.csr_matrix) -> np.ndarray:
        """The class with the most votes."""
        scaler, mean = self.moments_
        if self.by_cluster:
            scaler, mean = StandardScaler(with_mean=False).fit(X), X.mean(axis=0).A1
        votes = np.asarray(scaler.transform(X) @ self.markers_ - (mean / scaler.scale_) @ self.markers_)
        if self.by_cluster:
            cells = AnnData(sp.csr_matrix((X.shape[0], 0)))
            cells.obsm["X_pca"] = Components(self.random_state).fit(X).transform(X).astype(np.float32)
            sc.pp.neighbors(cells, n_neighbors=15, use_rep="X_pca", random_state=self.random_state)
            sc.tl.leiden(cells, flavor="igraph", n_iterations=2, directed=False, random_state=self.random_state)
            votes = pd.DataFrame(votes).groupby(cells.obs["leiden"].to_numpy()).transform("sum").to_numpy()
        return self.classes_[votes.argmax(axis=1)]


class Rejecting(Pipeline):
    """A classifier that answers `Unknown` where its largest probability is below 0.7."""

    def predict(self, X) -> np.ndarray:
        """Labels as text."""
        probabilities = self.predict_proba(X)
        labels = self.classes_[probabilities.argmax(axis=1)].astype(object)
        return np.where(probabilities.max(axis=1) < 0.7, UNKNOWN, labels)


METHODS = {
    **OF_PACKAGE,
    "scANVI": ScANVI,
    "scANVI, thesis": lambda seed: ScANVI(seed, epochs=150),
    # the winner of Abdelaal et al. 2019, and the method of Moana
    "linear SVM, rejection at 0.7": lambda seed: Rejecting(OF_PACKAGE["linear SVM, calibrated"](seed).steps),
    "ACTINN architecture, re-run in torch": lambda seed: make_pipeline(LogNormalise(), Actinn(seed)),
    "marker voting by cell": lambda seed: make_pipeline(LogNormalise(), MarkerVoting(False, seed)),
    "marker voting by cluster": lambda seed: make_pipeline(LogNormalise(), MarkerVoting(True, seed)),
}

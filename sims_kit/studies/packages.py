"""Peers that are packages of their own: CellTypist, scANVI and scsims, each prepared as its authors recommend.

They are imported, or started, only when asked for: `pip install 'sims_kit[peers]'` brings the first two.
"""

import json
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from sklearn.linear_model import LogisticRegression

from sims_kit.errors import PeerError
from sims_kit.studies import scsims_run
from sims_kit.studies.adaptor import (
    UNKNOWN,
    Prediction,
    counts,
    labels_of,
    log_normalised,
    needs,
    samples_of,
    vocabulary,
)

SCSIMS_PYTHON = "SIMS_KIT_SCSIMS_PYTHON"  # environment variable: the Python of an environment that holds scsims


class CellTypist:
    """CellTypist (Domínguez Conde et al., Science 2022): the package's own training and annotation.

    As its documentation recommends: log1p of 10,000 counts a cell, genes chosen in a first pass of stochastic gradient
    descent (300 a class), then logistic regression, one class against the rest; without majority voting. Its
    probabilities are one sigmoid per class and do not sum to one.
    """

    name = "CellTypist"
    packages = ("celltypist", "scikit-learn")
    settings = "feature_selection=True, top_genes=300, max_iter by size, best match, no majority voting"

    def fit(self, reference: AnnData, label: str, *, sample: str | None = None, seed: int = 0) -> None:
        """Train on a reference; samples are not corrected for. See `Peer.fit`."""
        celltypist = _celltypist()
        self.genes = vocabulary(reference)
        cells = AnnData(log_normalised(reference, self.genes))
        cells.var_names = self.genes
        with _one_against_rest():
            self.model = celltypist.train(
                cells,
                labels_of(reference, label),
                check_expression=False,  # would refuse values that were log-normalised before genes were selected
                feature_selection=len(self.genes) > 300,  # CellTypist has none for so few
                n_jobs=1,
                random_state=seed,
            )

    def predict(self, query: AnnData) -> Prediction:
        """Label cells. See `Peer.predict`."""
        cells = AnnData(log_normalised(query, self.genes))
        cells.var_names = self.genes
        result = _celltypist().annotate(cells, model=self.model, majority_voting=False)
        probabilities = result.probability_matrix
        labels = result.predicted_labels["predicted_labels"].to_numpy().astype(str)
        return Prediction(labels, probabilities.to_numpy(np.float32), list(map(str, probabilities.columns)))


def _celltypist():
    folder = os.path.join(tempfile.gettempdir(), "celltypist")
    os.environ.setdefault("CELLTYPIST_FOLDER", folder)  # else importing it makes a folder in the user's home
    return needs("celltypist", CellTypist.name)


class _OneAgainstRest(LogisticRegression):
    """What ``LogisticRegression(multi_class="ovr")`` was until scikit-learn 1.8: one binary model for each class."""

    def __init__(self, C=1.0, solver="lbfgs", max_iter=100, multi_class="ovr", n_jobs=None, random_state=None):
        super().__init__(C=C, solver=solver, max_iter=max_iter, n_jobs=n_jobs, random_state=random_state)
        self.multi_class = multi_class

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        positive = self.classes_ if len(self.classes_) > 2 else self.classes_[1:]
        settings = {name: getattr(self, name) for name in ("C", "solver", "max_iter", "random_state")}
        models = [LogisticRegression(**settings).fit(X, y == label) for label in positive]
        self.coef_ = np.vstack([model.coef_ for model in models])
        self.intercept_ = np.concatenate([model.intercept_ for model in models])
        self.n_features_in_ = X.shape[1]
        return self


@contextmanager
def _one_against_rest():
    """CellTypist 1.7 asks scikit-learn for ``multi_class="ovr"``; where that is gone, `_OneAgainstRest` stands in."""
    if "multi_class" in LogisticRegression().get_params():
        yield
        return
    with mock.patch.object(sys.modules["celltypist.train"], "LogisticRegression", _OneAgainstRest):
        yield


class ScANVI:
    """scANVI of scvi-tools (Xu et al., Molecular Systems Biology 2021) on raw counts.

    Settings of the package's tutorial on reference mapping: 2,000 variable genes, two layers, layer norm in place of
    batch norm, encoded covariates, dropout 0.2; scVI for the package's number of epochs (400, fewer above 20,000
    cells), then scANVI for 20 epochs with 100 cells a label. The sample is the batch key. A query of samples that the
    reference lacks is mapped first (100 epochs, weight decay 0, no labels used); its seconds count as prediction. Where
    the variance of a sample's genes cannot be fitted locally (few cells), it is fitted over all means (``span=1``).
    """

    name = "scANVI"
    packages = ("scvi-tools", "torch")
    settings = "2000 genes (seurat_v3), 2 layers, layer norm, dropout 0.2; epochs: scVI heuristic, 20, mapping 100"

    def fit(self, reference: AnnData, label: str, *, sample: str | None = None, seed: int = 0) -> None:
        """Train scVI, then scANVI. See `Peer.fit`."""
        genes = vocabulary(reference)
        matrix = counts(reference, genes, self.name)  # before the package: the reason that cannot be mended comes first
        scvi = needs("scvi", self.name, "scvi-tools")
        scvi.settings.seed = seed
        self.samples = samples_of(reference, sample)
        self.sample, self.genes = sample, self._variable(matrix, genes)
        cells = AnnData(counts(reference, self.genes, self.name))
        cells.var_names = self.genes
        cells.obs["label"], cells.obs["sample"] = labels_of(reference, label), self.samples.to_numpy()
        scvi.model.SCVI.setup_anndata(cells, labels_key="label", batch_key="sample")
        network = dict(n_layers=2, dropout_rate=0.2, encode_covariates=True)
        norms = dict(use_layer_norm="both", use_batch_norm="none")
        first = scvi.model.SCVI(cells, **network, **norms)
        first.train(enable_progress_bar=False)
        self.model = scvi.model.SCANVI.from_scvi_model(first, unlabeled_category=UNKNOWN)
        self.model.train(max_epochs=20, n_samples_per_label=100, enable_progress_bar=False)

    def predict(self, query: AnnData) -> Prediction:
        """Label cells, after mapping them if their samples are new. See `Peer.predict`."""
        scvi = needs("scvi", self.name, "scvi-tools")
        cells = AnnData(counts(query, self.genes, self.name), obs={"label": [UNKNOWN] * query.n_obs})
        cells.var_names = self.genes
        cells.obs["sample"] = samples_of(query, self.sample).to_numpy()
        model = self.model
        if not set(cells.obs["sample"]) <= set(self.samples):
            model = scvi.model.SCANVI.load_query_data(cells, model)
            model.train(max_epochs=100, plan_kwargs={"weight_decay": 0.0}, enable_progress_bar=False)
        probabilities = model.predict(cells, soft=True)
        classes = list(map(str, probabilities.columns))
        probabilities = probabilities.to_numpy(np.float32)
        return Prediction(np.array(classes)[probabilities.argmax(axis=1)], probabilities, classes)

    def _variable(self, matrix: sp.csr_matrix, genes: list[str]) -> list[str]:
        import scanpy  # takes seconds

        expressed = np.flatnonzero(matrix.getnnz(axis=0))
        cells = AnnData(matrix[:, expressed], obs={"sample": self.samples.to_numpy()})
        if len(expressed) > 2000:
            key = "sample" if self.samples.nunique() > 1 else None
            settings = dict(n_top_genes=2000, flavor="seurat_v3", batch_key=key, inplace=False)
            try:
                chosen = scanpy.pp.highly_variable_genes(cells, **settings)
            except ValueError:  # samples with few cells have few different means, too few for a local fit
                chosen = scanpy.pp.highly_variable_genes(cells, span=1.0, **settings)
            expressed = expressed[chosen["highly_variable"].to_numpy()]
        return [genes[i] for i in expressed]


class Scsims:
    """scsims, the group's own package and this kit's ancestor (Gonzalez-Ferrer et al., Cell Genomics 2024).

    scsims 3.0.6 pins torch 1.13.1 and numpy 1.24.3, so it runs in an environment of its own, whose Python the
    environment variable `SIMS_KIT_SCSIMS_PYTHON` names. Settings of its tutorial: n_a = n_d = 64, weighted classes, at
    most 50 epochs, the weights of the best validation loss; values scaled gene by gene, with the mean and variance of
    the reference for the query too (the tutorial scales all cells together). It reports the three most probable
    classes with a softmax over these three. Its seconds include two starts of Python and torch.
    """

    name = "scsims 3.0.6"
    packages = ()

    @property
    def settings(self) -> str:
        """The tutorial's settings, and the version that the environment holds."""
        return f"n_a=n_d=64, weighted classes, 50 epochs, best val_loss, scaled; scsims {_scsims_version()}"

    def fit(self, reference: AnnData, label: str, *, sample: str | None = None, seed: int = 0) -> None:
        """Train in the other environment; samples are not corrected for. See `Peer.fit`."""
        self.genes, labels = vocabulary(reference), labels_of(reference, label)
        self.folder = tempfile.TemporaryDirectory(prefix="sims_kit_scsims_")
        sp.save_npz(Path(self.folder.name, "reference.npz"), log_normalised(reference, self.genes))
        self.classes = np.unique(labels).tolist()
        if len(self.classes) < 3:
            raise PeerError(f"{self.name} predicts the three best classes and the reference has {len(self.classes)}.")
        self._run("fit", genes=self.genes, labels=labels.tolist(), seed=seed)

    def predict(self, query: AnnData) -> Prediction:
        """Label cells in the other environment. See `Peer.predict`."""
        sp.save_npz(Path(self.folder.name, "query.npz"), log_normalised(query, self.genes))
        best = self._run("predict", genes=self.genes)
        probabilities = np.zeros((query.n_obs, len(self.classes)), np.float32)
        columns = np.searchsorted(self.classes, best["labels"])  # (cells, 3), the most probable first
        np.put_along_axis(probabilities, columns, np.array(best["probabilities"], np.float32), axis=1)
        return Prediction(np.array(best["labels"])[:, 0], probabilities, self.classes)

    def _run(self, step: str, **job):
        folder = Path(self.folder.name)
        (folder / "job.json").write_text(json.dumps({"step": step, **job}))
        command = [_scsims_python(), scsims_run.__file__, str(folder)]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        own = dict(cwd=folder, env=environment, stdin=subprocess.DEVNULL)
        done = subprocess.run(command, **own, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip() or "no message").splitlines()[-1]
            raise RuntimeError(f"{self.name} stopped with exit status {done.returncode}: {last}")
        return json.loads((folder / "result.json").read_text())


def _scsims_python() -> str:
    python = os.environ.get(SCSIMS_PYTHON, "")
    if not python or not Path(python).exists():
        raise PeerError(
            f"{Scsims.name} cannot be installed beside this kit. Make an environment of Python 3.10 for it, install "
            f"scsims==3.0.6 there, and name its Python in {SCSIMS_PYTHON} (now {python!r})."
        )
    return python


def _scsims_version() -> str:
    code = "from importlib.metadata import version; print(version('scsims'))"
    try:
        command = [_scsims_python(), "-c", code]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (PeerError, subprocess.CalledProcessError):
        return "not installed"

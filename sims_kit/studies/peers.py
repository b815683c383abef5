"""The peers by name: what SIMS is compared with, and SIMS itself, behind one protocol.

`sims_kit.studies.adaptor.Peer` says what a peer is; `PEERS` makes a fresh one for each name.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import csr_matrix

from sims_kit.annotation import annotate
from sims_kit.errors import UnknownNameError
from sims_kit.model.recipe import RECIPES, Recipe, get_recipe
from sims_kit.studies import classical
from sims_kit.studies.adaptor import Peer, Prediction, labels_of
from sims_kit.studies.packages import CellTypist, ScANVI, Scsims
from sims_kit.training import fit


class Sims:
    """SIMS as this kit has it: `sims_kit.fit` and `sims_kit.annotate`.

    Parameters
    ----------
    name
        Says what is run.
    recipe
        As in `sims_kit.fit`.
    """

    packages = ("torch",)

    def __init__(self, name: str, recipe: str | Recipe = "default"):
        self.name, self.recipe = name, get_recipe(recipe)

    @property
    def settings(self) -> str:
        """The recipe, and a hash of how it behaves, which trains it for a few seconds when it is first asked for."""
        return f"{self.recipe!r}, behaviour {_behaviour(self.recipe)}"

    def fit(self, reference: AnnData, label: str, *, sample: str | None = None, seed: int = 0) -> None:
        """Train on a reference, a tenth of it for validation; samples are not corrected for. See `Peer.fit`."""
        labels_of(reference, label)
        self.model = fit(reference, label, recipe=self.recipe, seed=seed, test=0, verbose=False)

    def predict(self, query: AnnData) -> Prediction:
        """Label cells. See `Peer.predict`."""
        cells = annotate(query, self.model, copy=True)
        labels = cells.obs["sims_label"].to_numpy().astype(str)
        return Prediction(labels, cells.obsm["sims_probabilities"], list(self.model.classes))


_behaviours: dict[str, str] = {}


def _behaviour(recipe: Recipe) -> str:
    """A hash of what the recipe answers on a few made-up cells, for stored rows to tell whether they still hold.

    Another version of the code that answers the same keeps them. Probabilities count to one decimal place: processors
    differ in the last digits.
    """
    if repr(recipe) not in _behaviours:
        random = np.random.default_rng(0)
        labels = random.integers(5, size=300)
        rates = random.gamma(1.0, 1.0, size=(5, 400))
        counts = random.poisson(0.1 * (rates[labels] + random.gamma(1.0, 1.0, size=400)))
        genes = pd.DataFrame(index=[f"GENE{i}" for i in range(counts.shape[1])])
        cells = AnnData(csr_matrix(counts, dtype=np.float32), {"cell_type": labels.astype(str)}, genes)
        sims = Sims("behaviour", replace(recipe, max_epochs=5))
        sims.fit(cells[:200].copy(), "cell_type")
        found = sims.predict(cells[200:].copy())
        text = f"{found.labels.tolist()} {found.probabilities.round(1).tolist()}"
        _behaviours[repr(recipe)] = hashlib.sha256(text.encode()).hexdigest()[:12]
    return _behaviours[repr(recipe)]


_CLASSICAL = {
    "logistic regression": classical.logistic_regression,
    "linear SVM": classical.linear_svm,
    "linear SVM, calibrated": classical.calibrated_svm,
    "linear SVM, rejection at 0.7": classical.calibrated_svm,
    "RBF SVM on PCs (scPred's method)": classical.rbf_svm,
    "kNN on PCs": classical.nearest_neighbours,
    "random forest": classical.random_forest,
    "LightGBM": classical.lightgbm,
}
_OPTIONS = {
    "linear SVM, rejection at 0.7": {"reject_below": 0.7},  # the winner of Abdelaal et al. 2019; Moana's method
    "RBF SVM on PCs (scPred's method)": {"packages": ("scikit-learn", "scanpy")},
    "kNN on PCs": {"packages": ("scikit-learn", "scanpy")},
    "LightGBM": {"packages": ("lightgbm",)},
}

_ONE_NETWORK = replace(RECIPES["default"], n_models=1)

PEERS: Mapping[str, Callable[[], Peer]] = MappingProxyType(
    {name: partial(classical.Estimator, name, make, **_OPTIONS.get(name, {})) for name, make in _CLASSICAL.items()}
    | {
        classical.Actinn.name: classical.Actinn,
        "marker voting by cell": partial(classical.MarkerVoting, "marker voting by cell", by_cluster=False),
        "marker voting by cluster": partial(classical.MarkerVoting, "marker voting by cluster", by_cluster=True),
        CellTypist.name: CellTypist,
        ScANVI.name: ScANVI,
        Scsims.name: Scsims,
        "SIMS, thesis": partial(Sims, "SIMS, thesis", "thesis"),
        "SIMS, default": partial(Sims, "SIMS, default"),
        "SIMS, one network": partial(Sims, "SIMS, one network", _ONE_NETWORK),
    }
)


def make_peer(name: str) -> Peer:
    """A fresh peer of that name.

    Raises
    ------
    UnknownNameError
        If there is none; the nearest names are offered.
    """
    if name not in PEERS:
        raise UnknownNameError("peer", name, PEERS)
    return PEERS[name]()


def versions_of(peer: Peer) -> str:
    """The versions of a peer's packages, as text: ``"celltypist 1.7.1, scikit-learn 1.9.1"``."""
    return ", ".join(f"{package} {_version(package)}" for package in peer.packages)


def _version(package: str) -> str:
    try:
        return version(package).split("+")[0]  # without the build: +cpu and +cu give the same numbers
    except PackageNotFoundError:
        return "not installed"

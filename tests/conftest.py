"""Fixtures that every test may use: made-up cells, the folder of real data, and no network."""

import os
from importlib import import_module
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

# Read when torch is first imported, here and by the kernels that tests start: at these sizes threads bring nothing, and
# they cost much where other work runs beside the tests.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="session", autouse=True)
def no_network(tmp_path_factory):
    """Forbid downloads, which a test lifts with `monkeypatch.delenv`, and converted files in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("SIMS_KIT_OFFLINE", "1")
        yield


@pytest.fixture
def real_data(request) -> Path:
    """The cache folder with real data (SIMS_KIT_DATA), or a skip that names what the test needs."""
    marker = request.node.get_closest_marker("dataset")
    needed = ", ".join(marker.args) if marker else "the small datasets of data_registry.yaml"
    folder = os.environ.get("SIMS_KIT_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip(f"needs real data: {needed}. Set SIMS_KIT_DATA to the cache folder that holds it.")
    return Path(folder)


@pytest.fixture
def clean_environment() -> dict[str, str]:
    """The environment for a child that must not see the make or pytest that runs this test."""
    hidden = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "PYTEST_ADDOPTS", "SIMS_KIT_FAST")
    return {key: value for key, value in os.environ.items() if key not in hidden}


@pytest.fixture(scope="session")
def make_notebook():
    """A factory of notebooks of a colab, a parameters and then the given code cells; returns the path."""

    def write(path: Path, *sources: str) -> Path:
        v4 = nbformat.v4
        parameters = 'REFERENCE, LABEL, QUERY, OUT = "pbmc68k", "", "", "."'
        tagged = {"colab": "if False:\n    !pip install nothing", "parameters": parameters}
        cells = [v4.new_code_cell(source, metadata={"tags": [tag]}) for tag, source in tagged.items()]
        cells += map(v4.new_code_cell, sources)
        kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
        nbformat.write(v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
        return path

    return write


@pytest.fixture(scope="session")
def make_cells():
    """A factory of small AnnData objects whose classes differ in known marker genes."""
    return _make_cells


@pytest.fixture(scope="session")
def cells():
    """Easy cells with known marker genes, 300 of ``make_cells(n_cells=700)``, which no test changes."""
    return _make_cells(n_cells=700)[:300].copy()


@pytest.fixture(scope="session")
def model(cells):
    """A model fitted on them, which no test changes."""
    return import_module("sims_kit").fit(cells, "cell_type", max_epochs=15, verbose=False, logger=False)


def _make_cells(n_cells=120, n_genes=60, n_classes=3, seed=0, state="counts") -> AnnData:
    """Gamma-Poisson counts in CSR float32; each class has `n_genes // (2 * n_classes)` markers, eight times as high.

    `state` is ``"counts"``; ``"normalised"`` (each cell sums to 1e4); ``"log-normalised"`` (log1p of that); or
    ``"scaled"`` (dense, each gene with mean 0 and variance 1). ``obs["cell_type"]`` is ``class_0``, ``class_1``, ...;
    ``var["marker_of"]`` names a gene's class or ``""``.
    """
    random = np.random.default_rng(seed)
    labels = np.arange(n_cells) % n_classes
    random.shuffle(labels)
    owner = np.full(n_genes, -1)
    for of_class, genes in enumerate(np.array_split(random.permutation(n_genes)[: n_genes // 2], n_classes)):
        owner[genes] = of_class
    mean = random.gamma(1.0, 1.0, n_genes) + 0.3
    rate = mean * np.where(owner[None, :] == labels[:, None], 8.0, 1.0)
    library = random.lognormal(0.0, 0.3, n_cells)[:, None]
    X = random.poisson(rate * library * random.gamma(5.0, 0.2, rate.shape)).astype(np.float32)
    if state != "counts":
        X = X / np.maximum(X.sum(1, keepdims=True), 1) * 1e4
    if state in ("log-normalised", "scaled"):
        X = np.log1p(X)
    if state == "scaled":
        X = (X - X.mean(0)) / np.maximum(X.std(0), 1e-6)
    X = X.astype(np.float32) if state == "scaled" else sp.csr_matrix(X, dtype=np.float32)
    obs = pd.DataFrame({"cell_type": [f"class_{label}" for label in labels]})
    var = pd.DataFrame({"marker_of": [f"class_{o}" if o >= 0 else "" for o in owner]})
    obs.index, var.index = [f"cell_{i:04d}" for i in range(n_cells)], [f"GENE{i:05d}" for i in range(n_genes)]
    return AnnData(X, obs, var)

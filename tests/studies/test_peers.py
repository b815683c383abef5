"""Peers: one protocol, sensible answers, no look at the query's labels, and reasons instead of scores of 0."""

import os
import sys
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import scanpy as sc
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier

import sims_kit as sk
from sims_kit.errors import LabelError, PeerError, UnknownNameError
from sims_kit.model import SIMSClassifier
from sims_kit.model.recipe import get_recipe
from sims_kit.studies import PEERS, classical, make_peer, packages, peers
from sims_kit.studies.adaptor import UNKNOWN, log_normalised

NEEDS = {"LightGBM": "lightgbm", "CellTypist": "celltypist", "scANVI": "scvi"}
SIMS = [name for name in PEERS if name.startswith("SIMS")]
QUICK = [name for name in PEERS if name not in (*NEEDS, *SIMS, "scsims 3.0.6")]


@pytest.fixture(scope="module")
def halves(make_cells):
    """A reference, a query without labels, and the labels of the query."""
    cells = make_cells(n_cells=240, n_genes=400, n_classes=4)
    query = cells[160:].copy()
    truth = query.obs.pop("cell_type").to_numpy()
    return cells[:160].copy(), query, truth


def fitted(name, reference, **settings):
    """A peer that has learned from a reference, or a skip that names the missing package."""
    if name in NEEDS and find_spec(NEEDS[name]) is None:
        pytest.skip(f"{name} needs the package {NEEDS[name]}: pip install 'sims_kit[peers]'")
    if name.startswith("scsims") and not os.environ.get(packages.SCSIMS_PYTHON):
        pytest.skip(f"{name} needs an environment of its own, named by {packages.SCSIMS_PYTHON}")
    peer = make_peer(name)
    peer.fit(reference, "cell_type", **settings)
    return peer


@pytest.mark.parametrize("name", [*QUICK, "LightGBM", "CellTypist", pytest.param("scANVI", marks=pytest.mark.slow)])
def test_peer_keeps_the_protocol_and_learns(halves, name):
    """Every peer gives a label, and probabilities or None, for every cell; most labels of easy classes are right."""
    reference, query, truth = halves
    before = reference.X.copy(), query.X.copy()
    peer = fitted(name, reference)
    assert peer.name == name and peer.packages and peer.settings
    labels, probabilities, classes = peer.predict(query)
    assert labels.shape == (80,) and labels.dtype.kind == "U" and set(labels) <= {*classes, UNKNOWN}
    assert classes == sorted(set(reference.obs["cell_type"]))
    if probabilities is not None:
        assert probabilities.shape == (80, 4) and probabilities.dtype == np.float32
        assert (probabilities >= 0).all() and (probabilities <= 1 + 1e-6).all()
        answered = labels != UNKNOWN
        assert (labels == np.array(classes)[probabilities.argmax(axis=1)])[answered].all()
        if name != "CellTypist":  # one sigmoid per class
            np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-3)
    answered = labels != UNKNOWN
    assert answered.mean() > 0.5 and (labels == truth)[answered].mean() > 0.8
    assert (before[0] != reference.X).nnz == 0 and (before[1] != query.X).nnz == 0  # nothing changes under the caller


@pytest.mark.slow
def test_scsims_in_its_own_environment(halves):
    """The ancestor, where its environment is named, keeps the protocol; 160 cells are too few for it to learn."""
    peer = fitted("scsims 3.0.6", halves[0])
    labels, probabilities, classes = peer.predict(halves[1])
    assert set(labels) <= set(classes) and (np.count_nonzero(probabilities, axis=1) <= 3).all()
    assert (labels == np.array(classes)[probabilities.argmax(axis=1)]).all()


@pytest.mark.parametrize("name", QUICK)
def test_peer_does_not_look_at_labels_of_the_query(halves, name):
    """Wrong labels in the query change nothing."""
    reference, query, truth = halves
    marked = query.copy()
    marked.obs["cell_type"] = np.roll(np.sort(truth), 7)
    peer = fitted(name, reference)
    np.testing.assert_array_equal(peer.predict(query).labels, peer.predict(marked).labels)


@pytest.mark.parametrize("name", QUICK)
def test_same_seed_same_labels(halves, name):
    """A seed decides everything, and the caller's random states are left alone."""
    states = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    first, again = (fitted(name, halves[0], seed=3).predict(halves[1]) for _ in range(2))
    np.testing.assert_array_equal(first.labels, again.labels)
    assert torch.equal(states[1], torch.get_rng_state())


@pytest.mark.parametrize("name", [*QUICK, "scANVI"])
def test_genes_may_differ_and_repeat(halves, name):
    """A query with other genes, in another order, is labelled; so is a log-normalised one, or it is refused."""
    if name == "scANVI":
        with pytest.raises(PeerError, match=r"scANVI models counts and these values are log-normalised"):
            logged = halves[0].copy()
            sc.pp.normalize_total(logged, target_sum=1e4)
            sc.pp.log1p(logged)
            make_peer(name).fit(logged, "cell_type")  # said before the package is asked for
        return
    reference, query, truth = halves
    peer = fitted(name, reference)
    shuffled = query[:, np.random.default_rng(0).permutation(query.n_vars)[:380]].copy()
    labels = peer.predict(shuffled).labels
    assert (labels == truth)[labels != UNKNOWN].mean() > 0.75


def test_values_are_those_that_sims_sees(halves):
    """Counts become log1p of 10,000 a cell, as scanpy makes them, and stay sparse."""
    reference = halves[0]
    expected = reference.copy()
    sc.pp.normalize_total(expected, target_sum=1e4)
    sc.pp.log1p(expected)
    values = log_normalised(reference, list(reference.var_names))
    assert values.format == "csr"
    np.testing.assert_allclose(values.toarray(), expected.X.toarray(), rtol=1e-5)


def test_logistic_regression_is_scikit_learns(halves):
    """The adaptor adds nothing to the estimator."""
    reference, query, _ = halves
    genes = list(reference.var_names)
    oracle = LogisticRegression(C=1, max_iter=1000, random_state=0)
    oracle.fit(log_normalised(reference, genes), reference.obs["cell_type"])
    found = fitted("logistic regression", reference).predict(query).probabilities
    np.testing.assert_allclose(found, oracle.predict_proba(log_normalised(query, genes)), atol=1e-6)


def test_rejection_is_below_its_threshold(halves):
    """Cells whose largest probability is under 0.7, and only these, become Unknown."""
    reference, query, _ = halves
    rejecting = fitted("linear SVM, rejection at 0.7", reference).predict(query)
    calibrated = fitted("linear SVM, calibrated", reference).predict(query)
    np.testing.assert_array_equal(rejecting.labels == UNKNOWN, calibrated.probabilities.max(axis=1) < 0.7)


def test_actinn_has_its_shape_and_filters(halves):
    """Hidden layers of 100, 50 and 25; genes outside of the 1st to 99th percentile of sum, then variation, are out."""
    peer = fitted("ACTINN architecture, re-run in torch", halves[0])
    widths = [layer.out_features for layer in peer.network if isinstance(layer, torch.nn.Linear)]
    assert widths == [100, 50, 25, 4]
    dense = np.log2(1 + np.expm1(log_normalised(halves[0], peer.genes).toarray().astype(float)))
    total = dense.sum(axis=0)
    inside = (total >= np.percentile(total, 1)) & (total <= np.percentile(total, 99))
    variation = dense[:, inside].std(axis=0) / dense[:, inside].mean(axis=0)
    low, high = np.percentile(variation, [1, 99])
    expected = np.flatnonzero(inside)[(variation >= low) & (variation <= high)]
    np.testing.assert_array_equal(peer.kept, expected)


def test_markers_are_the_true_ones(halves):
    """Voting finds the genes that the made-up classes differ in."""
    peer = fitted("marker voting by cell", halves[0])
    for column, of_class in enumerate(peer.classes):
        chosen = peer.markers[:, [column]].toarray().ravel().argsort()[::-1][:20]
        assert (halves[0].var["marker_of"].iloc[chosen] == of_class).mean() > 0.9


@pytest.mark.parametrize("n_classes", [2, 4])
def test_one_against_rest_is_scikit_learns(halves, n_classes):
    """What stands in for multi_class="ovr" gives the scores of scikit-learn's own one-against-rest."""
    reference = halves[0]
    labels = reference.obs["cell_type"].to_numpy()
    labels = np.where(np.isin(labels, ["class_0", "class_1"]), labels, "class_1") if n_classes == 2 else labels
    X = log_normalised(reference, list(reference.var_names))
    found = packages._OneAgainstRest(max_iter=1000).fit(X, labels).decision_function(X)
    oracle = OneVsRestClassifier(LogisticRegression(max_iter=1000)).fit(X, labels).decision_function(X)
    np.testing.assert_allclose(found, oracle.ravel() if n_classes == 2 else oracle, rtol=1e-3, atol=1e-3)


def test_missing_package_is_named_with_the_command(halves, monkeypatch):
    """A peer whose package is not installed says how to install it."""
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(PeerError, match=r"LightGBM needs the package lightgbm.*pip install 'sims_kit\[peers\]'"):
        make_peer("LightGBM").fit(halves[0], "cell_type")
    monkeypatch.setitem(sys.modules, "scvi", None)
    with pytest.raises(PeerError, match="scANVI needs the package scvi-tools"):
        make_peer("scANVI").fit(halves[0], "cell_type")


def test_scsims_without_its_environment_says_how(halves, monkeypatch):
    """The ancestor, which cannot live beside the kit, names the variable and the version."""
    monkeypatch.setenv(packages.SCSIMS_PYTHON, "/nowhere/python")
    peer = make_peer("scsims 3.0.6")
    assert "not installed" in peer.settings
    with pytest.raises(PeerError, match=r"scsims==3.0.6 there, and name its Python in SIMS_KIT_SCSIMS_PYTHON"):
        peer.fit(halves[0], "cell_type")


def test_wrong_names_and_labels_are_told(halves):
    """A peer, a column or labels that are not there are named with a way out."""
    with pytest.raises(UnknownNameError, match="LightGBM"):
        make_peer("LigthGBM")
    with pytest.raises(UnknownNameError, match="cell_type"):
        make_peer("linear SVM").fit(halves[0], "celltype")
    one = halves[0].copy()
    one.obs["cell_type"] = "a"
    with pytest.raises(LabelError, match="two classes"):
        make_peer("linear SVM").fit(one, "cell_type")


def test_sims_is_fit_and_annotate(halves, tmp_path, monkeypatch):
    """SIMS as a peer is the public face; no file is left."""
    monkeypatch.chdir(tmp_path)
    recipe = sk.Recipe(network=dict(n_steps=1), max_epochs=2)
    reference, query, _ = halves
    model = sk.fit(reference, "cell_type", recipe=recipe, seed=2, test=0, verbose=False, logger=False)
    expected = sk.annotate(query, model, copy=True)
    peer = peers.Sims("a", recipe)
    peer.fit(reference, "cell_type", seed=2)
    found = peer.predict(query)
    np.testing.assert_allclose(found.probabilities, expected.obsm["sims_probabilities"], atol=1e-6)
    assert (found.labels == expected.obs["sims_label"].to_numpy().astype(str)).all()
    assert found.classes == model.classes
    assert not list(tmp_path.iterdir())
    assert peers.Sims("a", recipe).settings != peers.Sims("a", "thesis").settings


def test_changed_behaviour_makes_rows_stale(monkeypatch):
    """The same answers keep stored results, whatever the code; other answers, or another recipe, do not."""
    quick = replace(get_recipe("default"), network={**get_recipe("default").network, "n_models": 1})
    found = []
    for changed in (False, False, True):
        monkeypatch.setattr(peers, "_behaviours", {})
        if changed:  # what a change in the code may do
            monkeypatch.setattr(SIMSClassifier, "calibrated", lambda self, logits: 0 * logits)
        found.append(peers.Sims("a", quick).settings)
    assert found[0] == found[1] != found[2]


def test_fewer_genes_than_asked_for(make_cells):
    """Principal components and variable genes make do with less data than their usual numbers."""
    cells = make_cells(n_cells=30, n_genes=20, n_classes=2)
    for make in (classical.rbf_svm, classical.nearest_neighbours):
        peer = classical.Estimator("small", make)
        peer.fit(cells, "cell_type")
        assert peer.predict(cells).labels.shape == (30,)

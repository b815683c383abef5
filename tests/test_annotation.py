"""Annotation: what is added, and that nothing else changes."""

import warnings

import anndata as ad
import numpy as np
import pytest
import torch

import sims_kit as sk
from sims_kit.errors import GeneError


@pytest.fixture(scope="module")
def model(make_cells, tmp_path_factory):
    """A model fitted on easy cells."""
    quiet = dict(enable_progress_bar=False, logger=False, verbose=False)
    folder = tmp_path_factory.mktemp("fit")
    return sk.fit(make_cells(n_cells=300), "cell_type", max_epochs=15, default_root_dir=folder, **quiet)


def test_columns(model, make_cells):
    """Labels, confidence, second label and probabilities are added under documented names."""
    query = make_cells(n_cells=300)[:90].copy()
    assert sk.annotate(query, model) is None
    probabilities = query.obsm["sims_probabilities"]
    assert probabilities.shape == (90, 3) and probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    classes = np.array(query.uns["sims_kit"]["sims"]["classes"])
    assert (query.obs["sims_label"] == classes[probabilities.argmax(axis=1)]).all()
    np.testing.assert_array_equal(query.obs["sims_confidence"], probabilities.max(axis=1))
    second = np.argsort(-probabilities, axis=1)[:, 1]
    assert (query.obs["sims_second_label"] == classes[second]).all()
    assert (query.obs["sims_label"] == query.obs["cell_type"]).mean() > 0.9


def test_probabilities_are_the_networks(model, make_cells):
    """They are the full softmax of the logits, at the model's temperature, on depth-normalised, logged counts."""
    query = make_cells(n_cells=5)
    counts = query.X.toarray()
    normalised = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)
    with torch.no_grad():
        expected = (model(torch.from_numpy(normalised)) / model.temperature).softmax(dim=1).numpy()
    sk.annotate(query, model)
    np.testing.assert_allclose(query.obsm["sims_probabilities"], expected, atol=1e-5)


def test_nothing_else_changes(model, make_cells):
    """Matrix, names, layers and other annotations stay as they were."""
    query, untouched = make_cells(), make_cells()
    query.uns["sims_kit"] = {"dataset": "mine"}
    sk.annotate(query, model, key_added="cortex")
    assert list(query.obs_names) == list(untouched.obs_names)
    assert (query.X != untouched.X).nnz == 0 and query.X.dtype == untouched.X.dtype
    assert set(query.obs) - set(untouched.obs) == {"cortex_label", "cortex_confidence", "cortex_second_label"}
    assert set(query.obsm) == {"cortex_probabilities"}
    assert set(query.uns) == {"sims_kit"} and query.uns["sims_kit"]["dataset"] == "mine"


def test_copy(model, make_cells):
    """`copy=True` returns an annotated copy and leaves the query alone."""
    query = make_cells()
    annotated = sk.annotate(query, model, copy=True)
    assert "sims_label" in annotated.obs and "sims_label" not in query.obs and not query.uns


def test_paths_in_and_h5ad_out(model, make_cells, tmp_path):
    """A query and a model given as paths work, the file is not touched, and the result can be written."""
    make_cells().write_h5ad(tmp_path / "query.h5ad")
    before = (tmp_path / "query.h5ad").read_bytes()
    sk.save_model(model, tmp_path / "model.safetensors")
    annotated = sk.annotate(tmp_path / "query.h5ad", tmp_path / "model.safetensors")
    assert (tmp_path / "query.h5ad").read_bytes() == before
    annotated.write_h5ad(tmp_path / "annotated.h5ad")
    again = ad.read_h5ad(tmp_path / "annotated.h5ad")
    assert list(again.obs["sims_label"]) == list(annotated.obs["sims_label"])
    assert list(again.uns["sims_kit"]["sims"]["classes"]) == model.classes


def test_genes_in_any_order(model, make_cells):
    """Shuffled and extra genes change no probability; missing ones are reported."""
    query = make_cells()
    sk.annotate(query, model)
    shuffled = query[:, ::-1].copy()
    extra = ad.AnnData(np.ones((query.n_obs, 3), np.float32), obs=query.obs[[]])
    extra.var_names = ["EXTRA1", "EXTRA2", "EXTRA3"]
    wider = ad.concat([shuffled, extra], axis=1)
    sk.annotate(wider, model)
    np.testing.assert_allclose(wider.obsm["sims_probabilities"], query.obsm["sims_probabilities"], atol=1e-6)
    with pytest.warns(UserWarning, match=r"42 of the model's 60 genes"):
        sk.annotate(query[:, :42].copy(), model)
    with pytest.raises(GeneError):
        sk.annotate(query[:, :6].copy(), model)


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_batches_do_not_matter(model, make_cells, batch_size):
    """Batch size, and a last batch of one cell, change no probability."""
    query, expected = make_cells(n_cells=29), make_cells(n_cells=29)
    sk.annotate(query, model, batch_size=batch_size)
    sk.annotate(expected, model)
    np.testing.assert_allclose(query.obsm["sims_probabilities"], expected.obsm["sims_probabilities"], atol=1e-6)


def test_gene_coverage_before_annotating(model, make_cells):
    """The report of what `annotate` will find: the same numbers, for a file too, and no warning beside it."""
    query = make_cells()[:, :42].copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        coverage = sk.gene_coverage(query, model)
    assert (coverage.n_matched, coverage.n_model, len(coverage.missing)) == (42, 60, 18)
    assert "42 of the model's 60 genes found (70.0%)" in str(coverage)
    query.raw = make_cells()
    assert sk.gene_coverage(query, model, layer="raw").fraction == 1
    with pytest.raises(GeneError):
        sk.gene_coverage(query[:, :6].copy(), model)

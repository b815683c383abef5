"""Annotation: what is added, and that nothing else changes."""

import copy
import warnings
from functools import partial
from unittest.mock import Mock

import anndata as ad
import h5py
import numpy as np
import pytest
import scanpy as sc
import torch
from sklearn.metrics import roc_auc_score

import sims_kit as sk
from sims_kit.calibration import CalibrationCells, hierarchical_labels, paths_to_root, rejection_threshold
from sims_kit.cells.matrix import log_normalised
from sims_kit.errors import GeneError, LabelError, SettingError, UnknownNameError
from sims_kit.model.network import TabNet


def test_columns(model, make_cells):
    """Documented columns agree with the softmax of the logits, at the model's temperature, of log-normalised counts."""
    query = make_cells(n_cells=700)[300:390].copy()
    assert sk.annotate(query, model) is None
    found = query.obsm["sims_probabilities"]
    with torch.no_grad():
        expected = model.probabilities(torch.from_numpy(log_normalised(query, model.genes).toarray())).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.shape == (90, 3) and found.dtype == np.float32
    classes, order = np.array(query.uns["sims_kit"]["sims"]["classes"]), np.argsort(-found, axis=1)
    assert (query.obs["sims_label"] == classes[order[:, 0]]).all()
    assert (query.obs["sims_second_label"] == classes[order[:, 1]]).all()
    np.testing.assert_array_equal(query.obs["sims_confidence"], found.max(axis=1))
    assert (query.obs["sims_label"] == query.obs["cell_type"]).mean() > 0.9


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_a_path_may_stay_on_disk(model, make_cells, tmp_path, suffix, monkeypatch):
    """With `backed` the answer is that of memory, its matrix still in the file; it can be written again."""
    query, path, out = make_cells(n_cells=150), tmp_path / f"query{suffix}", tmp_path / "annotated.h5ad"
    query.layers["counts"], query.X = query.X.copy(), query.X * 0.5
    getattr(query, {".h5ad": "write_h5ad", ".zarr": "write_zarr"}[suffix])(path)
    expected = sk.annotate(path, model, layer="counts", backed=False)
    if suffix == ".h5ad":  # the matrix is copied from file to file
        monkeypatch.setattr(h5py.Dataset, "__array__", lambda *_, **__: pytest.fail("read into memory"))
    found = sk.annotate(path, model, layer="counts", backed=True, out=out)
    monkeypatch.undo()
    assert found.obs.equals(expected.obs) and found.X.group.name == "/layers/counts"
    np.testing.assert_allclose(found.obsm["sims_probabilities"], expected.obsm["sims_probabilities"], atol=1e-6)
    written = ad.read_h5ad(out)
    assert (query.layers["counts"] != written.X).nnz == 0 and written.obs["sims_label"].notna().all()


def test_paths_in_and_h5ad_out(model, make_cells, tmp_path):
    """Paths of a query and a model work, the file is not touched, and older versions of anndata read the result."""
    make_cells().write_h5ad(path := tmp_path / "query.h5ad")
    before = path.read_bytes()
    sk.save_model(model, tmp_path / "model.safetensors")
    out = tmp_path / "new/folder/a.h5ad"
    annotated = sk.annotate(path, tmp_path / "model.safetensors", reject=0.3, vote="auto", out=out)
    assert path.read_bytes() == before and [*out.parent.iterdir()] == [out]
    assert list(ad.read_h5ad(out).obs["sims_vote"]) == list(annotated.obs["sims_vote"])
    assert sk.annotate(cells := make_cells(), model, out=out) is None and "sims_label" in cells.obs
    sk.prediction_sets(annotated, model, alpha=0.2)
    sk.explain(model, annotated).add_to(annotated)
    with ad.settings.override(allow_write_nullable_strings=False):  # as `out=` does
        annotated.write_h5ad(path)
    again = ad.read_h5ad(path)
    assert list(again.obs["sims_label"]) == list(annotated.obs["sims_label"])
    assert list(again.uns["sims_kit"]["sims"]["classes"]) == model.classes
    np.testing.assert_array_equal(again.obsm["sims_sets"], annotated.obsm["sims_sets"])


def test_a_disk_that_fails_at_the_end_loses_nothing(model, make_cells, tmp_path, monkeypatch):
    """The error has the annotated cells, and no file is left behind."""
    make_cells().write_h5ad(path := tmp_path / "query.h5ad")
    monkeypatch.setattr("os.replace", Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space") as error:
        sk.annotate(path, model, out=tmp_path / "out.h5ad")
    assert "sims_label" in error.value.cells.obs and "lost" in error.value.__notes__[0]
    assert [*tmp_path.iterdir()] == [path]


def test_the_genes_that_are_read(make_cells):
    """They decide what is refused, missing ones are named, also before; a panel of them is annotated and explained."""
    cells, recipe = make_cells(n_genes=200), dict(n_models=1, genes_per_class=4)
    model = sk.fit(cells, "cell_type", recipe=recipe | dict(linear_share=0), max_epochs=1, verbose=False)
    read = [model.genes[place] for place in model.genes_read]
    most, few = (cells[:, ~cells.var_names.isin(read[:n])].copy() for n in (4, 10))
    lost, panel = f"genes that it tells its classes by, but not '{read[0]}', '{read[1]}'", cells[:, read].copy()
    for query, words in ((most, rf"genes found \(98.0%\), and 8 of the 12 {lost}"), (panel, "zero: .*unseen scores")):
        with pytest.warns(UserWarning, match=words):
            sk.annotate(query, model)
    for call in (sk.annotate, sk.embed):
        with pytest.raises(GeneError, match=f"2 of the 12 {lost}.*at least 20% of the latter"):
            call(few, model)
    with warnings.catch_warnings(action="error"):
        coverage = sk.gene_coverage(few, model)
    assert coverage.missing_read == read[:10] and f"(95.0%), and 2 of the 12 {lost}" in str(coverage)
    explanation = sk.explain(model, panel)
    explanation.add_to(panel)
    for ranked in (explanation.top_genes(50)["class_0"], panel.uns["rank_genes_sims"]["names"]["class_0"]):
        assert len(ranked) == (explanation.genes["cells"] > 0).sum() and {*ranked} <= {*read}
    panel.var_names = [f"ENSG{i:011d}" for i in range(12)]
    with pytest.raises(GeneError, match=r"expects 200 symbols .* are 12 Ensembl ids .*ids of the model's kind"):
        sk.annotate(panel, model)


@pytest.mark.parametrize(("per_class", "words", "n_left"), [(4, "none of the 12", 0), (100, "at most 2 of the 300", 2)])
def test_cells_that_have_hardly_a_gene_that_is_read(make_cells, per_class, words, n_left):
    """They are counted, in the notes and in a warning at the user's line; other cells are not."""
    cells, recipe = make_cells(n_genes=400), dict(n_models=1, genes_per_class=per_class, linear_share=0)
    one = sk.SIMS(recipe, max_epochs=1).fit(cells, "cell_type")
    counts, read = cells.X.toarray(), one.model_.genes_read.numpy()
    counts[:6, read] = np.arange(len(read)) < n_left + np.repeat([0, 1], [5, 1])[:, None]  # the last has one more
    query, score = ad.AnnData(counts, cells.obs, cells.var), partial(one.score, y=cells.obs["cell_type"])
    for call in (partial(sk.annotate, model=one), one.predict, one.predict_proba, score):
        with pytest.warns(UserWarning, match=f"5 of 120 cells express {words} genes that.*Leave out") as caught:
            call(query)
        assert [found.filename for found in caught] == [__file__] and query.uns["sims_kit"]["sims"]["cells_unread"] == 5
    with warnings.catch_warnings(action="error"):
        sk.annotate(cells, one)


def test_genes_in_any_order(model, make_cells):
    """Shuffled and extra genes and any batch size change no probability; those of raw are counted before."""
    query = make_cells(n_cells=29)
    sk.annotate(query, model)
    extra = ad.AnnData(np.ones((query.n_obs, 3), np.float32), obs=query.obs[[]])
    wider = ad.concat([query[:, ::-1].copy(), extra], axis=1)
    for batch_size in (1, 7, 1024):
        sk.annotate(wider, model, batch_size=batch_size)
        np.testing.assert_allclose(wider.obsm["sims_probabilities"], query.obsm["sims_probabilities"], atol=1e-6)
    assert sk.gene_coverage(wider, model).extra == 3
    most = query[:, :42].copy()
    most.raw = query
    assert [sk.gene_coverage(most, model, layer=layer).n_matched for layer in (None, "raw")] == [42, 60]


@pytest.fixture(scope="module")
def models(model):
    """Models by name: as if validation cells had been harder, without such cells, and with a class "Unknown"."""
    unsure, without, unknown = (copy.deepcopy(model) for _ in range(3))
    confidence = np.sort(np.random.default_rng(0).uniform(0.5, 1, 100))
    scores, correct = -np.log(confidence / (1 - confidence)), np.arange(100) >= 30  # the less sure third is wrong
    unsure.calibration_cells = CalibrationCells(np.arange(100) % 3, scores, confidence, correct)
    without.calibration_cells, unknown.classes = None, ["class_0", "class_1", "Unknown"]
    return {"unsure": unsure, "without": without, "unknown": unknown}


def test_rejected_cells_are_unknown_or_get_a_parent(models, make_cells):
    """Below the threshold a cell is "Unknown", or its parent if the probability, summed, is enough."""
    query, unsure, hierarchy = make_cells(90, seed=1), models["unsure"], {"class_0": "either", "class_1": "either"}
    query.X = query.X.multiply(np.random.default_rng(0).random(query.shape) < 0.15).tocsr()  # shallow
    plain = sk.annotate(query, unsure, copy=True)
    sk.annotate(query, unsure, reject=0.05)
    threshold = rejection_threshold(*unsure.calibration_cells[2:], error_rate=0.05).threshold
    rejected = plain.obs["sims_confidence"] < threshold
    assert 5 < rejected.sum() < 85
    assert list(query.obs["sims_label"]) == list(plain.obs["sims_label"].where(~rejected, "Unknown"))
    np.testing.assert_array_equal(query.obs["sims_confidence"], plain.obs["sims_confidence"])
    assert query.uns["sims_kit"]["sims"]["threshold"] == threshold
    own = sk.annotate(query, unsure, threshold=threshold, copy=True)
    assert (own.obs["sims_label"] == query.obs["sims_label"]).all()
    sk.annotate(query, unsure, hierarchy=hierarchy)  # at the same rate
    expected = hierarchical_labels(
        query.obsm["sims_probabilities"], paths_to_root(unsure.classes, hierarchy), threshold
    )
    assert list(query.obs["sims_label"]) == list(expected["label"]) and {"either", "Unknown"} < set(expected["label"])
    np.testing.assert_allclose(query.obs["sims_confidence"], expected["probability"], rtol=1e-6)


def test_prediction_sets(model, make_cells):
    """Sets as text and as columns agree, and hold the true class about as often as promised."""
    query = make_cells(n_cells=700)[300:].copy()
    sk.annotate(query, model)
    assert sk.prediction_sets(query, model, alpha=0.2) is None
    sets, classes = query.obsm["sims_sets"], np.array(model.classes)
    assert sets.shape == (400, 3) and sets.dtype == bool
    order = np.argsort(-query.obsm["sims_probabilities"], axis=1)
    for row, places, text in zip(sets, order, query.obs["sims_set"], strict=True):
        assert text == (" | ".join(classes[places][row[places]]) or "Unknown")
    truth = np.searchsorted(classes, query.obs["cell_type"].astype(str))
    assert 0.6 < sets[np.arange(400), truth].mean() < 0.98  # 30 calibration cells: promises vary, by 0.07
    assert query.uns["sims_kit"]["sims"]["alpha"] == 0.2 and "state" in query.uns["sims_kit"]["sims"]


def test_vote_of_over_clusters(model, make_cells):
    """`vote="auto"` clusters the cells itself, follows most of each cluster, and leaves nothing but the vote."""
    query = make_cells(n_cells=700)[300:500].copy()
    depth = np.where(np.arange(200) < 20, 0.2, 1)[:, None]  # some are so shallow that single labels are wrong
    query.X = query.X.multiply(np.random.default_rng(0).random(query.shape) < depth).tocsr()
    sk.annotate(query, model, vote="auto")
    labels, votes = query.obs["sims_label"].astype(str), query.obs["sims_vote"].astype(str)
    assert (votes == query.obs["cell_type"]).mean() > 0.9 and (votes != labels).any()
    assert query.obs["sims_vote_proportion"][votes == "class_0"].nunique() > 1  # several clusters of a class
    assert set(query.obsm) == {"sims_probabilities"} and not len(query.obsp)
    assert set(query.uns) == {"sims_kit", "sims_label_colors", "sims_vote_colors"}
    with pytest.raises(SettingError, match="there are 5; expected 10"):
        sk.annotate(query[:5].copy(), model, vote="auto")


def test_embedding(model, make_cells):
    """What the logits are made of, of each network: they are linear in it."""
    query, network, n_models = make_cells(n_cells=120), model.network, model.recipe.n_models
    assert sk.embed(query, model) is None
    vectors, width = query.obsm["X_sims"], model.recipe.n_d + 3
    assert vectors.shape == (120, n_models * width) and vectors.dtype == np.float32
    decision, evidence = torch.from_numpy(vectors).view(120, n_models, width).split([width - 3, 3], dim=2)
    with torch.no_grad():
        logits = network.final_mapping(decision) + evidence + network.additive_bias
        expected = network(torch.from_numpy(log_normalised(query, model.genes).toarray())).logits
        torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)


def test_colours(model, make_cells):
    """The reference's or scanpy's, in the order of the categories, "Unknown" grey; scanpy plots unused labels."""
    query = make_cells(n_cells=60)
    query = query[query.obs["cell_type"] != "class_1"].copy()
    query.obsm["X_umap"] = np.random.default_rng(0).random((query.n_obs, 2))
    coloured = copy.deepcopy(model)
    coloured.provenance["label_colors"] = {"class_2": "#000000"}
    sk.annotate(query, coloured, hierarchy={"class_0": "either", "class_1": "either"}, reject=0.3, vote="auto")
    for name in ("label", "vote"):
        assert list(query.obs[f"sims_{name}"].cat.categories) == [*model.classes, "either", "Unknown"]
        assert list(query.uns[f"sims_{name}_colors"]) == ["#1f77b4", "#ff7f0e", "#000000", "#d62728", "#bdbdbd"]
    for cells in (query, query[:10].copy()):
        sc.pl.umap(cells, color=["sims_label", "sims_vote", "sims_confidence"], show=False)
    assert len(cells.uns["sims_label_colors"]) == len(cells.obs["sims_label"].cat.categories) < 5


def test_unseen_types_stand_out(make_cells):
    """Cells of a type that the model never saw have a higher unseen score than others."""
    cells = make_cells(n_cells=400, n_genes=200, n_classes=4)
    hidden = (cells.obs["cell_type"] == "class_3").to_numpy()
    known = cells[~hidden][:200].copy()
    model = sk.fit(known, "cell_type", test=0, max_epochs=15, verbose=False, logger=False)
    query = cells[np.r_[np.flatnonzero(~hidden)[200:], np.flatnonzero(hidden)]].copy()
    sk.annotate(query, model)
    assert roc_auc_score(query.obs["cell_type"] == "class_3", query.obs["sims_unseen"]) > 0.9


NO_CELLS = r"no validation cells.*calibrate\(model, cells, label\)"
CIRCLE = {"class_0": "class_1", "class_1": "class_0"}
REFUSED = [  # what is called, on which model, with what; the error, and words of its message
    (sk.annotate, "unsure", dict(reject=0.01), SettingError, "from 100 validation cells; the lowest rate"),
    (sk.annotate, "unsure", dict(reject=0.7), SettingError, "reject is 0.7; expected the share of errors .* below 0.5"),
    (sk.annotate, "unsure", dict(reject=0.1, threshold=0.5), SettingError, "give one; "),
    (sk.annotate, "unsure", dict(threshold=50), SettingError, "from 0 to 1"),
    (sk.annotate, "unsure", dict(hierarchy=CIRCLE), SettingError, "circle"),
    (sk.annotate, "unsure", dict(vote="cell_types"), UnknownNameError, "'cell_type'"),
    (sk.annotate, "unsure", dict(vote=["cell_type"]), UnknownNameError, r"\['cell_type'\]. Did you mean 'cell_type'"),
    (sk.annotate, "without", dict(reject=0.1), SettingError, NO_CELLS),
    (sk.annotate, "without", dict(hierarchy={"class_0": "any"}), SettingError, NO_CELLS),
    (sk.annotate, "unknown", dict(threshold=0.5), LabelError, "class 'Unknown'"),
    (sk.annotate, "unsure", dict(majority_voting=True), SettingError, "vote='auto'"),
    (sk.annotate, "unsure", dict(alpha=0.1), SettingError, "sims_kit.prediction_sets"),
    (sk.annotate, "unsure", dict(probability_threshold=0.5), UnknownNameError, "Did you mean 'threshold'"),
    (sk.annotate, "unsure", dict(batch_key="donor"), SettingError, "not needed"),
    (sk.annotate, "unsure", dict(use_raw=False), SettingError, "use_raw=False is the default, layer=None"),
    (sk.prediction_sets, "without", {}, SettingError, NO_CELLS),
    (sk.prediction_sets, "unsure", dict(alpha=0.005), SettingError, "needs 199 calibration cells and there are 100"),
    *(
        (function, "unsure", settings, error, words)
        for function in (sk.annotate, sk.prediction_sets, sk.embed)
        for settings, error, words in (
            (dict(key_added="a/b"), SettingError, "without a slash"),
            (dict(key_added="title"), SettingError, "'title' is a fact of the dataset.* Choose another"),
            (dict(device="cuda:99"), UnknownNameError, "no device of this machine 'cuda:99'."),
            (dict(device="mps"), SettingError, "no device 'mps'. Cells are sparse.* device='cpu'"),
            (dict(device=0), UnknownNameError, "no device of this machine '0'. Choose from: 'cpu'"),
        )
    ),
]


@pytest.mark.parametrize(("function", "name", "settings", "error", "words"), REFUSED)
def test_refused_before_predicting(models, make_cells, monkeypatch, function, name, settings, error, words):
    """Rates that validation cells cannot hold, values of another kind, and arguments of other packages."""
    query, model = make_cells(), models[name]
    query.uns["sims_kit"] = {"title": "Cortex"}
    monkeypatch.setattr(TabNet, "steps", lambda *_: pytest.fail("predicted"))
    with pytest.raises(error, match=words):
        function(query, model, **settings)
    assert set(query.uns) == {"sims_kit"} and set(query.obs) == {"cell_type"} and not len(query.obsm)


def test_calibrate_anew(models, make_cells):
    """On labelled cells, temperature and promises are what they would be had these been the validation cells."""
    cells, model = make_cells(n_cells=120, seed=5), copy.deepcopy(models["unsure"])
    before = sk.annotate(cells, model, copy=True)
    cells.obs["cell_type"] = cells.obs["cell_type"].where(np.arange(120) >= 10, "never seen")
    temperatures = [model.temperature.item()]
    for _ in range(2):
        with pytest.warns(UserWarning, match="10 cells"):
            sk.calibrate(model, cells, "cell_type")
        temperatures.append(model.temperature.item())
    after, kept = sk.annotate(cells, model, copy=True), model.calibration_cells
    assert (before.obs["sims_label"] == after.obs["sims_label"]).all()
    assert [model.classes[code] for code in kept.labels] == list(cells.obs["cell_type"][10:])
    np.testing.assert_allclose(kept.confidence, after.obs["sims_confidence"][10:], rtol=1e-5)
    assert temperatures[0] != temperatures[1] == pytest.approx(temperatures[2], rel=1e-4)
    with pytest.raises(LabelError, match="None of 10"):
        sk.calibrate(model, cells[:10], "cell_type")


def test_nothing_else_changes(model, make_cells):
    """The user's columns and values stay; what an earlier call wrote goes; a copy leaves the query alone."""
    query, untouched = make_cells(n_cells=200), make_cells(n_cells=200)
    query.obs["leiden"], query.obs["sims_quality"], query.obsm["X_umap"] = "0", 1.0, np.zeros((200, 2))
    query.uns["sims_kit"] = {"dataset": "mine"}
    before = set(query.obs)
    assert "sims_label" in sk.annotate(query, model, copy=True).obs and set(query.obs) == before
    sk.annotate(query, model, vote="leiden")
    most = query.obs["sims_label"].value_counts(normalize=True)  # of a single cluster
    assert set(query.obs["sims_vote"]) == {most.index[0]} and (query.obs["sims_vote_proportion"] == most.iloc[0]).all()
    sk.prediction_sets(query, model, alpha=0.2)
    sk.explain(model, query).add_to(query)
    sc.pl.umap(query, color=["sims_second_label", "sims_set", "sims_explained"], show=False)
    sk.annotate(query, model)
    assert set(query.obs) - before == {"sims_label", "sims_confidence", "sims_second_label", "sims_unseen"}
    assert list(query.obsm) == ["X_umap", "sims_probabilities"]
    assert set(query.layers) <= {None}  # anndata 0.13 has X there, too
    assert not len(query.varm) and set(query.uns) == {"sims_kit", "sims_label_colors"}
    assert "alpha" not in query.uns["sims_kit"]["sims"] and query.uns["sims_kit"]["dataset"] == "mine"
    assert query.uns["sims_kit"]["sims"]["trained_on"] == ["AnnData 1"]
    sk.annotate(query, model, key_added="cortex")
    assert {"cortex_label", "sims_label"} < set(query.obs) and "cortex_probabilities" in query.obsm
    assert (query.X != untouched.X).nnz == 0 and query.X.dtype == untouched.X.dtype


def test_device_and_models_without_promises(model, models, make_cells, monkeypatch):
    """The network is put back from its device; a threshold of one's own needs neither promise nor validation cells."""
    query, without, seen = make_cells(), models["without"], []
    sk.annotate(query, without, threshold=0.999, hierarchy=dict.fromkeys(without.classes, "any"))
    assert set(query.obs["sims_label"]) <= {"any", *without.classes}  # the root has all of the probability
    assert len(sk.annotate(query, models["unknown"], copy=True).uns["sims_label_colors"]) == 3
    monkeypatch.setattr(type(model), "to", lambda self, device: seen.append(str(device)))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    sk.annotate(query, model, device="cuda:0")
    sk.explain(model, query, device=torch.device("cuda"))
    sk.embed(query, model, device="cpu:0")
    assert seen == ["cuda:0", "cpu", "cuda", "cpu", "cpu:0", "cpu"]


def test_scales(model, make_cells):
    """Models of earlier versions take the scale of a query as they did."""
    earlier = copy.deepcopy(model)
    earlier.provenance["files"][0]["state"] = "log-normalised"
    query = make_cells(n_cells=200, state="log-normalised")
    sk.annotate(query, earlier)
    assert query.uns["sims_kit"]["sims"]["state"] == "values of unknown scale"
    earlier.provenance["files"][0]["state"] = "values of unknown scale"
    with pytest.warns(UserWarning, match="holds counts, but the model was trained on values of unknown scale"):
        sk.annotate(make_cells(n_cells=200), earlier)

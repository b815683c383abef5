"""Tissue cultures: the tables say what the calls say, intervals are those of other libraries, nothing is changed."""

import sys

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t
from statsmodels.stats.proportion import proportion_confint

import sims_kit as sk
from sims_kit.cells.splits import stratified_split
from sims_kit.errors import GeneError, SettingError, UnknownNameError

QUIET = dict(max_epochs=8, enable_progress_bar=False, verbose=False)


@pytest.fixture(scope="module")
def tissues(make_cells):
    """Primary tissue with labels, and cultured cells of the same types, a third of them without their signal."""
    cells = make_cells(n_cells=260)
    primary, culture = cells[:170].copy(), cells[170:].copy()
    culture.obs["line"] = pd.Categorical(np.where(np.arange(90) < 60, "a", "b"))
    culture.obs["is_sorted"] = culture.obs["cell_type"] == "class_0"
    random, counts = np.random.default_rng(0), culture.X.toarray()
    counts[60:] = random.permuted(counts[60:], axis=1)  # line b
    culture.X = type(culture.X)(counts)
    culture.obs["truth"] = culture.obs.pop("cell_type")
    return primary, culture


@pytest.fixture(scope="module")
def gene_set(tissues):
    """Genes that mark the first class."""
    return list(tissues[0].var_names[tissues[0].var["marker_of"] == "class_0"])


@pytest.fixture(scope="module")
def found(tissues, gene_set):
    """The study with a model of its own."""
    expected = {"is_sorted": {True: ["class_0"], "False": ["class_1", "class_2"]}}
    options = dict(label="cell_type", sample="line", expected=expected, gene_set=gene_set, seed=3)
    before = [cells.copy() for cells in tissues]
    result = sk.studies.inference(*tissues, **options, **QUIET)
    for cells, old in zip(tissues, before, strict=True):
        pd.testing.assert_frame_equal(cells.obs, old.obs)
        assert not cells.obsm and "sims_kit" not in cells.uns and (cells.X != old.X).nnz == 0
    return result


def test_test_set_is_not_trained_on(tissues, found):
    """A fifth of the primary cells of each class is asked, and the model is that of the others."""
    primary, _ = tissues
    split = stratified_split(primary.obs["cell_type"], 0, 0.2, 3)
    rows = found.cells[found.cells["tissue"] == "primary"]
    assert list(rows["cell"]) == list(primary.obs_names[split.test])
    alone = sk.fit(primary[split.train].copy(), "cell_type", seed=3, test=0, logger=False, **QUIET)
    called = sk.annotate(primary[split.test], alone, copy=True)
    np.testing.assert_array_equal(rows["best_label"], called.obs["sims_label"])
    np.testing.assert_allclose(rows["confidence"], called.obs["sims_confidence"])
    right = (called.obs["sims_label"].astype(str) == called.obs["cell_type"]).mean()
    assert found.test_scores["accuracy_micro"] == pytest.approx(right) and "calibration_error" in found.test_scores


def test_composition_counts_calls_with_wilsons_interval(found):
    """Shares add up in each sample, classes never called are there; intervals are those of statsmodels."""
    table = found.composition
    assert table.groupby("sample", sort=False).size().to_dict() == {"test set": 4, "a": 4, "b": 4}
    sizes = found.cells.groupby("sample").size()
    for (sample, name), row in table.set_index(["sample", "class"]).iterrows():
        count = ((found.cells["sample"] == sample) & (found.cells["label"] == name)).sum()
        low, high = proportion_confint(count, sizes[sample], method="wilson")
        assert row["n_cells"] == count
        values = [row["percent"], row["percent_low"], row["percent_high"]]
        np.testing.assert_allclose(values, 100 * np.array([count / sizes[sample], low, high]), atol=1e-9)


def test_confidence_falls_where_the_signal_is_gone(found):
    """The shift is a difference of means with Welch's interval: none in intact cells, down in shuffled ones."""
    table = found.confidence.set_index("sample")
    assert list(table.index) == ["test set", "all", "a", "b"]
    assert table.loc["b", "confidence_shift_high"] < 0 < table.loc["b", "unknown_percent"]
    assert table.loc["b", "confidence_shift"] < table.loc["a", "confidence_shift"]
    first, second = (found.cells.loc[found.cells["sample"] == name, "confidence"] for name in ("b", "test set"))
    parts = [values.var() / len(values) for values in (first, second)]
    freedom = sum(parts) ** 2 / sum(p**2 / (len(v) - 1) for p, v in zip(parts, (first, second), strict=True))
    half = t.ppf(0.975, freedom) * np.sqrt(sum(parts))
    shift = first.mean() - second.mean()
    row = table.loc["b", ["confidence_shift", "confidence_shift_low", "confidence_shift_high"]].to_numpy(float)
    np.testing.assert_allclose(row, [shift, shift - half, shift + half], rtol=1e-5)  # means of float32


def test_expectation_is_counted_and_contradictions_are_listed(tissues, found):
    """Calls are held against what is known of the cells; Unknown ones are neither for nor against it."""
    culture = tissues[1]
    calls = found.cells[found.cells["tissue"] == "culture"].set_index("cell").loc[culture.obs_names]
    row = found.expected.set_index("value").loc["True"]
    own = calls[culture.obs["is_sorted"].to_numpy()]
    known = own[own["label"] != "Unknown"]
    assert (row["n_cells"], row["n_unknown"]) == (len(own), len(own) - len(known))
    assert row["n_consistent"] == (known["label"] == "class_0").sum() and row["allowed"] == "class_0"
    assert row["consistent_percent_low"] < row["consistent_percent"] <= row["consistent_percent_high"]
    listed = found.unexpected[found.unexpected["value"] == "True"]
    assert set(listed["cell"]) == set(known.index[known["label"] != "class_0"])
    assert found.unexpected["confidence"].is_monotonic_decreasing
    total = found.expected["n_cells"] - found.expected["n_unknown"] - found.expected["n_consistent"]
    assert len(found.unexpected) == total.sum() > 0


def test_gene_set_check_is_that_of_its_function(tissues, found, gene_set):
    """Both tissues are checked as `check_gene_set` checks them, and markers are found to be relied on."""
    culture = tissues[1]
    check = sk.studies.check_gene_set(sk.explain(found.model, culture), culture, gene_set, seed=3)
    pd.testing.assert_frame_equal(found.checks["culture"], check)
    pd.testing.assert_frame_equal(found.stress.set_index(["tissue", "class"]).loc["culture"], check)
    assert found.checks["primary"]["p"].min() < 0.05


def test_a_model_that_is_there_is_taken(tissues, found):
    """Then all primary cells are the test set; a threshold of 1 leaves nothing known, and no share is made of it."""
    primary, culture = tissues
    expected = {"is_sorted": {True: "class_0"}}
    options = dict(label="cell_type", model=found.model, gene_set=None, threshold=1.0, expected=expected)
    again = sk.studies.inference(primary, culture, **options)
    assert (again.cells["tissue"] == "primary").sum() == primary.n_obs
    assert again.model is found.model and not again.checks and not len(again.stress)
    assert set(again.cells["label"]) == {"Unknown"} and (again.confidence["unknown_percent"] == 100).all()
    assert list(again.confidence["sample"]) == ["test set", "all"]
    assert np.isnan(again.expected["consistent_percent"].item()) and not len(again.unexpected)
    own = found.cells[found.cells["tissue"] == "culture"]["confidence"].to_numpy()
    np.testing.assert_allclose(again.cells[again.cells["tissue"] == "culture"]["confidence"], own)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"label": None}, SettingError, "Pass label="),
        ({"label": "celltype"}, UnknownNameError, "cell_type"),
        ({"sample": "lines"}, UnknownNameError, "'line'"),
        ({"threshold": 1.5}, SettingError, r"threshold=1\.5"),
        ({"test": 0}, SettingError, "test=0"),
        ({"expected": {"sorted": {True: ["class_0"]}}}, UnknownNameError, "is_sorted"),
        ({"expected": {"line": {"c": ["class_0"]}}}, UnknownNameError, "value of 'line' 'c'"),
        ({"expected": {"line": {"a": ["class_9"]}}}, UnknownNameError, "class 'class_9'"),
        ({"gene_set": sk.studies.STRESS_GENES}, GeneError, "None of the 45 genes"),
    ],
)
def test_wrong_settings_are_told_before_training(tissues, monkeypatch, settings, error, words):
    """Each is refused with what was found and what exists."""
    monkeypatch.setattr(sys.modules["sims_kit.studies.inference"], "fit", None)  # the function has the name, too
    with pytest.raises(error, match=words):
        sk.studies.inference(*tissues, **({"label": "cell_type", "gene_set": None} | settings))

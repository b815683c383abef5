"""Tissue cultures: the tables say what the predictions say, intervals are those of other libraries."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t
from statsmodels.stats.proportion import proportion_confint

import sims_kit as sk
from sims_kit.cells.splits import stratified_split
from sims_kit.errors import GeneError, SettingError, UnknownNameError

QUIET = dict(max_epochs=8, verbose=False)


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
def options(tissues):
    """Arguments of the study; the gene set marks the first class."""
    genes = list(tissues[0].var_names[tissues[0].var["marker_of"] == "class_0"])
    expected = {"is_sorted": {True: ["class_0"], "False": ["class_1", "class_2"]}}
    return dict(label="cell_type", sample="line", expected=expected, gene_set=genes, seed=3)


@pytest.fixture(scope="module")
def found(tissues, options):
    """The study with a model trained for it."""
    before = [cells.copy() for cells in tissues]
    result = sk.studies.inference(*tissues, **options, **QUIET)
    for cells, old in zip(tissues, before, strict=True):
        pd.testing.assert_frame_equal(cells.obs, old.obs)
        assert not cells.obsm and (cells.X != old.X).nnz == 0
    return result


def test_test_set_is_not_trained_on(tissues, found):
    """A fifth of the primary cells of each class is asked, and the model is that of the others."""
    primary, _ = tissues
    split = stratified_split(primary.obs["cell_type"], 0, 0.2, 3)
    rows = found.cells[found.cells["tissue"] == "primary"]
    assert list(rows["cell"]) == list(primary.obs_names[split.test])
    alone = sk.fit(primary[split.train].copy(), "cell_type", seed=3, test=0, **QUIET)
    annotated = sk.annotate(primary[split.test], alone, copy=True).obs
    np.testing.assert_array_equal(rows["best_label"], annotated["sims_label"])
    np.testing.assert_array_equal(rows["second_label"], annotated["sims_second_label"])
    np.testing.assert_allclose(rows["confidence"], annotated["sims_confidence"])


def test_composition_has_wilsons_interval(found):
    """Classes that are never predicted are there; intervals are those of statsmodels."""
    table = found.composition
    assert table.groupby("sample", sort=False).size().to_dict() == {"test set": 4, "a": 4, "b": 4}
    sizes = found.cells.groupby("sample").size()
    for (sample, name), row in table.set_index(["sample", "class"]).iterrows():
        count = ((found.cells["sample"] == sample) & (found.cells["label"] == name)).sum()
        low, high = proportion_confint(count, sizes[sample], method="wilson")
        values = [row["percent"], row["percent_low"], row["percent_high"]]
        np.testing.assert_allclose(values, 100 * np.array([count / sizes[sample], low, high]), atol=1e-9)


def test_confidence_falls_where_the_signal_is_gone(found):
    """The shift is a difference of means with Welch's interval: down in shuffled cells."""
    table = found.confidence.set_index("sample")
    assert list(table.index) == ["test set", "all", "a", "b"]
    assert table.loc["b", "confidence_shift_high"] < 0 < table.loc["b", "unknown_percent"]
    assert table.loc["b", "confidence_shift"] < table.loc["a", "confidence_shift"]
    first, second = (found.cells.loc[found.cells["sample"] == name, "confidence"] for name in ("b", "test set"))
    parts = [values.var() / len(values) for values in (first, second)]
    freedom = sum(parts) ** 2 / sum(p**2 / (len(v) - 1) for p, v in zip(parts, (first, second), strict=True))
    half, shift = t.ppf(0.975, freedom) * np.sqrt(sum(parts)), first.mean() - second.mean()
    row = table.loc["b", ["confidence_shift", "confidence_shift_low", "confidence_shift_high"]].to_numpy(float)
    np.testing.assert_allclose(row, [shift, shift - half, shift + half], rtol=1e-5)  # means of float32


def test_expectation_is_counted(tissues, found):
    """Labels are held against what is known of the cells; Unknown ones are neither for nor against it."""
    culture = tissues[1]
    labels = found.cells[found.cells["tissue"] == "culture"].set_index("cell").loc[culture.obs_names, "label"]
    row, labels = found.expected.set_index("value").loc["True"], labels[culture.obs["is_sorted"].to_numpy()]
    known = labels[labels != "Unknown"]
    assert (row["n_cells"], row["n_unknown"]) == (len(labels), len(labels) - len(known))
    assert row["n_consistent"] == (known == "class_0").sum() and row["allowed"] == "class_0"
    assert row["consistent_percent_low"] < row["consistent_percent"] <= row["consistent_percent_high"]


def test_a_given_model_and_gene_set(tissues, options, found):
    """A model is not trained again; the check is that of `check_gene_set`, and can be left out."""
    culture = tissues[1]
    check = sk.studies.interpretation.check_gene_set(
        sk.explain(found.model, culture), culture, options["gene_set"], seed=3
    )
    stress = found.stress[found.stress["tissue"] == "culture"].set_index("class").drop(columns="tissue")
    pd.testing.assert_frame_equal(stress, check)
    again = sk.studies.inference(*tissues, model=found.model, **options | {"gene_set": None})
    assert again.model is found.model and not len(again.stress)
    cells = again.cells[again.cells["tissue"] == "culture"].reset_index(drop=True)
    pd.testing.assert_frame_equal(cells, found.cells[found.cells["tissue"] == "culture"].reset_index(drop=True))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"label": None}, SettingError, "Which obs column"),
        ({"label": "celltype"}, UnknownNameError, "cell_type"),
        ({"sample": "lines"}, UnknownNameError, "line"),
        ({"threshold": 2}, SettingError, "threshold=2"),
        ({"test": 0}, SettingError, "test=0"),
        ({"expected": {"is_sorted": {"maybe": ["class_0"]}}}, UnknownNameError, "maybe"),
        ({"expected": {"is_sorted": {True: ["class_9"]}}}, UnknownNameError, "class_9"),
        ({"gene_set": ["HSPA1A"]}, GeneError, "None of the 1 genes"),
    ],
)
def test_what_cannot_be_done_is_told_first(tissues, options, changes, error, message):
    """Nothing is trained."""
    with pytest.raises(error, match=message):
        sk.studies.inference(*tissues, **options | changes, max_epochs=None, no_such_setting=1)

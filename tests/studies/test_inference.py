"""Tissue cultures: the tables say what the predictions say, intervals are those of other libraries."""

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import CompareMeans

import sims_kit as sk
from sims_kit.cells.splits import stratified_split

QUIET = dict(max_epochs=8, verbose=False)
OPTIONS = dict(label="cell_type", sample="line", seed=0)


@pytest.fixture(scope="module")
def tissues(make_cells):
    """Primary tissue with labels, and cultured cells of the same types, a third of them without their signal."""
    cells = make_cells(n_cells=260)
    primary, culture = cells[:170].copy(), cells[170:].copy()
    culture.obs["line"] = pd.Categorical(np.where(np.arange(90) < 60, "a", "b"))
    random, counts = np.random.default_rng(0), culture.X.toarray()
    counts[60:] = random.permuted(counts[60:], axis=1)  # line b
    culture.X = type(culture.X)(counts)
    culture.obs["truth"] = culture.obs.pop("cell_type")
    return primary, culture


@pytest.fixture(scope="module")
def found(tissues):
    """The study with a model trained for it; its input stays as it is."""
    before = [cells.copy() for cells in tissues]
    result = sk.studies.inference(*tissues, **OPTIONS, **QUIET)
    for cells, old in zip(tissues, before, strict=True):
        assert cells.obs.equals(old.obs) and not cells.obsm and (cells.X != old.X).nnz == 0
    return result


def test_test_set_is_not_trained_on(tissues, found):
    """A fifth of the primary cells of each class is asked, and the model is that of the others."""
    primary, _ = tissues
    split = stratified_split(primary.obs["cell_type"], 0, 0.2, OPTIONS["seed"])
    rows = found.cells[found.cells["tissue"] == "primary"]
    assert list(rows["cell"]) == list(primary.obs_names[split.test])
    alone = sk.fit(primary[split.train].copy(), "cell_type", seed=OPTIONS["seed"], test=0, **QUIET)
    annotated = sk.annotate(primary[split.test], alone, copy=True).obs
    for column, theirs in {"best_label": "label", "second_label": "second_label", "confidence": "confidence"}.items():
        np.testing.assert_array_equal(rows[column], annotated[f"sims_{theirs}"])
    assert ((rows["label"] == "Unknown") == (rows["confidence"] < 0.5)).all()


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
    low, high = CompareMeans.from_data(first, second).tconfint_diff(usevar="unequal")
    row = table.loc["b", ["confidence_shift", "confidence_shift_low", "confidence_shift_high"]].to_numpy(float)
    np.testing.assert_allclose(row, [first.mean() - second.mean(), low, high], rtol=1e-5)  # means of float32


def test_a_given_model_is_not_trained_again(tissues, found):
    """All primary cells are the test set then, and the culture gets the same labels."""
    again = sk.studies.inference(*tissues, model=found.model, **OPTIONS)
    assert again.model is found.model and (again.cells["tissue"] == "primary").sum() == tissues[0].n_obs
    cells = [one.cells[one.cells["tissue"] == "culture"].reset_index(drop=True) for one in (again, found)]
    pd.testing.assert_frame_equal(*cells)

"""Faithfulness: what is taken away is gone, and what a model rests on costs it most."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression

import sims_kit as sk
from sims_kit.errors import DataError, GeneError, SettingError, UnknownNameError
from sims_kit.evidence import area_under, faithfulness, gene_scores_per_cell, rank_genes, sufficiency
from sims_kit.evidence.cell_scores import log_normalised_values


@pytest.fixture(scope="module")
def cells(easy_cells):
    """Those that the model was fitted on."""
    return easy_cells


@pytest.fixture(scope="module")
def truth(model, cells):
    """Per-cell scores by the truth (markers of the cell's class, the higher the first), and its reverse."""
    values = log_normalised_values(model, cells)
    rows = np.repeat(np.arange(cells.n_obs), np.diff(values.indptr))
    own = cells.var["marker_of"].to_numpy()[values.indices] == cells.obs["cell_type"].to_numpy()[rows]
    best = values.copy()
    best.data = np.where(own, values.data, -values.data)
    best.data = best.data + np.linspace(0, 1e-3, values.nnz)  # no two alike
    return {"truth": best, "reverse": -best}


@pytest.fixture(scope="module")
def table(model, cells):
    """Curves of SIMS's contributions and of chance."""
    return faithfulness(model, cells, ["SIMS contributions", "random"], batch_size=64)


def test_ends_are_the_whole_and_the_empty_cell(model, cells, table):
    """Nothing deleted or all left is the cell itself; all deleted or nothing left is a cell that expresses nothing."""
    with torch.no_grad():
        empty = model.eval()(torch.zeros(1, len(model.genes))).softmax(dim=1)[0].numpy()
    annotated = sk.annotate(cells, model, copy=True)
    whole = annotated.obs["sims_confidence"].mean()
    none = empty[[model.classes.index(label) for label in annotated.obs["sims_label"]]].mean()
    most = np.diff(cells.X.indptr).max()
    found = table.set_index(["curve", "n_genes"]).sort_index()
    for curve, at_0, at_all in (("deletion", whole, none), ("insertion", none, whole)):
        np.testing.assert_allclose(found.loc[(curve, 0), "probability"], at_0, atol=1e-4)
        np.testing.assert_allclose(found.loc[(curve, most), "probability"], at_all, atol=1e-4)
    assert (found.loc[("deletion", 0), "unchanged"] == 1).all()
    assert list(found.loc["deletion"].index.unique()) == [0, 1, 2, 5, 10, 20, 50, most]


def test_top_genes_are_set_to_zero(model, cells, truth):
    """One number of the curves, computed with dense values."""
    values, scores = log_normalised_values(model, cells).toarray(), truth["truth"].toarray()
    scores[values == 0] = -np.inf
    top = np.argsort(-scores, axis=1)[:, :5]
    taken, left = values.copy(), np.zeros_like(values)
    np.put_along_axis(taken, top, 0, axis=1)
    np.put_along_axis(left, top, np.take_along_axis(values, top, axis=1), axis=1)
    with torch.no_grad():
        whole, *others = (model.eval().probabilities(torch.from_numpy(part)) for part in (values, taken, left))
    own = whole.argmax(dim=1)
    found = faithfulness(model, cells, {"truth": truth["truth"]}, numbers=[5]).query("n_genes == 5")
    for row, part in zip(found.itertuples(), others, strict=True):
        assert row.probability == pytest.approx(part.gather(1, own[:, None]).mean().item(), abs=1e-4)
        assert row.unchanged == pytest.approx((part.argmax(dim=1) == own).float().mean().item(), abs=0.01)


def test_the_truth_beats_chance_and_chance_its_reverse(model, cells, truth):
    """Deleting markers costs the call sooner, leaving them keeps it."""
    random = {"random": gene_scores_per_cell(model, cells, "random")}
    areas = area_under(faithfulness(model, cells, truth | random, numbers=[0, 2, 5, 10]))
    assert areas["deletion"].sort_values().index.tolist() == ["truth", "random", "reverse"]
    assert areas["insertion"].sort_values().index.tolist() == ["reverse", "random", "truth"]


def test_contributions_beat_chance(table):
    """What SIMS says it used, it used."""
    areas = area_under(table)
    assert areas.loc["SIMS contributions", "deletion"] < areas.loc["random", "deletion"] - 0.1
    assert areas.loc["SIMS contributions", "insertion"] > areas.loc["random", "insertion"] + 0.1
    assert list(areas.index) == ["SIMS contributions", "random"]


def test_area_by_hand():
    """Trapezoids over log(1 + n), divided by its range."""
    table = pd.DataFrame({"method": "x", "curve": "deletion", "n_genes": [0, 1, 3], "probability": [1.0, 0.5, 0.1]})
    assert area_under(table).loc["x", "deletion"] == pytest.approx((0.75 + 0.3) / 2)
    with pytest.raises(UnknownNameError, match="unchanged"):
        area_under(table, "unchanged")
    with pytest.raises(DataError, match="one point"):
        area_under(table.iloc[:1])


def test_sufficiency(model, cells):
    """The model without other genes, and a regression on the chosen ones, against their scores computed by hand."""
    train, test = cells[:100], cells[100:]
    rankings = rank_genes(model, train, "cell_type", ["logistic regression"])
    rankings["worst"] = -rankings["logistic regression"].abs()
    table = sufficiency(model, train, test, "cell_type", rankings, sizes=(6, 200))
    assert list(table["n_genes"].unique()) == [6, len(model.genes)]
    found = table.set_index(["method", "classifier"])["accuracy"].xs
    whole = sk.annotate(test, model, copy=True).obs["sims_label"].astype(str)
    assert found(("all genes", "model")) == pytest.approx((whole == test.obs["cell_type"]).mean())
    x_train, x_test = (log_normalised_values(model, part) for part in (train, test))
    regression = LogisticRegression(C=1, max_iter=1000, random_state=0).fit(x_train, train.obs["cell_type"])
    assert found(("all genes", "logistic regression")) == regression.score(x_test, test.obs["cell_type"])
    for classifier in ("model", "logistic regression"):
        assert found(("logistic regression", classifier)) > found(("worst", classifier)) + 0.2
    assert table["median_f1"].between(0, 1).all()


def test_errors_name_what_is_wrong(model, cells, truth):
    """Numbers that are none, scores of other cells, rankings of other genes, unknown methods."""
    with pytest.raises(SettingError, match="whole numbers"):
        faithfulness(model, cells, "random", numbers=[0.5])
    with pytest.raises(DataError, match="150 x 60"):
        faithfulness(model, cells, {"truth": truth["truth"][:10]})
    with pytest.raises(UnknownNameError, match="SIMS masks"):
        faithfulness(model, cells, ["SIMS mask"])
    ranking = pd.DataFrame(1.0, ["class_0"], model.genes)
    with pytest.raises(GeneError, match="59 genes, 59 of them"):
        sufficiency(model, cells, cells, "cell_type", {"one": ranking.iloc[:, 1:]})
    with pytest.raises(SettingError, match="1 or more"):
        sufficiency(model, cells, cells, "cell_type", {"one": ranking}, sizes=(0, 5))

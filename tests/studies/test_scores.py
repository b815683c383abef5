"""Scores of pooled predictions, their intervals and differences, against scikit-learn and a bootstrap by hand."""

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sklearn_metrics

from sims_kit import metrics
from sims_kit.errors import DataError
from sims_kit.studies import scores


@pytest.fixture
def tables():
    """Two methods on the same 120 cells of unequal classes; one rejects some, the other has no confidence."""
    random = np.random.default_rng(0)
    truth = random.choice(list("abcd"), 120, p=[0.5, 0.3, 0.15, 0.05])
    probabilities = random.dirichlet(np.ones(4), 120)
    probabilities[np.arange(120), [list("abcd").index(label) for label in truth]] += 0.6
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    top = np.array(list("abcd"))[probabilities.argmax(axis=1)]
    confidence = probabilities.max(axis=1)
    first = pd.DataFrame({"truth": truth, "predicted": np.where(confidence < 0.4, "Unknown", top), "top": top})
    second = pd.DataFrame({"truth": truth, "predicted": random.permutation(truth), "top": "", "confidence": np.nan})
    return {"first": first.assign(confidence=confidence), "second": second}, probabilities


def test_scores_are_scikit_learns_on_labelled_cells(tables):
    """Rejected cells leave accuracy and F1, and are counted; calibration is that of `metrics.score` on all cells."""
    cells = tables[0]["first"]
    found = scores.score_cells(cells)
    labelled = cells[cells["predicted"] != "Unknown"]
    f1 = sklearn_metrics.f1_score(labelled["truth"], labelled["predicted"], average=None)
    assert 0 < found["unlabelled_percent"] == pytest.approx(100 * (cells["predicted"] == "Unknown").mean())
    assert found["accuracy"] == pytest.approx((labelled["truth"] == labelled["predicted"]).mean())
    assert found["macro_f1"] == pytest.approx(f1.mean()) and found["median_f1"] == pytest.approx(np.median(f1))
    oracle = metrics.score(cells["truth"].to_numpy(), cells["top"].to_numpy(), tables[1], list("abcd"))
    assert found["calibration_error"] == pytest.approx(oracle["calibration_error"], abs=1e-6)


def test_nothing_labelled_has_no_score(tables):
    """A method that rejects every cell has no accuracy, which is not one of 0."""
    cells = tables[0]["second"].assign(predicted="Unknown")
    found = scores.score_cells(cells)
    assert found["unlabelled_percent"] == 100 and found.drop("unlabelled_percent").isna().all()
    assert scores.bootstrap({"x": cells}, 3)["x"]["accuracy"].isna().all()


def test_bootstrap_is_one_by_hand(tables):
    """Every replicate has the scores that `score_cells` gives for the same resampled cells, the same ones for both."""
    methods = tables[0]
    found = scores.bootstrap(methods, n_bootstrap=20, seed=5)
    random = np.random.default_rng(5)
    for replicate in range(20):
        chosen = random.integers(120, size=120)
        for name, cells in methods.items():
            expected = scores.score_cells(cells.iloc[chosen])
            np.testing.assert_allclose(found[name].iloc[replicate], expected, atol=1e-6)


def test_intervals_and_differences(tables):
    """Intervals are the middle 95 % of the replicates; differences are paired, of the one minus the other."""
    methods = tables[0]
    replicates = scores.bootstrap(methods, 200)
    values = scores.with_intervals(methods["first"], replicates["first"])
    low, high = np.percentile(replicates["first"]["accuracy"], [2.5, 97.5])
    assert (values["accuracy_low"], values["accuracy_high"]) == (low, high) and low < values["accuracy"] < high
    table = scores.paired_differences(methods, replicates, "first").set_index("score")
    assert set(table["method"]) == {"second"}
    own, other = (scores.score_cells(methods[name])["accuracy"] for name in ("first", "second"))
    assert table.loc["accuracy", "difference"] == pytest.approx(own - other) and own > other
    paired = replicates["first"]["accuracy"] - replicates["second"]["accuracy"]
    assert table.loc["accuracy", "low"] == pytest.approx(np.percentile(paired, 2.5))
    same = {"one": methods["first"], "two": methods["first"].copy()}
    zero = scores.paired_differences(same, scores.bootstrap(same, 50), "one")
    assert (zero[["difference", "low", "high"]] == 0).all(axis=None)


def test_recall_by_class_counts_rejected_cells(tables):
    """Recall is scikit-learn's, a rejected cell is not found, and the rarest class comes first."""
    cells = tables[0]["first"]
    table = scores.recall_by_class(cells).set_index("class")
    assert table["n_cells"].is_monotonic_increasing and "Unknown" not in table.index
    for name, row in table.iterrows():
        of_class = cells[cells["truth"] == name]
        assert row["n_cells"] == len(of_class)
        assert row["recall"] == pytest.approx((of_class["predicted"] == name).mean())


def test_other_cells_cannot_be_paired(tables):
    """Predictions of different cells are refused."""
    with pytest.raises(DataError, match="different cells"):
        scores.bootstrap({"a": tables[0]["first"], "b": tables[0]["first"].iloc[::-1]})

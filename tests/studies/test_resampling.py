"""Scores by counting equal scikit-learn's; intervals cover the truth; draws are paired."""

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from sims_kit.studies.resampling import differences, intervals, mean_over_seeds, resample, score_counts, score_labelled

RUN = ["method", "seed"]
CHANCES = np.array([[0.7, 0.1, 0.1, 0.05, 0.05], [0.1, 0.7, 0.1, 0.0, 0.1], [0.1, 0.1, 0.7, 0.1, 0.0]])


def predictions_of(random, n_cells, seeds=(0,)):
    """Cells of three classes, labelled by chance; class i is labelled j with the probability CHANCES[i, j]."""
    truth = np.arange(n_cells) % len(CHANCES)
    names = np.array(["class 0", "class 1", "class 2", "class 3", "Unknown"])
    tables = []
    for seed in seeds:
        labels = (random.random(n_cells)[:, None] > np.cumsum(CHANCES, axis=1)[truth]).sum(axis=1)
        found = {"method": "a", "seed": seed, "cell": range(n_cells), "class": names[truth]}
        tables.append(pd.DataFrame(found | {"predicted": names[labels]}))
    return pd.concat(tables, ignore_index=True)


def test_scores_are_those_of_scikit_learn():
    """Labels beyond the true classes and Unknown included, which counts as not found, or is left out."""
    table = predictions_of(np.random.default_rng(0), 300)
    is_unknown, classes = table["predicted"] == "Unknown", sorted(table["class"].unique())
    for score, own in ((score_counts, table), (score_labelled, table[~is_unknown])):
        found = resample(table, ["method"], 0, score=score)["a",].iloc[0]
        y_true, y_pred, labels = own["class"], own["predicted"], [*classes, "class 3"]
        recall, f1 = (part(y_true, y_pred, labels=classes, average=None) for part in (sk.recall_score, sk.f1_score))
        specificity = [sk.recall_score(y_true != name, y_pred != name) for name in classes]
        expected = {"weighted_accuracy": sk.accuracy_score(y_true, y_pred), "median_f1": np.median(f1)}
        expected["accuracy"] = expected["weighted_accuracy"]
        expected["balanced_accuracy"] = np.mean((recall + specificity) / 2)
        for name, average in (("macro_f1", "macro"), ("aggregated_f1", "micro")):
            expected[name] = sk.f1_score(y_true, y_pred, labels=labels, average=average)
        expected |= dict.fromkeys(("unknown_percent", "unlabelled_percent"), 100 * is_unknown.mean())
        assert found.to_dict() == pytest.approx({name: expected[name] for name in found.index})


def test_empty_and_rejected_cells():
    """No cells have no score; cells that are all Unknown have none either, but are counted."""
    assert all(np.isnan(value) for value in score_counts(np.zeros((2, 3))).values())
    found = score_labelled([[0, 0, 3], [0, 0, 4]])
    assert np.isnan(found["accuracy"]) and np.isnan(found["macro_f1"]) and found["unlabelled_percent"] == 100


@pytest.mark.parametrize("n_seeds", [1, 3])
def test_intervals_cover_the_truth(n_seeds):
    """Of 300 samples of 200 cells, about 95 % have the truth, 0.7, in their interval."""
    random, covered = np.random.default_rng(5), 0
    for number in range(300):
        table = pd.concat([predictions_of(random, 200)] * n_seeds)  # all seeds agree
        table["seed"] = np.repeat(range(n_seeds), 200)
        found = intervals(mean_over_seeds(resample(table, RUN, 200, seed=number)), ["method"]).iloc[0]
        covered += found["weighted_accuracy_low"] <= 0.7 <= found["weighted_accuracy_high"]
    assert 0.91 < covered / 300 < 0.98


def test_runs_are_paired(monkeypatch):
    """A method differs from itself by nothing, and others do not change it; many cells are drawn block by block."""
    first = predictions_of(np.random.default_rng(1), 90, seeds=(0, 1))
    drawn = mean_over_seeds(resample(pd.concat([first, first.assign(method="b")]), RUN, 100))
    found = differences({("b",): (drawn["a",], drawn["b",])}, ["method"], ["median_f1"])
    assert found.to_dict("records") == [{"method": "b", "score": "median_f1", "difference": 0, "low": 0, "high": 0}]
    pd.testing.assert_frame_equal(mean_over_seeds(resample(first, RUN, 100))["a",], drawn["a",])
    monkeypatch.setattr("sims_kit.studies.resampling.BLOCK", 300)
    pd.testing.assert_frame_equal(mean_over_seeds(resample(first, RUN, 100))["a",], drawn["a",])

"""Scores by counting equal those of `metrics`; intervals cover the truth; draws are paired."""

import numpy as np
import pandas as pd
import pytest

from sims_kit import metrics
from sims_kit.studies.resampling import difference, intervals, mean_over_seeds, resample, score_counts, score_labelled


def predictions_of(random, n_cells, chances, seeds=(0,), method="a"):
    """Cells of three classes, labelled by chance; class i is labelled j with the probability chances[i, j]."""
    truth = np.arange(n_cells) % len(chances)
    names = np.array([f"class {i}" for i in range(chances.shape[1] - 1)] + ["Unknown"])
    tables = []
    for seed in seeds:
        labels = (random.random(n_cells)[:, None] > np.cumsum(chances, axis=1)[truth]).sum(axis=1)
        found = {"method": method, "seed": seed, "cell": range(n_cells), "class": names[truth]}
        tables.append(pd.DataFrame(found | {"predicted": names[labels]}))
    return pd.concat(tables, ignore_index=True)


CHANCES = np.array([[0.7, 0.1, 0.1, 0.05, 0.05], [0.1, 0.7, 0.1, 0.0, 0.1], [0.1, 0.1, 0.7, 0.1, 0.0]])


def test_scores_are_those_of_metrics():
    """Labels beyond the true classes and Unknown included, where it counts as not found."""
    table = predictions_of(np.random.default_rng(0), 300, CHANCES)
    (found,) = resample(table, ["method"], 0).values()
    expected = metrics.score(table["class"], table["predicted"])
    names = {"balanced_accuracy": "balanced_accuracy", "weighted_accuracy": "accuracy_weighted"}
    names |= {"median_f1": "median_f1"}
    for ours, theirs in names.items():
        assert found[ours][0] == pytest.approx(expected[theirs], abs=1e-6)
    assert found["unknown_percent"][0] == pytest.approx(100 * (table["predicted"] == "Unknown").mean())
    (found,) = resample(table, ["method"], 0, score=score_labelled).values()
    labelled = table[table["predicted"] != "Unknown"]
    expected = metrics.score(labelled["class"], labelled["predicted"])
    names = {"accuracy": "accuracy_micro", "macro_f1": "f1_macro", "median_f1": "median_f1"}
    for ours, theirs in names.items():
        assert found[ours][0] == pytest.approx(expected[theirs], abs=1e-6)


def test_empty_and_rejected_cells():
    """No cells have no score; cells that are all Unknown have none either, but are counted."""
    assert all(np.isnan(value) for value in score_counts(np.zeros((2, 3))).values())
    found = score_labelled([[0, 0, 3], [0, 0, 4]])
    assert np.isnan(found["accuracy"]) and found["unlabelled_percent"] == 100


@pytest.mark.parametrize("n_seeds", [1, 3])
def test_intervals_cover_the_truth(n_seeds):
    """Of 300 samples of 200 cells, about 95 % have the truth, 0.7, in their interval."""
    random, covered = np.random.default_rng(5), 0
    for number in range(300):
        table = pd.concat([predictions_of(random, 200, CHANCES)] * n_seeds)  # all seeds agree
        table["seed"] = np.repeat(range(n_seeds), 200)
        drawn = mean_over_seeds(resample(table, ["method", "seed"], 200, seed=number))
        found = intervals(drawn["a",])
        covered += found["weighted_accuracy_low"] <= 0.7 <= found["weighted_accuracy_high"]
    assert 0.91 < covered / 300 < 0.98


def test_runs_are_paired():
    """A method against itself differs by nothing; the same for the mean over seeds; blocks change nothing."""
    random = np.random.default_rng(1)
    first = predictions_of(random, 90, CHANCES, seeds=(0, 1))
    table = pd.concat([first, first.assign(method="b")])
    drawn = mean_over_seeds(resample(table, ["method", "seed"], 100))
    found = difference(drawn["a",]["median_f1"], drawn["b",]["median_f1"])
    assert found == {"difference": 0, "low": 0, "high": 0}
    alone = mean_over_seeds(resample(first, ["method", "seed"], 100))
    np.testing.assert_array_equal(alone["a",]["median_f1"], drawn["a",]["median_f1"])


def test_draws_in_blocks(monkeypatch):
    """Many cells are drawn block by block, with the same numbers."""
    table = predictions_of(np.random.default_rng(1), 90, CHANCES)
    whole = resample(table, ["method"], 50)["a",]
    monkeypatch.setattr("sims_kit.studies.resampling.BLOCK", 300)
    blocks = resample(table, ["method"], 50)["a",]
    np.testing.assert_array_equal(whole["median_f1"], blocks["median_f1"])

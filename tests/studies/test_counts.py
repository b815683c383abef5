"""Scores of counted predictions: the same as those of the labels."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score

from sims_kit import metrics
from sims_kit.studies.counts import called_classes, percent_called, score_counts, with_intervals


def table(truth, called):
    """Counts of true against called classes."""
    rows, columns = called_classes(truth, called)
    return pd.crosstab(truth, called).reindex(index=rows, columns=columns, fill_value=0).to_numpy()


def test_scores_are_those_of_the_labels():
    """Each is what torchmetrics or scikit-learn give for the labels; calls of absent classes and Unknown included."""
    random = np.random.default_rng(0)
    for n_classes in (1, 2, 5):
        truth = random.choice(list("abcde")[:n_classes], 80)
        called = np.where(random.random(80) < 0.5, truth, random.choice([*"abcdez", "Unknown"], 80))
        found, expected = score_counts(table(truth, called)), metrics.score(truth, called)
        assert found["balanced_accuracy"] == pytest.approx(expected["balanced_accuracy"], abs=1e-6)
        assert found["weighted_accuracy"] == pytest.approx(expected["accuracy_weighted"], abs=1e-6)
        assert found["median_f1"] == pytest.approx(expected["median_f1"], abs=1e-6)
        pooled = f1_score(truth, called, labels=[*"abcdez"], average="micro")
        assert found["aggregated_f1"] == pytest.approx(pooled)
        assert found["unknown_percent"] == pytest.approx(100 * (called == "Unknown").mean())


def test_many_tables_at_once_are_one_by_one():
    """Leading dimensions are kept; classes without cells in one of the tables leave its averages."""
    random = np.random.default_rng(1)
    tables = random.integers(0, 4, size=(3, 2, 4, 6)) * (random.random((3, 2, 4, 1)) < 0.7)
    together = score_counts(tables)
    for place in np.ndindex(3, 2):
        for name, value in score_counts(tables[place]).items():
            np.testing.assert_allclose(together[name][place], value)


def test_no_cells_have_no_score():
    """NaN, not 0, and no warning."""
    values = score_counts(np.zeros((1, 2)))
    assert all(np.isnan(value) for value in values.values())
    assert np.isnan(with_intervals({"x": np.array([np.nan, np.nan])})["x_low"])


def test_intervals_are_the_middle_of_the_draws():
    """The value comes first, its draws after it."""
    found = with_intervals({"x": np.r_[7.0, np.arange(1001)]})
    assert found == {"x": 7.0, "x_low": 25.0, "x_high": 975.0}


def test_percent_called_is_a_mean_over_seeds():
    """Of the cells of a class; all calls of a class make 100."""
    calls = pd.DataFrame(
        {
            "class": list("aaabb"),
            "seed": [0, 0, 1, 0, 1],
            "called": list("xyyxx"),
            "n_cells": [1, 3, 4, 2, 2],
        }
    )
    found = percent_called(calls, ["class"])
    assert found.to_dict("list") == {
        "class": ["a", "a", "b"],
        "n_cells": [4, 4, 2],
        "called": ["y", "x", "x"],
        "percent": [87.5, 12.5, 100.0],
    }

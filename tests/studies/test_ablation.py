"""Ablation: the same test cells for every proportion, nested and stratified training cells, epochs."""

import numpy as np
import pandas as pd
import pytest

from sims_kit import SIMS, metrics, studies


@pytest.fixture
def cells(make_cells):
    """Three classes, the last of them rare: 12 cells of 252."""
    cells = make_cells(n_cells=360)
    rare = np.flatnonzero(cells.obs["cell_type"] == "class_2")[12:]
    return cells[np.setdiff1d(np.arange(360), rare)].copy()


def test_test_cells_are_fixed_and_training_cells_nested(cells, oracle):
    """All runs test the same cells; a smaller set is part of a larger one; no cell is in both parts."""
    options = dict(proportions=(1, 0.04, 0.3), methods=oracle, seeds=(0, 1), n_bootstrap=20)
    found = studies.ablation(cells, "cell_type", **options)
    asked = found.predictions.groupby(["proportion", "seed"])["cell"].agg(frozenset).unique()
    assert len(asked) == 1 and len(asked[0]) == pytest.approx(0.2 * cells.n_obs, abs=2)
    sets = [set(map(int, reference.obs_names)) for reference, *_ in oracle["oracle"].given]
    assert len(sets) == 6 and sets[0] < sets[1] < sets[2] and sets[3] < sets[4] < sets[5] and sets[0] != sets[3]
    assert sets[2] == sets[5] == set(range(cells.n_obs)) - asked[0]
    sizes = [cells[sorted(part)].obs["cell_type"].value_counts() for part in (sets[1], sets[2])]
    np.testing.assert_allclose(sizes[0] / sizes[1], 0.3, atol=0.06)
    assert list(found.scores["n_classes_raised"]) == [1, 0, 0]


def test_scores_and_losses_are_those_of_the_predictions(cells):
    """The mean over seeds of what the labels give; losses are differences to all cells, zero for themselves."""
    options = dict(proportions=(0.1, 1), methods=["linear SVM", "kNN on PCs"], seeds=(0, 1), n_bootstrap=50)
    found = studies.ablation(cells, "cell_type", **options)
    runs = found.runs.set_index(["method", "proportion", "seed"])["median_f1"]
    for key, table in found.predictions.groupby(runs.index.names):
        assert runs[key] == pytest.approx(metrics.score(table["class"], table["predicted"])["median_f1"], abs=1e-6)
    scores = found.scores.set_index(["method", "proportion"])["median_f1"]
    np.testing.assert_allclose(scores, runs.groupby(["method", "proportion"]).mean()[scores.index], atol=1e-12)
    assert found.scores["median_f1"].between(found.scores["median_f1_low"], found.scores["median_f1_high"]).all()
    wide = found.scores.pivot(index="method", columns="proportion", values="median_f1")
    losses = found.losses[found.losses["score"] == "median_f1"]
    losses = losses.pivot(index="method", columns="proportion", values="difference")
    np.testing.assert_allclose(losses, wide[[1.0]].to_numpy() - wide, atol=1e-12)
    whole = found.losses[found.losses["proportion"] == 1]
    assert (whole[["difference", "low", "high"]] == 0).all(axis=None)


def test_sims_logs_epochs_and_a_restart_runs_nothing(cells, oracle, tmp_path):
    """Epochs of SIMS beside a method that has none; read from disk they are the same."""
    methods = {"small SIMS": lambda seed: SIMS({"n_models": 1}, max_epochs=3, seed=seed), **oracle}
    options = dict(proportions=(0.2, 1), methods=methods, seeds=(0, 1), n_bootstrap=20, folder=tmp_path)
    first = studies.ablation(cells, "cell_type", **options)
    assert set(first.epochs["method"]) == {"small SIMS"} and first.epochs["val_loss"].notna().all()
    assert all(list(part) == [0, 1, 2] for _, part in first.epochs.groupby(["proportion", "seed"])["epoch"])
    last = first.epochs.groupby(["proportion", "seed"])["cpu_seconds"].last()
    fits = first.runs[first.runs["method"] == "small SIMS"].set_index(["proportion", "seed"])["fit_cpu_seconds"]
    pd.testing.assert_series_equal(last, fits.sort_index(), check_names=False)
    again = studies.ablation(cells, "cell_type", **options)
    assert len(oracle["oracle"].given) == 4
    for name, table in vars(first).items():
        pd.testing.assert_frame_equal(getattr(again, name), table)

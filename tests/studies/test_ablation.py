"""Ablation: the same test cells for every proportion, nested and stratified training cells, epochs, sizes."""

import numpy as np
import pandas as pd
import pytest

from sims_kit import SIMS, metrics, studies
from sims_kit.errors import DataError, LabelError, SettingError, UnknownNameError


@pytest.fixture
def cells(make_cells):
    """Three classes, the last of them rare: 12 cells of 252."""
    cells = make_cells(n_cells=360)
    rare = np.flatnonzero(cells.obs["cell_type"] == "class_2")[12:]
    return cells[np.setdiff1d(np.arange(360), rare)].copy()


def test_test_cells_are_fixed_and_training_cells_nested(cells, oracle):
    """All runs test the same cells; a smaller set is part of a larger one; no cell is in both parts."""
    options = dict(proportions=(1, 0.04, 0.3), methods=oracle, seeds=(0, 1), n_bootstrap=20)
    with pytest.warns(UserWarning, match=r"At proportion 0\.04, 1 of 3 classes are not stratified.*class_2"):
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
    rows = found.scores.set_index(["method", "proportion"])
    for key, table in found.predictions.groupby(["method", "proportion"]):
        by_seed = [metrics.score(part["class"], part["predicted"]) for _, part in table.groupby("seed")]
        row = rows.loc[key]
        assert row["median_f1"] == pytest.approx(np.mean([one["median_f1"] for one in by_seed]), abs=1e-6)
        assert row["weighted_accuracy"] == pytest.approx(np.mean([one["accuracy_micro"] for one in by_seed]), abs=1e-6)
        assert row["median_f1_low"] <= row["median_f1"] <= row["median_f1_high"]
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
    for name in ("scores", "losses", "runs", "epochs", "predictions"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(first, name))
    times = studies.convergence(first.epochs)
    assert len(times) == 4 and (times["epochs"] <= times["n_epochs"]).all()


@pytest.mark.parametrize(
    ("settings", "smallest"),
    [
        ({}, 100),
        ({"sure": True}, 300),
        ({"tolerance": 0.001}, 300),
        ({"tolerance": 0.5}, 10),
        ({"tolerance": -1}, 1000),
    ],
)
def test_smallest_size_within_a_tolerance(settings, smallest):
    """The smallest from which on no larger size loses more; a lucky small one does not count."""
    losses = pd.DataFrame({"method": "x", "proportion": [0.01, 0.03, 0.1, 0.3, 1.0], "score": "median_f1"})
    losses["n_training_cells"] = [10, 30, 100, 300, 1000]
    losses["difference"], losses["high"] = [0.01, 0.3, 0.02, -0.01, 0.0], [0.5, 0.5, 0.05, 0.02, 0.0]
    assert studies.smallest_within(losses, **settings)["n_training_cells"].item() == smallest
    with pytest.raises(UnknownNameError, match="macro_f1"):
        studies.smallest_within(losses, score="macro_f1")


def test_convergence_is_the_first_epoch_near_the_end():
    """The end is the mean of the last epochs; the first that is near counts, and seconds are those by then."""
    curve = [0.1, 0.5, 0.875, 0.5, *[0.9] * 10]
    epochs = pd.DataFrame({"method": "x", "proportion": 0.1, "seed": 0, "n_training_cells": 50, "epoch": range(14)})
    epochs = epochs.assign(val_accuracy_weighted=curve, cpu_seconds=np.arange(14) * 2.0)
    row = studies.convergence(epochs, 0.03).iloc[0]
    assert (row["epochs"], row["cpu_seconds"], row["n_epochs"], row["n_training_cells"]) == (3, 4.0, 14, 50)
    assert row["end"] == pytest.approx(0.9)
    assert studies.convergence(epochs, 0.01)["epochs"].item() == 5
    with pytest.raises(DataError, match="no epochs"):
        studies.convergence(epochs.iloc[:0])
    with pytest.raises(UnknownNameError, match="val_f1"):
        studies.convergence(epochs, score="val_f1")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"proportions": (0.1, 0.5)}, SettingError, "proportions="),
        ({"proportions": (0, 1)}, SettingError, "proportions="),
        ({"proportions": (1, 2)}, SettingError, "proportions="),
        ({"proportions": ()}, SettingError, "proportions="),
        ({"proportions": (0.001, 1)}, SettingError, r"0\.001 leaves one cell of each class.*Give 0\.016 or more"),
        ({"test": 0}, SettingError, "test=0"),
        ({"seeds": (0, 0)}, SettingError, "seeds"),
        ({"label": "celltype"}, UnknownNameError, "celltype"),
        ({"label": "one"}, LabelError, "1 class"),
        ({"methods": "linear SWM"}, UnknownNameError, "linear SVM"),
    ],
)
def test_what_cannot_be_done_is_told_first(cells, oracle, changes, error, message):
    """Nothing is trained."""
    cells.obs["one"] = "class_0"
    with pytest.raises(error, match=message):
        studies.ablation(**{"cells": cells, "label": "cell_type", "methods": oracle} | changes)
    assert not oracle["oracle"].given

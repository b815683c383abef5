"""Ablation: the same test cells for every proportion, nested and stratified training cells, epochs, sizes."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from sims_kit import metrics, studies
from sims_kit.errors import DataError, LabelError, SettingError, UnknownNameError
from sims_kit.model import RECIPES
from sims_kit.studies.peers import Sims


@pytest.fixture
def cells(make_cells):
    """Three classes, the last of them rare: 12 cells of 252."""
    cells = make_cells(n_cells=360)
    rare = np.flatnonzero(cells.obs["cell_type"] == "class_2")[12:]
    return cells[np.setdiff1d(np.arange(360), rare)].copy()


def test_test_cells_are_fixed_and_training_cells_nested(cells, oracle):
    """All runs are asked the same cells; a smaller set is part of a larger one; no cell is in both parts."""
    with pytest.warns(UserWarning, match=r"At proportion 0\.04, 1 of 3 classes are not stratified.*class_2"):
        found = studies.ablation(
            cells, "cell_type", proportions=(1, 0.04, 0.3), methods=oracle, seeds=(0, 1), n_bootstrap=20
        )
    asked = found.calls.groupby(["proportion", "seed"])["cell"].agg(frozenset).unique()
    assert len(asked) == 1 and len(asked[0]) == pytest.approx(0.2 * cells.n_obs, abs=2)
    sets = [set(map(int, reference.obs_names)) for reference, *_ in oracle.given]
    assert len(sets) == 6 and sets[0] < sets[1] < sets[2] and sets[3] < sets[4] < sets[5] and sets[0] != sets[3]
    assert sets[2] == sets[5] == set(range(cells.n_obs)) - asked[0]
    shares = (
        cells[sorted(sets[1])].obs["cell_type"].value_counts() / cells[sorted(sets[2])].obs["cell_type"].value_counts()
    )
    np.testing.assert_allclose(shares, 0.3, atol=0.06)
    assert list(found.scores["n_classes_raised"]) == [1, 0, 0]


def test_scores_and_losses_are_those_of_the_predictions(cells):
    """The mean over seeds of what the labels give; losses are differences to all cells, zero for themselves."""
    found = studies.ablation(
        cells, "cell_type", proportions=(0.1, 1), methods=["linear SVM", "kNN on PCs"], seeds=(0, 1), n_bootstrap=50
    )
    for key, calls in found.calls.groupby(["method", "proportion"]):
        by_seed = [metrics.score(part["class"], part["called"]) for _, part in calls.groupby("seed")]
        row = found.scores.set_index(["method", "proportion"]).loc[key]
        assert row["median_f1"] == pytest.approx(np.mean([one["median_f1"] for one in by_seed]), abs=1e-6)
        assert row["weighted_accuracy"] == pytest.approx(np.mean([one["accuracy_micro"] for one in by_seed]), abs=1e-6)
        assert row["median_f1_low"] <= row["median_f1"] <= row["median_f1_high"]
    wide = found.scores.pivot(index="method", columns="proportion", values="median_f1")
    losses = found.losses[found.losses["score"] == "median_f1"].pivot(
        index="method", columns="proportion", values="difference"
    )
    np.testing.assert_allclose(losses, wide[[1.0]].to_numpy() - wide, atol=1e-12)
    whole = found.losses[found.losses["proportion"] == 1]
    assert (whole[["difference", "low", "high"]] == 0).all(axis=None)


def test_sims_logs_epochs_and_a_restart_runs_nothing(cells, oracle, tmp_path):
    """Epochs of SIMS beside a method that has none; read from disk they are the same."""
    small = replace(RECIPES["default"], training_steps=20, network={**RECIPES["default"].network, "n_models": 1})
    options = dict(proportions=(0.2, 1), methods=[Sims("small SIMS", small), oracle], seeds=(0, 1), n_bootstrap=20)
    first = studies.ablation(cells, "cell_type", folder=tmp_path, **options)
    assert set(first.epochs["method"]) == {"small SIMS"} and first.epochs["val_loss"].notna().all()
    lengths = first.epochs.groupby(["proportion", "seed"])["epoch"].agg(["min", "max", "size"])
    assert (lengths["min"] == 0).all() and (lengths["max"] + 1 == lengths["size"]).all()
    last = first.epochs.groupby(["proportion", "seed"])["cpu_seconds"].last()
    fits = first.runs[first.runs["method"] == "small SIMS"].set_index(["proportion", "seed"])["fit_cpu_seconds"]
    pd.testing.assert_series_equal(last, fits.sort_index(), check_names=False)
    n_runs = len(oracle.given)
    again = studies.ablation(cells, "cell_type", folder=tmp_path, **options)
    assert len(oracle.given) == n_runs == 4
    for name in ("scores", "losses", "runs", "epochs", "calls"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(first, name))
    times = studies.convergence(first.epochs)
    assert len(times) == 4 and (times["epochs"] <= times["n_epochs"]).all()


def test_smallest_size_within_a_tolerance():
    """The smallest from which on no larger size loses more; a lucky small one does not count."""
    losses = pd.DataFrame(
        {
            "method": "x",
            "proportion": [0.01, 0.03, 0.1, 0.3, 1.0],
            "n_training_cells": [10, 30, 100, 300, 1000],
            "score": "median_f1",
            "difference": [0.01, 0.3, 0.02, -0.01, 0.0],
            "high": [0.5, 0.5, 0.05, 0.02, 0.0],
        }
    )
    assert studies.smallest_within(losses)["n_training_cells"].item() == 100
    assert studies.smallest_within(losses, sure=True)["n_training_cells"].item() == 300
    assert studies.smallest_within(losses, 0.001)["n_training_cells"].item() == 300
    assert studies.smallest_within(losses, 0.5)["n_training_cells"].item() == 10
    assert studies.smallest_within(losses, -1)["n_training_cells"].item() == 1000
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


def test_what_cannot_be_done_is_told_first(cells, oracle):
    """Nothing is trained."""
    run = lambda **changes: studies.ablation(  # noqa: E731
        **{"cells": cells, "label": "cell_type", "methods": oracle} | changes
    )
    for proportions in ((0.1, 0.5), (0, 1), (1, 2), ()):
        with pytest.raises(SettingError, match="proportions="):
            run(proportions=proportions)
    with pytest.raises(SettingError, match=r"0\.001 leaves one cell of each class.*Give 0\.016 or more"):
        run(proportions=(0.001, 1))
    with pytest.raises(SettingError, match="test=0"):
        run(test=0)
    with pytest.raises(LabelError, match="one class"):
        run(cells=cells[cells.obs["cell_type"] == "class_0"])
    with pytest.raises(UnknownNameError, match="celltype"):
        run(label="celltype")
    with pytest.raises(UnknownNameError, match="linear SVM"):
        run(methods="linear SWM")
    assert not oracle.given

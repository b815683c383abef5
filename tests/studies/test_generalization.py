"""Generalization: every target is scored, what cannot be found is counted, and a restart runs nothing."""

from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import sims_kit as sk
from sims_kit import metrics, studies
from sims_kit.errors import LabelError, SettingError, UnknownNameError
from sims_kit.model import RECIPES
from sims_kit.studies import make_peer
from sims_kit.studies.counts import score_counts, with_intervals
from sims_kit.studies.generalization import _mean_over_seeds, _resampled
from sims_kit.studies.peers import Sims

SCORES = ("balanced_accuracy", "weighted_accuracy", "aggregated_f1", "median_f1")


@pytest.fixture
def cells(make_cells):
    """Three donors, named by numbers with zeros in front; class_2 is missing from the first."""
    cells = make_cells(n_cells=180)
    cells.obs["donor"] = [f"0{i % 3}" for i in range(180)]
    return cells[~((cells.obs["donor"] == "00") & (cells.obs["cell_type"] == "class_2"))].copy()


def test_each_group_trains_and_the_others_are_targets(cells, oracle):
    """Training cells are those of one group, less the held-out ones; nothing but the group is told of them."""
    before = cells.copy()
    found = studies.generalization(cells, "cell_type", by="donor", methods=oracle, seeds=(0, 1), n_bootstrap=50)
    away = found.scores[~found.scores["in_distribution"]]
    assert list(away["trained_on"] + away["target"]) == ["0001", "0002", "0100", "0102", "0200", "0201"]
    assert len(found.runs) == 2 * len(found.scores) == 18 and found.scores["n_seeds"].eq(2).all()
    for reference, sample, _ in oracle.given:
        assert sample is None and reference.obs["sample"].nunique() == 1
        held_out = (cells.obs["donor"] == reference.obs["sample"].iloc[0]).sum() - reference.n_obs
        assert 0.1 < held_out / reference.n_obs < 0.35
    assert [seed for *_, seed in oracle.given] == [0, 0, 0, 1, 1, 1]
    pd.testing.assert_frame_equal(before.obs, cells.obs)
    assert (before.X != cells.X).nnz == 0


def test_scores_are_those_of_the_predictions(cells):
    """By hand: train, predict, and score the cells whose class was in training; the rest is where it was put."""
    found = studies.generalization(
        cells, "cell_type", by="donor", which="00", methods="linear SVM", seeds=3, n_bootstrap=50
    )
    home = cells[cells.obs["donor"] == "00"]
    split = sk.stratified_split(home.obs["cell_type"], 0, 0.2, 3)
    peer = make_peer("linear SVM")
    peer.fit(home[split.train].copy(), "cell_type", seed=3)
    target = cells[cells.obs["donor"] == "01"].copy()
    called, truth = peer.predict(target).labels, target.obs["cell_type"].to_numpy()
    seen = truth != "class_2"
    expected = metrics.score(truth[seen], called[seen])
    row = found.scores.set_index("target").loc["01"]
    for score, name in zip(SCORES, ("balanced_accuracy", "accuracy_weighted", "f1_micro", "median_f1"), strict=True):
        assert row[score] == pytest.approx(expected[name], abs=1e-6)
        assert row[f"{score}_low"] <= row[score] <= row[f"{score}_high"]
    assert row["n_cells"] == len(truth) and row["n_unseen_cells"] == (~seen).sum() > 0
    assert row["unseen_classes"] == "class_2"
    assert row["weighted_accuracy_of_all"] == pytest.approx((called == truth).mean())
    went = found.unseen[found.unseen["target"] == "01"]
    shares = pd.Series(called[~seen]).value_counts(normalize=True) * 100
    assert dict(zip(went["called"], went["percent"], strict=True)) == pytest.approx(shares.to_dict())
    (drop,) = found.drops.query("target == '01' and score == 'median_f1'")["difference"]
    assert drop == pytest.approx(found.scores.set_index("target").loc["00", "median_f1"] - row["median_f1"])


def test_leave_one_out_trains_on_all_others(cells, oracle):
    """The reference has the groups as samples, for methods that correct for them."""
    found = studies.generalization(
        cells, "cell_type", by="donor", methods=oracle, seeds=0, leave_one_out=True, n_bootstrap=20
    )
    away = found.scores[~found.scores["in_distribution"]]
    assert list(away["trained_on"]) == ["all but 00", "all but 01", "all but 02"]
    assert list(away["target"]) == ["00", "01", "02"] and away["n_unseen_cells"].eq(0).all()
    for left_out, (reference, sample, _) in zip(away["target"], oracle.given, strict=True):
        assert set(reference.obs[sample]) == {"00", "01", "02"} - {left_out}


def test_groups_of_different_genes_are_joined_on_common_ones(cells, oracle):
    """A mapping of names to AnnData is the same as a column, and gene sets may differ."""
    parts = {name: cells[cells.obs["donor"] == name] for name in ("00", "01", "02")}
    options = dict(methods=oracle, seeds=0, leave_one_out=True, n_bootstrap=20)
    whole = studies.generalization(cells, "cell_type", by="donor", **options)
    pd.testing.assert_frame_equal(
        studies.generalization(parts, "cell_type", **options).calls.drop(columns="fit_cpu_seconds"),
        whole.calls.drop(columns="fit_cpu_seconds"),
    )
    oracle.given.clear()
    parts["01"] = parts["01"][:, 5:]
    studies.generalization(parts, "cell_type", which="02", **(options | {"methods": "linear SVM"}))
    studies.generalization(parts, "cell_type", which="01", **(options | {"methods": "linear SVM"}))


def test_a_restart_runs_nothing_and_gives_the_same(cells, oracle, tmp_path):
    """Names that look like numbers stay as they are when tables are read; other held-out cells are another run."""
    options = dict(by="donor", methods=[oracle], seeds=(0, 1), folder=tmp_path, n_bootstrap=20)
    first = studies.generalization(cells, "cell_type", **options)
    assert len(oracle.given) == 6
    again = studies.generalization(cells, "cell_type", **options)
    assert len(oracle.given) == 6
    for name in ("scores", "drops", "unseen", "runs", "calls"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(first, name))
    assert set(again.scores["target"]) == {"00", "01", "02"}
    studies.generalization(cells, "cell_type", **options | {"held_out": 0.3, "seeds": 0, "which": "00"})
    assert len(oracle.given) == 7


def test_no_class_in_common_is_no_score(make_cells, oracle):
    """All cells are unseen: scores are NaN, and the cells are still counted."""
    cells = make_cells(n_cells=80, n_classes=4)
    cells.obs["region"] = np.where(cells.obs["cell_type"].isin(["class_0", "class_1"]), "east", "west")
    found = studies.generalization(cells, "cell_type", by="region", which="east", methods=oracle, n_bootstrap=20)
    row = found.scores.set_index("target").loc["west"]
    assert np.isnan(row["median_f1"]) and np.isnan(row["median_f1_low"])
    assert row["unseen_percent"] == 100 and row["weighted_accuracy_of_all"] == 0
    assert found.unseen.groupby("class")["percent"].sum().to_list() == pytest.approx([100, 100])


def test_sims_is_a_method(cells):
    """SIMS learns on one donor and is right on another."""
    small = replace(RECIPES["default"], training_steps=40, network={**RECIPES["default"].network, "n_models": 1})
    found = studies.generalization(
        cells, "cell_type", by="donor", which="01", methods=Sims("small SIMS", small), seeds=0, n_bootstrap=20
    )
    assert found.scores["weighted_accuracy"].min() > 0.6


def test_what_cannot_be_done_is_told_first(cells, oracle):
    """Columns, groups and settings that do not exist, one group, one class; nothing is trained."""
    run = lambda **changes: studies.generalization(  # noqa: E731
        **{"cells": cells, "label": "cell_type", "by": "donor", "methods": oracle} | changes
    )
    with pytest.raises(UnknownNameError, match="donro"):
        run(by="donro")
    with pytest.raises(UnknownNameError, match="group '07'"):
        run(which="07")
    with pytest.raises(SettingError, match="name the obs column"):
        run(by=None)
    with pytest.raises(SettingError, match="held_out=1"):
        run(held_out=1)
    with pytest.raises(SettingError, match="seeds"):
        run(seeds=(0, 0))
    with pytest.raises(SettingError, match="names of their own"):
        run(methods=[oracle, oracle])
    with pytest.raises(SettingError, match="1 group"):
        run(cells=cells[cells.obs["donor"] == "00"])
    with pytest.raises(LabelError, match=r"00: training needs two classes"):
        run(cells=cells[(cells.obs["donor"] != "00") | (cells.obs["cell_type"] == "class_0")])
    unknown = cells.copy()
    unknown.obs["cell_type"] = unknown.obs["cell_type"].replace("class_0", "Unknown")
    with pytest.raises(LabelError, match='labelled "Unknown"'):
        run(cells=unknown)
    scaled = ad.AnnData(cells.X.toarray() - 1, obs=cells.obs, var=cells.var)
    with pytest.raises(SettingError, match="different states"):
        counts = {"a": cells, "b": cells, "c": ad.AnnData(np.log1p(scaled.X + 1.5), obs=cells.obs, var=cells.var)}
        run(cells=counts, by=None, leave_one_out=True)
    assert not oracle.given


def test_cells_without_label_or_group_are_told(cells, oracle):
    """They are left out with a warning, of each kind."""
    cells.obs.loc[cells.obs_names[:7], "donor"] = None
    cells.obs.loc[cells.obs_names[7:12], "cell_type"] = None
    with pytest.warns(UserWarning, match="left out") as told:
        found = studies.generalization(cells, "cell_type", by="donor", methods=oracle, seeds=0, n_bootstrap=20)
    messages = [str(warning.message) for warning in told]
    assert any("have no 'donor'" in message for message in messages)
    assert any("have no 'cell_type'" in message for message in messages)
    targets = found.scores[~found.scores["in_distribution"]].drop_duplicates("target")
    assert targets["n_cells"].sum() == cells.n_obs - 12


def test_intervals_cover_the_truth():
    """Of 300 samples of 200 cells, about 95 % have the truth in their interval, with one seed or three alike."""
    chances = np.array([[0.7, 0.2, 0.1, 0], [0.1, 0.8, 0.1, 0], [0.2, 0.2, 0.6, 0]]) / 3
    random, covered = np.random.default_rng(5), {1: 0, 3: 0}
    for number in range(300):
        counts = random.multinomial(200, chances.ravel()).reshape(1, 3, 4)
        for n_seeds in covered:
            drawn = score_counts(_resampled(counts.repeat(n_seeds, axis=0), 200, number))["weighted_accuracy"]
            found = with_intervals({"accuracy": _mean_over_seeds(drawn, "weighted_accuracy")})
            covered[n_seeds] += found["accuracy_low"] <= 0.7 <= found["accuracy_high"]
    assert all(0.91 < n / 300 < 0.98 for n in covered.values()), covered

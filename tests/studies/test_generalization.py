"""Generalization: every target is scored, what cannot be found is counted, and a restart runs nothing."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import sims_kit as sk
from sims_kit import metrics, studies
from sims_kit.errors import LabelError, SettingError, UnknownNameError

SCORES = {"balanced_accuracy": "balanced_accuracy", "weighted_accuracy": "accuracy_weighted", "median_f1": "median_f1"}


@pytest.fixture
def cells(make_cells):
    """Three donors, named by numbers with zeros in front; class_2 is missing from the first."""
    cells = make_cells(n_cells=180)
    cells.obs["donor"] = [f"0{i % 3}" for i in range(180)]
    return cells[~((cells.obs["donor"] == "00") & (cells.obs["cell_type"] == "class_2"))].copy()


def test_each_group_trains_and_the_others_are_targets(cells, oracle):
    """Training cells are those of one group, less the held-out ones."""
    before = cells.copy()
    found = studies.generalization(cells, "cell_type", by="donor", methods=oracle, seeds=(0, 1), n_bootstrap=50)
    others = found.scores[~found.scores["in_distribution"]]
    assert list(others["trained_on"] + others["target"]) == ["0001", "0002", "0100", "0102", "0200", "0201"]
    assert len(found.scores) == 9 and found.scores["n_seeds"].eq(2).all()
    for reference, *_ in oracle["oracle"].given:
        held_out = (cells.obs["donor"] == reference.obs["sample"].unique().item()).sum() - reference.n_obs
        assert 0.1 < held_out / reference.n_obs < 0.35
    assert [seed for *_, seed in oracle["oracle"].given] == [0, 0, 0, 1, 1, 1]
    pd.testing.assert_frame_equal(before.obs, cells.obs)


def test_scores_are_those_of_the_predictions(cells):
    """By hand: train, predict, and score the cells whose class was in training; the rest is where it was put."""
    options = dict(by="donor", which="00", methods="linear SVM", seeds=3, n_bootstrap=50)
    found = studies.generalization(cells, "cell_type", **options)
    source = cells[cells.obs["donor"] == "00"]
    split = sk.stratified_split(source.obs["cell_type"], 0, 0.2, 3)
    training = source[split.train].copy()
    svm = studies.METHODS["linear SVM"](3).fit(training, training.obs["cell_type"])
    target = cells[cells.obs["donor"] == "01"].copy()
    predicted, truth = svm.predict(target), target.obs["cell_type"].to_numpy(str)
    seen = truth != "class_2"
    expected, row = metrics.score(truth[seen], predicted[seen]), found.scores.set_index("target").loc["01"]
    for score, name in SCORES.items():
        assert row[score] == pytest.approx(expected[name], abs=1e-6)
        assert row[f"{score}_low"] <= row[score] <= row[f"{score}_high"]
    assert row["n_cells"] == len(truth) and row["n_unseen_cells"] == (~seen).sum() > 0
    assert row["unseen_classes"] == "class_2"
    assert row["weighted_accuracy_of_all"] == pytest.approx((predicted == truth).mean())
    went = found.unseen[found.unseen["target"] == "01"]
    shares = pd.Series(predicted[~seen]).value_counts(normalize=True) * 100
    assert dict(zip(went["predicted"], went["percent"], strict=True)) == pytest.approx(shares.to_dict())
    (drop,) = found.drops.query("target == '01' and score == 'median_f1'")["difference"]
    assert drop == pytest.approx(found.scores.set_index("target").loc["00", "median_f1"] - row["median_f1"])


def test_leave_one_out_and_groups_of_different_genes(cells, oracle):
    """A mapping of names to AnnData is the same as a column; gene sets may differ."""
    parts = {name: cells[cells.obs["donor"] == name] for name in ("00", "01", "02")}
    options = dict(methods=oracle, seeds=0, leave_one_out=True, n_bootstrap=20)
    found = studies.generalization(cells, "cell_type", by="donor", **options)
    again = studies.generalization(parts, "cell_type", **options)
    pd.testing.assert_frame_equal(again.predictions, found.predictions)
    others = found.scores[~found.scores["in_distribution"]]
    assert list(others["trained_on"]) == ["all but 00", "all but 01", "all but 02"]
    assert others["n_unseen_cells"].eq(0).all()
    for left_out, (reference, *_) in zip(others["target"], oracle["oracle"].given, strict=False):
        assert set(reference.obs["sample"]) == {"00", "01", "02"} - {left_out}
    parts["01"] = parts["01"][:, 5:]
    for which in ("01", "02"):
        studies.generalization(parts, "cell_type", which=which, **options | {"methods": "linear SVM"})


def test_no_class_in_common_is_no_score(make_cells, oracle):
    """All cells are unseen: scores are NaN, and the cells are still counted."""
    cells = make_cells(n_cells=80, n_classes=4)
    cells.obs["region"] = np.where(cells.obs["cell_type"].isin(["class_0", "class_1"]), "east", "west")
    found = studies.generalization(cells, "cell_type", by="region", which="east", methods=oracle, n_bootstrap=20)
    row = found.scores.set_index("target").loc["west"]
    assert np.isnan(row["median_f1"]) and np.isnan(row["median_f1_low"])
    assert row["unseen_percent"] == 100 and row["weighted_accuracy_of_all"] == 0
    assert found.unseen.groupby("class")["percent"].sum().to_list() == pytest.approx([100, 100])


STUDIES = {
    studies.ablation: ["cells", "label", "methods"],
    studies.generalization: ["cells", "label", "methods", "by"],
    studies.inference: ["primary", "culture", "label", "sample", "recipe"],
}


@pytest.mark.parametrize(
    ("study", "changes", "error", "message"),
    [
        *((studies.ablation, {"proportions": some}, SettingError, "proportions=") for some in ((0.1, 0.5), (0, 1), ())),
        (studies.ablation, {"seeds": (0, 0)}, SettingError, "seeds"),
        (studies.ablation, {"label": "celltype"}, UnknownNameError, "cell_type"),
        (studies.ablation, {"methods": "linear SWM"}, UnknownNameError, "linear SVM"),
        (studies.generalization, {"by": "donro"}, UnknownNameError, "donor"),
        (studies.generalization, {"which": "07"}, UnknownNameError, "group '07'"),
        (studies.generalization, {"by": None}, SettingError, "name the obs column"),
        (studies.generalization, {"by": "one"}, SettingError, "1 group"),
        (studies.generalization, {"label": "poor"}, LabelError, "'00'.: training needs two classes"),
        (studies.generalization, {"label": "unknown"}, LabelError, 'labelled "Unknown"'),
        (studies.generalization, dict(cells="parts", by=None, leave_one_out=True), SettingError, "different states"),
        (studies.inference, {"label": None}, SettingError, "Which obs column"),
        (studies.inference, {"label": "celltype"}, UnknownNameError, "cell_type"),
        (studies.inference, {"sample": "doner"}, UnknownNameError, "donor"),
    ],
)
def test_what_cannot_be_done_is_told_first(cells, oracle, study, changes, error, message):
    """Columns, groups and settings that do not exist, one group, one class; nothing is trained."""
    cells.obs["one"] = "all"
    cells.obs["poor"] = cells.obs["cell_type"].where(cells.obs["donor"] != "00", "class_0")
    cells.obs["unknown"] = cells.obs["cell_type"].replace("class_0", "Unknown")
    logs = AnnData(np.log1p(cells.X), cells.obs, cells.var)  # does not mean the same as counts
    given = dict(cells=cells, label="cell_type", methods=oracle, by="donor", primary=cells, culture=cells)
    given |= dict(sample="donor", recipe="none is trained", parts={"a": cells, "b": cells, "c": logs})
    changes = {name: given["parts"] if value == "parts" else value for name, value in changes.items()}
    with pytest.raises(error, match=message):
        study(**{name: given[name] for name in STUDIES[study]} | changes)
    assert not oracle["oracle"].given


def test_cells_without_label_or_group_are_told(cells, oracle):
    """They are left out with a warning, of each kind."""
    cells.obs.loc[cells.obs_names[:7], "donor"] = None
    cells.obs.loc[cells.obs_names[7:12], "cell_type"] = None
    with pytest.warns(UserWarning, match="left out") as caught:
        found = studies.generalization(cells, "cell_type", by="donor", methods=oracle, seeds=0, n_bootstrap=20)
    messages = " ".join(str(warning.message) for warning in caught)
    assert "have no 'donor'" in messages and "have no 'cell_type'" in messages
    targets = found.scores[~found.scores["in_distribution"]].drop_duplicates("target")
    assert targets["n_cells"].sum() == cells.n_obs - 12

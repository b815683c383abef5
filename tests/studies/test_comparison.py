"""Comparison: the folds of scikit-learn, scores of the pooled predictions, and runs that survive damage."""

import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import GroupKFold, StratifiedKFold, cross_val_predict

from sims_kit import metrics, studies
from sims_kit.errors import UnknownNameError

LABELLED_SCORES = ("accuracy", "macro_f1", "median_f1", "unlabelled_percent")


@pytest.fixture
def cells(make_cells):
    """Three classes that overlap; four donors."""
    cells = make_cells(n_cells=120, n_genes=12)
    cells.obs["donor"] = [f"0{i % 4}" for i in range(120)]
    return cells


@pytest.mark.parametrize("by_donor", [False, True])
def test_predictions_are_those_of_scikit_learn(cells, by_donor):
    """The same as `cross_val_predict`, stratified or by groups."""
    groups = cells.obs["donor"].to_numpy() if by_donor else None
    methods = ["linear SVM", "logistic regression"]
    found = studies.compare(methods, cells, "cell_type", groups=groups, cv=4, n_bootstrap=50)
    cv = GroupKFold(4) if by_donor else StratifiedKFold(4, shuffle=True, random_state=0)
    y = cells.obs["cell_type"].to_numpy(str)
    for name in methods:
        expected = cross_val_predict(studies.METHODS[name](0), cells, y, groups=groups, cv=cv)
        table = found.predictions[found.predictions["method"] == name].sort_values("cell")
        assert list(table["predicted"]) == list(expected) and list(table["class"]) == list(y)
        scores, row = metrics.score(y, expected), found.scores.set_index("method").loc[name]
        assert row["accuracy"] == pytest.approx(scores["accuracy_micro"], abs=1e-6)
        assert row["macro_f1"] == pytest.approx(scores["f1_macro"], abs=1e-6)
        assert row["accuracy_low"] < row["accuracy"] < row["accuracy_high"]
    lacking = found.predictions.groupby("method")["confidence"].apply(lambda own: own.isna().all())
    assert lacking.to_dict() == {"linear SVM": True, "logistic regression": False}
    first, second = (found.scores.set_index("method").loc[name] for name in methods)
    differences = found.differences.set_index("score")
    assert set(differences["method"]) == {"logistic regression"} and list(differences.index) == list(LABELLED_SCORES)
    assert differences.loc["accuracy", "difference"] == pytest.approx(first["accuracy"] - second["accuracy"])


def test_arrays_and_missing_labels(cells, oracle):
    """Arrays do as well as AnnData; cells without a label are left out and keep their position."""
    y = cells.obs["cell_type"].to_numpy(dtype=object)
    y[[3, 50]] = None
    with pytest.warns(UserWarning, match=r"2 of 120 cells have no"):
        found = studies.compare("linear SVM", cells.X, y, cv=3, n_bootstrap=5)
    assert set(found.predictions["cell"]) == set(range(120)) - {3, 50}
    assert (found.predictions["class"] == y[found.predictions["cell"]]).all()
    with pytest.raises(UnknownNameError, match="cell_type"):
        studies.compare(oracle, cells, "celltype")


@pytest.mark.parametrize("damage", ["cut", "zeroed", "page", "empty", "bit"])
def test_a_damaged_run_is_done_again(cells, oracle, tmp_path, caplog, damage):
    """A file that was cut, zeroed, replaced by a web page, emptied or changed never drops out of the means."""
    options = dict(cv=3, n_bootstrap=20, folder=tmp_path)
    first = studies.compare(oracle, cells, "cell_type", **options)
    path = sorted(tmp_path.rglob("output.pkl"))[1]
    content = path.read_bytes()
    half = len(content) // 2
    damaged = {"cut": content[:half], "zeroed": content[:half] + bytes(half), "page": b"<html>" * 50, "empty": b""}
    damaged["bit"] = content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]
    path.write_bytes(damaged[damage])
    again = studies.compare(oracle, cells, "cell_type", **options)
    assert len(oracle["oracle"].given) == 4 and "Exception while loading" in caplog.text
    pd.testing.assert_frame_equal(again.predictions, first.predictions)
    studies.compare(oracle, cells, "cell_type", **options)
    assert len(oracle["oracle"].given) == 4


def test_other_settings_are_other_runs(cells, oracle, tmp_path):
    """Other cells, folds or settings of a method are run; two processes give what one gives."""
    options = dict(n_bootstrap=20, folder=tmp_path)
    studies.compare(oracle, cells, "cell_type", cv=3, **options)
    changed = cells.copy()
    changed.X.data[0] += 1
    for data, cv, n_runs in ((cells, 4, 7), (changed, 3, 10), (cells, 3, 10)):
        studies.compare(oracle, data, "cell_type", cv=cv, **options)
        assert len(oracle["oracle"].given) == n_runs
    one = studies.compare("linear SVM", cells, "cell_type", cv=3, n_bootstrap=9)
    two = studies.compare("linear SVM", cells, "cell_type", cv=3, n_bootstrap=9, n_jobs=2, folder=tmp_path)
    pd.testing.assert_frame_equal(one.predictions, two.predictions)
    assert np.isfinite(two.scores["accuracy"]).all()

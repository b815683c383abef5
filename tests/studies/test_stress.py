"""The stress test: known stress, known truth, the same tissue for every method, resumable."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score

import sims_kit as sk
from sims_kit.datasets.simulate import PRESETS, simulate
from sims_kit.errors import SettingError, UnknownNameError
from sims_kit.model import RECIPES
from sims_kit.studies import Prediction, stress_losses, stress_test
from sims_kit.studies.peers import Sims, make_peer

SMALL = dict(n_cells=200, n_genes=400)
TREE = {"Glutamatergic": ("IT", "L6b"), "GABAergic": ("VIP",)}


class Constant:
    """Calls every cell by the commonest label of the reference, and notes what it was given."""

    name, packages, settings = "constant", ("numpy",), "none"

    def fit(self, reference, label, *, sample=None, seed=0):
        """Find the label."""
        self.label, self.reference = reference.obs[label].mode()[0], reference
        Constant.last = self

    def predict(self, query):
        """Give it to every cell."""
        self.query = query
        return Prediction(np.full(query.n_obs, self.label), None, [self.label])


class Fails(Constant):
    """The same by name, and not to be run."""

    def fit(self, *_, **__):
        """Is not reached."""
        raise AssertionError("ran again")


def test_rows_are_scores_of_the_same_organoid():
    """Each row is what fitting and predicting by hand gives; stress is as strong as it says."""
    table = stress_test("linear SVM", (0, 3), seeds=(0, 1), tree=TREE, **SMALL)
    assert list(zip(table["seed"], table["stress_strength"], strict=True)) == [(0, 0), (0, 3), (1, 0), (1, 3)]
    tissues = [replace(PRESETS[name]["fast"], tree=TREE, **SMALL) for name in ("sim-cortex", "sim-organoid")]
    peer = make_peer("linear SVM")
    peer.fit(simulate(tissues[0], seed=1), "cell_type", seed=1)
    organoid = simulate(tissues[1], seed=1, stress_strength=3.0)
    row = table.iloc[3]
    assert row["accuracy"] == pytest.approx(accuracy_score(organoid.obs["cell_type"], peer.predict(organoid).labels))
    assert row["accuracy_low"] < row["accuracy"] < row["accuracy_high"] and row["n_cells"] == 200
    assert list(table["stress_fold"].iloc[:2]) == pytest.approx(
        [1, np.mean(organoid.var.loc[organoid.var["is_stress_gene"], "stress_factor"] ** 3)], rel=0.2
    )
    counts = organoid.X[:, organoid.var["is_stress_gene"].to_numpy()].sum() / organoid.X.sum()
    assert row["stress_counts_percent"] == pytest.approx(100 * counts) and counts > 0.1
    assert table[["stress_mask_percent", "mean_confidence"]].isna().all(axis=None)


def test_methods_see_neither_truth_nor_left_out_genes():
    """The query has values and donors alone; without the stress genes the reference lacks just these."""
    stress_test(Constant(), (1,), seeds=(0,), knows_stress_genes=False, **SMALL)
    peer = Constant.last  # a run has a copy of its own
    assert list(peer.query.obs) == ["donor"] and not len(peer.query.var.columns) and not len(peer.query.uns)
    assert set(peer.query.var_names) - set(peer.reference.var_names) == set(sk.studies.STRESS_GENES)


def test_masks_of_sims_are_looked_at():
    """Shares of the stress genes are percentages of masks and contributions, as `explain` gives them."""
    peer = Sims("SIMS, brief", replace(RECIPES["thesis"], max_epochs=2))
    row = stress_test(peer, (1,), seeds=(0,), tree=TREE, **SMALL).iloc[0]
    cortex, culture = (replace(PRESETS[name]["fast"], tree=TREE, **SMALL) for name in ("sim-cortex", "sim-organoid"))
    peer.fit(simulate(cortex, seed=0), "cell_type", seed=0)
    organoid = simulate(culture, seed=0, stress_strength=1.0)
    weights = sk.explain(peer.model, organoid).genes["weight"]
    own = weights[weights.index.isin(sk.studies.STRESS_GENES)]
    assert row["stress_mask_percent"] == pytest.approx(100 * own.sum(), rel=1e-4)
    assert (row["stress_genes_in_masks"], row["genes_in_masks"]) == ((own > 0).sum(), (weights > 0).sum())
    assert 0 < row["stress_contribution_percent"] < 100 and 0 < row["mean_confidence"] <= 1


def test_a_restart_reads_what_is_there(tmp_path):
    """A stored run is not run again; another strength, size or setting of the method is another run."""
    first = stress_test(Constant(), (0, 1), seeds=(0,), folder=tmp_path, **SMALL)
    again = stress_test(Fails(), (0, 1), seeds=(0,), folder=tmp_path, **SMALL)
    pd.testing.assert_frame_equal(first, again)
    other = Fails()
    other.settings = "others"
    for peer, strengths, size in ((Fails(), (0, 2), 200), (Fails(), (0, 1), 210), (other, (0, 1), 200)):
        with pytest.raises(AssertionError, match="ran again"):
            stress_test(peer, strengths, seeds=(0,), folder=tmp_path, n_cells=size, n_genes=400)


def test_losses_are_paired_by_tissue():
    """Losses are against the weakest stress on the same tissue, intervals are those of the t distribution."""
    accuracy = {"a": [[0.9, 0.8], [0.8, 0.76]], "b": [[0.9, 0.6], [0.7, 0.5]]}  # of each seed: without, with stress
    table = pd.DataFrame(
        [(m, s, True, x, a[s][i]) for m, a in accuracy.items() for s in (0, 1) for i, x in enumerate((0, 4))],
        columns=["method", "seed", "knows_stress_genes", "stress_strength", "accuracy"],
    )
    found = stress_losses(table, against="a").set_index(["method", "stress_strength"])
    assert list(found.index) == [("a", 0), ("a", 4), ("b", 0), ("b", 4)]
    row = found.loc[("b", 4)]
    assert row["accuracy"] == pytest.approx(0.55) and row["n_seeds"] == 2
    for name, values in {"lost_points": [30, 20], "lost_more_points": [20, 16]}.items():
        interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert row[name] == pytest.approx(np.mean(values))
        np.testing.assert_allclose([row[f"{name}_low"], row[f"{name}_high"]], interval)
    assert (found.loc["a", "lost_more_points"] == 0).all()
    assert np.isnan(stress_losses(table[table["seed"] == 0], "a")["lost_points_low"].iloc[-1])


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"methods": "linear SVN"}, UnknownNameError, "linear SVM"),
        ({"size": "small"}, UnknownNameError, "fast"),
        ({"n_cell": 3}, UnknownNameError, "n_cells"),
        ({"stress_strength": 3}, UnknownNameError, "stress"),
        ({"strengths": (0, 11)}, SettingError, "stress_strength = 11"),
        ({"seeds": ()}, SettingError, r"seeds=\[\]"),
        ({"strengths": ()}, SettingError, "no strengths"),
    ],
)
def test_wrong_settings_are_told_before_running(settings, error, words):
    """Each is refused with what was found and what exists."""
    with pytest.raises(error, match=words):
        stress_test(**({"methods": Fails()} | settings))


def test_losses_need_the_method_that_is_compared():
    """One that is not in the table is named, with those that are."""
    columns = ["method", "seed", "knows_stress_genes", "stress_strength", "accuracy"]
    table = pd.DataFrame([("linear SVM", 0, True, 0.0, 0.9)], columns=columns)
    with pytest.raises(UnknownNameError, match="linear SVM"):
        stress_losses(table)

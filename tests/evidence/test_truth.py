"""Marker recovery: numbers by hand, and the truth of simulated cells."""

import numpy as np
import pandas as pd
import pytest

from sims_kit.datasets.simulate import simulate
from sims_kit.errors import DataError, GeneError, LabelError, SettingError
from sims_kit.evidence import marker_recovery, simulated_markers

GENES = list("abcdef")


@pytest.fixture
def markers():
    """Three markers of one class, two of another, none of a third."""
    return pd.DataFrame([[1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 1], [0] * 6], ["x", "y", "z"], GENES).astype(bool)


@pytest.fixture
def ranking():
    """In class x the order is a, d, b, e, c, f; in y both markers come last."""
    return pd.DataFrame(
        [[6, 4, 2, 5, 3, 1], [6, 5, 4, 3, 2, 1], [1, 2, 3, 4, 5, 6]], ["x", "y", "z"], GENES, dtype=float
    )


def test_numbers_by_hand(markers, ranking):
    """Precision among the first k, and the mean of the precision at each marker."""
    table = marker_recovery({"one": ranking}, markers, k=3).set_index("class")
    assert list(table["n_markers"]) == [3, 2, 0] and set(table["method"]) == {"one"}
    assert table.loc["x", "precision_at_k"] == pytest.approx(2 / 3)
    assert table.loc["x", "auprc"] == pytest.approx((1 / 1 + 2 / 3 + 3 / 5) / 3)
    assert table.loc["y", "precision_at_k"] == 0
    assert table.loc["y", "auprc"] == pytest.approx((1 / 5 + 2 / 6) / 2)
    assert table.loc["z", ["precision_at_k", "auprc", "spearman"]].isna().all()


def test_equal_scores_count_as_a_random_order(markers, ranking):
    """A method that scores all genes alike has the precision and area of chance."""
    flat = marker_recovery({"flat": ranking * 0}, markers, k=2).set_index("class")
    np.testing.assert_allclose(flat.loc[["x", "y"], "precision_at_k"], [1 / 2, 1 / 3])
    np.testing.assert_allclose(flat.loc[["x", "y"], "auprc"], [1 / 2, 1 / 3])


def test_strength_is_compared_among_markers_alone(markers, ranking):
    """Scores a > b > c against strengths: in order, reversed; two markers are too few."""
    strength = pd.DataFrame([[3.0, 2, 1, 9, 9, 9], [1] * 6, [1] * 6], markers.index, GENES)
    for sign in (1, -1):
        table = marker_recovery({"one": ranking}, markers, k=3, strength=sign * strength).set_index("class")
        assert table.loc["x", "spearman"] == pytest.approx(sign)
        assert np.isnan(table.loc["y", "spearman"])
    assert marker_recovery({"one": ranking}, markers, k=3)["spearman"].isna().all()


def test_order_of_classes_and_genes_does_not_matter(markers, ranking):
    """Tables are brought together by name."""
    turned = marker_recovery({"one": ranking.iloc[::-1, ::-1]}, markers, k=3)
    pd.testing.assert_frame_equal(turned, marker_recovery({"one": ranking}, markers, k=3))


def test_simulated_truth():
    """Markers of a type are its own and its major type's; a ranking by the true factors is perfect."""
    cells = simulate(n_cells=50, n_genes=800, tree={"A": ("a1", "a2"), "B": ("b1",)}, de_prob=0.02, major_de_prob=0.02)
    markers, strength = simulated_markers(cells)
    assert set(markers.index) == {"a1", "a2", "b1"} and list(markers.columns) == list(cells.var_names)
    for label, major in (("a1", "A"), ("b1", "B")):
        expected = cells.var["marker_of"].isin([label, major]).to_numpy()
        np.testing.assert_array_equal(markers.loc[label], expected)
    table = marker_recovery({"truth": strength}, markers, strength=strength)
    np.testing.assert_allclose(table[["precision_at_k", "auprc", "spearman"]], 1)
    random = pd.DataFrame(np.random.default_rng(0).random(strength.shape), strength.index, strength.columns)
    assert (marker_recovery({"random": random}, markers)["auprc"] < 0.3).all()


def test_errors_name_what_does_not_fit(markers, ranking, make_cells):
    """Classes or genes that differ, numbers in place of booleans, NaN, k, and cells without truth."""
    with pytest.raises(LabelError, match=r"ranking of 'one'.*classes.*lacks 1 \(x\)"):
        marker_recovery({"one": ranking.iloc[1:]}, markers, k=3)
    with pytest.raises(GeneError, match=r"genes.*1 more \(f\)"):
        marker_recovery({"one": ranking}, markers.iloc[:, :5], k=3)
    with pytest.raises(GeneError, match=r"strength.*lacks 1"):
        marker_recovery({"one": ranking}, markers, k=3, strength=ranking.iloc[:, 1:])
    with pytest.raises(GeneError, match="twice"):
        marker_recovery({"one": ranking[["a", *GENES]]}, markers, k=3)
    with pytest.raises(DataError, match="True and False"):
        marker_recovery({"one": ranking}, markers.astype(float), k=3)
    with pytest.raises(DataError, match="NaN"):
        marker_recovery({"one": ranking.where(ranking > 1)}, markers, k=3)
    with pytest.raises(SettingError, match=r"k=10.*1 to 6"):
        marker_recovery({"one": ranking}, markers)
    with pytest.raises(DataError, match="no truth"):
        simulated_markers(make_cells(n_cells=20))

"""Tasks and folds: the same for every method, small classes left out, nothing of the query's labels in the query."""

import anndata as ad
import numpy as np
import pytest
from sklearn.model_selection import StratifiedKFold

from sims_kit.errors import LabelError, SettingError, UnknownNameError
from sims_kit.studies.tasks import TASKS, Folds, Task, as_task


def all_queries(folds):
    """The numbers of the cells that each fold asks for."""
    return [fold.query.obs_names.astype(int).to_numpy() for fold in map(folds.__getitem__, range(len(folds)))]


def test_folds_are_scikit_learns(make_cells):
    """Stratified folds are those of StratifiedKFold, shuffled by the seed; every cell is asked once."""
    cells = make_cells(n_cells=100)
    folds = Folds(as_task(cells, "cell_type"), n_folds=4, seed=3)
    oracle = StratifiedKFold(4, shuffle=True, random_state=3).split(cells.obs, cells.obs["cell_type"])
    for fold, (trained, asked) in zip(map(folds.__getitem__, range(4)), oracle, strict=True):
        np.testing.assert_array_equal(fold.query.obs_names.astype(int), asked)
        np.testing.assert_array_equal(fold.truth, cells.obs["cell_type"].iloc[asked])
        np.testing.assert_array_equal(fold.reference.obs["label"], cells.obs["cell_type"].iloc[trained])
        assert (cells.X[asked] != fold.query.X).nnz == 0
    assert sorted(np.concatenate(all_queries(folds))) == list(range(100))


def test_query_carries_nothing_but_values_and_sample(make_cells):
    """Labels, other columns, uns, layers, obsm and the names of the cells stay behind."""
    cells = make_cells(n_cells=60)
    cells.obs["donor"] = np.arange(60) % 3
    cells.obs["fine_type"] = cells.obs["cell_type"]
    cells.obsm["X_pca"], cells.layers["other"] = np.ones((60, 2)), cells.X.copy()
    fold = Folds(Task("mine", (cells,), "cell_type", sample="donor"), n_folds=3)[0]
    assert list(fold.query.obs) == ["sample"] and list(fold.reference.obs) == ["label", "sample"]
    assert not (len(fold.query.uns) + len(fold.query.obsm) + fold.query.var.shape[1])
    assert set(fold.query.layers) <= {None}  # anndata 0.13 has X there, too
    assert set(fold.query.obs["sample"]) == {"0", "1", "2"}


def test_small_classes_and_unlabelled_cells_are_left_out_and_told(make_cells):
    """10 cells are too few, 11 are enough; cells without a label count apart."""
    cells = make_cells(n_cells=61)
    cells.obs["cell_type"] = np.repeat(["ten", "eleven", "most", None], [10, 11, 37, 3])
    folds = Folds(as_task(cells, "cell_type"), n_folds=2)
    assert folds.left_out == {"ten": 10, "(no label)": 3}
    assert sorted(set(folds.labels)) == ["eleven", "most"] and len(folds.labels) == 48


def test_groups_stay_together(make_cells):
    """With a group, no region is in reference and query of the same fold."""
    cells = make_cells(n_cells=90)
    cells.obs["region"] = np.random.default_rng(0).choice(list("abcdef"), 90)
    folds = Folds(Task("regions", (cells,), "cell_type", group="region"), n_folds=3)
    asked = [set(cells.obs["region"].iloc[numbers]) for numbers in all_queries(folds)]
    assert len(folds) == 3 and sum(map(len, asked)) == 6 and set.union(*asked) == set("abcdef")


def test_whole_datasets_are_folds_on_common_genes(make_cells):
    """Of several datasets each is once the query, with all its genes; the others are joined on shared ones."""
    parts = [make_cells(n_cells=40, seed=seed) for seed in range(3)]
    parts[0], parts[1] = parts[0][:, :50].copy(), parts[1][:, 10:][:, ::-1].copy()
    folds = Folds(Task("plates", tuple(parts), "cell_type"))
    assert len(folds) == 3
    fold = folds[2]
    assert fold.query.shape == (40, 60) and fold.reference.shape == (80, 40)
    assert set(fold.reference.obs["sample"]) == {"dataset 1", "dataset 2"} and set(fold.query.obs["sample"]) == {
        "dataset 3"
    }
    expected = ad.concat([parts[0], parts[1]], join="inner")
    np.testing.assert_array_equal(
        fold.reference.to_df().to_numpy(), expected.to_df()[fold.reference.var_names].to_numpy()
    )


def test_fingerprint_is_of_content(make_cells):
    """Equal cells and folds have equal fingerprints; another value, label, seed or number of folds has another."""
    cells = make_cells(n_cells=60)
    value, label = cells.copy(), cells.copy()
    value.X.data[0] += 1
    label.obs["cell_type"] = np.roll(label.obs["cell_type"], 1)
    prints = [
        Folds(as_task(which, "cell_type"), n_folds, seed).fingerprint
        for which, n_folds, seed in [
            (cells, 3, 0),
            (cells.copy(), 3, 0),
            (value, 3, 0),
            (label, 3, 0),
            (cells, 3, 1),
            (cells, 2, 0),
        ]
    ]
    assert prints[0] == prints[1] and len(set(prints)) == 5


def test_named_tasks_that_need_no_download():
    """The simulated tasks exist as promised: 19 and 42 types, donors as samples, eight regions in five folds."""
    for name, n_classes in [("sim-cortex", 19), ("sim-mouse", 42)]:
        folds = Folds(TASKS[name])
        assert len(folds) == 5 and len(set(folds.labels)) == n_classes and not folds.left_out
        assert "sample" in folds[0].query.obs
    assert len(Folds(TASKS["sim-cortex across regions"])) == 5
    assert as_task("sim-organoid").datasets == ("sim-organoid",)


@pytest.mark.dataset("cell-lines-5cl-p1", "cell-lines-celseq2", "cell-lines-dropseq")
def test_named_tasks_of_real_cells(real_data):
    """Three plates are three folds, two protocols are two."""
    assert len(Folds(TASKS["cell lines across plates"])) == 3
    folds = Folds(TASKS["cell lines across protocols"])
    assert len(folds) == 2 and set(folds[1].reference.obs["sample"]) == {"cell-lines-celseq2"}


def test_what_cannot_be_divided_is_told(make_cells):
    """Each wrong task is refused with what was found and what to do."""
    cells = make_cells(n_cells=60)
    with pytest.raises(SettingError, match="Pass label="):
        Folds(as_task(cells))
    with pytest.raises(UnknownNameError, match="cell_type"):
        Folds(as_task(cells, "celltype"))
    with pytest.raises(UnknownNameError, match="worm-neurons"):
        as_task("worm-neuron")
    with pytest.raises(SettingError, match="n_folds=1"):
        Folds(as_task(cells, "cell_type"), n_folds=1)
    with pytest.raises(SettingError, match="counts, log-normalised"):
        Folds(Task("mixed", (cells, make_cells(state="log-normalised")), "cell_type"))
    with pytest.raises(SettingError, match="one value"):
        cells.obs["region"] = "a"
        Folds(Task("regions", (cells,), "cell_type", group="region"))
    cells.obs["cell_type"] = ["a"] * 55 + ["b"] * 5
    with pytest.raises(LabelError, match="more than 10 cells"):
        Folds(as_task(cells, "cell_type"))
    cells.obs["cell_type"] = ["a"] * 30 + ["Unknown"] * 30
    with pytest.raises(LabelError, match="as rejected cells are"):
        Folds(as_task(cells, "cell_type"))
    with pytest.raises(IndexError, match="There is no fold 7"):
        Folds(as_task(make_cells(), "cell_type"))[7]

"""DataModule: any number of files in, right batches out, nothing learned from test cells, inputs left alone."""

import hashlib
from contextlib import nullcontext

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import scanpy as sc
import scipy.sparse as sp
import torch
from anndata.tests.helpers import assert_equal
from sklearn.utils.class_weight import compute_class_weight

from sims_kit.cells.datamodule import DataModule
from sims_kit.errors import LabelError, SettingError


def module_of(data, **settings):
    """A quiet DataModule on `obs["cell_type"]`."""
    return DataModule(data, class_label="cell_type", **{"verbose": False, "batch_size": 16, **settings})


def cells_of(loader):
    """All batches of a loader as one array and one list of labels."""
    batches = list(loader)
    cells = np.vstack([batch.cells.to_dense().numpy() for batch in batches])
    return cells, np.concatenate([batch.labels.numpy() for batch in batches])


@pytest.fixture
def two_files(make_cells):
    """Two AnnData objects whose genes overlap in part, in different orders, with different class sizes."""
    one, two = make_cells(n_cells=90, seed=1), make_cells(n_cells=61, seed=2)
    two.obs_names = [f"other_{i}" for i in range(61)]
    return one[:, :50].copy(), two[:, ::-1][:, :45].copy()


@pytest.mark.parametrize("genes", ["intersection", "union"])
def test_test_batches_equal_scanpy(two_files, genes):
    """Cells of several files equal scanpy's concat (inner or outer), normalize_total and log1p, with their labels."""
    module = module_of(list(two_files), genes=genes, test=0.3)
    join = {"intersection": "inner", "union": "outer"}[genes]
    expected = ad.concat(two_files, join=join, fill_value=0)[:, module.genes].copy()
    sc.pp.normalize_total(expected, target_sum=1e4)
    sc.pp.log1p(expected)
    for part, loader in zip(("validation", "test"), (module.val_dataloader(), module.test_dataloader()), strict=True):
        cells, labels = cells_of(loader)
        names = [module.cell_names[i] for i in getattr(module.split, part)]
        np.testing.assert_allclose(cells, expected[names].X.toarray(), rtol=2e-6)
        assert [module.classes[label] for label in labels] == list(expected[names].obs["cell_type"])
    assert (module.input_dim, module.output_dim) == (expected.n_vars, 3)


def test_training_batches_hold_every_training_cell_once(two_files):
    """An epoch is a shuffled pass over the training cells, those of all files mixed."""
    module = module_of(list(two_files))
    cells, _ = cells_of(module.train_dataloader())
    in_order = cells_of(module._loader("train"))[0]
    assert not np.array_equal(cells, in_order)
    np.testing.assert_array_equal(np.sort(cells.sum(1)), np.sort(in_order.sum(1)))
    assert len(cells) == len(module.split.train)


def test_splits_are_stratified_over_all_files(two_files):
    """A class with one cell in one file and two in another has a cell in each part."""
    for adata, n in zip(two_files, (1, 2), strict=True):
        adata.obs["cell_type"] = ["rare"] * n + list(adata.obs["cell_type"][n:])
    module = module_of(list(two_files))
    rare = module.classes.index("rare")
    assert [np.count_nonzero(module.labels[part] == rare) for part in module.split] == [1, 1, 1]


def test_class_weights_are_scikit_learns_on_training_cells(make_cells):
    """Weights are 'balanced' over the training cells, not over all cells."""
    adata = make_cells(n_cells=100)
    adata.obs["cell_type"] = ["a"] * 83 + ["b"] * 14 + ["c"] * 3
    module = module_of(adata)
    training = module.labels[module.split.train]
    expected = compute_class_weight("balanced", classes=np.arange(3), y=training)
    np.testing.assert_allclose(module.class_weights.numpy(), expected, rtol=1e-6)
    everything = compute_class_weight("balanced", classes=np.arange(3), y=module.labels)
    assert not np.allclose(expected, everything)
    assert module.class_weights.dtype == torch.float32


@pytest.mark.parametrize("change", ["zero", "other genes", "doubled"])
def test_test_cells_touch_nothing(make_cells, change):
    """Whatever the test cells express, genes, classes, weights and training batches stay the same."""
    adata = make_cells()
    before = module_of(adata)
    X = adata.X.toarray()
    test = before.split.test
    X[test] = {"zero": 0 * X[test], "other genes": X[test][:, ::-1], "doubled": 2 * X[test]}[change]
    X[before.split.train, 0] = 0  # a gene of test cells alone must not come or go either
    adata.X = sp.csr_matrix(X)
    after = module_of(adata)
    adata.X = sp.csr_matrix(np.where(np.isin(np.arange(len(X)), test)[:, None], 3, X))
    again = module_of(adata)
    assert before.genes == after.genes == again.genes and before.classes == again.classes
    assert torch.equal(after.class_weights, again.class_weights)
    for one, two in zip(after.train_dataloader(), again.train_dataloader(), strict=True):
        assert torch.equal(one.cells.to_dense(), two.cells.to_dense()) and torch.equal(one.labels, two.labels)


@pytest.mark.parametrize("kind", ["csr", "dense", "view", "categorical", "layer", "raw", "backed"])
def test_inputs_are_never_changed(make_cells, kind, tmp_path):
    """The AnnData that came in is the same after an epoch with label file and filters, whatever its kind."""
    adata, layer = make_cells(), None
    adata.obs["sample"] = pd.Categorical(np.arange(adata.n_obs) % 4)
    labelfile = tmp_path / "labels.csv"
    adata.obs[["cell_type"]].assign(cell_type=lambda t: "new_" + t.cell_type).to_csv(labelfile)
    if kind == "dense":
        adata.X = adata.X.toarray()
    elif kind == "view":
        adata = adata[:100, ::-1]
    elif kind == "categorical":
        adata.strings_to_categoricals()
    elif kind == "layer":
        layer, adata.layers["counts"] = "counts", adata.X.copy()
    elif kind == "raw":
        layer, adata.raw = "raw", adata
    elif kind == "backed":
        adata.write_h5ad(tmp_path / "cells.h5ad")
        adata = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    before, was_view = (adata.to_memory() if adata.isbacked else adata.copy()), adata.is_view
    for labelfiles in (None, labelfile):
        with pytest.warns(UserWarning, match="replaced") if labelfiles else nullcontext():
            module = module_of(adata, labelfiles=labelfiles, drop={"sample": [3]}, layer=layer)
            module.setup()
        list(module.train_dataloader())
        assert module.classes[0] == ("new_class_0" if labelfiles else "class_0")
        assert adata.is_view == was_view
        assert_equal(adata.to_memory() if adata.isbacked else adata, before, exact=True)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([1, 2, 10], ["1", "10", "2"]),
        ([1.0, 2.0, np.nan], ["1", "2"]),
        ([0.5, 1.5, 2.0], ["0.5", "1.5", "2.0"]),
        ([True, False, True], ["False", "True"]),
        (["b", " a", ""], ["a", "b"]),
        (["b", None, "nan"], None),
        (pd.Categorical([3, 1, 3], categories=[1, 2, 3]), ["1", "3"]),
        (pd.Categorical([3.0, 1.0, np.nan]), ["1", "3"]),
        (pd.array([1, None, 3], dtype="Int64"), ["1", "3"]),
        (pd.array(["x", pd.NA, "y"], dtype="string"), ["x", "y"]),
    ],
)
@pytest.mark.filterwarnings("ignore:.*are left out")
def test_labels_become_text(make_cells, labels, classes):
    """Numbers, categories, missing values and blanks give sorted text classes; unused categories vanish."""
    adata = make_cells(n_cells=30)
    adata.obs["cell_type"] = pd.Series(labels).repeat(10).set_axis(adata.obs_names)
    if classes is None:
        with pytest.raises(LabelError, match="one class only, 'b'"):
            module_of(adata).setup()
    else:
        assert module_of(adata).classes == classes


def test_unlabelled_cells_are_left_out_and_counted(make_cells):
    """Cells without a label are in no part; one warning over all files says how many there were."""
    adatas = [make_cells(seed=seed) for seed in (1, 2)]
    adatas[0].obs.loc[adatas[0].obs_names[:5], "cell_type"] = np.nan
    adatas[1].obs.loc[adatas[1].obs_names[7:9], "cell_type"] = ""
    module = module_of(adatas)
    with pytest.warns(UserWarning, match="7 of 240 cells have no 'cell_type'") as warned:
        module.setup()
    assert len(warned) == 1 and len(module.labels) == len(module.cell_names) == 233
    assert sum(map(len, module.split)) == 233
    assert module.cell_names[0] == "cell_0005-0" and module.cell_names[-1] == "cell_0119-1"


def test_states_are_told_and_mixed_ones_warned_about(make_cells, capsys):
    """Each file's state is printed and kept; different states go through with a warning, on one scale."""
    counts, logs = make_cells(seed=3), make_cells(seed=3, state="log-normalised")
    module = module_of([counts, logs], verbose=True)
    with pytest.warns(UserWarning, match=r"\['counts', 'log-normalised'\]"):
        module.setup()
    assert module.states == ["counts", "log-normalised"]
    printed = capsys.readouterr().out
    assert "AnnData 1: 120 cells x 60 genes, counts" in printed and "log-normalised (used as they are)" in printed
    both = [source.rows(np.arange(120)) for source in module._dataset.sources]
    np.testing.assert_allclose(module._dataset.__getitems__(range(120)).cells.to_dense(), both[1].toarray(), rtol=1e-5)


def test_provenance_is_plain_and_complete(make_cells):
    """Files, registry names, states, hashes, kind of genes, seed and sizes, in plain values only."""
    adata = make_cells()
    adata.uns["sims_kit"] = {"dataset": "made-up", "sha256": np.array(["ab"])}
    provenance = module_of(adata, seed=5).provenance
    sizes = {"cells": 120, "genes": 60}
    assert provenance == {
        "files": [{"file": "AnnData 1", "dataset": "made-up", "state": "counts", **sizes, "sha256": ["ab"]}],
        "class_label": "cell_type",
        "gene_kind": "symbol",
        "seed": 5,
        "cells": {"train": 96, "validation": 12, "test": 12},
    }


def test_files_are_known_by_their_hash(make_cells, tmp_path):
    """Of a file and its label file, the SHA-256 that hashlib finds."""
    cells = make_cells()
    paths = [tmp_path / "cells.csv", tmp_path / "labels.csv"]
    cells.to_df().to_csv(paths[0])
    cells.obs.to_csv(paths[1])
    module = module_of(paths[0], labelfiles=paths[1])
    module.setup()
    assert module.provenance["files"][0]["sha256"] == [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


class _Recorder(pl.LightningModule):
    """Learns one number, and keeps the labels and sums of every batch it trains on, by epoch."""

    def __init__(self):
        super().__init__()
        self.layer, self.seen = torch.nn.Linear(1, 1), {}

    def forward(self, batch):
        return batch.cells.to_dense().sum(1, keepdim=True)

    def training_step(self, batch, _):
        self.seen.setdefault(self.current_epoch, []).append(self(batch).flatten().tolist())
        return self.layer(self(batch) * 0).mean()

    def validation_step(self, batch, _):
        assert not self.training

    def predict_step(self, batch, _):
        return self(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trained(module, folder, epochs, ckpt_path=None):
    """A recorder after some epochs, and its trainer."""
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    model = _Recorder()
    trainer.fit(model, datamodule=module, ckpt_path=ckpt_path)
    trainer.save_checkpoint(folder / "last.ckpt")
    return model, trainer


def test_lightning_sees_a_new_order_each_epoch_and_resumes(two_files, tmp_path):
    """Every epoch has its own order, the same in a second run; a resumed run goes on where it would have been."""
    whole, _ = trained(module_of(list(two_files)), tmp_path, 4)
    assert len({str(order) for order in whole.seen.values()}) == 4
    half, _ = trained(module_of(list(two_files)), tmp_path, 2)
    rest, _ = trained(module_of(list(two_files)), tmp_path, 4, tmp_path / "last.ckpt")
    assert half.seen | rest.seen == whole.seen and set(rest.seen) == {2, 3}
    other, _ = trained(module_of(list(two_files), seed=1), tmp_path, 1)
    assert other.seen[0] != whole.seen[0]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_lightning_predicts_the_test_cells_in_order(two_files, tmp_path, num_workers):
    """trainer.predict gives the test cells, each once and in order, although Lightning rebuilds the loader."""
    module = module_of(list(two_files), num_workers=num_workers)
    model, trainer = trained(module, tmp_path, 1)
    predicted = torch.cat(trainer.predict(model, datamodule=module)).flatten().numpy()
    expected = cells_of(module.test_dataloader())[0].sum(1)
    np.testing.assert_allclose(predicted, expected, rtol=1e-5)


def test_parts_that_are_not_asked_for_are_empty(two_files, tmp_path):
    """Without validation and test shares everything trains, and Lightning runs without them."""
    module = module_of(list(two_files), validation=0, test=0)
    assert len(module.split.train) == 151
    assert module.val_dataloader() == module.test_dataloader() == module.predict_dataloader() == []
    trained(module, tmp_path, 1)


def test_files_are_read_once(make_cells, tmp_path, monkeypatch):
    """Properties, loaders and repeated setup read each file a single time; the constructor reads none."""
    from sims_kit.cells import datamodule

    reads = []
    monkeypatch.setattr(datamodule, "read", lambda path, **_: reads.append(path) or make_cells())
    (tmp_path / "cells.h5ad").touch()
    module = module_of(tmp_path / "cells.h5ad")
    assert not reads and "not read yet" in str(module)
    assert module.genes and module.class_weights is not None and module.train_dataloader()
    module.setup("fit")
    assert reads == [tmp_path / "cells.h5ad"] and "120 cells" in str(module)


def test_someone_elses_entry_in_uns(make_cells):
    """`uns["sims_kit"]` that is no provenance is left alone and does no harm."""
    adata = make_cells()
    adata.uns["sims_kit"] = "mine"
    assert module_of(adata).provenance["files"][0]["dataset"] == "" and adata.uns["sims_kit"] == "mine"


def test_paths_from_the_home_folder(make_cells, tmp_path, monkeypatch):
    """``~`` stands for the home folder, in data and label files, and numpy's whole numbers are whole numbers."""
    monkeypatch.setenv("HOME", str(tmp_path))
    cells = make_cells()
    cells.obs.to_csv(tmp_path / "labels.csv")
    cells.obs = cells.obs[[]]
    cells.write_h5ad(tmp_path / "cells.h5ad")
    module = module_of("~/cells.h5ad", labelfiles="~/labels.csv", batch_size=np.int64(16))
    assert module.classes == ["class_0", "class_1", "class_2"]


@pytest.mark.dataset("cell-lines-5cl-p1", "cell-lines-5cl-p2")
def test_two_real_plates(real_data):
    """Two plates straight from their packed files: singlets of five lines, genes intersected, as pandas counts them."""
    stems = [real_data / "sc_mixology" / f"sc_celseq2_5cl_p{plate}" for plate in (1, 2)]
    module = DataModule(
        [f"{stem}.count.csv.gz" for stem in stems],
        [f"{stem}.metadata.csv.gz" for stem in stems],
        "cell_line_demuxlet",
        orientation="genes_by_cells",
        keep={"cell_number": [1]},
        drop={"demuxlet_cls": ["DBL"]},
        verbose=False,
    )
    counts = [pd.read_csv(f"{stem}.count.csv.gz", index_col=0) for stem in stems]
    sheets = [pd.read_csv(f"{stem}.metadata.csv.gz", index_col=0) for stem in stems]
    singlets = [sheet[(sheet.cell_number == 1) & (sheet.demuxlet_cls != "DBL")] for sheet in sheets]
    labels = pd.concat(singlets)["cell_line_demuxlet"]
    assert module.classes == ["A549", "H1975", "H2228", "H838", "HCC827"] and module.gene_kind == "ensembl"
    assert module.genes == list(counts[0].index[counts[0].index.isin(counts[1].index)])
    assert [module.classes[label] for label in module.labels] == list(labels)
    assert module.states == ["counts", "counts"] and len(set(module.cell_names)) == len(labels) == 304
    raw = [table.loc[module.genes, sheet.index].T for table, sheet in zip(counts, singlets, strict=True)]
    expected = pd.concat(raw).iloc[module.split.test]
    expected = np.log1p(expected.div(expected.sum(axis=1), axis=0) * 1e4)
    np.testing.assert_allclose(cells_of(module.test_dataloader())[0], expected, rtol=1e-5)


def test_a_trainer_that_deals_cells_out_as_well_is_refused(make_cells):
    """Lightning's own sampler would take the place of the shards, and their order."""
    module = DataModule(make_cells(), class_label="cell_type", verbose=False)
    settings = dict(accelerator="cpu", strategy="ddp", logger=False, enable_checkpointing=False)
    module.trainer = pl.Trainer(devices=2, **settings)
    with pytest.raises(SettingError, match="use_distributed_sampler=False"):
        module.train_dataloader()
    module.trainer = pl.Trainer(devices=2, use_distributed_sampler=False, **settings)
    assert len(module.train_dataloader()) > 0

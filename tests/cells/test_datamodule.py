"""DataModule: any number of files in, right batches out, nothing learned from test cells, inputs left alone."""

import hashlib
import re
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
import torch
from anndata.tests.helpers import assert_equal
from pytorch_lightning.callbacks import LambdaCallback
from sklearn.utils.class_weight import compute_class_weight

import sims_kit as sk
from sims_kit.cells import matrix
from sims_kit.cells.datamodule import DataModule
from sims_kit.cells.loaders import CellLoader
from sims_kit.datasets.read import open_backed
from sims_kit.errors import DataError, GeneError, LabelError, SettingError, UnknownNameError


@pytest.fixture(autouse=True)
def small_stretches(monkeypatch):
    """A few hundred cells in a file are read in several stretches."""
    monkeypatch.setattr(CellLoader, "block_size", 8)
    monkeypatch.setattr(CellLoader, "buffer_size", 64)


def module_of(data, **settings):
    """A quiet DataModule on `obs["cell_type"]`."""
    return DataModule(data, **{"class_label": "cell_type", "verbose": False, "batch_size": 16, **settings})


def cells_of(loader):
    """All batches of a loader as one array and one list of labels."""
    cells, labels = zip(*loader, strict=True)
    return np.vstack([batch.to_dense() for batch in cells]), np.concatenate(labels)


def scanpys(counts):
    """Cells after normalize_total and log1p, as an array."""
    cells = counts.copy()
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    return cells.X.toarray()


def assert_alike(one, other, loader):
    """The same genes, classes, names and parts, and the same batches of a loader."""
    for name in ("genes", "classes", "cell_names"):
        assert getattr(one, name) == getattr(other, name)
    assert all(map(np.array_equal, one.split, other.split))
    for ones, others in zip(cells_of(getattr(one, loader)()), cells_of(getattr(other, loader)()), strict=True):
        np.testing.assert_allclose(ones, others, rtol=1e-5, atol=1e-5)


@pytest.fixture
def tables(make_cells):
    """Two AnnData whose genes overlap in part, in different orders; of a rare class one has a cell, the other two."""
    tables = [make_cells(n_cells=90, seed=1)[:, :50].copy(), make_cells(n_cells=61, seed=2)[:, 59:14:-1].copy()]
    for n, adata in enumerate(tables, 1):
        adata.obs["cell_type"] = ["rare"] * n + list(adata.obs["cell_type"][n:])
    return tables


@pytest.fixture
def paths(tables, tmp_path):
    """The same cells as an `.h5ad` and a zarr store."""
    tables[0].write_h5ad(tmp_path / "one.h5ad", compression="gzip")
    tables[1].write_zarr(tmp_path / "two.zarr")
    return [tmp_path / "one.h5ad", tmp_path / "two.zarr"]


@pytest.mark.parametrize("genes, join", [("intersection", "inner"), ("union", "outer")])
@pytest.mark.parametrize("place", ["memory", "file"])
def test_batches_equal_scanpy(tables, paths, genes, join, place):
    """Cells of all files are split by class together, and come as concat, normalize_total and log1p have them."""
    module = module_of(tables if place == "memory" else paths, genes=genes, test=0.3, backed=place == "file")
    expected = ad.concat(tables, join=join, fill_value=0, index_unique="-")[:, module.genes]
    assert (module.input_dim, module.output_dim, module.backed) == (expected.n_vars, 4, place == "file")
    assert module.cell_names == list(expected.obs_names)
    for part, loader in zip(module.split, (None, module.val_dataloader(), module.test_dataloader()), strict=True):
        cells, labels = cells_of(loader or module._loader("train"))
        np.testing.assert_allclose(cells, scanpys(expected[part]), rtol=2e-6)
        assert [module.classes[label] for label in labels] == list(expected.obs["cell_type"].iloc[part])
        assert np.count_nonzero(labels == module.classes.index("rare")) == 1
    (in_order, training), (shuffled, _) = map(cells_of, (module._loader("train"), module.train_dataloader()))
    assert not np.array_equal(shuffled, in_order)
    np.testing.assert_array_equal(np.sort(shuffled, axis=0), np.sort(in_order, axis=0))
    weights = compute_class_weight("balanced", classes=np.arange(4), y=training)
    np.testing.assert_allclose(module.class_weights, weights.astype(np.float32), rtol=1e-6)
    assert_alike(module, module_of(paths, genes=genes, test=0.3, backed=False), "val_dataloader")


def test_test_cells_touch_nothing(make_cells):
    """Whatever the test cells express, genes, classes, weights and training batches stay the same."""
    adata = make_cells()
    X, split = adata.X.toarray(), module_of(adata).split
    X[split.train, 0] = 0  # a gene of test cells alone must not come or go
    modules = []
    for scale, more in ((1, 0), (2, 3), (0, 0)):
        X[split.test] = scale * X[split.test] + more
        modules.append(module_of(ad.AnnData(sp.csr_matrix(X), adata.obs, adata.var)))
        assert_alike(modules[0], modules[-1], "train_dataloader")
        assert torch.equal(modules[0].class_weights, modules[-1].class_weights)


@pytest.mark.parametrize("backed", [False, True])
def test_lightning_sees_a_new_order_every_epoch_and_resumes(paths, tmp_path, backed):
    """Any number of threads gives the same orders, a resumed run goes on where it was, another seed has others."""

    def train(max_epochs, ckpt_path=None, seed=0, num_workers=2):
        seen = {}  # what identifies the cells of every batch, by epoch

        def note(trainer, model, batch, i):
            seen.setdefault(trainer.current_epoch, []).append(batch.cells.to_dense().sum(1).tolist())

        recipe = sk.RECIPES["thesis"].changed(best_epoch=False)
        settings = dict(max_epochs=max_epochs, seed=seed, backed=backed, recipe=recipe, batch_size=16)
        settings |= dict(num_workers=num_workers, logger=False, verbose=False)
        trainer, model, module = sk.generate_trainer(paths, None, "cell_type", **settings)
        trainer.callbacks.append(LambdaCallback(on_train_batch_start=note))
        trainer.fit(model, datamodule=module, ckpt_path=ckpt_path)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        predicted = torch.cat(trainer.predict(model, datamodule=module))
        in_order = torch.from_numpy(cells_of(module.test_dataloader())[0])
        torch.testing.assert_close(predicted, model.eval().probabilities(in_order.to_sparse_csr()))
        return seen, predicted

    (whole, end), (half, _), (rest, same_end) = train(4), train(2, num_workers=0), train(4, tmp_path / "last.ckpt")
    assert half | rest == whole and list(rest) == [2, 3] and torch.equal(end, same_end)
    assert len({str(order) for order in [*whole.values(), train(1, seed=1)[0][0]]}) == 5


def test_each_process_has_two_cells(make_cells):
    """A part that is too small for all processes is refused."""
    module = module_of(make_cells(), test=0.05)
    module.trainer = SimpleNamespace(world_size=6, global_rank=2)
    assert module.val_dataloader().shard == (2, 6)
    with pytest.raises(SettingError, match="test part has 6 cells for 6 processes"):
        module.test_dataloader()


@pytest.mark.parametrize("backed", [False, True])
def test_groups_stay_together(tables, tmp_path, backed):
    """Donors of validation and test cells have no cell in another part; files may write numbers in their own ways."""
    donors = [np.arange(90.0) % 10, np.arange(61) % 12]  # 3.0 in one file, "3" in the other
    for i, kind in enumerate((float, str)):
        tables[i].obs["donor"], tables[i].obs["cell_type"] = donors[i].astype(kind), (donors[i] % 3).astype(kind)
        tables[i].write_h5ad(tmp_path / f"{i}.h5ad")
    module = module_of([tmp_path / "0.h5ad", tmp_path / "1.h5ad"], groups="donor", backed=backed)
    parts = [set(np.concatenate(donors)[part]) for part in module.split]
    assert all(parts) and sum(map(len, parts)) == 12 == len(set.union(*parts)) and sum(map(len, module.split)) == 151
    assert module.classes == ["0", "1", "2"] and module.provenance["groups"] == "donor"


@pytest.mark.parametrize("backed", [False, True])
def test_genes_of_a_list_or_a_query(tables, paths, backed):
    """The vocabulary is what the files share with them, in the files' order, and cells are normalised on it."""
    wanted = list(tables[0].var_names[40:19:-1])
    query = ad.AnnData(np.ones((3, 21)), var=pd.DataFrame({"symbol": wanted}, [f"ENSG{i:011}" for i in range(21)]))
    expected = ad.concat(tables)[:, wanted[::-1]]
    for genes in ([*wanted, "UNKNOWN"], query):
        module = module_of(paths, genes=genes, backed=backed)
        assert module.genes == wanted[::-1] and module.input_dim == 21
        np.testing.assert_allclose(cells_of(module.test_dataloader())[0], scanpys(expected[module.split.test]), 2e-6)


CHANGES = {  # of an AnnData of counts; they return the layer that has the counts then
    "csc": lambda a: setattr(a, "X", a.X.tocsc().astype(float)),
    "array": lambda a: setattr(a, "X", sp.csr_array(a.X)),
    "dense": lambda a: setattr(a, "X", a.X.toarray()),
    "layer": lambda a: a.layers.update(counts=a.X.copy()) or setattr(a, "X", -a.X) or "counts",
    "raw": lambda a: setattr(a, "raw", a.copy()) or setattr(a, "X", -a.X) or "raw",
}


@pytest.mark.parametrize("place", ["memory", "view", "backed", "view of backed"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.filterwarnings("ignore:obs.*is replaced")
def test_every_anndata_is_read_right_and_never_changed(make_cells, tmp_path, change, place):
    """It is the same after an epoch, with and without a label file."""
    adata, counts = make_cells(), make_cells()
    adata.obs[["cell_type"]].assign(cell_type=lambda t: "new_" + t.cell_type).to_csv(tmp_path / "labels.csv")
    layer = CHANGES[change](adata)
    if "backed" in place:
        adata.write_h5ad(tmp_path / "cells.h5ad")
        adata = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    adata = adata[5:] if "view" in place else adata
    before = adata.to_memory() if adata.isbacked else adata.copy()
    for labelfile, first in ((None, "class_0"), (tmp_path / "labels.csv", "new_class_0")):
        module = module_of(adata, labelfiles=labelfile, layer=layer)
        list(module.train_dataloader())
        names = [module.cell_names[i] for i in module.split.test]
        np.testing.assert_allclose(cells_of(module.test_dataloader())[0], scanpys(counts[names]), rtol=2e-6)
        assert module.classes[0] == first and adata.is_view == ("view" in place)
        assert_equal(adata.to_memory() if adata.isbacked else adata, before, exact=True)


@pytest.mark.parametrize("backed", [False, True])
def test_unlabelled_cells_are_left_out_and_counted(make_cells, tmp_path, backed):
    """They are in no part, and one warning says how many there were in all files; pretraining takes them."""
    paths = [tmp_path / "0.h5ad", tmp_path / "1.h5ad"]
    for seed, path in enumerate(paths):
        cells = make_cells(seed=seed)
        cells.obs.iloc[:5, 0] = np.nan if seed else ""
        cells.write_h5ad(path)
    with pytest.warns(UserWarning, match="10 of 240 cells have no 'cell_type'") as warned:
        module = module_of(paths, backed=backed)
    assert len(warned) == 1 and len(module.labels) == len(module.cell_names) == 230 == sum(map(len, module.split))
    everything = DataModule(paths, labelled=False, backed=backed, verbose=False, test=0)
    assert [len(part) for part in everything.split] == [216, 24, 0] and everything.classes == []
    assert everything.test_dataloader() == []


def test_files_of_different_scales_are_joined(make_cells, capsys):
    """Each file's scale is undone, printed and warned about: batches are those of counts."""
    counts, others, logs = (make_cells(seed=seed) for seed in (3, 4, 4))
    sc.pp.normalize_total(logs)  # to the median, scanpy's default
    sc.pp.log1p(logs)
    with pytest.warns(UserWarning, match="The files differ in scale: counts, log1p"):
        module = module_of([counts, logs], verbose=True)
    states = [file["state"] for file in module.provenance["files"]]
    assert states[0] == "counts" and states[1].startswith("log1p(x), ")
    assert f"AnnData 2: 120 cells x 60 genes, {states[1]}" in capsys.readouterr().out
    assert_alike(module, module_of([counts, others]), "train_dataloader")
    rates = others.X.toarray() / np.random.default_rng(0).lognormal(0, 1, 60)  # by gene length
    others.X = sp.csr_matrix(np.log2(rates / rates.sum(axis=1, keepdims=True) * 1e6 + 1), dtype=np.float32)
    with pytest.warns(UserWarning, match="differ in scale: log1p.*, values of unknown scale"):
        module_of([logs, others[:, :40].copy()])


def test_provenance_is_plain_and_complete(make_cells, paths):
    """Files, registry names, scales, hashes, genes, seed, sizes, scanpy's colours; other entries of uns do no harm."""
    adata = make_cells()
    adata.uns["sims_kit"] = {"dataset": "made-up", "sha256": np.array(["ab"])}
    found = {"file": "AnnData 1", "dataset": "made-up", "state": "counts", "cells": 120, "genes": 60, "sha256": ["ab"]}
    parts = {"train": 96, "validation": 12, "test": 12}
    expected = {"files": [found], "class_label": "cell_type", "gene_kind": "symbol", "seed": 5, "cells": parts}
    assert module_of(adata, seed=5).provenance == expected
    adata.uns |= {"sims_kit": "mine", "cell_type_colors": (colours := ["#ff0000", "#00ff00", "#0000ff"])}
    module = module_of(adata)
    assert module.provenance["files"][0]["dataset"] == "" and adata.uns["sims_kit"] == "mine"
    assert module.provenance["label_colors"] == dict(zip(module.classes, colours, strict=True))
    adata.uns["cell_type_colors"] = ["#ff0000"]  # of other categories
    assert "label_colors" not in module_of(adata).provenance
    one, two = module_of(paths).provenance["files"]
    assert one["sha256"] == [hashlib.sha256(paths[0].read_bytes()).hexdigest()] and two["file"] == "two.zarr"


def test_text_is_converted_once_into_the_cache(tables, paths, tmp_path, monkeypatch):
    """With backed=True text may stand among `.h5ad` files; `~` is the home folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    tables[1].to_df().T.to_csv(tmp_path / "two.csv.gz")
    tables[1].obs.to_csv(tmp_path / "labels.csv")
    settings = dict(labelfiles=[None, "~/labels.csv"], orientation=["cells_by_genes", "genes_by_cells"])
    modules = [module_of(["one.h5ad", "~/two.csv.gz"], backed=backed, **settings) for backed in (False, True, True)]
    monkeypatch.chdir("/")
    for module in modules[1:]:
        assert module.backed and module.provenance == modules[0].provenance
        assert_alike(modules[0], module, "test_dataloader")
    assert len(list((tmp_path / "cache").rglob("*.h5ad"))) == 1


def test_what_fills_the_memory_stays_in_its_file(paths, tables, monkeypatch):
    """All files together are compared with the memory; a matrix stored by genes cannot stay, which is reported."""
    assert not module_of(paths).backed
    monkeypatch.setattr(matrix, "MEMORY_SHARE", 1e-12)
    monkeypatch.setitem(open_backed.__globals__, "NAMED", 50)
    assert not module_of(paths, backed=False).backed and not module_of(tables).backed
    for files in (paths, paths[0], paths[1]):
        assert module_of(files).backed
        assert_alike(module_of(files), module_of(files, backed=False), "val_dataloader")
    ad.AnnData(tables[0].X.tocsc(), tables[0].obs, tables[0].var).write_h5ad(by_genes := paths[0].with_name("csc.h5ad"))
    with pytest.raises(DataError, match=r"stores X by genes .*backed=False"):
        module_of(by_genes)


MASK = np.arange(60) < 30
NAMES = "choose 'intersection' or 'union', or give names of genes .* or a query"
SETTINGS = dict(num_workers=[-1, True, "2"], seed=[-1, False], batch_size=[1, 2.5, True, "64"], backed=["yes"])
SETTINGS |= dict(genes=[5, True], validation=[-0.1, 1, np.nan, "0.1", False], test=[10, "0.1", True])
BAD = [  # further ones, which `fit` meets as well, are in tests/test_bad_input.py
    *(({k: v}, SettingError, f"{k}={re.escape(repr(v))}") for k, values in SETTINGS.items() for v in values),
    *((dict(genes=genes), SettingError, NAMES) for genes in (MASK, list(MASK), pd.Series(MASK), [], 5, "all")),
    (dict(genes=["NONE", "OTHER"]), GeneError, "at least 2 genes"),
    (dict(class_label=["cell_type"]), LabelError, r"\(class_label\) is \["),
    (dict(orientation=["cells_by_genes"] * 2), SettingError, "for all or for each file"),
    (dict(labelfiles=[None, None]), LabelError, "2 labelfiles for 1 datafiles"),
    (dict(groups="donor"), UnknownNameError, "AnnData 1 called 'donor'"),
    (dict(data=["a.h5ad", "b.csv"]), FileNotFoundError, r"2 of 2 files do not exist: a\.h5ad, b\.csv"),
]


@pytest.mark.parametrize(("settings", "error", "message"), BAD)
def test_settings_that_cannot_be_used_are_named(make_cells, settings, error, message):
    """Each mistake has its own message, with the value and the next step."""
    with pytest.raises(error, match=message):
        module_of(**{"data": make_cells(), **settings})

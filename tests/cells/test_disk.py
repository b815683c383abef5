"""Cells on disk: the same batches as in memory, in orders that mix a sorted file, read ahead and checked."""

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import torch

import sims_kit as sk
from sims_kit.cells.batches import CellDataset, MemoryCells, cell_loader, cell_stream, query_batches
from sims_kit.cells.datamodule import DataModule
from sims_kit.cells.disk import CellStream, DiskCells
from sims_kit.cells.genes import GeneAlignment
from sims_kit.cells.samplers import BlockSampler, CellBatchSampler
from sims_kit.datasets import StoredMatrix, open_stored
from sims_kit.errors import DataError, SettingError, UnknownNameError


@pytest.fixture
def two_files(make_cells, tmp_path):
    """An `.h5ad` and a `.zarr` with overlapping genes in other orders, sorted by type; their paths."""
    paths = [tmp_path / "one.h5ad", tmp_path / "two.zarr"]
    one, two = make_cells(n_cells=200, seed=1)[:, :50].copy(), make_cells(n_cells=90, seed=2)[:, 44::-1].copy()
    one, two = (cells[np.argsort(cells.obs["cell_type"].to_numpy(), kind="stable")].copy() for cells in (one, two))
    one.write_h5ad(paths[0], compression="gzip")
    two.write_zarr(paths[1])
    return paths


def module_of(paths, **settings):
    """A quiet DataModule on `obs["cell_type"]`."""
    settings = {"verbose": False, "batch_size": 16, "block_size": 8, "buffer_size": 64} | settings
    return DataModule(paths, class_label="cell_type", **settings)


def assert_same(ones, others):
    """The same batches in the same order."""
    for one, other in zip(ones, others, strict=True):
        torch.testing.assert_close(one.cells.to_dense(), other.cells.to_dense(), rtol=1e-6, atol=0)
        assert torch.equal(one.labels, other.labels)


@pytest.fixture
def dataset(make_cells, tmp_path):
    """The same 290 cells of two sources in memory and, the second one, on disk with every third cell left out."""
    one, two = make_cells(n_cells=200, seed=1), make_cells(n_cells=135, seed=2)
    two.write_h5ad(tmp_path / "two.h5ad", compression="gzip")
    rows = np.flatnonzero(np.arange(135) % 3)
    first = MemoryCells(one.X, "counts", np.arange(200) % 3)
    labels, genes = np.arange(len(rows)) // 30, GeneAlignment(two.var_names, one.var_names[::-1])
    first.matrix = GeneAlignment(one.var_names, one.var_names[::-1]).apply(first.matrix)
    stored = StoredMatrix(open_stored(tmp_path / "two.h5ad").X.group)
    in_memory = CellDataset([first, MemoryCells(two.X[rows], "counts", labels, genes)])
    return in_memory, CellDataset([first, DiskCells(stored, "counts", labels, genes, rows)])


def test_rows_come_in_the_order_asked_for(dataset):
    """Any positions, scattered or not, give the rows and labels that memory gives."""
    in_memory, on_disk = dataset
    for positions in (np.random.default_rng(0).permutation(290)[:40], np.arange(190, 230), np.array([289])):
        assert_same([in_memory.__getitems__(positions)], [on_disk.__getitems__(positions)])


def test_a_stream_gives_the_batches_of_a_loader(dataset):
    """In order and shuffled, batches are those that the same sampler gives from memory; a second pass, too."""
    in_memory, on_disk = dataset
    positions = np.flatnonzero(np.arange(290) % 7)
    stream = cell_stream(on_disk, positions, 16, shuffle=True, seed=3, block_size=8, buffer_size=64)
    assert len(stream) == 16 and stream.batches_at_once == 4
    for epoch in range(2):
        stream.batch_sampler.sampler.set_epoch(epoch)
        expected = [in_memory.__getitems__(batch) for batch in stream.batch_sampler]
        assert sorted(np.concatenate(list(stream.batch_sampler))) == positions.tolist()
        assert_same(expected, stream)
    in_order = torch.utils.data.Subset(in_memory, positions.tolist())
    assert_same(cell_loader(in_order, 16), cell_stream(on_disk, positions, 16))


def test_order_follows_from_seed_and_epoch(dataset):
    """Epochs and seeds differ, the same pair gives the same order, whatever was drawn before."""

    def order(seed, epoch):
        sampler = BlockSampler(dataset[1], np.arange(290), seed, block_size=8, buffer_size=64)
        sampler.set_epoch(epoch)
        assert list(sampler) == list(sampler)
        return tuple(sampler)

    assert order(0, 3) == order(0, 3)
    assert len({order(seed, epoch) for seed in range(3) for epoch in range(3)}) == 9


def test_stretches_of_a_sorted_file_are_like_the_whole():
    """Every stretch has each type and file in proportion, within a block or two, and lies in few blocks."""
    labels = np.repeat(np.arange(5), [4000, 2000, 1000, 600, 400])  # sorted by type
    nothing = sp.csr_matrix((8000, 3), dtype=np.float32)
    dataset = CellDataset(
        [MemoryCells(nothing, "counts", labels), MemoryCells(nothing[:4000], "counts", labels[:4000])]
    )
    sampler = BlockSampler(dataset, np.arange(12_000), block_size=50, buffer_size=2000)
    order = np.array(list(sampler))
    assert np.array_equal(np.sort(order), np.arange(12_000))
    groups = labels[order % 8000] + 5 * (order >= 8000)
    expected = np.bincount(labels, minlength=5) / 6
    for start in range(0, 12_000, 2000):
        stretch = order[start : start + 2000]
        counts = np.bincount(groups[start : start + 2000], minlength=10)
        assert np.abs(counts[:5] - expected).max() <= 100 and abs(counts[5] - 4000 / 6) <= 100
        assert len(np.unique(stretch // 50)) == 40
        batch_sizes = [np.bincount(labels[stretch[i : i + 200] % 8000], minlength=5) for i in range(0, 2000, 200)]
        assert min(sizes[0] for sizes in batch_sizes) > 60  # batches are drawn from the whole stretch


def test_the_next_stretch_is_read_while_this_one_is_used(dataset):
    """When the first batch comes out, the stretch after it has been asked for, and no further one."""
    asked = []

    class Watched(CellDataset):
        def rows(self, positions):
            asked.append(len(positions))
            return super().rows(positions)

    stream = iter(CellStream(Watched(dataset[1].sources), CellBatchSampler(range(290), 10), batches_at_once=4))
    next(stream)
    stream.close()  # waits for what is being read
    assert asked == [40, 40]


@pytest.mark.parametrize("genes", ["intersection", "union"])
def test_module_on_disk_gives_the_cells_of_a_module_in_memory(two_files, genes):
    """Genes, classes, split, names and held-out batches agree; an epoch has every training cell once."""
    in_memory, on_disk = (module_of(two_files, genes=genes, backed=backed) for backed in (False, True))
    assert on_disk.is_backed and not in_memory.is_backed
    for name in ("genes", "classes", "cell_names", "states", "provenance"):
        assert getattr(in_memory, name) == getattr(on_disk, name)
    for one, other in zip(in_memory.split, on_disk.split, strict=True):
        assert np.array_equal(one, other)
    assert_same(in_memory.val_dataloader(), on_disk.val_dataloader())
    assert_same(in_memory.test_dataloader(), on_disk.test_dataloader())
    sums = [np.sort(torch.cat([b.cells.to_dense().sum(1) for b in m.train_dataloader()])) for m in (in_memory, on_disk)]
    np.testing.assert_allclose(*sums, rtol=1e-5)


def test_filters_and_label_files(make_cells, tmp_path):
    """Cells are kept, dropped and labelled from a file as in memory."""
    cells = make_cells()
    cells.obs["sample"] = np.arange(120) % 4
    cells.write_h5ad(tmp_path / "cells.h5ad")
    cells.obs[["cell_type"]].rename(columns={"cell_type": "name"})[10:].to_csv(tmp_path / "labels.csv")
    options = dict(labelfiles=tmp_path / "labels.csv", class_label="name", drop={"sample": [3]}, verbose=False)
    with pytest.warns(UserWarning, match="no row for 10"):
        modules = [DataModule(tmp_path / "cells.h5ad", backed=backed, **options) for backed in (False, True)]
        assert modules[0].cell_names == modules[1].cell_names and len(modules[1].labels) == 82
    assert_same(modules[0].val_dataloader(), modules[1].val_dataloader())


def test_many_cells_are_not_held_by_name(two_files, monkeypatch):
    """Of files with many cells only the columns needed are read; names are there when asked for, and mistakes told."""
    expected = module_of(two_files, backed=True, keep={"cell_type": ["class_0", "class_2"]})
    names = expected.cell_names
    monkeypatch.setattr("sims_kit.datasets.stored.NAMED", 100)
    assert set(open_stored(two_files[0], None, ["cell_type"]).obs_names) == {""}
    module = module_of(two_files, backed=True, keep={"cell_type": ["class_0", "class_2"]})
    assert np.array_equal(module.labels, expected.labels) and module.cell_names == names
    with pytest.raises(UnknownNameError, match="Did you mean 'cell_type'"):
        DataModule(two_files, None, "celltype", backed=True).setup()


def test_auto_streams_what_is_large(two_files, monkeypatch):
    """Files that would take more than three tenths of the free memory stay on disk, smaller ones do not."""
    assert not module_of(two_files).is_backed
    monkeypatch.setattr("sims_kit.datasets.stored.free_memory", lambda: 30_000)
    assert module_of(two_files).is_backed
    assert not module_of(two_files, backed=False).is_backed


def test_a_model_trained_from_disk_is_as_good(make_cells, tmp_path, monkeypatch):
    """A file sorted by type trains to the accuracy of memory, twice the same, and a resumed run ends the same."""
    monkeypatch.chdir(tmp_path)
    cells = make_cells(n_cells=300)
    cells = cells[np.argsort(cells.obs["cell_type"].to_numpy(), kind="stable")].copy()
    cells.write_h5ad("cells.h5ad", compression="gzip")
    options = dict(backed=True, block_size=8, buffer_size=64, enable_progress_bar=False, verbose=False)
    one, other = (sk.fit("cells.h5ad", "cell_type", max_epochs=12, logger=False, **options) for _ in range(2))
    assert one.test_metrics["accuracy_micro"] > 0.9
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))

    thesis = dict(class_label="cell_type", recipe="thesis", **options)
    whole, model, module = sk.generate_trainer("cells.h5ad", max_epochs=4, default_root_dir="whole", **thesis)
    whole.fit(model, datamodule=module)
    half, _, module = first = sk.generate_trainer("cells.h5ad", max_epochs=2, default_root_dir="half", **thesis)
    half.fit(first[1], datamodule=module)
    rest, resumed, module = sk.generate_trainer("cells.h5ad", max_epochs=4, default_root_dir="half", **thesis)
    rest.fit(resumed, datamodule=module, ckpt_path=half.checkpoint_callback.last_model_path)
    for column in ("train_loss", "val_loss"):
        np.testing.assert_allclose(model.history[column][2:], resumed.history[column][-2:], rtol=1e-6)


def test_backed_queries_are_not_read_into_memory(make_cells, tmp_path, monkeypatch):
    """A backed AnnData and an opened path give the batches of memory, and `to_memory` is never called."""
    cells = make_cells()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    vocabulary = list(cells.var_names[::2])
    expected = list(query_batches(cells, vocabulary)[0])
    monkeypatch.setattr("anndata.abc.CSRDataset.to_memory", lambda self: pytest.fail("read into memory"), raising=False)
    for query in (ad.read_h5ad(tmp_path / "cells.h5ad", backed="r"), open_stored(tmp_path / "cells.h5ad")):
        batches, coverage, state = query_batches(query, vocabulary)
        assert isinstance(batches, CellStream) and coverage.n_matched == 30 and state == "counts"
        assert_same(expected, batches)


def test_bad_cells_on_disk_are_told(make_cells, tmp_path):
    """Scaled values are refused at the start or, where the sample missed them, when they are read."""
    scaled = make_cells(state="scaled")
    scaled.write_h5ad(tmp_path / "scaled.h5ad")
    with pytest.raises(DataError, match="scaled"):
        module_of(tmp_path / "scaled.h5ad", backed=True).setup()
    cells = make_cells(n_cells=9000, n_genes=6)
    cells.X.data[cells.X.indptr[400]] = -2
    cells.write_h5ad(tmp_path / "cells.h5ad")
    module = module_of(tmp_path / "cells.h5ad", backed=True, batch_size=256, buffer_size=4096)
    with pytest.raises(DataError, match=r"cells\.h5ad was taken for counts .* from -2 to"):
        list(module.train_dataloader())
    (tmp_path / "cells.csv").write_text("cell,gene\na,1\n")
    with pytest.raises(SettingError, match=r"only \.h5ad and \.zarr"):
        module_of(tmp_path / "cells.csv", backed=True).setup()
    for wrong in (dict(backed="yes"), dict(block_size=0), dict(backed=True, orientation="genes_by_cells")):
        with pytest.raises(SettingError, match=r"(backed|block_size)="):
            module_of(tmp_path / "cells.h5ad", **wrong)

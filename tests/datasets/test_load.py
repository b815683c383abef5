"""`load`: the datasets that need no network, files by path, and tables of genes."""

import hashlib
import zipfile
from dataclasses import replace

import anndata
import numpy as np
import pytest

from sims_kit.datasets.load import catalogue, gene_table, load, prepare
from sims_kit.datasets.registry import DataFile, Source, read_registry
from sims_kit.errors import DataError, FetchError, SettingError, UnknownNameError

DATASETS = read_registry().datasets


@pytest.mark.parametrize("name", [name for name, entry in DATASETS.items() if entry.tier != "full"])
def test_dataset(name, request, tmp_path):
    """Cells, genes, classes, columns, state and origin are those of the entry, and can be written."""
    entry = DATASETS[name]
    if entry.tier == "small":
        request.getfixturevalue("real_data")
    cells = load(name)
    assert cells.shape == (entry.cells, entry.genes) and cells.X.format == "csr"
    assert (cells.X.data >= 0).all() and (cells.X.data == np.round(cells.X.data)).all() == (entry.state == "counts")
    origin = cells.uns["sims_kit"]
    assert origin["dataset"] == name and origin.get("doi") == entry.doi and None not in origin.values()
    assert origin.get("sha256", []) == [file.sha256 for file in entry.source.files]
    for column in filter(None, (entry.label, entry.sample, entry.condition, entry.region)):
        assert cells.obs[column].notna().all() and column in origin.values()
    assert entry.label is None or cells.obs[entry.label].nunique() == entry.classes
    cells.write_h5ad(tmp_path / "cells.h5ad")
    assert anndata.read_h5ad(tmp_path / "cells.h5ad").uns["sims_kit"]["licence"] == entry.licence


@pytest.mark.dataset("gencode-human", "orthologs-human-mouse")
def test_gene_tables(real_data):
    """Ids and symbols of human genes, and the pairs of human and mouse, without rows that lack one."""
    symbols, orthologs = gene_table("gencode-human"), gene_table("orthologs-human-mouse")
    assert symbols.shape == (62_754, 2) and orthologs.shape == (24_857, 2)
    assert symbols.set_index("gene_id").loc["ENSG00000141510", "symbol"] == "TP53"
    assert orthologs.set_index("human").loc["TP53", "mouse"] == "Trp53"


@pytest.fixture
def toy(cache, monkeypatch):
    """A dataset of the tier full: an archive of two matrices that are summed, labels and a table of genes."""
    archive = cache / "toys" / "toy.zip"
    archive.parent.mkdir(parents=True)
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("exon.csv", "gene,a,b,c,d\n11,1,0,2,0\n12,0,3,0,1\n")
        file.writestr("intron.csv", "gene,a,b,c,d\n11,0,1,0,0\n12,0,1,0,0\n")
        file.writestr("cells.csv", "cell,type,donor\nb,T,1\na,B,2\nc,T,1\nd,no class,2\n")
        file.writestr("genes.csv", "symbol,entrez\nVIM,12\nACTB,11\n")
    zipped = DataFile("toy.zip", ("https://a.example/x",), hashlib.sha256(archive.read_bytes()).hexdigest(), None)
    source = Source("archive", "toys", zipped, ("exon.csv", "intron.csv"), "cells.csv", genes="genes.csv")
    settings = dict(cells=3, genes=2, classes=2, gene_column="symbol", drop={"type": ["no class"]})
    entry = replace(DATASETS["allen-mtg"], source=source, label="type", other_labels=(), region=None, **settings)
    monkeypatch.setitem(DATASETS, "toy", entry)
    return archive


def test_archive_is_converted_once(toy, monkeypatch):
    """Members are summed, labelled, named and filtered; an archive that the registry does not name is refused."""
    for _ in range(2):
        cells = load("toy")
        assert cells.to_df().to_dict("list") == {"ACTB": [1, 1, 2], "VIM": [0, 4, 0]}
        assert cells.obs["type"].tolist() == ["B", "T", "T"] and cells.obs["donor"].tolist() == ["2", "1", "1"]
        assert cells.var["gene_ids"].tolist() == ["11", "12"] and list(cells.uns) == ["sims_kit"]
    assert len(list((toy.parents[2] / "own/sims_kit/converted").iterdir())) == 1 == len(list(toy.parents[1].iterdir()))
    source = DATASETS["toy"].source
    source = replace(source, archive=replace(source.archive, sha256="0" * 64))
    monkeypatch.setitem(DATASETS, "toy", replace(DATASETS["toy"], source=source))
    with pytest.raises(FetchError, match=r"toy\.zip"):
        load("toy")


@pytest.mark.parametrize(("tier", "says"), [("full", pytest.warns(UserWarning)), ("small", pytest.raises(DataError))])
def test_entry_that_does_not_fit_the_data(toy, monkeypatch, tier, says):
    """When cells, genes, classes or columns differ from the entry, both are named: an error, but of the tier full."""
    monkeypatch.setitem(DATASETS, "toy", replace(DATASETS["toy"], cells=701, region="area", tier=tier))
    with says as caught:
        load("toy")
    message = str(caught.value) if tier == "small" else str([warning.message for warning in caught])
    assert "toy: after loading there are 3 cells instead of 701, no column 'area' in obs." in message


def test_selected_cells(toy, monkeypatch):
    """Values are compared as text without regard to case: 1.0 and "1" are the same; what fits nothing is said."""
    entry = replace(DATASETS["toy"], cells=None, classes=None)
    for keep, drop, says in [
        ({"donor": [1.0]}, {}, ["b", "c"]),
        ({"donor": ["1", 2]}, {"type": ["NO class"], "donor": [2]}, ["b", "c"]),
        ({"donr": [1]}, {}, "'donor'"),
        ({"donor": [3]}, {}, "No cell of 4 has {'donor': .3.}"),
    ]:
        monkeypatch.setitem(DATASETS, "toy", replace(entry, keep=keep, drop=drop))
        if isinstance(says, list):
            assert list(load("toy").obs_names) == says
            continue
        with pytest.raises((UnknownNameError, DataError), match=says):
            load("toy")


def test_names_and_paths(tmp_path, make_cells, cache):
    """A path gives the file as it is; what cannot be had is reported, with the nearest names."""
    path = tmp_path / "cells.h5ad"
    make_cells(n_cells=5, n_genes=4).write_h5ad(path)
    assert load(path).shape == load(str(path)).shape == (5, 4)
    assert prepare("pbmc68k") == prepare("sim-mouse") == []
    for wrong, error, says in [
        (lambda: load("pbmc86k"), UnknownNameError, "'pbmc68k'"),
        (lambda: load("pbmc68k.h5ad"), FileNotFoundError, "pbmc68k.h5ad"),
        (lambda: load("mouse-immune"), FetchError, "train_set.csv.gz"),
        (lambda: load("pbmc68k", size="full"), SettingError, "one size"),
        (lambda: load("sim-cortex", size="ful"), UnknownNameError, "'full'"),
        (lambda: gene_table("gencode"), UnknownNameError, "'gencode-human'"),
    ]:
        with pytest.raises(error, match=says):
            wrong()


def test_catalogue():
    """The catalogue says for each entry what the registry says; what is unknown is missing."""
    table = catalogue()
    assert table.loc["cell-lines-5cl-p2", ["cells", "genes", "classes"]].tolist() == [155, 14078, 5]
    assert table["megabytes"][["mouse-immune", "pbmc68k"]].tolist() == [2.3, 0]
    assert table.loc["allen-human", "other_labels"] == "class_label, cluster_label"
    assert list(table.index) == list(DATASETS) and table[["genes", "megabytes"]].isna().loc["retina"].all()

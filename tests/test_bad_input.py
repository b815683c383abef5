"""Bad input through the public face: every mistake has its own named error, told early, that says what to do.

`CASES` is a table: title, what is given, what is called with it, the error, and parts of its message. When the
environment variable SIMS_KIT_MESSAGES names a file, the messages are written there as a Markdown table.
"""

import gzip
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import requests
import torch
from anndata.tests.helpers import assert_equal

import sims_kit as sk
from sims_kit.errors import (
    DataError,
    FetchError,
    GeneError,
    LabelError,
    ModelFileError,
    RegistryError,
    SettingError,
    UnknownNameError,
)
from sims_kit.model.tabnet import TabNet

QUIET = dict(enable_progress_bar=False, verbose=False)
ENSEMBL, SYMBOLS = [f"ENSG{i:011d}" for i in range(60)], [f"SYMBOL{i}" for i in range(60)]
CACHED = Path("cache", "scdeepcluster", "worm_neuron_cell.h5")  # of the dataset worm-neurons


@dataclass
class Bench:
    """What a case may use, in an empty working folder; paths are relative to it."""

    cells: ad.AnnData  # 120 cells x 60 genes, counts, Ensembl ids, three classes in obs["cell_type"]
    model: sk.SIMSClassifier  # fitted on such cells
    patch: pytest.MonkeyPatch

    def file(self, name: str | Path, content: bytes | str = b"") -> Path:
        """A file of this content."""
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
        return Path(name)

    def folder(self, name: str) -> Path:
        """An empty folder."""
        Path(name).mkdir()
        return Path(name)

    def csv(self, turned: bool = False, genes: list[str] = ENSEMBL) -> Path:
        """The cells as a table, cells in rows unless turned."""
        table = self.cells.to_df().set_axis(genes, axis=1)
        (table.T if turned else table).to_csv("cells.csv")
        return Path("cells.csv")

    def h5ad(self, size: int | None = None) -> Path:
        """The cells as AnnData file, cut short after `size` bytes."""
        self.cells.write_h5ad("cells.h5ad")
        return self.file("cells.h5ad", Path("cells.h5ad").read_bytes()[:size])

    def labels(self, n_rows: int | None = None, **to_csv) -> Path:
        """The cells' labels as a file, with their names unless `index=False`."""
        self.cells.obs[:n_rows].to_csv("labels.csv", **to_csv)
        return Path("labels.csv")

    def with_values(self, change: Callable[[np.ndarray], Any], **layers) -> ad.AnnData:
        """The cells with a changed matrix."""
        return ad.AnnData(change(self.cells.X.toarray()), self.cells.obs, self.cells.var, layers=layers)

    def with_genes(self, names: list[str]) -> ad.AnnData:
        """The cells with other names of genes."""
        return ad.AnnData(self.cells.X, self.cells.obs, pd.DataFrame(index=names))

    def with_labels(self, labels: Any) -> ad.AnnData:
        """The cells with other labels."""
        return ad.AnnData(self.cells.X, self.cells.obs.assign(cell_type=labels), self.cells.var)

    def without_network(self) -> None:
        """Downloads are allowed, but no server can be reached."""

        def refuse(*args, **options):
            raise requests.ConnectionError("Network is unreachable")

        self.patch.setattr("pooch.core.time.sleep", lambda seconds: None)
        self.patch.setattr(requests, "get", refuse)
        self.patch.delenv("SIMS_KIT_OFFLINE")


class Case(NamedTuple):
    """One row of the table."""

    title: str
    given: Callable[[Bench], Any]
    call: Callable[[Any, Bench], Any]
    error: type[Exception]
    says: list[str]


def fit(given, bench, label="cell_type", **settings):
    """`sk.fit` on labels in obs."""
    return sk.fit(given, label, **QUIET, **settings)


def fit_with(label="cell_type", **settings):
    """`sk.fit` with these settings."""
    return lambda given, bench: fit(given, bench, label, **settings)


def generate_trainer(given, bench):
    """`sk.generate_trainer` with a label file, as in the thesis."""
    return sk.generate_trainer([given], ["labels.csv"], "cell_type", verbose=False)


def annotate(given, bench, **options):
    """`sk.annotate` with the fitted model."""
    return sk.annotate(given, bench.model, **options)


def explain(given, bench, **options):
    """`sk.explain` with the fitted model."""
    return sk.explain(bench.model, given, **options)


def use_model(given, bench):
    """`sk.annotate` of good cells with the model that is given."""
    return sk.annotate(bench.cells, given)


def read(given, bench):
    """`sk.read`."""
    return sk.read(given)


def load(given, bench):
    """`sk.load`."""
    return sk.load(given)


def load_model(given, bench):
    """`sk.load_model`."""
    return sk.load_model(given)


def good(bench):
    """Nothing wrong with the cells."""
    return bench.cells


def scaled(bench):
    """Scaled values in X, counts in a layer."""
    return bench.with_values(lambda X: (X - X.mean(0)) / X.std(0), counts=bench.cells.X)


def offline(bench):
    """The cache is empty and the network forbidden."""
    return "worm-neurons"


def no_network(bench):
    """The cache is empty and no server answers."""
    bench.without_network()
    return "worm-neurons"


def in_cache(content):
    """A file of that content where the dataset's file should be."""
    return lambda bench: bench.file("cache" / CACHED, content) and "worm-neurons"


CASES = [
    # Orientation
    Case("AnnData turned", lambda b: b.cells.T, fit, DataError, ["60 rows", "like genes (ENSG", "adata.T.copy()"]),
    Case(
        "AnnData turned, genes with names of one's own",
        lambda b: b.with_genes(SYMBOLS).T,
        fit,
        DataError,
        ["turned", "'cell_type'", "var", "adata.T.copy()"],
    ),
    Case(
        "csv turned, with label file",
        lambda b: b.labels() and b.csv(turned=True),
        generate_trainer,
        DataError,
        ["turned", 'orientation="genes_by_cells"'],
    ),
    Case(
        "csv turned, genes with names of one's own, with label file",
        lambda b: b.labels() and b.csv(turned=True, genes=SYMBOLS),
        generate_trainer,
        LabelError,
        ["120 rows", "60 cells", "120 genes", 'orientation="genes_by_cells"'],
    ),
    Case("query turned", lambda b: b.cells.T, annotate, DataError, ["turned", "adata.T.copy()"]),
    Case("cells to explain turned", lambda b: b.cells.T, explain, DataError, ["turned", "adata.T.copy()"]),
    Case(
        "orientation misspelt",
        good,
        fit_with(orientation="gene_by_cell"),
        SettingError,
        ["'gene_by_cell'", "'genes_by_cells'"],
    ),
    # Genes
    Case(
        "two files without a common gene",
        lambda b: [b.cells, b.with_genes(SYMBOLS)],
        fit,
        GeneError,
        ["AnnData 2 shares no gene with AnnData 1", "60 symbols such as 'SYMBOL0'", "60 Ensembl ids", "one kind"],
    ),
    Case(
        "query of symbols, model of Ensembl ids",
        lambda b: b.with_genes(SYMBOLS),
        annotate,
        GeneError,
        ["0 of the model's 60 genes", "expects 60 Ensembl ids", "60 symbols", "Set adata.var_names"],
    ),
    Case("cells to explain of symbols", lambda b: b.with_genes(SYMBOLS), explain, GeneError, ["60 Ensembl ids"]),
    Case("genes= misspelt", good, fit_with(genes="shared"), SettingError, ["'shared'", "intersection", "union"]),
    # Labels
    Case(
        "labels of another length",
        lambda b: b.labels(90, index=False) and b.csv(),
        generate_trainer,
        LabelError,
        ["90 rows", "120 cells", "one row per cell"],
    ),
    Case(
        "label column that does not exist",
        good,
        fit_with("celltype"),
        UnknownNameError,
        ["AnnData 1 'celltype'", "'cell_type'"],
    ),
    Case(
        "label column that the label file does not have",
        lambda b: b.file("labels.csv", "cell,cell_types,age\ncell_0000,a,1\ncell_0001,b,2\n") and b.csv(),
        generate_trainer,
        UnknownNameError,
        ["labels.csv", "'cell_type'", "'cell_types'"],
    ),
    Case("no label column named", good, fit_with(None), LabelError, ["['cell_type']"]),
    Case("several label columns", good, fit_with(["cell_type"]), SettingError, ["['cell_type']", "one column"]),
    Case("all labels missing", lambda b: b.with_labels(np.nan), fit, LabelError, ["none of 120 cells", "class_label"]),
    Case("one class only", lambda b: b.with_labels("neuron"), fit, LabelError, ["one class", "'neuron'", "120 cells"]),
    Case(
        "every cell a class of its own",
        lambda b: b.with_labels(list(b.cells.obs_names)),
        fit,
        LabelError,
        ["120 classes", "validation=0"],
    ),
    Case(
        "two label files for one data file",
        good,
        fit_with(labelfiles=["a.csv", "b.csv"]),
        LabelError,
        ["2 labelfiles for 1 datafiles", "one for each"],
    ),
    Case(
        "a cell with two labels in the label file",
        lambda b: b.file("labels.csv", "cell,cell_type\ncell_0000,a\ncell_0000,b\ncell_0001,b\n") and b.csv(),
        generate_trainer,
        LabelError,
        ["labels.csv", "cell_0000", "one row per cell"],
    ),
    Case("label file empty", lambda b: b.file("labels.csv") and b.csv(), generate_trainer, DataError, ["labels.csv"]),
    Case("label file not there", good, fit_with(labelfiles="l.csv"), FileNotFoundError, ["l.csv", "Check the paths"]),
    Case(
        "label file that is a folder",
        lambda b: b.folder("labels.csv") and b.csv(),
        generate_trainer,
        DataError,
        ["labels.csv is a folder"],
    ),
    Case(
        "label file that is no text",
        lambda b: b.file("labels.csv", b"\x89HDF\xff\xfe") and b.csv(),
        generate_trainer,
        DataError,
        ["labels.csv", "delimited text"],
    ),
    Case(
        "cells chosen by a column that does not exist",
        good,
        fit_with(keep={"celltype": ["a"]}),
        UnknownNameError,
        ["'celltype'", "'cell_type'"],
    ),
    Case(
        "no cell left after choosing",
        good,
        fit_with(keep={"cell_type": ["neuron"]}),
        DataError,
        ["No cell is left of 120", "neuron"],
    ),
    # Values
    Case("NaN", lambda b: b.with_values(lambda X: np.where(X > 9, np.nan, X)), fit, DataError, ["NaN", "write 0"]),
    Case("infinite values", lambda b: b.with_values(lambda X: X / (X < 9)), fit, DataError, ["infinite", "finite"]),
    Case("negative values", lambda b: b.with_values(lambda X: X - 1), fit, DataError, ["down to -1", "Pass counts"]),
    Case("scaled matrix", scaled, fit, DataError, ["AnnData 1", "scaled", "layer='counts'"]),
    Case("scaled query", scaled, annotate, DataError, ["query", "scaled", "layer='counts'"]),
    Case("cells to explain scaled", scaled, explain, DataError, ["scaled", "layer='counts'"]),
    Case("nothing but zeros", lambda b: b.with_values(lambda X: X * 0), fit, DataError, ["120 cells x 60", "all zero"]),
    Case("no cells", lambda b: b.cells[:0].copy(), fit, DataError, ["0 cells x 60 genes"]),
    Case("no genes", lambda b: b.cells[:, :0].copy(), fit, DataError, ["120 cells x 0 genes"]),
    Case("query without cells", lambda b: b.cells[:0].copy(), annotate, DataError, ["0 cells x 60 genes"]),
    Case("no matrix", lambda b: ad.AnnData(obs=b.cells.obs, var=b.cells.var), fit, DataError, ["AnnData 1", "no X"]),
    Case("layer misspelt", scaled, fit_with(layer="count"), UnknownNameError, ["'count'", "'counts'"]),
    Case(
        "layer of a query misspelt",
        scaled,
        lambda x, b: annotate(x, b, layer="Counts"),
        UnknownNameError,
        ["'Counts'", "'counts'"],
    ),
    Case(
        "text in a csv matrix",
        lambda b: b.file("cells.csv", "cell,A,type\nc1,3,neuron\nc2,1,glia\n"),
        read,
        DataError,
        ["'neuron'", "row 'c1'", "column 'type'", "label file"],
    ),
    Case(
        "gap in a csv matrix",
        lambda b: b.file("cells.csv", "cell,A,B\nc1,3,4\nc2,,5\n"),
        read,
        DataError,
        ["missing", "row 'c2'", "column 'A'"],
    ),
    # Files
    *(
        Case(f"empty {ending} file", lambda b, e=ending: b.file(f"c{e}"), read, DataError, [f"c{ending}", "0 bytes"])
        for ending in (".h5ad", ".h5", ".loom", ".hdf5", ".csv", ".tsv.gz")
    ),
    Case("gzipped nothing", lambda b: b.file("c.csv.gz", gzip.compress(b"")), read, DataError, ["c.csv.gz", "empty"]),
    Case("empty .zarr folder", lambda b: b.folder("c.zarr"), read, DataError, ["c.zarr"]),
    Case("empty folder", lambda b: b.folder("sample1"), read, DataError, ["sample1", "folder", "matrix.mtx"]),
    Case(
        "empty matrix in a 10x folder",
        lambda b: (b.file("s/matrix.mtx"), b.file("s/genes.tsv", "A\n"), b.file("s/barcodes.tsv", "AC\n"))[0].parent,
        read,
        DataError,
        ["matrix.mtx", "empty"],
    ),
    Case("header without rows", lambda b: b.file("c.csv", "cell,A,B\n"), read, DataError, ["c.csv", "no rows"]),
    Case("truncated .h5ad", lambda b: b.h5ad(9000), read, DataError, ["cells.h5ad", "cut short", "Download"]),
    Case("truncated .h5ad as query", lambda b: b.h5ad(9000), annotate, DataError, ["cells.h5ad", "cut short"]),
    Case(
        "truncated .csv.gz",
        lambda b: b.file("c.csv.gz", gzip.compress(b.csv().read_bytes())[:-99]),
        read,
        DataError,
        ["c.csv.gz", "cut short"],
    ),
    Case(
        ".h5ad that is a web page",
        lambda b: b.file("c.h5ad", "<!DOCTYPE html><html>"),
        read,
        DataError,
        ["c.h5ad", "web page"],
    ),
    Case(".h5ad that is a table", lambda b: b.file("c.h5ad", "a,b\n1,2\n"), read, DataError, ["c.h5ad", "not HDF5"]),
    Case("unknown format", lambda b: b.file("c.rds", "RDX3"), read, DataError, ["'c.rds'", ".h5ad"]),
    Case("file not there", lambda b: b.h5ad() and "cell.h5ad", read, FileNotFoundError, ["cell.h5ad", "'cells.h5ad'"]),
    Case("training file not there", lambda b: "c.h5ad", fit, FileNotFoundError, ["c.h5ad", "Check the paths"]),
    Case("training file in an empty folder", lambda b: b.folder("c"), fit, DataError, ["c is a folder", ".zarr"]),
    # Datasets
    Case("unknown dataset", lambda b: "pbmc68", load, UnknownNameError, ["'pbmc68'", "'pbmc68k'"]),
    Case("unknown dataset as query", lambda b: "pbmc-68k", annotate, UnknownNameError, ["'pbmc68k'"]),
    Case("dataset's name for training", lambda b: "pbmc68k", fit, FileNotFoundError, ["sims_kit.load(name)"]),
    Case("no network and no cache", no_network, load, FetchError, ["worm-neurons", "unreachable", "curl", "https://"]),
    Case("network forbidden and no cache", offline, load, FetchError, ["worm-neurons", "SIMS_KIT_OFFLINE", "curl"]),
    Case("wrong hash", in_cache(b"other"), load, FetchError, ["SHA-256", "expected", "left as it was", "curl"]),
    Case("empty file in the cache", in_cache(b""), load, FetchError, ["worm-neurons", "0 bytes", "curl"]),
    Case("AnnData to load", good, load, SettingError, ["AnnData", "name", "path"]),
    # Settings
    Case("unknown setting", good, fit_with(max_epoch=3), UnknownNameError, ["setting 'max_epoch'", "'max_epochs'"]),
    Case("unknown recipe", good, fit_with(recipe="tesis"), UnknownNameError, ["'tesis'", "'thesis'"]),
    Case("unknown logger", good, fit_with(logger="tensorbord"), UnknownNameError, ["'tensorbord'", "'tensorboard'"]),
    Case("batches of one cell", good, fit_with(batch_size=1), SettingError, ["batch_size=1", "2 or more"]),
    Case(
        "validation and test leave nothing",
        good,
        fit_with(validation=0.5, test=0.5),
        SettingError,
        ["validation=0.5", "test=0.5", "under 1"],
    ),
    Case("cells as shares", good, fit_with(test=20), SettingError, ["test=20", "shares"]),
    Case("negative seed", good, fit_with(seed=-1), SettingError, ["seed=-1"]),
    Case("array for AnnData", lambda b: np.zeros((9, 9)), fit, SettingError, ["ndarray", "path or an AnnData"]),
    Case("no files", lambda b: [], fit, SettingError, ["datafiles is empty"]),
    Case(
        "network setting misspelt",
        good,
        fit_with(model_params={"network": {"n_step": 3}}),
        UnknownNameError,
        ["'n_step'", "'n_steps'"],
    ),
    Case(
        "network setting in the wrong place",
        good,
        fit_with(model_params={"n_steps": 3}),
        SettingError,
        ["n_steps", "network={'n_steps': 3}"],
    ),
    Case("query in batches of none", good, lambda x, b: annotate(x, b, batch_size=0), SettingError, ["batch_size=0"]),
    Case(
        "groups to explain by a column that does not exist",
        good,
        lambda x, b: explain(x, b, groupby="celltype"),
        UnknownNameError,
        ["'celltype'", "'cell_type'"],
    ),
    # Models
    Case("model without names", lambda b: sk.SIMSClassifier(60, 3), use_model, SettingError, ["not fitted", "fit("]),
    Case(
        "model of generate_trainer, not trained",
        lambda b: sk.generate_trainer(b.cells, class_label="cell_type", logger=False, **QUIET)[1],
        use_model,
        SettingError,
        ["not fitted", "trainer.fit(model, datamodule=module)"],
    ),
    Case("cells where the model should be", good, use_model, SettingError, ["AnnData", "annotate(query, model)"]),
    Case("model where the query should be", lambda b: b.model, annotate, SettingError, ["annotate(query, model)"]),
    Case("model file not there", lambda b: "m.safetensors", use_model, FileNotFoundError, ["m.safetensors"]),
    Case("model file that is a folder", lambda b: b.folder("m"), load_model, ModelFileError, ["'m'", "folder"]),
    Case("model file empty", lambda b: b.file("m.safetensors"), load_model, ModelFileError, ["m.safetensors"]),
    Case(
        "model file that is a pickle",
        lambda b: b.file("m.pkl", pickle.dumps({"weights": [1.0]})),
        load_model,
        ModelFileError,
        ["'m.pkl'", "safetensors", "save_model"],
    ),
    Case(
        "model file cut short",
        lambda b: b.file("m", sk.save_model(b.model, "m").read_bytes()[:-9]),
        load_model,
        ModelFileError,
        ["'m'", "again"],
    ),
    Case("folder to save a model to", lambda b: b.folder("m"), lambda x, b: sk.save_model(b.model, x), SettingError, ["m"]),
]


@pytest.fixture(scope="session")
def messages():
    """The rows of the table of messages, written as Markdown at the end if SIMS_KIT_MESSAGES names a file."""
    rows = []
    yield rows
    if path := os.environ.get("SIMS_KIT_MESSAGES"):
        cells = [[str(field).replace("|", "\\|").replace("\n", "<br>") for field in row] for row in rows]
        lines = [f"| {' | '.join(row)} |" for row in [("input", "error", "message"), ("---",) * 3, *cells]]
        Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def model(make_cells, tmp_path_factory):
    """A model fitted on cells of Ensembl ids."""
    cells = make_cells()
    cells.var_names = ENSEMBL
    folder = tmp_path_factory.mktemp("fit")
    return sk.fit(cells, "cell_type", max_epochs=2, logger=False, default_root_dir=folder, **QUIET)


@pytest.fixture
def bench(make_cells, model, tmp_path, monkeypatch):
    """Good cells, a fitted model, an empty working folder with an empty cache, and no long work."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SIMS_KIT_DATA", "cache")
    for owner, work in ((pl.Trainer, "fit"), (TabNet, "steps")):
        monkeypatch.setattr(owner, work, lambda *args, **options: pytest.fail("work began before the error"))
    cells = make_cells()
    cells.var_names = ENSEMBL
    return Bench(cells, model, monkeypatch)


@pytest.mark.parametrize("case", CASES, ids=[case.title for case in CASES])
def test_bad_input(case, bench, messages):
    """The named error comes before any training or prediction, and input, model and files stay as they were."""
    given = case.given(bench)
    inputs = [cells for cells in (bench.cells, *np.atleast_1d(np.array(given, object))) if isinstance(cells, ad.AnnData)]
    before, files = [cells.copy() for cells in inputs], _files()
    with pytest.raises(case.error) as caught:
        case.call(given, bench)
    message = str(caught.value)
    messages.append((case.title, type(caught.value).__name__, message.replace(f"{Path.cwd()}/", "")))
    assert type(caught.value) is case.error
    assert [part for part in case.says if part not in message] == []
    for cells, copy in zip(inputs, before, strict=True):
        assert_equal(cells, copy)
    assert _files() == files


def _files() -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}

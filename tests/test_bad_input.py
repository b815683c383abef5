"""Bad input through the public face: every mistake has its own named error, told early, that says what to do.

`CASES` is a table of titles, of what is given, of what is called with it, of the error, and of parts of its message.
Values of single settings that cannot be used are in `cells/test_datamodule.py`.
"""

import gzip
import os
import pickle
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import requests
from anndata import AnnData
from anndata.tests.helpers import assert_equal

import sims_kit as sk
from sims_kit.datasets.registry import read_registry
from sims_kit.errors import (
    DataError,
    FetchError,
    GeneError,
    LabelError,
    ModelFileError,
    RegistryError,
    SettingError,
    SimsError,
    UnknownNameError,
)
from sims_kit.model.network import TabNet

QUIET = dict(verbose=False)
ENSEMBL, SYMBOLS = [f"ENSG{i:011d}" for i in range(60)], [f"SYMBOL{i}" for i in range(60)]
CACHED = Path("cache", "scdeepcluster", "worm_neuron_cell.h5")  # the one file of the dataset worm-neurons


@dataclass
class Bench:
    """What a case may use, in an empty working folder; the paths it gives lie in there."""

    cells: AnnData  # 120 cells x 60 genes, counts, Ensembl ids, three classes in obs["cell_type"]
    model: sk.SIMSClassifier  # fitted on such cells
    patch: pytest.MonkeyPatch

    def values(self, change, **layers) -> AnnData:
        """The cells with a changed matrix."""
        return AnnData(change(self.cells.X.toarray()), self.cells.obs, self.cells.var, layers=layers)

    def genes(self, names) -> AnnData:
        """The cells with other names of genes."""
        return AnnData(self.cells.X, self.cells.obs, pd.DataFrame(index=names))

    def labels(self, labels) -> AnnData:
        """The cells with other labels."""
        return AnnData(self.cells.X, self.cells.obs.assign(cell_type=labels), self.cells.var)

    def file(self, name, content=b"") -> Path:
        """A file of this content."""
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
        return Path(name)

    def folder(self, name) -> Path:
        """An empty folder."""
        Path(name).mkdir()
        return Path(name)

    def shared(self):
        """A query, a link to it, a text file and an empty folder."""
        self.cells.write_h5ad("q.h5ad")
        os.symlink("q.h5ad", "link.h5ad")
        self.folder("x")
        return self.file("file", "text")

    def h5ad(self, size=None) -> Path:
        """The cells as an AnnData file, cut short after `size` bytes."""
        self.cells.write_h5ad("cells.h5ad")
        return self.file("cells.h5ad", Path("cells.h5ad").read_bytes()[:size])

    def csv(self, turned=False, genes=ENSEMBL, labels=None) -> Path:
        """The cells as a table, beside a labels.csv with their labels or this content."""
        table = self.cells.to_df().set_axis(genes, axis=1)
        (table.T if turned else table).to_csv("cells.csv")
        self.file("labels.csv", self.cells.obs.to_csv() if labels is None else labels)
        return Path("cells.csv")


def good(bench):
    """Nothing wrong with the cells: the mistake lies in the call."""
    return bench.cells


def scaled(bench):
    """Scaled values in X, counts in a layer."""
    return bench.values(lambda X: (X - X.mean(0)) / X.std(0), counts=bench.cells.X)


def no_network(bench):
    """Downloads are allowed, but no server can be reached; the cache is empty."""

    def refuse(*args, **options):
        raise requests.ConnectionError("Network is unreachable")

    bench.patch.setattr("pooch.core.time.sleep", lambda seconds: None)
    bench.patch.setattr(requests, "get", refuse)
    bench.patch.delenv("SIMS_KIT_OFFLINE")
    return "worm-neurons"


def untrained(bench):
    """A model that knows its genes and classes and was not trained."""
    return sk.generate_trainer(bench.cells, class_label="cell_type", logger=False, **QUIET)[1]


def fit(given, bench, label="cell_type", **settings):
    """`sk.fit` on labels in obs."""
    return sk.fit(given, label, **QUIET, **settings)


def two_lines(given, bench):
    """`sk.generate_trainer` on a file and a label file, as in the thesis."""
    return sk.generate_trainer([given], ["labels.csv"], "cell_type", verbose=False)


def annotate(given, bench, **options):
    """`sk.annotate` with the fitted model."""
    return sk.annotate(given, bench.model, **options)


def explain(given, bench, **options):
    """`sk.explain` with the fitted model."""
    return sk.explain(bench.model, given, **options)


def label_with(given, bench, **options):
    """`sk.annotate` on good cells, with the model that is given."""
    return sk.annotate(bench.cells, given, **options)


def of(function, *arguments):
    """A function of the public face that takes what is given and nothing of the bench."""
    return lambda given, bench: function(given, *arguments)


def on(function, *arguments, **options):
    """A function that takes nothing of what is given."""
    return lambda given, bench: function(*arguments, **options)


def but(call, *args, **settings):
    """A call from above with other settings."""
    return lambda given, bench: call(given, bench, *args, **settings)


def save(path, **options):
    """`sk.save_model` of the fitted model."""
    return lambda given, bench: sk.save_model(bench.model, path, **options)


def results(query=None, **options):
    """`sk.annotate` of the cells or of a file, with `out`."""
    return lambda given, bench: sk.annotate(query or bench.cells, bench.model, **options)


def registry(content):
    """A registry with this content."""
    return lambda bench: bench.file("registry.yaml", content)


read, load, load_model, read_entries = map(of, (sk.read, sk.load, sk.load_model, read_registry.__wrapped__))
LAUGHS = "a: &a [x, x]\n" + "".join(  # two to the power of thirty-odd entries, if they were written out
    f"{after}: &{after} [{', '.join([f'*{name}'] * 9)}]\n" for name, after in pairwise("abcdefghij")
)

# fmt: off
CASES = [
    # --- Orientation
    ("AnnData turned", lambda b: b.cells.T, fit,
     DataError, ["AnnData 1 seems to be turned", ") are named like genes, its columns (120", "adata.T.copy()"]),
    ("AnnData turned, genes with names of one's own", lambda b: b.genes(SYMBOLS).T, fit,
     DataError, ["turned", ") have no 'cell_type', its columns (120", "in var", "adata.T.copy()"]),
    ("csv turned, with label file", lambda b: b.csv(turned=True), two_lines,
     DataError, ["cells.csv seems to be turned", 'orientation="genes_by_cells"']),
    ("csv turned, genes with names of one's own, with label file", lambda b: b.csv(True, SYMBOLS), two_lines,
     LabelError, ["labels.csv has 120 rows", "60 cells", "120 genes", "fit the genes", 'orientation="genes_by_cells"']),
    ("query turned", lambda b: b.cells.T, annotate,
     DataError, ["turned", "60 rows are named like the model's genes ('ENSG", "query.T.copy()"]),

    ("orientation misspelt", good, but(fit, orientation="turned"), SettingError, ["'turned'", "'genes_by_cells'"]),
    ("second AnnData turned", lambda b: [b.cells, b.cells.T], fit, DataError, ["AnnData 2", "genes_by_cells"]),

    # --- Genes
    ("two files without a common gene", lambda b: [b.cells, b.genes(SYMBOLS)], fit,
     GeneError, ["AnnData 2 shares no gene with AnnData 1", "60 symbols such as 'SYMBOL0'", "60 Ensembl ids"]),
    ("query of symbols, model of Ensembl ids", lambda b: b.genes(SYMBOLS), annotate,
     GeneError, ["0 of the model's 60 genes", "expects 60 Ensembl ids", "60 symbols", "Set adata.var_names"]),

    # --- Labels
    ("labels of another length", lambda b: b.csv(labels="cell_type\n" + "neuron\nglia\n" * 45), two_lines,
     LabelError, ["labels.csv has 90 rows", "120 cells", "in_order=True"]),
    ("label column that does not exist", good, but(fit, "celltype"),
     UnknownNameError, ["obs column of AnnData 1 called 'celltype'", "Did you mean 'cell_type'"]),
    ("no label column named", good, but(fit, None), LabelError, ["one of ['cell_type']"]),
    ("all labels missing", lambda b: [b.cells, b.labels(np.nan)], fit,
     LabelError, ["AnnData 2: none of 120 cells has a 'cell_type'", "Check class_label"]),
    ("one class only", lambda b: b.labels("neuron"), fit, LabelError, ["one class only, 'neuron'", "at least two"]),
    ("every cell a class of its own", lambda b: b.labels(list(b.cells.obs_names)), fit,
     LabelError, ["None of the 120 classes", "'cell_type'", "validation=0"]),
    ("label file that does not exist", good, but(fit, labelfiles="labels.csv"),
     FileNotFoundError, ["1 of 1 files do not exist: labels.csv", "Check the paths"]),
    ("no label column named, label file", lambda b: b.csv(), lambda x, b: sk.fit(x, labelfiles="labels.csv"),
     LabelError, ["class_label is missing"]),
    ("a cell with two labels", lambda b: b.csv(labels="cell,cell_type\ncell_0000,a\ncell_0000,b\n"), two_lines,
     LabelError, ["labels.csv", "cell_0000", "one row per cell"]),
    ("label file that is no text", lambda b: b.csv(labels=b"\x89HDF\xff"), two_lines,
     DataError, ["labels.csv", "UTF-8 text"]),
    ("label file that is a folder", lambda b: b.folder("labels"), lambda x, b: fit(b.cells, b, labelfiles=x),
     FileNotFoundError, ["no label file labels"]),

    # --- Values
    ("NaN", lambda b: b.values(lambda X: np.where(X > 9, np.nan, X)), fit, DataError, ["NaN", "finite: write 0"]),
    ("negative values", lambda b: b.values(lambda X: X - 1), fit, DataError, ["down to -1", "Pass counts"]),
    ("scaled matrix", scaled, fit, DataError, ["AnnData 1", "scaled", "This AnnData holds layer='counts'"]),
    ("nothing but zeros", lambda b: b.values(lambda X: X * 0), fit, DataError, ["120 cells x 60 genes, all zero"]),
    ("no cells", lambda b: [b.cells, b.cells[:0].copy()], fit, DataError, ["AnnData 2 is empty (0 cells x 60 genes)"]),
    ("no genes", lambda b: b.cells[:, :0].copy(), fit, DataError, ["AnnData 1 is empty (120 cells x 0 genes)"]),
    ("query without cells", lambda b: b.cells[:0].copy(), annotate, DataError, ["0 cells x 60 genes"]),
    ("no matrix", lambda b: AnnData(obs=b.cells.obs, var=b.cells.var), fit, DataError, ["no X", "layers"]),
    ("complex numbers", lambda b: b.values(lambda X: X * 1j), annotate, DataError, ["complex", "real numbers"]),
    ("texts", lambda b: b.values(lambda X: np.full(X.shape, "a", object)), annotate, DataError, ["real numbers"]),
    ("numbers beyond 32 bits", lambda b: b.values(lambda X: X * 1e300), annotate, DataError, ["infinite values"]),
    ("layer misspelt", scaled, but(fit, layer="count"), UnknownNameError, ["layer 'count'", "'counts'"]),

    # --- Files
    *((f"empty {name}", lambda b, name=name: b.file(name), read, DataError, [f"{name} is empty (0 bytes)", "Download"])
      for name in ("c.h5ad", "c.h5", "c.loom", "c.hdf5", "c.csv", "c.tsv", "c.txt.gz")),
    ("gzipped nothing", lambda b: b.file("c.csv.gz", gzip.compress(b"")), read, DataError, ["c.csv.gz", "no matrix"]),
    ("empty .zarr", lambda b: b.folder("c.zarr"), read, DataError, ["c.zarr", "damaged"]),
    ("truncated .h5ad", lambda b: b.h5ad(9000), read, DataError, ["cells.h5ad", "truncated", "Download"]),
    (".h5ad that is a table", lambda b: b.file("c.h5ad", "cell,ACTB\n"), read,
     DataError, ["c.h5ad starts with b'cell,ACT'", "no known format"]),
    ("archive", lambda b: b.file("c.h5ad.gz", b"\x1f\x8b"), read, DataError, ["c.h5ad.gz", "no known format"]),
    ("folder to train on", lambda b: b.folder("c"), fit, DataError, ["c holds []", "zarr"]),
    ("array for AnnData", lambda b: np.ones((9, 9)), fit, SettingError, ["ndarray", "paths or AnnData objects"]),
    ("no files", lambda b: [], fit, SettingError, ["datafiles is empty", "at least one"]),
    ("name of 5,000 letters", good, on(sk.read, "x" * 5000 + ".csv"), FileNotFoundError, ["There is no file"]),
    ("name with a zero byte", good, on(sk.read, "a\0.csv"), FileNotFoundError, ["There is no file"]),
    ("None to read", good, on(sk.read, None), TypeError, ["NoneType"]),

    # --- Datasets
    ("name of a dataset to train on", lambda b: "pbmc68k", fit, FileNotFoundError, ["sims_kit.load(name)"]),
    ("no network and no cache", no_network, load,
     FetchError, ["worm-neurons", "Network is unreachable", "https://", "curl", str(CACHED)]),
    ("AnnData to load", good, load, TypeError, ["AnnData"]),

    # --- Settings
    ("unknown setting", good, but(fit, max_epoch=3), UnknownNameError, ["'max_epoch'", "'max_epochs'"]),
    ("unknown recipe", good, but(fit, recipe="tesis"), UnknownNameError, ["'tesis'", "'thesis'"]),
    ("unknown logger", good, but(fit, logger="tensorbord"), UnknownNameError, ["'tensorbord'", "'tensorboard'"]),
    ("nothing left to train on", good, but(fit, validation=0.5, test=0.5),
     SettingError, ["validation=0.5", "test=0.5", "together under 1"]),
    ("seed beyond 64 bits", good, but(fit, seed=2**70), SettingError, ["seed=1180591620717411303424"]),
    *((f"epochs: {n!r}", good, but(fit, max_epochs=n), SettingError, [f"max_epochs={n!r}"]) for n in (0, "3", 1.5)),
    ("number for a recipe", good, but(fit, recipe=3), UnknownNameError, ["recipe 3", "'thesis'"]),
    ("text for class weights", good, but(fit, class_weights="balanced"), SettingError, ["'balanced'", "3 pos"]),
    ("network setting misspelt", good, but(fit, recipe={"n_step": 3}),
     UnknownNameError, ["'n_step'", "'n_steps'"]),
    ("network setting in the wrong place", good, but(fit, n_steps=3),
     SettingError, ["n_steps", "recipe=dict(n_steps=...)"]),
    ("cells left on disk or not", Bench.shared, results("q.h5ad", backed="yes"), SettingError, ["backed='yes'"]),
    ("query in batches of no cells", good, but(annotate, batch_size=0), SettingError, ["batch_size=0", "1 or more"]),
    ("cells grouped by a column that does not exist", good, but(explain, groupby="celltype"),
     UnknownNameError, ["'celltype'", "'cell_type'"]),

    # --- Models
    ("model not fitted", lambda b: sk.SIMSClassifier(60, 3), label_with, SettingError, ["not fitted", "sims_kit.fit("]),
    ("model not trained", untrained, label_with, SettingError, ["not fitted", "trainer.fit(model, "]),
    ("query and model exchanged", good, lambda x, b: sk.annotate(b.model, x),
     SettingError, ["type AnnData", "annotate(query, model)"]),
    ("model and cells exchanged", good, lambda x, b: sk.explain(x, b.model),
     SettingError, ["type AnnData", "explain(model, cells)"]),
    ("model file that does not exist", lambda b: "m.safetensors", label_with,
     FileNotFoundError, ["'m.safetensors'", "save_model"]),
    ("model file that is a pickle", lambda b: b.file("m.pkl", pickle.dumps({"weights": [1.0]})), load_model,
     ModelFileError, ["'m.pkl'", "save_model"]),
    ("model that is an estimator without a model", lambda b: sk.SIMS(), label_with,
     SettingError, ["type SIMS", "Expected a SIMSClassifier"]),
    ("model that is None", lambda b: None, label_with, SettingError, ["NoneType", "annotate(query"]),
    ("name of a checkpoint to save a model to", good, save("m.ckpt"),
     SettingError, ["'m.ckpt'", "checkpoint of Lightning", ".safetensors"]),
    ("folder to save a model to", lambda b: b.folder("m"), save("m"),
     SettingError, ["'m' is a folder", "m/model.safetensors"]),
    ("file for a folder to save a model to", Bench.shared, save("file/m"), SettingError, ["'file' is a file"]),
    ("number for a path to save to", good, save(3), TypeError, ["int"]),
    ("notes that are no text", good, save("m", notes=3), SettingError, ["notes is 3", "not str"]),
    ("licence that is no text", good, save("m", licence=["MIT"]), SettingError, ["licence is ['MIT']"]),
    ("text for the number of genes", good, on(sk.SIMSClassifier, "60", 3), SettingError, ["input_dim='60'"]),
    ("no genes for a model", good, on(sk.SIMSClassifier, 0, 3), SettingError, ["input_dim=0"]),

    # --- Results
    ("results as csv", good, results(out="a.csv"), SettingError, ["'a.csv'", ".h5ad"]),
    *((f"results at the query, {out}", Bench.shared, results("q.h5ad", out=out), SettingError, ["never changed"])
      for out in ("q.h5ad", "./x/../q.h5ad", "link.h5ad")),
    ("results to a folder", Bench.shared, results(out="x"), SettingError, ["out='x'", ".h5ad"]),
    ("results under a file", Bench.shared, results(out="file/a.h5ad"), SettingError, ["'file' is a file"]),
    ("results where nothing can be written", good, results(out="/proc/a.h5ad"), SettingError, ["out='/proc/a.h5ad'"]),
    ("results with values that no file holds", lambda b: b.cells.obs.insert(1, "x", [{1}] * 120), results(out="a.h5ad"),
     SettingError, ["out='a.h5ad' cannot be written (TypeError", "'x'"]),
    ("results with an entry that no file holds", lambda b: b.cells.uns.update(x={1}), results(out="a.h5ad"),
     SettingError, ["out='a.h5ad' cannot be written (", "'x'"]),
    ("checkpoints in a file", Bench.shared, lambda x, b: fit(b.cells, b, checkpoints="file"),
     SettingError, ["file' is a file"]),

    # --- Splits, labels and scores
    *((f"seed of a split: {seed!r}", good, on(sk.stratified_split, ["a"], seed=seed), SettingError, [f"seed={seed!r}"])
      for seed in (-1, "x")),
    ("labels in a table", good, on(sk.stratified_split, np.array([["a"], ["b"]])),
     LabelError, ["(2, 1)", "one label per cell"]),
    ("labels as one text", good, on(sk.stratified_split, "abc"), LabelError, ["one label per cell"]),
    ("labels of lists", lambda b: AnnData(b.cells.X, b.cells.obs.assign(x=[[1]] * 120), b.cells.var), but(fit, "x"),
     LabelError, ["one class only, '[1]'"]),
    ("scores of other lengths", good, on(sk.metrics.score, ["a"], ["a", "b"]), LabelError, ["1 labels", "y_pred 2"]),
    ("scores of no cells", good, on(sk.metrics.score, [], []), LabelError, ["empty"]),
    ("cell that does not exist", good, lambda x, b: sk.explain_cell(b.model, x, "nobody"),
     UnknownNameError, ["cell 'nobody'"]),
    ("calibration by a column that does not exist", good, lambda x, b: sk.calibrate(b.model, x, "celltype"),
     UnknownNameError, ["'celltype'", "'cell_type'"]),

    # --- Registries
    ("registry that is no text", registry(b"\xff\xfe\x00"), read_entries, RegistryError, ["registry.yaml", "utf-8"]),
    ("registry with tabs", registry("a:\n\t- b"), read_entries, RegistryError, ["registry.yaml", "line 2"]),
    ("registry with a date that is none", registry("version: 2021-13-45"), read_entries, RegistryError, ["month"]),
    ("registry nested deep", registry("[" * 5000), read_entries, RegistryError, ["recursion"]),
    ("registry that runs code", registry("!!python/object/apply:os.mkdir [x]"), read_entries, RegistryError, ["tag"]),
    ("registry that grows out of itself", registry(LAUGHS), read_entries, RegistryError, ["registry.yaml"]),
]
# fmt: on


@pytest.fixture(scope="module")
def model(make_cells, tmp_path_factory):
    """A model fitted on cells of Ensembl ids."""
    cells = make_cells()
    cells.var_names = ENSEMBL
    return sk.fit(cells, "cell_type", max_epochs=2, logger=False, **QUIET)


@pytest.fixture
def bench(make_cells, model, tmp_path, monkeypatch):
    """Good cells, a fitted model, an empty working folder and cache, and no training or prediction."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SIMS_KIT_DATA", "cache")
    for owner, work in ((pl.Trainer, "fit"), (TabNet, "steps")):
        monkeypatch.setattr(owner, work, lambda *args, **options: pytest.fail("long work began before the error"))
    cells = make_cells()
    cells.var_names = ENSEMBL
    return Bench(cells, model, monkeypatch)


@pytest.mark.parametrize(("title", "give", "call", "error", "says"), CASES, ids=[case[0] for case in CASES])
def test_bad_input(bench, title, give, call, error, says):
    """The named error comes before any training or prediction, and the user's cells and files stay as they were."""
    given = give(bench)
    inputs = [x for x in (bench.cells, *(given if isinstance(given, list) else [given])) if isinstance(x, AnnData)]
    before, files = [cells.copy() for cells in inputs], _files()
    with pytest.raises(error) as caught:
        call(given, bench)
    message = str(caught.value).replace(f"{Path.cwd()}/", "")
    assert type(caught.value) is error
    assert [part for part in says if part not in message] == []
    for cells, copy in zip(inputs, before, strict=True):
        assert_equal(cells, copy)
    assert _files() == files


def test_errors_have_one_base_and_can_be_sent_between_processes():
    """`except SimsError` catches them all, and so does Python's own class of the same meaning."""
    for error, builtin in ((DataError, ValueError), (FetchError, FileNotFoundError), (UnknownNameError, KeyError)):
        assert issubclass(error, SimsError) and issubclass(error, builtin)
    told = UnknownNameError("dataset", "pbmc86k", ["pbmc68k"])
    assert (
        str(pickle.loads(pickle.dumps(told))) == str(told) == "There is no dataset 'pbmc86k'. Did you mean 'pbmc68k'?"
    )


def test_numbers_of_numpy_can_be_saved(make_cells, tmp_path):
    """Settings that come from numpy, as from a sweep, do not make a model unsavable."""
    settings = dict(n_models=np.int64(1), n_d=np.int32(2), n_a=2, gamma=np.float32(1.5))
    fitted = sk.fit(make_cells(), "cell_type", max_epochs=1, recipe=settings, **QUIET)
    assert sk.load_model(sk.save_model(fitted, tmp_path / "m")).recipe.n_d == 2


def _files():
    """Content of all files but the cache's empty locks."""
    return {path: path.read_bytes() for path in Path().rglob("*") if path.is_file() and path.parent.name != ".locks"}

"""Bad input through the public face: every mistake has its own named error, told early, that says what to do.

`CASES` is a table of titles, of what is given, of what is called with it, of the error, and of parts of its message.
Values of single settings that cannot be used are in `cells/test_datamodule.py`.
"""

import os
import pickle
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
from anndata import AnnData
from anndata.tests.helpers import assert_equal

import sims_kit as sk
from sims_kit.datasets.read import open_backed
from sims_kit.datasets.registry import read_registry
from sims_kit.errors import DataError, FetchError, LabelError, RegistryError, SettingError, SimsError, UnknownNameError
from sims_kit.model.network import TabNet

QUIET = dict(verbose=False)
ENSEMBL = [f"ENSG{i:011d}" for i in range(60)]


@dataclass
class Bench:
    """What a case may use, in an empty working folder; the paths it gives lie in there."""

    cells: AnnData  # 120 cells x 60 genes, counts, Ensembl ids, three classes in obs["cell_type"]
    model: sk.SIMSClassifier  # fitted on such cells

    def values(self, change, **layers) -> AnnData:
        """The cells with a changed matrix."""
        return AnnData(change(self.cells.X.toarray()), self.cells.obs, self.cells.var, layers=layers)

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
        """A query, a link to it, a pipe, a text file and an empty folder."""
        self.cells.write_h5ad("q.h5ad")
        os.symlink("q.h5ad", "link.h5ad")
        os.mkfifo("pipe.h5ad")
        self.folder("x")
        return self.file("file", "text")


def scaled(bench):
    """Scaled values in X, counts in a layer."""
    return bench.values(lambda X: (X - X.mean(0)) / X.std(0), counts=bench.cells.X)


def fit(given, bench, label="cell_type", **settings):
    """`sk.fit` on labels in obs."""
    return sk.fit(given, label, **QUIET, **settings)


def annotate(given, bench, **options):
    """`sk.annotate` with the fitted model."""
    return sk.annotate(given, bench.model, **options)


def of(function, *arguments):
    """A function of the public face that takes what is given and nothing of the bench."""
    return lambda given, bench: function(given, *arguments)


def save(path, **options):
    """`sk.save_model` of the fitted model."""
    return lambda given, bench: sk.save_model(bench.model, path, **options)


def results(query=None, **options):
    """`sk.annotate` of the cells or of a file, with `out`."""
    return lambda given, bench: sk.annotate(query or bench.cells, bench.model, **options)


good = attrgetter("cells")  # nothing is wrong with the cells: the mistake lies in the call
read, load, read_entries = map(of, (sk.read, sk.load, read_registry.__wrapped__))
LAUGHS = "a: &a [x, x]\n" + "".join(  # two to the power of thirty-odd entries, if they were written out
    f"{after}: &{after} [{', '.join([f'*{name}'] * 9)}]\n" for name, after in pairwise("abcdefghij")
)

# fmt: off
CASES = [
    # --- Orientation
    ("AnnData turned", lambda b: b.cells.T, fit,
     DataError, ["AnnData 1 seems to be turned", ") are named like genes, its columns (120", "adata.T.copy()"]),
    ("second AnnData turned", lambda b: [b.cells, b.cells.T], fit, DataError, ["AnnData 2", "genes_by_cells"]),

    # --- Labels
    ("label column that does not exist", good, partial(fit, label="celltype"),
     UnknownNameError, ["obs column of AnnData 1 called 'celltype'", "Did you mean 'cell_type'"]),
    ("label column of 50,000 letters", good, partial(fit, label="x" * 50_000),
     UnknownNameError, ["called 'xxx", "xxx [...] xxx", "Choose from: 'cell_type'"]),
    ("no label column named", good, partial(fit, label=None), LabelError, ["one of ['cell_type']"]),
    ("all labels missing", lambda b: [b.cells, b.labels(np.nan)], fit,
     LabelError, ["AnnData 2: none of 120 cells has a 'cell_type'", "Check class_label"]),
    ("one class only", lambda b: b.labels("neuron"), fit, LabelError, ["one class only, 'neuron'", "at least two"]),

    # --- Values
    ("NaN", lambda b: b.values(lambda X: np.where(X > 9, np.nan, X)), fit, DataError, ["NaN", "finite: write 0"]),
    ("negative values", lambda b: b.values(lambda X: X - 1), fit, DataError, ["down to -1", "Pass counts"]),
    ("scaled matrix", scaled, fit, DataError, ["AnnData 1", "scaled", "This AnnData holds layer='counts'"]),
    ("nothing but zeros", lambda b: b.values(lambda X: X * 0), fit, DataError, ["120 cells x 60 genes, all zero"]),
    ("no genes", lambda b: b.cells[:, :0].copy(), fit, DataError, ["AnnData 1 is empty (120 cells x 0 genes)"]),
    ("query without cells", lambda b: b.cells[:0].copy(), annotate, DataError, ["0 cells x 60 genes"]),
    ("no matrix", lambda b: AnnData(obs=b.cells.obs, var=b.cells.var), fit, DataError, ["no X", "layers"]),
    ("texts", lambda b: b.values(lambda X: np.full(X.shape, "a", object)), annotate, DataError, ["real numbers"]),
    ("numbers beyond 32 bits", lambda b: b.values(lambda X: X * 1e300), annotate, DataError, ["infinite values"]),
    ("layer misspelt", scaled, partial(fit, layer="count"), UnknownNameError, ["layer 'count'", "'counts'"]),

    # --- Files
    *((f"empty {name}", lambda b, name=name: b.file(name), read, DataError, [f"{name} is empty (0 bytes)", "Download"])
      for name in ("c.h5ad", "c.h5", "c.loom", "c.hdf5", "c.csv", "c.tsv", "c.txt.gz")),
    ("empty .zarr", lambda b: b.folder("c.zarr"), read, DataError, ["c.zarr", "damaged"]),
    ("folder to train on", lambda b: b.folder("c"), fit, DataError, ["c holds []", "zarr"]),
    ("array for AnnData", lambda b: np.ones((9, 9)), fit, SettingError, ["ndarray", "paths or AnnData objects"]),
    ("no files", lambda b: [], fit, SettingError, ["datafiles is empty", "at least one"]),
    ("name of 5,000 letters", lambda b: "x" * 5000 + ".csv", read, FileNotFoundError, ["There is no file"]),
    ("name with a zero byte", lambda b: "a\0.csv", read, FileNotFoundError, ["There is no file"]),
    ("name that steers a terminal", lambda b: b.file("\x1b[2J.csv"), read, DataError, ["\\x1b[2J.csv is empty"]),
    ("None to read", lambda b: None, read, TypeError, ["NoneType"]),

    # --- Datasets
    ("name of a dataset to train on", lambda b: "pbmc68k", fit, FileNotFoundError, ["sims_kit.load(name)"]),
    ("AnnData to load", good, load, TypeError, ["AnnData"]),

    # --- Settings
    ("nothing left to train on", good, partial(fit, validation=0.5, test=0.5),
     SettingError, ["validation=0.5", "test=0.5", "together under 1"]),
    ("seed beyond 64 bits", good, partial(fit, seed=2**70), SettingError, ["seed=1180591620717411303424"]),
    ("cells left on disk or not", Bench.shared, results("q.h5ad", backed="yes"), SettingError, ["backed='yes'"]),
    ("query in batches of none", good, partial(annotate, batch_size=0), SettingError, ["batch_size=0", "1 or more"]),
    ("cells grouped by a column that does not exist", good, lambda x, b: sk.explain(b.model, x, groupby="celltype"),
     UnknownNameError, ["'celltype'", "'cell_type'"]),

    # --- Models
    ("model not fitted", lambda b: sk.SIMSClassifier(60, 3), lambda x, b: sk.annotate(b.cells, x),
     SettingError, ["not fitted", "sims_kit.fit("]),
    ("query and model exchanged", good, lambda x, b: sk.annotate(b.model, x),
     SettingError, ["type AnnData", "annotate(query, model)"]),
    ("model that is an estimator without a model", lambda b: sk.SIMS(), lambda x, b: sk.annotate(b.cells, x),
     SettingError, ["type SIMS", "Expected a SIMSClassifier"]),
    ("name of a checkpoint to save a model to", good, save("m.ckpt"),
     SettingError, ["'m.ckpt'", "checkpoint of Lightning", ".safetensors"]),
    ("folder to save a model to", lambda b: b.folder("m"), save("m"),
     SettingError, ["'m' cannot be written: it is a folder"]),
    ("number for a path to save to", good, save(3), TypeError, ["int"]),
    ("notes that are no text", good, save("m", notes=3), SettingError, ["notes is 3", "not str"]),
    ("text for the number of genes", lambda b: "60", of(sk.SIMSClassifier, 3), SettingError, ["input_dim='60'"]),
    ("no genes for a model", lambda b: 0, of(sk.SIMSClassifier, 3), SettingError, ["input_dim=0"]),

    # --- Results
    ("results as csv", good, results(out="a.csv"), SettingError, ["'a.csv'", ".h5ad"]),
    *((f"results at {query} as {out}", Bench.shared, results(query, out=out), SettingError, ["never changed"])
      for query in ("q.h5ad", "~/q.h5ad") for out in ("q.h5ad", "./x/../q.h5ad", "link.h5ad")),
    ("results over the cells that stay on disk", Bench.shared,
     lambda x, b: sk.annotate(open_backed("q.h5ad"), b.model, out="q.h5ad"), SettingError, ["never changed"]),
    *((f"results to a pipe or name that is none: {name!r:.9}", Bench.shared, results(out=name),
       SettingError, ["cannot be written: ", says]) for name, says in (
        ("pipe.h5ad", "pipe or device"), ("a" * 300 + ".h5ad", "too long"), ("a\0.h5ad", "null byte"))),
    ("results under a file", Bench.shared, results(out="file/a.h5ad"), SettingError, ["'file' is a file"]),
    ("results where nothing can be written", good, results(out="/proc/a.h5ad"), SettingError, ["out='/proc/a.h5ad'"]),
    ("results with values that no file holds", lambda b: b.cells.obs.insert(1, "x", [{1}] * 120), results(out="a.h5ad"),
     SettingError, ["out='a.h5ad' cannot be written (TypeError", "'x'"]),
    ("results with an entry that no file holds", lambda b: b.cells.uns.update(x={1}), results(out="a.h5ad"),
     SettingError, ["out='a.h5ad' cannot be written (", "'x'"]),
    ("checkpoint that is a pipe", lambda b: os.mkfifo("resume.ckpt"), lambda x, b: fit(b.cells, b, checkpoints="."),
     SettingError, ["resume.ckpt' cannot be written: it is a folder, pipe"]),
    ("checkpoints in a file", Bench.shared, lambda x, b: sk.fit(b.cells, "cell_type", checkpoints="file"),
     SettingError, ["file' is a file"]),

    # --- Splits, labels and scores
    *((f"seed of a split: {seed!r}", lambda b: ["a"], of(sk.stratified_split, 0.1, 0.1, seed),
       SettingError, [f"seed={seed!r}"]) for seed in (-1, "x")),
    ("labels in a table", lambda b: np.array([["a"], ["b"]]), of(sk.stratified_split),
     LabelError, ["(2, 1)", "one label per cell"]),
    ("labels as one text", lambda b: "abc", of(sk.stratified_split), LabelError, ["one label per cell"]),
    ("labels of lists", lambda b: b.labels([[1]] * 120), fit, LabelError, ["one class only, '[1]'"]),
    ("calibration by a column that does not exist", good, lambda x, b: sk.calibrate(b.model, x, "celltype"),
     UnknownNameError, ["'celltype'", "'cell_type'"]),

    # --- Registries
    *((f"registry {name}", lambda b, content=content: b.file("registry.yaml", content), read_entries,
       RegistryError, ["registry.yaml", says]) for name, content, says in (
        ("that is no text", b"\xff\xfe\x00", "utf-8"), ("with tabs", "a:\n\t- b", "line 2"),
        ("nested deep", "[" * 5000, "recursion"), ("that grows out of itself", LAUGHS, "81 aliases"),
        ("that runs code", "!!python/object/apply:os.mkdir [x]", "tag"))),
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
    monkeypatch.setenv("HOME", str(tmp_path))
    for owner, work in ((pl.Trainer, "fit"), (TabNet, "steps")):
        monkeypatch.setattr(owner, work, lambda *args, **options: pytest.fail("long work began before the error"))
    cells = make_cells()
    cells.var_names = ENSEMBL
    return Bench(cells, model)


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
    assert [part for part in says if part not in message] == [] and len(message) < 6000
    for cells, copy in zip(inputs, before, strict=True):
        assert_equal(cells, copy)
    assert _files() == files


def test_errors_have_one_base_and_can_be_sent_between_processes():
    """`except SimsError` catches them all, and so does Python's own class of the same meaning."""
    for error, builtin in ((DataError, ValueError), (FetchError, FileNotFoundError), (UnknownNameError, KeyError)):
        assert issubclass(error, SimsError) and issubclass(error, builtin)
    error = UnknownNameError("dataset", "pbmc86k", ["pbmc68k"])
    assert str(error) == str(pickle.loads(pickle.dumps(error)))
    assert str(error) == "There is no dataset 'pbmc86k'. Did you mean 'pbmc68k'?"


def _files():
    """Content of all files but the cache's empty locks."""
    return {path: path.read_bytes() for path in Path().rglob("*") if path.is_file() and path.parent.name != ".locks"}

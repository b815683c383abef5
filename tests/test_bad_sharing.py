"""Bad and odd input to what is saved and shared: models, checkpoints, registries, archives, results, settings.

The same kind of table as in `test_bad_input.py`: a title, what is called, the error, and parts of its message.
"""

import os
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from anndata import AnnData

import sims_kit as sk
from sims_kit.datasets.registry import read_registry
from sims_kit.errors import DataError, LabelError, ModelFileError, RegistryError, SettingError, UnknownNameError

QUIET = dict(verbose=False)
SMALL = dict(n_models=1, n_d=2, n_a=2)


def fit(**settings):
    """`sk.fit` of a small network for one epoch."""
    return lambda cells, model: sk.fit(cells, "cell_type", **{**QUIET, "max_epochs": 1, "recipe": SMALL, **settings})


def recipe(**settings):
    """`sk.fit` with other settings of the recipe."""
    return fit(recipe=settings)


def annotate(query=None, **options):
    """`sk.annotate` of the cells, or of another query."""
    return lambda cells, model: sk.annotate(cells if query is None else query, model, **options)


def split(labels, **options):
    """`sk.stratified_split`."""
    return lambda cells, model: sk.stratified_split(labels, **options)


def registry(content):
    """`read_registry` of a file with this content."""

    def read(cells, model):
        Path("registry.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
        read_registry.__wrapped__(Path("registry.yaml"))

    return read


def on(function, *arguments, **options):
    """A function that takes neither cells nor model."""
    return lambda cells, model: function(*arguments, **options)


def with_model(function, *arguments, **options):
    """A function whose first argument is the model."""
    return lambda cells, model: function(model, *arguments, **options)


LAUGHS = "a: &a [x, x]\n" + "".join(  # two to the power of thirty-odd entries, if they were written out
    f"{after}: &{after} [{', '.join([f'*{name}'] * 9)}]\n" for name, after in pairwise("abcdefghij")
)
# fmt: off
CASES = [
    # --- Saving and loading models
    ("notes that are no text", with_model(sk.save_model, "m", notes=3), SettingError, ["notes is 3", "not str"]),
    ("licence that is no text", with_model(sk.save_model, "m", licence=["MIT"]), SettingError, ["licence is ['MIT']"]),
    ("number for a path to save to", with_model(sk.save_model, 3), TypeError, ["int"]),
    ("file for a folder", with_model(sk.save_model, "file/m"), SettingError, ["'file' is a file", "another"]),
    ("model that is None", lambda cells, model: sk.annotate(cells, None), SettingError, ["NoneType", "annotate(query"]),
    ("model file that is text", on(sk.load_model, "file"), ModelFileError, ["'file' cannot be read", "save_model"]),
    ("checkpoint that is text", on(sk.load_model, "file.ckpt"), ModelFileError, ["'file.ckpt' cannot be read"]),

    # --- Results
    ("results as csv", annotate(out="a.csv"), SettingError, ["'a.csv'", ".h5ad"]),
    ("results in the query's place", annotate("q.h5ad", out="q.h5ad"), SettingError, ["q.h5ad", "never changed"]),
    ("results through another path", annotate("q.h5ad", out="./x/../q.h5ad"), SettingError, ["never changed"]),
    ("results through a link", annotate("q.h5ad", out="link.h5ad"), SettingError, ["never changed"]),
    ("results to a folder", annotate(out="x"), SettingError, ["out='x'", ".h5ad"]),
    ("results under a file", annotate(out="file/a.h5ad"), SettingError, ["'file' is a file"]),

    # --- Checkpoints
    ("checkpoints in a file", fit(checkpoints="file"), SettingError, ["file' is a file"]),

    # --- Splits
    ("negative seed of a split", split(["a", "b"], seed=-1), SettingError, ["seed=-1", "0 or more"]),
    ("text for a seed of a split", split(["a", "b"], seed="x"), SettingError, ["seed='x'"]),
    ("share that is NaN", split(["a", "b"], test=float("nan")), SettingError, ["test=nan", "shares"]),
    ("labels in a table", split(np.array([["a"], ["b"]])), LabelError, ["(2, 1)", "one label per cell"]),
    ("labels as one text", split("abc"), LabelError, ["one label per cell"]),
    ("no labels to split", split([]), LabelError, ["None of the 0 cells"]),

    # --- Settings of training
    ("no epochs", fit(max_epochs=0), SettingError, ["max_epochs=0", "1 or more"]),
    ("text for epochs", fit(max_epochs="3"), SettingError, ["max_epochs='3'"]),
    ("half an epoch", fit(max_epochs=1.5), SettingError, ["max_epochs=1.5"]),
    ("seed beyond 64 bits", fit(seed=2**70), SettingError, ["seed=1180591620717411303424"]),
    ("number for a recipe", fit(recipe=3), UnknownNameError, ["recipe 3", "'thesis'"]),
    ("text for class weights", fit(class_weights="balanced"), SettingError, ["'balanced'", "3 pos"]),

    # --- Settings of the network
    ("empty ghost batches", recipe(virtual_batch_size=0), SettingError, ["virtual_batch_size is 0", "at least 1"]),
    ("text for the number of genes", on(sk.SIMSClassifier, "60", 3), SettingError, ["input_dim is '60'"]),
    ("no genes for a model", on(sk.SIMSClassifier, 0, 3), SettingError, ["input_dim is 0"]),

    # --- Matrices
    ("complex numbers", lambda cells, model: sk.annotate(AnnData(cells.X.toarray() * 1j, var=cells.var), model),
     DataError, ["complex", "real numbers"]),
    ("texts", lambda cells, model: sk.annotate(AnnData(np.full(cells.shape, "a", object), var=cells.var), model),
     DataError, ["object", "real numbers"]),
    ("numbers beyond 32 bits", lambda c, m: sk.annotate(AnnData(c.X.toarray() * 1e300, var=c.var), m),
     DataError, ["infinite values"]),
    ("name of 5,000 letters", on(sk.read, "x" * 5000 + ".csv"), FileNotFoundError, ["There is no file"]),
    ("name with a zero byte", on(sk.read, "a\0.csv"), FileNotFoundError, ["There is no file"]),
    ("None to read", on(sk.read, None), TypeError, ["NoneType"]),

    # --- Labels and scores
    ("cell that does not exist", lambda c, m: sk.explain_cell(m, c, "nobody"),
     UnknownNameError, ["cell 'nobody'"]),
    ("labels of lists", lambda c, m: sk.fit(AnnData(c.X, c.obs.assign(x=[[1]] * 120), c.var), "x", **QUIET),
     LabelError, ["one class only, '[1]'"]),
    ("scores of other lengths", on(sk.metrics.score, ["a"], ["a", "b"]), LabelError, ["1 labels", "y_pred 2"]),
    ("scores of no cells", on(sk.metrics.score, [], []), LabelError, ["empty"]),
    ("calibration by a column that does not exist", lambda c, m: sk.calibrate(m, c, "celltype"),
     UnknownNameError, ["'celltype'", "'cell_type'"]),

    # --- Registries
    ("empty registry", registry(""), RegistryError, ["registry.yaml"]),
    ("registry that is a list", registry("- a"), RegistryError, ["registry.yaml"]),
    ("registry that is no text", registry(b"\xff\xfe\x00"), RegistryError, ["registry.yaml", "utf-8"]),
    ("registry with tabs", registry("a:\n\t- b"), RegistryError, ["registry.yaml", "line 2"]),
    ("registry with a date that is none", registry("version: 2021-13-45"), RegistryError, ["month"]),
    ("registry nested deep", registry("[" * 5000), RegistryError, ["recursion"]),
    ("registry that runs code", registry("!!python/object/apply:os.mkdir ['was_here']"), RegistryError, ["tag"]),
    ("registry that grows out of itself", registry(LAUGHS), RegistryError, ["registry.yaml"]),
]
# fmt: on


@pytest.fixture(scope="module")
def model(make_cells):
    """A small model."""
    return sk.fit(make_cells(), "cell_type", max_epochs=1, recipe=SMALL, **QUIET)


@pytest.fixture
def folder(make_cells, tmp_path, monkeypatch):
    """A working folder with a query, a link to it, a text file and an empty folder."""
    monkeypatch.chdir(tmp_path)
    make_cells(n_cells=20).write_h5ad("q.h5ad")
    os.symlink("q.h5ad", "link.h5ad")
    Path("file").write_text("text")
    Path("file.ckpt").write_text("text")
    Path("x").mkdir()
    return tmp_path


@pytest.mark.parametrize(("title", "call", "error", "says"), CASES, ids=[case[0] for case in CASES])
def test_bad_sharing(folder, make_cells, model, monkeypatch, title, call, error, says):
    """The named error comes before any training, and files stay as they were."""
    monkeypatch.setattr(torch.optim.Adam, "step", lambda *args, **options: pytest.fail("training began"))
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    with pytest.raises(error) as caught:
        call(make_cells(), model)
    assert type(caught.value) is error
    assert [part for part in says if part not in str(caught.value)] == []
    assert {path: path.read_bytes() for path in before} == before and not Path("was_here").exists()


def test_numbers_of_numpy_can_be_saved(folder, make_cells, model):
    """Settings that come from numpy, as from a sweep, do not make a model unsavable."""
    settings = dict(n_models=np.int64(1), n_d=np.int32(2), n_a=2, gamma=np.float32(1.5))
    fitted = sk.fit(make_cells(), "cell_type", max_epochs=1, recipe=settings, **QUIET)
    assert sk.load_model(sk.save_model(fitted, "m")).recipe.n_d == 2


def test_annotate_writes_a_new_file(folder, make_cells, model):
    """`out` has what is returned, in a folder made for it; the file read is as it was, and nothing else is left."""
    before = Path("q.h5ad").read_bytes()
    annotated = sk.annotate("q.h5ad", model, out="new/folder/a.h5ad")
    written = sk.read("new/folder/a.h5ad")
    assert list(written.obs["sims_label"]) == list(annotated.obs["sims_label"])
    np.testing.assert_array_equal(written.obsm["sims_probabilities"], annotated.obsm["sims_probabilities"])
    assert Path("q.h5ad").read_bytes() == before
    assert [path.name for path in Path("new/folder").iterdir()] == ["a.h5ad"]
    cells = make_cells()
    assert sk.annotate(cells, model, out="b.h5ad") is None and "sims_label" in cells.obs
    assert sk.read("b.h5ad").n_obs == cells.n_obs


def test_number_of_a_million_digits(folder):
    """A field that is a number almost to its end is refused as soon as any other: digits are looked at once."""
    Path("a.csv").write_bytes(b"cell,A,B\nc1,1,2\nc2,3," + b"0" * 10**6 + b"x\n")
    start = time.process_time()
    with pytest.raises(DataError, match=r"row 'c2', column 'B'|line of .* letters") as error:
        sk.read("a.csv")
    assert time.process_time() - start < 5 and len(str(error.value)) < 1000

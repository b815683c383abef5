"""Hostile and damaged files of cells: every way in refuses them soon, by name, and runs none of their code."""

import ctypes
import gzip
import itertools
import json
import os
import pickle
import shutil
import struct
import time
import zlib
from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest

import sims_kit as sk
from sims_kit.errors import DataError

FLAG = Path("/tmp/sims_kit_test_code_ran")
Bomb = type("Bomb", (), {"__reduce__": lambda self: (FLAG.touch, ())})  # runs code when it is unpickled
SECRET = b"what another file says."
SMALL = dict(recipe=dict(n_models=1, n_d=2, n_a=2), max_epochs=1, verbose=False)


def in_hdf5(change, *arguments, **options):
    """The good file, after a change of its content."""

    def make(good: Path) -> Path:
        shutil.copy(good, "bad.h5ad")
        with h5py.File("bad.h5ad", "a") as file:
            change(file, *arguments, **options)
        return Path("bad.h5ad")

    return make


def in_zarr(change, *arguments, version=2, **options):
    """The good file as a zarr store, after a change of its folder."""

    def make(good: Path) -> Path:
        with anndata.settings.override(zarr_write_format=version):
            anndata.read_h5ad(good).write_zarr("bad.zarr")
        change(Path("bad.zarr"), *arguments, **options)
        return Path("bad.zarr")

    return make


def written(name, content):
    """A file of this name and content."""

    def make(good: Path) -> Path:
        Path(name).write_bytes(content())
        return Path(name)

    return make


def replaced(file: h5py.File, name: str, link=None, **options) -> None:
    """A link, or another dataset, put in place of a group or dataset."""
    del file[name]
    file.__setitem__(name, link) if link else file.create_dataset(name, **options)


def entries(file: h5py.File, name: str, index: int, value: int, place: str = "X") -> None:
    """Another number in one of the arrays of a sparse matrix."""
    values = file[place][name][:].astype(np.int64)
    values[index] = value
    replaced(file, f"{place}/{name}", data=values)


def json_of(store: Path, name: str, **entries) -> None:
    """Other entries in one of the tables of metadata of a zarr store."""
    text = (store / name).read_text() if (store / name).exists() else "{}"
    (store / name).write_text(json.dumps(json.loads(text) | entries))


def of_pandas(file: h5py.File) -> None:
    """As `DataFrame.to_hdf` writes, with an attribute that is unpickled when it is read."""
    file.clear()
    group = file.create_group("df")
    group.attrs["pandas_type"], group.attrs["info"] = b"frame", np.void(pickle.dumps(Bomb()))
    file["df/block0_values"] = np.ones((3, 3))


def virtual(file: h5py.File) -> None:
    """A dataset that shows part of another file."""
    layout = h5py.VirtualLayout((60,), "i8")
    layout[:] = h5py.VirtualSource("other.h5", "secret", (60,))
    file.create_virtual_dataset("obs/secret", layout)


def to_loom(file: h5py.File) -> None:
    """A loom file whose values are in another file."""
    file.clear()
    file["row_attrs/Gene"], file["col_attrs/CellID"] = [b"G1", b"G2"], [b"c1", b"c2", b"c3"]
    file.create_dataset("matrix", (2, 3), "f4", external=[("secret", 0, 24)])


def texts(file: h5py.File, fillvalue: str, n: int = 10**6) -> None:
    """A column of texts that are not in the file, but one long text again and again."""
    del file["obs/cell_type"]
    made = dict(dtype=h5py.string_dtype(), chunks=(n,), compression="gzip", fillvalue=fillvalue)
    column = file["obs"].create_dataset("cell_type", (n,), **made)
    column.attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
    if not fillvalue:
        long = file["uns"].create_dataset("long", data=["a" * 50_000], dtype=made["dtype"], chunks=(1,))
        column.id.write_direct_chunk((0,), zlib.compress(long.id.read_direct_chunk((0,))[1] * n))


def hidden(file: h5py.File) -> None:
    """Categories that lie in another file, in a dataset that no path leads to."""
    maps = Path("/proc/self/maps").read_text().split()
    library = next(word for word in maps if "libhdf5" in word and "_hl" not in word)
    dataset = file.create_dataset("hidden", (4,), "S23", external=[("secret", 0, 92)])
    ctypes.CDLL(library).H5Oincr_refcount(ctypes.c_int64(dataset.id.id))
    replaced(file, "obs/cell_type", data=np.arange(60, dtype="i1") % 3)
    file["obs/cell_type"].attrs["categories"], file["obs"].attrs["encoding-version"] = dataset.ref, "0.1.0"
    del file["hidden"]


def shared_chunk(good: Path) -> Path:
    """A file whose chunks are all one chunk."""
    with h5py.File(shutil.copy(good, "bad.h5ad"), "a") as file:
        del file["X"]
        matrix = file.create_dataset("X", (60, 8), "i1", chunks=(60, 1), compression="gzip")
        for i in range(8):
            matrix.id.write_direct_chunk((0, i), zlib.compress(os.urandom(60 if i else 50_000)))
        file.flush()
        chunks = [matrix.id.get_chunk_info(i) for i in range(8)]
    content = Path("bad.h5ad").read_bytes()
    for i, chunk in enumerate(chunks):
        keys = [struct.pack("<IIQQQQ", c.size, 0, 0, i, 0, c.byte_offset) for c in (chunk, chunks[0])]
        content = content.replace(*keys)
    return written("bad.h5ad", lambda: content)(good)


def folder_of_10x(head, features=b"ENSG1\tA\n", barcodes=b"c1\n"):
    """A folder of 10x with these files."""

    def make(good: Path) -> Path:
        for name, content in (("matrix.mtx", MATRIX + head), ("features.tsv", features), ("barcodes.tsv", barcodes)):
            Path(name).write_bytes(content) if content else os.mkfifo(name)
        return Path("matrix.mtx")

    return make


PICKLE = {"id": "pickle", "protocol": 5}
WRONG = "ind(ex|ices|ptr)"
MATRIX = b"%%MatrixMarket matrix coordinate integer general\n"
# fmt: off
CASES = {
    # --- code
    "table of pandas": (in_hdf5(of_pandas), "no known layout"),
    "zarr 2, pickle": (in_zarr(json_of, ".zmetadata", metadata={"obs/_index/.zarray": {"filters": [PICKLE]}}),
                       "codec 'pickle'"),
    "zarr 3, pickle": (in_zarr(json_of, "obs/_index/zarr.json", codecs=[{"name": "numcodecs.pickle"}], version=3),
                       "codec 'pickle'"),
    # --- other files
    "external link deep down": (in_hdf5(lambda f: f["uns"].create_group("a").__setitem__(
        "b", h5py.ExternalLink("other.h5", "secret"))), "link to another"),
    "soft link": (in_hdf5(replaced, "uns", h5py.SoftLink("/obs")), "link to another"),
    "external storage": (in_hdf5(replaced, "X/data", shape=(4,), dtype="f4", external=[("secret", 0, 16)]),
                         "values in another file"),
    "virtual dataset": (in_hdf5(virtual), "values in another file"),
    "loom with external storage": (in_hdf5(to_loom), "values in another file"),
    "categories that are hidden": (in_hdf5(hidden), "no path leads to"),
    "zarr, link to a file": (in_zarr(lambda store: os.symlink(Path("secret").absolute(), store / "X/data/9")),
                             "link to another"),
    # --- bombs
    "declared 37 GB": (in_hdf5(replaced, "X/data", shape=(10**10,), dtype="f4", chunks=(2**20,), compression="gzip"),
                       "it claims 80,0"),
    "one chunk of 2 GB": (in_hdf5(replaced, "X/data", shape=(4,), dtype="f4", chunks=(2**29,), maxshape=(None,),
                                  compression="gzip"), "it claims 4,2"),
    "a group in two places": (in_hdf5(lambda f: f["uns"].__setitem__("a", f["obs"])), "lies in itself, or in two"),
    "a group in itself": (in_hdf5(lambda f: f["uns"].__setitem__("a", f["uns"])), "lies in itself"),
    "nested deep": (in_hdf5(lambda f: f.create_group("uns" + "/a" * 500)), "groups lie more than 20 deep"),
    "zarr, declared 8 TB": (in_zarr(json_of, "X/data/.zarray", shape=[10**12]), "it claims 8,000,0"),
    "zarr, chunk of 4 TB": (in_zarr(json_of, "X/data/.zarray", chunks=[10**12]), "it claims 8,000,0"),
    "zarr, metadata nested deep": (in_zarr(lambda s: (s / "X/.zmetadata").write_text("[" * 100_000)), "RecursionError"),
    "text of one long line": (written("a.csv.gz", lambda: gzip.compress(b"cell" + b",a" * 2**24)), "fields in its"),
    "text that unfolds": (written("a.csv.gz", lambda: gzip.compress(b"c,a,b\nx,1,2\ny,3," + b"0" * 2**28)), "line of"),
    "one chunk for all": (shared_chunk, "share the"),
    "packed twice": (in_hdf5(lambda f: f["uns"].create_dataset("a", (4,), "i1", scaleoffset=0, compression="gzip")),
                     "packed 2 times"),
    "zarr, packed twice": (in_zarr(json_of, "X/data/.zarray", filters=[{"id": "zlib", "level": 1}]), "packs values"),
    "zarr, fields of 4 GB": (in_zarr(json_of, "X/data/.zarray", dtype=[["a", "<U1000000"], ["b", "<i4", [10]]]),
                             "it claims"),
    "zarr 3, values of 1 TB": (in_zarr(json_of, "X/data/zarr.json", version=3, data_type={
        "name": "fixed_length_utf32", "configuration": {"length_bytes": 10**12}}), "it claims"),
    "10x, rows that are not there": (folder_of_10x(b"2000000000 2000000000 1\n1 1 1\n"), "2,000,000,000 genes"),
    "10x, values that are not there": (folder_of_10x(b"1 1 2000000000\n1 1 1\n"), "2,000,000,000 values"),
    "one text a million times": (in_hdf5(texts, ""), "it claims"),
    "a million texts, all left out": (in_hdf5(texts, "a" * 60_000), "it claims"),
    "ones by the billion": (in_hdf5(replaced, "X", shape=(60, 10**6), dtype="i1", chunks=(60, 10**5), fillvalue=1),
                            "it claims 480,0"),
    "rows by the billion, before anndata 0.7": (
        in_hdf5(lambda f: f["X"].attrs.__setitem__("h5sparse_shape", [10**12, 60])), "it claims 8,000,0"),
    "zarr, wide by a filter": (
        in_zarr(json_of, "obs/_index/.zarray", filters=[{"id": "astype", "decode_dtype": "<U1000000"}]), "'astype'"),
    # --- structure
    "column beyond the genes": (in_hdf5(entries, "indices", 0, 60), WRONG),
    "column beyond 32 bits": (in_hdf5(entries, "indices", 0, 2**32 + 3), WRONG),
    "negative column": (in_hdf5(entries, "indices", 5, -1), WRONG),
    "rows that run back": (in_hdf5(entries, "indptr", 3, 10**6), WRONG),
    "negative row": (in_hdf5(entries, "indptr", 3, -7), WRONG),
    "a row too many": (in_hdf5(lambda f: replaced(f, "X/indptr", data=np.append(f["X/indptr"][:], 9))), WRONG),
    "rows by the billion": (in_hdf5(lambda f: f["X"].attrs.__setitem__("shape", [10**13, 60])), WRONG),
    "half a column": (in_hdf5(lambda f: replaced(f, "X/indices", data=f["X/indices"][:] + 0.5)), "type float64"),
    "zarr, half a column": (in_zarr(json_of, "X/indices/.zarray", dtype="<f4"), "type '<f4'"),
    "first row elsewhere": (in_hdf5(entries, "indptr", 0, 3), WRONG),
    "values cut": (in_hdf5(lambda f: replaced(f, "X/data", data=f["X/data"][:-1])), WRONG),
    **{f"column beyond the genes in {place}": (in_hdf5(entries, "indices", 0, 99, place), WRONG)
       for place in ("layers/turned", "raw/X", "obsp/near")},
    "complex numbers": (in_hdf5(lambda f: replaced(f, "X/data", data=f["X/data"][:] + 1j)), "real numbers"),
    "no columns of many rows": (in_hdf5(replaced, "X/data", shape=(10**15, 0), dtype="f4"), "it claims 8,000,0"),
    "awkward arrays": (in_hdf5(lambda f: f["obsm"].create_group("a").attrs.update(
        {"encoding-type": "awkward-array", "encoding-version": "0.1.0"})), "awkward"),
    # --- no files
    "pipe in a 10x folder": (folder_of_10x(b"1 1 1\n1 1 1\n", features=b""), "features.tsv is no file"),
    "pipe in a zarr store": (in_zarr(lambda store: os.mkfifo(store / "X/data/9")), "pipe or device"),
    "named pipe": (lambda good: (os.mkfifo("pipe.h5ad"), Path("pipe.h5ad"))[1], "is no file"),
    "device": (lambda good: (os.symlink("/dev/zero", "zero.csv"), Path("zero.csv"))[1], "is no file"),
}
WAYS = {
    "load": lambda path, model: sk.load(path),
    "annotate": lambda path, model: sk.annotate(path, model, out="out.h5ad"),
    "annotate on disk": lambda path, model: sk.annotate(path, model, backed=True, out="out.h5ad"),
    "fit": lambda path, model: sk.fit(path, "cell_type", **SMALL),
    "fit on disk": lambda path, model: sk.fit(path, "cell_type", backed=True, **SMALL),
    "gene_coverage": lambda path, model: sk.gene_coverage(path, model),
}
# fmt: on


@pytest.fixture(scope="module")
def good(make_cells, tmp_path_factory) -> Path:
    """A file of cells with nothing wrong."""
    path = tmp_path_factory.mktemp("files") / "good.h5ad"
    cells = make_cells(60)
    cells.raw, cells.layers["turned"], cells.obsp["near"] = cells, cells.X.tocsc(), cells.X.copy()
    cells.write_h5ad(path)
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with a file that no other one may show."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SIMS_KIT_DATA", str(tmp_path / "cache"))
    FLAG.unlink(missing_ok=True)
    Path("secret").write_bytes(SECRET * 10)
    with h5py.File("other.h5", "w") as file:
        file["secret"] = np.frombuffer(SECRET * 24, np.int64)[:60]
    return tmp_path


@pytest.mark.parametrize(("make", "says"), CASES.values(), ids=CASES)
def test_hostile_files(folder, good, model, request, make, says):
    """Each way in gives the same named error within seconds, without code run and without a file written."""
    path = make(good)
    for way, call in WAYS.items():
        if "disk" in way and ("genes in" in request.node.name or "awkward" in request.node.name):
            continue  # there, only X is read
        started = time.process_time()
        with pytest.raises(DataError, match=f"(?s)({path.name}.*)?({says})") as error:
            call(path, model)
        assert time.process_time() - started < 5 and len(str(error.value)) < 1500, way
        assert not FLAG.exists() and not Path("out.h5ad").exists(), way


def test_matrices_in_memory(make_cells, model):
    """The same damage in an AnnData ends in an error, and not in the process's death."""
    wrong = ("indices", 0, 60), ("indices", 3, -1), ("indptr", 2, 10**6), ("indptr", 2, -3), ("indptr", -1, 0)
    for (part, index, value), kind in itertools.product(wrong, ("csr", "csc")):
        cells = make_cells(60)
        cells.X = cells.X.asformat(kind)
        getattr(cells.X, part)[index] = value
        with pytest.raises(DataError, match=r"The query's matrix .*(index|indices)"):
            sk.annotate(cells, model)

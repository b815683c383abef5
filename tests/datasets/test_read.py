"""Reading: every format gives back what it was written from, in memory and on disk, or says what is wrong with it."""

import gzip
import os
import sys
import warnings
import zipfile
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp

from sims_kit.datasets.read import convert, is_backable, open_backed, read
from sims_kit.errors import DataError, SettingError, UnknownNameError

module = sys.modules["sims_kit.datasets.read"]  # the package exports the function under this name
# Twelve cells, each file written by the anndata in its name: 0.7.8 (Python 3.8, pandas 1.4), 0.8.0 (3.10, 1.5), 0.10.9
# (3.11, 2.2), 0.11.4 and 0.12.19 (3.11, 2.3), 0.13.4 (3.13, 3.1); the stores are of zarr format 2 and 3. RAW is in
# `raw`, its first eight genes are in X and in the layer "counts". In obs: "label", of three categories of which one is
# not used; "note", text; "score", with a NaN; "kept", "number"; from 0.12 on "sample" and "donor", text with one value
# missing. seuratdisk.h5ad is as Convert of SeuratDisk writes: log1p in X, no reference from codes to categories.
FILES = sorted(path for path in (Path(__file__).parent / "files").glob("*") if path.suffix in (".h5ad", ".zarr"))
LABELS = ["alpha", "beta", "beta", "alpha", "beta", "alpha", "alpha", "beta", "beta", "alpha", "beta", None]
RAW = np.maximum(np.arange(120).reshape(12, 10) * 37 % 11 - 5, 0).astype(np.float32)


@pytest.fixture
def cells(make_cells, monkeypatch, tmp_path):
    """Seven cells x five genes, in a folder of their own; matrices are made sparse two rows at a time."""
    monkeypatch.setattr(module, "BLOCK_VALUES", 10)
    monkeypatch.chdir(tmp_path)
    return make_cells(n_cells=7, n_genes=5, n_classes=2, seed=1)


def same(found, expected):
    """Names and values agree, and X is CSR of numbers."""
    assert sp.issparse(found.X) and found.X.format == "csr" and found.X.dtype.kind in "iuf"
    assert list(found.obs_names) == list(expected.obs_names) and list(found.var_names) == list(expected.var_names)
    np.testing.assert_array_equal(found.X.toarray(), expected.X.toarray())


def values_of(matrix):
    """The values of a matrix in memory or in a file, row by row, without zeros."""
    values = np.asarray(matrix.group["data"] if hasattr(matrix, "group") else getattr(matrix, "data", matrix[:]))
    return values[values != 0]


@pytest.mark.parametrize("layer", [None, "raw", "counts"])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_files_of_every_anndata(path, layer, monkeypatch):
    """Old, new, dense, zarr and SeuratDisk's files: labels are labels, and disk and memory agree."""
    is_seurat, expected = "seurat" in path.name, RAW if layer == "raw" else RAW[:, :8]
    if is_seurat and layer == "counts":
        pytest.skip("not in this file")
    whole, kept = read(path), open_backed(path, layer)
    held = whole.X if layer is None else whole.raw.X if layer == "raw" else whole.layers[layer]
    expected = np.log1p(expected) if is_seurat and layer is None else expected
    np.testing.assert_allclose(held.toarray(), expected, rtol=1e-6)
    np.testing.assert_allclose(values_of(kept.X), expected[expected != 0], rtol=1e-6)
    assert not sp.issparse(kept.X) and kept.X.shape == expected.shape and whole.X.format == "csr"
    assert list(kept.var_names) == [f"GENE{n}" for n in range(1, 11 if layer == "raw" else 9)]
    assert list(kept.obs_names) == list(whole.obs_names) == [f"cell-{number}" for number in range(1, 13)]
    monkeypatch.setattr(module, "NAMED", 5)
    lean = open_backed(path, layer, columns=["label"])
    assert list(lean.obs) == ["label"] and set(lean.obs_names) == {""}
    for adata in (whole, kept, lean):
        assert [label if isinstance(label, str) else None for label in adata.obs["label"]] == LABELS
    assert set(open_backed(path, columns=["label", "missing"]).obs) == set(whole.obs)  # whoever asks names the columns


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_was_read_can_be_written_for_older_anndata(path, tmp_path):
    """No table is read with nullable text, which anndata before 0.13 refuses to write and before 0.11 cannot read."""
    adata, kinds = read(path), set()
    with anndata.settings.override(allow_write_nullable_strings=False):
        adata.write_h5ad(tmp_path / "again.h5ad")
    with h5py.File(tmp_path / "again.h5ad") as file:
        file.visititems(lambda name, item: kinds.add(item.attrs.get("encoding-type", "")))
    assert "dataframe" in kinds and not [kind for kind in kinds if kind.startswith("null")]
    assert [adata.obs[name].isna().sum() for name in ("sample", "donor") if name in adata.obs] in ([], [1, 1])


def test_file_of_2018():
    """An AnnData before 0.7 opens in memory and on disk, with labels."""
    path = Path(os.environ.get("SIMS_KIT_DATA", ""), "scgen", "valid.h5ad")
    if not path.exists():
        pytest.skip("needs scgen/valid.h5ad in SIMS_KIT_DATA")
    whole, kept = read(path), open_backed(path)
    assert whole.shape == kept.shape == (1975, 6998) and len(values_of(kept.X)) == whole.X.nnz
    assert whole.obs["cell_type"].equals(kept.obs["cell_type"]) and kept.obs["cell_type"].nunique() == 7


def test_layers_that_stay_on_disk(cells):
    """A layer called raw wins over `raw`; text, matrices by genes and unknown layers have their message."""
    cells.raw, cells.layers["raw"] = cells, cells.X * 2
    cells.write_h5ad("raw.h5ad")
    assert list(values_of(open_backed("raw.h5ad", "raw").X)) == list(2 * cells.X.data)
    del cells.raw, cells.layers["raw"]
    cells.X = cells.X.tocsc()
    cells.write_h5ad("turned.h5ad")
    Path("cells.csv").write_text("name,a\nx,1\n")
    for name, layer, error, message in (
        ("cells.csv", None, SettingError, r"only \.h5ad and zarr"),
        ("turned.h5ad", None, DataError, r"by genes \(CSC\).*tocsr"),
        ("turned.h5ad", "count", UnknownNameError, "no layer 'count'"),
        ("turned.h5ad", "raw", UnknownNameError, "no layer 'raw'"),
    ):
        with pytest.raises(error, match=message):
            open_backed(name, layer)


@pytest.mark.parametrize("release", ["genes.tsv", "genes.tsv.gz", "features.tsv", "features.tsv.gz"])
def test_10x_folder(cells, release):
    """A folder of any release, packed or not; the path of one of several matrices chooses its sample."""
    ids, names = [f"ENSG{i:011}" for i in range(5)], ["A", "A", "NA", "B", "C"]
    genes = pd.DataFrame({0: ids, 1: names, 2: ["Gene Expression"] * 5})
    for prefix in ("GSM1_", "GSM2_"):
        scipy.io.mmwrite(f"{prefix}matrix.mtx", cells.X.T.astype(int))
        genes.iloc[:, : 2 + ("feat" in release)].to_csv(prefix + release, sep="\t", header=False, index=False)
        Path(f"{prefix}barcodes.tsv").write_text("\n".join(cells.obs_names) + "\n")
        if release.endswith(".gz"):
            Path(f"{prefix}matrix.mtx.gz").write_bytes(gzip.compress(Path(f"{prefix}matrix.mtx").read_bytes()))
            Path(f"{prefix}matrix.mtx").unlink()
        if prefix == "GSM1_":
            found = read(".")
    cells.var_names = list(genes[1])
    for adata in (found, read(next(Path().glob("GSM2_matrix*")))):
        same(adata, cells)
        assert list(adata.var["gene_ids"]) == list(genes[0]) and ("feature_types" in adata.var) == ("feat" in release)
    with pytest.raises(DataError, match=r"GSM1_matrix\.mtx.*path of a matrix\.mtx"):
        read(".")


def write_hdf5(path, cells):
    """Write loom, the layout of scDeepCluster, or a 10x file of release 3."""
    if path.endswith("x_y.h5"):
        cells.obs_names, cells.var_names = [f"cell_{i:05}" for i in range(1, 8)], [f"gene_{i:05}" for i in range(1, 6)]
    names, genes, X = np.array(cells.obs_names, "S"), np.array(cells.var_names, "S"), cells.X
    data = {
        "loom": {"matrix": X.T.toarray(), "layers/twice": 2 * X.T.toarray(), "col_attrs/CellID": names,
                 "col_attrs/Cluster": names, "col_attrs/xy": np.zeros((7, 2)), "row_attrs/Gene": genes},
        "x_y.h5": {"X": X.toarray().astype(float), "Y": np.array([1.0, 2, 1, 2, 1, 2, 3])},
        "10x.h5": {"matrix/data": X.data.astype(np.int32), "matrix/indices": X.indices, "matrix/indptr": X.indptr,
                   "matrix/shape": (5, 7), "matrix/barcodes": names, "matrix/features/id": genes,
                   "matrix/features/name": genes, "matrix/features/feature_type": np.repeat(b"Gene Expression", 5)},
    }[path.rpartition("a.")[2]]  # fmt: skip
    with h5py.File(path, "w") as file:
        for key, value in data.items():
            file[key] = value


FORMATS = {
    **dict.fromkeys(["a.loom", "a.x_y.h5", "a.10x.h5"], write_hdf5),
    **dict.fromkeys(["a.zarr", "a folder"], lambda path, cells: cells.write_zarr(path)),
    **dict.fromkeys(["A.H5AD", "ann.h5"], lambda path, cells: cells.write_h5ad(path)),
    "A.CSV": lambda path, cells: cells.to_df().to_csv(path),
    "A.TXT.GZ": lambda path, cells: cells.to_df().to_csv(path, sep="\t", compression="gzip"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats(tmp_path, monkeypatch, cells, name):
    """Each format, whatever the case of its ending, as text with ~ and as a path; converted, each can stay on disk."""
    monkeypatch.setenv("HOME", str(tmp_path))
    FORMATS[name](name, cells)
    for path in (f"~/{name}", tmp_path / name):
        same(found := read(path), cells)
    assert is_backable(f"~/{name}") == (name in ("A.H5AD", "a.zarr", "a folder"))
    same(read(convert(path, "converted.h5ad")), cells)
    assert open_backed(path if is_backable(path) else "converted.h5ad").shape == (7, 5)
    assert "loom" not in name or list(found.layers["twice"].data) == list(2 * cells.X.data)
    assert name != "a.x_y.h5" or list(found.obs["cell_type"])[:2] == ["type 1", "type 2"]


@pytest.mark.parametrize("kind", ["dense", "dense float64", "csc", "csr of int64"])
@pytest.mark.parametrize("name", ["a.h5ad", "a.zarr"])
def test_any_matrix_becomes_csr(cells, kind, name):
    """Dense matrices, also of raw and layers, and CSC become CSR float32; a CSR matrix keeps its type."""
    X, expected = cells.X.toarray(), cells.copy()
    cells.raw, cells.layers["twice"] = anndata.AnnData(X, obs=cells.obs, var=cells.var), 2 * X
    cells.X = {"dense": X, "dense float64": X.astype(float), "csc": cells.X.tocsc()}.get(kind, cells.X.astype(np.int64))
    getattr(cells, f"write_{name[2:]}")(name)
    same(found := read(name), expected)
    assert found.X.dtype == (np.int64 if "int64" in kind else np.float32)
    assert found.layers["twice"].format == found.raw.X.format == "csr" and found.raw.X.sum() == X.sum()
    assert list(read(name, orientation="genes_by_cells").obs_names) == list(cells.var_names)


SMALL = (["x", "y"], ["A", "B"], [[1, 2], [3, 4.5]])
TEXTS = {
    "line ends of Windows": (b"n,A,B\r\nx,1,2\r\ny,3,4.5\r\n", *SMALL),
    "line ends of old Macs": (b"n,A,B\rx,1,2\ry,3,4.5\r", *SMALL),
    "comment lines": (b"# made, by, hand, today\n%\n\nn,A,B\nx,1,2\ny,3,4.5", *SMALL),
    "blanks after commas": (b'n, A, "B"\nx, 1, 2\ny, 3, 4.5\n', *SMALL),
    "blanks that align": (b"    A    B\nx   1  2\ny   3  4.5  \n", *SMALL),
    "short header of R": (b'"A"\t"B"\n"x"\t1\t2\n"y"\t3\t4.5\n', *SMALL),
    "semicolons, quoted numbers": (b'n;"A";B\nx;"1";2\n"y";3;4.5\n', *SMALL),
    "a mark of the order of bytes": (b"\xef\xbb\xbfn,A,B\n\n\nx,1,2\n\ny,3,45e-1\n\n", *SMALL),
    "delimiters in names": (b'n\tA; "b"\t"C ""c"""\na b, c\t1\t2\n"q; ""r"""\t3\t4\n', ["a b, c", 'q; "r"'],
                            ['A; "b"', 'C "c"'], [[1, 2], [3, 4]]),
    "odd names": (b"n,NA,A,A\n1e5,1,2,3\nNA,4,5,6\n", ["1e5", "NA"], ["NA", "A", "A"], [[1, 2, 3], [4, 5, 6]]),
    "one gene": (b"n;A\nx;1\n", ["x"], ["A"], [[1]]),
    "no names": (b"ACTB,B2M\n0,1\n5,2\n0,3\n", [*"123"], ["ACTB", "B2M"], [[0, 1], [5, 2], [0, 3]]),
    "no names, decimals": (b"ACTB,B2M\n0.5,1\n1.5,2\n", [*"12"], ["ACTB", "B2M"], [[0.5, 1], [1.5, 2]]),
    "numbers as names": (b"Cell_ID,B2M\n7,1\n5,2\n", ["7", "5"], ["B2M"], [[1], [2]]),
    "the index of pandas": (b",B2M\n0,1\n1,2\n0,3\n", ["0", "1", "0"], ["B2M"], [[1], [2], [3]]),
    "many ids": (b"entrez,B2M\n" + b"".join(b"%d,1\n" % i for i in range(100, 130)), [*map(str, range(100, 130))],
                 ["B2M"], [[1]] * 30),
}  # fmt: skip


@pytest.mark.parametrize("block", [3, 2**23])
@pytest.mark.parametrize("case", TEXTS)
def test_text(tmp_path, monkeypatch, case, block):
    """However it is written, text gives names and values; without names of cells no gene is lost, which is said."""
    monkeypatch.setattr(module, "BLOCK_VALUES", block)
    content, names, genes, values = TEXTS[case]
    (tmp_path / "a.csv").write_bytes(content)
    with warnings.catch_warnings(record=True, action="always") as caught:
        found, turned = (read(tmp_path / "a.csv", orientation=way) for way in ("cells_by_genes", "genes_by_cells"))
    is_nameless = case.startswith("no names")
    names = [f"cell_{name}" for name in names] if is_nameless else names
    assert (list(found.obs_names), list(found.var_names), found.X.toarray().tolist()) == (names, genes, values)
    assert is_nameless or (list(turned.var_names), turned.X.T.toarray().tolist()) == (names, values)
    assert ["first column 'ACTB' holds values" in str(warning.message) for warning in caught].count(True) == is_nameless


WRONG = {
    **{f"n,a,b\nx,1,2\ny,{v},1\n": f"'{v}' in row 'y', column 'a'" for v in ("NA", "nan", "-inf", "TRUE", "1.2.3", "")},
    **{f"n,a,b\nx,1,2\ny,1,{v}\n": f"'{v}' in row 'y', column 'b'" for v in ("0x10", "1_0", "1e39", "-", "B cell")},
    "n,a,b\nx,1,2\ny,1\n": "1 values in row 'y'. Expected 2",
    "n,a,b\nx,1,2\ny,1,2,3\nz,1\n": "3 values in row 'y'. Expected 2",
    "n,a,b\nx,1,2\ny\n": "0 values in row 'y'",
    "n;a;b\nx;1,5;2\n": "'1,5' in row 'x', column 'a'. Expected a number with a point",
    'n,a\nx,"1,234"\n': "'1,234' in row 'x', column 'a'. Expected a number with a point",
    "n,a,b\nx,1,5,2,5\n": "3 and 5 fields",
    "ACTB,0,5,0\nB2M,1,0,2\n": "numbers in its first line, such as '0'. Expected names",
    **{"\n\n": "0 and 0 fields", "n,a\n": "2 and 0 fields", "l\nneuron\n": "1 and 1", "n,a,b,c\nx,1\n": "4 and 2"},
    "n,a\n\udcff,1\n": "cannot be read (UnicodeDecodeError",
    "n,a\n" + "x,1\n" * 50 + "0" * 3000: "has a line of 1,043 letters or more",  # a small file may fill the memory
}


@pytest.mark.parametrize("content", WRONG, ids=lambda content: content[:30])
def test_wrong_text(tmp_path, content):
    """What is no number, no matrix or no text is refused with the place and the value, in memory and in conversion."""
    (tmp_path / "a.csv").write_text(content, errors="surrogateescape")
    for reader in (read, lambda path: convert(path, tmp_path / "a.h5ad")):
        with pytest.raises(DataError) as caught:
            reader(tmp_path / "a.csv")
        assert WRONG[content] in str(caught.value) and "a.csv" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


@pytest.mark.parametrize("orientation", ["cells_by_genes", "genes_by_cells"])
@pytest.mark.parametrize("times", [1, 2])
def test_convert_members_of_an_archive(cells, times, orientation):
    """Text in an archive, and sums of it, become a packed CSR file."""
    table = cells.to_df() if orientation == "cells_by_genes" else cells.to_df().T
    with zipfile.ZipFile("a.zip", "w") as archive:
        archive.writestr("a.csv", table.to_csv())
    cells.X = cells.X * times
    same(read(convert([zipfile.Path("a.zip", "a.csv")] * times, "new/a.h5ad", orientation=orientation)), cells)
    assert h5py.File("new/a.h5ad")["X/data"].compression == "gzip" and len(os.listdir("new")) == 1


def test_convert_of_its_own_work(cells):
    """Notes of any kind are kept, and a file is never converted into itself."""
    cells.uns = {"title": "cells", "number": 3.0, "nothing": None}
    cells.write_h5ad("a.h5ad")
    assert read(convert("a.h5ad", "b.h5ad")).uns == cells.uns
    before = Path("a.h5ad").read_bytes()
    os.link("a.h5ad", "link.h5ad")
    for target in ("a.h5ad", "link.h5ad"):
        with pytest.raises(SettingError, match="never changed"):
            convert("a.h5ad", target)
    assert Path("a.h5ad").read_bytes() == before


def test_convert_into_the_cache(tmp_path, cache):
    """One file per content and orientation of the source; an explicit target is always written anew."""
    source, other = tmp_path / "a.csv", tmp_path / "b.csv"
    source.write_text("n,A,B\nx,1,2\n")
    other.write_text("n,A,B\nz,7,8\n")
    first, stamp = (target := convert(source)), target.stat().st_mtime_ns
    assert convert(str(source)) == first and first.stat().st_mtime_ns == stamp and (tmp_path / "own") in first.parents
    assert convert(source, orientation="genes_by_cells") != first
    source.write_text("n,A,C\nx,1,3\n")
    os.utime(source, ns=(stamp, stamp + 10**9))
    assert convert(source) != first and read(convert(source)).var_names[1] == "C"
    for one, name in ((source, "x"), (other, "z")):
        assert list(read(convert(one, tmp_path / "out.h5ad")).obs_names) == [name]
    with pytest.raises(DataError, match="names of their cells or genes differ"):
        convert([source, other], tmp_path / "sum.h5ad")


def test_what_cannot_be_read(cells):
    """Missing, damaged and unknown files and wrong arguments: each has its message."""
    cells.write_h5ad("cells.h5ad")
    content = Path("cells.h5ad").read_bytes()
    packed = gzip.compress(cells.to_df().to_csv().encode())
    spoiled = {"short.h5ad": content[:999], "web.csv.gz": content, "cut.csv.gz": packed[:-20], "a.xlsx": b"PK"}
    for name, data in spoiled.items():
        Path(name).write_bytes(data)
    Path("folder").mkdir()
    for name, options, error, message in (
        ("cels.h5ad", {}, FileNotFoundError, r"no file cels\.h5ad.*'cells\.h5ad'"),
        ("short.h5ad", {}, DataError, r"short\.h5ad cannot be read"),
        ("cut.csv.gz", {}, DataError, r"cut\.csv\.gz cannot be read \(EOFError"),
        ("web.csv.gz", {}, DataError, r"web\.csv\.gz cannot be read \(BadGzipFile"),
        ("a.xlsx", {}, DataError, r"PK.*no known format"),
        ("folder", {}, DataError, r"Expected one matrix\.mtx"),
        ("cells.h5ad", {"orientation": "gene_by_cell"}, SettingError, "'genes_by_cells'"),
        ("cells.h5ad", {"object_name": "sce"}, SettingError, "files of R"),
    ):
        with pytest.raises(error, match=message) as caught:
            read(name, **options)
        assert "cannot be read" not in message or caught.value.__cause__ is not None

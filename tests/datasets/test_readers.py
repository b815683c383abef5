"""Readers: each format gives back the AnnData that it was written from."""

import gzip
import shutil

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp
from anndata import AnnData

from sims_kit.datasets import delimited, read
from sims_kit.errors import DataError, SettingError


@pytest.fixture
def cells(make_cells):
    """Seven cells x five genes."""
    return make_cells(n_cells=7, n_genes=5, n_classes=2, seed=1)


def same(found: AnnData, expected: AnnData):
    """Names and values agree, and X is CSR."""
    assert sp.issparse(found.X) and found.X.format == "csr"
    assert list(found.obs_names) == list(expected.obs_names)
    assert list(found.var_names) == list(expected.var_names)
    np.testing.assert_array_equal(found.X.toarray(), expected.X.toarray())


def pack(path):
    """Gzip a file and remove the original."""
    with open(path, "rb") as plain, gzip.open(f"{path}.gz", "wb") as packed:
        shutil.copyfileobj(plain, packed)
    path.unlink()


def test_h5ad_and_zarr(tmp_path, cells):
    """AnnData's own formats keep obs, var and layers."""
    cells.layers["twice"] = cells.X * 2
    cells.write_h5ad(tmp_path / "cells.h5ad")
    cells.write_zarr(tmp_path / "cells.zarr")
    for name in ("cells.h5ad", "cells.zarr"):
        found = read(tmp_path / name)
        same(found, cells)
        assert list(found.obs["cell_type"]) == list(cells.obs["cell_type"])
        np.testing.assert_array_equal(found.layers["twice"].toarray(), 2 * cells.X.toarray())


@pytest.mark.parametrize("kind", ["dense", "csc", "csr of int64"])
def test_h5ad_of_any_matrix_becomes_csr(tmp_path, cells, kind):
    """Dense and CSC become CSR float32; a CSR matrix keeps its type."""
    expected = cells.copy()
    cells.X = {"dense": cells.X.toarray(), "csc": cells.X.tocsc(), "csr of int64": cells.X.astype(np.int64)}[kind]
    cells.write_h5ad(tmp_path / "cells.h5ad")
    found = read(tmp_path / "cells.h5ad")
    same(found, expected)
    assert found.X.dtype == (np.int64 if "int64" in kind else np.float32)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ","), ("tsv", "\t"), ("txt", " "), ("csv", ";")])
def test_delimited(tmp_path, cells, suffix, delimiter, packed):
    """The delimiter is found in the file, packed or not, whatever the suffix."""
    path = tmp_path / f"cells.{suffix}"
    cells.to_df().to_csv(path, sep=delimiter)
    if packed:
        pack(path)
    same(read(f"{path}.gz" if packed else path), cells)


def test_delimited_genes_by_cells(tmp_path, cells):
    """A file with genes in rows is turned on request."""
    cells.to_df().T.to_csv(tmp_path / "cells.csv")
    same(read(tmp_path / "cells.csv", orientation="genes_by_cells"), cells)
    assert read(tmp_path / "cells.csv").shape == (5, 7)


def test_delimited_with_the_short_header_of_r(tmp_path, cells):
    """A header without a field for the column of names is understood."""
    text = cells.to_df().to_csv(quoting=2).split(",", 1)[1]  # all after the empty first field
    (tmp_path / "cells.csv").write_text(text)
    same(read(tmp_path / "cells.csv"), cells)


def test_delimited_with_names_that_hold_other_delimiters(tmp_path):
    """A name with spaces and commas does not mislead the search for the delimiter."""
    (tmp_path / "cells.tsv").write_text("name\tACTB\tB2M\na b, c, d e f\t1\t2\n")
    found = read(tmp_path / "cells.tsv")
    assert list(found.obs_names) == ["a b, c, d e f"] and found.X.toarray().tolist() == [[1, 2]]


def test_delimited_in_many_chunks(tmp_path, cells, monkeypatch):
    """The size of the chunks does not change the result."""
    cells.to_df().to_csv(tmp_path / "cells.csv")
    monkeypatch.setattr(delimited, "VALUES_PER_CHUNK", 10)  # two rows at a time
    same(read(tmp_path / "cells.csv"), cells)


def test_delimited_keeps_odd_and_double_names(tmp_path):
    """Names such as NA, 1e5 or a double gene arrive as they are."""
    (tmp_path / "cells.csv").write_text("\ufeffname,NA,ACTB,ACTB\n1e5,1,2,3\nNA,4,5,6.5\n")
    found = read(tmp_path / "cells.csv")
    assert list(found.obs_names) == ["1e5", "NA"] and list(found.var_names) == ["NA", "ACTB", "ACTB"]
    np.testing.assert_array_equal(found.X.toarray(), [[1, 2, 3], [4, 5, 6.5]])


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("cell_2,3,B cell", "'B cell' is not a number in row 'cell_2', column 'gene_b'"),
        ("cell_2,,1", "the value is missing in row 'cell_2', column 'gene_a'"),
        ("cell_2,NA,1", "'NA' is not a number in row 'cell_2', column 'gene_a'"),
        ("cell_2,1", "the value is missing in row 'cell_2', column 'gene_b'"),
        ("cell_2,1,2,3", "Expected 3 fields in line 3, saw 4"),
    ],
)
def test_delimited_says_where_a_value_is_wrong(tmp_path, line, found):
    """The error names the row, the column and the value that is no number."""
    path = tmp_path / "cells.csv"
    path.write_text(f"name,gene_a,gene_b\ncell_1,0,1\n{line}\n")
    with pytest.raises(DataError) as caught:
        read(path)
    assert found in str(caught.value) and str(path) in str(caught.value)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("\n\n", "empty"),
        ("name,gene_a\n", "no rows"),
        ("labels\nneuron\n", "one column"),
        ("name,gene_a,gene_b,gene_c\ncell_1,1\n", "header has 4 fields and the first row 2"),
    ],
)
def test_delimited_that_is_no_matrix(tmp_path, text, reason):
    """Files without a matrix are refused with the reason."""
    (tmp_path / "cells.csv").write_text(text)
    with pytest.raises(DataError, match=reason):
        read(tmp_path / "cells.csv")


@pytest.mark.parametrize("release", ["genes.tsv", "features.tsv", "features.tsv, packed", "with a prefix"])
def test_10x_folder(tmp_path, cells, release):
    """A folder of any release is read; double symbols stay, ids lie in var, antibodies are left out."""
    prefix = "GSM1_" if "prefix" in release else ""
    genes = pd.DataFrame({"id": [f"ENSG{i:011d}" for i in range(5)], "symbol": ["ACTB", "ACTB", "B2M", "CD3", "CD19"]})
    if release != "genes.tsv":
        genes["type"] = ["Gene Expression"] * 4 + ["Antibody Capture"]
    scipy.io.mmwrite(tmp_path / f"{prefix}matrix.mtx", cells.X.T.astype(int))
    names = tmp_path / (prefix + ("genes.tsv" if release == "genes.tsv" else "features.tsv"))
    genes.to_csv(names, sep="\t", header=False, index=False)
    (tmp_path / f"{prefix}barcodes.tsv").write_text("\n".join(cells.obs_names) + "\n")
    if "packed" in release:
        for file in list(tmp_path.iterdir()):
            pack(file)
    found = read(tmp_path)
    expected = cells if release == "genes.tsv" else cells[:, :4].copy()
    expected.var_names = genes["symbol"][: expected.n_vars]
    same(found, expected)
    assert list(found.var["gene_ids"]) == list(genes["id"][: expected.n_vars])


def test_10x_folder_that_is_not_complete(tmp_path, cells):
    """A missing file, and files that do not fit, are named."""
    scipy.io.mmwrite(tmp_path / "matrix.mtx", cells.X.T)
    with pytest.raises(DataError, match=r"features\.tsv or genes\.tsv"):
        read(tmp_path)
    with pytest.raises(DataError, match="Give its folder"):
        read(tmp_path / "matrix.mtx")
    (tmp_path / "genes.tsv").write_text("g1\tA\ng2\tB\n")
    (tmp_path / "barcodes.tsv").write_text("c1\nc2\n")
    with pytest.raises(DataError, match="do not belong together"):
        read(tmp_path)


def test_10x_h5(tmp_path, cells):
    """A 10x HDF5 file is told from other .h5 files."""
    with h5py.File(tmp_path / "cells.h5", "w") as file:
        matrix = file.create_group("matrix")
        for name in ("data", "indices", "indptr"):
            matrix[name] = getattr(cells.X, name).astype(np.int64)
        matrix["shape"] = cells.shape[::-1]
        matrix["barcodes"] = list(cells.obs_names)
        texts = {"id": cells.var_names, "name": cells.var_names, "feature_type": ["Gene Expression"] * 5}
        for name, text in {**texts, "genome": ["GRCh38"] * 5}.items():
            matrix[f"features/{name}"] = np.array(text, dtype="S")
    same(read(tmp_path / "cells.h5"), cells)


@pytest.mark.parametrize("text", ["S", h5py.string_dtype()], ids=["loom 2", "loom 3"])
def test_loom(tmp_path, cells, text):
    """A loom file arrives with cells in rows, its attributes in obs and var, its layers kept."""
    with h5py.File(tmp_path / "cells.loom", "w") as file:
        file["matrix"] = cells.X.T.toarray()
        file["layers/spliced"] = 2 * cells.X.T.toarray()
        file["col_attrs/CellID"] = np.array(cells.obs_names, dtype=text)
        file["col_attrs/cell_type"] = np.array(cells.obs["cell_type"], dtype=text)
        file["col_attrs/embedding"] = np.zeros((7, 2))
        file["row_attrs/Gene"] = np.array(cells.var_names, dtype=text)
        file["row_attrs/length"] = np.arange(5)
    found = read(tmp_path / "cells.loom")
    same(found, cells)
    np.testing.assert_array_equal(found.layers["spliced"].toarray(), 2 * cells.X.toarray())
    assert list(found.obs["cell_type"]) == list(cells.obs["cell_type"]) and list(found.obs) == ["cell_type"]
    assert list(found.var["length"]) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("suffix", ["h5", "hdf5", "hdf"])
def test_pandas_hdf(tmp_path, cells, suffix):
    """A DataFrame written by pandas is read with its names."""
    cells.to_df().to_hdf(tmp_path / f"cells.{suffix}", key="counts")
    same(read(tmp_path / f"cells.{suffix}"), cells)


@pytest.mark.parametrize("chunks", [None, (2, 3), (7, 5)])
def test_x_and_y(tmp_path, cells, chunks):
    """The bare X and Y layout gets made-up names, and numeric labels as text."""
    with h5py.File(tmp_path / "cells.h5", "w") as file:
        file.create_dataset("X", data=cells.X.toarray().astype(np.float64), chunks=chunks)
        file["Y"] = np.array([1.0, 2, 3, 10, 1, 2, 3])
    found = read(tmp_path / "cells.h5")
    np.testing.assert_array_equal(found.X.toarray(), cells.X.toarray())
    assert list(found.var_names[:2]) == ["gene_00001", "gene_00002"]
    assert list(found.obs["cell_type"][:4]) == ["type 1", "type 2", "type 3", "type 10"]


def test_h5ad_under_another_suffix(tmp_path, cells):
    """HDF5 files are told apart by what lies in them."""
    cells.write_h5ad(tmp_path / "cells.h5")
    same(read(tmp_path / "cells.h5"), cells)


def test_truncated_h5ad(tmp_path, cells):
    """A file cut short gives one error that names it; h5py's own is kept as the cause."""
    path = tmp_path / "cells.h5ad"
    cells.write_h5ad(path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match="cut short") as caught:
        read(path)
    assert str(path) in str(caught.value) and isinstance(caught.value.__cause__, OSError)


def test_truncated_gzip(tmp_path, cells):
    """The same for packed text."""
    cells.to_df().to_csv(tmp_path / "cells.csv")
    pack(tmp_path / "cells.csv")
    path = tmp_path / "cells.csv.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="cut short"):
        read(path)


@pytest.mark.parametrize("name", ["cells.h5ad", "cells.csv", "cells.csv.gz", "cells.h5"])
def test_empty_file(tmp_path, name):
    """A file of 0 bytes is called empty."""
    (tmp_path / name).touch()
    with pytest.raises(DataError, match="empty"):
        read(tmp_path / name)


@pytest.mark.parametrize("name", ["cells.h5ad", "cells.loom", "cells.csv.gz", "cells.rds", "cells.xlsx"])
def test_file_that_is_something_else(tmp_path, name):
    """Other content under a known name, and unknown names, are refused by name."""
    (tmp_path / name).write_bytes(b"\x89PNG\r\n\x1a\n" * 20)
    with pytest.raises(DataError, match=f"{name}.* (not an HDF5 file|not what its name says|no known format)"):
        read(tmp_path / name)


def test_unknown_hdf5_and_unknown_folder(tmp_path):
    """HDF5 files and folders of no known layout are listed."""
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        file["layer_1"] = [1.0]
    with pytest.raises(DataError, match="layer_1"):
        read(tmp_path / "weights.h5")
    with pytest.raises(DataError, match=r"weights\.h5"):
        read(tmp_path)
    (tmp_path / "broken.zarr").mkdir()
    with pytest.raises(DataError, match=r"broken\.zarr"):
        read(tmp_path / "broken.zarr")


def test_missing_file_offers_the_nearest(tmp_path, cells):
    """A misspelt path leads to the file beside it; a missing folder is said to be missing."""
    cells.write_h5ad(tmp_path / "cortex.h5ad")
    with pytest.raises(FileNotFoundError, match=r"'cortex\.h5ad'"):
        read(tmp_path / "cortx.h5ad")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read(tmp_path / "nowhere" / "cells.h5ad")


def test_matrix_without_cells(tmp_path, cells):
    """No cells is an error, not an empty result."""
    cells[:0].copy().write_h5ad(tmp_path / "cells.h5ad")
    with pytest.raises(DataError, match="0 cells"):
        read(tmp_path / "cells.h5ad")


def test_unknown_orientation(tmp_path):
    """A misspelt orientation leads to the right one."""
    with pytest.raises(SettingError, match="genes_by_cells"):
        read(tmp_path / "cells.csv", orientation="gene_by_cell")

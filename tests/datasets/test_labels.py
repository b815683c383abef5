"""Label files, selection of cells, and the check of orientation."""

import gzip
import warnings

import numpy as np
import pandas as pd
import pytest

from sims_kit.datasets import attach_labels, check_orientation, select_cells
from sims_kit.errors import DataError, LabelError, UnknownNameError


@pytest.fixture
def cells(make_cells):
    """Twelve cells x thirty genes without labels, and the true labels."""
    adata = make_cells(n_cells=12, n_genes=30, n_classes=3, seed=2)
    truth = adata.obs.pop("cell_type")
    return adata, truth


def write(tmp_path, text, name="labels.csv"):
    """A label file."""
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


@pytest.fixture(autouse=True)
def no_warnings():
    """A warning is an error here unless the test expects it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
@pytest.mark.parametrize("index", ["cell", "", None], ids=["named", "unnamed", "header of R"])
def test_matched_by_name(tmp_path, cells, delimiter, index):
    """Rows in another order find their cells, and the other columns come along with their types."""
    adata, truth = cells
    table = pd.DataFrame({"cell_type": truth, "plate": range(12), "note": "a b"}).sample(frac=1, random_state=0)
    text = table.to_csv(sep=delimiter, index_label=index or "")
    attach_labels(adata, write(tmp_path, text if index is not None else text[1:]), "cell_type")
    assert list(adata.obs["cell_type"]) == list(truth)
    assert list(adata.obs["plate"]) == list(range(12)) and list(adata.obs["note"]) == ["a b"] * 12


def test_matched_by_a_later_column(tmp_path, cells):
    """The names may stand in any column."""
    adata, truth = cells
    table = pd.DataFrame({"sample": "s1", "cell_type": truth.values, "barcode": truth.index})[::-1]
    attach_labels(adata, write(tmp_path, table.to_csv(index=False)), "cell_type")
    assert list(adata.obs["cell_type"]) == list(truth)


@pytest.mark.parametrize("name", ["labels.txt", "labels.txt.gz"])
def test_names_and_labels_without_header(tmp_path, cells, name):
    """Two columns without a header are names and labels."""
    adata, truth = cells
    text = truth[::-1].to_csv(sep="\t", header=False)
    attach_labels(adata, write(tmp_path, text, name), "cell_type")
    assert list(adata.obs["cell_type"]) == list(truth) and list(adata.obs) == ["cell_type"]


@pytest.mark.parametrize("header", ["", "cell_type\n"])
def test_one_column_is_taken_in_order(tmp_path, cells, header):
    """One column, with or without header, is as many labels in the order of the cells."""
    adata, truth = cells
    attach_labels(adata, write(tmp_path, header + "\n".join(truth) + "\n"), "cell_type")
    assert list(adata.obs["cell_type"]) == list(truth)


def test_other_names_are_taken_in_order_with_a_warning(tmp_path, cells):
    """Names that fit no cell are passed over, and the user is told."""
    adata, truth = cells
    table = pd.DataFrame({"barcode": [f"AAAC{i}" for i in range(12)], "cell_type": truth.values})
    with pytest.warns(UserWarning, match="taken in order"):
        attach_labels(adata, write(tmp_path, table.to_csv(index=False)), "cell_type")
    assert list(adata.obs["cell_type"]) == list(truth)


def test_labels_for_some_of_the_cells(tmp_path, cells):
    """Cells without a row stay unlabelled and are counted; rows of other cells are ignored."""
    adata, truth = cells
    others = pd.Series("elsewhere", index=[f"other_{i}" for i in range(5)], name="cell_type")
    table = pd.concat([others, truth[:4]])
    with pytest.warns(UserWarning, match="no row for 8 of 12 cells"):
        attach_labels(adata, write(tmp_path, table.to_csv(index_label="cell")), "cell_type")
    assert list(adata.obs["cell_type"][:4]) == list(truth[:4]) and adata.obs["cell_type"][4:].isna().all()


def test_numbers_as_labels_stay_text(tmp_path, cells):
    """Cluster numbers are names, not numbers."""
    adata, _ = cells
    table = pd.DataFrame({"cluster": np.arange(12) % 3}, index=adata.obs_names)
    attach_labels(adata, write(tmp_path, table.to_csv()), "cluster")
    assert list(adata.obs["cluster"][:3]) == ["0", "1", "2"]


def test_unknown_column_offers_the_nearest(tmp_path, cells):
    """A misspelt label column leads to the right one."""
    adata, truth = cells
    path = write(tmp_path, truth.to_csv(index_label="cell"))
    with pytest.raises(UnknownNameError, match="'cell_type'") as caught:
        attach_labels(adata, path, "celltype")
    assert str(path) in str(caught.value)


def test_another_length_gives_both(tmp_path, cells):
    """Labels of another length and without names are refused with both lengths."""
    adata, truth = cells
    with pytest.raises(LabelError, match=r"has 10 rows, the matrix 12 cells"):
        attach_labels(adata, write(tmp_path, "\n".join(truth[:10])), "cell_type")


@pytest.mark.parametrize("named", [True, False])
def test_turned_matrix_is_recognised(tmp_path, cells, named):
    """Labels that fit the genes, by name or number, mean a turned matrix; the message says how to turn it."""
    adata, truth = cells
    text = truth.to_csv(index_label="cell") if named else "\n".join(truth)
    with pytest.raises(LabelError, match='orientation="genes_by_cells"'):
        attach_labels(adata.T.copy(), write(tmp_path, text), "cell_type")


def test_two_labels_for_a_cell(tmp_path, cells):
    """A cell with two labels is an error, one with the same label twice is not."""
    adata, truth = cells
    text = truth.to_csv(index_label="cell")
    attach_labels(adata, write(tmp_path, text + f"cell_0003,{truth.iloc[3]}\n"), "cell_type")
    assert list(adata.obs["cell_type"]) == list(truth)
    with pytest.raises(LabelError, match="cell_0003"):
        attach_labels(adata, write(tmp_path, text + "cell_0003,class_9\n"), "cell_type")


def test_columns_of_obs_are_not_lost_silently(tmp_path, cells):
    """The labels asked for replace a column with a warning; other columns of obs stay, with a warning."""
    adata, truth = cells
    adata.obs["cell_type"], adata.obs["plate"] = "old", "old"
    table = pd.DataFrame({"cell_type": truth, "plate": "new"})
    with pytest.warns(UserWarning) as caught:
        attach_labels(adata, write(tmp_path, table.to_csv()), "cell_type")
    assert "is replaced" in str(caught[0].message) and "['plate']" in str(caught[1].message)
    assert list(adata.obs["cell_type"]) == list(truth) and set(adata.obs["plate"]) == {"old"}


def test_label_file_missing_empty_or_damaged(tmp_path, cells):
    """Each is told by a named error with the path."""
    adata, _ = cells
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv"):
        attach_labels(adata, tmp_path / "nowhere.csv", "cell_type")
    with pytest.raises(DataError, match="empty"):
        attach_labels(adata, write(tmp_path, ""), "cell_type")
    (tmp_path / "labels.csv.gz").write_bytes(b"not packed")
    with pytest.raises(DataError, match=r"labels\.csv\.gz"):
        attach_labels(adata, tmp_path / "labels.csv.gz", "cell_type")


def test_select_cells_keeps_and_drops(cells):
    """Values are compared as text: 1, 1.0 and "1" are the same, as are True and "TRUE"."""
    adata, _ = cells
    adata.obs["cell_number"] = [1.0, 2.0, np.nan] * 4
    adata.obs["outlier"] = pd.Categorical([True] * 4 + [False] * 8)
    found = select_cells(adata, keep={"cell_number": ["1"]}, drop={"outlier": ["TRUE"]})
    assert list(found.obs_names) == [adata.obs_names[i] for i in (6, 9)]
    assert select_cells(adata, keep={"cell_number": 1}).n_obs == 4
    assert select_cells(adata).n_obs == 12 and not found.is_view


def test_select_cells_says_what_is_wrong(cells):
    """An unknown column offers the nearest, and a selection of nothing is refused."""
    adata, truth = cells
    adata.obs["cell_type"] = truth
    with pytest.raises(UnknownNameError, match="'cell_type'"):
        select_cells(adata, keep={"cell_typ": ["a"]})
    with pytest.raises(DataError, match="No cell is left of 12"):
        select_cells(adata, keep={"cell_type": ["nothing"]})


@pytest.mark.parametrize(
    "genes",
    [
        [f"ENSG{i:011d}" for i in range(30)],
        [f"ENSMUSG{i:011d}.2" for i in range(30)],
        ["ACTB", "GAPDH", "MALAT1", *(f"LOC{i}" for i in range(27))],
        ["Actb", "Rpl13a", "mt-Co1", *(f"Gm{i}" for i in range(27))],
    ],
    ids=["human ids", "mouse ids", "human symbols", "mouse symbols"],
)
def test_orientation_is_checked(cells, genes):
    """Genes in columns pass; genes in rows are refused with the way out."""
    adata, _ = cells
    adata.var_names = genes
    check_orientation(adata)
    with pytest.raises(DataError, match=r"orientation=\"genes_by_cells\".*adata\.T"):
        check_orientation(adata.T)


def test_orientation_of_unknown_names_passes(cells):
    """Names that say nothing raise nothing, either way round."""
    adata, _ = cells
    check_orientation(adata)
    check_orientation(adata.T)


@pytest.mark.parametrize("header", ['"x"\n', "cell_type\n", ""])
def test_one_column_of_labels_has_any_header(make_cells, tmp_path, header):
    """A label file with a single column is unambiguous: its labels are attached under the name that was asked for."""
    cells = make_cells(n_cells=4)
    (tmp_path / "labels.csv").write_text(header + '"a"\n"b"\n"a"\n"b"\n')
    attach_labels(cells, tmp_path / "labels.csv", "type")
    assert cells.obs["type"].tolist() == ["a", "b", "a", "b"]

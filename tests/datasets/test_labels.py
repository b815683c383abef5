"""Label files, and the check of orientation."""

import gzip
import warnings
import zipfile

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from sims_kit.datasets.labels import attach_labels, check_orientation
from sims_kit.errors import DataError, LabelError, UnknownNameError

CODES = ["AAACCTGA", "AAACCTGC", "AAACCTGG", "CAACCTGT"]
ZERO, ONE, ARCHIVE = ["0", "1", "2", "3"], ["1", "2", "3", "4"], ["511572", "511573", "511574", "511575"]
PLATE = ["p1_A1", "p1_A2", "p1_B1", "p1_B2"]
LABELS = ["T", "B", "NK", "B"]


def attached(path, cells, content, **options):
    """The labels of `cells` from a file of that content (None: no file), NaN as None, and what was said."""
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with warnings.catch_warnings(record=True, action="always") as said:
        adata = AnnData(np.zeros((len(cells), 30), np.float32), pd.DataFrame(index=cells))
        said.clear()  # that names repeat
        attach_labels(adata, path, "type", **options)
    labels = adata.obs["type"].astype(object)
    return labels.where(labels.notna(), None).tolist(), " ".join(str(warning.message) for warning in said)


def table(names, labels=LABELS, header="cell,type"):
    """A label file."""
    return "\n".join([header, *(f"{name},{label}" for name, label in zip(names, labels, strict=False))]) + "\n"


@pytest.mark.parametrize(
    ("cells", "names", "said"),
    [
        (CODES, CODES, ""),
        (ZERO, ZERO, ""),
        (ARCHIVE, ARCHIVE, ""),
        (CODES, [f"{code}-1" for code in CODES], r"without suffix: 'AAACCTGA-1' is cell 'AAACCTGA'"),
        ([f"{code}-1-0" for code in CODES], CODES, "without suffix"),
        (CODES, [f"sample_1_{code}" for code in CODES], "without prefix"),
        ([f"cell_{i}" for i in "1234"], [f"s1_cell_{i}" for i in "1234"], "without prefix"),
        ([f"{code}-1" for code in CODES], [f"s1:{code}x" for code in CODES], "without prefix and suffix"),
        ([f"GSM1_{code}" for code in CODES], [f"s1_{code}" for code in CODES], "without prefix"),
        ([f"10X-{code}" for code in CODES], [f"X10X.{code}" for code in CODES], "without blanks and punctuation"),
        (CODES, [f"{code} " for code in CODES], "without blanks and punctuation"),
    ],
)
def test_matched_by_name(tmp_path, cells, names, said):
    """Rows in another order find their cells, and what was left out of their names is said."""
    labels, found = attached(tmp_path / "labels.csv", cells, table(names[::-1], LABELS[::-1]))
    assert labels == LABELS and (said in found if said else not found)


@pytest.mark.parametrize(
    ("cells", "names", "error"),
    [
        (ZERO, ONE[:3], "no column"),  # row numbers of R, of a table that was filtered
        (ZERO, ZERO[:3], "no column"),
        (CODES, ONE[::-1], "no column"),  # of a table that was sorted
        (CODES, ["x", "y", "z", "u"], r"no column \('x', 'y', 'z', ...\).*\('AAACCTGA'.*in_order=True"),
        (CODES, ["x", "y", "z"], "has 3 rows, the matrix 4 cells and 30 genes"),
        (PLATE, [name.replace("p1", "p2") for name in PLATE], "no column"),  # of another plate
        (CODES, [CODES[0] + "-1", CODES[0] + "-2", CODES[1] + "-1", CODES[2] + "-1"], "no column"),  # of two lanes
        (CODES, [*CODES[:3], CODES[0]], "repeats names of cells .'AAACCTGA'"),
        ([*CODES[:3], CODES[0]], CODES, "repeats names of cells .'AAACCTGA'"),
        (CODES, ["T"] * 30, 'orientation="genes_by_cells"'),
    ],
)
def test_rows_that_cannot_be_matched_are_refused(tmp_path, cells, names, error):
    """No label is shifted or guessed; with `in_order` the rows are taken as they come."""
    with pytest.raises(LabelError, match=error):
        attached(tmp_path / "labels.csv", cells, table(names, LABELS * 8))
    if len(names) == len(cells):
        assert attached(tmp_path / "labels.csv", cells, table(names), in_order=True) == (LABELS, "")


@pytest.mark.parametrize("cells", [ZERO, CODES])
@pytest.mark.parametrize("header", [',"type"', '"","type"', '"type"'])
@pytest.mark.parametrize("names", [ZERO, ONE])
def test_row_numbers_are_no_names(tmp_path, cells, header, names):
    """R and pandas number rows from 1 and 0, which shifts no label."""
    labels, said = attached(tmp_path / "labels.csv", cells, table(names, header=header))
    assert labels == LABELS and (cells == names or "numbers its rows" in said)


@pytest.mark.parametrize(
    ("written", "labels"),
    [
        (["nan", "NA", "", "B"], [None, None, None, "B"]),
        (["1.0", "2.0", "", "1.0"], ["1", "2", None, "1"]),
        (["1.0", "1.1", "2", "1.0"], ["1.0", "1.1", "2", "1.0"]),
        (["01", "1", "1", "1"], ["01", "1", "1", "1"]),
        (["9007199254740993.0", "1.0", "2.0", "3.0"], ["9007199254740993.0", "1.0", "2.0", "3.0"]),  # beyond floats
    ],
)
def test_labels_are_text_in_one_form(tmp_path, written, labels):
    """What is missing is None, whole floats are whole numbers, and blanks and Unicode have one form."""
    assert attached(tmp_path / "labels.csv", CODES, table(CODES, written)) == (labels, "")


@pytest.mark.parametrize(
    "content",
    [
        *(table(CODES).replace(",", delimiter) for delimiter in ("\t", ";", ", ")),
        *(table(CODES).replace("\n", end) for end in ("\r", "\r\n")),
        *(table(CODES, header=header) for header in ("type", " cell , type ", "#cell,type", CODES[0] + ",T\nx,y")),
        *(start + table(CODES) for start in ("\ufeff", "\n", "# of 2020, by us\n# twice\n", "##\n")),
        '"type"\n' + "".join(f'"{code}" "{label}"\n' for code, label in zip(CODES, LABELS, strict=True)),  # write.table
        table(CODES) + f"{CODES[0]},{LABELS[0]}\n",
        "sample,type,cell\n" + "".join(f"s,{label},{code}\n" for code, label in zip(CODES, LABELS, strict=True)),
        *(header + "T\nB\nNK\nB\n" for header in ("", "x\n", '"type"\n')),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_layouts(tmp_path, content, packed):
    """Delimiters, ends of lines, headers, comments and a single column are understood, packed or not."""
    path = tmp_path / ("labels.csv.gz" if packed else "labels.csv")
    assert attached(path, CODES, gzip.compress(content.encode()) if packed else content) == (LABELS, "")


def test_other_columns(tmp_path):
    """They come with their types; those of `obs` stay, but for the labels; cells without a row are counted."""
    adata = AnnData(obs=pd.DataFrame({"type": "old", "plate": "old"}, index=CODES))
    rows = [f"{CODES[0]},T,1,007,NA,a b", f"{CODES[1]},B,2,008,2.5,NA"]
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("labels.csv", "\n".join(["cell,type,plate,donor,age,note", *rows]))
    with pytest.warns(UserWarning) as said:
        attach_labels(adata, zipfile.Path(tmp_path / "all.zip", "labels.csv"), "type", text=["donor"])
    assert "no row for 2 of 4 cells ('AAACCTGG', 'CAACCTGT')" in str(said[0].message)
    assert "is replaced" in str(said[1].message) and "['plate']" in str(said[2].message)
    assert adata.obs["type"].tolist()[:2] == ["T", "B"] and adata.obs["type"][2:].isna().all()
    assert adata.obs["donor"].tolist()[:2] == ["007", "008"] and set(adata.obs["plate"]) == {"old"}
    assert adata.obs["age"].dtype == float and adata.obs["note"].notna().sum() == 1


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, FileNotFoundError, "no label file"),
        ("", DataError, "it is empty"),
        (b"not packed", DataError, "gzip"),
        (table(CODES) + "a,b,c\n", DataError, "Expected 2 fields in line 6"),
        (table(CODES, header="cell,typo"), UnknownNameError, "'typo'"),
        (table(CODES, ["T\0cell", *LABELS[1:]]), DataError, "zero byte"),  # pandas would end the label there
        (" " * 2**21 + "\n" + table(CODES), DataError, "megabyte of blanks"),
        ("x\n" * 200, DataError, "more than 100 lines"),
        (gzip.compress(b"a,b\n" * 2**12), DataError, "unpacks to more than [0-9,]+ bytes"),
    ],
)
def test_what_cannot_be_read(tmp_path, monkeypatch, content, error, message):
    """The error names the file, and a small file does not fill the memory."""
    monkeypatch.setattr("sims_kit.datasets.labels.LARGEST", 2**10)
    monkeypatch.setattr("sims_kit.datasets.labels.MOST_ROWS", 100)
    path = tmp_path / ("labels.csv.gz" if isinstance(content, bytes) else "labels.csv")
    with pytest.raises(error, match=message) as caught:
        attached(path, CODES, content)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("genes", ["ENSG00000{} " * 3, "ENSMUSG00000{}.2", "ACTB GAPDH MALAT1 L1", "Actb mt-Co1 Ubc"])
def test_orientation(genes):
    """Genes in columns pass, genes in rows are refused with the way out, and names that say nothing pass."""
    genes = genes.format("111", "222", "333").split()
    adata = AnnData(np.zeros((4, len(genes)), np.float32), pd.DataFrame(index=CODES), pd.DataFrame(index=genes))
    check_orientation(adata)
    with pytest.raises(DataError, match=r"orientation=\"genes_by_cells\".*adata\.T"):
        check_orientation(adata.T)
    adata.var_names, adata.var["type"] = [f"x{i}" for i in range(len(genes))], "T"
    check_orientation(adata.T)
    with pytest.raises(DataError, match="have no 'type', its columns"):
        check_orientation(adata, "type")

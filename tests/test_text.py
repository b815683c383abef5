"""Labels have one written form, wherever they come from and wherever they are compared."""

import re
import warnings

import numpy as np
import pandas as pd
import pytest

from sims_kit.text import class_labels, label_text

NAIVE, NAIVE_NFD = "na\u00efve T", "nai\u0308ve T"
MISSING = [None, np.nan, pd.NA, pd.NaT, "nan", "NaN", "NA", "<NA>", "N/A", "#N/A", "n/a", "None", "NULL", "", " \t"]


@pytest.mark.parametrize(
    ("labels", "texts"),
    [
        (MISSING, [None] * len(MISSING)),
        (pd.Categorical(["a ", "NA", None, "a"]), ["a", None, None, "a"]),
        (pd.Categorical([3.0, 1.0, None]), ["3", "1", None]),
        ([3.0, 2.5, np.nan, np.inf], ["3", "2.5", None, "inf"]),
        (["3.0", "3"], ["3.0", "3"]),  # text is not made numbers of: "1.0" may be a part of cluster "1"
        (np.array([0.1, 2], np.float32), ["0.1", "2"]),
        (np.array([1, 20]), ["1", "20"]),
        ([True, None, False], ["True", None, "False"]),
        (np.array(["a ", "b"]), ["a", "b"]),
        (np.array([b"a", b"b "]), ["a", "b"]),
        ([["a", 1], "b", None], ["['a', 1]", "b", None]),  # cannot be hashed
        (pd.Series(["a", None, " nan"], dtype="string"), ["a", None, None]),
        (pd.Series([1, None], ["c1", "c2"], "Int64", "cluster"), ["1", None]),
        (pd.Series([True, None], dtype="boolean"), ["True", None]),
        ([NAIVE_NFD, f" {NAIVE}"], [NAIVE, NAIVE]),
        (["T  cell", "T\u00a0cell", "T cell\n"], ["T cell"] * 3),
        ([], []),
    ],
)
def test_written_form(labels, texts):
    """Every type of labels becomes text or None, in an object column with the names of cells that it had."""
    found, given = label_text(labels), pd.Series(labels)
    assert found.tolist() == label_text(found).tolist() == texts and found.dtype == object
    assert found.index.equals(given.index) and found.name == given.name


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (["T", "T ", "B"], r"differ only in blanks.*\['T', 'T '\]"),
        (pd.Categorical(["T cell", "T  cell"]), r"\['T  cell', 'T cell'\]|\['T cell', 'T  cell'\]"),
        ([NAIVE, NAIVE_NFD], r"\['na\\xefve T', 'nai\\u0308ve T'\]"),
        (np.linspace(0, 1, 30), "30 different numbers in 30 cells.*measurement"),
        (np.linspace(0, 1, 300).astype(str), "300 different numbers"),
        (pd.Categorical(np.arange(300) // 3 * 10), "100 different numbers in 300 cells"),
        (["T", "B", "t"], None),
        (np.arange(400) % 40, None),
        ([0.1, 0.5, 1.0] * 10, None),
        ([f"barcode{i}" for i in range(300)], None),
        (pd.Categorical(["T"], categories=["T", "T "]), None),  # no cell has the twin
    ],
)
def test_odd_labels_are_said(labels, says):
    """Twins and measurements warn, once; labels as usual do not."""
    with warnings.catch_warnings(record=True, action="always") as caught:
        assert class_labels(labels, "type").equals(label_text(labels))
    said = [str(warning.message) for warning in caught]
    assert (said == []) if says is None else len(said) == 1 and re.search(f"'type'.*{says}", said[0])

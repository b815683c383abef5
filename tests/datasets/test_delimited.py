"""Delimited text: blocks of any size, packed or not, give what pandas reads from the whole."""

import gzip
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sims_kit.datasets import delimited
from sims_kit.datasets.delimited import open_text, read_blocks, read_delimited, sniff, sniff_matrix
from sims_kit.errors import DataError

NUMBERS = ["0", "1", "9", "10", "0.0", "0.00", "00", "-0", "-3", "+4", "2.5", ".5", "5.", "1e5", "1E-3", "-1.25e+2",
           "123456789", "0.123456789", " 7", "8 ", "0e0", "3.4e38"]  # fmt: skip


def same_as_pandas(path: Path, **options):
    """Names and values agree with pandas', read as one table."""
    expected = pd.read_csv(path, index_col=0, dtype={0: str}, **options)
    found = read_delimited(path)
    assert list(found.obs_names) == list(expected.index) and list(found.var_names) == list(expected.columns)
    np.testing.assert_array_equal(found.X.toarray(), expected.to_numpy(np.float32))
    assert found.X.dtype == np.float32 and (found.X.data != 0).all()


@pytest.fixture
def table():
    """Thirty rows x eleven columns of all kinds of numbers, mostly 0, as text."""
    rng = np.random.default_rng(0)
    values = rng.choice(["0"] * 60 + NUMBERS, size=(30, 11))
    return pd.DataFrame(values, [f"row_{i}" for i in range(30)], [f"column_{i}" for i in range(11)])


@pytest.mark.parametrize("block", [1, 100, 300, 2**26])
@pytest.mark.parametrize("chunk", [1, 40, 100_000])
def test_blocks_of_any_size(tmp_path, table, monkeypatch, block, chunk):
    """Every way to write a number, in blocks and chunks of any size, reads as pandas reads it."""
    monkeypatch.setattr(delimited, "BLOCK_BYTES", block)
    monkeypatch.setattr(delimited, "VALUES_PER_CHUNK", chunk)
    table.to_csv(tmp_path / "table.csv")
    same_as_pandas(tmp_path / "table.csv")


@pytest.mark.parametrize("end", ["\r\n", "\n\n", "\n"])
@pytest.mark.parametrize("delimiter", ["\t", ",", ";"])
def test_ways_to_write_lines(tmp_path, table, monkeypatch, end, delimiter):
    """Line ends of Windows, empty lines, a byte-order mark, and a last line without an end change nothing."""
    monkeypatch.setattr(delimited, "BLOCK_BYTES", 200)
    text = table.to_csv(sep=delimiter, lineterminator=end)
    (tmp_path / "table.txt").write_bytes(b"\xef\xbb\xbf" + text.removesuffix(end).encode())
    same_as_pandas(tmp_path / "table.txt", sep=delimiter)


def test_quotes(tmp_path, monkeypatch):
    """Quotes around names, with delimiters and quotes in them, and around numbers are taken off."""
    monkeypatch.setattr(delimited, "BLOCK_BYTES", 10)
    (tmp_path / "a.csv").write_text('"","g,1","g ""2"""\n"T cell, CD4","1","0"\n"the ""big"" one",0,"2.5"\n')
    same_as_pandas(tmp_path / "a.csv")
    assert list(read_delimited(tmp_path / "a.csv").obs_names) == ["T cell, CD4", 'the "big" one']


def test_zip_member_and_gzip(tmp_path, table):
    """A member of a zip file, packed within it or not, reads as the plain file; so do its first lines."""
    text = table.to_csv().encode()
    with zipfile.ZipFile(tmp_path / "data.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("in/table.csv", b"\xef\xbb\xbf" + text)
        archive.writestr("in/table.csv.gz", gzip.compress(text))
    (tmp_path / "table.csv").write_bytes(text)
    expected = read_delimited(tmp_path / "table.csv")
    for name in ("in/table.csv", "in/table.csv.gz"):
        member = zipfile.Path(tmp_path / "data.zip", name)
        found = read_delimited(member)
        np.testing.assert_array_equal(found.X.toarray(), expected.X.toarray())
        assert list(found.obs_names) == list(table.index) and sniff(member).first == ["", *table.columns]
        with open_text(member) as lines:
            assert next(lines).startswith(",column_0")


def test_blocks_know_where_they_end(tmp_path, table, monkeypatch):
    """Reading from the end of a block gives the blocks that follow it, packed or not."""
    monkeypatch.setattr(delimited, "BLOCK_BYTES", 300)
    table.to_csv(tmp_path / "table.csv")
    table.to_csv(tmp_path / "table.csv.gz")
    for path in (tmp_path / "table.csv", tmp_path / "table.csv.gz"):
        layout = sniff_matrix(path)
        blocks = list(read_blocks(path, layout))
        assert len(blocks) > 3 and blocks[-1].read == path.stat().st_size
        rest = list(read_blocks(path, layout, blocks[1].end, 2))
        assert [block.names for block in rest] == [block.names for block in blocks[2:]]
        assert all((a.values != b.values).nnz == 0 for a, b in zip(rest, blocks[2:], strict=True))


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("x,1,TRUE", "'TRUE' is not a number in row 'x', column 'b'"),
        ("x,inf,1", "'inf' is not a number in row 'x', column 'a'"),
        ("x,nan,1", "'nan' is not a number in row 'x', column 'a'"),
        ("x,-,1", "'-' is not a number in row 'x', column 'a'"),
        ("x,1.2.3,1", "'1.2.3' is not a number"),
        ("x,1, ", "the value is missing in row 'x', column 'b'"),
        ("x,0,1\x012", "not a number in row 'x', column 'b'"),
        ("x,1e999,1", "too large"),
        ("x", "the value is missing in row 'x', column 'a'"),
        ("x,1,2,3,4\ny", "Expected 3 fields in line 12, saw 5"),
    ],
)
def test_wrong_values_in_a_later_block(tmp_path, monkeypatch, line, found):
    """The first wrong value is named wherever it stands, also where pandas would take it for a number."""
    monkeypatch.setattr(delimited, "BLOCK_BYTES", 12)
    (tmp_path / "a.csv").write_text("name,a,b\n" + "r,0,12\n" * 10 + line + "\n" + "z,?,?\n" * 3)
    with pytest.raises(DataError) as caught:
        read_delimited(tmp_path / "a.csv")
    assert found in str(caught.value) and "a.csv" in str(caught.value)


def test_rows_of_wrong_length_that_make_up_for_each_other(tmp_path):
    """A row one field short and one that is a field longer are an error, though the sum is right."""
    (tmp_path / "a.csv").write_text("name,a,b\nq,1,2\nr,1\ns,1,2,3\n")
    with pytest.raises(DataError, match="missing in row 'r', column 'b'"):
        read_delimited(tmp_path / "a.csv")

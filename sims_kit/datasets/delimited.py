"""Delimited text: the delimiter, the header, and a matrix read in blocks that never stands dense as a whole.

Most values of single-cell text are the letter 0. They are found and left out with numpy, digits that stand alone are
read there too, and pandas parses what is left as one long column: several times as fast as any reader of tables, whose
time goes into the 20,000 columns (`benchmarks/conversion.py`).
"""

import csv
import gzip
import io
import re
import reprlib
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from sims_kit.errors import DataError

LONGEST_LINE = 2**28  # bytes: ten million values; without an end of line, a small packed file would fill the memory
BLOCK_BYTES = 2**25  # of text at once: 32 MB are 16 million values at most, under 1 GB while they are made sparse
VALUES_PER_CHUNK = 100_000  # of a block at once: their text and positions stay in the processor's cache
CHUNKS_PER_PARSE = 16  # for pandas, which needs 40 bytes per value and half a millisecond to start
QUOTED = re.compile(rb'"((?:[^"]|"")*)"')
NUMBER = re.compile(r" *[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)? *", re.ASCII)  # one way to match: else time is squared
LETTERS_OF_NUMBERS = b"0123456789+-.eE "  # pandas takes TRUE, inf and a few others for numbers, too
csv.field_size_limit(
    2**31 - 1
)  # 20,000 genes cut by the wrong delimiter are one field, longer than the default of 128 kB


class Layout(NamedTuple):
    """How a delimited file is written."""

    delimiter: str
    first: list[str]  # fields of the first line
    second: list[str]  # fields of the second line; empty when there is none

    @property
    def r_style(self) -> bool:
        """Whether the header leaves out the column of names, as R's `write.table` does."""
        return len(self.second) == len(self.first) + 1

    @property
    def columns(self) -> list[str]:
        """Names of the columns of a matrix, without the column of names."""
        return self.first if self.r_style else self.first[1:]


class Block(NamedTuple):
    """Some complete rows of a matrix."""

    names: list[str]  # of the rows
    values: sp.csr_matrix  # rows x columns, float32, no zeros
    end: int  # where the next block starts in the (unpacked) text
    read: int  # bytes of the file up to there, packed if it is


def sniff(path: Path | zipfile.Path, delimiters: str = "\t,; ") -> Layout:
    """Delimiter and first two lines of a text file, packed with gzip or not, or a member of a zip file.

    Parameters
    ----------
    delimiters
        The candidates. The one that cuts the first two lines alike (or leaves the first one field short, as R
        does) and into the most fields wins, the earlier in a tie.

    Raises
    ------
    DataError
        The file holds no line.
    """
    with open_text(path) as text:
        lines = list(islice((line for line in _lines(text, path) if line.strip()), 2))
    if not lines:
        raise DataError(f"{path} is empty: it holds no line of text. Export or download it again.")
    cut = {delimiter: [next(csv.reader([line], delimiter=delimiter)) for line in lines] for delimiter in delimiters}

    def merit(delimiter: str) -> tuple[bool, int]:
        first, last = len(cut[delimiter][0]), len(cut[delimiter][-1])
        return last > 1 and last - first in (0, 1), last

    delimiter = max(delimiters, key=merit)
    first, second = ([*cut[delimiter], []])[:2]
    return Layout(delimiter, first, second)


def _lines(text: io.TextIOBase, path: Path | zipfile.Path) -> Iterator[str]:
    """Lines, none of them endless."""
    while line := text.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE:
            raise _no_lines(path)
        yield line


def _no_lines(path: Path | zipfile.Path) -> DataError:
    return DataError(f"{path} has a line of {LONGEST_LINE:,} letters or more, so it is no table. Download it again.")


def sniff_matrix(path: Path | zipfile.Path) -> Layout:
    """The layout of a matrix with names in its first line and first column; `DataError` if it cannot be one."""
    layout = sniff(path)
    n_columns = len(layout.columns)
    if not n_columns:
        raise DataError(
            f"{path} has one column only, so it holds no matrix. Expected names in the first column and numbers in "
            "the others, separated by tab, comma, semicolon or space."
        )
    if not layout.second:
        raise DataError(f"{path} holds a header and no rows. Export or download it again.")
    if len(layout.second) != n_columns + 1:
        raise DataError(
            f"{path}: the header has {len(layout.first):,} fields and the first row {len(layout.second):,}. "
            "Expected as many, or one fewer in the header (R's habit). Give every column a name."
        )
    return layout


def open_text(path: Path | zipfile.Path):
    """Open a text file, packed with gzip or not, or a member of a zip file, and drop a byte-order mark."""
    if path.suffix == ".gz" and isinstance(path, Path):
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    file = path.open("rb")
    return io.TextIOWrapper(gzip.open(file) if path.suffix == ".gz" else file, encoding="utf-8-sig", newline="")


def read_delimited(path: Path | zipfile.Path) -> AnnData:
    """A numeric matrix with names in its first line and first column.

    Read in blocks of rows, each made sparse at once, so memory grows with the nonzero values only. A header
    one field shorter than the rows (R's habit) is understood. Duplicate names are kept as they are.

    Raises
    ------
    DataError
        No numeric column; rows of different lengths; a value that is missing or no number (the message
        names its row, its column and the value).
    """
    layout = sniff_matrix(path)
    blocks = list(read_blocks(path, layout))
    rows = [name for block in blocks for name in block.names]
    values = sp.vstack([block.values for block in blocks], format="csr")
    return AnnData(values, obs=pd.DataFrame(index=rows), var=pd.DataFrame(index=layout.columns))


def read_blocks(path: Path | zipfile.Path, layout: Layout, start: int = 0, rows_before: int = 0) -> Iterator[Block]:
    """Successive rows of a matrix, about `BLOCK_BYTES` of text each; the next is read while one is parsed.

    Parameters
    ----------
    start, rows_before
        Where an earlier block ended (`Block.end`), and how many rows there were up to it; 0 for the top.

    Raises
    ------
    DataError
        As for `read_delimited`.
    """
    delimiter, n_columns = layout.delimiter.encode(), len(layout.columns)
    for text, end, read in _ahead(_texts(path, start)):
        names, rows = _cut(text, delimiter)
        if rows:
            try:
                values = _sparse(rows, delimiter, n_columns)
            except ValueError as error:  # which does not say where
                raise _wrong_value(path, layout, names, rows, rows_before) from error
            rows_before += len(rows)
            yield Block(names, values, end, read)


def _texts(path: Path | zipfile.Path, start: int) -> Iterator[tuple[bytes, int, int]]:
    """Some complete lines below the header, where they end in the text, and in the file."""
    with path.open("rb") as raw, _unpacked(raw, path) as file:
        if start:
            file.seek(start)
        else:
            while not file.readline().strip(b"\xef\xbb\xbf \t\r\n"):  # empty lines above the header
                pass
        while text := file.read(BLOCK_BYTES):
            rest = file.readline(LONGEST_LINE)
            if len(rest) == LONGEST_LINE:
                raise _no_lines(path)
            text += rest
            yield text, file.tell(), raw.tell()


@contextmanager
def _unpacked(raw: io.BufferedIOBase, path: Path | zipfile.Path):
    if path.suffix == ".gz":
        with gzip.open(raw) as file:
            yield file
    else:
        yield raw


def _ahead(items: Iterator) -> Iterator:
    """The same items, each made in a thread while the one before is used."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item


def _cut(text: bytes, delimiter: bytes) -> tuple[list[str], list[bytes]]:
    """The name of each row and the text of its values, without quotes."""
    names, rows = [], []
    for line in text.split(b"\n"):
        line = line.removesuffix(b"\r")
        if not line.strip():
            continue
        if quoted := QUOTED.match(line):
            name, values = quoted[1].replace(b'""', b'"'), line[quoted.end() + 1 :]
        else:
            name, _, values = line.partition(delimiter)
        names.append(name.decode())
        rows.append(values.replace(b'"', b""))
    return names, rows


def _sparse(rows: list[bytes], delimiter: bytes, n_columns: int) -> sp.csr_matrix:
    """The values of rows, whose text is parsed where it is not "0"; a bare `ValueError` when something is wrong."""
    step = max(1, VALUES_PER_CHUNK // n_columns)
    chunks = [_nonzero(rows[i : i + step], delimiter, n_columns) for i in range(0, len(rows), step)]
    counts, columns, digits, longer = (list(part) for part in zip(*chunks, strict=True))
    digits = np.concatenate(digits)
    data = digits.astype(np.float32)
    texts = (b"".join(longer[i : i + CHUNKS_PER_PARSE]) for i in range(0, len(longer), CHUNKS_PER_PARSE))
    data[digits > 9] = np.concatenate([_numbers(text, delimiter) for text in texts])
    indptr = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int32)
    matrix = sp.csr_matrix((data, np.concatenate(columns), indptr), shape=(len(rows), n_columns))
    matrix.eliminate_zeros()  # 0.00, -0, 0e0
    return matrix


def _nonzero(rows: list[bytes], delimiter: bytes, n_columns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, bytes]:
    """Of the fields that are not zero: their number per row, their columns, the digit if they are one, else the text.

    A field of several letters has 255 for its digit, and its text is in the last of the four.
    """
    letters = np.frombuffer(delimiter.join([*rows, b""]), np.uint8)
    ends = np.flatnonzero(letters == delimiter[0])
    row_ends = np.cumsum([len(row) + 1 for row in rows]) - 1
    if not np.array_equal(ends[n_columns - 1 :: n_columns], row_ends):
        raise ValueError("rows of different lengths")
    lengths = np.diff(ends, prepend=-1)  # with the delimiter
    if lengths.min() == 1:
        raise ValueError("an empty field")
    digits = np.where(lengths == 2, letters[ends - 1] - np.uint8(ord("0")), np.uint8(255))
    three = np.flatnonzero(lengths == 4)
    digits[three[(letters[ends[three, None] - [3, 2, 1]] == np.frombuffer(b"0.0", np.uint8)).all(axis=1)]] = 0
    nonzero = np.flatnonzero(digits)
    is_longer = digits > 9
    longer = letters[np.repeat(is_longer, lengths)].tobytes()
    starts = np.arange(len(rows) + 1) * n_columns
    counts = np.diff(np.searchsorted(nonzero, starts))
    columns = (nonzero - np.repeat(starts[:-1], counts)).astype(np.int32)
    return counts, columns, np.where(is_longer, np.uint8(255), digits)[nonzero], longer


def _numbers(text: bytes, delimiter: bytes) -> np.ndarray:
    """The numbers of a text, each followed by the delimiter, as float32."""
    if not text:
        return np.zeros(0, np.float32)
    if text.translate(None, LETTERS_OF_NUMBERS + delimiter):
        raise ValueError("a letter that is in no number")
    options = dict(header=None, na_filter=False, skip_blank_lines=False, quoting=csv.QUOTE_NONE, low_memory=False)
    column = io.BytesIO(text[:-1].replace(delimiter, b"\n"))
    return pd.read_csv(column, sep=",", dtype=np.float32, **options).to_numpy().ravel()


def _wrong_value(
    path: Path | zipfile.Path, layout: Layout, names: list[str], rows: list[bytes], rows_before: int
) -> DataError:
    """The error for the first row that is of another length, or has a value that is missing or no number."""
    delimiter, columns = layout.delimiter.encode(), layout.columns
    i = next((i for i, row in enumerate(rows) if not _is_right(row, delimiter, len(columns))), 0)
    name, row = names[i], rows[i]
    values = row.decode(errors="replace").split(layout.delimiter)
    if len(values) > len(columns):
        return DataError(
            f"{path}: the row {name!r} is longer than the header. Expected {len(columns) + 1:,} fields in line "
            f"{rows_before + i + 2:,}, saw {len(values) + 1:,}. Export or download the file again."
        )
    values += [""] * (len(columns) - len(values))  # a row that ends early
    column = next((k for k, value in enumerate(values) if not NUMBER.fullmatch(value)), None)
    if column is None:  # as 1e999
        return DataError(f"{path}: the row {name!r} holds numbers that are too large. Export the file again.")
    value = values[column]
    found = f"the value {reprlib.repr(value)} is not a number" if value.strip() else "the value is missing"
    return DataError(
        f"{path}: {found} in row {name!r}, column {columns[column]!r}. Expected numbers "
        "everywhere but in the first line and the first column. Put labels into a label file of their own."
    )


def _is_right(row: bytes, delimiter: bytes, n_columns: int) -> bool:
    try:
        _sparse([row], delimiter, n_columns)
    except ValueError:
        return False
    return True

"""Delimited text: the delimiter, the header, and a matrix read in chunks that never stands dense as a whole."""

import csv
import gzip
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from sims_kit.errors import DataError

VALUES_PER_CHUNK = 10_000_000  # 40 MB as float32, a few times that while pandas parses
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


def sniff(path: Path, delimiters: str = "\t,; ") -> Layout:
    """Delimiter and first two lines of a text file, packed with gzip or not.

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
        lines = list(islice((line for line in text if line.strip()), 2))
    if not lines:
        raise DataError(f"{path} is empty: it holds no line of text. Export or download it again.")
    cut = {delimiter: [next(csv.reader([line], delimiter=delimiter)) for line in lines] for delimiter in delimiters}

    def merit(delimiter: str) -> tuple[bool, int]:
        first, last = len(cut[delimiter][0]), len(cut[delimiter][-1])
        return last > 1 and last - first in (0, 1), last

    delimiter = max(delimiters, key=merit)
    first, second = ([*cut[delimiter], []])[:2]
    return Layout(delimiter, first, second)


def open_text(path: Path):
    """Open a text file, packed with gzip or not, and drop a byte-order mark."""
    opened = gzip.open if path.suffix == ".gz" else open
    return opened(path, "rt", encoding="utf-8-sig", newline="")


def read_delimited(path: Path) -> AnnData:
    """A numeric matrix with names in its first line and first column.

    Read in chunks of rows, each made sparse at once, so memory grows with the nonzero values only. A header
    one field shorter than the rows (R's habit) is understood. Duplicate names are kept as they are.

    Raises
    ------
    DataError
        No numeric column; rows of different lengths; a value that is missing or no number (the message
        names its row, its column and the value).
    """
    layout = sniff(path)
    columns = layout.first if layout.r_style else layout.first[1:]
    if not columns:
        raise DataError(
            f"{path} has one column only, so it holds no matrix. Expected names in the first column and numbers in "
            "the others, separated by tab, comma, semicolon or space."
        )
    if layout.second and len(layout.second) != len(columns) + 1:
        raise DataError(
            f"{path}: the header has {len(layout.first):,} fields and the first row {len(layout.second):,}. "
            "Expected as many, or one fewer in the header (R's habit). Give every column a name."
        )
    rows, blocks = [], []
    try:
        for chunk in _chunks(path, layout.delimiter, len(columns), defaultdict(lambda: np.float32, {0: str})):
            rows.extend(chunk[0])
            blocks.append(sp.csr_matrix(chunk.iloc[:, 1:].to_numpy(np.float32)))
    except pd.errors.ParserError:
        raise
    except ValueError as error:  # pandas does not say where
        raise _not_a_number(path, layout.delimiter, columns) from error
    if not rows:
        raise DataError(f"{path} holds a header and no rows. Export or download it again.")
    return AnnData(sp.vstack(blocks, format="csr"), obs=pd.DataFrame(index=rows), var=pd.DataFrame(index=columns))


def _chunks(path: Path, delimiter: str, n_columns: int, dtype: object) -> Iterator[pd.DataFrame]:
    """Successive rows of the file; column 0 holds the names. A row that is too long is pandas' ParserError."""
    options = dict(
        header=0,
        names=range(n_columns + 1),  # in place of the header's, which may be one short or have duplicates
        na_filter=False,  # a name such as "NA" stays a name, a missing value is refused
        chunksize=max(1, VALUES_PER_CHUNK // n_columns),
        low_memory=False,  # pandas would cut the chunks up once more, which is slow in wide files
    )
    with open_text(path) as text, pd.read_csv(text, sep=delimiter, dtype=dtype, **options) as chunks:
        yield from chunks


def _not_a_number(path: Path, delimiter: str, columns: list[str]) -> DataError:
    """The error for the first value that is missing or no number."""
    for chunk in _chunks(path, delimiter, len(columns), str):
        values = chunk.iloc[:, 1:].fillna("")  # a row that ends early
        wrong = values.apply(pd.to_numeric, errors="coerce").isna().to_numpy()
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            value = values.iat[row, column]
            found = f"the value {value!r} is not a number" if value.strip() else "the value is missing"
            return DataError(
                f"{path}: {found} in row {chunk.iat[row, 0]!r}, column {columns[column]!r}. Expected numbers "
                "everywhere but in the first line and the first column. Put labels into a label file of their own."
            )
    return DataError(f"{path} holds values that are not numbers. Expected numbers but in the first line and column.")

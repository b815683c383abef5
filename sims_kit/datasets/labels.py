"""Attach label files to cells, and check the orientation of a matrix."""

import csv
import gzip
import io
import re
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path

import pandas as pd
from anndata import AnnData

from sims_kit.errors import DataError, LabelError, UnknownNameError
from sims_kit.text import best_match, examples, label_text, warn

LARGEST, UNFOLDED, MOST_ROWS = 2**26, 100, 2**22  # bytes of a label file, or times its packed size, and its lines
AS_TEXT = {"header": None, "dtype": object, "keep_default_na": False, "skipinitialspace": True}
IN_ORDER = "attach_labels(..., in_order=True) where rows and cells have the same order."
TURN = 'read the matrix with orientation="genes_by_cells", or turn it: adata = adata.T.copy()'
GENES = (  # ids; and symbols that are in nearly every mammalian gene list, chosen or whole
    r"(?:ENS[A-Z]{0,6}G\d{6,}|FBgn\d{7}|WBGene\d{8})(?:\.\d+)?$",
    r"(?i:MT-(ND|CO|CYB|ATP)\w*|RP[LS]\d+[AXYL]?|ACTB|GAPDH|MALAT1|B2M|EEF1A1|TMSB4X|TMSB10|FTH1|FTL1?|UBC|PPIA|VIM|CD74|CD3E"
    r"|MS4A1|LYZ|S100A\d+|HSP90AB1|XIST|TUBA1A|SNAP25|GAD1|SLC17A7|AQP4|MBP|PDGFRA|XKR4|SOX\d+|HES4|ISG15)$",
)


def attach_labels(
    adata: AnnData, labelfile: str | Path, class_label: str, *, text: Collection[str] = (), in_order: bool = False
) -> None:
    """Add the columns of a label file to `adata.obs`, in place, the labels in `class_label` as text.

    The file is text with tab, comma or semicolon, also ``.gz`` or a `zipfile.Path`. Rows find their cells by name, in
    any column. Names that differ in blanks, ``.`` for ``-``, a suffix (``-1``) or a prefix (``sample1_``) are matched
    without it, with a warning. Labels alone, or beside the numbers of their rows, are taken in order; with `in_order`
    all rows are. `text` lists other columns whose numbers are names, such as clusters or donors.

    >>> attach_labels(cells, "annotation.csv", "cell_type")
    """
    labelfile = labelfile if isinstance(labelfile, zipfile.Path) else Path(labelfile).expanduser()
    table = _read(labelfile, class_label, adata.obs_names)
    names = table.drop(columns=class_label)
    numbers = [(names.index + start).astype(str) for start in (0, 1)]  # of rows; there may be no column of names at all
    if not in_order and (match := _matched(names, adata.obs_names)):
        table = _by_name(table, adata.obs_names, labelfile, match)
    elif len(table) != adata.n_obs or not (in_order or any(names.eq(n, axis=0).all(axis=None) for n in numbers)):
        is_turned = len(table) == adata.n_vars != adata.n_obs or _matched(names, adata.var_names)
        way_out = f"The labels fit the genes: {TURN}" if is_turned else f"Expected these names, or {IN_ORDER}"
        found = f"{labelfile} has {len(table):,} rows, the matrix {adata.n_obs:,} cells and {adata.n_vars:,} genes"
        named = f"({examples(table.iloc[:, 0])}) holds the names of the cells ({examples(adata.obs_names)})"
        raise LabelError(f"{found}, and no column {named}. {way_out}")
    elif len(names.columns) and not in_order:
        warn(f"{labelfile} numbers its rows and names no cells; they are taken in order.")
    is_float = table[class_label].dropna().str.fullmatch(r"-?\d{1,15}\.0").all()
    table[class_label] = label_text(_numbers(table[class_label]) if is_float else table[class_label])
    if class_label in adata.obs:
        warn(f"obs[{class_label!r}] is replaced by the labels of {labelfile}.")
    if taken := [column for column in names if column in adata.obs]:
        warn(f"obs has the columns {taken} already; those of {labelfile} are left out.")
    for column in table.columns.difference([*taken, ""], sort=False):
        numbers = None if column in {class_label, *text} else _numbers(table[column])
        adata.obs[column] = (table[column] if numbers is None else numbers).to_numpy()


def check_orientation(adata: AnnData, class_label: str | None = None, name: str = "The matrix") -> None:
    """Raise `DataError` when cells are named like genes and genes are not, or `var` has the labels instead of `obs`."""
    if _are_genes(adata.obs_names) and not _are_genes(adata.var_names):
        rows, columns = "are named like genes", "are not"
    elif class_label in adata.var and class_label not in adata.obs:
        rows, columns = f"have no {class_label!r}", "have one, in var"
    else:
        return
    found = f"its {adata.n_obs:,} rows ({examples(adata.obs_names)}) {rows}"
    found += f", its columns ({adata.n_vars:,}: {examples(adata.var_names)}) {columns}"
    raise DataError(f"{name} seems to be turned: {found}. Expected cells in rows, genes in columns: {TURN}")


def _read(labelfile: Path | zipfile.Path, class_label: str, cells: pd.Index) -> pd.DataFrame:
    """The label file as text, NaN where it is missing; names without a header have the column ""."""
    if not labelfile.is_file():
        raise FileNotFoundError(f"There is no label file {labelfile}. Check the path, or use labels in obs.")
    try:
        data = _unpacked(labelfile)
        lines = [line for line in data[: 2**20].decode(errors="replace").splitlines() if line.strip()][:2]
        if not lines:
            raise ValueError("it is empty, or begins with a megabyte of blanks")
        most = max(MOST_ROWS, 10 * len(cells))
        if b"\0" in data or max(map(data.count, (b"\n", b"\r"))) > most:
            raise ValueError(f"it has a zero byte, or more than {most:,} lines")
        delimiters = "\t,; " if data.startswith(b'"') else "\t,;"  # blanks as in R's write.table, which quotes text
        cuts = [(d, *csv.reader([*lines, lines[-1]], delimiter=d, skipinitialspace=True)) for d in delimiters]
        fits = [(len(cut[-1]) - len(cut[1]) in (0, 1), len(cut[-1])) for cut in cuts]
        delimiter, first, *_, second = cuts[fits.index(max(fits))]
        columns = [""] * (len(second) > len(first)) + list(map(str.strip, first))  # R leaves out the name of the names
        n = len(columns)
        table = pd.read_csv(io.BytesIO(data), sep=delimiter, names=range(n), skip_blank_lines=n > 1, **AS_TEXT)
    except (OSError, EOFError, ValueError, zlib.error, csv.Error) as error:
        raise DataError(f"{labelfile} is no readable table: {str(error).strip()}. Export it as UTF-8 text.") from error
    is_row = first[0] in cells or first[-1] in set(table.iloc[1:, -1]) or (n == 1 and len(table) == len(cells))
    has_header = n > min(2, len(first)) or class_label in first or not is_row
    columns = [class_label] if n == 1 else columns if has_header else ["", class_label]
    table = table.iloc[int(has_header) :].reset_index(drop=True).set_axis(columns, axis=1)
    if class_label not in columns:
        raise UnknownNameError(f"column of {labelfile} called", class_label, filter(None, columns))
    return table.loc[:, ~table.columns.duplicated()].apply(lambda column: column.where(label_text(column).notna()))


def _unpacked(labelfile: Path | zipfile.Path) -> bytes:
    """The bytes of a file below its comments."""
    is_member = isinstance(labelfile, zipfile.Path)
    size = labelfile.root.getinfo(labelfile.at).compress_size if is_member else labelfile.stat().st_size
    most = max(LARGEST, size * (UNFOLDED if is_member or labelfile.suffix.lower() == ".gz" else 1))
    with labelfile.open("rb") as packed, gzip.open(packed) if labelfile.suffix.lower() == ".gz" else packed as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it unpacks to more than {most:,} bytes")
    return re.sub(rb"\A(?>#[# !][^\r\n]*[\r\n]+)*+", b"", data.removeprefix(b"\xef\xbb\xbf").strip(b"\r\n"))


def _matched(table: pd.DataFrame, cells: pd.Index) -> tuple[str, str, pd.Index, pd.Index] | None:
    """The column with the names of the cells, what they differ in, and the names of rows and cells without it."""
    best, found = 0.1, None  # the least share of names that has to agree; 0.9 is enough
    for i, column in enumerate(table):
        names, numbers = pd.Index(table[column].fillna("")), _numbers(table[column])
        is_count = numbers is not None and (i or numbers.min() < len(table))  # unlike the large numbers of an archive
        is_count |= len(names) == len(cells) and _are_running(names) and _are_running(cells)  # cell1, cell2, ...
        if best > 0.9 or (is_count and set(names) != set(cells)):
            continue
        share, *match = best_match(names, cells)
        if share > best:
            best, found = share, (column, *match)
    return found


def _by_name(table: pd.DataFrame, cells: pd.Index, labelfile: object, match: tuple) -> pd.DataFrame:
    """The rows in the order of the cells, as `_matched` has found them."""
    column, way, rows, keys = match
    table = table.set_axis(rows)[rows.isin(keys)]
    table = table[~table.duplicated()]
    if repeated := {*table.index[table.index.duplicated()], *keys[keys.duplicated() & keys.isin(rows)]}:
        found = f"{labelfile} or the matrix repeats names of cells ({examples(sorted(repeated))})"
        raise LabelError(f"{found}. Expected one row per cell, or {IN_ORDER}")
    table = table.reindex(keys)
    names = table.pop(column).set_axis(cells)
    if way:
        cell, row = next((cell, row) for cell, row in names.dropna().items() if cell != row)
        warn(f"{labelfile}: names are matched without {way}: {row!r} is cell {cell!r}.")
    if missing := list(cells[names.isna()]):
        warn(f"{labelfile} has no row for {len(missing):,} of {len(cells):,} cells ({examples(missing)}): unlabelled.")
    return table


def _are_running(names: pd.Index) -> bool:
    numbers = _numbers(names.to_series().str.extract(r"^[^0-9]*([0-9]{1,15})$")[0])
    return bool(numbers is not None and numbers.is_unique and numbers.max() - numbers.min() == len(numbers) - 1)


def _numbers(column: pd.Series) -> pd.Series | None:
    try:
        return pd.to_numeric(column)
    except ValueError:  # text, or whole numbers of more digits than any type holds, which are names
        return None


def _are_genes(names: pd.Index) -> bool:
    return names.str.match(GENES[0]).mean() > 0.5 or names.str.match(GENES[1]).sum() > 2

"""Labels and other columns of the cells: attached from a file, used to choose cells, and the check of orientation."""

import re
import warnings
import zipfile
import zlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from sims_kit.datasets.delimited import open_text, sniff
from sims_kit.errors import DataError, LabelError, UnknownNameError

LabelFile = Path | zipfile.Path  # a file, or a member of an archive
SAME_NAMES = 0.1  # of the possible matches; barcodes of unrelated 10x samples agree for some 1 %
ENSEMBL_GENE = re.compile(r"(ENS[A-Z]{0,6}G\d{6,}|FBgn\d{7}|WBGene\d{8})(\.\d+)?$")
WELL_KNOWN_GENE = re.compile(  # in nearly every mammalian gene list, chosen or whole
    r"(MT-(ND|CO|CYB|ATP)\w*|RP[LS]\d+[AXYL]?|ACTB|GAPDH|MALAT1|B2M|EEF1A1|TMSB4X|TMSB10|FTH1|FTL1?|UBC|PPIA|VIM|CD74|CD3E|MS4A1"
    r"|LYZ|S100A\d+|HSP90AB1|XIST|TUBA1A|SNAP25|GAD1|SLC17A7|AQP4|MBP|PDGFRA|XKR4|SOX\d+|HES4|ISG15)$",
    re.IGNORECASE,
)
FEW_GENES = 3  # well-known genes among the names of the cells: more than chance


def attach_labels(adata: AnnData, labelfile: str | LabelFile, class_label: str, *, text: Collection[str] = ()) -> None:
    """Add the columns of a delimited label file to `adata.obs`, in place.

    Rows are matched by cell name, with the column that agrees best with `obs_names`; cells without a row
    are counted in a warning and stay unlabelled (NaN). Where no column agrees for more than a tenth, rows
    are taken in order if there are as many as cells.

    Parameters
    ----------
    adata
        Cells x genes.
    labelfile
        Text with tab, comma or semicolon, packed with gzip or not; also a member of a zip archive. With a
        header, all columns are attached; a column of `obs` that is there already stays, with a warning. Without
        a header: one column of labels, or names and labels; the labels are stored as `class_label`. A single
        column holds the labels whatever its header.
    class_label
        The column with the labels (text, also when they look like numbers). Replaces a column of `obs` of
        that name, with a warning.
    text
        Other columns that are names although they may look like numbers, such as clusters or donors.

    Raises
    ------
    FileNotFoundError, DataError
        The label file is not there, or cannot be read as delimited text.
    UnknownNameError
        The file has no such column; the nearest are offered.
    LabelError
        Neither names nor length agree with the cells, or one cell has two labels. Both lengths are given;
        if the labels fit the genes, the matrix is turned and the message says what to do.
    """
    labelfile = labelfile if isinstance(labelfile, zipfile.Path) else Path(labelfile).expanduser()
    table = _read_table(labelfile, class_label, adata.obs_names)
    if table.shape[1] == 1:  # labels, whatever their column is called
        table.columns = [class_label]
    if class_label not in table:
        raise UnknownNameError(f"column of {labelfile} called", class_label, [c for c in table if c != ""])
    table = _in_order_of_cells(table, adata, labelfile, class_label).apply(_typed, names={class_label, *text})
    taken = [column for column in table if column in adata.obs]
    if class_label in taken:
        warnings.warn(f"obs[{class_label!r}] is replaced by the labels of {labelfile}.", stacklevel=2)
    if others := [column for column in taken if column != class_label]:
        warnings.warn(f"obs has the columns {others} already; those of {labelfile} are left out.", stacklevel=2)
    for column in table.columns.difference(others, sort=False):
        adata.obs[column] = table[column].to_numpy()


def select_cells(
    adata: AnnData, keep: Mapping[str, Iterable] | None = None, drop: Mapping[str, Iterable] | None = None
) -> AnnData:
    """The cells whose columns have the values in `keep` and none of those in `drop`, as a copy.

    Parameters
    ----------
    keep, drop
        `obs` column -> values, such as ``{"cell_number": ["1"]}``. Values are compared as text without
        regard to case, so that 1, 1.0 and "1" are the same, and so are True and "TRUE".

    Raises
    ------
    UnknownNameError
        A column is not in `obs`.
    DataError
        No cell is left.
    """
    return adata[chosen_cells(adata.obs, keep, drop)].copy()


def chosen_cells(
    obs: pd.DataFrame, keep: Mapping[str, Iterable] | None = None, drop: Mapping[str, Iterable] | None = None
) -> np.ndarray:
    """Which rows of `obs` `select_cells` chooses, as bool; raises what it raises."""
    chosen = pd.Series(True, index=range(len(obs)))
    for columns, wanted in ((keep, True), (drop, False)):
        for column, values in (columns or {}).items():
            if column not in obs:
                raise UnknownNameError("obs column", column, obs.columns)
            values = [values] if isinstance(values, str | int | float) else values
            chosen &= obs[column].map(_text).isin({_text(v) for v in values}).to_numpy() == wanted
    if not chosen.any():
        raise DataError(f"No cell is left of {len(obs):,} with keep={keep} and drop={drop}. Check the values in obs.")
    return chosen.to_numpy()


def check_orientation(adata: AnnData, class_label: str | None = None, name: str = "The matrix") -> None:
    """Raise `DataError` when the names of the cells look like genes and those of the genes do not.

    Names look like genes when most are Ensembl ids, or when at least three are genes found in nearly every
    mammalian matrix (ACTB, MALAT1, ribosomal, mitochondrial, ...). The labels, too, lie in `obs` and not in `var`.

    Parameters
    ----------
    class_label
        The column with the labels, if one is expected.
    name
        What to call the matrix in the message.
    """
    if _looks_like_genes(adata.obs_names) and not _looks_like_genes(adata.var_names):
        found = "are named like genes", "are not"
    elif class_label in adata.var and class_label not in adata.obs:
        found = f"have no {class_label!r}", "have one, in var"
    else:
        return
    raise DataError(
        f"{name} seems to be turned: its {adata.n_obs:,} rows ({_some(adata.obs_names)}) {found[0]}, "
        f"its {adata.n_vars:,} columns ({_some(adata.var_names)}) {found[1]}. Expected cells in rows and genes in "
        'columns. Read it with orientation="genes_by_cells", or turn it yourself: adata = adata.T.copy()'
    )


def _read_table(labelfile: LabelFile, class_label: str, cell_names: pd.Index) -> pd.DataFrame:
    """The label file, its columns named by the header or, without one, "" (cell names) and `class_label`."""
    if labelfile.is_dir():
        raise DataError(f"{labelfile} is a folder. Expected a label file: delimited text, packed with gzip or not.")
    if not labelfile.is_file():
        raise FileNotFoundError(
            f"There is no label file {labelfile}. Check the path, or leave it out if obs has the labels."
        )
    try:
        layout = sniff(labelfile, delimiters="\t,;")
        columns = ["", *layout.first] if layout.r_style else layout.first
        with open_text(labelfile) as text:
            options = dict(header=None, skiprows=int(layout.r_style), names=range(len(columns)))
            table = pd.read_csv(text, sep=layout.delimiter, dtype=str, **options)
    except DataError:
        raise
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(
            f"{labelfile} cannot be read as delimited text ({error}). Write or download it again."
        ) from error
    if not layout.r_style:
        if _has_header(table, class_label, cell_names):
            table = table.iloc[1:].reset_index(drop=True)
        else:
            columns = ["", class_label][-len(columns) :]
    table.columns = columns
    return table.loc[:, ~table.columns.duplicated()]


def _has_header(table: pd.DataFrame, class_label: str, cell_names: pd.Index) -> bool:
    """Whether the first row holds names of columns: it does unless it reads like the rows below it."""
    first, last = table.iloc[0], table.iloc[:, -1]
    if class_label in set(first) or table.shape[1] > 2:
        return True
    is_cell = first[0] in cell_names
    is_label = last[0] in set(last[1:])
    is_needed = table.shape[1] == 1 and len(table) == len(cell_names)
    return not (is_cell or is_label or is_needed)


def _in_order_of_cells(table: pd.DataFrame, adata: AnnData, labelfile: LabelFile, class_label: str) -> pd.DataFrame:
    """The rows of the label file in the order of the cells, by name or else as they come."""
    column, share = _names_column(table.drop(columns=class_label), adata.obs_names)
    if share > SAME_NAMES:
        return _by_name(table, column, adata.obs_names, labelfile, class_label)
    turned = (
        len(table) == adata.n_vars != adata.n_obs
        or _names_column(table.drop(columns=class_label), adata.var_names)[1] > SAME_NAMES
    )
    if turned or len(table) != adata.n_obs:
        raise LabelError(
            f"{labelfile} has {len(table):,} rows, the matrix {adata.n_obs:,} cells and {adata.n_vars:,} genes, and "
            f"no column holds the names of the cells (such as {_some(adata.obs_names)}). "
            + (
                "The labels fit the genes, so the matrix is probably turned: read it with "
                'orientation="genes_by_cells", or turn it with adata.T.'
                if turned
                else "Expected a column of names, or one row per cell in the same order."
            )
        )
    if table.shape[1] > 1 and table.iloc[:, 0].is_unique and not _is_number(table.iloc[:, 0]):
        warnings.warn(
            f"{labelfile}: no column holds the names of the cells ({_some(adata.obs_names)}), so its rows "
            f"({_some(table.iloc[:, 0])}) are taken in order. Check that the order is the same.",
            stacklevel=3,
        )
    return table.drop(columns="", errors="ignore")


def _names_column(table: pd.DataFrame, names: pd.Index) -> tuple[str, float]:
    """The column that agrees best with `names`, the first in a tie, and its share of the possible matches."""
    possible = min(len(names), len(table)) or 1
    texts = [column for i, column in enumerate(table) if i == 0 or not _is_number(table[column])]
    shares = {column: names.isin(table[column].dropna()).sum() / possible for column in texts}
    return max(shares.items(), key=lambda item: (min(item[1], 1.0), -texts.index(item[0])), default=("", 0.0))


def _by_name(table: pd.DataFrame, column: str, cells: pd.Index, labelfile: LabelFile, class_label: str) -> pd.DataFrame:
    """The rows of the cells, found by name; cells without one get NaN and are counted in a warning."""
    table = table[table[column].isin(cells)]
    labels_per_cell = table.groupby(column)[class_label].nunique()
    if (labels_per_cell > 1).any():
        twice = labels_per_cell.index[labels_per_cell > 1]
        raise LabelError(
            f"{labelfile} gives {len(twice):,} cells more than one label ({_some(twice)}). "
            "Expected one row per cell: remove the others."
        )
    missing = cells[~cells.isin(table[column])]
    if len(missing):
        warnings.warn(
            f"{labelfile} has no row for {len(missing):,} of {len(cells):,} cells ({_some(missing)}); "
            "they stay unlabelled.",
            stacklevel=4,
        )
    table = table.drop_duplicates(column).set_index(column)
    return table.reindex(cells)


def _typed(column: pd.Series, names: Collection[str]) -> pd.Series:
    """Numbers as numbers, but labels and other names always as text."""
    if column.name in names or not _is_number(column):
        return column
    try:
        return pd.to_numeric(column)
    except ValueError:  # whole numbers of more digits than any type holds: they name something
        return column


def _is_number(column: pd.Series) -> bool:
    return bool(pd.to_numeric(column.dropna(), errors="coerce").notna().all())


def _text(value: object) -> str:
    """A value as text that is the same for 1, 1.0 and "1"."""
    text = str(value).strip().casefold()
    return text.removesuffix(".0")


def _looks_like_genes(names: pd.Index) -> bool:
    if names.str.match(ENSEMBL_GENE).mean() > 0.5:
        return True
    return int(names.str.match(WELL_KNOWN_GENE).sum()) >= FEW_GENES


def _some(names: Iterable) -> str:
    """The first three names, for a message."""
    names = [str(name) for name in names]
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")

"""Single-cell files: `read` into memory, `open_backed` with the matrix left on disk, `convert` text to `.h5ad`."""

import csv
import gzip
import hashlib
import io
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.io
import scipy.sparse as sp
import zarr
from anndata import AnnData
from anndata.experimental import read_dispatched
from anndata.io import read_elem, sparse_dataset, write_elem
from pooch import os_cache

from sims_kit.datasets.gate import open_store
from sims_kit.datasets.ontology import COLUMN
from sims_kit.datasets.r_files import read_r
from sims_kit.errors import DataError, SettingError, SimsError, UnknownNameError, nearest
from sims_kit.files import atomic_write
from sims_kit.text import warn

ORIENTATIONS = ("cells_by_genes", "genes_by_cells")
TEXT = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")
FORMATS = ".h5ad, zarr, 10x (.h5 or a folder with matrix.mtx), .loom, .csv, .tsv, .txt (also .gz), .rds, .rda, .RData"
LOOM_NAMES = {"col_attrs": ("CellID", "obs_names", "Barcode"), "row_attrs": ("Gene", "var_names", "Accession")}
NAMED = 100_000  # cells; of more, `open_backed` reads no names, and only the columns that are asked for
BLOCK_VALUES = 2**23  # of text or of a dense matrix, made sparse at once: 32 MB
LONGEST_LINE, MOST_FIELDS = 2**27, 2**23  # of a line of text: a small packed file could fill the memory
STORAGE = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
LAYOUT = "names in the first line and column, numbers with a point, and tab, comma, semicolon or blank between"
NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
NAMES = re.compile(  # headers of a first column whose numbers are names of cells, not values of a gene
    r"[\W_]*|x|v1|unnamed.*|(.*[\W_])?(id|no|nr|number)s?|.*(cell|barcode|index|name|sample|spot|row)s?", re.IGNORECASE
)
WAYS_OUT = {
    MemoryError: "If nothing is wrong with it, leave its matrix on disk (backed=True) or free memory.",
    ImportError: "Install what is missing, or leave that part out of the file.",
    Exception: "It is damaged, cut short, or not what its name says. Download or write it again.",
}
KNOWN_WARNINGS = "(?s).*(names are not unique|very old version of AnnData)"
Source = str | Path | zipfile.Path


def read(path: Source, *, orientation: str = "cells_by_genes", object_name: str | None = None) -> AnnData:
    """Read a file as AnnData, cells x genes; `X` is CSR, float32 unless the file holds CSR of another number type.

    Formats: ``.h5ad`` and zarr of any anndata; 10x (``.h5``, a folder, or one ``matrix.mtx``); ``.loom``; text
    (``.csv``, ``.tsv``, ``.txt``, also ``.gz`` or a `zipfile.Path`) with names in its first line and column; ``.rds``,
    ``.rda`` and ``.RData`` of R (see `read_r`), where `object_name` chooses one of several objects; HDF5 with ``X`` and
    ``Y`` (labels). Text and AnnData with genes in rows need ``orientation="genes_by_cells"``.

    >>> cells = read("~/data/GSE1_counts.csv.gz", orientation="genes_by_cells")
    """
    path = _checked(path, orientation)
    with _reading(path), warnings.catch_warnings():
        warnings.filterwarnings("ignore", KNOWN_WARNINGS)
        adata = _read(path, orientation, object_name)
        if 0 in adata.shape:
            raise DataError(f"{path} has {adata.n_obs:,} cells and {adata.n_vars:,} genes. Expected some of both.")
        adata.X = adata.X if adata.X is None else _csr(adata.X)
        adata.obs_names, adata.var_names = adata.obs_names.astype(str), adata.var_names.astype(str)
    return adata


def is_backable(path: str | Path) -> bool:
    """Whether this is an `.h5ad` or a zarr store, whose matrix can stay there."""
    path = Path(path).expanduser()
    is_store = any((path / marker).exists() for marker in (".zgroup", "zarr.json"))
    return is_store or (path.exists() and path.suffix.lower() in (".h5ad", ".zarr"))


def open_backed(path: str | Path, layer: str | None = None, columns: Iterable[str] | None = None) -> AnnData:
    """Open an `.h5ad` or zarr store, cells x genes, with tables in memory; `X` is a backed CSR or dense dataset.

    `layer` is None for `X`, the name of a layer, or ``"raw"`` for `raw` with its own genes. Of more than 100,000 cells,
    only the `columns` of `obs` are read where they are given, and ids of cell types, and no names.
    """
    path = _checked(path)
    if not is_backable(path):
        raise SettingError(f"{path} cannot stay on disk: only .h5ad and zarr can. Read it, or convert it first.")
    with _reading(path), warnings.catch_warnings():
        warnings.filterwarnings("ignore", KNOWN_WARNINGS)
        root = open_store(path)
        if not {"obs", "var"} <= set(root):
            raise DataError(f"{path} has {list(root)[:8]}: no known layout of AnnData. Expected obs and var.")
        layers, raw = list(root.get("layers", ())), next((key for key in ("raw/X", "raw.X") if key in root), None)
        is_raw = layer == "raw" and layer not in layers  # a layer of that name wins
        key = "X" if layer is None else raw if is_raw else f"layers/{layer}"
        if key is None or key not in root:
            raise UnknownNameError("layer", layer or "X", layers + ["raw"] * bool(raw))
        matrix = root[key] if hasattr(root[key], "dtype") else sparse_dataset(root[key])
        if getattr(matrix, "format", "csr") != "csr":
            way_out = "Read it into memory (backed=False); to write it by cells: adata.X = adata.X.tocsr()"
            raise DataError(f"{path} stores {key} by genes (CSC), so no cells can be read alone. {way_out}")
        if hasattr(matrix, "format"):
            indptr = root[key]["indptr"][:].astype(np.int64)
            n_values = {root[key][name].shape for name in ("indices", "data")}
            is_rising = len(indptr) == matrix.shape[0] + 1 and indptr[0] == 0 and (np.diff(indptr) >= 0).all()
            if not is_rising or n_values != {(indptr[-1],)}:
                raise ValueError(f"indptr of {key} does not rise from 0 to the number of values, row by row")
        if hasattr(root["obs"], "dtype"):  # before anndata 0.7
            whole = anndata.io.read_h5ad(path, backed="r")
            obs, var = whole.obs, whole.raw.var if is_raw else whole.var
        else:
            is_lean = columns is not None and matrix.shape[0] > NAMED and all(name in root["obs"] for name in columns)
            wanted = [*columns, *({COLUMN} & set(root["obs"]))] if is_lean else None
            obs = _frame(root["obs"], wanted, matrix.shape[0])
            var = _frame(root["raw/var" if is_raw else "var"])
        kept = [key for key in root.get("uns", ()) if key == "sims_kit" or key.endswith("_colors")]
        adata = AnnData(matrix, obs=obs, var=var, uns={key: read_elem(root["uns"][key]) for key in kept})
        adata.obs_names, adata.var_names = adata.obs_names.astype(str), adata.var_names.astype(str)
    return adata


def convert(
    source: Source | Sequence[Source], target: str | Path | None = None, *, orientation: str = "cells_by_genes"
) -> Path:
    """Turn text of any size, or any other file that `read` takes, into an `.h5ad` whose CSR matrix can stay on disk.

    Text with cells in rows is converted block by block; otherwise the sparse matrix has to fit into memory once.
    `source` may be a member of a zip archive (`zipfile.Path`), or several files with the same names, which are summed.
    Without a `target`, the file lies in the user's own cache, whatever `SIMS_KIT_DATA` is, and is made once.

    >>> cells = open_backed(convert("exprMatrix.tsv.gz", orientation="genes_by_cells"))
    """
    sources = [source] if isinstance(source, Source) else list(source)
    sources = [_checked(one, orientation) for one in sources]
    files = [Path(one.root.filename if isinstance(one, zipfile.Path) else one).resolve() for one in sources]
    if target is None:  # in the cache, by the names, sizes and times of all files and the orientation
        every = [one for file in files for one in (sorted(file.rglob("*")) if file.is_dir() else [file])]
        versions = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in every]
        stamp = hashlib.sha256(repr([*map(str, sources), versions, orientation]).encode()).hexdigest()[:16]
        target = Path(os_cache("sims_kit"), "converted") / f"{sources[0].name.partition('.')[0]}-{stamp}.h5ad"
        if target.exists():
            return target
    target, cells = Path(target).expanduser(), []
    if target.exists() and any(map(target.samefile, files)):
        raise SettingError(f"{target} is what the cells come from, which is never changed. Name another target.")
    if len(sources) > 1 or orientation != "cells_by_genes" or not sources[0].name.lower().endswith(TEXT):
        adata, *others = [read(one, orientation=orientation) for one in sources]
        if not all(one.obs_names.equals(adata.obs_names) and one.var_names.equals(adata.var_names) for one in others):
            raise DataError(f"{sources[0]} and the others cannot be summed: names of their cells or genes differ.")
        adata.X = sum((one.X for one in others), start=adata.X)
        with atomic_write(target) as part:
            adata.write_h5ad(part, compression="gzip", compression_opts=1)
        return target
    genes, blocks = _text(sources[0], orientation)
    with atomic_write(target) as part, h5py.File(part, "w") as file:
        for names, block in blocks:
            cells += names
            block.indptr = block.indptr.astype(np.int64)  # more than 2**31 values may follow
            if "X" in file:
                sparse_dataset(file["X"]).append(block)
            else:
                write_elem(file, "X", block, dataset_kwargs=STORAGE | {"chunks": (2**15,)})
        write_elem(file, "obs", pd.DataFrame(index=cells))
        write_elem(file, "var", pd.DataFrame(index=genes))
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    return target


def _checked(path: Source, orientation: str = "cells_by_genes") -> Path | zipfile.Path:
    if orientation not in ORIENTATIONS:
        raise SettingError(f"orientation={orientation!r} does not exist. {nearest(orientation, ORIENTATIONS)}")
    if isinstance(path, zipfile.Path):
        return path
    path = Path(path).expanduser()
    if not os.path.exists(path):  # unlike Path's, it takes names that are too long
        siblings = [sibling.name for sibling in path.parent.iterdir()] if path.parent.is_dir() else []
        raise FileNotFoundError(f"There is no file {path}. In its folder: {nearest(path.name, siblings)}")
    if not (path.is_file() or path.is_dir()):
        raise DataError(f"{path} is no file but a pipe or device. Write what comes from it into a file.")
    if path.is_file() and not path.stat().st_size:
        raise DataError(f"{path} is empty (0 bytes). Download or write it again.")
    return path


@contextmanager
def _reading(path: Source) -> Iterator[None]:
    """One error that names the path, for whatever a format's library raises."""
    try:
        yield
    except (SimsError, PermissionError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        way_out = next(way_out for kind, way_out in WAYS_OUT.items() if isinstance(error, kind))
        raise DataError(f"{path} cannot be read ({reason}). {way_out}") from error


def _read(path: Path, orientation: str, object_name: str | None) -> AnnData:
    """Cells x genes of a file, by its name or else by what lies in it."""
    name = path.name.lower()
    if name.endswith((".rds", ".rda", ".rdata")):
        return read_r(path, object_name)
    if object_name is not None:
        raise SettingError(f"object_name={object_name!r} is for files of R, and {path} is none.")
    if name.endswith(("matrix.mtx", "matrix.mtx.gz")):
        return _read_10x(path.parent, path.name[: name.index("matrix.mtx")])
    if path.is_dir() and not is_backable(path):
        return _read_10x(path)
    if name.endswith(TEXT):
        columns, blocks = _text(path, orientation)
        names, values = zip(*blocks, strict=True)
        rows = pd.DataFrame(index=list(chain(*names)))
        adata = AnnData(sp.vstack(values, format="csr"), rows, pd.DataFrame(index=columns))
    elif path.is_dir():
        adata = _read_anndata(open_store(path))
    elif not h5py.is_hdf5(path):
        raise DataError(f"{path} starts with {path.open('rb').read(8)!r}: no known format. Expected {FORMATS}.")
    else:
        with open_store(path) as file:
            if {"row_attrs", "col_attrs", "matrix"} <= set(file):
                return _read_loom(file)
            if any(isinstance(group, h5py.Group) and {"barcodes", "indptr"} <= set(group) for group in file.values()):
                import scanpy  # takes seconds

                return _sound(scanpy.read_10x_h5(path, gex_only=False))
            adata = _read_anndata(file) if {"obs", "var"} <= set(file) else _read_unnamed(file)
    return _sound(adata).T if orientation == "genes_by_cells" else _sound(adata)


def _read_unnamed(file: h5py.File) -> AnnData:
    """The values `X` and labels `Y` of a file without names, as scDeepCluster publishes them."""
    if not isinstance(file.get("X"), h5py.Dataset):
        layout = f"{file.filename} is HDF5 with {list(file)[:8]}: no known layout. Expected {FORMATS}."
        raise DataError(f"{layout} A table of pandas can run code; if you trust it: pandas.read_hdf(path).to_csv(...)")
    adata = AnnData(_csr(file["X"]))
    adata.obs_names = [f"cell_{i:05}" for i in range(1, adata.n_obs + 1)]
    adata.var_names = [f"gene_{i:05}" for i in range(1, adata.n_vars + 1)]
    if "Y" in file:
        adata.obs["cell_type"] = [y if isinstance(y, str) else f"type {y:g}" for y in read_elem(file["Y"])]
    return adata


def _read_anndata(root: h5py.File | zarr.Group) -> AnnData:
    """An AnnData file, whose dense matrices become CSR; anndata's own readers do the rest."""
    if hasattr(root["obs"], "dtype"):  # before anndata 0.7
        return anndata.io.read_h5ad(root.filename) if isinstance(root, h5py.File) else anndata.io.read_zarr(root)

    def element(function: Callable, name: str, stored: object, iospec: object) -> object:
        if iospec.encoding_type == "dataframe":
            return _frame(stored)
        if name.strip("/") == "raw":
            return {key: read_dispatched(stored[key], element) for key in ("X", "var", "varm") if key in stored}
        axis = {"csr_matrix": 0, "csc_matrix": 1}.get(iospec.encoding_type)
        if axis is not None and stored["indptr"].shape[0] - 1 != stored.attrs["shape"][axis]:
            raise ValueError(f"indptr of {name} does not fit its shape")  # so much room would be made
        is_dense = re.fullmatch("/?(X|raw/X|layers/[^/]+)", name) and getattr(stored, "ndim", 0) == 2
        return _csr(stored) if is_dense else function(stored)

    keys = ("X", "obs", "var", "obsm", "varm", "obsp", "varp", "layers", "uns", "raw")
    return AnnData(**{key: read_dispatched(root[key], element) for key in keys if key in root})


def _sound(adata: AnnData) -> AnnData:
    """The same, if the indices of all sparse matrices lie within them; else scipy ends the process sooner or later."""
    groups = (adata.layers, adata.obsm, adata.varm, adata.obsp, adata.varp)
    matrices = [adata.X, adata.raw and adata.raw.X, *(matrix for group in groups for matrix in group.values())]
    for matrix in filter(sp.issparse, matrices):
        matrix.check_format(full_check=True)
    return adata


def _frame(group: h5py.Group | zarr.Group, columns: list[str] | None = None, n_rows: int = 0) -> pd.DataFrame:
    """A table, or chosen columns of it without names; text as objects or categories, as every anndata can write it."""
    if columns is None:
        table = read_elem(group)
    else:
        table = pd.DataFrame({name: read_elem(group[name]) for name in columns}, index=np.full(n_rows, "", object))
    for name, categories in group.get("__categories", {}).items():  # of anndata 0.7 and SeuratDisk
        if name in table and not isinstance(table[name].dtype, pd.CategoricalDtype):
            codes = table[name].where(table[name] >= 0, -1)  # R's missing value is far below
            is_ordered = bool(categories.attrs.get("ordered", False))
            table[name] = pd.Categorical.from_codes(codes, read_elem(categories), ordered=is_ordered)
    text = [name for name in table if isinstance(table[name].dtype, pd.StringDtype)]
    incomplete = [name for name in text if table[name].isna().any()]
    table = table.astype(dict.fromkeys(text, object)).astype(dict.fromkeys(incomplete, "category"))
    return table.set_axis(table.index.astype(object))


def _csr(matrix: object) -> sp.csr_matrix:
    """A matrix as CSR; a dense one, also in a file, becomes float32 in bands of rows."""
    if np.dtype(matrix.dtype).kind not in "biuf":
        raise ValueError(f"a matrix of type {matrix.dtype}; expected real numbers")
    if sp.issparse(matrix):
        is_right = matrix.format == "csr" and matrix.dtype.kind in "iuf"
        return matrix if is_right else sp.csr_matrix(matrix, dtype=np.float32)
    step = max(BLOCK_VALUES // max(matrix.shape[1], 1), *(getattr(matrix, "chunks", None) or (1,))[:1])
    bands = [sp.csr_matrix(np.asarray(matrix[i : i + step], np.float32)) for i in range(0, matrix.shape[0], step)]
    return sp.vstack(bands, format="csr") if bands else sp.csr_matrix(matrix.shape, dtype=np.float32)


def _read_loom(file: h5py.File) -> AnnData:
    tables = []
    for key, candidates in LOOM_NAMES.items():
        columns = {name: values for name, values in file[key].items() if values.ndim == 1}
        table = pd.DataFrame({name: np.atleast_1d(read_elem(values)) for name, values in columns.items()})
        name = next((candidate for candidate in candidates if candidate in table), None)
        if name is None:
            raise DataError(f"{file.filename}: {key} has no names. Expected one of {candidates}, got {list(table)}.")
        tables.append(table.set_index(name).rename_axis(None))
    layers = {name: _csr(layer).T.tocsr() for name, layer in file.get("layers", {}).items()}
    return AnnData(_csr(file["matrix"]).T.tocsr(), *tables, layers=layers)


def _read_10x(folder: Path, prefix: str = "") -> AnnData:
    """A 10x folder of any release, packed or not, with any prefix to its names."""
    names, files = [file.name for file in sorted(folder.iterdir()) if file.name.startswith(prefix)], []
    for endings in (("matrix.mtx",), ("features.tsv", "genes.tsv"), ("barcodes.tsv",)):
        found = [name for name in names if name.removesuffix(".gz").endswith(endings)]
        if len(found) != 1:
            needed = f"one {' or '.join(endings)}, packed or not; of several samples, give the path of a matrix.mtx"
            raise DataError(f"{folder} holds {(found or names)[:8]}. Expected {needed}. Other formats: {FORMATS}.")
        files.append(folder / found[0])
    n_genes, n_cells, n_values, layout, *_ = scipy.io.mminfo(_checked(files[0]))
    options = {"sep": "\t", "header": None, "dtype": str, "na_filter": False, "quoting": csv.QUOTE_NONE}
    var, barcodes = (pd.read_csv(_checked(file), **options) for file in files[1:])
    size = files[0].stat().st_size * (1032 if files[0].suffix == ".gz" else 1)  # unpacked, at most
    if (n_genes, n_cells) != (len(var), len(barcodes)) or n_values * (4 if layout == "coordinate" else 2) > size:
        claimed = f"{n_genes:,} genes, {n_cells:,} cells, {n_values:,} values"
        held = f"{len(var):,} genes, {len(barcodes):,} barcodes and {size:,} bytes"
        raise DataError(f"{files[0]} claims {claimed}. There are {held}.")
    var = var.set_index(var.columns[:2][-1], drop=False).rename_axis(None)
    var = var.rename(columns={0: "gene_ids", 2: "feature_types"}).filter(["gene_ids", "feature_types"])
    X = sp.csr_matrix(scipy.io.mmread(files[0]).T, dtype=np.float32)
    return AnnData(X, pd.DataFrame(index=barcodes[0].tolist()), var)


def _text(path: Source, orientation: str) -> tuple[list[str], Iterator[tuple[list[str], sp.csr_matrix]]]:
    """The names of the columns of a matrix in text, and block by block the names and values of its rows."""
    lines = _lines(path)
    top = [next(lines, "").strip(" \n") for _ in range(2)]
    plain = [re.sub('"[^"]*"| +(?= )', "", line) for line in top]
    counts = {d: [line.count(d) + bool(line) for line in plain] for d in "\t,; "}
    delimiter = max(counts, key=lambda d: (0 <= counts[d][1] - counts[d][0] <= 1 < counts[d][1], *counts[d][::-1]))
    n_header, n = counts[delimiter]
    if not 0 <= n - n_header <= 1 < n < MOST_FIELDS:
        raise DataError(f"{path} is no matrix: {n_header:,} and {n:,} fields in its first lines. Expected {LAYOUT}.")
    header, first = csv.reader(top, delimiter=delimiter, skipinitialspace=True)
    header = [name.strip() for name in header]
    columns = header[1:] if n == n_header else header
    if all(map(NUMBER.fullmatch, columns)) and len(set(columns)) < len(columns):
        raise DataError(f"{path} has numbers in its first line, such as {columns[0]!r}. Expected names.")
    names = [first[0], *(line[:99].split(delimiter)[0].strip(' "') for line in islice(lines, 1000))]
    are_values = all(map(NUMBER.fullmatch, names)) and (len(set(names)) < max(len(names), 20) or "." in "".join(names))
    is_nameless = are_values and n == n_header and orientation == "cells_by_genes" and not NAMES.fullmatch(header[0])
    if is_nameless:
        columns, reason = header, f"its first column {header[0]!r} holds values, so it is read as a gene"
        warn(f"{path} names no cells: {reason}, and cells are called cell_1, cell_2, ...")
    return columns, _blocks(path, delimiter, columns, is_nameless, len(top[0]))


def _blocks(path: Source, delimiter: str, columns: list[str], is_nameless: bool, longest: int) -> Iterator:
    options = {"comments": None, "delimiter": delimiter.strip(" ") or None, "quotechar": '"', "ndmin": 2}
    first_field = re.compile(f' *(?:"((?:[^"]|"")*)"|([^{delimiter}]*)) *')
    lines = islice(_lines(path, longest + 40 * len(columns) + 1000), 1, None)
    if is_nameless:
        lines = (f"cell_{i}{delimiter}{line}" for i, line in enumerate(lines, 1))
    while block := list(islice(lines, BLOCK_VALUES // (len(columns) + 100) + 1)):
        heads = [first_field.match(line) for line in block]
        names = [(head[1] or head[2] or "").replace('""', '"').strip() for head in heads]
        rows = [line[head.end() :].removeprefix(delimiter) for head, line in zip(heads, block, strict=True)]
        is_whole = not any(letter in row for row in rows for letter in ".eEnN")
        try:
            values = np.loadtxt(rows, np.int64 if is_whole else np.float32, **options)  # int64 is seven times as fast
            if values.shape != (len(rows), len(columns)) or not np.isfinite(values).all():
                raise ValueError("rows of other lengths, or values that are not finite")
        except ValueError as error:
            raise _wrong_value(path, delimiter, columns, names, rows) from error
        yield names, sp.csr_matrix(values, dtype=np.float32)


def _wrong_value(path: Source, delimiter: str, columns: list[str], names: list[str], rows: list[str]) -> DataError:
    table = csv.reader((row.strip(" \n") for row in rows), delimiter=delimiter, skipinitialspace=True)
    for name, values in zip(names, table, strict=False):
        for column, value in zip(columns, map(str.strip, values), strict=False):
            if not NUMBER.fullmatch(value) or abs(float(value)) > 3.4e38:
                hint = "a number with a point, no comma" if "," in value else "a number; labels go into their own file"
                return DataError(f"{path}: {value[:40]!r} in row {name!r}, column {column!r}. Expected {hint}.")
        if len(values) != len(columns):
            return DataError(f"{path}: {len(values):,} values in row {name!r}. Expected {len(columns):,} of them.")
    return DataError(f"{path} has a value that is no number, in one of {len(rows):,} rows from {names[0]!r} on.")


def _lines(path: Source, longest: int = LONGEST_LINE) -> Iterator[str]:
    """The lines of text that are not empty, from the first that is no comment; `.gz` is unpacked, none is endless."""
    with _reading(path), path.open("rb") as raw:
        unpacked = gzip.GzipFile(fileobj=raw) if path.name.lower().endswith(".gz") else raw
        text, is_comment = io.TextIOWrapper(unpacked, encoding="utf-8-sig"), True
        while line := text.readline(longest):
            if len(line) == longest:
                raise DataError(f"{path} has a line of {longest:,} letters or more, which is no row of numbers.")
            is_comment = is_comment and (line.isspace() or line[0] in "#%")
            if not (is_comment or line.isspace()):
                yield line

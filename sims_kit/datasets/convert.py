"""One function, `convert`: delimited text of any size becomes a compressed CSR `.h5ad`, in bounded memory.

First the text is parsed in blocks, each stored as a small file of its own beside the target, so that an interrupted
run goes on where it stopped. Then bands of cells are put together from all blocks and written.
"""

import errno
import gzip
import hashlib
import json
import os
import shutil
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from anndata.io import read_elem, sparse_dataset, write_elem
from filelock import FileLock

from sims_kit.datasets.delimited import Layout, read_blocks, sniff_matrix
from sims_kit.datasets.readers import DELIMITED, ORIENTATIONS
from sims_kit.errors import DataError, SettingError, nearest
from sims_kit.progress import progress_bar

VALUES_PER_BAND = 2**24  # nonzeros put together at once: 128 MB, a few times that while blocks are joined
STORAGE = dict(
    compression="gzip",  # a third smaller than lzf and read as fast; written once, at half the speed
    compression_opts=1,  # more is slower and hardly smaller
    shuffle=True,  # small counts share most of their bytes
    fletcher32=True,  # a damaged chunk is an error, not a wrong number
    chunks=(2**15,),  # 128 kB: some cells, so that a few scattered cells cost no more
)
SPARE = 2**24  # bytes left free on the disk: HDF5 can take the whole process with it when a disk runs full
BAR = "{desc} {bar:10} {n_fmt}/{total_fmt} {rate_fmt} [{elapsed}<{remaining}]"

Source = Path | zipfile.Path


def convert(
    source: str | Source | Sequence[str | Source],
    target: str | Path,
    *,
    orientation: str = "cells_by_genes",
    complete: Callable[[AnnData], None] | None = None,
) -> Path:
    """Turn delimited text of any size into an `.h5ad` with a sparse matrix, cells in rows.

    Memory stays under 2 GB whatever the size. A run that was interrupted, by whatever, goes on where it stopped as
    long as the source is the same; what it has parsed lies in ``<target>.parts`` until the target is complete. The
    target appears at once and whole. Of two processes with one target, the second waits and takes the first's.

    Parameters
    ----------
    source
        Text with names in its first line and column (``.csv``, ``.tsv``, ``.txt``, each also ``.gz``), such a
        member of a zip file as `zipfile.Path`, or several of those with the same names, whose values are summed
        (counts of exons and introns).
    target
        The file to write, ``.h5ad``. One that is there already is replaced.
    orientation
        ``"genes_by_cells"`` turns text that has genes in rows.
    complete
        Called with an AnnData that has the names of cells and genes and no matrix, before the file is written. It
        may rename, and add to `obs`, `var` and `uns`; it must not drop or reorder.

    Returns
    -------
    Path
        The target: ``X`` is CSR, float32, cells x genes, without stored zeros. Duplicate names stay.

    Raises
    ------
    FileNotFoundError
        There is no such source.
    DataError
        A source is empty, damaged, ragged, or has a value that is no number; several have different names; or
        the disk is full. What was parsed before is kept.
    SettingError
        The orientation or the suffix of the target is unknown.
    """
    sources = [source] if isinstance(source, str | Path | zipfile.Path) else list(source)
    sources = [Path(one).expanduser() if isinstance(one, str | Path) else one for one in sources]
    target = Path(target).expanduser()
    layouts = _check(sources, target, orientation)
    was_there = _stamp(target)
    with _full_disk_explained(target):
        parts = target.with_name(f"{target.name}.parts")
        _check_folder(target.parent)
        with FileLock(f"{target}.lock"):
            if _stamp(target) != was_there:  # another process made it meanwhile
                return target
            _keep_only_if_same(parts, sources, orientation)
            pieces = [
                _parse(one, layout, parts, k, orientation)
                for k, (one, layout) in enumerate(zip(sources, layouts, strict=True))
            ]
            shell = _shell(sources, layouts, pieces, orientation)
            if complete is not None:
                _complete(shell, complete)
            _write(shell, pieces, orientation, parts / "whole.h5ad")
            os.replace(parts / "whole.h5ad", target)
            shutil.rmtree(parts)
    return target


def _check(sources: Sequence[Source], target: Path, orientation: str) -> list[Layout]:
    """Refuse what can be refused before long work; the layouts of the sources."""
    if orientation not in ORIENTATIONS:
        raise SettingError(f"orientation={orientation!r} does not exist. {nearest(orientation, ORIENTATIONS)}")
    if target.suffix != ".h5ad":
        raise SettingError(f"The target {str(target)!r} does not end in .h5ad, which is what convert writes.")
    if not sources:
        raise SettingError("convert got no source. Give the path of a delimited text file.")
    for source in sources:
        if not source.exists():
            raise FileNotFoundError(f"There is no file {source} to convert. Check the path.")
        if not source.is_file() or not source.name.lower().endswith(DELIMITED):
            raise DataError(f"{source} is no delimited text. Expected a file that ends in {', '.join(DELIMITED)}.")
    layouts = []
    for source in sources:
        with _damage_explained(source):
            layouts.append(sniff_matrix(source))
        if layouts[-1].columns != layouts[0].columns:
            raise _different_names(sources[0], source, "columns", layouts[0].columns, layouts[-1].columns)
    return layouts


def _check_folder(folder: Path) -> None:
    """Make the folder; `DataError` if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise DataError(f"The folder {folder} cannot be written ({error}). Choose another.") from error


def _keep_only_if_same(parts: Path, sources: Sequence[Source], orientation: str) -> None:
    """Empty the folder of parts unless it was made from the same sources in the same way."""
    record = json.dumps({"sources": [_identity(source) for source in sources], "orientation": orientation}, indent=1)
    note = parts / "source.json"
    if not note.is_file() or note.read_text(encoding="utf-8") != record:
        shutil.rmtree(parts, ignore_errors=True)
        parts.mkdir()
        note.write_text(record, encoding="utf-8")


def _identity(source: Source) -> dict:
    """What changes when a source does."""
    with source.open("rb") as file:
        start = hashlib.sha256(file.read(2**20)).hexdigest()
    changed = source.stat().st_mtime_ns if isinstance(source, Path) else source.root.getinfo(source.at).CRC
    return {"name": str(source), "size": _size(source), "changed": changed, "sha256 of the first MB": start}


def _size(source: Source) -> int:
    """Bytes that reading goes through: of the packed file, or of the unpacked member of a zip file."""
    return source.stat().st_size if isinstance(source, Path) else source.root.getinfo(source.at).file_size


def _parse(source: Source, layout: Layout, parts: Path, k: int, orientation: str) -> list[Path]:
    """Parse the `k`-th source into one file per block, cells in rows; files that are there are kept."""
    pieces, start, rows, read = [], 0, 0, 0
    for number in count():
        piece = parts / f"source-{k}-block-{number:06}.h5"
        if not piece.is_file():
            break
        with h5py.File(piece) as file:
            start, read = (int(file.attrs[name]) for name in ("end", "read"))
            rows += len(file["names"])
        pieces.append(piece)
    options = dict(desc=f"reading {source.name}", total=_size(source), initial=read, unit="B", unit_scale=True)
    with progress_bar(bar_format=BAR, **options) as bar, _damage_explained(source):
        for block in read_blocks(source, layout, start, rows):
            values = block.values if orientation == "cells_by_genes" else block.values.T.tocsr()
            piece = parts / f"source-{k}-block-{len(pieces):06}.h5"
            _check_space(parts, values)
            with h5py.File(parts / "unfinished.h5", "w") as file:
                write_elem(file, "values", values)
                write_elem(file, "names", np.array(block.names, dtype=object))
                file.attrs.update(end=block.end, read=block.read)
            os.replace(parts / "unfinished.h5", piece)
            pieces.append(piece)
            bar.update(block.read - bar.n)
    return pieces


def _shell(
    sources: Sequence[Source], layouts: Sequence[Layout], pieces: Sequence[Sequence[Path]], orientation: str
) -> AnnData:
    """Names of cells and genes, which agree among the sources, without the matrix."""
    rows = [np.concatenate([_stored(piece, "names") for piece in of_source]) for of_source in pieces]
    for source, others in zip(sources[1:], rows[1:], strict=True):
        if not np.array_equal(rows[0], others):
            raise _different_names(sources[0], source, "rows", rows[0], others)
    names = [rows[0], layouts[0].columns]
    cells, genes = names if orientation == "cells_by_genes" else names[::-1]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(Variable|Observation) names are not unique")  # summed when aligned
        return AnnData(obs=pd.DataFrame(index=list(cells)), var=pd.DataFrame(index=list(genes)))


def _complete(shell: AnnData, complete: Callable[[AnnData], None]) -> None:
    shape = shell.shape
    complete(shell)
    if shell.shape != shape:
        raise SettingError(f"complete changed the shape from {shape} to {shell.shape}. It may only rename and add.")


def _write(shell: AnnData, pieces: Sequence[Sequence[Path]], orientation: str, path: Path) -> None:
    """The shell, and band by band the matrix, the sum over the sources."""
    lengths = sum(_values_per_cell(of_source, orientation) for of_source in pieces)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(Variable|Observation) names are not unique")
        shell.write_h5ad(path)
    storage = STORAGE | dict(indptr_dtype=np.int32 if lengths.sum() < 2**31 else np.int64)
    options = dict(desc=f"writing {path.parent.stem}", total=shell.n_obs, unit=" cells")
    with h5py.File(path, "a") as file, progress_bar(bar_format=BAR, **options) as bar:
        file.pop("X", None)
        for start, stop in _bands(lengths):
            band = sum(
                (_band(of_source, start, stop, orientation) for of_source in pieces[1:]),
                start=_band(pieces[0], start, stop, orientation),
            )
            band.eliminate_zeros()  # of a sum
            _check_space(path.parent, band)
            if start == 0:
                write_elem(file, "X", band, dataset_kwargs=storage)
            else:
                sparse_dataset(file["X"]).append(band)
            bar.update(stop - start)


def _values_per_cell(pieces: Sequence[Path], orientation: str) -> np.ndarray:
    """Number of stored values of each cell."""
    lengths = [np.diff(_stored(piece, "values/indptr")).astype(np.int64) for piece in pieces]
    return np.concatenate(lengths) if orientation == "cells_by_genes" else sum(lengths)


def _bands(lengths: np.ndarray) -> Iterator[tuple[int, int]]:
    """Successive ranges of cells with about `VALUES_PER_BAND` values each."""
    edges = np.flatnonzero(np.diff(np.cumsum(lengths) // VALUES_PER_BAND)) + 1
    yield from zip([0, *edges.tolist()], [*edges.tolist(), len(lengths)], strict=True)


def _band(pieces: Sequence[Path], start: int, stop: int, orientation: str) -> sp.csr_matrix:
    """Cells `start` to `stop` of one source, with all genes."""
    if orientation == "genes_by_cells":
        return sp.hstack([_rows(piece, start, stop) for piece in pieces], format="csr")
    found, first = [], 0
    for piece in pieces:
        last = first + len(_stored(piece, "values/indptr")) - 1
        if max(start, first) < min(stop, last):
            found.append(_rows(piece, max(start - first, 0), min(stop, last) - first))
        first = last
    return sp.vstack(found, format="csr")


def _rows(piece: Path, start: int, stop: int) -> sp.csr_matrix:
    with h5py.File(piece) as file:
        return sparse_dataset(file["values"])[start:stop]


def _stored(piece: Path, key: str) -> np.ndarray:
    with h5py.File(piece) as file:
        return read_elem(file[key]) if key == "names" else file[key][:]


def _check_space(folder: Path, matrix: sp.csr_matrix) -> None:
    n_bytes = matrix.data.nbytes + matrix.indices.nbytes + matrix.indptr.nbytes
    if shutil.disk_usage(folder).free < n_bytes + SPARE:
        raise OSError(errno.ENOSPC, f"No space left for {n_bytes / 1e6:,.0f} MB")


def _stamp(path: Path) -> tuple[int, int] | None:
    """What changes when a file is replaced."""
    return (path.stat().st_ino, path.stat().st_mtime_ns) if path.exists() else None


@contextmanager
def _damage_explained(source: Source) -> Iterator[None]:
    """Errors of unpacking and decoding, as one that names the source."""
    try:
        yield
    except (EOFError, UnicodeDecodeError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile) as error:
        raise DataError(
            f"{source} cannot be read ({type(error).__name__}: {error}). It is damaged, cut short, or not what its "
            "name says. Download or write it again."
        ) from error


@contextmanager
def _full_disk_explained(target: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:  # h5py's, on closing, is a RuntimeError
        if getattr(error, "errno", None) != errno.ENOSPC and "No space left" not in str(error):
            raise
        free = shutil.disk_usage(target.parent).free
        raise DataError(
            f"The disk is full: {target.parent} has {free / 1e9:.2f} GB left. What was read is kept in "
            f"{target.name}.parts. Make room and call again to go on, or set SIMS_KIT_DATA to a larger disk."
        ) from error


def _different_names(first: Source, second: Source, what: str, names: Sequence, others: Sequence) -> DataError:
    pair = next(((a, b) for a, b in zip(names, others, strict=False) if a != b), None)
    found = f"{len(names):,} and {len(others):,}" if pair is None else f"{pair[0]!r} where the other has {pair[1]!r}"
    return DataError(
        f"{first} and {second} cannot be summed: their {what} have different names ({found}). Expected the same names "
        "in the same order."
    )

"""`load`: a dataset by name, or a file by path."""

import os
import warnings
import zipfile
from pathlib import Path

import anndata
import h5py
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from sims_kit.datasets.convert import convert
from sims_kit.datasets.delimited import open_text
from sims_kit.datasets.fetch import cache_folder, fetch, known_hash
from sims_kit.datasets.labels import attach_labels, check_orientation, select_cells
from sims_kit.datasets.readers import DELIMITED, read
from sims_kit.datasets.registry import ArchiveSource, Dataset, FilesSource, SimulatedSource, read_registry
from sims_kit.datasets.simulate import simulated
from sims_kit.datasets.stored import left_on_disk, open_stored
from sims_kit.errors import DataError, SettingError, UnknownNameError

LARGE = 2**30  # bytes of an archive's member: below, it does no harm
MOST_PACKED = 300  # to one; deflate reaches a thousand on nothing but zeros
SIGNED = (  # keys of an entry that travel with the data
    *("version", "title", "label", "other_labels", "sample", "region", "state", "species", "tissue", "protocol"),
    *("preprocessing", "notes", "licence", "citation", "doi"),
)


def load(name_or_path: str | Path, *, size: str | None = None) -> AnnData:
    """A dataset of the registry by its name, or a file by its path.

    Parameters
    ----------
    name_or_path
        A name of `catalogue()`: the data are prepared (see `prepare`), cells filtered, and the result compared
        with the registry. Anything else is a path and goes to `read` as it is.
    size
        Of a simulated tissue only: ``"fast"`` (the default) or ``"full"``.

    Returns
    -------
    AnnData, cells x genes
        For a name, the labels lie in ``obs[adata.uns["sims_kit"]["label"]]`` and ``uns["sims_kit"]`` says where
        the data come from: dataset, version, licence, citation, state of the matrix, addresses, hashes.

    Raises
    ------
    UnknownNameError
        Neither a name of the registry nor a path; the nearest names are offered. Or there is no such size.
    SettingError
        Something else than a text or a path; a size for data that are not simulated.
    FetchError
        The file is not in the cache and cannot be had.
    DataError
        The data are not those that the registry describes.

    Warns
    -----
    UserWarning
        Cells, genes or classes of a dataset of the tier `full` differ from the registry's, whose numbers are then
        those of publications.
    """
    if not isinstance(name_or_path, str | os.PathLike):
        found = type(name_or_path).__name__
        raise SettingError(f"load takes the name of a dataset or the path of a file, not an object of type {found}.")
    registry = read_registry()
    is_name = isinstance(name_or_path, str) and name_or_path in registry.datasets
    if size is not None and not (is_name and isinstance(registry[name_or_path].source, SimulatedSource)):
        raise SettingError(f"{name_or_path} has one size. Leave out size={size!r}: it is for simulated tissue.")
    if is_name:
        return _load_dataset(name_or_path, registry[name_or_path], size or "fast")
    path = Path(name_or_path).expanduser()
    if isinstance(name_or_path, str) and not os.path.exists(path) and len(path.parts) == 1 and not path.suffix:
        raise UnknownNameError("dataset", name_or_path, registry.datasets)
    return read(path)


def load_or_open(
    name_or_path: str | Path, layer: str | None = None, backed: bool | str = "auto"
) -> tuple[AnnData, str | None]:
    """As `load`, but the matrix of an `.h5ad` or `.zarr` may stay in its file.

    Parameters
    ----------
    name_or_path
        As in `load`.
    layer
        Where the matrix is that will be needed: None for `X`, ``"raw"``, or the name of a layer.
    backed
        True, False, or ``"auto"``: when the matrix would take more than three tenths of the free memory.

    Returns
    -------
    tuple
        The AnnData, and in which of its layers the matrix is: None when it stays in its file, whatever it is there.

    Raises
    ------
    SettingError
        `backed` is none of the three, or True for a file that must be read.
    UnknownNameError, FetchError, DataError
        As `load` and `sims_kit.datasets.stored.open_stored` raise them.
    """
    if backed not in (True, False, "auto"):
        raise SettingError(f'backed={backed!r}: choose True (cells stay on disk), False (in memory) or "auto".')
    path = Path(name_or_path).expanduser() if isinstance(name_or_path, str | os.PathLike) else None
    is_file = path is not None and path.exists() and name_or_path not in read_registry().datasets
    if is_file and left_on_disk([path], layer, backed)[0]:
        return open_stored(path, layer), None
    return load(name_or_path), layer


def prepare(name: str) -> list[Path]:
    """Put everything into the cache that `load(name)` needs, so that it works without a network afterwards.

    Files are downloaded and their hashes checked. A big matrix of text, or one in an archive, is converted once
    into `<cache>/<folder>/<name>.h5ad`, with its labels; after that the files as published may be removed.

    Returns
    -------
    list of Path
        The files that `load` opens. None for bundled and simulated data.

    Raises
    ------
    UnknownNameError
        There is no such dataset.
    FetchError
        A file cannot be had.
    DataError
        A file cannot be converted.
    """
    entry = read_registry()[name]
    if not entry.source.files:
        return []
    if _needs_conversion(entry):
        return [_converted(name, entry)]
    return [fetch(name, entry.source.folder, file, alternatives=entry.alternatives) for file in entry.source.files]


def converted_path(name: str, entry: Dataset) -> Path:
    """Where the converted file of a dataset lies, or would lie."""
    return cache_folder() / entry.source.folder / f"{name}.h5ad"


def _needs_conversion(entry: Dataset) -> bool:
    """Whether the matrix is text that takes minutes to read."""
    is_text = isinstance(entry.source, FilesSource) and entry.source.matrix.name.lower().endswith(DELIMITED)
    return isinstance(entry.source, ArchiveSource) or (is_text and entry.tier == "full")


def _converted(name: str, entry: Dataset) -> Path:
    """The converted file of a dataset; made anew where it is not that of the files which the registry names."""
    source, target = entry.source, converted_path(name, entry)
    if target.exists() and _is_of(target, entry):
        return target
    paths = [fetch(name, source.folder, file, alternatives=entry.alternatives) for file in source.files]
    genes = None
    if isinstance(source, ArchiveSource):
        matrix = [_member(name, paths[0], member) for member in source.matrix]
        labels = source.labels and _member(name, paths[0], source.labels)
        genes = source.genes and _member(name, paths[0], source.genes)
    else:
        matrix, labels = paths[0], paths[1] if source.labels else None

    def complete(shell: AnnData) -> None:
        check_orientation(shell, name=name)
        with warnings.catch_warnings():
            if entry.drop_unlabelled:
                warnings.filterwarnings("ignore", ".*they stay unlabelled")
            if labels:
                attach_labels(shell, labels, entry.label, text=_names_of_cells(entry))
        if genes:
            _attach_genes(shell, genes)
        shell.uns["origin"] = _expected_origin(entry)

    return convert(matrix, target, orientation=entry.orientation, complete=complete)


def _expected_origin(entry: Dataset) -> dict[str, str]:
    """What a converted file of this entry was made of: the hash of each file, and how the matrix lies."""
    hashes = {file.name: known_hash(entry.source.folder, file) or "" for file in entry.source.files}
    return hashes | {"orientation": entry.orientation}


def _is_of(converted: Path, entry: Dataset) -> bool:
    """Whether a converted file was made of the files that the entry names, as far as their hashes are known."""
    try:
        with h5py.File(converted) as file:
            origin = anndata.io.read_elem(file["uns/origin"])
    except (OSError, KeyError):  # not a converted file
        return False
    return all(origin.get(key) == value for key, value in _expected_origin(entry).items() if value)


def _member(name: str, archive: Path, member: str) -> zipfile.Path:
    """A member of a zip archive."""
    try:
        path = zipfile.Path(archive, member)
    except zipfile.BadZipFile as error:
        raise DataError(f"{name}: {archive} is no zip archive ({error}). Download it again.") from error
    if path.is_file():
        _refuse_bomb(name, path)
    else:
        raise DataError(f"{name}: {archive} has no member {member!r}. The entry in data_registry.yaml is wrong.")
    return path


def _refuse_bomb(name: str, member: zipfile.Path) -> None:
    """Refuse a member that fills memory and disk out of little: text of counts packs thirty to one."""
    info = member.root.getinfo(member.at)
    if info.file_size > LARGE and info.file_size > MOST_PACKED * info.compress_size:
        raise DataError(
            f"{name}: {member} unpacks from {info.compress_size:,} to {info.file_size:,} bytes; no matrix is packed "
            "like that. Download the archive again."
        )


def _attach_genes(shell: AnnData, table: zipfile.Path) -> None:
    """The columns of a table of genes, found by the column that holds the names of the matrix."""
    with open_text(table) as text:
        columns = pd.read_csv(text, dtype=str)
    by = next((column for column in columns if shell.var_names.isin(columns[column]).all()), None)
    if by is None:
        raise DataError(f"{table}: no column of {list(columns)} holds the genes, such as {shell.var_names[0]!r}.")
    columns = columns.drop_duplicates(by).set_index(by, drop=False).loc[shell.var_names]
    shell.var[list(columns)] = columns.to_numpy()


def _load_dataset(name: str, entry: Dataset, size: str) -> AnnData:
    """Prepare, read, name the genes, filter, check and sign a dataset of the registry."""
    adata = _read(name, entry, size)
    if entry.layer == "raw" and adata.raw is not None:
        adata = adata.raw.to_adata()
        adata.X = sp.csr_matrix(adata.X)
    elif entry.layer not in (None, "raw"):
        adata.X = adata.layers[entry.layer]
    _name_genes(adata, entry)
    if entry.label not in adata.obs:
        raise DataError(f"{name}: the data have no labels {entry.label!r} in obs, only {list(adata.obs)}.")
    if entry.keep or entry.drop or (entry.drop_unlabelled and adata.obs[entry.label].isna().any()):
        labelled = adata[adata.obs[entry.label].notna()] if entry.drop_unlabelled else adata
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Variable names are not unique")  # summed when aligned
            adata = select_cells(labelled, keep=entry.keep, drop=entry.drop)
    _check(name, entry, adata, size)
    adata.uns.pop("origin", None)
    adata.uns["sims_kit"] = _provenance(name, entry)
    return adata


def _read(name: str, entry: Dataset, size: str) -> AnnData:
    """The data as they lie in their source, with labels."""
    if isinstance(entry.source, SimulatedSource):
        return simulated(name, size)
    if not entry.source.files:
        import scanpy  # takes seconds

        return getattr(scanpy.datasets, entry.source.function)()
    matrix, *labels = prepare(name)
    if _needs_conversion(entry):
        return read(matrix)
    adata = read(matrix, orientation=entry.orientation)
    if labels:
        attach_labels(adata, labels[0], entry.label, text=_names_of_cells(entry))
    check_orientation(adata)
    return adata


def _names_of_cells(entry: Dataset) -> list[str]:
    """The columns, beside the label, whose values are names, although they may look like numbers."""
    return [column for column in (entry.sample, entry.region, *entry.other_labels) if column is not None]


def _name_genes(adata: AnnData, entry: Dataset) -> None:
    """Call the genes by their symbols and keep what they were called in `var`, where the registry says so."""
    published = adata.var_names.to_series()
    symbols, ids = published, published
    if entry.gene_column is not None:
        symbols = adata.var[entry.gene_column].astype(object).fillna(published)
    elif entry.gene_pattern is not None:
        parts = published.str.extract(f"^(?:{entry.gene_pattern})$")
        symbols, ids = parts["symbol"].fillna(published), parts.get("id", published).fillna(published)
    if not symbols.equals(ids):
        adata.var["gene_ids"] = ids.to_numpy()
    adata.var_names = pd.Index(symbols.astype(str).to_numpy())


def _check(name: str, entry: Dataset, adata: AnnData, size: str) -> None:
    """Compare what was loaded with what the registry promises."""
    found = {"cells": adata.n_obs, "genes": adata.n_vars, "classes": adata.obs[entry.label].nunique()}
    promised = {key: getattr(entry, key) for key in found}
    if isinstance(entry.source, SimulatedSource):
        promised |= entry.source.sizes[size].model_dump()
    wrong = [f"{found[k]:,} {k} instead of {n:,}" for k, n in promised.items() if n not in (None, found[k])]
    wrong += [f"no column {column!r} in obs" for column in _names_of_cells(entry) if column not in adata.obs]
    if not wrong:
        return
    found = f"{name}: after loading there are {', '.join(wrong)}."
    if entry.tier != "full":
        raise DataError(
            f"{found} The entry in data_registry.yaml and the data (or the version of the package that carries them) "
            "do not belong together."
        )
    warnings.warn(
        f"{found} The numbers in data_registry.yaml are those of publications: the file may be another version. "
        "Check it before you rely on it.",
        stacklevel=4,
    )


def _provenance(name: str, entry: Dataset) -> dict:
    """Where the data come from, in types that every AnnData format can hold."""
    provenance = {"dataset": name} | {key: getattr(entry, key) for key in SIGNED if getattr(entry, key)}
    if files := entry.source.files:
        provenance["urls"] = [file.urls[0] for file in files]
        provenance["sha256"] = [known_hash(entry.source.folder, file) or "" for file in files]
    return provenance

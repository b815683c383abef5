"""The gate of matrix files: one look at a file from elsewhere before any reader sees it.

An HDF5 file or zarr store may point to other files, name code to run, or claim values that it does not hold. Readers
follow, as they should in files of one's own; here such a file is refused.
"""

import json
import math
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import h5py
import zarr
from h5py import h5z

FREE = 2**26  # bytes that any file may claim: 64 MB
UNFOLDED = 2000  # times its size that a larger one may claim; gzip packs zeros 1,032 to 1
MOST_OBJECTS, DEEPEST = 100_000, 20  # groups and arrays, and groups within groups
PACKERS = {"blosc", "gzip", "lz4", "zlib", "zstd"}  # codecs of zarr; among those left out is "pickle", which runs code
OTHERS = {"bytes", "endian", "transpose", "sharding_indexed", "vlen-utf8", "vlen-bytes", "shuffle"}
OTHERS |= {"crc32", "crc32c", "adler32", "fletcher32"}
TEXTS = 2**13  # looked at at once
POINTERS = "indices", "indptr"  # of a sparse matrix


def open_store(path: Path) -> h5py.File | zarr.Group:
    """An HDF5 file, or the zarr store in a folder, open for reading; a `ValueError` says why one is refused."""
    if path.is_dir():
        _check_zarr(path)
        return zarr.open_group(str(path), mode="r")
    file = h5py.File(path, "r")
    _check_hdf5(file, path.stat().st_size)
    return file


def _check_hdf5(file: h5py.File, size: int) -> None:
    claimed, stored, n_objects, seen, groups = 0, 0, 0, set(), [(file, 0)]
    while groups:
        group, depth = groups.pop()
        place = h5py.h5o.get_info(group.id).addr
        _refuse(place in seen, f"{group.name} lies in itself, or in two places")
        seen.add(place)
        claimed += 8 * max(group.attrs.get("h5sparse_shape", (0,)))  # before anndata 0.7
        for name in group:
            n_objects += 1
            _check_counts(claimed, size, n_objects, depth)
            is_own = isinstance(group.get(name, getlink=True), h5py.HardLink)
            _refuse(not is_own, f"{name!r} is a link to another place or file")
            item = group[name]
            if isinstance(item, h5py.Group):
                groups.append((item, depth + 1))
            elif isinstance(item, h5py.Dataset):
                _refuse(bool(item.is_virtual or item.external), f"{item.name} has its values in another file")
                made = item.id.get_create_plist()
                filters = [made.get_filter(i)[0] for i in range(made.get_nfilters())]
                packers = [code for code in filters if code not in (h5z.FILTER_SHUFFLE, h5z.FILTER_FLETCHER32)]
                _refuse(len(packers) > 1, f"{item.name} is packed {len(packers)} times")
                is_whole = name not in POINTERS or item.dtype.kind in "iu"
                _refuse(not is_whole, f"{item.name} has numbers of type {item.dtype}")
                categories = item.attrs.get("categories")  # a reference, in anndata 0.7
                is_hidden = isinstance(categories, h5py.Reference) and file[categories].name is None
                _refuse(is_hidden, f"{item.name} has categories that no path leads to")
                sizes = (math.prod(max(n, 1) for n in size or ()) for size in (item.shape, item.chunks))
                claimed += (64 if item.dtype.kind in "OS" else max(item.dtype.itemsize, 8)) * max(sizes)
                stored += item.id.get_storage_size()
                for length in _lengths(item):
                    claimed += length
                    _check_counts(claimed, size, n_objects, 0)
    _check_counts(claimed, size, n_objects, 0)
    _refuse(stored > size, f"arrays of {stored:,} bytes share the {size:,} bytes of the file")


def _lengths(item: h5py.Dataset) -> Iterator[int]:
    """Lengths of texts, block by block: thousands may be one long text in the file."""
    if item.dtype.hasobject and item.size and item.ndim:
        width = item.size // len(item)
        _refuse(width > TEXTS, f"{item.name} has {width:,} texts in a row")
        for start in range(0, len(item), step := TEXTS // width):
            values = item[start : start + step].ravel().tolist()
            fields = chain.from_iterable(values) if item.dtype.names else values
            yield sum(len(field) for field in fields if hasattr(field, "__len__"))


def _check_zarr(store: Path) -> None:
    claimed, entries = 0, list(store.rglob("*"))  # does not follow links to folders
    for entry in entries:
        _refuse(entry.is_symlink(), f"{entry} is a link to another place or file")
        _refuse(not (entry.is_file() or entry.is_dir()), f"{entry} is a pipe or device")
    files = [entry for entry in entries if entry.is_file()]
    size = sum(file.stat().st_size for file in files)
    tables = [file for file in files if file.name in (".zarray", ".zmetadata", "zarr.json")]
    for table in tables:
        for node in _nodes(json.loads(table.read_text(encoding="utf-8"))):
            given = [node.get(kind) or [] for kind in ("compressor", "filters", "codecs", "index_codecs")]
            steps = [step for some in given for step in (some if isinstance(some, list) else [some])]
            names = [str(s[key]).removeprefix("numcodecs.") for s in steps for key in s.keys() & {"id", "name"}]
            for name in set(names) - PACKERS - OTHERS:
                _refuse(True, f"{table} names the codec {name!r}")
            _refuse(sum(name in PACKERS for name in names) > 1, f"{table} packs values twice")
            chunks = node.get("chunks") or node.get("chunk_grid", {}).get("configuration", {}).get("chunk_shape", ())
            kind = str(node.get("dtype", node.get("data_type", "i")))
            _refuse(table.parent.name in POINTERS and not set(kind) & {*"iu"}, f"{table} says numbers of type {kind!r}")
            claimed += max(_width(node), 8) * max(abs(math.prod(size or (0,))) for size in (node.get("shape"), chunks))
    deepest = max((len(file.relative_to(store).parts) for file in files), default=0)
    _check_counts(claimed, size, len(tables), deepest - 2)


def _check_counts(claimed: int, size: int, n_objects: int, depth: int) -> None:
    _refuse(claimed > max(FREE, UNFOLDED * size), f"it claims {claimed:,} bytes of values and has {size:,} bytes")
    _refuse(n_objects > MOST_OBJECTS, f"it holds more than {MOST_OBJECTS:,} groups and arrays")
    _refuse(depth > DEEPEST, f"its groups lie more than {DEEPEST} deep")


def _refuse(is_wrong: bool, found: str) -> None:
    if is_wrong:
        raise ValueError(f"{found}, which no file of cells needs")


def _width(node: dict) -> int:
    """Bytes of a value of a zarr array, or more: the product of the numbers in its type, summed over fields."""
    kind = node.get("dtype", node.get("data_type"))
    fields = [field[1:] for field in kind] if isinstance(kind, list) else [kind]
    width = sum(math.prod(map(int, re.findall(r"\d+", json.dumps(field)))) for field in fields)
    return width // 8 or 8 if isinstance(node.get("data_type"), str) else width  # zarr 3 says "float32", zarr 2 "<f4"


def _nodes(value: Any) -> Iterator[dict]:
    """All dictionaries of a JSON value, from the outside in."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _nodes(inner)

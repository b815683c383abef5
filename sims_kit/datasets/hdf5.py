"""Chunks of an HDF5 file, read and unpacked without HDF5, which lets one thread in at a time."""

import os
import zlib

import h5py
import numpy as np

from sims_kit.errors import DataError

SHUFFLE, FLETCHER32 = h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32
DEFLATE = h5py.h5z.FILTER_DEFLATE  # gzip


class HDF5Array:
    """A one-dimensional HDF5 dataset: where its chunks lie in the file, and how they are packed."""

    def __init__(self, dataset: h5py.Dataset):
        self.dtype = dataset.dtype
        plan = dataset.id.get_create_plist()
        self.filters = [plan.get_filter(i)[0] for i in range(plan.get_nfilters())]
        self.length = dataset.chunks[0] if dataset.chunks else len(dataset)
        if dataset.chunks:
            found = []
            dataset.id.chunk_iter(lambda chunk: found.append((chunk[0][0], chunk[2], chunk[3], chunk[1])))
            self.table = np.array(sorted(found), dtype=np.int64).reshape(-1, 4)[:, 1:]  # place, bytes, filters left out
        else:
            self.table = np.array([[dataset.id.get_offset(), len(dataset) * self.dtype.itemsize, 0]])
        self.is_whole = len(self.table) * self.length >= len(dataset)  # chunks never written are not in the file

    @classmethod
    def of(cls, dataset: h5py.Dataset) -> "HDF5Array | None":
        """None where only HDF5 knows how to read it."""
        layout = dataset.id.get_create_plist().get_layout()
        placed = layout == h5py.h5d.CHUNKED or (layout == h5py.h5d.CONTIGUOUS and dataset.id.get_offset() is not None)
        if not placed or dataset.dtype.kind not in "iuf" or dataset.file.userblock_size or dataset.external:
            return None
        found = cls(dataset)
        checked = DEFLATE in found.filters or FLETCHER32 not in found.filters  # gzip has a checksum of its own
        known = set(found.filters) <= {SHUFFLE, FLETCHER32, DEFLATE}
        return found if known and checked and found.is_whole else None

    def read(self, file: int, start: int, stop: int, path: str) -> np.ndarray:
        """The values from `start` to `stop`."""
        if not self.filters or start == stop:
            return self._plain(file, start, stop)
        chunks = range(start // self.length, -(-stop // self.length))
        parts = [self._unpacked(file, chunk, path) for chunk in chunks]
        values = np.concatenate(parts) if len(parts) != 1 else parts[0]
        return values[start - chunks.start * self.length :][: stop - start]

    def _plain(self, file: int, start: int, stop: int) -> np.ndarray:
        """Without packing, no more is read than is asked for."""
        parts = []
        while start < stop:
            chunk, within = divmod(start, self.length)
            n = min(stop - start, self.length - within)
            place = int(self.table[chunk, 0]) + within * self.dtype.itemsize
            parts.append(np.frombuffer(_bytes(file, place, n * self.dtype.itemsize), self.dtype))
            start += n
        return np.concatenate(parts) if parts else np.empty(0, self.dtype)

    def _unpacked(self, file: int, chunk: int, path: str) -> np.ndarray:
        place, size, left_out = self.table[chunk].tolist()
        packed = _bytes(file, place, size)
        for number, code in reversed(list(enumerate(self.filters))):
            if left_out >> number & 1:
                continue
            if code == FLETCHER32:
                packed = packed[:-4]
            elif code == DEFLATE:
                try:
                    packed = zlib.decompress(packed, bufsize=self.length * self.dtype.itemsize)
                except zlib.error as error:
                    raise DataError(f"{path} is damaged ({error}). Download or write it again.") from error
            else:
                packed = _unshuffled(packed, self.dtype.itemsize)
        return np.frombuffer(packed, self.dtype)


def _unshuffled(packed: bytes, itemsize: int) -> np.ndarray:
    """Bytes that lie first by their place in the value, then by value, the other way round."""
    planes = np.frombuffer(packed, np.uint8).reshape(itemsize, -1)
    values = np.empty((planes.shape[1], itemsize), np.uint8)
    for i, plane in enumerate(planes):
        values[:, i] = plane
    return values.ravel()


def _bytes(file: int, place: int, size: int) -> bytes:
    found = os.pread(file, size, place)
    while len(found) < size:  # the system gives at most 2 GB at once
        more = os.pread(file, size - len(found), place + len(found))
        if not more:
            raise DataError(f"The file ends {size - len(found):,} bytes too early: it was cut short. Write it again.")
        found += more
    return found

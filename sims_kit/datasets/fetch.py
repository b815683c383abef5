"""Download of registry files into the cache by pooch, with their SHA-256 checked at every use."""

import gzip
import hashlib
import io
import os
import shlex
import shutil
import zipfile
import zlib
from pathlib import Path

import h5py
import pooch

from sims_kit.datasets.registry import DataFile
from sims_kit.errors import FetchError
from sims_kit.progress import is_switched_on, progress_bar
from sims_kit.text import warn

LARGEST = 2**36  # bytes of a file whose size is not published: an answer may have no end


def fetch(dataset: str, folder: str, file: DataFile, *, alternatives: tuple[str, ...] = ()) -> Path:
    """Path of a dataset's file in the cache, downloaded first when it is not there.

    A file in the cache, also one packed as ``<file>.gz``, is checked each time, and never changed or removed. A
    `FetchError` gives the reason, and the commands that put the file there by hand.
    """
    path = cached_path(folder, file)
    try:
        if not path.exists():
            _download(file, path)
        digest = checked_hash(file, path)
    except ValueError as error:
        place, *urls = map(shlex.quote, (str(path.with_name(file.name)), *file.urls))
        raise FetchError(
            f"{dataset}: {error}.\n"
            "A file in the cache is never replaced: move a wrong one away. By hand, on any machine with a network:\n"
            f"  curl -L --fail -C - --create-dirs -o {place} {urls[0]}\n"
            + "".join(f"    # or from {url}\n" for url in urls[1:])
            + f"  sha256sum {place}   # expected: {file.sha256 or 'not published'}"
            + f"\nThe same cells are also in: {', '.join(alternatives)}." * bool(alternatives)
        ) from error
    if file.sha256 is None:
        warn(f"{dataset}: No SHA-256 of {file.name} is published, so it was not checked. It has SHA-256 {digest}.")
    return path


def cached_path(folder: str, file: DataFile) -> Path:
    """Where a file lies in the cache (`SIMS_KIT_DATA` or else the user's), perhaps as ``<file>.gz``, or would lie."""
    cache = Path(os.environ.get("SIMS_KIT_DATA") or pooch.os_cache("sims_kit"))
    path = cache.expanduser().resolve() / folder / file.name
    packed = path.with_name(f"{file.name}.gz")
    return packed if packed.exists() and not path.exists() else path


def checked_hash(file: DataFile, path: Path) -> str:
    """The SHA-256 of a file, or of its content where it is packed; `ValueError` says why it is not the right file."""
    try:
        if not path.is_file():
            raise OSError("it is a folder, pipe or device")
        with gzip.open(path) if path.name == f"{file.name}.gz" else path.open("rb") as opened:
            digest, size = hashlib.file_digest(opened, "sha256").hexdigest(), opened.tell()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read ({error})") from error
    for kind, value, expected in (("SHA-256", digest, file.sha256), ("size", size, file.size)):
        if expected not in (None, value):
            raise ValueError(f"{path} has {kind} {value}, expected {expected}: it is damaged or of another version")
    return digest


def _download(file: DataFile, path: Path) -> None:
    """Download from the first address that delivers; the file appears complete and checked, or not at all."""
    if is_switched_on("SIMS_KIT_OFFLINE"):
        raise ValueError(f"{path} is not in the cache, and SIMS_KIT_OFFLINE forbids the network")
    reasons = []
    for url in file.urls:
        store = pooch.Pooch(path.parent, "", {file.name: file.sha256}, {file.name: url}, retry_if_failed=2)
        try:
            store.fetch(file.name, downloader=lambda url, output, _: _receive(url, Path(output), file))
            return
        except (ValueError, OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:  # of answers and of the disk
            reasons.append(f"\n  {url}\n    {type(error).__name__}: {error}")
    raise ValueError(f"{path} could not be downloaded{''.join(reasons)}\nSIMS_KIT_DATA can name another folder")


def _receive(url: str, output: Path, file: DataFile) -> None:
    """Download one address to pooch's temporary file, and refuse what cannot be the file or all of it."""
    options = dict(timeout=(10, 30), headers={"Accept-Encoding": "identity"}, hooks={"response": _as_sent})
    bar = progress_bar(total=1, desc=file.name, unit="B", unit_scale=True, bar_format=None)
    with bar, _Bounded(output.open("wb", buffering=0)) as opened:
        opened.most = file.size or min(LARGEST, shutil.disk_usage(output.parent).free // 2)
        pooch.HTTPDownloader(bar, 2**18, **options)(url, opened, None)
    with output.open("rb") as opened:
        start = opened.read(512).strip()
    if not start or start.lower().startswith((b"<!doctype html", b"<html")):
        raise ValueError("the answer is a web page (HTML), not data" if start else "the answer is empty")
    if file.size not in (None, size := output.stat().st_size):
        raise ValueError(f"the answer has {size:,} bytes, expected {file.size:,}")
    if file.sha256 is None and start.startswith(b"\x1f\x8b"):  # read to its end, which says whether it is whole
        with gzip.open(output) as packed:
            hashlib.file_digest(packed, "md5")
    elif file.sha256 is None and start.startswith(b"PK") and (damaged := zipfile.ZipFile(output).testzip()):
        raise ValueError(f"the answer is an archive with a damaged {damaged}")
    elif file.sha256 is None and start.startswith(b"\x89HDF"):
        h5py.File(output, "r").close()  # it knows its length
    output.chmod(0o644)  # others may read a shared cache; pooch's temporary files are private


class _Bounded(io.BufferedWriter):
    """A file that does not grow beyond `most` bytes."""

    most = 0

    def write(self, data: bytes) -> int:
        if self.tell() + len(data) > self.most:
            raise ValueError(f"the answer has more than {self.most:,} bytes")
        return super().write(data)


def _as_sent(response, **_):
    """Refuse an answer that is not the file, such as 202, keep a packed file packed, and read no page of a redirect."""
    if response.is_redirect:
        response.close()  # it may have no end
    elif response.status_code != 200:
        raise ValueError(f"the answer has status {response.status_code} {response.reason}, not 200")
    response.raw.headers.pop("Content-Encoding", None)

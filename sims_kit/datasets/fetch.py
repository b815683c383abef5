"""Files of the registry: taken from the cache, or downloaded into it, and checked by hash either way."""

import os
import shlex
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pooch
import requests
from filelock import Timeout
from tqdm import tqdm
from urllib3.exceptions import HTTPError as BrokenBody

from sims_kit.datasets.checksums import LOCK_FILE, file_hash, lock_of, pin, pinned_hash
from sims_kit.datasets.download import TIMEOUT, Downloader, plain_problem
from sims_kit.datasets.registry import DataFile
from sims_kit.errors import FetchError
from sims_kit.files import written_whole
from sims_kit.progress import is_switched_on

RETRIES = 2  # after the first attempt, per address; pooch waits 1 s, then 2 s


def cache_folder() -> Path:
    """The download cache: `SIMS_KIT_DATA`, or the operating system's cache folder for sims_kit."""
    named = os.environ.get("SIMS_KIT_DATA")
    return Path(named).expanduser().resolve() if named else Path(pooch.os_cache("sims_kit"))


def is_offline() -> bool:
    """Whether `SIMS_KIT_OFFLINE` forbids the network."""
    return is_switched_on("SIMS_KIT_OFFLINE")


def fetch(dataset: str, folder: str, file: DataFile, *, alternatives: Sequence[str] = ()) -> Path:
    """Path of a dataset's file in the cache, downloaded first when it is not there.

    A file that is there has its SHA-256 checked each time and is never changed or removed: a wrong one is
    the user's to look at. A cache without write permission serves as long as it holds the files.

    A download that was interrupted leaves `<file>.part`, and the next one goes on from there. The file itself
    appears at once, complete and checked; of several processes that want it, one downloads and the others wait.

    Parameters
    ----------
    dataset
        The name of the dataset, for messages.
    folder
        The folder inside the cache.
    file
        The file's entry in the registry; its addresses are tried in order.
    alternatives
        Names of datasets with the same cells, offered when the file cannot be had.

    Raises
    ------
    FetchError
        The file is there but is not the published one, or cannot be had. The message names the dataset, the
        addresses, the place in the cache, the reason, and how to put the file there by hand.

    Warns
    -----
    UserWarning
        The registry does not know the hash: that of the file as it is now is pinned in `SHA256SUMS` in the cache,
        and compared ever after.
    """
    path = cache_folder() / folder / file.name
    is_there = path.exists()
    if not is_there and is_offline():
        raise FetchError(
            f"{dataset}: {file.name} is not in the cache ({path}), and SIMS_KIT_OFFLINE forbids the network. "
            "Unset SIMS_KIT_OFFLINE, point SIMS_KIT_DATA at a cache that holds the file, or place it by hand.\n"
            + _ways_out(folder, file, path, alternatives)
        )
    if is_there or not _download(dataset, folder, file, path, alternatives):
        _check(dataset, folder, file, path)
    if known_hash(folder, file) is None:
        _pin(dataset, folder, file, path)
    return path


def fetch_fresh(url: str, folder: str, name: str, *, most: int) -> Path:
    """Path of a small file that may change at its address: downloaded each time, else the copy of the last time.

    Parameters
    ----------
    url
        Its address.
    folder, name
        Where the copy lies in the cache.
    most
        Bytes; a longer answer is refused.

    Raises
    ------
    FetchError
        The file cannot be had and there is no copy, or the answer is too long.

    Warns
    -----
    UserWarning
        The address cannot be reached; the copy is used.
    """
    path = cache_folder() / folder / name
    if is_offline() and path.exists():
        return path
    if is_offline():
        raise FetchError(f"{url} is not in the cache ({path}), and SIMS_KIT_OFFLINE forbids the network.")
    try:
        with requests.get(url, stream=True, timeout=TIMEOUT) as response:
            response.raise_for_status()
            content = response.raw.read(most + 1, decode_content=True)
    except (requests.RequestException, BrokenBody) as error:
        if not path.exists():
            raise FetchError(f"{url} could not be downloaded: {error}. Check the address and the network.") from error
        warnings.warn(f"{url} cannot be reached ({type(error).__name__}); using the copy {path}.", stacklevel=3)
        return path
    if len(content) > most:
        raise FetchError(f"{url} answers with more than {most:,} bytes: it is not the file that was expected.")
    with written_whole(path) as part:
        part.write_bytes(content)
    return path


def known_hash(folder: str, file: DataFile) -> str | None:
    """The SHA-256 that a file must have: the registry's, else the one pinned in the cache's `SHA256SUMS`, else None.

    Raises
    ------
    FetchError
        `SHA256SUMS` is damaged.
    """
    return file.sha256 or pinned_hash(cache_folder(), f"{folder}/{file.name}")


def _check(dataset: str, folder: str, file: DataFile, path: Path) -> None:
    """Refuse a file in the cache that is not the published or pinned one."""
    if wrong := problem(folder, file, path):
        raise FetchError(
            f"{dataset}: the file {path} {wrong}. It was left as it is. "
            f"Move it away and load again, or replace it.\n{_ways_out(folder, file, path)}"
        )


def _download(dataset: str, folder: str, file: DataFile, path: Path, alternatives: Sequence[str]) -> bool:
    """Download from the first address that delivers. False if another process did so meanwhile."""
    reasons = []
    try:
        with _alone(folder, file):
            if path.exists():
                return False
            for url in file.urls:
                try:
                    _download_from(url, folder, file, path)
                    return True
                except (ValueError, OSError) as error:  # pooch's own, and those of requests and of the file system
                    reasons.append((url, error))
                    if not isinstance(error, ValueError | requests.RequestException):
                        break  # no other address mends the disk
    except OSError as error:  # the lock cannot be had
        reasons.append((path.parent, error))
    told = "\n".join(f"  {where}\n    {type(error).__name__}: {error}" for where, error in reasons)
    if not isinstance(reasons[-1][1], ValueError | requests.RequestException):
        told += "\nThe environment variable SIMS_KIT_DATA can name a folder on another disk, or one of your own."
    part = _part(path)
    if part.exists() and (kept := part.stat().st_size):
        told += f"\n{tqdm.format_sizeof(kept, 'B')} are kept in {part}: to go on from there, load again."
    raise FetchError(
        f"{dataset}: {file.name} could not be downloaded to {path}.\n{told}\n"
        f"{_ways_out(folder, file, path, alternatives)}"
    ) from reasons[-1][1]


def _download_from(url: str, folder: str, file: DataFile, path: Path) -> None:
    """Download into the part beside `path`, check it, then move it into place."""
    downloader = Downloader(
        _part(path),
        lambda complete: problem(folder, file, complete),
        size=file.size,
        hash_known=known_hash(folder, file) is not None,
    )
    # The registry's hash stays with the downloader: pooch would compare it where a killed process loses the file.
    store = pooch.Pooch(
        path.parent, base_url="", registry={file.name: None}, urls={file.name: url}, retry_if_failed=RETRIES
    )
    store.fetch(file.name, downloader=downloader)


def _part(path: Path) -> Path:
    """Where the bytes of an unfinished download lie."""
    return path.with_name(f"{path.name}.part")


@contextmanager
def _alone(folder: str, file: DataFile) -> Iterator[None]:
    """Keep other processes from downloading the same file; wait if one is at it."""
    lock = lock_of(cache_folder(), f"{folder}.{file.name}")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        pooch.get_logger().info("Waiting for another process that downloads '%s'.", file.name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def problem(folder: str, file: DataFile, path: Path) -> str | None:
    """What is wrong with a complete file at `path`, as far as size and hash are known."""
    if plain := plain_problem(path):
        return plain
    size, expected = path.stat().st_size, known_hash(folder, file)
    sizes = f"{size:,} bytes instead of {file.size:,}" if file.size not in (None, size) else ""
    if expected is None:
        return f"has {sizes}: it is damaged or of another version" if sizes else None
    found = file_hash(path)
    if found == expected:
        return None
    sizes = f" ({sizes})" if sizes else ""
    if file.sha256:
        return f"has SHA-256 {found}, expected {expected}{sizes}: it is damaged or of another version"
    return (
        f"has SHA-256 {found}, expected {expected}{sizes}, which was pinned in {cache_folder() / LOCK_FILE} at the "
        "first use: it is damaged or of another version. If the new one is meant, remove its line there"
    )


def _pin(dataset: str, folder: str, file: DataFile, path: Path) -> None:
    """Pin a file's hash, and say so."""
    found, lock_file = file_hash(path), cache_folder() / LOCK_FILE
    try:
        pin(cache_folder(), f"{folder}/{file.name}", found)
        told = f"It is pinned in {lock_file} and compared from now on."
    except OSError as error:
        told = f"It cannot be pinned in {lock_file} ({error.strerror}): a change of the file would not be noticed."
    warnings.warn(f"{dataset}: no SHA-256 of {file.name} is published. Found: {found}. {told}", stacklevel=3)


def _ways_out(folder: str, file: DataFile, path: Path, alternatives: Sequence[str] = ()) -> str:
    """The lines that put the file into the cache without sims_kit, and the names of datasets that may serve instead."""
    place, first, *others = map(shlex.quote, (str(path), *file.urls))
    lines = [
        "By hand, on any machine with a network:",
        f"  curl -L --fail --create-dirs -o {place} {first}",
        *(f"    # or from {url}" for url in others),
        f"  sha256sum {place}   # expected: {known_hash(folder, file) or 'not known yet'}",
    ]
    if alternatives:
        lines.append(f"The same cells are also in: {', '.join(map(repr, alternatives))}.")
    return "\n".join(lines)

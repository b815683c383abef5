"""Files of the registry: taken from the cache, or downloaded into it, and checked by hash either way."""

import os
import shlex
import sys
from pathlib import Path

import pooch

from sims_kit.datasets.registry import DataFile
from sims_kit.errors import FetchError

RETRIES = 2  # after the first attempt, per address; pooch waits 1 s, then 2 s
HTML_STARTS = (b"<!doctype html", b"<html")  # how an error page begins, in small letters


def cache_folder() -> Path:
    """The download cache: `SIMS_KIT_DATA`, or the operating system's cache folder for sims_kit."""
    named = os.environ.get("SIMS_KIT_DATA")
    return Path(named).expanduser().resolve() if named else Path(pooch.os_cache("sims_kit"))


def is_offline() -> bool:
    """Whether `SIMS_KIT_OFFLINE` forbids the network."""
    return os.environ.get("SIMS_KIT_OFFLINE", "").strip().lower() not in ("", "0", "false", "no")


def fetch(dataset: str, folder: str, file: DataFile) -> Path:
    """Path of a dataset's file in the cache, downloaded first when it is not there.

    A file that is there has its SHA-256 checked each time and is never changed or removed: a wrong one is
    the user's to look at. A cache without write permission serves as long as it holds the files.

    Parameters
    ----------
    dataset
        The name of the dataset, for messages.
    folder
        The folder inside the cache.
    file
        The file's entry in the registry; its addresses are tried in order.

    Raises
    ------
    FetchError
        The file is there but is not the published one, or cannot be had. The message names the dataset, the
        addresses, the place in the cache, the reason, and how to put the file there by hand.
    """
    path = cache_folder() / folder / file.name
    if path.exists():
        if problem := plain_problem(path) or _wrong_hash(path, file):
            raise FetchError(
                f"{dataset}: the file {path} {problem}. It was left as it is. "
                f"Move it away and load again, or replace it.\n{_by_hand(path, file)}"
            )
        return path
    if is_offline():
        raise FetchError(
            f"{dataset}: {file.name} is not in the cache ({path}), and SIMS_KIT_OFFLINE forbids the network. "
            "Unset SIMS_KIT_OFFLINE, point SIMS_KIT_DATA at a cache that holds the file, or place it by hand.\n"
            + _by_hand(path, file)
        )
    reasons = []
    for url in file.urls:
        try:
            return _download(url, path, file)
        except (ValueError, OSError) as error:  # pooch's own, and those of requests and of the file system
            reasons.append((url, error))
    told = "\n".join(f"  {url}\n    {type(error).__name__}: {error}" for url, error in reasons)
    raise FetchError(
        f"{dataset}: {file.name} could not be downloaded to {path}.\n{told}\n{_by_hand(path, file)}"
    ) from reasons[-1][1]


class _Downloader(pooch.HTTPDownloader):
    """pooch's download, which also recognises an empty answer and an error page."""

    def __call__(self, url, output_file, *args, **options):
        super().__call__(url, output_file, *args, **options)
        if problem := plain_problem(Path(output_file)):
            raise ValueError(f"the answer {problem}")


def _download(url: str, path: Path, file: DataFile) -> Path:
    """Download into a temporary file beside `path`, check it, then move it into place."""
    progressbar = sys.stderr.isatty() and not os.environ.get("CI")  # logs and notebooks stay clean
    store = pooch.Pooch(
        path.parent,
        base_url="",
        registry={file.name: file.sha256},
        urls={file.name: url},
        retry_if_failed=RETRIES,
    )
    store.fetch(file.name, downloader=_Downloader(progressbar=progressbar))
    path.chmod(0o644)  # pooch's temporary files are private; a cache may be shared
    return path


def plain_problem(path: Path) -> str | None:
    """What is plainly wrong with a file, whatever it should hold: it cannot be opened, is empty, or is a web page."""
    try:
        with path.open("rb") as opened:
            start = opened.read(512).lstrip().lower()
    except OSError as error:  # a folder of that name, no permission
        return f"cannot be opened: {error.strerror}"
    if path.stat().st_size == 0:
        return "is empty (0 bytes)"
    if start.startswith(HTML_STARTS):
        return "is a web page (HTML), not data: the server sent an error or a login page"
    return None


def _wrong_hash(path: Path, file: DataFile) -> str | None:
    """How a file's SHA-256 differs from the published one, if it does."""
    if file.sha256 is None:
        return None
    found = pooch.file_hash(str(path))
    if found == file.sha256:
        return None
    size = path.stat().st_size
    sizes = f" ({size:,} bytes instead of {file.size:,})" if file.size not in (None, size) else ""
    return f"has SHA-256 {found}, expected {file.sha256}{sizes}: it is damaged or of another version"


def _by_hand(path: Path, file: DataFile) -> str:
    """The lines that put the file into the cache without sims_kit."""
    place = shlex.quote(str(path))
    return (
        "By hand, on any machine with a network:\n"
        f"  curl -L --fail --create-dirs -o {place} {shlex.quote(file.urls[0])}\n"
        f"  sha256sum {place}   # expected: {file.sha256 or 'not known yet'}"
    )

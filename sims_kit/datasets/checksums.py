"""SHA-256 of the cache's files: computed, and pinned in a lock file where the registry does not know them."""

import hashlib
import os
import re
from pathlib import Path

from filelock import FileLock

from sims_kit.errors import FetchError
from sims_kit.progress import progress_bar

LOCK_FILE = "SHA256SUMS"  # in the cache; `sha256sum -c SHA256SUMS` checks it without sims_kit
BLOCK = 1 << 20  # bytes read at once; larger ones are no faster


def file_hash(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits; with a progress bar where it takes long."""
    digest, block = hashlib.sha256(), memoryview(bytearray(BLOCK))
    with (
        path.open("rb", buffering=0) as opened,
        progress_bar(
            total=path.stat().st_size, desc=f"checking {path.name}", unit="B", unit_scale=True, bar_format=None
        ) as bar,
    ):
        while n_read := opened.readinto(block):
            digest.update(block[:n_read])
            bar.update(n_read)
    return digest.hexdigest()


def pinned_hash(cache: Path, name: str) -> str | None:
    """The hash that the lock file of a cache has for a file.

    Parameters
    ----------
    cache
        The folder of the cache.
    name
        The path of the file inside the cache, with slashes.

    Raises
    ------
    FetchError
        The lock file has a line that is not ``<SHA-256>  <path>``: what it pinned is no longer known.
    """
    path = cache / LOCK_FILE
    for number, line in enumerate(_text(path).splitlines(), start=1):
        match = re.fullmatch(r"([0-9a-fA-F]{64}) [ *](.+)", line)
        if match is None and line.strip():
            raise FetchError(
                f"{path}, line {number}: {line!r} is not '<SHA-256>  <path in the cache>'. "
                "Mend or remove the line; a file without one is pinned anew when it is used next."
            )
        if match and match[2] == name:
            return match[1].lower()
    return None


def pin(cache: Path, name: str, sha256: str) -> None:
    """Add a hash to the lock file of a cache, unless it has one of that file.

    The lock file is replaced at once and by one process at a time, so that no reader sees half of it.

    Raises
    ------
    OSError
        The cache cannot be written.
    """
    with lock_of(cache, LOCK_FILE):
        if pinned_hash(cache, name) is not None:
            return
        path, new = cache / LOCK_FILE, cache / f".{LOCK_FILE}.new"
        text = _text(path)
        with new.open("w", encoding="utf-8", newline="\n") as opened:
            opened.write(f"{text}{'' if text.endswith(chr(10)) or not text else chr(10)}{sha256}  {name}\n")
            opened.flush()
            os.fsync(opened.fileno())
        os.replace(new, path)


def lock_of(cache: Path, name: str) -> FileLock:
    """A lock between processes, which the operating system frees when its holder dies."""
    folder = cache / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / name, mode=0o666)  # whoever may write into a shared cache may also lock


def _text(path: Path) -> str:
    """The lock file's text; empty when there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""

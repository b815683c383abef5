"""Files that appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EDQUOT, EFBIG, ENOSPC
from pathlib import Path
from uuid import uuid4

from sims_kit.errors import SettingError


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, where they are missing; a `SettingError` names a file in the way."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        way = next(place for place in (folder, *folder.parents) if place.exists())
        raise SettingError(f"{str(way)!r} is a file, so {str(folder)!r} cannot be a folder. Name another.") from error


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to, moved to `path` when the block ends without an error.

    A full disk, an error or a power failure leaves an older file of that name as it was. Missing folders are made.
    """
    make_folder(path.parent)
    part = path.with_name(f".{path.name}.{uuid4().hex}.part")
    try:
        yield part
        with part.open("rb+") as written:
            os.fsync(written.fileno())  # on the disk before it replaces the older file
        os.replace(part, path)
    except Exception as error:  # libhdf5 and safetensors say so in errors of their own
        if not (full := [code for code in (ENOSPC, EDQUOT, EFBIG) if os.strerror(code) in str(error)]):
            raise
        raise OSError(full[0], f"{os.strerror(full[0])}. Make room, also for temporary files", str(path)) from error
    finally:
        part.unlink(missing_ok=True)

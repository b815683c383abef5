"""Files that appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EDQUOT, EFBIG, ENOSPC
from pathlib import Path
from stat import S_ISREG
from uuid import uuid4

from sims_kit.errors import SettingError


def file_to_write(name: str | os.PathLike) -> Path:
    """The path of a file to write, its folder made; a `SettingError` names what is in the way."""
    path = Path(name).expanduser()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            if not S_ISREG(path.stat().st_mode):
                raise OSError("it is a folder, pipe or device")
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        files = [f"{str(place)!r} is a file" for place in path.parents if os.path.isfile(place)]
        raise SettingError(f"{str(path)!r} cannot be written: {next(iter(files), error)}. Name another.") from error
    return path


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to, moved to `path` when the block ends without an error.

    A full disk, an error or a power failure leaves an older file of that name as it was. Missing folders are made.
    """
    part = file_to_write(path).with_name(f".{path.name[:40]}.{uuid4().hex}.part")  # no longer than a name may be
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

"""Datasets from the command line, as in `python -m sims_kit.datasets fetch worm-neurons gencode-human`."""

import argparse
import sys
import zipfile
from collections.abc import Sequence

from sims_kit.datasets.fetch import cached_path, checked_hash
from sims_kit.datasets.load import catalogue, prepare
from sims_kit.datasets.registry import DataFile, read_registry
from sims_kit.errors import UnknownNameError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command: 0 when all is well, 1 when something failed; a wrong call exits with 2."""
    parser = argparse.ArgumentParser(prog="python -m sims_kit.datasets", description="List, download, check datasets.")
    parser.add_argument("command", choices=["list", "fetch", "verify"])
    parser.add_argument("names", nargs="*", metavar="NAME", help="of datasets or gene tables; list and verify: all")
    options = parser.parse_args(arguments)
    entries = read_registry().datasets | read_registry().tables
    if unknown := [name for name in options.names if name not in entries]:
        parser.error(str(UnknownNameError("dataset", unknown[0], entries)))
    if options.command == "fetch":
        return max(map(_fetch, options.names)) if options.names else parser.error("fetch needs a NAME; see `list`.")
    sources = {name: entries[name].source for name in options.names or entries}
    places = {name: [(str(source.folder), file) for file in source.files] for name, source in sources.items()}
    if options.command == "verify":  # an archive serves several datasets
        return max([_verify(*place) for place in {place: 0 for of in places.values() for place in of}], default=0)
    table = catalogue()[["tier", "cells", "genes", "classes", "megabytes"]].reindex(list(sources))
    table["in cache"] = [all(cached_path(*place).exists() for place in of) for of in places.values()]
    print(table.to_string(na_rep="?"))
    return 0


def _fetch(name: str) -> int:
    try:
        prepare(name)
    except (OSError, ValueError, zipfile.BadZipFile) as error:  # one that fails does not keep the others back
        print(f"{name}: failed: {str(error).removeprefix(f'{name}: ')}", file=sys.stderr)
        return 1
    print(f"{name}: ready")
    return 0


def _verify(folder: str, file: DataFile) -> int:
    path = cached_path(folder, file)
    try:
        digest = checked_hash(file, path) if path.exists() else None
    except ValueError as error:
        print(f"{path}: {error}", file=sys.stderr)
        return 1
    checked = "right" if file.sha256 else "not checked"
    print(f"{path}: {f'{checked}, SHA-256 {digest}' if digest else 'not in the cache'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

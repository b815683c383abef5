"""Datasets from the command line, as in `python -m sims_kit.datasets fetch worm-neurons gencode-human`."""

import argparse
import sys
import zipfile
from collections.abc import Sequence

from sims_kit.datasets.fetch import cached_path, checked_hash
from sims_kit.datasets.load import catalogue, prepare
from sims_kit.datasets.registry import read_registry
from sims_kit.errors import UnknownNameError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command: 0 when all is well, 1 when something failed; a wrong call exits with 2."""
    parser = argparse.ArgumentParser(prog="python -m sims_kit.datasets", description="List, download, check datasets.")
    parser.add_argument("command", choices=["list", "fetch", "verify"])
    parser.add_argument("names", nargs="*", metavar="NAME", help="of datasets or gene tables; list and verify: all")
    options = parser.parse_args(arguments)
    entries, status = read_registry().datasets | read_registry().tables, 0
    if unknown := [name for name in options.names if name not in entries]:
        parser.error(str(UnknownNameError("dataset", unknown[0], entries)))
    if options.command == "fetch" and not options.names:
        parser.error("fetch needs a NAME; see `list`.")
    sources = {name: entries[name].source for name in options.names or entries}
    files = {name: [(of, cached_path(of_all.folder, of)) for of in of_all.files] for name, of_all in sources.items()}
    if options.command == "list":
        table = catalogue()[["tier", "cells", "genes", "classes", "megabytes"]].reindex(list(sources))
        table["in cache"] = [all(path.exists() for _, path in of) for of in files.values()]
        print(table.to_string(na_rep="?"))
        return 0
    for name, of in files.items():
        try:
            if options.command == "fetch":
                prepare(name)
            there = [(file, path) for file, path in of if path.exists()]
            hashes = [checked_hash(file, path) + " (none is published)" * (not file.sha256) for file, path in there]
            print(f"{name}: {'ready' if len(hashes) == len(of) else 'not in the cache'}", *hashes)
        except (OSError, ValueError, zipfile.BadZipFile) as error:  # one that fails does not keep the others back
            print(f"{name}: failed: {str(error).removeprefix(f'{name}: ')}", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())

"""The datasets from the command line: list them, fetch them ahead of a workshop, verify what is in the cache.

And `shuffle`, a copy of any `.h5ad` with its cells in random order, of any size in bounded memory.

::

    python -m sims_kit.datasets list
    python -m sims_kit.datasets fetch mouse-immune worm-neurons
    python -m sims_kit.datasets fetch --tier small
    python -m sims_kit.datasets verify
    python -m sims_kit.datasets shuffle cells.h5ad shuffled.h5ad
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from sims_kit.datasets.catalogue import megabytes
from sims_kit.datasets.fetch import cache_folder, known_hash, problem
from sims_kit.datasets.load import converted_path, prepare
from sims_kit.datasets.registry import Dataset, read_registry
from sims_kit.datasets.shuffling import shuffle
from sims_kit.errors import DataError, FetchError, SettingError, UnknownNameError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 when all is well, 1 when a dataset failed, 2 for a wrong call."""
    parser = argparse.ArgumentParser(
        prog="python -m sims_kit.datasets",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    list_ = commands.add_parser("list", help="names, sizes, and what is in the cache")
    fetch_ = commands.add_parser("fetch", help="download, check and convert, so that loading needs no network")
    verify_ = commands.add_parser("verify", help="check the hashes of what is in the cache")
    fetch_.add_argument("names", nargs="*", metavar="NAME")
    verify_.add_argument("names", nargs="*", metavar="NAME", help="by default all datasets")
    shuffle_ = commands.add_parser("shuffle", help="copy an .h5ad with its cells in random order")
    shuffle_.add_argument("source", metavar="IN.h5ad")
    shuffle_.add_argument("target", metavar="OUT.h5ad")
    shuffle_.add_argument("--seed", type=int, default=0, help="same seed, same order")
    for command in (list_, fetch_):
        command.add_argument("--tier", choices=["bundled", "simulated", "small", "full"], help="all of this tier")
    options = parser.parse_args(arguments)
    try:
        if options.command == "shuffle":
            return _shuffle(options.source, options.target, options.seed)
        if options.command == "list":
            return _list(_chosen([], options.tier) if options.tier else read_registry().datasets)
        if options.command == "verify":
            return _verify(_chosen(options.names, None) if options.names else read_registry().datasets)
        if not (options.names or options.tier):
            parser.error("fetch needs the name of a dataset, or --tier. `list` shows both.")
        return _fetch(_chosen(options.names, options.tier))
    except UnknownNameError as error:
        parser.error(str(error))


def _chosen(names: Sequence[str], tier: str | None) -> dict[str, Dataset]:
    """The entries of these names, and those of this tier."""
    registry = read_registry()
    of_tier = [name for name, entry in registry.datasets.items() if entry.tier == tier]
    return {name: registry[name] for name in [*names, *of_tier]}


def _list(datasets: dict[str, Dataset]) -> int:
    rows, sizes = [], {}
    for name, entry in datasets.items():
        here = {path: path.stat().st_size for path in _paths(name, entry) if path.exists()}
        sizes |= here  # some datasets share an archive
        to_load = megabytes(entry)
        download = "unknown" if to_load is None else f"{to_load:,.1f} MB" if to_load else "none"
        numbers = ["?" if n is None else f"{n:,}" for n in (entry.cells, entry.genes, entry.classes)]
        ready = "ready" if _is_ready(name, entry) else ""
        rows.append([name, entry.tier, *numbers, download, _size(sum(here.values())) if here else "", ready])
    columns = ["dataset", "tier", "cells", "genes", "classes", "download", "on disk", ""]
    left = {"dataset": lambda name: name.ljust(max(map(len, datasets)))}
    print(pd.DataFrame(rows, columns=columns).to_string(index=False, formatters=left))
    print(f"\n{_size(sum(sizes.values()))} in {cache_folder()}")
    return 0


def _fetch(datasets: dict[str, Dataset]) -> int:
    failed = []
    for name in datasets:
        try:
            paths = prepare(name)
        except (DataError, FetchError) as error:
            failed.append(name)
            print(f"{name}: failed\n{error}", file=sys.stderr)
        else:
            size = sum(path.stat().st_size for path in paths)
            print(f"{name}: ready ({_size(size)})" if paths else f"{name}: ready (nothing to download)")
    if failed:
        print(f"{len(failed)} of {len(datasets)} not ready: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _verify(datasets: dict[str, Dataset]) -> int:
    status = 0
    files = {(entry.source.folder, file) for entry in datasets.values() for file in entry.source.files}
    for folder, file in sorted(files, key=lambda item: (item[0], item[1].name)):
        path = cache_folder() / folder / file.name
        if not path.exists():
            print(f"{path}: not there")
        elif wrong := problem(folder, file, path):
            status = 1
            print(f"{path}: {wrong}", file=sys.stderr)
        elif known_hash(folder, file) is None:
            print(f"{path}: no hash is known yet; it is pinned when the dataset is fetched or loaded")
        else:
            print(f"{path}: right{'' if file.sha256 else ' (as when it was pinned)'}")
    return status


def _shuffle(source: str, target: str, seed: int) -> int:
    try:
        print(f"{shuffle(source, target, seed=seed)}: ready")
    except (DataError, SettingError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _paths(name: str, entry: Dataset) -> list[Path]:
    """Where the files of a dataset lie, converted ones included, there or not."""
    if not entry.source.files:
        return []
    folder = cache_folder() / entry.source.folder
    return [*(folder / file.name for file in entry.source.files), converted_path(name, entry)]


def _is_ready(name: str, entry: Dataset) -> bool:
    """Whether loading needs no network."""
    *published, converted = _paths(name, entry) or [None]
    return converted is None or converted.exists() or all(path.exists() for path in published)


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:,.2f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:,.1f} MB"


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):  # a reader that stops early, such as head, is no error
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())

"""What a DataModule may be asked for, and how it names cells."""

import os
from collections.abc import Mapping
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from anndata import AnnData

from sims_kit.cells.splits import check_shares
from sims_kit.errors import LabelError, SettingError

if TYPE_CHECKING:
    from sims_kit.cells.datamodule import DataModule

HOW = ("intersection", "union")
ORIENTATIONS = ("cells_by_genes", "genes_by_cells")


def check_settings(module: "DataModule") -> None:
    """Refuse arguments of a `DataModule` that cannot be, before any file is read; raises what it raises."""
    n_files = len(module.datafiles)
    wrong_types = [
        type(item).__name__ for item in module.datafiles if not isinstance(item, str | os.PathLike | AnnData)
    ]
    no_mappings = [columns for columns in (module.keep, module.drop) if not isinstance(columns or {}, Mapping)]
    check_shares(module.validation, module.test)
    for wrong, message in (
        (not n_files, "datafiles is empty: give at least one path or AnnData."),
        (wrong_types, f"datafiles holds {wrong_types}: each entry must be a path or an AnnData."),
        (
            not _whole(module.batch_size, 2),
            f"batch_size={module.batch_size!r}: give a whole number, 2 or more.",
        ),
        (not _whole(module.seed, 0), f"seed={module.seed!r}: give a whole number, 0 or more."),
        (not _whole(module.num_workers, 0), f"num_workers={module.num_workers!r}: give 0 or more processes."),
        (no_mappings, f"keep={module.keep}, drop={module.drop}: give columns and values, {{'cell_number': [1]}}."),
        (
            not isinstance(module.class_label, str | None),
            f"class_label={module.class_label!r}: give the name of one column, as text.",
        ),
        (
            module.backed not in (True, False, "auto"),
            f'backed={module.backed!r}: choose True (cells stay on disk), False (in memory) or "auto".',
        ),
        (
            module.backed is True and "genes_by_cells" in module.orientations,
            'backed=True reads cell by cell, but orientation="genes_by_cells" has genes in rows: leave backed out.',
        ),
        (
            not _whole(module.block_size, 1) or not _whole(module.buffer_size, 1),
            f"block_size={module.block_size!r}, buffer_size={module.buffer_size!r}: give whole numbers of cells.",
        ),
        (module.how not in HOW, f"genes={module.how!r}: choose one of {HOW}."),
        (
            len(module.orientations) != n_files or not set(module.orientations) <= set(ORIENTATIONS),
            f"orientation={module.orientations}: choose one of {ORIENTATIONS}, or one for each datafile.",
        ),
    ):
        if wrong:
            raise SettingError(message)
    if len(module.labelfiles) != n_files:
        raise LabelError(
            f"There are {len(module.labelfiles)} labelfiles for {n_files} datafiles. Give one for each, "
            "None where the labels are in obs."
        )
    paths = [path for path in [*module.datafiles, *module.labelfiles] if isinstance(path, str | os.PathLike)]
    missing = [os.fspath(path) for path in paths if not Path(path).exists()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(paths)} files do not exist: {', '.join(missing)}. Check the paths; "
            "a dataset of the registry is given as sims_kit.load(name)."
        )


def _whole(value, least: int) -> bool:
    return isinstance(value, Integral) and value >= least


def listed(value) -> list:
    """One entry or several as a list, ``~`` in paths written out."""
    items = value if isinstance(value, list | tuple) else [value]
    return [Path(os.path.expanduser(item)) if isinstance(item, str | os.PathLike) else item for item in items]


def unique_names(names: list[list[str]]) -> list[str]:
    """Names of all files' cells, told apart by the file's number where files share names."""
    joined = [name for of_file in names for name in of_file]
    if len(names) == 1 or not pd.Index(joined).has_duplicates:
        return joined
    return [f"{name}-{i}" for i, of_file in enumerate(names) for name in of_file]

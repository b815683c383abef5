"""Sweeps: many runs, each a small table that is stored as soon as it is known, so that a restart goes on.

On a cluster, each job of an array takes its part of the same sweep and writes into the same folder.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd
from joblib import Parallel, delayed

from sims_kit.errors import SettingError
from sims_kit.progress import progress_bar
from sims_kit.studies.store import slug


def sweep(
    runs: Sequence[Mapping],
    run: Callable[..., pd.DataFrame],
    folder: str | os.PathLike | None = None,
    *,
    fingerprint: str = "",
    n_jobs: int = 1,
    part: tuple[int, int] = (0, 1),
    desc: str = "runs",
    text: Sequence[str] = (),
) -> pd.DataFrame:
    """Call `run` with each of `runs` and join the tables that it returns.

    A run whose table lies in `folder` already, for the same arguments and fingerprint, is read instead. Tables appear
    whole or not at all, so that a stop at any moment loses no more than the runs that were under way.

    Parameters
    ----------
    runs
        Keyword arguments of each run, text and numbers; the columns that come first in the result.
    run
        Takes them and returns one row per observation. With `n_jobs` above 1 it must be one that can be pickled.
    folder
        Where tables are kept, one CSV file per run; None keeps nothing.
    fingerprint
        Of whatever else the result depends on: cells, settings, versions. Another one means another run.
    n_jobs
        Processes at the same time.
    part
        ``(i, n)``: only every n-th run, from the i-th, for the i-th job of an array of n. What other jobs have stored
        by now is in the result, too.
    desc
        What the progress bar calls the sweep.
    text
        Columns that hold text, also where it looks like numbers: a donor "01" stays so when a table is read.

    Returns
    -------
    DataFrame
        The tables in the order of `runs`.

    Raises
    ------
    SettingError
        If two runs have the same arguments, `part` or `n_jobs` is out of range, or there are more parts than runs.
    """
    i, n = part
    if not 0 <= i < n:
        raise SettingError(f"part={part}: give (i, n) with i from 0 to n - 1.")
    if n_jobs < 1:
        raise SettingError(f"n_jobs={n_jobs}: give 1 or more processes.")
    if n > max(1, len(runs)):
        raise SettingError(f"part={part}, but there are {len(runs)} runs; share them among {len(runs)} jobs or fewer.")
    keys = [_key(arguments, fingerprint) for arguments in runs]
    if len(set(keys)) < len(keys):
        raise SettingError("Two runs of the sweep have the same arguments; give each once.")
    folder = None if folder is None else Path(folder)
    tables = {key: table for key in keys if (table := _read(folder, key, text)) is not None}
    todo = [(key, runs[j]) for j, key in enumerate(keys) if j % n == i and key not in tables]
    jobs = (delayed(_run)(key, arguments, run, folder, text) for key, arguments in todo)
    bar = progress_bar(total=len(keys), initial=len(tables), desc=desc, unit="run", leave=True)
    with bar:
        for key, table in Parallel(n_jobs, return_as="generator_unordered")(jobs):
            tables[key] = table
            bar.update()
    return pd.concat([tables[key] for key in keys if key in tables], ignore_index=True)


def _run(
    key: str, arguments: Mapping, run: Callable, folder: Path | None, text: Sequence[str]
) -> tuple[str, pd.DataFrame]:
    table = run(**arguments)
    table = pd.concat([pd.DataFrame(dict(arguments), index=table.index), table], axis=1)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f".{key}.{os.getpid()}"
        table.to_csv(part, index=False)
        os.replace(part, folder / f"{key}.csv")
        table = _read(folder, key, text)  # the same types as a later call will see
    return key, table


def _read(folder: Path | None, key: str, text: Sequence[str]) -> pd.DataFrame | None:
    if folder is None or not (folder / f"{key}.csv").exists():
        return None
    return pd.read_csv(folder / f"{key}.csv", keep_default_na=False, na_values=[""], dtype=dict.fromkeys(text, str))


def _key(arguments: Mapping, fingerprint: str) -> str:
    """A file name that people can read, and that no other arguments or fingerprint have."""
    text = json.dumps([dict(arguments), fingerprint], sort_keys=True, default=str)
    name = slug("-".join(str(value) for value in arguments.values()))[:80]
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"

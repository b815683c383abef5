"""Every method on the same folds, each in a process of its own; rows on disk, so that a restart goes on.

The protocol of Abdelaal et al. (Genome Biology 2019): classes of 10 cells or fewer left out, stratified folds,
predictions of all folds pooled and then scored, the percentage of rejected cells beside every score.
"""

import pickle
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
from anndata import AnnData

from sims_kit.errors import DataError, SettingError
from sims_kit.progress import progress_bar
from sims_kit.studies import scores
from sims_kit.studies.adaptor import Peer
from sims_kit.studies.peers import PEERS, make_peer
from sims_kit.studies.store import Job, Processes, Store, new_row
from sims_kit.studies.tasks import TASKS, Folds, Task, as_task


@dataclass(frozen=True)
class Benchmark:
    """What a benchmark found, as tables.

    Attributes
    ----------
    rows
        One row per task, method and fold: ``status`` (``done``; ``cannot``, ``failed``, ``timeout`` with a
        ``reason``), scores of the fold, ``fit_seconds``, ``predict_seconds`` (of the clock), ``cpu_seconds`` (of
        both), ``peak_memory_mb``, sizes, versions.
    scores
        One row per task and method, of the pooled folds: ``n_cells``, ``n_classes``, ``accuracy``, ``macro_f1``,
        ``median_f1``, ``unlabelled_percent``, ``calibration_error``, each with ``_low`` and ``_high`` (95 %
        bootstrap interval over cells); mean ``fit_seconds_per_fold``, ``predict_seconds_per_fold`` and
        ``cpu_seconds_per_fold``, largest ``peak_memory_mb``. A method that does not have every fold has no score,
        and a ``reason``.
    differences
        `against` minus each other method, paired by cell: ``task``, ``method``, ``score``, ``difference``, ``low``,
        ``high``. Empty where `against` has no score.
    classes
        ``task``, ``method``, ``class``, ``n_cells``, ``recall``: how rare classes fare.
    """

    rows: pd.DataFrame
    scores: pd.DataFrame
    differences: pd.DataFrame
    classes: pd.DataFrame


def benchmark(
    tasks: str | AnnData | Task | Sequence = tuple(TASKS),
    methods: str | Peer | Sequence = tuple(PEERS),
    *,
    label: str | None = None,
    folder: str | PathLike = "results/benchmark",
    n_folds: int = 5,
    seed: int = 0,
    n_jobs: int = 1,
    timeout_minutes: float = 120,
    against: str = "SIMS, default",
    n_bootstrap: int = 1000,
) -> Benchmark:
    """Compare methods on the same folds, in cells that they have not seen.

    What is in `folder` already, from the same cells, folds, settings and versions, is not run again; what was run with
    others is run anew, and said. Failed rows are tried again.

    Parameters
    ----------
    tasks
        Names of `TASKS`, datasets of the registry, AnnData, or `Task`; one or several.
    methods
        Names of `PEERS`, or objects that follow the protocol `Peer` and can be pickled; one or several.
    label
        The `obs` column with the labels, for AnnData.
    folder
        Takes ``rows.csv``, the predictions of each cell, and logs of what failed.
    n_folds, seed
        Of stratified and grouped folds; the seed is also that of the methods.
    n_jobs
        Processes at the same time, of one thread each. With more than there are free cores, only CPU seconds stay true.
    timeout_minutes
        After which a method on one fold is stopped; its row says so.
    against
        The method that all others are compared with.
    n_bootstrap
        Samples behind each interval.

    Raises
    ------
    UnknownNameError
        If there is no such task, method or column.
    SettingError
        If the label is not known, a setting is out of range, or another benchmark is writing into `folder`.
    LabelError
        If fewer than two classes have more than 10 cells.
    """
    if n_jobs < 1 or timeout_minutes <= 0:
        raise SettingError(f"n_jobs={n_jobs}, timeout_minutes={timeout_minutes}: both must be above 0, n_jobs whole.")
    chosen = [as_task(task, label) for task in _listed(tasks)]
    peers = [make_peer(method) if isinstance(method, str) else method for method in _listed(methods)]
    _check_different("tasks", [task.name for task in chosen])
    _check_different("methods", [peer.name for peer in peers])
    for peer in peers:
        _check_pickles(peer)
    store = Store(Path(folder))
    with store.locked(), Processes(timeout_minutes * 60) as processes:
        for task in chosen:
            folds = Folds(task, n_folds, seed)
            if folds.left_out:
                left_out = ", ".join(f"{name} ({n})" for name, n in folds.left_out.items())
                print(f"{task.name}: left out, with 10 cells or fewer, or no label: {left_out}.")
            _run_task(folds, peers, store, processes, n_jobs, seed)
    return read_benchmark(
        folder,
        tasks=[task.name for task in chosen],
        methods=[peer.name for peer in peers],
        against=against,
        n_bootstrap=n_bootstrap,
    )


def _run_task(folds: Folds, peers: Sequence[Peer], store: Store, processes: Processes, n_jobs: int, seed: int) -> None:
    """Run what the store lacks of one task, and store each row as soon as it is known."""
    wanted = [new_row(folds, number, peer, seed) for number in range(len(folds)) for peer in peers]
    todo = [row for row in wanted if not store.has(row, processes.timeout_seconds)]
    if stale := store.stale(todo):
        print(f"{folds.task.name}: run anew, since cells, folds, settings or versions changed: {', '.join(stale)}.")
    by_name = {peer.name: peer for peer in peers}
    bar = progress_bar(total=len(wanted), initial=len(wanted) - len(todo), desc=folds.task.name, unit="run", leave=True)
    with bar, TemporaryDirectory(prefix="sims_kit_") as temporary, ThreadPoolExecutor(n_jobs) as pool:
        truth = {}
        for number in sorted({row["fold"] for row in todo}):
            fold = folds[number]
            fold.reference.write_h5ad(Path(temporary, f"reference_{number}.h5ad"))
            fold.query.write_h5ad(Path(temporary, f"query_{number}.h5ad"))
            truth[number] = pd.DataFrame({"cell": fold.query.obs_names.astype(int), "truth": fold.truth})
        jobs = [Job(row, by_name[row["method"]], Path(temporary), store.logs) for row in todo]
        futures = {pool.submit(processes.run, job): job.row for job in jobs}
        try:
            for future in as_completed(futures):
                row, predictions = futures[future], None
                result, found = future.result()
                if found is not None:
                    predictions = pd.concat([truth[row["fold"]], found], axis=1)
                    fold_scores = scores.score_cells(predictions).round(4)
                    result |= {f"fold_{name}": value for name, value in fold_scores.items()}
                store.add(row | result, predictions)
                bar.set_postfix_str(f"{row['method']} {result.get('fold_accuracy', result['status'])}", refresh=False)
                bar.update()
        except BaseException:  # an interruption too: nothing may go on running behind the caller's back
            pool.shutdown(wait=False, cancel_futures=True)
            processes.stop()
            raise


def read_benchmark(
    folder: str | PathLike,
    *,
    tasks: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    against: str = "SIMS, default",
    n_bootstrap: int = 1000,
) -> Benchmark:
    """The tables of what a folder holds, without running anything.

    Parameters
    ----------
    folder, against, n_bootstrap
        As in `benchmark`.
    tasks, methods
        Names to choose, in the order of the tables; None for all.

    Raises
    ------
    DataError
        If the folder holds no rows of these tasks and methods.
    """
    store = Store(Path(folder))
    rows = store.rows
    tasks = list(rows["task"].unique()) if tasks is None else list(tasks)
    methods = list(rows["method"].unique()) if methods is None else list(methods)
    rows = rows[rows["task"].isin(tasks) & rows["method"].isin(methods)]
    if not len(rows):
        raise DataError(f"{folder} holds no rows of these tasks and methods. Run sims_kit.studies.benchmark first.")
    tables: dict[str, list] = {"scores": [], "differences": [], "classes": []}
    for task in [task for task in tasks if (rows["task"] == task).any()]:
        of_task = rows[rows["task"] == task]
        reasons = {method: _unfit(of_task, method) for method in methods}
        cells = {method: store.predictions(task, method) for method, reason in reasons.items() if not reason}
        replicates = scores.bootstrap(cells, n_bootstrap) if cells else {}
        for method in methods:
            found = _summary(of_task, cells[method], replicates[method]) if method in cells else {}
            tables["scores"].append({"task": task, "method": method, **found, "reason": reasons[method]})
            if method in cells:
                tables["classes"].append(scores.recall_by_class(cells[method]).assign(task=task, method=method))
        if against in cells:
            tables["differences"].append(scores.paired_differences(cells, replicates, against).assign(task=task))
    return Benchmark(
        rows.reset_index(drop=True),
        pd.DataFrame(tables["scores"]),
        _joined(tables["differences"], ["task", "method", "score", "difference", "low", "high"]),
        _joined(tables["classes"], ["task", "method", "class", "n_cells", "recall"]),
    )


def _unfit(of_task: pd.DataFrame, method: str) -> str:
    """Why a method has no score on a task; nothing where it has one."""
    newest = of_task["task_fingerprint"].iloc[-1]  # rows are in the order in which they were run
    rows = of_task[(of_task["method"] == method) & (of_task["task_fingerprint"] == newest)]
    bad = rows[rows["status"] != "done"]
    if len(bad):
        first = bad.iloc[0]
        return f"{first['status']}: {first['reason']}"
    if len(rows) < of_task["n_folds"].iloc[-1]:
        return f"not run on all folds ({len(rows)} of {of_task['n_folds'].iloc[-1]})"
    if rows["method_fingerprint"].nunique() > 1:
        return "its folds were run with different settings or versions; run it again"
    return ""


def _summary(of_task: pd.DataFrame, cells: pd.DataFrame, replicates: pd.DataFrame) -> dict:
    rows = of_task[of_task["method"] == cells.attrs["method"]]
    return {
        "n_cells": len(cells),
        "n_classes": cells["truth"].nunique(),
        **scores.with_intervals(cells, replicates),
        "fit_seconds_per_fold": rows["fit_seconds"].mean(),
        "predict_seconds_per_fold": rows["predict_seconds"].mean(),
        "cpu_seconds_per_fold": rows["cpu_seconds"].mean(),
        "peak_memory_mb": rows["peak_memory_mb"].max(),
    }


def _joined(tables: list[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    return pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)


def _listed(value) -> list:
    return list(value) if isinstance(value, list | tuple) else [value]


def _check_pickles(peer: Peer) -> None:
    """Refuse a peer that cannot be sent to a process of its own, before anything is run."""
    try:
        pickle.dumps(peer)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise SettingError(
            f"The method {peer.name!r} cannot be sent to a process of its own ({error}). Define its class "
            "and functions in a module that can be imported."
        ) from error


def _check_different(what: str, names: list[str]) -> None:
    if len(set(names)) < len(names) or not names:
        raise SettingError(f"The {what} need names of their own, one or more: found {names}.")

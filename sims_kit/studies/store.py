"""What a benchmark leaves on disk, and the processes that it runs.

``rows.csv`` has one row per task, method and fold, ``predictions/<task>/<method>.csv.gz`` one line per cell. Both are
replaced whole, so that a stop at any moment leaves files that can be read. A row carries two fingerprints: of the
cells and folds, and of the method's settings and versions.
"""

import hashlib
import json
import os
import pickle
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

from sims_kit.errors import DataError, SettingError
from sims_kit.studies.adaptor import Peer
from sims_kit.studies.peers import versions_of
from sims_kit.studies.tasks import Folds

KEY = ["task", "method", "fold"]
COLUMNS = [
    *KEY,
    *("status", "reason", "fold_accuracy", "fold_macro_f1", "fold_median_f1", "fold_unlabelled_percent"),
    *("fold_calibration_error", "fit_seconds", "predict_seconds", "cpu_seconds", "peak_memory_mb", "timeout_seconds"),
    *("n_folds", "n_reference_cells", "n_query_cells", "n_classes", "seed"),
    *("task_fingerprint", "method_fingerprint", "versions", "machine"),
]
ONE_THREAD = dict.fromkeys(  # so that seconds are comparable, and several processes do not fight for the cores
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"
)


def new_row(folds: Folds, number: int, peer: Peer, seed: int) -> dict:
    """What is known of a row before it is run."""
    settings = hashlib.sha256(f"{peer.name}\n{peer.settings}\n{versions_of(peer)}\n{seed}".encode())
    return {
        "task": folds.task.name,
        "method": peer.name,
        "fold": number,
        "n_folds": len(folds),
        "n_reference_cells": int((folds.fold_of != number).sum()),
        "n_query_cells": int((folds.fold_of == number).sum()),
        "n_classes": len(np.unique(folds.labels)),
        "seed": seed,
        "task_fingerprint": folds.fingerprint,
        "method_fingerprint": settings.hexdigest()[:12],
        "versions": versions_of(peer),
        "machine": _machine(),
    }


def _machine() -> str:
    """Processor, system and Python, for whoever compares seconds."""
    processor = platform.processor() or platform.machine()
    with suppress(OSError, StopIteration):  # Linux knows the model, and platform does not ask
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return f"{processor}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


class Store:
    """Rows and predictions in a folder."""

    def __init__(self, folder: Path):
        self.folder, self.logs = folder, folder / "logs"

    @property
    def rows(self) -> pd.DataFrame:
        """All rows, in the order in which they were run.

        Raises
        ------
        DataError
            If the file is not one of rows.
        """
        path = self.folder / "rows.csv"
        if not path.exists():
            return pd.DataFrame(columns=COLUMNS)
        text = dict.fromkeys(("reason", "task_fingerprint", "method_fingerprint", "versions", "machine"), str)
        rows = pd.read_csv(path, dtype=text)
        if list(rows.columns) != COLUMNS:
            raise DataError(f"{path} does not have the columns of a benchmark. Move it away, or choose another folder.")
        return rows.fillna({"reason": "", "versions": ""})

    def has(self, row: dict, timeout_seconds: float) -> bool:
        """Whether a row need not be run: done, impossible, or already stopped after as much time."""
        for old in self._same(row).itertuples():
            if all(getattr(old, name) == row[name] for name in ("task_fingerprint", "method_fingerprint")):
                return old.status in ("done", "cannot") or (
                    old.status == "timeout" and old.timeout_seconds >= timeout_seconds
                )
        return False

    def stale(self, rows: Iterable[dict]) -> list[str]:
        """The methods among these that have rows of other cells, folds, settings or versions."""
        names = {}
        for row in rows:
            for old in self._same(row).itertuples():
                if any(getattr(old, name) != row[name] for name in ("task_fingerprint", "method_fingerprint")):
                    names[row["method"]] = None
        return list(names)

    def add(self, row: dict, predictions: pd.DataFrame | None) -> None:
        """Put a row, and its predictions, in the place of an earlier one: predictions first, as rows promise them.

        Rows and predictions of the same method that come from other cells, folds, settings or versions go.
        """
        marks = {name: row[name] for name in ("task_fingerprint", "method_fingerprint")}
        if predictions is not None:
            path = self._path(row["task"], row["method"])
            path.parent.mkdir(parents=True, exist_ok=True)
            new = predictions.assign(fold=row["fold"], **marks)
            if path.exists():
                old = _read_predictions(path)
                same = (old[list(marks)] == pd.Series(marks)).all(axis=1)
                new = pd.concat([old[same & (old["fold"] != row["fold"])], new])
            _write(new.sort_values("cell"), path)
        rows = self.rows
        own = (rows["task"] == row["task"]) & (rows["method"] == row["method"])
        same = (rows[list(marks)] == pd.Series(marks)).all(axis=1)
        rows = rows[~own | (same & (rows["fold"] != row["fold"]))]
        new = pd.DataFrame([row]).reindex(columns=COLUMNS)
        _write(pd.concat([rows, new]) if len(rows) else new, self.folder / "rows.csv")

    def predictions(self, task: str, method: str) -> pd.DataFrame:
        """The pooled predictions of a method: ``cell``, ``truth``, ``predicted``, ``top``, ``confidence``, ``fold``.

        Raises
        ------
        DataError
            If they are missing, or are not those that the rows speak of.
        """
        path, rows = self._path(task, method), self.rows
        rows = rows[(rows["task"] == task) & (rows["method"] == method)]
        if not path.exists():
            raise DataError(f"{path} is missing, but rows.csv speaks of it. Delete its rows there and run them again.")
        cells = _read_predictions(path)
        if len(cells) != rows["n_query_cells"].sum() or set(cells["method_fingerprint"]) != {
            *rows["method_fingerprint"]
        }:
            raise DataError(f"{path} does not hold what rows.csv speaks of. Delete its rows there and run them again.")
        cells.attrs["method"] = method
        return cells

    @contextmanager
    def locked(self):
        """Keep other benchmarks out of the folder.

        Raises
        ------
        SettingError
            If one is in there.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / ".lock", timeout=0):
                yield
        except Timeout as error:
            raise SettingError(
                f"Another benchmark is writing into {self.folder}. Wait for it, or use another folder."
            ) from error

    def _same(self, row: dict) -> pd.DataFrame:
        rows = self.rows
        return rows[(rows[KEY] == pd.Series({name: row[name] for name in KEY})).all(axis=1)]

    def _path(self, task: str, method: str) -> Path:
        return self.folder / "predictions" / slug(task) / f"{slug(method)}.csv.gz"


def slug(name: str) -> str:
    """A name as files and the command line can carry it: ``"SIMS, default"`` is ``sims-default``."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def _write(table: pd.DataFrame, path: Path) -> None:
    """Replace a file in one step. The same table gives the same bytes."""
    part = path.with_name(f".{path.name}")
    compression = {"method": "gzip", "mtime": 0} if path.suffix == ".gz" else None
    table.to_csv(part, index=False, compression=compression, lineterminator="\n")
    os.replace(part, path)


def _read_predictions(path: Path) -> pd.DataFrame:
    text = dict.fromkeys(("truth", "predicted", "top", "task_fingerprint", "method_fingerprint"), str)
    return pd.read_csv(path, dtype=text, keep_default_na=False, na_values={"confidence": [""]})


class Job(NamedTuple):
    """One row to run: where its fold lies, and where a log of its failure goes."""

    row: dict
    peer: Peer
    folds: Path
    logs: Path


class Processes:
    """Runs jobs in processes of their own, and stops them with the block that it opens."""

    def __init__(self, timeout_seconds: float):
        self.timeout_seconds = timeout_seconds
        self._running: set[subprocess.Popen] = set()
        self._stopped = False

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def stop(self) -> None:
        """End every process that is running, with those that it started."""
        self._stopped = True
        for process in list(self._running):
            _end(process)

    def run(self, job: Job) -> tuple[dict, pd.DataFrame | None]:
        """A row's result, and the predictions where there are any: ``predicted``, ``top``, ``confidence``."""
        with TemporaryDirectory(prefix="sims_kit_") as name:
            folder = Path(name)
            number, method = job.row["fold"], job.row["method"]
            paths = {part: str(job.folds / f"{part}_{number}.h5ad") for part in ("reference", "query")}
            (folder / "peer.pickle").write_bytes(pickle.dumps(job.peer))
            (folder / "job.json").write_text(json.dumps({**paths, "seed": job.row["seed"]}))
            result = self._wait(folder)
            result["timeout_seconds"] = self.timeout_seconds
            if result["status"] == "failed":
                job.logs.mkdir(parents=True, exist_ok=True)
                log = job.logs / f"{slug(job.row['task'])}-{slug(method)}-{number}.log"
                log.write_bytes((folder / "log.txt").read_bytes())
            if result["status"] != "done":
                return result, None
            found = np.load(folder / "prediction.npz")
            columns = {"predicted": found["labels"], "top": found["top"], "confidence": found["confidence"].round(4)}
            return result, pd.DataFrame(columns)

    def _wait(self, folder: Path) -> dict:
        package = str(Path(__file__).parents[2])
        path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
        with open(folder / "log.txt", "wb") as log:
            if self._stopped:
                return {"status": "failed", "reason": "stopped"}
            process = subprocess.Popen(
                [sys.executable, "-m", "sims_kit.studies.worker", str(folder)],
                stdin=subprocess.PIPE,  # closes when this process dies, however it does; the worker then ends, too
                stdout=log,
                stderr=log,
                env={**os.environ, **ONE_THREAD, "PYTHONPATH": path, "CI": "1"},  # CI: no progress bars in the log
                start_new_session=True,  # a group of its own, so that what it starts ends with it
            )
            self._running.add(process)
            if self._stopped:  # meanwhile
                _end(process)
            try:
                process.wait(self.timeout_seconds)
            except subprocess.TimeoutExpired:
                return {"status": "timeout", "reason": f"not done after {self.timeout_seconds / 60:g} minutes"}
            finally:
                _end(process)
                process.stdin.close()
                self._running.discard(process)
        if (folder / "result.json").exists():
            return json.loads((folder / "result.json").read_text())
        lines = (folder / "log.txt").read_text(errors="replace").strip().splitlines() or ["no message"]
        reason = f"the process ended with exit status {process.returncode}: {lines[-1]}"
        return {"status": "failed", "reason": reason[:300]}


def _end(process: subprocess.Popen) -> None:
    """End a process and whatever it started."""
    with suppress(ProcessLookupError):  # all ended by themselves
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()

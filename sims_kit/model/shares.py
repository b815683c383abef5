"""Work on many cells shared out among processes, and put together in order."""

import tempfile
from collections.abc import Callable, Iterable
from functools import lru_cache
from numbers import Integral
from pathlib import Path
from typing import TypeVar

import torch
from joblib import Parallel, delayed
from torch.utils.data import DataLoader

from sims_kit.cells.batches import CellBatch, shares
from sims_kit.cells.disk import CellStream
from sims_kit.errors import SettingError
from sims_kit.model.classifier import SIMSClassifier
from sims_kit.model.file import load_model, save_model
from sims_kit.progress import progress_bar

Found = TypeVar("Found")
PARTS = 4  # for each process: so that the bar moves, and a slow one does not hold up the others


def shared_out(
    work: Callable[[SIMSClassifier, Iterable[CellBatch]], Found],
    model: SIMSClassifier,
    batches: DataLoader | CellStream,
    n_jobs: int,
    desc: str,
) -> list[Found]:
    """What `work` makes of the batches: of all of them, or of successive parts in order, each in some process.

    Parameters
    ----------
    work
        Takes a model and batches of cells. With several processes, it and what it returns must be ones that can be
        pickled.
    model
        A fitted classifier. The other processes load it from a file; if it is on a GPU, they take the GPUs in turn.
    batches
        From `sims_kit.cells.batches.query_batches`. Cells on disk are read by each process, those in memory are
        shared.
    n_jobs
        Processes at the same time.
    desc
        What the progress bar calls the work.

    Raises
    ------
    SettingError
        If `n_jobs` is not a whole number of 1 or more.
    """
    if not isinstance(n_jobs, Integral) or n_jobs < 1:
        raise SettingError(f"n_jobs={n_jobs!r}: give a whole number of processes, 1 or more.")
    if n_jobs == 1 or len(batches) == 1:
        return [work(model, progress_bar(batches, desc=desc, unit="batch"))]
    parts = shares(batches, PARTS * n_jobs)
    n_gpus = torch.cuda.device_count() if model.device.type == "cuda" else 0
    devices = [f"cuda:{i % n_gpus}" if n_gpus else "cpu" for i in range(len(parts))]
    with tempfile.TemporaryDirectory(prefix="sims_kit_") as folder:
        path = Path(folder, "model.safetensors")
        save_model(model, path)
        jobs = (delayed(_run)(work, path, part, device) for part, device in zip(parts, devices, strict=True))
        found = Parallel(n_jobs, return_as="generator")(jobs)
        return list(progress_bar(found, total=len(parts), desc=desc, unit="part"))


def _run(work: Callable, path: Path, batches: Iterable[CellBatch], device: str) -> object:
    return work(_loaded(path, device), batches)


@lru_cache(maxsize=16)
def _loaded(path: Path, device: str) -> SIMSClassifier:
    return load_model(path).to(device)

"""One method on one fold, in a process of its own: ``python -m sims_kit.studies.worker FOLDER``.

A process of its own gives each method its own peak memory, and keeps a crash or a hang from the others. The folder
holds ``job.json`` and ``peer.pickle``; it takes ``result.json`` and ``prediction.npz``.
"""

import json
import os
import pickle
import resource
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

import anndata
import numpy as np

from sims_kit.errors import PeerError
from sims_kit.studies.adaptor import Peer, Prediction

REASON = 300  # characters of a reason that a table keeps


def run(folder: Path) -> dict:
    """Fit, predict, write ``prediction.npz``; what comes back goes to ``result.json``."""
    job = json.loads((folder / "job.json").read_text())
    reference, query = anndata.read_h5ad(job["reference"]), anndata.read_h5ad(job["query"])
    try:
        peer: Peer = pickle.loads((folder / "peer.pickle").read_bytes())
        started, cpu_started = time.perf_counter(), cpu_seconds()
        peer.fit(reference, "label", sample="sample" if "sample" in reference.obs else None, seed=job["seed"])
        fitted = time.perf_counter()
        prediction = peer.predict(query)
        predicted = time.perf_counter()
    except PeerError as error:
        return {"status": "cannot", "reason": str(error)[:REASON]}
    except Exception as error:  # whatever a peer raises is told in the table, by name
        traceback.print_exc()
        return {"status": "failed", "reason": f"{type(error).__name__}: {' '.join(str(error).split())}"[:REASON]}
    _write(folder / "prediction.npz", prediction, query.n_obs)
    return {
        "status": "done",
        "reason": "",
        "fit_seconds": round(fitted - started, 2),
        "predict_seconds": round(predicted - fitted, 2),
        "cpu_seconds": round(cpu_seconds() - cpu_started, 2),
        "peak_memory_mb": round(peak_memory_mb()),
    }


def cpu_seconds() -> float:
    """Of this process and those that it started: what wall time would be on a machine with nothing else to do."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def peak_memory_mb() -> float:
    """The largest resident size so far of this process, or of one that it started, in MB."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    who = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
    own, started = (resource.getrusage(processes).ru_maxrss * unit for processes in who)
    status = Path("/proc/self/status")
    if status.exists():  # Linux counts the size that the parent had at the start into ru_maxrss, but not into VmHWM
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        own = int(line.split()[1]) * 1024
    return max(own, started) / 1e6


def _write(path: Path, prediction: Prediction, n_cells: int) -> None:
    """Labels, and where there are probabilities the most probable class and its probability."""
    labels = np.asarray(prediction.labels).astype(str)
    if labels.shape != (n_cells,):
        raise RuntimeError(f"The peer gave labels of shape {labels.shape} for {n_cells} cells; expected one per cell.")
    top, confidence = prediction.best()
    np.savez(path, labels=labels, top=top, confidence=confidence)


def end_with_parent() -> None:
    """End this process and those that it started once standard input closes: the benchmark that asked is gone."""
    sys.stdin.buffer.read()
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, daemon=True).start()
    where = Path(sys.argv[1])
    result = run(where)
    (where / "result.json").write_text(json.dumps(result))

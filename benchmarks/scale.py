"""Time and memory against cells and genes, from disk and in memory: docs/scale.png.

    python benchmarks/scale.py [--cells 10000 50000 1000000] [--genes 1000 4000 16000] [--folder DIR]

Cells are simulated cortex (2,000 genes unless genes vary; then 2,000 cells), written chunk by chunk, so that a file of
any size takes little memory. Every row is a process of its own: one epoch of the default recipe with one network, with
validation, then `annotate` on the same file. Memory is the process's highest, libraries included. Rows are kept in
benchmarks/measured_scale.csv and not measured again; files in `--folder` are used again.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytorch_lightning as pl
from anndata.io import sparse_dataset, write_elem
from matplotlib import pyplot as plt
from sims_kit._drawing import BLUE, ORANGE

import sims_kit as sk
from sims_kit.datasets.simulate import PRESETS, Simulation

ROOT = Path(__file__).resolve().parent.parent
TABLE, FIGURE = ROOT / "benchmarks/measured_scale.csv", ROOT / "docs/scale.png"
FEW_GENES, FEW_CELLS = 2_000, 2_000
IN_MEMORY = 100_000  # cells at most that are also measured in memory
KEYS = ["cells", "genes", "from"]


def main() -> None:
    """Measure what is not there yet, draw; or, with `--run`, be one of the processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="*", default=[10_000, 50_000, 1_000_000])
    parser.add_argument("--genes", type=int, nargs="*", default=[1_000, 4_000, 16_000])
    parser.add_argument("--folder", type=Path, help="for the simulated files; by default one that goes afterwards")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        return run(**json.loads(arguments.run))
    rows = pd.read_csv(TABLE) if TABLE.exists() else pd.DataFrame(columns=KEYS)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        sizes = [(n, FEW_GENES) for n in arguments.cells] + [(FEW_CELLS, n) for n in arguments.genes]
        for cells, genes in sizes:
            for place in ("disk", "memory"):
                known = (rows[KEYS] == [cells, genes, place]).all(axis=1).any()
                if not known and (place == "disk" or cells <= IN_MEMORY):
                    row = measured(folder / f"{cells}-{genes}.h5ad", cells, genes, place)
                    print(row, flush=True)
                    rows = pd.concat([rows, pd.DataFrame([row])], ignore_index=True)
                    rows.to_csv(TABLE, index=False)
    draw(pd.read_csv(TABLE))


def measured(path: Path, cells: int, genes: int, place: str) -> dict:
    """One row, from processes of their own; the file is made first if it is not there."""
    if not path.exists():
        started = time.perf_counter()
        cost = _started(what="simulate", path=str(path), cells=cells, genes=genes)
        size, seconds = path.stat().st_size / 1e9, time.perf_counter() - started
        print(f"{cells:,} x {genes:,} simulated in {seconds:.0f} s ({cost}), {size:.2f} GB", flush=True)
    return dict(cells=cells, genes=genes) | {"from": place} | _started(what="measure", path=str(path), place=place)


def _started(**settings) -> dict:
    command = [sys.executable, __file__, "--run", json.dumps(settings)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"exit status {result.returncode}\n{result.stderr}")
    return json.loads(result.stdout.strip().splitlines()[-1])


def run(what: str, path: str, **settings) -> None:
    """Simulate or measure, and print what came of it."""
    found = simulate(Path(path), **settings) if what == "simulate" else measure(Path(path), **settings)
    print(json.dumps(found))


def simulate(path: Path, cells: int, genes: int) -> dict:
    """A file of simulated cortex, its counts chunk by chunk."""
    scale = dict(n_cells=cells, n_genes=genes, lib_loc=math.log(genes))  # a thousand counts per thousand genes
    simulation = Simulation(replace(PRESETS["sim-cortex"]["fast"], **scale))
    unfinished = path.with_suffix(".part")
    ad.AnnData(obs=simulation.obs[["cell_type"]], var=simulation.var).write_h5ad(unfinished)
    with h5py.File(unfinished, "a") as file:
        file.pop("X", None)
        for chunk in simulation.chunks():
            if "X" in file:
                sparse_dataset(file["X"]).append(chunk)
            else:
                write_elem(file, "X", chunk, dataset_kwargs=dict(indptr_dtype=np.int64))
    unfinished.rename(path)
    return {"peak, MB": peak(), "CPU, s": round(time.process_time())}


class Stopwatch(pl.Callback):
    """Seconds of the training epoch without its validation."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start."""
        self.started = time.perf_counter()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop."""
        if not trainer.sanity_checking:
            self.seconds = time.perf_counter() - self.started


def measure(path: Path, place: str) -> dict:
    """Train an epoch and annotate; seconds and memory."""
    watch, started = Stopwatch(), time.perf_counter()
    quiet = dict(logger=False, verbose=False, enable_progress_bar=False, enable_checkpointing=False)
    options = dict(backed=place == "disk", max_epochs=1, batch_size=256, test=0, callbacks=watch)
    options["model_params"] = {"network": {"n_models": 1}}
    model = sk.fit(path, "cell_type", **options, **quiet)
    fitted, while_training = time.perf_counter(), peak()
    sk.annotate(path, model, backed=place == "disk")
    return {
        "epoch, s": round(watch.seconds, 2),
        "fit, s": round(fitted - started, 2),
        "annotate, s": round(time.perf_counter() - fitted, 2),
        "CPU, s": round(time.process_time(), 2),
        "fit, MB": while_training,
        "annotate, MB": peak(),
    }


def peak() -> int:
    """MB, the highest of this program; `getrusage` would count what came before it in the same process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024


def draw(rows: pd.DataFrame) -> None:
    """Time above, memory below; cells on the left, genes on the right."""
    figure, axes = plt.subplots(2, 2, figsize=(9, 7.5), layout="constrained")
    for column, (axis, other, fixed) in zip(
        axes.T, (("cells", "genes", FEW_GENES), ("genes", "cells", FEW_CELLS)), strict=True
    ):
        found = rows[rows[other] == fixed].sort_values(axis)
        if found.empty:  # not measured
            for ax in column:
                ax.remove()
            continue
        for place, style in (("disk", dict(ls="-", marker="o")), ("memory", dict(ls="--", marker="s", mfc="none"))):
            part = found[found["from"] == place]
            for quantity, colour, name in (("epoch, s", BLUE, "training epoch"), ("annotate, s", ORANGE, "annotate")):
                column[0].loglog(part[axis], part[quantity], color=colour, label=f"{name}, from {place}", **style)
            for quantity, colour, name in (("fit, MB", BLUE, "training"), ("annotate, MB", ORANGE, "annotate")):
                column[1].semilogx(part[axis], part[quantity], color=colour, label=f"{name}, from {place}", **style)
        on_disk = found[found["from"] == "disk"]
        powers = [_power(on_disk[axis], on_disk[quantity]) for quantity in ("epoch, s", "annotate, s")]
        column[0].set_title(
            f"Time grows as {axis} to the power of\n{powers[0]:.2f} (training), {powers[1]:.2f} (annotate)"
        )
        change = on_disk["fit, MB"].iloc[-1] / on_disk["fit, MB"].iloc[0]
        times = on_disk[axis].iloc[-1] / on_disk[axis].iloc[0]
        column[1].set_title(f"{times:.0f} times the {axis}:\n{change:.2f} times the memory to train, from disk")
        column[0].set_ylabel("seconds")
        column[1].set(ylim=(0, None), ylabel="highest memory, MB")
        for ax in column:
            ax.set_xlabel(f"{axis}, of {fixed:,} {other}")
            ax.legend(frameon=False, fontsize=8)
            ax.title.set_fontsize(9)
    figure.savefig(FIGURE, dpi=120)


def _power(sizes: pd.Series, seconds: pd.Series) -> float:
    return np.polyfit(np.log(sizes), np.log(seconds), 1)[0] if len(sizes) > 1 else math.nan


if __name__ == "__main__":
    main()

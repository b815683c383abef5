"""Training on one, two and three processes: metrics, steps and cells seen; a killed process; a run that goes on.

    python benchmarks/devices.py [--cells 5000] [--seeds 3] [--processes 1 2 3] [--strategy ddp]

Every run is a program of its own, started as a user would start it (`fit(..., devices=2, strategy="ddp")`: Lightning
starts the other processes), on CPU with gloo; then twice with two processes that others start: by torchrun, as two
machines of one process each (both are this one), and with what srun would tell them. "Seen" compares the sums of the
cells that all processes together trained on in the last epoch with those of the training cells.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytorch_lightning as pl

import sims_kit as sk
from sims_kit.datasets.simulate import PRESETS

EPOCHS = 6


class Seen(pl.Callback):
    """Writes the sums of the cells of each epoch, by process; kills one process if asked to."""

    def __init__(self, folder: Path, die: bool):
        self.folder, self.die, self.sums = folder, die, []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin anew, or die."""
        self.sums = []
        if self.die and trainer.current_epoch == EPOCHS // 2 and trainer.global_rank == trainer.world_size - 1:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch, batch_idx: int) -> None:
        """Note the cells."""
        self.sums.extend(batch.cells.to_dense().sum(1).tolist())

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write them."""
        (self.folder / f"seen-{trainer.global_rank}.json").write_text(json.dumps(self.sums))


def main() -> None:
    """Run each and print the table; or, with `--one-run`, be one of the runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=5000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--strategy", default="ddp", help="of several processes")
    parser.add_argument("--one-run", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one_run:
        return run(**json.loads(arguments.one_run))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "cells.h5ad")
        sk.datasets.simulate(replace(PRESETS["sim-cortex"]["fast"], n_cells=arguments.cells)).write_h5ad(path)
        rows = []
        for n in arguments.processes:
            for seed in range(arguments.seeds):
                rows.append(_started(path, n, seed, arguments.strategy))
                print(rows[-1], flush=True)
        print("\n| processes | validation accuracy | validation median F1 | steps per epoch | seen once | seconds |")
        print("|---|---|---|---|---|---|")
        for n, found in pd.DataFrame(rows).groupby("processes"):
            scores = (f"{found[s].mean():.3f} ({found[s].min():.3f} to {found[s].max():.3f})" for s in SCORES)
            rest = (", ".join(map(str, sorted(found["steps"].unique()))), found["seen once"].all())
            print(f"| {n} | {' | '.join(scores)} | {rest[0]} | {rest[1]} | {found['seconds'].mean():.0f} |")
        for launcher in (_torchrun, _srun):
            found = _started(path, 2, 1, arguments.strategy, launcher=launcher)
            print(f"\n{launcher.__doc__[:-1]}: {found}", flush=True)
        killed = _started(path, 2, 0, arguments.strategy, die=True)
        print(f"\nOne of two processes killed in epoch {EPOCHS // 2}: the program ends with exit status {killed}.")
        rest = _started(path, 2, 0, arguments.strategy, go_on=True)
        same = [row for row in rows if row["processes"] == 2 and row["seed"] == 0]
        print(f"Gone on from its last checkpoint: {rest}.\nWithout the accident:             {same}.")


SCORES = ("accuracy", "median F1")


def _started(
    path: Path, processes: int, seed: int, strategy: str, die: bool = False, go_on: bool = False, launcher=None
):
    """What a run says, or the exit status of one that fails."""
    name = "killed" if die or go_on else launcher.__name__ if launcher else seed
    folder = path.parent / f"{processes}-{name}"
    settings = dict(path=str(path), folder=str(folder), processes=processes, seed=seed, strategy=strategy)
    settings |= dict(die=die, go_on=go_on, nodes=2 if launcher is _torchrun else 1)
    command = [__file__, "--one-run", json.dumps(settings)]
    started = time.perf_counter()
    others = launcher(command) if launcher else [subprocess.Popen([sys.executable, *command], **PIPES)]
    try:
        with ThreadPoolExecutor() as threads:
            said = [*threads.map(partial(subprocess.Popen.communicate, timeout=1200), others)]
    finally:
        for process in others:
            process.kill()
    if die:
        return others[0].returncode
    if failed := [error for process, (_, error) in zip(others, said, strict=True) if process.returncode]:
        raise RuntimeError(failed[0])
    found = json.loads(next(line for out, _ in said for line in out.splitlines() if line.startswith('{"accuracy"')))
    return {"processes": processes, "seed": seed, **found, "seconds": time.perf_counter() - started}


PIPES = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _torchrun(command: list[str]) -> list[subprocess.Popen]:
    """Two machines of one process each, by torchrun."""
    agent = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    agent += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{_free_port()}"]
    return [subprocess.Popen([*agent, *command], **PIPES) for _ in range(2)]


def _srun(command: list[str]) -> list[subprocess.Popen]:
    """One machine of two processes, told what srun tells."""
    job = dict(SLURM_JOB_ID="7", SLURM_JOB_NAME="train", SLURM_NTASKS="2", SLURM_NTASKS_PER_NODE="2", SLURM_NODEID="0")
    job |= dict(SLURM_NNODES="1", SLURM_NODELIST="localhost", MASTER_PORT=str(_free_port()))
    ranks = [os.environ | job | dict(SLURM_PROCID=rank, SLURM_LOCALID=rank) for rank in "01"]
    return [subprocess.Popen([sys.executable, *command], env=environment, **PIPES) for environment in ranks]


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def run(path: str, folder: str, processes: int, seed: int, strategy: str, die: bool, go_on: bool, nodes: int) -> None:
    """Train, and say what came of it."""
    folder = Path(folder)
    folder.mkdir(exist_ok=True)
    trainer, model, module = sk.generate_trainer(
        path,
        **dict(class_label="cell_type", backed=True, seed=seed, max_epochs=EPOCHS, test=0),
        **dict(model_params={"network": {"n_models": 1}}, default_root_dir=folder, callbacks=Seen(folder, die)),
        **dict(devices=processes // nodes, num_nodes=nodes, accelerator="cpu"),
        strategy=strategy if processes > 1 else "auto",
        **dict(verbose=False, enable_progress_bar=False),
    )
    last = next(folder.rglob("last.ckpt"), None) if go_on else None
    trainer.fit(model, datamodule=module, ckpt_path=last)
    trainer.strategy.barrier()
    if trainer.is_global_zero:
        rows = module._dataset.rows(module.split.train).sum(axis=1).A1
        seen = [json.loads((folder / f"seen-{rank}.json").read_text()) for rank in range(processes)]
        once = sum(map(len, seen)) == len(rows) and np.allclose(np.sort(np.concatenate(seen)), np.sort(rows), rtol=1e-4)
        last = model.history.iloc[-1]
        scores = dict(accuracy=last["val_accuracy_micro"], loss=last["val_loss"])
        steps = trainer.num_training_batches
        print(json.dumps(scores | {"median F1": last["val_median_f1"], "steps": steps, "seen once": bool(once)}))


if __name__ == "__main__":
    main()

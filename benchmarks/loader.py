"""Cells per second from disk: one row at a time, AnnLoader, slices, in memory, and ours; then training from each.

    python benchmarks/loader.py [--cells 100000] [--genes 20000] [--expressed 500] [--seconds 20] [--train 20000]

Files are made anew in a temporary folder: random cells, ten thousand repeated, as anndata writes them, plain and packed
with gzip. Batches have 256 cells in random order but for the slices, which come as they lie. Reading is from a warm
cache. Training is an epoch of the thesis's recipe on as many cells as `--train` says, the same file in memory and on
disk in turn, the better of two; the first epoch, which warms up, does not count.
"""

import argparse
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pytorch_lightning as pl
from anndata.experimental import AnnLoader
from anndata.io import sparse_dataset, write_elem
from explain_memory import random_cells

import sims_kit as sk
from sims_kit.cells.loaders import CellDataset, CellLoader
from sims_kit.cells.matrix import Expression
from sims_kit.datasets.read import open_backed

BATCH = 256
PIECE = 10_000  # cells
PACKED = dict(compression="gzip", compression_opts=4)  # h5py's default


def main() -> None:
    """Write the files, time each way of reading, then training; print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--genes", type=int, default=20_000)
    parser.add_argument("--expressed", type=int, default=500, help="genes per cell, about")
    parser.add_argument("--seconds", type=float, default=20, help="longest time for one way of reading")
    parser.add_argument("--train", type=int, default=20_000, help="cells to train on; 0 for none")
    arguments = parser.parse_args()
    piece = random_cells(min(PIECE, arguments.cells), arguments.genes, arguments.expressed)
    with tempfile.TemporaryDirectory() as folder:
        plain, packed = (
            write(Path(folder, f"{name}.h5ad"), piece, arguments.cells, storage)
            for name, storage in (("plain", {}), ("packed", PACKED))
        )
        sizes = " and ".join(f"{path.stat().st_size / 1e9:.2f} GB {path.stem}" for path in (plain, packed))
        print(f"{arguments.cells:,} cells x {arguments.genes:,} genes, {sizes}\n")
        print("| way of reading | plain, cells/s | gzip, cells/s |\n|---|---|---|")
        for name, read in WAYS.items():
            rates = [f"{rate(read(path), arguments.seconds):,.0f}" for path in (plain, packed)]
            print(f"| {name} | {' | '.join(rates)} |", flush=True)
        if arguments.train:
            plain, packed = (
                write(Path(folder, f"{name}-train.h5ad"), piece, arguments.train, storage)
                for name, storage in (("plain", {}), ("packed", PACKED))
            )
            print("\n| training from | cells/s |\n|---|---|")
            found = {}
            for _ in range(2):
                for name, path, backed in (
                    ("memory", plain, False),
                    ("disk, plain", plain, True),
                    ("disk, gzip", packed, True),
                ):
                    found[name] = max(found.get(name, 0), training_rate(path, backed))
            for name, speed in found.items():
                print(f"| {name} | {speed:,.0f} ({speed / found['memory']:.0%}) |")


def write(path: Path, piece: ad.AnnData, n_cells: int, storage: dict) -> Path:
    """An `.h5ad` of as many cells, the piece again and again."""
    obs = piece.obs.iloc[np.arange(n_cells) % piece.n_obs].reset_index(drop=True)
    obs.index = [f"cell_{i}" for i in range(n_cells)]
    ad.AnnData(obs=obs, var=piece.var).write_h5ad(path)
    with h5py.File(path, "a") as file:
        file.pop("X", None)
        for start in range(0, n_cells, piece.n_obs):
            rows = piece.X[: n_cells - start]
            if start:
                sparse_dataset(file["X"]).append(rows)
            else:
                write_elem(file, "X", rows, dataset_kwargs=storage | dict(indptr_dtype=np.int64))
    return path


def rate(batches: Iterator[int], seconds: float) -> float:
    """Cells per second; every item of `batches` says how many cells came."""
    started, n_cells = time.perf_counter(), 0
    for n in batches:
        n_cells += n
        if time.perf_counter() - started > seconds:
            break
    return n_cells / (time.perf_counter() - started)


def row_by_row(path: Path) -> Iterator[int]:
    """Backed, one random cell after the other."""
    matrix = ad.read_h5ad(path, backed="r").X
    for cell in np.random.default_rng(0).permutation(matrix.shape[0]):
        yield matrix[int(cell)].shape[0]


def annloader(path: Path) -> Iterator[int]:
    """Anndata's own loader on a backed file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for batch in AnnLoader(ad.read_h5ad(path, backed="r"), batch_size=BATCH, shuffle=True):
            yield len(batch.X)


def slices(path: Path) -> Iterator[int]:
    """Anndata's public sparse dataset, neighbouring cells in order."""
    with h5py.File(path) as file:
        matrix = sparse_dataset(file["X"])
        for start in range(0, matrix.shape[0], BATCH):
            yield matrix[start : start + BATCH].shape[0]


def in_memory(path: Path) -> Iterator[int]:
    """`CellLoader`: gathered, normalised and made tensors."""
    cells = CellDataset([Expression(ad.read_h5ad(path))])
    return (len(batch.labels) for batch in CellLoader(cells, range(len(cells)), BATCH, shuffle=True))


def from_disk(path: Path) -> Iterator[int]:
    """The same from disk."""
    cells = CellDataset([Expression(open_backed(path))])
    return (len(batch.labels) for batch in CellLoader(cells, range(len(cells)), BATCH, shuffle=True))


WAYS = {
    "backed, row by row": row_by_row,
    "AnnLoader, backed": annloader,
    "`sparse_dataset`, slices of 256, not shuffled": slices,
    "in memory, ours": in_memory,
    "on disk, ours": from_disk,
}


class Stopwatch(pl.Callback):
    """Seconds of each training epoch."""

    def __init__(self):
        self.seconds = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start."""
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop."""
        self.seconds.append(time.perf_counter() - self.started)


def training_rate(path: Path, backed: bool) -> float:
    """Cells per second of the second epoch."""
    watch = Stopwatch()
    options = dict(validation=0, test=0, batch_size=BATCH, max_epochs=2, backed=backed, callbacks=watch)
    quiet = dict(logger=False, verbose=False, enable_progress_bar=False, enable_checkpointing=False)
    options["model_params"] = {"scheduler": False}  # it looks at the validation loss
    trainer, model, module = sk.generate_trainer(path, None, "cell_type", recipe="thesis", **options, **quiet)
    trainer.fit(model, datamodule=module)
    return len(module.split.train) / watch.seconds[1]


if __name__ == "__main__":
    main()

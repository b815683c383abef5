"""A file sorted by cell type, trained on from disk, against the same cells shuffled and in memory.

    python benchmarks/sorted_file.py [--cells 20000] [--seeds 3] [--block-size 64] [--buffer-size 1024]

Simulated cortex of 19 types in two regions, each sorted into a file of its own. The buffer is a small share of the
cells, as it would be of millions. One network, the default recipe otherwise. "In order" is what a shuffle buffer of
that size alone would do: cells as they lie, mixed within the buffer; it shows that order matters.
Scores are on test cells, which no run has seen.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

import sims_kit as sk
from sims_kit.datasets.simulate import PRESETS

SCORES = ["accuracy_micro", "median_f1", "f1_macro"]


def main() -> None:
    """Simulate, sort, train, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=20_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--block-size", type=int, default=64)
    parser.add_argument("--buffer-size", type=int, default=1024)
    arguments = parser.parse_args()
    settings = replace(PRESETS["sim-cortex"]["fast"], n_cells=arguments.cells, regions=("MTG", "V1C"))
    cells = sk.datasets.simulate(settings)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        paths = _sorted_files(cells, Path(folder))
        for seed in range(arguments.seeds):
            for order in ("in memory, shuffled", "on disk, sorted", "on disk, sorted, in order"):
                scores = _scores(paths, order, seed, arguments.block_size, arguments.buffer_size)
                rows.append({"cells": order, "seed": seed, **scores})
                print(rows[-1], flush=True)
    table = pd.DataFrame(rows).groupby("cells", sort=False)[SCORES].agg(["mean", "min", "max"])
    print(f"\n| {arguments.cells:,} cells | {' | '.join(SCORES)} |\n|---|---|---|---|")
    for order, found in table.iterrows():
        shown = (f"{found[s, 'mean']:.3f} ({found[s, 'min']:.3f} to {found[s, 'max']:.3f})" for s in SCORES)
        print(f"| {order} | {' | '.join(shown)} |")


def _sorted_files(cells, folder: Path) -> list[Path]:
    """One file per region, each sorted by type."""
    paths = []
    for region, of_region in cells.obs.groupby("region", observed=True):
        names = of_region.sort_values("cell_type", kind="stable").index
        paths.append(folder / f"{region}.h5ad")
        cells[names].copy().write_h5ad(paths[-1])
    return paths


def _scores(paths: list[Path], order: str, seed: int, block_size: int, buffer_size: int) -> dict[str, float]:
    backed = order != "in memory, shuffled"
    options = dict(backed=backed, seed=seed)
    quiet = dict(logger=False, verbose=False, enable_progress_bar=False)
    trainer, model, module = sk.generate_trainer(
        paths, None, "cell_type", model_params={"network": {"n_models": 1}}, **options, **quiet
    )
    module.block_size, module.buffer_size = block_size, buffer_size
    if order == "on disk, sorted, in order":
        loader = module.train_dataloader
        module.train_dataloader = lambda: _in_order(loader())
    trainer.fit(model, datamodule=module)
    (scores,) = trainer.test(model, datamodule=module, verbose=False)
    return {name: round(scores[f"test_{name}"], 4) for name in SCORES}


def _in_order(loader):
    """Cells as they lie in the files, mixed only within the buffer."""
    window = loader.batches_at_once * loader.batch_size
    edges = range(window, len(loader.positions), window)
    loader._order_of_blocks = lambda random: np.concatenate(
        [random.permutation(part) for part in np.split(loader.positions, edges)]
    )
    return loader


if __name__ == "__main__":
    main()

"""What a corpus of scTab's size would take, projected from a measured piece of its shape.

    python benchmarks/projection.py [--cells 6000] [--expressed 1700] [--threads 1]

scTab (Fischer et al., Nature Communications 2024) has learned from 22.2 million cells of 19,331 genes and 164 types,
70 % of them training cells, in up to 48 epochs; its authors' scripts ask for one A100, six cores, 90 GB and three days,
and it labels about 14,000 cells a second on that GPU. Here, random cells of that width and number of types train and
are labelled in memory, with one network and with the default recipe's; time per cell is then taken to stay the same, as
benchmarks/scale.py finds from 10,000 to a million cells, and disks to keep up, as benchmarks/loader.py finds.
"""

import argparse
import time

import numpy as np
import torch
from explain_memory import random_cells
from loader import Stopwatch

import sims_kit as sk

CORPUS, TRAINING_SHARE, GENES, TYPES = 22_200_000, 0.7, 19_331, 164
BATCH = 256  # the largest that the recipe takes by itself


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=6000)
    parser.add_argument("--expressed", type=int, default=1700, help="genes per cell, about: that of current protocols")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cells = random_cells(arguments.cells, GENES, arguments.expressed)
    cells.obs["cell_type"] = np.random.default_rng(0).integers(TYPES, size=cells.n_obs).astype(str)
    each = cells.X.nnz / cells.n_obs
    print(f"{cells.n_obs:,} cells, {each:,.0f} of {GENES:,} genes each, threads: {arguments.threads}\n")
    print("| networks | training, cells/s | one epoch of the corpus, hours | ten epochs, days | annotate, cells/s |")
    print("|---|---|---|---|---|")
    for n_models in (1, sk.RECIPES["default"].network["n_models"]):
        trained, labelled = rates(cells, n_models)
        hours = CORPUS * TRAINING_SHARE / trained / 3600
        print(f"| {n_models} | {trained:,.0f} | {hours:.1f} | {10 * hours / 24:.1f} | {labelled:,.0f} |", flush=True)


def rates(cells, n_models: int) -> tuple[float, float]:
    """Cells per second of the second epoch of training, which has warmed up, and of `annotate`."""
    watch = Stopwatch()
    options = dict(validation=0, test=0, batch_size=BATCH, max_epochs=2, callbacks=watch, seed=0)
    quiet = dict(logger=False, verbose=False, enable_progress_bar=False, enable_checkpointing=False)
    model = sk.fit(cells, "cell_type", model_params={"network": {"n_models": n_models}}, **options, **quiet)
    started = time.perf_counter()
    sk.annotate(cells, model, copy=True)
    return cells.n_obs / watch.seconds[1], cells.n_obs / (time.perf_counter() - started)


if __name__ == "__main__":
    main()

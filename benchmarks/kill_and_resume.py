"""Trainings that are killed at random moments and go on end with the weights of one that ran through: try it.

    python benchmarks/kill_and_resume.py                  # 20 trainings of each recipe, up to 3 kills in each
    python benchmarks/kill_and_resume.py --runs 1 --kills 2 --recipes default

For each recipe a training runs through; then others, equal to it, are killed with SIGKILL after a time drawn from its
length and started anew until they are through. Every number in the model must come out bitwise the same: weights,
running statistics, scales, temperature, class weights, calibration, and every epoch's metrics. CPU only. Exits with 1
when one does not.
"""

import argparse
import hashlib
import logging
import multiprocessing
import os
import random
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import sims_kit as sk

RECIPES = {  # settings of `fit`; small networks, since what is tested is not how well they learn
    "default": dict(model_params={"network": {"n_d": 4, "n_a": 4}}),
    "thesis": dict(recipe="thesis", model_params={"patience": 3, "scheduler_params": {"patience": 0, "factor": 0.5}}),
}


def main() -> int:
    """Print a row for each recipe; 0 when every training ended with the same bits."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=20, help="killed trainings for each recipe")
    parser.add_argument("--kills", type=int, default=3, help="most kills in each")
    parser.add_argument("--cells", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    draw, n_wrong = random.Random(options.seed), 0
    for recipe in options.recipes:
        with tempfile.TemporaryDirectory() as folder:
            expected, seconds = whole(Path(folder), recipe, options)
        found, kills, resumed = [], 0, 0
        for _ in range(options.runs):
            with tempfile.TemporaryDirectory() as folder:
                digest, n_kills, n_resumed = killed(Path(folder), recipe, options, seconds, draw)
            found.append(digest)
            kills, resumed = kills + n_kills, resumed + n_resumed
        same = sum(digest == expected for digest in found)
        n_wrong += len(found) - same
        print(
            f"{recipe}: {same} of {len(found)} killed trainings ended bitwise as the one that ran through "
            f"({seconds:.1f} s); {kills} kills, after {resumed} of which there was a checkpoint to go on from",
            flush=True,
        )
    return int(n_wrong > 0)


def whole(folder: Path, recipe: str, options: argparse.Namespace) -> tuple[str, float]:
    """What a training ends with that nothing disturbs, and its seconds."""
    start = time.perf_counter()
    process = begin(folder, recipe, options)
    process.join()
    return (folder / "digest").read_text(), time.perf_counter() - start


def killed(folder: Path, recipe: str, options: argparse.Namespace, seconds: float, draw: random.Random):
    """What a training ends with that is killed again and again; how often, and how often a checkpoint was there."""
    n_kills = n_resumed = 0
    while True:
        process = begin(folder, recipe, options)
        process.join(draw.uniform(0.1, seconds) if n_kills < options.kills else None)
        if process.exitcode is None:
            process.kill()
            process.join()
            n_kills, n_resumed = n_kills + 1, n_resumed + (folder / "resume.ckpt").exists()
        elif process.exitcode:
            return f"exit code {process.exitcode}", n_kills, n_resumed
        else:
            return (folder / "digest").read_text(), n_kills, n_resumed


def begin(folder: Path, recipe: str, options: argparse.Namespace) -> multiprocessing.Process:
    """Start a training in a process of its own, forked so that nothing is imported anew."""
    process = multiprocessing.get_context("fork").Process(target=train, args=(folder, recipe, options))
    process.start()
    return process


def train(folder: Path, recipe: str, options: argparse.Namespace) -> None:
    """Train, or go on, and write a digest of the model."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    cells = sk.datasets.simulate(n_cells=options.cells, n_genes=500)
    model = sk.fit(
        cells,
        "cell_type",
        checkpoints=folder,
        max_epochs=options.epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        verbose=False,
        **RECIPES[recipe],
    )
    part = folder / "digest.part"
    part.write_text(digest_of(model))
    os.replace(part, folder / "digest")


def digest_of(model: sk.SIMSClassifier) -> str:
    """SHA-256 of all numbers of a model and of its history."""
    history = model.history.sort_index(axis=1)
    digest = hashlib.sha256(history.to_csv(float_format=float.hex).encode())
    for name, tensor in [*sorted(model.state_dict().items()), ("class_weights", model.class_weights)]:
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    for values in model.calibration_cells:
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())

"""Speed and memory, measured: training steps, predictions, explanations, loading, and growth with size.

    python benchmarks/speed.py step [--genes 2000 20000] [--batch-sizes 256 1024]
    python benchmarks/speed.py loader [--seconds 20]
    python benchmarks/speed.py scale     # what benchmarks/measured_scale.csv lacks, and the figure

Every row is a process of its own, on one thread; memory is the highest resident (Linux); steps are in CPU time.
Stock is pytorch-tabnet with the thesis recipe's sizes; "no identity" is it without its genes x genes identity.
"""

import argparse
import math
import multiprocessing
import statistics
import tempfile
import time
import timeit
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import torch
from anndata.io import sparse_dataset, write_elem
from matplotlib import pyplot as plt
from pytorch_tabnet.tab_network import TabNetNoEmbeddings
from scipy import sparse
from study_page import ROOT, machine, markdown, peak_megabytes
from torch.nn.functional import cross_entropy

import sims_kit as sk
from sims_kit.cells.loaders import CellDataset, CellLoader
from sims_kit.cells.matrix import Expression, log_normalised
from sims_kit.datasets.read import open_backed
from sims_kit.datasets.simulate import PRESETS, Simulation, simulate
from sims_kit.model.contributions import explain_batch
from sims_kit.model.network import TabNet
from sims_kit.model.recipe import get_recipe

TABLE, FIGURE = ROOT / "benchmarks/measured_scale.csv", ROOT / "docs/scale.png"
METHODS = ("stock", "no identity", "thesis", "one network of the default")
WARM_UP = 50  # steps that make the masks of our networks as narrow as trained ones
BATCH = 256
SIZES = [(10_000, 2_000), (50_000, 2_000), *((2_000, n) for n in (1_000, 4_000, 16_000))]  # cells, genes
SIZES = [*((*size, place) for size in SIZES for place in ("disk", "memory")), (1_000_000, 2_000, "disk")]


def main() -> None:
    """Measure what is asked for, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=COMMANDS)
    parser.add_argument("--genes", type=int, nargs="+", default=[2_000, 20_000])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--seconds", type=float, default=20, help="for each way to load")
    arguments = parser.parse_args()
    print(markdown(pd.DataFrame(COMMANDS[arguments.what](arguments))), machine("pytorch-tabnet", "anndata"), sep="\n\n")


def apart(function: Callable, *arguments):
    """The result of a function in a process of its own, on one thread."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        return pool.submit(function, *arguments).result()


def steps(arguments: argparse.Namespace) -> list[dict]:
    """Training, prediction and explanation of a batch."""
    return [apart(one_step, *size) for size in product(arguments.genes, arguments.batch_sizes, METHODS)]


def one_step(n_genes: int, n_cells: int, method: str) -> dict[str, object]:
    """Milliseconds of a training step, a prediction and an explanation, and the peak of memory."""
    scale = dict(n_cells=n_cells, n_genes=n_genes, lib_loc=8.4 + math.log(n_genes / 20_000))  # about 10 % are not zero
    tissue = simulate(**scale, stress_genes=("PGK1",))
    values = log_normalised(tissue, list(tissue.var_names))
    cells = CellDataset([]).batch(values, []).cells
    labels = torch.from_numpy(tissue.obs["cell_type"].cat.codes.to_numpy(np.int64, copy=True))
    torch.manual_seed(0)
    settings = get_recipe("thesis" if method == "thesis" else "default").network_settings | {"n_models": 1}
    n_classes, is_ours = int(labels.max()) + 1, method in METHODS[2:]
    network = TabNet(n_genes, n_classes, **settings) if is_ours else stock(n_genes, n_classes, method)
    cells = cells if is_ours else cells.to_dense()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)  # pytorch-tabnet's default

    def train():
        optimizer.zero_grad()
        cross_entropy(network.train()(cells)[0].view(n_cells, -1), labels).backward()
        optimizer.step()

    for _ in range(WARM_UP if is_ours else 1):
        train()
    predict = torch.no_grad()(lambda: network.eval()(cells))
    masks = torch.no_grad()(lambda: network.eval().forward_masks(cells))
    explain = (lambda: explain_batch(network.eval(), cells)) if is_ours else masks  # ours has contributions, too
    row = {"genes": f"{n_genes:,}", "batch": f"{n_cells:,}", "method": method}
    for name, run in (("training", train), ("prediction", predict), ("explanation", explain)):
        run()
        seconds = timeit.repeat(run, number=1, repeat=7, timer=time.process_time)
        row[f"{name}, ms"] = f"{1e3 * statistics.median(seconds):,.1f}"
    return row | {"peak, MB": f"{peak_megabytes():,}"}


class WithoutIdentity:
    """Stands for the genes x genes identity of pytorch-tabnet's encoder: a product with it changes nothing."""

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), options=None):
        """The first factor of a product."""
        return arguments[0]


def stock(n_genes: int, n_classes: int, method: str) -> torch.nn.Module:
    """pytorch-tabnet's network, with its identity or without."""
    if method == "stock":
        return TabNetNoEmbeddings(n_genes, n_classes)
    network = TabNetNoEmbeddings(n_genes, n_classes, group_attention_matrix=torch.empty(n_genes, 0))
    network.encoder.group_attention_matrix = WithoutIdentity()
    return network


def loaders(arguments: argparse.Namespace) -> list[dict]:
    """Cells per second of ways to read a file in batches."""
    with tempfile.TemporaryDirectory() as folder:
        write_random(path := Path(folder, "cells.h5ad"), 100_000, 20_000)
        return [apart(one_way, way, path, arguments.seconds) for way in WAYS]


def write_random(path: Path, n_cells: int, n_genes: int, expressed: int = 500) -> None:
    """A file of counts of one to nine, of so many random genes in each cell."""
    random, step = np.random.default_rng(0), n_genes // expressed  # one gene of each stretch, so that none comes twice
    genes = (np.arange(expressed) * step + random.integers(0, step, (n_cells, expressed))).ravel()
    counts = random.integers(1, 10, n_cells * expressed).astype(np.float32)
    X = sparse.csr_matrix((counts, genes, np.arange(n_cells + 1) * expressed), (n_cells, n_genes))
    ad.AnnData(X, var=pd.DataFrame(index=[f"GENE{i}" for i in range(n_genes)])).write_h5ad(path)


def one_way(way: str, path: Path, seconds: float) -> dict[str, object]:
    """Cells per second after the first batch, and the peak."""
    batches = WAYS[way](path)
    next(batches)
    n_cells, started = 0, time.perf_counter()
    while (spent := time.perf_counter() - started) < seconds and (size := next(batches, None)):
        n_cells += size
    return {"way": way, "cells per second": f"{n_cells / spent:,.0f}", "peak, MB": f"{peak_megabytes():,}"}


def slices(path: Path) -> Iterator[int]:
    """Consecutive rows, not shuffled: the fastest that a file allows."""
    with h5py.File(path) as file:
        for start in range(0, len(file["X/indptr"]) - 1, BATCH):
            yield sparse_dataset(file["X"])[start : start + BATCH].shape[0]


def ours(cells: ad.AnnData) -> Iterator[int]:
    """Shuffled batches, normalised and as tensors."""
    dataset = CellDataset([Expression(cells)])
    return (batch.cells.shape[0] for batch in CellLoader(dataset, range(len(dataset)), BATCH, shuffle=True))


WAYS = {
    f"slices of {BATCH}, not shuffled": slices,
    "sims_kit, in memory": lambda path: ours(ad.read_h5ad(path)),
    "sims_kit, on disk": lambda path: ours(open_backed(path)),
}


def growth(arguments: argparse.Namespace) -> list[dict]:
    """Time and memory of an epoch and of `annotate` against cells (of 2,000 genes) and genes (of 2,000 cells)."""
    rows, keys = pd.read_csv(TABLE), ["cells", "genes", "from"]
    for cells, genes, place in SIZES:
        if not (rows[keys] == [cells, genes, place]).all(axis=1).any():
            with tempfile.TemporaryDirectory() as folder:
                apart(write_simulated, path := Path(folder, "cells.h5ad"), cells, genes)
                found = apart(fit_and_annotate, path, place)
            row = {"cells": cells, "genes": genes, "from": place} | found
            rows = pd.concat([rows, pd.DataFrame([row])], ignore_index=True)
            rows.to_csv(TABLE, index=False)
    draw(rows)
    return rows


def write_simulated(path: Path, cells: int, genes: int) -> None:
    """A file of simulated cortex, written chunk by chunk."""
    scale = dict(n_cells=cells, n_genes=genes, lib_loc=math.log(genes))  # a thousand counts per thousand genes
    simulation = Simulation(replace(PRESETS["sim-cortex"]["fast"], **scale))
    ad.AnnData(obs=simulation.obs[["cell_type"]], var=simulation.var).write_h5ad(path)
    chunks = simulation.chunks()
    with h5py.File(path, "a") as file:
        file.pop("X", None)
        write_elem(file, "X", next(chunks), dataset_kwargs=dict(indptr_dtype=np.int64))
        for chunk in chunks:
            sparse_dataset(file["X"]).append(chunk)


def fit_and_annotate(path: Path, place: str) -> dict[str, float]:
    """An epoch of one network of the default recipe, without validation, and `annotate` of the same cells."""
    started = time.perf_counter()
    recipe = replace(get_recipe("default"), n_models=1, max_epochs=1, batch_size=BATCH)
    options = dict(recipe=recipe, backed=place == "disk", validation=0, test=0, verbose=False, logger=False)
    model = sk.fit(path, "cell_type", **options)
    fitted, while_training = time.perf_counter(), peak_megabytes()
    sk.annotate(path, model, backed=place == "disk")
    found = {"epoch, s": fitted - started, "annotate, s": time.perf_counter() - fitted}
    return found | {"fit, MB": while_training, "annotate, MB": peak_megabytes()}


def draw(rows: pd.DataFrame) -> None:
    """Time above, memory below; cells on the left, genes on the right."""
    figure, axes = plt.subplots(2, 2, figsize=(9, 7), layout="constrained")
    for column, axis, other in zip(axes.T, ("cells", "genes"), ("genes", "cells"), strict=True):
        for place, part in rows[rows[other] == 2_000].sort_values(axis).groupby("from"):
            for verb, colour in (("epoch", "C0"), ("annotate", "C1")):
                style = dict(color=colour, ls="-" if place == "disk" else "--", label=f"{verb}, from {place}")
                column[0].loglog(part[axis], part[f"{verb}, s"], "o", **style)
                memory = part["fit, MB" if verb == "epoch" else "annotate, MB"]
                column[1].semilogx(part[axis], memory, "o", **style)
        column[0].set_ylabel("seconds")
        column[1].set(ylim=(0, None), ylabel="highest memory, MB", xlabel=f"{axis}, of 2,000 {other}")
    axes[0, 1].legend(frameon=False, fontsize=8)
    figure.savefig(FIGURE, dpi=120)


COMMANDS = {"step": steps, "loader": loaders, "scale": growth}

if __name__ == "__main__":
    main()

"""Speed and memory, measured: training steps, predictions, explanations, loading, and growth with size.

    python benchmarks/speed.py step [--genes 2000 20000] [--batch-sizes 256 1024] [--threads 1] [--device cpu]
    python benchmarks/speed.py loader [--cells 100000] [--genes 20000] [--seconds 20]
    python benchmarks/speed.py scale [--cells 10000 50000 1000000] [--genes 1000 4000 16000] [--folder DIR]

Every row is a process of its own; memory is the highest resident (Linux); on one thread of a CPU, steps are in CPU
time. Stock is pytorch-tabnet with the thesis recipe's sizes; "no identity" is it without its genes x genes identity.
"""

import argparse
import math
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
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
from study_page import ROOT
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
QUIET = dict(test=0, verbose=False, logger=False)
METHODS = ("stock", "no identity", "thesis", "one network of the default")
WARM_UP = 50  # steps that make the masks of our networks as narrow as trained ones
BATCH = 256


def main() -> None:
    """Measure what is asked for, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=COMMANDS)
    parser.add_argument("--genes", type=int, nargs="+")
    parser.add_argument("--cells", type=int, nargs="+")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--seconds", type=float, default=20, help="for each way to load")
    parser.add_argument("--folder", type=Path, help="for simulated files; by default one that goes afterwards")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    arguments = parser.parse_args()
    print(f"{arguments.device}, threads: {arguments.threads}, torch {torch.__version__}\n")
    with tempfile.TemporaryDirectory() as temporary:
        arguments.folder = arguments.folder or Path(temporary)
        arguments.folder.mkdir(parents=True, exist_ok=True)
        COMMANDS[arguments.what](arguments)


def apart(threads: int, function: Callable, *arguments):
    """The result of a function in a process of its own, with so many threads."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(torch.set_num_threads, threads).result()
        return pool.submit(function, *arguments).result()


def print_row(*values, is_head: bool = False) -> None:
    """A row of a Markdown table."""
    print(f"| {' | '.join(map(str, values))} |" + "\n|" * is_head + "---|" * len(values) * is_head, flush=True)


def peak_megabytes() -> int:
    """The highest resident memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024


def clock(device: str) -> float:
    """Seconds: CPU time on one thread, else on the clock when the device has done its work."""
    if device == "cpu":
        return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()
    torch.cuda.synchronize()
    return time.perf_counter()


def steps(arguments: argparse.Namespace) -> None:
    """Training, prediction and explanation of a batch."""
    print_row("genes", "batch", "method", "training, ms", "prediction, ms", "explanation, ms", "peak, MB", is_head=True)
    for n_genes in arguments.genes or [2_000, 20_000]:
        for n_cells in arguments.batch_sizes:
            for method in METHODS:
                found = apart(arguments.threads, one_step, method, n_genes, n_cells, arguments.device)
                print_row(f"{n_genes:,}", f"{n_cells:,}", method, *found)


def one_step(method: str, n_genes: int, n_cells: int, device: str) -> list[str]:
    """Milliseconds of a training step, a prediction and an explanation, and the peak of memory."""
    scale = dict(n_cells=n_cells, n_genes=n_genes, lib_loc=8.4 + math.log(n_genes / 20_000))  # about 10 % are not zero
    tissue = simulate(**scale, stress_genes=("PGK1",))
    values = log_normalised(tissue, list(tissue.var_names))
    cells = CellDataset([]).batch(values, []).cells
    labels = torch.from_numpy(tissue.obs["cell_type"].cat.codes.to_numpy(np.int64, copy=True)).to(device)
    torch.manual_seed(0)
    settings = get_recipe("thesis" if method == "thesis" else "default").network_settings | {"n_models": 1}
    n_classes, is_ours = int(labels.max()) + 1, method in METHODS[2:]
    network = TabNet(n_genes, n_classes, **settings) if is_ours else stock(n_genes, n_classes, method)
    network, cells = network.to(device), (cells if is_ours else cells.to_dense()).to(device)
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
    found = []
    for run in (train, predict, explain):
        run()
        seconds = []
        while len(seconds) < 7 and sum(seconds) < 20:
            started = clock(device)
            run()
            seconds.append(clock(device) - started)
        found.append(f"{1e3 * statistics.median(seconds):,.1f}")
    memory = peak_megabytes() if device == "cpu" else torch.cuda.max_memory_allocated() // 2**20
    return [*found, f"{memory:,}"]


class WithoutIdentity(torch.Tensor):
    """Stands for the genes x genes identity of pytorch-tabnet's encoder: a product with it changes nothing."""

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), options=None):
        """The first factor of a product; anything else is done as with any tensor."""
        if function is torch.matmul:
            return arguments[0]
        return super().__torch_function__(function, types, arguments, options)


def stock(n_genes: int, n_classes: int, method: str) -> torch.nn.Module:
    """pytorch-tabnet's network, with its identity or without."""
    if method == "stock":
        return TabNetNoEmbeddings(n_genes, n_classes)
    network = TabNetNoEmbeddings(n_genes, n_classes, group_attention_matrix=torch.empty(n_genes, 0))
    network.encoder.group_attention_matrix = torch.empty(0).as_subclass(WithoutIdentity)
    return network


def loaders(arguments: argparse.Namespace) -> None:
    """Cells per second of ways to read a file in batches."""
    path = arguments.folder / "cells.h5ad"
    n_cells, n_genes = (arguments.cells or [100_000])[0], (arguments.genes or [20_000])[0]
    write_random(path, n_cells, n_genes)
    print_row("way", "cells per second", "peak, MB", is_head=True)
    for way in WAYS:
        speed, memory = apart(arguments.threads, one_way, way, path, arguments.seconds)
        print_row(way, f"{speed:,.0f}", f"{memory:,}")


def write_random(path: Path, n_cells: int, n_genes: int, expressed: int = 500) -> None:
    """A file of counts of one to nine, of so many random genes in each cell."""
    random, step = np.random.default_rng(0), n_genes // expressed  # one gene of each stretch, so that none comes twice
    genes = (np.arange(expressed) * step + random.integers(0, step, (n_cells, expressed))).ravel()
    counts = random.integers(1, 10, n_cells * expressed).astype(np.float32)
    X = sparse.csr_matrix((counts, genes, np.arange(n_cells + 1) * expressed), (n_cells, n_genes))
    ad.AnnData(X, var=pd.DataFrame(index=[f"GENE{i}" for i in range(n_genes)])).write_h5ad(path)


def one_way(way: str, path: Path, seconds: float) -> tuple[float, int]:
    """Cells per second after the first batch, and the peak."""
    batches = WAYS[way](path)
    next(batches)
    n_cells, started = 0, time.perf_counter()
    while (spent := time.perf_counter() - started) < seconds and (size := next(batches, None)):
        n_cells += size
    return n_cells / spent, peak_megabytes()


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


def growth(arguments: argparse.Namespace) -> None:
    """Time and memory of an epoch and of `annotate` against cells (of 2,000 genes) and genes (of 2,000 cells)."""
    keys = ["cells", "genes", "from"]
    rows = pd.read_csv(TABLE) if TABLE.exists() else pd.DataFrame(columns=keys)
    sizes = [(n, 2_000) for n in arguments.cells or [10_000, 50_000, 1_000_000]]
    for cells, genes in [*sizes, *((2_000, n) for n in arguments.genes or [1_000, 4_000, 16_000])]:
        for place in ("disk", "memory"):
            known = (rows[keys] == [cells, genes, place]).all(axis=1).any()
            if known or (place == "memory" and cells > 100_000):
                continue
            path = arguments.folder / f"{cells}-{genes}.h5ad"
            if not path.exists():
                apart(arguments.threads, write_simulated, path, cells, genes)
            found = apart(arguments.threads, fit_and_annotate, path, place)
            row = {"cells": cells, "genes": genes, "from": place} | found
            print(row, flush=True)
            rows = pd.concat([rows, pd.DataFrame([row])], ignore_index=True)
            rows.to_csv(TABLE, index=False)
    draw(rows)


def write_simulated(path: Path, cells: int, genes: int) -> None:
    """A file of simulated cortex, written chunk by chunk."""
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


def fit_and_annotate(path: Path, place: str) -> dict[str, float]:
    """An epoch of one network of the default recipe, without validation, and `annotate` of the same cells."""
    started = time.perf_counter()
    recipe = replace(get_recipe("default"), n_models=1, max_epochs=1, batch_size=BATCH)
    model = sk.fit(path, "cell_type", recipe=recipe, backed=place == "disk", validation=0, **QUIET)
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

"""Peak memory and time of training steps at transcriptome width, beside pytorch-tabnet's network.

    python benchmarks/memory.py [--genes 20000] [--batch-size 256] [--steps 5]

Each row is a process of its own, on the same simulated cells (10 % nonzeros, 20 classes). "Start" is the peak before
the network exists, libraries imported and cells made; "peak" is the highest resident memory of the process.
The last row is all of `sims_kit.fit`: 2,000 cells, one epoch with its validation, the checkpoint and its return.
"""

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time

import torch
from torch.nn.functional import cross_entropy


def measure(make: str, n_genes: int, batch_size: int, n_steps: int, answer) -> None:
    """Train a few steps and send back start and peak memory in GB, and seconds per step."""
    cells, labels = torch.zeros(batch_size, n_genes), torch.arange(batch_size) % 20
    cells[torch.rand(batch_size, n_genes) < 0.1] = 1.5
    start = _peak()
    network = _network(make, n_genes)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    seconds = []
    for _ in range(n_steps):
        started = time.perf_counter()
        optimizer.zero_grad()
        cross_entropy(network(cells)[0], labels).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - started)
    answer.put((start, _peak(), sorted(seconds)[len(seconds) // 2]))


def measure_fit(make: str, n_genes: int, batch_size: int, n_steps: int, answer) -> None:
    """The same for one epoch of `sims_kit.fit`; seconds are per step, validation and checkpoint included."""
    import anndata as ad
    import pandas as pd
    from scipy import sparse

    import sims_kit as sk

    counts = sparse.random(2000, n_genes, density=0.1, format="csr", dtype="float32", random_state=0)
    counts.data[:] = 1 + (counts.data * 5).astype(int)
    cells = ad.AnnData(counts, obs=pd.DataFrame({"cell_type": [f"type {i % 20}" for i in range(2000)]}))
    start, started = _peak(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        quiet = dict(verbose=False, logger=False, enable_progress_bar=False, default_root_dir=folder)
        sk.fit(cells, "cell_type", recipe=make, batch_size=batch_size, max_epochs=1, test=0, **quiet)
    answer.put((start, _peak(), (time.perf_counter() - started) / (1800 / batch_size)))


def _network(make: str, n_genes: int) -> torch.nn.Module:
    from pytorch_tabnet.tab_network import TabNetNoEmbeddings

    from sims_kit.model import RECIPES
    from sims_kit.model.network import make_network

    if make == "pytorch-tabnet":
        return TabNetNoEmbeddings(n_genes, 20)
    return make_network(n_genes, 20, **RECIPES[make].network)


def _peak() -> float:
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, kibibytes on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def main() -> None:
    """Measure each network and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--genes", type=int, default=20_000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=5)
    arguments = parser.parse_args()
    print(f"{arguments.genes:,} genes, batches of {arguments.batch_size}, {torch.get_num_threads()} threads\n")
    print("| process | start, GB | peak, GB | seconds per step (median) |\n|---|---|---|---|")
    context = multiprocessing.get_context("spawn")
    rows = [("thesis", measure), ("default", measure), ("pytorch-tabnet", measure), ("default", measure_fit)]
    for make, target in rows:
        answer = context.Queue()
        sizes = (arguments.genes, arguments.batch_size, arguments.steps)
        process = context.Process(target=target, args=(make, *sizes, answer))
        process.start()
        start, peak, seconds = answer.get()
        process.join()
        name = f"sk.fit, {make} recipe" if target is measure_fit else f"training steps, {make}"
        print(f"| {name} | {start:.2f} | {peak:.2f} | {seconds:.2f} |", flush=True)


if __name__ == "__main__":
    main()

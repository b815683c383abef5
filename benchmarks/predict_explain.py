"""Prediction and explanation beside pytorch-tabnet: cells per second and memory.

    python benchmarks/predict_explain.py [--quick] [--threads 1] [--device cpu] [--genes 20000]

Methods are "stock", pytorch-tabnet's network as it is; "no identity", the same without its product with a genes x genes
identity; "dense top-k", ours with masks on all genes; and "ours". They have equal weights, after a short training, and
take turns; the last two take cells sparse, the others dense. pytorch-tabnet explains by `forward_masks`. The second
table is `sims_kit.annotate` and `sims_kit.explain` on counts, with all that they do.

`tabnet_step.py` takes its networks, cells and measures from here.
"""

import argparse
import multiprocessing
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import anndata as ad
import numpy as np
import torch
from pytorch_tabnet.tab_network import TabNetNoEmbeddings
from torch import nn
from torch.nn.functional import cross_entropy

import sims_kit as sk
from sims_kit.cells.matrix import Scale, normalise
from sims_kit.datasets.simulate import simulate
from sims_kit.model import RECIPES, TabNet

METHODS = ("stock", "no identity", "dense top-k", "ours")
NETWORKS = {
    "small": dict(n_d=8, n_a=8, n_steps=3),
    "big": dict(n_d=64, n_a=64, n_steps=5),
    "default": {name: value for name, value in RECIPES["default"].network.items() if name != "n_models"},  # one of them
}
N_TYPES = 19  # of the simulated cortex
WARM_UP = {"small": 20, "big": 20, "default": 100}  # steps; masks of the last start at their widest
LAMBDA_SPARSE = 1e-3  # pytorch-tabnet's default
STILL = 1e-7  # learning rate: Adam does its work, and the masks stay as wide as they are
LONGEST = 60.0  # seconds that a single step may take, as told by the product with the identity
BUDGET = 6.0  # seconds after which a method takes no more turns
COLD = 15.0  # seconds of a first turn, in which memory is mapped, from which on it is the only one
LARGEST = 0.5  # share of the machine's memory that one method may need

HEAD = (
    "| task | cells at once | method | cells/s | faster than stock | than no identity | than dense top-k | MB at most |"
)


def main() -> None:
    """Measure every batch size, then the two verbs, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--genes", type=int, default=20_000)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["small"])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--cells", type=int, default=5_000, help="for annotate and explain; 0: leave them out")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--quick", action="store_true", help="2,000 genes, one batch size, 500 cells")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.genes, arguments.batch_sizes, arguments.cells = 2_000, [256], 500
    print_setup(arguments)
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.networks:
            path = Path(folder, f"{name}.pt")
            apart(prepare, path, arguments.genes, name, max(arguments.batch_sizes))
            print(f"\n{name} network, {arguments.genes:,} genes\n\n{HEAD}\n{re.sub('[^|]+', '---', HEAD)}")
            for n_cells in arguments.batch_sizes:
                for task in TASKS:
                    print_rows(path, task, name, n_cells, arguments)
    if arguments.cells:
        print("\n| verb | cells | genes | cells/s | MB at most |\n|---|---|---|---|---|")
        for verb, (speed, memory) in apart(verbs, arguments.cells, arguments.genes, arguments.threads).items():
            amount = "" if memory is None else f"{memory / 1e6:,.0f}"
            print(f"| sk.{verb} | {arguments.cells:,} | {arguments.genes:,} | {speed:,.0f} | {amount} |", flush=True)


def print_setup(arguments: argparse.Namespace) -> None:
    """The machine's side of the numbers; leaves the program if there is no such device."""
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("Not run: this machine has no CUDA device that torch can use.")
    unit = "CPU time" if arguments.threads == 1 and arguments.device == "cpu" else "time on the clock"
    print(f"{arguments.device}, threads: {arguments.threads}, {unit}, torch {torch.__version__}")
    if arguments.device == "cpu":
        print("Not run: CUDA (ask with --device cuda).")
    print()


def print_rows(path: Path, task: str, name: str, n_cells: int, arguments: argparse.Namespace) -> None:
    """Measure one task at one batch size, and print its rows."""
    reasons = {method: too_much(method, name, arguments.genes, n_cells, training=False) for method in METHODS}
    methods, options = [method for method in METHODS if not reasons[method]], (arguments.threads, arguments.device)
    seconds = apart(timed, path, task, methods, n_cells, arguments.rounds, *options)
    for method in METHODS:
        start = f"| {task} | {n_cells:,} | {method} |"
        if reasons[method]:
            print(f"{start} not run: {reasons[method]} | | | | |", flush=True)
            continue
        memory = apart(peak, path, task, method, n_cells, *options)
        ratios = [f"{seconds[other] / seconds[method]:.1f}" if other in seconds else "" for other in METHODS[:3]]
        amount = "" if memory is None else f"{memory / 1e6:,.0f}"
        print(f"{start} {n_cells / seconds[method]:,.0f} | {' | '.join(ratios)} | {amount} |", flush=True)


def timed(path: Path, task: str, methods: Sequence[str], n_cells: int, rounds: int, threads: int, device: str) -> dict:
    """Median seconds of a batch, by method."""
    torch.set_num_threads(threads)
    problem = Problem(**torch.load(path))
    runs = {method: TASKS[task](problem, method, n_cells, device) for method in methods}
    return turns(runs, rounds, clock(threads, device))


def peak(path: Path, task: str, method: str, n_cells: int, threads: int, device: str) -> float | None:
    """Bytes that a batch needs at most, over what libraries, weights and the batch hold."""
    torch.set_num_threads(threads)
    problem = Problem(**torch.load(path))
    TASKS[task](problem, method, 4, device)()  # what libraries hold from now on is not the batch's
    return peak_of(TASKS[task](problem, method, n_cells, device), 1, device)


def verbs(n_cells: int, n_genes: int, threads: int) -> dict[str, tuple[float, float | None]]:
    """Cells per second on the clock, and bytes at most, of `annotate` and `explain`."""
    torch.set_num_threads(threads)
    tissue = simulated(n_cells, n_genes)
    quiet = dict(verbose=False, logger=False, enable_progress_bar=False, enable_checkpointing=False)
    model = sk.fit(tissue[:1000].copy(), "cell_type", max_epochs=1, test=0, **quiet)
    query, measured = ad.AnnData(tissue.X, var=tissue.var[[]]), {}
    for verb, run in (("annotate", lambda: sk.annotate(query, model)), ("explain", lambda: sk.explain(model, query))):
        started = time.perf_counter()
        memory = peak_of(run, 1, "cpu")
        measured[verb] = n_cells / (time.perf_counter() - started), memory
    return measured


class Problem(NamedTuple):
    """What every method gets: cells, labels, and the weights of a network that has been trained for a while."""

    cells: torch.Tensor  # CSR
    labels: torch.Tensor
    settings: Mapping
    state: Mapping[str, torch.Tensor]

    def network(self, method: str, device: str = "cpu") -> nn.Module:
        """The network of a method, with these weights."""
        n_genes = self.cells.shape[1]
        if method in ("ours", "dense top-k"):
            network = TabNet(n_genes, N_TYPES, **self.settings)
            network.narrow = network.narrow if method == "ours" else -1
        else:
            network = pytorch_tabnet(n_genes, self.settings, identity=method == "stock")
        network.load_state_dict(self.state, strict=False)
        return network.to(device)

    def batch(self, method: str, n_cells: int, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
        """Cells as the method takes them, and their labels."""
        end = self.cells.crow_indices()[n_cells]
        rows = self.cells.crow_indices()[: n_cells + 1], self.cells.col_indices()[:end], self.cells.values()[:end]
        cells = torch.sparse_csr_tensor(*rows, (n_cells, self.cells.shape[1]))
        cells = cells if method in ("ours", "dense top-k") else cells.to_dense()
        return cells.to(device), self.labels[:n_cells].to(device)


class WithoutIdentity(torch.Tensor):
    """Stands for the genes x genes identity of pytorch-tabnet's encoder: a product with it changes nothing."""

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), options=None):
        """The first factor of a product; anything else is done as with any tensor."""
        if function is torch.matmul:
            return arguments[0]
        return super().__torch_function__(function, types, arguments, options)


def pytorch_tabnet(n_genes: int, settings: Mapping, identity: bool) -> nn.Module:
    """pytorch-tabnet's network, as it is or without its product with a genes x genes identity."""
    if identity:
        return TabNetNoEmbeddings(n_genes, N_TYPES, **settings)
    network = TabNetNoEmbeddings(n_genes, N_TYPES, **settings, group_attention_matrix=torch.empty(n_genes, 0))
    network.encoder.group_attention_matrix = torch.empty(0).as_subclass(WithoutIdentity)
    return network


def simulated(n_cells: int, n_genes: int) -> ad.AnnData:
    """Counts of a simulated cortex, about 10 % of them not zero at any number of genes."""
    depth = 8.4 + np.log(n_genes / 20_000)  # counts per cell, on the log scale
    return simulate(n_cells=n_cells, n_genes=n_genes, lib_loc=depth, stress_genes=("PGK1",))


def prepare(path: Path, n_genes: int, name: str, n_cells: int) -> None:
    """Simulate cells, train a network on them for a while, and store both."""
    tissue = simulated(n_cells, n_genes)
    matrix = normalise(tissue.X, Scale("linear"))
    positions = (torch.from_numpy(part.astype("int64")) for part in (matrix.indptr, matrix.indices))  # as the kit's
    cells = torch.sparse_csr_tensor(*positions, torch.from_numpy(matrix.data), matrix.shape)
    labels = torch.from_numpy(tissue.obs["cell_type"].astype("category").cat.codes.to_numpy("int64", copy=True))
    torch.manual_seed(0)
    network = TabNet(n_genes, N_TYPES, **NETWORKS[name])
    problem = Problem(cells, labels, NETWORKS[name], network.state_dict())
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)  # pytorch-tabnet's default
    batch = problem.batch("ours", min(n_cells, 256))
    for _ in range(WARM_UP[name]):
        step(network, optimizer, *batch)
    torch.save(problem._replace(state=network.state_dict())._asdict(), path)


def step(network: nn.Module, optimizer: torch.optim.Optimizer, cells: torch.Tensor, labels: torch.Tensor) -> None:
    """One step of training."""
    optimizer.zero_grad()
    logits, entropy = network(cells)
    sign = 1 if hasattr(network, "steps") else -1  # pytorch-tabnet gives the entropy's negative
    (cross_entropy(logits, labels) + sign * LAMBDA_SPARSE * entropy).backward()
    optimizer.step()


def training_step(problem: Problem, method: str, n_cells: int, device: str) -> Callable[[], None]:
    """A function that takes one step of a method; Adam and gradients have their memory already, the batch has not."""
    network = problem.network(method, device).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=STILL, fused=True)  # for all: as fast as Adam can be
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    batch = []

    def run():
        batch.extend(() if batch else problem.batch(method, n_cells, device))
        step(network, optimizer, *batch)

    return run


def prediction(problem: Problem, method: str, n_cells: int, device: str) -> Callable[[], None]:
    """A function that predicts a batch."""
    network, (cells, _) = problem.network(method, device).eval(), problem.batch(method, n_cells, device)
    return torch.no_grad()(lambda: network(cells))


def explanation(problem: Problem, method: str, n_cells: int, device: str) -> Callable[[], None]:
    """A function that explains a batch."""
    network, (cells, _) = problem.network(method, device).eval(), problem.batch(method, n_cells, device)
    explain = network.explain if hasattr(network, "explain") else network.forward_masks
    return torch.no_grad()(lambda: explain(cells))


TASKS = {"prediction": prediction, "explanation": explanation}


def clock(threads: int, device: str) -> Callable[[], float]:
    """Seconds: of this process's CPU time on one thread, else on the wall, when the device has done its work."""
    if device != "cpu":
        return lambda: torch.cuda.synchronize() or time.perf_counter()
    return time.process_time if threads == 1 else time.perf_counter


def turns(runs: Mapping[str, Callable[[], None]], rounds: int, now: Callable[[], float]) -> dict[str, float]:
    """Median seconds of each function; they take turns. The first turn does not count, unless it takes very long."""
    seconds = {name: [] for name in runs}
    for _ in range(1 + rounds):
        for name, run in runs.items():
            spent = sum(seconds[name])
            if spent < BUDGET or (len(seconds[name]) == 1 and spent < COLD):
                started = now()
                run()
                seconds[name].append(now() - started)
    return {name: statistics.median(times[1:] or times) for name, times in seconds.items()}


def peak_of(run: Callable[[], None], n_times: int, device: str) -> float | None:
    """Bytes that a function needs at most, over what the process holds before."""
    if device == "cpu" and sys.platform != "linux":
        return None
    if device == "cpu":
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of what came before
    else:
        torch.cuda.reset_peak_memory_stats()
    before = _kilobytes("VmRSS") * 1024 if device == "cpu" else torch.cuda.memory_allocated()
    for _ in range(n_times):
        run()
    return (_kilobytes("VmHWM") * 1024 if device == "cpu" else torch.cuda.max_memory_allocated()) - before


def _kilobytes(name: str) -> int:
    return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


@torch.no_grad()
def mask_width(network: nn.Module, cells: torch.Tensor) -> float:
    """Genes per mask, mean over cells and steps."""
    return statistics.mean((mask.weights > 0).sum().item() / len(cells) for mask, *_ in network.steps(cells))


def apart(function, *arguments):
    """The same in a process of its own, which leaves nothing behind."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sims_kit"])  # seconds to import, so do it once
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def too_much(method: str, name: str, n_genes: int, n_cells: int, training: bool = True) -> str | None:
    """Why a method is not run, or None. Told by sizes alone, in bytes and multiplications."""
    if method == "ours":
        return None
    if name == "default" and method != "dense top-k":
        return "has no such options"
    steps, identity = NETWORKS[name]["n_steps"], 4 * n_genes**2 * (method == "stock")
    kept = 12 * (1 + steps) if training else 12  # dense batches: what the backward pass needs, or one step holds
    needed = identity + kept * 4 * n_cells * n_genes
    if needed > LARGEST * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
        return f"would need about {needed / 1e9:.0f} GB"
    products = steps * (1 + training) * (method == "stock")  # with the identity, forward and backward
    seconds = products * 2 * n_cells * n_genes**2 / 50e9  # at 50 GFLOP/s, one core's
    return f"would take minutes (about {seconds:.0f} s)" if seconds > LONGEST else None


if __name__ == "__main__":
    main()

"""What the benchmarks of the network share: equal networks and cells for every method, turns, time and memory.

Methods are "stock", pytorch-tabnet's network as it is; "no identity", the same without its product with a genes x genes
identity; "dense top-k", ours with masks on all genes; and "ours". The last two take cells sparse, the others dense.
"""

import multiprocessing
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from pytorch_tabnet.tab_network import TabNetNoEmbeddings
from torch import nn
from torch.nn.functional import cross_entropy

from sims_kit.cells.normalise import normalise
from sims_kit.datasets.simulate import simulate
from sims_kit.model import RECIPES, TabNet

METHODS = ("stock", "no identity", "dense top-k", "ours")
NETWORKS = {
    "small": dict(n_d=8, n_a=8, n_steps=3),
    "big": dict(n_d=64, n_a=64, n_steps=5),
    "default": RECIPES["default"].network,
}
N_TYPES = 19  # of the simulated cortex
WARM_UP = {"small": 20, "big": 20, "default": 100}  # steps; masks of the last start at their widest
LAMBDA_SPARSE = 1e-3  # pytorch-tabnet's default
STILL = 1e-7  # learning rate: Adam does its work, and the masks stay as wide as they are
LONGEST = 60.0  # seconds that a single step may take, as told by the product with the identity
BUDGET = 6.0  # seconds after which a method takes no more turns
LARGEST = 0.5  # share of the machine's memory that one method may need


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


def prepare(path: Path, n_genes: int, name: str, n_cells: int) -> None:
    """Simulate cells, train a network on them for a while, and store both."""
    depth = 8.4 + np.log(n_genes / 20_000)  # counts per cell, on the log scale: for 10 % nonzeros
    tissue = simulate(n_cells=n_cells, n_genes=n_genes, lib_loc=depth, stress_genes=("PGK1",))
    matrix = normalise(tissue.X, "counts")
    cells = torch.sparse_csr_tensor(*map(torch.from_numpy, (matrix.indptr, matrix.indices, matrix.data)), matrix.shape)
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
    optimizer = torch.optim.Adam(network.parameters(), lr=STILL)
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


TASKS = {"training step": training_step, "prediction": prediction}  # of the second table


def clock(threads: int, device: str) -> Callable[[], float]:
    """Seconds: of this process's CPU time on one thread, else on the wall, when the device has done its work."""
    if device != "cpu":
        return lambda: torch.cuda.synchronize() or time.perf_counter()
    return time.process_time if threads == 1 else time.perf_counter


def turns(runs: Mapping[str, Callable[[], None]], rounds: int, now: Callable[[], float]) -> dict[str, float]:
    """Median seconds of each function; they take turns. The first turn does not count, unless it is the only one."""
    seconds = {name: [] for name in runs}
    for _ in range(1 + rounds):
        for name, run in runs.items():
            if sum(seconds[name]) < BUDGET:
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
    return statistics.mean((mask.weights > 0).sum().item() / len(cells) for mask, _ in network.steps(cells))


def apart(function, *arguments):
    """The same in a process of its own, which leaves nothing behind."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("forkserver")) as pool:  # imports only once
        return pool.submit(function, *arguments).result()


def too_much(method: str, name: str, n_genes: int, n_cells: int) -> str | None:
    """Why a method is not run, or None. Told by sizes alone, in bytes and multiplications."""
    if method == "ours":
        return None
    if name == "default" and method != "dense top-k":
        return "has no such options"
    steps, identity = NETWORKS[name]["n_steps"], 4 * n_genes**2 * (method == "stock")
    needed = identity + 12 * (1 + steps) * 4 * n_cells * n_genes  # what sums and masks keep for the backward pass
    if needed > LARGEST * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
        return f"would need about {needed / 1e9:.0f} GB"
    seconds = steps * 2 * 2 * n_cells * n_genes**2 * (method == "stock") / 50e9  # forward and backward, 50 GFLOP/s
    return f"would take minutes (about {seconds:.0f} s)" if seconds > LONGEST else None

"""A training step of TabNet beside pytorch-tabnet's: time, memory, and the distance from what the machine can do.

    python benchmarks/tabnet_step.py [--quick] [--threads 1] [--device cpu] [--genes 2000 20000 50000] [--figure PATH]

A step is forward, cross-entropy and mask entropy, backward and Adam. The methods take turns, so that what else the
machine does falls on all of them; numbers are medians. All have the same weights, after a short training that makes the
masks as narrow as trained ones. Cells are simulated, log-normalised, with about 10 % nonzeros; ours and "dense top-k",
which is ours with masks on all genes, take them sparse, pytorch-tabnet takes them dense.

With one thread the time is CPU time; with more threads, or on CUDA, it is time on the clock. Memory is measured in a
process of its own: the peak over what libraries, weights, gradients and Adam hold, the batch included (and, for stock,
its identity left out: 1.6 GB at 20,000 genes). The bound is the time of the products that no method can leave out (the
first layer forward and backward, the attention of each step) plus a copy of the dense batch, measured in the same turns
at the same shapes.

The second table and the figure show what masks of any width cost, on 20,000 genes in batches of 256.
"""

import argparse
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from predict_explain import (
    BUDGET,
    METHODS,
    NETWORKS,
    Problem,
    apart,
    clock,
    mask_width,
    peak_of,
    prediction,
    prepare,
    print_setup,
    too_much,
    training_step,
    turns,
)
from sims_kit._drawing import BLUE, ORANGE

TASKS = {"training step": training_step, "prediction": prediction}  # of the second table
WIDTHS = (3, 10, 30, 100, 300, 1_000, 3_000, 20_000)  # genes per mask; the last are all
HEAD = (
    "| genes | network | cells | method | ms per step | faster than stock | than no identity | than dense top-k "
    "| cells/s | times the bound | MB at most (dense batches) |"
)


def products(problem: Problem, n_cells: int, device: str) -> Callable[[], None]:
    """The bound: a function that does the products that no method can leave out, and copies the dense batch."""
    n_genes, settings = problem.cells.shape[1], problem.settings
    width, ghost = 2 * (settings["n_d"] + settings["n_a"]), min(n_cells, 128)  # pytorch-tabnet's ghost batches
    dense = problem.batch("stock", n_cells, device)[0]
    copy, logits = torch.empty_like(dense), torch.empty(ghost, n_genes, device=device)
    weight, attend = torch.randn(n_genes, width, device=device), torch.randn(settings["n_a"], n_genes, device=device)
    gradient, attention = torch.randn(n_cells, width, device=device), torch.randn(ghost, settings["n_a"], device=device)

    def run():
        copy.copy_(dense)
        copy @ weight
        gradient.T @ copy
        for _ in range(settings["n_steps"] * n_cells // ghost):
            torch.mm(attention, attend, out=logits)

    return run


def timed(path: Path, methods: Sequence[str], n_cells: int, rounds: int, threads: int, device: str) -> dict[str, float]:
    """Median seconds of a step of each method, of the bound (``"bound"``), and the mean mask width (``"width"``)."""
    torch.set_num_threads(threads)
    problem = Problem(**torch.load(path))
    runs = {method: training_step(problem, method, n_cells, device) for method in methods}
    runs["bound"] = products(problem, n_cells, device)
    seconds = turns(runs, rounds, clock(threads, device))
    return seconds | {"width": mask_width(problem.network("ours").train(), problem.batch("ours", n_cells)[0])}


def peak(path: Path, method: str, n_cells: int, n_steps: int, threads: int, device: str) -> float | None:
    """Bytes that steps of a method need at most, over what weights, gradients and Adam hold; None where not known."""
    torch.set_num_threads(threads)
    problem = Problem(**torch.load(path))
    training_step(problem, method, 4, device)()  # what libraries hold from now on is not the step's
    return peak_of(training_step(problem, method, n_cells, device), n_steps, device)


def widths(path: Path, targets: Sequence[int], rounds: int, threads: int, device: str) -> list[dict[str, float]]:
    """Seconds of training and prediction on masks of each width, ours and dense."""
    torch.set_num_threads(threads)
    problem, rows = Problem(**torch.load(path)), []
    for target in targets:
        widened = widen(problem, target)
        rows.append({})
        for task, make in TASKS.items():
            runs = {method: make(widened, method, 256, device) for method in ("dense top-k", "ours")}
            seconds = turns(runs, rounds, clock(threads, device))
            rows[-1] |= {(task, method): seconds[method] for method in runs}
            network = widened.network("dense top-k").train(make is training_step)
            rows[-1][task, "width"] = mask_width(network, widened.batch("ours", 256)[0])
    return rows


def widen(problem: Problem, target: float) -> Problem:
    """The problem with attention scaled, by bisection, so that masks keep as many genes as wanted in training."""
    cells, network = problem.batch("ours", 256)[0], problem.network("dense top-k").train()
    norms = [attend.bn.bn for attend in network.encoder.att_transformers]
    start = [(norm.weight.data.clone(), norm.bias.data.clone()) for norm in norms]
    low, high = -9.0, 3.0  # powers of ten; masks widen as the attention shrinks
    for _ in range(14):
        exponent = (low + high) / 2
        for norm, (weight, bias) in zip(norms, start, strict=True):
            norm.weight.data, norm.bias.data = weight * 10**exponent, bias * 10**exponent
        low, high = (exponent, high) if mask_width(network, cells) > target else (low, exponent)
    network.refresh_statistics([cells])
    return problem._replace(state=network.state_dict())


def draw(rows: list[dict[str, float]], path: Path) -> None:
    """Mask width against time, ours and dense, for training and prediction."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True, layout="constrained")
    for ax, task in zip(axes, TASKS, strict=True):
        for method, colour, marker in (("dense top-k", ORANGE, "s"), ("ours", BLUE, "o")):
            points = [(row[task, "width"], 1e3 * row[task, method]) for row in rows]
            ax.loglog(*zip(*points, strict=True), color=colour, marker=marker, label=method)
        ax.set(title=f"{task}, 256 cells x 20,000 genes", xlabel="genes per mask (mean over cells and steps)")
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("milliseconds")
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=150)


def print_case(path: Path, name: str, n_genes: int, n_cells: int, arguments: argparse.Namespace) -> None:
    """Measure one network at one size, and print its rows."""
    reasons = {method: too_much(method, name, n_genes, n_cells) for method in METHODS}
    methods, options = [name for name in METHODS if reasons[name] is None], (arguments.threads, arguments.device)
    seconds = apart(timed, path, methods, n_cells, arguments.rounds, *options)
    start = f"| {n_genes:,} | {name} | {n_cells:,} |"
    for method in METHODS:
        if reasons[method]:
            print(f"{start} {method} | not run: {reasons[method]} | | | | | | |", flush=True)
            continue
        taken = seconds[method]
        memory = apart(peak, path, method, n_cells, 1 if taken > BUDGET else 3, *options)
        ratios = (seconds[other] / taken if other in seconds else None for other in METHODS[:3])
        values = [f"{1e3 * taken:,.1f}", *(f"{ratio:.1f}" if ratio else "" for ratio in ratios)]
        values += [f"{n_cells / taken:,.0f}", f"{taken / seconds['bound']:.1f}"]
        values += ["" if memory is None else f"{memory / 1e6:,.0f} ({memory / (4 * n_cells * n_genes):.1f})"]
        print(f"{start} {method} | {' | '.join(values)} |", flush=True)
    print(f"{start} bound | {1e3 * seconds['bound']:,.1f} | mask width {seconds['width']:.1f} | | | | | |", flush=True)


def print_widths(path: Path, arguments: argparse.Namespace) -> None:
    """Measure masks of each width, print the table and the worst ratio, and draw the figure."""
    rows = apart(
        widths, path, WIDTHS[::4] if arguments.quick else WIDTHS, arguments.rounds, arguments.threads, arguments.device
    )
    for task in TASKS:
        print(f"\n| genes per mask | {task}: dense top-k, ms | ours, ms | ours / dense |\n|---|---|---|---|")
        worst = 0
        for row in rows:
            dense, ours = 1e3 * row[task, "dense top-k"], 1e3 * row[task, "ours"]
            worst = max(worst, ours / dense)
            print(f"| {row[task, 'width']:,.1f} | {dense:,.1f} | {ours:,.1f} | {ours / dense:.2f} |")
        print(f"\nAt worst {worst:.2f} times the dense path; the goal is at most 1.10.", flush=True)
    draw(rows, arguments.figure)


def main() -> None:
    """Measure every case, print the tables, and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--genes", type=int, nargs="+", default=[2_000, 20_000, 50_000])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--quick", action="store_true", help="the small network on 2,000 genes, two mask widths")
    parser.add_argument("--figure", type=Path, default=Path("docs/mask_width.png"))
    parser.add_argument("--no-widths", action="store_true", help="without the second table and the figure")
    arguments = parser.parse_args()
    print_setup(arguments)
    if arguments.quick:
        arguments.genes, arguments.networks, arguments.rounds = [2_000], ["small"], 3
    print(HEAD + "\n" + re.sub("[^|]+", "---", HEAD))
    with tempfile.TemporaryDirectory() as folder:
        for n_genes in arguments.genes:
            for name in arguments.networks:
                path = Path(folder, f"{n_genes}-{name}.pt")
                apart(prepare, path, n_genes, name, max(arguments.batch_sizes))
                for n_cells in arguments.batch_sizes:
                    print_case(path, name, n_genes, n_cells, arguments)
        if not arguments.no_widths:
            path = Path(folder, "widths.pt")
            apart(prepare, path, 20_000, "small", 256)
            print_widths(path, arguments)


if __name__ == "__main__":
    main()

"""Both recipes beside a linear SVM and logistic regression, on cells that neither has seen.

    python benchmarks/recipes.py [--seeds 3] [--tasks pbmc68k ...] [--out results/recipes.csv]

Prints a Markdown table: accuracy / median F1 on the query, mean over the seeds (of split into training and
validation cells, weights and cell order), with the range over seeds where there are several, and seconds of training.
The query is the same for all methods and seeds.
"""

import argparse
import platform
import time
from importlib.metadata import version
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.svm import LinearSVC

import sims_kit as sk
from sims_kit.cells.batches import query_batches
from sims_kit.cells.genes import shared_genes


def within(name: str):
    """Four fifths of a dataset as reference, the rest as query; stratified, seed 0."""
    cells = sk.load(name)
    label = cells.uns["sims_kit"]["label"]
    rest, query = train_test_split(np.arange(cells.n_obs), test_size=0.2, stratify=cells.obs[label], random_state=0)
    return [cells[rest].copy()], cells[query].copy(), label


def across(references: list[str], query: str):
    """Whole datasets as reference and query."""
    cells = [sk.load(name) for name in references]
    return cells, sk.load(query), cells[0].uns["sims_kit"]["label"]


TASKS = {
    "plates 1 and 2 to 3": lambda: across(["cell-lines-5cl-p1", "cell-lines-5cl-p2"], "cell-lines-5cl-p3"),
    "CEL-seq2 to Drop-seq": lambda: across(["cell-lines-celseq2"], "cell-lines-dropseq"),
    "pbmc68k": lambda: within("pbmc68k"),
    "mouse-immune": lambda: within("mouse-immune"),
    "worm-neurons": lambda: within("worm-neurons"),
}


def linear(make):
    """A scikit-learn classifier on the log-normalised values of the reference's shared genes."""

    def run(references, query, label, seed):
        genes = shared_genes([list(cells.var_names) for cells in references])
        reference = sparse.vstack([_matrix(cells, genes) for cells in references])
        labels = np.concatenate([cells.obs[label].astype(str) for cells in references])
        started = time.perf_counter()
        fitted = make(seed).fit(reference, labels)
        seconds = time.perf_counter() - started
        return fitted.predict(_matrix(query, genes)), None, fitted.classes_, seconds

    return run


def sims(recipe: str):
    """The kit with one of its recipes."""

    def run(references, query, label, seed):
        started = time.perf_counter()
        quiet = dict(verbose=False, logger=False, enable_progress_bar=False, default_root_dir="results/benchmarks")
        model = sk.fit(references, label, recipe=recipe, seed=seed, test=0, **quiet)
        seconds = time.perf_counter() - started
        query = sk.annotate(query, model, copy=True)
        return query.obs["sims_label"].astype(str), query.obsm["sims_probabilities"], model.classes, seconds

    return run


METHODS = {
    "linear SVM": linear(lambda seed: LinearSVC(C=0.01, random_state=seed)),
    "logistic regression": linear(lambda seed: LogisticRegression(C=1, max_iter=1000, random_state=seed)),
    "SIMS, thesis recipe": sims("thesis"),
    "SIMS, default recipe": sims("default"),
}


def main() -> None:
    """Run every method on every task and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--out", type=Path, default=Path("results/recipes.csv"))
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for task in arguments.tasks:
        references, query, label = TASKS[task]()
        truth = query.obs[label].astype(str)
        for method in arguments.methods:
            for seed in range(arguments.seeds if method.startswith("SIMS") else 1):  # the linear ones are convex
                predicted, probabilities, classes, seconds = METHODS[method](references, query, label, seed)
                scores = sk.metrics.score(truth, predicted, probabilities, classes)
                rows.append({"task": task, "method": method, "seed": seed, **scores, "train_seconds": seconds})
                pd.DataFrame(rows).to_csv(arguments.out, index=False)
                print(f"{task}, {method}, seed {seed}: {scores['accuracy_micro']:.3f}, {seconds:.0f} s", flush=True)
    print(f"\n{_machine()}\n\n{_table(pd.DataFrame(rows))}")


def _matrix(cells: ad.AnnData, genes: list[str]) -> sparse.csr_matrix:
    """Log-normalised values on these genes, by the same code that the model's batches come from."""
    batches, _, _ = query_batches(cells, genes)
    parts = [(batch.cells.crow_indices(), batch.cells.col_indices(), batch.cells.values()) for batch in batches]
    return sparse.vstack(
        [
            sparse.csr_matrix((values, columns, rows), shape=(len(rows) - 1, len(genes)))
            for rows, columns, values in (tuple(part.numpy() for part in parts) for parts in parts)
        ]
    )


def _table(rows: pd.DataFrame) -> str:
    lines = ["| query | " + " | ".join(rows["method"].unique()) + " |"]
    lines.append("|---" * (1 + rows["method"].nunique()) + "|")
    for task, of_task in rows.groupby("task", sort=False):
        cells = [_summary(of_method) for _, of_method in of_task.groupby("method", sort=False)]
        lines.append(f"| {task} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _summary(runs: pd.DataFrame) -> str:
    accuracy, f1 = runs["accuracy_micro"], runs["median_f1"]
    spread = f" ({accuracy.min():.3f}-{accuracy.max():.3f})" if len(runs) > 1 else ""
    return f"{accuracy.mean():.3f}{spread} / {f1.mean():.3f}, {runs['train_seconds'].mean():.1f} s"


def _machine() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("sims_kit", "torch", "scikit-learn", "scanpy"))
    return (
        f"{platform.machine()}, {torch.get_num_threads()} torch threads, Python {platform.python_version()}, {packages}"
    )


if __name__ == "__main__":
    main()

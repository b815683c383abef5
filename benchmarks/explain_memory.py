"""Peak memory of `sims_kit.explain`, by number of cells.

    python benchmarks/explain_memory.py [--cells 100000] [--genes 20000] [--expressed 500]

Cells are random: each expresses about as many genes as asked for, markers of its class among them. A model of the
default recipe is trained for two epochs on 1,000 of them. Printed: what the process held before, what the cells and the
explanation take, and the peak.
"""

import argparse
import resource
import time

import anndata as ad
import numpy as np
import pandas as pd
import psutil
import scipy.sparse as sp

import sims_kit as sk

N_CLASSES = 10
MB = 2**20


def main() -> None:
    """Make cells, train, explain, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--genes", type=int, default=20_000)
    parser.add_argument("--expressed", type=int, default=500, help="genes per cell, about")
    arguments = parser.parse_args()
    print(f"libraries: {held():,.0f} MB")
    cells = random_cells(arguments.cells, arguments.genes, arguments.expressed)
    print(f"cells: {size_of(cells.X):,.0f} MB; held {held():,.0f} MB")
    quiet = dict(verbose=False, logger=False, enable_progress_bar=False)
    model = sk.fit(cells[:1000].copy(), "cell_type", max_epochs=2, seed=0, **quiet)
    started = time.perf_counter()
    explanation = sk.explain(model, cells)
    seconds = time.perf_counter() - started
    taken = size_of(explanation.cells) + explanation.contributions.data.nbytes / MB  # they share their indices
    pairs = explanation.cells.nnz / arguments.cells
    print(f"explanation: {taken:,.0f} MB, {pairs:.0f} genes per cell, {seconds:,.0f} s; held {held():,.0f} MB")
    print(f"peak: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB")


def random_cells(n_cells: int, n_genes: int, expressed: int) -> ad.AnnData:
    """Counts as CSR, int32 indices; each class has fifty markers."""
    random = np.random.default_rng(0)
    labels = random.integers(N_CLASSES, size=n_cells)
    genes = random.integers(n_genes, size=(n_cells, expressed), dtype=np.int32)
    genes[:, :20] = labels[:, None] * 50 + random.integers(50, size=(n_cells, 20))
    genes.sort(axis=1)
    counts = random.integers(1, 5, size=genes.size).astype(np.float32)
    matrix = sp.csr_matrix((counts, genes.ravel(), np.arange(0, genes.size + 1, expressed)), (n_cells, n_genes))
    matrix.sum_duplicates()
    obs = pd.DataFrame({"cell_type": pd.Categorical.from_codes(labels, [f"type {n}" for n in range(N_CLASSES)])})
    obs.index, names = [f"cell{n}" for n in range(n_cells)], [f"GENE{n}" for n in range(n_genes)]
    return ad.AnnData(matrix, obs, pd.DataFrame(index=names))


def size_of(matrix: sp.csr_matrix) -> float:
    """MB of a sparse matrix."""
    return (matrix.data.nbytes + matrix.indices.nbytes + matrix.indptr.nbytes) / MB


def held() -> float:
    """MB that the process holds now."""
    return psutil.Process().memory_info().rss / MB


if __name__ == "__main__":
    main()

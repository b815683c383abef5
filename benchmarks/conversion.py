"""Conversion of big delimited text: wall time, MB/s and peak memory, beside plain pandas in chunks.

    python benchmarks/conversion.py [--gb 2] [--genes 20000] [--folder DIR] [--skip-pandas]

Writes simulated counts (gamma-Poisson, about 20 % nonzero) as `.csv`, cells x genes, of the given size, and their
transpose as `.tsv.gz`, into a temporary folder (in `--folder`, needs about as much space again). Each row is a process
of its own. MB are of unpacked text. Pandas is read as one would write it, `read_csv(chunksize=...)` and each chunk made
sparse, with 40 MB of dense values per chunk. What was converted is compared with the counts, value by value.
"""

import argparse
import gzip
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
from anndata.io import sparse_dataset
from scipy import sparse

CELLS_PER_BLOCK = 1000  # made at once
GENES_PER_PASS = 2000  # of the transpose, which needs all cells of a gene in one line


def counts(n_cells: int, n_genes: int) -> Iterator[sparse.csr_matrix]:
    """The same counts at each call, block by block: gamma-distributed means, library sizes and Poisson noise."""
    rng = np.random.default_rng(0)
    means = rng.gamma(0.3, 1.2, size=n_genes)  # skewed: most genes are silent, a few are everywhere
    for start in range(0, n_cells, CELLS_PER_BLOCK):
        sizes = rng.lognormal(0, 0.5, size=(min(CELLS_PER_BLOCK, n_cells - start), 1))
        yield sparse.csr_matrix(rng.poisson(means * sizes).astype(np.float32))


def write_csv(path: Path, n_bytes: float, n_genes: int) -> int:
    """Write cells x genes until the file has `n_bytes`; the number of cells."""
    n_cells = 0
    with path.open("wb") as file:
        file.write((",".join(["cell", *(f"gene_{i}" for i in range(n_genes))]) + "\n").encode())
        for block in counts(10**9, n_genes):
            _write_rows(file, [f"cell_{n_cells + i}" for i in range(block.shape[0])], block.toarray(), ",")
            n_cells += block.shape[0]
            if file.tell() >= n_bytes:
                return n_cells


def write_transpose(path: Path, n_cells: int, n_genes: int) -> int:
    """Write genes x cells, packed; the number of bytes before packing."""
    n_bytes = 0
    blocks = [block.astype(np.int16).tocsc() for block in counts(n_cells, n_genes)]
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(("\t".join(["gene", *(f"cell_{i}" for i in range(n_cells))]) + "\n").encode())
        for start in range(0, n_genes, GENES_PER_PASS):
            dense = np.concatenate([block[:, start : start + GENES_PER_PASS].toarray() for block in blocks]).T
            _write_rows(file, [f"gene_{start + i}" for i in range(len(dense))], dense, "\t")
        n_bytes = file.tell()
    return n_bytes


def _write_rows(file, names: list[str], rows: np.ndarray, delimiter: str) -> None:
    texts = np.array([str(i) for i in range(int(rows.max()) + 1)], dtype=object)
    for name, row in zip(names, rows, strict=True):
        file.write((delimiter.join([name, *texts[row.astype(int)]]) + "\n").encode())


def import_only(path: Path, orientation: str) -> None:
    """What a process needs before it starts."""
    import sims_kit  # noqa: F401


def convert(path: Path, orientation: str) -> None:
    """The kit's conversion."""
    from sims_kit.datasets.convert import convert

    convert(path, path.parent / "converted.h5ad", orientation=orientation)


def plain_pandas(path: Path, orientation: str) -> None:
    """What one would write without it; the result stays in memory, as a whole."""
    separator = "," if ".csv" in path.name else "\t"
    n_columns = len(pd.read_csv(path, sep=separator, index_col=0, nrows=0).columns)
    chunks = pd.read_csv(path, sep=separator, index_col=0, chunksize=max(1, 10_000_000 // n_columns))
    matrix = sparse.vstack([sparse.csr_matrix(chunk.to_numpy()) for chunk in chunks], format="csr")
    if orientation == "genes_by_cells":
        matrix.T.tocsr()


def timed(task, path: Path, orientation: str) -> tuple[float, float]:
    """Seconds that a task takes, and the peak memory of this process in GB."""
    import_only(path, orientation)
    started = time.perf_counter()
    task(path, orientation)
    seconds = time.perf_counter() - started
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, kibibytes on Linux
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def apart(function, *arguments):
    """The same in a process of its own. A process starts with the peak memory of its parent, so that stays small."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def check(path: Path, n_cells: int, n_genes: int) -> None:
    """Compare what was converted with the counts, value by value; `AssertionError` where they differ."""
    names = ad.read_h5ad(path, backed="r")
    assert list(names.obs_names) == [f"cell_{i}" for i in range(n_cells)]
    assert list(names.var_names) == [f"gene_{i}" for i in range(n_genes)]
    names.file.close()
    with h5py.File(path) as file:
        found, start = sparse_dataset(file["X"]), 0
        assert found.shape == (n_cells, n_genes) and file["X/indices"].dtype == np.int32
        for block in counts(n_cells, n_genes):
            assert (found[start : start + block.shape[0]] != block).nnz == 0
            start += block.shape[0]


def main() -> None:
    """Write the files, run each task on each, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=2, help="size of the text")
    parser.add_argument("--genes", type=int, default=20_000)
    parser.add_argument("--folder", help="where the temporary folder is made")
    parser.add_argument("--skip-pandas", action="store_true", help="which takes most of the time")
    arguments = parser.parse_args()
    tasks = (import_only, convert) if arguments.skip_pandas else (import_only, plain_pandas, convert)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        table, transpose = Path(folder, "matrix.csv"), Path(folder, "exprMatrix.tsv.gz")
        n_cells = apart(write_csv, table, arguments.gb * 1e9, arguments.genes)
        sizes = {table: table.stat().st_size, transpose: apart(write_transpose, transpose, n_cells, arguments.genes)}
        packed = transpose.stat().st_size / 1e9
        print(f"{n_cells:,} cells, {arguments.genes:,} genes, {sizes[table] / 1e9:.2f} GB; packed {packed:.2f} GB\n")
        print("| file | task | seconds | MB/s | peak memory, GB | times pandas |\n|---|---|---|---|---|---|")
        for path, orientation in ((table, "cells_by_genes"), (transpose, "genes_by_cells")):
            rows = {}
            for task in tasks:
                rows[task] = seconds, peak = apart(timed, task, path, orientation)
                speed = f"{sizes[path] / 1e6 / seconds:.0f}" if task is not import_only else ""
                ratio = f"{rows[plain_pandas][0] / seconds:.1f}" if task is convert and plain_pandas in rows else ""
                name = task.__name__.replace("_", " ")
                print(f"| {path.name} | {name} | {seconds:.1f} | {speed} | {peak:.2f} | {ratio} |", flush=True)
            apart(check, path.parent / "converted.h5ad", n_cells, arguments.genes)
        print("\nBoth converted files hold exactly the counts that were written.")


if __name__ == "__main__":
    main()

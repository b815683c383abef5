"""Simulated tissue beside real cells, in one figure, and how hard its types are for a linear SVM.

    python benchmarks/simulation_realism.py [--size fast full] [--seed 0] [--no-svm] [--out docs/simulation_realism.png]

Draws the mean of each gene by rank, variance and share of zeros against the mean, and library sizes of every `sim-`
tissue, over those of the real datasets (counts, from SIMS_KIT_DATA or downloaded). Each gene counts once at its mean
after scaling every cell to the dataset's median library; the curves are medians of bins. Then prints a Markdown table
of LinearSVC(C=0.01) on log-normalised counts: trained on a stratified four fifths of all cells; on all cells of MTG and
tested on the other regions, beside as many training cells drawn from all regions; and, trained on that four fifths of
`sim-cortex`, tested on `sim-organoid`. "full" takes some ten minutes on two cores and a few GB.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib import pyplot as plt
from scipy import sparse
from sklearn.model_selection import train_test_split
from sklearn.svm import LinearSVC

from sims_kit.cells.matrix import Scale, normalise
from sims_kit.datasets import load
from sims_kit.datasets.simulate import PRESETS, simulated
from sims_kit.metrics import score

REAL = ("mouse-immune", "cell-lines-celseq2", "cell-lines-dropseq", "cell-lines-5cl-p1", "worm-neurons")
COLOURS = {"sim-cortex": "#D55E00", "sim-mouse": "#0072B2", "sim-organoid": "#009E73"}
STYLES = {"fast": "--", "full": "-"}
TRAIN_REGION = "MTG"


def main() -> None:
    """Draw the figure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", choices=list(STYLES), default=list(STYLES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-svm", action="store_true", help="draw only")
    parser.add_argument("--out", type=Path, default=Path("docs/simulation_realism.png"))
    arguments = parser.parse_args()
    figure, axes = plt.subplots(2, 2, figsize=(10, 7.5), layout="constrained")
    for name, grey in zip(REAL, np.linspace(0.15, 0.7, len(REAL)), strict=True):
        draw(axes, load(name), label=name, color=str(grey), linewidth=2.5)
    rows = []
    for size in arguments.size:
        cortex = None
        for name in PRESETS:
            cells = simulated(name, size, arguments.seed)
            draw(axes, cells, label=f"{name}, {size}", color=COLOURS[name], linestyle=STYLES[size], linewidth=1.2)
            if not arguments.no_svm:
                cortex = cells if name == "sim-cortex" else cortex
                rows.append({"tissue": name, "size": size, **difficulty(cells, cortex)})
                print(rows[-1], flush=True)
    axes[0, 0].legend(fontsize=7)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out, dpi=90)
    if rows:
        print(f"\n{as_markdown(pd.DataFrame(rows))}")


def draw(axes: np.ndarray, cells: AnnData, **line) -> None:
    """Add one dataset to the four panels."""
    counts = sparse.csr_matrix(cells.X, dtype=np.float64)
    library = np.asarray(counts.sum(axis=1)).ravel()
    scaled = sparse.diags(np.median(library) / library) @ counts
    mean = np.asarray(scaled.mean(axis=0)).ravel()
    variance = np.asarray(scaled.multiply(scaled).mean(axis=0)).ravel() - mean**2
    zeros = 1 - counts.getnnz(axis=0) / len(library)
    seen = mean > 0
    by_rank = np.sort(mean[seen] / mean[seen].mean())[::-1]
    axes[0, 0].loglog(np.arange(1, len(by_rank) + 1) / len(by_rank), by_rank, **line)
    axes[0, 0].set(xlabel="rank among the genes that are seen (share)", ylabel="mean (times that of all genes)")
    axes[0, 1].loglog(*binned(mean[seen], variance[seen] / mean[seen]), **line)
    axes[0, 1].set(xlabel="mean of the gene (counts per cell)", ylabel="variance / mean")
    axes[1, 0].semilogx(*binned(mean[seen], zeros[seen]), **line)
    axes[1, 0].set(xlabel="mean of the gene (counts per cell)", ylabel="share of cells without it")
    axes[1, 1].semilogx(np.sort(library) / np.median(library), np.linspace(0, 1, len(library)), **line)
    axes[1, 1].set(xlabel="library size (times the median)", ylabel="share of cells below", xlim=(0.1, 10))


def binned(mean: np.ndarray, value: np.ndarray, least: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Median of mean and value in bins of the logarithm of the mean, where a bin has genes enough."""
    bins = pd.Series(np.floor(np.log10(mean) * 6))
    table = pd.DataFrame({"mean": mean, "value": value}).groupby(bins)
    medians = table.median()[table.size() >= least]
    return medians["mean"].to_numpy(), medians["value"].to_numpy()


def difficulty(cells: AnnData, cortex: AnnData) -> dict[str, float]:
    """Accuracy and median F1 of a linear SVM within a tissue, across its regions, and from `cortex` to this tissue."""
    values, labels = values_and_labels(cells)
    train, test = four_fifths(labels)
    found = {}
    found["accuracy"], found["median F1"] = svm(values[train], labels[train], values[test], labels[test])
    if TRAIN_REGION in (regions := cells.obs["region"].astype(str).to_numpy()):
        inside = regions == TRAIN_REGION
        drawn = train[np.random.default_rng(0).permutation(len(train))[: inside.sum()]]
        found["same number of all regions"], _ = svm(values[drawn], labels[drawn], values[test], labels[test])
        found["across regions"], _ = svm(values[inside], labels[inside], values[~inside], labels[~inside])
    if cells.uns["truth"]["tissue"] == "organoid":
        reference, of_reference = values_and_labels(cortex)
        train, _ = four_fifths(of_reference)
        found["trained on sim-cortex"], _ = svm(reference[train], of_reference[train], values, labels)
    return found


def values_and_labels(cells: AnnData) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Log-normalised values and the true types."""
    return normalise(cells.X, Scale("linear")), cells.obs["cell_type"].astype(str).to_numpy()


def four_fifths(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the training and test cells."""
    return train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0)


def svm(values, labels, test_values, test_labels) -> tuple[float, float]:
    """Accuracy and median F1 on the test cells."""
    predicted = LinearSVC(C=0.01, random_state=0).fit(values, labels).predict(test_values)
    scores = score(test_labels, predicted)
    return float(scores["accuracy_micro"]), float(scores["median_f1"])


def as_markdown(table: pd.DataFrame) -> str:
    """The table, three decimals, a dash where nothing was measured."""
    texts = table.map(lambda value: value if isinstance(value, str) else "-" if pd.isna(value) else f"{value:.3f}")
    lines = [table.columns, ["---"] * table.shape[1], *texts.to_numpy()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()

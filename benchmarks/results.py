"""Every peer on every task, and the page of results: one command that goes on where it stopped.

    python benchmarks/results.py [--tasks pbmc68k sim-cortex] [--methods "linear SVM" scanvi] [--jobs 2]
    python benchmarks/results.py --report      # the page alone, from the rows that are there

Rows and the predictions of each cell go to benchmarks/measured/, which is committed, so that others can go on or check;
benchmarks/RESULTS.md and two figures in docs/ are made of them. Names may be given as they stand in the tables or as
`sims-default`. Heavy peers need `pip install 'sims_kit[peers]'`; scsims an environment of its own, whose Python
SIMS_KIT_SCSIMS_PYTHON names. What cannot run says so in the table.
"""

import argparse
import os
import platform
from importlib.metadata import version
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from sims_kit.studies.store import slug

import sims_kit as sk
from sims_kit.studies import PEERS, TASKS, Benchmark

ROOT = Path(__file__).resolve().parent.parent
AGAINST = "SIMS, default"
SCORES = {"accuracy": "accuracy", "macro_f1": "macro F1", "median_f1": "median F1"}
SCSIMS = (
    "scsims is the ancestor, as its tutorial sets it, in an environment of its own, on the tasks of up to 2,500 cells "
    "and 2,000 genes. It stays near chance, on its own validation cells too. It makes the same training batches in "
    "every epoch: with 448 cells of pbmc68k it fits these to .88 and has .15 to .19 on validation cells, whichever "
    "statistics batch normalisation uses; shuffled, at its learning rate, it learns nothing in 50 epochs (.13), at ten "
    "times the rate a little (.24 to .27). `python benchmarks/scsims_check.py` measures that. The data that it was "
    "made for has hundreds of times as many cells."
)
IN_FIGURE = (AGAINST, "SIMS, thesis", "linear SVM", "logistic regression", "CellTypist", "scANVI", "LightGBM")


def main() -> None:
    """Run what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks, methods = ({slug(name): name for name in names} for names in (TASKS, PEERS))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), help=", ".join(tasks))
    parser.add_argument("--methods", nargs="+", default=list(PEERS), help=", ".join(methods))
    parser.add_argument("--jobs", type=int, default=1, help="processes at the same time")
    parser.add_argument("--timeout", type=float, default=120, help="minutes for one method on one fold")
    parser.add_argument("--report", action="store_true", help="write the page, run nothing")
    parser.add_argument("--folder", type=Path, default=ROOT / "benchmarks/measured", help="where rows lie")
    parser.add_argument("--page", type=Path, default=ROOT / "benchmarks/RESULTS.md", help="the page to write")
    parser.add_argument("--figures", type=Path, default=ROOT / "docs", help="where figures go")
    arguments = parser.parse_args()
    if not arguments.report:
        sk.studies.benchmark(
            [tasks.get(name, name) for name in arguments.tasks],
            [methods.get(name, name) for name in arguments.methods],
            folder=arguments.folder,
            n_jobs=arguments.jobs,
            timeout_minutes=arguments.timeout,
        )
    found = sk.studies.read_benchmark(arguments.folder, against=AGAINST)
    arguments.figures.mkdir(parents=True, exist_ok=True)
    draw(found, arguments.figures)
    arguments.page.write_text(page(found, os.path.relpath(arguments.figures, arguments.page.parent)))
    print(f"Wrote {arguments.page}, and benchmark.png and rare_classes.png in {arguments.figures}.")


def draw(found: Benchmark, folder: Path) -> None:
    """The two figures of the page."""
    matplotlib.use("Agg")
    axes = sk.plotting.method_scores(found.scores, "median_f1", highlight=AGAINST)
    axes[0].figure.savefig(folder / "benchmark.png", dpi=110)
    tasks = found.classes.groupby("method")["task"].nunique()
    drawn = [method for method in IN_FIGURE if tasks.get(method) == tasks.max()]  # else of other classes
    if drawn:
        ax = sk.plotting.recall_by_size(found.classes, methods=drawn)
        ax.figure.savefig(folder / "rare_classes.png", dpi=110)
    plt.close("all")


def page(found: Benchmark, figures: str) -> str:
    """The page as Markdown."""
    parts = [
        "# How SIMS compares",
        "Written by `python benchmarks/results.py`; do not edit. Protocol of Abdelaal et al. (Genome Biology 2019): "
        "classes of 10 cells or fewer left out, the same folds for every method, predictions of all folds pooled and "
        "then scored. Rejected cells leave accuracy and F1 and are counted beside them. In brackets 95 % bootstrap "
        "intervals over cells. Seconds are for one fold on one thread, some with other work beside them (CPU s is what "
        "a method takes); memory is the largest of any fold, in a process of its own.",
        f"![median F1 of every method on every task]({figures}/benchmark.png)",
        "## SIMS against the best peer",
        against_best(found),
        "## All methods",
        SCSIMS,
        *(f"### {task}\n\n{table(of_task)}" for task, of_task in found.scores.groupby("task", sort=False)),
        "## Rare classes",
        "Recall of every class of every task against its number of cells; lines are means of groups of classes.",
        f"![recall against class size]({figures}/rare_classes.png)",
        "Mean recall of the classes of each size, in brackets how many there are; tasks with classes of 25 cells or "
        "fewer.",
        recall_table(found.classes),
        "## Machine and versions",
        machine(found.rows),
    ]
    return "\n\n".join(parts) + "\n"


def against_best(found: Benchmark) -> str:
    """For each task and score, the difference from the method that is not SIMS and scores highest."""
    lines = ["| task | " + " | ".join(SCORES.values()) + " |", "|---" * (1 + len(SCORES)) + "|"]
    for task, of_task in found.scores.groupby("task", sort=False):
        differences = found.differences[found.differences["task"] == task]
        # A method that rejects is scored on the cells that it finds easy, so it is no measure for one that answers all
        peers = of_task[~of_task["method"].str.startswith("SIMS") & (of_task.get("unlabelled_percent", np.nan) == 0)]
        cells = []
        for score in SCORES:
            if not len(differences) or peers.get(score, pd.Series(dtype=float)).isna().all():
                cells.append("")
                continue
            best = peers.loc[peers[score].idxmax()]
            row = differences[(differences["method"] == best["method"]) & (differences["score"] == score)].iloc[0]
            verdict = "ahead" if row["low"] > 0 else "behind" if row["high"] < 0 else "level"
            interval = f"{row['difference']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})"
            cells.append(f"{interval}, {verdict}: {best['method']} {number(best[score])}")
        lines.append(f"| {task} | " + " | ".join(cells) + " |")
    return (
        f"{AGAINST} minus the best method that is not SIMS and labels every cell, paired by cell; level where the "
        "interval holds zero.\n\n" + "\n".join(lines)
    )


def recall_table(classes: pd.DataFrame) -> str:
    """Mean recall by task, method and size of the class; classes are named by the most cells that they may have."""
    classes = classes[classes["method"].isin(IN_FIGURE)]
    sizes = pd.cut(classes["n_cells"], [0, 16, 25, 60, np.inf], labels=["to 16 cells", "to 25", "to 60", "more"])
    lines = [f"| task | method | {' | '.join(sizes.cat.categories)} |", "|---" * (2 + len(sizes.cat.categories)) + "|"]
    for task, of_task in classes.groupby("task", sort=False):
        if of_task["n_cells"].min() > 25:
            continue
        for method, own in of_task.groupby("method", sort=False):
            groups = own["recall"].groupby(sizes[own.index], observed=False).agg(["mean", "size"])
            cells = [f"{number(mean)} ({size})" if size else "" for mean, size in groups.to_numpy()]
            lines.append(f"| {task} | {method} | " + " | ".join(cell.replace(".0)", ")") for cell in cells) + " |")
    return "\n".join(lines)


def table(of_task: pd.DataFrame) -> str:
    """One task: a row for each method, and the reasons of those without a score."""
    heads = ["method", *SCORES.values(), "% unlabelled", "calibration error", "fit s", "predict s", "CPU s", "MB"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for _, row in of_task.iterrows():
        if row["reason"]:
            lines.append(f"| {row['method']} | {row['reason']}" + " | " * (len(heads) - 2) + " |")
            continue
        values = [f"{number(row[s])} ({number(row[f'{s}_low'])}-{number(row[f'{s}_high'])})" for s in SCORES]
        error = number(row["calibration_error"]) if pd.notna(row["calibration_error"]) else "no probabilities"
        seconds = [f"{row[f'{step}_seconds_per_fold']:.1f}" for step in ("fit", "predict", "cpu")]
        values += [f"{row['unlabelled_percent']:.1f}", error, *seconds, f"{row['peak_memory_mb']:,.0f}"]
        lines.append(f"| {row['method']} | {' | '.join(values)} |")
    sizes = of_task.dropna(subset=["n_cells"]) if "n_cells" in of_task else of_task.iloc[:0]
    head = f"{sizes['n_cells'].iloc[0]:,.0f} cells, {sizes['n_classes'].iloc[0]:.0f} classes.\n\n" if len(sizes) else ""
    return head + "\n".join(lines)


def machine(rows: pd.DataFrame) -> str:
    """Where the rows were measured, and with what."""
    versions = sorted({part for text in rows["versions"] for part in text.split(", ") if part})
    packages = [f"{name} {version(name)}" for name in ("sims_kit", "anndata", "numpy", "scipy")]
    return (
        f"Measured on {'; '.join(sorted(rows['machine'].unique()))}, one thread for each process. Methods: "
        f"{', '.join(versions)}. This page: {', '.join(packages)}, Python {platform.python_version()}."
    )


def number(value: float) -> str:
    """Three decimals, without the zero before the point."""
    return f"{value:.3f}".removeprefix("0") if value < 1 else f"{value:.3f}"


if __name__ == "__main__":
    main()

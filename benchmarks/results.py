"""Every method on every task, and the page of results: one command that goes on where it stopped.

    python benchmarks/results.py [--tasks pbmc68k sim-cortex] [--methods "linear SVM" scANVI] [--jobs 2]
    python benchmarks/results.py --report      # the page alone, from the rows that are there

Rows and predictions go to benchmarks/measured/; benchmarks/RESULTS.md and figures are made of them. Some methods need
`pip install 'sims_kit[peers]'`. Each runs on each fold in a process of its own, with a limit of time. What has a row is
not run again.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from methods import METHODS
from study_page import ROOT, command_line, draw_scores, markdown, peak_megabytes, with_interval
from tasks import TASKS, Folds, calibration_error, slug

from sims_kit.plotting import METHOD_COLOURS
from sims_kit.studies.resampling import differences, intervals, resample, score_labelled

MEASURED = ROOT / "benchmarks/measured"
AGAINST = "SIMS, default"
SCORES = {"accuracy": "accuracy", "macro_f1": "macro F1", "median_f1": "median F1"}
MINUTES = 120  # for one method on one fold
KEY = ["task", "method", "fold"]
SCSIMS = (
    "scsims is the ancestor, as its tutorial sets it, in an environment of its own, on the tasks of up to 2,500 cells "
    "and 2,000 genes; its rows are kept and cannot be measured anew here. It stays near chance, on its own validation "
    "cells too. It makes the same training batches in every epoch: with 448 cells of pbmc68k it fits these to .88 and "
    "has .15 to .19 on validation cells, whichever statistics batch normalisation uses; shuffled, at its learning "
    "rate, it learns nothing in 50 epochs (.13), at ten times the rate a little (.24 to .27). The data it was made for "
    "has hundreds of times as many cells."
)
IN_FIGURE = (AGAINST, "SIMS, thesis", "linear SVM", "logistic regression", "CellTypist", "scANVI", "LightGBM")
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")


def main() -> None:
    """Run what is missing, and write the page."""
    parser = command_line(__doc__, TASKS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--jobs", type=int, default=1, help="processes at the same time")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return worker(*arguments.worker)
    run(arguments.tasks, arguments.methods, arguments.jobs)
    tables = summarised()
    for name in ("scores", "differences", "classes"):  # read by a lesson
        tables[name].to_csv(MEASURED / f"{name}.csv", index=False, float_format="%.6g")
    draw(tables)
    (ROOT / "benchmarks/RESULTS.md").write_text(page(tables))


def run(tasks: list[str], methods: list[str], n_jobs: int) -> None:
    """One process for each method and fold; rows and predictions are written as soon as they are known."""
    rows = pd.read_csv(MEASURED / "rows.csv")
    done = set(rows.loc[rows["status"].isin(["done", "cannot"]), KEY].itertuples(index=False, name=None))
    with ThreadPoolExecutor(n_jobs) as pool:
        for task in tasks:
            jobs = [(task, method, fold) for fold in range(len(Folds(task))) for method in methods]
            futures = [pool.submit(process, *job) for job in jobs if job not in done]
            for future in as_completed(futures):
                row, predictions = future.result()
                print(*(row[name] for name in (*KEY, "status", "reason")), sep=", ")
                if predictions is not None:
                    keep(predictions, row)
                rows = pd.concat([rows, pd.DataFrame([row])]).drop_duplicates(KEY, keep="last")
                rows.to_csv(MEASURED / "rows.csv", index=False)


def process(task: str, method: str, fold: int) -> tuple[dict, pd.DataFrame | None]:
    """The row of one method on one fold, and its predictions."""
    row = {"task": task, "method": method, "fold": fold, "machine": f"{platform.processor()}, {platform.platform()}"}
    with tempfile.TemporaryDirectory(prefix="sims_kit_") as folder:
        command = [sys.executable, __file__, "--worker", task, method, str(fold), folder]
        options = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=60 * MINUTES)
        try:
            child = subprocess.run(command, env={**os.environ, **ONE_THREAD, "CI": "1"}, **options)
        except subprocess.TimeoutExpired:
            return row | {"status": "timeout", "reason": f"not done after {MINUTES} minutes"}, None
        if child.returncode:
            *_, last = child.stderr.strip().splitlines() or ["no message"]
            return row | {"status": "failed", "reason": last[:300]}, None
        return row | json.loads(Path(folder, "row.json").read_text()), pd.read_csv(Path(folder, "predictions.csv"))


def worker(task: str, method: str, fold: str, folder: str) -> None:
    """In the process: fit, predict, write ``row.json`` and ``predictions.csv``."""
    folds = Folds(task)
    reference, query, truth = folds[int(fold)]
    y = reference.obs.pop("label").to_numpy(str)
    estimator, started, cpu_started = METHODS[method](0), time.perf_counter(), time.process_time()
    estimator.fit(reference, y)
    fitted = time.perf_counter()
    found = pd.DataFrame({"cell": query.obs_names, "truth": truth, "predicted": estimator.predict(query)})
    predicted = time.perf_counter()
    found["top"], found["confidence"] = "", np.nan
    if hasattr(estimator, "predict_proba"):
        probabilities = estimator.predict_proba(query)
        found["top"] = np.asarray(estimator.classes_)[probabilities.argmax(axis=1)]
        found["confidence"] = probabilities.max(axis=1).round(4)
    found.to_csv(Path(folder, "predictions.csv"), index=False)
    packages = ("scikit-learn", "torch", *["lightgbm"] * (method == "LightGBM"))
    row = {"status": "done", "reason": "", "n_folds": len(folds), "n_query_cells": len(truth)}
    row |= {"fit_seconds": round(fitted - started, 2), "predict_seconds": round(predicted - fitted, 2)}
    row |= {"cpu_seconds": round(time.process_time() - cpu_started, 2), "peak_memory_mb": peak_megabytes()}
    row |= {"versions": ", ".join(f"{name} {version(name).split('+')[0]}" for name in packages)}
    Path(folder, "row.json").write_text(json.dumps(row))


def predictions_file(task: str, method: str) -> Path:
    """Where the predictions of all folds lie."""
    return MEASURED / "predictions" / slug(task) / f"{slug(method)}.csv.gz"


def read_predictions(task: str, method: str) -> pd.DataFrame:
    """``cell``, ``truth``, ``predicted``, ``top``, ``confidence``, ``fold``; `class` is the truth."""
    text = dict.fromkeys(("truth", "predicted", "top"), str)
    options = dict(keep_default_na=False, na_values={"confidence": [""]})
    return pd.read_csv(predictions_file(task, method), dtype=text, **options)


def keep(predictions: pd.DataFrame, row: dict) -> None:
    """Put the predictions of a fold in the place of earlier ones; the same table gives the same bytes."""
    path, new = predictions_file(row["task"], row["method"]), predictions.assign(fold=row["fold"])
    if path.exists():
        old = read_predictions(row["task"], row["method"]).loc[lambda old: old["fold"] != row["fold"]]
        new = pd.concat([old, new])
    path.parent.mkdir(parents=True, exist_ok=True)
    new.sort_values("cell").to_csv(path, index=False, compression={"method": "gzip", "mtime": 0}, lineterminator="\n")


def summarised() -> dict[str, pd.DataFrame]:
    """``scores``, ``differences`` and ``classes`` of all tasks, from the rows and predictions."""
    rows = pd.read_csv(MEASURED / "rows.csv").fillna({"reason": "", "versions": ""})
    rows = rows.sort_values("method", key=lambda names: pd.factorize(names)[0], kind="stable")  # as they come first
    all_scores, all_differences, all_classes = [], [], []
    for task, of_task in rows.groupby("task", sort=False):
        cells, reasons, n_folds = {}, {}, int(of_task["n_folds"].max())
        for method, own in of_task.groupby("method", sort=False):
            bad = own[own["status"] != "done"]
            missing = f"not run on all folds ({len(own)} of {n_folds})" if len(own) < n_folds else ""
            reasons[method] = f"{bad['status'].iloc[0]}: {bad['reason'].iloc[0]}" if len(bad) else missing
            if not reasons[method]:
                cells[method] = read_predictions(task, method).rename(columns={"truth": "class"})
        drawn = resample(pd.concat(cells, names=["method"]).reset_index("method"), ["method"], score=score_labelled)
        scores = intervals(drawn, ["method"]).set_index("method")
        for method, own in of_task.groupby("method", sort=False):
            all_scores.append({"task": task, "method": method, "reason": reasons[method]})
            if (found := cells.get(method)) is None:
                continue
            n_cells, seconds = own["n_query_cells"].sum(), ["fit_seconds", "predict_seconds", "cpu_seconds"]
            assert len(found) == n_cells, f"{predictions_file(task, method)} has not {n_cells:,} cells"
            row = {"n_cells": n_cells, "n_classes": found["class"].nunique()} | scores.loc[method].to_dict()
            row |= own[seconds].mean().to_dict() | {"peak_memory_mb": own["peak_memory_mb"].max()}
            if found["confidence"].notna().all():
                confidence, correct = found["confidence"].clip(0, 1), found["top"] == found["class"]
                row["calibration_error"] = calibration_error(confidence, correct)
            all_scores[-1] |= row
            hits = (found["predicted"] == found["class"]).groupby(found["class"])
            recall = hits.agg(n_cells="size", recall="mean").reset_index()
            all_classes.append(recall.assign(task=task, method=method))
        pairs = {key: (drawn[AGAINST,], other) for key, other in drawn.items() if key != (AGAINST,)}
        all_differences.append(differences(pairs, ["method"], SCORES).assign(task=task))
    joined = {"classes": pd.concat(all_classes, ignore_index=True), "scores": pd.DataFrame(all_scores)}
    return joined | {"rows": rows, "differences": pd.concat(all_differences, ignore_index=True)}


def draw(tables: dict[str, pd.DataFrame]) -> None:
    """The two figures of the page."""
    draw_scores(tables["scores"], "median_f1", line=AGAINST)[0].figure.savefig(ROOT / "docs/benchmark.png", dpi=110)
    figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
    classes, n_tasks = tables["classes"], tables["classes"]["task"].nunique()
    for method, own in classes.groupby("method", sort=False):
        if method in IN_FIGURE and own["task"].nunique() == n_tasks:  # else of other classes
            groups = pd.qcut(own["n_cells"], 8, duplicates="drop")
            means = own.groupby(groups, observed=True).agg({"n_cells": "median", "recall": "mean"})
            ax.plot(means["n_cells"], means["recall"], "o-", ms=4, color=METHOD_COLOURS[method], label=method)
    ax.set(xscale="log", xlabel="cells of the class", ylabel="mean recall", title="How rare classes fare")
    ax.set_xticks(sizes := [20, 50, 100, 200, 400], sizes)
    ax.set_xticks([], minor=True)
    ax.legend(frameon=False)
    figure.savefig(ROOT / "docs/rare_classes.png", dpi=110)
    plt.close("all")


def page(tables: dict[str, pd.DataFrame]) -> str:
    """The page as Markdown."""
    scores = tables["scores"]
    parts = [
        "# How SIMS compares",
        "Written by `python benchmarks/results.py`; do not edit. Protocol of Abdelaal et al. (Genome Biology 2019): "
        "classes of 10 cells or fewer left out, the same folds for every method, predictions of all folds pooled and "
        "then scored. Rejected cells leave accuracy and F1 and are counted beside them. In brackets 95 % bootstrap "
        "intervals over cells. Seconds are for one fold on one thread, some with other work beside them (CPU s is what "
        "a method takes); memory is the largest of any fold, in a process of its own.",
        "![median F1 of every method on every task](../docs/benchmark.png)",
        "## SIMS against the best other method",
        against_best(tables),
        "## All methods",
        SCSIMS,
        *(f"### {task}\n\n{of_task(own)}" for task, own in scores.groupby("task", sort=False)),
        "## Rare classes",
        "Recall of every class of every task against its number of cells; points are means of groups of classes.",
        "![recall against class size](../docs/rare_classes.png)",
        "Mean recall of the classes of each size, in brackets how many there are; tasks with classes of 25 cells or "
        "fewer.",
        recall_table(tables["classes"]),
        "## Machine and versions",
        f"Measured on {'; '.join(sorted(tables['rows']['machine'].unique()))}, one thread for each process. Methods: "
        f"{', '.join(sorted({part for text in tables['rows']['versions'] for part in text.split(', ') if part}))}.",
    ]
    return "\n\n".join(parts) + "\n"


def against_best(tables: dict[str, pd.DataFrame]) -> str:
    """For each task and score, the difference from the method that is not SIMS and scores highest."""
    rows, differences = [], tables["differences"].set_index(["task", "method", "score"])
    for task, own in tables["scores"].groupby("task", sort=False):
        # A method that rejects is scored on the cells that it finds easy, so it is no measure for one that answers all
        others = own[~own["method"].str.startswith("SIMS") & (own["unlabelled_percent"] == 0)].set_index("method")
        rows.append({"task": task})
        for score, words in SCORES.items():
            best = others[score].idxmax()
            row = differences.loc[task, best, score]
            verdict = "ahead" if row["low"] > 0 else "behind" if row["high"] < 0 else "level"
            difference = f"{with_interval(row, 'difference', '+.3f')}, {verdict}"
            rows[-1][words] = f"{difference}: {best} {number(others[score][best])}"
    head = f"{AGAINST} minus the best method that is not SIMS and labels every cell, paired by cell"
    return f"{head}; level where the interval holds zero.\n\n" + markdown(pd.DataFrame(rows))


def recall_table(classes: pd.DataFrame) -> str:
    """Mean recall by task, method and size of the class; classes are named by the most cells that they may have."""
    classes = classes[classes["method"].isin(IN_FIGURE)]
    sizes = pd.cut(classes["n_cells"], [0, 16, 25, 60, np.inf], labels=["to 16 cells", "to 25", "to 60", "more"])
    rows = []
    for (task, method), own in classes.groupby(["task", "method"], sort=False):
        if classes.loc[classes["task"] == task, "n_cells"].min() <= 25:
            groups = own["recall"].groupby(sizes[own.index], observed=False).agg(["mean", "size"])
            cells = {name: f"{number(mean)} ({size:.0f})" if size else "" for name, mean, size in groups.itertuples()}
            rows.append({"task": task, "method": method} | cells)
    return markdown(pd.DataFrame(rows))


def of_task(scores: pd.DataFrame) -> str:
    """One task: a row for each method, and the reasons of those without a score."""
    rows = []
    for _, row in scores.iterrows():
        if row["reason"]:
            rows.append({"method": row["method"], "accuracy": row["reason"]})
            continue
        cells = {
            w: f"{number(row[s])} ({number(row[f'{s}_low'])}-{number(row[f'{s}_high'])})" for s, w in SCORES.items()
        }
        error = number(row["calibration_error"]) if pd.notna(row["calibration_error"]) else "no probabilities"
        cells |= {"% unlabelled": f"{row['unlabelled_percent']:.1f}", "calibration error": error}
        cells |= {f"{step} s": f"{row[f'{step.lower()}_seconds']:.1f}" for step in ("fit", "predict", "CPU")}
        rows.append({"method": row["method"]} | cells | {"MB": f"{row['peak_memory_mb']:,.0f}"})
    sizes = scores.dropna(subset=["n_cells"]).iloc[0]
    return f"{sizes['n_cells']:,.0f} cells, {sizes['n_classes']:.0f} classes.\n\n" + markdown(pd.DataFrame(rows))


def number(value: float) -> str:
    """Three decimals, without the zero before the point."""
    return f"{value:.3f}".removeprefix("0")


if __name__ == "__main__":
    main()

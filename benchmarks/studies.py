"""Generalization and ablation at a larger size, and their sections of the page benchmarks/STUDIES.md.

    python benchmarks/studies.py generalization [--tasks regions protocols donors] [--seeds 3]
    python benchmarks/studies.py ablation [--tasks sim-cortex worm-neurons] [--seeds 3]
    python benchmarks/studies.py report      # the page and figures alone, from the tables that are there

Runs are kept in results/studies/, tables in benchmarks/measured_studies/. SIMS is one of the default's four networks,
for time.
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.colors import LogNorm
from study_page import ROOT, draw_scores, machine, markdown, with_interval

import sims_kit as sk
from sims_kit.datasets.simulate import PRESETS, simulate
from sims_kit.plotting.style import words

TABLES, RUNS = ROOT / "benchmarks/measured_studies", ROOT / "results/studies"
METHODS = ["SIMS, one network", "linear SVM"]
N_CELLS = 6000  # of simulated cortex, 750 for each region: the fast size has 300
CORTEX = replace(PRESETS["sim-cortex"]["fast"], n_cells=N_CELLS)
PROPORTIONS = (0.01, 0.03, 0.06, 0.1, 0.3, 1.0)
TOLERANCE = 0.02  # the thesis's 2 %, in points of median F1
TARGET_SCORES = ("balanced_accuracy", "weighted_accuracy", "median_f1")  # aggregated F1: as weighted accuracy here
LARGE_DROP = 0.05  # in points
TASKS = {"generalization": ("regions", "protocols", "donors"), "ablation": ("sim-cortex", "worm-neurons")}


def main() -> None:
    """Measure what is asked for, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=[*TASKS, "report"])
    parser.add_argument("--tasks", nargs="+", help="all of the study by default")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    matplotlib.use("Agg")
    for task in arguments.tasks or TASKS.get(arguments.study, ()):
        options = dict(methods=METHODS, seeds=range(arguments.seeds), folder=RUNS / arguments.study / task)
        found = generalization(task, **options) if task in TASKS["generalization"] else ablation(task, **options)
        store(found, TABLES / arguments.study / task)
    parts = ["# The thesis's experiments", "Written by the scripts that each section names; do not edit."]
    for title, section in (("Generalization", generalization_section), ("Ablation", ablation_section)):
        parts += [f"## {title}", *section(read(title.lower()))]
    (ROOT / "benchmarks/STUDIES.md").write_text("\n\n".join(parts) + "\n")


def generalization(task: str, **options) -> tuple:
    """Across regions and donors of simulated cortex, and across two protocols on the same three cell lines."""
    if task == "protocols":
        cells = {name: sk.load(f"cell-lines-{name}") for name in ("celseq2", "dropseq")}
        return sk.studies.generalization(cells, "cell_line_demuxlet", **options)
    settings = {"regions": dict(by="region", which="MTG"), "donors": dict(by="donor", leave_one_out=True)}
    return sk.studies.generalization(simulate(CORTEX), "cell_type", **settings[task], **options)


def ablation(task: str, **options) -> tuple:
    """Of simulated cortex, and of neurons of a worm."""
    cells = simulate(CORTEX) if task == "sim-cortex" else sk.load(task)
    return sk.studies.ablation(cells, "cell_type", proportions=PROPORTIONS, **options)


def store(found, folder: Path) -> None:
    """Every table of a study; those with a row per cell or epoch compressed, the same bytes for the same rows."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, frame in vars(found).items():
        long = name in ("predictions", "epochs")
        how = {"compression": {"method": "gzip", "mtime": 0}} if long else {}
        frame.to_csv(folder / f"{name}.csv{'.gz' if long else ''}", index=False, float_format="%.5g", **how)


def read(study: str) -> dict[str, dict[str, pd.DataFrame]]:
    """The tables of each task by their names."""
    read_one = partial(pd.read_csv, keep_default_na=False, na_values=[""])
    files = {task: (TABLES / study / task).glob("*.csv*") for task in TASKS[study]}
    return {task: {file.name.split(".")[0]: read_one(file) for file in of_task} for task, of_task in files.items()}


def generalization_section(tasks: dict[str, dict[str, pd.DataFrame]]) -> list[str]:
    """What the section of the page says."""
    titles = {
        "regions": f"Regions: simulated cortex, {N_CELLS:,} cells x 2,000 genes, 19 types, trained on MTG",
        "protocols": "Protocols: three lung cancer cell lines (Tian et al. 2019) by CEL-seq2 and Drop-seq",
        "donors": f"Donors: simulated cortex, {N_CELLS:,} cells, one of four donors left out",
    }
    parts = [
        "By `python benchmarks/studies.py generalization` (thesis section 0.3.4, figures 0.15 and 0.16). A model is "
        "trained on four fifths of one group of cells and tested on the others; the last fifth is the reference. "
        "Scores are of cells whose class was in training. In brackets 95 % bootstrap intervals over cells and seeds. "
        "One network, and not the four of the default recipe, stands for SIMS.",
        markdown(transfer_claims(tasks)),
        "A drop is the reference minus the target, in points. The thesis calls transfer good without a number. Here a "
        f"target drops where the whole interval is above {LARGE_DROP:g}; the claim holds where all intervals are "
        "below, not where one target drops, and is open between. Where all cells are right, there is no width: of "
        "200 cells without an error, up to 1.5 % may be wrong.",
    ]
    for task, tables in tasks.items():
        axes = draw_transfer(tables["scores"])
        axes[0].figure.savefig(figure("generalization", task), dpi=110)
        plt.close("all")
        parts += [f"### {titles[task]}", picture("generalization", task), markdown(target_rows(tables))]
        if len(tables["unseen"]):
            unseen = markdown(tables["unseen"].round(1).astype(str))
            parts += ["Cells of classes that were not in training went to:", unseen]
    return [*parts, machine()]


def draw_transfer(scores: pd.DataFrame) -> np.ndarray:
    """Draw four scores of every target, and the same models' scores of held-out cells of the source as ticks."""
    is_source, tables = scores["in_distribution"], []
    source = scores[is_source].set_index(["method", "trained_on"])
    for score in ("balanced_accuracy", "weighted_accuracy", "aggregated_f1", "median_f1"):
        table = scores[~is_source].join(source[score].rename("held-out cells"), on=["method", "trained_on"])
        table = table.rename(columns={f"{score}{end}": f"score{end}" for end in ("", "_low", "_high")})
        tables.append(table.assign(task=words(score)))
    table = pd.concat(tables).assign(transfer=lambda table: table["trained_on"] + " → " + table["target"])
    return draw_scores(table, "score", rows="transfer", hue="method", reference="held-out cells")


def target_rows(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Scores of each target with their intervals, the reference first."""
    scores = tables["scores"]
    target = scores["target"].where(~scores["in_distribution"], scores["target"] + ", held-out cells")
    found = {"method": scores["method"], "trained on": scores["trained_on"], "target": target}
    found["cells"] = scores["n_cells"]
    found |= {words(score): scores.apply(with_interval, axis=1, score=score) for score in TARGET_SCORES}
    return pd.DataFrame(found | {"unseen %": scores["unseen_percent"].map("{:.1f}".format), "seeds": scores["n_seeds"]})


def transfer_claims(tasks: dict[str, dict[str, pd.DataFrame]]) -> pd.DataFrame:
    """Whether transfer is good, for each task, method and score."""
    rows = []
    for task, tables in tasks.items():
        drops = tables["drops"][tables["drops"]["score"].isin(["weighted_accuracy", "median_f1"])]
        for (method, score), own in drops.groupby(["method", "score"], sort=False):
            worst, surely = own.loc[own["difference"].idxmax()], int((own["low"] > LARGE_DROP).sum())
            found = {"thesis": f"good transfer between {task}", "method": method, "score": words(score)}
            found["mean drop"] = f"{own['difference'].mean():.3f}"
            found["largest drop"] = f"{with_interval(worst, 'difference')}, {worst['trained_on']} to {worst['target']}"
            found[f"surely above {LARGE_DROP:g}"] = f"{surely} of {len(own)} targets"
            verdict = "holds" if (own["high"] <= LARGE_DROP).all() else "does not hold" if surely else "open"
            rows.append(found | {"verdict": verdict})
    return pd.DataFrame(rows)


def ablation_section(tasks: dict[str, dict[str, pd.DataFrame]]) -> list[str]:
    """What the section of the page says."""
    titles = {
        "sim-cortex": f"Simulated cortex, {N_CELLS:,} cells x 2,000 genes, 19 types in eight regions",
        "worm-neurons": "Worm neurons, 4,186 cells x 13,488 genes, ten types",
    }
    parts = [
        "By `python benchmarks/studies.py ablation` (thesis section 0.3.5, figures 0.17 to 0.19). A fifth of the cells "
        "tests, the same for every proportion, seed and method; proportions are of the others, drawn class by class. "
        "In brackets 95 % bootstrap intervals over test cells and seeds, of losses paired by both. One network, not "
        "the four of the default recipe, stands for SIMS. Epochs are set by the recipe: 1,000 steps at least ten times "
        "through the cells, so that small sets are seen more often, and none stops early.",
        markdown(pd.concat([ablation_claims(task, tables) for task, tables in tasks.items()])),
        "Losses are in points of median F1 on the test cells: all training cells minus the proportion. A claim holds "
        f"where the whole interval is within {TOLERANCE:g}, does not where none of it is, and is open between. The "
        "thesis began with 47,432 and 73,347 cells, a tenth of which is as many as all are here, or more: a "
        "proportion says little without the number of cells. Epochs to convergence are of "
        "trainings that end with more than half of the validation cells right.",
    ]
    for task, tables in tasks.items():
        curves, times = tables["epochs"], learned(tables["epochs"])
        curves = curves[curves["method"] == curves["method"].iloc[0]].melt(
            ["epoch", "proportion"], ["val_loss", "val_median_f1", "val_accuracy_weighted"]
        )
        looks = dict(kind="line", hue="proportion", hue_norm=LogNorm(), palette="viridis", errorbar=("pi", 100))
        panels = sns.relplot(curves, x="epoch", y="value", col="variable", facet_kws=dict(sharey=False), **looks)
        panels.set(xscale="log").savefig(figure("ablation", task), dpi=110)
        panels, (scores, convergence) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
        for method, own in tables["scores"].groupby("method", sort=False):
            spread = np.abs(own[["median_f1_low", "median_f1_high"]].sub(own["median_f1"], axis=0)).T
            scores.errorbar(own["n_training_cells"], own["median_f1"], spread, marker="o", label=method)
        looks = dict(hue="method", marker="o", errorbar=("pi", 100), ax=convergence)
        sns.lineplot(times, x="n_training_cells", y="epochs", **looks)
        scores.set(xscale="log", xlabel="training cells", ylabel="median F1, 95 % interval")
        convergence.set(xscale="log", yscale="log", xlabel="training cells", ylabel="epochs to convergence")
        scores.legend(frameon=False)
        panels.savefig(figure("ablation_scores", task), dpi=110)
        plt.close("all")
        n_seeds = tables["runs"]["seed"].nunique()
        parts += [
            f"### {titles[task]}; {n_seeds} seed{'s' if n_seeds > 1 else ''}",
            picture("ablation", task),
            "Validation cells are a tenth of the training cells, so that at 1 % curves are of four or five of them; "
            "with all cells, the final ten epochs are the whole training, or nearly. The fixed test cells in (a) have "
            "neither fault.",
            picture("ablation_scores", task),
            markdown(size_rows(tables, times)),
            "Smallest training set within 2 points, and from which on all are:",
            markdown(smallest_rows(tables)),
        ]
    return [*parts, machine()]


def learned(epochs: pd.DataFrame) -> pd.DataFrame:
    """When trainings come near the mean of their last epochs, of those that end with most validation cells right."""
    rows, keys = [], ["method", "proportion", "seed", "n_training_cells"]
    for key, own in epochs.groupby(keys, sort=False):
        accuracy = own.sort_values("epoch").set_index("epoch")["val_accuracy_weighted"]
        end = accuracy.tail(min(10, max(1, len(accuracy) // 5))).mean()
        first = (accuracy >= end - TOLERANCE).idxmax()
        rows.append((*key, first + 1, accuracy.index[-1] + 1, end))
    times = pd.DataFrame(rows, columns=[*keys, "epochs", "n_epochs", "end"])
    return times[times["end"] > 0.5]


def size_rows(tables: dict[str, pd.DataFrame], times: pd.DataFrame) -> pd.DataFrame:
    """Each proportion: scores, loss, and how long training took."""
    keys, rows = ["method", "proportion"], []
    losses = tables["losses"].query("score == 'median_f1'").set_index(keys)
    times = times.groupby(keys)[["epochs", "n_epochs"]].mean()
    for key, row in tables["scores"].set_index(keys).iterrows():
        found = {"method": key[0], "proportion": f"{100 * key[1]:g} %", "cells": f"{row['n_training_cells']:,.0f}"}
        found |= {words(score): with_interval(row, score) for score in ("weighted_accuracy", "median_f1")}
        found |= {"loss of median F1": with_interval(losses.loc[key], "difference")}
        found["classes not stratified"] = f"{row['n_classes_raised']:.0f}"
        found["fit, CPU s"] = f"{row['fit_cpu_seconds']:.1f}"
        epochs = times.loc[key] if key in times.index else None
        found["epochs to converge"] = "" if epochs is None else f"{epochs['epochs']:.0f} of {epochs['n_epochs']:.0f}"
        rows.append(found)
    return pd.DataFrame(rows)


def smallest_rows(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The smallest training set by the mean, and by the upper end of the interval."""
    rows, losses = [], tables["losses"].query("score == 'median_f1'").sort_values("proportion", ascending=False)
    for method in tables["scores"]["method"].unique():
        found, own = {"method": method}, losses[losses["method"] == method]
        for name, loss in (("by the mean", "difference"), ("surely", "high")):
            row = own[(own[loss] <= TOLERANCE).cummin()].iloc[-1]  # and all larger ones are within, too
            found[name] = f"{100 * row['proportion']:g} % ({row['n_training_cells']:,} cells)"
        rows.append(found)
    return pd.DataFrame(rows)


def ablation_claims(task: str, tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The thesis's three claims on one task, for each method."""
    rows = []
    losses = tables["losses"].query("score == 'median_f1'")
    for method, own in losses.groupby("method", sort=False):
        own = own.sort_values("proportion").set_index("proportion")
        tenth = own.loc[0.1]
        within = "holds" if tenth["high"] <= TOLERANCE else "does not hold" if tenth["low"] > TOLERANCE else "open"
        rows.append((f"within 2 % at 10 % of the data ({tenth['n_training_cells']:,} cells)", method))
        rows[-1] += (f"loss {with_interval(tenth, 'difference')}", within)
        above, below = own.loc[0.06:0.99], own.loc[:0.05]
        is_flat = (above["difference"] <= TOLERANCE).all() and (below["low"] > TOLERANCE).all()
        said = ", ".join(f"{100 * p:g} %: {row['difference']:.3f}" for p, row in own.iterrows() if p < 1)
        rows.append(("steep drops only below 6 %", method, f"loss at {said}", "holds" if is_flat else "does not hold"))
    for method, own in learned(tables["epochs"]).groupby("method", sort=False):
        means = own.groupby("n_training_cells")["epochs"].mean()
        falls = "holds" if (np.diff(means) <= 0).all() else "does not hold"
        said = ", ".join(f"{n:,} cells: {epochs:.0f}" for n, epochs in means.items())
        rows.append(("the fewer cells, the more epochs to convergence", method, said, falls))
    return pd.DataFrame([(task, *row) for row in rows], columns=["data", "thesis", "method", "found", "verdict"])


def figure(kind: str, task: str) -> Path:
    """Where a figure lies; the first task's has the plain name."""
    return ROOT / "docs" / (f"{kind}.png" if task in ("regions", "sim-cortex") else f"{kind}_{task}.png")


def picture(kind: str, task: str) -> str:
    """The same as Markdown."""
    return f"![{kind.replace('_', ' ')}, {task}](../docs/{figure(kind, task).name})"


if __name__ == "__main__":
    main()

"""Tissue cultures, measured: do SIMS's masks avoid stress genes, and are its labels robust to stress?

    python benchmarks/study_inference.py [--seeds 4] [--jobs 2]
    python benchmarks/study_inference.py --report     # the page and figures alone, from the tables that are there

Simulated organoids, whose types and stress are known, are labelled by methods that have learned from simulated cortex
(thesis section 0.3.7). Tables go to benchmarks/measured_studies/inference/, those of single runs to runs/ there, so that
a restart goes on; benchmarks/STUDIES_INFERENCE.md, docs/organoid_stress.png and docs/organoid_inference.png are made of
them. CellTypist needs `pip install 'sims_kit[peers]'`.
"""

import argparse
import time
from importlib.metadata import version
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib import pyplot as plt

import sims_kit as sk

ROOT = Path(__file__).resolve().parent.parent
TABLES = ROOT / "benchmarks/measured_studies/inference"
SIMS = "SIMS, default"
METHODS = (SIMS, "SIMS, thesis", "SIMS, one network", "linear SVM", "logistic regression", "CellTypist")
METHODS += ("marker voting by cluster",)
BLIND = ("SIMS, one network", "linear SVM", "logistic regression")  # run without the stress genes, too
RECIPES = ("default", "thesis")
INHIBITORY = {"major_type": {"GABAergic": ["VIP", "SST", "PVALB", "LAMP5", "PAX6"]}}  # as in figure 0.20
AS_PUBLISHED = 1.0  # strength of the stress in sim-organoid
POINT = 1.0  # percentage points of accuracy below which a loss is called none


def main() -> None:
    """Measure what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4, help="tissues, each with a training of its own")
    parser.add_argument("--jobs", type=int, default=1, help="processes at the same time")
    parser.add_argument("--report", action="store_true", help="write the page, measure nothing")
    arguments = parser.parse_args()
    matplotlib.use("Agg")
    if not arguments.report:
        measure(arguments.seeds, arguments.jobs)
    tables = {file.stem: pd.read_csv(file, keep_default_na=False, na_values=[""]) for file in TABLES.glob("*.csv")}
    draw(tables)
    (ROOT / "benchmarks/STUDIES_INFERENCE.md").write_text(page(tables))


def measure(n_seeds: int, n_jobs: int) -> None:
    """The stress test, and the inference study with each recipe."""
    started = time.process_time()
    options = dict(seeds=range(n_seeds), folder=TABLES / "runs", n_jobs=n_jobs)
    parts = [sk.studies.stress_test(METHODS, **options)]
    parts += [sk.studies.stress_test(BLIND, knows_stress_genes=False, **options)]
    write("stress_test", pd.concat(parts))
    print(f"stress test: {time.process_time() - started:.0f} CPU s")
    primary, organoid = sk.load("sim-cortex"), sk.load("sim-organoid")
    truth = 100 * organoid.obs.groupby("donor", observed=True)["cell_type"].value_counts(normalize=True)
    found = {recipe: study(primary, organoid, recipe) for recipe in RECIPES}
    for name in ("cells", "composition", "confidence", "expected", "unexpected", "stress"):
        table = pd.concat({recipe: getattr(one, name) for recipe, one in found.items()}, names=["recipe"])
        table = table.reset_index(level=0)
        if name == "composition":
            table["true_percent"] = [truth.get(pair) for pair in zip(table["sample"], table["class"], strict=True)]
        if name == "cells":
            table = table[["recipe", "tissue", "sample", "cell", "label", "confidence"]]
            table["true_label"] = pd.concat([primary.obs["cell_type"], organoid.obs["cell_type"]])[table["cell"]].to_numpy()
        write(name, table)
    write("masks", pd.DataFrame([row for recipe, one in found.items() for row in masks(recipe, one)]))
    print(f"all: {time.process_time() - started:.0f} CPU s")


def study(primary, organoid, recipe: str) -> sk.studies.Inference:
    """The inference study as an analyst would run it."""
    options = dict(recipe=recipe, expected=INHIBITORY, verbose=False, enable_progress_bar=False)
    return sk.studies.inference(primary, organoid, **options)


def masks(recipe: str, found: sk.studies.Inference) -> list[dict]:
    """How much the masks look at stress genes in either tissue."""
    rows = []
    for tissue, check in found.checks.items():
        overall = check.overall
        row = {"recipe": recipe, "tissue": tissue, "stress_genes": len(check.genes)}
        row["stress_genes_with_weight"] = int((check.genes["weight"] > 0).sum())
        row["cells_that_look_at_one_percent"] = 100 * overall["cells"]
        for measure in ("weight", "contribution"):
            for ending in ("", "_expected", "_low", "_high"):
                row[f"{measure}{ending}_percent"] = 100 * overall[f"{measure}{ending}"]
            row[f"{measure}_p"] = overall[f"{measure}_p"]
        rows.append(row | {"verdict": check.verdict})
    return rows


def write(name: str, table: pd.DataFrame) -> None:
    """Keep a table."""
    TABLES.mkdir(parents=True, exist_ok=True)
    table.to_csv(TABLES / f"{name}.csv", index=False, float_format="%.6g")


def draw(tables: dict[str, pd.DataFrame]) -> None:
    """The two figures."""
    table = tables["stress_test"]
    figure = plt.figure(figsize=(12, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1))
    known = table[table["knows_stress_genes"]]
    sk.plotting.stress_curves(known, ax=left)
    left.get_legend().remove()
    left.set_title("Labels of stressed organoid cells")
    few = pd.concat([known[known["method"].isin(BLIND)], table[~table["knows_stress_genes"]]])
    names = few["method"] + few["knows_stress_genes"].map({True: "", False: ", without the stress genes"})
    figure.savefig(ROOT / "docs/organoid_stress.png", dpi=110)
    plt.close(figure)


def page(tables: dict[str, pd.DataFrame]) -> str:
    return ""


if __name__ == "__main__":
    main()

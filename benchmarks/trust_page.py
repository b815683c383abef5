"""The page and the figures of benchmarks/trust.py, from its tables."""

import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from interpretation import table
from matplotlib import pyplot as plt
from sims_kit.studies.store import slug

import sims_kit as sk
from sims_kit.studies import TASKS

ROOT = Path(__file__).resolve().parent.parent
TABLES = ROOT / "benchmarks/measured_trust"
ALPHA, ERROR_RATES = 0.1, (0.05, 0.1)
N_DIVISIONS = 200  # of the held-out cells into calibration and test cells


def page() -> str:
    """The page as Markdown, of the tables that are there; draws its figures."""
    tables = {
        folder.name: {file.stem: pd.read_csv(file) for file in folder.glob("*.csv")}
        for folder in sorted(TABLES.iterdir())
        if (folder / "summary.csv").exists()
    }
    order = [slug(task) for task in TASKS if slug(task) in tables]
    tables = {name: tables[name] for name in order}
    summary = pd.concat([found["summary"] for found in tables.values()], ignore_index=True)
    parts = [
        "# What a confidence is worth",
        "Written by `python benchmarks/trust.py`; do not edit. The default recipe, trained on the reference of fold 0 "
        "of each task, a tenth of it held back for validation; everything that is promised was chosen on these "
        "validation cells and is measured on the query.",
        *calibration_section(summary, tables),
        *rejection_section(summary, tables),
        *sets_section(summary, tables),
        *unseen_section(),
        "## Machine and versions",
        f"{platform.processor() or platform.machine()}, {platform.system()}, Python {platform.python_version()}, "
        f"torch {version('torch').split('+')[0]}, scikit-learn {version('scikit-learn')}, torchmetrics "
        f"{version('torchmetrics')}.",
    ]
    plt.close("all")
    return "\n\n".join(parts) + "\n"


def calibration_section(summary: pd.DataFrame, tables: dict) -> list[str]:
    """Calibration before and after, beside what chance alone gives."""
    draw_reliability(summary, tables)
    rows = {}
    for row in summary.itertuples():
        cells = {"validation": row.n_validation, "test cells": row.n_test, "accuracy": row.accuracy}
        cells |= {"temperature": row.temperature, "before": row.error_before, "after": row.error_after}
        verdict = "within" if row.error_after <= row.floor_high_after else "beyond"
        cells["chance"] = f"{row.floor_after:.3f} (to {row.floor_high_after:.3f}), {verdict}"
        cells["confidence - accuracy"] = f"{row.confidence_after - row.accuracy:+.3f}"
        own = tables[slug(row.task)].get("divisions")
        cells["mean over divisions"] = np.nan if own is None else own["error"].mean()
        rows[row.task] = cells
    return [
        "## Calibration",
        "Expected calibration error of the query (15 bins) before and after the temperature. *Chance* is what cells "
        "would show whose confidence is exactly right: mean and 95th percentile of draws with these confidences. No "
        "method can be shown to be better than that on so few cells. Last, the mean error over "
        f"{N_DIVISIONS} divisions of validation cells and query into calibration and test cells of the same numbers.",
        table(pd.DataFrame(rows).T.rename_axis("task")),
        "![accuracy against confidence, before and after](../docs/reliability.png)",
    ]


def rejection_section(summary: pd.DataFrame, tables: dict) -> list[str]:
    """What was promised of the errors among answered cells, and what came."""
    rows = []
    for row in summary.to_dict("records"):
        own = tables[slug(row["task"])].get("divisions")
        for rate in ERROR_RATES:
            name = f"{rate:g}"
            cells = {"task": row["task"], "promised": f"at most {rate:.0%}"}
            reached = row[f"lowest_{name}"] <= rate
            cells["lowest rate that can be promised"] = row[f"lowest_{name}"]
            cells["answered"] = f"{row[f'answered_{name}']:.1%}" if reached else "not promised"
            cells["wrong among them"] = f"{row[f'wrong_{name}']:.1%}" if reached else ""
            if own is not None:
                first = own.drop_duplicates("division")
                cells["divisions with a promise"] = f"{(first[f'lowest_{name}'] <= rate).mean():.0%}"
                cells["broken"] = f"{(first[f'wrong_{name}'] > rate).mean():.0%}"  # NaN, no promise, is not
            rows.append(cells)
    return [
        "## Rejection",
        "A threshold of confidence from the validation cells for a stated share of errors among answered cells. It "
        "aims at keeping the promise in nine draws of ten; *broken* is the share of divisions of the held-out cells in "
        "which a promise was made and the test cells had more errors, their own chance included.",
        table(pd.DataFrame(rows).set_index("task")),
    ]


def sets_section(summary: pd.DataFrame, tables: dict) -> list[str]:
    """Coverage and sizes of prediction sets."""
    parts = [
        "## Prediction sets",
        f"Coverage promised: {1 - ALPHA:.0%}. Columns without *divisions* are of the model's own validation cells and "
        "the query: with few such cells, chance moves coverage far (± is its standard deviation over divisions). "
        "The means over divisions say what to expect. Across regions, plates and protocols the query is not like the "
        "validation cells, and the promise need not hold.",
    ]
    rows, scores = {}, []
    for row in summary.to_dict("records"):
        own = tables[slug(row["task"])].get("divisions")
        cells = {}
        for kind, words in (("by_class", "by class"), ("marginal", "all cells")):
            cells[f"{words}: coverage"], cells["classes"] = row[f"coverage_{kind}"], row["n_classes"]
            cells[f"{words}: classes in a set"] = row[f"size_{kind}"]
            cells[f"{words}: empty"] = f"{row[f'empty_{kind}']:.1%}"
            if own is not None:
                lac = own[(own["score"] == "lac") & (own["kind"] == kind)]["coverage"]
                cells[f"{words}: mean coverage over divisions"] = f"{lac.mean():.3f} ± {lac.std():.3f}"
        rows[row["task"]] = cells
        if own is not None:
            scores.append(own.groupby(["kind", "score"])[["coverage", "size"]].mean().assign(task=row["task"]))
    parts += [table(pd.DataFrame(rows).T.rename_axis("task")), "Scores compared, means over divisions:"]
    wide = pd.concat(scores).reset_index().pivot(index=["task", "kind"], columns="score", values=["coverage", "size"])
    wide.columns = [f"{score}: {value}" for value, score in wide.columns]
    return [*parts, table(wide)]


def unseen_section() -> list[str]:
    """AUROC of left-out types."""
    files = sorted((TABLES / "unseen").glob("*.csv"))
    if not files:
        return []
    found = pd.concat(map(pd.read_csv, files), ignore_index=True)
    by_type = found.pivot_table("auroc", ["task", "left_out"], "method", sort=False)
    own = by_type["SIMS, unseen score"]
    means = found.pivot_table("auroc", "method", "task", sort=False)
    shown = [name for name in found["method"].unique() if name not in ("SIMS, entropy", "SIMS, Mahalanobis distance")]
    axes = sk.plotting.unseen_types(found[found["method"].isin(shown)])
    axes[0].figure.savefig(ROOT / "docs/unseen_types.png", dpi=110)
    return [
        "## Types never seen",
        "One type is left out of the reference and one network of the default recipe trained on the others. Area under "
        "the ROC curve of its cells (of reference and query) against the query's other cells. Scores are higher where "
        "a cell is less like any class; of peers it is one minus the largest probability. The unseen score, "
        "`sims_unseen`, was chosen on other types of these tasks and of sim-mouse, by "
        "`python benchmarks/unseen_trials.py`; that an earlier one missed granulocytes was known. "
        f"Its lowest value is {own.min():.3f}, for {': '.join(own.idxmin())}; on {(means.idxmax() == own.name).sum()} "
        f"of {means.shape[1]} tasks it is the best of all.",
        "Mean over types:",
        table(means),
        table(by_type),
        "![area under the ROC curve by left-out type and method](../docs/unseen_types.png)",
    ]


def draw_reliability(summary: pd.DataFrame, tables: dict) -> None:
    """A panel per task."""
    columns = min(3, len(tables))
    rows = -(-len(tables) // columns)
    figure = plt.figure(figsize=(3.4 * columns, 3.5 * rows), layout="constrained")
    grid = np.ravel(figure.subplots(rows, columns, squeeze=False))
    for ax, found, row in zip(grid, tables.values(), summary.itertuples(), strict=False):
        sk.plotting.reliability_diagram(found["bins"], ax=ax)
        ax.set_title(f"{row.task}: error {row.error_before:.3f} to {row.error_after:.3f}", fontsize=9)
        if ax.get_legend() is not None and ax is not grid[columns - 1]:  # one, at the end of the first row
            ax.get_legend().remove()
        ax.text(0.98, 0.03, f"{row.n_test:,} cells", transform=ax.transAxes, ha="right", fontsize=8)
    for ax in grid[len(tables) :]:
        ax.set_axis_off()
    figure.savefig(ROOT / "docs/reliability.png", dpi=110)

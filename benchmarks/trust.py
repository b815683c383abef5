"""What SIMS's confidence is worth, measured: calibration, rejection, prediction sets, types never seen.

    python benchmarks/trust.py [--tasks pbmc68k sim-cortex]
    python benchmarks/trust.py --report      # the page alone, from the tables that are there

Trains the default recipe once per task on four fifths of the cells, then one network for each type left out. What is in
results/trust/ and benchmarks/measured_trust/ is not done again. Some need `pip install 'sims_kit[peers]'`.
"""

from dataclasses import replace
from functools import cache

import anndata as ad
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score
from study_page import ROOT, command_line, machine, markdown
from tasks import BINS, TASKS, Folds, calibration_error, slug

import sims_kit as sk
from sims_kit import calibration
from sims_kit.annotation import predict_logits
from sims_kit.cells.loaders import query_batches
from sims_kit.model.recipe import get_recipe

TABLES, MODELS = ROOT / "benchmarks/measured_trust", ROOT / "results/trust"
ALPHA, ERROR_RATES = 0.1, (0.05, 0.1)
N_DIVISIONS = 200  # of the held-out cells into calibration and test cells
LEFT_OUT = {  # types large and small, alone in their lineage and with close relatives
    "sim-cortex": ("VIP", "L4 IT", "Microglia", "PVALB", "OPC", "L5 ET"),
    "pbmc68k": ("CD19+ B", "CD56+ NK", "CD14+ Monocyte", "CD8+ Cytotoxic T", "Dendritic", "CD34+"),
    "worm-neurons": ("type 3", "type 4", "type 8", "type 10"),
    "mouse-immune": ("B cell", "NK cell", "Granulocyte"),
}
OTHERS = ("logistic regression", "linear SVM, calibrated", "CellTypist")  # of sims_kit.studies.METHODS


def main() -> None:
    """Measure what is missing, and write the page."""
    usual = [name for name in TASKS if name != "cell lines across protocols"]  # the costliest, and as easy as plates
    for task in command_line(__doc__, usual).parse_args().tasks:
        if not (TABLES / slug(task)).exists():
            tables = measure(task)
            (TABLES / slug(task)).mkdir(parents=True)
            for name, table in tables.items():
                table.to_csv(TABLES / slug(task) / f"{name}.csv", index=False, float_format="%.5g")
            print(f"{task}: {tables['summary'].to_dict('records')[0]}", flush=True)
        for name in LEFT_OUT.get(task, ()):
            path = TABLES / f"unseen/{slug(f'{task}-{name}')}-0000000000.csv"  # a lesson reads files of these names
            if not path.exists():
                unseen(task, name).to_csv(path, index=False)
    (ROOT / "benchmarks/TRUST.md").write_text(page())


@cache
def reference_and_query(task: str) -> tuple[ad.AnnData, ad.AnnData]:
    """Fold 0 of a task, with ``obs["label"]``."""
    reference, query, truth = Folds(task)[0]
    query.obs["label"] = truth
    return reference, query


def fitted(task: str, left_out: str = ""):
    """The model of a task; of one network where a type is left out of its reference."""
    path = MODELS / f"{slug(f'{task}-{left_out}')}.safetensors"
    if not path.exists():
        reference, _ = reference_and_query(task)
        reference = reference[reference.obs["label"] != left_out].copy()
        recipe = replace(get_recipe("default"), n_models=1) if left_out else "default"
        sk.save_model(sk.fit(reference, "label", recipe=recipe, test=0, verbose=False, logger=False), path)
    return sk.load_model(path)


def measure(task: str) -> dict[str, pd.DataFrame]:
    """All tables of a task by name: summary, bins of reliability, and divisions of the held-out cells."""
    model, (reference, query) = fitted(task), reference_and_query(task)
    names, kept = pd.Index(model.classes), model.calibration_cells
    logits, _ = outputs(model, query)
    truth = names.get_indexer(query.obs["label"])
    row = {"task": task, "n_classes": len(names), "n_validation": len(kept.labels), "n_test": len(truth)}
    row |= {"temperature": float(model.temperature), "accuracy": (logits.argmax(1) == truth).mean()}
    bins = []
    for name, values in (("before", logits * float(model.temperature)), ("after", logits)):
        *_, confidence, right = calibration.calibration_cells(values, truth)
        draws = np.random.default_rng(0).random((200, len(truth))) < confidence  # were each confidence exactly right
        chance = [calibration_error(confidence, drawn) for drawn in draws]
        row[f"error_{name}"] = calibration_error(confidence, right)
        row |= {f"floor_{name}": np.mean(chance), f"floor_high_{name}": np.quantile(chance, 0.95)}
        row[f"confidence_{name}"] = confidence.mean()
        bins.append(reliability(confidence, right).assign(group=name))
    for rate in ERROR_RATES:  # of the calibrated logits, the last ones above
        row |= rejection(kept.confidence, kept.correct, confidence, right, rate)
    row |= sets(kept.nonconformity, kept.labels, logits, truth)
    tables = {"summary": pd.DataFrame([row]), "bins": pd.concat(bins)}
    if task in LEFT_OUT or task == "sim-mouse":  # elsewhere the query differs from the validation cells
        module = sk.DataModule(reference, None, "label", test=0, seed=0, verbose=False)
        held_out = reference[module.split.validation]
        both = np.concatenate([outputs(model, held_out)[0], logits]) * float(model.temperature)
        labels = np.concatenate([names.get_indexer(held_out.obs["label"]), truth])
        tables["divisions"] = divisions(both, labels, held_out.n_obs)
    return tables


def reliability(confidence: np.ndarray, right: np.ndarray) -> pd.DataFrame:
    """Mean confidence and accuracy in bins of equal width that have cells, with Wilson's 95 % interval."""
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    cells = pd.DataFrame({"confidence": confidence, "accuracy": right.astype(float)}).groupby(bins)
    table = cells.mean().assign(n_cells=cells.size())
    counts = zip(cells["accuracy"].sum().astype(int), table["n_cells"], strict=True)
    intervals = [binomtest(*of_bin).proportion_ci(method="wilson") for of_bin in counts]
    table[["accuracy_low", "accuracy_high"]] = [(interval.low, interval.high) for interval in intervals]
    return table.assign(low=table.index / BINS, high=(table.index + 1) / BINS)


def divisions(logits: np.ndarray, labels: np.ndarray, n_calibration: int) -> pd.DataFrame:
    """What many divisions of the held-out cells into calibration and test cells find; a row per division.

    Training has not seen the validation cells, which decide nothing in the default recipe: any cell may calibrate.
    """
    random, rows = np.random.default_rng(0), []
    for number in range(N_DIVISIONS):
        own, other = np.split(random.permutation(len(labels)), [n_calibration])
        values = logits / calibration.fit_temperature(logits[own], labels[own])
        _, scores, confidence, right = calibration.calibration_cells(values, labels)
        row = {"division": number, "error": calibration_error(confidence[other], right[other])}
        for rate in ERROR_RATES:
            row |= rejection(confidence[own], right[own], confidence[other], right[other], rate)
        rows.append(row | sets(scores[own], labels[own], values[other], labels[other]))
    return pd.DataFrame(rows)


def rejection(confidence, correct, test_confidence, test_correct, rate: float) -> dict[str, float]:
    """A threshold chosen on the first cells, tried on the second."""
    found = calibration.rejection_threshold(confidence, correct, error_rate=rate)
    answered = test_confidence >= found.threshold
    wrong = float((~test_correct[answered]).mean()) if answered.any() else np.nan
    row = {"lowest": found.lowest_error_rate, "answered": answered.mean(), "wrong": wrong}
    return {f"{name}_{rate:g}": value for name, value in row.items()}


def sets(scores: np.ndarray, labels: np.ndarray, logits: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Coverage, size and share of empty ones of prediction sets, by quantiles of each class and of all cells."""
    n_classes, found = logits.shape[1], {}
    marginal = np.full(n_classes, np.quantile(scores, 1 - ALPHA, method="weibull"))
    by_class = calibration.conformal_quantiles(scores, labels, n_classes, ALPHA)
    for kind, quantiles in (("by_class", by_class), ("marginal", marginal)):
        inside = calibration.nonconformity(logits) <= quantiles
        found[f"coverage_{kind}"] = inside[np.arange(len(truth)), truth].mean()
        found |= {f"size_{kind}": inside.sum(axis=1).mean(), f"empty_{kind}": (~inside.any(axis=1)).mean()}
    return found


def unseen(task: str, left_out: str) -> pd.DataFrame:
    """How well scores tell a type that was left out from those that were not: a row per method."""
    model, (whole, query) = fitted(task, left_out), reference_and_query(task)
    is_left_out = (whole.obs["label"] == left_out).to_numpy()
    reference, asked = whole[~is_left_out], ad.concat([query, whole[is_left_out]])
    logits, novelty = outputs(model, asked)
    certain = calibration.calibration_cells(logits, np.zeros(len(logits))).confidence  # whatever the label
    scores = {"SIMS, unseen score": novelty, "SIMS, maximum probability": -certain}
    for name in OTHERS:
        try:
            method = sk.studies.METHODS[name](0).fit(reference.X, reference.obs["label"].to_numpy())
        except ImportError as error:
            print(f"{name} is left out: {error}")
            continue
        scores[f"{name}, maximum probability"] = -method.predict_proba(asked.X).max(axis=1)
    truth = (asked.obs["label"] == left_out).to_numpy()
    rows = [(task, left_out, name, roc_auc_score(truth, values)) for name, values in scores.items()]
    return pd.DataFrame(rows, columns=["task", "left_out", "method", "auroc"]).assign(n_unseen=truth.sum())


def outputs(model, cells) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated logits, and how far from any class the cells are."""
    batches, *_ = query_batches(cells, model.genes)
    return tuple(found.numpy() for found in predict_logits(model, batches)[:2])


def page() -> str:
    """The page as Markdown, of the tables that are there; draws its figures."""
    stored = [task for task in TASKS if (TABLES / slug(task) / "summary.csv").exists()]
    found = {task: {file.stem: pd.read_csv(file) for file in (TABLES / slug(task)).glob("*.csv")} for task in stored}
    errors, promises, coverage = {}, [], {}
    for task, tables in found.items():
        row, own = tables["summary"].iloc[0], tables.get("divisions")
        cells = {"validation": row.n_validation, "test cells": row.n_test, "accuracy": row.accuracy}
        cells |= {"temperature": row.temperature, "before": row.error_before, "after": row.error_after}
        cells["chance"] = f"{row.floor_after:.3f} (to {row.floor_high_after:.3f})"
        cells["confidence - accuracy"] = f"{row.confidence_after - row.accuracy:+.3f}"
        errors[task] = cells | {"mean over divisions": np.nan if own is None else own["error"].mean()}
        for rate in ERROR_RATES:
            lowest, answered, wrong = (f"{name}_{rate:g}" for name in ("lowest", "answered", "wrong"))
            is_promised = row[lowest] <= rate
            cells = {"task": task, "promised": f"at most {rate:.0%}", "lowest rate that can be promised": row[lowest]}
            cells["answered"] = f"{row[answered]:.1%}" if is_promised else "not promised"
            cells["wrong among them"] = f"{row[wrong]:.1%}" if is_promised else ""
            if own is not None:
                cells["divisions with a promise"] = f"{(own[lowest] <= rate).mean():.0%}"
                cells["broken"] = f"{(own[wrong] > rate).mean():.0%}"  # NaN, no promise, is not
            promises.append(cells)
        coverage[task] = {"classes": row.n_classes}
        for kind, words in (("by_class", "by class"), ("marginal", "all cells")):
            coverage[task] |= {f"{words}: coverage": row[f"coverage_{kind}"], f"{words}: size": row[f"size_{kind}"]}
            coverage[task][f"{words}: empty"] = f"{row[f'empty_{kind}']:.1%}"
            if own is not None:
                values = own[f"coverage_{kind}"]
                coverage[task][f"{words}: mean over divisions"] = f"{values.mean():.3f} ± {values.std():.3f}"
    draw_reliability(found)
    of_types = pd.concat(map(pd.read_csv, sorted((TABLES / "unseen").glob("*.csv"))), ignore_index=True)
    by_type = of_types.pivot_table("auroc", ["task", "left_out"], "method", sort=False)
    figure, ax = plt.subplots(figsize=(8, 4.5), layout="constrained")
    sns.stripplot(of_types, x="auroc", y="method", hue="task", dodge=True, ax=ax)
    sns.move_legend(ax, "upper left", bbox_to_anchor=(1, 1), frameon=False)
    figure.savefig(ROOT / "docs/unseen_types.png", dpi=110)
    plt.close("all")
    parts = [
        "# What a confidence is worth",
        "Written by `python benchmarks/trust.py`; do not edit. The default recipe, trained on the reference of fold 0 "
        "of each task, a tenth of it held back for validation; everything that is promised was chosen on these "
        "validation cells and is measured on the query. *Divisions*: of validation cells and query together into "
        f"calibration and test cells of the same numbers, {N_DIVISIONS} times; their mean says what to expect.",
        "## Calibration",
        "Expected calibration error of the query (15 bins) before and after the temperature. *Chance* is what cells "
        "would show whose confidence is exactly right: mean and 95th percentile of draws with these confidences.",
        markdown(pd.DataFrame(errors).T.rename_axis("task").reset_index()),
        "![accuracy against confidence, before and after](../docs/reliability.png)",
        "## Rejection",
        "A threshold of confidence from the validation cells for a stated share of errors among answered cells, to be "
        "kept in nine draws of ten; *broken* is the share of divisions with a promise and more errors.",
        markdown(pd.DataFrame(promises)),
        "## Prediction sets",
        f"Coverage promised: {1 - ALPHA:.0%}; ± is the standard deviation over divisions. Across regions and plates "
        "the query is not like the validation cells, and the promise need not hold.",
        markdown(pd.DataFrame(coverage).T.rename_axis("task").reset_index()),
        "## Types never seen",
        "One type is left out of the reference and one network of the default recipe trained on the others. Area under "
        "the ROC curve of its cells (of reference and query) against the query's other cells.",
        markdown(of_types.pivot_table("auroc", "method", "task", sort=False).reset_index()),
        markdown(by_type.reset_index()),
        "![area under the ROC curve by left-out type and method](../docs/unseen_types.png)",
        machine(),
    ]
    return "\n\n".join(parts) + "\n"


def draw_reliability(found: dict) -> None:
    """A panel per task."""
    rows = -(-len(found) // 3)
    figure, axes = plt.subplots(rows, 3, figsize=(10.2, 3.5 * rows), layout="constrained", squeeze=False)
    for ax, (task, tables) in zip(axes.flat, found.items(), strict=False):
        ax.plot([0, 1], [0, 1], color="0.5", linestyle=":", zorder=0)
        for name, bins in tables["bins"].groupby("group", sort=False):
            spread = np.abs(bins[["accuracy_low", "accuracy_high"]].sub(bins["accuracy"], axis=0)).T
            ax.errorbar(bins["confidence"], bins["accuracy"], spread, fmt="o", markersize=4, label=name)
        ax.set(xlabel="confidence", ylabel="accuracy", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
        ax.set_title(task, fontsize=9)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=2)
    for ax in axes.flat[len(found) :]:
        ax.set_axis_off()
    figure.savefig(ROOT / "docs/reliability.png", dpi=110)


if __name__ == "__main__":
    main()

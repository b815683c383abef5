"""The default recipe against others that change one setting, on splits of the benchmark's training cells.

    python benchmarks/recipe.py [--tasks pbmc68k sim-mouse]
    python benchmarks/recipe.py --report     # the page alone, from the rows that are there

The reference of the first three outer folds is split again. Rows in benchmarks/measured_recipe/ are not measured again.
"""

import time
from functools import cache
from itertools import product

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from sklearn.metrics import f1_score, log_loss
from sklearn.model_selection import GroupKFold, StratifiedKFold
from study_page import ROOT, command_line, machine, markdown
from tasks import Folds

import sims_kit as sk
from sims_kit.cells.matrix import log_normalised

ROWS = ROOT / "benchmarks/measured_recipe/rows.csv"
TASKS = ("pbmc68k", "blood across donors and conditions", "blood to interferon and back", "blood across chemistries")
TASKS += ("sim-mouse", "sim-cortex across regions")
CHANGES = {  # in the order in which they are measured; the linear methods have no settings
    "default": {},
    **{f"linear share {share:g}": dict(linear_share=share) for share in (0.0, 0.2, 0.6)},
    **dict.fromkeys(("L1 logistic regression", "logistic regression")),
    **{f"mask temperature {value:g}": dict(mask_temperature=value) for value in (3.0, 30.0, 1.0, 100.0)},
    **{f"{number} genes per class": dict(genes_per_class=number) for number in (50, 300)},
    "gene dropout 0.1": dict(gene_dropout=0.1),
    "400 steps": dict(training_steps=400, steps_per_class=40),
    **{f"{number} of 4 networks": dict(n_models=number) for number in (1, 2)},
}
SCORES = ["accuracy", "macro F1", "log loss"]
NUMBERS = ["genes in a mask", "genes in any mask", "genes for half", "genes read", "CPU s"]
folds_of = cache(Folds)


def main() -> None:
    """Measure what is missing, and write the page."""
    tasks, rows = command_line(__doc__, TASKS).parse_args().tasks, pd.read_csv(ROWS)
    done = set(rows[["change", "task", "fold"]].itertuples(index=False, name=None))
    for job in product(CHANGES, tasks, range(3)):
        if job not in done and job[2] < len(folds_of(job[1])):
            rows = pd.concat([rows, pd.DataFrame([measure(*job)])], ignore_index=True)
            rows.to_csv(ROWS, index=False, float_format="%.5g")
    (ROOT / "benchmarks/TRIALS.md").write_text(page(rows))


def measure(change: str, task: str, fold: int) -> dict[str, object]:
    """Scores, seconds and numbers of genes of one fit."""
    reference, groups = folds_of(task)[fold][0], folds_of(task).groups[folds_of(task).fold_of != fold].astype(str)
    labels, n_groups = reference.obs.pop("label").to_numpy(str), groups.nunique()
    splitter = GroupKFold(min(3, n_groups)) if n_groups > 1 else StratifiedKFold(4, shuffle=True, random_state=1)
    learned, asked = next(splitter.split(labels, labels, groups if n_groups > 1 else None))
    asked = asked[np.isin(labels[asked], labels[learned])]
    query, truth, settings = reference[asked].copy(), labels[asked], CHANGES[change]
    estimator = sk.studies.METHODS[change](fold) if settings is None else sk.SIMS(settings, seed=fold)
    started = time.process_time()
    estimator.fit(reference[learned].copy(), labels[learned])
    row = {"change": change, "task": task, "fold": fold, "n_training": len(learned), "n_query": len(asked)}
    row["CPU s"] = time.process_time() - started
    probabilities, classes = estimator.predict_proba(query), estimator.classes_
    predicted = classes[probabilities.argmax(axis=1)]
    row |= {"accuracy": (predicted == truth).mean(), "log loss": log_loss(truth, probabilities, labels=classes)}
    row["macro F1"] = f1_score(truth, predicted, average="macro", labels=np.unique(truth))
    if settings is None:
        of_classes = getattr(estimator[-1], "estimators_", [estimator[-1]])
        return row | {"genes read": np.any([part.coef_ != 0 for part in of_classes], axis=(0, 1)).sum()}
    model = estimator.model_
    (step,) = model.eval().network.steps(torch.from_numpy(log_normalised(query, model.genes).toarray()))
    masks = step.mask.detach().numpy()  # cells x networks x genes
    falling = -np.sort(-masks.mean(axis=1), axis=1).cumsum(axis=1)
    row |= {"genes in a mask": np.median((masks > 0).sum(axis=2)), "genes read": len(model.genes_read)}
    row |= {"genes in any mask": np.median((masks > 0).any(axis=1).sum(axis=1))}
    return row | {"genes for half": np.median((falling < falling[:, -1:] / 2).sum(axis=1)) + 1}


def page(rows: pd.DataFrame) -> str:
    """The page as Markdown; draws its figure."""
    rows, keys = rows.set_index(["task", "change", "fold"]), ["task", "change"]
    gains = rows[SCORES] - rows.xs("default", level="change")[SCORES].reindex(rows.index.droplevel("change")).to_numpy()
    mean, gain, error = rows.groupby(keys).mean(), gains.groupby(keys).mean(), gains.groupby(keys).sem()
    shown = pd.DataFrame({"n": rows.groupby(keys).size()})
    for score in SCORES:
        parts = zip(mean[score], gain[score], error[score], strict=True)
        shown[score] = [f"{value:.3f} ({more:+.3f} ± {width:.3f})" for value, more, width in parts]
    shown[NUMBERS] = mean[NUMBERS].map("{:.0f}".format, na_action="ignore")
    by_task = gain.unstack("task").reindex(CHANGES).drop("default")
    means = {f"mean, {score}": by_task[score].mean(axis=1, skipna=False) for score in SCORES}
    overview = by_task["accuracy"][list(TASKS)].assign(**means)
    curve = mean.assign(gain=gain["accuracy"]).reset_index().query("change.str.contains('default|temperature')")
    looks = dict(style="task", markers=True, markersize=8, dashes=False, hue_order=TASKS, style_order=TASKS)
    ax = sns.lineplot(curve, x="genes in a mask", y="gain", hue="task", **looks)
    ax.axhline(0, color="0.6", linewidth=1, zorder=0)
    ax.set_xscale("log")
    ax.set(xlabel="genes in a mask (median of cells)", ylabel="accuracy minus the default's")
    sns.move_legend(ax, "lower right", title=None, fontsize=8)
    ax.figure.savefig(ROOT / "docs/sparsity.png", dpi=110, bbox_inches="tight")
    parts = [
        "# Trials of the default recipe",
        "Written by `python benchmarks/recipe.py`; do not edit. Each row changes one setting of the default, or is a "
        "linear method. Training cells of the benchmark's outer folds are split again, by groups or samples where "
        "there are several, else at random; the test cells are not read. In brackets the difference to the default "
        "on the same splits, ± its standard error over n splits: one to three of them say little.",
        "Accuracy minus the default's; last, means over tasks of three scores (a lower log loss is better).",
        markdown(overview.map("{:+.3f}".format).replace("+nan", "").reset_index()),
        "## Sparsity",
        "Temperatures of 1, 3, 10 (the default), 30 and 100; [RECIPE.md](RECIPE.md) says where the knee is.",
        "![accuracy against the number of genes in a mask](../docs/sparsity.png)",
    ]
    for task in TASKS:
        parts += [f"## {task}", markdown(shown.loc[task].reindex(CHANGES).dropna(how="all").reset_index())]
    return "\n\n".join([*parts, machine()]).replace(" ± nan", "") + "\n"


if __name__ == "__main__":
    main()

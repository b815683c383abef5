"""Trials of the default recipe on tissue of its own and on training cells; rows go to benchmarks/recipe_trials.csv.

    python benchmarks/recipe_trials.py run default "one network" [--tasks pbmc68k regions ...] [--seeds 1]
    python benchmarks/recipe_trials.py table [--baseline "linear SVM"]

`run` trains every named trial ("all" for each) on every inner task and appends a row per split and seed; rows that the
file has already are not run again. `table` prints, per task, the paired difference of every trial to the baseline
in accuracy, median F1 and macro F1 (mean over splits and seeds, 95 % interval by Student's t where there are three
or more), with genes per mask and seconds.

Real datasets give the training cells of outer fold 0 (of five, stratified, seed 0) and are split in five again; the
outer test cells are never read. (A benchmark of five folds tests on the training cells too, in folds 1 to 4.) Simulated
tissue has seeds 101 and 102, which nothing else uses, and is queried with 3,000 new cells of the same identities, or
with the cells of regions that were not trained on. Plates: 1 to 2.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from scipy.stats import t as student
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC, LinearSVC

import sims_kit as sk
from sims_kit.cells.loaders import query_batches
from sims_kit.cells.matrix import detect_scale, normalise
from sims_kit.datasets.simulate import PRESETS, simulate

ROWS = Path(__file__).with_suffix(".csv")
KEY = ["trial", "task", "split", "seed"]
SCORES = ["accuracy", "median_f1", "macro_f1"]
TRAINED_ON = ("MTG", "V1C", "CgG", "M1lm", "M1ul")  # of eight regions


class Part(NamedTuple):
    """One inner split."""

    reference: ad.AnnData
    query: ad.AnnData
    label: str


def within(name: str, splits: range, seed: int = 1) -> Iterator[Part]:
    """Training cells of outer fold 0, split again."""
    cells = sk.load(name)
    label = cells.uns["sims_kit"]["label"]
    sizes = cells.obs[label].value_counts()
    cells = cells[cells.obs[label].isin(sizes.index[sizes > 10])]
    outer, _ = next(StratifiedKFold(5, shuffle=True, random_state=0).split(cells.X, cells.obs[label]))
    cells = cells[outer].copy()
    inner = StratifiedKFold(5, shuffle=True, random_state=seed).split(cells.X, cells.obs[label])
    for number, (train, test) in enumerate(inner):
        if number in splits:
            yield Part(cells[train].copy(), cells[test].copy(), label)


def tissue(name: str) -> Iterator[Part]:
    """2,000 simulated cells as reference, 3,000 others of the same identities as query."""
    for seed in (101, 102):
        cells = simulate(PRESETS[name]["fast"], seed=seed)
        some = np.random.default_rng(0).permutation(cells.n_obs)[:2000]
        query = simulate(PRESETS[name]["fast"], seed=seed, tissue="other", n_cells=3000)
        yield Part(cells[some].copy(), query, "cell_type")


def regions() -> Iterator[Part]:
    """Five simulated regions as reference, new cells of three others as query."""
    for seed in (101, 102):
        cells = simulate(PRESETS["sim-cortex"]["fast"], seed=seed)
        query = simulate(PRESETS["sim-cortex"]["fast"], seed=seed, tissue="other", n_cells=5000)
        known, new = cells.obs["region"].isin(TRAINED_ON), ~query.obs["region"].isin(TRAINED_ON)
        yield Part(cells[known].copy(), query[new].copy(), "cell_type")


def plates() -> Iterator[Part]:
    """Five cell lines, plate 1 as reference and plate 2 as query."""
    reference, query = sk.load("cell-lines-5cl-p1"), sk.load("cell-lines-5cl-p2")
    yield Part(reference, query, reference.uns["sims_kit"]["label"])


def few(task: str, n_cells: int) -> Iterator[Part]:
    """The first two parts of a task with some of the reference's cells, drawn at random."""
    for number, part in zip(range(2), TASKS[task](), strict=False):
        kept = np.random.default_rng(number).permutation(part.reference.n_obs)[:n_cells]
        yield part._replace(reference=part.reference[kept].copy())


TASKS = {
    "pbmc68k": lambda: within("pbmc68k", range(5)),
    "pbmc68k, split anew": lambda: within("pbmc68k", range(5), seed=2),
    "cortex": lambda: tissue("sim-cortex"),
    "mouse": lambda: tissue("sim-mouse"),
    "regions": regions,
    "worm-neurons": lambda: within("worm-neurons", range(1)),
    "mouse-immune": lambda: within("mouse-immune", range(1)),
    "CEL-seq2": lambda: within("cell-lines-celseq2", range(2)),
    "plates": plates,
    "pbmc68k, 80 cells": lambda: few("pbmc68k", 80),
    "worm-neurons, 60 cells": lambda: few("worm-neurons", 60),
    "cortex, 100 cells": lambda: few("cortex", 100),
    "mouse, 300 cells": lambda: few("mouse", 300),
    "regions, 300 cells": lambda: few("regions", 300),
}
PEERS = {
    "linear SVM": lambda: LinearSVC(C=0.01, random_state=0),
    "logistic regression": lambda: LogisticRegression(C=1, max_iter=1000),
    "RBF SVM on PCA": lambda: make_pipeline(PCA(50, random_state=0), SVC()),
}
THIRD = dict(logit_adjustment=0.0)
SECOND = THIRD | dict(training_steps=500, weight_classes=0.5, optimizer_params=dict(lr=0.01, weight_decay=1e-3))
DECAY = dict(optimizer_params=dict(lr=0.01, weight_decay=3e-3))
FASTER = dict(optimizer_params=dict(lr=0.02, weight_decay=3e-3), scheduler_params=dict(max_lr=0.02))
ON_SECOND = {  # changes to the default before this one: of the network, then of the rest
    "one network": (dict(n_models=1), {}),
    "one network, temperature 3": (dict(n_models=1, mask_temperature=3.0), {}),
    "one network, temperature 10": (dict(n_models=1, mask_temperature=10.0), {}),
    "one network, temperature 100": (dict(n_models=1, mask_temperature=100.0), {}),
    "one network, weight decay 0.003": (dict(n_models=1), DECAY),
    "no validation cells": ({}, dict(validation=0)),  # all cells train: more to learn from, nothing to calibrate on
    "1,000 steps": ({}, dict(training_steps=1000)),
    "weight decay 0.003": ({}, DECAY),
    "1,000 steps, weight decay 0.003": ({}, DECAY | dict(training_steps=1000)),
    "weight decay 0.003, inverse frequency": ({}, DECAY | dict(weight_classes=1.0)),
    "weight decay 0.003, inverse frequency, temperature 60": (
        dict(mask_temperature=60.0),
        DECAY | dict(weight_classes=1.0),
    ),
    "weight decay 0.003, 1,000 steps, weights to the power 0.75": (
        {},
        DECAY | dict(weight_classes=0.75, training_steps=1000),
    ),
    "weight decay 0.003, 1,000 steps, weights to the power 0.75, one network": (
        dict(n_models=1),
        DECAY | dict(weight_classes=0.75, training_steps=1000),
    ),
    "weight decay 0.003, 1,000 steps, weights to the power 0.75, no validation cells": (
        {},
        DECAY | dict(weight_classes=0.75, training_steps=1000, validation=0),
    ),
    "learning rate 0.02": (
        {},
        dict(optimizer_params=dict(lr=0.02, weight_decay=1e-3), scheduler_params=dict(max_lr=0.02)),
    ),
    "learning rate 0.02, weight decay 0.003": ({}, FASTER),
    "learning rate 0.02, weight decay 0.006": ({}, FASTER | dict(optimizer_params=dict(lr=0.02, weight_decay=6e-3))),
    "learning rate 0.02, weight decay 0.003, inverse frequency": ({}, FASTER | dict(weight_classes=1.0)),
    "learning rate 0.02, weight decay 0.003, temperature 60": (dict(mask_temperature=60.0), FASTER),
    "learning rate 0.02, weight decay 0.003, dropout 0.1": (dict(gene_dropout=0.1), FASTER),
}
TRIALS = {  # changes to the default
    "default": ({}, {}),
    "one network": (dict(n_models=1), {}),
    "two networks": (dict(n_models=2), {}),
    "five networks": (dict(n_models=5), {}),
    "masks over all genes": (dict(mask_temperature=None, mask_start=0.01), {}),
    "batch normalisation of the input": (dict(fixed_scale=False), {}),
    "no additive path": (dict(additive=False), {}),
    "no gene dropout": (dict(gene_dropout=0.0), {}),
    "gene dropout 0.1": (dict(gene_dropout=0.1), {}),
    "gene dropout 0.5": (dict(gene_dropout=0.5), {}),
    "TabNet's depth": (dict(n_shared=2, n_independent=2), {}),
    "two steps": (dict(n_steps=2), {}),
    "classes weighed alike": ({}, dict(weight_classes=0.0)),
    "label smoothing": ({}, dict(label_smoothing=0.1)),
    "best epoch": ({}, dict(best_epoch=True)),
    "500 steps": ({}, dict(training_steps=500)),
    "no validation cells": ({}, dict(validation=0)),
    "no weight decay": ({}, dict(optimizer_params=dict(lr=0.01))),
    "logit adjustment 8": ({}, dict(logit_adjustment=8.0)),
    "second default": ({}, SECOND),
    "third default": ({}, THIRD),
    "third default, no validation cells": ({}, THIRD | dict(validation=0)),
    "third default, gene dropout 0.1": (dict(gene_dropout=0.1), THIRD),
    "third default, one network": (dict(n_models=1), THIRD),
    "third default, five networks": (dict(n_models=5), THIRD),
} | {f"second default, {name}": (network, SECOND | changes) for name, (network, changes) in ON_SECOND.items()}


def values(cells: ad.AnnData) -> sp.csr_matrix:
    """Log-normalised values, as the kit's batches have them."""
    counts = sp.csr_matrix(cells.X)
    return normalise(counts, detect_scale(counts))


def run_peer(name: str, part: Part, seed: int) -> dict:
    """A scikit-learn method on log-normalised values of the common genes."""
    genes = part.reference.var_names.intersection(part.query.var_names)
    reference, query = (values(cells[:, genes]) for cells in (part.reference, part.query))
    if "PCA" in name:
        reference, query = reference.toarray(), query.toarray()
    started = time.perf_counter()
    fitted = PEERS[name]().fit(reference, part.reference.obs[part.label].astype(str))
    seconds = time.perf_counter() - started
    probabilities = fitted.predict_proba(query) if name == "logistic regression" else None
    return scores(part, fitted.predict(query), probabilities, fitted.classes_) | {"seconds": seconds}


def run_trial(name: str, part: Part, seed: int) -> dict:
    """The default recipe with the trial's changes; a tenth of the reference is kept for validation, as for users."""
    network, changes = TRIALS[name]
    changes, settings = dict(changes), dict(verbose=False, logger=False, enable_progress_bar=False, seed=seed, test=0)
    if "validation" in changes:
        settings["validation"] = changes.pop("validation")
    started = time.perf_counter()
    model = sk.fit(part.reference, part.label, model_params={"network": network, **changes}, **settings)
    seconds = time.perf_counter() - started
    batches = [batch.cells for batch in query_batches(part.query, model.genes)[0]]
    with torch.no_grad():
        probabilities = torch.cat([model(cells).softmax(1) for cells in batches]).numpy()
        steps = [step for network in model.network.members for step in network.steps(batches[0])]
    predicted = np.asarray(model.classes)[probabilities.argmax(1)]
    genes = np.mean([step.mask.to_sparse()._nnz() for step in steps]) / len(batches[0])
    return scores(part, predicted, probabilities, model.classes) | {"genes": genes, "seconds": seconds}


def scores(part: Part, predicted, probabilities, classes) -> dict:
    """Accuracy, median and macro F1 and, where there are probabilities, log loss and calibration error."""
    truth = part.query.obs[part.label].astype(str).to_numpy()
    found = sk.metrics.score(truth, predicted, probabilities, classes)
    row = {"accuracy": found["accuracy_micro"], "median_f1": found["median_f1"], "macro_f1": found["f1_macro"]}
    if probabilities is not None:
        columns = pd.Index(classes).get_indexer(truth)
        of_truth = np.where(columns >= 0, probabilities[np.arange(len(truth)), columns], 0)
        confidence, right = probabilities.max(1), np.asarray(predicted) == truth
        bins = np.minimum((15 * confidence).astype(int), 14)
        gaps = np.bincount(bins, confidence - right, 15)
        row |= {"log_loss": -np.log(of_truth.clip(1e-9)).mean(), "ece": np.abs(gaps).sum() / len(truth)}
    return row


def run(trials: list[str], tasks: list[str], seeds: int, out: Path) -> None:
    """Append what is missing."""
    for task in tasks:
        for split, part in enumerate(TASKS[task]()):
            for trial in trials:
                for seed in range(1 if trial in PEERS else seeds):
                    known = pd.read_csv(out) if out.exists() else pd.DataFrame(columns=KEY)
                    row = dict(zip(KEY, (trial, task, split, seed), strict=True))
                    if (known[KEY] == pd.Series(row)).all(axis=1).any():
                        continue
                    row |= (run_peer if trial in PEERS else run_trial)(trial, part, seed) | {"by": "kit"}
                    pd.concat([known, pd.DataFrame([row])]).to_csv(out, index=False, float_format="%.5g")
                    print(
                        ", ".join(
                            f"{k}: {v:.3f}" if isinstance(v, float | np.floating) else f"{k}: {v}"
                            for k, v in row.items()
                        ),
                        flush=True,
                    )


def table(rows: pd.DataFrame, baseline: str) -> str:
    """Markdown: paired differences to the baseline. A method without seeds is compared with every seed."""
    lines = ["| task | trial | n | accuracy | median F1 | macro F1 | log loss | genes | s |", "|---" * 9 + "|"]
    for task, of_task in rows.groupby("task", sort=False):
        base = of_task[of_task["trial"] == baseline].set_index(["split", "seed"])[SCORES]
        if base.empty:
            continue
        for trial, runs in of_task.groupby("trial", sort=False):
            pairs = [(row, _partner(base, row)) for _, row in runs.iterrows()]
            differences = pd.DataFrame([row[SCORES].astype(float) - other for row, other in pairs if other is not None])
            if differences.empty:
                continue
            shown = [_interval(differences[score], runs[score].mean()) for score in SCORES]
            rest = [f"{runs[name].mean():{form}}" for name, form in (("log_loss", ".3f"), ("genes", ".0f"))]
            rest = [text.replace("nan", "") for text in [*rest, f"{runs['seconds'].mean():.1f}"]]
            lines.append(f"| {task} | {trial} | {len(differences)} | " + " | ".join([*shown, *rest]) + " |")
    return "\n".join(lines)


def _partner(base: pd.DataFrame, row: pd.Series) -> pd.Series | None:
    for key in ((row["split"], row["seed"]), (row["split"], 0)):
        if key in base.index:
            return base.loc[key]
    return None


def _interval(differences: pd.Series, mean: float) -> str:
    n, text = len(differences), f"{mean:.3f} ({differences.mean():+.3f}"
    if n >= 3:
        text += f" ± {student.ppf(0.975, n - 1) * differences.std() / n**0.5:.3f}"
    return text + ")"


def main() -> None:
    """Run trials or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=ROWS)
    commands = parser.add_subparsers(dest="command", required=True)
    of_run = commands.add_parser("run")
    of_run.add_argument("trials", nargs="+", choices=["all", *PEERS, *TRIALS])
    of_run.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    of_run.add_argument("--seeds", type=int, default=1)
    of_table = commands.add_parser("table")
    of_table.add_argument("--baseline", default="linear SVM")
    arguments = parser.parse_args()
    if arguments.command == "table":
        print(table(pd.read_csv(arguments.rows), arguments.baseline))
        return
    trials = [*PEERS, *TRIALS] if "all" in arguments.trials else arguments.trials
    run(trials, arguments.tasks, arguments.seeds, arguments.rows)


if __name__ == "__main__":
    main()

"""How the unseen score was chosen: its parts and ways to join them, on types that benchmarks/TRUST.md does not report.

    python benchmarks/unseen_trials.py [--tasks worm-neurons sim-mouse] [--types 5] [--models results/unseen_trials]

Of each task up to five types, drawn from those that `trust.py` does not leave out, are left out in turn; one network of
the default recipe learns the others. Area under the ROC curve of the type's cells against the query's other cells, by
parts and by how they are joined, each in robust standard deviations of the validation cells. What is joined by the soft
maximum of doubt, angle and margin is the model's score.
"""

import argparse
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.special import logsumexp
from scipy.stats import median_abs_deviation
from sklearn.metrics import roc_auc_score
from trust import LEFT_OUT, ROOT, fitted, fold, logits_of
from trust_page import table as in_markdown

import sims_kit as sk
from sims_kit.cells.loaders import query_batches
from sims_kit.model.novelty import LEAST_SPREAD, Novelty, odds_against

TRIED = ("pbmc68k", "mouse-immune", "worm-neurons", "sim-cortex", "sim-mouse")
FEWEST = 12  # cells of a type in the reference
WAYS = {
    "soft maximum": lambda z: logsumexp(z, axis=0),
    "maximum": lambda z: z.max(axis=0),
    "sum": lambda z: z.sum(axis=0),
}


def main() -> None:
    """Measure and print: mean over the types of each task, and over tasks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=TRIED)
    parser.add_argument("--types", type=int, default=5, help="of each task")
    parser.add_argument("--models", type=Path, default=ROOT / "results/unseen_trials")
    arguments = parser.parse_args()
    rows = []
    for task in arguments.tasks:
        sizes = fold(task).reference.obs["label"].astype(str).value_counts()
        others = [name for name in sizes.index if sizes[name] >= FEWEST and name not in LEFT_OUT.get(task, ())]
        for left_out in np.random.default_rng(7).permutation(others)[: arguments.types]:
            rows.append({"task": task} | aurocs(task, str(left_out), arguments.models))
            print(f"{task}, {left_out}: {rows[-1]['soft maximum of doubt, angle, margin']:.3f}", flush=True)
    table = pd.DataFrame(rows).groupby("task", sort=False).mean().T
    table.insert(0, "mean", table.mean(axis=1))
    table.insert(1, "worst task", table.iloc[:, 1:].min(axis=1))
    print(in_markdown(table.sort_values("mean", ascending=False).round(3)))


def aurocs(task: str, left_out: str, models: Path) -> dict[str, float]:
    """Of each part, and of two and three of them joined."""
    model, reference = fitted(task, models, left_out)
    query, more = fold(task).query, fold(task).reference
    more = more[more.obs["label"] == left_out].copy()
    is_new = np.concatenate([fold(task).truth == left_out, np.ones(more.n_obs, dtype=bool)])
    module = sk.DataModule(reference, None, "label", test=0, seed=0, verbose=False)
    usual, found = parts(model, [reference[module.split.validation].copy()]), parts(model, [query, more])
    z = {}
    for name, values in usual.items():
        spread = max(median_abs_deviation(values, scale="normal"), LEAST_SPREAD)
        z[name] = (found[name] - np.median(values)) / spread
    scores = {name: roc_auc_score(is_new, values) for name, values in z.items()}
    for n in (2, 3):
        for some in combinations(z, n):
            joined = np.stack([z[name] for name in some])
            for way, join in WAYS.items():
                scores[f"{way} of {', '.join(some)}"] = roc_auc_score(is_new, join(joined))
    return scores


def parts(model, cells: list) -> dict[str, np.ndarray]:
    """Doubt, angle, margin and squared distance to the nearest class mean, which was the second part before."""
    logits = np.concatenate([logits_of(model, some) for some in cells])
    angle, margin, distance = [], [], []
    for some in cells:
        for batch in query_batches(some, model.genes)[0]:
            unlike = model.novelty.distances(batch.cells)
            angle.append(unlike[:, 0].numpy())
            margin.append(unlike[:, 1].numpy())
            distance.append(_distance(model.novelty, batch.cells))
    return {
        "doubt": odds_against(torch.from_numpy(logits)).numpy(),
        "angle": np.concatenate(angle),
        "margin": np.concatenate(margin),
        "distance": np.concatenate(distance),
    }


def _distance(profiles: Novelty, cells) -> np.ndarray:
    values = cells.to_dense() * profiles.weights
    means = profiles.means * profiles.weights
    squared = values.square().sum(1)[:, None] - 2 * values @ means.T + means.square().sum(1)
    return squared.min(1).values.clamp(min=1e-6).log().numpy()


if __name__ == "__main__":
    main()

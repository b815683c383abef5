"""Scores of predictions and their intervals: cells and seeds are drawn anew, the same ones for every method."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import scipy.sparse as sp

from sims_kit.calibration import UNKNOWN
from sims_kit.metrics import label_scores

TRANSFER_SCORES = ("balanced_accuracy", "weighted_accuracy", "aggregated_f1", "median_f1")
BLOCK = 2**24  # weights of drawn cells that are held at once


def score_counts(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Scores, 0 to 1, and ``unknown_percent`` of tables of counts; a cell labelled `Unknown` is not found.

    `counts` is (..., classes, labels), as in `sims_kit.metrics.label_scores`; the last label is `Unknown`.
    """
    counts = np.asarray(counts)
    found = label_scores(counts[..., :-1], sizes=counts.sum(axis=-1))
    found |= {"weighted_accuracy": found["accuracy_micro"], "aggregated_f1": found["f1_micro"]}
    found |= {"macro_f1": found["f1_macro"], "unknown_percent": _unknown_percent(counts)}
    return {name: found[name] for name in (*TRANSFER_SCORES, "macro_f1", "unknown_percent")}


def score_labelled(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of the cells that have a label; the others are counted (Abdelaal et al., Genome Biology 2019)."""
    counts = np.asarray(counts)
    found = label_scores(counts[..., :-1])
    scores = {"accuracy": found["accuracy_micro"], "macro_f1": found["f1_macro"], "median_f1": found["median_f1"]}
    return scores | {"unlabelled_percent": _unknown_percent(counts)}


def _unknown_percent(counts: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # NaN where there are no cells
        return 100 * (counts[..., -1].sum(axis=-1) / counts.sum(axis=(-2, -1)))


def resample(
    predictions: pd.DataFrame, by: Sequence[str], n_bootstrap: int = 1000, *, score=score_counts, seed: int = 0
) -> dict[tuple, pd.DataFrame]:
    """Scores of every run, on its cells and on cells drawn with replacement: the same draws for all runs.

    `predictions` has a row per run and cell: the columns `by`, which name the run, ``cell``, ``class`` and
    ``predicted``. A run that lacks some cells is scored on those drawn cells that it has. Independent cells need
    another `seed`. The result has a table for each run: a column for each score, the value first and then its draws.
    """
    cells, classes = pd.Index(np.sort(predictions["cell"].unique())), sorted(set(predictions["class"]))
    labels = [*classes, *sorted(set(predictions["predicted"]) - {*classes, UNKNOWN}), UNKNOWN]
    shape = len(classes), len(labels)
    place = pd.Index(classes).get_indexer(predictions["class"]) * len(labels)
    place += pd.Index(labels).get_indexer(predictions["predicted"])
    column = cells.get_indexer(predictions["cell"])
    runs = {  # of each run the matrix that counts (drawn) cells by class and label
        key: sp.csr_matrix((np.ones(len(part)), (place[part.index], column[part.index])), (np.prod(shape), len(cells)))
        for key, part in predictions.reset_index(drop=True).groupby(list(by), sort=False)
    }
    random, everyone, parts = np.random.default_rng(seed), np.ones((1, len(cells))), {key: [] for key in runs}
    blocks = np.array_split(np.arange(n_bootstrap), 1 + n_bootstrap * len(cells) // BLOCK)
    for n_draws in [0, *filter(None, map(len, blocks))]:  # all cells once, then how often each cell is drawn
        weights = random.multinomial(len(cells), everyone[0] / len(cells), size=n_draws) if n_draws else everyone
        for key, counts in runs.items():
            parts[key].append(pd.DataFrame(score((counts @ weights.T).T.reshape(-1, *shape))))
    return {key: pd.concat(of_key, ignore_index=True) for key, of_key in parts.items()}


def mean_over_seeds(drawn: Mapping[tuple, pd.DataFrame]) -> dict[tuple, pd.DataFrame]:
    """Means over the seeds of runs from `resample`, whose keys end with the seed; the same seeds are drawn for all.

    With three seeds or fewer, intervals underestimate what is due to seeds.
    """
    runs = {}
    for (*key, _), scores in drawn.items():
        runs.setdefault(tuple(key), []).append(scores)
    n_seeds, n_values = len({seed for *_, seed in drawn}), len(next(iter(drawn.values())))
    chosen = np.random.default_rng(1).integers(n_seeds, size=(n_values, n_seeds))
    means = {}
    for key, of_seeds in runs.items():
        values = np.stack(of_seeds, axis=1)  # (draws, seeds, scores)
        means[key] = np.take_along_axis(values, (chosen % len(of_seeds))[..., None], axis=1).mean(axis=1)
        means[key][0] = values[0].mean(axis=0)
        means[key] = pd.DataFrame(means[key], columns=of_seeds[0].columns)
    return means


def intervals(drawn: Mapping[tuple, pd.DataFrame], by: Sequence[str]) -> pd.DataFrame:
    """A row for each run: its key, in the columns `by`, and each score with ``_low`` and ``_high``, 95 % intervals."""
    rows = []
    for key, scores in drawn.items():
        rows.append(dict(zip(by, key, strict=True)))
        ends = scores.iloc[1:].quantile([0.025, 0.975]).to_numpy()
        for name, *found in zip(scores.columns, scores.iloc[0], *ends, strict=True):
            rows[-1] |= dict(zip((name, f"{name}_low", f"{name}_high"), found, strict=True))
    return pd.DataFrame(rows)


def differences(
    pairs: Mapping[tuple, tuple[pd.DataFrame, pd.DataFrame]], by: Sequence[str], scores: Sequence[str] = TRANSFER_SCORES
) -> pd.DataFrame:
    """The first of two runs minus the second: ``score``, ``difference``, ``low``, ``high`` behind the columns `by`."""
    drawn = {(*key, name): pd.DataFrame({"": a[name] - b[name]}) for key, (a, b) in pairs.items() for name in scores}
    found = intervals(drawn, [*by, "score"]).reindex(columns=[*by, "score", "", "_low", "_high"])
    return found.rename(columns={"": "difference", "_low": "low", "_high": "high"})

"""Scores of predictions and their intervals: cells and seeds are drawn anew, the same ones for every method."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import scipy.sparse as sp

from sims_kit.calibration import UNKNOWN

TRANSFER_SCORES = ("balanced_accuracy", "weighted_accuracy", "aggregated_f1", "median_f1")
LABELLED_SCORES = ("accuracy", "macro_f1", "median_f1", "unlabelled_percent")
INTERVAL = (2.5, 97.5)  # percentiles: the middle 95 %
BLOCK = 2**24  # weights of drawn cells that are held at once


def score_counts(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of tables of counts, as `sims_kit.metrics` has them; a cell labelled `Unknown` is not found.

    Parameters
    ----------
    counts
        (..., classes, labels) cells of each true class with each label: the classes, other labels, last `Unknown`.

    Returns
    -------
    dict of str to array, (...)
        0 to 1, NaN where there are no cells. ``balanced_accuracy``: mean of sensitivity and specificity of a class
        (thesis equation 0.3), averaged over classes. ``weighted_accuracy``: share of correct cells. ``aggregated_f1``:
        F1 of the classes pooled, which is the same where every cell is labelled. ``median_f1``: of the classes that
        occur. ``macro_f1``: of the classes that occur or are predicted. ``unknown_percent``: 0 to 100.

    Examples
    --------
    >>> score_counts([[8, 2, 0], [0, 9, 1]])["weighted_accuracy"]  # 8 of 10, 9 of 10 with one Unknown
    array(0.85)
    """
    counts = np.asarray(counts, dtype=np.float64)
    n_classes = counts.shape[-2]
    sizes, predicted = counts.sum(axis=-1), counts[..., :n_classes].sum(axis=-2)
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    total, unknown = sizes.sum(axis=-1), counts[..., -1].sum(axis=-1)
    rest, present = total[..., None] - sizes, sizes > 0
    balanced = (_ratio(hits, sizes) + _ratio(rest - (predicted - hits), rest)) / 2 * present
    f1 = _ratio(2 * hits, sizes + predicted)
    others = (counts[..., n_classes:-1].sum(axis=-2) > 0).sum(axis=-1)  # predicted, but no true class: F1 of 0
    ordered, n = np.sort(np.where(present, f1, np.inf), axis=-1), present.sum(axis=-1, keepdims=True).clip(1)
    middle = [np.take_along_axis(ordered, place, axis=-1)[..., 0] for place in ((n - 1) // 2, n // 2)]
    scores = {
        "balanced_accuracy": _ratio(balanced.sum(axis=-1), present.sum(axis=-1)),
        "weighted_accuracy": _ratio(hits.sum(axis=-1), total),
        "aggregated_f1": _ratio(2 * hits.sum(axis=-1), 2 * total - unknown),
        "median_f1": (middle[0] + middle[1]) / 2,
        "macro_f1": _ratio(f1.sum(axis=-1), (sizes + predicted > 0).sum(axis=-1) + others),
        "unknown_percent": 100 * _ratio(unknown, total),
    }
    return {name: np.where(total > 0, values, np.nan) for name, values in scores.items()}


def score_labelled(counts: np.ndarray) -> dict[str, np.ndarray]:
    """`LABELLED_SCORES`: cells left `Unknown` are not scored but counted (Abdelaal et al., Genome Biology 2019)."""
    labelled = np.array(counts, dtype=np.float64)
    labelled[..., -1] = 0
    scores = score_counts(labelled)
    found = (
        scores["weighted_accuracy"],
        scores["macro_f1"],
        scores["median_f1"],
        score_counts(counts)["unknown_percent"],
    )
    return dict(zip(LABELLED_SCORES, found, strict=True))


def resample(
    predictions: pd.DataFrame, by: Sequence[str], n_bootstrap: int = 1000, *, score=score_counts, seed: int = 0
) -> dict[tuple, dict[str, np.ndarray]]:
    """Scores of every run, on its cells and on cells drawn with replacement: the same draws for all runs.

    Parameters
    ----------
    predictions
        One row per run and cell: the columns `by`, which name the run, ``cell``, ``class`` and ``predicted``. A run
        that lacks some cells is scored on those drawn cells that it has.
    n_bootstrap, seed
        Number of draws and their seed; independent cells need another one.
    score
        `score_counts` or `score_labelled`.

    Returns
    -------
    dict
        For each run, by the values of `by`, the scores: (1 + n_bootstrap,), the value first and then its draws.

    Examples
    --------
    >>> drawn = resample(predictions, ["method"])
    >>> intervals(drawn["linear SVM",])
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
            parts[key].append(score((counts @ weights.T).T.reshape(-1, *shape)))
    return {
        key: {name: np.concatenate([part[name] for part in of_key]) for name in of_key[0]}
        for key, of_key in parts.items()
    }


def mean_over_seeds(drawn: Mapping[tuple, Mapping[str, np.ndarray]]) -> dict[tuple, dict[str, np.ndarray]]:
    """Means over the seeds of runs from `resample`, whose keys end with the seed; the same seeds are drawn for all.

    With three seeds or fewer, intervals underestimate what is due to seeds.
    """
    n_seeds, runs, means = len({seed for *_, seed in drawn}), {}, {}
    for (*key, _), scores in drawn.items():
        runs.setdefault(tuple(key), []).append(scores)
    n_values = len(next(iter(next(iter(drawn.values())).values())))
    chosen = np.random.default_rng(1).integers(n_seeds, size=(n_values, n_seeds))
    for key, of_seeds in runs.items():
        means[key] = {}
        for name in of_seeds[0]:
            values = np.stack([scores[name] for scores in of_seeds], axis=1)
            means[key][name] = np.take_along_axis(values, chosen % len(of_seeds), axis=1).mean(axis=1)
            means[key][name][0] = values[0].mean()
    return means


def intervals(scores: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Each score and, as ``_low`` and ``_high``, its 95 % interval; values come first, then their draws."""
    found = {}
    for name, (value, *draws) in scores.items():
        draws = [draw for draw in draws if draw == draw]  # without NaN
        low, high = np.percentile(draws, INTERVAL) if draws else (np.nan, np.nan)
        found |= {name: float(value), f"{name}_low": float(low), f"{name}_high": float(high)}
    return found


def difference(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """``difference``, ``low`` and ``high`` of one score of two runs."""
    found = intervals({"difference": first - second})
    return dict(zip(("difference", "low", "high"), found.values(), strict=True))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return part / np.maximum(whole, 1)  # a part is 0 where the whole is

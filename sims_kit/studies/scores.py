"""From the predictions of all folds to scores with intervals, paired differences, and recall by class size."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from sims_kit import metrics
from sims_kit.calibration import expected_calibration_error
from sims_kit.errors import DataError
from sims_kit.studies.adaptor import UNKNOWN

SCORES = ("accuracy", "macro_f1", "median_f1", "unlabelled_percent", "calibration_error")
LEVEL = 0.95  # of every interval
INTERVAL = (2.5, 97.5)  # percentiles: the middle 95 %


def score_cells(cells: pd.DataFrame) -> pd.Series:
    """Scores of the pooled predictions of one method.

    Rejected cells leave accuracy and F1, hence the percentage beside them; calibration is of all cells.

    Parameters
    ----------
    cells
        One row per cell: ``truth``, ``predicted`` (``"Unknown"`` where rejected), ``top`` and ``confidence`` (the most
        probable class and its probability, NaN for methods without).

    Returns
    -------
    pandas.Series
        ``accuracy``, ``macro_f1``, ``median_f1`` (0 to 1, from `sims_kit.metrics.score`), ``unlabelled_percent``, and
        ``calibration_error``, of 15 bins as there. NaN where there is nothing to score.
    """
    labelled = cells[cells["predicted"] != UNKNOWN]
    values = dict.fromkeys(SCORES, np.nan)
    if len(labelled):
        scores = metrics.score(labelled["truth"].to_numpy(), labelled["predicted"].to_numpy())
        values |= {"accuracy": scores["accuracy_micro"]}
        values |= {"macro_f1": scores["f1_macro"], "median_f1": scores["median_f1"]}
    values["unlabelled_percent"] = 100 * (1 - len(labelled) / len(cells))
    values["calibration_error"] = _calibration_error(
        cells["confidence"].to_numpy(), (cells["top"] == cells["truth"]).to_numpy()
    )
    return pd.Series(values, name="score")


def bootstrap(methods: Mapping[str, pd.DataFrame], n_bootstrap: int = 1000, seed: int = 0) -> dict[str, pd.DataFrame]:
    """Scores of resampled cells, the same cells for every method, so that differences are paired.

    Parameters
    ----------
    methods
        For each method a table as `score_cells` takes it, of the same cells in the same order.
    n_bootstrap
        Number of samples, drawn with replacement.
    seed
        Of the draws.

    Returns
    -------
    dict of str to DataFrame, (n_bootstrap, 5)
        A column for each of `score_cells`' values.

    Raises
    ------
    DataError
        If the methods do not have the same cells.
    """
    tables = list(methods.values())
    if any(not np.array_equal(table["truth"], tables[0]["truth"]) for table in tables):
        raise DataError("The methods have predictions of different cells; a paired bootstrap needs the same ones.")
    random = np.random.default_rng(seed)
    coded = {name: _codes(table) for name, table in methods.items()}
    replicates: dict[str, list] = {name: [] for name in methods}
    for _ in range(n_bootstrap):
        chosen = random.integers(len(tables[0]), size=len(tables[0]))
        for name, columns in coded.items():
            replicates[name].append(_score_codes(*(column[chosen] for column in columns)))
    return {name: pd.DataFrame(rows, columns=list(SCORES)) for name, rows in replicates.items()}


def with_intervals(cells: pd.DataFrame, replicates: pd.DataFrame) -> dict[str, float]:
    """Scores, and for each ``_low`` and ``_high``, the 95 % bootstrap interval."""
    values = {}
    for name, value in score_cells(cells).items():
        low, high = _interval(replicates[name].to_numpy())
        values |= {name: value, f"{name}_low": low, f"{name}_high": high}
    return values


def paired_differences(
    methods: Mapping[str, pd.DataFrame], replicates: Mapping[str, pd.DataFrame], against: str
) -> pd.DataFrame:
    """How much better or worse one method scores than each of the others, on the same cells.

    Parameters
    ----------
    methods, replicates
        What `bootstrap` takes and gives.
    against
        The method whose score comes first in the difference.

    Returns
    -------
    DataFrame
        Columns ``method``, ``score``, ``difference`` (`against` minus method), ``low`` and ``high`` (95 %).
    """
    own, rows = score_cells(methods[against]), []
    for name, cells in methods.items():
        if name == against:
            continue
        other = score_cells(cells)
        for score in SCORES:
            low, high = _interval((replicates[against][score] - replicates[name][score]).to_numpy())
            rows.append((name, score, own[score] - other[score], low, high))
    return pd.DataFrame(rows, columns=["method", "score", "difference", "low", "high"])


def recall_by_class(cells: pd.DataFrame) -> pd.DataFrame:
    """Recall of each true class, and its size: how rare classes fare. A rejected cell is not found.

    Returns
    -------
    DataFrame
        Columns ``class``, ``n_cells`` and ``recall`` (0 to 1), the rarest first.
    """
    table = metrics.per_class(cells["truth"].to_numpy(), cells["predicted"].to_numpy())
    table = table[table["support"] > 0].reset_index()
    table = table.rename(columns={"support": "n_cells"})[["class", "n_cells", "recall"]]
    return table.sort_values("n_cells", kind="stable", ignore_index=True)


def _codes(cells: pd.DataFrame) -> tuple[np.ndarray, ...]:
    """True and predicted class as numbers (-1: rejected), confidence, and whether the most probable class is right."""
    names = pd.Index(np.unique(np.concatenate([cells["truth"], cells["predicted"]]).astype(str)))
    names = names[names != UNKNOWN]
    truth, predicted = names.get_indexer(cells["truth"]), names.get_indexer(cells["predicted"])
    return truth, predicted, cells["confidence"].to_numpy(), (cells["top"] == cells["truth"]).to_numpy()


def _score_codes(truth: np.ndarray, predicted: np.ndarray, confidence: np.ndarray, right: np.ndarray) -> list[float]:
    """The values of `score_cells` by counting: a thousand samples of torchmetrics would take minutes a method."""
    labelled = predicted >= 0
    share = 100 * (1 - labelled.mean())
    truth, predicted = truth[labelled], predicted[labelled]
    if not len(truth):
        return [np.nan, np.nan, np.nan, share, _calibration_error(confidence, right)]
    n_classes = max(truth.max(), predicted.max()) + 1
    hits = np.bincount(truth[truth == predicted], minlength=n_classes)
    sizes, calls = np.bincount(truth, minlength=n_classes), np.bincount(predicted, minlength=n_classes)
    f1 = 2 * hits / np.maximum(sizes + calls, 1)
    return [
        hits.sum() / len(truth),
        f1[sizes + calls > 0].mean(),
        np.median(f1[sizes > 0]),
        share,
        _calibration_error(confidence, right),
    ]


def _calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """That of `sims_kit.metrics`, from the most probable class alone, which is all that it looks at."""
    if np.isnan(confidence).any():
        return np.nan
    return expected_calibration_error(np.clip(confidence, 0, 1), right, n_bins=metrics.CALIBRATION_BINS)


def _interval(values: np.ndarray) -> np.ndarray:
    return np.full(2, np.nan) if np.isnan(values).all() else np.nanpercentile(values, INTERVAL)

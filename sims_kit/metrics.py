"""Metrics of an annotation, for arrays of labels and, as torchmetrics objects, batch by batch in training.

A macro average counts each class once, however few cells it has, so it matters which classes take part:

- ``accuracy_macro``, ``recall_macro``, ``specificity_macro``, ``balanced_accuracy``, ``median_f1``: the classes that
  occur in the true labels.
- ``precision_macro``, ``f1_macro``, ``cohen_kappa``, ``mcc``: the classes that occur in either, as in scikit-learn. A
  rejected cell lowers them: "Unknown" is a class of precision and F1 zero.
- ``accuracy_micro``, ``accuracy_weighted``, ``f1_micro``, ``f1_weighted``: each cell counts once.

Ratios of 0 / 0 count as 0, so no value is NaN.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache, partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassCalibrationError, MulticlassConfusionMatrix

from sims_kit.errors import DataError, LabelError, SettingError, UnknownNameError
from sims_kit.text import label_text

__all__ = ["per_class", "score"]

# 15 bins of equal width, the number that most of the calibration literature reports
CalibrationError = partial(MulticlassCalibrationError, n_bins=15, norm="l1", validate_args=False)


def score(y_true: Sequence, y_pred: Sequence, probabilities=None, classes: Sequence | None = None) -> pd.Series:
    """Return the metrics of this module for arrays of labels, from 0 to 1 (``cohen_kappa`` and ``mcc``: from -1).

    `y_true` and `y_pred` are (cells,) labels in the same order, compared as models write them: 3.0 is "3", "B cell " is
    "B cell". Either may contain labels that the other lacks, such as ``"Unknown"``.

    `probabilities`, (cells, classes), also logits, are a DataFrame with the classes as columns, or an array with
    `classes`. They add ``calibration_error`` (15 bins, mean absolute difference of confidence and accuracy) of the most
    probable class.

    >>> score(["T", "T", "B"], ["T", "B", "B"])[["accuracy_micro", "median_f1"]].round(3).tolist()
    [0.667, 0.667]
    >>> score(cells.obs["cell_type"], cells.obs["sims_label"], cells.obsm["sims_probabilities"], model.classes)
    """
    confusion, names, truth = _confusion(y_true, y_pred)
    values = label_scores(confusion)
    if probabilities is not None:
        if classes is None and not isinstance(probabilities, pd.DataFrame):
            raise SettingError("The columns of probabilities have no names: pass classes=model.classes.")
        table = pd.DataFrame(probabilities, columns=classes)
        table.columns = label_text(table.columns)
        if len(table) != len(truth) or not table.columns.is_unique or not np.isfinite(table).all(axis=None):
            found = f"probabilities has {len(table)} rows and columns {[*table.columns]}"
            raise DataError(f"{found}; expected finite values of {len(truth)} cells, and one column for each class.")
        column = table.columns.get_indexer(names)[truth]  # -1, never right: not among classes
        confidences = torch.tensor(table.to_numpy(np.float32))
        values["calibration_error"] = CalibrationError(table.shape[1])(confidences, torch.from_numpy(column))
    return pd.Series({name: float(value) for name, value in values.items()}, name="score")


def per_class(y_true: Sequence, y_pred: Sequence) -> pd.DataFrame:
    """Return precision, recall, specificity and F1 of each class, and its cells; arguments as in `score`.

    One row per class that occurs in either array, sorted by name; columns ``precision``, ``recall``, ``specificity``,
    ``f1`` (0 to 1) and ``support`` (cells with that true label).

    >>> per_class(["T", "T", "B"], ["T", "B", "B"]).loc["B", ["precision", "recall"]].tolist()
    [0.5, 1.0]
    """
    confusion, names, _ = _confusion(y_true, y_pred)
    sizes = confusion.sum(axis=1)
    ratios = pd.DataFrame(_ratios(confusion, sizes), index=names.rename("class")).astype(np.float32)
    return ratios.assign(support=sizes)


def metric_collection(
    n_classes: int, prefix: str = "", metrics: Iterable[str | Metric] | None = None
) -> MetricCollection:
    """Return the metrics that training tracks, to be updated batch by batch with scores and targets.

    `metrics` are names of the metrics of this module (all by default), or torchmetrics objects, which are tracked under
    the name of their class. `prefix` goes before each name.

    >>> collection = metric_collection(2, "val_", metrics=["median_f1"])
    >>> collection.update(torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([0, 1]))
    >>> collection.compute()
    {'val_median_f1': tensor(1.)}
    """
    known: dict[str, Metric] = {name: LabelMetric(n_classes, name) for name in LABEL_METRICS}
    known["calibration_error"] = CalibrationError(n_classes)
    tracked = {}
    metrics = [metrics] if isinstance(metrics, str | Metric) else metrics
    for metric in known if metrics is None else metrics:
        if isinstance(metric, Metric):
            if (name := type(metric).__name__) in tracked:
                raise SettingError(f"metrics has two objects of class {name}, which names them; expected one of each.")
            tracked[name] = metric.clone()
        elif metric in known:
            tracked[metric] = known[metric]
        else:
            raise UnknownNameError("metric", metric, known)
    counted = [name for name, metric in tracked.items() if isinstance(metric, LabelMetric)]
    groups = [group for group in (counted, *([name] for name in tracked if name not in counted)) if group]
    return MetricCollection(tracked, prefix=prefix or None, compute_groups=groups)


class LabelMetric(MulticlassConfusionMatrix):
    """One of `LABEL_METRICS` as a torchmetrics object; a collection has one confusion matrix, scored once."""

    higher_is_better = True

    def __init__(self, n_classes: int, name: str):
        super().__init__(n_classes, validate_args=False)  # checks cost more than counting
        self.name = name

    def compute(self) -> Tensor:
        """The value over all updates so far, a scalar."""
        value = _scores_of(self.confmat.cpu().numpy().tobytes(), len(self.confmat))[self.name]
        return torch.tensor(value, dtype=torch.float32, device=self.confmat.device)


def label_scores(counts: np.ndarray, sizes: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Every metric that needs no probabilities, (...,) each, of tables of counts; NaN where there are no cells.

    `counts` is (..., classes, labels): cells of each true class by predicted label, of which the first are the classes.
    `sizes`, (..., classes), are the cells of each class, if some have no label and are not in `counts`.
    """
    counts = np.asarray(counts, dtype=np.float64)
    sizes = counts.sum(axis=-1) if sizes is None else sizes
    ratios, predicted, n_classes = _ratios(counts, sizes), counts.sum(axis=-2), counts.shape[-2]
    n_cells, n_correct = sizes.sum(axis=-1), np.trace(counts, axis1=-2, axis2=-1)
    is_true, occurs = sizes > 0, predicted > 0
    occurs[..., :n_classes] |= is_true

    def mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return _ratio((values * weights[..., :n_classes]).sum(axis=-1), weights.sum(axis=-1))

    # kappa and mcc: numerators and denominators are multiplied by the squared number of cells
    by_chance = (sizes * predicted[..., :n_classes]).sum(axis=-1)
    spread = np.prod([n_cells**2 - (part**2).sum(axis=-1) for part in (sizes, predicted)], axis=0) ** 0.5
    accuracy, recall = _ratio(n_correct, n_cells), mean(ratios["recall"], is_true)
    values = {
        "accuracy_macro": recall,
        "accuracy_micro": accuracy,
        "accuracy_weighted": accuracy,
        "balanced_accuracy": mean((ratios["recall"] + ratios["specificity"]) / 2, is_true),  # thesis equation 0.3
        "cohen_kappa": _ratio(n_correct * n_cells - by_chance, n_cells**2 - by_chance),
        "f1_macro": mean(ratios["f1"], occurs),
        "f1_micro": _ratio(2 * n_correct, n_cells + predicted.sum(axis=-1)),
        "f1_weighted": mean(ratios["f1"], sizes),
        "mcc": _ratio(n_correct * n_cells - by_chance, spread),
        "median_f1": np.ma.filled(np.ma.median(np.ma.array(ratios["f1"], mask=~is_true), axis=-1), np.nan),
        "precision_macro": mean(ratios["precision"], occurs),
        "recall_macro": recall,
        "specificity_macro": mean(ratios["specificity"], is_true),
    }
    return {name: np.where(n_cells > 0, value, np.nan) for name, value in values.items()}


def _ratios(counts: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
    """Ratios of each class, (..., classes); arguments as in `label_scores`."""
    hits, predicted = np.diagonal(counts, axis1=-2, axis2=-1), counts[..., : sizes.shape[-1]].sum(axis=-2)
    others = sizes.sum(axis=-1, keepdims=True) - sizes
    return {
        "precision": _ratio(hits, predicted),
        "recall": _ratio(hits, sizes),
        "specificity": _ratio(others - (predicted - hits), others),
        "f1": _ratio(2 * hits, sizes + predicted),
    }


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return part / np.maximum(whole, 1)  # a part is 0 where the whole is


LABEL_METRICS = tuple(label_scores(np.eye(2)))
_scores_of = lru_cache(1)(lambda counts, n: label_scores(np.frombuffer(counts, np.int64).reshape(n, n)))


def _confusion(y_true: Sequence, y_pred: Sequence) -> tuple[np.ndarray, pd.Index, np.ndarray]:
    """Counts of cells, true x predicted, the sorted names of all labels, and the true labels as positions in these."""
    indexes = [labels.index for labels in (y_true, y_pred) if isinstance(labels, pd.Series)]
    if len(indexes) == 2 and not indexes[0].equals(indexes[1]) and set(indexes[0]) == set(indexes[1]):
        raise LabelError("y_true and y_pred hold the same cells in another order: pass y_pred.loc[y_true.index].")
    truth, prediction = _strings(y_true, "y_true"), _strings(y_pred, "y_pred")
    if len(truth) != len(prediction):
        raise LabelError(f"y_true has {len(truth)} labels and y_pred {len(prediction)}; expected one per cell in each.")
    codes, names = pd.factorize(np.concatenate([truth, prediction]), sort=True)
    true, predicted = codes.reshape(2, -1)
    counts = np.bincount(true * len(names) + predicted, minlength=len(names) ** 2)
    return counts.reshape(len(names), -1), pd.Index(names), true


def _strings(labels: Sequence, argument: str) -> np.ndarray:
    """Labels as text; refuses what is empty, missing or not one per cell."""
    values = labels if isinstance(labels, pd.Series | np.ndarray) else np.asarray(labels, dtype=object)
    if values.ndim != 1 or not len(values):
        found = f"has shape {values.shape}" if values.size else "is empty"
        raise LabelError(f"{argument} {found}; expected one label for each of one or more cells.")
    text = label_text(values)
    if missing := text.isna().sum():
        raise LabelError(f"{argument} has {missing} of {len(values)} cells without a label; leave these out first.")
    return text.to_numpy()
